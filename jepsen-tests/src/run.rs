//! One run from an empty folder to a verdict: found a cluster, load, faults, heal, read everything back, judge.
//!
//! Invariants:
//! - A verdict comes from the checkers alone, and they see only what the folder holds.
//! - A run that the machine could not carry to its end is an error, and so no pass. A cluster that does not come back is
//!   a result: nothing is awaited of it any more, and what is missing in the history then is no pass either.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_client::{Client, v1};
use tokio::time::Instant;

use crate::bucket::{Bucket, CREDENTIALS};
use crate::chance::Chance;
use crate::checker::harness::{Expected, Log};
use crate::checker::{
    Report, Verdict, append, faults, feed, harness, linear, paired, replicas, restore, set, terms, timeline, ttl,
    versioned, worst,
};
use crate::clock::Clocks;
use crate::cluster::{Cluster, Founding, comes_true, wait_for};
use crate::disk::Mounts;
use crate::folder::{Folder, Machine, Results, Test, Versions};
use crate::history::edn::{self, is_list};
use crate::history::{Action, Feed, Named, NodeFeed, Op, Recorder, Replica, Stage, fold};
use crate::nemesis::{self, After, Disks, Fault, Need, Storm, World, kill};
use crate::network::Network;
use crate::observer::{self, Observer};
use crate::report;
use crate::restorer::{self, Restorer};
use crate::workload::{Load, Shared, Workload, Written, set as set_workload};

/// From the last write to equal nodes.
const CONVERGE_WITHIN: Duration = Duration::from_secs(60);
/// For one page of what is read back.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// Nodes that may join a cluster one after the other.
const FURTHER: usize = 12;
/// The nemesis' stream of chance; those of clients are their numbers.
const NEMESIS: u64 = u64::MAX;
/// Fewer acknowledgements before or after a kill say little about it.
const ACKNOWLEDGED_BETWEEN: usize = 200;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The binary under test.
    pub holdfast: PathBuf,
    /// Further keys of its configuration, `KEY=VALUE`.
    pub set: Vec<String>,
    /// Folder to make; the default has the seed in its name.
    pub out: Option<PathBuf>,
    /// Everything random follows from it.
    pub seed: u64,
    /// Clients that write.
    pub clients: u32,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// What clients do.
    pub workloads: Vec<Workload>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Writes a second of all clients together; `None` = as fast as they are answered.
    pub rate: Option<u32>,
    /// Kills of the leader, where kills are all that goes wrong.
    pub kills: u32,
    /// Then all nodes in one moment.
    pub kill_all: bool,
    /// Kills alone: the load ends when they are done, at the latest after this; else faults are made for this long.
    pub time_limit: Duration,
    /// How long the cluster may take to acknowledge writes again, and each node to serve, once a fault is healed.
    pub recover_within: Duration,
    /// Arrays that the nodes' disks lie in, in turn.
    pub arrays: usize,
    /// Faults strike so often each, and no longer.
    pub strikes: Option<u32>,
    /// Faults may take a majority.
    pub may_take_quorum: bool,
    /// The command line, for the folder.
    pub args: Vec<String>,
}

impl Options {
    /// So many kills and no other fault, one after the other: the one run whose length is not a time.
    pub(crate) fn counts_kills(&self) -> bool {
        self.faults == [Fault::Kill]
    }

    fn needs(&self, need: Need) -> bool {
        self.faults.iter().any(|fault| fault.needs().contains(&need))
    }

    fn workload(&self) -> String {
        let names: Vec<String> = self.workloads.iter().map(Workload::to_string).collect();
        names.join("+")
    }

    fn nemesis(&self) -> String {
        let names: Vec<String> = self.faults.iter().map(Fault::to_string).collect();
        names.join("+")
    }
}

