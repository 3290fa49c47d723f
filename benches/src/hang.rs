//! A destination that hangs under load: what people notice, what nodes keep in memory, and how it catches up.
//!
//! The S3 server is stopped by SIGSTOP: it takes connections and answers nothing, as a hung array behind it would. A folder
//! goes on beside it. Open loop, fsync on, nothing switched off. Latencies are compared minute by minute: the median of the
//! minutes in which it hangs with that of the minutes before and after, in one run, so that a machine that is busy for a while
//! is no finding.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use holdfast_benches::measure::{load_average, median, percentile_ms};
use holdfast_benches::memory::{Sample, sample_memory};
use holdfast_benches::puts::{Load, Missing, Put, within};
use holdfast_benches::servers::{Disk, Servers};
use jepsen_tests::cluster::Cluster;
use jepsen_tests::s3::{self, S3};

/// Of it nothing is counted.
const WARM_UP: Duration = Duration::from_secs(20);
/// After it goes on again, until what is compared begins once more.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(600);
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// A destination that hangs under load.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Puts a second.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 1024)]
    payload_bytes: usize,
    /// Seconds for which it hangs.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    hang: u64,
    /// Seconds before, and after it caught up, that are compared with these.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    calm: u64,
    /// Seconds of one part that is compared.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    part: u64,
    /// Fail when the median p99 is worse by more, in percent.
    #[arg(long, default_value_t = 10.0)]
    worse_max: f64,
    /// Fail when a node's memory beside its memtables and cached blocks grows by more while it hangs, in MiB.
    #[arg(long, default_value_t = 128.0)]
    growth_max: f64,
    /// It does not hang: the same phases, for what changes by itself meanwhile.
    #[arg(long)]
    control: bool,
    /// The hanging destination need not be there for the log to be let go.
    #[arg(long)]
    not_required: bool,
}

/// The p99 of each part, in milliseconds.
fn parts(puts: &[Put], from: Instant, to: Instant, part: Duration) -> Vec<f64> {
    let mut all = Vec::new();
    let mut at = from;
    while at + part <= to {
        all.push(percentile_ms(&within(puts, at, at + part), 0.99));
        at += part;
    }
    all
}

fn told(title: &str, parts: &[f64]) {
    let each: Vec<String> = parts.iter().map(|p99| format!("{p99:.1}")).collect();
    println!("{title:<18} {:>10.2}   {}", median(parts), each.join(" "));
}

/// How far the destination is, as the leader says.
async fn reached(cluster: &Cluster, name: &str) -> Option<u64> {
    let leader = cluster.leader().await;
    let status = cluster.status(leader).await?;
    status.destinations.into_iter().find(|one| one.name == name).map(|one| one.verified_index)
}

