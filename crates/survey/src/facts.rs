//! What is known of a cluster's copies, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::domain::Domain;

/// Who holds a copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyId {
    /// A node of the cluster.
    Node(u64),
    /// A destination outside, by its name.
    Destination(String),
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Destination(name) => f.write_str(name),
        }
    }
}

/// What a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node that votes.
    Voter,
    /// A node that receives the log and does not vote.
    Learner,
    /// Objects at an offsite destination.
    Archive,
    /// Objects pulled into other custody.
    Vault,
}

impl Kind {
    /// A node of the cluster, not a copy outside.
    pub fn is_node(self) -> bool {
        match self {
            Self::Voter | Self::Learner => true,
            Self::Archive | Self::Vault => false,
        }
    }
}

/// Whether a node takes part at this moment. Its disk holds what it holds either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// It answered, or its leader heard from it.
    Up,
    /// It did not.
    Down,
    /// Nobody who could know was asked, or it did not answer although its leader heard it a moment ago.
    Unknown,
}

/// Whether a copy outside was read back lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// Read back and compared.
    Verified,
    /// It is new and nobody could have read it yet: it counts for a while; until when.
    New(String),
    /// Not, or not lately, or found to be bad; why.
    Stale(String),
    /// Nobody who could know was asked.
    Unknown,
}

impl Freshness {
    /// What the copy holds may be counted on.
    pub fn counts(&self) -> bool {
        matches!(self, Self::Verified | Self::New(_))
    }
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Whose.
    pub id: CopyId,
    /// What it is.
    pub kind: Kind,
    /// Failure-domain labels.
    pub labels: BTreeMap<String, String>,
    /// Of nodes.
    pub running: Running,
    /// Of copies outside.
    pub freshness: Freshness,
    /// Every entry up to here is durable there; `None` = not known.
    pub index: Option<u64>,
    /// `index` is what it last acknowledged to its leader: it did not answer, and may hold what was on its way then.
    pub is_heard_only: bool,
    /// State digest and the index it belongs to, of nodes that answered.
    pub digest: Option<(u64, Vec<u8>)>,
    /// How long the oldest committed entry that is missing there has been missing, in milliseconds; 0 = none is missing,
    /// `None` = not known. Of copies outside.
    pub lag_ms: Option<u64>,
}

impl Copy {
    /// A node that takes part and holds everything up to `index`.
    pub fn node(id: u64, kind: Kind, labels: BTreeMap<String, String>, index: Option<u64>) -> Self {
        Self::new(CopyId::Node(id), kind, labels, index)
    }

    /// A copy outside that was read back up to `index`.
    pub fn archive(name: &str, labels: BTreeMap<String, String>, index: Option<u64>) -> Self {
        Self { lag_ms: Some(0), ..Self::new(CopyId::Destination(name.to_owned()), Kind::Archive, labels, index) }
    }

    fn new(id: CopyId, kind: Kind, labels: BTreeMap<String, String>, index: Option<u64>) -> Self {
        Self {
            id,
            kind,
            labels,
            running: Running::Up,
            freshness: Freshness::Verified,
            index,
            is_heard_only: false,
            digest: None,
            lag_ms: None,
        }
    }

    /// Its domain of a key.
    pub fn domain(&self, key: &str) -> Domain {
        Domain::of(key, &self.labels)
    }

    /// True when losing `domain` loses it.
    pub fn is_in(&self, domain: &Domain) -> bool {
        self.labels.get(&domain.key) == domain.value.as_ref()
    }
}

/// What is known of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// All copies.
    pub copies: Vec<Copy>,
    /// Voter configurations; two while voters change.
    pub configs: Vec<BTreeSet<u64>>,
    /// Who leads; `None` = nobody, or not known.
    pub leader: Option<u64>,
    /// Last committed entry, from a leader that a quorum confirmed lately; `None` = not known.
    pub commit_index: Option<u64>,
    /// The archive that holds another history, if one was seen.
    pub lineage_fork: Option<Fork>,
    /// Collections of which a restore still holds large payloads back.
    pub restoring: Vec<String>,
}

/// An archive that holds another history than the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// Name of the destination.
    pub destination: String,
    /// What was seen.
    pub evidence: String,
}

impl Facts {
    /// The voters' copies.
    pub fn voters(&self) -> impl Iterator<Item = &Copy> {
        self.copies.iter().filter(|copy| copy.kind == Kind::Voter)
    }

    /// True when these nodes are a majority of every voter configuration.
    pub(crate) fn is_quorum(&self, nodes: &BTreeSet<u64>) -> bool {
        !self.configs.is_empty()
            && self.configs.iter().all(|config| config.intersection(nodes).count() * 2 > config.len())
    }
}
