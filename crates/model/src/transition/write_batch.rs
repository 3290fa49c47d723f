//! `WriteBatch`: writes of one user that commit together or not at all.
//!
//! Order of judgement: remembered request, fork of the history, age of the request, history, what re-uploads speak of,
//! whole-user guard and guards of mutations, quota.
//!
//! Invariants:
//! - A request id takes effect at most once: as long as a retry passes for young enough, its id is remembered.
//! - Guards see the state before the batch, never another mutation of it.
//! - A commit that changes something takes exactly one version, and one that changes nothing takes none.
//! - What a rollback lost comes back in any order: of two re-uploads of a record, the larger lost version stays.
//! - Neither a delete nor a re-upload is ever refused for quota.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::writing::{Writing, account};
use super::{Draft, Judged};
use crate::command::{Guard, Mutation, Op, RestoreGuard, WriteBatch};
use crate::digest::content_hash;
use crate::id::{Millis, Slot, Uid, Version};
use crate::limits::{BATCH_MUTATIONS_MAX, CONFLICTS_REPORTED_MAX, DEDUP_WINDOW_MS, FIRST_SENT_AHEAD_MS_MAX};
use crate::outcome::{Conflict, MutationResult, Outcome, Receipt, Rejection};
use crate::state::{Effect, ExpiryItem, History, RecordRow, RequestRow, StateRead, Sys, Touched, UserRef, UserRow};

pub(super) fn judge<S: StateRead>(
    state: &S,
    index: u64,
    history: &History,
    batch: &WriteBatch,
    draft: &mut Draft,
) -> Result<Judged, S::Error> {
    if !well_formed(batch) {
        return Ok(Err(Rejection::Poisoned));
    }
    let now = draft.sys.now;
    let slot = Slot::of(&batch.user);
    let known = match state.uid(&batch.user)? {
        None => None,
        Some(uid) => match state.user(UserRef { slot, uid })? {
            Some(row) => Some((UserRef { slot, uid }, row)),
            // A number without a row is damage; nothing is built upon it.
            None => return Ok(Err(Rejection::Poisoned)),
        },
    };
    let request = match &known {
        Some((user, _)) => state.request(*user, batch.request_id)?,
        None => None,
    };
    // As `remembered`.
    if let Some(row) = request.as_ref().filter(|row| row.expires > now) {
        return Ok(replay(row, batch));
    }
    if state.sys().lineage_fork.is_some() {
        return Ok(Err(Rejection::LineageFork));
    }
    if let Err(rejection) = judge_age(batch.first_sent, now) {
        return Ok(Err(rejection));
    }
    if batch.if_incarnation.is_some_and(|incarnation| incarnation != history.incarnation) {
        return Ok(Err(Rejection::IncarnationMismatch));
    }
    let mut stored = Vec::with_capacity(batch.mutations.len());
    for mutation in &batch.mutations {
        stored.push(match &known {
            Some((user, _)) => state.record(*user, &mutation.key)?,
            None => None,
        });
    }
    let row = known.as_ref().map(|(_, row)| &**row);
    let judged = judge_restores(batch, state.sys(), row)
        .and_then(|()| judge_guards(batch, row.map_or(Version(0), |row| row.head), &stored))
        .and_then(|()| judge_quota(batch, draft.sys.policy.user_quota_bytes, row, &stored));
    if let Err(rejection) = judged {
        return Ok(Err(rejection));
    }
    let forgotten = request.map(|row| row.expires);
    Ok(Ok(commit(index, history, batch, known, stored, forgotten, draft)))
}

/// The answer to a request that is remembered at `now`, and need not be proposed again for it; `None` = it is not known.
///
/// # Errors
/// As [`transition`](super::transition).
pub fn remembered<S: StateRead>(state: &S, batch: &WriteBatch, now: Millis) -> Result<Option<Outcome>, S::Error> {
    let Some(uid) = state.uid(&batch.user)? else { return Ok(None) };
    let row = state.request(UserRef { slot: Slot::of(&batch.user), uid }, batch.request_id)?;
    let row = row.filter(|row| row.expires > now.max(state.sys().now));
    Ok(row.map(|row| replay(&row, batch).unwrap_or_else(Outcome::Rejected)))
}

