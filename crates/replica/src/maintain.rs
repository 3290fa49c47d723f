//! Housekeeping of a replica: checkpoints, purging, expiry, opening a restored history, recovery, fatal errors.
//!
//! Invariant: the log is purged only up to `min(durable checkpoint, what every required destination holds unless that
//! risk is accepted (see `outbox`), what followers within keep_entries and keep_bytes need, what a follower needs that takes a snapshot)`; on a disk that is nearly full
//! those two count for nothing (see `disk_keeper`). Of a history that forked from its archive nothing is purged: the
//! log is what tells the two apart.

use std::time::Duration;

use holdfast_model::command::Command;
use holdfast_model::state::StateRead;
use holdfast_store::LogStore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::disk_keeper::DiskKeeper;
use crate::handle::Replica;
use crate::outbox::released;
use crate::transfers::furthest;

const TICK: Duration = Duration::from_millis(200);
/// Without a word from a leader for so long, a node asks whether it was taken out.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(1);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the task. It ends with the process: the replica lives as long.
pub(crate) fn start(replica: &Replica) {
    let replica = replica.clone();
    tokio::spawn(async move {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_help = Instant::now();
        let mut last_announce = Instant::now();
        let mut announcing = None;
        let mut disk = DiskKeeper::default();
        loop {
            tick.tick().await;
            if replica.is_stopping() {
                return;
            }
            if let Some(reason) = fatal(&replica).await {
                if replica.is_stopping() {
                    return;
                }
                (replica.hooks().on_fatal)(reason);
                return;
            }
            learn_cluster(&replica);
            if replica.is_recovering() {
                recover(&replica);
            }
            help(&replica, &mut last_help).await;
            announce(&replica, &mut announcing, &mut last_announce);
            open_history(&replica).await;
            set_policy(&replica).await;
            replica.measure_outbox();
            checkpoint_and_purge(&replica).await;
            disk.tick(&replica);
            expire(&replica).await;
        }
    });
}

/// Asks the core itself: one that panicked no longer updates its metrics.
async fn fatal(replica: &Replica) -> Option<String> {
    replica.raft().is_initialized().await.err().map(|error| error.to_string())
}

/// The cluster's id comes with the first entry of its history.
fn learn_cluster(replica: &Replica) {
    let status = replica.status();
    replica.peers().clocks.set_voters(&status.voters);
    let sys = replica.sys();
    let Some(history) = sys.history.as_ref().filter(|_| replica.is_opened(&sys)) else { return };
    if replica.cluster_id().is_none() {
        match replica.data().set_cluster(history.cluster_id) {
            Ok(()) => {
                tracing::info!(event = "cluster.joined", "this node belongs to the cluster now");
                replica.peers().set_cluster(history.cluster_id);
            }
            Err(error) if error.is_no_space() => tracing::warn!(event = "cluster.not_noted", %error, "trying again"),
            Err(error) => (replica.hooks().on_fatal)(error.to_string()),
        }
    }
    let contact = status.leader_contact_age.is_some_and(|age| age <= SILENCE_MAX);
    if contact || !status.members.is_empty() && !status.members.contains_key(&replica.node_id()) {
        replica.note_removed(!status.members.contains_key(&replica.node_id()));
    }
    replica.peers().update(status.members.iter().filter(|(id, _)| **id != replica.node_id()));
    replica.peers().retain(|id| status.members.contains_key(&id));
}

/// Recovered once the log reaches what was acknowledged before, and a leader filled it.
fn recover(replica: &Replica) {
    if replica.is_filled_up() {
        tracing::info!(event = "log.recovered", index = replica.status().last_log_index, "this node votes again");
        replica.end_recovery();
    }
}

/// As leader, fills up the logs of peers that lost something. A peer that had all entries before gets none until there
/// is a new one, so a quiet group is given one that changes nothing.
async fn help(replica: &Replica, last_help: &mut Instant) {
    let peers = replica.peers().recoveries.under_way();
    for node in &peers {
        expect_back(replica, *node).await;
    }
    if peers.is_empty() || last_help.elapsed() < Duration::from_millis(500) {
        return;
    }
    *last_help = Instant::now();
    let deadline = Instant::now() + PROPOSE_TIMEOUT;
    if let Err(error) = replica.propose_if_leader(Command::Expire, deadline).await {
        tracing::debug!(event = "recovery.wake_failed", %error, "trying again");
    }
}

