//! Reading the log at a destination: which positions there are, where it ends, and what lies at one.
//!
//! Invariants: a position that was damaged and shipped again counts as what its repair holds; what lies behind the newest
//! position is a fence or nothing.

use holdfast_model::id::GroupId;

use crate::destination::{Destination, Listed};
use crate::error::ArchiveError;
use crate::fence::Fence;
use crate::layout::{LineageId, ObjectName};
use crate::segment::Segment;

/// Entries before one that is known: what is looked for most likely lies there. Each entry may be a segment of its own: a list
/// of so many names is one answer, or a hundred.
const LOOKED_BACK: [u64; 2] = [1_000, 100_000];
/// Level of objects that join segments as they were shipped.
pub(crate) const JOINED_LEVEL: u8 = 1;
/// Nobody repairs one position more often.
pub(crate) const REPAIRS_MAX: u32 = 100;

/// A segment in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSegment {
    /// Index of its first entry.
    pub first: u64,
    /// Full name; that of its first repair where it is gone itself.
    pub object: String,
    /// Length.
    pub bytes: u64,
    /// Number of its newest repair; 0 = it has none.
    pub repairs: u32,
    /// Last index, of an object that joins several segments; `None` = it is one as it was shipped.
    pub joined: Option<u64>,
}

/// Positions of a group's log as they were shipped, ascending; the last may be a fence ([`list_log`]). Objects with other names are not segments of ours; `verify`
/// reports them.
///
/// # Errors
/// When the destination fails.
pub async fn list_segments(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
) -> Result<Vec<ListedSegment>, ArchiveError> {
    Ok(segments_in(destination.list(&lineage.log_prefix(group, 0)).await?))
}

/// The same from the position of entry `from` on.
///
/// # Errors
/// When the destination fails.
pub(crate) async fn list_segments_from(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    from: u64,
) -> Result<Vec<ListedSegment>, ArchiveError> {
    let Some(before) = from.checked_sub(1) else { return list_segments(destination, lineage, group).await };
    let after = ObjectName::segment(group, before).path(lineage);
    let mut segments = segments_in(destination.list_after(&lineage.log_prefix(group, 0), &after).await?);
    // Repairs of the position before come behind its name.
    segments.retain(|segment| segment.first >= from);
    Ok(segments)
}

/// `listed` is in the order of names: repairs come right behind what they repair.
fn segments_in(listed: Vec<Listed>) -> Vec<ListedSegment> {
    let mut segments: Vec<ListedSegment> = Vec::new();
    for found in listed {
        let Some((_, ObjectName::Segment { first, repair, .. })) = ObjectName::parse(&found.path) else {
            continue;
        };
        match segments.last_mut().filter(|last| last.first == first) {
            Some(last) => last.repairs = last.repairs.max(repair),
            None => segments.push(ListedSegment {
                first,
                object: found.path,
                bytes: found.bytes,
                repairs: repair,
                joined: None,
            }),
        }
    }
    segments
}

/// Objects that join segments of a group, in the order of their first entries.
///
/// # Errors
/// When the destination fails.
pub async fn list_joined(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
) -> Result<Vec<ListedSegment>, ArchiveError> {
    let listed = destination.list(&lineage.log_prefix(group, JOINED_LEVEL)).await?;
    let joined = listed.into_iter().filter_map(|found| match ObjectName::parse(&found.path) {
        Some((_, ObjectName::Joined { first, last, .. })) => {
            Some(ListedSegment { first, object: found.path, bytes: found.bytes, repairs: 0, joined: Some(last) })
        }
        _ => None,
    });
    Ok(joined.collect())
}

/// What to read of a log from entry `from` on, which is in the first of `segments`: instead of several segments, what joins
/// them.
pub(crate) fn with_joined(segments: Vec<ListedSegment>, joined: &[ListedSegment], from: u64) -> Vec<ListedSegment> {
    let mut read: Vec<ListedSegment> = Vec::new();
    let firsts: Vec<u64> = segments.iter().map(|segment| segment.first).collect();
    let mut next = 0;
    for (number, segment) in segments.into_iter().enumerate() {
        if segment.first < next {
            continue;
        }
        let behind = joined.partition_point(|one| one.first <= segment.first);
        let here = joined[..behind].partition_point(|one| one.first < segment.first);
        // The first segment may lie within what joins it.
        let (candidates, reaches) = match number {
            0 => (&joined[..behind], from.max(segment.first)),
            _ => (&joined[here..behind], segment.first),
        };
        let reaching = candidates.iter().filter(|one| one.joined >= Some(reaches));
        // Whole segments are joined: what it ends with is followed by one.
        let ends = |one: &&ListedSegment| {
            let next = one.joined.and_then(|last| last.checked_add(1));
            next.is_some_and(|next| firsts.binary_search(&next).is_ok())
        };
        match reaching.filter(ends).max_by_key(|one| one.joined) {
            Some(one) => {
                next = one.joined.map_or(next, |last| last + 1);
                read.push(one.clone());
            }
            None => read.push(segment),
        }
    }
    read
}

