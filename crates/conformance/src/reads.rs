//! Freshness of reads, and equality of replicas. 36, 38, 48.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use jepsen_tests::cluster::contact;
use tonic::Code;
use v1::read_consistency::Level;

use crate::case::{Case, key, put};
use crate::device::Device;
use crate::failure::{Failure, Outcome};
use crate::target::{Target, page_of, settled, timed};
use crate::{check, check_eq};

fn at_least(header: &v1::ResponseHeader) -> Option<v1::ReadConsistency> {
    let (incarnation, applied_index, group_id) = (header.incarnation, header.applied_index, header.group_id);
    Some(v1::ReadConsistency { level: Some(Level::AtLeast(v1::AtLeast { incarnation, applied_index, group_id })) })
}

/// 36: A read at_least the header of a write shows that write, on every node, by every call that takes a freshness.
///
/// Break: `Replica::read` (replica/src/read.rs) without `wait_applied` for `Level::AtLeast`.
pub async fn c36_at_least_reads_own_writes_on_followers(case: &Case) -> Outcome {
    let user = case.user("one");
    for n in 0..12 {
        let written = case.put(&user, "a", &format!("{n}")).await?;
        let header = written.header.unwrap_or_default();
        let consistency = at_least(&header);
        let looks = case.target.nodes.iter().map(|node| {
            let user = user.clone();
            async move {
                let get = v1::BatchGetRecordsRequest {
                    user_id: user.clone(),
                    keys: vec![key("contacts", "a")],
                    consistency,
                    ..Default::default()
                };
                let got = settled(|| node.get(&get)).await?;
                let seen = got.records.first().map(|one| one.version);
                check_eq!(seen, Some(written.version), "BatchGetRecords at_least on {}", node.address);
                let answered = got.header.unwrap_or_default();
                check!(answered.applied_index >= header.applied_index, "expected a header as new, saw {answered:?}");
                let list = v1::ListRecordsRequest {
                    user_id: user.clone(),
                    collection: "contacts".into(),
                    consistency,
                    ..Default::default()
                };
                let listed = settled(|| node.list(&list)).await?;
                let seen = listed.records.first().map(|one| one.version);
                check_eq!(seen, Some(written.version), "ListRecords at_least on {}", node.address);
                let question = v1::GetChangesRequest { consistency, ..Device::new(&user).question(0) };
                let changes = settled(|| node.changes(&question)).await?;
                match changes.outcome {
                    Some(v1::get_changes_response::Outcome::Page(page)) => {
                        let seen = page.records.last().map(|one| one.version);
                        check_eq!(seen, Some(written.version), "GetChanges at_least on {}", node.address);
                    }
                    other => return Err(Failure::broken(format!("expected a page, saw {other:?}"))),
                }
                Ok(())
            }
        });
        futures::future::join_all(looks).await.into_iter().collect::<Result<Vec<()>, Failure>>()?;
    }
    // An index of another history is not one of this: refused, and not waited for.
    let head = case.put(&user, "a", "last").await?.header.unwrap_or_default();
    let foreign = v1::ResponseHeader { incarnation: head.incarnation ^ 1, ..head };
    let get = v1::BatchGetRecordsRequest {
        user_id: user.clone(),
        keys: vec![key("contacts", "a")],
        consistency: at_least(&foreign),
        ..Default::default()
    };
    match settled(|| case.node(0).get(&get)).await {
        Ok(answer) => return Err(Failure::broken(format!("expected a refusal of another history, saw {answer:?}"))),
        Err(status) => check_eq!(details_of(&status).reason, "INCARNATION_MISMATCH", "reason for another history"),
    }
    // An index that is not reached within the deadline: REPLICA_BEHIND, which says to retry.
    let ahead = v1::ResponseHeader { applied_index: head.applied_index + 1_000_000, ..head };
    let get = v1::BatchGetRecordsRequest { consistency: at_least(&ahead), ..get };
    for node in &case.target.nodes {
        match node.records().batch_get_records(timed(get.clone(), Duration::from_millis(500))).await {
            Ok(answer) => return Err(Failure::broken(format!("expected REPLICA_BEHIND, saw {answer:?}"))),
            Err(status) => {
                let details = details_of(&status);
                check!(
                    status.code() == Code::Unavailable
                        && details.reason == "REPLICA_BEHIND"
                        && details.retry_after.is_some(),
                    "expected UNAVAILABLE/REPLICA_BEHIND with RetryInfo, saw {:?}/{}",
                    status.code(),
                    details.reason
                );
            }
        }
    }
    Ok(())
}

