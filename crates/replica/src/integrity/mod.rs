//! Soundness of this node's state: it is read and compared with its own digests and with those of the other members,
//! and what is found to be damaged is fenced, set aside and reinstalled from a peer, while the node goes on voting.
//!
//! Invariants:
//! - A fenced node neither leads nor serves nor sends its state on; its log and its vote are untouched, so its
//!   acknowledgements count all the while.
//! - While it is fenced, entries that openraft hands over are not applied: the state stays where it is, and what was
//!   handed over is applied from the log after the reinstallation, before the fence falls.
//! - Nobody is fenced by a comparison or a reading unless another voter that knows nothing bad of itself answers: a defect
//!   that all share must not stop everyone. Whose rows cannot be read in applying is fenced at once, for it cannot go on;
//!   what happens when nobody else can either is in `repair`.
//! - A fenced node leads the log while nobody else does, as long as its state serves nobody: whoever lacks entries gets
//!   them, and then the leadership.
//! - A state is installed only after it was read in whole and agreed with its own digests.
//! - What was found is held against the installation that it was found of, never against an index: two states may be at
//!   one.

pub(crate) mod compare;
pub(crate) mod examine;
mod kept;
pub(crate) mod offers;
pub(crate) mod pace;
pub(crate) mod repair;
pub(crate) mod verdict;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_wire::internal::v1 as pb;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::handle::Replica;
use crate::integrity::examine::{Exams, Findings, Question, Stage};
use crate::integrity::kept::Kept;
use crate::integrity::offers::Offers;
use crate::integrity::pace::Pacer;
use crate::rooms::DiskLevel;
use crate::snapshot::SnapshotDir;

const TICK: Duration = Duration::from_millis(200);
/// After a start, the log's end is applied first.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// For a peer to say how it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// For one successor to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(500);
/// Without a leader for so long, and for so many elections that nobody won, a fenced node stands for election too.
const STAND_IN_AFTER: Duration = Duration::from_secs(2);
const STAND_IN_ELECTIONS: u32 = 5;
/// A reading without a sign of life for so long is taken for lost.
const STALL_MAX: Duration = Duration::from_secs(60);
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
    /// Why the last reading of all rows came to nothing; it is tried again.
    pub unread: Option<String>,
    /// Times that a reading came to nothing since the start.
    pub unread_total: u64,
}

/// Who says that a state is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Witness {
    /// Its own reading: when it reads well in whole, that was a false alarm.
    Itself,
    /// The other members, or an earlier run: no reading of one's own speaks against them.
    Others,
}

#[derive(Default)]
struct Known {
    /// Which state all of this is of.
    installation: u64,
    damage: Option<(String, Witness)>,
    doubt: Option<String>,
    examined: Option<(u64, Instant)>,
    /// The leader sent a whole state while this node's was damaged.
    replaced_by_leader: bool,
    failures_total: u64,
    reinstalls_total: u64,
    unread: Option<String>,
    unread_total: u64,
}

impl Known {
    fn damaged(&mut self, reason: String, witness: Witness) {
        match &mut self.damage {
            None => {
                self.failures_total += 1;
                tracing::error!(event = "integrity.diverged", reason, "this node's state is damaged");
                self.damage = Some((reason, witness));
            }
            Some((_, known)) if witness == Witness::Others => *known = witness,
            Some(_) => {}
        }
    }

    fn read(&mut self, index: u64, ended: Result<&Findings, &str>) {
        match ended {
            Ok(found) if found.installation != self.installation => {}
            Ok(found) => {
                self.examined = Some((index, Instant::now()));
                self.unread = None;
                if !found.is_sound() {
                    let (count, faults) = (found.fault_count, found.faults.join("; "));
                    let why = format!("at index {index} its rows do not agree with its digests ({count}): {faults}");
                    self.damaged(why, Witness::Itself);
                }
            }
            Err(reason) => {
                self.unread_total += 1;
                tracing::error!(event = "integrity.not_read", index, reason, "this node's rows could not be read");
                self.unread = Some(reason.to_owned());
            }
        }
    }

