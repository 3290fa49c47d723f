//! `holdfast restore`: a new cluster out of an archive.
//!
//! Invariants: what will be there and what is lost is said before anything is written; a directory that holds anything
//! is refused; nothing is usable until every byte was checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use clap::Subcommand;
use holdfast_archive::verification::{RestoreWork, newest_drills};
use holdfast_archive::{
    ArchiveError, At, Choose, Destination, LineageId, Offer, RestorePlan, RestoreReport, RestoreSpec, RestoreTarget,
    filled_with,
};
use holdfast_model::command::Genesis;
use holdfast_model::id::{Incarnation, NodeId, Stage};

use crate::clock;
use crate::commands::backup::{FromArgs, GROUP};
use crate::commands::restore_eta::{Watch, Work, rounded, title};
use crate::commands::restore_plan::PlanAnswer;
use crate::commands::restore_rest::{Rest, bring};
use crate::exit::{Exit, failure};
use crate::launch::{ClusterSpec, DEFAULT_PORT_BASE, Labels, NodeSpec, parse_labels, seat};
use crate::output::{self, Format};
use crate::progress;

/// Nodes of the cluster that a plan says the time for.
const DIRECTORIES_USUAL: usize = 3;

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Restore {
    /// Say what a restore would bring back, and what is lost. Reads every object that it needs, and writes nothing; where
    /// some are damaged, offers the newest point that the others allow (exit 9).
    Plan(PlanArgs),
    /// Fill fresh data directories, which open as a new cluster.
    Run(RunArgs),
    /// Bring back one person's records as they were: into files, or as new writes.
    User(super::restore_user::UserArgs),
}

/// What is restored, and up to where.
#[derive(Debug, clap::Args)]
pub struct PointArgs {
    #[command(flatten)]
    from: FromArgs,
    /// History to restore, as `backup ls` names it [default: the newest].
    #[arg(long, value_name = "CLUSTER/INCARNATION")]
    lineage: Option<String>,
    /// Up to where: a log index; a moment, as 2026-11-26T08:30:00Z; or latest. A moment is the last entry before the
    /// log's time goes beyond it.
    #[arg(long, value_name = "INDEX|TIME|latest", default_value = "latest", value_parser = parse_at)]
    at: At,
}

impl PointArgs {
    /// Where the archive is.
    pub fn url(&self) -> &str {
        &self.from.from
    }

    /// Opens the archive.
    pub fn open(&self) -> anyhow::Result<(Destination, Choose)> {
        let named = |text: &String| {
            LineageId::parse(text).ok_or_else(|| {
                failure(Exit::Usage, format!("--lineage {text:?} is none; `holdfast backup ls` names them"))
            })
        };
        let lineage = self.lineage.as_ref().map(named).transpose()?;
        Ok((self.from.open()?, Choose { lineage, at: self.at }))
    }
}

/// Reads `latest`, an index or a moment.
fn parse_at(text: &str) -> Result<At, String> {
    if text == "latest" {
        return Ok(At::Latest);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(At::Index).map_err(|_| format!("{text} is no log index"));
    }
    clock::parse(text)
        .map(At::Time)
        .ok_or_else(|| format!("{text:?} is neither a log index nor latest nor a moment such as 2026-11-26T08:30:00Z"))
}

/// Flags of `plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    point: PointArgs,
    /// Read only names, manifests and the end of the log: damage elsewhere is not found.
    #[arg(long)]
    quick: bool,
}

/// Flags of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With --stage, everything comes back at once but for the large payloads (of 4 KiB and more) of the other collections: \
start the nodes as soon as it says so. It goes on until these are there too; killed, it is run again with the same flags. \
Until then a read that wants such a payload answers COLLECTION_RESTORING, and pages of changes name these collections.
  holdfast restore run --from URL --data DIR --stage contacts,events

With --data the directory is laid out as `holdfast dev` does it, and this starts the cluster:
  holdfast dev --data DIR

With --node, once per node, each directory is for a `holdfast serve` of its own:
  holdfast restore run --from file:///mnt/vault/holdfast --name prod \\
      --node id=1,data=/srv/n1,client=10.0.0.1:7470,peer=10.0.0.1:7471,admin=10.0.0.1:7472,http=10.0.0.1:7473 \\
      --node id=2,…  --node id=3,…")]
