//! One commit of one user, row by row: what a batch and an expiring record have in common.
//!
//! Invariants:
//! - Each record has exactly one change row, at its (version, ordinal).
//! - Each record with a TTL and each tombstone is in the expiry queue once, at its time, and nothing else of records is.
//! - Usage, digests and totals move with the rows they sum up.

use std::collections::BTreeSet;

use crate::command::{Content, Guard, Mutation, Op};
use crate::digest::{content_hash, entry_hash, user_row_hash};
use crate::id::{Collection, DeviceId, Millis, RecordKey, Uid, UserId, Version};
use crate::outcome::MutationResult;
use crate::state::{ChangeRow, Effect, ExpiryItem, Fork, History, RecordRow, Sys, UserRef, UserRow};

/// A commit being written: the user's row as it becomes, and the effects so far.
pub(super) struct Writing<'a> {
    user: UserRef,
    device: Option<&'a DeviceId>,
    now: Millis,
    tombstone_age_ms: u64,
    version: Version,
    ordinal: u16,
    row: UserRow,
    touched: BTreeSet<Collection>,
    rows: &'a mut Vec<Effect>,
}

impl<'a> Writing<'a> {
    /// Begins the commit after `row`'s head.
    pub(super) fn new(
        user: UserRef,
        device: Option<&'a DeviceId>,
        sys: &Sys,
        history: &History,
        row: UserRow,
        rows: &'a mut Vec<Effect>,
    ) -> Self {
        let version = row.head.next_in(history.epoch);
        let tombstone_age_ms = sys.policy.tombstone_age_ms;
        Self { user, device, now: sys.now, tombstone_age_ms, version, ordinal: 0, row, touched: BTreeSet::new(), rows }
    }

    /// Performs one mutation on what is stored.
    pub(super) fn mutate(&mut self, user: &UserId, mutation: &Mutation, stored: Option<RecordRow>) -> MutationResult {
        let lost = match mutation.guard {
            Guard::Restore(guard) => Some(guard.lost),
            Guard::None | Guard::Version(_) | Guard::Absent | Guard::Exists => None,
        };
        // A re-upload leaves its mark even where the content is there already: without it, an older one that comes
        // later would win. The same re-upload again changes nothing.
        let marked = lost.is_none() || stored.as_ref().is_some_and(|row| row.lost == lost);
        let live = stored.as_ref().filter(|row| row.is_live());
        let (next, content) = match &mutation.op {
            Op::Put(content) => {
                let next = RecordRow { lost, ..self.live_row(content) };
                // A TTL starts anew with every put.
                let same = live.is_some_and(|live| live.content_hash == next.content_hash);
                if marked && same && (lost.is_some() || content.ttl_seconds == 0) {
                    return unchanged(stored.as_ref());
                }
                (next, Some(content.clone()))
            }
            Op::Delete if marked && live.is_none() => return unchanged(stored.as_ref()),
            Op::Delete => (RecordRow { lost, ..self.tombstone(stored.as_ref()) }, None),
        };
        self.replace(user, &mutation.key, stored.as_ref(), next, content)
    }

    /// A live record's TTL ended.
    pub(super) fn expire(&mut self, user: &UserId, key: &RecordKey, stored: &RecordRow) {
        // The end of a re-uploaded record is its re-uploader's doing: whoever lost a newer change still comes through.
        let next = RecordRow { lost: stored.lost, ..self.tombstone(Some(stored)) };
        self.replace(user, key, Some(stored), next, None);
    }

    /// Collections changed so far.
    pub(super) fn touched(&self) -> BTreeSet<Collection> {
        self.touched.clone()
    }

    /// The user's row after the commit; its head moved if anything changed.
    pub(super) fn finish(self, sys: &Sys, index: u64) -> UserRow {
        let Self { version, mut row, touched, .. } = self;
        if !touched.is_empty() {
            record_forks(sys, &mut row);
            row.move_head(sys, version, index);
        }
        row
    }

    fn replace(
        &mut self,
        user: &UserId,
        key: &RecordKey,
        stored: Option<&RecordRow>,
        next: RecordRow,
        content: Option<Content>,
    ) -> MutationResult {
        if let Some(old) = stored {
            if old.is_live() {
                self.unlist(key, old);
            }
            self.rows.extend(due(self.user, user, key, old).map(|(at, item)| Effect::DeleteExpiry(at, item)));
            self.rows.push(Effect::DeleteChange(self.user, old.version, old.ordinal));
        }
        if next.is_live() {
            self.list(key, &next);
        }
        self.rows.extend(due(self.user, user, key, &next).map(|(at, item)| Effect::PutExpiry(at, item)));
        let change = ChangeRow {
            key: key.clone(),
            content_hash: next.content_hash,
            deleted: !next.is_live(),
            device: self.device.cloned(),
        };
        self.rows.push(Effect::PutRecord(self.user, key.clone(), next, content));
        self.rows.push(Effect::PutChange(self.user, self.version, self.ordinal, change));
        self.touched.insert(key.collection.clone());
        self.ordinal += 1;
        MutationResult { changed: true, version: self.version }
    }

    fn live_row(&self, content: &Content) -> RecordRow {
        let ttl_ms = u64::from(content.ttl_seconds) * 1000;
        RecordRow {
            version: self.version,
            ordinal: self.ordinal,
            content_hash: content_hash(content),
            content_type: content.content_type.clone(),
            payload_len: content.payload.len() as u64,
            update_time: self.now,
            delete_time: None,
            expire_time: (ttl_ms > 0).then(|| Millis(self.now.0.saturating_add(ttl_ms))),
            purge_time: None,
            lost: None,
        }
    }

    fn tombstone(&self, last: Option<&RecordRow>) -> RecordRow {
        RecordRow {
            version: self.version,
            ordinal: self.ordinal,
            content_hash: last.map_or(crate::id::ContentHash([0; 16]), |last| last.content_hash),
            content_type: String::new(),
            payload_len: 0,
            update_time: self.now,
            delete_time: Some(self.now),
            expire_time: None,
            purge_time: Some(Millis(self.now.0.saturating_add(self.tombstone_age_ms))),
            lost: None,
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

/// Where a record stands in the expiry queue.
pub(crate) fn due(user: UserRef, name: &UserId, key: &RecordKey, row: &RecordRow) -> Option<(Millis, ExpiryItem)> {
    let expires = row.expire_time.map(|at| (at, ExpiryItem::Record(name.clone(), key.clone())));
    expires.or_else(|| row.purge_time.map(|at| (at, ExpiryItem::Tombstone(user, key.clone()))))
}

/// The group's digest and totals follow a user's row.
pub(super) fn account(sys: &mut Sys, uid: Uid, before: Option<&UserRow>, after: &UserRow) {
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

/// The first commit in a new epoch is the last chance to see where the ended histories left the user.
fn record_forks(sys: &Sys, row: &mut UserRow) {
    for ancestor in &sys.ancestors {
        if row.forks.iter().all(|fork| fork.incarnation != ancestor.incarnation) {
            row.forks.push(Fork { incarnation: ancestor.incarnation, common: row.head });
        }
    }
}

fn unchanged(stored: Option<&RecordRow>) -> MutationResult {
    MutationResult { changed: false, version: stored.map_or(Version(0), |row| row.version) }
}