    /// Another state took the place of the one that all of this was found of.
    fn replaced(&mut self, installation: u64) {
        self.installation = installation;
        self.doubt = None;
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
    /// What is offered to peers.
    pub offers: Offers,
    known: Shared,
    fenced: AtomicBool,
    /// Last entry that openraft handed over.
    handed_over: AtomicU64,
    /// Other voters exist that could go on without this node.
    others: AtomicBool,
    /// Nobody leads: this node may, fenced as it is.
    stands_in: AtomicBool,
}

impl Integrity {
    /// Of a state at `applied`. `others`: this node is not the only voter.
    pub fn new(options: IntegrityOptions, installation: u64, applied: u64, others: bool) -> Arc<Self> {
        let known = Arc::new(Mutex::new(Known { installation, ..Known::default() }));
        let seen = known.clone();
        let on_end = Box::new(move |index: u64, ended: Result<&Findings, &str>| lock(&seen).read(index, ended));
        Arc::new(Self {
            gate: tokio::sync::Mutex::default(),
            exams: Exams::new(Pacer::new(options.scrub_bytes_per_second), STALL_MAX, on_end),
            current: Arc::default(),
            offers: Offers::default(),
            known,
            fenced: AtomicBool::new(false),
            handed_over: AtomicU64::new(applied),
            others: AtomicBool::new(others),
            stands_in: AtomicBool::new(false),
        })
    }

    /// This node neither leads nor serves.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// The state is not given to those who lag: it is damaged, or may be. A damaged state that a third node took over would
    /// be a majority, and the sound one be called damaged. Damage alone is no reason: where a defect that all share was
    /// found, nobody is fenced, and the log must not grow for ever.
    pub fn withholds_state(&self) -> bool {
        self.is_fenced() || lock(&self.known).doubt.is_some()
    }

    /// The state is known to be damaged.
    pub fn is_damaged(&self) -> bool {
        lock(&self.known).damage.is_some()
    }

    /// A directory that was fenced when its process ended stays so.
    pub fn found_fenced(&self, reason: String) {
        lock(&self.known).damaged(reason, Witness::Others);
        self.fenced.store(self.others.load(Ordering::Acquire), Ordering::Release);
    }

    /// Applying met damage, with the gate held. False: nobody else could go on, so this node must end.
    pub fn met_damage(&self, reason: String) -> bool {
        let others = self.others.load(Ordering::Acquire);
        if others {
            lock(&self.known).damaged(reason, Witness::Itself);
            self.fenced.store(true, Ordering::Release);
            self.exams.clear();
            self.offers.clear();
        }
        others
    }

    /// Entries up to here were handed over.
    pub fn handed_over(&self, index: u64) {
        self.handed_over.fetch_max(index, Ordering::AcqRel);
    }

    /// The leader replaced the whole state, with the gate held.
    pub fn replaced_by_leader(&self, index: u64, installation: u64) {
        self.handed_over(index);
        self.exams.clear();
        let mut known = lock(&self.known);
        known.replaced(installation);
        known.replaced_by_leader = self.is_fenced() || known.damage.is_some();
    }

    /// This node may stand for election, as far as its state goes.
    pub fn may_lead(&self) -> bool {
        !self.is_fenced() || self.stands_in.load(Ordering::Acquire)
    }

    /// A majority found other rows in their states, at an index that this installation of this node's state was at.
    pub fn outvoted(&self, installation: u64, reason: String) {
        let mut known = lock(&self.known);
        if installation == known.installation {
            known.damaged(reason, Witness::Others);
        }
    }

    /// What a comparison found of this installation of this node's state.
    pub fn judged(&self, installation: u64, diverged: Option<String>, doubt: Option<String>) {
        let mut known = lock(&self.known);
        if installation != known.installation {
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
            known.damaged(reason, Witness::Others);
        }
    }

