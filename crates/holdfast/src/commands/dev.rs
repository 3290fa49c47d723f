//! `holdfast dev`: a cluster on this machine.
//!
//! Contract: `--ready-file` is renamed into place when every node answers linearizable reads; a node that ends is noted
//! and never started again; INT or TERM stops all of them within 10 s.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::atomic_file;
use crate::cli::key_value;
use crate::exit::{Exit, failure};
use crate::interrupt::Signals;
use crate::launch::{Cluster, ClusterSpec, DEFAULT_PORT_BASE, Labels, Memo, parse_labels, render_labels};
use crate::output::{self, Table};

const WATCH: Duration = Duration::from_millis(200);

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Node i, from 0, keeps its data in DIR/n<i>, writes its log to DIR/log/n<i>.log, and listens on 127.0.0.1 at \
B+10·i for clients, +1 for peers, +2 for operators and +3 for HTTP. A directory that holds a cluster is opened again; \
one that `restore run` filled is opened as the new cluster.

Example:
  holdfast dev --data /tmp/hf --labels \"array=a1,site=x;array=a2,site=x;array=a3,site=y\" \\
      --offsite file:///tmp/hf-offsite --offsite-labels site=z --set raft.snapshot_entries=1000")]
pub struct Args {
    /// Number of nodes [default: 3, or those that are there].
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Directory of the whole cluster; made if it is missing.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// First port [default: 7470, or the one used before].
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
    /// File to write when all nodes are ready: ids, process ids, addresses and command lines, as JSON.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Failure domains, one part per node: "array=a1,site=x;array=a2,site=x;array=a3,site=y".
    #[arg(long, value_name = "LABELS", value_parser = parse_labels)]
    labels: Option<Labels>,
    /// Where committed writes are copied to, for example file:///tmp/offsite; may be repeated.
    #[arg(long, value_name = "URL")]
    offsite: Vec<String>,
    /// Failure domains of the destinations, one part per --offsite: "site=y,custody=vault;site=z".
    #[arg(long, value_name = "LABELS", value_parser = parse_labels)]
    offsite_labels: Option<Labels>,
    /// Any key of the configuration, for all nodes; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Name that a new cluster gets.
    #[arg(long, value_name = "NAME", default_value = "dev")]
    cluster_name: String,
}

#[derive(Debug, Serialize)]
struct ReadyFile {
    nodes: Vec<ReadyNode>,
}

#[derive(Debug, Serialize)]
struct ReadyNode {
    id: u64,
    pid: u32,
    data_dir: PathBuf,
    client: String,
    peer: String,
    admin: String,
    http: String,
    argv: Vec<String>,
}

/// Runs the cluster until a signal.
pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let spec = spec(&args)?;
    if let Some(file) = &args.ready_file {
        remove_stale(file)?;
    }
    // One listener for the whole run: whoever sees the ready file may stop the cluster at once.
    let mut signals = Signals::listen()?;
    let mut cluster = tokio::select! {
        cluster = Cluster::start(spec) => cluster?,
        signal = signals.any() => anyhow::bail!("stopped by {signal} before the cluster was ready"),
    };
    let ready = ready(&mut cluster);
    if let Some(file) = &args.ready_file {
        let mut text = serde_json::to_vec(&ready)?;
        text.push(b'\n');
        atomic_file::write(file, &text)?;
    }
    print(&cluster, &ready)?;
    let signal = watch(&mut cluster, &mut signals).await;
    eprintln!("holdfast: {signal}: stopping all nodes");
    cluster.stop().await;
    Ok(Exit::Ok)
}

