//! `holdfast copies ledger` and `copies verify`: what was said of each copy, by whom, and whether it still says so.

use std::collections::BTreeMap;
use std::path::PathBuf;

use holdfast_archive::ledger::{Entry, Ledger, Words, ledger};
use holdfast_archive::{Destination, DestinationConfig, layout};
use serde::Serialize;

use crate::clock;
use crate::commands::backup::{BadObject, GROUP};
use crate::commands::prune::without_node;
use crate::exit::{Exit, failure};
use crate::launch::render_labels;
use crate::output::{self, Format, Table};

/// Which copies.
#[derive(Debug, clap::Args)]
pub struct PlaceArgs {
    /// The copy: file:///…, s3://bucket/prefix?endpoint=…&region=…, gs://…, az://…
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    from: Option<String>,
    /// File with the bucket's credentials [default: from the environment].
    #[arg(long, value_name = "FILE", requires = "from")]
    credentials: Option<PathBuf>,
    /// Every [[offsite]] destination of a configuration, with its labels.
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    config: Option<PathBuf>,
}

impl PlaceArgs {
    fn destinations(&self) -> anyhow::Result<Vec<DestinationConfig>> {
        let Some(file) = &self.config else {
            let url = self.from.clone().unwrap_or_default();
            return Ok(vec![DestinationConfig::from_url(&url).with_credentials(self.credentials.clone())]);
        };
        Ok(without_node(file)?.offsite.iter().map(DestinationConfig::from).collect())
    }
}

