//! `AckCursor` and `DropDevice`: which devices hold a copy, and how far.
//!
//! Invariants:
//! - A cursor never goes back: acknowledgements come late and twice. A device that was reset to an older state has an older
//!   token, and the horizon says what that one misses.
//! - A device that nothing is heard of for the policy's time, less a sixteenth of it, may be forgotten by `Expire`; it is in
//!   the expiry queue exactly once.

use super::{Draft, Judged};
use crate::command::{AckCursor, DropDevice};
use crate::id::{DeviceId, Millis, Slot, UserId};
use crate::limits::DEVICES_MAX;
use crate::outcome::{Outcome, Rejection};
use crate::state::{DeviceRow, Effect, ExpiryItem, StateRead, UserRef};

/// An acknowledgement that says nothing new is written down only after this part of the device's lifetime.
const RENEWAL_PART: u64 = 16;

pub(super) fn ack<S: StateRead>(state: &S, ack: &AckCursor, draft: &mut Draft) -> Result<Judged, S::Error> {
    let Some(user) = known(state, &ack.user)? else { return Ok(nothing_yet(ack)) };
    let Some(row) = state.user(user)? else { return Ok(Err(Rejection::Poisoned)) };
    let current = row.common_with(state.sys(), ack.incarnation).is_some_and(|common| ack.version <= common);
    if !current || ack.version < row.tombstone_horizon {
        return Ok(Err(Rejection::TokenNotCurrent));
    }
    let devices = state.devices(user)?;
    let before = devices.get(&ack.device);
    if before.is_none() && devices.len() >= DEVICES_MAX {
        return Ok(Err(Rejection::DeviceLimit));
    }
    let now = draft.sys.now;
    let lifetime_ms = draft.sys.policy.device_expiry_ms;
    let expires = Millis(now.0.saturating_add(lifetime_ms));
    let is_news = before.is_none_or(|before| {
        ack.version > before.acked || expires.0.saturating_sub(before.expires.0) >= lifetime_ms / RENEWAL_PART
    });
    if is_news {
        let acked = before.map_or(ack.version, |before| before.acked.max(ack.version));
        unqueue(user, &ack.device, before, draft);
        let rows = &mut draft.effects.rows;
        rows.push(Effect::PutExpiry(expires, ExpiryItem::Device(user, ack.device.clone())));
        rows.push(Effect::PutDevice(user, ack.device.clone(), DeviceRow { acked, ack_time: now, expires }));
    }
    Ok(Ok(Outcome::Done))
}

pub(super) fn forget<S: StateRead>(state: &S, drop: &DropDevice, draft: &mut Draft) -> Result<Judged, S::Error> {
    if let Some(user) = known(state, &drop.user)?
        && let Some(row) = state.devices(user)?.get(&drop.device)
    {
        unqueue(user, &drop.device, Some(row), draft);
        draft.effects.rows.push(Effect::DeleteDevice(user, drop.device.clone()));
    }
    Ok(Ok(Outcome::Done))
}

/// A user without a commit has nothing that could be held back for the device; it registers with the first.
fn nothing_yet(ack: &AckCursor) -> Judged {
    if ack.version.0 == 0 { Ok(Outcome::Done) } else { Err(Rejection::TokenNotCurrent) }
}

fn known<S: StateRead>(state: &S, user: &UserId) -> Result<Option<UserRef>, S::Error> {
    Ok(state.uid(user)?.map(|uid| UserRef { slot: Slot::of(user), uid }))
}

fn unqueue(user: UserRef, device: &DeviceId, row: Option<&DeviceRow>, draft: &mut Draft) {
    if let Some(row) = row {
        draft.effects.rows.push(Effect::DeleteExpiry(row.expires, ExpiryItem::Device(user, device.clone())));
    }
}
