//! `holdfast drill`: is a copy one that people come back from?
//!
//! A drill reads every byte of an archive, restores all of it into nodes of its own, lets them serve, and reads people's
//! records from them. What it found is signed and laid down beside the archive, where clusters and operators look for it.
//!
//! Invariants: it needs nothing of the cluster whose copy it is, and changes nothing of it; whatever it starts ends with it, and
//! what it writes is removed; a drill that could not be run proves nothing, and is not recorded as a failed one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use clap::Subcommand;
use holdfast_archive::person::Person;
use holdfast_archive::plan::newest_by_logs;
use holdfast_archive::verification::DrillTimes;
use holdfast_archive::verify::Level;
use holdfast_archive::{
    ArchiveError, Choose, Depth, Destination, LineageId, RestorePlan, Verification, VerifierKey, find_lineages, layout,
    verifications, verify,
};
use holdfast_client::{AdminClient, Client, v1};
use holdfast_model::id::UserId;
use serde::Serialize;
use tempfile::TempDir;

use crate::cli::host_port;
use crate::clock;
use crate::commands::backup::{BadObject, FromArgs, GROUP, UNATTESTED};
use crate::commands::connect::AdminArgs;
use crate::commands::drill_people::{difference, people_in, served};
use crate::commands::restore::{PointArgs, fill_watched, new_history};
use crate::commands::restore_eta::{Watch, Work, rounded};
use crate::commands::verifier::VerifierArgs;
use crate::exit::{Exit, failure};
use crate::launch::{Cluster, ClusterSpec, free_base_aside, is_free};
use crate::output::{self, Format, Table};

/// For all nodes to compare their states.
const COMPARE_WITHIN: Duration = Duration::from_secs(600);

/// For the cluster to lay down what was found.
const RECORD_WITHIN: Duration = Duration::from_secs(60);
/// Other ports are looked for so often.
const START_TRIES_MAX: usize = 3;

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Drill {
    /// Restore a copy into nodes of its own on this machine, read from them, and record what was found.
    Run(Box<RunArgs>),
    /// List what verifications and drills found, from the archive alone.
    Ls(FromArgs),
}

/// Flags of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Run it where the cluster's operators and nodes have no rights, with credentials that may read everything there and \
create objects under */verify/ (those that only read leave the recording to the cluster: --endpoint), and with the identity of the drill's recipient where the archive is encrypted. It takes as long as a \
restore does: that time is what `restore plan` expects of the next one.

Exit 0 when everything was found good, 9 when the copy is damaged, 6 when what was given does not open it.

Example, once a week by deploy/systemd/holdfast-drill.timer:
  holdfast drill run --from s3://vault/prod?region=eu-north-1 --credentials /etc/holdfast/drill-s3 \\
      --identity /etc/holdfast/drill.identity --scratch /var/lib/holdfast-drill")]
pub struct RunArgs {
    #[command(flatten)]
    point: PointArgs,
    /// Nodes to restore into.
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: usize,
    /// Folder for the restored nodes while this runs; it needs room for N copies of everything [default: the system's for
    /// temporary files].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// First port of the restored nodes, on 127.0.0.1 [default: one that is free].
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
    /// People, chosen over all of them, whose records are read from the nodes and compared; 0: everybody.
    #[arg(long, value_name = "N", default_value_t = 100)]
    people: usize,
    /// Record nothing.
    #[arg(long)]
    no_record: bool,
    /// Admin addresses of the cluster: it records what is found. For credentials that only read.
    #[arg(
        long = "endpoint",
        value_name = "HOST:PORT[,…]",
        value_delimiter = ',',
        value_parser = host_port,
        conflicts_with = "no_record"
    )]
    endpoints: Vec<String>,
    /// The destination's name in the configuration of the nodes, where they have several.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, requires = "endpoints")]
    destination: String,
    #[command(flatten)]
    vault: VaultName,
    #[command(flatten)]
    verifier: VerifierArgs,
}

/// Which vault was read.
#[derive(Debug, clap::Args)]
pub struct VaultName {
    /// --from is a vault, of this name in the configuration of the nodes ([[vault]]): what is found is told to the cluster, so that
    /// it counts the vault as a copy.
    #[arg(long, value_name = "NAME", requires = "endpoints")]
    pub vault: Option<String>,
}

