//! A vault that pulls a real cluster's copy, and outlives everything that the cluster's credentials reach.

mod cluster;

use std::path::Path;
use std::process::Command;

use cluster::{Cluster, contact, holdfast, wait_offsite, wait_until};
use holdfast_archive::prune::Trusted;
use holdfast_archive::retention::Policy;
use holdfast_archive::vault::{Pulled, renew};
use holdfast_archive::{Destination, DestinationConfig};
use holdfast_model::id::GroupId;
use jepsen_tests::s3::{S3, program};
use serde_json::Value;

const GROUP: GroupId = GroupId(0);

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

    // Locks of a day that were made a moment ago last. Eighteen hours later they end soon: everything is written once more.
    let (code, lasting) = pull(&["--renew-days", "30"]);
    assert_eq!(
        (code, lasting["renewed"].as_u64(), lasting["locked_until"].is_string()),
        (0, Some(0), true),
        "{lasting}"
    );
    let config = DestinationConfig::from_url(&vault).with_credentials(Some(s3.credentials().into()));
    let opened = Destination::open(&config).expect("opens");
    // Locks end at whole seconds: one that is made in the same second lasts no longer.
    let second = || chrono::Utc::now().timestamp();
    let locked = second();
    wait_until("the second to pass in which the last lock was made", || second() > locked);
    let now_ms = chrono::Utc::now().timestamp_millis() as u64;
    let hours = |hours: u64| now_ms + hours * 3_600_000;
    let mut pulled = Pulled::default();
    let (policy, trusted) = (Policy::default(), Trusted::new());
    let soon = renew(&opened, GROUP, &policy, &trusted, hours(18), 30 * 24 * 3_600_000, &mut pulled);
    soon.await.expect("renewed");
    assert_eq!((pulled.renewed, pulled.bad.len()), (lasting["present"].as_u64().expect("a number"), 0), "{pulled:?}");
    assert!(pulled.locked_until_ms.is_some_and(|until_ms| (hours(23)..hours(25)).contains(&until_ms)), "{pulled:?}");

    // Somebody shortens what the bucket gives to new versions: one that would end before the old one is no renewal.
    s3.lock_new("locked", "COMPLIANCE", 3).expect("set");
    let renewed = async |at_ms| {
        let mut pulled = Pulled::default();
        renew(&opened, GROUP, &policy, &trusted, at_ms, 30 * 24 * 3_600_000, &mut pulled).await.map(|()| pulled.renewed)
    };
    assert_eq!(renewed(hours(18)).await.expect("renewed"), pulled.renewed);
    s3.lock_new("locked", "COMPLIANCE", 1).expect("set");
    let error = renewed(hours(48)).await.expect_err("its lock is shorter").to_string();
    assert!(error.contains("not locked for longer"), "{error}");

    // The cluster, its credentials and all that these reach are gone.
    std::fs::remove_dir_all(dir.path().join("c")).expect("every node is lost");
    std::fs::remove_file(&own).expect("revoked");
    s3.wipe("source").expect("wiped");
    let (code, wiped) = pull(&["--renew-days", "0"]);
    assert_eq!((code, wiped["objects"].as_u64(), list(&wiped["lost"]).len() > 5), (3, Some(0), true), "{wiped}");
    let verify = ["backup", "verify", "--from", &vault, "--credentials", &credentials, "--level", "2", "--record"];
    let (code, report) = asked(&[&verify[..], &["--verifier-key", &key]].concat());
    assert_eq!(code, 0, "{report}");
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

