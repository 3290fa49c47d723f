//! `Genesis`: opens a history. The first founds a cluster; a later one continues a restored state as a new history.
//!
//! Invariants:
//! - Epochs of a lineage rise one by one, so a version is never given twice within it.
//! - An incarnation names one history for ever.
//! - What was said of the old history's log (offsite facts, barriers and what was said of them, a fork, what an
//!   earlier restore held back) does not speak for the new one's.

use std::sync::Arc;

use super::{Draft, Judged};
use crate::command::Genesis;
use crate::outcome::{Outcome, Rejection};
use crate::state::{Ancestor, History, Restoring, Sys};

pub(super) fn judge(index: u64, genesis: &Genesis, draft: &mut Draft) -> Judged {
    let sys = &mut draft.sys;
    if !may_open(sys, genesis) {
        return Err(Rejection::NotFounded);
    }
    if let Some(ended) = &sys.history {
        sys.ancestors.push(Ancestor { incarnation: ended.incarnation, epoch: ended.epoch });
    }
    sys.history = Some(Arc::new(History {
        cluster_id: genesis.cluster_id,
        cluster_name: genesis.cluster_name.clone(),
        incarnation: genesis.incarnation,
        epoch: genesis.epoch,
        parent: genesis.parent.clone(),
        genesis_index: index,
    }));
    sys.uid_counter = 0;
    sys.offsite = Arc::default();
    sys.barrier_index = 0;
    sys.lineage_fork = None;
    sys.restoring = Restoring::of(&genesis.restoring);
    // Its nodes may be others, and those that go on give their keys again.
    sys.attested = Arc::default();
    Ok(Outcome::Done)
}

/// A parent must be named exactly when the state holds its history: a founding entry never lands on people's data,
/// and a continuing one never on a state it was not cut from.
fn may_open(sys: &Sys, genesis: &Genesis) -> bool {
    match (&sys.history, &genesis.parent) {
        (None, None) => true,
        (Some(current), Some(parent)) => {
            parent.incarnation == current.incarnation
                && current.epoch.checked_add(1) == Some(genesis.epoch)
                && genesis.incarnation != current.incarnation
                && sys.ancestors.iter().all(|ancestor| ancestor.incarnation != genesis.incarnation)
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}
