//! `holdfast domain`: failure domains, who is in them, and what losing them would cost.

use std::collections::BTreeMap;

use clap::Subcommand;
use holdfast_survey::{
    Answer, Copy, CopyId, Domain, Facts, Keys, Loss, Recovery, Running, Survival, scenarios, scenarios_of_two, survive,
};
use serde::Serialize;

use crate::commands::connect::AdminArgs;
use crate::exit::{Exit, failure};
use crate::output::{self, Format, Table};

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Commands {
    /// Every failure domain and the copies in it.
    Ls(AdminArgs),
    /// The same as a tree: keys, values, copies.
    Tree(AdminArgs),
    /// What would be left if domains were lost, and which acknowledged writes would be gone.
    Survive(SurviveArgs),
}

/// Flags of `survive`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit 0 when every acknowledged write survives each loss shown, 3 when some would be gone, 4 when that is not known.
A node that is down still holds what is on its disk; a domain that is lost holds nothing.

Example:
  holdfast domain survive --lose array=san-07,site=oslo")]
pub struct SurviveArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// What is lost in one moment; key=? means all copies without that label [default: each domain in turn].
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
    lose: Vec<Domain>,
    /// Also every two domains at once.
    #[arg(long, conflicts_with = "lose")]
    pairs: bool,
}

/// Runs a command.
pub async fn run(format: Format, command: Commands) -> anyhow::Result<Exit> {
    match command {
        Commands::Ls(args) => ls(format, &args).await,
        Commands::Tree(args) => tree(format, &args).await,
        Commands::Survive(args) => survival(format, &args).await,
    }
}

async fn facts(args: &AdminArgs) -> anyhow::Result<(Facts, Keys)> {
    let (facts, limits) = args.statuses().await?.facts();
    if facts.copies.is_empty() {
        return Err(failure(Exit::NotFound, "no cluster is founded here yet; run `holdfast cluster init`"));
    }
    let keys = Keys::of(&facts, limits.placement_keys.iter().map(String::as_str));
    Ok((facts, keys))
}

#[derive(Debug, Serialize)]
struct DomainAnswer {
    key: String,
    /// Null: copies without this label, which count as sharing one.
    value: Option<String>,
    copies: Vec<String>,
    voters: usize,
}

fn domains(facts: &Facts, keys: &Keys) -> Vec<DomainAnswer> {
    let of = |domain: Domain| {
        let members: Vec<&Copy> = facts.copies.iter().filter(|copy| copy.is_in(&domain)).collect();
        DomainAnswer {
            copies: members.iter().map(|copy| copy.id.to_string()).collect(),
            voters: facts.voters().filter(|copy| copy.is_in(&domain)).count(),
            key: domain.key,
            value: domain.value,
        }
    };
    scenarios(facts, keys).into_iter().map(of).collect()
}

async fn ls(format: Format, args: &AdminArgs) -> anyhow::Result<Exit> {
    let (facts, keys) = facts(args).await?;
    let all = domains(&facts, &keys);
    match format {
        Format::Json => output::object(&serde_json::json!({"v": 1, "domains": all}))?,
        Format::Jsonl => all.iter().try_for_each(output::line)?,
        Format::Table => {
            let total = facts.voters().count();
            let mut table = Table::new(&["domain", "voters", "copies"]);
            for one in &all {
                let name = format!("{}={}", one.key, one.value.as_deref().unwrap_or("?"));
                table.row([name, format!("{} of {total}", one.voters), one.copies.join(", ")]);
            }
            table.print()?;
        }
    }
    Ok(Exit::Ok)
}

