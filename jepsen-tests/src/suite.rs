//! Many runs, one after the other or two at a time: each is a process of its own, which may leave the network and the
//! mounts of this one, and ends with it.
//!
//! Invariants:
//! - Every scenario ends as it must, or the whole does not. One that this machine cannot make is named; with `require` it
//!   fails.
//! - What the summary counts was read from the folders of the runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::chance::Chance;
use crate::checker::Verdict;
use crate::cluster::Orphan;
use crate::folder::{Folder, timestamp};
use crate::history::{self, Action, Op, Process, Stage};
use crate::scenario::{Scenario, Wanted};

/// A run that takes longer than the time of its faults and this hangs.
pub(crate) const BESIDES_FAULTS_MAX: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(100);

/// What to run.
#[derive(Debug, Clone)]
pub struct Suite {
    /// In this order.
    pub scenarios: Vec<Scenario>,
    /// The binary under test.
    pub holdfast: PathBuf,
    /// The one with planted bugs.
    pub planted: Option<PathBuf>,
    /// Seeds of all runs follow from it.
    pub seed: u64,
    /// Runs at a time.
    pub at_once: usize,
    /// What this machine cannot make is a failure.
    pub require: bool,
    /// Folder to make, with one for each run in it.
    pub out: PathBuf,
}

/// How a scenario ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    /// Its name.
    pub scenario: String,
    /// Its folder, below that of the suite; empty = it was not run.
    pub run: String,
    /// The seed of the last try.
    pub seed: u64,
    /// Its verdict.
    pub verdict: Verdict,
    /// It ended as it must.
    pub met: bool,
    /// The machine lacks something, which is named.
    pub skipped: Option<String>,
    /// What was planted.
    pub planted: Option<String>,
    /// It is there to show a limit that Holdfast states.
    #[serde(default)]
    pub limit: bool,
    /// What some node's log must say, and none did.
    #[serde(default)]
    pub unsaid: Vec<String>,
    /// Checkers that found something.
    pub invalid: Vec<String>,
    /// What of that shows the planted bug, each as `checker: row`.
    #[serde(default)]
    pub caught: Vec<String>,
    /// Operations of clients that took effect.
    pub operations: usize,
    /// Faults that were really installed, by kind.
    pub faults: BTreeMap<String, usize>,
    /// How long it took.
    pub seconds: u64,
}

/// All of a suite.
#[derive(Debug, Serialize, Deserialize)]
pub struct Summary {
    /// When it began, in UTC.
    pub began: String,
    /// Seeds of all runs follow from it.
    pub seed: u64,
    /// The worst of all.
    pub verdict: Verdict,
    /// Operations of clients that took effect, in all runs.
    pub operations: usize,
    /// Faults that were really installed, by kind.
    pub faults: BTreeMap<String, usize>,
    /// Planted bugs, and which rows of which checkers showed each; none = it slipped through.
    pub planted: BTreeMap<String, Vec<String>>,
    /// Runs that showed a limit that Holdfast states.
    pub limits: Vec<String>,
    /// One for each scenario.
    pub runs: Vec<Ended>,
}

/// Runs all; prints a line when one ends, and the table at the end.
///
/// # Errors
/// When the folder cannot be made, or a process cannot be started.
pub fn run(suite: &Suite) -> anyhow::Result<Summary> {
    ensure!(!suite.scenarios.is_empty(), "no scenario to run");
    let lacks = suite.scenarios.iter().any(Scenario::is_planted) && suite.planted.is_none();
    ensure!(!lacks, "planted bugs need their binary: --planted FILE (`make planted`)");
    std::fs::create_dir_all(&suite.out).with_context(|| format!("create {}", suite.out.display()))?;
    let began = timestamp();
    println!("{} scenarios, seed {}, in {}", suite.scenarios.len(), suite.seed, suite.out.display());
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, anyhow::Result<Ended>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..suite.at_once.max(1) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = suite.scenarios.get(place) else { return };
                    let ended = one(suite, place, scenario);
                    if let Ok(ended) = &ended {
                        println!("{}", line(ended));
                    }
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((place, ended));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    let runs = done.into_iter().map(|(_, ended)| ended).collect::<anyhow::Result<Vec<_>>>()?;
    let summary = Summary::of(began, suite, runs);
    std::fs::write(suite.out.join("summary.json"), serde_json::to_string_pretty(&summary)? + "\n")?;
    print!("{}", summary.table());
    Ok(summary)
}

