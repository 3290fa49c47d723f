//! From a directory to a log and a state that openraft may see.
//!
//! Invariants: log and state meet, or the log begins where the state ends; what is lost is said, and a node that lost
//! anything it may have acknowledged is recovering; a vote, once cast, is not forgotten with the log.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::id::GroupId;
use holdfast_model::state::Sys;
use holdfast_store::{DataDir, LogOptions, LogReport, LogStore, Recovering, Room, StateStore, StoreError, VoteRecord};
use holdfast_wire::internal::v1 as pb;

use crate::handle::{Hooks, Raft, StartError};
use crate::options::Options;
use crate::snapshot::Incoming;

/// For the core's first word of itself.
const FIRST_REPORT_WITHIN: Duration = Duration::from_secs(5);

/// The stores of a group, opened.
pub(crate) struct Opened {
    pub(crate) log: LogStore,
    pub(crate) state: StateStore,
    /// Why this node must not vote yet, and how far its log has to reach before it may.
    pub(crate) recovering: Option<Recovering>,
}

/// Opens log and state, sets aside what is of no use, and says so.
pub(crate) async fn open(
    data: &DataDir,
    options: &Options,
    room: &Arc<Room>,
    hooks: &Arc<Hooks>,
) -> Result<Opened, StartError> {
    let open_log = || {
        let hooks = hooks.clone();
        let log_options = LogOptions {
            floor_dir: options.floor_dir.clone(),
            cache_bytes_max: options.log_cache_bytes_max,
            segment_bytes: None,
            room: Some(room.clone()),
            on_fatal: Box::new(move |reason| (hooks.on_fatal)(reason)),
            on_waited: Arc::new(|cause| {
                tracing::warn!(
                    event = "log.waits_for_room",
                    cause,
                    "the disk is full; the log goes on once there is room"
                );
            }),
        };
        LogStore::open(data, options.group, log_options)
    };
    let (mut log, mut report) = open_log()?;
    let state = StateStore::open(data, options.group)?;
    let bound = data.identity().cluster_id.is_some();
    check_history(data, options, &log, state.view().sys())?;
    let before = data.recovering()?;
    let upto = before.as_ref().map_or(0, |before| before.upto);
    let mut reason = report.recovering.clone().or(before.map(|before| before.reason));
    if log.purged().map(|purged| purged.index) > state.applied().position.map(|applied| applied.index) {
        // The state was lost or set aside, and the log does not reach down to it: both come from a peer.
        let vote = log.vote();
        log.close();
        drop(log);
        let quarantined = Some(LogStore::set_aside(data)?);
        let reopened;
        (log, reopened) = open_log()?;
        report = LogReport { quarantined, floor: report.floor.max(reopened.floor), ..reopened };
        save_vote(&log, vote).await.map_err(|error| StartError::Raft(error.to_string()))?;
        reason = Some("the state ends before the log begins; both are taken from a peer".into());
    }
    // The entry that names the cluster is in the log before the directory is bound to it.
    if bound && log.last().is_none() && state.applied().position.is_none() {
        reason.get_or_insert_with(|| "the directory belongs to a cluster, and its log and state are gone".into());
    }
    let upto = upto.max(report.floor.map_or(0, |floor| floor.index));
    let recovering = reason.map(|reason| Recovering { reason, upto });
    if recovering.is_some() {
        data.set_recovering(recovering.as_ref())?;
    }
    if let Some(torn) = &report.torn {
        let (path, cut) = (torn.path.display(), torn.cut);
        tracing::warn!(event = "log.torn", %path, cut, "a crash tore the last write of the log; what no fsync covered is gone");
    }
    if let Some(path) = &report.quarantined {
        let path = path.display();
        tracing::warn!(event = "log.quarantined", %path, "what was damaged of the log is kept here; remove it once the node is well");
    }
    if let Some(path) = &report.floor_missing {
        let path = path.display();
        tracing::warn!(event = "log.floor_missing", %path, "there was no floor file; it was made from the log");
    }
    if let Some(path) = &report.floor_spoilt {
        let path = path.display();
        tracing::warn!(
            event = "log.floor_spoilt",
            %path,
            "one of its two slots is not whole: a crash tore it, or the disk damages what it holds; the other was used"
        );
    }
    Ok(Opened { log, state, recovering })
}

