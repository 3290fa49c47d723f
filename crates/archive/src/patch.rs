//! Patches: the rows of a snapshot that differ from those of an earlier one, and the keys of rows that are gone.
//!
//! Where records change at random, few of many in every chunk, a chunk is the wrong measure: nearly all would have to be
//! shipped again. A layer of patches over the chunks of an earlier snapshot says the same in a few bytes.
//!
//! Invariants:
//! - Rows are strictly ascending by (family, key), within a patch and over the patches of a layer.
//! - The name of a patch is the hash of its plain bytes, keyed where they are encrypted, checked before a row is used.

use bytes::Bytes;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::chunk::{PlainChunk, SealedChunk, seal_as};
use crate::error::ArchiveError;
use crate::keys::Keyring;
use crate::layout::{LineageId, ObjectName, hex};
use crate::manifest::ManifestChunk;
use crate::object;
use crate::rows::{PatchRow, check_rows, next_row, put_row};
use crate::sealing::Sealing;

/// A patch ends with the row that brings it to this many plain bytes.
const PLAIN_BYTES_CUT: usize = 4 << 20;

/// Gathers changed rows, given in canonical order.
#[derive(Debug, Default)]
pub struct Patcher(Option<PlainChunk>);

impl Patcher {
    /// Adds a row, or that it is gone; gives the patch that is full now, if it is.
    pub fn push(&mut self, family: u8, key: &[u8], value: Option<&[u8]>) -> Option<PlainChunk> {
        let current =
            self.0.get_or_insert_with(|| PlainChunk { family, first_key: key.to_vec(), rows: 0, plain: Vec::new() });
        current.rows += 1;
        put_row(&mut current.plain, family, key, value);
        self.0.take_if(|current| current.plain.len() >= PLAIN_BYTES_CUT)
    }

    /// The last patch, if there was any row.
    pub fn finish(self) -> Option<PlainChunk> {
        self.0
    }
}

/// Packs a patch.
///
/// # Errors
/// When it is too large for an object.
pub(crate) fn seal(
    lineage: &LineageId,
    generation: u32,
    sealing: &Sealing,
    patch: &PlainChunk,
) -> Result<SealedChunk, ArchiveError> {
    let kind = Kind::Patch(pb::ArchivePatchHeader { rows: patch.rows });
    seal_as(lineage, generation, sealing, patch, kind, |name| ObjectName::Patch { generation, name })
}

/// A patch that was read and checked.
#[derive(Debug, Clone)]
pub struct Patch {
    plain_blake3: [u8; 32],
    rows: u64,
    plain: Bytes,
}

impl Patch {
    /// Reads a patch and checks everything that it says about itself; gives its seal too.
    ///
    /// # Errors
    /// Names `object` and what is wrong.
    pub fn open(
        object: &str,
        lineage: &LineageId,
        keys: &Keyring,
        name: &[u8; 32],
        bytes: &Bytes,
    ) -> Result<(Self, [u8; 32]), ArchiveError> {
        let opened = object::open(object, lineage, keys, bytes)?;
        let Kind::Patch(header) = opened.kind else {
            return Err(ArchiveError::corrupt(object, "it is no patch"));
        };
        if opened.chunk_name() != *name {
            let reason = format!("its rows hash to {}, not to its name", hex(&opened.chunk_name()));
            return Err(ArchiveError::corrupt(object, reason));
        }
        let patch = Self { plain_blake3: opened.plain_blake3, rows: header.rows, plain: opened.plain };
        check_rows(&patch.plain, patch.rows, |_, _| true).map_err(|reason| ArchiveError::corrupt(object, reason))?;
        Ok((patch, opened.seal))
    }

    /// Checks that this is the patch that a manifest means.
    ///
    /// # Errors
    /// Names `object` and what differs.
    pub fn check_line(&self, object: &str, line: &ManifestChunk) -> Result<(), ArchiveError> {
        let first = self.rows().next();
        let as_said = self.plain_blake3 == line.plain_blake3
            && self.rows == line.rows
            && self.plain.len() as u64 == line.plain_length
            && first.is_some_and(|row| row.place() == (line.family, &line.first_key));
        if as_said { Ok(()) } else { Err(ArchiveError::corrupt(object, "it is not what the manifest says of it")) }
    }

    /// The rows in order.
    pub fn rows(&self) -> impl Iterator<Item = PatchRow> + use<> {
        let mut rest = self.plain.clone();
        std::iter::from_fn(move || next_row(&mut rest).ok().flatten())
    }
}

#[cfg(test)]
mod tests;
