//! `SnapshotBarrier`: every replica takes a checkpoint of exactly the state after this entry.

use std::sync::Arc;

use super::{Draft, Judged};
use crate::outcome::Outcome;

pub(super) fn judge(index: u64, draft: &mut Draft) -> Judged {
    draft.sys.barrier_index = index;
    draft.sys.attested = Arc::new(draft.sys.attested.with_barrier(index));
    draft.effects.barrier = true;
    Ok(Outcome::Done)
}
