//! Compares what a delta sync costs at few and at many stored records, of one user and of a whole cluster.
//!
//! Two clusters of real processes stand side by side: one where a user has few records and nobody else has any, and one
//! where a user has as few and another one has many. The three users are asked in turn, in short slices whose order
//! rotates, so that whatever else happens on the machine meets all of them alike; what counts is the median over all
//! rounds of the *ratio* within a round. Closed loop: each client asks again when it was answered. fsync is on.
//!
//! Invariants:
//! - Every answer is checked: a page with as many records as were changed, and nothing else.
//! - Only what is asked about differs between slices of one row: same calls, same clients, same node.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use holdfast_benches::feed::{batch, client, linearizable, load, newest_token, settle};
use holdfast_benches::measure::{cpu, load_average, median};
use holdfast_client::{Client, SyncOutcome, v1};
use jepsen_tests::cluster::{Cluster, Node};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Acceptance: many may cost at most so many times what few cost.
const RATIO_MAX: f64 = 1.2;
const PAYLOAD_BYTES: usize = 16;
/// Numbers of clients that ask at the same time.
const CLIENTS: [usize; 2] = [1, 16];
/// Records changed since the token.
const CHANGES: [u64; 2] = [0, 10];

/// Cost of a delta sync at few and at many records.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Records of a user with few.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=100_000_000))]
    small: u64,
    /// Records of the user with many.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..=100_000_000))]
    large: u64,
    /// Rounds; one more comes first and does not count.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Milliseconds that one user is asked about before the next one is.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice_ms: u64,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// How syncs are asked for; a row of the table.
#[derive(Debug, Clone, Copy)]
struct Mode {
    linearizable: bool,
    changes: u64,
    clients: usize,
}

fn modes() -> Vec<Mode> {
    let all = [false, true].into_iter().flat_map(|linearizable| {
        CHANGES.into_iter().flat_map(move |changes| CLIENTS.map(|clients| Mode { linearizable, changes, clients }))
    });
    all.collect()
}

/// A user who is asked about.
struct Subject {
    user: &'static str,
    nodes: Vec<Node>,
    /// Each with connections of its own.
    clients: Vec<Client>,
    /// In the order of `CHANGES`.
    tokens: Vec<String>,
}

/// The user with few records, alone in its cluster: what the others are compared with.
const ALONE: usize = 0;
/// The user with few records, in the cluster with many.
const FEW: usize = 1;
/// The user with many records.
const MANY: usize = 2;

impl Subject {
    async fn new(cluster: &Cluster, user: &'static str, records: u64) -> anyhow::Result<Self> {
        let nodes = cluster.nodes.clone();
        load(&nodes, user, records, PAYLOAD_BYTES).await?;
        let most = CLIENTS.into_iter().max().unwrap_or(1);
        let clients: Vec<Client> = (0..most).map(|_| client(&nodes)).collect::<Result<_, _>>()?;
        Ok(Self { user, nodes, clients, tokens: Vec::new() })
    }

    /// Changes records that are there, so that their number stays, and takes the tokens.
    async fn change(&mut self) -> anyhow::Result<()> {
        let client = &self.clients[0];
        let before = newest_token(client, self.user).await?;
        let most = CHANGES.into_iter().max().unwrap_or(0);
        for number in 0..most {
            client.write(batch(self.user, number..number + 1, 1, PAYLOAD_BYTES)).await?;
        }
        let after = newest_token(client, self.user).await?;
        self.tokens =
            CHANGES.iter().map(|changes| if *changes == 0 { after.clone() } else { before.clone() }).collect();
        Ok(())
    }

    fn request(&self, mode: Mode) -> v1::GetChangesRequest {
        let token = CHANGES.iter().position(|changes| *changes == mode.changes).map(|place| &self.tokens[place]);
        v1::GetChangesRequest {
            user_id: self.user.to_owned(),
            sync_token: token.cloned().unwrap_or_default(),
            consistency: mode.linearizable.then(linearizable),
            ..Default::default()
        }
    }

    /// Asks as often as it can for the length of a slice.
    async fn ask(&self, mode: Mode, slice: Duration) -> anyhow::Result<Slice> {
        let before = cpu(&self.nodes)?;
        let end = Instant::now() + slice;
        let mut asking = JoinSet::new();
        for client in self.clients.iter().take(mode.clients) {
            let (client, request) = (client.clone(), self.request(mode));
            asking.spawn(async move {
                let mut latencies_us = Vec::new();
                while Instant::now() < end {
                    let began = Instant::now();
                    let answer = client.changes(request.clone()).await?;
                    latencies_us.push(began.elapsed().as_secs_f64() * 1e6);
                    let SyncOutcome::Page(page) = answer.outcome else {
                        bail!("an order to resync, and nothing was restored");
                    };
                    let changed = page.records.len() as u64;
                    ensure!(changed == mode.changes && !page.more, "{changed} changes came, not {}", mode.changes);
                }
                Ok(latencies_us)
            });
        }
        let mut latencies_us = Vec::new();
        while let Some(asked) = asking.join_next().await {
            latencies_us.extend(asked?.with_context(|| format!("{} in {mode:?}", self.user))?);
        }
        let cpu = cpu(&self.nodes)?.saturating_sub(before);
        Ok(Slice { median_us: median(&latencies_us), answers: latencies_us.len(), cpu })
    }
}

struct Slice {
    median_us: f64,
    answers: usize,
    /// All nodes of the subject's cluster. Ticks of 10 ms: of use only when many slices are summed.
    cpu: Duration,
}

