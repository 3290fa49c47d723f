//! A vault that pulls a real cluster's copy, and outlives everything that the cluster's credentials reach.

mod cluster;

use std::path::Path;
use std::process::Command;

use cluster::{Cluster, contact, holdfast, wait_offsite};
use jepsen_tests::s3::{S3, program};
use serde_json::Value;

fn asked(args: &[&str]) -> (i32, Value) {
    let (code, stdout, stderr) = holdfast(&[args, &["-o", "json"]].concat());
    (code, serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")))
}

async fn write(cluster: &Cluster, user: &str, records: usize) {
    let client = cluster.client();
    let mut last = 0;
    for n in 0..records {
        let put = client.put(contact(user, &format!("c{n}")), "text/plain", format!("{user} {n}")).await;
        last = put.expect("written").commit_index;
    }
    wait_offsite(cluster, last).await;
}

async fn backup(cluster: &Cluster) {
    let leader = cluster.leader().await;
    let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin]);
    assert_eq!(code, 0, "{stderr}");
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pulled_restores_when_the_source_is_wiped() {
    let Some(program) = program() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let s3 = S3::start(&program, &dir.path().join("s3"), "source").expect("an S3 server");
    s3.make_locked_bucket("locked", "COMPLIANCE").expect("made");
    let credentials = s3.credentials().display().to_string();
    // The cluster's own file: it goes with the cluster.
    let own = dir.path().join("own-credentials");
    std::fs::copy(&credentials, &own).expect("copies");
    let (source, vault) = (s3.url("prod"), s3.url_in("locked", "far"));
    let own_path = own.display().to_string();
    let set = format!("offsite.credentials_file={own_path}");
    let args = ["--offsite", &source, "--set", &set, "--set", "ship.interval_ms=100"];
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    let key = dir.path().join("verifier.key").display().to_string();
    let pull = |more: &[&str]| {
        let into = ["--into", &vault, "--into-credentials", &credentials, "--verifier-key", &key];
        asked(&[&["vault", "--from", &source, "--credentials", &credentials][..], &into, more].concat())
    };
    write(&cluster, "ann", 30).await;
    backup(&cluster).await;
    let (code, first) = pull(&["--renew-days", "0"]);
    assert_eq!((code, list(&first["bad"]).len()), (0, 0), "{first}");
    assert!(first["objects"].as_u64() > Some(5), "{first}");
    write(&cluster, "bob", 20).await;
    backup(&cluster).await;
    write(&cluster, "cid", 10).await;
    let (code, second) = pull(&["--renew-days", "0"]);
    assert_eq!((code, second["present"].as_u64() >= first["objects"].as_u64()), (0, true), "{second}");
    cluster.stop();
    let (code, last) = pull(&["--renew-days", "0"]);
    assert_eq!(code, 0, "{last}");

    // Locks of a day end within thirty: everything is written once more, and locked anew.
    let began = chrono::Utc::now();
    let (code, renewed) = pull(&["--renew-days", "30"]);
    assert_eq!((code, renewed["renewed"].as_u64() >= first["objects"].as_u64()), (0, true), "{renewed}");
    let until = renewed["locked_until"].as_str().and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
    let hours = (until.expect("a lock").to_utc() - began).num_minutes() as f64 / 60.0;
    assert!((23.9..24.5).contains(&hours), "{renewed}");

    // The cluster, its credentials and all that these reach are gone.
    std::fs::remove_dir_all(dir.path().join("c")).expect("every node is lost");
    std::fs::remove_file(&own).expect("revoked");
    s3.wipe("source").expect("wiped");
    let (code, wiped) = pull(&["--renew-days", "0"]);
    assert_eq!((code, wiped["objects"].as_u64(), list(&wiped["lost"]).len() > 5), (3, Some(0), true), "{wiped}");
    let verify = ["backup", "verify", "--from", &vault, "--credentials", &credentials, "--level", "2", "--record"];
    let (code, report) = asked(&[&verify[..], &["--verifier-key", &key]].concat());
    assert_eq!(code, 0, "{report}");
    // What a lock holds stays: one snapshot too many is marked, and then cannot go yet.
    let prune = |more: &[&str]| {
        let few = ["--hourly", "1", "--daily", "1", "--weekly", "1", "--monthly", "1", "--yearly", "1"];
        let from = ["backup", "prune", "--from", &vault, "--credentials", &credentials, "--verifier-key", &key];
        asked(&[&from[..], &few, more].concat())
    };
    let (code, pruned) = prune(&["--grace-days", "0"]);
    assert_eq!(code, 0, "{pruned}");
    restores(dir.path(), &vault, &credentials, cluster).await;
}

