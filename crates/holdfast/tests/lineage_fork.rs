//! Voters that lost a committed, shipped tail and wrote on: the archive holds another history than they do. Nothing is
//! written, shipped or purged any more, everybody says so, and an operator chooses which of the two goes on.

mod cluster;
mod node_disks;

use std::path::{Path, PathBuf};

use cluster::{Cluster, contact, copy_folder, holdfast, holdfast_json, wait_for, wait_offsite};
use holdfast_client::Error;
use node_disks::{restart, said, wait_started};

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

async fn write(cluster: &Cluster, id: &str) -> u64 {
    cluster.client().put(contact("ann", id), "text/plain", id.as_bytes().to_vec()).await.expect("written").commit_index
}

async fn has(cluster: &Cluster, id: &str) -> bool {
    cluster.client().get(contact("ann", id)).await.expect("readable").is_some()
}

/// Two of three nodes, which all went back to a moment before the last entries of the archive.
struct Scene {
    dir: tempfile::TempDir,
    cluster: Cluster,
    offsite: PathBuf,
    /// Last entry that the archive holds.
    shipped: u64,
    left: [usize; 2],
}

impl Scene {
    /// The two are not started yet. Where the third is, nobody knows: with its disk, it would tell them.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let offsite = dir.path().join("offsite");
        let args = ["--offsite", &url(&offsite), "--set", "ship.interval_ms=100"];
        let mut cluster = Cluster::start(&dir.path().join("c"), &args);
        wait_offsite(&cluster, write(&cluster, "kept").await).await;
        cluster.wait_converged().await;
        let gone = cluster.leader().await;
        let left = [(gone + 1) % 3, (gone + 2) % 3];
        // Who does not know that anything was ever shipped makes the archive's folder anew where it is missing.
        for place in left {
            wait_for("the fact of an archive", async || {
                let status = cluster.status(place).await;
                status.is_some_and(|status| status.destinations.first().is_some_and(|one| one.durable_index > 0))
            })
            .await;
        }
        let earlier = dir.path().join("earlier");
        cluster.kill_together(&left);
        for place in left {
            copy_folder(&cluster.nodes[place].data_dir, &earlier.join(place.to_string()));
            restart(&mut cluster, place);
        }
        cluster.wait_converged().await;
        for number in 0..20 {
            write(&cluster, &format!("lost{number}")).await;
        }
        let shipped = write(&cluster, "lost").await;
        wait_offsite(&cluster, shipped).await;
        cluster.kill_together(&[0, 1, 2]);
        for place in left {
            let data = &cluster.nodes[place].data_dir;
            std::fs::remove_dir_all(data).expect("removed");
            copy_folder(&earlier.join(place.to_string()), data);
        }
        Self { dir, cluster, offsite, shipped, left }
    }

    async fn start_the_two(&mut self) {
        for place in self.left {
            restart(&mut self.cluster, place);
        }
        for place in self.left {
            wait_started(&self.cluster, place).await;
        }
    }

    fn admins(&self) -> String {
        self.left.map(|place| self.cluster.nodes[place].admin.clone()).join(",")
    }

    async fn wait_fork(&self) {
        wait_for("every node that runs to know of the fork", async || {
            for place in self.left {
                let status = self.cluster.status(place).await;
                if status.is_none_or(|status| status.groups[0].lineage_fork.is_none()) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// What every surface says of a fork.
    async fn check_told(&self) {
        let client = self.cluster.client();
        let error = client.put(contact("ann", "refused"), "text/plain", "x").await.expect_err("writes have stopped");
        assert!(matches!(&error, Error::Precondition { reason, .. } if reason == "LINEAGE_FORK"), "{error:?}");
        assert!(client.delete(contact("ann", "kept")).await.is_err(), "a delete is a write");
        assert!(has(&self.cluster, "kept").await, "reads go on");
        let clients = self.left.map(|place| self.cluster.nodes[place].client.clone()).join(",");
        let place = ["--endpoint", &clients, "--user", "ann"];
        let file = self.dir.path().join("payload").display().to_string();
        std::fs::write(&file, "x").expect("writes");
        let put = [&["record", "put", "--collection", "contacts", "--id", "c", "--file", &file][..], &place].concat();
        let (code, answer, stderr) = holdfast_json(&put);
        assert_eq!((code, answer["error"]["reason"].as_str()), (3, Some("LINEAGE_FORK")), "{answer}{stderr}");
        assert!(stderr.contains("holdfast: LINEAGE_FORK: "), "{stderr}");

        let (code, health, stderr) = holdfast_json(&["cluster", "health", "--endpoint", &self.admins()]);
        assert_eq!((code, health["verdict"].as_str()), (3, Some("unsafe")), "{health}{stderr}");
        let forks: Vec<_> = health["checks"].as_array().expect("checks").iter().collect();
        let forks: Vec<_> = forks.into_iter().filter(|check| check["check_id"] == "LINEAGE_FORK").collect();
        assert_eq!((forks.len(), forks[0]["severity"].as_str()), (1, Some("error")), "told once: {health}");
        let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &self.admins()]);
        assert!(code != 0 && stderr.contains("forked"), "{code} {stderr}");
        let leader = self.cluster.leader().await;
        let status = self.cluster.status(leader).await.expect("it answers");
        let told = &status.destinations[0];
        assert!(told.last_error.starts_with("LINEAGE_FORK") && told.verified_index == 0, "{told:?}");
    }

    /// What lies in the archive, byte by byte.
    fn objects(&self) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
        let mut found = std::collections::BTreeMap::new();
        let mut folders = vec![self.offsite.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("lists").flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    found.insert(entry.path(), std::fs::read(entry.path()).expect("reads"));
                }
            }
        }
        found
    }
}

