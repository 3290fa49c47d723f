//! Exit codes, the same for every command, and how a failure is told.

use std::io::ErrorKind;

use holdfast_archive::ArchiveError;
use holdfast_client::Error as ClientError;
use holdfast_store::StoreError;

use crate::output::Format;

/// What a command answers to the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Yes; done.
    Ok = 0,
    /// It failed, or the request was wrong.
    Error = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// No, or not safe.
    Unsafe = 3,
    /// Unknown or stale: treat it as "no".
    Unknown = 4,
    /// Nobody answered.
    Unreachable = 5,
    /// Not allowed.
    Forbidden = 6,
    /// No such thing.
    NotFound = 7,
    /// A guard failed, or something else is there.
    Conflict = 8,
    /// Bytes are not what they should be.
    Integrity = 9,
    /// Done in part.
    Partial = 10,
}

/// A failure with its exit code, where no typed error of a library says it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    exit: Exit,
    message: String,
}

/// An error that ends the process with `exit`.
pub fn failure(exit: Exit, message: impl ToString) -> anyhow::Error {
    Failure { exit, message: message.to_string() }.into()
}

/// Exit code of an error: that of the first cause that has one.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    let known = error.chain().find_map(|cause| {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return Some(failure.exit);
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return Some(exit_of_client(error));
        }
        if let Some(error) = cause.downcast_ref::<StoreError>() {
            return Some(exit_of_store(error));
        }
        cause.downcast_ref::<ArchiveError>().map(exit_of_archive)
    });
    known.unwrap_or(Exit::Error)
}

fn exit_of_client(error: &ClientError) -> Exit {
    match error {
        ClientError::Conflict { .. } => Exit::Conflict,
        ClientError::NotFound { .. } => Exit::NotFound,
        ClientError::Precondition { reason, .. } => match reason.as_str() {
            "REQUEST_TOO_OLD" => Exit::Unknown,
            "INCARNATION_MISMATCH" | "OPERATION_IN_PROGRESS" | "KEYS_EXIST" => Exit::Conflict,
            // What a check refused; each reason is the id of one.
            "QUORUM_ONE_DOMAIN"
            | "ALL_COPIES_ONE_DOMAIN"
            | "TOO_FEW_COPIES"
            | "NO_QUORUM_LEFT"
            | "NODE_NOT_FRESH"
            | "TOO_FEW_RECIPIENTS"
            | "LINEAGE_FORK"
            | "NODE_ID_USED"
            | "NOT_CONFIRMED" => Exit::Unsafe,
            _ => Exit::Error,
        },
        ClientError::Forbidden { .. } => Exit::Forbidden,
        ClientError::Unavailable { reason, .. } if reason == "REPLICA_BEHIND" => Exit::Unknown,
        ClientError::Unavailable { .. } => Exit::Unreachable,
        ClientError::OutcomeUnknown { .. } => Exit::Unknown,
        ClientError::Corrupt { .. } => Exit::Integrity,
        ClientError::Invalid { .. }
        | ClientError::Overloaded { .. }
        | ClientError::Unsupported { .. }
        | ClientError::Internal { .. } => Exit::Error,
    }
}

fn exit_of_archive(error: &ArchiveError) -> Exit {
    match error {
        error if error.is_integrity() => Exit::Integrity,
        error if error.is_transient() => Exit::Unreachable,
        ArchiveError::NoChoice { .. } | ArchiveError::NoBucket { .. } => Exit::NotFound,
        ArchiveError::Forbidden { .. } | ArchiveError::MayNotDelete { .. } | ArchiveError::NoKey { .. } => {
            Exit::Forbidden
        }
        ArchiveError::Target { .. } | ArchiveError::Fenced { .. } => Exit::Conflict,
        ArchiveError::BadDestination { .. } | ArchiveError::Keys { .. } => Exit::Usage,
        ArchiveError::Store { source, .. } => exit_of_store(source),
        _ => Exit::Error,
    }
}

fn exit_of_store(error: &StoreError) -> Exit {
    match error {
        StoreError::Locked { .. } | StoreError::Mismatch { .. } => Exit::Conflict,
        StoreError::Corrupt { .. } => Exit::Integrity,
        _ => Exit::Error,
    }
}

/// What to do next, where the error itself does not say it.
fn remedy(exit: Exit, of_archive: bool) -> Option<&'static str> {
    match exit {
        // An archive's error says itself what to do.
        Exit::Unreachable if !of_archive => Some("is the cluster running? name its addresses with --endpoint"),
        Exit::Unreachable => None,
        Exit::Unknown => Some("treat this as not done: look before you repeat it"),
        Exit::Integrity => Some("nothing was changed; keep the damaged bytes for a look, and use another copy"),
        Exit::Ok
        | Exit::Error
        | Exit::Usage
        | Exit::Unsafe
        | Exit::Forbidden
        | Exit::NotFound
        | Exit::Conflict
        | Exit::Partial => None,
    }
}

