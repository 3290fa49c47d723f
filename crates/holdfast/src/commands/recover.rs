//! `holdfast cluster recover`: a new cluster out of what a lost majority left behind.
//!
//! Invariants:
//! - What comes back and what is lost is said before anything is written, and the old cluster's name is asked for.
//! - The old history is ended at every archive that is named before the new one exists: a node of the old cluster that
//!   is alive after all stops as soon as it ships. What one archive alone holds is copied to the others before that:
//!   nothing can be added afterwards.
//! - Ending it cannot be taken back: the directories to fill are looked at before.
//! - The survivors' directories are read and kept as they are; the new cluster is filled into others.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use holdfast_archive::log::list_log;
use holdfast_archive::{
    ArchiveError, Choose, Destination, DestinationConfig, Fence, FoundLineages, Joint, Keyring, LineageFacts,
    LineageId, OpenLineage, Sealing, SegmentShipper, SnapshotOptions, Survivor, find_lineages, list_snapshots,
    ship_snapshot,
};
use holdfast_store::LogPosition;
use serde::Serialize;

use crate::clock;
use crate::commands::backup::{GROUP, KeyArgs};
use crate::commands::restore::{Target, TargetArgs, fill};
use crate::exit::{Exit, failure};
use crate::output::{self, Format};

/// Flags of `recover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Stop every node of the old cluster first. The survivors' directories are only read; keep them.
  holdfast cluster recover --survivor /srv/n3 --from file:///mnt/vault/holdfast --data /srv/new
tells what comes back and what is lost, and asks for the cluster's name:
  … --confirm prod")]
pub struct RecoverArgs {
    /// Data directory of a node that is left; name all of them. The one that is furthest counts.
    #[arg(long, value_name = "DIR", required = true)]
    survivor: Vec<PathBuf>,
    /// Archive of the old cluster, for example file:///mnt/vault/holdfast; name every one that it shipped to.
    #[arg(long, value_name = "URL")]
    from: Vec<String>,
    /// File with the credentials of buckets among them [default: from the environment].
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// Highest committed index that anybody saw, as `domain survive` or a monitor has it: tells how much is lost.
    #[arg(long, value_name = "INDEX")]
    committed: Option<u64>,
    /// The old cluster's name.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    confirm: String,
    /// Although another history goes on from this one already: an earlier recovery was given up.
    #[arg(long)]
    again: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct SurvivorAnswer {
    node_id: u64,
    data_dir: PathBuf,
    last_index: u64,
    last_term: u64,
    applied_index: u64,
    /// Why it may have acknowledged more than it holds.
    warning: Option<String>,
}

#[derive(Debug, Serialize)]
struct ArchiveAnswer {
    from: String,
    /// Last entry there; null = none.
    last_index: Option<u64>,
    /// `behind`: the archive is; the survivor adds to it. `ahead`: it holds more. `differs`: the survivor's end was
    /// never committed. `gap`: the two do not meet.
    joint: &'static str,
    /// It was ended before this index by an earlier recovery.
    fenced_at: Option<u64>,
}

/// What a recovery brings back.
#[derive(Debug, Serialize)]
struct PlanAnswer {
    v: u32,
    cluster_name: String,
    lineage: String,
    survivors: Vec<SurvivorAnswer>,
    archives: Vec<ArchiveAnswer>,
    /// Last log index that comes back; what was acknowledged after it is lost.
    last_index: u64,
    last_term: u64,
    last_time: Option<String>,
    /// Age of the newest write that comes back.
    loss_window_ms: Option<u64>,
    /// Entries from there to the committed index that was named; null = none was.
    loss_entries: Option<u64>,
    /// Where it comes from: an archive's URL, or the survivor's directory.
    source: String,
    confirmed: bool,
}

/// An archive of the old cluster.
struct Archive {
    shipper: SegmentShipper,
    /// How what is added will be sealed.
    sealing: Sealing,
    destination: Destination,
    tail: Option<LogPosition>,
    joint: Joint,
    fence: Option<Fence>,
}

/// Where the new cluster is filled from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The archive at this place in the list.
    Archive(usize),
    /// The survivor's own state and log.
    Survivor,
}

