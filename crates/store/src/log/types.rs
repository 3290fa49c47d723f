//! Values and options of the log.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::room::Room;

/// Identity of an entry. Ordered as Raft orders logs: term, node, index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Term of the leader that appended it.
    pub term: u64,
    /// That leader.
    pub node: u64,
    /// Place in the log.
    pub index: u64,
}

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VoteRecord {
    /// Term.
    pub term: u64,
    /// Candidate.
    pub node: u64,
    /// A quorum granted it.
    pub committed: bool,
}

/// An entry as stored. The log does not look into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Identity.
    pub position: LogPosition,
    /// Encoded `internal.v1.Entry`.
    pub bytes: Bytes,
}

/// Called once with the end of an fsync.
pub type Done = Box<dyn FnOnce(Result<(), io::Error>) + Send>;

/// Called when the log cannot go on. It should end the process.
pub type OnFatal = Box<dyn Fn(String) + Send + Sync>;

/// How to open a log.
pub struct LogOptions {
    /// Directory of the floor file, best on another device; `None` = the data directory.
    pub floor_dir: Option<PathBuf>,
    /// Bound of recent entries in memory.
    pub cache_bytes_max: usize,
    /// Bytes of the log in one file; `None` = as it fits the disk, 2 to 64 MiB.
    pub segment_bytes: Option<u32>,
    /// Room to wait for before anything is written; `None` = what the disk refuses is an error at once.
    pub room: Option<Arc<Room>>,
    /// What to do when an fsync fails.
    pub on_fatal: OnFatal,
    /// Hears of a write that found no room, and is done again once there is some.
    pub on_waited: Arc<dyn Fn(String) + Send + Sync>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            floor_dir: None,
            cache_bytes_max: 64 << 20,
            segment_bytes: None,
            room: None,
            on_fatal: Box::new(|reason| {
                eprintln!("holdfast: the log cannot go on: {reason}");
                std::process::abort();
            }),
            on_waited: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for LogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogOptions")
            .field("floor_dir", &self.floor_dir)
            .field("cache_bytes_max", &self.cache_bytes_max)
            .finish_non_exhaustive()
    }
}

/// What was cut off the end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub path: PathBuf,
    /// Bytes that are left.
    pub kept: u64,
    /// Bytes that were cut off.
    pub cut: u64,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogReport {
    /// The log ends below its floor or was broken: why. The node must not vote until it is replicated past `floor`.
    pub recovering: Option<String>,
    /// What the node had fsynced before, as far as it is known: recovered once `last >= floor`.
    pub floor: Option<LogPosition>,
    /// First entry that was cut off because it, or its link to the one before, is broken.
    pub truncated_from: Option<u64>,
    /// A power cut had torn the last write, which no fsync covered; the segment was cut there.
    pub torn: Option<TornTail>,
    /// Entries in the log now.
    pub entries: u64,
    /// Copies of segments that were damaged, or a whole log of no use, lie here.
    pub quarantined: Option<PathBuf>,
    /// Where a floor file was made beside a log with entries: it had been removed, or `floor_dir` was changed.
    pub floor_missing: Option<PathBuf>,
    /// A floor file with a slot that is neither empty nor whole, torn by a crash or damaged by its disk; the other one was
    /// used.
    pub floor_spoilt: Option<PathBuf>,
}

/// Upper bounds of the fsync histogram, in microseconds; one more bucket follows for what is slower.
pub const FSYNC_BUCKETS_MICROS: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000];

/// Figures of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogStats {
    /// Fsyncs so far.
    pub fsyncs: u64,
    /// Time spent in them.
    pub fsync_nanos_total: u64,
    /// Fsyncs by duration, see [`FSYNC_BUCKETS_MICROS`]; not cumulative.
    pub fsync_buckets: [u64; FSYNC_BUCKETS_MICROS.len() + 1],
    /// Jobs that those fsyncs covered: divided by `fsyncs`, the size of a group commit.
    pub jobs: u64,
    /// Jobs waiting.
    pub queue_len: u64,
    /// Writes of the floor.
    pub floor_writes: u64,
    /// Bytes that wait for the next fsync.
    pub unsynced_bytes: u64,
    /// Bytes of recent entries in memory.
    pub cache_bytes: u64,
    /// Recent entries in memory.
    pub cache_entries: u64,
    /// Entries in the log.
    pub entries: u64,
}
