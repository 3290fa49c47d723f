//! The table at the end, for people and for programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The promise held.
    Pass,
    /// It was broken.
    Fail,
    /// It could not be tried.
    Skipped,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Skipped => "skipped",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Number of the promise.
    pub number: u8,
    /// Name of the test.
    pub name: &'static str,
    /// Which run of several, from 1.
    pub run: u32,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it failed or was skipped; what was special where it passed.
    pub note: String,
    /// How long it took.
    #[serde(rename = "ms", serialize_with = "millis")]
    pub took: Duration,
}

fn millis<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(took.as_millis() as u64)
}

/// Everything a caller of this program learns.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this layout.
    pub v: u32,
    /// What made the random choices.
    pub seed: u64,
    /// Planned leader transfers that happened meanwhile.
    pub transfers: u64,
    /// How long the whole took.
    #[serde(rename = "ms", serialize_with = "millis")]
    pub took: Duration,
    /// All tests, in order of run and number.
    pub tests: Vec<Row>,
}

impl Report {
    /// Tests that ended so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.tests.iter().filter(|row| row.verdict == verdict).count()
    }

    /// The table.
    pub fn in_words(&self) -> String {
        let runs = self.tests.iter().map(|row| row.run).max().unwrap_or(1);
        let name = self.tests.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
        let mut text = String::new();
        let run_head = if runs > 1 { "run  " } else { "" };
        let _ = writeln!(text, "{run_head} no  {:name$}  {:7}  {:>8}", "name", "verdict", "time");
        for row in &self.tests {
            if runs > 1 {
                let _ = write!(text, "{:>3}  ", row.run);
            }
            let (verdict, seconds) = (row.verdict.word(), row.took.as_secs_f64());
            let line = format!("{:>3}  {:name$}  {verdict:7}  {seconds:>6.1} s  {}", row.number, row.name, row.note);
            let _ = writeln!(text, "{}", line.trim_end());
        }
        let _ = writeln!(
            text,
            "\n{} passed, {} FAILED, {} skipped, in {:.1} s with {} leader transfers; seed {}",
            self.count(Verdict::Pass),
            self.count(Verdict::Fail),
            self.count(Verdict::Skipped),
            self.took.as_secs_f64(),
            self.transfers,
            self.seed
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u8, name: &'static str, verdict: Verdict, note: &str) -> Row {
        Row { number, name, run: 1, verdict, note: note.to_owned(), took: Duration::from_millis(1234) }
    }

    #[test]
    fn the_table_is_aligned_and_counts() {
        let tests = vec![
            row(3, "c03_short", Verdict::Pass, ""),
            row(12, "c12_a_longer_name", Verdict::Fail, "expected 1, saw 2"),
            row(31, "c31_x", Verdict::Skipped, "needs --holdfast"),
        ];
        let report = Report { v: 1, seed: 7, transfers: 4, took: Duration::from_secs(5), tests };
        let expected = " no  name               verdict      time\n\
                        \x20 3  c03_short          pass        1.2 s\n\
                        \x2012  c12_a_longer_name  FAIL        1.2 s  expected 1, saw 2\n\
                        \x2031  c31_x              skipped     1.2 s  needs --holdfast\n\
                        \n1 passed, 1 FAILED, 1 skipped, in 5.0 s with 4 leader transfers; seed 7\n";
        assert_eq!(report.in_words(), expected);
        let json = serde_json::to_value(&report).expect("json");
        assert_eq!(json["tests"][1]["verdict"], "fail");
        assert_eq!(json["tests"][2]["ms"], 1234);
    }

    #[test]
    fn several_runs_are_told_apart() {
        let second = Row { run: 2, ..row(3, "c03_short", Verdict::Pass, "") };
        let tests = vec![row(3, "c03_short", Verdict::Pass, ""), second];
        let text = Report { v: 1, seed: 7, transfers: 0, took: Duration::ZERO, tests }.in_words();
        assert!(text.starts_with("run   no  name") && text.contains("\n  2    3  c03_short"), "{text}");
    }
}
