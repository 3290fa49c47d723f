//! `holdfast backup prune`: which snapshots an archive keeps, and the deletion of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use holdfast_archive::prune::{Outcome, Plan, Stock, Trusted, carry_out, look, plan};
use holdfast_archive::retention::{
    Accepted, DAY_MS, DROP_PERCENT_MAX, Frozen, Judgement, Policy, Rule, compare_roots, judge,
};
use holdfast_archive::{Destination, DestinationConfig, layout};
use holdfast_server::config::Config;
use serde::Serialize;

use crate::clock;
use crate::commands::backup::{GROUP, KeyArgs};
use crate::commands::verifier::VerifierArgs;
use crate::exit::{Exit, failure};
use crate::output::{self, Format, Table};
use crate::progress;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Of the snapshots that a trusted verifier proved, the newest of each of the last hours, days, weeks, months and years stays; the \
two newest always do, and the log of --window-days. What may go is marked with a signed tombstone, and deleted by a later run, \
after --grace-days: with --config a day later at each destination than at the one before it.

Run it once a day, where the cluster's operators and nodes have no rights, with credentials of its own that may delete there; \
deploy/systemd/holdfast-prune.timer does. The nodes' credentials must not be able to.

It deletes and marks nothing, and exits with 3, while one of these rules holds:
  verification-stale    nobody trusted proved the archive within --max-age-days
  verification-failed   the newest verification found it bad
  roots-disagree        two accounts of one state, or no majority vouches for the newest snapshot
  size-drop             the newest snapshot is more than 20 % smaller than the largest of 30 days
  times-forged          times run backwards, or ahead of a clock
  snapshot-missing      a snapshot is gone that nobody marked
  damaged               something that is needed is not whole

Examples:
  holdfast backup prune --from s3://vault/prod?region=eu-north-1 --credentials /etc/holdfast/prune-s3 --dry-run
  holdfast backup prune --config /etc/holdfast/prune.toml --daily 14")]
pub struct PruneArgs {
    /// The destination: file:///…, s3://bucket/prefix?endpoint=…&region=…, gs://…, az://…
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    from: Option<String>,
    /// File with credentials that may list and delete there [default: from the environment].
    #[arg(long, value_name = "FILE", requires = "from")]
    credentials: Option<PathBuf>,
    /// Every [[offsite]] destination of a configuration; its verify.keys are trusted.
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    config: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    keep: KeepArgs,
    /// Days between mark and deletion.
    #[arg(long, value_name = "DAYS", default_value_t = Policy::default().grace_days)]
    grace_days: u32,
    /// Go on in spite of a rule, for one snapshot: somebody looked into it. For size-drop: snapshots from that one on are held
    /// against each other alone. May be given several times.
    #[arg(long, value_name = "RULE=INDEX", value_parser = parse_accepted)]
    accept: Vec<(Rule, u64)>,
    #[command(flatten)]
    verifier: VerifierArgs,
}

/// A configuration that names destinations, of a machine that is no node.
pub fn without_node(file: &Path) -> anyhow::Result<Config> {
    let no_node = [("node.id", "1"), ("node.data_dir", "/nowhere")].map(|(key, value)| (key.into(), value.into()));
    let config = Config::load(Some(file), &no_node).map_err(|error| failure(Exit::Usage, error))?;
    if config.offsite.is_empty() {
        let message = format!("{} names no destination: there is no [[offsite]] in it", file.display());
        return Err(failure(Exit::NotFound, message));
    }
    Ok(config)
}

/// What stays.
#[derive(Debug, clap::Args)]
pub struct KeepArgs {
    /// Hours of which the newest snapshot stays, of those that have one.
    #[arg(long, value_name = "N", default_value_t = Policy::default().hourly)]
    hourly: u32,
    /// Days, in UTC.
    #[arg(long, value_name = "N", default_value_t = Policy::default().daily)]
    daily: u32,
    /// Weeks, from Monday on.
    #[arg(long, value_name = "N", default_value_t = Policy::default().weekly)]
    weekly: u32,
    /// Months.
    #[arg(long, value_name = "N", default_value_t = Policy::default().monthly)]
    monthly: u32,
    /// Years.
    #[arg(long, value_name = "N", default_value_t = Policy::default().yearly)]
    yearly: u32,
    /// Days that stay restorable to any moment.
    #[arg(long, value_name = "DAYS", default_value_t = Policy::default().window_days)]
    window_days: u32,
    /// Days after which a verification is stale.
    #[arg(long, value_name = "DAYS", default_value_t = Policy::default().max_age_days)]
    max_age_days: u32,
    /// Public key of a verifier whose word counts, in hex; may be given several times [default: that of --verifier-key].
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    pub trust: Vec<[u8; 32]>,
}

