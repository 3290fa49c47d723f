//! A staged restore: contacts are whole and served while large payloads of other collections are still coming, those are
//! said to be restoring and never served as empty, and in the end everything is as a restore in one piece makes it.

mod cluster;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cluster::{BINARY, Cluster, holdfast, holdfast_json, wait_for, wait_offsite};
use holdfast_client::{Client, Error, RecordRef, SyncOutcome, v1};
use holdfast_model::id::GroupId;
use holdfast_store::keyspace::Family;
use holdfast_store::{DataDir, RawRow, StateStore, open_checkpoint};

const KILLS: u64 = 10;
const PHOTOS: usize = 900;
const PHOTO_BYTES: usize = 20_000;
const USERS: [&str; 3] = ["ann", "bob", "cyd"];
const RESTORING: &str = "COLLECTION_RESTORING";

type Ledger = BTreeMap<(&'static str, &'static str, String), Vec<u8>>;

fn record<'a>(user: &'a str, collection: &'a str, id: &'a str) -> RecordRef<'a> {
    RecordRef { user, collection, record_id: id }
}

async fn put(client: &Client, ledger: &mut Ledger, collection: &'static str, number: usize, bytes: usize) -> u64 {
    let user = USERS[number % USERS.len()];
    let id = format!("r{number}");
    let mut payload = vec![0; bytes];
    blake3::Hasher::new().update(format!("{collection}{number}{bytes}").as_bytes()).finalize_xof().fill(&mut payload);
    let done = client.put(record(user, collection, &id), "image/jpeg", payload.clone()).await.expect("written");
    ledger.insert((user, collection, id), payload);
    done.commit_index
}

fn restore(from: &str, target: &Path, port: &str, log: &Path) -> Child {
    let mut command = Command::new(BINARY);
    command.args(["restore", "run", "--from", from, "--port-base", port, "--stage", "contacts", "--data"]).arg(target);
    let log = std::fs::File::create(log).expect("a log");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("runs")
}

/// Rows of all families but the group's own facts, of a node that does not run.
fn rows(data: &Path) -> Vec<RawRow> {
    let checkpoint = data.with_extension("checkpoint");
    let directory = DataDir::open(data).expect("a data directory");
    StateStore::open(&directory, GroupId(0)).expect("a state").checkpoint(&checkpoint).expect("a checkpoint");
    let rows = open_checkpoint(&checkpoint).expect("opens").scan().collect::<Result<Vec<_>, _>>().expect("reads");
    rows.into_iter().filter(|row| row.family != Family::Sys.tag()).collect()
}

/// What the cluster says is still held back, and how far it came; `None` = nobody says anything.
async fn held_back(cluster: &Cluster) -> Option<(Vec<String>, Vec<u8>)> {
    let leader = cluster.leader_now().await?;
    let group = cluster.status(leader).await?.groups.into_iter().next()?;
    let restoring = group.restoring.unwrap_or_default();
    Some((restoring.stages, restoring.through.to_vec()))
}

async fn check_all(client: &Client, ledger: &Ledger) {
    for ((user, collection, id), payload) in ledger {
        let found = client.get(record(user, collection, id)).await.expect("read").expect("there");
        assert!(found.payload == payload[..], "{user} {collection}/{id}");
    }
}

fn changes(user: &str, collections: &[&str], metadata_only: bool) -> v1::GetChangesRequest {
    let collections = collections.iter().map(|name| (*name).to_owned()).collect();
    v1::GetChangesRequest { user_id: user.into(), collections, metadata_only, ..Default::default() }
}

async fn page(client: &Client, request: v1::GetChangesRequest) -> v1::ChangesPage {
    match client.changes(request).await.expect("answered").outcome {
        SyncOutcome::Page(page) => page,
        other => panic!("no token, no resync: {other:?}"),
    }
}

