//! Import of vCards, and what holds for any bytes at all.

use super::{CALENDAR_COLLECTION, ExportRecord, ImportError, ImportItem, RAW_COLLECTION, export_files, import_file};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// vCard 2.1 as Outlook writes it: CRLF, soft line breaks, a photo in base64
/// that a blank line ends, no UID.
const OUTLOOK: &str = "BEGIN:VCARD\r\nVERSION:2.1\r\nN;LANGUAGE=en-us:Rivers;Joan;;Ms.\r\n\
    FN:Joan Rivers\r\nNOTE;CHARSET=us-ascii;ENCODING=QUOTED-PRINTABLE:first line=0D=0A=\r\n\
    second line: with a colon=0D=0A=\r\n=0D=0A=\r\nthird=\r\n line\r\nTEL;WORK;VOICE:(202) 555-0101\r\n\
    LABEL;WORK;PREF;QUOTED-PRINTABLE:1 Hill Road=0D=0A=\r\nSpringfield\r\n\
    KEY;X509;ENCODING=BASE64:\r\n MIIB/jCCAWugAwIBAgIQ\r\n CG1hbmdzdGFk==\r\n\r\n\
    PHOTO;JPEG;BASE64:\r\n/9j/4AAQSkZJRgAB\r\nAQEAYABgAAD/2wBD==\r\n\r\n\
    X-MS-OL-DESIGN;CHARSET=utf-8:<card xmlns=\"http://example.com/x\">\r\nEND:VCARD\r\n";
/// CR CR LF, as a text-mode transfer of an iPhone export leaves it.
const IPHONE: &str = "BEGIN:VCARD\r\r\nVERSION:3.0\r\r\nN:Doe;John;;;\r\r\nFN:John Doe\r\r\n\
    item1.EMAIL;type=INTERNET:john@example.com\r\r\nitem1.X-ABLabel:_$!<Work>!$_\r\r\n\
    PHOTO;ENCODING=b;TYPE=JPEG:/9j/4AAQSkZJRgABAQAAAQABAAD\r\r\n AAgAAgESAAMA==\r\r\n\
    END:VCARD\r\r\n";
const AGENT: &str = "begin:vcard\nversion:2.1\nn:Boss;Bea\nAGENT:\nBEGIN:VCARD\nVERSION:2.1\n\
    UID:inner\nN:Aide;Al\nitem.AGENT;X=1:\nBEGIN:VCARD\nN:Third;T\nEND:VCARD\nEND:VCARD \n\
    uid:outer\nend:vcard\n";
const WITH_UID: &str = "BEGIN:VCARD\r\nVERSION:4.0\r\nUID:urn:uuid:4fbe8971\r\nFN:Ann\r\nEND:VCARD\r\n";

pub(super) const SAMPLES: [&str; 5] = [OUTLOOK, IPHONE, AGENT, WITH_UID, super::tests_calendar::TWO_SERIES];

pub(super) fn import(bytes: impl AsRef<[u8]>) -> Vec<ImportItem> {
    import_file("sample.vcf", bytes.as_ref()).unwrap()
}

/// Imports text that is one good part and returns it.
fn import_one(bytes: impl AsRef<[u8]>) -> ImportItem {
    let items = import(bytes);
    assert_eq!(items.len(), 1, "{items:?}");
    assert_eq!(items[0].problem, None);
    items.into_iter().next().unwrap()
}

/// `(collection, line, has a problem)` of each item.
pub(super) fn outline(items: &[ImportItem]) -> Vec<(&str, usize, bool)> {
    items.iter().map(|i| (i.collection, i.line, i.problem.is_some())).collect()
}

pub(super) fn to_export(items: &[ImportItem]) -> Vec<ExportRecord> {
    items
        .iter()
        .map(|item| ExportRecord {
            collection: item.collection.to_owned(),
            record_id: item.record_id.clone(),
            version: 1,
            content_type: item.content_type.clone(),
            payload: item.payload.clone(),
            update_time_ms: 0,
            sha256_hex: String::new(),
        })
        .collect()
}

#[test]
fn each_peculiar_card_is_one_contact_with_its_exact_bytes() {
    for card in [OUTLOOK, IPHONE, AGENT, WITH_UID] {
        let item = import_one(card);
        assert_eq!(item.payload, card.as_bytes());
        assert_eq!((item.collection, item.line), ("contacts", 1));
        assert_eq!(item.content_type, "text/vcard");
    }
}

