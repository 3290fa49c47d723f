use proptest::prelude::*;

use super::*;
use crate::attest::NodeKey;
use crate::object::tests::{LINEAGE, every_flip_is_found};
use crate::sealing::Compression;

const GROUP: GroupId = GroupId(3);

fn chunk(number: u8) -> ManifestChunk {
    ManifestChunk {
        generation: 2945,
        name: [number; 32],
        plain_blake3: [number; 32],
        plain_length: 100,
        stored_length: 50,
        stored_seal: [number; 32],
        family: 4,
        first_key: vec![number],
        rows: 7,
    }
}

fn manifest() -> Manifest {
    Manifest {
        lineage: LINEAGE,
        group: GROUP,
        applied: LogPosition { term: 2, node: 1, index: 40 },
        membership: Bytes::from_static(b"members"),
        entry_chain: [1; 32],
        effect_chain: [2; 32],
        now: Millis(99),
        rules: 1,
        chunks: vec![chunk(1), chunk(2)],
        base_index: 40,
        layers: Vec::new(),
        composed: Vec::new(),
        users: 3,
        records: 4,
        payload_bytes: 5,
        previous: Some(Previous { index: 10, seal: [8; 32] }),
        witnesses: Vec::new(),
    }
}

/// The same at the same index, as two layers over a base.
fn layered() -> Manifest {
    Manifest {
        base_index: 10,
        layers: vec![Layer { index: 20, patches: Vec::new() }, Layer { index: 40, patches: vec![chunk(3), chunk(4)] }],
        composed: vec![chunk(1).chunk_rows(), chunk(5).chunk_rows()],
        ..manifest()
    }
}

fn open(bytes: &Bytes) -> Result<(Manifest, [u8; 32]), ArchiveError> {
    Manifest::open("m", &LINEAGE, &Keyring::default(), GROUP, 40, bytes)
}

/// Seals a message as it is, whatever it says.
fn sealed(message: &pb::ArchiveManifest) -> Bytes {
    let kind = Kind::Manifest(pb::ArchiveManifestHeader { group_id: GROUP.0, index: 40 });
    object::seal("m", &LINEAGE, kind, &Sealing::open_to_all(Compression::None), &holdfast_wire::encode(message))
        .expect("seals")
        .bytes
}

#[test]
fn manifests_round_trip() {
    for previous in [None, Some(Previous { index: 0, seal: [8; 32] })] {
        let manifest = Manifest { previous, ..manifest() };
        let sealed = manifest.seal(&Sealing::default()).expect("seals");
        assert_eq!(open(&sealed.bytes).expect("opens"), (manifest, sealed.seal));
    }
    let sealed = layered().seal(&Sealing::default()).expect("seals");
    assert_eq!(open(&sealed.bytes).expect("opens"), (layered(), sealed.seal));
}

fn witness(node: u8, manifest: &Manifest) -> Witness {
    let key = NodeKey::from_seed(&[node; 32]);
    Witness { node: NodeId(node.into()), key: key.public(), signature: key.sign(&manifest.statement()) }
}

#[test]
fn only_what_was_signed_is_attested() {
    let witnesses = [1, 3].map(|node| witness(node, &manifest())).to_vec();
    let attested = Manifest { witnesses, ..manifest() };
    let sealed = attested.seal(&Sealing::default()).expect("seals");
    assert_eq!(open(&sealed.bytes).expect("opens").0, attested);
    assert!(attested.same_state(&manifest()), "who vouches for it makes no other snapshot of it");

    // A signature of another state, key or node, or a broken one.
    let elsewhere = Manifest { effect_chain: [9; 32], ..manifest() };
    let other_rows = Manifest { chunks: vec![chunk(1), chunk(3)], ..manifest() };
    let other_group = Manifest { group: GroupId(4), ..manifest() };
    let mut forged: Vec<Witness> = [elsewhere, other_rows, other_group].map(|other| witness(2, &other)).to_vec();
    forged.push(Witness { key: NodeKey::from_seed(&[4; 32]).public(), ..witness(2, &manifest()) });
    let mut broken = witness(2, &manifest());
    broken.signature[63] ^= 1;
    forged.push(broken);
    for forged in forged {
        let with = Manifest { witnesses: vec![witness(1, &manifest()), forged], ..manifest() };
        assert!(with.seal(&Sealing::default()).is_err(), "it is not written");
        let error = open(&sealed_as(&with)).expect_err("nor read").to_string();
        assert!(error.contains("node 2 did not sign"), "{error}");
    }
    // One that speaks twice.
    let twice = Manifest { witnesses: vec![witness(1, &manifest()); 2], ..manifest() };
    open(&sealed_as(&twice)).expect_err("one voice");
}

fn sealed_as(manifest: &Manifest) -> Bytes {
    sealed(&manifest.to_message())
}

#[test]
fn every_flipped_bit_is_found() {
    let sealed = manifest().seal(&Sealing::default()).expect("seals");
    every_flip_is_found(&sealed.bytes, |object, bytes| {
        Manifest::open(object, &LINEAGE, &Keyring::default(), GROUP, 40, bytes).map(drop)
    });
}

