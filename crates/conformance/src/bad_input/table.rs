//! The table of bad calls: every field of every request, one row per way to get it wrong.

use bytes::Bytes;

use super::message::Message;

pub const WRITE: &str = "/holdfast.v1.RecordService/BatchWrite";
const GET: &str = "/holdfast.v1.RecordService/BatchGetRecords";
const LIST: &str = "/holdfast.v1.RecordService/ListRecords";
const HISTORY: &str = "/holdfast.v1.RecordService/ListRecordHistory";
const CHANGES: &str = "/holdfast.v1.SyncService/GetChanges";
const MANIFEST: &str = "/holdfast.v1.SyncService/GetManifest";
const WATCH: &str = "/holdfast.v1.SyncService/Watch";
pub const ACK: &str = "/holdfast.v1.SyncService/AckCursor";
const DEVICES: &str = "/holdfast.v1.SyncService/ListDevices";
const DROP: &str = "/holdfast.v1.SyncService/DropDevice";
const USER: &str = "/holdfast.v1.UserService/GetUser";

/// Calls of what is not there, or not yet.
pub const UNKNOWN: &[&str] = &[
    "/holdfast.v1.UserService/EraseUser",
    "/holdfast.v1.UserService/ExportUser",
    "/holdfast.v1.UserService/GetOperation",
    "/holdfast.v1.BlobService/BeginUpload",
    "/holdfast.v1.BlobService/WriteBlob",
    "/holdfast.v1.BlobService/ReadBlob",
    "/holdfast.v1.RecordService/NoSuchMethod",
    "/holdfast.v9.RecordService/BatchWrite",
    "/holdfast.v1.AdminService/TransferLeader",
    "/",
];

/// One bad call.
#[derive(Debug)]
pub struct Row {
    pub what: String,
    pub path: &'static str,
    pub message: Bytes,
    /// Reasons of which it must have one.
    pub reasons: &'static [&'static str],
}

const FIELD: &[&str] = &["INVALID_FIELD"];
const FIELD_OR_MALFORMED: &[&str] = &["INVALID_FIELD", "MALFORMED_MESSAGE"];
const MALFORMED: &[&str] = &["MALFORMED_MESSAGE"];
const TOKEN: &[&str] = &["TOKEN_MALFORMED", "INVALID_FIELD"];
const HISTORIES: &[&str] = &["INCARNATION_MISMATCH", "INVALID_FIELD"];

/// Texts that are wrong wherever an identifier of at most `limit` bytes belongs.
fn bad_texts(limit: usize) -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    vec![
        ("a byte too long", vec![b'u'; limit + 1], FIELD),
        ("of 1 MiB", vec![b'u'; 1 << 20], FIELD),
        ("with NUL", b"a\0b".to_vec(), FIELD),
        ("with a line feed", b"a\nb".to_vec(), FIELD),
        ("with DEL", b"a\x7fb".to_vec(), FIELD),
        ("with a C1 control", "a\u{85}b".as_bytes().to_vec(), FIELD),
        ("of bytes that are no UTF-8", vec![0xff, 0xfe], MALFORMED),
        ("cut in a character", vec![b'a', 0xc3], MALFORMED),
        ("with half a surrogate", vec![0xed, 0xa0, 0x80], MALFORMED),
        ("in overlong UTF-8", vec![0xc0, 0xaf], MALFORMED),
    ]
}

/// Rows in the making.
struct Rows(Vec<Row>);

impl Rows {
    fn add(&mut self, what: impl Into<String>, path: &'static str, message: Message, reasons: &'static [&'static str]) {
        self.0.push(Row { what: what.into(), path, message: message.done(), reasons });
    }

    /// One field of text, in all its wrong forms; `required` = also empty.
    fn text(&mut self, what: &str, path: &'static str, limit: usize, required: bool, make: impl Fn(&[u8]) -> Message) {
        let method = path.rsplit('/').next().unwrap_or(path);
        for (how, text, reasons) in bad_texts(limit) {
            self.add(format!("{method}: {what} {how}"), path, make(&text), reasons);
        }
        if required {
            self.add(format!("{method}: no {what}"), path, make(b""), FIELD);
        }
    }
}

fn key(collection: impl AsRef<[u8]>, id: impl AsRef<[u8]>) -> Message {
    Message::default().bytes(1, collection).bytes(2, id)
}

fn put() -> Message {
    Message::default().bytes(1, "text/plain").bytes(2, "x")
}

fn mutation() -> Message {
    Message::default().message(1, key("contacts", "never")).message(2, put())
}

/// Everything that a batch needs but its mutations.
fn envelope(user: &str) -> Message {
    Message::default().bytes(1, user).bytes(2, uuid::Uuid::new_v4().to_string())
}

fn write(user: &str, mutation: Message) -> Message {
    envelope(user).message(4, mutation)
}

/// All bad calls; `user` has a record `a`.
pub fn rows(user: &str) -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    batches(&mut rows, user);
    mutations(&mut rows, user);
    reads(&mut rows, user);
    syncs(&mut rows, user);
    freshness(&mut rows, user);
    bytes(&mut rows, user);
    rows.0
}

