//! A cluster of three real processes on this machine: the one harness of all tests and load programs.
//!
//! `holdfast dev` founds it and tells how each node was started; from then on a node can be killed and started again by
//! its own command line. Where nodes need surroundings of their own, `found` starts and founds them itself.
//!
//! Invariants:
//! - No process outlives the [`Cluster`], nor this process, however it ends (see `process`).
//! - Its ports are its own as long as it lives, also while nodes are down (see `ports`).
//! - What fails here is the harness or the machine: it panics, and shows the end of the nodes' logs.
//!   What a cluster under test may do wrong is given back as a value.

mod found;
mod ports;
pub(crate) mod process;
mod restored;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use holdfast_client::{AdminClient, Client, RecordRef, v1};

pub use found::{Founding, Seat, Surroundings};
pub use ports::Ports;
use process::signal_group;
pub use process::{Orphan, is_alive, spawn};
pub(crate) use restored::{RestoreFailed, backup, plan};

/// Starts a child that the kernel kills when this process ends.
#[cfg(test)]
pub(crate) fn spawn_bound(command: Command) -> std::io::Result<Child> {
    process::spawn(command, Orphan::Killed)
}

/// How long anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// A stopped process ends the calls that are under way, an fsync among them, before it is still.
const STILL_WITHIN: Duration = Duration::from_secs(5);
/// For one question to one node about itself.
const STATUS_WITHIN: Duration = Duration::from_secs(1);
/// From SIGTERM to the end of a node: it hands over, ends calls that are under way, and closes its databases.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// What the harness writes behind what a node said that ended by a signal which it brought upon itself; its name follows.
pub(crate) const CRASHED: &str = "jepsen-tests: this process ended by ";
/// The signal of `abort`.
pub(crate) const ABORT: &str = "SIGABRT";
/// What the harness writes behind what a node said that had to be killed after SIGTERM.
pub(crate) const STUCK: &str = "jepsen-tests: this process did not end within a minute of SIGTERM, and was killed";
/// Lines of each log that are shown after a failure.
const LOG_LINES: usize = 25;

/// Nodes of a cluster.
pub const NODES: usize = 3;

/// One node as the ready file of `holdfast dev` names it.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Node {
    /// Its id.
    pub id: u64,
    /// Its process, kept up to date over restarts.
    pub pid: i32,
    /// Its directory.
    pub data_dir: PathBuf,
    /// Address for clients.
    pub client: String,
    /// Address for operators.
    pub admin: String,
    /// Address for probes and metrics.
    pub http: String,
    /// Its command line.
    pub argv: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Ready {
    nodes: Vec<Node>,
}

/// A running cluster. A node's *place* is its index in `nodes`.
#[derive(Debug)]
pub struct Cluster {
    /// Data in `n<place>`, logs in `log/n<place>.log`.
    pub dir: PathBuf,
    /// The nodes.
    pub nodes: Vec<Node>,
    binary: PathBuf,
    ports: Ports,
    args: Vec<String>,
    /// Gone once the nodes were taken over.
    dev: Option<Child>,
    /// Nodes that this process started itself.
    own: BTreeMap<usize, Child>,
    /// Places whose nodes were taken out of the cluster.
    retired: BTreeSet<usize>,
    /// What each node is started in.
    surroundings: BTreeMap<usize, Surroundings>,
    /// Where further nodes go; empty = to the ports of the row.
    seats: Vec<Seat>,
    /// Environment variables, by place.
    env: Vec<Vec<(String, String)>>,
}

/// How a killed node ended; it is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Killed {
    /// The process that was killed.
    pub pid: i32,
    /// The signal that ended it; `None` = it ended otherwise, or is a child of `holdfast dev`, which alone knows.
    pub signal: Option<i32>,
}

/// Waits until `done` is true; panics with `what` after a minute.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited a minute for: {what}");
        std::thread::sleep(POLL);
    }
}

/// As [`wait_until`], for conditions that ask a node.
pub async fn wait_for(what: &str, done: impl AsyncFnMut() -> bool) {
    assert!(comes_true(PATIENCE, done).await, "waited a minute for: {what}");
}

