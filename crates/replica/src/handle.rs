//! One replica: starts openraft over the stores, and is the handle that everything else holds.
//!
//! Invariants: the log and the state agree before openraft sees them; a recovering node neither votes nor leads; a
//! fatal error of openraft or of the disk ends the process, it is never served past.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_model::id::{GroupId, Millis};
use holdfast_model::state::{Sys, Touched};
use holdfast_store::{DataDir, LogPosition, LogStats, LogStore, Recovering, Room, StateStore, StoreError, View};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admission::Admission;
use crate::integrity::{Integrity, IntegrityStatus};
use crate::log_storage::LogAdapter;
use crate::options::{Options, raft_config};
use crate::outbox::LogHolds;
use crate::read::ReadIndexer;
use crate::rooms::{Disk, cost_of_applying};
use crate::snapshot::Incoming;
use crate::startup;
use crate::state_machine::{StateAdapter, StoreFailure};
use crate::transport::client::{Factory, Peers};
use crate::transport::service::{Service, peer_service};
use crate::types::{TypeConfig, stored_membership_decode};

pub(crate) type Raft = openraft::Raft<TypeConfig, StateAdapter>;

/// Hears which users' heads moved.
pub type OnTouched = Box<dyn Fn(&[Touched]) + Send + Sync>;
/// Hears of a barrier: its index, and the state exactly there.
pub type OnBarrier = Box<dyn Fn(u64, &StateStore) + Send + Sync>;

/// What the owner wants to hear of. Called from Raft's own runtime: quick, and never blocking for long.
pub struct Hooks {
    /// Heads of these users moved.
    pub on_touched: OnTouched,
    /// A snapshot barrier was applied: the state is exactly at this index while the call lasts.
    pub on_barrier: OnBarrier,
    /// The whole state was replaced.
    pub on_installed: Box<dyn Fn() + Send + Sync>,
    /// The cluster knows this node's id under another data directory; the process should end.
    pub on_displaced: Box<dyn Fn() + Send + Sync>,
    /// The node cannot go on; must end the process.
    pub on_fatal: Arc<dyn Fn(String) + Send + Sync>,
}

/// Why a replica did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// openraft.
    #[error("consensus does not start: {0}")]
    Raft(String),
}

pub(crate) struct Core {
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<Peers>,
    pub(crate) node_id: u64,
    pub(crate) group: GroupId,
    pub(crate) room: Arc<Room>,
    state: StateStore,
    log: LogStore,
    data: Arc<DataDir>,
    identity: String,
    admission: Admission,
    applied: watch::Sender<u64>,
    integrity: Arc<Integrity>,
    recovering: AtomicBool,
    stopping: AtomicBool,
    recover_to: AtomicU64,
    /// Peers that may know more of this node's log were not heard yet.
    asking_witnesses: AtomicBool,
    /// Term of the last leader that this process heard; 0 = none yet.
    heard_term: AtomicU64,
    /// When a leader's heartbeat was last accepted.
    heard_at: Mutex<Option<Instant>>,
    /// A peer knows another data directory under this node's id.
    displaced: AtomicBool,
    /// An operator wants this node not to lead.
    drained: AtomicBool,
    /// The group has gone on without this node.
    removed: AtomicBool,
    /// Bytes of the log that a required destination does not hold.
    pub(crate) outbox_bytes: AtomicU64,
    pub(crate) outbox_forgot: AtomicBool,
    pub(crate) log_holds: LogHolds,
    pub(crate) folder: crate::propose::fold::Folder,
    options: Options,
    hooks: Arc<Hooks>,
}

impl Core {
    pub(crate) fn leader_hint(&self) -> Option<u64> {
        use openraft::async_runtime::watch::WatchReceiver;
        self.raft.metrics().borrow_watched().current_leader
    }

    pub(crate) fn recovering(&self) -> bool {
        self.recovering.load(Ordering::Acquire)
    }

    /// Its log holds all that it acknowledged, as far as anybody can tell.
    pub(crate) fn may_vote(&self) -> bool {
        !self.recovering() && !self.asking_witnesses.load(Ordering::Acquire)
    }

