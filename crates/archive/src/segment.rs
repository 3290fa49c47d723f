//! Segments: committed log entries as they were encoded once by the leader, linked by the entry chain.
//!
//! Invariants, checked before writing and after reading:
//! - Entries are contiguous, their bytes say the positions they are kept under, and terms do not decrease.
//! - `chain_after` is `chain_before` linked through every entry: a segment fits at one place of one history only.
//! - The name is the first index, so that there is one winner per position.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use holdfast_model::id::GroupId;
use holdfast_store::{LogPosition, StoredEntry};
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;
use holdfast_wire::log::{EntryPayload, decode_entry, entry_chain};

use crate::error::ArchiveError;
use crate::fence;
use crate::gap;
use crate::keys::Keyring;
use crate::layout::{LineageId, ObjectName};
use crate::object::{self, Sealed};
use crate::sealing::Sealing;

/// Plain bytes after which a segment takes no further entry.
pub const PLAIN_BYTES_MAX: usize = 16 << 20;

/// A part of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Group.
    pub group: GroupId,
    /// Entry chain before the first entry.
    pub chain_before: [u8; 32],
    /// Entry chain after the last entry.
    pub chain_after: [u8; 32],
    /// Newest stamp of a proposal in it; 0 = it has none.
    pub stamp_ms: u64,
    /// Entries, at least one.
    entries: Vec<StoredEntry>,
}

impl Segment {
    /// From entries that follow `chain_before`.
    ///
    /// # Errors
    /// When they are none, not contiguous, or not what their bytes say.
    pub fn new(group: GroupId, chain_before: [u8; 32], entries: Vec<StoredEntry>) -> Result<Self, ArchiveError> {
        Self::checked(group, chain_before, entries).map_err(ArchiveError::refused)
    }

    fn checked(group: GroupId, chain_before: [u8; 32], entries: Vec<StoredEntry>) -> Result<Self, String> {
        let mut chain_after = chain_before;
        let mut stamp_ms = 0;
        let mut last: Option<LogPosition> = None;
        for entry in &entries {
            let at = entry.position;
            if last.is_some_and(|last| last.index.checked_add(1) != Some(at.index) || last.term > at.term) {
                return Err(format!("entry {} does not follow the one before it", at.index));
            }
            let decoded = decode_entry(&entry.bytes).map_err(|error| format!("entry {}: {error}", at.index))?;
            if position(decoded.id) != at {
                return Err(format!("entry {} says that it is entry {}", at.index, decoded.id.index));
            }
            if let EntryPayload::Proposal(bytes) = &decoded.payload {
                stamp_ms = stamp_ms.max(stamp_of(bytes));
            }
            chain_after = entry_chain(chain_after, &entry.bytes);
            last = Some(at);
        }
        if last.is_none() {
            return Err("a segment without entries".into());
        }
        Ok(Self { group, chain_before, chain_after, stamp_ms, entries })
    }

    /// Entries, ascending.
    pub fn entries(&self) -> &[StoredEntry] {
        &self.entries
    }

    /// First entry.
    pub fn first(&self) -> LogPosition {
        // `checked` lets no empty segment pass.
        self.entries[0].position
    }

    /// Last entry.
    pub fn last(&self) -> LogPosition {
        self.entries[self.entries.len() - 1].position
    }

    /// Name of the segment.
    pub fn name(&self) -> ObjectName {
        ObjectName::segment(self.group, self.first().index)
    }

    /// Entry chain before the entry at `next`, which may be the one after the last.
    pub fn chain_before(&self, next: u64) -> Option<[u8; 32]> {
        let count = usize::try_from(next.checked_sub(self.first().index)?).ok()?;
        let linked = self.entries.get(..count)?;
        Some(linked.iter().fold(self.chain_before, |chain, entry| entry_chain(chain, &entry.bytes)))
    }

    #[cfg(test)]
    pub(crate) fn seal(&self, lineage: &LineageId, sealing: &Sealing) -> Result<Sealed, ArchiveError> {
        self.seal_as(&self.name(), lineage, sealing)
    }

    /// Under its name, that of a repair, or one that says where it ends.
    pub(crate) fn seal_as(
        &self,
        name: &ObjectName,
        lineage: &LineageId,
        sealing: &Sealing,
    ) -> Result<Sealed, ArchiveError> {
        let (level, repair) = place_of(name);
        let mut body = BytesMut::new();
        for entry in &self.entries {
            body.put_u32(entry.bytes.len() as u32);
            body.put_slice(&entry.bytes);
        }
        let header = pb::ArchiveSegmentHeader {
            group_id: self.group.0,
            level: level.into(),
            repair,
            first: Some(log_id(self.first())),
            last: Some(log_id(self.last())),
            chain_before: Bytes::copy_from_slice(&self.chain_before),
            chain_after: Bytes::copy_from_slice(&self.chain_after),
            entries: self.entries.len() as u64,
            stamp_ms: self.stamp_ms,
        };
        object::seal(&name.path(lineage), lineage, Kind::Segment(header), sealing, &body)
    }