/// Tells a failure on stderr, and for programs also on stdout; gives the exit code.
pub fn report(format: Format, error: &anyhow::Error) -> Exit {
    // A reader that went away, as `head` does, wants no more and no complaint.
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed) {
        return Exit::Ok;
    }
    let exit = exit_of(error);
    let message = describe(error);
    let reason = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()).map(ClientError::reason);
    let reason = reason.filter(|reason| !reason.is_empty());
    match reason {
        // A refusal names the check that refuses.
        Some(check) if exit == Exit::Unsafe => eprintln!("holdfast: {check}: {message}"),
        _ => eprintln!("holdfast: {message}"),
    }
    let of_archive = error.chain().any(|cause| cause.is::<ArchiveError>());
    if let Some(remedy) = remedy(exit, of_archive) {
        eprintln!("holdfast: {remedy}");
    }
    if format != Format::Table {
        let answer = serde_json::json!({"v": 1, "error": {"exit": exit as u8, "reason": reason, "message": message}});
        // Nobody is left to tell that stdout is closed.
        let _ = crate::output::line(&answer);
    }
    exit
}

/// The chain of causes, without a cause that repeats what was said before it.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn unavailable(reason: &str) -> ClientError {
        ClientError::Unavailable { reason: reason.into(), message: "gone".into() }
    }

    #[test]
    fn every_kind_of_failure_has_its_code() {
        let of = |error: ClientError| exit_of(&anyhow::Error::new(error)) as u8;
        assert_eq!(of(unavailable("NO_LEADER")), 5);
        assert_eq!(of(unavailable("REPLICA_BEHIND")), 4);
        assert_eq!(of(ClientError::Conflict { info: Box::default(), message: "m".into() }), 8);
        assert_eq!(of(ClientError::Invalid { reason: "TOKEN_MALFORMED".into(), message: "m".into() }), 1);
        assert_eq!(of(ClientError::OutcomeUnknown { request_id: "r".into(), message: "m".into() }), 4);
        assert_eq!(of(ClientError::Corrupt { reason: "CHECKSUM".into(), message: "m".into() }), 9);
        assert_eq!(of(ClientError::NotFound { reason: "NOT_FOUND".into(), message: "m".into() }), 7);
        assert_eq!(of(ClientError::Precondition { reason: "REQUEST_TOO_OLD".into(), message: "m".into() }), 4);
        assert_eq!(of(ClientError::Precondition { reason: "INCARNATION_MISMATCH".into(), message: "m".into() }), 8);
        let corrupt = ArchiveError::Corrupt { object: "o".into(), reason: "r".into() };
        assert_eq!(exit_of(&anyhow::Error::new(corrupt)), Exit::Integrity);
        let locked = || StoreError::Locked { path: "d/LOCK".into() };
        assert_eq!(exit_of(&anyhow::Error::new(locked())), Exit::Conflict);
        let held = ArchiveError::Store { path: "d".into(), source: locked() };
        assert_eq!(exit_of(&anyhow::Error::new(held)), Exit::Conflict);
        let full = ArchiveError::Target { path: "d".into(), reason: "it holds a node's log".into() };
        assert_eq!(exit_of(&anyhow::Error::new(full)), Exit::Conflict);
        let wrong = ArchiveError::BadDestination { name: "n".into(), url: "s3://x".into(), reason: "r".into() };
        assert_eq!(exit_of(&anyhow::Error::new(wrong)), Exit::Usage);
        let (url, reason) = ("s3://x".to_owned(), "HTTP 403".to_owned());
        let refused =
            ArchiveError::Forbidden { url: url.clone(), object: "o".into(), operation: "read", reason: reason.clone() };
        assert_eq!(exit_of(&anyhow::Error::new(refused)), Exit::Forbidden);
        assert_eq!(exit_of(&anyhow::Error::new(ArchiveError::NoBucket { url, reason })), Exit::NotFound);
        let failed = ArchiveError::Destination { object: "o".into(), operation: "read", reason: "HTTP 503".into() };
        assert_eq!(exit_of(&anyhow::Error::new(failed)), Exit::Unreachable);
        assert_eq!(exit_of(&anyhow::anyhow!("anything")), Exit::Error);
    }

    #[test]
    fn context_keeps_the_code_and_is_told_once() {
        let error = anyhow::Error::new(unavailable("")).context("record get");
        assert_eq!(exit_of(&error), Exit::Unreachable);
        assert_eq!(describe(&error), "record get: gone");
        let io = std::io::Error::other("no space");
        let error = Err::<(), _>(io).context("write x: no space").expect_err("fails");
        assert_eq!(describe(&error), "write x: no space");
    }
}
