//! Disks that fill up under one of three nodes, and under all: what adds data is refused in time and with its reason,
//! deletes are taken, nobody ends, nothing is lost, and it clears by itself. And a log that fails otherwise: that node
//! ends and says why.
//!
//! A disk is a small ext4 image, mounted by the node's own process in a mount namespace of its own: whatever becomes of
//! the test, the mount goes with the node.

mod cluster;
mod node_disks;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster::{Cluster, contact, is_alive, wait_for, wait_until};
use holdfast_client::{AdminClient, Client, Error};
use holdfast_wire::v1;
use node_disks::{Ledger, restart, restart_under, said, wait_started};

const MIB: u64 = 1 << 20;
/// Large enough for a few records, small enough to fill.
const RECORD_BYTES: usize = 20_000;
const PHOTO_BYTES: usize = 100_000;
const LAST_INDEX: &str = "holdfast_raft_last_log_index";

/// True when this machine can mount; says so on stderr when not, and fails where everything must run.
fn can_mount() -> bool {
    let tried = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", "mount -t tmpfs none /mnt && mkfs.ext4 -V && losetup -f"])
        .stdin(Stdio::null())
        .output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("unshare: {error}"),
    };
    let skipped = format!("NOT TESTED: a full disk needs root, unshare, mkfs.ext4 and loop devices: {why}");
    assert!(std::env::var("HOLDFAST_TEST_REQUIRE").is_err(), "{skipped}");
    eprintln!("{skipped}");
    false
}

/// The disk of one node.
struct Disk {
    image: PathBuf,
    data_dir: PathBuf,
}

impl Disk {
    /// An image of this size with what the directory holds now.
    fn of(data_dir: &Path, image: PathBuf, bytes: u64) -> Self {
        std::fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("image");
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-d"]).arg(data_dir).arg(&image).output();
        let made = made.expect("mkfs.ext4");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { image, data_dir: data_dir.to_owned() }
    }

    /// A program to start the node under: it mounts the disk where only the node sees it, and runs `first` there.
    fn mounted<'a>(&'a self, first: &'a str) -> [&'a str; 10] {
        let script = "mount -o loop \"$0\" \"$1\" && cd \"$1\" && eval \"$2\" && cd / && shift 2 && exec \"$@\"";
        let [image, data_dir] = [&self.image, &self.data_dir].map(|path| path.to_str().expect("text"));
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script, image, data_dir, first]
    }

    /// The kernel lets go of the image a moment after the node's end; a second mount before that would be refused.
    fn wait_released(&self) {
        wait_until("the disk's release", || {
            let held = Command::new("losetup").arg("-j").arg(&self.image).output().expect("losetup");
            held.stdout.is_empty()
        });
    }
}

/// A file on the disk that only this process sees.
fn on_disk(pid: i32, disk: &Disk, name: &str) -> PathBuf {
    let inside = disk.data_dir.strip_prefix("/").expect("absolute");
    Path::new("/proc").join(pid.to_string()).join("root").join(inside).join(name)
}

