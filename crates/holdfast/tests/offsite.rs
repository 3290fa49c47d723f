//! What a cluster does when its offsite destination goes away, is emptied or is damaged: it says so, writes nowhere
//! else, and goes on by itself.

mod cluster;
mod node_disks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::{Cluster, contact, holdfast, holdfast_json, wait_for, wait_offsite};
use futures::{StreamExt, TryStreamExt};
use holdfast_wire::v1;
use jepsen_tests::disk::corrupt::Part;

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// What the leader says of the destination.
async fn told(cluster: &Cluster) -> Option<v1::DestinationStatus> {
    let leader = cluster.leader_now().await?;
    cluster.status(leader).await?.destinations.first().cloned()
}

async fn write(cluster: &Cluster, id: &str) -> u64 {
    cluster.client().put(contact("alice", id), "text/plain", "x").await.expect("written").commit_index
}

/// Waits until the leader complains in these words, and health does with it.
async fn wait_complaint(cluster: &Cluster, words: &[&str]) -> v1::DestinationStatus {
    let mut last = None;
    wait_for("a complaint of the leader", async || {
        last = told(cluster).await;
        last.as_ref().is_some_and(|told| words.iter().all(|word| told.last_error.contains(word)))
    })
    .await;
    let endpoints: Vec<&str> = cluster.nodes.iter().map(|node| node.admin.as_str()).collect();
    wait_for("health to say so", async || {
        let (code, health, _) =
            holdfast(&["cluster", "health", "--output", "json", "--endpoint", &endpoints.join(",")]);
        code == 3 && health.contains("OFFSITE_UNVERIFIED") && words.iter().all(|word| health.contains(word))
    })
    .await;
    last.expect("told")
}

/// Ends the leader by signal 9 and starts it again: another one leads, and looks at the destination anew.
async fn depose(cluster: &mut Cluster) {
    let leader = cluster.leader().await;
    cluster.kill(leader);
    cluster.leader().await;
    cluster.restart(leader);
    cluster.wait_converged().await;
}

fn flip_middle(file: &Path) {
    let mut bytes = std::fs::read(file).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).expect("written");
}