/// Whether `done` becomes true within `limit`.
pub async fn comes_true(limit: Duration, mut done: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !done().await {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

/// A contact of a user.
pub fn contact<'a>(user: &'a str, id: &'a str) -> RecordRef<'a> {
    RecordRef { user, collection: "contacts", record_id: id }
}

impl Cluster {
    /// Starts three nodes in `dir` with further arguments of `holdfast dev`.
    ///
    /// # Errors
    /// When there are no ports, or `dev` does not make a cluster that answers within a minute.
    pub fn start(binary: &Path, dir: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let ports = Ports::claim().context("no thirty free ports in a row")?;
        Self::start_on(ports, binary, dir, args)
    }

    /// Starts three nodes in `dir` on the ports of a cluster that is gone.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_after(gone: Self, dir: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let (ports, binary) = (gone.ports.clone(), gone.binary.clone());
        drop(gone);
        Self::start_on(ports, &binary, dir, args)
    }

    fn start_on(ports: Ports, binary: &Path, dir: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let ready = dir.with_extension("ready.json");
        let _ = std::fs::remove_file(&ready);
        let mut command = Command::new(binary);
        command.args(["dev", "--port-base", &ports.base.to_string()]);
        if !args.contains(&"--nodes") {
            command.args(["--nodes", &NODES.to_string()]);
        }
        command.arg("--data").arg(dir).arg("--ready-file").arg(&ready).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let dev = process::spawn(command, Orphan::Told).with_context(|| format!("start {}", binary.display()))?;
        // From here on the process has an owner that ends it.
        let mut cluster = Self {
            dir: dir.to_owned(),
            nodes: Vec::new(),
            binary: binary.to_owned(),
            ports,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            dev: Some(dev),
            own: BTreeMap::new(),
            retired: BTreeSet::new(),
            surroundings: BTreeMap::new(),
            seats: Vec::new(),
            env: Vec::new(),
        };
        let end = Instant::now() + PATIENCE;
        while !ready.exists() {
            if let Some(dev) = &mut cluster.dev
                && let Some(status) = dev.try_wait()?
            {
                bail!("holdfast dev ended with {status}");
            }
            if Instant::now() >= end {
                cluster.show_logs();
                bail!("the cluster in {} was not ready within a minute", dir.display());
            }
            std::thread::sleep(POLL);
        }
        let text = std::fs::read_to_string(&ready)?;
        cluster.nodes = serde_json::from_str::<Ready>(&text).context("read the ready file")?.nodes;
        std::fs::remove_file(&ready)?;
        Ok(cluster)
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// First port of its row.
    pub fn port_base(&self) -> u16 {
        self.ports.base
    }

    /// A client that knows all nodes.
    ///
    /// # Panics
    /// When an address is malformed.
    pub fn client(&self) -> Client {
        let addresses = self.nodes.iter().map(|node| node.client.clone());
        Client::builder().endpoints(addresses).deadline(Duration::from_secs(30)).build().expect("client")
    }

    /// A client of one node.
    ///
    /// # Panics
    /// When its address is malformed.
    pub fn client_of(&self, place: usize) -> Client {
        Client::builder().endpoints([self.nodes[place].client.clone()]).build().expect("client")
    }

    /// What a node says of itself; `None` = it does not answer.
    ///
    /// # Panics
    /// When its address is malformed.
    pub async fn status(&self, place: usize) -> Option<v1::GetStatusResponse> {
        let admin = AdminClient::new(&self.nodes[place].admin).expect("address");
        admin.with_deadline(STATUS_WITHIN).status().await.ok()
    }

    /// Places of all nodes that were not taken out.
    pub fn members(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|place| !self.retired.contains(place)).collect()
    }

    /// A node was taken out of the cluster: from now on nothing is expected of it.
    pub fn retire(&mut self, place: usize) {
        self.retired.insert(place);
    }

    /// Place of the leader that a majority of all members believes in now.
    pub async fn leader_now(&self) -> Option<usize> {
        let members = self.members();
        let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
        for place in &members {
            if let Some(group) = self.status(*place).await.and_then(|status| status.groups.into_iter().next()) {
                *votes.entry(group.leader_id).or_default() += 1;
            }
        }
        let leader = votes.into_iter().find(|(leader, count)| *leader != 0 && *count > members.len() / 2);
        self.nodes.iter().position(|node| Some(node.id) == leader.map(|(id, _)| id))
    }

    /// As [`Cluster::leader_now`], waiting for one.
    ///
    /// # Panics
    /// After a minute without one.
    pub async fn leader(&self) -> usize {
        let mut found = None;
        wait_for("a leader", async || {
            found = self.leader_now().await;
            found.is_some()
        })
        .await;
        found.expect("waited for")
    }

    /// `kill -9` of one node.
    pub fn kill(&mut self, place: usize) -> Killed {
        self.kill_together(&[place])[0]
    }

    /// `kill -9` of several nodes in one moment: all signals are sent before the first end is waited for.
    ///
    /// # Panics
    /// When one does not end.
    pub fn kill_together(&mut self, places: &[usize]) -> Vec<Killed> {
        for place in places {
            self.signal(*place, libc::SIGKILL);
        }
        let end = |place: &usize| {
            let pid = self.nodes[*place].pid;
            let status = self.own.remove(place).map(|mut child| child.wait().expect("reaped"));
            self.note_crash(*place, status);
            // Also of what it was started under: a node under strace may end a moment after it.
            wait_until("a killed node's end", || !is_alive(pid) && !process::group_is_alive(pid));
            Killed { pid, signal: status.and_then(process::signal_of) }
        };
        places.iter().map(end).collect()
    }

    /// Sends a signal to a node, and to whatever it was started under.
    pub fn signal(&self, place: usize, signal: i32) {
        process::signal(self.nodes[place].pid, signal);
        if let Some(child) = self.own.get(&place) {
            signal_group(child, signal);
        }
    }

    /// Stops these nodes, and waits until no call of theirs is under way. They stay stopped.
    ///
    /// # Errors
    /// When one sleeps in the kernel for longer than any call takes.
    pub fn hold_still(&self, places: &[usize]) -> anyhow::Result<()> {
        places.iter().for_each(|place| self.signal(*place, libc::SIGSTOP));
        let end = Instant::now() + STILL_WITHIN;
        for place in places {
            let node = &self.nodes[*place];
            while !process::is_still(node.pid) {
                ensure!(Instant::now() < end, "node {} was stopped, and still waits for something", node.id);
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(())
    }

    /// Starts a killed node again, by its own command line.
    pub fn restart(&mut self, place: usize) {
        self.restart_under(place, &[]);
    }

    /// Starts a killed node again, by its own command line, under another program.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn restart_under(&mut self, place: usize, under: &[&str]) {
        let mut argv: Vec<&str> = under.to_vec();
        if !under.is_empty() {
            // Told by the kernel of the other program's end, as that one is of ours: strace itself heeds no SIGTERM,
            // and its end alone would let the node go on.
            argv.extend(["setpriv", "--pdeathsig", "KILL"]);
        }
        argv.extend(self.nodes[place].argv.iter().map(String::as_str));
        let log = OpenOptions::new().create(true).append(true).open(self.log(place)).expect("log");
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(surroundings) = self.surroundings.get(&place) {
            surroundings.apply(&mut command);
        }
        let child = process::spawn(command, Orphan::Killed).expect("the node starts");
        self.nodes[place].pid = i32::try_from(child.id()).expect("pid");
        self.own.insert(place, child);
    }

    /// Writes behind what a node said that it crashed, if it did: whoever reads its log may not have seen it end.
    fn note_crash(&self, place: usize, status: Option<ExitStatus>) {
        if let Some(signal) = status.and_then(process::crash_of) {
            self.note(place, &format!("{CRASHED}{signal}"));
        }
    }

    fn note(&self, place: usize, line: &str) {
        let log = OpenOptions::new().create(true).append(true).open(self.log(place));
        // On a line of its own, whatever the process was at when it ended.
        let written = log.and_then(|mut log| log.write_all(format!("\n{line}\n").as_bytes()));
        written.expect("a node's log can be written");
    }

    /// Makes all nodes children of this process, by stopping them and starting each by its own command line: only of
    /// its own children does the kernel tell how they ended.
    pub fn take_over(&mut self) {
        self.stop();
        for place in 0..self.nodes.len() {
            self.restart(place);
        }
    }

    /// How a node ended, if it ended by itself and is a child of this process.
    pub fn ended(&mut self, place: usize) -> Option<ExitStatus> {
        self.own.get_mut(&place)?.try_wait().ok().flatten()
    }

    /// Waits until all nodes applied the same index and agree on the digest there.
    ///
    /// # Panics
    /// After a minute.
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

    /// Ends all nodes with SIGTERM and waits for them, for a minute at most: then they are killed, and their logs say so.
    ///
    /// # Panics
    /// When one cannot be waited for.
    pub fn stop(&mut self) {
        self.stop_within(STOP_WITHIN);
    }

    fn stop_within(&mut self, within: Duration) {
        let own = std::mem::take(&mut self.own).into_iter().map(|(place, child)| (Some(place), child));
        let children: Vec<(Option<usize>, Child)> = own.chain(self.dev.take().map(|dev| (None, dev))).collect();
        for (_, child) in &children {
            signal_group(child, libc::SIGTERM);
            // One that a fault has stopped is told nothing until it goes on.
            signal_group(child, libc::SIGCONT);
        }
        let end = Instant::now() + within;
        for (place, mut child) in children {
            let status = process::wait_for_end(&mut child, end).expect("reaped");
            if status.is_none() {
                let who = place.map_or("holdfast dev".to_owned(), |place| format!("node {}", self.nodes[place].id));
                eprintln!("{who} did not end within {} s of SIGTERM: it is killed", within.as_secs());
                if let Some(place) = place {
                    self.note(place, STUCK);
                }
                signal_group(&child, libc::SIGKILL);
                child.wait().expect("reaped");
            }
            if let Some(place) = place {
                self.note_crash(place, status);
            }
        }
    }

    /// Stops and starts the whole cluster on the same data.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn reopen(&mut self) -> anyhow::Result<()> {
        self.stop();
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        *self = Self::start_on(self.ports.clone(), &self.binary, &self.dir, &args)?;
        Ok(())
    }

    /// Log of a node, over all its restarts.
    pub fn log(&self, place: usize) -> PathBuf {
        self.dir.join(format!("log/n{place}.log"))
    }

    /// What the nodes said last: a failed test in CI leaves nothing else behind.
    fn show_logs(&self) {
        for log in (0..self.nodes.len()).map(|place| self.log(place)) {
            let Ok(text) = std::fs::read_to_string(&log) else { continue };
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", log.display());
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        for child in self.own.values_mut() {
            signal_group(child, libc::SIGKILL);
            let _ = child.wait();
        }
        if let Some(dev) = &mut self.dev
            && matches!(dev.try_wait(), Ok(None))
        {
            signal_group(dev, libc::SIGTERM);
            if !matches!(process::wait_for_end(dev, Instant::now() + STOP_WITHIN), Ok(Some(_))) {
                signal_group(dev, libc::SIGKILL);
                let _ = dev.wait();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster of processes that are no nodes; each runs a script.
    fn of_scripts(dir: &Path, scripts: &[&str]) -> Cluster {
        std::fs::create_dir(dir.join("log")).expect("made");
        let node = |(place, script): (usize, &&str)| Node {
            id: place as u64 + 1,
            pid: 0,
            data_dir: dir.to_owned(),
            client: String::new(),
            admin: String::new(),
            http: String::new(),
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        };
        let mut cluster = Cluster {
            dir: dir.to_owned(),
            nodes: scripts.iter().enumerate().map(node).collect(),
            binary: PathBuf::new(),
            ports: Ports::claim().expect("ports"),
            args: Vec::new(),
            dev: None,
            own: BTreeMap::new(),
            retired: BTreeSet::new(),
            surroundings: BTreeMap::new(),
            seats: Vec::new(),
            env: Vec::new(),
        };
        for place in 0..scripts.len() {
            cluster.restart(place);
        }
        cluster
    }

    fn said(cluster: &Cluster, place: usize) -> String {
        std::fs::read_to_string(cluster.log(place)).unwrap_or_default()
    }

    #[test]
    fn whoever_does_not_end_is_killed_and_its_log_says_so() {
        let dir = tempfile::tempdir().expect("tempdir");
        let stuck = "trap '' TERM; echo deaf >&2; while :; do sleep 0.1; done";
        let heeds = "trap 'echo ends >&2; exit 0' TERM; echo hears >&2; while :; do sleep 0.1; done";
        let mut cluster = of_scripts(dir.path(), &[stuck, heeds]);
        wait_until("both to run", || said(&cluster, 0).contains("deaf") && said(&cluster, 1).contains("hears"));
        let pids: Vec<i32> = cluster.nodes.iter().map(|node| node.pid).collect();
        // The one that heeds it has time enough: the limit is for all, and it is asked second.
        cluster.stop_within(Duration::from_secs(2));
        for pid in pids {
            wait_until("its end", || !is_alive(pid) && !process::group_is_alive(pid));
        }
        assert!(said(&cluster, 0).contains(STUCK), "{}", said(&cluster, 0));
        assert!(said(&cluster, 1).ends_with("ends\n"), "{}", said(&cluster, 1));
    }

    #[test]
    fn a_crash_stands_behind_what_the_node_said_and_a_kill_does_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let runs = "echo runs >&2; exec sleep 600";
        let mut cluster = of_scripts(dir.path(), &["echo dies >&2; kill -ABRT $$", runs, "kill -SEGV $$"]);
        wait_until("two crashes", || cluster.ended(0).is_some() && cluster.ended(2).is_some());
        wait_until("one that runs", || said(&cluster, 1).contains("runs"));
        assert_eq!(cluster.kill(0).signal, Some(libc::SIGABRT));
        assert_eq!(cluster.kill(1).signal, Some(libc::SIGKILL));
        cluster.stop();
        assert_eq!(said(&cluster, 0), format!("dies\n\n{CRASHED}{ABORT}\n"));
        assert_eq!(said(&cluster, 1), "runs\n");
        assert_eq!(said(&cluster, 2), format!("\n{CRASHED}SIGSEGV\n"));
    }
}
