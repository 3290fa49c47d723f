//! Who is compared, and one way to speak to all of them.

use std::path::Path;

use bytes::Bytes;
use holdfast_benches::servers::Servers;
use holdfast_client::Client;
use serde::{Deserialize, Serialize};

use crate::etcd::{Etcd, Kv};
use crate::holdfast::{self, Holdfast};
use crate::postgres::{Postgres, Session};

/// HTTP/2 connections: one for so many clients, to Holdfast and etcd alike. A frontend has a few, not one for each person.
const CLIENTS_A_CONNECTION: usize = 16;
/// Streams that all writers share.
const STREAMS: usize = 16;

/// Who.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// This.
    Holdfast,
    /// Debian's `etcd-server`.
    Etcd,
    /// Debian's `postgresql-15`.
    Postgres,
}

impl Who {
    /// In the order of tables.
    pub const ALL: [Self; 3] = [Self::Holdfast, Self::Etcd, Self::Postgres];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holdfast => "Holdfast",
            Self::Etcd => "etcd",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// A peer that runs.
pub enum Peer {
    /// Three nodes.
    Holdfast(Box<Holdfast>),
    /// Three members.
    Etcd(Etcd),
    /// Primary and standbys.
    Postgres(Postgres),
}

impl Peer {
    /// Starts it.
    pub async fn start(who: Who, holdfast: &Path) -> anyhow::Result<Self> {
        Ok(match who {
            Who::Holdfast => Self::Holdfast(Box::new(Holdfast::start(holdfast)?)),
            Who::Etcd => Self::Etcd(Etcd::start().await?),
            Who::Postgres => Self::Postgres(Postgres::start().await?),
        })
    }

    /// Its processes.
    pub fn servers(&self) -> Servers {
        Servers::new(match self {
            Self::Holdfast(peer) => peer.pids(),
            Self::Etcd(peer) => peer.pids(),
            Self::Postgres(peer) => peer.pids(),
        })
    }

    /// A link for each client, over new connections. `streams`: Holdfast's writes share streams.
    pub async fn links(&self, clients: usize, streams: bool) -> anyhow::Result<Vec<Link>> {
        let connections = clients.div_ceil(CLIENTS_A_CONNECTION);
        let few: Vec<Link> = match self {
            // As a frontend does: streams make more connections needless.
            Self::Holdfast(peer) if streams => {
                peer.links(1)?.into_iter().map(|client| Link::Holdfast(client.streaming(STREAMS))).collect()
            }
            Self::Holdfast(peer) => peer.links(connections)?.into_iter().map(Link::Holdfast).collect(),
            Self::Etcd(peer) => peer.links(connections).await?.into_iter().map(Link::Etcd).collect(),
            Self::Postgres(peer) => peer.links(clients).await?.into_iter().map(Link::Postgres).collect(),
        };
        Ok((0..clients).map(|number| few[number % few.len()].clone()).collect())
    }
}

/// What a client calls.
#[derive(Clone)]
pub enum Link {
    /// Its own client library.
    Holdfast(Client),
    /// Bare gRPC.
    Etcd(Kv),
    /// A connection of its own.
    Postgres(Session),
}

impl Link {
    /// Stores a record.
    pub async fn put(&self, user: &str, id: &str, value: Bytes) -> anyhow::Result<()> {
        match self {
            Self::Holdfast(client) => Ok(holdfast::put(client, user, id, value).await?),
            Self::Etcd(kv) => Ok(kv.put(user, id, value).await?),
            Self::Postgres(session) => session.put(user, id, &value).await,
        }
    }

    /// Stores several records of a user, together or not at all.
    pub async fn batch(&self, user: &str, records: Vec<(String, Bytes)>) -> anyhow::Result<()> {
        match self {
            Self::Holdfast(client) => Ok(holdfast::batch(client, user, records).await?),
            Self::Etcd(kv) => kv.batch(user, records).await,
            Self::Postgres(session) => session.batch(user, &records).await,
        }
    }

    /// Bytes of a record as it is now.
    pub async fn get(&self, user: &str, id: &str) -> anyhow::Result<usize> {
        match self {
            Self::Holdfast(client) => holdfast::get(client, user, id).await,
            Self::Etcd(kv) => kv.get(user, id).await,
            Self::Postgres(session) => session.get(user, id).await,
        }
    }

    /// Number of records of a user, contents read.
    pub async fn list(&self, user: &str) -> anyhow::Result<usize> {
        match self {
            Self::Holdfast(client) => holdfast::list(client, user).await,
            Self::Etcd(kv) => kv.list(user).await,
            Self::Postgres(session) => session.list(user).await,
        }
    }
}
