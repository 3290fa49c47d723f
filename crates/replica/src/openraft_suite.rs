//! openraft's own suite for storages, run on ours: real directories, a real log with its flush thread, a real state.
//!
//! Three things differ between the suite and a running node, and only here is it bent to fit:
//! - the suite begins logs at index 1 or 2, a cluster begins its log at 0 (with the membership of `initialize`) and the
//!   log refuses a hole. [`SuiteLog`] lays blank entries under the first;
//! - it applies entries with gaps between them, which a node refuses. [`SuiteState`] fills them with blank entries;
//! - what it applies it never appended, and a node's state would wait for the fsync. Here the watermark is at its end
//!   from the start.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use holdfast_model::id::GroupId;
use holdfast_store::{DataDir, LogOptions, LogPosition, LogStore, Room, StateStore};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use tokio::sync::watch;

use crate::handle::Hooks;
use crate::integrity::{Integrity, IntegrityOptions};
use crate::log_storage::LogAdapter;
use crate::snapshot::SnapshotDir;
use crate::state_machine::{CheckpointBuilder, SnapshotMetaOf, SnapshotOf, StateAdapter};
use crate::types::{Entry, LogId, StoredMembership, TypeConfig, Vote, log_id_of, position_of};

const GROUP: GroupId = GroupId(0);

/// The log, with blank entries below the suite's first one.
struct SuiteLog {
    log: LogStore,
    adapter: LogAdapter,
}

impl SuiteLog {
    /// Blank entries of the same leader below the first of `entries`, when the log is empty.
    fn fillers(&self, entries: &[Entry]) -> Vec<Entry> {
        let Some(first) = entries.first().filter(|_| self.log.last().is_none()) else { return Vec::new() };
        let first = position_of(&first.log_id());
        (0..first.index).map(|index| Entry::new_blank(log_id_of(LogPosition { index, ..first }))).collect()
    }
}

impl RaftLogReader<TypeConfig> for SuiteLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.adapter.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.adapter.read_vote().await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.adapter.limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<TypeConfig> for SuiteLog {
    type LogReader = LogAdapter;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.adapter.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogAdapter {
        self.adapter.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.adapter.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.adapter.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.adapter.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let filled = self.fillers(&entries).into_iter().chain(entries);
        self.adapter.append(filled.collect::<Vec<_>>(), callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.adapter.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.adapter.purge(upto).await
    }
}

/// The state, with blank entries in the gaps of what the suite applies.
struct SuiteState(StateAdapter);

impl RaftStateMachine<TypeConfig> for SuiteState {
    type SnapshotData = SnapshotDir;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.0.applied_state().await
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut next = self.0.applied_state().await?.0.map(|applied| applied.index + 1);
        let filled = entries.flat_map(move |item| {
            let last = item.as_ref().ok().map(|(entry, _)| position_of(&entry.log_id()));
            let gap = last.map_or(0..0, |last| next.unwrap_or(last.index)..last.index);
            next = last.map(|last| last.index + 1);
            let blanks = gap.filter_map(move |index| last.map(|last| log_id_of(LogPosition { index, ..last })));
            let blanks: Vec<_> = blanks.map(|id| Ok((Entry::new_blank(id), None))).collect();
            stream::iter(blanks.into_iter().chain([item]))
        });
        self.0.apply(filled).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<CheckpointBuilder> {
        self.0.try_create_snapshot_builder(force).await
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf, snapshot: SnapshotDir) -> io::Result<()> {
        self.0.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        self.0.get_current_snapshot().await
    }
}

/// What a store of the suite lives in; dropped after it.
struct Home {
    _durable: watch::Sender<u64>,
    _applied: watch::Receiver<u64>,
    _data: DataDir,
    _dir: tempfile::TempDir,
}

struct Builder;

impl StoreBuilder<TypeConfig, SuiteLog, SuiteState, Home> for Builder {
    async fn build(&self) -> Result<(Home, SuiteLog, SuiteState), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a folder");
        let data = DataDir::open_or_create(dir.path(), 1, [7; 16]).expect("a data directory");
        let (log, _report) = LogStore::open(&data, GROUP, LogOptions::default()).expect("a log");
        let state = StateStore::open(&data, GROUP).expect("a state");
        let hooks = Hooks {
            on_displaced: Box::new(|| {}),
            on_touched: Box::new(|_| {}),
            on_barrier: Box::new(|_, _| {}),
            on_installed: Box::new(|| {}),
            on_fatal: Arc::new(|reason| panic!("{reason}")),
        };
        let (durable, durable_seen) = watch::channel(u64::MAX);
        let (applied_tx, applied) = watch::channel(0);
        let snapshots = data.path().join("snapshots");
        let options = IntegrityOptions { interval: Duration::from_secs(60), scrub_bytes_per_second: 1 << 20 };
        let room = Arc::new(Room::open(data.path(), 0, 0).expect("room"));
        let installation = state.installation();
        let machine = StateAdapter::new(
            state,
            log.clone(),
            snapshots,
            durable_seen,
            applied_tx,
            Arc::new(hooks),
            Arc::default(),
            Integrity::new(options, installation, 0, false),
            room,
        );
        let home = Home { _durable: durable, _applied: applied, _data: data, _dir: dir };
        Ok((home, SuiteLog { adapter: LogAdapter::new(log.clone()), log }, SuiteState(machine)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_holds() {
    Suite::test_all(Builder).await.expect("the suite holds");
}
