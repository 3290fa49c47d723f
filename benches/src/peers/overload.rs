//! More puts than a cluster can take: an open loop at a multiple of what it was measured to do.
//!
//! Each put may take a second, and then counts as none. They come over streams: a generator that makes a call of each would
//! take the processors that it shares with the servers, and measure itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use holdfast_benches::feed::settle;
use holdfast_benches::servers::{Servers, own_cpu};
use holdfast_client::{Client, Error};
use tokio::task::JoinSet;

use crate::figures::{Figures, Outcome};
use crate::holdfast::{self, Holdfast};
use crate::load::{self, Payloads, Shape, Times, Work};
use crate::peer::{Link, Who};

/// Times the measured capacity.
const OFFERED: f64 = 3.0;
const SOURCES: u64 = 64;
const STREAMS: usize = 16;
const DEADLINE: Duration = Duration::from_secs(1);
/// Until queues are full.
const WARM_UP: Duration = Duration::from_secs(2);
const PAYLOAD_BYTES: usize = 1 << 10;
/// Sources make what is due in ticks.
const TICK: Duration = Duration::from_millis(5);
/// Clients of the closed loop that finds the capacity.
const PEAK_CLIENTS: usize = 256;

/// What became of the puts that were offered.
#[derive(Debug, Default)]
struct Count {
    offered: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    /// How often each reason was given.
    reasons: Mutex<BTreeMap<String, u64>>,
}

impl Count {
    fn refuse(&self, error: &Error) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let reason = if error.reason().is_empty() { "NO_ANSWER" } else { error.reason() };
        *self.reasons.lock().unwrap_or_else(PoisonError::into_inner).entry(reason.to_owned()).or_default() += 1;
    }

    fn now(&self) -> [u64; 3] {
        [&self.offered, &self.acknowledged, &self.refused].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Puts that come at a fixed rate, whatever became of those before.
async fn source(client: Client, number: u64, rate: f64, end: Instant, count: Arc<Count>) {
    let (mut open, payloads, began) = (JoinSet::new(), Payloads::new(PAYLOAD_BYTES), Instant::now());
    let mut made = 0u64;
    let mut clock = tokio::time::interval(TICK);
    while Instant::now() < end {
        clock.tick().await;
        let due = (began.elapsed().as_secs_f64() * rate) as u64;
        for n in made..due {
            let (client, count, value) = (client.clone(), count.clone(), payloads.of(n));
            count.offered.fetch_add(1, Ordering::Relaxed);
            open.spawn(async move {
                let done = holdfast::put(&client, &format!("overload-{number}"), &format!("r{n}"), value).await;
                match done {
                    Ok(()) => drop(count.acknowledged.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => count.refuse(&error),
                }
            });
        }
        made = due;
        while open.try_join_next().is_some() {}
    }
    while open.join_next().await.is_some() {}
}

async fn term(holdfast: &Holdfast) -> anyhow::Result<u64> {
    let leader = holdfast.cluster.leader().await;
    let status = holdfast.cluster.status(leader).await.context("the leader says nothing of itself")?;
    Ok(status.groups.first().context("a node without a group")?.term)
}

/// Finds the capacity, and offers a multiple of it; once in each round.
///
/// # Errors
/// When a server is gone.
pub async fn run(binary: &Path, rounds: usize, times: Times, outcome: &mut Outcome) -> anyhow::Result<()> {
    let holdfast = Holdfast::start(binary)?;
    let servers = Servers::new(holdfast.pids());
    for round in 0..rounds {
        // What the round before left behind is no part of this one's capacity.
        settle(&holdfast.cluster.nodes).await?;
        let streaming = holdfast.link(Duration::from_secs(10))?.streaming(STREAMS);
        let shape = Shape { work: Work::Put, clients: PEAK_CLIENTS, bytes: PAYLOAD_BYTES };
        let links = vec![Link::Holdfast(streaming); PEAK_CLIENTS];
        let peak = load::measure(&servers, links, shape, &format!("peak-{round}"), times).await?["ops_per_s"];
        let before = term(&holdfast).await?;
        let client = holdfast.link(DEADLINE)?.streaming(STREAMS);
        let (count, end) = (Arc::<Count>::default(), Instant::now() + WARM_UP + times.measured);
        let mut sources = JoinSet::new();
        for number in 0..SOURCES {
            let rate = peak * OFFERED / SOURCES as f64;
            sources.spawn(source(client.clone(), round as u64 * SOURCES + number, rate, end, count.clone()));
        }
        tokio::time::sleep(WARM_UP).await;
        let (began, from, cpu, own) = (Instant::now(), count.now(), servers.cpu()?, own_cpu()?);
        tokio::time::sleep_until(end.into()).await;
        let (took, to) = (began.elapsed().as_secs_f64(), count.now());
        // Who offers shares the processors: how much it took says whether servers had any left.
        let (cpu, own) = (servers.cpu()?.saturating_sub(cpu), own_cpu()?.saturating_sub(own));
        while sources.join_next().await.is_some() {}
        let [offered, goodput, refused] = std::array::from_fn(|place| (to[place] - from[place]) as f64 / took);
        let reasons = std::mem::take(&mut *count.reasons.lock().unwrap_or_else(PoisonError::into_inner));
        let reasons = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ");
        let memory = servers.memory_kib()?.into_iter().max().unwrap_or(0) as f64 / 1024.0;
        eprintln!(
            "  peak {peak:.0}/s, offered {offered:.0}/s: {goodput:.0}/s acknowledged, {refused:.0}/s not ({reasons})"
        );
        let figures = [
            ("peak_per_s", peak),
            ("offered_per_s", offered),
            ("goodput_per_s", goodput),
            ("refused_per_s", refused),
            ("of_peak", goodput / peak),
            ("server_cores", cpu.as_secs_f64() / took),
            ("client_cores", own.as_secs_f64() / took),
            ("memory_mib", memory),
            ("elections", (term(&holdfast).await? - before) as f64),
        ];
        let figures: Figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        outcome.rounds.entry(Who::Holdfast).or_default().push(figures);
    }
    Ok(())
}
