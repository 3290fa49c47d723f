//! `record put`, `get` and `rm`: one record each.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use holdfast_client::v1;
use holdfast_client::v1::precondition::Check;
use serde::Serialize;
use uuid::Uuid;

use super::{RecordArgs, RecordLine, key_of};
use crate::atomic_file;
use crate::exit::{Exit, failure};
use crate::output::{self, Format};

/// Flags of `put`.
#[derive(Debug, clap::Args)]
pub struct PutArgs {
    #[command(flatten)]
    record: RecordArgs,
    /// File with the payload, at most 1 MiB; - reads stdin.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Media type [default: by the file's name].
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    #[command(flatten)]
    guard: GuardArgs,
}

/// Flags of `rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    #[command(flatten)]
    record: RecordArgs,
    #[command(flatten)]
    guard: GuardArgs,
}

/// Conditions of a write; when one fails nothing is written and the exit code is 8.
#[derive(Debug, clap::Args)]
pub struct GuardArgs {
    /// Only if the stored version is this one (epoch:counter or a number). Needs --if-incarnation.
    #[arg(long, value_name = "VERSION", value_parser = parse_version, requires = "if_incarnation")]
    if_version: Option<u64>,
    /// History that --if-version speaks of.
    #[arg(long, value_name = "ID")]
    if_incarnation: Option<u64>,
    /// Only if no live record is there.
    #[arg(long, conflicts_with_all = ["if_version", "if_exists"])]
    if_absent: bool,
    /// Only if a live record is there.
    #[arg(long, conflicts_with = "if_version")]
    if_exists: bool,
    /// UUID of this write [default: a random one]. The same id writes once, however often it is sent.
    #[arg(long, value_name = "UUID")]
    request_id: Option<Uuid>,
}

impl GuardArgs {
    fn check(&self) -> Option<Check> {
        match (self.if_version, self.if_absent, self.if_exists) {
            (Some(version), _, _) => Some(Check::Version(version)),
            (None, true, _) => Some(Check::Absent(true)),
            (None, false, true) => Some(Check::Exists(true)),
            (None, false, false) => None,
        }
    }
}

/// Flags of `get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    #[command(flatten)]
    record: RecordArgs,
    /// Write the payload to this file [default: stdout].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Accept an answer up to this old, in milliseconds, from any node [default: newest, confirmed by a quorum].
    #[arg(long, value_name = "MS")]
    max_staleness_ms: Option<u32>,
}

fn parse_version(text: &str) -> Result<u64, String> {
    let wrong = || "write it as epoch:counter, or as one number".to_owned();
    match text.split_once(':') {
        None => text.parse().map_err(|_| wrong()),
        Some((epoch, counter)) => {
            let epoch: u16 = epoch.parse().map_err(|_| wrong())?;
            let counter = counter.parse::<u64>().ok().filter(|counter| counter >> 48 == 0).ok_or_else(wrong)?;
            Ok(u64::from(epoch) << 48 | counter)
        }
    }
}

#[derive(Debug, Serialize)]
struct Written<'a> {
    v: u32,
    collection: &'a str,
    id: &'a str,
    version: u64,
    changed: bool,
    replayed: bool,
    commit_index: u64,
    incarnation: u64,
    request_id: String,
}

/// Creates or replaces.
pub async fn put(format: Format, args: &PutArgs) -> anyhow::Result<Exit> {
    let payload = read_payload(&args.file)?;
    let content_type = args.content_type.clone().unwrap_or_else(|| content_type_of(&args.file).to_owned());
    let put = v1::PutOp { content_type, payload: payload.into(), ..Default::default() };
    write(format, &args.record, &args.guard, v1::mutation::Op::Put(put)).await
}

/// Deletes.
pub async fn remove(format: Format, args: &RmArgs) -> anyhow::Result<Exit> {
    write(format, &args.record, &args.guard, v1::mutation::Op::Delete(v1::DeleteOp {})).await
}

