//! Commands: what a log entry asks of the state machine. Built at the edge (`wire::api`) or by the leader itself.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::attest::Attestation;
use crate::id::{DeviceId, Incarnation, Millis, NodeId, RecordKey, RequestId, Stage, UserId, Version};
use crate::limits::{DEVICE_EXPIRY_MS_DEFAULT, TOMBSTONE_AGE_MS_DEFAULT};
use crate::state::UserRef;

/// The newest rules this build knows. An entry carries the rules it was proposed under; `transition` dispatches on it.
pub const RULES: u16 = 1;

/// What one log entry carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Rules to judge the command by.
    pub rules: u16,
    /// Leader's time stamp; drives `sys.now`, and nothing else reads a clock.
    pub stamp: Millis,
    /// What to do.
    pub command: Command,
}

impl Proposal {
    /// What is judged one after the other at the entry's index, each with an outcome of its own: itself, or the batches of a
    /// fold.
    pub fn parts(self) -> impl Iterator<Item = Self> {
        let Self { rules, stamp, command } = self;
        let (alone, folded) = match command {
            Command::Fold(batches) => (None, batches),
            command => (Some(command), Vec::new()),
        };
        let commands = alone.into_iter().chain(folded.into_iter().map(Command::WriteBatch));
        commands.map(move |command| Self { rules, stamp, command })
    }
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Writes of one user that commit together or not at all.
    WriteBatch(WriteBatch),
    /// Batches that share an entry, and nothing else: each commits or fails by itself, in this order ([`Proposal::parts`]).
    Fold(Vec<WriteBatch>),
    /// First entry of a history; nothing is served before it.
    Genesis(Genesis),
    /// How far an offsite destination holds the log, read back from there.
    OffsiteFact(OffsiteFact),
    /// Every replica takes a checkpoint right after applying this entry.
    SnapshotBarrier(SnapshotBarrier),
    /// What a replica found in its own checkpoint. Boxed: it is rare, and would make every command as large.
    Attest(Box<Attestation>),
    /// Act on what is due in the expiry queue: forget requests, tombstones and devices, end records with a TTL.
    Expire,
    /// State of a long-running job of an operator.
    SetOperation(Operation),
    /// How far a device has durably applied its user's changes.
    AckCursor(AckCursor),
    /// Forget a device.
    DropDevice(DropDevice),
    /// Lifetimes and quotas of the group.
    SetPolicy(Policy),
    /// Who can open what is shipped offsite from here on.
    /// Boxed: it is rare, and would make every command as large.
    SetArchiveKeys(Box<ArchiveKeys>),
    /// An offsite destination holds another history than this log: nothing is written any more.
    /// Boxed: it is rare, and would make every command as large.
    LineageFork(Box<LineageFork>),
    /// Payloads that a restore held back.
    FillPayloads(FillPayloads),
}

/// Writes of one user that commit together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteBatch {
    /// Owner.
    pub user: UserId,
    /// Kept by the device over all retries.
    pub request_id: RequestId,
    /// First 16 bytes of BLAKE3 over the canonical body: tells a retry from another request under the same id.
    pub fingerprint: [u8; 16],
    /// When the device first sent the id, in server time; `None` = not said, judged as sent now.
    pub first_sent: Option<Millis>,
    /// Writing device, if it said so.
    pub device: Option<DeviceId>,
    /// Whole-user guard: head must equal this (0 = the user has no commit).
    pub if_head: Option<Version>,
    /// History the version guards speak of; present whenever there is one.
    pub if_incarnation: Option<Incarnation>,
    /// 1 to 500 changes with distinct keys.
    pub mutations: Vec<Mutation>,
}

/// One change in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    /// Target.
    pub key: RecordKey,
    /// What to do.
    pub op: Op,
    /// Judged at apply.
    pub guard: Guard,
}

/// What to do with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create or replace.
    Put(Content),
    /// Leave a tombstone.
    Delete,
}

/// Everything a caller sets on a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Media type of the payload.
    pub content_type: String,
    /// Opaque bytes.
    pub payload: Bytes,
    /// Seconds until it becomes a tombstone by itself; 0 = never.
    pub ttl_seconds: u32,
}

/// Guard of a mutation, judged at apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Last writer wins.
    None,
    /// Stored version must equal this (of the batch's `if_incarnation`).
    Version(Version),
    /// No live record may exist; a tombstone passes.
    Absent,
    /// A live record must exist.
    Exists,
    /// Re-upload of what a rollback lost.
    Restore(RestoreGuard),
}

/// Lets any number of devices send again what a rollback lost, in any order and with one outcome: the change with the
/// largest lost version stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreGuard {
    /// The user's fork point of `incarnation`: what is stored up to it, the device knows.
    pub common: Version,
    /// Version that the change had before it was lost.
    pub lost: Version,
    /// Ended history that gave `lost`.
    pub incarnation: Incarnation,
}

/// First entry of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Genesis {
    /// New with every restore.
    pub cluster_id: [u8; 16],
    /// Human name, typed to confirm destructive calls.
    pub cluster_name: String,
    /// New history.
    pub incarnation: Incarnation,
    /// New epoch of user versions: the parent's plus one.
    pub epoch: u16,
    /// What this history continues; `None` for a new cluster.
    pub parent: Option<Parent>,
    /// Members that this history was opened with.
    pub members: Vec<NodeId>,
    /// Stages whose large payloads were held back, in the order in which they come; empty = everything is there.
    pub restoring: Vec<Stage>,
}

