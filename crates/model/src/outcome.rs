//! Outcomes: the deterministic answer of a command, equal on every replica.
//!
//! A `Rejection` is part of the replicated history; a failure of one node (a disk, a corrupt value) is never one.

use crate::id::{ContentHash, Version};

/// Answer of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A batch took effect (or had before: `replayed`).
    Written(Receipt),
    /// A command other than a write took effect.
    Done,
    /// Nothing changed, for this reason.
    Rejected(Rejection),
}

/// What a committed batch did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The user's version after the batch: new if anything changed, else the head.
    pub version: Version,
    /// The first outcome of this request id is repeated.
    pub replayed: bool,
    /// Usage after the batch.
    pub usage: Usage,
    /// One per mutation, in order.
    pub results: Vec<MutationResult>,
    /// Log index at which the batch took effect; the same on a replay.
    pub commit_index: u64,
}

/// Outcome of one mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MutationResult {
    /// False when the content was identical already.
    pub changed: bool,
    /// Version of the record now; 0 = never existed.
    pub version: Version,
}

/// Usage of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Payload bytes of live records.
    pub used_bytes: u64,
    /// Live records.
    pub record_count: u64,
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// Guards failed; at most 32 are named. The head is given when `if_head` failed.
    VersionMismatch {
        /// Failed guards of mutations.
        conflicts: Vec<Conflict>,
        /// Head of the user, when the whole-user guard failed.
        head: Option<Version>,
    },
    /// The id was committed with another body.
    RequestIdReused,
    /// Older than the dedup window: whether it ran before is not known any more.
    RequestTooOld,
    /// `first_sent` lies too far ahead of `sys.now`.
    RequestFromFuture,
    /// The guards speak of another history.
    IncarnationMismatch,
    /// No `Genesis` yet, or a second one.
    NotFounded,
    /// This build does not know the entry's rules.
    UnknownRules(u16),
    /// The rules failed on this entry (a defect); it has no effect on any replica.
    Poisoned,
    /// The user would keep more than the quota allows.
    UserQuota {
        /// Payload bytes that the user would keep.
        wanted_bytes: u64,
        /// Payload bytes allowed.
        quota_bytes: u64,
    },
    /// A device acknowledged what this history cannot continue from.
    TokenNotCurrent,
    /// The user has as many devices as are remembered.
    DeviceLimit,
    /// An archive of this history holds another one: nothing is written until a new history begins.
    LineageFork,
}

/// One failed guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// Index into the mutations.
    pub index: u32,
    /// What is stored; 0 = never existed.
    pub current_version: Version,
    /// It is a tombstone.
    pub deleted: bool,
    /// Lets the device see that its retry already won.
    pub content_hash: Option<ContentHash>,
}
