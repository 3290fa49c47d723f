//! What can go wrong. Each error names the object or path, the reason, and what to do.

use std::path::PathBuf;

use holdfast_store::{LogPosition, StoreError};

use crate::destination::DestinationConfig;
use crate::gap::Gap;
use crate::layout::LineageId;

/// A failure of shipping, verifying or restoring.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The configuration names a destination that cannot be used.
    #[error("destination {name:?} ({url}): {reason}")]
    BadDestination {
        /// Name in the configuration.
        name: String,
        /// URL in the configuration.
        url: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The destination failed; the object may or may not be there. Trying again is safe.
    #[error("{operation} {object}: {reason}; the operation may be tried again")]
    Destination {
        /// Object, or prefix of a list.
        object: String,
        /// What was tried.
        operation: &'static str,
        /// What became of it; of a server's answer only status and code.
        reason: String,
    },
    /// The destination refuses the credentials, or what they may do.
    #[error(
        "{operation} {object} at {url}: {reason}: not allowed; give credentials that may create, read and list there"
    )]
    Forbidden {
        /// URL of the destination.
        url: String,
        /// Object, or prefix of a list.
        object: String,
        /// What was tried.
        operation: &'static str,
        /// Status and code.
        reason: String,
    },
    /// Somebody who prunes must be allowed to delete; nobody else should be.
    #[error(
        "{operation} {object} at {url}: {reason}: not allowed, and no lock holds it; prune with credentials of its own, that may \
         list and delete versions of objects"
    )]
    MayNotDelete {
        /// URL of the destination.
        url: String,
        /// Object.
        object: String,
        /// What was tried.
        operation: &'static str,
        /// Status and code.
        reason: String,
    },
    /// The bucket or container is not there.
    #[error("{url}: {reason}: there is no such bucket; create it, or correct the URL")]
    NoBucket {
        /// URL of the destination.
        url: String,
        /// Status and code.
        reason: String,
    },
    /// The destination did not answer in time. Trying again is safe.
    #[error("{operation} {object}: no answer within {seconds} s; the operation may be tried again")]
    Timeout {
        /// Object, or prefix of a list.
        object: String,
        /// What was tried.
        operation: &'static str,
        /// Deadline.
        seconds: u64,
    },
    /// An object is not what it should be.
    #[error("{object} is damaged: {reason}; take it from another destination, or restore to a point before it")]
    Corrupt {
        /// Object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An object is not there.
    #[error("{object} is missing: {reason}; take it from another destination, or restore to a point before it")]
    Missing {
        /// Object.
        object: String,
        /// Why it should be there.
        reason: String,
    },
    /// An object is encrypted, and what was given does not open it.
    #[error(
        "{object} is encrypted and cannot be opened: {reason}; give --key-file with the cluster's secret, or --identity \
         with that of a recipient of {keys_object}"
    )]
    NoKey {
        /// Object.
        object: String,
        /// The KEYS.age that holds its key.
        keys_object: String,
        /// Why what was given is not enough.
        reason: String,
    },
    /// A key file, an identity or a recipient cannot be used.
    #[error("{what}: {reason}")]
    Keys {
        /// Which.
        what: String,
        /// Why, and what to do.
        reason: String,
    },
    /// An object of another format.
    #[error("{object} has format {format}, this build reads format {known}; use a build of the release that wrote it")]
    OtherFormat {
        /// Object.
        object: String,
        /// Its format.
        format: u16,
        /// Format of this build.
        known: u16,
    },
    /// The archive holds another history at a position than this node: shipping, purging and writes must stop.
    #[error(
        "LINEAGE_FORK at index {} (term {}, node {}): {object} holds another history: {reason}; only one of the two \
         can go on: open a new incarnation from it", position.index, position.term, position.node
    )]
    LineageFork {
        /// Where, as this node has it.
        position: LogPosition,
        /// Object that differs.
        object: String,
        /// How it differs.
        reason: String,
    },
    /// The archive is ahead of what this node knows to be committed, and that is all that is known.
    #[error(
        "{object} holds entry {index}, beyond all that this node applied, and no quorum confirms that it leads; \
         tried again"
    )]
    Unconfirmed {
        /// URL of the destination.
        object: String,
        /// Last entry there.
        index: u64,
    },
    /// The log was ended here by a recovery: another history goes on.
    #[error(
        "{object}: this history was ended before index {index} by a recovery, and {successor} goes on; stop this \
         cluster, and keep its disks until nobody misses anything"
    )]
    Fenced {
        /// Object that ends it.
        object: String,
        /// The entry that will never come.
        index: u64,
        /// The history that goes on.
        successor: LineageId,
    },
    /// The caller's entries or rows are not what the format allows; nothing was written.
    #[error("not shipped: {reason}; this is a defect, or the local disk is damaged")]
    Refused {
        /// What is wrong.
        reason: String,
    },
    /// A gap lies where a segment was looked for.
    #[error(
        "{object}: {}; a snapshot at {} or later stands in for them",
        never_shipped(gap), gap.last.index
    )]
    NotShipped {
        /// Object.
        object: String,
        /// What it says.
        gap: Box<Gap>,
    },
    /// Entries that are to be shipped are in this node's log no more.
    #[error("entry {index} is not in this node's log any more{}", match unanswered {
        Some(who) => format!(", and who may have it does not answer: {who}"),
        None => ", nor in that of any other".to_owned(),
    })]
    LogGone {
        /// The first of them.
        index: u64,
        /// Nodes that may have them and did not say; `None` = all said that they do not.
        unanswered: Option<String>,
    },
    /// Nothing is shipped as things stand; it is tried again.
    #[error("not shipped now: {reason}")]
    NotNow {
        /// What stands in the way.
        reason: String,
    },
    /// The archive does not say what to restore.
    #[error("{destination}: {reason}")]
    NoChoice {
        /// URL.
        destination: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A directory that a restore may not fill.
    #[error("{}: {reason}", path.display())]
    Target {
        /// Directory.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A file of a data directory could not be read or written.
    #[error("{operation} {}: {source}", path.display())]
    Disk {
        /// File or directory.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store of a data directory or checkpoint failed.
    #[error("{}: {source}", path.display())]
    Store {
        /// Data directory or checkpoint.
        path: PathBuf,
        /// What the store said.
        source: StoreError,
    },
    /// Work was given up because another part of it failed or the process ends.
    #[error("{what} was stopped before its end; run it again")]
    Stopped {
        /// Work.
        what: &'static str,
    },
}

fn never_shipped(gap: &Gap) -> String {
    format!("entries {} to {} were never shipped here: no node had them any more", gap.first, gap.last.index)
}

impl ArchiveError {
    /// The archive's bytes are wrong, missing or of another history: no retry helps.
    pub fn is_integrity(&self) -> bool {
        match self {
            Self::Corrupt { .. } | Self::Missing { .. } | Self::NotShipped { .. } | Self::LineageFork { .. } => true,
            Self::BadDestination { .. }
            | Self::Destination { .. }
            | Self::Forbidden { .. }
            | Self::MayNotDelete { .. }
            | Self::NoBucket { .. }
            | Self::Timeout { .. }
            | Self::NoKey { .. }
            | Self::Keys { .. }
            | Self::OtherFormat { .. }
            | Self::Unconfirmed { .. }
            | Self::Fenced { .. }
            | Self::LogGone { .. }
            | Self::NotNow { .. }
            | Self::Refused { .. }
            | Self::NoChoice { .. }
            | Self::Target { .. }
            | Self::Disk { .. }
            | Self::Store { .. }
            | Self::Stopped { .. } => false,
        }
    }

    /// The object that is wrong and why, if it is the archive that is wrong and not the way to it.
    pub fn fault(&self) -> Option<(String, String)> {
        match self {
            Self::Corrupt { object, reason } | Self::Missing { object, reason } => {
                Some((object.clone(), reason.clone()))
            }
            Self::NotShipped { object, gap } => Some((object.clone(), never_shipped(gap))),
            Self::OtherFormat { object, .. } => Some((object.clone(), self.to_string())),
            _ => None,
        }
    }

    /// Trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Destination { .. } | Self::Timeout { .. } | Self::Unconfirmed { .. } | Self::Stopped { .. }
        )
    }

    pub(crate) fn bad_destination(config: &DestinationConfig, reason: impl std::fmt::Display) -> Self {
        Self::BadDestination { name: config.name.clone(), url: config.url.clone(), reason: reason.to_string() }
    }

    pub(crate) fn corrupt(object: &str, reason: impl std::fmt::Display) -> Self {
        Self::Corrupt { object: object.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn missing(object: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Missing { object: object.into(), reason: reason.to_string() }
    }

    pub(crate) fn refused(reason: impl std::fmt::Display) -> Self {
        Self::Refused { reason: reason.to_string() }
    }

    /// For `map_err` on calls of the store.
    pub(crate) fn store(path: &std::path::Path) -> impl FnOnce(StoreError) -> Self {
        let path = path.to_owned();
        move |source| Self::Store { path, source }
    }

    /// For `map_err` on calls of the file system.
    pub(crate) fn disk(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { path, operation, source }
    }
}
