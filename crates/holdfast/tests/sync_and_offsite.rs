//! Promises 4, 5 and 8 against real processes: the feed, and what comes back after every node is lost.

mod cluster;

use std::path::Path;
use std::time::{Duration, Instant};

use cluster::{Cluster, contact, holdfast, wait_for};
use holdfast_client::{Client, SyncOutcome};
use holdfast_wire::v1;

async fn page(client: &Client, user: &str, token: &str, page_size: i32, wait_ms: u32) -> v1::ChangesPage {
    let request = v1::GetChangesRequest {
        user_id: user.into(),
        sync_token: token.into(),
        page_size,
        wait_ms,
        ..Default::default()
    };
    match client.changes(request).await.expect("answered").outcome {
        SyncOutcome::Page(page) => page,
        SyncOutcome::Resync(info) => panic!("resync: {info:?}"),
    }
}

async fn resync(client: &Client, user: &str, token: &str) -> v1::ResyncInfo {
    let request = v1::GetChangesRequest { user_id: user.into(), sync_token: token.into(), ..Default::default() };
    match client.changes(request).await.expect("answered").outcome {
        SyncOutcome::Resync(info) => info,
        SyncOutcome::Page(page) => panic!("page: {page:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_is_complete_on_every_node_and_its_tokens_hold() {
    let dir = tempfile::tempdir().expect("tempdir");
    let cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    for n in 0..10 {
        client.put(contact("alice", &format!("c{n}")), "text/plain", format!("v{n}")).await.expect("written");
    }
    client.delete(contact("alice", "c3")).await.expect("deleted");
    client.put(contact("alice", "c4"), "text/plain", "newer").await.expect("written");
    // Paging on a node of its own each time; each record once, newest state, no tombstone from zero.
    let mut seen = Vec::new();
    let mut token = String::new();
    for place in (0..3).cycle() {
        let page = page(&cluster.client_of(place), "alice", &token, 2, 0).await;
        seen.extend(page.records.iter().map(|record| record.key.clone().expect("key").record_id));
        token = page.next_sync_token;
        if !page.more {
            assert_eq!(page.digests[0].count, 9);
            break;
        }
    }
    let mut ids = seen.clone();
    ids.sort();
    assert_eq!(ids, ["c0", "c1", "c2", "c4", "c5", "c6", "c7", "c8", "c9"]);
    assert_eq!(seen.last().map(String::as_str), Some("c4"), "in order of the last change");
    // An up-to-date token stays; a long poll is woken by a write and not by time.
    assert_eq!(page(&client, "alice", &token, 0, 0).await.records.len(), 0);
    let began = Instant::now();
    let poll = tokio::spawn({
        let (client, token) = (cluster.client_of(1), token.clone());
        async move { page(&client, "alice", &token, 0, 25_000).await }
    });
    client.put(contact("alice", "c10"), "text/plain", "x").await.expect("written");
    client.delete(contact("alice", "c0")).await.expect("deleted");
    let woken = poll.await.expect("poll");
    assert!(!woken.records.is_empty() && began.elapsed() < Duration::from_secs(20), "woken by the write");
    // Tokens: another user's, a flipped character, another filter.
    let ask = async |user: &str, token: &str, collections: &[&str]| {
        let request = v1::GetChangesRequest {
            user_id: user.into(),
            sync_token: token.into(),
            collections: collections.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        client.changes(request).await.expect_err("refused").reason().to_owned()
    };
    assert_eq!(ask("bob", &token, &[]).await, "TOKEN_OTHER_USER");
    assert_eq!(ask("alice", &token, &["notes"]).await, "FILTER_CHANGED");
    let mut flipped = token.clone().into_bytes();
    flipped[10] ^= 1;
    assert_eq!(ask("alice", &String::from_utf8(flipped).expect("ascii"), &[]).await, "TOKEN_MALFORMED");
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archive_alone_brings_everything_back_and_old_tokens_are_answered_exactly() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (first, offsite, second) = (dir.path().join("c"), dir.path().join("offsite"), dir.path().join("restored"));
    let offsite_url = url(&offsite);
    let mut cluster = Cluster::start(&first, &["--offsite", &offsite_url, "--set", "ship.interval_ms=200"]);
    let client = cluster.client();
    let mut newest = 0;
    for n in 0..40 {
        let payload = format!("before the snapshot {n}");
        client.put(contact("alice", &format!("c{n}")), "text/plain", payload).await.expect("written");
    }
    let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[0].admin]);
    assert_eq!(code, 0, "{stderr}");
    for n in 40..80 {
        let payload = format!("after the snapshot {n}");
        newest =
            client.put(contact("alice", &format!("c{n}")), "text/plain", payload).await.expect("written").commit_index;
    }
    let kept = page(&client, "alice", "", 1000, 0).await.next_sync_token;
    wait_for("the log to be offsite", async || {
        let Some(status) = cluster.status(0).await else { return false };
        status.destinations.first().is_some_and(|destination| destination.durable_index >= newest)
    })
    .await;
    // Written in the last moments, never shipped: the devices have it, the archive does not.
    let forged = {
        std::fs::rename(&offsite, dir.path().join("unreachable")).expect("the destination goes away");
        client.put(contact("alice", "lost"), "text/plain", "lost").await.expect("written");
        page(&client, "alice", &kept, 0, 0).await.next_sync_token
    };
    cluster.stop();
    std::fs::remove_dir_all(&first).expect("the array is lost");
    let _ = std::fs::remove_dir_all(&offsite);
    std::fs::rename(dir.path().join("unreachable"), &offsite).expect("the archive is somewhere else");

    let base = cluster.port_base();
    let (code, stdout, stderr) = holdfast(&[
        "restore",
        "run",
        "--from",
        &offsite_url,
        "--data",
        &second.display().to_string(),
        "--nodes",
        "3",
        "--port-base",
        &base.to_string(),
    ]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let cluster = Cluster::start_after(cluster, &second, &[]);
    let client = cluster.client();
    for n in 0..80 {
        let found = client.get(contact("alice", &format!("c{n}"))).await.expect("read").expect("restored");
        let when = if n < 40 { "before" } else { "after" };
        assert_eq!(found.payload, format!("{when} the snapshot {n}"));
    }
    // A token at the fork goes on; one beyond it is told how far the server went back, and nothing is wiped.
    assert_eq!(page(&client, "alice", &kept, 0, 0).await.records.len(), 0);
    let info = resync(&client, "alice", &forged).await;
    assert_eq!(info.reason(), v1::ResyncReason::RolledBack);
    let fork = client.get(contact("alice", "c79")).await.expect("read").expect("restored").version;
    assert_eq!(info.common_version, fork);
    let next = client.put(contact("alice", "again"), "text/plain", "x").await.expect("written");
    assert_eq!(next.version >> 48, (fork >> 48) + 1, "versions of a new epoch");
    assert_eq!(resync(&client, "alice", &forged).await.common_version, fork, "also after new writes");
    cluster.wait_converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_archive_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (first, offsite) = (dir.path().join("c"), dir.path().join("offsite"));
    let offsite_url = url(&offsite);
    let mut cluster = Cluster::start(&first, &["--offsite", &offsite_url, "--set", "ship.interval_ms=100"]);
    let client = cluster.client();
    let mut newest = 0;
    for n in 0..20 {
        newest = client.put(contact("alice", &format!("c{n}")), "text/plain", "x").await.expect("written").commit_index;
    }
    wait_for("the log to be offsite", async || {
        let Some(status) = cluster.status(0).await else { return false };
        status.destinations.first().is_some_and(|destination| destination.durable_index >= newest)
    })
    .await;
    cluster.stop();
    let mut objects = Vec::new();
    let mut open = vec![offsite.clone()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { objects.push(path) }
        }
    }
    assert!(!objects.is_empty());
    for (n, object) in objects.iter().enumerate() {
        let whole = std::fs::read(object).expect("object");
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        std::fs::write(object, &damaged).expect("damage");
        let target = dir.path().join(format!("restored-{n}"));
        let (code, stdout, stderr) =
            holdfast(&["restore", "run", "--from", &offsite_url, "--data", &target.display().to_string()]);
        let name = object.file_name().expect("name").to_string_lossy().into_owned();
        assert_eq!(code, 9, "{name}: {stdout}{stderr}");
        assert!(format!("{stdout}{stderr}").contains(&name), "{name} is not named: {stdout}{stderr}");
        std::fs::write(object, &whole).expect("repair");
    }
}
