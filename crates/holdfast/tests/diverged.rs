//! A state that was changed behind its node's back, with valid checksums everywhere: it is found, not served and not led
//! by, reinstalled from a peer by the running process, and the node's vote counts all the while.

mod cluster;
mod node_disks;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, contact, holdfast, is_alive, wait_for};
use holdfast_store::RawRow;
use holdfast_store::keyspace::Family;
use holdfast_wire::durable;
use node_disks::{Ledger, alter, restart, said, terminate, wait_started};

const PAYLOAD_BYTES: usize = 4000;

async fn filled(dir: &Path, records: usize, integrity: &[&str]) -> (Cluster, Ledger) {
    let small = ["--set", "raft.snapshot_entries=40", "--set", "raft.keep_entries=10"];
    let cluster = Cluster::start(&dir.join("c"), &[&small[..], integrity].concat());
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), records, PAYLOAD_BYTES).await;
    cluster.wait_converged().await;
    (cluster, ledger)
}

/// As slow as may be, so that what happens meanwhile can be looked at: some seconds for each reading of the state.
const SLOW: [&str; 4] = ["--set", "integrity.interval_ms=1000", "--set", "integrity.scrub_bytes_per_second=131072"];

async fn integrity(cluster: &Cluster, place: usize) -> holdfast_wire::v1::IntegrityStatus {
    cluster.status(place).await.and_then(|status| status.integrity).unwrap_or_default()
}

fn health(cluster: &Cluster) -> (i32, String) {
    let endpoints = cluster.nodes.iter().map(|node| node.admin.as_str()).collect::<Vec<_>>().join(",");
    let (code, out, _) = holdfast(&["cluster", "health", "--endpoint", &endpoints, "-o", "json"]);
    (code, out)
}

fn compared(cluster: &Cluster, place: usize) -> (i32, serde_json::Value) {
    let (code, out, err) = holdfast(&["integrity", "compare", "--endpoint", &cluster.nodes[place].admin, "-o", "json"]);
    let value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}"));
    (code, value)
}

fn of_family(rows: &[RawRow], family: Family) -> usize {
    rows.iter().position(|row| row.family == family.tag()).expect("a row of the family")
}

/// The last byte of a record's payload.
fn payload(rows: &mut [RawRow]) {
    let at = of_family(rows, Family::Rec);
    *rows[at].value.last_mut().expect("bytes") ^= 1;
}

/// What a request was answered with. No digest covers it: only the other replicas tell.
fn outcome(rows: &mut [RawRow]) {
    let at = of_family(rows, Family::Req);
    let mut row = durable::decode_request(&rows[at].value).expect("a request");
    row.commit_index += 1;
    rows[at].value = durable::encode_request(&row).to_vec();
}

