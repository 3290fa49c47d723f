//! etcd as a peer: three members on loopback, with the settings that it has by itself.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use jepsen_tests::cluster::{Orphan, Ports, spawn};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::etcd_api as api;

/// Its keyspace may grow to this: by default it refuses writes at 2 GiB.
const QUOTA_BYTES: u64 = 32 << 30;
const READY_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// For one question to one member about itself.
const STATUS_WITHIN: Duration = Duration::from_secs(1);
const WINDOW_BYTES: u32 = 1 << 20;

/// Three members.
pub struct Etcd {
    members: Vec<Member>,
    ports: Ports,
    dir: tempfile::TempDir,
}

struct Member {
    child: Option<Child>,
    channel: Channel,
}

impl Etcd {
    /// Starts and founds a cluster.
    pub async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports = Ports::claim().context("no thirty free ports in a row")?;
        let mut etcd = Self { members: Vec::new(), ports, dir };
        for place in 0..3 {
            let child = Some(etcd.spawn(place)?);
            let channel = channel(&etcd.client_address(place))?;
            etcd.members.push(Member { child, channel });
        }
        let end = Instant::now() + READY_WITHIN;
        loop {
            if etcd.leader_now().await.is_some() && etcd.statuses().await.len() == 3 {
                return Ok(etcd);
            }
            ensure!(Instant::now() < end, "etcd is not ready; it says: {}", etcd.said());
            tokio::time::sleep(POLL).await;
        }
    }

    fn client_address(&self, place: u16) -> String {
        format!("127.0.0.1:{}", self.ports.base + place * 10)
    }

    fn peer_url(&self, place: u16) -> String {
        format!("http://127.0.0.1:{}", self.ports.base + place * 10 + 1)
    }

    fn spawn(&self, place: u16) -> anyhow::Result<Child> {
        let client = format!("http://{}", self.client_address(place));
        let peer = self.peer_url(place);
        let all: Vec<String> = (0..3).map(|place| format!("m{place}={}", self.peer_url(place))).collect();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(place))?;
        let mut command = Command::new("etcd");
        command.args(["--name", &format!("m{place}")]).arg("--data-dir").arg(self.dir.path().join(format!("m{place}")));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"]);
        command.args(["--quota-backend-bytes", &QUOTA_BYTES.to_string()]);
        // It takes settings from there, which are not those it has by itself.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ETCD_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        spawn(command, Orphan::Killed).context("start etcd")
    }

    fn log(&self, place: u16) -> std::path::PathBuf {
        self.dir.path().join(format!("m{place}.log"))
    }

    /// The end of what it said last.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(self.log(0)).unwrap_or_default();
        text.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
    }

    /// Its processes that run.
    pub fn pids(&self) -> Vec<i32> {
        let running = self.members.iter().filter_map(|member| member.child.as_ref());
        running.filter_map(|child| i32::try_from(child.id()).ok()).collect()
    }

    async fn status(&self, place: usize) -> Option<api::StatusResponse> {
        let asked = api::status(&self.members[place].channel);
        tokio::time::timeout(STATUS_WITHIN, asked).await.ok()?.ok()
    }

    async fn statuses(&self) -> Vec<(usize, api::StatusResponse)> {
        let mut found = Vec::new();
        for place in 0..self.members.len() {
            found.extend(self.status(place).await.map(|status| (place, status)));
        }
        found
    }

    /// Place of the member that says that it leads.
    pub async fn leader_now(&self) -> Option<usize> {
        let statuses = self.statuses().await;
        let leads = |status: &api::StatusResponse| {
            status.leader != 0 && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
        };
        statuses.into_iter().find(|(_, status)| leads(status)).map(|(place, _)| place)
    }

    /// The same, waiting for one.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            if let Some(leader) = self.leader_now().await {
                return Ok(leader);
            }
            ensure!(Instant::now() < end, "etcd has no leader");
            tokio::time::sleep(POLL).await;
        }
    }

    /// `kill -9` of one member.
    pub fn kill(&mut self, place: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.members[place].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts a killed member again.
    pub fn restart(&mut self, place: usize) -> anyhow::Result<()> {
        self.members[place].child = Some(self.spawn(u16::try_from(place)?)?);
        Ok(())
    }

    /// Until all members applied the same, or nearly: writes go on.
    pub async fn wait_caught_up(&self) -> anyhow::Result<()> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            let statuses = self.statuses().await;
            let applied = statuses.iter().map(|(_, status)| status.raft_applied_index);
            if let (3, Some(least), Some(most)) = (statuses.len(), applied.clone().min(), applied.max())
                && most - least <= 1000
            {
                return Ok(());
            }
            ensure!(Instant::now() < end, "a member of etcd does not catch up");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Hands leadership to another member.
    pub async fn move_leader(&self) -> anyhow::Result<()> {
        let leader = self.leader().await?;
        let (_, target) =
            self.statuses().await.into_iter().find(|(place, _)| *place != leader).context("no other member")?;
        let target = target.header.context("an answer without a header")?.member_id;
        api::move_leader(&self.members[leader].channel, target).await?;
        Ok(())
    }

    /// Connections to the leader, as Holdfast's client sends to the leader: there etcd answers soonest, since others would
    /// pass each call on to it.
    pub async fn links(&self, connections: usize) -> anyhow::Result<Vec<Kv>> {
        let address = self.client_address(u16::try_from(self.leader().await?)?);
        (0..connections).map(|_| Ok(Kv { channels: vec![channel(&address)?] })).collect()
    }

    /// One that goes to the next member when one does not answer.
    pub fn link_to_all(&self) -> anyhow::Result<Kv> {
        let channels = (0..3).map(|place| channel(&self.client_address(place)));
        Ok(Kv { channels: channels.collect::<Result<_, _>>()? })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// As Holdfast's client sets up its channels.
fn channel(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(1));
    let endpoint = endpoint.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES * 8);
    Ok(endpoint.tcp_nodelay(true).connect_lazy())
}

