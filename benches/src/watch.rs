//! Watches many users on a few streams of a three-node cluster of real processes, writes to them at a fixed rate, and
//! tells how long a write takes to become a hint, whether a wake-up was lost, and whether the servers' memory grows.
//!
//! Open loop: writes begin by the clock, whether earlier ones were answered or not. The streams are plain gRPC and not
//! the client library's watcher, which opens another stream where one falls silent: here a wake-up that a node loses is
//! seen as lost. fsync is on; nothing is switched off. Absolute figures depend on the machine.
//!
//! Invariants:
//! - Only acknowledged writes are judged; each needs a hint with at least its version on the stream of its user.
//! - What is heard is only noted down while the load lasts, and judged after it.
//! - The load that is judged begins on warm nodes, and memory is judged without memtables: those fill and are flushed
//!   whoever watches, and would hide what the streams need.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use holdfast_benches::measure::{buffers_kib, cpu, load_average, percentile_ms};
use holdfast_benches::memory::{Memory, Sample, sample_memory};
use holdfast_benches::wakeups::{Heard, Judgement, Write, judge};
use holdfast_client::{Client, RecordRef, v1};
use jepsen_tests::cluster::{Cluster, Node};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use v1::sync_service_client::SyncServiceClient;
use v1::watch_response::Event;

/// Writes that may wait for their answer. Where a cluster falls so far behind, the next ones begin late, and the table
/// says how late.
const IN_FLIGHT_MAX: usize = 4096;
const ADDS_PER_MESSAGE: usize = 1000;
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// After the last write.
const REST_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const SAMPLE_PAUSE: Duration = Duration::from_millis(250);
/// A node is warm once its memtables shrank by so much: they were full, and flushed.
const FLUSHED_KIB: u64 = 16 << 10;
const WARM_WITHIN: Duration = Duration::from_secs(600);
/// How much more memory a node may hold at the end of the load than at its beginning, memtables left out: what the
/// allocator keeps of memtables that were flushed a moment ago comes and goes by half of that.
const GROWTH_MIB_MAX: f64 = 48.0;
const PAYLOAD_BYTES: usize = 100;

/// Watch streams under load.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Users that are watched and written to.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,
    /// Watch streams; they go to the nodes in turn, and users to the streams.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    streams: u32,
    /// Writes a second, one record each, to the users in turn.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds of load.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Begin on new nodes, without the same load before it that fills their memtables once (about two minutes).
    #[arg(long)]
    cold: bool,
    /// Clients that write, each with connections of its own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// First the same load with nobody watching, on a cluster of its own: shows which memory and CPU is the writes'.
    #[arg(long)]
    control: bool,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// How far the streams are, for those that wait for them.
struct Board {
    /// Newest version heard of, per user.
    heads: Vec<AtomicU64>,
    /// What the last heartbeat said, per stream.
    watched: Vec<AtomicU32>,
}

/// What one stream brought.
#[derive(Debug, Default)]
struct Tape {
    heard: Vec<Heard>,
    resyncs: u64,
    /// Hints for users that are not this stream's.
    strangers: u64,
    /// Why it ended before it was told to.
    ended: Option<String>,
}

fn user_name(number: u32) -> String {
    format!("watched-{number}")
}

fn user_number(name: &str) -> Option<u32> {
    name.strip_prefix("watched-")?.parse().ok()
}

/// Opens a stream and names its users. The sender keeps it open.
async fn open(
    node: &Node,
    users: impl Iterator<Item = u32>,
) -> anyhow::Result<(mpsc::Sender<v1::WatchRequest>, Streaming<v1::WatchResponse>)> {
    let endpoint = Endpoint::from_shared(format!("http://{}", node.client))?.tcp_nodelay(true);
    let mut client: SyncServiceClient<Channel> = SyncServiceClient::new(endpoint.connect().await?);
    let add = |user| v1::WatchAdd { user_id: user_name(user), sync_token: String::new() };
    let adds: Vec<v1::WatchAdd> = users.map(add).collect();
    let (requests, waiting) = mpsc::channel(adds.len() / ADDS_PER_MESSAGE + 1);
    for adds in adds.chunks(ADDS_PER_MESSAGE) {
        requests.send(v1::WatchRequest { adds: adds.to_vec(), remove_user_ids: Vec::new() }).await?;
    }
    let opening = client.watch(ReceiverStream::new(waiting));
    let answer = tokio::time::timeout(OPEN_WITHIN, opening).await.context("a watch stream did not open")?;
    Ok((requests, answer.with_context(|| format!("watch on node {}", node.id))?.into_inner()))
}

