//! How a test ends when it does not pass.
//!
//! Invariant: what could not be tried is `Skipped` and says why; it never counts as passed.

use std::fmt;

use holdfast_wire::status::details_of;
use tonic::Status;

/// Why a test did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A promise was broken: what was expected, and what was seen.
    Broken(String),
    /// It could not be tried here: what is missing.
    Skipped(String),
}

/// What a test ends with.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// A broken promise.
    pub fn broken(what: impl Into<String>) -> Self {
        Self::Broken(what.into())
    }

    /// A test that cannot be tried here.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self::Skipped(why.into())
    }

    /// The same failure, saying where it happened.
    pub fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Broken(what) => Self::Broken(format!("{place}: {what}")),
            Self::Skipped(why) => Self::Skipped(why),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(text) | Self::Skipped(text) => f.write_str(text),
        }
    }
}

impl From<holdfast_client::Error> for Failure {
    fn from(error: holdfast_client::Error) -> Self {
        match error.reason() {
            "UNSUPPORTED" => Self::Skipped(format!("this server lacks it: {error}")),
            reason => Self::Broken(format!("expected an answer, saw {reason:?}: {error}")),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let reason = details_of(&status).reason;
        if reason == "UNSUPPORTED" {
            return Self::Skipped(format!("this server lacks it: {}", status.message()));
        }
        Self::Broken(format!("expected an answer, saw {:?}/{reason}: {}", status.code(), status.message()))
    }
}

/// What the harness or the machine failed to do: no verdict on a promise, but no pass either.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(format!("the harness failed: {error:#}"))
    }
}

/// Fails the test with a message unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::failure::Failure::broken(format!($($message)+)));
        }
    };
}

/// Fails the test unless what was seen equals what was expected.
#[macro_export]
macro_rules! check_eq {
    ($seen:expr, $expected:expr, $($what:tt)+) => {{
        let (seen, expected) = (&$seen, &$expected);
        if seen != expected {
            let what = format!($($what)+);
            return Err($crate::failure::Failure::broken(format!("{what}: expected {expected:?}, saw {seen:?}")));
        }
    }};
}
