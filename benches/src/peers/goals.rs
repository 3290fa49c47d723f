//! What is asked of Holdfast, and whether it was met.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::figures::Outcome;
use crate::peer::Who;

/// A figure of one cell that is judged.
#[derive(Debug, Clone, Copy)]
enum Measure {
    /// Holdfast's part of etcd's: the median over rounds of the ratio within a round.
    OfEtcd(&'static str),
    /// Two of Holdfast's own figures, in the same way.
    Own(&'static str, &'static str),
    /// Holdfast's median.
    Median(&'static str),
    /// The worst of Holdfast's rounds.
    Most(&'static str),
    /// All of Holdfast's rounds.
    Sum(&'static str),
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One thing that is asked.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// For people.
    pub title: &'static str,
    /// Name of the cell that tells.
    pub cell: &'static str,
    measure: Measure,
    bound: Bound,
    unit: &'static str,
}

const fn goal(title: &'static str, cell: &'static str, measure: Measure, bound: Bound, unit: &'static str) -> Goal {
    Goal { title, cell, measure, bound, unit }
}

/// A put that is acknowledged is synced by two of three; what is lost to the edges of the count is less than this.
const SYNCS_OF_QUORUM: f64 = 0.95;
/// Many records may cost at most so many times what few cost, as `sync-cost` has it.
const INDEPENDENT: f64 = 1.2;
/// Bounded under overload: as with a million records.
const MEMORY_MIB: f64 = 1024.0;

use Bound::{AtLeast, AtMost};
use Measure::{Median, Most, OfEtcd, Own, Sum};

/// All that is asked.
pub const GOALS: &[Goal] = &[
    goal("put, 256 clients, 1 KiB: rate", "put-256-1k", OfEtcd("ops_per_s"), AtLeast(2.5), "x etcd"),
    goal("put, 256 clients, 1 KiB: server CPU", "put-256-1k", OfEtcd("server_us"), AtMost(0.35), "x etcd"),
    goal("put, 256 clients, 1 KiB: p99", "put-256-1k", OfEtcd("p99_ms"), AtMost(0.5), "x etcd"),
    goal("256 writers on StreamWrite: rate", "stream-256-1k", OfEtcd("ops_per_s"), AtLeast(4.0), "x etcd"),
    goal("batches of 64, 64 callers", "batch-64-1k", Median("ops_per_s"), AtLeast(60_000.0), "records/s"),
    goal("put, 1 client: p50", "put-1-1k", OfEtcd("p50_ms"), AtMost(0.75), "x etcd"),
    goal("linearizable get, 256 clients: rate", "get-256-1k", OfEtcd("ops_per_s"), AtLeast(2.5), "x etcd"),
    goal("linearizable get, 256 clients: server CPU", "get-256-1k", OfEtcd("server_us"), AtMost(0.35), "x etcd"),
    goal("delta sync, nothing new, 1 M: p99", "stored-1m", Median("sync_0_of_many_p99_ms"), AtMost(2.0), "ms"),
    goal("delta sync, 10 changes, 1 M: p99", "stored-1m", Median("sync_10_of_many_p99_ms"), AtMost(2.0), "ms"),
    goal(
        "delta sync, nothing new: 1 M to 1 k",
        "stored-1m",
        Own("sync_0_of_many_p50_ms", "sync_0_of_few_p50_ms"),
        AtMost(INDEPENDENT),
        "x 1 k",
    ),
    goal(
        "delta sync, 10 changes: 1 M to 1 k",
        "stored-1m",
        Own("sync_10_of_many_p50_ms", "sync_10_of_few_p50_ms"),
        AtMost(INDEPENDENT),
        "x 1 k",
    ),
    goal("kill -9 of the leader: acknowledged and lost", "failover", Sum("lost"), AtMost(0.0), "puts"),
    goal("kill -9 of the leader: silence", "failover", OfEtcd("silence_ms"), AtMost(0.5), "x etcd"),
    goal("planned transfer: longest silence", "transfer", Most("silence_ms"), AtMost(100.0), "ms"),
    goal("rolling restart: calls that failed", "rolling", Sum("failed"), AtMost(0.0), "calls"),
    goal("1 M records of 1 KiB: memory of a node", "stored-1m", Most("memory_mib"), AtMost(MEMORY_MIB), "MiB"),
    goal("offered 3 x capacity: goodput", "overload", Median("of_peak"), AtLeast(0.8), "of peak"),
    goal("offered 3 x capacity: memory of a node", "overload", Most("memory_mib"), AtMost(MEMORY_MIB), "MiB"),
    goal("offered 3 x capacity: elections", "overload", Sum("elections"), AtMost(0.0), ""),
    goal("syncs a put, second of three nodes", "fsync", Median("quorum_syncs"), AtLeast(SYNCS_OF_QUORUM), "a put"),
];

/// Whether a goal was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was.
    Met,
    /// It was not.
    Short,
    /// Nobody knows.
    NotMeasured,
}

impl Verdict {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Short => "short",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A goal with what was measured of it.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// See [`Goal`].
    pub goal: &'static str,
    /// See [`Goal`].
    pub cell: &'static str,
    /// What was measured.
    pub measured: Option<f64>,
    /// What is asked, for people.
    pub asked: String,
    /// See [`Verdict`].
    pub verdict: Verdict,
}

impl Goal {
    /// Judges by what was measured.
    pub fn judge(&self, outcomes: &BTreeMap<String, Outcome>) -> Judged {
        let own = Who::Holdfast;
        let measured = outcomes.get(self.cell).and_then(|outcome| match self.measure {
            OfEtcd(figure) => outcome.ratio((own, figure), (Who::Etcd, figure)),
            Own(of, to) => outcome.ratio((own, of), (own, to)),
            Median(figure) => outcome.median(own, figure),
            Most(figure) => outcome.most(own, figure),
            Sum(figure) => outcome.sum(own, figure),
        });
        let verdict = match (measured, self.bound) {
            (None, _) => Verdict::NotMeasured,
            (Some(value), AtLeast(least)) if value >= least => Verdict::Met,
            (Some(value), AtMost(most)) if value <= most => Verdict::Met,
            // What cannot be compared is no success.
            (Some(_), _) => Verdict::Short,
        };
        let asked = match self.bound {
            AtLeast(least) => format!(">= {least} {}", self.unit),
            AtMost(most) => format!("<= {most} {}", self.unit),
        };
        Judged { goal: self.title, cell: self.cell, measured, asked: asked.trim_end().to_owned(), verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::outcome;

    fn judge(cell: &'static str, measure: Measure, bound: Bound, outcome: Outcome) -> Verdict {
        let goal = goal("", cell, measure, bound, "");
        goal.judge(&BTreeMap::from([(outcome.cell.clone(), outcome)])).verdict
    }

    #[test]
    fn a_goal_is_met_short_or_not_measured() {
        let put = |etcd: &[f64]| outcome("put", "ops", &[50.0, 30.0, 20.0], etcd);
        let rate = OfEtcd("ops");
        assert_eq!(judge("put", rate, AtLeast(2.5), put(&[20.0, 12.0, 1.0])), Verdict::Met);
        assert_eq!(judge("put", rate, AtLeast(2.51), put(&[20.0, 12.0, 8.0])), Verdict::Short);
        assert_eq!(judge("put", rate, AtLeast(2.5), put(&[])), Verdict::NotMeasured, "etcd could not be run");
        assert_eq!(judge("get", rate, AtLeast(2.5), put(&[1.0])), Verdict::NotMeasured, "another cell");
        assert_eq!(judge("put", Most("ops"), AtMost(50.0), put(&[])), Verdict::Met);
        assert_eq!(judge("put", Sum("ops"), AtMost(99.0), put(&[])), Verdict::Short);
        assert_eq!(judge("put", Median("ops"), AtMost(f64::NAN), put(&[])), Verdict::Short);
    }

    #[test]
    fn every_goal_is_told_by_a_cell_that_there_is() {
        for goal in GOALS {
            assert!(crate::cells::all().iter().any(|cell| cell.slug == goal.cell), "{}", goal.cell);
        }
    }
}
