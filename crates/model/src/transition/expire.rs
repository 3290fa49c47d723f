//! `Expire`: acts on what is due in the expiry queue, at most `EXPIRE_ITEMS_MAX` items at a time.
//!
//! Invariants:
//! - Forgetting requests is housekeeping only: the rules treat a request that is due as gone already.
//! - A record whose TTL ended becomes a tombstone by a commit like any other: a version, a change row, a wake-up. Until
//!   then it is there.
//! - A tombstone is forgotten only when every device of the user has seen it; the horizon then covers it, and the horizon
//!   never falls.
//! - An item acts only on the row that queued it, at the time that row says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::writing::{Writing, account};
use super::{Draft, Judged};
use crate::id::{Collection, DeviceId, Millis, RecordKey, Slot, UserId, Version};
use crate::limits::{EXPIRE_ITEMS_MAX, TOMBSTONE_RETRY_MS_MIN};
use crate::outcome::Outcome;
use crate::state::{DeviceRow, Effect, ExpiryItem, History, RecordRow, StateRead, Touched, UserRef, UserRow};

/// A user with something due that is not housekeeping.
#[derive(Default)]
struct Due {
    name: Option<UserId>,
    records: Vec<(RecordKey, RecordRow)>,
    tombstones: Vec<(RecordKey, RecordRow)>,
}

pub(super) fn judge<S: StateRead>(
    state: &S,
    index: u64,
    history: &History,
    draft: &mut Draft,
) -> Result<Judged, S::Error> {
    let now = draft.sys.now;
    let mut users: BTreeMap<UserRef, Due> = BTreeMap::new();
    let mut gone: BTreeMap<UserRef, BTreeSet<DeviceId>> = BTreeMap::new();
    for (time, item) in state.due(now, EXPIRE_ITEMS_MAX)? {
        match &item {
            ExpiryItem::Request(user, id) => {
                // The row decides, not the queue: an id that was committed again since is remembered anew.
                if state.request(*user, *id)?.is_some_and(|row| row.expires <= now) {
                    draft.effects.rows.push(Effect::DeleteRequest(*user, *id));
                }
            }
            ExpiryItem::Record(name, key) => {
                let user = state.uid(name)?.map(|uid| UserRef { slot: Slot::of(name), uid });
                if let Some(user) = user
                    && let Some(row) = state.record(user, key)?.filter(|row| row.expire_time == Some(time))
                {
                    let due = users.entry(user).or_default();
                    due.name = Some(name.clone());
                    due.records.push((key.clone(), row));
                    // Taken out of the queue with the record that it belongs to.
                    continue;
                }
            }
            ExpiryItem::Tombstone(user, key) => {
                if let Some(row) = state.record(*user, key)?.filter(|row| row.purge_time == Some(time)) {
                    users.entry(*user).or_default().tombstones.push((key.clone(), row));
                }
            }
            ExpiryItem::Device(user, device) => {
                if state.devices(*user)?.get(device).is_some_and(|row| row.expires == time) {
                    draft.effects.rows.push(Effect::DeleteDevice(*user, device.clone()));
                    gone.entry(*user).or_default().insert(device.clone());
                }
            }
        }
        draft.effects.rows.push(Effect::DeleteExpiry(time, item));
    }
    for (user, due) in users {
        // A number without a row is damage; nothing is built upon it.
        let Some(before) = state.user(user)? else {
            // Left in the queue, it would come first for ever.
            let names = due.name.iter().flat_map(|name| due.records.iter().map(move |(key, row)| (name, key, row)));
            let ended = names.filter_map(|(name, key, row)| Some((row.expire_time?, name.clone(), key.clone())));
            let rows = &mut draft.effects.rows;
            rows.extend(ended.map(|(at, name, key)| Effect::DeleteExpiry(at, ExpiryItem::Record(name, key))));
            continue;
        };
        let mut devices = state.devices(user)?;
        devices.retain(|device, _| !gone.get(&user).is_some_and(|gone| gone.contains(device)));
        let mut row = forget(user, UserRow::clone(&before), &due.tombstones, &devices, draft);
        if let Some(name) = due.name {
            row = end_records(user, &name, row, &due.records, index, history, draft);
        }
        if row != *before {
            account(&mut draft.sys, user.uid, Some(&before), &row);
            draft.effects.rows.push(Effect::PutUser(user, Arc::new(row)));
        }
    }
    Ok(Ok(Outcome::Done))
}

/// Forgets tombstones that every device has seen; the others are looked at again later.
fn forget(
    user: UserRef,
    mut row: UserRow,
    tombstones: &[(RecordKey, RecordRow)],
    devices: &BTreeMap<DeviceId, DeviceRow>,
    draft: &mut Draft,
) -> UserRow {
    let acked = devices.values().map(|device| device.acked).min();
    let pause_ms = (draft.sys.policy.tombstone_age_ms / 16).max(TOMBSTONE_RETRY_MS_MIN);
    let again = Millis(draft.sys.now.0.saturating_add(pause_ms));
    let rows = &mut draft.effects.rows;
    for (key, tombstone) in tombstones {
        if acked.is_none_or(|acked| acked >= tombstone.version) {
            rows.push(Effect::DeleteRecord(user, key.clone()));
            rows.push(Effect::DeleteChange(user, tombstone.version, tombstone.ordinal));
            row.tombstone_horizon = row.tombstone_horizon.max(tombstone.version);
        } else {
            let later = RecordRow { purge_time: Some(again), ..tombstone.clone() };
            rows.push(Effect::PutRecord(user, key.clone(), later, None));
            rows.push(Effect::PutExpiry(again, ExpiryItem::Tombstone(user, key.clone())));
        }
    }
    row
}

/// Turns records whose TTL ended into tombstones, all of a user's in one commit.
fn end_records(
    user: UserRef,
    name: &UserId,
    row: UserRow,
    records: &[(RecordKey, RecordRow)],
    index: u64,
    history: &History,
    draft: &mut Draft,
) -> UserRow {
    let Draft { sys, effects } = draft;
    let mut writing = Writing::new(user, None, sys, history, row, &mut effects.rows);
    for (key, record) in records {
        writing.expire(name, key, record);
    }
    let collections: BTreeSet<Collection> = writing.touched();
    let row = writing.finish(sys, index);
    let head: Version = row.head;
    effects.touched.push(Touched { user: name.clone(), head, collections });
    row
}
