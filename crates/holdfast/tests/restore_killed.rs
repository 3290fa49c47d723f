//! A restore that is killed at any moment, again and again, and run once more in the end: the same rows as if nothing had
//! happened, and until then no directory that a node would serve from.

mod cluster;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster::{BINARY, Cluster, contact, holdfast, holdfast_json, wait_offsite};
use holdfast_archive::marker;
use holdfast_model::id::GroupId;
use holdfast_store::{DataDir, StateStore, open_checkpoint};

const KILLS: u32 = 10;
const RECORDS: usize = 1500;

fn data_dirs(target: &Path) -> Vec<PathBuf> {
    (0..3).map(|place| target.join(format!("n{place}"))).collect()
}

/// Position and hash of all rows of a directory that no node ever ran on.
fn root(data: &Path) -> (u64, blake3::Hash) {
    let checkpoint = data.with_extension("checkpoint");
    let directory = DataDir::open(data).expect("a data directory");
    StateStore::open(&directory, GroupId(0)).expect("a state").checkpoint(&checkpoint).expect("a checkpoint");
    let opened = open_checkpoint(&checkpoint).expect("opens");
    let mut hasher = blake3::Hasher::new();
    for row in opened.scan() {
        let row = row.expect("reads");
        hasher.update(&[row.family]);
        for part in [&row.key[..], &row.value[..]] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    (opened.applied().index(), hasher.finalize())
}

fn restore(from: &str, target: &Path, port: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["restore", "run", "--from", from, "--port-base", port, "--data"]).arg(target);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_ten_moments_it_ends_as_if_it_had_never_been() {
    let dir = tempfile::tempdir().expect("tempdir");
    let from = format!("file://{}", dir.path().join("offsite").display());
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    let client = cluster.client();
    let put = async |number: usize| {
        let payload = number.to_le_bytes().repeat(200);
        let done = client.put(contact("ann", &format!("c{number}")), "text/plain", payload).await;
        done.expect("written").commit_index
    };
    for number in 0..RECORDS / 2 {
        put(number).await;
    }
    let leader = cluster.leader().await;
    let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin]);
    assert_eq!(code, 0, "{stderr}");
    let mut newest = 0;
    for number in RECORDS / 2..RECORDS {
        newest = put(number).await;
    }
    wait_offsite(&cluster, newest).await;
    cluster.stop();
    let port = cluster.port_base().to_string();

    let (whole, target) = (dir.path().join("whole"), dir.path().join("killed"));
    let began = Instant::now();
    assert!(restore(&from, &whole, &port).status().expect("runs").success());
    let took = began.elapsed();
    let roots: Vec<_> = data_dirs(&whole).iter().map(|data| root(data)).collect();
    assert!(roots.iter().all(|one| *one == roots[0]) && roots[0].0 >= newest, "{roots:?}");

    let (mut killed, mut refused) = (0, 0);
    for kill in 0..KILLS {
        let mut running = restore(&from, &target, &port).spawn().expect("runs");
        // From its first moment to its last, in steps that are none of the machine's.
        std::thread::sleep(took * (2 * kill + 1) / (2 * KILLS));
        running.kill().expect("killed");
        killed += u32::from(!running.wait().expect("ended").success());
        // A directory that is half full is nobody's.
        let half = &data_dirs(&target)[0];
        if marker::read(half).expect("reads").is_some_and(|mark| mark.opening.is_none()) && refused < 2 {
            let data = half.display().to_string();
            let serve =
                ["serve", "--no-config", "--node-id", "1", "--data-dir", &data, "--listen-client", "127.0.0.1:0"];
            let listen =
                ["--listen-peer", "127.0.0.1:0", "--listen-admin", "127.0.0.1:0", "--listen-http", "127.0.0.1:0"];
            let mut served = Command::new(BINARY);
            served
                .args([&serve[..], &listen].concat())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut served = served.spawn().expect("runs");
            let end = Instant::now() + Duration::from_secs(30);
            let status = loop {
                if let Some(status) = served.try_wait().expect("waits") {
                    break status;
                }
                if Instant::now() >= end {
                    served.kill().expect("killed");
                    panic!("a node serves from {data}, which was half restored");
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            refused += u32::from(!status.success());
        }
    }
    assert!(killed >= KILLS / 2, "{killed} of {KILLS} were killed before their end");
    assert!(refused > 0, "no directory was half full");
    let data = target.display().to_string();
    let run = ["restore", "run", "--from", &from, "--port-base", &port, "--data", &data, "--progress"];
    let (code, report, stderr) = holdfast_json(&run);
    assert_eq!((code, report["records"].as_u64()), (0, Some(RECORDS as u64)), "{report}{stderr}");
    let stages = ["verify", "load", "replay"];
    assert!(stages.iter().all(|stage| report["stage_ms"][stage].is_u64()), "{report}");
    // The first line comes at once, and says what there is to do.
    let line: serde_json::Value = serde_json::from_str(stderr.lines().next().unwrap_or_default()).expect("JSON");
    let told = &line["progress"];
    assert!(told["stage"] == "verify" && told["total"].as_u64() > Some(0) && told["elapsed_ms"].is_u64(), "{stderr}");
    for data in data_dirs(&target) {
        assert_eq!(root(&data), roots[0], "{}", data.display());
    }
}
