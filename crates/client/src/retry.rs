//! One call over any number of attempts.
//!
//! Invariants:
//! - Every attempt of a write carries the same request, and so the same request id.
//! - A write is reported as failed only when no attempt of it can have taken effect; otherwise it is `OutcomeUnknown`.
//! - Nothing is waited for beyond the deadline.
//! - Every attempt but the first is paid for from the client's retry budget.
//! - No more calls are under way than the client has places for; a call keeps its place through all its attempts.

use std::cell::Cell;
use std::time::Duration;

use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::builder::Limits;
use crate::error::{Error, never_sent};
use crate::nodes::Nodes;

/// Nobody is asked with less time than this left.
pub(crate) const ATTEMPT_MIN: Duration = Duration::from_millis(10);
/// The server is told a little less than is waited for, so that its own answer is the one that arrives.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);
/// Part of the deadline for which a call waits for a place: what is left must do for the call itself.
const PLACE_WAIT_SHARE: u32 = 4;
/// When to come back to a client that has no place.
const PLACE_RETRY: Duration = Duration::from_millis(50);
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
const AVOID_UNREACHABLE: Duration = Duration::from_millis(300);
const AVOID_SLOW: Duration = Duration::from_millis(1000);

/// Answers with a header.
pub(crate) trait Headed {
    fn header(&self) -> Option<&v1::ResponseHeader>;
}

macro_rules! headed {
    ($($name:ident)*) => {$(
        impl Headed for v1::$name {
            fn header(&self) -> Option<&v1::ResponseHeader> {
                self.header.as_ref()
            }
        }
    )*};
}
headed!(BatchWriteResponse BatchGetRecordsResponse ListRecordsResponse);
headed!(GetChangesResponse GetManifestResponse AckCursorResponse ListDevicesResponse DropDeviceResponse);
headed!(GetUserResponse);

/// What a repetition could do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Effect<'a> {
    /// Nothing.
    Read,
    /// The request id makes it happen once.
    Write {
        request_id: &'a str,
        /// A rejection now proves that it was and will be rejected: no guard of it can pass later.
        rejection_is_final: bool,
    },
}

/// What to do after a failed attempt.
pub(crate) enum Next {
    /// The call ends.
    Stop,
    /// Another node, at once.
    Elsewhere,
    /// Another node, after a pause: this one, or nobody, can answer now.
    After(Duration),
    /// The same node, after a pause: it asked for one.
    Back(Duration),
    /// Another node, at once, unless all have said so: its copy is damaged or not whole yet, or its disk fails, and theirs need
    /// not be. For reads alone: what a write that met this did nobody else can tell.
    OtherCopy,
}

/// How fast attempts follow each other.
#[derive(Debug)]
pub(crate) struct Pace {
    backoff: Duration,
    at_once: usize,
    bad_copies: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { backoff: BACKOFF_FIRST, at_once: 0, bad_copies: 0 }
    }
}

impl Pace {
    /// How long to wait before the next attempt; `None` = there must be none.
    pub(crate) fn pause(&mut self, next: &Next, nodes: usize) -> Option<Duration> {
        let pause = match *next {
            Next::Stop => return None,
            Next::OtherCopy => {
                self.bad_copies += 1;
                if self.bad_copies >= nodes {
                    return None;
                }
                Duration::ZERO
            }
            Next::Elsewhere => {
                self.at_once += 1;
                // Everybody was asked: a pause before the next round.
                if self.at_once.is_multiple_of(nodes) { self.backoff } else { Duration::ZERO }
            }
            Next::After(pause) | Next::Back(pause) => pause.max(self.backoff),
        };
        if !pause.is_zero() {
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
        Some(jittered(pause))
    }
}

pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) next: Next,
    /// The attempt may have taken effect.
    unknown: bool,
    /// Leave the node alone for this long.
    pub(crate) avoid: Option<Duration>,
    /// It took too long: the next attempt gets more time.
    pub(crate) slow: bool,
}

impl Failure {
    fn new(error: Error, next: Next) -> Self {
        Self { error, next, unknown: false, avoid: None, slow: false }
    }

    fn unknown(self) -> Self {
        Self { unknown: true, ..self }
    }

    fn avoid(self, time: Duration) -> Self {
        Self { avoid: Some(time), ..self }
    }
}

/// One attempt of a call.
pub(crate) struct Attempt<Q> {
    /// Which node.
    pub(crate) node: usize,
    /// Its channel.
    pub(crate) channel: Channel,
    /// The request.
    pub(crate) request: Q,
    /// What the server is told to take.
    pub(crate) time: Duration,
}

