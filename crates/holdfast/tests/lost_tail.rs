//! A node whose log or floor lost what it had acknowledged: it takes part again, but elects nobody before a leader has
//! given it back.

mod cluster;
mod node_disks;

use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, copy_folder, wait_for};
use node_disks::{Ledger, Spoil, Spoilt, become_bytes, flip, largest, restart, said, terminate, vanish, wait_started};

const PAYLOAD_BYTES: usize = 500;

async fn is_recovering(cluster: &Cluster, place: usize) -> bool {
    let status = cluster.status(place).await.expect("it answers");
    status.checks.iter().any(|check| check.check_id == "LOG_RECOVERING")
}

/// The floor is written a moment after the log, and would be behind it if the node were killed right now.
async fn wait_floor(data: &Path) {
    let mut floor = Vec::new();
    wait_for("a floor that moves no more", async || {
        let before = std::mem::replace(&mut floor, std::fs::read(data.join("floor-0")).expect("reads"));
        before == floor
    })
    .await;
}

/// A tail that no fsync covered may be gone after a power cut. One that was acknowledged is below the floor: were the
/// node to vote, the two nodes without the writes would elect one of them, and the writes would be gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_acknowledged_entries_elects_nobody_who_lacks_them() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, PAYLOAD_BYTES).await;
    let keeper = cluster.leader().await;
    let [forgetful, absent] = [(keeper + 1) % 3, (keeper + 2) % 3];
    cluster.wait_converged().await;
    cluster.kill(absent);
    let segment = largest(&cluster.nodes[forgetful].data_dir.join("raft"), ".log");
    let kept = std::fs::metadata(&segment).expect("segment").len();
    ledger.write(&client, 20, PAYLOAD_BYTES).await;
    cluster.kill(keeper);
    cluster.kill(forgetful);
    let written = std::fs::metadata(&segment).expect("segment").len();
    assert!(written > kept + 10 * PAYLOAD_BYTES as u64, "the second half of the ledger is in {}", segment.display());
    std::fs::File::options().write(true).open(&segment).and_then(|file| file.set_len(kept)).expect("torn");

    restart(&mut cluster, absent);
    restart(&mut cluster, forgetful);
    wait_started(&cluster, absent).await;
    wait_started(&cluster, forgetful).await;
    assert!(is_recovering(&cluster, forgetful).await, "{}", said(&cluster, forgetful));
    for place in [absent, forgetful] {
        // Many election timeouts.
        let client = cluster.client_of(place).with_deadline(Duration::from_secs(2));
        let refused = client.put(cluster::contact("bob", "c"), "text/plain", "x").await.expect_err("nobody may lead");
        assert!(["NO_LEADER", "OUTCOME_UNKNOWN"].contains(&refused.reason()), "{refused:?}");
    }
    assert!(is_recovering(&cluster, forgetful).await, "nobody gave it back what it lost");

    restart(&mut cluster, keeper);
    cluster.wait_converged().await;
    ledger.check(&client).await;
    ledger.check(&cluster.client_of(forgetful)).await;
    wait_for("the end of the recovery", async || !is_recovering(&cluster, forgetful).await).await;
}

/// A disk that goes back in time takes the floor with it. The only witness is the leader of that time, and it does not
/// answer while the node starts: it is heard later, and until then it takes the node's log for what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_answers_late_is_heard_and_gives_back_what_a_disk_forgot() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, PAYLOAD_BYTES).await;
    let witness = cluster.leader().await;
    let [forgetful, absent] = [(witness + 1) % 3, (witness + 2) % 3];
    cluster.wait_converged().await;
    cluster.kill(forgetful);
    let (data, earlier) = (cluster.nodes[forgetful].data_dir.clone(), dir.path().join("earlier"));
    copy_folder(&data, &earlier);
    restart(&mut cluster, forgetful);
    cluster.wait_converged().await;
    cluster.kill(absent);
    ledger.write(&client, 20, PAYLOAD_BYTES).await;

    cluster.signal(witness, libc::SIGSTOP);
    cluster.kill(forgetful);
    std::fs::remove_dir_all(&data).expect("removes");
    copy_folder(&earlier, &data);
    restart(&mut cluster, forgetful);
    wait_started(&cluster, forgetful).await;
    wait_for("the end of its patience", async || said(&cluster, forgetful).contains("log.witness_silent")).await;
    assert!(!is_recovering(&cluster, forgetful).await, "nobody told it: {}", said(&cluster, forgetful));

    cluster.signal(witness, libc::SIGCONT);
    wait_for("the word of the witness", async || said(&cluster, forgetful).contains("log.recovering")).await;
    // These two are all that is left: it must have been filled up again.
    wait_for("the end of the recovery", async || !is_recovering(&cluster, forgetful).await).await;
    ledger.write(&client, 5, PAYLOAD_BYTES).await;
    restart(&mut cluster, absent);
    cluster.wait_converged().await;
    ledger.check(&client).await;
    ledger.check(&cluster.client_of(forgetful)).await;
}

