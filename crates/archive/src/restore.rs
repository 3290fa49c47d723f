//! Restore: fills fresh data directories from a plan, all of them in one pass over the archive.
//!
//! Invariants:
//! - Every object is read and checked, and the entry chain followed from the snapshot to the end, before the first
//!   row is written; and again as it is used. A bad object stops the restore with no directory usable.
//! - From before the first row until after the last check, each directory carries a mark that says "half"
//!   ([`crate::marker`]). Killed anywhere, the same call begins again in the same directories, until a node has run
//!   there; other directories are refused.
//! - Entries are applied by the code that a live node applies them with, and all directories end with equal chains.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use holdfast_model::command::{Command, Genesis, Parent};
use holdfast_model::id::{GroupId, Incarnation, NodeId, Stage};
use holdfast_store::{DataDir, LogPosition, StoredEntry};
use holdfast_wire::log::{Entry, EntryPayload, decode_entry, decode_proposal};
use tokio::sync::mpsc;

use crate::chunk::Chunk;
use crate::compose::read_rows;
use crate::destination::Destination;
use crate::error::ArchiveError;
use crate::layout::ObjectName;
use crate::log::{ListedSegment, read_listed};
use crate::manifest::Manifest;
use crate::marker::{self, Opening, RestoreMark};
use crate::plan::RestorePlan;

mod load;

/// Reads under way, and objects between the reader and each directory.
const READS_MAX: usize = 4;
const QUEUED_MAX: usize = 2;

/// A data directory to fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreTarget {
    /// Where; missing, empty, or filled by an earlier run and never used.
    pub path: PathBuf,
    /// Node that it is for.
    pub node_id: u64,
    /// Random identity, used if the directory is made now.
    pub identity: [u8; 16],
}

/// The history that the restored state will continue as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreSpec {
    /// New.
    pub cluster_id: [u8; 16],
    /// Human name.
    pub cluster_name: String,
    /// New, random, not 0.
    pub incarnation: Incarnation,
    /// Its first members.
    pub members: Vec<NodeId>,
    /// Stages whose large payloads are left for later ([`crate::payloads`]), in the order in which they are to come.
    pub held_back: Vec<Stage>,
}

/// Where a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreStage {
    /// Reading and checking everything; counted in stored bytes.
    Verify,
    /// Loading the snapshot; counted in plain bytes.
    Load,
    /// Replaying the log; counted in [`replay_weight`].
    Replay,
}

/// Called with what is done and what there is to do in a stage. A call with nothing done says what there will be to do, as
/// far as that is known by then.
pub type Progress<'a> = &'a (dyn Fn(RestoreStage, u64, u64) + Send + Sync);

/// What an entry costs in a replay besides its bytes: as many bytes more (`make bench-restore`, two cores).
pub const ENTRY_WEIGHT: u64 = 500;
/// And each change in it.
pub const CHANGE_WEIGHT: u64 = 1_340;
/// So many entries of a segment tell how many changes there are in it.
const SAMPLED: usize = 8;

/// How much work it is to replay these entries, in bytes of large records. Of a few entries the changes are counted.
pub fn replay_weight(entries: &[StoredEntry]) -> u64 {
    let bytes = |entry: &StoredEntry| entry.bytes.len() as u64;
    let total: u64 = entries.iter().map(bytes).sum();
    let sampled = entries.iter().step_by(entries.len().div_ceil(SAMPLED).max(1));
    let (looked_at, changes) = sampled.fold((0, 0), |sum, entry| (sum.0 + bytes(entry), sum.1 + changes_in(entry)));
    let changes = (u128::from(changes) * u128::from(total) / u128::from(looked_at).max(1)) as u64;
    total + entries.len() as u64 * ENTRY_WEIGHT + changes * CHANGE_WEIGHT
}

fn changes_in(entry: &StoredEntry) -> u64 {
    let Ok(Entry { payload: EntryPayload::Proposal(bytes), .. }) = decode_entry(&entry.bytes) else { return 0 };
    match decode_proposal(&bytes).map(|proposal| proposal.command) {
        Ok(Command::WriteBatch(batch)) => batch.mutations.len() as u64,
        Ok(Command::Fold(batches)) => batches.iter().map(|batch| batch.mutations.len() as u64).sum(),
        _ => 0,
    }
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// Last entry restored.
    pub last: LogPosition,
    /// Entry chain there.
    pub chain: [u8; 32],
    /// Effect chain there, equal in all directories.
    pub effect_chain: [u8; 32],
    /// Rows loaded into each directory.
    pub rows: u64,
    /// Entries replayed in each directory.
    pub entries: u64,
    /// Live records now.
    pub records: u64,
    /// Records whose payloads are left for later.
    pub held_back: u64,
    /// To be proposed as the first entry of the new history.
    pub genesis: Genesis,
}

