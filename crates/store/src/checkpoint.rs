//! Checkpoints of the state: taken as hard links, read for the archive, and installed in place of the state.
//!
//! Invariants:
//! - What a checkpoint says of itself is read from inside it, not from the state it was taken of.
//! - A checkpoint is durable, name included, when it is answered.
//! - An install changes nothing until the new database is complete, durable and opened once; the switch is one rename.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::id::GroupId;
use holdfast_model::state::Sys;
use rocksdb::ReadOptions;
use rocksdb::checkpoint::Checkpoint;

use crate::error::{Part, StoreError};
use crate::files;
use crate::generation::Generation;
use crate::keyspace::{Family, sys};
use crate::load::RawRow;
use crate::marker::DataDir;
use crate::planted::{self, Bug};
use crate::room::Room;
use crate::scan::{Bounds, Scan};
use crate::state::{Applied, Published, StateStore};
use crate::view::View;

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointInfo {
    /// How far it is.
    pub applied: Applied,
    /// Names and lengths of its files, by name.
    pub files: Vec<(String, u64)>,
}

impl StateStore {
    /// As [`StateStore::checkpoint`], and not durable: for whoever reads it and removes it in this process.
    pub fn checkpoint_to_read(&self, into: &Path) -> Result<(), StoreError> {
        let current = self.0.published.load_full();
        current.generation.check_writable()?;
        let of_checkpoint = |action| StoreError::rocks(Part::State, action, into);
        let checkpoint = Checkpoint::new(current.generation.db()).map_err(of_checkpoint("begin checkpoint"))?;
        checkpoint.create_checkpoint(into).map_err(of_checkpoint("take checkpoint"))
    }

    /// Takes a checkpoint into a directory that does not exist yet, on the same file system. It flushes first, so a
    /// caller in a hurry calls [`StateStore::flush`] in the background before.
    pub fn checkpoint(&self, into: &Path) -> Result<CheckpointInfo, StoreError> {
        self.checkpoint_to_read(into)?;
        let info = describe(into, self.0.group)?;
        for (name, _) in &info.files {
            files::sync_file(&into.join(name))?;
        }
        files::sync_dir(into)?;
        files::sync_dir(&files::parent(into))?;
        Ok(info)
    }

    /// Replaces the state by a checkpoint of the same group, atomically and durably. The checkpoint is left as it is.
    /// Views taken before stay readable.
    pub fn install(&self, checkpoint_dir: &Path) -> Result<(), StoreError> {
        let _writer = self.lock();
        let path = self.stage(checkpoint_dir)?;
        self.publish(self.staged(&path)?);
        Ok(())
    }

    /// As [`StateStore::install`]; on a full disk it keeps the old state until there is room, and goes on then.
    pub fn install_in(&self, room: &Room, checkpoint_dir: &Path) -> Result<(), StoreError> {
        let _writer = self.lock();
        let path = room.retry(|| self.stage(checkpoint_dir))?;
        // `CURRENT` names it by now: only this one will do.
        self.publish(room.retry(|| self.staged(&path))?);
        Ok(())
    }

    /// Builds a database of a checkpoint and lets `CURRENT` name it. Called with the writer held.
    fn stage(&self, checkpoint_dir: &Path) -> Result<PathBuf, StoreError> {
        let info = describe(checkpoint_dir, self.0.group)?;
        let (number, building) = self.0.dir.next()?;
        for (name, _) in &info.files {
            adopt(&checkpoint_dir.join(name), &building.join(name))?;
        }
        files::sync_dir(&building)?;
        let adopted = describe(&building, self.0.group)?.applied;
        if adopted != info.applied {
            return Err(StoreError::defect("the checkpoint changed while it was installed"));
        }
        self.0.dir.switch(number)
    }

    fn staged(&self, path: &Path) -> Result<Published, StoreError> {
        let next = Generation::open(path, self.0.group)?;
        if planted::is(Bug::DedupForgotten) {
            let mut batch = rocksdb::WriteBatch::default();
            batch.delete_range_cf(next.family(Family::Req)?, &[][..], &[0xff; 64][..]);
            next.write(batch)?;
        }
        Published::load(next)
    }

    fn publish(&self, next: Published) {
        let previous = self.0.published.swap(Arc::new(next));
        previous.generation.retire();
    }
}

/// Names of what [`StateStore::keep_aside`] keeps begin so.
const ASIDE: &str = "diverged-";

