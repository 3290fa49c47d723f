//! A run's folder: all that is needed to judge the run again.
//!
//! ```text
//! test.json       what was run: seed, arguments, versions, what was expected
//! history.jsonl   every operation, one a line
//! history.edn     the same in Jepsen's notation, for Knossos and Elle
//! log/n0.log …    what the nodes said
//! results.json    the verdict, rule by rule
//! cluster/        the nodes' data; only after a failure
//! ```

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::checker::harness::{Expected, Log};
use crate::checker::{Report, Verdict};
use crate::cluster::Cluster;
use crate::history::{self, Op};
use crate::nemesis::Need;

/// What was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// When it began, in UTC.
    pub began: String,
    /// Everything random follows from it.
    pub seed: u64,
    /// The command line.
    pub args: Vec<String>,
    /// What clients did.
    pub workload: String,
    /// What went wrong.
    pub nemesis: String,
    /// Versions of this program and of the binary under test, as they say themselves.
    pub versions: Versions,
    /// What it was run on.
    #[serde(default)]
    pub machine: Machine,
    /// The bug that the environment asked a binary with planted bugs for.
    #[serde(default)]
    pub planted: Option<String>,
    /// What the run must have done to prove anything.
    pub expected: Expected,
}

/// What a run was made on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel, as `uname -sr` names it.
    pub kernel: String,
    /// What the machine was seen to be able to do, of what the run's faults need.
    pub capabilities: Vec<String>,
}

impl Machine {
    /// This one.
    pub fn here(needs: &[Need]) -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        Self {
            kernel: format!("{} {}", read("ostype").trim(), read("osrelease").trim()),
            capabilities: needs.iter().map(|need| format!("{need:?}").to_lowercase()).collect(),
        }
    }
}

/// Who met whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// This program.
    pub jepsen_tests: String,
    /// The binary under test.
    pub holdfast: String,
    /// Its file.
    pub binary: PathBuf,
}

