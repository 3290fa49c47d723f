//! Writes that share a stream. 49.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use holdfast_wire::v1::stream_write_response::Outcome as Said;
use tonic::{Code, Status};

use crate::case::{Case, batch, guarded, put};
use crate::failure::{Failure, Outcome};
use crate::target::{Node, may_retry};
use crate::{check, check_eq};

/// For the server to give reasons to retry.
const RETRY_WITHIN: Duration = Duration::from_secs(30);
const USERS: usize = 60;

type Answer = Result<v1::BatchWriteResponse, Status>;

/// Sends all of them on one stream, closes its own side, and takes what comes until the other side is closed, too.
async fn once(node: &Node, requests: &BTreeMap<u64, v1::BatchWriteRequest>) -> Result<BTreeMap<u64, Answer>, Failure> {
    let asked: Vec<v1::StreamWriteRequest> = requests
        .iter()
        .map(|(id, write)| v1::StreamWriteRequest {
            correlation_id: *id,
            write: (!write.user_id.is_empty()).then(|| write.clone()),
            timeout_ms: 5000,
        })
        .collect();
    let mut answers = BTreeMap::new();
    let mut stream = match node.records().stream_write(tokio_stream::iter(asked)).await {
        Ok(answered) => answered.into_inner(),
        // The node is not there just now: nothing was answered.
        Err(status) if may_retry(&status) => return Ok(answers),
        Err(status) => return Err(status.into()),
    };
    loop {
        match stream.message().await {
            Ok(Some(answer)) => {
                let outcome = match answer.outcome {
                    Some(Said::Written(written)) => Ok(written),
                    Some(Said::Refused(refused)) => {
                        Err(Status::with_details(Code::from(refused.code), refused.message, refused.details))
                    }
                    None => return Err(Failure::broken(format!("an answer without an outcome: {answer:?}"))),
                };
                check!(requests.contains_key(&answer.correlation_id), "nobody asked for {}", answer.correlation_id);
                let again = answers.insert(answer.correlation_id, outcome);
                check!(again.is_none(), "{} was answered twice", answer.correlation_id);
            }
            Ok(None) => {
                check_eq!(answers.len(), requests.len(), "answers on a stream that ended in order");
                return Ok(answers);
            }
            Err(status) if may_retry(&status) => return Ok(answers),
            Err(status) => return Err(status.into()),
        }
    }
}

/// Until each has an answer that asks for no retry: what is missing is sent again with the same ids.
async fn settled(node: &Node, requests: Vec<v1::BatchWriteRequest>) -> Result<Vec<Answer>, Failure> {
    let count = requests.len();
    let mut open: BTreeMap<u64, v1::BatchWriteRequest> = (0..).zip(requests).collect();
    let mut done = BTreeMap::new();
    let end = Instant::now() + RETRY_WITHIN;
    while !open.is_empty() {
        check!(Instant::now() < end, "{} of {count} batches on a stream were never answered for good", open.len());
        for (id, answer) in once(node, &open).await? {
            if answer.as_ref().err().is_none_or(|status| !may_retry(status)) {
                open.remove(&id);
                done.insert(id, answer);
            }
        }
        if !open.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(done.into_values().collect())
}

fn refused(answer: &Answer, code: Code, reason: &str) -> Outcome {
    let Err(status) = answer else {
        return Err(Failure::broken(format!("expected {code:?}/{reason}, saw a commit: {answer:?}")));
    };
    let seen = details_of(status).reason;
    check!(
        status.code() == code && seen == reason,
        "expected {code:?}/{reason}, saw {:?}/{seen}: {}",
        status.code(),
        status.message()
    );
    Ok(())
}

/// 49: Batches of many users on one stream are each answered as by BatchWrite: one version each, the same answer for the same
/// request id, by whichever way it is sent again, refusals with the same details; and none of them touches another.
///
/// Break: `run` (server/src/grpc/stream_write.rs) ends the stream at the first refusal, or gives back another id.
pub async fn c49_a_stream_of_writes_answers_each_as_a_write_of_its_own(case: &Case) -> Outcome {
    let node = case.node(0);
    let users: Vec<String> = (0..USERS).map(|n| case.user(&format!("u{n}"))).collect();
    let good: Vec<v1::BatchWriteRequest> =
        users.iter().map(|user| batch(user, vec![put("a", "1"), put("b", "2")])).collect();
    // In between, what must be refused.
    let twice = batch(&users[0], vec![put("c", "1"), put("c", "2")]);
    let stale = batch(&users[1], vec![guarded(put("c", "1"), v1::precondition::Check::Exists(true))]);
    let empty = v1::BatchWriteRequest::default();
    let mut all = good.clone();
    all.splice(7..7, [twice, stale, empty]);
    let mut answers = settled(node, all).await?;
    let bad: Vec<Answer> = answers.splice(7..10, []).collect();
    refused(&bad[0], Code::InvalidArgument, "INVALID_FIELD")?;
    refused(&bad[1], Code::Aborted, "VERSION_MISMATCH")?;
    check!(
        details_of(bad[1].as_ref().err().unwrap_or(&Status::ok(""))).conflicts.is_some(),
        "expected the conflicts of a failed guard, saw {:?}",
        bad[1]
    );
    refused(&bad[2], Code::InvalidArgument, "INVALID_FIELD")?;
    for ((request, answer), user) in good.iter().zip(&answers).zip(&users) {
        let answer = answer.as_ref().map_err(|status| Failure::from(status.clone()))?;
        check_eq!(answer.results.len(), 2, "results of a batch of two");
        check_eq!(answer.version & 0xffff_ffff_ffff, 1, "counter of the first version of {user}");
        let again = crate::target::settled(|| node.write(request)).await?;
        check!(again.replayed, "expected a replay by BatchWrite, saw {again:?}");
        check_eq!((again.version, again.commit_index), (answer.version, answer.commit_index), "a replay by BatchWrite");
    }
    // And the other way around: what was written by itself is replayed on a stream.
    let first = batch(&users[0], vec![put("d", "1")]);
    let written = crate::target::settled(|| node.write(&first)).await?;
    let replayed = settled(node, vec![first]).await?.remove(0)?;
    check!(replayed.replayed, "expected a replay on a stream, saw {replayed:?}");
    check_eq!(replayed.version, written.version, "version of a replay on a stream");
    // One user's batches that wait for each other are in their order.
    let mut version = written.version;
    for n in 0..5 {
        let answer = settled(node, vec![batch(&users[0], vec![put("e", &format!("{n}"))])]).await?.remove(0)?;
        check_eq!(answer.version, version + 1, "the next version");
        version = answer.version;
    }
    let device = case.device(&users[0]).await?;
    check_eq!(device.records.len(), 4, "records of the first user");
    Ok(())
}
