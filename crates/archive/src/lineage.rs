//! Lineages: which histories an archive holds, and the right to add to one.
//!
//! Invariants:
//! - The facts of a lineage are its first object; an [`OpenLineage`] exists only after they were written or found
//!   equal, and only through it can anything else be shipped.
//! - Facts never change. Others under the same name mean that two clusters share an identity: nothing is shipped.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_model::command::Parent;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_header::Kind;
use holdfast_wire::log::{parent_from, parent_to};

use crate::destination::{Destination, Put};
use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName};
use crate::object::{self, Compression, Sealed};

/// Facts of a lineage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineageFacts {
    /// Which.
    pub id: LineageId,
    /// Human name of the cluster.
    pub cluster_name: String,
    /// Epoch of versions.
    pub epoch: u16,
    /// What it continues; `None` = it began empty.
    pub parent: Option<Parent>,
    /// Raft groups.
    pub groups: u32,
}

impl LineageFacts {
    /// Which lineage this one continues.
    pub fn parent_id(&self) -> Option<LineageId> {
        let parent = self.parent.as_ref()?;
        Some(LineageId { cluster_id: parent.cluster_id, incarnation: parent.incarnation })
    }

    fn seal(&self) -> Result<Sealed, ArchiveError> {
        let body = holdfast_wire::encode(&pb::ArchiveLineage {
            cluster_name: self.cluster_name.clone(),
            epoch: self.epoch.into(),
            parent: self.parent.as_ref().map(parent_to),
            groups: self.groups,
        });
        object::seal(&self.id, Kind::Lineage(pb::ArchiveLineageHeader {}), Compression::Zstd, &body)
    }

    /// Reads the facts and checks everything that they say about themselves.
    ///
    /// # Errors
    /// Names `object` and what is wrong.
    pub fn open(object: &str, id: &LineageId, bytes: &Bytes) -> Result<Self, ArchiveError> {
        let opened = object::open(object, id, bytes)?;
        let bad = |reason: String| ArchiveError::corrupt(object, reason);
        let Kind::Lineage(_) = opened.kind else {
            return Err(bad("it holds no facts of a lineage".into()));
        };
        let decoded = holdfast_wire::decode("lineage", opened.plain);
        let message: pb::ArchiveLineage = decoded.map_err(|error| bad(error.to_string()))?;
        let parent = message.parent.map(parent_from).transpose().map_err(|error| bad(error.to_string()))?;
        let epoch = u16::try_from(message.epoch).map_err(|_| bad("its epoch is out of range".into()))?;
        Ok(Self { id: *id, cluster_name: message.cluster_name, epoch, parent, groups: message.groups })
    }
}

/// A lineage that may be added to.
#[derive(Debug, Clone)]
pub struct OpenLineage {
    destination: Destination,
    id: LineageId,
}

impl OpenLineage {
    /// Writes the facts, or finds them written.
    ///
    /// # Errors
    /// `Corrupt` when other facts lie under the name.
    pub async fn open(destination: Destination, facts: &LineageFacts) -> Result<Self, ArchiveError> {
        let object = ObjectName::Lineage.path(&facts.id);
        if let Put::Lost(found) = destination.put_new(&object, &facts.seal()?.bytes).await? {
            let found = LineageFacts::open(&object, &facts.id, &found)?;
            if found != *facts {
                let reason = format!(
                    "it says that cluster {:?} has epoch {} and {} groups; two clusters share one identity",
                    found.cluster_name, found.epoch, found.groups
                );
                return Err(ArchiveError::corrupt(&object, reason));
            }
        }
        Ok(Self { destination, id: facts.id })
    }

    /// Where it lies.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Which.
    pub fn id(&self) -> &LineageId {
        &self.id
    }
}

/// Facts of every lineage in a destination, ascending by id.
///
/// # Errors
/// Names the first lineage whose facts are damaged or missing.
pub async fn list_lineages(destination: &Destination) -> Result<Vec<LineageFacts>, ArchiveError> {
    let mut ids = Vec::new();
    for cluster in destination.list_folders("").await? {
        for incarnation in destination.list_folders(&cluster).await? {
            ids.extend(LineageId::parse(&format!("{cluster}/{incarnation}")));
        }
    }
    let read = |id: LineageId| async move { read_facts(destination, &id).await };
    let found: Vec<Option<LineageFacts>> = futures::stream::iter(ids).map(read).buffered(8).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// `None` = nothing but an empty folder, left by a writer that died before its first object.
async fn read_facts(destination: &Destination, id: &LineageId) -> Result<Option<LineageFacts>, ArchiveError> {
    let object = ObjectName::Lineage.path(id);
    match destination.get(&object).await {
        Ok(bytes) => LineageFacts::open(&object, id, &bytes).map(Some),
        Err(error @ ArchiveError::Missing { .. }) => {
            let others = destination.list(&id.to_string()).await?;
            if others.is_empty() { Ok(None) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}
