//! Whether a copy outside may be counted on: what those say who read it.
//!
//! That it was written proves little. A copy counts while somebody found it good lately, with what a majority of the voters
//! signed, and nobody found it bad since. One that is new counts for a while before anybody read it, or no cluster would be well
//! on its first day.

use crate::facts::Freshness;
use crate::health::Limits;

/// What is known of a copy by those who read it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proof {
    /// Since it was last found good, against what a majority of the voters signed or by a restore, in milliseconds; `None` =
    /// never.
    pub proved_age_ms: Option<u64>,
    /// Why it is bad; `None` = nobody found it bad since it was last found good.
    pub failed: Option<String>,
    /// Since the first entry was shipped there, in milliseconds; `None` = not known.
    pub age_ms: Option<u64>,
}

impl Proof {
    /// What follows from it.
    pub fn freshness(&self, limits: &Limits) -> Freshness {
        if let Some(why) = &self.failed {
            return Freshness::Stale(why.clone());
        }
        match (self.proved_age_ms, self.age_ms) {
            (Some(age), _) if age <= limits.proof_age_ms_max => Freshness::Verified,
            (Some(age), _) => Freshness::Stale(format!("it was last proved {} ago", span(age))),
            (None, Some(age)) if age <= limits.proof_grace_ms => {
                let left = span(limits.proof_grace_ms - age);
                Freshness::New(format!("nobody has read it yet; it counts for another {left} without"))
            }
            (None, _) => Freshness::Stale("nobody ever proved that one comes back from it".into()),
        }
    }
}

/// A span of time in words, to one unit.
pub fn span(ms: u64) -> String {
    let (value, unit) = match ms / 1000 {
        seconds if seconds < 120 => (seconds, "s"),
        seconds if seconds < 120 * 60 => (seconds / 60, "min"),
        seconds if seconds < 48 * 60 * 60 => (seconds / (60 * 60), "h"),
        seconds => (seconds / (24 * 60 * 60), "days"),
    };
    format!("{value} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_counts_while_somebody_found_it_good_lately_and_nobody_bad_since() {
        let limits = Limits { proof_age_ms_max: 1000, proof_grace_ms: 500, ..Limits::default() };
        let of = |proved_age_ms, failed: Option<&str>, age_ms| {
            Proof { proved_age_ms, failed: failed.map(str::to_owned), age_ms }.freshness(&limits)
        };
        assert_eq!(of(Some(1000), None, None), Freshness::Verified);
        assert!(matches!(of(Some(1001), None, Some(0)), Freshness::Stale(why) if why.contains("1 s ago")));
        assert_eq!(of(Some(0), Some("a chunk is gone"), Some(0)), Freshness::Stale("a chunk is gone".into()));
        assert_eq!(of(None, Some("a chunk is gone"), Some(0)), Freshness::Stale("a chunk is gone".into()));
        assert!(matches!(of(None, None, Some(500)), Freshness::New(_)));
        assert!(matches!(of(None, None, Some(501)), Freshness::Stale(_)));
        assert!(matches!(of(None, None, None), Freshness::Stale(_)), "of unknown age it is not new");
    }

    #[test]
    fn spans_read_well() {
        let spans = [999, 119_000, 120_000, 7_199_000, 7_200_000, 172_799_000, 172_800_000];
        assert_eq!(spans.map(span), ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
    }
}
