//! Shipping a snapshot: a checkpoint is scanned in canonical order, cut into chunks, and its manifest is written last.
//!
//! The first snapshot of a generation is a base: all its chunks are shipped. A later one is a layer of patches over one
//! whose rows this node still knows ([`RowIndexes`]), or reads back because another node shipped it, as long as that is
//! worth it; and else a new base, of which chunks that are there already are not shipped again.
//!
//! Invariants:
//! - Position, chains, time and rows all come from inside the checkpoint.
//! - The manifest is written after every object that it names was seen at the destination: whole, if this call wrote it,
//!   and else with the length it names.
//! - Base and layers of a snapshot lie in one generation: it is locked, and deleted, as one.
//! - The state is never in memory whole: a few chunks are under way at any time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use holdfast_model::id::GroupId;
use tokio::sync::{mpsc, oneshot};

use self::scan::{Below, Checkpoint, Scan, Scanned};
use crate::attest::{Reading, Witness, voters};
use crate::chunk::{self, Chunk, SealedChunk};
use crate::compose::read_rows;
use crate::destination::{Destination, Put};
use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName, week_of};
use crate::lineage::OpenLineage;
use crate::manifest::{ChunkRows, LAYERS_MAX, Layer, Manifest, ManifestChunk, Previous};
use crate::read_limit::ReadLimit;
use crate::row_index::{RowIndexes, RowReader, RowWriter};

pub(crate) mod scan;

/// Chunks between scan and upload, and uploads under way.
const QUEUED_MAX: usize = 2;
const UPLOADS_MAX: usize = 4;
/// Layers over a base that together have more than this part of a snapshot's bytes are not worth what a restore pays for
/// them.
const LAYERS_PART: u64 = 4;

/// How a snapshot is taken.
#[derive(Debug, Clone, Default)]
pub struct SnapshotOptions {
    /// How fast the checkpoint is read.
    pub limit: ReadLimit,
    /// What is known of the rows of earlier snapshots; `None` = nothing, and nothing is kept of this one.
    pub indexes: Option<RowIndexes>,
}

/// What shipping a snapshot did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Index of the last entry in it.
    pub index: u64,
    /// Name of its manifest.
    pub object: String,
    /// Hash over all of it: equal on every replica.
    pub root: [u8; 32],
    /// Chunks that its rows make.
    pub chunks: u64,
    /// Plain bytes of all of them.
    pub bytes: u64,
    /// Bytes written by this call.
    pub new_bytes: u64,
    /// Layers over its base.
    pub layers: usize,
    /// Index of the snapshot whose rows its base is; its own, without layers.
    pub base_index: u64,
    /// Somebody else had shipped the same snapshot.
    pub adopted: bool,
    /// A majority of the voters found the same rows.
    pub is_attested: bool,
}

/// Called with plain bytes done and expected; the latter is an estimate.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// Chunks of the snapshot before, by generation and name.
type Known = BTreeMap<(u32, [u8; 32]), ManifestChunk>;

