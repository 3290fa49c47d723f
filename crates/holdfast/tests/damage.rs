//! One damaged file on one of three nodes: it is found, said, and never served; the other two go on, nothing is lost,
//! and with the bytes put back the node is one of three again.

mod cluster;
mod node_disks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::{Cluster, wait_for};
use node_disks::{
    Ledger, Spoil, Spoilt, become_bytes, flip, largest, manifest, restart, said, start_refused, terminate, vanish,
    wait_started,
};

/// Snapshots soon, so that the state lies in tables and the log was purged, as in a node that ran for long.
const SMALL: [&str; 4] = ["--set", "raft.snapshot_entries=40", "--set", "raft.keep_entries=10"];
const PAYLOAD_BYTES: usize = 2000;

async fn filled(dir: &Path) -> (Cluster, Ledger) {
    let cluster = Cluster::start(&dir.join("c"), &SMALL);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 60, PAYLOAD_BYTES).await;
    wait_for("purged logs", async || {
        for place in 0..3 {
            if cluster.status(place).await.is_none_or(|status| status.groups[0].purged_index < 30) {
                return false;
            }
        }
        true
    })
    .await;
    (cluster, ledger)
}

/// A kind of damage that a node must not start with.
struct Kind {
    what: &'static str,
    file: PathBuf,
    spoil: Spoil,
    code: i32,
    told: &'static [&'static str],
}

/// Does each damage in turn to a stopped node, which must refuse to start; then gives all back and wants it back.
async fn refused_each(kinds: impl FnOnce(&Path, &Path) -> Vec<Kind>) {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path()).await;
    let place = cluster.leader().await;
    terminate(&mut cluster, place);
    let client = cluster.client();
    let other = cluster.nodes[(place + 1) % 3].data_dir.clone();
    for kind in kinds(&cluster.nodes[place].data_dir, &other) {
        let folder = kind.file.parent().expect("folder").display().to_string();
        let spoilt = Spoilt::new(kind.file, kind.spoil);
        let ended = start_refused(&cluster, place);
        ended.assert_refused(kind.what, kind.code, kind.told);
        assert!(ended.stderr.contains(&folder), "{}: {folder} is not named: {}", kind.what, ended.stderr);
        spoilt.put_back();
        ledger.write(&client, 2, PAYLOAD_BYTES).await;
    }
    ledger.check(&client).await;
    restart(&mut cluster, place);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}

fn kind(
    what: &'static str,
    file: PathBuf,
    spoil: impl FnOnce(Vec<u8>) -> Option<Vec<u8>> + 'static,
    code: i32,
    told: &'static [&'static str],
) -> Kind {
    Kind { what, file, spoil: Box::new(spoil), code, told }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_and_foreign_markers_are_refused() {
    refused_each(|data, other| {
        let foreign = std::fs::read(other.join("IDENTITY")).expect("IDENTITY");
        let floor = std::fs::read(other.join("floor-0")).expect("floor");
        vec![
            kind(
                "a flipped IDENTITY",
                data.join("IDENTITY"),
                flip(500, 1),
                9,
                &["IDENTITY", "restore the file from a copy"],
            ),
            kind("IDENTITY gone", data.join("IDENTITY"), vanish, 3, &["restore the IDENTITY file"]),
            kind(
                "IDENTITY of another node",
                data.join("IDENTITY"),
                move |_| Some(foreign),
                3,
                &["belongs to node", "start this node on its own directory"],
            ),
            kind("a flipped FORMAT", data.join("FORMAT"), flip(100, 1), 9, &["FORMAT", "restore the file from a copy"]),
            kind(
                "a newer FORMAT",
                data.join("FORMAT"),
                become_bytes(b"holdfast format 5\n"),
                3,
                &["FORMAT says format 5", "start the release that wrote it"],
            ),
            kind(
                "a floor of another node",
                data.join("floor-0"),
                move |_| Some(floor),
                3,
                &["floor-0 belongs to", "give each node its own floor_dir"],
            ),
        ]
    })
    .await;
}

/// Bit 7 makes a text file no text: damage, too, and not a missing disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_that_are_no_text_or_missing_are_integrity_failures() {
    refused_each(|data, _| {
        let pointer = data.join("state/0/CURRENT");
        vec![
            kind(
                "IDENTITY is no text",
                data.join("IDENTITY"),
                flip(500, 0x80),
                9,
                &["IDENTITY", "restore the file from a copy"],
            ),
            kind(
                "FORMAT is no text",
                data.join("FORMAT"),
                flip(100, 0x80),
                9,
                &["FORMAT", "restore the file from a copy"],
            ),
            kind("the pointer is no text", pointer, flip(100, 0x80), 9, &["CURRENT", "reinstall this node's state"]),
            kind("FORMAT gone", data.join("FORMAT"), vanish, 9, &["FORMAT", "restore the file from a copy"]),
        ]
    })
    .await;
}

