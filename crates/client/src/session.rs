//! Sessions: reads that see what the session itself has seen, on any node.
//!
//! Invariants: the bound never falls within one incarnation; it is never sent for a group or an incarnation that it was
//! not counted in.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_wire::v1;
use v1::read_consistency::Level;

use crate::client::Client;

/// A client that remembers how far the answers it got had come, and asks in reads that name no [`v1::ReadConsistency`]
/// for at least that much: they see all writes of the session and never go back in time, and any node that is new
/// enough may serve them without asking the leader. Before its first answer a session reads as a [`Client`] does.
///
/// After an answer from another incarnation (a restored cluster) it starts anew. Log positions of different Raft groups
/// do not compare: a session that met several of them reads linearizable, so use one session per user.
///
/// Clones are the same session.
#[derive(Debug, Clone)]
pub struct Session(Client);

impl Session {
    pub(crate) fn new(client: Client) -> Self {
        Self(Client { seen: Some(Arc::new(Seen::default())), ..client })
    }

    /// Takes note of an answer that came another way, for example with a watch's hint: later reads see what it saw.
    pub fn observe(&self, header: &v1::ResponseHeader) {
        if let Some(seen) = &self.0.seen {
            seen.observe(Some(header));
        }
    }

    /// What reads ask for now; `None` = nothing was seen yet.
    pub fn consistency(&self) -> Option<v1::ReadConsistency> {
        self.0.seen.as_ref().and_then(|seen| seen.bound())
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Bound {
    #[default]
    Nothing,
    At(v1::AtLeast),
    /// Several groups of one incarnation.
    Groups(u64),
}

/// The newest point of a session's answers.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Bound>);

impl Seen {
    pub(crate) fn observe(&self, header: Option<&v1::ResponseHeader>) {
        let Some(header) = header.filter(|header| header.incarnation != 0) else { return };
        let v1::ResponseHeader { incarnation, applied_index, group_id, .. } = *header;
        let new = v1::AtLeast { incarnation, applied_index, group_id };
        let mut bound = self.lock();
        *bound = match *bound {
            Bound::At(old) if old.incarnation == incarnation && old.group_id != group_id => Bound::Groups(incarnation),
            Bound::At(old) if old.incarnation == incarnation && old.applied_index >= applied_index => Bound::At(old),
            Bound::Groups(of) if of == incarnation => Bound::Groups(of),
            _ => Bound::At(new),
        };
    }

    /// The history that the bound was counted in is not that of the cluster.
    pub(crate) fn forget(&self) {
        *self.lock() = Bound::Nothing;
    }

    pub(crate) fn bound(&self) -> Option<v1::ReadConsistency> {
        match *self.lock() {
            Bound::Nothing => None,
            Bound::At(at) => Some(v1::ReadConsistency { level: Some(Level::AtLeast(at)) }),
            Bound::Groups(_) => Some(linearizable()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bound> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn linearizable() -> v1::ReadConsistency {
    v1::ReadConsistency { level: Some(Level::Linearizable(v1::Linearizable {})) }
}

/// Reads that can say how fresh they must be.
pub(crate) trait Fresh {
    fn consistency(&mut self) -> &mut Option<v1::ReadConsistency>;
}

macro_rules! fresh {
    ($($name:ident)*) => {$(
        impl Fresh for v1::$name {
            fn consistency(&mut self) -> &mut Option<v1::ReadConsistency> {
                &mut self.consistency
            }
        }
    )*};
}
fresh!(BatchGetRecordsRequest ListRecordsRequest GetChangesRequest GetManifestRequest GetUserRequest);

#[cfg(test)]
mod tests {
    use super::*;

    fn header(incarnation: u64, group_id: u32, applied_index: u64) -> v1::ResponseHeader {
        v1::ResponseHeader { incarnation, group_id, applied_index, ..Default::default() }
    }

    fn at(incarnation: u64, group_id: u32, applied_index: u64) -> Option<v1::ReadConsistency> {
        let at = v1::AtLeast { incarnation, group_id, applied_index };
        Some(v1::ReadConsistency { level: Some(Level::AtLeast(at)) })
    }

    #[test]
    fn the_newest_answer_of_a_history_counts() {
        let seen = Seen::default();
        assert_eq!(seen.bound(), None);
        seen.observe(None);
        seen.observe(Some(&v1::ResponseHeader::default()));
        assert_eq!(seen.bound(), None);
        for (index, expected) in [(5, 5), (9, 9), (7, 9)] {
            seen.observe(Some(&header(1, 0, index)));
            assert_eq!(seen.bound(), at(1, 0, expected));
        }
        seen.observe(Some(&header(2, 0, 3)));
        assert_eq!(seen.bound(), at(2, 0, 3), "a restored cluster counts anew");
        seen.forget();
        assert_eq!(seen.bound(), None);
    }

    #[test]
    fn positions_of_two_groups_are_not_compared() {
        let seen = Seen::default();
        seen.observe(Some(&header(1, 0, 900)));
        seen.observe(Some(&header(1, 1, 5)));
        assert_eq!(seen.bound(), Some(linearizable()));
        seen.observe(Some(&header(1, 1, 6)));
        assert_eq!(seen.bound(), Some(linearizable()));
        seen.observe(Some(&header(2, 1, 6)));
        assert_eq!(seen.bound(), at(2, 1, 6));
    }
}
