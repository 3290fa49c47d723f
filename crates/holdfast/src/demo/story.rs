//! What the demo tells people: each step, and what it proves.

use std::path::Path;
use std::time::Duration;

use holdfast_archive::RestoreReport;
use indicatif::ProgressBar;

use crate::commands::restore_plan::PlanAnswer;
use crate::demo::check::Compared;
use crate::demo::report::Report;
use crate::demo::{Args, Sabotage};
use crate::launch::Cluster;
use crate::progress;

/// The teller: on stdout, or on stderr when stdout is for a program.
pub struct Story {
    quiet_stdout: bool,
}

impl Story {
    /// With JSON on stdout, the story goes to stderr.
    pub fn new(json: bool) -> Self {
        Self { quiet_stdout: json }
    }

    fn tell(&self, text: impl AsRef<str>) {
        if self.quiet_stdout {
            eprintln!("{}", text.as_ref());
        } else {
            // A reader that went away does not end the demo: its exit code still counts.
            let _ = crate::output::text(text);
        }
    }

    fn step(&self, number: u32, title: &str) {
        self.tell(format!("\n[{number}/6] {title}"));
    }

    fn line(&self, text: impl AsRef<str>) {
        self.tell(format!("      {}", text.as_ref()));
    }

    /// A bar under the story.
    pub fn bar(&self, total: u64, what: &str) -> ProgressBar {
        progress::bar(total, what)
    }

    pub fn begin(&self, records: u64) {
        self.tell("Holdfast: three nodes keep people's records. First the leader dies, then every disk is lost.");
        self.tell(format!("{records} records of made-up people; each counts once a client holds its acknowledgement."));
    }

    pub fn started(&self, cluster: &mut Cluster, offsite: &Path) {
        self.step(1, "three nodes, one array");
        for node in cluster.nodes() {
            let spec = node.spec();
            let labels = spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
            self.line(format!("node {} pid {:<8} {}  {labels}", spec.id, node.pid(), spec.client));
        }
        self.line(format!("offsite folder: {}", offsite.display()));
        self.line("the racks differ, the array does not: its loss takes all three copies, as in 2009");
    }

    pub fn load(&self, args: &Args) {
        self.step(2, "64 clients write, and the leader is killed");
        self.line(format!("{} records over about {} s, one request id each", args.records, args.seconds));
    }

    pub fn leader_killed(&self, index: usize, acknowledged: u64) {
        self.line(format!("{acknowledged} acknowledged; kill -9 of node {}, the leader", index + 1));
    }

    pub fn leader_checked(&self, found: &Compared, silence_ms: u64) {
        let lost = found.missing.len();
        self.line(format!("a new leader: the longest silence of all clients was {silence_ms} ms"));
        self.line(format!("{} records read back and equal, {lost} lost", found.equal));
        self.line("proves: an acknowledged write is on a quorum's disks, not in one leader's memory");
    }

    pub fn backup_taken(&self, took: Duration) {
        self.step(3, "a snapshot goes offsite while clients write");
        self.line(format!(
            "shipped and read back in {:.1} s; the log follows it, a segment a second",
            took.as_secs_f64()
        ));
    }

    pub fn array_lost(&self, acknowledged: u64) {
        self.step(4, "the array is lost");
        self.line(format!("{acknowledged} acknowledged; kill -9 of all three nodes at full load, all data deleted"));
        self.line("what is left: the offsite folder");
    }

    pub fn sabotaged(&self, how: Sabotage, object: &str) {
        let what = match how {
            Sabotage::Flip => "one bit flipped in",
            Sabotage::Drop => "deleted:",
        };
        self.line(format!("sabotage: {what} {object}"));
    }

    pub fn plan(&self, plan: &PlanAnswer) {
        self.step(5, "a new cluster from the offsite folder alone");
        self.line(plan.in_words().replace('\n', "\n      "));
    }

    pub fn filled(&self, report: &RestoreReport, took: Duration) {
        self.line(format!(
            "{} records up to index {} in three fresh directories after {:.1} s, every hash and chain checked",
            report.records,
            report.last.index,
            took.as_secs_f64()
        ));
    }

    pub fn restored(&self, took: Duration) {
        self.line(format!("the new cluster, a history of its own, answers after {:.1} s", took.as_secs_f64()));
        self.step(6, "every acknowledged record is compared, byte for byte");
    }

    pub fn refused(&self, expected: bool, object: &str, error: &anyhow::Error) {
        self.line(format!("the restore refused: {error}"));
        if expected {
            self.line(format!("proves: a damaged copy is found before it is used. Damaged object: {object}"));
        }
    }

    pub fn end(&self, report: &Report, keep: Option<&Path>) {
        for line in report.table().lines() {
            self.line(line);
        }
        let verdict = if report.is_good() {
            "nothing that was acknowledged is gone but the announced loss window"
        } else {
            "FAILED: acknowledged records are gone"
        };
        self.tell(format!("\n{verdict} ({:.0} s in all)", report.total_seconds));
        if let Some(keep) = keep {
            let keep = keep.display();
            self.tell(format!("kept: {keep}/acknowledged.jsonl (what was promised), {keep}/offsite (the archive),"));
            self.tell(format!("      {keep}/restored: start it with: holdfast dev --data {keep}/restored"));
        }
    }
}
