//! `record export`: all records of a user into files.
//!
//! Invariants: what is written is one consistent state of the user; files appear whole; no file is overwritten unless
//! the caller said so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use holdfast_client::{Client, Error, v1};

use super::feed::{FeedEnd, each_page};
use super::{UserArgs, key_of, sha256_hex};
use crate::atomic_file;
use crate::exit::{Exit, failure};
use crate::output::{self, Format};
use crate::portable::{ExportRecord, ExportSet, export_files};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Writes contacts.vcf, calendar.ics, records.jsonl (everything, with hashes) and files/ for whatever is neither. Payloads \
come back byte for byte.")]
pub struct Args {
    #[command(flatten)]
    user: UserArgs,
    /// Directory to write to; it is made if it is missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Overwrite files of an earlier export.
    #[arg(long)]
    force: bool,
}

/// Exports.
pub async fn run(format: Format, args: &Args) -> anyhow::Result<Exit> {
    let client = args.user.connect.client()?;
    let (records, restoring) = everything(&client, &args.user.user).await?;
    if records.is_empty() && restoring.is_empty() {
        return Err(failure(Exit::NotFound, format!("user {} has no records", args.user.user)));
    }
    let exported = export_to(&args.out, records, args.force).await?;
    for one in &restoring {
        eprintln!("collection {one} is still being restored: none of it is in this export");
    }
    let value = serde_json::json!({
        "v": 1, "records": exported.records, "files": exported.files, "unparseable": exported.unparseable,
        "collections_restoring": restoring,
    });
    output::answer(format, &value, || exported.in_words(&args.user.user, &args.out))?;
    Ok(if restoring.is_empty() { Exit::Ok } else { Exit::Partial })
}

/// A user's live records, as one consistent state.
pub struct Live {
    /// By collection and id.
    pub records: BTreeMap<(String, String), v1::Record>,
    /// Collections of which more is to come.
    pub restoring: Vec<String>,
    /// History that their versions are of.
    pub incarnation: u64,
}

/// All live records: the change feed from its beginning, followed to its end. Of collections that are still being restored
/// none: they are named.
pub async fn live_records(client: &Client, user: &str) -> anyhow::Result<Live> {
    let request = v1::GetChangesRequest {
        user_id: user.to_owned(),
        consistency: Some(v1::ReadConsistency {
            level: Some(v1::read_consistency::Level::Linearizable(v1::Linearizable {})),
        }),
        ..Default::default()
    };
    let whole = gather(client, request.clone()).await;
    let Err(error) = whole else { return whole };
    if error.downcast_ref::<Error>().is_none_or(|error| error.reason() != "COLLECTION_RESTORING") {
        return Err(error);
    }
    let known = gather(client, v1::GetChangesRequest { metadata_only: true, ..request.clone() }).await?;
    let others = known.records.keys().map(|(collection, _)| collection).filter(|name| !known.restoring.contains(name));
    let others: BTreeSet<&String> = others.collect();
    if others.is_empty() {
        return Ok(Live { records: BTreeMap::new(), ..known });
    }
    let others =
        gather(client, v1::GetChangesRequest { collections: others.into_iter().cloned().collect(), ..request });
    Ok(Live { restoring: known.restoring, ..others.await? })
}

async fn gather(client: &Client, request: v1::GetChangesRequest) -> anyhow::Result<Live> {
    let mut live = Live { records: BTreeMap::new(), restoring: Vec::new(), incarnation: 0 };
    let end = each_page(client, request, |header, page| {
        live.incarnation = header.incarnation;
        for record in &page.records {
            let (collection, id) = key_of(record);
            let key = (collection.to_owned(), id.to_owned());
            // A record that changes meanwhile comes again, in its newer state.
            if record.delete_time.is_some() {
                live.records.remove(&key);
            } else {
                live.records.insert(key, record.clone());
            }
        }
        Ok(())
    });
    live.restoring = match end.await? {
        FeedEnd::Page(page) => page.collections_restoring,
        FeedEnd::Resync(_) => anyhow::bail!("the cluster was restored while it was read; run it again"),
    };
    Ok(live)
}

async fn everything(client: &Client, user: &str) -> anyhow::Result<(Vec<ExportRecord>, Vec<String>)> {
    let Live { records, restoring, .. } = live_records(client, user).await?;
    let records = records.into_iter().map(|((collection, record_id), record)| ExportRecord {
        collection,
        record_id,
        version: record.version,
        content_type: record.content_type,
        sha256_hex: sha256_hex(&record.payload),
        update_time_ms: record.update_time.map_or(0, |time| holdfast_wire::reply::millis(&time)),
        payload: record.payload.into(),
    });
    Ok((records.collect(), restoring))
}

/// What an export wrote.
pub struct Exported {
    /// How many records.
    pub records: usize,
    /// Names of files below the directory.
    pub files: Vec<String>,
    /// What could not go where its content type says.
    pub unparseable: Vec<String>,
}

impl Exported {
    /// `whose`: the person, and the moment if it is not now.
    pub fn in_words(&self, whose: &str, out: &Path) -> String {
        let (others, named): (Vec<&str>, Vec<&str>) =
            self.files.iter().map(String::as_str).partition(|name| name.starts_with("files/"));
        let (records, listed, others) = (self.records, named.join(", "), others.len());
        format!("{records} records of {whose} in {}: {listed}, and {others} files under files/", out.display())
    }
}

/// Writes records to files that other programs read, and names on stderr what could not go where its content type says.
pub async fn export_to(out: &Path, records: Vec<ExportRecord>, force: bool) -> anyhow::Result<Exported> {
    let count = records.len();
    let ExportSet { files, unparseable } = tokio::task::spawn_blocking(move || export_files(&records)).await?;
    write_all(out, &files, force)?;
    for one in &unparseable {
        eprintln!("{one}");
    }
    Ok(Exported { records: count, files: files.into_iter().map(|(name, _)| name).collect(), unparseable })
}

/// Writes the files of an export; none that is there already, unless `force`.
fn write_all(out: &Path, files: &[(String, Vec<u8>)], force: bool) -> anyhow::Result<()> {
    let there = files.iter().map(|(name, _)| out.join(name)).find(|path| path.symlink_metadata().is_ok());
    if let Some(there) = there.filter(|_| !force) {
        let message = format!(
            "{} is there already: nothing was written; name an empty directory, or overwrite with --force",
            there.display()
        );
        return Err(failure(Exit::Conflict, message));
    }
    std::fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    for (name, bytes) in files {
        let path = out.join(name);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        atomic_file::write(&path, bytes)?;
    }
    atomic_file::sync_dir(out).with_context(|| format!("sync {}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten_unasked() {
        let dir = tempfile::tempdir().expect("temp");
        let files = vec![("a.vcf".to_owned(), b"1".to_vec()), ("files/x/b".to_owned(), b"2".to_vec())];
        write_all(dir.path(), &files, false).expect("writes");
        assert_eq!(std::fs::read(dir.path().join("files/x/b")).expect("reads"), b"2");
        let error = write_all(dir.path(), &files, false).expect_err("is there");
        assert_eq!(crate::exit::exit_of(&error), Exit::Conflict);
        write_all(dir.path(), &files, true).expect("overwrites");
    }
}
