use holdfast_model::id::{Incarnation, Millis, Uid, Version};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::token::user_tag;

fn ann() -> UserId {
    UserId::new("ann").expect("valid")
}

fn token(user: &UserId, filter: u64) -> SyncToken {
    SyncToken {
        incarnation: Incarnation(7),
        user_tag: user_tag(user),
        uid: Uid(1),
        version: Version(9),
        filter,
        issued: Millis(3),
        fresh_until: Version(0),
        seen: Version(0),
    }
}

fn fields<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Vec<String> {
    match result {
        Err(Refusal::Invalid(violations)) => violations.into_iter().map(|one| one.field).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_acknowledgement_speaks_of_the_token() {
    let request = |user_id: &str, device_id: &str, sync_token: String| v1::AckCursorRequest {
        user_id: user_id.into(),
        device_id: device_id.into(),
        sync_token,
    };
    // The filter is the feed's affair: a device that keeps only its contacts has seen these versions all the same.
    for filter in [0, 5] {
        let ack = ack_cursor(request("ann", "phone", token(&ann(), filter).encode())).expect("valid");
        assert_eq!((ack.incarnation, ack.version), (Incarnation(7), Version(9)));
        assert_eq!((ack.user, ack.device.as_str()), (ann(), "phone"));
    }
    assert_eq!(fields(ack_cursor(request("", "", String::new()))), ["user_id", "device_id", "sync_token"]);
    let other = token(&UserId::new("bob").expect("valid"), 0).encode();
    for (text, error) in
        [(other, crate::token::TokenError::OtherUser), ("x".into(), crate::token::TokenError::Malformed)]
    {
        assert_eq!(ack_cursor(request("ann", "phone", text)), Err(Refusal::Token(error)));
    }
}

#[test]
fn a_watch_names_users_and_their_tokens() {
    let add = |user: &str, sync_token: &str| v1::WatchAdd { user_id: user.into(), sync_token: sync_token.into() };
    let request = |adds: Vec<v1::WatchAdd>, removes: &[&str]| v1::WatchRequest {
        adds,
        remove_user_ids: removes.iter().map(|user| (*user).to_owned()).collect(),
    };
    let text = token(&ann(), 0).encode();
    let change = watch(request(vec![add("ann", &text), add("bob", "")], &["carol"])).expect("valid");
    assert_eq!(change.adds[0], (ann(), Some(token(&ann(), 0))));
    assert_eq!((change.adds[1].1, change.removes.len()), (None, 1));
    assert_eq!(watch(request(vec![], &[])), Ok(WatchChange::default()));
    assert_eq!(fields(watch(request(vec![add("", "")], &[""]))), ["adds[0].user_id", "remove_user_ids[0]"]);
    let token_of_ann = Refusal::Token(crate::token::TokenError::OtherUser);
    assert_eq!(watch(request(vec![add("bob", &text)], &[])), Err(token_of_ann));
    let most = vec![add("ann", ""); limits::WATCH_CHANGES_MAX];
    assert!(watch(request(most.clone(), &[])).is_ok());
    assert_eq!(fields(watch(request(most, &["bob"]))), ["adds"]);
}

#[test]
fn what_names_no_user_is_refused() {
    assert_eq!(fields(manifest(v1::GetManifestRequest::default())), ["user_id"]);
    assert_eq!(fields(list_devices(v1::ListDevicesRequest::default())), ["user_id"]);
    assert_eq!(fields(drop_device(v1::DropDeviceRequest::default())), ["user_id", "device_id"]);
    assert_eq!(fields(user(v1::GetUserRequest::default())), ["user_id"]);
    assert_eq!(fields(changes(v1::GetChangesRequest::default())), ["user_id"]);
}

#[test]
fn a_manifest_reads_linearizable_unless_asked_otherwise() {
    let request = v1::GetManifestRequest {
        user_id: "ann".into(),
        collections: vec!["notes".into(), "contacts".into()],
        consistency: None,
    };
    let query = manifest(request.clone()).expect("valid");
    assert_eq!(query.consistency, Consistency::Linearizable);
    assert_eq!(query.filter, filter_hash(&query.collections));
    let level = Some(v1::read_consistency::Level::MaxStalenessMs(5));
    let query =
        manifest(v1::GetManifestRequest { consistency: Some(v1::ReadConsistency { level }), ..request.clone() });
    assert_eq!(query.expect("valid").consistency, Consistency::MaxStaleness(Duration::from_millis(5)));
    let many = vec!["notes".to_owned(); limits::FILTER_COLLECTIONS_MAX + 1];
    assert_eq!(fields(manifest(v1::GetManifestRequest { collections: many, ..request })), ["collections"]);
}

proptest! {
    /// Whatever arrives is a request or a refusal.
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = &bytes[..];
        let _ = v1::GetChangesRequest::decode(bytes).map(changes);
        let _ = v1::GetManifestRequest::decode(bytes).map(manifest);
        let _ = v1::WatchRequest::decode(bytes).map(watch);
        let _ = v1::AckCursorRequest::decode(bytes).map(ack_cursor);
        let _ = v1::ListDevicesRequest::decode(bytes).map(list_devices);
        let _ = v1::DropDeviceRequest::decode(bytes).map(drop_device);
        let _ = v1::GetUserRequest::decode(bytes).map(user);
        let _ = v1::BatchWriteRequest::decode(bytes).map(crate::api::batch_write);
        let _ = v1::BatchGetRecordsRequest::decode(bytes).map(crate::api::batch_get);
        let _ = v1::ListRecordsRequest::decode(bytes).map(crate::api::list);
    }

    /// A token is taken whole or not at all.
    #[test]
    fn a_damaged_token_is_refused(at in any::<prop::sample::Index>(), other in "[A-Za-z0-9_-]", text in ".{0,120}") {
        let whole = token(&ann(), 0).encode();
        let at = at.index(whole.len());
        let damaged = format!("{}{other}{}", &whole[..at], &whole[at + 1..]);
        let read = SyncToken::decode_any_filter(&damaged, &ann());
        prop_assert!(damaged == whole || read.is_err());
        prop_assert!(SyncToken::decode_any_filter(&text, &ann()).is_err());
    }
}
