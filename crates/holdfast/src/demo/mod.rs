//! `holdfast demo`: the story the system was built for, told with real processes, real disks and real kills.
//!
//! Invariants: a record counts as acknowledged only when a client held the answer; every verdict is made by reading
//! records back and comparing bytes, never by asking the servers how they feel; whatever way the demo ends, no process
//! and no temporary directory stays behind.

mod check;
mod ledger;
mod load;
mod report;
mod sabotage;
mod story;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use clap::ValueEnum;
use holdfast_archive::{Choose, Destination, DestinationConfig, RestorePlan};
use holdfast_client::Client;
use tempfile::TempDir;

use crate::commands::backup::{self, GROUP};
use crate::commands::restore;
use crate::commands::restore_plan::PlanAnswer;
use crate::exit::{Exit, exit_of, failure};
use crate::launch::{Cluster, ClusterSpec, free_base, is_free};
use ledger::Ledger;
use load::Load;
use report::Report;
use story::Story;

/// One array holds all disks, each node has a rack of its own: what keeps a cluster alive, and what does not.
const NODES: usize = 3;
const CLUSTER_NAME: &str = "demo";
/// Parts of the load, in percent of the records, at which things happen.
const KILL_AT: u64 = 25;
const CHECK_AT: u64 = 45;
const BACKUP_AT: u64 = 55;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Steps: three nodes and an offsite folder; 64 clients write people's records; the leader is killed under load; a \
snapshot is taken; then the array with all three nodes' disks is lost, at full load; a new cluster is made from the \
offsite folder; every acknowledged record is compared byte for byte.

Exit code 0 only if nothing was lost after the leader's death, and nothing beyond the announced loss window after the \
loss of every disk. With --sabotage the restore must refuse: exit code 9, and the name of the damaged object.")]
pub struct Args {
    /// How many records to write.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(100..))]
    records: u64,
    /// Spread the writes over this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Print the result as one JSON object, the last line of stdout; the story goes to stderr.
    #[arg(long)]
    json: bool,
    /// Keep acknowledged.jsonl, offsite/ and restored/ in this empty directory, for a checker from outside.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Damage one shipped object before the restore.
    #[arg(long, value_enum)]
    sabotage: Option<Sabotage>,
    /// Which made-up people; the same number gives the same people.
    #[arg(long, value_name = "N", default_value_t = 2009)]
    seed: u64,
    /// First port of the nodes [default: the first free of 7470, 8470, …].
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
}

/// What to damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// One bit of a chunk of the snapshot.
    Flip,
    /// Delete a segment of the log.
    Drop,
}

/// Where the demo works.
struct Place {
    /// Removed at the end, unless it is kept.
    _temporary: Option<TempDir>,
    root: PathBuf,
}

impl Place {
    fn new(keep: Option<&Path>) -> anyhow::Result<Self> {
        let Some(keep) = keep else {
            let temporary = tempfile::Builder::new().prefix("holdfast-demo-").tempdir()?;
            let root = temporary.path().to_owned();
            return Ok(Self { _temporary: Some(temporary), root });
        };
        std::fs::create_dir_all(keep).with_context(|| format!("create {}", keep.display()))?;
        let keep = keep.canonicalize()?;
        if std::fs::read_dir(&keep)?.next().is_some() {
            return Err(failure(Exit::Usage, format!("{} is not empty; name another directory", keep.display())));
        }
        Ok(Self { _temporary: None, root: keep })
    }

    fn array(&self) -> PathBuf {
        self.root.join("array")
    }

    fn offsite(&self) -> PathBuf {
        self.root.join("offsite")
    }

    fn restored(&self) -> PathBuf {
        self.root.join("restored")
    }
}

/// Tells the story.
pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let story = Story::new(args.json);
    let place = Place::new(args.keep.as_deref())?;
    let ledger = Arc::new(Ledger::default());
    let mut report = Report { records: args.records, seed: args.seed, ..Report::default() };
    let base = args.port_base.map_or_else(|| free_base(NODES), Ok)?;

    story.begin(args.records);
    let disaster_at = before_the_disaster(&args, &story, &place, base, &ledger, &mut report).await?;
    report.acknowledged = ledger.count();
    if args.keep.is_some() {
        ledger.write(&place.root.join("acknowledged.jsonl"), args.seed)?;
    }
    let restored = after_the_disaster(&args, &story, &place, base, &ledger, disaster_at, &mut report).await;
    report.total_seconds = started.elapsed().as_secs_f64();
    if let Err(error) = restored {
        return refused(&args, &story, &mut report, error);
    }
    story.end(&report, args.keep.as_deref());
    report.print(args.json)?;
    Ok(if report.is_good() { Exit::Ok } else { Exit::Error })
}

/// The restore found damage: with sabotage that is the point, and still no success.
fn refused(args: &Args, story: &Story, report: &mut Report, error: anyhow::Error) -> anyhow::Result<Exit> {
    if exit_of(&error) != Exit::Integrity {
        return Err(error);
    }
    report.damaged_object = sabotage::object_of(&error);
    let object = report.damaged_object.clone().unwrap_or_default();
    story.refused(args.sabotage.is_some(), &object, &error);
    report.print(args.json)?;
    Ok(Exit::Integrity)
}

