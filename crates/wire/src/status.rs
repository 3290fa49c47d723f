//! Refusals: every error a caller can meet, with what to do about it. Each becomes a `google.rpc.Status` with an
//! `ErrorInfo` of domain `holdfast`; one that may be retried carries `RetryInfo`.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_model::limits::{DEVICES_MAX, MESSAGE_BYTES_MAX, WATCH_USERS_MAX};
use holdfast_model::outcome::{Conflict, Rejection};
use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};
use tonic_types::pb as rpc;

use crate::token::TokenError;
use crate::v1;

/// Domain of every `ErrorInfo`.
pub const DOMAIN: &str = "holdfast";

/// A malformed field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// Why a call was refused, by what the caller should do.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// Fix these fields.
    Invalid(Vec<Violation>),
    /// Reconcile by manifest, or use the right token.
    Token(TokenError),
    /// The rules refused; with the evaluation point for `ConflictInfo`.
    Rejected(Rejection, Option<v1::ResponseHeader>),
    /// Nobody leads; try again.
    NoLeader,
    /// This replica is behind what was asked for; try again or elsewhere.
    ReplicaBehind,
    /// This node is going down; try elsewhere.
    Draining,
    /// Payloads of this collection are not there yet: a restore brings them later.
    Restoring(String),
    /// This node's state is damaged and is being reinstalled; try elsewhere.
    Diverged,
    /// The node holds no cluster yet.
    NotFounded,
    /// The write may or may not take effect: retry with the same request id only. True: the caller's deadline ended.
    OutcomeUnknown {
        /// The deadline ended.
        deadline: bool,
    },
    /// Too much is waiting; try again after this long.
    Overloaded(Duration),
    /// Disks have no room for more data, deletes still work; or for nothing at all: the evidence says which.
    DiskFull(String),
    /// A required offsite destination is too far behind: nothing is taken until it holds more of the log.
    OutboxFull(String),
    /// The caller took a part of its answer too slowly.
    TooSlow,
    /// The stream watches as many users as one may.
    WatchLimit,
    /// The message is larger than the service takes.
    MessageTooLarge,
    /// The bytes are not the message that the method takes.
    MalformedMessage(String),
    /// The call has a deadline so short that no answer could come in time.
    DeadlineTooShort,
    /// Built later.
    Unsupported(&'static str),
    /// No such thing.
    NotFound(String),
    /// The call names a method that the listener does not have.
    NoSuchMethod,
    /// An operation cannot be done as things are; says why and what clears it.
    Precondition {
        /// Stable reason.
        reason: &'static str,
        /// Evidence and remedy.
        message: String,
    },
    /// Stored data does not match its checksum.
    Corrupt(String),
    /// A defect or a failing disk of this node.
    Internal(String),
}

