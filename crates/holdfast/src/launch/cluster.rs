//! A running local cluster: started, founded if it is new, ready when every node answers linearizable reads.

use std::time::Duration;

use anyhow::Context;
use holdfast_archive::{Destination, DestinationConfig};
use holdfast_client::{AdminClient, Client, RecordRef, v1};
use holdfast_server::config::Config;
use tokio::time::{Instant, sleep};

use crate::commands::cluster::found;
use crate::exit::{Exit, failure};
use crate::launch::layout::{ClusterSpec, Memo, NodeSpec};
use crate::launch::ports::check_free;
use crate::launch::process::NodeProcess;
use crate::launch::seats::reseat;

const POLL: Duration = Duration::from_millis(50);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const READY_WITHIN: Duration = Duration::from_secs(60);
/// From SIGTERM to SIGKILL: all are gone within 10 s.
const STOP_WITHIN: Duration = Duration::from_secs(8);
/// A record that nobody has: reading it proves that a node answers with a quorum behind it.
const PROBE: RecordRef<'_> = RecordRef { user: "holdfast-probe", collection: "x-probe", record_id: "ready" };

/// A cluster whose nodes are children of this process.
#[derive(Debug)]
pub struct Cluster {
    spec: ClusterSpec,
    nodes: Vec<NodeProcess>,
}

impl Cluster {
    /// Starts all nodes, founds the cluster if it is new, and waits until it is ready.
    pub async fn start(spec: ClusterSpec) -> anyhow::Result<Self> {
        for node in &spec.nodes {
            // A wrong key is told at once, and not at the end of a dead node's log.
            Config::load(None, &node.settings()).map_err(|error| failure(Exit::Usage, error))?;
        }
        std::fs::create_dir_all(&spec.dir).with_context(|| format!("create {}", spec.dir.display()))?;
        for url in spec.nodes.iter().flat_map(|node| &node.offsite) {
            Destination::create(&DestinationConfig::from_url(url))?;
        }
        check_free(&spec)?;
        if Memo::read(&spec.dir)?.is_some_and(|memo| memo.port_base != spec.port_base) {
            let spec = spec.clone();
            tokio::task::spawn_blocking(move || reseat(&spec)).await??;
        }
        spec.remember()?;
        let nodes = spec.nodes.iter().map(NodeProcess::start).collect::<anyhow::Result<_>>()?;
        let mut cluster = Self { spec, nodes };
        cluster.found_if_new().await?;
        cluster.ready().await?;
        Ok(cluster)
    }

    /// How it is laid out.
    pub fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    /// Its nodes.
    pub fn nodes(&mut self) -> &mut [NodeProcess] {
        &mut self.nodes
    }

    /// Starts a node that ended, again.
    pub fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        self.nodes[index] = NodeProcess::start(&self.spec.nodes[index])?;
        Ok(())
    }

    /// Index of the leader and its admin listener, as soon as one says that it leads.
    pub async fn leader(&self) -> anyhow::Result<(usize, AdminClient)> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        while Instant::now() < deadline {
            for (index, node) in self.spec.nodes.iter().enumerate() {
                let admin = AdminClient::new(&node.admin)?;
                let status = admin.with_deadline(Duration::from_secs(1)).status().await;
                let leads =
                    |status: v1::GetStatusResponse| status.groups.iter().any(|group| group.leader_id == node.id);
                if status.is_ok_and(leads) {
                    return Ok((index, admin));
                }
            }
            sleep(POLL).await;
        }
        anyhow::bail!("no node leads after {} s", ANSWER_WITHIN.as_secs())
    }

    /// Stops all nodes: asks first, and kills what is not gone after 8 s.
    pub async fn stop(&mut self) {
        self.nodes.iter_mut().for_each(NodeProcess::terminate);
        let deadline = Instant::now() + STOP_WITHIN;
        for node in &mut self.nodes {
            if !node.wait_until(deadline).await {
                eprintln!("holdfast: node {} did not stop within {} s: killed", node.spec().id, STOP_WITHIN.as_secs());
                node.kill();
            }
        }
    }

    /// Kills all nodes in one moment.
    pub fn cut_power(&mut self) {
        self.nodes.iter_mut().for_each(NodeProcess::cut_power);
        self.nodes.iter_mut().for_each(NodeProcess::kill);
    }

    /// Waits until every node that runs answers a linearizable read.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        for index in 0..self.nodes.len() {
            let client = Client::builder().endpoints([self.spec.nodes[index].client.as_str()]);
            let client = client.deadline(Duration::from_secs(1)).build()?;
            while let Err(error) = client.get(PROBE).await {
                self.nodes[index].check_running()?;
                let id = self.spec.nodes[index].id;
                anyhow::ensure!(
                    Instant::now() < deadline,
                    "node {id} is not ready after {} s: {error}; see {}",
                    READY_WITHIN.as_secs(),
                    self.spec.nodes[index].log.display()
                );
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    async fn found_if_new(&mut self) -> anyhow::Result<()> {
        let mut all = Vec::new();
        for index in 0..self.nodes.len() {
            all.push(self.status(index).await?);
        }
        // Founding twice has no effect, so that one which did not end is brought to its end here.
        if !all.iter().all(|status| status.cluster_id.is_empty()) {
            return Ok(());
        }
        let voters = all
            .into_iter()
            .zip(&self.spec.nodes)
            .map(|(status, node)| status.self_.unwrap_or_else(|| NodeSpec::member(node)));
        let admin = self.spec.nodes[0].admin.clone();
        found(&admin, &self.spec.name, voters.collect()).await.context("found the cluster")?;
        Ok(())
    }

    /// Status of a node that is starting.
    async fn status(&mut self, index: usize) -> anyhow::Result<v1::GetStatusResponse> {
        let admin = AdminClient::new(&self.spec.nodes[index].admin)?.with_deadline(Duration::from_secs(2));
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            match admin.status().await {
                Ok(status) => return Ok(status),
                Err(error) => {
                    self.nodes[index].check_running()?;
                    let id = self.spec.nodes[index].id;
                    anyhow::ensure!(
                        Instant::now() < deadline,
                        "node {id} does not answer after {} s: {error}; see {}",
                        ANSWER_WITHIN.as_secs(),
                        self.spec.nodes[index].log.display()
                    );
                    sleep(POLL).await;
                }
            }
        }
    }
}
