//! Verdicts on what was seen. Each checker is a pure function over a history; none talks to a cluster.
//!
//! Invariants:
//! - `unknown` is never a pass: what could not be judged, or was never put to the test, is not valid.
//! - The worst verdict of all rules is the verdict.

use serde::{Deserialize, Serialize};

pub mod append;
#[cfg(test)]
mod by_hand;
pub mod faults;
pub mod feed;
pub mod harness;
pub mod linear;
pub mod model;
pub mod paired;
pub mod replicas;
pub mod restore;
pub mod set;
#[cfg(test)]
pub mod simulation;
pub mod terms;
pub mod timeline;
pub mod ttl;
pub mod versioned;

/// Pieces of evidence that are kept for one rule.
const EVIDENCE_MAX: usize = 10;

/// What is to be said about a run. Ordered: the worse, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every promise was put to the test and held.
    Valid,
    /// Nobody can say.
    Unknown,
    /// A promise was broken.
    Invalid,
}

/// One line of the table at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What.
    pub what: String,
    /// Seen.
    pub measured: String,
    /// Wanted; empty = a figure only.
    pub required: String,
    /// What this line says.
    pub verdict: Verdict,
    /// Examples of what broke it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

/// What one checker found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name of the checker.
    pub checker: String,
    /// The worst of its rows.
    pub verdict: Verdict,
    /// One per rule.
    pub rows: Vec<Row>,
}

impl Report {
    fn new(checker: &str) -> Self {
        Self { checker: checker.to_owned(), verdict: Verdict::Valid, rows: Vec::new() }
    }

    /// What makes a history one that proves nothing.
    pub fn of_doubts(checker: &str, doubts: &[&[String]]) -> Self {
        let mut report = Self::new(checker);
        report.doubtful("calls that do not fit together", doubts.concat());
        report
    }

    /// A rule that may be broken `0` times; `broken` are the breaches.
    fn never(&mut self, what: &str, broken: Vec<String>) {
        self.none(what, broken, Verdict::Invalid);
    }

    /// Something that must not be there for the run to prove anything.
    fn doubtful(&mut self, what: &str, doubts: Vec<String>) {
        self.none(what, doubts, Verdict::Unknown);
    }

    fn none(&mut self, what: &str, mut broken: Vec<String>, otherwise: Verdict) {
        let count = broken.len();
        broken.truncate(EVIDENCE_MAX);
        let verdict = if count == 0 { Verdict::Valid } else { otherwise };
        self.push(what, count.to_string(), "0".to_owned(), verdict, broken);
    }

    /// The run proves nothing with less.
    fn at_least(&mut self, what: &str, measured: usize, required: usize) {
        let verdict = if measured >= required { Verdict::Valid } else { Verdict::Unknown };
        self.push(what, measured.to_string(), format!("at least {required}"), verdict, Vec::new());
    }

    /// A figure for people.
    fn figure(&mut self, what: &str, measured: impl ToString) {
        self.push(what, measured.to_string(), String::new(), Verdict::Valid, Vec::new());
    }

    fn push(&mut self, what: &str, measured: String, required: String, verdict: Verdict, evidence: Vec<String>) {
        self.verdict = self.verdict.max(verdict);
        self.rows.push(Row { what: what.to_owned(), measured, required, verdict, evidence });
    }

    /// The row of a rule.
    #[cfg(test)]
    fn row(&self, what: &str) -> &Row {
        self.rows.iter().find(|row| row.what == what).unwrap_or_else(|| panic!("no row {what:?} in {self:#?}"))
    }

    /// Names of the rows that are not fine.
    #[cfg(test)]
    fn broken(&self) -> Vec<&str> {
        self.rows.iter().filter(|row| row.verdict != Verdict::Valid).map(|row| row.what.as_str()).collect()
    }
}

/// The worst verdict; nothing checked is unknown.
pub fn worst<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Verdict {
    reports.into_iter().map(|report| report.verdict).max().unwrap_or(Verdict::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_is_no_pass_and_nothing_checked_is_unknown() {
        let mut valid = Report::new("valid");
        valid.never("broken", Vec::new());
        valid.figure("figure", 3);
        let mut unknown = Report::new("unknown");
        unknown.at_least("writes", 1, 2);
        let mut invalid = Report::new("invalid");
        invalid.never("broken", (0..100).map(|n| n.to_string()).collect());
        assert_eq!(invalid.rows[0].measured, "100");
        assert_eq!(invalid.rows[0].evidence.len(), EVIDENCE_MAX);
        assert_eq!(worst([&valid]), Verdict::Valid);
        assert_eq!(worst([&valid, &unknown]), Verdict::Unknown);
        assert_eq!(worst([&invalid, &unknown, &valid]), Verdict::Invalid);
        assert_eq!(worst([]), Verdict::Unknown);
    }
}
