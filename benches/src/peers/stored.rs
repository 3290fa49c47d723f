//! A million records: what nodes need for them, and what a delta sync costs that asks for few of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use holdfast_benches::feed::{batch, client, load, newest_token, settle};
use holdfast_benches::measure::percentile_ms;
use holdfast_benches::servers::{Disk, Servers};
use holdfast_client::{Client, SyncOutcome, v1};

use crate::figures::{Figures, Outcome};
use crate::holdfast::Holdfast;
use crate::peer::Who;

/// Records of a user with few.
const FEW: u64 = 1000;
const PAYLOAD_BYTES: usize = 1 << 10;
/// Records changed since the token.
const CHANGES: [u64; 2] = [0, 10];
const ROUNDS: usize = 8;
/// One user is asked about before the next one is.
const SLICE: Duration = Duration::from_millis(500);

/// A user, and the tokens that they sync from, in the order of [`CHANGES`].
struct Subject {
    name: &'static str,
    tokens: [String; 2],
}

impl Subject {
    /// Changes records that are there, and takes the tokens.
    async fn new(client: &Client, name: &'static str) -> anyhow::Result<Self> {
        let before = newest_token(client, name).await?;
        for number in 0..CHANGES[1] {
            client.write(batch(name, number..number + 1, 1, PAYLOAD_BYTES)).await?;
        }
        Ok(Self { name, tokens: [newest_token(client, name).await?, before] })
    }

    /// Latencies of one client that asks again and again, ascending.
    async fn ask(&self, client: &Client, place: usize) -> anyhow::Result<Vec<Duration>> {
        let sync_token = self.tokens[place].clone();
        let request = v1::GetChangesRequest { user_id: self.name.to_owned(), sync_token, ..Default::default() };
        let (end, mut latencies) = (Instant::now() + SLICE, Vec::new());
        while Instant::now() < end {
            let began = Instant::now();
            let answer = client.changes(request.clone()).await?;
            latencies.push(began.elapsed());
            let SyncOutcome::Page(page) = answer.outcome else { bail!("an order to resync, and nothing was restored") };
            let changed = page.records.len() as u64;
            ensure!(changed == CHANGES[place] && !page.more, "{changed} changes came, not {}", CHANGES[place]);
        }
        latencies.sort_unstable();
        Ok(latencies)
    }
}

/// Loads, then asks.
///
/// # Errors
/// When something fails that should not.
pub async fn run(binary: &Path, many: u64, outcome: &mut Outcome) -> anyhow::Result<()> {
    let holdfast = Holdfast::start(binary)?;
    let nodes = holdfast.cluster.nodes.clone();
    let servers = Servers::new(holdfast.pids());
    Disk::flush();
    let disk = Disk::below(&std::env::temp_dir());
    let written = || disk.as_ref().and_then(Disk::written);
    let (written_before, used_before, began) = (written(), servers.cpu()?, Instant::now());
    load(&nodes, "many", many, PAYLOAD_BYTES).await.context("load the user with many records")?;
    let took = began.elapsed().as_secs_f64();
    let cpu_us = servers.cpu()?.saturating_sub(used_before).as_secs_f64() * 1e6 / many as f64;
    load(&nodes, "few", FEW, PAYLOAD_BYTES).await?;
    // What was written in the background belongs to it: flushes, compactions, segments of the archive.
    settle(&nodes).await?;
    Disk::flush();
    let written = written().zip(written_before).map(|(now, before)| now.saturating_sub(before) as f64);
    let written = written.map(|written| written / (many * PAYLOAD_BYTES as u64) as f64);
    let memory = servers.memory_kib()?.into_iter().max().unwrap_or(0) as f64 / 1024.0;
    eprintln!("  {many} records: {took:.0} s, at most {memory:.0} MiB a node");
    let loaded = [("memory_mib", memory), ("loaded_per_s", many as f64 / took), ("load_server_us", cpu_us)];
    let amplified = written.map(|written| ("written_per_byte".to_owned(), written));
    let asking = client(&nodes)?;
    let subjects = [Subject::new(&asking, "few").await?, Subject::new(&asking, "many").await?];
    settle(&nodes).await?;
    for round in 0..=ROUNDS {
        let mut figures = Figures::new();
        for (place, changes) in CHANGES.into_iter().enumerate() {
            for turn in 0..subjects.len() {
                let subject = &subjects[(turn + round) % subjects.len()];
                let latencies = subject.ask(&asking, place).await.with_context(|| subject.name)?;
                for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
                    let name = format!("sync_{changes}_of_{}_{name}_ms", subject.name);
                    figures.insert(name, percentile_ms(&latencies, share));
                }
            }
        }
        // The first one warms up.
        if round == 1 {
            figures.extend(loaded.map(|(name, value)| (name.to_owned(), value)));
            figures.extend(amplified.clone());
        }
        if round > 0 {
            outcome.rounds.entry(Who::Holdfast).or_default().push(figures);
        }
    }
    Ok(())
}
