//! Import and export of contacts and calendars as files people can carry
//! elsewhere: vCard (`.vcf`), iCalendar (`.ics`) and JSON Lines.
//!
//! Import never rewrites what it reads. A record's payload is the source bytes
//! of its part, line ends, folding and photos included; for a calendar file
//! with several entries it is the entry's source bytes between the calendar's
//! own lines. Export gives the same bytes back.
//!
//! Invariants:
//! - Every line of a source file that is not blank is in the payload of some
//!   item. Exact duplicates of a part give one item only.
//! - The items are a function of the file's bytes alone, so importing a file
//!   again changes nothing.
//! - Collection and record id of the items of one file are unique, except that
//!   broken parts with the same bytes are all listed, with the same id.
//! - What cannot be parsed becomes an item with a `problem`, and hinders no
//!   other part. No input makes this module panic.
//!
//! A part may be larger than a record can be (1 MiB): the item is returned all
//! the same, and the caller reports it.

mod calendar_reader;
mod export;
mod icalendar;
mod lines;
pub mod people;
mod png;
mod split;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_calendar;
#[cfg(test)]
mod tests_export;
mod vcard;
mod words;

pub use export::{ExportRecord, ExportSet, export_files};

use calcard::{Entry, Parser};
use lines::Source;
use split::{Object, ObjectKind};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Collection of parts that could not be parsed.
pub const RAW_COLLECTION: &str = "x-raw";
/// Collection of calendar parts that are no event, to-do or journal entry.
pub const CALENDAR_COLLECTION: &str = "x-calendar";

const RAW_CONTENT_TYPE: &str = "application/octet-stream";
const EXTENSIONS: [&str; 7] = ["vcf", "vcard", "ics", "ical", "icalendar", "ifb", "vcs"];
const MAX_RECORD_ID: usize = 128;

/// One record to store, made from one part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportItem {
    /// `contacts`, `events`, `todos`, `notes`, [`CALENDAR_COLLECTION`] or
    /// [`RAW_COLLECTION`].
    pub collection: &'static str,
    /// The part's UID, or `h-` and a hash of its content.
    pub record_id: String,
    /// `text/vcard`, `text/calendar` or `application/octet-stream`.
    pub content_type: String,
    /// The bytes to store.
    pub payload: Vec<u8>,
    /// 1-based line of the source file on which the part starts.
    pub line: usize,
    /// Why the part was stored raw; `None` if it was understood.
    pub problem: Option<String>,
}

/// Why nothing of a file can be imported, to be told after the file's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImportError {
    /// The file has no bytes, or nothing but white space.
    #[error("is empty: there is nothing to import; check that it was copied whole")]
    Empty,
    /// Neither the file's name nor its content shows what it is.
    #[error(
        "is neither a vCard nor an iCalendar file: its name does not end in .vcf or .ics and it has no BEGIN:VCARD or \
         BEGIN:VCALENDAR line; name a .vcf or .ics file"
    )]
    UnknownKind,
}

/// Splits a vCard or iCalendar file into records, in source order.
///
/// What the file holds decides, not its name: cards and calendars are found in
/// either kind of file. The name only lets a broken file be stored raw instead
/// of being refused.
pub fn import_file(file_name: &str, bytes: &[u8]) -> Result<Vec<ImportItem>, ImportError> {
    let known_extension = Path::new(file_name)
        .extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)));
    let source = Source::new(bytes);
    let objects = split::objects(source);
    if objects.is_empty() {
        return Err(ImportError::Empty);
    }
    if !known_extension && objects.iter().all(|o| o.kind == ObjectKind::Stray) {
        return Err(ImportError::UnknownKind);
    }
    if let Some(item) = utf16_item(bytes) {
        return Ok(vec![item]);
    }
    Ok(import_objects(source, &objects))
}

fn import_objects(source: Source<'_>, objects: &[Object]) -> Vec<ImportItem> {
    let mut ids = IdSpace::default();
    let mut items = Vec::new();
    let mut calendars = Vec::new();
    for object in objects {
        match object.kind {
            ObjectKind::Card => items.extend(vcard::import(source, object, &mut ids)),
            ObjectKind::Calendar => calendars.push(calendar_reader::read(source, object)),
            ObjectKind::Stray => items.push(raw_item(
                source.slice(&object.range),
                object.first_line,
                format!(
                    "text outside every card and calendar (no BEGIN:VCARD or BEGIN:VCALENDAR \
                     before it): {}",
                    shown(source.slice(&object.range))
                ),
            )),
        }
    }
    items.extend(icalendar::import(source, &calendars, &mut ids));
    items.sort_by_key(|item| item.line);
    items
}

