//! The faults of `jepsen-tests`, seen from outside: what a fault says of itself is what nodes and clients meet, and it is
//! gone when it says so. What takes root is skipped without it, loudly.

mod cluster;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cluster::{BINARY, contact, is_alive, wait_for, wait_until};
use holdfast_client::{Client, RecordRef};
use jepsen_tests::chance::Chance;
use jepsen_tests::clock::{Clocks, Skew};
use jepsen_tests::cluster::{Cluster, Founding};
use jepsen_tests::disk::Mounts;
use jepsen_tests::history::Recorder;
use jepsen_tests::nemesis::{Disks, Fault, Struck, World};
use jepsen_tests::network::Network;

/// Long enough for a healthy node under load of the machine, far shorter than a fault stands here.
const SOON: Duration = Duration::from_secs(2);
const PROBE: RecordRef<'_> = RecordRef { user: "probe", collection: "x-probe", record_id: "faults" };

/// Runs `test` with a cluster of three in a network of its own, with room for one more and clocks of its own.
fn in_a_world(test: impl AsyncFnOnce(World, &mut Chance) + Send + 'static) {
    in_a_world_with(false, test);
}

/// The same, each node with a disk of its own, or not.
fn in_a_world_with(disks: bool, test: impl AsyncFnOnce(World, &mut Chance) + Send + 'static) {
    if !is_root() {
        eprintln!("***** skipped: a network of its own takes root *****");
        return;
    }
    let run = move || {
        let dir = tempfile::tempdir().expect("tempdir");
        let disks = disks.then(|| {
            let mounts = Mounts::private().expect("mounts of its own");
            Disks::create(mounts, &dir.path().join("cluster"), 3, 3).expect("disks")
        });
        let network = Network::create(4, 7).expect("a network");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut world = world(dir.path(), network).await;
            world.disks = disks;
            test(world, &mut Chance::new(7, 0)).await;
        });
    };
    // The thread that makes a network stays in it.
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

async fn world(dir: &Path, network: Network) -> World {
    let clocks = Clocks::create(&dir.join("clocks"), 4).expect("clocks");
    let founding = Founding {
        binary: Path::new(BINARY),
        dir: &dir.join("cluster"),
        nodes: 3,
        seats: network.seats(),
        labels: Vec::new(),
        set: Vec::new(),
        env: (0..4).map(|place| clocks.env(place)).collect(),
    };
    let cluster = Cluster::found(founding).await.expect("a cluster");
    let recorder = Arc::new(Recorder::create(&dir.join("history.jsonl")).expect("a history"));
    let mut world = World::new(cluster, recorder);
    (world.network, world.clocks) = (Some(network), Some(clocks));
    world
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
    })
}

async fn strike(world: &mut World, chance: &mut Chance, fault: Fault) -> Struck {
    let struck = fault.strike(world, chance).await.expect("the machine does it").expect("it can be made now");
    assert!(struck.installed, "{struck:?}");
    struck
}

/// Waits until each member answers a linearizable read.
async fn wait_all_serve(world: &World) {
    for place in world.cluster.members() {
        let client = world.cluster.client_of(place).with_deadline(SOON);
        wait_for("a node that serves again", async || client.get(PROBE).await.is_ok()).await;
    }
}

async fn writes_go_on(world: &World, but: &[usize]) {
    let others = world.cluster.members().into_iter().filter(|place| !but.contains(place));
    let client = Client::builder().endpoints(others.map(|place| world.cluster.nodes[place].client.clone()));
    let client = client.build().expect("client").with_deadline(SOON);
    wait_for("writes go on", async || client.put(contact("ada", "c1"), "text/plain", "x").await.is_ok()).await;
}

#[test]
fn a_paused_node_stands_still_and_goes_on() {
    in_a_world(async |mut world, chance| {
        let struck = strike(&mut world, chance, Fault::Pause).await;
        let place = struck.places[0];
        assert!(world.cluster.status(place).await.is_none(), "it answers though it is stopped");
        writes_go_on(&world, &struck.places).await;
        // Half of three nodes may not go.
        assert!(Fault::Kill.strike(&mut world, chance).await.expect("asked").is_none(), "a quorum was not left alone");
        let pid = world.cluster.nodes[place].pid;
        struck.heal(&mut world).await.expect("healed");
        wait_all_serve(&world).await;
        assert_eq!(world.cluster.nodes[place].pid, pid);
        assert!(is_alive(pid));
        // A run that ends in the middle of a pause ends all the same.
        strike(&mut world, chance, Fault::Pause).await;
        world.cluster.stop();
        assert!(!is_alive(pid));
    });
}