async fn tree(format: Format, args: &AdminArgs) -> anyhow::Result<Exit> {
    let (facts, keys) = facts(args).await?;
    let all = domains(&facts, &keys);
    let mut by_key: BTreeMap<&str, Vec<&DomainAnswer>> = BTreeMap::new();
    for one in &all {
        by_key.entry(&one.key).or_default().push(one);
    }
    if format != Format::Table {
        let value = serde_json::json!({"v": 1, "keys": by_key});
        return match format {
            Format::Jsonl => output::line(&value),
            Format::Json | Format::Table => output::object(&value),
        }
        .map(|()| Exit::Ok)
        .map_err(Into::into);
    }
    let copies: BTreeMap<String, &Copy> = facts.copies.iter().map(|copy| (copy.id.to_string(), copy)).collect();
    for key in keys.iter() {
        output::text(key)?;
        let values = by_key.get(key).map(Vec::as_slice).unwrap_or_default();
        for (n, one) in values.iter().enumerate() {
            let last = n + 1 == values.len();
            let (branch, stem) = if last { ("└─", "  ") } else { ("├─", "│ ") };
            output::text(format!("{branch} {}", one.value.as_deref().unwrap_or("? (not labelled)")))?;
            for (m, name) in one.copies.iter().enumerate() {
                let twig = if m + 1 == one.copies.len() { "└─" } else { "├─" };
                let text = copies.get(name).map_or_else(|| name.clone(), |copy| describe(copy));
                output::text(format!("{stem} {twig} {text}"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn describe(copy: &Copy) -> String {
    let up_to = copy.index.map_or("index unknown".to_owned(), |index| format!("up to index {index}"));
    let down = match copy.running {
        Running::Up => "",
        Running::Down => ", down",
        Running::Unknown => ", not known whether it is up",
    };
    format!("{} ({}, {up_to}{down})", copy.id, copy.kind)
}

#[derive(Debug, Serialize)]
struct SurviveAnswer {
    v: u32,
    /// Last committed entry; null = not known.
    commit_index: Option<u64>,
    scenarios: Vec<ScenarioAnswer>,
}

#[derive(Debug, Serialize)]
struct ScenarioAnswer {
    lose: Vec<String>,
    /// `yes`, `no` or `unknown`.
    writes: &'static str,
    /// Acknowledged entries that would be gone; null = not known.
    loss_entries: Option<u64>,
    /// The loss is no more than that: a copy that is left did not say how much it holds.
    loss_is_bound: bool,
    loss: String,
    copies_lost: Vec<String>,
    copies_left: Vec<String>,
    recovery: String,
}

async fn survival(format: Format, args: &SurviveArgs) -> anyhow::Result<Exit> {
    let (facts, keys) = facts(&args.admin).await?;
    let all = scenarios(&facts, &keys);
    for domain in &args.lose {
        if !facts.copies.iter().any(|copy| copy.is_in(domain)) {
            let known = all.iter().map(Domain::to_string).collect::<Vec<_>>().join(", ");
            return Err(failure(Exit::NotFound, format!("no copy is in {domain}; there are {known}")));
        }
    }
    let survivals: Vec<Survival> = if args.lose.is_empty() {
        let pairs = if args.pairs { scenarios_of_two(&facts, &keys) } else { Vec::new() };
        let single = all.iter().map(|domain| survive(&facts, std::slice::from_ref(domain)));
        single.chain(pairs.iter().map(|pair| survive(&facts, pair))).collect()
    } else {
        vec![survive(&facts, &args.lose)]
    };
    let value = SurviveAnswer {
        v: 1,
        commit_index: facts.commit_index,
        scenarios: survivals.iter().map(|one| scenario(&facts, one)).collect(),
    };
    match format {
        Format::Json => output::object(&value)?,
        Format::Jsonl => value.scenarios.iter().try_for_each(output::line)?,
        Format::Table => print(&value)?,
    }
    Ok(exit_of(&survivals))
}

fn scenario(facts: &Facts, survival: &Survival) -> ScenarioAnswer {
    let names = |ids: &[CopyId]| ids.iter().map(CopyId::to_string).collect();
    let (loss_entries, loss_is_bound) = match survival.loss {
        Loss::Entries(count) => (Some(count), false),
        Loss::Heard(count) | Loss::AtMost(count) => (Some(count), true),
        Loss::Everything => (facts.commit_index, false),
        Loss::Unknown => (None, false),
    };
    ScenarioAnswer {
        lose: survival.lost.iter().map(Domain::to_string).collect(),
        writes: match survival.writes {
            Answer::Yes => "yes",
            Answer::No => "no",
            Answer::Unknown => "unknown",
        },
        loss_entries,
        loss_is_bound,
        loss: survival.loss.to_string(),
        copies_lost: names(&survival.copies_lost),
        copies_left: names(&survival.copies_left),
        recovery: match &survival.recovery {
            Recovery::Election => "by itself".to_owned(),
            Recovery::Recover(copy) => format!("cluster recover, from {copy}"),
            Recovery::Restore(copy) => format!("restore run, from {copy}"),
            Recovery::Impossible => "impossible: nothing is left".to_owned(),
            Recovery::Unknown => "unknown".to_owned(),
        },
    }
}

fn exit_of(survivals: &[Survival]) -> Exit {
    let lost = |survival: &Survival| match survival.loss {
        Loss::Entries(count) | Loss::Heard(count) => count > 0,
        Loss::Everything => true,
        Loss::AtMost(_) | Loss::Unknown => false,
    };
    if survivals.iter().any(lost) {
        Exit::Unsafe
    } else if survivals.iter().all(|survival| survival.loss.is_nothing()) {
        Exit::Ok
    } else {
        Exit::Unknown
    }
}

fn print(value: &SurviveAnswer) -> std::io::Result<()> {
    match value.commit_index {
        Some(index) => output::text(format!("committed up to index {index}"))?,
        None => output::text("no leader was confirmed: what is committed is UNKNOWN")?,
    }
    let mut table = Table::new(&["if lost", "writes go on", "log entries lost", "copies left", "way back"]);
    for one in &value.scenarios {
        let left = if one.copies_left.is_empty() { "none".to_owned() } else { one.copies_left.join(", ") };
        let writes = if one.writes == "unknown" { "UNKNOWN" } else { one.writes };
        table.row([one.lose.join(" + "), writes.to_owned(), one.loss.clone(), left, one.recovery.clone()]);
    }
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survival(loss: Loss) -> Survival {
        Survival {
            lost: Vec::new(),
            copies_lost: Vec::new(),
            copies_left: Vec::new(),
            writes: Answer::No,
            loss,
            recovery: Recovery::Unknown,
        }
    }

    #[test]
    fn a_loss_is_no_and_what_is_unknown_is_not_yes() {
        let exit = |all: &[Loss]| exit_of(&all.iter().copied().map(survival).collect::<Vec<_>>());
        assert_eq!(exit(&[Loss::Entries(0)]), Exit::Ok);
        assert_eq!(exit(&[Loss::Entries(0), Loss::AtMost(3)]), Exit::Unknown);
        assert_eq!(exit(&[Loss::Heard(3)]), Exit::Unsafe, "what was on its way is not what was written since");
        assert_eq!(exit(&[Loss::Unknown, Loss::Entries(1)]), Exit::Unsafe);
        assert_eq!(exit(&[Loss::Everything]), Exit::Unsafe);
    }
}
