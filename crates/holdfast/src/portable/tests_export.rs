//! Export, and the made-up people.

use super::people::{MadeRecord, person, records};
use super::tests::{import, to_export};
use super::{ExportRecord, ExportSet, RAW_COLLECTION, export_files, import_file};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use calcard::{Entry, Parser};
use std::collections::{BTreeMap, BTreeSet};

fn record(collection: &str, id: &str, content_type: &str, payload: &[u8]) -> ExportRecord {
    ExportRecord {
        collection: collection.to_owned(),
        record_id: id.to_owned(),
        version: 3,
        content_type: content_type.to_owned(),
        payload: payload.to_vec(),
        update_time_ms: 1_709_210_096_789,
        sha256_hex: "ab".repeat(32),
    }
}

fn file<'a>(set: &'a ExportSet, name: &str) -> Option<&'a [u8]> {
    let found = set.files.iter().find(|(n, _)| n == name);
    found.map(|(_, bytes)| bytes.as_slice())
}

fn names(set: &ExportSet) -> Vec<&str> {
    set.files.iter().map(|(name, _)| name.as_str()).collect()
}

const A: &[u8] = b"BEGIN:VCARD\nFN:a\nEND:VCARD\n";
const B: &[u8] = b"BEGIN:VCARD\r\nFN:b\r\nEND:VCARD";
const CALENDAR: &[u8] = b"BEGIN:VCALENDAR\nBEGIN:VTODO\nUID:1\nEND:VTODO\nEND:VCALENDAR\n";

#[test]
fn cards_and_calendars_are_joined_in_order_byte_for_byte() {
    let set = export_files(&[
        record("todos", "t", "text/calendar", CALENDAR),
        record("contacts", "2", "Text/vCard; charset=utf-8", A),
        record("contacts", "3", "text/vcard", B),
        record("events", "e", "text/calendar", &[CALENDAR, CALENDAR].concat()),
        record("contacts", "1", "text/vcard", B),
    ]);
    assert_eq!(names(&set), ["contacts.vcf", "calendar.ics", "records.jsonl"]);
    assert_eq!(file(&set, "contacts.vcf").unwrap(), [B, b"\r\n", A, B].concat());
    assert_eq!(file(&set, "calendar.ics").unwrap(), CALENDAR.repeat(3));
    assert_eq!(set.unparseable, Vec::<String>::new());
    assert_eq!(names(&export_files(&[])), ["records.jsonl"]);

    // The CR of a CRLF cut in two ends no line.
    let cut = [B, b"\r"].concat();
    let set = export_files(&[record("contacts", "1", "text/vcard", &cut), record("contacts", "2", "text/vcard", A)]);
    assert_eq!(file(&set, "contacts.vcf").unwrap(), [B, b"\r\r\n", A].concat());
}

#[test]
fn what_does_not_parse_is_exported_raw_and_listed() {
    let set = export_files(&[
        record("contacts", "cut", "text/vcard", b"BEGIN:VCARD\nFN:x\n"),
        record("contacts", "cal", "text/vcard", CALENDAR),
        record("contacts", "none", "text/vcard", b""),
        record("contacts", "good", "text/vcard", A),
        record("events", "bad", "text/calendar", b"BEGIN:VCALENDAR\nBEGIN:VEVENT\nEND:VCALENDAR\n"),
        record(RAW_COLLECTION, "h-1", "application/octet-stream", b"\xFF"),
    ]);
    assert_eq!(
        names(&set),
        [
            "contacts.vcf",
            "records.jsonl",
            "files/contacts/cal.vcf",
            "files/contacts/cut.vcf",
            "files/contacts/none.vcf",
            "files/events/bad.ics",
            "files/x-raw/h-1.bin",
        ]
    );
    assert_eq!(file(&set, "contacts.vcf").unwrap(), A);
    assert_eq!(file(&set, "files/contacts/cut.vcf").unwrap(), b"BEGIN:VCARD\nFN:x\n");
    assert_eq!(set.unparseable.len(), 5);
    assert!(set.unparseable[1].starts_with("contacts/cut is exported as it is to files/contacts/cut.vcf:"));
    assert!(set.unparseable[1].ends_with("BEGIN:VCARD has no END:VCARD"));
}

