//! Drills of real copies: good ones count, and those that nobody would come back from stop counting, with the reason.

mod cluster;

use std::path::{Path, PathBuf};

use cluster::{Cluster, contact, holdfast, holdfast_json, wait_offsite, wait_until};
use serde_json::Value;

struct Scene {
    dir: tempfile::TempDir,
    cluster: Cluster,
    from: String,
}

/// Three arrays at one site, a copy at another, in which a snapshot and a log behind it are.
async fn scene(sets: &[&str]) -> Scene {
    let dir = tempfile::tempdir().expect("tempdir");
    let from = format!("file://{}", dir.path().join("offsite").display());
    let labels = "array=a1,site=x;array=a2,site=x;array=a3,site=x";
    let mut args = vec!["--labels", labels, "--offsite", &from, "--offsite-labels", "site=y"];
    args.extend(["--set", "ship.interval_ms=100", "--set", "verify.poll_ms=100"]);
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let cluster = Cluster::start(&dir.path().join("c"), &args);
    Scene { dir, cluster, from }
}

impl Scene {
    async fn write(&self, user: &str, records: usize) {
        let client = self.cluster.client();
        let mut last = 0;
        for n in 0..records {
            let id = format!("c{n}");
            let put = client.put(contact(user, &id), "text/plain", format!("{user} {n}")).await.expect("written");
            last = put.commit_index;
        }
        wait_offsite(&self.cluster, last).await;
    }

    async fn backup(&self) {
        let leader = self.cluster.leader().await;
        let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &self.cluster.nodes[leader].admin]);
        assert_eq!(code, 0, "{stderr}");
    }

    fn key(&self) -> String {
        self.dir.path().join("verifier.key").display().to_string()
    }

    /// Exit code, and what was answered.
    fn drill(&self, more: &[&str]) -> (i32, Value) {
        let (key, scratch) = (self.key(), self.dir.path().display().to_string());
        let args = ["drill", "run", "--from", &self.from, "--verifier-key", &key, "--scratch", &scratch, "-o", "json"];
        let (code, stdout, stderr) = holdfast(&[&args[..], more].concat());
        let left: Vec<PathBuf> =
            std::fs::read_dir(self.dir.path()).expect("reads").map(|one| one.expect("one").path()).collect();
        assert!(!left.iter().any(|path| path.display().to_string().contains("holdfast-drill-")), "{left:?}");
        (code, serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")))
    }

    fn ask(&self, args: &[&str]) -> (i32, Value) {
        let admins: Vec<&str> = self.cluster.nodes.iter().map(|node| node.admin.as_str()).collect();
        let (code, answer, stderr) = holdfast_json(&[args, &["--endpoint", &admins.join(",")]].concat());
        assert!(!answer.is_null(), "{stderr}");
        (code, answer)
    }

    /// What losing all nodes would cost: exit code and acknowledged entries, `None` where nothing is left that counts.
    fn survive(&self) -> (i32, Value) {
        self.ask(&["domain", "survive", "--lose", "site=x"])
    }

    /// The copy outside, and the exit code that goes with it.
    fn copy(&self) -> (i32, Value) {
        let (code, listed) = self.ask(&["copies", "ls"]);
        let all = listed["copies"].as_array().cloned().unwrap_or_default();
        assert_eq!(all.iter().filter(|one| one["kind"] == "voter" && one["counts"] == "yes").count(), 3, "{listed}");
        (code, all.into_iter().find(|one| one["kind"] == "archive").expect("a copy outside"))
    }

    /// The check of the copy: severity and evidence.
    fn unverified(&self) -> Option<(String, String)> {
        self.check("OFFSITE_UNVERIFIED")
    }

    fn check(&self, id: &str) -> Option<(String, String)> {
        let (_, health) = self.ask(&["cluster", "health"]);
        let checks = health["checks"].as_array().cloned().unwrap_or_default();
        let check = checks.into_iter().find(|check| check["check_id"] == id)?;
        Some((check["severity"].as_str()?.to_owned(), check["evidence"].as_str()?.to_owned()))
    }

    fn objects(&self, part: &str) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut folders = vec![self.dir.path().join("offsite"), self.dir.path().join("share")];
        folders.retain(|folder| folder.exists());
        while let Some(folder) = folders.pop() {
            for one in std::fs::read_dir(folder).expect("reads") {
                let path = one.expect("one").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.display().to_string().contains(part) {
                    all.push(path);
                }
            }
        }
        all.sort();
        all
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).expect("writes");
}