impl KeepArgs {
    /// As a policy, with this grace.
    pub fn policy(&self, grace_days: u32) -> Policy {
        let Self { hourly, daily, weekly, monthly, yearly, window_days, max_age_days, .. } = *self;
        Policy { hourly, daily, weekly, monthly, yearly, window_days, grace_days, max_age_days }
    }
}

fn parse_accepted(text: &str) -> Result<(Rule, u64), String> {
    let (rule, index) = text.split_once('=').ok_or("write it as RULE=INDEX, for example size-drop=1234")?;
    let rule = Rule::parse(rule).ok_or_else(|| format!("{rule:?} is no rule"))?;
    Ok((rule, index.parse().map_err(|_| format!("{index:?} is no index of a snapshot"))?))
}

fn parse_key(text: &str) -> Result<[u8; 32], String> {
    layout::unhex(text).ok_or_else(|| "a key is 64 hex digits, as `copies ls` and `drill ls` show it".into())
}

impl PruneArgs {
    /// Destinations, and keys that a configuration trusts.
    fn destinations(&self) -> anyhow::Result<(Vec<DestinationConfig>, Vec<[u8; 32]>)> {
        let Some(file) = &self.config else {
            let url = self.from.clone().unwrap_or_default();
            return Ok((
                vec![DestinationConfig::from_url(&url).with_credentials(self.credentials.clone())],
                Vec::new(),
            ));
        };
        let config = without_node(file)?;
        Ok((config.offsite.iter().map(DestinationConfig::from).collect(), config.verify_keys.clone()))
    }
}

#[derive(Debug, Serialize)]
struct Answer {
    name: String,
    from: String,
    lineages: Vec<LineageAnswer>,
}

