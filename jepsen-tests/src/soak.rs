//! Soaks: runs that are drawn, one after the other for hours, over as many calls as it takes.
//!
//! The files of the profile say how large a cluster is and how its nodes are set; workload, faults and length are drawn
//! and added.
//!
//! Invariants:
//! - The ledger is written after each run: a soak that is stopped loses the run that it was in, and nothing else.
//! - Every pair of faults comes up before one comes up again; the order follows from the seed of the ledger. The next time
//!   round it meets a cluster of another size, and with a second binary the other one.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::chance::Chance;
use crate::checker::Verdict;
use crate::folder::Folder;
use crate::nemesis::Fault;
use crate::scenario::{Profile, Scenario};
use crate::suite::{self, Ended, Suite};

/// Faults of one run, in seconds, at most: with what is before and after them no run takes more than an hour.
pub const RUN_SECONDS_MAX: u64 = 2700;

/// What to draw from, and for how long.
#[derive(Debug, Clone)]
pub struct Soak {
    /// Hours of runs in the ledger when it ends.
    pub hours: f64,
    /// Seconds of faults in one run.
    pub run_seconds: u64,
    /// A line a run.
    pub ledger: PathBuf,
    /// The binary with debug assertions; it and the other one take turns.
    pub debug: Option<PathBuf>,
}

/// One line of a ledger.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Of the whole soak, from its first call.
    soak_seed: u64,
    /// The folder of the suite.
    out: String,
    /// It met the binary with debug assertions.
    #[serde(default)]
    debug: bool,
    /// How the run ended.
    ended: Ended,
}

/// Goes on until the ledger holds so many hours of runs.
///
/// # Errors
/// When the ledger cannot be read or written, or a run cannot be started.
pub fn run(suite: &Suite, soak: &Soak) -> anyhow::Result<Verdict> {
    let faults: Vec<Fault> = Fault::all().iter().copied().filter(|fault| fault.is_for_soaks()).collect();
    let available: Vec<Fault> = faults.iter().copied().filter(|fault| fault.lacks().is_empty()).collect();
    for fault in faults.iter().filter(|fault| !available.contains(fault)) {
        println!("***** {fault} is left out: {} *****", fault.lacks().join("; "));
        ensure!(!suite.require, "{fault} cannot be made on this machine: {}", fault.lacks().join("; "));
    }
    ensure!(!available.is_empty(), "no fault can be made on this machine: `jepsen-tests doctor` says why");
    let sizes = Scenario::of(Profile::Soak)?;
    go_on(
        suite,
        soak,
        |seed, place| drawn(&sizes, &available, seed, place, soak.run_seconds),
        |suite| {
            let ended = suite::run(suite)?.runs.into_iter().next().context("a run that did not end")?;
            // Hours of histories are many gigabytes.
            if ended.verdict == Verdict::Valid && ended.skipped.is_none() {
                Folder::open(&suite.out.join(&ended.run)).drop_history()?;
            }
            Ok(ended)
        },
    )
}

/// Draws and makes runs until there are enough in the ledger.
fn go_on(
    suite: &Suite,
    soak: &Soak,
    draw: impl Fn(u64, usize) -> (Scenario, bool),
    make: impl Fn(&Suite) -> anyhow::Result<Ended>,
) -> anyhow::Result<Verdict> {
    let mut lines = read(&soak.ledger)?;
    cut_torn_end(&soak.ledger)?;
    let seed = lines.first().map_or(suite.seed, |line| line.soak_seed);
    // A run that ended at once is no hour's worth, and must not be one for ever.
    let took = |line: &Line| line.ended.seconds.max(1);
    let mut done: u64 = lines.iter().map(took).sum();
    println!("{} runs in {}, {:.1} of {} hours", lines.len(), soak.ledger.display(), done as f64 / 3600.0, soak.hours);
    while (done as f64) < soak.hours * 3600.0 {
        let place = lines.len();
        let (one, second) = draw(seed, place);
        let debug = soak.debug.as_ref().filter(|_| second);
        let out = fresh(&suite.out, place);
        let ended = make(&Suite {
            scenarios: vec![one],
            seed: seed ^ place as u64,
            holdfast: debug.unwrap_or(&suite.holdfast).clone(),
            out: out.clone(),
            ..suite.clone()
        })?;
        let line = Line { soak_seed: seed, out: out.display().to_string(), debug: debug.is_some(), ended };
        append(&soak.ledger, &line)?;
        done += took(&line);
        lines.push(line);
    }
    print!("{}", table(&lines));
    Ok(lines.iter().map(|line| line.ended.verdict).max().unwrap_or(Verdict::Unknown))
}

