//! Writers that change a user's records, and consumers that follow the user's feed as devices do: page by page, with a
//! token that they save. Consumers crash between pages, come back with what they had saved, and go on at another node.
//!
//! Some consumers wait in `GetChanges`, some are woken by a `Watch` and ask for nothing of their own accord: a wake-up
//! that is lost leaves them behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_client::{Client, WatchEvent, WatchOptions, Watcher, v1};
use tokio::time::{Instant, timeout};

use crate::chance::Chance;
use crate::history::calls::{Batch, Change, Follow, Hint, Level, Page, Point};
use crate::history::{Action, Stage};
use crate::workload::Pace;
use crate::workload::caller::{Caller, End, request_id};

/// Writers of one user.
pub const WRITERS_PER_USER: u32 = 4;
/// Consumers of one user.
pub const CONSUMERS_PER_USER: u32 = 4;
const KEYS: usize = 120;
const COLLECTIONS: [&str; 2] = ["notes", "todos"];
/// Pages of which a consumer crashes before it saves them.
const CRASH_PERCENT: usize = 15;
/// What a consumer's call may take; one that fails goes on at another node.
const DEADLINE: Duration = Duration::from_secs(3);
/// After everything is healed, a consumer must have come to the end within this.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(40);
const LAST_DEADLINE: Duration = Duration::from_secs(30);
/// Between two failed calls of a consumer.
const PAUSE: Duration = Duration::from_millis(50);
const HEARTBEAT: Duration = Duration::from_millis(1000);

/// All records of a user.
pub fn keys() -> Vec<String> {
    (0..KEYS).map(key).collect()
}

fn key(number: usize) -> String {
    format!("{}/k{number}", COLLECTIONS[number % COLLECTIONS.len()])
}

/// A client that writes.
pub struct Writer {
    caller: Caller,
    chance: Chance,
    user: String,
    number: u32,
    written: u64,
    pending: Option<Batch>,
}

impl Writer {
    /// A client with the number `number`, which writes to `user`.
    pub fn new(caller: Caller, user: String, number: u32) -> Self {
        let chance = Chance::new(caller.shared.seed, number.into());
        Self { caller, chance, user, number, written: 0, pending: None }
    }

    /// Writes until it is told to stop.
    pub async fn run(mut self, stop: Arc<AtomicBool>) {
        let mut pace = Pace::of(&self.caller.shared);
        while !stop.load(Ordering::Acquire) {
            self.step().await;
            pace.wait().await;
        }
        self.caller.client = self.caller.client.with_deadline(LAST_DEADLINE);
        if let Some(batch) = self.pending.take() {
            self.caller.batch(&batch).await;
        }
    }

    async fn step(&mut self) {
        let batch = match self.pending.take() {
            Some(batch) => batch,
            None => self.batch(),
        };
        // Half of what is not known stays so for ever.
        if self.caller.batch(&batch).await == End::Unknown && self.chance.percent(50) {
            self.pending = Some(batch);
        }
    }

    fn batch(&mut self) -> Batch {
        let (request_id, user) = (request_id(&mut self.chance), self.user.clone());
        let changes = if self.chance.percent(15) {
            vec![Change { key: key(self.chance.below(KEYS)), put: None, guard: None }]
        } else {
            let (first, count) = (self.chance.below(KEYS), 1 + self.chance.below(4));
            let step = 1 + self.chance.below(KEYS / 4 - 1);
            (0..count).map(|place| self.put(key((first + place * step) % KEYS))).collect()
        };
        Batch { user, request_id, changes, done: None, refused: None }
    }

    fn put(&mut self, key: String) -> Change {
        self.written += 1;
        Change { key, put: Some(format!("{}.{}", self.number, self.written)), guard: None }
    }
}

/// A consumer of a user's feed.
pub struct Consumer {
    caller: Caller,
    chance: Chance,
    user: String,
    collections: Vec<String>,
    addresses: Vec<String>,
    token: String,
    /// Newest version that it saved.
    head: u64,
    watches: bool,
}

impl Consumer {
    /// The consumer with this place among all; half of them watch, and one in four wants one collection only.
    pub fn new(caller: Caller, user: String, place: u32, addresses: Vec<String>) -> Self {
        let chance = Chance::new(caller.shared.seed, (1 << 32) | u64::from(place));
        let collections = if place % 4 == 2 { vec![COLLECTIONS[1].to_owned()] } else { Vec::new() };
        let token = String::new();
        Self { caller, chance, user, collections, addresses, token, head: 0, watches: place % 2 == 1 }
    }

