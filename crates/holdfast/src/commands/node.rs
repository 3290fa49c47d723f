//! `holdfast node`: the members of a cluster.

use std::time::Duration;

use clap::Subcommand;
use holdfast_client::{AdminClient, v1};
use tokio::time::{Instant, sleep};

use crate::cli::host_port;
use crate::commands::cluster::{NodeAnswer, node_table, nodes};
use crate::commands::connect::{AdminArgs, Statuses};
use crate::exit::{Exit, failure};
use crate::output::{self, Format};
use crate::progress;

const POLL: Duration = Duration::from_millis(100);
/// An operation outlives its leader: its state is asked for again until some node answers.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// All members.
    Ls(AdminArgs),
    /// One member in full.
    Show(OneArgs),
    /// Add a node that runs on an empty directory: a learner first, a voter as soon as it has caught up.
    Add(AddArgs),
    /// Make a learner a voter.
    Promote(PromoteArgs),
    /// Move leadership off a node and send its callers elsewhere, for example before it is restarted.
    Drain(DrainArgs),
    /// Take calls again after `drain`.
    Resume(DrainArgs),
    /// Put a new node in the place of one whose disk is dead.
    Replace(ReplaceArgs),
    /// Take a node out for good.
    Rm(RemoveArgs),
    /// Hand leadership from the node that leads to another one.
    StepDown(StepDownArgs),
}

/// Which node.
#[derive(Debug, clap::Args)]
pub struct OneArgs {
    /// Its id.
    #[arg(value_name = "NODE_ID")]
    node: u64,
    #[command(flatten)]
    admin: AdminArgs,
}

/// How to go about a change.
#[derive(Debug, clap::Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Judge it and say what would be done; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Give up waiting after this many seconds; the change goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    wait: u64,
}

/// Flags of `add`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The node must run already, under an id that was never used, on an empty directory.

Example:
  holdfast node add 10.0.0.4:7472 --endpoint 10.0.0.1:7472,10.0.0.2:7472,10.0.0.3:7472")]
