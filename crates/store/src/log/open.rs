//! The database of the log, and what opening it proves.
//!
//! RocksDB's WAL does not prove that it is whole: a flipped length or a zeroed header drops the rest of a block without
//! a word. So opening walks every entry: contiguous, terms not decreasing, each linked to the one before by checksum.
//!
//! Invariants:
//! - What is broken is cut off durably before anything is appended, and the floor is raised over it first, so that a node
//!   which lost entries stays recovering through any number of restarts.
//! - Every batch is kept until an fsync covers it. RocksDB never goes on from a WAL that it could not write for want of
//!   room; such a database is closed, opened again once there is some, and given those batches once more, in order.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::BufMut;
use holdfast_model::id::GroupId;
use rocksdb::{ColumnFamily, DB, FlushOptions, ReadOptions, WriteBatch, WriteOptions};

use crate::error::{Part, StoreError};
use crate::files;
use crate::log::floor::{Floor, FloorFile, FloorKeeper, Found};
use crate::log::frame;
use crate::log::rows::{entry_key, fact_key, parse_entry_key, parse_position, parse_purged, parse_vote, put_position};
use crate::log::tail::TailState;
use crate::log::types::{LogOptions, LogPosition, LogReport, StoredEntry, VoteRecord};
use crate::log::wal;
use crate::log::walk::Walked;
use crate::marker::DataDir;
use crate::options::{self, Sizes};
use crate::planted;
use crate::room::Room;
use crate::stall;

const LOG: &str = "log";
const META: &str = "meta";
const VOTE: u8 = 1;
const COMMITTED: u8 = 2;
const PURGED: u8 = 3;
/// Opening takes room as well, and whoever fills the disk may have taken it again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// `raft/`: entries under `group | index`, facts under `group | tag`.
pub(crate) struct LogDb {
    open: RwLock<Open>,
    unsynced: Mutex<Unsynced>,
    path: PathBuf,
    room: Option<Arc<Room>>,
    on_reopened: Arc<dyn Fn(String) + Send + Sync>,
}

/// The database, and how often it was opened again.
struct Open {
    /// `None` only when it could not be opened again: this node ends.
    db: Option<DB>,
    times: u64,
    /// Of this opening: RocksDB rewrites nothing by itself.
    frugal: AtomicBool,
}

/// What no fsync covers yet.
#[derive(Default)]
struct Unsynced {
    batches: Vec<WriteBatch>,
    /// All up to this sequence number is covered.
    synced: u64,
    /// A WAL could not be written for want of room: whatever it says from now on has that cause.
    wal_was_short: bool,
}

/// A log ready for use.
pub(crate) struct Opened {
    pub(crate) db: LogDb,
    pub(crate) state: TailState,
    pub(crate) floor: FloorKeeper,
}

pub(crate) fn open(data: &DataDir, group: GroupId, options: &LogOptions) -> Result<(Opened, LogReport), StoreError> {
    let floor_dir = options.floor_dir.as_deref().unwrap_or(data.path());
    let (mut floor_file, found) = FloorFile::open(floor_dir, &data.identity(), group)?;
    let mut report = LogReport::default();
    let mut reasons = Vec::new();
    let (db, walked) = open_or_quarantine(data, group, options, found, &mut report, &mut reasons)?;

    if let Some((index, seen, reason)) = &walked.broken {
        reasons.push(format!("entry {index} {reason}; it and all after it were cut off"));
        report.truncated_from = Some(*index);
        let Floor { position, vote } = floor_file.floor();
        floor_file.write(Floor { position: position.max(Some(*seen)), vote })?;
        let mut batch = WriteBatch::default();
        db.delete_range(&mut batch, group, *index, u64::MAX)?;
        db.write(batch)?;
    }
    let mut vote = walked.vote;
    if floor_file.floor().vote > vote {
        reasons.push("the stored vote is older than the one on the floor".into());
        vote = floor_file.floor().vote;
        let mut batch = WriteBatch::default();
        if let Some(vote) = vote {
            db.put_vote(&mut batch, group, vote)?;
        }
        db.write(batch)?;
    }
    if found == Found::Damaged {
        reasons.push(format!("both slots of {} are damaged", floor_file.path().display()));
        floor_file.write(Floor { position: walked.last.position, vote })?;
    }
    if found == Found::Missing && walked.last.position.is_some() {
        report.floor_missing = Some(floor_file.path().to_owned());
    }
    if found == Found::Floor && floor_file.is_spoilt() {
        report.floor_spoilt = Some(floor_file.path().to_owned());
    }
    let floor = floor_file.floor().position;
    if walked.last.position < floor {
        reasons.push(format!("the log ends at {:?}, the floor says {floor:?} was fsynced", walked.last.position));
    }
    // What was read is durable from here on, whatever the kernel still held back.
    db.sync()?;
    report.floor = floor;
    report.recovering = (!reasons.is_empty()).then(|| reasons.join("; "));
    let Walked { committed, purged, last, sizes, .. } = walked;
    let first = purged.position.map_or(0, |purged| purged.index + 1);
    report.entries = last.position.map_or(0, |last| last.index + 1) - first;
    let state = TailState::opened(purged, last, vote, committed, sizes);
    Ok((Opened { db, state, floor: FloorKeeper::new(floor_file) }, report))
}

