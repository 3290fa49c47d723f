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
//! few atomics, and no lock. A [`Session`] is a client whose reads see what it saw before; a [`Watcher`] says which of
//! many users have changes.
//!
//! # A device that outlives its server
//!
//! A device keeps what the server acknowledged, with its versions, deletions included, and its place in the change feed
//! with the incarnation it belongs to. It syncs; if the server was lost and came back older, it is told so, and uploads
//! again what the server lost. Nothing on the device is deleted but by a tombstone. (The example `two_phones` does the
//! same with files, changes that wait to be sent, and every reason to resync.)
//!
//! ```no_run
//! use std::collections::BTreeMap;
//! use std::time::Duration;
//!
//! use holdfast_client::resync::{Kept, Rollback};
//! use holdfast_client::{Client, Error, SyncOutcome, v1};
//!
//! #[derive(Default)]
//! struct Device {
//!     /// By collection and record id; without content: deleted.
//!     records: BTreeMap<(String, String), Kept>,
//!     sync_token: String,
//!     incarnation: u64,
//! }
//!
//! impl Device {
//!     async fn sync(&mut self, client: &Client, user: &str, device: &str) -> Result<(), Error> {
//!         loop {
//!             let (user_id, sync_token) = (user.to_owned(), self.sync_token.clone());
//!             let request = v1::GetChangesRequest { user_id, sync_token, ..Default::default() };
//!             let answer = client.changes(request).await?;
//!             match answer.outcome {
//!                 SyncOutcome::Page(page) => {
//!                     page.records.into_iter().for_each(|record| self.apply(record));
//!                     // In this order: first what changed, durably, then the place.
//!                     (self.sync_token, self.incarnation) = (page.next_sync_token, answer.header.incarnation);
//!                     if !page.more {
//!                         // The server may now forget the tombstones that this device has.
//!                         client.ack_cursor(user, device, &self.sync_token).await?;
//!                         return Ok(());
//!                     }
//!                 }
//!                 SyncOutcome::Resync(info) if info.reason() == v1::ResyncReason::RolledBack => {
//!                     // The server spreads its devices, so that they do not all come at once.
//!                     tokio::time::sleep(Duration::from_millis(info.start_after_ms.into())).await;
//!                     let rollback = Rollback::new(user, device, self.incarnation, &info)?;
//!                     let report = client.restore(&rollback, self.records.values().cloned()).await?;
//!                     println!("{} records came back, {} are newer there", report.applied, report.conflicts.len());
//!                     // From here the server sends what it has above the common version, with its new versions.
//!                     self.sync_token = info.resume_token;
//!                 }
//!                 // See `resync` for the others. Whatever it is, the device keeps what it has.
//!                 SyncOutcome::Resync(info) => panic!("not in this example: {info:?}"),
//!             }
//!         }
//!     }
//!
//!     fn apply(&mut self, record: v1::Record) {
//!         let Some(key) = record.key else { return };
//!         let (content_type, payload) = (record.content_type, record.payload);
//!         let put = v1::PutOp { content_type, payload, ..Default::default() };
//!         let put = record.delete_time.is_none().then_some(put);
//!         let place = (key.collection.clone(), key.record_id.clone());
//!         self.records.insert(place, Kept { key, version: record.version, put });
//!     }
//! }
//!
//! # async fn example() -> Result<(), Error> {
//! let first = Client::builder().endpoints(["10.0.0.1:7470", "10.0.0.2:7470"]).build()?;
//! let mut phone = Device::default();
//! phone.sync(&first, "ada", "phone").await?;
//! // The cluster is lost, and restored from an older copy under other addresses.
//! let second = Client::builder().endpoints(["10.0.1.1:7470", "10.0.1.2:7470"]).build()?;
//! phone.sync(&second, "ada", "phone").await?;
//! # Ok(()) }
//! ```

mod account;
mod admin;
mod budget;
mod builder;
mod client;
mod error;
mod lanes;
mod manifest;
mod nodes;
pub mod resync;
mod retry;
mod session;
mod sync;
mod watch;

pub use admin::AdminClient;
pub use budget::RetryBudget;
pub use builder::ClientBuilder;
pub use client::{Client, ListPages, RecordRef};
pub use error::Error;
pub use holdfast_wire::v1;
pub use manifest::{Manifest, ManifestEnd, ManifestPart, ManifestView};
pub use session::Session;
pub use sync::{ChangesAnswer, SyncOutcome};
pub use watch::{WatchEvent, WatchOptions, Watcher};
