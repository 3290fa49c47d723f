//! Ships the committed log and snapshots offsite, while this node leads.
//!
//! Invariants: only applied (hence committed and locally fsynced) entries are shipped; a destination's tail is checked
//! against this node's own history before anything is added, and again wherever another shipper's was taken over; a
//! fork becomes a replicated fact, which stops shipping to all destinations, purging and writes until a new history begins;
//! how far a destination is becomes a replicated fact only after it was
//! read back from there. A destination that held this history and does not any more is left alone: it may be a disk
//! that is not mounted. Once a history is encrypted nothing of it is shipped in any other way.

mod attest;
mod backup;
mod course;
mod join;
mod keys;
mod proofs;
mod retry;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_archive::{
    ArchiveError, Destination, DestinationConfig, LineageFacts, LineageId, OpenLineage, ReadLimit, SegmentShipper,
};
use holdfast_model::command::{ArchiveKeys, Command, LineageFork, OffsiteFact, Proposal};
use holdfast_model::id::{Millis, NodeId};
use holdfast_model::state::History;
use holdfast_replica::Replica;
use holdfast_store::planted::{self, Bug};
use holdfast_store::{Applied, StoredEntry};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

pub use self::attest::Attestor;
pub use self::backup::Barriers;
use self::course::{Course, OwnLog};
pub use self::keys::Encryption;
pub use self::proofs::{Proofs, Verifiers};
use self::retry::Failures;
use crate::config::Offsite;

const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const IDLE_PAUSE: Duration = Duration::from_millis(50);
/// From one look at what was shipped last to the next.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// Entries looked at in one step for the oldest that is not offsite.
const LAG_ENTRIES: u64 = 16;
const LAG_BYTES: usize = 1 << 20;

/// What a leader saw of this history at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seen {
    /// It did not look yet, or could not.
    #[default]
    Unseen,
    /// The log up to this index.
    UpTo(u64),
    /// It was there, and is not any more.
    Gone,
}

/// How far a destination holds the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// As far as is known.
    pub durable: u64,
    /// As far as it was read back by who says so.
    pub verified: u64,
}

/// What is known of a destination on this node.
#[derive(Debug, Clone, Default)]
pub struct DestinationState {
    /// What this node saw there since it leads.
    pub seen: Seen,
    /// Last error; empty = none.
    pub error: String,
}

/// When something is put at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Longest wait of an entry for its segment.
    pub interval: Duration,
    /// Size at which a segment is shipped at once.
    pub segment_bytes: usize,
    /// How fast a checkpoint is read for a snapshot.
    pub snapshot: ReadLimit,
    /// Silence after which a heartbeat says that there was nothing to ship.
    pub heartbeat: Duration,
    /// From one joining of small segments to the next; `None` = never.
    pub join: Option<Duration>,
}

/// Ships this node's group.
pub struct Shipper {
    replica: Replica,
    destinations: Vec<Offsite>,
    pace: Pace,
    encryption: Encryption,
    verifiers: Verifiers,
    states: Mutex<BTreeMap<String, DestinationState>>,
    /// What is known of each copy, while this node leads.
    proofs: Mutex<BTreeMap<String, Proofs>>,
    /// What was said of vaults, beside each destination.
    vaults: Mutex<BTreeMap<(String, String), Proofs>>,
    barriers: Arc<Barriers>,
    attestor: Attestor,
    /// Set once a destination said that this history was ended.
    fenced: watch::Sender<Option<Arc<ArchiveError>>>,
}

fn lineage_facts(history: &History) -> LineageFacts {
    LineageFacts {
        id: LineageId { cluster_id: history.cluster_id, incarnation: history.incarnation },
        cluster_name: history.cluster_name.clone(),
        epoch: history.epoch,
        parent: history.parent.clone(),
        groups: 1,
    }
}

impl Shipper {
    /// For these destinations.
    pub fn new(
        replica: Replica,
        destinations: Vec<Offsite>,
        pace: Pace,
        (encryption, verifiers): (Encryption, Verifiers),
        barriers: Arc<Barriers>,
        attestor: Attestor,
    ) -> Arc<Self> {
        Arc::new(Self {
            replica,
            destinations,
            pace,
            encryption,
            verifiers,
            states: Mutex::default(),
            proofs: Mutex::default(),
            vaults: Mutex::default(),
            barriers,
            attestor,
            fenced: watch::Sender::default(),
        })
    }

