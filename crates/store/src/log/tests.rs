//! Tests of framing; the log itself is tested through its API in `tests/log.rs`.

use bytes::Bytes;

use super::frame;
use super::types::{LogPosition, StoredEntry};

fn entry() -> StoredEntry {
    StoredEntry { position: LogPosition { term: 1, node: 2, index: 3 }, bytes: Bytes::from_static(b"hello") }
}

#[test]
fn every_flipped_bit_of_a_frame_is_found() {
    let frame = frame::encode(9, &entry());
    let good = frame::decode(3, &frame.bytes).expect("it decodes");
    assert_eq!((good.previous_crc, &good.entry, good.crc), (9, &entry(), frame.crc));
    for bit in 0..frame.bytes.len() * 8 {
        let mut bytes = frame.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(frame::decode(3, &bytes).is_err(), "bit {bit}");
    }
    for end in 0..frame.bytes.len() {
        assert!(frame::decode(3, &frame.bytes[..end]).is_err(), "cut at {end}");
    }
    assert!(frame::decode(4, &frame.bytes).is_err(), "it is the entry of index 3");
}

/// A frame that an earlier build wrote.
#[test]
fn golden_bytes() {
    let hex: String = frame::encode(9, &entry()).bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "000000090000000000000001000000000000000200000000000000030000000568656c6c6f0ea74131");
}
