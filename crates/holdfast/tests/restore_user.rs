//! One person as they were at a point of the archive: as files, and as new writes that leave everybody else alone.

mod cluster;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use cluster::{Cluster, contact, holdfast, holdfast_json, wait_offsite};
use holdfast_client::{Client, RecordRef, v1};
use holdfast_wire::v1::mutation::Op;

/// Live records: id to payload and version.
async fn records(client: &Client, user: &str) -> BTreeMap<String, (Vec<u8>, u64)> {
    let request = v1::ListRecordsRequest { user_id: user.into(), collection: "contacts".into(), ..Default::default() };
    let listed = client.list_all(request).await.expect("listed").into_iter();
    listed.map(|one| (one.key.expect("a key").record_id, (one.payload.to_vec(), one.version))).collect()
}

fn payloads(records: &BTreeMap<String, (Vec<u8>, u64)>) -> BTreeMap<String, Vec<u8>> {
    records.iter().map(|(id, (payload, _))| (id.clone(), payload.clone())).collect()
}

async fn put(client: &Client, user: &str, id: &str, payload: &[u8]) -> u64 {
    client.put(contact(user, id), "text/plain", payload.to_vec()).await.expect("written").commit_index
}

async fn put_for(client: &Client, id: &str, ttl_seconds: u32) {
    let record = RecordRef { user: "ann", collection: "contacts", record_id: id };
    let put = v1::PutOp { content_type: "text/plain".into(), payload: "x".into(), ttl_seconds, ..Default::default() };
    let mutation = v1::Mutation { key: Some(record.key()), op: Some(Op::Put(put)), precondition: None };
    let request = v1::BatchWriteRequest { user_id: "ann".into(), mutations: vec![mutation], ..Default::default() };
    client.write(request).await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_comes_back_byte_by_byte_and_nobody_else_is_touched() {
    let dir = tempfile::tempdir().expect("tempdir");
    let from = format!("file://{}", dir.path().join("offsite").display());
    let cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    let client = cluster.client();
    let binary: Vec<u8> = (0..=255).collect();
    for user in ["ann", "bob"] {
        for number in 0..120 {
            put(&client, user, &format!("c{number}"), format!("{user} {number}").as_bytes()).await;
        }
        put(&client, user, "binary", &binary).await;
    }
    client.delete(contact("ann", "c7")).await.expect("deleted");
    put_for(&client, "for an hour", 3600).await;
    let leader = cluster.leader().await;
    let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin]);
    assert_eq!(code, 0, "{stderr}");
    // Beyond the snapshot, so that the log is needed too.
    let point = put(&client, "ann", "c1", b"changed before").await;
    let then = records(&client, "ann").await;
    assert_eq!(then.len(), 121);

    // What somebody did by mistake.
    for number in 20..110 {
        client.delete(contact("ann", &format!("c{number}"))).await.expect("deleted");
    }
    put(&client, "ann", "c1", b"changed after").await;
    put(&client, "ann", "came later", b"new").await;
    wait_offsite(&cluster, put(&client, "bob", "c3", b"bob went on").await).await;
    let (now, bob) = (records(&client, "ann").await, records(&client, "bob").await);

    let at = point.to_string();
    let base = ["restore", "user", "ann", "--from", &from, "--at", &at];
    let out = dir.path().join("out").display().to_string();
    let (code, report, stderr) = holdfast_json(&[&base[..], &["--out", &out]].concat());
    assert_eq!(
        (code, report["records"].as_u64(), report["last_index"].as_u64()),
        (0, Some(121), Some(point)),
        "{stderr}"
    );
    let lines = std::fs::read_to_string(dir.path().join("out/records.jsonl")).expect("reads");
    let exported = lines.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let payload = line["payload_base64"].as_str().expect("a payload");
        let payload = base64::engine::general_purpose::STANDARD.decode(payload).expect("base64");
        (line["record_id"].as_str().expect("an id").to_owned(), payload)
    });
    assert_eq!(exported.collect::<BTreeMap<_, _>>(), payloads(&then));
    let (code, _, stderr) = holdfast(&[&base[..], &["--out", &out]].concat());
    assert!(code == 8 && stderr.contains("--force"), "{code} {stderr}");

    // Told before it is done, and then done.
    let clients = cluster.nodes.iter().map(|node| node.client.as_str()).collect::<Vec<_>>().join(",");
    let write = [&base[..], &["--endpoint", &clients]].concat();
    for unconfirmed in [&[][..], &["--confirm", "bob"]] {
        let (code, told, stderr) = holdfast_json(&[&write[..], unconfirmed].concat());
        assert_eq!((code, told["confirmed"].as_bool()), (3, Some(false)), "{told}{stderr}");
        let counts = ["records", "unchanged", "put", "deleted"].map(|key| told[key].as_u64());
        assert_eq!(counts, [121, 30, 91, 1].map(Some), "{told}");
    }
    assert_eq!(records(&client, "ann").await, now, "nothing was changed");
    let (code, done, stderr) = holdfast_json(&[&write[..], &["--confirm", "ann"]].concat());
    assert_eq!((code, done["confirmed"].as_bool()), (0, Some(true)), "{done}{stderr}");
    let back = records(&client, "ann").await;
    assert_eq!(payloads(&back), payloads(&then));
    let hour = client.get(contact("ann", "for an hour")).await.expect("read").expect("there");
    assert!(hour.expire_time.is_some(), "it ends by itself, as it would have");
    let newest = now.values().map(|(_, version)| *version).max();
    assert!(back["c30"].1 > newest.expect("some"), "new writes, which devices get as any other");
    assert_eq!(back["c2"], now["c2"], "what was as it should be is not written again");
    assert_eq!(records(&client, "bob").await, bob, "nobody else is touched");
    let (code, again, _) = holdfast_json(&[&write[..], &["--confirm", "ann"]].concat());
    assert_eq!((code, again["put"].as_u64(), again["deleted"].as_u64()), (0, Some(0), Some(0)), "{again}");

    // What came later is kept where that is asked for.
    put(&client, "ann", "came later", b"new").await;
    let keep = [&write[..], &["--confirm", "ann", "--keep-newer"]].concat();
    let (code, kept, stderr) = holdfast_json(&keep);
    assert_eq!((code, kept["kept"].as_u64()), (0, Some(1)), "{kept}{stderr}");
    assert!(records(&client, "ann").await.contains_key("came later"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_brought_back_says_why_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let from = format!("file://{}", dir.path().join("offsite").display());
    let cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    let client = cluster.client();
    let first = put(&client, "ann", "c1", b"one").await;
    put_for(&client, "for a second", 1).await;
    let second = put(&client, "bob", "c1", b"one").await;
    wait_offsite(&cluster, second).await;
    let out = dir.path().join("out");
    let to = out.display().to_string();
    let user = |args: &[&str]| holdfast(&[&["restore", "user", "--from", &from][..], args].concat());
    let (code, _, stderr) = user(&["bob", "--at", &first.to_string(), "--out", &to]);
    assert!(code == 7 && stderr.contains("nothing up to index"), "{code} {stderr}");
    for (args, told) in [
        (&["ann"][..], "--out"),
        (&["ann", "--out", &to, "--endpoint", "127.0.0.1:1"], "cannot be used with"),
        (&["", "--out", &to], "USER"),
        (&["ann", "--out", &to, "--confirm", "ann"], "cannot be used with"),
    ] {
        let (code, _, stderr) = user(args);
        assert!(code == 2 && stderr.contains(told), "{args:?}: {code} {stderr}");
    }
    let (code, _, stderr) = user(&["ann", "--out", &to, "--scratch", "/nowhere"]);
    assert!(code == 1 && stderr.contains("--scratch"), "{code} {stderr}");
    let (code, _, stderr) = user(&["ann", "--endpoint", "127.0.0.1:1"]);
    assert!(code == 5 && stderr.contains("--endpoint"), "{code} {stderr}");
    assert!(!out.exists(), "nothing was written");

    // What ended by itself meanwhile does not come back.
    let ended = async || client.get(contact("ann", "for a second")).await.expect("read");
    cluster::wait_for("the end of a second", async || ended().await.is_some_and(|one| one.delete_time.is_some())).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        let clients = cluster.nodes.iter().map(|node| node.client.as_str()).collect::<Vec<_>>().join(",");
        let args = ["restore", "user", "ann", "--from", &from, "--at", &second.to_string(), "--endpoint", &clients];
        let (code, told, stderr) = holdfast_json(&args);
        assert_eq!((code, told["put"].as_u64(), told["records"].as_u64()), (3, Some(0), Some(1)), "{told}{stderr}");
    })
    .await
    .expect("in time");
}