    /// Nobody may lead whose log or state is not whole, or whom an operator wants elsewhere.
    fn update_elect(&self) {
        let drained = self.drained.load(Ordering::Acquire);
        self.peers.withholds_state.store(self.integrity.withholds_state(), Ordering::Release);
        self.raft.runtime_config().elect(!drained && self.may_vote() && self.integrity.may_lead());
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.integrity.is_fenced()
    }

    /// The end of Raft is wanted now, and no failure.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Bytes that are going to be written, whatever comes: what memory holds, and what the state has yet to take from the
    /// log, which a follower that catches up takes in much faster than it applies it.
    pub(crate) fn owed_bytes(&self) -> u64 {
        // What is applied meanwhile counts twice rather than not at all.
        let applied = *self.applied.borrow();
        let entries = self.log.last().map_or(0, |last| last.index.saturating_sub(applied));
        let unapplied = if entries > 0 { cost_of_applying(entries, self.log.bytes_after(applied)) } else { 0 };
        unapplied + self.state.unflushed_bytes() + self.log.unsynced_bytes()
    }

    /// While `on`, the database rewrites nothing that nobody asked for.
    pub(crate) fn set_frugal(&self, on: bool) {
        self.state.set_frugal(on);
    }

    pub(crate) fn data_path(&self) -> PathBuf {
        self.data.path().to_owned()
    }
}

/// Handle of one replica; cheap to clone.
#[derive(Clone)]
pub struct Replica {
    pub(crate) core: Arc<Core>,
    indexer: Arc<ReadIndexer>,
}

impl Replica {
    /// Opens the stores, brings log and state together, and joins the group. Must be called on the runtime that Raft
    /// is to run on.
    ///
    /// # Errors
    /// A damaged or foreign store, or openraft's own refusal; the process should end.
    pub async fn start(data: Arc<DataDir>, options: Options, hooks: Hooks) -> Result<Self, StartError> {
        let hooks = Arc::new(hooks);
        let node_id = data.identity().node_id;
        let identity: String = data.identity().identity.iter().map(|byte| format!("{byte:02x}")).collect();
        startup::remove_leftovers(&data, options.group)?;
        let room = Room::open(data.path(), options.headroom_bytes, options.floor_bytes)?;
        let room = Arc::new(room.pausing_by(crate::disk_keeper::pause_in_place));
        let startup::Opened { log, state, recovering } = startup::open(&data, &options, &room, &hooks).await?;
        let may_adopt = log.last().is_none() && !startup::opens(&options, state.view().sys());
        if let Some(members) = options.members.clone().filter(|_| may_adopt) {
            startup::adopt_members(&state, members)?;
        }
        startup::agree(&log, &state)?;
        startup::raise_vote(&log, &state).await.map_err(|error| StartError::Raft(error.to_string()))?;

        let peers = Arc::new(Peers::new(options.group.0));
        peers.fill_up_from(log.clone());
        if let Some(cluster) = data.identity().cluster_id {
            peers.set_cluster(cluster);
        }
        let membership = stored_membership_decode(&state.applied().membership)
            .map_err(|error| StartError::Raft(error.to_string()))?;
        peers.update(membership.nodes().filter(|(id, _)| **id != node_id));
        if let Some(Recovering { reason, upto }) = &recovering {
            tracing::warn!(event = "log.recovering", reason, upto, "this node will not vote until caught up");
        }

        let applied_index = state.applied().index();
        let others = membership.voter_ids().any(|id| id != node_id);
        let integrity = Integrity::new(options.integrity, state.installation(), applied_index, others);
        if let Some(reason) = data.diverged()? {
            integrity.found_fenced(reason);
        }
        let (applied, _) = watch::channel(applied_index);
        let (durable_tx, durable) = watch::channel(log.durable_index());
        log.subscribe_durable(Box::new(move |index| {
            durable_tx.send_if_modified(|current| {
                let moved = *current != index;
                *current = index;
                moved
            });
        }));
        let failure = StoreFailure::default();
        let machine = StateAdapter::new(
            state.clone(),
            log.clone(),
            data.path().join("snapshots"),
            durable,
            applied.clone(),
            hooks.clone(),
            failure.clone(),
            integrity.clone(),
            room.clone(),
        );
        let config = raft_config(&options).map_err(|error| StartError::Raft(error.to_string()))?;
        let raft =
            Raft::build(node_id, Arc::new(config), Factory::new(peers.clone()), LogAdapter::new(log.clone()), machine)
                .await
                .map_err(|error| match failure.lock().ok().and_then(|mut kept| kept.take()) {
                    Some(damage) => StartError::Store(damage),
                    None => StartError::Raft(error.to_string()),
                })?;
        let core = Arc::new(Core {
            raft,
            peers,
            node_id,
            group: options.group,
            room,
            state,
            log,
            data,
            identity,
            admission: Admission::new(options.inflight_bytes_max),
            applied,
            integrity,
            recovering: AtomicBool::new(recovering.is_some()),
            stopping: AtomicBool::new(false),
            recover_to: AtomicU64::new(recovering.map_or(0, |recovering| recovering.upto)),
            asking_witnesses: AtomicBool::new(true),
            heard_term: AtomicU64::new(0),
            heard_at: Mutex::default(),
            displaced: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            outbox_bytes: AtomicU64::new(0),
            outbox_forgot: AtomicBool::new(false),
            log_holds: LogHolds::default(),
            folder: Default::default(),
            options,
            hooks,
        });
        core.update_elect();
        crate::disk_keeper::watch(&core)?;
        core.raft.run();
        startup::first_report(&core.raft, &core.log).await;
        let indexer = Arc::new(ReadIndexer::start(&core));
        let replica = Self { core, indexer };
        crate::witnesses::ask(&replica);
        crate::maintain::start(&replica);
        crate::integrity::start(&replica);
        Ok(replica)
    }