/// Takes all the room there is for anyone.
fn fill(pid: i32, disk: &Disk) {
    let mut ballast = std::fs::File::create(on_disk(pid, disk, "ballast")).expect("ballast");
    let full = loop {
        if let Err(full) = ballast.write_all(&[0; 64 << 10]) {
            break full;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
}

fn make_room(pid: i32, disk: &Disk) {
    std::fs::remove_file(on_disk(pid, disk, "ballast")).expect("ballast");
}

/// Moves nodes to disks of their own, as large as this.
async fn on_disks(cluster: &mut Cluster, dir: &Path, places: &[usize], bytes: u64) -> Vec<Disk> {
    cluster.kill_together(places);
    let mut disks = Vec::new();
    for place in places {
        let disk = Disk::of(&cluster.nodes[*place].data_dir, dir.join(format!("disk-{place}.ext4")), bytes);
        restart_under(cluster, *place, &disk.mounted("true"));
        disks.push(disk);
    }
    for place in places {
        wait_started(cluster, *place).await;
    }
    cluster.wait_converged().await;
    disks
}

/// What `/metrics` of a node says; 0 = nothing.
fn metric(cluster: &Cluster, place: usize, name: &str) -> f64 {
    let mut stream = std::net::TcpStream::connect(&cluster.nodes[place].http).expect("connect");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("ask");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answer");
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// How long ago a node heard its leader, in seconds.
async fn heard(cluster: &Cluster, place: usize) -> Option<u64> {
    let status = cluster.status(place).await?;
    Some(status.groups[0].leader_contact_age.as_ref()?.seconds.unsigned_abs())
}

async fn has_check(cluster: &Cluster, place: usize, check: &str) -> bool {
    cluster.status(place).await.is_some_and(|status| status.checks.iter().any(|one| one.check_id == check))
}

/// A client that waits for no room.
fn impatient(cluster: &Cluster) -> Client {
    let addresses = cluster.nodes.iter().map(|node| node.client.clone());
    Client::builder().endpoints(addresses).deadline(Duration::from_secs(4)).build().expect("client")
}

/// A write under an id of its own.
fn request(payload: &str) -> v1::BatchWriteRequest {
    v1::BatchWriteRequest {
        user_id: "bob".into(),
        request_id: "0b9f57b4-16ba-4e9c-a0a5-5a0ac1a5ff11".into(),
        mutations: vec![v1::Mutation {
            key: Some(contact("bob", "c1").key()),
            op: Some(v1::mutation::Op::Put(v1::PutOp {
                content_type: "text/plain".into(),
                payload: payload.as_bytes().to_vec().into(),
                ..Default::default()
            })),
            precondition: None,
        }],
        ..Default::default()
    }
}

/// Writes until it is refused for want of room, and gives what was said. A leader that changes meanwhile may leave an
/// outcome unknown.
async fn write_until_refused(ledger: &mut Ledger, client: &Client, payload_bytes: usize) -> String {
    let mut said = None;
    wait_for("a refusal for want of room", async || {
        match ledger.try_write(client, payload_bytes).await {
            Err(Error::Overloaded { reason, message, retry_after }) => {
                assert_eq!(reason, "DISK_FULL", "{message}");
                assert!(retry_after.is_some(), "{message}");
                said = Some(message);
            }
            Ok(()) | Err(Error::OutcomeUnknown { .. } | Error::Unavailable { .. }) => {}
            Err(other) => panic!("refused otherwise: {other}"),
        }
        said.is_some()
    })
    .await;
    said.expect("waited for")
}

async fn wait_taken_again(ledger: &mut Ledger, client: &Client) {
    wait_for("writes to be taken again", async || match ledger.try_write(client, RECORD_BYTES).await {
        Ok(()) => true,
        Err(Error::Overloaded { reason, .. }) if reason == "DISK_FULL" => false,
        // Nodes that give back much at once, on a busy machine, may leave one without an answer.
        Err(Error::OutcomeUnknown { .. } | Error::Unavailable { .. }) => false,
        Err(other) => panic!("refused otherwise: {other}"),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_fills_up_hands_over_and_writes_go_on() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, 2000).await;
    let place = cluster.leader().await;
    let disk = on_disks(&mut cluster, dir.path(), &[place], 128 * MIB).await.remove(0);
    let id = cluster.nodes[place].id;
    let now = cluster.leader().await;
    let admin = AdminClient::new(&cluster.nodes[now].admin).expect("address");
    assert_eq!(admin.transfer_leader(id).await.expect("handed over"), id);

    let pid = cluster.nodes[place].pid;
    fill(pid, &disk);
    wait_for("another leader", async || {
        ledger.write(&client, 5, RECORD_BYTES).await;
        cluster.leader_now().await.is_some_and(|leader| leader != place)
    })
    .await;
    // More than its disk ever held: the other two hold it.
    ledger.write(&client, 200, 200_000).await;
    wait_for("it to hear its leader, of whom it takes no entries", async || {
        heard(&cluster, place).await.is_some_and(|age| age < 2)
    })
    .await;
    assert!(metric(&cluster, place, "holdfast_storage_refusing") > 0.0);
    let leader = cluster.leader().await;
    let [own, all] = [place, leader].map(|place| metric(&cluster, place, LAST_INDEX));
    assert!(own < all, "its disk holds {own} entries of {all}");
    assert!(has_check(&cluster, place, "DISK_LOW").await);
    assert!(is_alive(pid), "{}", said(&cluster, place));
    ledger.check(&client).await;

    make_room(pid, &disk);
    cluster.wait_converged().await;
    assert!(is_alive(pid), "{}", said(&cluster, place));
    ledger.check(&cluster.client_of(place)).await;
    cluster.kill(place);
    disk.wait_released();
    ledger.check(&client).await;
}

/// Somebody else fills the disks of all three under load, to the last block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disks_refuse_writes_take_deletes_and_clear_by_themselves() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 100, 2000).await;
    let disks = on_disks(&mut cluster, dir.path(), &[0, 1, 2], 128 * MIB).await;
    let client = impatient(&cluster);
    let pids: Vec<i32> = cluster.nodes.iter().map(|node| node.pid).collect();
    ledger.write(&cluster.client(), 100, RECORD_BYTES).await;
    let first = client.write(request("one")).await.expect("written");

    for (pid, disk) in pids.iter().zip(&disks) {
        fill(*pid, disk);
        // The load goes on meanwhile.
        for _ in 0..20 {
            drop(ledger.try_write(&client, RECORD_BYTES).await);
        }
    }
    let told = write_until_refused(&mut ledger, &client, RECORD_BYTES).await;
    for part in ["node ", "MiB left", "deletes are still taken", "make room"] {
        assert!(told.contains(part), "`{part}` is missing in: {told}");
    }
    ledger.delete(&client, 50).await;
    assert!(ledger.try_write(&client, 10).await.is_err(), "a small record adds data, too");
    // What took effect before there was no room is not refused: its first answer may have been lost.
    for place in 0..3 {
        let again = cluster.client_of(place).write(request("one")).await.expect("answered");
        assert_eq!((again.replayed, again.version, again.commit_index), (true, first.version, first.commit_index));
    }
    let error = client.write(request("two")).await.expect_err("another body under one id");
    assert_eq!(error.reason(), "REQUEST_ID_REUSED");
    let leader = cluster.leader().await;
    let refused = "holdfast_admission_rejected_total{reason=\"disk_full\"}";
    let mut counted = 0.0;
    for (place, pid) in pids.iter().enumerate() {
        counted += metric(&cluster, place, refused);
        assert!(is_alive(*pid), "{}", said(&cluster, place));
    }
    assert!(counted > 0.0, "nobody counted a refusal");
    assert!(metric(&cluster, leader, "holdfast_storage_refusing") > 0.0);
    assert!(has_check(&cluster, leader, "DISK_LOW").await);
    ledger.check(&client).await;

    // A node that is started on a full disk comes back.
    let follower = (leader + 1) % 3;
    cluster.kill(follower);
    disks[follower].wait_released();
    restart_under(&mut cluster, follower, &disks[follower].mounted("true"));
    wait_started(&cluster, follower).await;
    ledger.delete(&client, 10).await;

    for (node, disk) in cluster.nodes.iter().zip(&disks) {
        make_room(node.pid, disk);
    }
    wait_taken_again(&mut ledger, &client).await;
    cluster.wait_converged().await;
    ledger.write(&client, 20, RECORD_BYTES).await;
    ledger.check(&client).await;
    wait_until("no disk to be called nearly full", || {
        (0..3).all(|place| metric(&cluster, place, "holdfast_storage_refusing") == 0.0)
    });
    for (place, pid) in pids.iter().enumerate().filter(|(place, _)| *place != follower) {
        assert!(is_alive(*pid), "{}", said(&cluster, place));
    }
    cluster.kill_together(&[0, 1, 2]);
    disks.iter().for_each(Disk::wait_released);
}

/// What a leader took while nobody heard it stays uncommitted when the others come back without room; nobody waits for it
/// to be refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_comes_early_while_the_logs_end_cannot_be_committed() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let set = ["storage.headroom_bytes=27262976", "storage.floor_bytes=25165824"];
    let set = set.map(|value| ["--set", value]).concat();
    let mut cluster = Cluster::start(&dir.path().join("c"), &set);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 20, 2000).await;
    let all = on_disks(&mut cluster, dir.path(), &[0, 1, 2], 128 * MIB).await;
    let leader = cluster.leader().await;
    let full = [(leader + 1) % 3, (leader + 2) % 3];
    let disks = full.map(|place| &all[place]);

    let alone = |deadline| {
        let endpoint = cluster.nodes[leader].client.clone();
        Client::builder().endpoints([endpoint]).attempt_timeout(deadline).deadline(deadline).build().expect("client")
    };
    // A refusal asks for five seconds: no sooner than after half of that does a client ask again, this one never.
    let deadline = Duration::from_millis(2400);
    let (alone, in_one_attempt) = (alone(Duration::from_secs(4)), alone(deadline));
    let ends =
        |cluster: &Cluster| [LAST_INDEX, "holdfast_raft_committed_index"].map(|name| metric(cluster, leader, name));
    // Some writes are under way when the others die; that none of them got into the log is possible, and rare.
    for attempt in 0.. {
        let write = |writer: usize| {
            let (client, record) = (alone.clone(), format!("z{attempt}-{writer}"));
            tokio::spawn(async move { while client.delete(contact("zed", &record)).await.is_ok() {} })
        };
        let writers: Vec<_> = (0..8).map(write).collect();
        ledger.try_write(&alone, RECORD_BYTES).await.expect("there is a quorum");
        cluster.kill_together(&full);
        for writer in writers {
            writer.await.expect("it ends");
        }
        let [last, committed] = ends(&cluster);
        if last > committed {
            break;
        }
        assert!(attempt < 10, "nothing was left uncommitted: {last} and {committed}");
        for (place, disk) in full.iter().zip(&disks) {
            disk.wait_released();
            restart_under(&mut cluster, *place, &disk.mounted("true"));
        }
        cluster.wait_converged().await;
    }
    let client = impatient(&cluster);
    // Below the floor, and enough for a start.
    let leave = "head -c $(( ($(df --output=avail -k . | tail -n 1) - 12288) * 1024 )) /dev/zero > ballast";
    for (place, disk) in full.iter().zip(&disks) {
        disk.wait_released();
        restart_under(&mut cluster, *place, &disk.mounted(leave));
    }
    for place in full {
        wait_started(&cluster, place).await;
    }
    // It counts once the leader heard both, and a call that began before that, or while one fell silent, may have waited
    // for other things.
    let both = full.map(|place| format!("node {} has", cluster.nodes[place].id));
    let mut refused = Vec::new();
    wait_for("three refusals because of both", async || {
        let begin = Instant::now();
        let error = ledger.try_write(&in_one_attempt, RECORD_BYTES).await.expect_err("there is no room");
        if error.reason() == "DISK_FULL" && both.iter().all(|one| error.to_string().contains(one)) {
            refused.push(begin.elapsed());
        }
        refused.len() == 3
    })
    .await;
    assert!(refused.iter().any(|took| *took < deadline / 2), "each waited until its deadline: {refused:?}");
    let [last, committed] = ends(&cluster);
    assert!(last > committed, "it was committed meanwhile: {last} and {committed}");

    for (place, disk) in full.iter().zip(&disks) {
        make_room(cluster.nodes[*place].pid, disk);
    }
    wait_taken_again(&mut ledger, &cluster.client()).await;
    cluster.wait_converged().await;
    ledger.check(&client).await;
    cluster.kill_together(&[0, 1, 2]);
    all.iter().for_each(Disk::wait_released);
}

/// The records themselves fill the disks: deleting them is all that makes room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_filled_the_disks_can_be_deleted_and_then_there_is_room() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 1, 2000).await;
    let disks = on_disks(&mut cluster, dir.path(), &[0, 1, 2], 64 * MIB).await;
    let client = impatient(&cluster);
    let pids: Vec<i32> = cluster.nodes.iter().map(|node| node.pid).collect();

    // What the log held twice is given back once or twice before the records alone fill the disks.
    let mut before = 0;
    wait_for("the disks to be full of records", async || {
        write_until_refused(&mut ledger, &client, PHOTO_BYTES).await;
        let more = ledger.len() - before;
        before = ledger.len();
        more < 10
    })
    .await;
    assert!(ledger.len() * PHOTO_BYTES > 8 << 20, "{} records fill a disk of 64 MiB", ledger.len());
    ledger.check(&client).await;
    let count = ledger.len() * 9 / 10;
    ledger.delete(&client, count).await;
    wait_taken_again(&mut ledger, &client).await;
    ledger.write(&cluster.client(), 100, RECORD_BYTES).await;
    ledger.check(&client).await;
    cluster.wait_converged().await;
    for (place, pid) in pids.iter().enumerate() {
        assert!(is_alive(*pid), "{}", said(&cluster, place));
    }
    cluster.kill_together(&[0, 1, 2]);
    disks.iter().for_each(Disk::wait_released);
}

