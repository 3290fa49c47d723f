//! One state database on disk, and which of them is the state: `state/<group>/CURRENT` names `db-<n>`.
//!
//! Invariants:
//! - A database is built as `building-<n>`, complete and durable; then `CURRENT` names `db-<n>`, durably: the commit
//!   point; then the directory is renamed to that name. A start finishes the rename, and deletes what `CURRENT` does
//!   not name.
//! - `CURRENT` missing beside a `db-<n>` never comes from a crash: it is refused, not taken for an empty state.
//! - A replaced database stays on disk while a view still reads it.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_model::id::GroupId;
use rocksdb::{
    BottommostLevelCompaction, ColumnFamily, CompactOptions, DB, DBPinnableSlice, DBRawIterator, ReadOptions,
};

use crate::error::{HINT_STATE, Part, StoreError};
use crate::files;
use crate::keyspace::{Family, sys};
use crate::options::{self, Sizes};
use crate::stall;
use crate::users::Users;

const CURRENT: &str = "CURRENT";

/// An open state database.
pub(crate) struct Generation {
    db: DB,
    path: PathBuf,
    /// Tells this opening of this database from every other one.
    installation: u64,
    /// Delete the directory once nobody reads it.
    retired: AtomicBool,
    /// RocksDB rewrites nothing by itself.
    frugal: AtomicBool,
    users: Users,
}

impl Generation {
    /// Opens a database that exists, or a new one; it must be of this group.
    pub(crate) fn open(path: &Path, group: GroupId) -> Result<Self, StoreError> {
        let sizes = Sizes::at(&files::parent(path));
        let db = DB::open_cf_descriptors(&options::state_db(sizes), path, options::state_families(sizes))
            .map_err(StoreError::rocks(Part::State, "open", path))?;
        let generation = Self::new(db, path);
        if generation.group()?.is_none() && generation.db.latest_sequence_number() == 0 {
            let mut batch = rocksdb::WriteBatch::default();
            batch.put_cf(generation.family(Family::Sys)?, sys::GROUP, group.0.to_be_bytes());
            generation.write(batch)?;
            generation.flush()?;
        }
        generation.check_group(group)?;
        Ok(generation)
    }