/// Runs it.
pub async fn run(format: Format, args: RecoverArgs) -> anyhow::Result<Exit> {
    let survivors = open_survivors(&args.survivor)?;
    let best = best_of(&survivors)?;
    let facts = best.lineage();
    let keys = args.keys.read()?;
    let mut archives = Vec::new();
    for url in &args.from {
        let destination = DestinationConfig::from_url(url);
        // A folder takes none.
        let credentials = args.credentials.clone().filter(|_| !url.starts_with("file:"));
        let destination = destination.with_credentials(credentials);
        archives.push(open_archive(&destination, keys.clone(), facts, best, args.again).await?);
    }
    let (source, last) = choose(best, &archives);
    let stamp_ms = match source {
        Source::Archive(place) if archives[place].joint == Joint::Behind || archives[place].joint == Joint::Differs => {
            let choose = Choose::newest_of(facts.id);
            holdfast_archive::plan_of_what_is_there(&archives[place].destination, GROUP, choose).await?.last_stamp_ms
        }
        Source::Archive(_) | Source::Survivor => best.newest_stamp_ms()?,
    };
    let source_name = match source {
        Source::Archive(place) => archives[place].destination.config().url.clone(),
        Source::Survivor => best.path().display().to_string(),
    };
    let confirmed = args.confirm == facts.cluster_name;
    let plan = PlanAnswer {
        v: 1,
        cluster_name: facts.cluster_name.clone(),
        lineage: facts.id.to_string(),
        survivors: survivors.iter().map(survivor_answer).collect(),
        archives: archives.iter().map(archive_answer).collect(),
        last_index: last.index,
        last_term: last.term,
        last_time: (stamp_ms > 0).then(|| clock::rfc3339(stamp_ms)),
        loss_window_ms: (stamp_ms > 0).then(|| clock::unix_ms(SystemTime::now()).saturating_sub(stamp_ms)),
        loss_entries: args.committed.map(|committed| committed.saturating_sub(last.index)),
        source: source_name,
        confirmed,
    };
    if args.dry_run || !confirmed {
        output::answer(format, &plan, || plan.in_words())?;
    } else if format == Format::Table {
        output::text(plan.in_words())?;
    }
    if args.dry_run {
        return Ok(Exit::Ok);
    }
    if !confirmed {
        let name = &facts.cluster_name;
        eprintln!("holdfast: nothing was done; with the old cluster stopped, confirm with its name: --confirm {name}");
        return Ok(Exit::Unsafe);
    }
    carry_out(format, args.target, &plan, best, archives, source).await?;
    Ok(Exit::Ok)
}

fn open_survivors(paths: &[PathBuf]) -> anyhow::Result<Vec<Survivor>> {
    let survivors = paths.iter().map(|path| Survivor::open(path, GROUP)).collect::<Result<Vec<_>, _>>()?;
    for other in &survivors[1..] {
        if other.lineage().id != survivors[0].lineage().id {
            let message = format!(
                "{} and {} took part in different histories; name the survivors of one",
                survivors[0].path().display(),
                other.path().display()
            );
            return Err(failure(Exit::Usage, message));
        }
    }
    Ok(survivors)
}

/// As Raft elects: the log that ends in the newest term, and then the longest.
fn best_of(survivors: &[Survivor]) -> anyhow::Result<&Survivor> {
    let by_log = |survivor: &&Survivor| (survivor.last().term, survivor.last().index);
    survivors.iter().max_by_key(by_log).ok_or_else(|| failure(Exit::Usage, "name a survivor with --survivor"))
}

