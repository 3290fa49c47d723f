//! The public services: each call is parsed by `wire::api`, judged by the replica, answered by `wire::reply`.

mod admin;
mod archive_keys;
mod changes;
mod devices;
mod edge;
mod fill;
mod integrity;
mod manifest;
mod members;
mod records;
mod status;
mod stream_write;
mod sync;
mod users;
mod verifications;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_model::command::Command;
use holdfast_model::id::UserId;
use holdfast_model::state::Sys;
use holdfast_replica::{Admitted, Applied, Fresh, Level, Overloaded, ProposeError, ReadError, Replica};
use holdfast_store::StoreError;
use holdfast_wire::api::Consistency;
use holdfast_wire::reply;
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Request;

use crate::config::Config;
use crate::feed::Feed;
use crate::http::Metrics;
use crate::shipper::Shipper;

pub use admin::Admin;
pub use edge::Edge;
pub use records::Records;
pub use sync::Sync;
pub use users::Users;

/// What all services share.
pub struct Shared {
    /// This node's replica.
    pub replica: Replica,
    /// Wake-ups of waiting callers.
    pub feed: Arc<Feed>,
    /// Offsite shipping.
    pub shipper: Arc<Shipper>,
    /// Configuration.
    pub config: Config,
    /// Measurements.
    pub metrics: Arc<Metrics>,
    /// The node is going down.
    pub draining: AtomicBool,
    /// Highest log index of a write that this node answered.
    pub answered: AtomicU64,
    /// Reads of rows that may run or wait for a thread.
    pub reads: Semaphore,
}

/// Before a read that was refused is worth another try.
const READ_RETRY: Duration = Duration::from_millis(50);

/// Deadline of a call: a little before the caller's (`grpc-timeout`), so that the caller still hears how the call
/// stands; else the default; never more than five minutes and a bit.
pub fn deadline_of<T>(request: &Request<T>, default: Duration) -> Instant {
    let asked = request.metadata().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    let limit = asked.map_or(default, |asked| asked.saturating_sub(answer_margin(asked)));
    Instant::now() + limit.min(Duration::from_secs(330))
}

/// The same for one of many calls on a stream, by the milliseconds that it names; 0 = it names none.
pub fn deadline_in(timeout_ms: u32, default: Duration) -> Instant {
    let asked = Some(Duration::from_millis(timeout_ms.into())).filter(|asked| !asked.is_zero());
    let limit = asked.map_or(default, |asked| asked.saturating_sub(answer_margin(asked)));
    Instant::now() + limit.min(Duration::from_secs(330))
}

/// Time kept back for the answer: a tenth, between what timers resolve and what a slow network takes.
fn answer_margin(asked: Duration) -> Duration {
    (asked / 10).clamp(edge::DEADLINE_MIN, Duration::from_millis(50))
}

/// The `grpc-timeout` header: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// A failure of this node's storage, as a caller sees it.
pub fn storage(error: StoreError) -> Refusal {
    tracing::error!(event = "storage.failed", %error, "a read failed");
    match error {
        StoreError::Corrupt { .. } => {
            Refusal::Corrupt("stored data does not match its checksum on this node; ask another node".into())
        }
        _ => Refusal::Internal("the storage of this node failed; see its log".into()),
    }
}

/// A read that could not be served.
pub fn unread(error: ReadError) -> Refusal {
    match error {
        ReadError::NoLeader => Refusal::NoLeader,
        ReadError::Behind => Refusal::ReplicaBehind,
        ReadError::Diverged => Refusal::Diverged,
        ReadError::OtherHistory => Refusal::Rejected(holdfast_model::outcome::Rejection::IncarnationMismatch, None),
        ReadError::NotFounded => Refusal::NotFounded,
    }
}

/// A proposal without an outcome.
pub fn unproposed(error: ProposeError) -> Refusal {
    match error {
        ProposeError::NoLeader => Refusal::NoLeader,
        ProposeError::Overloaded(Overloaded { retry_after, .. }) => Refusal::Overloaded(retry_after),
        ProposeError::DiskFull(evidence) => Refusal::DiskFull(evidence),
        ProposeError::OutboxFull(evidence) => Refusal::OutboxFull(evidence),
        ProposeError::Unknown { deadline } => Refusal::OutcomeUnknown { deadline },
    }
}