#[test]
fn other_content_gets_a_file_of_its_own() {
    let lone_cr = b"BEGIN:VCARD\rFN:c\rEND:VCARD\r";
    let set = export_files(&[
        record("photos", "p", "image/jpeg", b"jpeg"),
        record("notes", "n.txt", "text/plain; charset=utf-8", b"text"),
        record("attic", "card", "text/vcard", A),
        record("contacts", "mac", "text/vcard", lone_cr),
        record("contacts", "good", "text/vcard", A),
    ]);
    assert_eq!(
        names(&set),
        [
            "contacts.vcf",
            "records.jsonl",
            "files/attic/card.vcf",
            "files/contacts/mac.vcf",
            "files/notes/n.txt",
            "files/photos/p.jpg",
        ]
    );
    assert_eq!(file(&set, "contacts.vcf").unwrap(), A);
    assert_eq!(file(&set, "files/photos/p.jpg").unwrap(), b"jpeg");
    assert!(set.unparseable.is_empty());
}

#[test]
fn file_names_are_safe_and_distinct() {
    let long = "ü".repeat(64);
    let ids = [
        "..",
        "../../etc/passwd",
        "a/b",
        "a\\b",
        "",
        ".hidden",
        "nul",
        "COM1.x",
        "A",
        "a",
        "a.bin",
        "x\0y",
        "100%",
        "\u{202E}txt",
        long.as_str(),
    ];
    let all: Vec<_> = ids.iter().map(|id| record("..", id, "", b"x")).collect();
    let set = export_files(&all);
    let mut seen = BTreeSet::new();
    for name in names(&set).into_iter().filter(|n| *n != "records.jsonl") {
        let rest = name.strip_prefix("files/%2E./").unwrap_or_else(|| panic!("{name}"));
        assert!(rest.len() <= 160 && !rest.starts_with('.'), "{name}");
        assert!(rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_@~.%".contains(&b)), "{name}");
        assert!(!rest.to_lowercase().starts_with("nul") && !rest.starts_with("COM1"), "{name}");
        assert!(seen.insert(name.to_lowercase()), "{name} given twice");
    }
    assert_eq!(seen.len(), ids.len());
    assert!(seen.contains("files/%2e./%2e.%2f..%2fetc%2fpasswd.bin"));
}

#[test]
fn json_lines_hold_every_record() {
    let set = export_files(&[
        record("photos", "quote \" and \n", "image/png", b"\x00\xFF"),
        record("contacts", "c", "text/vcard", A),
    ]);
    let text = String::from_utf8(file(&set, "records.jsonl").unwrap().to_vec()).unwrap();
    assert_eq!(
        text.lines().next().unwrap(),
        format!(
            "{{\"collection\":\"contacts\",\"record_id\":\"c\",\"version\":3,\
             \"content_type\":\"text/vcard\",\"update_time\":\"2024-02-29T12:34:56.789Z\",\
             \"size\":27,\"sha256\":\"{}\",\"payload_base64\":\"{}\"}}",
            "ab".repeat(32),
            BASE64.encode(A)
        )
    );
    let second: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    assert_eq!(second["record_id"], "quote \" and \n");
    assert_eq!(second["payload_base64"], "AP8=");
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn times_are_written_as_rfc_3339_says() {
    let time_of = |ms: u64| {
        let mut one = record("a", "b", "", b"");
        one.update_time_ms = ms;
        let set = export_files(&[one]);
        let line: serde_json::Value = serde_json::from_slice(file(&set, "records.jsonl").unwrap()).unwrap();
        line["update_time"].as_str().unwrap().to_owned()
    };
    for (ms, expected) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        (u64::MAX, "9999-12-31T23:59:59.999Z"),
    ] {
        assert_eq!(time_of(ms), expected);
    }
}

/// The records of the first people of a seed.
fn made() -> Vec<(String, MadeRecord)> {
    records(7).take(3000).collect()
}

#[test]
fn people_are_the_same_every_time_and_differ_by_seed_and_number() {
    assert_eq!(person(1, 2), person(1, 2));
    assert_ne!(person(1, 2).records, person(1, 3).records);
    assert_ne!(person(1, 2).records, person(2, 2).records);
    let first = person(7, 0);
    let streamed: Vec<_> = made().into_iter().take(first.records.len()).collect();
    assert!(streamed.iter().all(|(user, _)| *user == first.user_id));
    assert!(streamed.into_iter().map(|(_, r)| r).eq(first.records));
    let hash = blake3::hash(format!("{:?}", person(1, 2)).as_bytes());
    assert_eq!(&hash.to_hex()[..16], "e5da6f0d29aa2e4f", "made-up people changed");
}

#[test]
fn made_up_records_are_mixed_and_sized_like_real_ones() {
    let made = made();
    let mut share: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, record) in &made {
        *share.entry(record.collection).or_default() += 1;
    }
    for (collection, percent) in [("contacts", 60), ("events", 20), ("todos", 8), ("notes", 8), ("photos", 4)] {
        let found = share[collection] * 100 / made.len();
        assert!(found.abs_diff(percent) <= 2, "{collection}: {found} %");
    }
    let users: BTreeSet<_> = made.iter().map(|(user, _)| user).collect();
    assert!((140..=160).contains(&users.len()), "{} users", users.len());
    let ids: BTreeSet<_> = made.iter().map(|(_, r)| &r.record_id).collect();
    assert_eq!(ids.len(), made.len());
    for (_, record) in &made {
        let range = if record.collection == "photos" { 1000..20_480 } else { 50..4096 };
        assert!(range.contains(&record.payload.len()), "{record:?}");
    }
}

