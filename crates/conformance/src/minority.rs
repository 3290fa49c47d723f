//! Who may answer when leaders change or quorums go. 37, 39, 40.

use std::time::{Duration, Instant};

use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use jepsen_tests::cluster::contact;
use tonic::{Code, Status};
use v1::read_consistency::Level;

use crate::case::{Case, batch, key, put};
use crate::failure::{Failure, Outcome};
use crate::target::{Node, settled, timed};
use crate::{check, check_eq};

fn get(user: &str, id: &str, level: Option<Level>) -> v1::BatchGetRecordsRequest {
    v1::BatchGetRecordsRequest {
        user_id: user.to_owned(),
        keys: vec![key("contacts", id)],
        consistency: level.map(|level| v1::ReadConsistency { level: Some(level) }),
        ..Default::default()
    }
}

/// 37: A leader that was deposed while it slept answers no linearizable read from its old state: each answer holds the
/// write that its successor acknowledged before.
///
/// Break: `Core::confirmed_index_here` (replica/src/read.rs) answers from the applied index without a round. Not found:
/// `ReadPolicy::LeaseRead`; the lease of a leader that slept has run out when it wakes up.
pub async fn c37_a_deposed_leader_answers_no_linearizable_read(case: &Case) -> Outcome {
    let mut field = case.stage()?.field().await?;
    let user = case.user("one");
    let (mut answered, mut refused) = (0, 0);
    for round in 0..4 {
        field.heal().await?;
        let target = field.target.clone();
        target.client().put(contact(&user, "a"), "text/plain", format!("old {round}")).await?;
        let old = field.leader().await;
        let others: Vec<String> =
            (0..3).filter(|place| *place != old).map(|place| target.nodes[place].address.to_string()).collect();
        let successors = crate::target::Target::new(&others, &[])?;
        let node = &target.nodes[old];
        // Connected before it sleeps, so that questions wait at its door.
        let _ = node.get(&get(&user, "a", None)).await;
        let stopped = field.stop(old);
        let payload = format!("new {round}");
        let written = successors.client().put(contact(&user, "a"), "text/plain", payload.clone()).await?;
        let questions = (0..24u64).map(|n| {
            let (user, payload) = (user.clone(), payload.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(5 * n)).await;
                let explicit = (n % 2 == 0).then_some(Level::Linearizable(v1::Linearizable {}));
                if n % 3 == 2 {
                    let list =
                        v1::ListRecordsRequest { user_id: user, collection: "contacts".into(), ..Default::default() };
                    return node.list(&list).await.map(|answer| (answer.records, payload));
                }
                node.get(&get(&user, "a", explicit)).await.map(|answer| (answer.records, payload))
            }
        });
        let (answers, ()) = tokio::join!(futures::future::join_all(questions), async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            drop(stopped);
        });
        for answer in answers {
            match answer {
                Ok((records, payload)) => {
                    let seen =
                        records.first().map(|one| (one.version, String::from_utf8_lossy(&one.payload).into_owned()));
                    check_eq!(seen, Some((written.version, payload)), "linearizable read at the deposed leader");
                    answered += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    case.note(format!("{answered} answered, {refused} refused"));
    check!(answered > 0, "expected the deposed leader to answer some reads as a follower, saw only refusals");
    Ok(())
}

fn is_no_acknowledgement(status: &Status, reasons: &[&str]) -> bool {
    let details = details_of(status);
    reasons.contains(&details.reason.as_str())
        && details.retry_after.is_some()
        && matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}

/// 39: A node without a quorum acknowledges nothing and answers no linearizable read; stale reads still work, within
/// what it can prove.
///
/// Break: `Replica::propose` (replica/src/propose.rs) answers once the own log is durable; or `Shared::read`
/// (server/src/grpc/mod.rs) asks for a round although the bound is proved.
pub async fn c39_a_minority_acknowledges_nothing_and_still_reads(case: &Case) -> Outcome {
    let mut field = case.stage()?.field().await?;
    field.heal().await?;
    let (user, target) = (case.user("one"), field.target.clone());
    let kept = target.client().put(contact(&user, "a"), "text/plain", "kept").await?;
    let leader = field.leader().await;
    // The leader itself, and then a follower, is left alone.
    for alone in [leader, (leader + 1) % 3] {
        field.heal().await?;
        let node = Node::new(&field.target.nodes[alone].address)?;
        let ask = get(&user, "a", None);
        let fresh = settled(|| node.get(&ask)).await?;
        check_eq!(fresh.records.len(), 1, "records before the quorum goes");
        let stopped = field.stop_together(&[(alone + 1) % 3, (alone + 2) % 3]);
        let within = Duration::from_millis(700);
        let mutation = put("b", &format!("from {alone}"));
        let lone = batch(&user, vec![mutation]);
        match node.records().batch_write(timed(lone.clone(), within)).await {
            Ok(answer) => return Err(Failure::broken(format!("expected no acknowledgement, saw {answer:?}"))),
            Err(status) => check!(
                is_no_acknowledgement(&status, &["NO_LEADER", "OUTCOME_UNKNOWN"]),
                "expected NO_LEADER or OUTCOME_UNKNOWN with RetryInfo, saw {:?}/{}: {}",
                status.code(),
                details_of(&status).reason,
                status.message()
            ),
        }
        match node.records().batch_get_records(timed(get(&user, "a", None), within)).await {
            Ok(answer) => return Err(Failure::broken(format!("expected no linearizable read, saw {answer:?}"))),
            Err(status) => check!(
                is_no_acknowledgement(&status, &["NO_LEADER", "REPLICA_BEHIND", "DEADLINE_EXCEEDED"]),
                "expected NO_LEADER with RetryInfo, saw {:?}/{}: {}",
                status.code(),
                details_of(&status).reason,
                status.message()
            ),
        }
        stale_read(&node, &user, kept.version).await?;
        drop(stopped);
    }
    case.note("export is not offered yet");
    field.heal().await
}

async fn stale_read(node: &Node, user: &str, version: u64) -> Outcome {
    let stale = get(user, "a", Some(Level::MaxStalenessMs(600_000)));
    let answer = node.records().batch_get_records(timed(stale, Duration::from_secs(2))).await;
    let answer =
        answer.map_err(|status| Failure::from(status).at("a read that may be ten minutes old, without a quorum"));
    let answer = answer?.into_inner();
    check_eq!(answer.records.first().map(|one| one.version), Some(version), "version of a stale read");
    let at = answer.header.unwrap_or_default();
    check!(at.staleness_ms <= 600_000, "expected staleness_ms within what was asked, saw {at:?}");
    let at_least = Level::AtLeast(v1::AtLeast {
        incarnation: at.incarnation,
        applied_index: at.applied_index,
        group_id: at.group_id,
    });
    let again = node.records().batch_get_records(timed(get(user, "a", Some(at_least)), Duration::from_secs(2))).await;
    let again =
        again.map_err(|status| Failure::from(status).at("a read at_least what this node has, without a quorum"));
    check_eq!(again?.into_inner().records.len(), 1, "records of a session read without a quorum");
    // One second is more than it can prove by now: refused, and not answered.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let strict = get(user, "a", Some(Level::MaxStalenessMs(1000)));
    match node.records().batch_get_records(timed(strict, Duration::from_millis(600))).await {
        Ok(answer) => Err(Failure::broken(format!("expected a refusal within 1 s of staleness, saw {answer:?}"))),
        Err(status) => {
            check!(
                is_no_acknowledgement(&status, &["NO_LEADER", "REPLICA_BEHIND", "DEADLINE_EXCEEDED"]),
                "expected REPLICA_BEHIND or NO_LEADER with RetryInfo, saw {:?}/{}",
                status.code(),
                details_of(&status).reason
            );
            Ok(())
        }
    }
}

/// 40: A call whose deadline ends after it was proposed is OUTCOME_UNKNOWN with RetryInfo; the same request id then
/// brings the one outcome, and the write has happened once or not at all.
///
/// Break: `unproposed` (server/src/grpc/mod.rs) maps `ProposeError::Unknown` to `Refusal::NoLeader`.
pub async fn c40_a_timeout_after_propose_is_an_unknown_outcome(case: &Case) -> Outcome {
    let mut field = case.stage()?.field().await?;
    field.heal().await?;
    let (user, target) = (case.user("one"), field.target.clone());
    let first = target.client().put(contact(&user, "a"), "text/plain", "1").await?;
    let (mut unknown, mut kept) = (0, first.version);
    for round in 0..3 {
        field.heal().await?;
        let leader = field.leader().await;
        let node = Node::new(&target.nodes[leader].address)?;
        let ask = get(&user, "a", None);
        settled(|| node.get(&ask)).await?;
        let request = batch(&user, vec![put("a", &format!("round {round}"))]);
        let stopped = field.stop_together(&[(leader + 1) % 3, (leader + 2) % 3]);
        let began = Instant::now();
        let outcome = node.records().batch_write(timed(request.clone(), Duration::from_millis(400))).await;
        let took = began.elapsed();
        drop(stopped);
        let status = match outcome {
            Ok(answer) => return Err(Failure::broken(format!("expected no answer without a quorum, saw {answer:?}"))),
            Err(status) => status,
        };
        let details = details_of(&status);
        check!(
            is_no_acknowledgement(&status, &["OUTCOME_UNKNOWN", "NO_LEADER"]),
            "expected OUTCOME_UNKNOWN with RetryInfo, saw {:?}/{} after {took:?}: {}",
            status.code(),
            details.reason,
            status.message()
        );
        check!(
            took < Duration::from_millis(2000),
            "expected the answer at the deadline of 400 ms, saw it after {took:?}"
        );
        unknown += u32::from(details.reason == "OUTCOME_UNKNOWN");
        let again = target.client().write(request.clone()).await?;
        check_eq!(again.version, kept + 1, "version of the write that was sent again under its id");
        kept = again.version;
        let replay = target.client().write(request).await?;
        check!(replay.replayed && replay.version == kept, "expected one outcome for one id, saw {replay:?}");
    }
    check!(unknown > 0, "expected OUTCOME_UNKNOWN from a leader that had proposed, saw NO_LEADER alone");
    case.note(format!("{unknown} of 3 were proposed"));
    Ok(())
}