pub struct RunArgs {
    #[command(flatten)]
    point: PointArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// Bring large payloads of these collections back before the nodes are started, and the others behind: contacts, events,
    /// todos, notes, photos, and x-* for all custom ones [default: all of them before].
    #[arg(long, value_name = "COLLECTION,…", value_delimiter = ',', value_parser = parse_stage)]
    stage: Vec<Stage>,
    /// Say each second on stderr, as a line of JSON, what is done and how long the rest takes.
    #[arg(long)]
    progress: bool,
}

impl RunArgs {
    /// Stages that are left for later.
    fn held_back(&self) -> Vec<Stage> {
        let is_left = |stage: &Stage| !self.stage.is_empty() && !self.stage.contains(stage);
        Stage::all().filter(is_left).collect()
    }
}

fn parse_stage(text: &str) -> Result<Stage, String> {
    let names: Vec<&str> = Stage::all().map(Stage::name).collect();
    Stage::of_name(text).ok_or_else(|| format!("{text:?} is none of {}", names.join(", ")))
}

/// What is filled, and as which cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// Directory to fill, laid out as `holdfast dev` does it.
    #[arg(long, value_name = "DIR", required_unless_present = "node", conflicts_with = "node")]
    data: Option<PathBuf>,
    /// Number of nodes under --data.
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: usize,
    /// First port of the nodes under --data.
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT_BASE)]
    port_base: u16,
    /// Failure domains of the nodes under --data: "array=a1,site=x;array=a2,site=x;array=a3,site=y".
    #[arg(long, value_name = "LABELS", value_parser = parse_labels)]
    labels: Option<Labels>,
    /// A node: id=1,data=DIR,client=H:P,peer=H:P,admin=H:P,http=H:P and any label; may be repeated.
    #[arg(long, value_name = "NODE", value_parser = parse_node)]
    node: Vec<NodeSpec>,
    /// Name of the new cluster [default: that of the old one].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl TargetArgs {
    /// The directories that are filled.
    fn dirs(&self) -> anyhow::Result<Vec<PathBuf>> {
        let spec = self.data.as_deref().map(|data| ClusterSpec::new(data, self.nodes, self.port_base, ""));
        let spec = spec.transpose().map_err(|error| failure(Exit::Usage, error))?;
        let nodes = spec.map_or_else(|| self.node.clone(), |spec| spec.nodes);
        Ok(nodes.into_iter().map(|node| node.data_dir).collect())
    }
}

/// Runs a command.
pub async fn run(format: Format, command: Restore) -> anyhow::Result<Exit> {
    match command {
        Restore::Plan(args) => plan(format, &args).await,
        Restore::Run(args) => restore(format, args).await.map(|()| Exit::Ok),
        Restore::User(args) => super::restore_user::run(format, &args).await,
    }
}

async fn plan(format: Format, args: &PlanArgs) -> anyhow::Result<Exit> {
    let (destination, choose) = args.point.open()?;
    let answer = if args.quick {
        PlanAnswer::new(&holdfast_archive::plan(&destination, GROUP, choose).await?, SystemTime::now())
    } else {
        let began = Instant::now();
        let offer = look_for(&destination, choose).await?;
        let read = began.elapsed();
        let work = Work::of(&offer.plan, DIRECTORIES_USUAL).replaying(offer.replay_weight);
        let (work, drill) = paced(&destination, &offer.plan.lineage.id, work).await;
        PlanAnswer::of(&offer, SystemTime::now()).taking(work.estimate(read), drill)
    };
    output::answer(format, &answer, || answer.in_words())?;
    Ok(if answer.newest_good_index.is_some() { Exit::Integrity } else { Exit::Ok })
}

/// The work at the pace of the newest drills, if any was recorded, and when the newest was. An estimate is no reason to fail.
async fn paced(destination: &Destination, lineage: &LineageId, work: Work) -> (Work, Option<u64>) {
    let drills = newest_drills(destination, lineage, GROUP).await.unwrap_or_default();
    let timed: Vec<_> = drills.iter().filter_map(|drill| drill.found.timed()).collect();
    (work.at_pace_of(&timed), drills.first().map(|newest| newest.found.ended_ms))
}

/// The newest point that can be restored, every object of it read.
async fn look_for(destination: &Destination, choose: Choose) -> Result<Offer, ArchiveError> {
    let bar = progress::bar(0, "");
    let shown = |stage, done, total| {
        bar.set_message(title(stage));
        bar.set_length(total);
        bar.set_position(done);
    };
    let offer = holdfast_archive::offer(destination, GROUP, choose, &shown).await;
    bar.finish_and_clear();
    offer
}