/// What a node says of its readiness, in words.
fn readiness(cluster: &Cluster, place: usize) -> String {
    let mut stream = TcpStream::connect(&cluster.nodes[place].http).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let request = "GET /readyz?verbose HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

async fn backup_refused(cluster: &Cluster, place: usize) -> String {
    let admin = holdfast_client::AdminClient::new(&cluster.nodes[place].admin).expect("an address");
    admin.create_backup().await.expect_err("no snapshot of a state that may be wrong").reason().to_owned()
}

/// A node that hangs, or goes on.
fn signal(cluster: &Cluster, place: usize, signal: i32) {
    // SAFETY: plain system call; the process is one this test started.
    assert_eq!(unsafe { libc::kill(cluster.nodes[place].pid, signal) }, 0, "it is there");
}

async fn wait_reinstalled(cluster: &Cluster, place: usize) {
    wait_for("the state to be reinstalled", async || {
        let known = integrity(cluster, place).await;
        known.reinstalls_total > 0 && known.diverged.is_empty() && !known.fenced
    })
    .await;
}

type Change = (&'static str, fn(&mut Vec<RawRow>));

const CHANGES: [Change; 5] = [
    ("a payload", |rows| payload(rows)),
    ("a record that is gone", |rows| drop(rows.remove(of_family(rows, Family::Rec)))),
    ("the outcome of a request", |rows| outcome(rows)),
    ("when a record was changed", |rows| {
        let at = of_family(rows, Family::Rec);
        let mut row = durable::decode_record_row(&rows[at].value).expect("a record");
        let payload = rows[at].value[rows[at].value.len() - row.payload_len as usize..].to_vec();
        row.update_time.0 += 1;
        rows[at].value = durable::encode_record(&row, &payload).to_vec();
    }),
    ("a policy in the group facts", |rows| {
        let facts = |row: &&mut RawRow| row.family == Family::Sys.tag() && row.key == [2];
        let row = rows.iter_mut().find(facts).expect("group facts");
        let mut sys = durable::decode_sys(&row.value).expect("group facts");
        sys.policy.user_quota_bytes += 1 << 40;
        row.value = durable::encode_sys(&sys).to_vec();
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_behind_a_followers_back_is_found_and_its_state_reinstalled() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path(), 20, &["--set", "integrity.interval_ms=1000"]).await;
    for (what, change) in CHANGES {
        let place = (cluster.leader().await + 1) % 3;
        let client = cluster.client();
        terminate(&mut cluster, place);
        alter(&cluster, place, change);
        ledger.write(&client, 5, PAYLOAD_BYTES).await;
        restart(&mut cluster, place);
        let pid = cluster.nodes[place].pid;
        wait_for(what, async || {
            ledger.write(&client, 1, PAYLOAD_BYTES).await;
            integrity(&cluster, place).await.failures_total > 0
        })
        .await;
        wait_reinstalled(&cluster, place).await;
        assert!(is_alive(pid), "{what}: the same process goes on");
        cluster.wait_converged().await;
        let (code, value) = compared(&cluster, place);
        assert_eq!((code, value["verdict"].as_str()), (0, Some("equal")), "{what}: {value}");
        ledger.check(&cluster.client_of(place)).await;
        let told = said(&cluster, place);
        for event in ["integrity.diverged", "integrity.quarantined", "integrity.reinstalled"] {
            assert!(told.contains(event), "{what}: no {event} in {told}");
        }
        let kept = std::fs::read_dir(cluster.nodes[place].data_dir.join("quarantine")).expect("quarantine");
        assert_eq!(kept.count(), 1, "{what}: the newest one is kept");
        for other in (0..3).filter(|other| *other != place) {
            let known = integrity(&cluster, other).await;
            assert_eq!((known.failures_total - known.reinstalls_total, known.fenced), (0, false), "{what}: {other}");
        }
    }
}

/// One node is down, so every write needs the acknowledgement of the diverged one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diverged_node_votes_and_serves_nobody() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path(), 200, &SLOW).await;
    let leader = cluster.leader().await;
    let [place, absent] = [(leader + 1) % 3, (leader + 2) % 3];
    terminate(&mut cluster, place);
    alter(&cluster, place, |rows| payload(rows));
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    cluster.kill(absent);
    let client = cluster.client_of(leader);
    wait_for("the diverged node to be fenced", async || integrity(&cluster, place).await.fenced).await;

    let known = integrity(&cluster, place).await;
    assert!(known.diverged.contains("payload"), "{known:?}");
    let (code, out) = health(&cluster);
    assert!(code == 3 && out.contains("DIVERGED"), "{code}: {out}");
    ledger.write(&client, 5, PAYLOAD_BYTES).await;
    let ready = readiness(&cluster, place);
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("[-] state_sound"), "{ready}");
    assert_eq!(backup_refused(&cluster, place).await, "REPLICA_DIVERGED");
    let endpoint = &cluster.nodes[place].admin;
    let (code, out, err) = holdfast(&["cluster", "status", "--endpoint", endpoint]);
    assert!(code == 0 && out.contains("diverged"), "{code}: {out} {err}");
    let reader = cluster.client_of(place).with_deadline(Duration::from_millis(500));
    let refused = reader.get(contact("ann", "c1")).await.expect_err("its state must not be served");
    assert_eq!(refused.reason(), "REPLICA_DIVERGED", "{refused:?}");
    assert!(integrity(&cluster, place).await.fenced, "all that was while it was fenced");
    let (code, value) = compared(&cluster, leader);
    assert_eq!((code, value["verdict"].as_str()), (4, Some("unknown")), "{value}");

    wait_reinstalled(&cluster, place).await;
    restart(&mut cluster, absent);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
    let (_, out) = health(&cluster);
    assert!(!out.contains("DIVERGED"), "{out}");
    let ready = readiness(&cluster, place);
    assert!(ready.contains("[+] state_sound"), "{ready}");
}

/// The process ends between the finding and the cure: what it knew is on its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_while_it_is_fenced_comes_back_fenced() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path(), 200, &SLOW).await;
    let place = (cluster.leader().await + 1) % 3;
    terminate(&mut cluster, place);
    alter(&cluster, place, |rows| payload(rows));
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    wait_for("the state to be set aside", async || said(&cluster, place).contains("integrity.quarantined")).await;
    cluster.kill(place);
    ledger.write(&cluster.client_of((place + 1) % 3), 2, PAYLOAD_BYTES).await;
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    // Long before it could have read a row.
    let known = integrity(&cluster, place).await;
    assert!(known.fenced && known.diverged.contains("payload") && known.reinstalls_total == 0, "{known:?}");
    let reader = cluster.client_of(place).with_deadline(Duration::from_millis(500));
    let refused = reader.get(contact("ann", "c1")).await.expect_err("its state must not be served");
    assert_eq!(refused.reason(), "REPLICA_DIVERGED", "{refused:?}");
    wait_reinstalled(&cluster, place).await;
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
    terminate(&mut cluster, place);
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    assert!(!integrity(&cluster, place).await.fenced, "a cure outlives the process too");
}

