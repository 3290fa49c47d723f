use proptest::prelude::*;

use super::*;
use crate::chunk::Chunk;
use crate::keys::Keyring;
use crate::manifest::ManifestChunk;
use crate::object;
use crate::object::tests::{LINEAGE, every_flip_is_found};
use crate::sealing::Compression;

type Given = (u8, Vec<u8>, Option<Vec<u8>>);

fn gather(rows: &[Given]) -> Vec<PlainChunk> {
    let mut patcher = Patcher::default();
    let mut patches: Vec<PlainChunk> =
        rows.iter().filter_map(|(family, key, value)| patcher.push(*family, key, value.as_deref())).collect();
    patches.extend(patcher.finish());
    patches
}

fn open(sealed: &SealedChunk) -> Chunk {
    Chunk::open("o", &LINEAGE, &Keyring::default(), sealed.line.patch_object(), &sealed.sealed.bytes).expect("opens").0
}

proptest! {
    #[test]
    fn rows_round_trip(
        rows in proptest::collection::btree_map(
            (0u8..3, proptest::collection::vec(any::<u8>(), 0..20)),
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50)),
            1..40,
        )
    ) {
        let rows: Vec<Given> = rows.into_iter().map(|((family, key), value)| (family, key, value)).collect();
        let patches = gather(&rows);
        prop_assert_eq!(patches.len(), 1);
        let sealed = seal(&LINEAGE, 1, &Sealing::default(), &patches[0]).expect("seals");
        let opened = open(&sealed);
        opened.check_line("o", &sealed.line).expect("as said");
        let back = opened.patch_rows().map(|row| (row.family, row.key.to_vec(), row.value.map(|value| value.to_vec())));
        prop_assert_eq!(back.collect::<Vec<_>>(), rows);
    }

    #[test]
    fn any_body_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..80), rows in 0u64..4) {
        let kind = Kind::Patch(pb::ArchivePatchHeader { rows });
        let sealed = object::seal("o", &LINEAGE, kind, &Sealing::open_to_all(Compression::None), &body).expect("seals");
        let name = *blake3::hash(&body).as_bytes();
        if let Ok((patch, _)) = Chunk::open("o", &LINEAGE, &Keyring::default(), ObjectName::Patch { generation: 1, name }, &sealed.bytes) {
            prop_assert_eq!(patch.patch_rows().count() as u64, rows);
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let patch = gather(&[(1, b"a".to_vec(), Some(b"one".to_vec())), (2, b"a".to_vec(), None)]).remove(0);
    let sealed = seal(&LINEAGE, 1, &Sealing::default(), &patch).expect("seals");
    every_flip_is_found(&sealed.sealed.bytes, |object, bytes| {
        Chunk::open(object, &LINEAGE, &Keyring::default(), sealed.line.patch_object(), bytes).map(drop)
    });
    let other = ManifestChunk { rows: 1, ..sealed.line.clone() };
    assert!(open(&sealed).check_line("x", &other).is_err());
}

/// A chunk and a patch of the same rows have one hash, and are not one object.
#[test]
fn a_chunk_is_no_patch() {
    let plain = gather(&[(1, b"a".to_vec(), Some(b"one".to_vec()))]).remove(0);
    let chunk = crate::chunk::seal(&LINEAGE, 1, &Sealing::default(), &plain).expect("seals");
    let error = Chunk::open("o", &LINEAGE, &Keyring::default(), chunk.line.patch_object(), &chunk.sealed.bytes)
        .expect_err("kind");
    assert!(error.to_string().contains("not of the kind that its name says"), "{error}");
}

#[test]
fn a_patch_ends_when_it_is_full() {
    let rows: Vec<Given> = (0u32..9).map(|at| (4, at.to_be_bytes().to_vec(), Some(vec![1; 1 << 20]))).collect();
    let patches = gather(&rows);
    assert_eq!(patches.iter().map(|patch| patch.rows).collect::<Vec<_>>(), [4, 4, 1]);
    assert_eq!(patches[1].first_key, 4u32.to_be_bytes());
    assert_eq!(gather(&[]), []);
}
