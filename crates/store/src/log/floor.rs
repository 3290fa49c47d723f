//! The floor: what this node once had fsynced, kept apart from the log, so that a disk that went back in time is seen.
//!
//! One file per group, `floor-<group>`, with two slots a page apart, written in turn: a torn write spoils one of them.
//! A slot: magic, sequence, node id, identity, group, vote, position, CRC32C.
//!
//! Invariants:
//! - The floor is never ahead of what the log had fsynced when it was written.
//! - It rises by itself and falls only by [`FloorKeeper::lower`], durably, before the log gives up what it vouches for.
//!   A floor above the end of the log (a recovering node) is not lowered by a truncation.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BufMut;
use holdfast_model::id::GroupId;

use crate::error::StoreError;
use crate::files;
use crate::log::types::{LogPosition, VoteRecord};
use crate::marker::Identity;

const MAGIC: [u8; 8] = *b"HFFLOOR1";
const SLOT_STRIDE: usize = 4096;
const SLOT_BYTES: usize = 8 + 8 + 8 + 16 + 4 + 18 + 25 + 4;
const CRC_BYTES: usize = 4;

/// The floor file and the thread that waits to write it.
pub(crate) struct FloorKeeper {
    file: Mutex<FloorFile>,
    signal: Mutex<Signal>,
    changed: Condvar,
    writes: AtomicU64,
}

#[derive(Default)]
struct Signal {
    dirty: bool,
    urgent: bool,
    closing: bool,
}

/// The open file, and its newest slot.
pub(crate) struct FloorFile {
    file: File,
    path: PathBuf,
    owner: Owner,
    sequence: u64,
    floor: Floor,
    spoilt: bool,
}

/// Whose floor it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    node_id: u64,
    identity: [u8; 16],
    group: u32,
}

/// What a floor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Floor {
    pub(crate) position: Option<LogPosition>,
    pub(crate) vote: Option<VoteRecord>,
}

/// How the file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// With this floor.
    Floor,
    /// Not at all; it was made.
    Missing,
    /// With neither slot valid.
    Damaged,
}

impl FloorFile {
    /// Opens the floor of a group in `dir`, or makes an empty one.
    pub(crate) fn open(dir: &Path, identity: &Identity, group: GroupId) -> Result<(Self, Found), StoreError> {
        files::create_dir_all(dir)?;
        let path = dir.join(format!("floor-{}", group.0));
        let owner = Owner { node_id: identity.node_id, identity: identity.identity, group: group.0 };
        let missing = !path.exists();
        if missing {
            let mut fresh = encode(&owner, 1, &Floor::default());
            fresh.resize(2 * SLOT_STRIDE, 0);
            files::replace_file(&path, &fresh)?;
        }
        let file = File::options().read(true).write(true).open(&path).map_err(StoreError::io("open", &path))?;
        let bytes = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
        let slots = [0, SLOT_STRIDE].map(|at| bytes.get(at..at + SLOT_BYTES).and_then(decode));
        let spoilt = is_spoilt(&bytes, slots.map(|slot| slot.map(|(_, sequence, _)| sequence)));
        let newest = slots.into_iter().flatten().max_by_key(|(_, sequence, _)| *sequence);
        let Some((found, sequence, floor)) = newest else {
            let this = Self { file, path, owner, sequence: 0, floor: Floor::default(), spoilt };
            return Ok((this, Found::Damaged));
        };
        if found != owner {
            return Err(StoreError::Mismatch {
                what: format!(
                    "{} belongs to node {}, group {}, or to an earlier directory of it",
                    path.display(),
                    found.node_id,
                    found.group
                ),
                hint: "give each node its own floor_dir; remove the file only if its node was replaced",
            });
        }
        let this = Self { file, path, owner, sequence, floor, spoilt };
        Ok((this, if missing { Found::Missing } else { Found::Floor }))
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Something was found in it that no write leaves there: a slot that is neither empty nor whole, or bytes beside the
    /// slots. A crash while a slot was written tears it so, and then the slot says nothing that anybody was told; a disk
    /// that damages its bytes may have taken the newer one, and the other is older than what was fsynced.
    pub(crate) fn is_spoilt(&self) -> bool {
        self.spoilt
    }

    /// What it says.
    pub(crate) fn floor(&self) -> Floor {
        self.floor
    }

    /// Writes the older slot and waits for the disk.
    pub(crate) fn write(&mut self, floor: Floor) -> Result<(), StoreError> {
        let sequence = self.sequence + 1;
        let at = place_of(sequence) * SLOT_STRIDE;
        let slot = encode(&self.owner, sequence, &floor);
        let written = self.file.write_all_at(&slot, at as u64).and_then(|()| self.file.sync_data());
        written.map_err(StoreError::io("write the floor", &self.path))?;
        (self.sequence, self.floor) = (sequence, floor);
        Ok(())
    }
}

impl FloorKeeper {
    pub(crate) fn new(file: FloorFile) -> Self {
        Self { file: Mutex::new(file), signal: Mutex::default(), changed: Condvar::new(), writes: AtomicU64::new(0) }
    }

