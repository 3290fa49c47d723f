//! Chunks: the rows of a snapshot, cut where the keys say so.
//!
//! A chunk is named by the hash of its rows, keyed where they are encrypted. Cuts depend on keys and row lengths near them only, so that a change of
//! one row leaves the chunks away from it as they were, and a later snapshot need not ship them again.
//!
//! Invariants:
//! - Rows are strictly ascending by (family, key), within a chunk and over all of them; a chunk has rows of one family.
//! - The same rows give the same chunks on every replica. The constants below are part of the format: with others,
//!   equal states would have unequal roots.
//! - The name of a chunk is the hash of its plain bytes, checked before a row of it is used.

use bytes::{Buf, Bytes};
use holdfast_store::RawRow;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::error::ArchiveError;
use crate::keys::Keyring;
use crate::layout::{LineageId, ObjectName, hex};
use crate::manifest::ManifestChunk;
use crate::object::{self, Sealed};
use crate::sealing::Sealing;

/// No cut below this many plain bytes, except at the end of a family.
const PLAIN_BYTES_MIN: usize = 1 << 20;
/// Expected distance from there to the next cut.
const CUT_SPREAD_BYTES: u64 = 3 << 20;
/// A row that would go beyond this many plain bytes starts a new chunk.
const PLAIN_BYTES_CUT: usize = 8 << 20;

const ROW_HEADER_BYTES: usize = 9;

/// Rows that go into one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainChunk {
    /// Family of all rows.
    pub family: u8,
    /// First key.
    pub first_key: Vec<u8>,
    /// Rows.
    pub rows: u64,
    /// Encoded rows.
    pub plain: Vec<u8>,
}

/// Cuts a canonical stream of rows into chunks.
#[derive(Debug, Default)]
pub struct Chunker {
    current: Option<PlainChunk>,
    last_key: Vec<u8>,
}

impl Chunker {
    /// Adds a row; gives the chunk that ended before it, if one did.
    ///
    /// # Errors
    /// When the row does not follow the one before it.
    pub fn push(&mut self, row: &RawRow) -> Result<Option<PlainChunk>, ArchiveError> {
        if let Some(current) = &self.current
            && (row.family, &row.key) <= (current.family, &self.last_key)
        {
            let reason = format!("rows of family {} and {} are out of order", current.family, row.family);
            return Err(ArchiveError::refused(reason));
        }
        let ended = self.current.take_if(|current| is_cut(current, row));
        let current = self.current.get_or_insert_with(|| PlainChunk {
            family: row.family,
            first_key: row.key.clone(),
            rows: 0,
            plain: Vec::new(),
        });
        current.rows += 1;
        current.plain.push(row.family);
        current.plain.extend_from_slice(&(row.key.len() as u32).to_be_bytes());
        current.plain.extend_from_slice(&(row.value.len() as u32).to_be_bytes());
        current.plain.extend_from_slice(&row.key);
        current.plain.extend_from_slice(&row.value);
        self.last_key.clone_from(&row.key);
        Ok(ended)
    }

    /// The last chunk, if there was any row.
    pub fn finish(self) -> Option<PlainChunk> {
        self.current
    }
}

/// Whether `row` starts a new chunk.
fn is_cut(current: &PlainChunk, row: &RawRow) -> bool {
    let row_bytes = ROW_HEADER_BYTES + row.key.len() + row.value.len();
    if current.family != row.family || current.plain.len() + row_bytes > PLAIN_BYTES_CUT {
        return true;
    }
    // One cut is expected every CUT_SPREAD_BYTES, whatever the size of the rows.
    let threshold = (u64::MAX / CUT_SPREAD_BYTES).saturating_mul(row_bytes as u64);
    current.plain.len() >= PLAIN_BYTES_MIN && key_hash(&row.key) < threshold
}