fn one(suite: &Suite, place: usize, scenario: &Scenario) -> anyhow::Result<Ended> {
    let planted = match &scenario.wanted {
        Wanted::Caught { bug, .. } => Some(bug.clone()),
        Wanted::Valid | Wanted::Limit(_) => None,
    };
    let mut ended = Ended {
        scenario: scenario.name.clone(),
        run: String::new(),
        seed: 0,
        verdict: Verdict::Unknown,
        met: false,
        skipped: None,
        planted: planted.clone(),
        limit: matches!(scenario.wanted, Wanted::Limit(_)),
        unsaid: Vec::new(),
        invalid: Vec::new(),
        caught: Vec::new(),
        operations: 0,
        faults: BTreeMap::new(),
        seconds: 0,
    };
    let binary = match &planted {
        None => &suite.holdfast,
        Some(_) => suite.planted.as_ref().context("planted bugs need their binary")?,
    };
    let began = Instant::now();
    for attempt in 0..scenario.tries {
        let drawn = Chance::new(suite.seed, place as u64 * 1000 + u64::from(attempt)).next_u64();
        ended.seed = scenario.seed.unwrap_or(drawn % 1_000_000_000);
        ended.run = format!("{}-{}", scenario.name, ended.seed);
        let folder = suite.out.join(&ended.run);
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.arg("test").args(&scenario.run).arg("--holdfast").arg(binary).arg("--out").arg(&folder);
        command.args(["--seed", &ended.seed.to_string()]);
        match &planted {
            Some(bug) => command.env("PLANTED_BUG", bug),
            None => command.env_remove("PLANTED_BUG"),
        };
        let log = suite.out.join(format!("{}.log", ended.run));
        let code = within(command, &log, scenario.faults_last() + BESIDES_FAULTS_MAX)?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(lacks) = text.lines().find(|line| line.contains("cannot be made on this machine")) {
            ended.skipped = Some(lacks.to_owned());
            ended.met = !suite.require;
            break;
        }
        ended.verdict = verdict_of(code);
        read_folder(&folder, &mut ended);
        let broken = broken(&folder);
        ended.caught = scenario.caught(&broken);
        ended.unsaid = unsaid(&folder, &scenario.said);
        if !ended.unsaid.is_empty() {
            ended.verdict = ended.verdict.max(Verdict::Unknown);
        }
        ended.met = ended.unsaid.is_empty() && scenario.is_met(ended.verdict, &broken);
        if ended.met {
            break;
        }
        // Beyond a stated limit a cluster may also break down in ways that no promise covers: another seed may show it alone.
        if ended.verdict != Verdict::Valid && planted.is_none() && !ended.limit {
            break;
        }
    }
    ended.seconds = began.elapsed().as_secs();
    Ok(ended)
}

/// What the exit code of a run says; of one that hung or was killed nobody can say anything.
pub(crate) fn verdict_of(code: Option<i32>) -> Verdict {
    match code {
        Some(0) => Verdict::Valid,
        Some(1) => Verdict::Invalid,
        _ => Verdict::Unknown,
    }
}

