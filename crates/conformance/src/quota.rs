//! A user's quota. 35.

use holdfast_client::Error;
use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use tonic::Code;

use crate::case::{Case, batch, delete, put};
use crate::failure::{Failure, Outcome};
use crate::{check, check_eq};

/// Larger quotas are not filled.
const SMALL_BYTES: u64 = 64 << 20;
const PIECE_BYTES: usize = 256 << 10;

fn of(bytes: usize, salt: usize) -> String {
    format!("{salt:08}{}", "q".repeat(bytes.saturating_sub(8)))
}

fn usage(answer: &v1::BatchWriteResponse) -> v1::Usage {
    answer.usage.unwrap_or_default()
}

/// 35: The quota is exact under concurrency: as much fits as fits, and not a byte more; what shrinks passes when full,
/// what grows is refused whole, without RetryInfo, and is not remembered; after a rollback a full user gets back all that
/// was lost.
///
/// Break: the quota is judged against the usage before the batch, or at the edge instead of at apply
/// (model/src/transition/write_batch.rs); or `judge_quota` there counts re-uploads as growth.
pub async fn c35_the_quota_is_exact_under_concurrency(case: &Case) -> Outcome {
    let user = case.user("one");
    let first = case.put(&user, "p0", &of(PIECE_BYTES, 0)).await?;
    let (quota, piece) = (usage(&first).quota_bytes, usage(&first).used_bytes);
    if quota == 0 || quota > SMALL_BYTES {
        return Err(Failure::skipped(format!(
            "the quota here is {quota} bytes (0 = none); start the cluster with --set quota.user_bytes=6291456"
        )));
    }
    check!(piece >= PIECE_BYTES as u64, "expected usage of at least the payload, saw {piece}");
    let (room, tries) = (quota / piece, quota / piece + 12);
    let writes = (1..tries as usize).map(|n| {
        let user = user.clone();
        async move { case.client().write(batch(&user, vec![put(&format!("p{n}"), &of(PIECE_BYTES, n))])).await }
    });
    let mut taken = 1;
    for outcome in futures::future::join_all(writes).await {
        match outcome {
            Ok(answer) => {
                taken += 1;
                let used = usage(&answer).used_bytes;
                check!(used <= quota, "expected usage within {quota}, saw {used}");
            }
            Err(Error::Overloaded { reason, retry_after: None, .. }) if reason == "USER_QUOTA" => {}
            Err(error) => return Err(Failure::from(error)),
        }
    }
    check_eq!(taken, room, "pieces of {piece} bytes taken of {tries}, with a quota of {quota}");
    // To the last byte.
    let rest = usize::try_from(quota - room * piece).unwrap_or(0);
    let overhead = usize::try_from(piece).unwrap_or(0) - PIECE_BYTES;
    if rest > overhead + 9 {
        let over = batch(&user, vec![put("rest", &of(rest - overhead + 1, 1))]);
        refused(case, &over, "one byte too many").await?;
        let filled = case.put(&user, "rest", &of(rest - overhead, 1)).await?;
        check_eq!(usage(&filled).used_bytes, quota, "usage when filled to the last byte");
    }
    let late = batch(&user, vec![put("late", &of(PIECE_BYTES, 9))]);
    refused(case, &late, "a piece more").await?;
    let grows = batch(
        &user,
        vec![delete("p1"), put("p2", &of(2 * PIECE_BYTES + 1024, 2)), put("p3", &of(PIECE_BYTES + 1024, 3))],
    );
    refused(case, &grows, "a batch that deletes less than it adds").await?;
    check!(
        case.get(&user, "p1").await?.is_some_and(|one| one.delete_time.is_none()),
        "expected nothing of a refused batch"
    );
    // Full is not stuck.
    case.put(&user, "p0", &of(PIECE_BYTES, 0)).await.map_err(|failure| failure.at("an identical put when full"))?;
    case.put(&user, "p4", &of(PIECE_BYTES / 2, 4)).await.map_err(|failure| failure.at("a shrinking put when full"))?;
    let swapped = vec![delete("p5"), put("swapped", &of(PIECE_BYTES / 2, 5))];
    case.write(&user, swapped).await.map_err(|failure| failure.at("a batch that shrinks when full"))?;
    let deleted = case.delete(&user, "p6").await.map_err(|failure| failure.at("a delete when full"))?;
    check!(usage(&deleted).used_bytes + piece <= quota, "expected room after deletes, saw {:?}", deleted.usage);
    // The refused id is free: the same request is judged anew.
    let taken = case.client().write(late).await.map_err(|error| Failure::from(error).at("a refused id, sent again"))?;
    check!(!taken.replayed, "expected a refused request not to be remembered, saw a replay");
    let device = case.device(&user).await?;
    let count = usage(&taken).record_count;
    check_eq!(count, device.records.len() as u64, "records in the usage");
    let bytes: u64 = device.records.values().map(|one| one.payload.len() as u64).sum();
    check!(
        bytes <= usage(&taken).used_bytes,
        "expected usage of at least {bytes} payload bytes, saw {:?}",
        taken.usage
    );
    if case.stage.is_none() {
        case.note("without re-uploads of a full user, which need --holdfast");
        return Ok(());
    }
    crate::disaster::a_full_user_gets_back_what_was_lost(case).await
}

async fn refused(case: &Case, request: &v1::BatchWriteRequest, what: &str) -> Outcome {
    let status = case.refused_write(request).await.map_err(|failure| failure.at(what))?;
    let details = details_of(&status);
    check!(
        status.code() == Code::ResourceExhausted && details.reason == "USER_QUOTA" && details.retry_after.is_none(),
        "{what}: expected RESOURCE_EXHAUSTED/USER_QUOTA without RetryInfo, saw {:?}/{}: {}",
        status.code(),
        details.reason,
        status.message()
    );
    Ok(())
}