/// The disk is fine and must not be sent to a workshop: there is no room on it.
#[test]
fn a_node_that_starts_on_a_full_disk_asks_for_room() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let data_dir = dir.path().join("d");
    std::fs::create_dir(&data_dir).expect("directory");
    let disk = Disk::of(&data_dir, dir.path().join("disk.ext4"), 64 * MIB);
    let under = disk.mounted("dd if=/dev/zero of=lost+found/ballast bs=4k status=none || true");
    let output = Command::new("timeout")
        .args(["-k", "1", "30"])
        .args(under)
        .args([cluster::BINARY, "serve", "--no-config", "--node-id", "1", "--data-dir"])
        .arg(&data_dir)
        .args(["--listen-client", "127.0.0.1:0", "--listen-peer", "127.0.0.1:0"])
        .args(["--listen-admin", "127.0.0.1:0", "--listen-http", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["No space left on device", "free space"] {
        assert!(told.contains(part), "`{part}` is missing in: {told}");
    }
    disk.wait_released();
}

/// Segments of a node's log, present and future ones.
fn segments(cluster: &Cluster, place: usize) -> Vec<String> {
    let raft = cluster.nodes[place].data_dir.join("raft");
    (1..200).map(|number| raft.join(format!("{number:06}.log")).display().to_string()).collect()
}

/// What strace wrote of a node.
fn injected(trace: &Path) -> usize {
    std::fs::read_to_string(trace).unwrap_or_default().matches("(INJECTED)").count()
}

/// Somebody else takes the very last block in the moment in which the log is written, and gives it back. The log waits and
/// goes on, in the same process, and what it acknowledges afterwards it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_finds_no_room_for_a_moment_goes_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, 2000).await;
    let place = cluster.leader().await;
    cluster.kill(place);
    let trace = dir.path().join("trace");
    let segments = segments(&cluster, place);
    let mut under = vec!["strace", "-f", "-qq", "-o", trace.to_str().expect("text"), "-e", "trace=write,pwrite64"];
    under.extend(["-e", "inject=write,pwrite64:error=ENOSPC:when=20..21"]);
    under.extend(segments.iter().flat_map(|path| ["-P", path.as_str()]));
    restart_under(&mut cluster, place, &under);
    let pid = cluster.nodes[place].pid;
    wait_for("a log that found no room", async || {
        ledger.write(&client, 1, 2000).await;
        injected(&trace) > 0
    })
    .await;
    // Without one of the others nothing is acknowledged that this node does not hold.
    let other = (cluster.leader().await + 1) % 3;
    let other = if other == place { (other + 1) % 3 } else { other };
    cluster.kill(other);
    ledger.write(&client, 50, 2000).await;
    assert!(is_alive(pid), "{}", said(&cluster, place));
    assert!(said(&cluster, place).contains("log.waits_for_room"), "{}", said(&cluster, place));
    // What its memory holds goes with it.
    cluster.kill_together(&[0, 1, 2]);
    for at in 0..3 {
        restart(&mut cluster, at);
    }
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
    assert!(!said(&cluster, place).contains("log.recovering"), "it lost nothing: {}", said(&cluster, place));
}