/// Makes a run on a runtime of its own. The calling thread may end up in a network of the run: use it for nothing else.
///
/// # Errors
/// When the run could not be carried to its end: then there is no verdict.
pub fn test(options: &Options, stopped: impl Future<Output = anyhow::Error>) -> anyhow::Result<Verdict> {
    for need in needed(options) {
        need.probe().with_context(|| format!("{} cannot be made on this machine", options.nemesis()))?;
    }
    // Before there is a second thread: all of them, and all nodes, see the same mounts.
    let mounts = options.needs(Need::Disk).then(|| Mounts::private().context("mounts of its own: run it as root"));
    let mounts = mounts.transpose()?;
    let network = options.needs(Need::Network).then(|| Network::create(options.nodes + FURTHER, options.seed));
    let network = network.transpose()?;
    // Its threads start where this one is, and so their sockets are in the run's network.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            verdict = run(options, mounts, network) => verdict,
            error = stopped => Err(error),
        }
    })
}

/// What a run's faults need of the machine.
fn needed(options: &Options) -> Vec<Need> {
    Need::all().iter().copied().filter(|need| options.needs(*need)).collect()
}

/// Runs workloads under faults and judges them.
async fn run(options: &Options, mounts: Option<Mounts>, network: Option<Network>) -> anyhow::Result<Verdict> {
    let began = crate::folder::timestamp();
    let default =
        || PathBuf::from(format!("runs/{began}-{}-{}-{}", options.workload(), options.nemesis(), options.seed));
    let binary = options.holdfast.canonicalize();
    let binary = binary.with_context(|| format!("find {}", options.holdfast.display()))?;
    let versions = Versions {
        jepsen_tests: env!("CARGO_PKG_VERSION").to_owned(),
        holdfast: version_of(&binary)?,
        binary: binary.clone(),
    };
    let folder = Folder::create(&options.out.clone().unwrap_or_else(default))?;
    let counted = options.counts_kills();
    let expected = Expected {
        nodes: options.nodes,
        clients: options.clients,
        kills: if counted { options.kills } else { 0 },
        kill_all: counted && options.kill_all,
        // A second's worth of a slow load; kills alone are counted, and what is between them is, too.
        acknowledged_between: match options.rate {
            Some(rate) if !counted => ACKNOWLEDGED_BETWEEN.min(rate as usize),
            _ => ACKNOWLEDGED_BETWEEN,
        },
        faults: if counted { Vec::new() } else { options.faults.iter().map(Fault::to_string).collect() },
        takes_quorum: !counted && options.may_take_quorum,
        strikes: if counted { 0 } else { options.strikes.unwrap_or(0) },
    };
    println!("{}, seed {}, in {}", versions.holdfast, options.seed, folder.path().display());
    let (args, workload, nemesis) = (options.args.clone(), options.workload(), options.nemesis());
    let test = Test {
        began,
        seed: options.seed,
        args,
        workload: workload.clone(),
        nemesis: nemesis.clone(),
        versions,
        machine: Machine::here(&needed(options)),
        planted: std::env::var("PLANTED_BUG").ok(),
        expected: expected.clone(),
    };
    folder.write_test(&test)?;

    let recorder = Arc::new(Recorder::create(&folder.history())?);
    // Nodes that join later need disks, too.
    let places = options.nodes + if options.faults.contains(&Fault::Membership) { FURTHER } else { 0 };
    let disks = mounts.map(|mounts| Disks::create(mounts, &folder.cluster(), places, options.arrays)).transpose()?;
    let clocks = options.needs(Need::Clocks).then(|| Clocks::create(&folder.clocks(), options.nodes + FURTHER));
    let clocks = clocks.transpose()?;
    let at = network.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |_| Network::harness());
    let bucket = match options.needs(Need::ObjectStore) {
        true => Some(Bucket::start(&folder.cluster(), at, options.seed).await?),
        false => None,
    };
    let env = |place| {
        let mut env = clocks.as_ref().map(|clocks| clocks.env(place)).unwrap_or_default();
        env.extend(CREDENTIALS.map(|(name, value)| (name.to_owned(), value.to_owned())));
        env
    };
    let founding = Founding {
        binary: &binary,
        dir: &folder.cluster(),
        nodes: options.nodes,
        seats: network.as_ref().map(Network::seats).unwrap_or_default(),
        labels: (0..options.nodes)
            .map(|place| format!("array=a{},site=s{}", Disks::array_of(place, options.arrays), place + 1))
            .collect(),
        set: keys(options, &folder.cluster(), bucket.as_ref())?,
        env: (0..options.nodes + FURTHER).map(env).collect(),
    };
    let mut world = World::new(Cluster::found(founding).await?, recorder.clone());
    (world.network, world.clocks, world.disks) = (network, clocks, disks);
    (world.bucket, world.may_take_quorum) = (bucket, options.may_take_quorum);
    let outcome = drive(&mut world, options, &expected).await;
    world.release();
    world.cluster.stop();
    folder.keep_logs(&world.cluster)?;
    // Its disks are unmounted.
    drop(world);
    // Also after an error: the history up to there is what explains it.
    let history = recorder.finish();
    outcome?;
    let history = history?;
    edn::write(&history, &folder.edn())?;
    let reports = judge(&history, &folder.logs(), &test);
    let verdict = worst(&reports);
    folder.write_results(&Results { verdict, checkers: &reports })?;
    let title = format!("{workload} × {nemesis}, seed {}: {verdict:?}", options.seed).to_lowercase();
    report::write(folder.path(), &title, &history, &reports)?;
    if verdict == Verdict::Valid {
        folder.drop_data()?;
    }
    print(verdict, &reports, folder.path());
    Ok(verdict)
}

