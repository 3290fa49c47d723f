//! Requests that no client should send, over the wire to a real cluster: each is refused with its code and reason, and
//! nothing is written.
//!
//! They are sent by hand over HTTP/2 (`raw_grpc`): a client library would refuse half of them itself, and retries the
//! rest.

mod cluster;
mod raw_grpc;

use cluster::{Cluster, contact};
use holdfast_wire::{encode, v1};
use raw_grpc::{Answer, call, code, framed, send};

const WRITE: &str = "/holdfast.v1.RecordService/BatchWrite";
const GET: &str = "/holdfast.v1.RecordService/BatchGetRecords";
const LIST: &str = "/holdfast.v1.RecordService/ListRecords";
/// Reasons of what the gRPC stack refuses before any handler sees it.
const TOO_LARGE: &str = "MESSAGE_TOO_LARGE";
const MALFORMED: &str = "MALFORMED_MESSAGE";
const CHANGES: &str = "/holdfast.v1.SyncService/GetChanges";

fn put(id: &str, payload: usize) -> v1::Mutation {
    let put =
        v1::PutOp { content_type: "text/plain".into(), payload: vec![b'x'; payload].into(), ..Default::default() };
    v1::Mutation { key: Some(contact("ann", id).key()), op: Some(v1::mutation::Op::Put(put)), precondition: None }
}

/// A request that would be taken.
fn good() -> v1::BatchWriteRequest {
    v1::BatchWriteRequest {
        user_id: "ann".into(),
        request_id: "0b9f57b4-16ba-4e9c-a0a5-5a0ac1a5ff11".into(),
        mutations: vec![put("new", 3)],
        ..Default::default()
    }
}

fn write(change: impl FnOnce(&mut v1::BatchWriteRequest)) -> Vec<u8> {
    let mut request = good();
    change(&mut request);
    encode(&request).to_vec()
}

/// As [`write`], changing the only mutation.
fn mutation(change: impl FnOnce(&mut v1::Mutation)) -> Vec<u8> {
    write(|request| change(&mut request.mutations[0]))
}

fn keyed(collection: &str, record_id: &str) -> Vec<u8> {
    let key = v1::RecordKey { collection: collection.into(), record_id: record_id.into() };
    mutation(|mutation| mutation.key = Some(key))
}

fn op_put(change: impl FnOnce(&mut v1::PutOp)) -> Vec<u8> {
    mutation(|mutation| match &mut mutation.op {
        Some(v1::mutation::Op::Put(put)) => change(put),
        other => panic!("{other:?}"),
    })
}

fn list(change: impl FnOnce(&mut v1::ListRecordsRequest)) -> Vec<u8> {
    let mut request =
        v1::ListRecordsRequest { user_id: "ann".into(), collection: "contacts".into(), ..Default::default() };
    change(&mut request);
    encode(&request).to_vec()
}

fn changes(change: impl FnOnce(&mut v1::GetChangesRequest)) -> Vec<u8> {
    let mut request = v1::GetChangesRequest { user_id: "ann".into(), ..Default::default() };
    change(&mut request);
    encode(&request).to_vec()
}

/// A cluster with two contacts of `ann`, and what must stay as it is.
struct Fixture {
    cluster: Cluster,
    address: String,
    before: Fingerprint,
    faults: Vec<String>,
    _dir: tempfile::TempDir,
}

#[derive(Debug, PartialEq)]
struct Fingerprint {
    term: u64,
    last_log_index: u64,
    records: Vec<v1::Record>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let cluster = Cluster::start(&dir.path().join("c"), &[]);
        for id in ["c1", "c2"] {
            cluster.client().put(contact("ann", id), "text/plain", "x").await.expect("written");
        }
        // A follower: what it refuses, it refuses before it asks the leader.
        let address = cluster.nodes[(cluster.leader().await + 1) % 3].client.clone();
        let before = fingerprint(&cluster).await;
        Self { cluster, address, before, faults: Vec::new(), _dir: dir }
    }

    async fn expect(&mut self, what: &str, path: &str, message: &[u8], code: u32, reason: &str) -> Answer {
        let answer = call(&self.address, path, message).await;
        self.judge(what, answer, code, reason)
    }

    /// Notes what is wrong with an answer: all faults of a test are shown at once.
    fn judge(&mut self, what: &str, answer: Answer, code: u32, reason: &str) -> Answer {
        let Answer { code: found, reason: why, message, .. } = &answer;
        if *found != Some(code) || why != reason || (code != code::OK && message.is_empty()) {
            self.faults.push(format!("{what}: {found:?} {why:?} {message:?}, expected {code} {reason:?}"));
        }
        answer
    }

    /// Nothing was proposed, let alone written.
    async fn finish(self) {
        let after = fingerprint(&self.cluster).await;
        assert_eq!(after.records, self.before.records);
        // A new leader would have appended an entry of its own.
        if after.term == self.before.term {
            assert_eq!(after.last_log_index, self.before.last_log_index, "something was proposed");
        }
        assert!(self.faults.is_empty(), "\n  {}\n", self.faults.join("\n  "));
    }
}

