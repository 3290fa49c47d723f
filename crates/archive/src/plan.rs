//! What a restore would do, from the archive alone: which history, which snapshot, which part of the log, how far.
//!
//! Invariants:
//! - A plan ends at the last entry that the archive holds of the chosen history, or at the point that was asked for: an
//!   index, or the last entry before the log's time went beyond a moment.
//! - A history whose facts are damaged may be the newest: nothing is chosen in its place unless somebody names it.
//! - A history that continues another one from the same archive, and has no snapshot yet, is planned through its
//!   parents: their log ends where the child says that it was cut, and the entry chain joins them.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_model::id::{GroupId, Stage};
use holdfast_store::LogPosition;

use crate::destination::Destination;
use crate::error::ArchiveError;
use crate::heartbeat::{Heartbeat, newest_heartbeat};
use crate::layout::{LineageId, ObjectName};
use crate::lineage::{LineageFacts, find_lineages};
use crate::log::{ListedSegment, last_index, list_joined, list_log, list_segments, read_listed, with_joined};
use crate::manifest::Manifest;
use crate::payloads::Section;
use crate::segment::{ChainWalk, Segment, stamp_of_entry};
use crate::snapshot::{list_snapshots, read_manifest};

/// Which history to restore, and up to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choose {
    /// `None` = the one that no other continues; an error if there are several.
    pub lineage: Option<LineageId>,
    /// Up to where; a point before this history began lies in one that it continues.
    pub at: At,
}

impl Choose {
    /// The newest point of a history.
    pub fn newest_of(lineage: LineageId) -> Self {
        Self { lineage: Some(lineage), at: At::Latest }
    }
}

/// A point of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum At {
    /// The last entry there is.
    #[default]
    Latest,
    /// This entry.
    Index(u64),
    /// The last entry before the log's time goes beyond this, in milliseconds since the Unix epoch. That time is the
    /// newest stamp so far: it never goes back, whatever the clocks of leaders did.
    Time(u64),
}

/// What a plan goes around.
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// Snapshots that cannot be used, by history and index.
    pub(crate) snapshots: BTreeSet<(LineageId, u64)>,
    /// Objects that join segments and cannot be used; the segments may.
    pub(crate) joined: BTreeSet<String>,
}

impl Around {
    fn usable(&self, mut joined: Vec<ListedSegment>) -> Vec<ListedSegment> {
        joined.retain(|one| !self.joined.contains(&one.object));
        joined
    }
}

/// What a restore would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// URL of the archive.
    pub destination: String,
    /// Facts of the chosen history.
    pub lineage: LineageFacts,
    /// Group.
    pub group: GroupId,
    /// Where to start; `None` = from the first entry.
    pub snapshot: Option<Manifest>,
    /// Log to replay after it, oldest history first.
    pub log: Vec<PlannedLog>,
    /// Last entry that will be restored.
    pub last: LogPosition,
    /// Entry chain there.
    pub chain: [u8; 32],
    /// Newest time stamp that will be restored, in milliseconds since the Unix epoch; 0 = none is known.
    pub last_stamp_ms: u64,
    /// The newest moment at which a leader vouched that all that was committed lies here; of a plan up to the latest entry.
    pub heartbeat: Option<Heartbeat>,
    /// Histories that were passed over, because their facts are damaged or missing: object and reason.
    pub bad: Vec<(String, String)>,
}

/// Log of one history that is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLog {
    /// Whose.
    pub lineage: LineageId,
    /// Segments, ascending. Entries that the snapshot holds, or beyond `through`, are passed over.
    pub segments: Vec<ListedSegment>,
    /// Last index to replay.
    pub through: u64,
}

