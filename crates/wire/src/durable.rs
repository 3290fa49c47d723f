//! Durable formats: the values of a node's state database, and how far it is.
//!
//! Invariants: `decode_x(encode_x(v)) == v`; every decoder is total: any bytes give a value or a [`DecodeError`]; the
//! encoding of a value is unique (prost writes fields in order, maps are written as ordered lists), because the
//! effect chain is computed over it and must agree on every replica.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_model::attest::{Attested, Word};
use holdfast_model::command::Operation;
use holdfast_model::digest::Sum;
use holdfast_model::id::{
    Collection, ContentHash, DeviceId, Incarnation, Millis, NodeId, RecordId, RecordKey, Uid, Version,
};
use holdfast_model::outcome::{MutationResult, Usage};
use holdfast_model::state::{
    Ancestor, ChangeRow, CollectionDigest, DeviceRow, Fork, History, Places, RecordRow, RequestRow, Restoring, Sys,
    Totals, UserRow,
};

use crate::internal::v1 as pb;
use crate::log::{
    archive_keys_from, archive_keys_to, lineage_fork_from, lineage_fork_to, offsite_fact_from, offsite_fact_to,
    operation_from, operation_to, parent_from, parent_to, policy_from, policy_to, stages_from, stages_to,
};
use crate::{DecodeError, decode, encode, fixed};

/// Layout of a record's value; the first byte of it.
const RECORD_LAYOUT: u8 = 1;
/// Layout byte and length of the header.
const RECORD_PREFIX_BYTES: usize = 5;

/// How far a state is: what is written with every batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AppliedRecord {
    /// Last entry applied.
    pub position: Option<pb::LogId>,
    /// Encoded `StoredMembership`; empty = none.
    pub membership: Bytes,
    /// Chain over the entries.
    pub entry_chain: [u8; 32],
    /// Chain over the effects.
    pub effect_chain: [u8; 32],
}

/// Encodes how far a state is.
pub fn encode_applied(applied: &AppliedRecord) -> Bytes {
    encode(&pb::StoredApplied {
        position: applied.position,
        membership: applied.membership.clone(),
        entry_chain: copied(&applied.entry_chain),
        effect_chain: copied(&applied.effect_chain),
    })
}

/// Decodes how far a state is.
pub fn decode_applied(bytes: &[u8]) -> Result<AppliedRecord, DecodeError> {
    const WHAT: &str = "applied row";
    let message: pb::StoredApplied = decode(WHAT, bytes)?;
    Ok(AppliedRecord {
        position: message.position,
        membership: message.membership,
        entry_chain: fixed(WHAT, "entry_chain", &message.entry_chain)?,
        effect_chain: fixed(WHAT, "effect_chain", &message.effect_chain)?,
    })
}

/// Encodes group facts.
pub fn encode_sys(sys: &Sys) -> Bytes {
    // No `..`: a new field must be stored, or its absence be decided here.
    let Sys {
        now,
        rules,
        history,
        ancestors,
        uid_counter,
        digest,
        totals,
        offsite,
        barrier_index,
        policy,
        archive_keys,
        lineage_fork,
        restoring,
        attested,
    } = sys;
    let Attested { keys, words } = &**attested;
    encode(&pb::StoredSys {
        now_ms: now.0,
        rules: (*rules).into(),
        history: history.as_deref().map(history_to),
        ancestors: ancestors
            .iter()
            .map(|ended| pb::StoredAncestor { incarnation: ended.incarnation.0, epoch: ended.epoch.into() })
            .collect(),
        uid_counter: *uid_counter,
        digest: copied(&digest.0),
        total_users: totals.users,
        total_records: totals.records,
        total_bytes: totals.bytes,
        offsite: offsite.values().map(offsite_fact_to).collect(),
        barrier_index: *barrier_index,
        policy: Some(policy_to(policy)),
        archive_keys: archive_keys.as_deref().map(archive_keys_to),
        lineage_fork: lineage_fork.as_deref().map(lineage_fork_to),
        restoring: restoring.as_deref().map(|restoring| pb::StoredRestoring {
            left: stages_to(&restoring.left),
            through: restoring.through.clone(),
        }),
        node_keys: keys.iter().map(|(node, key)| pb::StoredNodeKey { node_id: node.0, key: copied(key) }).collect(),
        barriers: words.iter().map(|(index, words)| barrier_to(*index, words)).collect(),
    })
}

