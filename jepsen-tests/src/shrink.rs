//! Makes an invalid run smaller: the same cluster, seed and workload with fewer faults, less time and fewer clients, as long
//! as the same checker still finds something.
//!
//! Invariants:
//! - What it ends with was run, and was found invalid by a checker that found the first run invalid.
//! - It makes no more runs than it was told to.
//!
//! Threads take another order in every run, so a violation may hide in a run that could show it: what is given is small,
//! and not the smallest there is.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::checker::Verdict;
use crate::folder::{Folder, timestamp};
use crate::run::Options;
use crate::suite;

/// Shorter runs have no time for their faults.
const TIME_MIN: Duration = Duration::from_secs(5);

/// What became of one run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its verdict.
    pub verdict: Verdict,
    /// Checkers that found something.
    pub invalid: Vec<String>,
}

/// What shrinking came to.
#[derive(Debug)]
pub struct Shrunk {
    /// The smallest run that was invalid; `None` = none was.
    pub smallest: Option<Options>,
    /// Runs that were made.
    pub runs: usize,
}

/// Shrinks the run of a folder; prints what it tries, and the smallest command line.
///
/// # Errors
/// When the folder is not that of an invalid run, or a run cannot be started.
pub fn run(path: &Path, first: &Options, tries: usize) -> anyhow::Result<Verdict> {
    let by: BTreeSet<String> = suite::found(path).into_iter().collect();
    anyhow::ensure!(!by.is_empty(), "{} is not invalid: there is nothing to shrink", path.display());
    let planted = Folder::open(path).test()?.planted;
    println!("{} is invalid by {by:?}; at most {tries} runs", path.display());
    let out = path.with_file_name(format!("{}-shrink-{}", name_of(path), timestamp()));
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let mut number = 0;
    let shrunk = shrink(first, &by, tries, |options| {
        number += 1;
        let folder = out.join(format!("{number:03}"));
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(options.command_line()).arg("--out").arg(&folder);
        // As the first run's nodes had it, whatever this process has.
        match &planted {
            Some(bug) => command.env("PLANTED_BUG", bug),
            None => command.env_remove("PLANTED_BUG"),
        };
        let most = options.time_limit + suite::BESIDES_FAULTS_MAX;
        let code = suite::within(command, &out.join(format!("{number:03}.log")), most)?;
        let verdict = suite::verdict_of(code);
        let outcome = Outcome { verdict, invalid: suite::found(&folder) };
        println!("{number:>3}  {:<8} {}", format!("{verdict:?}").to_lowercase(), options.command_line().join(" "));
        Ok(outcome)
    })?;
    let Some(smallest) = shrunk.smallest else {
        println!("\n{} runs, and none was invalid by {by:?} again: it is rare, or hangs on the machine", shrunk.runs);
        return Ok(Verdict::Unknown);
    };
    let bug = planted.map(|bug| format!("PLANTED_BUG={bug} ")).unwrap_or_default();
    println!("\nThe smallest after {} runs:\n{bug}jepsen-tests {}", shrunk.runs, smallest.command_line().join(" "));
    Ok(Verdict::Invalid)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Tries smaller and smaller runs. The first is tried as it is until it shows itself again.
fn shrink(
    first: &Options,
    by: &BTreeSet<String>,
    tries: usize,
    mut make: impl FnMut(&Options) -> anyhow::Result<Outcome>,
) -> anyhow::Result<Shrunk> {
    let mut runs = 0;
    let mut shows = |options: &Options, runs: &mut usize| -> anyhow::Result<bool> {
        *runs += 1;
        let outcome = make(options)?;
        Ok(outcome.verdict == Verdict::Invalid && outcome.invalid.iter().any(|checker| by.contains(checker)))
    };
    let mut smallest = None;
    while smallest.is_none() && runs < tries {
        if shows(first, &mut runs)? {
            smallest = Some(first.clone());
        }
    }
    let Some(mut best) = smallest else { return Ok(Shrunk { smallest: None, runs }) };
    loop {
        let mut smaller = false;
        // Each kind of step is taken as often as it goes.
        let mut step = 0;
        while let Some(candidate) = steps(&best).into_iter().nth(step) {
            if runs >= tries {
                return Ok(Shrunk { smallest: Some(best), runs });
            }
            if shows(&candidate, &mut runs)? {
                (best, smaller) = (candidate, true);
            } else {
                step += 1;
            }
        }
        if !smaller {
            return Ok(Shrunk { smallest: Some(best), runs });
        }
    }
}

/// All runs that are one step smaller; those first that save most.
fn steps(of: &Options) -> Vec<Options> {
    let mut steps = Vec::new();
    let mut push = |change: &dyn Fn(&mut Options)| {
        let mut one = of.clone();
        change(&mut one);
        steps.push(one);
    };
    if of.faults.len() > 1 {
        for at in 0..of.faults.len() {
            push(&|one| without(&mut one.faults, at));
        }
    }
    let counted = of.counts_kills();
    if counted && of.kill_all {
        push(&|one| one.kill_all = false);
    }
    if counted && of.kills > 1 {
        push(&|one| one.kills /= 2);
    }
    if let Some(strikes) = of.strikes.filter(|strikes| *strikes > 1) {
        push(&|one| one.strikes = Some(strikes / 2));
    }
    if !counted && of.time_limit > TIME_MIN {
        push(&|one| one.time_limit = (one.time_limit / 2).max(TIME_MIN));
    }
    if of.workloads.len() > 1 {
        for at in 0..of.workloads.len() {
            push(&|one| without(&mut one.workloads, at));
        }
    }
    if of.clients as usize > of.workloads.len() {
        push(&|one| one.clients = (one.clients / 2).max(one.workloads.len() as u32));
    }
    if of.nodes > 3 {
        push(&|one| (one.nodes, one.arrays) = (3, one.arrays.min(3)));
    }
    for at in 0..of.set.len() {
        push(&|one| without(&mut one.set, at));
    }
    steps
}

fn without<T>(list: &mut Vec<T>, at: usize) {
    list.remove(at);
}

impl Options {
    /// The command line that asks for this run, without where it is written to.
    pub fn command_line(&self) -> Vec<String> {
        let list = |names: Vec<String>| names.join(",");
        let mut line = vec!["test".to_owned()];
        let mut push = |option: &str, value: String| line.extend([option.to_owned(), value]);
        push("-w", list(self.workloads.iter().map(ToString::to_string).collect()));
        push("-n", list(self.faults.iter().map(ToString::to_string).collect()));
        push("--nodes", self.nodes.to_string());
        push("--arrays", self.arrays.to_string());
        push("--clients", self.clients.to_string());
        if let Some(rate) = self.rate {
            push("--rate", rate.to_string());
        }
        if let Some(strikes) = self.strikes {
            push("--strikes", strikes.to_string());
        }
        if self.counts_kills() {
            push("--kills", self.kills.to_string());
        }
        push("--time-limit", self.time_limit.as_secs().to_string());
        // A cluster that was given less time must be given no more: else another run is judged.
        push("--recover-within", self.recover_within.as_secs().to_string());
        for one in &self.set {
            push("--set", one.clone());
        }
        push("--seed", self.seed.to_string());
        push("--holdfast", self.holdfast.display().to_string());
        line.extend(self.kill_all.then(|| "--kill-all".to_owned()));
        line.extend(self.may_take_quorum.then(|| "--may-take-quorum".to_owned()));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::Fault;
    use crate::workload::Workload;

    fn first() -> Options {
        Options {
            holdfast: "holdfast".into(),
            set: vec!["a=1".into(), "needed=2".into()],
            out: None,
            seed: 7,
            clients: 16,
            nodes: 5,
            workloads: vec![Workload::Set, Workload::Register],
            faults: vec![Fault::Kill, Fault::Pause, Fault::Partition, Fault::Clock],
            rate: Some(300),
            kills: 10,
            kill_all: false,
            time_limit: Duration::from_secs(60),
            arrays: 5,
            strikes: Some(4),
            may_take_quorum: false,
            recover_within: Duration::from_secs(10),
            args: Vec::new(),
        }
    }

    fn by() -> BTreeSet<String> {
        ["versioned".to_owned()].into()
    }

    /// Invalid by `checker` when `shows`.
    fn outcome(shows: bool, checker: &str) -> anyhow::Result<Outcome> {
        let invalid = if shows { vec![checker.to_owned()] } else { Vec::new() };
        Ok(Outcome { verdict: if shows { Verdict::Invalid } else { Verdict::Valid }, invalid })
    }

    #[test]
    fn what_a_violation_needs_is_left_and_nothing_else() {
        let needs = |options: &Options| {
            options.faults.contains(&Fault::Partition)
                && options.faults.contains(&Fault::Kill)
                && options.workloads.contains(&Workload::Register)
                && options.clients >= 3
                && options.time_limit >= Duration::from_secs(10)
                && options.set.contains(&"needed=2".to_owned())
        };
        let mut seen = Vec::new();
        let shrunk = shrink(&first(), &by(), 1000, |options| {
            seen.push(options.command_line());
            outcome(needs(options), "versioned")
        });
        let shrunk = shrunk.expect("runs");
        let smallest = shrunk.smallest.expect("found");
        assert_eq!(smallest.faults, [Fault::Kill, Fault::Partition]);
        assert_eq!((smallest.workloads.as_slice(), smallest.clients), ([Workload::Register].as_slice(), 4));
        assert_eq!((smallest.nodes, smallest.arrays, smallest.time_limit.as_secs()), (3, 3, 15));
        assert_eq!((smallest.set, smallest.seed), (vec!["needed=2".to_owned()], 7));
        assert_eq!(seen.len(), shrunk.runs);
        assert!(seen.iter().all(|line| line.windows(2).any(|pair| pair == ["--recover-within", "10"])), "{seen:?}");
        assert!(shrunk.runs < 60, "{} runs", shrunk.runs);
    }

    #[test]
    fn another_checker_and_another_verdict_are_another_bug() {
        let shrunk = shrink(&first(), &by(), 5, |_| outcome(true, "harness")).expect("runs");
        assert!(shrunk.smallest.is_none() && shrunk.runs == 5, "{shrunk:?}");
        let unknown = |_: &Options| Ok(Outcome { verdict: Verdict::Unknown, invalid: vec!["versioned".into()] });
        assert!(shrink(&first(), &by(), 5, unknown).expect("runs").smallest.is_none());
    }

    #[test]
    fn it_stops_when_its_tries_are_used_up_and_gives_what_it_has() {
        let shrunk = shrink(&first(), &by(), 3, |_| outcome(true, "versioned")).expect("runs");
        assert_eq!(shrunk.runs, 3);
        assert_eq!(shrunk.smallest.expect("found").faults.len(), 2);
        // One that shows itself the third time alone is not given up before.
        let mut runs = 0;
        let rare = shrink(&first(), &by(), 4, |_| {
            runs += 1;
            outcome(runs == 3, "versioned")
        });
        let rare = rare.expect("runs");
        assert_eq!((rare.runs, rare.smallest.expect("found").faults.len()), (4, 4));
    }

    #[test]
    fn counted_kills_become_fewer_and_a_run_that_cannot_be_smaller_is_left() {
        let counted = Options { faults: vec![Fault::Kill], kill_all: true, ..first() };
        let shrunk = shrink(&counted, &by(), 1000, |_| outcome(true, "versioned")).expect("runs");
        let smallest = shrunk.smallest.expect("found");
        assert_eq!((smallest.kills, smallest.kill_all, smallest.clients), (1, false, 1));
        assert!(steps(&smallest).is_empty(), "{:?}", steps(&smallest));
    }
}
