//! Following the log from position to position: segments, their repairs, gaps and the fence.
//!
//! Invariant: of what lies at one position the object that reaches furthest counts, as it does for a restore.

use holdfast_model::id::GroupId;

use super::{Check, VerifyReport};
use crate::error::ArchiveError;
use crate::gap::Gap;
use crate::layout::ObjectName;
use crate::segment::{ChainWalk, Segment};

/// What lies at one position of the log, under its own name and those of its repairs.
#[derive(Debug)]
pub(super) struct Position {
    pub(super) first: u64,
    pub(super) held: Vec<(String, Held)>,
    /// Objects that do not open, with the reason.
    pub(super) damaged: Vec<(String, String)>,
}

/// What an object at a position holds.
#[derive(Debug)]
pub(crate) enum Held {
    Segment(Segment),
    Gap(Gap),
    /// The end of the log.
    Fence,
}

impl Held {
    /// How far it reaches: of several, the furthest counts.
    fn last(&self) -> u64 {
        match self {
            Self::Segment(segment) => segment.last().index,
            Self::Gap(gap) => gap.last.index,
            Self::Fence => 0,
        }
    }
}

impl Check<'_> {
    /// Where what lies at a position is gathered; the one before it is done then.
    pub(super) fn position(
        &mut self,
        group: GroupId,
        first: u64,
        report: &mut VerifyReport,
    ) -> Result<&mut Position, ArchiveError> {
        let before = self.groups.entry(group).or_default().position.as_ref().map(|position| position.first);
        if before.is_some_and(|before| before != first) {
            self.settle(group, report)?;
        }
        let position = &mut self.groups.entry(group).or_default().position;
        Ok(position.get_or_insert_with(|| Position { first, held: Vec::new(), damaged: Vec::new() }))
    }

    /// Follows the log over a position of which everything was read.
    pub(super) fn settle(&mut self, group: GroupId, report: &mut VerifyReport) -> Result<(), ArchiveError> {
        let Some(position) = self.groups.entry(group).or_default().position.take() else { return Ok(()) };
        let Position { first, held, damaged } = position;
        let own = ObjectName::segment(group, first).path(self.lineage);
        // Who repairs a position ships the same entries again.
        for pair in held.windows(2) {
            if let [(object, Held::Segment(one)), (other, Held::Segment(two))] = pair
                && one.entries().iter().zip(two.entries()).any(|(one, two)| one != two)
            {
                report.fault(other, format!("it holds other entries than {object}, at one position"));
            }
        }
        // The first of those that reach furthest.
        let best = held.into_iter().rev().max_by_key(|(_, held)| held.last());
        for (object, reason) in damaged {
            // A repair that is damaged itself repairs nothing.
            if best.is_some() && object == own {
                report.repaired.push(object)
            } else {
                report.bad.push((object, reason))
            }
        }
        match best {
            None => self.groups.entry(group).or_default().broken = true,
            Some((object, Held::Segment(segment))) => self.link(&object, &segment, report)?,
            Some((object, Held::Gap(gap))) => self.bridge(&object, &gap, report),
            Some((object, Held::Fence)) => {
                let group = self.groups.entry(group).or_default();
                if group.walk.is_some_and(|walk| !group.broken && walk.next != first) {
                    report.fault(object, "it ends the log elsewhere than behind the last segment");
                }
                // What lies behind it has nothing to follow.
                group.walk = Some(ChainWalk { next: u64::MAX, chain: [0; 32] });
            }
        }
        Ok(())
    }

    /// Where the log of this history begins.
    fn start(&self) -> ChainWalk {
        match self.facts.as_ref().and_then(|facts| facts.parent.as_ref()) {
            Some(parent) => ChainWalk { next: parent.index + 1, chain: parent.chain },
            None => ChainWalk::FRESH,
        }
    }

    /// Follows the chain over a gap: it must link what lies before it to a snapshot at its end.
    fn bridge(&mut self, object: &str, gap: &Gap, report: &mut VerifyReport) {
        let start = self.start();
        let group = self.groups.entry(gap.group).or_default();
        let here = ChainWalk { next: gap.first, chain: gap.chain_before };
        if !group.broken && group.walk.unwrap_or(start) != here {
            report.fault(object, "it is a gap that does not follow what lies before it");
        }
        group.broken = false;
        group.walk = Some(ChainWalk { next: gap.last.index.saturating_add(1), chain: gap.chain_after });
        match group.manifests.get(&gap.last.index) {
            Some((manifest, _)) if manifest.entry_chain == gap.chain_after => {}
            Some((manifest, _)) => {
                let snapshot = manifest.name().path(self.lineage);
                report.fault(snapshot, format!("its entry chain is not that of the log behind the gap in {object}"));
            }
            None if group.manifests.keys().any(|index| *index > gap.last.index) => {}
            None => {
                let (first, last) = (gap.first, gap.last.index);
                let reason =
                    format!("entries {first} to {last} were never shipped, and no snapshot stands in for them");
                report.fault(object, reason);
            }
        }
        report.gaps.push(*gap);
    }

    /// Follows the chain into a segment; segments come in the order of their indices.
    fn link(&mut self, object: &str, segment: &Segment, report: &mut VerifyReport) -> Result<(), ArchiveError> {
        let start = self.start();
        let (first, last) = (segment.first().index, segment.last().index);
        let here = ChainWalk { next: first, chain: segment.chain_before };
        let group = self.groups.entry(segment.group).or_default();
        // A destination that was added later begins where the log began then: a snapshot must reach up to there.
        let begins_late = first > start.next && group.manifests.keys().any(|index| index + 1 >= first);
        let mut walk = match group.walk {
            _ if group.broken => here,
            Some(walk) => walk,
            None if begins_late => here,
            None => start,
        };
        group.broken = false;
        if first < walk.next {
            report.fault(object, "it overlaps the segment before it");
        } else if let Err(error) = walk.follow(self.lineage, object, segment, u64::MAX) {
            report.note(error)?;
        }
        report.log.entry(segment.group).or_insert((first, last)).1 = last;
        group.walk = Some(ChainWalk { next: last.saturating_add(1), chain: segment.chain_after });
        for (next, joined) in group.joined.range(first..=last.saturating_add(1)) {
            for (joined, _) in joined.iter().filter(|(_, chain)| segment.chain_before(*next) != Some(*chain)) {
                report.fault(joined.clone(), format!("its entry chain is not that of the log in {object}"));
            }
        }
        for (index, (manifest, _)) in group.manifests.range(first..=last) {
            if segment.chain_before(index + 1) != Some(manifest.entry_chain) {
                let snapshot = manifest.name().path(self.lineage);
                report.fault(snapshot, format!("its entry chain is not that of the log in {object}"));
            }
        }
        for ((index, chain), heartbeat) in group.vouched.range((first, [0; 32])..=(last, [u8::MAX; 32])) {
            if segment.chain_before(index + 1) != Some(*chain) {
                let heartbeat = heartbeat.name().path(self.lineage);
                report.fault(heartbeat, format!("its entry chain is not that of the log in {object}"));
            }
        }
        Ok(())
    }
}