fn newest_segment(offsite: &Path) -> PathBuf {
    Part::Segment.files(offsite).expect("lists").pop().expect("a segment")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_goes_away_is_waited_for_and_never_made_anew() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (offsite, away) = (dir.path().join("offsite"), dir.path().join("away"));
    let mut cluster =
        Cluster::start(&dir.path().join("c"), &["--offsite", &url(&offsite), "--set", "ship.interval_ms=100"]);
    wait_offsite(&cluster, write(&cluster, "first").await).await;

    // Gone under a leader that has it open, and under one that has never seen it.
    std::fs::rename(&offsite, &away).expect("goes away");
    let index = write(&cluster, "while it is gone").await;
    let told = wait_complaint(&cluster, &["is no folder", "mount the disk"]).await;
    assert!(told.durable_index < index && told.verified_index == 0, "{told:?}");
    depose(&mut cluster).await;
    wait_complaint(&cluster, &["is no folder", "mount the disk"]).await;
    assert!(!offsite.exists(), "it was made anew on the disk below");
    // The empty folder below a mount.
    std::fs::create_dir(&offsite).expect("made");
    let told = wait_complaint(&cluster, &["holds nothing of this history now", "[[offsite]]"]).await;
    assert_eq!((told.durable_index, told.verified_index), (0, 0), "what is not there is not told to be there");
    assert!(told.lag.is_some_and(|lag| lag.seconds > 0 || lag.nanos > 0), "it is behind by all that there is");
    assert_eq!(std::fs::read_dir(&offsite).expect("reads").count(), 0, "something was written below the mount");

    std::fs::remove_dir(&offsite).expect("removed");
    std::fs::rename(&away, &offsite).expect("comes back");
    wait_offsite(&cluster, index).await;
    let (code, report, stderr) = holdfast(&["backup", "verify", "--from", &url(&offsite)]);
    assert_eq!(code, 0, "{report}{stderr}");

    // Emptied under a leader that has nothing to ship.
    let [entry] = &std::fs::read_dir(&offsite).expect("reads").flatten().collect::<Vec<_>>()[..] else {
        panic!("one cluster")
    };
    std::fs::rename(entry.path(), &away).expect("emptied");
    wait_complaint(&cluster, &["holds nothing of this history now"]).await;
    std::fs::rename(&away, entry.path()).expect("comes back");
    wait_offsite(&cluster, write(&cluster, "last").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_archive_is_told_whole_and_its_end_is_shipped_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let offsite = dir.path().join("offsite");
    let from = url(&offsite);
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    wait_offsite(&cluster, write(&cluster, "first").await).await;
    let leader = cluster.leader().await;
    let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin]);
    assert_eq!(code, 0, "{stderr}");

    // The newest position is poisoned, and the next leader must begin behind it.
    let index = write(&cluster, "second").await;
    wait_offsite(&cluster, index).await;
    let leader = cluster.leader().await;
    cluster.signal(leader, libc::SIGSTOP);
    let newest = newest_segment(&offsite);
    flip_middle(&newest);
    cluster.kill(leader);
    cluster.leader().await;
    cluster.restart(leader);
    let name = newest.file_name().expect("a name").to_string_lossy().into_owned();
    wait_offsite(&cluster, index).await;
    wait_for("a repair of the newest", async || newest.with_file_name(format!("{name}.r1")).exists()).await;
    wait_offsite(&cluster, write(&cluster, "third").await).await;
    let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &from, "--level", "1"]);
    assert_eq!((code, &report["bad"]), (0, &serde_json::json!([])), "{report}{stderr}");
    let [repaired] = &report["repaired"].as_array().expect("a list")[..] else { panic!("one: {report}") };
    assert!(repaired.as_str().is_some_and(|object| object.ends_with(&name)), "it is damaged all the same: {report}");
    let (code, plan, stderr) = holdfast_json(&["restore", "plan", "--from", &from]);
    assert!(code == 0 && plan["last_index"].as_u64() > Some(index), "{plan}{stderr}");
    // Both are damaged: it is named, and what lies before it is offered.
    let repair = newest.with_file_name(format!("{name}.r1"));
    flip_middle(&repair);
    let (code, report, _) = holdfast(&["backup", "verify", "--from", &from, "--output", "json"]);
    assert!(code == 9 && report.contains(&name), "{report}");
    let (code, report, _) = holdfast(&["backup", "verify", "--from", &from, "--level", "0"]);
    assert_eq!(code, 0, "level 0 reads no segment: {report}");
    flip_middle(&repair);
    cluster.stop();

    // What cannot be read is named, and the rest is listed.
    let manifests = Part::SnapshotManifest.files(&offsite).expect("lists");
    let [manifest] = &manifests[..] else { panic!("one snapshot: {manifests:?}") };
    let whole = std::fs::read(manifest).expect("reads");
    std::fs::write(manifest, &whole[1..]).expect("damaged");
    let (code, listed, _) = holdfast(&["backup", "ls", "--from", &from, "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!((code, listed["lineages"].as_array().map(Vec::len)), (9, Some(1)), "{listed}");
    assert!(listed["lineages"][0]["log_segments"].as_u64() > Some(0), "{listed}");
    assert!(listed["bad"][0]["object"].as_str().is_some_and(|object| object.ends_with("MANIFEST")), "{listed}");
    let (code, _, stderr) = holdfast(&["backup", "verify", "--from", &from, "--level", "3"]);
    assert_eq!(code, 2, "{stderr}");
}

/// What a quiet cluster shipped an hour ago and what a stopped one did look alike, but for heartbeats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_says_up_to_when_it_is_complete_while_nothing_is_written() {
    let dir = tempfile::tempdir().expect("tempdir");
    let offsite = dir.path().join("offsite");
    let from = url(&offsite);
    let args = ["--offsite", &from, "--set", "ship.interval_ms=100", "--set", "ship.heartbeat_ms=200"];
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    for id in ["first", "only"] {
        wait_offsite(&cluster, write(&cluster, id).await).await;
    }
    let planned = || holdfast_json(&["restore", "plan", "--from", &from]).1;
    // RFC 3339 in UTC, and so in the order of time.
    let complete = |plan: &serde_json::Value| plan["complete_time"].as_str().map(str::to_owned).unwrap_or_default();
    let first = planned();
    let mut last = complete(&first);
    for _ in 0..2 {
        wait_for("a later heartbeat", async || complete(&planned()) > last).await;
        last = complete(&planned());
    }
    let quiet = planned();
    assert_eq!(quiet["last_index"], first["last_index"], "nothing was written");
    assert!(quiet["last_time"].as_str().expect("a time") < last.as_str(), "{quiet}");
    let (code, listed, _) = holdfast_json(&["backup", "ls", "--from", &from]);
    assert_eq!((code, &listed["lineages"][0]["log_last_index"]), (0, &quiet["last_index"]), "{listed}");
    assert!(listed["lineages"][0]["complete_time"].as_str() >= Some(last.as_str()), "{listed}");
    let (code, words, _) = holdfast(&["backup", "ls", "--from", &from]);
    assert!(code == 0 && words.contains("complete up to 20"), "{words}");

    // Nobody vouches for what a leader without a quorum cannot know.
    let leader = cluster.leader().await;
    cluster.kill_together(&[(leader + 1) % 3, (leader + 2) % 3]);
    let client = cluster.client_of(leader);
    // Whatever was confirmed before is written by the end of this; clocks are believed for two seconds.
    client.with_deadline(Duration::from_millis(400)).get(contact("alice", "only")).await.expect_err("no quorum");
    let alone = complete(&planned());
    let client = client.with_deadline(Duration::from_secs(3));
    client.put(contact("alice", "alone"), "text/plain", "x").await.expect_err("no quorum");
    assert_eq!(complete(&planned()), alone, "silence without a quorum is not vouched for");
    cluster.kill(leader);

    // An end that is gone is missed, and the rest is offered.
    let newest = newest_segment(&offsite);
    std::fs::remove_file(&newest).expect("gone");
    let name = newest.file_name().expect("a name").to_string_lossy().into_owned();
    let (code, plan, stderr) = holdfast_json(&["restore", "plan", "--from", &from]);
    assert_eq!(code, 9, "{plan}{stderr}");
    assert!(plan["bad"][0]["object"].as_str().is_some_and(|object| object.ends_with(&name)), "{plan}");
    assert!(plan["newest_good_index"].as_u64() < first["last_index"].as_u64(), "{plan}");
}

