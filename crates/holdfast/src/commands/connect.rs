//! Flags that say where the cluster is.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use holdfast_client::{AdminClient, Client, v1};
use holdfast_server::facts::Answers;
use holdfast_survey::{CheckId, Facts, Limits};

use crate::cli::host_port;

/// Where clients connect.
#[derive(Debug, clap::Args)]
pub struct ClientArgs {
    /// Client addresses of the nodes; with all of them the command survives any node.
    #[arg(
        long = "endpoint",
        value_name = "HOST:PORT[,…]",
        value_delimiter = ',',
        value_parser = host_port,
        default_value = "127.0.0.1:7470"
    )]
    endpoints: Vec<String>,
    /// How long each call may take with its retries, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    deadline_ms: u64,
}

impl ClientArgs {
    /// A client.
    pub fn client(&self) -> anyhow::Result<Client> {
        let deadline = Duration::from_millis(self.deadline_ms);
        Ok(Client::builder().endpoints(self.endpoints.iter().cloned()).deadline(deadline).build()?)
    }
}

/// Where operators connect.
#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    /// Admin addresses of nodes; the first that answers is used.
    #[arg(
        long = "endpoint",
        value_name = "HOST:PORT[,…]",
        value_delimiter = ',',
        value_parser = host_port,
        default_value = "127.0.0.1:7472"
    )]
    pub endpoints: Vec<String>,
}

