//! Verifications: what somebody found who read a history's archive, signed and laid down beside it.
//!
//! That a copy was written proves little: bytes rot, keys are lost, and what nobody ever restored may not be restorable. So a
//! copy counts for as long as somebody, lately, found it good.
//!
//! | level | what was done |
//! |---|---|
//! | `stored` | names, lengths and manifests were looked at |
//! | `read` | every byte, hash and chain was checked |
//! | `proved` | and a majority of the voters signed the newest snapshot's rows, so that they are those of the replicas |
//! | `drilled` | and it was restored into nodes of its own, which served what the archive holds |
//!
//! Source: design page "archive" (verified has four levels, drills).

use bytes::Bytes;
use futures::StreamExt;
use holdfast_model::id::GroupId;
use serde::{Deserialize, Serialize};

use crate::destination::{Destination, Listed, Put};
use crate::error::ArchiveError;
use crate::evidence::{self, Link, VerifierKey, first8, newest_of_each};
use crate::layout::{LineageId, ObjectName, hex};
use crate::verify::VerifyReport;

const KIND: &str = "verification";
/// Faults told in a verification; their number tells of the others.
pub const FAULTS_TOLD_MAX: usize = 20;
const READS_MAX: usize = 8;
/// What a restore takes is told by so many drills at most.
const DRILLS_MAX: usize = 5;
/// They are looked for among so many verifications: there is one a day, and a drill a week, from each who verifies.
const DRILLS_LOOKED_FOR_AMONG: usize = 64;

/// How much was looked at. Ordered: more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// Names and lengths.
    Stored,
    /// Every byte.
    Read,
    /// Against what a majority of the voters signed.
    Proved,
    /// By a restore.
    Drilled,
}

impl Depth {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Read => "read",
            Self::Proved => "proved",
            Self::Drilled => "drilled",
        }
    }

    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Stored, Self::Read, Self::Proved, Self::Drilled].into_iter().find(|depth| depth.as_str() == text)
    }
}

impl std::fmt::Display for Depth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Object, or step of a drill.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A snapshot that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenSnapshot {
    /// Last entry in it.
    pub index: u64,
    /// Hash over its rows, in hex.
    pub root: String,
    /// Hash that ends its manifest, in hex.
    pub seal: String,
}

/// What a restore had to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreWork {
    /// Stored bytes of the snapshot.
    pub snapshot_bytes: u64,
    /// The same, plain.
    pub plain_bytes: u64,
    /// Records in it.
    pub records: u64,
    /// It was put together from a base and layers.
    pub layered: bool,
    /// Stored bytes of the log.
    pub log_bytes: u64,
    /// Entries that were replayed.
    pub entries: u64,
    /// Changes in them, about.
    pub changes: u64,
    /// Directories that were filled.
    pub directories: u64,
    /// Processors of the machine.
    pub processors: u64,
}

/// What a drill took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillTimes {
    /// Nodes that were filled.
    pub nodes: usize,
    /// From the first byte read to directories that open, in milliseconds.
    pub restore_ms: u64,
    /// Of it: reading and checking, loading the snapshot, replaying the log.
    pub verify_ms: u64,
    /// See `verify_ms`.
    pub load_ms: u64,
    /// See `verify_ms`.
    pub replay_ms: u64,
    /// What was done in that time, for who asks how long the next restore takes; `None` = nobody wrote it down.
    #[serde(default)]
    pub work: Option<RestoreWork>,
    /// From there until every node answered a linearizable read.
    pub ready_ms: u64,
    /// Records that were restored.
    pub records: u64,
    /// Log entries that were replayed.
    pub entries: u64,
    /// People whose records were read from the nodes and compared with the archive.
    pub people_read: u64,
    /// Records of theirs.
    pub records_read: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Version of this form.
    pub v: u32,
    /// `verification`.
    pub kind: String,
    /// History.
    pub lineage: String,
    /// Group.
    pub group: u32,
    /// The vault that was read, by its name in the configuration of the nodes: these words lie beside the archive that it was pulled
    /// out of, where the cluster finds them. `None` = what was read is the archive that they lie beside.
    #[serde(default)]
    pub vault: Option<String>,
    /// What was done, or tried.
    pub level: Depth,
    /// Nothing was found to be wrong.
    pub good: bool,
    /// When it began, by the clock of whoever did it: milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    /// Newest snapshot; `None` = there is none, or it could not be read.
    pub snapshot_index: Option<u64>,
    /// Snapshots whose every byte was read, that a majority of the voters vouches for; ascending. Of none else it says anything.
    #[serde(default)]
    pub snapshots: Vec<SeenSnapshot>,
    /// Last entries of the parts of the log that were never shipped: from there on a snapshot stands in for it.
    #[serde(default)]
    pub gap_ends: Vec<u64>,
    /// Last entry of the log; `None` = it could not be told.
    pub last_index: Option<u64>,
    /// Objects that were looked at.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How many faults were found.
    pub fault_count: u64,
    /// The first of them.
    pub faults: Vec<Fault>,
    /// Of a drill.
    pub drill: Option<DrillTimes>,
    /// The newest words of everybody who spoke here before: what is taken away later is missed.
    #[serde(default)]
    pub after: Vec<Link>,
    /// Version of the program.
    pub program: String,
}

