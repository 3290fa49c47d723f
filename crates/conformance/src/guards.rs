//! Guards: judged when the batch takes effect, and a failed one leaves nothing behind. 5, 6, 10.

use holdfast_client::Error;
use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use tonic::Code;
use v1::precondition::Check;

use crate::case::{Case, batch, delete, guarded, put};
use crate::device::content_hash;
use crate::failure::{Failure, Outcome};
use crate::{check, check_eq};

/// A batch whose version guards belong to this history.
fn in_history(request: v1::BatchWriteRequest, incarnation: u64) -> v1::BatchWriteRequest {
    v1::BatchWriteRequest { if_incarnation: incarnation, ..request }
}

fn incarnation_of(answer: &v1::BatchWriteResponse) -> u64 {
    answer.header.map_or(0, |header| header.incarnation)
}

async fn conflict(case: &Case, request: v1::BatchWriteRequest) -> Result<v1::ConflictInfo, Failure> {
    match case.client().write(request).await {
        Err(Error::Conflict { info, .. }) => Ok(*info),
        Err(other) => Err(Failure::broken(format!("expected VERSION_MISMATCH, saw {}: {other}", other.reason()))),
        Ok(answer) => Err(Failure::broken(format!("expected VERSION_MISMATCH, saw a commit at {:#x}", answer.version))),
    }
}

/// 5: Guards are judged at apply: of equal guards sent at once, to different nodes, exactly one wins.
///
/// Break: `passes` (model/src/transition/write_batch.rs) answers true for `Guard::Version`, or `judge_guards` ignores
/// `if_head`.
pub async fn c05_of_two_equal_guards_one_wins(case: &Case) -> Outcome {
    let user = case.user("one");
    let mut held = case.put(&user, "a", "start").await?;
    let incarnation = incarnation_of(&held);
    for round in 0..6 {
        let rivals = (0..4usize).map(|rival| {
            let mutation = put("a", &format!("{round}-{rival}"));
            let request = match round % 3 {
                0 => batch(&user, vec![guarded(mutation, Check::Version(held.version))]),
                1 => v1::BatchWriteRequest { if_head: Some(held.version), ..batch(&user, vec![mutation]) },
                _ => {
                    let fresh = put(&format!("fresh-{round}"), &format!("{rival}"));
                    batch(&user, vec![guarded(fresh, Check::Absent(true)), mutation])
                }
            };
            let request = in_history(request, incarnation);
            async move { Ok::<_, Failure>(case.target.client_of(rival % case.target.nodes.len())?.write(request).await) }
        });
        let mut won = Vec::new();
        for outcome in futures::future::join_all(rivals.map(|rival| async {
            match rival.await? {
                Ok(answer) => Ok(Some(answer)),
                Err(Error::Conflict { info, .. }) => {
                    let seen = info.conflicts.first().map(|one| one.current_version);
                    let by_head = round % 3 == 1;
                    check!(
                        by_head || seen > Some(held.version),
                        "expected the winner's version in the conflict, saw {info:?}"
                    );
                    Ok(None)
                }
                Err(error) => Err(Failure::from(error)),
            }
        }))
        .await
        {
            won.extend(outcome?);
        }
        check_eq!(won.len(), 1, "winners among four equal guards in round {round}");
        held = won.remove(0);
    }
    // A guard on 0 is a record that never was; one on a version that is gone fails for ever.
    let fresh = batch(&user, vec![guarded(put("zero", "1"), Check::Version(0))]);
    case.client().write(in_history(fresh, incarnation)).await?;
    let stale = batch(&user, vec![guarded(put("zero", "2"), Check::Version(0))]);
    conflict(case, in_history(stale, incarnation)).await?;
    // A guard of another history never matches, even where the number does.
    let now = case.get(&user, "zero").await?.unwrap_or_default().version;
    let foreign = in_history(batch(&user, vec![guarded(put("zero", "3"), Check::Version(now))]), incarnation ^ 1);
    let status = case.refused_write(&foreign).await?;
    check_eq!(details_of(&status).reason, "INCARNATION_MISMATCH", "reason for a guard of another history");
    Ok(())
}