impl AdminArgs {
    /// The first node that answers, and its status.
    pub async fn first(&self) -> anyhow::Result<(AdminClient, v1::GetStatusResponse)> {
        let mut failed = None;
        for address in &self.endpoints {
            let admin = AdminClient::new(address)?.with_deadline(Duration::from_secs(3));
            match admin.status().await {
                Ok(status) => return Ok((admin, status)),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None => anyhow::bail!("no endpoint was given"),
        }
    }

    /// The leader's admin listener, and whose it is. All nodes are asked: one that was taken out, or cut off, may still
    /// name the leader of then.
    pub async fn leader(&self) -> anyhow::Result<(AdminClient, u64)> {
        self.statuses().await?.leader()
    }
}

impl Statuses {
    fn leader(&self) -> anyhow::Result<(AdminClient, u64)> {
        let (facts, _) = self.facts();
        let Some(leader_id) = facts.leader else {
            let message = "no node leads, or none that a quorum confirmed lately; see `holdfast cluster health`";
            return Err(crate::exit::failure(crate::exit::Exit::Unreachable, message));
        };
        let own = self.by_id.get(&leader_id).and_then(|status| status.self_.as_ref());
        let known = || self.by_id.values().flat_map(|status| &status.nodes).find(|node| node.node_id == leader_id);
        match own.or_else(known).filter(|leader| !leader.admin_address.is_empty()) {
            Some(leader) => Ok((AdminClient::new(&leader.admin_address)?, leader_id)),
            None => {
                anyhow::bail!("node {leader_id} leads, but its admin address is not known; name it with --endpoint")
            }
        }
    }
}

/// A node that is further behind takes no snapshot: it would come late to it.
const BEHIND_ENTRIES_MAX: u64 = 10_000;

impl AdminArgs {
    /// Who takes a snapshot: a voter that does not lead, so that reading the state is beside everybody's writes and not before
    /// them; the leader where no other is well. The same one time after time, as long as it is: it knows what it shipped
    /// before.
    pub async fn snapshot_taker(&self) -> anyhow::Result<AdminClient> {
        let statuses = self.statuses().await?;
        let (leading, leader_id) = statuses.leader()?;
        let Some(leader) = statuses.by_id.get(&leader_id) else { return Ok(leading) };
        match statuses.by_id.values().find(|status| takes_snapshots(leader, status)) {
            Some(follower) => {
                let own = follower.self_.as_ref().map(|own| own.admin_address.as_str()).unwrap_or_default();
                Ok(AdminClient::new(own)?)
            }
            None => Ok(leading),
        }
    }
}

/// A follower that is as good for it as the leader.
fn takes_snapshots(leader: &v1::GetStatusResponse, status: &v1::GetStatusResponse) -> bool {
    let (Some(own), Some(group), Some(led)) = (&status.self_, status.groups.first(), leader.groups.first()) else {
        return false;
    };
    let names = |status: &v1::GetStatusResponse| -> Vec<String> {
        status.destinations.iter().map(|destination| destination.name.clone()).collect()
    };
    let voter = leader.nodes.iter().any(|node| node.node_id == own.node_id && node.role() == v1::NodeRole::Voter);
    let sound = status.integrity.as_ref().is_none_or(|known| known.diverged.is_empty() && known.doubt.is_empty());
    let near = led.committed_index.saturating_sub(group.applied_index) <= BEHIND_ENTRIES_MAX;
    let known = status.incarnation == leader.incarnation && names(status) == names(leader);
    let leads = leader.self_.as_ref().is_some_and(|leading| leading.node_id == own.node_id);
    let roomy = !status.checks.iter().any(|check| check.check_id == CheckId::DiskLow.as_str());
    voter && roomy && sound && near && known && !leads && !status.draining && !own.admin_address.is_empty()
}

/// What the nodes of a cluster said of themselves.
pub struct Statuses {
    /// Of the first endpoint that answered.
    pub first: v1::GetStatusResponse,
    /// All answers, by node id.
    pub by_id: BTreeMap<u64, v1::GetStatusResponse>,
}

impl AdminArgs {
    /// Asks every endpoint, and every member that one of them names; needs no quorum.
    pub async fn statuses(&self) -> anyhow::Result<Statuses> {
        let (_, first) = self.first().await?;
        let mut addresses: Vec<&str> = self.endpoints.iter().map(String::as_str).collect();
        addresses.extend(first.nodes.iter().map(|node| node.admin_address.as_str()));
        addresses.retain(|address| !address.is_empty());
        addresses.sort_unstable();
        addresses.dedup();
        let ask = |address: &str| {
            let admin = AdminClient::new(address).map(|admin| admin.with_deadline(Duration::from_secs(2)));
            async move { admin?.status().await }
        };
        let answers = join_all(addresses.into_iter().map(ask)).await;
        let own = |status: v1::GetStatusResponse| Some((status.self_.as_ref()?.node_id, status));
        // Another cluster at a reused address says nothing about this one.
        let of_this = |status: &v1::GetStatusResponse| status.cluster_id == first.cluster_id;
        let by_id = answers.into_iter().flatten().filter(of_this).filter_map(own).collect();
        Ok(Statuses { first, by_id })
    }
}

impl Statuses {
    /// What the survey judges, and by which thresholds.
    pub fn facts(&self) -> (Facts, Limits) {
        let statuses: Vec<v1::GetStatusResponse> = self.by_id.values().cloned().collect();
        let answers = Answers { statuses: &statuses, asked_all: true };
        (answers.facts(), answers.limits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(id: u64, applied_index: u64) -> v1::GetStatusResponse {
        let node = |node_id| v1::Node {
            node_id,
            admin_address: format!("10.0.0.{node_id}:7472"),
            role: v1::NodeRole::Voter.into(),
            ..Default::default()
        };
        v1::GetStatusResponse {
            self_: Some(node(id)),
            nodes: (1..=3).map(node).collect(),
            groups: vec![v1::GroupStatus { applied_index, committed_index: 20_000, ..Default::default() }],
            destinations: vec![v1::DestinationStatus { name: "vault".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn a_follower_that_is_well_takes_snapshots() {
        let leader = status(1, 20_000);
        assert!(!takes_snapshots(&leader, &leader), "the leader does where nobody else can");
        assert!(takes_snapshots(&leader, &status(2, 19_000)));
        assert!(!takes_snapshots(&leader, &status(2, 9_000)), "it is far behind");
        let with = |change: fn(&mut v1::GetStatusResponse)| {
            let mut follower = status(2, 20_000);
            change(&mut follower);
            takes_snapshots(&leader, &follower)
        };
        assert!(!with(|status| status.destinations.clear()), "it ships elsewhere");
        assert!(!with(|status| status.draining = true));
        assert!(!with(|status| status.incarnation = 7));
        assert!(!with(|status| status.self_ = None));
        assert!(!with(|status| {
            status.integrity = Some(v1::IntegrityStatus { doubt: "they differ".into(), ..Default::default() });
        }));
        let mut learner = status(2, 20_000);
        learner.self_ = Some(v1::Node { node_id: 9, ..learner.self_.expect("itself") });
        assert!(!takes_snapshots(&leader, &learner), "no voter");
    }
}