async fn open_archive(
    config: &DestinationConfig,
    keys: Arc<Keyring>,
    facts: &LineageFacts,
    survivor: &Survivor,
    again: bool,
) -> anyhow::Result<Archive> {
    let url = config.url.as_str();
    let sealing = survivor.sealing(&keys)?;
    let destination = Destination::open(config)?.with_keys(keys);
    let FoundLineages { lineages, bad, .. } = find_lineages(&destination).await?;
    if let (false, Some((_, error))) = (again, bad.into_iter().next()) {
        // It may be the history that goes on from this one already.
        return Err(error.into());
    }
    if !lineages.iter().any(|one| one.id == facts.id) {
        let message = format!("{url} holds nothing of cluster {} ({}); leave it out", facts.cluster_name, facts.id);
        return Err(failure(Exit::NotFound, message));
    }
    for child in lineages.iter().filter(|one| one.parent_id() == Some(facts.id)) {
        if !again && holds_anything(&destination, &child.id).await? {
            let message = format!(
                "cluster {} ({}) goes on from this history already, see `holdfast backup ls --from {url}`; if that is \
                 not wanted any more, say --again",
                child.cluster_name, child.id
            );
            return Err(failure(Exit::Conflict, message));
        }
    }
    let lineage = OpenLineage::open(destination.clone(), facts).await?;
    let mut shipper = SegmentShipper::new(lineage, GROUP);
    let (tail, fence) = shipper.end().await?;
    let mut joint = survivor.join(url, tail)?;
    if fence.is_some() && matches!(joint, Joint::Follows { .. }) {
        // An earlier recovery took what there was then; nothing can be added behind its end.
        joint = Joint::Differs;
    }
    Ok(Archive { shipper, sealing, destination, tail: tail.map(|tail| tail.last), joint, fence })
}

async fn holds_anything(destination: &Destination, id: &LineageId) -> anyhow::Result<bool> {
    let (log, _) = list_log(destination, id, GROUP).await?;
    Ok(!log.is_empty() || !list_snapshots(destination, id, GROUP).await?.is_empty())
}

/// The source that reaches furthest, and where it ends. An archive before the survivor: what is there is outside.
fn choose(survivor: &Survivor, archives: &[Archive]) -> (Source, LogPosition) {
    let ends = archives.iter().enumerate().filter_map(|(place, archive)| {
        let end = match archive.joint {
            Joint::Follows { .. } => Some(survivor.last()),
            Joint::Behind | Joint::Differs => archive.tail,
            Joint::Gap { .. } => None,
        };
        end.map(|end| (Source::Archive(place), end))
    });
    // What differs from an archive was never committed.
    let is_refuted = archives.iter().any(|archive| archive.joint == Joint::Differs);
    let own = (!is_refuted).then(|| (Source::Survivor, survivor.last()));
    let furthest = ends.rev().fold(own, |best, one| match best {
        Some(best) if best.1.index > one.1.index => Some(best),
        _ => Some(one),
    });
    furthest.unwrap_or((Source::Survivor, survivor.last()))
}

async fn carry_out(
    format: Format,
    target: TargetArgs,
    plan: &PlanAnswer,
    survivor: &Survivor,
    mut archives: Vec<Archive>,
    source: Source,
) -> anyhow::Result<()> {
    let facts = survivor.lineage();
    let target = Target::new(target, &facts.cluster_name)?;
    holdfast_archive::check_targets(GROUP, &target.dirs())?;
    let history = target.history()?;
    let successor = LineageId { cluster_id: history.cluster_id, incarnation: history.incarnation };
    let mut ends = Vec::new();
    for archive in archives.iter_mut().filter(|archive| archive.fence.is_none()) {
        archive.shipper.seal_with(archive.sealing.clone()).await?;
    }
    for archive in &mut archives {
        ends.push(append(archive, survivor).await?);
    }
    let copied = complete(&mut archives, &mut ends).await?;
    let mut fenced = Vec::new();
    for (archive, end) in archives.iter_mut().zip(ends.iter().copied()) {
        if archive.fence.is_none() {
            let fence = archive.shipper.fence(end, successor).await?;
            fenced.push(serde_json::json!({"from": archive.destination.config().url, "index": fence.index}));
        }
    }
    let started = std::time::Instant::now();
    let report = match source {
        Source::Archive(place) => {
            let destination = &archives[place].destination;
            let restored =
                holdfast_archive::plan_of_what_is_there(destination, GROUP, Choose::newest_of(facts.id)).await?;
            fill(destination, &restored, &target.nodes, &history).await?
        }
        Source::Survivor => {
            let dir = scratch_beside(&target.nodes[0].data_dir)?;
            let scratch = scratch_archive(dir.path(), facts, survivor).await?;
            let restored =
                holdfast_archive::plan_of_what_is_there(&scratch, GROUP, Choose::newest_of(facts.id)).await?;
            fill(&scratch, &restored, &target.nodes, &history).await?
        }
    };
    target.remember()?;
    let took = started.elapsed();
    let value = serde_json::json!({
        "v": 1, "plan": plan, "copied": copied, "fenced": fenced, "last_index": report.last.index, "records": report.records,
        "restore_ms": u64::try_from(took.as_millis())?, "cluster_name": target.name,
        "incarnation": report.genesis.incarnation.0, "data_dirs": target.dirs(),
    });
    output::answer(format, &value, || done_in_words(&target, &report, took, &archives, &ends))?;
    Ok(())
}

