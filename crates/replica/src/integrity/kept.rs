//! The snapshot that this node keeps for those who lag: read from time to time, like the state itself.
//!
//! Most of its files are the state's own, by hard links. What the state has replaced since nobody else reads, until a peer
//! needs it.

use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use crate::handle::Replica;
use crate::integrity::pace::Pacer;
use crate::snapshot::SnapshotDir;

/// Comparisons between two readings, and how much slower it is read than the state, which comes first.
const EVERY: u32 = 8;

/// When it was last looked at.
#[derive(Default)]
pub(super) struct Kept {
    read: Option<Instant>,
    reading: Option<tokio::task::JoinHandle<()>>,
}

impl Kept {
    /// Looks after it. A damaged one is replaced at once, whoever found the damage.
    pub(super) fn step(&mut self, replica: &Replica) {
        let integrity = replica.integrity();
        // A new one of a damaged state would be no better; whoever repairs it takes a new one.
        if super::is_running(&self.reading) || integrity.is_damaged() || integrity.is_fenced() {
            return;
        }
        let Some(dir) = current(replica) else { return };
        let is_damaged = dir.damage().is_some();
        let interval = replica.options().integrity.interval * EVERY;
        let since = self.read.get_or_insert_with(Instant::now);
        if !is_damaged && since.elapsed() < interval {
            return;
        }
        *since = Instant::now();
        let replica = replica.clone();
        self.reading = Some(tokio::spawn(async move {
            if is_damaged || is_found_damaged(&replica, dir.clone()).await {
                replace(&replica, &dir).await;
            }
        }));
    }
}

fn current(replica: &Replica) -> Option<SnapshotDir> {
    replica.integrity().current.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn is_found_damaged(replica: &Replica, dir: SnapshotDir) -> bool {
    let rate = replica.options().integrity.scrub_bytes_per_second / u64::from(EVERY);
    let mut pace = Pacer::new(rate).pace(Arc::default());
    let node = replica.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut goes_on = |bytes| !node.is_stopping() && !node.is_fenced() && pace(bytes);
        dir.read(&mut goes_on).map_err(|error| (dir.damage().is_some(), error))
    });
    match read.await {
        Ok(Ok(())) => false,
        Ok(Err((true, _))) => true,
        Ok(Err((false, error))) => {
            tracing::warn!(event = "integrity.snapshot_not_read", %error, "it is read again later");
            false
        }
        Err(error) => {
            tracing::error!(event = "integrity.snapshot_not_read", %error, "the thread that read it ended");
            false
        }
    }
}

/// A new one takes its place, unless one did. It may be no better: the state's own readings find that.
async fn replace(replica: &Replica, damaged: &SnapshotDir) {
    let (state, snapshots, room) = (replica.state().clone(), replica.snapshots_dir(), replica.room().clone());
    let taken = tokio::task::spawn_blocking(move || room.retry(|| SnapshotDir::checkpoint(&state, &snapshots))).await;
    let dir = match taken.map_err(|error| error.to_string()).and_then(|dir| dir.map_err(|error| error.to_string())) {
        Ok(dir) => dir,
        Err(error) => {
            tracing::warn!(event = "integrity.snapshot_not_replaced", error, "it is tried again");
            return;
        }
    };
    let mut current = replica.integrity().current.lock().unwrap_or_else(PoisonError::into_inner);
    if current.as_ref().is_some_and(|current| current.path() == damaged.path()) {
        let index = dir.applied().index();
        tracing::info!(event = "integrity.snapshot_replaced", index, "a new snapshot took the damaged one's place");
        *current = Some(dir);
    }
}
