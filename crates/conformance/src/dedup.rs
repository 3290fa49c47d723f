//! Request ids: once, and the same answer again. 7, 8, 9.

use holdfast_wire::status::details_of;
use holdfast_wire::{Timestamp, v1};
use tonic::Code;

use crate::case::{Case, batch, put};
use crate::failure::{Failure, Outcome};
use crate::target::{Target, settled};
use crate::{check, check_eq};

const DAY_S: i64 = 24 * 3600;

/// What must be the same in every answer to one request: all but the header and the mark of a replay.
fn core(answer: &v1::BatchWriteResponse) -> v1::BatchWriteResponse {
    v1::BatchWriteResponse { header: None, replayed: false, offsite: false, ..answer.clone() }
}

/// Asks every node for the same request again.
async fn same_everywhere(
    target: &Target,
    request: &v1::BatchWriteRequest,
    first: &v1::BatchWriteResponse,
    when: &str,
) -> Outcome {
    for node in &target.nodes {
        let again = settled(|| node.write(request)).await.map_err(Failure::from);
        let again = again.map_err(|failure| failure.at(when))?;
        check!(again.replayed, "{when}: expected replayed = true from {}, saw {again:?}", node.address);
        check_eq!(core(&again), core(first), "{when}: the replayed answer of {}", node.address);
    }
    Ok(())
}

/// 7: Same id and body: the same answer, marked as replayed, on every node, after later writes, leader changes,
/// a snapshot install and a restart of everything.
///
/// Break: `replay` (model/src/transition/write_batch.rs) answers `replayed: false`; or the store leaves `req` rows out
/// of a snapshot (store/src/load.rs).
pub async fn c07_the_same_request_gets_the_same_answer(case: &Case) -> Outcome {
    let user = case.user("one");
    let Some(stage) = &case.stage else {
        case.note("without snapshot install and restart, which need --holdfast");
        let request = batch(&user, vec![put("a", "1"), put("b", "1")]);
        let first = case.client().write(request.clone()).await?;
        same_everywhere(&case.target, &request, &first, "at once").await?;
        case.put(&user, "a", "2").await?;
        return same_everywhere(&case.target, &request, &first, "after a later write").await;
    };
    let mut field = stage.field().await?;
    field.heal().await?;
    let target = field.target.clone();
    let request = batch(&user, vec![put("a", "1"), put("b", "1")]);
    let first = target.client().write(request.clone()).await?;
    check!(!first.replayed, "expected the first answer to be no replay, saw {first:?}");
    same_everywhere(&target, &request, &first, "at once").await?;
    target.client().write(batch(&user, vec![put("a", "2"), put("c", "2")])).await?;
    field.change_leader().await?;
    same_everywhere(&target, &request, &first, "after a leader change").await?;
    let installed = field.install_snapshot(&case.run).await?;
    same_everywhere(&target, &request, &first, "after a snapshot install").await?;
    // A leader answers from what it remembers itself: now that is what came with the snapshot.
    field.lead(installed).await?;
    same_everywhere(&target, &request, &first, "under a leader that was given a snapshot").await?;
    field.restart_all().await?;
    same_everywhere(&target, &request, &first, "after a restart of all nodes").await?;
    let kept = target.client().get(jepsen_tests::cluster::contact(&user, "a")).await?.unwrap_or_default();
    check_eq!(kept.payload.as_ref(), b"2", "payload of a later write, after all replays");
    Ok(())
}

