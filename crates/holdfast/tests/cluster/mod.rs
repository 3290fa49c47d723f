//! A cluster of real processes for a test: started with `holdfast dev`, gone with the test, also when it fails.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_client::{AdminClient, Client, RecordRef};
use holdfast_wire::v1;

pub const BINARY: &str = env!("CARGO_BIN_EXE_holdfast");

/// One node as the ready file names it.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Node {
    pub id: u64,
    pub pid: i32,
    pub data_dir: PathBuf,
    pub client: String,
    pub admin: String,
    pub http: String,
    pub argv: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Ready {
    nodes: Vec<Node>,
}

/// A running cluster.
pub struct Cluster {
    pub dir: PathBuf,
    pub nodes: Vec<Node>,
    ports: Ports,
    args: Vec<String>,
    dev: Child,
    restarted: BTreeMap<usize, Child>,
}

/// Waits until `done` is true; panics with `what` after a minute.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "waited a minute for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`wait_until`], for conditions that ask a node.
pub async fn wait_for(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(Instant::now() < end, "waited a minute for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ports that this test has to itself as long as it lives.
#[derive(Clone)]
struct Ports {
    base: u16,
    /// Nodes use the first four of each ten; the tenth, bound here, tells other tests that these thirty are taken.
    _claim: Arc<std::net::TcpListener>,
}

/// The ports that the system hands to outgoing connections. A node that is down for a moment could lose a port among
/// them to any client on the machine.
fn ephemeral() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().filter_map(|bound| bound.parse().ok());
    bounds.next().unwrap_or(32_768)..=bounds.next().unwrap_or(60_999)
}

impl Ports {
    /// Thirty ports in a row that nobody listens on, none of them ephemeral.
    fn claim() -> Self {
        let ephemeral = ephemeral();
        let all: Vec<u16> = (10_000u16..65_000)
            .step_by(30)
            .filter(|base| base + 30 <= *ephemeral.start() || base > ephemeral.end())
            .collect();
        // Tests that run side by side begin at different places.
        let first = std::process::id() as usize * 7 % all.len();
        for base in all[first..].iter().chain(&all[..first]) {
            let Ok(claim) = std::net::TcpListener::bind(("127.0.0.1", base + 9)) else { continue };
            if (0..30).filter(|n| *n != 9).all(|n| std::net::TcpListener::bind(("127.0.0.1", base + n)).is_ok()) {
                return Self { base: *base, _claim: Arc::new(claim) };
            }
        }
        panic!("no thirty free ports in a row");
    }
}

impl Cluster {
    /// Starts three nodes in `dir` with further arguments of `dev`.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_on(Ports::claim(), dir, args)
    }

    /// Starts three nodes in `dir` on the ports of a cluster that is gone.
    pub fn start_after(gone: Self, dir: &Path, args: &[&str]) -> Self {
        let ports = gone.ports.clone();
        drop(gone);
        Self::start_on(ports, dir, args)
    }

    fn start_on(ports: Ports, dir: &Path, args: &[&str]) -> Self {
        let port_base = ports.base;
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let ready = dir.with_extension("ready.json");
        let _ = std::fs::remove_file(&ready);
        let mut dev = Command::new(BINARY)
            .args(["dev", "--nodes", "3", "--port-base", &port_base.to_string()])
            .arg("--data")
            .arg(dir)
            .arg("--ready-file")
            .arg(&ready)
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("holdfast dev starts");
        wait_until("the ready file", || {
            if let Some(status) = dev.try_wait().expect("dev can be asked") {
                panic!("holdfast dev ended with {status}");
            }
            ready.exists()
        });
        let text = std::fs::read_to_string(&ready).expect("ready file");
        let ready: Ready = serde_json::from_str(&text).expect("ready file is JSON");
        Self { dir: dir.to_owned(), nodes: ready.nodes, ports, args, dev, restarted: BTreeMap::new() }
    }

    pub fn port_base(&self) -> u16 {
        self.ports.base
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> Client {
        Client::builder()
            .endpoints(self.nodes.iter().map(|node| node.client.clone()))
            .deadline(Duration::from_secs(30))
            .build()
            .expect("client")
    }

    /// A client of one node.
    pub fn client_of(&self, place: usize) -> Client {
        Client::builder().endpoints([self.nodes[place].client.clone()]).build().expect("client")
    }

    pub async fn status(&self, place: usize) -> Option<v1::GetStatusResponse> {
        AdminClient::new(&self.nodes[place].admin).expect("address").status().await.ok()
    }

    /// Place of the leader that a majority of reachable nodes believes in.
    pub async fn leader(&self) -> usize {
        let mut found = None;
        wait_for("a leader", async || {
            let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
            for place in 0..self.nodes.len() {
                if let Some(status) = self.status(place).await {
                    *votes.entry(status.groups[0].leader_id).or_default() += 1;
                }
            }
            found = votes
                .into_iter()
                .filter(|(leader, count)| *leader != 0 && *count >= 2)
                .find_map(|(leader, _)| self.nodes.iter().position(|node| node.id == leader));
            found.is_some()
        })
        .await;
        found.expect("a leader")
    }

    /// `kill -9` of one node.
    pub fn kill(&mut self, place: usize) {
        let pid = self.nodes[place].pid;
        // SAFETY: plain system call; the process is one this test started.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        if let Some(mut child) = self.restarted.remove(&place) {
            end_group(&child, libc::SIGKILL);
            child.wait().expect("reaped");
        }
        wait_until("the node's end", || !is_alive(pid));
    }

    /// Starts a killed node again, by its own command line, possibly under another program.
    pub fn restart_under(&mut self, place: usize, under: &[&str]) {
        let mut argv: Vec<String> = under.iter().map(|part| (*part).to_owned()).collect();
        argv.extend(self.nodes[place].argv.clone());
        let log = std::fs::File::create(self.dir.join(format!("restarted-{place}.log"))).expect("log");
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("the node starts");
        self.nodes[place].pid = i32::try_from(child.id()).expect("pid");
        self.restarted.insert(place, child);
    }

    pub fn restart(&mut self, place: usize) {
        self.restart_under(place, &[]);
    }

    /// Waits until all nodes applied the same index and agree on the digest there.
    pub async fn wait_converged(&self) {
        wait_for("equal digests at one index", async || {
            let mut seen = Vec::new();
            for place in 0..self.nodes.len() {
                match self.status(place).await {
                    Some(status) => seen.push((status.groups[0].digest_index, status.groups[0].digest.clone())),
                    None => return false,
                }
            }
            seen.iter().all(|one| *one == seen[0])
        })
        .await;
    }

    /// Ends dev with SIGTERM and waits for it and all nodes.
    pub fn stop(&mut self) {
        for (_, mut child) in std::mem::take(&mut self.restarted) {
            end_group(&child, libc::SIGTERM);
            child.wait().expect("reaped");
        }
        let pid = i32::try_from(self.dev.id()).expect("pid");
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        self.dev.wait().expect("dev ends");
    }

    /// Stops and starts the whole cluster on the same data.
    pub fn reopen(&mut self) {
        self.stop();
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let fresh = Self::start_on(self.ports.clone(), &self.dir.clone(), &args);
        *self = fresh;
    }
}

