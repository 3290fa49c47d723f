//! `restore user`: one person's records as they were at a point of the archive, as files or as new writes.
//!
//! Invariants:
//! - The whole history up to that point is restored into a folder of its own first, with every hash checked, and the person
//!   read from there: what comes out is what a restored cluster would show.
//! - Written back are new writes of this person alone, through the cluster's own front door, each guarded by what was there
//!   when it was looked at: what the person writes meanwhile is never overwritten unseen.
//! - Nothing is written before somebody confirmed it by the person's name, and what would be is told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use holdfast_archive::person::{Person, PersonRecord, read_person};
use holdfast_archive::{RestorePlan, RestoreTarget};
use holdfast_client::{Client, Error, v1};
use holdfast_model::id::{NodeId, UserId};
use serde::Serialize;

use super::restore::{PointArgs, fill_scratch};
use crate::cli::host_port;
use crate::clock;
use crate::commands::backup::GROUP;
use crate::commands::record::{export_to, live_records, sha256_hex};
use crate::exit::{Exit, failure};
use crate::output::{self, Format};
use crate::portable::ExportRecord;
use crate::progress;

/// Records and payload bytes in one batch.
const BATCH_RECORDS_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Flags of `user`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
As files, which `record import` and other programs read:
  holdfast restore user ann --from file:///mnt/vault/holdfast --at 2026-11-26T08:30:00Z --out ann
As new writes; without --confirm it says what would change, and changes nothing:
  holdfast restore user ann --from file:///mnt/vault/holdfast --at 2026-11-26T08:30:00Z \\
      --endpoint 10.0.0.1:7470,10.0.0.2:7470,10.0.0.3:7470 --confirm ann
