//! `OffsiteFact`: how far a destination was seen to hold the log.
//!
//! Invariant: what is known of a destination never shrinks within a history. Facts come late and twice; only news count.

use std::sync::Arc;

use super::{Draft, Judged};
use crate::command::OffsiteFact;
use crate::outcome::Outcome;

pub(super) fn judge(fact: &OffsiteFact, draft: &mut Draft) -> Judged {
    let offsite = &mut draft.sys.offsite;
    if offsite.get(&fact.destination).is_none_or(|known| known.index < fact.index) {
        Arc::make_mut(offsite).insert(fact.destination.clone(), fact.clone());
    }
    Ok(Outcome::Done)
}
