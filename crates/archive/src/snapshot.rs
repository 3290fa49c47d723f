//! Shipping a snapshot: a checkpoint is scanned in canonical order, cut into chunks, and its manifest is written last.
//!
//! Invariants:
//! - Position, chains, time and rows all come from inside the checkpoint.
//! - The manifest is written after every chunk that it names was seen at the destination: whole, if this call wrote it,
//!   and else with the length it names.
//! - The state is never in memory whole: a few chunks are under way at any time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_model::id::{GroupId, Millis};
use holdfast_model::state::Totals;
use holdfast_store::{LogPosition, open_checkpoint};
use tokio::sync::mpsc;

use crate::chunk::{self, Chunk, Chunker, PlainChunk, SealedChunk};
use crate::destination::{Destination, Put};
use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName, week_of};
use crate::lineage::OpenLineage;
use crate::manifest::{Manifest, ManifestChunk, Previous};
use crate::read_limit::ReadLimit;
use crate::sealing::Sealing;

/// Chunks between scan and upload, and uploads under way.
const QUEUED_MAX: usize = 2;
const UPLOADS_MAX: usize = 4;

/// What shipping a snapshot did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Index of the last entry in it.
    pub index: u64,
    /// Name of its manifest.
    pub object: String,
    /// Hash over all of it: equal on every replica.
    pub root: [u8; 32],
    /// Chunks that it names.
    pub chunks: u64,
    /// Plain bytes of all of them.
    pub bytes: u64,
    /// Bytes written by this call.
    pub new_bytes: u64,
    /// Somebody else had shipped the same snapshot.
    pub adopted: bool,
}

/// Called with plain bytes done and expected; the latter is an estimate.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// Chunks of the snapshot before, by generation and name.
type Known = BTreeMap<(u32, [u8; 32]), ManifestChunk>;

/// Facts of a checkpoint, from inside it.
#[derive(Debug, Clone)]
struct Head {
    applied: LogPosition,
    membership: Bytes,
    entry_chain: [u8; 32],
    effect_chain: [u8; 32],
    now: Millis,
    rules: u16,
    totals: Totals,
}

/// What the scan hands over, in order: first the head, then chunks.
enum Scanned {
    Head(Head),
    /// Not in the snapshot before this one.
    New(SealedChunk),
    /// In the snapshot before this one, so probably there.
    Known(PlainChunk, ManifestChunk),
}

/// Ships the state in `checkpoint` as the snapshot at its applied index, and reads it no faster than `limit`.
///
/// # Errors
/// `LineageFork` when another state lies under the name; `Corrupt` when a chunk there is damaged.
pub async fn ship_snapshot(
    lineage: &OpenLineage,
    group: GroupId,
    checkpoint: &Path,
    limit: ReadLimit,
    progress: Progress<'_>,
) -> Result<SnapshotReport, ArchiveError> {
    let previous = previous_of(lineage, group).await?;
    let lines = previous.iter().flat_map(|(manifest, _)| &manifest.chunks);
    let known: Known = lines.map(|line| ((line.generation, line.name), line.clone())).collect();
    let (sender, mut scanned) = mpsc::channel(QUEUED_MAX);
    let sealing = lineage.sealing().clone();
    let scan = Scan { checkpoint: checkpoint.to_owned(), lineage: *lineage.id(), sealing, known, limit };
    let scanning = tokio::task::spawn_blocking(move || scan.run(&sender));
    let shipped = ship_scanned(lineage, group, &mut scanned, previous, progress).await;
    // Ends the scan where it is, if shipping failed.
    drop(scanned);
    let scan_end = scanning.await.map_err(|_| ArchiveError::Stopped { what: "the scan of a checkpoint" })?;
    match (shipped, scan_end) {
        // A scan that failed explains why shipping had nothing more to do.
        (_, Err(error @ (ArchiveError::Store { .. } | ArchiveError::Refused { .. }))) => Err(error),
        (shipped, _) => shipped,
    }
}

