//! Soundness of this node's state: it is read and compared with its own digests and with those of the other members,
//! and what is found to be damaged is fenced, set aside and reinstalled from a peer, while the node goes on voting.
//!
//! Invariants:
//! - A fenced node neither leads nor serves nor sends its state on; its log and its vote are untouched, so its
//!   acknowledgements count all the while.
//! - While it is fenced, entries that openraft hands over are not applied: the state stays where it is, and what was
//!   handed over is applied from the log after the reinstallation, before the fence falls.
//! - Nobody is fenced unless another voter that knows nothing bad of itself answers: a defect that all share must not
//!   stop everyone.
//! - A state is installed only after it was read in whole and agreed with its own digests.

pub(crate) mod compare;
pub(crate) mod examine;
pub(crate) mod repair;
pub(crate) mod verdict;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_wire::internal::v1 as pb;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::handle::Replica;
use crate::integrity::examine::{Exams, Findings, Stage};
use crate::snapshot::SnapshotDir;

const TICK: Duration = Duration::from_millis(200);
/// After a start, the log's end is applied first.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// For a peer to say how it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// For one successor to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(500);
/// A snapshot that nobody fetched for so long is given up.
const OFFER_IDLE_MAX: Duration = Duration::from_secs(60);

/// How the state is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegrityOptions {
    /// From the beginning of one comparison to that of the next.
    pub interval: Duration,
    /// Bytes of the state read in a second, at most.
    pub scrub_bytes_per_second: u64,
}

/// What is known of the soundness of this node's state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IntegrityStatus {
    /// Why the state is known to be damaged.
    pub damage: Option<String>,
    /// Why it is not known whether it is.
    pub doubt: Option<String>,
    /// This node neither leads nor serves.
    pub fenced: bool,
    /// When all rows were last read, and at which index.
    pub examined: Option<(u64, Duration)>,
    /// Times that damage was found since the start.
    pub failures_total: u64,
    /// Times that the state was reinstalled since the start.
    pub reinstalls_total: u64,
}

#[derive(Default)]
struct Known {
    damage: Option<String>,
    doubt: Option<String>,
    examined: Option<(u64, Instant)>,
    /// What was seen of the state below this index was seen of one that is gone.
    replaced_at: u64,
    /// The leader sent a whole state while this node was fenced.
    replaced_by_leader: bool,
    failures_total: u64,
    reinstalls_total: u64,
}

impl Known {
    fn damaged(&mut self, reason: String) {
        if self.damage.is_none() {
            self.failures_total += 1;
            tracing::error!(event = "integrity.diverged", reason, "this node's state is damaged");
            self.damage = Some(reason);
        }
    }

    fn read(&mut self, index: u64, found: &Findings) {
        if index < self.replaced_at {
            return;
        }
        self.examined = Some((index, Instant::now()));
        if !found.is_sound() {
            let (count, faults) = (found.fault_count, found.faults.join("; "));
            self.damaged(format!("at index {index} its rows do not agree with its digests ({count}): {faults}"));
        }
    }
}

type Shared = Arc<Mutex<Known>>;

fn lock(known: &Shared) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the state machine, the peers' calls and the task below share.
pub struct Integrity {
    /// Held by whoever writes the state or replaces it.
    pub gate: tokio::sync::Mutex<()>,
    /// Examinations of the state.
    pub exams: Arc<Exams>,
    /// The newest snapshot for openraft to send.
    pub current: Arc<Mutex<Option<SnapshotDir>>>,
    /// What is offered to a peer, and when it last took something of it.
    pub offered: Mutex<Option<(SnapshotDir, Instant)>>,
    known: Shared,
    fenced: AtomicBool,
    /// Last entry that openraft handed over.
    handed_over: AtomicU64,
    /// Other voters exist that could go on without this node.
    others: AtomicBool,
}

impl Integrity {
    /// Of a state at `applied`. `others`: this node is not the only voter.
    pub fn new(options: IntegrityOptions, applied: u64, others: bool) -> Arc<Self> {
        let known = Shared::default();
        let seen = known.clone();
        let on_read = Box::new(move |index: u64, found: &Findings| lock(&seen).read(index, found));
        Arc::new(Self {
            gate: tokio::sync::Mutex::default(),
            exams: Exams::new(options.scrub_bytes_per_second, on_read),
            current: Arc::default(),
            offered: Mutex::default(),
            known,
            fenced: AtomicBool::new(false),
            handed_over: AtomicU64::new(applied),
            others: AtomicBool::new(others),
        })
    }

    /// This node neither leads nor serves.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// The state is known to be damaged.
    pub fn is_damaged(&self) -> bool {
        lock(&self.known).damage.is_some()
    }

    /// A directory that was fenced when its process ended stays so.
    pub fn found_fenced(&self, reason: String) {
        lock(&self.known).damaged(reason);
        self.fenced.store(self.others.load(Ordering::Acquire), Ordering::Release);
    }

