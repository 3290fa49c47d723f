//! What clients ask of records and feeds, and what they are told: batches, reads, pages of changes, hints, and what a
//! restored cluster shows of them.
//!
//! A call's end repeats what was asked and holds the answer, as in Jepsen. What a node said is written down as it came:
//! whether it is right is for the checkers.

use serde::{Deserialize, Serialize};

/// A position in the log of one group, in one history of the cluster. Positions of two groups do not compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// The history.
    pub incarnation: u64,
    /// The group.
    pub group: u32,
    /// The position.
    pub index: u64,
}

/// Writes of one user that commit together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Owner.
    pub user: String,
    /// One per logical write, kept over all repetitions.
    pub request_id: String,
    /// In the order of the request; keys differ.
    pub changes: Vec<Change>,
    /// It took effect, or had taken it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<Done>,
    /// A guard failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// One change of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `collection/record id`.
    pub key: String,
    /// The content; `None` = delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put: Option<String>,
    /// What must hold for the whole batch to take effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
}

/// What must hold of a record before a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    /// It has this version. `of` is the content that its writer saw there: a checker that trusts no version goes by it.
    Version {
        /// The version.
        version: u64,
        /// The content.
        of: String,
    },
    /// There is no live one.
    Absent,
    /// There is a live one.
    Exists,
}

/// What a node answered to a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Where it took effect.
    pub at: Point,
    /// Version of the batch; that of the user when nothing changed.
    pub version: u64,
    /// An earlier answer, given again.
    pub replayed: bool,
    /// One per change, in order.
    pub results: Vec<Changed>,
    /// Who answered.
    pub node: u64,
}

/// What became of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// False = the record was so already.
    pub changed: bool,
    /// Version of the record.
    pub version: u64,
}

/// A batch whose guards did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Where the guards were judged; `None` = the node did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Point>,
    /// The first that failed.
    pub clashes: Vec<Clash>,
}

/// A guard that did not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clash {
    /// Place of the change in its batch.
    pub place: u32,
    /// What is stored; 0 = nothing, ever.
    pub version: u64,
    /// It is a tombstone.
    pub deleted: bool,
}

/// How new an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As new as all that was acknowledged before the call.
    Linearizable,
    /// As new as this position.
    AtLeast(Point),
    /// At most so many milliseconds old.
    Staleness(u32),
}

/// A read of several records at one point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Owner.
    pub user: String,
    /// `collection/record id` each.
    pub keys: Vec<String>,
    /// How new it must be.
    pub level: Level,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub got: Option<Got>,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Got {
    /// Where it was read.
    pub at: Point,
    /// Who answered.
    pub node: u64,
    /// For [`Level::Staleness`]: how old the answer may be at most, as the node says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staleness_ms: Option<u32>,
    /// Records and tombstones; what was never there is missing.
    pub records: Vec<Seen>,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// `collection/record id`.
    pub key: String,
    /// Its version.
    pub version: u64,
    /// Its content; `None` = a tombstone. Not UTF-8 = not one of ours: shown with replacement characters, and so equal to
    /// nothing that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

/// A page of changes that a consumer asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Owner.
    pub user: String,
    /// Only these; empty = all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collections: Vec<String>,
    /// Token that it continues from; empty = from zero.
    pub from: String,
    /// How new it must be; `None` = as new as the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turned: Option<Turned>,
    /// An order to resync instead; its reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync: Option<String>,
}

/// A page that a consumer got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turned {
    /// Where it was read.
    pub at: Point,
    /// Who answered.
    pub node: u64,
    /// In the order of the page.
    pub records: Vec<Seen>,
    /// Token to continue from.
    pub next: String,
    /// More pages are ready.
    pub more: bool,
    /// The consumer saved the page and its token. Else it crashed before, and comes back with what it had.
    pub kept: bool,
}

/// A watch told of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Whose.
    pub user: String,
    /// Newest version it heard of.
    pub head: u64,
    /// Where that was so.
    pub at: Point,
}

/// A consumer that begins to follow a user's feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// Whose.
    pub user: String,
    /// It asks for a page only when a watch woke it.
    pub watches: bool,
}

/// A put of a record that ends by itself; one client alone writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Owner.
    pub user: String,
    /// `collection/record id`.
    pub key: String,
    /// No two writes put the same.
    pub content: String,
    /// One per logical write, kept over all repetitions.
    pub request_id: String,
    /// Its life.
    pub ttl_seconds: u32,
}

/// A linearizable look at such a record by its writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Owner.
    pub user: String,
    /// `collection/record id`.
    pub key: String,
    /// After all writes.
    pub last: bool,
    /// Its content; `None` = it is gone, or nobody answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

/// A new cluster out of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Counts from 1.
    pub round: u32,
    /// When all clients had ended, and there was time to ship what they wrote.
    pub last: bool,
    /// Up to where the restore says that everything is there, in the history of the old cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Point>,
    /// The history that the new cluster began, as its answers name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
    /// How old the newest write that comes back was when the restore began, as it says: what was acknowledged since may be
    /// lost, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_window_ms: Option<u64>,
    /// Up to where the snapshot reaches that it began with; 0 = it began with none.
    #[serde(default)]
    pub snapshot: u64,
    /// The command was killed half way, and run again.
    #[serde(default)]
    pub killed: bool,
    /// What is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<RestoredUser>,
    /// What a device was told that wrote to the old cluster just before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceMet>,
    /// Nodes of the new cluster with the same digest at the same index as the first one, that one included.
    pub digests: usize,
    /// From the command to the last read.
    pub took_ms: u64,
    /// What a command that failed ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
}

/// What a device kept of the old cluster, and what the restored one said to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMet {
    /// Nobody else wrote for it.
    pub user: String,
    /// Its writes, in their order; a token was taken after each.
    pub kept: Vec<Kept>,
    /// What became of each token.
    pub tokens: Vec<TokenSaid>,
    /// The answer to the last write, sent again.
    pub last_again: Kept,
    /// That answer was said to be an earlier one.
    pub replayed: bool,
}

/// An acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Where it took effect.
    pub index: u64,
    /// The version that it got.
    pub version: u64,
}

/// What a cluster said to a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenSaid {
    /// So many records are newer.
    Continues {
        /// On the page.
        records: usize,
    },
    /// The token is of what was lost: upload again what is above this version.
    RolledBack {
        /// The last version that both know.
        common: u64,
    },
    /// Something else.
    Other(String),
}

/// One user as a restore brought it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredUser {
    /// Owner.
    pub user: String,
    /// `collection/record id` of all that was looked for.
    pub keys: Vec<String>,
    /// Records and tombstones; what was never there is missing.
    pub records: Vec<Seen>,
}
