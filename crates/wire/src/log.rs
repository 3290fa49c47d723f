//! Log entries and proposals: the bytes that go to disk, to peers and into segments, encoded once.
//!
//! Invariants: `decode_x(encode_x(v)) == v`; the encoding of a value is unique (prost writes fields in order and the
//! messages hold no maps), so chains over the bytes agree on every node.

use bytes::Bytes;
use holdfast_model::attest::{Attestation, Word};
use holdfast_model::command::{
    AckCursor, ArchiveKeys, ArchiveRecipient, Command, Content, DropDevice, Fill, FillPayloads, Genesis, Guard,
    LineageFork, Member, MemberChange, Mutation, NewMember, OffsiteFact, Op, Operation, Parent, Policy, Proposal,
    RestoreGuard, SnapshotBarrier, WriteBatch,
};
use holdfast_model::id::{
    Collection, DeviceId, Incarnation, Millis, NodeId, RecordId, RecordKey, RequestId, Slot, Stage, Uid, UserId,
    Version,
};
use holdfast_model::state::UserRef;

use crate::internal::v1 as pb;
use crate::{DecodeError, decode, encode, fixed, required};

/// Identity of an entry.
pub type LogId = pb::LogId;

/// A decoded entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Identity.
    pub id: LogId,
    /// Content.
    pub payload: EntryPayload,
}

/// Content of an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum EntryPayload {
    /// Opens a term.
    Blank,
    /// An encoded [`Proposal`].
    Proposal(Bytes),
    /// Membership change.
    Membership(pb::Membership),
}

/// Encodes an entry.
pub fn encode_entry(entry: &Entry) -> Bytes {
    let payload = match &entry.payload {
        EntryPayload::Blank => pb::entry::Payload::Blank(pb::Empty {}),
        EntryPayload::Proposal(bytes) => pb::entry::Payload::Proposal(bytes.clone()),
        EntryPayload::Membership(membership) => pb::entry::Payload::Membership(membership.clone()),
    };
    encode(&pb::Entry { id: Some(entry.id), payload: Some(payload) })
}

/// Decodes an entry; a proposal's bytes are shared with the input, not copied.
pub fn decode_entry(bytes: &Bytes) -> Result<Entry, DecodeError> {
    let message: pb::Entry = decode("log entry", bytes.clone())?;
    let payload = match required("log entry", "payload", message.payload)? {
        pb::entry::Payload::Blank(_) => EntryPayload::Blank,
        pb::entry::Payload::Proposal(bytes) => EntryPayload::Proposal(bytes),
        pb::entry::Payload::Membership(membership) => EntryPayload::Membership(membership),
    };
    Ok(Entry { id: required("log entry", "id", message.id)?, payload })
}

/// Next link of the entry chain: `c_i = BLAKE3(c_{i-1} ‖ entry bytes)`, `c_0` = zeros. The bytes hold the log id.
pub fn entry_chain(prev: [u8; 32], entry_bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&prev);
    hasher.update(entry_bytes);
    *hasher.finalize().as_bytes()
}

/// Encodes a proposal.
pub fn encode_proposal(proposal: &Proposal) -> Bytes {
    encode_stamped(proposal.rules, proposal.stamp, &proposal.command)
}

/// Encodes a proposal of writes that share an entry; of one write alone, as any other.
pub fn encode_writes<'a>(rules: u16, stamp: Millis, batches: impl ExactSizeIterator<Item = &'a WriteBatch>) -> Bytes {
    let mut batches = batches.map(write_batch_to);
    let command = match (batches.len(), batches.next()) {
        (1, Some(batch)) => pb::proposal::Command::WriteBatch(batch),
        (_, first) => pb::proposal::Command::Fold(pb::Fold { batches: first.into_iter().chain(batches).collect() }),
    };
    encode(&pb::Proposal { rules: rules.into(), stamp_ms: stamp.0, command: Some(command) })
}

