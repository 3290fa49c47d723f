//! How long a restore takes: before it begins, and while it runs.
//!
//! A restore reads and checks everything, loads the snapshot into every directory, and replays the log there. What each of
//! these took on one machine is known, and better: what they took in the newest drills, if any was recorded. Another machine is as
//! many times slower, or quicker, in what it has still to do as it was in what it has done, once that was enough to tell.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_archive::restore::{CHANGE_WEIGHT, ENTRY_WEIGHT};
use holdfast_archive::verification::{DrillTimes, RestoreWork};
use holdfast_archive::{Manifest, RestorePlan, RestoreStage};
use indicatif::ProgressBar;

use crate::progress;

/// Rates on the machine that the estimates began with (`make bench-restore`: two cores, a disk of 0.2 to 0.3 GB/s, three
/// directories, payloads of 200 bytes, 1 KiB and 20 kB). Reading and checking a snapshot: stored bytes, and records besides.
const VERIFY_CHUNK_BYTES_PER_MS: f64 = 1_900_000.0;
const VERIFY_RECORDS_PER_MS: f64 = 6_000.0;
/// And a log: stored bytes, entries, and changes in them.
const VERIFY_LOG_BYTES_PER_MS: f64 = 1_200_000.0;
const VERIFY_ENTRIES_PER_MS: f64 = 380.0;
const VERIFY_CHANGES_PER_MS: f64 = 3_700.0;
/// Until directories are open, and the first rows or entries come out of a second reading.
const LOADING_BEGINS_MS: f64 = 40.0;
const REPLAYING_BEGINS_MS: f64 = 100.0;
/// Putting base and layers together: plain bytes, and records besides; and plain bytes when what comes of it is loaded, for
/// the disks wait meanwhile.
const COMPOSE_BYTES_PER_MS: f64 = 2_500_000.0;
const COMPOSE_RECORDS_PER_MS: f64 = 4_500.0;
const LOAD_COMPOSED_BYTES_PER_MS: f64 = 290_000.0;
/// Loading: plain bytes, which go to the disk of all directories, and records besides, sorted by as many directories at a time
/// as there are processors.
const LOAD_BYTES_PER_MS: f64 = 365_000.0;
const LOAD_RECORDS_PER_MS: f64 = 706.0;
/// So many plain bytes are handed over to a directory before they are on its disk: they come in quicker at first,
/// and are still to be written at the end. More of them where records are small: sorting those takes longer than writing them.
const LOAD_AHEAD_BYTES: f64 = 30e6;
const LOAD_AHEAD_BYTES_OF_SMALL: f64 = 60e6;
/// What is handed over at first counts so much.
const LOAD_AT_FIRST: f64 = 0.65;
/// Replaying: of what an archive counts ([`holdfast_archive::restore::replay_weight`]).
const REPLAY_WEIGHT_PER_MS: f64 = 168_000.0;
/// What is replayed is sorted again and again, beyond so many bytes of it; large payloads lie in files of their own, and are
/// not. On two cores three directories share, that is beside everything else.
const SORTED_AGAIN_BEYOND_BYTES: f64 = 256e6;
const SORTED_AGAIN_BYTES_PER_MS: f64 = 149_000.0;
/// A payload of so many bytes lies in a file of its own.
const LARGE_BYTES: f64 = 4096.0;
/// All entries are handed over when this share of the replay is done; the rest of it writes them to disks.
const REPLAY_HANDED_OVER: f64 = 0.93;
/// For one directory to be opened and its first rows to be on its disk, and for it to be opened again, flushed and seated, with
/// as many at a time as there are processors.
const LOADED_DIRECTORY_MS: f64 = 45.0;
const DIRECTORY_MS: f64 = 80.0;
/// From one line for programs to the next.
const LINE_PAUSE: Duration = Duration::from_millis(500);
/// What was seen of a stage counts as much as what all before it let expect, once this share of it is done.
const BELIEVED: f64 = 0.5;
/// Work for so long, on the machine of the rates, tells how fast this one is. The first calls and the first bytes do not.
const TELLING_MS: f64 = 50.0;
/// What a stage took in a drill tells as much of a longer one as what loading and replaying took together, once it takes so
/// long on the machine of the rates.
const DRILLED_BELIEVED_MS: f64 = 500.0;
/// Usual rates weigh as much as so many drills: the disk of one machine is a sixth quicker now, and slower then, and other
/// machines are twice as fast or slow.
const DRILLS_BEFORE: f64 = 0.15;
/// By so much, as a natural logarithm, stages differ on one machine in how fast they are; and where a drill told how fast each
/// is, a machine must be so far off to be another one.
const USUAL_SPREAD: f64 = 0.4;
const DRILLED_SPREAD: f64 = 2.0;

