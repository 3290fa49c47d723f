//! Pruning: what [`crate::retention`] lets go is marked, and deleted days later, by somebody who may.
//!
//! ```text
//! look ──> judge ──> plan ──> marks what may go (a tombstone)
//!                         └─> deletes what was marked long enough, and may still go
//! ```
//!
//! Invariants:
//! - Nothing is deleted in the run that marks it, nor before its grace ended by the clock of whoever prunes *and* by that of the
//!   destination, as the newest of its objects tells it.
//! - Only marks by keys that are trusted count, only for the very manifest that they name, and only as long as nothing spared it
//!   since. What cannot be read of what people said counts for nothing: anybody can lay it there.
//! - A manifest goes before anything that it names; what another manifest names stays. Chunks go from closed generations only:
//!   nothing is ever added to these, so that no snapshot under way can come to rely on what goes. What no manifest names at all,
//!   as a snapshot leaves it that never came to an end, goes like that without a mark once it is older than the grace.
//! - The log goes entry by entry from its beginning on, and no further than a lock lets it: what is left of it is whole.
//! - It ends at the first error; the next run goes on.
//!
//! The cluster has no part in this: its credentials create, read and list.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use futures::StreamExt;
use holdfast_model::id::{GroupId, Millis};

use crate::destination::{Destination, Listed, Removal, Remover};
use crate::error::ArchiveError;
use crate::evidence::VerifierKey;
use crate::layout::{LineageId, ObjectName, hex, unhex, week_of};
use crate::lineage::find_lineages;
use crate::manifest::Manifest;
use crate::retention::{DAY_MS, HOUR_MS, Holding, Judgement, Policy, Said, Taken};
use crate::tombstone::{Marked, Marks, Pruned, Tombstone, lay_down};
use crate::verification::{Depth, verifications};

/// Requests under way.
const CALLS_MAX: usize = 8;
/// Verifications of so many days are looked at.
const SAID_DAYS: u64 = 60;

/// Keys whose words are believed.
pub type Trusted = BTreeSet<[u8; 32]>;

/// All of one history at a destination, as it was found.
#[derive(Debug)]
pub struct Stock {
    /// What is judged.
    pub holding: Holding,
    /// Name of its cluster; `None` = the facts do not open.
    pub cluster_name: Option<String>,
    /// Keys that are not trusted, and that spoke here.
    pub strangers: Trusted,
    /// What the destination's clock said last.
    pub server_ms: u64,
    group: GroupId,
    manifests: BTreeMap<u64, Manifest>,
    /// Every object, and when it was stored.
    listed: Vec<(Listed, u64)>,
    marks: Marks,
}

impl Stock {
    fn id(&self) -> LineageId {
        self.holding.id
    }

    /// What stays, when it was stored: manifests that are kept and what they name, facts, keys, and the log behind its cut.
    pub(crate) fn needed(&self, judged: &Judgement) -> Vec<(String, u64)> {
        let id = self.id();
        let kept = self.manifests.iter().filter(|(index, _)| judged.kept.contains_key(&(id, **index)));
        let rows: BTreeSet<ObjectName> =
            kept.flat_map(|(_, manifest)| manifest.objects().map(|(name, _)| name).chain([manifest.name()])).collect();
        let through = judged.log_through.get(&id).copied();
        let cut = through.into_iter().flat_map(|through| segments(self, through).chain(beside_segments(self, through)));
        let cut: BTreeSet<String> = cut.map(|(path, _)| path).collect();
        let stays = self.names().filter(|(name, found, _)| match name {
            ObjectName::Lineage | ObjectName::Keys { .. } => true,
            ObjectName::Manifest { .. } | ObjectName::Chunk { .. } | ObjectName::Patch { .. } => rows.contains(name),
            ObjectName::Segment { .. } | ObjectName::Joined { .. } | ObjectName::Heartbeat { .. } => {
                !cut.contains(&found.path)
            }
            ObjectName::Verification { .. } | ObjectName::Tombstone { .. } | ObjectName::Pruned { .. } => true,
        });
        stays.map(|(_, found, stored_ms)| (found.path.clone(), stored_ms)).collect()
    }

    fn names(&self) -> impl Iterator<Item = (ObjectName, &Listed, u64)> {
        let parsed =
            |(found, stored_ms): &'_ (Listed, u64)| ObjectName::parse(&found.path).map(|(_, name)| (name, *stored_ms));
        self.listed.iter().filter_map(move |one| parsed(one).map(|(name, stored_ms)| (name, &one.0, stored_ms)))
    }
}