/// Goes on with a staged restore whose directories are filled; `None` = there is none to go on with.
async fn resume(
    format: Format,
    destination: &Destination,
    choose: Choose,
    args: &RunArgs,
) -> anyhow::Result<Option<()>> {
    if args.held_back().is_empty() {
        return Ok(None);
    }
    let dirs = args.target.dirs()?;
    let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
    let Some((mark, opening)) = filled_with(&dirs)? else { return Ok(None) };
    let genesis = opening.genesis;
    // The new cluster may have shipped its own history there by now: the latest is that of the old one.
    let at = if choose.at == At::Latest { At::Index(mark.last.index) } else { choose.at };
    let lineage = choose.lineage.or(Some(mark.from));
    if genesis.restoring.is_empty() || lineage != Some(mark.from) {
        return Ok(None);
    }
    let plan = holdfast_archive::plan(destination, GROUP, Choose { lineage, at }).await?;
    if (plan.last, plan.chain) != (mark.last, mark.chain) {
        return Ok(None);
    }
    let target = Target::new(args.target.clone(), &genesis.cluster_name)?;
    let answer = PlanAnswer::new(&plan, SystemTime::now());
    eprintln!("its directories are filled; {}", target.next_in_words());
    let value = serde_json::json!({
        "v": 1, "plan": answer, "last_index": plan.last.index, "cluster_name": genesis.cluster_name,
        "incarnation": genesis.incarnation.0, "data_dirs": target.dirs(), "resumed": true,
    });
    bring_rest(format, destination, &plan, &target, &genesis, args, value).await.map(Some)
}

async fn restore(format: Format, args: RunArgs) -> anyhow::Result<()> {
    let (destination, choose) = args.point.open()?;
    if resume(format, &destination, choose, &args).await?.is_some() {
        return Ok(());
    }
    let planned = holdfast_archive::plan(&destination, GROUP, choose).await;
    let first = match planned {
        Ok(plan) => {
            let answer = PlanAnswer::new(&plan, SystemTime::now());
            restore_as_planned(format, &destination, &plan, answer, &args).await
        }
        Err(error) => Err(error.into()),
    };
    let Err(error) = first else { return Ok(()) };
    if error.downcast_ref::<ArchiveError>().and_then(ArchiveError::fault).is_none() {
        return Err(error);
    }
    // An object is bad, and nothing was written: is there a way around it?
    let Ok(offer) = look_for(&destination, choose).await else { return Err(error) };
    let answer = PlanAnswer::of(&offer, SystemTime::now());
    match answer.offered_in_words() {
        Some(offered) => Err(failure(Exit::Integrity, format!("{error:#}\n{offered}"))),
        None => restore_as_planned(format, &destination, &offer.plan, answer, &args).await,
    }
}

async fn restore_as_planned(
    format: Format,
    destination: &Destination,
    plan: &RestorePlan,
    answer: PlanAnswer,
    args: &RunArgs,
) -> anyhow::Result<()> {
    let target = Target::new(args.target.clone(), &plan.lineage.cluster_name)?;
    if format == Format::Table {
        output::text(answer.in_words())?;
    }
    let held_back = args.held_back();
    let started = Instant::now();
    let planned = plan.without_payloads(&held_back);
    let (work, _) = paced(destination, &plan.lineage.id, Work::of(&planned, target.nodes.len())).await;
    let watch = Watch::begin(work, args.progress);
    let history = RestoreSpec { held_back, ..target.history()? };
    let (report, stages, _) = fill_watched(destination, plan, &target.nodes, &history, watch).await?;
    target.remember()?;
    let took = started.elapsed();
    let value = serde_json::json!({
        "v": 1, "plan": answer, "last_index": report.last.index, "records": report.records,
        "entries_replayed": report.entries, "restore_ms": took.as_millis() as u64, "stage_ms": stages,
        "cluster_name": target.name, "incarnation": report.genesis.incarnation.0, "data_dirs": target.dirs(),
    });
    if report.genesis.restoring.is_empty() {
        output::answer(format, &value, || target.done_in_words(&report, took))?;
        return Ok(());
    }
    let mut said = target.done_in_words(&report, took);
    said += &format!("\n{} payloads come once it serves: this waits for it", report.held_back);
    // People and scripts must know now that the nodes can be started; the answer comes when everything is there.
    eprintln!("{said}");
    bring_rest(format, destination, plan, &target, &report.genesis, args, value).await
}

