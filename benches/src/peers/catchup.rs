//! How long a follower that was away needs for what it missed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;

use crate::etcd::Etcd;
use crate::faults::caught_up;
use crate::figures::{Figures, Outcome};
use crate::holdfast::{self, Holdfast};
use crate::load::Payloads;
use crate::peer::Who;

/// Records that it missed.
const RECORDS: u64 = 20_000;
/// In a call; etcd takes at most 128.
const BATCH: u64 = 100;
const PAYLOAD_BYTES: usize = 1 << 10;

fn records(payloads: &Payloads, round: usize, from: u64) -> Vec<(String, Bytes)> {
    (from..from + BATCH).map(|n| (format!("r{round}-{n}"), payloads.of(n))).collect()
}

async fn of_holdfast(holdfast: &mut Holdfast, round: usize) -> anyhow::Result<f64> {
    let leader = holdfast.cluster.leader().await;
    let away = (0..holdfast.cluster.nodes.len()).find(|place| *place != leader).context("no follower")?;
    holdfast.cluster.kill(away);
    let (client, payloads) = (holdfast.link(Duration::from_secs(30))?, Payloads::new(PAYLOAD_BYTES));
    for from in (0..RECORDS).step_by(BATCH as usize) {
        holdfast::batch(&client, "missed", records(&payloads, round, from)).await?;
    }
    let began = Instant::now();
    holdfast.cluster.restart(away);
    caught_up(holdfast, away).await?;
    Ok(began.elapsed().as_secs_f64())
}

async fn of_etcd(etcd: &mut Etcd, round: usize) -> anyhow::Result<f64> {
    let leader = etcd.leader().await?;
    let away = (0..3).find(|place| *place != leader).context("no follower")?;
    etcd.kill(away)?;
    let (link, payloads) = (etcd.links(1).await?.remove(0), Payloads::new(PAYLOAD_BYTES));
    for from in (0..RECORDS).step_by(BATCH as usize) {
        link.batch("missed", records(&payloads, round, from)).await?;
    }
    let began = Instant::now();
    etcd.restart(away)?;
    etcd.wait_caught_up().await?;
    Ok(began.elapsed().as_secs_f64())
}

/// From the start of its process until it has what the others have.
///
/// # Errors
/// When a follower does not catch up.
pub async fn run(binary: &Path, who: &[Who], rounds: usize, outcome: &mut Outcome) -> anyhow::Result<()> {
    for who in who {
        let mut add = |took: f64| {
            eprintln!("  {} caught up in {took:.1} s", who.name());
            outcome.rounds.entry(*who).or_default().push(Figures::from([("caught_up_s".to_owned(), took)]));
        };
        if *who == Who::Etcd {
            match Etcd::start().await {
                Ok(mut etcd) => {
                    for round in 0..rounds {
                        add(of_etcd(&mut etcd, round).await?);
                    }
                }
                Err(error) => outcome.notes.push(format!("without {}: {error:#}", who.name())),
            }
        } else {
            let mut holdfast = Holdfast::start(binary)?;
            for round in 0..rounds {
                add(of_holdfast(&mut holdfast, round).await?);
            }
        }
    }
    Ok(())
}