    /// Reads a segment and checks everything that it says about itself.
    ///
    /// # Errors
    /// Names `object` and what is wrong; `Fenced` when the log was ended there, `NotShipped` when a gap begins there.
    pub fn open(
        object: &str,
        lineage: &LineageId,
        keys: &Keyring,
        name: &ObjectName,
        bytes: &Bytes,
    ) -> Result<Self, ArchiveError> {
        let opened = object::open(object, lineage, keys, bytes)?;
        let bad = |reason: String| ArchiveError::corrupt(object, reason);
        let (group, first, joined) = match name {
            ObjectName::Segment { group, first, .. } => (*group, *first, None),
            ObjectName::Joined { group, first, last, .. } => (*group, *first, Some(*last)),
            _ => return Err(bad("its name is not that of a segment".into())),
        };
        let header = match opened.kind {
            Kind::Segment(header) => header,
            Kind::Fence(header) if joined.is_none() => return Err(fence::met(object, group, first, &header)),
            Kind::Gap(header) if joined.is_none() => return Err(gap::met(object, group, first, &header)),
            _ => return Err(bad("it is no segment".into())),
        };
        let chain_before = object::fixed(&header.chain_before).ok_or_else(|| bad("it has no chain".into()))?;
        let entries = entries_from(opened.plain).map_err(bad)?;
        let segment = Self::checked(group, chain_before, entries).map_err(bad)?;
        let (level, repair) = place_of(name);
        let said = (header.group_id, header.level, header.repair, header.first, header.last, header.entries);
        let is = (
            group.0,
            level.into(),
            repair,
            Some(log_id(segment.first())),
            Some(log_id(segment.last())),
            segment.entries.len() as u64,
        );
        let ends = joined.is_none_or(|last| segment.last().index == last);
        if said != is || segment.first().index != first || !ends {
            let reason = format!("it holds group {} from index {}", header.group_id, segment.first().index);
            return Err(bad(format!("{reason}, which is not what its name and header say")));
        }
        if header.chain_after[..] != segment.chain_after || header.stamp_ms != segment.stamp_ms {
            return Err(bad("its entries do not link to the chain in its header".into()));
        }
        Ok(segment)
    }
}

/// Level, and number of the repair, that a name says.
fn place_of(name: &ObjectName) -> (u8, u32) {
    match name {
        ObjectName::Segment { repair, .. } => (0, *repair),
        ObjectName::Joined { level, .. } => (*level, 0),
        _ => (0, 0),
    }
}

fn entries_from(mut body: Bytes) -> Result<Vec<StoredEntry>, String> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        let at = entries.len();
        if body.len() < 4 {
            return Err(format!("entry {at} of it has no length"));
        }
        let length = body.get_u32() as usize;
        if body.len() < length {
            return Err(format!("entry {at} of it ends beyond the segment"));
        }
        let bytes = body.split_to(length);
        let decoded = decode_entry(&bytes).map_err(|error| format!("entry {at} of it: {error}"))?;
        entries.push(StoredEntry { position: position(decoded.id), bytes });
    }
    Ok(entries)
}

/// When an entry was stamped; 0 = it was not.
pub(crate) fn stamp_of_entry(entry: &StoredEntry) -> u64 {
    match decode_entry(&entry.bytes).map(|entry| entry.payload) {
        Ok(EntryPayload::Proposal(bytes)) => stamp_of(&bytes),
        // `checked` decoded it.
        Ok(EntryPayload::Blank | EntryPayload::Membership(_)) | Err(_) => 0,
    }
}

/// Stamp of a proposal. One that does not decode is a rejection to the rules, and has none.
fn stamp_of(proposal: &Bytes) -> u64 {
    holdfast_wire::decode::<pb::Proposal>("proposal", proposal.clone()).map_or(0, |proposal| proposal.stamp_ms)
}

/// How many of `entries` go into the next segment: at least one, and no more than fit.
pub(crate) fn fitting(entries: &[StoredEntry]) -> usize {
    let mut bytes = 0usize;
    let fitting = entries.iter().take_while(|entry| {
        bytes = bytes.saturating_add(4 + entry.bytes.len());
        bytes <= PLAIN_BYTES_MAX
    });
    fitting.count().max(1).min(entries.len())
}

pub(crate) fn position(id: pb::LogId) -> LogPosition {
    LogPosition { term: id.term, node: id.node, index: id.index }
}

pub(crate) fn log_id(position: LogPosition) -> pb::LogId {
    pb::LogId { term: position.term, node: position.node, index: position.index }
}

/// Follows the entry chain over segments: what comes next must continue what came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainWalk {
    /// Index of the entry that comes next.
    pub next: u64,
    /// Entry chain before it.
    pub chain: [u8; 32],
}

impl ChainWalk {
    /// From the beginning of a history that continues none.
    pub const FRESH: Self = Self { next: 0, chain: [0; 32] };

    /// Takes a segment's entries from the next one on, up to `through`.
    ///
    /// # Errors
    /// Names the missing object when there is a gap, and `object` when it belongs to another history.
    pub fn follow(
        &mut self,
        lineage: &LineageId,
        object: &str,
        segment: &Segment,
        through: u64,
    ) -> Result<Vec<StoredEntry>, ArchiveError> {
        // A first entry may have index 0 or 1; the chain of zeros says that there is none before it.
        if *self == Self::FRESH && segment.first().index == 1 && segment.chain_before == self.chain {
            self.next = 1;
        }
        let next = self.next;
        if segment.first().index > next {
            let reason = format!("entries {next} to {} lie in no object", segment.first().index - 1);
            return Err(ArchiveError::missing(ObjectName::segment(segment.group, next).path(lineage), reason));
        }
        if segment.last().index < next {
            return Ok(Vec::new());
        }
        if segment.chain_before(next) != Some(self.chain) {
            return Err(ArchiveError::corrupt(object, format!("it does not continue the entry chain before {next}")));
        }
        let wanted = segment.entries.iter().filter(|entry| (next..=through).contains(&entry.position.index));
        let taken: Vec<StoredEntry> = wanted.cloned().collect();
        for entry in &taken {
            self.next = entry.position.index.saturating_add(1);
            self.chain = entry_chain(self.chain, &entry.bytes);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests;