impl Refusal {
    /// One malformed field.
    pub fn field(field: impl Into<String>, description: impl ToString) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), description: description.to_string() }])
    }

    fn parts(&self) -> (Code, &'static str, String, Option<Duration>) {
        let retry = Some(Duration::from_millis(100));
        let text = |text: &str| text.to_owned();
        match self {
            Self::Invalid(violations) => {
                let list: Vec<String> =
                    violations.iter().map(|one| format!("{} {}", one.field, one.description)).collect();
                (Code::InvalidArgument, "INVALID_FIELD", list.join("; "), None)
            }
            Self::Token(error) => {
                let reason = match error {
                    TokenError::Malformed => "TOKEN_MALFORMED",
                    TokenError::OtherUser => "TOKEN_OTHER_USER",
                    TokenError::FilterChanged => "FILTER_CHANGED",
                };
                (Code::InvalidArgument, reason, format!("{error}; start from an empty token or reconcile"), None)
            }
            Self::Rejected(rejection, _) => {
                let (code, reason, message) = rejection_parts(rejection);
                (code, reason, message, None)
            }
            Self::NoLeader => {
                (Code::Unavailable, "NO_LEADER", text("no leader is known; nothing was proposed; try again"), retry)
            }
            Self::ReplicaBehind => (
                Code::Unavailable,
                "REPLICA_BEHIND",
                text("this replica has not applied what was asked for; try again or ask another node"),
                retry,
            ),
            Self::Draining => {
                (Code::Unavailable, "DRAINING", text("this node is shutting down; ask another node"), retry)
            }
            Self::Diverged => (
                Code::Unavailable,
                "REPLICA_DIVERGED",
                text("this node's state is damaged and is being reinstalled from a peer; ask another node"),
                retry,
            ),
            Self::Restoring(collection) => (
                Code::Unavailable,
                "COLLECTION_RESTORING",
                format!(
                    "payloads of {collection} are still being restored; ask for other collections or for metadata only, \
                     and for these later; devices keep what they have"
                ),
                Some(Duration::from_secs(5)),
            ),
            Self::NotFounded => (
                Code::Unavailable,
                "NOT_FOUNDED",
                text("this node belongs to no cluster yet; run `holdfast cluster init`"),
                Some(Duration::from_secs(1)),
            ),
            Self::OutcomeUnknown { deadline } => {
                let code = if *deadline { Code::DeadlineExceeded } else { Code::Unavailable };
                (
                    code,
                    "OUTCOME_UNKNOWN",
                    text("the write may or may not take effect; retry with the same request id only"),
                    retry,
                )
            }
            Self::Overloaded(after) => {
                (Code::ResourceExhausted, "OVERLOADED", text("too much is waiting; nothing was proposed"), Some(*after))
            }
            Self::DiskFull(evidence) => (
                Code::ResourceExhausted,
                "DISK_FULL",
                format!(
                    "nearly full: {evidence}; nothing was proposed; make room or grow the disk, it clears by itself"
                ),
                Some(Duration::from_secs(5)),
            ),
            Self::OutboxFull(evidence) => (
                Code::ResourceExhausted,
                "OUTBOX_FULL",
                format!(
                    "read-only until offsite copies have caught up: {evidence}; nothing was proposed; see the \
                     destination's last error in `holdfast cluster status`, it clears by itself"
                ),
                Some(Duration::from_secs(5)),
            ),
            Self::TooSlow => (
                Code::DeadlineExceeded,
                "TOO_SLOW",
                text("a part of the answer was not taken in time and the rest is given up; ask again, and read on"),
                retry,
            ),
            Self::WatchLimit => (
                Code::ResourceExhausted,
                "WATCH_LIMIT",
                format!("a stream watches at most {WATCH_USERS_MAX} users; open another one for more"),
                None,
            ),
            Self::MessageTooLarge => (
                Code::ResourceExhausted,
                "MESSAGE_TOO_LARGE",
                format!("the message is larger than {MESSAGE_BYTES_MAX} bytes; send fewer mutations in one call"),
                None,
            ),
            Self::MalformedMessage(why) => (
                Code::InvalidArgument,
                "MALFORMED_MESSAGE",
                format!("the request cannot be read ({why}); nothing was done; check it against proto/holdfast/v1"),
                None,
            ),
            Self::DeadlineTooShort => (
                Code::DeadlineExceeded,
                "DEADLINE_TOO_SHORT",
                text("the deadline leaves no time for an answer; nothing was proposed; allow some milliseconds"),
                retry,
            ),
            Self::Unsupported(what) => (Code::Unimplemented, "UNSUPPORTED", format!("{what} is not built yet"), None),
            Self::NoSuchMethod => (
                Code::Unimplemented,
                "UNSUPPORTED",
                text(
                    "this listener has no such method: calls about records and users go to a node's client address, \
                     those about the cluster, its nodes and backups to its admin address",
                ),
                None,
            ),
            Self::NotFound(what) => (Code::NotFound, "NOT_FOUND", format!("{what} does not exist"), None),
            Self::Precondition { reason, message } => (Code::FailedPrecondition, reason, message.clone(), None),
            Self::Corrupt(message) => (Code::DataLoss, "CHECKSUM", message.clone(), None),
            Self::Internal(message) => (Code::Internal, "INTERNAL", message.clone(), None),
        }
    }

    /// Stable reason, as in `ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        self.parts().1
    }
}