/// A cluster under load loses its leader, takes a snapshot, and then loses every disk. Gives the moment.
async fn before_the_disaster(
    args: &Args,
    story: &Story,
    place: &Place,
    base: u16,
    ledger: &Arc<Ledger>,
    report: &mut Report,
) -> anyhow::Result<SystemTime> {
    let mut spec = ClusterSpec::new(&place.array(), NODES, base, CLUSTER_NAME)?;
    let url = folder_url(&place.offsite())?;
    label(&mut spec, |number| [("array", "san-07".to_owned()), ("rack", format!("r{number}"))].into());
    for node in &mut spec.nodes {
        node.offsite = vec![url.clone()];
    }
    let mut cluster = Cluster::start(spec).await?;
    story.started(&mut cluster, &place.offsite());

    let client = Client::builder().endpoints(cluster.spec().clients()).build()?;
    let load = Load::start(client.clone(), ledger.clone(), args);
    story.load(args);
    let bar = story.bar(args.records, "acknowledged");
    let reached = async |percent: u64| load.reached(args.records * percent / 100, &bar).await;

    reached(KILL_AT).await?;
    let (leader, _) = cluster.leader().await?;
    let before = ledger.count();
    cluster.nodes()[leader].kill();
    bar.suspend(|| story.leader_killed(leader, before));
    reached(CHECK_AT).await?;
    let lost = check::compare(&client, &ledger.acknowledged(), args.seed, &bar).await?;
    report.lost_after_leader_kill = lost.missing.len() as u64;
    report.silence_ms = ledger.longest_silence().as_millis() as u64;
    bar.suspend(|| story.leader_checked(&lost, report.silence_ms));
    cluster.restart(leader)?;

    reached(BACKUP_AT).await?;
    let (_, admin) = cluster.leader().await?;
    let taking = Instant::now();
    backup::take(&admin, Duration::from_secs(120)).await?;
    bar.suspend(|| story.backup_taken(taking.elapsed()));
    reached(100).await?;

    let disaster_at = SystemTime::now();
    cluster.cut_power();
    report.errors = load.stop().await;
    bar.finish_and_clear();
    report.silence_ms = ledger.longest_silence().as_millis() as u64;
    drop(cluster);
    std::fs::remove_dir_all(place.array()).context("lose the disks")?;
    story.array_lost(ledger.count());
    Ok(disaster_at)
}

/// A new cluster from the offsite folder alone, and the verdict.
async fn after_the_disaster(
    args: &Args,
    story: &Story,
    place: &Place,
    base: u16,
    ledger: &Ledger,
    disaster_at: SystemTime,
    report: &mut Report,
) -> anyhow::Result<()> {
    let destination = Destination::open(&DestinationConfig::from_url(&folder_url(&place.offsite())?))?;
    if let Some(how) = args.sabotage {
        let plan = plan(&destination).await?;
        let object = sabotage::damage(&place.offsite(), &plan, how)?;
        story.sabotaged(how, &object);
        report.sabotaged_object = Some(object);
    }
    let started = Instant::now();
    let plan = plan(&destination).await?;
    report.restored_index = plan.last.index;
    story.plan(&PlanAnswer::new(&plan, disaster_at));

    // The old ports, unless somebody took them meanwhile.
    let base = if args.port_base.is_none() && !is_free(NODES, base) { free_base(NODES)? } else { base };
    let mut spec = ClusterSpec::new(&place.restored(), NODES, base, CLUSTER_NAME)?;
    label(&mut spec, |number| [("array", format!("san-{}", 10 + number)), ("site", "west".to_owned())].into());
    let filled =
        restore::fill(&destination, &plan, &spec.nodes, &restore::new_history(&spec.nodes, CLUSTER_NAME)?).await?;
    if let Some(object) = &report.sabotaged_object {
        anyhow::bail!("the restore did not find the damage in {object}: this is a defect");
    }
    story.filled(&filled, started.elapsed());
    let mut cluster = Cluster::start(spec).await?;
    report.restore_seconds = started.elapsed().as_secs_f64();
    story.restored(started.elapsed());

    let client = Client::builder().endpoints(cluster.spec().clients()).build()?;
    let all = ledger.acknowledged();
    let bar = story.bar(all.len() as u64, "compared");
    let found = check::compare(&client, &all, args.seed, &bar).await?;
    bar.finish_and_clear();
    report.judge(&all, &found, plan.last.index, disaster_at);
    cluster.stop().await;
    Ok(())
}

/// Gives every node its failure domains; they are numbered from 1.
fn label(spec: &mut ClusterSpec, domains: impl Fn(usize) -> BTreeMap<&'static str, String>) {
    for (node, number) in spec.nodes.iter_mut().zip(1..) {
        node.labels = domains(number).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    }
}

async fn plan(destination: &Destination) -> anyhow::Result<RestorePlan> {
    Ok(holdfast_archive::plan(destination, GROUP, Choose::default()).await?)
}

fn folder_url(folder: &Path) -> anyhow::Result<String> {
    let text = folder.to_str().with_context(|| format!("{} is not UTF-8; use another directory", folder.display()))?;
    let mut url = String::from("file://");
    for byte in text.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => url.push(char::from(byte)),
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_become_urls() {
        assert_eq!(folder_url(Path::new("/tmp/a b/%")).expect("text"), "file:///tmp/a%20b/%25");
    }

    #[test]
    fn a_kept_place_must_be_empty() {
        let dir = tempfile::tempdir().expect("temp");
        assert!(Place::new(Some(dir.path())).is_ok());
        std::fs::write(dir.path().join("x"), b"x").expect("writes");
        let error = Place::new(Some(dir.path())).err().expect("is not empty");
        assert_eq!(exit_of(&error), Exit::Usage);
        let temporary = Place::new(None).expect("made");
        let root = temporary.root.clone();
        assert!(root.is_dir());
        drop(temporary);
        assert!(!root.exists());
    }
}
