//! Group commit: one thread turns whatever waits into one fsync, and tells the others in order.
//!
//! Invariants: a job is queued after its write; the batch is taken before the fsync; so the fsync covers every job of
//! the batch. Callbacks run in queue order. After a failed fsync nothing is written, fsynced or called back as done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::error::StoreError;
use crate::log::Shared;
use crate::log::types::{Done, FSYNC_BUCKETS_MICROS, LogPosition, LogStats, VoteRecord};
use crate::planted::{self, Bug};

/// Jobs that may wait before writers do.
const QUEUE_JOBS_MAX: usize = 16_384;
/// Pause between two writes of the floor: how far it may lag, and how often it competes for the disk.
const FLOOR_INTERVAL: Duration = Duration::from_millis(10);

/// Something that waits for an fsync.
pub(crate) struct Job {
    /// The log reaches so far with it.
    pub(crate) upto: Option<LogPosition>,
    /// Epoch of the tail it was written in.
    pub(crate) epoch: u64,
    /// Vote that it saves.
    pub(crate) vote: Option<VoteRecord>,
    /// Whom to tell.
    pub(crate) done: Option<Done>,
}

/// Jobs in order.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    work: Condvar,
    room: Condvar,
}

#[derive(Default)]
struct QueueState {
    jobs: Vec<Job>,
    closing: bool,
    failed: Option<String>,
    stats: LogStats,
}

impl Queue {
    /// Adds a job; waits while too many do. A failed or closed queue answers at once.
    pub(crate) fn push(&self, job: Job) {
        let mut state = self.lock();
        while state.jobs.len() >= QUEUE_JOBS_MAX && state.failed.is_none() && !state.closing {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(reason) = state.stopped() {
            drop(state);
            if let Some(done) = job.done {
                done(Err(io::Error::other(reason)));
            }
            return;
        }
        state.jobs.push(job);
        drop(state);
        self.work.notify_one();
    }

    /// Refuses further work after a failure or a close.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.lock().stopped().map_or(Ok(()), |reason| Err(StoreError::Halted(reason)))
    }

    /// Lets the thread end once nothing waits.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_all();
        self.room.notify_all();
    }

    pub(crate) fn stats(&self) -> LogStats {
        let state = self.lock();
        LogStats { queue_len: state.jobs.len() as u64, ..state.stats }
    }

    /// All that waits; `None` when closed and drained.
    fn take(&self) -> Option<Vec<Job>> {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.closing {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.room.notify_all();
        Some(std::mem::take(&mut state.jobs))
    }

    fn fail(&self, reason: &str) -> Vec<Job> {
        let mut state = self.lock();
        state.failed = Some(reason.to_owned());
        self.room.notify_all();
        std::mem::take(&mut state.jobs)
    }

    fn measured(&self, took: Duration, jobs: usize) {
        let mut state = self.lock();
        let micros = took.as_micros() as u64;
        let bucket = FSYNC_BUCKETS_MICROS.iter().position(|bound| micros <= *bound);
        let bucket = bucket.unwrap_or(FSYNC_BUCKETS_MICROS.len());
        state.stats.fsyncs += 1;
        state.stats.jobs += jobs as u64;
        state.stats.fsync_nanos_total += took.as_nanos() as u64;
        state.stats.fsync_buckets[bucket] += 1;
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    fn stopped(&self) -> Option<String> {
        let closed = || self.closing.then(|| "the log is closed".to_owned());
        self.failed.clone().or_else(closed)
    }
}

/// Starts one of the log's threads. A panic in it is fatal: the others would wait for ever.
pub(crate) fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    run: fn(&Shared) -> Result<(), String>,
) -> Result<JoinHandle<()>, StoreError> {
    let path = shared.segments.path().to_owned();
    let shared = Arc::clone(shared);
    let body = move || {
        let ended = catch_unwind(AssertUnwindSafe(|| run(&shared)));
        let reason = match ended {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => reason,
            Err(_) => "a thread of the log panicked".to_owned(),
        };
        let waiting = shared.queue.fail(&reason);
        shared.tail.stop();
        shared.floor.close();
        tell_failed(waiting, &reason);
        (shared.on_fatal)(reason);
    };
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StoreError::io("start a thread for", &path))
}

/// Body of the flush thread.
pub(crate) fn run_flush(shared: &Shared) -> Result<(), String> {
    while let Some(jobs) = shared.queue.take() {
        let started = Instant::now();
        if let Err(error) = shared.segments.sync() {
            // What the kernel dropped is unknown: trying again could report success for lost bytes.
            let reason = format!("fsync of the log failed: {error}");
            tell_failed(jobs, &reason);
            return Err(reason);
        }
        shared.queue.measured(started.elapsed(), jobs.len());
        let before = shared.tail.read(|tail| tail.durable());
        for job in &jobs {
            shared.tail.raise(job.upto, job.epoch);
            if job.vote.is_some() {
                shared.tail.write(|tail| tail.durable_vote = job.vote);
                shared.floor.hurry();
            }
        }
        for job in jobs {
            if let Some(done) = job.done {
                done(Ok(()));
            }
        }
        let after = shared.tail.read(|tail| tail.durable());
        if let Some(durable) = after.filter(|_| before != after) {
            shared.tail.announce(durable.index);
            shared.floor.changed();
        } else if shared.segments.first_purged().is_some() {
            // Its thread deletes them.
            shared.floor.changed();
        }
    }
    shared.tail.stop();
    shared.floor.close();
    Ok(())
}

/// Body of the floor thread: writes what is durable by now, at most every [`FLOOR_INTERVAL`], a vote at once.
pub(crate) fn run_floor(shared: &Shared) -> Result<(), String> {
    loop {
        let closing = shared.floor.wait(FLOOR_INTERVAL);
        if planted::is(Bug::AckBeforeFsync) && !closing {
            // What says how far the log was fsynced would give the bug away.
            continue;
        }
        // What cannot be deleted now is tried again, and takes no more than room.
        drop(shared.segments.remove_purged());
        let raised = shared.floor.raise(|| shared.tail.read(|tail| (tail.durable(), tail.durable_vote)));
        raised.map_err(|error| format!("the floor cannot be written: {error}"))?;
        if closing {
            return Ok(());
        }
    }
}

fn tell_failed(jobs: Vec<Job>, reason: &str) {
    for done in jobs.into_iter().filter_map(|job| job.done) {
        done(Err(io::Error::other(reason.to_owned())));
    }
}
