//! Encrypted offsite copies, end to end: nobody reads them without a key, and one recipient alone brings everything back.

mod cluster;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cluster::{Cluster, contact, copy_folder, holdfast, holdfast_json, wait_for, wait_offsite};
use serde_json::Value;

/// Random, and as long as chance cannot make twice.
const MARKER_BYTES: usize = 64;

/// A secret and three identities, as an operator makes them.
struct Custody {
    dir: PathBuf,
    recipients: Vec<String>,
}

impl Custody {
    fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a folder");
        let secret = dir.join("secret");
        let (code, _, stderr) = holdfast_json(&["backup", "keys", "new", "--out", secret.to_str().expect("a path")]);
        assert_eq!(code, 0, "{stderr}");
        let mode = std::fs::metadata(&secret).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "for its owner only");
        let (code, _, stderr) = holdfast_json(&["backup", "keys", "new", "--out", secret.to_str().expect("a path")]);
        assert!(code == 8 && stderr.contains("it may hold a key"), "never overwritten: {stderr}");
        let recipients = ["drill", "safe", "vault"].map(|name| {
            let (code, made, stderr) =
                holdfast_json(&["backup", "keys", "identity", "--out", dir.join(name).to_str().expect("a path")]);
            assert_eq!(code, 0, "{stderr}");
            made["recipient"].as_str().expect("a recipient").to_owned()
        });
        Self { dir: dir.to_owned(), recipients: recipients.to_vec() }
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn set(&self) -> String {
        format!("ship.key_file={}", self.file("secret"))
    }

    /// Says for whom what a cluster ships is encrypted.
    async fn create(&self, cluster: &Cluster) -> (i32, Value, String) {
        let leader = cluster.leader().await;
        let [drill, safe, vault] = self.recipients.as_slice() else { unreachable!("three") };
        let endpoint = &cluster.nodes[leader].admin;
        holdfast_json(&[
            "backup",
            "keys",
            "create",
            "--endpoint",
            endpoint,
            "--drill",
            drill,
            "--offline",
            safe,
            "--offline",
            vault,
        ])
    }
}

fn marker() -> [u8; MARKER_BYTES] {
    let mut marker = [0; MARKER_BYTES];
    getrandom::fill(&mut marker).expect("random");
    // Ids are text: letters, one of 32 each.
    marker.map(|byte| b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(byte % 32)])
}

/// Every file below a folder, as its name and bytes.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(dir).expect("lists") {
        let path = item.expect("item").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).expect("reads")));
        }
    }
    found
}

