//! The command line. Exit codes: 0 valid, 1 invalid, 2 unknown, 64 usage.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use jepsen_tests::chance::Chance;
use jepsen_tests::checker::Verdict;
use jepsen_tests::cluster::NODES;
use jepsen_tests::disk::corrupt::{Damage, Part};
use jepsen_tests::folder::Folder;
use jepsen_tests::nemesis::Fault;
use jepsen_tests::run::{self, Options};
use jepsen_tests::scenario::{Profile, Scenario};
use jepsen_tests::shrink;
use jepsen_tests::soak::{self, Soak};
use jepsen_tests::suite::{self, Suite};
use jepsen_tests::workload::Workload;
use tokio::signal::unix::{SignalKind, signal};

/// sysexits.h, EX_USAGE.
const USAGE: u8 = 64;

/// Faults against a real cluster, and checkers of what its clients saw.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 valid, 1 invalid, 2 unknown, 64 usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a run: found a cluster, put load and faults on it, judge what clients saw.
    Test(TestArgs),
    /// Make all runs of a profile, each in a process of its own, and count what they did.
    #[command(after_help = "\
Every run must end as its scenario says: valid, or with its planted bug found. Files: scenarios/<profile>/*.toml.
A soak goes on where its ledger ended:
  jepsen-tests test-all --profile soak --hours 2 --ledger soak.jsonl --holdfast target/release/holdfast")]
    TestAll(TestAllArgs),
    /// Show the runs in a folder in a browser, on this machine alone.
    Serve {
        /// Folder of runs.
        #[arg(long, value_name = "DIR", default_value = "runs")]
        runs: PathBuf,
        /// Port on 127.0.0.1; 0 = a free one.
        #[arg(long, value_name = "PORT", default_value_t = 7480)]
        port: u16,
    },
    /// Try what each fault needs of this machine, and say what is missing. Exit 0 when nothing is, 2 when something is.
    Doctor,
    /// Judge an earlier run again, from its folder.
    Check {
        /// The run's folder.
        run: PathBuf,
    },
    /// Run an invalid run again with fewer faults, less time and fewer clients, as long as the same checker finds something;
    /// print the smallest command line. Exit 1 when there is one, 2 when the run was not invalid again.
    Shrink {
        /// The run's folder.
        run: PathBuf,
        /// Runs that are made, at most.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        tries: u32,
    },
    /// Damage a file of a stopped node, or an object of an archive; print what was done as JSON.
    #[command(after_help = "Example, a flipped bit in the write-ahead log of a stopped node:\n  \
        jepsen-tests corrupt flip /tmp/hf/1 --part log-wal --seed 7")]
    Corrupt(CorruptArgs),
}

#[derive(Debug, clap::Args)]
struct CorruptArgs {
    /// What happens to the bytes.
    #[arg(value_enum)]
    damage: Damage,
    /// The file; or the directory of a node, or of a destination, of which one file is drawn.
    path: PathBuf,
    /// Which files of the directory.
    #[arg(long, value_enum, default_value_t = Part::Any)]
    part: Part,
    /// Where in the file, in bytes from its beginning [default: drawn].
    #[arg(long, value_name = "BYTE")]
    at: Option<u64>,
    /// What is drawn follows from it.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
struct TestAllArgs {
    /// Which runs.
    #[arg(long, value_enum, default_value_t = Profile::Ci)]
    profile: Profile,
    /// Only scenarios whose name contains this; may be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// A scenario of your own instead of a profile; may be repeated.
    #[arg(long, value_name = "FILE")]
    scenario: Vec<PathBuf>,
    /// The binary under test.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// The binary with planted bugs (`make planted`); not for soaks and regressions.
    #[arg(long, value_name = "FILE")]
    planted: Option<PathBuf>,
    /// The seeds of all runs follow from it [default: another each time].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Runs at a time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    at_once: u32,
    /// Fail when this machine cannot make a fault, instead of leaving its runs out.
    #[arg(long)]
    require: bool,
    /// Of a soak: hours in all, over all calls with one ledger.
    #[arg(long, value_name = "H", default_value_t = 1.0)]
    hours: f64,
    /// Of a soak: its ledger, a line a run.
    #[arg(long, value_name = "FILE", default_value = "soak.jsonl")]
    ledger: PathBuf,
    /// Of a soak: seconds of faults in one run.
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=soak::RUN_SECONDS_MAX))]
    run_seconds: u64,
    /// Of a soak: a binary built with debug assertions; each pair of faults meets it and the other one in turn.
    #[arg(long, value_name = "FILE")]
    holdfast_debug: Option<PathBuf>,
    /// Folder to make [default: runs/<time>-<profile>].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct TestArgs {
    /// What clients do; several, comma-separated, share the clients and the cluster.
    #[arg(short, long, value_enum, value_delimiter = ',', default_values_t = [Named::Set])]
    workload: Vec<Named>,
    /// What goes wrong; several, comma-separated, strike in turn and two at once [default: what array and membership are
    /// there for, else kill].
    #[arg(short, long, value_enum, value_delimiter = ',')]
    nemesis: Vec<Fault>,
    /// Nodes of the cluster.
    #[arg(long, value_name = "N", default_value = "3", value_parser = ["1", "3", "5"])]
    nodes: String,
    /// Arrays that the nodes' disks lie in, in turn; whole arrays are lost [default: one for each node].
    #[arg(long, value_name = "N")]
    arrays: Option<usize>,
    /// Faults may take a majority: writes stop then, and must go on afterwards.
    #[arg(long)]
    may_take_quorum: bool,
    /// The binary under test.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Clients that write.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// Writes a second of all clients together [default: as fast as they are answered].
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// With `-n kill` alone: kills of the leader.
    #[arg(long, value_name = "N", default_value_t = 10)]
    kills: u32,
    /// With `-n kill` alone: after them, kill all nodes in one moment.
    #[arg(long)]
    kill_all: bool,
    /// Everything random follows from it; printed, so that a run can be made again [default: another each time].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Seconds. With `-n kill` alone the load ends when the kills are done, at the latest after this; else faults are
    /// made for this long.
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    time_limit: u64,
    /// Each fault is there so often, and then no more; `--time-limit` should be long enough for that [default: as often as
    /// there is time].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    strikes: Option<u32>,
    /// Seconds. Once a fault is healed, writes must be acknowledged again and each node must serve within this; a cluster
    /// that does not come back is a violation, and the run ends.
    #[arg(long, value_name = "SECS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    recover_within: u64,
    /// Any key of the nodes' configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder to make for the run [default: runs/<time>-<workload>-<nemesis>-<seed>].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What clients do, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Named {
    /// Records that no one else writes; all acknowledged ones must be there, each written once.
    Set,
    /// Records that many write under guards, and read fresh, as new as they know, or not too old.
    Register,
    /// Lists to which many add, each element once.
    Append,
    /// Feeds, followed by consumers that crash and go on at another node.
    Feed,
    /// Registers, and an archive offsite that is restored into new clusters meanwhile.
    Restore,
    /// Records that end by themselves; none may be gone before its time.
    Ttl,
    /// set and register, while whole arrays of disks hang, fail, are empty, full of noise, or go back in time.
    Array,
    /// set and register, while members change and leadership is handed over.
    Membership,
}

impl Named {
    fn workloads(self) -> &'static [Workload] {
        match self {
            Self::Set => &[Workload::Set],
            Self::Register => &[Workload::Register],
            Self::Append => &[Workload::Append],
            Self::Feed => &[Workload::Feed],
            Self::Restore => &[Workload::Restore],
            Self::Ttl => &[Workload::Ttl],
            Self::Array | Self::Membership => &[Workload::Set, Workload::Register],
        }
    }

    /// What it is there for; nothing in particular for most.
    fn faults(self) -> &'static [Fault] {
        match self {
            Self::Array => {
                &[Fault::ArrayHang, Fault::ArrayEio, Fault::ArrayWipe, Fault::ArrayScramble, Fault::ArrayRollback]
            }
            Self::Membership => &[Fault::Membership, Fault::Transfer],
            Self::Set | Self::Register | Self::Append | Self::Feed | Self::Restore | Self::Ttl => &[],
        }
    }
}

/// What strikes when nothing was said.
fn default_faults(named: &[Named]) -> Vec<Fault> {
    let faults: Vec<Fault> = named.iter().flat_map(|one| one.faults()).copied().collect();
    if faults.is_empty() { vec![Fault::Kill] } else { faults }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed terminal is no reason to end otherwise.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let verdict = match cli.command {
        Command::Test(args) => test(args),
        Command::TestAll(args) => test_all(args),
        Command::Serve { runs, port } => serve(runs, port).map(|()| Verdict::Valid),
        Command::Doctor => Ok(doctor()),
        Command::Check { run } => run::check(&run),
        Command::Shrink { run, tries } => shrink(&run, tries as usize),
        Command::Corrupt(args) => corrupt(&args).map(|()| Verdict::Valid),
    };
    match verdict {
        Ok(Verdict::Valid) => ExitCode::SUCCESS,
        Ok(Verdict::Invalid) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(2),
        Err(error) => match error.downcast_ref::<clap::Error>() {
            Some(usage) => {
                let _ = usage.print();
                ExitCode::from(USAGE)
            }
            None => {
                eprintln!("jepsen-tests: no verdict: {error:#}");
                ExitCode::from(2)
            }
        },
    }
}

/// What was asked for cannot be done, whatever the cluster does.
fn usage(what: impl std::fmt::Display) -> anyhow::Error {
    Cli::command().error(ErrorKind::ValueValidation, what).into()
}

/// One line a fault.
fn doctor() -> Verdict {
    let mut verdict = Verdict::Valid;
    for fault in Fault::all() {
        let lacks = fault.lacks();
        if lacks.is_empty() {
            println!("{:<14} available", fault.to_string());
        } else {
            verdict = Verdict::Unknown;
            println!("{:<14} NOT AVAILABLE: {}", fault.to_string(), lacks.join("; "));
        }
    }
    verdict
}

fn test_all(args: TestAllArgs) -> anyhow::Result<Verdict> {
    let profile = format!("{:?}", args.profile).to_lowercase();
    let default = || PathBuf::from(format!("runs/{}-{profile}", jepsen_tests::folder::timestamp()));
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let suite = Suite {
        scenarios: Vec::new(),
        holdfast: args.holdfast,
        planted: args.planted,
        seed,
        at_once: args.at_once as usize,
        require: args.require,
        out: args.out.unwrap_or_else(default),
    };
    if args.profile == Profile::Soak && args.scenario.is_empty() {
        let soak =
            Soak { hours: args.hours, run_seconds: args.run_seconds, ledger: args.ledger, debug: args.holdfast_debug };
        return soak::run(&suite, &soak);
    }
    let mut scenarios = match args.scenario.is_empty() {
        true => Scenario::of(args.profile)?,
        false => args.scenario.iter().map(|path| Scenario::read(path)).collect::<Result<_, _>>()?,
    };
    scenarios.retain(|one| args.only.is_empty() || args.only.iter().any(|only| one.name.contains(only)));
    if scenarios.is_empty() {
        return Err(usage("no scenario has such a name"));
    }
    if suite.planted.is_none() && scenarios.iter().any(Scenario::is_planted) {
        return Err(usage("planted bugs need their binary: --planted FILE (`make planted`)"));
    }
    Ok(suite::run(&Suite { scenarios, ..suite })?.verdict)
}

fn fresh_seed() -> u64 {
    u64::from(uuid::Uuid::new_v4().as_fields().0)
}

fn serve(runs: PathBuf, port: u16) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            served = jepsen_tests::serve::run(runs, port) => served,
            _ = told_to_end() => Ok(()),
        }
    })
}

fn corrupt(args: &CorruptArgs) -> anyhow::Result<()> {
    let mut chance = Chance::new(args.seed, 0);
    let file = if args.path.is_dir() {
        let drawn = args.part.any_file(&args.path, &mut chance)?;
        drawn.with_context(|| format!("{} holds no such file", args.path.display()))?
    } else {
        args.path.clone()
    };
    let done = args.damage.strike(&file, args.at, &mut chance)?;
    println!("{}", serde_json::to_string(&done)?);
    Ok(())
}

fn test(args: TestArgs) -> anyhow::Result<Verdict> {
    let options = options(args, std::env::args().skip(1).collect());
    // The harness panics when the machine fails it. That is no verdict on Holdfast, and no usage error.
    let outcome = catch_unwind(AssertUnwindSafe(|| run::test(&options, told_to_end())));
    outcome.unwrap_or_else(|_| anyhow::bail!("the harness panicked"))
}

fn options(args: TestArgs, line: Vec<String>) -> Options {
    let nodes = args.nodes.parse().unwrap_or(NODES);
    Options {
        holdfast: args.holdfast,
        set: args.set,
        out: args.out,
        seed: args.seed.unwrap_or_else(fresh_seed),
        clients: args.clients,
        nodes,
        workloads: once_each(args.workload.iter().flat_map(|one| one.workloads()).copied().collect()),
        faults: if args.nemesis.is_empty() { default_faults(&args.workload) } else { args.nemesis },
        rate: args.rate,
        kills: args.kills,
        kill_all: args.kill_all,
        time_limit: Duration::from_secs(args.time_limit),
        recover_within: Duration::from_secs(args.recover_within),
        arrays: args.arrays.unwrap_or(nodes),
        strikes: args.strikes,
        may_take_quorum: args.may_take_quorum,
        args: line,
    }
}

fn shrink(path: &Path, tries: usize) -> anyhow::Result<Verdict> {
    let test = Folder::open(path).test()?;
    let first = options_of(&test.args).with_context(|| format!("{} is no run of `test`", path.display()))?;
    // Where it was drawn, the command line does not say it; and the binary may have been named from another folder.
    shrink::run(path, &Options { seed: test.seed, holdfast: test.versions.binary, out: None, ..first }, tries)
}

/// What a command line asks for.
fn options_of(line: &[String]) -> anyhow::Result<Options> {
    let words = std::iter::once("jepsen-tests").chain(line.iter().map(String::as_str));
    match Cli::try_parse_from(words)?.command {
        Command::Test(args) => Ok(options(args, line.to_vec())),
        _ => anyhow::bail!("another command"),
    }
}

/// Named twice is meant once.
fn once_each(mut workloads: Vec<Workload>) -> Vec<Workload> {
    workloads.sort_unstable();
    workloads.dedup();
    workloads
}

/// Ends when this process is told to end, so that all others are ended in order.
async fn told_to_end() -> anyhow::Error {
    let both = || Ok::<_, std::io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?));
    match both() {
        Ok((mut interrupt, mut terminate)) => tokio::select! {
            _ = interrupt.recv() => anyhow::anyhow!("interrupted"),
            _ = terminate.recv() => anyhow::anyhow!("told to end"),
        },
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_that_is_written_down_asks_for_the_same_run() {
        let line = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
        for text in [
            "test --holdfast hf",
            "test -w register,append -n kill --nemesis=power-all --nodes 5 --arrays 2 --may-take-quorum --strikes 4 --rate 7 \
             --time-limit 9 --set a=1 --set b=2 --seed 3 --clients 4 --holdfast hf --out there",
            "test -n kill --kills 3 --kill-all --holdfast hf",
            "test -n power-all --nodes 1 --holdfast hf",
            "test -w array,membership --holdfast hf",
        ] {
            let first = options_of(&line(text)).expect("reads");
            let again = options_of(&first.command_line()).expect("reads");
            let same = Options { args: Vec::new(), out: None, ..first };
            assert_eq!(format!("{same:?}"), format!("{:?}", Options { args: Vec::new(), ..again }), "{text}");
        }
        assert!(options_of(&line("doctor")).is_err());
    }

    #[test]
    fn workloads_that_are_there_for_a_fault_come_with_it() {
        let options =
            |words: &str| options_of(&words.split(' ').map(str::to_owned).collect::<Vec<_>>()).expect("reads");
        let membership = options("test -w membership --holdfast hf");
        assert_eq!(membership.faults, [Fault::Membership, Fault::Transfer]);
        assert_eq!(membership.workloads, [Workload::Set, Workload::Register]);
        assert_eq!(options("test -w array -n pause --holdfast hf").faults, [Fault::Pause], "what was asked for");
        assert_eq!(options("test -w feed --holdfast hf").faults, [Fault::Kill]);
    }

    #[test]
    fn what_cannot_be_run_is_a_usage_error() {
        for further in ["--profile planted", "--profile ci", "--profile regressions --only no-such-name"] {
            let words = format!("jepsen-tests test-all --holdfast hf {further}");
            let Command::TestAll(args) = Cli::try_parse_from(words.split(' ')).expect("reads").command else {
                panic!("{words}")
            };
            let error = test_all(args).expect_err(&words);
            assert!(error.downcast_ref::<clap::Error>().is_some(), "{words}: {error:#}");
        }
    }
}
