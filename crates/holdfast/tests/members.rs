//! Members that come and go under load, with real processes: nothing acknowledged is lost, and no digest differs.

mod cluster;
mod node_disks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cluster::{Cluster, contact, holdfast, is_alive, wait_for, wait_until};
use holdfast_client::Client;
use node_disks::terminate;

const LABELS: &str = "array=a1,site=x;array=a2,site=x;array=a3,site=x";

/// Writers that go on until they are told to stop; each write must be acknowledged in the end.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    fn start(client: &Client, writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let writers = (0..writers).map(|writer| {
            let (client, stop, written) = (client.clone(), stop.clone(), written.clone());
            tokio::spawn(async move {
                let user = format!("user-{writer}");
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("c{count}");
                    let put = client.put(contact(&user, &id), "text/plain", format!("{user} {id}")).await;
                    put.expect("every write is acknowledged, retries of the client included");
                    count += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                }
                count
            })
        });
        let writers = writers.collect();
        Self { stop, written, writers }
    }

    /// Waits until so many more writes were acknowledged.
    async fn more(&self, count: u64) {
        let from = self.written.load(Ordering::Relaxed);
        wait_for("writes go on", async || self.written.load(Ordering::Relaxed) >= from + count).await;
    }

    /// Ends it; all that was acknowledged is there.
    async fn end(self, client: &Client) {
        self.stop.store(true, Ordering::Relaxed);
        for (writer, task) in self.writers.into_iter().enumerate() {
            let count = task.await.expect("the writer ends well");
            let user = format!("user-{writer}");
            for n in 0..count {
                let id = format!("c{n}");
                let found = client.get(contact(&user, &id)).await.expect("readable").expect("there");
                assert_eq!(found.payload, format!("{user} {id}").as_bytes());
            }
        }
    }
}

/// Admin addresses of these places, as `--endpoint` takes them.
fn endpoints(cluster: &Cluster, places: &[usize]) -> String {
    places.iter().map(|place| cluster.nodes[*place].admin.clone()).collect::<Vec<_>>().join(",")
}

/// Runs an operator's command; gives its exit code and what it said.
async fn operator(args: &[&str], endpoints: &str) -> (i32, String) {
    let mut all: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    all.extend(["--endpoint".to_owned(), endpoints.to_owned()]);
    if let ["node", "add" | "promote" | "replace" | "rm", ..] = args {
        // A change that nobody carries on ends in its exit code, and not in a hung test.
        all.extend(["--wait".to_owned(), "60".to_owned()]);
    }
    let run = move || {
        let args: Vec<&str> = all.iter().map(String::as_str).collect();
        let (code, stdout, stderr) = holdfast(&args);
        (code, format!("{stdout}{stderr}"))
    };
    tokio::task::spawn_blocking(run).await.expect("it runs")
}

#[track_caller]
fn assert_exit(answer: &(i32, String), code: i32, told: &[&str]) {
    assert_eq!(answer.0, code, "{}", answer.1);
    for told in told {
        assert!(answer.1.contains(told), "`{told}` is missing in: {}", answer.1);
    }
}

async fn wait_equal(cluster: &Cluster, places: &[usize]) {
    wait_for("equal digests at one index", async || {
        let mut seen = Vec::new();
        for place in places {
            let Some(status) = cluster.status(*place).await else { return false };
            seen.push((status.groups[0].digest_index, status.groups[0].digest.clone()));
        }
        seen.iter().all(|one| *one == seen[0])
    })
    .await;
}