/// IDENTITY says that the directory belongs to a cluster, and there is nothing else: whatever it acknowledged is lost,
/// and it does not even know how much that was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_kept_only_its_identity_elects_nobody_who_lacks_what_it_lost() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 5, PAYLOAD_BYTES).await;
    cluster.wait_converged().await;
    let keeper = cluster.leader().await;
    let [forgetful, absent] = [(keeper + 1) % 3, (keeper + 2) % 3];
    cluster.kill(absent);
    ledger.write(&client, 5, PAYLOAD_BYTES).await;
    cluster.kill(keeper);
    cluster.kill(forgetful);
    let data = &cluster.nodes[forgetful].data_dir;
    std::fs::remove_file(data.join("floor-0")).expect("removed");
    for name in ["raft", "state"] {
        std::fs::remove_dir_all(data.join(name)).expect("removed");
    }
    restart(&mut cluster, absent);
    restart(&mut cluster, forgetful);
    wait_started(&cluster, absent).await;
    wait_started(&cluster, forgetful).await;
    let lacking = cluster.client_of(absent).with_deadline(Duration::from_secs(2));
    let taken = lacking.put(cluster::contact("bob", "c"), "text/plain", "x").await;
    assert!(taken.is_err(), "two nodes that lack acknowledged writes went on without them: {taken:?}");
    // It is empty, and still no node that somebody has to found a cluster with.
    let empty = cluster.client_of(forgetful).with_deadline(Duration::from_secs(2));
    let error = empty.get(cluster::contact("bob", "c")).await.expect_err("it has nothing");
    assert_eq!(error.reason(), "REPLICA_BEHIND", "{error}");
    restart(&mut cluster, keeper);
    cluster.wait_converged().await;
    ledger.check(&client).await;
}

/// The vote on the floor may be older than the one in the lost log, and the leader it names may be long dead: only one
/// that is heard can end a recovery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_does_not_end_before_a_leader_is_heard() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 20, PAYLOAD_BYTES).await;
    cluster.wait_converged().await;
    let leader = cluster.leader().await;
    let alone = (leader + 1) % 3;
    // Its state is flushed up to the floor.
    terminate(&mut cluster, alone);
    cluster.kill(leader);
    cluster.kill((leader + 2) % 3);
    Spoilt::new(largest(&cluster.nodes[alone].data_dir.join("raft"), ".log"), flip(500, 0x10));
    restart(&mut cluster, alone);
    wait_started(&cluster, alone).await;
    for _ in 0..40 {
        assert!(is_recovering(&cluster, alone).await, "nobody else runs: {}", said(&cluster, alone));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    restart(&mut cluster, leader);
    restart(&mut cluster, (leader + 2) % 3);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(alone)).await;
}

/// A log that is filled up halfway, or a floor made anew, looks whole at the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_outlives_restarts_until_it_is_complete() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 20, PAYLOAD_BYTES).await;
    cluster.wait_converged().await;
    cluster.kill_together(&[0, 1, 2]);
    Spoilt::new(cluster.nodes[0].data_dir.join("floor-0"), become_bytes(b""));
    for start in 1..=2 {
        restart(&mut cluster, 0);
        wait_started(&cluster, 0).await;
        assert!(is_recovering(&cluster, 0).await, "start {start}: {}", said(&cluster, 0));
        cluster.kill(0);
    }
    for place in 0..3 {
        restart(&mut cluster, place);
    }
    cluster.wait_converged().await;
    wait_for("the end of the recovery", async || !is_recovering(&cluster, 0).await).await;
    ledger.check(&cluster.client_of(0)).await;
    cluster.kill(0);
    restart(&mut cluster, 0);
    wait_started(&cluster, 0).await;
    assert!(!is_recovering(&cluster, 0).await, "{}", said(&cluster, 0));
}

/// How far this node says that its log once was.
fn recovers_to(cluster: &Cluster, place: usize) -> u64 {
    let told = said(cluster, place);
    let line =
        told.lines().find(|line| line.contains("log.recovering")).unwrap_or_else(|| panic!("it is whole: {told}"));
    let upto = line.split("\"upto\":").nth(1).and_then(|rest| rest.split([',', '}']).next()?.parse().ok());
    upto.unwrap_or_else(|| panic!("no index: {line}"))
}