/// Fills `targets` with what `plan` says.
///
/// # Errors
/// Names the first bad object, or the directory that cannot be used. No directory is usable then.
pub async fn restore(
    destination: &Destination,
    plan: &RestorePlan,
    targets: &[RestoreTarget],
    spec: &RestoreSpec,
    progress: Progress<'_>,
) -> Result<RestoreReport, ArchiveError> {
    if targets.is_empty() {
        return Err(ArchiveError::refused("a restore without a data directory"));
    }
    let left: Vec<Stage> = spec.held_back.iter().copied().filter(|stage| plan.has_payloads(*stage)).collect();
    let plan = &plan.without_payloads(&left);
    let weight = check_all(destination, plan, progress).await?;
    progress(RestoreStage::Replay, 0, weight);
    let opened = open_targets(plan, targets).await?;
    let (mut senders, mut loading) = (Vec::new(), Vec::new());
    for directory in &opened {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        let (directory, plan) = (directory.clone(), plan.clone());
        senders.push(sender);
        loading.push(tokio::task::spawn_blocking(move || load::fill(&directory, &plan, receiver)));
    }
    let fed = feed(destination, plan, &senders, weight, progress).await;
    // A feed that stopped early must not look like one that ended: `load` counts on `End`.
    drop(senders);
    let mut filled = Vec::new();
    let mut failed = None;
    for (task, target) in loading.into_iter().zip(targets) {
        match task.await {
            Ok(Ok(done)) => filled.push((done, target)),
            Ok(Err(error)) => failed = failed.or(Some(error)),
            Err(_) => failed = failed.or(Some(ArchiveError::Stopped { what: "filling a data directory" })),
        }
    }
    match (fed, failed) {
        (_, Some(error)) if !matches!(error, ArchiveError::Stopped { .. }) => Err(error),
        (Err(error), _) | (Ok(()), Some(error)) => Err(error),
        (Ok(()), None) => finish(plan, &filled, spec, &left),
    }
}

/// Whether `targets` can be filled, as far as looking tells; writes nothing. For steps that come before a restore and
/// cannot be taken back.
///
/// # Errors
/// Names the directory that cannot be used, and why.
pub fn check_targets(group: GroupId, targets: &[&Path]) -> Result<(), ArchiveError> {
    targets.iter().try_for_each(|target| check_target(target, group))
}

/// What these directories were filled with and for, when all of them were by one restore that came to its end; else `None`.
/// Their nodes may have run since.
///
/// # Errors
/// When the mark of one cannot be read.
pub fn filled_with(targets: &[&Path]) -> Result<Option<(RestoreMark, Opening)>, ArchiveError> {
    let mut filled: Option<(RestoreMark, Opening)> = None;
    for target in targets {
        let Some(mark) = marker::read(target)? else { return Ok(None) };
        let Some(opening) = mark.opening.clone() else { return Ok(None) };
        match &filled {
            Some((_, other)) if *other != opening => return Ok(None),
            Some(_) => {}
            None => filled = Some((mark, opening)),
        }
    }
    Ok(filled)
}

/// Reads and checks every object of the plan; gives the work that the replay will be ([`replay_weight`]).
///
/// # Errors
/// Names the first bad object.
pub async fn check_all(
    destination: &Destination,
    plan: &RestorePlan,
    progress: Progress<'_>,
) -> Result<u64, ArchiveError> {
    let (total, mut done) = (plan.bytes(), 0);
    if let Some(manifest) = &plan.snapshot {
        let (stored, plain, mut seen) = (manifest.stored_length(), manifest.plain_length().max(1), 0);
        let mut rows = read_rows(destination, manifest);
        while let Some(chunk) = rows.try_next().await? {
            seen += chunk.plain_length();
            // Rows of a chunk may lie in several objects; together they have this many bytes.
            done = (u128::from(stored) * u128::from(seen) / u128::from(plain)) as u64;
            progress(RestoreStage::Verify, done, total);
        }
        done = stored;
    }
    let (mut weight, before) = (0, done);
    let counted = each_segment(destination, plan, |taken, bytes| {
        weight += replay_weight(&taken);
        done += bytes;
        // What is still to be read will be like what was.
        let all = u128::from(weight) * u128::from(total - before) / u128::from(done - before).max(1);
        progress(RestoreStage::Replay, 0, all as u64);
        progress(RestoreStage::Verify, done, total);
        std::future::ready(Ok(()))
    });
    counted.await?;
    Ok(weight)
}