/// The log at each archive that lacks entries which another one holds, completed from the one that reaches furthest.
/// One that cannot be completed is warned of and left behind: no archive may stand between people and their records.
async fn complete(archives: &mut [Archive], ends: &mut [u64]) -> anyhow::Result<Vec<serde_json::Value>> {
    let furthest = (0..ends.len()).max_by_key(|place| ends[*place]);
    let Some((from, end)) = furthest.map(|place| (archives[place].destination.clone(), ends[place])) else {
        return Ok(Vec::new());
    };
    let mut copied = Vec::new();
    for (archive, own) in archives.iter_mut().zip(ends).filter(|(archive, own)| archive.fence.is_none() && **own < end)
    {
        let (source, url) = (&from.config().url, archive.destination.config().url.clone());
        match archive.shipper.copy_from(&from).await {
            Ok(tail) => {
                let now = tail.map_or(0, |tail| tail.last.index + 1);
                copied.push(serde_json::json!({"from": source, "to": url, "entries": now - *own}));
                *own = now;
            }
            // Two archives of one history that hold different ones: which is true is not for a program to say.
            Err(error @ ArchiveError::LineageFork { .. }) => return Err(error.into()),
            Err(error) => eprintln!("holdfast: {url} lacks entries that {source} holds, and did not get them: {error}"),
        }
    }
    Ok(copied)
}

fn done_in_words(
    target: &Target,
    report: &holdfast_archive::RestoreReport,
    took: Duration,
    archives: &[Archive],
    ends: &[u64],
) -> String {
    let ended = match archives.len() {
        0 => "no archive was named: a node of the old cluster that still runs is not stopped by anything; see to it"
            .to_owned(),
        _ => "the old history is ended in every archive that was named; a node of it that still runs stops when it \
              ships"
            .to_owned(),
    };
    let behind = archives.iter().zip(ends).filter(|(_, end)| **end <= report.last.index);
    let behind: Vec<&str> = behind.map(|(archive, _)| archive.destination.config().url.as_str()).collect();
    let then = match (archives.is_empty(), behind.is_empty()) {
        (true, _) => "\nthen take a backup at once, no archive holds any of it: holdfast backup now".to_owned(),
        (false, false) => {
            format!("\nthen take a backup at once, {} lacks the end of it: holdfast backup now", behind.join(" and "))
        }
        (false, true) => String::new(),
    };
    format!("{ended}\n{}{then}", target.done_in_words(report, took))
}

/// Ships what the survivor holds beyond the end; gives the position behind all.
async fn append(archive: &mut Archive, survivor: &Survivor) -> anyhow::Result<u64> {
    let Joint::Follows { mut next, mut chain } = archive.joint else {
        return Ok(archive.tail.map_or(0, |tail| tail.index + 1));
    };
    while next <= survivor.last().index {
        let tail = archive.shipper.ship(&survivor.entries(next)?, chain).await?.tail();
        (next, chain) = (tail.last.index + 1, tail.chain);
    }
    Ok(next)
}