/// Whether `bytes` are one or more whole objects of `kind`, as import sees it;
/// the error says what is wrong.
fn check_stream(bytes: &[u8], kind: ObjectKind) -> Result<(), String> {
    let source = Source::new(bytes);
    let objects = split::objects(source);
    if objects.is_empty() {
        return Err("the payload is empty".to_owned());
    }
    if let Some(other) = objects.iter().find(|o| o.kind != kind) {
        return Err(format!("line {} does not belong to the kind of the record", other.first_line));
    }
    match import_objects(source, &objects).into_iter().find_map(|item| item.problem.map(|problem| (item.line, problem)))
    {
        Some((line, problem)) => Err(format!("line {line}: {problem}")),
        None => Ok(()),
    }
}

/// A UTF-16 file, as some old phones write, shows as noise: say what it is.
fn utf16_item(bytes: &[u8]) -> Option<ImportItem> {
    let marked = bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF");
    let unmarked = bytes.starts_with(b"B\0E\0") || bytes.starts_with(b"\0B\0E");
    (marked || unmarked)
        .then(|| raw_item(bytes, 1, "the file is UTF-16 text; convert it to UTF-8 and import it again".to_owned()))
}

fn raw_item(payload: &[u8], line: usize, problem: String) -> ImportItem {
    ImportItem {
        collection: RAW_COLLECTION,
        record_id: ContentId::of(payload).record_id(),
        content_type: RAW_CONTENT_TYPE.to_owned(),
        payload: payload.to_vec(),
        line,
        problem: Some(problem),
    }
}

/// The start of the first line of `bytes`, printable, for a message.
fn shown(bytes: &[u8]) -> String {
    const LIMIT: usize = 40;
    let first = bytes.split(|b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
    let text = String::from_utf8_lossy(first);
    let mut shown: String = text.chars().take(LIMIT).map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
    if text.chars().count() > LIMIT {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// Lets calcard read the first object of `text`. Its parser is not ours to
/// vouch for: should it panic, only the part it was reading counts as broken.
fn calcard_entry(text: &str) -> Option<Entry> {
    catch_unwind(AssertUnwindSafe(|| Parser::new(text).entry())).ok()
}

/// The record id that a UID gives; `None` for a blank one. Of a UID that cannot
/// be a record id it is the hash, which outlives an edit of the content.
fn id_of_uid(uid: &str) -> Option<String> {
    let uid = uid.trim();
    if uid.is_empty() {
        return None;
    }
    let usable = uid.len() <= MAX_RECORD_ID && !uid.chars().any(char::is_control);
    Some(if usable { uid.to_owned() } else { ContentId::of(uid.as_bytes()).record_id() })
}

/// The identity of a part's content: its bytes but for the final line end,
/// which the last line of a file often lacks and which export has to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentId(blake3::Hash);

impl ContentId {
    /// Of a payload.
    pub fn of(payload: &[u8]) -> Self {
        let length = payload.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |at| at + 1);
        Self(blake3::hash(payload.get(..length).unwrap_or(payload)))
    }

    /// Of all bytes that count.
    pub fn hash(&self) -> blake3::Hash {
        self.0
    }

    fn record_id(&self) -> String {
        let mut id = String::from("h-");
        id.push_str(self.0.to_hex().get(..32).unwrap_or_default());
        id
    }
}

/// The record ids given out in one file.
#[derive(Default)]
struct IdSpace {
    taken: HashMap<(&'static str, String), ContentId>,
}

impl IdSpace {
    /// Gives `base` to `content`, or, if other content has it, `base` with a
    /// suffix made from the content. `None`: the same content has an id already.
    fn claim(&mut self, collection: &'static str, base: &str, content: &ContentId) -> Option<String> {
        let mut id = base.to_owned();
        let mut suffix_hash = content.0;
        loop {
            match self.taken.get(&(collection, id.clone())) {
                None => {
                    self.taken.insert((collection, id.clone()), *content);
                    return Some(id);
                }
                Some(taken) if taken == content => return None,
                Some(_) => {
                    let hex = suffix_hash.to_hex();
                    id = with_suffix(base, hex.get(..8).unwrap_or_default());
                    suffix_hash = blake3::hash(suffix_hash.as_bytes());
                }
            }
        }
    }
}

/// `base~suffix`, the base cut so that the whole still is a record id.
fn with_suffix(base: &str, suffix: &str) -> String {
    let mut length = base.len().min(MAX_RECORD_ID - 1 - suffix.len());
    while !base.is_char_boundary(length) {
        length -= 1;
    }
    format!("{}~{suffix}", base.get(..length).unwrap_or_default())
}