    /// What the file says.
    pub(crate) fn written(&self) -> (Option<LogPosition>, Option<VoteRecord>) {
        let Floor { position, vote } = self.lock().floor();
        (position, vote)
    }

    /// Writes so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Raises the floor to what is durable. The position is asked for with the file locked, so that a truncation that
    /// lowers it next does so last.
    pub(crate) fn raise(
        &self,
        durable: impl FnOnce() -> (Option<LogPosition>, Option<VoteRecord>),
    ) -> Result<(), StoreError> {
        let mut file = self.lock();
        let (position, vote) = durable();
        let old = file.floor();
        let new = Floor { position: old.position.max(position), vote: old.vote.max(vote) };
        if new == old {
            return Ok(());
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        file.write(new)
    }

    /// Lowers the floor to `last` before the log gives up `(last, old_last]`.
    pub(crate) fn lower(&self, last: Option<LogPosition>, old_last: Option<LogPosition>) -> Result<(), StoreError> {
        let mut file = self.lock();
        let old = file.floor();
        if old.position <= last || old.position > old_last {
            return Ok(());
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        file.write(Floor { position: last, vote: old.vote })
    }

    /// There is something to write, in a while.
    pub(crate) fn changed(&self) {
        self.signal().dirty = true;
        self.changed.notify_all();
    }

    /// There is something to write, now.
    pub(crate) fn hurry(&self) {
        let mut signal = self.signal();
        (signal.dirty, signal.urgent) = (true, true);
        self.changed.notify_all();
    }

    /// Lets the thread write once more and end.
    pub(crate) fn close(&self) {
        self.signal().closing = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to write and then for `interval`, or less when it is urgent. True = last time.
    pub(crate) fn wait(&self, interval: Duration) -> bool {
        let mut signal = self.signal();
        while !signal.dirty && !signal.closing {
            signal = self.changed.wait(signal).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + interval;
        while !signal.urgent && !signal.closing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            signal = self.changed.wait_timeout(signal, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        (signal.dirty, signal.urgent) = (false, false);
        signal.closing
    }

    fn lock(&self) -> MutexGuard<'_, FloorFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) -> MutexGuard<'_, Signal> {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of the two slots.
fn place_of(sequence: u64) -> usize {
    usize::from(sequence.is_multiple_of(2))
}

fn is_spoilt(bytes: &[u8], sequences: [Option<u64>; 2]) -> bool {
    let is_page_spoilt = |(place, page): (usize, &[u8])| {
        let sequence = sequences.get(place).copied().flatten();
        let used = if sequence.is_some() { SLOT_BYTES } else { 0 };
        sequence.is_some_and(|sequence| place_of(sequence) != place) || page[used..].iter().any(|byte| *byte != 0)
    };
    bytes.len() != 2 * SLOT_STRIDE || bytes.chunks(SLOT_STRIDE).enumerate().any(is_page_spoilt)
}

fn encode(owner: &Owner, sequence: u64, floor: &Floor) -> Vec<u8> {
    let mut out = Vec::with_capacity(SLOT_BYTES);
    out.put_slice(&MAGIC);
    out.put_u64(sequence);
    out.put_u64(owner.node_id);
    out.put_slice(&owner.identity);
    out.put_u32(owner.group);
    let vote = floor.vote.unwrap_or(VoteRecord { term: 0, node: 0, committed: false });
    out.put_u8(floor.vote.is_some().into());
    out.put_u64(vote.term);
    out.put_u64(vote.node);
    out.put_u8(vote.committed.into());
    let position = floor.position.unwrap_or(LogPosition { term: 0, node: 0, index: 0 });
    out.put_u8(floor.position.is_some().into());
    out.put_u64(position.term);
    out.put_u64(position.node);
    out.put_u64(position.index);
    let crc = crc32c::crc32c(&out);
    out.put_u32(crc);
    out
}

fn decode(slot: &[u8]) -> Option<(Owner, u64, Floor)> {
    let (body, crc) = slot.split_last_chunk::<CRC_BYTES>()?;
    if slot.len() != SLOT_BYTES || crc32c::crc32c(body) != u32::from_be_bytes(*crc) || body[..8] != MAGIC {
        return None;
    }
    let number = |at: usize| body.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    let owner = Owner {
        node_id: number(16)?,
        identity: body.get(24..40)?.try_into().ok()?,
        group: u32::from_be_bytes(body.get(40..44)?.try_into().ok()?),
    };
    let vote = VoteRecord { term: number(45)?, node: number(53)?, committed: body[61] == 1 };
    let position = LogPosition { term: number(63)?, node: number(71)?, index: number(79)? };
    let floor = Floor { position: (body[62] == 1).then_some(position), vote: (body[44] == 1).then_some(vote) };
    Some((owner, number(8)?, floor))
}

#[cfg(test)]
mod tests;
