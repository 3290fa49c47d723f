//! Manifests: the commit point of a snapshot. Written last; a snapshot without one does not exist.
//!
//! The rows of a snapshot lie in the chunks of its base and, over them, in layers of patches: each says what changed from
//! one snapshot to a later one. Without layers the base is all of it.
//!
//! Invariants, checked before writing and after reading:
//! - Chunks, and patches of a layer, are ascending by (family, first key); the rows and bytes of the snapshot add up to the
//!   totals.
//! - The root is the hash over the plain hashes of the chunks that the snapshot's rows make, wherever they lie: equal
//!   states have equal roots.
//! - The snapshot before this one, if it is named, has a lower index; layers lead from the base's index to this one.

use bytes::Bytes;
use holdfast_model::id::{GroupId, Millis, NodeId, Stage};
use holdfast_store::LogPosition;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::attest::{Statement, Witness};
use crate::error::ArchiveError;
use crate::keys::Keyring;
use crate::layout::{LineageId, ObjectName};
use crate::object::{self, Sealed, fixed};
use crate::payloads::Section;
use crate::sealing::Sealing;
use crate::segment::{log_id, position};

/// Most layers over a base: a restore reads them all side by side.
pub const LAYERS_MAX: usize = 8;

/// Separates the hash of a root from every other use of BLAKE3 here.
const ROOT_CONTEXT: &str = "holdfast archive 2026-11-22 snapshot root";

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// History.
    pub lineage: LineageId,
    /// Group.
    pub group: GroupId,
    /// Last entry in it.
    pub applied: LogPosition,
    /// Membership at that entry, as the store has it.
    pub membership: Bytes,
    /// Entry chain at that entry.
    pub entry_chain: [u8; 32],
    /// Effect chain at that entry.
    pub effect_chain: [u8; 32],
    /// Time of the log at that entry.
    pub now: Millis,
    /// Newest rules seen.
    pub rules: u16,
    /// Chunks of its base, in canonical order.
    pub chunks: Vec<ManifestChunk>,
    /// Index of the snapshot whose rows its base is; its own, if it has no layers.
    pub base_index: u64,
    /// What changed since, oldest first.
    pub layers: Vec<Layer>,
    /// With layers: the chunks that its rows make, in canonical order.
    pub composed: Vec<ChunkRows>,
    /// Users.
    pub users: u64,
    /// Live records.
    pub records: u64,
    /// Payload bytes of live records.
    pub payload_bytes: u64,
    /// The snapshot before this one.
    pub previous: Option<Previous>,
    /// Replicas that found the same rows in their own checkpoints, ascending.
    pub witnesses: Vec<Witness>,
}

/// Hash over the plain hashes of chunks, in canonical order.
pub(crate) fn root_of<'a>(chunks: impl Iterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
    for plain_blake3 in chunks {
        hasher.update(plain_blake3);
    }
    *hasher.finalize().as_bytes()
}

/// Names another manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Previous {
    /// Index of the snapshot.
    pub index: u64,
    /// Hash that ends its manifest.
    pub seal: [u8; 32],
}

/// What changed from the snapshot below to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Index of the snapshot that it leads to.
    pub index: u64,
    /// Its patches, in canonical order.
    pub patches: Vec<ManifestChunk>,
}

/// Rows that make a chunk, wherever they lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRows {
    /// Hash of the rows.
    pub plain_blake3: [u8; 32],
    /// Bytes of the rows.
    pub plain_length: u64,
    /// Family of the rows.
    pub family: u8,
    /// First key.
    pub first_key: Vec<u8>,
    /// Rows.
    pub rows: u64,
}