Devices get them as they get any change. Everybody else's records are left alone.")]
#[command(group(clap::ArgGroup::new("target").required(true).args(["out", "endpoints"])))]
pub struct UserArgs {
    /// Whose.
    #[arg(value_name = "USER")]
    user: String,
    #[command(flatten)]
    point: PointArgs,
    /// Directory for files: contacts.vcf, calendar.ics, records.jsonl and files/; it is made if it is missing.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Overwrite files of an earlier export.
    #[arg(long, requires = "out")]
    force: bool,
    /// Client addresses of the cluster to write to.
    #[arg(long = "endpoint", value_name = "HOST:PORT[,…]", value_delimiter = ',', value_parser = host_port)]
    endpoints: Vec<String>,
    /// The person's name: write.
    #[arg(long, value_name = "USER", default_value = "", hide_default_value = true, conflicts_with = "out")]
    confirm: String,
    /// Keep records that the person had not yet at that point, instead of deleting them.
    #[arg(long, conflicts_with = "out")]
    keep_newer: bool,
    /// Folder for the restored history while this runs; it needs room for everybody's records, and what a run that was killed
    /// leaves there is called holdfast-restore-… [default: the system's for temporary files].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// Runs it.
pub async fn run(format: Format, args: &UserArgs) -> anyhow::Result<Exit> {
    let user = UserId::new(&args.user).map_err(|error| failure(Exit::Usage, format!("USER: {error}")))?;
    let (destination, choose) = args.point.open()?;
    let plan = holdfast_archive::plan(&destination, GROUP, choose).await?;
    let scratch = match &args.scratch {
        Some(dir) => tempfile::Builder::new().prefix("holdfast-restore-").tempdir_in(dir),
        None => tempfile::Builder::new().prefix("holdfast-restore-").tempdir(),
    };
    let scratch = scratch.context("make a folder for the restored history; name another with --scratch")?;
    let target = RestoreTarget { path: scratch.path().join("state"), node_id: 1, identity: [1; 16] };
    fill_scratch(&destination, &plan, &target, vec![NodeId(1)]).await?;
    let (path, named) = (target.path.clone(), user.clone());
    let person = tokio::task::spawn_blocking(move || read_person(&path, GROUP, &named)).await??;
    let gone = tokio::task::spawn_blocking(move || scratch.close());
    let person = person.ok_or_else(|| {
        let (user, last) = (&args.user, plan.last.index);
        failure(Exit::NotFound, format!("user {user} had written nothing up to index {last} of the archive"))
    })?;
    let exit = match &args.out {
        Some(out) => export(format, args, &plan, person, out).await,
        None => write_back(format, args, &plan, person).await,
    };
    gone.await?.context("remove the restored history")?;
    exit
}

async fn export(
    format: Format,
    args: &UserArgs,
    plan: &RestorePlan,
    person: Person,
    out: &std::path::Path,
) -> anyhow::Result<Exit> {
    let records = person.records.into_iter().map(exported).collect();
    let exported = export_to(out, records, args.force).await?;
    let value = serde_json::json!({
        "v": 1, "user": args.user, "lineage": plan.lineage.id.to_string(), "last_index": plan.last.index,
        "last_time": time_of(plan), "head_version": person.head.0, "records": exported.records,
        "files": exported.files, "unparseable": exported.unparseable,
    });
    output::answer(format, &value, || exported.in_words(&format!("{} at index {}", args.user, plan.last.index), out))?;
    Ok(Exit::Ok)
}

fn exported(record: PersonRecord) -> ExportRecord {
    ExportRecord {
        collection: record.key.collection.as_str().to_owned(),
        record_id: record.key.record_id.as_str().to_owned(),
        version: record.version.0,
        content_type: record.content_type,
        sha256_hex: sha256_hex(&record.payload),
        update_time_ms: record.update_time.0,
        payload: record.payload.into(),
    }
}

fn time_of(plan: &RestorePlan) -> Option<String> {
    Some(plan.last_stamp_ms).filter(|stamp| *stamp > 0).map(clock::rfc3339)
}

/// What is written back, as it is printed.
#[derive(Debug, Serialize)]
struct WriteAnswer {
    v: u32,
    user: String,
    lineage: String,
    last_index: u64,
    last_time: Option<String>,
    /// Live records at that point, without those whose time has run out since.
    records: usize,
    /// Records that are as they were.
    unchanged: usize,
    /// Records that are written.
    put: usize,
    /// Records that were not there yet, and are deleted.
    deleted: usize,
    /// Records that were not there yet, and are kept.
    kept: usize,
    /// It was done, and not only told.
    confirmed: bool,
}

impl WriteAnswer {
    fn in_words(&self) -> String {
        let Self { user, last_index, records, unchanged, put, deleted, kept, confirmed, .. } = self;
        let time = self.last_time.as_ref().map(|time| format!(" ({time})")).unwrap_or_default();
        let told = format!(
            "{user} had {records} records at index {last_index}{time}: {unchanged} are as they were, {put} are written \
             again, {deleted} that came later are deleted, {kept} that came later are kept"
        );
        match confirmed {
            true => format!("{told}: done"),
            false => format!("{told}; nothing was changed: to do it, add --confirm {user}"),
        }
    }
}

type Key = (String, String);

/// One record that is to change, and what it must be like until then.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    key: Key,
    /// `None` = it is deleted.
    put: Option<v1::PutOp>,
    /// Its version now; `None` = there is no live record.
    version: Option<u64>,
}

