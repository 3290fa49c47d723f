//! Shipping the log: committed entries become segments, each after the one before it.
//!
//! Invariants:
//! - Only entries that follow the tail on the entry chain are shipped: the log of a lineage has no overlap, and no gap but
//!   those that say so and have a snapshot at their end.
//! - A position has one winner. Who comes second takes over the winner's end if it is the same history, and stops if
//!   it is not. A deposed leader can be late, never wrong.
//! - A segment counts only after it was read back from the destination and found equal.

use std::time::Duration;

use bytes::Bytes;
use holdfast_model::id::{GroupId, Millis};
use holdfast_store::{LogPosition, StoredEntry};

use crate::destination::{Destination, Listed, Put};
use crate::error::ArchiveError;
use crate::fence::Fence;
use crate::gap::Gap;
use crate::heartbeat::Heartbeat;
use crate::layout::{LineageId, ObjectName};
use crate::lineage::{OpenLineage, find_lineages};
use crate::log::{ListedSegment, REPAIRS_MAX, before, list_log, newest, read_listed};
use crate::object::{self, Sealed};
use crate::sealing::Sealing;
use crate::segment::{Segment, fitting};

/// An object that reads as damaged is read so often again before it counts as lost.
const REREADS: u32 = 2;
const REREAD_PAUSE: Duration = Duration::from_secs(1);

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

