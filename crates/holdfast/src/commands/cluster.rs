//! `holdfast cluster`: found one, see how it is.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use holdfast_client::{AdminClient, Error as ClientError, v1};
use holdfast_server::facts::heard_lately;
use holdfast_wire::reply::duration_millis;
use serde::Serialize;

use crate::cli::host_port;
use crate::commands::connect::{AdminArgs, Statuses};
use crate::commands::recover::RecoverArgs;
use crate::commands::{health, recover};
use crate::exit::Exit;
use crate::launch::render_labels;
use crate::output::{self, Format, Table};

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Found a cluster on fresh nodes that are running.
    Init(InitArgs),
    /// See every node, from any node, with or without a quorum.
    Status(AdminArgs),
    /// Judge it: copies, failure domains, lag, leader. Exit 0 when nothing is wrong, 3 when something is, 4 when unknown.
    Health(AdminArgs),
    /// After a majority was lost for good: found a new cluster on what is left, and end the old one.
    Recover(Box<RecoverArgs>),
}

/// Flags of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  holdfast cluster init --name prod --nodes 10.0.0.1:7472,10.0.0.2:7472,10.0.0.3:7472")]
pub struct InitArgs {
    /// Name of the cluster; destructive commands ask for it.
    #[arg(long)]
    name: String,
    /// Admin addresses of the first voters, all fresh; three or five.
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', required = true, value_parser = host_port)]
    nodes: Vec<String>,
}

/// Runs a command.
pub async fn run(format: Format, command: Cluster) -> anyhow::Result<Exit> {
    match command {
        Cluster::Init(args) => init(format, &args).await,
        Cluster::Status(args) => status(format, &args).await,
        Cluster::Health(args) => health::run(format, &args).await,
        Cluster::Recover(args) => recover::run(format, *args).await,
    }
}

async fn init(format: Format, args: &InitArgs) -> anyhow::Result<Exit> {
    let mut voters = Vec::new();
    for address in &args.nodes {
        let status = AdminClient::new(address)?.status().await?;
        let Some(node) = status.self_ else { anyhow::bail!("{address} does not say which node it is") };
        voters.push(node);
    }
    let answer = found(&args.nodes[0], &args.name, voters).await?;
    let cluster_id = answer.cluster_id;
    let value = serde_json::json!({
        "v": 1, "cluster_id": cluster_id, "cluster_name": args.name, "incarnation": answer.incarnation,
        "nodes": args.nodes.len(), "notes": answer.notes,
    });
    output::answer(format, &value, || {
        let notes = answer.notes.iter().map(|note| format!("\nnote: {note}"));
        let founded = format!("cluster {} ({cluster_id}) is founded with {} nodes", args.name, args.nodes.len());
        std::iter::once(founded).chain(notes).collect()
    })?;
    Ok(Exit::Ok)
}

/// Founds a cluster through the node at `admin`.
pub async fn found(admin: &str, name: &str, voters: Vec<v1::Node>) -> Result<v1::InitClusterResponse, ClientError> {
    let request = v1::InitClusterRequest { cluster_name: name.to_owned(), voters, group_count: 1 };
    AdminClient::new(admin)?.with_deadline(Duration::from_secs(20)).init_cluster(request).await
}

#[derive(Debug, Serialize)]
struct StatusAnswer {
    v: u32,
    cluster_id: String,
    cluster_name: String,
    incarnation: u64,
    /// Confirmed lately by a quorum, or by a node that hears it; 0 = none.
    leader_id: u64,
    nodes: Vec<NodeAnswer>,
    destinations: Vec<DestinationAnswer>,
    checks: Vec<health::CheckAnswer>,
}

/// A member, as programs read it.
#[derive(Debug, Serialize)]
pub struct NodeAnswer {
    /// Its id.
    pub node_id: u64,
    reachable: bool,
    role: &'static str,
    client: String,
    peer: String,
    admin: String,
    http: String,
    labels: BTreeMap<String, String>,
    version: String,
    identity: String,
    draining: bool,
    integrity: Option<IntegrityAnswer>,
    #[serde(flatten)]
    raft: Option<RaftAnswer>,
}

