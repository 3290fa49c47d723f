//! Tests of the floor file: torn slots, owners, and which way it moves.

use super::*;

const IDENTITY: Identity = Identity { node_id: 7, identity: [3; 16], cluster_id: None };

fn at(term: u64, index: u64) -> Option<LogPosition> {
    Some(LogPosition { term, node: 1, index })
}

fn vote(term: u64) -> Option<VoteRecord> {
    Some(VoteRecord { term, node: 2, committed: true })
}

fn open(dir: &Path) -> (FloorFile, Found) {
    FloorFile::open(dir, &IDENTITY, GroupId(0)).expect("the floor opens")
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut file, found) = open(dir.path());
    assert_eq!((found, file.floor()), (Found::Missing, Floor::default()));
    for n in 1..6 {
        let floor = Floor { position: at(n, n * 10), vote: vote(n) };
        file.write(floor).expect("written");
        let (again, found) = open(dir.path());
        assert_eq!((found, again.floor()), (Found::Floor, floor));
    }
}

/// Whatever byte of the slot under way is torn, the other slot still counts.
#[test]
fn a_torn_slot_leaves_the_one_before() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut file, _) = open(dir.path());
    let older = Floor { position: at(1, 10), vote: vote(1) };
    let newer = Floor { position: at(2, 20), vote: vote(2) };
    file.write(older).expect("written");
    file.write(newer).expect("written");
    let path = dir.path().join("floor-0");
    let whole = std::fs::read(&path).expect("read");
    let slots = [0, SLOT_STRIDE].map(|at| decode(&whole[at..at + SLOT_BYTES]).expect("both valid"));
    let newest = if slots[0].1 > slots[1].1 { 0 } else { SLOT_STRIDE };
    for byte in 0..SLOT_BYTES {
        let mut torn = whole.clone();
        torn[newest + byte] ^= 0x40;
        std::fs::write(&path, &torn).expect("written");
        let (file, found) = open(dir.path());
        assert_eq!((found, file.floor()), (Found::Floor, older), "byte {byte}");
        assert!(file.is_spoilt(), "byte {byte} goes unsaid");
    }
    let mut gone = whole;
    gone[0] ^= 1;
    gone[SLOT_STRIDE] ^= 1;
    std::fs::write(&path, &gone).expect("written");
    assert_eq!(open(dir.path()).1, Found::Damaged);
}

/// Torn by a crash or damaged by the disk, also where nothing was ever written: it is known until the slot is written anew.
#[test]
fn a_byte_that_no_write_leaves_is_noticed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut file, _) = open(dir.path());
    let path = dir.path().join("floor-0");
    let is_spoilt = || open(dir.path()).0.is_spoilt();
    assert!(!is_spoilt(), "one slot is still empty");
    let floor = Floor { position: at(1, 10), vote: vote(1) };
    for writes in 0..2 {
        let whole = std::fs::read(&path).expect("read");
        for byte in [0, SLOT_BYTES - 1, SLOT_BYTES, SLOT_STRIDE - 1, SLOT_STRIDE, 2 * SLOT_STRIDE - 1] {
            // Without its first slot there is no floor in a fresh file at all.
            if writes == 0 && byte < SLOT_BYTES {
                continue;
            }
            let mut spoilt = whole.clone();
            spoilt[byte] ^= 8;
            std::fs::write(&path, &spoilt).expect("written");
            assert!(is_spoilt(), "byte {byte} after {writes} writes");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("written");
        assert!(is_spoilt(), "its end is missing");
        std::fs::write(&path, &whole).expect("written");
        file.write(floor).expect("written");
        assert!(!is_spoilt());
    }
    let mut swapped = std::fs::read(&path).expect("read");
    swapped.rotate_left(SLOT_STRIDE);
    std::fs::write(&path, &swapped).expect("written");
    assert!(is_spoilt(), "two whole slots, each in the other's place");
}

#[test]
fn the_floor_of_another_node_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(open(dir.path()));
    let other = Identity { node_id: 8, ..IDENTITY };
    assert!(matches!(FloorFile::open(dir.path(), &other, GroupId(0)), Err(StoreError::Mismatch { .. })));
    let replaced = Identity { identity: [4; 16], ..IDENTITY };
    assert!(matches!(FloorFile::open(dir.path(), &replaced, GroupId(0)), Err(StoreError::Mismatch { .. })));
}

#[test]
fn it_rises_by_itself_and_falls_only_with_the_log() {
    let dir = tempfile::tempdir().expect("tempdir");
    let keeper = FloorKeeper::new(open(dir.path()).0);
    keeper.raise(|| (at(1, 10), vote(1))).expect("raised");
    keeper.raise(|| (at(1, 5), None)).expect("raised");
    assert_eq!(keeper.written(), (at(1, 10), vote(1)));
    // A recovering node: the log ends at 5, so a truncation to 3 must not make it forget 10.
    keeper.lower(at(1, 3), at(1, 5)).expect("lowered");
    assert_eq!(keeper.written().0, at(1, 10));
    keeper.lower(at(1, 8), at(1, 12)).expect("lowered");
    assert_eq!(keeper.written().0, at(1, 8));
    drop(keeper);
    assert_eq!(open(dir.path()).0.floor().position, at(1, 8));
}