/// All slices of a mode, each round one of each subject.
struct Row {
    mode: Mode,
    rounds: Vec<[Slice; 3]>,
}

impl Row {
    fn medians(&self, subject: usize) -> f64 {
        median(&self.rounds.iter().map(|round| round[subject].median_us).collect::<Vec<_>>())
    }

    /// Median of the ratios within the rounds.
    fn ratio(&self, subject: usize, to: usize) -> f64 {
        let ratios = self.rounds.iter().map(|round| round[subject].median_us / round[to].median_us);
        median(&ratios.collect::<Vec<_>>())
    }

    fn cpu_us(&self, subject: usize) -> f64 {
        let used: Duration = self.rounds.iter().map(|round| round[subject].cpu).sum();
        let answers: usize = self.rounds.iter().map(|round| round[subject].answers).sum();
        used.as_secs_f64() * 1e6 / answers.max(1) as f64
    }

    fn report(&self) -> Value {
        let Mode { linearizable, changes, clients } = self.mode;
        json!({
            "linearizable": linearizable,
            "changes": changes,
            "clients": clients,
            "median_us": {
                "few_alone": self.medians(ALONE), "few": self.medians(FEW), "many": self.medians(MANY),
            },
            "server_us_cpu": {
                "few_alone": self.cpu_us(ALONE), "few": self.cpu_us(FEW), "many": self.cpu_us(MANY),
            },
            "ratio_of_users": self.ratio(MANY, FEW),
            "ratio_of_clusters": self.ratio(FEW, ALONE),
            "ratio_of_both": self.ratio(MANY, ALONE),
        })
    }

    /// The worst of what the acceptance is about.
    fn worst(&self) -> f64 {
        [self.ratio(MANY, FEW), self.ratio(FEW, ALONE), self.ratio(MANY, ALONE)].into_iter().fold(0.0, f64::max)
    }
}

async fn measure(args: &Args, subjects: &[Subject; 3]) -> anyhow::Result<Vec<Row>> {
    let slice = Duration::from_millis(args.slice_ms);
    let mut rows: Vec<Row> = modes().into_iter().map(|mode| Row { mode, rounds: Vec::new() }).collect();
    for round in 0..=args.rounds as usize {
        for row in &mut rows {
            let mut slices = [const { None }; 3];
            for turn in 0..slices.len() {
                let subject = (turn + round) % slices.len();
                slices[subject] = Some(subjects[subject].ask(row.mode, slice).await?);
            }
            if let ([Some(alone), Some(few), Some(many)], 1..) = (slices, round) {
                row.rounds.push([alone, few, many]);
            }
        }
        eprintln!("round {round} of {} (load average {})", args.rounds, load_average());
    }
    Ok(rows)
}

fn print_table(args: &Args, rows: &[Row], load_before: &str) {
    println!(
        "delta syncs at {} and at {} records; two clusters of three processes on loopback; load average before: \
         {load_before}, after: {}",
        args.small,
        args.large,
        load_average()
    );
    println!("few alone: a cluster with no other user; few, many: one cluster. µs to the answer, median of slices;");
    println!("ratios: median over {} rounds. CPU: all three servers, µs an answer.", args.rounds);
    println!(
        "{:<12} {:>7} {:>7} | {:>9} {:>8} {:>8} | {:>8} {:>9} {:>9} | {:>9} {:>8} {:>8}",
        "",
        "changes",
        "clients",
        "few alone",
        "few",
        "many",
        "many/few",
        "few/alone",
        "many/alone",
        "CPU alone",
        "few",
        "many"
    );
    for row in rows {
        let level = if row.mode.linearizable { "linearizable" } else { "token" };
        println!(
            "{level:<12} {:>7} {:>7} | {:>9.0} {:>8.0} {:>8.0} | {:>8.2} {:>9.2} {:>10.2} | {:>9.0} {:>8.0} {:>8.0}",
            row.mode.changes,
            row.mode.clients,
            row.medians(ALONE),
            row.medians(FEW),
            row.medians(MANY),
            row.ratio(MANY, FEW),
            row.ratio(FEW, ALONE),
            row.ratio(MANY, ALONE),
            row.cpu_us(ALONE),
            row.cpu_us(FEW),
            row.cpu_us(MANY),
        );
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let load_before = load_average();
    let large = Cluster::start(&args.holdfast, &dir.path().join("large"), &[])?;
    let mut many = Subject::new(&large, "many", args.large).await?;
    let mut few = Subject::new(&large, "few", args.small).await?;
    let small = Cluster::start(&args.holdfast, &dir.path().join("small"), &[])?;
    let mut alone = Subject::new(&small, "few-alone", args.small).await?;
    for subject in [&mut many, &mut few, &mut alone] {
        subject.change().await?;
    }
    settle(&[large.nodes.clone(), small.nodes.clone()].concat()).await?;
    let rows = measure(&args, &[alone, few, many]).await?;
    let worst = rows.iter().map(Row::worst).fold(0.0, f64::max);
    if args.json {
        let report = json!({
            "small": args.small,
            "large": args.large,
            "rounds": args.rounds,
            "load_average_before": load_before,
            "load_average_after": load_average(),
            "rows": rows.iter().map(Row::report).collect::<Vec<_>>(),
            "worst_ratio": worst,
            "ratio_max": RATIO_MAX,
        });
        println!("{report:#}");
    } else {
        print_table(&args, &rows, &load_before);
        println!("worst ratio: {worst:.2}, at most {RATIO_MAX} is accepted");
    }
    Ok(if worst <= RATIO_MAX { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
