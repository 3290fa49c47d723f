//! Shipping the log: committed entries become segments, each after the one before it.
//!
//! Invariants:
//! - Only entries that follow the tail on the entry chain are shipped: the log of a lineage has no gap and no overlap.
//! - A position has one winner. Who comes second takes over the winner's end if it is the same history, and stops if
//!   it is not. A deposed leader can be late, never wrong.
//! - A segment counts only after it was read back from the destination and found equal.

use holdfast_model::id::{GroupId, Millis};
use holdfast_store::{LogPosition, StoredEntry};

use crate::destination::{Destination, Listed, Put};
use crate::error::ArchiveError;
use crate::fence::Fence;
use crate::heartbeat::Heartbeat;
use crate::layout::{LineageId, ObjectName};
use crate::lineage::OpenLineage;
use crate::sealing::Sealing;
use crate::segment::{Segment, fitting};

/// End of the log at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Last entry.
    pub last: LogPosition,
    /// Entry chain there.
    pub chain: [u8; 32],
}

/// How a segment got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShipOutcome {
    /// Written by this call. It may hold fewer entries than were given; the rest comes next.
    Created {
        /// New end.
        tail: Tail,
        /// Bytes written.
        bytes: u64,
    },
    /// Another shipper was first, with the same entries as far as both go. Its end may lie before or beyond the
    /// entries given: the caller compares the chain there with its own.
    Adopted {
        /// New end.
        tail: Tail,
    },
}

impl ShipOutcome {
    /// New end.
    pub fn tail(&self) -> Tail {
        match self {
            Self::Created { tail, .. } | Self::Adopted { tail } => *tail,
        }
    }
}

/// Ships one group's log to one destination.
#[derive(Debug)]
pub struct SegmentShipper {
    lineage: OpenLineage,
    group: GroupId,
    /// As it was last read or written; `None` = not read yet.
    tail: Option<Option<Tail>>,
    /// Object that holds the tail, with its length, if one was read or written.
    newest: Option<Listed>,
    /// Index up to which the log is known to have been there once.
    known: u64,
}

impl SegmentShipper {
    /// For one group of an open lineage.
    pub fn new(lineage: OpenLineage, group: GroupId) -> Self {
        Self { lineage, group, tail: None, newest: None, known: 0 }
    }

    /// The log is known to have been there up to `index`: its end is looked for around there before anywhere else.
    pub fn known_to(mut self, index: u64) -> Self {
        self.known = index;
        self
    }

    /// What it ships from here on is sealed like this; see [`OpenLineage::sealed_with`].
    ///
    /// # Errors
    /// As there.
    pub async fn seal_with(&mut self, sealing: Sealing) -> Result<(), ArchiveError> {
        self.lineage = self.lineage.clone().sealed_with(sealing).await?;
        Ok(())
    }

    /// Where it ships to.
    pub fn destination(&self) -> &Destination {
        self.lineage.destination()
    }

    /// Reads the end of the log from the destination; `None` = nothing was shipped yet. A new leader does this first
    /// and compares ([`Tail::check`]).
    ///
    /// # Errors
    /// `Fenced` when a recovery ended the log; when the last segment is damaged, or the destination fails.
    pub async fn tail(&mut self) -> Result<Option<Tail>, ArchiveError> {
        match self.end().await? {
            (tail, None) => Ok(tail),
            (_, Some(fence)) => Err(ArchiveError::Fenced {
                object: fence.name().path(self.lineage.id()),
                index: fence.index,
                successor: fence.successor,
            }),
        }
    }

    /// The same, and the fence behind it if there is one.
    ///
    /// # Errors
    /// When the last segment is damaged, or the destination fails.
    pub async fn end(&mut self) -> Result<(Option<Tail>, Option<Fence>), ArchiveError> {
        let (newest, fence) = newest(self.destination(), self.lineage.id(), self.group, self.known).await?;
        let tail = match &newest {
            None => None,
            Some(found) => {
                let segment = read_segment(self.destination(), self.lineage.id(), self.group, found.first).await?;
                Some(Tail::of(&segment))
            }
        };
        self.tail = Some(tail);
        self.newest = newest.map(|found| Listed { path: found.object, bytes: found.bytes });
        Ok((tail, fence))
    }

    /// Looks whether what was read or written last is still there.
    ///
    /// # Errors
    /// `Missing` or `Corrupt` when it is not, or when the destination fails.
    pub async fn look(&self) -> Result<(), ArchiveError> {
        let lineage = Listed { path: ObjectName::Lineage.path(self.lineage.id()), bytes: 0 };
        let newest = self.newest.as_ref().unwrap_or(&lineage);
        match self.destination().length(&newest.path).await? {
            None => Err(ArchiveError::missing(&newest.path, "it was there before, and the destination lost it")),
            Some(found) if self.newest.is_some() && found != newest.bytes => {
                Err(ArchiveError::corrupt(&newest.path, format!("it has {found} bytes, not {}", newest.bytes)))
            }
            Some(_) => Ok(()),
        }
    }

