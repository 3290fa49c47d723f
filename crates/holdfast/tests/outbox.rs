//! What is kept in the log for a destination that is away, how much of it, and what happens beyond that: writes end, or what
//! nobody has any more is told as a gap with a snapshot behind it. What one node forgot, another lends.

mod cluster;
mod node_disks;

use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, contact, holdfast, holdfast_json, wait_for, wait_offsite};
use holdfast_client::{AdminClient, Client, Error};
use node_disks::incompressible;

const VALUE_BYTES: usize = 64 << 10;

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A client that waits for nothing.
fn impatient(cluster: &Cluster) -> Client {
    let addresses = cluster.nodes.iter().map(|node| node.client.clone());
    Client::builder().endpoints(addresses).deadline(Duration::from_secs(4)).build().expect("client")
}

async fn write(client: &Client, number: u64) -> Result<u64, Error> {
    let (id, value) = (format!("c{number}"), incompressible(number, VALUE_BYTES));
    Ok(client.put(contact("ann", &id), "text/plain", value).await?.commit_index)
}

async fn purged(cluster: &Cluster, place: usize) -> u64 {
    cluster.status(place).await.map_or(0, |status| status.groups[0].purged_index)
}

/// Index that the group knows to be offsite.
async fn known(cluster: &Cluster, place: usize) -> u64 {
    cluster.status(place).await.map_or(u64::MAX, |status| status.destinations[0].durable_index)
}

async fn has_check(cluster: &Cluster, place: usize, check: &str) -> bool {
    cluster.status(place).await.is_some_and(|status| status.checks.iter().any(|one| one.check_id == check))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_end_when_too_much_waits_for_a_destination_and_go_on_by_themselves() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (offsite, away) = (dir.path().join("offsite"), dir.path().join("away"));
    let from = url(&offsite);
    let args = ["--offsite", &from, "--set", "ship.interval_ms=100", "--set", "ship.outbox_bytes=1048576"];
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    let client = impatient(&cluster);
    let first = write(&client, 0).await.expect("written");
    wait_offsite(&cluster, first).await;

    std::fs::rename(&offsite, &away).expect("goes away");
    let mut acknowledged = 0;
    let refused = loop {
        match write(&client, acknowledged + 1).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "nothing is refused");
    };
    let Error::Overloaded { reason, message, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(reason, "OUTBOX_FULL", "{message}");
    assert!(message.contains("KiB of the log are not at offsite yet") && message.contains("1024 KiB"), "{message}");
    assert!(acknowledged >= 10, "{acknowledged} of {VALUE_BYTES} bytes fit into the budget");
    let leader = cluster.leader().await;
    // Through any node, deletes too, and a leader elected since as well.
    for place in 0..3 {
        assert!(client_of(&cluster, place).delete(contact("ann", "c0")).await.is_err(), "a delete is a write");
    }
    assert!(client.get(contact("ann", "c1")).await.expect("reads go on").is_some());
    assert!(has_check(&cluster, leader, "OUTBOX_FULL").await);
    let endpoints: Vec<&str> = cluster.nodes.iter().map(|node| node.admin.as_str()).collect();
    let (code, health, _) = holdfast(&["cluster", "health", "--endpoint", &endpoints.join(",")]);
    assert!(code == 3 && health.contains("OUTBOX_FULL") && health.contains("writes are refused"), "{health}");
    cluster.kill(leader);
    wait_for("the next leader to measure", async || {
        let next = cluster.leader_now().await.filter(|next| *next != leader);
        matches!(next, Some(next) if has_check(&cluster, next, "OUTBOX_FULL").await)
    })
    .await;
    assert!(write(&client, acknowledged + 1).await.is_err(), "the next leader refuses as well");
    cluster.restart(leader);

    std::fs::rename(&away, &offsite).expect("comes back");
    let mut last = 0;
    wait_for("writes to be taken again", async || {
        last = write(&client, acknowledged + 1).await.unwrap_or(0);
        last > 0
    })
    .await;
    wait_offsite(&cluster, last).await;
    for number in 0..=acknowledged + 1 {
        let found = client.get(contact("ann", &format!("c{number}"))).await.expect("readable").expect("is there");
        assert_eq!(found.payload, incompressible(number, VALUE_BYTES), "c{number}");
    }
    let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &from, "--level", "1"]);
    assert!(code == 0 && report["gaps"] == serde_json::json!([]), "{report}{stderr}");
}

