//! What opening a log proves, and what it does about what is wrong.
//!
//! Every record of every segment is read. Those that are whole say what the log is; then its entries are walked: contiguous,
//! terms not decreasing, each linked to the one before by checksum.
//!
//! Invariants:
//! - What a power cut tore off the end of the last write was never fsynced, and is cut off in silence. The floor tells it
//!   from what a disk lost later: a log that ends below it makes the node recover from its peers.
//! - Everything else that is not as it was written makes the node recover, also where no entry lacks: a vote may have been
//!   there. A copy of the damaged file is kept, and the damage is covered, so that the next start does not find it again.
//! - That a node recovers is noted before anything is mended, so that a start which ends halfway takes nothing with it.
//! - What does not follow any more is cut off durably before anything is appended, and the floor is raised over it first, so
//!   that a node which lost entries stays recovering through any number of restarts.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holdfast_model::id::GroupId;

use crate::error::{Part, StoreError};
use crate::files;
use crate::log::floor::{Floor, FloorFile, FloorKeeper, Found};
use crate::log::frame;
use crate::log::record::{self, Item, Kind, Salt, Seed};
use crate::log::segments::{Held, Mark, Segments, State, each_record, file_name, push_mark, truncate_marks};
use crate::log::tail::{Link, TailState};
use crate::log::types::{LogOptions, LogPosition, LogReport, TornTail, VoteRecord};
use crate::log::walk::Walked;
use crate::marker::{DataDir, Recovering};
use crate::options::Sizes;

/// A log ready for use.
pub(crate) struct Opened {
    pub(crate) segments: Segments,
    pub(crate) state: TailState,
    pub(crate) floor: FloorKeeper,
}

pub(crate) fn open(data: &DataDir, group: GroupId, options: &LogOptions) -> Result<(Opened, LogReport), StoreError> {
    let floor_dir = options.floor_dir.as_deref().unwrap_or(data.path());
    let (mut floor_file, found) = FloorFile::open(floor_dir, &data.identity(), group)?;
    let dir = data.path().join("raft");
    let mut report = LogReport::default();
    let mut reasons = Vec::new();

    let salt = Salt::of(&data.identity());
    let (mut files, torn) = SegmentFile::all(data, &dir, salt)?;
    report.torn = cut_torn_end(&mut files)?.or(torn);
    let facts = Facts::of(&files, &dir)?;
    let (walked, state) = walk(&files, salt, group, &facts)?;
    let wrong = what_is_wrong(&mut files, &state.held, facts.purged);
    let segments = Segments::new(&dir, group, options, Sizes::at(&dir), state);
    {
        let mut state = segments.lock();
        (state.vote, state.purged, state.committed) = (walked.vote, walked.purged, walked.committed);
    }

    if !wrong.is_empty() {
        reasons.push(format!("the log is damaged, and a copy of it was set aside: {}", wrong.join("; ")));
    }
    let before = floor_file.floor();
    let mut floor = before.position;
    if let Some((index, seen, reason)) = &walked.broken {
        reasons.push(format!("entry {index} {reason}; it and all after it were cut off"));
        report.truncated_from = Some(*index);
        floor = floor.max(Some(*seen));
    }
    let vote = walked.vote.max(before.vote);
    if before.vote > walked.vote {
        reasons.push("the stored vote is older than the one on the floor".into());
    }
    if found == Found::Damaged {
        reasons.push(format!("both slots of {} are damaged", floor_file.path().display()));
        floor = floor.max(walked.last.position);
    }
    if walked.last.position < floor {
        reasons.push(format!("the log ends at {:?}, the floor says {floor:?} was fsynced", walked.last.position));
    }
    if found == Found::Missing && walked.last.position.is_some() {
        report.floor_missing = Some(floor_file.path().to_owned());
    }
    if found == Found::Floor && floor_file.is_spoilt() {
        report.floor_spoilt = Some(floor_file.path().to_owned());
    }
    report.floor = floor;
    report.recovering = (!reasons.is_empty()).then(|| reasons.join("; "));
    if let Some(reason) = &report.recovering {
        // Before anything of the evidence goes: a start that ends halfway must not look whole to the next one.
        let upto = data.recovering()?.map_or(0, |known| known.upto).max(floor.map_or(0, |floor| floor.index));
        data.set_recovering(Some(&Recovering { reason: reason.clone(), upto }))?;
    }

    if !wrong.is_empty() {
        report.quarantined = Some(keep_copies(data, &files)?);
        // Facts may be where the damage is; a new segment begins with them.
        segments.begin_anew();
    }
    if walked.broken.is_some() || found == Found::Damaged {
        floor_file.write(Floor { position: floor, vote })?;
    }
    if walked.broken.is_some() {
        segments.put_truncated(walked.last);
    }
    if let Some(vote) = vote.filter(|vote| walked.vote < Some(*vote)) {
        segments.put_vote(vote);
    }
    segments.sync()?;
    cover_damage(&files, group)?;
    // What was read is durable from here on, whatever the kernel still held back.
    files.iter().rev().take(2).try_for_each(|file| files::sync_file(&file.path))?;
    files::sync_dir(&dir)?;
    let Walked { committed, purged, last, sizes, .. } = walked;
    let first = purged.position.map_or(0, |purged| purged.index + 1);
    report.entries = last.position.map_or(0, |last| last.index + 1) - first;
    let state = TailState::opened(purged, last, vote, committed, sizes);
    Ok((Opened { segments, state, floor: FloorKeeper::new(floor_file) }, report))
}