    /// Starts one task per destination; attests what is reached.
    pub fn start(self: &Arc<Self>) {
        tokio::spawn(self.clone().attest_barriers());
        tokio::spawn(self.clone().heed_words());
        for destination in self.destinations.clone() {
            let (shipper, joins, looks) = (self.clone(), self.clone(), self.clone());
            let looked_at = destination.clone();
            tokio::spawn(async move { looks.look_for_proofs(looked_at).await });
            if let Some(interval) = self.pace.join {
                let destination = destination.clone();
                tokio::spawn(async move { joins.join(destination, interval).await });
            }
            tokio::spawn(async move { shipper.run(destination).await });
        }
        let shipper = self.clone();
        tokio::spawn(async move { shipper.tend_keys().await });
    }

    /// The configured destinations.
    pub fn destinations(&self) -> &[Offsite] {
        &self.destinations
    }

    /// What this node knows of a destination.
    pub fn state_of(&self, name: &str) -> DestinationState {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned().unwrap_or_default()
    }

    /// How far a destination holds the log. What this node saw there since it leads counts more than the fact that an
    /// earlier leader published.
    pub fn reach(&self, name: &str) -> Reach {
        let sys = self.replica.sys();
        let known = sys.offsite.get(name).map_or(0, |fact| fact.index);
        if sys.lineage_fork.as_ref().is_some_and(|fork| fork.destination == name) {
            // Of what this history holds it proves nothing.
            return Reach { durable: known, verified: 0 };
        }
        reach(self.replica.is_leader(), known, &self.state_of(name))
    }

    /// Why nothing is shipped to a destination, or why the last attempt failed; empty = neither.
    pub fn error_of(&self, name: &str) -> String {
        match &self.replica.sys().lineage_fork {
            Some(fork) if fork.destination == name => fork.evidence.clone(),
            Some(fork) => format!("LINEAGE_FORK at {}: nothing is shipped of a history that forked", fork.destination),
            None => self.state_of(name).error,
        }
    }

    /// Age of the oldest entry in `durable+1 ..= applied` that holds anything to ship; zero when there is none. By the
    /// group's time, as its leader stamped it. Where the log was purged beyond a destination that it does not wait for,
    /// the age of the oldest entry that is left: it is behind for at least as long. `None` = this node cannot know.
    pub fn lag(&self, durable: u64, applied: u64) -> Option<Duration> {
        let log = self.replica.log();
        let purged = log.purged().map_or(0, |purged| purged.index);
        let mut at = durable.max(purged) + 1;
        while at <= applied {
            let first = log.read(at, (at + LAG_ENTRIES).min(applied + 1), LAG_BYTES).ok()?;
            if let Some(stamp) = first.iter().find_map(stamp_to_ship) {
                return Some(Duration::from_millis(self.replica.group_now().0.saturating_sub(stamp.0)));
            }
            if first.is_empty() {
                return None;
            }
            at += first.len() as u64;
        }
        // What was purged said something, and nothing tells when.
        (purged <= durable).then_some(Duration::ZERO)
    }

    /// Waits until a destination says that this history was ended by a recovery.
    pub async fn fenced(&self) -> Arc<ArchiveError> {
        let mut fenced = self.fenced.subscribe();
        loop {
            if let Some(error) = fenced.borrow_and_update().clone() {
                return error;
            }
            // The sender lives as long as this.
            let _ = fenced.changed().await;
        }
    }

    fn note(&self, name: &str, change: impl FnOnce(&mut DestinationState)) {
        change(self.states.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default());
    }

