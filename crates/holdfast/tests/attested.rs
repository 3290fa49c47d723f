//! Every voter vouches for a snapshot by what it read on its own disk; one whose state was changed behind its back, with
//! valid checksums everywhere, does not, is named, and is mended.

mod cluster;
mod node_disks;

use std::path::Path;

use cluster::{Cluster, holdfast, wait_for};
use holdfast_store::RawRow;
use holdfast_store::keyspace::Family;
use holdfast_wire::durable;
use node_disks::{Ledger, alter, restart, terminate};
use serde_json::Value;

/// Nothing but snapshots looks at states while the test runs.
const UNLOOKED: [&str; 4] = ["--set", "integrity.interval_ms=86400000", "--set", "ship.interval_ms=50"];

struct Scene {
    cluster: Cluster,
    ledger: Ledger,
    url: String,
}

impl Scene {
    async fn begin(dir: &Path) -> Self {
        let url = format!("file://{}", dir.join("vault").display());
        let flags = [&UNLOOKED[..], &["--offsite", &url]].concat();
        let cluster = Cluster::start(&dir.join("c"), &flags);
        let mut ledger = Ledger::default();
        ledger.write(&cluster.client(), 30, 6000).await;
        cluster.wait_converged().await;
        // The first comparison comes right after the start; the next one is a day away.
        for place in 0..3 {
            wait_for("the first comparison", async || {
                let status = cluster.status(place).await.and_then(|status| status.integrity);
                status.is_some_and(|known| known.examined_index > 0)
            })
            .await;
        }
        Self { cluster, ledger, url }
    }

    fn endpoints(&self) -> String {
        self.cluster.nodes.iter().map(|node| node.admin.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Has a snapshot taken; gives what is told of the newest one.
    fn backup(&self) -> (Value, String) {
        let (code, out, err) = holdfast(&["backup", "now", "--endpoint", &self.endpoints(), "-o", "json"]);
        assert_eq!(code, 0, "{out} {err}");
        let (code, out, listing) = holdfast(&["backup", "ls", "--from", &self.url, "-o", "json"]);
        assert_eq!(code, 0, "{out} {listing}");
        let listed: Value = serde_json::from_str(&out).expect("JSON");
        let snapshots = listed["lineages"][0]["snapshots"].as_array().expect("snapshots").clone();
        (snapshots.last().expect("one at least").clone(), err)
    }

    async fn failures(&self, place: usize) -> u64 {
        let status = self.cluster.status(place).await;
        status.and_then(|status| status.integrity).map_or(0, |known| known.failures_total)
    }

    async fn wait_reinstalled(&self, place: usize) {
        wait_for("the state to be reinstalled", async || {
            let status = self.cluster.status(place).await;
            let known = status.and_then(|status| status.integrity).unwrap_or_default();
            known.reinstalls_total > 0 && known.diverged.is_empty() && !known.fenced
        })
        .await;
        self.cluster.wait_converged().await;
    }
}

/// What a request was answered with. No digest covers it: only other replicas tell.
fn outcome(rows: &mut [RawRow]) {
    let row = rows.iter_mut().find(|row| row.family == Family::Req.tag()).expect("a request");
    let mut request = durable::decode_request(&row.value).expect("a request");
    request.commit_index += 1;
    row.value = durable::encode_request(&request).to_vec();
}

fn ids(snapshot: &Value) -> Vec<u64> {
    snapshot["attested_by"].as_array().expect("nodes").iter().filter_map(Value::as_u64).collect()
}

/// Whoever takes the snapshot: in the first round another node than the one that was changed, in the second that one itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_changed_behind_its_back_attests_nothing_and_is_mended() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut scene = Scene::begin(dir.path()).await;
    let (snapshot, _) = scene.backup();
    assert_eq!((ids(&snapshot), &snapshot["attested"]), (vec![1, 2, 3], &Value::Bool(true)), "{snapshot}");

    let leader = scene.cluster.leader().await;
    for place in (0..3).filter(|place| *place != leader) {
        terminate(&mut scene.cluster, place);
        alter(&scene.cluster, place, |rows| outcome(rows));
        restart(&mut scene.cluster, place);
        scene.cluster.wait_converged().await;
        let client = scene.cluster.client();
        scene.ledger.write(&client, 5, 6000).await;
        assert_eq!(scene.failures(place).await, 0, "nobody looked yet");

        let (snapshot, said) = scene.backup();
        let others: Vec<u64> = (1..=3).filter(|id| *id != place as u64 + 1).collect();
        assert_eq!(snapshot["attested"], Value::Bool(true), "{snapshot} {said}");
        // Where it was to take the snapshot itself, that is taken once more, and it may be mended by then.
        let may_be_mended = said.contains("taken once more") && ids(&snapshot) == [1, 2, 3];
        assert!(ids(&snapshot) == others || may_be_mended, "{snapshot} {said}");
        wait_for("the alarm", async || scene.failures(place).await > 0).await;
        scene.wait_reinstalled(place).await;
        let (snapshot, _) = scene.backup();
        assert_eq!(ids(&snapshot), [1, 2, 3], "{snapshot}");
    }
    let (code, out, err) = holdfast(&["backup", "verify", "--level", "1", "--from", &scene.url, "-o", "json"]);
    let verified: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &verified["unattested"]), (0, &Value::from(0)), "{out} {err}");
    scene.ledger.check(&scene.cluster.client()).await;
}

