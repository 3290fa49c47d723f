//! Filling one data directory: rows of the snapshot, then entries after it.
//!
//! Invariants: the state before the replay is at the snapshot's position and chains, the state after it at the plan's;
//! everything is flushed before this returns well.

use std::sync::Arc;

use holdfast_model::state::{History, StateRead};
use holdfast_store::planted::{self, Bug};
use holdfast_store::{Applied, ApplyBatch, DataDir, RawRow, StateLoader, StateStore, StoredEntry, apply_entry};
use holdfast_wire::log::entry_chain;
use tokio::sync::mpsc;

use super::{Manifest, Part, RestorePlan};
use crate::error::ArchiveError;
use crate::payloads;

/// Entries that are applied in one write, and bytes of rows that are enough for one: an entry may hold hundreds of writes.
const BATCH_ENTRIES_MAX: usize = 512;
const BATCH_BYTES: usize = 4 << 20;

/// A directory that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) rows: u64,
    pub(super) entries: u64,
    pub(super) records: u64,
    /// Records of the snapshot whose payloads did not come.
    pub(super) held_back: u64,
    pub(super) effect_chain: [u8; 32],
    pub(super) history: Option<Arc<History>>,
}

/// Takes parts until the end. Blocks.
pub(super) fn fill(
    directory: &Arc<DataDir>,
    plan: &RestorePlan,
    mut parts: mpsc::Receiver<Part>,
) -> Result<Filled, ArchiveError> {
    let path = directory.path();
    let mut loader = StateLoader::create(directory, plan.group).map_err(ArchiveError::store(path))?;
    let mut rows = 0;
    let mut next = parts.blocking_recv();
    while let Some(Part::Rows(chunk)) = &next {
        for row in chunk.patch_rows() {
            let value = row.value.unwrap_or_default();
            let put = match row.family {
                payloads::FAMILY => loader.put_payload(payloads::record_of(&row.key), &value),
                family => loader.put(RawRow { family, key: row.key.to_vec(), value: value.to_vec() }),
            };
            put.map_err(ArchiveError::store(path))?;
            rows += 1;
        }
        next = parts.blocking_recv();
    }
    if next.is_none() {
        return Err(ArchiveError::Stopped { what: "a restore" });
    }
    let held_back = loader.held_back();
    loader.finish().map_err(ArchiveError::store(path))?;
    let state = StateStore::open(directory, plan.group).map_err(ArchiveError::store(path))?;
    check_snapshot(directory, &state, plan.snapshot.as_ref())?;
    let mut replayed = 0;
    loop {
        match next {
            Some(Part::Entries(entries)) => {
                replayed += entries.len() as u64;
                replay(directory, &state, &entries, plan.last.index)?;
            }
            Some(Part::End) => break,
            Some(Part::Rows(_)) => return Err(ArchiveError::refused("rows after entries")),
            None => return Err(ArchiveError::Stopped { what: "a restore" }),
        }
        next = parts.blocking_recv();
    }
    state.flush().map_err(ArchiveError::store(path))?;
    let batch = state.begin();
    let applied = batch.applied();
    if applied.position != Some(plan.last) || applied.entry_chain != plan.chain {
        return Err(differs(directory, "the end of the plan", applied));
    }
    let sys = batch.sys();
    Ok(Filled {
        rows,
        entries: replayed,
        records: sys.totals.records,
        held_back,
        effect_chain: applied.effect_chain,
        history: sys.history.clone(),
    })
}

fn check_snapshot(directory: &DataDir, state: &StateStore, snapshot: Option<&Manifest>) -> Result<(), ArchiveError> {
    let batch = state.begin();
    let applied = batch.applied();
    let expected = match snapshot {
        None => applied.position.is_none() && applied.entry_chain == [0; 32],
        Some(manifest) => {
            applied.position == Some(manifest.applied)
                && applied.entry_chain == manifest.entry_chain
                && applied.effect_chain == manifest.effect_chain
                && applied.membership == manifest.membership
        }
    };
    if expected { Ok(()) } else { Err(differs(directory, "the manifest", applied)) }
}

fn differs(directory: &DataDir, from: &str, applied: &Applied) -> ArchiveError {
    let reason = format!("the state in it is at {:?}, which is not {from}", applied.position);
    ArchiveError::Target { path: directory.path().to_owned(), reason }
}

fn replay(directory: &DataDir, state: &StateStore, entries: &[StoredEntry], last: u64) -> Result<(), ArchiveError> {
    let mut entries = entries.iter().peekable();
    while entries.peek().is_some() {
        let mut batch = state.begin();
        for entry in entries.by_ref().take(BATCH_ENTRIES_MAX) {
            if planted::is(Bug::RestoreShort) && entry.position.index + 5 > last {
                leave_out(&mut batch, entry);
            } else {
                apply_entry(&mut batch, entry).map_err(ArchiveError::store(directory.path()))?;
            }
            if batch.size_bytes() >= BATCH_BYTES {
                break;
            }
        }
        state.commit(batch).map_err(ArchiveError::store(directory.path()))?;
    }
    Ok(())
}

/// The planted bug: the state says that it holds the entry, and does not.
fn leave_out(batch: &mut ApplyBatch, entry: &StoredEntry) {
    batch.chain_effects(entry.position.index);
    let applied = batch.applied().clone();
    let chain = entry_chain(applied.entry_chain, &entry.bytes);
    batch.set_applied(Applied { position: Some(entry.position), entry_chain: chain, ..applied });
}