/// What takes a person from `now` to `then`: deletes first, which a quota never refuses.
fn changes(
    then: &BTreeMap<Key, v1::Record>,
    now: &BTreeMap<Key, v1::Record>,
    at_ms: u64,
    keep_newer: bool,
) -> Vec<Change> {
    let later = now.iter().filter(|(key, _)| !keep_newer && !then.contains_key(*key));
    let deletes = later.map(|(key, record)| Change { key: key.clone(), put: None, version: Some(record.version) });
    let differs = |key: &Key, record: &v1::Record| {
        now.get(key).is_none_or(|now| {
            now.content_type != record.content_type
                || now.payload != record.payload
                || now.expire_time != record.expire_time
        })
    };
    let puts = then.iter().filter(|(key, record)| differs(key, record)).map(|(key, record)| {
        let left_ms =
            record.expire_time.as_ref().map_or(0, |at| holdfast_wire::reply::millis(at).saturating_sub(at_ms));
        let put = v1::PutOp {
            content_type: record.content_type.clone(),
            payload: record.payload.clone(),
            ttl_seconds: u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX),
            ..v1::PutOp::default()
        };
        Change { key: key.clone(), put: Some(put), version: now.get(key).map(|now| now.version) }
    });
    deletes.chain(puts).collect()
}

async fn write_back(format: Format, args: &UserArgs, plan: &RestorePlan, person: Person) -> anyhow::Result<Exit> {
    let client =
        Client::builder().endpoints(args.endpoints.iter().cloned()).deadline(Duration::from_secs(10)).build()?;
    let now_ms = clock::unix_ms(SystemTime::now());
    let then: BTreeMap<Key, v1::Record> = person
        .records
        .into_iter()
        // What would have ended by itself meanwhile does not come back.
        .filter(|record| record.expire_time.is_none_or(|at| at.0 > now_ms))
        .map(|record| {
            let key = (record.key.collection.as_str().to_owned(), record.key.record_id.as_str().to_owned());
            let record = v1::Record {
                content_type: record.content_type,
                payload: record.payload,
                expire_time: record.expire_time.map(holdfast_wire::reply::timestamp),
                ..v1::Record::default()
            };
            (key, record)
        })
        .collect();
    let live = live_records(&client, &args.user).await?;
    if !live.restoring.is_empty() {
        let message = format!("{} of {} is still being restored: wait for it", live.restoring.join(", "), args.user);
        return Err(failure(Exit::Conflict, message));
    }
    let changes = changes(&then, &live.records, now_ms, args.keep_newer);
    let put = changes.iter().filter(|change| change.put.is_some()).count();
    let later = live.records.keys().filter(|key| !then.contains_key(*key)).count();
    let deleted = changes.len() - put;
    let answer = WriteAnswer {
        v: 1,
        user: args.user.clone(),
        lineage: plan.lineage.id.to_string(),
        last_index: plan.last.index,
        last_time: time_of(plan),
        records: then.len(),
        unchanged: then.len() - put,
        put,
        deleted,
        kept: later - deleted,
        confirmed: args.confirm == args.user,
    };
    if answer.confirmed {
        write_changes(&client, &args.user, live.incarnation, &changes).await?;
    }
    output::answer(format, &answer, || answer.in_words())?;
    if !args.confirm.is_empty() && !answer.confirmed {
        eprintln!("holdfast: --confirm {:?} is not the name of the person", args.confirm);
    }
    Ok(if answer.confirmed { Exit::Ok } else { Exit::Unsafe })
}