impl Verification {
    /// One that found nothing yet.
    pub fn new(lineage: &LineageId, group: GroupId, level: Depth, began_ms: u64) -> Self {
        Self {
            v: 1,
            kind: KIND.into(),
            lineage: lineage.to_string(),
            group: group.0,
            vault: None,
            level,
            good: true,
            began_ms,
            ended_ms: began_ms,
            snapshot_index: None,
            snapshots: Vec::new(),
            gap_ends: Vec::new(),
            last_index: None,
            objects: 0,
            bytes: 0,
            fault_count: 0,
            faults: Vec::new(),
            drill: None,
            after: Vec::new(),
            program: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Takes over what was seen of a history.
    pub fn take(&mut self, report: &VerifyReport) {
        let group = GroupId(self.group);
        (self.objects, self.bytes) = (self.objects + report.objects, self.bytes + report.bytes);
        let seen = report.snapshots.get(&group).map(Vec::as_slice).unwrap_or_default();
        self.snapshot_index = seen.last().map(|newest| newest.index);
        let vouched = seen.iter().filter(|one| one.is_attested);
        self.snapshots =
            vouched.map(|one| SeenSnapshot { index: one.index, root: hex(&one.root), seal: hex(&one.seal) }).collect();
        self.gap_ends = report.gaps.iter().filter(|gap| gap.group == group).map(|gap| gap.last.index).collect();
        self.last_index = report.log.get(&group).map(|(_, last)| *last);
    }

    /// What a drill took, and for what.
    pub fn timed(&self) -> Option<(&DrillTimes, &RestoreWork)> {
        let times = self.drill.as_ref()?;
        Some((times, times.work.as_ref()?))
    }

    /// Notes a fault.
    pub fn fault(&mut self, object: impl Into<String>, reason: impl Into<String>) {
        self.good = false;
        self.fault_count += 1;
        if self.faults.len() < FAULTS_TOLD_MAX {
            self.faults.push(Fault { object: object.into(), reason: reason.into() });
        }
    }

    /// The first thing that is wrong, in words.
    pub fn why(&self) -> Option<String> {
        let first = self.faults.first()?;
        let more = match self.fault_count {
            0 | 1 => String::new(),
            some => format!(", and {} more", some - 1),
        };
        Some(format!("{}: {}{more}", first.object, first.reason))
    }

    /// Name and bytes of the object that says so, behind what was said at a destination before.
    ///
    /// # Errors
    /// When the destination fails, or it cannot be written down.
    pub async fn seal(
        &self,
        destination: &Destination,
        lineage: &LineageId,
        key: &VerifierKey,
    ) -> Result<(String, Bytes), ArchiveError> {
        let (group, public) = (GroupId(self.group), key.public());
        let key8 = first8(&public);
        let object = ObjectName::Verification { group, at_ms: self.ended_ms, key: key8 }.path(lineage);
        // Words of a vault go beside another archive: what was said there before is not known here.
        let after = match self.vault {
            Some(_) => Vec::new(),
            None => newest_of_each(destination, &lineage.verify_prefix(group), &object, &public).await?,
        };
        let bytes = evidence::sign(&object, key, &Self { after, ..self.clone() })?;
        Ok((object, bytes))
    }

    /// Lays it down behind what was said before; gives its name.
    ///
    /// # Errors
    /// When the destination fails or refuses it.
    pub async fn record(
        &self,
        destination: &Destination,
        lineage: &LineageId,
        key: &VerifierKey,
    ) -> Result<String, ArchiveError> {
        let (object, bytes) = self.seal(destination, lineage, key).await?;
        match destination.put_checked(&object, &bytes).await? {
            Put::Created | Put::Same => Ok(object),
            Put::Lost(_) => Err(ArchiveError::corrupt(&object, "another verification lies in its place")),
        }
    }

    /// Reads one that lies under its name, and the key that signed it.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn open(object: &str, bytes: &Bytes) -> Result<(Self, [u8; 32]), ArchiveError> {
        let bad = |reason: &str| ArchiveError::corrupt(object, reason);
        let Some((lineage, ObjectName::Verification { group, at_ms, key: key8 })) = ObjectName::parse(object) else {
            return Err(bad("no verification has such a name"));
        };
        let (found, key) = evidence::open::<Self>(object, bytes)?;
        if (found.v, found.kind.as_str()) != (1, KIND) {
            return Err(bad("it is of a kind that a newer build writes"));
        }
        let is_of_it = found.lineage == lineage.to_string() && found.group == group.0;
        if !is_of_it || found.ended_ms != at_ms || key[..8] != key8 {
            return Err(bad("it is of another history, of another moment or by another key than its name says"));
        }
        if found.good != (found.fault_count == 0) || found.faults.len() as u64 > found.fault_count {
            return Err(bad("it contradicts itself"));
        }
        Ok((found, key))
    }
}

/// A verification that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its object.
    pub object: String,
    /// The key that signed it.
    pub key: [u8; 32],
    /// What it says.
    pub found: Verification,
}

