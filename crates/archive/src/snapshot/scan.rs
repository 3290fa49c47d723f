//! The blocking half of shipping a snapshot: reads the checkpoint, cuts it, and packs what is to be shipped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use holdfast_model::id::{GroupId, Millis};
use holdfast_model::state::Totals;
use holdfast_store::{CheckpointStore, LogPosition, RawRow, open_checkpoint};
use tokio::sync::mpsc;

use super::Known;
use crate::attest::Statement;
use crate::chunk::{self, Chunkers, PlainChunk, SealedChunk};
use crate::error::ArchiveError;
use crate::layout::LineageId;
use crate::manifest::{ChunkRows, ManifestChunk};
use crate::patch::{self, Patcher};
use crate::payloads::{self, Section};
use crate::read_limit::ReadLimit;
use crate::row_index::{Print, Printed, RowIndexes, RowReader, RowWriter, print};
use crate::sealing::Sealing;

/// A checkpoint that is open, and its facts, from inside it.
pub(crate) struct Checkpoint {
    store: CheckpointStore,
    path: PathBuf,
    /// History, as it says itself.
    pub(super) lineage: LineageId,
    pub(super) applied: LogPosition,
    pub(crate) membership: Bytes,
    pub(super) entry_chain: [u8; 32],
    pub(super) effect_chain: [u8; 32],
    pub(super) now: Millis,
    pub(super) rules: u16,
    pub(super) totals: Totals,
}

impl Checkpoint {
    pub(crate) fn open(path: &Path) -> Result<Self, ArchiveError> {
        let store = open_checkpoint(path).map_err(ArchiveError::store(path))?;
        let (applied, sys) = (store.applied().clone(), store.sys().clone());
        if sys.restoring.is_some() {
            let reason =
                "payloads are still being restored: a snapshot without them would be no copy; wait for their end";
            return Err(ArchiveError::refused(reason));
        }
        let position = applied.position.ok_or_else(|| ArchiveError::refused("a checkpoint before the first entry"))?;
        let history =
            sys.history.as_ref().ok_or_else(|| ArchiveError::refused("a checkpoint before the first history"))?;
        let lineage = LineageId { cluster_id: history.cluster_id, incarnation: history.incarnation };
        Ok(Self {
            store,
            path: path.to_owned(),
            lineage,
            applied: position,
            membership: applied.membership,
            entry_chain: applied.entry_chain,
            effect_chain: applied.effect_chain,
            now: sys.now,
            rules: sys.rules,
            totals: sys.totals,
        })
    }
}

impl Checkpoint {
    /// Its rows in canonical order, and the payloads that lie apart from them.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Result<(RawRow, Option<RawRow>), ArchiveError>> {
        self.store.scan().map(|row| {
            let row = row.map_err(ArchiveError::store(&self.path))?;
            payloads::split(row).map_err(|error| ArchiveError::refused(format!("a record of the checkpoint: {error}")))
        })
    }

    /// What there is to say of its rows, whose root is `root`.
    pub(crate) fn statement(&self, group: GroupId, root: [u8; 32]) -> Statement {
        Statement {
            lineage: self.lineage,
            group,
            applied: self.applied,
            entry_chain: self.entry_chain,
            effect_chain: self.effect_chain,
            root,
        }
    }
}

/// What the scan hands over, in canonical order within each section.
pub(super) enum Scanned {
    /// A chunk of a base that is not in the snapshot before this one.
    New(SealedChunk),
    /// One that is, so probably there.
    Known(PlainChunk, ManifestChunk),
    /// Rows of the snapshot, as they make a chunk; where they lie is told by patches.
    Rows(ChunkRows),
    /// Rows that changed.
    Patch(SealedChunk),
    /// A layer is not worth it, or not possible, for this reason.
    NoLayer(String),
}

/// What a layer lies over.
pub(super) struct Below {
    pub(super) rows: RowReader,
    /// More plain bytes than these are too many.
    pub(super) bytes_max: u64,
}

/// One pass over a checkpoint.
pub(super) struct Scan {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) lineage: LineageId,
    pub(super) group: GroupId,
    pub(super) generation: u32,
    pub(super) sealing: Sealing,
    pub(super) known: Known,
    pub(super) limit: ReadLimit,
    pub(super) indexes: Option<RowIndexes>,
}

impl Scan {
    /// Hands over every chunk, of a base, or what changed since `below`; gives the index of the rows, to be finished.
    pub(super) fn run(
        self,
        below: Option<Below>,
        out: &mpsc::Sender<Scanned>,
    ) -> Result<Option<RowWriter>, ArchiveError> {
        let mut index = Index::new(&self);
        let mut pace = self.limit.begin(Instant::now());
        let mut chunkers = Chunkers::default();
        let mut layer = match below.map(Changes::new).transpose() {
            Ok(layer) => layer,
            Err(error) => return self.no_layer(out, &error),
        };
        for row in self.checkpoint.rows() {
            let (row, payload) = row?;
            let row_print = if index.is_on() || layer.is_some() { print(&row.value) } else { Print::default() };
            index.push(&row, payload.is_some(), &row_print);
            if let Some(layer) = &mut layer {
                match layer.push(&row, payload.as_ref(), &row_print) {
                    Ok(full) => full.into_iter().try_for_each(|patch| send(out, self.patch(&patch)?))?,
                    Err(error) => return self.no_layer(out, &error),
                }
            }
            for part in std::iter::once(&row).chain(&payload) {
                if let Some(ended) = chunkers.push(part)? {
                    let bytes = ended.plain.len() as u64;
                    send(out, self.ended(ended, layer.is_some())?)?;
                    std::thread::sleep(pace.passed(bytes, Instant::now()));
                }
            }
        }
        for last in chunkers.finish() {
            send(out, self.ended(last, layer.is_some())?)?;
        }
        if let Some(layer) = layer {
            match layer.finish() {
                Ok(rest) => rest.iter().try_for_each(|patch| send(out, self.patch(patch)?))?,
                Err(error) => return self.no_layer(out, &error),
            }
        }
        Ok(index.0)
    }