impl<Q> Attempt<Q> {
    /// As a call of its own.
    fn unary(self) -> (Channel, Request<Q>) {
        let mut request = Request::new(self.request);
        request.set_timeout(self.time);
        (self.channel, request)
    }
}

/// Runs `call` against one node after the other until one answers for good or the deadline ends.
pub(crate) async fn run<Q, A, F, Fut>(
    nodes: &Nodes,
    limits: Limits,
    effect: Effect<'_>,
    request: Q,
    call: F,
) -> Result<A, Error>
where
    Q: Clone,
    A: Headed,
    F: Fn(Channel, Request<Q>) -> Fut,
    Fut: Future<Output = Result<Response<A>, Status>>,
{
    let call = |attempt: Attempt<Q>| {
        let (channel, request) = attempt.unary();
        let answering = call(channel, request);
        async move { answering.await.map(Response::into_inner) }
    };
    run_attempts(nodes, limits, effect, request, call).await
}

/// The same for what is no call of its own.
pub(crate) async fn run_attempts<Q, A, F, Fut>(
    nodes: &Nodes,
    limits: Limits,
    effect: Effect<'_>,
    request: Q,
    call: F,
) -> Result<A, Error>
where
    Q: Clone,
    A: Headed,
    F: Fn(Attempt<Q>) -> Fut,
    Fut: Future<Output = Result<A, Status>>,
{
    let deadline = Instant::now() + limits.deadline;
    let Some(_place) = nodes.enter(limits.deadline / PLACE_WAIT_SHARE).await else { return Err(no_place(limits)) };
    let mut attempt_time = limits.attempt;
    let mut pace = Pace::default();
    let mut unknown = false;
    let mut index = nodes.pick(None);
    nodes.called();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = attempt_time.min(left);
        let attempt = Attempt {
            node: index,
            channel: nodes.channel(index),
            request: request.clone(),
            time: time.saturating_sub(ANSWER_MARGIN).max(time / 2),
        };
        let failure = match tokio::time::timeout(time, call(attempt)).await {
            Ok(Ok(answer)) => {
                nodes.answered(index, answer.header());
                return Ok(answer);
            }
            Ok(Err(status)) => judge(&status, nodes.address(index)),
            Err(_) => timed_out(nodes.address(index), time),
        };
        let is_write = matches!(effect, Effect::Write { .. });
        if is_write && matches!(failure.next, Next::OtherCopy) {
            return Err(conclude(effect, unknown, failure.error));
        }
        unknown |= failure.unknown;
        if let Some(avoid) = failure.avoid {
            nodes.failed(index, avoid);
        }
        if failure.slow {
            attempt_time = attempt_time.saturating_mul(2);
        }
        let Some(pause) = pace.pause(&failure.next, nodes.len()) else {
            return Err(conclude(effect, unknown, failure.error));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left < pause + ATTEMPT_MIN {
            return Err(conclude(effect, unknown, out_of_time(nodes, limits, failure.error)));
        }
        if !nodes.may_retry() {
            return Err(conclude(effect, unknown, out_of_budget(failure.error)));
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        index = match failure.next {
            Next::Back(_) => index,
            Next::Stop | Next::Elsewhere | Next::After(_) | Next::OtherCopy => nodes.pick(Some(index)),
        };
    }
}

pub(crate) fn judge(status: &Status, address: &str) -> Failure {
    let error = Error::of(status);
    let details = details_of(status);
    if details.reason.is_empty() {
        return transport_failure(status, error, address);
    }
    let Some(after) = details.retry_after else {
        return match error {
            Error::Corrupt { .. } | Error::Internal { .. } => Failure::new(error, Next::OtherCopy).avoid(AVOID_SLOW),
            error => Failure::new(error, Next::Stop),
        };
    };
    match details.reason.as_str() {
        "OUTCOME_UNKNOWN" => Failure::new(error, Next::After(after)).unknown(),
        "DRAINING" | "REPLICA_DIVERGED" => Failure::new(error, Next::Elsewhere).avoid(AVOID_SLOW),
        // Says nothing bad about the node, but whoever was thought to lead does not.
        "NO_LEADER" | "REPLICA_BEHIND" | "NOT_FOUNDED" => Failure::new(error, Next::After(after)).avoid(Duration::ZERO),
        // What one node lacks the others lack too, give or take a moment; it comes in minutes, not within a call.
        "COLLECTION_RESTORING" => Failure::new(error, Next::OtherCopy),
        _ if status.code() == Code::ResourceExhausted => Failure::new(error, Next::Back(after)),
        _ if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) => {
            Failure::new(error, Next::After(after))
        }
        _ => Failure::new(error, Next::Stop),
    }
}