/// The newest segment, and the fence behind it if a recovery ended the log. `known` = an index that is most likely in
/// one of the last segments; a wrong one costs lists, no truth.
pub(crate) async fn newest(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    known: u64,
) -> Result<(Option<ListedSegment>, Option<Fence>), ArchiveError> {
    for back in LOOKED_BACK {
        let Some(before) = known.checked_sub(back) else { break };
        let segments = list_segments_from(destination, lineage, group, before + 1).await?;
        let (mut segments, fence) = end_of(destination, lineage, group, segments).await?;
        if let Some(newest) = segments.pop() {
            return Ok((Some(newest), fence));
        }
    }
    let (mut segments, fence) = list_log(destination, lineage, group).await?;
    Ok((segments.pop(), fence))
}

/// The position before that of entry `first`; `None` = there is none.
pub(crate) async fn before(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    first: u64,
) -> Result<Option<ListedSegment>, ArchiveError> {
    for back in LOOKED_BACK.into_iter().chain([u64::MAX]) {
        let from = first.saturating_sub(back);
        let segments = list_segments_from(destination, lineage, group, from).await?;
        let found = segments.into_iter().take_while(|segment| segment.first < first).last();
        if found.is_some() || from == 0 {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Segments of a group, and the fence behind them if a recovery ended the log.
///
/// # Errors
/// When the newest object is damaged, or the destination fails.
pub async fn list_log(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
) -> Result<(Vec<ListedSegment>, Option<Fence>), ArchiveError> {
    let segments = list_segments(destination, lineage, group).await?;
    end_of(destination, lineage, group, segments).await
}

/// Tells the fence from the segments before it.
async fn end_of(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    mut segments: Vec<ListedSegment>,
) -> Result<(Vec<ListedSegment>, Option<Fence>), ArchiveError> {
    let Some(newest) = segments.last() else { return Ok((segments, None)) };
    match read_segment(destination, lineage, group, newest.first).await {
        Err(ArchiveError::Fenced { index, successor, .. }) => {
            segments.pop();
            Ok((segments, Some(Fence { group, index, successor })))
        }
        // A damaged segment is for those to name who need what is in it. What needs a key is no fence.
        Ok(_) => Ok((segments, None)),
        Err(ArchiveError::NotShipped { .. } | ArchiveError::NoKey { .. }) => Ok((segments, None)),
        Err(error) if error.fault().is_some() => Ok((segments, None)),
        Err(error) => Err(error),
    }
}

/// Index of the last entry in a group's segments that can be read; `None` = there is none. What is damaged is passed over.
///
/// # Errors
/// When the destination fails.
pub(crate) async fn last_index(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
) -> Result<Option<u64>, ArchiveError> {
    for found in list_segments(destination, lineage, group).await?.into_iter().rev() {
        match read_segment(destination, lineage, group, found.first).await {
            Ok(segment) => return Ok(Some(segment.last().index)),
            Err(ArchiveError::Fenced { .. }) => {}
            // Its snapshot is there.
            Err(ArchiveError::NotShipped { gap, .. }) => return Ok(Some(gap.last.index)),
            Err(error) if error.fault().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Reads and checks what lies at a position: the segment, or where it is damaged or gone, the first repair that is not.
///
/// # Errors
/// Names the object and what is wrong; `Fenced` and `NotShipped` where no segment lies there.
pub async fn read_segment(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    first: u64,
) -> Result<Segment, ArchiveError> {
    let damaged = match read_repair(destination, lineage, group, first, 0).await {
        Err(error @ (ArchiveError::Corrupt { .. } | ArchiveError::Missing { .. })) => error,
        read => return read,
    };
    for repair in 1..=REPAIRS_MAX {
        match read_repair(destination, lineage, group, first, repair).await {
            Err(ArchiveError::Missing { .. }) => break,
            Err(ArchiveError::Corrupt { .. }) => {}
            read => return read,
        }
    }
    Err(damaged)
}

/// The same for one of a list. Where it was repaired, what reaches furthest is taken: who repaired it may have known more, or
/// less, than is readable there now.
///
/// # Errors
/// As [`read_segment`].
pub async fn read_listed(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    found: &ListedSegment,
) -> Result<Segment, ArchiveError> {
    if let Some(last) = found.joined {
        let name = ObjectName::Joined { group, level: JOINED_LEVEL, first: found.first, last };
        return read_named(destination, lineage, &name).await;
    }
    let mut best = read_segment(destination, lineage, group, found.first).await;
    for repair in 1..=found.repairs.min(REPAIRS_MAX) {
        let Ok(now) = &best else { break };
        match read_repair(destination, lineage, group, found.first, repair).await {
            Ok(other) if other.last().index > now.last().index => best = Ok(other),
            Ok(_) | Err(ArchiveError::Corrupt { .. } | ArchiveError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    best
}

async fn read_repair(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    first: u64,
    repair: u32,
) -> Result<Segment, ArchiveError> {
    read_named(destination, lineage, &ObjectName::Segment { group, first, repair }).await
}

async fn read_named(
    destination: &Destination,
    lineage: &LineageId,
    name: &ObjectName,
) -> Result<Segment, ArchiveError> {
    let object = name.path(lineage);
    let bytes = destination.get(&object).await?;
    Segment::open(&object, lineage, destination.keys(), name, &bytes)
}