/// 38: max_staleness_ms is honoured or refused: the header says at most what was asked, and what was acknowledged that
/// long before is there, on every node, also on one that has slept.
///
/// Break: `Replica::read_within` (replica/src/read.rs) answers without judging the age of the last round, also when it
/// then says an age within the bound. Not found: an age that counts from the round's end, which takes a stop in the
/// middle of a round of a millisecond.
pub async fn c38_max_staleness_is_honoured_or_refused(case: &Case) -> Outcome {
    let Some(stage) = &case.stage else {
        case.note("without a node that sleeps, which needs --holdfast");
        return staleness(case, &case.target, 20).await.map(drop);
    };
    let mut field = stage.field().await?;
    field.heal().await?;
    let target = field.target.clone();
    {
        let _transfers = field.transfers();
        staleness(case, &target, 20).await?;
    }
    // A follower sleeps while others write, and is asked as it wakes up.
    let user = case.user("sleeper");
    let (mut answered, mut refused) = (0, 0);
    for round in 0..4 {
        field.heal().await?;
        let follower = (field.leader().await + 1 + round % 2) % 3;
        let node = target.nodes[follower].clone();
        let ask = read(&user, 0);
        settled(|| node.get(&ask)).await?;
        let stopped = field.stop(follower);
        let written = target.client().put(contact(&user, "a"), "text/plain", format!("{round}")).await?.version;
        let acknowledged = Instant::now();
        tokio::time::sleep(Duration::from_millis(700)).await;
        let questions = (0..16u64).map(|n| {
            let (node, user) = (node.clone(), user.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(4 * n)).await;
                node.get(&read(&user, 300)).await
            }
        });
        let (answers, ()) = tokio::join!(futures::future::join_all(questions), async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            drop(stopped);
        });
        for answer in answers {
            match answer {
                Ok(answer) => {
                    answered += 1;
                    let seen = answer.records.first().map_or(0, |one| one.version);
                    let header = answer.header.unwrap_or_default();
                    check!(header.staleness_ms <= 300, "expected staleness_ms of at most 300, saw {header:?}");
                    check!(
                        seen >= written,
                        "expected the write acknowledged {:?} ago within 300 ms of staleness, saw {seen:#x} before \
                         {written:#x}",
                        acknowledged.elapsed()
                    );
                }
                Err(_) => refused += 1,
            }
        }
    }
    case.note(format!("as it woke up: {answered} answered, {refused} refused"));
    Ok(())
}

fn read(user: &str, staleness_ms: u32) -> v1::BatchGetRecordsRequest {
    let consistency = Some(v1::ReadConsistency { level: Some(Level::MaxStalenessMs(staleness_ms)) });
    let keys = vec![key("contacts", "a")];
    v1::BatchGetRecordsRequest { user_id: user.to_owned(), keys, consistency, ..Default::default() }
}

/// Writes, waits for longer than the bound, and reads everywhere.
async fn staleness(case: &Case, target: &Target, rounds: usize) -> Result<(), Failure> {
    let user = case.user("one");
    for round in 0..rounds {
        let written = target.client().put(contact(&user, "a"), "text/plain", format!("{round}")).await?.version;
        let bound = [0u32, 50, 200][round % 3];
        tokio::time::sleep(Duration::from_millis(u64::from(bound) + 5)).await;
        for node in &target.nodes {
            let ask = read(&user, bound);
            let answer = settled(|| node.get(&ask)).await;
            let answer =
                answer.map_err(|status| Failure::from(status).at(format!("within {bound} ms of staleness")))?;
            let seen = answer.records.first().map_or(0, |one| one.version);
            check!(
                seen >= written,
                "expected what was acknowledged {bound} ms before, {written:#x}, on {}, saw {seen:#x}",
                node.address
            );
            let header = answer.header.unwrap_or_default();
            check!(header.staleness_ms <= bound, "expected staleness_ms of at most {bound}, saw {header:?}");
        }
    }
    Ok(())
}

/// 48: Replicas that applied the same index have the same digest, and every user's digest is the same on every node.
///
/// Break: `expire::judge` (model/src/transition/expire.rs) uses the node's clock instead of `sys.now`.
pub async fn c48_replica_digests_agree(case: &Case) -> Outcome {
    let user = case.user("one");
    for n in 0..10 {
        case.write(&user, vec![put(&format!("k{n}"), "1"), put("again", &format!("{n}"))]).await?;
    }
    let written = case.delete(&user, "k3").await?;
    let mut pages = Vec::new();
    for place in 0..case.target.nodes.len() {
        let question = v1::GetChangesRequest {
            consistency: at_least(&written.header.unwrap_or_default()),
            ..Device::new(&user).question(0)
        };
        let page = page_of(case.target.client_of(place)?.changes(question).await?.outcome)?;
        pages.push((page.records, page.digests));
    }
    check!(pages.iter().all(|page| *page == pages[0]), "expected one feed and one digest on all nodes, saw {pages:?}");
    if case.target.admins.is_empty() {
        return Err(Failure::skipped("the feeds agree; whole-state digests need --admin"));
    }
    let mut seen: BTreeMap<u64, BTreeMap<usize, Vec<u8>>> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(20);
    let mut together = 0;
    while together < 5 {
        check!(Instant::now() < end, "expected {} nodes at one index within 20 s, saw none", case.target.admins.len());
        for (place, status) in case.target.statuses().await? {
            let Some(group) = status.groups.first() else { continue };
            check!(!group.digest.is_empty(), "expected a digest in the status of node {}, saw none", place + 1);
            let at = seen.entry(group.digest_index).or_default();
            if let Some(known) = at.insert(place, group.digest.to_vec()) {
                check_eq!(group.digest.to_vec(), known, "digest of node {} at index {}", place + 1, group.digest_index);
            }
            let first = at.values().next().cloned().unwrap_or_default();
            check_eq!(group.digest.to_vec(), first, "digest of node {} at index {}", place + 1, group.digest_index);
        }
        together = seen.values().filter(|at| at.len() == case.target.admins.len()).count();
        if together < 5 {
            case.put(&user, "again", &format!("more {}", seen.len())).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