/// Brings what was left for later, and answers.
async fn bring_rest(
    format: Format,
    destination: &Destination,
    plan: &RestorePlan,
    target: &Target,
    genesis: &Genesis,
    args: &RunArgs,
    mut value: serde_json::Value,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let admins = target.nodes.iter().map(|node| node.admin.clone()).collect();
    let brought = bring(&Rest { destination, plan, genesis, admins, lines: args.progress }).await?;
    let took = began.elapsed();
    value["payloads_brought"] = brought.payloads.into();
    value["payload_bytes"] = brought.bytes.into();
    value["payload_ms"] = (took.as_millis() as u64).into();
    output::answer(format, &value, || {
        format!(
            "everything is there: {} payloads, {}, came in {}",
            brought.payloads,
            output::bytes(brought.bytes),
            rounded(took)
        )
    })?;
    Ok(())
}

/// The nodes to fill, checked.
pub struct Target {
    /// Each with a directory of its own.
    pub nodes: Vec<NodeSpec>,
    /// Name of the new cluster.
    pub name: String,
    spec: Option<ClusterSpec>,
}

impl Target {
    /// As the flags say.
    pub fn new(args: TargetArgs, old_name: &str) -> anyhow::Result<Self> {
        let name = args.name.clone().unwrap_or_else(|| old_name.to_owned());
        let spec = args.data.as_deref().map(|data| dev_spec(&args, data, &name)).transpose()?;
        let nodes = spec.as_ref().map_or(args.node, |spec| spec.nodes.clone());
        check_nodes(&nodes)?;
        Ok(Self { nodes, name, spec })
    }

    /// A history that nobody else has.
    pub fn history(&self) -> anyhow::Result<RestoreSpec> {
        new_history(&self.nodes, &self.name)
    }

    /// Lets `holdfast dev` find the nodes again.
    pub fn remember(&self) -> anyhow::Result<()> {
        self.spec.as_ref().map_or(Ok(()), ClusterSpec::remember)
    }

    /// The directories.
    pub fn dirs(&self) -> Vec<&Path> {
        self.nodes.iter().map(|node| node.data_dir.as_path()).collect()
    }

    /// What comes next, for people.
    fn next_in_words(&self) -> String {
        match &self.spec {
            Some(spec) => format!("start it: holdfast dev --data {}", spec.dir.display()),
            None => "start it: holdfast serve, once for each directory".to_owned(),
        }
    }

    /// What was done and what comes next, for people.
    pub fn done_in_words(&self, report: &RestoreReport, took: Duration) -> String {
        let next = self.next_in_words();
        format!(
            "restored {} records up to index {} into {} directories in {:.1} s, every hash checked; cluster {} is a \
             history of its own\n{next}",
            report.records,
            report.last.index,
            self.nodes.len(),
            took.as_secs_f64(),
            self.name
        )
    }
}

fn dev_spec(args: &TargetArgs, data: &Path, name: &str) -> anyhow::Result<ClusterSpec> {
    let usage = |error| failure(Exit::Usage, error);
    let mut spec = ClusterSpec::new(data, args.nodes, args.port_base, name).map_err(usage)?;
    if let Some(labels) = &args.labels {
        spec.label(labels).map_err(usage)?;
    }
    std::fs::create_dir_all(&spec.dir)?;
    Ok(spec)
}

fn check_nodes(nodes: &[NodeSpec]) -> anyhow::Result<()> {
    let mut ids: Vec<u64> = nodes.iter().map(|node| node.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(failure(Exit::Usage, "two nodes have one id; give each its own"));
    }
    let mut dirs: Vec<&Path> = nodes.iter().map(|node| node.data_dir.as_path()).collect();
    dirs.sort_unstable();
    if dirs.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(failure(Exit::Usage, "two nodes have one data directory; give each its own"));
    }
    Ok(())
}

/// A history for these nodes, with an id that was drawn now.
pub fn new_history(nodes: &[NodeSpec], name: &str) -> anyhow::Result<RestoreSpec> {
    let incarnation = u64::from_le_bytes(random()?).max(1);
    Ok(RestoreSpec {
        cluster_id: random()?,
        cluster_name: name.to_owned(),
        incarnation: Incarnation(incarnation),
        members: nodes.iter().map(|node| NodeId(node.id)).collect(),
        held_back: Vec::new(),
    })
}

/// Fills the data directories of `nodes` and seats them as the members of a new history.
pub async fn fill(
    destination: &Destination,
    plan: &RestorePlan,
    nodes: &[NodeSpec],
    history: &RestoreSpec,
) -> anyhow::Result<RestoreReport> {
    let watch = Watch::begin(Work::of(plan, nodes.len()), false);
    fill_watched(destination, plan, nodes, history, watch).await.map(|(report, ..)| report)
}