/// In the payload of the first record, which its checksum covers. A flip in a record's length may pass for the end of
/// the file: RocksDB then opens an older version, which the log either makes up for or which comes anew from a peer.
fn flip_in_first_record(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    bytes[20] ^= 0x10;
    Some(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_is_refused() {
    refused_each(|data, _| {
        let group = data.join("state/0");
        let pointer = std::fs::read_to_string(group.join("CURRENT")).expect("CURRENT");
        let db = group.join(pointer.lines().next().expect("a name"));
        let to_quarantine = &["to quarantine/ and restart"];
        vec![
            kind("a flipped pointer", group.join("CURRENT"), flip(100, 1), 9, to_quarantine),
            kind("the pointer gone", group.join("CURRENT"), vanish, 3, to_quarantine),
            kind("garbage for RocksDB's CURRENT", db.join("CURRENT"), become_bytes(b"garbage"), 9, to_quarantine),
            kind("a flipped MANIFEST", manifest(&db), flip_in_first_record, 9, to_quarantine),
            kind("a table gone", largest(&db, ".sst"), vanish, 9, to_quarantine),
        ]
    })
    .await;
}

/// The operator does what the message says, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_moved_to_quarantine_is_reinstalled_from_a_peer() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path()).await;
    let place = (cluster.leader().await + 1) % 3;
    terminate(&mut cluster, place);
    let data = cluster.nodes[place].data_dir.clone();
    Spoilt::new(data.join("state/0/CURRENT"), flip(100, 1));
    start_refused(&cluster, place).assert_refused("a flipped pointer", 9, &["move its state/ to quarantine/"]);
    std::fs::rename(data.join("state"), data.join("quarantine/state")).expect("moved as told");
    ledger.write(&cluster.client(), 2, PAYLOAD_BYTES).await;
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_table_of_the_state_is_never_served_and_the_state_is_reinstalled() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path()).await;
    let place = (cluster.leader().await + 1) % 3;
    terminate(&mut cluster, place);
    let others = holdfast_client::Client::builder()
        .endpoints((0..3).filter(|other| *other != place).map(|other| cluster.nodes[other].client.clone()))
        .build()
        .expect("client");
    let table = largest(&cluster.nodes[place].data_dir.join("state/0/db-1"), ".sst");
    let name = table.file_name().expect("name").to_string_lossy().into_owned();
    Spoilt::new(table, flip(200, 0x10));
    // Opening reads the footer and the index only: it starts. Whoever meets the block first, a read, an apply, a
    // compaction or the scrub: the node does not end, and reinstalls its state.
    restart(&mut cluster, place);
    wait_started(&cluster, place).await;
    let pid = cluster.nodes[place].pid;
    let reader = cluster.client_of(place).with_deadline(Duration::from_millis(300));
    wait_for("the state to be reinstalled", async || {
        ledger.rewrite(&others).await;
        let refused = ledger.check_or_refused(&reader).await;
        let known = ["CHECKSUM", "REPLICA_DIVERGED", "NO_LEADER", "REPLICA_BEHIND", "DEADLINE_TOO_SHORT"];
        assert!(refused.keys().all(|reason| known.contains(&reason.as_str())), "{refused:?}");
        cluster.status(place).await.is_some_and(|status| status.integrity.is_some_and(|one| one.reinstalls_total > 0))
    })
    .await;
    assert!(cluster::is_alive(pid), "it was to go on: {}", said(&cluster, place));
    let told = said(&cluster, place);
    let found = told.lines().find(|line| line.contains("integrity.diverged")).expect("it says so");
    assert!(found.contains("corrupt") && found.contains(&name), "{found}");
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}

