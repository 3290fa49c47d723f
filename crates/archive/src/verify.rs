//! Verification: is everything there that should be, and is it what it says?
//!
//! Invariants:
//! - Nothing stops at the first fault: every object is looked at, and each fault names its object.
//! - Level 1 reads every byte, follows the entry chain from the first segment to the last, and compares it with the
//!   chain in each snapshot. Of each base, its newest snapshot is put together out of all its layers, and must have the
//!   rows that its manifest names.
//! - Without a key, all is checked that can be: hash, owner and length of every object. How many could not be opened is
//!   told, and what they hold is not vouched for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_model::id::{GroupId, NodeId};

use crate::chunk::Chunk;
use crate::compose::read_rows;
use crate::destination::{Destination, Listed};
use crate::doctor::Finding;
use crate::error::ArchiveError;
use crate::gap::Gap;
use crate::heartbeat::Heartbeat;
use crate::keys::{Keyring, NO_KEYS, OTHER_KEYS, SealedWith, check_keys_age};
use crate::layout::{DOCTOR, DoctorVisit, LineageId, ObjectName, is_canary};
use crate::lineage::{LineageFacts, find_lineages};
use crate::log::JOINED_LEVEL;
use crate::manifest::Manifest;
use crate::object;
use crate::segment::{ChainWalk, Segment};
use crate::tombstone::{Pruned, Tombstone};
use crate::verification::Verification;

pub(crate) use self::positions::Held;
use self::positions::Position;

const READS_MAX: usize = 4;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Names, presence and lengths; facts and manifests are read.
    Presence,
    /// Every byte is read and hashed, every chain followed.
    Bytes,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerifyReport {
    /// Objects looked at.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that are encrypted, and could not be opened with the keys that were given.
    pub locked: u64,
    /// Objects that are wrong, with the reason, by name.
    pub bad: Vec<(String, String)>,
    /// First and last index of the log that was read, by group. It may begin late in a destination that was added
    /// late, if a snapshot reaches up to there.
    pub log: BTreeMap<GroupId, (u64, u64)>,
    /// Parts of the log that were never shipped, and that a snapshot stands in for.
    pub gaps: Vec<Gap>,
    /// Segments that are damaged, and were shipped again beside themselves: nothing is lost with them.
    pub repaired: Vec<String>,
    /// Snapshots that a majority of their voters vouches for.
    pub attested: u64,
    /// Snapshots that are whole as far as this level tells, and that no majority vouches for.
    pub unattested: u64,
    /// History that it continues.
    pub parent: Option<LineageId>,
    /// Snapshots of each group, ascending.
    pub snapshots: BTreeMap<GroupId, Vec<SnapshotSeen>>,
}

/// A snapshot that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotSeen {
    /// Last entry in it.
    pub index: u64,
    /// A majority of the voters vouches for it.
    pub is_attested: bool,
    /// Hash over its rows.
    pub root: [u8; 32],
    /// Hash that ends its manifest.
    pub seal: [u8; 32],
}

impl VerifyReport {
    /// Nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.bad.is_empty()
    }

    fn fault(&mut self, object: impl Into<String>, reason: impl Into<String>) {
        self.bad.push((object.into(), reason.into()));
    }

    /// Notes a fault of the archive; gives back a failure to look.
    fn note(&mut self, error: ArchiveError) -> Result<(), ArchiveError> {
        match error.fault() {
            Some((object, reason)) => {
                self.fault(object, reason);
                Ok(())
            }
            None => Err(error),
        }
    }
}

/// What was found in a whole destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DestinationReport {
    /// Histories with objects there, those with damaged facts among them.
    pub lineages: usize,
    /// Objects looked at.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that are encrypted, and could not be opened with the keys that were given.
    pub locked: u64,
    /// Objects that are wrong, and what is nothing of Holdfast's, with the reason, by name.
    pub bad: Vec<(String, String)>,
    /// Parts of a log that were never shipped, by history, and that a snapshot stands in for.
    pub gaps: Vec<(LineageId, Gap)>,
    /// Segments that are damaged, and were shipped again beside themselves.
    pub repaired: Vec<String>,
    /// Snapshots that a majority of their voters vouches for.
    pub attested: u64,
    /// Snapshots that are whole as far as this level tells, and that no majority vouches for.
    pub unattested: u64,
    /// What was found of each history, but for its faults: those are above.
    pub each: Vec<(LineageId, VerifyReport)>,
}