/// The state's database meets the end of the disk when it flushes, and refuses writes until it has gone on from that by
/// itself. What comes meanwhile waits, and does not keep it from it: more than its buffers hold, and a node that asks for
/// checkpoints all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_whose_flush_finds_no_room_for_a_moment_goes_on() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let small = ["--set", "raft.snapshot_entries=3", "--set", "raft.keep_entries=200"];
    let mut cluster = Cluster::start(&dir.path().join("c"), &small);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, 2000).await;
    let place = (cluster.leader().await + 1) % 3;
    cluster.kill(place);
    // On a disk of this size the buffers are small.
    let disk = Disk::of(&cluster.nodes[place].data_dir, dir.path().join("disk.ext4"), 64 * MIB);
    let trace = dir.path().join("trace");
    let state = cluster.nodes[place].data_dir.join("state/0/db-1");
    let blobs: Vec<_> = (1..200).map(|number| state.join(format!("{number:06}.blob")).display().to_string()).collect();
    let mut under = disk.mounted("true").to_vec();
    under.extend(["strace", "-f", "-qq", "-o", trace.to_str().expect("text"), "-e", "trace=write,pwrite64"]);
    // Slow enough for its buffers to fill meanwhile.
    under.extend(["-e", "inject=write,pwrite64:error=ENOSPC:delay_enter=1500000:when=1..3"]);
    under.extend(blobs.iter().flat_map(|blob| ["-P", blob.as_str()]));
    restart_under(&mut cluster, place, &under);
    let pid = cluster.nodes[place].pid;
    ledger.write(&client, 120, PHOTO_BYTES).await;
    let mut silence = 0;
    wait_for("the flush to find room", async || {
        silence = silence.max(heard(&cluster, place).await.unwrap_or(0));
        injected(&trace) >= 3
    })
    .await;
    // RocksDB tries every five seconds, and what waits for it keeps nobody else waiting.
    assert!(silence < 8, "it did not hear its leader for {silence} s");
    cluster.wait_converged().await;
    assert!(injected(&trace) >= 3, "there was room all the time: {}", said(&cluster, place));
    assert!(is_alive(pid), "{}", said(&cluster, place));
    ledger.check(&cluster.client_of(place)).await;
    cluster.kill(place);
    disk.wait_released();
    ledger.check(&client).await;
}