async fn write_changes(client: &Client, user: &str, incarnation: u64, changes: &[Change]) -> anyhow::Result<()> {
    let bar = progress::bar(changes.len() as u64, "writing");
    let mut done = 0;
    for batch in batches(changes) {
        let request = v1::BatchWriteRequest {
            user_id: user.to_owned(),
            if_incarnation: incarnation,
            mutations: batch.iter().map(mutation).collect(),
            ..v1::BatchWriteRequest::default()
        };
        client.write(request).await.map_err(|error| {
            let message = format!("{done} of {} changes are written", changes.len());
            match error {
                Error::Conflict { .. } => failure(
                    Exit::Conflict,
                    format!("{message}, then {user} wrote something too, which was left as it is; run it again"),
                ),
                error => anyhow::Error::new(error).context(format!("{message}; run it again to go on")),
            }
        })?;
        done += batch.len();
        bar.set_position(done as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

fn mutation(change: &Change) -> v1::Mutation {
    use v1::mutation::Op;
    use v1::precondition::Check;
    let check = change.version.map_or(Check::Absent(true), Check::Version);
    v1::Mutation {
        key: Some(v1::RecordKey { collection: change.key.0.clone(), record_id: change.key.1.clone() }),
        op: Some(change.put.clone().map_or(Op::Delete(v1::DeleteOp {}), Op::Put)),
        precondition: Some(v1::Precondition { check: Some(check) }),
    }
}

/// In order, bounded in number and bytes.
fn batches(changes: &[Change]) -> Vec<&[Change]> {
    let (mut all, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (place, change) in changes.iter().enumerate() {
        let size = change.put.as_ref().map_or(0, |put| put.payload.len());
        if place > start && (place - start >= BATCH_RECORDS_MAX || bytes + size > BATCH_BYTES_MAX) {
            all.push(&changes[start..place]);
            (start, bytes) = (place, 0);
        }
        bytes += size;
    }
    if start < changes.len() {
        all.push(&changes[start..]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        ("contacts".to_owned(), id.to_owned())
    }

    fn record(version: u64, payload: &str, expires_ms: Option<u64>) -> v1::Record {
        v1::Record {
            version,
            content_type: "text/plain".into(),
            payload: payload.to_owned().into(),
            expire_time: expires_ms.map(|ms| holdfast_wire::reply::timestamp(holdfast_model::id::Millis(ms))),
            ..v1::Record::default()
        }
    }

    fn people(records: &[(&str, v1::Record)]) -> BTreeMap<Key, v1::Record> {
        records.iter().map(|(id, record)| (key(id), record.clone())).collect()
    }

    #[test]
    fn only_what_differs_is_written_and_guarded_by_what_is_there() {
        let then = people(&[
            ("same", record(1, "a", None)),
            ("changed", record(2, "b", None)),
            ("deleted", record(3, "c", None)),
            ("ends", record(4, "d", Some(61_500))),
        ]);
        let now = people(&[
            ("same", record(7, "a", None)),
            ("changed", record(8, "x", None)),
            ("later", record(9, "y", None)),
            ("ends", record(4, "d", None)),
        ]);
        let found = changes(&then, &now, 1000, false);
        let told: Vec<_> = found
            .iter()
            .map(|change| {
                let put = change.put.as_ref().map(|put| (put.payload.clone(), put.ttl_seconds));
                (change.key.1.as_str(), put, change.version)
            })
            .collect();
        let put = |payload: &'static str, ttl| Some((payload.into(), ttl));
        assert_eq!(
            told,
            [
                ("later", None, Some(9)),
                ("changed", put("b", 0), Some(8)),
                ("deleted", put("c", 0), None),
                ("ends", put("d", 61), Some(4)),
            ]
        );
        assert!(!changes(&then, &now, 1000, true).iter().any(|change| change.put.is_none()), "it is kept");
        assert_eq!(changes(&then, &then, 1000, false), []);
        use v1::precondition::Check;
        let guard = |change: &Change| mutation(change).precondition.and_then(|one| one.check);
        assert_eq!(guard(&found[0]), Some(Check::Version(9)));
        assert_eq!(guard(&found[2]), Some(Check::Absent(true)));
    }

    #[test]
    fn batches_are_bounded_and_lose_nothing() {
        let change = |id: usize, bytes: usize| Change {
            key: key(&id.to_string()),
            put: Some(v1::PutOp { payload: vec![0; bytes].into(), ..v1::PutOp::default() }),
            version: None,
        };
        let lengths = |all: &[Change]| batches(all).iter().map(|batch| batch.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&(0..250).map(|id| change(id, 1)).collect::<Vec<_>>()), [100, 100, 50]);
        assert_eq!(lengths(&[change(0, BATCH_BYTES_MAX), change(1, 1), change(2, BATCH_BYTES_MAX)]), [1, 1, 1]);
    }
}