fn rest_mib(sample: &Sample) -> f64 {
    sample.rest_kib() as f64 / 1024.0
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let program = s3::program().context("no S3 server: run deploy/install-deps.sh --test with a network")?;
    let dir = tempfile::tempdir()?;
    let s3 = S3::start(&program, &dir.path().join("s3"), "vault")?;
    let urls = [format!("file://{}", dir.path().join("offsite").display()), s3.url("holdfast")];
    let set = format!("offsite.credentials_file={}", s3.credentials().display());
    let required = format!("offsite.required={}", !args.not_required);
    // The bucket is named last: the settings are its own.
    let flags = ["--offsite", &urls[0], "--offsite", &urls[1], "--set", &set, "--set", &required];
    let mut cluster = Cluster::start(&args.holdfast, &dir.path().join("c"), &flags)?;
    let leader = cluster.leader().await;
    let status = cluster.status(leader).await.context("no status")?;
    let name = status.destinations.last().context("no destination")?.name.clone();
    println!(
        "{} puts/s of {} bytes, three processes on loopback, fsync on; {} {} for {} s; load average before: {}\n",
        args.rate,
        args.payload_bytes,
        if args.not_required { "a destination" } else { "a required destination" },
        if args.control { "could hang" } else { "hangs" },
        args.hang,
        load_average()
    );
    let none: Missing = Missing::default();
    let load = Load::start(&cluster.client(), args.rate, args.payload_bytes, &none);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let memory = tokio::spawn(sample_memory(cluster.nodes.clone(), stopped));
    let began = Instant::now();
    tokio::time::sleep(WARM_UP).await;
    let calm = Instant::now();
    let servers = Servers::new(cluster.nodes.iter().map(|node| node.pid));
    let disk = Disk::below(dir.path());
    let used = || anyhow::Ok((servers.cpu()?, disk.as_ref().and_then(Disk::written)));
    let used_first = used()?;
    tokio::time::sleep(Duration::from_secs(args.calm)).await;
    let hangs = Instant::now();
    let used_calm = used()?;
    if !args.control {
        s3.pause();
        eprintln!("it hangs");
    }
    tokio::time::sleep(Duration::from_secs(args.hang)).await;
    let goes_on = Instant::now();
    let used_hung = used()?;
    let behind = load.written.newest.load(Ordering::Relaxed);
    let before = reached(&cluster, &name).await.unwrap_or(0);
    if !args.control {
        s3.resume();
    }
    eprintln!("it goes on, {} entries behind", behind.saturating_sub(before));
    while reached(&cluster, &name).await.is_none_or(|reached| reached < behind) {
        ensure!(goes_on.elapsed() < CATCH_UP_WITHIN, "it did not catch up within {} s", CATCH_UP_WITHIN.as_secs());
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    let caught_up = Instant::now();
    let used_caught_up = used()?;
    tokio::time::sleep(Duration::from_secs(args.calm)).await;
    let end = Instant::now();
    let used_end = used()?;
    stop.send_replace(true);
    let samples = memory.await??;
    let (written, puts) = load.end().await;

    let part = Duration::from_secs(args.part);
    let (first, hung, last) =
        (parts(&puts, calm, hangs, part), parts(&puts, hangs, goes_on, part), parts(&puts, caught_up, end, part));
    println!("{:<18} {:>10}   p99 of each {} s", "p99 of puts, ms", "median", args.part);
    told("before", &first);
    told("while it hangs", &hung);
    told("catching up", &parts(&puts, goes_on, caught_up, (caught_up - goes_on).max(Duration::from_millis(1))));
    told("after", &last);
    let calm_p99 = median(&[first, last].concat());
    let worse = (median(&hung) / calm_p99.max(f64::MIN_POSITIVE) - 1.0) * 100.0;
    println!("\n{:<18} {:>10} {:>16}", "of all servers", "µs CPU/put", "KiB to disk/put");
    let spans = [
        ("before", calm, hangs, used_first, used_calm),
        ("while it hangs", hangs, goes_on, used_calm, used_hung),
        ("after", caught_up, end, used_caught_up, used_end),
    ];
    for (title, from, to, first, last) in spans {
        let count = within(&puts, from, to).len().max(1) as f64;
        let cpu = last.0.saturating_sub(first.0).as_secs_f64() * 1e6 / count;
        let written = first.1.zip(last.1).map(|(first, last)| last.saturating_sub(first) as f64 / 1024.0 / count);
        let written = written.map_or("-".to_owned(), |written| format!("{written:.2}"));
        println!("{title:<18} {cpu:>10.0} {written:>16}");
    }
    println!("\nwhile it hangs: {worse:+.1} % of the median of the parts before and after");
    println!(
        "{} puts acknowledged, {} ended otherwise; caught up {} entries in {:.1} s",
        written.acknowledged.load(Ordering::Relaxed),
        written.failed.load(Ordering::Relaxed),
        behind.saturating_sub(before),
        (caught_up - goes_on).as_secs_f64()
    );
    // One sample a second, from the beginning.
    let second = |at: Instant| (at - began).as_secs() as usize;
    let mut growth: f64 = 0.0;
    for (node, samples) in samples.iter().enumerate() {
        let of = |from: usize, to: usize| {
            let (from, to) = (from.min(samples.len()), to.min(samples.len()));
            samples[from.min(to)..to].iter().map(rest_mib).fold(0.0, f64::max)
        };
        let (calm, hung) = (of(second(calm), second(hangs)), of(second(hangs), second(caught_up)));
        println!(
            "node {}: memory beside memtables and cached blocks at most {calm:.0} MiB before, {hung:.0} MiB while it hangs",
            node + 1
        );
        growth = growth.max(hung - calm);
    }
    cluster.stop();
    let is_fine = worse <= args.worse_max && growth <= args.growth_max && written.failed.load(Ordering::Relaxed) == 0;
    println!("{}", if is_fine { "nobody noticed" } else { "SHORT: see above" });
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