#[test]
fn cards_of_one_file_keep_their_bytes_and_lines() {
    let file = format!("\u{FEFF}{OUTLOOK}\r\n\r\n{IPHONE}{AGENT}{}", WITH_UID.trim_end());
    let items = import(&file);
    assert!(items.iter().all(|i| i.problem.is_none()), "{items:?}");
    let payloads: Vec<_> = items.iter().map(|i| i.payload.clone()).collect();
    let expected = [OUTLOOK, IPHONE, AGENT, WITH_UID.trim_end()];
    assert_eq!(payloads, expected.map(|c| c.as_bytes().to_vec()));
    let lines_before = |end: &str| file[..file.find(end).unwrap()].matches('\n').count() + 1;
    assert_eq!(items[1].line, lines_before("BEGIN:VCARD\r\r\n"));
    assert_eq!(items[2].line, lines_before("begin:vcard"));
}

#[test]
fn the_uid_is_the_record_id_and_else_the_hash_of_the_content() {
    assert_eq!(import_one(WITH_UID).record_id, "urn:uuid:4fbe8971");
    assert_eq!(import_one(AGENT).record_id, "outer");
    let hash = blake3::hash(OUTLOOK.trim_end().as_bytes()).to_hex();
    assert_eq!(import_one(OUTLOOK).record_id, format!("h-{}", &hash[..32]));
    let with = |uid: &str| import_one(WITH_UID.replace("urn:uuid:4fbe8971", uid)).record_id;
    assert_eq!(with(&"x".repeat(128)), "x".repeat(128));
    for odd in ["x".repeat(129), "a\u{7}b".to_owned(), "  ".to_owned()] {
        assert!(with(&odd).starts_with("h-"), "{odd:?}");
    }
}

#[test]
fn the_final_line_end_does_not_change_the_identity() {
    let without = import_one(OUTLOOK.trim_end());
    assert_eq!(without.payload, OUTLOOK.trim_end().as_bytes());
    assert_eq!(without.record_id, import_one(OUTLOOK).record_id);
    assert_eq!(import(format!("{OUTLOOK}{}", OUTLOOK.trim_end())).len(), 1);
}

#[test]
fn one_uid_for_different_cards_loses_none_of_them() {
    let second = WITH_UID.replace("Ann", "Bob");
    let items = import(format!("{WITH_UID}{second}{WITH_UID}{second}"));
    assert_eq!(outline(&items), [("contacts", 1, false), ("contacts", 6, false)]);
    assert_eq!(items[0].record_id, "urn:uuid:4fbe8971");
    let hash = blake3::hash(second.trim_end().as_bytes()).to_hex();
    assert_eq!(items[1].record_id, format!("urn:uuid:4fbe8971~{}", &hash[..8]));
    assert_eq!(items[1].payload, second.as_bytes());

    let long = WITH_UID.replace("urn:uuid:4fbe8971", &"é".repeat(64));
    let items = import(format!("{long}{}", long.replace("Ann", "Bob")));
    assert_eq!(items[0].record_id.len(), 128);
    assert!(items[1].record_id.starts_with("éé"));
    assert_eq!(items[1].record_id.len(), 59 * 2 + 1 + 8);
}

#[test]
fn cards_joined_without_a_line_end_come_apart() {
    let items = import(format!("{}{WITH_UID}", OUTLOOK.trim_end()));
    let second_line = OUTLOOK.matches('\n').count();
    assert_eq!(outline(&items), [("contacts", 1, false), ("contacts", second_line, false)]);
    assert_eq!(items[1].payload, WITH_UID.as_bytes());
}

#[test]
fn lone_carriage_returns_and_other_charsets_are_legitimate() {
    let mac = WITH_UID.replace("\r\n", "\r");
    let items = import(format!("{mac}{}", mac.replace("4fbe8971", "2")));
    assert_eq!(outline(&items), [("contacts", 1, false), ("contacts", 6, false)]);
    assert_eq!(items[0].payload, mac.as_bytes());

    let latin1 = b"BEGIN:VCARD\nVERSION:2.1\nN;CHARSET=ISO-8859-1:M\xFCller;J\xF6rg\nEND:VCARD\n";
    assert_eq!(import_one(latin1).payload, latin1);
    let padded = b"BEGIN : VCARD\t\r\nX-GOOGLE TALK:x\r\nEND:VCARD  \r\n\r\n\x1A\0\0";
    assert_eq!(import_one(padded).payload, &padded[..padded.len() - 5]);
}

