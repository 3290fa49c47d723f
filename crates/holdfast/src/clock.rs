//! Wall-clock time as it is printed and read: RFC 3339; printed in UTC, with milliseconds.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// RFC 3339 has no year after 9999.
const LAST: u64 = 253_402_300_799_999;

/// Milliseconds since the Unix epoch.
pub fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// UTC time with milliseconds, as RFC 3339 writes it.
pub fn rfc3339(unix_ms: u64) -> String {
    let time: DateTime<Utc> = DateTime::from_timestamp_millis(unix_ms.min(LAST) as i64).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Milliseconds since the Unix epoch of a moment as RFC 3339 writes it, with its offset from UTC. Parts of a millisecond are
/// cut off; `None` = it is none, or before the epoch.
pub fn parse(text: &str) -> Option<u64> {
    u64::try_from(DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments_print_right() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_305_599_999), "2026-11-21T23:59:59.999Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_moment_is_read_with_its_offset() {
        assert_eq!(parse("2026-11-22T00:59:59.9999+01:00"), Some(1_795_305_599_999));
        assert_eq!(parse("2000-02-29T00:00:00Z"), Some(951_782_400_000));
        for wrong in ["2026-02-29T00:00:00Z", "2026-11-21T24:00:00Z", "2026-11-21", "x", "1969-12-31T23:59:59Z"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(ms in 0..=LAST) {
            prop_assert_eq!(parse(&rfc3339(ms)), Some(ms));
        }
    }
}