/// Encodes a proposal out of its parts.
pub fn encode_stamped(rules: u16, stamp: Millis, command: &Command) -> Bytes {
    let command = match command {
        Command::WriteBatch(batch) => pb::proposal::Command::WriteBatch(write_batch_to(batch)),
        Command::Fold(batches) => {
            pb::proposal::Command::Fold(pb::Fold { batches: batches.iter().map(write_batch_to).collect() })
        }
        Command::Genesis(genesis) => pb::proposal::Command::Genesis(genesis_to(genesis)),
        Command::OffsiteFact(fact) => pb::proposal::Command::OffsiteFact(offsite_fact_to(fact)),
        Command::SnapshotBarrier(barrier) => {
            pb::proposal::Command::SnapshotBarrier(pb::SnapshotBarrier { operation_id: barrier.operation_id.clone() })
        }
        Command::Attest(said) => pb::proposal::Command::Attest(attestation_to(said)),
        Command::Expire => pb::proposal::Command::Expire(pb::Expire {}),
        Command::SetOperation(operation) => pb::proposal::Command::SetOperation(operation_to(operation)),
        Command::AckCursor(ack) => pb::proposal::Command::AckCursor(pb::AckCursor {
            user_id: ack.user.as_str().to_owned(),
            device_id: ack.device.as_str().to_owned(),
            incarnation: ack.incarnation.0,
            version: ack.version.0,
        }),
        Command::DropDevice(drop) => pb::proposal::Command::DropDevice(pb::DropDevice {
            user_id: drop.user.as_str().to_owned(),
            device_id: drop.device.as_str().to_owned(),
        }),
        Command::SetPolicy(policy) => pb::proposal::Command::SetPolicy(policy_to(policy)),
        Command::SetArchiveKeys(keys) => pb::proposal::Command::SetArchiveKeys(archive_keys_to(keys)),
        Command::LineageFork(fork) => pb::proposal::Command::LineageFork(lineage_fork_to(fork)),
        Command::FillPayloads(fill) => pb::proposal::Command::FillPayloads(fill_payloads_to(fill)),
    };
    encode(&pb::Proposal { rules: rules.into(), stamp_ms: stamp.0, command: Some(command) })
}

/// Decodes a proposal.
pub fn decode_proposal(bytes: &Bytes) -> Result<Proposal, DecodeError> {
    let message: pb::Proposal = decode("proposal", bytes.clone())?;
    let command = match required("proposal", "command", message.command)? {
        pb::proposal::Command::WriteBatch(batch) => Command::WriteBatch(write_batch_from(batch)?),
        pb::proposal::Command::Fold(fold) => {
            Command::Fold(fold.batches.into_iter().map(write_batch_from).collect::<Result<_, _>>()?)
        }
        pb::proposal::Command::Genesis(genesis) => Command::Genesis(genesis_from(genesis)?),
        pb::proposal::Command::OffsiteFact(fact) => Command::OffsiteFact(offsite_fact_from(fact)?),
        pb::proposal::Command::SnapshotBarrier(barrier) => {
            Command::SnapshotBarrier(SnapshotBarrier { operation_id: barrier.operation_id })
        }
        pb::proposal::Command::Attest(said) => Command::Attest(Box::new(attestation_from(said)?)),
        pb::proposal::Command::Expire(_) => Command::Expire,
        pb::proposal::Command::SetOperation(operation) => Command::SetOperation(operation_from(operation)),
        pb::proposal::Command::AckCursor(ack) => Command::AckCursor(AckCursor {
            user: UserId::new(&ack.user_id).map_err(|error| DecodeError::new("cursor", error))?,
            device: DeviceId::new(&ack.device_id).map_err(|error| DecodeError::new("cursor", error))?,
            incarnation: Incarnation(ack.incarnation),
            version: Version(ack.version),
        }),
        pb::proposal::Command::DropDevice(drop) => Command::DropDevice(DropDevice {
            user: UserId::new(&drop.user_id).map_err(|error| DecodeError::new("device", error))?,
            device: DeviceId::new(&drop.device_id).map_err(|error| DecodeError::new("device", error))?,
        }),
        pb::proposal::Command::SetPolicy(policy) => Command::SetPolicy(policy_from(policy)),
        pb::proposal::Command::SetArchiveKeys(keys) => Command::SetArchiveKeys(Box::new(archive_keys_from(keys)?)),
        pb::proposal::Command::LineageFork(fork) => Command::LineageFork(Box::new(lineage_fork_from(fork))),
        pb::proposal::Command::FillPayloads(fill) => Command::FillPayloads(fill_payloads_from(fill)?),
    };
    let rules = u16::try_from(message.rules).map_err(|_| DecodeError::new("proposal", "rules out of range"))?;
    Ok(Proposal { rules, stamp: Millis(message.stamp_ms), command })
}