/// Looks at every object of every history in a destination, and names what else lies there.
///
/// # Errors
/// Only when the destination fails; what is wrong with objects is in the report.
pub async fn verify_all(destination: &Destination, level: Level) -> Result<DestinationReport, ArchiveError> {
    let found = find_lineages(destination).await?;
    let ids = found.lineages.iter().map(|facts| facts.id).chain(found.bad.iter().map(|(id, _)| *id));
    let mut all = DestinationReport::default();
    for id in ids {
        let mut report = verify(destination, &id, level).await?;
        all.lineages += 1;
        all.objects += report.objects;
        all.bytes += report.bytes;
        all.locked += report.locked;
        all.bad.append(&mut report.bad);
        all.gaps.extend(report.gaps.iter().map(|gap| (id, *gap)));
        all.repaired.extend(report.repaired.iter().cloned());
        all.attested += report.attested;
        all.unattested += report.unattested;
        all.each.push((id, report));
    }
    look_at_visits(destination, level, &mut all).await?;
    all.bad.extend(found.foreign.into_iter().map(|name| (name, "it is nothing of Holdfast's".to_owned())));
    all.bad.sort();
    Ok(all)
}

/// What doctors left: verdicts must be as they were signed, canaries may be in any state.
async fn look_at_visits(
    destination: &Destination,
    level: Level,
    all: &mut DestinationReport,
) -> Result<(), ArchiveError> {
    for found in destination.list(DOCTOR).await? {
        all.objects += 1;
        if is_canary(&found.path) {
            continue;
        }
        if DoctorVisit::of_verdict(&found.path).is_none() {
            all.bad.push((found.path, "it is nothing of Holdfast's".to_owned()));
        } else if level == Level::Bytes {
            all.bytes += found.bytes;
            let read = destination.get(&found.path).await.and_then(|bytes| Finding::open(&found.path, &bytes));
            if let Err(error) = read {
                all.bad.push(error.fault().ok_or(error)?);
            }
        }
    }
    Ok(())
}

/// What was read of one group.
#[derive(Debug, Default)]
struct Group {
    manifests: BTreeMap<u64, (Manifest, [u8; 32])>,
    /// Heartbeats by the entry and the chain that they name; of those that say the same, one.
    vouched: BTreeMap<(u64, [u8; 32]), Heartbeat>,
    /// Where the log has been followed to.
    walk: Option<ChainWalk>,
    /// Objects that join segments, with their entry chain before this entry: their first, and the one behind their last.
    joined: BTreeMap<u64, Vec<(String, [u8; 32])>>,
    /// What was read of the position that comes next; its repairs follow it.
    position: Option<Position>,
    /// The segment before could not be read: that is one fault, not one more for what follows it.
    broken: bool,
}

/// Looks at every object of a lineage.
///
/// # Errors
/// Only when the destination fails; what is wrong with objects is in the report.
pub async fn verify(
    destination: &Destination,
    lineage: &LineageId,
    level: Level,
) -> Result<VerifyReport, ArchiveError> {
    let vouching = vouching_names(destination, lineage).await?;
    let listed = settled(&vouching, destination.list(&lineage.to_string()).await?);
    let mut report = VerifyReport { objects: listed.len() as u64, ..VerifyReport::default() };
    let mut check = Check { destination, lineage, level, facts: None, groups: BTreeMap::new(), keys: BTreeMap::new() };
    let mut named = Vec::new();
    for found in &listed {
        match ObjectName::parse(&found.path) {
            Some((_, ObjectName::Joined { level, .. })) if level != JOINED_LEVEL => {
                report.fault(&found.path, "it is of a kind that a newer build writes")
            }
            Some((_, name)) => named.push((name, found)),
            None => report.fault(&found.path, "it is no object of Holdfast"),
        }
    }
    if !named.iter().any(|(name, _)| *name == ObjectName::Lineage) {
        report.fault(ObjectName::Lineage.path(lineage), "every lineage begins with it");
    }
    // Facts first, then manifests: they say what the others should be.
    named.sort_by_key(|(name, _)| match name {
        ObjectName::Lineage | ObjectName::Keys { .. } => (0, *name),
        ObjectName::Manifest { .. } | ObjectName::Heartbeat { .. } | ObjectName::Joined { .. } => (1, *name),
        ObjectName::Segment { .. }
        | ObjectName::Chunk { .. }
        | ObjectName::Patch { .. }
        | ObjectName::Verification { .. }
        | ObjectName::Tombstone { .. }
        | ObjectName::Pruned { .. } => (2, *name),
    });
    check.read_all(&named, &mut report).await?;
    report.parent = check.facts.as_ref().and_then(LineageFacts::parent_id);
    check.compare(&listed, &mut report)?;
    if level == Level::Bytes {
        check.compose(&mut report).await?;
    }
    report.bad.sort();
    report.bad.dedup();
    Ok(report)
}