    fn no_layer(&self, out: &mpsc::Sender<Scanned>, reason: &str) -> Result<Option<RowWriter>, ArchiveError> {
        send(out, Scanned::NoLayer(reason.to_owned()))?;
        Ok(None)
    }

    fn ended(&self, plain: PlainChunk, is_layer: bool) -> Result<Scanned, ArchiveError> {
        if is_layer {
            return Ok(Scanned::Rows(plain.chunk_rows()));
        }
        let name = self.sealing.chunk_name(blake3::hash(&plain.plain).as_bytes());
        match self.known.get(&(self.generation, name)) {
            Some(line) => Ok(Scanned::Known(plain, line.clone())),
            None => chunk::seal(&self.lineage, self.generation, &self.sealing, &plain).map(Scanned::New),
        }
    }

    fn patch(&self, patch: &PlainChunk) -> Result<Scanned, ArchiveError> {
        patch::seal(&self.lineage, self.generation, &self.sealing, patch).map(Scanned::Patch)
    }
}

fn send(out: &mpsc::Sender<Scanned>, scanned: Scanned) -> Result<(), ArchiveError> {
    out.blocking_send(scanned).map_err(|_| ArchiveError::Stopped { what: "shipping a snapshot" })
}

/// The index of the rows, as long as it can be written.
struct Index(Option<RowWriter>);

impl Index {
    fn new(scan: &Scan) -> Self {
        let indexes = scan.indexes.as_ref();
        let index = scan.checkpoint.applied.index;
        let created = indexes.map(|indexes| indexes.create(&scan.lineage, scan.group, index));
        Self(created.transpose().unwrap_or_else(|error| not_kept(&error)))
    }

    fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn push(&mut self, row: &RawRow, apart: bool, print: &Print) {
        if let Some(Err(error)) = self.0.as_mut().map(|writer| writer.push(row.family, apart, &row.key, print)) {
            self.0 = not_kept(&error);
        }
    }
}

/// It makes the next snapshot cheaper, and is missed by nobody.
pub(super) fn not_kept<T>(error: &std::io::Error) -> Option<T> {
    tracing::warn!(event = "backup.row_index", %error, "not kept: the next snapshot is shipped anew");
    None
}

/// What changed from the rows below to those of the scan.
struct Changes {
    below: Below,
    /// The next row below.
    next: Option<Printed>,
    patchers: [Patcher; Section::COUNT],
    bytes: u64,
}

impl Changes {
    fn new(mut below: Below) -> Result<Self, String> {
        let next = below.rows.next().map_err(|error| error.to_string())?;
        Ok(Self { below, next, patchers: Default::default(), bytes: 0 })
    }

    /// The next row of the scan, with its payload if that lies apart; gives the patches that are full. An error is the reason
    /// why there will be no layer.
    fn push(&mut self, row: &RawRow, payload: Option<&RawRow>, print: &Print) -> Result<Vec<PlainChunk>, String> {
        let mut full = Vec::new();
        while let Some(gone) = self.take_below(|below| (below.family, &below.key[..]) < (row.family, &row.key[..]))? {
            self.gone(&gone, &mut full)?;
        }
        let below = self.take_below(|below| (below.family, &below.key) == (row.family, &row.key))?;
        if below.as_ref().is_some_and(|below| below.print == *print) {
            return Ok(full);
        }
        full.extend(self.add(row.family, &row.key, Some(&row.value))?);
        match payload {
            Some(payload) => full.extend(self.add(payload.family, &payload.key, Some(&payload.value))?),
            None if below.is_some_and(|below| below.apart) => self.payload_gone(&row.key, &mut full)?,
            None => {}
        }
        Ok(full)
    }

    fn gone(&mut self, row: &Printed, full: &mut Vec<PlainChunk>) -> Result<(), String> {
        full.extend(self.add(row.family, &row.key, None)?);
        if row.apart { self.payload_gone(&row.key, full) } else { Ok(()) }
    }

    fn payload_gone(&mut self, record: &[u8], full: &mut Vec<PlainChunk>) -> Result<(), String> {
        let key = payloads::key_of(record).map_err(|error| error.to_string())?;
        full.extend(self.add(payloads::FAMILY, &key, None)?);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<PlainChunk>, String> {
        let mut full = Vec::new();
        while let Some(gone) = self.take_below(|_| true)? {
            self.gone(&gone, &mut full)?;
        }
        full.extend(self.patchers.into_iter().filter_map(Patcher::finish));
        Ok(full)
    }

    fn take_below(&mut self, wanted: impl Fn(&Printed) -> bool) -> Result<Option<Printed>, String> {
        let Some(taken) = self.next.take_if(|next| wanted(next)) else { return Ok(None) };
        self.next = self.below.rows.next().map_err(|error| error.to_string())?;
        Ok(Some(taken))
    }

    fn add(&mut self, family: u8, key: &[u8], value: Option<&[u8]>) -> Result<Option<PlainChunk>, String> {
        self.bytes += (key.len() + value.map_or(0, <[u8]>::len)) as u64;
        if self.bytes > self.below.bytes_max {
            return Err(format!("more than {} bytes changed", self.below.bytes_max));
        }
        Ok(self.patchers[Section::of(family, key).place()].push(family, key, value))
    }
}
