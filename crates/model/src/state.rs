//! The replicated state as the rules see it: rows, how they are read, and what a command does to them.
//!
//! `transition` reads through [`StateRead`] and answers with [`Effects`]; only `store` performs them. The rows are
//! plain data; their bytes on disk are `wire::durable`'s affair.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::attest::Attested;
use crate::command::{ArchiveKeys, Content, LineageFork, OffsiteFact, Operation, Parent, Policy};
use crate::digest::Sum;
use crate::id::{
    Collection, ContentHash, DeviceId, Incarnation, Millis, RecordKey, RequestId, Stage, Uid, UserId, Version,
};
use crate::outcome::{MutationResult, Usage};

/// Facts of the whole group. Small; rewritten whole whenever it changes. Each entry makes a new one, so what seldom changes
/// is shared with the one before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sys {
    /// Time as the log has it; never goes back.
    pub now: Millis,
    /// Newest rules seen.
    pub rules: u16,
    /// The current history; `None` before `Genesis`.
    pub history: Option<Arc<History>>,
    /// Ended histories that this one continues, oldest first.
    pub ancestors: Vec<Ancestor>,
    /// Users ever allocated in this epoch.
    pub uid_counter: u64,
    /// Sum over all user rows of the BLAKE3 of their canonical bytes: equal on replicas at one index.
    pub digest: Sum,
    /// Users, live records and live payload bytes in the group.
    pub totals: Totals,
    /// Newest fact of each offsite destination.
    pub offsite: Arc<BTreeMap<String, OffsiteFact>>,
    /// Index of the newest snapshot barrier; 0 = none.
    pub barrier_index: u64,
    /// Lifetimes and quotas.
    pub policy: Policy,
    /// Newest keys of what is shipped offsite; `None` = it is not encrypted. Those of an ended history stay until there are
    /// some of the new one: they say that it was encrypted, and for whom.
    pub archive_keys: Option<Arc<ArchiveKeys>>,
    /// The first fork that was seen between this history and an archive of it; `None` = none. A new history has none.
    pub lineage_fork: Option<Arc<LineageFork>>,
    /// What the restore that began this history still holds back; `None` = nothing. What it restores is told by the parent of
    /// the history.
    pub restoring: Option<Arc<Restoring>>,
    /// What replicas said of their states behind the newest snapshot barriers.
    pub attested: Arc<Attested>,
}

/// Large payloads that are not there yet, of records that are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoring {
    /// Stages that they are of, in the order in which they come; never empty.
    pub left: Vec<Stage>,
    /// Up to here those of the first stage came, in the archive's order of keys; empty = none came.
    pub through: Bytes,
}

impl Restoring {
    /// A restore that holds back these; `None` = it holds nothing back.
    pub fn of(left: &[Stage]) -> Option<Arc<Self>> {
        (!left.is_empty()).then(|| Arc::new(Self { left: left.to_vec(), through: Bytes::new() }))
    }
}

impl Sys {
    /// Large payloads of this collection may be missing.
    pub fn is_restoring(&self, collection: &Collection) -> bool {
        self.restoring.as_ref().is_some_and(|restoring| restoring.left.contains(&collection.stage()))
    }

    /// Every entry up to here is in some copy outside the cluster: a destination's, or that which this history was
    /// restored from.
    pub fn offsite_index(&self) -> u64 {
        let restored =
            self.history.as_ref().and_then(|history| history.parent.as_ref()).map_or(0, |parent| parent.index);
        self.offsite.values().map(|fact| fact.index).fold(restored, u64::max)
    }
}

/// Totals of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Users with a row.
    pub users: u64,
    /// Live records.
    pub records: u64,
    /// Payload bytes of live records.
    pub bytes: u64,
}

/// The current history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Cluster.
    pub cluster_id: [u8; 16],
    /// Human name.
    pub cluster_name: String,
    /// Random id of the history.
    pub incarnation: Incarnation,
    /// Epoch of versions given from now on.
    pub epoch: u16,
    /// What it continues.
    pub parent: Option<Parent>,
    /// Index of the `Genesis` entry.
    pub genesis_index: u64,
}

/// A history that ended in a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// Its id.
    pub incarnation: Incarnation,
    /// Its epoch.
    pub epoch: u16,
}

