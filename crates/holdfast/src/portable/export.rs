//! Export of records to files any other program can read.
//!
//! - `contacts.vcf`: the vCards of collection `contacts`, by record id.
//! - `calendar.ics`: the iCalendar objects of the calendar collections, by
//!   collection and record id; a stream of several VCALENDARs (RFC 5545 §3.4).
//! - `records.jsonl`: every record of every collection, payload in base64.
//! - `files/<collection>/…`: the payload of every record that is in neither of
//!   the first two, one file each.
//!
//! The first two exist only if some record goes into them. Payloads are written
//! byte for byte; only a missing line end between two of them is added.
//! What is labelled vCard or iCalendar but does not parse as such would spoil
//! the file for its neighbours: it goes under `files/` and is listed.

use super::split::ObjectKind;
use super::{RAW_COLLECTION, check_stream, icalendar, vcard};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::HashSet;
use std::fmt::Write as _;

/// A stored record, as export needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRecord {
    /// Collection of the record.
    pub collection: String,
    /// Its id within the collection.
    pub record_id: String,
    /// Its version.
    pub version: u64,
    /// Media type of the payload; parameters are allowed.
    pub content_type: String,
    /// The stored bytes.
    pub payload: Vec<u8>,
    /// Milliseconds since the Unix epoch.
    pub update_time_ms: u64,
    /// SHA-256 of the payload, in hexadecimal.
    pub sha256_hex: String,
}

/// The files of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportSet {
    /// Relative names with `/` between folders, safe to create, and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// One sentence for each record that could not go where its content type
    /// says, and for each that import had to store raw.
    pub unparseable: Vec<String>,
}

/// Makes the files of an export. The order of `records` does not matter.
pub fn export_files(records: &[ExportRecord]) -> ExportSet {
    let mut records: Vec<&ExportRecord> = records.iter().collect();
    records.sort_by_key(|r| (&r.collection, &r.record_id, r.version));
    let mut contacts = Vec::new();
    let mut calendar = Vec::new();
    let mut json_lines = Vec::new();
    let mut raw_files = Vec::new();
    let mut unparseable = Vec::new();
    let mut names = HashSet::new();
    for record in records {
        json_lines.extend_from_slice(json_line(record).as_bytes());
        let (stream, reason) = match destination(record) {
            Destination::Stream(ObjectKind::Card) => (Some(&mut contacts), None),
            Destination::Stream(_) => (Some(&mut calendar), None),
            Destination::File => (None, None),
            Destination::Unparseable(reason) => (None, Some(reason)),
        };
        if let Some(stream) = stream {
            append(stream, &record.payload);
            continue;
        }
        let name = file_name(record, &mut names);
        if let Some(reason) = reason {
            unparseable
                .push(format!("{}/{} is exported as it is to {name}: {reason}", record.collection, record.record_id));
        }
        raw_files.push((name, record.payload.clone()));
    }
    let mut files = Vec::new();
    if !contacts.is_empty() {
        files.push(("contacts.vcf".to_owned(), contacts));
    }
    if !calendar.is_empty() {
        files.push(("calendar.ics".to_owned(), calendar));
    }
    files.push(("records.jsonl".to_owned(), json_lines));
    files.extend(raw_files);
    ExportSet { files, unparseable }
}

enum Destination {
    Stream(ObjectKind),
    File,
    Unparseable(String),
}

fn destination(record: &ExportRecord) -> Destination {
    if record.collection == RAW_COLLECTION {
        return Destination::Unparseable("import could not parse it".to_owned());
    }
    let (kind, label, at_home) = match media_type(&record.content_type).as_str() {
        vcard::CONTENT_TYPE => (ObjectKind::Card, vcard::CONTENT_TYPE, record.collection == vcard::COLLECTION),
        icalendar::CONTENT_TYPE => (
            ObjectKind::Calendar,
            icalendar::CONTENT_TYPE,
            icalendar::COLLECTIONS.contains(&record.collection.as_str()),
        ),
        _ => return Destination::File,
    };
    // Lines ended by a lone CR are none in a file where others end in LF.
    let joinable = record.payload.contains(&b'\n');
    match check_stream(&record.payload, kind) {
        // From the common file it would come back in another collection.
        Ok(()) if !at_home || !joinable => Destination::File,
        Ok(()) => Destination::Stream(kind),
        Err(problem) => Destination::Unparseable(format!("it is not valid {label}: {problem}")),
    }
}

/// The content type without parameters, in small letters.
fn media_type(content_type: &str) -> String {
    let media_type = content_type.split(';').next().unwrap_or_default();
    media_type.trim().to_ascii_lowercase()
}

