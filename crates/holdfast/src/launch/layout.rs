//! Where the nodes of a local cluster live: directories, addresses, and the command line of each.
//!
//! Contract: node i, from 0, has id i+1, data in DIR/n<i>, and listens on 127.0.0.1 at B+10·i for clients, +1 for
//! peers, +2 for operators, +3 for HTTP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use holdfast_client::v1;
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::launch::ports::PORTS_PER_NODE;

/// Where `dev` listens when nothing else is said.
pub const DEFAULT_PORT_BASE: u16 = 7470;

const MEMO: &str = "dev.json";

/// A node of a local cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Node id.
    pub id: u64,
    /// Its data.
    pub data_dir: PathBuf,
    /// Listener for clients.
    pub client: String,
    /// Listener for peers.
    pub peer: String,
    /// Listener for operators.
    pub admin: String,
    /// Listener for HTTP.
    pub http: String,
    /// Failure domains.
    pub labels: BTreeMap<String, String>,
    /// Where its process writes.
    pub log: PathBuf,
    /// Destinations.
    pub offsite: Vec<String>,
    /// Failure domains of the destinations, in their order; may be shorter.
    pub offsite_labels: Vec<BTreeMap<String, String>>,
    /// Further configuration.
    pub set: Vec<(String, String)>,
}

impl NodeSpec {
    /// Command line that runs this node, and runs it again.
    pub fn argv(&self, binary: &Path) -> Vec<String> {
        let mut argv = vec![binary.to_string_lossy().into_owned(), "serve".into(), "--no-config".into()];
        let mut add = |flag: &str, value: String| argv.extend([flag.to_owned(), value]);
        add("--node-id", self.id.to_string());
        add("--data-dir", self.data_dir.to_string_lossy().into_owned());
        add("--listen-client", self.client.clone());
        add("--listen-peer", self.peer.clone());
        add("--listen-admin", self.admin.clone());
        add("--listen-http", self.http.clone());
        for (key, value) in &self.labels {
            add("--label", format!("{key}={value}"));
        }
        for url in &self.offsite {
            add("--offsite", url.clone());
        }
        if self.offsite_labels.iter().any(|labels| !labels.is_empty()) {
            let parts = self.offsite_labels.iter().map(render_labels);
            add("--offsite-labels", parts.collect::<Vec<_>>().join(";"));
        }
        for (key, value) in &self.set {
            add("--set", format!("{key}={value}"));
        }
        argv
    }

    /// The same as keys of the configuration, so that it can be checked before a process is started.
    pub fn settings(&self) -> Vec<(String, String)> {
        let mut all = vec![
            ("node.id".to_owned(), self.id.to_string()),
            ("node.data_dir".to_owned(), self.data_dir.to_string_lossy().into_owned()),
            ("listen.client".to_owned(), self.client.clone()),
            ("listen.peer".to_owned(), self.peer.clone()),
            ("listen.admin".to_owned(), self.admin.clone()),
            ("listen.http".to_owned(), self.http.clone()),
        ];
        all.extend(self.offsite.iter().map(|url| ("offsite".to_owned(), url.clone())));
        all.extend(self.labels.iter().map(|(key, value)| (format!("node.labels.{key}"), value.clone())));
        all.extend(self.set.iter().cloned());
        all
    }

    /// As a member of the cluster.
    pub fn member(&self) -> v1::Node {
        v1::Node {
            node_id: self.id,
            client_address: self.client.clone(),
            peer_address: self.peer.clone(),
            admin_address: self.admin.clone(),
            http_address: self.http.clone(),
            labels: self.labels.clone().into_iter().collect(),
            ..Default::default()
        }
    }
}

/// A local cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSpec {
    /// Holds everything of it.
    pub dir: PathBuf,
    /// First port.
    pub port_base: u16,
    /// Name it is founded with.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<NodeSpec>,
}

/// What a directory remembers of the cluster in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memo {
    v: u32,
    /// Number of nodes.
    pub nodes: usize,
    /// First port.
    pub port_base: u16,
    /// Name.
    pub name: String,
}

