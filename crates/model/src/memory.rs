//! The whole state in memory: a reference for tests, and the oracle that replays, histories and restores are held
//! against. It keeps every row and every payload, so it is no store for a node.
//!
//! Invariants:
//! - It performs effects and judges nothing: all it knows about the rules is [`transition_guarded`].
//! - Two states are equal exactly when all their rows are.
//! - [`MemoryState::violations`] computes what it checks from the rows alone, never from the sums it checks.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use crate::command::{Content, Operation, Proposal};
use crate::digest::{Sum, content_hash, entry_hash, user_row_hash};
use crate::id::{Collection, DeviceId, Millis, RecordKey, RequestId, Slot, Uid, UserId, Version};
use crate::outcome::{Outcome, Usage};
use crate::state::{
    ChangeRow, CollectionDigest, DeviceRow, Effect, Effects, ExpiryItem, RecordRow, RequestRow, StateRead, Sys, Totals,
    UserRef, UserRow,
};
use crate::transition::{due, transition_guarded};

/// All rows of a group. Empty by default, as before `Genesis`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryState {
    /// Group facts.
    pub sys: Sys,
    /// Numbers of users.
    pub uids: BTreeMap<UserId, Uid>,
    /// User rows.
    pub users: BTreeMap<UserRef, UserRow>,
    /// Records with their content, and tombstones without.
    pub records: BTreeMap<(UserRef, RecordKey), (RecordRow, Option<Content>)>,
    /// Change feed, in its order.
    pub changes: BTreeMap<(UserRef, Version, u16), ChangeRow>,
    /// Remembered requests.
    pub requests: BTreeMap<(UserRef, RequestId), RequestRow>,
    /// Cursors of devices.
    pub devices: BTreeMap<(UserRef, DeviceId), DeviceRow>,
    /// Expiry queue, in its order.
    pub expiry: BTreeSet<(Millis, ExpiryItem)>,
    /// Jobs by id.
    pub operations: BTreeMap<String, Operation>,
}

/// Sums and digests as the rows themselves give them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recomputed {
    /// Per user: usage, and the digests of its collections.
    pub users: BTreeMap<UserRef, (Usage, BTreeMap<Collection, CollectionDigest>)>,
    /// Digest of the group, over the user rows with recomputed usage and collections in place of the stored ones.
    pub digest: Sum,
    /// Totals of the group.
    pub totals: Totals,
}

/// A broken invariant of the rows. Says where without naming people: the ids inside print as tags.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A user's usage or collection digests are not those of its live records.
    #[error("user {0:?}: usage or collection digests differ from its records")]
    UserSums(UserRef),
    /// The group's digest is not that of the user rows.
    #[error("the digest of the group differs from its user rows")]
    GroupDigest,
    /// The group's totals are not those of its rows.
    #[error("the totals of the group differ from its rows")]
    Totals,
    /// A user number without a row, or a row without a number.
    #[error("user numbers and user rows do not pair up")]
    Numbers,
    /// The change rows of a user are not exactly its records at their (version, ordinal).
    #[error("user {0:?}: change rows differ from its records")]
    Changes(UserRef),
    /// A record above its user's head, without a user, or whose row does not describe its content.
    #[error("user {0:?}: a record's row contradicts its content or its user")]
    Record(UserRef, RecordKey),
    /// The expiry queue is not exactly what requests, records, tombstones and devices put there.
    #[error("the expiry queue differs from the rows")]
    Expiry,
}