    /// Applying met damage, with the gate held. False: nobody else could go on, so this node must end.
    pub fn met_damage(&self, reason: String) -> bool {
        let others = self.others.load(Ordering::Acquire);
        if others {
            lock(&self.known).damaged(reason);
            self.fenced.store(true, Ordering::Release);
        }
        others
    }

    /// Entries up to here were handed over.
    pub fn handed_over(&self, index: u64) {
        self.handed_over.fetch_max(index, Ordering::AcqRel);
    }

    /// The leader replaced the whole state, with the gate held.
    pub fn replaced_by_leader(&self, index: u64) {
        self.handed_over(index);
        self.exams.clear();
        let mut known = lock(&self.known);
        known.replaced_at = index;
        known.replaced_by_leader = self.is_fenced();
    }

    /// What a comparison at `index` found of this node.
    pub fn judged(&self, index: u64, diverged: Option<String>, doubt: Option<String>) {
        let mut known = lock(&self.known);
        if index < known.replaced_at {
            return;
        }
        if let Some(reason) = &doubt
            && known.doubt.is_none()
        {
            known.failures_total += 1;
            tracing::error!(event = "integrity.doubt", reason, "replicas differ, and none is proved right");
        }
        known.doubt = doubt;
        if let Some(reason) = diverged {
            known.damaged(reason);
        }
    }

    /// Gives up a snapshot that nobody fetches any more.
    fn forget_offer(&self) {
        let mut offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        if offered.as_ref().is_some_and(|(_, used)| used.elapsed() > OFFER_IDLE_MAX) {
            *offered = None;
        }
    }

    /// What is known.
    pub fn status(&self) -> IntegrityStatus {
        let known = lock(&self.known);
        IntegrityStatus {
            damage: known.damage.clone(),
            doubt: known.doubt.clone(),
            fenced: self.is_fenced(),
            examined: known.examined.map(|(index, at)| (index, at.elapsed())),
            failures_total: known.failures_total,
            reinstalls_total: known.reinstalls_total,
        }
    }
}

/// Starts the task. It ends with the process.
pub(crate) fn start(replica: &Replica) {
    let replica = replica.clone();
    tokio::spawn(async move {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watcher = Watcher { started: Instant::now(), compared: None, reading: None, repairing: None, tries: 0 };
        loop {
            tick.tick().await;
            if replica.is_stopping() {
                return;
            }
            watcher.step(&replica).await;
        }
    });
}

fn is_running(task: &Option<JoinHandle<()>>) -> bool {
    task.as_ref().is_some_and(|task| !task.is_finished())
}

struct Watcher {
    started: Instant,
    /// When the last comparison began here.
    compared: Option<Instant>,
    reading: Option<JoinHandle<()>>,
    repairing: Option<JoinHandle<()>>,
    /// Attempts to hand over the leadership.
    tries: usize,
}

impl Watcher {
    async fn step(&mut self, replica: &Replica) {
        let integrity = replica.integrity();
        let status = replica.status();
        let own = replica.node_id();
        let others = status.voters.iter().any(|voter| *voter != own);
        integrity.others.store(others, Ordering::Release);
        integrity.forget_offer();
        if self.started.elapsed() >= FIRST_AFTER && replica.is_opened(&replica.sys()) {
            self.examine(replica, status.is_leader);
        }
        if !integrity.is_damaged() && !integrity.is_fenced() {
            return;
        }
        if !integrity.is_fenced() {
            // A repair that lifts the fence without a cure ends a moment later.
            if is_running(&self.repairing) || sound_voters(replica).await.is_empty() || !integrity.is_damaged() {
                return;
            }
            fence(replica).await;
        }
        // Once more: applying may have fenced it without anyone to tell.
        replica.update_elect();
        if replica.status().is_leader {
            self.hand_over(replica).await;
        }
        if !is_running(&self.repairing) {
            let replica = replica.clone();
            self.repairing = Some(tokio::spawn(async move { repair::run(&replica).await }));
        }
    }

    /// The leader compares all members; a node that nobody asks reads its own state.
    fn examine(&mut self, replica: &Replica, leads: bool) {
        let options = replica.options().integrity;
        let integrity = replica.integrity();
        let is_due = self.compared.is_none_or(|at| at.elapsed() >= options.interval);
        if leads {
            if !is_due {
                return;
            }
            self.compared = Some(Instant::now());
            let rows = !is_running(&self.reading);
            let replica = replica.clone();
            let round = tokio::spawn(async move {
                let comparison = compare::compare(&replica, rows).await;
                compare::tell(&replica, &comparison, rows).await;
            });
            if rows {
                self.reading = Some(round);
            }
            return;
        }
        let examined = lock(&integrity.known).examined.map(|(_, at)| at);
        let asked = examined.max(self.compared);
        let patience = if examined.is_some() { options.interval * 2 } else { options.interval };
        if integrity.is_fenced() || asked.is_some_and(|at| at.elapsed() < patience) || is_running(&self.reading) {
            return;
        }
        self.compared = Some(Instant::now());
        let (replica, exams) = (replica.clone(), integrity.exams.clone());
        self.reading = Some(tokio::spawn(async move {
            let state = replica.state();
            let index = state.applied().index();
            while matches!(exams.ask(index, true, state), Stage::Reading(_)) {
                if replica.is_stopping() {
                    return;
                }
                tokio::time::sleep(TICK).await;
            }
        }));
    }

