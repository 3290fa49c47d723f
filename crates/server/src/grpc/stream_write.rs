//! `StreamWrite`: batches of any number of users on one stream.
//!
//! Invariants:
//! - A batch is judged as `BatchWrite` judges it, by the same code; what becomes of one touches no other.
//! - What a stream has under way is bounded in number and in bytes; beyond that it is not read on, so that the caller's own
//!   flow control holds it back.
//! - Every batch that was read gets its outcome, unless the caller goes away: also when the caller has closed its side, and
//!   when the node goes down.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_wire::status::{Refusal, explained};
use holdfast_wire::v1;
use holdfast_wire::v1::stream_write_response::Outcome;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::grpc::deadline_in;
use crate::grpc::records::Records;
use crate::grpc::sync::ResponseStream;

/// Batches under way on one stream.
const UNDER_WAY_MAX: usize = 1024;
/// Their bytes.
const BYTES_MAX: usize = 16 << 20;
/// Outcomes that wait for the caller to take them.
const OUTGOING_MAX: usize = 256;
/// From one look whether the node goes down to the next.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
/// Time for a caller to take the reason why its stream ends.
const LAST_WORD_MAX: Duration = Duration::from_secs(5);

type Out = mpsc::Sender<Result<v1::StreamWriteResponse, Status>>;

/// Answers a `StreamWrite`.
pub fn serve(
    records: Records,
    requests: Streaming<v1::StreamWriteRequest>,
) -> Result<ResponseStream<v1::StreamWriteResponse>, Refusal> {
    records.shared.check_serving()?;
    let (out, answers) = mpsc::channel(OUTGOING_MAX);
    tokio::spawn(run(records, requests, out));
    Ok(Box::pin(ReceiverStream::new(answers)))
}

async fn run(records: Records, mut requests: Streaming<v1::StreamWriteRequest>, out: Out) {
    let mut under_way = FuturesUnordered::new();
    let mut bytes = 0;
    let mut look = interval(DRAIN_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Why nothing more is read; `Ok` = the caller has said all.
    let mut end: Option<Result<(), Status>> = None;
    while end.is_none() || !under_way.is_empty() {
        tokio::select! {
            request = requests.message(), if end.is_none() && under_way.len() < UNDER_WAY_MAX && bytes < BYTES_MAX => {
                match request {
                    Ok(Some(request)) => {
                        let size = holdfast_wire::encoded_len(&request);
                        bytes += size;
                        under_way.push(one(&records, request, size));
                    }
                    Ok(None) => end = Some(Ok(())),
                    Err(status) => end = Some(Err(explained(status))),
                }
            }
            Some((answer, size)) = under_way.next() => {
                bytes -= size;
                if out.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
            _ = look.tick(), if end.is_none() => {
                if records.shared.draining.load(Ordering::Acquire) {
                    end = Some(Err(Refusal::Draining.into()));
                }
            }
            () = out.closed() => return,
        }
    }
    if let Some(Err(status)) = end {
        // The caller may be gone.
        let _ = timeout(LAST_WORD_MAX, out.send(Err(status))).await;
    }
}

async fn one(records: &Records, request: v1::StreamWriteRequest, size: usize) -> (v1::StreamWriteResponse, usize) {
    let deadline = deadline_in(request.timeout_ms, records.shared.default_deadline());
    let timer = records.shared.metrics.call("StreamWrite");
    let written = match request.write {
        Some(write) => records.write(write, size, deadline).await,
        None => Err(Refusal::field("write", "a batch is needed".to_owned())),
    };
    let outcome = match timer.end(written) {
        Ok(response) => Outcome::Written(response.into_inner()),
        Err(status) => Outcome::Refused(v1::StreamWriteRefusal {
            code: status.code().into(),
            message: status.message().to_owned(),
            details: status.details().to_vec().into(),
        }),
    };
    (v1::StreamWriteResponse { correlation_id: request.correlation_id, outcome: Some(outcome) }, size)
}