async fn fingerprint(cluster: &Cluster) -> Fingerprint {
    let leader = cluster.leader().await;
    let status = cluster.status(leader).await.expect("status");
    let mut records = Vec::new();
    for user in ["ann", "bob"] {
        let request = v1::ListRecordsRequest {
            user_id: user.into(),
            collection: "contacts".into(),
            show_deleted: true,
            ..Default::default()
        };
        records.extend(cluster.client().list_all(request).await.expect("listed"));
    }
    Fingerprint { term: status.groups[0].term, last_log_index: status.groups[0].last_log_index, records }
}

/// Turns one character of a token into another of its alphabet.
fn with_flipped_bit(token: &str) -> String {
    let middle = token.len() / 2;
    let other = if token.as_bytes()[middle] == b'A' { "B" } else { "A" };
    format!("{}{other}{}", &token[..middle], &token[middle + 1..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_limit_of_a_write_is_checked_before_it_is_proposed() {
    use v1::mutation::Op;
    let mut on = Fixture::new().await;
    let mib = 1 << 20;
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        ("a payload beyond 1 MiB", op_put(|put| put.payload = vec![0; mib + 1].into())),
        (
            "payloads beyond 4 MiB",
            write(|request| request.mutations = (0..5).map(|n| put(&n.to_string(), mib)).collect()),
        ),
        ("501 mutations", write(|request| request.mutations = (0..501).map(|n| put(&n.to_string(), 1)).collect())),
        ("no mutation", write(|request| request.mutations.clear())),
        ("the same key twice", write(|request| request.mutations.push(put("new", 4)))),
        ("no user", write(|request| request.user_id.clear())),
        ("a user of 129 bytes", write(|request| request.user_id = "u".repeat(129))),
        ("a user with NUL", write(|request| request.user_id = "an\0n".into())),
        ("no record id", keyed("contacts", "")),
        ("a record id with NUL", keyed("contacts", "a\0b")),
        ("a record id with a line feed", keyed("contacts", "a\nb")),
        ("a record id of 129 bytes", keyed("contacts", &"r".repeat(129))),
        ("no collection", keyed("", "c")),
        ("an unknown collection", keyed("friends", "c")),
        ("an upper-case collection", keyed("x-Friends", "c")),
        ("a collection of 65 bytes", keyed(&format!("x-{}", "c".repeat(63)), "c")),
        ("no key", mutation(|mutation| mutation.key = None)),
        ("no op", mutation(|mutation| mutation.op = None)),
        (
            "a precondition that checks nothing",
            mutation(|mutation| mutation.precondition = Some(v1::Precondition::default())),
        ),
        (
            "absent = false",
            mutation(|mutation| {
                mutation.precondition = Some(v1::Precondition { check: Some(v1::precondition::Check::Absent(false)) });
            }),
        ),
        (
            "a version guard without its history",
            mutation(|mutation| {
                mutation.precondition = Some(v1::Precondition { check: Some(v1::precondition::Check::Version(1)) });
            }),
        ),
        ("if_head without its history", write(|request| request.if_head = Some(1))),
        ("a content type of 129 bytes", op_put(|put| put.content_type = "t".repeat(129))),
        ("a content type with a line feed", op_put(|put| put.content_type = "text\n/plain".into())),
        ("no request id", write(|request| request.request_id.clear())),
        ("a request id that is no UUID", write(|request| request.request_id = "seven".into())),
        ("the nil UUID", write(|request| request.request_id = "00000000-0000-0000-0000-000000000000".into())),
        ("a device of 129 bytes", write(|request| request.device_id = "d".repeat(129))),
        (
            "a time before 1970",
            write(|request| request.first_sent_time = Some(holdfast_wire::Timestamp { seconds: -1, nanos: 0 })),
        ),
        (
            "a time with too many nanoseconds",
            write(|request| {
                request.first_sent_time = Some(holdfast_wire::Timestamp { seconds: 1, nanos: 1_000_000_000 });
            }),
        ),
    ];
    for (what, message) in malformed {
        on.expect(what, WRITE, &message, code::INVALID_ARGUMENT, "INVALID_FIELD").await;
    }
    for (what, message) in [("undelete", mutation(|mutation| mutation.op = Some(Op::Undelete(Default::default()))))] {
        on.expect(what, WRITE, &message, code::UNIMPLEMENTED, "UNSUPPORTED").await;
    }
    on.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_pages_and_reads_are_checked() {
    let mut on = Fixture::new().await;
    let page = |bytes: &[u8]| -> v1::ListRecordsResponse { holdfast_wire::decode("page", bytes).expect("an answer") };
    let first = on.expect("a page of one", LIST, &list(|request| request.page_size = 1), code::OK, "").await;
    let first = page(&first.body);
    let (page_token, sync_token) = (first.next_page_token.as_str(), first.sync_token.as_str());
    assert!(!page_token.is_empty() && !sync_token.is_empty());

    let all = on.expect("a huge page", LIST, &list(|request| request.page_size = i32::MAX), code::OK, "").await;
    assert_eq!(page(&all.body).records.len(), 2);
    on.expect("the token as it is", CHANGES, &changes(|request| request.sync_token = sync_token.into()), code::OK, "")
        .await;
    let bob = "bob".to_owned();
    let refused: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("a negative page of a list", LIST, list(|request| request.page_size = -1), "INVALID_FIELD"),
        ("a negative page of changes", CHANGES, changes(|request| request.page_size = i32::MIN), "INVALID_FIELD"),
        ("an unknown order", LIST, list(|request| request.order = 77), "INVALID_FIELD"),
        ("a list of no collection", LIST, list(|request| request.collection.clear()), "INVALID_FIELD"),
        (
            "no key to get",
            GET,
            encode(&v1::BatchGetRecordsRequest { user_id: "ann".into(), ..Default::default() }).to_vec(),
            "INVALID_FIELD",
        ),
        (
            "501 keys to get",
            GET,
            encode(&v1::BatchGetRecordsRequest {
                user_id: "ann".into(),
                keys: vec![contact("ann", "c1").key(); 501],
                ..Default::default()
            })
            .to_vec(),
            "INVALID_FIELD",
        ),
        ("a poll of a week", CHANGES, changes(|request| request.wait_ms = 604_800_000), "INVALID_FIELD"),
        ("65 collections", CHANGES, changes(|request| request.collections = vec!["notes".into(); 65]), "INVALID_FIELD"),
        (
            "a flipped bit",
            CHANGES,
            changes(|request| request.sync_token = with_flipped_bit(sync_token)),
            "TOKEN_MALFORMED",
        ),
        ("half a token", CHANGES, changes(|request| request.sync_token = sync_token[..20].into()), "TOKEN_MALFORMED"),
        ("a token of 2 MiB", CHANGES, changes(|request| request.sync_token = "A".repeat(2 << 20)), "TOKEN_MALFORMED"),
        (
            "a page token as sync token",
            CHANGES,
            changes(|request| request.sync_token = page_token.into()),
            "TOKEN_MALFORMED",
        ),
        ("a sync token as page token", LIST, list(|request| request.page_token = sync_token.into()), "TOKEN_MALFORMED"),
        (
            "a flipped bit of a page token",
            LIST,
            list(|request| request.page_token = with_flipped_bit(page_token)),
            "TOKEN_MALFORMED",
        ),
        (
            "a token of another user",
            CHANGES,
            changes(|request| (request.user_id, request.sync_token) = (bob.clone(), sync_token.into())),
            "TOKEN_OTHER_USER",
        ),
        (
            "a token of another filter",
            CHANGES,
            changes(|request| (request.collections, request.sync_token) = (vec!["notes".into()], sync_token.into())),
            "FILTER_CHANGED",
        ),
        (
            "a page token of another list",
            LIST,
            list(|request| (request.collection, request.page_token) = ("notes".into(), page_token.into())),
            "FILTER_CHANGED",
        ),
        (
            "a page token of another user",
            LIST,
            list(|request| (request.user_id, request.page_token) = (bob.clone(), page_token.into())),
            "FILTER_CHANGED",
        ),
    ];
    for (what, path, message, reason) in refused {
        on.expect(what, path, &message, code::INVALID_ARGUMENT, reason).await;
    }
    on.finish().await;
}

/// What no handler of ours ever sees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_request_are_refused_with_a_reason_too() {
    let mut on = Fixture::new().await;
    let address = on.address.clone();
    let huge = write(|request| request.mutations = (0..9).map(|n| put(&n.to_string(), 1 << 20)).collect());
    on.expect("a message beyond 8 MiB", WRITE, &huge, code::RESOURCE_EXHAUSTED, TOO_LARGE).await;
    on.expect("garbage", WRITE, &[0xff; 40], code::INVALID_ARGUMENT, MALFORMED).await;
    on.expect("a field cut off", WRITE, &encode(&good())[..20], code::INVALID_ARGUMENT, MALFORMED).await;
    on.expect("text that is no UTF-8", WRITE, &[0x0a, 2, 0xff, 0xfe], code::INVALID_ARGUMENT, MALFORMED).await;
    let mut short = framed(&encode(&good()));
    short.truncate(30);
    let answer = send(&address, WRITE, short, &[]).await;
    on.judge("a frame cut off", answer, code::INVALID_ARGUMENT, MALFORMED);
    let answer = send(&address, WRITE, Vec::new(), &[]).await;
    on.judge("no message", answer, code::INVALID_ARGUMENT, MALFORMED);
    let mut compressed = framed(&encode(&good()));
    compressed[0] = 1;
    let answer = send(&address, WRITE, compressed, &[("grpc-encoding", "gzip")]).await;
    on.judge("a compression nobody agreed on", answer, code::UNIMPLEMENTED, "UNSUPPORTED");
    on.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_that_are_not_built_and_paths_that_are_none_say_so() {
    let mut on = Fixture::new().await;
    for path in [
        "/holdfast.v1.BlobService/BeginUpload",
        "/holdfast.v1.BlobService/ReadBlob",
        "/holdfast.v1.RecordService/NoSuchMethod",
        "/holdfast.v2.RecordService/BatchWrite",
        "/",
    ] {
        on.expect(path, path, &[], code::UNIMPLEMENTED, "UNSUPPORTED").await;
    }
    for path in [
        "/holdfast.v1.RecordService/ListRecordHistory",
        "/holdfast.v1.UserService/EraseUser",
        "/holdfast.v1.UserService/ExportUser",
        "/holdfast.v1.UserService/GetOperation",
    ] {
        on.expect(path, path, &[], code::UNIMPLEMENTED, "UNSUPPORTED").await;
    }
    on.finish().await;
}

/// Codes and reasons with which a call may end at its deadline. Another code, or none of these reasons, would leave a
/// client guessing whether its write can still take effect.
fn says_how_it_stands(answer: &Answer, reasons: &[&str]) -> bool {
    [Some(code::DEADLINE_EXCEEDED), Some(code::UNAVAILABLE)].contains(&answer.code)
        && reasons.contains(&answer.reason.as_str())
        && answer.retry
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_ends_at_its_deadline_says_how_it_stands() {
    let mut on = Fixture::new().await;
    let address = on.address.clone();
    let request = v1::BatchWriteRequest { user_id: "eve".into(), ..good() };
    let (read, write) = (framed(&list(|_| {})), framed(&encode(&request)));
    for timeout in ["0S", "1n", "1u", "500u"] {
        let answer = send(&address, LIST, read.clone(), &[("grpc-timeout", timeout)]).await;
        if answer.code != Some(code::OK) && !says_how_it_stands(&answer, &["NO_LEADER", "DEADLINE_TOO_SHORT"]) {
            on.faults.push(format!("a read within {timeout}: {answer:?}"));
        }
        let answer = send(&address, WRITE, write.clone(), &[("grpc-timeout", timeout)]).await;
        if answer.code != Some(code::OK)
            && !says_how_it_stands(&answer, &["NO_LEADER", "OUTCOME_UNKNOWN", "DEADLINE_TOO_SHORT"])
        {
            on.faults.push(format!("a write within {timeout}: {answer:?}"));
        }
    }
    // Without a quorum a call ends at its deadline and not before.
    let leader = on.cluster.leader().await;
    let address = on.cluster.nodes[leader].client.clone();
    on.cluster.kill((leader + 1) % 3);
    on.cluster.kill((leader + 2) % 3);
    for timeout in ["500m", "700m", "1S"] {
        let answer = send(&address, WRITE, write.clone(), &[("grpc-timeout", timeout)]).await;
        if !says_how_it_stands(&answer, &["NO_LEADER", "OUTCOME_UNKNOWN"]) {
            on.faults.push(format!("a write without a quorum within {timeout}: {answer:?}"));
        }
        let answer = send(&address, LIST, read.clone(), &[("grpc-timeout", timeout)]).await;
        if !says_how_it_stands(&answer, &["NO_LEADER", "DEADLINE_EXCEEDED"]) {
            on.faults.push(format!("a read without a quorum within {timeout}: {answer:?}"));
        }
    }
    assert!(on.faults.is_empty(), "\n  {}\n", on.faults.join("\n  "));
}
