//! The walk over all entries when a log is opened: how far they link to each other.

use crate::log::frame;
use crate::log::sizes::Sizes;
use crate::log::tail::Link;
use crate::log::types::{LogPosition, VoteRecord};

/// What the log holds of a group.
pub(crate) struct Walked {
    pub(crate) vote: Option<VoteRecord>,
    pub(crate) committed: Option<LogPosition>,
    pub(crate) purged: Link,
    pub(crate) last: Link,
    /// Of the entries up to `last`.
    pub(crate) sizes: Sizes,
    /// First broken entry, the highest position known to have been there, and what is broken.
    pub(crate) broken: Option<(u64, LogPosition, String)>,
}

impl Walked {
    /// Before the first entry behind `purged`.
    pub(crate) fn begin(vote: Option<VoteRecord>, committed: Option<LogPosition>, purged: Link) -> Self {
        Self { vote, committed, purged, last: purged, sizes: Sizes::default(), broken: None }
    }

    /// Takes the next frame, in the order of the log. After the first break it only looks for how far the log once went.
    /// True when the frame follows.
    pub(crate) fn step(&mut self, frame: &[u8]) -> bool {
        let expected = self.last.position.map_or(0, |last| last.index + 1);
        let framed = frame::decode(frame);
        if let Some((_, seen, _)) = &mut self.broken {
            if let Ok(framed) = framed {
                *seen = (*seen).max(framed.entry.position);
            }
            return false;
        }
        let term = self.last.position.map_or(0, |last| last.term);
        let fault = match &framed {
            Err(reason) => Some(*reason),
            Ok(framed) if framed.entry.position.index < expected => {
                Some("comes again, and what it replaces was not dropped")
            }
            Ok(framed) if framed.entry.position.index > expected => Some("is missing"),
            Ok(framed) if framed.previous_crc != self.last.crc => Some("does not link to the one before"),
            Ok(framed) if framed.entry.position.term < term => Some("is of an older term than the one before"),
            Ok(_) => None,
        };
        match (fault, framed) {
            (None, Ok(framed)) => {
                self.sizes.push(framed.entry.position.index, framed.entry.bytes.len());
                self.last = Link { position: Some(framed.entry.position), crc: framed.crc };
                true
            }
            (fault, framed) => {
                // At least this much was there once; the node that wrote it is not known any more.
                let node = self.last.position.map_or(0, |last| last.node);
                let least = LogPosition { term, node, index: expected };
                let seen = framed.map_or(least, |framed| framed.entry.position.max(least));
                self.broken = Some((expected, seen, fault.unwrap_or("is broken").to_owned()));
                false
            }
        }
    }

    /// What follows `last` was dropped, broken or not. What is purged cannot be.
    pub(crate) fn truncate(&mut self, last: Link) {
        let index = |link: &Link| link.position.map(|position| position.index);
        let last = if index(&last) < index(&self.purged) { self.purged } else { last };
        if index(&last) > index(&self.last) {
            return;
        }
        self.sizes.truncate(index(&last).map_or(0, |index| index + 1));
        self.last = last;
        self.broken = None;
    }
}
