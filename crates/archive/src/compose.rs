//! The rows of a snapshot, wherever they lie: in the chunks of its base, or there and in the layers over it.
//!
//! Invariants:
//! - What is given out are the chunks that make the snapshot's root, in order; each was compared with what the manifest
//!   says of it, so a layer that is wrong, or lies over the wrong base, is found before a row of it is used.
//! - Of a row that several layers hold, the newest counts.
//! - In memory are a few objects of each layer.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use crate::chunk::{Chunk, Chunker, PlainChunk};
use crate::destination::Destination;
use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName};
use crate::manifest::{Manifest, ManifestChunk};
use crate::rows::PatchRow;

/// Objects that are read at a time, of the base and of each layer.
const READS_MAX: usize = 4;
const PATCH_READS_MAX: usize = 2;
/// Objects that wait to be taken, of each layer and of what was put together.
const QUEUED_MAX: usize = 1;

/// Rows of one object.
type RowsOf = Box<dyn Iterator<Item = PatchRow> + Send>;
type Composed = Result<Option<Arc<Chunk>>, ArchiveError>;

/// Reads the rows of a snapshot in canonical order, in the chunks that they make.
///
/// The stream ends with its first error, which names the object; the manifest, where objects do not fit together.
pub fn read_rows<'a>(
    destination: &'a Destination,
    manifest: &'a Manifest,
) -> BoxStream<'a, Result<Arc<Chunk>, ArchiveError>> {
    if manifest.layers.is_empty() {
        let reads = manifest.objects().map(|(name, line)| read_object(destination, &manifest.lineage, name, line));
        return futures::stream::iter(reads).buffered(READS_MAX).boxed();
    }
    let (out, composed) = mpsc::channel(QUEUED_MAX);
    let sources = sources(destination, manifest);
    let manifest = manifest.clone();
    tokio::task::spawn_blocking(move || {
        let end = compose(&manifest, sources, &out);
        // Whoever asked may be gone.
        let _ = out.blocking_send(end.map(|()| None));
    });
    let next = |mut composed: mpsc::Receiver<Composed>| async move {
        match composed.recv().await.unwrap_or(Err(stopped())) {
            Ok(None) => None,
            Ok(Some(chunk)) => Some((Ok(chunk), composed)),
            Err(error) => {
                composed.close();
                Some((Err(error), composed))
            }
        }
    };
    futures::stream::unfold(composed, next).boxed()
}

fn stopped() -> ArchiveError {
    ArchiveError::Stopped { what: "putting a snapshot together" }
}

/// Reads and checks a chunk or a patch, by the line of a manifest that names it.
///
/// # Errors
/// Names the object and what is wrong.
pub async fn read_object(
    destination: &Destination,
    lineage: &LineageId,
    name: ObjectName,
    line: &ManifestChunk,
) -> Result<Arc<Chunk>, ArchiveError> {
    let object = name.path(lineage);
    let bytes = destination.get(&object).await?;
    let (lineage, line, keys) = (*lineage, line.clone(), destination.shared_keys());
    let checking = tokio::task::spawn_blocking(move || {
        let (chunk, _) = Chunk::open(&object, &lineage, &keys, name, &bytes)?;
        chunk.check_line(&object, &line)?;
        Ok(Arc::new(chunk))
    });
    checking.await.map_err(|_| ArchiveError::Stopped { what: "checking an object" })?
}

/// Base and layers, oldest first, read ahead.
fn sources(destination: &Destination, manifest: &Manifest) -> Vec<Source> {
    let read = |name: ObjectName, line: &ManifestChunk| {
        let (from, lineage, line) = (destination.clone(), manifest.lineage, line.clone());
        async move {
            let chunk = read_object(&from, &lineage, name, &line).await?;
            Ok(Box::new(chunk.patch_rows()) as RowsOf)
        }
    };
    let base = manifest.chunks.iter().map(|line| read(line.object(), line)).collect();
    let layers = manifest.layers.iter().map(|layer| {
        let patches = layer.patches.iter().map(|line| read(line.patch_object(), line)).collect();
        Source::read(patches, PATCH_READS_MAX)
    });
    std::iter::once(Source::read(base, READS_MAX)).chain(layers).collect()
}

/// Base, or one layer: its objects as they arrive, and its next row.
struct Source {
    objects: mpsc::Receiver<Result<RowsOf, ArchiveError>>,
    /// Objects that have not arrived yet.
    left: usize,
    rows: RowsOf,
    next: Option<PatchRow>,
}

impl Source {
    fn read<F>(reads: Vec<F>, reads_max: usize) -> Self
    where
        F: Future<Output = Result<RowsOf, ArchiveError>> + Send + 'static,
    {
        let (sender, objects) = mpsc::channel(QUEUED_MAX);
        let left = reads.len();
        tokio::spawn(async move {
            let mut reads = futures::stream::iter(reads).buffered(reads_max);
            while let Some(read) = reads.next().await {
                // Nobody waits for it any more.
                if sender.send(read).await.is_err() {
                    return;
                }
            }
        });
        Self { objects, left, rows: Box::new(std::iter::empty()), next: None }
    }

    fn advance(&mut self) -> Result<(), ArchiveError> {
        self.next = self.rows.next();
        while self.next.is_none() && self.left > 0 {
            self.rows = self.objects.blocking_recv().unwrap_or(Err(stopped()))?;
            self.left -= 1;
            self.next = self.rows.next();
        }
        Ok(())
    }
}

/// Lays the layers over the base, and cuts what comes out. Blocks.
fn compose(manifest: &Manifest, mut sources: Vec<Source>, out: &mpsc::Sender<Composed>) -> Result<(), ArchiveError> {
    let mut expected = manifest.composed.iter();
    let misfit = |family: u8| {
        let object = manifest.name().path(&manifest.lineage);
        ArchiveError::corrupt(&object, format!("its base and layers do not make the rows of family {family} it names"))
    };
    let mut give = |chunk: PlainChunk| {
        let family = chunk.family;
        let chunk =
            expected.next().and_then(|as_said| Chunk::composed(chunk, as_said)).ok_or_else(|| misfit(family))?;
        out.blocking_send(Ok(Some(Arc::new(chunk)))).map_err(|_| stopped())
    };
    let mut chunker = Chunker::default();
    sources.iter_mut().try_for_each(Source::advance)?;
    while let Some(row) = newest_of_first(&sources) {
        if let Some(value) = &row.value {
            let ended = chunker.push(row.family, &row.key, value).map_err(|_| misfit(row.family))?;
            ended.map_or(Ok(()), &mut give)?;
        }
        for source in &mut sources {
            if source.next.as_ref().is_some_and(|next| next.place() == row.place()) {
                source.advance()?;
            }
        }
    }
    chunker.finish().map_or(Ok(()), &mut give)?;
    expected.next().map_or(Ok(()), |missing| Err(misfit(missing.family)))
}

/// The first row in order, as the newest layer that holds it has it.
fn newest_of_first(sources: &[Source]) -> Option<PatchRow> {
    let rows = sources.iter().filter_map(|source| source.next.as_ref());
    // Of equal ones, `min_by` gives the first.
    rows.rev().min_by(|a, b| a.place().cmp(&b.place())).cloned()
}

#[cfg(test)]
mod tests;
