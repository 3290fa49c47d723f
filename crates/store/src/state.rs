//! The replicated state of one group: what is applied, and the database that holds it.
//!
//! Invariants:
//! - Rows, group facts, applied position, membership and chains of a batch are one write; without a WAL, a crash falls
//!   back to the last atomic flush as a whole, and the Raft log replays from there.
//! - One writer at a time; a batch is written only on the state it was begun on, and only forwards.
//! - [`StateStore::durable_applied`] never exceeds what a power cut leaves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use holdfast_model::id::GroupId;
use holdfast_model::state::Sys;
use holdfast_wire::durable::{self, AppliedRecord};
use holdfast_wire::internal::v1::LogId;
use rocksdb::{ReadOptions, ReadTier};

use crate::batch::{ApplyBatch, Ready};
use crate::error::StoreError;
use crate::generation::{Generation, GroupDir};
use crate::keyspace::{Family, sys};
use crate::log::LogPosition;
use crate::marker::DataDir;
use crate::options;
use crate::room::Room;
use crate::view::View;

const LIVE_TABLE_BYTES: &str = "rocksdb.live-sst-files-size";
const BLOB_BYTES: &str = "rocksdb.total-blob-file-size";
const BLOB_GARBAGE_BYTES: &str = "rocksdb.live-blob-file-garbage-size";
/// Besides tables, a rewrite takes options files and a piece of the manifest.
const REWRITE_SLACK: u64 = 1 << 20;
/// Parts that room is given back in: what one takes meanwhile is about as much of the whole.
const RECLAIM_PARTS: u16 = 16;
/// Attempts at a view between two batches, before it waits for the writer.
const VIEW_TRIES: usize = 16;

/// How far a state is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Applied {
    /// Last entry applied.
    pub position: Option<LogPosition>,
    /// Encoded internal `StoredMembership`; empty = none.
    pub membership: Bytes,
    /// Chain over the entries.
    pub entry_chain: [u8; 32],
    /// Chain over the effects.
    pub effect_chain: [u8; 32],
}

impl Applied {
    /// Index of the last entry; 0 when there is none.
    pub fn index(&self) -> u64 {
        self.position.map_or(0, |position| position.index)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let Self { position, membership, entry_chain, effect_chain } = self.clone();
        let position = position.map(|at| LogId { term: at.term, node: at.node, index: at.index });
        durable::encode_applied(&AppliedRecord { position, membership, entry_chain, effect_chain })
    }

    fn decode(bytes: &[u8]) -> Result<Self, holdfast_wire::DecodeError> {
        let AppliedRecord { position, membership, entry_chain, effect_chain } = durable::decode_applied(bytes)?;
        let position = position.map(|at| LogPosition { term: at.term, node: at.node, index: at.index });
        Ok(Self { position, membership, entry_chain, effect_chain })
    }
}

/// Applied position and group facts as the database has them. Before the first batch there are none.
pub(crate) fn read_heads(generation: &Generation, options: &ReadOptions) -> Result<(Applied, Sys), StoreError> {
    let applied = match generation.get(Family::Sys, &sys::APPLIED, options)? {
        Some(value) => Applied::decode(&value).map_err(generation.corrupt(Family::Sys))?,
        None => Applied::default(),
    };
    let facts = match generation.get(Family::Sys, &sys::FACTS, options)? {
        Some(value) => durable::decode_sys(&value).map_err(generation.corrupt(Family::Sys))?,
        None => Sys::default(),
    };
    Ok((applied, facts))
}

/// What readers see: a database, and its heads as of a sequence number.
pub(crate) struct Published {
    pub(crate) generation: Arc<Generation>,
    pub(crate) sequence: u64,
    pub(crate) applied: Arc<Applied>,
    pub(crate) sys: Arc<Sys>,
}

impl Published {
    pub(crate) fn load(generation: Generation) -> Result<Self, StoreError> {
        let (applied, sys) = read_heads(&generation, &ReadOptions::default())?;
        let sequence = generation.db().latest_sequence_number();
        Ok(Self { generation: Arc::new(generation), sequence, applied: Arc::new(applied), sys: Arc::new(sys) })
    }
}