fn told(answer: &Value, object: &Path) -> bool {
    let name = object.file_name().expect("a name").to_string_lossy().into_owned();
    let bad = answer["bad"].as_array().into_iter().flatten();
    bad.into_iter().any(|bad| bad["object"].as_str().is_some_and(|object| object.contains(&name)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_counts_after_a_good_drill_and_no_more_after_a_bad_one() {
    let scene = scene(&["verify.grace_ms=0"]).await;
    scene.write("ann", 30).await;
    scene.backup().await;
    scene.write("bob", 20).await;
    // Nobody has read it, and there is no grace: it does not count.
    wait_until("the copy to be known as unproved", || {
        scene.unverified().is_some_and(|(severity, why)| severity == "error" && why.contains("nobody ever proved"))
    });
    assert_eq!(scene.survive().0, 4, "what a copy that does not count may hold is not known");

    let plan = || holdfast_json(&["restore", "plan", "--from", &scene.from]).1;
    assert_eq!(plan()["eta_drill"], Value::Null);
    let (code, answer) = scene.drill(&[]);
    assert_eq!((code, &answer["good"], &answer["level"]), (0, &true.into(), &"drilled".into()), "{answer}");
    let drilled = plan();
    assert_eq!((&drilled["eta_drill"], drilled["eta_ms"].is_u64()), (&answer["ended"], true), "{drilled}");
    let times = &answer["drill"];
    assert_eq!((times["nodes"].as_u64(), times["records"].as_u64()), (Some(3), Some(50)), "{answer}");
    assert_eq!((times["people_read"].as_u64(), times["records_read"].as_u64()), (Some(2), Some(50)), "{answer}");
    assert!(times["restore_ms"].as_u64().is_some_and(|ms| ms > 0), "{answer}");
    wait_until("the copy to count", || scene.unverified().is_none());
    let left = scene.survive().1;
    assert_eq!(left["scenarios"][0]["recovery"], "restore run, from offsite", "{left}");
    assert_eq!(left["scenarios"][0]["loss_is_bound"], false, "{left}");
    let (code, copy) = scene.copy();
    assert_eq!((code, &copy["counts"], &copy["failed"]), (0, &"yes".into(), &Value::Null), "{copy}");
    for level in ["read", "proved", "drilled"] {
        assert_eq!(
            (&copy[level]["level"], &copy[level]["signed_by"]),
            (&"drilled".into(), &answer["signed_by"]),
            "{copy}"
        );
    }
    assert_eq!(copy["drilled"]["restore_ms"], times["restore_ms"], "{copy}");

    // A chunk that the newest snapshot needs is gone.
    let chunk = scene.objects("/chunk/").pop().expect("a chunk");
    let bytes = std::fs::read(&chunk).expect("reads");
    std::fs::remove_file(&chunk).expect("removed");
    let (code, answer) = scene.drill(&[]);
    assert!(code == 9 && answer["good"] == false && told(&answer, &chunk), "{code} {answer}");
    wait_until("the copy to stop counting", || {
        scene.unverified().is_some_and(|(severity, why)| severity == "error" && why.contains("a drill failed"))
    });
    let (code, copy) = scene.copy();
    assert_eq!((code, &copy["counts"]), (3, &"no".into()), "{copy}");
    assert!(copy["failed"]["reason"].as_str().is_some_and(|why| why.contains("missing")), "{copy}");
    let (code, left) = scene.survive();
    assert_eq!((code, &left["scenarios"][0]["recovery"]), (4, &"unknown".into()), "{left}");
    // A look that is less close does not make it good again; a drill does.
    std::fs::write(&chunk, bytes).expect("put back");
    let key = scene.key();
    let verify = |level: &str, from: &str| {
        let args = ["backup", "verify", "--from", from, "--level", level, "--record", "--verifier-key", &key];
        holdfast(&args)
    };
    let (code, _, stderr) = verify("2", &scene.from);
    assert_eq!(code, 0, "{stderr}");
    let (_, listed, _) = holdfast_json(&["drill", "ls", "--from", &scene.from]);
    let all = listed["verifications"].as_array().expect("a list");
    let seen: Vec<_> = all.iter().map(|one| (one["level"].as_str(), one["good"].as_bool())).collect();
    let expected = [("drilled", true), ("drilled", false), ("proved", true)];
    assert_eq!(seen, expected.map(|(level, good)| (Some(level), Some(good))), "{listed}");
    assert!(
        scene.unverified().is_some_and(|(_, why)| why.contains("a drill failed")),
        "it was restored by nobody since"
    );
    assert_eq!(scene.drill(&["--nodes", "1", "--people", "1"]).0, 0);
    wait_until("the copy to count again", || scene.unverified().is_none());

    // A segment behind the snapshot, and one that no restore of the newest point needs: both are read.
    for place in [0, 1] {
        let segments = scene.objects("/log/0/L0/");
        let segment = if place == 0 { segments.first() } else { segments.last() }.expect("a segment").clone();
        flip(&segment);
        let (code, answer) = scene.drill(&["--nodes", "1"]);
        assert!(code == 9 && told(&answer, &segment), "{code} {answer}");
        flip(&segment);
    }
    wait_until("the copy to stop counting", || scene.unverified().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_with_a_wrong_key_fails_and_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (secret, right, wrong) = (file("secret"), file("right"), file("wrong"));
    assert_eq!(holdfast(&["backup", "keys", "new", "--out", &secret]).0, 0);
    let identity = |out: &str| {
        let (code, made, stderr) = holdfast_json(&["backup", "keys", "identity", "--out", out]);
        assert_eq!(code, 0, "{stderr}");
        made["recipient"].as_str().expect("a recipient").to_owned()
    };
    let drill = identity(&right);
    identity(&wrong);
    let offline = [identity(&file("o1")), identity(&file("o2"))];
    let scene = scene(&[&format!("ship.key_file={secret}")]).await;
    let leader = scene.cluster.leader().await;
    let admin = scene.cluster.nodes[leader].admin.clone();
    let mut args = vec!["backup", "keys", "create", "--drill", &drill, "--endpoint", &admin];
    offline.iter().for_each(|one| args.extend(["--offline", one]));
    let (code, stdout, stderr) = holdfast(&args);
    assert_eq!(code, 0, "{stdout}{stderr}");
    scene.write("ann", 5).await;
    scene.backup().await;

    for given in [&["--identity", &wrong][..], &[]] {
        let (code, answer) = scene.drill(given);
        assert_eq!((code, &answer["good"]), (6, &false.into()), "{answer}");
        assert!(answer["bad"][0]["reason"].as_str().is_some_and(|why| why.contains("does not open it")), "{answer}");
    }
    wait_until("the copy to stop counting", || {
        scene.unverified().is_some_and(|(severity, why)| severity == "error" && why.contains("does not open it"))
    });
    let (code, answer) = scene.drill(&["--identity", &right]);
    assert_eq!(code, 0, "{answer}");
    wait_until("the copy to count", || scene.unverified().is_none());
}

/// The verifier may read, and nothing else: the cluster lays down what it found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_that_only_reads_has_the_cluster_record_what_it_found() {
    let scene = scene(&["verify.grace_ms=0"]).await;
    scene.write("ann", 3).await;
    scene.backup().await;
    let leader = scene.cluster.leader().await;
    // Any node does it.
    let admin = scene.cluster.nodes[(leader + 1) % 3].admin.clone();
    // As a share that is mounted read-only.
    let share = scene.dir.path().join("share");
    cluster::copy_folder(&scene.dir.path().join("offsite"), &share);
    let (from, key) = (format!("file://{}", share.display()), scene.key());
    let drill = |more: &[&str]| {
        let args = ["drill", "run", "--from", &from, "--nodes", "1", "--verifier-key", &key, "--endpoint", &admin];
        holdfast(&[&args[..], more].concat())
    };
    let (code, stdout, stderr) = drill(&["--destination", "bucket"]);
    assert!(code == 1 && stderr.contains("none of this node's destinations: offsite"), "{code} {stdout}{stderr}");
    let (code, stdout, stderr) = drill(&[]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    wait_until("the copy to count", || scene.unverified().is_none());
    assert_eq!(scene.objects("/verify/").len(), 1);
    let of_share = |path: &PathBuf| path.starts_with(&share);
    assert!(!scene.objects("/verify/").iter().any(of_share), "the share is as it was");
}

/// Where keys are named, a verification by another one is nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_that_are_named_are_believed() {
    let named = "ab".repeat(32);
    let scene = scene(&["verify.grace_ms=0", &format!("verify.keys={named}")]).await;
    scene.write("ann", 3).await;
    scene.backup().await;
    let (code, answer) = scene.drill(&["--nodes", "1"]);
    assert_eq!(code, 0, "{answer}");
    let leader = scene.cluster.leader().await;
    let log = scene.dir.path().join(format!("c/log/n{leader}.log"));
    wait_until("the leader to say so", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("copy.not_believed"))
    });
    assert!(scene.unverified().is_some_and(|(_, why)| why.contains("nobody ever proved")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_copy_counts_for_a_while_and_says_so() {
    let scene = scene(&[]).await;
    scene.write("ann", 3).await;
    wait_until("the copy to be known as new", || {
        scene
            .unverified()
            .is_some_and(|(severity, why)| severity == "warning" && why.contains("nobody has read it yet"))
    });
    let (code, health) = scene.ask(&["cluster", "health"]);
    assert_eq!(code, 0, "{health}");
    let (code, copy) = scene.copy();
    assert_eq!((code, &copy["counts"], &copy["lock"]), (0, &"new".into(), &Value::Null), "{copy}");
    // A folder is less than what is expected of a destination, and the cluster hears what the doctor found.
    let (code, _, stderr) = holdfast(&["backup", "doctor", "--from", &scene.from, "--verifier-key", &scene.key()]);
    assert_eq!(code, 3, "{stderr}");
    wait_until("the cluster to know what the doctor found", || {
        scene
            .check("OFFSITE_NOT_IMMUTABLE")
            .is_some_and(|(severity, why)| severity == "warning" && why.contains("append-only"))
    });
    let lock = &scene.copy().1["lock"];
    assert_eq!((&lock["verdict"], &lock["expect"]), (&"append-only".into(), &"immutable".into()), "{lock}");
    // What cannot be drilled proves nothing.
    let none = format!("{}/none", scene.from);
    let (code, _, stderr) = holdfast(&["drill", "run", "--from", &none, "--verifier-key", &scene.key()]);
    assert!(code == 2 && stderr.contains("is no folder"), "{code} {stderr}");
    assert_eq!(holdfast(&["drill", "ls", "--from", &scene.from]).0, 7);
}
