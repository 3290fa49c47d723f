//! Tests of the durable formats: round trips, frozen bytes, and that no bytes make a decoder panic.

use holdfast_model::attest::{Attestation, Attested, Word};
use holdfast_model::command::{ArchiveKeys, ArchiveRecipient, LineageFork, OffsiteFact, Parent, Policy};
use holdfast_model::id::{NodeId, Stage};
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
        any::<[u64; 9]>(),
        any::<u16>(),
        proptest::option::of(history),
        proptest::collection::vec(ancestor, 0..3),
        any::<[u8; 32]>(),
        proptest::collection::vec(fact, 0..3),
        proptest::option::of(any::<(u32, [u8; 16], u64, bool)>()),
        proptest::option::of(any::<[u64; 3]>()),
        proptest::option::of((
            proptest::sample::subsequence(Stage::all().collect::<Vec<_>>(), 1..=6),
            any::<[u8; 9]>(),
        )),
        proptest::collection::vec((0u64..4, 1u64..4, any::<[u8; 32]>()), 0..6),
    )
        .prop_map(|(numbers, rules, history, ancestors, digest, offsite, keys, fork, restoring, attested)| Sys {
            now: Millis(numbers[0]),
            rules,
            history: history.map(Arc::new),
            ancestors,
            uid_counter: numbers[1],
            digest: Sum(digest),
            totals: Totals { users: numbers[2], records: numbers[3], bytes: numbers[4] },
            offsite: Arc::new(offsite.into_iter().collect()),
            barrier_index: numbers[5],
            policy: Policy { tombstone_age_ms: numbers[6], device_expiry_ms: numbers[7], user_quota_bytes: numbers[8] },
            archive_keys: keys.map(|(generation, key_id, since, drill)| {
                let recipients = vec![ArchiveRecipient { key: "age1".into(), drill }];
                ArchiveKeys { generation, key_id, recipients, since: Millis(since), ..golden_keys() }.into()
            }),
            lineage_fork: fork.map(|[incarnation, index, since]| {
                let incarnation = Incarnation(incarnation);
                LineageFork { incarnation, index, since: Millis(since), ..golden_fork() }.into()
            }),
            restoring: restoring
                .map(|(left, through)| Restoring { left, through: Bytes::copy_from_slice(&through) }.into()),
            attested: attested_by(&attested).into(),
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
        any::<[u64; 8]>(),
        proptest::collection::btree_map(any_collection(), digest, 0..4),
        proptest::collection::vec(fork, 0..3),
    )
        .prop_map(
            |([head, horizon, used_bytes, record_count, head_index, mark, mark_index, settled], collections, forks)| {
                UserRow {
                    head: Version(head),
                    tombstone_horizon: Version(horizon),
                    usage: Usage { used_bytes, record_count },
                    collections,
                    forks,
                    places: Places { head_index, mark: Version(mark), mark_index, settled: Version(settled) },
                }
            },
        )
}

fn any_record() -> impl Strategy<Value = (RecordRow, Vec<u8>)> {
    let payload = proptest::collection::vec(any::<u8>(), 0..200);
    (any::<[u64; 2]>(), any::<u16>(), any::<[u8; 16]>(), ".{0,20}", any::<[Option<u64>; 4]>(), payload).prop_map(
        |([version, update_time], ordinal, hash, content_type, [deleted, expires, purged, lost], payload)| {
            let row = RecordRow {
                version: Version(version),
                ordinal,
                content_hash: ContentHash(hash),
                content_type,
                payload_len: payload.len() as u64,
                update_time: Millis(update_time),
                delete_time: deleted.map(Millis),
                expire_time: expires.map(Millis),
                purge_time: purged.map(Millis),
                lost: lost.map(Version),
            };
            (row, payload)
        },
    )
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
        prop_assert_eq!(decode_record_parts(&value).unwrap(), (row.clone(), Payload::There(&payload)));
        let head = record_head(&value).unwrap();
        let left = if payload.is_empty() { Payload::There(&[]) } else { Payload::HeldBack };
        prop_assert_eq!((head.len() + payload.len(), decode_record_parts(head).unwrap()), (value.len(), (row, left)));
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
        let _ = decode_record_parts(&bytes);
    }

    #[test]
    fn damaged_rows_never_panic(
        sys in any_sys(),
        user in any_user(),
        change in any_change(),
        request in any_request(),
        at: prop::sample::Index,
        bit in 0u8..8,
    ) {
        let damaged = |bytes: Bytes| {
            let mut bytes = bytes.to_vec();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            bytes
        };
        let _ = decode_sys(&damaged(encode_sys(&sys)));
        let _ = decode_user(&damaged(encode_user(&user)));
        let _ = decode_change(&damaged(encode_change(&change)));
        let _ = decode_request(&damaged(encode_request(&request)));
        let _ = decode_operation(&damaged(encode_operation(&golden_operation())));
        let _ = decode_applied(&damaged(encode_applied(&golden_applied())));
    }

    #[test]
    fn a_damaged_record_never_panics_nor_changes_its_length((row, payload) in any_record(), at: prop::sample::Index, bit in 0u8..8) {
        let mut value = encode_record(&row, &payload).to_vec();
        let at = at.index(value.len());
        value[at] ^= 1 << bit;
        if let Ok((row, Payload::There(payload))) = decode_record_parts(&value) {
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
        expire_time: None,
        purge_time: None,
        lost: None,
    }
}

