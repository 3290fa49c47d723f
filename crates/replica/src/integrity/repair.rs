//! Reinstalling a damaged state from a peer, inside the running process.
//!
//! Order: the damaged state is set aside, a snapshot is fetched file by file, verified and read in whole; it is installed
//! once openraft has handed over everything that is in it; what was handed over beyond it is applied from this node's
//! own log; then the fence falls. openraft's own idea of what is applied stays right throughout.
//!
//! When nobody who answers is sound, a state that only its own node called damaged is read once more: read well in whole, it
//! was a false alarm. When all voters answer and all are damaged, a defect that they share is likelier than so much
//! damage, and the fence is lifted: they go on, and say so. While a voter is silent that may be sound, that takes longer.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use holdfast_store::{Applied, Room, StateStore, StoreError, StoredEntry, apply_entry, forget_aside, open_checkpoint};
use holdfast_wire::internal::v1 as pb;
use tokio::time::{Instant, sleep, timeout};

use crate::handle::Replica;
use crate::integrity::{Hope, Witness, ask_how, hope, lock};
use crate::rooms::DiskLevel;
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
/// For so long nobody who answers is sound before the fence is lifted: all voters answer, or some may come back sound.
const GONE_MAX: Duration = Duration::from_secs(10);
const FAINT_MAX: Duration = Duration::from_secs(5 * 60);
/// Between two readings of one's own state while nobody else has a sound one.
const REREAD_PAUSE: Duration = Duration::from_secs(30);
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

/// What became of a damaged state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cure {
    /// Another one took its place.
    Reinstalled,
    /// It is sound after all.
    FalseAlarm,
    /// None: it goes on as it is.
    None,
}

/// Goes on until the state is sound again, or no member's is.
pub(crate) async fn run(replica: &Replica) {
    set_aside(replica).await;
    repair_all(replica).await;
    // Half fetched, and of no use to the next repair: that one may be from another peer.
    let incoming = Incoming::repair(replica.data().path(), replica.group_id().0);
    if let Err(error) = blocking(move || incoming.remove()).await {
        tracing::warn!(event = "integrity.leftover", error, "what was fetched in part goes at the next start");
    }
}