/// The state of one group. Cheap to clone.
#[derive(Clone)]
pub struct StateStore(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) group: GroupId,
    pub(crate) dir: GroupDir,
    pub(crate) published: ArcSwap<Published>,
    /// Held by whoever writes or replaces the database.
    writer: Mutex<()>,
}

/// Figures of a state database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateStats {
    /// Bytes not flushed yet.
    pub memtable_bytes: u64,
    /// Bytes of blocks of tables in memory, at most what is set aside for them.
    pub cache_bytes: u64,
    /// Bytes of table files.
    pub table_bytes: u64,
    /// Bytes of blob files.
    pub blob_bytes: u64,
    /// Bytes that compaction still has to rewrite.
    pub compaction_pending_bytes: u64,
    /// Last applied index.
    pub applied_index: u64,
    /// Last applied index that a power cut leaves.
    pub durable_index: u64,
}

impl StateStore {
    /// Opens the state of a group, or makes an empty one. Finishes or removes what a crash left half done.
    pub fn open(data: &DataDir, group: GroupId) -> Result<Self, StoreError> {
        let dir = GroupDir::open(data.path(), group)?;
        let path = match dir.recover()? {
            Some(path) => path,
            None => {
                let (number, building) = dir.next()?;
                drop(Generation::open(&building, group)?);
                dir.switch(number)?
            }
        };
        let published = Published::load(Generation::open(&path, group)?)?;
        let published = ArcSwap::from_pointee(published);
        Ok(Self(Arc::new(Inner { group, dir, published, writer: Mutex::new(()) })))
    }

    /// How far it is.
    pub fn applied(&self) -> Applied {
        Applied::clone(&self.0.published.load().applied)
    }

    /// Number of this installation: another one after every start and every install, also where both states are at one
    /// index. Never 0.
    pub fn installation(&self) -> u64 {
        self.0.published.load().generation.installation()
    }

    /// Group facts.
    pub fn sys(&self) -> Arc<Sys> {
        Arc::clone(&self.0.published.load().sys)
    }

    /// Begins a batch on the present state.
    pub fn begin(&self) -> ApplyBatch {
        ApplyBatch::new(&self.0.published.load())
    }

    /// Writes a batch as one. Fails without effect when the state moved on since [`StateStore::begin`].
    pub fn commit(&self, batch: ApplyBatch) -> Result<(), StoreError> {
        self.commit_by(batch, |generation, ready| generation.write(ready.writes(generation)?))
    }

    /// As [`StateStore::commit`]; on a full disk it waits until a flush that failed for it was made up for.
    pub fn commit_in(&self, room: &Room, batch: ApplyBatch) -> Result<(), StoreError> {
        self.commit_by(batch, |generation, ready| room.retry(|| generation.try_write(ready.writes(generation)?)))
    }

    fn commit_by(
        &self,
        batch: ApplyBatch,
        write: impl FnOnce(&Generation, &Ready) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let _writer = self.lock();
        let current = self.0.published.load_full();
        let ready = batch.finish(&current)?;
        write(&current.generation, &ready)?;
        current.generation.users().learn(ready.numbers, ready.rows);
        self.0.published.store(Arc::new(Published {
            generation: Arc::clone(&current.generation),
            sequence: current.generation.db().latest_sequence_number(),
            applied: Arc::new(ready.applied),
            sys: ready.sys,
        }));
        Ok(())
    }

