//! `Expire`: drops what is due in the expiry queue, at most `EXPIRE_ITEMS_MAX` items at a time.
//!
//! Invariant: sweeping is housekeeping only. The rules treat what is due as gone already, so no answer depends on when,
//! or whether, this command ran.

use super::{Draft, Judged};
use crate::limits::EXPIRE_ITEMS_MAX;
use crate::outcome::Outcome;
use crate::state::{Effect, ExpiryItem, StateRead};

pub(super) fn judge<S: StateRead>(state: &S, draft: &mut Draft) -> Result<Judged, S::Error> {
    let now = draft.sys.now;
    for (time, item) in state.due(now, EXPIRE_ITEMS_MAX)? {
        match item {
            ExpiryItem::Request(user, id) => {
                // The row decides, not the queue: an id that was committed again since is remembered anew.
                if state.request(user, id)?.is_some_and(|row| row.expires <= now) {
                    draft.effects.rows.push(Effect::DeleteRequest(user, id));
                }
            }
        }
        draft.effects.rows.push(Effect::DeleteExpiry(time, item));
    }
    Ok(Ok(Outcome::Done))
}