/// Sites x with the nodes, y with the destination, z with the vault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_counts_while_its_owner_says_that_it_is_good() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| format!("file://{}", dir.path().join(name).display());
    let (from, vault) = (at("offsite"), at("vault"));
    let labels = "array=a1,site=x;array=a2,site=x;array=a3,site=x";
    let mut args = vec!["--labels", labels, "--offsite", &from, "--offsite-labels", "site=y,custody=ops"];
    args.extend(["--set", "ship.interval_ms=100", "--set", "verify.poll_ms=100"]);
    args.extend(["--set", "vault=far", "--set", "vault.labels=site=z,custody=auditor"]);
    let cluster = Cluster::start(&dir.path().join("c"), &args);
    let admins = cluster.nodes.iter().map(|node| node.admin.as_str()).collect::<Vec<_>>().join(",");
    let copy = || {
        let (_, listed) = asked(&["copies", "ls", "--endpoint", &admins]);
        let own = list(&listed["copies"]).iter().find(|one| one["kind"] == "vault").cloned();
        own.unwrap_or_else(|| panic!("{listed}"))
    };
    let survive = || asked(&["domain", "survive", "--lose", "site=x,site=y", "--endpoint", &admins]);
    let unverified = || {
        let (_, health) = asked(&["cluster", "health", "--endpoint", &admins]);
        let found = list(&health["checks"]).iter().find(|one| {
            one["check_id"] == "OFFSITE_UNVERIFIED" && one["evidence"].as_str().is_some_and(|text| text.contains("far"))
        });
        found.map(|one| one["severity"].as_str().unwrap_or_default().to_owned())
    };
    write(&cluster, "ann", 20).await;
    backup(&cluster).await;
    write(&cluster, "bob", 10).await;
    let key = dir.path().join("verifier.key").display().to_string();
    let (code, pulled) = asked(&["vault", "--from", &from, "--into", &vault, "--verifier-key", &key]);
    assert_eq!(code, 0, "{pulled}");
    // Nobody said anything of it yet.
    wait_until("the vault to be known as unproved", || copy()["counts"] == "no");
    assert_eq!((survive().0, unverified().as_deref()), (4, Some("error")), "what it holds is not known");

    let verify = || {
        let args = ["backup", "verify", "--from", &vault, "--level", "2", "--record", "--verifier-key", &key];
        asked(&[&args[..], &["--vault", "far", "--endpoint", &admins]].concat())
    };
    let (code, report) = verify();
    assert_eq!(code, 0, "{report}");
    wait_until("the vault to count", || copy()["counts"] == "yes");
    let (_, survived) = survive();
    let held = copy()["index"].as_u64().expect("an index");
    let scenario = &survived["scenarios"][0];
    let lost = scenario["loss_entries"].as_u64();
    assert!(held > 30 && lost.is_some_and(|lost| lost < 30), "{held} {survived}");
    assert!(scenario["copies_left"].as_array().is_some_and(|left| *left == ["far"]), "{survived}");
    assert_eq!(unverified(), None);
    // The copy that it was pulled out of is not proved by this: it is still new.
    let (_, listed) = asked(&["copies", "ls", "--endpoint", &admins]);
    let archive = list(&listed["copies"]).iter().find(|one| one["kind"] == "archive").expect("the archive");
    assert_eq!((&archive["counts"], &archive["proved"]), (&"new".into(), &Value::Null), "{listed}");
    let (code, ledger) = asked(&["copies", "ledger", "--from", &from]);
    assert_eq!((code, &ledger["entries"][0]["copy"]), (0, &"far".into()), "{ledger}");
    assert_eq!(asked(&["copies", "verify", "--from", &from]).0, 0);

    // A chunk rots in it: a drill finds out, and it counts no more.
    let chunk =
        files(&dir.path().join("vault")).into_iter().find(|path| path.display().to_string().contains("/chunk/"));
    let chunk = chunk.expect("a chunk");
    let mut bytes = std::fs::read(&chunk).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&chunk, bytes).expect("writes");
    let scratch = dir.path().display().to_string();
    let drill = ["drill", "run", "--from", &vault, "--verifier-key", &key, "--scratch", &scratch];
    let (code, answer) = asked(&[&drill[..], &["--vault", "far", "--endpoint", &admins]].concat());
    assert_eq!(code, 9, "{answer}");
    wait_until("the vault to count no more", || copy()["counts"] == "no");
    assert_eq!(survive().0, 4);
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for one in std::fs::read_dir(folder).expect("reads") {
        let path = one.expect("one").path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
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