/// What fills a segment waits for nothing: else a destination that was away would never be caught up with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_shipped_segment_by_segment_without_a_pause() {
    let dir = tempfile::tempdir().expect("tempdir");
    let from = url(&dir.path().join("offsite"));
    let pace = ["--set", "ship.interval_ms=5000", "--set", "ship.segment_bytes=4096"];
    let cluster = Cluster::start(&dir.path().join("c"), &[&["--offsite", &from][..], &pace].concat());
    let client = cluster.client();
    let mut newest = 0;
    for number in 0..120 {
        let done = client.put(contact("alice", &format!("c{number}")), "text/plain", vec![number; 1000]).await;
        newest = done.expect("written").commit_index;
    }
    // Forty segments: with a pause for each it would take minutes, and nobody waits that long here.
    wait_offsite(&cluster, newest).await;
}

/// Nobody waits for a destination that is not required, and one that fails keeps the snapshot from no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_counts_once_it_is_at_every_required_destination() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folders = ["gone", "extra", "kept"].map(|name| dir.path().join(name));
    let urls = folders.each_ref().map(|folder| url(folder));
    // What is set belongs to the destination named last.
    let args = ["--offsite", &urls[2], "--offsite", &urls[1], "--set", "offsite.required=false"];
    let cluster = Cluster::start(&dir.path().join("c"), &args);
    wait_offsite(&cluster, write(&cluster, "first").await).await;
    let leader = cluster.leader().await;
    let now = || holdfast(&["backup", "now", "--endpoint", &cluster.nodes[leader].admin]);
    let snapshots = |folder: &Path| Part::SnapshotManifest.files(folder).expect("lists").len();

    std::fs::rename(&folders[1], &folders[0]).expect("goes away");
    for count in 1..=4 {
        let (code, _, stderr) = now();
        assert_eq!((code, snapshots(&folders[2])), (0, count), "{stderr}");
    }
    // However long it is away, no more is remembered of rows than what a next layer may lie over.
    let kept = |place: usize| dir.path().join(format!("c/n{place}/outbox/rows"));
    let remembered = |place: usize| std::fs::read_dir(kept(place)).map_or(0, Iterator::count);
    let took = (0..3).max_by_key(|place| remembered(*place)).expect("three nodes");
    wait_for("older indexes to go", async || (1..=2).contains(&remembered(took))).await;
    std::fs::rename(&folders[0], &folders[1]).expect("comes back");
    let (code, _, stderr) = now();
    assert_eq!((code, snapshots(&folders[2])), (0, 5), "{stderr}");
    wait_for("the snapshot where nobody waits for it", async || snapshots(&folders[1]) == 1).await;

    std::fs::rename(&folders[2], &folders[0]).expect("goes away");
    let (code, _, stderr) = now();
    assert_ne!(code, 0, "it is required");
    assert!(stderr.contains(&urls[2]) || stderr.contains("is no folder"), "{stderr}");
    wait_for("the snapshot at the other one", async || snapshots(&folders[1]) == 2).await;
    std::fs::rename(&folders[0], &folders[2]).expect("comes back");
}

