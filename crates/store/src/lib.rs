//! Bytes on disk: the Raft log, the replicated state, their checkpoints and the identity of a data directory.
//!
//! Knows: RocksDB, files, fsync, key and value layouts, which loss each of them can detect.
//! Never knows: Raft's rules, sockets, async, clocks, what a command means. Everything here blocks; callers keep it off
//! async workers. Disk data that does not decode is a [`StoreError`], never a panic.

mod apply;
mod batch;
mod changes;
mod checkpoint;
mod error;
mod files;
mod generation;
pub mod keyspace;
mod load;
mod log;
mod marker;
mod node_key;
mod options;
pub mod planted;
mod room;
mod scan;
mod scrub;
mod stall;
mod state;
mod users;
mod view;

pub use apply::{AppliedEntry, apply_entry};
pub use batch::ApplyBatch;
pub use changes::{Change, Changes, FullChanges};
pub use checkpoint::{CheckpointInfo, CheckpointStore, StateScan, forget_aside, open_checkpoint};
pub use error::{Part, StoreError};
pub use load::{RawRow, StateLoader};
pub use log::{
    Done, FSYNC_BUCKETS_MICROS, LogOptions, LogPosition, LogReport, LogStats, LogStore, OnFatal, StoredEntry, TornTail,
    VoteRecord,
};
pub use marker::{DataDir, FORMAT_VERSION, Identity, Recovering};
pub use room::{Left, Marks, Room, Space};
pub use scrub::{ScrubFault, ScrubReport};
pub use state::{Applied, StateStats, StateStore};
pub use view::{ListPage, Listed, StoredRecord, View};
