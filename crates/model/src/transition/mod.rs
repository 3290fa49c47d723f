//! The rules: one log entry and the state before it give an outcome and the effects, and nothing else happens.
//!
//! Reads go through [`StateRead`]; writes are only described. Each command has its own file; this one dispatches on
//! the entry's rules, moves the log's time and makes sure that a rejection leaves no trace.
//!
//! Invariants:
//! - Total: every entry has an outcome. The only error is a failed read of this node's storage.
//! - Pure and deterministic: the same state, index and entry give equal answers on every replica and every replay.
//! - `sys.now` never goes back, whatever the stamps say.
//! - A rejected command changes nothing but `sys.now`.
//! - Nothing but `Genesis` takes effect before `Genesis`.
//! - Once the history is known to be forked no record changes until the next `Genesis`: of what is written on either side
//!   of a fork one part is lost. Reads, cursors and the cluster's own housekeeping go on.

mod attest;
mod devices;
mod expire;
mod fill_payloads;
mod genesis;
mod lineage_fork;
mod offsite_fact;
mod set_archive_keys;
mod set_operation;
mod set_policy;
mod snapshot_barrier;
mod write_batch;
mod writing;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::command::{Command, Proposal};
use crate::outcome::{Outcome, Rejection};
use crate::state::{Effects, StateRead, Sys};

pub use write_batch::remembered;
pub(crate) use writing::due;

/// What a command's rules answer. On a rejection the draft is thrown away, so no rule has to undo anything.
type Judged = Result<Outcome, Rejection>;

/// Effects in the making: the group facts with `now` already moved, and the changes of rows.
struct Draft {
    sys: Sys,
    effects: Effects,
}

/// Judges the entry at `index` against the state before it; of an entry that folds several writes, each part
/// ([`Proposal::parts`]) against the state that those before it left.
///
/// # Errors
/// Only what `state` fails to read; that says nothing about the entry and must stop this node's apply.
pub fn transition<S: StateRead>(state: &S, index: u64, proposal: &Proposal) -> Result<(Outcome, Effects), S::Error> {
    let mut draft = Draft { sys: advanced(state.sys(), proposal), effects: Effects::default() };
    let judged = match proposal.rules {
        1 => rules_1(state, index, &proposal.command, &mut draft)?,
        unknown => Err(Rejection::UnknownRules(unknown)),
    };
    Ok(match judged {
        Ok(outcome) => {
            draft.sys.rules = draft.sys.rules.max(proposal.rules);
            (outcome, Effects { sys: changed(state.sys(), draft.sys), ..draft.effects })
        }
        Err(rejection) => rejected(state.sys(), proposal, rejection),
    })
}

/// [`transition`], but a panic in the rules becomes the outcome [`poisoned`]: one poison entry must not crash-loop
/// every node. The panic happens on every replica alike, since the rules are deterministic. Needs unwinding panics.
///
/// # Errors
/// As [`transition`].
pub fn transition_guarded<S: StateRead>(
    state: &S,
    index: u64,
    proposal: &Proposal,
) -> Result<(Outcome, Effects), S::Error> {
    // Unwind safe: the rules hold `state` by shared reference and their draft dies with the panic.
    match catch_unwind(AssertUnwindSafe(|| transition(state, index, proposal))) {
        Ok(answer) => answer,
        Err(_panic) => Ok(poisoned(state.sys(), proposal)),
    }
}

/// Outcome and effects of an entry on which the rules fail: rejected, and only `now` moves.
pub fn poisoned(sys: &Sys, proposal: &Proposal) -> (Outcome, Effects) {
    rejected(sys, proposal, Rejection::Poisoned)
}

fn rules_1<S: StateRead>(state: &S, index: u64, command: &Command, draft: &mut Draft) -> Result<Judged, S::Error> {
    match (command, &state.sys().history) {
        (Command::Genesis(genesis), _) => Ok(genesis::judge(index, genesis, draft)),
        (_, None) => Ok(Err(Rejection::NotFounded)),
        (Command::WriteBatch(batch), Some(history)) => write_batch::judge(state, index, history, batch, draft),
        // Whoever applies an entry judges its parts.
        (Command::Fold(_), Some(_)) => Ok(Err(Rejection::Poisoned)),
        (Command::OffsiteFact(fact), Some(_)) => Ok(offsite_fact::judge(fact, draft)),
        (Command::SnapshotBarrier(_), Some(_)) => Ok(snapshot_barrier::judge(index, draft)),
        (Command::Attest(said), Some(history)) => Ok(attest::judge(said, history, draft)),
        (Command::Expire, Some(_)) if state.sys().lineage_fork.is_some() => Ok(Err(Rejection::LineageFork)),
        (Command::Expire, Some(history)) => expire::judge(state, index, history, draft),
        (Command::SetOperation(operation), Some(_)) => Ok(set_operation::judge(operation, draft)),
        (Command::AckCursor(ack), Some(_)) => devices::ack(state, ack, draft),
        (Command::DropDevice(drop), Some(_)) => devices::forget(state, drop, draft),
        (Command::SetPolicy(policy), Some(_)) => Ok(set_policy::judge(*policy, draft)),
        (Command::SetArchiveKeys(keys), Some(history)) => Ok(set_archive_keys::judge(keys, history, draft)),
        (Command::LineageFork(fork), Some(history)) => Ok(lineage_fork::judge(fork, history, draft)),
        (Command::FillPayloads(fill), Some(history)) => fill_payloads::judge(state, history, fill, draft),
    }
}

fn advanced(sys: &Sys, proposal: &Proposal) -> Sys {
    Sys { now: sys.now.max(proposal.stamp), ..sys.clone() }
}

fn rejected(sys: &Sys, proposal: &Proposal, rejection: Rejection) -> (Outcome, Effects) {
    let effects = Effects { sys: changed(sys, advanced(sys, proposal)), ..Effects::default() };
    (Outcome::Rejected(rejection), effects)
}

fn changed(before: &Sys, after: Sys) -> Option<Sys> {
    (*before != after).then_some(after)
}