async fn write(format: Format, args: &RecordArgs, guard: &GuardArgs, op: v1::mutation::Op) -> anyhow::Result<Exit> {
    let deleting = matches!(op, v1::mutation::Op::Delete(_));
    let record = args.record();
    let precondition = guard.check().map(|check| v1::Precondition { check: Some(check) });
    let request_id = guard.request_id.unwrap_or_else(Uuid::new_v4).to_string();
    let request = v1::BatchWriteRequest {
        user_id: record.user.to_owned(),
        request_id: request_id.clone(),
        mutations: vec![v1::Mutation { key: Some(record.key()), op: Some(op), precondition }],
        if_incarnation: guard.if_incarnation.unwrap_or(0),
        ..Default::default()
    };
    let answer = args.user.connect.client()?.write(request).await?;
    let result = answer.results.first().copied().unwrap_or_default();
    let written = Written {
        v: 1,
        collection: record.collection,
        id: record.record_id,
        version: result.version,
        changed: result.changed,
        replayed: answer.replayed,
        commit_index: answer.commit_index,
        incarnation: answer.header.map_or(0, |header| header.incarnation),
        request_id,
    };
    output::answer(format, &written, || {
        let name = format!("{}/{}", record.collection, record.record_id);
        let version = output::version(written.version);
        match (written.changed, deleting) {
            (true, false) => format!("{name} is stored as version {version}"),
            (true, true) => format!("{name} is deleted in version {version}"),
            (false, false) => format!("{name} was already the same, version {version}; nothing was written"),
            (false, true) => format!("{name} was not there; nothing was written"),
        }
    })?;
    Ok(Exit::Ok)
}

/// Reads.
pub async fn get(format: Format, args: &GetArgs) -> anyhow::Result<Exit> {
    let record = args.record.record();
    let level = args.max_staleness_ms.map(v1::read_consistency::Level::MaxStalenessMs);
    let request = v1::BatchGetRecordsRequest {
        user_id: record.user.to_owned(),
        keys: vec![record.key()],
        consistency: level.map(|level| v1::ReadConsistency { level: Some(level) }),
        ..Default::default()
    };
    let found = args.record.user.connect.client()?.read(request).await?.records.into_iter().next();
    let name = format!("{}/{} of {}", record.collection, record.record_id, record.user);
    let Some(found) = found else {
        return Err(failure(Exit::NotFound, format!("there is no {name}")));
    };
    if found.delete_time.is_some() {
        let message = format!("{name} was deleted in version {}", output::version(found.version));
        return Err(failure(Exit::NotFound, message));
    }
    if let Some(out) = &args.out {
        atomic_file::write(out, &found.payload)?;
    }
    let line = RecordLine::new(&found, true);
    match (format, &args.out) {
        (Format::Table, None) => std::io::stdout().lock().write_all(&found.payload)?,
        (Format::Table, Some(out)) => output::text(format!(
            "{}/{}, version {}, {} of {} in {}",
            key_of(&found).0,
            key_of(&found).1,
            output::version(found.version),
            output::bytes(found.payload.len() as u64),
            found.content_type,
            out.display()
        ))?,
        (Format::Json | Format::Jsonl, Some(_)) => output::line(&line)?,
        (Format::Json | Format::Jsonl, None) => output::line(&line.with_payload(&found))?,
    }
    Ok(Exit::Ok)
}

fn read_payload(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut payload = Vec::new();
        std::io::stdin().lock().read_to_end(&mut payload).context("read stdin")?;
        return Ok(payload);
    }
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

/// Media type by the name's ending.
fn content_type_of(file: &Path) -> &'static str {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "vcf" | "vcard" => "text/vcard",
        "ics" => "text/calendar",
        "txt" => "text/plain",
        "md" => "text/markdown",
        "json" => "application/json",
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "heic" => "image/heic",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_both_ways() {
        assert_eq!(parse_version("1:5"), Ok((1 << 48) | 5));
        assert_eq!(parse_version("281474976710661"), Ok((1 << 48) | 5));
        for wrong in ["", "1:", ":5", "70000:1", "1:281474976710656", "x"] {
            assert!(parse_version(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn media_types_follow_the_name() {
        assert_eq!(content_type_of(Path::new("a/B.VCF")), "text/vcard");
        assert_eq!(content_type_of(Path::new("-")), "application/octet-stream");
    }
}
