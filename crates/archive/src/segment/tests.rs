use proptest::prelude::*;

use super::*;
use crate::fixture::{GROUP, History, proposal_entry};
use crate::object::tests::{LINEAGE, every_flip_is_found};
use crate::sealing::Compression;

fn history() -> History {
    let mut history = History::found(7);
    history.live(10);
    history
}

fn segment(history: &History, from: u64, to: u64) -> Segment {
    Segment::new(GROUP, history.chain_before(from), history.range(from, to)).expect("a segment")
}

fn open(segment: &Segment, first: u64) -> Result<Segment, ArchiveError> {
    Segment::open(
        "s",
        &LINEAGE,
        &Keyring::default(),
        &ObjectName::segment(GROUP, first),
        &segment.seal(&LINEAGE, &Sealing::default()).expect("seals").bytes,
    )
}

#[test]
fn segments_round_trip_and_link() {
    let history = history();
    let segment = segment(&history, 3, 8);
    assert_eq!(open(&segment, 3).expect("opens"), segment);
    assert_eq!(segment.chain_after, history.chain_before(8));
    assert_eq!(segment.chain_before(5), Some(history.chain_before(5)));
    assert_eq!(segment.chain_before(8), Some(history.chain_before(8)));
    assert_eq!((segment.chain_before(2), segment.chain_before(9)), (None, None));
    assert_eq!(segment.stamp_ms, crate::fixture::NOW_MS + 7);
}

#[test]
fn every_flipped_bit_is_found() {
    let history = History::found(7);
    let bytes = segment(&history, 0, 2).seal(&LINEAGE, &Sealing::default()).expect("seals").bytes;
    every_flip_is_found(&bytes, |object, bytes| {
        Segment::open(object, &LINEAGE, &Keyring::default(), &ObjectName::segment(GROUP, 0), bytes).map(drop)
    });
}

#[test]
fn entries_that_do_not_follow_are_refused() {
    let history = history();
    let mut gap = history.range(0, 6);
    gap.remove(3);
    let mut older = history.range(0, 3);
    let id = pb::LogId { term: 0, node: 1, index: 2 };
    let entry = holdfast_wire::log::Entry { id, payload: EntryPayload::Blank };
    older[2] = StoredEntry { position: position(id), bytes: holdfast_wire::log::encode_entry(&entry) };
    let mut renamed = history.range(0, 3);
    renamed[2].bytes = renamed[1].bytes.clone();
    let mut nonsense = history.range(0, 3);
    nonsense[1].bytes = Bytes::from_static(b"\xff\xff");
    for (what, entries) in
        [("gap", gap), ("older", older), ("renamed", renamed), ("nonsense", nonsense), ("none", vec![])]
    {
        assert!(Segment::new(GROUP, [0; 32], entries).is_err(), "{what}");
    }
}

#[test]
fn a_proposal_that_does_not_decode_is_history_too() {
    let segment = Segment::new(GROUP, [0; 32], vec![proposal_entry(0, &b"\xff"[..])]).expect("a segment");
    assert_eq!(open(&segment, 0).expect("opens"), segment);
}

#[test]
fn another_place_is_refused() {
    let history = history();
    let bytes = segment(&history, 3, 8).seal(&LINEAGE, &Sealing::default()).expect("seals").bytes;
    assert!(Segment::open("s", &LINEAGE, &Keyring::default(), &ObjectName::segment(GROUP, 4), &bytes).is_err());
    assert!(Segment::open("s", &LINEAGE, &Keyring::default(), &ObjectName::segment(GroupId(1), 3), &bytes).is_err());
}

#[test]
fn a_header_that_contradicts_the_entries_is_refused() {
    let history = history();
    let segment = segment(&history, 3, 8);
    for wrong in [
        Segment { chain_after: [0; 32], ..segment.clone() },
        Segment { chain_before: [0; 32], ..segment.clone() },
        Segment { stamp_ms: 1, ..segment.clone() },
    ] {
        assert!(open(&wrong, 3).is_err(), "{wrong:?}");
    }
    assert!(open(&segment, 3).is_ok());
}

