//! `cluster recover`: a majority is lost for good, and what is left becomes a new cluster.

mod cluster;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::{Cluster, contact, copy_folder, holdfast, wait_for};
use holdfast_client::Client;
use holdfast_client::v1::{ListRecordsRequest, Record};
use jepsen_tests::disk::corrupt::Part;
use serde_json::Value;

const LABELS: &str = "array=a1,site=x;array=a2,site=x;array=a3,site=x";

fn json(args: &[&str]) -> (i32, Value) {
    let (code, stdout, stderr) = holdfast(&[args, &["-o", "json"]].concat());
    (code, serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")))
}

async fn put(client: &Client, ids: std::ops::Range<u32>) {
    for id in ids {
        let id = format!("c{id}");
        client.put(contact("ann", &id), "text/plain", id.clone().into_bytes()).await.expect("written");
    }
}

/// Ids of this user's records, ascending.
async fn found(client: &Client) -> Vec<u32> {
    let request = ListRecordsRequest { user_id: "ann".into(), collection: "contacts".into(), ..Default::default() };
    let listed = client.list_all(request).await.expect("listed");
    let id = |record: &Record| {
        let id = &record.key.as_ref().expect("a key").record_id;
        assert_eq!(record.payload, id.as_bytes());
        id[1..].parse::<u32>().expect("a number")
    };
    let mut ids: Vec<u32> = listed.iter().map(id).collect();
    ids.sort_unstable();
    ids
}

/// A cluster of which one follower went when 30 records were written; then 20 more were.
struct Scene {
    dir: tempfile::TempDir,
    cluster: Cluster,
    cut_off: usize,
    others: [usize; 2],
}

impl Scene {
    async fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut cluster = Cluster::start(&dir.path().join("c"), &[&["--labels", LABELS], args].concat());
        let client = cluster.client();
        put(&client, 0..30).await;
        let leader = cluster.leader().await;
        let (cut_off, other) = ((leader + 1) % 3, (leader + 2) % 3);
        cluster.wait_converged().await;
        cluster.kill(cut_off);
        put(&client, 30..50).await;
        Self { dir, cluster, cut_off, others: [leader, other] }
    }

    fn survivor(&self) -> String {
        self.cluster.nodes[self.cut_off].data_dir.display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// What the operator is told of losing both others; gives commit index and loss.
    fn foretold(&self) -> (u64, u64) {
        let lost = self.others.map(|place| format!("array=a{}", place + 1)).join(",");
        let admin = &self.cluster.nodes[self.others[0]].admin;
        let (code, answer) = json(&["domain", "survive", "--lose", &lost, "--endpoint", admin]);
        assert_eq!(code, 3, "{answer}");
        let scenario = &answer["scenarios"][0];
        (answer["commit_index"].as_u64().expect("known"), scenario["loss_entries"].as_u64().expect("known"))
    }

    fn destroy_others(&mut self) {
        for place in self.others {
            std::fs::remove_dir_all(&self.cluster.nodes[place].data_dir).expect("destroyed");
        }
    }
}

fn restarted(gone: Cluster, data: &Path, args: &[&str]) -> Cluster {
    Cluster::start_after(gone, data, args)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_alone_brings_back_what_was_foretold_and_nothing_is_done_unasked() {
    let mut scene = Scene::new(&[]).await;
    let (committed, loss) = scene.foretold();
    assert!(loss >= 20, "twenty writes were acknowledged without it");
    let (survivor, new) = (scene.survivor(), scene.path("new"));
    let base = ["cluster", "recover", "--survivor", survivor.as_str(), "--data", &new];

    // Without the name nothing happens, and what would is told.
    let told = committed.to_string();
    let (code, plan) = json(&[&base[..], &["--committed", &told]].concat());
    assert_eq!((code, plan["loss_entries"].as_u64()), (3, Some(loss)), "{plan}");
    assert_eq!(plan["last_index"].as_u64(), Some(committed - loss), "{plan}");
    let (code, words, stderr) = holdfast(&[&base[..], &["--dry-run", "--committed", &told]].concat());
    assert_eq!(code, 0, "{words}{stderr}");
    assert!(words.contains(&format!("{loss} entries of those that were committed are lost")), "{words}");
    let (code, _, stderr) = holdfast(&[&base[..], &["--confirm", "another"]].concat());
    assert_eq!(code, 3, "{stderr}");
    assert!(!Path::new(&new).exists(), "nothing was made");

    // Of several survivors the one that is furthest counts, wherever it is named.
    scene.cluster.kill_together(&scene.others);
    let further = scene.cluster.nodes[scene.others[1]].data_dir.display().to_string();
    for two in [[&survivor, &further], [&further, &survivor]] {
        let named = ["--survivor", two[0], "--survivor", two[1], "--data", &new, "--dry-run", "--committed", &told];
        let (code, plan) = json(&[&["cluster", "recover"][..], &named].concat());
        assert_eq!((code, plan["loss_entries"].as_u64()), (0, Some(0)), "{plan}");
        assert_eq!(plan["source"].as_str(), Some(further.as_str()), "{plan}");
    }
    scene.destroy_others();
    let (code, report) = json(&[&base[..], &["--confirm", "dev", "--committed", &told]].concat());
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["plan"]["loss_entries"].as_u64(), Some(loss), "{report}");
    assert_eq!(report["last_index"].as_u64(), Some(committed - loss), "{report}");
    for dir in [scene.path("new"), scene.path("c")] {
        let found = std::fs::read_dir(dir).expect("lists").flatten();
        let found: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
        assert!(!found.iter().any(|path| path.to_string_lossy().contains(".holdfast-recover")), "{found:?}");
    }

    let Scene { dir, cluster, .. } = scene;
    let cluster = restarted(cluster, &dir.path().join("new"), &[]);
    assert_eq!(found(&cluster.client()).await, (0..30).collect::<Vec<_>>(), "exactly what the survivor held");
    put(&cluster.client(), 50..52).await;
    cluster.wait_converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_offsite_comes_back_too_and_the_old_cluster_ends_when_it_ships() {
    let offsite = tempfile::tempdir().expect("tempdir");
    let url = format!("file://{}", offsite.path().join("vault").display());
    let scene = Scene::new(&["--offsite", &url, "--offsite-labels", "site=y"]).await;
    let (survivor, new) = (scene.survivor(), scene.path("new"));
    let base = ["cluster", "recover", "--survivor", survivor.as_str(), "--from", &url, "--data", &new];
    let plan_of = || json(&[&base[..], &["--dry-run"]].concat()).1;
    let (committed, loss) = {
        // Once the archive holds the writes, only facts about shipping are behind.
        let mut last = (0, u64::MAX);
        wait_for("the writes to be offsite", async || {
            let lost = scene.others.map(|place| format!("array=a{}", place + 1)).join(",");
            let admin = &scene.cluster.nodes[scene.others[0]].admin;
            let (_, answer) = json(&["domain", "survive", "--lose", &lost, "--endpoint", admin]);
            let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
            last = (number(&answer["commit_index"]), number(&answer["scenarios"][0]["loss_entries"]));
            last.1 < 10
        })
        .await;
        last
    };
    let plan = plan_of();
    assert_eq!(plan["archives"][0]["joint"], "ahead", "{plan}");
    assert_eq!(plan["last_index"].as_u64(), Some(committed - loss), "{plan}");

    // The majority is believed to be lost, and is not.
    let mut scene = scene;
    scene.cluster.kill_together(&scene.others);
    // Another archive is behind: it was out of reach at the end.
    let second = offsite.path().join("second");
    copy_without_newest_segment(&offsite.path().join("vault"), &second);
    let second = format!("file://{}", second.display());
    let (code, report) = json(&[&base[..], &["--from", &second, "--confirm", "dev"]].concat());
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["last_index"].as_u64(), Some(committed - loss), "{report}");
    let fence = report["fenced"][0]["index"].as_u64().expect("ended");
    assert_eq!(fence, committed - loss + 1);
    assert_eq!(report["copied"][0]["to"].as_str(), Some(second.as_str()), "{report}");
    assert!(report["copied"][0]["entries"].as_u64() > Some(0), "{report}");
    assert_eq!(report["fenced"][1]["index"].as_u64(), Some(fence), "both end where the history ends: {report}");
    let lineage = report["plan"]["lineage"].as_str().expect("named");
    let (code, plan) = json(&["restore", "plan", "--from", &second, "--lineage", lineage]);
    assert_eq!((code, plan["last_index"].as_u64()), (0, Some(fence - 1)), "{plan}");
    for place in scene.others {
        scene.cluster.restart(place);
    }
    let mut ended = None;
    wait_for("a node of the old cluster to end", async || {
        let client = scene.cluster.client().with_deadline(Duration::from_millis(500));
        // Something to ship.
        let _ = client.put(contact("ann", "late"), "text/plain", "x").await;
        ended = scene.others.iter().find_map(|place| scene.cluster.ended(*place).map(|status| (*place, status)));
        ended.is_some()
    })
    .await;
    let (place, status) = ended.expect("waited for");
    assert_eq!(status.code(), Some(3));
    let log = std::fs::read_to_string(scene.cluster.log(place)).expect("log");
    assert!(log.contains("was ended before index") && log.contains("stop this cluster"), "{log}");

    // The archive is whole, says what happened, and goes on with the new cluster.
    let (code, listed) = json(&["backup", "ls", "--from", &url]);
    assert_eq!(code, 0);
    assert_eq!(listed["lineages"][0]["fenced_at"].as_u64(), Some(fence), "{listed}");
    let Scene { dir, mut cluster, .. } = scene;
    cluster.stop();
    let cluster = restarted(cluster, &dir.path().join("new"), &["--offsite", &url, "--offsite-labels", "site=y"]);
    assert_eq!(found(&cluster.client()).await, (0..50).collect::<Vec<_>>());
    put(&cluster.client(), 50..55).await;
    wait_for("the new history to be offsite", async || {
        let (_, listed) = json(&["backup", "ls", "--from", &url]);
        let lineages = listed["lineages"].as_array().cloned().unwrap_or_default();
        lineages.iter().any(|one| !one["parent"].is_null() && one["log_segments"].as_u64() > Some(0))
    })
    .await;
    assert_eq!(json(&["backup", "verify", "--from", &url]).0, 0);
    // Twice would make two histories out of one.
    let other = format!("{new}2");
    let again = [&base[..6], &["--data", other.as_str(), "--confirm", "dev"]].concat();
    let (code, _, stderr) = holdfast(&again);
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("goes on from this history already") && stderr.contains("--again"), "{stderr}");
}