/// The history that a restore continues, and where it was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Cluster id of the parent.
    pub cluster_id: [u8; 16],
    /// Incarnation of the parent.
    pub incarnation: Incarnation,
    /// Index of the snapshot restored; 0 = from the log alone.
    pub snapshot_index: u64,
    /// Last index of the parent's log that is held.
    pub index: u64,
    /// Entry chain at that index.
    pub chain: [u8; 32],
}

/// Payloads that a restore held back, as the archive has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FillPayloads {
    /// History that the restore began.
    pub incarnation: Incarnation,
    /// Stage that all of them are of: the first that is left.
    pub stage: Stage,
    /// The payloads. One that is not what its record names changes nothing.
    pub fills: Vec<Fill>,
    /// Where these end, in the archive's order of keys: fills that end here or before it were given already.
    pub through: Bytes,
    /// Nothing of the stage is left after these.
    pub ends: bool,
}

/// The payload of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// Owner.
    pub user: UserRef,
    /// Which record.
    pub key: RecordKey,
    /// Its payload.
    pub payload: Bytes,
}

/// How far an offsite destination holds the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsiteFact {
    /// Destination's name in the configuration.
    pub destination: String,
    /// Highest index durable there, read back from there.
    pub index: u64,
    /// Entry chain at that index.
    pub chain: [u8; 32],
    /// Node that looked.
    pub verifier: NodeId,
    /// When it looked.
    pub at: Millis,
}

/// A device's cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckCursor {
    /// Owner.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
    /// History of `version`.
    pub incarnation: Incarnation,
    /// Everything up to here is on the device.
    pub version: Version,
}

/// A device that will not come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropDevice {
    /// Owner.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
}

/// What leaders take from their configuration into the log, so that every replica judges alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A tombstone is kept at least so long, in milliseconds.
    pub tombstone_age_ms: u64,
    /// A device that acknowledges nothing for so long is forgotten, in milliseconds.
    pub device_expiry_ms: u64,
    /// Payload bytes a user may keep; 0 = any number.
    pub user_quota_bytes: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            tombstone_age_ms: TOMBSTONE_AGE_MS_DEFAULT,
            device_expiry_ms: DEVICE_EXPIRY_MS_DEFAULT,
            user_quota_bytes: 0,
        }
    }
}

/// A generation of keys: what is shipped offsite is encrypted with the newest. The bytes of its KEYS.age are fixed here, so
/// that no destination holds another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveKeys {
    /// History that they are of.
    pub incarnation: Incarnation,
    /// Each is newer than the one before.
    pub generation: u32,
    /// Tells the key from others, and says nothing of it.
    pub key_id: [u8; 16],
    /// The generation's key, encrypted for the recipients.
    pub keys_age: Bytes,
    /// Whom it is encrypted for.
    pub recipients: Vec<ArchiveRecipient>,
    /// Log time from which on they are used; the state machine sets it.
    pub since: Millis,
}

/// Who can open an archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArchiveRecipient {
    /// An age recipient, age1….
    pub key: String,
    /// It is online, in other custody, for restore drills; all others are kept offline.
    pub drill: bool,
}

/// An offsite destination holds committed entries that this log does not hold: voters lost them, and gave their indices
/// again. What is right cannot be told from here, so that nothing is added to either history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineageFork {
    /// History that is forked.
    pub incarnation: Incarnation,
    /// Name of the destination that holds the other history.
    pub destination: String,
    /// Where this log was seen to differ: the other history holds another entry here, or this log ends before it.
    pub index: u64,
    /// What was seen, for people.
    pub evidence: String,
    /// Node that looked.
    pub verifier: NodeId,
    /// Log time at which it became a fact; the state machine sets it.
    pub since: Millis,
}

/// Barrier of an offsite snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotBarrier {
    /// The job that asked for it.
    pub operation_id: String,
}

/// State of a long-running job; survives the node that runs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operation {
    /// UUID.
    pub id: String,
    /// Finished, well or not.
    pub done: bool,
    /// What it does now, for people.
    pub stage: String,
    /// Done units of `total_units`.
    pub done_units: u64,
    /// All units; 0 = not known yet.
    pub total_units: u64,
    /// Set when it failed; says what to do.
    pub error: String,
    /// Set for a job that whoever leads carries on: what is to be done.
    /// Boxed: it is rare, and would make every command as large.
    pub member_change: Option<Box<MemberChange>>,
}

/// A change of the group's members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberChange {
    /// Node that joins.
    pub add: Option<NewMember>,
    /// It stays a learner.
    pub keep_learner: bool,
    /// Node that goes, once the other has joined.
    pub remove: Option<NodeId>,
}

/// A node that is to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMember {
    /// Id, never used before.
    pub id: NodeId,
    /// What its membership entry will say.
    pub member: Member,
}

/// A member of the group, as membership entries carry it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Client listener, host:port.
    pub client_address: String,
    /// Peer listener.
    pub peer_address: String,
    /// Admin listener.
    pub admin_address: String,
    /// HTTP listener.
    pub http_address: String,
    /// Failure-domain labels.
    pub labels: BTreeMap<String, String>,
    /// Random identity of its data directory.
    pub identity: String,
}