async fn repair_all(replica: &Replica) {
    let mut hopeless: Option<Instant> = None;
    let mut reread: Option<Instant> = None;
    loop {
        if replica.is_stopping() {
            return;
        }
        match repair(replica).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(event = "integrity.not_reinstalled", error, "trying again"),
        }
        let answers: BTreeMap<u64, Option<bool>> = ask_how(replica).collect().await;
        let patience = match hope(replica.node_id(), &replica.status().voters, &answers) {
            Hope::Good => None,
            Hope::Faint => Some(FAINT_MAX),
            Hope::Gone => Some(GONE_MAX),
        };
        let is_alone = !answers.values().any(|damaged| *damaged == Some(false));
        if is_alone && reread.is_none_or(|at| at.elapsed() >= REREAD_PAUSE) && is_own_word_alone(replica) {
            match was_false_alarm(replica).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(event = "integrity.not_read", error, "it is read once more"),
            }
            reread = Some(Instant::now());
        }
        hopeless = patience.and(hopeless.or(Some(Instant::now())));
        if hopeless.zip(patience).is_some_and(|(since, patience)| since.elapsed() >= patience) {
            tracing::error!(event = "integrity.no_sound_peer", "no member's state is sound: the fence is lifted");
            match resume(replica, Cure::None).await {
                Ok(()) => return replica.update_elect(),
                Err(error) => tracing::error!(event = "integrity.not_resumed", error, "this state cannot go on"),
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// No other member, and no earlier run, called this state damaged.
fn is_own_word_alone(replica: &Replica) -> bool {
    lock(&replica.integrity().known).damage.as_ref().is_some_and(|(_, witness)| *witness == Witness::Itself)
}

/// Reads the state once more; read well in whole and brought up to its log, it goes on.
async fn was_false_alarm(replica: &Replica) -> Result<bool, String> {
    if !is_sound(replica).await? {
        return Ok(false);
    }
    resume(replica, Cure::FalseAlarm).await?;
    replica.update_elect();
    (replica.hooks().on_installed)();
    tracing::warn!(event = "integrity.false_alarm", "this node's state was read once more, in whole, and is sound");
    Ok(true)
}

/// Keeps the damaged state for a look, and notes that it must not be served after a restart either.
async fn set_aside(replica: &Replica) {
    let reason = replica.integrity().status().damage.unwrap_or_default();
    let (state, data) = (replica.state().clone(), replica.data_dir());
    let has_room = replica.disk().level == DiskLevel::Ample;
    let kept = blocking(move || {
        data.set_diverged(Some(&reason))?;
        // What it holds, the state that takes its place takes once more.
        has_room.then(|| state.keep_aside(&data)).transpose()
    });
    match kept.await {
        Ok(None) => tracing::warn!(event = "integrity.not_kept", "no room: the damaged state is not kept for a look"),
        Ok(Some(path)) => {
            let path = path.display();
            tracing::warn!(event = "integrity.quarantined", %path, "the damaged state is kept here, the newest one only");
        }
        Err(error) => tracing::warn!(event = "integrity.not_kept", error, "the damaged state is not kept for a look"),
    }
}

/// The disk is nearly full: what was kept for a look goes first.
pub(crate) async fn forget_kept(replica: &Replica) {
    let data = replica.data_dir();
    match blocking(move || forget_aside(&data)).await {
        Ok(true) => tracing::warn!(event = "integrity.kept_no_longer", "the damaged state in quarantine/ made room"),
        Ok(false) => {}
        Err(error) => tracing::warn!(event = "integrity.leftover", error, "delete what quarantine/ holds by hand"),
    }
}

async fn repair(replica: &Replica) -> Result<(), String> {
    let integrity = replica.integrity();
    // A state that the leader sent whole is as good as one that was fetched, once it was read.
    let from_leader = std::mem::take(&mut lock(&integrity.known).replaced_by_leader);
    let from = if from_leader && is_sound(replica).await? { None } else { Some(fetch(replica).await?) };
    resume(replica, Cure::Reinstalled).await?;
    replica.update_elect();
    (replica.hooks().on_installed)();
    let index = replica.state().applied().index();
    tracing::info!(event = "integrity.reinstalled", index, from, "this node's state is sound again");
    Ok(())
}

async fn is_sound(replica: &Replica) -> Result<bool, String> {
    let (state, pacer) = (replica.state().clone(), replica.integrity().exams.pacer().clone());
    let read = blocking(move || state.view().scrub_at(&mut pacer.pace(Arc::default()))).await?;
    Ok(read.ok_or("this node is stopping")?.is_clean())
}

/// Fetches and installs a state; gives the node that it is from.
async fn fetch(replica: &Replica) -> Result<u64, String> {
    let answers: BTreeMap<u64, Option<bool>> = ask_how(replica).collect().await;
    let leader = replica.leader_hint();
    let mut peers: Vec<Peer> = replica.peers().all();
    peers.retain(|(id, _)| answers.get(id) == Some(&Some(false)));
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
    let mut pace = replica.integrity().exams.pacer().pace(Arc::default());
    let read = blocking(move || {
        let checkpoint = open_checkpoint(&path)?;
        Ok::<_, StoreError>((checkpoint.applied().position, checkpoint.view().scrub_at(&mut pace)?))
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
    lock(&integrity.known).replaced(replica.state().installation());
    Ok(())
}

/// Applies what was handed over meanwhile, and lets the fence fall when nothing is left. Once cured, what was found of the
/// state is forgotten in the same moment: damage found later is new, and fences anew.
async fn resume(replica: &Replica, cure: Cure) -> Result<(), String> {
    let integrity = replica.integrity();
    loop {
        let _gate = integrity.gate.lock().await;
        let (from, to) = (replica.state().applied().index(), integrity.handed_over.load(Ordering::Acquire));
        if from < to {
            let (log, state, room) = (replica.log().clone(), replica.state().clone(), replica.room().clone());
            let barrier = blocking(move || {
                let entries = log.read(from + 1, to + 1, REPLAY_BYTES)?;
                replay(&state, &room, &entries)
            })
            .await?;
            if let Some(index) = barrier.filter(|_| cure != Cure::None) {
                // A backup of this node may wait for it.
                (replica.hooks().on_barrier)(index, replica.state());
            }
        }
        let applied = replica.state().applied().index();
        if applied <= from && from < to {
            return Err(format!("entry {} is not in this node's log any more", from + 1));
        }
        replica.note_applied(applied);
        if applied >= to {
            // What openraft has to offer was taken of the damaged state, and it takes having none for fatal.
            let (state, snapshots, room) = (replica.state().clone(), replica.snapshots_dir(), replica.room().clone());
            let current = blocking(move || room.retry(|| SnapshotDir::checkpoint(&state, &snapshots))).await?;
            *integrity.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
            if cure != Cure::None {
                // While the fence stands: a crash or a failure here repairs once more, and serves nothing.
                let data = replica.data_dir();
                blocking(move || data.set_diverged(None)).await?;
                let mut known = lock(&integrity.known);
                known.damage = None;
                known.doubt = None;
                known.reinstalls_total += u64::from(cure == Cure::Reinstalled);
            }
            integrity.fenced.store(false, Ordering::Release);
            return Ok(());
        }
    }
}

/// Applies entries, up to a snapshot barrier among them, and gives its index.
fn replay(state: &StateStore, room: &Room, entries: &[StoredEntry]) -> Result<Option<u64>, StoreError> {
    let mut batch = state.begin();
    let mut barrier = None;
    for entry in entries {
        if apply_entry(&mut batch, entry)?.barrier {
            barrier = Some(entry.position.index);
            break;
        }
    }
    state.commit_in(room, batch)?;
    Ok(barrier)
}
