//! Who may lead, vote and take writes: a wiped disk and a foreign one may not, a leader that goes hands over first, a
//! follower passes writes on once.

mod cluster;
mod node_disks;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::{Cluster, contact, holdfast, is_alive, wait_for, wait_until};
use node_disks::{Ledger, restart, restart_under, said, start_refused, terminate, wait_started};

const PAYLOAD_BYTES: usize = 200;
/// Many election timeouts.
const PATIENCE: Duration = Duration::from_secs(2);

/// A write that nobody may acknowledge.
async fn assert_not_taken(cluster: &Cluster, place: usize) {
    let client = cluster.client_of(place).with_deadline(PATIENCE);
    let error = client.put(contact("bob", "c"), "text/plain", "x").await.expect_err("no quorum, no acknowledgement");
    assert!(["NO_LEADER", "OUTCOME_UNKNOWN"].contains(&error.reason()), "{error:?}");
}

fn empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("removed");
    }
}

/// It would vote for anybody and acknowledge over what it once held: with it, one of the two that know could be outvoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_under_a_known_id_neither_acknowledges_nor_votes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, PAYLOAD_BYTES).await;
    let leader = cluster.leader().await;
    let [wiped, other] = [(leader + 1) % 3, (leader + 2) % 3];
    cluster.kill(wiped);
    cluster.kill(other);
    empty(&cluster.nodes[wiped].data_dir);
    // The leader and the wiped node.
    restart(&mut cluster, wiped);
    assert_not_taken(&cluster, leader).await;
    assert_turned_away(&mut cluster, wiped);
    // A follower and the wiped node.
    cluster.kill(leader);
    restart(&mut cluster, wiped);
    restart(&mut cluster, other);
    wait_started(&cluster, other).await;
    assert_not_taken(&cluster, other).await;
    assert_turned_away(&mut cluster, wiped);
    // Two of three that know.
    restart(&mut cluster, leader);
    ledger.write(&client, 5, PAYLOAD_BYTES).await;
    ledger.check(&client).await;
}

/// Whoever knows its id under another directory tells it, and it ends: the operator learns why, and what to do.
fn assert_turned_away(cluster: &mut Cluster, place: usize) {
    wait_until("the end of a node whose disk was wiped", || !is_alive(cluster.nodes[place].pid));
    assert_eq!(cluster.ended(place).expect("it ended by itself").code(), Some(3));
    let said = said(cluster, place);
    for told in ["was its disk replaced?", "node replace"] {
        assert!(said.contains(told), "`{told}` is missing in: {said}");
    }
}

/// IDENTITY with a valid checksum, of the same node id, but bound to another cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_bound_to_another_cluster_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 5, PAYLOAD_BYTES).await;
    let place = (cluster.leader().await + 1) % 3;
    terminate(&mut cluster, place);
    let path = cluster.nodes[place].data_dir.join("IDENTITY");
    let whole = std::fs::read_to_string(&path).expect("IDENTITY");
    let (body, _) = whole.split_once("crc32c ").expect("a checksum");
    let at = body.find("cluster ").expect("a cluster") + "cluster ".len();
    let flipped = if &body[at..=at] == "0" { "1" } else { "0" };
    let other = format!("{}{flipped}{}", &body[..at], &body[at + 1..]);
    std::fs::write(&path, format!("{other}crc32c {:08x}\n", crc32c(other.as_bytes()))).expect("IDENTITY");
    start_refused(&cluster, place).assert_refused("another cluster", 3, &["belongs to cluster", "own directory"]);
    std::fs::write(&path, whole).expect("IDENTITY");
    restart(&mut cluster, place);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}

