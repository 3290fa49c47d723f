//! The change feed: what it shows, and where its tokens stand. 13, 17, 18.

use std::time::{Duration, Instant};

use holdfast_wire::v1;

use crate::case::{Case, delete, put, put_in};
use crate::device::{Device, key_of};
use crate::failure::Outcome;
use crate::target::page_of;
use crate::{check, check_eq};

/// 13: The feed shows each changed record once, in its newest state, ordered by version, to every filter.
///
/// Break: `Writing::mutate` (model/src/transition/writing.rs) without `Effect::DeleteChange`.
pub async fn c13_the_feed_shows_each_record_once_and_newest(case: &Case) -> Outcome {
    let user = case.user("one");
    case.write(&user, vec![put("a", "1"), put("b", "1"), put("c", "1"), put_in("notes", "n", "1")]).await?;
    let mut device = case.device(&user).await?;
    for n in 2..6 {
        case.put(&user, "a", &format!("{n}")).await?;
    }
    case.write(&user, vec![put("c", "6"), delete("b")]).await?;
    case.write(&user, vec![put_in("notes", "n", "6")]).await?;
    case.write(&user, vec![put("d", "gone"), put("e", "6")]).await?;
    case.delete(&user, "d").await?;
    let before = device.clone();
    let synced = device.sync(case.client(), 2).await?;
    let seen: Vec<(String, String, bool)> = synced
        .records()
        .iter()
        .map(|record| {
            let payload = String::from_utf8_lossy(&record.payload).into_owned();
            (key_of(record).1, payload, record.delete_time.is_some())
        })
        .collect();
    let expected = [("a", "5"), ("c", "6"), ("b", ""), ("n", "6"), ("e", "6"), ("d", "")];
    let expected: Vec<(String, String, bool)> =
        expected.iter().map(|(id, payload)| ((*id).into(), (*payload).into(), payload.is_empty())).collect();
    check_eq!(seen, expected, "changes since the token, by id, payload and whether deleted");
    let versions: Vec<u64> = synced.records().iter().map(|record| record.version).collect();
    check!(versions.is_sorted(), "expected changes in order of version, saw {versions:x?}");
    // Masked records keep what identifies them.
    let masked = v1::GetChangesRequest { metadata_only: true, ..before.question(0) };
    let masked = page_of(case.client().changes(masked).await?.outcome)?;
    for (masked, whole) in masked.records.iter().zip(synced.records()) {
        let expected = v1::Record { payload: Default::default(), ..whole.clone() };
        check_eq!(*masked, expected, "a record under metadata_only");
    }
    check_eq!(masked.records.len(), synced.records().len(), "records under metadata_only");
    // A filter has a feed of its own.
    let filtered =
        v1::GetChangesRequest { user_id: user.clone(), collections: vec!["notes".into()], ..Default::default() };
    let page = page_of(case.client().changes(filtered.clone()).await?.outcome)?;
    let keys: Vec<String> = page.records.iter().map(|record| key_of(record).1).collect();
    check_eq!(keys, vec!["n".to_owned()], "feed of `notes` alone");
    case.put(&user, "a", "7").await?;
    let next = v1::GetChangesRequest { sync_token: page.next_sync_token, ..filtered };
    let page = page_of(case.client().changes(next).await?.outcome)?;
    check!(page.records.is_empty() && !page.more, "expected nothing new in `notes`, saw {page:?}");
    echo(case).await
}

/// A device need not hear of its own writes, but must hear of everyone else's.
async fn echo(case: &Case) -> Outcome {
    let user = case.user("echo");
    let written_by = |device: &str, id: &str| v1::BatchWriteRequest {
        device_id: device.to_owned(),
        ..crate::case::batch(&user, vec![put(id, device)])
    };
    for (device, id) in [("phone", "p1"), ("laptop", "l1"), ("phone", "p2"), ("", "x1")] {
        case.client().write(written_by(device, id)).await?;
    }
    let question = v1::GetChangesRequest { exclude_device_id: "phone".into(), ..Device::new(&user).question(1) };
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let next = v1::GetChangesRequest { sync_token: token.clone(), ..question.clone() };
        let page = page_of(case.client().changes(next).await?.outcome)?;
        seen.extend(page.records.iter().map(|record| key_of(record).1));
        token = page.next_sync_token;
        if !page.more {
            break;
        }
        check!(seen.len() < 10, "expected the feed to end, saw {seen:?}");
    }
    check_eq!(seen, vec!["l1".to_owned(), "x1".to_owned()], "feed that leaves the writes of `phone` out");
    Ok(())
}