/// Calls of one client.
#[derive(Clone)]
pub struct Kv {
    channels: Vec<Channel>,
}

/// A record's key: those of a user's collection are neighbours.
fn key(user: &str, id: &str) -> Bytes {
    format!("{user}/notes/{id}").into()
}

impl Kv {
    /// Stores a record.
    pub async fn put(&self, user: &str, id: &str, value: Bytes) -> Result<(), Status> {
        api::put(&self.channels[0], api::PutRequest { key: key(user, id), value }).await.map(drop)
    }

    /// Tries one member after the other, each for a time, until one says yes or the end has come.
    pub async fn put_somewhere(
        &self,
        at: &mut usize,
        (user, id): (&str, &str),
        value: Bytes,
        attempt: Duration,
        end: Instant,
    ) -> anyhow::Result<()> {
        while Instant::now() < end {
            let channel = &self.channels[*at % self.channels.len()];
            let call = api::put(channel, api::PutRequest { key: key(user, id), value: value.clone() });
            let began = Instant::now();
            if let Ok(Ok(_)) = tokio::time::timeout(attempt, call).await {
                return Ok(());
            }
            *at += 1;
            // Where nobody listens the answer comes at once.
            tokio::time::sleep(POLL.saturating_sub(began.elapsed())).await;
        }
        bail!("no member of etcd took a put in time")
    }

    /// Stores several records of a user together.
    pub async fn batch(&self, user: &str, records: Vec<(String, Bytes)>) -> anyhow::Result<()> {
        let put = |(id, value): (String, Bytes)| api::PutRequest { key: key(user, &id), value };
        let success = records.into_iter().map(|record| api::RequestOp { request_put: Some(put(record)) }).collect();
        let done = api::txn(&self.channels[0], api::TxnRequest { success }).await?;
        ensure!(done.succeeded, "a transaction without conditions failed");
        Ok(())
    }

    /// Bytes of a record.
    pub async fn get(&self, user: &str, id: &str) -> anyhow::Result<usize> {
        let found =
            api::range(&self.channels[0], api::RangeRequest { key: key(user, id), ..Default::default() }).await?;
        Ok(found.kvs.first().context("the record is not there")?.value.len())
    }

    /// Number of records of a user.
    pub async fn list(&self, user: &str) -> anyhow::Result<usize> {
        // '0' follows '/'.
        let request = api::RangeRequest { key: key(user, ""), range_end: format!("{user}/notes0").into() };
        Ok(api::range(&self.channels[0], request).await?.kvs.len())
    }

    /// Ids of all records of a user.
    pub async fn ids(&self, user: &str) -> anyhow::Result<Vec<String>> {
        let prefix = key(user, "");
        let request = api::RangeRequest { key: prefix.clone(), range_end: format!("{user}/notes0").into() };
        let found = api::range(&self.channels[0], request).await?.kvs;
        Ok(found.iter().map(|kv| String::from_utf8_lossy(&kv.key[prefix.len()..]).into_owned()).collect())
    }
}
