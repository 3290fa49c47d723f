//! The Raft log: segments that are written once and never copied, one fsync for whatever waits.
//!
//! Invariants:
//! - Entries are contiguous in `(purged, last]`; terms do not decrease; each frame holds the checksum of the one before.
//! - What [`LogStore::append`] took is readable when it returns; its callback runs after the fsync, in order, never
//!   before. A failed fsync is never retried: callbacks fail and the process is to end.
//! - The durable watermark falls only by truncation. The floor is never ahead of what was fsynced.
//! - The purge marker is written with the deletes, before the entries are gone.

mod floor;
mod flush;
mod frame;
mod open;
mod record;
mod segments;
mod sizes;
mod tail;
mod types;
mod walk;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Part, StoreError};
use crate::log::floor::FloorKeeper;
use crate::log::flush::{Job, Queue};
use crate::log::segments::Segments;
use crate::log::tail::{Link, Tail, TailState};
pub use crate::log::types::{
    Done, FSYNC_BUCKETS_MICROS, LogOptions, LogPosition, LogReport, LogStats, OnFatal, StoredEntry, TornTail,
    VoteRecord,
};
use crate::marker::DataDir;
use crate::planted::{self, Bug};
use holdfast_model::id::GroupId;

/// The log of one group. Cheap to clone; the last clone drains and closes it.
#[derive(Clone)]
pub struct LogStore(Arc<Handle>);

/// Owns the threads; they own [`Shared`].
struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What callers, the flush thread and the floor thread share.
pub(crate) struct Shared {
    segments: Segments,
    /// Held while the log changes: the order of writes is the order of jobs.
    order: Mutex<()>,
    tail: Tail,
    queue: Queue,
    floor: FloorKeeper,
    on_fatal: OnFatal,
}

impl LogStore {
    /// Opens the log of a group: walks it, cuts off what is broken, and says whether the node lost acknowledged entries.
    pub fn open(data: &DataDir, group: GroupId, options: LogOptions) -> Result<(Self, LogReport), StoreError> {
        let (opened, report) = open::open(data, group, &options)?;
        let shared = Arc::new(Shared {
            segments: opened.segments,
            order: Mutex::new(()),
            tail: Tail::new(opened.state, options.cache_bytes_max),
            queue: Queue::default(),
            floor: opened.floor,
            on_fatal: options.on_fatal,
        });
        let threads = vec![
            flush::spawn("log-flush", &shared, flush::run_flush)?,
            flush::spawn("log-floor", &shared, flush::run_floor)?,
        ];
        Ok((Self(Arc::new(Handle { shared, threads: Mutex::new(threads) })), report))
    }

    /// Sets the log aside, into `quarantine/`, when it is of no use without what was purged from it. No log
    /// of the directory may be open. The floor stays, so that the node knows what it had acknowledged.
    pub fn set_aside(data: &DataDir) -> Result<PathBuf, StoreError> {
        open::set_aside(data)
    }

    /// Last purged position.
    pub fn purged(&self) -> Option<LogPosition> {
        self.shared().tail.read(|tail| tail.purged())
    }

    /// Last position; the purged one when the log is empty.
    pub fn last(&self) -> Option<LogPosition> {
        self.shared().tail.read(TailState::last)
    }

    /// Index of the first entry, or where it will be.
    pub fn first_index(&self) -> u64 {
        self.shared().tail.read(|tail| tail.first_index())
    }

    /// Contiguous entries from `start`, before `end_exclusive`, up to `bytes_max` but at least one when there is one.
    /// What lies beyond the last entry is not an error; what is purged is.
    pub fn read(&self, start: u64, end_exclusive: u64, bytes_max: usize) -> Result<Vec<StoredEntry>, StoreError> {
        let shared = self.shared();
        let (cached, purged, last, epoch) = shared
            .tail
            .read(|tail| (tail.cached(start, end_exclusive, bytes_max), tail.purged(), tail.last(), tail.epoch()));
        if let Some(entries) = cached {
            return Ok(entries);
        }
        let end = end_exclusive.min(last.map_or(0, |last| last.index + 1));
        if start >= end {
            return Ok(Vec::new());
        }
        if let Some(purged) = purged.filter(|purged| start <= purged.index) {
            return Err(StoreError::Purged { wanted: start, purged: purged.index });
        }
        let read = shared.segments.read(start, end, bytes_max);
        // A purge or truncation meanwhile explains a missing entry; nothing else does.
        match shared.tail.read(|tail| (tail.purged(), tail.epoch())) {
            (Some(purged), _) if start <= purged.index => {
                Err(StoreError::Purged { wanted: start, purged: purged.index })
            }
            (_, now) if now != epoch => self.read(start, end_exclusive, bytes_max),
            _ => read,
        }
    }

    /// The vote, durable or on its way.
    pub fn vote(&self) -> Option<VoteRecord> {
        self.shared().tail.read(|tail| tail.vote)
    }