/// Runs a command.
pub async fn run(format: Format, command: Drill) -> anyhow::Result<Exit> {
    match command {
        Drill::Run(args) => drill(format, &args).await,
        Drill::Ls(args) => list(format, &args).await,
    }
}

async fn drill(format: Format, args: &RunArgs) -> anyhow::Result<Exit> {
    let key = if args.no_record { None } else { Some(args.verifier.key()?) };
    let (destination, choose) = args.point.open()?;
    let began_ms = clock::unix_ms(SystemTime::now());
    let (lineage, mut found) = match holdfast_archive::plan(&destination, GROUP, choose).await {
        Ok(plan) => {
            let mut found = Verification::new(&plan.lineage.id, GROUP, Depth::Drilled, began_ms);
            let steps = Steps { destination: &destination, args, plan: &plan };
            steps.run(&mut found).await?;
            (plan.lineage.id, found)
        }
        Err(error) => {
            // Of what cannot even be planned the drill has failed, if anybody can tell what it is.
            let Some((object, reason)) = fault_of(&error) else { return Err(error.into()) };
            let Some(lineage) = named(&destination, choose).await else { return Err(error.into()) };
            let mut found = Verification::new(&lineage, GROUP, Depth::Drilled, began_ms);
            found.fault(object, reason);
            (lineage, found)
        }
    };
    found.ended_ms = clock::unix_ms(SystemTime::now()).max(began_ms);
    let recorded = match &key {
        Some(key) => Some((record(args, &destination, &found, &lineage, key).await, layout::hex(&key.public()))),
        None => None,
    };
    answer(format, args, &found, recorded)
}

/// Lays down what was found, or has the cluster do so; gives the name.
async fn record(
    args: &RunArgs,
    destination: &Destination,
    found: &Verification,
    lineage: &LineageId,
    key: &VerifierKey,
) -> anyhow::Result<String> {
    // A vault's own words lie in it, and the cluster is told of them.
    let vault = args.vault.vault.as_deref();
    if args.endpoints.is_empty() || vault.is_some() {
        let object = found.record(destination, lineage, key).await?;
        if args.endpoints.is_empty() {
            return Ok(object);
        }
    }
    let found = Verification { vault: vault.map(str::to_owned), ..found.clone() };
    hand_over(&args.endpoints, &args.destination, destination, &found, lineage, key).await
}

/// Has the cluster lay down what was found of an archive, or of a vault that was pulled out of it.
pub async fn hand_over(
    endpoints: &[String],
    name: &str,
    destination: &Destination,
    found: &Verification,
    lineage: &LineageId,
    key: &VerifierKey,
) -> anyhow::Result<String> {
    let (object, evidence) = found.seal(destination, lineage, key).await?;
    let (admin, _) = AdminArgs { endpoints: endpoints.to_vec() }.first().await?;
    let request = v1::RecordVerificationRequest { destination: name.to_owned(), object: object.clone(), evidence };
    admin.with_deadline(RECORD_WITHIN).record_verification(request).await?;
    Ok(object)
}

/// What is wrong with the copy, or with what was given to open it.
fn fault_of(error: &ArchiveError) -> Option<(String, String)> {
    match error {
        ArchiveError::NoKey { object, reason, .. } => Some((object.clone(), format!("{NOT_OPENED}: {reason}"))),
        error => error.fault(),
    }
}

/// Why what is encrypted proves nothing.
pub const NOT_OPENED: &str = "it is encrypted, and what was given does not open it";

async fn named(destination: &Destination, choose: Choose) -> Option<LineageId> {
    if choose.lineage.is_some() {
        return choose.lineage;
    }
    if let Ok((lineage, _)) = newest_by_logs(destination, GROUP).await {
        return Some(lineage);
    }
    // Where the log does not open either: one that is alone is meant.
    let found = find_lineages(destination).await.ok()?;
    let ids: Vec<LineageId> =
        found.lineages.iter().map(|facts| facts.id).chain(found.bad.iter().map(|(id, _)| *id)).collect();
    let continued: BTreeSet<LineageId> = found.lineages.iter().filter_map(|facts| facts.parent_id()).collect();
    let mut newest = ids.into_iter().filter(|id| !continued.contains(id));
    newest.next().filter(|_| newest.next().is_none())
}

struct Steps<'a> {
    destination: &'a Destination,
    args: &'a RunArgs,
    plan: &'a RestorePlan,
}