    /// Makes all that is applied durable. Blocks for the flush, not the writers.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.0.published.load_full().generation.flush()
    }

    /// Index up to which the state survives a power cut, so the log may be purged to it; 0 = nothing. Read from the
    /// persisted tier of the database, so flushes that RocksDB chose itself count.
    pub fn durable_applied(&self) -> u64 {
        self.durable_position().ok().flatten().map_or(0, |position| position.index)
    }

    /// As [`StateStore::durable_applied`], with term and node, and telling nothing from index 0.
    pub fn durable_position(&self) -> Result<Option<LogPosition>, StoreError> {
        let current = self.0.published.load_full();
        let mut options = ReadOptions::default();
        // Without a WAL, this tier skips the memtables: what it finds is in synced table files.
        options.set_read_tier(ReadTier::Persisted);
        let value = current.generation.get(Family::Sys, &sys::APPLIED, &options)?;
        let applied = value.map(|value| Applied::decode(&value).map_err(current.generation.corrupt(Family::Sys)));
        Ok(applied.transpose()?.and_then(|applied| applied.position))
    }

    /// A consistent view; later batches and installs do not change it.
    pub fn view(&self) -> View {
        for _ in 0..VIEW_TRIES {
            let current = self.0.published.load();
            let view = View::new(&current);
            if view.in_step(&current) {
                return view;
            }
            // A batch is written and about to be published: a matter of microseconds.
            std::thread::yield_now();
        }
        let _writer = self.lock();
        View::new(&self.0.published.load())
    }

    /// Bytes in memory alone, which the next flush writes to the disk.
    pub fn unflushed_bytes(&self) -> u64 {
        let current = self.0.published.load_full();
        Family::ALL.into_iter().map(|family| current.generation.property(family, options::MEMTABLES_PROPERTY)).sum()
    }

    /// While `on`, the database rewrites its tables only in [`StateStore::reclaim`]. A state that is installed later begins
    /// without it, so it is said again and again.
    pub fn set_frugal(&self, on: bool) {
        self.0.published.load_full().generation.set_frugal(on);
    }

    /// Gives the disk back what deleted and replaced records still hold of it, as far as the `spare` bytes allow that
    /// rewriting takes meanwhile. What a checkpoint holds stays until that goes. Blocks.
    pub fn reclaim(&self, spare: impl Fn() -> u64) -> Result<(), StoreError> {
        let current = self.0.published.load_full();
        let generation = &current.generation;
        // First the tables alone, a part of the users at a time: only they tell which payloads nobody needs.
        for family in [Family::Rec, Family::Chg] {
            for part in 0..RECLAIM_PARTS {
                let bytes = generation.property(family, LIVE_TABLE_BYTES) / u64::from(RECLAIM_PARTS);
                if spare() < 2 * bytes + REWRITE_SLACK {
                    return Ok(());
                }
                let bound = |part: u16| (part * (u16::MAX / RECLAIM_PARTS)).to_be_bytes();
                let first = (part > 0).then(|| bound(part));
                let last = (part + 1 < RECLAIM_PARTS).then(|| bound(part + 1));
                let [first, last] = [&first, &last].map(|key| key.as_ref().map(|key| &key[..]));
                generation.rewrite(family, first, last, 0.0)?;
            }
        }
        // Then the payloads that share a file with those, the oldest first, as many as there is room for.
        let bytes = generation.property(Family::Rec, BLOB_BYTES);
        let garbage = generation.property(Family::Rec, BLOB_GARBAGE_BYTES);
        let (live, spare) = (bytes.saturating_sub(garbage), spare() / 2);
        if garbage < bytes / 8 || spare == 0 {
            return Ok(());
        }
        let share = if live <= spare { 1.0 } else { spare as f64 / live as f64 };
        generation.rewrite(Family::Rec, None, None, share)
    }

    /// Figures for metrics.
    pub fn stats(&self) -> StateStats {
        let current = self.0.published.load_full();
        let sum = |property: &str| Family::ALL.into_iter().map(|one| current.generation.property(one, property)).sum();
        StateStats {
            memtable_bytes: sum(options::MEMTABLES_PROPERTY),
            // One cache for all families.
            cache_bytes: current.generation.property(Family::Rec, "rocksdb.block-cache-usage"),
            table_bytes: sum("rocksdb.total-sst-files-size"),
            blob_bytes: sum(BLOB_BYTES),
            compaction_pending_bytes: sum("rocksdb.estimate-pending-compaction-bytes"),
            applied_index: current.applied.index(),
            durable_index: self.durable_applied(),
        }
    }

    /// Excludes other writers.
    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