/// All verifications of a history that lie behind `after` (all of them without one), ascending by their time; and objects
/// that are damaged, with the reason.
///
/// # Errors
/// When the destination fails.
pub async fn verifications(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    after: Option<&str>,
) -> Result<(Vec<Recorded>, Vec<(String, String)>), ArchiveError> {
    let prefix = lineage.verify_prefix(group);
    let listed = match after {
        Some(after) => destination.list_after(&prefix, after).await?,
        None => destination.list(&prefix).await?,
    };
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    let read = |one: Listed| async move { read_one(destination, &one.path).await };
    let mut reads = futures::stream::iter(listed).map(read).buffered(READS_MAX);
    while let Some(read) = reads.next().await {
        match read {
            Ok(one) => found.push(one),
            Err(error) => bad.push(error.fault().ok_or(error)?),
        }
    }
    Ok((found, bad))
}

/// The newest good drills that say what took how long, the newest first, as far as they are among the newest verifications.
/// Whose they are is not asked: an estimate goes by them, and nothing that counts.
///
/// # Errors
/// When the destination fails.
pub async fn newest_drills(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
) -> Result<Vec<Recorded>, ArchiveError> {
    let listed = destination.list(&lineage.verify_prefix(group)).await?;
    let newest = listed.into_iter().rev().take(DRILLS_LOOKED_FOR_AMONG);
    let mut reads = futures::stream::iter(newest)
        .map(|one: Listed| async move { read_one(destination, &one.path).await })
        .buffered(READS_MAX);
    let mut drills = Vec::new();
    while let Some(read) = reads.next().await {
        match read {
            Ok(one) if one.found.good && one.found.vault.is_none() && one.found.timed().is_some() => drills.push(one),
            Ok(_) => {}
            Err(error) if error.fault().is_some() => {}
            Err(error) => return Err(error),
        }
        if drills.len() == DRILLS_MAX {
            break;
        }
    }
    Ok(drills)
}

/// Reads a verification by its name.
///
/// # Errors
/// `Corrupt` when it is none.
pub async fn read_one(destination: &Destination, object: &str) -> Result<Recorded, ArchiveError> {
    let (found, key) = Verification::open(object, &destination.get(object).await?)?;
    Ok(Recorded { object: object.to_owned(), key, found })
}

#[cfg(test)]
mod tests;
