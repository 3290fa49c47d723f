//! Pages of the feed and of listings. 14, 15, 16, 19, 20.

use std::collections::BTreeSet;

use holdfast_wire::v1;
use jepsen_tests::chance::Chance;

use crate::case::{Case, delete, key, put, put_in};
use crate::device::{Device, content_hash, key_of};
use crate::failure::{Failure, Outcome};
use crate::target::page_of;
use crate::{check, check_eq};

/// A history of batches of one to five mutations, with deletes and rewrites, over few keys.
async fn history(case: &Case, user: &str, commits: usize) -> Result<(), Failure> {
    let mut chance = case.chance();
    for n in 0..commits {
        let mut ids = BTreeSet::new();
        for _ in 0..=chance.below(5) {
            ids.insert(chance.below(12));
        }
        let mutations = ids.into_iter().map(|id| mutation(&mut chance, id, n)).collect();
        case.write(user, mutations).await?;
    }
    Ok(())
}

fn mutation(chance: &mut Chance, id: usize, n: usize) -> v1::Mutation {
    let collection = ["contacts", "events", "x-own"][id % 3];
    let mut mutation = put_in(collection, &format!("k{id}"), &format!("payload {n}"));
    if chance.percent(25) {
        mutation.op = Some(v1::mutation::Op::Delete(v1::DeleteOp {}));
    }
    mutation
}

/// 14: A page never splits a commit, however small it is asked to be.
///
/// Break: `View::changes_with_records` (store/src/changes.rs) ends at `page_records` and not at the next version.
pub async fn c14_a_page_never_splits_a_commit(case: &Case) -> Outcome {
    let user = case.user("one");
    for commit in 0..6 {
        let mutations = (0..=commit).map(|n| put(&format!("k{commit}-{n}"), "x")).collect();
        case.write(&user, mutations).await?;
    }
    for page_size in 1..=8 {
        let mut device = Device::new(&user);
        let synced = device.sync(case.client(), page_size).await?;
        let mut last = 0;
        for page in &synced.pages {
            let versions: BTreeSet<u64> = page.records.iter().map(|record| record.version).collect();
            let (first, end) =
                (versions.first().copied().unwrap_or(last + 1), versions.last().copied().unwrap_or(last));
            check!(first > last, "expected each commit on one page of {page_size}, saw version {first:#x} on two");
            last = end;
            let before_last = page.records.iter().filter(|record| record.version < end).count();
            check!(
                before_last < page_size as usize,
                "expected a page of {page_size} to end with the commit that fills it, saw {before_last} records before \
                 its last commit"
            );
        }
        check_eq!(device.records.len(), 21, "records after paging by {page_size}");
        check!(synced.pages.len() > 1, "expected several pages of {page_size}, saw one");
    }
    Ok(())
}

/// 15: Paging at every page size reaches the same state, from zero and from a token; listings too, in both orders.
///
/// Break: `page` (server/src/grpc/changes.rs) takes the version of the last *shown* record plus one as the token.
pub async fn c15_every_page_size_reaches_the_same_state(case: &Case) -> Outcome {
    let user = case.user("one");
    history(case, &user, 15).await?;
    let midway = case.device(&user).await?;
    history(case, &user, 20).await?;
    let whole = case.device(&user).await?;
    for page_size in (1..=13).chain([1000, i32::MAX]) {
        for (from, mut device) in [("zero", Device::new(&user)), ("a token", midway.clone())] {
            let synced = device.sync(case.client(), page_size).await?;
            check_eq!(device.records, whole.records, "state from {from} by pages of {page_size}");
            let last = synced.pages.last().cloned().unwrap_or_default();
            device.agrees_with(&last).map_err(|failure| failure.at(format!("from {from} by {page_size}")))?;
            let keys = synced.keys();
            let once: BTreeSet<_> = keys.iter().collect();
            check_eq!(once.len(), keys.len(), "distinct records from {from} by pages of {page_size}");
        }
    }
    listings(case, &whole).await
}

async fn listings(case: &Case, whole: &Device) -> Outcome {
    for order in [v1::ListOrder::Unspecified, v1::ListOrder::Newest] {
        for page_size in [1, 2, 3, 1000] {
            let request = v1::ListRecordsRequest {
                user_id: whole.user.clone(),
                collection: "events".into(),
                page_size,
                order: order.into(),
                ..Default::default()
            };
            let mut pages = case.client().list(request);
            let (mut seen, mut tokens) = (Vec::new(), BTreeSet::new());
            while let Some(page) = pages.next_page().await? {
                check!(
                    page.records.len() <= page_size as usize,
                    "expected at most {page_size}, saw {}",
                    page.records.len()
                );
                tokens.insert(page.sync_token.clone());
                seen.extend(page.records);
            }
            let mut expected: Vec<v1::Record> =
                whole.records.values().filter(|record| key_of(record).0 == "events").cloned().collect();
            if order == v1::ListOrder::Newest {
                expected.sort_by_key(|record| std::cmp::Reverse(record.version));
                let versions: Vec<u64> = seen.iter().map(|record| record.version).collect();
                check!(versions.is_sorted_by(|a, b| a >= b), "expected newest first, saw {versions:x?}");
                seen.sort_by_key(|record| (std::cmp::Reverse(record.version), key_of(record)));
                expected.sort_by_key(|record| (std::cmp::Reverse(record.version), key_of(record)));
            }
            check_eq!(seen, expected, "listing in {order:?} by pages of {page_size}");
            check_eq!(tokens.len(), 1, "sync tokens over the pages of one listing");
            let mut device = Device { token: tokens.pop_first().unwrap_or_default(), ..Device::new(&whole.user) };
            check_eq!(device.sync(case.client(), 0).await?.keys(), vec![], "changes since a listing's token");
        }
    }
    Ok(())
}

