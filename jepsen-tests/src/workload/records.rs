//! Clients that read and write the same records, so that what one writes shows in what the others see.
//!
//! - *register:* puts, deletes, batches of two records, guards that hold or fail; read linearizable, at the position of
//!   the client's last answer, or at a bounded age.
//! - *append:* each record is a list, and a write adds one element to what the client read, under a guard.
//!
//! Invariants, on which the checkers build:
//! - A request id stands for one content, and no two writes put the same content.
//! - A delete is alone in its batch and has no guard: a tombstone does not say who left it.
//! - Few clients share a record, and each record is written for a while only (then its users go on to new ones): a
//!   search over all orders of its operations stays possible.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::chance::Chance;
use crate::history::calls::{Batch, Change, Done, Guard, Level, Point, Read};
use crate::workload::Pace;
use crate::workload::caller::{Caller, End, request_id};

/// Clients that share a user.
pub const CLIENTS_PER_USER: u32 = 8;
/// Records of a user.
const KEYS: usize = 4;
/// Operations on a user before its clients go on to the next one. A list gets longer with each, and is sent whole.
const REGISTER_LIFE: u64 = 1200;
const APPEND_LIFE: u64 = 500;
/// Age that a read of bounded age allows.
const STALENESS_MS: u32 = 3_000;
/// Answered requests that a client remembers in order to send them again.
const REMEMBERED: usize = 32;
const LAST_DEADLINE: Duration = Duration::from_secs(30);
/// A client gives up knowing the end of its last write after this.
const RESOLVE_WITHIN: Duration = Duration::from_secs(60);

/// What clients that share users share.
#[derive(Debug, Default)]
pub struct Circle {
    /// Begins the names of its users.
    pub name: String,
    /// Lists instead of registers.
    pub append: bool,
    operations: AtomicU64,
}

impl Circle {
    /// Clients that share the users `name-0`, `name-1`, …
    pub fn new(name: String, append: bool) -> Self {
        Self { name, append, operations: AtomicU64::new(0) }
    }

    fn life(&self) -> u64 {
        if self.append { APPEND_LIFE } else { REGISTER_LIFE }
    }

    /// The user that is written now.
    fn user(&self) -> String {
        format!("{}-{}", self.name, self.operations.fetch_add(1, Ordering::Relaxed) / self.life())
    }

    /// All users that were written.
    pub fn users(&self) -> Vec<String> {
        let count = self.operations.load(Ordering::Relaxed).div_ceil(self.life());
        (0..count).map(|user| format!("{}-{user}", self.name)).collect()
    }
}

/// All records of a user.
pub fn keys() -> Vec<String> {
    (0..KEYS).map(|key| format!("notes/k{key}")).collect()
}

/// A record as a client knows it.
type Known = (u64, Option<String>);

/// One client.
pub struct Writer {
    caller: Caller,
    circle: Arc<Circle>,
    chance: Chance,
    number: u32,
    written: u64,
    /// Of the user that is written now.
    known: HashMap<String, Known>,
    user: String,
    last: Option<Point>,
    remembered: VecDeque<Batch>,
    /// Of unknown outcome, to be sent again.
    pending: Option<Batch>,
}

impl Writer {
    /// A client with the number `number`.
    pub fn new(caller: Caller, circle: Arc<Circle>, number: u32) -> Self {
        Self {
            chance: Chance::new(caller.shared.seed, number.into()),
            caller,
            circle,
            number,
            written: 0,
            known: HashMap::new(),
            user: String::new(),
            last: None,
            remembered: VecDeque::new(),
            pending: None,
        }
    }

    /// Works until it is told to stop; then finds out the end of what it is not sure of.
    pub async fn run(mut self, stop: Arc<AtomicBool>) {
        let mut pace = Pace::of(&self.caller.shared);
        while !stop.load(Ordering::Acquire) {
            self.step().await;
            pace.wait().await;
        }
        self.caller.client = self.caller.client.with_deadline(LAST_DEADLINE);
        let end = Instant::now() + RESOLVE_WITHIN;
        while let Some(batch) = self.pending.take()
            && Instant::now() < end
        {
            self.send(batch).await;
        }
    }