fn rejection_parts(rejection: &Rejection) -> (Code, &'static str, String) {
    let parts = |code, reason, text: &str| (code, reason, text.to_owned());
    match rejection {
        Rejection::VersionMismatch { .. } => parts(
            Code::Aborted,
            "VERSION_MISMATCH",
            "a guard failed and nothing was applied; refetch, merge, send again with a new request id",
        ),
        Rejection::RequestIdReused => parts(
            Code::InvalidArgument,
            "REQUEST_ID_REUSED",
            "this request id was committed with another body; use a new one for a new request",
        ),
        Rejection::RequestTooOld => parts(
            Code::FailedPrecondition,
            "REQUEST_TOO_OLD",
            "first_sent_time is beyond the dedup window: the outcome is unknown; compare the content hash",
        ),
        Rejection::RequestFromFuture => parts(
            Code::InvalidArgument,
            "REQUEST_FROM_FUTURE",
            "first_sent_time is more than 5 minutes ahead of server_time; derive it from server_time",
        ),
        Rejection::IncarnationMismatch => parts(
            Code::FailedPrecondition,
            "INCARNATION_MISMATCH",
            "the guards speak of another history; sync first, then guard with the current incarnation",
        ),
        Rejection::NotFounded => {
            parts(Code::FailedPrecondition, "NOT_FOUNDED", "the cluster is not founded, or already is")
        }
        Rejection::UnknownRules(rules) => (
            Code::FailedPrecondition,
            "UNKNOWN_RULES",
            format!("the entry was written under rules {rules}, newer than this binary; upgrade this node"),
        ),
        Rejection::UserQuota { wanted_bytes, quota_bytes } => (
            Code::ResourceExhausted,
            "USER_QUOTA",
            format!("the user would keep {wanted_bytes} bytes and may keep {quota_bytes}; delete something first"),
        ),
        Rejection::TokenNotCurrent => parts(
            Code::FailedPrecondition,
            "TOKEN_NOT_CURRENT",
            "the token cannot be continued in this history; call GetChanges with it and follow what that answers",
        ),
        Rejection::DeviceLimit => (
            Code::ResourceExhausted,
            "DEVICE_LIMIT",
            format!("the user has {DEVICES_MAX} devices already; drop one that is not used any more (DropDevice)"),
        ),
        Rejection::LineageFork => parts(
            Code::FailedPrecondition,
            "LINEAGE_FORK",
            "an offsite archive of this history holds other entries than this cluster, so that nothing is written to \
             either; see `holdfast cluster health`; an operator opens a new history from one of them",
        ),
        Rejection::Poisoned => parts(
            Code::Internal,
            "POISONED",
            "the rules failed on this request (a defect); it had no effect on any replica",
        ),
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// `ConflictInfo` of a failed guard.
pub fn conflict_info(conflicts: &[Conflict], header: Option<v1::ResponseHeader>) -> v1::ConflictInfo {
    v1::ConflictInfo {
        conflicts: conflicts
            .iter()
            .map(|conflict| v1::Conflict {
                index: conflict.index,
                current_version: conflict.current_version.0,
                deleted: conflict.deleted,
                content_hash: conflict
                    .content_hash
                    .map(|hash| bytes::Bytes::copy_from_slice(&hash.0))
                    .unwrap_or_default(),
            })
            .collect(),
        header,
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason, message, retry) = refusal.parts();
        let info = rpc::ErrorInfo { reason: reason.to_owned(), domain: DOMAIN.to_owned(), metadata: HashMap::new() };
        let mut details = vec![any("google.rpc.ErrorInfo", &info)];
        if let Some(delay) = retry {
            let delay = prost_types::Duration { seconds: delay.as_secs() as i64, nanos: delay.subsec_nanos() as i32 };
            details.push(any("google.rpc.RetryInfo", &rpc::RetryInfo { retry_delay: Some(delay) }));
        }
        match &refusal {
            Refusal::Invalid(violations) => {
                let field_violations = violations
                    .iter()
                    .take(32)
                    .map(|one| rpc::bad_request::FieldViolation {
                        field: one.field.clone(),
                        description: one.description.clone(),
                        ..Default::default()
                    })
                    .collect();
                details.push(any("google.rpc.BadRequest", &rpc::BadRequest { field_violations }));
            }
            Refusal::Rejected(Rejection::VersionMismatch { conflicts, .. }, header) => {
                details.push(any("holdfast.v1.ConflictInfo", &conflict_info(conflicts, *header)));
            }
            _ => {}
        }
        let status = rpc::Status { code: code as i32, message: message.clone(), details };
        Self::with_details(code, message, status.encode_to_vec().into())
    }
}

/// The status of a call that ended before a handler of ours saw it, with the reason that every error carries. What has
/// details stays as it is.
pub fn explained(status: Status) -> Status {
    if status.code() == Code::Ok || !status.details().is_empty() {
        return status;
    }
    match status.code() {
        // As tonic has it for a message beyond the limit.
        Code::OutOfRange | Code::ResourceExhausted => Refusal::MessageTooLarge.into(),
        Code::Unimplemented => Refusal::NoSuchMethod.into(),
        // Handlers never return a bare INTERNAL: this one is about reading the request.
        Code::Internal | Code::InvalidArgument | Code::Unknown => {
            Refusal::MalformedMessage(status.message().to_owned()).into()
        }
        Code::NotFound => Refusal::NotFound("what the call names".into()).into(),
        _ => status,
    }
}

/// What a client reads back from a `Status`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ErrorDetails {
    /// Stable reason; empty when the status came from elsewhere.
    pub reason: String,
    /// Wait this long before a retry; `None` = do not retry.
    pub retry_after: Option<Duration>,
    /// Failed guards.
    pub conflicts: Option<v1::ConflictInfo>,
}