/// The newest snapshot that can be read; a damaged one must not keep new ones from being shipped.
async fn previous_of(lineage: &OpenLineage, group: GroupId) -> Result<Option<(Manifest, [u8; 32])>, ArchiveError> {
    let Some(newest) = list_snapshots(lineage.destination(), lineage.id(), group).await?.pop() else {
        return Ok(None);
    };
    match read_manifest(lineage.destination(), lineage.id(), group, newest.index).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_integrity() => {
            tracing::error!(object = newest.object, %error, "the snapshot before this one is not usable");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn ship_scanned(
    lineage: &OpenLineage,
    group: GroupId,
    scanned: &mut mpsc::Receiver<Scanned>,
    previous: Option<(Manifest, [u8; 32])>,
    progress: Progress<'_>,
) -> Result<SnapshotReport, ArchiveError> {
    let Some(Scanned::Head(head)) = scanned.recv().await else {
        return Err(ArchiveError::Stopped { what: "the scan of a checkpoint" });
    };
    let previous = previous.filter(|(manifest, _)| manifest.applied.index < head.applied.index);
    let expected = previous.as_ref().map_or(head.totals.bytes, |(manifest, _)| manifest.plain_length());
    let chunks = futures::stream::poll_fn(|context| scanned.poll_recv(context));
    let mut uploads = chunks.map(|chunk| upload(lineage, chunk)).buffered(UPLOADS_MAX);
    let mut manifest = manifest_of(lineage, group, head, previous.as_ref());
    let (mut done, mut new_bytes) = (0, 0);
    while let Some((line, written)) = uploads.try_next().await? {
        done += line.plain_length;
        new_bytes += written;
        manifest.chunks.push(line);
        progress(done, expected.max(done));
    }
    drop(uploads);
    commit(lineage, manifest, new_bytes).await
}

/// Writes the manifest: from here on the snapshot exists.
async fn commit(lineage: &OpenLineage, manifest: Manifest, new_bytes: u64) -> Result<SnapshotReport, ArchiveError> {
    let object = manifest.name().path(lineage.id());
    let bytes = manifest.seal(lineage.sealing())?.bytes;
    let destination = lineage.destination();
    let (manifest, adopted) = match destination.put_checked(&object, &bytes).await? {
        Put::Created => (manifest, false),
        Put::Same => (manifest, true),
        Put::Lost(found) => (same_snapshot(lineage, &object, &manifest, &found)?, true),
    };
    Ok(SnapshotReport {
        index: manifest.applied.index,
        object,
        root: manifest.root(),
        chunks: manifest.chunks.len() as u64,
        bytes: manifest.plain_length(),
        new_bytes: if adopted { new_bytes } else { new_bytes + bytes.len() as u64 },
        adopted,
    })
}

fn same_snapshot(
    lineage: &OpenLineage,
    object: &str,
    ours: &Manifest,
    found: &Bytes,
) -> Result<Manifest, ArchiveError> {
    let keys = lineage.destination().keys();
    let (theirs, _) = Manifest::open(object, lineage.id(), keys, ours.group, ours.applied.index, found)?;
    if theirs.same_state(ours) {
        return Ok(theirs);
    }
    Err(ArchiveError::LineageFork {
        position: ours.applied,
        object: object.to_owned(),
        reason: "its root or chains are not those of the state here".into(),
    })
}

fn manifest_of(lineage: &OpenLineage, group: GroupId, head: Head, previous: Option<&(Manifest, [u8; 32])>) -> Manifest {
    Manifest {
        lineage: *lineage.id(),
        group,
        applied: head.applied,
        membership: head.membership,
        entry_chain: head.entry_chain,
        effect_chain: head.effect_chain,
        now: head.now,
        rules: head.rules,
        chunks: Vec::new(),
        users: head.totals.users,
        records: head.totals.records,
        payload_bytes: head.totals.bytes,
        previous: previous.map(|(manifest, seal)| Previous { index: manifest.applied.index, seal: *seal }),
    }
}

/// Brings one chunk there; gives its line and the bytes written.
async fn upload(lineage: &OpenLineage, scanned: Scanned) -> Result<(ManifestChunk, u64), ArchiveError> {
    let chunk = match scanned {
        Scanned::Head(_) => return Err(ArchiveError::refused("a scan with two heads")),
        Scanned::New(chunk) => chunk,
        Scanned::Known(plain, line) => {
            let object = line.object().path(lineage.id());
            match lineage.destination().length(&object).await? {
                Some(length) if length == line.stored_length => return Ok((line, 0)),
                Some(length) => {
                    let reason = format!("it has {length} bytes, not {}", line.stored_length);
                    return Err(ArchiveError::corrupt(&object, reason));
                }
                None => {
                    let (id, generation, sealing) = (*lineage.id(), line.generation, lineage.sealing().clone());
                    let packing = tokio::task::spawn_blocking(move || chunk::seal(&id, generation, &sealing, &plain));
                    packing.await.map_err(|_| ArchiveError::Stopped { what: "packing a chunk" })??
                }
            }
        }
    };
    upload_new(lineage, chunk).await
}

async fn upload_new(lineage: &OpenLineage, chunk: SealedChunk) -> Result<(ManifestChunk, u64), ArchiveError> {
    let SealedChunk { mut line, sealed } = chunk;
    let object = line.object().path(lineage.id());
    let destination = lineage.destination();
    match destination.put_checked(&object, &sealed.bytes).await? {
        Put::Created => {
            let written = line.stored_length;
            Ok((line, written))
        }
        Put::Same => Ok((line, 0)),
        Put::Lost(found) => {
            // The same rows, packed by another version of zstd.
            let theirs = Chunk::open(&object, lineage.id(), destination.keys(), &line.name, &found)?;
            line.stored_length = found.len() as u64;
            line.stored_seal = theirs.seal;
            Ok((line, 0))
        }
    }
}

/// The blocking half: reads the checkpoint and packs what is new.
struct Scan {
    checkpoint: PathBuf,
    lineage: LineageId,
    sealing: Sealing,
    known: Known,
    limit: ReadLimit,
}

impl Scan {
    fn run(self, out: &mpsc::Sender<Scanned>) -> Result<(), ArchiveError> {
        let store = open_checkpoint(&self.checkpoint).map_err(ArchiveError::store(&self.checkpoint))?;
        let (applied, sys) = (store.applied().clone(), store.sys());
        let position = applied.position.ok_or_else(|| ArchiveError::refused("a checkpoint before the first entry"))?;
        let generation = self.sealing.generation().unwrap_or_else(|| week_of(sys.now));
        let head = Head {
            applied: position,
            membership: applied.membership,
            entry_chain: applied.entry_chain,
            effect_chain: applied.effect_chain,
            now: sys.now,
            rules: sys.rules,
            totals: sys.totals,
        };
        send(out, Scanned::Head(head))?;
        let mut pace = self.limit.begin(Instant::now());
        let mut chunker = Chunker::default();
        let scanned = |plain: PlainChunk| {
            let name = self.sealing.chunk_name(blake3::hash(&plain.plain).as_bytes());
            match self.known.get(&(generation, name)) {
                Some(line) => Ok(Scanned::Known(plain, line.clone())),
                None => chunk::seal(&self.lineage, generation, &self.sealing, &plain).map(Scanned::New),
            }
        };
        for row in store.scan() {
            let row = row.map_err(ArchiveError::store(&self.checkpoint))?;
            if let Some(ended) = chunker.push(&row)? {
                let bytes = ended.plain.len() as u64;
                send(out, scanned(ended)?)?;
                std::thread::sleep(pace.passed(bytes, Instant::now()));
            }
        }
        match chunker.finish() {
            Some(last) => send(out, scanned(last)?),
            None => Ok(()),
        }
    }
}

fn send(out: &mpsc::Sender<Scanned>, scanned: Scanned) -> Result<(), ArchiveError> {
    out.blocking_send(scanned).map_err(|_| ArchiveError::Stopped { what: "shipping a snapshot" })
}

/// A snapshot in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSnapshot {
    /// Index of the last entry in it.
    pub index: u64,
    /// Name of its manifest.
    pub object: String,
}

/// Snapshots of a group, ascending.
///
/// # Errors
/// When the destination fails.
pub async fn list_snapshots(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
) -> Result<Vec<ListedSnapshot>, ArchiveError> {
    let listed = destination.list(&lineage.snapshot_prefix(group)).await?;
    let snapshots = listed.into_iter().filter_map(|found| match ObjectName::parse(&found.path) {
        Some((_, ObjectName::Manifest { index, .. })) => Some(ListedSnapshot { index, object: found.path }),
        _ => None,
    });
    Ok(snapshots.collect())
}

/// Reads and checks a manifest; gives its seal too.
///
/// # Errors
/// Names the object and what is wrong.
pub async fn read_manifest(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    index: u64,
) -> Result<(Manifest, [u8; 32]), ArchiveError> {
    let object = ObjectName::Manifest { group, index }.path(lineage);
    let bytes = destination.get(&object).await?;
    Manifest::open(&object, lineage, destination.keys(), group, index, &bytes)
}

/// Reads and checks a chunk that a manifest names.
///
/// # Errors
/// Names the object and what is wrong.
pub async fn read_chunk(
    destination: &Destination,
    lineage: &LineageId,
    line: &ManifestChunk,
) -> Result<Arc<Chunk>, ArchiveError> {
    let object = line.object().path(lineage);
    let bytes = destination.get(&object).await?;
    let (id, line, keys) = (*lineage, line.clone(), destination.shared_keys());
    let checking = tokio::task::spawn_blocking(move || {
        let chunk = Chunk::open(&object, &id, &keys, &line.name, &bytes)?;
        chunk.check_line(&object, &line)?;
        Ok(Arc::new(chunk))
    });
    checking.await.map_err(|_| ArchiveError::Stopped { what: "checking a chunk" })?
}

#[cfg(test)]
mod tests;
