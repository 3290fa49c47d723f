//! Streams that nodes answer with.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast_client::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

use super::Method;

pub type Replies<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// What a manifest stream does next. After the last step it is closed as if all were well.
#[derive(Debug, Clone)]
pub enum Step {
    Chunk(v1::GetManifestResponse),
    Break(Status),
    Hang,
}

pub fn steps(steps: Vec<Step>) -> Replies<v1::GetManifestResponse> {
    Box::pin(tokio_stream::iter(steps).then(|step| async {
        match step {
            Step::Chunk(chunk) => Ok(chunk),
            Step::Break(status) => Err(status),
            Step::Hang => std::future::pending().await,
        }
    }))
}

/// Each batch as it would be answered by itself, all beside each other. A [`Say::Break`] ends the stream.
pub fn writes(
    write: Arc<Method<v1::BatchWriteRequest, v1::BatchWriteResponse>>,
    mut requests: Streaming<v1::StreamWriteRequest>,
) -> Replies<v1::StreamWriteResponse> {
    let (out, replies) = mpsc::channel(1000);
    tokio::spawn(async move {
        while let Ok(Some(request)) = requests.message().await {
            let (write, out) = (write.clone(), out.clone());
            let timeout = Some(Duration::from_millis(request.timeout_ms.into()));
            tokio::spawn(async move {
                use v1::stream_write_response::Outcome;
                let outcome = match write.say(request.write.unwrap(), timeout).await {
                    Ok(written) => Outcome::Written(written.into_inner()),
                    Err(status) if status.metadata().contains_key("break") => {
                        let _ = out.send(Err(status)).await;
                        return;
                    }
                    Err(status) => Outcome::Refused(v1::StreamWriteRefusal {
                        code: status.code().into(),
                        message: status.message().to_owned(),
                        details: status.details().to_vec().into(),
                    }),
                };
                let answer = v1::StreamWriteResponse { correlation_id: request.correlation_id, outcome: Some(outcome) };
                let _ = out.send(Ok(answer)).await;
            });
        }
    });
    // An error is the last thing that a stream says.
    Box::pin(Ending { replies, ended: false })
}

struct Ending {
    replies: mpsc::Receiver<Result<v1::StreamWriteResponse, Status>>,
    ended: bool,
}

impl Stream for Ending {
    type Item = Result<v1::StreamWriteResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = self.replies.poll_recv(context);
        if let Poll::Ready(Some(Err(_))) = &next {
            self.ended = true;
        }
        next
    }
}

/// The watch streams of a node.
#[derive(Default)]
pub struct Watches {
    opened: Mutex<Vec<Arc<WatchStream>>>,
    /// Said to whoever opens one.
    pub refusal: Mutex<Option<Status>>,
}

/// One watch stream.
pub struct WatchStream {
    asked: Mutex<Vec<v1::WatchRequest>>,
    replies: Mutex<Option<mpsc::Sender<Result<v1::WatchResponse, Status>>>>,
    left: Mutex<bool>,
}

impl Watches {
    pub fn open(&self, mut asked: Streaming<v1::WatchRequest>) -> Result<Replies<v1::WatchResponse>, Status> {
        let (sender, replies) = mpsc::channel(1000);
        let stream =
            Arc::new(WatchStream { asked: Mutex::default(), replies: Mutex::new(Some(sender)), left: false.into() });
        self.opened.lock().unwrap().push(stream.clone());
        if let Some(status) = &*self.refusal.lock().unwrap() {
            return Err(status.clone());
        }
        tokio::spawn(async move {
            while let Ok(Some(request)) = asked.message().await {
                stream.asked.lock().unwrap().push(request);
            }
            *stream.left.lock().unwrap() = true;
            stream.replies.lock().unwrap().take();
        });
        Ok(Box::pin(ReceiverStream::new(replies)))
    }

    pub fn count(&self) -> usize {
        self.opened.lock().unwrap().len()
    }

    /// The stream that was opened as the `number`th, from 0, once it is.
    pub async fn stream(&self, number: usize) -> Arc<WatchStream> {
        until("a stream is opened", || self.opened.lock().unwrap().get(number).cloned()).await
    }
}

impl WatchStream {
    /// User and token of all that is watched, as the client said.
    pub fn watched(&self) -> BTreeMap<String, String> {
        let mut watched = BTreeMap::new();
        for request in &*self.asked.lock().unwrap() {
            for user in &request.remove_user_ids {
                watched.remove(user);
            }
            watched.extend(request.adds.iter().map(|add| (add.user_id.clone(), add.sync_token.clone())));
        }
        watched
    }

    /// Waits until exactly these are watched.
    pub async fn watches(&self, expected: &[(&str, &str)]) {
        let expected = expected.iter().map(|(user, token)| (user.to_string(), token.to_string())).collect();
        until("these users are watched", || (self.watched() == expected).then_some(())).await;
    }

    pub fn largest_request(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|request| request.adds.len() + request.remove_user_ids.len()).max().unwrap_or(0)
    }

    pub fn say(&self, event: v1::watch_response::Event, header: Option<v1::ResponseHeader>) {
        let reply = v1::WatchResponse { header, event: Some(event) };
        let replies = self.replies.lock().unwrap();
        replies.as_ref().expect("still open").try_send(Ok(reply)).expect("room");
    }

    pub fn hint(&self, user: &str, head_version: u64, collections: &[&str]) {
        let collections = collections.iter().map(|name| name.to_string()).collect();
        let hint = v1::WatchHint { user_id: user.into(), head_version, collections };
        let header = v1::ResponseHeader { incarnation: 1, applied_index: head_version, ..Default::default() };
        self.say(v1::watch_response::Event::Hint(hint), Some(header));
    }

    pub fn heartbeat(&self) {
        let heartbeat = v1::WatchHeartbeat { watched_users: self.watched().len() as u32 };
        self.say(v1::watch_response::Event::Heartbeat(heartbeat), None);
    }

    /// Ends it, as if all were well or with an error.
    pub fn end(&self, status: Option<Status>) {
        let replies = self.replies.lock().unwrap().take();
        if let (Some(replies), Some(status)) = (replies, status) {
            replies.try_send(Err(status)).expect("room");
        }
    }

    /// Waits until the client has left.
    pub async fn left(&self) {
        until("the client leaves", || self.left.lock().unwrap().then_some(())).await;
    }
}

/// Looks until there is something.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..4000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited 20 s until {what}");
}