    /// Vouches that at this moment of the group's time everything that was committed lay here; the caller knows it from a
    /// quorum. Nothing is written before there is a log.
    ///
    /// # Errors
    /// When the destination fails.
    pub async fn heartbeat(&mut self, at: Millis) -> Result<(), ArchiveError> {
        let tail = match self.tail {
            Some(tail) => tail,
            None => self.tail().await?,
        };
        let Some(tail) = tail else { return Ok(()) };
        let heartbeat = Heartbeat { group: self.group, at, last: tail.last, chain: tail.chain };
        let object = heartbeat.name().path(self.lineage.id());
        let bytes = heartbeat.seal(self.lineage.id(), self.lineage.sealing())?.bytes;
        // Another's of the same moment vouches as well.
        self.destination().put_checked(&object, &bytes).await.map(drop)
    }

    /// Ends the log before `index`, which follows its end: nobody ships here any more. A fence that is there already
    /// stays as it is.
    ///
    /// # Errors
    /// `Refused` when somebody ships there now: the old cluster is alive.
    pub async fn fence(&mut self, index: u64, successor: LineageId) -> Result<Fence, ArchiveError> {
        let fence = Fence { group: self.group, index, successor };
        let object = fence.name().path(self.lineage.id());
        let bytes = fence.seal(self.lineage.id())?.bytes;
        if let Put::Lost(found) = self.destination().put_checked(&object, &bytes).await? {
            return match Segment::open(&object, self.lineage.id(), self.destination().keys(), self.group, index, &found)
            {
                Err(ArchiveError::Fenced { successor, .. }) => Ok(Fence { successor, ..fence }),
                Err(error) => Err(error),
                Ok(_) => Err(ArchiveError::NoChoice {
                    destination: self.destination().config().url.clone(),
                    reason: format!(
                        "somebody shipped entry {index} just now: a node of the old cluster is alive; stop it"
                    ),
                }),
            };
        }
        Ok(fence)
    }

    /// Ships committed entries that follow the end of the log there. `chain_before` is this node's entry chain before
    /// the first of them. Takes as many as fit into one segment; the outcome says where that ended.
    ///
    /// # Errors
    /// `LineageFork` when the destination holds another history; `Refused` when the entries do not follow the end.
    pub async fn ship(&mut self, entries: &[StoredEntry], chain_before: [u8; 32]) -> Result<ShipOutcome, ArchiveError> {
        let tail = match self.tail {
            Some(tail) => tail,
            None => self.tail().await?,
        };
        let segment = Segment::new(self.group, chain_before, entries[..fitting(entries)].to_vec())?;
        let object = segment.name().path(self.lineage.id());
        check_follows(&object, &segment, tail)?;
        let bytes = segment.seal(self.lineage.id(), self.lineage.sealing())?.bytes;
        let mut length = bytes.len() as u64;
        let outcome = match self.destination().put_checked(&object, &bytes).await? {
            Put::Created => ShipOutcome::Created { tail: Tail::of(&segment), bytes: length },
            Put::Same => ShipOutcome::Adopted { tail: Tail::of(&segment) },
            Put::Lost(found) => {
                let first = segment.first().index;
                let winner =
                    Segment::open(&object, self.lineage.id(), self.destination().keys(), self.group, first, &found)?;
                check_same_history(&object, &segment, &winner)?;
                length = found.len() as u64;
                ShipOutcome::Adopted { tail: Tail::of(&winner) }
            }
        };
        self.tail = Some(Some(outcome.tail()));
        self.newest = Some(Listed { path: object, bytes: length });
        Ok(outcome)
    }

    /// Ships what another destination holds of this history beyond the end here; gives the new end, `None` = neither
    /// holds anything. Every segment is checked, and only what goes on on the entry chain is taken.
    ///
    /// # Errors
    /// `LineageFork` when the two hold different histories; `Refused` when the other's log begins beyond the end here.
    pub async fn copy_from(&mut self, other: &Destination) -> Result<Option<Tail>, ArchiveError> {
        let mut tail = match self.tail {
            Some(tail) => tail,
            None => self.tail().await?,
        };
        let (segments, _) = list_log(other, self.lineage.id(), self.group).await?;
        let after = |tail: Option<Tail>| tail.map(|tail| tail.last.index + 1);
        // The one that holds the first missing entry, if any does, and all behind it.
        let begun = segments.partition_point(|found| after(tail).is_none_or(|next| found.first <= next));
        for found in &segments[if tail.is_some() { begun.saturating_sub(1) } else { 0 }..] {
            let segment = read_segment(other, self.lineage.id(), self.group, found.first).await?;
            loop {
                let next = after(tail).unwrap_or(found.first);
                if next > segment.last().index {
                    break;
                }
                let Some(chain) = segment.chain_before(next) else {
                    let reason = format!("{} begins after entry {next}, which is missing here", found.object);
                    return Err(ArchiveError::refused(reason));
                };
                let missing = segment.entries().iter().filter(|entry| entry.position.index >= next);
                tail = Some(self.ship(&missing.cloned().collect::<Vec<_>>(), chain).await?.tail());
            }
        }
        Ok(tail)
    }
}

