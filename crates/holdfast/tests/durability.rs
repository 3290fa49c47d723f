//! Promises 1 to 3 against three real processes: acknowledged writes survive kills and restarts, and take effect once.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::{Cluster, contact, wait_for};
use holdfast_client::Client;
use holdfast_wire::v1;
use tokio::sync::Mutex;

type Ledger = Arc<Mutex<BTreeMap<(String, String), (Vec<u8>, u64)>>>;

/// Writers with unique records until `stop`; what was acknowledged goes into the ledger.
fn writers(client: &Client, count: usize, ledger: &Ledger, stop: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<()>> {
    (0..count)
        .map(|writer| {
            let (client, ledger, stop) = (client.clone(), ledger.clone(), stop.clone());
            tokio::spawn(async move {
                let user = format!("user-{writer}");
                for n in 0.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    let id = format!("r{n}");
                    let payload = format!("payload {writer}/{n}").into_bytes();
                    if let Ok(answer) = client.put(contact(&user, &id), "text/plain", payload.clone()).await {
                        ledger.lock().await.insert((user.clone(), id), (payload, answer.version));
                    }
                }
            })
        })
        .collect()
}

async fn check_ledger(client: &Client, ledger: &Ledger) {
    let ledger = ledger.lock().await;
    assert!(ledger.len() > 100, "only {} writes were acknowledged", ledger.len());
    let mut by_user: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (user, id) in ledger.keys() {
        by_user.entry(user).or_default().push(id);
    }
    for (user, ids) in by_user {
        let keys =
            ids.iter().map(|id| v1::RecordKey { collection: "contacts".into(), record_id: (*id).to_owned() }).collect();
        let request = v1::BatchGetRecordsRequest { user_id: user.to_owned(), keys, ..Default::default() };
        let found: BTreeMap<String, (Vec<u8>, u64)> = client
            .read_all(request)
            .await
            .expect("readable")
            .into_iter()
            .map(|record| (record.key.expect("key").record_id, (record.payload.to_vec(), record.version)))
            .collect();
        for id in ids {
            let acknowledged = &ledger[&(user.to_owned(), id.to_owned())];
            // The version too: a request applied twice would have moved it.
            assert_eq!(found.get(id), Some(acknowledged), "{user}/{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kills_of_the_leader_and_of_everyone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let (ledger, stop) = (Ledger::default(), Arc::new(AtomicBool::new(false)));
    let running = writers(&client, 16, &ledger, &stop);
    for _ in 0..3 {
        let before = ledger.lock().await.len();
        wait_for("writes between kills", async || ledger.lock().await.len() > before + 200).await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        wait_for("writes without the old leader", async || ledger.lock().await.len() > before + 400).await;
        cluster.restart(leader);
    }
    for place in 0..3 {
        cluster.kill(place);
    }
    stop.store(true, Ordering::Release);
    for place in 0..3 {
        cluster.restart(place);
    }
    for task in running {
        task.await.expect("writer");
    }
    check_ledger(&client, &ledger).await;
    cluster.wait_converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_takes_effect_once_across_leader_change_and_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster =
        Cluster::start(&dir.path().join("c"), &["--set", "raft.snapshot_entries=20", "--set", "raft.keep_entries=5"]);
    let client = cluster.client();
    let request = |payload: &str| v1::BatchWriteRequest {
        user_id: "alice".into(),
        request_id: "0b9f57b4-16ba-4e9c-a0a5-5a0ac1a5ff11".into(),
        mutations: vec![v1::Mutation {
            key: Some(contact("alice", "c1").key()),
            op: Some(v1::mutation::Op::Put(v1::PutOp {
                content_type: "text/plain".into(),
                payload: payload.as_bytes().to_vec().into(),
                ..Default::default()
            })),
            precondition: None,
        }],
        ..Default::default()
    };
    let first = client.write(request("one")).await.expect("written");
    assert!(!first.replayed);
    for n in 0..60 {
        client.put(contact("bob", &format!("c{n}")), "text/plain", "x").await.expect("written");
    }
    let leader = cluster.leader().await;
    cluster.kill(leader);
    cluster.restart(leader);
    for _ in 0..2 {
        let again = client.write(request("one")).await.expect("replayed");
        assert!(again.replayed);
        assert_eq!((again.version, again.commit_index), (first.version, first.commit_index));
        cluster.reopen();
    }
    let error = client.write(request("two")).await.expect_err("another body under one id");
    assert_eq!(error.reason(), "REQUEST_ID_REUSED");
    let stored = client.get(contact("alice", "c1")).await.expect("read").expect("there");
    assert_eq!((&stored.payload[..], stored.version), (&b"one"[..], first.version));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_log_is_purged_catches_up_by_snapshot_under_load() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster =
        Cluster::start(&dir.path().join("c"), &["--set", "raft.snapshot_entries=100", "--set", "raft.keep_entries=50"]);
    let client = cluster.client();
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let behind = cluster.status(follower).await.expect("status").groups[0].last_log_index;
    cluster.kill(follower);
    let (ledger, stop) = (Ledger::default(), Arc::new(AtomicBool::new(false)));
    let running = writers(&client, 8, &ledger, &stop);
    wait_for("the log that the follower needs to be purged", async || {
        cluster.status(leader).await.is_some_and(|status| status.groups[0].purged_index > behind + 10)
    })
    .await;
    cluster.restart(follower);
    wait_for("the follower to catch up while writes go on", async || {
        let leader = cluster.status(leader).await.map(|status| status.groups[0].applied_index);
        let follower = cluster.status(follower).await.map(|status| status.groups[0].applied_index);
        matches!((leader, follower), (Some(leader), Some(follower)) if follower > behind && follower + 50 > leader)
    })
    .await;
    stop.store(true, Ordering::Release);
    for task in running {
        task.await.expect("writer");
    }
    cluster.wait_converged().await;
    check_ledger(&client, &ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_waits_for_the_fsync_of_a_quorum_and_of_no_more() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(
        &dir.path().join("c"),
        &["--set", "raft.election_min_ms=2000", "--set", "raft.election_max_ms=4000"],
    );
    let client = cluster.client();
    let leader = cluster.leader().await;
    let slow =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=300ms"];
    let followers = [(leader + 1) % 3, (leader + 2) % 3];
    cluster.kill(followers[0]);
    cluster.restart_under(followers[0], &slow);
    cluster.wait_converged().await;
    client.put(contact("alice", "warm"), "text/plain", "x").await.expect("written");
    let mut fastest = Duration::MAX;
    for n in 0..5 {
        let began = Instant::now();
        client.put(contact("alice", &format!("a{n}")), "text/plain", "x").await.expect("written");
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_millis(300), "one slow follower must not slow a quorum down: {fastest:?}");
    cluster.kill(followers[1]);
    cluster.restart_under(followers[1], &slow);
    cluster.wait_converged().await;
    for n in 0..3 {
        let began = Instant::now();
        client.put(contact("alice", &format!("b{n}")), "text/plain", "x").await.expect("written");
        assert!(began.elapsed() >= Duration::from_millis(300), "acknowledged before a quorum fsynced");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_fsync_fails_aborts_and_rejoins() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    cluster.kill(follower);
    cluster.restart_under(
        follower,
        &[
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync",
            "-e",
            "inject=fdatasync:error=EIO:when=20+",
        ],
    );
    let pid = cluster.nodes[follower].pid;
    let mut n = 0;
    wait_for("the node with the failing disk to end", async || {
        n += 1;
        client.put(contact("alice", &format!("c{n}")), "text/plain", "x").await.expect("the others go on");
        !cluster::is_alive(pid)
    })
    .await;
    cluster.kill(follower);
    cluster.restart(follower);
    cluster.wait_converged().await;
}

/// Hundreds at once, half of which want a record to be new that the other half want to be new as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_share_an_entry_take_effect_or_fail_each_for_itself() {
    const PAIRS: usize = 200;
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let write = |pair: usize, half: usize| {
        let (client, user) = (client.clone(), format!("user-{}", pair % 7));
        let payload = format!("{pair}/{half}").into_bytes();
        let put =
            v1::PutOp { content_type: "text/plain".into(), payload: payload.clone().into(), ..Default::default() };
        let mutation = v1::Mutation {
            key: Some(contact(&user, &format!("r{pair}")).key()),
            op: Some(v1::mutation::Op::Put(put)),
            precondition: Some(v1::Precondition { check: Some(v1::precondition::Check::Absent(true)) }),
        };
        let request = v1::BatchWriteRequest { user_id: user, mutations: vec![mutation], ..Default::default() };
        tokio::spawn(async move { (pair, payload, client.write(request).await) })
    };
    let calls: Vec<_> = (0..PAIRS * 2).map(|n| write(n / 2, n % 2)).collect();
    let mut written = BTreeMap::new();
    for call in calls {
        let (pair, payload, answer) = call.await.expect("ran");
        match answer {
            Ok(answer) => {
                assert_eq!(written.insert(pair, (payload, answer.version, answer.commit_index)), None, "{pair} twice");
            }
            Err(error) => assert_eq!(error.reason(), "VERSION_MISMATCH", "{error:?}"),
        }
    }
    assert_eq!(written.len(), PAIRS, "of each pair one");
    let entries: BTreeSet<u64> = written.values().map(|(.., index)| *index).collect();
    assert!(entries.len() < PAIRS / 2, "{} entries for {PAIRS} writes", entries.len());
    let versions: BTreeSet<_> = written.iter().map(|(pair, (_, version, _))| (pair % 7, *version)).collect();
    assert_eq!(versions.len(), PAIRS, "each commit has a version of its own");
    // From the log once more.
    for place in 0..3 {
        cluster.kill(place);
    }
    for place in 0..3 {
        cluster.restart(place);
    }
    let client = cluster.client();
    for (pair, (payload, version, _)) in &written {
        let user = format!("user-{}", pair % 7);
        let found = client.get(contact(&user, &format!("r{pair}"))).await.expect("readable").expect("there");
        assert_eq!((&found.payload[..], found.version), (&payload[..], *version), "{pair}");
    }
}
