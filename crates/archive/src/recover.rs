//! Recovery after a lost quorum: what a surviving node holds, and how it joins what lies offsite.
//!
//! A survivor's log may end in entries that were never committed. They are kept: any of them may have been
//! acknowledged, and one that was not is an outcome that its caller knows as unknown.
//!
//! Invariants:
//! - The archive wins: it holds committed entries only, so a survivor's entry that differs was never committed. A
//!   survivor that *applied* another entry is no survivor of this history, and nothing is joined.
//! - Joined means that the entry chain of one leads to that of the other; positions alone prove nothing.

use std::path::Path;
use std::sync::Arc;

use holdfast_model::command::{ArchiveKeys, Command};
use holdfast_model::id::GroupId;
use holdfast_store::{Applied, DataDir, LogOptions, LogPosition, LogStore, StateStore, StoredEntry};
use holdfast_wire::log::{EntryPayload, decode_entry, decode_proposal, entry_chain};

use crate::error::ArchiveError;
use crate::keys::Keyring;
use crate::layout::{LineageId, ObjectName};
use crate::lineage::LineageFacts;
use crate::sealing::{Compression, Sealing};
use crate::segment::Segment;
use crate::ship::Tail;

/// Bytes of entries that are in memory at a time.
const READ_BYTES: usize = 8 << 20;

/// The stores of a node that runs no more. Its directory is locked while this lives. Everything here blocks.
pub struct Survivor {
    data: DataDir,
    log: LogStore,
    state: StateStore,
    lineage: LineageFacts,
    group: GroupId,
    applied: Applied,
    last: LogPosition,
    keys: Option<Arc<ArchiveKeys>>,
    warning: Option<String>,
}

/// How a survivor's log stands to the log at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joint {
    /// The destination ends at or beyond the survivor's end.
    Behind,
    /// The survivor goes on where the destination ends.
    Follows {
        /// First entry that the destination lacks.
        next: u64,
        /// Entry chain before it.
        chain: [u8; 32],
    },
    /// The survivor's end was never committed: the destination holds another entry at or before its own end.
    Differs,
    /// Entries between the destination's end and the beginning of the survivor's log are in neither.
    Gap {
        /// First entry of the survivor's log.
        first: u64,
    },
}

