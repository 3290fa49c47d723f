//! Flags that say where the cluster is.

use std::time::Duration;

use holdfast_client::{AdminClient, Client, v1};

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

    /// The leader's admin listener, and whose it is.
    pub async fn leader(&self) -> anyhow::Result<(AdminClient, u64)> {
        let (admin, status) = self.first().await?;
        let leader_id = leader_of(&status);
        if leader_id == 0 {
            let message = format!("{} knows no leader; see `holdfast cluster status`", admin.address());
            return Err(crate::exit::failure(crate::exit::Exit::Unreachable, message));
        }
        if status.self_.as_ref().is_some_and(|node| node.node_id == leader_id) {
            return Ok((admin, leader_id));
        }
        let leader = status.nodes.iter().find(|node| node.node_id == leader_id);
        match leader.filter(|leader| !leader.admin_address.is_empty()) {
            Some(leader) => Ok((AdminClient::new(&leader.admin_address)?, leader_id)),
            None => {
                anyhow::bail!("node {leader_id} leads, but its admin address is not known; name it with --endpoint")
            }
        }
    }
}

/// Leader that a node believes in; 0 = none.
pub fn leader_of(status: &v1::GetStatusResponse) -> u64 {
    status.groups.first().map_or(0, |group| group.leader_id)
}