fn client_of(cluster: &Cluster, place: usize) -> Client {
    cluster.client_of(place).with_deadline(Duration::from_secs(2))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_risk_leaves_a_gap_that_says_so_and_a_snapshot_behind_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (offsite, away) = (dir.path().join("offsite"), dir.path().join("away"));
    let from = url(&offsite);
    let budget = ["ship.outbox_bytes=1048576", "ship.past_outbox=accept-risk"];
    let pace = ["ship.interval_ms=100", "raft.snapshot_entries=20", "raft.keep_entries=5"];
    let mut args = vec!["--offsite", &from];
    budget.iter().chain(&pace).for_each(|pair| args.extend(["--set", pair]));
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    let client = impatient(&cluster);
    let first = write(&client, 0).await.expect("written");
    wait_offsite(&cluster, first).await;

    std::fs::rename(&offsite, &away).expect("goes away");
    let mut number = 0;
    let mut inside = 0;
    wait_for("every node to forget what is not offsite", async || {
        for _ in 0..20 {
            number += 1;
            inside = write(&client, number).await.expect("writes go on");
        }
        for place in 0..3 {
            if purged(&cluster, place).await < first + 60 {
                return false;
            }
        }
        true
    })
    .await;
    let leader = cluster.leader().await;
    let endpoints: Vec<&str> = cluster.nodes.iter().map(|node| node.admin.as_str()).collect();
    let (code, health, _) = holdfast(&["cluster", "health", "--endpoint", &endpoints.join(",")]);
    assert!(code == 3 && health.contains("OUTBOX_FULL") && health.contains("forgot entries"), "{health}");

    std::fs::rename(&away, &offsite).expect("comes back");
    let last = write(&client, number + 1).await.expect("written");
    wait_offsite(&cluster, last).await;
    let behind = write(&client, number + 2).await.expect("written");
    wait_offsite(&cluster, behind).await;
    let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &from, "--level", "1"]);
    assert_eq!((code, &report["bad"]), (0, &serde_json::json!([])), "{report}{stderr}");
    let [gap] = &report["gaps"].as_array().expect("gaps")[..] else { panic!("one gap: {report}") };
    let (gap_first, gap_last) =
        (gap["first_index"].as_u64().expect("first"), gap["last_index"].as_u64().expect("last"));
    assert!(gap_first > first && gap_first < inside && gap_last >= inside, "{gap}, from {first} over {inside}");
    // Another leader finds the end behind it.
    cluster.kill(leader);
    cluster.leader().await;
    cluster.restart(leader);
    let behind = write(&client, number + 3).await.expect("written");
    wait_offsite(&cluster, behind).await;
    cluster.stop();
    std::fs::remove_dir_all(dir.path().join("c")).expect("every node is lost");

    let plan = |at: &str| holdfast_json(&["restore", "plan", "--from", &from, "--at", at]);
    for at in [gap_first - 1, gap_last, behind] {
        let (code, plan, stderr) = plan(&at.to_string());
        assert_eq!((code, plan["last_index"].as_u64()), (0, Some(at)), "{plan}{stderr}");
    }
    let (code, plan, stderr) = plan(&inside.to_string());
    assert_eq!((code, plan["newest_good_index"].as_u64()), (9, Some(gap_first - 1)), "{plan}{stderr}");
    assert!(plan["bad"][0]["reason"].as_str().is_some_and(|reason| reason.contains("never shipped")), "{plan}");
    let (target, port) = (dir.path().join("r").display().to_string(), cluster.port_base().to_string());
    let run = ["restore", "run", "--from", &from, "--data", &target, "--port-base", &port];
    let (code, report, stderr) = holdfast_json(&run);
    assert_eq!((code, report["records"].as_u64()), (0, Some(number + 4)), "{report}{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_forgot_what_is_not_offsite_is_lent_it_by_another_node() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (offsite, away) = (dir.path().join("offsite"), dir.path().join("away"));
    let from = url(&offsite);
    let pace = ["ship.interval_ms=100", "raft.snapshot_entries=20", "raft.keep_entries=5"];
    let mut args = vec!["--offsite", &from];
    pace.iter().for_each(|pair| args.extend(["--set", pair]));
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    let client = impatient(&cluster);
    let first = write(&client, 0).await.expect("written");
    wait_offsite(&cluster, first).await;
    // One node forgets more than the others.
    let forgets = (cluster.leader().await + 1) % 3;
    cluster.kill(forgets);
    let risk = ["env", "HOLDFAST_SHIP_OUTBOX_BYTES=1048576", "HOLDFAST_SHIP_PAST_OUTBOX=accept-risk"];
    cluster.restart_under(forgets, &risk);
    std::fs::rename(&offsite, &away).expect("goes away");
    let (mut number, mut last) = (0, 0);
    wait_for("it to forget what is not offsite", async || {
        for _ in 0..20 {
            number += 1;
            last = write(&client, number).await.expect("writes go on");
        }
        purged(&cluster, forgets).await > first + 60
    })
    .await;
    for place in (0..3).filter(|place| *place != forgets) {
        assert!(purged(&cluster, place).await <= known(&cluster, place).await, "the others keep it");
    }
    let id = cluster.nodes[forgets].id;
    wait_for("it to lead", async || {
        let Some(leader) = cluster.leader_now().await else { return false };
        let admin = AdminClient::new(&cluster.nodes[leader].admin).expect("address");
        leader == forgets || admin.transfer_leader(id).await.is_ok()
    })
    .await;

    std::fs::rename(&away, &offsite).expect("comes back");
    wait_offsite(&cluster, last).await;
    assert_eq!(cluster.leader().await, forgets, "it shipped what it did not have");
    let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &from, "--level", "1"]);
    assert_eq!(
        (code, &report["bad"], &report["gaps"]),
        (0, &serde_json::json!([]), &serde_json::json!([])),
        "{stderr}"
    );
    let (code, plan, stderr) = holdfast_json(&["restore", "plan", "--from", &from, "--at", &(first + 30).to_string()]);
    assert_eq!((code, plan["last_index"].as_u64()), (0, Some(first + 30)), "{plan}{stderr}");
}