/// The floor alone knew how much was lost. Without it, a log that a leader of the same term has filled up halfway would
/// pass for whole, and its node would elect someone who lacks the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_was_lost_outlives_the_floor() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 20, PAYLOAD_BYTES).await;
    cluster.wait_converged().await;
    let data = cluster.nodes[0].data_dir.clone();
    wait_floor(&data).await;
    cluster.kill_together(&[0, 1, 2]);
    Spoilt::new(largest(&data.join("raft"), ".log"), |mut bytes| {
        bytes.truncate(bytes.len() / 2);
        Some(bytes)
    });
    // Alone: no peer can tell it.
    restart(&mut cluster, 0);
    wait_started(&cluster, 0).await;
    let lost = recovers_to(&cluster, 0);
    assert!(lost >= 20, "it acknowledged more than {lost} entries");
    for spoil in [Box::new(vanish) as Spoil, Box::new(become_bytes(b""))] {
        cluster.kill(0);
        Spoilt::new(data.join("floor-0"), spoil);
        restart(&mut cluster, 0);
        wait_started(&cluster, 0).await;
        assert_eq!(recovers_to(&cluster, 0), lost, "{}", said(&cluster, 0));
    }
    for place in [1, 2] {
        restart(&mut cluster, place);
    }
    cluster.wait_converged().await;
    wait_for("the end of the recovery", async || !is_recovering(&cluster, 0).await).await;
    ledger.check(&cluster.client_of(0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_log_or_a_damaged_floor_is_filled_up_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, PAYLOAD_BYTES).await;
    type Kind = (&'static str, &'static str, Spoil, &'static [&'static str]);
    let kinds: [Kind; 5] = [
        (
            "a torn tail",
            "raft",
            Box::new(|mut bytes| {
                bytes.truncate(bytes.len() * 3 / 4);
                Some(bytes)
            }),
            &["log.recovering", "the floor says"],
        ),
        ("one slot flipped", "floor-0", Box::new(flip(5, 1)), &["log.floor_spoilt"]),
        ("both slots garbage", "floor-0", Box::new(become_bytes(&[b'x'; 8192])), &["log.recovering", "both slots"]),
        ("an empty floor", "floor-0", Box::new(become_bytes(b"")), &["log.recovering", "both slots"]),
        ("no floor", "floor-0", Box::new(vanish), &["log.floor_missing"]),
    ];
    for (what, file, spoil, must_say) in kinds {
        let place = cluster.leader().await;
        wait_floor(&cluster.nodes[place].data_dir).await;
        cluster.kill(place);
        let file = cluster.nodes[place].data_dir.join(file);
        let file = if file.is_dir() { largest(&file, ".log") } else { file };
        Spoilt::new(file, spoil);
        ledger.write(&client, 5, PAYLOAD_BYTES).await;
        restart(&mut cluster, place);
        wait_started(&cluster, place).await;
        cluster.wait_converged().await;
        let told = said(&cluster, place);
        assert!(must_say.iter().all(|word| told.contains(word)), "{what}: {told}");
        assert_eq!(told.contains("log.recovering"), must_say.contains(&"log.recovering"), "{what}: {told}");
        ledger.check(&cluster.client_of(place)).await;
    }
    ledger.check(&client).await;
}

/// An operator who finds the node's log must learn which file it was, and where the damaged bytes lie now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_set_aside_or_made_anew_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let mut ledger = Ledger::default();
    ledger.write(&cluster.client(), 20, PAYLOAD_BYTES).await;
    let data = cluster.nodes[0].data_dir.clone();
    let mut missing = Vec::new();
    type Kind = (&'static str, Spoil, [&'static str; 2]);
    let kinds: [Kind; 3] = [
        ("raft", Box::new(flip(500, 0x10)), ["log.quarantined", "quarantine/raft-1"]),
        ("floor-0", Box::new(become_bytes(b"")), ["log.recovering", "floor-0"]),
        ("floor-0", Box::new(vanish), ["log.floor_missing", "floor-0"]),
    ];
    for (file, spoil, [event, name]) in kinds {
        cluster.kill(0);
        let file = if file == "raft" { largest(&data.join(file), ".log") } else { data.join(file) };
        Spoilt::new(file.clone(), spoil);
        restart(&mut cluster, 0);
        wait_started(&cluster, 0).await;
        cluster.wait_converged().await;
        if !said(&cluster, 0).lines().any(|line| line.contains(event) && line.contains(name)) {
            missing.push(format!("{}: {event} {name}", file.display()));
        }
        // One that goes on over the next start would be told there again, and name the file of this damage.
        wait_for("the end of the recovery", async || !is_recovering(&cluster, 0).await).await;
    }
    assert!(missing.is_empty(), "not named on stderr: {missing:?}");
}