impl RestorePlan {
    /// Index of the snapshot; 0 = none.
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |manifest| manifest.applied.index)
    }

    /// Where the replay starts.
    pub fn walk(&self) -> ChainWalk {
        match &self.snapshot {
            Some(manifest) => ChainWalk { next: manifest.applied.index + 1, chain: manifest.entry_chain },
            None => ChainWalk::FRESH,
        }
    }

    /// The log must reach as far as a heartbeat says that it did ([`Heartbeat::check_end`]).
    pub(crate) fn check_end(&self) -> Result<(), ArchiveError> {
        self.heartbeat.map_or(Ok(()), |heartbeat| heartbeat.check_end(&self.lineage.id, self.last.index))
    }

    /// The newest moment, in milliseconds since the Unix epoch, before which nothing acknowledged is missing: that of its last
    /// entry, or the one that a leader vouched for, if it ends where the archive does; 0 = none is known.
    pub fn complete_ms(&self) -> u64 {
        let vouched = self.heartbeat.filter(|heartbeat| heartbeat.last.index <= self.last.index);
        vouched.map_or(0, |heartbeat| heartbeat.at.0).max(self.last_stamp_ms)
    }

    /// Segments to read.
    pub fn segments(&self) -> u64 {
        self.log.iter().map(|log| log.segments.len() as u64).sum()
    }

    /// Live records in the snapshot; those of the log come on top.
    pub fn records(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |manifest| manifest.records)
    }

    /// Its snapshot has large payloads of this stage.
    pub fn has_payloads(&self, stage: Stage) -> bool {
        self.snapshot.as_ref().is_some_and(|manifest| manifest.has_payloads(stage))
    }

    /// The same, but for the large payloads of these stages.
    #[must_use]
    pub fn without_payloads(&self, stages: &[Stage]) -> Self {
        let is_wanted = |section| !stages.iter().any(|stage| section == Section::Payloads(*stage));
        let snapshot = self.snapshot.as_ref().map(|manifest| manifest.only(is_wanted));
        Self { snapshot, ..self.clone() }
    }

    /// Stored bytes to read.
    pub fn bytes(&self) -> u64 {
        let log: u64 = self.log.iter().flat_map(|log| &log.segments).map(|segment| segment.bytes).sum();
        self.snapshot.as_ref().map_or(0, Manifest::stored_length) + log
    }
}

/// Plans a restore of one group.
///
/// # Errors
/// `NoChoice` when there is nothing, or more than one thing, to restore, or nothing at the point that was asked for;
/// otherwise names the object that is wrong.
pub async fn plan(destination: &Destination, group: GroupId, choose: Choose) -> Result<RestorePlan, ArchiveError> {
    let plan = plan_of_what_is_there(destination, group, choose).await?;
    plan.check_end()?;
    Ok(plan)
}

/// The same, whatever heartbeats say of more: for who has what is missing from somewhere else.
///
/// # Errors
/// As [`plan`].
pub async fn plan_of_what_is_there(
    destination: &Destination,
    group: GroupId,
    choose: Choose,
) -> Result<RestorePlan, ArchiveError> {
    plan_around(destination, group, choose, &Around::default()).await
}

pub(crate) async fn plan_around(
    destination: &Destination,
    group: GroupId,
    choose: Choose,
    around: &Around,
) -> Result<RestorePlan, ArchiveError> {
    let found = find_lineages(destination).await?;
    let mut lineages = found.lineages;
    let by_id = |lineages: &[LineageFacts]| -> BTreeMap<LineageId, LineageFacts> {
        lineages.iter().map(|facts| (facts.id, facts.clone())).collect()
    };
    let mut passed_over = Vec::new();
    for (id, error) in found.bad {
        match choose.lineage {
            // Whoever names history and entry needs no more than its log says of it.
            Some(wanted) if wanted == id && matches!(choose.at, At::Index(_)) => {
                lineages.push(point::facts_from_log(destination, group, &id).await?.ok_or(error)?);
            }
            Some(wanted) if wanted == id => return Err(error),
            Some(_) => passed_over.extend(error.fault()),
            // One that another continues is not the newest.
            None if lineages.iter().any(|facts| facts.parent_id() == Some(id)) => {
                lineages.extend(point::facts_from_log(destination, group, &id).await.ok().flatten());
                passed_over.extend(error.fault());
            }
            None => return Err(no_newest(&id, &error, &by_id(&lineages))),
        }
    }
    let by_id = by_id(&lineages);
    let newest = chosen(destination, group, choose.lineage, lineages).await?;
    let (chosen, through) = point::resolve(destination, group, newest, choose.at, &by_id, around).await?;
    // Before the log is listed: it only grows meanwhile.
    let heartbeat = match choose.at {
        At::Latest => newest_heartbeat(destination, &chosen.id, group).await?,
        At::Index(_) | At::Time(_) => None,
    };
    let mut stages = Stages { heartbeat, ..Stages::default() };
    stages.add(destination, group, &chosen, through.unwrap_or(u64::MAX), around).await?;
    let mut child = chosen.clone();
    while let Some(parent) = continued(&stages, &child) {
        let facts = parent_of(&child, parent, &by_id)?;
        let through = child.parent.as_ref().map_or(0, |parent| parent.index);
        stages.add(destination, group, facts, through, around).await?;
        child = facts.clone();
    }
    let plan = stages.into_plan(destination, group, chosen, passed_over).await?;
    match through {
        Some(through) if plan.last.index != through => {
            let next = plan.last.index + 1;
            let segments = list_segments(destination, &plan.lineage.id, group).await?;
            if segments.last().is_some_and(|newest| newest.first > next) {
                let object = ObjectName::segment(group, next).path(&plan.lineage.id);
                return Err(ArchiveError::missing(object, format!("entries {next} to {through} lie in no object")));
            }
            Err(ArchiveError::NoChoice {
                destination: plan.destination,
                reason: format!(
                    "there is no entry {through} in lineage {}: the newest there is {}; `--at latest` restores that",
                    plan.lineage.id, plan.last.index
                ),
            })
        }
        _ => Ok(plan),
    }
}