fn batches(rows: &mut Rows, user: &str) {
    let id = "0b9f57b4-16ba-4e9c-a0a5-5a0ac1a5ff11";
    rows.text("user id", WRITE, 128, true, |text| {
        Message::default().bytes(1, text).bytes(2, id).message(4, mutation())
    });
    rows.text("device", WRITE, 128, false, |text| write(user, mutation()).bytes(6, text));
    for wrong in [
        "",
        "seven",
        "00000000-0000-0000-0000-000000000000",
        &id[1..],
        "0b9f57b416ba4e9ca0a55a0ac1a5ff1g",
        &"7".repeat(500),
    ] {
        let message = Message::default().bytes(1, user).bytes(2, wrong).message(4, mutation());
        rows.add(format!("BatchWrite: request id {:?}", &wrong[..wrong.len().min(40)]), WRITE, message, FIELD);
    }
    for (what, seconds, nanos) in [
        ("before 1970", -1, 0),
        ("at the end of all numbers", i64::MAX, 0),
        ("at their beginning", i64::MIN, 0),
        ("of a second of nanoseconds", 1, 1_000_000_000),
        ("of negative nanoseconds", 1, -1),
    ] {
        let time = Message::default().varint(1, seconds).varint(2, nanos);
        let reasons: &[&str] = &["INVALID_FIELD", "REQUEST_FROM_FUTURE"];
        rows.add(format!("BatchWrite: a time {what}"), WRITE, write(user, mutation()).message(3, time), reasons);
    }
    rows.add("BatchWrite: no mutation", WRITE, envelope(user), FIELD);
    let twice = write(user, mutation()).message(4, mutation());
    rows.add("BatchWrite: a key twice", WRITE, twice, FIELD);
    let many = (0..501).fold(envelope(user), |message, n| {
        message.message(4, Message::default().message(1, key("contacts", format!("k{n}"))).message(2, put()))
    });
    rows.add("BatchWrite: 501 mutations", WRITE, many, FIELD);
    rows.add("BatchWrite: if_head without its history", WRITE, write(user, mutation()).varint(5, 1), FIELD);
    let foreign = write(user, mutation()).varint(5, 1).fixed64(7, 1);
    rows.add("BatchWrite: if_head of another history", WRITE, foreign, &["INCARNATION_MISMATCH"]);
    let huge = write(user, mutation()).varint(5, -1).fixed64(7, u64::MAX);
    rows.add("BatchWrite: the largest if_head", WRITE, huge, &["INCARNATION_MISMATCH"]);
}

