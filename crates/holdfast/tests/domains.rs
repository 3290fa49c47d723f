//! What operators are told of failure domains, by real clusters: the exit codes are contracts.

mod cluster;

use std::io::{Read, Write};

use cluster::{Cluster, contact, holdfast, wait_until};

const THREE_ARRAYS: &str = "array=a1,site=x;array=a2,site=x;array=a3,site=x";
const ONE_ARRAY: &str = "array=san-07,site=x;array=san-07,site=x;array=san-07,site=x";

fn start(dir: &std::path::Path, labels: &str, offsite_labels: &str) -> Cluster {
    let url = format!("file://{}", dir.join("offsite").display());
    let args = ["--labels", labels, "--offsite", &url, "--offsite-labels", offsite_labels];
    Cluster::start(&dir.join("c"), &args)
}

/// Runs a command against one node.
fn ask(cluster: &Cluster, place: usize, args: &[&str]) -> (i32, String) {
    let (code, stdout, stderr) = holdfast(&[args, &["--endpoint", &cluster.nodes[place].admin]].concat());
    (code, format!("{stdout}{stderr}"))
}

/// As in 2009: one array holds every node, and the copy outside stands beside it.
#[test]
fn one_array_and_one_site_are_unsafe_and_say_why() {
    let dir = tempfile::tempdir().expect("tempdir");
    let cluster = start(dir.path(), ONE_ARRAY, "site=x");
    for place in 0..3 {
        let (code, told) = ask(&cluster, place, &["cluster", "health"]);
        assert_eq!(code, 3, "{told}");
        for part in ["ALL_COPIES_ONE_DOMAIN", "array=san-07", "offsite does not count: it shares site=x", "clear it:"] {
            assert!(told.contains(part), "`{part}` is missing in: {told}");
        }
    }
    let (code, json) = ask(&cluster, 0, &["cluster", "health", "-o", "json"]);
    let health: serde_json::Value = serde_json::from_str(&json).expect("JSON also when refused");
    assert_eq!((code, health["verdict"].as_str()), (3, Some("unsafe")), "{json}");
    let (code, told) = ask(&cluster, 0, &["domain", "survive", "--lose", "site=x"]);
    assert_eq!(code, 3, "{told}");
    assert!(told.contains("everything"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_arrays_and_another_site_are_fine_until_nodes_are_lost() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = start(dir.path(), THREE_ARRAYS, "site=y");
    let client = cluster.client();
    client.put(contact("ann", "c1"), "text/plain", "x").await.expect("written");
    let (code, told) = ask(&cluster, 1, &["cluster", "health"]);
    assert_eq!(code, 0, "{told}");
    wait_until("all of it to be offsite", || {
        let (_, json) = ask(&cluster, 1, &["cluster", "status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        status["destinations"][0]["lag_ms"].as_u64() == Some(0)
    });
    let (code, told) = ask(&cluster, 1, &["cluster", "health"]);
    assert_eq!(code, 0, "where nothing is missing, nothing is unknown: {told}");
    let (code, told) = ask(&cluster, 1, &["domain", "survive", "--lose", "array=a1"]);
    assert_eq!(code, 0, "{told}");
    let (code, told) = ask(&cluster, 1, &["domain", "survive", "--lose", "array=a9"]);
    assert_eq!(code, 7, "{told}");

    // One that ended this moment is not fine because its leader heard it a moment ago; soon it is known to be down.
    let leader = cluster.leader().await;
    let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(first);
    wait_until("the node to be down", || {
        let (code, told) = ask(&cluster, leader, &["cluster", "health"]);
        assert!(code == 3 || code == 4, "{code}: {told}");
        code == 3
    });
    let (_, told) = ask(&cluster, leader, &["cluster", "health"]);
    assert!(told.contains(&format!("node {} does not answer", first + 1)), "{told}");
    let (_, told) = ask(&cluster, second, &["cluster", "status"]);
    assert!(told.contains(&format!("node {} leads", leader + 1)), "{told}");

    // Without a majority, what is committed is not known; whoever is left still answers. A leader goes on naming itself.
    cluster.kill(second);
    wait_until("the leader's word to grow old", || {
        ask(&cluster, leader, &["cluster", "health"]).1.contains("NO_LEADER")
    });
    let (code, told) = ask(&cluster, leader, &["cluster", "health"]);
    assert_eq!(code, 3, "{told}");
    assert!(told.contains("does not answer"), "{told}");
    let (code, told) = ask(&cluster, leader, &["cluster", "status"]);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("no leader was confirmed lately"), "{told}");
    assert!(!told.contains(&format!("node {} leads", leader + 1)), "{told}");
    let (_, json) = ask(&cluster, leader, &["cluster", "status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let own = &status["nodes"][leader];
    assert_eq!((status["leader_id"].as_u64(), own["is_leader"].as_bool()), (Some(0), Some(false)), "{json}");
    assert_eq!(own["leader_id"].as_u64(), Some(leader as u64 + 1), "what it believes is told as that: {json}");
    let lost = format!("array=a{},array=a{}", first + 1, second + 1);
    let (code, told) = ask(&cluster, leader, &["domain", "survive", "--lose", &lost]);
    assert_eq!(code, 4, "{told}");
    assert!(told.contains("UNKNOWN"), "{told}");
}

/// Two of three voters on one array: its loss would stop all writes, and the configuration says that it must not.
#[test]
fn founding_refuses_voters_that_one_domain_could_take() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster =
        Cluster::start(&dir.path().join("c"), &["--labels", THREE_ARRAYS, "--set", "placement.keys=array"]);
    let places =
        [(4, "array=b1"), (5, "array=b1"), (6, "array=b2")].map(|(id, labels)| cluster.start_further(id, labels));
    let nodes = places.map(|place| cluster.nodes[place].admin.clone()).join(",");
    let found = || {
        let (code, stdout, stderr) = holdfast(&["cluster", "init", "--name", "second", "--nodes", &nodes]);
        (code, format!("{stdout}{stderr}"))
    };
    let mut refused = (0, String::new());
    wait_until("the new nodes to answer", || {
        refused = found();
        refused.0 != 5
    });
    assert_eq!(refused.0, 3, "{}", refused.1);
    for part in ["QUORUM_ONE_DOMAIN", "array=b1", "nodes 4, 5", "placement.keys"] {
        assert!(refused.1.contains(part), "`{part}` is missing in: {}", refused.1);
    }
    let (_, status) = ask(&cluster, places[0], &["cluster", "status", "-o", "json"]);
    assert!(!status.contains("second"), "nothing was founded: {status}");

    let moved = places[1];
    cluster.kill(moved);
    for word in cluster.nodes[moved].argv.iter_mut().filter(|word| *word == "array=b1") {
        *word = "array=b3".to_owned();
    }
    cluster.restart(moved);
    wait_until("the founding", || found().0 == 0);
    let (code, told) = ask(&cluster, places[2], &["cluster", "status"]);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("second"), "{told}");
}

fn metrics(cluster: &Cluster, place: usize) -> String {
    let mut stream = std::net::TcpStream::connect(&cluster.nodes[place].http).expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("asks");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("answers");
    page
}

/// Alerts and dashboards read these: each family is explained once, and its lines say what commands say.
#[test]
fn metrics_say_what_would_survive_and_how_disks_are() {
    let dir = tempfile::tempdir().expect("tempdir");
    let cluster = start(dir.path(), THREE_ARRAYS, "site=south");
    let mut page = String::new();
    wait_until("a leader that knows what would survive", || {
        let pages = (0..3).map(|place| metrics(&cluster, place));
        page = pages.into_iter().find(|page| page.contains("\nholdfast_raft_is_leader 1\n")).unwrap_or_default();
        page.contains("holdfast_survive_loss_entries{scenario=\"array=a1\"} 0\n")
    });
    for line in [
        "holdfast_survive_writes{scenario=\"array=a1\"} 1",
        "holdfast_survive_writes{scenario=\"site=x\"} 0",
        "holdfast_storage_refusing 0",
    ] {
        assert!(page.lines().any(|one| one == line), "`{line}` is missing in: {page}");
    }
    for name in
        ["free_bytes", "size_bytes", "refusing", "headroom_bytes"].map(|name| format!("holdfast_storage_{name}"))
    {
        for head in [format!("# HELP {name} "), format!("# TYPE {name} gauge")] {
            assert_eq!(page.lines().filter(|line| line.starts_with(&head)).count(), 1, "`{head}` in: {page}");
        }
    }
    let value = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
        line.unwrap_or_else(|| panic!("{name} has no value in: {page}"))
    };
    let [free, size, kept] =
        ["free_bytes", "size_bytes", "headroom_bytes"].map(|one| value(&format!("holdfast_storage_{one}")));
    assert!(0.0 < free && free < size, "{free} of {size} bytes");
    let mib = f64::from(1 << 20);
    assert!((20.0 * mib..=1024.0 * mib).contains(&kept), "{kept} bytes are kept free");
}