fn append(stream: &mut Vec<u8>, payload: &[u8]) {
    // A lone CR, left by a truncated CRLF, ends no line among others.
    if stream.last().is_some_and(|&b| b != b'\n') {
        stream.extend_from_slice(b"\r\n");
    }
    stream.extend_from_slice(payload);
}

/// One line of `records.jsonl`, written by hand for a fixed order of members.
fn json_line(record: &ExportRecord) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "{{\"collection\":{},\"record_id\":{},\"version\":{},\"content_type\":{},\
         \"update_time\":\"{}\",\"size\":{},\"sha256\":{},\"payload_base64\":\"{}\"}}\n",
        quoted(&record.collection),
        quoted(&record.record_id),
        record.version,
        quoted(&record.content_type),
        rfc3339(record.update_time_ms),
        record.payload.len(),
        quoted(&record.sha256_hex),
        BASE64.encode(&record.payload),
    )
}

/// UTC time with milliseconds, as RFC 3339 writes it.
fn rfc3339(unix_ms: u64) -> String {
    // RFC 3339 has no year after 9999.
    const LAST: u64 = 253_402_300_799_999;
    let unix_ms = unix_ms.min(LAST);
    let (days, ms_of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil_date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        ms_of_day / 3_600_000,
        ms_of_day / 60_000 % 60,
        ms_of_day / 1000 % 60,
        ms_of_day % 1000
    )
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
/// Counts in years that start on 1 March, so that a leap day comes last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// A safe name under `files/`, different from all `names` given out before,
/// also where capital and small letters are the same.
fn file_name(record: &ExportRecord, names: &mut HashSet<String>) -> String {
    let extension = extension(&media_type(&record.content_type));
    let suffix = format!(".{extension}");
    let stem = record.record_id.strip_suffix(suffix.as_str()).unwrap_or(&record.record_id);
    let folder = safe_component(&record.collection);
    let stem = safe_component(stem);
    let mut name = format!("files/{folder}/{stem}{suffix}");
    let mut hash = blake3::hash(record.record_id.as_bytes());
    while !names.insert(name.to_ascii_lowercase()) {
        let hex = hash.to_hex();
        let distinction = hex.get(..8).unwrap_or_default();
        name = format!("files/{folder}/{stem}~{distinction}{suffix}");
        hash = blake3::hash(hash.as_bytes());
    }
    name
}

/// Percent-encodes whatever could mean something to a file system, and
/// replaces the end of long names by a hash.
fn safe_component(text: &str) -> String {
    const LONGEST: usize = 150;
    const KEPT: usize = 80;
    // Windows takes these for devices, whatever the extension.
    const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];
    const NUMBERED_DEVICES: [&str; 2] = ["com", "lpt"];
    let lower = text.to_ascii_lowercase();
    let base = lower.split('.').next().unwrap_or_default();
    let is_device = DEVICES.contains(&base) || base.len() == 4 && NUMBERED_DEVICES.iter().any(|d| base.starts_with(d));
    let mut safe = String::new();
    for (at, byte) in text.bytes().enumerate() {
        // No leading dot: neither `..` nor a hidden file.
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'@' | b'~') || byte == b'.' && at > 0;
        if plain && !(at == 0 && is_device) {
            safe.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(safe, "%{byte:02X}");
        }
    }
    if safe.is_empty() {
        safe.push_str("%00");
    }
    if safe.len() > LONGEST {
        safe.truncate(KEPT);
        safe.push('~');
        let hex = blake3::hash(text.as_bytes()).to_hex();
        safe.push_str(hex.get(..32).unwrap_or_default());
    }
    safe
}

fn extension(media_type: &str) -> &'static str {
    match media_type {
        "text/vcard" => "vcf",
        "text/calendar" => "ics",
        "text/plain" => "txt",
        "text/html" => "html",
        "text/markdown" => "md",
        "text/csv" => "csv",
        "application/json" => "json",
        "application/pdf" => "pdf",
        "application/zip" => "zip",
        "image/jpeg" => "jpg",
        "image/png" => "png",
        "image/gif" => "gif",
        "image/webp" => "webp",
        "image/heic" => "heic",
        "image/avif" => "avif",
        "image/tiff" => "tif",
        "image/svg+xml" => "svg",
        "video/mp4" => "mp4",
        "video/quicktime" => "mov",
        "audio/mpeg" => "mp3",
        "audio/mp4" => "m4a",
        _ => "bin",
    }
}
