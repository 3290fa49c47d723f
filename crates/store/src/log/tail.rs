//! What the log is right now: its ends, the durable watermark and the recent entries.
//!
//! Invariants:
//! - The cache is contiguous and ends at `last`; the segments hold all of it too.
//! - `durable` never passes `last`, and is raised only by jobs of the present epoch: a truncation starts a new one, so
//!   an fsync that was under way cannot vouch for entries that replaced those it covered.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::log::sizes::Sizes;
use crate::log::types::{LogPosition, StoredEntry, VoteRecord};

type Subscriber = Arc<dyn Fn(u64) + Send + Sync>;

/// [`TailState`] behind a lock, and those who wait for it.
pub(crate) struct Tail {
    state: Mutex<TailState>,
    risen: Condvar,
    subscribers: Mutex<Vec<Subscriber>>,
}

/// The ends of the log.
#[derive(Debug, Default)]
pub(crate) struct TailState {
    purged: Option<LogPosition>,
    purged_crc: u32,
    last: Option<LogPosition>,
    last_crc: u32,
    durable: Option<LogPosition>,
    epoch: u64,
    stopped: bool,
    cache: VecDeque<(StoredEntry, u32)>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    sizes: Sizes,
    /// Vote, durable or on its way.
    pub(crate) vote: Option<VoteRecord>,
    /// Vote that an fsync covers.
    pub(crate) durable_vote: Option<VoteRecord>,
    /// Committed position as saved.
    pub(crate) committed: Option<LogPosition>,
}

/// A position and the checksum that the next entry links to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Link {
    pub(crate) position: Option<LogPosition>,
    pub(crate) crc: u32,
}

impl Tail {
    pub(crate) fn new(mut state: TailState, cache_bytes_max: usize) -> Self {
        state.cache_bytes_max = cache_bytes_max;
        Self { state: Mutex::new(state), risen: Condvar::new(), subscribers: Mutex::default() }
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&TailState) -> T) -> T {
        look(&self.lock())
    }

    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut TailState) -> T) -> T {
        change(&mut self.lock())
    }

    /// Raises the watermark after an fsync, if what it covered is still the log.
    pub(crate) fn raise(&self, upto: Option<LogPosition>, epoch: u64) {
        let mut state = self.lock();
        let index = |position: Option<LogPosition>| position.map(|position| position.index);
        if state.epoch == epoch && index(state.durable) < index(upto) {
            state.durable = upto;
            drop(state);
            self.risen.notify_all();
        }
    }

    pub(crate) fn wait_durable(&self, index: u64) {
        let mut state = self.lock();
        while !state.stopped && state.durable.is_none_or(|durable| durable.index < index) {
            state = self.risen.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing will become durable any more.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.risen.notify_all();
    }

    pub(crate) fn subscribe(&self, f: Box<dyn Fn(u64) + Send + Sync>) {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(f.into());
    }

    /// Tells the subscribers, without a lock held.
    pub(crate) fn announce(&self, index: u64) {
        let subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for subscriber in subscribers {
            subscriber(index);
        }
    }

    fn lock(&self) -> MutexGuard<'_, TailState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TailState {
    /// As found on disk: all of it is durable.
    pub(crate) fn opened(
        purged: Link,
        last: Link,
        vote: Option<VoteRecord>,
        committed: Option<LogPosition>,
        sizes: Sizes,
    ) -> Self {
        Self {
            sizes,
            purged: purged.position,
            purged_crc: purged.crc,
            last: last.position,
            last_crc: last.crc,
            durable: last.position,
            vote,
            durable_vote: vote,
            committed,
            ..Self::default()
        }
    }

    pub(crate) fn purged(&self) -> Option<LogPosition> {
        self.purged
    }

    pub(crate) fn purged_crc(&self) -> u32 {
        self.purged_crc
    }

    pub(crate) fn last(&self) -> Option<LogPosition> {
        self.last
    }

    pub(crate) fn last_crc(&self) -> u32 {
        self.last_crc
    }

    pub(crate) fn durable(&self) -> Option<LogPosition> {
        self.durable
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    pub(crate) fn cache_entries(&self) -> usize {
        self.cache.len()
    }

    /// Adds entries at the end, with their checksums.
    pub(crate) fn push(&mut self, entries: Vec<(StoredEntry, u32)>) {
        for (entry, crc) in entries {
            debug_assert_eq!(entry.position.index, self.last.map_or(0, |last| last.index + 1));
            self.last = Some(entry.position);
            self.last_crc = crc;
            self.sizes.push(entry.position.index, entry.bytes.len());
            self.cache_bytes += entry.bytes.len();
            self.cache.push_back((entry, crc));
        }
        while self.cache_bytes > self.cache_bytes_max && self.cache.len() > 1 {
            self.forget_oldest();
        }
    }

    /// Drops what follows `last`.
    pub(crate) fn truncate(&mut self, last: Option<LogPosition>, crc: u32) {
        let end = last.map_or(0, |last| last.index + 1);
        while self.cache.back().is_some_and(|(entry, _)| entry.position.index >= end) {
            if let Some((entry, _)) = self.cache.pop_back() {
                self.cache_bytes -= entry.bytes.len();
            }
        }
        self.sizes.truncate(end);
        self.last = last;
        self.last_crc = crc;
        if self.durable.is_some_and(|durable| durable.index >= end) {
            self.durable = last;
        }
        self.epoch += 1;
    }

    /// Drops what lies at or below `upto`, which is in the log.
    pub(crate) fn purge(&mut self, upto: Option<LogPosition>, crc: u32) {
        self.purged = upto;
        self.purged_crc = crc;
        let first = self.first_index();
        self.sizes.purge(first);
        while self.cache.front().is_some_and(|(entry, _)| entry.position.index < first) {
            self.forget_oldest();
        }
    }

    /// Drops everything and begins after `purged`.
    pub(crate) fn reset(&mut self, purged: Option<LogPosition>, crc: u32) {
        let first = purged.map_or(0, |purged| purged.index + 1);
        self.cache.clear();
        self.cache_bytes = 0;
        self.sizes.clear();
        (self.purged, self.purged_crc) = (purged, crc);
        (self.last, self.last_crc) = (purged, crc);
        self.durable = self.durable.filter(|durable| durable.index < first);
        self.epoch += 1;
    }

    /// Entries out of memory; `None` when the segments must be asked.
    pub(crate) fn cached(&self, start: u64, end: u64, bytes_max: usize) -> Option<Vec<StoredEntry>> {
        let first = self.cache.front()?.0.position.index;
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        let mut bytes = 0usize;
        let mut out = Vec::new();
        for (entry, _) in self.cache.iter().skip(skip) {
            bytes += entry.bytes.len();
            if entry.position.index >= end || (bytes > bytes_max && !out.is_empty()) {
                break;
            }
            out.push(entry.clone());
        }
        Some(out)
    }

    /// Position and checksum of an entry in memory.
    pub(crate) fn cached_crc(&self, index: u64) -> Option<(LogPosition, u32)> {
        let first = self.cache.front()?.0.position.index;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        self.cache.get(at).map(|(entry, crc)| (entry.position, *crc))
    }

    fn forget_oldest(&mut self) {
        if let Some((entry, _)) = self.cache.pop_front() {
            self.cache_bytes -= entry.bytes.len();
        }
    }
}
