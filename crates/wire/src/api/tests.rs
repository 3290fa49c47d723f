use proptest::prelude::*;
use prost::Message;

use super::*;

const UUID: &str = "123e4567-e89b-12d3-a456-426614174000";

fn put(collection: &str, id: &str, payload: &[u8]) -> v1::Mutation {
    v1::Mutation {
        key: Some(v1::RecordKey { collection: collection.into(), record_id: id.into() }),
        op: Some(v1::mutation::Op::Put(v1::PutOp {
            content_type: "text/vcard".into(),
            payload: payload.to_vec().into(),
            ..Default::default()
        })),
        precondition: None,
    }
}

fn write(mutations: Vec<v1::Mutation>) -> v1::BatchWriteRequest {
    v1::BatchWriteRequest { user_id: "alice".into(), request_id: UUID.into(), mutations, ..Default::default() }
}

fn fields(result: Result<WriteBatch, Refusal>) -> Vec<String> {
    match result {
        Err(Refusal::Invalid(violations)) => violations.into_iter().map(|one| one.field).collect(),
        other => panic!("expected violations, got {other:?}"),
    }
}

#[test]
fn a_good_batch_is_taken() {
    let batch = batch_write(write(vec![put("contacts", "c1", b"x"), put("x-raw", "c1", b"y")])).expect("good");
    assert_eq!(batch.mutations.len(), 2);
    assert_ne!(batch.fingerprint, [0; 16]);
}

#[test]
fn all_violations_are_named_at_once() {
    let mut request = write(vec![put("nowhere", "", b"x")]);
    request.user_id = "u".repeat(129);
    request.request_id = "zz".into();
    request.device_id = "d".repeat(129);
    assert_eq!(
        fields(batch_write(request)),
        ["user_id", "request_id", "device_id", "mutations[0].key.collection", "mutations[0].key.record_id"]
    );
}

#[test]
fn limits_hold_at_the_edge() {
    assert!(batch_write(write(vec![put("photos", "p", &vec![0; limits::PAYLOAD_BYTES_MAX])])).is_ok());
    let over = write(vec![put("photos", "p", &vec![0; limits::PAYLOAD_BYTES_MAX + 1])]);
    assert_eq!(fields(batch_write(over)), ["mutations[0].put.payload"]);
    let many = |n: usize| write((0..n).map(|i| put("notes", &i.to_string(), b"")).collect());
    assert!(batch_write(many(limits::BATCH_MUTATIONS_MAX)).is_ok());
    assert_eq!(fields(batch_write(many(limits::BATCH_MUTATIONS_MAX + 1))), ["mutations"]);
    assert_eq!(fields(batch_write(many(0))), ["mutations"]);
    let heavy = write((0..5).map(|i| put("photos", &i.to_string(), &vec![0; 1 << 20])).collect());
    assert_eq!(fields(batch_write(heavy)), ["mutations"]);
}

#[test]
fn one_key_twice_is_refused() {
    let twice = write(vec![put("notes", "a", b"1"), put("notes", "a", b"2")]);
    assert_eq!(fields(batch_write(twice)), ["mutations[1].key"]);
}

#[test]
fn a_version_guard_needs_its_history() {
    let mut request = write(vec![put("notes", "a", b"1")]);
    request.mutations[0].precondition = Some(v1::Precondition { check: Some(v1::precondition::Check::Version(4)) });
    assert_eq!(fields(batch_write(request.clone())), ["if_incarnation"]);
    request.if_incarnation = 5;
    assert!(batch_write(request).is_ok());
}

#[test]
fn unset_oneofs_and_false_checks_are_refused() {
    let mut request = write(vec![put("notes", "a", b"1")]);
    request.mutations[0].op = None;
    request.mutations[0].precondition = Some(v1::Precondition { check: None });
    assert_eq!(fields(batch_write(request.clone())), ["mutations[0].op", "mutations[0].precondition"]);
    request.mutations[0] = put("notes", "a", b"1");
    request.mutations[0].precondition = Some(v1::Precondition { check: Some(v1::precondition::Check::Absent(false)) });
    assert_eq!(fields(batch_write(request)), ["mutations[0].precondition"]);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let mut request = write(vec![put("notes", "a", b"1")]);
    request.wait_offsite = true;
    assert_eq!(batch_write(request), Err(Refusal::Unsupported("wait_offsite")));
}

#[test]
fn times_before_1970_and_beyond_reason_are_refused() {
    for time in [
        prost_types::Timestamp { seconds: -1, nanos: 0 },
        prost_types::Timestamp { seconds: i64::MAX, nanos: 0 },
        prost_types::Timestamp { seconds: 0, nanos: -1 },
    ] {
        let mut request = write(vec![put("notes", "a", b"1")]);
        request.first_sent_time = Some(time);
        assert_eq!(fields(batch_write(request)), ["first_sent_time"]);
    }
}

#[test]
fn a_page_size_is_capped_and_never_negative() {
    let request = |page_size| v1::ListRecordsRequest {
        user_id: "alice".into(),
        collection: "notes".into(),
        page_size,
        ..Default::default()
    };
    assert_eq!(list(request(0)).expect("good").page_records, limits::PAGE_RECORDS_DEFAULT);
    assert_eq!(list(request(i32::MAX)).expect("good").page_records, limits::PAGE_RECORDS_MAX);
    assert!(list(request(-1)).is_err());
}

proptest! {
    #[test]
    fn arbitrary_requests_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(request) = v1::BatchWriteRequest::decode(&bytes[..]) { let _ = batch_write(request); }
        if let Ok(request) = v1::BatchGetRecordsRequest::decode(&bytes[..]) { let _ = batch_get(request); }
        if let Ok(request) = v1::ListRecordsRequest::decode(&bytes[..]) { let _ = list(request); }
        if let Ok(request) = v1::GetChangesRequest::decode(&bytes[..]) { let _ = changes(request); }
    }

    #[test]
    fn damaged_requests_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = write(vec![put("notes", "a", b"1")]).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(request) = v1::BatchWriteRequest::decode(&bytes[..]) { let _ = batch_write(request); }
    }
}