#[test]
fn a_mac_file_joined_with_others_comes_apart() {
    let mac = WITH_UID.replace("\r\n", "\r").replace("4fbe8971", "mac");
    let other = WITH_UID.replace("\r\n", "\n").replace("4fbe8971", "unix");
    for order in [[&mac, &other, WITH_UID], [&other, &mac, WITH_UID], [&other, WITH_UID, &mac]] {
        let items = import(order.concat());
        assert_eq!(outline(&items), [("contacts", 1, false), ("contacts", 6, false), ("contacts", 11, false)]);
        assert!(items.iter().zip(order).all(|(item, card)| item.payload == card.as_bytes()), "{items:?}");
    }
    // A lone CR inside a value ends no line.
    let inside = WITH_UID.replace("Ann", "Ann\rand Bob");
    assert_eq!(import_one(&inside).payload, inside.as_bytes());
}

#[test]
fn ids_that_are_not_utf8_or_cut_by_folding_stay_what_they_are() {
    let with = |uid: &[u8]| {
        let (head, tail) = WITH_UID.split_once("urn:uuid:4fbe8971").unwrap();
        import_one([head.as_bytes(), uid, tail.as_bytes()].concat()).record_id
    };
    assert_eq!(with(b"M\xFCller"), "Müller");
    assert_eq!(with(b"M\xF6ller"), "Möller");
    assert_eq!(with(b"M\xC3\r\n \xBCller"), "Müller");
    assert_eq!(with(b"\xE2\r\n\t\x82\r\n\t\xAC"), "€");
}

#[test]
fn an_unusable_uid_gives_an_id_that_survives_edits() {
    for uid in ["x".repeat(129), "a\u{7}b".to_owned()] {
        let with = |name: &str| {
            let card = WITH_UID.replace("urn:uuid:4fbe8971", &uid).replace("Ann", name);
            import_one(card).record_id
        };
        assert!(with("Ann").starts_with("h-"));
        assert_eq!(with("Ann"), with("Bob"));
    }
}

#[test]
fn a_spoilt_end_is_named_and_does_not_join_two_cards() {
    for spoilt in ["END:VCARD;", "item1.END:VCARD", "END;X=1:VCARD", "END:VCARD x"] {
        let file = WITH_UID.replace("END:VCARD", spoilt);
        let file = format!("{file}BEGIN:VCARD x\r\nFN:b\r\nEND:VCARD\r\n{WITH_UID}");
        let items = import(&file);
        assert_eq!(outline(&items), [(RAW_COLLECTION, 1, true), ("contacts", 9, false)], "{spoilt}");
        let problem = items[0].problem.clone().unwrap();
        assert!(problem.contains("line 5") && problem.contains(spoilt), "{problem}");
    }
}

#[test]
fn names_that_no_standard_allows_are_taken_as_every_reader_does() {
    for name in ["_X", "X-ÄMTER", "X-GOOGLE TALK", "X-A,B"] {
        let card = WITH_UID.replace("FN:Ann", &format!("{name}:1"));
        assert_eq!(import_one(&card).payload, card.as_bytes());
    }
}

#[test]
fn broken_parts_are_raw_with_their_line_and_harm_no_other() {
    let file = "junk: one\n\njunk two\nBEGIN:VCARD\nFN:cut off\n\nBEGIN:VCARD\nFN:fine\nEND:VCARD\n\
        END:VCARD\nBEGIN:VCARD\nthis is no property\nEND:VCARD\nBEGIN:VCARD\nFN:also fine\n\
        END:VCARD\nBEGIN:VCARD\nFN:end of file";
    let items = import(file);
    let raw = RAW_COLLECTION;
    assert_eq!(
        outline(&items),
        [
            (raw, 1, true),
            (raw, 4, true),
            ("contacts", 7, false),
            (raw, 10, true),
            (raw, 11, true),
            ("contacts", 14, false),
            (raw, 17, true),
        ]
    );
    assert_eq!(items[0].payload, b"junk: one\n\njunk two\n");
    assert_eq!(items[1].payload, b"BEGIN:VCARD\nFN:cut off\n");
    assert_eq!(items[6].payload, b"BEGIN:VCARD\nFN:end of file");
    let problem = |at: usize| items[at].problem.clone().unwrap();
    assert_eq!(problem(1), "BEGIN:VCARD has no END:VCARD");
    assert!(problem(3).contains("\"END:VCARD\""), "{}", problem(3));
    assert!(problem(4).contains("line 12"), "{}", problem(4));
    assert!(problem(4).contains("this is no property"));
    assert_eq!(items[0].content_type, "application/octet-stream");
    assert!(items[0].record_id.starts_with("h-"));
}