/// A stage in which there is less to do is none.
const SHORTEST_MS: f64 = 1.0;
/// No drill is so far off what is known, but by a clock that jumped, or by words that somebody else laid there.
const PACE_MAX: f64 = 30.0;
const NEVER_DRILLED: [f64; 3] = [1.0; 3];

const STAGES: [RestoreStage; 3] = [RestoreStage::Verify, RestoreStage::Load, RestoreStage::Replay];

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Stored bytes of the snapshot, and its plain ones.
    chunk_bytes: f64,
    load_bytes: f64,
    records: f64,
    /// It has layers.
    is_composed: bool,
    log_bytes: f64,
    entries: f64,
    /// In all entries.
    changes: f64,
    directories: f64,
    processors: f64,
    /// How many times longer than usual each stage took in drills.
    drilled: [f64; 3],
}

impl Work {
    /// Of a plan, into so many directories.
    pub fn of(plan: &RestorePlan, directories: usize) -> Self {
        let log_bytes: u64 = plan.log.iter().flat_map(|log| &log.segments).map(|segment| segment.bytes).sum();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let entries = plan.last.index.saturating_sub(plan.snapshot_index()) as f64;
        let snapshot = plan.snapshot.as_ref();
        let chunk_bytes = snapshot.map_or(0, Manifest::stored_length) as f64;
        // An entry holds at least one change, and changes are as large as the records are.
        let changes = entries.max(log_bytes as f64 * plan.records() as f64 / chunk_bytes.max(1.0));
        Self {
            chunk_bytes,
            load_bytes: snapshot.map_or(0, Manifest::plain_length) as f64,
            records: plan.records() as f64,
            is_composed: snapshot.is_some_and(|manifest| !manifest.layers.is_empty()),
            log_bytes: log_bytes as f64,
            entries,
            changes,
            directories: directories as f64,
            processors: processors as f64,
            drilled: NEVER_DRILLED,
        }
    }

    /// Of a drill.
    fn of_drill(work: &RestoreWork) -> Self {
        Self {
            chunk_bytes: work.snapshot_bytes as f64,
            load_bytes: work.plain_bytes as f64,
            records: work.records as f64,
            is_composed: work.layered,
            log_bytes: work.log_bytes as f64,
            entries: work.entries as f64,
            changes: work.changes as f64,
            directories: work.directories as f64,
            processors: work.processors as f64,
            drilled: NEVER_DRILLED,
        }
    }

    /// For the record of a drill.
    pub fn recorded(&self) -> RestoreWork {
        RestoreWork {
            snapshot_bytes: self.chunk_bytes as u64,
            plain_bytes: self.load_bytes as u64,
            records: self.records as u64,
            layered: self.is_composed,
            log_bytes: self.log_bytes as u64,
            entries: self.entries as u64,
            changes: self.changes as u64,
            directories: self.directories as u64,
            processors: self.processors as u64,
        }
    }

    /// The same, at the pace of drills.
    pub fn at_pace_of(self, drills: &[(&DrillTimes, &RestoreWork)]) -> Self {
        if drills.is_empty() {
            return self;
        }
        let paces: Vec<[f64; 3]> = drills.iter().map(|(times, work)| self.told_by(times, work)).collect();
        let count = paces.len() as f64;
        let mean = |at: usize| paces.iter().map(|pace| pace[at].ln()).sum::<f64>() / (count + DRILLS_BEFORE);
        Self { drilled: [0, 1, 2].map(|at| mean(at).exp()), ..self }
    }