/// True when the proposal is a snapshot barrier; looks at the tag of the command only.
pub fn is_snapshot_barrier(bytes: &Bytes) -> bool {
    // A barrier is tiny; anything larger need not be decoded.
    bytes.len() < 256 && matches!(decode_proposal(bytes), Ok(Proposal { command: Command::SnapshotBarrier(_), .. }))
}

fn write_batch_to(batch: &WriteBatch) -> pb::WriteBatch {
    pb::WriteBatch {
        user_id: batch.user.as_str().to_owned(),
        request_id: Bytes::copy_from_slice(&batch.request_id.0),
        fingerprint: Bytes::copy_from_slice(&batch.fingerprint),
        first_sent_ms: batch.first_sent.map(|at| at.0),
        device_id: batch.device.as_ref().map(|device| device.as_str().to_owned()).unwrap_or_default(),
        if_head: batch.if_head.map(|version| version.0),
        if_incarnation: batch.if_incarnation.map_or(0, |incarnation| incarnation.0),
        mutations: batch.mutations.iter().map(mutation_to).collect(),
    }
}

fn mutation_to(mutation: &Mutation) -> pb::Mutation {
    pb::Mutation {
        collection: mutation.key.collection.as_str().to_owned(),
        record_id: mutation.key.record_id.as_str().to_owned(),
        op: Some(match &mutation.op {
            Op::Put(content) => pb::mutation::Op::Put(pb::Content {
                content_type: content.content_type.clone(),
                payload: content.payload.clone(),
                ttl_seconds: content.ttl_seconds,
            }),
            Op::Delete => pb::mutation::Op::Delete(pb::Empty {}),
        }),
        guard: match mutation.guard {
            Guard::None => None,
            Guard::Version(version) => Some(pb::mutation::Guard::Version(version.0)),
            Guard::Absent => Some(pb::mutation::Guard::Absent(pb::Empty {})),
            Guard::Exists => Some(pb::mutation::Guard::Exists(pb::Empty {})),
            Guard::Restore(RestoreGuard { common, lost, incarnation }) => {
                let guard = pb::RestoreGuard { common: common.0, lost: lost.0, incarnation: incarnation.0 };
                Some(pb::mutation::Guard::Restore(guard))
            }
        },
    }
}

fn write_batch_from(batch: pb::WriteBatch) -> Result<WriteBatch, DecodeError> {
    const WHAT: &str = "write batch";
    let bad = |error| DecodeError::new(WHAT, error);
    Ok(WriteBatch {
        user: UserId::new(&batch.user_id).map_err(bad)?,
        request_id: RequestId(fixed(WHAT, "request_id", &batch.request_id)?),
        fingerprint: fixed(WHAT, "fingerprint", &batch.fingerprint)?,
        first_sent: batch.first_sent_ms.map(Millis),
        device: match batch.device_id.as_str() {
            "" => None,
            device => Some(DeviceId::new(device).map_err(bad)?),
        },
        if_head: batch.if_head.map(Version),
        if_incarnation: (batch.if_incarnation != 0).then_some(Incarnation(batch.if_incarnation)),
        mutations: batch.mutations.into_iter().map(mutation_from).collect::<Result<_, _>>()?,
    })
}

