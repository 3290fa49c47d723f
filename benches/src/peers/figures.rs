//! What a cell measured, and how peers compare in it.
//!
//! Invariant: figures of two peers are compared within a round, and only then over rounds: whatever else happens on a
//! machine meets both.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context;
use holdfast_benches::measure::median;
use serde::{Deserialize, Serialize};

use crate::peer::Who;

/// Values by name, of one peer in one round.
pub type Figures = BTreeMap<String, f64>;

/// A cell that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Name of the cell.
    pub cell: String,
    /// Hash of the binary that was measured.
    pub binary: String,
    /// One for each round; where a peer failed in one, the later ones are missing.
    pub rounds: BTreeMap<Who, Vec<Figures>>,
    /// What a reader has to know.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Outcome {
    /// Nothing was measured yet.
    pub fn new(cell: &str, binary: &str) -> Self {
        Self { cell: cell.to_owned(), binary: binary.to_owned(), rounds: BTreeMap::new(), notes: Vec::new() }
    }

    fn each<'a>(&'a self, who: Who, figure: &'a str) -> impl Iterator<Item = f64> + 'a {
        self.rounds.get(&who).into_iter().flatten().filter_map(move |figures| figures.get(figure).copied())
    }

    /// Over all rounds; `None` = it was not measured.
    pub fn median(&self, who: Who, figure: &str) -> Option<f64> {
        let values: Vec<f64> = self.each(who, figure).collect();
        (!values.is_empty()).then(|| median(&values))
    }

    /// The largest of all rounds.
    pub fn most(&self, who: Who, figure: &str) -> Option<f64> {
        self.each(who, figure).reduce(f64::max)
    }

    /// All rounds together.
    pub fn sum(&self, who: Who, figure: &str) -> Option<f64> {
        self.each(who, figure).reduce(|sum, value| sum + value)
    }

    /// Median of the ratios of two figures within a round.
    pub fn ratio(&self, (of, figure): (Who, &str), (to, base): (Who, &str)) -> Option<f64> {
        let (of, to) = (self.rounds.get(&of)?, self.rounds.get(&to)?);
        let pairs = of.iter().zip(to).filter_map(|(of, to)| Some((*of.get(figure)?, *to.get(base)?)));
        let ratios: Vec<f64> = pairs.filter(|(_, base)| *base > 0.0).map(|(value, base)| value / base).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }
}

/// Outcomes that are kept in a file, a line each; later lines replace earlier ones.
pub struct Kept<'a> {
    path: &'a Path,
}

impl<'a> Kept<'a> {
    /// In this file, which need not be there.
    pub fn new(path: &'a Path) -> Self {
        Self { path }
    }

    /// Those of one binary, by cell. A line that was cut off by a crash is none.
    pub fn of(&self, binary: &str) -> anyhow::Result<BTreeMap<String, Outcome>> {
        let text = match std::fs::read_to_string(self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.path.display())),
        };
        let outcomes = text.lines().filter_map(|line| serde_json::from_str::<Outcome>(line).ok());
        let outcomes = outcomes.filter(|outcome| outcome.binary == binary);
        Ok(outcomes.map(|outcome| (outcome.cell.clone(), outcome)).collect())
    }

    /// Adds one.
    pub fn add(&self, outcome: &Outcome) -> anyhow::Result<()> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(self.path);
        let mut file = file.with_context(|| format!("write {}", self.path.display()))?;
        // A line that was cut off is ended.
        let line = format!("\n{}\n", serde_json::to_string(outcome)?);
        Ok(file.write_all(line.as_bytes())?)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of these rounds, one figure.
    pub fn outcome(cell: &str, figure: &str, holdfast: &[f64], etcd: &[f64]) -> Outcome {
        let rounds = |values: &[f64]| values.iter().map(|value| Figures::from([(figure.to_owned(), *value)])).collect();
        Outcome {
            cell: cell.to_owned(),
            binary: "b".to_owned(),
            rounds: BTreeMap::from([(Who::Holdfast, rounds(holdfast)), (Who::Etcd, rounds(etcd))]),
            notes: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_paired_before_their_median_is_taken() {
        // The machine is three times as fast in the last round: the ratio of medians would be 20 / 10.
        let outcome = outcome("c", "ops", &[10.0, 20.0, 90.0], &[10.0, 5.0, 30.0]);
        assert_eq!(outcome.ratio((Who::Holdfast, "ops"), (Who::Etcd, "ops")), Some(3.0));
        assert_eq!(outcome.median(Who::Holdfast, "ops"), Some(20.0));
        assert_eq!(outcome.most(Who::Holdfast, "ops"), Some(90.0));
        assert_eq!(outcome.sum(Who::Etcd, "ops"), Some(45.0));
        assert_eq!(outcome.ratio((Who::Holdfast, "ops"), (Who::Postgres, "ops")), None);
        assert_eq!(outcome.median(Who::Holdfast, "p99"), None);
    }

    #[test]
    fn a_round_without_its_pair_or_with_nothing_to_compare_to_does_not_count() {
        let outcome = outcome("c", "ops", &[10.0, 20.0, 90.0], &[10.0, 0.0]);
        assert_eq!(outcome.ratio((Who::Holdfast, "ops"), (Who::Etcd, "ops")), Some(1.0));
    }

    #[test]
    fn what_was_measured_is_found_again_for_the_same_binary() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("cells.jsonl");
        let kept = Kept::new(&path);
        assert!(kept.of("b").expect("read").is_empty());
        kept.add(&outcome("one", "ops", &[1.0], &[2.0])).expect("added");
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"{\"cell\":"))
            .expect("cut");
        kept.add(&outcome("two", "ops", &[1.0], &[2.0])).expect("added");
        kept.add(&outcome("one", "ops", &[3.0], &[2.0])).expect("added");
        let found = kept.of("b").expect("read");
        assert_eq!(found.len(), 2);
        assert_eq!(found["one"].median(Who::Holdfast, "ops"), Some(3.0), "the later one");
        assert!(kept.of("other").expect("read").is_empty());
    }
}
