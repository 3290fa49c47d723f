//! The shell of every object: who it belongs to, which key opens it, how its body is packed, and a hash over all of it.
//!
//! ```text
//! object:   magic 8 | format u16 | zero u16 | header length u32 | stored length u64 | ArchiveHeader | stored | seal
//! stored:   contents, encrypted or as they are
//! contents: length u32 | ArchiveContents | packed body
//! ```
//! The seal is the BLAKE3 of everything before it. Magic, place of the format and seal are the same in all formats.
//!
//! Invariants:
//! - Nothing is believed before the seal is checked, so a flipped bit anywhere is damage, never another value; and that
//!   much is checked without any key.
//! - What says anything of the contents is encrypted with them: outside are owner, key and length.
//! - The plain body is checked against its own hash after unpacking.
//! - An object is at most [`OBJECT_BYTES_MAX`] long: it goes up in one conditional request.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use holdfast_model::id::Incarnation;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::error::ArchiveError;
use crate::keys::{Keyring, SealedWith};
use crate::layout::{LineageId, hex};
use crate::sealing::{Compression, GenerationKey, Sealing};

/// Newest format that this build writes and reads.
pub(crate) const FORMAT: u16 = 6;
/// Largest object.
pub(crate) const OBJECT_BYTES_MAX: u64 = 64 << 20;
/// Largest plain body; bounds what a damaged or hostile header can make a reader allocate.
const PLAIN_BYTES_MAX: u64 = 256 << 20;

const MAGIC: [u8; 8] = *b"HOLDARCH";
const PREFACE_BYTES: usize = 24;
const SEAL_BYTES: usize = 32;
const ZSTD_LEVEL: i32 = 3;

/// An object ready to be written.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    /// All bytes.
    pub bytes: Bytes,
    /// The last 32 of them.
    pub seal: [u8; 32],
}

/// An object that was read and checked.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// Kind of object, with its facts.
    pub kind: Kind,
    /// Plain body.
    pub plain: Bytes,
    /// Hash of the plain body.
    pub plain_blake3: [u8; 32],
    /// Hash of everything before it.
    pub seal: [u8; 32],
    /// The key that opened it; `None` = it is not encrypted.
    key: Option<Arc<GenerationKey>>,
}

impl Opened {
    /// Name of a chunk with this body.
    pub fn chunk_name(&self) -> [u8; 32] {
        self.key.as_ref().map_or(self.plain_blake3, |key| key.chunk_name(&self.plain_blake3))
    }
}

/// Builds an object, to be written under its full name.
///
/// # Errors
/// When the body cannot be packed or is too large.
pub(crate) fn seal(
    object: &str,
    lineage: &LineageId,
    kind: Kind,
    sealing: &Sealing,
    plain: &[u8],
) -> Result<Sealed, ArchiveError> {
    let contents = contents_of(kind, sealing.compression, plain)?;
    let mut header = pb::ArchiveHeader {
        cluster_id: Bytes::copy_from_slice(&lineage.cluster_id),
        incarnation: lineage.incarnation.0,
        encryption: pb::ArchiveEncryption::None.into(),
        ..pb::ArchiveHeader::default()
    };
    let stored = match &sealing.keys {
        None => contents,
        Some(keys) => {
            header.encryption = pb::ArchiveEncryption::Xchacha20Poly1305.into();
            header.generation = keys.key.generation();
            header.key_id = Bytes::copy_from_slice(&keys.key.id());
            header.keys_blake3 = Bytes::copy_from_slice(&keys.keys_blake3);
            let sealed = keys.key.seal(&beside(object, &header), &contents);
            let (nonce, sealed) = sealed.ok_or_else(|| ArchiveError::refused("a body that is too long to encrypt"))?;
            header.nonce = Bytes::copy_from_slice(&nonce);
            sealed
        }
    };
    let header = holdfast_wire::encode(&header);
    let total = PREFACE_BYTES + header.len() + stored.len() + SEAL_BYTES;
    if total as u64 > OBJECT_BYTES_MAX || plain.len() as u64 > PLAIN_BYTES_MAX {
        return Err(ArchiveError::refused(format!("an object of {total} bytes is larger than {OBJECT_BYTES_MAX}")));
    }
    let mut out = BytesMut::with_capacity(total);
    out.put_slice(&MAGIC);
    out.put_u16(FORMAT);
    out.put_u16(0);
    out.put_u32(header.len() as u32);
    out.put_u64(stored.len() as u64);
    out.put_slice(&header);
    out.put_slice(&stored);
    let seal = *blake3::hash(&out).as_bytes();
    out.put_slice(&seal);
    Ok(Sealed { bytes: out.freeze(), seal })
}

