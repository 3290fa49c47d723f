//! How an entry lies in the log, and what proves that none before it is missing.
//!
//! `previous crc | term | node | index | length | bytes | crc`, numbers big-endian; the checksum is CRC32C over all
//! before it. The previous checksum is that of the entry one below, or the one kept with the purge marker, or 0.

use bytes::{BufMut, Bytes};

use crate::log::types::{LogPosition, StoredEntry};

const HEADER_BYTES: usize = 4 + 8 + 8 + 8 + 4;
const CRC_BYTES: usize = 4;

/// A decoded frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Framed {
    pub(crate) previous_crc: u32,
    pub(crate) entry: StoredEntry,
    pub(crate) crc: u32,
}

/// Adds the frame of `entry` to `out`, and gives its checksum: the link for the next.
pub(crate) fn put(out: &mut Vec<u8>, previous_crc: u32, entry: &StoredEntry) -> u32 {
    let StoredEntry { position, bytes: payload } = entry;
    let start = out.len();
    out.reserve(HEADER_BYTES + payload.len() + CRC_BYTES);
    out.put_u32(previous_crc);
    out.put_u64(position.term);
    out.put_u64(position.node);
    out.put_u64(position.index);
    // Entries are bounded far below 4 GiB by the limits of a batch.
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    let crc = crc32c::crc32c(out.get(start..).unwrap_or_default());
    out.put_u32(crc);
    crc
}

/// Position of a frame that was verified before.
pub(crate) fn index_of(bytes: &[u8]) -> Option<u64> {
    let index = bytes.get(4 + 8 + 8..)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*index))
}

/// Decodes and verifies a frame.
pub(crate) fn decode(bytes: &[u8]) -> Result<Framed, &'static str> {
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or("it is cut off")?;
    let crc = u32::from_be_bytes(*crc);
    if crc32c::crc32c(body) != crc {
        return Err("its checksum does not match");
    }
    let (previous, rest) = body.split_first_chunk::<4>().ok_or("it is cut off")?;
    let (term, rest) = rest.split_first_chunk::<8>().ok_or("it is cut off")?;
    let (node, rest) = rest.split_first_chunk::<8>().ok_or("it is cut off")?;
    let (at, rest) = rest.split_first_chunk::<8>().ok_or("it is cut off")?;
    let (length, payload) = rest.split_first_chunk::<4>().ok_or("it is cut off")?;
    if u32::from_be_bytes(*length) as usize != payload.len() {
        return Err("its length does not match");
    }
    let position = LogPosition {
        term: u64::from_be_bytes(*term),
        node: u64::from_be_bytes(*node),
        index: u64::from_be_bytes(*at),
    };
    let entry = StoredEntry { position, bytes: Bytes::copy_from_slice(payload) };
    Ok(Framed { previous_crc: u32::from_be_bytes(*previous), entry, crc })
}
