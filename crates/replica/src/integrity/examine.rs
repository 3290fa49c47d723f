//! Examinations: the state read exactly at an index, so that replicas can be compared row for row.
//!
//! Invariants: the view of an examination has exactly its index applied; an apply batch ends at every index that is
//! waited for; what was read of a state is never told of the one that replaced it, nor twice to two comparisons with
//! time between them; all reading of a node keeps to one pace and is given up when the state it reads is replaced; a
//! reading ends, whatever becomes of its thread.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_store::{ScrubReport, StateStore, StoreError, View};

use crate::integrity::pace::{Pacer, Pulse};

/// Examinations kept at once; the oldest index gives way, and last of all one that is being read.
const EXAMS_MAX: usize = 4;
/// Threads that read at once, those included that were given up and have not noticed yet.
const READINGS_MAX: usize = 2 * EXAMS_MAX;
/// No index is waited for.
const NONE: u64 = u64::MAX;
/// Faults told to others.
const FAULTS_TOLD_MAX: usize = 5;

/// What a state is at one index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Which installation of that node's state; 0 = not said.
    pub installation: u64,
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
            installation: view.installation(),
            heads: view.heads_hash(),
            entry_chain: view.applied().entry_chain,
            effect_chain: view.applied().effect_chain,
            digest: view.sys().digest.0,
            ..Self::default()
        }
    }

    /// `Err`: why the rows could not be read, when that says nothing of them.
    fn with_rows(self, read: Result<ScrubReport, StoreError>) -> Result<Self, String> {
        match read {
            Ok(report) => {
                let told = report.faults.iter().take(FAULTS_TOLD_MAX).map(|fault| match fault.user {
                    Some(user) => format!("user {}: {}", user.uid.0, fault.what),
                    None => fault.what.clone(),
                });
                let faults = told.collect();
                Ok(Self { families: report.families.to_vec(), fault_count: report.fault_count, faults, ..self })
            }
            // Rows that the disk does not give back are rows that are not there.
            Err(error) if error.is_unreadable_state() => {
                Ok(Self { families: vec![[0; 32]], fault_count: 1, faults: vec![error.to_string()], ..self })
            }
            Err(error) => Err(error.to_string()),
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
    /// The rows could not be read, and why; it says nothing of them. The next comparison tries again.
    Failed(String),
}

/// What is asked of an examination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Last entry that is to be applied.
    pub index: u64,
    /// Read every row.
    pub rows: bool,
    /// The comparison that asks: what was read for an earlier one is read again.
    pub round: u64,
}

/// So many comparisons at one index are remembered: no more run at a time.
const EARLIER_MAX: usize = 16;

struct Exam {
    rows: bool,
    /// Comparisons that asked before it ended.
    rounds: BTreeSet<u64>,
    /// Newest comparisons that asked at this index before, and may not have heard what was read for them when another one had
    /// it read again: this reading, later than their question, answers them too. Else two that ask in turn would never end.
    earlier: VecDeque<u64>,
    /// Which state it is of; `None` = it has not begun.
    installation: Option<u64>,
    stage: Stage,
    pulse: Arc<Pulse>,
}

impl Exam {
    fn new(question: Question, earlier: VecDeque<u64>) -> Self {
        Self {
            earlier,
            rows: question.rows,
            rounds: BTreeSet::from([question.round]),
            installation: None,
            stage: Stage::Waiting,
            pulse: Arc::default(),
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Done(_) | Stage::Failed(_))
    }

    /// False, and given up: nobody but this comparison waits for it.
    fn ended_or_wanted_without(&mut self, round: u64) -> bool {
        if self.has_ended() || !self.rounds.remove(&round) || !self.rounds.is_empty() {
            return true;
        }
        self.pulse.give_up();
        false
    }

    /// Given up for another one at the same index, which answers those that asked for it as well.
    fn replaced(self) -> VecDeque<u64> {
        self.pulse.give_up();
        let mut asked = self.earlier;
        asked.extend(self.rounds);
        asked.drain(..asked.len().saturating_sub(EARLIER_MAX));
        asked
    }

