//! Where a restore ends when somebody asks for an entry or a moment, and in which history that lies.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use holdfast_model::id::GroupId;

use super::{Around, At, parent_of};
use crate::destination::Destination;
use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName};
use crate::lineage::LineageFacts;
use crate::log::{list_joined, list_segments, read_listed, read_segment, with_joined};
use crate::recover::lineage_of_genesis;
use crate::segment::stamp_of_entry;
use crate::snapshot::{list_snapshots, read_manifest};

const READS_MAX: usize = 4;

/// A history is opened by one of its first entries: what founds a cluster, or goes on from a restore, proposes it first.
const OPENED_WITHIN_SEGMENTS: usize = 8;

/// The history that the point lies in, and its last entry to restore; `None` = all that there is.
pub(super) async fn resolve(
    destination: &Destination,
    group: GroupId,
    newest: LineageFacts,
    at: At,
    by_id: &BTreeMap<LineageId, LineageFacts>,
    around: &Around,
) -> Result<(LineageFacts, Option<u64>), ArchiveError> {
    let mut facts = newest;
    loop {
        let end = match (at, &facts.parent) {
            (At::Latest, _) => return Ok((facts, None)),
            // Before this history began.
            (At::Index(index), Some(parent)) if index <= parent.index => None,
            (At::Index(index), _) => Some(index),
            (At::Time(ms), _) => last_before(destination, group, &facts, ms, around).await?,
        };
        if let Some(end) = end {
            return Ok((facts, Some(end)));
        }
        let Some(parent) = facts.parent_id() else {
            return Err(ArchiveError::NoChoice {
                destination: destination.config().url.clone(),
                reason: format!("lineage {} holds nothing from before that moment", facts.id),
            });
        };
        facts = parent_of(&facts, parent, by_id)?.clone();
    }
}

/// The last entry of a history before the log's time goes beyond `ms`; `None` = there is none. Entries without a stamp
/// belong to what is before them.
async fn last_before(
    destination: &Destination,
    group: GroupId,
    facts: &LineageFacts,
    ms: u64,
    around: &Around,
) -> Result<Option<u64>, ArchiveError> {
    let mut end = None;
    // From the newest snapshot that is not too new: a restore reads the log from there on, too.
    for found in list_snapshots(destination, &facts.id, group).await?.into_iter().rev() {
        if around.snapshots.contains(&(facts.id, found.index)) {
            continue;
        }
        let (manifest, _) = read_manifest(destination, &facts.id, group, found.index).await?;
        if manifest.now.0 <= ms {
            end = Some(found.index);
            break;
        }
    }
    let mut segments = list_segments(destination, &facts.id, group).await?;
    let from = end.map_or(0, |index| index + 1);
    segments.drain(..segments.partition_point(|found| found.first <= from).saturating_sub(1));
    let joined = around.usable(list_joined(destination, &facts.id, group).await?);
    let segments = with_joined(segments, &joined, from);
    // What was pruned away between the snapshot and the log that is left may hold the moment, and nobody knows.
    let begins = end.map_or(facts.parent.as_ref().map_or(1, |parent| parent.index + 1), |index| index + 1);
    let is_cut =
        segments.first().is_some_and(|first| first.first > begins) && (end.is_some() || facts.parent.is_some());
    // What opens the history may have no stamp, and then belongs to the first entry that has one.
    let mut stamped = end.is_some();
    let reads = segments.iter().map(|found| read_listed(destination, &facts.id, group, found));
    let mut reads = futures::stream::iter(reads).buffered(READS_MAX);
    loop {
        let segment = match reads.try_next().await {
            Ok(Some(segment)) => segment,
            // The log was ended here by a recovery.
            Ok(None) | Err(ArchiveError::Fenced { .. }) => break,
            // The snapshot stands in for it.
            Err(ArchiveError::NotShipped { gap, .. }) if gap.last.index < from => continue,
            Err(error) => return Err(error),
        };
        for entry in segment.entries().iter().filter(|entry| entry.position.index >= from) {
            match stamp_of_entry(entry) {
                stamp if stamp > ms && is_cut && end.is_none_or(|end| end < begins) => {
                    let (object, last) =
                        (ObjectName::segment(group, begins).path(&facts.id), segment.first().index - 1);
                    return Err(ArchiveError::missing(object, format!("entries {begins} to {last} lie in no object")));
                }
                stamp if stamp > ms => return Ok(end.filter(|_| stamped)),
                stamp => stamped |= stamp > 0,
            }
            end = Some(entry.position.index);
        }
    }
    Ok(end.filter(|_| stamped))
}

/// What the log says of the history that it is of: the facts of its lineage, out of the entry that opened it.
///
/// # Errors
/// When the beginning of the log is damaged, or the destination fails.
pub(super) async fn facts_from_log(
    destination: &Destination,
    group: GroupId,
    id: &LineageId,
) -> Result<Option<LineageFacts>, ArchiveError> {
    for found in list_segments(destination, id, group).await?.iter().take(OPENED_WITHIN_SEGMENTS) {
        let segment = match read_segment(destination, id, group, found.first).await {
            Err(ArchiveError::Fenced { .. } | ArchiveError::NotShipped { .. }) => break,
            read => read?,
        };
        let opened = segment.entries().iter().filter_map(lineage_of_genesis).find(|facts| facts.id == *id);
        if opened.is_some() {
            return Ok(opened);
        }
    }
    Ok(None)
}