/// A folder that an earlier call, which was stopped in this run, did not make.
fn fresh(out: &Path, place: usize) -> PathBuf {
    let name = |again: usize| if again == 0 { format!("{place:04}") } else { format!("{place:04}-again-{again}") };
    let mut folders = (0..).map(|again| out.join(name(again)));
    folders.find(|folder| !folder.exists()).unwrap_or_else(|| out.join(name(0)))
}

/// The run at this place, and whether it is the second binary's turn.
fn drawn(sizes: &[Scenario], faults: &[Fault], seed: u64, place: usize, seconds: u64) -> (Scenario, bool) {
    let all = faults.iter().enumerate().flat_map(|(at, one)| faults[at..].iter().map(|other| (*one, *other)));
    let mut pairs: Vec<(usize, (Fault, Fault))> = all.enumerate().collect();
    // Each time round in another order.
    let round = place / pairs.len();
    Chance::new(seed, round as u64).shuffle(&mut pairs);
    let (number, (one, other)) = pairs[place % pairs.len()];
    let mut chance = Chance::new(seed ^ 0x50a4, place as u64);
    // What cannot be read offsite cannot be restored.
    let spoils = [one, other].iter().any(|fault| matches!(fault, Fault::ArchiveFlip));
    let workloads: Vec<&str> = WORKLOADS.iter().copied().filter(|workload| !spoils || *workload != "restore").collect();
    let workload = workloads[chance.below(workloads.len())];
    let size = &sizes[(number / 2 + round) % sizes.len()];
    let faults = if one == other { one.to_string() } else { format!("{one},{other}") };
    let further = ["-w", workload, "-n", &faults, "--time-limit", &seconds.to_string()].map(str::to_owned);
    let name = format!("{}-{}-{}", size.name, workload.replace(',', "+"), faults.replace(',', "+"));
    let run = further.into_iter().chain(size.run.iter().cloned()).collect();
    (Scenario { name, run, ..size.clone() }, (number + round) % 2 == 1)
}

const WORKLOADS: [&str; 7] = ["set", "register", "append", "feed", "ttl", "restore", "set,register,append,feed"];

/// For people.
fn table(lines: &[Line]) -> String {
    let mut faults: BTreeMap<&str, usize> = BTreeMap::new();
    for (fault, count) in lines.iter().flat_map(|line| &line.ended.faults) {
        *faults.entry(fault).or_default() += count;
    }
    let faults: Vec<String> = faults.iter().map(|(fault, count)| format!("{fault} {count}")).collect();
    let mut text = format!("\nfaults really installed: {}\n", faults.join(", "));
    for line in lines.iter().filter(|line| line.ended.verdict != Verdict::Valid) {
        let verdict = format!("{:?}", line.ended.verdict).to_uppercase();
        let by = line.ended.invalid.join(", ");
        text += &format!("{verdict}: {by} in {}/{}, seed {}\n", line.out, line.ended.run, line.ended.seed);
    }
    let of = |verdict: Verdict| lines.iter().filter(|line| line.ended.verdict == verdict).count();
    let seconds: u64 = lines.iter().map(|line| line.ended.seconds).sum();
    let operations: usize = lines.iter().map(|line| line.ended.operations).sum();
    let debug = lines.iter().filter(|line| line.debug).count();
    text += &format!(
        "{} runs ({debug} with debug assertions), {:.1} hours, {operations} operations: {} valid, {} unknown, {} INVALID\n",
        lines.len(),
        seconds as f64 / 3600.0,
        of(Verdict::Valid),
        of(Verdict::Unknown),
        of(Verdict::Invalid)
    );
    text
}