/// Asked, once all rows are there, who found the same in a checkpoint of its own; the manifest names them.
pub type Attesting<'a> = &'a (dyn Fn(Reading) -> BoxFuture<'a, Result<Vec<Witness>, ArchiveError>> + Send + Sync);

/// As [`ship_attested`], but nobody vouches for it.
///
/// # Errors
/// As [`ship_attested`].
pub async fn ship_snapshot(
    lineage: &OpenLineage,
    group: GroupId,
    checkpoint: &Path,
    options: &SnapshotOptions,
    progress: Progress<'_>,
) -> Result<SnapshotReport, ArchiveError> {
    let nobody = |_| std::future::ready(Ok(Vec::new())).boxed();
    ship_attested(lineage, group, checkpoint, options, &nobody, progress).await
}

/// Ships the state in `checkpoint` as the snapshot at its applied index.
///
/// # Errors
/// `LineageFork` when another state lies under the name; `Corrupt` when a chunk there is damaged; what `attesting` says.
pub async fn ship_attested<'a>(
    lineage: &'a OpenLineage,
    group: GroupId,
    checkpoint: &Path,
    options: &'a SnapshotOptions,
    attesting: Attesting<'a>,
    progress: Progress<'a>,
) -> Result<SnapshotReport, ArchiveError> {
    let path = checkpoint.to_owned();
    let checkpoint = Arc::new(blocking("opening a checkpoint", move || Checkpoint::open(&path)).await?);
    if checkpoint.lineage != *lineage.id() {
        return Err(ArchiveError::refused(format!(
            "a state of {} as a snapshot of {}",
            checkpoint.lineage,
            lineage.id()
        )));
    }
    let generation = lineage.sealing().generation().unwrap_or_else(|| week_of(checkpoint.now));
    let mut older = list_snapshots(lineage.destination(), lineage.id(), group).await?;
    older.retain(|found| found.index < checkpoint.applied.index);
    let previous = newest_readable(lineage, group, older.last()).await?;
    let mut shipping =
        Shipping { lineage, group, checkpoint, generation, previous, is_sound: true, options, attesting, progress };
    let parent = match shipping.parent(&older).await? {
        Some(known) => Some(known),
        None => shipping.read_back().await?,
    };
    if let Some((parent, rows)) = parent
        && let Some(report) = shipping.ship_layer(parent, rows).await?
    {
        return Ok(report);
    }
    shipping.ship_base().await
}

/// A damaged snapshot must not keep new ones from being shipped.
async fn newest_readable(
    lineage: &OpenLineage,
    group: GroupId,
    newest: Option<&ListedSnapshot>,
) -> Result<Option<(Manifest, [u8; 32])>, ArchiveError> {
    let Some(newest) = newest else { return Ok(None) };
    match read_manifest(lineage.destination(), lineage.id(), group, newest.index).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_integrity() => {
            tracing::error!(object = newest.object, %error, "the snapshot before this one is not usable");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ArchiveError::Stopped { what })?
}

/// Least of all, as `nice` counts.
const NICENESS: i32 = 19;

/// Runs work on a thread of its own that gets what processors have to spare: people are served meanwhile.
pub(crate) fn in_background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, ArchiveError> {
    let (sender, end) = oneshot::channel();
    let run = move || {
        // On Linux the niceness is a thread's. Where it cannot be had, the work is done all the same.
        let _ = rustix::process::nice(NICENESS);
        // Whoever waited may be gone.
        let _ = sender.send(work());
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    started.map(|_| end).map_err(|error| ArchiveError::refused(format!("no thread for a snapshot: {error}")))
}

/// One snapshot on its way to one destination.
struct Shipping<'a> {
    lineage: &'a OpenLineage,
    group: GroupId,
    checkpoint: Arc<Checkpoint>,
    generation: u32,
    /// The newest snapshot before this one, and the seal of its manifest.
    previous: Option<(Manifest, [u8; 32])>,
    /// Nothing is known to be wrong with its objects.
    is_sound: bool,
    options: &'a SnapshotOptions,
    attesting: Attesting<'a>,
    progress: Progress<'a>,
}

/// What became of something scanned.
enum Shipped {
    Chunk(ManifestChunk, u64),
    Patch(ManifestChunk, u64),
    Rows(ChunkRows),
    NoLayer(String),
}

/// What one pass brought there.
#[derive(Default)]
struct Pass {
    chunks: Vec<ManifestChunk>,
    patches: Vec<ManifestChunk>,
    composed: Vec<ChunkRows>,
    new_bytes: u64,
    /// Why it ended early.
    no_layer: Option<String>,
    index: Option<RowWriter>,
}