/// Moves the log away and makes room for an empty one.
pub(crate) fn set_aside(data: &DataDir) -> Result<PathBuf, StoreError> {
    let path = data.path().join("raft");
    let target = files::quarantine(data.path(), &path)?;
    files::create_dir(&path)?;
    Ok(target)
}

/// A segment as it lies on the disk.
struct SegmentFile {
    number: u64,
    seed: Seed,
    path: PathBuf,
    length: u64,
    /// End of its last whole record.
    end: usize,
    /// Number of the one before it, if it says so.
    before: Option<u64>,
    /// What is no record, in front of one.
    damage: Vec<Range<usize>>,
    /// A later write follows the damage: it had been fsynced.
    is_damaged: bool,
    /// Bytes behind the end that are not zeros.
    has_rest: bool,
}

impl SegmentFile {
    /// All of a directory, in order. Behind the last one that holds a record there is nothing: what was there is a write that
    /// never ended, or not of this directory, and is moved away.
    fn all(data: &DataDir, dir: &Path, salt: Salt) -> Result<(Vec<Self>, Option<TornTail>), StoreError> {
        let number = |name: String| name.strip_suffix(".log").and_then(|number| number.parse::<u64>().ok());
        let mut numbers: Vec<u64> = files::names(dir)?.into_iter().filter_map(number).collect();
        numbers.sort_unstable();
        let mut files =
            numbers.into_iter().map(|number| Self::read(dir, number, salt)).collect::<Result<Vec<_>, _>>()?;
        let (all, mut torn) = (files.len(), None);
        while let Some(empty) = files.pop_if(|file| file.end == 0) {
            if empty.has_rest {
                let path = files::quarantine(data.path(), &empty.path)?;
                torn = Some(TornTail { path, kept: 0, cut: empty.length });
            } else {
                files::remove_file(&empty.path)?;
            }
        }
        // The next one was begun once this one was fsynced, whatever became of the next one.
        let followed = if files.len() < all { files.len() } else { files.len().saturating_sub(1) };
        for file in files.iter_mut().take(followed) {
            file.is_damaged |= file.has_rest || !file.damage.is_empty();
        }
        Ok((files, torn))
    }