/// Cut right behind what names the payload it is a record whose payload is held back, and nowhere else.
#[test]
fn a_record_cut_short_is_refused() {
    let value = encode_record(&golden_record(), b"hi");
    let head = value.len() - 2;
    for end in (0..value.len()).filter(|end| *end != head) {
        assert!(decode_record_parts(&value[..end]).is_err(), "cut at {end}");
    }
    assert_eq!(decode_record_parts(&value[..head]), Ok((golden_record(), Payload::HeldBack)));
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

#[test]
fn what_this_build_does_not_know_is_refused() {
    let refused = |value: Vec<u8>, why: &str| {
        let error = decode_record_parts(&value).expect_err(why);
        assert!(error.reason.contains(why), "{error}");
    };
    let value = encode_record(&golden_record(), b"hi");
    let mut other_layout = value.to_vec();
    other_layout[0] = 2;
    refused(other_layout, "layout 2 is not known");
    let stored = |change: &dyn Fn(&mut pb::StoredRecordHeader), payload: &[u8]| {
        let mut header: pb::StoredRecordHeader = decode("test", encode_record_header(&golden_record())).expect("valid");
        change(&mut header);
        let header = encode(&header);
        [&[RECORD_LAYOUT][..], &(header.len() as u32).to_be_bytes(), &header, payload].concat()
    };
    refused(stored(&|header| header.key_id = 7, b"hi"), "encrypted under key 7");
    refused(stored(&|header| header.ordinal = 65_536, b"hi"), "ordinal is 65536");
    refused(stored(&|header| header.content_hash = vec![7; 15].into(), b"hi"), "content_hash has 15 bytes");
    refused(stored(&|_| (), b"h"), "payload has 1 bytes, the header says 2");
    refused(stored(&|_| (), b"hi!"), "payload has 3 bytes, the header says 2");
    let mut endless = value.to_vec();
    endless[1] = 255;
    refused(endless, "is cut off");
}

#[test]
fn numbers_out_of_range_are_not_cut_to_size() {
    let sys: pb::StoredSys = decode("test", encode_sys(&golden_sys())).expect("valid");
    let rules = pb::StoredSys { rules: 65_536, ..sys.clone() };
    assert!(decode_sys(&encode(&rules)).is_err());
    let ancestors = vec![pb::StoredAncestor { incarnation: 1, epoch: 65_536 }];
    assert!(decode_sys(&encode(&pb::StoredSys { ancestors, ..sys.clone() })).is_err());
    let history = sys.history.clone().map(|history| pb::StoredHistory { epoch: 65_536, ..history });
    assert!(decode_sys(&encode(&pb::StoredSys { history, ..sys })).is_err());
}

fn golden_keys() -> ArchiveKeys {
    ArchiveKeys {
        incarnation: Incarnation(26),
        generation: 27,
        key_id: [28; 16],
        keys_age: Bytes::from_static(b"age"),
        recipients: vec![
            ArchiveRecipient { key: "age1a".into(), drill: true },
            ArchiveRecipient { key: "age1b".into(), drill: false },
        ],
        since: Millis(29),
    }
}

fn golden_fork() -> LineageFork {
    LineageFork {
        incarnation: Incarnation(30),
        destination: "s3".into(),
        index: 31,
        evidence: "other".into(),
        verifier: NodeId(32),
        since: Millis(33),
    }
}

fn golden_restoring() -> Restoring {
    Restoring { left: Stage::all().skip(4).collect(), through: Bytes::from_static(&[34, 35]) }
}

fn golden_sys() -> Sys {
    let parent =
        Parent { cluster_id: [2; 16], incarnation: Incarnation(3), snapshot_index: 4, index: 5, chain: [6; 32] };
    let fact =
        OffsiteFact { destination: "vault".into(), index: 7, chain: [8; 32], verifier: NodeId(9), at: Millis(10) };
    Sys {
        now: Millis(11),
        rules: 12,
        history: Some(Arc::new(History {
            cluster_id: [13; 16],
            cluster_name: "pine".into(),
            incarnation: Incarnation(14),
            epoch: 15,
            parent: Some(parent),
            genesis_index: 16,
        })),
        ancestors: vec![Ancestor { incarnation: Incarnation(3), epoch: 1 }],
        uid_counter: 17,
        digest: Sum([18; 32]),
        totals: Totals { users: 19, records: 20, bytes: 21 },
        offsite: Arc::new(BTreeMap::from([("vault".into(), fact)])),
        barrier_index: 22,
        policy: Policy { tombstone_age_ms: 23, device_expiry_ms: 24, user_quota_bytes: 25 },
        archive_keys: Some(golden_keys().into()),
        lineage_fork: Some(golden_fork().into()),
        restoring: Some(golden_restoring().into()),
        attested: attested_by(&[(30, 1, [31; 32])]).into(),
    }
}

/// By barrier, node and root.
fn attested_by(said: &[(u64, u64, [u8; 32])]) -> Attested {
    said.iter().fold(Attested::default(), |all, (index, node, root)| {
        let (node, word) = (NodeId(*node), Word { root: *root, signature: [32; 64] });
        let said = Attestation { incarnation: Incarnation(0), index: *index, node, key: [node.0 as u8; 32], word };
        let all = all.with_barrier(*index);
        all.with(&said).unwrap_or(all)
    })
}

fn golden_applied() -> AppliedRecord {
    AppliedRecord {
        position: Some(pb::LogId { term: 1, node: 2, index: 3 }),
        membership: vec![4].into(),
        entry_chain: [5; 32],
        effect_chain: [6; 32],
    }
}

fn golden_operation() -> Operation {
    Operation {
        id: "op".into(),
        done: true,
        stage: "shipping".into(),
        done_units: 1,
        total_units: 2,
        error: "full".into(),
        ..Operation::default()
    }
}

/// As [`golden_bytes`], for what every batch and every restart reads.
#[test]
fn golden_bytes_of_group_facts_and_users() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(
        hex(&encode_sys(&golden_sys())),
        "080b100c1a680a100d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d120470696e65190e00000000000000200f2a410a\
         1002020202020202020202020202020202110300000000000000180420052a20060606060606060606060606\
         06060606060606060606060606060606060606063010220b0903000000000000001001281132201212121212\
         121212121212121212121212121212121212121212121212121212381340144815522f0a057661756c741007\
         1a2008080808080808080808080808080808080808080808080808080808080808082009280a581662060817\
         101818196a38091a00000000000000101b1a101c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c22036167652a090a05\
         616765316110012a070a056167653162301d721a091e0000000000000012027333181f22056f746865722820\
         30217a080a020405120222238201240801122001010101010101010101010101010101010101010101010101\
         010101010101018a016a081e1266080112201f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f\
         1f1f1f1f1f1f1a40202020202020202020202020202020202020202020202020202020202020202020202020\
         20202020202020202020202020202020202020202020202020202020"
    );
    assert_eq!(
        hex(&encode_applied(&golden_applied())),
        "0a060801100218031201041a2005050505050505050505050505050505050505050505050505050505050505\
         0522200606060606060606060606060606060606060606060606060606060606060606"
    );
    let notes = CollectionDigest { count: 1, sum: Sum([2; 32]) };
    let user = UserRow {
        head: Version(3),
        tombstone_horizon: Version(4),
        usage: Usage { used_bytes: 5, record_count: 6 },
        collections: BTreeMap::from([(Collection::new("notes").expect("valid"), notes)]),
        forks: vec![Fork { incarnation: Incarnation(7), common: Version(8) }],
        places: Places { head_index: 9, mark: Version(10), mark_index: 11, settled: Version(12) },
    };
    assert_eq!(
        hex(&encode_user(&user)),
        "08031004180520062a2b0a056e6f74657310011a200202020202020202020202020202020202020202020202\
         020202020202020202320b09070000000000000010083809400a480b500c"
    );
    let device = DeviceRow { acked: Version(1), ack_time: Millis(2), expires: Millis(3) };
    assert_eq!(hex(&encode_device(&device)), "080110021803");
    let expiring = RecordRow { expire_time: Some(Millis(4)), lost: Some(Version(5)), ..golden_record() };
    assert_eq!(
        hex(&encode_record(&expiring, b"hi")),
        "0100000031088280808080804010031a1007070707070707070707070707070707220a746578742f76636172\
         64280230e807480458056869"
    );
    let tombstone = RecordRow {
        delete_time: Some(Millis(2000)),
        purge_time: Some(Millis(3000)),
        payload_len: 0,
        ..golden_record()
    };
    assert_eq!(
        hex(&encode_record(&tombstone, b"")),
        "0100000031088280808080804010031a1007070707070707070707070707070707220a746578742f76636172\
         6430e80738d00f50b817"
    );
    let operation = encode_operation(&golden_operation());
    assert_eq!(hex(&operation), "0a026f7010011a087368697070696e6720012802320466756c6c");
    assert_eq!(decode_operation(&operation), Ok(golden_operation()));
}