impl Shipping<'_> {
    /// The newest snapshot that a layer can lie over, with its rows: one of this generation, whose objects are all there.
    async fn parent(&self, older: &[ListedSnapshot]) -> Result<Option<(Manifest, RowReader)>, ArchiveError> {
        let Some(indexes) = &self.options.indexes else { return Ok(None) };
        for found in older.iter().rev().filter(|found| indexes.has(self.group, found.index)) {
            let manifest = match &self.previous {
                Some((newest, _)) if newest.applied.index == found.index => newest.clone(),
                _ => {
                    match read_manifest(self.lineage.destination(), self.lineage.id(), self.group, found.index).await {
                        Ok((manifest, _)) => manifest,
                        Err(error) if error.is_integrity() => continue,
                        Err(error) => return Err(error),
                    }
                }
            };
            if self.bears(&manifest)
                && let Some(rows) = self.known_rows(indexes, &manifest).await?
                && self.are_there(&manifest).await?
            {
                return Ok(Some((manifest, rows)));
            }
        }
        Ok(None)
    }

    /// A layer may lie over it.
    fn bears(&self, manifest: &Manifest) -> bool {
        manifest.layers.len() < LAYERS_MAX && manifest.objects().all(|(_, line)| line.generation == self.generation)
    }

    async fn known_rows(&self, indexes: &RowIndexes, of: &Manifest) -> Result<Option<RowReader>, ArchiveError> {
        let (indexes, id, group) = (indexes.clone(), *self.lineage.id(), self.group);
        let (index, root) = (of.applied.index, of.root());
        blocking("reading an index of rows", move || Ok(indexes.open(&id, group, index, &root))).await
    }

    /// The newest snapshot, of whose rows nothing is known here: they are read from the destination, and their index is kept.
    /// That costs about what a new base would, in the other direction, keeps nothing twice, and finds what is damaged.
    async fn read_back(&mut self) -> Result<Option<(Manifest, RowReader)>, ArchiveError> {
        let (Some(indexes), Some((manifest, _))) = (&self.options.indexes, &self.previous) else { return Ok(None) };
        if !self.bears(manifest) || !self.are_there(manifest).await? {
            return Ok(None);
        }
        let mut writer = match indexes.create(self.lineage.id(), self.group, manifest.applied.index) {
            Ok(writer) => writer,
            Err(error) => return Ok(scan::not_kept(&error)),
        };
        let mut rows = read_rows(self.lineage.destination(), manifest);
        let mut pace = self.options.limit.begin(Instant::now());
        loop {
            let chunk = match rows.try_next().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) if error.is_integrity() => {
                    tracing::error!(event = "backup.not_sound", %error, "the snapshot before this one: no layer over it");
                    self.is_sound = false;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            let bytes = chunk.plain_length();
            let add = move || Ok(writer.add(chunk.patch_rows()));
            writer = match blocking("writing an index of rows", add).await? {
                Ok(writer) => writer,
                Err(error) => return Ok(scan::not_kept(&error)),
            };
            tokio::time::sleep(pace.passed(bytes, Instant::now())).await;
        }
        let root = manifest.root();
        if let Err(error) = blocking("writing an index of rows", move || Ok(writer.finish(&root))).await? {
            return Ok(scan::not_kept(&error));
        }
        let rows = self.known_rows(indexes, manifest).await?;
        Ok(rows.map(|rows| (manifest.clone(), rows)))
    }

    async fn are_there(&self, manifest: &Manifest) -> Result<bool, ArchiveError> {
        let listed = self.lineage.destination().list(&self.lineage.id().generation_prefix(self.generation)).await?;
        let lengths: BTreeMap<&str, u64> = listed.iter().map(|found| (found.path.as_str(), found.bytes)).collect();
        let is_there = |(name, line): (ObjectName, &ManifestChunk)| {
            lengths.get(name.path(self.lineage.id()).as_str()) == Some(&line.stored_length)
        };
        Ok(manifest.objects().all(is_there))
    }

    /// Ships what changed; `None` = it is not worth it, or cannot be told.
    async fn ship_layer(&self, parent: Manifest, rows: RowReader) -> Result<Option<SnapshotReport>, ArchiveError> {
        let bytes_max = (parent.plain_length() / LAYERS_PART).saturating_sub(parent.patch_length());
        let pass = self.pass(Some(Below { rows, bytes_max })).await?;
        if let Some(reason) = pass.no_layer {
            let (index, below) = (self.checkpoint.applied.index, parent.applied.index);
            tracing::info!(event = "backup.new_base", index, below, reason, "no layer: all of it is shipped");
            return Ok(None);
        }
        let mut manifest = self.manifest();
        (manifest.chunks, manifest.base_index) = (parent.chunks, parent.base_index);
        manifest.layers = parent.layers;
        manifest.layers.push(Layer { index: manifest.applied.index, patches: pass.patches });
        manifest.composed = pass.composed;
        self.commit(manifest, pass.new_bytes, pass.index).await.map(Some)
    }

    async fn ship_base(&self) -> Result<SnapshotReport, ArchiveError> {
        let pass = self.pass(None).await?;
        let manifest = Manifest { chunks: pass.chunks, ..self.manifest() };
        self.commit(manifest, pass.new_bytes, pass.index).await
    }

    async fn pass(&self, below: Option<Below>) -> Result<Pass, ArchiveError> {
        // A layer takes over all chunks as they are. Where one object is damaged, each is compared by its bytes.
        let previous = self.previous.iter().filter(|_| self.is_sound && below.is_none());
        let lines = previous.flat_map(|(manifest, _)| &manifest.chunks);
        let known: Known = lines.map(|line| ((line.generation, line.name), line.clone())).collect();
        let (sender, mut scanned) = mpsc::channel(QUEUED_MAX);
        let scan = Scan {
            checkpoint: self.checkpoint.clone(),
            lineage: *self.lineage.id(),
            group: self.group,
            generation: self.generation,
            sealing: self.lineage.sealing().clone(),
            known,
            limit: self.options.limit,
            indexes: self.options.indexes.clone(),
        };
        let scanning = in_background("snapshot-scan", move || scan.run(below, &sender))?;
        let shipped = self.ship_scanned(&mut scanned).await;
        // Ends the scan where it is, if shipping failed.
        drop(scanned);
        let scan_end = scanning.await.map_err(|_| ArchiveError::Stopped { what: "the scan of a checkpoint" })?;
        match (shipped, scan_end) {
            // A scan that failed explains why shipping had nothing more to do.
            (_, Err(error @ (ArchiveError::Store { .. } | ArchiveError::Refused { .. }))) => Err(error),
            (Ok(pass), Ok(index)) => Ok(Pass { index, ..pass }),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }

    async fn ship_scanned(&self, scanned: &mut mpsc::Receiver<Scanned>) -> Result<Pass, ArchiveError> {
        let expected = self.previous.as_ref().map(|(manifest, _)| manifest.plain_length());
        let expected = expected.unwrap_or(self.checkpoint.totals.bytes);
        let parts = futures::stream::poll_fn(|context| scanned.poll_recv(context));
        let mut uploads = parts.map(|part| upload(self.lineage, part)).buffered(UPLOADS_MAX);
        let (mut pass, mut done) = (Pass::default(), 0);
        while let Some(shipped) = uploads.try_next().await? {
            match shipped {
                Shipped::Chunk(line, written) => {
                    done += line.plain_length;
                    pass.new_bytes += written;
                    pass.chunks.push(line);
                }
                Shipped::Patch(line, written) => {
                    pass.new_bytes += written;
                    pass.patches.push(line);
                }
                Shipped::Rows(rows) => {
                    done += rows.plain_length;
                    pass.composed.push(rows);
                }
                Shipped::NoLayer(reason) => pass.no_layer = Some(reason),
            }
            (self.progress)(done, expected.max(done));
        }
        // Sections end in turn; the manifest has one after the other.
        pass.chunks.sort_by(|a, b| a.place().cmp(&b.place()));
        pass.patches.sort_by(|a, b| a.place().cmp(&b.place()));
        pass.composed.sort_by(|a, b| a.place().cmp(&b.place()));
        Ok(pass)
    }

    /// What a manifest says besides where the rows lie.
    fn manifest(&self) -> Manifest {
        let head = &self.checkpoint;
        Manifest {
            lineage: *self.lineage.id(),
            group: self.group,
            applied: head.applied,
            membership: head.membership.clone(),
            entry_chain: head.entry_chain,
            effect_chain: head.effect_chain,
            now: head.now,
            rules: head.rules,
            chunks: Vec::new(),
            base_index: head.applied.index,
            layers: Vec::new(),
            composed: Vec::new(),
            users: head.totals.users,
            records: head.totals.records,
            payload_bytes: head.totals.bytes,
            previous: self
                .previous
                .as_ref()
                .map(|(manifest, seal)| Previous { index: manifest.applied.index, seal: *seal }),
            witnesses: Vec::new(),
        }
    }

    /// Writes the manifest: from here on the snapshot exists.
    async fn commit(
        &self,
        manifest: Manifest,
        new_bytes: u64,
        index: Option<RowWriter>,
    ) -> Result<SnapshotReport, ArchiveError> {
        let object = manifest.name().path(self.lineage.id());
        let reading = Reading { statement: manifest.statement(), voters: voters(&manifest.membership)? };
        let manifest = Manifest { witnesses: (self.attesting)(reading).await?, ..manifest };
        let bytes = manifest.seal(self.lineage.sealing())?.bytes;
        let (manifest, adopted) = match self.lineage.destination().put_checked(&object, &bytes).await? {
            Put::Created => (manifest, false),
            Put::Same => (manifest, true),
            Put::Lost(found) => (same_snapshot(self.lineage, &object, &manifest, &found)?, true),
        };
        let root = manifest.root();
        if let Some(index) = index {
            let finish = move || Ok(index.finish(&root));
            blocking("writing an index of rows", finish).await?.unwrap_or_else(|error| {
                scan::not_kept::<()>(&error);
            });
        }
        Ok(SnapshotReport {
            index: manifest.applied.index,
            object,
            root,
            chunks: manifest.chunk_count() as u64,
            bytes: manifest.plain_length(),
            new_bytes: if adopted { new_bytes } else { new_bytes + bytes.len() as u64 },
            layers: manifest.layers.len(),
            base_index: manifest.base_index,
            adopted,
            is_attested: manifest.is_attested(),
        })
    }
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

/// Brings one part there, with the bytes written.
async fn upload(lineage: &OpenLineage, scanned: Scanned) -> Result<Shipped, ArchiveError> {
    match scanned {
        Scanned::NoLayer(reason) => Ok(Shipped::NoLayer(reason)),
        Scanned::Rows(rows) => Ok(Shipped::Rows(rows)),
        Scanned::Patch(patch) => {
            let name = patch.line.patch_object();
            upload_new(lineage, name, patch).await.map(|(line, written)| Shipped::Patch(line, written))
        }
        Scanned::New(chunk) => upload_chunk(lineage, chunk).await,
        Scanned::Known(plain, line) => {
            let object = line.object().path(lineage.id());
            match lineage.destination().length(&object).await? {
                Some(length) if length == line.stored_length => Ok(Shipped::Chunk(line, 0)),
                Some(length) => {
                    let reason = format!("it has {length} bytes, not {}", line.stored_length);
                    Err(ArchiveError::corrupt(&object, reason))
                }
                None => {
                    let (id, generation, sealing) = (*lineage.id(), line.generation, lineage.sealing().clone());
                    let pack = move || chunk::seal(&id, generation, &sealing, &plain);
                    upload_chunk(lineage, blocking("packing a chunk", pack).await?).await
                }
            }
        }
    }
}

async fn upload_chunk(lineage: &OpenLineage, chunk: SealedChunk) -> Result<Shipped, ArchiveError> {
    let name = chunk.line.object();
    upload_new(lineage, name, chunk).await.map(|(line, written)| Shipped::Chunk(line, written))
}

async fn upload_new(
    lineage: &OpenLineage,
    name: ObjectName,
    chunk: SealedChunk,
) -> Result<(ManifestChunk, u64), ArchiveError> {
    let SealedChunk { mut line, sealed } = chunk;
    let object = name.path(lineage.id());
    match lineage.destination().put_checked(&object, &sealed.bytes).await? {
        Put::Created => {
            let written = line.stored_length;
            Ok((line, written))
        }
        Put::Same => Ok((line, 0)),
        Put::Lost(found) => {
            // The same rows, packed by another version of zstd.
            (_, line.stored_seal) = Chunk::open(&object, lineage.id(), lineage.destination().keys(), name, &found)?;
            line.stored_length = found.len() as u64;
            Ok((line, 0))
        }
    }
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

#[cfg(test)]
mod tests;