#[test]
fn a_killed_node_is_dead_and_comes_back() {
    in_a_world(async |mut world, chance| {
        let before: Vec<i32> = world.cluster.nodes.iter().map(|node| node.pid).collect();
        let struck = strike(&mut world, chance, Fault::Kill).await;
        let place = struck.places[0];
        assert!(!is_alive(before[place]));
        writes_go_on(&world, &struck.places).await;
        struck.heal(&mut world).await.expect("healed");
        wait_all_serve(&world).await;
        assert_ne!(world.cluster.nodes[place].pid, before[place]);
    });
}

#[test]
fn a_node_apart_serves_nobody_until_links_are_joined_again() {
    in_a_world(async |mut world, chance| {
        // Shapes are drawn; the one that takes a node away is what a client can tell for sure.
        let apart = loop {
            let struck = strike(&mut world, chance, Fault::Partition).await;
            if struck.detail.starts_with("apart") {
                break struck;
            }
            struck.heal(&mut world).await.expect("healed");
            wait_all_serve(&world).await;
        };
        let alone = world.cluster.client_of(apart.places[0]).with_deadline(SOON);
        // What it still had confirmed when its links were cut may be answered; nothing after that.
        wait_for("the end of its last lease", async || alone.get(PROBE).await.is_err()).await;
        assert!(world.cluster.status(apart.places[0]).await.is_some(), "operators no longer reach it");
        writes_go_on(&world, &apart.places).await;
        alone.get(PROBE).await.expect_err("it serves though it is alone");
        apart.heal(&mut world).await.expect("healed");
        wait_all_serve(&world).await;
    });
}

#[test]
fn bad_links_lose_what_nodes_send_and_good_ones_do_not() {
    in_a_world(async |mut world, chance| {
        let lost = |world: &World| -> u64 {
            let counts = |from, to| world.network.as_ref().map_or(0, |network| network.counts(from, to).lost);
            (0..3).flat_map(|from| (0..3).map(move |to| (from, to))).map(|(from, to)| counts(from, to)).sum()
        };
        let struck = strike(&mut world, chance, Fault::Lossy).await;
        let by_probes = lost(&world);
        wait_for("losses of what nodes send", async || lost(&world) > by_probes).await;
        struck.heal(&mut world).await.expect("healed");
        let then = lost(&world);
        wait_all_serve(&world).await;
        writes_go_on(&world, &[]).await;
        assert_eq!(lost(&world), then);

        let struck = strike(&mut world, chance, Fault::Slow).await;
        let network = world.network.as_ref().expect("a network");
        let rules = |place: usize| (0..3).filter(|to| !network.rules(place, *to).is_empty()).count();
        assert!(struck.places.iter().all(|place| rules(*place) == 2), "{struck:?}");
        struck.heal(&mut world).await.expect("healed");
        wait_all_serve(&world).await;
    });
}

#[test]
fn leadership_goes_to_whom_it_was_handed() {
    in_a_world(async |mut world, chance| {
        let before = world.cluster.leader().await;
        let struck = strike(&mut world, chance, Fault::Transfer).await;
        assert_ne!(struck.places, [before]);
        wait_for("its successor", async || world.cluster.leader_now().await == Some(struck.places[0])).await;
        struck.heal(&mut world).await.expect("nothing to heal");
    });
}

#[test]
fn a_new_member_takes_the_place_of_an_old_one() {
    in_a_world(async |mut world, chance| {
        let struck = strike(&mut world, chance, Fault::Membership).await;
        assert_eq!(struck.places, [3]);
        struck.heal(&mut world).await.expect("healed");
        let members = world.cluster.members();
        assert_eq!(members.len(), 3);
        assert!(members.contains(&3));
        wait_all_serve(&world).await;
        let ids: BTreeSet<u64> = members.iter().map(|place| world.cluster.nodes[*place].id).collect();
        let status = world.cluster.status(3).await.expect("it answers");
        let voters: Vec<BTreeSet<u64>> =
            status.groups[0].voter_sets.iter().map(|set| set.node_ids.iter().copied().collect()).collect();
        assert_eq!(voters, [ids]);
        let gone = (0..3).find(|place| !members.contains(place)).expect("one went");
        assert!(!is_alive(world.cluster.nodes[gone].pid));
        // There is room for no fifth node.
        assert!(Fault::Membership.strike(&mut world, chance).await.expect("asked").is_none());
    });
}

