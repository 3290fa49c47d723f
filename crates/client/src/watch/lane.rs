//! One stream after the other, on one node after the other, for the users of one lane.

use std::sync::Arc;
use std::time::Duration;

use holdfast_wire::v1;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};
use v1::watch_response::Event;

use super::Shared;
use crate::account::sync;
use crate::error::Error;
use crate::nodes::Nodes;
use crate::retry::{self, Failure, Next, jittered};

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Messages on their way to the node. Few: who waits here can still be taken back.
const REQUESTS_MAX: usize = 2;

pub(super) struct Lane {
    pub(super) number: usize,
    pub(super) nodes: Arc<Nodes>,
    pub(super) shared: Arc<Shared>,
    /// Somebody was added or removed.
    pub(super) wake: Arc<Notify>,
    /// Without a word for so long, a node is taken for gone.
    pub(super) silence: Duration,
    /// How long a node may take to answer at all.
    pub(super) answer: Duration,
}

impl Lane {
    /// Runs until it is aborted or no node will ever serve it.
    pub(super) async fn run(self, start: usize) {
        let mut backoff = BACKOFF_FIRST;
        let mut previous = None;
        let mut refused_in_a_row = 0;
        loop {
            while !self.shared.lock().connect(self.number) {
                self.wake.notified().await;
            }
            let index = self.nodes.pick_any(previous, start);
            let opened = Instant::now();
            let failure = self.listen(index).await;
            self.shared.lock().disconnect(self.number);
            tracing::debug!(node = self.nodes.address(index), error = %failure.error, "a watch stream ended");
            previous = Some(index);
            if let Some(avoid) = failure.avoid {
                self.nodes.failed(index, avoid);
            }
            let final_refusal = matches!(failure.next, Next::Stop) && is_final(&failure.error);
            refused_in_a_row = if final_refusal { refused_in_a_row + 1 } else { 0 };
            if refused_in_a_row >= self.nodes.len() {
                self.shared.lock().fail(failure.error);
                self.shared.event.notify_one();
                return;
            }
            // A node that takes a stream and ends it at once does not make the pauses short again.
            if opened.elapsed() >= self.silence / 3 {
                backoff = BACKOFF_FIRST;
            }
            let asked = match failure.next {
                Next::After(pause) | Next::Back(pause) => pause,
                Next::Stop | Next::Elsewhere | Next::OtherCopy => Duration::ZERO,
            };
            tokio::time::sleep(jittered(backoff.max(asked))).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Listens to one node until the stream ends, however it does.
    async fn listen(&self, index: usize) -> Failure {
        let address = self.nodes.address(index);
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        // Some nodes answer only after the first message.
        if requests.try_send(self.shared.lock().request(self.number)).is_err() {
            return retry::broken_off(address);
        }
        let mut client = sync(self.nodes.channel(index));
        let opening = client.watch(Request::new(ReceiverStream::new(waiting)));
        let mut replies = match tokio::time::timeout(self.answer, opening).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return retry::judge(&status, address),
            Err(_) => return retry::timed_out(address, self.answer),
        };
        self.exchange(index, &requests, &mut replies).await
    }

    async fn exchange(
        &self,
        index: usize,
        requests: &mpsc::Sender<v1::WatchRequest>,
        replies: &mut Streaming<v1::WatchResponse>,
    ) -> Failure {
        let address = self.nodes.address(index);
        let mut silent_at = Instant::now() + self.silence;
        loop {
            let (has_todo, is_stuck) = {
                let state = self.shared.lock();
                (state.has_todo(self.number), state.is_stuck(self.number))
            };
            if is_stuck {
                return retry::broken_off(address);
            }
            tokio::select! {
                reply = replies.message() => match reply {
                    Ok(Some(reply)) => {
                        silent_at = Instant::now() + self.silence;
                        self.heard(index, reply);
                    }
                    Ok(None) => return retry::broken_off(address),
                    Err(status) => return retry::judge(&status, address),
                },
                room = requests.reserve(), if has_todo => match room {
                    Ok(room) => room.send(self.shared.lock().request(self.number)),
                    Err(_) => return retry::broken_off(address),
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(silent_at) => return retry::timed_out(address, self.silence),
            }
        }
    }

    fn heard(&self, index: usize, reply: v1::WatchResponse) {
        self.nodes.answered(index, reply.header.as_ref());
        let header = reply.header.unwrap_or_default();
        let new = match reply.event {
            Some(Event::Hint(hint)) => self.shared.lock().hint(hint, header),
            Some(Event::Resync(resync)) => self.shared.lock().resync(&resync.user_id, resync.info.unwrap_or_default()),
            Some(Event::Heartbeat(_)) | None => false,
        };
        if new {
            self.shared.event.notify_one();
        }
    }
}

fn is_final(error: &Error) -> bool {
    matches!(error, Error::Unsupported { .. } | Error::Forbidden { .. } | Error::Invalid { .. })
}
