//! Applying one log entry: the same code for a live node and for a restore.
//!
//! Invariants: entries are applied in order, each once (the batch carries the applied position); both chains move
//! with every entry; a command that does not decode is a deterministic, effect-free rejection, because its bytes are
//! the same on every replica.

use holdfast_model::command::Proposal;
use holdfast_model::outcome::{Outcome, Rejection};
use holdfast_model::state::Touched;
use holdfast_model::transition::transition_guarded;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::log::{self, EntryPayload};

use crate::{Applied, ApplyBatch, LogPosition, StoreError, StoredEntry};

/// What applying an entry did, beyond the state.
#[derive(Debug, Default)]
pub struct AppliedEntry {
    /// Answers of a command: one, or one for each write of a fold; none for blank and membership entries.
    pub outcomes: Vec<Outcome>,
    /// Users whose head moved, for waking those who wait.
    pub touched: Vec<Touched>,
    /// A checkpoint is wanted right after this entry.
    pub barrier: bool,
}

/// Applies `entry` to `batch`.
///
/// # Errors
/// A failure of this node's storage, or an entry that is not the next one.
pub fn apply_entry(batch: &mut ApplyBatch, entry: &StoredEntry) -> Result<AppliedEntry, StoreError> {
    let index = entry.position.index;
    let prev = batch.applied().clone();
    let applied_index = prev.position.map_or(0, |position| position.index);
    // openraft's log starts at index 0 with the membership entry of `initialize`.
    let in_order = match prev.position {
        None => true,
        Some(_) => index == applied_index + 1,
    };
    if !in_order {
        return Err(out_of_place(format!("entry {index} cannot follow applied index {applied_index}")));
    }
    let decoded = log::decode_entry(&entry.bytes).map_err(|error| out_of_place(format!("entry {index}: {error}")))?;
    if decoded.id != (log::LogId { term: entry.position.term, node: entry.position.node, index }) {
        return Err(out_of_place(format!("entry {index} carries another log id")));
    }
    let mut done = AppliedEntry::default();
    let mut membership = prev.membership.clone();
    match decoded.payload {
        EntryPayload::Blank => {}
        EntryPayload::Membership(members) => {
            membership =
                holdfast_wire::encode(&pb::StoredMembership { log_id: Some(decoded.id), membership: Some(members) });
        }
        EntryPayload::Proposal(bytes) => {
            done = match log::decode_proposal(&bytes) {
                Ok(proposal) => apply_proposal(batch, index, proposal)?,
                Err(_) => AppliedEntry { outcomes: vec![Outcome::Rejected(Rejection::Poisoned)], ..done },
            }
        }
    }
    batch.chain_effects(index);
    let effect_chain = batch.applied().effect_chain;
    batch.set_applied(Applied {
        position: Some(LogPosition { term: decoded.id.term, node: decoded.id.node, index }),
        membership,
        entry_chain: log::entry_chain(prev.entry_chain, &entry.bytes),
        effect_chain,
    });
    Ok(done)
}

fn apply_proposal(batch: &mut ApplyBatch, index: u64, proposal: Proposal) -> Result<AppliedEntry, StoreError> {
    let mut done = AppliedEntry::default();
    for part in proposal.parts() {
        let (outcome, effects) = transition_guarded(batch, index, &part)?;
        batch.apply_effects(&effects)?;
        done.outcomes.push(outcome);
        done.touched.extend(effects.touched);
        done.barrier |= effects.barrier;
    }
    Ok(done)
}

fn out_of_place(reason: String) -> StoreError {
    StoreError::Corrupt { what: "log entry".to_owned(), path: "raft".into(), reason, part: crate::error::Part::Log }
}
