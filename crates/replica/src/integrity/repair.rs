//! Reinstalling a damaged state from a peer, inside the running process.
//!
//! Order: the damaged state is set aside, a snapshot is fetched file by file, verified and read in whole; it is installed
//! once openraft has handed over everything that is in it; what was handed over beyond it is applied from this node's
//! own log; then the fence falls. openraft's own idea of what is applied stays right throughout.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_store::{Applied, Room, StoredEntry, apply_entry, open_checkpoint};
use holdfast_wire::internal::v1 as pb;
use tokio::time::{Instant, sleep, timeout};

use crate::handle::Replica;
use crate::integrity::{ask_how, lock, nobody_is_sound};
use crate::snapshot::{Incoming, SnapshotDir};
use crate::transport::service::write_chunk;
use crate::types::{log_id_from, position_of};

/// For a peer to flush its state and hash the snapshot's files.
const OFFER_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two pieces of a file.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// For openraft to hand over what the snapshot holds.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Tries in a row in which nobody who answered was sound, before the fence is lifted: a sound member may only be slow.
const HOPELESS_TRIES: u32 = 10;
/// Bytes of entries in one write batch.
const REPLAY_BYTES: usize = 4 << 20;

type Peer = (u64, crate::transport::client::Peer);

async fn blocking<T: Send + 'static, E: ToString + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Goes on until the state is sound again, or no member's is.
pub(crate) async fn run(replica: &Replica) {
    set_aside(replica).await;
    let mut hopeless = 0;
    loop {
        if replica.is_stopping() {
            return;
        }
        match repair(replica).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(event = "integrity.not_reinstalled", error, "trying again"),
        }
        hopeless = if nobody_is_sound(replica).await { hopeless + 1 } else { 0 };
        if hopeless >= HOPELESS_TRIES {
            tracing::error!(event = "integrity.no_sound_peer", "no member's state is sound: the fence is lifted");
            match resume(replica, false).await {
                Ok(()) => return replica.update_elect(),
                Err(error) => tracing::error!(event = "integrity.not_resumed", error, "this state cannot go on"),
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Keeps the damaged state for a look, and notes that it must not be served after a restart either.
async fn set_aside(replica: &Replica) {
    let reason = replica.integrity().status().damage.unwrap_or_default();
    let (state, data) = (replica.state().clone(), replica.data_dir());
    let kept = blocking(move || {
        data.set_diverged(Some(&reason))?;
        state.keep_aside(&data)
    });
    match kept.await {
        Ok(path) => {
            let path = path.display();
            tracing::warn!(event = "integrity.quarantined", %path, "the damaged state is kept here, the newest one only");
        }
        Err(error) => tracing::warn!(event = "integrity.not_kept", error, "the damaged state is not kept for a look"),
    }
}

async fn repair(replica: &Replica) -> Result<(), String> {
    let integrity = replica.integrity();
    // A state that the leader sent whole is as good as one that was fetched, once it was read.
    let from_leader = std::mem::take(&mut lock(&integrity.known).replaced_by_leader);
    let from = if from_leader && is_sound(replica).await? { None } else { Some(fetch(replica).await?) };
    resume(replica, true).await?;
    replica.update_elect();
    (replica.hooks().on_installed)();
    let index = replica.state().applied().index();
    tracing::info!(event = "integrity.reinstalled", index, from, "this node's state is sound again");
    Ok(())
}

async fn is_sound(replica: &Replica) -> Result<bool, String> {
    let state = replica.state().clone();
    Ok(blocking(move || state.view().scrub()).await?.is_clean())
}

/// Fetches and installs a state; gives the node that it is from.
async fn fetch(replica: &Replica) -> Result<u64, String> {
    let damaged: Vec<u64> =
        ask_how(replica).await.into_iter().filter(|(_, damaged)| *damaged != Some(false)).map(|(id, _)| id).collect();
    let leader = replica.leader_hint();
    let mut peers: Vec<Peer> = replica.peers().all();
    peers.retain(|(id, _)| !damaged.contains(id));
    // The leader has enough to do.
    peers.sort_by_key(|(id, _)| Some(*id) == leader);
    let mut failed = Vec::new();
    for (id, client) in peers {
        match fetch_from(replica, client).await {
            Ok(()) => return Ok(id),
            Err(error) => failed.push(format!("node {id}: {error}")),
        }
    }
    Err(if failed.is_empty() { "no member with a sound state answers".into() } else { failed.join("; ") })
}

async fn fetch_from(replica: &Replica, mut client: crate::transport::client::Peer) -> Result<(), String> {
    let group_id = replica.group_id().0;
    let index_min = replica.log().purged().map_or(0, |purged| purged.index);
    let offer = timeout(OFFER_TIMEOUT, client.offer_state(pb::OfferStateRequest { group_id, index_min })).await;
    let offer = offer.map_err(|_| "no offer in time")?.map_err(|status| status.message().to_owned())?.into_inner();
    let last_log_id = offer.last_log_id.ok_or("the offer says no index")?;
    let incoming = Incoming::repair(replica.data().path(), group_id);
    let files = offer.files.clone();
    let needed = {
        let (incoming, files) = (incoming.clone(), files.clone());
        blocking(move || incoming.prepare(&files)).await?
    };
    for name in needed {
        let request = pb::FetchStateRequest { group_id, last_log_id: Some(last_log_id), name };
        let stream = timeout(CHUNK_TIMEOUT, client.fetch_state(request)).await.map_err(|_| "no file in time")?;
        let mut stream = stream.map_err(|status| status.message().to_owned())?.into_inner();
        let mut open = None;
        while let Some(chunk) = timeout(CHUNK_TIMEOUT, stream.message())
            .await
            .map_err(|_| "the file stopped")?
            .map_err(|status| status.message().to_owned())?
        {
            let (incoming, current) = (incoming.clone(), open.take());
            open = Some(blocking(move || write_chunk(&incoming, current, &chunk)).await?);
        }
    }
    let snapshots = replica.snapshots_dir();
    let path = blocking(move || incoming.seal(&files, &snapshots)).await?;
    let position = position_of(&log_id_from(&last_log_id));
    // Removed again when this is dropped.
    let dir = SnapshotDir::received(path, Applied { position: Some(position), ..Applied::default() });
    let path = dir.path().to_owned();
    let rate = replica.options().integrity.scrub_bytes_per_second;
    let stopped = replica.integrity().exams.stopped();
    let read = blocking(move || {
        let checkpoint = open_checkpoint(&path)?;
        let mut pace = crate::integrity::examine::pace(rate, stopped);
        Ok::<_, holdfast_store::StoreError>((checkpoint.applied().position, checkpoint.view().scrub_at(&mut pace)?))
    });
    let (applied, report) = read.await?;
    if applied != Some(position) {
        return Err("the snapshot is not at the index that was offered".into());
    }
    if let Some(fault) = report.ok_or("this node is stopping")?.faults.first() {
        return Err(format!("the snapshot is no better: {}", fault.what));
    }
    install(replica, &dir).await
}

async fn install(replica: &Replica, dir: &SnapshotDir) -> Result<(), String> {
    let integrity = replica.integrity();
    let index = dir.applied().index();
    let end = Instant::now() + HAND_OVER_TIMEOUT;
    while integrity.handed_over.load(Ordering::Acquire) < index {
        if Instant::now() >= end || replica.is_stopping() {
            return Err(format!("this node did not hear of entry {index} in time"));
        }
        sleep(Duration::from_millis(20)).await;
    }
    let _gate = integrity.gate.lock().await;
    // What happened since the offer: an older state must not take the place of a newer one that nothing leads up to.
    if lock(&integrity.known).replaced_by_leader {
        return Err("the leader sent a whole state meanwhile".into());
    }
    if replica.log().purged().is_some_and(|purged| purged.index > index) {
        return Err(format!("this node's log does not reach down to entry {index} any more"));
    }
    integrity.exams.clear();
    let (state, path) = (replica.state().clone(), dir.path().to_owned());
    blocking(move || state.install(&path)).await?;
    lock(&integrity.known).replaced_at = index;
    Ok(())
}

/// Applies what was handed over meanwhile, and lets the fence fall when nothing is left. `healed`: the state was replaced,
/// so what was found of it is forgotten in the same moment: damage found later is new, and fences anew.
async fn resume(replica: &Replica, healed: bool) -> Result<(), String> {
    let integrity = replica.integrity();
    loop {
        let _gate = integrity.gate.lock().await;
        let (from, to) = (replica.state().applied().index(), integrity.handed_over.load(Ordering::Acquire));
        if from < to {
            let (log, state, room) = (replica.log().clone(), replica.state().clone(), replica.room().clone());
            blocking(move || {
                let entries = log.read(from + 1, to + 1, REPLAY_BYTES)?;
                replay(&state, &room, &entries)
            })
            .await?;
        }
        let applied = replica.state().applied().index();
        if applied <= from && from < to {
            return Err(format!("entry {} is not in this node's log any more", from + 1));
        }
        replica.note_applied(applied);
        if applied >= to {
            // What openraft has to offer was taken of the damaged state, and it takes having none for fatal.
            let (state, snapshots) = (replica.state().clone(), replica.snapshots_dir());
            let current = blocking(move || SnapshotDir::checkpoint(&state, &snapshots)).await?;
            *integrity.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
            if healed {
                // While the fence stands: a crash or a failure here repairs once more, and serves nothing.
                let data = replica.data_dir();
                blocking(move || data.set_diverged(None)).await?;
                let mut known = lock(&integrity.known);
                known.damage = None;
                known.doubt = None;
                known.reinstalls_total += 1;
            }
            integrity.fenced.store(false, Ordering::Release);
            return Ok(());
        }
    }
}

fn replay(
    state: &holdfast_store::StateStore,
    room: &Room,
    entries: &[StoredEntry],
) -> Result<(), holdfast_store::StoreError> {
    let mut batch = state.begin();
    for entry in entries {
        apply_entry(&mut batch, entry)?;
    }
    state.commit_in(room, batch)
}