    fn read(dir: &Path, number: u64, salt: Salt) -> Result<Self, StoreError> {
        let seed = salt.seed(number);
        let path = dir.join(file_name(number));
        let bytes = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
        let mut file = Self {
            number,
            seed,
            path,
            length: bytes.len() as u64,
            end: 0,
            before: None,
            damage: Vec::new(),
            is_damaged: false,
            has_rest: false,
        };
        let mut layout = record::LAYOUT;
        record::scan(&bytes, seed, |item| match item {
            Item::Record(record) => {
                file.end = record.at.end;
                let broken = file.damage.first().map_or(usize::MAX, |range| range.start);
                file.is_damaged |= record.base as usize > broken;
                if record.kind == Kind::Start
                    && let Some((found, before)) = record::parse_start(record.body)
                {
                    (layout, file.before) = (found, Some(before));
                }
            }
            Item::Damage(range) => file.damage.push(range),
            Item::End(range) => file.has_rest = bytes.get(range).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)),
        });
        if layout == record::LAYOUT {
            return Ok(file);
        }
        Err(StoreError::Mismatch {
            what: format!("{} has layout {layout}; this build knows {}", file.path.display(), record::LAYOUT),
            hint: "start this directory with the build that wrote it",
        })
    }

    /// Where it is to be cut: its last write was torn, and nothing of it was ever fsynced behind here.
    fn torn_at(&self) -> Option<usize> {
        if self.is_damaged {
            return None;
        }
        self.damage.first().map(|range| range.start).or(self.has_rest.then_some(self.end))
    }

    fn bytes(&self) -> Result<Vec<u8>, StoreError> {
        std::fs::read(&self.path).map_err(StoreError::io("read", &self.path))
    }
}

/// Cuts the end of the last segment off, if it is torn, and what was left of its blocks in any case.
fn cut_torn_end(files: &mut [SegmentFile]) -> Result<Option<TornTail>, StoreError> {
    let Some(last) = files.last_mut() else { return Ok(None) };
    let torn = last.torn_at();
    let kept = torn.unwrap_or(last.end) as u64;
    if last.is_damaged {
        return Ok(None);
    }
    let file = std::fs::OpenOptions::new().write(true).open(&last.path).map_err(StoreError::io("open", &last.path))?;
    file.set_len(kept).map_err(StoreError::io("cut", &last.path))?;
    file.sync_all().map_err(StoreError::io("fsync", &last.path))?;
    let cut = last.length - kept;
    (last.length, last.has_rest) = (kept, false);
    last.damage.clear();
    last.end = torn.unwrap_or(last.end);
    Ok(torn.map(|_| TornTail { path: last.path.clone(), kept, cut }))
}

/// What the records say beside the entries; the last word counts.
#[derive(Default)]
struct Facts {
    vote: Option<VoteRecord>,
    committed: Option<LogPosition>,
    purged: Link,
}

impl Facts {
    fn of(files: &[SegmentFile], dir: &Path) -> Result<Self, StoreError> {
        let mut facts = Self::default();
        let mut is_readable = true;
        for file in files {
            let bytes = file.bytes()?;
            each_record(&bytes, file.seed, |record| match record.kind {
                Kind::Vote => match record::parse_vote(record.body) {
                    Some(vote) => facts.vote = Some(vote),
                    None => is_readable = false,
                },
                Kind::Purged => match record::parse_link(record.body) {
                    Some(purged) => facts.purged = purged,
                    None => is_readable = false,
                },
                // Only a hint: without it the node learns it from the leader.
                Kind::Committed => facts.committed = record::parse_committed(record.body),
                Kind::Start | Kind::Entry | Kind::Truncated | Kind::Pad => {}
            });
        }
        if is_readable {
            return Ok(facts);
        }
        Err(StoreError::Corrupt {
            what: "a fact of the log".into(),
            path: dir.to_owned(),
            reason: "it does not decode".into(),
            part: Part::Log,
        })
    }
}