/// The history that no other continues, as far as facts and logs say; and the last entry of its log that can be read.
///
/// # Errors
/// When that cannot be told, or the destination fails.
pub async fn newest_by_logs(
    destination: &Destination,
    group: GroupId,
) -> Result<(LineageId, Option<u64>), ArchiveError> {
    let found = find_lineages(destination).await?;
    let mut lineages = found.lineages;
    for (id, error) in found.bad {
        lineages.push(point::facts_from_log(destination, group, &id).await?.ok_or(error)?);
    }
    let newest = chosen(destination, group, None, lineages).await?;
    Ok((newest.id, last_index(destination, &newest.id, group).await?))
}

/// Facts of the history that `child` continues.
fn parent_of<'a>(
    child: &LineageFacts,
    parent: LineageId,
    by_id: &'a BTreeMap<LineageId, LineageFacts>,
) -> Result<&'a LineageFacts, ArchiveError> {
    by_id.get(&parent).ok_or_else(|| {
        let object = ObjectName::Lineage.path(&parent);
        ArchiveError::missing(object, format!("{} continues this history and needs it", child.id))
    })
}

/// Nobody knows whether the history that cannot be read is the newest.
fn no_newest(id: &LineageId, error: &ArchiveError, others: &BTreeMap<LineageId, LineageFacts>) -> ArchiveError {
    let others: Vec<String> = others.values().map(|facts| format!("{} ({})", facts.id, facts.cluster_name)).collect();
    let others = match others.as_slice() {
        [] => "no other history lies here".to_owned(),
        some => format!("these can be read, choose one with --lineage: {}", some.join(", ")),
    };
    let (object, reason) = error.fault().unwrap_or_else(|| (ObjectName::Lineage.path(id), error.to_string()));
    let reason = format!("{reason}; which history is the newest is not known: {others}");
    match error {
        ArchiveError::Missing { .. } => ArchiveError::missing(object, reason),
        _ => ArchiveError::corrupt(&object, reason),
    }
}

/// The history that must be restored first, if there is one.
fn continued(stages: &Stages, child: &LineageFacts) -> Option<LineageId> {
    if stages.snapshot.is_some() { None } else { child.parent_id() }
}

async fn chosen(
    destination: &Destination,
    group: GroupId,
    wanted: Option<LineageId>,
    lineages: Vec<LineageFacts>,
) -> Result<LineageFacts, ArchiveError> {
    let no_choice = |reason: String| ArchiveError::NoChoice { destination: destination.config().url.clone(), reason };
    if let Some(wanted) = wanted {
        let found = lineages.into_iter().find(|facts| facts.id == wanted);
        return found.ok_or_else(|| no_choice(format!("there is no lineage {wanted}; `backup ls` names them")));
    }
    let mut filled = Vec::new();
    for facts in lineages {
        // A history whose first entry never got here adds nothing to what it continues.
        if has_data(destination, group, &facts.id).await? {
            filled.push(facts);
        }
    }
    let parents: Vec<LineageId> = filled.iter().filter_map(LineageFacts::parent_id).collect();
    filled.retain(|facts| !parents.contains(&facts.id));
    match filled.pop() {
        None => Err(no_choice("there is no backup here; check the URL, or use another destination".into())),
        Some(only) if filled.is_empty() => Ok(only),
        Some(last) => {
            filled.push(last);
            let names: Vec<String> =
                filled.iter().map(|facts| format!("{} ({})", facts.id, facts.cluster_name)).collect();
            Err(no_choice(format!("several histories lie here, choose one: {}", names.join(", "))))
        }
    }
}