    /// The service that peers call.
    pub fn peer_service(&self) -> holdfast_wire::internal::v1::peer_service_server::PeerServiceServer<Service> {
        peer_service(self.clone())
    }

    /// This node.
    pub fn node_id(&self) -> u64 {
        self.core.node_id
    }

    /// This group.
    pub fn group_id(&self) -> GroupId {
        self.core.group
    }

    /// Random identity of the data directory, hex.
    pub fn identity(&self) -> &str {
        &self.core.identity
    }

    /// Budget of proposals in flight.
    pub fn admission(&self) -> &Admission {
        &self.core.admission
    }

    /// The leader this node believes in.
    pub fn leader_hint(&self) -> Option<u64> {
        self.core.leader_hint()
    }

    /// True when this node leads, and may.
    pub fn is_leader(&self) -> bool {
        self.core.raft.is_leader() && !self.is_fenced()
    }

    /// This node's state is damaged and is being reinstalled: it neither leads nor serves, but votes.
    pub fn is_fenced(&self) -> bool {
        self.core.integrity.is_fenced()
    }

    /// What is known of the soundness of this node's state.
    pub fn integrity_status(&self) -> IntegrityStatus {
        self.core.integrity.status()
    }

    /// Compares the states of all members at one index, row by row, and tells them what came of it.
    pub async fn compare_states(&self) -> crate::integrity::compare::Comparison {
        let comparison = crate::integrity::compare::compare(self, true).await;
        crate::integrity::compare::tell(self, &comparison, true).await;
        comparison
    }

    pub(crate) fn integrity(&self) -> &Integrity {
        &self.core.integrity
    }

    pub(crate) fn data_dir(&self) -> Arc<DataDir> {
        self.core.data.clone()
    }

    /// The state was brought on by other ways than openraft's.
    pub(crate) fn note_applied(&self, index: u64) {
        self.core.applied.send_replace(index);
    }

    pub(crate) fn update_elect(&self) {
        self.core.update_elect();
    }

    /// True while the log is being filled up again.
    pub fn is_recovering(&self) -> bool {
        self.core.recovering()
    }

    /// Group facts as applied here.
    pub fn sys(&self) -> Arc<Sys> {
        self.core.state.sys()
    }

    /// The state as it is here, however old: for status, feeds' wake-ups and offline work. Reads of callers go through
    /// [`Replica::read`].
    pub fn view(&self) -> View {
        self.core.state.view()
    }

