use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::token::SyncToken;

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
    violated(result)
}

fn violated<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Vec<String> {
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
    let mut heavy = write((0..4).map(|i| put("photos", &i.to_string(), &vec![0; 1 << 20])).collect());
    assert!(batch_write(heavy.clone()).is_ok());
    heavy.mutations.push(put("photos", "one byte more", b"x"));
    assert_eq!(fields(batch_write(heavy)), ["mutations"]);
    let typed = |content_type: String| {
        let put_op = v1::PutOp { content_type, ..Default::default() };
        let mutation = v1::Mutation { op: Some(v1::mutation::Op::Put(put_op)), ..put("notes", "n", b"") };
        batch_write(write(vec![mutation]))
    };
    assert!(typed("t".repeat(limits::CONTENT_TYPE_BYTES_MAX)).is_ok());
    assert_eq!(fields(typed("t".repeat(limits::CONTENT_TYPE_BYTES_MAX + 1))), ["mutations[0].put.content_type"]);
    assert_eq!(fields(typed("text/\nplain".into())), ["mutations[0].put.content_type"]);
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
    assert!(batch_write(request.clone()).is_ok());
    request.mutations[0].precondition = None;
    assert!(batch_write(request.clone()).is_ok());
    request.if_incarnation = 0;
    assert!(batch_write(request.clone()).is_ok());
    request.if_head = Some(0);
    assert_eq!(fields(batch_write(request)), ["if_incarnation"]);
}

#[test]
fn unset_oneofs_and_false_checks_are_refused() {
    let mut request = write(vec![put("notes", "a", b"1")]);
    request.mutations[0].op = None;
    request.mutations[0].precondition = Some(v1::Precondition { check: None });
    assert_eq!(fields(batch_write(request.clone())), ["mutations[0].op", "mutations[0].precondition"]);
    request.mutations[0] = put("notes", "a", b"1");
    for check in [v1::precondition::Check::Absent(false), v1::precondition::Check::Exists(false)] {
        request.mutations[0].precondition = Some(v1::Precondition { check: Some(check) });
        assert_eq!(fields(batch_write(request.clone())), ["mutations[0].precondition"]);
    }
    request.mutations[0] = v1::Mutation { key: None, ..put("notes", "a", b"1") };
    assert_eq!(fields(batch_write(request)), ["mutations[0].key"]);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut v1::Mutation, v1::PutOp), what| {
        let mut mutation = put("notes", "a", b"1");
        change(&mut mutation, v1::PutOp::default());
        assert_eq!(batch_write(write(vec![mutation])), Err(Refusal::Unsupported(what)));
    };
    let undelete = v1::mutation::Op::Undelete(v1::UndeleteOp {});
    refused(&|mutation, _| mutation.op = Some(undelete.clone()), "undelete");
    let put_op = |mutation: &mut v1::Mutation, put| mutation.op = Some(v1::mutation::Op::Put(put));
    refused(
        &|mutation, put| put_op(mutation, v1::PutOp { blobs: vec![v1::BlobRef::default()], ..put }),
        "blob references",
    );
}

#[test]
fn a_restore_guard_names_what_was_lost() {
    let read = |common_version, lost_version, lost_incarnation| {
        let guard = v1::RestoreGuard { common_version, lost_version, lost_incarnation };
        let mut mutation = put("notes", "a", b"1");
        mutation.precondition = Some(v1::Precondition { check: Some(v1::precondition::Check::Restore(guard)) });
        batch_write(write(vec![mutation]))
    };
    let guard = RestoreGuard { common: Version(3), lost: Version(4), incarnation: Incarnation(9) };
    assert_eq!(read(3, 4, 9).expect("valid").mutations[0].guard, Guard::Restore(guard));
    let lost = "mutations[0].precondition.restore.lost_version";
    let incarnation = "mutations[0].precondition.restore.lost_incarnation";
    assert_eq!(fields(read(3, 3, 9)), [lost]);
    assert_eq!(fields(read(0, 0, 0)), [lost, incarnation]);
}