    /// It is, or will be, an answer to this question.
    fn answers(&self, question: Question, view: &View) -> bool {
        let covers = self.rows || !question.rows;
        let is_of_this_state = self.installation.is_none_or(|of| of == view.installation());
        // Where nothing is written the index stays, and what the disk gives back may be something else by now.
        let is_for_it = self.rounds.contains(&question.round) || self.earlier.contains(&question.round);
        let is_old = question.rows && self.has_ended() && !is_for_it;
        covers && is_of_this_state && !(is_old && view.applied().index() == question.index)
    }
}

/// Hears how a reading of all rows ended: at which index, and what was found or why nothing was.
pub type OnEnd = Box<dyn Fn(u64, Result<&Findings, &str>) + Send + Sync>;

/// The examinations of a node.
pub struct Exams {
    exams: Mutex<BTreeMap<u64, Exam>>,
    /// Lowest index that is waited for.
    nearest: AtomicU64,
    pacer: Arc<Pacer>,
    /// A reading that shows no sign of life for so long is taken for lost.
    stall: Duration,
    on_end: OnEnd,
    /// Threads that read.
    reading: AtomicUsize,
}

impl Exams {
    /// Reads at this pace.
    pub fn new(pacer: Arc<Pacer>, stall: Duration, on_end: OnEnd) -> Arc<Self> {
        Arc::new(Self {
            exams: Mutex::default(),
            nearest: AtomicU64::new(NONE),
            pacer,
            stall,
            on_end,
            reading: AtomicUsize::new(0),
        })
    }

    /// The pace of all reading.
    pub fn pacer(&self) -> &Arc<Pacer> {
        &self.pacer
    }