fn mutations(rows: &mut Rows, user: &str) {
    rows.text("record id", WRITE, 128, true, |text| {
        write(user, Message::default().message(1, key("contacts", text)).message(2, put()))
    });
    for wrong in ["", "friends", "Contacts", "x-", "x-Upper", "x-a b", "contacts ", &format!("x-{}", "c".repeat(63))] {
        let message = write(user, Message::default().message(1, key(wrong, "r")).message(2, put()));
        rows.add(format!("BatchWrite: collection {wrong:?}"), WRITE, message, FIELD);
    }
    let no_utf8 = write(user, Message::default().message(1, key([0xff], "r")).message(2, put()));
    rows.add("BatchWrite: collection that is no UTF-8", WRITE, no_utf8, MALFORMED);
    rows.add("BatchWrite: no key", WRITE, write(user, Message::default().message(2, put())), FIELD);
    rows.add("BatchWrite: no op", WRITE, write(user, Message::default().message(1, key("contacts", "r"))), FIELD);
    rows.text("media type", WRITE, 128, false, |text| {
        let put = Message::default().bytes(1, text).bytes(2, "x");
        write(user, Message::default().message(1, key("contacts", "r")).message(2, put))
    });
    let large = Message::default().bytes(1, "text/plain").bytes(2, vec![0; (1 << 20) + 1]);
    let large = write(user, Message::default().message(1, key("contacts", "r")).message(2, large));
    rows.add("BatchWrite: a payload of 1 MiB and a byte", WRITE, large, FIELD);
    let guard = |guard: Message| write(user, mutation().message(5, guard));
    rows.add("BatchWrite: a guard that checks nothing", WRITE, guard(Message::default()), FIELD);
    rows.add("BatchWrite: absent = false", WRITE, guard(Message::default().varint(2, 0)), FIELD);
    rows.add("BatchWrite: exists = false", WRITE, guard(Message::default().varint(3, 0)), FIELD);
    rows.add("BatchWrite: a version guard without its history", WRITE, guard(Message::default().varint(1, 1)), FIELD);
    for (what, common, lost, incarnation) in [
        ("of nothing", 0, 0, 0),
        ("of no history", 1, 2, 0),
        ("of another history", 1, 2, 77),
        ("of huge numbers", -1, -1, u64::MAX),
    ] {
        let restore = Message::default().varint(1, common).varint(2, lost).fixed64(3, incarnation);
        rows.add(
            format!("BatchWrite: a RestoreGuard {what}"),
            WRITE,
            guard(Message::default().message(4, restore)),
            HISTORIES,
        );
    }
    let failing = guard(Message::default().varint(3, 1));
    rows.add("BatchWrite: a guard that fails", WRITE, failing, &["VERSION_MISMATCH"]);
}

fn reads(rows: &mut Rows, user: &str) {
    rows.text("user id", GET, 128, true, |text| Message::default().bytes(1, text).message(2, key("contacts", "a")));
    rows.text("record id", GET, 128, true, |text| Message::default().bytes(1, user).message(2, key("contacts", text)));
    rows.add("BatchGetRecords: no key", GET, Message::default().bytes(1, user), FIELD);
    let many = (0..501).fold(Message::default().bytes(1, user), |message, _| message.message(2, key("contacts", "a")));
    rows.add("BatchGetRecords: 501 keys", GET, many, FIELD);
    rows.add(
        "BatchGetRecords: an empty key",
        GET,
        Message::default().bytes(1, user).message(2, Message::default()),
        FIELD,
    );
    let list = || Message::default().bytes(1, user).bytes(2, "contacts");
    rows.text("user id", LIST, 128, true, |text| Message::default().bytes(1, text).bytes(2, "contacts"));
    rows.add("ListRecords: no collection", LIST, Message::default().bytes(1, user), FIELD);
    rows.add("ListRecords: an unknown collection", LIST, Message::default().bytes(1, user).bytes(2, "friends"), FIELD);
    for size in [-1, i64::from(i32::MIN)] {
        rows.add(format!("ListRecords: a page of {size}"), LIST, list().varint(3, size), FIELD);
        rows.add(
            format!("GetChanges: a page of {size}"),
            CHANGES,
            Message::default().bytes(1, user).varint(4, size),
            FIELD,
        );
    }
    for order in [2, 77, -1] {
        rows.add(format!("ListRecords: order {order}"), LIST, list().varint(5, order), FIELD);
    }
    let list_tokens: [&[u8]; 4] = [b"x", &[b'A'; 2000], b"=", &[0x41, 0x0a]];
    for token in list_tokens {
        rows.add(format!("ListRecords: a page token of {} bytes", token.len()), LIST, list().bytes(4, token), TOKEN);
    }
    rows.text("user id", HISTORY, 128, true, |text| Message::default().bytes(1, text).message(2, key("contacts", "a")));
    rows.text("user id", USER, 128, true, |text| Message::default().bytes(1, text));
}