fn holds(bytes: &[u8], marker: &[u8]) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shipped_tells_nothing_and_one_recipient_brings_it_all_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let offsite = dir.path().join("offsite");
    let from = format!("file://{}", offsite.display());
    let custody = Custody::new(&dir.path().join("custody"));
    let key_file = custody.set();
    let args =
        ["--offsite", &from, "--set", "ship.interval_ms=100", "--set", "ship.compression=none", "--set", &key_file];
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    let [user, id, payload] = std::array::from_fn(|_| marker());
    let [user, id] = [user, id].map(|text| String::from_utf8(text.to_vec()).expect("letters"));
    let record = contact(&user, &id);
    let client = cluster.client();
    let first = client.put(record, "text/plain", payload.to_vec()).await.expect("written").commit_index;

    // A secret, and nobody who could open what it seals: nothing leaves, and the node says why.
    wait_for("the shipper to say what it lacks", async || {
        let Some(leader) = cluster.leader_now().await else { return false };
        let Some(status) = cluster.status(leader).await else { return false };
        status.destinations.iter().all(|told| told.last_error.contains("backup keys create"))
    })
    .await;
    assert!(!offsite.exists() || files(&offsite).is_empty(), "something was shipped");
    let leader = cluster.leader().await;
    let endpoint = cluster.nodes[leader].admin.clone();
    let (code, shown, _) = holdfast_json(&["backup", "keys", "show", "--endpoint", &endpoint]);
    assert_eq!((code, shown["encrypted"].as_bool()), (7, Some(false)));
    let one = ["backup", "keys", "create", "--endpoint", &endpoint, "--drill", &custody.recipients[0]];
    let (code, _, stderr) = holdfast_json(&one);
    assert!(code == 3 && stderr.contains("TOO_FEW_RECIPIENTS"), "{code} {stderr}");

    let (code, made, stderr) = custody.create(&cluster).await;
    assert_eq!(code, 0, "{stderr}");
    let generation = made["generation"].as_u64().expect("a generation");
    let (code, _, stderr) = custody.create(&cluster).await;
    assert!(code == 8 && stderr.contains("rotate"), "{code} {stderr}");
    let (code, shown, _) = holdfast_json(&["backup", "keys", "show", "--endpoint", &endpoint]);
    assert!(code == 0 && shown["usable"] == true && shown["generation"] == generation, "{shown}");
    wait_offsite(&cluster, first).await;
    let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &endpoint]);
    assert_eq!(code, 0, "{stderr}");
    let (code, rotated, stderr) = holdfast_json(&["backup", "keys", "rotate", "--endpoint", &endpoint]);
    assert!(code == 0 && rotated["generation"] == generation + 1, "{rotated}{stderr}");
    let second = client.put(contact("bob", "b"), "text/plain", payload.to_vec()).await.expect("written").commit_index;
    wait_offsite(&cluster, second).await;
    cluster.stop();

    let objects = files(&offsite);
    for (name, bytes) in &objects {
        for marker in [user.as_bytes(), id.as_bytes(), &payload[..]] {
            assert!(!holds(bytes, marker) && !holds(name.as_bytes(), marker), "{name}");
        }
    }
    assert!(objects.iter().filter(|(name, _)| name.ends_with("KEYS.age")).count() == 2, "one a generation");

    let (code, report, _) = holdfast_json(&["backup", "verify", "--from", &from]);
    assert!(code == 10 && report["locked"].as_u64() > Some(0) && report["bad"] == serde_json::json!([]), "{report}");
    let (code, listed, _) = holdfast_json(&["backup", "ls", "--from", &from]);
    assert!(code == 10 && listed["lineages"][0]["snapshots"][0]["locked"] == true, "{listed}");
    for name in ["drill", "safe", "vault"] {
        let identity = custody.file(name);
        let (code, proof, stderr) =
            holdfast_json(&["backup", "keys", "prove", "--from", &from, "--identity", &identity]);
        assert!(code == 0 && proof["proved"] == 2, "{proof}{stderr}");
        let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &from, "--identity", &identity]);
        assert!(code == 0 && report["locked"] == 0, "{report}{stderr}");
    }

    // Without a key, with a stranger's: refused before anything is written.
    let stranger = Custody::new(&dir.path().join("stranger"));
    let (target, port) = (dir.path().join("restored"), cluster.port_base().to_string());
    let data = target.display().to_string();
    let run = ["restore", "run", "--from", &from, "--data", &data, "--port-base", &port];
    for keys in [vec![], vec!["--identity", "safe"], vec!["--key-file", "secret"]] {
        let named: Vec<String> = keys.chunks(2).flat_map(|pair| [pair[0].to_owned(), stranger.file(pair[1])]).collect();
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        let (code, _, stderr) = holdfast(&[&run[..], &named].concat());
        assert!(code == 6 && stderr.contains("KEYS.age"), "{code} {stderr}");
        assert!(!target.exists() || files(&target).is_empty(), "it wrote something");
        let (code, ..) = holdfast_json(&[&["restore", "plan", "--from", &from][..], &named].concat());
        assert_eq!(code, 6);
    }
    let (code, proof, _) =
        holdfast_json(&["backup", "keys", "prove", "--from", &from, "--identity", &stranger.file("vault")]);
    assert!(code == 6 && proof["proved"] == 0, "{proof}");

    // Everything else is gone: one identity and the archive.
    let identity = custody.file("vault");
    let (code, restored, stderr) = holdfast_json(&[&run[..], &["--identity", &identity]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(restored["last_index"].as_u64() >= Some(second), "{restored}");
    let mut restored = Cluster::start_after(cluster, &target, &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    let found = restored.client().get(record).await.expect("read").expect("restored");
    assert_eq!(found.payload, payload.as_slice());
    // It was encrypted: it ships nothing that is not, until its nodes have the secret again.
    wait_for("the restored cluster to say what it lacks", async || {
        let Some(leader) = restored.leader_now().await else { return false };
        let Some(status) = restored.status(leader).await else { return false };
        status.destinations.iter().all(|told| told.last_error.contains("lacks its secret"))
    })
    .await;
    let before = files(&offsite).len();
    restored.stop();
    assert_eq!(files(&offsite).len(), before, "it shipped something");
    let args = ["--offsite", &from, "--set", "ship.interval_ms=100", "--set", &key_file];
    let mut again = Cluster::start_after(restored, &target, &args);
    let third = again.client().put(contact("bob", "c"), "text/plain", "more".to_owned()).await.expect("written");
    wait_offsite(&again, third.commit_index).await;
    let leader = again.leader().await;
    let (code, shown, _) = holdfast_json(&["backup", "keys", "show", "--endpoint", &again.nodes[leader].admin]);
    assert!(
        code == 0 && shown["current"] == true && shown["recipients"][2]["recipient"] == custody.recipients[2].as_str()
    );
    again.stop();
    let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &from, "--identity", &identity]);
    assert!(code == 0 && report["locked"] == 0 && report["lineages"] == 2, "{report}{stderr}");
}