/// No Holdfast node said this: a connection, a proxy, or the HTTP/2 stack.
fn transport_failure(status: &Status, error: Error, address: &str) -> Failure {
    let Error::Unavailable { message, .. } = error else { return Failure::new(error, Next::Stop) };
    let failure = Failure::new(Error::unavailable(format!("{address}: {message}")), Next::Elsewhere);
    if never_sent(status) {
        return failure.avoid(AVOID_UNREACHABLE);
    }
    match status.code() {
        // tonic ends a call at its deadline with Cancelled.
        Code::Cancelled | Code::DeadlineExceeded => Failure { slow: true, ..failure.unknown().avoid(AVOID_SLOW) },
        _ => failure.unknown().avoid(AVOID_UNREACHABLE),
    }
}

pub(crate) fn timed_out(address: &str, time: Duration) -> Failure {
    let error = Error::unavailable(format!("{address}: no answer within {} ms", time.as_millis()));
    Failure { slow: true, ..Failure::new(error, Next::Elsewhere).unknown().avoid(AVOID_SLOW) }
}

pub(crate) fn out_of_time(nodes: &Nodes, limits: Limits, last: Error) -> Error {
    let wrap = |message: String| {
        format!("no answer from {} within {} ms; last: {message}", nodes.addresses(), limits.deadline.as_millis())
    };
    match last {
        Error::Unavailable { reason, message } => Error::Unavailable { reason, message: wrap(message) },
        other => other,
    }
}

fn no_place(limits: Limits) -> Error {
    let waited = (limits.deadline / PLACE_WAIT_SHARE).as_millis();
    Error::Overloaded {
        reason: "OVERLOADED".to_owned(),
        message: format!(
            "this client has as many calls under way as it may (calls_max) and as many waiting, or none ended within {waited} \
             ms; nothing was sent: send less at a time"
        ),
        retry_after: Some(PLACE_RETRY),
    }
}

/// A stream ended before it was complete, without a word why.
pub(crate) fn broken_off(address: &str) -> Failure {
    let error = Error::unavailable(format!("{address}: the stream ended before its end"));
    Failure::new(error, Next::Elsewhere).avoid(AVOID_UNREACHABLE)
}

pub(crate) fn out_of_budget(last: Error) -> Error {
    match last {
        Error::Unavailable { reason, message } => {
            let message = format!("{message}; not tried again: too many calls failed of late (retry budget spent)");
            Error::Unavailable { reason, message }
        }
        other => other,
    }
}

/// What the caller is told, given that an earlier attempt may have taken effect.
fn conclude(effect: Effect<'_>, unknown: bool, error: Error) -> Error {
    let Effect::Write { request_id, rejection_is_final } = effect else { return error };
    let proves_nothing = match &error {
        // Beyond its window an id is no longer recognised: an earlier attempt may have taken effect.
        Error::Precondition { reason, .. } if reason == "REQUEST_TOO_OLD" => true,
        Error::Conflict { .. } | Error::Precondition { .. } => !rejection_is_final,
        // The same request was as malformed before.
        Error::Invalid { .. } => false,
        Error::OutcomeUnknown { .. } => false,
        Error::Unavailable { .. }
        | Error::Overloaded { .. }
        | Error::Internal { .. }
        | Error::NotFound { .. }
        | Error::Forbidden { .. }
        | Error::Corrupt { .. }
        | Error::Unsupported { .. } => true,
    };
    if unknown && proves_nothing {
        Error::OutcomeUnknown { request_id: request_id.to_owned(), message: error.to_string() }
    } else {
        error
    }
}

/// Between half of `pause` and one and a half: clients that failed together do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0) };
    }
    if pause.is_zero() {
        return pause;
    }
    STATE.with(|state| {
        let mut x = state.get();
        if x == 0 {
            let mut seed = [0; 8];
            // Without randomness the pauses are merely alike.
            let _ = getrandom::fill(&mut seed);
            x = u64::from_le_bytes(seed) | 1;
        }
        // Xorshift (Marsaglia 2003): enough to spread clients.
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        pause / 2 + pause.mul_f64((x >> 11) as f64 / (1u64 << 53) as f64)
    })
}

#[cfg(test)]
mod tests;
