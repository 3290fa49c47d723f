//! The network as nodes meet it. What takes root is skipped without it, and says so.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use super::*;
use crate::cluster::{is_alive, wait_until};

/// Probes on each link.
const EACH: u32 = 20;
const WAIT: Duration = Duration::from_secs(2);
/// For probes of which some are to be lost.
const SHORT: Duration = Duration::from_millis(200);

/// A network on a thread of its own, so that other tests of this process stay where they are.
fn on_a_network(seats: usize, test: impl FnOnce(Network) + Send + 'static) {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("***** skipped: network namespaces take root *****");
        return;
    }
    let run = move || test(Network::create(seats, 7).expect("a network"));
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn arrived(network: &Network, wait: Duration) -> Vec<Vec<u32>> {
    let places: Vec<usize> = (0..network.len()).collect();
    let probes = network.probe(&places, EACH, wait).expect("probed");
    probes.iter().map(|row| row.iter().map(|probed| probed.arrived).collect()).collect()
}

#[test]
fn packets_go_to_whom_they_are_for_and_control_joins_no_nodes() {
    let packet = |version: u8, target: [u8; 4]| {
        let mut packet = vec![0; 40];
        packet[0] = version << 4;
        packet[16..20].copy_from_slice(&target);
        packet
    };
    // Three seats: the harness is 0, control 1 to 3, peers 4 to 6.
    for (from, target, to) in [
        (0, [10, 78, 0, 2], Some(2)),
        (2, [10, 78, 0, 254], Some(0)),
        (2, [10, 78, 0, 3], None),
        (4, [10, 77, 0, 3], Some(6)),
        (4, [10, 77, 0, 4], None),
        (4, [10, 77, 0, 0], None),
        (1, [10, 77, 0, 2], None),
        (0, [10, 77, 0, 2], None),
        (0, [10, 78, 0, 254], None),
        (4, [10, 78, 0, 254], None),
        (4, [224, 0, 0, 1], None),
    ] {
        assert_eq!(route(3, from, &packet(4, target)), to, "{from} to {target:?}");
    }
    assert_eq!(route(3, 0, &packet(6, [10, 78, 0, 2])), None);
    assert_eq!(route(3, 0, &[0x45]), None);
}

#[test]
fn each_directed_link_has_rules_of_its_own_which_go_as_they_came() {
    on_a_network(3, |network| {
        let all = |cut: &[(usize, usize)]| -> Vec<Vec<u32>> {
            let count = |from, to| if from == to || cut.contains(&(from, to)) { 0 } else { EACH };
            (0..3).map(|from| (0..3).map(|to| count(from, to)).collect()).collect()
        };
        assert_eq!(arrived(&network, WAIT), all(&[]));
        let cut = Rule { cut: true, ..Rule::default() };
        network.set(1, [(0, 1)], cut);
        assert_eq!(arrived(&network, SHORT), all(&[(0, 1)]));
        network.set(2, [(0, 1), (2, 0)], cut);
        assert_eq!(arrived(&network, SHORT), all(&[(0, 1), (2, 0)]));
        assert_eq!(network.counts(2, 0).lost, u64::from(EACH));
        // The first one still stands when the second is taken away.
        network.clear(2);
        assert_eq!(arrived(&network, SHORT), all(&[(0, 1)]));
        network.clear(1);
        assert_eq!(arrived(&network, WAIT), all(&[]));
    });
}

#[test]
fn a_slow_link_is_slow_and_a_doubling_one_doubles() {
    on_a_network(2, |network| {
        let delay = Duration::from_millis(60);
        network.set(1, [(0, 1)], Rule { delay, doubled: 1000, ..Rule::default() });
        // Twice as many come as are waited for, so some of them may be left for the next call, which knows them not.
        let probes = network.probe(&[0, 1], EACH, WAIT).expect("probed");
        assert!(probes[0][1].fastest >= delay, "{probes:?}");
        assert!(probes[1][0].fastest < delay, "{probes:?}");
        wait_until("all copies", || network.counts(0, 1).doubled == u64::from(EACH));
        network.clear(1);
        let probes = network.probe(&[0, 1], EACH, WAIT).expect("probed");
        assert_eq!((probes[0][1].arrived, probes[1][0].arrived), (EACH, EACH));
        assert!(probes[0][1].fastest < delay, "{probes:?}");
    });
}

#[test]
fn nodes_talk_by_peers_and_the_harness_reaches_each_by_control() {
    on_a_network(2, |network| {
        let listen = |address: String| move || Ok(TcpListener::bind(address)?);
        let [first, second] = &network.seats()[..] else { panic!("two seats") };
        let by_peers = network.inside(1, listen(second.peer.clone())).expect("it listens");
        let by_control = network.inside(1, listen(second.client.clone())).expect("it listens");
        let echo = |listener: TcpListener| {
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("accepted");
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&byte).expect("answered");
                }
            })
        };
        let echoes = [echo(by_peers), echo(by_control)];
        let mut from_a_node = network.inside(0, || Ok(TcpStream::connect(&second.peer)?)).expect("connected");
        let mut from_here = TcpStream::connect(&second.client).expect("connected");
        for stream in [&mut from_a_node, &mut from_here] {
            stream.set_nodelay(true).expect("set");
            stream.write_all(b"x").expect("sent");
            stream.read_exact(&mut [0]).expect("answered");
        }
        assert!(network.counts(0, 1).sent > 0 && network.counts(1, 0).sent > 0);
        // A node reaches no other one by control, nor anything but its own networks.
        let to_control = network.inside(0, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            Ok(socket.send_to(b"x", (Ipv4Addr::new(192, 0, 2, 1), 9)).is_err())
        });
        assert!(to_control.expect("asked"), "there is a way out of a node's namespace");
        assert_ne!(first.client, second.client);
        drop((from_a_node, from_here));
        for echo in echoes {
            echo.join().expect("ended");
        }
    });
}