    /// How many times longer than usual each stage of this takes, as a drill tells.
    ///
    /// As much as the drill did takes what it took there, however short that was; what is beyond goes at the pace of the drill.
    fn told_by(&self, times: &DrillTimes, work: &RestoreWork) -> [f64; 3] {
        let drilled = Self::of_drill(work);
        let paces = Self::pace(times, work);
        let took = [times.verify_ms, times.load_ms, times.replay_ms].map(|ms| ms as f64);
        [0, 1, 2].map(|at| {
            let (here, there) = (self.usual_ms(STAGES[at]), drilled.usual_ms(STAGES[at]));
            let took = took[at].clamp(there / PACE_MAX, there * PACE_MAX);
            if there < SHORTEST_MS || here < SHORTEST_MS {
                paces[at]
            } else if here <= there {
                took / there
            } else {
                (took + (here - there) * paces[at]) / here
            }
        })
    }

    /// How many times longer than usual each stage of a drill took, as far as that tells of longer ones.
    fn pace(times: &DrillTimes, work: &RestoreWork) -> [f64; 3] {
        let usual = STAGES.map(|stage| Self::of_drill(work).usual_ms(stage));
        let took = [times.verify_ms, times.load_ms, times.replay_ms].map(|ms| ms as f64);
        // Loading and replaying write the same disks. A short stage tells little of a long one.
        let of = |took: f64, usual: f64, otherwise: f64| {
            let times = (took + otherwise * DRILLED_BELIEVED_MS) / (usual + DRILLED_BELIEVED_MS);
            times.clamp(1.0 / PACE_MAX, PACE_MAX)
        };
        let verify = of(took[0], usual[0], 1.0);
        let written = of(took[1] + took[2], usual[1] + usual[2], verify);
        [verify, of(took[1], usual[1], written), of(took[2], usual[2], written)]
    }

    /// Directories for each processor.
    fn rounds(&self) -> f64 {
        (self.directories / self.processors.max(1.0)).max(1.0)
    }

    /// The same, once the log was read.
    pub fn replaying(self, weight: u64) -> Self {
        let of_changes = weight as f64 - self.log_bytes - self.entries * ENTRY_WEIGHT as f64;
        Self { changes: (of_changes / CHANGE_WEIGHT as f64).max(0.0), ..self }
    }

    /// What a stage takes on the machine of the drill, or of the constants, in milliseconds.
    fn known_ms(&self, stage: RestoreStage) -> f64 {
        self.usual_ms(stage) * self.drilled[place(stage)]
    }

    /// What it takes on the machine of the constants.
    fn usual_ms(&self, stage: RestoreStage) -> f64 {
        let composed = match self.is_composed {
            true => self.load_bytes / COMPOSE_BYTES_PER_MS + self.records / COMPOSE_RECORDS_PER_MS,
            false => 0.0,
        };
        match stage {
            RestoreStage::Verify => {
                let log = self.log_bytes / VERIFY_LOG_BYTES_PER_MS
                    + self.entries / VERIFY_ENTRIES_PER_MS
                    + self.changes / VERIFY_CHANGES_PER_MS;
                let rows = self.chunk_bytes / VERIFY_CHUNK_BYTES_PER_MS + self.records / VERIFY_RECORDS_PER_MS;
                rows + composed + log + self.begins_ms()
            }
            RestoreStage::Load => {
                let together = if self.is_composed { self.load_bytes / LOAD_COMPOSED_BYTES_PER_MS } else { 0.0 };
                let opened = if self.load_bytes > 0.0 { LOADED_DIRECTORY_MS * self.rounds() } else { 0.0 };
                opened + self.written_ms() + self.sorted_ms() + together
            }
            RestoreStage::Replay => {
                let weight = self.log_bytes + self.entries * ENTRY_WEIGHT as f64 + self.changes * CHANGE_WEIGHT as f64;
                (weight / REPLAY_WEIGHT_PER_MS + DIRECTORY_MS + self.sorted_again_ms(1.0)) * self.rounds()
            }
        }
    }