impl MemoryState {
    /// Judges an entry as every replica does, performs its effects and gives its outcome.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Outcome {
        let (outcome, effects) = self.judge(index, proposal);
        self.perform(effects);
        outcome
    }

    /// Judges an entry and changes nothing.
    pub fn judge(&self, index: u64, proposal: &Proposal) -> (Outcome, Effects) {
        match transition_guarded(self, index, proposal) {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }

    /// Performs effects, in order.
    pub fn perform(&mut self, effects: Effects) {
        // Waking and checkpoints are a node's affair.
        let Effects { sys, rows, touched: _, barrier: _ } = effects;
        for effect in rows {
            self.perform_one(effect);
        }
        if let Some(sys) = sys {
            self.sys = sys;
        }
    }

    /// Number and slot of a user; `None` = never seen.
    pub fn user_ref(&self, user: &UserId) -> Option<UserRef> {
        self.uids.get(user).map(|uid| UserRef { slot: Slot::of(user), uid: *uid })
    }

    /// A user's row by name.
    pub fn user_row(&self, user: &UserId) -> Option<&UserRow> {
        self.users.get(&self.user_ref(user)?)
    }

    /// A record with its content, or a tombstone, by name.
    pub fn record_of(&self, user: &UserId, key: &RecordKey) -> Option<&(RecordRow, Option<Content>)> {
        self.records.get(&(self.user_ref(user)?, key.clone()))
    }

    /// Usage, digests and totals from scratch, out of the records and their payloads.
    pub fn recompute_digests(&self) -> Recomputed {
        let mut out = Recomputed::default();
        for user in self.users.keys() {
            out.users.entry(*user).or_default();
        }
        for ((user, key), (row, content)) in &self.records {
            // A payload decides that a record is live, what it weighs and what it hashes to.
            let Some(content) = content else { continue };
            let (usage, collections) = out.users.entry(*user).or_default();
            usage.record_count += 1;
            usage.used_bytes += content.payload.len() as u64;
            let digest = collections.entry(key.collection.clone()).or_default();
            digest.count += 1;
            digest.sum.add(entry_hash(&key.record_id, row.version, content_hash(content)));
        }
        for (user, row) in &self.users {
            let (usage, collections) = out.users.get(user).cloned().unwrap_or_default();
            out.totals.users += 1;
            out.totals.records += usage.record_count;
            out.totals.bytes += usage.used_bytes;
            out.digest.add(user_row_hash(user.uid, &UserRow { usage, collections, ..row.clone() }));
        }
        out
    }

    /// Everything that must hold between the rows and does not; empty on a sound state.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.check_sums(&mut found);
        self.check_changes(&mut found);
        self.check_records(&mut found);
        let numbered: BTreeSet<UserRef> = self.uids.keys().filter_map(|user| self.user_ref(user)).collect();
        if numbered.len() != self.uids.len() || !numbered.iter().eq(self.users.keys()) {
            found.push(Violation::Numbers);
        }
        if self.recompute_expiry() != self.expiry {
            found.push(Violation::Expiry);
        }
        found
    }

    fn recompute_expiry(&self) -> BTreeSet<(Millis, ExpiryItem)> {
        let names: BTreeMap<UserRef, &UserId> =
            self.uids.iter().map(|(name, uid)| (UserRef { slot: Slot::of(name), uid: *uid }, name)).collect();
        let requests = self.requests.iter().map(|((user, id), row)| (row.expires, ExpiryItem::Request(*user, *id)));
        let devices =
            self.devices.iter().map(|((user, device), row)| (row.expires, ExpiryItem::Device(*user, device.clone())));
        let records = self.records.iter().filter_map(|((user, key), (row, _))| due(*user, names.get(user)?, key, row));
        requests.chain(devices).chain(records).collect()
    }

    fn check_sums(&self, found: &mut Vec<Violation>) {
        let Recomputed { users, digest, totals } = self.recompute_digests();
        for (user, (usage, collections)) in &users {
            let kept = self.users.get(user).map(|row| (row.usage, &row.collections));
            if kept != Some((*usage, collections)) {
                found.push(Violation::UserSums(*user));
            }
        }
        if digest != self.sys.digest {
            found.push(Violation::GroupDigest);
        }
        if totals != self.sys.totals {
            found.push(Violation::Totals);
        }
    }

    fn check_changes(&self, found: &mut Vec<Violation>) {
        let mut wrong = BTreeSet::new();
        for ((user, key), (row, _)) in &self.records {
            let listed = self.changes.get(&(*user, row.version, row.ordinal));
            let described = listed.is_some_and(|change| {
                change.key == *key && change.deleted != row.is_live() && change.content_hash == row.content_hash
            });
            if !described {
                wrong.insert(*user);
            }
        }
        for ((user, version, ordinal), change) in &self.changes {
            let record = self.records.get(&(*user, change.key.clone()));
            if record.is_none_or(|(row, _)| (row.version, row.ordinal) != (*version, *ordinal)) {
                wrong.insert(*user);
            }
        }
        found.extend(wrong.into_iter().map(Violation::Changes));
    }

    fn check_records(&self, found: &mut Vec<Violation>) {
        for ((user, key), (row, content)) in &self.records {
            let below_head = self.users.get(user).is_some_and(|user| row.version <= user.head);
            let described = match content {
                Some(content) => {
                    row.is_live()
                        && row.purge_time.is_none()
                        && row.expire_time.is_some() == (content.ttl_seconds > 0)
                        && row.content_hash == content_hash(content)
                        && row.content_type == content.content_type
                        && row.payload_len == content.payload.len() as u64
                }
                None => {
                    !row.is_live()
                        && row.purge_time.is_some()
                        && row.expire_time.is_none()
                        && row.content_type.is_empty()
                        && row.payload_len == 0
                }
            };
            if !below_head || !described {
                found.push(Violation::Record(*user, key.clone()));
            }
        }
    }

    fn perform_one(&mut self, effect: Effect) {
        match effect {
            Effect::PutUid(user, uid) => {
                self.uids.insert(user, uid);
            }
            Effect::PutUser(user, row) => {
                self.users.insert(user, Arc::unwrap_or_clone(row));
            }
            Effect::PutRecord(user, key, row, content) => {
                self.records.insert((user, key), (row, content));
            }
            Effect::DeleteRecord(user, key) => {
                self.records.remove(&(user, key));
            }
            Effect::PutDevice(user, device, row) => {
                self.devices.insert((user, device), row);
            }
            Effect::DeleteDevice(user, device) => {
                self.devices.remove(&(user, device));
            }
            Effect::PutChange(user, version, ordinal, row) => {
                self.changes.insert((user, version, ordinal), row);
            }
            Effect::DeleteChange(user, version, ordinal) => {
                self.changes.remove(&(user, version, ordinal));
            }
            Effect::PutRequest(user, id, row) => {
                self.requests.insert((user, id), row);
            }
            Effect::DeleteRequest(user, id) => {
                self.requests.remove(&(user, id));
            }
            Effect::PutExpiry(time, item) => {
                self.expiry.insert((time, item));
            }
            Effect::DeleteExpiry(time, item) => {
                self.expiry.remove(&(time, item));
            }
            Effect::PutOperation(operation) => {
                self.operations.insert(operation.id.clone(), operation);
            }
        }
    }
}