/// Looks at every history at a destination.
///
/// # Errors
/// When the destination fails, or holds what the keys that were given do not open: what is not known is not judged.
pub async fn look(
    destination: &Destination,
    group: GroupId,
    trusted: &Trusted,
    now_ms: u64,
) -> Result<Vec<Stock>, ArchiveError> {
    let found = find_lineages(destination).await?;
    let mut stocks = Vec::new();
    for facts in &found.lineages {
        let parent = facts.parent_id().zip(facts.parent.as_ref().map(|parent| parent.index));
        let mut stock = look_at(destination, &facts.id, group, trusted, now_ms).await?;
        (stock.holding.parent, stock.cluster_name) = (parent, Some(facts.cluster_name.clone()));
        stocks.push(stock);
    }
    for (id, error) in found.bad {
        let mut stock = look_at(destination, &id, group, trusted, now_ms).await?;
        stock.holding.damaged.extend(error.fault());
        stocks.push(stock);
    }
    // The destination has one clock: a history that ended is told the time by those that go on.
    let server_ms = stocks.iter().map(|stock| stock.server_ms).max().unwrap_or(0);
    stocks.iter_mut().for_each(|stock| stock.server_ms = server_ms);
    Ok(stocks)
}

async fn look_at(
    destination: &Destination,
    id: &LineageId,
    group: GroupId,
    trusted: &Trusted,
    now_ms: u64,
) -> Result<Stock, ArchiveError> {
    // Manifests before the objects they name: what is listed first grows no references that the other list has not.
    let manifests = destination.list_dated(&id.snapshot_prefix(group)).await?;
    let listed = destination.list_dated(&id.to_string()).await?;
    let holding = Holding {
        id: *id,
        parent: None,
        taken: Vec::new(),
        proved: Vec::new(),
        failed: None,
        buried: BTreeSet::new(),
        buried_by_strangers: BTreeSet::new(),
        log_first: None,
        damaged: Vec::new(),
    };
    let mut stock = Stock {
        holding,
        cluster_name: None,
        strangers: Trusted::new(),
        server_ms: listed.iter().map(|(_, stored_ms)| *stored_ms).max().unwrap_or(0),
        group,
        manifests: BTreeMap::new(),
        listed,
        marks: Marks::default(),
    };
    let firsts = stock.names().filter_map(|(name, ..)| match name {
        ObjectName::Segment { group: of, first, .. } | ObjectName::Joined { group: of, first, .. } if of == group => {
            Some(first)
        }
        _ => None,
    });
    stock.holding.log_first = firsts.min();
    read_manifests(destination, &mut stock, manifests).await?;
    read_marks(destination, &mut stock, trusted).await?;
    read_said(destination, &mut stock, trusted, now_ms).await?;
    Ok(stock)
}

async fn read_manifests(
    destination: &Destination,
    stock: &mut Stock,
    listed: Vec<(Listed, u64)>,
) -> Result<(), ArchiveError> {
    let (id, group) = (stock.id(), stock.group);
    let read = |(found, stored_ms): (Listed, u64)| async move {
        let Some((_, ObjectName::Manifest { index, .. })) = ObjectName::parse(&found.path) else { return None };
        let bytes = destination.get(&found.path).await;
        let opened = bytes.and_then(|bytes| Manifest::open(&found.path, &id, destination.keys(), group, index, &bytes));
        Some((stored_ms, opened))
    };
    let mut reads = futures::stream::iter(listed).map(read).buffered(CALLS_MAX);
    while let Some(read) = reads.next().await {
        let Some((stored_ms, opened)) = read else { continue };
        match opened {
            Ok((manifest, seal)) => {
                stock.holding.taken.push(Taken {
                    index: manifest.applied.index,
                    time_ms: manifest.now.0,
                    stored_ms,
                    bytes: manifest.plain_length(),
                    records: manifest.records,
                    root: manifest.root(),
                    seal,
                    is_attested: manifest.is_attested(),
                    previous: manifest.previous.map(|previous| previous.index),
                    witnesses: manifest.witnesses.iter().map(|witness| (witness.node.0, witness.key)).collect(),
                });
                stock.manifests.insert(manifest.applied.index, manifest);
            }
            Err(error) => stock.holding.damaged.push(error.fault().ok_or(error)?),
        }
    }
    drop(reads);
    stock.holding.taken.sort_by_key(|taken| taken.index);
    let lengths: BTreeMap<&str, u64> =
        stock.listed.iter().map(|(found, _)| (found.path.as_str(), found.bytes)).collect();
    let mut damaged = BTreeMap::new();
    for manifest in stock.manifests.values() {
        for (name, line) in manifest.objects() {
            let object = name.path(&id);
            let reason = match lengths.get(object.as_str()) {
                Some(length) if *length == line.stored_length => continue,
                Some(length) => format!("it has {length} bytes, not {}", line.stored_length),
                None => format!("the snapshot at index {} needs it, and it is missing", manifest.applied.index),
            };
            damaged.insert(object, reason);
        }
    }
    stock.holding.damaged.extend(damaged);
    Ok(())
}

