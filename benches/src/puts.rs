//! Puts that come at a fixed rate, whatever became of those before: an open loop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_client::{Client, RecordRef};
use tokio::task::JoinSet;

/// Connections that the puts are spread over: so many may be under way.
pub const CLIENTS: u64 = 64;

/// Acknowledged puts that are not known to be in an archive, by the index of their entry: one map for each archive.
pub type Missing = Arc<Vec<Mutex<BTreeMap<u64, Instant>>>>;

/// What the writers did.
#[derive(Debug, Default)]
pub struct Written {
    /// Puts that were.
    pub acknowledged: AtomicU64,
    /// Puts that ended otherwise.
    pub failed: AtomicU64,
    /// Index of the newest entry.
    pub newest: AtomicU64,
}

/// When a put began, and how long it took.
pub type Put = (Instant, Duration);

/// Puts that come at a fixed rate until they are told to stop.
pub struct Load {
    /// So far.
    pub written: Arc<Written>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Vec<Put>>,
}

/// Bytes that no packer makes less of, another sequence for each seed (xorshift64*, Vigna 2016).
pub fn incompressible(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut filled = Vec::with_capacity(bytes + 8);
    while filled.len() < bytes {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        filled.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    filled.truncate(bytes);
    filled
}

impl Load {
    /// `rate` puts a second of `bytes` each.
    pub fn start(client: &Client, rate: u64, bytes: usize, missing: &Missing) -> Self {
        let (written, stop) = (Arc::<Written>::default(), Arc::<AtomicBool>::default());
        let mut tasks = JoinSet::new();
        let start = Instant::now();
        for number in 0..CLIENTS {
            let (client, written, stop, missing) = (client.clone(), written.clone(), stop.clone(), missing.clone());
            tasks.spawn(async move {
                let user = format!("offsite-{number}");
                let mut latencies = Vec::new();
                for n in 0u64.. {
                    let due = start + Duration::from_nanos((n * CLIENTS + number) * 1_000_000_000 / rate);
                    tokio::time::sleep_until(due.into()).await;
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let id = format!("r{}", n % 1000);
                    let body = incompressible(n * CLIENTS + number + 1, bytes);
                    let record = RecordRef { user: &user, collection: "notes", record_id: &id };
                    let began = Instant::now();
                    match client.put(record, "application/octet-stream", body).await {
                        Ok(done) => {
                            let now = Instant::now();
                            latencies.push((began, now - began));
                            written.acknowledged.fetch_add(1, Ordering::Relaxed);
                            written.newest.fetch_max(done.commit_index, Ordering::Relaxed);
                            for archive in missing.iter() {
                                let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
                                // The first of those that share it.
                                archive.entry(done.commit_index).or_insert(now);
                            }
                        }
                        Err(_) => drop(written.failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
                latencies
            });
        }
        Self { written, stop, tasks }
    }

    /// What was written, and how long each put took.
    pub async fn end(self) -> (Arc<Written>, Vec<Put>) {
        self.stop.store(true, Ordering::Release);
        (self.written, self.tasks.join_all().await.concat())
    }
}

/// Latencies of the puts that began in this time, ascending.
pub fn within(puts: &[Put], from: Instant, to: Instant) -> Vec<Duration> {
    let found = puts.iter().filter(|(began, _)| (from..to).contains(began));
    let mut found: Vec<Duration> = found.map(|(_, took)| *took).collect();
    found.sort_unstable();
    found
}