impl StateRead for MemoryState {
    type Error = Infallible;

    fn sys(&self) -> &Sys {
        &self.sys
    }

    fn uid(&self, user: &UserId) -> Result<Option<Uid>, Infallible> {
        Ok(self.uids.get(user).copied())
    }

    fn user(&self, user: UserRef) -> Result<Option<Arc<UserRow>>, Infallible> {
        Ok(self.users.get(&user).cloned().map(Arc::new))
    }

    fn record(&self, user: UserRef, key: &RecordKey) -> Result<Option<RecordRow>, Infallible> {
        Ok(self.records.get(&(user, key.clone())).map(|(row, _)| row.clone()))
    }

    fn request(&self, user: UserRef, id: RequestId) -> Result<Option<RequestRow>, Infallible> {
        Ok(self.requests.get(&(user, id)).cloned())
    }

    fn devices(&self, user: UserRef) -> Result<BTreeMap<DeviceId, DeviceRow>, Infallible> {
        let of_user = self.devices.iter().filter(|((of, _), _)| *of == user);
        Ok(of_user.map(|((_, device), row)| (device.clone(), *row)).collect())
    }

    fn due(&self, now: Millis, limit: usize) -> Result<Vec<(Millis, ExpiryItem)>, Infallible> {
        Ok(self.expiry.iter().take_while(|(time, _)| *time <= now).take(limit).cloned().collect())
    }
}
