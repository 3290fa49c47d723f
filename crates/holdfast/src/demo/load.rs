//! The load: 64 clients, each of which sends one record, waits for the answer, and sends the next.
//!
//! Invariants: every record has a request id of its own, which all its attempts carry; a record whose outcome is not
//! known is sent again until it is, or until the disaster.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use holdfast_client::{Client, v1};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::demo::Args;
use crate::demo::ledger::{Ack, Ledger};
use crate::portable::people::{self, MadeRecord};

const CLIENTS: usize = 64;
const POLL: Duration = Duration::from_millis(20);
/// Nothing acknowledged for so long means that the cluster does not come back.
const GIVE_UP: Duration = Duration::from_secs(60);

type Source = Box<dyn Iterator<Item = (u64, (String, MadeRecord))> + Send>;

struct Shared {
    client: Client,
    ledger: Arc<Ledger>,
    source: Mutex<Source>,
    started: Instant,
    /// Not faster than this many records a second.
    records_per_second: f64,
    errors: AtomicU64,
    ended: AtomicBool,
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts the clients.
    pub fn start(client: Client, ledger: Arc<Ledger>, args: &Args) -> Self {
        let source: Source = Box::new((0u64..).zip(people::records(args.seed)));
        let shared = Arc::new(Shared {
            client,
            ledger,
            source: Mutex::new(source),
            started: Instant::now(),
            records_per_second: args.records as f64 / args.seconds as f64,
            errors: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let shared = shared.clone();
            let mut stopped = stopped.clone();
            clients.spawn(async move {
                tokio::select! {
                    () = closed_loop(&shared) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
        }
        Self { shared, stop, clients }
    }

    /// Waits until `count` records are acknowledged.
    pub async fn reached(&self, count: u64, bar: &ProgressBar) -> anyhow::Result<()> {
        let mut last = (self.shared.ledger.count(), Instant::now());
        while last.0 < count {
            tokio::time::sleep(POLL).await;
            let now = self.shared.ledger.count();
            bar.set_position(now);
            if now > last.0 {
                last = (now, Instant::now());
            }
            let silent = last.1.elapsed();
            anyhow::ensure!(silent < GIVE_UP, "no write was acknowledged for {} s", silent.as_secs());
            anyhow::ensure!(!self.shared.ended.load(Ordering::Relaxed), "a client ended early: this is a defect");
        }
        Ok(())
    }

    /// Ends all clients; what they wait for is not acknowledged any more. Gives how many calls failed.
    pub async fn stop(mut self) -> u64 {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
        self.shared.errors.load(Ordering::Relaxed)
    }
}

async fn closed_loop(shared: &Shared) {
    loop {
        // People have no end, but a panic in there could poison the lock; the next record is as good.
        let next = shared.source.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((number, (user, record))) = next else {
            shared.ended.store(true, Ordering::Relaxed);
            return;
        };
        let due = shared.started + Duration::from_secs_f64(number as f64 / shared.records_per_second);
        tokio::time::sleep_until(due.into()).await;
        let sha256 = Sha256::digest(&record.payload).into();
        let request = request(user, record);
        let commit_index = loop {
            match shared.client.write(request.clone()).await {
                Ok(answer) => break answer.commit_index,
                Err(_) => {
                    shared.errors.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(POLL).await;
                }
            }
        };
        shared.ledger.add(Ack { number, sha256, commit_index, at: SystemTime::now(), moment: Instant::now() });
    }
}

fn request(user: String, record: MadeRecord) -> v1::BatchWriteRequest {
    let put = v1::PutOp {
        content_type: record.content_type.to_owned(),
        payload: record.payload.into(),
        ..Default::default()
    };
    let key = v1::RecordKey { collection: record.collection.to_owned(), record_id: record.record_id };
    v1::BatchWriteRequest {
        user_id: user,
        request_id: Uuid::new_v4().to_string(),
        mutations: vec![v1::Mutation { key: Some(key), op: Some(v1::mutation::Op::Put(put)), precondition: None }],
        ..Default::default()
    }
}

/// The acknowledged records again, made anew from the seed; `acks` ascend by number.
pub fn people_in_order(seed: u64, acks: &[Ack]) -> impl Iterator<Item = (Ack, (String, MadeRecord))> + use<> {
    let mut wanted: BTreeMap<u64, Ack> = acks.iter().map(|ack| (ack.number, *ack)).collect();
    let last = wanted.keys().next_back().copied();
    let all = (0u64..).zip(people::records(seed)).take_while(move |(number, _)| Some(*number) <= last);
    all.filter_map(move |(number, record)| Some((wanted.remove(&number)?, record)))
}
