//! Patches: the rows of a snapshot that differ from those of an earlier one, and the keys of rows that are gone.
//!
//! Where records change at random, few of many in every chunk, a chunk is the wrong measure: nearly all would have to be
//! shipped again. A layer of patches over the chunks of an earlier snapshot says the same in a few bytes.
//!
//! Invariants:
//! - Rows are strictly ascending by (family, key), within a patch and over the patches of a layer.
//! - The name of a patch is the hash of its plain bytes, keyed where they are encrypted, checked before a row is used.

use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::chunk::{PlainChunk, SealedChunk, seal_as};
use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName};
use crate::rows::put_row;
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

#[cfg(test)]
mod tests;