    /// Follows the feed until it is told to stop, and then to its end.
    pub async fn run(mut self, stop: Arc<AtomicBool>) {
        let follow = Action::Follow(Follow { user: self.user.clone(), watches: self.watches });
        self.caller.shared.recorder.tell(self.caller.process, Stage::Info, follow);
        if self.watches { self.watch(stop).await } else { self.poll(stop).await }
    }

    async fn poll(&mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Acquire) {
            let wait = Duration::from_millis(self.chance.below(800) as u64);
            let level = if self.chance.percent(30) { Some(Level::Linearizable) } else { None };
            self.page(level, wait, CRASH_PERCENT).await;
        }
        let end = Instant::now() + CATCH_UP_WITHIN;
        while self.page(Some(Level::Linearizable), Duration::ZERO, 0).await != Some(false) && Instant::now() < end {}
    }

    /// Asks for pages when the watch says so, and never else.
    async fn watch(&mut self, stop: Arc<AtomicBool>) {
        let mut watcher = self.watcher();
        let mut end = None;
        loop {
            if stop.load(Ordering::Acquire) {
                let end = *end.get_or_insert_with(|| Instant::now() + CATCH_UP_WITHIN);
                if Instant::now() > end || self.is_at_end().await {
                    return;
                }
            }
            // Also while a node is dead the watch must find another one.
            let Ok(event) = timeout(Duration::from_millis(500), watcher.next()).await else { continue };
            match event {
                Ok(WatchEvent::Hint { user, head_version, header, .. }) => {
                    let at =
                        Point { incarnation: header.incarnation, group: header.group_id, index: header.applied_index };
                    let hint = Action::Hint(Hint { user, head: head_version, at });
                    self.caller.shared.recorder.tell(self.caller.process, Stage::Info, hint);
                    let crash = if end.is_some() { 0 } else { CRASH_PERCENT };
                    while self.page(None, Duration::ZERO, crash).await != Some(false) {
                        if end.is_some_and(|end| Instant::now() > end) {
                            return;
                        }
                    }
                    if self.chance.percent(5) && end.is_none() {
                        // The whole device went down; it comes back with its token, at any node.
                        watcher = self.watcher();
                    } else if watcher.advance(&self.user, &self.token).is_err() {
                        return;
                    }
                }
                Ok(WatchEvent::Resync { .. }) => {
                    // What the feed says of it is written down; the harness goes no further.
                    self.page(None, Duration::ZERO, 0).await;
                    return;
                }
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    watcher = self.watcher();
                }
            }
        }
    }

    /// A watch that knows all nodes.
    fn watcher(&self) -> Watcher {
        let client = Client::builder().endpoints(self.addresses.clone()).build();
        let client = client.unwrap_or_else(|_| self.caller.client.clone());
        let watcher = client.watcher(WatchOptions { heartbeat: HEARTBEAT, ..WatchOptions::default() });
        // A token that came from a node is one of this user.
        let _ = watcher.watch(&self.user, &self.token);
        watcher
    }

    /// Nothing was written after its last page.
    async fn is_at_end(&self) -> bool {
        let request = v1::GetUserRequest { user_id: self.user.clone(), consistency: None };
        let Ok(user) = self.caller.client.user(request).await else { return false };
        self.head >= user.head_version
    }

    /// One page; gives whether there are more. `None` = there was no answer, or it was lost in a crash.
    async fn page(&mut self, level: Option<Level>, wait: Duration, crash_percent: usize) -> Option<bool> {
        let page = Page {
            user: self.user.clone(),
            collections: self.collections.clone(),
            from: self.token.clone(),
            level,
            turned: None,
            resync: None,
        };
        let size = 1 + self.chance.below(30) as i32;
        let kept = !self.chance.percent(crash_percent);
        let Some(turned) = self.caller.page(&page, size, wait, kept).await else {
            self.elsewhere();
            tokio::time::sleep(PAUSE).await;
            return None;
        };
        if !kept {
            self.elsewhere();
            return None;
        }
        self.token = turned.next;
        self.head = turned.records.iter().map(|seen| seen.version).fold(self.head, u64::max);
        Some(turned.more)
    }

    /// New connections, to one node.
    fn elsewhere(&mut self) {
        let address = self.addresses[self.chance.below(self.addresses.len())].clone();
        if let Ok(client) = Client::builder().endpoints([address]).deadline(DEADLINE).build() {
            self.caller.client = client;
        }
    }
}
