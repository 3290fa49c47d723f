//! Digests: order-independent sums over live records and over users, and the hash of a record's content.
//!
//! They find faults (a lost row, a flipped bit, a replica that went its own way); they are not forgery-proof.
//! Invariant: a digest kept incrementally equals the one computed over the rows themselves.

use bytes::Bytes;

use crate::command::{Content, Guard, Mutation, Op, RestoreGuard, WriteBatch};
use crate::id::{ContentHash, RecordId, RecordKey, Uid, Version};
use crate::state::{CollectionDigest, Fork, Places, RecordRow, UserRow};

/// A sum modulo 2^256, kept as big-endian bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(pub [u8; 32]);

impl Sum {
    /// Adds modulo 2^256.
    pub fn add(&mut self, term: [u8; 32]) {
        let mut carry = 0u16;
        for (a, b) in self.0.iter_mut().zip(term.iter()).rev() {
            let sum = u16::from(*a) + u16::from(*b) + carry;
            *a = sum as u8;
            carry = sum >> 8;
        }
    }

    /// Subtracts modulo 2^256.
    pub fn sub(&mut self, term: [u8; 32]) {
        let mut borrow = 0i16;
        for (a, b) in self.0.iter_mut().zip(term.iter()).rev() {
            let diff = i16::from(*a) - i16::from(*b) - borrow;
            *a = diff as u8;
            borrow = i16::from(diff < 0);
        }
    }
}

/// What one live record adds to its collection's digest: BLAKE3 of record id length (u64 big-endian), record id,
/// version (u64 big-endian) and content hash. Public: devices compute the same (`sync.proto`).
pub fn entry_hash(record_id: &RecordId, version: Version, content_hash: ContentHash) -> [u8; 32] {
    let id = record_id.as_str().as_bytes();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(id.len() as u64).to_be_bytes());
    hasher.update(id);
    hasher.update(&version.0.to_be_bytes());
    hasher.update(&content_hash.0);
    *hasher.finalize().as_bytes()
}

/// Hash of everything a caller sets on a record, each part length-prefixed as u64 big-endian: content type, payload,
/// number of blob references (0 until they exist), TTL in seconds (0 = none).
pub fn content_hash(content: &Content) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    for part in [content.content_type.as_bytes(), &content.payload[..]] {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.update(&0u64.to_be_bytes());
    hasher.update(&u64::from(content.ttl_seconds).to_be_bytes());
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    ContentHash(out)
}

/// The content of a live record, out of its row and a payload; `None` = its row names another payload.
pub fn content_of(row: &RecordRow, payload: &Bytes) -> Option<Content> {
    // The hash covers the TTL, which the row keeps as a moment.
    let ttl_ms = row.expire_time.map_or(0, |at| at.0.saturating_sub(row.update_time.0));
    let ttl_seconds = u32::try_from(ttl_ms / 1000).unwrap_or(u32::MAX);
    let content = Content { content_type: row.content_type.clone(), payload: payload.clone(), ttl_seconds };
    let is_named =
        row.is_live() && row.payload_len == payload.len() as u64 && content_hash(&content) == row.content_hash;
    is_named.then_some(content)
}

/// What one user row adds to the group's digest: BLAKE3 of these, numbers as u64 big-endian, texts length-prefixed as
/// u64 big-endian: uid, head, tombstone horizon, used bytes, record count; number of collections and per collection
/// (in order of name) name, count, 32 bytes of sum; number of forks and per fork incarnation, common version; index of
/// the head, mark, index of the mark, settled version.
pub fn user_row_hash(uid: Uid, row: &UserRow) -> [u8; 32] {
    // No `..`: a new field must be digested, or its absence be decided here.
    let UserRow { head, tombstone_horizon, usage, collections, forks, places } = row;
    let mut hasher = blake3::Hasher::new();
    for number in [uid.0, head.0, tombstone_horizon.0, usage.used_bytes, usage.record_count] {
        hasher.update(&number.to_be_bytes());
    }
    hasher.update(&(collections.len() as u64).to_be_bytes());
    for (collection, CollectionDigest { count, sum }) in collections {
        text(&mut hasher, collection.as_str());
        hasher.update(&count.to_be_bytes());
        hasher.update(&sum.0);
    }
    hasher.update(&(forks.len() as u64).to_be_bytes());
    for Fork { incarnation, common } in forks {
        hasher.update(&incarnation.0.to_be_bytes());
        hasher.update(&common.0.to_be_bytes());
    }
    let Places { head_index, mark, mark_index, settled } = places;
    for number in [*head_index, mark.0, *mark_index, settled.0] {
        hasher.update(&number.to_be_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// First 16 bytes of BLAKE3 over the canonical body of a batch: equal for retries, different for other requests.
///
/// The body is everything but the request id, `first_sent` and the fingerprint itself. Numbers are u64 big-endian, texts
/// length-prefixed as such, options a byte 0 or 1 before the value: user, device, `if_head`, `if_incarnation`, number
/// of mutations and per mutation collection, record id, operation (1 and the content hash for a put, 2 for a delete),
/// guard (0 none, 1 and the version, 2 absent, 3 exists, 4 and common version, lost version, lost incarnation).
pub fn fingerprint(batch: &WriteBatch) -> [u8; 16] {
    // No `..`: a new field must become part of the body, or its absence be decided here.
    let WriteBatch { user, request_id: _, fingerprint: _, first_sent: _, device, if_head, if_incarnation, mutations } =
        batch;
    let mut hasher = blake3::Hasher::new();
    text(&mut hasher, user.as_str());
    match device {
        None => hasher.update(&[0]),
        Some(device) => text(hasher.update(&[1]), device.as_str()),
    };
    for number in [if_head.map(|version| version.0), if_incarnation.map(|incarnation| incarnation.0)] {
        match number {
            None => hasher.update(&[0]),
            Some(number) => hasher.update(&[1]).update(&number.to_be_bytes()),
        };
    }
    hasher.update(&(mutations.len() as u64).to_be_bytes());
    for Mutation { key: RecordKey { collection, record_id }, op, guard } in mutations {
        text(&mut hasher, collection.as_str());
        text(&mut hasher, record_id.as_str());
        match op {
            Op::Put(content) => hasher.update(&[1]).update(&content_hash(content).0),
            Op::Delete => hasher.update(&[2]),
        };
        match guard {
            Guard::None => hasher.update(&[0]),
            Guard::Version(version) => hasher.update(&[1]).update(&version.0.to_be_bytes()),
            Guard::Absent => hasher.update(&[2]),
            Guard::Exists => hasher.update(&[3]),
            Guard::Restore(RestoreGuard { common, lost, incarnation }) => {
                hasher.update(&[4]);
                [common.0, lost.0, incarnation.0]
                    .iter()
                    .fold(&mut hasher, |to, number| to.update(&number.to_be_bytes()))
            }
        };
    }
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

fn text<'a>(hasher: &'a mut blake3::Hasher, text: &str) -> &'a mut blake3::Hasher {
    hasher.update(&(text.len() as u64).to_be_bytes()).update(text.as_bytes())
}