impl Tail {
    fn of(segment: &Segment) -> Self {
        Self { last: segment.last(), chain: segment.chain_after }
    }

    /// Compares the end of the archived log with this node's history: `ours` is the log id at the tail's index and
    /// the entry chain there, `None` when this node has not committed that far.
    ///
    /// # Errors
    /// `LineageFork` when they differ, or when the archive is ahead of everything committed here.
    pub fn check(&self, destination: &Destination, ours: Option<(LogPosition, [u8; 32])>) -> Result<(), ArchiveError> {
        let fork = |position, reason: &str| ArchiveError::LineageFork {
            position,
            object: destination.config().url.clone(),
            reason: reason.to_owned(),
        };
        match ours {
            Some((position, chain)) if position == self.last && chain == self.chain => Ok(()),
            Some((position, _)) => Err(fork(position, "its last entry is not the one that is committed here")),
            None => Err(fork(self.last, "it is ahead of everything that is committed here")),
        }
    }
}

/// The entries must continue the known tail; a chain that does not is another history.
fn check_follows(object: &str, segment: &Segment, tail: Option<Tail>) -> Result<(), ArchiveError> {
    let Some(tail) = tail else { return Ok(()) };
    let first = segment.first();
    if tail.last.index.checked_add(1) != Some(first.index) {
        let reason = format!("entry {} does not follow the archived end {}", first.index, tail.last.index);
        return Err(ArchiveError::refused(reason));
    }
    if segment.chain_before != tail.chain || first.term < tail.last.term {
        return Err(ArchiveError::LineageFork {
            position: first,
            object: object.to_owned(),
            reason: format!("its place follows another entry {}", tail.last.index),
        });
    }
    Ok(())
}

/// The winner must hold the same entries as far as both go.
fn check_same_history(object: &str, ours: &Segment, winner: &Segment) -> Result<(), ArchiveError> {
    let fork = |position: LogPosition, reason: &str| ArchiveError::LineageFork {
        position,
        object: object.to_owned(),
        reason: reason.to_owned(),
    };
    if winner.chain_before != ours.chain_before {
        return Err(fork(ours.first(), "it follows another entry chain"));
    }
    match ours.entries().iter().zip(winner.entries()).find(|(ours, theirs)| ours != theirs) {
        Some((ours, _)) => Err(fork(ours.position, "it holds another entry here")),
        None => Ok(()),
    }
}

/// A segment in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSegment {
    /// Index of its first entry.
    pub first: u64,
    /// Full name.
    pub object: String,
    /// Length.
    pub bytes: u64,
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

fn segments_in(listed: Vec<Listed>) -> Vec<ListedSegment> {
    let segments = listed.into_iter().filter_map(|found| match ObjectName::parse(&found.path) {
        Some((_, ObjectName::Segment { level: 0, first, repair: 0, .. })) => {
            Some(ListedSegment { first, object: found.path, bytes: found.bytes })
        }
        _ => None,
    });
    segments.collect()
}

/// The newest segment, and the fence behind it if a recovery ended the log. `known` = an index that is most likely in
/// one of the last segments; a wrong one costs lists, no truth.
async fn newest(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    known: u64,
) -> Result<(Option<ListedSegment>, Option<Fence>), ArchiveError> {
    // Each entry may be a segment of its own: a list of so many names is one answer, or a hundred, or all of them.
    for back in [1_000, 100_000] {
        let Some(after) = known.checked_sub(back) else { break };
        let after = ObjectName::segment(group, after).path(lineage);
        let listed = destination.list_after(&lineage.log_prefix(group, 0), &after).await?;
        let (mut segments, fence) = end_of(destination, lineage, group, segments_in(listed)).await?;
        if let Some(newest) = segments.pop() {
            return Ok((Some(newest), fence));
        }
    }
    let (mut segments, fence) = list_log(destination, lineage, group).await?;
    Ok((segments.pop(), fence))
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
        Ok(_) | Err(ArchiveError::Corrupt { .. } | ArchiveError::NoKey { .. }) => Ok((segments, None)),
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
            Err(error) if error.fault().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Reads and checks a segment.
///
/// # Errors
/// Names the object and what is wrong.
pub async fn read_segment(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    first: u64,
) -> Result<Segment, ArchiveError> {
    let object = ObjectName::segment(group, first).path(lineage);
    let bytes = destination.get(&object).await?;
    Segment::open(&object, lineage, destination.keys(), group, first, &bytes)
}

#[cfg(test)]
mod tests;