fn contents_of(kind: Kind, compression: Compression, plain: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let code = match compression {
        Compression::Zstd => pb::ArchiveCompression::Zstd,
        Compression::None => pb::ArchiveCompression::None,
    };
    let head = holdfast_wire::encode(&pb::ArchiveContents {
        compression: code.into(),
        plain_length: plain.len() as u64,
        plain_blake3: Bytes::copy_from_slice(blake3::hash(plain).as_bytes()),
        kind: Some(kind),
    });
    let mut contents = Vec::with_capacity(4 + head.len() + plain.len() / 2);
    contents.put_u32(head.len() as u32);
    contents.put_slice(&head);
    match compression {
        Compression::None => contents.put_slice(plain),
        Compression::Zstd => {
            let packed = zstd::bulk::compress(plain, ZSTD_LEVEL);
            contents.put_slice(&packed.map_err(|error| ArchiveError::refused(format!("zstd: {error}")))?);
        }
    }
    Ok(contents)
}

/// What is authenticated beside the contents: under another name, in another format or with another owner, an object does
/// not open.
fn beside(object: &str, header: &pb::ArchiveHeader) -> Vec<u8> {
    let mut beside = FORMAT.to_be_bytes().to_vec();
    let header = holdfast_wire::encode(&pb::ArchiveHeader { nonce: Bytes::new(), ..header.clone() });
    beside.put_u32(header.len() as u32);
    beside.put_slice(&header);
    beside.put_slice(object.as_bytes());
    beside
}

/// Reads an object and checks everything that it says about itself, and that it belongs to `lineage`.
///
/// # Errors
/// Names `object` and the first thing that is wrong; `NoKey` when all that can be seen without a key is right.
pub(crate) fn open(object: &str, lineage: &LineageId, keys: &Keyring, bytes: &Bytes) -> Result<Opened, ArchiveError> {
    let bad = |reason: String| ArchiveError::corrupt(object, reason);
    let (sealed, seal) = match bytes.len().checked_sub(SEAL_BYTES) {
        Some(end) if end >= PREFACE_BYTES => (bytes.slice(..end), fixed::<32>(&bytes[end..])),
        _ => return Err(bad(format!("{} bytes are too few for any object", bytes.len()))),
    };
    if sealed[..8] != MAGIC {
        return Err(bad("it does not begin like an object of Holdfast".into()));
    }
    let actual = *blake3::hash(&sealed).as_bytes();
    if Some(actual) != seal {
        return Err(bad("its bytes do not match the hash at its end".into()));
    }
    let format = u16::from_be_bytes([sealed[8], sealed[9]]);
    if format != FORMAT {
        return Err(ArchiveError::OtherFormat { object: object.to_owned(), format, known: FORMAT });
    }
    let (header, stored) = split(&sealed).ok_or_else(|| bad("its lengths do not add up".into()))?;
    let header: pb::ArchiveHeader =
        holdfast_wire::decode("archive header", header).map_err(|error| bad(error.to_string()))?;
    check_owner(object, lineage, &header)?;
    let (contents, key) = decrypt(object, lineage, keys, &header, stored)?;
    let (head, packed) = split_contents(contents).ok_or_else(|| bad("its contents end too early".into()))?;
    let head: pb::ArchiveContents =
        holdfast_wire::decode("archive contents", head).map_err(|error| bad(error.to_string()))?;
    let plain = unpack(&head, packed).map_err(bad)?;
    let plain_blake3 = *blake3::hash(&plain).as_bytes();
    if head.plain_blake3[..] != plain_blake3 || head.plain_length != plain.len() as u64 {
        return Err(bad("its body does not match the hash in its contents".into()));
    }
    let kind = head.kind.ok_or_else(|| bad("it is of an unknown kind".into()))?;
    Ok(Opened { kind, plain, plain_blake3, seal: actual, key })
}

/// The key that an object asks for; `None` = it asks for none, or is no object. Not to be believed before [`is_whole`], or
/// [`open`], found nothing damaged.
pub(crate) fn sealed_with(bytes: &Bytes) -> Option<SealedWith> {
    let end = bytes.len().checked_sub(SEAL_BYTES).filter(|end| *end >= PREFACE_BYTES)?;
    let sealed = bytes.slice(..end);
    if u16::from_be_bytes([sealed[8], sealed[9]]) != FORMAT {
        return None;
    }
    let (header, _) = split(&sealed)?;
    let header: pb::ArchiveHeader = holdfast_wire::decode("archive header", header).ok()?;
    let cluster_id = fixed(&header.cluster_id)?;
    asks_for(&LineageId { cluster_id, incarnation: Incarnation(header.incarnation) }, &header)
}

