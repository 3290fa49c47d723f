//! `holdfast node`.

use std::time::Duration;

use clap::Subcommand;

use crate::commands::connect::AdminArgs;
use crate::exit::Exit;
use crate::output::{self, Format};

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Hand leadership from the node that leads to another one.
    StepDown(StepDownArgs),
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
    let Node::StepDown(args) = command;
    let (admin, from) = args.admin.leader().await?;
    let leader_id = admin.with_deadline(Duration::from_secs(20)).transfer_leader(args.to.unwrap_or(0)).await?;
    let value = serde_json::json!({"v": 1, "from": from, "leader_id": leader_id});
    output::answer(format, &value, || format!("node {leader_id} leads now, after node {from}"))?;
    Ok(Exit::Ok)
}
