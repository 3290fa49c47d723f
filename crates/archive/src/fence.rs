//! Fences: the end of a log, claimed where its next segment would be.
//!
//! A recovery after a lost quorum cannot know that the old nodes are gone for good. It takes the next position of their
//! log at every destination: whoever of them ships there again comes second, learns that it was ended, and stops.
//!
//! Invariants: a fence lies at a position like a segment, so one of the two wins it; nothing is ever shipped behind one.

use bytes::Bytes;
use holdfast_model::id::{GroupId, Incarnation};
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName};
use crate::object::{self, Sealed};
use crate::sealing::Sealing;

/// The end of a group's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// Group.
    pub group: GroupId,
    /// Index of the entry that will never come.
    pub index: u64,
    /// The history that goes on.
    pub successor: LineageId,
}

impl Fence {
    /// Where it lies.
    pub fn name(&self) -> ObjectName {
        ObjectName::segment(self.group, self.index)
    }

    pub(crate) fn seal(&self, lineage: &LineageId) -> Result<Sealed, ArchiveError> {
        let header = pb::ArchiveFenceHeader {
            group_id: self.group.0,
            index: self.index,
            successor_cluster_id: Bytes::copy_from_slice(&self.successor.cluster_id),
            successor_incarnation: self.successor.incarnation.0,
        };
        // Never encrypted: it tells nothing of anybody, and whoever meets it must understand it.
        object::seal(&self.name().path(lineage), lineage, Kind::Fence(header), &Sealing::default(), &[])
    }
}

/// What a reader of segments meets where a fence lies.
pub(crate) fn met(object: &str, group: GroupId, index: u64, header: &pb::ArchiveFenceHeader) -> ArchiveError {
    match object::fixed(&header.successor_cluster_id) {
        Some(cluster_id) if (header.group_id, header.index) == (group.0, index) => ArchiveError::Fenced {
            object: object.to_owned(),
            index,
            successor: LineageId { cluster_id, incarnation: Incarnation(header.successor_incarnation) },
        },
        Some(_) => {
            let reason = format!("it ends group {} at index {}, which is not its place", header.group_id, header.index);
            ArchiveError::corrupt(object, reason)
        }
        None => ArchiveError::corrupt(object, "it names no history that goes on"),
    }
}
