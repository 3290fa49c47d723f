//! Errors, by what the caller should do about them.

use std::time::Duration;

use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use tonic::{Code, Status};

/// Why a call gave no answer. `reason` is the stable reason of the API (`NO_LEADER`, `TOKEN_MALFORMED`, …); it is
/// empty when no Holdfast node said it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Fix the call: the request, or the configuration of this client.
    #[error("{message}")]
    Invalid {
        /// Stable reason.
        reason: String,
        /// What is wrong.
        message: String,
    },
    /// A guard failed and nothing was applied: refetch, merge, send again with a new request id.
    #[error("{message}")]
    Conflict {
        /// Failed guards.
        info: Box<v1::ConflictInfo>,
        /// What failed.
        message: String,
    },
    /// No such thing.
    #[error("{message}")]
    NotFound {
        /// Stable reason.
        reason: String,
        /// What is not there.
        message: String,
    },
    /// It cannot be done as things are; no retry helps until they change.
    #[error("{message}")]
    Precondition {
        /// Stable reason.
        reason: String,
        /// Evidence and remedy.
        message: String,
    },
    /// The caller may not.
    #[error("{message}")]
    Forbidden {
        /// Stable reason.
        reason: String,
        /// What is not allowed.
        message: String,
    },
    /// No node could answer within the deadline. A write had no effect.
    #[error("{message}")]
    Unavailable {
        /// Stable reason: `NO_LEADER`, `REPLICA_BEHIND`, …
        reason: String,
        /// What the last node said.
        message: String,
    },
    /// Refused before anything was proposed, until the deadline ended.
    #[error("{message}")]
    Overloaded {
        /// Stable reason: `OVERLOADED`, `DISK_FULL`, `USER_QUOTA`, …
        reason: String,
        /// What is full.
        message: String,
        /// Come back after this long; `None` = room must be made first.
        retry_after: Option<Duration>,
    },
    /// The write may or may not take effect: send the same request, with the same request id, again.
    #[error("the outcome of request {request_id} is unknown ({message}); send it again with the same request id")]
    OutcomeUnknown {
        /// The request id to repeat.
        request_id: String,
        /// What the last node said.
        message: String,
    },
    /// Stored data does not match its checksum: page an operator. Devices keep their data.
    #[error("{message}")]
    Corrupt {
        /// Stable reason.
        reason: String,
        /// What is damaged.
        message: String,
    },
    /// This server does not do that (yet).
    #[error("{message}")]
    Unsupported {
        /// What.
        message: String,
    },
    /// A defect, here or there.
    #[error("{message}")]
    Internal {
        /// Stable reason.
        reason: String,
        /// What happened.
        message: String,
    },
}

impl Error {
    /// Stable reason; empty when no Holdfast node said it.
    pub fn reason(&self) -> &str {
        match self {
            Self::Conflict { .. } => "VERSION_MISMATCH",
            Self::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN",
            Self::Unsupported { .. } => "UNSUPPORTED",
            Self::Invalid { reason, .. }
            | Self::NotFound { reason, .. }
            | Self::Precondition { reason, .. }
            | Self::Forbidden { reason, .. }
            | Self::Unavailable { reason, .. }
            | Self::Overloaded { reason, .. }
            | Self::Corrupt { reason, .. }
            | Self::Internal { reason, .. } => reason,
        }
    }

    pub(crate) fn invalid(message: impl ToString) -> Self {
        Self::Invalid { reason: String::new(), message: message.to_string() }
    }

    pub(crate) fn unavailable(message: impl ToString) -> Self {
        Self::Unavailable { reason: String::new(), message: message.to_string() }
    }

    /// A node broke the API's promise.
    pub(crate) fn protocol(message: impl ToString) -> Self {
        Self::Internal { reason: String::new(), message: message.to_string() }
    }