    /// What a snapshot's bytes take to reach the disk of all directories.
    fn written_ms(&self) -> f64 {
        self.load_bytes * self.directories / LOAD_BYTES_PER_MS
    }

    /// And its records to be sorted in each.
    fn sorted_ms(&self) -> f64 {
        self.records / LOAD_RECORDS_PER_MS * self.rounds()
    }

    /// Between the last of the reading and the first of what comes then.
    fn begins_ms(&self) -> f64 {
        match (self.load_bytes > 0.0, self.log_bytes > 0.0) {
            (true, _) => LOADING_BEGINS_MS,
            (false, true) => REPLAYING_BEGINS_MS,
            (false, false) => 0.0,
        }
    }

    /// How long sorting again what was sorted before takes, up to this share of a replay.
    fn sorted_again_ms(&self, share: f64) -> f64 {
        if self.log_bytes > LARGE_BYTES * self.changes {
            return 0.0;
        }
        (self.log_bytes * share - SORTED_AGAIN_BEYOND_BYTES).max(0.0) / SORTED_AGAIN_BYTES_PER_MS
    }

    /// Share of the loading that a directory is handed before it is on its disk.
    fn load_ahead(&self) -> f64 {
        let [bytes, records] = [self.written_ms(), self.sorted_ms()];
        let of_small = records / (bytes + records).max(1.0);
        (LOAD_AHEAD_BYTES + LOAD_AHEAD_BYTES_OF_SMALL * of_small) / self.load_bytes.max(1.0)
    }

    /// What was done of a stage, in milliseconds of what it is known to take, when so much of it was handed over.
    fn done_ms(&self, stage: RestoreStage, share: f64) -> f64 {
        let known = self.known_ms(stage);
        match stage {
            RestoreStage::Verify => share * (known - self.begins_ms()),
            RestoreStage::Load => known * (share * LOAD_AT_FIRST).max(share - self.load_ahead()),
            RestoreStage::Replay => {
                let sorted = |share| self.sorted_again_ms(share) * self.rounds() * self.drilled[place(stage)];
                ((known - sorted(1.0)) * share + sorted(share)) * REPLAY_HANDED_OVER
            }
        }
    }

    fn is_drilled(&self) -> bool {
        self.drilled != NEVER_DRILLED
    }

    fn spread(&self) -> f64 {
        if self.is_drilled() { DRILLED_SPREAD } else { USUAL_SPREAD }
    }

    /// How long a restore takes here, if reading and checking everything took `verified`.
    pub fn estimate(&self, verified: Duration) -> Duration {
        let [verify, load, replay] = STAGES.map(|stage| self.known_ms(stage));
        let begins = self.begins_ms();
        let slower = times(verified, verify - begins, self.spread());
        // What reading takes is known better from drills than from one look, which may have met a busy disk.
        let read = if self.is_drilled() { (verify - begins) * slower } else { verified.as_secs_f64() * 1000.0 };
        Duration::from_secs_f64((read + (begins + load + replay) * slower) / 1000.0)
    }
}

/// How many times slower this machine is than the one of the rates, if it took `elapsed` for what that one does in `known_ms`.
///
/// A third more or less tells little: how fast one stage goes differs by as much from what another one lets expect. Twice as
/// much tells of the machine.
fn times(elapsed: Duration, known_ms: f64, spread: f64) -> f64 {
    if known_ms < TELLING_MS {
        return 1.0;
    }
    let seen = (elapsed.as_secs_f64() * 1000.0 / known_ms).ln();
    (seen * seen.powi(2) / (seen.powi(2) + spread.powi(2))).exp()
}

/// Where a restore is.
#[derive(Debug, Clone, Copy)]
struct Now {
    stage: RestoreStage,
    /// Share of it that is done.
    share: f64,
    /// Since the restore and this stage of it began.
    elapsed: Duration,
    in_stage: Duration,
}

