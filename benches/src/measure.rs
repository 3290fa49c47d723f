//! Figures of servers and samples.
//!
//! Read from `/proc` wherever it is there: what a server says of itself would be part of what is measured.

use std::time::Duration;

use anyhow::Context;
use jepsen_tests::cluster::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::servers;

/// User and system time of the servers so far, all together.
///
/// # Errors
/// When one of them is gone.
pub fn cpu(nodes: &[Node]) -> anyhow::Result<Duration> {
    nodes.iter().map(|node| servers::cpu_of(node.pid)).sum()
}

/// Resident memory of a server in KiB.
///
/// # Errors
/// When it is gone.
pub fn resident_kib(node: &Node) -> anyhow::Result<u64> {
    servers::kib(node.pid, "status", "VmRSS:")
}

/// Memtables of a server and its cached blocks, in KiB. Only it can tell: they are part of its resident memory, are bounded by
/// what is set aside for them, and come and go with flushes and reads.
///
/// # Errors
/// When its metrics cannot be read, or do not say.
pub async fn buffers_kib(node: &Node) -> anyhow::Result<(u64, u64)> {
    let mut stream = TcpStream::connect(&node.http).await.with_context(|| format!("metrics of node {}", node.id))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    let sum = |name: &str| {
        let lines = page.lines().filter(|line| line.starts_with(name));
        let values = lines.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
        values.sum::<Result<f64, _>>().with_context(|| format!("{name} in the metrics"))
    };
    let memtables = sum("holdfast_storage_memtable_bytes{")?;
    anyhow::ensure!(memtables > 0.0, "node {} says nothing of its memtables", node.id);
    Ok((memtables as u64 / 1024, sum("holdfast_storage_block_cache_bytes ")? as u64 / 1024))
}

/// How busy the machine is, for the head of a table: the averages of 1, 5 and 15 minutes.
pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// The sample below which this share of all lies, in milliseconds; 0 without samples.
pub fn percentile_ms(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * share).round() as usize;
    sorted.get(place).map_or(0.0, |sample| sample.as_secs_f64() * 1000.0)
}

/// The middle one, or the mean of the two in the middle; 0 without samples.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => 0.0,
        (middle, 0) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        (middle, _) => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), 3.0);
    }

    #[test]
    fn percentiles_are_of_the_samples() {
        let sorted: Vec<Duration> = (1..=101).map(Duration::from_millis).collect();
        assert_eq!(percentile_ms(&sorted, 0.0), 1.0);
        assert_eq!(percentile_ms(&sorted, 0.5), 51.0);
        assert_eq!(percentile_ms(&sorted, 0.99), 100.0);
        assert_eq!(percentile_ms(&sorted, 1.0), 101.0);
        assert_eq!(percentile_ms(&[], 0.5), 0.0);
    }
}