/// One chunk of a snapshot's base, or one patch of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestChunk {
    /// Generation it lies in.
    pub generation: u32,
    /// Hash of its rows, keyed where they are encrypted: its name.
    pub name: [u8; 32],
    /// Hash of its rows.
    pub plain_blake3: [u8; 32],
    /// Bytes of its rows.
    pub plain_length: u64,
    /// Bytes of the object.
    pub stored_length: u64,
    /// Hash that ends the object.
    pub stored_seal: [u8; 32],
    /// Family of its rows; of a patch, of the first one.
    pub family: u8,
    /// First key.
    pub first_key: Vec<u8>,
    /// Rows.
    pub rows: u64,
}

impl ChunkRows {
    /// Where it begins in canonical order.
    pub(crate) fn place(&self) -> (u8, &[u8]) {
        (self.family, &self.first_key)
    }
}

impl ManifestChunk {
    /// Where it begins in canonical order.
    pub(crate) fn place(&self) -> (u8, &[u8]) {
        (self.family, &self.first_key)
    }

    /// Name of the object, of a chunk.
    pub fn object(&self) -> ObjectName {
        ObjectName::Chunk { generation: self.generation, name: self.name }
    }

    /// Name of the object, of a patch.
    pub fn patch_object(&self) -> ObjectName {
        ObjectName::Patch { generation: self.generation, name: self.name }
    }

    /// Its rows.
    pub fn chunk_rows(&self) -> ChunkRows {
        ChunkRows {
            plain_blake3: self.plain_blake3,
            plain_length: self.plain_length,
            family: self.family,
            first_key: self.first_key.clone(),
            rows: self.rows,
        }
    }
}

impl Manifest {
    /// Name of the manifest.
    pub fn name(&self) -> ObjectName {
        ObjectName::Manifest { group: self.group, index: self.applied.index }
    }

    /// Hash over the plain hashes of the chunks that its rows make, in order.
    pub fn root(&self) -> [u8; 32] {
        root_of(self.sums().map(|(plain_blake3, ..)| plain_blake3))
    }

    /// What its witnesses signed.
    pub fn statement(&self) -> Statement {
        Statement {
            lineage: self.lineage,
            group: self.group,
            applied: self.applied,
            entry_chain: self.entry_chain,
            effect_chain: self.effect_chain,
            root: self.root(),
        }
    }

    /// Rows.
    pub fn rows(&self) -> u64 {
        self.sums().map(|(_, rows, _)| rows).sum()
    }

    /// Plain bytes of its rows.
    pub fn plain_length(&self) -> u64 {
        self.sums().map(|(.., bytes)| bytes).sum()
    }

