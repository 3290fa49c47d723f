//! How a server's memory moves under load.

use std::time::Duration;

use jepsen_tests::cluster::Node;
use tokio::sync::watch;

use crate::measure::{buffers_kib, resident_kib};

/// Seconds at either end of the load whose memory is compared.
const ENDS: usize = 10;

/// A node's memory at one moment.
#[derive(Debug)]
pub struct Sample {
    /// All that is resident.
    pub resident_kib: u64,
    /// Its memtables.
    pub memtable_kib: u64,
    /// Its cached blocks.
    pub cached_kib: u64,
}

impl Sample {
    async fn of(node: &Node) -> anyhow::Result<Self> {
        let (memtable_kib, cached_kib) = buffers_kib(node).await?;
        Ok(Self { resident_kib: resident_kib(node)?, memtable_kib, cached_kib })
    }

    /// What is no memtable and no cached block: those are bounded by what is set aside for them.
    pub fn rest_kib(&self) -> u64 {
        self.resident_kib.saturating_sub(self.memtable_kib + self.cached_kib)
    }
}

/// Memory of each node, once a second, until it is told to stop.
///
/// # Errors
/// When a server is gone or its metrics cannot be read.
pub async fn sample_memory(nodes: Vec<Node>, mut stop: watch::Receiver<bool>) -> anyhow::Result<Vec<Vec<Sample>>> {
    let mut samples: Vec<Vec<Sample>> = nodes.iter().map(|_| Vec::new()).collect();
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = clock.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(samples),
        }
        for (node, samples) in nodes.iter().zip(&mut samples) {
            samples.push(Sample::of(node).await?);
        }
    }
}

/// A node's memory over the load, in MiB.
#[derive(Debug)]
pub struct Memory {
    /// Mean of the first seconds, memtables and cached blocks left out.
    pub first: f64,
    /// Mean of the last ones.
    pub last: f64,
    /// All of it, at most.
    pub peak: f64,
}

impl Memory {
    /// Of these samples.
    pub fn of(samples: &[Sample]) -> Self {
        let ends = ENDS.min(samples.len());
        let mean = |samples: &[Sample]| {
            let rest = samples.iter().map(Sample::rest_kib).sum::<u64>();
            rest as f64 / samples.len().max(1) as f64 / 1024.0
        };
        let peak = samples.iter().map(|sample| sample.resident_kib).max().unwrap_or(0);
        Self { first: mean(&samples[..ends]), last: mean(&samples[samples.len() - ends..]), peak: peak as f64 / 1024.0 }
    }

    /// Between the ends.
    pub fn growth(&self) -> f64 {
        self.last - self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memtables_and_cached_blocks_are_no_growth() {
        let at = |second: u64| Sample {
            resident_kib: (100 + second) << 10,
            memtable_kib: (second / 2 + 10) << 10,
            cached_kib: (second - second / 2) << 10,
        };
        let memory = Memory::of(&(0..60).map(at).collect::<Vec<_>>());
        assert_eq!((memory.first, memory.last, memory.growth(), memory.peak), (90.0, 90.0, 0.0, 159.0));
        let memory = Memory::of(&[at(0), Sample { resident_kib: 130 << 10, ..at(0) }]);
        assert_eq!(memory.peak, 130.0, "fewer samples than two ends have");
    }
}
