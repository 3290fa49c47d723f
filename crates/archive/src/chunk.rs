//! Chunks: the rows of a snapshot, cut where the keys say so.
//!
//! A chunk is named by the hash of its rows, keyed where they are encrypted. Cuts depend on keys and row lengths near them only, so that a change of
//! one row leaves the chunks away from it as they were, and a later snapshot need not ship them again.
//!
//! Invariants:
//! - Rows are strictly ascending by (family, key), within a chunk and over all of them; a chunk has rows of one family, and
//!   payloads of one stage.
//! - The same rows give the same chunks on every replica. The constants below are part of the format: with others,
//!   equal states would have unequal roots.
//! - The name of a chunk is the hash of its plain bytes, checked before a row of it is used.

use bytes::Bytes;
use holdfast_store::RawRow;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::error::ArchiveError;
use crate::keys::Keyring;
use crate::layout::{LineageId, ObjectName, hex};
use crate::manifest::{ChunkRows, ManifestChunk};
use crate::object::{self, Sealed};
use crate::payloads::Section;
use crate::rows::{PatchRow, ROW_HEADER_BYTES, check_rows, next_row, put_row};
use crate::sealing::Sealing;

/// No cut below this many plain bytes, except at the end of a family.
const PLAIN_BYTES_MIN: usize = 1 << 20;
/// Expected distance from there to the next cut.
const CUT_SPREAD_BYTES: u64 = 3 << 20;
/// A row that would go beyond this many plain bytes starts a new chunk.
const PLAIN_BYTES_CUT: usize = 8 << 20;

/// Rows that go into one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainChunk {
    /// Family of all rows; of a patch, of the first one.
    pub family: u8,
    /// First key.
    pub first_key: Vec<u8>,
    /// Rows.
    pub rows: u64,
    /// Encoded rows.
    pub plain: Vec<u8>,
}

impl PlainChunk {
    /// What a manifest says of them.
    pub(crate) fn chunk_rows(&self) -> ChunkRows {
        ChunkRows {
            plain_blake3: *blake3::hash(&self.plain).as_bytes(),
            plain_length: self.plain.len() as u64,
            family: self.family,
            first_key: self.first_key.clone(),
            rows: self.rows,
        }
    }
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
    pub fn push(&mut self, family: u8, key: &[u8], value: &[u8]) -> Result<Option<PlainChunk>, ArchiveError> {
        if let Some(current) = &self.current
            && (family, key) <= (current.family, &self.last_key)
        {
            let reason = format!("rows of family {} and {family} are out of order", current.family);
            return Err(ArchiveError::refused(reason));
        }
        let ended = self.current.take_if(|current| is_cut(current, family, key, value.len()));
        let current = self.current.get_or_insert_with(|| PlainChunk {
            family,
            first_key: key.to_vec(),
            rows: 0,
            plain: Vec::new(),
        });
        current.rows += 1;
        put_row(&mut current.plain, family, key, Some(value));
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        Ok(ended)
    }

    /// The last chunk, if there was any row.
    pub fn finish(self) -> Option<PlainChunk> {
        self.current
    }
}

/// Cuts the rows of a state, each section for itself: the one way to a snapshot's root.
#[derive(Debug, Default)]
pub(crate) struct Chunkers([Chunker; Section::COUNT]);

impl Chunkers {
    /// Adds a row of the state, or a payload that lies apart; gives the chunk of its section that ended before it.
    ///
    /// # Errors
    /// When the row does not follow the one before it.
    pub(crate) fn push(&mut self, row: &RawRow) -> Result<Option<PlainChunk>, ArchiveError> {
        let section = Section::of(row.family, &row.key);
        self.0[section.place()].push(row.family, &row.key, &row.value)
    }

    /// The last chunk of each section.
    pub(crate) fn finish(self) -> impl Iterator<Item = PlainChunk> {
        self.0.into_iter().filter_map(Chunker::finish)
    }
}

/// Whether a row starts a new chunk.
fn is_cut(current: &PlainChunk, family: u8, key: &[u8], value_bytes: usize) -> bool {
    let row_bytes = ROW_HEADER_BYTES + key.len() + value_bytes;
    let section = Section::of(current.family, &current.first_key);
    if current.family != family
        || section != Section::of(family, key)
        || current.plain.len() + row_bytes > PLAIN_BYTES_CUT
    {
        return true;
    }
    // One cut is expected every CUT_SPREAD_BYTES, whatever the size of the rows.
    let threshold = (u64::MAX / CUT_SPREAD_BYTES).saturating_mul(row_bytes as u64);
    current.plain.len() >= PLAIN_BYTES_MIN && key_hash(key) < threshold
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
    seal_as(lineage, generation, sealing, chunk, kind, |name| ObjectName::Chunk { generation, name })
}

