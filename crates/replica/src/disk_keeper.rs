//! What a replica does about its disk: measures it, leaves the lead to who has room, and gives back what it can.
//!
//! While there is room, checkpoints and purges follow the number of entries (see `maintain`). When there is little, what
//! the log and old versions of records hold is given back right away, one step after the other, so that no step needs
//! more than is left; and nothing is rewritten that nobody asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use holdfast_model::command::Command;
use holdfast_store::StoreError;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{Instant, sleep};

use crate::handle::{Core, Replica};
use crate::maintain::purge_target;
use crate::rooms::{Disk, DiskLevel};
use crate::transfers::furthest;

/// Other programs fill a disk faster than this node does.
const MEASURE_INTERVAL: Duration = Duration::from_millis(20);
const HAND_OVER_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two rounds of giving back: each rewrites something.
const RECLAIM_PAUSE: Duration = Duration::from_secs(3);
const RECLAIM_AFTER: Duration = Duration::from_millis(500);
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(30);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A member that was heard within this time gets what it lacks from the log.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Sleeps without keeping other tasks waiting: a worker of the runtime that only blocks takes along the task that it woke
/// last, which no other worker may have, and that may be the one that hears the leader.
pub(crate) fn pause_in_place(duration: Duration) {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(|| thread::sleep(duration)),
        _ => thread::sleep(duration),
    }
}

/// Measures the disk for as long as the replica lives, on a thread of its own: a disk that hangs holds up nobody.
///
/// # Errors
/// When there is no thread to be had.
pub(crate) fn watch(core: &Arc<Core>) -> Result<(), StoreError> {
    core.measure_disk();
    let weak: Weak<Core> = Arc::downgrade(core);
    let run = move || {
        while let Some(core) = weak.upgrade() {
            if core.is_stopping() {
                return;
            }
            core.measure_disk();
            drop(core);
            thread::sleep(MEASURE_INTERVAL);
        }
    };
    let started = thread::Builder::new().name("disk-room".into()).spawn(run);
    let failed = |source| StoreError::Io { action: "start a thread for", path: core.data_path(), source };
    started.map(drop).map_err(failed)
}

impl Core {
    fn measure_disk(&self) {
        // A disk that does not say how much is left is not taken for full.
        let Ok(left) = self.room.measure() else { return };
        let (before, now) = self.peers.rooms.measured(left, self.owed_bytes(), self.room.marks());
        let little = now.level != DiskLevel::Ample;
        self.set_frugal(little);
        if before.level == now.level {
            return;
        }
        let Disk { level, left, headroom, floor } = now;
        let what = match level {
            DiskLevel::Ample => "there is room on the disk again",
            DiskLevel::Low => "the disk is nearly full: nothing is taken that adds data; make room or grow it",
            DiskLevel::Full => "the disk is full: this node takes no entries; make room or grow it",
        };
        tracing::warn!(event = "disk.level", ?level, left, headroom, floor, "{what}");
    }
}

/// Housekeeping of the disk.
#[derive(Default)]
pub(crate) struct DiskKeeper {
    handing_over: Option<JoinHandle<()>>,
    handed_at: Option<Instant>,
    tried: usize,
    reclaiming: Option<JoinHandle<()>>,
    reclaimed_at: Option<Instant>,
    /// What was applied when the last round began that ended well.
    reclaimed_index: Arc<AtomicU64>,
    low_since: Option<Instant>,
}

fn busy(task: &Option<JoinHandle<()>>) -> bool {
    task.as_ref().is_some_and(|task| !task.is_finished())
}

fn paused(since: Option<Instant>, pause: Duration) -> bool {
    since.is_some_and(|since| since.elapsed() < pause)
}

impl DiskKeeper {
    /// Starts what is due, beside the rest of the housekeeping.
    pub(crate) fn tick(&mut self, replica: &Replica) {
        self.hand_over(replica);
        let level = replica.disk().level;
        let applied = replica.applied_index();
        if level == DiskLevel::Ample {
            self.reclaimed_index.store(0, Ordering::Release);
            self.low_since = None;
            return;
        }
        // Whoever fills the disk would take what is given back.
        if self.low_since.get_or_insert_with(Instant::now).elapsed() < RECLAIM_AFTER {
            return;
        }
        if busy(&self.reclaiming) || paused(self.reclaimed_at, RECLAIM_PAUSE) {
            return;
        }
        // Without new entries there is nothing new to give back, but for what another one still needed of the log.
        let had_all = self.reclaimed_index.load(Ordering::Acquire) == applied;
        if had_all && purgeable(replica).is_none() {
            return;
        }
        self.reclaimed_at = Some(Instant::now());
        let (replica, reclaimed_index) = (replica.clone(), self.reclaimed_index.clone());
        self.reclaiming = Some(tokio::spawn(async move {
            match reclaim(&replica).await {
                Ok(()) => reclaimed_index.store(applied, Ordering::Release),
                Err(error) => tracing::warn!(event = "disk.reclaim_failed", error, "trying again"),
            }
        }));
    }

