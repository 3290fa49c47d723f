//! The result of the demo: numbers that a program checks, and the table that people read.

use std::time::SystemTime;

use serde::Serialize;

use crate::demo::check::Compared;
use crate::demo::ledger::Ack;
use crate::output::{self, Table};

/// The result. The keys are a contract.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this object.
    pub v: u32,
    /// Records asked for.
    pub records: u64,
    /// Which people.
    pub seed: u64,
    /// Records whose write was answered.
    pub acknowledged: u64,
    /// Calls that gave no answer and were repeated.
    pub errors: u64,
    /// Acknowledged before the check that followed the leader's death, and not there.
    pub lost_after_leader_kill: u64,
    /// Longest time in which none of the clients got an answer.
    pub silence_ms: u64,
    /// Last log index that was restored.
    pub restored_index: u64,
    /// Acknowledged and there again, byte for byte.
    pub restored: u64,
    /// Acknowledged after the last restored index.
    pub loss_window_records: u64,
    /// From the last restored acknowledgement to the disaster.
    pub loss_window_ms: u64,
    /// Acknowledged at or before the last restored index, and not there: must be none.
    pub lost_beyond_window: u64,
    /// From the decision to restore until the new cluster answered.
    pub restore_seconds: f64,
    /// Whole demo.
    pub total_seconds: f64,
    /// Object that --sabotage damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sabotaged_object: Option<String>,
    /// Object that the restore refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged_object: Option<String>,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            v: 1,
            records: 0,
            seed: 0,
            acknowledged: 0,
            errors: 0,
            lost_after_leader_kill: 0,
            silence_ms: 0,
            restored_index: 0,
            restored: 0,
            loss_window_records: 0,
            loss_window_ms: 0,
            lost_beyond_window: 0,
            restore_seconds: 0.0,
            total_seconds: 0.0,
            sabotaged_object: None,
            damaged_object: None,
        }
    }
}

impl Report {
    /// Sorts what is missing into what the archive could not have, and what it should have had.
    pub fn judge(&mut self, acks: &[Ack], found: &Compared, restored_index: u64, disaster_at: SystemTime) {
        let held = |ack: &&Ack| ack.commit_index <= restored_index;
        self.restored = found.equal;
        self.loss_window_records = acks.iter().filter(|ack| !held(ack)).count() as u64;
        self.lost_beyond_window =
            acks.iter().filter(held).filter(|ack| found.missing.contains(&ack.number)).count() as u64;
        // The last commit that is back, by its place in the log: its answer may have arrived before an earlier one's.
        let last = acks.iter().filter(held).max_by_key(|ack| ack.commit_index).or(acks.first());
        let window = last.and_then(|last| disaster_at.duration_since(last.at).ok());
        self.loss_window_ms = window.map_or(0, |window| window.as_millis() as u64);
    }

    /// Nothing was lost but what the loss window says.
    pub fn is_good(&self) -> bool {
        self.lost_after_leader_kill == 0
            && self.lost_beyond_window == 0
            && self.restored >= self.acknowledged - self.loss_window_records
    }

    /// Prints the JSON line, if it was asked for.
    pub fn print(&self, json: bool) -> std::io::Result<()> {
        if json { output::line(self) } else { Ok(()) }
    }

    /// What people read.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&["what", "measured", "required"]);
        let mut row = |what: &str, measured: String, required: &str| {
            table.row([what.to_owned(), measured, required.to_owned()]);
        };
        row("records acknowledged", self.acknowledged.to_string(), "");
        row("lost after the leader's death", self.lost_after_leader_kill.to_string(), "0");
        row("longest silence of all clients", format!("{} ms", self.silence_ms), "");
        row("restored, byte for byte", self.restored.to_string(), "all but the loss window");
        row("loss window", format!("{} records, {} ms", self.loss_window_records, self.loss_window_ms), "5000 ms");
        row("lost beyond the loss window", self.lost_beyond_window.to_string(), "0");
        row("from nothing to a serving cluster", format!("{:.1} s", self.restore_seconds), "");
        table
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::ledger::tests::ack;
    use super::*;

    #[test]
    fn the_loss_window_is_what_lies_above_the_restored_index() {
        let start = (SystemTime::now(), Instant::now());
        let acks = [ack(0, 10, start, 100), ack(1, 11, start, 90), ack(2, 12, start, 200), ack(3, 13, start, 210)];
        let found = Compared { equal: 2, missing: [2, 3].into() };
        let mut report = Report { acknowledged: 4, ..Report::default() };
        report.judge(&acks, &found, 11, start.0 + std::time::Duration::from_millis(1090));
        assert_eq!((report.restored, report.loss_window_records, report.lost_beyond_window), (2, 2, 0));
        assert_eq!(report.loss_window_ms, 1000);
        assert!(report.is_good());
    }

    #[test]
    fn one_record_missing_below_the_restored_index_is_a_failure() {
        let start = (SystemTime::now(), Instant::now());
        let acks = [ack(0, 10, start, 0), ack(1, 11, start, 1)];
        let mut report = Report { acknowledged: 2, ..Report::default() };
        report.judge(&acks, &Compared { equal: 1, missing: [0].into() }, 11, start.0);
        assert_eq!((report.loss_window_records, report.lost_beyond_window), (0, 1));
        assert!(!report.is_good());
        let killed = Report { lost_after_leader_kill: 1, ..Report::default() };
        assert!(!killed.is_good());
    }

    #[test]
    fn the_contract_has_its_keys() {
        let value = serde_json::to_value(Report::default()).expect("JSON");
        for key in [
            "acknowledged",
            "lost_after_leader_kill",
            "silence_ms",
            "restored",
            "loss_window_records",
            "loss_window_ms",
            "lost_beyond_window",
            "restore_seconds",
        ] {
            assert!(value.get(key).is_some(), "{key}");
        }
    }
}