fn text_of(ledger: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(ledger) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).with_context(|| format!("read {}", ledger.display())),
    }
}

/// Bytes of all lines that are whole.
fn whole(text: &str) -> usize {
    text.rfind('\n').map_or(0, |end| end + 1)
}

/// The last line may be torn: its run is made again.
fn read(ledger: &Path) -> anyhow::Result<Vec<Line>> {
    let text = text_of(ledger)?.unwrap_or_default();
    let line = |text: &str| serde_json::from_str(text).with_context(|| format!("read {}", ledger.display()));
    text[..whole(&text)].lines().map(line).collect()
}

/// What is written next must begin a line.
fn cut_torn_end(ledger: &Path) -> anyhow::Result<()> {
    let Some(text) = text_of(ledger)? else { return Ok(()) };
    let cut = |length: usize| OpenOptions::new().write(true).open(ledger)?.set_len(length as u64);
    if whole(&text) < text.len() {
        cut(whole(&text)).with_context(|| format!("write {}", ledger.display()))
    } else {
        Ok(())
    }
}

fn append(ledger: &Path, line: &Line) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(ledger)?;
    writeln!(file, "{}", serde_json::to_string(line)?)?;
    file.sync_all().with_context(|| format!("write {}", ledger.display()))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const FAULTS: [Fault; 3] = [Fault::Kill, Fault::Pause, Fault::Power];

    fn sizes() -> Vec<Scenario> {
        Scenario::of(Profile::Soak).expect("reads")
    }

    /// What follows an option on a run's command line.
    fn value<'a>(scenario: &'a Scenario, option: &str) -> &'a str {
        let at = scenario.run.iter().position(|word| word == option).expect(option);
        &scenario.run[at + 1]
    }

    #[test]
    fn every_pair_comes_up_before_one_comes_up_again_and_then_with_the_other_binary() {
        let sizes = sizes();
        let round = |seed, from: usize| {
            let one = |place| {
                let (scenario, second) = drawn(&sizes, &FAULTS, seed, place, 60);
                (value(&scenario, "-n").to_owned(), second)
            };
            (from..from + 6).map(one).collect::<Vec<_>>()
        };
        let by_name = |round: Vec<(String, bool)>| round.into_iter().collect::<BTreeMap<_, _>>();
        let (first, second) = (by_name(round(7, 0)), by_name(round(7, 6)));
        assert!(first.keys().eq(["kill", "kill,pause", "kill,power", "pause", "pause,power", "power"]), "{first:?}");
        assert!(first.iter().all(|(name, debug)| second[name] != *debug), "{first:?} {second:?}");
        assert_eq!(round(7, 0), round(7, 0));
        assert_ne!(round(7, 0), round(7, 6));
    }

    #[test]
    fn clusters_of_all_sizes_come_up_for_as_long_as_was_said() {
        let sizes = sizes();
        let mut seen = std::collections::BTreeSet::new();
        for place in 0..40 {
            let (scenario, _) = drawn(&sizes, &FAULTS, 1, place, 61);
            assert_eq!(value(&scenario, "--time-limit"), "61");
            seen.insert((value(&scenario, "--nodes").to_owned(), value(&scenario, "--arrays").to_owned()));
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen.contains(&("5".to_owned(), "3".to_owned())), "{seen:?}");
    }

    fn ended(suite: &Suite, seconds: u64) -> Ended {
        let mut ended: Ended = serde_json::from_str(
            r#"{"scenario":"s","run":"r","seed":1,"verdict":"valid","met":true,"skipped":null,"planted":null,"invalid":[],
            "operations":1,"faults":{"kill":2},"seconds":5}"#,
        )
        .expect("reads");
        ended.scenario.clone_from(&suite.scenarios[0].name);
        (ended.seed, ended.seconds) = (suite.seed, seconds);
        ended
    }

    /// A soak whose runs take so many seconds each, and which dies in its run number `dies`, if there is one.
    fn soak(dir: &Path, seed: u64, dies: Option<usize>) -> (anyhow::Result<Verdict>, Vec<String>) {
        let sizes = sizes();
        let suite = Suite {
            scenarios: Vec::new(),
            holdfast: PathBuf::from("release"),
            planted: None,
            seed,
            at_once: 1,
            require: false,
            out: dir.join("runs"),
        };
        let soak =
            Soak { hours: 0.1, run_seconds: 60, ledger: dir.join("ledger"), debug: Some(PathBuf::from("debug")) };
        let made = RefCell::new(Vec::new());
        let verdict = go_on(
            &suite,
            &soak,
            |seed, place| drawn(&sizes, &FAULTS, seed, place, 60),
            |suite| {
                std::fs::create_dir_all(&suite.out)?;
                let name = &suite.scenarios[0].name;
                let out = suite.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
                made.borrow_mut().push(format!("{out} {name} {} {}", suite.seed, suite.holdfast.display()));
                ensure!(Some(made.borrow().len()) != dies, "killed");
                Ok(ended(suite, 60))
            },
        );
        (verdict, made.into_inner())
    }

    #[test]
    fn a_soak_that_was_killed_goes_on_where_it_was() {
        let (whole, parts) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        let (verdict, all) = soak(whole.path(), 9, None);
        assert_eq!((verdict.expect("ends"), all.len()), (Verdict::Valid, 6));
        let (verdict, mut made) = soak(parts.path(), 9, Some(3));
        assert!(verdict.is_err());
        // The process died while it wrote the line of its third run.
        let ledger = parts.path().join("ledger");
        let mut text = std::fs::read_to_string(&ledger).expect("text");
        text.push_str("{\"soak_se");
        std::fs::write(&ledger, &text).expect("written");
        // Whatever seed the next call would have drawn.
        let (verdict, rest) = soak(parts.path(), 1234, None);
        assert_eq!((verdict.expect("ends"), rest.len()), (Verdict::Valid, 4));
        assert!(rest[0].starts_with("0002-again-1 "), "its folder is another one: {rest:?}");
        made.truncate(2);
        let same = |line: &String| line.replace("-again-1", "");
        assert_eq!(made.iter().chain(&rest).map(same).collect::<Vec<_>>(), all);
        let (verdict, none) = soak(parts.path(), 5, None);
        assert_eq!((verdict.expect("ends"), none.len()), (Verdict::Valid, 0));
        let lines = read(&ledger).expect("reads");
        assert!(lines.iter().any(|line| line.debug) && lines.iter().any(|line| !line.debug));
        assert!(table(&lines).contains("kill 12"), "{}", table(&lines));
    }

    #[test]
    fn a_ledger_that_is_none_is_an_error_and_one_bad_run_is_the_verdict() {
        let dir = tempfile::tempdir().expect("tempdir");
        let ledger = dir.path().join("ledger");
        assert!(read(&ledger).expect("none yet").is_empty());
        std::fs::write(&ledger, "nonsense\n").expect("written");
        assert!(read(&ledger).is_err());
        std::fs::remove_file(&ledger).expect("removed");
        soak(dir.path(), 1, None).0.expect("ends");
        let text = std::fs::read_to_string(&ledger).expect("text").replacen("\"valid\"", "\"invalid\"", 1);
        std::fs::write(&ledger, text).expect("written");
        assert_eq!(soak(dir.path(), 1, None).0.expect("ends"), Verdict::Invalid);
        assert!(table(&read(&ledger).expect("reads")).contains("INVALID:  in "));
    }
}