/// CRC32C (Castagnoli), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// Elections take longer than this test waits: whoever leads next was handed leadership.
const NO_ELECTION: [&str; 4] = ["--set", "raft.election_min_ms=60000", "--set", "raft.election_max_ms=90000"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_steps_down_or_is_told_to_stop_hands_over_and_writes_go_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &NO_ELECTION);
    let client = cluster.client();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (client, stop) = (client.clone(), stop.clone());
        async move {
            let mut ledger = Ledger::default();
            let mut silence = Duration::ZERO;
            while !stop.load(Ordering::Acquire) {
                let began = Instant::now();
                ledger.write(&client, 1, PAYLOAD_BYTES).await;
                silence = silence.max(began.elapsed());
            }
            (ledger, silence)
        }
    });
    let admins: Vec<String> = cluster.nodes.iter().map(|node| node.admin.clone()).collect();
    let first = cluster.leader().await;
    let to = cluster.nodes[(first + 1) % 3].id.to_string();
    let (code, stdout, stderr) =
        holdfast(&["node", "step-down", "--endpoint", &admins.join(","), "--to", &to, "-o", "json"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let second = cluster.leader().await;
    assert_eq!(cluster.nodes[second].id.to_string(), to, "{stdout}");
    let (code, stdout, stderr) = holdfast(&["node", "step-down", "--endpoint", &admins.join(","), "--to", "77"]);
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stderr.contains("no voter"), "{stderr}");
    assert_eq!(cluster.leader().await, second, "a refused step-down changes nothing");

    let term = cluster.status(first).await.expect("status").groups[0].term;
    terminate(&mut cluster, second);
    let (mut leader, mut later) = (0, 0);
    wait_for("another leader", async || {
        let status = cluster.status(first).await.expect("status");
        (leader, later) = (status.groups[0].leader_id, status.groups[0].term);
        leader != 0 && leader != cluster.nodes[second].id
    })
    .await;
    assert_eq!(later, term + 1, "one transfer, no election besides");
    let log = std::fs::read_to_string(cluster.dir.join(format!("log/n{second}.log"))).expect("log");
    assert!(!log.contains("leader.kept"), "{log}");
    // Both handovers are behind; what is written now goes to the third leader.
    client.put(contact("bob", "c"), "text/plain", "x").await.expect("taken");
    stop.store(true, Ordering::Release);
    let (ledger, silence) = writer.await.expect("no write failed");
    assert!(silence < Duration::from_secs(10), "an election would have taken longer: {silence:?}");
    ledger.check(&client).await;
    restart(&mut cluster, second);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(second)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_passes_writes_on_once_and_says_when_it_cannot() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let leader = cluster.leader().await;
    let [follower, other] = [(leader + 1) % 3, (leader + 2) % 3];
    let answer = cluster.client_of(follower).put(contact("ann", "c"), "text/plain", "x").await.expect("passed on");
    let header = answer.header.expect("a header");
    assert_eq!(header.node_id, cluster.nodes[follower].id, "answered by the node that was asked");
    assert_eq!(header.leader_id, cluster.nodes[leader].id);

    // A leader that hangs: the write left this node, so nobody can say that it has no effect.
    let pid = cluster.nodes[leader].pid;
    cluster.kill(other);
    // SAFETY: plain system call; the process is one this test started.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    let began = Instant::now();
    assert_not_taken(&cluster, follower).await;
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGCONT) };
    assert!(began.elapsed() < PATIENCE * 3, "the deadline bounds it: {:?}", began.elapsed());

    // Nobody at all: refused when the deadline ends.
    cluster.kill(leader);
    let client = cluster.client_of(follower).with_deadline(PATIENCE);
    wait_for("the follower to see that nobody is there", async || {
        let error = client.put(contact("ann", "d"), "text/plain", "x").await.expect_err("no quorum");
        error.reason() == "NO_LEADER"
    })
    .await;
    let error = client.get(contact("ann", "c")).await.expect_err("a linearizable read needs a leader");
    assert!(matches!(error, holdfast_client::Error::Unavailable { .. }), "{error:?}");
    assert!(is_alive(cluster.nodes[follower].pid));
}

/// The receiving node dies when it has some files and not all; those that were whole are not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_snapshot_transfer_resumes_with_the_files_that_are_missing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster =
        Cluster::start(&dir.path().join("c"), &["--set", "raft.snapshot_entries=50", "--set", "raft.keep_entries=5"]);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 10, PAYLOAD_BYTES).await;
    let leader = cluster.leader().await;
    let place = (leader + 1) % 3;
    cluster.wait_converged().await;
    let behind = cluster.status(place).await.expect("status").groups[0].last_log_index;
    cluster.kill(place);
    ledger.write(&cluster.client(), 110, 3000).await;
    wait_for("the log that the node needs to be purged", async || {
        cluster.status(leader).await.is_some_and(|status| status.groups[0].purged_index > behind)
    })
    .await;

    // Each write of a received file takes a while: there is a moment between the first file and the last.
    let incoming = cluster.nodes[place].data_dir.join("incoming-0");
    let names: Vec<String> = (1..200).map(|number| format!("{number:06}.sst")).collect();
    let paths: Vec<String> = names.iter().map(|name| incoming.join(name).display().to_string()).collect();
    let mut under = vec!["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=write"];
    under.extend(["-e", "inject=write:delay_enter=400ms"]);
    under.extend(paths.iter().flat_map(|path| ["-P", path.as_str()]));
    restart_under(&mut cluster, place, &under);
    // Files are sent one after the other: what has a successor is whole.
    let mut received = Vec::new();
    wait_for("some files", async || {
        received = names.iter().filter(|name| incoming.join(name).exists()).cloned().collect();
        received.len() >= 3
    })
    .await;
    cluster.kill(place);
    received.pop();
    let written = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let before: Vec<_> = received.iter().map(|name| written(&incoming.join(name)).expect("it was there")).collect();

    restart(&mut cluster, place);
    cluster.wait_converged().await;
    assert!(said(&cluster, place).contains("snapshot.received"), "{}", said(&cluster, place));
    // An install links the received files: they keep the time of their last write. RocksDB may have merged some away.
    let group = cluster.nodes[place].data_dir.join("state/0");
    let pointer = std::fs::read_to_string(group.join("CURRENT")).expect("CURRENT");
    let state = group.join(pointer.lines().next().expect("a name"));
    let there: Vec<_> = received
        .iter()
        .zip(before)
        .filter_map(|(name, before)| Some((name, before, written(&state.join(name))?)))
        .collect();
    assert!(!there.is_empty(), "none of {received:?} is part of the state");
    assert!(there.iter().all(|(_, before, after)| before == after), "sent again: {there:?}");
    ledger.check(&cluster.client_of(place)).await;
}
