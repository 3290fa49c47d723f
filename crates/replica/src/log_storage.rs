//! openraft's log storage over `store::LogStore`.
//!
//! Invariants: entries are readable when `append` returns; its callback fires only after the fsync; votes are fsynced
//! before `save_vote` returns and ordered after earlier appends, because both go through the one flush queue.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use holdfast_store::{LogStore, StoreError, StoredEntry};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use crate::types::{Entry, LogId, TypeConfig, Vote, log_id_of, position_of, vote_of, vote_record};

/// Bytes read for one replication request or apply batch.
const READ_BYTES_MAX: usize = 1 << 20;

/// The log, as openraft wants it.
#[derive(Clone)]
pub struct LogAdapter {
    log: LogStore,
}

impl LogAdapter {
    /// Wraps the log.
    pub fn new(log: LogStore) -> Self {
        Self { log }
    }
}

pub fn io_error(error: StoreError) -> io::Error {
    io::Error::other(error)
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn decoded(entries: Vec<StoredEntry>) -> io::Result<Vec<Entry>> {
    entries.into_iter().map(|entry| Entry::decode(entry.bytes).map_err(io::Error::other)).collect()
}

impl RaftLogReader<TypeConfig> for LogAdapter {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = bounds(&range);
        let start = start.max(self.log.first_index());
        decoded(self.log.read(start, end, usize::MAX).map_err(io_error)?)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.vote().map(vote_of))
    }

    /// For replication: the first entry is `start`, or there is none. openraft sends what it gets behind the entry before
    /// `start` and looks at it in debug builds only (0.10.0-alpha.37, `StreamState::next_request`); and it may still read
    /// for a stream that broke after it let go of what that stream was to send, and purged it. Without any entry the stream
    /// ends (see `transport::client`), and the peer gets a snapshot.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        match self.log.read(start, end, READ_BYTES_MAX) {
            Ok(entries) => decoded(entries),
            Err(StoreError::Purged { .. }) => Ok(Vec::new()),
            Err(error) => Err(io_error(error)),
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogAdapter {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(log_id_of),
            last_log_id: self.log.last().map(log_id_of),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        self.log.save_vote(vote_record(vote), Box::new(move |result| drop(tx.send(result))));
        rx.await.map_err(|_| io::Error::other("the log's flush thread ended"))?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(position_of));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        // An unsynced hint: it may be ahead of a log that lost its tail.
        let last = self.log.last();
        Ok(self.log.committed().filter(|committed| Some(*committed) <= last).map(log_id_of))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(Entry::into_stored).collect();
        self.log.append(entries, Box::new(move |result| callback.io_completed(result))).map_err(io_error)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        // Nothing lies after a position beyond the end; the log itself takes such a call for a mistake.
        if last.as_ref().map(|last| last.index) > self.log.last().map(|last| last.index) {
            return Ok(());
        }
        self.log.truncate_after(last.as_ref().map(position_of)).map_err(io_error)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(position_of(&upto)).map_err(io_error)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::id::GroupId;
    use holdfast_store::{DataDir, LogOptions, LogPosition};
    use openraft::entry::RaftEntry;

    use super::*;

    #[tokio::test]
    async fn what_is_read_for_a_peer_begins_where_it_was_asked_to_or_not_at_all() {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = DataDir::open_or_create(dir.path(), 1, [7; 16]).expect("a data directory");
        let (log, _) = LogStore::open(&data, GroupId(0), LogOptions::default()).expect("a log");
        let at = |index| LogPosition { term: 1, node: 1, index };
        let entries = (0..100).map(|index| Entry::new_blank(log_id_of(at(index))).into_stored()).collect();
        log.append(entries, Box::new(drop)).expect("appended");
        let mut reader = LogAdapter::new(log.clone());
        let first = |read: io::Result<Vec<Entry>>| read.expect("read").first().map(|entry| entry.log_id().index());
        assert_eq!(first(reader.limited_get_log_entries(30, 80).await), Some(30));
        log.purge(at(49)).expect("purged");
        // A peer would take entry 50 for the one that follows 29.
        assert_eq!(first(reader.limited_get_log_entries(30, 80).await), None);
        assert_eq!(first(reader.limited_get_log_entries(50, 80).await), Some(50));
        assert_eq!(first(reader.try_get_log_entries(30..80).await), Some(50), "what there is of it");
    }
}