fn scratch_beside(dir: &Path) -> anyhow::Result<tempfile::TempDir> {
    let parent = dir.parent().unwrap_or(dir);
    std::fs::create_dir_all(parent)?;
    Ok(tempfile::Builder::new().prefix(".holdfast-recover-").tempdir_in(parent)?)
}

/// The survivor's state and log as an archive of its own, beside the directory that it fills and as open as that one:
/// whatever is restored takes one way, with every check on it.
async fn scratch_archive(dir: &Path, facts: &LineageFacts, survivor: &Survivor) -> anyhow::Result<Destination> {
    let url = format!("file://{}", dir.join("archive").display());
    let destination = Destination::create(&DestinationConfig::from_url(&url))?;
    let lineage = OpenLineage::open(destination.clone(), facts).await?;
    // On the survivor's file system, where it is made of links.
    let beside = scratch_beside(survivor.path())?;
    let checkpoint = beside.path().join("checkpoint");
    if survivor.checkpoint(&checkpoint)? {
        ship_snapshot(&lineage, GROUP, &checkpoint, &SnapshotOptions::default(), &|_, _| {}).await?;
    }
    let (mut next, mut chain) = survivor.after_state();
    let mut shipper = SegmentShipper::new(lineage, GROUP);
    while next <= survivor.last().index {
        let tail = shipper.ship(&survivor.entries(next)?, chain).await?.tail();
        (next, chain) = (tail.last.index + 1, tail.chain);
    }
    Ok(destination)
}

fn survivor_answer(survivor: &Survivor) -> SurvivorAnswer {
    SurvivorAnswer {
        node_id: survivor.node_id(),
        data_dir: survivor.path().to_owned(),
        last_index: survivor.last().index,
        last_term: survivor.last().term,
        applied_index: survivor.applied(),
        warning: survivor.warning().map(str::to_owned),
    }
}

fn archive_answer(archive: &Archive) -> ArchiveAnswer {
    ArchiveAnswer {
        from: archive.destination.config().url.clone(),
        last_index: archive.tail.map(|tail| tail.index),
        joint: match archive.joint {
            Joint::Behind => "ahead",
            Joint::Follows { .. } => "behind",
            Joint::Differs => "differs",
            Joint::Gap { .. } => "gap",
        },
        fenced_at: archive.fence.map(|fence| fence.index),
    }
}

impl PlanAnswer {
    fn in_words(&self) -> String {
        let mut lines = vec![format!("cluster {}, history {}", self.cluster_name, self.lineage)];
        for one in &self.survivors {
            let (node, dir) = (one.node_id, one.data_dir.display());
            lines.push(format!(
                "  node {node}, {dir}: log to index {}, its state to {}",
                one.last_index, one.applied_index
            ));
            lines.extend(one.warning.as_ref().map(|warning| format!("    it may have acknowledged more: {warning}")));
        }
        for one in &self.archives {
            let end = one.last_index.map_or("nothing of the log".to_owned(), |index| format!("log to index {index}"));
            let joint = match one.joint {
                "ahead" => "no survivor holds more",
                "behind" => "the survivor goes on from there",
                "differs" => "the survivor's entries beyond were never committed, or came after an earlier recovery",
                _ => "the survivor's log begins later: the two do not meet",
            };
            lines.push(format!("  archive {}: {end}; {joint}", one.from));
            lines.extend(one.fenced_at.map(|index| format!("    ended before index {index} by an earlier recovery")));
        }
        lines.push(format!("comes back to index {} (term {}), from {}", self.last_index, self.last_term, self.source));
        let newest = match (&self.last_time, self.loss_window_ms) {
            (Some(time), Some(ms)) => format!("the newest write that comes back is of {time}, {ms} ms before now"),
            _ => "it holds no time stamp".to_owned(),
        };
        let entries = match self.loss_entries {
            Some(count) => format!("{count} entries of those that were committed are lost"),
            None => {
                "how many entries that are is not known here; name the highest index seen with --committed".to_owned()
            }
        };
        lines.push(format!(
            "loss window: what was acknowledged after index {} is lost unless devices upload it again; {newest}; {entries}",
            self.last_index
        ));
        lines.join("\n")
    }
}
