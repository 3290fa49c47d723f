//! Gaps: a part of the log that was never shipped, said where its first segment would be.
//!
//! A destination that was away for longer than every node keeps the log, or that was added later, lacks entries that
//! nobody has any more. A leader then ships a snapshot, and says up to where it stands in for the log. What lies in the gap can
//! be restored to no point of its own; everything before it and from its end on can.
//!
//! Invariants: a gap lies at a position like a segment, so one of the two wins it; it is written after the snapshot at its
//! last entry, and links the entry chain before it to the one behind it.

use bytes::Bytes;
use holdfast_model::id::GroupId;
use holdfast_store::LogPosition;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName};
use crate::object::{self, Sealed};
use crate::sealing::Sealing;
use crate::segment::{log_id, position};

/// Entries that were never shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Group.
    pub group: GroupId,
    /// Index of the first.
    pub first: u64,
    /// Entry chain before it.
    pub chain_before: [u8; 32],
    /// The last of them.
    pub last: LogPosition,
    /// Entry chain after it.
    pub chain_after: [u8; 32],
}

impl Gap {
    /// Where it lies.
    pub fn name(&self) -> ObjectName {
        ObjectName::segment(self.group, self.first)
    }

    /// Under its name, or that of a repair.
    pub(crate) fn seal_as(
        &self,
        name: &ObjectName,
        lineage: &LineageId,
        sealing: &Sealing,
    ) -> Result<Sealed, ArchiveError> {
        let header = pb::ArchiveGapHeader {
            group_id: self.group.0,
            first: self.first,
            last: Some(log_id(self.last)),
            chain_before: Bytes::copy_from_slice(&self.chain_before),
            chain_after: Bytes::copy_from_slice(&self.chain_after),
        };
        object::seal(&name.path(lineage), lineage, Kind::Gap(header), sealing, &[])
    }
}

/// What a reader of segments meets where a gap lies.
pub(crate) fn met(object: &str, group: GroupId, first: u64, header: &pb::ArchiveGapHeader) -> ArchiveError {
    let bad = |reason: &str| ArchiveError::corrupt(object, reason);
    if (header.group_id, header.first) != (group.0, first) {
        return bad("it is a gap of another group or place");
    }
    let chains = object::fixed(&header.chain_before).zip(object::fixed(&header.chain_after));
    match (header.last.map(position), chains) {
        (Some(last), Some((chain_before, chain_after))) if last.index >= first => ArchiveError::NotShipped {
            object: object.to_owned(),
            gap: Box::new(Gap { group, first, chain_before, last, chain_after }),
        },
        _ => bad("it is a gap without an end"),
    }
}