/// Packs rows under the name that their hash gives them.
pub(crate) fn seal_as(
    lineage: &LineageId,
    generation: u32,
    sealing: &Sealing,
    chunk: &PlainChunk,
    kind: Kind,
    named: impl Fn([u8; 32]) -> ObjectName,
) -> Result<SealedChunk, ArchiveError> {
    let plain_blake3 = *blake3::hash(&chunk.plain).as_bytes();
    let name = sealing.chunk_name(&plain_blake3);
    let object = named(name).path(lineage);
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

/// Rows of a chunk or a patch that was read, or of a chunk that was put together, and checked.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Hash of the plain bytes.
    pub plain_blake3: [u8; 32],
    rows: u64,
    plain: Bytes,
}

impl Chunk {
    /// Reads the chunk, or the patch, of this name, and checks everything that it says about itself; gives its seal too.
    ///
    /// # Errors
    /// Names `object` and what is wrong.
    pub fn open(
        object: &str,
        lineage: &LineageId,
        keys: &Keyring,
        name: ObjectName,
        bytes: &Bytes,
    ) -> Result<(Self, [u8; 32]), ArchiveError> {
        let opened = object::open(object, lineage, keys, bytes)?;
        let bad = |reason: String| ArchiveError::corrupt(object, reason);
        let (hash, rows, is_patch) = match (name, &opened.kind) {
            (ObjectName::Chunk { name, .. }, Kind::Chunk(header)) => (name, header.rows, false),
            (ObjectName::Patch { name, .. }, Kind::Patch(header)) => (name, header.rows, true),
            _ => return Err(bad("it is not of the kind that its name says".into())),
        };
        if opened.chunk_name() != hash {
            return Err(bad(format!("its rows hash to {}, not to its name", hex(&opened.chunk_name()))));
        }
        let chunk = Self { plain_blake3: opened.plain_blake3, rows, plain: opened.plain };
        // A chunk has rows of one family, and all of them: only a patch says that some are gone.
        let family = chunk.patch_rows().next().map(|row| row.family);
        let fits = |row: &PatchRow| is_patch || Some(row.family) == family && row.value.is_some();
        check_rows(&chunk.plain, rows, fits).map_err(bad)?;
        Ok((chunk, opened.seal))
    }

    /// One whose rows were put together here; `None` = they are not those that a manifest means.
    pub(crate) fn composed(chunk: PlainChunk, as_said: &ChunkRows) -> Option<Self> {
        let is_so = chunk.chunk_rows() == *as_said;
        is_so.then(|| Self { plain_blake3: as_said.plain_blake3, rows: chunk.rows, plain: chunk.plain.into() })
    }

    /// Checks that these are the rows that a manifest means.
    ///
    /// # Errors
    /// Names `object` and what differs.
    pub fn check_line(&self, object: &str, line: &ManifestChunk) -> Result<(), ArchiveError> {
        let first = self.patch_rows().next();
        let as_said = self.plain_blake3 == line.plain_blake3
            && self.rows == line.rows
            && self.plain.len() as u64 == line.plain_length
            && first.is_some_and(|row| row.place() == (line.family, &line.first_key));
        if as_said { Ok(()) } else { Err(ArchiveError::corrupt(object, "it is not what the manifest says of it")) }
    }

    /// Encoded rows, in bytes.
    pub fn plain_length(&self) -> u64 {
        self.plain.len() as u64
    }

    /// The rows of a chunk in order.
    pub fn rows(&self) -> impl Iterator<Item = RawRow> {
        self.patch_rows().map(|row| RawRow {
            family: row.family,
            key: row.key.to_vec(),
            value: row.value.unwrap_or_default().to_vec(),
        })
    }

    /// The rows in order, those that are gone among them, without a copy of their bytes.
    pub(crate) fn patch_rows(&self) -> impl Iterator<Item = PatchRow> + use<> {
        let mut rest = self.plain.clone();
        std::iter::from_fn(move || next_row(&mut rest).ok().flatten())
    }
}

#[cfg(test)]
mod tests;