    /// Opens a checkpoint without writing to it.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let sizes = Sizes::at(path);
        let mut options = options::state_db(sizes);
        options.create_if_missing(false);
        options.create_missing_column_families(false);
        let db = DB::open_cf_descriptors_read_only(&options, path, options::state_families(sizes), false)
            .map_err(StoreError::rocks(Part::State, "open checkpoint", path))?;
        Ok(Self::new(db, path))
    }

    fn new(db: DB, path: &Path) -> Self {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        // Its keys are random in each process: what was said of an earlier run's state is not taken for this one's.
        let random = RandomState::new().hash_one(OPENED.fetch_add(1, Ordering::Relaxed));
        Self {
            db,
            path: path.to_owned(),
            installation: random.max(1),
            retired: AtomicBool::new(false),
            frugal: AtomicBool::new(false),
            users: Users::default(),
        }
    }

    /// Number of this installation of the state; never 0.
    pub(crate) fn installation(&self) -> u64 {
        self.installation
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Users that batches wrote last.
    pub(crate) fn users(&self) -> &Users {
        &self.users
    }

    /// Column family of a kind of row.
    pub(crate) fn family(&self, family: Family) -> Result<&ColumnFamily, StoreError> {
        self.db.cf_handle(family.name()).ok_or_else(|| StoreError::Corrupt {
            what: format!("column family `{}`", family.name()),
            path: self.path.clone(),
            reason: "it is missing".into(),
            part: Part::State,
        })
    }

    /// Value of a key.
    pub(crate) fn get(
        &self,
        family: Family,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Option<DBPinnableSlice<'_>>, StoreError> {
        let found = self.db.get_pinned_cf_opt(self.family(family)?, key, options);
        found.map_err(StoreError::rocks(Part::State, "read", &self.path))
    }

    /// Iterator over a family; the caller sets bounds and order in the options, and seeks.
    pub(crate) fn iterate(&self, family: Family, options: ReadOptions) -> Result<DBRawIterator<'_>, StoreError> {
        Ok(self.db.raw_iterator_cf_opt(self.family(family)?, options))
    }

    /// Says why an iterator stopped, when it did not come to its end.
    pub(crate) fn finished(&self, iterator: &DBRawIterator<'_>) -> Result<(), StoreError> {
        iterator.status().map_err(StoreError::rocks(Part::State, "scan", &self.path))
    }

    /// While `on`, tables are rewritten only when that is asked for.
    pub(crate) fn set_frugal(&self, on: bool) {
        if self.frugal.swap(on, Ordering::Relaxed) != on {
            options::set_auto_compactions(&self.db, Family::ALL.into_iter().map(Family::name), !on);
        }
    }

    /// Writes without WAL: the Raft log is this database's WAL.
    pub(crate) fn write(&self, batch: rocksdb::WriteBatch) -> Result<(), StoreError> {
        self.write_opt(batch, false)
    }

    /// As [`Generation::write`], and gives a write that would have to wait back as stalled.
    pub(crate) fn try_write(&self, batch: rocksdb::WriteBatch) -> Result<(), StoreError> {
        self.write_opt(batch, true)
    }

    fn write_opt(&self, batch: rocksdb::WriteBatch, no_slowdown: bool) -> Result<(), StoreError> {
        let mut options = rocksdb::WriteOptions::default();
        options.disable_wal(true);
        options.set_no_slowdown(no_slowdown);
        self.db.write_opt(batch, &options).map_err(StoreError::rocks(Part::State, "write", &self.path))
    }

    /// A figure that RocksDB keeps of a family; 0 when it does not say.
    pub(crate) fn property(&self, family: Family, name: &str) -> u64 {
        let handle = self.family(family).ok();
        handle.and_then(|handle| self.db.property_int_value_cf(handle, name).ok().flatten()).unwrap_or(0)
    }

    /// Rewrites what lies between two keys, without what was deleted or replaced. Of the blob files, that share which is
    /// the oldest is rewritten too.
    pub(crate) fn rewrite(
        &self,
        family: Family,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        blobs: f64,
    ) -> Result<(), StoreError> {
        let handle = self.family(family)?;
        let cutoff = |share: f64| {
            let share = share.to_string();
            let set = self.db.set_options_cf(handle, &[("blob_garbage_collection_age_cutoff", share.as_str())]);
            set.map_err(StoreError::rocks(Part::State, "tune", &self.path))
        };
        let has_blobs = family == Family::Rec;
        if has_blobs {
            cutoff(blobs)?;
        }
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.db.compact_range_cf_opt(handle, from, to, &options);
        if has_blobs { cutoff(options::BLOB_AGE_CUTOFF) } else { Ok(()) }
    }

    /// Fails with what RocksDB stopped for, if it did ([`stall::check`]).
    pub(crate) fn check_writable(&self) -> Result<(), StoreError> {
        stall::check(&self.db).map_err(StoreError::rocks(Part::State, "write", &self.path))
    }

    /// Flushes all families as one.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.check_writable()?;
        let mut families = Vec::with_capacity(Family::ALL.len());
        for family in Family::ALL {
            families.push(self.family(family)?);
        }
        let mut options = rocksdb::FlushOptions::default();
        options.set_wait(true);
        self.db.flush_cfs_opt(&families, &options).map_err(StoreError::rocks(Part::State, "flush", &self.path))
    }

    /// A row that does not decode.
    pub(crate) fn corrupt(&self, family: Family) -> impl FnOnce(holdfast_wire::DecodeError) -> StoreError {
        StoreError::row(family.name(), &self.path)
    }

    /// Deletes the directory when the last reader is gone.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Refuses the database of another group.
    pub(crate) fn check_group(&self, group: GroupId) -> Result<(), StoreError> {
        match self.group()? {
            Some(found) if found == group => Ok(()),
            found => Err(StoreError::Mismatch {
                what: format!("{} holds {found:?}, not {group:?}", self.path.display()),
                hint: "use a state or snapshot of this group",
            }),
        }
    }

    fn group(&self) -> Result<Option<GroupId>, StoreError> {
        let Some(value) = self.get(Family::Sys, &sys::GROUP, &ReadOptions::default())? else { return Ok(None) };
        match <[u8; 4]>::try_from(&value[..]) {
            Ok(bytes) => Ok(Some(GroupId(u32::from_be_bytes(bytes)))),
            Err(_) => Err(self.corrupt(Family::Sys)(holdfast_wire::DecodeError::new("group", "not 4 bytes"))),
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.retired.load(Ordering::Acquire) {
            // Its files are unlinked while still open; a failure leaves an orphan for the next start.
            self.db.cancel_all_background_work(true);
            drop(files::remove_dir(&self.path));
        }
    }
}