/// 6: `absent` passes on a tombstone and where nothing ever was, fails on a live record; `exists` is its opposite.
///
/// Break: `passes` (model/src/transition/write_batch.rs): `Guard::Absent => stored.is_none()`.
pub async fn c06_absent_passes_on_a_tombstone(case: &Case) -> Outcome {
    let user = case.user("one");
    let absent = |payload: &str| batch(&user, vec![guarded(put("a", payload), Check::Absent(true))]);
    let exists = |payload: &str| batch(&user, vec![guarded(put("a", payload), Check::Exists(true))]);
    let info = conflict(case, exists("0")).await?;
    check_eq!(info.conflicts[0].current_version, 0, "version in the conflict where nothing ever was");
    let first = case.client().write(absent("1")).await?;
    let info = conflict(case, absent("2")).await?;
    check_eq!(info.conflicts[0].current_version, first.version, "version in the conflict on a live record");
    check!(!info.conflicts[0].deleted, "expected a live record in the conflict, saw {info:?}");
    let gone = case.delete(&user, "a").await?;
    let info = conflict(case, exists("3")).await?;
    check!(
        info.conflicts[0].deleted && info.conflicts[0].current_version == gone.version,
        "expected the tombstone {:#x} in the conflict, saw {info:?}",
        gone.version
    );
    let back = case.client().write(absent("4")).await?;
    check!(back.results[0].changed, "expected `absent` to pass on a tombstone, saw {:?}", back.results);
    case.client().write(exists("5")).await?;
    let last = case.get(&user, "a").await?.unwrap_or_default();
    check_eq!(last.payload.as_ref(), b"5", "payload at the end");
    Ok(())
}

/// 10: A failed guard leaves no trace: nothing of the batch, no version, no usage, no remembered request id.
///
/// Break: `judge` (model/src/transition/write_batch.rs) commits and then answers `Ok(Ok(Outcome::Rejected(rejection)))`:
/// as an `Err` the draft would be thrown away.
pub async fn c10_a_failed_guard_leaves_no_trace(case: &Case) -> Outcome {
    let user = case.user("one");
    let before = case.write(&user, vec![put("a", "mine"), put("b", "mine")]).await?;
    let incarnation = incarnation_of(&before);
    let mut device = case.device(&user).await?;
    let wrong = guarded(put("b", "other"), Check::Version(before.version + 7));
    let mutations = vec![put("new", "x"), delete("a"), wrong, guarded(put("c", "x"), Check::Exists(true))];
    let request = in_history(batch(&user, mutations), incarnation);
    let info = conflict(case, request.clone()).await?;
    let seen: Vec<(u32, u64)> = info.conflicts.iter().map(|one| (one.index, one.current_version)).collect();
    check_eq!(seen, vec![(2, before.version), (3, 0)], "failed guards, by index and stored version");
    let expected = content_hash("text/plain", b"mine", 0);
    check_eq!(info.conflicts[0].content_hash.to_vec(), expected, "content hash in the conflict");
    check!(info.header.is_some_and(|header| header.incarnation == incarnation), "expected a header, saw {info:?}");
    check_eq!(device.sync(case.client(), 0).await?.keys(), vec![], "feed after a failed guard");
    check_eq!(device.records.len(), 2, "records after a failed guard");
    // The id was not remembered: it is judged anew, with another body too.
    let retry = v1::BatchWriteRequest { mutations: vec![put("c", "later")], ..request };
    let after = case.client().write(retry.clone()).await?;
    check!(!after.replayed, "expected the id of a failed guard to be free, saw a replay");
    check_eq!(after.version, before.version + 1, "next version after a failed guard");
    let usage = after.usage.unwrap_or_default();
    check_eq!((usage.record_count, usage.used_bytes >= 13), (3, true), "usage after a failed guard");
    // More conflicts than are named: still ABORTED, and the first 32.
    let many = (0..40).map(|n| guarded(put(&format!("m{n}"), "x"), Check::Exists(true))).collect();
    let status = case.refused_write(&batch(&user, many)).await?;
    let details = details_of(&status);
    check!(status.code() == Code::Aborted, "expected ABORTED, saw {:?}: {}", status.code(), status.message());
    check!(details.retry_after.is_none(), "expected no RetryInfo on VERSION_MISMATCH, saw {details:?}");
    check_eq!(details.conflicts.map(|info| info.conflicts.len()), Some(32), "conflicts named of 40");
    Ok(())
}