/// Judges an earlier run again, from its folder alone. Writes nothing.
///
/// # Errors
/// When the folder does not hold all of a run.
pub fn check(path: &Path) -> anyhow::Result<Verdict> {
    let (test, history, logs) = Folder::open(path).read()?;
    let reports = judge(&history, &logs, &test);
    let verdict = worst(&reports);
    print(verdict, &reports, path);
    Ok(verdict)
}

/// Judges a run by all checkers that its workloads need.
pub fn judge(history: &[Op], logs: &[Log], test: &Test) -> Vec<Report> {
    let has = |workload: Workload| test.workload.split('+').any(|name| name == workload.to_string());
    let told_time = !test.nemesis.split('+').any(|name| name == Fault::Clock.to_string());
    let mut reports = Vec::new();
    if has(Workload::Set) {
        reports.push(set::check(history));
    }
    if [Workload::Register, Workload::Append, Workload::Feed, Workload::Restore].into_iter().any(has) {
        let calls = paired::calls(history);
        let outcomes = timeline::history(&calls);
        let doubts = Report::of_doubts("calls", &[&calls.broken, &outcomes.confused]);
        reports.push(doubts);
        reports.push(versioned::check(&calls, &outcomes));
        if has(Workload::Register) || has(Workload::Append) || has(Workload::Restore) {
            reports.push(linear::check(&calls));
        }
        if has(Workload::Append) {
            reports.push(append::check(&calls, is_list));
        }
        if has(Workload::Feed) {
            reports.push(feed::check(history, &calls, &outcomes));
        }
        if has(Workload::Restore) {
            reports.push(restore::check(
                &calls,
                &outcomes,
                told_time,
                &faults::stood(history, &Fault::ObjectStore.to_string()),
            ));
        }
    }
    if has(Workload::Ttl) {
        reports.push(ttl::check(history, told_time));
    }
    reports.push(replicas::check(history, test.expected.nodes));
    reports.push(terms::check(history, test.expected.nodes));
    reports.push(harness::check(history, logs, &test.expected));
    reports
}

/// The nodes' configuration. An archive that is no object store is a folder that is there.
fn keys(options: &Options, cluster: &Path, bucket: Option<&Bucket>) -> anyhow::Result<Vec<String>> {
    let mut keys = options.set.clone();
    if options.workloads.contains(&Workload::Restore) || options.needs(Need::Archive) {
        let folder = nemesis::archive_flip::dir(cluster);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let url = bucket.map_or_else(|| format!("file://{}", folder.display()), Bucket::url);
        keys.push(format!("offsite={url}"));
    }
    if options.needs(Need::Floor) {
        keys.push(format!("raft.floor_dir={}/floor{{place}}", cluster.display()));
    }
    Ok(keys)
}

