//! Clocks of the group, as the leader hears them: one clock that jumps moves nobody's time.
//!
//! Invariants: a stamp is the median of the voters' clocks heard lately, this node's among them; what a peer's clock says
//! now is told from when it was heard by the monotonic clock, never by this node's wall clock; without a quorum of clocks
//! there is no time, and nothing expires.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holdfast_model::id::Millis;

/// A clock heard longer ago than this says nothing.
const HEARD_MAX: Duration = Duration::from_secs(2);

/// What peers' clocks said, and when.
#[derive(Default)]
pub struct Clocks(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    peers: BTreeMap<u64, (u64, Instant)>,
    voters: Vec<u64>,
}

impl Clocks {
    /// A peer's clock said this just now; 0 = it did not say.
    pub fn heard(&self, peer: u64, clock_ms: u64) {
        if clock_ms > 0 {
            self.lock().peers.insert(peer, (clock_ms, Instant::now()));
        }
    }

    /// Whose clocks count from now on.
    pub fn set_voters(&self, voters: &[u64]) {
        let mut heard = self.lock();
        if heard.voters != voters {
            heard.voters = voters.to_vec();
        }
    }

    /// The median of the voters' clocks, this node's among them; of an even number the earlier middle one. `None` without
    /// a quorum.
    pub fn median(&self, own: u64) -> Option<Millis> {
        let heard = self.lock();
        let now = Instant::now();
        let mut clocks: Vec<u64> = heard.voters.iter().filter_map(|voter| heard.read(*voter, own, now)).collect();
        if clocks.len() < heard.voters.len() / 2 + 1 {
            return None;
        }
        clocks.sort_unstable();
        clocks.get((clocks.len() - 1) / 2).copied().map(Millis)
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn read(&self, voter: u64, own: u64, now: Instant) -> Option<u64> {
        if voter == own {
            return Some(wall_clock_ms());
        }
        let (said_ms, heard) = self.peers.get(&voter)?;
        let since = now.saturating_duration_since(*heard);
        (since <= HEARD_MAX).then(|| said_ms.saturating_add(since.as_millis() as u64))
    }
}

/// This machine's wall clock, in milliseconds since the Unix epoch.
pub fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;

    fn near(stamp: Option<Millis>, wanted_ms: u64) -> bool {
        stamp.is_some_and(|stamp| stamp.0.abs_diff(wanted_ms) < 60_000)
    }

    #[test]
    fn one_clock_that_jumps_moves_nothing() {
        let now = wall_clock_ms();
        for jumped in [now + YEAR_MS, now - YEAR_MS, 1] {
            let clocks = Clocks::default();
            clocks.set_voters(&[1, 2, 3]);
            // Whichever of the others it is: the median lies between them, not in the middle of the list.
            for (right, wrong) in [(2, 3), (3, 2)] {
                clocks.heard(right, now);
                clocks.heard(wrong, jumped);
                assert!(near(clocks.median(1), now), "{wrong} jumped to {jumped}");
            }
            // This node's own may be the one: to the others it looks so from here.
            clocks.heard(2, now + YEAR_MS);
            clocks.heard(3, now + YEAR_MS);
            assert!(near(clocks.median(1), now + YEAR_MS), "{jumped}");
        }
    }

    #[test]
    fn without_a_quorum_of_clocks_there_is_no_time() {
        let clocks = Clocks::default();
        assert_eq!(clocks.median(1), None, "not even members");
        clocks.set_voters(&[1, 2, 3]);
        assert_eq!(clocks.median(1), None);
        clocks.heard(4, wall_clock_ms());
        assert_eq!(clocks.median(1), None, "a stranger's clock does not count");
        clocks.heard(3, wall_clock_ms() + YEAR_MS);
        assert!(near(clocks.median(1), wall_clock_ms()), "of two, the earlier");
        clocks.set_voters(&[1]);
        assert!(near(clocks.median(1), wall_clock_ms()));
        clocks.set_voters(&[1, 2]);
        clocks.heard(2, 0);
        assert_eq!(clocks.median(1), None, "it did not say");
    }

    #[test]
    fn a_clock_heard_long_ago_says_nothing() {
        let clocks = Clocks::default();
        clocks.set_voters(&[1, 2]);
        clocks.heard(2, wall_clock_ms());
        assert!(clocks.median(1).is_some());
        if let Some((_, heard)) = clocks.lock().peers.get_mut(&2)
            && let Some(earlier) = heard.checked_sub(HEARD_MAX + Duration::from_millis(1))
        {
            *heard = earlier;
        }
        assert_eq!(clocks.median(1), None);
    }
}
