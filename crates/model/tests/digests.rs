//! Digests: frozen bytes, and arithmetic modulo 2^256.
//!
//! The golden values were computed with another implementation of BLAKE3 (Python's `blake3`) from the formats as they
//! are documented. They are on people's devices, in backups and in the log: a change here breaks all three.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_model::command::{Content, Guard, Mutation, Op, RestoreGuard, WriteBatch};
use holdfast_model::digest::{Sum, content_hash, entry_hash, fingerprint, user_row_hash};
use holdfast_model::id::{
    Collection, DeviceId, Incarnation, Millis, RecordId, RecordKey, RequestId, Uid, UserId, Version,
};
use holdfast_model::outcome::Usage;
use holdfast_model::state::{CollectionDigest, Fork, Places, UserRow};
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content() -> Content {
    Content { content_type: "text/vcard".into(), payload: Bytes::from_static(b"BEGIN:VCARD"), ttl_seconds: 0 }
}

fn key(collection: &str, id: &str) -> RecordKey {
    RecordKey { collection: Collection::new(collection).unwrap(), record_id: RecordId::new(id).unwrap() }
}

fn entry() -> [u8; 32] {
    entry_hash(&RecordId::new("c1").unwrap(), Version::new(1, 7), content_hash(&content()))
}

fn mutation(id: (&str, &str), op: Op, guard: Guard) -> Mutation {
    Mutation { key: key(id.0, id.1), op, guard }
}

fn restore(common: u64, lost: u64, incarnation: u64) -> Guard {
    Guard::Restore(RestoreGuard { common: Version(common), lost: Version(lost), incarnation: Incarnation(incarnation) })
}

fn batch() -> WriteBatch {
    WriteBatch {
        user: UserId::new("alice").unwrap(),
        request_id: RequestId([1; 16]),
        fingerprint: [0; 16],
        first_sent: None,
        device: Some(DeviceId::new("phone").unwrap()),
        if_head: Some(Version::new(1, 6)),
        if_incarnation: Some(Incarnation(10)),
        mutations: vec![
            mutation(("contacts", "c1"), Op::Put(content()), Guard::Version(Version::new(1, 4))),
            mutation(("contacts", "c2"), Op::Delete, Guard::None),
            mutation(("notes", "n1"), Op::Put(content()), Guard::Absent),
            mutation(("notes", "n2"), Op::Delete, Guard::Exists),
        ],
    }
}

#[test]
fn golden_content_and_entry() {
    assert_eq!(hex(&content_hash(&content()).0), "d576b0b5282645b0fe2ddaec4b0a7ca7");
    assert_eq!(hex(&entry()), "afe1006c627de5d70c143bfcb58725b77ddcbcc0c6e011e001f943cf7ba096d3");
}

#[test]
fn golden_user_row() {
    let uid = Uid::new(1, 3);
    let row = UserRow {
        head: Version::new(2, 5),
        tombstone_horizon: Version::new(1, 2),
        usage: Usage { used_bytes: 11, record_count: 1 },
        collections: BTreeMap::from([
            (Collection::new("contacts").unwrap(), CollectionDigest { count: 1, sum: Sum(entry()) }),
            (Collection::new("x-own").unwrap(), CollectionDigest { count: 0, sum: Sum([0xff; 32]) }),
        ]),
        forks: vec![Fork { incarnation: Incarnation(10), common: Version::new(1, 9) }],
        places: Places { head_index: 9, mark: Version::new(2, 4), mark_index: 8, settled: Version::new(2, 3) },
    };
    assert_eq!(hex(&user_row_hash(uid, &row)), "63b6fb876b5b8e7ac288e3082c9e95ccf203d0fe6c23316a260a6485f167b216");
    assert_eq!(
        hex(&user_row_hash(uid, &UserRow::default())),
        "c122d4c6fd498eb4cff435075d911b4663288b802e4eb00308f9709ef23c8655"
    );
}

#[test]
fn golden_fingerprint() {
    assert_eq!(hex(&fingerprint(&batch())), "a7ece4b0a64a5244aa5bd86f342dd644");
    let bare = WriteBatch { device: None, if_head: None, if_incarnation: None, mutations: vec![], ..batch() };
    assert_eq!(hex(&fingerprint(&bare)), "6c340a1988c4c862c3a0bacff26fdf58");
}