async fn voters(cluster: &Cluster, place: usize) -> Vec<u64> {
    let status = cluster.status(place).await.expect("it answers");
    let mut ids: Vec<u64> = status.groups[0].voter_sets.iter().flat_map(|set| set.node_ids.clone()).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_disk_is_replaced_under_load_and_all_digests_are_equal() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--labels", LABELS]);
    let client = cluster.client();
    let load = Load::start(&client, 4);
    load.more(100).await;
    let leader = cluster.leader().await;
    let dead = (leader + 1) % 3;
    cluster.kill(dead);
    std::fs::remove_dir_all(&cluster.nodes[dead].data_dir).expect("the disk is gone");
    let left: Vec<usize> = (0..3).filter(|place| *place != dead).collect();
    let asked = endpoints(&cluster, &left);

    // Under its old id an empty disk does not start: what it had acknowledged is not there.
    cluster.restart(dead);
    wait_until("the empty directory under a known id is refused", || !is_alive(cluster.nodes[dead].pid));
    let ended = cluster.ended(dead).expect("it ended by itself");
    assert_eq!(ended.code(), Some(3));
    let log = std::fs::read_to_string(cluster.log(dead)).expect("log");
    assert!(log.contains("was its disk replaced?") && log.contains("node replace"), "{log}");

    let place = cluster.start_further(4, "array=a4,site=x");
    let dead_id = cluster.nodes[dead].id.to_string();
    let new = cluster.nodes[place].admin.clone();
    let replace = ["node", "replace", dead_id.as_str(), "--with", new.as_str()];
    wait_for("the new node answers", async || cluster.status(place).await.is_some()).await;
    assert_exit(&operator(&replace, &asked).await, 3, &["--confirm dev"]);
    let dry = [&replace[..], &["--dry-run"]].concat();
    assert_exit(&operator(&dry, &asked).await, 0, &["add node 4 as a learner", "is a member no more"]);
    assert!(voters(&cluster, leader).await.contains(&cluster.nodes[dead].id), "judging changes nothing");
    let confirmed = [&replace[..], &["--confirm", "dev"]].concat();
    assert_exit(&operator(&confirmed, &asked).await, 0, &["node 4 is in the place of node"]);
    load.more(100).await;

    let places: Vec<usize> = left.iter().copied().chain([place]).collect();
    let expected: Vec<u64> = places.iter().map(|place| cluster.nodes[*place].id).collect();
    let mut sorted = expected.clone();
    sorted.sort_unstable();
    assert_eq!(voters(&cluster, leader).await, sorted);
    load.end(&client).await;
    wait_equal(&cluster, &places).await;
    // The id of the dead node is not given out again.
    let id = cluster.nodes[dead].id;
    let again = cluster.start_further(id, "array=a5,site=x");
    wait_for("it answers", async || cluster.status(again).await.is_some()).await;
    let address = cluster.nodes[again].admin.clone();
    assert_exit(&operator(&["node", "add", &address], &asked).await, 3, &["never used"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_become_five_and_three_again_under_load() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--labels", LABELS]);
    let client = cluster.client();
    let load = Load::start(&client, 4);
    load.more(100).await;
    let asked = endpoints(&cluster, &[0, 1, 2]);
    for id in [4, 5] {
        let place = cluster.start_further(id, &format!("array=a{id},site=x"));
        wait_for("the new node answers", async || cluster.status(place).await.is_some()).await;
        let address = cluster.nodes[place].admin.clone();
        assert_exit(&operator(&["node", "add", &address], &asked).await, 0, &[&format!("node {id} is a voter")]);
    }
    assert_eq!(voters(&cluster, 3).await, [1, 2, 3, 4, 5]);
    load.more(100).await;
    let all = endpoints(&cluster, &[0, 1, 2, 3, 4]);
    // Those that were there first go, the leader among them.
    for id in ["1", "2"] {
        let told = format!("node {id} is a member no more");
        assert_exit(&operator(&["node", "rm", id, "--confirm", "dev"], &all).await, 0, &[&told]);
    }
    load.more(100).await;
    assert_eq!(voters(&cluster, 4).await, [3, 4, 5]);
    assert_exit(&operator(&["node", "rm", "3", "--confirm", "dev"], &all).await, 3, &["2 voters would be left"]);
    let survivors = Client::builder().endpoints([2, 3, 4].map(|place| cluster.nodes[place].client.clone()));
    load.end(&survivors.build().expect("client")).await;
    wait_equal(&cluster, &[2, 3, 4]).await;
    // Who was taken out serves nobody, and says so.
    let error = cluster.client_of(0).get(contact("user-0", "c0")).await.expect_err("it is no member");
    assert_eq!(error.reason(), "DRAINING");
    let checks = cluster.status(0).await.expect("it answers").checks;
    let removed = checks.iter().find(|check| check.check_id == "NODE_REMOVED").expect("it says that it was taken out");
    assert!(removed.remedy.contains("stop it"), "{}", removed.remedy);
    let checks = cluster.status(4).await.expect("it answers").checks;
    assert!(checks.iter().all(|check| check.check_id != "NODE_REMOVED"), "{checks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_members_outlives_the_leader_that_began_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--labels", LABELS]);
    cluster.take_over();
    let client = cluster.client();
    client.put(contact("ann", "c1"), "text/plain", "x").await.expect("written");
    let asked = endpoints(&cluster, &[0, 1, 2]);
    let place = cluster.start_further(4, "array=a4,site=x");
    wait_for("the new node answers", async || cluster.status(place).await.is_some()).await;
    let address = cluster.nodes[place].admin.clone();
    let leader = cluster.leader().await;
    let adding = tokio::spawn({
        let asked = asked.clone();
        async move { operator(&["node", "add", &address], &asked).await }
    });
    wait_for("the change has begun", async || {
        cluster.status(leader).await.is_some_and(|status| status.nodes.iter().any(|node| node.node_id == 4))
    })
    .await;
    cluster.kill(leader);
    assert_exit(&adding.await.expect("it runs"), 0, &["node 4 is a voter"]);
    let other = (leader + 1) % 3;
    assert_eq!(voters(&cluster, other).await, [1, 2, 3, 4]);
    cluster.restart(leader);
    wait_equal(&cluster, &[0, 1, 2, place]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_new_node_is_said_before_anything_changes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--labels", LABELS, "--set", "placement.keys=array"]);
    let asked = endpoints(&cluster, &[0, 1, 2]);
    // Two of three voters on one array, which was configured against.
    let place = cluster.start_further(4, "array=a1,site=x");
    wait_for("the new node answers", async || cluster.status(place).await.is_some()).await;
    let address = cluster.nodes[place].admin.clone();
    let replace = ["node", "replace", "2", "--with", &address, "--confirm", "dev"];
    assert_exit(&operator(&replace, &asked).await, 3, &["array=a1", "2 of 3 voters"]);
    // A node that answers, and is a member already.
    let member = cluster.nodes[1].admin.clone();
    assert_exit(&operator(&["node", "add", &member], &asked).await, 3, &["is a voter already"]);
    // Nobody there.
    assert_exit(&operator(&["node", "add", "127.0.0.1:1"], &asked).await, 5, &[]);
    assert_exit(&operator(&["node", "rm", "9", "--confirm", "dev"], &asked).await, 7, &["node 9"]);
    assert_exit(&operator(&["node", "rm", "2", "--confirm", "prod"], &asked).await, 3, &["--confirm dev"]);
    // A learner is no voter, and may become one.
    let learner = cluster.start_further(5, "array=a5,site=x");
    wait_for("the new node answers", async || cluster.status(learner).await.is_some()).await;
    let address = cluster.nodes[learner].admin.clone();
    assert_exit(&operator(&["node", "add", &address, "--learner"], &asked).await, 0, &["node 5 is a learner"]);
    assert_eq!(voters(&cluster, 0).await, [1, 2, 3]);
    assert_exit(&operator(&["node", "promote", "5"], &asked).await, 0, &["node 5 is a voter"]);
    assert_eq!(voters(&cluster, 0).await, [1, 2, 3, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_leads_and_serves_no_more_until_it_is_resumed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let cluster = Cluster::start(&dir.path().join("c"), &["--labels", LABELS]);
    let asked = endpoints(&cluster, &[0, 1, 2]);
    let client = cluster.client();
    client.put(contact("ann", "c1"), "text/plain", "x").await.expect("written");
    let leader = cluster.leader().await;
    let id = cluster.nodes[leader].id.to_string();
    assert_exit(&operator(&["node", "drain", &id], &asked).await, 0, &["takes no more calls"]);
    wait_for("another one leads", async || cluster.leader_now().await.is_some_and(|now| now != leader)).await;
    let error = cluster.client_of(leader).get(contact("ann", "c1")).await.expect_err("it is drained");
    assert_eq!(error.reason(), "DRAINING");
    // Nobody hands leadership to it.
    let refused = operator(&["node", "step-down", "--to", &id], &asked).await;
    assert_ne!(refused.0, 0, "{}", refused.1);
    client.put(contact("ann", "c2"), "text/plain", "x").await.expect("the others serve");
    assert_exit(&operator(&["node", "resume", &id], &asked).await, 0, &["takes calls again"]);
    assert!(cluster.client_of(leader).get(contact("ann", "c2")).await.expect("served").is_some());
    assert_exit(&operator(&["node", "step-down", "--to", &id], &asked).await, 0, &["leads now"]);
}

/// A cluster of one is its own quorum: no word of others grows old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_alone_leads_and_is_healthy() {
    let dir = tempfile::tempdir().expect("tempdir");
    let offsite = format!("file://{}", dir.path().join("offsite").display());
    let labels = ["--labels", "array=a1,site=x", "--offsite", &offsite, "--offsite-labels", "site=y"];
    let one = [&["--nodes", "1"], &labels[..]].concat();
    let cluster = Cluster::start(&dir.path().join("c"), &one);
    let asked = endpoints(&cluster, &[0]);
    let status = cluster.status(0).await.expect("it answers");
    let age = status.groups[0].leader_contact_age.expect("it leads");
    assert_eq!((age.seconds, age.nanos), (0, 0));
    assert_exit(&operator(&["cluster", "health"], &asked).await, 0, &[]);
    assert_exit(&operator(&["backup", "now"], &asked).await, 0, &[]);
    assert_exit(&operator(&["node", "drain", "1"], &asked).await, 3, &["only voter"]);
}

/// As the runbook has it: drain, stop, start, wait until all is well; the writers notice nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_restarted_in_turn_under_load_without_a_failed_call() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--labels", LABELS]);
    cluster.take_over();
    let client = cluster.client();
    let load = Load::start(&client, 8);
    load.more(100).await;
    let asked = endpoints(&cluster, &[0, 1, 2]);
    for place in 0..3 {
        let id = cluster.nodes[place].id.to_string();
        assert_exit(&operator(&["node", "drain", &id], &asked).await, 0, &["takes no more calls"]);
        load.more(50).await;
        terminate(&mut cluster, place);
        load.more(50).await;
        cluster.restart(place);
        wait_for("the cluster is whole again", async || {
            let health = operator(&["cluster", "health"], &asked).await.1;
            !health.contains("REPLICA_LAG") && !health.contains("NO_LEADER")
        })
        .await;
    }
    load.end(&client).await;
    wait_equal(&cluster, &[0, 1, 2]).await;
}

/// "Set node.labels and restart" is what health tells operators to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_labels_are_known_after_a_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let asked = endpoints(&cluster, &[0, 1, 2]);
    assert_exit(&operator(&["cluster", "health"], &asked).await, 3, &["ALL_COPIES_ONE_DOMAIN", "LABEL_MISSING"]);
    cluster.take_over();
    for place in 0..3 {
        cluster.kill(place);
        let labels = ["--label".to_owned(), format!("array=a{place}"), "--label".to_owned(), format!("site=s{place}")];
        cluster.nodes[place].argv.extend(labels);
        cluster.restart(place);
        wait_for("it is back", async || cluster.status(place).await.is_some()).await;
    }
    wait_for("the group knows the labels", async || {
        let leader = cluster.leader().await;
        let status = cluster.status(leader).await;
        status.is_some_and(|status| status.nodes.iter().all(|node| node.labels.len() == 2))
    })
    .await;
    wait_for("health is fine", async || operator(&["cluster", "health"], &asked).await.0 == 0).await;
}