/// A peer lost the end of its log: as leader, expect it to go back once.
async fn expect_back(replica: &Replica, node: u64) {
    // Also while its state is damaged: who is filled up may lead in its place.
    if !replica.raft().is_leader() {
        return;
    }
    match replica.raft().trigger().allow_next_revert(&node, true).await {
        Ok(Ok(())) => replica.peers().recoveries.expected(node),
        Ok(Err(error)) => {
            tracing::warn!(event = "log.revert_refused", node, %error, "cannot help a recovering peer");
        }
        // The core is gone; `fatal` sees that.
        Err(_) => {}
    }
}

/// Tells the leader of this node's new addresses or labels, now and then until they are known; without a leader, asks
/// whether the group has gone on without this node. Beside the rest of the
/// housekeeping: a peer that does not answer must not hold it up.
fn announce(replica: &Replica, running: &mut Option<JoinHandle<()>>, last_announce: &mut Instant) {
    let busy = running.as_ref().is_some_and(|running| !running.is_finished());
    if busy || last_announce.elapsed() < ANNOUNCE_PAUSE || !replica.is_opened(&replica.sys()) {
        return;
    }
    *last_announce = Instant::now();
    let replica = replica.clone();
    *running = Some(tokio::spawn(async move {
        let silent = replica.status().leader_contact_age.is_none_or(|age| age > SILENCE_MAX);
        if silent {
            replica.ask_if_removed().await;
        } else {
            replica.announce().await;
        }
    }));
}