/// Its bytes match the hash at its end.
pub(crate) fn is_whole(bytes: &Bytes) -> bool {
    let end = bytes.len().saturating_sub(SEAL_BYTES);
    blake3::hash(&bytes[..end]).as_bytes()[..] == bytes[end..]
}

fn asks_for(lineage: &LineageId, header: &pb::ArchiveHeader) -> Option<SealedWith> {
    let (key_id, keys_blake3) = (fixed(&header.key_id)?, fixed(&header.keys_blake3)?);
    Some(SealedWith { lineage: *lineage, generation: header.generation, key_id, keys_blake3 })
}

fn split(sealed: &Bytes) -> Option<(Bytes, Bytes)> {
    let zero = u16::from_be_bytes(fixed(&sealed[10..12])?);
    let header = u32::from_be_bytes(fixed(&sealed[12..16])?) as usize;
    let stored = usize::try_from(u64::from_be_bytes(fixed(&sealed[16..24])?)).ok()?;
    let body = PREFACE_BYTES.checked_add(header)?;
    let fits = zero == 0 && body.checked_add(stored)? == sealed.len();
    fits.then(|| (sealed.slice(PREFACE_BYTES..body), sealed.slice(body..)))
}

fn split_contents(mut contents: Bytes) -> Option<(Bytes, Bytes)> {
    if contents.len() < 4 {
        return None;
    }
    let head = contents.get_u32() as usize;
    (head <= contents.len()).then(|| (contents.split_to(head), contents))
}

fn check_owner(object: &str, lineage: &LineageId, header: &pb::ArchiveHeader) -> Result<(), ArchiveError> {
    if header.cluster_id[..] == lineage.cluster_id && header.incarnation == lineage.incarnation.0 {
        return Ok(());
    }
    let owner = match fixed(&header.cluster_id) {
        Some(cluster_id) => LineageId { cluster_id, incarnation: Incarnation(header.incarnation) }.to_string(),
        None => hex(&header.cluster_id),
    };
    Err(ArchiveError::corrupt(object, format!("it belongs to {owner}")))
}

/// Contents as they were before encryption, and the key that it took.
fn decrypt(
    object: &str,
    lineage: &LineageId,
    keys: &Keyring,
    header: &pb::ArchiveHeader,
    stored: Bytes,
) -> Result<(Bytes, Option<Arc<GenerationKey>>), ArchiveError> {
    let bad = |reason: &str| ArchiveError::corrupt(object, reason);
    match header.encryption() {
        pb::ArchiveEncryption::None => return Ok((stored, None)),
        pb::ArchiveEncryption::Xchacha20Poly1305 => {}
        pb::ArchiveEncryption::Unspecified => return Err(bad("it is sealed in a way that this build does not know")),
    }
    let sealed = asks_for(lineage, header).ok_or_else(|| bad("it does not say which key opens it"))?;
    let nonce = fixed(&header.nonce).ok_or_else(|| bad("it has no nonce"))?;
    let key = keys.find(&sealed).map_err(|reason| ArchiveError::NoKey {
        object: object.to_owned(),
        keys_object: sealed.keys_object(),
        reason,
    })?;
    let contents = key.open(&nonce, &beside(object, header), &stored);
    let contents = contents.ok_or_else(|| bad("it does not open with its key under this name: moved, or forged"))?;
    Ok((contents, Some(key)))
}

fn unpack(head: &pb::ArchiveContents, packed: Bytes) -> Result<Bytes, String> {
    if head.plain_length > PLAIN_BYTES_MAX {
        return Err(format!("its body claims {} bytes", head.plain_length));
    }
    match head.compression() {
        pb::ArchiveCompression::None => Ok(packed),
        pb::ArchiveCompression::Zstd => zstd::bulk::decompress(&packed, head.plain_length as usize)
            .map(Bytes::from)
            .map_err(|error| format!("zstd: {error}")),
        pb::ArchiveCompression::Unspecified => Err("it is packed in a way that this build does not know".into()),
    }
}

