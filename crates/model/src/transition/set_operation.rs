//! `SetOperation`: the state of an operator's job, kept in the log so that it outlives the node that runs it.

use super::{Draft, Judged};
use crate::command::Operation;
use crate::outcome::Outcome;
use crate::state::Effect;

pub(super) fn judge(operation: &Operation, draft: &mut Draft) -> Judged {
    draft.effects.rows.push(Effect::PutOperation(operation.clone()));
    Ok(Outcome::Done)
}