/// Bytes of one transfer, and echoes whose middle one is told.
const BULK: usize = 64 << 20;
const ECHOES: usize = 2_000;

/// Also a measurement: `--nocapture` shows it.
#[test]
fn bulk_data_comes_through_whole_and_in_order() {
    on_a_network(2, |network| {
        let seats = network.seats();
        let address = seats[1].peer.clone();
        let listener = network.inside(1, || Ok(TcpListener::bind(&address)?)).expect("it listens");
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            stream.set_nodelay(true).expect("set");
            let mut byte = [0];
            for _ in 0..ECHOES {
                stream.read_exact(&mut byte).expect("read");
                stream.write_all(&byte).expect("answered");
            }
            let (mut sum, mut length, mut buffer) = (0u64, 0, vec![0; 1 << 16]);
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                sum = buffer[..read].iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
                length += read;
            }
            (sum, length)
        });
        let mut stream = network.inside(0, || Ok(TcpStream::connect(&address)?)).expect("connected");
        stream.set_nodelay(true).expect("set");
        let mut times = Vec::new();
        for _ in 0..ECHOES {
            let began = Instant::now();
            stream.write_all(b"x").expect("sent");
            stream.read_exact(&mut [0]).expect("answered");
            times.push(began.elapsed());
        }
        times.sort_unstable();
        let mut chance = crate::chance::Chance::new(1, 1);
        let data: Vec<u8> = (0..BULK / 8).flat_map(|_| chance.next_u64().to_be_bytes()).collect();
        let sum = data.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        let began = Instant::now();
        stream.write_all(&data).expect("sent");
        drop(stream);
        let arrived = echo.join().expect("ended");
        let rate = BULK as f64 / began.elapsed().as_secs_f64() / 1e6;
        println!("echo: {:?} fastest, {:?} middle; {rate:.0} MB/s", times[0], times[ECHOES / 2]);
        assert_eq!(arrived, (sum, BULK));
    });
}

/// What this process is told to do when a test starts it again.
const HOLD: &str = "JEPSEN_TESTS_HOLD";

#[test]
fn nothing_is_left_of_a_network_whose_process_was_killed() {
    if std::env::var_os(HOLD).is_some() {
        return hold();
    }
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("***** skipped: network namespaces take root *****");
        return;
    }
    let before = devices();
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "network::tests::nothing_is_left_of_a_network_whose_process_was_killed", "--nocapture"]);
    let mut child = command.env(HOLD, "1").stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("started");
    let held = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let held = held.filter_map(|line| line.strip_prefix("held ").map(str::to_owned)).next().expect("it tells");
    let mut words = held.split(' ');
    let node: i32 = words.next().and_then(|pid| pid.parse().ok()).expect("a pid");
    let namespaces: BTreeSet<String> = words.map(str::to_owned).collect();
    assert_eq!(namespaces.len(), 3, "{held}");
    assert!(is_alive(node) && namespaces.is_subset(&known_namespaces()), "{held}");
    assert_eq!(devices(), before, "a device where others see it");
    // SAFETY: a plain system call on a child that is not reaped yet.
    unsafe { libc::kill(i32::try_from(child.id()).expect("a pid"), libc::SIGKILL) };
    child.wait().expect("reaped");
    wait_until("the end of what ran in a node's namespace", || !is_alive(node));
    wait_until("the end of all namespaces", || known_namespaces().is_disjoint(&namespaces));
    assert_eq!(devices(), before);
}

/// Makes a network with a process in it, tells of both, and waits to be killed.
#[expect(clippy::zombie_processes, reason = "it is to be alive when this process is killed")]
fn hold() {
    let network = Network::create(2, 1).expect("a network");
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let network_of = network.seats()[0].network.clone();
    crate::cluster::Surroundings { network: network_of, env: Vec::new() }.apply(&mut command);
    let child = crate::cluster::spawn_bound(command).expect("started");
    let of = |path: String| std::fs::read_link(path).expect("a namespace").to_string_lossy().into_owned();
    let places = network.seats.iter().map(|place| of(format!("/proc/self/fd/{}", place.namespace.as_raw_fd())));
    let mut namespaces: Vec<String> = places.collect();
    namespaces.push(of("/proc/thread-self/ns/net".to_owned()));
    assert_eq!(of(format!("/proc/{}/ns/net", child.id())), namespaces[0], "the child is in its node's namespace");
    println!("\nheld {} {}", child.id(), namespaces.join(" "));
    loop {
        std::thread::park();
    }
}

/// Network namespaces that some process of the machine is in or holds.
fn known_namespaces() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let links = |folder: String| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut add = |path: std::path::PathBuf| {
        if let Ok(target) = std::fs::read_link(path)
            && target.to_string_lossy().starts_with("net:[")
        {
            known.insert(target.to_string_lossy().into_owned());
        }
    };
    for process in links("/proc".to_owned()).filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
    {
        let folder = process.path();
        for task in links(folder.join("task").to_string_lossy().into_owned()) {
            add(task.path().join("ns/net"));
        }
        for fd in links(folder.join("fd").to_string_lossy().into_owned()) {
            add(fd.path());
        }
    }
    known
}

/// Devices of this process's own namespace.
fn devices() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/net/dev").expect("readable");
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}