    /// Hash, rows and bytes of each chunk that its rows make.
    fn sums(&self) -> Box<dyn Iterator<Item = (&[u8; 32], u64, u64)> + '_> {
        match self.layers.is_empty() {
            true => Box::new(self.chunks.iter().map(|chunk| (&chunk.plain_blake3, chunk.rows, chunk.plain_length))),
            false => Box::new(self.composed.iter().map(|chunk| (&chunk.plain_blake3, chunk.rows, chunk.plain_length))),
        }
    }

    /// It has large payloads of this stage, or had in its base.
    pub fn has_payloads(&self, stage: Stage) -> bool {
        self.objects().any(|(_, line)| Section::of(line.family, &line.first_key) == Section::Payloads(stage))
    }

    /// What it says of some sections alone, for reading them: it is no manifest of a snapshot any more, and has another root.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(Section) -> bool) -> Self {
        let is_wanted = |(family, key): (u8, &[u8])| wanted(Section::of(family, key));
        let mut part = self.clone();
        part.chunks.retain(|line| is_wanted(line.place()));
        part.composed.retain(|rows| is_wanted(rows.place()));
        for layer in &mut part.layers {
            layer.patches.retain(|line| is_wanted(line.place()));
        }
        part
    }

    /// The same, without chunks that end at `key` or before it. With layers all of them are needed.
    #[must_use]
    pub fn behind(mut self, key: &[u8]) -> Self {
        if self.layers.is_empty() {
            let begun = self.chunks.partition_point(|line| line.first_key[..] <= *key);
            self.chunks.drain(..begun.saturating_sub(1));
        }
        self
    }

    /// How many chunks its rows make.
    pub fn chunk_count(&self) -> usize {
        self.sums().count()
    }

    /// Every object that holds rows of it, with its line.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectName, &ManifestChunk)> {
        let patches = self.layers.iter().flat_map(|layer| &layer.patches).map(|line| (line.patch_object(), line));
        self.chunks.iter().map(|line| (line.object(), line)).chain(patches)
    }

    /// Bytes of all its objects as they are stored.
    pub fn stored_length(&self) -> u64 {
        self.objects().map(|(_, line)| line.stored_length).sum()
    }

    /// Plain bytes of its layers.
    pub fn patch_length(&self) -> u64 {
        self.layers.iter().flat_map(|layer| &layer.patches).map(|line| line.plain_length).sum()
    }

    /// The same state at the same place, whoever took it and however its chunks were packed.
    pub fn same_state(&self, other: &Self) -> bool {
        self.applied == other.applied
            && self.entry_chain == other.entry_chain
            && self.effect_chain == other.effect_chain
            && self.root() == other.root()
    }

    pub(crate) fn seal(&self, sealing: &Sealing) -> Result<Sealed, ArchiveError> {
        self.check().map_err(ArchiveError::refused)?;
        let body = holdfast_wire::encode(&self.to_message());
        let header = pb::ArchiveManifestHeader { group_id: self.group.0, index: self.applied.index };
        object::seal(&self.name().path(&self.lineage), &self.lineage, Kind::Manifest(header), sealing, &body)
    }

    /// Reads a manifest and checks everything that it says about itself; gives its seal too.
    ///
    /// # Errors
    /// Names `object` and what is wrong.
    pub fn open(
        object: &str,
        lineage: &LineageId,
        keys: &Keyring,
        group: GroupId,
        index: u64,
        bytes: &Bytes,
    ) -> Result<(Self, [u8; 32]), ArchiveError> {
        let opened = object::open(object, lineage, keys, bytes)?;
        let bad = |reason: String| ArchiveError::corrupt(object, reason);
        let Kind::Manifest(header) = opened.kind else {
            return Err(bad("it is no manifest".into()));
        };
        if (header.group_id, header.index) != (group.0, index) {
            return Err(bad(format!("it is the snapshot of group {} at index {}", header.group_id, header.index)));
        }
        let message = holdfast_wire::decode("manifest", opened.plain).map_err(|error| bad(error.to_string()))?;
        let (manifest, root, totals) = from_message(*lineage, group, message).map_err(bad)?;
        if manifest.applied.index != index {
            return Err(bad(format!("its rows are those of index {}", manifest.applied.index)));
        }
        if manifest.root() != root {
            return Err(bad("its root does not match its chunks".into()));
        }
        if (manifest.rows(), manifest.plain_length()) != totals {
            return Err(bad("its totals do not match its chunks".into()));
        }
        manifest.check().map_err(bad)?;
        Ok((manifest, opened.seal))
    }

    fn check(&self) -> Result<(), String> {
        let ordered = |lines: &[ManifestChunk]| lines.is_sorted_by(|a, b| a.place() < b.place());
        let composed = self.composed.is_sorted_by(|a, b| a.place() < b.place());
        if !ordered(&self.chunks) || !composed {
            return Err("its chunks are out of order".into());
        }
        if !self.layers.iter().all(|layer| ordered(&layer.patches)) {
            return Err("its patches are out of order".into());
        }
        let steps = std::iter::once(self.base_index).chain(self.layers.iter().map(|layer| layer.index));
        let end = self.layers.last().map_or(self.base_index, |layer| layer.index);
        if !steps.is_sorted_by(|a, b| a < b) || end != self.applied.index {
            return Err("its layers do not lead from its base to its index".into());
        }
        if self.layers.len() > LAYERS_MAX {
            return Err(format!("it has {} layers, more than {LAYERS_MAX}", self.layers.len()));
        }
        if self.layers.is_empty() && !self.composed.is_empty() {
            return Err("it has no layers, and chunks that are composed of them".into());
        }
        let statement = self.statement();
        if !self.witnesses.is_sorted_by(|a, b| a.node < b.node) {
            return Err("the replicas that attest it are out of order".into());
        }
        if let Some(forged) = self.witnesses.iter().find(|witness| !witness.signed(&statement)) {
            return Err(format!("node {} did not sign what it says", forged.node.0));
        }
        if self.previous.is_some_and(|previous| previous.index >= self.applied.index) {
            return Err("the snapshot before it is not older".into());
        }
        Ok(())
    }

    fn to_message(&self) -> pb::ArchiveManifest {
        pb::ArchiveManifest {
            applied: Some(log_id(self.applied)),
            membership: self.membership.clone(),
            entry_chain: Bytes::copy_from_slice(&self.entry_chain),
            effect_chain: Bytes::copy_from_slice(&self.effect_chain),
            now_ms: self.now.0,
            rules: self.rules.into(),
            chunks: self.chunks.iter().map(chunk_to).collect(),
            root: Bytes::copy_from_slice(&self.root()),
            rows: self.rows(),
            plain_length: self.plain_length(),
            users: self.users,
            records: self.records,
            payload_bytes: self.payload_bytes,
            previous_index: self.previous.map_or(0, |previous| previous.index),
            previous_seal: self.previous.map_or(Bytes::new(), |previous| Bytes::copy_from_slice(&previous.seal)),
            base_index: self.base_index,
            layers: self.layers.iter().map(layer_to).collect(),
            composed: self.composed.iter().map(rows_to).collect(),
            witnesses: self.witnesses.iter().map(witness_to).collect(),
        }
    }
}