/// A copy of an archive as it was before the last segment came.
fn copy_without_newest_segment(vault: &Path, copy: &Path) {
    copy_folder(vault, copy);
    let newest = Part::Segment.files(copy).expect("lists").pop().expect("a segment");
    std::fs::remove_file(newest).expect("removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_beyond_the_archive_is_joined_to_it() {
    let offsite = tempfile::tempdir().expect("tempdir");
    let url = format!("file://{}", offsite.path().join("vault").display());
    let slow = ["--offsite", &url, "--set", "ship.interval_ms=60000"];
    let mut scene = Scene::new(&slow).await;
    let (committed, loss) = scene.foretold();
    let (survivor, new) = (scene.survivor(), scene.path("new"));
    let base = ["cluster", "recover", "--survivor", survivor.as_str(), "--from", &url, "--data", &new];

    // A node that still runs is no survivor, and neither is a folder of something else.
    let running = scene.cluster.nodes[scene.others[0]].data_dir.display().to_string();
    let (code, _, stderr) = holdfast(&["cluster", "recover", "--survivor", &running, "--data", &new]);
    assert_eq!(code, 8, "{stderr}");
    let elsewhere = offsite.path().join("vault").display().to_string();
    let (code, _, stderr) = holdfast(&["cluster", "recover", "--survivor", &elsewhere, "--data", &new]);
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("is no data directory of a node"), "{stderr}");
    let stranger = format!("file://{}", scene.path("empty"));
    std::fs::create_dir(scene.path("empty")).expect("made");
    let wrong = ["cluster", "recover", "--survivor", survivor.as_str(), "--from", &stranger, "--data", &new];
    let (code, _, stderr) = holdfast(&wrong);
    assert_eq!(code, 7, "{stderr}");

    scene.cluster.kill_together(&scene.others);
    // A directory that cannot be filled is found before the old history is ended.
    let used = scene.path("c");
    let (code, _, stderr) = holdfast(&[&base[..6], &["--data", used.as_str(), "--confirm", "dev"]].concat());
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("restore into an empty directory"), "{stderr}");
    assert!(json(&["backup", "ls", "--from", &url]).1["lineages"][0]["fenced_at"].is_null());

    scene.destroy_others();
    let (code, report) = json(&[&base[..], &["--confirm", "dev"]].concat());
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["plan"]["archives"][0]["joint"], "behind", "{report}");
    assert_eq!(report["last_index"].as_u64(), Some(committed - loss), "{report}");
    assert_eq!(json(&["backup", "verify", "--from", &url]).0, 0, "what was added is whole");
    let Scene { dir, cluster, .. } = scene;
    let cluster = restarted(cluster, &dir.path().join("new"), &[]);
    assert_eq!(found(&cluster.client()).await, (0..30).collect::<Vec<_>>());
}
