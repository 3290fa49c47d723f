//! `Attest`: a replica says what its state was right behind a snapshot barrier.
//!
//! Invariant: only what is of this history, and of a barrier that is still kept, is taken in; nothing said is ever changed.

use std::sync::Arc;

use super::{Draft, Judged};
use crate::attest::Attestation;
use crate::outcome::Outcome;
use crate::state::History;

pub(super) fn judge(said: &Attestation, history: &History, draft: &mut Draft) -> Judged {
    let is_of_it = said.incarnation == history.incarnation;
    if let Some(attested) = is_of_it.then(|| draft.sys.attested.with(said)).flatten() {
        draft.sys.attested = Arc::new(attested);
    }
    Ok(Outcome::Done)
}