pub struct AddArgs {
    /// Admin address of the new node.
    #[arg(value_name = "HOST:PORT", value_parser = host_port)]
    address: String,
    /// Leave it a learner: it receives everything and does not vote.
    #[arg(long)]
    learner: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Flags of `promote`.
#[derive(Debug, clap::Args)]
pub struct PromoteArgs {
    /// The learner.
    #[arg(value_name = "NODE_ID")]
    node: u64,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Flags of `drain` and `resume`.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// The node.
    #[arg(value_name = "NODE_ID")]
    node: u64,
    #[command(flatten)]
    admin: AdminArgs,
    /// Judge it only.
    #[arg(long)]
    dry_run: bool,
}

/// Flags of `replace`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The new node runs already, under an id that was never used, on an empty directory; it may have the addresses of the dead
one. It catches up first; then the two change places in one step.

Example:
  holdfast node replace 2 --with 10.0.0.4:7472 --confirm prod --endpoint 10.0.0.1:7472,10.0.0.3:7472")]
pub struct ReplaceArgs {
    /// The node that goes.
    #[arg(value_name = "NODE_ID")]
    node: u64,
    /// Admin address of the node that comes.
    #[arg(long = "with", value_name = "HOST:PORT", value_parser = host_port)]
    with: String,
    /// The cluster's name.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    confirm: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Flags of `rm`.
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// The node.
    #[arg(value_name = "NODE_ID")]
    node: u64,
    /// The cluster's name.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    confirm: String,
    /// Go below three voters: the loss of any one of them then stops all writes.
    #[arg(long)]
    accept_fewer_voters: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Flags of `step-down`.
#[derive(Debug, clap::Args)]
pub struct StepDownArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Who shall lead [default: the follower that is furthest].
    #[arg(long, value_name = "NODE_ID")]
    to: Option<u64>,
}

/// Runs a command.
pub async fn run(format: Format, command: Node) -> anyhow::Result<Exit> {
    match command {
        Node::Ls(args) => ls(format, &args).await,
        Node::Show(args) => show(format, &args).await,
        Node::Add(args) => add(format, &args).await,
        Node::Promote(args) => promote(format, &args).await,
        Node::Drain(args) => drain(format, &args, false).await,
        Node::Resume(args) => drain(format, &args, true).await,
        Node::Replace(args) => replace(format, &args).await,
        Node::Rm(args) => remove(format, &args).await,
        Node::StepDown(args) => step_down(format, &args).await,
    }
}

async fn ls(format: Format, args: &AdminArgs) -> anyhow::Result<Exit> {
    let Statuses { first, by_id } = args.statuses().await?;
    let all = nodes(&first, &by_id);
    match format {
        Format::Table => node_table(&all).print()?,
        Format::Json => output::object(&serde_json::json!({"v": 1, "nodes": all}))?,
        Format::Jsonl => all.iter().try_for_each(output::line)?,
    }
    Ok(Exit::Ok)
}

async fn show(format: Format, args: &OneArgs) -> anyhow::Result<Exit> {
    let Statuses { first, by_id } = args.admin.statuses().await?;
    let found: Option<NodeAnswer> = nodes(&first, &by_id).into_iter().find(|node| node.node_id == args.node);
    let Some(node) = found else {
        return Err(failure(Exit::NotFound, format!("no node {} here; see `holdfast node ls`", args.node)));
    };
    match format {
        Format::Json => output::object(&node)?,
        Format::Jsonl => output::line(&node)?,
        Format::Table => {
            let value = serde_json::to_value(&node)?;
            for (key, value) in value.as_object().into_iter().flatten() {
                let text = match value {
                    serde_json::Value::String(text) => text.clone(),
                    serde_json::Value::Null => "-".to_owned(),
                    serde_json::Value::Object(pairs) => {
                        let pair = |(key, value): (&String, &serde_json::Value)| {
                            format!("{key}={}", value.as_str().unwrap_or_default())
                        };
                        pairs.iter().map(pair).collect::<Vec<_>>().join(" ")
                    }
                    other => other.to_string(),
                };
                output::text(format!("{key:<22} {text}"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

/// What a node that is to join says of itself.
async fn newcomer(address: &str) -> anyhow::Result<v1::Node> {
    let status = AdminClient::new(address)?.with_deadline(Duration::from_secs(3)).status().await?;
    status.self_.ok_or_else(|| anyhow::anyhow!("{address} does not say which node it is"))
}

async fn add(format: Format, args: &AddArgs) -> anyhow::Result<Exit> {
    let node = newcomer(&args.address).await?;
    let id = node.node_id;
    let (leader, _) = args.change.admin.leader().await?;
    let request = v1::AddNodeRequest { node: Some(node), keep_learner: args.learner, dry_run: args.change.dry_run };
    let answer = leader.add_node(request).await?;
    let role = if args.learner { "learner" } else { "voter" };
    finish(format, &args.change, answer.operation_id, answer.steps, &format!("node {id} is a {role}")).await
}

async fn promote(format: Format, args: &PromoteArgs) -> anyhow::Result<Exit> {
    let (leader, _) = args.change.admin.leader().await?;
    let node = v1::Node { node_id: args.node, ..Default::default() };
    let request = v1::AddNodeRequest { node: Some(node), keep_learner: false, dry_run: args.change.dry_run };
    let known = leader.status().await?.nodes.iter().any(|node| node.node_id == args.node);
    if !known {
        return Err(failure(Exit::NotFound, format!("node {} is no member; `holdfast node add` adds one", args.node)));
    }
    let answer = leader.add_node(request).await?;
    finish(format, &args.change, answer.operation_id, answer.steps, &format!("node {} is a voter", args.node)).await
}

async fn replace(format: Format, args: &ReplaceArgs) -> anyhow::Result<Exit> {
    let node = newcomer(&args.with).await?;
    let id = node.node_id;
    let (leader, _) = args.change.admin.leader().await?;
    let request = v1::RemoveNodeRequest {
        node_id: args.node,
        replacement: Some(node),
        dry_run: args.change.dry_run,
        confirm_cluster_name: args.confirm.clone(),
        accept_fewer_voters: false,
    };
    let answer = leader.remove_node(request).await?;
    let done = format!("node {id} is in the place of node {}", args.node);
    finish(format, &args.change, answer.operation_id, answer.steps, &done).await
}

async fn remove(format: Format, args: &RemoveArgs) -> anyhow::Result<Exit> {
    let (leader, _) = args.change.admin.leader().await?;
    let request = v1::RemoveNodeRequest {
        node_id: args.node,
        replacement: None,
        dry_run: args.change.dry_run,
        confirm_cluster_name: args.confirm.clone(),
        accept_fewer_voters: args.accept_fewer_voters,
    };
    let answer = leader.remove_node(request).await?;
    let done = format!("node {} is a member no more; it may be stopped", args.node);
    finish(format, &args.change, answer.operation_id, answer.steps, &done).await
}

/// Follows a change to its end, whichever node leads meanwhile.
async fn finish(
    format: Format,
    args: &ChangeArgs,
    operation_id: String,
    steps: Vec<String>,
    done: &str,
) -> anyhow::Result<Exit> {
    if args.dry_run {
        let value = serde_json::json!({"v": 1, "dry_run": true, "steps": steps});
        let text = steps.iter().enumerate().map(|(n, step)| format!("\n{}. {step}", n + 1)).collect::<String>();
        output::answer(format, &value, || format!("nothing stands in the way; it would be done so:{text}"))?;
        return Ok(Exit::Ok);
    }
    let bar = progress::bar(0, "members");
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    let mut heard = Instant::now();
    loop {
        match state(&args.admin, &operation_id).await {
            Err(error) if heard.elapsed() > SILENCE_MAX => return Err(error),
            Err(_) => {}
            Ok(state) => {
                heard = Instant::now();
                bar.set_length(state.total_units);
                bar.set_position(state.done_units);
                bar.set_message(state.stage);
                if state.done {
                    bar.finish_and_clear();
                    anyhow::ensure!(state.error_message.is_empty(), "{}", state.error_message);
                    let value = serde_json::json!({"v": 1, "operation_id": operation_id, "done": true, "steps": steps});
                    output::answer(format, &value, || done.to_owned())?;
                    return Ok(Exit::Ok);
                }
            }
        }
        if Instant::now() >= deadline {
            bar.finish_and_clear();
            let message = format!("operation {operation_id} is not done yet; it goes on, see `holdfast node ls`");
            return Err(failure(Exit::Unknown, message));
        }
        sleep(POLL).await;
    }
}

/// State of an operation. A node that was taken out, or is behind, knows an old one: the word of one that says it is
/// done counts.
async fn state(args: &AdminArgs, operation_id: &str) -> anyhow::Result<v1::GetAdminOperationResponse> {
    let statuses = args.statuses().await?;
    let members = statuses.by_id.values().filter_map(|status| status.self_.as_ref());
    let ask = |node: &v1::Node| {
        let admin = AdminClient::new(&node.admin_address).map(|admin| admin.with_deadline(Duration::from_secs(2)));
        async move { admin?.operation(operation_id).await }
    };
    let mut newest = None;
    let mut failed = None;
    for answer in futures::future::join_all(members.map(ask)).await {
        match answer {
            Ok(state) if state.done => return Ok(state),
            Ok(state) => newest = Some(state),
            Err(error) => failed = Some(error),
        }
    }
    newest.ok_or_else(|| failed.map_or_else(|| anyhow::anyhow!("no node answered"), Into::into))
}

async fn drain(format: Format, args: &DrainArgs, resume: bool) -> anyhow::Result<Exit> {
    let Statuses { first, .. } = args.admin.statuses().await?;
    let known = first.nodes.iter().find(|node| node.node_id == args.node);
    let Some(node) = known else {
        return Err(failure(Exit::NotFound, format!("no node {} here; see `holdfast node ls`", args.node)));
    };
    let admin = AdminClient::new(&node.admin_address)?.with_deadline(Duration::from_secs(20));
    let request = v1::DrainNodeRequest { node_id: args.node, resume, dry_run: args.dry_run };
    let leader_id = admin.drain_node(request).await?;
    let value = serde_json::json!({
        "v": 1, "node_id": args.node, "drained": !resume, "dry_run": args.dry_run, "leader_id": leader_id,
    });
    output::answer(format, &value, || match (args.dry_run, resume) {
        (true, _) => "nothing stands in the way".to_owned(),
        (false, false) => format!("node {} takes no more calls; node {leader_id} leads", args.node),
        (false, true) => format!("node {} takes calls again", args.node),
    })?;
    Ok(Exit::Ok)
}

async fn step_down(format: Format, args: &StepDownArgs) -> anyhow::Result<Exit> {
    let (admin, from) = args.admin.leader().await?;
    let leader_id = admin.with_deadline(Duration::from_secs(20)).transfer_leader(args.to.unwrap_or(0)).await?;
    let value = serde_json::json!({"v": 1, "from": from, "leader_id": leader_id});
    output::answer(format, &value, || format!("node {leader_id} leads now, after node {from}"))?;
    Ok(Exit::Ok)
}
