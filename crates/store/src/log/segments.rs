//! The log on disk: segments, files that are only ever written at their end.
//!
//! Records wait in memory for the fsync that covers them: one write and one fdatasync for all that came meanwhile. A segment
//! that is long enough is followed by the next, which begins with the facts (vote, purge marker), so that one whose
//! entries are all purged can be deleted. Nothing is ever copied: an entry is written once, and read where it was written.
//!
//! Invariants:
//! - Records lie in the order in which they were put. A write is fsynced before the next one begins, in the next segment too.
//! - A segment is deleted only when the marker that purges its entries, and a later segment with the facts, are fsynced.
//! - Where every entry lies is known by marks: from the last mark at or before it, reading comes to it before the next
//!   mark. An entry that was dropped lies behind no mark that reading would start from.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_model::id::GroupId;

use crate::error::{Part, StoreError};
use crate::files;
use crate::log::frame;
use crate::log::record::{self, Item, Kind, Salt, Seed};
use crate::log::tail::Link;
use crate::log::types::{LogOptions, LogPosition, StoredEntry, VoteRecord};
use crate::options::Sizes;
use crate::planted;
use crate::room::Room;

/// Bytes of entries from one mark to the next: what reading one of them costs.
const MARK_BYTES: u32 = 64 << 10;
/// A buffer is used again up to this size.
const SPARE_BYTES_MAX: usize = 4 << 20;
/// Whoever filled the disk may have taken what was waited for.
const AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// `raft/`.
pub(crate) struct Segments {
    dir: PathBuf,
    group: GroupId,
    /// A segment that reaches so far is followed by the next.
    limit: u32,
    /// Blocks are taken by so many bytes ahead.
    ahead: u64,
    room: Option<Arc<Room>>,
    on_waited: Arc<dyn Fn(String) + Send + Sync>,
    state: Mutex<State>,
    /// Of whoever writes.
    out: Mutex<Out>,
}

/// What is in the segments, and what is to be.
pub(crate) struct State {
    /// What no write has taken yet, at the end of the last segment.
    pending: Write,
    salt: Salt,
    /// It holds more than the facts that a segment begins with.
    is_news: bool,
    /// What is being written, in front of it.
    writing: Option<Arc<Write>>,
    spare: Vec<u8>,
    pub(crate) held: VecDeque<Held>,
    pub(crate) marks: VecDeque<Mark>,
    pub(crate) vote: Option<VoteRecord>,
    pub(crate) committed: Option<LogPosition>,
    is_committed_new: bool,
    pub(crate) purged: Link,
    /// The next entry does not follow the last one: reading must begin at it.
    is_apart: bool,
    /// Segment that was fsynced last, and how far the log was purged when that write began.
    durable: (u64, Option<u64>),
}

/// A segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) number: u64,
    /// Highest index of an entry in it, dropped ones too.
    pub(crate) last: Option<u64>,
    /// Its end.
    pub(crate) end: u32,
}

/// Where entries from `index` on lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) index: u64,
    pub(crate) number: u64,
    pub(crate) at: u32,
}

/// Records that go to the disk together.
#[derive(Debug, Default)]
struct Write {
    number: u64,
    seed: Seed,
    base: u32,
    bytes: Vec<u8>,
    purged: Option<u64>,
}

impl Write {
    fn end(&self) -> u32 {
        // Segments are far below 4 GiB: their limit and one write.
        self.base + self.bytes.len() as u32
    }

    fn put<T>(&mut self, group: GroupId, kind: Kind, body: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        record::put(&mut self.bytes, (self.seed, self.base, group), kind, body)
    }
}

/// Bytes of a segment that hold some entries.
struct Region {
    seed: Seed,
    /// Where in the segment they begin.
    origin: u32,
    bytes: Vec<u8>,
    /// From this index on the next mark counts.
    until: u64,
}

#[derive(Default)]
struct Out {
    file: Option<(u64, Arc<File>)>,
    allocated: u64,
}

pub(crate) fn file_name(number: u64) -> String {
    format!("{number:06}.log")
}

