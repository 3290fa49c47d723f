//! `WriteBatch`: writes of one user that commit together or not at all.
//!
//! Order of judgement: remembered request, age of the request, history, whole-user guard and guards of mutations.
//!
//! Invariants:
//! - A request id takes effect at most once: as long as a retry passes for young enough, its id is remembered.
//! - Guards see the state before the batch, never another mutation of it.
//! - A commit that changes something takes exactly one version, and one that changes nothing takes none.
//! - Each record has exactly one change row, at its (version, ordinal).
//! - Usage, digests and totals move with the rows they sum up.

use std::collections::BTreeSet;

use super::{Draft, Judged};
use crate::command::{Content, Guard, Mutation, Op, WriteBatch};
use crate::digest::{content_hash, entry_hash, user_row_hash};
use crate::id::{Collection, Millis, RecordKey, Slot, Uid, Version};
use crate::limits::{BATCH_MUTATIONS_MAX, CONFLICTS_REPORTED_MAX, DEDUP_WINDOW_MS, FIRST_SENT_AHEAD_MS_MAX};
use crate::outcome::{Conflict, MutationResult, Outcome, Receipt, Rejection};
use crate::state::{
    ChangeRow, Effect, ExpiryItem, Fork, History, RecordRow, RequestRow, StateRead, Sys, UserRef, UserRow,
};

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
    if let Some(row) = request.as_ref().filter(|row| row.expires > now) {
        return Ok(replay(row, batch));
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
    let head = known.as_ref().map_or(Version(0), |(_, row)| row.head);
    if let Err(rejection) = judge_guards(batch, head, &stored) {
        return Ok(Err(rejection));
    }
    let forgotten = request.map(|row| row.expires);
    Ok(Ok(commit(index, history, batch, known, stored, forgotten, draft)))
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

fn judge_guards(batch: &WriteBatch, head: Version, stored: &[Option<RecordRow>]) -> Result<(), Rejection> {
    let conflicts: Vec<Conflict> = (0u32..)
        .zip(batch.mutations.iter().zip(stored))
        .filter(|(_, (mutation, row))| !passes(mutation.guard, row.as_ref()))
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

fn passes(guard: Guard, stored: Option<&RecordRow>) -> bool {
    match guard {
        Guard::None => true,
        Guard::Version(expected) => stored.map_or(Version(0), |row| row.version) == expected,
        Guard::Absent => !stored.is_some_and(RecordRow::is_live),
        Guard::Exists => stored.is_some_and(RecordRow::is_live),
    }
}

fn commit(
    index: u64,
    history: &History,
    batch: &WriteBatch,
    known: Option<(UserRef, UserRow)>,
    stored: Vec<Option<RecordRow>>,
    forgotten: Option<Millis>,
    draft: &mut Draft,
) -> Outcome {
    let Draft { sys, effects } = draft;
    let (user, before) = match known {
        Some((user, row)) => (user, Some(row)),
        None => (allocate(history, batch, sys, &mut effects.rows), None),
    };
    let mut writing = Writing {
        batch,
        user,
        now: sys.now,
        version: before.as_ref().map_or(Version(0), |row| row.head).next_in(history.epoch),
        row: before.clone().unwrap_or_default(),
        rows: &mut effects.rows,
    };
    let results: Vec<MutationResult> = (0u16..)
        .zip(batch.mutations.iter().zip(stored))
        .map(|(ordinal, (mutation, stored))| writing.mutate(ordinal, mutation, stored))
        .collect();
    let Writing { version, mut row, .. } = writing;
    if results.iter().any(|result| result.changed) {
        record_forks(sys, &mut row);
        row.head = version;
        effects.touched.push((batch.user.clone(), version));
    }
    account(sys, user.uid, before.as_ref(), &row);
    let request = RequestRow {
        fingerprint: batch.fingerprint,
        version: row.head,
        usage: row.usage,
        results,
        commit_index: index,
        expires: request_expires(batch.first_sent, sys.now),
    };
    if before.as_ref() != Some(&row) {
        effects.rows.push(Effect::PutUser(user, row));
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

/// The first commit in a new epoch is the last chance to see where the ended histories left the user.
fn record_forks(sys: &Sys, row: &mut UserRow) {
    for ancestor in &sys.ancestors {
        if row.forks.iter().all(|fork| fork.incarnation != ancestor.incarnation) {
            row.forks.push(Fork { incarnation: ancestor.incarnation, common: row.head });
        }
    }
}

fn account(sys: &mut Sys, uid: Uid, before: Option<&UserRow>, after: &UserRow) {
    match before {
        Some(before) => sys.digest.sub(user_row_hash(uid, before)),
        None => sys.totals.users = sys.totals.users.saturating_add(1),
    }
    sys.digest.add(user_row_hash(uid, after));
    let usage = before.map(|row| row.usage).unwrap_or_default();
    let totals = &mut sys.totals;
    totals.records = totals.records.saturating_sub(usage.record_count).saturating_add(after.usage.record_count);
    totals.bytes = totals.bytes.saturating_sub(usage.used_bytes).saturating_add(after.usage.used_bytes);
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
        rows.push(Effect::DeleteExpiry(expired, item));
    }
    rows.push(Effect::PutExpiry(request.expires, item));
    rows.push(Effect::PutRequest(user, batch.request_id, request));
    Outcome::Written(receipt)
}

/// A batch being written: the user's row as it becomes, and the effects so far.
struct Writing<'a> {
    batch: &'a WriteBatch,
    user: UserRef,
    now: Millis,
    version: Version,
    row: UserRow,
    rows: &'a mut Vec<Effect>,
}

impl Writing<'_> {
    fn mutate(&mut self, ordinal: u16, mutation: &Mutation, stored: Option<RecordRow>) -> MutationResult {
        let live = stored.as_ref().filter(|row| row.is_live());
        let (next, content) = match (&mutation.op, live) {
            (Op::Put(content), live) => {
                let next = self.live_row(ordinal, content);
                if live.is_some_and(|live| live.content_hash == next.content_hash) {
                    return unchanged(stored.as_ref());
                }
                (next, Some(content.clone()))
            }
            (Op::Delete, Some(live)) => (self.tombstone(ordinal, live), None),
            (Op::Delete, None) => return unchanged(stored.as_ref()),
        };
        if let Some(old) = live {
            self.unlist(&mutation.key, old);
        }
        if next.is_live() {
            self.list(&mutation.key, &next);
        }
        if let Some(old) = &stored {
            self.rows.push(Effect::DeleteChange(self.user, old.version, old.ordinal));
        }
        let change = ChangeRow {
            key: mutation.key.clone(),
            content_hash: next.content_hash,
            deleted: !next.is_live(),
            device: self.batch.device.clone(),
        };
        self.rows.push(Effect::PutRecord(self.user, mutation.key.clone(), next, content));
        self.rows.push(Effect::PutChange(self.user, self.version, ordinal, change));
        MutationResult { changed: true, version: self.version }
    }

    fn live_row(&self, ordinal: u16, content: &Content) -> RecordRow {
        RecordRow {
            version: self.version,
            ordinal,
            content_hash: content_hash(content),
            content_type: content.content_type.clone(),
            payload_len: content.payload.len() as u64,
            update_time: self.now,
            delete_time: None,
        }
    }

    fn tombstone(&self, ordinal: u16, last: &RecordRow) -> RecordRow {
        RecordRow {
            version: self.version,
            ordinal,
            content_hash: last.content_hash,
            content_type: String::new(),
            payload_len: 0,
            update_time: self.now,
            delete_time: Some(self.now),
        }
    }

    /// Adds a live record to what sums it up.
    fn list(&mut self, key: &RecordKey, row: &RecordRow) {
        let digest = self.row.collections.entry(key.collection.clone()).or_default();
        digest.count = digest.count.saturating_add(1);
        digest.sum.add(entry_hash(&key.record_id, row.version, row.content_hash));
        let usage = &mut self.row.usage;
        usage.record_count = usage.record_count.saturating_add(1);
        usage.used_bytes = usage.used_bytes.saturating_add(row.payload_len);
    }

    /// Takes a live record out of what sums it up.
    fn unlist(&mut self, key: &RecordKey, row: &RecordRow) {
        let digest = self.row.collections.entry(key.collection.clone()).or_default();
        digest.count = digest.count.saturating_sub(1);
        digest.sum.sub(entry_hash(&key.record_id, row.version, row.content_hash));
        let usage = &mut self.row.usage;
        usage.record_count = usage.record_count.saturating_sub(1);
        usage.used_bytes = usage.used_bytes.saturating_sub(row.payload_len);
        self.forget_empty(&key.collection);
    }

    /// An emptied collection looks like one never used, as a recomputation would have it. A sum that is left over
    /// without records is damage, and stays to be seen.
    fn forget_empty(&mut self, collection: &Collection) {
        if self.row.collections.get(collection).is_some_and(|digest| *digest == Default::default()) {
            self.row.collections.remove(collection);
        }
    }
}

fn unchanged(stored: Option<&RecordRow>) -> MutationResult {
    MutationResult { changed: false, version: stored.map_or(Version(0), |row| row.version) }
}
