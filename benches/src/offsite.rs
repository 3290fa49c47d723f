//! How far the archives are behind a cluster that ships to a folder and to an S3 server, as it is seen from outside: by listing
//! what lies there and reading the newest segment.
//!
//! Open loop: puts come at a fixed rate, whatever became of those before; nothing of a payload can be packed. Lag is the age of
//! the oldest acknowledged put that is not in an archive when it is looked at. A snapshot is taken while people write, leaders
//! are killed, every byte and chain of both archives is checked, and what operators call brings everything back: from the
//! snapshot and the log, and from the log alone. fsync is on; nothing is switched off.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use holdfast_archive::log::read_segment;
use holdfast_archive::{Destination, DestinationConfig, LineageId, ObjectName, find_lineages};
use holdfast_benches::measure::{cpu, load_average, percentile_ms};
use holdfast_benches::puts::{CLIENTS, Load, Missing, incompressible, within};
use holdfast_benches::restores::{ask, restore_all};
use holdfast_client::{Client, v1};
use holdfast_model::id::GroupId;
use jepsen_tests::cluster::Cluster;
use jepsen_tests::s3::{self, S3};
use tokio::task::JoinSet;

const GROUP: GroupId = GroupId(0);
/// Of payloads in one batch: so many clients at once stay below what a cluster lets wait.
const BATCH_BYTES: usize = 256 << 10;
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// After a killed leader is back and all nodes hold the same.
const SETTLE: Duration = Duration::from_secs(1);
/// From the last put to archives that hold it.
const SHIPPED_WITHIN: Duration = Duration::from_secs(30);

/// Lag of offsite copies under load and kills.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Puts a second.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Seconds without a destination, and then with both, before the first kill.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Kills of the leader by signal 9.
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 1024)]
    payload_bytes: usize,
    /// Records beside those of the load, for the snapshot and the restores.
    #[arg(long, default_value_t = 200_000)]
    records: u64,
    /// Fail when an archive is further behind, in milliseconds.
    #[arg(long, default_value_t = 5000)]
    lag_ms_max: u64,
    /// Leave the archive of the folder here, for `bench-restore`; on the disk of temporary files.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

/// Looks at one archive again and again.
struct Observer {
    destination: Destination,
    lineage: LineageId,
    /// Name of the newest segment seen.
    newest: String,
    reached: u64,
}

