//! How cost grows: with records, with users, with nodes. Each step is a cluster of its own, loaded, left to settle, and asked.
//!
//! One table for people (Markdown, fit for the README) and one line of JSON for each step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use holdfast_benches::feed::{batch, client, newest_token, settle};
use holdfast_benches::measure::{load_average, percentile_ms};
use holdfast_benches::restores::ask;
use holdfast_benches::servers::{Disk, Servers};
use holdfast_client::{Client, SyncOutcome, v1};
use jepsen_tests::cluster::{Cluster, Node};
use serde::Serialize;
use tokio::task::JoinSet;

const PAYLOAD_BYTES: usize = 1 << 10;
/// Mutations of a batch.
const BATCH: u64 = 500;
const LOADERS: usize = 16;
/// Calls of each kind that are timed.
const CALLS: usize = 400;
/// Changes since the token that is asked with.
const CHANGES: u64 = 10;
const PAGE: i32 = 1000;

/// Cost by size.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Numbers of records of one user on three nodes.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    records: Vec<u64>,
    /// Numbers of users that share 100,000 records on three nodes.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 100_000])]
    users: Vec<u64>,
    /// Numbers of nodes that hold 100,000 records of 100 users.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 5])]
    nodes: Vec<usize>,
    /// Where the figures go, one line of JSON for each step; what is there already is kept.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// One cluster.
#[derive(Debug, Clone, Copy, Serialize)]
struct Step {
    records: u64,
    users: u64,
    nodes: usize,
}

/// What it took.
#[derive(Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    step: Step,
    loaded_per_s: f64,
    /// Of all servers, for a record.
    server_us: f64,
    /// By all nodes and the archive, for a byte of payload.
    written_per_byte: Option<f64>,
    node_memory_mib: f64,
    node_disk_mib: f64,
    archive_mib: f64,
    put_p50_ms: f64,
    put_p99_ms: f64,
    sync_0_p99_ms: f64,
    sync_10_p99_ms: f64,
    page_p50_ms: f64,
    restart_s: f64,
    restore_s: f64,
}

fn user_name(number: u64) -> String {
    format!("user-{number:06}")
}

/// Stores the records, evenly over the users.
async fn fill(nodes: &[Node], step: Step) -> anyhow::Result<()> {
    let of_each = step.records / step.users;
    let batches = of_each.div_ceil(BATCH);
    let (next, all) = (Arc::new(AtomicU64::new(0)), step.users * batches);
    let mut loaders = JoinSet::new();
    for _ in 0..LOADERS {
        let (client, next) = (client(nodes)?, next.clone());
        loaders.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= all {
                    return anyhow::Ok(());
                }
                let (user, from) = (number % step.users, number / step.users * BATCH);
                // Another payload for each record of each user: an archive packs what repeats.
                let first = user * of_each;
                let records = first + from..first + of_each.min(from + BATCH);
                client.write(batch(&user_name(user), records, 0, PAYLOAD_BYTES)).await.context("load")?;
                if number * 10 / all != (number + 1) * 10 / all {
                    eprintln!("  {} % loaded", (number + 1) * 100 / all);
                }
            }
        });
    }
    while let Some(done) = loaders.join_next().await {
        done??;
    }
    Ok(())
}

/// Latencies of calls that one client makes one after the other, ascending.
async fn timed(mut call: impl AsyncFnMut(usize) -> anyhow::Result<()>) -> anyhow::Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(CALLS);
    for number in 0..CALLS + CALLS / 10 {
        let began = Instant::now();
        call(number).await?;
        // The first ones warm up.
        if number >= CALLS / 10 {
            latencies.push(began.elapsed());
        }
    }
    latencies.sort_unstable();
    Ok(latencies)
}