impl std::fmt::Debug for Survivor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survivor").field("path", &self.data.path()).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Survivor {
    /// Opens the data directory of a node that was stopped or died.
    ///
    /// # Errors
    /// When it is in use, damaged, or holds nobody's records.
    pub fn open(path: &Path, group: GroupId) -> Result<Self, ArchiveError> {
        let store = ArchiveError::store;
        let data = DataDir::open(path).map_err(store(path))?;
        let recovering = data.recovering().map_err(store(path))?;
        let (log, report) = LogStore::open(&data, group, LogOptions::default()).map_err(store(path))?;
        let state = StateStore::open(&data, group).map_err(store(path))?;
        let applied = state.applied();
        let refused = |reason: &str| ArchiveError::Target { path: path.to_owned(), reason: reason.to_owned() };
        // Entries that join nowhere are of no use: a state that was set aside begins below the log.
        let reaches = log.purged().is_none_or(|purged| purged.index <= applied.index());
        let in_log = if reaches { log.last() } else { None };
        let last = in_log
            .max(applied.position)
            .ok_or_else(|| refused("its log and its state are empty: no cluster was founded on it"))?;
        let of_state = state.sys().history.as_ref().map(|history| LineageFacts {
            id: LineageId { cluster_id: history.cluster_id, incarnation: history.incarnation },
            cluster_name: history.cluster_name.clone(),
            epoch: history.epoch,
            parent: history.parent.clone(),
            groups: 1,
        });
        // The state is flushed now and then: what opened the history may be in the log alone.
        let after = applied.position.map_or_else(|| log.first_index(), |position| position.index + 1);
        let (mut of_log, mut keys) = (None, state.sys().archive_keys.clone());
        each(&log, path, after, last.index + 1, |entries| {
            of_log = entries.iter().filter_map(lineage_of_genesis).last().or(of_log.take());
            keys = entries.iter().filter_map(keys_of).last().map(Arc::new).or(keys.take());
        })?;
        let lineage = of_log.or(of_state);
        let lineage =
            lineage.ok_or_else(|| refused("this node holds nobody's records: no cluster was founded on it"))?;
        let warning = report.recovering.or(recovering.map(|recovering| recovering.reason));
        let keys = keys.filter(|keys| keys.incarnation == lineage.id.incarnation);
        Ok(Self { data, log, state, lineage, group, applied, last, keys, warning })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.data.path()
    }

    /// Node that it was.
    pub fn node_id(&self) -> u64 {
        self.data.identity().node_id
    }

    /// Which history it took part in.
    pub fn lineage(&self) -> &LineageFacts {
        &self.lineage
    }

    /// How its history is sealed; packed only, if it is not encrypted.
    ///
    /// # Errors
    /// `NoKey` when it is, and nothing that was given opens the generation that it ends with.
    pub fn sealing(&self, keyring: &Keyring) -> Result<Sealing, ArchiveError> {
        let Some(keys) = &self.keys else { return Ok(Sealing::default()) };
        let key = keyring.key_by_any(&self.lineage.id, keys.generation, &keys.key_id, &keys.keys_age);
        let key = key.map_err(|reason| ArchiveError::NoKey {
            object: format!("the history of {}", self.data.path().display()),
            keys_object: ObjectName::Keys { generation: keys.generation }.path(&self.lineage.id),
            reason,
        })?;
        Ok(Sealing::with_key(Compression::Zstd, key, keys.keys_age.clone()))
    }

    /// Its last entry.
    pub fn last(&self) -> LogPosition {
        self.last
    }

    /// Last entry that its state holds: all up to here were committed. 0 when it was never flushed.
    pub fn applied(&self) -> u64 {
        self.applied.index()
    }

    /// Why the node must not have voted: it may have acknowledged more than it holds.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Newest time stamp in its log and state, in milliseconds since the Unix epoch; 0 = none is known.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn newest_stamp_ms(&self) -> Result<u64, ArchiveError> {
        let mut newest = self.state.sys().now.0;
        self.each(self.after_state().0, self.last.index + 1, |entries| {
            if let Ok(segment) = Segment::new(self.group, [0; 32], entries) {
                newest = newest.max(segment.stamp_ms);
            }
        })?;
        Ok(newest)
    }

    /// How its log stands to one that ends at `tail`.
    ///
    /// # Errors
    /// `LineageFork` when it applied other entries; when its log cannot be read.
    pub fn join(&self, destination: &str, tail: Option<Tail>) -> Result<Joint, ArchiveError> {
        let (next, chain) = match (tail, &self.lineage.parent) {
            (Some(tail), _) => (tail.last.index + 1, tail.chain),
            (None, Some(parent)) => (parent.index + 1, parent.chain),
            (None, None) if self.log.purged().is_none() => (self.log.first_index(), [0; 32]),
            (None, None) => (0, [0; 32]),
        };
        if next > self.last.index {
            return Ok(Joint::Behind);
        }
        let (after_state, state_chain) = self.after_state();
        if next < self.log.first_index() {
            return Ok(Joint::Gap { first: self.log.first_index() });
        }
        if next >= after_state {
            let ours = self.link(state_chain, after_state, next)?;
            return Ok(if ours == chain { Joint::Follows { next, chain } } else { Joint::Differs });
        }
        if self.log.last() < self.applied.position {
            return Ok(Joint::Gap { first: after_state });
        }
        if self.link(chain, next, after_state)? == state_chain {
            return Ok(Joint::Follows { next, chain });
        }
        Err(ArchiveError::LineageFork {
            position: self.applied.position.unwrap_or(self.last),
            object: destination.to_owned(),
            reason: format!("{} applied other entries than lie there", self.data.path().display()),
        })
    }

    /// Entries from `next` on, as many as are read at once; none behind the last.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn entries(&self, next: u64) -> Result<Vec<StoredEntry>, ArchiveError> {
        let read = self.log.read(next, self.last.index + 1, READ_BYTES);
        read.map_err(ArchiveError::store(self.data.path()))
    }

    /// Its state, for a snapshot; false when there is none, and all of it is in the log.
    ///
    /// # Errors
    /// When it cannot be written to `into`, which must not exist.
    pub fn checkpoint(&self, into: &Path) -> Result<bool, ArchiveError> {
        if self.applied.position.is_none() {
            return Ok(false);
        }
        self.state.checkpoint(into).map(|_| true).map_err(ArchiveError::store(into))
    }

    /// Where its state ends: first entry after it, and the chain before that.
    pub fn after_state(&self) -> (u64, [u8; 32]) {
        let after = self.applied.position.map_or_else(|| self.log.first_index(), |position| position.index + 1);
        (after, self.applied.entry_chain)
    }

    fn link(&self, chain: [u8; 32], from: u64, to: u64) -> Result<[u8; 32], ArchiveError> {
        let mut linked = chain;
        self.each(from, to, |entries| {
            linked = entries.iter().fold(linked, |chain, entry| entry_chain(chain, &entry.bytes));
        })?;
        Ok(linked)
    }

    fn each(&self, from: u64, to: u64, take: impl FnMut(Vec<StoredEntry>)) -> Result<(), ArchiveError> {
        each(&self.log, self.data.path(), from, to, take)
    }
}

/// Entries in `[from, to)`.
fn each(
    log: &LogStore,
    path: &Path,
    from: u64,
    to: u64,
    mut take: impl FnMut(Vec<StoredEntry>),
) -> Result<(), ArchiveError> {
    let mut next = from;
    while next < to {
        let read = log.read(next, to, READ_BYTES).map_err(ArchiveError::store(path))?;
        let Some(last) = read.last() else {
            let reason = format!("entry {next} is missing in its log; it ends before {to}");
            return Err(ArchiveError::Target { path: path.to_owned(), reason });
        };
        next = last.position.index + 1;
        take(read);
    }
    Ok(())
}

/// The history that an entry opens.
pub(crate) fn lineage_of_genesis(entry: &StoredEntry) -> Option<LineageFacts> {
    let EntryPayload::Proposal(bytes) = decode_entry(&entry.bytes).ok()?.payload else { return None };
    let Command::Genesis(genesis) = decode_proposal(&bytes).ok()?.command else { return None };
    Some(LineageFacts {
        id: LineageId { cluster_id: genesis.cluster_id, incarnation: genesis.incarnation },
        cluster_name: genesis.cluster_name,
        epoch: genesis.epoch,
        parent: genesis.parent,
        groups: 1,
    })
}

/// The keys that an entry sets.
fn keys_of(entry: &StoredEntry) -> Option<ArchiveKeys> {
    let EntryPayload::Proposal(bytes) = decode_entry(&entry.bytes).ok()?.payload else { return None };
    match decode_proposal(&bytes).ok()?.command {
        Command::SetArchiveKeys(keys) => Some(*keys),
        _ => None,
    }
}

impl Drop for Survivor {
    fn drop(&mut self) {
        self.log.close();
    }
}

#[cfg(test)]
mod tests;