/// What says of other objects that they are there.
fn vouches(name: &ObjectName) -> bool {
    matches!(name, ObjectName::Manifest { .. } | ObjectName::Heartbeat { .. } | ObjectName::Joined { .. })
}

/// Objects that vouch for others, as they are before everything is listed.
async fn vouching_names(destination: &Destination, lineage: &LineageId) -> Result<BTreeSet<String>, ArchiveError> {
    let mut names = BTreeSet::new();
    let mut parts = vec![format!("{lineage}/snap"), format!("{lineage}/heartbeat")];
    // Not the segments themselves, which are many and vouch for nothing.
    for group in destination.list_here(&format!("{lineage}/log")).await?.1 {
        let levels = destination.list_here(&format!("{lineage}/log/{group}")).await?.1;
        parts
            .extend(levels.iter().filter(|level| *level != "L0").map(|level| format!("{lineage}/log/{group}/{level}")));
    }
    for part in parts {
        names.extend(destination.list(&part).await?.into_iter().map(|found| found.path));
    }
    Ok(names)
}

/// Archives grow while they are listed, and no list is of one moment: what vouches for others and came meanwhile may name
/// objects that a list passed over, and is left to the next look.
fn settled(vouching: &BTreeSet<String>, mut listed: Vec<Listed>) -> Vec<Listed> {
    listed.retain(|found| {
        let is_vouching = ObjectName::parse(&found.path).is_some_and(|(_, name)| vouches(&name));
        !is_vouching || vouching.contains(&found.path)
    });
    listed
}

struct Check<'a> {
    destination: &'a Destination,
    lineage: &'a LineageId,
    level: Level,
    facts: Option<LineageFacts>,
    groups: BTreeMap<GroupId, Group>,
    /// Hash of each KEYS.age that is there, by generation.
    keys: BTreeMap<u32, [u8; 32]>,
}

