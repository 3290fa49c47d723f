//! Holdfast as it is run: request ids, digests, change rows and shipping to a folder are on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use holdfast_client::{Client, RecordRef, v1};
use jepsen_tests::cluster::Cluster;

/// Of all payloads.
const CONTENT_TYPE: &str = "application/octet-stream";

/// Three nodes and their offsite folder.
pub struct Holdfast {
    /// The nodes.
    pub cluster: Cluster,
    // Behind the cluster: its processes end first.
    _dir: tempfile::TempDir,
}

impl Holdfast {
    /// Starts and founds a cluster.
    pub fn start(binary: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let offsite = format!("file://{}", dir.path().join("offsite").display());
        std::fs::create_dir(dir.path().join("offsite"))?;
        let cluster = Cluster::start(binary, &dir.path().join("c"), &["--offsite", &offsite])?;
        Ok(Self { cluster, _dir: dir })
    }

    /// Its processes that run.
    pub fn pids(&self) -> Vec<i32> {
        self.cluster.nodes.iter().map(|node| node.pid).filter(|pid| jepsen_tests::cluster::is_alive(*pid)).collect()
    }

    /// Clients with connections of their own; each finds the leader by itself.
    pub fn links(&self, connections: usize) -> anyhow::Result<Vec<Client>> {
        (0..connections).map(|_| self.link(Duration::from_secs(10))).collect()
    }

    /// A client whose calls may take this long.
    pub fn link(&self, deadline: Duration) -> anyhow::Result<Client> {
        let endpoints = self.cluster.nodes.iter().map(|node| node.client.clone());
        Ok(Client::builder().endpoints(endpoints).deadline(deadline).build()?)
    }
}

fn record<'a>(user: &'a str, id: &'a str) -> RecordRef<'a> {
    RecordRef { user, collection: "notes", record_id: id }
}

/// Stores a record.
pub async fn put(client: &Client, user: &str, id: &str, value: Bytes) -> Result<(), holdfast_client::Error> {
    client.put(record(user, id), CONTENT_TYPE, value).await.map(drop)
}

/// Stores several records of a user together.
pub async fn batch(client: &Client, user: &str, records: Vec<(String, Bytes)>) -> Result<(), holdfast_client::Error> {
    let put = |(id, payload): (String, Bytes)| {
        let put = v1::PutOp { content_type: CONTENT_TYPE.to_owned(), payload, ..Default::default() };
        let key = Some(record(user, &id).key());
        v1::Mutation { key, op: Some(v1::mutation::Op::Put(put)), precondition: None }
    };
    let mutations = records.into_iter().map(put).collect();
    client.write(v1::BatchWriteRequest { user_id: user.to_owned(), mutations, ..Default::default() }).await.map(drop)
}

/// Bytes of a record.
pub async fn get(client: &Client, user: &str, id: &str) -> anyhow::Result<usize> {
    Ok(client.get(record(user, id)).await?.context("the record is not there")?.payload.len())
}

/// Number of records of a user.
pub async fn list(client: &Client, user: &str) -> anyhow::Result<usize> {
    let request = v1::ListRecordsRequest {
        user_id: user.to_owned(),
        collection: "notes".to_owned(),
        page_size: 1000,
        ..Default::default()
    };
    Ok(client.list_all(request).await?.len())
}

/// How many of these records are there.
pub async fn count(client: &Client, user: &str, ids: &[String]) -> anyhow::Result<usize> {
    let keys = ids.iter().map(|id| record(user, id).key()).collect();
    let request = v1::BatchGetRecordsRequest { user_id: user.to_owned(), keys, ..Default::default() };
    let found = client.read_all(request).await?;
    ensure!(found.iter().all(|record| record.delete_time.is_none()), "a record of {user} is a tombstone");
    Ok(found.len())
}
