//! `FillPayloads`: payloads that a restore held back come to their records.
//!
//! Invariants:
//! - A record changes in nothing but that its payload is there: version, digest, feed and usage stay, since the row names
//!   the payload by length and hash, and another one is not taken.
//! - Stages come in the order that `Genesis` gave, and within one by key: a proposal that is repeated, or comes late, changes
//!   nothing.
//! - A record that was written since, or is gone, is left alone.

use std::sync::Arc;

use super::{Draft, Judged};
use crate::command::FillPayloads;
use crate::digest::content_of;
use crate::outcome::Outcome;
use crate::state::{Effect, History, Restoring, StateRead};

pub(super) fn judge<S: StateRead>(
    state: &S,
    history: &History,
    fill: &FillPayloads,
    draft: &mut Draft,
) -> Result<Judged, S::Error> {
    let Some(restoring) = draft.sys.restoring.clone() else { return Ok(Ok(Outcome::Done)) };
    let is_next = fill.incarnation == history.incarnation
        && restoring.left.first() == Some(&fill.stage)
        && (fill.ends || fill.through > restoring.through);
    if !is_next {
        return Ok(Ok(Outcome::Done));
    }
    for one in fill.fills.iter().filter(|one| one.key.collection.stage() == fill.stage) {
        if let Some(row) = state.record(one.user, &one.key)?
            && let Some(content) = content_of(&row, &one.payload)
        {
            draft.effects.rows.push(Effect::PutRecord(one.user, one.key.clone(), row, Some(content)));
        }
    }
    draft.sys.restoring = match fill.ends {
        true => Restoring::of(&restoring.left[1..]),
        false => Some(Arc::new(Restoring { left: restoring.left.clone(), through: fill.through.clone() })),
    };
    Ok(Ok(Outcome::Done))
}