impl Steps<'_> {
    /// Each step, as long as nothing was found; `Err`: it could not be run.
    async fn run(&self, found: &mut Verification) -> anyhow::Result<()> {
        self.read(found).await?;
        found.snapshot_index = self.plan.snapshot.as_ref().map(|manifest| manifest.applied.index);
        found.last_index = Some(self.plan.last.index);
        self.prove(found);
        // What is damaged where it was looked at is not restored: its faults are told, and each step has its own.
        if found.good {
            self.restore(found).await?;
        }
        Ok(())
    }

    /// Every byte of every history that it is made of.
    async fn read(&self, found: &mut Verification) -> anyhow::Result<()> {
        eprintln!("holdfast: reading every object of {}", self.destination.config().url);
        let lineages: BTreeSet<LineageId> = self.plan.log.iter().map(|log| log.lineage).collect();
        for lineage in lineages.into_iter().chain([self.plan.lineage.id]).collect::<BTreeSet<_>>() {
            let report = verify(self.destination, &lineage, Level::Bytes).await?;
            if lineage == self.plan.lineage.id {
                found.take(&report);
            } else {
                (found.objects, found.bytes) = (found.objects + report.objects, found.bytes + report.bytes);
            }
            report.bad.into_iter().for_each(|(object, reason)| found.fault(object, reason));
            if report.locked > 0 {
                found.fault(lineage.to_string(), format!("{} objects: {NOT_OPENED}", report.locked));
            }
        }
        Ok(())
    }

    /// A majority of the voters vouches for what it begins with.
    fn prove(&self, found: &mut Verification) {
        if let Some(manifest) = self.plan.snapshot.as_ref().filter(|manifest| !manifest.is_attested()) {
            let object = manifest.name().path(&self.plan.lineage.id);
            found.fault(object, UNATTESTED);
        }
    }

    async fn restore(&self, found: &mut Verification) -> anyhow::Result<()> {
        let scratch = match &self.args.scratch {
            Some(dir) => tempfile::Builder::new().prefix("holdfast-drill-").tempdir_in(dir),
            None => tempfile::Builder::new().prefix("holdfast-drill-").tempdir(),
        };
        let scratch = scratch.context("make a folder for the restored nodes; name another with --scratch")?;
        let served = self.restore_into(&scratch, found).await;
        let removed = tokio::task::spawn_blocking(move || scratch.close()).await?;
        served?;
        removed.context("remove the restored nodes")
    }

    async fn restore_into(&self, scratch: &TempDir, found: &mut Verification) -> anyhow::Result<()> {
        let spec = self.spec(scratch)?;
        let name = &self.plan.lineage.cluster_name;
        let began = Instant::now();
        let watch = Watch::begin(Work::of(self.plan, spec.nodes.len()), false);
        let history = new_history(&spec.nodes, name)?;
        let filled = fill_watched(self.destination, self.plan, &spec.nodes, &history, watch).await;
        let (report, stages, work) = match filled {
            Ok(filled) => filled,
            Err(error) => return self.note(found, error),
        };
        let ms = |stage: &str| stages.get(stage).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let mut times = DrillTimes {
            nodes: spec.nodes.len(),
            restore_ms: began.elapsed().as_millis() as u64,
            verify_ms: ms("verify"),
            load_ms: ms("load"),
            replay_ms: ms("replay"),
            work: Some(work),
            records: report.records,
            entries: report.entries,
            ..DrillTimes::default()
        };
        let (path, wanted) = (spec.nodes[0].data_dir.clone(), self.args.people);
        let people = tokio::task::spawn_blocking(move || people_in(&path, wanted)).await??;
        spec.remember()?;
        let began = Instant::now();
        let mut cluster = self.start(scratch, spec).await?;
        times.ready_ms = began.elapsed().as_millis() as u64;
        let read = self.read_from(&cluster, &people, &mut times, found).await;
        cluster.stop().await;
        found.drill = Some(times);
        read
    }

    /// The nodes, at ports that nobody uses now.
    fn spec(&self, scratch: &TempDir) -> anyhow::Result<ClusterSpec> {
        let port_base = self.args.port_base.map_or_else(|| free_base_aside(self.args.nodes), Ok)?;
        let spec = ClusterSpec::new(scratch.path(), self.args.nodes, port_base, &self.plan.lineage.cluster_name);
        spec.map_err(|error| failure(Exit::Usage, error))
    }

    /// Starts them; at others where somebody took a port meanwhile.
    async fn start(&self, scratch: &TempDir, mut spec: ClusterSpec) -> anyhow::Result<Cluster> {
        let mut tries = 0;
        loop {
            let (count, base) = (spec.nodes.len(), spec.port_base);
            match Cluster::start(spec).await {
                Err(_) if self.args.port_base.is_none() && tries < START_TRIES_MAX && !is_free(count, base) => {
                    tries += 1;
                    spec = self.spec(scratch)?;
                }
                started => return started.context("start the restored nodes"),
            }
        }
    }

    /// A fault of the archive is what was found; anything else is why nothing was.
    fn note(&self, found: &mut Verification, error: anyhow::Error) -> anyhow::Result<()> {
        match error.downcast_ref::<ArchiveError>().and_then(fault_of) {
            Some((object, reason)) => {
                found.fault(object, reason);
                Ok(())
            }
            None => Err(error),
        }
    }

    async fn read_from(
        &self,
        cluster: &Cluster,
        people: &BTreeMap<UserId, Person>,
        times: &mut DrillTimes,
        found: &mut Verification,
    ) -> anyhow::Result<()> {
        let nodes = &cluster.spec().nodes;
        let now_ms = clock::unix_ms(SystemTime::now());
        for (n, (user, person)) in people.iter().enumerate() {
            // Each node serves its share.
            let node = &nodes[n % nodes.len()];
            let client = Client::builder().endpoints([node.client.as_str()]).build()?;
            let served = served(&client, user, person).await.context("read from the restored nodes")?;
            times.people_read += 1;
            times.records_read += served.values().map(|of| of.len() as u64).sum::<u64>();
            if let Some(reason) = difference(person, &served, now_ms) {
                found.fault(
                    format!("node {}", node.id),
                    format!("what it serves is not what the archive holds: {reason}"),
                );
            }
        }
        let admin = AdminClient::new(&nodes[0].admin)?.with_deadline(COMPARE_WITHIN);
        let compared = admin.compare_integrity().await.context("compare the restored nodes")?;
        let differs = compared.nodes.iter().filter(|node| !node.diverged.is_empty());
        differs.for_each(|node| found.fault(format!("node {}", node.node_id), node.diverged.clone()));
        if !compared.doubt.is_empty() {
            found.fault("the restored nodes", compared.doubt);
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct DrillAnswer<'a> {
    v: u32,
    from: &'a str,
    /// Where what was found lies; null: nothing was to be recorded, or it could not be.
    object: Option<&'a str>,
    signed_by: Option<&'a str>,
    #[serde(flatten)]
    found: FoundAnswer<'a>,
}

/// What was found, as it is printed.
#[derive(Debug, Serialize)]
pub struct FoundAnswer<'a> {
    lineage: &'a str,
    /// Null: what was read is the archive that the words lie beside.
    vault: Option<&'a str>,
    level: Depth,
    good: bool,
    began: String,
    ended: String,
    snapshot_index: Option<u64>,
    last_index: Option<u64>,
    objects: u64,
    bytes: u64,
    fault_count: u64,
    bad: &'a [holdfast_archive::verification::Fault],
    drill: Option<&'a DrillTimes>,
}