    async fn run(&self, destination: Offsite) {
        let mut failures = Failures::default();
        loop {
            let sys = self.replica.sys();
            let history = sys.history.clone().filter(|_| self.replica.is_opened(&sys));
            let history = history.filter(|_| self.replica.is_leader() && sys.lineage_fork.is_none());
            drop(sys);
            let Some(history) = history else {
                // Another leads, and knows better; or nothing is shipped any more.
                self.note(&destination.name, |state| *state = DestinationState::default());
                failures.end();
                sleep(IDLE_PAUSE).await;
                continue;
            };
            let seen = self.state_of(&destination.name).seen;
            match self.lead(&destination, &history).await {
                Ok(()) => failures.end(),
                Err(error @ ArchiveError::LineageFork { position, .. }) => {
                    self.note(&destination.name, |state| {
                        state.seen = Seen::Unseen;
                        state.error = error.to_string();
                    });
                    self.stop_writes(&destination, &history, position.index, &error).await;
                    sleep(RETRY_PAUSE).await;
                }
                Err(error @ ArchiveError::Fenced { .. }) => {
                    tracing::error!(event = "offsite.fenced", destination = destination.name, %error, "this node ends");
                    self.note(&destination.name, |state| state.error = error.to_string());
                    self.fenced.send_replace(Some(Arc::new(error)));
                    return;
                }
                Err(error) => {
                    let went_well = self.state_of(&destination.name).seen != seen;
                    let next = failures.failed(went_well, Instant::now(), &error.to_string());
                    if next.tell {
                        tracing::warn!(event = "offsite.failed", destination = destination.name, %error, "trying again");
                    }
                    self.note(&destination.name, |state| {
                        state.seen = seen_after(state.seen, &error);
                        state.error = error.to_string();
                    });
                    sleep(next.pause).await;
                }
            }
        }
    }

    /// Makes a fork a replicated fact, from which on nothing is written. Where that fails it is looked at again: another
    /// leader may hold the archived history.
    async fn stop_writes(&self, destination: &Offsite, history: &History, index: u64, error: &ArchiveError) {
        tracing::error!(event = "offsite.fork", destination = destination.name, %error, "writes and shipping stop");
        let fork = LineageFork {
            incarnation: history.incarnation,
            destination: destination.name.clone(),
            index,
            evidence: error.to_string(),
            verifier: NodeId(self.replica.node_id()),
            since: Millis(0),
        };
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        if let Err(error) = self.replica.propose_if_leader(Command::LineageFork(Box::new(fork)), deadline).await {
            tracing::warn!(event = "offsite.fork", %error, "not everyone knows of the fork yet; trying again");
        }
    }

    /// Opens this history at a destination. Only one that nothing is known to have been shipped to is begun there: where
    /// there was something, an empty folder is a mount that is missing, and not a place to write to.
    async fn open(&self, destination: &Offsite, history: &History) -> Result<OpenLineage, ArchiveError> {
        let config = DestinationConfig::from(destination);
        let facts = lineage_facts(history);
        let sys = self.replica.sys();
        let sealing = self.sealing(&sys, history)?;
        let keys = self.encryption.keys.clone();
        let Some(known) = sys.offsite.get(&destination.name).map(|fact| fact.index) else {
            let lineage = OpenLineage::open(Destination::create(&config)?.with_keys(keys), &facts).await?;
            return lineage.sealed_with(sealing).await;
        };
        let found = OpenLineage::find(Destination::open(&config)?.with_keys(keys), &facts).await;
        let lineage = found.map_err(|error| match error {
            ArchiveError::Missing { object, .. } => ArchiveError::Missing {
                object,
                reason: format!(
                    "{} held the log up to index {known}, and holds nothing of this history now; mount the disk that \
                     holds it, or bring its objects back, and shipping goes on by itself; to begin anew there, give the \
                     destination another name in [[offsite]] on every node",
                    config.url
                ),
            },
            error => error,
        })?;
        lineage.sealed_with(sealing).await
    }