impl Memo {
    /// Of the cluster in `dir`; `None` = there is none.
    pub fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(MEMO);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let memo = serde_json::from_slice(&bytes);
                memo.map(Some).with_context(|| format!("{} is damaged; remove it and name all flags", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
}

impl ClusterSpec {
    /// The layout of `count` nodes in `dir`.
    pub fn new(dir: &Path, count: usize, port_base: u16, name: &str) -> anyhow::Result<Self> {
        anyhow::ensure!(count > 0, "a cluster has at least one node");
        let last = usize::from(port_base) + count * usize::from(PORTS_PER_NODE);
        anyhow::ensure!(
            port_base > 0 && last <= usize::from(u16::MAX) + 1,
            "{count} nodes from port {port_base} need ports beyond 65535; choose a lower --port-base"
        );
        let dir = std::path::absolute(dir).with_context(|| format!("find {}", dir.display()))?;
        let nodes = (0..count).map(|index| {
            let port = |offset: usize| {
                format!("127.0.0.1:{}", usize::from(port_base) + index * usize::from(PORTS_PER_NODE) + offset)
            };
            NodeSpec {
                id: index as u64 + 1,
                data_dir: dir.join(format!("n{index}")),
                client: port(0),
                peer: port(1),
                admin: port(2),
                http: port(3),
                labels: BTreeMap::new(),
                log: dir.join("log").join(format!("n{index}.log")),
                offsite: Vec::new(),
                offsite_labels: Vec::new(),
                set: Vec::new(),
            }
        });
        let nodes = nodes.collect();
        Ok(Self { dir, port_base, name: name.to_owned(), nodes })
    }

    /// Gives each node its failure domains; fewer than nodes is an error.
    pub fn label(&mut self, labels: &Labels) -> anyhow::Result<()> {
        labels.check_count("--labels", "node", self.nodes.len())?;
        for (node, labels) in self.nodes.iter_mut().zip(&labels.0) {
            node.labels.clone_from(labels);
        }
        Ok(())
    }

    /// Client addresses of all nodes.
    pub fn clients(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client.clone()).collect()
    }

    /// Leaves a note in the directory of what lies there.
    pub fn remember(&self) -> anyhow::Result<()> {
        let memo = Memo { v: 1, nodes: self.nodes.len(), port_base: self.port_base, name: self.name.clone() };
        atomic_file::write(&self.dir.join(MEMO), serde_json::to_string_pretty(&memo)?.as_bytes())
    }
}

/// Failure domains of all nodes, or of all destinations, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(pub Vec<BTreeMap<String, String>>);

impl Labels {
    /// One part for each of `count` things of a kind, or an error that says so.
    pub fn check_count(&self, flag: &str, thing: &str, count: usize) -> anyhow::Result<()> {
        let parts = self.0.len();
        anyhow::ensure!(
            parts == count,
            "{flag} has {parts} parts for {count} {thing}s; write one part per {thing}, separated by ;"
        );
        Ok(())
    }
}

/// Labels of one thing as `array=a1,site=x`.
pub fn render_labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Reads `array=a1,site=x;array=a2,site=x`: one part per node, an empty part for none.
pub fn parse_labels(text: &str) -> Result<Labels, String> {
    let part = |part: &str| {
        let pairs = part.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        pairs.map(crate::cli::key_value).collect::<Result<BTreeMap<_, _>, _>>()
    };
    text.split(';').map(part).collect::<Result<_, _>>().map(Labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_contract() {
        let mut spec = ClusterSpec::new(Path::new("/d"), 3, 9000, "dev").expect("fits");
        let labels = parse_labels("array=a1,site=x;array=a2;").expect("parses");
        spec.label(&labels).expect("three parts");
        let node = &spec.nodes[1];
        assert_eq!((node.id, node.data_dir.to_str()), (2, Some("/d/n1")));
        let addresses = [&node.client, &node.peer, &node.admin, &node.http];
        assert_eq!(addresses, ["127.0.0.1:9010", "127.0.0.1:9011", "127.0.0.1:9012", "127.0.0.1:9013"]);
        assert_eq!(node.labels["array"], "a2");
        assert!(spec.nodes[2].labels.is_empty());
        assert!(spec.label(&Labels(labels.0[..2].to_vec())).is_err());
    }

    #[test]
    fn ports_end_at_65535() {
        assert!(ClusterSpec::new(Path::new("/d"), 3, 65506, "dev").is_ok());
        assert!(ClusterSpec::new(Path::new("/d"), 3, 65507, "dev").is_err());
        assert!(ClusterSpec::new(Path::new("/d"), 0, 9000, "dev").is_err());
    }

    #[test]
    fn labels_need_key_and_value() {
        assert!(parse_labels("array").is_err());
        assert!(parse_labels("=x").is_err());
    }

    #[test]
    fn a_directory_remembers_its_cluster() {
        let dir = tempfile::tempdir().expect("temp");
        assert_eq!(Memo::read(dir.path()).expect("reads"), None);
        ClusterSpec::new(dir.path(), 3, 9000, "dev").expect("fits").remember().expect("writes");
        let memo = Memo::read(dir.path()).expect("reads").expect("there");
        assert_eq!((memo.nodes, memo.port_base, memo.name.as_str()), (3, 9000, "dev"));
    }
}