fn mutation_from(mutation: pb::Mutation) -> Result<Mutation, DecodeError> {
    const WHAT: &str = "mutation";
    let bad = |error| DecodeError::new(WHAT, error);
    Ok(Mutation {
        key: RecordKey {
            collection: Collection::new(&mutation.collection).map_err(bad)?,
            record_id: RecordId::new(&mutation.record_id).map_err(bad)?,
        },
        op: match required(WHAT, "op", mutation.op)? {
            pb::mutation::Op::Put(content) => Op::Put(Content {
                content_type: content.content_type,
                payload: content.payload,
                ttl_seconds: content.ttl_seconds,
            }),
            pb::mutation::Op::Delete(_) => Op::Delete,
        },
        guard: match mutation.guard {
            None => Guard::None,
            Some(pb::mutation::Guard::Version(version)) => Guard::Version(Version(version)),
            Some(pb::mutation::Guard::Absent(_)) => Guard::Absent,
            Some(pb::mutation::Guard::Exists(_)) => Guard::Exists,
            Some(pb::mutation::Guard::Restore(guard)) => Guard::Restore(RestoreGuard {
                common: Version(guard.common),
                lost: Version(guard.lost),
                incarnation: Incarnation(guard.incarnation),
            }),
        },
    })
}

fn genesis_to(genesis: &Genesis) -> pb::Genesis {
    pb::Genesis {
        cluster_id: Bytes::copy_from_slice(&genesis.cluster_id),
        cluster_name: genesis.cluster_name.clone(),
        incarnation: genesis.incarnation.0,
        epoch: genesis.epoch.into(),
        parent: genesis.parent.as_ref().map(parent_to),
        members: genesis.members.iter().map(|member| member.0).collect(),
        restoring: stages_to(&genesis.restoring),
    }
}

fn genesis_from(genesis: pb::Genesis) -> Result<Genesis, DecodeError> {
    const WHAT: &str = "genesis";
    Ok(Genesis {
        cluster_id: fixed(WHAT, "cluster_id", &genesis.cluster_id)?,
        cluster_name: genesis.cluster_name,
        incarnation: Incarnation(genesis.incarnation),
        epoch: u16::try_from(genesis.epoch).map_err(|_| DecodeError::new(WHAT, "epoch out of range"))?,
        parent: genesis.parent.map(parent_from).transpose()?,
        members: genesis.members.into_iter().map(NodeId).collect(),
        restoring: stages_from(WHAT, &genesis.restoring)?,
    })
}

/// Numbers of stages.
pub(crate) fn stages_to(stages: &[Stage]) -> Vec<u32> {
    stages.iter().map(|stage| stage.number().into()).collect()
}

/// Stages of these numbers.
pub(crate) fn stages_from(what: &'static str, numbers: &[u32]) -> Result<Vec<Stage>, DecodeError> {
    let stage = |number: &u32| u8::try_from(*number).ok().and_then(Stage::of_number);
    let known = |number| stage(number).ok_or_else(|| DecodeError::new(what, format!("stage {number} is not known")));
    numbers.iter().map(known).collect()
}

fn fill_payloads_to(fill: &FillPayloads) -> pb::FillPayloads {
    let one = |one: &Fill| pb::Fill {
        slot: one.user.slot.0.into(),
        uid: one.user.uid.0,
        collection: one.key.collection.as_str().to_owned(),
        record_id: one.key.record_id.as_str().to_owned(),
        payload: one.payload.clone(),
    };
    pb::FillPayloads {
        incarnation: fill.incarnation.0,
        stage: fill.stage.number().into(),
        fills: fill.fills.iter().map(one).collect(),
        through: fill.through.clone(),
        ends: fill.ends,
    }
}

fn fill_payloads_from(fill: pb::FillPayloads) -> Result<FillPayloads, DecodeError> {
    const WHAT: &str = "fill";
    let bad = |error| DecodeError::new(WHAT, error);
    let one = |one: pb::Fill| {
        let slot = u16::try_from(one.slot).map_err(|_| DecodeError::new(WHAT, "slot out of range"))?;
        let collection = Collection::new(&one.collection).map_err(bad)?;
        let record_id = RecordId::new(&one.record_id).map_err(bad)?;
        let user = UserRef { slot: Slot(slot), uid: Uid(one.uid) };
        Ok(Fill { user, key: RecordKey { collection, record_id }, payload: one.payload })
    };
    let stage = stages_from(WHAT, &[fill.stage])?;
    Ok(FillPayloads {
        incarnation: Incarnation(fill.incarnation),
        stage: stage.first().copied().ok_or_else(|| DecodeError::new(WHAT, "no stage"))?,
        fills: fill.fills.into_iter().map(one).collect::<Result<_, DecodeError>>()?,
        through: fill.through,
        ends: fill.ends,
    })
}

