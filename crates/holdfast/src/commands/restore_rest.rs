//! What a staged restore left for later: large payloads, which come through the log of the cluster that serves everything
//! else by now.
//!
//! Invariants: how far it came is in the cluster's own state, so that it goes on from there, whoever begins it again, and on
//! whatever machine; nothing is sent that was not checked.

use std::io::Write;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use holdfast_archive::compose::read_rows;
use holdfast_archive::payloads::{Payload, Section, payloads_in};
use holdfast_archive::{Destination, Manifest, RestorePlan};
use holdfast_client::{AdminClient, Error, v1};
use holdfast_model::command::Genesis;
use holdfast_model::id::Stage;
use indicatif::ProgressBar;

use crate::commands::restore_eta::rounded;
use crate::exit::{Exit, failure};
use crate::progress;

/// Payloads that are sent in one call. One that is larger goes alone.
const CALL_BYTES: usize = 1 << 20;
/// Between two looks whether the cluster serves, and before a call is made again.
const PAUSE: Duration = Duration::from_millis(300);
/// For a node to say how it is.
const STATUS_WITHIN: Duration = Duration::from_secs(2);
/// A cluster that takes nothing for so long is waited for no more.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// For a node to apply what was committed.
const APPLIED_WITHIN: Duration = Duration::from_secs(30);
/// From one line for programs to the next.
const LINE_PAUSE: Duration = Duration::from_secs(1);

/// What is brought, and where to.
pub struct Rest<'a> {
    /// The archive.
    pub destination: &'a Destination,
    /// What was restored from it.
    pub plan: &'a RestorePlan,
    /// The history that was opened.
    pub genesis: &'a Genesis,
    /// Addresses of its nodes, for operators.
    pub admins: Vec<String>,
    /// Say on stderr, as lines of JSON, what is done.
    pub lines: bool,
}

/// What was brought by this call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Brought {
    /// Payloads.
    pub payloads: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What the cluster says is left.
struct Left {
    stages: Vec<Stage>,
    through: Vec<u8>,
}

/// One who answers for the cluster, and how it goes.
struct Bringing<'a> {
    rest: &'a Rest<'a>,
    admins: Vec<AdminClient>,
    bar: ProgressBar,
    began: Instant,
    told: Option<Instant>,
    /// Plain bytes of all that was left when this began, and of what was gone through.
    total: u64,
    done: u64,
    brought: Brought,
}

/// Waits until the cluster serves, and brings it what is left.
///
/// # Errors
/// Names the object that is bad, or says that the cluster takes nothing any more; what came is there.
pub async fn bring(rest: &Rest<'_>) -> anyhow::Result<Brought> {
    let admins = rest.admins.iter().map(|address| AdminClient::new(address)).collect::<Result<Vec<_>, _>>()?;
    let bar = progress::bar(0, "waiting for the nodes to be started");
    if bar.is_hidden() {
        eprintln!("waiting for the nodes at {}", rest.admins.join(", "));
    }
    let (began, told, brought) = (Instant::now(), None, Brought::default());
    let mut bringing = Bringing { rest, admins, bar, began, told, total: 0, done: 0, brought };
    let left = bringing.serving().await?;
    let Some(manifest) = &rest.plan.snapshot else { return Ok(brought) };
    let part = |stage: Stage| manifest.only(|section| section == Section::Payloads(stage));
    let mut parts: Vec<(Stage, Manifest)> = left.stages.iter().map(|stage| (*stage, part(*stage))).collect();
    // What came already is not read again.
    if let Some((_, first)) = parts.first_mut() {
        *first = first.clone().behind(&left.through);
    }
    bringing.total = parts.iter().map(|(_, part)| part.plain_length()).sum();
    bringing.began = Instant::now();
    let mut through = left.through;
    for (stage, part) in &parts {
        bringing.stage(*stage, part, &through).await?;
        through.clear();
    }
    // Whoever is asked may have heard of the last one a moment later.
    let until = Instant::now() + APPLIED_WITHIN;
    let mut left = bringing.serving().await?.stages;
    while !left.is_empty() && Instant::now() < until {
        tokio::time::sleep(PAUSE).await;
        left = bringing.serving().await?.stages;
    }
    if let Some(stage) = left.first() {
        let message = format!(
            "payloads of {} are still missing: another restore is under way there, or this one began beside it; run the same \
             command again",
            stage.name()
        );
        return Err(failure(Exit::Conflict, message));
    }
    bringing.bar.finish_and_clear();
    Ok(bringing.brought)
}

/// The same call may go well a little later.
fn is_transient(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Overloaded { .. } | Error::OutcomeUnknown { .. })
}

