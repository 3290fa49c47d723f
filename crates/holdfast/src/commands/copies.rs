//! `holdfast copies`: every copy of a cluster's data, and what speaks for it.

use std::collections::BTreeMap;

use clap::Subcommand;
use holdfast_archive::layout;
use holdfast_client::v1;
use holdfast_survey::{Copy, CopyId, Freshness, Running};
use holdfast_wire::reply::{duration_millis, millis};
use serde::Serialize;

use crate::clock;
use crate::commands::connect::{AdminArgs, Statuses};
use crate::commands::ledger;
use crate::exit::{Exit, failure};
use crate::launch::render_labels;
use crate::output::{self, Format, Table};

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Copies {
    /// Nodes and copies outside: how far each is, whether it counts, who proved it and when, and what its place lets clients do.
    Ls(AdminArgs),
    /// All that was said of a copy: who verified what, when and how deeply, under which lock, and what was let go.
    Ledger(ledger::LedgerArgs),
    /// Follow the hashes that link what was said: nothing in the ledger was changed or taken away.
    Verify(ledger::VerifyArgs),
}

/// Runs a command.
pub async fn run(format: Format, command: Copies) -> anyhow::Result<Exit> {
    match command {
        Copies::Ls(args) => list(format, &args).await,
        Copies::Ledger(args) => ledger::list(format, &args).await,
        Copies::Verify(args) => ledger::verify(format, &args).await,
    }
}

#[derive(Debug, Serialize)]
struct CopyAnswer {
    copy: String,
    /// `voter`, `learner` or `archive`.
    kind: String,
    labels: BTreeMap<String, String>,
    /// Every entry up to here is durable there; null = not known, or it does not count.
    index: Option<u64>,
    /// `yes`, `no`, `new` (for a while, without a proof) or `unknown`.
    counts: &'static str,
    /// Why it does not, or for how long.
    why: String,
    /// Newest that found it good, of each level; null = never. Of copies outside.
    read: Option<VerifiedAnswer>,
    proved: Option<VerifiedAnswer>,
    drilled: Option<VerifiedAnswer>,
    /// Newest that found it bad, unless one that looked as closely found it good since.
    failed: Option<VerifiedAnswer>,
    /// What the doctor found: `immutable`, `append-only` or `mutable`; null = nobody looked.
    lock: Option<LockAnswer>,
}

#[derive(Debug, Serialize)]
struct VerifiedAnswer {
    level: String,
    time: String,
    age_ms: u64,
    snapshot_index: u64,
    last_index: u64,
    signed_by: String,
    reason: String,
    restore_ms: Option<u64>,
    object: String,
}

#[derive(Debug, Serialize)]
struct LockAnswer {
    verdict: String,
    expect: String,
    age_ms: u64,
    object: String,
}

async fn list(format: Format, args: &AdminArgs) -> anyhow::Result<Exit> {
    let statuses = args.statuses().await?;
    let (facts, _) = statuses.facts();
    if facts.copies.is_empty() {
        return Err(failure(Exit::NotFound, "no cluster is founded here yet; run `holdfast cluster init`"));
    }
    let proofs = proofs(&statuses, facts.leader);
    let all: Vec<CopyAnswer> = facts.copies.iter().map(|copy| answer(copy, &proofs)).collect();
    match format {
        Format::Json => output::object(&serde_json::json!({"v": 1, "copies": all}))?,
        Format::Jsonl => all.iter().try_for_each(output::line)?,
        Format::Table => print(&all)?,
    }
    Ok(if all.iter().any(|one| one.counts == "no") { Exit::Unsafe } else { Exit::Ok })
}

/// As the leader knows them.
fn proofs(statuses: &Statuses, leader: Option<u64>) -> BTreeMap<String, v1::CopyProof> {
    let best = leader.and_then(|leader| statuses.by_id.get(&leader)).unwrap_or(&statuses.first);
    let destinations = best.destinations.iter().map(|one| (&one.name, &one.proof));
    let all = destinations.chain(best.vaults.iter().map(|one| (&one.name, &one.proof)));
    all.filter_map(|(name, proof)| Some((name.clone(), proof.clone()?))).collect()
}

fn answer(copy: &Copy, proofs: &BTreeMap<String, v1::CopyProof>) -> CopyAnswer {
    let proof = match &copy.id {
        CopyId::Destination(name) => proofs.get(name),
        CopyId::Node(_) => None,
    };
    let (counts, why) = counts(copy);
    let verified = |of: fn(&v1::CopyProof) -> &Option<v1::CopyVerification>| of(proof?).as_ref().map(verified);
    CopyAnswer {
        copy: copy.id.to_string(),
        kind: copy.kind.to_string(),
        labels: copy.labels.clone(),
        index: copy.index,
        counts,
        why,
        read: verified(|proof| &proof.read),
        proved: verified(|proof| &proof.proved),
        drilled: verified(|proof| &proof.drilled),
        failed: verified(|proof| &proof.failed),
        lock: proof.and_then(|proof| proof.lock.as_ref()).map(|lock| LockAnswer {
            verdict: lock.verdict.clone(),
            expect: lock.expect.clone(),
            age_ms: lock.age.as_ref().map_or(0, duration_millis),
            object: lock.object.clone(),
        }),
    }
}

fn counts(copy: &Copy) -> (&'static str, String) {
    if copy.kind.is_node() {
        return match copy.running {
            Running::Up => ("yes", String::new()),
            Running::Down => ("yes", "it is down; its disk holds what it holds".into()),
            Running::Unknown => ("yes", "it does not answer here; its disk holds what it holds".into()),
        };
    }
    match &copy.freshness {
        Freshness::Verified => ("yes", String::new()),
        Freshness::New(until) => ("new", until.clone()),
        Freshness::Stale(why) => ("no", why.clone()),
        Freshness::Unknown => ("unknown", "nobody could say".into()),
    }
}

fn verified(found: &v1::CopyVerification) -> VerifiedAnswer {
    VerifiedAnswer {
        level: found.level.clone(),
        time: found.end_time.as_ref().map(|at| clock::rfc3339(millis(at))).unwrap_or_default(),
        age_ms: found.age.as_ref().map_or(0, duration_millis),
        snapshot_index: found.snapshot_index,
        last_index: found.last_index,
        signed_by: layout::hex(&found.verifier_key),
        reason: found.reason.clone(),
        restore_ms: found.restore_duration.as_ref().map(duration_millis),
        object: found.object.clone(),
    }
}

fn print(all: &[CopyAnswer]) -> anyhow::Result<()> {
    let mut table = Table::new(&["copy", "kind", "up to", "counts", "proved", "drilled", "place", "labels", "why"]);
    for one in all {
        let when = |of: &Option<VerifiedAnswer>| of.as_ref().map_or("-".to_owned(), |one| one.time.clone());
        let place = one.lock.as_ref().map_or("-".to_owned(), |lock| lock.verdict.clone());
        table.row([
            one.copy.clone(),
            one.kind.clone(),
            one.index.map_or("-".to_owned(), |index| index.to_string()),
            one.counts.to_owned(),
            when(&one.proved),
            when(&one.drilled),
            place,
            render_labels(&one.labels),
            one.why.clone(),
        ]);
    }
    table.print()?;
    Ok(())
}