    /// Ships for as long as this node leads one history.
    async fn lead(&self, destination: &Offsite, history: &History) -> Result<(), ArchiveError> {
        let sys = self.replica.sys();
        let known = sys.offsite.get(&destination.name).map_or(0, |fact| fact.index);
        let keys = sys.archive_keys.clone();
        drop(sys);
        let lineage = self.open(destination, history).await?;
        let mut shipper = SegmentShipper::new(lineage.clone(), self.replica.group_id()).known_to(known);
        let tail = match shipper.tail().await {
            Err(damage @ (ArchiveError::Corrupt { .. } | ArchiveError::Missing { .. })) => {
                shipper.tail_before_damage(damage).await.map_err(poisoned)?
            }
            tail => tail?,
        };
        let mut course = match (tail, &history.parent) {
            (Some(tail), _) => Course { next: tail.last.index + 1, chain: tail.chain },
            (None, Some(parent)) => Course { next: parent.index + 1, chain: parent.chain },
            (None, None) => Course { next: 0, chain: [0; 32] },
        };
        // Until something of it was published, the log must not end behind what is bridged.
        let mut held = None;
        let lent = match course.check(self, &destination.url).await {
            Err(ArchiveError::LogGone { unanswered: None, .. }) => {
                held = Some(self.replica.hold_log(self.applied().index()));
                course = self.bridge(destination, &lineage, &mut shipper, course).await?;
                course.check(self, &destination.url).await?
            }
            checked => checked?,
        };
        course.ship_lent(self, &mut shipper, lent).await?;
        if course.next > 0 {
            self.publish(destination, &course).await;
        }
        drop(held);
        let (mut looked, mut put) = (Instant::now(), Instant::now());
        let mut waiting_since: Option<Instant> = None;
        while self.replica.is_leader() && self.is_shipped(history) && self.same_keys(keys.as_ref()) {
            let applied = if planted::is(Bug::ShippedBeforeCommit) {
                self.replica.log().last().map_or(0, |last| last.index)
            } else {
                self.replica.state().applied().index()
            };
            if looked.elapsed() >= LOOK_PAUSE {
                shipper.look().await?;
                looked = Instant::now();
            }
            if put.elapsed() >= self.pace.heartbeat
                && let Some(at) = self.complete_at(&course).await?
            {
                shipper.heartbeat(at).await?;
                put = Instant::now();
            }
            if applied < course.next {
                waiting_since = None;
                sleep(IDLE_PAUSE).await;
                continue;
            }
            let since = *waiting_since.get_or_insert_with(Instant::now);
            let entries = self.entries(course.next, applied + 1).await?;
            if since.elapsed() < self.pace.interval && !self.is_due(&entries, applied) {
                sleep(IDLE_PAUSE).await;
                continue;
            }
            // What only ships facts of shipping would never come to rest.
            if entries.iter().all(is_fact) {
                sleep(self.pace.interval).await;
                if self.replica.state().applied().index() == applied {
                    continue;
                }
            }
            course.ship(self, &mut shipper, &entries).await?;
            put = Instant::now();
            waiting_since = None;
            self.publish(destination, &course).await;
        }
        Ok(())
    }

    /// These need not wait for more: they fill a segment, or were committed so long ago that an earlier leader should have
    /// shipped them.
    fn is_due(&self, entries: &[StoredEntry], applied: u64) -> bool {
        let bytes: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
        // What was read is what fits: behind it there is more.
        let is_full = entries.last().is_some_and(|last| last.position.index < applied);
        let oldest = entries.iter().find_map(stamp_to_ship);
        let waited = oldest.map(|stamp| Duration::from_millis(self.replica.group_now().0.saturating_sub(stamp.0)));
        is_full || bytes >= self.pace.segment_bytes || waited.is_some_and(|waited| waited >= self.pace.interval)
    }

    /// The group's time, if everything that was committed before it is shipped, but for facts of shipping.
    async fn complete_at(&self, course: &Course) -> Result<Option<Millis>, ArchiveError> {
        // In this order: what was acknowledged before that moment is committed when a quorum says how far that is.
        let Some(at) = self.replica.group_time() else { return Ok(None) };
        let Some(committed) = self.replica.committed_as_leader().await else { return Ok(None) };
        if committed < course.next {
            return Ok(Some(at));
        }
        if self.applied().index() < committed {
            return Ok(None);
        }
        let rest = self.entries(course.next, committed + 1).await?;
        let is_all = rest.last().is_some_and(|last| last.position.index == committed);
        Ok((is_all && rest.iter().all(is_fact)).then_some(at))
    }

    /// A new generation begins with a KEYS.age at every destination.
    fn same_keys(&self, keys: Option<&Arc<ArchiveKeys>>) -> bool {
        self.replica.sys().archive_keys.as_ref() == keys
    }

    /// It goes on, and did not fork.
    fn is_shipped(&self, history: &History) -> bool {
        let sys = self.replica.sys();
        sys.lineage_fork.is_none() && sys.history.as_ref().is_some_and(|now| now.incarnation == history.incarnation)
    }

