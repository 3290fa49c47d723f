//! Import of calendars.

use super::tests::{import, outline};
use super::{CALENDAR_COLLECTION, RAW_COLLECTION};

const HEAD: &str = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Example//Test, with a long na\r\n \
    me//EN\r\nX-WR-CALNAME:Home\r\n";
const END: &str = "END:VCALENDAR\r\n";
const OSLO: &str = "BEGIN:VTIMEZONE\r\nTZID:Europe/Oslo\r\nBEGIN:STANDARD\r\n\
    DTSTART:19701025T030000\r\nTZOFFSETFROM:+0200\r\nTZOFFSETTO:+0100\r\nEND:STANDARD\r\n\
    END:VTIMEZONE\r\n";
const QUOTED_ZONE: &str = "BEGIN:VTIMEZONE\r\nTZID:My Zone: Home\r\nEND:VTIMEZONE\r\n";
const UNUSED: &str = "BEGIN:VTIMEZONE\r\nTZID:Asia/Tokyo\r\nEND:VTIMEZONE\r\n";
const SERIES: &str = "BEGIN:VEVENT\r\nUID:series\r\nDTSTART;TZID=Europe/Oslo:20260105T100000\r\n\
    RRULE:FREQ=WEEKLY\r\nSUMMARY:Choir\r\nBEGIN:VALARM\r\nTRIGGER:-PT5M\r\nEND:VALARM\r\n\
    END:VEVENT\r\n";
const OVERRIDE: &str = "BEGIN:VEVENT\r\nUID:series\r\nRECURRENCE-ID;TZI\r\n \
    D=Europe/Oslo:20260112T100000\r\nDTSTART;TZID=\"My Zone: Home\":20260112T120000\r\n\
    END:VEVENT\r\n";
const TODO: &str = "BEGIN:VTODO\r\nUID:series\r\nSUMMARY:same UID\\, other kind\r\nEND:VTODO\r\n";
const JOURNAL: &str = "BEGIN:VJOURNAL\nSUMMARY:no UID\nEND:VJOURNAL\n";
const BUSY: &str = "BEGIN:VFREEBUSY\r\nUID:fb\r\nEND:VFREEBUSY\r\n";

/// Every kind of part: header, zones used and unused, a series with an
/// override, a to-do of the same UID, a free/busy time.
pub(super) const TWO_SERIES: &str = "BEGIN:VCALENDAR\nVERSION:2.0\nBEGIN:VTIMEZONE\nTZID:A\n\
    END:VTIMEZONE\nBEGIN:VTIMEZONE\nTZID:B\nEND:VTIMEZONE\nBEGIN:VEVENT\nUID:1\n\
    DTSTART;TZID=A:20260101T000000\nEND:VEVENT\nBEGIN:VEVENT\nUID:2\nDESCRIPTION:fol\n ded\n\
    END:VEVENT\nBEGIN:VEVENT\nUID:1\nRECURRENCE-ID:20260102T000000\nEND:VEVENT\nBEGIN:VTODO\n\
    UID:1\nEND:VTODO\nBEGIN:VFREEBUSY\nEND:VFREEBUSY\nEND:VCALENDAR\n";

fn text(payload: &[u8]) -> &str {
    std::str::from_utf8(payload).unwrap()
}

#[test]
fn a_calendar_of_one_record_is_kept_whole() {
    // Components before the zone, a blank line, white space at a line's end.
    let file = format!("{HEAD}{SERIES}\r\n{OSLO}{OVERRIDE}{QUOTED_ZONE}{}", "END:VCALENDAR ");
    for source in [file.clone(), format!("\u{FEFF}{file}"), file.replace("\r\n", "\n")] {
        let items = import(&source);
        assert_eq!(outline(&items), [("events", 1, false)]);
        assert_eq!(items[0].record_id, "series");
        assert_eq!(items[0].content_type, "text/calendar");
        assert_eq!(text(&items[0].payload), source.trim_start_matches('\u{FEFF}'));
    }
}

