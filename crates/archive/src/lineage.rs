//! Lineages: which histories an archive holds, and the right to add to one.
//!
//! Invariants:
//! - The facts of a lineage are its first object; an [`OpenLineage`] exists only after they were written or found
//!   equal, and only through it can anything else be shipped.
//! - Facts never change. Others under the same name mean that two clusters share an identity: nothing is shipped.

use bytes::Bytes;
use futures::StreamExt;
use holdfast_model::command::Parent;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;
use holdfast_wire::log::{parent_from, parent_to};

use crate::destination::{Destination, Put};
use crate::error::ArchiveError;
use crate::keys::Keyring;
use crate::layout::{DOCTOR, LineageId, ObjectName};
use crate::object::{self, Sealed};
use crate::sealing::Sealing;

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
        let (object, kind) = (ObjectName::Lineage.path(&self.id), Kind::Lineage(pb::ArchiveLineageHeader {}));
        // Never encrypted: it tells nothing of anybody, and says what there is to be opened.
        object::seal(&object, &self.id, kind, &Sealing::default(), &body)
    }

    /// Reads the facts and checks everything that they say about themselves.
    ///
    /// # Errors
    /// Names `object` and what is wrong.
    pub fn open(object: &str, id: &LineageId, bytes: &Bytes) -> Result<Self, ArchiveError> {
        let opened = object::open(object, id, &Keyring::default(), bytes)?;
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

    /// What lies under the name must say the same.
    fn check(&self, object: &str, found: &Bytes) -> Result<(), ArchiveError> {
        let found = Self::open(object, &self.id, found)?;
        if found == *self {
            return Ok(());
        }
        let reason = format!(
            "it says that cluster {:?} has epoch {} and {} groups; two clusters share one identity",
            found.cluster_name, found.epoch, found.groups
        );
        Err(ArchiveError::corrupt(object, reason))
    }
}

/// A lineage that may be added to.
#[derive(Debug, Clone)]
pub struct OpenLineage {
    destination: Destination,
    id: LineageId,
    sealing: Sealing,
}

impl OpenLineage {
    /// Writes the facts, or finds them written.
    ///
    /// # Errors
    /// `Corrupt` when other facts lie under the name.
    pub async fn open(destination: Destination, facts: &LineageFacts) -> Result<Self, ArchiveError> {
        let object = ObjectName::Lineage.path(&facts.id);
        if let Put::Lost(found) = destination.put_checked(&object, &facts.seal()?.bytes).await? {
            facts.check(&object, &found)?;
        }
        Ok(Self { destination, id: facts.id, sealing: Sealing::default() })
    }

    /// Finds the facts written, in a destination that holds something of this history.
    ///
    /// # Errors
    /// `Missing` when they are not there, `Corrupt` when others are.
    pub async fn find(destination: Destination, facts: &LineageFacts) -> Result<Self, ArchiveError> {
        let object = ObjectName::Lineage.path(&facts.id);
        facts.check(&object, &destination.get(&object).await?)?;
        Ok(Self { destination, id: facts.id, sealing: Sealing::default() })
    }

    /// What is added from here on is packed and encrypted like this. The generation's KEYS.age is written, or found
    /// written, and read back first: nothing is sealed with a key that its recipients cannot get.
    ///
    /// # Errors
    /// `Corrupt` when another KEYS.age lies there.
    pub async fn sealed_with(self, sealing: Sealing) -> Result<Self, ArchiveError> {
        if let Some(keys) = &sealing.keys {
            let object = ObjectName::Keys { generation: keys.key.generation() }.path(&self.id);
            if let Put::Lost(_) = self.destination.put_checked(&object, &keys.keys_age).await? {
                let reason = "it is not the one that this cluster's log holds: damaged, or two clusters share one \
                              identity; `backup keys rotate` goes on with another";
                return Err(ArchiveError::corrupt(&object, reason));
            }
        }
        Ok(Self { sealing, ..self })
    }

    /// How what is added is packed and encrypted.
    pub fn sealing(&self) -> &Sealing {
        &self.sealing
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

/// What a destination holds, from the top down to its lineages.
#[derive(Debug, Default)]
pub struct FoundLineages {
    /// Facts of those that can be read, ascending by id.
    pub lineages: Vec<LineageFacts>,
    /// Those whose facts are damaged or missing, and why, ascending by id.
    pub bad: Vec<(LineageId, ArchiveError)>,
    /// Objects above a lineage, and folders that are no lineage: nothing of Holdfast's.
    pub foreign: Vec<String>,
}

/// mkfs makes it at the root of a disk, and only root may look into it.
const LOST_AND_FOUND: &str = "lost+found";

/// Finds every lineage in a destination; one that is damaged does not hide the others.
///
/// # Errors
/// Only when the destination fails.
pub async fn find_lineages(destination: &Destination) -> Result<FoundLineages, ArchiveError> {
    let mut found = FoundLineages::default();
    let mut ids = Vec::new();
    let (objects, clusters) = destination.list_here("").await?;
    found.foreign.extend(objects.into_iter().map(|object| object.path));
    let is_ours = |name: &String| name != LOST_AND_FOUND && name != DOCTOR;
    for cluster in clusters.into_iter().filter(is_ours) {
        if !LineageId::is_cluster(&cluster) {
            found.foreign.push(format!("{cluster}/"));
            continue;
        }
        let (objects, incarnations) = destination.list_here(&cluster).await?;
        found.foreign.extend(objects.into_iter().map(|object| object.path));
        for incarnation in incarnations {
            let path = format!("{cluster}/{incarnation}");
            match LineageId::parse(&path) {
                Some(id) => ids.push(id),
                None => found.foreign.push(format!("{path}/")),
            }
        }
    }
    let read = |id: LineageId| async move { (id, read_facts(destination, &id).await) };
    let read: Vec<_> = futures::stream::iter(ids).map(read).buffered(8).collect().await;
    for (id, facts) in read {
        match facts {
            Ok(facts) => found.lineages.extend(facts),
            Err(error) if error.fault().is_some() => found.bad.push((id, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
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