#[derive(Debug, Serialize)]
struct LineageAnswer {
    lineage: String,
    /// Null: its facts do not open.
    cluster_name: Option<String>,
    snapshots: Vec<SnapshotAnswer>,
    log: LogAnswer,
    /// Objects that went, or with --dry-run would go now.
    objects: u64,
    bytes: u64,
    held: Vec<HeldAnswer>,
    /// Signed objects that say so.
    recorded: Vec<String>,
    /// Keys that spoke here, and are not trusted.
    strangers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SnapshotAnswer {
    index: u64,
    time: String,
    bytes: u64,
    records: u64,
    /// A majority signed it, and a trusted verifier read it since.
    proved: bool,
    /// `keep`, `mark` (this run), `marked` (waits), `delete` (this run), `held` (by a lock) or `frozen` (would go).
    state: &'static str,
    /// Why it is kept.
    why: Vec<&'static str>,
    /// When it goes at the earliest.
    due: Option<String>,
}

#[derive(Debug, Serialize)]
struct LogAnswer {
    /// Entries up to here are marked by this run; null = none.
    mark_through: Option<u64>,
    /// Entries up to here go with this run; null = none.
    delete_through: Option<u64>,
}

#[derive(Debug, Serialize)]
struct HeldAnswer {
    object: String,
    /// Null: not known.
    until: Option<String>,
}

#[derive(Debug, Serialize)]
struct FrozenAnswer {
    rule: &'static str,
    from: String,
    lineage: String,
    /// The snapshot that it is about; null: none alone.
    index: Option<u64>,
    reason: String,
    /// What ends it.
    remedy: &'static str,
}

/// One destination, as it was found and judged.
struct Place {
    destination: Destination,
    stocks: Vec<Stock>,
    judged: Judgement,
    stagger_ms: u64,
}

/// Runs it.
pub async fn run(format: Format, args: &PruneArgs) -> anyhow::Result<Exit> {
    let (key, policy) = (args.verifier.key()?, args.keep.policy(args.grace_days));
    let (configs, of_config) = args.destinations()?;
    let trusted: Trusted = args.keep.trust.iter().copied().chain(of_config).chain([key.public()]).collect();
    let (keys, now_ms) = (args.keys.read()?, clock::unix_ms(SystemTime::now()));
    let accepted: Accepted = args.accept.iter().copied().collect();
    let mut places = Vec::new();
    for (config, stagger_ms) in configs.iter().zip((0..).step_by(DAY_MS as usize)) {
        let destination = Destination::open(config)?.with_keys(keys.clone());
        let stocks = look(&destination, GROUP, &trusted, now_ms).await?;
        let holdings: Vec<_> = stocks.iter().map(|stock| stock.holding.clone()).collect();
        let judged = judge(&holdings, &policy, now_ms, &accepted);
        places.push(Place { destination, stocks, judged, stagger_ms });
    }
    if places.iter().all(|place| place.stocks.is_empty()) {
        return Err(failure(Exit::NotFound, "there is no backup there"));
    }
    let frozen = freeze(&mut places);
    let (mut answers, mut failed) = (Vec::new(), None);
    for place in &places {
        let config = place.destination.config();
        let mut lineages = Vec::new();
        for stock in &place.stocks {
            let plan = plan(stock, &place.judged, &policy, place.stagger_ms, now_ms);
            let outcome = if args.dry_run || plan.is_empty() || failed.is_some() {
                None
            } else {
                let bar = progress::bar(plan.objects().count() as u64, "objects deleted");
                let done = |done| bar.set_position(done);
                let outcome = carry_out(&place.destination, stock, &plan, &key, now_ms, &done).await;
                bar.finish_and_clear();
                // What was done elsewhere is told all the same.
                outcome.map_err(|error| failed = Some(error)).ok()
            };
            lineages.push(lineage_answer(stock, &place.judged, &plan, outcome));
        }
        answers.push(Answer { name: config.name.clone(), from: config.url.clone(), lineages });
    }
    match format {
        Format::Table => print(args, &answers, &frozen)?,
        Format::Json => output::object(&serde_json::json!({
            "v": 1, "dry_run": args.dry_run, "policy": policy, "destinations": answers, "frozen": frozen,
        }))?,
        Format::Jsonl => {
            answers.iter().try_for_each(output::line)?;
            frozen.iter().try_for_each(|one| output::line(&serde_json::json!({"frozen": one})))?;
        }
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(if frozen.is_empty() { Exit::Ok } else { Exit::Unsafe }),
    }
}

/// What freezes one destination freezes all: an operator who is about to lose one must not lose another meanwhile.
fn freeze(places: &mut [Place]) -> Vec<FrozenAnswer> {
    let own = places.iter().flat_map(|place| {
        let from = &place.destination.config().url;
        place.judged.frozen.iter().map(move |frozen| (from.clone(), frozen.clone()))
    });
    let mut all: Vec<(String, Frozen)> = own.collect();
    let holdings: Vec<(String, Vec<_>)> = places
        .iter()
        .map(|place| {
            let holdings = place.stocks.iter().map(|stock| stock.holding.clone()).collect();
            (place.destination.config().url.clone(), holdings)
        })
        .collect();
    let across = compare_roots(holdings.iter().map(|(from, holdings)| (from.as_str(), holdings.as_slice())));
    let everywhere = holdings.iter().map(|(from, _)| from.as_str()).collect::<Vec<_>>().join(", ");
    all.extend(across.into_iter().map(|frozen| (everywhere.clone(), frozen)));
    // One that has nothing where others have something was wiped, or is no destination yet.
    let known = places.iter().flat_map(|place| &place.stocks).map(|stock| stock.holding.id).next();
    let wiped = places.iter().filter(|place| place.stocks.is_empty()).filter_map(|place| {
        let reason = "it holds nothing, and another destination holds a history".to_owned();
        let frozen = Frozen { rule: Rule::SnapshotMissing, lineage: known?, index: None, reason };
        Some((place.destination.config().url.clone(), frozen))
    });
    all.extend(wiped);
    for place in places {
        place.judged.frozen = all.iter().map(|(_, frozen)| frozen.clone()).collect();
    }
    let answer = |(from, frozen): (String, Frozen)| FrozenAnswer {
        rule: frozen.rule.as_str(),
        from,
        lineage: frozen.lineage.to_string(),
        index: frozen.index,
        reason: frozen.reason,
        remedy: frozen.rule.remedy(),
    };
    all.into_iter().map(answer).collect()
}

fn lineage_answer(stock: &Stock, judged: &Judgement, plan: &Plan, outcome: Option<Outcome>) -> LineageAnswer {
    let id = stock.holding.id;
    let planned = || (plan.objects().count() as u64, plan.objects().map(|(_, bytes)| bytes).sum());
    let (objects, bytes) = outcome.as_ref().map_or_else(planned, |outcome| (outcome.objects, outcome.bytes));
    let gone: Option<BTreeSet<u64>> = outcome.as_ref().map(|outcome| outcome.snapshots.iter().copied().collect());
    let snapshots = stock.holding.taken.iter().map(|taken| {
        let why = judged.kept.get(&(id, taken.index));
        let state = match taken.index {
            _ if why.is_some() => "keep",
            index if plan.due.contains(&index) => match &gone {
                Some(gone) if !gone.contains(&index) => "held",
                _ => "delete",
            },
            index if plan.waiting.contains_key(&index) => "marked",
            index if plan.fresh.contains(&index) => "mark",
            _ => "frozen",
        };
        SnapshotAnswer {
            index: taken.index,
            time: clock::rfc3339(taken.time_ms),
            bytes: taken.bytes,
            records: taken.records,
            proved: stock.holding.is_proved(taken),
            state,
            why: why.into_iter().flatten().map(|reason| reason.as_str()).collect(),
            due: plan.waiting.get(&taken.index).copied().map(clock::rfc3339),
        }
    });
    let (held, recorded) = outcome.map_or_else(Default::default, |outcome| (outcome.held, outcome.recorded));
    LineageAnswer {
        lineage: id.to_string(),
        cluster_name: stock.cluster_name.clone(),
        snapshots: snapshots.collect(),
        log: LogAnswer { mark_through: plan.log_fresh, delete_through: plan.log_due.filter(|_| !plan.log.is_empty()) },
        objects,
        bytes,
        held: held.into_iter().map(|(object, until)| HeldAnswer { object, until: until.map(clock::rfc3339) }).collect(),
        recorded,
        strangers: stock.strangers.iter().map(|key| layout::hex(key)).collect(),
    }
}

fn print(args: &PruneArgs, answers: &[Answer], frozen: &[FrozenAnswer]) -> anyhow::Result<()> {
    for answer in answers {
        output::text(&answer.from)?;
        for lineage in &answer.lineages {
            let name = lineage.cluster_name.as_deref().unwrap_or("of a name that cannot be read");
            output::text(format!("cluster {name}, lineage {}", lineage.lineage))?;
            let mut table = Table::new(&["  snapshot", "time", "records", "size", "proved", "fate", "why"]);
            for one in &lineage.snapshots {
                let why = match (&one.due, one.state) {
                    (Some(due), _) => format!("goes after {due}"),
                    (None, "mark") => format!("goes in {} days at the earliest", args.grace_days),
                    (None, "frozen") => "would be marked".to_owned(),
                    (None, "held") => "a lock holds it".to_owned(),
                    (None, _) => one.why.join(" "),
                };
                table.row([
                    format!("  {}", one.index),
                    one.time.clone(),
                    one.records.to_string(),
                    output::bytes(one.bytes),
                    if one.proved { "yes" } else { "no" }.to_owned(),
                    one.state.to_owned(),
                    why,
                ]);
            }
            if !table.is_empty() {
                table.print()?;
            }
            output::text(format!("  {}", told(args, lineage)))?;
        }
    }
    // Beside the answer: whoever reads either must not miss it.
    let mut by_rule: BTreeMap<&str, Vec<&FrozenAnswer>> = BTreeMap::new();
    frozen.iter().for_each(|one| by_rule.entry(one.rule).or_default().push(one));
    for (rule, found) in by_rule {
        for one in found.iter().take(5) {
            eprintln!("holdfast: frozen by {rule}: {}: {}", one.lineage, one.reason);
        }
        if found.len() > 5 {
            eprintln!("holdfast: frozen by {rule}: and {} more", found.len() - 5);
        }
        found.first().into_iter().for_each(|one| eprintln!("holdfast: {}", one.remedy));
    }
    Ok(())
}

/// What was done to a history, in a line.
fn told(args: &PruneArgs, lineage: &LineageAnswer) -> String {
    let would = if args.dry_run { "would be " } else { "" };
    let count = |state: &str| lineage.snapshots.iter().filter(|one| one.state == state).count();
    let (held, strangers) = (lineage.held.len(), lineage.strangers.len());
    let parts = [
        Some(format!("{} snapshots stay", count("keep"))),
        Some(count("mark")).filter(|n| *n > 0).map(|n| format!("{n} {would}marked")),
        Some(count("marked")).filter(|n| *n > 0).map(|n| format!("{n} wait")),
        Some(count("delete")).filter(|n| *n > 0).map(|n| format!("{n} {would}deleted")),
        Some(held).filter(|n| *n > 0).map(|n| format!("locks hold {n} objects")),
        lineage.log.mark_through.map(|through| format!("the log up to entry {through} {would}marked")),
        lineage.log.delete_through.map(|through| format!("the log up to entry {through} {would}deleted")),
        Some(lineage.objects).filter(|n| *n > 0).map(|n| format!("{n} objects, {}", output::bytes(lineage.bytes))),
        Some(strangers).filter(|n| *n > 0).map(|n| format!("{n} keys that spoke here are not trusted")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

const _: () = assert!(DROP_PERCENT_MAX == 20, "the help names it");
