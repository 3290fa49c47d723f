//! openraft's state machine over `store::StateStore`.
//!
//! Invariants: entry I is written only when this node's log is fsynced up to I (the state has no WAL of its own); as
//! many entries as are at hand go into one write batch; a batch ends at a snapshot barrier; every responder is
//! answered after its batch is written.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::{FutureExt, Stream, StreamExt};
use holdfast_store::{AppliedEntry, ApplyBatch, LogStore, Room, StateStore, StoreError, StoredEntry, apply_entry};
use openraft::entry::RaftEntry;
use openraft::storage::{
    ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::watch;

use crate::handle::Hooks;
use crate::integrity::Integrity;
use crate::log_storage::io_error;
use crate::snapshot::SnapshotDir;
use crate::types::{
    LeaderId, LogId, Member, Reply, StoredMembership, TypeConfig, log_id_of, position_of, stored_membership_decode,
    stored_membership_to,
};

pub(crate) type SnapshotOf = Snapshot<LeaderId, u64, Member, SnapshotDir>;
pub(crate) type SnapshotMetaOf = SnapshotMeta<LeaderId, u64, Member>;

/// Entries in one write batch.
const APPLY_ENTRIES_MAX: usize = 512;
/// Bytes of entries in one write batch.
const APPLY_BYTES_MAX: usize = 4 << 20;

/// The state, as openraft wants it.
pub struct StateAdapter {
    state: StateStore,
    log: LogStore,
    snapshots: PathBuf,
    durable: watch::Receiver<u64>,
    applied: watch::Sender<u64>,
    hooks: Arc<Hooks>,
    failure: StoreFailure,
    integrity: Arc<Integrity>,
    room: Arc<Room>,
}

/// The first failure of the disk while openraft starts: openraft itself keeps only its text.
pub(crate) type StoreFailure = Arc<Mutex<Option<StoreError>>>;

impl StateAdapter {
    /// Wraps the state. `durable` is the log's fsync watermark.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the node that the state machine joins")]
    pub fn new(
        state: StateStore,
        log: LogStore,
        snapshots: PathBuf,
        durable: watch::Receiver<u64>,
        applied: watch::Sender<u64>,
        hooks: Arc<Hooks>,
        failure: StoreFailure,
        integrity: Arc<Integrity>,
        room: Arc<Room>,
    ) -> Self {
        Self { state, log, snapshots, durable, applied, hooks, failure, integrity, room }
    }

    async fn apply_batch(&mut self, items: Vec<(StoredEntry, Option<ApplyResponder<TypeConfig>>)>) -> io::Result<()> {
        let Some(last) = items.last().map(|(entry, _)| entry.position.index) else { return Ok(()) };
        if self.durable.wait_for(|durable| *durable >= last).await.is_err() {
            return Err(io::Error::other("the log's flush thread ended"));
        }
        let _gate = self.integrity.gate.lock().await;
        if self.integrity.is_fenced() {
            // Applied from the log once the state is reinstalled. Whoever waits for an outcome is told that it is unknown.
            self.integrity.handed_over(last);
            return Ok(());
        }
        match self.write(items) {
            Ok(()) => {
                self.integrity.handed_over(last);
                Ok(())
            }
            // Rows that cannot be read: nothing was written, the entry itself is sound, and another state is to be had.
            Err(error) if error.is_damaged_state() && self.integrity.met_damage(error.to_string()) => {
                self.integrity.handed_over(last);
                Ok(())
            }
            Err(error) => Err(io_error(error)),
        }
    }

    fn write(&self, items: Vec<(StoredEntry, Option<ApplyResponder<TypeConfig>>)>) -> Result<(), StoreError> {
        let Some(last) = items.last().map(|(entry, _)| entry.position.index) else { return Ok(()) };
        let (entries, responders): (Vec<_>, Vec<_>) = items.into_iter().unzip();
        let (batch, all_done) = match self.prepare(&entries) {
            // What was misread once may read well: a false alarm must not cost this node its state.
            Err(error) if error.is_damaged_state() => self.prepare(&entries)?,
            prepared => prepared?,
        };
        let mut answers = Vec::with_capacity(entries.len());
        let mut touched = Vec::new();
        let mut barrier = None;
        for ((entry, responder), done) in entries.iter().zip(responders).zip(all_done) {
            let index = entry.position.index;
            touched.extend(done.touched);
            if done.barrier {
                barrier = Some(index);
            }
            if let Some(responder) = responder {
                answers.push((responder, Reply { outcomes: done.outcomes, index }));
            }
        }
        self.state.commit_in(&self.room, batch)?;
        self.integrity.exams.applied(last, &self.state);
        if let Some(index) = barrier {
            // Hard links of the state right after the barrier; shipped by whoever is asked to.
            (self.hooks.on_barrier)(index, &self.state);
        }
        self.applied.send_replace(last);
        for (responder, reply) in answers {
            responder.send(reply);
        }
        (self.hooks.on_touched)(&touched);
        Ok(())
    }
}

impl StateAdapter {
    /// What entries do, without doing it.
    fn prepare(&self, entries: &[StoredEntry]) -> Result<(ApplyBatch, Vec<AppliedEntry>), StoreError> {
        let mut batch = self.state.begin();
        let done = entries.iter().map(|entry| apply_entry(&mut batch, entry)).collect::<Result<_, _>>()?;
        Ok((batch, done))
    }
}

/// True for an entry that ends its batch.
fn is_barrier(payload: &crate::types::Payload) -> bool {
    match payload {
        EntryPayload::Normal(proposal) => holdfast_wire::log::is_snapshot_barrier(&proposal.0),
        EntryPayload::Blank | EntryPayload::Membership(_) => false,
    }
}

impl RaftStateMachine<TypeConfig> for StateAdapter {
    type SnapshotData = SnapshotDir;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.state.applied();
        let membership = stored_membership_decode(&applied.membership).map_err(io::Error::other)?;
        Ok((applied.position.map(log_id_of), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let mut items = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(item) = next.take() {
                let (entry, responder) = item?;
                let ends = is_barrier(entry.payload()) || self.integrity.exams.ends_at(entry.index());
                let stored = entry.into_stored();
                bytes += stored.bytes.len();
                items.push((stored, responder));
                if !ends && items.len() < APPLY_ENTRIES_MAX && bytes < APPLY_BYTES_MAX {
                    next = entries.next().now_or_never().flatten();
                }
            }
            self.apply_batch(items).await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<CheckpointBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        CheckpointBuilder {
            state: self.state.clone(),
            snapshots: self.snapshots.clone(),
            current: self.integrity.current.clone(),
            failure: self.failure.clone(),
            room: self.room.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf, snapshot: SnapshotDir) -> io::Result<()> {
        let state = self.state.clone();
        let log = self.log.clone();
        let path = snapshot.path().to_owned();
        let snapshots = self.snapshots.clone();
        let room = self.room.clone();
        let _gate = self.integrity.gate.lock().await;
        let installed = tokio::task::spawn_blocking(move || {
            // Flush what the log still holds before the state moves past it.
            log.flush_wal().map_err(io_error)?;
            // A failure here would end the node. The old state is kept until there is room for the new one.
            state.install_in(&room, &path).map_err(io_error)?;
            // What was received became the state itself. As a leader this node must be able to offer it on: the log
            // below is gone.
            room.retry(|| SnapshotDir::checkpoint(&state, &snapshots)).map_err(io_error)
        })
        .await
        .map_err(io::Error::other)??;
        let applied = self.state.applied();
        if applied.position != meta.last_log_id.as_ref().map(position_of) {
            return Err(io::Error::other("the installed snapshot is not the one that was announced"));
        }
        if let Some(position) = applied.position {
            self.applied.send_replace(position.index);
            self.integrity.replaced_by_leader(position.index, self.state.installation());
        }
        (self.hooks.on_installed)();
        if let Ok(mut current) = self.integrity.current.lock() {
            *current = Some(installed);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        let dir = self.integrity.current.lock().ok().and_then(|current| current.clone());
        dir.map(snapshot_of).transpose()
    }
}

fn snapshot_of(dir: SnapshotDir) -> io::Result<SnapshotOf> {
    let applied = dir.applied();
    let last_membership = stored_membership_decode(&applied.membership).map_err(io::Error::other)?;
    Ok(Snapshot { meta: SnapshotMeta { last_log_id: applied.position.map(log_id_of), last_membership }, snapshot: dir })
}

/// Takes a checkpoint of the state. The index is read from inside the checkpoint, never before it.
pub struct CheckpointBuilder {
    state: StateStore,
    snapshots: PathBuf,
    current: Arc<Mutex<Option<SnapshotDir>>>,
    failure: StoreFailure,
    room: Arc<Room>,
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointBuilder {
    type SnapshotData = SnapshotDir;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let state = self.state.clone();
        let snapshots = self.snapshots.clone();
        let room = self.room.clone();
        // A full disk is waited out, beside everything else: a failure here would end the node.
        let taken = move || room.retry(|| SnapshotDir::checkpoint(&state, &snapshots));
        let dir = tokio::task::spawn_blocking(taken)
            .await
            .map_err(io::Error::other)?
            .map_err(|error| self.remember(error))?;
        if let Ok(mut current) = self.current.lock() {
            *current = Some(dir.clone());
        }
        snapshot_of(dir)
    }
}

impl CheckpointBuilder {
    /// Keeps a failure of the disk as it is, and passes its text on.
    fn remember(&self, failure: StoreError) -> io::Error {
        let text = failure.to_string();
        if let Ok(mut kept) = self.failure.lock() {
            kept.get_or_insert(failure);
        }
        io::Error::other(text)
    }
}

/// Encoded membership of the state, for a snapshot offer.
pub fn membership_message(membership: &StoredMembership) -> holdfast_wire::internal::v1::StoredMembership {
    stored_membership_to(membership)
}