/// Everything that was written is there.
async fn restores(dir: &Path, from: &str, credentials: &str, lost: Cluster) {
    let (data, port) = (dir.join("restored"), lost.port_base().to_string());
    let target = data.display().to_string();
    let args =
        ["restore", "run", "--from", from, "--credentials", credentials, "--data", &target, "--port-base", &port];
    let (code, stdout, stderr) = holdfast(&args);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let cluster = Cluster::start_after(lost, &data, &[]);
    let client = cluster.client();
    for (user, records) in [("ann", 30), ("bob", 20), ("cid", 10)] {
        for n in 0..records {
            let found = client.get(contact(user, &format!("c{n}"))).await.expect("read").expect("restored");
            assert_eq!(found.payload, format!("{user} {n}").as_bytes(), "{user} {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_are_respected_and_versions_go_for_good() {
    let Some(program) = program() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let s3 = S3::start(&program, &dir.path().join("s3"), "plain").expect("an S3 server");
    s3.make_locked_bucket("locked", "COMPLIANCE").expect("made");
    s3.make_versioned_bucket("versioned").expect("made");
    let credentials = s3.credentials().display().to_string();
    let from = format!("file://{}", dir.path().join("offsite").display());
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    for user in ["ann", "bob", "cid"] {
        write(&cluster, user, 10).await;
        backup(&cluster).await;
    }
    cluster.stop();
    let key = dir.path().join("verifier.key").display().to_string();
    for (bucket, is_locked) in [("plain", false), ("versioned", false), ("locked", true)] {
        let at = s3.url_in(bucket, "far");
        let own = ["--credentials", &credentials, "--verifier-key", &key];
        let into = ["--into", &at, "--into-credentials", &credentials, "--verifier-key", &key, "--renew-days", "0"];
        let (code, pulled) = asked(&[&["vault", "--from", &from][..], &into].concat());
        assert_eq!(code, 0, "{bucket}: {pulled}");
        let record = ["backup", "verify", "--from", &at, "--level", "2", "--record"];
        assert_eq!(asked(&[&record[..], &own].concat()).0, 0);
        let prune = || {
            let few = ["--hourly", "1", "--daily", "1", "--weekly", "1", "--monthly", "1", "--yearly", "1"];
            asked(&[&["backup", "prune", "--from", &at, "--grace-days", "0"][..], &own, &few].concat())
        };
        let snapshots = |answer: &Value, state: &str| {
            let all = list(&answer["destinations"][0]["lineages"][0]["snapshots"]);
            all.iter().filter(|one| one["state"] == state).count()
        };
        let (code, marked) = prune();
        assert_eq!((code, snapshots(&marked, "mark")), (0, 1), "{bucket}: {marked}");
        let (code, second) = prune();
        let state = if is_locked { "held" } else { "delete" };
        assert_eq!((code, snapshots(&second, state)), (0, 1), "{bucket}: {second}");
        let held = list(&second["destinations"][0]["lineages"][0]["held"]);
        assert_eq!(
            held.iter().filter(|one| one["until"].is_string()).count(),
            usize::from(is_locked),
            "{bucket}: {second}"
        );
        let (_, listed) = asked(&["backup", "ls", "--from", &at, "--credentials", &credentials]);
        let left = list(&listed["lineages"][0]["snapshots"]).len();
        assert_eq!(left, if is_locked { 3 } else { 2 }, "{bucket}: {listed}");
        let (code, report) = asked(&["backup", "verify", "--from", &at, "--credentials", &credentials]);
        assert_eq!(code, 0, "{bucket}: {report}");
    }
}

#[test]
fn a_vault_is_another_place() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| format!("file://{}", dir.path().join(name).display());
    let (code, _, stderr) = holdfast(&["vault", "--from", &at("x"), "--into", &at("x/")]);
    assert!(code == 2 && stderr.contains("one place"), "{code} {stderr}");
    let (code, _, stderr) = holdfast(&["vault", "--from", &at("none"), "--into", &at("y")]);
    assert!(code == 2 && stderr.contains("none"), "{code} {stderr}");
    assert!(!dir.path().join("y").exists(), "nothing is made for a source that is not there");
    std::fs::create_dir(dir.path().join("empty")).expect("made");
    let key = dir.path().join("key").display().to_string();
    let (code, _, _) = holdfast(&["vault", "--from", &at("empty"), "--into", &at("y"), "--verifier-key", &key]);
    assert_eq!(code, 7);
    assert!(Command::new("ls").arg(dir.path().join("y")).output().is_ok_and(|output| output.stdout.is_empty()));
}
