//! Snapshots on their way to followers, and the log that must wait for them.
//!
//! Invariant: while a follower takes a snapshot, and until it has caught up from there, the entries after that snapshot
//! stay in the log; otherwise, under load, each snapshot is too old when it arrives, and the follower never gets there.
//! The wait is bounded: in bytes, and in time after the last sign of a transfer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_store::LogStore;

/// A transfer that ended this long ago and led nowhere no longer holds the log.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Bytes of the log that it keeps at most for one follower.
const BYTES_MAX: u64 = 8 << 30;

/// Below this index the log waits for nobody.
pub fn furthest(log: &LogStore) -> u64 {
    log.bounded(0, BYTES_MAX)
}

/// The transfers of this node as a leader.
#[derive(Default)]
pub struct Transfers(Mutex<BTreeMap<u64, Transfer>>);

#[derive(Clone, Copy)]
struct Transfer {
    /// Index of the snapshot.
    index: u64,
    /// When it ended; `None` while it is under way.
    ended: Option<Instant>,
}

/// A transfer under way; dropped at its end, whatever that is.
pub struct UnderWay<'a> {
    transfers: &'a Transfers,
    target: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(transfer) = self.transfers.lock().get_mut(&self.target) {
            transfer.ended = Some(Instant::now());
        }
    }
}

impl Transfers {
    /// A snapshot at `index` goes to `target`.
    pub fn begin(&self, target: u64, index: u64) -> UnderWay<'_> {
        self.lock().insert(target, Transfer { index, ended: None });
        UnderWay { transfers: self, target }
    }

    /// Entries above this index are still wanted. `matched` is how far each follower is; followers from `window` on
    /// need nothing special any more, and nobody's transfer is waited for below `furthest`.
    pub fn floor(&self, matched: &BTreeMap<u64, u64>, window: u64, furthest: u64) -> Option<u64> {
        let mut transfers = self.lock();
        transfers.retain(|target, transfer| {
            let caught_up = matched.get(target).is_some_and(|matched| *matched >= window);
            let given_up = transfer.ended.is_some_and(|ended| ended.elapsed() > IDLE_MAX);
            let too_far = transfer.index < furthest;
            if too_far {
                tracing::warn!(event = "snapshot.slow", target, "the log waits no longer for this follower's snapshot");
            }
            !(caught_up || given_up || too_far)
        });
        transfers.values().map(|transfer| transfer.index).min()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Transfer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_waits_for_a_follower_until_it_caught_up() {
        let transfers = Transfers::default();
        assert_eq!(transfers.floor(&BTreeMap::new(), 500, 0), None);
        let under_way = transfers.begin(2, 100);
        assert_eq!(transfers.floor(&[(2, 40)].into(), 500, 100), Some(100), "under way");
        drop(under_way);
        assert_eq!(transfers.floor(&[(2, 100)].into(), 600, 0), Some(100), "installed, and far behind");
        assert_eq!(transfers.floor(&[(2, 100)].into(), 100, 0), None, "caught up");
        drop(transfers.begin(3, 10));
        assert_eq!(transfers.floor(&BTreeMap::new(), 500, 11), None, "not for ever");
    }
}
