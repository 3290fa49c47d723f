//! A user with records, and the feed of their changes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use holdfast_client::{Client, SyncOutcome, v1};
use jepsen_tests::cluster::Node;
use tokio::task::JoinSet;

use crate::measure::cpu;
use crate::puts::incompressible;

/// Mutations a batch may have.
const BATCH: u64 = 500;
const LOADERS: usize = 6;
/// After loading, servers compact; they are idle when each uses less than this in a second, as it does by heartbeats.
const IDLE: Duration = Duration::from_millis(50);
const IDLE_WITHIN: Duration = Duration::from_secs(120);

/// A patient client with connections of its own.
///
/// # Errors
/// When an address is malformed.
pub fn client(nodes: &[Node]) -> anyhow::Result<Client> {
    let endpoints = nodes.iter().map(|node| node.client.clone());
    let patient = Client::builder().endpoints(endpoints).deadline(Duration::from_secs(60));
    Ok(patient.attempt_timeout(Duration::from_secs(10)).build()?)
}

/// Puts of these records. Another `content`, other payloads.
pub fn batch(user: &str, records: Range<u64>, content: u16, bytes: usize) -> v1::BatchWriteRequest {
    let put = |number: u64| {
        let payload = incompressible(number | u64::from(content) << 48, bytes);
        let key = v1::RecordKey { collection: "contacts".to_owned(), record_id: format!("c{number:08}") };
        let put = v1::PutOp { content_type: "text/vcard".to_owned(), payload: payload.into(), ..Default::default() };
        v1::Mutation { key: Some(key), op: Some(v1::mutation::Op::Put(put)), precondition: None }
    };
    v1::BatchWriteRequest { user_id: user.to_owned(), mutations: records.map(put).collect(), ..Default::default() }
}

/// Stores a user's records, from several connections.
///
/// # Errors
/// When a batch fails.
pub async fn load(nodes: &[Node], user: &'static str, records: u64, bytes: usize) -> anyhow::Result<()> {
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut loaders = JoinSet::new();
    for _ in 0..LOADERS {
        let (client, next) = (client(nodes)?, next.clone());
        loaders.spawn(async move {
            loop {
                let from = next.fetch_add(BATCH, Ordering::Relaxed);
                if from >= records {
                    return anyhow::Ok(());
                }
                let to = records.min(from + BATCH);
                client
                    .write(batch(user, from..to, 0, bytes))
                    .await
                    .with_context(|| format!("records {from} to {to}"))?;
                // Twenty lines at most.
                if from * 20 / records != to * 20 / records && records > BATCH * 20 {
                    eprintln!("{user}: {to} of {records} records, {:.0} s", began.elapsed().as_secs_f64());
                }
            }
        });
    }
    while let Some(done) = loaders.join_next().await {
        done??;
    }
    eprintln!("{user}: {records} records in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Waits until the servers have nothing left to do of what was stored.
///
/// # Errors
/// When a server is gone.
pub async fn settle(nodes: &[Node]) -> anyhow::Result<()> {
    let end = Instant::now() + IDLE_WITHIN;
    let mut before = cpu(nodes)?;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = cpu(nodes)?;
        if now - before < IDLE * u32::try_from(nodes.len())? {
            return Ok(());
        }
        if Instant::now() >= end {
            eprintln!("the servers are still busy after {} s; the figures include that", IDLE_WITHIN.as_secs());
            return Ok(());
        }
        before = now;
    }
}

/// What asks a quorum.
pub fn linearizable() -> v1::ReadConsistency {
    v1::ReadConsistency { level: Some(v1::read_consistency::Level::Linearizable(v1::Linearizable {})) }
}

/// Where the user's feed ends now. A listing's token saves reading a long feed.
///
/// # Errors
/// When no node answers, or says anything but what changed.
pub async fn newest_token(client: &Client, user: &str) -> anyhow::Result<String> {
    let listing = v1::ListRecordsRequest {
        user_id: user.to_owned(),
        collection: "contacts".to_owned(),
        page_size: 1,
        ..Default::default()
    };
    let first = client.list(listing).next_page().await?.context("a listing without a page")?;
    let mut request = v1::GetChangesRequest {
        user_id: user.to_owned(),
        sync_token: first.sync_token,
        consistency: Some(linearizable()),
        ..Default::default()
    };
    loop {
        let SyncOutcome::Page(page) = client.changes(request.clone()).await?.outcome else {
            bail!("{user} is to be synced anew, and nothing was restored");
        };
        request.sync_token = page.next_sync_token;
        if !page.more {
            return Ok(request.sync_token);
        }
    }
}