async fn has_data(destination: &Destination, group: GroupId, id: &LineageId) -> Result<bool, ArchiveError> {
    Ok(!list_snapshots(destination, id, group).await?.is_empty()
        || !list_segments(destination, id, group).await?.is_empty())
}

mod point;

/// A plan in the making, newest history first.
#[derive(Debug, Default)]
struct Stages {
    heartbeat: Option<Heartbeat>,
    snapshot: Option<Manifest>,
    log: Vec<PlannedLog>,
}

impl Stages {
    /// Adds a history up to `through`: its newest snapshot, and its log from there or from its beginning.
    async fn add(
        &mut self,
        destination: &Destination,
        group: GroupId,
        facts: &LineageFacts,
        through: u64,
        around: &Around,
    ) -> Result<(), ArchiveError> {
        let mut snapshots = list_snapshots(destination, &facts.id, group).await?;
        snapshots.retain(|found| found.index <= through && !around.snapshots.contains(&(facts.id, found.index)));
        if let Some(newest) = snapshots.pop() {
            let (manifest, _) = read_manifest(destination, &facts.id, group, newest.index).await?;
            self.snapshot = Some(manifest);
        }
        let from = match (&self.snapshot, &facts.parent) {
            (Some(manifest), _) => manifest.applied.index + 1,
            (None, Some(parent)) => parent.index + 1,
            (None, None) => 0,
        };
        let (mut segments, _) = list_log(destination, &facts.id, group).await?;
        let start = segments.partition_point(|segment| segment.first <= from).saturating_sub(1);
        segments.drain(..start);
        let joined = around.usable(list_joined(destination, &facts.id, group).await?);
        let mut segments = with_joined(segments, &joined, from);
        segments.retain(|segment| segment.first <= through);
        self.log.push(PlannedLog { lineage: facts.id, segments, through });
        Ok(())
    }

    async fn into_plan(
        mut self,
        destination: &Destination,
        group: GroupId,
        lineage: LineageFacts,
        bad: Vec<(String, String)>,
    ) -> Result<RestorePlan, ArchiveError> {
        self.log.reverse();
        let snapshot = self.snapshot.as_ref();
        let mut last = snapshot.map(|manifest| (manifest.applied, manifest.entry_chain));
        let mut last_stamp_ms = snapshot.map_or(0, |manifest| manifest.now.0);
        // The end: the newest segment that goes beyond the snapshot; stamps may lie further back.
        let newest_first =
            self.log.iter().rev().flat_map(|log| log.segments.iter().rev().map(move |found| (log, found)));
        let held = last.map(|(position, _)| position.index);
        let mut end = None;
        for (log, found) in newest_first {
            let segment = match read_listed(destination, &log.lineage, group, found).await {
                // The snapshot stands in for it.
                Err(ArchiveError::NotShipped { gap, .. }) if held.is_some_and(|held| held >= gap.last.index) => break,
                read => read?,
            };
            if held.is_some_and(|held| segment.last().index.min(log.through) <= held) {
                break;
            }
            if end.is_none() {
                end = end_of(&segment, log.through);
            }
            let restored = segment.entries().iter().take_while(|entry| entry.position.index <= log.through);
            let stamp_ms = restored.map(stamp_of_entry).max().unwrap_or(0);
            if stamp_ms > 0 {
                last_stamp_ms = last_stamp_ms.max(stamp_ms);
                break;
            }
        }
        last = end.or(last);
        let Some((last, chain)) = last else {
            return Err(ArchiveError::NoChoice {
                destination: destination.config().url.clone(),
                reason: format!("lineage {} holds neither a snapshot nor a log", lineage.id),
            });
        };
        if Some(last.index) == held {
            // The snapshot holds it all.
            self.log.iter_mut().for_each(|log| log.segments.clear());
        }
        let destination = destination.config().url.clone();
        Ok(RestorePlan {
            destination,
            lineage,
            group,
            snapshot: self.snapshot,
            log: self.log,
            last,
            chain,
            last_stamp_ms,
            heartbeat: self.heartbeat,
            bad,
        })
    }
}

/// Last entry of a segment that is not beyond `through`, and the chain there.
fn end_of(segment: &Segment, through: u64) -> Option<(LogPosition, [u8; 32])> {
    let last = segment.entries().iter().rev().find(|entry| entry.position.index <= through)?.position;
    Some((last, segment.chain_before(last.index.checked_add(1)?)?))
}
