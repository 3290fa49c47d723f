use proptest::prelude::*;

use super::*;

fn proposal() -> impl Strategy<Value = Proposal> {
    let mutation = ("[a-z]{1,8}", any::<bool>(), proptest::collection::vec(any::<u8>(), 0..64), 0u8..5).prop_map(
        |(id, delete, payload, guard)| Mutation {
            key: RecordKey {
                collection: Collection::new("contacts").expect("known"),
                record_id: RecordId::new(&id).expect("valid"),
            },
            op: if delete {
                Op::Delete
            } else {
                Op::Put(Content {
                    content_type: "text/vcard".into(),
                    ttl_seconds: payload.len() as u32,
                    payload: payload.into(),
                })
            },
            guard: match guard {
                0 => Guard::None,
                1 => Guard::Absent,
                2 => Guard::Exists,
                3 => Guard::Restore(golden_restore()),
                _ => Guard::Version(Version(7)),
            },
        },
    );
    let batch = (
        "[a-zé]{1,20}",
        any::<[u8; 16]>(),
        any::<Option<u64>>(),
        any::<Option<u64>>(),
        proptest::option::of(1..u64::MAX),
        proptest::option::of("[a-z]{1,9}"),
        proptest::collection::vec(mutation, 0..5),
    )
        .prop_map(|(user, id, first_sent, if_head, incarnation, device, mutations)| WriteBatch {
            user: UserId::new(&user).expect("valid"),
            request_id: RequestId(id),
            fingerprint: id,
            first_sent: first_sent.map(Millis),
            device: device.map(|id| DeviceId::new(&id).expect("valid")),
            if_head: if_head.map(Version),
            if_incarnation: incarnation.map(Incarnation),
            mutations,
        });
    let fold = proptest::collection::vec(batch.clone(), 0..4).prop_map(Command::Fold);
    let batch = batch.prop_map(Command::WriteBatch);
    let genesis = (any::<[u8; 16]>(), any::<u16>(), any::<Option<[u8; 32]>>()).prop_map(|(id, epoch, chain)| {
        Command::Genesis(Genesis {
            cluster_id: id,
            cluster_name: "pine".into(),
            incarnation: Incarnation(9),
            epoch,
            parent: chain.map(|chain| Parent {
                cluster_id: id,
                incarnation: Incarnation(3),
                snapshot_index: 4,
                index: 8,
                chain,
            }),
            members: vec![NodeId(1), NodeId(2)],
            restoring: Stage::all().skip(epoch as usize % 7).collect(),
        })
    });
    let other = prop_oneof![
        Just(Command::Expire),
        Just(Command::SetOperation(golden_operation())),
        Just(Command::SetOperation(golden_member_change())),
        any::<[u64; 3]>().prop_map(|[tombstone_age_ms, device_expiry_ms, user_quota_bytes]| {
            Command::SetPolicy(Policy { tombstone_age_ms, device_expiry_ms, user_quota_bytes })
        }),
        any::<[u64; 2]>().prop_map(|[incarnation, version]| Command::AckCursor(AckCursor {
            incarnation: Incarnation(incarnation),
            version: Version(version),
            ..golden_ack()
        })),
        Just(Command::DropDevice(golden_drop())),
        any::<(u32, [u8; 16], bool)>().prop_map(|(generation, key_id, drill)| {
            let recipients = vec![ArchiveRecipient { key: "age1a".into(), drill }];
            Command::SetArchiveKeys(Box::new(ArchiveKeys { generation, key_id, recipients, ..golden_keys() }))
        }),
        any::<[u64; 4]>().prop_map(|[incarnation, index, verifier, since]| {
            Command::LineageFork(Box::new(LineageFork {
                incarnation: Incarnation(incarnation),
                index,
                verifier: NodeId(verifier),
                since: Millis(since),
                ..golden_fork()
            }))
        }),
        (any::<u64>(), any::<[u8; 5]>(), any::<bool>()).prop_map(|(incarnation, through, ends)| {
            let through = Bytes::copy_from_slice(&through);
            let incarnation = Incarnation(incarnation);
            Command::FillPayloads(FillPayloads { incarnation, through, ends, ..golden_fill() })
        }),
        Just(Command::SnapshotBarrier(SnapshotBarrier { operation_id: "op".into() })),
        any::<([u64; 3], [u8; 32])>().prop_map(|([incarnation, index, node], key)| {
            let (incarnation, node) = (Incarnation(incarnation), NodeId(node));
            Command::Attest(Box::new(Attestation { incarnation, index, node, key, ..golden_attestation() }))
        }),
        any::<[u8; 32]>().prop_map(|chain| Command::OffsiteFact(OffsiteFact {
            destination: "vault".into(),
            index: 5,
            chain,
            verifier: NodeId(2),
            at: Millis(99),
        })),
    ];
    (any::<u16>(), any::<u64>(), prop_oneof![batch, fold, genesis, other])
        .prop_map(|(rules, stamp, command)| Proposal { rules, stamp: Millis(stamp), command })
}

