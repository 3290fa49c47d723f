use proptest::prelude::*;

use super::*;

fn proposal() -> impl Strategy<Value = Proposal> {
    let mutation = ("[a-z]{1,8}", any::<bool>(), proptest::collection::vec(any::<u8>(), 0..64), 0u8..4).prop_map(
        |(id, delete, payload, guard)| Mutation {
            key: RecordKey {
                collection: Collection::new("contacts").expect("known"),
                record_id: RecordId::new(&id).expect("valid"),
            },
            op: if delete {
                Op::Delete
            } else {
                Op::Put(Content { content_type: "text/vcard".into(), payload: payload.into() })
            },
            guard: match guard {
                0 => Guard::None,
                1 => Guard::Absent,
                2 => Guard::Exists,
                _ => Guard::Version(Version(7)),
            },
        },
    );
    let batch = (
        "[a-zé]{1,20}",
        any::<[u8; 16]>(),
        any::<Option<u64>>(),
        any::<Option<u64>>(),
        1..u64::MAX,
        proptest::collection::vec(mutation, 0..5),
    )
        .prop_map(|(user, id, first_sent, if_head, incarnation, mutations)| {
            Command::WriteBatch(WriteBatch {
                user: UserId::new(&user).expect("valid"),
                request_id: RequestId(id),
                fingerprint: id,
                first_sent: first_sent.map(Millis),
                device: Some(DeviceId::new("phone").expect("valid")),
                if_head: if_head.map(Version),
                if_incarnation: Some(Incarnation(incarnation)),
                mutations,
            })
        });
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
        })
    });
    let other = prop_oneof![
        Just(Command::Expire),
        Just(Command::SnapshotBarrier(SnapshotBarrier { operation_id: "op".into() })),
        any::<[u8; 32]>().prop_map(|chain| Command::OffsiteFact(OffsiteFact {
            destination: "vault".into(),
            index: 5,
            chain,
            verifier: NodeId(2),
            at: Millis(99),
        })),
    ];
    (any::<u16>(), any::<u64>(), prop_oneof![batch, genesis, other]).prop_map(|(rules, stamp, command)| Proposal {
        rules,
        stamp: Millis(stamp),
        command,
    })
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
        for payload in [EntryPayload::Blank, EntryPayload::Proposal(payload.into())] {
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