/// Three accounts of one state, and no majority for any of them: nothing is shipped that may be wrong, and what was shipped
/// before stays what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_majority_vouches_no_snapshot_is_taken() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut scene = Scene::begin(dir.path()).await;
    let (before, said) = scene.backup();
    assert_eq!(before["attested"], Value::Bool(true), "{before} {said}");
    let leader = scene.cluster.leader().await;
    for (place, times) in [((leader + 1) % 3, 1), ((leader + 2) % 3, 2)] {
        terminate(&mut scene.cluster, place);
        alter(&scene.cluster, place, |rows| (0..times).for_each(|_| outcome(rows)));
        restart(&mut scene.cluster, place);
        scene.cluster.wait_converged().await;
    }
    let (code, out, err) = holdfast(&["backup", "now", "--endpoint", &scene.endpoints(), "-o", "json"]);
    assert!(code != 0 && out.contains("DIVERGED") && out.contains("no side has a majority"), "{out} {err}");
    let (_, out, err) = holdfast(&["backup", "ls", "--from", &scene.url, "-o", "json"]);
    let listed: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}"));
    assert_eq!(listed["lineages"][0]["snapshots"].as_array().map(Vec::len), Some(1), "{listed}");
    let alarmed = async |place: usize| scene.failures(place).await > 0;
    wait_for("the alarm", async || alarmed(0).await || alarmed(1).await || alarmed(2).await).await;
}

/// Without a majority of voters that answer there is none that vouches; with one, it waits for nobody who is gone for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_down_keeps_no_snapshot_from_being_attested() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut scene = Scene::begin(dir.path()).await;
    let place = (scene.cluster.leader().await + 1) % 3;
    terminate(&mut scene.cluster, place);
    let (snapshot, _) = scene.backup();
    assert_eq!(
        (ids(&snapshot).len(), &snapshot["attested"], &snapshot["voters"]),
        (2, &true.into(), &serde_json::json!([1, 2, 3]))
    );
    // Its key stays its own.
    restart(&mut scene.cluster, place);
    scene.cluster.wait_converged().await;
    let (snapshot, _) = scene.backup();
    assert_eq!(ids(&snapshot), [1, 2, 3], "{snapshot}");
    // One that lost it says so, and the others go on without it.
    let mute = async |cluster: &Cluster| {
        let checks = cluster.status(place).await.map(|status| status.checks).unwrap_or_default();
        checks.into_iter().find(|check| check.check_id == "ATTESTS_NOTHING").map(|check| check.evidence)
    };
    assert_eq!(mute(&scene.cluster).await, None);
    terminate(&mut scene.cluster, place);
    let file = scene.cluster.nodes[place].data_dir.join("NODE_KEY");
    let own = std::fs::read(&file).expect("reads");
    std::fs::remove_file(&file).expect("removes");
    restart(&mut scene.cluster, place);
    scene.cluster.wait_converged().await;
    let said = mute(&scene.cluster).await.expect("a warning");
    assert!(said.contains("NODE_KEY was lost"), "{said}");
    let (snapshot, _) = scene.backup();
    assert_eq!((ids(&snapshot).len(), &snapshot["attested"]), (2, &true.into()), "{snapshot}");
    terminate(&mut scene.cluster, place);
    std::fs::write(&file, own).expect("writes");
    restart(&mut scene.cluster, place);
    scene.cluster.wait_converged().await;
    assert_eq!(mute(&scene.cluster).await, None);
}
