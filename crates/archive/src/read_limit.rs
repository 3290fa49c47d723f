//! How fast a checkpoint is read while people are served from the same disk and processors.

use std::time::{Duration, Instant};

/// Time that was spent elsewhere counts, up to this much; else a reader that waits for uploads would never reach its rate.
const CREDIT: Duration = Duration::from_millis(100);

/// Bytes a second, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadLimit(u64);

impl ReadLimit {
    /// As fast as it goes.
    pub const NONE: Self = Self(0);

    /// So many bytes a second; 0 = as many as it can.
    pub fn bytes_per_second(rate: u64) -> Self {
        Self(rate)
    }

    /// A reading that begins now.
    pub(crate) fn begin(self, now: Instant) -> Paced {
        Paced { rate: self.0, due: now }
    }
}

/// One reading.
#[derive(Debug)]
pub(crate) struct Paced {
    rate: u64,
    /// When everything that was read so far is paid for.
    due: Instant,
}

impl Paced {
    /// So much was read; gives the time to sleep.
    pub(crate) fn passed(&mut self, bytes: u64, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let since = now.checked_sub(CREDIT).map_or(self.due, |earliest| self.due.max(earliest));
        self.due = since + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_limit_nobody_sleeps() {
        let now = Instant::now();
        assert_eq!(ReadLimit::NONE.begin(now).passed(u64::MAX, now), Duration::ZERO);
    }

    proptest! {
        /// Whatever it does between its reads, it passes no more than the rate allows, but for the credit; and one that does
        /// nothing else is not slower than that.
        #[test]
        fn the_rate_is_kept(reads in proptest::collection::vec((1u64..4_000_000, 0u64..300), 1..60)) {
            const RATE: u64 = 1_000_000;
            let start = Instant::now();
            let (mut paced, mut now, mut total, mut elsewhere) =
                (ReadLimit::bytes_per_second(RATE).begin(start), start, 0, Duration::ZERO);
            for (bytes, busy_ms) in reads {
                let busy = Duration::from_millis(busy_ms);
                elsewhere += busy;
                now += busy;
                now += paced.passed(bytes, now);
                total += bytes;
            }
            let (took, owed) = ((now - start).as_secs_f64(), total as f64 / RATE as f64);
            prop_assert!(took + CREDIT.as_secs_f64() + 1e-3 >= owed, "{took} s for {owed} s worth of bytes");
            prop_assert!(took <= owed + elsewhere.as_secs_f64() + 1e-3, "{took} s for {owed} s worth of bytes");
        }
    }
}
