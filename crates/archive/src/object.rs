//! The shell of every object: who it belongs to, how its body is coded, and hashes over all of it.
//!
//! ```text
//! magic 8 | format u16 | zero u16 | header length u32 | stored length u64 | header (ArchiveHeader) | stored body | seal
//! ```
//! The seal is the BLAKE3 of everything before it. Magic, place of the format and seal are the same in all formats.
//!
//! Invariants:
//! - Nothing is believed before the seal is checked, so a flipped bit anywhere is damage, never another value.
//! - The plain body is checked against its own hash after unpacking.
//! - An object is at most [`OBJECT_BYTES_MAX`] long: it goes up in one conditional request.

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_model::id::Incarnation;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_header::Kind;

use crate::error::ArchiveError;
use crate::layout::{LineageId, hex};

/// Newest format that this build writes and reads.
pub(crate) const FORMAT: u16 = 2;
/// Largest object.
pub(crate) const OBJECT_BYTES_MAX: u64 = 64 << 20;
/// Largest plain body; bounds what a damaged or hostile header can make a reader allocate.
const PLAIN_BYTES_MAX: u64 = 256 << 20;

const MAGIC: [u8; 8] = *b"HOLDARCH";
const PREFACE_BYTES: usize = 24;
const SEAL_BYTES: usize = 32;
const ZSTD_LEVEL: i32 = 3;

/// How a new object's body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// One zstd frame.
    Zstd,
    /// As it is.
    #[cfg_attr(not(test), expect(dead_code, reason = "read today, written once `--compression none` exists"))]
    None,
}

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
}