    /// Makes a destination's progress a replicated fact.
    async fn publish(&self, destination: &Offsite, course: &Course) {
        let (index, chain) = (course.next - 1, course.chain);
        self.note(&destination.name, |state| {
            state.seen = Seen::UpTo(index);
            state.error.clear();
        });
        let known = self.replica.sys().offsite.get(&destination.name).map_or(0, |fact| fact.index);
        if known >= index {
            return;
        }
        let fact = OffsiteFact {
            destination: destination.name.clone(),
            index,
            chain,
            verifier: NodeId(self.replica.node_id()),
            at: Millis(self.replica.sys().now.0),
        };
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        if let Err(error) = self.replica.propose_if_leader(Command::OffsiteFact(fact), deadline).await {
            tracing::debug!(event = "offsite.fact", %error, "published with the next segment");
        }
    }
}

impl OwnLog for Shipper {
    fn applied(&self) -> Applied {
        self.replica.state().applied()
    }

    async fn committed(&self) -> Option<u64> {
        self.replica.committed_as_leader().await
    }

    fn begins(&self) -> u64 {
        self.replica.log().first_index()
    }

    async fn lent(&self, start: u64, end: u64) -> Result<Vec<StoredEntry>, ArchiveError> {
        match self.replica.entries_of_peers(start, end, self.pace.segment_bytes).await {
            Ok(Some(entries)) => Ok(entries),
            Ok(None) => Err(ArchiveError::LogGone { index: start, unanswered: None }),
            Err(unanswered) => Err(ArchiveError::LogGone { index: start, unanswered: Some(unanswered) }),
        }
    }

    async fn entries(&self, start: u64, end: u64) -> Result<Vec<StoredEntry>, ArchiveError> {
        let log = self.replica.log().clone();
        let bytes_max = self.pace.segment_bytes;
        let read = tokio::task::spawn_blocking(move || log.read(start, end, bytes_max)).await;
        let entries = read
            .map_err(|_| ArchiveError::Stopped { what: "reading the log" })?
            .map_err(|source| ArchiveError::Store { path: "raft".into(), source })?;
        if entries.is_empty() {
            // It was purged just now; the next try looks elsewhere.
            let unanswered = Some("the others are asked next".into());
            return Err(ArchiveError::LogGone { index: start, unanswered });
        }
        Ok(entries)
    }
}

fn reach(leads: bool, known: u64, state: &DestinationState) -> Reach {
    let both = |index| Reach { durable: index, verified: index };
    match state.seen {
        _ if !leads => both(known),
        Seen::UpTo(index) => both(index),
        Seen::Gone => both(0),
        // Elected a moment ago.
        Seen::Unseen if state.error.is_empty() => both(known),
        Seen::Unseen => Reach { durable: known, verified: 0 },
    }
}

/// What is left of what was seen, once shipping failed.
fn seen_after(seen: Seen, error: &ArchiveError) -> Seen {
    match error {
        ArchiveError::Missing { .. } => Seen::Gone,
        ArchiveError::BadDestination { .. }
        | ArchiveError::NoBucket { .. }
        | ArchiveError::Forbidden { .. }
        | ArchiveError::MayNotDelete { .. }
        | ArchiveError::Corrupt { .. }
        | ArchiveError::LineageFork { .. } => Seen::Unseen,
        // It is there, as far as anybody knows.
        _ => seen,
    }
}

/// A damaged newest position: what to do about it.
fn poisoned(error: ArchiveError) -> ArchiveError {
    match error {
        ArchiveError::Corrupt { object, reason } => ArchiveError::Corrupt {
            object,
            reason: format!(
                "{reason}; it is at the end of the log there, and nothing is shipped behind it: move it away, and it is \
                 shipped again, or put its bytes back"
            ),
        },
        error => error,
    }
}

fn is_fact(entry: &StoredEntry) -> bool {
    entry.bytes.len() < 512
        && proposal(entry).is_some_and(|proposal| matches!(proposal.command, Command::OffsiteFact(_)))
}

fn proposal(entry: &StoredEntry) -> Option<Proposal> {
    use holdfast_wire::log::{EntryPayload, decode_entry, decode_proposal};
    match decode_entry(&entry.bytes).ok()?.payload {
        EntryPayload::Proposal(bytes) => decode_proposal(&bytes).ok(),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    }
}

/// When an entry was stamped, if it says something that a destination lacks. Without a quorum of clocks it was not.
fn stamp_to_ship(entry: &StoredEntry) -> Option<Millis> {
    let proposal = proposal(entry).filter(|proposal| !matches!(proposal.command, Command::OffsiteFact(_)))?;
    Some(proposal.stamp).filter(|stamp| *stamp > Millis(0))
}