/// 8: The same id with another body is refused once the first is committed, whatever differs, and changes nothing.
///
/// Break: `replay` (model/src/transition/write_batch.rs) without the comparison of fingerprints.
pub async fn c08_an_id_with_another_body_is_refused(case: &Case) -> Outcome {
    let user = case.user("one");
    let request = batch(&user, vec![put("a", "1"), put("b", "1")]);
    let first = case.client().write(request.clone()).await?;
    let incarnation = first.header.map_or(0, |header| header.incarnation);
    let others = [
        ("another payload", vec![put("a", "1"), put("b", "2")], None, ""),
        ("another key", vec![put("a", "1"), put("c", "1")], None, ""),
        ("a mutation less", vec![put("a", "1")], None, ""),
        ("another order", vec![put("b", "1"), put("a", "1")], None, ""),
        ("a guard on the head", vec![put("a", "1"), put("b", "1")], Some(first.version), ""),
        ("another device", vec![put("a", "1"), put("b", "1")], None, "phone"),
    ];
    for (what, mutations, if_head, device) in others {
        let other = v1::BatchWriteRequest {
            mutations,
            if_head,
            if_incarnation: if if_head.is_some() { incarnation } else { 0 },
            device_id: device.to_owned(),
            ..request.clone()
        };
        let status = case.refused_write(&other).await.map_err(|failure| failure.at(what))?;
        let reason = details_of(&status).reason;
        check!(
            status.code() == Code::InvalidArgument && reason == "REQUEST_ID_REUSED",
            "{what}: expected INVALID_ARGUMENT/REQUEST_ID_REUSED, saw {:?}/{reason}",
            status.code()
        );
    }
    check_eq!(case.put(&user, "next", "1").await?.version, first.version + 1, "next version after refusals");
    let again = case.client().write(request.clone()).await?;
    check!(again.replayed && again.version == first.version, "expected the first outcome again, saw {again:?}");
    // Ids are a user's own.
    let other = v1::BatchWriteRequest { user_id: case.user("other"), ..request };
    let other = case.client().write(other).await?;
    check!(!other.replayed, "expected another user's request under the same id to be its own, saw a replay");
    Ok(())
}

/// 9: An id first sent beyond the window of 24 h is refused and never re-run; up to there it is judged; from more than
/// five minutes ahead of the server it is refused too.
///
/// Break: `judge_age` (model/src/transition/write_batch.rs) answers Ok.
pub async fn c09_an_id_beyond_the_window_is_refused(case: &Case) -> Outcome {
    let user = case.user("one");
    let first = case.put(&user, "a", "1").await?;
    let now = first.header.and_then(|header| header.server_time).map_or(0, |time| time.seconds);
    check!(now > 0, "expected server_time in the header, saw {:?}", first.header);
    let sent = |seconds: i64, payload: &str| v1::BatchWriteRequest {
        first_sent_time: Some(Timestamp { seconds, nanos: 0 }),
        ..batch(&user, vec![put("a", payload)])
    };
    for (what, seconds, code, reason) in [
        ("first sent 24 h ago", now - DAY_S, Code::FailedPrecondition, "REQUEST_TOO_OLD"),
        ("first sent a week ago", now - 7 * DAY_S, Code::FailedPrecondition, "REQUEST_TOO_OLD"),
        ("first sent in 1970", 1, Code::FailedPrecondition, "REQUEST_TOO_OLD"),
        ("first sent ten minutes ahead", now + 600, Code::InvalidArgument, "REQUEST_FROM_FUTURE"),
    ] {
        let request = sent(seconds, what);
        for attempt in ["at first", "again"] {
            let status = case.refused_write(&request).await.map_err(|failure| failure.at(what))?;
            let details = details_of(&status);
            check!(
                status.code() == code && details.reason == reason && details.retry_after.is_none(),
                "{what}, {attempt}: expected {code:?}/{reason} without RetryInfo, saw {:?}/{}: {}",
                status.code(),
                details.reason,
                status.message()
            );
        }
    }
    let kept = case.get(&user, "a").await?.unwrap_or_default();
    check_eq!((kept.version, kept.payload.as_ref()), (first.version, &b"1"[..]), "record after refusals");
    // Inside the window it is taken, and a repetition is recognised.
    for (what, seconds) in [("23 h 59 ago", now - DAY_S + 60), ("four minutes ahead", now + 240)] {
        let request = sent(seconds, what);
        let taken = case.client().write(request.clone()).await.map_err(|error| Failure::from(error).at(what))?;
        check!(!taken.replayed, "{what}: expected a new commit, saw a replay");
        let again = case.client().write(request).await?;
        check!(again.replayed && again.version == taken.version, "{what}: expected a replay, saw {again:?}");
    }
    // A commit whose time has run out meanwhile is refused or replayed, never run again: same id, older claim.
    let request = batch(&user, vec![put("b", "once")]);
    let once = case.client().write(request.clone()).await?;
    let old =
        v1::BatchWriteRequest { first_sent_time: Some(Timestamp { seconds: now - 2 * DAY_S, nanos: 0 }), ..request };
    match settled(|| case.node(0).write(&old)).await {
        Ok(again) => check!(again.replayed, "expected a replay or a refusal, saw it run again: {again:?}"),
        Err(status) => check_eq!(details_of(&status).reason, "REQUEST_TOO_OLD", "reason for an older claim"),
    }
    check_eq!(case.get(&user, "b").await?.unwrap_or_default().version, once.version, "version after an older claim");
    Ok(())
}