/// Builds an object.
///
/// # Errors
/// When the body cannot be packed or is too large.
pub(crate) fn seal(
    lineage: &LineageId,
    kind: Kind,
    compression: Compression,
    plain: &[u8],
) -> Result<Sealed, ArchiveError> {
    let (code, stored) = match compression {
        Compression::Zstd => {
            let packed = zstd::bulk::compress(plain, ZSTD_LEVEL);
            (pb::ArchiveCompression::Zstd, packed.map_err(|error| ArchiveError::refused(format!("zstd: {error}")))?)
        }
        Compression::None => (pb::ArchiveCompression::None, plain.to_vec()),
    };
    let header = holdfast_wire::encode(&pb::ArchiveHeader {
        cluster_id: Bytes::copy_from_slice(&lineage.cluster_id),
        incarnation: lineage.incarnation.0,
        compression: code.into(),
        encryption: pb::ArchiveEncryption::None.into(),
        key_id: Bytes::new(),
        nonce: Bytes::new(),
        plain_length: plain.len() as u64,
        plain_blake3: Bytes::copy_from_slice(blake3::hash(plain).as_bytes()),
        kind: Some(kind),
    });
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

/// Reads an object and checks everything that it says about itself, and that it belongs to `lineage`.
///
/// # Errors
/// Names `object` and the first thing that is wrong.
pub(crate) fn open(object: &str, lineage: &LineageId, bytes: &Bytes) -> Result<Opened, ArchiveError> {
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
    let plain = unpack(&header, stored).map_err(bad)?;
    let plain_blake3 = *blake3::hash(&plain).as_bytes();
    if header.plain_blake3[..] != plain_blake3 || header.plain_length != plain.len() as u64 {
        return Err(bad("its body does not match the hash in its header".into()));
    }
    let kind = header.kind.ok_or_else(|| bad("it is of an unknown kind".into()))?;
    Ok(Opened { kind, plain, plain_blake3, seal: actual })
}

fn split(sealed: &Bytes) -> Option<(Bytes, Bytes)> {
    let zero = u16::from_be_bytes(fixed(&sealed[10..12])?);
    let header = u32::from_be_bytes(fixed(&sealed[12..16])?) as usize;
    let stored = usize::try_from(u64::from_be_bytes(fixed(&sealed[16..24])?)).ok()?;
    let body = PREFACE_BYTES.checked_add(header)?;
    let fits = zero == 0 && body.checked_add(stored)? == sealed.len();
    fits.then(|| (sealed.slice(PREFACE_BYTES..body), sealed.slice(body..)))
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

fn unpack(header: &pb::ArchiveHeader, stored: Bytes) -> Result<Bytes, String> {
    if header.plain_length > PLAIN_BYTES_MAX {
        return Err(format!("its body claims {} bytes", header.plain_length));
    }
    match header.encryption() {
        pb::ArchiveEncryption::None => {}
        pb::ArchiveEncryption::Unspecified => return Err("it is sealed in a way that this build does not know".into()),
    }
    match header.compression() {
        pb::ArchiveCompression::None => Ok(stored),
        pb::ArchiveCompression::Zstd => zstd::bulk::decompress(&stored, header.plain_length as usize)
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

    pub(crate) const LINEAGE: LineageId = LineageId { cluster_id: [7; 16], incarnation: Incarnation(0xabcd) };

    /// Flips every bit in turn; each must be found, and the error must name the object.
    pub(crate) fn every_flip_is_found(bytes: &Bytes, read: impl Fn(&str, &Bytes) -> Result<(), ArchiveError>) {
        assert!(read("good", bytes).is_ok());
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

    fn chunk_kind() -> Kind {
        Kind::Chunk(pb::ArchiveChunkHeader { rows: 3 })
    }

    proptest! {
        #[test]
        fn bodies_round_trip(plain in proptest::collection::vec(any::<u8>(), 0..500), zstd in any::<bool>()) {
            let compression = if zstd { Compression::Zstd } else { Compression::None };
            let sealed = seal(&LINEAGE, chunk_kind(), compression, &plain).expect("seals");
            let opened = open("o", &LINEAGE, &sealed.bytes).expect("opens");
            prop_assert_eq!(&opened.plain[..], &plain[..]);
            prop_assert_eq!(opened.kind, chunk_kind());
            prop_assert_eq!(opened.seal, sealed.seal);
        }

        #[test]
        fn any_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open("o", &LINEAGE, &bytes.into()).is_err());
        }

        /// A good seal around bad insides: what a defect in a writer, or a forger, would leave.
        #[test]
        fn sealed_nonsense_is_an_error(at in 8usize..60, byte in any::<u8>()) {
            let sealed = seal(&LINEAGE, chunk_kind(), Compression::Zstd, b"some rows").expect("seals").bytes;
            let mut bytes = sealed[..sealed.len() - SEAL_BYTES].to_vec();
            let at = at.min(bytes.len() - 1);
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            let seal = *blake3::hash(&bytes).as_bytes();
            bytes.extend_from_slice(&seal);
            // Never a panic; an error unless the byte lies in a field that an older format did not have.
            let _ = open("o", &LINEAGE, &bytes.into());
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for compression in [Compression::Zstd, Compression::None] {
            let sealed = seal(&LINEAGE, chunk_kind(), compression, b"some rows, some rows").expect("seals");
            every_flip_is_found(&sealed.bytes, |name, bytes| open(name, &LINEAGE, bytes).map(drop));
        }
    }

    #[test]
    fn a_good_seal_does_not_vouch_for_the_body() {
        let sealed = seal(&LINEAGE, chunk_kind(), Compression::None, b"some rows").expect("seals").bytes;
        let mut bytes = sealed[..sealed.len() - SEAL_BYTES].to_vec();
        *bytes.last_mut().expect("a body") ^= 1;
        let seal = *blake3::hash(&bytes).as_bytes();
        bytes.extend_from_slice(&seal);
        let error = open("x/y", &LINEAGE, &bytes.into()).expect_err("another body");
        assert!(error.to_string().contains("hash in its header"), "{error}");
    }

    #[test]
    fn another_lineage_and_a_newer_format_are_named() {
        let sealed = seal(&LINEAGE, chunk_kind(), Compression::Zstd, b"rows").expect("seals");
        let other = LineageId { incarnation: Incarnation(1), ..LINEAGE };
        let error = open("x/y", &other, &sealed.bytes).expect_err("foreign");
        assert!(error.to_string().contains("x/y is damaged: it belongs to 0707"), "{error}");

        let mut newer = sealed.bytes[..sealed.bytes.len() - SEAL_BYTES].to_vec();
        newer[9] = 3;
        let seal = *blake3::hash(&newer).as_bytes();
        newer.extend_from_slice(&seal);
        let error = open("x/y", &LINEAGE, &newer.into()).expect_err("newer");
        assert!(matches!(error, ArchiveError::OtherFormat { format: 3, known: 2, .. }), "{error}");
        assert!(!error.is_integrity());
    }
}
