//! Tests of the durable formats: round trips, frozen bytes, and that no bytes make a decoder panic.

use holdfast_model::command::{OffsiteFact, Parent};
use holdfast_model::id::NodeId;
use proptest::prelude::*;

use super::*;

fn any_sys() -> impl Strategy<Value = Sys> {
    let fact = ("[a-z]{1,8}", any::<u64>(), any::<[u8; 32]>(), any::<u64>(), any::<u64>()).prop_map(
        |(destination, index, chain, verifier, at)| {
            let fact = OffsiteFact {
                destination: destination.clone(),
                index,
                chain,
                verifier: NodeId(verifier),
                at: Millis(at),
            };
            (destination, fact)
        },
    );
    let parent = (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(
        |(cluster_id, incarnation, snapshot_index, index, chain)| Parent {
            cluster_id,
            incarnation: Incarnation(incarnation),
            snapshot_index,
            index,
            chain,
        },
    );
    let history =
        (any::<[u8; 16]>(), ".{0,12}", any::<u64>(), any::<u16>(), proptest::option::of(parent), any::<u64>())
            .prop_map(|(cluster_id, cluster_name, incarnation, epoch, parent, genesis_index)| History {
                cluster_id,
                cluster_name,
                incarnation: Incarnation(incarnation),
                epoch,
                parent,
                genesis_index,
            });
    let ancestor = (any::<u64>(), any::<u16>())
        .prop_map(|(incarnation, epoch)| Ancestor { incarnation: Incarnation(incarnation), epoch });
    (
        any::<[u64; 6]>(),
        any::<u16>(),
        proptest::option::of(history),
        proptest::collection::vec(ancestor, 0..3),
        any::<[u8; 32]>(),
        proptest::collection::vec(fact, 0..3),
    )
        .prop_map(|(numbers, rules, history, ancestors, digest, offsite)| Sys {
            now: Millis(numbers[0]),
            rules,
            history,
            ancestors,
            uid_counter: numbers[1],
            digest: Sum(digest),
            totals: Totals { users: numbers[2], records: numbers[3], bytes: numbers[4] },
            offsite: offsite.into_iter().collect(),
            barrier_index: numbers[5],
        })
}

fn any_collection() -> impl Strategy<Value = Collection> {
    prop_oneof!["contacts|events|todos|notes|photos", "x-[a-z0-9_-]{1,60}"]
        .prop_map(|name| Collection::new(&name).expect("a valid name"))
}

fn any_id() -> impl Strategy<Value = RecordId> {
    "[^\\p{Cc}]{1,30}".prop_map(|id| RecordId::new(&id).expect("a valid id"))
}

fn any_user() -> impl Strategy<Value = UserRow> {
    let digest = (any::<u64>(), any::<[u8; 32]>()).prop_map(|(count, sum)| CollectionDigest { count, sum: Sum(sum) });
    let fork = (any::<u64>(), any::<u64>())
        .prop_map(|(incarnation, common)| Fork { incarnation: Incarnation(incarnation), common: Version(common) });
    (
        any::<[u64; 4]>(),
        proptest::collection::btree_map(any_collection(), digest, 0..4),
        proptest::collection::vec(fork, 0..3),
    )
        .prop_map(|([head, horizon, used_bytes, record_count], collections, forks)| UserRow {
            head: Version(head),
            tombstone_horizon: Version(horizon),
            usage: Usage { used_bytes, record_count },
            collections,
            forks,
        })
}

fn any_record() -> impl Strategy<Value = (RecordRow, Vec<u8>)> {
    let payload = proptest::collection::vec(any::<u8>(), 0..200);
    (any::<[u64; 2]>(), any::<u16>(), any::<[u8; 16]>(), ".{0,20}", proptest::option::of(any::<u64>()), payload)
        .prop_map(|([version, update_time], ordinal, hash, content_type, delete_time, payload)| {
            let row = RecordRow {
                version: Version(version),
                ordinal,
                content_hash: ContentHash(hash),
                content_type,
                payload_len: payload.len() as u64,
                update_time: Millis(update_time),
                delete_time: delete_time.map(Millis),
            };
            (row, payload)
        })
}

fn any_change() -> impl Strategy<Value = ChangeRow> {
    let device = proptest::option::of("[a-z]{1,9}".prop_map(|id| DeviceId::new(&id).expect("a valid id")));
    (any_collection(), any_id(), any::<[u8; 16]>(), any::<bool>(), device).prop_map(
        |(collection, record_id, hash, deleted, device)| ChangeRow {
            key: RecordKey { collection, record_id },
            content_hash: ContentHash(hash),
            deleted,
            device,
        },
    )
}

fn any_request() -> impl Strategy<Value = RequestRow> {
    let result = (any::<bool>(), any::<u64>())
        .prop_map(|(changed, version)| MutationResult { changed, version: Version(version) });
    (any::<[u8; 16]>(), any::<[u64; 5]>(), proptest::collection::vec(result, 0..5)).prop_map(
        |(fingerprint, [version, used_bytes, record_count, commit_index, expires], results)| RequestRow {
            fingerprint,
            version: Version(version),
            usage: Usage { used_bytes, record_count },
            results,
            commit_index,
            expires: Millis(expires),
        },
    )
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(
        sys in any_sys(),
        user in any_user(),
        (row, payload) in any_record(),
        change in any_change(),
        request in any_request(),
        position in any::<Option<[u64; 3]>>(),
        membership in proptest::collection::vec(any::<u8>(), 0..40),
        chains in any::<[[u8; 32]; 2]>(),
    ) {
        prop_assert_eq!(decode_sys(&encode_sys(&sys)).unwrap(), sys);
        prop_assert_eq!(decode_user(&encode_user(&user)).unwrap(), user);
        let value = encode_record(&row, &payload);
        prop_assert_eq!(decode_record_row(&value).unwrap(), row.clone());
        prop_assert_eq!(decode_record(&value).unwrap(), (row, payload.into()));
        prop_assert_eq!(decode_change(&encode_change(&change)).unwrap(), change);
        prop_assert_eq!(decode_request(&encode_request(&request)).unwrap(), request);
        let applied = AppliedRecord {
            position: position.map(|[term, node, index]| pb::LogId { term, node, index }),
            membership: membership.into(),
            entry_chain: chains[0],
            effect_chain: chains[1],
        };
        prop_assert_eq!(decode_applied(&encode_applied(&applied)).unwrap(), applied);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_sys(&bytes);
        let _ = decode_user(&bytes);
        let _ = decode_uid(&bytes);
        let _ = decode_change(&bytes);
        let _ = decode_request(&bytes);
        let _ = decode_operation(&bytes);
        let _ = decode_applied(&bytes);
        let _ = decode_record(&Bytes::from(bytes));
    }

    #[test]
    fn a_damaged_record_never_panics_nor_changes_its_length((row, payload) in any_record(), at: prop::sample::Index, bit in 0u8..8) {
        let mut value = encode_record(&row, &payload).to_vec();
        let at = at.index(value.len());
        value[at] ^= 1 << bit;
        if let Ok((row, payload)) = decode_record(&Bytes::from(value)) {
            prop_assert_eq!(row.payload_len, payload.len() as u64);
        }
    }
}

fn golden_record() -> RecordRow {
    RecordRow {
        version: Version::new(1, 2),
        ordinal: 3,
        content_hash: ContentHash([7; 16]),
        content_type: "text/vcard".into(),
        payload_len: 2,
        update_time: Millis(1000),
        delete_time: None,
    }
}

#[test]
fn a_record_cut_short_is_refused() {
    let value = encode_record(&golden_record(), b"hi");
    for end in 0..value.len() {
        assert!(decode_record(&value.slice(..end)).is_err(), "cut at {end}");
    }
}

/// Bytes that an earlier build wrote. If this fails, data on disk is no longer readable: change the code, not the test.
#[test]
fn golden_bytes() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(
        hex(&encode_record(&golden_record(), b"hi")),
        "010000002d088280808080804010031a1007070707070707070707070707070707\
         220a746578742f7663617264280230e8076869"
    );
    let change = ChangeRow {
        key: RecordKey {
            collection: Collection::new("notes").expect("valid"),
            record_id: RecordId::new("n1").expect("valid"),
        },
        content_hash: ContentHash([9; 16]),
        deleted: true,
        device: Some(DeviceId::new("d").expect("valid")),
    };
    assert_eq!(hex(&encode_change(&change)), "0a056e6f74657312026e311a100909090909090909090909090909090920012a0164");
    let request = RequestRow {
        fingerprint: [1; 16],
        version: Version(5),
        usage: Usage { used_bytes: 6, record_count: 7 },
        results: vec![MutationResult { changed: true, version: Version(5) }],
        commit_index: 8,
        expires: Millis(9),
    };
    assert_eq!(
        hex(&encode_request(&request)),
        "0a10010101010101010101010101010101011005180620072a04080110053008 3809".replace(' ', "")
    );
    let user = UserRow { head: Version(3), usage: Usage { used_bytes: 4, record_count: 1 }, ..UserRow::default() };
    assert_eq!(hex(&encode_user(&user)), "080318042001");
    assert_eq!(hex(&encode_uid(Uid::new(1, 2))), "0001000000000002");
}
