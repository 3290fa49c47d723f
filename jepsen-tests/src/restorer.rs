//! Restores the archive of a running cluster into new ones, again and again while clients write, and once more at the
//! end: what comes back is written down, and others judge it. Every second restore is killed half way and run again; before
//! every other, the cluster is asked for a snapshot, so that some begin with one or with the layers over it, and some have
//! a longer piece of log behind it.

mod device;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use holdfast_client::{AdminClient, Client};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use crate::chance::Chance;
use crate::cluster::{Cluster, RestoreFailed, backup, comes_true, plan};
use crate::history::calls::{Level, Point, Read, Restored, RestoredUser};
use crate::history::{Action, Failure, Named, Process, Recorder, Stage};
use crate::restorer::device::Device;
use crate::workload::{Shared, Users, look};

/// Between two restores.
const PAUSE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
/// From the first write to an archive that can be restored, and from the last one to an archive that holds it.
const SHIPPED_WITHIN: Duration = Duration::from_secs(10);
/// What a destination's last error begins with, when the archive holds another history.
const FORK: &str = "LINEAGE_FORK";
/// For a snapshot to be at all destinations.
const BACKUP_WITHIN: Duration = Duration::from_secs(10);
/// For one read of a restored cluster, and for its nodes to be equal.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A restore is killed after at most so many hundredths of the time that a whole one took.
const KILLED_BEFORE_PERCENT: u32 = 70;
/// Of the chance of when restores are killed.
const KILLS: u64 = u64::MAX - 1;

/// What is restored, and by what.
#[derive(Debug, Clone)]
pub struct Source {
    /// The binary under test.
    pub binary: PathBuf,
    /// URL of the archive.
    pub from: String,
    /// Folder for new clusters.
    pub dir: PathBuf,
    /// What clients share.
    pub shared: Shared,
    /// What was written up to now, and so must be looked for.
    pub users: Users,
    /// Of the cluster whose archive it is.
    pub old: Client,
    /// Where its nodes listen for operators.
    pub admins: Vec<String>,
}

/// Restores in the background.
#[derive(Debug)]
pub struct Restorer {
    source: Source,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Done>,
}

/// What was restored by now.
#[derive(Debug, Default)]
struct Done {
    rounds: u32,
    /// Of the quickest command that came to its end.
    took: Option<Duration>,
}

impl Restorer {
    /// Begins.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn start(source: Source) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&source.dir).with_context(|| format!("create {}", source.dir.display()))?;
        let stop = Arc::<AtomicBool>::default();
        let task = tokio::spawn(again_and_again(source.clone(), stop.clone()));
        Ok(Self { source, stop, task })
    }

    /// Ends what is under way; then, unless the cluster is down, waits until everything is in the archive, or will not be,
    /// and restores once more. `admins` are the addresses of the cluster's nodes for operators, `newest` the index of the
    /// last acknowledged write.
    ///
    /// # Errors
    /// When the harness panicked.
    pub async fn finish(self, admins: &[String], newest: Option<u64>) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Release);
        let mut done = self.task.await.context("restores in the background")?;
        let Some(newest) = newest else { return Ok(()) };
        let mut shipped = false;
        let settled = comes_true(SHIPPED_WITHIN, async || {
            for address in admins {
                let Ok(admin) = AdminClient::new(address) else { continue };
                let destinations = admin.with_deadline(PAUSE).status().await.map(|status| status.destinations);
                for destination in destinations.unwrap_or_default() {
                    shipped |= destination.durable_index >= newest;
                    // A leader that finds another history in the archive ships nothing more.
                    if shipped || destination.last_error.starts_with(FORK) {
                        return true;
                    }
                }
            }
            false
        });
        settled.await;
        if !shipped {
            println!("index {newest}, which was acknowledged, does not come into the archive");
        }
        one(&self.source, &mut done, None, true).await;
        Ok(())
    }
}

async fn again_and_again(source: Source, stop: Arc<AtomicBool>) -> Done {
    let end = Instant::now() + SHIPPED_WITHIN;
    // An archive without a write of a client in it is nobody's yet.
    let mut first = 0;
    while !holds(&source, first).await && Instant::now() < end && !stop.load(Ordering::Acquire) {
        first = if first == 0 { source.shared.recorder.newest() } else { first };
        tokio::time::sleep(POLL).await;
    }
    let mut done = Done::default();
    while !stop.load(Ordering::Acquire) {
        // Its first write is in the archive in most cases when the restore begins, and its last one in few.
        let device = Device::new(format!("d{}", done.rounds + 1)).write(&source.old).await;
        tokio::time::sleep(PAUSE).await;
        let device = match device {
            Some(device) => device.write(&source.old).await,
            None => None,
        };
        if done.rounds.is_multiple_of(2) {
            back_up(&source).await;
        }
        one(&source, &mut done, device, false).await;
    }
    done
}