/// The edge lets no other batch through; one that got here would break the keys of change rows.
fn well_formed(batch: &WriteBatch) -> bool {
    let mut keys = BTreeSet::new();
    batch.mutations.len() <= BATCH_MUTATIONS_MAX && batch.mutations.iter().all(|mutation| keys.insert(&mutation.key))
}

fn replay(row: &RequestRow, batch: &WriteBatch) -> Judged {
    if row.fingerprint != batch.fingerprint {
        return Err(Rejection::RequestIdReused);
    }
    Ok(Outcome::Written(Receipt {
        version: row.version,
        replayed: true,
        usage: row.usage,
        results: row.results.clone(),
        commit_index: row.commit_index,
    }))
}

/// The window closes for a retry in the very millisecond in which its id may be forgotten ([`request_expires`]).
fn judge_age(first_sent: Option<Millis>, now: Millis) -> Result<(), Rejection> {
    let Some(Millis(sent)) = first_sent else {
        return Ok(());
    };
    if sent.saturating_add(DEDUP_WINDOW_MS) <= now.0 {
        return Err(Rejection::RequestTooOld);
    }
    if sent > now.0.saturating_add(FIRST_SENT_AHEAD_MS_MAX) {
        return Err(Rejection::RequestFromFuture);
    }
    Ok(())
}

/// An id sent with a time ahead of `now` passes for young that much longer, so it is remembered that much longer.
fn request_expires(first_sent: Option<Millis>, now: Millis) -> Millis {
    Millis(first_sent.unwrap_or(now).max(now).0.saturating_add(DEDUP_WINDOW_MS))
}

/// A re-upload speaks of a history that ended, and of the very fork that the device was told.
fn judge_restores(batch: &WriteBatch, sys: &Sys, row: Option<&UserRow>) -> Result<(), Rejection> {
    for mutation in &batch.mutations {
        let Guard::Restore(guard) = mutation.guard else { continue };
        // No history gave versions of a later epoch than its own.
        let ended = sys
            .ancestors
            .iter()
            .any(|ancestor| ancestor.incarnation == guard.incarnation && guard.lost.epoch() <= ancestor.epoch);
        let fork = match row {
            Some(row) => row.common_with(sys, guard.incarnation),
            None => Some(Version(0)),
        };
        if !ended || fork != Some(guard.common) {
            return Err(Rejection::IncarnationMismatch);
        }
    }
    Ok(())
}

fn judge_guards(batch: &WriteBatch, head: Version, stored: &[Option<RecordRow>]) -> Result<(), Rejection> {
    let conflicts: Vec<Conflict> = (0u32..)
        .zip(batch.mutations.iter().zip(stored))
        .filter(|(_, (mutation, row))| !passes(mutation, row.as_ref()))
        .map(|(index, (_, row))| Conflict {
            index,
            current_version: row.as_ref().map_or(Version(0), |row| row.version),
            deleted: row.as_ref().is_some_and(|row| !row.is_live()),
            content_hash: row.as_ref().map(|row| row.content_hash),
        })
        .take(CONFLICTS_REPORTED_MAX)
        .collect();
    let head = batch.if_head.is_some_and(|expected| expected != head).then_some(head);
    if conflicts.is_empty() && head.is_none() { Ok(()) } else { Err(Rejection::VersionMismatch { conflicts, head }) }
}

fn passes(mutation: &Mutation, stored: Option<&RecordRow>) -> bool {
    match mutation.guard {
        Guard::None => true,
        Guard::Version(expected) => stored.map_or(Version(0), |row| row.version) == expected,
        Guard::Absent => !stored.is_some_and(RecordRow::is_live),
        Guard::Exists => stored.is_some_and(RecordRow::is_live),
        Guard::Restore(guard) => {
            stored.is_none_or(|row| row.version <= guard.common || is_outdone(row, guard, &mutation.op))
        }
    }
}

/// What is stored was re-uploaded as well, and is older than what comes now, or the same.
fn is_outdone(stored: &RecordRow, guard: RestoreGuard, op: &Op) -> bool {
    match stored.lost {
        Some(lost) if lost == guard.lost => is_same(stored, op),
        Some(lost) => lost < guard.lost,
        None => false,
    }
}

