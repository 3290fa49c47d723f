//! More than a node takes: callers are told to wait before anything is proposed, others and operators get through, and
//! nothing that was acknowledged is missing.

mod cluster;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cluster::{Cluster, contact, holdfast, wait_for};
use holdfast_client::Error;
use holdfast_client::v1::ListRecordsRequest;

const PAYLOAD_BYTES: usize = 200_000;
const WRITERS: usize = 24;
const READERS: usize = 64;

/// Calls that this node refused for `reason`.
fn rejected(http: &str, reason: &str) -> u64 {
    let mut stream = TcpStream::connect(http).expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("asks");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("answers");
    let prefix = format!("holdfast_admission_rejected_total{{reason=\"{reason}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap_or(0)
}

/// Told to wait; or, on a machine with much else to do, not told anything in time.
fn assert_refused(error: &Error) {
    assert!(["OVERLOADED", "OUTCOME_UNKNOWN", "NO_LEADER"].contains(&error.reason()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_too_much_waits_and_others_get_through() {
    let dir = tempfile::tempdir().expect("tempdir");
    let url = format!("file://{}", dir.path().join("offsite").display());
    let small = ["--offsite", &url, "--set", "limits.inflight_bytes_max=1048576", "--set", "limits.reads_max=16"];
    let cluster = Cluster::start(&dir.path().join("c"), &small);
    let leader = cluster.leader().await;
    let http = cluster.nodes[leader].http.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        // To the leader alone: each node has a budget of its own.
        let (client, stop) = (cluster.client_of(leader), stop.clone());
        writers.push(tokio::spawn(async move {
            let mut written = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let id = format!("w{writer}-{n}");
                match client.put(contact("greedy", &id), "text/plain", vec![b'x'; PAYLOAD_BYTES]).await {
                    Ok(_) => written.push(id),
                    Err(error) => assert_refused(&error),
                }
            }
            written
        }));
    }
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let (client, stop) = (cluster.client_of(leader), stop.clone());
        readers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let user_id = "greedy".to_owned();
                let collection = "contacts".to_owned();
                let request = ListRecordsRequest { user_id, collection, metadata_only: true, ..Default::default() };
                if let Err(error) = client.list_all(request).await {
                    assert_refused(&error);
                }
            }
        }));
    }
    for reason in ["inflight_bytes", "reads"] {
        wait_for("refusals", async || rejected(&http, reason) > 20).await;
    }
    // Somebody else's small write, and an operator's job.
    let modest = cluster.client_of(leader);
    for n in 0..20 {
        modest.put(contact("modest", &format!("c{n}")), "text/plain", "x").await.expect("there is room for others");
    }
    let admin = cluster.nodes[leader].admin.clone();
    let backup = move || holdfast(&["backup", "now", "--endpoint", &admin]);
    let (code, told, stderr) = tokio::task::spawn_blocking(backup).await.expect("runs");
    assert_eq!(code, 0, "{told}{stderr}");
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.expect("was refused in order at worst");
    }
    for writer in writers {
        for id in writer.await.expect("was refused in order at worst") {
            let found = modest.get(contact("greedy", &id)).await.expect("readable").expect("acknowledged, so there");
            assert_eq!(found.payload.len(), PAYLOAD_BYTES);
        }
    }
    cluster.wait_converged().await;
}

/// Callers who are many use up the whole budget of their leader, each a little of it. An operator's job is proposed all
/// the same, each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_get_through_when_callers_have_used_up_everything() {
    let dir = tempfile::tempdir().expect("tempdir");
    let url = format!("file://{}", dir.path().join("offsite").display());
    let small = ["--offsite", &url, "--set", "limits.inflight_bytes_max=1048576"];
    let cluster = Cluster::start(&dir.path().join("c"), &small);
    let leader = cluster.leader().await;
    let http = cluster.nodes[leader].http.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..WRITERS * 2 {
        let (client, stop) = (cluster.client_of(leader), stop.clone());
        writers.push(tokio::spawn(async move {
            let user = format!("user-{writer}");
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let id = format!("c{}", n % 10);
                if let Err(error) = client.put(contact(&user, &id), "text/plain", vec![b'x'; PAYLOAD_BYTES]).await {
                    assert_refused(&error);
                }
            }
        }));
    }
    wait_for("refusals", async || rejected(&http, "inflight_bytes") > 100).await;
    for round in 1..=5 {
        let before = rejected(&http, "inflight_bytes");
        let admin = cluster.nodes[leader].admin.clone();
        let backup = move || holdfast(&["backup", "now", "--endpoint", &admin]);
        let (code, told, stderr) = tokio::task::spawn_blocking(backup).await.expect("runs");
        assert_eq!(code, 0, "round {round}: {told}{stderr}");
        assert!(rejected(&http, "inflight_bytes") > before, "round {round}: nobody was refused meanwhile");
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("was refused in order at worst");
    }
}
