//! How long writes stand still when leadership is handed over on purpose: as before a restart of the leader.
//!
//! Closed loop: each client sends its next put when the last one was answered, over connections to all nodes. Silence is
//! the longest time without any acknowledgement, from the moment a transfer is asked for until a second after the new
//! leader said yes. fsync is on; nothing is switched off.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use holdfast_benches::measure::{load_average, percentile_ms};
use holdfast_benches::silence::silence;
use holdfast_client::{AdminClient, Client, RecordRef};
use jepsen_tests::cluster::Cluster;
use tokio::task::JoinSet;

/// After the new leader said yes.
const SETTLE: Duration = Duration::from_secs(1);

/// Planned transfers under load.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Clients that write.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: u32,
    /// Transfers.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    transfers: u32,
    /// Fail when a transfer silences writes for longer, in milliseconds.
    #[arg(long, default_value_t = 100)]
    silence_ms_max: u64,
}

/// When each of its puts was acknowledged, and how many failed.
async fn write(client: Client, number: u32, stop: Arc<AtomicBool>) -> (Vec<Instant>, Vec<String>) {
    let user = format!("transfer-{number}");
    let (mut acks, mut failures) = (Vec::new(), Vec::new());
    for n in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let id = format!("r{}", n % 100);
        let record = RecordRef { user: &user, collection: "notes", record_id: &id };
        // Each put changes something: an identical one would write nothing.
        match client.put(record, "application/octet-stream", n.to_be_bytes().repeat(16)).await {
            Ok(_) => acks.push(Instant::now()),
            Err(error) => failures.push(error.to_string()),
        }
    }
    (acks, failures)
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(&args.holdfast, &dir.path().join("c"), &[])?;
    let before = load_average();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for number in 0..args.clients {
        writers.spawn(write(cluster.client(), number, stop.clone()));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut moments = Vec::new();
    for _ in 0..args.transfers {
        let leader = cluster.leader().await;
        let admin = AdminClient::new(&cluster.nodes[leader].admin)?;
        let asked = Instant::now();
        admin.transfer_leader(0).await.context("a transfer")?;
        let led = Instant::now();
        tokio::time::sleep(SETTLE).await;
        moments.push((asked, led, Instant::now()));
    }
    stop.store(true, Ordering::Release);
    let (mut acks, mut failures) = (Vec::new(), Vec::new());
    while let Some(written) = writers.join_next().await {
        let (mut written, mut failed) = written?;
        acks.append(&mut written);
        failures.append(&mut failed);
    }
    acks.sort_unstable();
    let mut silences: Vec<Duration> = moments.iter().map(|(asked, _, end)| silence(&acks, *asked, *end)).collect();
    let mut answers: Vec<Duration> = moments.iter().map(|(asked, led, _)| *led - *asked).collect();
    silences.sort_unstable();
    answers.sort_unstable();
    println!(
        "{} transfers under {} clients ({} puts), three processes on loopback, fsync on; load average before: {before}",
        args.transfers,
        args.clients,
        acks.len()
    );
    println!("{:<22} {:>9} {:>9} {:>9}", "", "p50 ms", "p90 ms", "max ms");
    for (title, samples) in [("no write acknowledged", &silences), ("answer of the transfer", &answers)] {
        let of = |share| percentile_ms(samples, share);
        println!("{title:<22} {:>9.1} {:>9.1} {:>9.1}", of(0.5), of(0.9), of(1.0));
    }
    println!("puts that failed: {}", failures.len());
    if let Some(failure) = failures.first() {
        println!("first failure: {failure}");
    }
    let longest = silences.last().copied().unwrap_or_default();
    let is_fine = failures.is_empty() && longest <= Duration::from_millis(args.silence_ms_max);
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