/// Encodes the history that a restore continues.
pub fn parent_to(parent: &Parent) -> pb::Parent {
    pb::Parent {
        cluster_id: Bytes::copy_from_slice(&parent.cluster_id),
        incarnation: parent.incarnation.0,
        snapshot_index: parent.snapshot_index,
        index: parent.index,
        chain: Bytes::copy_from_slice(&parent.chain),
    }
}

/// Decodes the history that a restore continues.
pub fn parent_from(parent: pb::Parent) -> Result<Parent, DecodeError> {
    const WHAT: &str = "parent history";
    Ok(Parent {
        cluster_id: fixed(WHAT, "cluster_id", &parent.cluster_id)?,
        incarnation: Incarnation(parent.incarnation),
        snapshot_index: parent.snapshot_index,
        index: parent.index,
        chain: fixed(WHAT, "chain", &parent.chain)?,
    })
}

/// Encodes an offsite fact.
pub fn offsite_fact_to(fact: &OffsiteFact) -> pb::OffsiteFact {
    pb::OffsiteFact {
        destination: fact.destination.clone(),
        index: fact.index,
        chain: Bytes::copy_from_slice(&fact.chain),
        verifier: fact.verifier.0,
        at_ms: fact.at.0,
    }
}

/// Decodes an offsite fact.
pub fn offsite_fact_from(fact: pb::OffsiteFact) -> Result<OffsiteFact, DecodeError> {
    Ok(OffsiteFact {
        destination: fact.destination,
        index: fact.index,
        chain: fixed("offsite fact", "chain", &fact.chain)?,
        verifier: NodeId(fact.verifier),
        at: Millis(fact.at_ms),
    })
}

/// Encodes a generation of keys.
pub fn archive_keys_to(keys: &ArchiveKeys) -> pb::ArchiveKeys {
    let ArchiveKeys { incarnation, generation, key_id, keys_age, recipients, since } = keys;
    let recipient =
        |recipient: &ArchiveRecipient| pb::ArchiveRecipient { key: recipient.key.clone(), drill: recipient.drill };
    pb::ArchiveKeys {
        incarnation: incarnation.0,
        generation: *generation,
        key_id: Bytes::copy_from_slice(key_id),
        keys_age: keys_age.clone(),
        recipients: recipients.iter().map(recipient).collect(),
        since_ms: since.0,
    }
}

/// Decodes a generation of keys.
pub fn archive_keys_from(keys: pb::ArchiveKeys) -> Result<ArchiveKeys, DecodeError> {
    let recipient = |recipient: pb::ArchiveRecipient| ArchiveRecipient { key: recipient.key, drill: recipient.drill };
    Ok(ArchiveKeys {
        incarnation: Incarnation(keys.incarnation),
        generation: keys.generation,
        key_id: fixed("archive keys", "key id", &keys.key_id)?,
        keys_age: keys.keys_age,
        recipients: keys.recipients.into_iter().map(recipient).collect(),
        since: Millis(keys.since_ms),
    })
}

/// Encodes a replica's word for a snapshot.
pub fn attestation_to(said: &Attestation) -> pb::Attestation {
    let Attestation { incarnation, index, node, key, word: Word { root, signature } } = said;
    pb::Attestation {
        incarnation: incarnation.0,
        index: *index,
        node_id: node.0,
        key: Bytes::copy_from_slice(key),
        root: Bytes::copy_from_slice(root),
        signature: Bytes::copy_from_slice(signature),
    }
}