/// Bytes of all files below.
fn bytes_below(path: &Path) -> u64 {
    let Ok(listed) = std::fs::read_dir(path) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata().expect("metadata") {
        found if found.is_dir() => bytes_below(&entry.path()),
        found => found.len(),
    };
    listed.map(|entry| size(entry.expect("an entry"))).sum()
}

/// Bytes that snapshots take at a destination: chunks, patches and manifests.
fn snapshot_bytes(offsite: &Path) -> u64 {
    let clusters = std::fs::read_dir(offsite).expect("reads").flatten();
    let histories = clusters.flat_map(|cluster| std::fs::read_dir(cluster.path()).expect("reads").flatten());
    histories
        .map(|history| ["gen", "snap"].map(|part| bytes_below(&history.path().join(part))).iter().sum::<u64>())
        .sum()
}

/// Records that change lie anywhere: a chunk of every four megabytes would be shipped again, and a restart must not make a
/// node forget what it shipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_snapshot_ships_what_changed_and_is_restored_as_any_other() {
    const RECORDS: usize = 2000;
    let dir = tempfile::tempdir().expect("tempdir");
    let (offsite, rebuilt) = (dir.path().join("offsite"), dir.path().join("rebuilt"));
    let from = url(&offsite);
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
    let client = cluster.client();
    let id = |number: usize| (format!("user-{}", number % 40), format!("c{number}"));
    let payload = |number: usize, round: usize| node_disks::incompressible((round * RECORDS + number) as u64, 1500);
    let write = |numbers: Vec<usize>, round: usize| {
        let client = &client;
        async move {
            let puts = numbers.into_iter().map(|number| {
                let (user, id) = id(number);
                async move { client.put(contact(&user, &id), "text/vcard", payload(number, round)).await }
            });
            let done: Vec<_> = futures::stream::iter(puts).buffer_unordered(32).try_collect().await.expect("written");
            done.iter().map(|one| one.commit_index).max().expect("some")
        }
    };
    let admins: Vec<String> = cluster.nodes.iter().map(|node| node.admin.clone()).collect();
    let snapshot = |place: usize| {
        let before = snapshot_bytes(&offsite);
        let (code, told, stderr) = holdfast(&["backup", "now", "--endpoint", &admins[place]]);
        assert_eq!(code, 0, "{told}{stderr}");
        snapshot_bytes(&offsite) - before
    };
    write((0..RECORDS).collect(), 0).await;
    // So many writes at once may cost a leader its lead: who leads is asked for when it is needed.
    let shipper = cluster.leader().await;
    let first = snapshot(shipper);
    let took: Vec<usize> =
        (0..3).filter(|place| node_disks::said(&cluster, *place).contains("backup.shipped")).collect();
    assert!(took.len() == 1 && took != [shipper], "one follower reads its state for it: {took:?}, and {shipper} leads");
    cluster.kill(shipper);
    cluster.restart(shipper);
    cluster.wait_converged().await;
    let changed: Vec<usize> = (0..RECORDS / 100).map(|number| number * 97).collect();
    let last = write(changed.clone(), 1).await;
    let second = snapshot(shipper);
    assert!(second * 20 <= first, "the first took {first} bytes, the second {second}");
    // Whichever node takes it: what it did not ship itself, it reads back.
    let third = snapshot((shipper + 1) % 3);
    assert!(third * 20 <= first, "the first took {first} bytes, the third {third}");

    wait_offsite(&cluster, last).await;
    let (code, report, stderr) = holdfast(&["backup", "verify", "--from", &from]);
    assert_eq!(code, 0, "{report}{stderr}");
    let (_, listed, _) = holdfast_json(&["backup", "ls", "--from", &from]);
    let layers = |at: usize| listed["lineages"][0]["snapshots"][at]["layers"].as_u64();
    assert_eq!([0, 1, 2].map(layers), [Some(0), Some(1), Some(2)], "{listed}");

    // All nodes are gone; what comes back is every record as it was last written.
    cluster.kill_together(&[0, 1, 2]);
    let (data, port) = (rebuilt.display().to_string(), cluster.port_base().to_string());
    let (_, plan, _) = holdfast_json(&["restore", "plan", "--from", &from]);
    assert_eq!(plan["snapshot_index"], listed["lineages"][0]["snapshots"][2]["index"], "{plan}");
    let run = ["restore", "run", "--from", &from, "--data", &data, "--port-base", &port];
    let (code, told, stderr) = holdfast_json(&run);
    assert_eq!(code, 0, "{told}{stderr}");
    let cluster = Cluster::start_after(cluster, &rebuilt, &[]);
    let client = cluster.client();
    let reads = (0..RECORDS).map(|number| {
        let ((user, id), client) = (id(number), &client);
        async move { client.get(contact(&user, &id)).await.expect("readable").map(|found| found.payload) }
    });
    let found: Vec<_> = futures::stream::iter(reads).buffered(32).collect().await;
    for (number, found) in found.into_iter().enumerate() {
        let round = usize::from(changed.contains(&number));
        assert!(found.is_some_and(|found| found == payload(number, round)), "record {number}");
    }
}