    /// Gives up all reading, and waits a moment for its end: nobody must read a database that is about to go.
    pub fn stop(&self) {
        self.pacer.stop();
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
    pub fn ask(self: &Arc<Self>, question: Question, state: &StateStore) -> Stage {
        let Question { index, round, .. } = question;
        let mut exams = self.lock();
        if !exams.get(&index).is_some_and(|exam| exam.answers(question, &state.view())) {
            let replaced = exams.remove(&index);
            let earlier = replaced.map(Exam::replaced).unwrap_or_default();
            // A comparison reads at one index: where its members did not meet, the pace is not spent.
            exams.retain(|_, exam| exam.ended_or_wanted_without(round));
            while exams.len() >= EXAMS_MAX {
                // One that is being read may take hours; it goes last.
                let idle = exams.iter().find(|(_, exam)| !matches!(exam.stage, Stage::Reading(_)));
                let Some(oldest) = idle.or(exams.iter().next()).map(|(index, _)| *index) else { break };
                if let Some(exam) = exams.remove(&oldest) {
                    exam.pulse.give_up();
                }
            }
            exams.insert(index, Exam::new(question, earlier));
            // First of all the index is waited for: what is applied from here on ends a batch at it.
            self.note_nearest(&exams);
        }
        let Some(exam) = exams.get_mut(&index) else { return Stage::Missed };
        if !exam.has_ended() {
            exam.rounds.insert(round);
        }
        if matches!(exam.stage, Stage::Reading(_)) && exam.pulse.idle() >= self.stall {
            exam.pulse.give_up();
            let why = format!("nothing was read for {} s; does the disk answer?", self.stall.as_secs());
            (self.on_end)(index, Err(&why));
            exam.stage = Stage::Failed(why);
        }
        if exam.stage == Stage::Waiting && !self.pacer.is_stopped() {
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

    /// The state is replaced: what was read of it says nothing any more.
    pub fn clear(&self) {
        let mut exams = self.lock();
        for exam in std::mem::take(&mut *exams).into_values() {
            exam.pulse.give_up();
        }
        self.note_nearest(&exams);
    }

    fn begin(self: &Arc<Self>, index: u64, exam: &mut Exam, view: View) {
        let heads = Findings::heads_of(&view);
        exam.installation = Some(heads.installation);
        if !exam.rows {
            exam.stage = Stage::Done(heads);
            return;
        }
        if self.reading.fetch_add(1, Ordering::AcqRel) >= READINGS_MAX {
            self.reading.fetch_sub(1, Ordering::AcqRel);
            let why = format!("{READINGS_MAX} earlier readings have not ended; does the disk answer?");
            (self.on_end)(index, Err(&why));
            exam.stage = Stage::Failed(why);
            return;
        }
        exam.stage = Stage::Reading(heads.clone());
        let (exams, pulse) = (self.clone(), exam.pulse.clone());
        let read = move || {
            pulse.beat();
            // Whatever happens in here, the examination ends, or the comparison that waits for it never would.
            let ended = catch_unwind(AssertUnwindSafe(|| exams.read(heads, view, &pulse)));
            exams.reading.fetch_sub(1, Ordering::AcqRel);
            let Some(ended) = ended.unwrap_or_else(|panic| Some(Err(panic_text(&*panic)))) else { return };
            exams.end(index, ended, &pulse);
        };
        // A thread of its own: at its pace it may take hours.
        if let Err(error) = std::thread::Builder::new().name("scrub".into()).spawn(read) {
            self.reading.fetch_sub(1, Ordering::AcqRel);
            let why = format!("there is no thread for it: {error}");
            (self.on_end)(index, Err(&why));
            exam.stage = Stage::Failed(why);
        }
    }

    /// `None`: it was given up.
    fn read(&self, heads: Findings, view: View, pulse: &Arc<Pulse>) -> Option<Result<Findings, String>> {
        let read = view.scrub_at(&mut self.pacer.pace(pulse.clone())).transpose()?;
        Some(heads.with_rows(read))
    }

    fn end(&self, index: u64, ended: Result<Findings, String>, pulse: &Arc<Pulse>) {
        if pulse.is_given_up() {
            return;
        }
        // Who hears it may fail as well.
        let heard = catch_unwind(AssertUnwindSafe(|| (self.on_end)(index, ended.as_ref().map_err(|why| &why[..]))));
        let ended = heard.map_err(|panic| panic_text(&*panic)).and(ended);
        let mut exams = self.lock();
        let exam = exams.get_mut(&index).filter(|exam| Arc::ptr_eq(&exam.pulse, pulse));
        if let Some(exam) = exam.filter(|_| !pulse.is_given_up()) {
            exam.stage = ended.map_or_else(Stage::Failed, Stage::Done);
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

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(|text| &text[..]));
    format!("the thread that read it panicked: {}", text.unwrap_or("it does not say why"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use holdfast_model::command::Operation;
    use holdfast_model::id::GroupId;
    use holdfast_model::state::{Effect, Effects};
    use holdfast_store::{Applied, DataDir, LogPosition};

    use super::*;

    const STALL: Duration = Duration::from_secs(3600);

    fn asked(index: u64, rows: bool) -> Question {
        Question { index, rows, round: index }
    }

    fn unheard(bytes_per_second: u64) -> Arc<Exams> {
        Exams::new(Pacer::new(bytes_per_second), STALL, Box::new(|_, _| {}))
    }

    fn advance(state: &StateStore, exams: &Arc<Exams>, index: u64) {
        let mut batch = state.begin();
        let mut applied = batch.applied().clone();
        applied.position = Some(LogPosition { term: 1, node: 1, index });
        batch.set_applied(applied);
        state.commit(batch).expect("committed");
        exams.applied(index, state);
    }

    /// With a row of so many bytes, which is read before anything else.
    fn advance_with(state: &StateStore, exams: &Arc<Exams>, index: u64, bytes: usize) {
        let mut batch = state.begin();
        let job = Operation { id: "long".into(), error: "x".repeat(bytes), ..Operation::default() };
        let effects = Effects { rows: vec![Effect::PutOperation(job)], ..Effects::default() };
        batch.apply_effects(&effects).expect("applied");
        let applied = batch.applied().clone();
        batch.set_applied(Applied { position: Some(LogPosition { term: 1, node: 1, index }), ..applied });
        state.commit(batch).expect("committed");
        exams.applied(index, state);
    }

    fn wait_done(exams: &Arc<Exams>, index: u64, state: &StateStore) -> Findings {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Stage::Done(found) = exams.ask(asked(index, true), state) {
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
        let exams = unheard(1 << 30);
        advance(&state, &exams, 5);
        assert_eq!(exams.ask(asked(4, true), &state), Stage::Missed, "it is beyond that");
        assert_eq!(exams.ask(asked(7, true), &state), Stage::Waiting);
        assert!(exams.ends_at(7) && !exams.ends_at(6));
        advance(&state, &exams, 6);
        assert_eq!(exams.ask(asked(7, true), &state), Stage::Waiting);
        advance(&state, &exams, 7);
        advance(&state, &exams, 8);
        let found = wait_done(&exams, 7, &state);
        assert_eq!(found.families.len(), 8);
        assert!(!exams.ends_at(7), "nothing waits any more");
        let here = wait_done(&exams, 8, &state);
        assert_ne!((found.heads, &found.families), (here.heads, &here.families), "another position");
        assert_eq!(exams.ask(asked(9, false), &state), Stage::Waiting);
        advance(&state, &exams, 10);
        assert_eq!(exams.ask(asked(9, false), &state), Stage::Missed, "a batch went past it");
        assert!(matches!(exams.ask(asked(8, true), &state), Stage::Done(_)), "what was read is kept");
        exams.clear();
        assert_eq!(exams.ask(asked(8, true), &state), Stage::Missed, "of a state that is gone nothing is known");
    }

    /// A large state takes longer to read than the next comparisons of heads take to come.
    #[test]
    fn a_state_that_is_being_read_is_read_to_its_end() {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = DataDir::open_or_create(dir.path(), 1, [7; 16]).expect("a directory");
        let state = StateStore::open(&data, GroupId(0)).expect("a state");
        let exams = unheard(1);
        advance_with(&state, &exams, 5, 100_000);
        assert!(matches!(exams.ask(asked(5, true), &state), Stage::Reading(_)));
        for index in 6..20 {
            advance(&state, &exams, index);
            assert!(matches!(exams.ask(asked(index, false), &state), Stage::Done(_)), "{index}");
        }
        assert!(matches!(exams.ask(asked(5, true), &state), Stage::Reading(_)), "not given up");
        exams.stop();
        assert_eq!(exams.reading.load(Ordering::Acquire), 0, "nobody reads any more");
    }

    fn opened(dir: &tempfile::TempDir) -> StateStore {
        let data = DataDir::open_or_create(dir.path(), 1, [7; 16]).expect("a directory");
        StateStore::open(&data, GroupId(0)).expect("a state")
    }

    fn wait_until(what: &str, reached: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !reached() {
            assert!(Instant::now() < end, "{what}");
            std::thread::yield_now();
        }
    }

    /// An operator compares while the leader does, and nobody writes: what is read for one is over before the other asks again.
    #[test]
    fn comparisons_that_ask_in_turn_all_end() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = opened(&dir);
        let exams = unheard(1 << 30);
        advance(&state, &exams, 5);
        let ask = |round| exams.ask(Question { round, ..asked(5, true) }, &state);
        let idle = || exams.lock().get(&5).is_some_and(Exam::has_ended);
        let mut open: BTreeSet<u64> = (1..=5).collect();
        for turn in 0..4 {
            for round in open.clone() {
                if matches!(ask(round), Stage::Done(_)) {
                    open.remove(&round);
                }
                wait_until("the reading ends", idle);
            }
            assert!(turn < 3 || open.is_empty(), "{open:?} are never answered");
        }
        // A comparison that begins later has it read again.
        assert!(matches!(ask(9), Stage::Reading(_)));
        // Whoever reads when the process ends meets locks of RocksDB that are gone.
        wait_until("the reading ends", idle);
    }

    #[test]
    fn a_reading_that_panics_ends_and_is_tried_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = opened(&dir);
        let times = Arc::new(AtomicUsize::new(0));
        let seen = times.clone();
        let on_end = move |_, _: Result<&Findings, &str>| {
            assert!(seen.fetch_add(1, Ordering::AcqRel) > 0, "a defect of the first reading");
        };
        let exams = Exams::new(Pacer::new(1 << 30), STALL, Box::new(on_end));
        advance(&state, &exams, 5);
        let ask = |round| exams.ask(Question { round, ..asked(5, true) }, &state);
        wait_until("it never ends", || !matches!(ask(1), Stage::Reading(_)));
        assert!(matches!(ask(1), Stage::Failed(why) if why.contains("a defect of the first reading")));
        assert_eq!(times.load(Ordering::Acquire), 1, "not tried again within one comparison");
        wait_until("it is not tried again", || matches!(ask(2), Stage::Done(_)));
        assert_eq!(exams.reading.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_reading_that_shows_no_sign_of_life_is_given_up() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = opened(&dir);
        let (told, hears) = std::sync::mpsc::sync_channel(64);
        let told = Mutex::new(told);
        let (release, held) = std::sync::mpsc::sync_channel::<()>(1);
        let held = Mutex::new(held);
        let on_end = move |_, ended: Result<&Findings, &str>| {
            told.lock().expect("lock").send(ended.map(drop).map_err(str::to_owned)).expect("heard");
            if ended.is_ok() {
                // The thread hangs, as if the disk did not answer.
                held.lock().expect("lock").recv().expect("released");
            }
        };
        let exams = Exams::new(Pacer::new(1 << 30), Duration::from_millis(50), Box::new(on_end));
        advance(&state, &exams, 5);
        wait_until("it is never given up", || matches!(exams.ask(asked(5, true), &state), Stage::Failed(_)));
        release.send(()).expect("it waits");
        assert_eq!(hears.recv().expect("told"), Ok(()));
        assert!(hears.recv().expect("told").is_err_and(|why| why.contains("nothing was read")));
        assert!(matches!(exams.ask(asked(5, true), &state), Stage::Failed(_)), "what comes too late does not count");
    }

    #[test]
    fn where_a_comparison_did_not_meet_nothing_is_read_for_it_any_more() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = opened(&dir);
        let exams = unheard(1);
        let ask = |index, round| exams.ask(Question { index, rows: true, round }, &state);
        advance_with(&state, &exams, 5, 100_000);
        assert!(matches!(ask(5, 1), Stage::Reading(_)));
        assert!(matches!(ask(5, 2), Stage::Reading(_)));
        assert_eq!(ask(7, 1), Stage::Waiting);
        assert!(matches!(ask(5, 2), Stage::Reading(_)), "another comparison waits for it");
        assert_eq!(ask(8, 2), Stage::Waiting);
        wait_until("it reads for nobody", || exams.reading.load(Ordering::Acquire) == 0);
        assert_eq!(ask(7, 1), Stage::Waiting);
    }

    /// Where nothing is written the index stays; the disk may give back other bytes all the same.
    #[test]
    fn every_comparison_reads_anew() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = opened(&dir);
        let times = Arc::new(AtomicUsize::new(0));
        let seen = times.clone();
        let on_end = move |_, _: Result<&Findings, &str>| {
            seen.fetch_add(1, Ordering::AcqRel);
        };
        let exams = Exams::new(Pacer::new(1 << 30), STALL, Box::new(on_end));
        advance(&state, &exams, 5);
        for round in 1..4 {
            let ask = || exams.ask(Question { round, ..asked(5, true) }, &state);
            wait_until("it is never read", || matches!(ask(), Stage::Done(_)));
            assert!(matches!(ask(), Stage::Done(_)), "and not again for the same one");
            assert_eq!(times.load(Ordering::Acquire), round as usize);
        }
        advance(&state, &exams, 6);
        assert!(matches!(exams.ask(Question { round: 9, ..asked(5, true) }, &state), Stage::Done(_)), "it cannot be");
    }

    /// Both states are at one index, and nobody cleared what was read of the first one.
    #[test]
    fn what_was_read_of_a_state_is_not_told_of_the_next_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = opened(&dir);
        let exams = unheard(1 << 30);
        advance(&state, &exams, 5);
        let before = wait_done(&exams, 5, &state);
        let heads = |exams: &Arc<Exams>| exams.ask(asked(5, false), &state);
        assert_eq!(heads(&exams), Stage::Done(before.clone()));
        let path = dir.path().join("snapshots/one");
        state.checkpoint(&path).expect("taken");
        state.install(&path).expect("installed");
        let Stage::Done(after) = heads(&exams) else { panic!("the heads are known at once") };
        assert!(after.installation == state.installation() && after.installation != before.installation);
        assert!(after.families.is_empty(), "its rows were not read yet");
        let after = wait_done(&exams, 5, &state);
        assert_eq!(Findings { installation: 0, ..after }, Findings { installation: 0, ..before });
    }
}
