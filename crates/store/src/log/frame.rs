//! How an entry lies in the database, and what proves that none before it is missing.
//!
//! `previous crc | term | node | index | length | bytes | crc`, numbers big-endian; the checksum is CRC32C over all
//! before it. The previous checksum is that of the entry one below, or the one kept with the purge marker, or 0.

use bytes::{BufMut, Bytes};

use crate::log::types::{LogPosition, StoredEntry};

const HEADER_BYTES: usize = 4 + 8 + 8 + 8 + 4;
const CRC_BYTES: usize = 4;

/// An encoded frame.
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    /// Its checksum: the link for the next.
    pub(crate) crc: u32,
}

/// A decoded frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Framed {
    pub(crate) previous_crc: u32,
    pub(crate) entry: StoredEntry,
    pub(crate) crc: u32,
}

pub(crate) fn encode(previous_crc: u32, entry: &StoredEntry) -> Frame {
    let StoredEntry { position, bytes: payload } = entry;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len() + CRC_BYTES);
    bytes.put_u32(previous_crc);
    bytes.put_u64(position.term);
    bytes.put_u64(position.node);
    bytes.put_u64(position.index);
    // Entries are bounded far below 4 GiB by the limits of a batch.
    bytes.put_u32(payload.len() as u32);
    bytes.put_slice(payload);
    let crc = crc32c::crc32c(&bytes);
    bytes.put_u32(crc);
    Frame { bytes, crc }
}

/// Decodes and verifies a frame read at `index`.
pub(crate) fn decode(index: u64, bytes: &[u8]) -> Result<Framed, &'static str> {
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
    if position.index != index {
        return Err("it is the entry of another index");
    }
    let entry = StoredEntry { position, bytes: Bytes::copy_from_slice(payload) };
    Ok(Framed { previous_crc: u32::from_be_bytes(*previous), entry, crc })
}