/// The verdict, rule by rule.
#[derive(Debug, Serialize)]
pub struct Results<'a> {
    /// The worst of all.
    pub verdict: Verdict,
    /// One per checker.
    pub checkers: &'a [Report],
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes a new folder, and its parents.
    ///
    /// # Errors
    /// When there is one already: two runs in one folder would be judged as one.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        std::fs::create_dir(path).with_context(|| format!("create {}", path.display()))?;
        // Nodes are started by their command lines: those must not depend on where they are started from.
        Ok(Self { path: path.canonicalize()? })
    }

    /// An earlier run.
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The nodes' directory while they run.
    pub fn cluster(&self) -> PathBuf {
        self.path.join("cluster")
    }

    /// The nodes' clocks, where a run sets them.
    pub fn clocks(&self) -> PathBuf {
        self.path.join("clocks")
    }

    /// The history.
    pub fn history(&self) -> PathBuf {
        self.path.join("history.jsonl")
    }

    /// The same in Clojure's notation.
    pub fn edn(&self) -> PathBuf {
        self.path.join("history.edn")
    }

    /// Writes down what is run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_test(&self, test: &Test) -> anyhow::Result<()> {
        self.write("test.json", test)
    }

    /// Writes the verdict down.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_results(&self, results: &Results<'_>) -> anyhow::Result<()> {
        self.write("results.json", results)
    }

    fn write(&self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let text = serde_json::to_string_pretty(value)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Copies the nodes' logs here.
    ///
    /// # Errors
    /// When one cannot be copied.
    pub fn keep_logs(&self, cluster: &Cluster) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.path.join("log"))?;
        for place in 0..cluster.nodes.len() {
            let log = cluster.log(place);
            std::fs::copy(&log, self.log(place)).with_context(|| format!("keep {}", log.display()))?;
        }
        Ok(())
    }

    /// Deletes the nodes' data, and their clocks.
    ///
    /// # Errors
    /// When something cannot be deleted.
    pub fn drop_data(&self) -> anyhow::Result<()> {
        for folder in [self.cluster(), self.clocks()].iter().filter(|folder| folder.exists()) {
            std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        Ok(())
    }

    /// Deletes what explains a violation, of a run that has none: most of its bytes. It cannot be judged again then.
    ///
    /// # Errors
    /// When something cannot be deleted.
    pub fn drop_history(&self) -> anyhow::Result<()> {
        for file in [self.history(), self.edn(), self.path.join("timeline.html")].iter().filter(|file| file.exists()) {
            std::fs::remove_file(file).with_context(|| format!("remove {}", file.display()))?;
        }
        Ok(())
    }

    /// Where a node's log is kept.
    fn log(&self, place: usize) -> PathBuf {
        self.path.join(format!("log/n{place}.log"))
    }

    /// All that the checkers need.
    ///
    /// # Errors
    /// When something of it is missing or torn.
    pub fn read(&self) -> anyhow::Result<(Test, Vec<Op>, Vec<Log>)> {
        Ok((self.test()?, history::read(&self.history())?, self.logs()))
    }

    /// What was run.
    ///
    /// # Errors
    /// When it is missing or torn.
    pub fn test(&self) -> anyhow::Result<Test> {
        let path = self.path.join("test.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    /// The nodes' logs, up to the first place that has none; one that cannot be read is empty, which the checker of the
    /// harness sees.
    pub fn logs(&self) -> Vec<Log> {
        let read = |place| {
            // A killed node leaves half a line, which need not be UTF-8.
            let bytes = std::fs::read(self.log(place)).unwrap_or_default();
            Log { name: format!("n{place}.log"), text: String::from_utf8_lossy(&bytes).into_owned() }
        };
        (0..).take_while(|place| self.log(*place).exists()).map(read).collect()
    }
}

/// Now in UTC, as it can stand in the name of a file: `20261122T034500Z`.
pub fn timestamp() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    stamp(seconds)
}

fn stamp(seconds: u64) -> String {
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = clock(seconds);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// As `Last-Modified` has it (RFC 9110, 5.6.7).
pub fn http_date(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = seconds(time);
    let (year, month, day) = date(seconds / 86_400);
    let weekday = DAYS[(seconds / 86_400 % 7) as usize];
    let month = MONTHS[(month as usize).clamp(1, 12) - 1];
    let (hour, minute, second) = clock(seconds);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// As lists of objects have it (RFC 3339).
pub fn iso_date(time: SystemTime) -> String {
    let seconds = seconds(time);
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = clock(seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

/// Since 1970; what was before that is its first second.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Hour, minute and second of the day.
fn clock(seconds: u64) -> (u64, u64, u64) {
    (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// The Gregorian date so many days after 1970-01-01 (Hinnant, *chrono-Compatible Low-Level Date Algorithms*).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_dates() {
        assert_eq!(stamp(0), "19700101T000000Z");
        assert_eq!(stamp(951_868_799), "20000229T235959Z");
        assert_eq!(stamp(951_868_800), "20000301T000000Z");
        assert_eq!(stamp(1_795_319_100), "20261122T034500Z");
        let time = UNIX_EPOCH + std::time::Duration::from_secs(1_795_319_100);
        assert_eq!(http_date(time), "Sun, 22 Nov 2026 03:45:00 GMT");
        assert_eq!(iso_date(time), "2026-11-22T03:45:00.000Z");
        assert_eq!(http_date(UNIX_EPOCH), "Thu, 01 Jan 1970 00:00:00 GMT");
    }

    #[test]
    fn a_folder_is_made_once_and_reads_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("runs/one");
        let folder = Folder::create(&path).expect("created");
        assert!(Folder::create(&path).is_err());
        let test = Test {
            began: timestamp(),
            seed: u64::MAX,
            args: vec!["test".into()],
            workload: "set".into(),
            nemesis: "kill".into(),
            versions: Versions { jepsen_tests: "1".into(), holdfast: "2".into(), binary: "holdfast".into() },
            machine: Machine::here(&[Need::Root, Need::Disk]),
            planted: None,
            expected: Expected {
                nodes: 3,
                clients: 1,
                kills: 1,
                kill_all: false,
                acknowledged_between: 1,
                faults: Vec::new(),
                takes_quorum: false,
                strikes: 0,
            },
        };
        folder.write_test(&test).expect("written");
        assert!(Folder::open(&path).read().is_err(), "no history");
        std::fs::write(folder.history(), "").expect("written");
        let (read, history, logs) = Folder::open(&path).read().expect("read");
        assert_eq!((read, history.len(), logs.len()), (test, 0, 0));
        std::fs::create_dir(path.join("log")).expect("made");
        std::fs::write(path.join("log/n0.log"), "one\n").expect("written");
        std::fs::write(path.join("log/n1.log"), b"\xff").expect("written");
        let texts: Vec<String> = folder.logs().into_iter().map(|log| log.text).collect();
        assert_eq!(texts, ["one\n", "\u{fffd}"]);
        folder.drop_history().expect("removed");
        assert!(!folder.history().exists() && folder.test().is_ok() && folder.logs().len() == 2);
    }
}
