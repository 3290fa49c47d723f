//! What is kept in the log for a destination that is away, how much of it, and what happens beyond that: writes end, or what
//! nobody has any more is told as a gap with a snapshot behind it. What one node forgot, another lends.

mod cluster;
mod node_disks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::{Cluster, contact, holdfast, holdfast_json, wait_for, wait_offsite};
use holdfast_client::{AdminClient, Client, Error};
use node_disks::incompressible;

const VALUE_BYTES: usize = 64 << 10;

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

async fn write(client: &Client, number: u64) -> Result<u64, Error> {
    let (id, value) = (format!("c{number}"), incompressible(number, VALUE_BYTES));
    Ok(client.put(contact("ann", &id), "text/plain", value).await?.commit_index)
}

/// A cluster whose folder offsite has its first write, and can go away.
struct Scene {
    // Before the directory that it lives in.
    cluster: Cluster,
    dir: tempfile::TempDir,
    client: Client,
    offsite: PathBuf,
    /// Index of that write.
    first: u64,
}

impl Scene {
    async fn begin(set: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let offsite = dir.path().join("offsite");
        let from = url(&offsite);
        let mut args = vec!["--offsite", &from, "--set", "ship.interval_ms=100"];
        set.iter().for_each(|pair| args.extend(["--set", pair]));
        let cluster = Cluster::start(&dir.path().join("c"), &args);
        let addresses = cluster.nodes.iter().map(|node| node.client.clone());
        // One that waits for nothing.
        let client = Client::builder().endpoints(addresses).deadline(Duration::from_secs(4)).build().expect("client");
        let first = write(&client, 0).await.expect("written");
        wait_offsite(&cluster, first).await;
        Self { cluster, dir, client, offsite, first }
    }

    fn from(&self) -> String {
        url(&self.offsite)
    }

    fn goes_away(&self) {
        std::fs::rename(&self.offsite, self.dir.path().join("away")).expect("goes away");
    }

    fn comes_back(&self) {
        std::fs::rename(self.dir.path().join("away"), &self.offsite).expect("comes back");
    }