/// What is left to do, in time.
fn left(work: &Work, now: Now) -> Duration {
    let at = place(now.stage);
    let known = STAGES.map(|stage| work.known_ms(stage));
    let done = work.done_ms(now.stage, now.share);
    let slower = times(now.elapsed, known[..at].iter().sum::<f64>() + done, work.spread());
    // The longer a stage goes on, the more it tells itself how fast it goes; its beginning flatters, for caches are empty.
    let expected = known[at] * BELIEVED;
    let seen = now.in_stage.as_secs_f64() * 1000.0;
    let here = if done < TELLING_MS { slower } else { (seen + expected * slower) / (done + expected) };
    let ahead: f64 = known[at + 1..].iter().sum();
    Duration::from_secs_f64(((known[at] - done) * here + ahead * slower) / 1000.0)
}

fn place(stage: RestoreStage) -> usize {
    match stage {
        RestoreStage::Verify => 0,
        RestoreStage::Load => 1,
        RestoreStage::Replay => 2,
    }
}

fn word(stage: RestoreStage) -> &'static str {
    match stage {
        RestoreStage::Verify => "verify",
        RestoreStage::Load => "load",
        RestoreStage::Replay => "replay",
    }
}

/// When stages began.
#[derive(Debug)]
struct Course {
    work: Work,
    began: [Option<Instant>; 3],
    told: Option<Instant>,
}

/// Shows a restore to people on a terminal, and as lines to programs that asked for them.
#[derive(Debug)]
pub struct Watch {
    bar: ProgressBar,
    lines: bool,
    began: Instant,
    course: Mutex<Course>,
}

impl Watch {
    /// From now on. `lines`: to stderr, as JSON, two a second.
    pub fn begin(work: Work, lines: bool) -> Self {
        let course = Mutex::new(Course { work, began: [None; 3], told: None });
        Self { bar: progress::bar(0, ""), lines, began: Instant::now(), course }
    }

    /// So much of a stage is done.
    pub fn shown(&self, stage: RestoreStage, done: u64, total: u64) {
        let now = Instant::now();
        let mut course = self.course.lock().unwrap_or_else(PoisonError::into_inner);
        let at = place(stage);
        if stage == RestoreStage::Replay && done == 0 {
            course.work = course.work.replaying(total);
            return;
        }
        // The reading begins with the restore.
        let began = *course.began[at].get_or_insert(if at == 0 { self.began } else { now });
        let share = if total == 0 { 1.0 } else { done as f64 / total as f64 };
        let left = left(&course.work, Now { stage, share, elapsed: now - self.began, in_stage: now - began });
        self.bar.set_message(format!("{}, about {} left", title(stage), rounded(left)));
        self.bar.set_length(total);
        self.bar.set_position(done);
        if self.lines && course.told.is_none_or(|told| now - told >= LINE_PAUSE) {
            course.told = Some(now);
            let line = serde_json::json!({"progress": {
                "stage": word(stage), "done": done, "total": total, "elapsed_ms": (now - self.began).as_millis() as u64,
                "eta_ms": left.as_millis() as u64,
            }});
            // Whoever closed stderr wants no more of it.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// It ended; gives the time of each stage, in milliseconds, and what was done.
    pub fn end(self) -> (serde_json::Value, RestoreWork) {
        self.bar.finish_and_clear();
        let course = self.course.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut times = serde_json::Map::new();
        let mut until = Instant::now();
        for stage in STAGES.into_iter().rev() {
            if let Some(began) = course.began[place(stage)] {
                times.insert(word(stage).to_owned(), ((until - began).as_millis() as u64).into());
                until = began;
            }
        }
        (times.into(), course.work.recorded())
    }
}

/// What a stage does, for people.
pub fn title(stage: RestoreStage) -> &'static str {
    match stage {
        RestoreStage::Verify => "checking every object",
        RestoreStage::Load => "loading the snapshot",
        RestoreStage::Replay => "replaying the log",
    }
}

/// As people say it: `4 s`, `3 min`, `2 h 10 min`.
pub fn rounded(time: Duration) -> String {
    let seconds = (time.as_secs_f64().round() as u64).max(1);
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5_400 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests;
