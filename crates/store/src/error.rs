//! What can go wrong with a node's disk. Local to the node: never part of a replicated outcome.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_wire::DecodeError;

use crate::stall;

/// A failure of this node's storage. Its text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}; check that the disk is mounted, writable and has free space")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// RocksDB refused.
    #[error(
        "RocksDB cannot {action} {path}: {source}; check free space and the disk's health (df, dmesg, smartctl), then restart the node"
    )]
    Rocks {
        /// What was tried.
        action: &'static str,
        /// Database.
        path: PathBuf,
        /// What it holds.
        part: Part,
        /// Why not.
        source: rocksdb::Error,
    },
    /// Bytes on disk are not what was written.
    #[error("{what} in {path} is corrupt: {reason}; {}", part.hint())]
    Corrupt {
        /// What was read.
        what: String,
        /// File or database.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What it belongs to, and with it what to do.
        part: Part,
    },
    /// The directory, checkpoint or call does not belong here.
    #[error("{what}; {hint}")]
    Mismatch {
        /// What does not fit.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// Another process holds the data directory.
    #[error("{path} is in use by another process; stop that process first (see `fuser {path}`)")]
    Locked {
        /// Lock file.
        path: PathBuf,
    },
    /// The log does not reach back that far any more.
    #[error("log entry {wanted} is purged (the log begins after {purged}); read it from a snapshot or a peer")]
    Purged {
        /// Entry asked for.
        wanted: u64,
        /// Last purged entry.
        purged: u64,
    },
    /// An earlier failure stopped this store.
    #[error("the store stopped after an earlier failure: {0}; restart the node")]
    Halted(String),
}

/// What of a data directory bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The Raft log.
    Log,
    /// The state of a group, checkpoints of it included.
    State,
    /// A file that says what the directory is.
    Marker,
}

impl Part {
    /// What to do when it is damaged.
    fn hint(self) -> &'static str {
        match self {
            Self::Log => "move the node's raft/ to quarantine/ and restart: the node recovers its log from its peers",
            Self::State => HINT_STATE,
            Self::Marker => {
                "restore the file from a copy of this directory; without one this node's disk counts as lost"
            }
        }
    }
}

/// What to do about damaged state.
pub(crate) const HINT_STATE: &str =
    "reinstall this node's state from a peer: move its state/ to quarantine/ and restart";
/// What to do about a misuse.
pub(crate) const HINT_DEFECT: &str = "this is a defect: keep the log and report it";

impl StoreError {
    /// The disk, or the quota on it, is full. RocksDB passes only the system's text on.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Rocks { source, .. } => source.as_ref().contains("No space left on device"),
            _ => false,
        }
    }

    /// RocksDB holds writes back until it has flushed or compacted, and was asked not to wait.
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self, Self::Rocks { source, .. } if stall::is_stalled(source))
    }

    /// Wraps an I/O error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Wraps an error of the RocksDB that holds `part`. Whoever opened it knows; its path tells nothing, an operator may
    /// have named any folder above it.
    pub(crate) fn rocks(part: Part, action: &'static str, path: &Path) -> impl FnOnce(rocksdb::Error) -> Self {
        move |source| match source.kind() {
            rocksdb::ErrorKind::Corruption => Self::Corrupt {
                what: "a database file".into(),
                path: path.to_owned(),
                reason: source.into_string(),
                part,
            },
            _ => Self::Rocks { action, path: path.to_owned(), part, source },
        }
    }

    /// A row of the state that does not decode.
    pub(crate) fn row(family: &'static str, path: &Path) -> impl FnOnce(DecodeError) -> Self {
        move |error| Self::Corrupt {
            what: format!("a row of `{family}` ({})", error.what),
            path: path.to_owned(),
            reason: error.reason,
            part: Part::State,
        }
    }

    /// The rows of the state are damaged, not the log nor a marker: another copy of them makes it good.
    pub fn is_damaged_state(&self) -> bool {
        matches!(self, Self::Corrupt { part: Part::State, .. })
    }

    /// As [`StoreError::is_damaged_state`], or the disk does not give the rows back. Not so for what this process broke or
    /// lacks, which says nothing of them.
    pub fn is_unreadable_state(&self) -> bool {
        match self {
            Self::Rocks { source, part: Part::State, .. } => {
                let lacks = ["Too many open files", "Cannot allocate memory"];
                source.kind() == rocksdb::ErrorKind::IOError && !lacks.iter().any(|text| source.as_ref().contains(text))
            }
            other => other.is_damaged_state(),
        }
    }

    /// A call that breaks a rule of this crate.
    pub(crate) fn defect(what: impl Into<String>) -> Self {
        Self::Mismatch { what: what.into(), hint: HINT_DEFECT }
    }
}
