//! The command line. Exit codes: 0 valid, 1 invalid, 2 unknown, 64 usage.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use jepsen_tests::chance::Chance;
use jepsen_tests::checker::Verdict;
use jepsen_tests::disk::corrupt::{Damage, Part};
use jepsen_tests::nemesis::Fault;
use jepsen_tests::run::{self, Options};
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
    /// Try what each fault needs of this machine, and say what is missing. Exit 0 when nothing is, 2 when something is.
    Doctor,
    /// Judge an earlier run again, from its folder.
    Check {
        /// The run's folder.
        run: PathBuf,
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
struct TestArgs {
    /// What clients do.
    #[arg(short, long, value_enum, default_value_t = Workload::Set)]
    workload: Workload,
    /// What goes wrong; several, comma-separated, strike in turn and two at once.
    #[arg(short, long, value_enum, value_delimiter = ',', default_values_t = [Fault::Kill])]
    nemesis: Vec<Fault>,
    /// Nodes of the cluster.
    #[arg(long, value_name = "N", default_value = "3", value_parser = ["3", "5"])]
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
    /// Any key of the nodes' configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder to make for the run [default: runs/<time>-<workload>-<nemesis>-<seed>].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Workload {
    /// Records that no one else writes; all acknowledged ones must be there, each written once.
    Set,
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
        Command::Doctor => Ok(doctor()),
        Command::Check { run } => run::check(&run),
        Command::Corrupt(args) => corrupt(&args).map(|()| Verdict::Valid),
    };
    match verdict {
        Ok(Verdict::Valid) => ExitCode::SUCCESS,
        Ok(Verdict::Invalid) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(2),
        Err(error) => {
            eprintln!("jepsen-tests: no verdict: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// One line a fault.
fn doctor() -> Verdict {
    let mut verdict = Verdict::Valid;
    for fault in Fault::all() {
        let lacks = fault.lacks();
        if lacks.is_empty() {
            println!("{:<12} available", fault.to_string());
        } else {
            verdict = Verdict::Unknown;
            println!("{:<12} NOT AVAILABLE: {}", fault.to_string(), lacks.join("; "));
        }
    }
    verdict
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
    // With more workloads this chooses; the match makes sure that a new one is not taken for an old one.
    let Workload::Set = args.workload;
    let options = Options {
        holdfast: args.holdfast,
        set: args.set,
        out: args.out,
        seed: args.seed.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0)),
        clients: args.clients,
        nodes: if args.nodes == "5" { 5 } else { 3 },
        faults: args.nemesis,
        rate: args.rate,
        kills: args.kills,
        kill_all: args.kill_all,
        time_limit: Duration::from_secs(args.time_limit),
        arrays: args.arrays.unwrap_or(if args.nodes == "5" { 5 } else { 3 }),
        may_take_quorum: args.may_take_quorum,
        args: std::env::args().skip(1).collect(),
    };
    // The harness panics when the machine fails it. That is no verdict on Holdfast, and no usage error.
    let outcome = catch_unwind(AssertUnwindSafe(|| run::test(&options, told_to_end())));
    outcome.unwrap_or_else(|_| anyhow::bail!("the harness panicked"))
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