/// Notes down what comes until it is told to stop.
async fn listen(
    number: u32,
    streams: u32,
    mut replies: Streaming<v1::WatchResponse>,
    board: Arc<Board>,
    mut stop: watch::Receiver<bool>,
) -> Tape {
    let mut tape = Tape::default();
    loop {
        let reply = tokio::select! {
            reply = replies.message() => reply,
            _ = stop.wait_for(|stop| *stop) => return tape,
        };
        let event = match reply {
            Ok(Some(reply)) => reply.event,
            Ok(None) => {
                tape.ended = Some("ended by the node without a status".to_owned());
                return tape;
            }
            Err(status) => {
                tape.ended = Some(status.to_string());
                return tape;
            }
        };
        match event {
            Some(Event::Hint(hint)) => {
                let at = Instant::now();
                let user = user_number(&hint.user_id).filter(|user| user % streams == number);
                let Some((user, newest)) = user.and_then(|user| Some((user, board.heads.get(user as usize)?))) else {
                    tape.strangers += 1;
                    continue;
                };
                tape.heard.push(Heard { user, head: hint.head_version, at });
                newest.fetch_max(hint.head_version, Ordering::Relaxed);
            }
            Some(Event::Heartbeat(heartbeat)) => {
                board.watched[number as usize].store(heartbeat.watched_users, Ordering::Relaxed);
            }
            Some(Event::Resync(_)) => tape.resyncs += 1,
            None => {}
        }
    }
}

/// All streams, watching.
struct Streams {
    board: Arc<Board>,
    tapes: JoinSet<Tape>,
    stop: watch::Sender<bool>,
    /// A node ends a stream whose sender is gone.
    open: Vec<mpsc::Sender<v1::WatchRequest>>,
}

impl Streams {
    async fn start(args: &Args, nodes: &[Node]) -> anyhow::Result<Self> {
        let board = Arc::new(Board {
            heads: (0..args.users).map(|_| AtomicU64::new(0)).collect(),
            watched: (0..args.streams).map(|_| AtomicU32::new(0)).collect(),
        });
        let (stop, stopped) = watch::channel(false);
        let mut streams = Self { board, tapes: JoinSet::new(), stop, open: Vec::new() };
        for (number, node) in (0..args.streams).zip(nodes.iter().cycle()) {
            let users = (0..args.users).filter(|user| user % args.streams == number);
            let (sender, replies) = open(node, users).await?;
            let board = streams.board.clone();
            streams.tapes.spawn(listen(number, args.streams, replies, board, stopped.clone()));
            streams.open.push(sender);
        }
        // A write before its user is watched would be hinted at by the add, and measure nothing.
        let end = Instant::now() + OPEN_WITHIN;
        while streams.watched() < args.users {
            if Instant::now() >= end {
                bail!("the heartbeats name {} of {} users as watched", streams.watched(), args.users);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(streams)
    }

    fn watched(&self) -> u32 {
        self.board.watched.iter().map(|watched| watched.load(Ordering::Relaxed)).sum()
    }

    /// Waits until every write was hinted at, or for long enough; then ends the streams.
    async fn finish(mut self, writes: &[Write]) -> anyhow::Result<Vec<Tape>> {
        let mut newest = vec![0; self.board.heads.len()];
        for write in writes {
            let newest: &mut u64 = &mut newest[write.user as usize];
            *newest = write.version.max(*newest);
        }
        let end = Instant::now() + REST_WITHIN;
        let behind = |(head, newest): (&AtomicU64, &u64)| head.load(Ordering::Relaxed) < *newest;
        while self.board.heads.iter().zip(&newest).any(behind) && Instant::now() < end {
            tokio::time::sleep(POLL).await;
        }
        self.stop.send_replace(true);
        let mut tapes = Vec::new();
        while let Some(tape) = self.tapes.join_next().await {
            tapes.push(tape?);
        }
        Ok(tapes)
    }
}

/// What became of the writes.
#[derive(Default)]
struct Load {
    writes: Vec<Write>,
    failed: u64,
    first_failure: Option<String>,
    /// How far a write began behind the clock, at most.
    late: Duration,
    took: Duration,
}

async fn put(client: Client, user: u32, number: u64) -> Result<Write, String> {
    let name = user_name(user);
    let record = RecordRef { user: &name, collection: "contacts", record_id: "c" };
    // Each write changes something: an identical one would write nothing.
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(PAYLOAD_BYTES, b'x');
    let sent = Instant::now();
    match client.put(record, "text/vcard", payload).await {
        Ok(answer) => Ok(Write { user, version: answer.version, sent, acked: Instant::now() }),
        Err(error) => Err(error.to_string()),
    }
}

/// Writes at the rate that was asked for.
struct Writer<'a> {
    args: &'a Args,
    clients: Vec<Client>,
    /// Of the next write: none is repeated.
    number: u64,
}

impl<'a> Writer<'a> {
    async fn connect(args: &'a Args, nodes: &[Node]) -> anyhow::Result<Self> {
        let client = || Client::builder().endpoints(nodes.iter().map(|node| node.client.clone())).build();
        let clients: Vec<Client> = (0..args.connections).map(|_| client()).collect::<Result<_, _>>()?;
        for (user, client) in (0..args.users).cycle().zip(&clients) {
            // Connects it, and tells it who leads.
            put(client.clone(), user, u64::MAX).await.map_err(anyhow::Error::msg)?;
        }
        Ok(Self { args, clients, number: 0 })
    }