/// Their log ends before that of the archive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_lost_a_shipped_tail_stop_writing_and_the_archive_goes_on() {
    let mut scene = Scene::new().await;
    let before = scene.objects();
    scene.start_the_two().await;
    scene.wait_fork().await;
    scene.check_told().await;
    assert!(!has(&scene.cluster, "lost").await, "these two lost it");
    let log = said(&scene.cluster, scene.left[0]) + &said(&scene.cluster, scene.left[1]);
    assert!(log.contains("offsite.fork") && log.contains("ahead of everything that is committed"), "{log}");

    // It is a fact of the group, and not of a process.
    for place in scene.left {
        scene.cluster.kill(place);
    }
    scene.start_the_two().await;
    scene.wait_fork().await;
    scene.check_told().await;
    assert_eq!(scene.objects(), before, "the archive is what it was");

    // Everything that was acknowledged comes back from it, and is written on.
    let (from, new) = (url(&scene.offsite), scene.dir.path().join("new"));
    scene.cluster.kill_together(&scene.left);
    let (data, port) = (new.display().to_string(), scene.cluster.port_base().to_string());
    let run = ["restore", "run", "--from", &from, "--data", &data, "--port-base", &port];
    let (code, report, stderr) = holdfast_json(&run);
    assert_eq!((code, report["last_index"].as_u64() >= Some(scene.shipped)), (0, true), "{report}{stderr}");
    let args = ["--offsite", &from, "--set", "ship.interval_ms=100"];
    let cluster = Cluster::start_after(scene.cluster, &new, &args);
    assert!(has(&cluster, "kept").await && has(&cluster, "lost").await);
    wait_offsite(&cluster, write(&cluster, "later").await).await;
    let (code, report, stderr) = holdfast(&["backup", "verify", "--from", &from]);
    assert_eq!(code, 0, "{report}{stderr}");
}

/// They wrote on, beyond the end of the archive, while it could not be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_over_a_shipped_tail_is_a_fork_at_any_length() {
    let mut scene = Scene::new().await;
    let before = scene.objects();
    let away = scene.dir.path().join("away");
    std::fs::rename(&scene.offsite, &away).expect("goes away");
    scene.start_the_two().await;
    while write(&scene.cluster, "over it").await <= scene.shipped + 5 {}
    let retried = scene.cluster.client();
    std::fs::rename(&away, &scene.offsite).expect("comes back");
    scene.wait_fork().await;
    scene.check_told().await;
    assert!(has(&scene.cluster, "over it").await, "what they wrote is there to be read");
    assert_eq!(retried.get(contact("ann", "lost")).await.expect("readable"), None);
    assert_eq!(scene.objects(), before, "the archive is what it was");
    let log = said(&scene.cluster, scene.left[0]) + &said(&scene.cluster, scene.left[1]);
    assert!(log.contains("are not this node's history"), "{log}");

    // The nodes' history goes on, where that was chosen, and has copies of its own.
    scene.cluster.kill_together(&scene.left);
    let (from, new) = (url(&scene.offsite), scene.dir.path().join("new"));
    let survivors = scene.left.map(|place| scene.cluster.nodes[place].data_dir.display().to_string());
    let data = new.display().to_string();
    let recover = ["cluster", "recover", "--data", &data, "--confirm", "dev", "--survivor", &survivors[0]];
    let (code, report, stderr) = holdfast_json(&[&recover[..], &["--survivor", &survivors[1]]].concat());
    assert_eq!((code, report["last_index"].as_u64() > Some(scene.shipped)), (0, true), "{report}{stderr}");
    let args = ["--offsite", &from, "--set", "ship.interval_ms=100"];
    let cluster = Cluster::start_after(scene.cluster, &new, &args);
    assert!(has(&cluster, "kept").await && has(&cluster, "over it").await && !has(&cluster, "lost").await);
    wait_offsite(&cluster, write(&cluster, "later").await).await;
    let leader = cluster.leader().await;
    let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin]);
    assert_eq!(code, 0, "{stderr}");
    let (code, plan, stderr) = holdfast_json(&["restore", "plan", "--from", &from]);
    assert!(code == 0 && plan["last_index"].as_u64() > report["last_index"].as_u64(), "{plan}{stderr}");
}