#[test]
fn an_agent_without_its_end_does_not_swallow_the_next_card() {
    let items = import(format!("BEGIN:VCARD\nAGENT:\nBEGIN:VCARD\nFN:a\nEND:VCARD\n{WITH_UID}"));
    assert_eq!(outline(&items), [(RAW_COLLECTION, 1, true), ("contacts", 6, false)]);
    let inline = "BEGIN:VCARD\nVERSION:2.1\nAGENT:BEGIN:VCARD\nFN:a\nEND:VCARD\nFN:b\nEND:VCARD\n";
    assert_eq!(import_one(inline).payload, inline.as_bytes());
    let folded = "BEGIN:VCARD\nVERSION:3.0\nAGENT:BEGIN:VCARD\n FN:a\n END:VCARD\nFN:b\nEND:VCARD\n";
    assert_eq!(import_one(folded).payload, folded.as_bytes());
    let escaped = "BEGIN:VCARD\nVERSION:3.0\nAGENT:BEGIN:VCARD\\nFN:a\\nEND:VCARD\\n\nFN:b\nEND:VCARD\n";
    assert_eq!(import_one(escaped).payload, escaped.as_bytes());
}

#[test]
fn utf16_is_stored_raw_and_named() {
    let utf16: Vec<u8> = WITH_UID.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let items = import([b"\xFF\xFE".as_slice(), &utf16].concat());
    assert_eq!(outline(&items), [(RAW_COLLECTION, 1, true)]);
    assert!(items[0].problem.as_ref().unwrap().contains("UTF-16"));
    assert_eq!(items[0].payload.len(), utf16.len() + 2);
}

#[test]
fn the_file_as_a_whole_is_refused_only_if_empty_or_unknown() {
    for blank in ["", "\u{FEFF}\r\n \n"] {
        let error = import_file("a.vcf", blank.as_bytes()).unwrap_err();
        assert_eq!(error, ImportError::Empty);
        assert!(error.to_string().starts_with("is empty"), "{error}");
    }
    let error = import_file("a.doc", b"PK\x03\x04").unwrap_err();
    assert_eq!(error, ImportError::UnknownKind);
    assert!(error.to_string().contains(".vcf or .ics"), "{error}");
    assert_eq!(import_file("a.txt", WITH_UID.as_bytes()).unwrap().len(), 1);
    let items = import_file("dir.x/A.VCF", b"nothing of the kind").unwrap();
    assert_eq!(outline(&items), [(RAW_COLLECTION, 1, true)]);
}

/// The lines of `bytes` that are not blank, without white space around them;
/// lines of joined files are taken apart.
fn pieces(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    for line in bytes.split(|&b| b == b'\n' || b == b'\r') {
        let ends = [b"END:VCARD".as_slice(), b"END:VCALENDAR"];
        let joined = ends.iter().map(|end| end.len()).find(|&at| {
            let upper = line.to_ascii_uppercase();
            let tail = upper.get(at..).unwrap_or_default();
            let tail = tail.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(tail);
            ends.contains(&upper.get(..at).unwrap_or_default()) && tail.starts_with(b"BEGIN:")
        });
        let (head, tail) = line.split_at(joined.unwrap_or(0));
        for part in [head, tail] {
            let part = part.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(part);
            let blank = |b: &u8| b.is_ascii_whitespace() || [0, 0x0B, 0x1A].contains(b);
            if !part.iter().all(blank) {
                pieces.push(part.trim_ascii().to_vec());
            }
        }
    }
    pieces
}

/// What the module documentation promises, for any bytes.
fn check_promises(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(items) = import_file("any.vcf", bytes) else {
        let has_text = bytes.iter().any(u8::is_ascii_alphanumeric);
        prop_assert!(!has_text, "a file with text was refused");
        return Ok(());
    };
    let again = import_file("any.vcf", bytes);
    prop_assert_eq!(again.as_ref(), Ok(&items));
    let kept: HashSet<_> = items.iter().flat_map(|i| pieces(&i.payload)).collect();
    for piece in pieces(bytes) {
        prop_assert!(kept.contains(&piece), "lost: {:?}", String::from_utf8_lossy(&piece));
    }
    let mut ids = BTreeSet::new();
    for item in &items {
        prop_assert!((1..=128).contains(&item.record_id.len()));
        prop_assert!(item.line >= 1);
        prop_assert_eq!(item.problem.is_some(), item.collection == RAW_COLLECTION);
        prop_assert!(
            item.problem.is_some() || ids.insert((item.collection, &item.record_id)),
            "id given twice: {}",
            item.record_id
        );
    }
    check_round_trip(&items)
}

