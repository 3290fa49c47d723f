//! Streams that writes share.
//!
//! Invariants:
//! - Every batch that is handed to a lane gets an answer: its own, or why the lane ended.
//! - A lane that ended takes nothing more; the next batch opens another one.
//! - Who stops waiting for an answer leaves nothing behind: what was not sent by then is not sent any more, or a node that is
//!   behind would go on with work for nobody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_wire::v1;
use holdfast_wire::v1::stream_write_response::Outcome;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::client::records;
use crate::retry::Attempt;

/// Batches that wait for a lane to send them.
const QUEUED_MAX: usize = 256;

type Answer = Result<v1::BatchWriteResponse, Status>;

/// All lanes of a client.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Of each node.
    nodes: Vec<Vec<Mutex<Option<Lane>>>>,
    /// Batches take lanes in turn.
    turn: AtomicUsize,
    next_id: AtomicU64,
}

#[derive(Debug, Clone)]
struct Lane {
    out: mpsc::Sender<Queued>,
    pending: Arc<Pending>,
}

/// A batch that is not sent yet.
#[derive(Debug)]
struct Queued {
    correlation_id: u64,
    write: v1::BatchWriteRequest,
    /// When its caller stops waiting.
    until: Instant,
}

/// Batches without an answer.
#[derive(Debug, Default)]
struct Pending(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// Why the lane ended.
    ended: Option<Status>,
}

impl Lanes {
    pub(crate) fn new(nodes: usize, streams: usize) -> Self {
        let lanes = || (0..streams.max(1)).map(|_| Mutex::default()).collect();
        let nodes = std::iter::repeat_with(lanes).take(nodes).collect();
        Self { nodes, turn: AtomicUsize::new(0), next_id: AtomicU64::new(1) }
    }

    /// Sends a batch, and waits for what becomes of it.
    pub(crate) async fn write(&self, attempt: Attempt<v1::BatchWriteRequest>) -> Answer {
        let lanes = &self.nodes[attempt.node];
        let slot = &lanes[self.turn.fetch_add(1, Ordering::Relaxed) % lanes.len()];
        let correlation_id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (lane, answer) = enter(slot, &attempt.channel, correlation_id);
        let _waiting = Waiting { pending: lane.pending.clone(), correlation_id };
        let queued = Queued { correlation_id, write: attempt.request, until: Instant::now() + attempt.time };
        // Where it cannot be sent the lane has ended, and says why.
        let _ = lane.out.send(queued).await;
        answer.await.unwrap_or_else(|_| Err(broken_off()))
    }
}

/// Takes a place on the lane of a slot, or on a new one.
fn enter(slot: &Mutex<Option<Lane>>, channel: &Channel, correlation_id: u64) -> (Lane, oneshot::Receiver<Answer>) {
    let (answer, answered) = oneshot::channel();
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lane) = slot.as_ref() {
        let mut state = lane.pending.state();
        if state.ended.is_none() {
            state.waiting.insert(correlation_id, answer);
            drop(state);
            return (lane.clone(), answered);
        }
    }
    let (out, requests) = mpsc::channel(QUEUED_MAX);
    let pending = Arc::<Pending>::default();
    pending.state().waiting.insert(correlation_id, answer);
    let lane = Lane { out, pending: pending.clone() };
    tokio::spawn(run(channel.clone(), requests, pending));
    *slot = Some(lane.clone());
    (lane, answered)
}

/// Until the stream ends; what waits then is told why.
async fn run(channel: Channel, requests: mpsc::Receiver<Queued>, pending: Arc<Pending>) {
    let opened = records(channel).stream_write(outgoing(requests, pending.clone())).await;
    let why = match opened {
        Err(status) => status,
        Ok(answers) => {
            let mut answers = answers.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(answer)) => pending.answer(answer),
                    Ok(None) => break broken_off(),
                    Err(status) => break status,
                }
            }
        }
    };
    pending.end(&why);
}

/// What somebody still waits for, with the time that is left of it.
fn outgoing(requests: mpsc::Receiver<Queued>, pending: Arc<Pending>) -> impl Stream<Item = v1::StreamWriteRequest> {
    ReceiverStream::new(requests).filter_map(move |Queued { correlation_id, write, until }| {
        let left = until.saturating_duration_since(Instant::now());
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let is_awaited = pending.state().waiting.contains_key(&correlation_id);
        is_awaited.then(|| v1::StreamWriteRequest { correlation_id, write: Some(write), timeout_ms })
    })
}

/// Nobody says whether what it carried took effect.
fn broken_off() -> Status {
    Status::unavailable("the stream of writes broke off")
}

impl Pending {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, answer: v1::StreamWriteResponse) {
        let waiting = self.state().waiting.remove(&answer.correlation_id);
        let outcome = match answer.outcome {
            Some(Outcome::Written(written)) => Ok(written),
            Some(Outcome::Refused(refused)) => {
                Err(Status::with_details(Code::from(refused.code), refused.message, refused.details))
            }
            None => Err(broken_off()),
        };
        if let Some(waiting) = waiting {
            // Who waited may be gone.
            let _ = waiting.send(outcome);
        }
    }

    fn end(&self, why: &Status) {
        let mut state = self.state();
        state.ended = Some(why.clone());
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for (_, waiting) in waiting {
            let _ = waiting.send(Err(why.clone()));
        }
    }
}

/// A place on a lane, until its answer came or nobody waits for it any more.
struct Waiting {
    pending: Arc<Pending>,
    correlation_id: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pending.state().waiting.remove(&self.correlation_id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_sent_and_the_rest_says_how_long_it_may_take() {
        let (out, requests) = mpsc::channel(8);
        let pending = Arc::<Pending>::default();
        let mut answers = Vec::new();
        let later = Instant::now() + Duration::from_secs(3600);
        for (correlation_id, until) in [(1, later), (2, later), (3, Instant::now())] {
            let (answer, answered) = oneshot::channel();
            pending.state().waiting.insert(correlation_id, answer);
            answers.push(answered);
            out.try_send(Queued { correlation_id, write: Default::default(), until }).expect("room");
        }
        drop(Waiting { pending: pending.clone(), correlation_id: 2 });
        drop(out);
        let sent: Vec<_> = outgoing(requests, pending).map(|one| (one.correlation_id, one.timeout_ms)).collect().await;
        assert!(matches!(sent[..], [(1, 3_000_000..=3_600_000), (3, 1)]), "{sent:?}");
    }
}