fn golden_restore() -> RestoreGuard {
    RestoreGuard { common: Version(1), lost: Version(2), incarnation: Incarnation(3) }
}

fn golden_ack() -> AckCursor {
    AckCursor {
        user: UserId::new("ann").expect("valid"),
        device: DeviceId::new("phone").expect("valid"),
        incarnation: Incarnation(4),
        version: Version(5),
    }
}

fn golden_fill() -> FillPayloads {
    let key = RecordKey {
        collection: Collection::new("photos").expect("valid"),
        record_id: RecordId::new("p1").expect("valid"),
    };
    let user = UserRef { slot: Slot(5), uid: Uid(6) };
    FillPayloads {
        incarnation: Incarnation(9),
        stage: Stage::of_name("photos").expect("a stage"),
        fills: vec![Fill { user, key, payload: Bytes::from_static(b"sea") }],
        through: Bytes::from_static(b"k"),
        ends: true,
    }
}

fn golden_attestation() -> Attestation {
    let word = Word { root: [4; 32], signature: [5; 64] };
    Attestation { incarnation: Incarnation(1), index: 2, node: NodeId(3), key: [6; 32], word }
}

fn golden_fork() -> LineageFork {
    LineageFork {
        incarnation: Incarnation(9),
        destination: "s3".into(),
        index: 5,
        evidence: "other".into(),
        verifier: NodeId(2),
        since: Millis(7),
    }
}

fn golden_keys() -> ArchiveKeys {
    ArchiveKeys {
        incarnation: Incarnation(9),
        generation: 5,
        key_id: [6; 16],
        keys_age: Bytes::from_static(b"age"),
        recipients: vec![
            ArchiveRecipient { key: "age1a".into(), drill: true },
            ArchiveRecipient { key: "age1b".into(), drill: false },
        ],
        since: Millis(0),
    }
}

fn golden_drop() -> DropDevice {
    DropDevice { user: UserId::new("ann").expect("valid"), device: DeviceId::new("phone").expect("valid") }
}

fn membership() -> pb::Membership {
    let member = pb::Member {
        id: 1,
        client_address: "c:1".into(),
        peer_address: "p:2".into(),
        admin_address: "a:3".into(),
        http_address: "h:4".into(),
        labels: vec![pb::Label { key: "array".into(), value: "san-07".into() }],
        identity: "0f".into(),
    };
    pb::Membership { configs: vec![pb::VoterConfig { voters: vec![1, 300] }], members: vec![member] }
}

