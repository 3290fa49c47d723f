//! Nodes that this process starts and founds itself: each in surroundings of its own, and further ones later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::create_dir_all;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_client::{AdminClient, RecordRef, v1};

use super::{Cluster, NODES, Node, PATIENCE, comes_true};
use crate::cluster::ports::Ports;

/// For the call that founds.
const FOUND_WITHIN: Duration = Duration::from_secs(20);
/// For one try of the read that shows that a node serves.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// A record that nobody has.
const PROBE: RecordRef<'_> = RecordRef { user: "probe", collection: "x-probe", record_id: "founded" };
/// What stands for a node's place in its configuration.
const PLACE: &str = "{place}";
/// Flags that make a node the one it is.
const OWN: &[&str] =
    &["--node-id", "--data-dir", "--listen-client", "--listen-peer", "--listen-admin", "--listen-http", "--label"];

/// What a node is started in.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Its network namespace; `None` = that of this process.
    pub network: Option<Arc<OwnedFd>>,
    /// Further environment variables.
    pub env: Vec<(String, String)>,
}

/// Where a node listens, and in which network.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Address for clients.
    pub client: String,
    /// Address for the other nodes.
    pub peer: String,
    /// Address for operators.
    pub admin: String,
    /// Address for probes and metrics.
    pub http: String,
    /// Its network namespace; `None` = that of this process.
    pub network: Option<Arc<OwnedFd>>,
}

/// A cluster to be.
#[derive(Debug, Clone)]
pub struct Founding<'a> {
    /// The binary under test.
    pub binary: &'a Path,
    /// Data in `n<place>`, logs in `log/n<place>.log`; a `n<place>` that is there, such as a mount point, is used.
    pub dir: &'a Path,
    /// First voters, up to six on this machine's loopback.
    pub nodes: usize,
    /// For the first voters, and then for further nodes; none = loopback, on a row of ports.
    pub seats: Vec<Seat>,
    /// Failure domains of the first voters, `KEY=VALUE,…` each; may be shorter than `nodes`.
    pub labels: Vec<String>,
    /// Keys of all nodes' configuration, `KEY=VALUE`; `{place}` in them is each node's place.
    pub set: Vec<String>,
    /// Further environment variables, by place; may be longer than `nodes`, for further ones.
    pub env: Vec<Vec<(String, String)>>,
}

impl Surroundings {
    /// Has a command start in them.
    pub(crate) fn apply(&self, command: &mut Command) {
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(network) = self.network.clone() {
            // SAFETY: between fork and exec only one system call is made, on a descriptor that the closure keeps open.
            unsafe {
                command.pre_exec(move || match libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                });
            }
        }
    }
}

impl Cluster {
    /// Name that founded clusters get: some calls want it as a confirmation.
    pub const NAME: &str = "jepsen";

    /// Starts nodes as children of this process, founds a cluster on them, and waits until each serves.
    ///
    /// # Errors
    /// When there are no ports, or a node ends or does not serve within a minute.
    pub async fn found(founding: Founding<'_>) -> anyhow::Result<Self> {
        let ports = Ports::claim().context("no thirty free ports in a row")?;
        create_dir_all(founding.dir.join("log")).with_context(|| format!("create {}", founding.dir.display()))?;
        let mut base: Vec<String> = vec![founding.binary.to_string_lossy().into_owned()];
        base.extend(["serve", "--no-config", "--insecure-plaintext"].map(str::to_owned));
        base.extend(founding.set.iter().flat_map(|pair| ["--set".to_owned(), pair.clone()]));
        let mut cluster = Self {
            dir: founding.dir.to_owned(),
            nodes: Vec::new(),
            binary: founding.binary.to_owned(),
            ports,
            args: Vec::new(),
            dev: None,
            own: BTreeMap::new(),
            retired: BTreeSet::new(),
            surroundings: BTreeMap::new(),
            seats: founding.seats,
            env: founding.env,
        };
        for place in 0..founding.nodes {
            let labels = founding.labels.get(place).map_or("", String::as_str);
            cluster.seat(place as u64 + 1, labels, &base);
        }
        cluster.init().await.inspect_err(|_| cluster.show_logs())?;
        Ok(cluster)
    }