fn key_hash(key: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(key).as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// A packed chunk and its line in the manifest.
#[derive(Debug, Clone)]
pub(crate) struct SealedChunk {
    pub(crate) line: ManifestChunk,
    pub(crate) sealed: Sealed,
}

/// Packs a chunk.
///
/// # Errors
/// When it is too large for an object.
pub(crate) fn seal(
    lineage: &LineageId,
    generation: u32,
    sealing: &Sealing,
    chunk: &PlainChunk,
) -> Result<SealedChunk, ArchiveError> {
    let kind = Kind::Chunk(pb::ArchiveChunkHeader { rows: chunk.rows });
    let plain_blake3 = *blake3::hash(&chunk.plain).as_bytes();
    let name = sealing.chunk_name(&plain_blake3);
    let object = ObjectName::Chunk { generation, name }.path(lineage);
    let sealed = object::seal(&object, lineage, kind, sealing, &chunk.plain)?;
    let line = ManifestChunk {
        generation,
        name,
        plain_blake3,
        plain_length: chunk.plain.len() as u64,
        stored_length: sealed.bytes.len() as u64,
        stored_seal: sealed.seal,
        family: chunk.family,
        first_key: chunk.first_key.clone(),
        rows: chunk.rows,
    };
    Ok(SealedChunk { line, sealed })
}

/// Rows of a chunk that was read and checked.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Hash of the plain bytes.
    pub plain_blake3: [u8; 32],
    /// Hash that ends the object.
    pub seal: [u8; 32],
    rows: u64,
    plain: Bytes,
}

impl Chunk {
    /// Reads a chunk and checks everything that it says about itself.
    ///
    /// # Errors
    /// Names `object` and what is wrong.
    pub fn open(
        object: &str,
        lineage: &LineageId,
        keys: &Keyring,
        name: &[u8; 32],
        bytes: &Bytes,
    ) -> Result<Self, ArchiveError> {
        let opened = object::open(object, lineage, keys, bytes)?;
        let Kind::Chunk(header) = opened.kind else {
            return Err(ArchiveError::corrupt(object, "it is no chunk"));
        };
        if opened.chunk_name() != *name {
            let reason = format!("its rows hash to {}, not to its name", hex(&opened.chunk_name()));
            return Err(ArchiveError::corrupt(object, reason));
        }
        let chunk =
            Self { plain_blake3: opened.plain_blake3, seal: opened.seal, rows: header.rows, plain: opened.plain };
        chunk.check_rows().map_err(|reason| ArchiveError::corrupt(object, reason))?;
        Ok(chunk)
    }

    /// Checks that this is the chunk that a manifest means.
    ///
    /// # Errors
    /// Names `object` and what differs.
    pub fn check_line(&self, object: &str, line: &ManifestChunk) -> Result<(), ArchiveError> {
        let first = self.rows().next();
        let as_said = self.plain_blake3 == line.plain_blake3
            && self.rows == line.rows
            && self.plain.len() as u64 == line.plain_length
            && first.is_some_and(|row| row.family == line.family && row.key == line.first_key);
        if as_said { Ok(()) } else { Err(ArchiveError::corrupt(object, "it is not what the manifest says of it")) }
    }

    /// Encoded rows, in bytes.
    pub fn plain_length(&self) -> u64 {
        self.plain.len() as u64
    }

    /// The rows in order.
    pub fn rows(&self) -> impl Iterator<Item = RawRow> {
        let mut rest = self.plain.clone();
        std::iter::from_fn(move || next_row(&mut rest).ok().flatten())
    }

    fn check_rows(&self) -> Result<(), String> {
        let mut rest = self.plain.clone();
        let mut last: Option<RawRow> = None;
        let mut rows = 0;
        while let Some(row) = next_row(&mut rest)? {
            if let Some(last) = last
                && (last.family != row.family || last.key >= row.key)
            {
                return Err(format!("row {rows} is out of order"));
            }
            last = Some(row);
            rows += 1;
        }
        if rows == self.rows && rows > 0 { Ok(()) } else { Err(format!("it has {rows} rows, not {}", self.rows)) }
    }
}

fn next_row(rest: &mut Bytes) -> Result<Option<RawRow>, String> {
    if rest.is_empty() {
        return Ok(None);
    }
    let short = || "a row ends beyond the chunk".to_owned();
    if rest.len() < ROW_HEADER_BYTES {
        return Err(short());
    }
    let family = rest.get_u8();
    let key_bytes = rest.get_u32() as usize;
    let value_bytes = rest.get_u32() as usize;
    if rest.len() < key_bytes.checked_add(value_bytes).ok_or_else(short)? {
        return Err(short());
    }
    let key = rest.split_to(key_bytes).to_vec();
    let value = rest.split_to(value_bytes).to_vec();
    Ok(Some(RawRow { family, key, value }))
}

#[cfg(test)]
mod tests;