/// A directory serves one cluster: the one whose history it holds, or the one that its restore is to open.
fn check_history(data: &DataDir, options: &Options, log: &LogStore, sys: &Sys) -> Result<(), StoreError> {
    let bound = data.identity().cluster_id.is_some();
    let Some(history) = &sys.history else { return Ok(()) };
    match &options.opening {
        // Bound before anything runs: without its mark, the directory is then one of another cluster.
        Some(opening) if !bound => data.set_cluster(opening.cluster_id),
        Some(_) if !opens(options, sys) => Ok(()),
        Some(_) | None if bound => data.set_cluster(history.cluster_id),
        // Only a restore fills a state beside a log that never began: whoever sends a snapshot was voted for first.
        None if log.last().is_none() && log.purged().is_none() && log.vote().is_none() => Err(StoreError::Mismatch {
            what: format!(
                "{} holds a restored state, and the mark of its restore (RESTORE) is gone: served as it is, it would pass \
                 for the history that was lost",
                data.path().display()
            ),
            hint: "run `holdfast restore run` again, into empty directories",
        }),
        Some(_) | None => Ok(()),
    }
}

/// True once the history that this node is to serve is open in `sys`.
pub(crate) fn opens(options: &Options, sys: &Sys) -> bool {
    match (&sys.history, &options.opening) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(history), Some(opening)) => {
            history.incarnation == opening.incarnation
                || sys.ancestors.iter().any(|ancestor| ancestor.incarnation == opening.incarnation)
        }
    }
}

/// The start-up repair: log and state must meet before openraft sees them. An ordinary power cut can leave `applied`
/// beyond a log that lost its unsynced tail, and openraft refuses that with "inverted log order".
pub(crate) fn agree(log: &LogStore, state: &StateStore) -> Result<(), StoreError> {
    let Some(applied) = state.applied().position else { return Ok(()) };
    let in_log = if log.purged() == Some(applied) {
        true
    } else {
        match log.read(applied.index, applied.index + 1, usize::MAX) {
            Ok(entries) => entries.first().is_some_and(|entry| entry.position == applied),
            Err(error) => return Err(error),
        }
    };
    if !in_log {
        tracing::warn!(event = "log.reset", index = applied.index, "the log ends before the state; starting it there");
        log.reset_to(applied)?;
    }
    Ok(())
}

/// Saves a vote and waits for its fsync, unless the log holds a later one.
async fn save_vote(log: &LogStore, vote: Option<VoteRecord>) -> std::io::Result<()> {
    let Some(vote) = vote.filter(|vote| log.vote() < Some(*vote)) else { return Ok(()) };
    let (tx, rx) = tokio::sync::oneshot::channel();
    log.save_vote(
        vote,
        Box::new(move |result| {
            // The receiver waits right below.
            let _ = tx.send(result);
        }),
    );
    rx.await.map_err(|_| std::io::Error::other("the log's flush thread ended"))?
}

/// No term of this node may be older than what its state holds: a restored directory has entries of the old cluster's
/// terms and no vote yet, and a leader elected below them could append nothing. Node 0 is nobody's candidate.
pub(crate) async fn raise_vote(log: &LogStore, state: &StateStore) -> std::io::Result<()> {
    let Some(applied) = state.applied().position else { return Ok(()) };
    if log.vote().is_some_and(|vote| vote.term >= applied.term) {
        return Ok(());
    }
    save_vote(log, Some(VoteRecord { term: applied.term + 1, node: 0, committed: false })).await
}

/// Waits for the core's first word of itself: until then its figures are those of a node that has nothing, and whoever asked
/// this one would hear that its term fell.
pub(crate) async fn first_report(raft: &Raft, log: &LogStore) {
    let Some(known) = log.vote().map(|vote| vote.term) else { return };
    let wait = raft.wait(Some(FIRST_REPORT_WITHIN));
    if let Err(error) = wait.metrics(|metrics| metrics.current_term >= known, "a first report").await {
        // One that ended is found by the housekeeping, which ends the process.
        tracing::warn!(event = "raft.silent", %error, "the core has not said anything yet");
    }
}

/// Replaces the members in a restored state, durably, before its log begins.
pub(crate) fn adopt_members(state: &StateStore, members: pb::Membership) -> Result<(), StoreError> {
    let mut applied = state.applied();
    let log_id = applied.position.map(|at| pb::LogId { term: at.term, node: at.node, index: at.index });
    applied.membership = holdfast_wire::encode(&pb::StoredMembership { log_id, membership: Some(members) });
    let mut batch = state.begin();
    batch.set_applied(applied);
    state.commit(batch)?;
    state.flush()
}

/// Checkpoints of an earlier run are nobody's any more; half-received ones stay, to be resumed: of a reinstallation as
/// long as this node is to be reinstalled.
pub(crate) fn remove_leftovers(data: &DataDir, group: GroupId) -> Result<(), StoreError> {
    if data.diverged()?.is_none() {
        let repair = Incoming::repair(data.path(), group.0);
        repair.remove().map_err(|source| StoreError::Io { action: "clean", path: data.path().to_owned(), source })?;
    }
    let dir = data.path().join("snapshots");
    let removed = match std::fs::read_dir(&dir) {
        Ok(entries) => entries.flatten().try_for_each(|entry| std::fs::remove_dir_all(entry.path())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|source| StoreError::Io { action: "clean", path: dir, source })
}
