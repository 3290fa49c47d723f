//! The end of a WAL that a power cut tore.
//!
//! A cut in the middle of an fsync may leave the newest WAL as long as it was to become, and its last pages unwritten:
//! they read as zeros. RocksDB tolerates a WAL that is too short, and refuses this one ("error in middle of record",
//! "checksum mismatch"), although nothing in it was ever fsynced. Setting a whole log aside for that would leave a node
//! that cannot vote; two such nodes after one cut, and nobody could lead.
//!
//! Invariants:
//! - Only the newest WAL is cut, only in front of a record that reaches into pages which are zeros to the end of the file,
//!   and only if all records before it are whole. Everything else stays as it is, for RocksDB to judge.
//! - A disk that lost what it had fsynced looks the same. The floor tells the two apart, after this: a log that ends below
//!   it makes the node recover from its peers.
//!
//! Framing as in RocksDB's `db/log_format.h`: blocks of 32 KiB with records of checksum u32, length u16, kind u8, payload.

use std::path::{Path, PathBuf};

use crate::error::StoreError;
use crate::files;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
const PAGE_BYTES: usize = 4096;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// What was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The WAL.
    pub path: PathBuf,
    /// Bytes that are left.
    pub kept: u64,
    /// Bytes that were cut off.
    pub cut: u64,
}

/// Cuts off the torn end of the newest WAL in `dir`, durably; `None` = it has none.
pub(crate) fn cut_torn_tail(dir: &Path) -> Result<Option<TornTail>, StoreError> {
    let number = |name: &String| name.strip_suffix(".log").and_then(|number| number.parse::<u64>().ok());
    let newest = files::names(dir)?.into_iter().filter(|name| number(name).is_some()).max_by_key(number);
    let Some(path) = newest.map(|name| dir.join(name)) else { return Ok(None) };
    let bytes = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
    let Some(kept) = torn_at(&bytes) else { return Ok(None) };
    let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(StoreError::io("open", &path))?;
    file.set_len(kept as u64).map_err(StoreError::io("cut", &path))?;
    file.sync_all().map_err(StoreError::io("fsync", &path))?;
    files::sync_dir(dir)?;
    Ok(Some(TornTail { path, kept: kept as u64, cut: (bytes.len() - kept) as u64 }))
}

/// Where the torn end begins.
fn torn_at(wal: &[u8]) -> Option<usize> {
    let zeros = wal.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // First page that holds nothing but zeros, as all behind it: from here on nothing was written.
    let unwritten = zeros.next_multiple_of(PAGE_BYTES);
    if unwritten >= wal.len() {
        return None;
    }
    let (mut at, mut begun) = (0, None);
    loop {
        let block_end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
        if block_end - at < HEADER_BYTES {
            at = block_end;
            continue;
        }
        let record = record_at(wal, at);
        match (record, begun) {
            (Some((FULL, end)), None) => at = end,
            (Some((FIRST, end)), None) => (at, begun) = (end, Some(at)),
            (Some((MIDDLE, end)), Some(_)) => at = end,
            (Some((LAST, end)), Some(_)) => (at, begun) = (end, None),
            // The first that is not whole.
            _ => break,
        }
    }
    let start = begun.unwrap_or(at);
    // It must be the lack of those pages that broke it: the record, or the piece of it that comes next, reaches into them.
    let header = wal.get(at..at + HEADER_BYTES)?;
    let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let reaches = at >= unwritten || at + HEADER_BYTES + length > unwritten;
    // Zeros where a record would begin are an end like any other.
    let is_broken = begun.is_some() || header.iter().any(|byte| *byte != 0);
    (reaches && is_broken).then_some(start)
}

/// Kind and end of a whole record.
fn record_at(wal: &[u8], at: usize) -> Option<(u8, usize)> {
    let header = wal.get(at..at.checked_add(HEADER_BYTES)?)?;
    let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let end = at + HEADER_BYTES + length;
    let crc = crc32c::crc32c(wal.get(at + 6..end)?);
    let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    // Masked as RocksDB does (`util/crc32c.h`): a checksum over bytes that hold checksums would be weak.
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    (stored == masked).then_some((header[6], end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(wal: &mut Vec<u8>, mut payload: &[u8]) {
        let mut first = true;
        loop {
            let left = BLOCK_BYTES - wal.len() % BLOCK_BYTES;
            if left < HEADER_BYTES {
                wal.resize(wal.len() + left, 0);
                continue;
            }
            let (piece, rest) = payload.split_at(payload.len().min(left - HEADER_BYTES));
            let kind = match (first, rest.is_empty()) {
                (true, true) => FULL,
                (true, false) => FIRST,
                (false, true) => LAST,
                (false, false) => MIDDLE,
            };
            let checked = [&[kind], piece].concat();
            let crc = crc32c::crc32c(&checked).rotate_right(15).wrapping_add(0xa282_ead8);
            wal.extend_from_slice(&crc.to_le_bytes());
            wal.extend_from_slice(&(piece.len() as u16).to_le_bytes());
            wal.push(kind);
            wal.extend_from_slice(piece);
            (payload, first) = (rest, false);
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Records of several sizes, and where each begins.
    fn wal() -> (Vec<u8>, Vec<usize>) {
        let (mut wal, mut starts) = (Vec::new(), Vec::new());
        for number in 0..60usize {
            starts.push(wal.len());
            put(&mut wal, &vec![number as u8 + 1; 40 + number * 97 % 9000]);
        }
        (wal, starts)
    }

    #[test]
    fn what_was_not_written_is_cut_in_front_of_the_record_that_lacks_it() {
        let (wal, starts) = wal();
        assert!(wal.len() > 4 * BLOCK_BYTES, "several blocks");
        assert_eq!(torn_at(&wal), None, "it is whole");
        for from in (PAGE_BYTES..wal.len()).step_by(PAGE_BYTES) {
            let mut torn = wal.clone();
            torn[from..].fill(0);
            let at = starts[starts.partition_point(|start| *start < from) - 1];
            match torn_at(&torn) {
                Some(kept) => assert_eq!(kept, at, "pages from {from} on"),
                // The last record ends where the page does.
                None => assert!(starts.contains(&from) || from % BLOCK_BYTES + HEADER_BYTES > BLOCK_BYTES, "{from}"),
            }
        }
    }

    #[test]
    fn other_damage_is_left_alone() {
        let (wal, starts) = wal();
        for at in [starts[0] + 9, starts[20] + 3, starts[40] + 8] {
            let mut flipped = wal.clone();
            flipped[at] ^= 1;
            assert_eq!(torn_at(&flipped), None, "a flipped bit at {at}");
            // Also where the end is torn as well: there is more wrong than that.
            let page = (wal.len() - 1) / PAGE_BYTES * PAGE_BYTES;
            flipped[page..].fill(0);
            assert_eq!(torn_at(&flipped), None, "a flipped bit at {at} before a torn end");
        }
        assert_eq!(torn_at(&wal[..wal.len() - 5]), None, "too short: RocksDB knows that");
        let mut hole = wal.clone();
        hole[PAGE_BYTES..2 * PAGE_BYTES].fill(0);
        assert_eq!(torn_at(&hole), None, "a page in the middle");
        assert_eq!(torn_at(&[]), None);
        assert_eq!(torn_at(&vec![0; 3 * BLOCK_BYTES]), None, "nothing was ever written");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), zeros in 0usize..9000) {
            bytes.resize(bytes.len() + zeros, 0);
            if let Some(kept) = torn_at(&bytes) {
                proptest::prop_assert!(kept < bytes.len());
            }
        }
    }
}