    /// The state store, for checkpoints and metrics.
    pub fn state(&self) -> &StateStore {
        &self.core.state
    }

    /// The log, for shipping committed entries.
    pub fn log(&self) -> &LogStore {
        &self.core.log
    }

    /// Last entry of this node's log, if an fsync covers all of it.
    pub fn durable_last(&self) -> Option<LogPosition> {
        let last = self.core.log.last()?;
        (self.core.log.durable_index() >= last.index).then_some(last)
    }

    /// Log measurements.
    pub fn log_stats(&self) -> LogStats {
        self.core.log.stats()
    }

    /// Applied index as it moves.
    pub fn applied_watch(&self) -> watch::Receiver<u64> {
        self.core.applied.subscribe()
    }

    /// True once the history that this node is to serve is open.
    pub fn is_opened(&self, sys: &Sys) -> bool {
        startup::opens(&self.core.options, sys)
    }

    /// Ends Raft's tasks and closes the log.
    pub async fn shutdown(&self) {
        self.core.stopping.store(true, Ordering::Release);
        self.core.room.give_up();
        if let Err(error) = self.core.raft.shutdown().await {
            tracing::warn!(event = "raft.shutdown", %error, "consensus did not end cleanly");
        }
        let (log, state) = (self.core.log.clone(), self.core.state.clone());
        let exams = self.core.integrity.exams.clone();
        let closed = tokio::task::spawn_blocking(move || {
            exams.stop();
            log.close();
            state.flush()
        });
        if let Ok(Err(error)) = closed.await {
            tracing::warn!(event = "state.flush", %error, "the state is replayed from the log at the next start");
        }
    }

    /// The end of Raft is wanted now, and no failure.
    pub(crate) fn is_stopping(&self) -> bool {
        self.core.is_stopping()
    }

    /// This node's disk.
    pub fn disk(&self) -> Disk {
        self.core.peers.rooms.own()
    }

    /// While this node leads: why it takes nothing that adds data, for want of room; `None` = it does.
    pub fn refuses_for_room(&self) -> Option<String> {
        use openraft::async_runtime::watch::WatchReceiver;
        if !self.is_leader() {
            return None;
        }
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        let configs = metrics.membership_config.membership().get_joint_config();
        self.core.peers.rooms.refuses(self.core.node_id, configs)
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.core.room
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.core.raft
    }

    pub(crate) fn applied_index(&self) -> u64 {
        *self.core.applied.borrow()
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.core.peers
    }

    pub(crate) fn indexer(&self) -> &ReadIndexer {
        &self.indexer
    }

    pub(crate) async fn shared_index_here(&self) -> Option<u64> {
        self.core.confirmed_index_here().await
    }

    pub(crate) fn incoming(&self) -> Incoming {
        Incoming::new(self.core.data.path(), self.core.group.0)
    }

    pub(crate) fn snapshots_dir(&self) -> PathBuf {
        self.core.data.path().join("snapshots")
    }

    pub(crate) fn options(&self) -> &Options {
        &self.core.options
    }

    pub(crate) fn hooks(&self) -> &Hooks {
        &self.core.hooks
    }

    pub(crate) fn data(&self) -> &DataDir {
        &self.core.data
    }

    /// Cluster, once it is known.
    pub fn cluster_id(&self) -> Option<[u8; 16]> {
        self.core.data.identity().cluster_id
    }