impl Shared {
    /// Refuses calls while the node goes down, its state is not sound, or it belongs to no cluster.
    pub fn check_serving(&self) -> Result<(), Refusal> {
        if self.draining.load(Ordering::Acquire) || self.replica.is_removed() {
            return Err(Refusal::Draining);
        }
        if self.replica.is_fenced() {
            return Err(Refusal::Diverged);
        }
        let sys = self.replica.sys();
        if self.replica.is_opened(&sys) { Ok(()) } else { Err(unread(self.replica.why_unopened(&sys))) }
    }

    /// Default deadline of a call.
    pub fn default_deadline(&self) -> Duration {
        Duration::from_millis(self.config.default_deadline_ms)
    }

    /// A view as fresh as asked for.
    pub async fn read(&self, consistency: Consistency, deadline: Instant) -> Result<Fresh, Refusal> {
        let level = match consistency {
            Consistency::Linearizable | Consistency::MaxStaleness(Duration::ZERO) => Level::Linearizable,
            Consistency::MaxStaleness(bound) => Level::MaxStaleness(bound),
            Consistency::AtLeast { incarnation, index } => Level::AtLeast(incarnation, index),
        };
        self.replica.read(level, deadline).await.map_err(unread)
    }

    /// What this node has, with all that it acknowledged itself since it started.
    pub async fn read_local(&self, deadline: Instant) -> Result<Fresh, Refusal> {
        let answered = self.answered.load(Ordering::Acquire);
        self.replica.read(Level::Local(answered), deadline).await.map_err(unread)
    }

    /// Proposes a command of a user: admitted, refused or applied.
    pub async fn propose(
        &self,
        user: &UserId,
        command: Command,
        bytes: usize,
        deadline: Instant,
    ) -> Result<Applied, Refusal> {
        let admitted = self.replica.admission().admit_user(user.as_str(), bytes).map_err(|error| {
            self.metrics.rejected(error.limit);
            Refusal::Overloaded(error.retry_after)
        })?;
        self.propose_admitted(command, admitted, deadline).await
    }

    /// Proposes a command of an operator: however much callers write, it is not refused for that.
    pub async fn propose_first(&self, command: Command, bytes: usize, deadline: Instant) -> Result<Applied, Refusal> {
        self.propose_admitted(command, self.replica.admission().admit_first(bytes), deadline).await
    }

    async fn propose_admitted(
        &self,
        command: Command,
        admitted: Admitted,
        deadline: Instant,
    ) -> Result<Applied, Refusal> {
        let proposed = self.replica.propose(command, admitted, deadline).await;
        match proposed {
            Err(ProposeError::DiskFull(_)) => self.metrics.rejected("disk_full"),
            Err(ProposeError::OutboxFull(_)) => self.metrics.rejected("outbox_full"),
            Ok(_) | Err(_) => {}
        }
        let applied = proposed.map_err(unproposed)?;
        self.answered.fetch_max(applied.index, Ordering::AcqRel);
        Ok(applied)
    }

    /// Reads rows for a caller, off the async workers; refused while too many such reads wait.
    pub async fn read_rows<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let Ok(_permit) = self.reads.try_acquire() else {
            self.metrics.rejected("reads");
            return Err(Refusal::Overloaded(READ_RETRY));
        };
        blocking(work).await
    }

    /// Header of an answer evaluated at `applied_index` under `sys`.
    pub fn header(&self, sys: &Sys, applied_index: u64) -> v1::ResponseHeader {
        v1::ResponseHeader {
            incarnation: sys.history.as_ref().map_or(0, |history| history.incarnation.0),
            applied_index,
            node_id: self.replica.node_id(),
            leader_id: self.replica.leader_hint().unwrap_or(0),
            backoff_ms: 0,
            group_id: self.replica.group_id().0,
            server_time: Some(reply::timestamp(sys.now)),
            staleness_ms: 0,
        }
    }

    /// Header of an answer read from `fresh`.
    pub fn header_of(&self, fresh: &Fresh) -> v1::ResponseHeader {
        let staleness_ms = fresh.staleness.as_millis().min(u32::MAX.into()) as u32;
        v1::ResponseHeader { staleness_ms, ..self.header(fresh.view.sys(), fresh.view.applied().index()) }
    }
}

/// Runs blocking work off the async workers.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::Internal("a read panicked; see the log".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_ends_before_its_caller_stops_listening() {
        let mut request = Request::new(());
        request.metadata_mut().insert("grpc-timeout", "200m".parse().expect("ascii"));
        let left = deadline_of(&request, Duration::from_secs(10)) - Instant::now();
        assert!(left <= Duration::from_millis(180) && left > Duration::from_millis(100), "{left:?}");
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("3S"), Some(Duration::from_secs(3)));
        for wrong in ["", "S", "123456789S", "-1S", "5x", "5"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }
}
