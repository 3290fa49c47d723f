//! Tests of the key registry: round trip, order, frozen bytes, and that no bytes make a parser panic.

use holdfast_model::id::{Collection, DeviceId, Millis, RecordId, RecordKey, RequestId, UserId, Version};
use holdfast_model::state::ExpiryItem;
use proptest::prelude::*;

use super::*;

fn any_user() -> impl Strategy<Value = UserRef> {
    (any::<u16>(), any::<u64>()).prop_map(|(slot, uid)| UserRef { slot: Slot(slot), uid: Uid(uid) })
}

fn any_key() -> impl Strategy<Value = RecordKey> {
    // Short and similar, so that one name is often a prefix of another.
    let collection = prop_oneof!["contacts|events|notes", "x-[ab-]{1,3}"];
    (collection, "[ -~é\u{10FFFF}]{1,3}").prop_map(|(collection, id)| RecordKey {
        collection: Collection::new(&collection).expect("a valid name"),
        record_id: RecordId::new(&id).expect("a valid id"),
    })
}

fn any_device() -> impl Strategy<Value = DeviceId> {
    "[ -~é]{1,3}".prop_map(|id| DeviceId::new(&id).expect("a valid id"))
}

proptest! {
    #[test]
    fn keys_parse_back_and_sort_as_their_tuples(
        users in any::<bool>().prop_flat_map(|same| (any_user(), any_user()).prop_map(move |(a, b)| (a, if same { a } else { b }))),
        records in (any_key(), any_key()),
        versions in any::<(u64, u64)>(),
        ordinals in any::<(u16, u16)>(),
        ids in any::<([u8; 16], [u8; 16])>(),
        times in (0u64..3, 0u64..3),
        kinds in (0u8..4, 0u8..4),
        names in (any_device(), any_device()),
    ) {
        let (a, b) = users;
        prop_assert_eq!(usr::parse(&usr::key(a)).unwrap(), a);
        prop_assert_eq!(usr::key(a).cmp(&usr::key(b)), a.cmp(&b));

        prop_assert_eq!(rec::parse(&rec::key(a, &records.0)).unwrap(), (a, records.0.clone()));
        prop_assert_eq!(
            rec::key(a, &records.0).cmp(&rec::key(b, &records.1)),
            (a, &records.0).cmp(&(b, &records.1))
        );

        let change = |user, version, ordinal| chg::key(user, Version(version), ordinal);
        prop_assert_eq!(chg::parse(&change(a, versions.0, ordinals.0)).unwrap(), (a, Version(versions.0), ordinals.0));
        prop_assert_eq!(
            change(a, versions.0, ordinals.0).cmp(&change(b, versions.1, ordinals.1)),
            (a, versions.0, ordinals.0).cmp(&(b, versions.1, ordinals.1))
        );

        prop_assert_eq!(req::parse(&req::key(a, RequestId(ids.0))).unwrap(), (a, RequestId(ids.0)));
        prop_assert_eq!(
            req::key(a, RequestId(ids.0)).cmp(&req::key(b, RequestId(ids.1))),
            (a, ids.0).cmp(&(b, ids.1))
        );

        let devices = (&names.0, &names.1);
        prop_assert_eq!(cur::parse(&cur::key(a, devices.0)).unwrap(), (a, devices.0.clone()));
        prop_assert_eq!(cur::key(a, devices.0).cmp(&cur::key(b, devices.1)), (a, devices.0).cmp(&(b, devices.1)));

        let item = |kind: u8, user: UserRef, id: [u8; 16], key: &RecordKey, name: &DeviceId| match kind {
            0 => ExpiryItem::Request(user, RequestId(id)),
            1 => ExpiryItem::Record(UserId::new(name.as_str()).unwrap(), key.clone()),
            2 => ExpiryItem::Tombstone(user, key.clone()),
            _ => ExpiryItem::Device(user, name.clone()),
        };
        let due = (Millis(times.0), item(kinds.0, a, ids.0, &records.0, &names.0));
        let other = (Millis(times.1), item(kinds.1, b, ids.1, &records.1, &names.1));
        prop_assert_eq!(exp::parse(&exp::key(due.0, &due.1)).unwrap(), due.clone());
        prop_assert_eq!(exp::key(due.0, &due.1).cmp(&exp::key(other.0, &other.1)), due.cmp(&other));
        prop_assert_eq!(exp::key(due.0, &due.1).as_slice() < &exp::after(Millis(1)).unwrap()[..], due.0 <= Millis(1));
    }

    #[test]
    fn user_ids_parse_back(id in "[^\\p{Cc}]{1,40}") {
        let user = UserId::new(&id).unwrap();
        prop_assert_eq!(uid::parse(&uid::key(&user)).unwrap(), user);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = (usr::parse(&bytes), uid::parse(&bytes), rec::parse(&bytes), chg::parse(&bytes));
        let _ = (req::parse(&bytes), exp::parse(&bytes), sys::parse(&bytes), cur::parse(&bytes));
    }

    #[test]
    fn a_prefix_ends_where_its_keys_do(prefix in proptest::collection::vec(any::<u8>(), 1..4), rest in proptest::collection::vec(any::<u8>(), 0..4)) {
        let inside = [prefix.clone(), rest].concat();
        match after_prefix(&prefix) {
            Some(end) => prop_assert!(inside < end && !end.starts_with(&prefix)),
            None => prop_assert!(prefix.iter().all(|byte| *byte == 0xff)),
        }
    }
}

