//! Runs tests in their lanes and gives a report.
//!
//! Invariants: every chosen test gets exactly one row per run; a test that panics or hangs has failed; tests of a lane
//! with faults never overlap.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::stream::{self, StreamExt};
use jepsen_tests::cluster::Cluster;

use crate::case::Case;
use crate::catalogue::{Lane, TESTS, Test};
use crate::failure::Failure;
use crate::stage::{QUOTA_BYTES, Stage, target_of};
use crate::table::{Report, Row, Verdict};
use crate::target::Target;
use crate::transfers::Transfers;

/// A test that takes longer hangs.
const TEST_WITHIN: Duration = Duration::from_secs(90);
/// Public tests beside each other.
const ABREAST: usize = 6;

/// What to test.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A running cluster, by its addresses.
    Endpoints {
        /// Client addresses.
        clients: Vec<String>,
        /// Operators' addresses, in the same order; may be empty.
        admins: Vec<String>,
    },
    /// A binary: clusters of its own.
    Binary {
        /// The binary.
        holdfast: PathBuf,
        /// Where clusters live.
        dir: PathBuf,
    },
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What to test.
    pub subject: Subject,
    /// Names as `c07`; empty = all.
    pub only: Vec<String>,
    /// Planned leader transfers go on meanwhile.
    pub transfers: bool,
    /// Everything random follows from it.
    pub seed: u64,
    /// How often.
    pub runs: u32,
}

/// The tests that `only` names.
///
/// # Errors
/// The name that no test has.
pub fn chosen(only: &[String]) -> Result<Vec<&'static Test>, String> {
    for name in only {
        if !TESTS.iter().any(|test| test.short() == name) {
            return Err(format!("--only {name}: there is no such test; --list shows them"));
        }
    }
    Ok(TESTS.iter().filter(|test| only.is_empty() || only.iter().any(|name| test.short() == name)).collect())
}

struct Bench {
    run: String,
    number: u32,
    seed: u64,
    target: Target,
    stage: Option<Arc<Stage>>,
    said: Box<dyn Fn(&Row) + Send + Sync>,
}

/// Runs everything and reports; `said` hears of each test as it ends.
///
/// # Errors
/// When the subject cannot be reached or started.
pub async fn run(options: &Options, said: impl Fn(&Row) + Send + Sync + Clone + 'static) -> anyhow::Result<Report> {
    let tests = chosen(&options.only).map_err(anyhow::Error::msg)?;
    let began = Instant::now();
    let mut report = Report { v: 1, seed: options.seed, transfers: 0, took: Duration::ZERO, tests: Vec::new() };
    let (stage, steady) = set_up(options, &tests).await?;
    let target = match (&options.subject, &steady) {
        (_, Some(cluster)) => target_of(cluster)?,
        (Subject::Endpoints { clients, admins }, None) => Target::new(clients, admins)?,
        // Only tests with clusters of their own were chosen; nobody asks this one.
        (Subject::Binary { .. }, None) => Target::new(&["127.0.0.1:1".to_owned()], &[])?,
    };
    for number in 1..=options.runs {
        let run = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let seed = options.seed.wrapping_add(u64::from(number) - 1);
        let (target, stage) = (target.clone(), stage.clone());
        let transfers = options.transfers.then(|| Transfers::start(&target.admins, seed));
        let bench = Bench { run, number, seed, target, stage, said: Box::new(said.clone()) };
        let mut rows = bench.beside(&tests).await;
        report.transfers += transfers.as_ref().map_or(0, Transfers::done);
        drop(transfers);
        rows.extend(bench.row_by_row(&tests, Lane::Last).await);
        rows.sort_by_key(|row| row.number);
        report.tests.extend(rows);
    }
    report.took = began.elapsed();
    if let Some(stage) = &stage {
        stage.end().await;
    }
    Ok(report)
}

/// The stage, and the cluster for public tests if one is started here.
async fn set_up(options: &Options, tests: &[&Test]) -> anyhow::Result<(Option<Arc<Stage>>, Option<Cluster>)> {
    let Subject::Binary { holdfast, dir } = &options.subject else { return Ok((None, None)) };
    let stage = Arc::new(Stage::new(holdfast, dir, options.seed, options.transfers)?);
    if tests.iter().all(|test| !matches!(test.lane, Lane::Public | Lane::Both | Lane::Last)) {
        return Ok((Some(stage), None));
    }
    let set = [
        format!("quota.user_bytes={QUOTA_BYTES}"),
        "sync.watch_heartbeat_ms=500".to_owned(),
        "raft.snapshot_entries=400".to_owned(),
        "raft.keep_entries=200".to_owned(),
        "ship.interval_ms=200".to_owned(),
    ];
    let offsite = stage.dir.join("steady-offsite");
    let cluster = stage.start("steady", &set, Some(&offsite)).await?;
    Ok((Some(stage), Some(cluster)))
}

impl Bench {
    /// All lanes but the last, beside each other.
    async fn beside(&self, tests: &[&'static Test]) -> Vec<Row> {
        let public = tests.iter().filter(|test| matches!(test.lane, Lane::Public | Lane::Brisk));
        let public = stream::iter(public).map(|test| self.one(test)).buffer_unordered(ABREAST).collect::<Vec<_>>();
        let faults = self.row_by_row(tests, Lane::Faults);
        let disaster = async {
            let mut rows = self.row_by_row(tests, Lane::Disaster).await;
            rows.extend(self.row_by_row(tests, Lane::Both).await);
            rows
        };
        // Two cores carry the public tests and one cluster more.
        let (public, disaster) = tokio::join!(public, disaster);
        let faults = faults.await;
        public.into_iter().chain(faults).chain(disaster).collect()
    }

    async fn row_by_row(&self, tests: &[&'static Test], lane: Lane) -> Vec<Row> {
        let mut rows = Vec::new();
        for test in tests.iter().filter(|test| test.lane == lane) {
            rows.push(self.one(test).await);
        }
        rows
    }

    async fn one(&self, test: &'static Test) -> Row {
        let began = Instant::now();
        let case = Case::new(test.number, &self.run, self.seed, self.target.clone(), self.stage.clone());
        // Unwind safe: what a panicking test leaves is healed before the next one, and nothing else is shared.
        let running = AssertUnwindSafe((test.run)(&case)).catch_unwind();
        let outcome = match tokio::time::timeout(TEST_WITHIN, running).await {
            Ok(Ok(outcome)) => outcome,
            // The harness panics when the machine fails it; nothing was proved then.
            Ok(Err(panic)) => Err(Failure::broken(format!("the test panicked: {}", said_in(&panic)))),
            Err(_) => Err(Failure::broken(format!("expected an end within {} s, saw none", TEST_WITHIN.as_secs()))),
        };
        let (verdict, note) = match outcome {
            Ok(()) => (Verdict::Pass, case.notes()),
            Err(Failure::Broken(what)) => (Verdict::Fail, what),
            Err(Failure::Skipped(why)) => (Verdict::Skipped, why),
        };
        let (number, name, took) = (test.number, test.name, began.elapsed());
        let row = Row { number, name, run: self.number, verdict, note, took };
        (self.said)(&row);
        row
    }
}

fn said_in(panic: &Box<dyn Any + Send>) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_chosen_by_name() {
        assert_eq!(chosen(&[]).expect("all").len(), TESTS.len());
        let two = chosen(&["c12".into(), "c03".into()]).expect("two");
        assert_eq!(two.iter().map(|test| test.number).collect::<Vec<_>>(), [3, 12]);
        assert!(chosen(&["c99".into()]).expect_err("none").contains("c99"));
    }
}