/// The directory `state/<group>/`.
#[derive(Debug, Clone)]
pub(crate) struct GroupDir {
    dir: PathBuf,
}

impl GroupDir {
    /// Makes the directory when it is not there.
    pub(crate) fn open(data: &Path, group: GroupId) -> Result<Self, StoreError> {
        let dir = data.join("state").join(group.0.to_string());
        files::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// Path of the current database, after finishing what a crash left; `None` before the first one.
    pub(crate) fn recover(&self) -> Result<Option<PathBuf>, StoreError> {
        let Some(number) = self.current()? else {
            if let Some(name) = files::names(&self.dir)?.into_iter().find(|name| name.starts_with("db-")) {
                return Err(StoreError::Mismatch {
                    what: format!("{} has {name} but no {CURRENT}, which no crash leaves", self.dir.display()),
                    hint: HINT_STATE,
                });
            }
            self.delete_orphans(None)?;
            return Ok(None);
        };
        let (built, named) = (self.building(number), self.named(number));
        if !named.exists() && built.exists() {
            files::rename(&built, &named)?;
        }
        if !named.exists() {
            return Err(StoreError::Corrupt {
                what: "the state pointer".into(),
                path: self.dir.join(CURRENT),
                reason: format!("it names db-{number}, which is not there"),
                part: Part::State,
            });
        }
        self.delete_orphans(Some(number))?;
        Ok(Some(named))
    }

    /// An empty directory to build the next database in, and its number.
    pub(crate) fn next(&self) -> Result<(u64, PathBuf), StoreError> {
        let number = self.current()?.unwrap_or(0) + 1;
        let path = self.building(number);
        files::remove_dir(&path)?;
        files::create_dir(&path)?;
        Ok((number, path))
    }

    /// Makes `building-<number>` the state. The caller has closed it, complete and durable. Returns its new path.
    pub(crate) fn switch(&self, number: u64) -> Result<PathBuf, StoreError> {
        files::sync_dir(&self.building(number))?;
        files::sync_dir(&self.dir)?;
        let name = format!("db-{number}\n");
        let crc = crc32c::crc32c(name.as_bytes());
        files::replace_file(&self.dir.join(CURRENT), format!("{name}{crc:08x}\n").as_bytes())?;
        files::rename(&self.building(number), &self.named(number))?;
        Ok(self.named(number))
    }

    fn current(&self) -> Result<Option<u64>, StoreError> {
        let path = self.dir.join(CURRENT);
        let Some(text) = files::read_text(&path)? else { return Ok(None) };
        let text = text.unwrap_or_default();
        let parsed = text.split_once('\n').and_then(|(name, crc)| {
            let crc = u32::from_str_radix(crc.trim_end(), 16).ok()?;
            let whole = crc32c::crc32c(format!("{name}\n").as_bytes()) == crc;
            name.strip_prefix("db-").filter(|_| whole)?.parse().ok()
        });
        parsed.map(Some).ok_or_else(|| StoreError::Corrupt {
            what: "the state pointer".into(),
            path,
            reason: "it does not parse, or its checksum does not match".into(),
            part: Part::State,
        })
    }

    fn delete_orphans(&self, kept: Option<u64>) -> Result<(), StoreError> {
        let kept = kept.map(|number| format!("db-{number}"));
        for name in files::names(&self.dir)? {
            let ours = name.starts_with("db-") || name.starts_with("building-");
            if ours && Some(&name) != kept.as_ref() {
                files::remove_dir(&self.dir.join(name))?;
            }
        }
        files::sync_dir(&self.dir)
    }

    fn building(&self, number: u64) -> PathBuf {
        self.dir.join(format!("building-{number}"))
    }

    fn named(&self, number: u64) -> PathBuf {
        self.dir.join(format!("db-{number}"))
    }
}