/// Keys that an earlier build wrote. If this fails, data on disk is lost to this build: change the code, not the test.
#[test]
fn golden_bytes() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let user = UserRef { slot: Slot(0x0102), uid: Uid::new(1, 5) };
    let key = RecordKey {
        collection: Collection::new("notes").expect("valid"),
        record_id: RecordId::new("n1").expect("valid"),
    };
    let id = RequestId([0xaa; 16]);
    assert_eq!(hex(&usr::key(user)), "01020001000000000005");
    assert_eq!(hex(&rec::key(user, &key)), "010200010000000000056e6f746573006e31");
    assert_eq!(hex(&chg::key(user, Version::new(1, 2), 3)), "0102000100000000000500010000000000020003");
    assert_eq!(hex(&req::key(user, id)), "01020001000000000005aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    assert_eq!(
        hex(&exp::key(Millis(9), &ExpiryItem::Request(user, id))),
        "00000000000000090101020001000000000005aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    );
    assert_eq!(hex(&uid::key(&UserId::new("ann").expect("valid"))), "e8ff616e6e");
    assert_eq!(hex(&sys::operation_key("op")), "046f70");
    assert_eq!((sys::APPLIED, sys::FACTS, sys::GROUP), ([1], [2], [3]));
    let device = DeviceId::new("phone").expect("valid");
    assert_eq!(hex(&cur::key(user, &device)), "0102000100000000000570686f6e65");
    let ann = UserId::new("ann").expect("valid");
    assert_eq!(
        hex(&exp::key(Millis(9), &ExpiryItem::Record(ann, key.clone()))),
        "000000000000000902616e6e006e6f746573006e31"
    );
    assert_eq!(
        hex(&exp::key(Millis(9), &ExpiryItem::Tombstone(user, key))),
        "000000000000000903010200010000000000056e6f746573006e31"
    );
    assert_eq!(
        hex(&exp::key(Millis(9), &ExpiryItem::Device(user, device))),
        "0000000000000009040102000100000000000570686f6e65"
    );
    assert_eq!(Family::ALL.map(Family::tag), [1, 2, 3, 4, 5, 7, 8, 9]);
    assert_eq!(Family::ALL.map(Family::name), ["sys", "uid", "usr", "rec", "chg", "req", "cur", "exp"]);
}