fn layer_to(layer: &Layer) -> pb::ArchiveManifestLayer {
    pb::ArchiveManifestLayer { index: layer.index, patches: layer.patches.iter().map(chunk_to).collect() }
}

fn layer_from(layer: pb::ArchiveManifestLayer) -> Option<Layer> {
    let patches = layer.patches.into_iter().map(chunk_from).collect::<Option<_>>()?;
    Some(Layer { index: layer.index, patches })
}

fn witness_to(witness: &Witness) -> pb::ArchiveWitness {
    pb::ArchiveWitness {
        node_id: witness.node.0,
        key: Bytes::copy_from_slice(&witness.key),
        signature: Bytes::copy_from_slice(&witness.signature),
    }
}

fn witness_from(witness: pb::ArchiveWitness) -> Option<Witness> {
    Some(Witness { node: NodeId(witness.node_id), key: fixed(&witness.key)?, signature: fixed(&witness.signature)? })
}

fn rows_to(rows: &ChunkRows) -> pb::ArchiveManifestRows {
    pb::ArchiveManifestRows {
        plain_blake3: Bytes::copy_from_slice(&rows.plain_blake3),
        plain_length: rows.plain_length,
        family: rows.family.into(),
        first_key: Bytes::copy_from_slice(&rows.first_key),
        rows: rows.rows,
    }
}

fn rows_from(rows: pb::ArchiveManifestRows) -> Option<ChunkRows> {
    Some(ChunkRows {
        plain_blake3: fixed(&rows.plain_blake3)?,
        plain_length: rows.plain_length,
        family: u8::try_from(rows.family).ok()?,
        first_key: rows.first_key.to_vec(),
        rows: rows.rows,
    })
}