/// What a node knows of the soundness of its state.
#[derive(Debug, Serialize)]
struct IntegrityAnswer {
    /// Why it is known to be damaged; empty = it is not.
    diverged: String,
    /// Why nobody can tell; empty = no doubt.
    doubt: String,
    /// It neither leads nor serves now.
    fenced: bool,
    /// Why its rows could not be read when that was last tried; empty = they could.
    unread: String,
    /// Index at which all its rows were last read; 0 = not since it started.
    examined_index: u64,
    examined_age_ms: Option<u64>,
    failures_total: u64,
    reinstalls_total: u64,
}

#[derive(Debug, Serialize)]
struct RaftAnswer {
    /// It leads, and heard a quorum lately.
    is_leader: bool,
    /// Whom it believes to lead; how long ago it heard from there is `leader_contact_age_ms`.
    leader_id: u64,
    term: u64,
    last_log_index: u64,
    committed_index: u64,
    applied_index: u64,
    purged_index: u64,
    snapshot_index: u64,
    digest: String,
    digest_index: u64,
    leader_contact_age_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct DestinationAnswer {
    name: String,
    durable_index: u64,
    lag_ms: Option<u64>,
    verified_index: u64,
    last_error: String,
}

async fn status(format: Format, args: &AdminArgs) -> anyhow::Result<Exit> {
    let statuses = args.statuses().await?;
    let checks = health::checks_of(&statuses);
    // Not whom some node names: one that is alone names the leader of then, or itself.
    let leader_id = statuses.facts().0.leader.unwrap_or(0);
    let Statuses { first, by_id: answers } = statuses;
    // The leader knows most about destinations; any other node's word will do.
    let best = answers.get(&leader_id).unwrap_or(&first);
    let value = StatusAnswer {
        v: 1,
        cluster_id: best.cluster_id.clone(),
        cluster_name: best.cluster_name.clone(),
        incarnation: best.incarnation,
        leader_id,
        nodes: nodes(&first, &answers),
        destinations: best.destinations.iter().map(destination).collect(),
        checks,
    };
    match format {
        Format::Table => print_status(&value)?,
        Format::Json => output::object(&value)?,
        Format::Jsonl => output::line(&value)?,
    }
    Ok(Exit::Ok)
}

/// All members, with what they said of themselves.
pub fn nodes(first: &v1::GetStatusResponse, answers: &BTreeMap<u64, v1::GetStatusResponse>) -> Vec<NodeAnswer> {
    let mut members: BTreeMap<u64, v1::Node> = first.nodes.iter().map(|node| (node.node_id, node.clone())).collect();
    for (id, status) in answers {
        if let Some(node) = &status.self_ {
            let role = members.get(id).map_or(node.role, |member| member.role);
            members.insert(*id, v1::Node { role, ..node.clone() });
        }
    }
    members.into_values().map(|node| node_answer(answers.get(&node.node_id), node)).collect()
}

fn node_answer(status: Option<&v1::GetStatusResponse>, node: v1::Node) -> NodeAnswer {
    let role = match v1::NodeRole::try_from(node.role) {
        Ok(v1::NodeRole::Voter) => "voter",
        Ok(v1::NodeRole::Learner) => "learner",
        Ok(v1::NodeRole::Unspecified) | Err(_) => "unknown",
    };
    let raft = status.and_then(|status| status.groups.first()).map(|group| RaftAnswer {
        is_leader: group.leader_id == node.node_id && group.leader_id != 0 && heard_lately(group),
        leader_id: group.leader_id,
        term: group.term,
        last_log_index: group.last_log_index,
        committed_index: group.committed_index,
        applied_index: group.applied_index,
        purged_index: group.purged_index,
        snapshot_index: group.snapshot_index,
        digest: holdfast_archive::layout::hex(&group.digest),
        digest_index: group.digest_index,
        leader_contact_age_ms: group.leader_contact_age.as_ref().map(duration_millis),
    });
    NodeAnswer {
        node_id: node.node_id,
        reachable: status.is_some(),
        role,
        client: node.client_address,
        peer: node.peer_address,
        admin: node.admin_address,
        http: node.http_address,
        labels: node.labels.into_iter().collect(),
        version: node.version,
        identity: node.identity,
        draining: status.is_some_and(|status| status.draining),
        integrity: status.and_then(|status| status.integrity.clone()).map(integrity),
        raft,
    }
}

fn integrity(known: v1::IntegrityStatus) -> IntegrityAnswer {
    IntegrityAnswer {
        diverged: known.diverged,
        doubt: known.doubt,
        fenced: known.fenced,
        unread: known.unread,
        examined_index: known.examined_index,
        examined_age_ms: known.examined_age.as_ref().map(duration_millis),
        failures_total: known.failures_total,
        reinstalls_total: known.reinstalls_total,
    }
}

impl IntegrityAnswer {
    /// For people, in a word or two.
    fn summary(&self) -> String {
        let word = match self {
            Self { fenced: true, .. } => "diverged, reinstalled",
            Self { diverged, .. } if !diverged.is_empty() => "diverged",
            Self { doubt, .. } if !doubt.is_empty() => "in doubt",
            Self { unread, .. } if !unread.is_empty() => "not read",
            Self { examined_age_ms: None, .. } => "not read yet",
            Self { examined_age_ms: Some(ms), .. } => return format!("read {} s ago", ms / 1000),
        };
        word.to_owned()
    }
}

fn destination(status: &v1::DestinationStatus) -> DestinationAnswer {
    DestinationAnswer {
        name: status.name.clone(),
        durable_index: status.durable_index,
        lag_ms: status.lag.as_ref().map(duration_millis),
        verified_index: status.verified_index,
        last_error: status.last_error.clone(),
    }
}

/// Members for people.
pub fn node_table(nodes: &[NodeAnswer]) -> Table {
    let mut table = Table::new(&[
        "node",
        "state",
        "client",
        "admin",
        "term",
        "last",
        "committed",
        "applied",
        "digest",
        "rows",
        "labels",
    ]);
    for node in nodes {
        let labels = render_labels(&node.labels);
        let addresses = [node.client.clone(), node.admin.clone()];
        let raft = node.raft.as_ref();
        let state = match raft {
            None => "unreachable",
            Some(raft) if raft.is_leader => "leader",
            Some(_) if node.draining => "draining",
            Some(_) => node.role,
        };
        let number = |of: fn(&RaftAnswer) -> u64| raft.map_or("-".to_owned(), |raft| of(raft).to_string());
        let digest = raft.filter(|raft| !raft.digest.is_empty());
        let digest = digest.map(|raft| format!("{:.8}@{}", raft.digest, raft.digest_index)).unwrap_or_default();
        let numbers = [
            number(|raft| raft.term),
            number(|raft| raft.last_log_index),
            number(|raft| raft.committed_index),
            number(|raft| raft.applied_index),
        ];
        let cells = [node.node_id.to_string(), state.to_owned()].into_iter().chain(addresses).chain(numbers);
        let rows = node.integrity.as_ref().map_or("-".to_owned(), IntegrityAnswer::summary);
        table.row(cells.chain([digest, rows, labels]));
    }
    table
}

fn print_status(value: &StatusAnswer) -> anyhow::Result<()> {
    if value.cluster_id.is_empty() {
        output::text("no cluster is founded here yet; run `holdfast cluster init`")?;
    } else {
        let leader = match value.leader_id {
            0 => "no leader was confirmed lately: writes wait".to_owned(),
            id => format!("node {id} leads"),
        };
        output::text(format!("cluster {} ({}), {leader}", value.cluster_name, value.cluster_id))?;
    }
    node_table(&value.nodes).print()?;
    for one in &value.destinations {
        let lag = match one.lag_ms {
            None => "unknown lag".to_owned(),
            Some(0) => "nothing is missing".to_owned(),
            Some(ms) => format!("{ms} ms behind"),
        };
        output::text(format!("offsite {}: durable to index {}, {lag}", one.name, one.durable_index))?;
        if !one.last_error.is_empty() {
            output::text(format!("  last error: {}", one.last_error))?;
        }
    }
    health::print(&value.checks)?;
    Ok(())
}