/// Opens a restored history with its `Genesis`, as soon as this node leads.
async fn open_history(replica: &Replica) {
    let Some(genesis) = replica.options().opening.clone() else { return };
    if !replica.is_leader() || replica.is_opened(&replica.sys()) {
        return;
    }
    let deadline = Instant::now() + PROPOSE_TIMEOUT;
    match replica.propose_if_leader(Command::Genesis(genesis), deadline).await {
        Ok(Some(applied)) => {
            tracing::info!(event = "history.opened", index = applied.index, outcome = ?applied.outcome, "restored");
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(event = "history.open_failed", %error, "trying again"),
    }
}

/// What the leader's configuration says of lifetimes and quotas becomes the group's.
async fn set_policy(replica: &Replica) {
    let sys = replica.sys();
    let policy = replica.options().policy;
    if !replica.is_leader() || !replica.is_opened(&sys) || sys.policy == policy {
        return;
    }
    let deadline = Instant::now() + PROPOSE_TIMEOUT;
    match replica.propose_if_leader(Command::SetPolicy(policy), deadline).await {
        Ok(Some(_)) => {
            let before = sys.policy;
            tracing::warn!(
                event = "policy.set",
                ?before,
                ?policy,
                "lifetimes and quotas follow this leader's configuration"
            );
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(event = "policy.set_failed", %error, "trying again"),
    }
}

/// Of the applied log.
#[derive(Debug, Clone, Copy)]
struct Share {
    entries: u64,
    bytes: u64,
}

async fn checkpoint_and_purge(replica: &Replica) {
    // A damaged state is no ground to forget the log on, nor to be sent to anyone; nor is one in doubt: who lags must be
    // able to catch up by the log, and then tells who is right.
    if replica.integrity().withholds_state() {
        return;
    }
    let status = replica.status();
    let options = replica.options();
    let enough = Share { entries: options.snapshot_entries, bytes: options.snapshot_bytes };
    if is_checkpoint_due(replica.log(), status.snapshot_index, status.applied_index, enough)
        && let Err(error) = replica.raft().trigger().snapshot().await
    {
        tracing::warn!(event = "snapshot.failed", %error, "no checkpoint was taken");
    }
    let keep = Share { entries: options.keep_entries, bytes: options.keep_bytes };
    let window = window(replica.log(), status.applied_index, keep);
    let upto = purge_target(replica, window, false);
    let floor = replica.peers().transfers.floor(&status.matched, window, furthest(replica.log())).unwrap_or(u64::MAX);
    let upto = upto.map(|upto| upto.min(floor));
    if let Some(upto) = upto.filter(|upto| *upto > status.purged_index)
        && let Err(error) = replica.raft().trigger().purge_log(upto).await
    {
        tracing::warn!(event = "log.purge_failed", %error, "the log was not purged");
    }
}

/// Enough was applied since the last checkpoint: entries, or bytes of them.
fn is_checkpoint_due(log: &LogStore, snapshot: u64, applied: u64, enough: Share) -> bool {
    let entries = applied.saturating_sub(snapshot);
    let bytes = || log.bytes_after(snapshot).saturating_sub(log.bytes_after(applied));
    entries >= enough.entries || entries > 0 && bytes() >= enough.bytes
}

/// The applied entries above it are kept for followers.
fn window(log: &LogStore, applied: u64, keep: Share) -> u64 {
    let unapplied = log.bytes_after(applied);
    log.bounded(applied.saturating_sub(keep.entries), unapplied.saturating_add(keep.bytes)).min(applied)
}

/// Highest index that may be purged, if what is applied above `window` is kept. `frugal` = the disk is nearly full.
pub(crate) fn purge_target(replica: &Replica, window: u64, frugal: bool) -> Option<u64> {
    let sys = replica.sys();
    if sys.lineage_fork.is_some() {
        return None;
    }
    let status = replica.status();
    let offsite = released(&replica.options().outbox, &sys, replica.log(), frugal);
    let offsite = replica.core.log_holds.lowest().filter(|_| !frugal).map_or(offsite, |held| offsite.min(held));
    lowest(status.snapshot_index, window, offsite)
}

fn lowest(snapshot: u64, window: u64, offsite: u64) -> Option<u64> {
    let target = snapshot.min(window).min(offsite);
    (target > 0).then_some(target)
}

async fn expire(replica: &Replica) {
    if !replica.is_leader() {
        return;
    }
    // One sweep takes a bounded number of items; sweeps follow each other for as long as there is something to do, and
    // leave time for the rest of the housekeeping.
    let until = Instant::now() + TICK;
    // The rules refuse it in a history that forked from its archive.
    while Instant::now() < until && replica.sys().lineage_fork.is_none() {
        let state = replica.state().clone();
        // Without a quorum of clocks nobody can say what is due.
        let Some(now) = replica.group_time() else { return };
        let due = tokio::task::spawn_blocking(move || state.begin().due(now, 1).map(|due| !due.is_empty())).await;
        if !matches!(due, Ok(Ok(true))) {
            return;
        }
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        match replica.propose_if_leader(Command::Expire, deadline).await {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(event = "expire.failed", %error, "trying again");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::id::GroupId;
    use holdfast_store::{DataDir, LogOptions, LogPosition, StoredEntry};
    use holdfast_wire::internal::v1 as pb;
    use holdfast_wire::log::{Entry, EntryPayload, encode_entry};

    use super::*;

    #[test]
    fn bytes_bound_what_entries_do_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = DataDir::open_or_create(dir.path(), 1, [1; 16]).expect("directory");
        let (log, _) = LogStore::open(&data, GroupId(0), LogOptions::default()).expect("opens");
        let entries = (0..100u64).map(|index| {
            let payload = EntryPayload::Proposal(vec![7; 100 << 10].into());
            let bytes = encode_entry(&Entry { id: pb::LogId { term: 1, node: 1, index }, payload });
            StoredEntry { position: LogPosition { term: 1, node: 1, index }, bytes }
        });
        log.append(entries.collect(), Box::new(|result| result.expect("appended"))).expect("appends");
        log.wait_durable(99);
        // 50 entries are not applied yet; those before are 5 MiB.
        let share = |entries, bytes: u64| Share { entries, bytes: bytes << 10 };
        assert_eq!(window(&log, 50, share(20, 1 << 20)), 30, "as many entries as are asked for");
        let by_bytes = window(&log, 50, share(40, 1 << 10));
        assert!((37..=45).contains(&by_bytes), "about ten of 100 KiB, and no fewer than that by much: {by_bytes}");
        assert_eq!(window(&log, 50, share(40, 0)), 50, "none");
        assert_eq!(window(&log, 50, share(200, 1 << 20)), 0, "all of them");
        let due = |snapshot, applied, enough| is_checkpoint_due(&log, snapshot, applied, enough);
        assert!(due(30, 50, share(20, 1 << 20)) && !due(31, 50, share(20, 1 << 20)));
        assert!(due(30, 50, share(1000, 1 << 10)) && !due(30, 50, share(1000, 4 << 10)));
        assert!(!due(50, 50, share(1000, 0)), "what is not applied needs no checkpoint");
        log.close();
    }

    #[test]
    fn the_log_is_kept_for_checkpoint_followers_and_destinations() {
        assert_eq!(lowest(100, 140, u64::MAX), Some(100), "not beyond the checkpoint");
        assert_eq!(lowest(100, 95, u64::MAX), Some(95), "not what followers need");
        assert_eq!(lowest(100, 140, 40), Some(40), "not what is not offsite");
        assert_eq!(lowest(100, 140, 0), None, "nothing is offsite yet");
    }
}
