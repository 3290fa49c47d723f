//! Ships the committed log and snapshots offsite, while this node leads.
//!
//! Invariants: only applied (hence committed and locally fsynced) entries are shipped; a destination's tail is checked
//! against this node's own history before anything is added; a fork stops shipping for good and is an alarm; how far
//! a destination is becomes a replicated fact only after it was read back from there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_archive::{
    ArchiveError, Destination, DestinationConfig, LineageFacts, LineageId, OpenLineage, SegmentShipper, ship_snapshot,
};
use holdfast_model::command::{Command, OffsiteFact, Proposal, SnapshotBarrier};
use holdfast_model::id::{Millis, NodeId};
use holdfast_model::state::History;
use holdfast_replica::Replica;
use holdfast_store::planted::{self, Bug};
use holdfast_store::{LogPosition, StateStore, StoredEntry};
use holdfast_wire::log::entry_chain;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

use crate::config::Offsite;
use crate::operations::Job;

const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const IDLE_PAUSE: Duration = Duration::from_millis(50);
/// Entries looked at in one step for the oldest that is not offsite.
const LAG_ENTRIES: u64 = 16;
const LAG_BYTES: usize = 1 << 20;

/// What is known of a destination on this node.
#[derive(Debug, Clone, Default)]
pub struct DestinationState {
    /// Index up to which this node shipped or saw shipped.
    pub index: u64,
    /// Last error; empty = none.
    pub error: String,
    /// The archive holds another history.
    pub forked: bool,
}

type BarrierWaiters = Mutex<BTreeMap<String, oneshot::Sender<Result<PathBuf, String>>>>;

/// Ships this node's group.
pub struct Shipper {
    replica: Replica,
    destinations: Vec<Offsite>,
    interval: Duration,
    segment_bytes: usize,
    states: Mutex<BTreeMap<String, DestinationState>>,
    barriers: Arc<Barriers>,
    /// Set once a destination said that this history was ended.
    fenced: watch::Sender<Option<Arc<ArchiveError>>>,
}

/// Checkpoints at snapshot barriers; filled by the state machine's hook.
#[derive(Default)]
pub struct Barriers {
    waiting: BarrierWaiters,
    dir: PathBuf,
}