fn syncs(rows: &mut Rows, user: &str) {
    let of = |user: &str| Message::default().bytes(1, user);
    rows.text("user id", CHANGES, 128, true, |text| Message::default().bytes(1, text));
    rows.text("device", CHANGES, 128, false, |text| of(user).bytes(7, text));
    rows.text("user id", MANIFEST, 128, true, |text| Message::default().bytes(1, text));
    for (path, field) in [(CHANGES, 3), (MANIFEST, 2)] {
        let method = path.rsplit('/').next().unwrap_or(path);
        for wrong in ["", "friends", "x-", "X-A"] {
            rows.add(format!("{method}: collection {wrong:?}"), path, of(user).bytes(field, wrong), FIELD);
        }
        let many = (0..65).fold(of(user), |message, _| message.bytes(field, "notes"));
        rows.add(format!("{method}: 65 collections"), path, many, FIELD);
        rows.add(format!("{method}: a collection that is no UTF-8"), path, of(user).bytes(field, [0xff]), MALFORMED);
    }
    for wait in [300_001, i64::from(u32::MAX)] {
        rows.add(format!("GetChanges: a wait of {wait} ms"), CHANGES, of(user).varint(6, wait), FIELD);
    }
    let sync_tokens: [(&str, &[u8]); 5] = [
        ("of one letter", b"x"),
        ("of 2 KiB", &[b'A'; 2048]),
        ("of dots", b"...."),
        ("with NUL", b"AA\0A"),
        ("of padding", b"===="),
    ];
    for (what, token) in sync_tokens {
        rows.add(format!("GetChanges: a token {what}"), CHANGES, of(user).bytes(2, token), TOKEN);
        rows.add(format!("AckCursor: a token {what}"), ACK, of(user).bytes(2, "phone").bytes(3, token), TOKEN);
        let add = Message::default().bytes(1, user).bytes(2, token);
        rows.add(format!("Watch: a token {what}"), WATCH, Message::default().message(1, add), TOKEN);
    }
    rows.add("AckCursor: no token", ACK, of(user).bytes(2, "phone"), TOKEN);
    rows.text("user id", ACK, 128, true, |text| Message::default().bytes(1, text).bytes(2, "phone").bytes(3, "x"));
    rows.text("device", ACK, 128, true, |text| of(user).bytes(2, text).bytes(3, "x"));
    rows.text("user id", DEVICES, 128, true, |text| Message::default().bytes(1, text));
    rows.text("user id", DROP, 128, true, |text| Message::default().bytes(1, text).bytes(2, "phone"));
    rows.text("device", DROP, 128, true, |text| of(user).bytes(2, text));
    rows.text("user id", WATCH, 128, true, |text| Message::default().message(1, Message::default().bytes(1, text)));
    rows.text("removed user id", WATCH, 128, true, |text| Message::default().bytes(2, text));
}

/// Adds what a call needs besides its user.
type Complete = fn(Message) -> Message;

/// Freshness that cannot be, on every call that takes one.
fn freshness(rows: &mut Rows, user: &str) {
    let of = || Message::default().bytes(1, user);
    let calls: [(&str, Complete, u32); 5] = [
        (GET, |message| message.message(2, key("contacts", "a")), 4),
        (LIST, |message| message.bytes(2, "contacts"), 8),
        (CHANGES, |message| message, 8),
        (MANIFEST, |message| message, 3),
        (USER, |message| message, 2),
    ];
    for (path, complete, field) in calls {
        let method = path.rsplit('/').next().unwrap_or(path);
        let ask = |incarnation, index, group| {
            let at = Message::default().fixed64(1, incarnation).varint(2, index).varint(3, group);
            complete(of()).message(field, Message::default().message(2, at))
        };
        rows.add(format!("{method}: at_least of no history"), path, ask(0, 1, 0), HISTORIES);
        rows.add(format!("{method}: at_least of another history"), path, ask(u64::MAX, -1, 0), HISTORIES);
        rows.add(format!("{method}: at_least of another group"), path, ask(1, 1, 7), HISTORIES);
    }
}

/// What is no message at all.
fn bytes(rows: &mut Rows, user: &str) {
    for path in [WRITE, GET, LIST, HISTORY, CHANGES, MANIFEST, WATCH, ACK, DEVICES, DROP, USER] {
        let method = path.rsplit('/').next().unwrap_or(path);
        let mut raw = |what: &str, bytes: &[u8], reasons| {
            rows.0.push(Row {
                what: format!("{method}: {what}"),
                path,
                message: Bytes::copy_from_slice(bytes),
                reasons,
            });
        };
        raw("garbage", &[0xff; 40], MALFORMED);
        raw("a field cut off", &[0x0a, 20, b'u'], MALFORMED);
        raw(
            "a number without an end",
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            MALFORMED,
        );
        raw("a field of another type", &[0x08, 1], MALFORMED);
        if path != WATCH {
            raw("nothing", &[], FIELD_OR_MALFORMED);
        }
    }
    let deep = (0..200).fold(Message::default(), |inner, _| Message::default().message(4, inner));
    rows.add("BatchWrite: messages in messages", WRITE, deep.bytes(1, user), FIELD_OR_MALFORMED);
}