/// Decodes group facts.
pub fn decode_sys(bytes: &[u8]) -> Result<Sys, DecodeError> {
    const WHAT: &str = "group facts";
    let message: pb::StoredSys = decode(WHAT, bytes)?;
    let mut offsite = BTreeMap::new();
    for fact in message.offsite {
        let fact = offsite_fact_from(fact)?;
        offsite.insert(fact.destination.clone(), fact);
    }
    let mut attested = Attested::default();
    for known in message.node_keys {
        attested.keys.insert(NodeId(known.node_id), fixed(WHAT, "key of a node", &known.key)?);
    }
    for barrier in message.barriers {
        let words = attested.words.entry(barrier.index).or_default();
        for word in barrier.words {
            let (node, root, signature) = (NodeId(word.node_id), &word.root, &word.signature);
            let word = Word { root: fixed(WHAT, "root", root)?, signature: fixed(WHAT, "signature", signature)? };
            words.insert(node, word);
        }
    }
    Ok(Sys {
        now: Millis(message.now_ms),
        rules: short(WHAT, "rules", message.rules)?,
        history: message.history.map(history_from).transpose()?.map(Arc::new),
        ancestors: message
            .ancestors
            .into_iter()
            .map(|ended| {
                let epoch = short(WHAT, "epoch of an ancestor", ended.epoch)?;
                Ok(Ancestor { incarnation: Incarnation(ended.incarnation), epoch })
            })
            .collect::<Result<_, DecodeError>>()?,
        uid_counter: message.uid_counter,
        digest: Sum(fixed(WHAT, "digest", &message.digest)?),
        totals: Totals { users: message.total_users, records: message.total_records, bytes: message.total_bytes },
        offsite: Arc::new(offsite),
        barrier_index: message.barrier_index,
        policy: message.policy.map(policy_from).unwrap_or_default(),
        archive_keys: message.archive_keys.map(archive_keys_from).transpose()?.map(Arc::new),
        lineage_fork: message.lineage_fork.map(lineage_fork_from).map(Arc::new),
        restoring: message
            .restoring
            .map(|stored| {
                let left = stages_from(WHAT, &stored.left)?;
                Ok::<_, DecodeError>(Arc::new(Restoring { left, through: stored.through }))
            })
            .transpose()?,
        attested: Arc::new(attested),
    })
}

fn barrier_to(index: u64, words: &BTreeMap<NodeId, Word>) -> pb::StoredBarrier {
    let word = |(node, word): (&NodeId, &Word)| pb::StoredWord {
        node_id: node.0,
        root: copied(&word.root),
        signature: Bytes::copy_from_slice(&word.signature),
    };
    pb::StoredBarrier { index, words: words.iter().map(word).collect() }
}

fn history_to(history: &History) -> pb::StoredHistory {
    let History { cluster_id, cluster_name, incarnation, epoch, parent, genesis_index } = history;
    pb::StoredHistory {
        cluster_id: copied(cluster_id),
        cluster_name: cluster_name.clone(),
        incarnation: incarnation.0,
        epoch: (*epoch).into(),
        parent: parent.as_ref().map(parent_to),
        genesis_index: *genesis_index,
    }
}

fn history_from(history: pb::StoredHistory) -> Result<History, DecodeError> {
    const WHAT: &str = "history";
    Ok(History {
        cluster_id: fixed(WHAT, "cluster_id", &history.cluster_id)?,
        cluster_name: history.cluster_name,
        incarnation: Incarnation(history.incarnation),
        epoch: short(WHAT, "epoch", history.epoch)?,
        parent: history.parent.map(parent_from).transpose()?,
        genesis_index: history.genesis_index,
    })
}

/// Encodes the number of a user.
pub fn encode_uid(uid: Uid) -> [u8; 8] {
    uid.0.to_be_bytes()
}

/// Decodes the number of a user.
pub fn decode_uid(bytes: &[u8]) -> Result<Uid, DecodeError> {
    Ok(Uid(u64::from_be_bytes(fixed("user number", "value", bytes)?)))
}

/// Encodes a user's row.
pub fn encode_user(row: &UserRow) -> Bytes {
    let UserRow { head, tombstone_horizon, usage, collections, forks, places } = row;
    encode(&pb::StoredUser {
        head: head.0,
        tombstone_horizon: tombstone_horizon.0,
        used_bytes: usage.used_bytes,
        record_count: usage.record_count,
        collections: collections
            .iter()
            .map(|(name, digest)| pb::StoredCollection {
                name: name.as_str().to_owned(),
                count: digest.count,
                sum: copied(&digest.sum.0),
            })
            .collect(),
        forks: forks
            .iter()
            .map(|fork| pb::StoredFork { incarnation: fork.incarnation.0, common: fork.common.0 })
            .collect(),
        head_index: places.head_index,
        mark: places.mark.0,
        mark_index: places.mark_index,
        settled: places.settled.0,
    })
}