/// Reads the log of the plan in order, follows the chain, and hands over the entries to replay with the bytes read.
async fn each_segment<F>(
    destination: &Destination,
    plan: &RestorePlan,
    mut take: impl FnMut(Vec<StoredEntry>, u64) -> F,
) -> Result<(), ArchiveError>
where
    F: Future<Output = Result<(), ArchiveError>>,
{
    let mut walk = plan.walk();
    for log in &plan.log {
        let reads = log.segments.iter().map(|found| async move {
            read_listed(destination, &log.lineage, plan.group, found).await.map(|segment| (found, segment))
        });
        let mut reads = futures::stream::iter(reads).buffered(READS_MAX);
        let mut joined = None;
        while let Some((found, segment)) = reads.try_next().await? {
            let taken = match (walk.follow(&log.lineage, &found.object, &segment, log.through), joined) {
                // Which of the two is of another history, the segments that were joined tell.
                (Err(ArchiveError::Corrupt { .. }), Some(before)) => {
                    let before: &ListedSegment = before;
                    let reason = format!("{} does not continue its entry chain", found.object);
                    return Err(ArchiveError::corrupt(&before.object, reason));
                }
                (taken, _) => taken?,
            };
            joined = Some(found).filter(|found| found.joined.is_some());
            take(taken, found.bytes).await?;
        }
        // The next history begins where this one was cut; without that much of it, it is not whole.
        if log.through != u64::MAX && walk.next <= log.through {
            let object = ObjectName::segment(plan.group, walk.next).path(&log.lineage);
            return Err(ArchiveError::missing(object, format!("entries {} to {} are needed", walk.next, log.through)));
        }
    }
    if walk.next != plan.last.index + 1 || walk.chain != plan.chain {
        let reason = format!("the archive changed: its log now ends before {}; plan again", walk.next);
        return Err(ArchiveError::NoChoice { destination: plan.destination.clone(), reason });
    }
    Ok(())
}

/// What goes to every directory, in this order: chunks, then entries, then the end.
#[derive(Debug, Clone)]
enum Part {
    Rows(Arc<Chunk>),
    Entries(Arc<Vec<StoredEntry>>),
    End,
}

async fn feed(
    destination: &Destination,
    plan: &RestorePlan,
    targets: &[mpsc::Sender<Part>],
    weight: u64,
    progress: Progress<'_>,
) -> Result<(), ArchiveError> {
    if let Some(manifest) = &plan.snapshot {
        let (total, mut done, mut taken) = (manifest.plain_length(), 0, Taken::default());
        let mut rows = read_rows(destination, manifest);
        while let Some(chunk) = rows.try_next().await? {
            done += chunk.plain_length();
            send(targets, Part::Rows(chunk)).await?;
            progress(RestoreStage::Load, taken.of(done), total);
        }
        progress(RestoreStage::Load, total, total);
    }
    let (mut done, mut taken) = (0, Taken::default());
    each_segment(destination, plan, |entries, _| {
        done += replay_weight(&entries);
        let now = taken.of(done);
        async move {
            send(targets, Part::Entries(Arc::new(entries))).await?;
            progress(RestoreStage::Replay, now, weight);
            Ok(())
        }
    })
    .await?;
    send(targets, Part::End).await?;
    if weight > 0 {
        progress(RestoreStage::Replay, weight, weight);
    }
    Ok(())
}

/// What every directory has at least worked through, when one part more was sent: what waits before it, and what it has at
/// hand, is not done.
#[derive(Default)]
struct Taken(VecDeque<u64>);

impl Taken {
    fn of(&mut self, sent: u64) -> u64 {
        self.0.push_back(sent);
        if self.0.len() > QUEUED_MAX + 1 { self.0.pop_front().unwrap_or(0) } else { 0 }
    }
}

async fn send(targets: &[mpsc::Sender<Part>], part: Part) -> Result<(), ArchiveError> {
    for target in targets {
        target.send(part.clone()).await.map_err(|_| ArchiveError::Stopped { what: "filling a data directory" })?;
    }
    Ok(())
}

