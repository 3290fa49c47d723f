//! When to try again at a destination that failed, and what of it is worth a line in the log.

use std::time::Duration;

use tokio::time::Instant;

const PAUSE_MIN: Duration = Duration::from_millis(500);
/// No longer: so late is the first write offsite once a destination is back.
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// The same failure is told again after so long.
const TELL_PAUSE: Duration = Duration::from_secs(60);

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u32,
    told: Option<(String, Instant)>,
}

/// What to do about a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// Try again after this.
    pub pause: Duration,
    /// Nobody was told lately.
    pub tell: bool,
}

impl Failures {
    /// An attempt failed now, for this reason. If something was shipped before, it is the first of its row.
    pub fn failed(&mut self, went_well: bool, now: Instant, reason: &str) -> Next {
        if went_well {
            self.count = 0;
        }
        let pause = PAUSE_MIN.saturating_mul(1 << self.count.min(8)).min(PAUSE_MAX);
        self.count += 1;
        let known = self.told.as_ref().is_some_and(|(told, at)| told == reason && now - *at < TELL_PAUSE);
        if !known {
            self.told = Some((reason.to_owned(), now));
        }
        Next { pause, tell: !known }
    }

    /// It went well.
    pub fn end(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_one_reason_is_told_once_a_minute() {
        let mut failures = Failures::default();
        let (mut now, mut told) = (Instant::now(), 0);
        let mut pauses = Vec::new();
        for _ in 0..20 {
            let next = failures.failed(false, now, "gone");
            told += u32::from(next.tell);
            pauses.push(next.pause.as_millis());
            now += next.pause;
        }
        assert_eq!(pauses[..5], [500, 1000, 2000, 4000, 4000]);
        assert_eq!(told, 2, "more than one minute, less than two");
        assert!(failures.failed(false, now, "refused").tell, "another reason");
        // It shipped for a while, and failed then.
        assert_eq!(failures.failed(true, now, "gone").pause, PAUSE_MIN);
        failures.end();
        assert_eq!(failures.failed(false, now, "gone"), Next { pause: PAUSE_MIN, tell: true });
    }
}