    fn hand_over(&mut self, replica: &Replica) {
        let status = replica.status();
        let mut successors = replica.peers().rooms.successors(replica.node_id(), &status.voters, status.is_leader);
        if successors.is_empty() || busy(&self.handing_over) || paused(self.handed_at, HAND_OVER_PAUSE) {
            return;
        }
        // The furthest first; who does not take over is followed by the next.
        successors.sort_by_key(|id| std::cmp::Reverse(status.matched.get(id).copied()));
        let Some(to) = successors.get(self.tried % successors.len()).copied() else { return };
        self.tried += 1;
        self.handed_at = Some(Instant::now());
        tracing::info!(event = "disk.handing_over", to, "the disk is nearly full, and another voter has room");
        let replica = replica.clone();
        self.handing_over = Some(tokio::spawn(async move {
            if let Err(error) = replica.transfer_leader(to, HAND_OVER_PAUSE).await {
                tracing::warn!(event = "disk.handover_failed", to, %error, "trying again");
            }
        }));
    }
}

/// Up to where the log can go now that the disk is short; `None` = nothing of it.
fn purgeable(replica: &Replica) -> Option<u64> {
    let status = replica.status();
    let upto = purge_target(replica, status.applied_index, true)?;
    // Followers that are there are not sent a snapshot for what the log still has.
    let heard = |id: &u64| status.silence.get(id).is_some_and(|silence| *silence < SILENCE_MAX);
    let followers = status.matched.iter().filter(|(id, _)| heard(id)).map(|(_, matched)| *matched).min();
    let transfers = replica.peers().transfers.floor(&status.matched, status.applied_index, furthest(replica.log()));
    let kept = followers.unwrap_or(u64::MAX).min(transfers.unwrap_or(u64::MAX));
    Some(upto.min(kept)).filter(|upto| *upto > status.purged_index)
}

/// One round: records' old versions, then a checkpoint without them, then the log below that.
async fn reclaim(replica: &Replica) -> Result<(), String> {
    let state = replica.state().clone();
    let room = replica.room().clone();
    let floor = room.marks().floor;
    // What is rewritten now gives back more than it takes, in the end. The reserve opens a moment after it was asked.
    drop(room.give(2 * floor));
    sleep(RECLAIM_AFTER).await;
    let owing = replica.clone();
    let spare = move || {
        let kept = floor / 2 + owing.core.owed_bytes();
        room.give(2 * floor).map_or(0, |left| left.free.saturating_sub(kept))
    };
    let can = spare.clone();
    let rewritten = tokio::task::spawn_blocking(move || state.reclaim(can)).await;
    rewritten.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let before = replica.status();
    if before.is_leader && before.snapshot_index >= before.applied_index {
        // Consensus takes no second checkpoint at one index, and the first one still holds what was rewritten.
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        replica.propose_if_leader(Command::Expire, deadline).await.map_err(|error| error.to_string())?;
    }
    let target = replica.applied_index();
    if before.snapshot_index < target {
        replica.raft().trigger().snapshot().await.map_err(|error| error.to_string())?;
        let until = Instant::now() + CHECKPOINT_WITHIN;
        while replica.status().snapshot_index < target && Instant::now() < until && !replica.is_stopping() {
            sleep(Duration::from_millis(50)).await;
        }
    }
    if let Some(upto) = purgeable(replica) {
        replica.raft().trigger().purge_log(upto).await.map_err(|error| error.to_string())?;
        let until = Instant::now() + PROPOSE_TIMEOUT;
        while replica.status().purged_index < upto && Instant::now() < until {
            sleep(Duration::from_millis(20)).await;
        }
    }
    let log = replica.log().clone();
    let given = tokio::task::spawn_blocking(move || if spare() > 0 { log.reclaim() } else { Ok(()) }).await;
    given.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let status = replica.status();
    tracing::info!(
        event = "disk.reclaimed",
        left = replica.disk().left,
        purged = status.purged_index,
        applied = status.applied_index,
        "gave back what the log and old versions held"
    );
    // Whatever held it up may have gone in three seconds.
    match status.snapshot_index {
        index if index < target => Err(format!("there is no checkpoint of entry {target} yet, only of {index}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn who_waits_for_room_keeps_no_task_waiting() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let waits = async {
            let heard = Arc::new(AtomicBool::new(false));
            let told = heard.clone();
            // Woken last by this task, it is next on this worker.
            drop(tokio::spawn(async move { told.store(true, Ordering::Release) }));
            let begin = Instant::now();
            while !heard.load(Ordering::Acquire) && begin.elapsed() < Duration::from_secs(30) {
                pause_in_place(Duration::from_millis(1));
            }
            heard.load(Ordering::Acquire)
        };
        assert!(runtime.expect("runtime").block_on(async { tokio::spawn(waits).await }).expect("it ends"));
    }
}