/// Runs a process to its end; `None` = it hung, and was killed, or ended by a signal.
pub(crate) fn within(mut command: Command, log: &Path, most: Duration) -> anyhow::Result<Option<i32>> {
    let file = std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = crate::cluster::spawn(command, Orphan::Killed).context("start a run")?;
    let end = Instant::now() + most;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Those of `words` that no node of a run said.
fn unsaid(folder: &Path, words: &[String]) -> Vec<String> {
    let logs = Folder::open(folder).logs();
    words.iter().filter(|word| !logs.iter().any(|log| log.text.contains(word.as_str()))).cloned().collect()
}

#[derive(Deserialize)]
struct Results {
    checkers: Vec<Checker>,
}

#[derive(Deserialize)]
struct Checker {
    checker: String,
    verdict: Verdict,
    rows: Vec<BrokenRow>,
}

#[derive(Deserialize)]
struct BrokenRow {
    what: String,
    verdict: Verdict,
}

/// What the checkers said, by the folder of a run; one without results says nothing.
fn results(folder: &Path) -> Vec<Checker> {
    let results = std::fs::read_to_string(folder.join("results.json")).ok();
    let results: Option<Results> = results.and_then(|text| serde_json::from_str(&text).ok());
    results.map(|results| results.checkers).unwrap_or_default()
}

/// Checkers that found something, by the folder of a run.
pub(crate) fn found(folder: &Path) -> Vec<String> {
    let invalid = results(folder).into_iter().filter(|one| one.verdict == Verdict::Invalid);
    invalid.map(|one| one.checker).collect()
}

/// The rows that were broken, each as `checker: row`.
fn broken(folder: &Path) -> Vec<String> {
    let of = |one: Checker| {
        let rows = one.rows.into_iter().filter(|row| row.verdict == Verdict::Invalid);
        rows.map(|row| format!("{}: {}", one.checker, row.what)).collect::<Vec<_>>()
    };
    results(folder).into_iter().flat_map(of).collect()
}

/// What the folder of a run says. One that is not whole says less, and the verdict is not better for it.
fn read_folder(folder: &Path, ended: &mut Ended) {
    ended.invalid = found(folder);
    count(&history::read(&Folder::open(folder).history()).unwrap_or_default(), ended);
}

/// Counts what clients did and which faults were really there, each once: a storm writes each of its kills down twice, as a
/// fault and as the kill that it is.
fn count(history: &[Op], ended: &mut Ended) {
    let is_driven = history.iter().any(|op| matches!(op.action, Action::Fault(_)));
    for op in history {
        let kind = match (&op.action, op.process, op.stage) {
            (_, Process::Client(_), Stage::Ok) => {
                ended.operations += 1;
                continue;
            }
            (Action::Fault(note), _, Stage::Info) if note.installed => note.fault.clone(),
            (Action::Kill(kill), _, Stage::Info) if !is_driven && kill.is_real() => "kill".to_owned(),
            _ => continue,
        };
        *ended.faults.entry(kind).or_default() += 1;
    }
}

fn line(ended: &Ended) -> String {
    let how = match (&ended.skipped, ended.met, &ended.planted) {
        (Some(why), true, _) => format!("SKIPPED: {why}"),
        (Some(why), false, _) => format!("FAILED, cannot be made: {why}"),
        (None, true, Some(_)) => format!("caught by {}", ended.caught.join(", ")),
        (None, false, Some(bug)) if ended.invalid.is_empty() => format!("SLIPPED THROUGH: nobody found {bug}"),
        (None, false, Some(bug)) => {
            format!("SLIPPED THROUGH: {} found something, and not what {bug} breaks", ended.invalid.join(", "))
        }
        (None, true, None) if ended.limit => format!("THE STATED LIMIT, as expected: {}", ended.invalid.join(", ")),
        (None, true, None) => "valid".to_owned(),
        (None, false, None) if ended.limit && ended.verdict == Verdict::Valid => {
            "FAILED: it no longer shows the stated limit; if Holdfast is better now, its limits say too much".to_owned()
        }
        (None, false, None) if !ended.unsaid.is_empty() && ended.verdict == Verdict::Unknown => {
            format!("UNKNOWN: no node said {}", ended.unsaid.join(", "))
        }
        (None, false, None) => format!("{:?}: {}", ended.verdict, ended.invalid.join(", ")).to_uppercase(),
    };
    let faults: usize = ended.faults.values().sum();
    format!(
        "{:<34} {:>4} s  {:>7} ops  {:>3} faults  seed {:<10} {how}",
        ended.scenario, ended.seconds, ended.operations, faults, ended.seed
    )
}

impl Summary {
    fn of(began: String, suite: &Suite, runs: Vec<Ended>) -> Self {
        let mut faults: BTreeMap<String, usize> = BTreeMap::new();
        let mut planted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for run in &runs {
            for (kind, count) in &run.faults {
                *faults.entry(kind.clone()).or_default() += count;
            }
            if let Some(bug) = &run.planted {
                planted.entry(bug.clone()).or_default().extend(run.caught.iter().filter(|_| run.met).cloned());
            }
        }
        let is_run = runs.iter().any(|run| run.skipped.is_none());
        let of = |run: &Ended| match (run.met, run.verdict) {
            // Where nothing at all was run, nothing was shown.
            (true, _) if !is_run => Verdict::Unknown,
            (true, _) => Verdict::Valid,
            (false, Verdict::Unknown) => Verdict::Unknown,
            (false, _) => Verdict::Invalid,
        };
        Self {
            began,
            seed: suite.seed,
            verdict: runs.iter().map(of).max().unwrap_or(Verdict::Unknown),
            operations: runs.iter().map(|run| run.operations).sum(),
            faults,
            planted,
            limits: runs.iter().filter(|run| run.limit && run.met).map(|run| run.scenario.clone()).collect(),
            runs,
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("\n{} operations of clients took effect\n", self.operations);
        let faults = self.faults.iter().map(|(kind, count)| format!("{kind} {count}"));
        let _ = writeln!(text, "faults really installed: {}", faults.collect::<Vec<_>>().join(", "));
        for (bug, by) in &self.planted {
            let by = if by.is_empty() { "NOBODY".to_owned() } else { by.join(", ") };
            let _ = writeln!(text, "planted {bug:<24} caught by {by}");
        }
        for limit in &self.limits {
            let _ =
                writeln!(text, "***** {limit} shows a limit that Holdfast states: acknowledged writes are lost *****");
        }
        let skipped = self.runs.iter().filter(|run| run.skipped.is_some()).count();
        if skipped > 0 {
            let _ = writeln!(text, "***** {skipped} scenarios were not run *****");
        }
        let failed: Vec<&str> = self.runs.iter().filter(|run| !run.met).map(|run| run.scenario.as_str()).collect();
        let _ = match failed.len() {
            0 if skipped == self.runs.len() => writeln!(text, "no scenario was run: this proves nothing"),
            0 => writeln!(text, "all {} scenarios ended as they must", self.runs.len()),
            count => writeln!(text, "{count} of {} scenarios did not: {}", self.runs.len(), failed.join(", ")),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{FaultNote, Kill, Named, Target};

    fn ended(scenario: &str, met: bool, verdict: Verdict) -> Ended {
        Ended {
            scenario: scenario.into(),
            run: "r".into(),
            seed: 1,
            verdict,
            met,
            skipped: None,
            planted: None,
            limit: false,
            unsaid: Vec::new(),
            invalid: Vec::new(),
            caught: Vec::new(),
            operations: 10,
            faults: [("kill".to_owned(), 2)].into(),
            seconds: 1,
        }
    }

    fn summary(runs: Vec<Ended>) -> Summary {
        let suite = Suite {
            scenarios: Vec::new(),
            holdfast: PathBuf::new(),
            planted: None,
            seed: 1,
            at_once: 1,
            require: false,
            out: PathBuf::new(),
        };
        Summary::of(String::new(), &suite, runs)
    }

    #[test]
    fn one_run_that_did_not_end_as_it_must_is_the_verdict() {
        let good = || ended("good", true, Verdict::Valid);
        assert_eq!(summary(vec![good()]).verdict, Verdict::Valid);
        assert_eq!(summary(vec![good(), ended("b", false, Verdict::Unknown)]).verdict, Verdict::Unknown);
        assert_eq!(summary(vec![good(), ended("b", false, Verdict::Invalid)]).verdict, Verdict::Invalid);
        // A planted bug that nobody found is a valid run, and no success.
        let slipped = Ended { planted: Some("stale-read".into()), ..ended("p", false, Verdict::Valid) };
        let all = summary(vec![good(), slipped]);
        assert_eq!((all.verdict, all.operations, all.faults["kill"]), (Verdict::Invalid, 20, 4));
        assert!(all.table().contains("stale-read               caught by NOBODY"), "{}", all.table());
        assert_eq!(summary(Vec::new()).verdict, Verdict::Unknown);
    }

    #[test]
    fn where_this_machine_can_make_nothing_nothing_is_proved() {
        let skipped = || Ended { skipped: Some("no root".into()), ..ended("s", true, Verdict::Unknown) };
        assert_eq!(summary(vec![skipped(), ended("good", true, Verdict::Valid)]).verdict, Verdict::Valid);
        let none = summary(vec![skipped(), skipped()]);
        assert_eq!(none.verdict, Verdict::Unknown);
        assert!(none.table().contains("no scenario was run"), "{}", none.table());
    }

    #[test]
    fn a_fault_counts_once_and_only_when_it_was_there() {
        let nemesis = |action| Op {
            process: Process::Named(Named::Nemesis),
            stage: Stage::Info,
            time_ns: 0,
            action,
            reply: None,
            error: None,
        };
        let kill = |signal| {
            let targets = vec![Target { node: 1, pid: 7, leader: true, signal }];
            nemesis(Action::Kill(Kill { round: 1, targets }))
        };
        let fault = |installed| {
            let (fault, detail) = ("kill".to_owned(), String::new());
            nemesis(Action::Fault(FaultNote { round: 1, fault, nodes: vec![1], installed, detail, missed: None }))
        };
        let counted = |history: &[Op]| {
            let mut one = Ended { faults: BTreeMap::new(), ..ended("s", true, Verdict::Valid) };
            count(history, &mut one);
            one.faults.get("kill").copied()
        };
        assert_eq!(counted(&[kill(Some(9)), fault(true)]), Some(1), "a kill of a storm is written down twice");
        assert_eq!(counted(&[kill(Some(9)), fault(false)]), None);
        assert_eq!(counted(&[kill(Some(9)), kill(Some(9))]), Some(2), "kills alone");
        assert_eq!(counted(&[kill(Some(15)), kill(None)]), None, "who ended otherwise was not killed");
    }

    #[test]
    fn broken_rows_are_read_from_the_folder_and_what_shows_the_bug_is_said() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(broken(dir.path()).is_empty(), "no results");
        let text = r#"{"verdict":"invalid","checkers":[
            {"checker":"set","verdict":"invalid","rows":[
                {"what":"found twice","measured":"1","required":"0","verdict":"invalid"},
                {"what":"acknowledged","measured":"1","required":"","verdict":"valid"}]},
            {"checker":"harness","verdict":"unknown","rows":[
                {"what":"load","measured":"0","required":"at least 1","verdict":"unknown"}]}]}"#;
        std::fs::write(dir.path().join("results.json"), text).expect("written");
        assert_eq!(broken(dir.path()), ["set: found twice"]);
        assert_eq!(found(dir.path()), ["set"]);
        let planted = |met, caught: &[&str]| Ended {
            planted: Some("dedup-forgotten".into()),
            invalid: vec!["set".into()],
            caught: caught.iter().map(|row| (*row).to_owned()).collect(),
            ..ended("p", met, Verdict::Invalid)
        };
        let table = summary(vec![planted(true, &["set: found twice"])]).table();
        assert!(table.contains("caught by set: found twice"), "{table}");
        let other = summary(vec![planted(false, &[])]);
        assert_eq!(other.verdict, Verdict::Invalid);
        assert!(line(&other.runs[0]).contains("set found something, and not what"), "{}", line(&other.runs[0]));
        assert!(other.table().contains("caught by NOBODY"), "{}", other.table());
    }

    #[test]
    fn a_stated_limit_is_said_aloud_and_missed_when_it_is_gone() {
        let limit = |met, verdict| Ended { limit: true, invalid: vec!["set".into()], ..ended("blind", met, verdict) };
        let shown = summary(vec![limit(true, Verdict::Invalid)]);
        assert_eq!((shown.verdict, shown.limits.len()), (Verdict::Valid, 1));
        assert!(shown.table().contains("***** blind shows a limit"), "{}", shown.table());
        assert!(line(&limit(true, Verdict::Invalid)).ends_with("THE STATED LIMIT, as expected: set"));
        let gone = summary(vec![limit(false, Verdict::Valid)]);
        assert_eq!((gone.verdict, gone.limits.len()), (Verdict::Invalid, 0));
        assert!(line(&limit(false, Verdict::Valid)).contains("no longer shows"));
    }

    #[test]
    fn what_a_run_is_there_for_must_be_in_a_log() {
        let dir = tempfile::tempdir().expect("tempdir");
        let words = ["snapshot.received".to_owned()];
        assert_eq!(unsaid(dir.path(), &words), words);
        std::fs::create_dir(dir.path().join("log")).expect("made");
        std::fs::write(dir.path().join("log/n0.log"), "other\n").expect("written");
        assert_eq!(unsaid(dir.path(), &words), words);
        std::fs::write(dir.path().join("log/n1.log"), "{\"event\":\"snapshot.received\"}\n").expect("written");
        assert!(unsaid(dir.path(), &words).is_empty());
        assert!(unsaid(dir.path(), &[]).is_empty());
    }

    #[test]
    fn planted_bugs_without_their_binary_are_known_before_the_first_run() {
        let dir = tempfile::tempdir().expect("tempdir");
        let text = "why = 'x'\nrun = '-w set'\nplanted = 'stale-read'\ncaught_by = ['set']";
        let planted = Scenario::parse("p", text).expect("reads");
        let suite = Suite {
            scenarios: vec![planted],
            holdfast: PathBuf::from("holdfast"),
            planted: None,
            seed: 1,
            at_once: 1,
            require: false,
            out: dir.path().join("out"),
        };
        let error = run(&suite).expect_err("no binary").to_string();
        assert!(error.contains("--planted") && !suite.out.exists(), "{error}");
    }

    #[test]
    fn what_hangs_is_ended() {
        let dir = tempfile::tempdir().expect("tempdir");
        let log = dir.path().join("log");
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        assert_eq!(within(sh("exec sleep 600"), &log, Duration::from_millis(50)).expect("runs"), None);
        let ended = within(sh("echo said; exit 3"), &log, Duration::from_secs(60));
        assert_eq!(ended.expect("runs"), Some(3));
        assert_eq!(std::fs::read_to_string(&log).expect("log"), "said\n");
    }
}