/// Walks all entries behind what is purged, and notes where they lie.
fn walk(files: &[SegmentFile], salt: Salt, group: GroupId, facts: &Facts) -> Result<(Walked, State), StoreError> {
    let mut walked = Walked::begin(facts.vote, facts.committed, facts.purged);
    let first = facts.purged.position.map_or(0, |purged| purged.index + 1);
    let (mut held, mut marks) = (VecDeque::new(), VecDeque::<Mark>::new());
    let mut is_apart = true;
    for file in files {
        let bytes = file.bytes()?;
        let mut last: Option<u64> = None;
        each_record(&bytes, file.seed, |record| match record.kind {
            Kind::Entry if record.group == group.0 => {
                let index = frame::index_of(record.body);
                last = last.max(index);
                if index.is_none_or(|index| index < first) || !walked.step(record.body) {
                    return;
                }
                let (index, at) = (index.unwrap_or(first), record.at.start as u32);
                push_mark(&mut marks, &mut is_apart, Mark { index, number: file.number, at });
            }
            Kind::Truncated => {
                if let Some(link) = record::parse_link(record.body) {
                    walked.truncate(link);
                    truncate_marks(&mut marks, walked.last.position.map_or(0, |last| last.index + 1));
                    is_apart = true;
                }
            }
            // A damaged part of the segment may lie between two records.
            _ => is_apart |= record.kind == Kind::Pad,
        });
        held.push_back(Held { number: file.number, last, end: file.end as u32 });
    }
    let next = files.last().map_or(1, |file| file.number + 1);
    Ok((walked, State::found(salt, held, marks, next)))
}

/// Damage, and files that are gone though something in front of them is still of use: who misses them is covered as well.
fn what_is_wrong(files: &mut [SegmentFile], held: &VecDeque<Held>, purged: Link) -> Vec<String> {
    let mut wrong = Vec::new();
    let purged = purged.position.map(|position| position.index);
    let (mut is_of_use, mut before) = (false, None);
    for (at, file) in files.iter_mut().enumerate() {
        let before = before.replace(file.number);
        if let (Some(found), Some(named)) = (before, file.before)
            && is_of_use
            && found != named
        {
            wrong.push(format!("{} is gone", file.path.with_file_name(file_name(named)).display()));
            file.damage.insert(0, 0..record::START_BYTES);
            file.is_damaged = true;
        } else if file.is_damaged {
            let mut ranges: Vec<_> = file.damage.iter().map(|range| format!("{}-{}", range.start, range.end)).collect();
            if file.has_rest {
                ranges.push(format!("{}-{}", file.end, file.length));
            }
            wrong.push(format!("bytes {} of {} are not what was written", ranges.join(", "), file.path.display()));
        }
        is_of_use |=
            held.get(at).and_then(|held| held.last).is_some_and(|last| purged.is_none_or(|purged| last > purged));
    }
    wrong
}

/// Copies what is damaged to `quarantine/`: an operator may want to know. A disk without room for it goes without.
fn keep_copies(data: &DataDir, files: &[SegmentFile]) -> Result<PathBuf, StoreError> {
    let target = files::quarantine_dir(data.path(), "raft")?;
    for file in files.iter().filter(|file| file.is_damaged) {
        let copy = target.join(file_name(file.number));
        match std::fs::copy(&file.path, &copy) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {}
            Err(error) => return Err(StoreError::io("copy", &file.path)(error)),
            Ok(_) => files::sync_file(&copy)?,
        }
    }
    files::sync_dir(&target)?;
    Ok(target)
}

/// Puts records that say nothing where there are none.
fn cover_damage(files: &[SegmentFile], group: GroupId) -> Result<(), StoreError> {
    for file in files.iter().filter(|file| file.is_damaged) {
        let open = std::fs::OpenOptions::new().write(true).open(&file.path);
        let target = open.map_err(StoreError::io("open", &file.path))?;
        for range in &file.damage {
            let pad = record::pad(file.seed, range.start as u32, group, range.len());
            target.write_all_at(&pad, range.start as u64).map_err(StoreError::io("write", &file.path))?;
        }
        target.set_len(file.end as u64).map_err(StoreError::io("cut", &file.path))?;
        target.sync_all().map_err(StoreError::io("fsync", &file.path))?;
    }
    Ok(())
}