/// The same, shown to whoever watches; gives the time of each stage as well, and what was done.
pub async fn fill_watched(
    destination: &Destination,
    plan: &RestorePlan,
    nodes: &[NodeSpec],
    history: &RestoreSpec,
    watch: Watch,
) -> anyhow::Result<(RestoreReport, serde_json::Value, RestoreWork)> {
    let mut targets = Vec::new();
    for node in nodes {
        targets.push(RestoreTarget { path: node.data_dir.clone(), node_id: node.id, identity: random()? });
    }
    let shown = |stage, done, total| watch.shown(stage, done, total);
    let report = holdfast_archive::restore(destination, plan, &targets, history, &shown).await;
    let (stages, work) = watch.end();
    let nodes = nodes.to_vec();
    let report = report?;
    tokio::task::spawn_blocking(move || seat(&nodes)).await??;
    Ok((report, stages, work))
}

/// Fills a directory that no node will run on.
pub async fn fill_scratch(
    destination: &Destination,
    plan: &RestorePlan,
    target: &RestoreTarget,
    members: Vec<NodeId>,
) -> anyhow::Result<RestoreReport> {
    let cluster_name = plan.lineage.cluster_name.clone();
    let spec = RestoreSpec {
        cluster_id: random()?,
        cluster_name,
        incarnation: Incarnation(1),
        members,
        held_back: Vec::new(),
    };
    let watch = Watch::begin(Work::of(plan, 1), false);
    let shown = |stage, done, total| watch.shown(stage, done, total);
    let report = holdfast_archive::restore(destination, plan, std::slice::from_ref(target), &spec, &shown).await;
    watch.end();
    Ok(report?)
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness from the system: {error}"))?;
    Ok(bytes)
}

/// Reads `id=1,data=DIR,client=H:P,peer=H:P,admin=H:P,http=H:P`; other keys are labels.
fn parse_node(text: &str) -> Result<NodeSpec, String> {
    let pairs = text.split(',').map(crate::cli::key_value).collect::<Result<Vec<_>, _>>()?;
    let mut values: BTreeMap<String, String> = pairs.into_iter().collect();
    let mut take = |key: &str| values.remove(key).ok_or_else(|| format!("{key}=… is missing"));
    let id = take("id")?.parse().ok().filter(|id| *id > 0).ok_or("id must be a number above 0")?;
    let data_dir = std::path::absolute(take("data")?).map_err(|error| error.to_string())?;
    let mut address = |key: &str| crate::cli::host_port(&take(key)?).map_err(|error| format!("{key}: {error}"));
    let (client, peer, admin, http) = (address("client")?, address("peer")?, address("admin")?, address("http")?);
    let log = data_dir.with_extension("log");
    Ok(NodeSpec {
        id,
        data_dir,
        client,
        peer,
        admin,
        http,
        labels: values,
        log,
        offsite: Vec::new(),
        offsite_labels: Vec::new(),
        set: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_names_all_its_addresses() {
        let whole = "id=2,data=/srv/n2,client=h:1,peer=h:2,admin=h:3,http=h:4,array=a1";
        let node = parse_node(whole).expect("parses");
        assert_eq!((node.id, node.peer.as_str(), node.labels["array"].as_str()), (2, "h:2", "a1"));
        for wrong in ["id=0,data=/d,client=h:1,peer=h:2,admin=h:3,http=h:4", "id=1", "id=1,data=/d,client=h", "x"] {
            assert!(parse_node(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_point_is_an_index_a_moment_or_the_latest() {
        assert_eq!(parse_at("latest"), Ok(At::Latest));
        assert_eq!(parse_at("0"), Ok(At::Index(0)));
        assert_eq!(parse_at("18446744073709551615"), Ok(At::Index(u64::MAX)));
        assert_eq!(parse_at("1970-01-01T00:00:01.5Z"), Ok(At::Time(1500)));
        for wrong in
            ["", "18446744073709551616", "-1", "now", "2026-11-26", "2026-11-26T08:30:00", "1969-12-31T23:59:59Z"]
        {
            assert!(parse_at(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nodes_share_nothing() {
        let node = |id: u64, dir: &str| {
            parse_node(&format!("id={id},data={dir},client=h:1,peer=h:2,admin=h:3,http=h:4")).expect("parses")
        };
        assert!(check_nodes(&[node(1, "/a"), node(2, "/b")]).is_ok());
        assert!(check_nodes(&[node(1, "/a"), node(1, "/b")]).is_err());
        assert!(check_nodes(&[node(1, "/a"), node(2, "/a")]).is_err());
    }
}
