//! Peers whose log lost something it had acknowledged, as the leader sees them.
//!
//! openraft resets such a peer's progress on its next conflict, once told to expect it (`allow_next_revert`). A conflict
//! that comes *before* that poisons the progress instead: it lowers `searching_end` to the conflict, and from then on
//! every conflict at that index is "no need to update" (0.10.0-alpha.37, `progress/entry/update.rs`); the peer is never
//! filled up. Heartbeats find conflicts at once, so this race is the rule.
//!
//! Invariant: openraft sees a recovering peer's conflict only after it was told to expect one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A peer that said nothing for so long needs no help now.
const SILENT_MAX: Duration = Duration::from_secs(2);

/// What this node knows of them.
#[derive(Default)]
pub struct Recoveries(Mutex<BTreeMap<u64, Recovery>>);

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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Recovery>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