/// A follower that takes the whole state while the disk is full keeps the old one, and takes the new one when there is
/// room, in the same process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_finds_no_room_is_installed_later() {
    let dir = tempfile::tempdir().expect("tempdir");
    let small = ["--set", "raft.snapshot_entries=20", "--set", "raft.keep_entries=5"];
    let mut cluster = Cluster::start(&dir.path().join("c"), &small);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, 2000).await;
    let leader = cluster.leader().await;
    let place = (leader + 1) % 3;
    let last = metric(&cluster, place, LAST_INDEX);
    cluster.kill(place);
    wait_for("a log that the follower cannot follow", async || {
        ledger.write(&client, 10, 2000).await;
        metric(&cluster, leader, "holdfast_raft_purged_index") > last + 10.0
    })
    .await;
    // Copies what an install does not link; nothing else of the node does.
    let trace = dir.path().join("trace");
    let under = ["strace", "-f", "-qq", "-o", trace.to_str().expect("text"), "-e", "trace=copy_file_range"];
    let under = [&under[..], &["-e", "inject=copy_file_range:error=ENOSPC:when=1..3"]].concat();
    restart_under(&mut cluster, place, &under);
    let pid = cluster.nodes[place].pid;
    cluster.wait_converged().await;
    assert!(injected(&trace) >= 3, "there was room all the time: {}", said(&cluster, place));
    assert!(is_alive(pid), "{}", said(&cluster, place));
    ledger.check(&cluster.client_of(place)).await;
    cluster.kill(place);
    restart(&mut cluster, place);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}