    async fn init(&mut self) -> anyhow::Result<()> {
        let mut voters = Vec::new();
        for place in 0..self.nodes.len() {
            let mut status = None;
            let answers = comes_true(PATIENCE, async || {
                status = self.status(place).await;
                status.is_some() || self.ended(place).is_some()
            });
            answers.await;
            let id = self.nodes[place].id;
            voters.push(status.and_then(|status| status.self_).with_context(|| format!("node {id} does not answer"))?);
        }
        let request = v1::InitClusterRequest { cluster_name: Self::NAME.to_owned(), voters, group_count: 1 };
        let admin = AdminClient::new(&self.nodes[0].admin)?.with_deadline(FOUND_WITHIN);
        admin.init_cluster(request).await.context("found the cluster")?;
        for place in 0..self.nodes.len() {
            let client = self.client_of(place).with_deadline(PROBE_WITHIN);
            let serves = comes_true(PATIENCE, async || client.get(PROBE).await.is_ok()).await;
            ensure!(serves, "node {} does not serve", self.nodes[place].id);
        }
        Ok(())
    }

    /// Starts a further node on an empty directory, under an id of its own and with these failure domains. It belongs to
    /// no cluster until it is added. Without seats up to three: they listen on the ports of a row that the first three
    /// leave free. Gives its place.
    ///
    /// # Panics
    /// When it cannot be started, or there is no room for it.
    pub fn start_further(&mut self, id: u64, labels: &str) -> usize {
        // As the first node, but for what makes it that one.
        let mut base: Vec<String> = Vec::new();
        let mut rest = self.nodes[0].argv.iter();
        while let Some(word) = rest.next() {
            if OWN.contains(&word.as_str()) {
                rest.next();
            } else {
                base.push(word.clone());
            }
        }
        self.seat(id, labels, &base)
    }

    /// Whether there is room for a further node.
    pub fn has_room(&self) -> bool {
        self.nodes.len() < if self.seats.is_empty() { 2 * NODES } else { self.seats.len() }
    }

    /// Addresses for clients of all nodes that are here, and of those that there is room for: who asks them all goes on
    /// when members come and go.
    pub fn endpoints(&self) -> Vec<String> {
        let room = if self.seats.is_empty() { 2 * NODES } else { self.seats.len() };
        (0..room).map(|place| self.seat_at(place).client).collect()
    }

    fn seat_at(&self, place: usize) -> Seat {
        self.seats.get(place).cloned().unwrap_or_else(|| {
            // The first three nodes use the first four of each ten ports; others those that they leave free.
            let first =
                usize::from(self.ports.base) + if place < NODES { place * 10 } else { (place - NODES) * 10 + 4 };
            let address = |offset: usize| format!("127.0.0.1:{}", first + offset);
            let [client, peer, admin, http] = [0, 1, 2, 3].map(address);
            Seat { client, peer, admin, http, network: None }
        })
    }

    /// Starts a node at the next place.
    fn seat(&mut self, id: u64, labels: &str, base: &[String]) -> usize {
        let place = self.nodes.len();
        assert!(self.has_room(), "there is no room for a node at place {place}");
        let seat = self.seat_at(place);
        let data_dir = self.dir.join(format!("n{place}"));
        let mut argv: Vec<String> = base.iter().map(|word| word.replace(PLACE, &place.to_string())).collect();
        let mut add = |flag: &str, value: &str| argv.extend([flag.to_owned(), value.to_owned()]);
        add("--node-id", &id.to_string());
        add("--data-dir", &data_dir.to_string_lossy());
        add("--listen-client", &seat.client);
        add("--listen-peer", &seat.peer);
        add("--listen-admin", &seat.admin);
        add("--listen-http", &seat.http);
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            add("--label", label);
        }
        self.nodes.push(Node { id, pid: 0, data_dir, client: seat.client, admin: seat.admin, http: seat.http, argv });
        let env = self.env.get(place).cloned().unwrap_or_default();
        self.surroundings.insert(place, Surroundings { network: seat.network, env });
        self.restart(place);
        place
    }
}
