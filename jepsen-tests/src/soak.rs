//! Soaks: runs that are drawn, one after the other for hours, over as many calls as it takes.
//!
//! Invariants:
//! - The ledger is written after each run: a soak that is stopped loses the run that it was in, and nothing else.
//! - Every pair of faults comes up before one comes up again; the order follows from the seed of the ledger.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::chance::Chance;
use crate::checker::Verdict;
use crate::nemesis::Fault;
use crate::scenario::{Scenario, Wanted};
use crate::suite::{self, Ended, Suite};

/// Seconds of faults in one run.
const FAULTS_SECONDS: u64 = 120;

/// One line of a ledger.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Of the whole soak, from its first call.
    soak_seed: u64,
    /// The folder of the suite.
    out: String,
    /// How the run ended.
    ended: Ended,
}

/// Goes on until the ledger holds so many hours of runs.
///
/// # Errors
/// When the ledger cannot be read or written, or a run cannot be started.
pub fn run(suite: Suite, hours: f64, ledger: &Path) -> anyhow::Result<Verdict> {
    let mut lines = read(ledger)?;
    let seed = lines.first().map_or(suite.seed, |line| line.soak_seed);
    let faults: Vec<Fault> = Fault::all().iter().copied().filter(|fault| fault.is_for_soaks()).collect();
    let available: Vec<Fault> = faults.iter().copied().filter(|fault| fault.lacks().is_empty()).collect();
    for fault in faults.iter().filter(|fault| !available.contains(fault)) {
        println!("***** {fault} is left out: {} *****", fault.lacks().join("; "));
        ensure!(!suite.require, "{fault} cannot be made on this machine: {}", fault.lacks().join("; "));
    }
    let mut done: u64 = lines.iter().map(|line| line.ended.seconds).sum();
    println!("{} runs in the ledger, {:.1} of {hours} hours", lines.len(), done as f64 / 3600.0);
    while (done as f64) < hours * 3600.0 {
        let place = lines.len();
        let one = drawn(&available, seed, place);
        let out = suite.out.join(format!("{place:04}"));
        let summary =
            suite::run(&Suite { scenarios: vec![one], seed: seed ^ place as u64, out: out.clone(), ..suite.clone() })?;
        let Some(ended) = summary.runs.into_iter().next() else { break };
        // A run that ended at once is no hour's worth, and must not be one for ever.
        done += ended.seconds.max(1);
        let line = Line { soak_seed: seed, out: out.display().to_string(), ended };
        append(ledger, &line)?;
        lines.push(line);
    }
    let of = |verdict: Verdict| lines.iter().filter(|line| line.ended.verdict == verdict).count();
    let operations: usize = lines.iter().map(|line| line.ended.operations).sum();
    println!(
        "{} runs, {:.1} hours, {operations} operations: {} valid, {} unknown, {} INVALID",
        lines.len(),
        done as f64 / 3600.0,
        of(Verdict::Valid),
        of(Verdict::Unknown),
        of(Verdict::Invalid)
    );
    Ok(lines.iter().map(|line| line.ended.verdict).max().unwrap_or(Verdict::Unknown))
}

/// The run at this place: a workload, a pair of faults, three nodes or five.
fn drawn(faults: &[Fault], seed: u64, place: usize) -> Scenario {
    let mut pairs: Vec<(Fault, Fault)> =
        faults.iter().enumerate().flat_map(|(at, one)| faults[at..].iter().map(|other| (*one, *other))).collect();
    // Each time round in another order.
    Chance::new(seed, (place / pairs.len().max(1)) as u64).shuffle(&mut pairs);
    let (one, other) = pairs[place % pairs.len()];
    let mut chance = Chance::new(seed ^ 0x50a4, place as u64);
    let workload = WORKLOADS[chance.below(WORKLOADS.len())];
    let (nodes, arrays) = if chance.percent(50) { (5, 3) } else { (3, 3) };
    let faults = if one == other { one.to_string() } else { format!("{one},{other}") };
    let run = format!(
        "-w {workload} -n {faults} --nodes {nodes} --arrays {arrays} --time-limit {FAULTS_SECONDS} --clients 12 --rate 300 \
         --set raft.snapshot_entries=100 --set raft.keep_entries=50"
    );
    Scenario {
        name: format!("{workload}-{}", faults.replace(',', "+")),
        why: "drawn".into(),
        run: run.split_whitespace().map(str::to_owned).collect(),
        wanted: Wanted::Valid,
        tries: 1,
        seed: None,
    }
}

const WORKLOADS: [&str; 5] = ["set", "register", "append", "feed", "set,register,append,feed"];

fn read(ledger: &Path) -> anyhow::Result<Vec<Line>> {
    let text = match std::fs::read_to_string(ledger) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("read {}", ledger.display()))?,
    };
    // The last line may be torn: its run is made again.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |text: &str| serde_json::from_str(text).with_context(|| format!("read {}", ledger.display()));
    whole.lines().map(line).collect()
}

fn append(ledger: &Path, line: &Line) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(ledger)?;
    writeln!(file, "{}", serde_json::to_string(line)?)?;
    file.sync_all().with_context(|| format!("write {}", ledger.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_comes_up_before_one_comes_up_again() {
        let faults = [Fault::Kill, Fault::Pause, Fault::Power];
        let names = |seed, from: usize| {
            let name = |place| drawn(&faults, seed, place).run.get(3).cloned().expect("faults");
            (from..from + 6).map(name).collect::<Vec<_>>()
        };
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let all = sorted(names(7, 0));
        assert_eq!(all, ["kill", "kill,pause", "kill,power", "pause", "pause,power", "power"]);
        assert_eq!(sorted(names(7, 6)), all);
        assert_eq!(names(7, 0), names(7, 0));
        assert_ne!(names(7, 0), names(7, 6));
    }

    #[test]
    fn a_torn_ledger_loses_its_last_run_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let ledger = dir.path().join("ledger");
        assert!(read(&ledger).expect("none yet").is_empty());
        let ended: Ended = serde_json::from_str(
            r#"{"scenario":"s","run":"r","seed":1,"verdict":"valid","met":true,"skipped":null,"planted":null,"invalid":[],
            "operations":1,"faults":{},"seconds":5}"#,
        )
        .expect("reads");
        append(&ledger, &Line { soak_seed: 3, out: "o".into(), ended }).expect("written");
        let mut text = std::fs::read_to_string(&ledger).expect("text");
        text.push_str("{\"soak_se");
        std::fs::write(&ledger, &text).expect("written");
        let lines = read(&ledger).expect("reads");
        assert_eq!((lines.len(), lines[0].soak_seed, lines[0].ended.seconds), (1, 3, 5));
        std::fs::write(&ledger, "nonsense\n").expect("written");
        assert!(read(&ledger).is_err());
    }
}
