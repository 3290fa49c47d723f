//! `record import`: the parts of vCard and iCalendar files into records.
//!
//! Invariants:
//! - Everything of a file becomes a record or is named in the report; nothing stops anything else.
//! - Records follow from the files alone, so that the same import again changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use holdfast_client::{Client, v1};
use holdfast_model::limits::{PAYLOAD_BYTES_MAX, RECORD_ID_BYTES_MAX};
use indicatif::ProgressBar;
use serde::Serialize;

use super::UserArgs;
use crate::exit::Exit;
use crate::output::{self, Format, Table};
use crate::portable::{ContentId, ImportItem, import_file};
use crate::progress;

/// Records and payload bytes in one batch: small enough that one slow batch is soon repeated.
const BATCH_RECORDS_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One record per card; one per calendar entry (UID), with its changed occurrences and time zones. What cannot be parsed \
is stored as it is in collection x-raw, named by file and line, and makes the exit code 10. Importing the same files \
again changes nothing.")]
pub struct Args {
    #[command(flatten)]
    user: UserArgs,
    /// .vcf and .ics files; - reads stdin.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    v: u32,
    files: usize,
    files_skipped: usize,
    records: u64,
    written: u64,
    unchanged: u64,
    /// Stored as they are, in x-raw.
    raw: u64,
    /// Larger than a record can be: not stored.
    oversize: u64,
    by_collection: BTreeMap<String, u64>,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Problem {
    file: String,
    line: Option<usize>,
    problem: String,
}

/// Imports.
pub async fn run(format: Format, args: &Args) -> anyhow::Result<Exit> {
    let client = args.user.connect.client()?;
    let mut report = Report { v: 1, files: args.files.len(), ..Report::default() };
    let items = gather(&args.files, &mut report);
    report.records = items.len() as u64;
    let bar = progress::bar(items.len() as u64, "import");
    let stored = store_all(&client, &args.user.user, items, &mut report, &bar).await;
    bar.finish_and_clear();
    for one in &report.problems {
        let file = output::printable(&one.file);
        match one.line {
            Some(line) => eprintln!("{file}:{line}: {}", one.problem),
            None => eprintln!("{file}: {}", one.problem),
        }
    }
    let done = report.written + report.unchanged;
    stored.map_err(|error| match done {
        0 => error,
        _ => error.context(format!(
            "{done} of {} records are stored; import the same files again to store the rest",
            report.records
        )),
    })?;
    print(format, &report)?;
    Ok(if report.files_skipped == report.files {
        Exit::Error
    } else if report.files_skipped + usize::from(report.raw + report.oversize > 0) > 0 {
        Exit::Partial
    } else {
        Exit::Ok
    })
}

/// Reads all files. Parts of different files under one id get ids of their own, unless they are the same.
fn gather(files: &[PathBuf], report: &mut Report) -> Vec<ImportItem> {
    let mut taken = Taken::new();
    let mut all = Vec::new();
    for file in files {
        let name = file.display().to_string();
        let items = match items_of(file) {
            Ok(items) => items,
            Err(problem) => {
                report.files_skipped += 1;
                report.problems.push(Problem { file: name, line: None, problem });
                continue;
            }
        };
        for mut item in items {
            let line = Some(item.line);
            let mut note = |problem: String| report.problems.push(Problem { file: name.clone(), line, problem });
            if item.payload.len() > PAYLOAD_BYTES_MAX {
                report.oversize += 1;
                let size = output::bytes(item.payload.len() as u64);
                note(format!("{} is {size}, more than a record can hold (1 MiB): not stored", item.record_id));
                continue;
            }
            let content = ContentId::of(&item.payload);
            let (id, is_new) = id_for(&taken, &item, content);
            // A broken part is named wherever it is, though the same bytes are stored once.
            if let Some(problem) = item.problem.take() {
                report.raw += u64::from(is_new);
                note(format!("stored as it is in {}/{id}: {problem}", item.collection));
            } else if is_new && id != item.record_id {
                note(format!("another file has other content under the id {}: stored as {id} too", item.record_id));
            }
            if is_new {
                taken.insert((item.collection, id.clone()), content);
                item.record_id = id;
                all.push(item);
            }
        }
    }
    all
}

/// The parts of a file; the error says why there are none.
fn items_of(file: &Path) -> Result<Vec<ImportItem>, String> {
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    if file.is_dir() {
        return Err("is a directory; name the .vcf and .ics files in it".to_owned());
    }
    let mut bytes = Vec::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().lock().read_to_end(&mut bytes),
        _ => std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(|error| format!("cannot be read: {error}"))?;
    import_file(&name, &bytes).map_err(|error| error.to_string())
}

/// The ids given out in this import, and what has them.
type Taken = BTreeMap<(&'static str, String), ContentId>;

/// An id that no other content of this import has, and whether it is new: `false` = the same content has it already.
fn id_for(taken: &Taken, item: &ImportItem, content: ContentId) -> (String, bool) {
    let mut id = item.record_id.clone();
    let mut mark = content.hash();
    loop {
        match taken.get(&(item.collection, id.clone())) {
            None => return (id, true),
            Some(other) if *other == content => return (id, false),
            Some(_) => {
                id = marked(&item.record_id, mark);
                mark = blake3::hash(mark.as_bytes());
            }
        }
    }
}

/// The id that content gets when other content has `id` already.
fn marked(id: &str, content: blake3::Hash) -> String {
    let suffix = format!("~{}", &content.to_hex()[..8]);
    let mut end = id.len().min(RECORD_ID_BYTES_MAX - suffix.len());
    while !id.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &id[..end])
}

/// Cuts into batches of distinct keys, in order.
fn batches(items: Vec<ImportItem>) -> Vec<Vec<ImportItem>> {
    let mut all = Vec::new();
    let mut batch: Vec<ImportItem> = Vec::new();
    let mut keys = HashSet::new();
    let mut bytes = 0;
    for item in items {
        let key = (item.collection, item.record_id.clone());
        let full = batch.len() >= BATCH_RECORDS_MAX || bytes + item.payload.len() > BATCH_BYTES_MAX;
        if !batch.is_empty() && (full || keys.contains(&key)) {
            all.push(std::mem::take(&mut batch));
            keys.clear();
            bytes = 0;
        }
        bytes += item.payload.len();
        keys.insert(key);
        batch.push(item);
    }
    if !batch.is_empty() {
        all.push(batch);
    }
    all
}

async fn store_all(
    client: &Client,
    user: &str,
    items: Vec<ImportItem>,
    report: &mut Report,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    for batch in batches(items) {
        let count = batch.len();
        let batch = without_marked(client, user, batch, report).await?;
        bar.inc((count - batch.len()) as u64);
        if !batch.is_empty() {
            store(client, user, batch, report, bar).await?;
        }
    }
    Ok(())
}

/// Leaves out what an earlier import stored under a marked id, because another file of it had other content under the
/// same UID: written under the bare id it would replace that file's content.
async fn without_marked(
    client: &Client,
    user: &str,
    batch: Vec<ImportItem>,
    report: &mut Report,
) -> anyhow::Result<Vec<ImportItem>> {
    let key = |item: &ImportItem| v1::RecordKey {
        collection: item.collection.to_owned(),
        record_id: marked(&item.record_id, ContentId::of(&item.payload).hash()),
    };
    let keys = batch.iter().map(key).collect();
    let request = v1::BatchGetRecordsRequest { user_id: user.to_owned(), keys, ..Default::default() };
    let live = client.read_all(request).await?.into_iter().filter(|record| record.delete_time.is_none());
    let stored: Vec<_> = live.filter_map(|record| Some((record.key?, ContentId::of(&record.payload)))).collect();
    let (there, rest): (Vec<_>, Vec<_>) =
        batch.into_iter().partition(|item| stored.contains(&(key(item), ContentId::of(&item.payload))));
    for item in there {
        report.unchanged += 1;
        *report.by_collection.entry(item.collection.to_owned()).or_default() += 1;
    }
    Ok(rest)
}

async fn store(
    client: &Client,
    user: &str,
    batch: Vec<ImportItem>,
    report: &mut Report,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let count = batch.len() as u64;
    for item in &batch {
        *report.by_collection.entry(item.collection.to_owned()).or_default() += 1;
    }
    let mutations = batch.into_iter().map(|item| v1::Mutation {
        key: Some(v1::RecordKey { collection: item.collection.to_owned(), record_id: item.record_id }),
        op: Some(v1::mutation::Op::Put(v1::PutOp {
            content_type: item.content_type,
            payload: item.payload.into(),
            ..Default::default()
        })),
        precondition: None,
    });
    let request =
        v1::BatchWriteRequest { user_id: user.to_owned(), mutations: mutations.collect(), ..Default::default() };
    let answer = client.write(request).await?;
    let written = answer.results.iter().filter(|result| result.changed).count() as u64;
    report.written += written;
    report.unchanged += count - written;
    bar.inc(count);
    Ok(())
}

fn print(format: Format, report: &Report) -> anyhow::Result<()> {
    match format {
        Format::Json => output::object(report)?,
        Format::Jsonl => output::line(report)?,
        Format::Table => {
            let mut table = Table::new(&["collection", "records"]);
            for (collection, records) in &report.by_collection {
                table.row([collection.clone(), records.to_string()]);
            }
            if !table.is_empty() {
                table.print()?;
            }
            let Report { files, files_skipped, records, written, unchanged, raw, oversize, .. } = report;
            output::text(format!(
                "{records} records from {} of {files} files: {written} written, {unchanged} unchanged, {raw} stored raw, \
                 {oversize} too large",
                files - files_skipped
            ))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, payload: &[u8]) -> ImportItem {
        ImportItem {
            collection: "contacts",
            record_id: id.into(),
            content_type: "text/vcard".into(),
            payload: payload.to_vec(),
            line: 1,
            problem: None,
        }
    }

    #[test]
    fn batches_are_bounded_and_have_distinct_keys() {
        let items: Vec<ImportItem> = (0..250).map(|n| item(&format!("c{n}"), b"x")).collect();
        assert_eq!(batches(items).iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        let big = vec![0; BATCH_BYTES_MAX];
        assert_eq!(batches(vec![item("a", &big), item("b", &big), item("c", b"x")]).len(), 3);
        assert_eq!(batches(vec![item("a", b"1"), item("b", b"2"), item("a", b"3")]).len(), 2);
        assert!(batches(Vec::new()).is_empty());
    }

    #[test]
    fn one_id_in_two_files_loses_nothing() {
        let mut taken = Taken::new();
        let of = ContentId::of;
        taken.insert(("contacts", "c1".to_owned()), of(b"one"));
        let id = |taken: &Taken, id: &str, payload: &[u8]| id_for(taken, &item(id, payload), of(payload));
        assert_eq!(id(&taken, "c1", b"one"), ("c1".to_owned(), false), "the same twice is one record");
        assert_eq!(id(&taken, "c1", b"one\r\n"), ("c1".to_owned(), false), "so it is with a line end");
        let (other, is_new) = id(&taken, "c1", b"two");
        assert!(is_new && other.starts_with("c1~") && other.len() == 11, "{other}");
        let long = "é".repeat(64);
        taken.insert(("contacts", long.clone()), of(b"one"));
        let (other, is_new) = id(&taken, &long, b"two");
        assert!(is_new && other.len() <= RECORD_ID_BYTES_MAX, "{}", other.len());
    }

    #[test]
    fn what_is_broken_is_named_wherever_it_is() {
        let dir = tempfile::tempdir().expect("temp");
        let files = ["a.vcf", "b.vcf"].map(|name| dir.path().join(name));
        std::fs::write(&files[0], b"junk\nBEGIN:VCARD\nFN:a\nEND:VCARD\njunk\n").expect("file");
        std::fs::write(&files[1], b"BEGIN:VCARD\nFN:a\nEND:VCARD\njunk").expect("file");
        let mut all = files.to_vec();
        all.extend([dir.path().join("none.vcf"), dir.path().to_owned()]);
        let mut report = Report::default();
        let items = gather(&all, &mut report);
        assert_eq!(items.iter().map(|item| item.collection).collect::<Vec<_>>(), ["x-raw", "contacts"]);
        let places: Vec<_> = report.problems.iter().map(|one| (one.file.ends_with("a.vcf"), one.line)).collect();
        assert_eq!(places, [(true, Some(1)), (true, Some(5)), (false, Some(4)), (false, None), (false, None)]);
        assert!(report.problems[2].problem.contains(&items[0].record_id), "{}", report.problems[2].problem);
        assert!(report.problems[4].problem.contains("is a directory"));
        assert_eq!((report.raw, report.files_skipped), (1, 2));
    }
}