/// From the founded cluster to the last read.
async fn drive(world: &mut World, options: &Options, expected: &Expected) -> anyhow::Result<()> {
    let recorder = world.recorder.clone();
    let mut incarnation = 0;
    let founded = wait_for("every node to answer", async || {
        for place in 0..world.cluster.nodes.len() {
            let Some(status) = world.cluster.status(place).await else { return false };
            incarnation = status.incarnation;
        }
        world.cluster.leader_now().await.is_some()
    });
    founded.await;
    ensure!(incarnation != 0, "the cluster names no incarnation");
    let nodes = world.cluster.nodes.iter().map(|node| (node.id, node.admin.clone())).collect();
    let _observer = Observer::start(nodes, &recorder)?;
    let further = options.faults.contains(&Fault::Membership);
    let clients = (0..options.clients).map(|_| patient(&world.cluster, further));
    let clients: Vec<Client> = clients.collect::<anyhow::Result<_>>()?;
    let pause = options.rate.map(|rate| Duration::from_secs_f64(f64::from(options.clients) / f64::from(rate)));
    let shared = Shared { seed: options.seed, incarnation, recorder: recorder.clone(), pause };
    println!("{} clients write; each knows all {} nodes", options.clients, options.nodes);
    let addresses: Vec<String> = world.cluster.nodes.iter().map(|node| node.client.clone()).collect();
    let load = Load::start(&shared, &options.workloads, clients, &addresses)?;
    let old = patient(&world.cluster, further)?;
    let restorer = options.workloads.contains(&Workload::Restore).then(|| {
        Restorer::start(restorer::Source {
            binary: options.holdfast.clone(),
            from: world.archive(),
            dir: world.cluster.dir.join("restored"),
            shared: shared.clone(),
            users: load.users(),
            old: old.clone(),
            admins: world.cluster.nodes.iter().map(|node| node.admin.clone()).collect(),
        })
    });
    let restorer = restorer.transpose()?;
    let until = Instant::now() + options.time_limit;
    let after = if options.counts_kills() {
        kill::run(&mut world.cluster, &recorder, expected, until, options.recover_within).await
    } else {
        let faults = options.faults.clone();
        let (acknowledged_between, recover_within) = (expected.acknowledged_between, options.recover_within);
        let storm = Storm { faults, until, strikes: options.strikes, acknowledged_between, recover_within };
        nemesis::run(world, &mut Chance::new(options.seed, NEMESIS), &storm).await?
    };
    if after == After::Down {
        println!("writes are not acknowledged any more: nothing can be read back");
        load.abandon().await;
        return finish(restorer, world, false).await;
    }
    let written = load.finish().await?;
    finish(restorer, world, true).await?;
    println!("all clients ended; reading everything back");
    let converge_within = if after == After::Well { CONVERGE_WITHIN } else { Duration::ZERO };
    if let Err(error) = read_back(&world.cluster, &recorder, &written, incarnation, converge_within).await {
        // Checkers miss it in the history: no pass.
        println!("not everything could be read back: {error:#}");
    }
    Ok(())
}

/// The last restore; of a cluster that is down, none.
async fn finish(restorer: Option<Restorer>, world: &World, up: bool) -> anyhow::Result<()> {
    let Some(restorer) = restorer else { return Ok(()) };
    let members = world.cluster.members().into_iter();
    let admins: Vec<String> = members.map(|place| world.cluster.nodes[place].admin.clone()).collect();
    restorer.finish(&admins, up.then(|| world.recorder.newest())).await
}

