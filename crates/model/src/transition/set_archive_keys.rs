//! `SetArchiveKeys`: a new generation of keys for what is shipped offsite.
//!
//! Invariants: generations of a history only rise, and what a generation is never changes: of two leaders that make one at
//! the same time the first in the log wins. Once a history is encrypted it stays so.

use std::sync::Arc;

use super::{Draft, Judged};
use crate::command::ArchiveKeys;
use crate::outcome::Outcome;
use crate::state::History;

pub(super) fn judge(keys: &ArchiveKeys, history: &History, draft: &mut Draft) -> Judged {
    let known = draft.sys.archive_keys.as_deref().filter(|known| known.incarnation == history.incarnation);
    let is_new = known.is_none_or(|known| known.generation < keys.generation);
    if is_new && keys.incarnation == history.incarnation {
        draft.sys.archive_keys = Some(Arc::new(ArchiveKeys { since: draft.sys.now, ..keys.clone() }));
    }
    Ok(Outcome::Done)
}