    /// Committed position as last saved; may be older than the truth after a crash.
    pub fn committed(&self) -> Option<LogPosition> {
        self.shared().tail.read(|tail| tail.committed)
    }

    /// Saves a vote; `done` runs after the fsync, and after those of earlier appends.
    pub fn save_vote(&self, vote: VoteRecord, done: Done) {
        let shared = self.shared();
        let _order = shared.lock_order();
        if planted::is(Bug::VoteNotSaved) {
            shared.tail.write(|tail| tail.vote = Some(vote));
            return done(Ok(()));
        }
        shared.segments.put_vote(vote);
        shared.tail.write(|tail| tail.vote = Some(vote));
        shared.queue.push(Job { vote: Some(vote), ..shared.job(None, Some(done)) });
    }

    /// Appends entries right after the last one. Readable when it returns; `done` runs after the fsync.
    pub fn append(&self, entries: Vec<StoredEntry>, done: Done) -> Result<(), StoreError> {
        let shared = self.shared();
        let _order = shared.lock_order();
        shared.queue.check()?;
        let (mut previous, crc) = shared.tail.read(|tail| (tail.last(), tail.last_crc()));
        for entry in &entries {
            check_follows(previous, entry.position)?;
            previous = Some(entry.position);
        }
        let crcs = shared.segments.put_entries(crc, &entries);
        shared.tail.write(|tail| tail.push(entries.into_iter().zip(crcs).collect()));
        shared.enqueue(previous, Some(done));
        Ok(())
    }

    /// Drops all entries after `last`; `None` drops all. What is purged cannot be dropped.
    pub fn truncate_after(&self, last: Option<LogPosition>) -> Result<(), StoreError> {
        let shared = self.shared();
        let _order = shared.lock_order();
        shared.queue.check()?;
        let (purged, old_last) = shared.tail.read(|tail| (tail.purged(), tail.last()));
        let index = |position: Option<LogPosition>| position.map(|position| position.index);
        if index(last) < index(purged) || index(last) > index(old_last) {
            return Err(StoreError::defect(format!(
                "cannot truncate the log after {last:?}: it holds ({purged:?}, {old_last:?}]"
            )));
        }
        if last == old_last {
            return Ok(());
        }
        let crc = match last {
            last if last == purged => shared.tail.read(TailState::purged_crc),
            Some(last) => shared.crc_of(last)?,
            None => 0,
        };
        // First the watermark, so that nothing raises the floor again; then the floor; then the entries.
        shared.tail.write(|tail| tail.truncate(last, crc));
        shared.floor.lower(last, old_last)?;
        if planted::is(Bug::TruncateNotDurable) {
            shared.segments.forget_behind(last);
        } else {
            shared.segments.put_truncated(Link { position: last, crc });
        }
        shared.enqueue(last, None);
        Ok(())
    }

    /// Drops entries up to and with `upto`, which a durable snapshot covers. May lie beyond the last one.
    pub fn purge(&self, upto: LogPosition) -> Result<(), StoreError> {
        let shared = self.shared();
        let _order = shared.lock_order();
        shared.queue.check()?;
        let (purged, last) = shared.tail.read(|tail| (tail.purged(), tail.last()));
        if purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        let inside = last.is_some_and(|last| upto.index <= last.index);
        let crc = if inside { shared.crc_of(upto)? } else { 0 };
        let upto = Some(upto);
        // First for readers: what they do not find is to be explained.
        if inside {
            shared.tail.write(|tail| tail.purge(upto, crc));
        } else {
            shared.tail.write(|tail| tail.reset(upto, crc));
        }
        shared.segments.put_purged(Link { position: upto, crc });
        shared.enqueue(upto, None);
        Ok(())
    }

    /// Gives the disk back what purged entries still hold of it. Blocks for an fsync.
    pub fn reclaim(&self) -> Result<(), StoreError> {
        let segments = &self.shared().segments;
        segments.remove_purged()?;
        segments.finish_purged();
        self.flush_wal()?;
        segments.remove_purged()
    }

    /// Bytes that wait for the next fsync.
    pub fn unsynced_bytes(&self) -> u64 {
        self.shared().segments.unsynced_bytes()
    }

