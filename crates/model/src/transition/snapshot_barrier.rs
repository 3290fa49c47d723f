//! `SnapshotBarrier`: every replica takes a checkpoint of exactly the state after this entry.

use super::{Draft, Judged};
use crate::outcome::Outcome;

pub(super) fn judge(index: u64, draft: &mut Draft) -> Judged {
    draft.sys.barrier_index = index;
    draft.effects.barrier = true;
    Ok(Outcome::Done)
}