/// A client with connections of its own and the default deadline.
fn patient(cluster: &Cluster, further: bool) -> anyhow::Result<Client> {
    let all = cluster.nodes.iter().map(|node| node.client.clone()).collect();
    let endpoints: Vec<String> = if further { cluster.endpoints() } else { all };
    Ok(Client::builder().endpoints(endpoints).build()?)
}

/// Waits until the nodes are equal, or never will be, and writes down what they hold.
async fn read_back(
    cluster: &Cluster,
    recorder: &Recorder,
    written: &Written,
    incarnation: u64,
    converge_within: Duration,
) -> anyhow::Result<()> {
    let mut replicas = Vec::new();
    let converged = comes_true(converge_within, async || {
        replicas = self::replicas(cluster).await;
        let first = replicas.first().map(|replica| replica.digest_index);
        replicas.len() == cluster.members().len() && replicas.iter().all(|replica| Some(replica.digest_index) == first)
    });
    if !converged.await {
        println!("the nodes did not come to one index within {} s", converge_within.as_secs());
    }
    let newest = replicas.iter().map(|replica| replica.digest_index).max().unwrap_or(0);
    for replica in replicas {
        recorder.note(Named::Reader, Stage::Ok, Action::Replica(replica));
    }
    let any = patient(cluster, true)?.with_deadline(READ_WITHIN);
    written.read_back(&any).await?;
    let mut silent = BTreeSet::new();
    for user in written.users() {
        let (records, _) = set_workload::read_back(&any, &user, None).await?;
        recorder.note(Named::Reader, Stage::Ok, Action::Feed(Feed { user: user.clone(), records }));
        for place in cluster.members().into_iter().filter(|place| !silent.contains(place)).collect::<Vec<_>>() {
            let node = &cluster.nodes[place];
            let at_least = v1::AtLeast { incarnation, applied_index: newest, group_id: 0 };
            let own = set_workload::read_back(&cluster.client_of(place), &user, Some(at_least)).await;
            let (records, answered_by) = match own {
                Ok(own) => own,
                Err(error) => {
                    // One that does not serve is missed by the checkers, and hides nothing of the others.
                    println!("node {} cannot be read: {error:#}", node.id);
                    silent.insert(place);
                    continue;
                }
            };
            let (count, sum) = (records.len(), fold(&records));
            let own = NodeFeed { node: node.id, answered_by, user: user.clone(), records: count, fold: sum };
            recorder.note(Named::Reader, Stage::Ok, Action::NodeFeed(own));
        }
    }
    Ok(())
}

async fn replicas(cluster: &Cluster) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for place in cluster.members() {
        let node = &cluster.nodes[place];
        let Some(group) = cluster.status(place).await.and_then(|status| status.groups.into_iter().next()) else {
            continue;
        };
        replicas.push(observer::replica(node.id, &group));
    }
    replicas
}

fn version_of(binary: &Path) -> anyhow::Result<String> {
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {}", binary.display()))?;
    ensure!(output.status.success(), "{} --version ended with {}", binary.display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The table at the end, and the evidence for every line that is not fine.
fn print(verdict: Verdict, reports: &[Report], folder: &Path) {
    let rows = || reports.iter().flat_map(|report| &report.rows);
    let width = |column: fn(&crate::checker::Row) -> &String| rows().map(|row| column(row).len()).max().unwrap_or(0);
    let (what, measured) = (width(|row| &row.what).max(4), width(|row| &row.measured).max(8));
    println!("\n  {:what$}  {:>measured$}  required", "what", "measured");
    for row in rows() {
        let flag = match row.verdict {
            Verdict::Valid => "",
            Verdict::Unknown => "   <-- unknown",
            Verdict::Invalid => "   <-- INVALID",
        };
        println!("  {:what$}  {:>measured$}  {}{flag}", row.what, row.measured, row.required);
        for evidence in &row.evidence {
            println!("      {evidence}");
        }
    }
    let verdict = match verdict {
        Verdict::Valid => "valid",
        Verdict::Unknown => "unknown: this run proves nothing",
        Verdict::Invalid => "INVALID",
    };
    println!("\n{verdict}; {}", folder.display());
}