    /// What all of it holds.
    fn verified(&self) -> serde_json::Value {
        let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &self.from(), "--level", "1"]);
        assert_eq!((code, &report["bad"]), (0, &serde_json::json!([])), "{report}{stderr}");
        report
    }

    /// Health, where something is wrong.
    fn unwell(&self) -> String {
        let endpoints: Vec<&str> = self.cluster.nodes.iter().map(|node| node.admin.as_str()).collect();
        let (code, health, _) = holdfast(&["cluster", "health", "--endpoint", &endpoints.join(",")]);
        assert_eq!(code, 3, "{health}");
        health
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Overloaded { reason, .. } if reason == "OUTBOX_FULL")
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
    let mut scene = Scene::begin(&["ship.outbox_bytes=1048576"]).await;
    let client = scene.client.clone();
    scene.goes_away();
    let mut acknowledged = 0;
    let refused = loop {
        match write(&client, acknowledged + 1).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "nothing is refused");
    };
    let Error::Overloaded { message, .. } = &refused else { panic!("{refused:?}") };
    assert!(is_full(&refused), "{refused:?}");
    assert!(message.contains("KiB of the log are not at offsite yet") && message.contains("1024 KiB"), "{message}");
    assert!(acknowledged >= 10, "{acknowledged} of {VALUE_BYTES} bytes fit into the budget");
    let leader = scene.cluster.leader().await;
    // Through any node, and deletes too.
    for place in 0..3 {
        let client = scene.cluster.client_of(place).with_deadline(Duration::from_secs(2));
        let error = client.delete(contact("ann", "c0")).await.expect_err("a delete is a write");
        assert!(is_full(&error), "{error:?}");
    }
    assert!(client.get(contact("ann", "c1")).await.expect("reads go on").is_some());
    let health = scene.unwell();
    assert!(health.contains("OUTBOX_FULL") && health.contains("writes are refused"), "{health}");
    scene.cluster.kill(leader);
    wait_for("the next leader to measure", async || {
        let next = scene.cluster.leader_now().await.filter(|next| *next != leader);
        matches!(next, Some(next) if has_check(&scene.cluster, next, "OUTBOX_FULL").await)
    })
    .await;
    let error = write(&client, acknowledged + 1).await.expect_err("the next leader refuses as well");
    assert!(is_full(&error), "{error:?}");
    scene.cluster.restart(leader);

    scene.comes_back();
    let mut last = 0;
    wait_for("writes to be taken again", async || {
        last = write(&client, acknowledged + 1).await.unwrap_or(0);
        last > 0
    })
    .await;
    wait_offsite(&scene.cluster, last).await;
    for number in 0..=acknowledged + 1 {
        let found = client.get(contact("ann", &format!("c{number}"))).await.expect("readable").expect("is there");
        assert_eq!(found.payload, incompressible(number, VALUE_BYTES), "c{number}");
    }
    assert_eq!(scene.verified()["gaps"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_risk_leaves_a_gap_that_says_so_and_a_snapshot_behind_it() {
    let pace = ["raft.snapshot_entries=20", "raft.keep_entries=5"];
    let budget = ["ship.outbox_bytes=1048576", "ship.past_outbox=accept-risk"];
    let mut scene = Scene::begin(&[pace, budget].concat()).await;
    let (client, first) = (scene.client.clone(), scene.first);
    scene.goes_away();
    let mut number = 0;
    let mut inside = 0;
    wait_for("every node to forget what is not offsite", async || {
        for _ in 0..20 {
            number += 1;
            inside = write(&client, number).await.expect("writes go on");
        }
        for place in 0..3 {
            if purged(&scene.cluster, place).await < first + 60 {
                return false;
            }
        }
        true
    })
    .await;
    let leader = scene.cluster.leader().await;
    wait_for("health to say that it forgot", async || {
        let health = scene.unwell();
        health.contains("OUTBOX_FULL") && health.contains("forgot entries")
    })
    .await;

    scene.comes_back();
    for more in 1..=2 {
        let index = write(&client, number + more).await.expect("written");
        wait_offsite(&scene.cluster, index).await;
    }
    let report = scene.verified();
    let [gap] = &report["gaps"].as_array().expect("gaps")[..] else { panic!("one gap: {report}") };
    let (gap_first, gap_last) =
        (gap["first_index"].as_u64().expect("first"), gap["last_index"].as_u64().expect("last"));
    assert!(gap_first > first && gap_first < inside && gap_last >= inside, "{gap}, from {first} over {inside}");
    // Another leader finds the end behind it.
    scene.cluster.kill(leader);
    scene.cluster.leader().await;
    scene.cluster.restart(leader);
    let behind = write(&client, number + 3).await.expect("written");
    wait_offsite(&scene.cluster, behind).await;
    scene.cluster.stop();
    std::fs::remove_dir_all(scene.dir.path().join("c")).expect("every node is lost");
    let from = scene.from();

    let plan = |at: &str| holdfast_json(&["restore", "plan", "--from", &from, "--at", at]);
    for at in [gap_first - 1, gap_last, behind] {
        let (code, plan, stderr) = plan(&at.to_string());
        assert_eq!((code, plan["last_index"].as_u64()), (0, Some(at)), "{plan}{stderr}");
    }
    let (code, plan, stderr) = plan(&inside.to_string());
    assert_eq!((code, plan["newest_good_index"].as_u64()), (9, Some(gap_first - 1)), "{plan}{stderr}");
    assert!(plan["bad"][0]["reason"].as_str().is_some_and(|reason| reason.contains("never shipped")), "{plan}");
    let (target, port) = (scene.dir.path().join("r").display().to_string(), scene.cluster.port_base().to_string());
    let run = ["restore", "run", "--from", &from, "--data", &target, "--port-base", &port];
    let (code, report, stderr) = holdfast_json(&run);
    assert_eq!((code, report["records"].as_u64()), (0, Some(number + 4)), "{report}{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_forgot_what_is_not_offsite_is_lent_it_by_another_node() {
    let mut scene = Scene::begin(&["raft.snapshot_entries=20", "raft.keep_entries=5"]).await;
    let (client, first) = (scene.client.clone(), scene.first);
    // One node forgets more than the others.
    let forgets = (scene.cluster.leader().await + 1) % 3;
    scene.cluster.kill(forgets);
    let risk = ["env", "HOLDFAST_SHIP_OUTBOX_BYTES=1048576", "HOLDFAST_SHIP_PAST_OUTBOX=accept-risk"];
    scene.cluster.restart_under(forgets, &risk);
    scene.goes_away();
    let (mut number, mut last) = (0, 0);
    wait_for("it to forget what is not offsite", async || {
        for _ in 0..20 {
            number += 1;
            last = write(&client, number).await.expect("writes go on");
        }
        purged(&scene.cluster, forgets).await > first + 60
    })
    .await;
    for place in (0..3).filter(|place| *place != forgets) {
        assert!(purged(&scene.cluster, place).await <= known(&scene.cluster, place).await, "the others keep it");
    }
    let id = scene.cluster.nodes[forgets].id;
    wait_for("it to lead", async || {
        let Some(leader) = scene.cluster.leader_now().await else { return false };
        let admin = AdminClient::new(&scene.cluster.nodes[leader].admin).expect("address");
        leader == forgets || admin.transfer_leader(id).await.is_ok()
    })
    .await;

    scene.comes_back();
    wait_offsite(&scene.cluster, last).await;
    assert_eq!(scene.cluster.leader().await, forgets, "it shipped what it did not have");
    assert_eq!(scene.verified()["gaps"], serde_json::json!([]));
    let from = scene.from();
    let (code, plan, stderr) = holdfast_json(&["restore", "plan", "--from", &from, "--at", &(first + 30).to_string()]);
    assert_eq!((code, plan["last_index"].as_u64()), (0, Some(first + 30)), "{plan}{stderr}");
}
