//! `LineageFork`: an archive of this history holds another one.
//!
//! Invariants: the first fork seen stays, since all that follows is a consequence of it; what was seen of an ended history
//! says nothing of the one that continues it.

use std::sync::Arc;

use super::{Draft, Judged};
use crate::command::LineageFork;
use crate::outcome::Outcome;
use crate::state::History;

pub(super) fn judge(fork: &LineageFork, history: &History, draft: &mut Draft) -> Judged {
    let sys = &mut draft.sys;
    if sys.lineage_fork.is_none() && fork.incarnation == history.incarnation {
        sys.lineage_fork = Some(Arc::new(LineageFork { since: sys.now, ..fork.clone() }));
    }
    Ok(Outcome::Done)
}