impl<'a> From<&'a Verification> for FoundAnswer<'a> {
    fn from(found: &'a Verification) -> Self {
        Self {
            lineage: &found.lineage,
            vault: found.vault.as_deref(),
            level: found.level,
            good: found.good,
            began: clock::rfc3339(found.began_ms),
            ended: clock::rfc3339(found.ended_ms),
            snapshot_index: found.snapshot_index,
            last_index: found.last_index,
            objects: found.objects,
            bytes: found.bytes,
            fault_count: found.fault_count,
            bad: &found.faults,
            drill: found.drill.as_ref(),
        }
    }
}

fn answer(
    format: Format,
    args: &RunArgs,
    found: &Verification,
    recorded: Option<(anyhow::Result<String>, String)>,
) -> anyhow::Result<Exit> {
    let object = recorded.as_ref().and_then(|(recorded, _)| recorded.as_deref().ok());
    let value = DrillAnswer {
        v: 1,
        from: args.point.url(),
        object,
        signed_by: recorded.as_ref().map(|(_, key)| key.as_str()),
        found: FoundAnswer::from(found),
    };
    output::answer(format, &value, || in_words(found, object))?;
    // It was found all the same, and said above.
    if let Some((Err(error), _)) = recorded {
        return Err(error.context(
            "what was found could not be recorded, so the cluster does not know of it; credentials that only read need --endpoint",
        ));
    }
    Ok(match (found.good, found.faults.iter().any(|fault| fault.reason.contains(NOT_OPENED))) {
        (true, _) => Exit::Ok,
        (false, true) => Exit::Forbidden,
        (false, false) => Exit::Integrity,
    })
}