fn is_same(stored: &RecordRow, op: &Op) -> bool {
    match op {
        Op::Put(content) => stored.is_live() && stored.content_hash == content_hash(content),
        Op::Delete => !stored.is_live(),
    }
}

/// Refused is only what makes more of too much: a person who is over the quota can still delete, and gets back all that
/// a rollback lost.
fn judge_quota(
    batch: &WriteBatch,
    quota_bytes: u64,
    row: Option<&UserRow>,
    stored: &[Option<RecordRow>],
) -> Result<(), Rejection> {
    if quota_bytes == 0 {
        return Ok(());
    }
    // Payloads are limited to 1 MiB and batches to 500: no sum of theirs comes near the ends of i64.
    let (mut grown, mut restored) = (0i64, 0i64);
    for (mutation, stored) in batch.mutations.iter().zip(stored) {
        let before = stored.as_ref().map_or(0, |row| row.payload_len) as i64;
        let after = match &mutation.op {
            Op::Put(content) => content.payload.len() as i64,
            Op::Delete => 0,
        };
        let sum = if matches!(mutation.guard, Guard::Restore(_)) { &mut restored } else { &mut grown };
        *sum += after - before;
    }
    let used = row.map_or(0, |row| row.usage.used_bytes);
    let wanted_bytes = used.saturating_add_signed(grown + restored);
    if grown > 0 && wanted_bytes > quota_bytes {
        return Err(Rejection::UserQuota { wanted_bytes, quota_bytes });
    }
    Ok(())
}

fn commit(
    index: u64,
    history: &History,
    batch: &WriteBatch,
    known: Option<(UserRef, Arc<UserRow>)>,
    stored: Vec<Option<RecordRow>>,
    forgotten: Option<Millis>,
    draft: &mut Draft,
) -> Outcome {
    let Draft { sys, effects } = draft;
    let (user, before) = match known {
        Some((user, row)) => (user, Some(row)),
        None => (allocate(history, batch, sys, &mut effects.rows), None),
    };
    let row = before.as_deref().cloned().unwrap_or_default();
    let mut writing = Writing::new(user, batch.device.as_ref(), sys, history, row, &mut effects.rows);
    let results: Vec<MutationResult> = batch
        .mutations
        .iter()
        .zip(stored)
        .map(|(mutation, stored)| writing.mutate(&batch.user, mutation, stored))
        .collect();
    let collections = writing.touched();
    let row = writing.finish(sys, index);
    if !collections.is_empty() {
        effects.touched.push(Touched { user: batch.user.clone(), head: row.head, collections });
    }
    account(sys, user.uid, before.as_deref(), &row);
    let request = RequestRow {
        fingerprint: batch.fingerprint,
        version: row.head,
        usage: row.usage,
        results,
        commit_index: index,
        expires: request_expires(batch.first_sent, sys.now),
    };
    if before.as_deref() != Some(&row) {
        effects.rows.push(Effect::PutUser(user, Arc::new(row)));
    }
    remember(user, batch, request, forgotten, &mut effects.rows)
}

/// Uids of an ended history are not given again: its lost users may still hold tokens with them.
fn allocate(history: &History, batch: &WriteBatch, sys: &mut Sys, rows: &mut Vec<Effect>) -> UserRef {
    sys.uid_counter = sys.uid_counter.saturating_add(1);
    let uid = Uid::new(history.epoch, sys.uid_counter);
    rows.push(Effect::PutUid(batch.user.clone(), uid));
    UserRef { slot: Slot::of(&batch.user), uid }
}

fn remember(
    user: UserRef,
    batch: &WriteBatch,
    request: RequestRow,
    forgotten: Option<Millis>,
    rows: &mut Vec<Effect>,
) -> Outcome {
    let receipt = Receipt {
        version: request.version,
        replayed: false,
        usage: request.usage,
        results: request.results.clone(),
        commit_index: request.commit_index,
    };
    let item = ExpiryItem::Request(user, batch.request_id);
    if let Some(expired) = forgotten {
        rows.push(Effect::DeleteExpiry(expired, item.clone()));
    }
    rows.push(Effect::PutExpiry(request.expires, item));
    rows.push(Effect::PutRequest(user, batch.request_id, request));
    Outcome::Written(receipt)
}