#[test]
fn a_walk_follows_and_finds_gaps_and_forks() {
    let history = history();
    let (a, b, c) = (segment(&history, 0, 4), segment(&history, 4, 7), segment(&history, 7, 10));
    let mut walk = ChainWalk::FRESH;
    for part in [&a, &b, &c] {
        assert_eq!(walk.follow(&LINEAGE, "s", part, u64::MAX).expect("follows"), part.entries());
    }
    assert_eq!(walk, ChainWalk { next: 10, chain: history.chain_before(10) });

    let mut walk = ChainWalk::FRESH;
    walk.follow(&LINEAGE, "s", &a, u64::MAX).expect("follows");
    let error = walk.follow(&LINEAGE, "s", &c, u64::MAX).expect_err("a gap");
    assert!(
        matches!(&error, ArchiveError::Missing { object, .. } if object.ends_with("/log/0/L0/00000000000000000004")),
        "{error}"
    );

    let mut other = History::found(7);
    other.live(11);
    other.entries.swap_remove(3);
    let fork = Segment::new(GROUP, [3; 32], history.range(4, 7)).expect("a segment");
    let error = walk.follow(&LINEAGE, "the/fork", &fork, u64::MAX).expect_err("a fork");
    assert!(matches!(&error, ArchiveError::Corrupt { object, .. } if object == "the/fork"), "{error}");
    walk.follow(&LINEAGE, "s", &b, u64::MAX).expect("a failed step leaves the walk where it was");
}

#[test]
fn a_walk_starts_and_stops_inside_segments() {
    let history = history();
    let part = segment(&history, 2, 9);
    let mut walk = ChainWalk { next: 5, chain: history.chain_before(5) };
    assert_eq!(walk.follow(&LINEAGE, "s", &part, 6).expect("follows"), history.range(5, 7));
    assert_eq!(walk, ChainWalk { next: 7, chain: history.chain_before(7) });
    assert_eq!(walk.follow(&LINEAGE, "s", &segment(&history, 0, 4), u64::MAX).expect("passed over"), []);
    let mut elsewhere = ChainWalk { next: 5, chain: history.chain_before(6) };
    assert!(elsewhere.follow(&LINEAGE, "s", &part, 6).is_err());
}

#[test]
fn a_fresh_walk_begins_at_0_or_1_and_nowhere_else() {
    for (first, good) in [(0, true), (1, true), (2, false)] {
        let part = Segment::new(GROUP, [0; 32], vec![proposal_entry(first, &b""[..])]).expect("a segment");
        assert_eq!(ChainWalk::FRESH.clone().follow(&LINEAGE, "s", &part, 9).is_ok(), good, "{first}");
    }
    let late = Segment::new(GROUP, [1; 32], vec![proposal_entry(1, &b""[..])]).expect("a segment");
    assert!(ChainWalk::FRESH.clone().follow(&LINEAGE, "s", &late, 9).is_err());
}

#[test]
fn a_segment_takes_what_fits() {
    let entries: Vec<StoredEntry> = (0..5).map(|index| proposal_entry(index, vec![0; 6 << 20])).collect();
    assert_eq!(fitting(&entries), 2);
    assert_eq!(fitting(&[proposal_entry(0, vec![0; 20 << 20])]), 1);
    assert_eq!(fitting(&[]), 0);
}

proptest! {
    #[test]
    fn any_body_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..100)) {
        let history = History::found(7);
        let good = segment(&history, 0, 2);
        let header = pb::ArchiveSegmentHeader { chain_before: vec![0; 32].into(), ..Default::default() };
        let bytes = object::seal("s", &LINEAGE, Kind::Segment(header), &Sealing::open_to_all(Compression::None), &body).expect("seals").bytes;
        prop_assert!(Segment::open("s", &LINEAGE, &Keyring::default(), &ObjectName::segment(GROUP, 0), &bytes).is_err());
        prop_assert!(open(&good, 0).is_ok());
    }
}