/// A follower without any room hears its leader and votes: nobody stands for election because its disk is full, and when
/// the leader dies, it elects another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_follower_starts_no_election_and_votes_in_one() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    // Long enough that a busy machine is not taken for a dead leader.
    let patient = ["raft.heartbeat_ms=100", "raft.election_min_ms=600", "raft.election_max_ms=900"];
    let patient = patient.map(|value| ["--set", value]).concat();
    let mut cluster = Cluster::start(&dir.path().join("c"), &patient);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, 2000).await;
    let leader = cluster.leader().await;
    let full = (leader + 1) % 3;
    let disk = on_disks(&mut cluster, dir.path(), &[full], 128 * MIB).await.remove(0);
    let leader = cluster.leader().await;
    let pid = cluster.nodes[full].pid;
    fill(pid, &disk);
    wait_for("its disk to be full", async || {
        ledger.write(&client, 5, PHOTO_BYTES).await;
        metric(&cluster, full, "holdfast_storage_refusing") == 2.0
    })
    .await;
    let term = "holdfast_raft_term";
    let before = metric(&cluster, leader, term);
    // More than its disk holds in the log and again in the state: there is room for all of it only when the log goes while it
    // is applied. Then many times the longest election timeout.
    ledger.write(&client, 400, PHOTO_BYTES).await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        ledger.write(&client, 5, 200).await;
    }
    wait_for("it to hear its leader", async || heard(&cluster, full).await.is_some_and(|age| age < 2)).await;
    for place in 0..3 {
        assert_eq!(
            metric(&cluster, place, term),
            before,
            "node {} of the cluster: somebody stood for election",
            cluster.nodes[place].id
        );
    }
    let [own, all] = [full, leader].map(|place| metric(&cluster, place, LAST_INDEX));
    assert!(own < all, "its disk holds {own} entries of {all}");

    cluster.kill(leader);
    let other = 3 - leader - full;
    wait_for("the other one to lead", async || cluster.leader_now().await == Some(other)).await;
    assert!(metric(&cluster, other, term) > before);
    // A new leader shows with an entry of its own that it leads, and the full one has no room for any.
    make_room(pid, &disk);
    wait_taken_again(&mut ledger, &client).await;
    ledger.check(&cluster.client_of(other)).await;
    restart(&mut cluster, leader);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(full)).await;
    assert!(is_alive(pid), "{}", said(&cluster, full));
    cluster.kill(full);
    disk.wait_released();
}

/// As a disk that takes no more writes, though it still reads and syncs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_cannot_be_written_aborts_and_rejoins() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, 2000).await;
    let place = cluster.leader().await;
    cluster.kill(place);
    let raft = cluster.nodes[place].data_dir.join("raft");
    let segments = segments(&cluster, place);
    let mut under = vec!["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=write,pwrite64"];
    under.extend(["-e", "inject=write,pwrite64:error=EIO:when=20+"]);
    under.extend(segments.iter().flat_map(|path| ["-P", path.as_str()]));
    restart_under(&mut cluster, place, &under);
    let pid = cluster.nodes[place].pid;
    wait_for("the node that cannot write to end", async || {
        ledger.write(&client, 1, 2000).await;
        !is_alive(pid)
    })
    .await;
    let told = said(&cluster, place);
    let last = told.lines().rfind(|line| line.starts_with("holdfast: ")).unwrap_or_else(|| panic!("silent: {told}"));
    for part in ["Input/output error", raft.to_str().expect("text"), "aborts"] {
        assert!(last.contains(part), "`{part}` is missing in: {last}");
    }
    ledger.check(&client).await;
    cluster.kill(place);
    restart(&mut cluster, place);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}