proptest! {
    #[test]
    fn proposals_round_trip(proposal in proposal()) {
        prop_assert_eq!(decode_proposal(&encode_proposal(&proposal)).expect("decodes"), proposal);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        let _ = decode_proposal(&bytes);
        let _ = decode_entry(&bytes);
    }

    #[test]
    fn damaged_proposals_never_panic(proposal in proposal(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = encode_proposal(&proposal).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = decode_proposal(&bytes.into());
    }

    #[test]
    fn entries_round_trip(term in any::<u64>(), index in any::<u64>(), payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let payloads =
            [EntryPayload::Blank, EntryPayload::Proposal(payload.into()), EntryPayload::Membership(membership())];
        for payload in payloads {
            let entry = Entry { id: LogId { term, node: 3, index }, payload };
            prop_assert_eq!(decode_entry(&encode_entry(&entry)).expect("decodes"), entry);
        }
    }
}

#[test]
fn the_bytes_of_an_entry_are_frozen() {
    let entry =
        Entry { id: LogId { term: 2, node: 1, index: 300 }, payload: EntryPayload::Proposal(vec![1, 2, 3].into()) };
    assert_eq!(&encode_entry(&entry)[..], [10, 7, 8, 2, 16, 1, 24, 172, 2, 26, 3, 1, 2, 3]);
}

#[test]
fn the_chain_depends_on_every_byte_and_on_the_past() {
    let a = entry_chain([0; 32], b"one");
    assert_ne!(a, entry_chain([0; 32], b"onf"));
    assert_ne!(entry_chain(a, b"two"), entry_chain([1; 32], b"two"));
}

#[test]
fn what_is_missing_or_out_of_range_is_refused() {
    let entry = |id, payload| decode_entry(&encode(&pb::Entry { id, payload }));
    let id = Some(LogId { term: 1, node: 1, index: 1 });
    assert!(entry(id, Some(pb::entry::Payload::Blank(pb::Empty {}))).is_ok());
    assert!(entry(None, Some(pb::entry::Payload::Blank(pb::Empty {}))).is_err());
    assert!(entry(id, None).is_err());
    let proposal = |rules, command| decode_proposal(&encode(&pb::Proposal { rules, stamp_ms: 1, command }));
    let expire = || Some(pb::proposal::Command::Expire(pb::Expire {}));
    assert!(proposal(65_535, expire()).is_ok());
    assert!(proposal(65_536, expire()).is_err());
    assert!(proposal(1, None).is_err());
    let genesis = |epoch| {
        let genesis = pb::Genesis { cluster_id: vec![1; 16].into(), epoch, ..Default::default() };
        proposal(1, Some(pb::proposal::Command::Genesis(genesis)))
    };
    assert!(genesis(65_535).is_ok());
    assert!(genesis(65_536).is_err());
    let mutation = |op| pb::Mutation { collection: "notes".into(), record_id: "n1".into(), op, guard: None };
    let batch = |op| pb::WriteBatch {
        user_id: "ann".into(),
        request_id: vec![1; 16].into(),
        fingerprint: vec![2; 16].into(),
        mutations: vec![mutation(op)],
        ..Default::default()
    };
    let write = |batch| proposal(1, Some(pb::proposal::Command::WriteBatch(batch)));
    let delete = || Some(pb::mutation::Op::Delete(pb::Empty {}));
    assert!(write(batch(delete())).is_ok());
    assert!(write(batch(None)).is_err());
    assert!(write(pb::WriteBatch { request_id: vec![1; 15].into(), ..batch(delete()) }).is_err());
}

#[test]
fn a_barrier_is_told_from_every_other_proposal() {
    let is_barrier = |command| is_snapshot_barrier(&encode_proposal(&Proposal { rules: 1, stamp: Millis(1), command }));
    // The id of a job is a UUID.
    let operation_id = "123e4567-e89b-12d3-a456-426614174000".to_owned();
    assert!(is_barrier(Command::SnapshotBarrier(SnapshotBarrier { operation_id })));
    assert!(!is_barrier(Command::Expire));
    assert!(!is_barrier(Command::SetOperation(golden_operation())));
    assert!(!is_snapshot_barrier(&Bytes::from_static(b"\xff")));
}

fn golden_operation() -> Operation {
    Operation {
        id: "op".into(),
        done: true,
        stage: "shipping".into(),
        done_units: 3,
        total_units: 4,
        error: "full".into(),
        member_change: None,
    }
}

fn golden_member_change() -> Operation {
    let member = Member {
        client_address: "h:1".into(),
        peer_address: "h:2".into(),
        admin_address: "h:3".into(),
        http_address: "h:4".into(),
        labels: [("array".to_owned(), "a4".to_owned()), ("site".to_owned(), "x".to_owned())].into(),
        identity: "0f".into(),
    };
    let add = NewMember { id: NodeId(4), member };
    let change = MemberChange { add: Some(add), keep_learner: true, remove: Some(NodeId(2)) };
    Operation { id: "op".into(), member_change: Some(Box::new(change)), ..Operation::default() }
}

/// Bytes that an earlier build wrote, in the log of every node and in the archive. If this fails, they are no longer
/// readable: change the code, not the test.
#[test]
fn the_bytes_of_every_command_are_frozen() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let proposed = |command| hex(&encode_proposal(&Proposal { rules: 1, stamp: Millis(2), command }));
    let put = Op::Put(Content { content_type: "text/vcard".into(), payload: vec![9, 9].into(), ttl_seconds: 0 });
    let mutation = |id: &str, op: &Op, guard| Mutation {
        key: RecordKey {
            collection: Collection::new("notes").expect("known"),
            record_id: RecordId::new(id).expect("valid"),
        },
        op: op.clone(),
        guard,
    };
    let batch = WriteBatch {
        user: UserId::new("ann").expect("valid"),
        request_id: RequestId([3; 16]),
        fingerprint: [4; 16],
        first_sent: Some(Millis(5)),
        device: Some(DeviceId::new("phone").expect("valid")),
        if_head: Some(Version(6)),
        if_incarnation: Some(Incarnation(7)),
        mutations: vec![
            mutation("a", &put, Guard::None),
            mutation("b", &put, Guard::Absent),
            mutation("c", &Op::Delete, Guard::Exists),
            mutation("d", &Op::Delete, Guard::Version(Version(8))),
        ],
    };
    assert_eq!(
        proposed(Command::WriteBatch(batch)),
        "080110021a9b010a03616e6e1210030303030303030303030303030303031a10040404040404040404040404\
         0404040420052a0570686f6e653006390700000000000000421c0a056e6f7465731201611a100a0a74657874\
         2f766361726412020909421e0a056e6f7465731201621a100a0a746578742f7663617264120209093200420e\
         0a056e6f74657312016322003a00420e0a056e6f74657312016422002808"
    );
    let batch = WriteBatch {
        user: UserId::new("ann").expect("valid"),
        request_id: RequestId([3; 16]),
        fingerprint: [4; 16],
        first_sent: None,
        device: None,
        if_head: None,
        if_incarnation: None,
        mutations: vec![
            mutation("e", &Op::Delete, Guard::Restore(golden_restore())),
            mutation(
                "f",
                &Op::Put(Content { content_type: String::new(), payload: Bytes::new(), ttl_seconds: 7 }),
                Guard::None,
            ),
        ],
    };
    assert_eq!(
        proposed(Command::WriteBatch(batch.clone())),
        "080110021a560a03616e6e1210030303030303030303030303030303031a1004040404040404040404040404\
         040404421b0a056e6f7465731201652200420d08011002190300000000000000420e0a056e6f746573120166\
         1a021807"
    );
    let folded = WriteBatch { mutations: vec![mutation("g", &Op::Delete, Guard::None)], ..batch };
    let alone = Proposal { rules: 1, stamp: Millis(2), command: Command::WriteBatch(folded.clone()) };
    assert_eq!(encode_writes(1, Millis(2), [&folded].into_iter()), encode_proposal(&alone));
    assert_eq!(encode_writes(1, Millis(2), [&folded, &folded].into_iter()), {
        encode_proposal(&Proposal { rules: 1, stamp: Millis(2), command: Command::Fold(vec![folded.clone(), folded]) })
    });
    let parent =
        Parent { cluster_id: [1; 16], incarnation: Incarnation(3), snapshot_index: 4, index: 8, chain: [5; 32] };
    let genesis = Genesis {
        cluster_id: [2; 16],
        cluster_name: "pine".into(),
        incarnation: Incarnation(9),
        epoch: 3,
        parent: Some(parent),
        members: vec![NodeId(1), NodeId(2)],
        restoring: Vec::new(),
    };
    assert_eq!(
        proposed(Command::Genesis(genesis)),
        "08011002226a0a1002020202020202020202020202020202120470696e6519090000000000000020032a410a\
         1001010101010101010101010101010101110300000000000000180420082a20050505050505050505050505\
         050505050505050505050505050505050505050532020102"
    );
    let fact =
        OffsiteFact { destination: "vault".into(), index: 5, chain: [6; 32], verifier: NodeId(2), at: Millis(99) };
    assert_eq!(
        proposed(Command::OffsiteFact(fact)),
        "080110022a2f0a057661756c7410051a20060606060606060606060606060606060606060606060606060606\
         060606060620022863"
    );
    let barrier = SnapshotBarrier { operation_id: "op".into() };
    assert_eq!(proposed(Command::SnapshotBarrier(barrier)), "0801100232040a026f70");
    assert_eq!(proposed(Command::Expire), "080110023a00");
    assert_eq!(
        proposed(Command::AckCursor(golden_ack())),
        "080110024a170a03616e6e120570686f6e651904000000000000002005"
    );
    assert_eq!(proposed(Command::DropDevice(golden_drop())), "08011002520c0a03616e6e120570686f6e65");
    let policy = Policy { tombstone_age_ms: 1, device_expiry_ms: 2, user_quota_bytes: 3 };
    assert_eq!(proposed(Command::SetPolicy(policy)), "080110025a06080110021803");
    assert_eq!(
        proposed(Command::SetOperation(golden_operation())),
        "08011002421a0a026f7010011a087368697070696e6720032804320466756c6c"
    );
    assert_eq!(
        proposed(Command::SetOperation(golden_member_change())),
        "08011002423e0a026f703a380a3208041203683a311a03683a322203683a332a03683a34320b0a0561727261\
         791202613432090a04736974651201783a02306610011802"
    );
    assert_eq!(
        proposed(Command::SetArchiveKeys(Box::new(golden_keys()))),
        "08011002623609090000000000000010051a100606060606060606060606060606060622036167652a090a05\
         616765316110012a070a056167653162"
    );
    // Written by hand from the field numbers: 13 length-delimited, then 1 fixed64, 2 and 4 strings, 3, 5 and 6 varints.
    assert_eq!(
        proposed(Command::LineageFork(Box::new(golden_fork()))),
        "080110026a1a09090000000000000012027333180522056f7468657228023007"
    );
    // By hand as well: 15, then 1 fixed64, 2 and 3 varints, 4 to 6 bytes of 32, 32 and 64.
    let [key, root, signature] = [("06", 32), ("04", 32), ("05", 64)].map(|(byte, count)| byte.repeat(count));
    assert_eq!(
        proposed(Command::Attest(Box::new(golden_attestation()))),
        format!("080110027a93010901000000000000001002180322 20{key}2a20{root}3240{signature}").replace(' ', "")
    );
    // By hand as well: 14, then 1 fixed64, 2 and 5 varints, 3 a message of 1 and 2 varints and 3 to 5 strings, 4 bytes.
    assert_eq!(
        proposed(Command::FillPayloads(golden_fill())),
        "080110027227090900000000000000\
         10041a15080510061a0670686f746f73220270312a0373656122016b2801"
    );
    let entry = Entry { id: LogId { term: 1, node: 2, index: 3 }, payload: EntryPayload::Membership(membership()) };
    assert_eq!(
        hex(&encode_entry(&entry)),
        "0a0608011002180322340a050a0301ac02122b08011203633a311a03703a322203613a332a03683a34320f0a\
         056172726179120673616e2d30373a023066"
    );
}
