//! Buckets, with a real S3 server: a cluster ships to one beside a folder while its leaders are killed, and comes back
//! from the bucket alone.

mod cluster;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::{Cluster, contact, holdfast, wait_for};
use jepsen_tests::s3::{S3, program};

const KILLS: usize = 3;
/// Writes are made until all kills are, and so many were acknowledged, however slow the machine is.
const WRITTEN_MIN: usize = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_alone_brings_back_what_was_written_while_leaders_were_killed() {
    let Some(program) = program() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let s3 = S3::start(&program, &dir.path().join("s3"), "vault").expect("an S3 server");
    let (bucket, folder) = (s3.url("holdfast/prod"), format!("file://{}", dir.path().join("offsite").display()));
    let credentials = s3.credentials().display().to_string();
    let set = format!("offsite.credentials_file={credentials}");
    let first = dir.path().join("c");
    // The bucket is named last: the credentials are its own.
    let args = ["--offsite", &folder, "--offsite", &bucket, "--set", &set, "--set", "ship.interval_ms=200"];
    let mut cluster = Cluster::start(&first, &args);

    let (client, ended) = (cluster.client(), std::sync::Arc::new(AtomicBool::new(false)));
    let writing = tokio::spawn({
        let ended = ended.clone();
        async move {
            let mut written = Vec::new();
            for n in 0.. {
                if ended.load(Ordering::Relaxed) && written.len() >= WRITTEN_MIN {
                    break;
                }
                let id = format!("c{n}");
                if let Ok(done) = client.put(contact("alice", &id), "text/plain", format!("v{n}")).await {
                    written.push((id, format!("v{n}"), done.commit_index));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            written
        }
    });
    for kill in 0..KILLS {
        let leader = cluster.leader().await;
        cluster.kill(leader);
        cluster.leader().await;
        cluster.restart(leader);
        if kill == 0 {
            cluster.wait_converged().await;
            let leader = cluster.leader().await;
            let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin]);
            assert_eq!(code, 0, "{stderr}");
        }
    }
    ended.store(true, Ordering::Relaxed);
    let written = writing.await.expect("writes");
    let newest = written.iter().map(|(_, _, index)| *index).max().expect("something was written");
    wait_for("the log to be at both", async || {
        let Some(leader) = cluster.leader_now().await else { return false };
        let Some(status) = cluster.status(leader).await else { return false };
        status.destinations.len() == 2 && status.destinations.iter().all(|one| one.verified_index >= newest)
    })
    .await;
    cluster.stop();
    std::fs::remove_dir_all(&first).expect("every node is lost");

    for from in [&folder, &bucket] {
        let mut command = vec!["backup", "verify", "--from", from, "--output", "json"];
        if *from == bucket {
            command.extend(["--credentials", &credentials]);
        }
        let (code, report, stderr) = holdfast(&command);
        assert_eq!(code, 0, "{report}{stderr}");
    }
    std::fs::remove_dir_all(dir.path().join("offsite")).expect("the folder is lost too");
    let second = dir.path().join("restored");
    let port = cluster.port_base().to_string();
    let target = second.display().to_string();
    let (code, stdout, stderr) = holdfast(&[
        "restore",
        "run",
        "--from",
        &bucket,
        "--credentials",
        &credentials,
        "--data",
        &target,
        "--port-base",
        &port,
    ]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let cluster = Cluster::start_after(cluster, &second, &[]);
    let client = cluster.client();
    for (id, value, _) in &written {
        let found = client.get(contact("alice", id)).await.expect("read").expect("restored");
        assert_eq!(found.payload, value.as_bytes(), "{id}");
    }
}

#[test]
fn what_is_wrong_with_a_bucket_has_its_own_exit_code() {
    let ls = |url: &str, credentials: &str| holdfast(&["backup", "ls", "--from", url, "--credentials", credentials]);
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("credentials");
    std::fs::write(&file, "aws_access_key_id = test\naws_secret_access_key = test\n").expect("written");
    let credentials = file.display().to_string();
    let (code, _, stderr) = ls("s3://vault/x?endpiont=http://127.0.0.1:1", &credentials);
    assert!(code == 2 && stderr.contains("endpiont"), "{code} {stderr}");
    let (code, _, stderr) = ls("s3://vault/x?endpoint=http://127.0.0.1:1", "/nowhere/credentials");
    assert!(code == 2 && stderr.contains("/nowhere/credentials"), "{code} {stderr}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let (code, _, stderr) = ls(&format!("s3://vault/x?endpoint=http://{free}"), &credentials);
    assert!(code == 5 && stderr.contains("cannot be reached"), "{code} {stderr}");
    let Some(program) = program() else { return };
    let s3 = S3::start(&program, &dir.path().join("s3"), "vault").expect("an S3 server");
    let (code, _, stderr) = ls(&s3.url("x"), &credentials);
    assert_eq!(code, 7, "there is nothing yet: {stderr}");
    let (code, _, stderr) = ls(&s3.url("x").replace("s3://vault", "s3://no-such-bucket"), &credentials);
    assert!(code == 7 && stderr.contains("no such bucket"), "{code} {stderr}");
}