impl State {
    /// As it was found; the next record begins segment `next`.
    pub(crate) fn found(salt: Salt, held: VecDeque<Held>, marks: VecDeque<Mark>, next: u64) -> Self {
        Self {
            pending: Write { number: next, ..Write::default() },
            salt,
            is_news: false,
            writing: None,
            spare: Vec::new(),
            held,
            marks,
            vote: None,
            committed: None,
            is_committed_new: false,
            purged: Link::default(),
            is_apart: false,
            // Of what was found it is not known how much of it a power cut leaves.
            durable: (0, None),
        }
    }

    /// Lets `pending` begin a segment.
    fn begin(&mut self, group: GroupId, number: u64) {
        let before = self.held.back().map_or(0, |held| held.number);
        let bytes = std::mem::take(&mut self.spare);
        self.pending = Write { number, seed: self.salt.seed(number), base: 0, bytes, purged: None };
        // It was in a segment that may be deleted.
        self.is_committed_new = self.committed.is_some();
        self.held.push_back(Held { number, last: None, end: 0 });
        self.pending.put(group, Kind::Start, |out| record::put_start(out, number, before));
        if let Some(vote) = self.vote {
            self.pending.put(group, Kind::Vote, |out| record::put_vote(out, vote));
        }
        let purged = self.purged;
        if purged.position.is_some() {
            self.pending.put(group, Kind::Purged, |out| record::put_link(out, purged));
        }
    }

    /// True when everything in `held` is of no use.
    fn is_purged(held: &Held, purged: Option<u64>) -> bool {
        held.last.is_none_or(|last| purged.is_some_and(|purged| last <= purged))
    }

    /// Adds an entry, and where it lies.
    fn put_entry(&mut self, group: GroupId, crc: u32, entry: &StoredEntry) -> u32 {
        let index = entry.position.index;
        let (number, at) = (self.pending.number, self.pending.end());
        push_mark(&mut self.marks, &mut self.is_apart, Mark { index, number, at });
        let crc = self.pending.put(group, Kind::Entry, |out| frame::put(out, crc, entry));
        if let Some(held) = self.held.back_mut() {
            held.last = held.last.max(Some(index));
        }
        crc
    }
}

/// Notes where an entry lies, unless the mark before it is near. `is_apart`: it does not follow the entry before it.
pub(crate) fn push_mark(marks: &mut VecDeque<Mark>, is_apart: &mut bool, mark: Mark) {
    let is_near = |last: &Mark| last.number == mark.number && last.index < mark.index && mark.at - last.at < MARK_BYTES;
    if std::mem::take(is_apart) || !marks.back().is_some_and(is_near) {
        marks.push_back(mark);
    }
}

/// Forgets where entries from `from` on lie. What replaces them begins with a mark of its own.
pub(crate) fn truncate_marks(marks: &mut VecDeque<Mark>, from: u64) {
    while marks.back().is_some_and(|mark| mark.index >= from) {
        marks.pop_back();
    }
}