    async fn step(&mut self) {
        if let Some(batch) = self.pending.take() {
            self.send(batch).await;
            return;
        }
        let user = self.circle.user();
        if user != self.user {
            self.known.clear();
            self.user = user;
        }
        let mut keys = keys();
        self.chance.shuffle(&mut keys);
        keys.truncate(1 + self.chance.below(2));
        let unknown = keys.iter().any(|key| !self.known.contains_key(key));
        match self.chance.below(100) {
            0..5 if !self.remembered.is_empty() => {
                let place = self.chance.below(self.remembered.len());
                let batch = self.remembered[place].clone();
                self.send(batch).await;
            }
            5..50 => self.read(keys).await,
            // A list that is not known cannot be added to.
            _ if self.circle.append && unknown => self.read(keys).await,
            50..55 if !self.circle.append => {
                keys.truncate(1);
                let changes = vec![Change { key: keys.swap_remove(0), put: None, guard: None }];
                let batch = self.batch(changes);
                self.send(batch).await;
            }
            _ => {
                let changes = keys.into_iter().map(|key| self.put(key)).collect();
                let batch = self.batch(changes);
                self.send(batch).await;
            }
        }
    }

    fn put(&mut self, key: String) -> Change {
        self.written += 1;
        let element = format!("{}.{}", self.number, self.written);
        if !self.circle.append {
            let guard = self.guard(&key);
            return Change { put: Some(element), guard, key };
        }
        let (put, guard) = match self.known.get(&key) {
            Some((version, Some(list))) => {
                (format!("{list} {element}"), Guard::Version { version: *version, of: list.clone() })
            }
            _ => (element, Guard::Absent),
        };
        Change { key, put: Some(put), guard: Some(guard) }
    }

    fn guard(&mut self, key: &str) -> Option<Guard> {
        match (self.chance.below(10), self.known.get(key)) {
            (0..5, Some((version, Some(of)))) => Some(Guard::Version { version: *version, of: of.clone() }),
            (5, _) => Some(Guard::Absent),
            (6, _) => Some(Guard::Exists),
            _ => None,
        }
    }

    fn batch(&mut self, changes: Vec<Change>) -> Batch {
        let request_id = request_id(&mut self.chance);
        Batch { user: self.user.clone(), request_id, changes, done: None, refused: None }
    }

    async fn read(&mut self, keys: Vec<String>) {
        let level = match (self.chance.below(10), self.last) {
            (0..2, Some(last)) => Level::AtLeast(last),
            (2..4, _) => Level::Staleness(STALENESS_MS),
            _ => Level::Linearizable,
        };
        let read = Read { user: self.user.clone(), keys, level, got: None };
        let Some(got) = self.caller.read(&read).await else { return };
        self.saw(got.at);
        for key in read.keys {
            self.known.insert(key, (0, None));
        }
        for seen in got.records {
            self.known.insert(seen.key, (seen.version, seen.payload));
        }
    }

    async fn send(&mut self, batch: Batch) {
        match self.caller.batch(&batch).await {
            End::Done(done) => {
                self.learn(&batch, &done);
                if !self.remembered.contains(&batch) {
                    if self.remembered.len() == REMEMBERED {
                        self.remembered.pop_front();
                    }
                    self.remembered.push_back(batch);
                }
            }
            End::Refused => {
                for change in &batch.changes {
                    self.known.remove(&change.key);
                }
            }
            // Half of what is not known stays so for ever.
            End::Unknown if self.chance.percent(50) => self.pending = Some(batch),
            End::Unknown | End::Failed => {}
        }
    }

    fn learn(&mut self, batch: &Batch, done: &Done) {
        self.saw(done.at);
        if batch.user != self.user || done.replayed {
            return;
        }
        for (change, result) in batch.changes.iter().zip(&done.results) {
            self.known.insert(change.key.clone(), (result.version, change.put.clone()));
        }
    }

    fn saw(&mut self, at: Point) {
        if self.last.is_none_or(|last| last.incarnation != at.incarnation || last.index < at.index) {
            self.last = Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_that_were_written_are_read_back() {
        for (count, append) in [(1, false), (REGISTER_LIFE, false), (REGISTER_LIFE + 1, false), (APPEND_LIFE + 1, true)]
        {
            let circle = Circle::new("r0".into(), append);
            let written: std::collections::BTreeSet<String> = (0..count).map(|_| circle.user()).collect();
            assert_eq!(written.into_iter().collect::<Vec<_>>(), circle.users(), "{count}");
        }
        assert!(Circle::new("r0".into(), false).users().is_empty());
    }
}