async fn sync(client: &Client, token: &str, changes: u64) -> anyhow::Result<Vec<Duration>> {
    timed(async |_| {
        let request =
            v1::GetChangesRequest { user_id: user_name(0), sync_token: token.to_owned(), ..Default::default() };
        let SyncOutcome::Page(page) = client.changes(request).await?.outcome else { bail!("nothing was restored") };
        anyhow::ensure!(page.records.len() as u64 == changes, "{} changes, not {changes}", page.records.len());
        Ok(())
    })
    .await
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        // Deleted meanwhile.
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

async fn measure(binary: &Path, step: Step) -> anyhow::Result<Figures> {
    let dir = tempfile::tempdir()?;
    let offsite = dir.path().join("offsite");
    std::fs::create_dir(&offsite)?;
    let url = format!("file://{}", offsite.display());
    let count = step.nodes.to_string();
    let mut cluster = Cluster::start(binary, &dir.path().join("c"), &["--offsite", &url, "--nodes", &count])?;
    let nodes = cluster.nodes.clone();
    let servers = Servers::new(nodes.iter().map(|node| node.pid));
    Disk::flush();
    let disk = Disk::below(dir.path());
    let written = || disk.as_ref().and_then(Disk::written);
    let (written_before, used_before, began) = (written(), servers.cpu()?, Instant::now());
    fill(&nodes, step).await?;
    let took = began.elapsed().as_secs_f64();
    let used = servers.cpu()?.saturating_sub(used_before);
    settle(&nodes).await?;
    Disk::flush();
    let payload = (step.records * PAYLOAD_BYTES as u64) as f64;
    let written = written().zip(written_before).map(|(now, before)| now.saturating_sub(before) as f64 / payload);
    let memory = servers.memory_kib()?.into_iter().max().unwrap_or(0) as f64 / 1024.0;

    let asking = client(&nodes)?;
    let before = newest_token(&asking, &user_name(0)).await?;
    let changed = CHANGES.min(step.records / step.users);
    for number in 0..changed {
        asking.write(batch(&user_name(0), number..number + 1, 1, PAYLOAD_BYTES)).await?;
    }
    let now = newest_token(&asking, &user_name(0)).await?;
    let (none, some) = (sync(&asking, &now, 0).await?, sync(&asking, &before, changed).await?);
    let page = timed(async |_| {
        let collection = "contacts".to_owned();
        let request =
            v1::ListRecordsRequest { user_id: user_name(0), collection, page_size: PAGE, ..Default::default() };
        asking.list(request).next_page().await?.context("a listing without a page").map(drop)
    })
    .await?;
    let put = timed(async |number| {
        let user = user_name(number as u64 % step.users);
        let number = step.records + number as u64;
        asking.write(batch(&user, number..number + 1, 0, PAYLOAD_BYTES)).await.map(drop).context("put")
    })
    .await?;

    let admin = nodes.first().context("no node")?.admin.clone();
    ask(binary, &["backup", "now", "--endpoint", &admin])?;
    let last = nodes.len() - 1;
    let began = Instant::now();
    cluster.kill(last);
    cluster.restart(last);
    cluster.wait_converged().await;
    let restart_s = began.elapsed().as_secs_f64();
    settle(&cluster.nodes).await?;
    let node_disk_mib = cluster.nodes.iter().map(|node| mib(folder_bytes(&node.data_dir))).fold(0.0, f64::max);
    drop(cluster);
    let target = dir.path().join("restored").display().to_string();
    let restored = ask(binary, &["restore", "run", "--from", &url, "--data", &target])?.answer;
    let restore_s = restored["restore_ms"].as_f64().context("no restore_ms")? / 1e3;
    Ok(Figures {
        step,
        loaded_per_s: step.records as f64 / took,
        server_us: used.as_secs_f64() * 1e6 / step.records as f64,
        written_per_byte: written,
        node_memory_mib: memory,
        node_disk_mib,
        archive_mib: mib(folder_bytes(&offsite)),
        put_p50_ms: percentile_ms(&put, 0.5),
        put_p99_ms: percentile_ms(&put, 0.99),
        sync_0_p99_ms: percentile_ms(&none, 0.99),
        sync_10_p99_ms: percentile_ms(&some, 0.99),
        page_p50_ms: percentile_ms(&page, 0.5),
        restart_s,
        restore_s,
    })
}

const HEAD: &str = "| records | users | nodes | loaded/s | CPU µs | disk B/B | MiB/node | disk MiB/node | archive MiB | put p50/p99 ms | \
                    sync p99 0/10 ms | page of 1000 ms | restart s | restore s |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

fn line(of: &Figures) -> String {
    let Step { records, users, nodes } = of.step;
    let written = of.written_per_byte.map_or_else(|| "–".to_owned(), |written| format!("{written:.1}"));
    format!(
        "| {records} | {users} | {nodes} | {:.0} | {:.0} | {written} | {:.0} | {:.0} | {:.0} | {:.2} / {:.2} | {:.2} / {:.2} | {:.1} | \
         {:.1} | {:.1} |",
        of.loaded_per_s,
        of.server_us,
        of.node_memory_mib,
        of.node_disk_mib,
        of.archive_mib,
        of.put_p50_ms,
        of.put_p99_ms,
        of.sync_0_p99_ms,
        of.sync_10_p99_ms,
        of.page_p50_ms,
        of.restart_s,
        of.restore_s,
    )
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let records = args.records.iter().map(|records| Step { records: *records, users: 1, nodes: 3 });
    let users = args.users.iter().map(|users| Step { records: 100_000, users: *users, nodes: 3 });
    let nodes = args.nodes.iter().map(|nodes| Step { records: 100_000, users: 100, nodes: *nodes });
    let mut steps: Vec<Step> = records.chain(users).chain(nodes).collect();
    steps.sort_by_key(|step| (step.nodes, step.users, step.records));
    steps.dedup_by_key(|step| (step.nodes, step.users, step.records));
    if let Some(step) = steps.iter().find(|step| step.users == 0 || step.records < step.users || step.nodes == 0) {
        bail!(
            "{} records of {} users on {} nodes: each user has one record at least",
            step.records,
            step.users,
            step.nodes
        );
    }
    println!("payloads of {PAYLOAD_BYTES} B that do not pack; load average before: {}\n\n{HEAD}", load_average());
    for step in steps {
        eprintln!("{} records of {} users on {} nodes", step.records, step.users, step.nodes);
        let figures = measure(&args.holdfast, step).await?;
        println!("{}", line(&figures));
        if let Some(out) = &args.out {
            use std::io::Write;
            let mut file = std::fs::File::options().create(true).append(true).open(out)?;
            writeln!(file, "{}", serde_json::to_string(&figures)?)?;
        }
    }
    Ok(())
}