#[test]
fn what_contradicts_itself_is_refused() {
    type Break = fn(&mut pb::ArchiveManifest);
    let breaks: [(&str, Break); 9] = [
        ("its root does not match", |message| message.root = Bytes::from_static(&[0; 32])),
        ("its root does not match", |message| message.chunks[0].plain_blake3 = Bytes::from_static(&[0; 32])),
        ("its totals do not match", |message| message.rows += 1),
        ("its totals do not match", |message| message.plain_length += 1),
        ("its rows overflow", |message| message.chunks[0].rows = u64::MAX),
        ("out of order", |message| message.chunks[1].first_key = Bytes::from_static(&[0])),
        ("is not older", |message| message.previous_index = 40),
        ("those of index 41", |message| message.applied.as_mut().expect("set").index = 41),
        ("is no hash", |message| message.entry_chain = Bytes::from_static(&[0; 31])),
    ];
    for (expected, change) in breaks {
        let mut message = manifest().to_message();
        assert!(open(&sealed(&message)).is_ok());
        change(&mut message);
        let error = open(&sealed(&message)).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn layers_that_contradict_themselves_are_refused() {
    type Break = fn(&mut pb::ArchiveManifest);
    let breaks: [(&str, Break); 12] = [
        ("its root does not match", |message| message.composed[0].plain_blake3 = Bytes::from_static(&[0; 32])),
        ("its totals do not match", |message| message.composed[0].plain_length += 1),
        ("its rows overflow", |message| message.composed[0].rows = u64::MAX),
        ("its rows overflow", |message| message.layers[1].patches[0].rows = u64::MAX),
        ("its chunks are out of order", |message| message.composed[1].first_key = Bytes::from_static(&[0])),
        ("its patches are out of order", |message| message.layers[1].patches.swap(0, 1)),
        ("do not lead", |message| message.layers[1].index = 39),
        ("do not lead", |message| message.layers[0].index = 40),
        ("do not lead", |message| message.base_index = 20),
        ("no valid name", |message| message.layers[1].patches[0].name = Bytes::new()),
        ("no valid hash", |message| message.composed[0].family = 256),
        ("more than 8", |message| {
            let layers = (0..9).map(|at| pb::ArchiveManifestLayer { index: 32 + at, patches: Vec::new() });
            message.layers = layers.collect();
        }),
    ];
    for (expected, change) in breaks {
        let mut message = layered().to_message();
        assert!(open(&sealed(&message)).is_ok());
        change(&mut message);
        let error = open(&sealed(&message)).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let mut base = manifest().to_message();
    base.composed = layered().to_message().composed;
    assert!(open(&sealed(&base)).is_err(), "composed of nothing");
}

#[test]
fn a_state_is_the_same_however_its_rows_lie() {
    let base = Manifest { chunks: vec![chunk(1), chunk(5)], ..manifest() };
    assert!(layered().same_state(&base));
    assert_eq!((layered().rows(), layered().plain_length(), layered().chunk_count()), (14, 200, 2));
    assert_eq!((layered().stored_length(), layered().patch_length(), layered().objects().count()), (200, 200, 4));
}

#[test]
fn another_place_is_refused() {
    let bytes = manifest().seal(&Sealing::default()).expect("seals").bytes;
    assert!(Manifest::open("m", &LINEAGE, &Keyring::default(), GROUP, 41, &bytes).is_err());
    assert!(Manifest::open("m", &LINEAGE, &Keyring::default(), GroupId(4), 40, &bytes).is_err());
}

#[test]
fn the_root_depends_on_every_chunk_and_their_order() {
    let root = manifest().root();
    let mut other = manifest();
    other.chunks.swap(0, 1);
    assert_ne!(other.root(), root);
    other.chunks.pop();
    assert_ne!(other.root(), root);
    assert!(manifest().same_state(&Manifest { payload_bytes: 9, ..manifest() }));
    assert!(!manifest().same_state(&Manifest { effect_chain: [9; 32], ..manifest() }));
    assert!(!manifest().same_state(&Manifest { entry_chain: [9; 32], ..manifest() }));
}

proptest! {
    #[test]
    fn any_body_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let kind = Kind::Manifest(pb::ArchiveManifestHeader { group_id: GROUP.0, index: 40 });
        let bytes = object::seal("m", &LINEAGE, kind, &Sealing::open_to_all(Compression::None), &body).expect("seals").bytes;
        let _ = open(&bytes);
    }

    #[test]
    fn a_damaged_body_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = holdfast_wire::encode(&layered().to_message()).to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        let kind = Kind::Manifest(pb::ArchiveManifestHeader { group_id: GROUP.0, index: 40 });
        let bytes = object::seal("m", &LINEAGE, kind, &Sealing::open_to_all(Compression::None), &body).expect("seals").bytes;
        let _ = open(&bytes);
    }
}