    pub(crate) fn cluster_hex(&self) -> Option<String> {
        self.cluster_id().map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// True when the node holds neither log nor state.
    pub fn is_fresh(&self) -> bool {
        self.core.log.last().is_none() && self.core.state.applied().position.is_none()
    }

    pub(crate) fn matched_index(&self, node: u64) -> Option<u64> {
        self.status().matched.get(&node).copied()
    }

    /// A leader's heartbeat of this term was accepted.
    pub(crate) fn heard_leader(&self, term: u64) {
        self.core.heard_term.fetch_max(term, Ordering::AcqRel);
        *self.core.heard_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// When a leader's heartbeat was last accepted here.
    pub(crate) fn heard_leader_at(&self) -> Option<Instant> {
        *self.core.heard_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This log holds all that was ever committed: a leader that was heard has committed an entry of its own term, and
    /// with it everything before, and this log has that entry. The stored vote alone may name a leader long dead.
    pub(crate) fn is_filled_up(&self) -> bool {
        use openraft::async_runtime::watch::WatchReceiver;
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = self.core.heard_term.load(Ordering::Acquire);
        let committed = metrics.local_committed.as_ref();
        committed.is_some_and(|committed| {
            // What is not fsynced may be lost again.
            self.core.log.durable_index() >= committed.index()
                && committed.committed_leader_id().term == heard
                && heard == metrics.current_term
                && committed.index() >= self.core.recover_to.load(Ordering::Acquire)
        })
    }

    /// A peer called another data directory under this node's id.
    pub(crate) fn note_displaced(&self) {
        if !self.core.displaced.swap(true, Ordering::AcqRel) {
            tracing::error!(
                event = "identity.mismatch",
                node = self.core.node_id,
                "the cluster knows this node id under another data directory; was its disk replaced? It takes no part"
            );
            (self.core.hooks.on_displaced)();
        }
    }

    /// This node was a member and is none any more: what it holds grows old.
    pub fn is_removed(&self) -> bool {
        self.core.removed.load(Ordering::Acquire)
    }

    pub(crate) fn note_removed(&self, removed: bool) {
        if self.core.removed.swap(removed, Ordering::AcqRel) != removed {
            tracing::warn!(event = "membership.removed", removed, "this node's place in the group changed");
        }
    }

    /// A peer saw this node acknowledge entries up to `index`. When its log ends before that, its disk forgot them: it votes
    /// for nobody, and leads nobody, until a leader gave them back.
    pub(crate) fn was_acknowledged(&self, peer: u64, index: u64) {
        if index <= self.core.log.last().map_or(0, |last| last.index) {
            return;
        }
        let known = self.core.recover_to.fetch_max(index, Ordering::AcqRel);
        if self.core.recovering.swap(true, Ordering::AcqRel) && known >= index {
            return;
        }
        self.update_elect();
        let reason = format!("node {peer} saw this node acknowledge entry {index}");
        tracing::warn!(event = "log.recovering", reason, upto = index, "this node will not vote until caught up");
        if let Err(error) = self.core.data.set_recovering(Some(&Recovering { reason, upto: index })) {
            tracing::warn!(event = "log.recovering", %error, "a start before the end of the recovery asks the peers again");
        }
    }

    /// Whoever may know more of this log than its disk was heard, or is not to be waited for.
    pub(crate) fn witnesses_answered(&self) {
        self.core.asking_witnesses.store(false, Ordering::Release);
        self.update_elect();
    }

    /// Whether this node may elect others, and be elected.
    pub(crate) fn may_vote(&self) -> bool {
        self.core.may_vote()
    }

    pub(crate) fn end_recovery(&self) {
        if let Err(error) = self.core.data.set_recovering(None) {
            tracing::warn!(event = "log.recovered", %error, "the next start will recover once more");
        }
        self.core.recovering.store(false, Ordering::Release);
        self.update_elect();
    }

    /// While set, this node does not stand for election, and takes no leadership that is handed to it. It votes.
    pub fn set_drained(&self, drained: bool) {
        self.core.drained.store(drained, Ordering::Release);
        self.update_elect();
    }

    /// An operator wants this node not to lead.
    pub fn is_drained(&self) -> bool {
        self.core.drained.load(Ordering::Acquire)
    }

    /// The time of the group; `None` without a quorum of clocks.
    pub fn group_time(&self) -> Option<Millis> {
        self.core.peers.clocks.median(self.core.node_id)
    }

    /// The group's time as far as this node can tell: never before the log's.
    pub fn group_now(&self) -> Millis {
        self.group_time().unwrap_or_default().max(self.sys().now)
    }

    /// The leader's stamp. Until a quorum of clocks was heard, the log's time stands still; `None`: it has none yet, and
    /// must not begin with one node's.
    pub(crate) fn stamp(&self) -> Option<Millis> {
        let has_time = self.sys().now > Millis(0);
        self.group_time().or(has_time.then_some(Millis(0)))
    }
}