impl Check<'_> {
    async fn read_all(
        &mut self,
        named: &[(ObjectName, &Listed)],
        report: &mut VerifyReport,
    ) -> Result<(), ArchiveError> {
        let level = self.level;
        let wanted = named.iter().filter(move |(name, _)| match name {
            ObjectName::Lineage | ObjectName::Keys { .. } | ObjectName::Manifest { .. } => true,
            ObjectName::Segment { .. }
            | ObjectName::Joined { .. }
            | ObjectName::Chunk { .. }
            | ObjectName::Patch { .. }
            | ObjectName::Heartbeat { .. }
            | ObjectName::Verification { .. }
            | ObjectName::Tombstone { .. }
            | ObjectName::Pruned { .. } => level >= Level::Bytes,
        });
        let (destination, lineage) = (self.destination, *self.lineage);
        let read = |(name, found): &(ObjectName, &Listed)| {
            let (name, object) = (*name, found.path.clone());
            async move { read_one(destination, lineage, name, object).await }
        };
        let mut reads = futures::stream::iter(wanted).map(read).buffered(READS_MAX);
        while let Some(read) = reads.next().await {
            report.bytes += read.bytes;
            self.check_keys(&read, report);
            match (read.contents, read.name) {
                (Ok(Contents::Log(held)), ObjectName::Segment { group, first, .. }) => {
                    self.position(group, first, report)?.held.push((read.object, held));
                }
                (Ok(contents), _) => self.take(&read.object, contents),
                (Err(ArchiveError::NoKey { .. }), name) => {
                    report.locked += 1;
                    if let ObjectName::Segment { group, first, .. } = name {
                        self.position(group, first, report)?;
                    }
                }
                (Err(error), ObjectName::Segment { group, first, .. }) => {
                    let fault = error.fault().ok_or(error)?;
                    self.position(group, first, report)?.damaged.push(fault);
                }
                (Err(error), _) => report.note(error)?,
            }
        }
        for group in self.groups.keys().copied().collect::<Vec<_>>() {
            self.settle(group, report)?;
        }
        Ok(())
    }

    /// The KEYS.age that an object was sealed with must be there, and the same.
    fn check_keys(&self, read: &Read, report: &mut VerifyReport) {
        // What a damaged object says of its key is not believed.
        if !matches!(read.contents, Ok(_) | Err(ArchiveError::NoKey { .. })) {
            return;
        }
        let Some(sealed) = &read.sealed_with else { return };
        // One of another history is at fault itself.
        if sealed.lineage != *self.lineage {
            return;
        }
        match self.keys.get(&sealed.generation) {
            Some(hash) if *hash == sealed.keys_blake3 => {}
            Some(_) => report.fault(sealed.keys_object(), OTHER_KEYS),
            None => report.fault(sealed.keys_object(), NO_KEYS),
        }
    }

    fn take(&mut self, object: &str, contents: Contents) {
        match contents {
            Contents::Facts(facts) => self.facts = Some(facts),
            Contents::Manifest(manifest, seal) => {
                let group = self.groups.entry(manifest.group).or_default();
                group.manifests.insert(manifest.applied.index, (*manifest, seal));
            }
            Contents::Heartbeat(heartbeat) => {
                let group = self.groups.entry(heartbeat.group).or_default();
                group.vouched.insert((heartbeat.last.index, heartbeat.chain), heartbeat);
            }
            Contents::Rows | Contents::Log(_) | Contents::Said => {}
            Contents::Joined(joined) => {
                let group = self.groups.entry(joined.group).or_default();
                let places = [
                    (joined.first().index, joined.chain_before),
                    (joined.last().index.saturating_add(1), joined.chain_after),
                ];
                for (next, chain) in places {
                    group.joined.entry(next).or_default().push((object.to_owned(), chain));
                }
            }
            Contents::Keys(generation, hash) => {
                self.keys.insert(generation, hash);
            }
        }
    }

    /// What manifests name must be there, with the length that they name.
    fn compare(&self, listed: &[Listed], report: &mut VerifyReport) -> Result<(), ArchiveError> {
        let lengths: BTreeMap<&str, u64> = listed.iter().map(|found| (found.path.as_str(), found.bytes)).collect();
        let mut seen = BTreeSet::new();
        for (manifest, _) in self.groups.values().flat_map(|group| group.manifests.values()) {
            let user = manifest.name().path(self.lineage);
            for (name, line) in manifest.objects() {
                let object = name.path(self.lineage);
                match lengths.get(object.as_str()) {
                    _ if !seen.insert(object.clone()) => {}
                    None => report.fault(object, format!("{user} names it and it is missing")),
                    Some(length) if *length != line.stored_length => {
                        report.fault(object, format!("it has {length} bytes, not {}", line.stored_length));
                    }
                    Some(_) => {}
                }
            }
        }
        for group in self.groups.values() {
            // What was read and does not open may hold it.
            let last = group.walk.filter(|_| !group.broken).and_then(|walk| walk.next.checked_sub(1));
            let furthest = group.vouched.last_key_value().map(|(_, heartbeat)| heartbeat);
            if let Some((last, heartbeat)) = last.zip(furthest)
                && let Err(error) = heartbeat.check_end(self.lineage, last)
            {
                report.note(error)?;
            }
        }
        for group in self.groups.values() {
            for (manifest, _) in group.manifests.values() {
                let Some(previous) = manifest.previous else { continue };
                let found = group.manifests.get(&previous.index);
                if found.is_some_and(|(_, seal)| *seal != previous.seal) {
                    let object = manifest.name().path(self.lineage);
                    report.fault(object, format!("it continues another snapshot at index {}", previous.index));
                }
            }
        }
        self.compare_witnesses(report);
        self.note_snapshots(report);
        Ok(())
    }

    fn note_snapshots(&self, report: &mut VerifyReport) {
        for (group, found) in self.groups.iter().filter(|(_, found)| !found.manifests.is_empty()) {
            let seen = found.manifests.iter().map(|(index, (manifest, seal))| {
                let (is_attested, root) = (manifest.is_attested(), manifest.root());
                SnapshotSeen { index: *index, is_attested, root, seal: *seal }
            });
            report.snapshots.insert(*group, seen.collect());
        }
    }

    /// A node has one key in a history. Which of two is its own cannot be told from here.
    fn compare_witnesses(&self, report: &mut VerifyReport) {
        let mut keys: BTreeMap<NodeId, ([u8; 32], u64)> = BTreeMap::new();
        for (manifest, _) in self.groups.values().flat_map(|group| group.manifests.values()) {
            *(if manifest.is_attested() { &mut report.attested } else { &mut report.unattested }) += 1;
            for witness in &manifest.witnesses {
                let (key, first) = *keys.entry(witness.node).or_insert((witness.key, manifest.applied.index));
                if key != witness.key {
                    let object = manifest.name().path(self.lineage);
                    let node = witness.node.0;
                    report.fault(
                        object,
                        format!("node {node} signed it with another key than the snapshot at index {first}"),
                    );
                }
            }
        }
    }

    /// Puts the newest snapshot over each base together, where no object of it was found to be wrong.
    async fn compose(&self, report: &mut VerifyReport) -> Result<(), ArchiveError> {
        if report.locked > 0 {
            return Ok(());
        }
        let bad: BTreeSet<String> = report.bad.iter().map(|(object, _)| object.clone()).collect();
        for group in self.groups.values() {
            // Ascending: a later one replaces an earlier one over the same base.
            let newest: BTreeMap<u64, &Manifest> =
                group.manifests.values().map(|(manifest, _)| (manifest.base_index, manifest)).collect();
            for manifest in newest.into_values().filter(|manifest| !manifest.layers.is_empty()) {
                if manifest.objects().any(|(name, _)| bad.contains(&name.path(self.lineage))) {
                    continue;
                }
                let mut rows = read_rows(self.destination, manifest);
                loop {
                    match rows.try_next().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => {
                            report.note(error)?;
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// What an object holds.
pub(crate) enum Contents {
    Facts(LineageFacts),
    Manifest(Box<Manifest>, [u8; 32]),
    /// At a position of the log.
    Log(Held),
    /// Of several.
    Joined(Segment),
    /// Of a chunk or a patch.
    Rows,
    Heartbeat(Heartbeat),
    /// By somebody who read the archive.
    Said,
    /// Hash of a generation's KEYS.age.
    Keys(u32, [u8; 32]),
}

/// An object that was looked at.
struct Read {
    name: ObjectName,
    object: String,
    bytes: u64,
    sealed_with: Option<SealedWith>,
    contents: Result<Contents, ArchiveError>,
}

async fn read_one(destination: &Destination, lineage: LineageId, name: ObjectName, object: String) -> Read {
    let (bytes, sealed_with, contents) = match destination.get(&object).await {
        Err(error) => (0, None, Err(error)),
        Ok(bytes) => {
            let (length, keys) = (bytes.len() as u64, destination.shared_keys());
            let sealed_with = object::sealed_with(&bytes);
            let named = object.clone();
            let checking = tokio::task::spawn_blocking(move || check(&named, &lineage, &keys, name, &bytes));
            let stopped = |_| Err(ArchiveError::Stopped { what: "checking an object" });
            (length, sealed_with, checking.await.unwrap_or_else(stopped))
        }
    };
    Read { name, object, bytes, sealed_with, contents }
}

pub(crate) fn check(
    object: &str,
    lineage: &LineageId,
    keys: &Keyring,
    name: ObjectName,
    bytes: &Bytes,
) -> Result<Contents, ArchiveError> {
    match name {
        ObjectName::Lineage => LineageFacts::open(object, lineage, bytes).map(Contents::Facts),
        ObjectName::Keys { generation } => {
            check_keys_age(object, bytes)?;
            Ok(Contents::Keys(generation, *blake3::hash(bytes).as_bytes()))
        }
        ObjectName::Manifest { group, index } => Manifest::open(object, lineage, keys, group, index, bytes)
            .map(|(manifest, seal)| Contents::Manifest(Box::new(manifest), seal)),
        ObjectName::Joined { .. } => Segment::open(object, lineage, keys, &name, bytes).map(Contents::Joined),
        ObjectName::Segment { .. } => {
            let held = match Segment::open(object, lineage, keys, &name, bytes) {
                Err(ArchiveError::Fenced { .. }) => Held::Fence,
                Err(ArchiveError::NotShipped { gap, .. }) => Held::Gap(*gap),
                opened => Held::Segment(opened?),
            };
            Ok(Contents::Log(held))
        }
        ObjectName::Heartbeat { group, at_ms } => {
            Heartbeat::open(object, lineage, keys, group, at_ms, bytes).map(Contents::Heartbeat)
        }
        ObjectName::Verification { .. } => Verification::open(object, bytes).map(|_| Contents::Said),
        ObjectName::Tombstone { .. } => Tombstone::open(object, bytes).map(|_| Contents::Said),
        ObjectName::Pruned { .. } => Pruned::open(object, bytes).map(|_| Contents::Said),
        ObjectName::Chunk { .. } | ObjectName::Patch { .. } => {
            Chunk::open(object, lineage, keys, name, bytes).map(|_| Contents::Rows)
        }
    }
}

mod positions;
#[cfg(test)]
mod tests;
