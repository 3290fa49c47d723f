//! The command line. Exit codes: 0 valid, 1 invalid, 2 unknown, 64 usage.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use jepsen_tests::checker::Verdict;
use jepsen_tests::nemesis::Fault;
use jepsen_tests::run::{self, Options};
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
    /// Judge an earlier run again, from its folder.
    Check {
        /// The run's folder.
        run: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct TestArgs {
    /// What clients do; several, comma-separated, share the clients and the cluster.
    #[arg(short, long, value_enum, value_delimiter = ',', default_values_t = [Workload::Set])]
    workload: Vec<Workload>,
    /// What goes wrong; several, comma-separated, strike in turn and two at once.
    #[arg(short, long, value_enum, value_delimiter = ',', default_values_t = [Fault::Kill])]
    nemesis: Vec<Fault>,
    /// Nodes of the cluster.
    #[arg(long, value_name = "N", default_value = "3", value_parser = ["3", "5"])]
    nodes: String,
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
        Command::Check { run } => run::check(&run),
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

fn test(args: TestArgs) -> anyhow::Result<Verdict> {
    let options = Options {
        holdfast: args.holdfast,
        set: args.set,
        out: args.out,
        seed: args.seed.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0)),
        clients: args.clients,
        nodes: if args.nodes == "5" { 5 } else { 3 },
        workloads: once_each(args.workload),
        faults: args.nemesis,
        rate: args.rate,
        kills: args.kills,
        kill_all: args.kill_all,
        time_limit: Duration::from_secs(args.time_limit),
        args: std::env::args().skip(1).collect(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // The harness panics when the machine fails it. That is no verdict on Holdfast, and no usage error.
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(interruptible(&options))));
    outcome.unwrap_or_else(|_| anyhow::bail!("the harness panicked"))
}

/// Named twice is meant once.
fn once_each(mut workloads: Vec<Workload>) -> Vec<Workload> {
    workloads.sort_unstable();
    workloads.dedup();
    workloads
}

/// Ends all processes in order when this one is told to end.
async fn interruptible(options: &Options) -> anyhow::Result<Verdict> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        verdict = run::test(options) => verdict,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("told to end"),
    }
}