/// 16: Replaying a page is harmless: the same token gives the same page, and applying it twice changes nothing.
///
/// Break: `page` (server/src/grpc/changes.rs) remembers what it gave out, or skips what it thinks was seen.
pub async fn c16_replaying_a_page_is_harmless(case: &Case) -> Outcome {
    let user = case.user("one");
    history(case, &user, 20).await?;
    let whole = case.device(&user).await?;
    let mut device = Device::new(&user);
    for round in 0.. {
        let before = device.clone();
        let page = device.step(case.client(), 3).await?;
        let applied = device.clone();
        // Lost on the way and asked for again, of any node.
        let node = case.target.client_of(round % case.target.nodes.len())?;
        let again = page_of(node.changes(before.question(3)).await?.outcome)?;
        check_eq!(again.records, page.records, "records of a page asked for again");
        check_eq!(again.more, page.more, "`more` of a page asked for again");
        device.apply(&again);
        check_eq!(device.records, applied.records, "state after a page was applied twice");
        if !page.more {
            break;
        }
        check!(round < 100, "expected the feed to end, saw 100 pages");
    }
    check_eq!(device.records, whole.records, "state at the end");
    Ok(())
}

/// 19: Writes during paging are seen by the end: new, changed and deleted, in front of and behind the place.
///
/// Break: `page` (server/src/grpc/changes.rs) remembers the head of the first page as the end of the sync.
pub async fn c19_writes_during_paging_are_seen(case: &Case) -> Outcome {
    for round in 0..3 {
        let user = case.user(&format!("u{round}"));
        history(case, &user, 12).await?;
        let mut chance = case.chance();
        let mut device = Device::new(&user);
        for n in 0..12 {
            let page = device.step(case.client(), 1 + round).await?;
            let id = chance.below(14);
            case.write(&user, vec![mutation(&mut chance, id, 100 + n)]).await?;
            if let Some(record) = page.records.first()
                && n % 3 == 0
            {
                // What the device has just been given ends.
                let op = Some(v1::mutation::Op::Delete(v1::DeleteOp {}));
                case.write(&user, vec![v1::Mutation { key: record.key.clone(), op, precondition: None }]).await?;
            }
        }
        let last = device.sync(case.client(), 2).await?.pages.pop().unwrap_or_default();
        let whole = case.device(&user).await?;
        check_eq!(device.records, whole.records, "state of a device that paged while others wrote, round {round}");
        device.agrees_with(&last)?;
    }
    Ok(())
}

/// 20: The digest at more = false equals what a device computes from the records it has; other pages carry none.
///
/// Break: `Writing::list` (model/src/transition/writing.rs) without `digest.sum.add`.
pub async fn c20_the_digest_equals_a_recomputation(case: &Case) -> Outcome {
    let user = case.user("one");
    let mut device = Device::new(&user);
    for round in 0..4 {
        history(case, &user, 8).await?;
        let synced = device.sync(case.client(), 3).await?;
        let (last, others) = synced.pages.split_last().ok_or_else(|| Failure::broken("expected a page, saw none"))?;
        device.agrees_with(last).map_err(|failure| failure.at(format!("round {round}")))?;
        check!(others.iter().all(|page| page.digests.is_empty()), "expected digests on the last page only");
        for record in device.records.values() {
            let expected = content_hash(&record.content_type, &record.payload, 0);
            check_eq!(record.content_hash.to_vec(), expected, "content hash, recomputed");
        }
    }
    // An emptied collection has no digest, or one of nothing.
    let all: Vec<v1::Mutation> = device
        .records
        .keys()
        .map(|(collection, id)| v1::Mutation { key: Some(key(collection, id)), ..delete(id) })
        .collect();
    case.write(&user, all).await?;
    let last = device.sync(case.client(), 0).await?.pages.pop().unwrap_or_default();
    check_eq!(device.records.len(), 0, "records after all were deleted");
    for digest in &last.digests {
        let zero = digest.count == 0 && digest.digest.iter().all(|byte| *byte == 0);
        check!(zero, "expected a digest of nothing, saw {digest:?}");
    }
    // A filter shows its own collections' digests.
    case.write(&user, vec![put_in("notes", "n", "1"), put("c", "1")]).await?;
    let filtered = v1::GetChangesRequest { user_id: user, collections: vec!["notes".into()], ..Default::default() };
    let page = page_of(case.client().changes(filtered).await?.outcome)?;
    let seen: Vec<(&str, u64)> = page.digests.iter().map(|one| (one.collection.as_str(), one.count)).collect();
    check_eq!(seen, vec![("notes", 1)], "digests under a filter");
    Ok(())
}
