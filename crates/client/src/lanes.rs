//! Streams that writes share.
//!
//! Invariants:
//! - Every batch that is handed to a lane gets an answer: its own, or why the lane ended.
//! - A lane that ended takes nothing more; the next batch opens another one.
//! - Who stops waiting for an answer leaves nothing behind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_wire::v1;
use holdfast_wire::v1::stream_write_response::Outcome;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
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
    out: mpsc::Sender<v1::StreamWriteRequest>,
    pending: Arc<Pending>,
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
        let timeout_ms = u32::try_from(attempt.time.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = v1::StreamWriteRequest { correlation_id, write: Some(attempt.request), timeout_ms };
        // Where it cannot be sent the lane has ended, and says why.
        let _ = lane.out.send(request).await;
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
async fn run(channel: Channel, requests: mpsc::Receiver<v1::StreamWriteRequest>, pending: Arc<Pending>) {
    let opened = records(channel).stream_write(ReceiverStream::new(requests)).await;
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