fn in_words(found: &Verification, object: Option<&str>) -> String {
    let (objects, bytes) = (found.objects, output::bytes(found.bytes));
    let mut said = found.faults.iter().map(|fault| format!("{}: {}\n", fault.object, fault.reason)).collect::<String>();
    said += &format!("{objects} objects, {bytes}, were read; {} faults", found.fault_count);
    if let Some(times) = &found.drill {
        said += &format!(
            "\n{} records up to index {} were restored into {} nodes in {}, served after {} more; {} records of {} people were read \
             from them and compared",
            times.records,
            found.last_index.unwrap_or(0),
            times.nodes,
            rounded(Duration::from_millis(times.restore_ms)),
            rounded(Duration::from_millis(times.ready_ms)),
            times.records_read,
            times.people_read,
        );
    }
    said += if found.good { "\nthe drill went well" } else { "\nthe drill FAILED: this copy does not count" };
    if let Some(object) = object {
        said += &format!("; recorded as {object}");
    }
    said
}

#[derive(Debug, Serialize)]
struct ListedAnswer<'a> {
    object: &'a str,
    signed_by: String,
    #[serde(flatten)]
    found: FoundAnswer<'a>,
}

async fn list(format: Format, args: &FromArgs) -> anyhow::Result<Exit> {
    let destination = args.open()?;
    let lineages = find_lineages(&destination).await?;
    let ids = lineages.lineages.iter().map(|facts| facts.id).chain(lineages.bad.iter().map(|(id, _)| *id));
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    for id in ids {
        let (some, damaged) = verifications(&destination, &id, GROUP, None).await?;
        found.extend(some);
        bad.extend(damaged);
    }
    found.sort_by_key(|one| one.found.ended_ms);
    let answers: Vec<ListedAnswer> = found
        .iter()
        .map(|one| ListedAnswer {
            object: &one.object,
            signed_by: layout::hex(&one.key),
            found: FoundAnswer::from(&one.found),
        })
        .collect();
    let bad: Vec<BadObject> = bad.iter().map(Into::into).collect();
    match format {
        Format::Json => {
            output::object(&serde_json::json!({"v": 1, "from": args.from, "verifications": answers, "bad": bad}))?;
        }
        Format::Jsonl => answers.iter().try_for_each(output::line)?,
        Format::Table => {
            bad.iter().try_for_each(|bad| output::text(format!("bad: {}: {}", bad.object, bad.reason)))?;
            let mut table = Table::new(&["time", "level", "found", "snapshot", "up to", "restore", "by", "why"]);
            for one in &found {
                table.row(row(&one.found, &one.key));
            }
            if table.is_empty() {
                output::text(format!("{} was never verified by anybody; `holdfast drill run` does", args.from))?;
            } else {
                table.print()?;
            }
        }
    }
    Ok(match (bad.is_empty(), found.is_empty()) {
        (false, _) => Exit::Integrity,
        (true, true) => Exit::NotFound,
        (true, false) => Exit::Ok,
    })
}

fn row(found: &Verification, key: &[u8; 32]) -> [String; 8] {
    let number = |of: Option<u64>| of.map_or("-".to_owned(), |index| index.to_string());
    let took = found.drill.as_ref().map(|times| rounded(Duration::from_millis(times.restore_ms)));
    [
        clock::rfc3339(found.ended_ms),
        found.vault.as_ref().map_or(found.level.to_string(), |vault| format!("{} (vault {vault})", found.level)),
        if found.good { "good" } else { "BAD" }.to_owned(),
        number(found.snapshot_index),
        number(found.last_index),
        took.unwrap_or("-".to_owned()),
        layout::hex(&key[..4]),
        found.why().unwrap_or_default(),
    ]
}