#[test]
fn records_get_the_calendar_lines_and_only_the_zones_they_use() {
    let other = SERIES.replace("series", "other");
    let file = format!("{HEAD}{OSLO}{UNUSED}{QUOTED_ZONE}{SERIES}{TODO}{other}{OVERRIDE}{JOURNAL}{BUSY}{END}");
    let items = import(&file);
    let payload = |collection: &str, id: &str| {
        let found = items.iter().find(|i| i.collection == collection && (i.record_id == id || id.is_empty()));
        text(&found.unwrap().payload)
    };
    assert_eq!(payload("events", "series"), format!("{HEAD}{OSLO}{QUOTED_ZONE}{SERIES}{OVERRIDE}{END}"));
    assert_eq!(payload("events", "other"), format!("{HEAD}{OSLO}{other}{END}"));
    assert_eq!(payload("todos", "series"), format!("{HEAD}{TODO}{END}"));
    assert_eq!(payload("notes", ""), format!("{HEAD}{JOURNAL}{END}"));
    let hash = |part: &str| {
        let hash = blake3::hash(part.trim_end().as_bytes()).to_hex();
        format!("h-{}", &hash[..32])
    };
    assert_eq!(payload("notes", &hash(JOURNAL)), payload("notes", ""));
    assert_eq!(payload(CALENDAR_COLLECTION, &hash(UNUSED)), format!("{HEAD}{UNUSED}{END}"));
    assert_eq!(payload(CALENDAR_COLLECTION, "fb"), format!("{HEAD}{BUSY}{END}"));
    assert_eq!(items.len(), 6);
    assert!(items.iter().all(|i| i.problem.is_none()));
    let line = file[..file.find(SERIES).unwrap()].matches('\n').count() + 1;
    assert_eq!(items.iter().find(|i| i.collection == "events").unwrap().line, line);
}

#[test]
fn broken_components_are_raw_and_harm_no_other() {
    let good = "BEGIN:VEVENT\nUID:good\nEND:VEVENT\n";
    let file = format!(
        "BEGIN:VCALENDAR\nVERSION:2.0\nBEGIN:VEVENT\nUID:cut\n{good}BEGIN:VEVENT\nUID:alarm\n\
         BEGIN:VALARM\nTRIGGER:PT0S\nEND:VEVENT\nBEGIN:VTODO\nno property here\nEND:VTODO\n\
         SUMMARY:left over\nEND:VEVENT\nBEGIN:VTODO\nUID:fine\nEND:VTODO\nBEGIN:VEVENT\nUID:x\n\
         END:VCALENDAR\n{}",
        "BEGIN:VCALENDAR\nBEGIN:VJOURNAL\nUID:after\nEND:VJOURNAL\nEND:VCALENDAR\n"
    );
    let items = import(&file);
    let raw = RAW_COLLECTION;
    assert_eq!(
        outline(&items),
        [
            (raw, 3, true),
            ("events", 5, false),
            (raw, 8, true),
            (raw, 13, true),
            (raw, 16, true),
            ("todos", 18, false),
            (raw, 21, true),
            ("notes", 24, false),
        ]
    );
    assert_eq!(text(&items[0].payload), "BEGIN:VEVENT\nUID:cut\n");
    assert_eq!(text(&items[1].payload), format!("BEGIN:VCALENDAR\nVERSION:2.0\n{good}END:VCALENDAR\n"));
    let problem = |at: usize| items[at].problem.clone().unwrap();
    assert_eq!(problem(0), "BEGIN:VEVENT has no END:VEVENT");
    assert!(problem(2).contains("END:VEVENT on line 12"), "{}", problem(2));
    assert!(problem(2).contains("END:VALARM"), "{}", problem(2));
    assert!(problem(3).contains("no property here"), "{}", problem(3));
    assert_eq!(text(&items[4].payload), "SUMMARY:left over\nEND:VEVENT\n");
    assert!(problem(4).contains("END:VEVENT on line 17"), "{}", problem(4));
}

