//! Attestation: every voter reads its own checkpoint at a snapshot's barrier and signs what it found; a snapshot counts as
//! attested when a majority of the voters at its index found the same rows.
//!
//! Invariants:
//! - A signature says which cluster, history, group, position, chains and rows it is of: it is good for nothing else.
//! - What is signed was read from the signer's own disk, never taken over from another node.
//! - Learners may sign, and do not count; while voters change, a majority of both sets is needed.
//!
//! Signatures are Ed25519 (RFC 8032), verified strictly: one message has no second signature by the same key.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use holdfast_model::attest::{Attestation, Word, is_majority};
use holdfast_model::id::{GroupId, NodeId};
use holdfast_store::LogPosition;
use holdfast_wire::internal::v1 as pb;

use crate::chunk::Chunkers;
use crate::error::ArchiveError;
use crate::layout::LineageId;
use crate::manifest::{ChunkRows, Manifest, root_of};
use crate::read_limit::ReadLimit;
use crate::snapshot::in_background;
use crate::snapshot::scan::Checkpoint;

/// Opens what is signed. Roots are compared as they are: whoever changes how rows are cut or hashed raises the number here, and
/// sees to it that no two voters of a cluster cut in different ways.
const CONTEXT: &[u8] = b"holdfast attestation 1\0";

/// What is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// Cluster and history.
    pub lineage: LineageId,
    /// Group.
    pub group: GroupId,
    /// Last entry in the state.
    pub applied: LogPosition,
    /// Entry chain there.
    pub entry_chain: [u8; 32],
    /// Effect chain there.
    pub effect_chain: [u8; 32],
    /// Hash over the plain hashes of the chunks that the state's rows make.
    pub root: [u8; 32],
}

impl Statement {
    fn bytes(&self) -> Vec<u8> {
        let mut out = CONTEXT.to_vec();
        out.put_slice(&self.lineage.cluster_id);
        out.put_u64(self.lineage.incarnation.0);
        out.put_u32(self.group.0);
        out.put_u64(self.applied.term);
        out.put_u64(self.applied.node);
        out.put_u64(self.applied.index);
        out.put_slice(&self.entry_chain);
        out.put_slice(&self.effect_chain);
        out.put_slice(&self.root);
        out
    }
}

/// The key with which a node signs. Its debug form says nothing of it.
#[derive(Debug, Clone)]
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// Made of 32 random bytes that the node keeps.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// What verifies its signatures.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Signs.
    pub fn sign(&self, statement: &Statement) -> [u8; 64] {
        self.0.sign(&statement.bytes()).to_bytes()
    }

    /// The word of `node`, whose key this is.
    pub fn attest(&self, node: NodeId, statement: &Statement) -> Attestation {
        Attestation {
            incarnation: statement.lineage.incarnation,
            index: statement.applied.index,
            node,
            key: self.public(),
            word: Word { root: statement.root, signature: self.sign(statement) },
        }
    }
}

/// A replica that vouches for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// Which.
    pub node: NodeId,
    /// Its key.
    pub key: [u8; 32],
    /// Its signature.
    pub signature: [u8; 64],
}

impl Witness {
    /// It signed this.
    pub fn signed(&self, statement: &Statement) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.key) else { return false };
        key.verify_strict(&statement.bytes(), &Signature::from_bytes(&self.signature)).is_ok()
    }
}

/// Voters of the membership that a state holds: one set, or two while they change.
///
/// # Errors
/// The bytes are no membership.
pub fn voters(membership: &Bytes) -> Result<Vec<BTreeSet<NodeId>>, ArchiveError> {
    let stored: pb::StoredMembership = holdfast_wire::decode("membership", membership.clone())
        .map_err(|error| ArchiveError::refused(format!("the membership of a snapshot: {error}")))?;
    let configs = stored.membership.into_iter().flat_map(|membership| membership.configs);
    Ok(configs.map(|config| config.voters.into_iter().map(NodeId).collect()).collect())
}

impl Manifest {
    /// All voters at its index, of both sets while they changed.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        voters(&self.membership).unwrap_or_default().into_iter().flatten().collect()
    }

    /// A majority of the voters at its index found the same rows, each for itself. Signatures were checked when it was read.
    pub fn is_attested(&self) -> bool {
        let has_signed = |node: &NodeId| self.witnesses.iter().any(|witness| witness.node == *node);
        voters(&self.membership).is_ok_and(|configs| is_majority(&configs, has_signed))
    }
}

/// What a node found in its own checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What there is to sign.
    pub statement: Statement,
    /// Voters at that index ([`voters`]).
    pub voters: Vec<BTreeSet<NodeId>>,
}

/// Asked between chunks whether there is still a reason to read on.
pub type GoesOn = Arc<dyn Fn() -> bool + Send + Sync>;

/// Reads a checkpoint, with what processors have to spare, and gives what there is to say of it.
///
/// # Errors
/// When it cannot be read; `Stopped` when there was no reason any more.
pub async fn read_checkpoint(
    path: &Path,
    group: GroupId,
    limit: ReadLimit,
    goes_on: GoesOn,
) -> Result<Reading, ArchiveError> {
    let path = path.to_owned();
    let reading = in_background("attest-scan", move || read(&path, group, limit, &*goes_on))?;
    reading.await.map_err(|_| ArchiveError::Stopped { what: "reading a checkpoint" })?
}

fn read(
    path: &Path,
    group: GroupId,
    limit: ReadLimit,
    goes_on: &(dyn Fn() -> bool + Send + Sync),
) -> Result<Reading, ArchiveError> {
    let checkpoint = Checkpoint::open(path)?;
    let mut pace = limit.begin(Instant::now());
    let mut chunkers = Chunkers::default();
    let mut chunks: Vec<ChunkRows> = Vec::new();
    for row in checkpoint.rows() {
        let (row, payload) = row?;
        for part in std::iter::once(&row).chain(&payload) {
            if let Some(ended) = chunkers.push(part)? {
                if !goes_on() {
                    return Err(ArchiveError::Stopped { what: "reading a checkpoint" });
                }
                chunks.push(ended.chunk_rows());
                std::thread::sleep(pace.passed(ended.plain.len() as u64, Instant::now()));
            }
        }
    }
    chunks.extend(chunkers.finish().map(|last| last.chunk_rows()));
    // Sections end in turn; a snapshot has one after the other.
    chunks.sort_by(|a, b| a.place().cmp(&b.place()));
    let root = root_of(chunks.iter().map(|chunk| &chunk.plain_blake3));
    Ok(Reading { statement: checkpoint.statement(group, root), voters: voters(&checkpoint.membership)? })
}

#[cfg(test)]
mod tests;