fn chunk_to(chunk: &ManifestChunk) -> pb::ArchiveManifestChunk {
    pb::ArchiveManifestChunk {
        generation: chunk.generation,
        name: Bytes::copy_from_slice(&chunk.name),
        plain_blake3: Bytes::copy_from_slice(&chunk.plain_blake3),
        plain_length: chunk.plain_length,
        stored_length: chunk.stored_length,
        stored_seal: Bytes::copy_from_slice(&chunk.stored_seal),
        family: chunk.family.into(),
        first_key: Bytes::copy_from_slice(&chunk.first_key),
        rows: chunk.rows,
    }
}

fn chunk_from(chunk: pb::ArchiveManifestChunk) -> Option<ManifestChunk> {
    Some(ManifestChunk {
        generation: chunk.generation,
        name: fixed(&chunk.name)?,
        plain_blake3: fixed(&chunk.plain_blake3)?,
        plain_length: chunk.plain_length,
        stored_length: chunk.stored_length,
        stored_seal: fixed(&chunk.stored_seal)?,
        family: u8::try_from(chunk.family).ok()?,
        first_key: chunk.first_key.to_vec(),
        rows: chunk.rows,
    })
}

/// A manifest, the root that it claims, and the (rows, bytes) that it claims.
type Claimed = (Manifest, [u8; 32], (u64, u64));

fn from_message(lineage: LineageId, group: GroupId, message: pb::ArchiveManifest) -> Result<Claimed, String> {
    let hash = |what: &str, bytes: &[u8]| fixed::<32>(bytes).ok_or_else(|| format!("its {what} is no hash"));
    let root = hash("root", &message.root)?;
    let chunks: Option<Vec<ManifestChunk>> = message.chunks.into_iter().map(chunk_from).collect();
    let chunks = chunks.ok_or("one of its chunks has no valid name or family")?;
    let layers: Option<Vec<Layer>> = message.layers.into_iter().map(layer_from).collect();
    let layers = layers.ok_or("one of its patches has no valid name or family")?;
    let composed: Option<Vec<ChunkRows>> = message.composed.into_iter().map(rows_from).collect();
    let composed = composed.ok_or("one of its composed chunks has no valid hash or family")?;
    // Sums that overflow are not those of any state.
    let patches = || layers.iter().flat_map(|layer| &layer.patches);
    let sum = |of: fn(&ManifestChunk) -> u64| {
        chunks.iter().chain(patches()).try_fold(0u64, |sum, chunk| sum.checked_add(of(chunk)))
    };
    let sum_composed =
        |of: fn(&ChunkRows) -> u64| composed.iter().try_fold(0u64, |sum, chunk| sum.checked_add(of(chunk)));
    sum(|chunk| chunk.rows).and(sum_composed(|chunk| chunk.rows)).ok_or("its rows overflow")?;
    sum(|chunk| chunk.plain_length).and(sum_composed(|chunk| chunk.plain_length)).ok_or("its plain bytes overflow")?;
    sum(|chunk| chunk.stored_length).ok_or("its stored bytes overflow")?;
    let previous = match message.previous_seal.is_empty() {
        true => None,
        false => Some(Previous { index: message.previous_index, seal: hash("previous seal", &message.previous_seal)? }),
    };
    let witnesses: Option<Vec<Witness>> = message.witnesses.into_iter().map(witness_from).collect();
    let manifest = Manifest {
        lineage,
        group,
        applied: position(message.applied.ok_or("it has no position")?),
        membership: message.membership,
        entry_chain: hash("entry chain", &message.entry_chain)?,
        effect_chain: hash("effect chain", &message.effect_chain)?,
        now: Millis(message.now_ms),
        rules: u16::try_from(message.rules).map_err(|_| "its rules are out of range")?,
        chunks,
        base_index: message.base_index,
        layers,
        composed,
        users: message.users,
        records: message.records,
        payload_bytes: message.payload_bytes,
        previous,
        witnesses: witnesses.ok_or("the word of one of its replicas has no valid key or signature")?,
    };
    Ok((manifest, root, (message.rows, message.plain_length)))
}

#[cfg(test)]
mod tests;