#[test]
fn made_up_cards_and_calendars_parse_and_are_folded() {
    for (_, record) in made() {
        let text = match record.content_type {
            "text/vcard" | "text/calendar" => String::from_utf8(record.payload.clone()).unwrap(),
            _ => continue,
        };
        for line in text.split_terminator("\r\n") {
            assert!(line.len() <= 75 && !line.contains(['\r', '\n']), "{line:?}");
        }
        assert!(text.ends_with("\r\n"));
        let uid = match (record.content_type, Parser::new(&text).strict().entry()) {
            ("text/vcard", Entry::VCard(card)) => card.uid().map(str::to_owned),
            // calcard's strict mode refuses every component inside another.
            (_, Entry::InvalidLine(line)) if line == "BEGIN" => match Parser::new(&text).entry() {
                Entry::ICalendar(calendar) => calendar.uids().next().map(str::to_owned),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(uid.as_ref(), Some(&record.record_id));
        let items = import(&text);
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].payload, record.payload);
        assert_eq!(items[0].collection, record.collection);
        assert_eq!(items[0].problem, None);
    }
}

#[test]
fn made_up_people_survive_export_and_import() {
    let cards: String = made()
        .into_iter()
        .filter(|(_, r)| r.content_type == "text/vcard")
        .map(|(_, r)| String::from_utf8(r.payload).unwrap())
        .collect();
    let items = import(&cards);
    let set = export_files(&to_export(&items));
    let again = import_file("contacts.vcf", file(&set, "contacts.vcf").unwrap()).unwrap();
    let payloads = |items: &[super::ImportItem]| -> BTreeMap<_, _> {
        items.iter().map(|i| (i.record_id.clone(), i.payload.clone())).collect()
    };
    assert_eq!(payloads(&again), payloads(&items));
    assert!(items.len() > 1000);
}

/// Reads a PNG of one stored deflate block; all lengths and the Adler-32 are
/// checked, CRCs against values computed bit by bit.
#[test]
fn made_up_photos_are_whole_png_files() {
    let photo = made().into_iter().find(|(_, r)| r.collection == "photos").unwrap().1;
    let png = photo.payload;
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1A\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut kinds, mut data) = (8, Vec::new(), Vec::new());
    while at < png.len() {
        let length = number(at);
        let mut crc = u32::MAX;
        for bit in png[at + 4..at + 8 + length].iter().flat_map(|b| (0..8).map(move |i| b >> i & 1)) {
            let low = crc & 1 ^ u32::from(bit);
            crc = (crc >> 1) ^ (low * 0xEDB8_8320);
        }
        assert_eq!(number(at + 8 + length), !crc as usize);
        kinds.push(&png[at + 4..at + 8]);
        if kinds.last() == Some(&b"IDAT".as_slice()) {
            data = png[at + 8..at + 8 + length].to_vec();
        }
        at += length + 12;
    }
    assert_eq!(kinds, [b"IHDR", b"IDAT", b"IEND"]);
    let raw_length = number(20) * (number(16) * 3 + 1);
    assert_eq!(data.len(), 2 + 5 + raw_length + 4);
    assert_eq!(usize::from(u16::from_le_bytes([data[3], data[4]])), raw_length);
    assert_eq!((data[0], data[2]), (0x78, 1));
    let raw = &data[7..7 + raw_length];
    let low = raw.iter().fold(1, |sum: u32, b| (sum + u32::from(*b)) % 65_521);
    assert_eq!(u32::from(u16::from_be_bytes([data[data.len() - 2], data[data.len() - 1]])), low);
    let distinct: BTreeSet<_> = raw.iter().collect();
    assert!(distinct.len() > 30, "an image, not one colour");
}