/// Exported and imported again, every good record is as it was, but for a
/// line end at its end. One that its neighbours' line ends would change is a
/// file of its own, byte for byte.
fn check_round_trip(items: &[ImportItem]) -> Result<(), TestCaseError> {
    let by_id = |items: &[ImportItem]| -> BTreeMap<_, _> {
        items
            .iter()
            .filter(|i| i.problem.is_none())
            .filter(|i| i.payload.contains(&b'\n'))
            .map(|i| {
                let payload = i.payload.trim_ascii_end().to_vec();
                ((i.collection, i.record_id.clone()), payload)
            })
            .collect()
    };
    let set = export_files(&to_export(items));
    let mut again = Vec::new();
    for (name, bytes) in &set.files {
        if !name.contains('/') && name != "records.jsonl" {
            again.extend(import_file(name, bytes).unwrap());
        }
    }
    let alone: HashSet<&[u8]> =
        set.files.iter().filter(|(name, _)| name.contains('/')).map(|(_, bytes)| bytes.trim_ascii_end()).collect();
    let mixes_line_ends = |payload: &[u8]| payload.windows(2).any(|pair| pair[0] == b'\r' && pair[1] != b'\n');
    let mut expected = by_id(items);
    expected.retain(|_, payload| !(alone.contains(payload.as_slice()) && mixes_line_ends(payload)));
    prop_assert_eq!(by_id(&again), expected);
    prop_assert!(again.iter().all(|i| i.problem.is_none()), "{:?}", again);
    Ok(())
}

#[test]
fn the_promises_hold_for_the_samples() {
    for sample in SAMPLES {
        check_promises(sample.as_bytes()).unwrap();
    }
    check_promises(SAMPLES.concat().as_bytes()).unwrap();
    assert!(import(SAMPLES.concat()).iter().any(|i| i.collection == CALENDAR_COLLECTION));
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_keep_the_promises(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_promises(&bytes)?;
    }

    #[test]
    fn any_lines_keep_the_promises(
        lines in prop::collection::vec(prop::sample::select(vec![
            "BEGIN:VCARD", "END:VCARD", "END:VCARDBEGIN:VCARD", " BEGIN:VCARD", "AGENT:",
            "UID:1", "UID:2", "FN:a", "N;ENCODING=QUOTED-PRINTABLE:b=", "junk", " folded", "",
            "BEGIN:VCALENDAR", "END:VCALENDAR", "VERSION:2.0", "X-A:1", "METHOD:PUBLISH",
            "BEGIN:VEVENT", "END:VEVENT", "BEGIN:VTODO", "END:VTODO", "BEGIN:VALARM",
            "END:VALARM", "DTSTART;TZID=A:19970101T000000", "BEGIN:VTIMEZONE", "END:VTIMEZONE",
            "TZID:A", "\u{FEFF}", "END:VCALENDARBEGIN:VCALENDAR",
        ]), 0..40),
        line_end in prop::sample::select(vec!["\n", "\r\n", "\r", "\r\r\n"]),
        others in prop::collection::vec(0..60_usize, 0..4),
    ) {
        check_promises(lines.join(line_end).as_bytes())?;
        let mixed = lines.iter().enumerate().map(|(at, line)| match others.iter().position(|&other| other == at) {
            Some(which) => format!("{line}{}", ["\r", "\n", "\r\n", "\r\r"][which]),
            None => format!("{line}{line_end}"),
        });
        check_promises(mixed.collect::<String>().as_bytes())?;
    }

    #[test]
    fn damaged_files_keep_the_promises(
        samples in prop::collection::vec(0..SAMPLES.len(), 1..4),
        edits in edits(),
    ) {
        let mut bytes: Vec<u8> = samples.iter().flat_map(|&at| SAMPLES[at].bytes()).collect();
        for (at, edit, byte) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                _ => bytes.truncate(at),
            }
        }
        check_promises(&bytes)?;
    }
}
