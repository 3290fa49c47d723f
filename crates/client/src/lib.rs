//! Client of Holdfast for sync frontends: finds the leader, retries under one request id, and says in its errors what
//! the caller should do.
//!
//! Knows: the public API and how a cluster's nodes are reached. Never knows: Raft, disks, the internal protos.
//!
//! ```no_run
//! # async fn example() -> Result<(), holdfast_client::Error> {
//! use holdfast_client::{Client, RecordRef};
//! let client = Client::builder().endpoints(["127.0.0.1:7470", "127.0.0.1:7480"]).build()?;
//! let card = RecordRef { user: "ada", collection: "contacts", record_id: "c1" };
//! client.put(card, "text/vcard", "BEGIN:VCARD\r\n…").await?;
//! assert!(client.get(card).await?.is_some());
//! # Ok(()) }
//! ```
//!
//! A [`Client`] is cheap to clone and to share between any number of tasks: it holds one lazy channel per node and a
//! few atomics, and no lock.

mod admin;
mod builder;
mod client;
mod error;
mod nodes;
mod retry;
mod sync;

pub use admin::AdminClient;
pub use builder::ClientBuilder;
pub use client::{Client, ListPages, RecordRef};
pub use error::Error;
pub use holdfast_wire::v1;
pub use sync::{ChangesAnswer, SyncOutcome};