/// A database that does not open, or whose tables are damaged, is set aside; the floor keeps the node from forgetting.
/// But first a WAL that a power cut tore is cut where it was torn.
fn open_or_quarantine(
    data: &DataDir,
    group: GroupId,
    options: &LogOptions,
    found: Found,
    report: &mut LogReport,
    reasons: &mut Vec<String>,
) -> Result<(LogDb, Walked), StoreError> {
    let path = data.path().join("raft");
    let walk = |db: LogDb| db.walk(group).map(|walked| (db, walked));
    let open = || LogDb::open(&path, options).and_then(walk);
    let mut opened = open();
    if matches!(opened, Err(StoreError::Corrupt { .. })) {
        report.torn = wal::cut_torn_tail(&path)?;
        opened = report.torn.as_ref().map_or(opened, |_| open());
    }
    match opened {
        Err(StoreError::Corrupt { reason, .. }) if found == Found::Floor => {
            reasons.push(format!("the log database is damaged and was set aside: {reason}"));
            report.quarantined = Some(set_aside(data)?);
            open()
        }
        other => other,
    }
}

/// Moves the database away and makes room for an empty one.
pub(crate) fn set_aside(data: &DataDir) -> Result<PathBuf, StoreError> {
    let path = data.path().join("raft");
    let target = files::quarantine(data.path(), &path)?;
    files::create_dir(&path)?;
    Ok(target)
}

fn open_db(path: &Path) -> Result<DB, StoreError> {
    let sizes = Sizes::at(&files::parent(path));
    let families = options::log_families(&[LOG, META, "default"], sizes);
    DB::open_cf_descriptors(&options::log_db(sizes), path, families).map_err(StoreError::rocks(Part::Log, "open", path))
}

