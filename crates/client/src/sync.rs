//! The change feed as a client sees it.

use holdfast_wire::v1;

use crate::error::Error;

/// A page of changes, or an order to resync. Neither may be dropped unseen: a resync that is taken for "no changes"
/// is how devices lose data.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a resync must not be taken for `no changes`"]
pub enum SyncOutcome {
    /// Changes; persist `next_sync_token` only after applying them.
    Page(v1::ChangesPage),
    /// The token cannot be continued. Never means "wipe".
    Resync(v1::ResyncInfo),
}

/// An outcome and where it was evaluated.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a resync must not be taken for `no changes`"]
pub struct ChangesAnswer {
    /// Evaluation point.
    pub header: v1::ResponseHeader,
    /// What came out.
    pub outcome: SyncOutcome,
}

impl ChangesAnswer {
    pub(crate) fn read(answer: v1::GetChangesResponse) -> Result<Self, Error> {
        use v1::get_changes_response::Outcome;
        let outcome = match answer.outcome {
            Some(Outcome::Page(page)) => SyncOutcome::Page(page),
            Some(Outcome::Resync(resync)) => SyncOutcome::Resync(resync),
            None => {
                let message = "a node answered with an outcome that this client does not know; change nothing locally \
                               and upgrade the client";
                return Err(Error::protocol(message));
            }
        };
        Ok(Self { header: answer.header.unwrap_or_default(), outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_is_an_error_and_not_an_empty_page() {
        assert!(ChangesAnswer::read(v1::GetChangesResponse::default()).is_err());
    }
}
