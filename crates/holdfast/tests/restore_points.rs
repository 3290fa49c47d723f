//! Restores to an earlier entry or moment, and to the newest point that a damaged archive allows.

mod cluster;
mod node_disks;

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use cluster::{Cluster, contact, holdfast, holdfast_json, wait_for, wait_offsite};
use jepsen_tests::disk::corrupt::Part;
use jepsen_tests::s3::{S3, program};
use node_disks::{Spoilt, flip};

/// Clocks of one machine, as nodes hear them of each other, agree to far less.
const APART: Duration = Duration::from_millis(200);

async fn write(cluster: &Cluster, id: &str, value: &str) -> u64 {
    cluster.client().put(contact("alice", id), "text/plain", value.to_owned()).await.expect("written").commit_index
}

/// A moment after everything that was acknowledged before, and before everything that begins after.
async fn moment() -> String {
    let moment = Utc::now() + APART;
    wait_for("the next moment", async || Utc::now() > moment + APART).await;
    moment.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_ends_at_the_entry_or_the_moment_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = format!("file://{}", dir.path().join("offsite").display());
    let s3 = program().map(|program| S3::start(&program, &dir.path().join("s3"), "vault").expect("an S3 server"));
    let (mut args, mut from) = (vec!["--offsite".to_owned(), folder.clone()], vec![folder]);
    if let Some(s3) = &s3 {
        // The bucket is named last: the credentials are its own. It alone is restored from.
        let (url, credentials) = (s3.url("holdfast/prod"), s3.credentials().display().to_string());
        args.extend(["--offsite".to_owned(), url.clone(), "--set".to_owned()]);
        args.push(format!("offsite.credentials_file={credentials}"));
        from = vec![url, "--credentials".to_owned(), credentials];
    }
    args.extend(["--set".to_owned(), "ship.interval_ms=100".to_owned()]);
    let from: Vec<&str> = from.iter().map(String::as_str).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    let first = write(&cluster, "a", "one").await;
    write(&cluster, "b", "one").await;
    let leader = cluster.leader().await;
    let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin]);
    assert_eq!(code, 0, "{stderr}");
    let second = write(&cluster, "a", "two").await;
    let between = moment().await;
    let third = write(&cluster, "a", "three").await;
    wait_offsite(&cluster, third).await;
    cluster.stop();
    std::fs::remove_dir_all(dir.path().join("c")).expect("every node is lost");
    if s3.is_some() {
        std::fs::remove_dir_all(dir.path().join("offsite")).expect("the folder is lost too");
    }

    let plan = |at: &str| holdfast_json(&[&["restore", "plan", "--at", at, "--from"][..], &from].concat());
    for at in [first, second, third] {
        let (code, plan, stderr) = plan(&at.to_string());
        assert_eq!(
            (code, plan["last_index"].as_u64(), plan["checked"].as_bool()),
            (0, Some(at), Some(true)),
            "{stderr}"
        );
        assert_eq!(plan["snapshot_index"] == 0, at == first, "a snapshot beyond the point is of no use: {plan}");
    }
    let (code, of_moment, _) = plan(&between);
    let last = of_moment["last_index"].as_u64().expect("an index");
    assert!(code == 0 && (second..third).contains(&last), "{second} to {third}: {of_moment}");
    for (at, exit) in [("yesterday", 2), ("999999", 7), ("1999-12-31T23:59:59Z", 7)] {
        let (code, _, stderr) = plan(at);
        assert_eq!(code, exit, "{at}: {stderr}");
    }

    let mut gone = cluster;
    for (name, at, value, has_b) in [
        ("first", first.to_string(), "one", false),
        ("second", second.to_string(), "two", true),
        ("moment", between.clone(), "two", true),
        ("latest", "latest".to_owned(), "three", true),
    ] {
        let target = dir.path().join(name);
        let (data, port) = (target.display().to_string(), gone.port_base().to_string());
        let run = ["restore", "run", "--at", &at, "--data", &data, "--port-base", &port, "--from"];
        let (code, _, stderr) = holdfast_json(&[&run[..], &from].concat());
        assert_eq!(code, 0, "{at}: {stderr}");
        let mut restored = Cluster::start_after(gone, &target, &[]);
        let client = restored.client();
        let found = client.get(contact("alice", "a")).await.expect("read").expect("restored");
        assert_eq!(found.payload, value.as_bytes(), "--at {at}");
        assert_eq!(client.get(contact("alice", "b")).await.expect("read").is_some(), has_b, "--at {at}");
        restored.stop();
        gone = restored;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_log_is_damaged_a_restore_refuses_and_offers_the_point_before() {
    let dir = tempfile::tempdir().expect("tempdir");
    let offsite = dir.path().join("offsite");
    let from = format!("file://{}", offsite.display());
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    for write_number in 0..4 {
        let index = write(&cluster, "a", &format!("v{write_number}")).await;
        wait_offsite(&cluster, index).await;
    }
    cluster.stop();
    let segments = Part::Segment.files(&offsite).expect("lists");
    let damaged = &segments[segments.len() - 2];
    let name = damaged.file_name().expect("a name").to_string_lossy().into_owned();
    let good = name.parse::<u64>().expect("an index") - 1;
    Spoilt::new(damaged.clone(), flip(500, 1));

    let (code, plan, stderr) = holdfast_json(&["restore", "plan", "--from", &from]);
    assert_eq!((code, plan["newest_good_index"].as_u64()), (9, Some(good)), "{plan}{stderr}");
    assert!(plan["bad"][0]["object"].as_str().is_some_and(|object| object.ends_with(&name)), "{plan}");
    let (code, quick, _) = holdfast_json(&["restore", "plan", "--from", &from, "--quick"]);
    assert_eq!((code, quick["checked"].as_bool()), (0, Some(false)), "it reads no segment but the last: {quick}");

    let target = dir.path().join("restored");
    let (data, port) = (target.display().to_string(), cluster.port_base().to_string());
    let run = ["restore", "run", "--from", &from, "--data", &data, "--port-base", &port];
    let (code, _, stderr) = holdfast(&run);
    assert!(code == 9 && stderr.contains(&name) && stderr.contains(&format!("--at {good}")), "{code} {stderr}");
    let left: Vec<_> = std::fs::read_dir(&target).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "nothing may be written: {left:?}");

    let (at, lineage) = (good.to_string(), plan["lineage"].as_str().expect("a lineage").to_owned());
    let (code, done, stderr) = holdfast_json(&[&run[..], &["--at", &at, "--lineage", &lineage]].concat());
    assert_eq!((code, done["last_index"].as_u64()), (0, Some(good)), "{done}{stderr}");
}
