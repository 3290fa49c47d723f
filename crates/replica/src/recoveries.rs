//! Peers whose log lost something it had acknowledged, as the leader sees them.
//!
//! openraft resets such a peer's progress on its next conflict, once told to expect it (`allow_next_revert`). A conflict
//! that comes *before* that poisons the progress instead: it lowers `searching_end` to the conflict, and from then on
//! every conflict at that index is "no need to update" (0.10.0-alpha.37, `progress/entry/update.rs`); the peer is never
//! filled up. Heartbeats find conflicts at once, so this race is the rule.
//!
//! A peer that does not know yet that it lost anything says so no more than its conflict does: an entry that it had
//! acknowledged to this leader is not there. That is held back as well; the peer asks what it had acknowledged
//! ([`crate::witnesses`]), and recovers from then on.
//!
//! Invariant: openraft sees the conflict of a peer that lost something only after it was told to expect one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A peer that said nothing for so long needs no help now.
const SILENT_MAX: Duration = Duration::from_secs(2);

/// What this node knows of them.
#[derive(Default)]
pub struct Recoveries {
    under_way: Mutex<BTreeMap<u64, Recovery>>,
    acknowledged: Mutex<BTreeMap<u64, Acknowledged>>,
}

/// What a peer said that it holds, to this node as the leader of a term.
struct Acknowledged {
    term: u64,
    index: u64,
    /// That it lacks some of it was told.
    told: bool,
}

struct Recovery {
    heard: Instant,
    expected: bool,
}

impl Recoveries {
    /// A peer answered. True: openraft may see a conflict in that answer.
    pub fn heard(&self, peer: u64, recovering: bool) -> bool {
        let mut known = self.lock();
        if !recovering {
            known.remove(&peer);
            return true;
        }
        let recovery = known.entry(peer).or_insert_with(|| Recovery { heard: Instant::now(), expected: false });
        recovery.heard = Instant::now();
        recovery.expected
    }

    /// Peers that recover now.
    pub fn under_way(&self) -> Vec<u64> {
        let mut known = self.lock();
        known.retain(|_, recovery| recovery.heard.elapsed() < SILENT_MAX);
        known.keys().copied().collect()
    }

    /// openraft expects this peer's log to have gone back.
    pub fn expected(&self, peer: u64) {
        if let Some(recovery) = self.lock().get_mut(&peer) {
            recovery.expected = true;
        }
    }

    /// A peer holds all entries of this leader's log up to `index`.
    pub fn acknowledged(&self, peer: u64, term: u64, index: u64) {
        let mut known = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(peer).or_insert(Acknowledged { term, index, told: false });
        // In another term its log may rightly have been cut.
        let index = if known.term == term { known.index.max(index) } else { index };
        *known = Acknowledged { term, index, told: false };
    }

    /// A peer that does not recover lacks the entry at `index`. True: openraft may see that; it never had it.
    pub fn lacks(&self, peer: u64, term: u64, index: u64) -> bool {
        let mut known = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = known.get_mut(&peer).filter(|known| known.term == term && index <= known.index);
        let Some(lost) = lost else { return true };
        if !std::mem::replace(&mut lost.told, true) {
            tracing::warn!(
                event = "log.peer_lost",
                node = peer,
                index,
                "it lacks what it had acknowledged; waiting for it"
            );
        }
        false
    }

    /// Its log goes back, and that is expected.
    pub fn goes_back(&self, peer: u64) {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Recovery>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_acknowledged_in_this_term_and_lacks_is_held_back() {
        let recoveries = Recoveries::default();
        assert!(recoveries.lacks(2, 5, 10), "nothing is known of it");
        recoveries.acknowledged(2, 5, 10);
        recoveries.acknowledged(2, 5, 8);
        assert!(!recoveries.lacks(2, 5, 10) && !recoveries.lacks(2, 5, 3));
        assert!(recoveries.lacks(2, 5, 11), "it never had it");
        assert!(recoveries.lacks(3, 5, 3), "another peer");
        assert!(recoveries.lacks(2, 6, 3), "another leader may have cut its log in between");
        recoveries.acknowledged(2, 6, 4);
        assert!(recoveries.lacks(2, 6, 5) && !recoveries.lacks(2, 6, 4));
        recoveries.goes_back(2);
        assert!(recoveries.lacks(2, 6, 4), "openraft looks for the place where it goes on");
    }

    #[test]
    fn a_conflict_is_held_back_until_it_is_expected() {
        let recoveries = Recoveries::default();
        assert!(recoveries.heard(2, false), "an ordinary conflict");
        assert!(!recoveries.heard(2, true));
        assert_eq!(recoveries.under_way(), [2]);
        recoveries.expected(2);
        assert!(recoveries.heard(2, true));
        assert!(recoveries.heard(2, false), "it is whole again");
        assert!(recoveries.under_way().is_empty());
        recoveries.expected(2);
        assert!(!recoveries.heard(2, true), "the next loss is another one");
    }
}
