//! Examinations: the state read exactly at an index, so that replicas can be compared row for row.
//!
//! Invariants: the view of an examination has exactly its index applied; an apply batch ends at every index that is
//! waited for; reading keeps to a pace and is given up when the state it reads is replaced.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_store::{ScrubReport, StateStore, StoreError, View};

/// Examinations kept at once; the oldest index gives way, and last of all one that is being read.
const EXAMS_MAX: usize = 4;
/// No index is waited for.
const NONE: u64 = u64::MAX;
/// Faults told to others.
const FAULTS_TOLD_MAX: usize = 5;

/// What a state is at one index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Hash of position, membership, chains and group facts.
    pub heads: [u8; 32],
    /// Chain over the entries.
    pub entry_chain: [u8; 32],
    /// Chain over the effects.
    pub effect_chain: [u8; 32],
    /// Digest over all users, as it is kept.
    pub digest: [u8; 32],
    /// Hash of each family's rows, by tag; empty when rows were not read.
    pub families: Vec<[u8; 32]>,
    /// Rows that contradict each other or the digests.
    pub fault_count: u64,
    /// The first of them.
    pub faults: Vec<String>,
}

impl Findings {
    fn heads_of(view: &View) -> Self {
        Self {
            heads: view.heads_hash(),
            entry_chain: view.applied().entry_chain,
            effect_chain: view.applied().effect_chain,
            digest: view.sys().digest.0,
            ..Self::default()
        }
    }

    fn with_rows(self, read: Result<ScrubReport, StoreError>) -> Self {
        match read {
            Ok(report) => {
                let told = report.faults.iter().take(FAULTS_TOLD_MAX).map(|fault| match fault.user {
                    Some(user) => format!("user {}: {}", user.uid.0, fault.what),
                    None => fault.what.clone(),
                });
                let faults = told.collect();
                Self { families: report.families.to_vec(), fault_count: report.fault_count, faults, ..self }
            }
            // Rows that cannot be read are rows that are not there.
            Err(error) => Self { families: vec![[0; 32]], fault_count: 1, faults: vec![error.to_string()], ..self },
        }
    }

    /// One hash over all rows.
    pub fn rows_hash(&self) -> [u8; 32] {
        *blake3::hash(&self.families.concat()).as_bytes()
    }

    /// Nothing in it contradicts itself.
    pub fn is_sound(&self) -> bool {
        self.fault_count == 0
    }
}

/// How far an examination is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Its index is not applied yet.
    Waiting,
    /// The state is beyond its index.
    Missed,
    /// Rows are read; the heads are known.
    Reading(Findings),
    /// Done.
    Done(Findings),
}

struct Exam {
    rows: bool,
    stage: Stage,
    given_up: Arc<AtomicBool>,
}

/// Hears what a reading of all rows found, and at which index.
pub type OnRead = Box<dyn Fn(u64, &Findings) + Send + Sync>;

/// The examinations of a node.
pub struct Exams {
    exams: Mutex<BTreeMap<u64, Exam>>,
    /// Lowest index that is waited for.
    nearest: AtomicU64,
    bytes_per_second: u64,
    on_read: OnRead,
    /// Nothing is read any more.
    stopped: Arc<AtomicBool>,
    /// Threads that read.
    reading: AtomicUsize,
}

impl Exams {
    /// Reads at most so many bytes a second.
    pub fn new(bytes_per_second: u64, on_read: OnRead) -> Arc<Self> {
        Arc::new(Self {
            exams: Mutex::default(),
            nearest: AtomicU64::new(NONE),
            bytes_per_second,
            on_read,
            stopped: Arc::default(),
            reading: AtomicUsize::new(0),
        })
    }

    /// Set once nothing is to be read any more.
    pub fn stopped(&self) -> Arc<AtomicBool> {
        self.stopped.clone()
    }

    /// Gives up all reading, and waits a moment for its end: nobody must read a database that is about to go.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.clear();
        let end = Instant::now() + Duration::from_secs(1);
        while self.reading.load(Ordering::Acquire) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// An apply batch ends at this index.
    pub fn ends_at(&self, index: u64) -> bool {
        self.nearest.load(Ordering::Acquire) == index
    }

