//! Snapshots that this node offers to peers whose state is damaged.
//!
//! Invariants: peers that reinstall at one time do not take each other's snapshot away; what nobody fetches goes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_store::LogPosition;
use tokio::time::Instant;

use crate::snapshot::SnapshotDir;

/// Each pins files that the state itself may have replaced already.
const OFFERS_MAX: usize = 3;

/// What is offered, and when someone last took something of it.
#[derive(Default)]
pub struct Offers(Mutex<Vec<(SnapshotDir, Instant)>>);

impl Offers {
    /// Offers one more; of too many, the one goes that was not asked for the longest.
    pub fn add(&self, dir: SnapshotDir) {
        let mut offers = self.lock();
        if offers.len() >= OFFERS_MAX {
            let oldest = (0..offers.len()).min_by_key(|place| offers[*place].1);
            oldest.map(|place| offers.remove(place));
        }
        offers.push((dir, Instant::now()));
    }

    /// The one at this position. It is in use.
    pub fn at(&self, position: Option<LogPosition>) -> Option<SnapshotDir> {
        let mut offers = self.lock();
        let (dir, used) = offers.iter_mut().find(|(dir, _)| dir.applied().position == position)?;
        *used = Instant::now();
        Some(dir.clone())
    }

    /// Gives up what nobody fetched for so long.
    pub fn forget_idle(&self, longest: Duration) {
        self.lock().retain(|(_, used)| used.elapsed() <= longest);
    }

    /// What they were taken of is damaged.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(SnapshotDir, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_store::Applied;

    use super::*;

    #[test]
    fn peers_that_reinstall_at_one_time_keep_their_snapshots() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |index: u64| Some(LogPosition { term: 1, node: 1, index });
        let offer = |index: u64| {
            let path = dir.path().join(index.to_string());
            std::fs::create_dir(&path).expect("a directory");
            SnapshotDir::received(path, Applied { position: at(index), ..Applied::default() })
        };
        let offers = Offers::default();
        offers.add(offer(5));
        offers.add(offer(6));
        offers.add(offer(7));
        assert!(offers.at(at(5)).is_some() && offers.at(at(6)).is_some(), "the newest one is not the only one");
        offers.add(offer(8));
        assert!(offers.at(at(7)).is_none() && !dir.path().join("7").exists(), "nobody asked for it");
        assert!(offers.at(at(5)).is_some() && offers.at(at(6)).is_some() && offers.at(at(8)).is_some());
        offers.forget_idle(Duration::from_secs(3600));
        assert!(offers.at(at(5)).is_some());
        offers.clear();
        assert!(offers.at(at(5)).is_none() && !dir.path().join("5").exists());
    }
}