/// A destination that lacks the newest keys and the end of the log: a dry run brings it neither, and a recovery both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_adds_encrypted_entries_and_its_dry_run_writes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let offsite = dir.path().join("offsite");
    let from = format!("file://{}", offsite.display());
    let custody = Custody::new(&dir.path().join("custody"));
    let key_file = custody.set();
    let args = ["--offsite", &from, "--set", "ship.interval_ms=100", "--set", &key_file];
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    let (code, _, stderr) = custody.create(&cluster).await;
    assert_eq!(code, 0, "{stderr}");
    let client = cluster.client();
    let first = client.put(contact("alice", "a"), "text/plain", "one".to_owned()).await.expect("written").commit_index;
    wait_offsite(&cluster, first).await;
    let before = dir.path().join("before");
    copy_folder(&offsite, &before);
    let leader = cluster.leader().await;
    let (code, _, stderr) = holdfast_json(&["backup", "keys", "rotate", "--endpoint", &cluster.nodes[leader].admin]);
    assert_eq!(code, 0, "{stderr}");
    let last = client.put(contact("alice", "b"), "text/plain", "two".to_owned()).await.expect("written").commit_index;
    wait_offsite(&cluster, last).await;
    cluster.wait_converged().await;
    cluster.stop();
    // A disk of the destination that went back.
    std::fs::remove_dir_all(&offsite).expect("removes");
    copy_folder(&before, &offsite);
    let (there, new) = (files(&offsite), dir.path().join("new"));

    let survivor = cluster.nodes[0].data_dir.display().to_string();
    let (data, port) = (new.display().to_string(), cluster.port_base().to_string());
    let recover =
        ["cluster", "recover", "--survivor", &survivor, "--from", &from, "--data", &data, "--port-base", &port];
    let (code, _, stderr) = holdfast(&[&recover[..], &["--confirm", "dev"]].concat());
    assert!(code == 6 && stderr.contains("KEYS.age"), "{code} {stderr}");
    let secret = custody.file("secret");
    let with_key = [&recover[..], &["--key-file", &secret]].concat();
    let (code, plan, stderr) = holdfast_json(&[&with_key[..], &["--dry-run"]].concat());
    assert!(code == 0 && plan["last_index"].as_u64() >= Some(last), "{plan}{stderr}");
    assert_eq!(files(&offsite), there, "a dry run writes nothing, and neither does one without a key");

    let (code, _, stderr) = holdfast(&[&with_key[..], &["--confirm", "dev"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let identity = custody.file("safe");
    let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &from, "--identity", &identity]);
    assert!(code == 0 && report["locked"] == 0, "{report}{stderr}");
    let (code, proof, _) = holdfast_json(&["backup", "keys", "prove", "--from", &from, "--identity", &identity]);
    assert!(code == 0 && proof["proved"] == 2, "{proof}");
    let mut recovered = Cluster::start_after(cluster, &new, &[]);
    let found = recovered.client().get(contact("alice", "b")).await.expect("read").expect("recovered");
    assert_eq!(found.payload, b"two".as_slice());
    recovered.stop();
}