    /// The state is exactly at `index` while this call lasts.
    pub fn applied(self: &Arc<Self>, index: u64, state: &StateStore) {
        if self.nearest.load(Ordering::Acquire) > index {
            return;
        }
        let mut exams = self.lock();
        for (at, exam) in exams.iter_mut().filter(|(_, exam)| exam.stage == Stage::Waiting) {
            match (*at).cmp(&index) {
                std::cmp::Ordering::Less => exam.stage = Stage::Missed,
                std::cmp::Ordering::Equal => self.begin(index, exam, state.view()),
                std::cmp::Ordering::Greater => {}
            }
        }
        self.note_nearest(&exams);
    }

    /// Asks for an examination, or how far it is.
    pub fn ask(self: &Arc<Self>, index: u64, rows: bool, state: &StateStore) -> Stage {
        let mut exams = self.lock();
        let known = exams.get(&index).is_some_and(|exam| exam.rows || !rows);
        if !known {
            while exams.len() >= EXAMS_MAX {
                // One that is being read may take hours; it goes last.
                let idle = exams.iter().find(|(_, exam)| !matches!(exam.stage, Stage::Reading(_)));
                let Some(oldest) = idle.or(exams.iter().next()).map(|(index, _)| *index) else { break };
                if let Some(exam) = exams.remove(&oldest) {
                    exam.given_up.store(true, Ordering::Release);
                }
            }
            exams.insert(index, Exam { rows, stage: Stage::Waiting, given_up: Arc::default() });
            // First of all the index is waited for: what is applied from here on ends a batch at it.
            self.note_nearest(&exams);
        }
        let Some(exam) = exams.get_mut(&index) else { return Stage::Missed };
        if exam.stage == Stage::Waiting && !self.stopped.load(Ordering::Acquire) {
            let view = state.view();
            match view.applied().index().cmp(&index) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => self.begin(index, exam, view),
                std::cmp::Ordering::Greater => exam.stage = Stage::Missed,
            }
        }
        let stage = exam.stage.clone();
        self.note_nearest(&exams);
        stage
    }

    /// The state was replaced: what was read of it says nothing any more.
    pub fn clear(&self) {
        let mut exams = self.lock();
        for exam in std::mem::take(&mut *exams).into_values() {
            exam.given_up.store(true, Ordering::Release);
        }
        self.note_nearest(&exams);
    }

    fn begin(self: &Arc<Self>, index: u64, exam: &mut Exam, view: View) {
        let heads = Findings::heads_of(&view);
        if !exam.rows {
            exam.stage = Stage::Done(heads);
            return;
        }
        exam.stage = Stage::Reading(heads.clone());
        let (exams, given_up) = (self.clone(), exam.given_up.clone());
        let read = move || {
            let mut pace = pace(exams.bytes_per_second, given_up.clone());
            let found = match view.scrub_at(&mut pace) {
                Ok(None) => None,
                Ok(Some(report)) => Some(heads.with_rows(Ok(report))),
                Err(error) => Some(heads.with_rows(Err(error))),
            };
            drop(view);
            exams.reading.fetch_sub(1, Ordering::AcqRel);
            let Some(found) = found.filter(|_| !given_up.load(Ordering::Acquire)) else { return };
            (exams.on_read)(index, &found);
            if let Some(exam) = exams.lock().get_mut(&index) {
                exam.stage = Stage::Done(found);
            }
        };
        self.reading.fetch_add(1, Ordering::AcqRel);
        // A thread of its own: at its pace it may take hours.
        if let Err(error) = std::thread::Builder::new().name("scrub".into()).spawn(read) {
            self.reading.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(event = "integrity.not_read", %error, "no thread for reading the state");
            exam.stage = Stage::Missed;
        }
    }

    fn note_nearest(&self, exams: &BTreeMap<u64, Exam>) {
        let waiting = exams.iter().find(|(_, exam)| exam.stage == Stage::Waiting);
        self.nearest.store(waiting.map_or(NONE, |(index, _)| *index), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Exam>> {
        self.exams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sleeps so that no more than so many bytes are read in a second; false once it is given up.
pub fn pace(bytes_per_second: u64, given_up: Arc<AtomicBool>) -> impl FnMut(u64) -> bool {
    let began = Instant::now();
    let mut total: u64 = 0;
    move |bytes| {
        total += bytes;
        let due = Duration::from_secs_f64(total as f64 / bytes_per_second.max(1) as f64);
        while let Some(early) = due.checked_sub(began.elapsed()).filter(|early| !early.is_zero()) {
            if given_up.load(Ordering::Acquire) {
                return false;
            }
            std::thread::sleep(early.min(Duration::from_millis(200)));
        }
        !given_up.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use holdfast_model::command::Operation;
    use holdfast_model::id::GroupId;
    use holdfast_model::state::{Effect, Effects};
    use holdfast_store::{Applied, DataDir, LogPosition};

    use super::*;

    fn advance(state: &StateStore, exams: &Arc<Exams>, index: u64) {
        let mut batch = state.begin();
        let mut applied = batch.applied().clone();
        applied.position = Some(LogPosition { term: 1, node: 1, index });
        batch.set_applied(applied);
        state.commit(batch).expect("committed");
        exams.applied(index, state);
    }

    fn wait_done(exams: &Arc<Exams>, index: u64, state: &StateStore) -> Findings {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Stage::Done(found) = exams.ask(index, true, state) {
                return found;
            }
            assert!(Instant::now() < end, "it is never read");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_state_is_read_exactly_at_the_index_that_was_asked_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = DataDir::open_or_create(dir.path(), 1, [7; 16]).expect("a directory");
        let state = StateStore::open(&data, GroupId(0)).expect("a state");
        let exams = Exams::new(1 << 30, Box::new(|_, _| {}));
        advance(&state, &exams, 5);
        assert_eq!(exams.ask(4, true, &state), Stage::Missed, "it is beyond that");
        assert_eq!(exams.ask(7, true, &state), Stage::Waiting);
        assert!(exams.ends_at(7) && !exams.ends_at(6));
        advance(&state, &exams, 6);
        assert_eq!(exams.ask(7, true, &state), Stage::Waiting);
        advance(&state, &exams, 7);
        advance(&state, &exams, 8);
        let found = wait_done(&exams, 7, &state);
        assert_eq!(found.families.len(), 8);
        assert!(!exams.ends_at(7), "nothing waits any more");
        let here = wait_done(&exams, 8, &state);
        assert_ne!((found.heads, &found.families), (here.heads, &here.families), "another position");
        assert_eq!(exams.ask(9, false, &state), Stage::Waiting);
        advance(&state, &exams, 10);
        assert_eq!(exams.ask(9, false, &state), Stage::Missed, "a batch went past it");
        assert!(matches!(exams.ask(8, true, &state), Stage::Done(_)), "what was read is kept");
        exams.clear();
        assert_eq!(exams.ask(8, true, &state), Stage::Missed, "of a state that is gone nothing is known");
    }

    /// A large state takes longer to read than the next comparisons of heads take to come.
    #[test]
    fn a_state_that_is_being_read_is_read_to_its_end() {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = DataDir::open_or_create(dir.path(), 1, [7; 16]).expect("a directory");
        let state = StateStore::open(&data, GroupId(0)).expect("a state");
        let exams = Exams::new(1, Box::new(|_, _| {}));
        let mut batch = state.begin();
        let job = Operation { id: "long".into(), error: "x".repeat(100_000), ..Operation::default() };
        let effects = Effects { rows: vec![Effect::PutOperation(job)], ..Effects::default() };
        batch.apply_effects(&effects).expect("applied");
        let applied = batch.applied().clone();
        batch.set_applied(Applied { position: Some(LogPosition { term: 1, node: 1, index: 5 }), ..applied });
        state.commit(batch).expect("committed");
        assert!(matches!(exams.ask(5, true, &state), Stage::Reading(_)));
        for index in 6..20 {
            advance(&state, &exams, index);
            assert!(matches!(exams.ask(index, false, &state), Stage::Done(_)), "{index}");
        }
        assert!(matches!(exams.ask(5, true, &state), Stage::Reading(_)), "not given up");
        exams.stop();
        assert_eq!(exams.reading.load(Ordering::Acquire), 0, "nobody reads any more");
    }
}