/// A cluster that writes little fills a bucket with small objects; a restore asks for few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_segments_are_joined_and_a_restore_reads_what_joins_them() {
    let dir = tempfile::tempdir().expect("tempdir");
    let offsite = dir.path().join("offsite");
    let from = url(&offsite);
    let args = ["--offsite", &from, "--set", "ship.interval_ms=10", "--set", "ship.join_interval_ms=300"];
    let mut cluster = Cluster::start(&dir.path().join("c"), &args);
    let joined = || {
        let found =
            walk(&offsite).into_iter().filter(|file| file.parent().is_some_and(|folder| folder.ends_with("L1")));
        found.collect::<Vec<_>>()
    };
    let mut written = 0;
    wait_for("small segments to be joined", async || {
        let index = write(&cluster, &format!("c{written}")).await;
        written += 1;
        wait_offsite(&cluster, index).await;
        joined().len() >= 2
    })
    .await;
    let last = write(&cluster, "last").await;
    wait_offsite(&cluster, last).await;
    cluster.stop();
    let (code, report, stderr) = holdfast_json(&["backup", "verify", "--from", &from, "--level", "1"]);
    assert_eq!((code, &report["bad"]), (0, &serde_json::json!([])), "{report}{stderr}");
    let (code, plan, stderr) = holdfast_json(&["restore", "plan", "--from", &from]);
    assert!(code == 0 && plan["last_index"].as_u64() >= Some(last), "{plan}{stderr}");
    let (read, shipped) =
        (plan["segments"].as_u64().expect("a number"), Part::Segment.files(&offsite).expect("lists").len());
    assert!(read as usize + 30 <= shipped, "{read} of {shipped} are read");
    let (code, listed, _) = holdfast_json(&["backup", "ls", "--from", &from]);
    assert_eq!((code, listed["lineages"][0]["log_joined"].as_u64()), (0, Some(joined().len() as u64)), "{listed}");
    // One bit of what joins: it is named, and the segments are read in its place.
    let object = joined().remove(0);
    flip_middle(&object);
    let name = object.file_name().expect("a name").to_string_lossy().into_owned();
    let (code, report, _) = holdfast(&["backup", "verify", "--from", &from, "--output", "json"]);
    assert!(code == 9 && report.contains(&name), "{report}");
    let (code, around, stderr) = holdfast_json(&["restore", "plan", "--from", &from]);
    assert_eq!((code, &around["last_index"]), (0, &plan["last_index"]), "{around}{stderr}");
    assert!(around["bad"][0]["object"].as_str().is_some_and(|bad| bad.ends_with(&name)), "{around}");
    let (target, port) = (dir.path().join("r").display().to_string(), cluster.port_base().to_string());
    let run = ["restore", "run", "--from", &from, "--data", &target, "--port-base", &port];
    let (code, report, stderr) = holdfast_json(&run);
    assert_eq!((code, report["records"].as_u64()), (0, Some(written + 1)), "{report}{stderr}");
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.flat_map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { vec![entry.path()] }).collect()
}
