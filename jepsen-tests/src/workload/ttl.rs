//! Clients that write records which end by themselves, write them again before or after that, and look whether they are
//! there. Each record has one writer, which knows the end of each write before it goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::chance::Chance;
use crate::history::calls::{Held, Lease};
use crate::workload::Pace;
use crate::workload::caller::{Caller, End, request_id};

/// Records of a client.
const KEYS: usize = 24;
/// So many of a hundred steps write.
const WRITES_PERCENT: usize = 50;
/// Lives of records in seconds, at least and at most: some end in the middle of a fault, some are renewed in it.
const LIVES: (usize, usize) = (1, 6);
const LAST_DEADLINE: Duration = Duration::from_secs(30);
/// Once the load is over, a client waits so long for the end of its last write, and for its records to be gone.
const OVER_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// One client.
pub struct Writer {
    caller: Caller,
    /// Owner of its records.
    pub user: String,
    chance: Chance,
    written: u64,
    /// Of unknown outcome, to be sent again.
    pending: Option<Lease>,
}

impl Writer {
    /// A client with the number `number`, and a user of its own.
    pub fn new(caller: Caller, number: u32) -> Self {
        let chance = Chance::new(caller.shared.seed, number.into());
        Self { user: format!("t{number}"), chance, caller, written: 0, pending: None }
    }

    /// Works until it is told to stop; then sees all its records end.
    pub async fn run(mut self, stop: Arc<AtomicBool>) {
        let mut pace = Pace::of(&self.caller.shared);
        while !stop.load(Ordering::Acquire) {
            self.step().await;
            pace.wait().await;
        }
        self.caller.client = self.caller.client.with_deadline(LAST_DEADLINE);
        let end = Instant::now() + OVER_WITHIN;
        while let Some(lease) = self.pending.take()
            && Instant::now() < end
        {
            self.send(lease).await;
        }
        for key in 0..KEYS {
            // A record that nobody wrote is never there; of the others the last look tells.
            while self.look(key, true).await != Some(None) && Instant::now() < end {
                tokio::time::sleep(POLL).await;
            }
        }
    }

    async fn step(&mut self) {
        if let Some(lease) = self.pending.take() {
            self.send(lease).await;
            return;
        }
        let key = self.chance.below(KEYS);
        if !self.chance.percent(WRITES_PERCENT) {
            self.look(key, false).await;
            return;
        }
        self.written += 1;
        let lease = Lease {
            user: self.user.clone(),
            key: name(key),
            content: format!("{}.{}", self.user, self.written),
            request_id: request_id(&mut self.chance),
            ttl_seconds: (LIVES.0 + self.chance.below(LIVES.1 - LIVES.0 + 1)) as u32,
        };
        self.send(lease).await;
    }

    async fn send(&mut self, lease: Lease) {
        match self.caller.lease(&lease).await {
            End::Done(_) => {}
            // Whatever refused it, an earlier attempt may have gone through.
            End::Refused | End::Failed | End::Unknown => self.pending = Some(lease),
        }
    }

    /// What is there of a record; `None` = nobody answered.
    async fn look(&mut self, key: usize, last: bool) -> Option<Option<String>> {
        let held = Held { user: self.user.clone(), key: name(key), last, found: None };
        self.caller.held(&held).await
    }
}

fn name(key: usize) -> String {
    format!("x-leases/l{key}")
}