    /// For so many writes, or until it is told to stop.
    async fn run(&mut self, count: u64, stop: &watch::Receiver<bool>) -> anyhow::Result<Load> {
        let mut load = Load::default();
        let note = |load: &mut Load, outcome| match outcome {
            Ok(write) => load.writes.push(write),
            Err(error) => {
                load.failed += 1;
                load.first_failure.get_or_insert(error);
            }
        };
        let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut running = JoinSet::new();
        let began = Instant::now();
        for written in 0..count {
            if *stop.borrow() {
                break;
            }
            let due = began + Duration::from_secs_f64(written as f64 / f64::from(self.args.rate));
            tokio::time::sleep_until(due.into()).await;
            let room = room.clone().acquire_owned().await?;
            load.late = load.late.max(due.elapsed());
            let number = self.number;
            self.number += 1;
            let user = u32::try_from(number % u64::from(self.args.users))?;
            let client = self.clients[number as usize % self.clients.len()].clone();
            running.spawn(async move {
                let _room = room;
                put(client, user, number).await
            });
            while let Some(outcome) = running.try_join_next() {
                note(&mut load, outcome?);
            }
        }
        load.took = began.elapsed();
        while let Some(outcome) = running.join_next().await {
            note(&mut load, outcome?);
        }
        Ok(load)
    }