/// A snapshot that does not come about is no fault: restores begin without it.
async fn back_up(source: &Source) {
    let (binary, admins, complaints) = (source.binary.clone(), source.admins.clone(), source.dir.join("backup.log"));
    let taken = spawn_blocking(move || backup(&binary, &admins, BACKUP_WITHIN, &complaints)).await;
    if !matches!(taken, Ok(Ok(true))) {
        println!("no snapshot: see backup.log");
    }
}

/// Whether the archive reaches so far; 0 = nobody can say.
async fn holds(source: &Source, index: u64) -> bool {
    let (binary, from, complaints) = (source.binary.clone(), source.from.clone(), source.dir.join("plan.log"));
    let planned = spawn_blocking(move || plan(&binary, &from, &complaints)).await;
    index > 0 && matches!(planned, Ok(Ok(Some(up_to))) if up_to >= index)
}

/// One restore from its beginning to its end, written down.
async fn one(source: &Source, done: &mut Done, device: Option<Device>, last: bool) {
    done.rounds += 1;
    let round = done.rounds;
    let recorder: &Recorder = &source.shared.recorder;
    let mut chance = Chance::new(source.shared.seed, KILLS - u64::from(round));
    let killed_after = done.took.filter(|_| round.is_multiple_of(2)).map(|took| {
        let percent = chance.below(KILLED_BEFORE_PERCENT as usize) as u32;
        took * percent / 100
    });
    let none = Restored {
        round,
        last,
        at: None,
        began: None,
        loss_window_ms: None,
        snapshot: 0,
        killed: false,
        users: Vec::new(),
        device: None,
        digests: 0,
        took_ms: 0,
        exit: None,
    };
    recorder.note(Named::Restorer, Stage::Invoke, Action::Restored(none.clone()));
    let began = Instant::now();
    let result = restore(source, &none, device, killed_after).await;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok((restored, took)) => {
            done.took = Some(done.took.map_or(took, |before| before.min(took)));
            let index = restored.at.map_or(0, |at| at.index);
            let again = if restored.killed { ", killed half way and run again" } else { "" };
            println!("restore {round}: everything up to index {index}, in {took_ms} ms{again}");
            recorder.note(Named::Restorer, Stage::Ok, Action::Restored(Restored { took_ms, ..restored }));
        }
        Err(error) => {
            println!("restore {round} failed: {error:#}");
            let failure = Failure { reason: "RESTORE_FAILED".into(), message: format!("{error:#}") };
            let process = Process::Named(Named::Restorer);
            let exit = error.downcast_ref::<RestoreFailed>().and_then(|failed| failed.status.code());
            recorder.end(process, Stage::Fail, Action::Restored(Restored { took_ms, exit, ..none }), failure);
        }
    }
}

/// Also how long the command that came to its end took.
async fn restore(
    source: &Source,
    none: &Restored,
    device: Option<Device>,
    killed_after: Option<Duration>,
) -> anyhow::Result<(Restored, Duration)> {
    let dir = source.dir.join(format!("r{}", none.round));
    let (binary, from, to) = (source.binary.clone(), source.from.clone(), dir.clone());
    let restored = spawn_blocking(move || Cluster::restore(&binary, &to, &from, killed_after)).await?;
    let (mut cluster, said) = restored?;
    // Users that came later cannot be in it, and are looked for all the same.
    let written = source.users.all();
    let client = cluster.client().with_deadline(ANSWER_WITHIN);
    let (mut users, mut group, mut began) = (Vec::new(), 0, None);
    for (user, keys) in written {
        let read = Read { user, keys, level: Level::Linearizable, got: None };
        let got = look(&client, &read).await.with_context(|| format!("read {} in the restored cluster", read.user))?;
        (group, began) = (got.at.group, Some(got.at.incarnation));
        users.push(RestoredUser { user: read.user, keys: read.keys, records: got.records });
    }
    let device = match device {
        Some(device) => Some(device.meet(&client).await.context("show a device's token to the restored cluster")?),
        None => None,
    };
    let end = Instant::now() + ANSWER_WITHIN;
    let mut digests = equal_digests(&cluster).await;
    while digests < cluster.nodes.len() && Instant::now() < end {
        tokio::time::sleep(POLL).await;
        digests = equal_digests(&cluster).await;
    }
    spawn_blocking(move || {
        cluster.stop();
        std::fs::remove_dir_all(&dir)
    })
    .await?
    .context("remove a restored cluster")?;
    let at = Some(Point { incarnation: source.shared.incarnation, group, index: said.index });
    let (loss_window_ms, snapshot, killed) = (said.loss_window_ms, said.snapshot, said.killed);
    Ok((Restored { at, began, loss_window_ms, snapshot, killed, users, device, digests, ..none.clone() }, said.took))
}

/// How many nodes have the digest of the first one at its index, that one included; 0 = it does not answer.
async fn equal_digests(cluster: &Cluster) -> usize {
    let mut seen = Vec::new();
    for place in 0..cluster.nodes.len() {
        let group = cluster.status(place).await.and_then(|status| status.groups.into_iter().next());
        seen.extend(group.map(|group| (group.digest_index, group.digest)));
    }
    seen.iter().filter(|one| Some(*one) == seen.first()).count()
}