/// Flags of `ledger`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It is read from the signed objects beside the archive: verifications, drills, doctors' verdicts, tombstones and deletions. `copies \
verify` follows the hashes that link them.")]
pub struct LedgerArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The newest entries alone, so many; 0: all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    last: usize,
}

/// Flags of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every entry names the newest ones before it with their hashes: one that was changed, forged or taken away is told, with exit code 9. \
Of the very newest nobody knows yet: note the heads that this prints somewhere else, and give them with --known later.")]
pub struct VerifyArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Hash of an entry that was there once, as this command printed it; may be given several times.
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    known: Vec<String>,
}

fn parse_hash(text: &str) -> Result<String, String> {
    let hash: Option<[u8; 32]> = layout::unhex(text);
    hash.map(|_| text.to_owned()).ok_or_else(|| "a hash is 64 hex digits".into())
}

#[derive(Debug, Serialize)]
struct EntryAnswer {
    time: String,
    copy: String,
    /// Who could delete it, and where it is: the labels of the destination.
    labels: BTreeMap<String, String>,
    /// `verification`, `drill`, `doctor`, `tombstone` or `pruned`.
    kind: &'static str,
    /// Null: it is about the destination itself.
    lineage: Option<String>,
    /// How it was verified; null = it was not.
    level: Option<String>,
    /// Null: it is no finding.
    good: Option<bool>,
    /// What it holds: the newest snapshot, and the end of the log.
    snapshot_index: Option<u64>,
    snapshot_root: Option<String>,
    last_index: Option<u64>,
    /// What the destination let its clients do, as of then: `immutable`, `append-only` or `mutable`; null = nobody looked before.
    place: Option<String>,
    /// Of that look: until when what was written then is locked.
    locked_until: Option<String>,
    what: String,
    signed_by: String,
    object: String,
    blake3: String,
    after: Vec<String>,
}

/// Prints the ledger.
pub async fn list(format: Format, args: &LedgerArgs) -> anyhow::Result<Exit> {
    let mut all = Vec::new();
    let mut broken = Vec::new();
    for config in args.place.destinations()? {
        let read = ledger(&Destination::open(&config)?, GROUP).await?;
        all.extend(answers(&config, &read));
        broken.extend(read.broken.iter().map(BadObject::from));
    }
    all.sort_by(|a, b| (&a.time, &a.object).cmp(&(&b.time, &b.object)));
    if args.last > 0 {
        all.drain(..all.len().saturating_sub(args.last));
    }
    match format {
        Format::Json => output::object(&serde_json::json!({"v": 1, "entries": all, "broken": broken}))?,
        Format::Jsonl => all.iter().try_for_each(output::line)?,
        Format::Table => print(&all, &broken)?,
    }
    Ok(match (broken.is_empty(), all.is_empty()) {
        (false, _) => Exit::Integrity,
        (true, true) => Exit::NotFound,
        (true, false) => Exit::Ok,
    })
}

fn answers(config: &DestinationConfig, ledger: &Ledger) -> Vec<EntryAnswer> {
    let (mut place, mut locked_until) = (None, None);
    let mut all = Vec::new();
    for entry in &ledger.entries {
        if let Words::Verdict(said) = &entry.words {
            place = Some(said.verdict.to_string());
            locked_until = said.lock.as_ref().map(|lock| clock::rfc3339(lock.until_ms));
        }
        all.push(EntryAnswer { place: place.clone(), locked_until: locked_until.clone(), ..answer(config, entry) });
    }
    all
}

fn answer(config: &DestinationConfig, entry: &Entry) -> EntryAnswer {
    let mut answer = EntryAnswer {
        time: clock::rfc3339(entry.at_ms),
        copy: config.name.clone(),
        labels: config.labels.clone(),
        kind: "",
        lineage: entry.lineage.map(|id| id.to_string()),
        level: None,
        good: None,
        snapshot_index: None,
        snapshot_root: None,
        last_index: None,
        place: None,
        locked_until: None,
        what: String::new(),
        signed_by: layout::hex(&entry.key),
        object: entry.object.clone(),
        blake3: entry.blake3.clone(),
        after: entry.words.after().iter().map(|link| link.blake3.clone()).collect(),
    };
    match &entry.words {
        Words::Verification(said) => {
            answer.kind = if said.drill.is_some() { "drill" } else { "verification" };
            // Of another copy than the one that it lies beside.
            answer.copy = said.vault.clone().unwrap_or(answer.copy);
            (answer.level, answer.good) = (Some(said.level.to_string()), Some(said.good));
            (answer.snapshot_index, answer.last_index) = (said.snapshot_index, said.last_index);
            answer.snapshot_root = said.snapshots.last().map(|newest| newest.root.clone());
            answer.what = match said.why() {
                Some(why) => format!("{}: bad: {why}", said.level),
                None => format!("{}: good, {} objects, {}", said.level, said.objects, output::bytes(said.bytes)),
            };
        }
        Words::Verdict(said) => {
            answer.kind = "doctor";
            answer.what = said.verdict.to_string();
        }
        Words::Tombstone(said) => {
            answer.kind = "tombstone";
            answer.what = format!("{} snapshots are to go{}", said.snapshots.len(), log(said.log_through));
        }
        Words::Pruned(said) => {
            answer.kind = "pruned";
            let (snapshots, objects) = (said.snapshots.len(), said.objects);
            answer.what = format!("{snapshots} snapshots went{}: {objects} objects", log(said.log_through));
        }
    }
    answer
}

fn log(through: Option<u64>) -> String {
    through.map(|through| format!(", and the log up to entry {through}")).unwrap_or_default()
}

fn print(all: &[EntryAnswer], broken: &[BadObject]) -> anyhow::Result<()> {
    let mut table = Table::new(&["time", "copy", "kind", "what", "up to", "place", "labels", "signed by", "entry"]);
    for one in all {
        table.row([
            one.time.clone(),
            one.copy.clone(),
            one.kind.to_owned(),
            one.what.clone(),
            one.last_index.map_or("-".to_owned(), |index| index.to_string()),
            one.place.clone().unwrap_or_else(|| "-".to_owned()),
            render_labels(&one.labels),
            one.signed_by.chars().take(16).collect(),
            one.blake3.chars().take(16).collect(),
        ]);
    }
    table.print()?;
    broken.iter().for_each(|one| eprintln!("holdfast: {}: {}", one.object, one.reason));
    Ok(())
}

/// Follows every link.
pub async fn verify(format: Format, args: &VerifyArgs) -> anyhow::Result<Exit> {
    let (mut entries, mut heads, mut broken, mut hashes) = (0, Vec::new(), Vec::new(), Vec::new());
    for config in args.place.destinations()? {
        let read = ledger(&Destination::open(&config)?, GROUP).await?;
        entries += read.entries.len();
        heads.extend(read.heads().into_iter().map(|entry| (entry.object.clone(), entry.blake3.clone())));
        hashes.extend(read.entries.iter().map(|entry| entry.blake3.clone()));
        broken.extend(read.broken.iter().map(BadObject::from));
    }
    let lost: Vec<&String> = args.known.iter().filter(|known| !hashes.contains(known)).collect();
    if entries == 0 && broken.is_empty() && lost.is_empty() {
        return Err(failure(
            Exit::NotFound,
            "nobody said anything of it yet: see `backup verify --record`, `backup doctor`",
        ));
    }
    let told: Vec<_> =
        heads.iter().map(|(object, blake3)| serde_json::json!({"object": object, "blake3": blake3})).collect();
    let value = serde_json::json!({"v": 1, "entries": entries, "heads": told, "broken": broken, "lost": lost});
    output::answer(format, &value, || {
        let broken_told = broken.iter().map(|one| format!("{}: {}\n", one.object, one.reason));
        let lost_told = lost.iter().map(|hash| format!("{hash}: this entry was known, and is gone\n"));
        let heads_told = heads.iter().map(|(object, blake3)| format!("\n  {blake3}  {object}"));
        let count = broken.len() + lost.len();
        let told = format!("{entries} entries, {count} broken; heads, to be noted elsewhere:");
        broken_told.chain(lost_told).collect::<String>() + &told + &heads_told.collect::<String>()
    })?;
    Ok(if broken.is_empty() && lost.is_empty() { Exit::Ok } else { Exit::Integrity })
}
