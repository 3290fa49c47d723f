//! One closed loop for all peers: each client sends its next call when the last one was answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use holdfast_benches::measure::percentile_ms;
use holdfast_benches::puts::incompressible;
use holdfast_benches::servers::{Disk, Servers, own_cpu};
use tokio::task::JoinSet;

use crate::figures::Figures;
use crate::peer::Link;

/// Records that reads find: those of so many people, so many each.
pub const PEOPLE: u64 = 100;
/// See [`PEOPLE`].
pub const RECORDS_EACH: u64 = 100;
/// Records in a call that fills; etcd takes at most 128.
const FILL_BATCH: u64 = 50;
/// Bytes that payloads are cut from.
const POOL_BYTES: usize = 1 << 20;
/// After a call that failed: a server that refuses is not to be asked in a tight loop.
const AFTER_FAILURE: Duration = Duration::from_millis(5);

/// What a client does again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Stores a new record.
    Put,
    /// Stores so many new records of one user in a call.
    Batch(u64),
    /// Reads a record, linearizable.
    Get,
    /// In turn: reads a record, replaces one.
    Mixed,
    /// Reads all records of a user.
    List,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What clients do.
    pub work: Work,
    /// How many there are.
    pub clients: usize,
    /// Bytes of a payload.
    pub bytes: usize,
}

/// How long.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Under load, before anything counts.
    pub warm_up: Duration,
    /// What counts.
    pub measured: Duration,
}

/// Payloads that nothing packs, each another one, and cheap to make: one would measure the client otherwise.
#[derive(Clone)]
pub struct Payloads {
    pool: Bytes,
    bytes: usize,
}

impl Payloads {
    /// Of this size.
    pub fn new(bytes: usize) -> Self {
        Self { pool: incompressible(1, POOL_BYTES + bytes).into(), bytes }
    }

    /// The payload of a number.
    pub fn of(&self, number: u64) -> Bytes {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let at = (mixed >> 40) as usize % POOL_BYTES;
        let mut payload = self.pool[at..at + self.bytes].to_vec();
        for (to, from) in payload.iter_mut().zip(mixed.to_be_bytes()) {
            *to = from;
        }
        payload.into()
    }
}

/// Name of a person whose records reads find.
fn person(number: u64) -> String {
    format!("base-{number}")
}

fn record_id(number: u64) -> String {
    format!("r{number:03}")
}

/// Stores what reads find.
pub async fn fill(link: &Link, bytes: usize) -> anyhow::Result<()> {
    let payloads = Payloads::new(bytes);
    for person_number in 0..PEOPLE {
        let user = person(person_number);
        for from in (0..RECORDS_EACH).step_by(FILL_BATCH as usize) {
            let records = from..(from + FILL_BATCH).min(RECORDS_EACH);
            let records = records.map(|n| (record_id(n), payloads.of(person_number * RECORDS_EACH + n))).collect();
            link.batch(&user, records).await.with_context(|| format!("store records of {user}"))?;
        }
    }
    Ok(())
}

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

struct Client {
    link: Link,
    shape: Shape,
    payloads: Payloads,
    user: String,
    /// Calls made.
    n: u64,
    /// Another sequence for each client.
    random: u64,
}

/// What a client saw while it counted.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    failed: u64,
    failure: Option<String>,
}