/// One user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserRow {
    /// Newest version; 0 = no commit.
    pub head: Version,
    /// Tombstones at or below this are gone.
    pub tombstone_horizon: Version,
    /// Usage.
    pub usage: Usage,
    /// Per collection: count and digest of live records.
    pub collections: BTreeMap<Collection, CollectionDigest>,
    /// Head at the end of each ended history, oldest first: the fork points of its tokens (0 where it had no commit).
    /// Written at the first commit in a new epoch; until then [`UserRow::common_with`] tells them from the head.
    pub forks: Vec<Fork>,
    /// Where recent versions are in the log.
    pub places: Places,
}

/// Log positions of two versions of a user, from which [`UserRow::backed_up`] is told without a row per version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Places {
    /// Index of the entry that gave the head; 0 = no commit.
    pub head_index: u64,
    /// An earlier version that was not offsite at the last commit; 0 = none.
    pub mark: Version,
    /// Index of the entry that gave `mark`.
    pub mark_index: u64,
    /// A version that was offsite at the last commit.
    pub settled: Version,
}

impl UserRow {
    /// A version such that it and all below are in a copy outside the cluster. It may lag behind the newest such by the
    /// commits since one of them was last found offsite.
    pub fn backed_up(&self, sys: &Sys) -> Version {
        let offsite = sys.offsite_index();
        let places = &self.places;
        if places.head_index <= offsite {
            self.head
        } else if places.mark_index != 0 && places.mark_index <= offsite {
            places.mark
        } else {
            places.settled
        }
    }

    /// The head moves to `version`, given by the entry at `index`.
    pub(crate) fn move_head(&mut self, sys: &Sys, version: Version, index: u64) {
        let settled = self.backed_up(sys);
        let places = &mut self.places;
        let mark_is_offsite = places.mark_index <= sys.offsite_index();
        places.settled = settled;
        if settled == self.head {
            (places.mark, places.mark_index) = (Version(0), 0);
        } else if mark_is_offsite {
            (places.mark, places.mark_index) = (self.head, places.head_index);
        }
        places.head_index = index;
        self.head = version;
    }

    /// Last version that a token of `incarnation` shares with the present: what lies above it was lost, or written
    /// in another history. `None`: this lineage does not know the incarnation.
    ///
    /// A user without a row shares `Version(0)` with every known incarnation; that is the caller's to say.
    pub fn common_with(&self, sys: &Sys, incarnation: Incarnation) -> Option<Version> {
        if sys.history.as_ref().is_some_and(|history| history.incarnation == incarnation) {
            return Some(self.head);
        }
        let mut since = sys.ancestors.iter().skip_while(|ancestor| ancestor.incarnation != incarnation).peekable();
        since.peek()?;
        // An ended history without a fork saw no later commit of this user: it shares the head.
        let forks = since.filter_map(|ended| self.forks.iter().find(|fork| fork.incarnation == ended.incarnation));
        Some(forks.map(|fork| fork.common).fold(self.head, Version::min))
    }
}

/// Where a user's history forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// History that ended.
    pub incarnation: Incarnation,
    /// Last version that it shares with what came after.
    pub common: Version,
}

/// Count and order-independent digest of live records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectionDigest {
    /// Live records.
    pub count: u64,
    /// Sum of their entry hashes (`digest::entry_hash`).
    pub sum: Sum,
}

/// A record or a tombstone, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordRow {
    /// Commit that last changed it.
    pub version: Version,
    /// Place within that commit; with `version` it is the key of its change row.
    pub ordinal: u16,
    /// Hash of what the caller set; of the last content on a tombstone.
    pub content_hash: ContentHash,
    /// Media type; empty on tombstones.
    pub content_type: String,
    /// Length of the payload in bytes; 0 on tombstones.
    pub payload_len: u64,
    /// When it was last changed (`sys.now`), for people.
    pub update_time: Millis,
    /// Set on tombstones.
    pub delete_time: Option<Millis>,
    /// Set on records with a TTL: when they become tombstones; their key in the expiry queue.
    pub expire_time: Option<Millis>,
    /// Set on tombstones: when they may be forgotten, or are looked at again; their key in the expiry queue.
    pub purge_time: Option<Millis>,
    /// Set by a `RestoreGuard`: the version that this change had before a rollback lost it.
    pub lost: Option<Version>,
}

impl RecordRow {
    /// A record, not a tombstone.
    pub fn is_live(&self) -> bool {
        self.delete_time.is_none()
    }
}

