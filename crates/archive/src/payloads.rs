//! Large payloads, apart from the records that they are of: a restore can bring back everything else first, and then the
//! payloads of one collection after the other.
//!
//! In the canonical order of a snapshot they follow all rows, as a family of their own:
//!
//! ```text
//! key: stage u8 | key of the record      value: the payload
//! ```
//! The row of such a record has its value without the payload; it names the payload by length and hash.
//!
//! Invariants:
//! - Which payloads lie apart depends on their length alone: equal states have equal rows.
//! - A record's row that is the same has the same payload.

use bytes::Bytes;
use holdfast_model::id::{RecordKey, Stage};
use holdfast_model::state::UserRef;
use holdfast_store::RawRow;
use holdfast_store::keyspace::{Family, rec};
use holdfast_wire::DecodeError;
use holdfast_wire::durable;

use crate::chunk::Chunk;
use crate::error::ArchiveError;
#[cfg(doc)]
use crate::manifest::Manifest;
use crate::rows::PatchRow;

/// Tag of the family.
pub(crate) const FAMILY: u8 = 11;
/// A record's value with so many bytes has its payload apart. Smaller ones are worth less than a row of their own costs.
/// Part of the format.
const VALUE_BYTES_LARGE: usize = 4096;

/// A part of a snapshot that can be read without the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// All rows, and small payloads.
    Rows,
    /// Large payloads of a stage.
    Payloads(Stage),
}

impl Section {
    /// How many there are.
    pub(crate) const COUNT: usize = 7;

    /// Of a row, by its place in canonical order.
    pub(crate) fn of(family: u8, key: &[u8]) -> Self {
        let stage = (family == FAMILY).then(|| key.first().copied().and_then(Stage::of_number)).flatten();
        stage.map_or(Self::Rows, Self::Payloads)
    }

    /// Its place among all.
    pub(crate) fn place(self) -> usize {
        match self {
            Self::Rows => 0,
            Self::Payloads(stage) => 1 + usize::from(stage.number()),
        }
    }
}

/// A row of a state as a snapshot has it, and its payload, if that lies apart.
///
/// # Errors
/// When it is a record that does not decode.
pub(crate) fn split(mut row: RawRow) -> Result<(RawRow, Option<RawRow>), DecodeError> {
    if row.family != Family::Rec.tag() || row.value.len() < VALUE_BYTES_LARGE {
        return Ok((row, None));
    }
    let key = key_of(&row.key)?;
    let head = durable::record_head(&row.value)?.len();
    let payload = row.value.split_off(head);
    Ok((row, Some(RawRow { family: FAMILY, key, value: payload })))
}

/// Key of the payload of the record under this key.
///
/// # Errors
/// When that is no key of a record.
pub(crate) fn key_of(record: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (_, name) = rec::parse(record)?;
    Ok([&[name.collection.stage().number()], record].concat())
}

/// Key of the record that a payload is of.
pub(crate) fn record_of(key: &[u8]) -> &[u8] {
    key.get(1..).unwrap_or_default()
}

/// In the rows of a snapshot: a record whose payload lies apart.
pub(crate) fn lies_apart(row: &PatchRow) -> bool {
    let value = row.value.as_ref().filter(|_| row.family == Family::Rec.tag());
    let parts = value.map(|value| durable::decode_record_parts(value));
    matches!(parts, Some(Ok((_, durable::Payload::HeldBack))))
}

/// A payload that lies apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Its place among those of its stage: they ascend.
    pub place: Bytes,
    /// Owner of the record.
    pub user: UserRef,
    /// The record.
    pub key: RecordKey,
    /// Its bytes.
    pub payload: Bytes,
}

/// The payloads in a chunk, by place. What reads them is [`crate::compose::read_rows`] of [`Manifest::only`] their section.
///
/// # Errors
/// When a key is none of a record: then this is no chunk of payloads.
pub fn payloads_in(chunk: &Chunk) -> Result<Vec<Payload>, ArchiveError> {
    let payload = |row: PatchRow| {
        let (user, key) = rec::parse(record_of(&row.key))
            .map_err(|error| ArchiveError::refused(format!("a payload of a snapshot: {error}")))?;
        Ok(Payload { place: row.key, user, key, payload: row.value.unwrap_or_default() })
    };
    chunk.patch_rows().map(payload).collect()
}