impl Segments {
    pub(crate) fn new(dir: &Path, group: GroupId, options: &LogOptions, sizes: Sizes, state: State) -> Self {
        let limit = options.segment_bytes.unwrap_or_else(|| sizes.segment());
        Self {
            dir: dir.to_owned(),
            group,
            limit,
            ahead: u64::from(limit / 16),
            room: options.room.clone(),
            on_waited: options.on_waited.clone(),
            state: Mutex::new(state),
            out: Mutex::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Bytes that no fsync covers yet.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        let state = self.lock();
        let writing = state.writing.as_ref().map_or(0, |write| write.bytes.len());
        (writing + if state.is_news { state.pending.bytes.len() } else { 0 }) as u64
    }

    /// Adds entries, which follow `crc`; gives their checksums. Waits for room.
    pub(crate) fn put_entries(&self, mut crc: u32, entries: &[StoredEntry]) -> Vec<u32> {
        let bytes: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
        self.put(bytes, |state, group| {
            let put = |entry| {
                crc = state.put_entry(group, crc, entry);
                crc
            };
            entries.iter().map(put).collect()
        })
    }

    pub(crate) fn put_vote(&self, vote: VoteRecord) {
        self.put(0, |state, group| {
            state.vote = Some(vote);
            state.pending.put(group, Kind::Vote, |out| record::put_vote(out, vote));
        });
    }

    /// Written with whatever is written next.
    pub(crate) fn put_committed(&self, committed: Option<LogPosition>) {
        let mut state = self.lock();
        state.committed = committed;
        state.is_committed_new = true;
    }

    /// The purge marker, with the checksum that the first kept entry links to.
    pub(crate) fn put_purged(&self, purged: Link) {
        self.put(0, |state, group| {
            state.purged = purged;
            state.is_apart = true;
            state.pending.put(group, Kind::Purged, |out| record::put_link(out, purged));
            let first = purged.position.map_or(0, |position| position.index + 1);
            while state.marks.get(1).is_some_and(|mark| mark.index <= first) {
                state.marks.pop_front();
            }
        });
    }

    /// Drops all entries behind `last`.
    pub(crate) fn put_truncated(&self, last: Link) {
        self.forget_behind(last.position);
        self.put(0, |state, group| {
            state.pending.put(group, Kind::Truncated, |out| record::put_link(out, last));
        });
    }

    /// As [`Segments::put_truncated`], and writes nothing.
    pub(crate) fn forget_behind(&self, last: Option<LogPosition>) {
        let mut state = self.lock();
        state.is_apart = true;
        truncate_marks(&mut state.marks, last.map_or(0, |position| position.index + 1));
    }

    /// The next write begins a segment.
    pub(crate) fn begin_anew(&self) {
        self.put(0, |_, _| ());
    }

    fn put<T>(&self, bytes: usize, add: impl FnOnce(&mut State, GroupId) -> T) -> T {
        if let Some(room) = &self.room {
            room.wait_for(bytes);
        }
        let mut state = self.lock();
        if state.held.back().is_none_or(|held| held.number != state.pending.number) {
            let number = state.pending.number;
            state.begin(self.group, number);
        }
        state.is_news = true;
        let given = add(&mut state, self.group);
        let end = state.pending.end();
        if let Some(held) = state.held.back_mut() {
            held.end = end;
        }
        given
    }

    /// One write and one fdatasync for all that was put before. One that finds no room is waited for and done anew; after a
    /// failed fdatasync nothing is.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let write = {
            let mut state = self.lock();
            if !state.is_news {
                return Ok(());
            }
            if std::mem::take(&mut state.is_committed_new)
                && let Some(committed) = state.committed
            {
                state.pending.put(self.group, Kind::Committed, |out| record::put_position(out, committed));
                let end = state.pending.end();
                if let Some(held) = state.held.back_mut() {
                    held.end = end;
                }
            }
            state.is_news = false;
            let (number, seed, end) = (state.pending.number, state.pending.seed, state.pending.end());
            let next = Write { number, seed, base: end, bytes: std::mem::take(&mut state.spare), purged: None };
            let mut write = std::mem::replace(&mut state.pending, next);
            write.purged = state.purged.position.map(|position| position.index);
            if end >= self.limit {
                state.begin(self.group, number + 1);
            }
            let write = Arc::new(write);
            state.writing = Some(write.clone());
            write
        };
        self.write_out(&mut out, &write)?;
        let mut state = self.lock();
        state.writing = None;
        state.durable = (write.number, write.purged);
        if let Ok(Write { mut bytes, .. }) = Arc::try_unwrap(write)
            && bytes.capacity() <= SPARE_BYTES_MAX
        {
            bytes.clear();
            state.spare = bytes;
        }
        Ok(())
    }

    fn write_out(&self, out: &mut Out, write: &Write) -> Result<(), StoreError> {
        let path = self.path_of(write.number);
        loop {
            match self.write_once(out, write, &path) {
                Err(error) if error.is_no_space() => {
                    let Some(room) = self.room.as_ref().filter(|room| !room.has_given_up()) else { return Err(error) };
                    (self.on_waited)(error.to_string());
                    room.wait_for_all(write.bytes.len() as u64);
                    room.pause(AGAIN_PAUSE);
                }
                Err(error) => return Err(error),
                Ok(_) if planted::leaves_out_fsync() => return Ok(()),
                Ok(file) => return file.sync_data().map_err(StoreError::io("fsync", &path)),
            }
        }
    }

    /// Has no effect that matters when it fails: what it wrote is no whole write, and is written over.
    fn write_once(&self, out: &mut Out, write: &Write, path: &Path) -> Result<Arc<File>, StoreError> {
        if out.file.as_ref().is_none_or(|(number, _)| *number != write.number) {
            let file = File::options().create(true).truncate(true).write(true).open(path);
            let file = file.map_err(StoreError::io("create", path))?;
            files::sync_dir(&self.dir)?;
            *out = Out { file: Some((write.number, Arc::new(file))), allocated: 0 };
        }
        let Some((_, file)) = &out.file else { return Err(StoreError::defect("no segment is open")) };
        let end = u64::from(write.end());
        if end > out.allocated {
            let length = (end - out.allocated).next_multiple_of(self.ahead.max(1));
            take_blocks(file, out.allocated, length);
            out.allocated += length;
        }
        file.write_all_at(&write.bytes, write.base.into()).map_err(StoreError::io("write", path))?;
        if write.end() >= self.limit {
            // It is complete: blocks that were taken ahead are given back.
            drop(file.set_len(end));
        }
        Ok(file.clone())
    }

    /// Entries `[start, end)` that must all be there, up to `bytes_max` but at least one.
    pub(crate) fn read(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<StoredEntry>, StoreError> {
        let (mut out, mut bytes) = (Vec::new(), 0);
        let mut next = start;
        self.each(start, |framed| {
            bytes += framed.entry.bytes.len();
            let is_enough = framed.entry.position.index >= end || (bytes > bytes_max && !out.is_empty());
            if !is_enough {
                next = framed.entry.position.index + 1;
                out.push(framed.entry);
            }
            !is_enough && next < end
        })?;
        match out.is_empty() {
            true => Err(self.bad_entry(start, "it is missing")),
            false => Ok(out),
        }
    }

    /// One entry and its checksum.
    pub(crate) fn read_one(&self, index: u64) -> Result<Option<(StoredEntry, u32)>, StoreError> {
        let mut found = None;
        self.each(index, |framed| {
            found = Some((framed.entry, framed.crc));
            false
        })?;
        Ok(found)
    }

    /// Calls `f` with the entries from `start` on, each following the one before, for as long as it says so and there are any.
    fn each(&self, start: u64, mut f: impl FnMut(frame::Framed) -> bool) -> Result<(), StoreError> {
        let mut next = start;
        while let Some(Region { seed, origin, bytes, until }) = self.region(next)? {
            let (mut at, before) = (0, next);
            while next < until && at < bytes.len() {
                let record = record::at(&bytes, at, origin, seed);
                let record = record.ok_or_else(|| self.bad_entry(next, "it is not what was written"))?;
                at = record.at.end;
                if record.kind != Kind::Entry {
                    continue;
                }
                let framed = frame::decode(record.body).map_err(|reason| self.bad_entry(next, reason))?;
                if framed.entry.position.index < next {
                    continue;
                }
                if framed.entry.position.index > next {
                    return Err(self.bad_entry(next, "it is missing"));
                }
                next += 1;
                if !f(framed) {
                    return Ok(());
                }
            }
            if next == before {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Where entry `index` lies, with some behind it; `None` = no such entry was put.
    fn region(&self, index: u64) -> Result<Option<Region>, StoreError> {
        let (mark, seed, until, to, memory) = {
            let state = self.lock();
            let behind = state.marks.partition_point(|mark| mark.index <= index);
            let Some(mark) = behind.checked_sub(1).and_then(|at| state.marks.get(at)).copied() else { return Ok(None) };
            let next = state.marks.get(behind);
            let end = state.held.iter().find(|held| held.number == mark.number).map_or(mark.at, |held| held.end);
            let to = next.filter(|next| next.number == mark.number).map_or(end, |next| next.at);
            let mut memory = Vec::new();
            for write in state.writing.as_deref().into_iter().chain([&state.pending]) {
                if write.number == mark.number && write.end() > mark.at && write.base < to {
                    let (from, upto) = (mark.at.max(write.base) - write.base, to.min(write.end()) - write.base);
                    let part = write.bytes.get(from as usize..upto as usize).unwrap_or_default();
                    memory.push((write.base + from, part.to_vec()));
                }
            }
            (mark, state.salt.seed(mark.number), next.map_or(u64::MAX, |next| next.index), to, memory)
        };
        let on_disk = memory.first().map_or(to, |(at, _)| *at) - mark.at;
        let mut bytes = vec![0; on_disk as usize];
        let path = self.path_of(mark.number);
        if on_disk > 0 {
            let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, mark.at.into()));
            match read {
                // It was purged meanwhile, or is cut off.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                    return Err(self.bad_entry(index, "its segment is gone or too short"));
                }
                read => read.map_err(StoreError::io("read", &path))?,
            }
        }
        memory.into_iter().for_each(|(_, part)| bytes.extend(part));
        Ok(Some(Region { seed, origin: mark.at, bytes, until }))
    }

    /// The first segment, if it may be deleted.
    pub(crate) fn first_purged(&self) -> Option<u64> {
        let state = self.lock();
        let (number, purged) = state.durable;
        let first = state.held.front().filter(|held| held.number < number && State::is_purged(held, purged));
        first.map(|held| held.number)
    }

    /// Deletes the segments whose entries are all purged.
    pub(crate) fn remove_purged(&self) -> Result<(), StoreError> {
        while let Some(number) = self.first_purged() {
            let path = self.path_of(number);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("delete", &path)(error));
                }
                // One that comes back after a power cut is deleted again.
                _ => {
                    let mut state = self.lock();
                    state.held.pop_front_if(|held| held.number == number);
                }
            }
        }
        Ok(())
    }

    /// Lets the next write begin a segment, if all that is in the last one is purged.
    pub(crate) fn finish_purged(&self) {
        let is_due = {
            let state = self.lock();
            let purged = state.purged.position.map(|position| position.index);
            let is_begun = |held: &Held| held.number == state.pending.number && held.end > 0;
            state.held.back().is_some_and(|held| is_begun(held) && State::is_purged(held, purged))
        };
        // Whoever writes may wait for the room that this is to give.
        let out = if is_due { self.out.try_lock().ok() } else { None };
        if out.is_some() {
            let mut state = self.lock();
            // What waits was put into the old one, and is written with it.
            if !state.is_news && state.writing.is_none() {
                let number = state.pending.number;
                state.begin(self.group, number + 1);
                state.is_news = true;
            }
        }
    }

    pub(crate) fn path_of(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    /// For whoever opens it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bad_entry(&self, index: u64, reason: &str) -> StoreError {
        StoreError::Corrupt {
            what: format!("log entry {index}"),
            path: self.dir.clone(),
            reason: reason.into(),
            part: Part::Log,
        }
    }
}

/// Takes blocks ahead, so that an fsync need not. A file system that cannot, or has none, says so when it is written to.
fn take_blocks(file: &File, from: u64, length: u64) {
    let (Ok(from), Ok(length)) = (libc::off_t::try_from(from), libc::off_t::try_from(length)) else { return };
    // SAFETY: a plain system call on a descriptor that `file` owns.
    unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, from, length) };
}

/// Calls `f` with the whole records of a segment.
pub(crate) fn each_record<'a>(bytes: &'a [u8], seed: Seed, mut f: impl FnMut(record::Record<'a>)) {
    record::scan(bytes, seed, |item| {
        if let Item::Record(record) = item {
            f(record);
        }
    });
}