    /// Hands the leadership to one voter after the other until one takes it.
    async fn hand_over(&mut self, replica: &Replica) {
        let status = replica.status();
        let mut voters: Vec<u64> = status.voters.iter().copied().filter(|id| *id != replica.node_id()).collect();
        voters.sort_by_key(|id| std::cmp::Reverse(status.matched.get(id).copied().unwrap_or(0)));
        let Some(to) = voters.get(self.tries % voters.len().max(1)) else { return };
        self.tries += 1;
        if let Err(error) = replica.transfer_leader(*to, HAND_OVER_TIMEOUT).await {
            tracing::warn!(event = "leader.kept", to, %error, "a node whose state is damaged must not lead");
        }
    }
}

/// Neither leads nor serves from here on. What is damaged is kept for a look.
async fn fence(replica: &Replica) {
    let integrity = replica.integrity();
    let reason = integrity.status().damage.unwrap_or_default();
    {
        // Between two batches: what is under way is written, what follows is not.
        let _gate = integrity.gate.lock().await;
        integrity.fenced.store(true, Ordering::Release);
    }
    replica.update_elect();
    (replica.hooks().on_installed)();
    tracing::warn!(
        event = "integrity.fenced",
        reason,
        "this node neither leads nor serves; it votes and stores the log"
    );
}

/// How a peer says it is; `None` = it did not answer.
async fn ask_how(replica: &Replica) -> Vec<(u64, Option<bool>)> {
    let calls = replica.peers().all().into_iter().map(|(id, mut client)| async move {
        let request = pb::ExamineRequest { group_id: replica.group_id().0, index: 0, rows: false };
        let answer = timeout(ASK_TIMEOUT, client.examine(request)).await;
        (id, answer.ok().and_then(Result::ok).map(|answer| answer.into_inner().damaged))
    });
    futures::future::join_all(calls).await
}

/// Other voters that answer and know nothing bad of themselves.
async fn sound_voters(replica: &Replica) -> BTreeSet<u64> {
    let voters = replica.status().voters;
    let answers = ask_how(replica).await;
    answers
        .into_iter()
        .filter(|(id, damaged)| *damaged == Some(false) && voters.contains(id))
        .map(|(id, _)| id)
        .collect()
}

/// A majority answers, this node included, and nobody of it is better.
async fn nobody_is_sound(replica: &Replica) -> bool {
    let own = replica.node_id();
    let answers = ask_how(replica).await;
    let damaged = |id: u64| id == own || answers.iter().any(|(other, damaged)| *other == id && *damaged == Some(true));
    let sound = answers.iter().any(|(_, damaged)| *damaged == Some(false));
    let voters = replica.status().voters;
    !sound && voters.iter().filter(|id| damaged(**id)).count() * 2 > voters.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integrity(others: bool) -> Arc<Integrity> {
        let options = IntegrityOptions { interval: Duration::from_secs(60), scrub_bytes_per_second: 1 << 20 };
        Integrity::new(options, 0, others)
    }

    fn damaged_rows() -> Findings {
        Findings { fault_count: 2, faults: vec!["a payload".into()], ..Findings::default() }
    }

    #[test]
    fn what_was_seen_of_a_state_that_is_gone_says_nothing() {
        let one = integrity(true);
        lock(&one.known).replaced_at = 10;
        one.judged(9, Some("it differs".into()), Some("who knows".into()));
        lock(&one.known).read(9, &damaged_rows());
        assert_eq!((one.status().damage, one.status().doubt, one.status().examined), (None, None, None));
        lock(&one.known).read(10, &damaged_rows());
        let known = one.status();
        assert!(known.damage.is_some_and(|why| why.contains("a payload")) && known.failures_total == 1, "found");
        one.judged(11, Some("it differs".into()), None);
        assert_eq!(one.status().failures_total, 1, "one damage, however often it is seen");
    }

    #[test]
    fn a_doubt_ends_with_the_comparison_that_has_none() {
        let one = integrity(true);
        one.judged(5, None, Some("one against one".into()));
        one.judged(6, None, Some("one against one".into()));
        assert_eq!((one.status().doubt.as_deref(), one.status().failures_total), (Some("one against one"), 1));
        assert!(!one.is_damaged() && !one.is_fenced(), "a doubt alone stops nobody");
        one.judged(7, None, None);
        assert_eq!(one.status().doubt, None);
    }

    #[test]
    fn a_node_that_nobody_could_replace_is_not_fenced() {
        assert!(!integrity(false).met_damage("a row does not decode".into()));
        let one = integrity(true);
        assert!(one.met_damage("a row does not decode".into()) && one.is_fenced() && one.is_damaged());
        let alone = integrity(false);
        alone.found_fenced("as before".into());
        assert!(alone.is_damaged() && !alone.is_fenced());
    }
}
