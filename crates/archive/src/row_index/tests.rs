use holdfast_model::id::Incarnation;
use proptest::prelude::*;

use super::*;
use crate::object::tests::LINEAGE;

const GROUP: GroupId = GroupId(3);
const ROOT: [u8; 32] = [7; 32];

type Row = (u8, Vec<u8>, Print, bool);

fn written(indexes: &RowIndexes, index: u64, rows: &[Row]) {
    let mut writer = indexes.create(&LINEAGE, GROUP, index).expect("creates");
    rows.iter().for_each(|(family, key, print, apart)| writer.push(*family, *apart, key, print).expect("writes"));
    writer.finish(&ROOT).expect("finishes");
}

fn read(mut reader: RowReader) -> Vec<Row> {
    let next = || reader.next().expect("reads").map(|row| (row.family, row.key, row.print, row.apart));
    std::iter::from_fn(next).collect()
}

fn some() -> Vec<Row> {
    [(0, "", 1), (1, "user/1", 2), (1, "user/12", 3), (2, "user/1", 4), (2, "z", 5)]
        .map(|(family, key, print)| (family, key.as_bytes().to_vec(), [print; 16], print % 2 == 0))
        .to_vec()
}

proptest! {
    #[test]
    fn rows_round_trip(
        rows in proptest::collection::btree_map(
            (0u8..9, proptest::collection::vec(0u8..3, 0..9)), any::<(Print, bool)>(), 0..60,
        )
    ) {
        let dir = tempfile::tempdir().expect("directory");
        let indexes = RowIndexes::new(dir.path().join("rows"));
        let rows: Vec<Row> = rows.into_iter().map(|((family, key), (print, apart))| (family, key, print, apart)).collect();
        written(&indexes, 9, &rows);
        prop_assert_eq!(read(indexes.open(&LINEAGE, GROUP, 9, &ROOT).expect("opens")), rows);
    }
}

#[test]
fn an_index_is_of_one_snapshot() {
    let dir = tempfile::tempdir().expect("directory");
    let indexes = RowIndexes::new(dir.path().join("rows"));
    written(&indexes, 9, &some());
    assert_eq!(read(indexes.open(&LINEAGE, GROUP, 9, &ROOT).expect("opens")), some());
    let other = LineageId { incarnation: Incarnation(1), ..LINEAGE };
    assert!(indexes.open(&other, GROUP, 9, &ROOT).is_none(), "another history");
    assert!(indexes.open(&LINEAGE, GROUP, 9, &[8; 32]).is_none(), "another state");
    assert!(indexes.open(&LINEAGE, GROUP, 8, &ROOT).is_none() && !indexes.has(GROUP, 8), "none");
    std::fs::rename(indexes.path(GROUP, 9), indexes.path(GROUP, 8)).expect("renames");
    assert!(indexes.open(&LINEAGE, GROUP, 8, &ROOT).is_none(), "another index");
}

#[test]
fn a_damaged_index_is_not_used() {
    let dir = tempfile::tempdir().expect("directory");
    let indexes = RowIndexes::new(dir.path().to_owned());
    written(&indexes, 9, &some());
    let path = indexes.path(GROUP, 9);
    let good = std::fs::read(&path).expect("reads");
    for at in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        std::fs::write(&path, bytes).expect("writes");
        assert!(indexes.open(&LINEAGE, GROUP, 9, &ROOT).is_none(), "bit {at}");
    }
    for end in 0..good.len() {
        std::fs::write(&path, &good[..end]).expect("writes");
        assert!(indexes.open(&LINEAGE, GROUP, 9, &ROOT).is_none(), "cut at {end}");
    }
}

#[test]
fn what_is_not_finished_has_no_name() {
    let dir = tempfile::tempdir().expect("directory");
    let indexes = RowIndexes::new(dir.path().to_owned());
    let mut writer = indexes.create(&LINEAGE, GROUP, 9).expect("creates");
    writer.push(1, false, b"a", &[1; 16]).expect("writes");
    assert!(!indexes.has(GROUP, 9));
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0, "nothing is left of it");
}

#[test]
fn all_but_those_named_are_forgotten() {
    let dir = tempfile::tempdir().expect("directory");
    let indexes = RowIndexes::new(dir.path().join("rows"));
    indexes.keep(GROUP, &[1]).expect("there is no folder yet");
    [1, 2, 3, 8].into_iter().for_each(|index| written(&indexes, index, &some()));
    std::fs::write(dir.path().join("rows/0-00000000000000000004.part"), "killed").expect("writes");
    indexes.keep(GROUP, &[1, 3, 7]).expect("removes");
    assert_eq!([1, 2, 3, 8].map(|index| indexes.has(GROUP, index)), [true, false, true, true]);
    assert_eq!(
        std::fs::read_dir(dir.path().join("rows")).expect("lists").count(),
        3,
        "8 is newer than all that was named"
    );
}