/// Two of three disagree, in what no digest covers, and the third one hangs: nobody can tell who is right. It hangs under
/// writes, so that whoever waits for it is late for the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_disagree_are_a_doubt_until_a_third_one_tells() {
    let dir = tempfile::tempdir().expect("tempdir");
    // The third one catches up by the log: nobody would give it a state that may be wrong.
    let set = ["--set", "integrity.interval_ms=1000", "--set", "raft.keep_entries=100000"];
    let (mut cluster, mut ledger) = filled(dir.path(), 5, &set).await;
    let leader = cluster.leader().await;
    let [place, hung] = [(leader + 1) % 3, (leader + 2) % 3];
    signal(&cluster, hung, libc::SIGSTOP);
    terminate(&mut cluster, place);
    alter(&cluster, place, |rows| outcome(rows));
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    let client = cluster.client_of(leader);
    wait_for("both to be in doubt", async || {
        ledger.write(&client, 1, 100).await;
        !integrity(&cluster, leader).await.doubt.is_empty() && !integrity(&cluster, place).await.doubt.is_empty()
    })
    .await;
    for node in [leader, place] {
        let known = integrity(&cluster, node).await;
        assert!(known.doubt.contains("requests") && known.diverged.is_empty() && !known.fenced, "{known:?}");
        assert_eq!(backup_refused(&cluster, node).await, "DIVERGED");
    }
    let (code, out, _) = holdfast(&["cluster", "health", "--endpoint", &cluster.nodes[leader].admin, "-o", "json"]);
    assert!(code == 3 && out.contains("DIVERGED"), "{code}: {out}");
    ledger.check(&cluster.client_of(place)).await;
    signal(&cluster, hung, libc::SIGCONT);
    wait_reinstalled(&cluster, place).await;
    wait_for("the doubt to end", async || {
        let known =
            [integrity(&cluster, leader).await, integrity(&cluster, place).await, integrity(&cluster, hung).await];
        known.iter().all(|known| known.doubt.is_empty() && known.diverged.is_empty())
    })
    .await;
    for node in [leader, hung] {
        assert_eq!(integrity(&cluster, node).await.reinstalls_total, 0, "only the one that was wrong");
    }
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}

/// Its log is whole, and the only one with all entries: without it nobody could be elected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diverged_node_brings_up_the_one_that_is_to_lead() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path(), 200, &SLOW).await;
    let leader = cluster.leader().await;
    let [place, behind] = [(leader + 1) % 3, (leader + 2) % 3];
    terminate(&mut cluster, place);
    alter(&cluster, place, |rows| payload(rows));
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    cluster.kill(behind);
    ledger.write(&cluster.client_of(leader), 5, PAYLOAD_BYTES).await;
    wait_for("the diverged node to be fenced", async || integrity(&cluster, place).await.fenced).await;
    cluster.kill(leader);
    restart(&mut cluster, behind);
    wait_for("the one that was behind to lead", async || cluster.leader_now().await == Some(behind)).await;
    ledger.write(&cluster.client_of(behind), 3, PAYLOAD_BYTES).await;
    assert!(integrity(&cluster, place).await.fenced, "all that was while it was fenced");
    ledger.check(&cluster.client_of(behind)).await;
    wait_reinstalled(&cluster, place).await;
    restart(&mut cluster, leader);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diverged_leader_hands_over() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path(), 200, &SLOW).await;
    let place = (cluster.leader().await + 1) % 3;
    terminate(&mut cluster, place);
    alter(&cluster, place, |rows| payload(rows));
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    let id = cluster.nodes[place].id;
    wait_for("it to lead before anything is found", async || {
        assert_eq!(integrity(&cluster, place).await.failures_total, 0, "too late");
        let leader = cluster.leader().await;
        let admin = holdfast_client::AdminClient::new(&cluster.nodes[leader].admin).expect("an address");
        leader == place || admin.transfer_leader(id).await.is_ok()
    })
    .await;
    let client = cluster.client();
    ledger.write(&client, 5, PAYLOAD_BYTES).await;
    wait_for("it to be fenced", async || integrity(&cluster, place).await.fenced).await;
    wait_for("another node to lead", async || cluster.leader_now().await.is_some_and(|leader| leader != place)).await;
    ledger.write(&client, 5, PAYLOAD_BYTES).await;
    wait_reinstalled(&cluster, place).await;
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrub_of_a_stopped_directory_tells() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, _ledger) = filled(dir.path(), 5, &[]).await;
    terminate(&mut cluster, 0);
    let data = cluster.nodes[0].data_dir.display().to_string();
    let scrubbed = || holdfast(&["integrity", "scrub", "--data", &data, "-o", "json"]);
    let (code, out, err) = scrubbed();
    assert!(code == 0 && out.contains("\"sound\": true"), "{code}: {out} {err}");
    alter(&cluster, 0, |rows| payload(rows));
    let (code, out, err) = scrubbed();
    assert!(code == 9 && out.contains("payload"), "{code}: {out} {err}");
}