impl Client {
    /// A number below `below` (xorshift64, Marsaglia 2003).
    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        self.n += 1;
        let (n, bytes) = (self.n, self.shape.bytes);
        let payload = |salt: u64| self.payloads.of(salt ^ self.random);
        match self.shape.work {
            Work::Put => self.link.put(&self.user, &format!("r{n}"), payload(n)).await,
            Work::Batch(records) => {
                let ids = n * records..(n + 1) * records;
                self.link.batch(&self.user, ids.map(|n| (format!("r{n}"), payload(n))).collect()).await
            }
            Work::Mixed if n.is_multiple_of(2) => {
                let payload = payload(n);
                let (user, id) = (person(self.draw(PEOPLE)), record_id(self.draw(RECORDS_EACH)));
                self.link.put(&user, &id, payload).await
            }
            Work::Get | Work::Mixed => {
                let (user, id) = (person(self.draw(PEOPLE)), record_id(self.draw(RECORDS_EACH)));
                let found = self.link.get(&user, &id).await?;
                anyhow::ensure!(found == bytes, "a record of {bytes} bytes has {found}");
                Ok(())
            }
            Work::List => {
                let user = person(self.draw(PEOPLE));
                let found = self.link.list(&user).await?;
                anyhow::ensure!(found as u64 == RECORDS_EACH, "{user} has {found} records, not {RECORDS_EACH}");
                Ok(())
            }
        }
    }

    async fn run(mut self, phase: Arc<AtomicU8>) -> Seen {
        let mut seen = Seen::default();
        loop {
            let began = Instant::now();
            let done = self.call().await;
            match (phase.load(Ordering::Acquire), done) {
                (COUNTING, Ok(())) => seen.latencies.push(began.elapsed()),
                (_, Err(error)) => {
                    seen.failed += 1;
                    seen.failure.get_or_insert_with(|| format!("{error:#}"));
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
                _ => {}
            }
            if phase.load(Ordering::Acquire) == OVER {
                return seen;
            }
        }
    }
}

/// Puts load on one peer, and tells what clients and servers had of it. `links`: one for each client. `tag`: new at each
/// call, so that records are new.
pub async fn measure(
    servers: &Servers,
    links: Vec<Link>,
    shape: Shape,
    tag: &str,
    times: Times,
) -> anyhow::Result<Figures> {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let payloads = Payloads::new(shape.bytes);
    let mut clients = JoinSet::new();
    for (number, link) in links.into_iter().enumerate() {
        let random = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let user = format!("{tag}-{number}");
        let client = Client { link, shape, payloads: payloads.clone(), user, n: 0, random };
        clients.spawn(client.run(phase.clone()));
    }
    tokio::time::sleep(times.warm_up).await;
    servers.forget_peaks();
    let disk = Disk::below(&std::env::temp_dir());
    let written = || disk.as_ref().and_then(Disk::written);
    let (before, own_before, written_before, began) = (servers.cpu()?, own_cpu()?, written(), Instant::now());
    phase.store(COUNTING, Ordering::Release);
    tokio::time::sleep(times.measured).await;
    phase.store(OVER, Ordering::Release);
    let took = began.elapsed().as_secs_f64();
    let (used, own) = (servers.cpu()?.saturating_sub(before), own_cpu()?.saturating_sub(own_before));
    let written = written().zip(written_before).map(|(now, before)| now.saturating_sub(before));
    let memory_kib = servers.memory_kib()?.into_iter().max().unwrap_or(0);
    let mut seen = Seen::default();
    while let Some(one) = clients.join_next().await {
        let one = one?;
        seen.latencies.extend(one.latencies);
        seen.failed += one.failed;
        seen.failure = seen.failure.or(one.failure);
    }
    seen.latencies.sort_unstable();
    if seen.latencies.is_empty() {
        bail!("not one call was answered in time: {}", seen.failure.unwrap_or_default());
    }
    if let Some(failure) = &seen.failure {
        eprintln!("  {} calls failed; the first: {failure}", seen.failed);
    }
    let each = if let Work::Batch(records) = shape.work { records } else { 1 };
    let ops = (seen.latencies.len() as u64 * each) as f64;
    let mut figures = Figures::from([
        ("ops_per_s".to_owned(), ops / took),
        ("p50_ms".to_owned(), percentile_ms(&seen.latencies, 0.5)),
        ("p99_ms".to_owned(), percentile_ms(&seen.latencies, 0.99)),
        ("server_us".to_owned(), used.as_secs_f64() * 1e6 / ops),
        ("client_us".to_owned(), own.as_secs_f64() * 1e6 / ops),
        ("memory_mib".to_owned(), memory_kib as f64 / 1024.0),
        ("failed".to_owned(), seen.failed as f64),
    ]);
    if let (Some(written), Work::Put | Work::Batch(_)) = (written, shape.work) {
        figures.insert("written_per_byte".to_owned(), written as f64 / (ops * shape.bytes as f64));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_differ_and_have_their_size() {
        let payloads = Payloads::new(100);
        assert_eq!(payloads.of(1), payloads.of(1));
        assert_ne!(payloads.of(1), payloads.of(2));
        assert!((0..1000).all(|n| payloads.of(n).len() == 100));
    }
}