#[test]
fn a_truncated_calendar_gives_its_whole_components() {
    let whole = format!("{HEAD}{SERIES}{TODO}{END}");
    let cut = &whole[..whole.len() - END.len() - 15];
    let items = import(cut);
    assert_eq!(outline(&items), [(RAW_COLLECTION, 1, true), ("events", 6, false), (RAW_COLLECTION, 15, true)]);
    assert_eq!(text(&items[0].payload), HEAD);
    assert!(items[0].problem.as_ref().unwrap().contains("END:VCALENDAR"));
    // `series` in OSLO's zone, which the file does not define.
    assert_eq!(text(&items[1].payload), format!("{HEAD}{SERIES}{END}"));
}

#[test]
fn an_end_without_its_begin_leaves_the_calendar_properties_alone() {
    let file = format!("{HEAD}UID:lost\r\nSUMMARY:begin is missing\r\nEND:VEVENT\r\n{TODO}{END}");
    let items = import(file);
    assert_eq!(outline(&items), [(RAW_COLLECTION, 6, true), ("todos", 9, false)]);
    assert_eq!(text(&items[1].payload), format!("{HEAD}{TODO}{END}"));
}

#[test]
fn a_uid_in_several_calendars_is_still_one_record() {
    let first = format!("{HEAD}{OSLO}{SERIES}{END}");
    let same_head = format!("{HEAD}{OSLO}{OVERRIDE}{END}");
    let items = import(format!("{first}{same_head}{first}"));
    assert_eq!(outline(&items), [("events", 1, false)]);
    assert_eq!(text(&items[0].payload), format!("{HEAD}{OSLO}{SERIES}{OVERRIDE}{END}"));

    let other_head = same_head.replace("Home\r\nBEGIN", "Work\r\nBEGIN");
    assert_ne!(other_head, same_head);
    let items = import(format!("{first}{other_head}"));
    assert_eq!(outline(&items), [("events", 1, false)]);
    assert_eq!(text(&items[0].payload), format!("{first}{other_head}"));
    assert_eq!(import(format!("{first}{first}"))[0].payload, first.as_bytes());
}

#[test]
fn an_over_long_uid_gives_an_id_that_survives_edits() {
    let event = |summary: &str| {
        let uid = "é".repeat(65);
        let file = format!("{HEAD}BEGIN:VEVENT\r\nUID:{uid}\r\nSUMMARY:{summary}\r\nEND:VEVENT\r\n{END}");
        import(file).remove(0).record_id
    };
    assert!(event("a").starts_with("h-"));
    assert_eq!(event("a"), event("b"));
}

#[test]
fn a_calendar_without_components_is_kept() {
    let items = import(format!("{HEAD}{END}"));
    assert_eq!(outline(&items), [(CALENDAR_COLLECTION, 1, false)]);
    assert_eq!(text(&items[0].payload), format!("{HEAD}{END}"));
    let items = import(format!("{HEAD}BEGIN:VEVENT\r\njunk\r\nEND:VEVENT\r\n{END}"));
    assert_eq!(outline(&items), [(CALENDAR_COLLECTION, 1, false), (RAW_COLLECTION, 6, true)]);
}

#[test]
fn entries_of_other_kinds_have_their_uid_too() {
    let later = BUSY.replace("UID:fb", "UID:fb\r\nFREEBUSY:20260101T000000Z/PT1H");
    let other = "BEGIN:X-POLL\r\nUID:p\r\nBEGIN:X-ITEM\r\nUID:inner\r\nEND:X-ITEM\r\nEND:X-POLL\r\n";
    let zone = UNUSED.replace("TZID", "UID:z\r\nTZID");
    let items = import(format!("{HEAD}{BUSY}{other}{later}{zone}{END}"));
    let ids: Vec<_> = items.iter().map(|i| (i.collection, &i.record_id[..])).collect();
    assert_eq!(ids[..2], [(CALENDAR_COLLECTION, "fb"), (CALENDAR_COLLECTION, "p")]);
    assert!(ids[2].1.starts_with("h-"), "a time zone has no UID: {ids:?}");
    assert_eq!(text(&items[0].payload), format!("{HEAD}{BUSY}{later}{END}"));
}

