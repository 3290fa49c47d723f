//! Joining: the entries of many small segments once more, in few larger objects.
//!
//! A cluster that writes little ships a segment of a few kilobytes each second. A restore would ask a bucket for each of them;
//! of what joins them it asks for one in place of a hundred. Segments stay as they are: what is joined replaces nothing, and
//! where it is damaged they are read.
//!
//! Invariants: whole segments are joined, in one unbroken run of the entry chain, and none that nothing follows yet. What
//! would hardly be larger than what is there is not joined: a busy log is not stored twice.

use holdfast_model::id::GroupId;

use crate::destination::Put;
use crate::error::ArchiveError;
use crate::layout::ObjectName;
use crate::lineage::OpenLineage;
use crate::log::{JOINED_LEVEL, ListedSegment, list_joined, list_segments_from, read_listed};
use crate::segment::{PLAIN_BYTES_MAX, Segment};

/// Fewer segments are not worth an object.
const SEGMENTS_MIN: usize = 16;
/// Stored bytes of the segments that go into one object.
const STORED_BYTES_MAX: u64 = 4 << 20;

/// What was joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JoinReport {
    /// Objects written, or found written by another.
    pub objects: u64,
    /// Segments whose entries they hold.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Nothing before this entry needs to be looked at again.
    pub next: u64,
}

/// Joins what is worth it and is not joined yet, from entry `from` on; `go_on` is asked between two objects.
///
/// # Errors
/// When the destination fails, or holds something else under a name that was to be written. Damaged segments are passed
/// over: there a run ends.
pub async fn join_segments(
    lineage: &OpenLineage,
    group: GroupId,
    from: u64,
    go_on: impl Fn() -> bool,
) -> Result<JoinReport, ArchiveError> {
    let destination = lineage.destination();
    let joined = list_joined(destination, lineage.id(), group).await?;
    let ends = joined.iter().filter_map(|one| one.joined).map(|last| last.saturating_add(1));
    let from = ends.max().unwrap_or(0).max(from);
    let segments = list_segments_from(destination, lineage.id(), group, from).await?;
    let mut report = JoinReport { next: from, ..JoinReport::default() };
    // The newest may be a fence, or be repaired; what follows it does not lie there yet.
    let Some((_, settled)) = segments.split_last() else { return Ok(report) };
    let mut rest = settled;
    while rest.len() >= SEGMENTS_MIN && go_on() {
        let (taken, joined) = gather(lineage, group, rest).await?;
        rest = &rest[taken.max(1)..];
        if let Some(joined) = joined {
            report.bytes += put(lineage, &joined).await?;
            report.objects += 1;
            report.segments += taken as u64;
        }
    }
    report.next = rest.first().or(segments.last()).map_or(from, |next| next.first);
    Ok(report)
}

/// Reads segments from the first on, as many as one object may hold; gives how many, and what they make. None of it, where
/// they are too large to be worth it: then how many of them are passed over.
async fn gather(
    lineage: &OpenLineage,
    group: GroupId,
    run: &[ListedSegment],
) -> Result<(usize, Option<Segment>), ArchiveError> {
    let mut stored = 0;
    let fitting = run.iter().take_while(|segment| {
        stored += segment.bytes;
        stored <= STORED_BYTES_MAX
    });
    let fitting = fitting.count();
    if fitting < SEGMENTS_MIN {
        return Ok((fitting, None));
    }
    let (mut taken, mut plain, mut entries) = (0, 0, Vec::new());
    let mut chains: Option<([u8; 32], [u8; 32])> = None;
    for found in &run[..fitting] {
        let segment = match read_listed(lineage.destination(), lineage.id(), group, found).await {
            Ok(segment) => segment,
            // Damaged, or a gap. Without anything before it, it is passed over.
            Err(error) if error.fault().is_some() => break,
            Err(error) => return Err(error),
        };
        plain += segment.entries().iter().map(|entry| 4 + entry.bytes.len()).sum::<usize>();
        let follows = chains.is_none_or(|(_, after)| after == segment.chain_before);
        if plain > PLAIN_BYTES_MAX || !follows {
            break;
        }
        entries.extend_from_slice(segment.entries());
        chains = Some((chains.map_or(segment.chain_before, |(before, _)| before), segment.chain_after));
        taken += 1;
    }
    match chains.filter(|_| taken >= SEGMENTS_MIN) {
        Some((chain_before, _)) => Ok((taken, Some(Segment::new(group, chain_before, entries)?))),
        None => Ok((taken, None)),
    }
}

async fn put(lineage: &OpenLineage, joined: &Segment) -> Result<u64, ArchiveError> {
    let (first, last) = (joined.first().index, joined.last().index);
    let name = ObjectName::Joined { group: joined.group, level: JOINED_LEVEL, first, last };
    let object = name.path(lineage.id());
    let bytes = joined.seal_as(&name, lineage.id(), lineage.sealing())?.bytes;
    if let Put::Lost(found) = lineage.destination().put_checked(&object, &bytes).await? {
        // Sealed anew it is other bytes; it must hold the same.
        let other = Segment::open(&object, lineage.id(), lineage.destination().keys(), &name, &found)?;
        if other != *joined {
            return Err(ArchiveError::corrupt(&object, "it does not hold the entries of the segments that it joins"));
        }
    }
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests;
