//! `holdfast integrity`: do all replicas hold the same, and does a directory hold what its digests say?

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use holdfast_archive::layout::hex;
use holdfast_client::v1;
use holdfast_model::id::GroupId;
use holdfast_store::{DataDir, StateStore};
use serde::Serialize;

use crate::commands::connect::AdminArgs;
use crate::exit::Exit;
use crate::output::{self, Format, Table};

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Integrity {
    /// Compare all members at one index, row by row. Exit 0 when equal, 9 when they differ, 4 when one cannot be compared.
    Compare(CompareArgs),
    /// Read the state of a node that is stopped, and compare it with its own digests. Exit 0 when it agrees, 9 when not.
    Scrub(ScrubArgs),
}

/// Flags of `compare`.
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long all members may take to read their states, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 600_000)]
    deadline_ms: u64,
}

/// Flags of `scrub`.
#[derive(Debug, clap::Args)]
pub struct ScrubArgs {
    /// Data directory of a node that does not run.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

/// Runs a command.
pub async fn run(format: Format, command: Integrity) -> anyhow::Result<Exit> {
    match command {
        Integrity::Compare(args) => compare(format, &args).await,
        Integrity::Scrub(args) => tokio::task::spawn_blocking(move || scrub(format, &args)).await?,
    }
}

#[derive(Debug, Serialize)]
struct CompareAnswer {
    v: u32,
    /// `equal`, `differ` or `unknown`.
    verdict: &'static str,
    index: u64,
    doubt: String,
    nodes: Vec<ComparedAnswer>,
}

#[derive(Debug, Serialize)]
struct ComparedAnswer {
    node_id: u64,
    /// `same`, `diverged` or `not_compared`.
    state: &'static str,
    evidence: String,
    digest: String,
    entry_chain: String,
    effect_chain: String,
    rows: String,
    fault_count: u64,
}

async fn compare(format: Format, args: &CompareArgs) -> anyhow::Result<Exit> {
    let (admin, _) = args.admin.first().await?;
    let answer = admin.with_deadline(Duration::from_millis(args.deadline_ms)).compare_integrity().await?;
    let exit = exit_of(&answer);
    let value = CompareAnswer {
        v: 1,
        verdict: match exit {
            Exit::Ok => "equal",
            Exit::Integrity => "differ",
            _ => "unknown",
        },
        index: answer.index,
        doubt: answer.doubt.clone(),
        nodes: answer.nodes.iter().map(compared).collect(),
    };
    match format {
        Format::Json => output::object(&value)?,
        Format::Jsonl => output::line(&value)?,
        Format::Table => print(&value)?,
    }
    Ok(exit)
}

/// What is seen to differ is no unknown; who was not compared may differ.
fn exit_of(answer: &v1::CompareIntegrityResponse) -> Exit {
    if !answer.doubt.is_empty() || answer.nodes.iter().any(|node| !node.diverged.is_empty()) {
        Exit::Integrity
    } else if answer.index == 0 || answer.nodes.iter().any(|node| !node.not_compared.is_empty()) {
        Exit::Unknown
    } else {
        Exit::Ok
    }
}

fn compared(node: &v1::ComparedNode) -> ComparedAnswer {
    let (state, evidence) = match (node.not_compared.as_str(), node.diverged.as_str()) {
        ("", "") => ("same", ""),
        ("", why) => ("diverged", why),
        (why, _) => ("not_compared", why),
    };
    ComparedAnswer {
        node_id: node.node_id,
        state,
        evidence: evidence.to_owned(),
        digest: hex(&node.digest),
        entry_chain: hex(&node.entry_chain),
        effect_chain: hex(&node.effect_chain),
        rows: hex(&node.rows),
        fault_count: node.fault_count,
    }
}

fn print(value: &CompareAnswer) -> std::io::Result<()> {
    output::text(match (value.index, value.verdict) {
        (0, _) => "no node could be compared".to_owned(),
        (index, verdict) => format!("states at index {index}: {verdict}"),
    })?;
    let mut table = Table::new(&["node", "state", "digest", "entries", "effects", "rows", "evidence"]);
    for node in &value.nodes {
        let hashes = [&node.digest, &node.entry_chain, &node.effect_chain, &node.rows].map(|hash| format!("{hash:.8}"));
        let first = [node.node_id.to_string(), node.state.to_owned()];
        table.row(first.into_iter().chain(hashes).chain([node.evidence.clone()]));
    }
    table.print()?;
    if !value.doubt.is_empty() {
        output::text(&value.doubt)?;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct ScrubAnswer {
    v: u32,
    sound: bool,
    index: u64,
    digest: String,
    records_read: u64,
    fault_count: u64,
    faults: Vec<String>,
}

fn scrub(format: Format, args: &ScrubArgs) -> anyhow::Result<Exit> {
    let data = DataDir::open(&args.data)?;
    let view = StateStore::open(&data, GroupId(0))?.view();
    let report = view.scrub()?;
    let fault = |fault: &holdfast_store::ScrubFault| match fault.user {
        Some(user) => format!("user {}: {}", user.uid.0, fault.what),
        None => fault.what.clone(),
    };
    let value = ScrubAnswer {
        v: 1,
        sound: report.is_clean(),
        index: view.applied().index(),
        digest: hex(&report.digest.0),
        records_read: report.records_read,
        fault_count: report.fault_count,
        faults: report.faults.iter().map(fault).collect(),
    };
    output::answer(format, &value, || {
        let said = if value.sound { "agrees with its digests" } else { "does not agree with its digests" };
        let head = format!("the state at index {} ({} records) {said}", value.index, value.records_read);
        std::iter::once(head).chain(value.faults.iter().map(|fault| format!("\n  {fault}"))).collect()
    })?;
    Ok(if value.sound { Exit::Ok } else { Exit::Integrity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_no_unknown_and_what_is_unknown_is_not_equal() {
        let node = |not_compared: &str, diverged: &str| v1::ComparedNode {
            not_compared: not_compared.into(),
            diverged: diverged.into(),
            ..Default::default()
        };
        let exit = |index: u64, doubt: &str, nodes: Vec<v1::ComparedNode>| {
            exit_of(&v1::CompareIntegrityResponse { index, nodes, doubt: doubt.into() }) as u8
        };
        assert_eq!(exit(7, "", vec![node("", ""), node("", "")]), 0);
        assert_eq!(exit(7, "", vec![node("", ""), node("down", "")]), 4);
        assert_eq!(exit(0, "", vec![]), 4);
        assert_eq!(exit(7, "", vec![node("down", ""), node("", "it differs")]), 9);
        assert_eq!(exit(7, "one against one", vec![node("", ""), node("", "")]), 9);
    }
}