#[test]
fn a_fold_inside_a_character_hides_no_uid_and_no_zone() {
    let cut = |text: &str| {
        let mut bytes = Vec::new();
        for byte in text.bytes() {
            if (0x80..=0xBF).contains(&byte) {
                bytes.extend_from_slice(b"\r\n ");
            }
            bytes.push(byte);
        }
        bytes
    };
    let zone = OSLO.replace("Europe/Oslo", "Zürich");
    let event = SERIES.replace("Europe/Oslo", "Zürich").replace("UID:series", "UID:café");
    let change = "BEGIN:VEVENT\r\nUID:café\r\nRECURRENCE-ID:20260112T090000Z\r\nEND:VEVENT\r\n";
    let parts = [HEAD.as_bytes(), zone.as_bytes(), &cut(&event), TODO.as_bytes(), change.as_bytes(), END.as_bytes()];
    let items = import(parts.concat());
    assert_eq!(outline(&items), [("events", 14, false), ("todos", 25, false)]);
    assert_eq!(items[0].record_id, "café");
    let expected = [HEAD.as_bytes(), zone.as_bytes(), &cut(&event), change.as_bytes(), END.as_bytes()];
    assert_eq!(items[0].payload, expected.concat());
}

#[test]
fn uids_in_another_charset_are_not_taken_for_one() {
    let file = format!("{HEAD}BEGIN:VEVENT\r\nUID:1@\r\nEND:VEVENT\r\nBEGIN:VEVENT\r\nUID:2@\r\nEND:VEVENT\r\n{END}");
    let latin1 = |from: &str, to: u8, file: &[u8]| -> Vec<u8> {
        let at = file.windows(2).position(|w| w == from.as_bytes()).unwrap();
        [&file[..at], &[to], &file[at + 2..]].concat()
    };
    let file = latin1("2@", 0xF6, &latin1("1@", 0xFC, file.as_bytes()));
    let ids: Vec<_> = import(file).into_iter().map(|i| i.record_id).collect();
    assert_eq!(ids, ["ü", "ö"]);
}

#[test]
fn a_mac_calendar_joined_with_others_comes_apart() {
    let mac = TWO_SERIES.replace('\n', "\r");
    let alone: Vec<_> = import(&mac).into_iter().map(|i| (i.record_id, i.payload)).collect();
    let items = import(format!("{mac}{HEAD}{JOURNAL}{END}"));
    assert!(items.iter().all(|i| i.problem.is_none()), "{items:?}");
    let joined: Vec<_> = items.into_iter().map(|i| (i.record_id, i.payload)).collect();
    assert_eq!(joined[..alone.len()], alone);
    assert_eq!(joined.len(), alone.len() + 1);
}

#[test]
fn vcalendar_1_with_soft_line_breaks_is_legitimate() {
    let file = "BEGIN:VCALENDAR\nVERSION:1.0\nBEGIN:VEVENT\n\
        DESCRIPTION;ENCODING=QUOTED-PRINTABLE:first=0D=0A=\nsecond=\n third\nDTSTART:20260101\n\
        ATTENDEE;CN=\"a: b\"\n ;ROLE=X:mailto:a@example.com\nEND:VEVENT\nEND:VCALENDAR\n";
    let items = import(file);
    assert_eq!(outline(&items), [("events", 1, false)]);
    assert_eq!(text(&items[0].payload), file);
}

#[test]
fn components_may_nest_but_not_without_limit() {
    let nested = |depth: usize| {
        let (begins, ends) = ("BEGIN:X\n".repeat(depth), "END:X\n".repeat(depth));
        import(format!("BEGIN:VCALENDAR\n{begins}A:1\n{ends}BEGIN:VTODO\nUID:1\nEND:VTODO\nEND:VCALENDAR\n"))
    };
    assert_eq!(outline(&nested(32)), [(CALENDAR_COLLECTION, 2, false), ("todos", 67, false)]);
    assert_eq!(outline(&nested(40)), [(RAW_COLLECTION, 2, true), ("todos", 83, false)]);
}