#[test]
fn a_retry_keeps_its_fingerprint_and_nothing_else_has_it() {
    let print = fingerprint(&batch());
    let retry =
        WriteBatch { request_id: RequestId([2; 16]), first_sent: Some(Millis(7)), fingerprint: [9; 16], ..batch() };
    assert_eq!(fingerprint(&retry), print);

    let mut others = vec![
        WriteBatch { user: UserId::new("alicf").unwrap(), ..batch() },
        WriteBatch { device: None, ..batch() },
        WriteBatch { device: Some(DeviceId::new("phonf").unwrap()), ..batch() },
        WriteBatch { if_head: None, ..batch() },
        WriteBatch { if_head: Some(Version::new(1, 7)), ..batch() },
        WriteBatch { if_incarnation: None, ..batch() },
        WriteBatch { if_incarnation: Some(Incarnation(11)), ..batch() },
        // Moving a value from one option to the other.
        WriteBatch { if_head: None, if_incarnation: Some(Incarnation(Version::new(1, 6).0)), ..batch() },
    ];
    for change in [
        |mutation: &mut Mutation| mutation.key = key("events", "c1"),
        |mutation: &mut Mutation| mutation.key = key("contacts", "c3"),
        |mutation: &mut Mutation| mutation.op = Op::Delete,
        |mutation: &mut Mutation| mutation.op = Op::Put(Content { content_type: "text/plain".into(), ..content() }),
        |mutation: &mut Mutation| mutation.op = Op::Put(Content { payload: Bytes::new(), ..content() }),
        |mutation: &mut Mutation| mutation.op = Op::Put(Content { ttl_seconds: 1, ..content() }),
        |mutation: &mut Mutation| mutation.guard = restore(1, 2, 3),
        |mutation: &mut Mutation| mutation.guard = restore(0, 2, 3),
        |mutation: &mut Mutation| mutation.guard = restore(1, 4, 3),
        |mutation: &mut Mutation| mutation.guard = restore(1, 2, 4),
        |mutation: &mut Mutation| mutation.guard = Guard::None,
        |mutation: &mut Mutation| mutation.guard = Guard::Absent,
        |mutation: &mut Mutation| mutation.guard = Guard::Exists,
        |mutation: &mut Mutation| mutation.guard = Guard::Version(Version(0)),
    ] {
        let mut other = batch();
        change(&mut other.mutations[0]);
        others.push(other);
    }
    let mut swapped = batch();
    swapped.mutations.swap(0, 1);
    others.push(swapped);
    let mut shorter = batch();
    shorter.mutations.pop();
    others.push(shorter);

    let mut prints: Vec<[u8; 16]> = others.iter().map(fingerprint).collect();
    prints.push(print);
    let all = prints.len();
    prints.sort();
    prints.dedup();
    assert_eq!(prints.len(), all);
}

#[test]
fn sums_wrap_at_two_to_the_256() {
    let one = Sum({
        let mut bytes = [0; 32];
        bytes[31] = 1;
        bytes
    });
    let mut sum = Sum::default();
    sum.sub(one.0);
    assert_eq!(sum, Sum([0xff; 32]));
    sum.add(one.0);
    assert_eq!(sum, Sum::default());
}

proptest! {
    #[test]
    fn a_sum_forgets_order_and_takes_back_what_it_was_given(
        terms in prop::collection::vec(any::<[u8; 32]>(), 0..6),
        taken in any::<prop::sample::Index>(),
    ) {
        let sum_of = |terms: &[[u8; 32]]| {
            let mut sum = Sum::default();
            terms.iter().for_each(|term| sum.add(*term));
            sum
        };
        let backwards: Vec<[u8; 32]> = terms.iter().rev().copied().collect();
        prop_assert_eq!(sum_of(&terms), sum_of(&backwards));
        if !terms.is_empty() {
            let mut rest = terms.clone();
            let gone = rest.remove(taken.index(terms.len()));
            let mut sum = sum_of(&terms);
            sum.sub(gone);
            prop_assert_eq!(sum, sum_of(&rest));
        }
    }
}