impl Bringing<'_> {
    /// Waits for a leader in the new history; gives what it still holds back.
    async fn serving(&mut self) -> anyhow::Result<Left> {
        loop {
            for admin in &self.admins {
                let Ok(status) = admin.with_deadline(STATUS_WITHIN).status().await else { continue };
                let Some(group) = status.groups.into_iter().next() else { continue };
                // Until the new history is open a node tells of the one that was restored.
                if status.incarnation != self.rest.genesis.incarnation.0 || group.leader_id == 0 {
                    continue;
                }
                let Some(restoring) = group.restoring else {
                    return Ok(Left { stages: Vec::new(), through: Vec::new() });
                };
                if restoring.snapshot_index != self.rest.plan.snapshot_index() {
                    let message = format!(
                        "the cluster waits for payloads of the snapshot at index {}, and this plan is of the one at {}; \
                         run it with the --from, --lineage and --at that it was begun with",
                        restoring.snapshot_index,
                        self.rest.plan.snapshot_index()
                    );
                    return Err(failure(Exit::Error, message));
                }
                let known = |name: &String| Stage::of_name(name);
                let stages: Option<Vec<Stage>> = restoring.stages.iter().map(known).collect();
                let stages =
                    stages.ok_or_else(|| failure(Exit::Error, "the cluster names stages of a newer release"))?;
                return Ok(Left { stages, through: restoring.through.to_vec() });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Brings the payloads of a stage that lie behind `through`.
    async fn stage(&mut self, stage: Stage, part: &Manifest, through: &[u8]) -> anyhow::Result<()> {
        let mut chunks = read_rows(self.rest.destination, part);
        let mut call: Vec<Payload> = Vec::new();
        let mut bytes = 0;
        while let Some(chunk) = chunks.try_next().await? {
            for payload in payloads_in(&chunk)? {
                if payload.place[..] <= *through {
                    continue;
                }
                if bytes > 0 && bytes + payload.payload.len() > CALL_BYTES {
                    self.send(stage, std::mem::take(&mut call), false).await?;
                    bytes = 0;
                }
                bytes += payload.payload.len();
                call.push(payload);
            }
            self.done += chunk.plain_length();
            self.shown(stage);
        }
        self.send(stage, call, true).await
    }

    async fn send(&mut self, stage: Stage, payloads: Vec<Payload>, ends: bool) -> anyhow::Result<()> {
        let through = payloads.last().map(|last| last.place.clone()).unwrap_or_default();
        let sent = payloads.iter().fold((0, 0), |sum, one| (sum.0 + 1, sum.1 + one.payload.len() as u64));
        let fill = |one: Payload| v1::PayloadFill {
            slot: one.user.slot.0.into(),
            uid: one.user.uid.0,
            collection: one.key.collection.as_str().to_owned(),
            record_id: one.key.record_id.as_str().to_owned(),
            payload: one.payload,
        };
        let request = v1::FillPayloadsRequest {
            incarnation: self.rest.genesis.incarnation.0,
            stage: stage.name().to_owned(),
            fills: payloads.into_iter().map(fill).collect(),
            through,
            ends,
        };
        let until = Instant::now() + SILENCE_MAX;
        loop {
            let last = match self.admins[0].fill_payloads(request.clone()).await {
                Ok(()) => break,
                Err(error) if !is_transient(&error) => return Err(error.into()),
                Err(error) => error,
            };
            if Instant::now() >= until {
                let message = format!(
                    "the cluster took nothing for {}: {last}; run the same command again, it goes on where this ended",
                    rounded(SILENCE_MAX)
                );
                return Err(failure(Exit::Error, message));
            }
            // Another one may answer.
            self.admins.rotate_left(1);
            tokio::time::sleep(PAUSE).await;
        }
        self.brought.payloads += sent.0;
        self.brought.bytes += sent.1;
        Ok(())
    }

    fn shown(&mut self, stage: Stage) {
        let elapsed = self.began.elapsed();
        let share = (self.done as f64 / self.total.max(1) as f64).clamp(f64::EPSILON, 1.0);
        let left = elapsed.mul_f64((1.0 - share) / share);
        self.bar.set_message(format!("payloads of {}, about {} left", stage.name(), rounded(left)));
        self.bar.set_length(self.total);
        self.bar.set_position(self.done);
        if self.rest.lines && self.told.is_none_or(|told| told.elapsed() >= LINE_PAUSE) {
            self.told = Some(Instant::now());
            let line = serde_json::json!({"progress": {
                "stage": stage.name(), "done": self.done, "total": self.total, "elapsed_ms": elapsed.as_millis() as u64,
                "eta_ms": left.as_millis() as u64,
            }});
            // Whoever closed stderr wants no more of it.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}