impl StateStore {
    /// Keeps the state as it is below `quarantine/` of the data directory, as hard links, and deletes what was kept there
    /// before by this call: the newest one is what an operator wants to look at, and the disk must not fill up.
    pub fn keep_aside(&self, data: &DataDir) -> Result<PathBuf, StoreError> {
        let quarantine = data.path().join("quarantine");
        files::create_dir(&quarantine)?;
        forget_aside(data)?;
        let into = quarantine.join(format!("{ASIDE}{:020}", self.applied().index()));
        self.checkpoint(&into)?;
        Ok(into)
    }
}

/// Deletes what [`StateStore::keep_aside`] kept, and says whether there was anything.
pub fn forget_aside(data: &DataDir) -> Result<bool, StoreError> {
    let quarantine = data.path().join("quarantine");
    let mut found = false;
    if !quarantine.is_dir() {
        return Ok(found);
    }
    for name in files::names(&quarantine)?.into_iter().filter(|name| name.starts_with(ASIDE)) {
        files::remove_dir(&quarantine.join(name))?;
        found = true;
    }
    Ok(found)
}

/// Opens a checkpoint and says what is in it.
fn describe(dir: &Path, group: GroupId) -> Result<CheckpointInfo, StoreError> {
    let store = open_checkpoint(dir)?;
    store.published.generation.check_group(group)?;
    let mut files = Vec::new();
    for name in files::names(dir)? {
        let length = fs::metadata(dir.join(&name)).map_err(StoreError::io("inspect", dir))?.len();
        // Opening leaves an info log, which is no part of the state.
        if !name.starts_with("LOG") && name != "LOCK" {
            files.push((name, length));
        }
    }
    Ok(CheckpointInfo { applied: store.applied().clone(), files })
}

/// Links what is immutable, copies what RocksDB may append to; copies all across file systems.
fn adopt(from: &Path, to: &Path) -> Result<(), StoreError> {
    let immutable = from.extension().is_some_and(|ext| ext == "sst" || ext == "blob");
    if !immutable || fs::hard_link(from, to).is_err() {
        fs::copy(from, to).map_err(StoreError::io("copy", from))?;
    }
    files::sync_file(to)
}

/// A checkpoint opened for reading.
pub struct CheckpointStore {
    published: Published,
}

/// Opens a checkpoint without changing it.
pub fn open_checkpoint(path: &Path) -> Result<CheckpointStore, StoreError> {
    Ok(CheckpointStore { published: Published::load(Generation::open_read_only(path)?)? })
}

impl CheckpointStore {
    /// How far it is.
    pub fn applied(&self) -> &Applied {
        &self.published.applied
    }

    /// Group facts.
    pub fn sys(&self) -> &Arc<Sys> {
        &self.published.sys
    }

    /// A view of it.
    pub fn view(&self) -> View {
        View::new(&self.published)
    }

    /// All rows in canonical order: family tag, then key. Block checksums are verified, caches left alone.
    pub fn scan(&self) -> StateScan<'_> {
        StateScan { generation: &self.published.generation, families: Family::ALL.iter(), running: None, failed: false }
    }
}

/// A running scan over all families.
pub struct StateScan<'a> {
    generation: &'a Generation,
    families: std::slice::Iter<'static, Family>,
    running: Option<(Family, Scan<'a>)>,
    failed: bool,
}

impl StateScan<'_> {
    fn step(&mut self) -> Result<Option<RawRow>, StoreError> {
        loop {
            if let Some((family, scan)) = &mut self.running {
                while let Some((key, value)) = scan.next()? {
                    // Which group a database is for belongs to the copy, not to the state.
                    if *family == Family::Sys && key == sys::GROUP {
                        continue;
                    }
                    return Ok(Some(RawRow { family: family.tag(), key: key.to_vec(), value: value.to_vec() }));
                }
            }
            let Some(family) = self.families.next() else { return Ok(None) };
            let mut options = ReadOptions::default();
            options.set_verify_checksums(true);
            options.fill_cache(false);
            options.set_readahead_size(2 << 20);
            self.running = Some((*family, Scan::new(self.generation, *family, Bounds::all(), options)?));
        }
    }
}

impl Iterator for StateScan<'_> {
    type Item = Result<RawRow, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step().transpose();
        self.failed = matches!(step, Some(Err(_)) | None);
        step
    }
}
