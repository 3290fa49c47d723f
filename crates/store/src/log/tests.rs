//! Tests of framing; the log itself is tested through its API in `tests/log.rs`.

use bytes::Bytes;

use super::frame;
use super::types::{LogPosition, StoredEntry};

fn entry() -> StoredEntry {
    StoredEntry { position: LogPosition { term: 1, node: 2, index: 3 }, bytes: Bytes::from_static(b"hello") }
}

#[test]
fn every_flipped_bit_of_a_frame_is_found() {
    let mut frame = Vec::new();
    let crc = frame::put(&mut frame, 9, &entry());
    let good = frame::decode(&frame).expect("it decodes");
    assert_eq!((good.previous_crc, &good.entry, good.crc), (9, &entry(), crc));
    assert_eq!(frame::index_of(&frame), Some(3));
    for bit in 0..frame.len() * 8 {
        let mut bytes = frame.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(frame::decode(&bytes).is_err(), "bit {bit}");
    }
    for end in 0..frame.len() {
        assert!(frame::decode(&frame[..end]).is_err(), "cut at {end}");
    }
}

/// A frame that an earlier build wrote.
#[test]
fn golden_bytes() {
    let mut frame = Vec::new();
    frame::put(&mut frame, 9, &entry());
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "000000090000000000000001000000000000000200000000000000030000000568656c6c6f0ea74131");
}