    /// What is known.
    pub fn status(&self) -> IntegrityStatus {
        let known = lock(&self.known);
        IntegrityStatus {
            damage: known.damage.as_ref().map(|(reason, _)| reason.clone()),
            doubt: known.doubt.clone(),
            fenced: self.is_fenced(),
            examined: known.examined.map(|(index, at)| (index, at.elapsed())),
            failures_total: known.failures_total,
            reinstalls_total: known.reinstalls_total,
            unread: known.unread.clone(),
            unread_total: known.unread_total,
        }
    }
}

/// Starts the task. It ends with the process.
pub(crate) fn start(replica: &Replica) {
    let replica = replica.clone();
    tokio::spawn(async move {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watcher = Watcher {
            started: Instant::now(),
            compared: None,
            reading: None,
            repairing: None,
            kept: Kept::default(),
            tries: 0,
            was_low: false,
        };
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
    kept: Kept,
    /// Attempts to hand over the leadership.
    tries: usize,
    /// The disk was nearly full when it was last looked at.
    was_low: bool,
}

impl Watcher {
    async fn step(&mut self, replica: &Replica) {
        let integrity = replica.integrity();
        let status = replica.status();
        let own = replica.node_id();
        let others = status.voters.iter().any(|voter| *voter != own);
        integrity.others.store(others, Ordering::Release);
        integrity.offers.forget_idle(OFFER_IDLE_MAX);
        let is_low = replica.disk().level != DiskLevel::Ample;
        if is_low && !self.was_low {
            repair::forget_kept(replica).await;
        }
        self.was_low = is_low;
        if self.started.elapsed() >= FIRST_AFTER && replica.is_opened(&replica.sys()) {
            self.examine(replica, status.is_leader);
            self.kept.step(replica);
        }
        if !integrity.is_damaged() && !integrity.is_fenced() {
            return;
        }
        if !integrity.is_fenced() {
            integrity.stands_in.store(false, Ordering::Release);
            // A repair that lifts the fence without a cure ends a moment later.
            if is_running(&self.repairing) || !a_voter_is_sound(replica).await || !integrity.is_damaged() {
                return;
            }
            fence(replica).await;
        }
        let silent = status.leader_contact_age.map_or(self.started.elapsed(), |age| age.min(self.started.elapsed()));
        let patience =
            STAND_IN_AFTER.max(Duration::from_millis(replica.options().election_max_ms) * STAND_IN_ELECTIONS);
        integrity.stands_in.store(silent >= patience, Ordering::Release);
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
            let question = Question { index: state.applied().index(), rows: true, round: compare::new_round() };
            // Asked again, what was given up would begin anew.
            while !replica.is_stopping() && !replica.is_fenced() {
                if !matches!(exams.ask(question, state), Stage::Reading(_)) {
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
    // Nobody wants to know any more, and who repairs reads at the same pace.
    integrity.exams.clear();
    integrity.offers.clear();
    replica.update_elect();
    (replica.hooks().on_installed)();
    tracing::warn!(
        event = "integrity.fenced",
        reason,
        "this node neither leads nor serves; it votes and stores the log"
    );
}

/// Asks all members at once how they are; `None` = it did not answer.
fn ask_how(replica: &Replica) -> FuturesUnordered<impl Future<Output = (u64, Option<bool>)>> {
    let calls = replica.peers().all().into_iter().map(|(id, mut client)| {
        let request = pb::ExamineRequest { group_id: replica.group_id().0, ..pb::ExamineRequest::default() };
        async move {
            let answer = timeout(ASK_TIMEOUT, client.examine(request)).await;
            (id, answer.ok().and_then(Result::ok).map(|answer| answer.into_inner().damaged))
        }
    });
    calls.collect()
}

/// Another voter answers and knows nothing bad of itself. The first one decides: who is silent holds up nobody.
async fn a_voter_is_sound(replica: &Replica) -> bool {
    let voters = replica.status().voters;
    let mut answers = ask_how(replica);
    while let Some((id, damaged)) = answers.next().await {
        if damaged == Some(false) && voters.contains(&id) {
            return true;
        }
    }
    false
}

/// Whether a sound state is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hope {
    /// A member that knows nothing bad of itself answers, or so few answer that nobody can tell.
    Good,
    /// A majority answers and is damaged; who is silent may be sound.
    Faint,
    /// All voters answer, and all are damaged.
    Gone,
}

/// `own` is damaged; `answers` say who else is.
fn hope(own: u64, voters: &[u64], answers: &BTreeMap<u64, Option<bool>>) -> Hope {
    let damaged = |id: &u64| *id == own || answers.get(id) == Some(&Some(true));
    let damaged = voters.iter().filter(|id| damaged(id)).count();
    if answers.values().any(|damaged| *damaged == Some(false)) || damaged * 2 <= voters.len() {
        Hope::Good
    } else if damaged < voters.len() {
        Hope::Faint
    } else {
        Hope::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integrity(others: bool) -> Arc<Integrity> {
        let options = IntegrityOptions { interval: Duration::from_secs(60), scrub_bytes_per_second: 1 << 20 };
        Integrity::new(options, 7, 0, others)
    }

    fn damaged_rows() -> Findings {
        Findings { installation: 7, fault_count: 2, faults: vec!["a payload".into()], ..Findings::default() }
    }

    /// Both states are at index 9.
    #[test]
    fn what_was_seen_of_a_state_that_is_gone_says_nothing() {
        let one = integrity(true);
        one.judged(7, None, Some("who knows".into()));
        one.replaced_by_leader(9, 8);
        assert_eq!(one.status().doubt, None, "it was of the other one");
        one.judged(7, Some("it differs".into()), Some("who knows".into()));
        one.judged(0, Some("it differs".into()), None);
        lock(&one.known).read(9, Ok(&damaged_rows()));
        assert_eq!((one.status().damage, one.status().doubt, one.status().examined), (None, None, None));
        lock(&one.known).read(9, Ok(&Findings { installation: 8, ..damaged_rows() }));
        let known = one.status();
        assert!(known.damage.is_some_and(|why| why.contains("a payload")) && known.failures_total == 2, "found");
        one.judged(8, Some("it differs".into()), None);
        assert!(one.is_damaged() && !one.is_fenced() && !one.withholds_state(), "the log must not grow for ever");
        assert_eq!(one.status().failures_total, 2, "one damage, however often it is seen");
    }

    #[test]
    fn a_reading_that_came_to_nothing_is_said_until_one_is_whole() {
        let one = integrity(true);
        lock(&one.known).read(9, Err("the thread panicked"));
        let known = one.status();
        assert_eq!((known.unread.as_deref(), known.unread_total), (Some("the thread panicked"), 1));
        assert!(known.damage.is_none() && known.examined.is_none(), "it says nothing of the rows");
        lock(&one.known).read(9, Ok(&Findings { installation: 7, ..Findings::default() }));
        assert_eq!((one.status().unread, one.status().unread_total), (None, 1));
    }

    #[test]
    fn a_fence_is_lifted_only_when_nobody_may_be_sound() {
        let voters = [1, 2, 3];
        let with = |answers: &[(u64, Option<bool>)]| hope(1, &voters, &answers.iter().copied().collect());
        assert_eq!(with(&[(2, Some(true)), (3, Some(true))]), Hope::Gone);
        assert_eq!(with(&[(2, Some(true)), (3, None)]), Hope::Faint, "it may come back sound");
        assert_eq!(with(&[(2, Some(true)), (3, Some(false))]), Hope::Good);
        assert_eq!(with(&[(2, None), (3, None)]), Hope::Good, "nobody can tell");
        assert_eq!(with(&[(2, Some(true)), (3, Some(true)), (9, Some(false))]), Hope::Good, "a learner has one");
    }

    #[test]
    fn a_doubt_ends_with_the_comparison_that_has_none() {
        let one = integrity(true);
        one.judged(7, None, Some("one against one".into()));
        one.judged(7, None, Some("one against one".into()));
        assert_eq!((one.status().doubt.as_deref(), one.status().failures_total), (Some("one against one"), 1));
        assert!(!one.is_damaged() && !one.is_fenced(), "a doubt alone stops nobody");
        assert!(one.withholds_state(), "but nobody takes a state over that may be wrong");
        one.judged(7, None, None);
        assert!(!one.withholds_state());
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