impl LogDb {
    fn open(path: &Path, options: &LogOptions) -> Result<Self, StoreError> {
        Ok(Self {
            open: RwLock::new(Open { db: Some(open_db(path)?), times: 0, frugal: AtomicBool::new(false) }),
            unsynced: Mutex::default(),
            path: path.to_owned(),
            room: options.room.clone(),
            on_reopened: options.on_reopened.clone(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What memtables hold; a family that cannot say counts as nothing. Waits for no database that is opened again.
    pub(crate) fn memtable_bytes(&self) -> u64 {
        let Ok(open) = self.open.try_read() else { return 0 };
        let of = |db: &DB, name| {
            db.property_int_value_cf(self.family(db, name).ok()?, options::MEMTABLES_PROPERTY).ok().flatten()
        };
        open.db.as_ref().map_or(0, |db| [LOG, META].into_iter().filter_map(|name| of(db, name)).sum())
    }

    /// While `on`, tables are rewritten only in [`LogDb::reclaim`]. Waits for no database that is opened again, so it is said
    /// again and again.
    pub(crate) fn set_frugal(&self, on: bool) {
        let Ok(open) = self.open.try_read() else { return };
        if let Some(db) = open.db.as_ref().filter(|_| open.frugal.swap(on, Ordering::Relaxed) != on) {
            options::set_auto_compactions(db, [LOG, META].into_iter(), !on);
        }
    }

    /// Hands a batch to the operating system's care with the next [`LogDb::sync`], not before.
    ///
    /// What RocksDB cannot write to its WAL for want of room it never goes on from by itself, so nothing is handed to it
    /// before there is some; who takes the last of it in that very moment makes the database be opened again. A flush of
    /// its own that finds no room it makes up for later, and refuses writes until then.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let bytes = batch.size_in_bytes();
        let mut batch = Some(batch);
        let Some(room) = &self.room else { return self.write_once(&mut batch, false).1 };
        room.wait_for(bytes);
        loop {
            let mut seen = 0;
            let written = room.retry_log(|| {
                let (times, written) = self.write_once(&mut batch, true);
                seen = times;
                match written {
                    // No use in waiting for RocksDB.
                    Err(error) if error.is_no_space_of_wal() => Ok(Err(error)),
                    other => other.map(Ok),
                }
            });
            match written.and_then(|written| written) {
                Err(error) if self.was_short(seen, &error) && !room.has_given_up() => {
                    self.reopen(room, seen, &error)?;
                }
                other => return other,
            }
        }
    }

    /// Takes the batch once it is written. Gives also how often the database was opened before.
    fn write_once(&self, batch: &mut Option<WriteBatch>, no_slowdown: bool) -> (u64, Result<(), StoreError>) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let mut options = WriteOptions::default();
        options.set_no_slowdown(no_slowdown);
        let again = WriteBatch::from_data(batch.as_ref().map_or(&[], WriteBatch::data));
        let write = |db: &DB| db.write_opt(again, &options).map_err(StoreError::rocks(Part::Log, "write", &self.path));
        let written = self.db_of(&open).and_then(write);
        self.note(&written);
        if written.is_ok() {
            self.unsynced().batches.extend(batch.take());
        }
        (open.times, written)
    }

    /// Called by whoever met a failure, before the database is let go.
    fn note(&self, result: &Result<(), StoreError>) {
        if result.as_ref().is_err_and(StoreError::is_no_space_of_wal) {
            self.unsynced().wal_was_short = true;
        }
    }

    /// True for a failure that comes of want of room. Only who meets it first is told so; the others hear of an earlier
    /// error, so they ask once everyone has let go of the database.
    fn was_short(&self, seen: u64, error: &StoreError) -> bool {
        if error.is_no_space() {
            return true;
        }
        let open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.times != seen || self.unsynced().wal_was_short
    }

    /// Closes the database and opens it again once there is room, unless that was done since it was opened for the
    /// `seen`th time. What no fsync covered is written again.
    fn reopen(&self, room: &Room, seen: u64, cause: &StoreError) -> Result<(), StoreError> {
        let bytes = self.unsynced().batches.iter().map(WriteBatch::size_in_bytes).sum::<usize>() as u64;
        // A start flushes what the WALs hold.
        room.wait_for_all(bytes + self.memtable_bytes() / 2);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.times != seen {
            return Ok(());
        }
        loop {
            drop(open.db.take());
            match self.open_again() {
                Ok(db) => {
                    open.db = Some(db);
                    open.times += 1;
                    open.frugal = AtomicBool::new(false);
                    self.unsynced().wal_was_short = false;
                    (self.on_reopened)(cause.to_string());
                    return Ok(());
                }
                Err(error) if error.is_no_space() && !room.has_given_up() => room.pause(REOPEN_PAUSE),
                Err(error) => return Err(error),
            }
            room.wait_for_all(bytes);
        }
    }

    fn open_again(&self) -> Result<DB, StoreError> {
        let db = open_db(&self.path)?;
        let unsynced = self.unsynced();
        let found = db.latest_sequence_number();
        if found < unsynced.synced {
            return Err(StoreError::Corrupt {
                what: "the log".into(),
                path: self.path.clone(),
                reason: format!(
                    "it was fsynced up to write {}, and ends at {found} after a full disk",
                    unsynced.synced
                ),
                part: Part::Log,
            });
        }
        for batch in &unsynced.batches {
            let again = WriteBatch::from_data(batch.data());
            db.write(again).map_err(StoreError::rocks(Part::Log, "write", &self.path))?;
        }
        Ok(db)
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with the database. It must not come back here.
    fn with<T>(&self, f: impl FnOnce(&DB) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        f(self.db_of(&open)?)
    }

    fn db_of<'a>(&self, open: &'a Open) -> Result<&'a DB, StoreError> {
        open.db.as_ref().ok_or_else(|| StoreError::Halted("the log could not be opened again".into()))
    }

    /// Gives the room of entries up to `purged` back: their WALs and tables. Takes the room of one write buffer meanwhile.
    pub(crate) fn reclaim(&self, group: GroupId, purged: u64) -> Result<(), StoreError> {
        self.with(|db| {
            stall::check(db).map_err(StoreError::rocks(Part::Log, "write", &self.path))?;
            let mut families = Vec::new();
            // A WAL goes with the last family that has something in it.
            for name in [LOG, META, "default"] {
                families.push(self.family(db, name)?);
            }
            let mut options = FlushOptions::default();
            options.set_wait(true);
            db.flush_cfs_opt(&families, &options).map_err(StoreError::rocks(Part::Log, "flush", &self.path))?;
            let (first, last) = (entry_key(group, 0), entry_key(group, purged));
            let log = self.family(db, LOG)?;
            db.delete_file_in_range_cf(log, first, last).map_err(StoreError::rocks(Part::Log, "tidy", &self.path))?;
            db.compact_range_cf(log, Some(first), Some(last));
            Ok(())
        })
    }

    /// One `write` and one `fdatasync` for all that was written before. A WAL that finds no room is waited for and written
    /// anew; any other failure is final.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        loop {
            let (seen, synced) = {
                let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
                let db = self.db_of(&open)?;
                let count = self.unsynced().batches.len();
                let sequence = db.latest_sequence_number();
                let synced = db
                    .flush_wal(!planted::leaves_out_fsync())
                    .map_err(StoreError::rocks(Part::Log, "fsync", &self.path))
                    .inspect(|()| {
                        let mut unsynced = self.unsynced();
                        unsynced.batches.drain(..count);
                        unsynced.synced = sequence;
                    });
                self.note(&synced);
                (open.times, synced)
            };
            let Err(error) = synced else { return Ok(()) };
            match self.room.as_ref().filter(|room| self.was_short(seen, &error) && !room.has_given_up()) {
                Some(room) => self.reopen(room, seen, &error)?,
                None => return Err(error),
            }
        }
    }

    pub(crate) fn put_entry(
        &self,
        batch: &mut WriteBatch,
        group: GroupId,
        index: u64,
        frame: &[u8],
    ) -> Result<(), StoreError> {
        self.with(|db| {
            batch.put_cf(self.family(db, LOG)?, entry_key(group, index), frame);
            Ok(())
        })
    }

    /// Deletes entries `[from, to)`.
    pub(crate) fn delete_range(
        &self,
        batch: &mut WriteBatch,
        group: GroupId,
        from: u64,
        to: u64,
    ) -> Result<(), StoreError> {
        self.with(|db| {
            batch.delete_range_cf(self.family(db, LOG)?, entry_key(group, from), entry_key(group, to));
            Ok(())
        })
    }

    pub(crate) fn put_vote(&self, batch: &mut WriteBatch, group: GroupId, vote: VoteRecord) -> Result<(), StoreError> {
        let mut value = Vec::new();
        value.put_u64(vote.term);
        value.put_u64(vote.node);
        value.put_u8(vote.committed.into());
        self.put_fact(batch, group, VOTE, value)
    }

    pub(crate) fn put_committed(
        &self,
        batch: &mut WriteBatch,
        group: GroupId,
        committed: Option<LogPosition>,
    ) -> Result<(), StoreError> {
        let mut value = Vec::new();
        if let Some(position) = committed {
            put_position(&mut value, position);
        }
        self.put_fact(batch, group, COMMITTED, value)
    }

    /// The purge marker, with the checksum that the first kept entry links to.
    pub(crate) fn put_purged(
        &self,
        batch: &mut WriteBatch,
        group: GroupId,
        purged: LogPosition,
        crc: u32,
    ) -> Result<(), StoreError> {
        let mut value = Vec::new();
        put_position(&mut value, purged);
        value.put_u32(crc);
        self.put_fact(batch, group, PURGED, value)
    }

    /// Entries `[start, end)` that must all be there, up to `bytes_max` but at least one.
    pub(crate) fn read(
        &self,
        group: GroupId,
        start: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(entry_key(group, end).to_vec());
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let db = self.db_of(&open)?;
        let mut rows = db.raw_iterator_cf_opt(self.family(db, LOG)?, options);
        rows.seek(entry_key(group, start));
        let mut out = Vec::new();
        let mut bytes = 0;
        for index in start..end {
            let Some((key, value)) = rows.item() else {
                rows.status().map_err(StoreError::rocks(Part::Log, "scan", &self.path))?;
                return Err(self.bad_entry(index, "it is missing"));
            };
            if key != entry_key(group, index) {
                return Err(self.bad_entry(index, "it is missing"));
            }
            let framed = frame::decode(index, value).map_err(|reason| self.bad_entry(index, reason))?;
            bytes += framed.entry.bytes.len();
            if bytes > bytes_max && !out.is_empty() {
                break;
            }
            out.push(framed.entry);
            rows.next();
        }
        Ok(out)
    }

    /// One entry and its checksum.
    pub(crate) fn read_one(&self, group: GroupId, index: u64) -> Result<Option<(StoredEntry, u32)>, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let db = self.db_of(&open)?;
        let value = db.get_pinned_cf(self.family(db, LOG)?, entry_key(group, index));
        let Some(value) = value.map_err(StoreError::rocks(Part::Log, "read", &self.path))? else { return Ok(None) };
        let framed = frame::decode(index, &value).map_err(|reason| self.bad_entry(index, reason))?;
        Ok(Some((framed.entry, framed.crc)))
    }

    /// Reads the facts and walks all entries.
    fn walk(&self, group: GroupId) -> Result<Walked, StoreError> {
        let vote = self.fact(group, VOTE)?.map(|value| parse_vote(&value).ok_or_else(|| self.bad_fact("vote")));
        let purged = self.fact(group, PURGED)?.map(|value| parse_purged(&value).ok_or_else(|| self.bad_fact("marker")));
        let committed = self.fact(group, COMMITTED)?;
        let purged = purged.transpose()?.unwrap_or_default();
        // Only a hint: without it the node learns it from the leader.
        let committed = committed.and_then(|value| parse_position(&value).map(|(position, _)| position));
        let mut walked = Walked::begin(vote.transpose()?, committed, purged);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(entry_key(group, u64::MAX).to_vec());
        options.fill_cache(false);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let db = self.db_of(&open)?;
        let mut rows = db.raw_iterator_cf_opt(self.family(db, LOG)?, options);
        rows.seek(entry_key(group, purged.position.map_or(0, |purged| purged.index + 1)));
        while let Some((key, value)) = rows.item() {
            walked.step(parse_entry_key(key), value);
            rows.next();
        }
        rows.status().map_err(StoreError::rocks(Part::Log, "walk", &self.path))?;
        Ok(walked)
    }

    fn put_fact(&self, batch: &mut WriteBatch, group: GroupId, tag: u8, mut value: Vec<u8>) -> Result<(), StoreError> {
        let crc = crc32c::crc32c(&value);
        value.put_u32(crc);
        self.with(|db| {
            batch.put_cf(self.family(db, META)?, fact_key(group, tag), value);
            Ok(())
        })
    }

    fn fact(&self, group: GroupId, tag: u8) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.with(|db| {
            let value = db.get_cf(self.family(db, META)?, fact_key(group, tag));
            value.map_err(StoreError::rocks(Part::Log, "read", &self.path))
        });
        let Some(value) = value? else { return Ok(None) };
        match value.split_last_chunk::<4>() {
            Some((body, crc)) if crc32c::crc32c(body) == u32::from_be_bytes(*crc) => Ok(Some(body.to_vec())),
            _ => Err(self.bad_fact("fact")),
        }
    }

    fn family<'a>(&self, db: &'a DB, name: &str) -> Result<&'a ColumnFamily, StoreError> {
        db.cf_handle(name).ok_or_else(|| self.bad_fact("column family"))
    }

    fn bad_entry(&self, index: u64, reason: &str) -> StoreError {
        StoreError::Corrupt {
            what: format!("log entry {index}"),
            path: self.path.clone(),
            reason: reason.into(),
            part: Part::Log,
        }
    }

    fn bad_fact(&self, what: &str) -> StoreError {
        StoreError::Corrupt {
            what: format!("a {what} of the log"),
            path: self.path.clone(),
            reason: "it does not decode".into(),
            part: Part::Log,
        }
    }
}