/// What lies at a position now.
struct Placed {
    object: Listed,
    outcome: ShipOutcome,
    /// The segment of whoever was first, if that was another.
    winner: Option<Segment>,
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
            (_, Some(fence)) => Err(self.fenced(&fence)),
        }
    }

    fn fenced(&self, fence: &Fence) -> ArchiveError {
        let object = fence.name().path(self.lineage.id());
        ArchiveError::Fenced { object, index: fence.index, successor: fence.successor }
    }

    /// Where the log ends with what lies at a position.
    async fn end_at(&self, found: &ListedSegment) -> Result<Tail, ArchiveError> {
        match read_listed(self.destination(), self.lineage.id(), self.group, found).await {
            Ok(segment) => Ok(Tail::of(&segment)),
            Err(ArchiveError::NotShipped { gap, .. }) => Ok(Tail::behind(&gap)),
            Err(error) => Err(error),
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
            Some(found) => Some(self.end_at(found).await?),
        };
        self.tail = Some(tail);
        self.newest = newest.map(|found| Listed { path: found.object, bytes: found.bytes });
        Ok((tail, fence))
    }

    /// The end of the log before the newest position, where that one is damaged for good and has no repair: what is shipped next
    /// repairs it. `None` = it is the first.
    ///
    /// # Errors
    /// What is wrong with the newest position, where that may pass, or where it is not known what lies before it; `Fenced` when
    /// a recovery ended this log.
    pub async fn tail_before_damage(&mut self, damage: ArchiveError) -> Result<Option<Tail>, ArchiveError> {
        let (id, group) = (*self.lineage.id(), self.group);
        let (listed, fence) = newest(self.destination(), &id, group, self.known).await?;
        if let Some(fence) = fence {
            return Err(self.fenced(&fence));
        }
        let fault = match &damage {
            ArchiveError::Corrupt { object, .. } | ArchiveError::Missing { object, .. } => ObjectName::parse(object),
            _ => None,
        };
        let (Some(listed), Some((_, ObjectName::Segment { first, .. }))) = (listed, fault) else { return Err(damage) };
        let is_gone = matches!(damage, ArchiveError::Missing { .. });
        // It is there no more, and a repair of it is damaged; or it is there, and damaged.
        let object = if is_gone { listed.object.clone() } else { ObjectName::segment(group, first).path(&id) };
        if listed.first != first || !self.may_be_repaired(&object, &self.destination().get(&object).await?).await? {
            return Err(damage);
        }
        let tail = match before(self.destination(), &id, group, first).await? {
            None => None,
            Some(found) => {
                let tail = self.end_at(&found).await?;
                if tail.last.index.checked_add(1) != Some(first) {
                    return Err(damage);
                }
                Some(tail)
            }
        };
        self.tail = Some(tail);
        self.newest = None;
        Ok(tail)
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
            return match Segment::open(&object, self.lineage.id(), self.destination().keys(), &fence.name(), &found) {
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
        let first = segment.first();
        check_follows(&segment.name().path(self.lineage.id()), first, segment.chain_before, tail)?;
        let seal = |name| segment.seal_as(&name, self.lineage.id(), self.lineage.sealing());
        let placed = self.place(first.index, Tail::of(&segment), seal).await?;
        if let Some(winner) = &placed.winner {
            check_same_history(&placed.object.path, &segment, winner)?;
        }
        Ok(self.ends_with(placed))
    }

    /// Says that entries which follow the end of the log there will never come; a snapshot at the last of them is there. Where
    /// a segment was first, that is the outcome.
    ///
    /// # Errors
    /// `Refused` when the gap does not follow the end, `LineageFork` when it does on another history; `Fenced`; when the
    /// destination fails.
    pub async fn leave_out(&mut self, gap: Gap) -> Result<ShipOutcome, ArchiveError> {
        let tail = match self.tail {
            Some(tail) => tail,
            None => self.tail().await?,
        };
        let object = gap.name().path(self.lineage.id());
        let first = LogPosition { index: gap.first, ..gap.last };
        check_follows(&object, first, gap.chain_before, tail)?;
        let seal = |name| gap.seal_as(&name, self.lineage.id(), self.lineage.sealing());
        let placed = self.place(gap.first, Tail::behind(&gap), seal).await?;
        Ok(self.ends_with(placed))
    }

    fn ends_with(&mut self, placed: Placed) -> ShipOutcome {
        self.tail = Some(Some(placed.outcome.tail()));
        self.newest = Some(placed.object);
        placed.outcome
    }

    /// Puts something at a position, which ends with `tail`. One that is poisoned, because what lies there is damaged at rest, is
    /// repaired: the lowest free number of a repair is its place.
    async fn place(
        &self,
        first: u64,
        tail: Tail,
        seal: impl Fn(ObjectName) -> Result<Sealed, ArchiveError>,
    ) -> Result<Placed, ArchiveError> {
        let mut repair = 0;
        loop {
            let name = ObjectName::Segment { group: self.group, first, repair };
            let path = name.path(self.lineage.id());
            let sealed = seal(name)?.bytes;
            let bytes = sealed.len() as u64;
            let placed =
                |outcome, winner, bytes| Placed { object: Listed { path: path.clone(), bytes }, outcome, winner };
            let found = match self.destination().put_checked(&path, &sealed).await? {
                Put::Created => return Ok(placed(ShipOutcome::Created { tail, bytes }, None, bytes)),
                Put::Same => return Ok(placed(ShipOutcome::Adopted { tail }, None, bytes)),
                Put::Lost(found) => found,
            };
            let length = found.len() as u64;
            match Segment::open(&path, self.lineage.id(), self.destination().keys(), &name, &found) {
                Ok(winner) => {
                    let tail = Tail::of(&winner);
                    return Ok(placed(ShipOutcome::Adopted { tail }, Some(winner), length));
                }
                Err(ArchiveError::NotShipped { gap, .. }) => {
                    return Ok(placed(ShipOutcome::Adopted { tail: Tail::behind(&gap) }, None, length));
                }
                Err(error @ ArchiveError::Corrupt { .. }) => {
                    if repair == REPAIRS_MAX || !self.may_be_repaired(&path, &found).await? {
                        return Err(error);
                    }
                    tracing::error!(event = "offsite.poisoned", %error, "it is shipped again beside it");
                    repair += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// An object was damaged at rest: it is no object as anybody wrote it, and the same bytes come again and again, so that it
    /// is not the way to them that is at fault. Nothing is mended in a log that another history goes on from: what is damaged
    /// may be the fence.
    async fn may_be_repaired(&self, object: &str, found: &Bytes) -> Result<bool, ArchiveError> {
        if object::is_whole(found) {
            return Ok(false);
        }
        for _ in 0..REREADS {
            tokio::time::sleep(REREAD_PAUSE).await;
            if self.destination().get(object).await? != *found {
                return Ok(false);
            }
        }
        let found = find_lineages(self.destination()).await?;
        Ok(!found.lineages.iter().any(|facts| facts.parent_id() == Some(*self.lineage.id())))
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
            let segment = read_listed(other, self.lineage.id(), self.group, found).await?;
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

    fn behind(gap: &Gap) -> Self {
        Self { last: gap.last, chain: gap.chain_after }
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

/// What begins with `first` must continue the known tail; a chain that does not is another history.
fn check_follows(
    object: &str,
    first: LogPosition,
    chain_before: [u8; 32],
    tail: Option<Tail>,
) -> Result<(), ArchiveError> {
    let Some(tail) = tail else { return Ok(()) };
    if tail.last.index.checked_add(1) != Some(first.index) {
        let reason = format!("entry {} does not follow the archived end {}", first.index, tail.last.index);
        return Err(ArchiveError::refused(reason));
    }
    if chain_before != tail.chain || first.term < tail.last.term {
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

#[cfg(test)]
mod tests;