    /// Bytes of the entries behind `index`; up to a quarter of a MiB more than there are, never read from disk.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.shared().tail.read(|tail| tail.sizes().after(index))
    }

    /// `index`, or a later entry where more than `bytes` lie behind it: one behind which no more do, as low as it is known
    /// without reading.
    pub fn bounded(&self, index: u64, bytes: u64) -> u64 {
        self.shared().tail.read(|tail| match tail.sizes() {
            sizes if sizes.after(index) <= bytes => index,
            sizes => sizes.leaving(bytes).map_or(index, |leaving| leaving.max(index)),
        })
    }

    /// Saves the committed position: with the next fsync, which is not made for it.
    pub fn save_committed(&self, committed: Option<LogPosition>) {
        let shared = self.shared();
        shared.segments.put_committed(committed);
        shared.tail.write(|tail| tail.committed = committed);
    }

    /// Empties the log and lets it begin after `purged`: the repair at start and the install of a snapshot. Durable when
    /// it returns. The floor stays: a log that was cut short must not forget what it had acknowledged.
    pub fn reset_to(&self, purged: LogPosition) -> Result<(), StoreError> {
        let shared = self.shared();
        {
            let _order = shared.lock_order();
            shared.queue.check()?;
            let link = Link { position: Some(purged), crc: 0 };
            shared.tail.write(|tail| tail.reset(Some(purged), 0));
            // Torn between the two, it is done again.
            shared.segments.put_truncated(link);
            shared.segments.put_purged(link);
            shared.enqueue(Some(purged), None);
        }
        self.flush_wal()
    }

    /// Highest index that an fsync covers; 0 when there is none. Only falls by truncation.
    pub fn durable_index(&self) -> u64 {
        self.shared().tail.read(|tail| tail.durable()).map_or(0, |position| position.index)
    }

    /// Blocks until an fsync covers `index`, or the log has failed or closed.
    pub fn wait_durable(&self, index: u64) {
        self.shared().tail.wait_durable(index);
    }

    /// Calls `f` with the durable index whenever it rises. Runs on the flush thread: it must not block.
    pub fn subscribe_durable(&self, f: Box<dyn Fn(u64) + Send + Sync>) {
        self.shared().tail.subscribe(f);
    }

    /// Blocks until all that was written before is fsynced.
    pub fn flush_wal(&self) -> Result<(), StoreError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let done: Done = Box::new(move |result| drop(sender.send(result)));
        let path = self.shared().segments.path();
        // Without the order: whoever holds it may wait for the room that this call is to give.
        self.shared().enqueue(None, Some(done));
        match receiver.recv() {
            Ok(result) => result.map_err(StoreError::io("fsync the log", path)),
            Err(_) => Err(StoreError::Halted("the flush thread is gone".into())),
        }
    }

    /// What the floor holds: the highest position known fsynced before, and the vote with it.
    pub fn floor(&self) -> (Option<LogPosition>, Option<VoteRecord>) {
        self.shared().floor.written()
    }

    /// Figures for metrics.
    pub fn stats(&self) -> LogStats {
        let shared = self.shared();
        let mut stats = shared.queue.stats();
        stats.floor_writes = shared.floor.writes();
        stats.unsynced_bytes = shared.segments.unsynced_bytes();
        shared.tail.read(|tail| {
            stats.cache_bytes = tail.cache_bytes() as u64;
            stats.cache_entries = tail.cache_entries() as u64;
            stats.entries = tail.last().map_or(0, |last| last.index + 1) - tail.first_index();
        });
        stats
    }

    /// Drains what waits, writes the floor and ends the threads. Later calls fail.
    pub fn close(&self) {
        self.0.close();
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl Handle {
    fn close(&self) {
        self.shared.queue.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic there has already reached `on_fatal`, or is a defect that its own message names.
            drop(thread.join());
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock_order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an fsync that covers all written so far. Called with the order held.
    fn enqueue(&self, upto: Option<LogPosition>, done: Option<Done>) {
        self.queue.push(self.job(upto, done));
    }

    fn job(&self, upto: Option<LogPosition>, done: Option<Done>) -> Job {
        Job { upto, epoch: self.tail.read(TailState::epoch), vote: None, done }
    }

    /// Checksum of an entry that the log must hold.
    fn crc_of(&self, position: LogPosition) -> Result<u32, StoreError> {
        if let Some((cached, crc)) = self.tail.read(|tail| tail.cached_crc(position.index)) {
            return same(position, cached).map(|()| crc);
        }
        let (entry, crc) = self.segments.read_one(position.index)?.ok_or_else(|| StoreError::Corrupt {
            what: format!("log entry {}", position.index),
            path: self.segments.path().to_owned(),
            reason: "it is missing".into(),
            part: Part::Log,
        })?;
        same(position, entry.position).map(|()| crc)
    }
}

fn same(asked: LogPosition, found: LogPosition) -> Result<(), StoreError> {
    if asked == found {
        return Ok(());
    }
    Err(StoreError::defect(format!("the log holds {found:?} where {asked:?} was named")))
}

/// The rules of a log: no hole, no older term after a newer one.
fn check_follows(previous: Option<LogPosition>, next: LogPosition) -> Result<(), StoreError> {
    let index = previous.map_or(0, |last| last.index + 1);
    let term = previous.map_or(0, |last| last.term);
    if next.index == index && next.term >= term {
        return Ok(());
    }
    Err(StoreError::defect(format!("cannot append {next:?} after {previous:?}")))
}

#[cfg(test)]
mod tests;
