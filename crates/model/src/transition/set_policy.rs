//! `SetPolicy`: lifetimes and quotas, as the leader's configuration has them.
//!
//! Invariant: a policy speaks of what comes: rows keep the times that they were given.

use super::{Draft, Judged};
use crate::command::Policy;
use crate::outcome::Outcome;

pub(super) fn judge(policy: Policy, draft: &mut Draft) -> Judged {
    draft.sys.policy = policy;
    Ok(Outcome::Done)
}