async fn read_marks(destination: &Destination, stock: &mut Stock, trusted: &Trusted) -> Result<(), ArchiveError> {
    let found: Vec<(String, u64)> = stock
        .names()
        .filter(|(name, ..)| matches!(name, ObjectName::Tombstone { group, .. } if *group == stock.group))
        .map(|(_, found, stored_ms)| (found.path.clone(), stored_ms))
        .collect();
    stock.marks = Marks::read(destination, found, trusted).await?;
    stock.holding.buried = stock.marks.buried();
    stock.holding.buried_by_strangers.clone_from(&stock.marks.by_strangers);
    stock.strangers.extend(&stock.marks.strangers);
    Ok(())
}

async fn read_said(
    destination: &Destination,
    stock: &mut Stock,
    trusted: &Trusted,
    now_ms: u64,
) -> Result<(), ArchiveError> {
    let (id, group) = (stock.id(), stock.group);
    let at_ms = now_ms.saturating_sub(SAID_DAYS * DAY_MS);
    let after = ObjectName::Verification { group, at_ms, key: [0; 8] }.path(&id);
    let (found, _) = verifications(destination, &id, group, Some(&after)).await?;
    // Words of a vault are of another copy.
    for one in found.into_iter().filter(|one| one.found.vault.is_none()) {
        if !trusted.contains(&one.key) {
            stock.strangers.insert(one.key);
            continue;
        }
        let seen = one.found.snapshots.iter();
        let seen = seen.filter_map(|seen| Some((seen.index, (unhex(&seen.root)?, unhex(&seen.seal)?))));
        let said = Said {
            ended_ms: one.found.ended_ms,
            snapshots: seen.collect(),
            gap_ends: one.found.gap_ends.iter().copied().collect(),
            why: one.found.why(),
        };
        match one.found.good {
            true if one.found.level >= Depth::Proved => stock.holding.proved.push(said),
            true => {}
            false => stock.holding.failed = Some(said),
        }
    }
    stock.holding.proved.sort_by_key(|said| said.ended_ms);
    Ok(())
}

/// What a run does with one history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Snapshots that are marked now.
    pub fresh: Vec<u64>,
    /// Snapshots that are marked, and until when they wait: milliseconds since the Unix epoch.
    pub waiting: BTreeMap<u64, u64>,
    /// Snapshots that go now.
    pub due: BTreeSet<u64>,
    /// Snapshots that were marked, and stay after all.
    pub spared: Vec<u64>,
    /// The log up to this entry is marked now.
    pub log_fresh: Option<u64>,
    /// Marks of the log beyond this entry are taken back now.
    pub log_spared: Option<u64>,
    /// The log up to this entry goes now.
    pub log_due: Option<u64>,
    /// Their manifests, and the bytes of each.
    pub manifests: Vec<Going>,
    /// What no other snapshot needs.
    pub rows: Vec<Going>,
    /// Segments, in the order of their entries.
    pub log: Vec<Going>,
    /// What joins these, and heartbeats from before.
    pub beside_log: Vec<Going>,
}

/// An object that goes, and its bytes.
pub type Going = (String, u64);

impl Plan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        !self.marks() && self.objects().next().is_none()
    }

    /// All objects that go.
    pub fn objects(&self) -> impl Iterator<Item = &Going> {
        self.manifests.iter().chain(&self.rows).chain(&self.log).chain(&self.beside_log)
    }

    /// It marks something, or takes a mark back.
    fn marks(&self) -> bool {
        !self.fresh.is_empty() || !self.spared.is_empty() || self.log_fresh.is_some() || self.log_spared.is_some()
    }
}