/// Reads the details of a status; anything unreadable is left out.
pub fn details_of(status: &Status) -> ErrorDetails {
    let mut out = ErrorDetails::default();
    let Ok(message) = rpc::Status::decode(status.details()) else { return out };
    for detail in message.details {
        match detail.type_url.rsplit('/').next() {
            Some("google.rpc.ErrorInfo") => {
                if let Ok(info) = rpc::ErrorInfo::decode(&detail.value[..])
                    && info.domain == DOMAIN
                {
                    out.reason = info.reason;
                }
            }
            Some("google.rpc.RetryInfo") => {
                out.retry_after = rpc::RetryInfo::decode(&detail.value[..])
                    .ok()
                    .and_then(|info| info.retry_delay)
                    .and_then(|delay| Duration::try_from(delay).ok());
            }
            Some("holdfast.v1.ConflictInfo") => {
                out.conflicts = v1::ConflictInfo::decode(&detail.value[..]).ok();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_survives_the_way_to_the_client() {
        let conflict =
            Conflict { index: 1, current_version: holdfast_model::id::Version(9), deleted: false, content_hash: None };
        let rejection = Rejection::VersionMismatch { conflicts: vec![conflict], head: None };
        let status = Status::from(Refusal::Rejected(rejection, None));
        assert_eq!(status.code(), Code::Aborted);
        let details = details_of(&status);
        assert_eq!(details.reason, "VERSION_MISMATCH");
        assert_eq!(details.retry_after, None);
        assert_eq!(details.conflicts.expect("there").conflicts[0].current_version, 9);
    }

    /// Codes and reasons are the contract that clients act on; only what may be retried says when.
    #[test]
    fn every_refusal_has_its_code_reason_and_pause() {
        let rejected = |rejection| Refusal::Rejected(rejection, None);
        let mismatch = Rejection::VersionMismatch { conflicts: Vec::new(), head: None };
        let quota = Rejection::UserQuota { wanted_bytes: 2, quota_bytes: 1 };
        let precondition = Refusal::Precondition { reason: "NOT_FRESH", message: "m".into() };
        let table = [
            (Refusal::field("a", "b"), Code::InvalidArgument, "INVALID_FIELD", None),
            (Refusal::Token(TokenError::Malformed), Code::InvalidArgument, "TOKEN_MALFORMED", None),
            (Refusal::Token(TokenError::OtherUser), Code::InvalidArgument, "TOKEN_OTHER_USER", None),
            (Refusal::Token(TokenError::FilterChanged), Code::InvalidArgument, "FILTER_CHANGED", None),
            (rejected(mismatch), Code::Aborted, "VERSION_MISMATCH", None),
            (rejected(Rejection::RequestIdReused), Code::InvalidArgument, "REQUEST_ID_REUSED", None),
            (rejected(Rejection::RequestTooOld), Code::FailedPrecondition, "REQUEST_TOO_OLD", None),
            (rejected(Rejection::RequestFromFuture), Code::InvalidArgument, "REQUEST_FROM_FUTURE", None),
            (rejected(Rejection::IncarnationMismatch), Code::FailedPrecondition, "INCARNATION_MISMATCH", None),
            (rejected(Rejection::NotFounded), Code::FailedPrecondition, "NOT_FOUNDED", None),
            (rejected(Rejection::UnknownRules(2)), Code::FailedPrecondition, "UNKNOWN_RULES", None),
            (rejected(Rejection::Poisoned), Code::Internal, "POISONED", None),
            (rejected(quota), Code::ResourceExhausted, "USER_QUOTA", None),
            (rejected(Rejection::TokenNotCurrent), Code::FailedPrecondition, "TOKEN_NOT_CURRENT", None),
            (rejected(Rejection::DeviceLimit), Code::ResourceExhausted, "DEVICE_LIMIT", None),
            (rejected(Rejection::LineageFork), Code::FailedPrecondition, "LINEAGE_FORK", None),
            (Refusal::WatchLimit, Code::ResourceExhausted, "WATCH_LIMIT", None),
            (Refusal::TooSlow, Code::DeadlineExceeded, "TOO_SLOW", Some(100)),
            (Refusal::MessageTooLarge, Code::ResourceExhausted, "MESSAGE_TOO_LARGE", None),
            (Refusal::MalformedMessage("m".into()), Code::InvalidArgument, "MALFORMED_MESSAGE", None),
            (Refusal::DeadlineTooShort, Code::DeadlineExceeded, "DEADLINE_TOO_SHORT", Some(100)),
            (Refusal::NoLeader, Code::Unavailable, "NO_LEADER", Some(100)),
            (Refusal::ReplicaBehind, Code::Unavailable, "REPLICA_BEHIND", Some(100)),
            (Refusal::Draining, Code::Unavailable, "DRAINING", Some(100)),
            (Refusal::Diverged, Code::Unavailable, "REPLICA_DIVERGED", Some(100)),
            (Refusal::NotFounded, Code::Unavailable, "NOT_FOUNDED", Some(1000)),
            (Refusal::OutcomeUnknown { deadline: true }, Code::DeadlineExceeded, "OUTCOME_UNKNOWN", Some(100)),
            (Refusal::OutcomeUnknown { deadline: false }, Code::Unavailable, "OUTCOME_UNKNOWN", Some(100)),
            (Refusal::Overloaded(Duration::from_millis(20)), Code::ResourceExhausted, "OVERLOADED", Some(20)),
            (Refusal::DiskFull("e".into()), Code::ResourceExhausted, "DISK_FULL", Some(5000)),
            (Refusal::OutboxFull("e".into()), Code::ResourceExhausted, "OUTBOX_FULL", Some(5000)),
            (Refusal::Unsupported("undelete"), Code::Unimplemented, "UNSUPPORTED", None),
            (Refusal::NoSuchMethod, Code::Unimplemented, "UNSUPPORTED", None),
            (Refusal::NotFound("it".into()), Code::NotFound, "NOT_FOUND", None),
            (precondition, Code::FailedPrecondition, "NOT_FRESH", None),
            (Refusal::Corrupt("m".into()), Code::DataLoss, "CHECKSUM", None),
            (Refusal::Internal("m".into()), Code::Internal, "INTERNAL", None),
        ];
        for (refusal, code, reason, retry_ms) in table {
            assert_eq!(refusal.reason(), reason);
            let status = Status::from(refusal);
            assert_eq!(status.code(), code, "{reason}");
            let details = details_of(&status);
            assert_eq!(details.reason, reason);
            assert_eq!(details.retry_after, retry_ms.map(Duration::from_millis), "{reason}");
        }
    }

    #[test]
    fn what_the_stack_refuses_gets_a_reason_and_what_has_one_keeps_it() {
        let reason = |status| details_of(&explained(status)).reason;
        assert_eq!(reason(Status::out_of_range("found 9 bytes, the limit is 8")), "MESSAGE_TOO_LARGE");
        assert_eq!(reason(Status::internal("failed to decode Protobuf message")), "MALFORMED_MESSAGE");
        assert_eq!(reason(Status::unimplemented("")), "UNSUPPORTED");
        assert_eq!(reason(Refusal::Internal("disk".into()).into()), "INTERNAL");
    }

    #[test]
    fn violations_are_named_in_the_details() {
        let violations = vec![Violation { field: "user_id".into(), description: "is empty".into() }; 40];
        let status = rpc::Status::decode(Status::from(Refusal::Invalid(violations)).details()).expect("decodes");
        let request = status.details.iter().find(|detail| detail.type_url.ends_with("google.rpc.BadRequest"));
        let request = rpc::BadRequest::decode(&request.expect("there").value[..]).expect("decodes");
        assert_eq!(request.field_violations.len(), 32, "trailers are small");
        assert_eq!(request.field_violations[0].field, "user_id");
        assert_eq!(request.field_violations[0].description, "is empty");
    }

    #[test]
    fn what_another_service_said_is_not_taken_for_ours() {
        let info =
            rpc::ErrorInfo { reason: "NO_LEADER".into(), domain: "proxy.example".into(), metadata: HashMap::new() };
        let details = vec![any("google.rpc.ErrorInfo", &info)];
        let status = rpc::Status { code: Code::Unavailable as i32, message: String::new(), details };
        let status = Status::with_details(Code::Unavailable, "", status.encode_to_vec().into());
        assert_eq!(details_of(&status).reason, "");
        assert_eq!(details_of(&Status::with_details(Code::Unavailable, "", vec![255].into())), ErrorDetails::default());
    }

    #[test]
    fn trailers_stay_small_with_the_most_conflicts() {
        let conflict = Conflict {
            index: u32::MAX,
            current_version: holdfast_model::id::Version(u64::MAX),
            deleted: true,
            content_hash: Some(holdfast_model::id::ContentHash([255; 16])),
        };
        let rejection = Rejection::VersionMismatch { conflicts: vec![conflict; 32], head: None };
        assert!(Status::from(Refusal::Rejected(rejection, None)).details().len() <= 4096);
    }
}