fn spec(args: &Args) -> anyhow::Result<ClusterSpec> {
    let memo = Memo::read(&args.data)?;
    let count = args.nodes.or(memo.as_ref().map(|memo| memo.nodes)).unwrap_or(3);
    if let Some(memo) = memo.as_ref().filter(|memo| memo.nodes != count) {
        let message = format!(
            "{} holds a cluster of {} nodes, not {count}; leave --nodes out, or choose another --data",
            args.data.display(),
            memo.nodes
        );
        return Err(failure(Exit::Usage, message));
    }
    let port_base = args.port_base.or(memo.as_ref().map(|memo| memo.port_base)).unwrap_or(DEFAULT_PORT_BASE);
    let name = memo.as_ref().map_or(args.cluster_name.as_str(), |memo| memo.name.as_str());
    let mut spec = ClusterSpec::new(&args.data, count, port_base, name).map_err(|error| failure(Exit::Usage, error))?;
    if let Some(labels) = &args.labels {
        spec.label(labels).map_err(|error| failure(Exit::Usage, error))?;
    }
    if let Some(labels) = &args.offsite_labels {
        let checked = labels.check_count("--offsite-labels", "destination", args.offsite.len());
        checked.map_err(|error| failure(Exit::Usage, error))?;
    }
    for node in &mut spec.nodes {
        node.offsite.clone_from(&args.offsite);
        node.offsite_labels = args.offsite_labels.as_ref().map(|labels| labels.0.clone()).unwrap_or_default();
        node.set.clone_from(&args.set);
    }
    Ok(spec)
}

/// A ready file of an earlier run must not be taken for this one's; one that cannot be written is told before the start.
fn remove_stale(file: &std::path::Path) -> anyhow::Result<()> {
    let dir = std::path::absolute(file)?;
    if let Some(dir) = dir.parent().filter(|dir| !dir.is_dir()) {
        let message = format!("--ready-file: there is no directory {}; make it first", dir.display());
        return Err(failure(Exit::Usage, message));
    }
    match std::fs::remove_file(file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => anyhow::bail!("remove the old {}: {error}", file.display()),
    }
}

fn ready(cluster: &mut Cluster) -> ReadyFile {
    let nodes = cluster.nodes().iter().map(|node| {
        let spec = node.spec();
        ReadyNode {
            id: spec.id,
            pid: node.pid(),
            data_dir: spec.data_dir.clone(),
            client: spec.client.clone(),
            peer: spec.peer.clone(),
            admin: spec.admin.clone(),
            http: spec.http.clone(),
            argv: node.argv().to_vec(),
        }
    });
    ReadyFile { nodes: nodes.collect() }
}

fn print(cluster: &Cluster, ready: &ReadyFile) -> anyhow::Result<()> {
    let spec = cluster.spec();
    output::text(format!("cluster {} is ready, data in {}", spec.name, spec.dir.display()))?;
    let mut table = Table::new(&["node", "pid", "clients", "peers", "operators", "http", "labels"]);
    for (node, spec) in ready.nodes.iter().zip(&spec.nodes) {
        let labels = render_labels(&spec.labels);
        let addresses = [&node.client, &node.peer, &node.admin, &node.http].map(Clone::clone);
        let ids = [node.id.to_string(), node.pid.to_string()];
        table.row(ids.into_iter().chain(addresses).chain([labels]));
    }
    table.print()?;
    output::text("Ctrl-C stops it. From another terminal, for example:")?;
    let endpoints = spec.clients().join(",");
    output::text(format!(
        "  holdfast record put --endpoint {endpoints} --user ada --collection notes --id n1 --file …"
    ))?;
    output::text(format!("  holdfast cluster status --endpoint {}", spec.nodes[0].admin))?;
    Ok(())
}

/// Waits for a signal; notes every node that ends.
async fn watch(cluster: &mut Cluster, signals: &mut Signals) -> &'static str {
    let mut noted = vec![false; cluster.nodes().len()];
    loop {
        tokio::select! {
            signal = signals.any() => return signal,
            () = tokio::time::sleep(WATCH) => {}
        }
        for (node, noted) in cluster.nodes().iter_mut().zip(&mut noted) {
            if let Some(status) = node.ended().filter(|_| !*noted) {
                *noted = true;
                let spec = node.spec();
                eprintln!(
                    "holdfast: node {} ended with {status}; it is not started again; see {}",
                    spec.id,
                    spec.log.display()
                );
            }
        }
    }
}