/// One row of the change feed: the latest change of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRow {
    /// Which record.
    pub key: RecordKey,
    /// Hash of its content.
    pub content_hash: ContentHash,
    /// It is a tombstone.
    pub deleted: bool,
    /// Device that wrote it.
    pub device: Option<DeviceId>,
}

/// First committed outcome of a request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    /// Body it was committed with.
    pub fingerprint: [u8; 16],
    /// Answer.
    pub version: Version,
    /// Usage after it.
    pub usage: Usage,
    /// Per mutation.
    pub results: Vec<MutationResult>,
    /// Where it took effect.
    pub commit_index: u64,
    /// When it may be forgotten; its key in the expiry queue.
    pub expires: Millis,
}

/// A device of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRow {
    /// Everything up to here is on the device.
    pub acked: Version,
    /// When it last said so.
    pub ack_time: Millis,
    /// When it is forgotten unless it says so again; its key in the expiry queue.
    pub expires: Millis,
}

/// Something due at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExpiryItem {
    /// A request id leaves the dedup window.
    Request(UserRef, RequestId),
    /// A record's TTL ends. By name: those who wait for the user are woken by it.
    Record(UserId, RecordKey),
    /// A tombstone may be forgotten, if no device still needs it.
    Tombstone(UserRef, RecordKey),
    /// A device was silent for too long.
    Device(UserRef, DeviceId),
}

/// How the rules read the state, including effects of earlier entries of the same apply batch.
pub trait StateRead {
    /// A failure of this node's storage; never part of an outcome.
    type Error;

    /// Group facts.
    fn sys(&self) -> &Sys;
    /// Number of a user; `None` = never seen.
    fn uid(&self, user: &UserId) -> Result<Option<Uid>, Self::Error>;
    /// A user's row.
    fn user(&self, user: UserRef) -> Result<Option<Arc<UserRow>>, Self::Error>;
    /// A record's row.
    fn record(&self, user: UserRef, key: &RecordKey) -> Result<Option<RecordRow>, Self::Error>;
    /// A remembered request.
    fn request(&self, user: UserRef, id: RequestId) -> Result<Option<RequestRow>, Self::Error>;
    /// A user's devices, by id.
    fn devices(&self, user: UserRef) -> Result<BTreeMap<DeviceId, DeviceRow>, Self::Error>;
    /// At most `limit` items due at or before `now`, oldest first.
    fn due(&self, now: Millis, limit: usize) -> Result<Vec<(Millis, ExpiryItem)>, Self::Error>;
}

/// What a command does to the state, in order. Performed in one atomic write with the applied index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// New group facts, when they changed. `now` changes with nearly every command.
    pub sys: Option<Sys>,
    /// Changes of rows.
    pub rows: Vec<Effect>,
    /// Users whose head moved, for waking those who wait.
    pub touched: Vec<Touched>,
    /// Take a checkpoint right after this entry.
    pub barrier: bool,
}

/// A user whose head moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// Who.
    pub user: UserId,
    /// The new head.
    pub head: Version,
    /// Collections with changes at it.
    pub collections: BTreeSet<Collection>,
}

/// One change of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A user id got its number.
    PutUid(UserId, Uid),
    /// User row.
    PutUser(UserRef, Arc<UserRow>),
    /// Record with its payload, or a tombstone (`content` is `None`).
    PutRecord(UserRef, RecordKey, RecordRow, Option<Content>),
    /// A tombstone is forgotten.
    DeleteRecord(UserRef, RecordKey),
    /// Change row at (version, ordinal).
    PutChange(UserRef, Version, u16, ChangeRow),
    /// A change row superseded by a newer change of its record.
    DeleteChange(UserRef, Version, u16),
    /// Remember a request.
    PutRequest(UserRef, RequestId, RequestRow),
    /// Forget a request.
    DeleteRequest(UserRef, RequestId),
    /// A device's cursor.
    PutDevice(UserRef, DeviceId, DeviceRow),
    /// Forget a device.
    DeleteDevice(UserRef, DeviceId),
    /// Queue something.
    PutExpiry(Millis, ExpiryItem),
    /// Unqueue something.
    DeleteExpiry(Millis, ExpiryItem),
    /// State of a job.
    PutOperation(Operation),
}

/// A user by number and slot: what a key needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserRef {
    /// Slot of the user id.
    pub slot: crate::id::Slot,
    /// Number.
    pub uid: Uid,
}