#[test]
fn a_ttl_is_part_of_what_is_put() {
    let mut request = write(vec![put("notes", "a", b"1")]);
    let without = batch_write(request.clone()).expect("valid");
    request.mutations[0].op = Some(v1::mutation::Op::Put(v1::PutOp {
        content_type: "text/vcard".into(),
        payload: b"1".as_slice().into(),
        ttl_seconds: u32::MAX,
        ..Default::default()
    }));
    let batch = batch_write(request).expect("valid");
    assert!(matches!(&batch.mutations[0].op, Op::Put(Content { ttl_seconds: u32::MAX, .. })));
    assert_ne!(batch.fingerprint, without.fingerprint);
}

#[test]
fn times_before_1970_and_beyond_reason_are_refused() {
    for time in [
        prost_types::Timestamp { seconds: -1, nanos: 0 },
        prost_types::Timestamp { seconds: i64::MAX, nanos: 0 },
        prost_types::Timestamp { seconds: 0, nanos: -1 },
        prost_types::Timestamp { seconds: 0, nanos: 1_000_000_000 },
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

/// With every field that is built set.
fn full_write() -> v1::BatchWriteRequest {
    use v1::precondition::Check;
    let guarded =
        |mutation, check| v1::Mutation { precondition: Some(v1::Precondition { check: Some(check) }), ..mutation };
    let delete = v1::Mutation { op: Some(v1::mutation::Op::Delete(v1::DeleteOp {})), ..put("notes", "gone", b"") };
    let mut request = write(vec![
        put("contacts", "c1", b"x"),
        guarded(put("notes", "n1", b"y"), Check::Version(4)),
        guarded(put("notes", "n2", b"z"), Check::Absent(true)),
        guarded(delete, Check::Exists(true)),
    ]);
    request.device_id = "phone".into();
    request.first_sent_time = Some(prost_types::Timestamp { seconds: 12, nanos: 345_999_999 });
    request.if_head = Some(0);
    request.if_incarnation = 9;
    request
}

#[test]
fn nothing_of_a_batch_is_lost_or_mixed_up() {
    let batch = batch_write(full_write()).expect("good");
    assert_eq!(batch.user.as_str(), "alice");
    assert_eq!(batch.request_id, RequestId::parse(UUID).expect("valid"));
    assert_eq!(batch.device.as_ref().map(DeviceId::as_str), Some("phone"));
    assert_eq!(batch.first_sent, Some(Millis(12_345)));
    assert_eq!(batch.if_head, Some(Version(0)));
    assert_eq!(batch.if_incarnation, Some(Incarnation(9)));
    let guards: Vec<Guard> = batch.mutations.iter().map(|mutation| mutation.guard).collect();
    assert_eq!(guards, [Guard::None, Guard::Version(Version(4)), Guard::Absent, Guard::Exists]);
    let ids: Vec<&str> = batch.mutations.iter().map(|mutation| mutation.key.record_id.as_str()).collect();
    assert_eq!(ids, ["c1", "n1", "n2", "gone"]);
    assert_eq!(
        batch.mutations[0].op,
        Op::Put(Content { content_type: "text/vcard".into(), payload: "x".into(), ttl_seconds: 0 })
    );
    assert_eq!(batch.mutations[3].op, Op::Delete);
    let bare = batch_write(write(vec![put("notes", "a", b"1")])).expect("good");
    assert_eq!((bare.device, bare.first_sent, bare.if_head, bare.if_incarnation), (None, None, None, None));
}

#[test]
fn reads_are_linearizable_unless_they_ask_for_less() {
    use v1::read_consistency::Level;
    let get = |level| {
        batch_get(v1::BatchGetRecordsRequest {
            user_id: "alice".into(),
            keys: vec![v1::RecordKey { collection: "notes".into(), record_id: "n1".into() }],
            metadata_only: true,
            consistency: Some(v1::ReadConsistency { level }),
        })
    };
    let query = get(None).expect("good");
    assert_eq!((query.user.as_str(), query.keys.len(), query.metadata_only), ("alice", 1, true));
    assert_eq!(query.consistency, Consistency::Linearizable);
    let at_least = |group_id| Level::AtLeast(v1::AtLeast { incarnation: 7, applied_index: 8, group_id });
    assert_eq!(
        get(Some(at_least(0))).expect("good").consistency,
        Consistency::AtLeast { incarnation: Incarnation(7), index: 8 }
    );
    assert_eq!(violated(get(Some(at_least(1)))), ["consistency.at_least.group_id"]);
    assert_eq!(
        get(Some(Level::MaxStalenessMs(20))).expect("good").consistency,
        Consistency::MaxStaleness(Duration::from_millis(20))
    );
    let linearizable = Some(Level::Linearizable(v1::Linearizable {}));
    assert_eq!(get(linearizable).expect("good").consistency, Consistency::Linearizable);
    assert_eq!(list(listing()).expect("good").consistency, Consistency::Linearizable);
    assert_eq!(changes(feed()).expect("good").consistency, None, "the feed chooses by its token");
}

#[test]
fn the_keys_of_a_read_are_bounded_and_checked() {
    let get = |count: usize, id: &str| {
        let key = v1::RecordKey { collection: "notes".into(), record_id: id.into() };
        batch_get(v1::BatchGetRecordsRequest { user_id: "alice".into(), keys: vec![key; count], ..Default::default() })
    };
    assert_eq!(get(limits::GET_KEYS_MAX, "n").expect("good").keys.len(), limits::GET_KEYS_MAX);
    assert_eq!(violated(get(limits::GET_KEYS_MAX + 1, "n")), ["keys"]);
    assert_eq!(violated(get(0, "n")), ["keys"]);
    assert_eq!(violated(get(2, "")), ["keys[0].record_id", "keys[1].record_id"]);
}

fn listing() -> v1::ListRecordsRequest {
    v1::ListRecordsRequest { user_id: "alice".into(), collection: "notes".into(), ..Default::default() }
}

#[test]
fn a_page_token_holds_for_one_listing_only() {
    let first = list(v1::ListRecordsRequest { order: 1, metadata_only: true, ..listing() }).expect("good");
    assert_eq!((first.newest, first.metadata_only, first.show_deleted), (true, true, false));
    let place = crate::token::PagePlace::Newest(Version(4), 2);
    let page = PageToken { arguments: first.arguments, sync_token: "s".into(), after: place };
    let next = v1::ListRecordsRequest { order: 1, page_token: page.encode(), ..listing() };
    assert_eq!(list(next.clone()).expect("good").page, Some(page));
    for other in [
        v1::ListRecordsRequest { order: 0, ..next.clone() },
        v1::ListRecordsRequest { show_deleted: true, ..next.clone() },
        v1::ListRecordsRequest { user_id: "bob".into(), ..next.clone() },
        v1::ListRecordsRequest { collection: "todos".into(), ..next.clone() },
    ] {
        assert_eq!(list(other), Err(Refusal::Token(crate::token::TokenError::FilterChanged)));
    }
    assert_eq!(violated(list(v1::ListRecordsRequest { order: 2, ..listing() })), ["order"]);
}

fn feed() -> v1::GetChangesRequest {
    v1::GetChangesRequest { user_id: "alice".into(), ..Default::default() }
}

#[test]
fn a_feed_goes_on_from_its_token_and_filter_only() {
    let asked = v1::GetChangesRequest {
        collections: vec!["notes".into()],
        wait_ms: 20,
        exclude_device_id: "phone".into(),
        metadata_only: true,
        page_size: 7,
        ..feed()
    };
    let query = changes(asked.clone()).expect("good");
    assert_eq!((query.token, query.page_records, query.metadata_only), (None, 7, true));
    assert_eq!((query.wait, query.exclude_device), (Duration::from_millis(20), DeviceId::new("phone").ok()));
    let token = SyncToken {
        incarnation: Incarnation(7),
        user_tag: crate::token::user_tag(&query.user),
        uid: holdfast_model::id::Uid(3),
        version: Version(5),
        filter: query.filter,
        issued: Millis(6),
        fresh_until: Version(0),
        seen: Version(0),
    };
    let next = v1::GetChangesRequest { sync_token: token.encode(), ..asked };
    assert_eq!(changes(next.clone()).expect("good").token, Some(token));
    let widened = v1::GetChangesRequest { collections: Vec::new(), ..next.clone() };
    assert_eq!(changes(widened), Err(Refusal::Token(crate::token::TokenError::FilterChanged)));
    let other = v1::GetChangesRequest { user_id: "bob".into(), ..next };
    assert_eq!(changes(other), Err(Refusal::Token(crate::token::TokenError::OtherUser)));
}

#[test]
fn a_feed_is_asked_for_within_limits() {
    let longest = u32::try_from(limits::LONG_POLL_MS_MAX).expect("fits");
    assert!(changes(v1::GetChangesRequest { wait_ms: longest, ..feed() }).is_ok());
    assert_eq!(violated(changes(v1::GetChangesRequest { wait_ms: longest + 1, ..feed() })), ["wait_ms"]);
    let collections = |count: usize| v1::GetChangesRequest { collections: vec!["notes".into(); count], ..feed() };
    assert!(changes(collections(64)).is_ok());
    assert_eq!(violated(changes(collections(65))), ["collections"]);
    let unknown = v1::GetChangesRequest { collections: vec!["nowhere".into()], page_size: -1, ..feed() };
    assert_eq!(violated(changes(unknown)), ["collections[0]", "page_size"]);
}

/// Field numbers of the public contract: an older client sends these bytes.
#[test]
fn the_bytes_of_a_write_are_frozen() {
    let bytes = full_write().encode_to_vec();
    assert_eq!(
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "0a05616c696365122431323365343536372d653839622d313264332d613435362d3432363631343137343030\
         301a08080c10ff94fea40122210a0e0a08636f6e746163747312026331120f0a0a746578742f766361726412\
         017822220a0b0a056e6f74657312026e31120f0a0a746578742f76636172641201792a02080422220a0b0a05\
         6e6f74657312026e32120f0a0a746578742f766361726412017a2a02100122150a0d0a056e6f746573120467\
         6f6e651a002a0218012800320570686f6e65390900000000000000"
    );
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
        let damaged = |mut bytes: Vec<u8>| {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        };
        let bytes = damaged(full_write().encode_to_vec());
        if let Ok(request) = v1::BatchWriteRequest::decode(&bytes[..]) { let _ = batch_write(request); }
        let keys = vec![v1::RecordKey { collection: "notes".into(), record_id: "n1".into() }];
        let get = v1::BatchGetRecordsRequest { user_id: "alice".into(), keys, ..Default::default() };
        let bytes = damaged(get.encode_to_vec());
        if let Ok(request) = v1::BatchGetRecordsRequest::decode(&bytes[..]) { let _ = batch_get(request); }
        let bytes = damaged(v1::ListRecordsRequest { order: 1, page_size: 7, page_token: "AAAA".into(), ..listing() }.encode_to_vec());
        if let Ok(request) = v1::ListRecordsRequest::decode(&bytes[..]) { let _ = list(request); }
        let bytes = damaged(v1::GetChangesRequest { collections: vec!["notes".into()], wait_ms: 7, ..feed() }.encode_to_vec());
        if let Ok(request) = v1::GetChangesRequest::decode(&bytes[..]) { let _ = changes(request); }
    }
}