/// The snapshot that a node keeps for those who lag is read again and again: what is damaged in it alone, because the state
/// has long replaced that file, goes to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_said_and_replaced() {
    let dir = tempfile::tempdir().expect("tempdir");
    let set =
        ["--set", "raft.snapshot_entries=40", "--set", "raft.keep_entries=10", "--set", "integrity.interval_ms=500"];
    let cluster = Cluster::start(&dir.path().join("c"), &set);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 60, PAYLOAD_BYTES).await;
    let place = cluster.leader().await;
    let snapshots = cluster.nodes[place].data_dir.join("snapshots");
    let kept = || {
        let entries = std::fs::read_dir(&snapshots).expect("listed").map(|entry| entry.expect("entry").path());
        entries
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("checkpoint-")))
            .max()
    };
    wait_for("a snapshot", async || kept().is_some_and(|path| path.join("CURRENT").exists())).await;
    cluster.wait_converged().await;
    let damaged = kept().expect("a snapshot");
    let table = largest(&damaged, ".sst");
    let bytes = flip(200, 0x10)(std::fs::read(&table).expect("read")).expect("spoilt");
    // A file of its own: the state's is as it was.
    std::fs::remove_file(&table).expect("removed");
    std::fs::write(&table, bytes).expect("written");
    wait_for("the node to say so", async || said(&cluster, place).contains("integrity.snapshot_damaged")).await;
    wait_for("another snapshot", async || !damaged.exists() && kept().is_some()).await;
    let told = said(&cluster, place);
    assert!(told.contains("integrity.snapshot_replaced") && !told.contains("integrity.diverged"), "{told}");
    ledger.check(&cluster.client_of(place)).await;
}

/// A damaged log loses no node: what does not follow any more is cut off, and the leader fills it up again. The node says
/// so, and keeps the damaged bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_filled_up_again_and_a_copy_of_it_kept() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut cluster, mut ledger) = filled(dir.path()).await;
    let client = cluster.client();
    let zeros: fn(Vec<u8>) -> Option<Vec<u8>> = |mut bytes| {
        let (from, upto) = (bytes.len() / 4, bytes.len() / 2);
        bytes[from..upto].fill(0);
        Some(bytes)
    };
    let kinds: [(&str, Spoil); 4] = [
        ("flipped in the middle", Box::new(flip(500, 0x10))),
        ("flipped where it begins", Box::new(flip(0, 0x10))),
        ("zeros in the middle", Box::new(zeros)),
        ("flipped again", Box::new(flip(500, 0x10))),
    ];
    for (what, spoil) in kinds {
        // The leader of the moment, so that damage goes round and hits leaders and followers.
        let place = cluster.leader().await;
        cluster.kill(place);
        let data = cluster.nodes[place].data_dir.clone();
        let set_aside = || std::fs::read_dir(data.join("quarantine")).expect("quarantine").count();
        let before = set_aside();
        Spoilt::new(largest(&data.join("raft"), ".log"), spoil);
        ledger.write(&client, 5, PAYLOAD_BYTES).await;
        restart(&mut cluster, place);
        wait_started(&cluster, place).await;
        cluster.wait_converged().await;
        assert_eq!(set_aside(), before + 1, "{what}: the damaged bytes are kept");
        let told = said(&cluster, place);
        let line =
            told.lines().find(|line| line.contains("log.recovering")).unwrap_or_else(|| panic!("{what}: {told}"));
        assert!(line.contains("a copy of it was set aside"), "{what}: {line}");
        ledger.check(&cluster.client_of(place)).await;
    }
    ledger.check(&client).await;
}