/// Decodes a replica's word for a snapshot.
pub fn attestation_from(said: pb::Attestation) -> Result<Attestation, DecodeError> {
    const WHAT: &str = "attestation";
    Ok(Attestation {
        incarnation: Incarnation(said.incarnation),
        index: said.index,
        node: NodeId(said.node_id),
        key: fixed(WHAT, "key", &said.key)?,
        word: Word { root: fixed(WHAT, "root", &said.root)?, signature: fixed(WHAT, "signature", &said.signature)? },
    })
}

/// Encodes a fork.
pub fn lineage_fork_to(fork: &LineageFork) -> pb::LineageFork {
    let LineageFork { incarnation, destination, index, evidence, verifier, since } = fork;
    pb::LineageFork {
        incarnation: incarnation.0,
        destination: destination.clone(),
        index: *index,
        evidence: evidence.clone(),
        verifier: verifier.0,
        since_ms: since.0,
    }
}

/// Decodes a fork.
pub fn lineage_fork_from(fork: pb::LineageFork) -> LineageFork {
    LineageFork {
        incarnation: Incarnation(fork.incarnation),
        destination: fork.destination,
        index: fork.index,
        evidence: fork.evidence,
        verifier: NodeId(fork.verifier),
        since: Millis(fork.since_ms),
    }
}

/// Encodes lifetimes and quotas.
pub fn policy_to(policy: &Policy) -> pb::Policy {
    // No `..`: a new field must travel, or its absence be decided here.
    let Policy { tombstone_age_ms, device_expiry_ms, user_quota_bytes } = *policy;
    pb::Policy { tombstone_age_ms, device_expiry_ms, user_quota_bytes }
}

/// Decodes lifetimes and quotas.
pub fn policy_from(policy: pb::Policy) -> Policy {
    let pb::Policy { tombstone_age_ms, device_expiry_ms, user_quota_bytes } = policy;
    Policy { tombstone_age_ms, device_expiry_ms, user_quota_bytes }
}

/// Encodes a job's state.
pub fn operation_to(operation: &Operation) -> pb::Operation {
    pb::Operation {
        id: operation.id.clone(),
        done: operation.done,
        stage: operation.stage.clone(),
        done_units: operation.done_units,
        total_units: operation.total_units,
        error: operation.error.clone(),
        member_change: operation.member_change.as_deref().map(member_change_to),
    }
}

/// A member as membership entries and jobs carry it.
pub fn member_to(id: u64, member: &Member) -> pb::Member {
    pb::Member {
        id,
        client_address: member.client_address.clone(),
        peer_address: member.peer_address.clone(),
        admin_address: member.admin_address.clone(),
        http_address: member.http_address.clone(),
        labels: member.labels.iter().map(|(key, value)| pb::Label { key: key.clone(), value: value.clone() }).collect(),
        identity: member.identity.clone(),
    }
}

/// The other way round.
pub fn member_from(member: pb::Member) -> (u64, Member) {
    let labels = member.labels.into_iter().map(|label| (label.key, label.value)).collect();
    let decoded = Member {
        client_address: member.client_address,
        peer_address: member.peer_address,
        admin_address: member.admin_address,
        http_address: member.http_address,
        labels,
        identity: member.identity,
    };
    (member.id, decoded)
}

fn member_change_to(change: &MemberChange) -> pb::MemberChange {
    pb::MemberChange {
        add: change.add.as_ref().map(|add| member_to(add.id.0, &add.member)),
        keep_learner: change.keep_learner,
        remove: change.remove.map_or(0, |id| id.0),
    }
}

fn member_change_from(change: pb::MemberChange) -> MemberChange {
    let add = change.add.map(member_from);
    MemberChange {
        add: add.map(|(id, member)| NewMember { id: NodeId(id), member }),
        keep_learner: change.keep_learner,
        remove: (change.remove != 0).then_some(NodeId(change.remove)),
    }
}

/// Decodes a job's state.
pub fn operation_from(operation: pb::Operation) -> Operation {
    Operation {
        id: operation.id,
        done: operation.done,
        stage: operation.stage,
        done_units: operation.done_units,
        total_units: operation.total_units,
        error: operation.error,
        member_change: operation.member_change.map(member_change_from).map(Box::new),
    }
}

#[cfg(test)]
mod tests;