/// 17: A token that is up to date gives back a current token, never zero: no repetition, no loss, on any node; and a
/// long poll on it is woken by the next write.
///
/// Break: `page` (server/src/grpc/changes.rs): `let mut reached = after` where nothing was read, or a zero version.
pub async fn c17_an_up_to_date_token_stays_current(case: &Case) -> Outcome {
    let user = case.user("one");
    let mut device = Device::new(&user);
    // A user never seen has a place in its feed too.
    let empty = device.sync(case.client(), 0).await?;
    check!(empty.records().is_empty() && !device.token.is_empty(), "expected an empty feed and a token, saw {empty:?}");
    case.write(&user, vec![put("a", "1"), put("b", "1"), put_in("notes", "n", "1")]).await?;
    check_eq!(
        device.sync(case.client(), 0).await?.records().len(),
        3,
        "records after a token from before the user was"
    );
    for round in 0..2 * case.target.nodes.len() {
        let client = case.target.client_of(round % case.target.nodes.len())?;
        let synced = device.sync(&client, 0).await?;
        check_eq!(synced.keys(), vec![], "changes since an up-to-date token, round {round}");
        check!(!device.token.is_empty(), "expected a token in round {round}, saw none");
        check!(synced.pages.len() == 1, "expected one page in round {round}, saw {}", synced.pages.len());
    }
    case.put(&user, "b", "2").await?;
    let expected = vec![("contacts".to_owned(), "b".to_owned())];
    check_eq!(device.sync(case.client(), 0).await?.keys(), expected, "changes after one write");
    // Also where a filter hides everything that happened: the token moves on, and nothing comes twice.
    let filtered = |token: String| v1::GetChangesRequest {
        user_id: user.clone(),
        sync_token: token,
        collections: vec!["events".into()],
        ..Default::default()
    };
    let token = page_of(case.client().changes(filtered(String::new())).await?.outcome)?.next_sync_token;
    let page = page_of(case.client().changes(filtered(token)).await?.outcome)?;
    check!(page.records.is_empty() && !page.more && !page.next_sync_token.is_empty(), "expected nothing, saw {page:?}");
    long_poll(case, &device).await
}

async fn long_poll(case: &Case, device: &Device) -> Outcome {
    let node = case.target.client_of(1 % case.target.nodes.len())?;
    let quiet = v1::GetChangesRequest { wait_ms: 300, ..device.question(0) };
    let began = Instant::now();
    let page = page_of(node.changes(quiet).await?.outcome)?;
    check!(
        page.records.is_empty() && began.elapsed() >= Duration::from_millis(250),
        "expected an empty page after about 300 ms, saw {} records after {:?}",
        page.records.len(),
        began.elapsed()
    );
    let began = Instant::now();
    let poll = v1::GetChangesRequest { wait_ms: 20_000, ..device.question(0) };
    let (answer, written) = tokio::join!(node.changes(poll), async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        case.put(&device.user, "c", "woken").await
    });
    written?;
    let page = page_of(answer?.outcome)?;
    check!(
        page.records.len() == 1 && began.elapsed() < Duration::from_secs(10),
        "expected the poll to be woken by the write, saw {} records after {:?}",
        page.records.len(),
        began.elapsed()
    );
    Ok(())
}

/// 18: A sync from the empty token shows live records alone, also over many pages, and also what was deleted and
/// written again; deletes after its start do arrive.
///
/// Break: `page` (server/src/grpc/changes.rs) without `never_had`, or with it for the whole sync.
pub async fn c18_a_first_sync_has_no_tombstones(case: &Case) -> Outcome {
    let user = case.user("one");
    for n in 0..6 {
        case.put(&user, &format!("k{n}"), "1").await?;
    }
    for n in [0, 2, 4] {
        case.delete(&user, &format!("k{n}")).await?;
    }
    case.put(&user, "k4", "again").await?;
    for page_size in [0, 1, 2] {
        let mut device = Device::new(&user);
        let synced = device.sync(case.client(), page_size).await?;
        let tombstones: Vec<_> = synced.records().into_iter().filter(|record| record.delete_time.is_some()).collect();
        check!(tombstones.is_empty(), "expected no tombstone at page size {page_size}, saw {tombstones:?}");
        let mut ids: Vec<String> = synced.keys().into_iter().map(|(_, id)| id).collect();
        ids.sort();
        check_eq!(ids, ["k1", "k3", "k4", "k5"].map(str::to_owned).to_vec(), "live records at page size {page_size}");
    }
    // Deleted after the sync began: the device has it from the first page and must hear of its end.
    let mut device = Device::new(&user);
    let page = device.step(case.client(), 1).await?;
    check_eq!((page.records.len(), page.more), (1, true), "first page of a sync from zero");
    let first = key_of(&page.records[0]).1;
    case.delete(&user, &first).await?;
    let rest = device.sync(case.client(), 1).await?;
    let told = rest.records().iter().any(|record| key_of(record).1 == first && record.delete_time.is_some());
    check!(told, "expected the tombstone of {first}, deleted while paging, saw {:?}", rest.keys());
    check_eq!(device.records.len(), 3, "records of a device at the end");
    // And a token that is not zero gets them all.
    let mut late = case.device(&user).await?;
    case.delete(&user, "k5").await?;
    let synced = late.sync(case.client(), 0).await?;
    check!(
        synced.records().len() == 1 && synced.records()[0].delete_time.is_some(),
        "expected one tombstone after a token, saw {:?}",
        synced.records()
    );
    check!(synced.records()[0].payload.is_empty(), "expected no payload on a tombstone, saw {:?}", synced.records());
    Ok(())
}
