use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::object::tests::{LINEAGE, every_flip_is_found};
use crate::sealing::Compression;

fn row(family: u8, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> RawRow {
    RawRow { family, key: key.into(), value: value.into() }
}

fn cut(rows: impl IntoIterator<Item = RawRow>) -> Vec<PlainChunk> {
    let mut chunker = Chunker::default();
    let mut out = Vec::new();
    for row in rows {
        out.extend(chunker.push(row.family, &row.key, &row.value).expect("in order"));
    }
    out.extend(chunker.finish());
    out
}

fn open(chunk: &SealedChunk) -> Chunk {
    Chunk::open("o", &LINEAGE, &Keyring::default(), chunk.line.object(), &chunk.sealed.bytes).expect("opens").0
}

/// 40 MiB of rows of 1 KiB.
fn many() -> Vec<RawRow> {
    (0u32..40_000)
        .map(|number| {
            let mut value = vec![0; 1024];
            blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut value);
            row(4, (number * 2).to_be_bytes(), value)
        })
        .collect()
}

fn names(chunks: &[PlainChunk]) -> BTreeSet<[u8; 32]> {
    chunks.iter().map(|chunk| *blake3::hash(&chunk.plain).as_bytes()).collect()
}

proptest! {
    #[test]
    fn rows_round_trip(
        rows in proptest::collection::btree_map(
            (0u8..3, proptest::collection::vec(any::<u8>(), 0..20)),
            proptest::collection::vec(any::<u8>(), 0..50),
            1..40,
        )
    ) {
        let rows: Vec<RawRow> = rows.into_iter().map(|((family, key), value)| row(family, key, value)).collect();
        let mut back = Vec::new();
        for chunk in cut(rows.clone()) {
            let sealed = seal(&LINEAGE, 1, &Sealing::default(), &chunk).expect("seals");
            let opened = open(&sealed);
            opened.check_line("o", &sealed.line).expect("as said");
            back.extend(opened.rows());
        }
        prop_assert_eq!(back, rows);
    }

    #[test]
    fn any_body_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..80), rows in 0u64..4) {
        let kind = Kind::Chunk(pb::ArchiveChunkHeader { rows });
        let sealed = object::seal("o", &LINEAGE, kind, &Sealing::open_to_all(Compression::None), &body).expect("seals");
        let name = *blake3::hash(&body).as_bytes();
        if let Ok((chunk, _)) = Chunk::open("o", &LINEAGE, &Keyring::default(), ObjectName::Chunk { generation: 1, name }, &sealed.bytes) {
            prop_assert_eq!(chunk.rows().count() as u64, rows);
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let chunk = cut([row(1, "a", "one"), row(1, "b", "two")]).remove(0);
    let sealed = seal(&LINEAGE, 1, &Sealing::default(), &chunk).expect("seals");
    every_flip_is_found(&sealed.sealed.bytes, |object, bytes| {
        Chunk::open(object, &LINEAGE, &Keyring::default(), sealed.line.object(), bytes).map(drop)
    });
}

#[test]
fn another_chunk_under_the_name_is_found() {
    let [one, two] = ["one", "two"]
        .map(|value| seal(&LINEAGE, 1, &Sealing::default(), &cut([row(1, "a", value)]).remove(0)).expect("seals"));
    let error =
        Chunk::open("x", &LINEAGE, &Keyring::default(), one.line.object(), &two.sealed.bytes).expect_err("swapped");
    assert!(error.to_string().contains("not to its name"), "{error}");
    let other = ManifestChunk { first_key: b"b".to_vec(), ..one.line.clone() };
    assert!(open(&one).check_line("x", &other).is_err());
}

#[test]
fn rows_that_are_not_what_the_header_says_are_refused() {
    let plain = cut([row(1, "a", "one"), row(1, "b", "two")]).remove(0).plain;
    let swapped = [&plain[plain.len() / 2..], &plain[..plain.len() / 2]].concat();
    for (rows, body, good) in [(2, &plain, true), (1, &plain, false), (3, &plain, false), (2, &swapped, false)] {
        let kind = Kind::Chunk(pb::ArchiveChunkHeader { rows });
        let sealed = object::seal("o", &LINEAGE, kind, &Sealing::open_to_all(Compression::Zstd), body).expect("seals");
        let name = *blake3::hash(body).as_bytes();
        assert_eq!(
            Chunk::open("o", &LINEAGE, &Keyring::default(), ObjectName::Chunk { generation: 1, name }, &sealed.bytes)
                .is_ok(),
            good,
            "{rows}"
        );
    }
}

/// Only a patch may say that a row is gone.
#[test]
fn rows_without_a_value_are_refused() {
    for gone in [0, 1] {
        let mut body = Vec::new();
        for (at, key) in [b"a", b"b"].into_iter().enumerate() {
            put_row(&mut body, 1, key, Some(&b"value"[..]).filter(|_| at != gone));
        }
        let kind = Kind::Chunk(pb::ArchiveChunkHeader { rows: 2 });
        let sealed = object::seal("o", &LINEAGE, kind, &Sealing::default(), &body).expect("seals");
        let name = *blake3::hash(&body).as_bytes();
        Chunk::open("o", &LINEAGE, &Keyring::default(), ObjectName::Chunk { generation: 1, name }, &sealed.bytes)
            .expect_err("a row is gone");
    }
}

#[test]
fn rows_out_of_order_are_refused() {
    for (first, second) in [((1, "b"), (1, "a")), ((1, "a"), (1, "a")), ((2, "a"), (1, "b"))] {
        let mut chunker = Chunker::default();
        chunker.push(first.0, first.1.as_bytes(), b"").expect("first");
        assert!(chunker.push(second.0, second.1.as_bytes(), b"").is_err(), "{first:?} {second:?}");
    }
}

#[test]
fn families_are_never_mixed() {
    let chunks = cut([row(1, "a", "1"), row(1, "b", "2"), row(2, "a", "3")]);
    assert_eq!(chunks.iter().map(|chunk| (chunk.family, chunk.rows)).collect::<Vec<_>>(), [(1, 2), (2, 1)]);
}

#[test]
fn chunks_have_the_sizes_of_the_format() {
    let chunks = cut(many());
    let (last, whole) = chunks.split_last().expect("chunks");
    assert!(whole.iter().all(|chunk| (PLAIN_BYTES_MIN..=PLAIN_BYTES_CUT).contains(&chunk.plain.len())));
    assert!(last.plain.len() <= PLAIN_BYTES_CUT);
    let mean = many().len() * 1037 / chunks.len();
    assert!((2 << 20..7 << 20).contains(&mean), "mean {mean}");
    let root = names(&chunks).into_iter().fold(blake3::Hasher::new(), |mut hasher, name| {
        hasher.update(&name);
        hasher
    });
    assert_eq!(&root.finalize().to_hex()[..16], FROZEN_CUTS);
}

/// Changes with the cutting rules, and so does every root: that needs a new format.
const FROZEN_CUTS: &str = "4b2dd8d0e8ceeee1";

#[test]
fn one_row_more_changes_few_chunks() {
    let before = names(&cut(many()));
    for at in [0u32, 10_000, 39_999] {
        let mut rows = many();
        rows.insert(at as usize + 1, row(4, (at * 2 + 1).to_be_bytes(), vec![7; 1024]));
        let new = names(&cut(rows)).difference(&before).count();
        assert!((1..=2).contains(&new), "{new} of {} chunks are new", before.len());
    }
    let mut rows = many();
    rows[20_000].value = vec![1; 1024];
    assert_eq!(names(&cut(rows)).difference(&before).count(), 1);
}

#[test]
fn a_row_larger_than_any_chunk_stands_alone() {
    let chunks = cut([row(1, "a", "x"), row(1, "b", vec![0; 9 << 20]), row(1, "c", "y")]);
    assert_eq!(chunks.iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), [1, 1, 1]);
    let sealed = seal(&LINEAGE, 1, &Sealing::default(), &chunks[1]).expect("seals");
    assert_eq!(open(&sealed).plain_length(), (9 << 20) + 10);
}
