//! `holdfast record`: people's records.

mod export;
mod feed;
mod import;
mod one;
mod watch;

pub use self::export::{export_to, live_records};
use clap::Subcommand;
use holdfast_client::{RecordRef, v1};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::commands::connect::ClientArgs;
use crate::exit::Exit;
use crate::output::Format;

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Record {
    /// Create or replace a record.
    Put(one::PutArgs),
    /// Read a record; exit 7 if there is none.
    Get(one::GetArgs),
    /// List a collection.
    Ls(feed::LsArgs),
    /// Delete a record; a tombstone stays for devices that are away.
    Rm(one::RmArgs),
    /// What changed since a token; without one, everything there is.
    Changes(feed::ChangesArgs),
    /// Stay, and tell which users have changes.
    Watch(watch::WatchArgs),
    /// Store the cards and entries of vCard and iCalendar files.
    Import(import::Args),
    /// Write all records of a user to files that other programs read.
    Export(export::Args),
}

/// Which user, where.
#[derive(Debug, clap::Args)]
pub struct UserArgs {
    #[command(flatten)]
    connect: ClientArgs,
    /// Owner of the records.
    #[arg(long)]
    user: String,
}

/// Which record, where.
#[derive(Debug, clap::Args)]
pub struct RecordArgs {
    #[command(flatten)]
    user: UserArgs,
    /// contacts, events, todos, notes, photos, or x-….
    #[arg(long)]
    collection: String,
    /// Id inside the collection.
    #[arg(long)]
    id: String,
}

impl RecordArgs {
    fn record(&self) -> RecordRef<'_> {
        RecordRef { user: &self.user.user, collection: &self.collection, record_id: &self.id }
    }
}

/// Runs a command.
pub async fn run(format: Format, command: Record) -> anyhow::Result<Exit> {
    match command {
        Record::Put(args) => one::put(format, &args).await,
        Record::Get(args) => one::get(format, &args).await,
        Record::Ls(args) => feed::list(format, &args).await,
        Record::Rm(args) => one::remove(format, &args).await,
        Record::Changes(args) => feed::changes(format, &args).await,
        Record::Watch(args) => watch::run(format, &args).await,
        Record::Import(args) => import::run(format, &args).await,
        Record::Export(args) => export::run(format, &args).await,
    }
}

/// A record as programs read it, one per line.
#[derive(Debug, Serialize)]
struct RecordLine<'a> {
    collection: &'a str,
    id: &'a str,
    version: u64,
    content_type: &'a str,
    size: Option<usize>,
    /// `null` on tombstones and where no payload was asked for.
    sha256: Option<String>,
    deleted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> RecordLine<'a> {
    /// `has_payload`: the payload was asked for.
    fn new(record: &'a v1::Record, has_payload: bool) -> Self {
        let (collection, id) = key_of(record);
        let deleted = record.delete_time.is_some();
        let there = has_payload && !deleted;
        Self {
            collection,
            id,
            version: record.version,
            content_type: &record.content_type,
            size: there.then_some(record.payload.len()),
            sha256: there.then(|| sha256_hex(&record.payload)),
            deleted,
            payload_base64: None,
        }
    }

    fn with_payload(mut self, record: &v1::Record) -> Self {
        use base64::Engine;
        if !self.deleted {
            self.payload_base64 = Some(base64::engine::general_purpose::STANDARD.encode(&record.payload));
        }
        self
    }
}

fn key_of(record: &v1::Record) -> (&str, &str) {
    record.key.as_ref().map_or(("", ""), |key| (key.collection.as_str(), key.record_id.as_str()))
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    holdfast_archive::layout::hex(&Sha256::digest(bytes))
}