impl Barriers {
    /// Checkpoints go below `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { waiting: Mutex::default(), dir }
    }

    /// Called right after a barrier was applied: takes the checkpoint if a job of this node waits for one.
    pub fn reached(&self, index: u64, state: &StateStore) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if waiting.is_empty() {
            return;
        }
        let path = self.dir.join(format!("barrier-{index:020}"));
        let taken = std::fs::create_dir_all(&self.dir)
            .map_err(|error| error.to_string())
            .and_then(|()| state.checkpoint(&path).map_err(|error| error.to_string()));
        for (_, waiter) in waiting {
            // A job that gave up waits no more.
            let _ = waiter.send(taken.as_ref().map(|_| path.clone()).map_err(Clone::clone));
        }
    }

    fn wait(&self, id: &str) -> oneshot::Receiver<Result<PathBuf, String>> {
        let (tx, rx) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), tx);
        rx
    }
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
        interval: Duration,
        segment_bytes: usize,
        barriers: Arc<Barriers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            replica,
            destinations,
            interval,
            segment_bytes,
            states: Mutex::default(),
            barriers,
            fenced: watch::Sender::default(),
        })
    }

    /// Starts one task per destination.
    pub fn start(self: &Arc<Self>) {
        for destination in self.destinations.clone() {
            let shipper = self.clone();
            tokio::spawn(async move { shipper.run(destination).await });
        }
    }

    /// The configured destinations.
    pub fn destinations(&self) -> &[Offsite] {
        &self.destinations
    }

    /// What this node knows of a destination.
    pub fn state_of(&self, name: &str) -> DestinationState {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned().unwrap_or_default()
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
        loop {
            if !self.replica.is_leader() || !self.replica.is_opened(&self.replica.sys()) {
                sleep(IDLE_PAUSE).await;
                continue;
            }
            match self.lead(&destination).await {
                Ok(()) => {}
                Err(error @ ArchiveError::LineageFork { .. }) => {
                    tracing::error!(event = "offsite.fork", destination = destination.name, %error, "shipping stops");
                    self.note(&destination.name, |state| {
                        state.forked = true;
                        state.error = error.to_string();
                    });
                    // Another leader may hold the archived history; this term of this one does not.
                    while self.replica.is_leader() {
                        sleep(RETRY_PAUSE).await;
                    }
                }
                Err(error @ ArchiveError::Fenced { .. }) => {
                    tracing::error!(event = "offsite.fenced", destination = destination.name, %error, "this node ends");
                    self.note(&destination.name, |state| state.error = error.to_string());
                    self.fenced.send_replace(Some(Arc::new(error)));
                    return;
                }
                Err(error) => {
                    tracing::warn!(event = "offsite.failed", destination = destination.name, %error, "trying again");
                    self.note(&destination.name, |state| state.error = error.to_string());
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn open(&self, destination: &Offsite, history: &History) -> Result<OpenLineage, ArchiveError> {
        let config = DestinationConfig {
            name: destination.name.clone(),
            url: destination.url.clone(),
            required: destination.required,
            labels: destination.labels.clone(),
        };
        OpenLineage::open(Destination::create(&config)?, &lineage_facts(history)).await
    }

    /// Ships for as long as this node leads one history.
    async fn lead(&self, destination: &Offsite) -> Result<(), ArchiveError> {
        let sys = self.replica.sys();
        let Some(history) = sys.history.clone() else { return Ok(()) };
        let lineage = self.open(destination, &history).await?;
        let mut shipper = SegmentShipper::new(lineage, self.replica.group_id());
        let tail = shipper.tail().await?;
        // Where the next segment starts, and the chain before it.
        let (mut next, mut chain) = match (tail, &history.parent) {
            (Some(tail), _) => (tail.last.index + 1, tail.chain),
            (None, Some(parent)) => (parent.index + 1, parent.chain),
            (None, None) => (0, [0; 32]),
        };
        self.check_history(destination, next, chain).await?;
        if next > 0 {
            self.publish(destination, next - 1, chain).await;
        }
        let mut waiting_since: Option<Instant> = None;
        while self.replica.is_leader() && self.same_history(&history) {
            let applied = if planted::is(Bug::ShippedBeforeCommit) {
                self.replica.log().last().map_or(0, |last| last.index)
            } else {
                self.replica.state().applied().index()
            };
            if applied < next {
                waiting_since = None;
                sleep(IDLE_PAUSE).await;
                continue;
            }
            let since = *waiting_since.get_or_insert_with(Instant::now);
            let entries = self.entries(next, applied + 1).await?;
            let bytes: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
            if since.elapsed() < self.interval && bytes < self.segment_bytes {
                sleep(IDLE_PAUSE).await;
                continue;
            }
            // What only ships facts of shipping would never come to rest.
            if entries.iter().all(is_fact) {
                sleep(self.interval).await;
                if self.replica.state().applied().index() == applied {
                    continue;
                }
            }
            let shipped = shipper.ship(&entries, chain).await?.tail();
            next = shipped.last.index + 1;
            chain = shipped.chain;
            waiting_since = None;
            self.publish(destination, shipped.last.index, chain).await;
        }
        Ok(())
    }

    fn same_history(&self, history: &History) -> bool {
        self.replica.sys().history.as_ref().is_some_and(|now| now.incarnation == history.incarnation)
    }

    /// The archived chain, continued by this node's log, must give this node's own chain.
    async fn check_history(&self, destination: &Offsite, next: u64, chain: [u8; 32]) -> Result<(), ArchiveError> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let applied = self.replica.state().applied();
            let fork = |reason: String| ArchiveError::LineageFork {
                position: applied.position.unwrap_or(LogPosition { term: 0, node: 0, index: 0 }),
                object: destination.url.clone(),
                reason,
            };
            if applied.index() + 1 < next {
                // A new leader may still be applying what was committed before it.
                if Instant::now() >= deadline {
                    return Err(fork("it is ahead of everything that is committed here".into()));
                }
                sleep(IDLE_PAUSE).await;
                continue;
            }
            let mut ours = chain;
            let mut at = next;
            while at <= applied.index() {
                let entries = self.entries(at, applied.index() + 1).await?;
                for entry in &entries {
                    ours = entry_chain(ours, &entry.bytes);
                }
                at += entries.len() as u64;
            }
            return if ours == applied.entry_chain {
                Ok(())
            } else {
                Err(fork("its entries, continued by this node's log, are not this node's history".into()))
            };
        }
    }

    async fn entries(&self, start: u64, end: u64) -> Result<Vec<StoredEntry>, ArchiveError> {
        let log = self.replica.log().clone();
        let bytes_max = self.segment_bytes;
        let read = tokio::task::spawn_blocking(move || log.read(start, end, bytes_max)).await;
        let entries = read
            .map_err(|_| ArchiveError::Stopped { what: "reading the log" })?
            .map_err(|source| ArchiveError::Store { path: "raft".into(), source })?;
        if entries.is_empty() {
            return Err(ArchiveError::Refused { reason: format!("entry {start} is not in this node's log any more") });
        }
        Ok(entries)
    }

    /// Makes a destination's progress a replicated fact.
    async fn publish(&self, destination: &Offsite, index: u64, chain: [u8; 32]) {
        self.note(&destination.name, |state| {
            state.index = index;
            state.error.clear();
            state.forked = false;
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

    /// Takes a snapshot at a barrier and ships it to every destination; runs as a job.
    pub async fn backup(self: Arc<Self>, job: Job, id: String) {
        let result = self.backup_all(&job, &id).await;
        if let Err(error) = &result {
            tracing::warn!(event = "backup.failed", error, "no snapshot was shipped");
        }
        job.end(result).await;
    }

    async fn backup_all(&self, job: &Job, id: &str) -> Result<String, String> {
        if self.destinations.is_empty() {
            return Err("no offsite destination is configured; set [[offsite]] and restart the node".into());
        }
        job.stage("taking a checkpoint", 0, 0).await;
        let reached = self.barriers.wait(id);
        let admitted = self.replica.admission().admit_first(256);
        let barrier = Command::SnapshotBarrier(SnapshotBarrier { operation_id: id.to_owned() });
        let deadline = Instant::now() + Duration::from_secs(30);
        self.replica.propose(barrier, admitted, deadline).await.map_err(|error| error.to_string())?;
        let checkpoint = tokio::time::timeout(Duration::from_secs(120), reached)
            .await
            .map_err(|_| "this node did not reach the barrier in time; try again".to_owned())?
            .map_err(|_| "the barrier was lost; try again".to_owned())??;
        let shipped = self.ship_checkpoint(job, &checkpoint).await;
        if let Err(error) = std::fs::remove_dir_all(&checkpoint) {
            tracing::warn!(event = "backup.leftover", %error, "the checkpoint goes at restart");
        }
        shipped
    }

    async fn ship_checkpoint(&self, job: &Job, checkpoint: &std::path::Path) -> Result<String, String> {
        let sys = self.replica.sys();
        let history = sys.history.as_ref().ok_or("the cluster is not founded")?;
        let mut index = 0;
        let total = self.destinations.len() as u64;
        for (done, destination) in self.destinations.iter().enumerate() {
            job.stage(&format!("shipping to {}", destination.name), done as u64, total).await;
            let known = self.replica.integrity_status();
            if let Some(reason) = known.damage.or(known.doubt) {
                return Err(format!("the state that the snapshot is of may be wrong: {reason}"));
            }
            let shipped = async {
                let lineage = self.open(destination, history).await?;
                ship_snapshot(&lineage, self.replica.group_id(), checkpoint, &|_, _| {}).await
            };
            let report = shipped.await.map_err(|error| format!("{}: {error}", destination.name))?;
            tracing::info!(
                event = "backup.shipped",
                destination = destination.name,
                index = report.index,
                chunks = report.chunks,
                bytes = report.bytes,
                new_bytes = report.new_bytes,
                "snapshot"
            );
            index = report.index;
        }
        Ok(format!("shipped snapshot {index} to {total} destination(s)"))
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