#[test]
fn a_node_goes_by_the_clock_that_it_is_shown() {
    in_a_world(async |mut world, chance| {
        let client = world.cluster.client();
        let now = async || {
            let answer = client.put(contact("ada", "c1"), "text/plain", "x").await;
            answer.expect("written");
            let found = client.get(contact("ada", "c1")).await.expect("read").expect("there");
            found.update_time.expect("a time").seconds
        };
        let ours = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        assert!((now().await - ours()).abs() < 300);
        for place in 0..3 {
            let set = world.clocks.as_ref().expect("clocks").set(place, Skew { offset_ms: 3_600_000, drift_ppm: 0 });
            set.expect("set");
        }
        wait_for("a record stamped an hour from now", async || {
            let id =
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos().to_string();
            client.put(contact("ada", &id), "text/plain", "x").await.expect("written");
            let found = client.get(contact("ada", &id)).await.expect("read").expect("there");
            found.update_time.expect("a time").seconds > ours() + 3_000
        })
        .await;
        let struck = strike(&mut world, chance, Fault::Clock).await;
        writes_go_on(&world, &[]).await;
        struck.heal(&mut world).await.expect("healed");
    });
}

#[test]
fn a_leader_alone_takes_its_tail_back_for_good() {
    in_a_world_with(true, async |mut world, chance| {
        writes_go_on(&world, &[]).await;
        let leader = world.cluster.leader().await;
        let log_ends = async |world: &World| {
            let mut end = None;
            wait_for("a node's status", async || {
                end = world.cluster.status(leader).await.map(|status| status.groups[0].last_log_index);
                end.is_some()
            })
            .await;
            end.expect("waited for")
        };
        let before = log_ends(&world).await;
        let struck = strike(&mut world, chance, Fault::LostTail).await;
        assert_eq!(struck.places, [leader]);
        let alone = log_ends(&world).await;
        assert!(alone >= before + 100, "no tail: {before}, then {alone}");
        writes_go_on(&world, &[leader]).await;
        let pid = world.cluster.nodes[leader].pid;
        struck.heal(&mut world).await.expect("healed");
        assert_ne!(world.cluster.nodes[leader].pid, pid, "its power was not cut");
        wait_all_serve(&world).await;
        world.cluster.wait_converged().await;
        let after = log_ends(&world).await;
        assert!(after < alone, "the tail is back: {before}, {alone}, then {after}");
        let told = std::fs::read_to_string(world.cluster.log(leader)).expect("log");
        assert!(!told.contains("log.recovering"), "{told}");
    });
}

/// What this process is told to do when a test starts it again.
const HOLD: &str = "JEPSEN_TESTS_HOLD";

#[test]
fn nothing_is_left_when_the_harness_is_killed_in_the_middle_of_a_fault() {
    if std::env::var_os(HOLD).is_some() {
        return hold();
    }
    if !is_root() {
        eprintln!("***** skipped: a network of its own takes root *****");
        return;
    }
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "nothing_is_left_when_the_harness_is_killed_in_the_middle_of_a_fault", "--nocapture"]);
    // Where it puts its files goes with this test: a killed process removes nothing.
    let dir = tempfile::tempdir().expect("tempdir");
    command.env(HOLD, "1").env("TMPDIR", dir.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let held = lines.find_map(|line| Some(line.strip_prefix("held ")?.to_owned())).expect("it tells");
    let pids: Vec<i32> = held.split(' ').map(|pid| pid.parse().expect("a pid")).collect();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| is_alive(*pid)), "{held}");
    child.kill().expect("killed");
    child.wait().expect("reaped");
    for pid in pids {
        wait_until("the end of a node, also of one that is stopped", || !is_alive(pid));
    }
}

fn hold() {
    in_a_world(async |mut world, chance| {
        let _paused = strike(&mut world, chance, Fault::Pause).await;
        let pids: Vec<String> = world.cluster.nodes.iter().map(|node| node.pid.to_string()).collect();
        println!("\nheld {}", pids.join(" "));
        std::future::pending::<()>().await;
    });
}