/// What a judgement means for one history, now. `stagger_ms`: more time than the policy's grace.
pub fn plan(stock: &Stock, judged: &Judgement, policy: &Policy, stagger_ms: u64, now_ms: u64) -> Plan {
    let id = stock.id();
    let mut plan = Plan::default();
    if !judged.frozen.is_empty() {
        return plan;
    }
    let grace_ms = policy.grace_ms() + stagger_ms;
    let now_ms = now_ms.min(stock.server_ms + HOUR_MS);
    for taken in &stock.holding.taken {
        let mark = stock.marks.snapshots.get(&(taken.index, hex(&taken.seal))).map(|marked_ms| marked_ms + grace_ms);
        match (judged.doomed.contains(&(id, taken.index)), mark) {
            (false, None) => {}
            (false, Some(_)) => plan.spared.push(taken.index),
            (true, None) => plan.fresh.push(taken.index),
            (true, Some(due_ms)) if due_ms > now_ms => {
                plan.waiting.insert(taken.index, due_ms);
            }
            (true, Some(_)) => {
                plan.due.insert(taken.index);
            }
        }
    }
    let through = judged.log_through.get(&id).copied();
    let marked = stock.marks.log.iter().map(|(through, _)| *through).max();
    plan.log_spared = through.or(Some(0)).filter(|through| marked.is_some_and(|marked| marked > *through));
    if let Some(through) = through {
        let goes = segments(stock, through).next().is_some() || beside_segments(stock, through).next().is_some();
        plan.log_fresh = Some(through).filter(|_| goes && marked.is_none_or(|marked| marked < through));
        let due = stock.marks.log.iter().filter(|(_, marked_ms)| marked_ms + grace_ms <= now_ms);
        plan.log_due = due.map(|(marked, _)| through.min(*marked)).max();
    }
    let manifests = stock.names().filter(|(name, ..)| match name {
        ObjectName::Manifest { group, index } => *group == stock.group && plan.due.contains(index),
        _ => false,
    });
    plan.manifests = manifests.map(|(_, found, _)| (found.path.clone(), found.bytes)).collect();
    plan.rows = unneeded(stock, &plan.due, policy.grace_ms(), now_ms);
    if let Some(through) = plan.log_due {
        plan.log = segments(stock, through).collect();
        plan.beside_log = beside_segments(stock, through).collect();
    }
    plan
}

/// Chunks and patches of closed generations that no manifest names but for those that go.
fn unneeded(stock: &Stock, due: &BTreeSet<u64>, grace_ms: u64, now_ms: u64) -> Vec<Going> {
    let stays = || stock.manifests.iter().filter(|(index, _)| !due.contains(index)).map(|(_, manifest)| manifest);
    let needed: BTreeSet<ObjectName> = stays().flat_map(|manifest| manifest.objects().map(|(name, _)| name)).collect();
    let generation_of = |name: &ObjectName| match name {
        ObjectName::Chunk { generation, .. } | ObjectName::Patch { generation, .. } => Some(*generation),
        _ => None,
    };
    // Snapshots are added to the newest one, and to that of this week: also by whoever is behind by a week.
    let newest = needed.iter().filter_map(generation_of).max().unwrap_or(0);
    let open = newest.min(week_of(Millis(now_ms)).saturating_sub(1));
    let gone = stock.names().filter(|(name, _, stored_ms)| {
        let is_closed = generation_of(name).is_some_and(|generation| generation < open);
        is_closed && !needed.contains(name) && stored_ms + grace_ms <= now_ms
    });
    gone.map(|(_, found, _)| (found.path.clone(), found.bytes)).collect()
}

/// Positions of the log that hold nothing but entries up to this one, ascending.
fn segments(stock: &Stock, through: u64) -> impl Iterator<Item = Going> {
    let of_group = move |name: ObjectName| match name {
        ObjectName::Segment { group, first, .. } if group == stock.group => Some(first),
        _ => None,
    };
    let positions: BTreeSet<u64> = stock.names().filter_map(|(name, ..)| of_group(name)).collect();
    stock.names().filter_map(move |(name, found, _)| {
        let first = of_group(name)?;
        // Its last entry is the one before the next position.
        let next = positions.range((Bound::Excluded(first), Bound::Unbounded)).next()?;
        (*next <= through.saturating_add(1)).then(|| (found.path.clone(), found.bytes))
    })
}

/// What joins such segments, and heartbeats from before the snapshot at this entry.
fn beside_segments(stock: &Stock, through: u64) -> impl Iterator<Item = Going> {
    let time_ms = stock.holding.taken.iter().find(|taken| taken.index == through).map_or(0, |taken| taken.time_ms);
    stock.names().filter_map(move |(name, found, _)| {
        let goes = match name {
            ObjectName::Joined { group, last, .. } => group == stock.group && last <= through,
            ObjectName::Heartbeat { group, at_ms } => group == stock.group && at_ms < time_ms,
            _ => false,
        };
        goes.then(|| (found.path.clone(), found.bytes))
    })
}