fn is_restoring<T: std::fmt::Debug>(answer: Result<T, Error>) -> bool {
    match answer {
        Err(Error::Unavailable { reason, message }) => {
            let names = ["payloads of photos", "payloads of x-maps"];
            assert!(reason == RESTORING && names.iter().any(|name| message.contains(name)), "{reason}: {message}");
            true
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contacts_are_served_while_photos_are_still_coming() {
    let dir = tempfile::tempdir().expect("tempdir");
    let from = format!("file://{}", dir.path().join("offsite").display());
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    let (client, mut ledger) = (cluster.client(), Ledger::new());
    for number in 0..30 {
        put(&client, &mut ledger, "contacts", number, if number % 3 == 0 { 30_000 } else { 200 }).await;
        put(&client, &mut ledger, "x-maps", number, 9_000).await;
    }
    for number in 0..PHOTOS {
        put(&client, &mut ledger, "photos", number, PHOTO_BYTES).await;
    }
    put(&client, &mut ledger, "photos", 1000, 10).await;
    let back_up = async |cluster: &Cluster| {
        let leader = cluster.leader().await;
        holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin])
    };
    let (code, _, stderr) = back_up(&cluster).await;
    assert_eq!(code, 0, "{stderr}");
    // A layer over it, and a piece of log behind that.
    put(&client, &mut ledger, "photos", 7, PHOTO_BYTES + 1).await;
    client.delete(record(USERS[8 % 3], "photos", "r8")).await.expect("deleted");
    ledger.remove(&(USERS[8 % 3], "photos", "r8".to_owned()));
    let (code, _, stderr) = back_up(&cluster).await;
    assert_eq!(code, 0, "{stderr}");
    let newest = put(&client, &mut ledger, "photos", 9, PHOTO_BYTES + 2).await;
    wait_offsite(&cluster, newest).await;
    cluster.stop();
    let port = cluster.port_base().to_string();
    let (whole, target, log) = (dir.path().join("whole"), dir.path().join("staged"), dir.path().join("restore.log"));
    let data = whole.display().to_string();
    let (code, report, stderr) =
        holdfast_json(&["restore", "run", "--from", &from, "--port-base", &port, "--data", &data]);
    assert_eq!((code, report["records"].as_u64()), (0, Some(ledger.len() as u64)), "{report}{stderr}");

    // All but large payloads of other collections; whoever restores is killed while the directories are filled, and again
    // before the nodes are started.
    for kill in 0..4 {
        let mut running = restore(&from, &target, &port, &log);
        tokio::time::sleep(Duration::from_millis(30 + 60 * kill)).await;
        running.kill().expect("killed");
        running.wait().expect("ended");
    }
    let mut running = restore(&from, &target, &port, &log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_for("the restore to say that the nodes can be started", async || said().contains("start it")).await;
    running.kill().expect("killed");
    running.wait().expect("ended");
    let mut cluster = Cluster::start_after(cluster, &target, &["--offsite", &from]);
    let left = ["photos".to_owned(), "x-*".to_owned()];
    assert_eq!(held_back(&cluster).await, Some((left.to_vec(), Vec::new())));
    for place in 0..3 {
        let client = cluster.client_of(place).with_deadline(Duration::from_secs(2));
        for ((user, collection, id), payload) in ledger.iter().filter(|((_, name, _), _)| *name == "contacts") {
            let found = client.get(record(user, collection, id)).await.expect("read").expect("there");
            assert!(found.payload == payload[..], "{id}");
        }
        assert!(is_restoring(client.get(record("ann", "photos", "r0")).await), "never as empty");
        // What was written after the snapshot came with the log, and small payloads with their records.
        for id in ["r9", "r1000"] {
            let user = USERS[id[1..].parse::<usize>().expect("a number") % 3];
            let found = client.get(record(user, "photos", id)).await.expect("read").expect("there");
            assert!(found.payload == ledger[&(user, "photos", id.to_owned())][..], "{id}");
        }
        let list = |metadata_only| v1::ListRecordsRequest {
            user_id: "ann".into(),
            collection: "photos".into(),
            metadata_only,
            ..Default::default()
        };
        assert!(is_restoring(client.list_all(list(false)).await), "never as empty");
        let of_ann = ledger.keys().filter(|(user, collection, _)| *user == "ann" && *collection == "photos").count();
        assert_eq!(client.list_all(list(true)).await.expect("listed").len(), of_ann);
        assert!(is_restoring(client.changes(changes("ann", &[], false)).await), "never left out");
        let all = page(&client, changes("ann", &[], true)).await;
        assert_eq!(all.collections_restoring, ["photos", "x-maps"]);
        let contacts = page(&client, changes("ann", &["contacts"], false)).await;
        assert!(contacts.collections_restoring.is_empty() && contacts.records.len() == 10, "contacts are whole");
    }
    let endpoints: Vec<String> = cluster.nodes.iter().map(|node| node.admin.clone()).collect();
    let health = || holdfast(&["cluster", "health", "--endpoint", &endpoints.join(",")]).1;
    let clients: Vec<String> = cluster.nodes.iter().map(|node| node.client.clone()).collect();
    let began = std::time::Instant::now();
    let out = dir.path().join("exported").display().to_string();
    let export = ["record", "export", "--user", "ann", "--endpoint", &clients.join(","), "--out", &out];
    let (code, exported, stderr) = holdfast_json(&export);
    let restoring = serde_json::json!(["photos", "x-maps"]);
    assert_eq!((code, &exported["collections_restoring"]), (10, &restoring), "{exported}{stderr}");
    assert_eq!(exported["records"].as_u64(), Some(10), "contacts: {exported}");
    assert!(began.elapsed() < Duration::from_secs(8), "it was waited for what takes minutes");
    assert!(health().contains("RESTORING") && health().contains("photos, x-*"), "{}", health());
    let (code, _, stderr) = back_up(&cluster).await;
    assert!(code != 0 && stderr.contains("still being restored"), "{code}: {stderr}");
    // Life goes on: what people write meanwhile counts.
    let client = cluster.client();
    put(&client, &mut ledger, "photos", 12, 17).await;
    client.delete(record(USERS[13 % 3], "photos", "r13")).await.expect("deleted");
    ledger.remove(&(USERS[13 % 3], "photos", "r13".to_owned()));

    // Killed at any moment, with the leader killed in between, it goes on where it was.
    let (mut killed, mut midway) = (0, 0);
    for kill in 0..KILLS {
        let mut running = restore(&from, &target, &port, &log);
        // Every other one as soon as something came, whenever that is; the others at a moment of their own.
        if kill % 2 == 0 {
            let before = held_back(&cluster).await;
            wait_for("payloads to come", async || {
                held_back(&cluster).await.is_some_and(|now| Some(now) != before)
                    || running.try_wait().expect("waits").is_some()
            })
            .await;
        } else {
            tokio::time::sleep(Duration::from_millis(5 * kill)).await;
        }
        running.kill().expect("killed");
        killed += u64::from(!running.wait().expect("ended").success());
        midway += u64::from(held_back(&cluster).await.is_some_and(|(_, through)| !through.is_empty()));
        if kill == KILLS / 2 {
            let leader = cluster.leader().await;
            cluster.kill(leader);
            cluster.restart(leader);
        }
    }
    assert!(killed >= KILLS / 2, "{killed} of {KILLS} were killed before their end");
    assert!(midway > 0, "none was killed while payloads came");
    let data = target.display().to_string();
    let run = ["restore", "run", "--from", &from, "--port-base", &port, "--data", &data, "--stage", "contacts"];
    let (code, report, stderr) = holdfast_json(&run);
    assert_eq!((code, report["resumed"].as_bool()), (0, Some(true)), "{report}{stderr}");
    assert_eq!(held_back(&cluster).await, Some((Vec::new(), Vec::new())));
    cluster.wait_converged().await;
    assert!(!health().contains("RESTORING"), "{}", health());
    for place in 0..3 {
        check_all(&cluster.client_of(place), &ledger).await;
    }
    let endpoint = cluster.nodes[0].admin.clone();
    let (code, compared, stderr) = holdfast(&["integrity", "compare", "--endpoint", &endpoint]);
    assert_eq!(code, 0, "{compared}{stderr}");
    let (code, _, stderr) = back_up(&cluster).await;
    assert_eq!(code, 0, "{stderr}");
    let (code, report, stderr) = holdfast_json(&run);
    assert_eq!((code, report["payloads_brought"].as_u64()), (0, Some(0)), "nothing is left: {report}{stderr}");
    cluster.stop();
    // Row for row what a restore in one piece made, but for what was written since.
    let written = ["r12", "r13"].map(|id| id.as_bytes().to_vec());
    let untouched = |row: &RawRow| {
        row.family == Family::Rec.tag() && !written.iter().any(|id| row.key.ends_with(&[&b"photos\0"[..], id].concat()))
    };
    let of = |data: &Path| rows(data).into_iter().filter(untouched).collect::<Vec<_>>();
    let expected = of(&whole.join("n0"));
    assert!(expected.len() > PHOTOS);
    for place in 0..3 {
        assert_eq!(of(&target.join(format!("n{place}"))), expected, "node {place}");
    }
}