    /// Until every node's memtables were full once.
    async fn warm_up(&mut self, nodes: &[Node]) -> anyhow::Result<()> {
        let (warm, is_warm) = watch::channel(false);
        let nodes = nodes.to_vec();
        let watcher = tokio::spawn(async move {
            let mut peaks = vec![0; nodes.len()];
            let mut flushed = vec![false; nodes.len()];
            let end = Instant::now() + WARM_WITHIN;
            while flushed.contains(&false) && Instant::now() < end {
                for ((node, peak), flushed) in nodes.iter().zip(&mut peaks).zip(&mut flushed) {
                    let (now, _) = buffers_kib(node).await?;
                    *peak = now.max(*peak);
                    *flushed |= now + FLUSHED_KIB < *peak;
                }
                tokio::time::sleep(SAMPLE_PAUSE).await;
            }
            warm.send_replace(true);
            if flushed.contains(&false) {
                bail!("memtables were not flushed within {} s; try a higher --rate, or --cold", WARM_WITHIN.as_secs());
            }
            Ok(())
        });
        self.run(u64::MAX, &is_warm).await?;
        watcher.await?
    }
}

struct Figures {
    load: Load,
    tapes: Vec<Tape>,
    judgement: Judgement,
    /// All nodes together, while the load lasted.
    cpu: Duration,
    memory: Vec<Vec<Sample>>,
    leader: usize,
    load_average: String,
}

impl Figures {
    /// A node holds more than at the beginning. New nodes grow anyway.
    fn grew(&self) -> bool {
        self.memory.iter().any(|samples| Memory::of(samples).growth() > GROWTH_MIB_MAX)
    }
}

/// Without streams every write counts as lost: then only the servers' figures are of use.
async fn measure(args: &Args, is_watched: bool, cluster: &Cluster) -> anyhow::Result<Figures> {
    let load_average = load_average();
    let leader = cluster.leader().await;
    let streams = match is_watched {
        true => Some(Streams::start(args, &cluster.nodes).await?),
        false => None,
    };
    let mut writer = Writer::connect(args, &cluster.nodes).await?;
    if !args.cold {
        writer.warm_up(&cluster.nodes).await?;
    }
    let (stop, stopped) = watch::channel(false);
    let memory = tokio::spawn(sample_memory(cluster.nodes.clone(), stopped.clone()));
    let before = cpu(&cluster.nodes)?;
    let load = writer.run(u64::from(args.rate) * u64::from(args.seconds), &stopped).await?;
    let cpu = cpu(&cluster.nodes)?.saturating_sub(before);
    stop.send_replace(true);
    let memory = memory.await??;
    if load.writes.is_empty() {
        bail!("not one write was acknowledged: {}", load.first_failure.unwrap_or_default());
    }
    let mut tapes = match streams {
        Some(streams) => streams.finish(&load.writes).await?,
        None => Vec::new(),
    };
    let heard: Vec<Heard> = tapes.iter_mut().flat_map(|tape| std::mem::take(&mut tape.heard)).collect();
    let judgement = judge(&load.writes, &heard);
    Ok(Figures { load, tapes, judgement, cpu, memory, leader, load_average })
}

/// From acknowledgement or sending on.
fn delays(sorted: &[Duration]) -> Value {
    json!({
        "p50_ms": percentile_ms(sorted, 0.5),
        "p99_ms": percentile_ms(sorted, 0.99),
        "max_ms": percentile_ms(sorted, 1.0),
    })
}

/// What the servers needed, and how fast they answered writes.
fn servers(figures: &Figures) -> Value {
    let memory = figures.memory.iter().enumerate().map(|(place, samples)| {
        let memory = Memory::of(samples);
        let column = |of: fn(&Sample) -> u64| samples.iter().map(of).collect::<Vec<_>>();
        let role = if place == figures.leader { "leader" } else { "follower" };
        json!({"place": place, "role": role, "first_mib": memory.first, "last_mib": memory.last,
               "growth_mib": memory.growth(), "peak_mib": memory.peak,
               "resident_each_second_kib": column(|sample| sample.resident_kib),
               "memtables_each_second_kib": column(|sample| sample.memtable_kib)})
    });
    json!({
        "cores": figures.cpu.as_secs_f64() / figures.load.took.as_secs_f64(),
        "us_cpu_per_write": figures.cpu.as_secs_f64() * 1e6 / figures.load.writes.len() as f64,
        "acknowledgement": delays(&figures.judgement.acks),
        "memory": memory.collect::<Vec<_>>(),
    })
}

/// All figures by name; the table shows the same ones.
fn report(args: &Args, figures: &Figures, control: Option<&Figures>) -> Value {
    let Figures { load, tapes, judgement, .. } = figures;
    let took = load.took.as_secs_f64();
    let sum = |count: fn(&Tape) -> u64| tapes.iter().map(count).sum::<u64>();
    json!({
        "users": args.users,
        "streams": args.streams,
        "rate_asked": args.rate,
        "rate": load.writes.len() as f64 / took,
        "seconds": took,
        "load_average_before": figures.load_average,
        "load_average_after": load_average(),
        "acknowledged": load.writes.len(),
        "failed": load.failed,
        "first_failure": load.first_failure,
        "late_max_ms": load.late.as_secs_f64() * 1000.0,
        "hint_after_acknowledgement": delays(&judgement.after_ack),
        "hint_after_sending": delays(&judgement.after_send),
        "hints_before_acknowledgement": judgement.before_ack,
        "hints": judgement.hints,
        "hints_repeated": judgement.repeated,
        "hints_that_went_back": judgement.went_back,
        "hints_of_strangers": sum(|tape| tape.strangers),
        "resyncs": sum(|tape| tape.resyncs),
        "streams_ended": tapes.iter().filter_map(|tape| tape.ended.as_deref()).collect::<Vec<_>>(),
        "lost": judgement.lost,
        "servers": servers(figures),
        "servers_unwatched": control.map(servers),
    })
}

fn print_table(report: &Value) {
    let number = |name: &str| report[name].as_f64().unwrap_or_default();
    println!(
        "{} users on {} streams, {} writes/s asked for, three processes on loopback, fsync on; load average before: {}",
        report["users"],
        report["streams"],
        report["rate_asked"],
        figure_text(&report["load_average_before"])
    );
    println!(
        "{} writes acknowledged in {:.1} s ({:.0}/s), {} failed; at most {:.0} ms behind the clock",
        report["acknowledged"],
        number("seconds"),
        number("rate"),
        report["failed"],
        number("late_max_ms")
    );
    if let Some(failure) = report["first_failure"].as_str() {
        println!("first failure: {failure}");
    }
    println!("{:<28} {:>9} {:>9} {:>9}", "", "p50 ms", "p99 ms", "max ms");
    for (title, delays) in [
        ("write, to acknowledgement", &report["servers"]["acknowledgement"]),
        ("the same, nobody watching", &report["servers_unwatched"]["acknowledgement"]),
        ("hint, from acknowledgement", &report["hint_after_acknowledgement"]),
        ("hint, from sending", &report["hint_after_sending"]),
    ] {
        let of = |what: &str| delays[what].as_f64().unwrap_or_default();
        if !delays.is_null() {
            println!("{title:<28} {:>9.2} {:>9.2} {:>9.2}", of("p50_ms"), of("p99_ms"), of("max_ms"));
        }
    }
    println!(
        "{} hints: {} before the acknowledgement, {} repeated, {} went back, {} of strangers; {} resyncs",
        report["hints"],
        report["hints_before_acknowledgement"],
        report["hints_repeated"],
        report["hints_that_went_back"],
        report["hints_of_strangers"],
        report["resyncs"]
    );
    for ended in report["streams_ended"].as_array().into_iter().flatten() {
        println!("a stream ended: {}", figure_text(ended));
    }
    print_servers("watched", &report["servers"]);
    print_servers("nobody watching", &report["servers_unwatched"]);
    println!("lost wake-ups: {}", report["lost"]);
}

fn print_servers(title: &str, servers: &Value) {
    let Some(nodes) = servers["memory"].as_array() else { return };
    let number = |name: &str| servers[name].as_f64().unwrap_or_default();
    println!("servers, {title}: {:.2} cores, {:.0} µs CPU a write", number("cores"), number("us_cpu_per_write"));
    println!("memory in MiB; the first three without memtables");
    println!("{:<10} {:>11} {:>11} {:>8} {:>19}", "", "first 10 s", "last 10 s", "growth", "peak with memtables");
    for node in nodes {
        let of = |what: &str| node[what].as_f64().unwrap_or_default();
        let role = figure_text(&node["role"]);
        println!(
            "{role:<10} {:>11.1} {:>11.1} {:>+8.1} {:>19.1}",
            of("first_mib"),
            of("last_mib"),
            of("growth_mib"),
            of("peak_mib")
        );
    }
}

fn figure_text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let run = async |is_watched, name: &str| {
        let cluster = Cluster::start(&args.holdfast, &dir.path().join(name), &[])?;
        measure(&args, is_watched, &cluster).await
    };
    let control = match args.control {
        true => Some(run(false, "control").await?),
        false => None,
    };
    let figures = run(true, "watched").await?;
    let report = report(&args, &figures, control.as_ref());
    if args.json {
        println!("{report:#}");
    } else {
        print_table(&report);
    }
    let grew = !args.cold && figures.grew();
    if grew {
        eprintln!("memory grew by more than {GROWTH_MIB_MAX} MiB on a node, memtables left out");
    }
    Ok(if figures.judgement.lost == 0 && !grew { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