/// What became of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Objects that are gone.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that a lock holds, and until when, if that is known: milliseconds since the Unix epoch.
    pub held: Vec<(String, Option<u64>)>,
    /// Snapshots that are gone.
    pub snapshots: Vec<u64>,
    /// The log that was to go is gone, all of it.
    pub log_is_cut: bool,
    /// What was laid down: the mark, and what is told of the deletion.
    pub recorded: Vec<String>,
}

/// Carries a plan out: marks, then deletes. `done` is told how many objects of the plan were tried.
///
/// # Errors
/// When the destination fails, or refuses; what was deleted before is told beside the archive all the same.
pub async fn carry_out(
    destination: &Destination,
    stock: &Stock,
    plan: &Plan,
    key: &VerifierKey,
    now_ms: u64,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Outcome, ArchiveError> {
    let (id, group) = (stock.id(), stock.group);
    let mut outcome = Outcome::default();
    if plan.marks() {
        let mut mark = Tombstone::new(&id, group, now_ms);
        (mark.log_through, mark.log_spared) = (plan.log_fresh, plan.log_spared);
        mark.spared.clone_from(&plan.spared);
        let fresh = stock.holding.taken.iter().filter(|taken| plan.fresh.contains(&taken.index));
        mark.snapshots = fresh.map(marked).collect();
        outcome.recorded.push(lay_down(mark, destination, &id, group, key).await?);
    }
    if plan.objects().next().is_none() {
        return Ok(outcome);
    }
    let remover = Remover::of(destination).await?;
    let deleted = delete(stock, plan, &mut outcome, done, async |object| remover.remove(object).await).await;
    if outcome.objects > 0 {
        let mut pruned = Pruned::new(&id, group, now_ms);
        (pruned.snapshots, pruned.log_through) =
            (outcome.snapshots.clone(), plan.log_due.filter(|_| outcome.log_is_cut));
        (pruned.objects, pruned.bytes, pruned.held) = (outcome.objects, outcome.bytes, outcome.held.len() as u64);
        outcome.recorded.push(lay_down(pruned, destination, &id, group, key).await?);
    }
    deleted.map(|()| outcome)
}

fn marked(taken: &Taken) -> Marked {
    Marked { index: taken.index, time_ms: taken.time_ms, root: hex(&taken.root), seal: hex(&taken.seal) }
}

async fn delete(
    stock: &Stock,
    plan: &Plan,
    outcome: &mut Outcome,
    done: &(dyn Fn(u64) + Sync),
    remove: impl AsyncFn(&str) -> Result<Removal, ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut tried = 0;
    let mut held_manifests = BTreeSet::new();
    for (object, bytes) in &plan.manifests {
        let Some((_, ObjectName::Manifest { index, .. })) = ObjectName::parse(object) else { continue };
        match outcome.take(remove(object).await?, object, *bytes) {
            true => outcome.snapshots.push(index),
            false => {
                held_manifests.insert(index);
            }
        }
        tried += 1;
        done(tried);
    }
    // What a manifest names that is still there stays with it.
    let held = stock.manifests.iter().filter(|(index, _)| held_manifests.contains(index));
    let needed: BTreeSet<String> =
        held.flat_map(|(_, manifest)| manifest.objects().map(|(name, _)| name.path(&stock.id()))).collect();
    let remove = &remove;
    let beside = |(object, bytes): Going| async move { (remove(&object).await, object, bytes) };
    let rows = plan.rows.iter().filter(|(object, _)| !needed.contains(object));
    // In any order.
    let mut removals = futures::stream::iter(rows.chain(&plan.beside_log).cloned()).map(beside).buffered(CALLS_MAX);
    while let Some((removal, object, bytes)) = removals.next().await {
        outcome.take(removal?, &object, bytes);
        tried += 1;
        done(tried);
    }
    for (object, bytes) in &plan.log {
        if !outcome.take(remove(object).await?, object, *bytes) {
            return Ok(());
        }
        tried += 1;
        done(tried);
    }
    outcome.log_is_cut = true;
    Ok(())
}

impl Outcome {
    /// It is gone.
    fn take(&mut self, removal: Removal, object: &str, bytes: u64) -> bool {
        match removal {
            Removal::Gone => {
                self.objects += 1;
                self.bytes += bytes;
                true
            }
            Removal::Held(until_ms) => {
                self.held.push((object.to_owned(), until_ms));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