    /// Reads what a node, or the transport, said.
    pub(crate) fn of(status: &Status) -> Self {
        let details = details_of(status);
        let reason = details.reason;
        let message = explain(status);
        match status.code() {
            Code::Aborted => match details.conflicts {
                Some(info) => Self::Conflict { info: Box::new(info), message },
                None => Self::Precondition { reason, message },
            },
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid { reason, message },
            Code::NotFound => Self::NotFound { reason, message },
            Code::FailedPrecondition | Code::AlreadyExists => Self::Precondition { reason, message },
            Code::PermissionDenied | Code::Unauthenticated => Self::Forbidden { reason, message },
            Code::ResourceExhausted => Self::Overloaded { reason, message, retry_after: details.retry_after },
            Code::DataLoss => Self::Corrupt { reason, message },
            Code::Unimplemented => Self::Unsupported { message },
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unavailable { reason, message },
            Code::Internal | Code::Unknown if reason.is_empty() => Self::Unavailable { reason, message },
            Code::Internal | Code::Unknown | Code::Ok => Self::Internal { reason, message },
        }
    }
}

/// The message, and for transport errors the cause at the bottom, which alone says something ("connection refused").
fn explain(status: &Status) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    let mut last = None;
    while let Some(error) = cause {
        last = Some(error.to_string());
        cause = error.source();
    }
    match last {
        Some(last) if !status.message().contains(&last) => format!("{}: {last}", status.message()),
        _ if status.message().is_empty() => status.code().to_string(),
        _ => status.message().to_owned(),
    }
}

/// The request cannot have reached a node: no connection was made.
pub(crate) fn never_sent(status: &Status) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use holdfast_model::outcome::{Conflict, Rejection};
    use holdfast_wire::status::Refusal;

    use super::*;

    #[test]
    fn every_refusal_has_its_kind() {
        let of = |refusal: Refusal| Error::of(&Status::from(refusal));
        let conflict =
            Conflict { index: 0, current_version: holdfast_model::id::Version(3), deleted: false, content_hash: None };
        let rejection = Rejection::VersionMismatch { conflicts: vec![conflict], head: None };
        match of(Refusal::Rejected(rejection, None)) {
            Error::Conflict { info, .. } => assert_eq!(info.conflicts[0].current_version, 3),
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(of(Refusal::field("user_id", "is empty")), Error::Invalid { reason, .. } if reason == "INVALID_FIELD")
        );
        assert!(matches!(of(Refusal::NoLeader), Error::Unavailable { reason, .. } if reason == "NO_LEADER"));
        assert!(matches!(of(Refusal::Corrupt("x".into())), Error::Corrupt { .. }));
        assert!(matches!(of(Refusal::NotFound("x".into())), Error::NotFound { .. }));
        assert!(matches!(of(Refusal::Internal("x".into())), Error::Internal { .. }));
        assert!(matches!(of(Refusal::DiskFull("e".into())), Error::Overloaded { retry_after: Some(_), .. }));
        assert!(matches!(of(Refusal::Rejected(Rejection::RequestTooOld, None)), Error::Precondition { .. }));
        assert_eq!(of(Refusal::Unsupported("undelete")).reason(), "UNSUPPORTED");
        for status in [Status::permission_denied("no"), Status::unauthenticated("who")] {
            assert!(matches!(Error::of(&status), Error::Forbidden { .. }));
        }
        assert!(matches!(Error::of(&Status::out_of_range("too large")), Error::Invalid { .. }));
        assert!(matches!(Error::of(&Status::aborted("no details")), Error::Precondition { .. }));
        assert!(matches!(Error::of(&Status::already_exists("it")), Error::Precondition { .. }));
    }

    #[test]
    fn a_broken_connection_is_not_a_defect() {
        for code in [Code::Unknown, Code::Internal, Code::Cancelled, Code::DeadlineExceeded] {
            let status = Status::new(code, "transport error");
            assert!(matches!(Error::of(&status), Error::Unavailable { .. }), "{status}");
        }
        assert!(!never_sent(&Status::unavailable("a node said so")));
    }
}