impl Observer {
    async fn find(url: &str, credentials: &Path) -> anyhow::Result<Self> {
        let config = DestinationConfig::from_url(url);
        let config = if url.starts_with("s3:") { config.with_credentials(Some(credentials.into())) } else { config };
        let destination = Destination::open(&config)?;
        let end = Instant::now() + SHIPPED_WITHIN;
        loop {
            if let Some(facts) = find_lineages(&destination).await?.lineages.first() {
                let lineage = facts.id;
                // Of all names below the prefix, none comes before it.
                let newest = ObjectName::segment(GROUP, 0).path(&lineage);
                return Ok(Self { destination, lineage, newest, reached: 0 });
            }
            ensure!(Instant::now() < end, "nothing was shipped to {url}");
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Last entry there.
    async fn look(&mut self) -> anyhow::Result<u64> {
        let prefix = self.lineage.log_prefix(GROUP, 0);
        let listed = self.destination.list_after(&prefix, &self.newest).await?;
        if let Some(found) = listed.last()
            && let Some((_, ObjectName::Segment { first, .. })) = ObjectName::parse(&found.path)
        {
            self.reached = read_segment(&self.destination, &self.lineage, GROUP, first).await?.last().index;
            self.newest.clone_from(&found.path);
        }
        Ok(self.reached)
    }

    /// Lags, one for each look.
    async fn watch(mut self, place: usize, missing: Missing, stop: Arc<AtomicBool>) -> anyhow::Result<Vec<Duration>> {
        let mut lags = Vec::new();
        while !stop.load(Ordering::Acquire) {
            let began = Instant::now();
            let reached = self.look().await?;
            let oldest = {
                let mut archive = missing[place].lock().unwrap_or_else(PoisonError::into_inner);
                *archive = archive.split_off(&(reached + 1));
                archive.values().min().copied()
            };
            // What was acknowledged while it was looked at need not be there.
            lags.push(oldest.map_or(Duration::ZERO, |oldest| began.saturating_duration_since(oldest)));
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Ok(lags)
    }
}

/// Figures of a time without kills.
struct Calm {
    rate: f64,
    cores: f64,
    latencies: Vec<Duration>,
}

async fn calm(cluster: &Cluster, args: &Args, missing: &Missing) -> anyhow::Result<Calm> {
    let load = Load::start(&cluster.client(), args.rate, args.payload_bytes, missing);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, began) = (cpu(&cluster.nodes)?, Instant::now());
    let acknowledged = load.written.acknowledged.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (used, took) = (cpu(&cluster.nodes)?.saturating_sub(before), began.elapsed().as_secs_f64());
    let acknowledged = load.written.acknowledged.load(Ordering::Relaxed) - acknowledged;
    let to = Instant::now();
    let (_, puts) = load.end().await;
    Ok(Calm { rate: acknowledged as f64 / took, cores: used.as_secs_f64() / took, latencies: within(&puts, began, to) })
}

fn print_calm(title: &str, calm: &Calm) {
    let of = |share| percentile_ms(&calm.latencies, share);
    println!("{title:<24} {:>8.0} {:>9.2} {:>9.2} {:>13.3}", calm.rate, of(0.5), of(0.99), calm.cores);
}

/// Records that nobody changes any more, so that a snapshot has something to read.
async fn fill(client: &Client, args: &Args) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let (client, records, bytes) = (client.clone(), args.records, args.payload_bytes);
        tasks.spawn(async move {
            let user = format!("kept-{number}");
            let keys: Vec<u64> = (number..records).step_by(CLIENTS as usize).collect();
            for batch in keys.chunks((BATCH_BYTES / bytes.max(1)).clamp(1, 100)) {
                let put = |n: &u64| v1::Mutation {
                    key: Some(v1::RecordKey { collection: "notes".into(), record_id: format!("r{n}") }),
                    op: Some(v1::mutation::Op::Put(v1::PutOp {
                        content_type: "application/octet-stream".into(),
                        payload: incompressible(n.wrapping_add(1 << 40), bytes).into(),
                        ..Default::default()
                    })),
                    precondition: None,
                };
                let mutations = batch.iter().map(put).collect();
                client.write(v1::BatchWriteRequest { user_id: user.clone(), mutations, ..Default::default() }).await?;
            }
            anyhow::Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Stored bytes of all chunks and patches in a folder.
fn stored(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let is_rows = ["chunk", "patch"].iter().any(|name| folder.ends_with(name));
            match entry.metadata()? {
                found if found.is_dir() => folders.push(entry.path()),
                found if is_rows => bytes += found.len(),
                _ => {}
            }
        }
    }
    Ok(bytes)
}

/// A snapshot while people write: what they notice of it, and how much it ships to a folder.
async fn snapshot(title: &str, cluster: &Cluster, args: &Args, missing: &Missing, folder: &Path) -> anyhow::Result<()> {
    let stored_before = stored(folder)?;
    let load = Load::start(&cluster.client(), args.rate, args.payload_bytes, missing);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let calm = Instant::now();
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let endpoints: Vec<&str> = cluster.nodes.iter().map(|node| node.admin.as_str()).collect();
    let (began, before) = (Instant::now(), cpu(&cluster.nodes)?);
    let taken =
        tokio::task::block_in_place(|| ask(&args.holdfast, &["backup", "now", "--endpoint", &endpoints.join(",")]));
    let (ended, used) = (Instant::now(), cpu(&cluster.nodes)?.saturating_sub(before));
    let (_, puts) = load.end().await;
    taken?;
    let mb = (stored(folder)? - stored_before) as f64 / 1e6;
    let seconds = (ended - began).as_secs_f64();
    let p99 = |from, to| percentile_ms(&within(&puts, from, to), 0.99);
    println!(
        "{title} snapshot: {mb:.1} MB to the folder and as much to S3: {seconds:.1} s, {:.3} cores in that time; p99 of puts \
         beside it {:.2} ms, in the {} s before it {:.2} ms",
        used.as_secs_f64() / seconds,
        p99(began, ended),
        args.seconds,
        p99(calm, began)
    );
    Ok(())
}

/// Where shipping stands, for whoever has to find out why it does not go on.
async fn standing(cluster: &Cluster, missing: &Missing) -> String {
    let mut said = Vec::new();
    for (place, archive) in missing.iter().enumerate() {
        let archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, last) = (archive.first_key_value(), archive.last_key_value());
        let [first, last] = [first, last].map(|one| one.map_or(0, |(index, _)| *index));
        said.push(format!("archive {place} lacks {} from {first} to {last}", archive.len()));
    }
    for place in 0..cluster.nodes.len() {
        let Some(status) = cluster.status(place).await else { continue };
        let applied = status.groups.first().map_or(0, |group| group.applied_index);
        for told in status.destinations {
            let (name, durable, error) = (told.name, told.durable_index, told.last_error);
            said.push(format!("node {}, applied {applied}: {name} up to {durable} {error}", place + 1));
        }
    }
    said.join("; ")
}

/// Checks every byte and chain of an archive by the command that operators use.
fn verify(args: &Args, url: &str, credentials: &Path) -> anyhow::Result<bool> {
    let mut command = Command::new(&args.holdfast);
    command.args(["backup", "verify", "--level", "1", "--from", url]);
    if url.starts_with("s3:") {
        command.arg("--credentials").arg(credentials);
    }
    let output = command.output().context("backup verify")?;
    print!("{url}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(output.status.success())
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let program = s3::program().context("no S3 server: run deploy/install-deps.sh --test with a network")?;
    let dir = tempfile::tempdir()?;
    println!(
        "{} puts/s of {} bytes, three processes on loopback, fsync on; load average before: {}\n",
        args.rate,
        args.payload_bytes,
        load_average()
    );
    println!("{:<24} {:>8} {:>9} {:>9} {:>13}", "", "puts/s", "p50 ms", "p99 ms", "servers' cores");
    let none: Missing = Arc::default();
    let alone = {
        let cluster = Cluster::start(&args.holdfast, &dir.path().join("alone"), &[])?;
        calm(&cluster, &args, &none).await?
    };
    print_calm("no destination", &alone);

    let s3 = S3::start(&program, &dir.path().join("s3"), "vault")?;
    let urls = [format!("file://{}", dir.path().join("offsite").display()), s3.url("holdfast")];
    let set = format!("offsite.credentials_file={}", s3.credentials().display());
    // The bucket is named last: the credentials are its own.
    let flags = ["--offsite", &urls[0], "--offsite", &urls[1], "--set", &set];
    let mut cluster = Cluster::start(&args.holdfast, &dir.path().join("c"), &flags)?;
    let missing: Missing = Arc::new(urls.iter().map(|_| Mutex::default()).collect());
    let stop = Arc::<AtomicBool>::default();
    let mut observers = Vec::new();
    for (place, url) in urls.iter().enumerate() {
        let observer = Observer::find(url, s3.credentials()).await?;
        observers.push(tokio::spawn(observer.watch(place, missing.clone(), stop.clone())));
    }
    let shipping = calm(&cluster, &args, &missing).await?;
    print_calm("to a folder and to S3", &shipping);
    println!(
        "shipping takes {:.3} cores, {:.1} % of this machine's\n",
        shipping.cores - alone.cores,
        (shipping.cores - alone.cores) * 100.0 / std::thread::available_parallelism()?.get() as f64
    );

    fill(&cluster.client(), &args).await?;
    let folder = dir.path().join("offsite");
    for title in ["first", "second"] {
        snapshot(title, &cluster, &args, &missing, &folder).await?;
    }
    println!();

    let load = Load::start(&cluster.client(), args.rate, args.payload_bytes, &missing);
    for kill in 1..=args.kills {
        let leader = cluster.leader().await;
        cluster.kill(leader);
        cluster.leader().await;
        cluster.restart(leader);
        cluster.wait_converged().await;
        eprintln!("leader killed: {kill} of {}", args.kills);
        tokio::time::sleep(SETTLE).await;
    }
    let (written, _) = load.end().await;
    let newest = written.newest.load(Ordering::Relaxed);
    let end = Instant::now() + SHIPPED_WITHIN;
    let is_there = || missing.iter().all(|one| one.lock().unwrap_or_else(PoisonError::into_inner).is_empty());
    while !is_there() {
        if Instant::now() >= end {
            bail!("{newest}, which was acknowledged, is not in every archive: {}", standing(&cluster, &missing).await);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    stop.store(true, Ordering::Release);
    println!(
        "{} kills of the leader under load: {} puts acknowledged, {} ended otherwise, up to index {newest}",
        args.kills,
        written.acknowledged.load(Ordering::Relaxed),
        written.failed.load(Ordering::Relaxed)
    );
    println!("{:<24} {:>8} {:>9} {:>9} {:>9}", "lag, kills included", "looks", "p50 ms", "p99 ms", "max ms");
    let mut is_fine = true;
    for (name, observer) in ["folder", "S3"].into_iter().zip(observers) {
        let mut lags = observer.await??;
        lags.sort_unstable();
        let of = |share| percentile_ms(&lags, share);
        println!("{name:<24} {:>8} {:>9.0} {:>9.0} {:>9.0}", lags.len(), of(0.5), of(0.99), of(1.0));
        is_fine &= lags.last().is_some_and(|lag| *lag <= Duration::from_millis(args.lag_ms_max));
    }
    cluster.stop();
    println!();
    for url in &urls {
        is_fine &= verify(&args, url, s3.credentials())?;
    }
    println!();
    restore_all(&args.holdfast, &urls[0], dir.path())?;
    if let Some(kept) = &args.keep {
        std::fs::rename(&folder, kept)
            .with_context(|| format!("{} has to be on the disk of {}", kept.display(), folder.display()))?;
    }
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