/// Decodes a user's row.
pub fn decode_user(bytes: &[u8]) -> Result<UserRow, DecodeError> {
    const WHAT: &str = "user row";
    let message: pb::StoredUser = decode(WHAT, bytes)?;
    let mut collections = BTreeMap::new();
    for stored in message.collections {
        let name = Collection::new(&stored.name).map_err(|error| DecodeError::new(WHAT, error))?;
        let sum = Sum(fixed(WHAT, "sum of a collection", &stored.sum)?);
        collections.insert(name, CollectionDigest { count: stored.count, sum });
    }
    Ok(UserRow {
        head: Version(message.head),
        tombstone_horizon: Version(message.tombstone_horizon),
        usage: Usage { used_bytes: message.used_bytes, record_count: message.record_count },
        collections,
        forks: message
            .forks
            .into_iter()
            .map(|fork| Fork { incarnation: Incarnation(fork.incarnation), common: Version(fork.common) })
            .collect(),
        places: Places {
            head_index: message.head_index,
            mark: Version(message.mark),
            mark_index: message.mark_index,
            settled: Version(message.settled),
        },
    })
}

/// Encodes the header of a record: what its value holds besides the payload, which it names by its content hash.
pub fn encode_record_header(row: &RecordRow) -> Bytes {
    let RecordRow {
        version,
        ordinal,
        content_hash,
        content_type,
        payload_len,
        update_time,
        delete_time,
        expire_time,
        purge_time,
        lost,
    } = row;
    encode(&pb::StoredRecordHeader {
        version: version.0,
        ordinal: (*ordinal).into(),
        content_hash: copied(&content_hash.0),
        content_type: content_type.clone(),
        payload_len: *payload_len,
        update_time_ms: update_time.0,
        delete_time_ms: delete_time.map(|at| at.0),
        key_id: 0,
        expire_time_ms: expire_time.map(|at| at.0),
        purge_time_ms: purge_time.map(|at| at.0),
        lost: lost.map(|version| version.0),
    })
}

/// Encodes a record's value: layout byte, header length (u32 big-endian), header, payload.
pub fn encode_record(row: &RecordRow, payload: &[u8]) -> Bytes {
    record_value(&encode_record_header(row), payload)
}

/// The same, from an encoded header.
pub fn record_value(header: &[u8], payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(RECORD_PREFIX_BYTES + header.len() + payload.len());
    out.put_u8(RECORD_LAYOUT);
    // A header holds a few numbers and two short texts.
    out.put_u32(header.len() as u32);
    out.put_slice(header);
    out.put_slice(payload);
    out.freeze()
}

/// A record's row, and where its payload is not there: a restore brings it later. The length of the value tells.
pub fn decode_record_parts(value: &[u8]) -> Result<(RecordRow, Payload<'_>), DecodeError> {
    let (row, payload_at) = decode_record_row_at(value)?;
    let payload = &value[payload_at..];
    let held_back = payload.len() as u64 != row.payload_len;
    Ok((row, if held_back { Payload::HeldBack } else { Payload::There(payload) }))
}

/// A record's value without its payload: that of a record whose payload is held back.
pub fn record_head(value: &[u8]) -> Result<&[u8], DecodeError> {
    decode_record_row_at(value).map(|(_, payload_at)| &value[..payload_at])
}

/// What the value of a record holds of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// All of it.
    There(&'a [u8]),
    /// Nothing: the row names it by length and hash, and a restore brings it later.
    HeldBack,
}

/// Decodes a record's row out of its value.
pub fn decode_record_row(bytes: &[u8]) -> Result<RecordRow, DecodeError> {
    decode_record_row_at(bytes).map(|(row, _)| row)
}

fn decode_record_row_at(bytes: &[u8]) -> Result<(RecordRow, usize), DecodeError> {
    const WHAT: &str = "record";
    let (prefix, rest) = bytes
        .split_first_chunk::<RECORD_PREFIX_BYTES>()
        .ok_or_else(|| DecodeError::new(WHAT, format!("{} bytes are too few", bytes.len())))?;
    let [layout, length @ ..] = *prefix;
    if layout != RECORD_LAYOUT {
        return Err(DecodeError::new(WHAT, format!("layout {layout} is not known")));
    }
    let header_len = u32::from_be_bytes(length) as usize;
    let header = rest
        .get(..header_len)
        .ok_or_else(|| DecodeError::new(WHAT, format!("header of {header_len} bytes is cut off")))?;
    let message: pb::StoredRecordHeader = decode(WHAT, header)?;
    if message.key_id != 0 {
        return Err(DecodeError::new(WHAT, format!("encrypted under key {}, which is not supported", message.key_id)));
    }
    let payload_len = rest.len() - header_len;
    if message.payload_len != payload_len as u64 && payload_len > 0 {
        let reason = format!("payload has {payload_len} bytes, the header says {}", message.payload_len);
        return Err(DecodeError::new(WHAT, reason));
    }
    let row = RecordRow {
        version: Version(message.version),
        ordinal: short(WHAT, "ordinal", message.ordinal)?,
        content_hash: ContentHash(fixed(WHAT, "content_hash", &message.content_hash)?),
        content_type: message.content_type,
        payload_len: message.payload_len,
        update_time: Millis(message.update_time_ms),
        delete_time: message.delete_time_ms.map(Millis),
        expire_time: message.expire_time_ms.map(Millis),
        purge_time: message.purge_time_ms.map(Millis),
        lost: message.lost.map(Version),
    };
    Ok((row, RECORD_PREFIX_BYTES + header_len))
}

