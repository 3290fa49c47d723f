//! Puts load on a three-node cluster of real processes and prints rate, latency and the servers' CPU per put.
//!
//! Closed loop: each client sends its next put when the last one was answered. fsync is on; nothing is switched off.
//! Absolute figures depend on the machine: compare within one run.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;
use holdfast_benches::measure::{cpu, percentile_ms};
use holdfast_benches::puts::incompressible;
use holdfast_client::{Client, RecordRef};
use jepsen_tests::cluster::{Cluster, Node};

/// Load on a three-node cluster.
#[derive(Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Numbers of clients, one round each.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    clients: Vec<usize>,
    /// Seconds of a round, after two seconds of warm-up.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 1024)]
    payload_bytes: usize,
    /// After each round one whose writes share so many streams to a node (`StreamWrite`); 0: none.
    #[arg(long, default_value_t = 16)]
    streams: usize,
}

struct Round {
    puts: usize,
    took: Duration,
    cpu: Duration,
    latencies: Vec<Duration>,
}

async fn round(
    title: &'static str,
    client: &Client,
    nodes: &[Node],
    clients: usize,
    args: &Args,
) -> anyhow::Result<Round> {
    let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let bytes = args.payload_bytes;
    let mut tasks = Vec::new();
    for number in 0..clients {
        let (client, counting, stop) = (client.clone(), counting.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let user = format!("load-{title}-{clients}-{number}");
            let mut latencies = Vec::new();
            let mut n = 0u64;
            while !stop.load(Ordering::Acquire) {
                n += 1;
                let id = format!("r{n}");
                // Each put changes something: an identical one would write nothing.
                let body = incompressible(n << 16 | number as u64, bytes);
                let record = RecordRef { user: &user, collection: "notes", record_id: &id };
                let began = Instant::now();
                client.put(record, "application/octet-stream", body).await?;
                if counting.load(Ordering::Acquire) {
                    latencies.push(began.elapsed());
                }
            }
            anyhow::Ok(latencies)
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (cpu_before, began) = (cpu(nodes)?, Instant::now());
    counting.store(true, Ordering::Release);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    counting.store(false, Ordering::Release);
    let (took, used) = (began.elapsed(), cpu(nodes)?.saturating_sub(cpu_before));
    stop.store(true, Ordering::Release);
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    latencies.sort_unstable();
    Ok(Round { puts: latencies.len(), took, cpu: used, latencies })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(&args.holdfast, &dir.path().join("c"), &[])?;
    let client = Client::builder().endpoints(cluster.nodes.iter().map(|node| node.client.clone())).build()?;
    println!("puts of {} bytes, three processes on loopback, fsync on", args.payload_bytes);
    let streaming = client.streaming(args.streams);
    let ways: &[(&str, &Client)] = match args.streams {
        0 => &[("calls", &client)],
        _ => &[("calls", &client), ("streams", &streaming)],
    };
    let head = ["clients", "puts/s", "p50 ms", "p99 ms", "server µs CPU/put"];
    println!("{:<8} {:>8} {:>10} {:>9} {:>9} {:>18}", "as", head[0], head[1], head[2], head[3], head[4]);
    for clients in &args.clients {
        for (title, client) in ways {
            let round = round(title, client, &cluster.nodes, *clients, &args).await?;
            if round.puts == 0 {
                bail!("not one put was answered");
            }
            println!(
                "{title:<8} {clients:>8} {:>10.0} {:>9.2} {:>9.2} {:>18.0}",
                round.puts as f64 / round.took.as_secs_f64(),
                percentile_ms(&round.latencies, 0.5),
                percentile_ms(&round.latencies, 0.99),
                round.cpu.as_secs_f64() * 1e6 / round.puts as f64,
            );
        }
    }
    Ok(())
}
