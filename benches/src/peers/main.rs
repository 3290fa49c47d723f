//! Holdfast beside etcd and PostgreSQL on the same work, each as three processes on loopback, and what is asked of it.
//!
//! fsync is on; nothing is switched off. Absolute figures depend on the machine: what counts are ratios within a run, taken
//! round by round.

mod catchup;
mod cells;
mod etcd;
mod etcd_api;
mod faults;
mod figures;
mod goals;
mod holdfast;
mod load;
mod overload;
mod peer;
mod postgres;
mod report;
mod rounds;
mod stored;
mod svg;
mod syncs;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use futures::FutureExt as _;

use cells::{Cell, Kind};
use figures::{Kept, Outcome};
use goals::{GOALS, Judged, Verdict};
use load::Times;
use rounds::Peers;

/// Wrong arguments, or Holdfast cannot be run.
const EXIT_CANNOT: u8 = 2;

const OVERLOADS: usize = 3;
const CATCH_UPS: usize = 3;

/// Holdfast beside etcd and PostgreSQL.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Run the cells that goals are judged by; this is the default.
    #[arg(long, conflicts_with_all = ["full", "only"])]
    goals: bool,
    /// Run all cells, but for those that DIR has for this binary.
    #[arg(long, conflicts_with = "only")]
    full: bool,
    /// Run these cells.
    #[arg(long, value_name = "CELL,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds of a cell under load, each with every peer once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds that count in a round.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Seconds of load before them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=60))]
    warm_up: u64,
    /// Kills and transfers.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    faults: u32,
    /// Records of the user with many.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    records: u64,
    /// Where results go.
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    out: PathBuf,
}

impl Args {
    fn cells(&self) -> anyhow::Result<Vec<Cell>> {
        let all = cells::all();
        for name in &self.only {
            let known: Vec<&str> = all.iter().map(|cell| cell.slug.as_str()).collect();
            ensure!(known.contains(&name.as_str()), "there is no cell {name}; there are {}", known.join(", "));
        }
        let wanted = |cell: &Cell| match (self.full, self.only.is_empty()) {
            (true, _) => true,
            (false, false) => self.only.contains(&cell.slug),
            (false, true) => cell.is_asked(),
        };
        Ok(all.into_iter().filter(wanted).collect())
    }

    fn times(&self) -> Times {
        Times { warm_up: Duration::from_secs(self.warm_up), measured: Duration::from_secs(self.seconds) }
    }
}

async fn run_cell(peers: &mut Peers, cell: &Cell, args: &Args, binary: &str) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new(&cell.slug, binary);
    let (out, holdfast) = (&mut outcome, &args.holdfast);
    if !matches!(cell.kind, Kind::Load(..) | Kind::Syncs) {
        // Those that bring clusters of their own have the machine for themselves.
        peers.stop();
    }
    match cell.kind {
        Kind::Load(shape, streams) => {
            peers.run(cell, (shape, streams), (args.rounds as usize, args.times()), out).await?;
        }
        Kind::Syncs => peers.count_syncs(cell.peers, out).await?,
        Kind::Fault(fault) => faults::run(fault, cell.peers, holdfast, args.faults as usize, out).await?,
        Kind::Rolling => faults::rolling(holdfast, out).await?,
        Kind::Stored => stored::run(holdfast, args.records, out).await?,
        Kind::Overload => overload::run(holdfast, OVERLOADS, args.times(), out).await?,
        Kind::CatchUp => catchup::run(holdfast, cell.peers, CATCH_UPS, out).await?,
    }
    Ok(outcome)
}

/// Runs what is wanted; judges with all that is known of this binary.
async fn run(args: &Args) -> anyhow::Result<Vec<Judged>> {
    let cells = args.cells()?;
    let program = std::fs::read(&args.holdfast).with_context(|| format!("read {}", args.holdfast.display()))?;
    let binary = blake3::hash(&program).to_hex()[..16].to_owned();
    std::fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    let path = args.out.join("cells.jsonl");
    let kept = Kept::new(&path);
    let mut outcomes: BTreeMap<String, Outcome> = if args.full { kept.of(&binary)? } else { BTreeMap::new() };
    let mut peers = Peers::new(args.holdfast.clone());
    // The rest is of no use without it.
    peers.start(&[peer::Who::Holdfast]).await?;
    let (began, all, mut failures) = (Instant::now(), cells.len(), Vec::new());
    for (place, cell) in cells.iter().enumerate() {
        if outcomes.contains_key(&cell.slug) {
            eprintln!("{}: measured before", cell.slug);
            continue;
        }
        eprintln!("[{}/{all}, {:.0} s] {}", place + 1, began.elapsed().as_secs_f64(), cell.slug);
        // What harness and cells do not expect is a panic; neither that nor an error keeps the others from being measured.
        let measured = AssertUnwindSafe(run_cell(&mut peers, cell, args, &binary)).catch_unwind().await;
        match measured.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))) {
            Ok(outcome) => {
                kept.add(&outcome)?;
                outcomes.insert(cell.slug.clone(), outcome);
            }
            Err(error) => {
                eprintln!("{} could not be measured: {error:#}", cell.slug);
                failures.push(format!("{} could not be measured: {error:#}", cell.slug));
                // Whatever is wrong with them, the next ones are new.
                peers.stop();
            }
        }
    }
    peers.stop();
    let only = |goal: &&goals::Goal| args.only.is_empty() || args.only.iter().any(|name| name == goal.cell);
    let judged: Vec<Judged> = GOALS.iter().filter(only).map(|goal| goal.judge(&outcomes)).collect();
    let outcomes: Vec<&Outcome> = cells.iter().filter_map(|cell| outcomes.get(&cell.slug)).collect();
    report::print(&outcomes, &judged, &peers.absent);
    failures.iter().for_each(|failure| println!("{failure}"));
    report::write(&args.out, &outcomes, &judged, &peers.absent)?;
    eprintln!("{:.0} s in all; {}", began.elapsed().as_secs_f64(), args.out.join("peers.json").display());
    Ok(judged)
}

/// Until somebody wants this to end.
async fn interrupted() {
    let Ok(mut told) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = told.recv() => {}
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = tokio::select! {
        done = run(&args) => done,
        // Peers end in order, and their data goes.
        () = interrupted() => Err(anyhow::anyhow!("interrupted; what was measured is in {}", args.out.display())),
    };
    match done {
        Ok(judged) if judged.iter().all(|goal| goal.verdict == Verdict::Met) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::from(EXIT_CANNOT)
        }
    }
}