impl Cluster {
    /// What the nodes said last: a failed test in CI leaves nothing else behind.
    fn show_logs(&self) {
        let logs = (0..3).flat_map(|place| {
            [self.dir.join(format!("log/n{place}.log")), self.dir.join(format!("restarted-{place}.log"))]
        });
        for log in logs {
            let Ok(text) = std::fs::read_to_string(&log) else { continue };
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", log.display());
            for line in &lines[lines.len().saturating_sub(25)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// A node under strace is a group of two; strace's end alone would let it go on.
fn end_group(child: &Child, signal: i32) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // SAFETY: plain system call on a process group that this test made.
        unsafe { libc::kill(-pid, signal) };
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        for child in self.restarted.values_mut() {
            end_group(child, libc::SIGKILL);
            let _ = child.wait();
        }
        if matches!(self.dev.try_wait(), Ok(None)) {
            let pid = i32::try_from(self.dev.id()).unwrap_or(0);
            // SAFETY: as above.
            unsafe { libc::kill(pid, libc::SIGTERM) };
            let _ = self.dev.wait();
        }
    }
}

/// The process runs, and is not merely waiting to be reaped.
pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()), Some("Z")))
}

/// A contact of a user.
pub fn contact<'a>(user: &'a str, id: &'a str) -> RecordRef<'a> {
    RecordRef { user, collection: "contacts", record_id: id }
}

/// Runs the binary; gives exit code, stdout and stderr.
pub fn holdfast(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(BINARY).args(args).stdin(Stdio::null()).output().expect("holdfast runs");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