/// Encodes a row of the change feed.
pub fn encode_change(row: &ChangeRow) -> Bytes {
    let ChangeRow { key, content_hash, deleted, device } = row;
    encode(&pb::StoredChange {
        collection: key.collection.as_str().to_owned(),
        record_id: key.record_id.as_str().to_owned(),
        content_hash: copied(&content_hash.0),
        deleted: *deleted,
        device_id: device.as_ref().map(|device| device.as_str().to_owned()).unwrap_or_default(),
    })
}

/// Decodes a row of the change feed.
pub fn decode_change(bytes: &[u8]) -> Result<ChangeRow, DecodeError> {
    const WHAT: &str = "change row";
    let bad = |error| DecodeError::new(WHAT, error);
    let message: pb::StoredChange = decode(WHAT, bytes)?;
    Ok(ChangeRow {
        key: RecordKey {
            collection: Collection::new(&message.collection).map_err(bad)?,
            record_id: RecordId::new(&message.record_id).map_err(bad)?,
        },
        content_hash: ContentHash(fixed(WHAT, "content_hash", &message.content_hash)?),
        deleted: message.deleted,
        device: match message.device_id.as_str() {
            "" => None,
            device => Some(DeviceId::new(device).map_err(bad)?),
        },
    })
}

/// Encodes a device's cursor.
pub fn encode_device(row: &DeviceRow) -> Bytes {
    let DeviceRow { acked, ack_time, expires } = row;
    encode(&pb::StoredDevice { acked: acked.0, ack_time_ms: ack_time.0, expires_ms: expires.0 })
}

/// Decodes a device's cursor.
pub fn decode_device(bytes: &[u8]) -> Result<DeviceRow, DecodeError> {
    let message: pb::StoredDevice = decode("device row", bytes)?;
    Ok(DeviceRow {
        acked: Version(message.acked),
        ack_time: Millis(message.ack_time_ms),
        expires: Millis(message.expires_ms),
    })
}

/// Encodes a remembered request.
pub fn encode_request(row: &RequestRow) -> Bytes {
    let RequestRow { fingerprint, version, usage, results, commit_index, expires } = row;
    encode(&pb::StoredRequest {
        fingerprint: copied(fingerprint),
        version: version.0,
        used_bytes: usage.used_bytes,
        record_count: usage.record_count,
        results: results
            .iter()
            .map(|result| pb::MutationResult { changed: result.changed, version: result.version.0 })
            .collect(),
        commit_index: *commit_index,
        expires_ms: expires.0,
    })
}

/// Decodes a remembered request.
pub fn decode_request(bytes: &[u8]) -> Result<RequestRow, DecodeError> {
    const WHAT: &str = "request row";
    let message: pb::StoredRequest = decode(WHAT, bytes)?;
    Ok(RequestRow {
        fingerprint: fixed(WHAT, "fingerprint", &message.fingerprint)?,
        version: Version(message.version),
        usage: Usage { used_bytes: message.used_bytes, record_count: message.record_count },
        results: message
            .results
            .into_iter()
            .map(|result| MutationResult { changed: result.changed, version: Version(result.version) })
            .collect(),
        commit_index: message.commit_index,
        expires: Millis(message.expires_ms),
    })
}

/// Encodes the state of a job.
pub fn encode_operation(operation: &Operation) -> Bytes {
    encode(&operation_to(operation))
}

/// Decodes the state of a job.
pub fn decode_operation(bytes: &[u8]) -> Result<Operation, DecodeError> {
    decode("operation", bytes).map(operation_from)
}

fn copied(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn short(what: &'static str, field: &str, value: u32) -> Result<u16, DecodeError> {
    u16::try_from(value).map_err(|_| DecodeError::new(what, format!("{field} is {value}, out of range")))
}

#[cfg(test)]
mod tests;