/// Opens every directory and marks it as half restored, before any of them is written to.
async fn open_targets(plan: &RestorePlan, targets: &[RestoreTarget]) -> Result<Vec<Arc<DataDir>>, ArchiveError> {
    let (targets, mark) = (targets.to_vec(), half(plan));
    let opening = tokio::task::spawn_blocking(move || {
        let open = |target: &RestoreTarget| open_target(target, &mark).map(Arc::new);
        let opened = targets.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        for (directory, target) in opened.iter().zip(&targets) {
            marker::write(directory.path(), &RestoreMark { node_id: target.node_id, ..mark.clone() })?;
        }
        Ok(opened)
    });
    opening.await.map_err(|_| ArchiveError::Stopped { what: "opening a data directory" })?
}

fn half(plan: &RestorePlan) -> RestoreMark {
    RestoreMark {
        node_id: 0,
        from: plan.lineage.id,
        group: plan.group,
        last: plan.last,
        chain: plan.chain,
        opening: None,
    }
}

fn open_target(target: &RestoreTarget, mark: &RestoreMark) -> Result<DataDir, ArchiveError> {
    let directory = DataDir::open_or_create(&target.path, target.node_id, target.identity)
        .map_err(ArchiveError::store(&target.path))?;
    // Under its lock: nobody else fills or serves it now.
    check_target(&target.path, mark.group)?;
    Ok(directory)
}

/// Fresh, or filled by an earlier run and never used: anything else holds somebody's data.
fn check_target(path: &Path, group: GroupId) -> Result<(), ArchiveError> {
    let refused = |reason: &str| Err(ArchiveError::Target { path: path.to_owned(), reason: reason.to_owned() });
    match marker::read(path)? {
        Some(found) if found.group != group => refused("another group is being restored into it"),
        // Nothing was served from it yet, so nothing is lost by beginning again.
        Some(_) if is_empty(&path.join("raft"))? => Ok(()),
        Some(_) => refused("it was restored and its node has run since; restore into an empty directory"),
        None if is_fresh(path)? => Ok(()),
        None => refused("it holds a node's log or state; restore into an empty directory"),
    }
}

fn is_fresh(path: &Path) -> Result<bool, ArchiveError> {
    for name in ["raft", "state", "snapshots"] {
        if !is_empty(&path.join(name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_empty(path: &Path) -> Result<bool, ArchiveError> {
    match std::fs::read_dir(path).map(|mut found| found.next().is_none()) {
        Ok(empty) => Ok(empty),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(ArchiveError::disk("list", path)(error)),
    }
}

/// All directories are whole and equal: says so in each.
fn finish(
    plan: &RestorePlan,
    filled: &[(load::Filled, &RestoreTarget)],
    spec: &RestoreSpec,
    left: &[Stage],
) -> Result<RestoreReport, ArchiveError> {
    let Some(((first, _), rest)) = filled.split_first() else {
        return Err(ArchiveError::refused("a restore without a data directory"));
    };
    if let Some((_, target)) = rest.iter().find(|(other, _)| other != first) {
        let reason = "it differs from the others after the same entries; check its disk and restore again".into();
        return Err(ArchiveError::Target { path: target.path.clone(), reason });
    }
    if left.is_empty() && first.held_back > 0 {
        let reason = format!("{} records of the snapshot came without the payloads that they name", first.held_back);
        return Err(ArchiveError::refused(reason));
    }
    let Some(history) = &first.history else {
        let reason = "what it holds was never opened by a Genesis entry; there is nobody's data in it".into();
        return Err(ArchiveError::NoChoice { destination: plan.destination.clone(), reason });
    };
    let genesis = Genesis {
        cluster_id: spec.cluster_id,
        cluster_name: spec.cluster_name.clone(),
        incarnation: spec.incarnation,
        epoch: history.epoch.checked_add(1).ok_or_else(|| ArchiveError::refused("no epoch is left"))?,
        parent: Some(Parent {
            cluster_id: history.cluster_id,
            incarnation: history.incarnation,
            snapshot_index: plan.snapshot_index(),
            index: plan.last.index,
            chain: plan.chain,
        }),
        members: spec.members.clone(),
        restoring: left.to_vec(),
    };
    for (_, target) in filled {
        let opening = Some(Opening { effect_chain: first.effect_chain, genesis: genesis.clone() });
        marker::write(&target.path, &RestoreMark { node_id: target.node_id, opening, ..half(plan) })?;
    }
    Ok(RestoreReport {
        last: plan.last,
        chain: plan.chain,
        effect_chain: first.effect_chain,
        rows: first.rows,
        entries: first.entries,
        records: first.records,
        held_back: first.held_back,
        genesis,
    })
}

#[cfg(test)]
mod tests;