/// Exactly `N` bytes, or nothing.
pub(crate) fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::Secret;

    pub(crate) const LINEAGE: LineageId = LineageId { cluster_id: [7; 16], incarnation: Incarnation(0xabcd) };

    /// Flips every bit in turn; each must be found, and the error must name the object.
    pub(crate) fn every_flip_is_found(bytes: &Bytes, read: impl Fn(&str, &Bytes) -> Result<(), ArchiveError>) {
        assert!(read("the/object", bytes).is_ok());
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[at / 8] ^= 1 << (at % 8);
            match read("the/object", &damaged.into()) {
                Err(ArchiveError::Corrupt { object, .. }) => assert_eq!(object, "the/object"),
                other => panic!("bit {at}: {other:?}"),
            }
        }
        for cut in 0..bytes.len() {
            assert!(read("the/object", &bytes.slice(..cut)).is_err_and(|error| error.is_integrity()), "cut at {cut}");
        }
        let longer: Bytes = [&bytes[..], &[0]].concat().into();
        assert!(read("the/object", &longer).is_err_and(|error| error.is_integrity()));
    }

    /// Sealed with a key, and what opens it.
    pub(crate) fn encrypted(compression: Compression) -> (Sealing, Keyring) {
        let keys = Keyring::new(vec![Secret::of([1; 32])], Vec::new());
        let key = keys.new_key(&LINEAGE, 2945).expect("a secret");
        (Sealing::with_key(compression, Arc::new(key), Bytes::from_static(b"age")), keys)
    }

    /// The seal is put right again behind whatever was done to the rest.
    fn resealed(bytes: &Bytes, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut bytes = bytes[..bytes.len() - SEAL_BYTES].to_vec();
        change(&mut bytes);
        let seal = *blake3::hash(&bytes).as_bytes();
        bytes.extend_from_slice(&seal);
        bytes.into()
    }

    fn chunk_kind() -> Kind {
        Kind::Chunk(pb::ArchiveChunkHeader { rows: 3 })
    }

    proptest! {
        #[test]
        fn bodies_round_trip(plain in proptest::collection::vec(any::<u8>(), 0..500), zstd in any::<bool>()) {
            let compression = if zstd { Compression::Zstd } else { Compression::None };
            for (sealing, keys) in [(Sealing::open_to_all(compression), Keyring::default()), encrypted(compression)] {
                let sealed = seal("o", &LINEAGE, chunk_kind(), &sealing, &plain).expect("seals");
                let opened = open("o", &LINEAGE, &keys, &sealed.bytes).expect("opens");
                prop_assert_eq!(&opened.plain[..], &plain[..]);
                prop_assert_eq!(opened.chunk_name(), sealing.chunk_name(&opened.plain_blake3));
                prop_assert_eq!(&opened.kind, &chunk_kind());
                prop_assert_eq!(opened.seal, sealed.seal);
            }
        }

        #[test]
        fn any_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open("o", &LINEAGE, &Keyring::default(), &bytes.into()).is_err());
        }

        /// A good seal around bad insides: what a defect in a writer, or a forger, would leave.
        #[test]
        fn sealed_nonsense_is_an_error(at in 8usize..60, byte in any::<u8>()) {
            let sealed = seal("o", &LINEAGE, chunk_kind(), &Sealing::default(), b"some rows").expect("seals").bytes;
            let mut bytes = sealed[..sealed.len() - SEAL_BYTES].to_vec();
            let at = at.min(bytes.len() - 1);
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            let seal = *blake3::hash(&bytes).as_bytes();
            bytes.extend_from_slice(&seal);
            // Never a panic; an error unless the byte lies in a field that an older format did not have.
            let _ = open("o", &LINEAGE, &Keyring::default(), &bytes.into());
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for compression in [Compression::Zstd, Compression::None] {
            for (sealing, keys) in [(Sealing::open_to_all(compression), Keyring::default()), encrypted(compression)] {
                let rows = b"some rows, some rows";
                let sealed = seal("the/object", &LINEAGE, chunk_kind(), &sealing, rows).expect("seals");
                every_flip_is_found(&sealed.bytes, |name, bytes| open(name, &LINEAGE, &keys, bytes).map(drop));
            }
        }
    }

    #[test]
    fn a_good_seal_does_not_vouch_for_the_body() {
        let sealed = seal("x/y", &LINEAGE, chunk_kind(), &Sealing::open_to_all(Compression::None), b"some rows")
            .expect("seals")
            .bytes;
        let mut bytes = sealed[..sealed.len() - SEAL_BYTES].to_vec();
        *bytes.last_mut().expect("a body") ^= 1;
        let seal = *blake3::hash(&bytes).as_bytes();
        bytes.extend_from_slice(&seal);
        let error = open("x/y", &LINEAGE, &Keyring::default(), &bytes.into()).expect_err("another body");
        assert!(error.to_string().contains("hash in its contents"), "{error}");
    }

    #[test]
    fn without_the_key_nothing_is_told_but_whose_it_is() {
        let (sealing, keys) = encrypted(Compression::None);
        let (rows, name) = (b"one person's number", "x/y");
        let sealed = seal(name, &LINEAGE, chunk_kind(), &sealing, rows).expect("seals").bytes;
        assert!(!sealed.windows(rows.len()).any(|window| window == rows));
        let hash = *blake3::hash(rows).as_bytes();
        assert!(!sealed.windows(hash.len()).any(|window| window == hash), "a guess could be proved");
        open(name, &LINEAGE, &keys, &sealed).expect("opens");
        for (given, why) in [
            (Keyring::default(), "no key was given"),
            (Keyring::new(vec![Secret::of([2; 32])], Vec::new()), "not the one it was made from"),
        ] {
            let error = open(name, &LINEAGE, &given, &sealed).expect_err("no key");
            let ArchiveError::NoKey { object, keys_object, reason } = &error else { panic!("{error}") };
            assert!(object == name && keys_object.ends_with("/gen/2945/KEYS.age") && reason.contains(why), "{error}");
            assert!(!error.is_integrity());
            // What is damaged is damaged, for everybody.
            every_flip_is_found(&sealed, |object, bytes| match open(object, &LINEAGE, &given, bytes) {
                Err(ArchiveError::NoKey { .. }) => Ok(()),
                other => other.map(drop),
            });
        }
    }

    #[test]
    fn a_good_object_under_another_name_does_not_open() {
        let (sealing, keys) = encrypted(Compression::Zstd);
        let sealed = seal("a/1", &LINEAGE, chunk_kind(), &sealing, b"rows").expect("seals").bytes;
        let error = open("a/2", &LINEAGE, &keys, &sealed).expect_err("moved");
        assert!(error.is_integrity() && error.to_string().contains("moved, or forged"), "{error}");
    }

    /// Who can write there and knows how an object is built still cannot change one.
    #[test]
    fn no_sealed_object_is_forged_by_sealing_it_again() {
        let (sealing, keys) = encrypted(Compression::None);
        let sealed = seal("o", &LINEAGE, chunk_kind(), &sealing, b"rows").expect("seals").bytes;
        for at in PREFACE_BYTES..sealed.len() - SEAL_BYTES {
            let forged = resealed(&sealed, |bytes| bytes[at] ^= 1);
            assert!(open("o", &LINEAGE, &keys, &forged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_packing_of_the_same_rows_has_another_nonce_and_the_same_name() {
        let nonce_and_name = |compression| {
            let (sealing, keys) = encrypted(compression);
            let sealed = seal("o", &LINEAGE, chunk_kind(), &sealing, b"rows, rows, rows").expect("seals").bytes;
            let (header, _) = split(&sealed.slice(..sealed.len() - SEAL_BYTES)).expect("splits");
            let header: pb::ArchiveHeader = holdfast_wire::decode("header", header).expect("decodes");
            (header.nonce, open("o", &LINEAGE, &keys, &sealed).expect("opens").chunk_name())
        };
        let (packed, plain) = (nonce_and_name(Compression::Zstd), nonce_and_name(Compression::None));
        assert_ne!(packed.0, plain.0);
        assert_eq!(packed.1, plain.1);
    }

    #[test]
    fn another_lineage_and_a_newer_format_are_named() {
        let sealed = seal("o", &LINEAGE, chunk_kind(), &Sealing::default(), b"rows").expect("seals");
        let other = LineageId { incarnation: Incarnation(1), ..LINEAGE };
        let error = open("x/y", &other, &Keyring::default(), &sealed.bytes).expect_err("foreign");
        assert!(error.to_string().contains("x/y is damaged: it belongs to 0707"), "{error}");

        let mut newer = sealed.bytes[..sealed.bytes.len() - SEAL_BYTES].to_vec();
        newer[8..10].copy_from_slice(&(FORMAT + 1).to_be_bytes());
        let seal = *blake3::hash(&newer).as_bytes();
        newer.extend_from_slice(&seal);
        let error = open("x/y", &LINEAGE, &Keyring::default(), &newer.into()).expect_err("newer");
        assert!(
            matches!(error, ArchiveError::OtherFormat { format, known: FORMAT, .. } if format == FORMAT + 1),
            "{error}"
        );
        assert!(!error.is_integrity());
    }
}
