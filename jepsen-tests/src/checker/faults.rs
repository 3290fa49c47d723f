//! Faults of a storm: each was really there, each is really gone, and the cluster came back after each.

use std::collections::BTreeMap;

use crate::checker::Report;
use crate::history::{Action, FaultNote, Op, Stage};

/// What became of one fault.
#[derive(Default)]
struct Life<'a> {
    struck: Option<&'a FaultNote>,
    healed: Option<&'a FaultNote>,
}

/// Further errors that clients may see under a fault.
pub(super) fn reasons(fault: &str) -> &'static [&'static str] {
    match fault {
        // Who was taken out, or did not join yet, serves nobody, and says so.
        "membership" => &["DRAINING", "NOT_FOUNDED"],
        "disk-full" => &["DISK_FULL"],
        // What meets damage is refused, and so is who asks a node that differs from the others.
        "bit-flip" | "array-scramble" | "array-rollback" | "rollback-alone" => &["CHECKSUM", "REPLICA_DIVERGED"],
        // Guards that held fail where what they were read from is lost. Whether they did so rightly is for others to judge.
        "rollback-blind" => &["CHECKSUM", "REPLICA_DIVERGED", "VERSION_MISMATCH"],
        // An empty node at a known address says so, until it has heard from the others.
        "array-wipe" => &["NOT_FOUNDED"],
        _ => &[],
    }
}

/// Whether this fault leaves every node the log that it fsynced.
pub(super) fn spares_logs(fault: &str) -> bool {
    let damages = fault == "bit-flip" || fault.starts_with("rollback-");
    !damages && !matches!(fault, "array-wipe" | "array-scramble" | "array-rollback")
}

/// Judges the faults of a run; `expected` are those that must each have been there.
pub(super) fn check(history: &[Op], expected: &[String], report: &mut Report) {
    let mut lives: BTreeMap<u32, Life<'_>> = BTreeMap::new();
    for op in history {
        match (&op.action, op.stage) {
            (Action::Fault(note), Stage::Invoke) => drop(lives.entry(note.round).or_default()),
            (Action::Fault(note), _) => lives.entry(note.round).or_default().struck = Some(note),
            (Action::Heal(note), Stage::Info) => lives.entry(note.round).or_default().healed = Some(note),
            _ => {}
        }
    }
    if lives.is_empty() && expected.is_empty() {
        return;
    }
    let (mut absent, mut left, mut missed) = (Vec::new(), Vec::new(), Vec::new());
    let mut installed: BTreeMap<&str, usize> = expected.iter().map(|fault| (fault.as_str(), 0)).collect();
    for (round, life) in &lives {
        for note in life.struck.iter().chain(&life.healed) {
            missed.extend(note.missed.iter().map(|missed| format!("round {round}, {}: {missed}", note.fault)));
        }
        match life.struck {
            Some(note) if note.installed => *installed.entry(&note.fault).or_default() += 1,
            Some(note) => absent.push(format!("{note:?}")),
            None => absent.push(format!("round {round}: begun, and no end of it")),
        }
        match life.healed {
            Some(note) if !note.installed => {}
            Some(note) => left.push(format!("{note:?}")),
            None => left.push(format!("round {round}: never healed")),
        }
    }
    for (fault, count) in installed {
        report.at_least(&format!("faults really there: {fault}"), count, 1);
    }
    report.doubtful("faults that were not really there", absent);
    report.doubtful("faults that were not really gone", left);
    report.never("faults that had to have an effect, and had none", missed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Verdict;
    use crate::checker::harness::{self, Expected};
    use crate::history::calls::{Level, Read};
    use crate::history::{Failure, Named, Process};

    fn op(stage: Stage, action: Action) -> Op {
        Op { process: Process::Named(Named::Nemesis), stage, time_ns: 0, action, reply: None, error: None }
    }

    fn note(installed: bool) -> FaultNote {
        FaultNote { round: 1, fault: "pause".into(), nodes: vec![2], installed, detail: "seen".into(), missed: None }
    }

    fn life() -> Vec<Op> {
        vec![
            op(Stage::Invoke, Action::Fault(note(false))),
            op(Stage::Info, Action::Fault(note(true))),
            op(Stage::Invoke, Action::Heal(note(true))),
            op(Stage::Info, Action::Heal(note(false))),
        ]
    }

    fn judged(history: &[Op], expected: &[&str]) -> (Verdict, Vec<String>) {
        let mut report = Report::new("harness");
        let expected: Vec<String> = expected.iter().map(|fault| (*fault).to_owned()).collect();
        check(history, &expected, &mut report);
        (report.verdict, report.broken().into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn a_fault_that_came_and_went_is_valid_and_a_run_without_faults_has_no_rows() {
        assert_eq!(judged(&life(), &["pause"]), (Verdict::Valid, Vec::new()));
        let mut report = Report::new("harness");
        check(&[], &[], &mut report);
        assert!(report.rows.is_empty());
    }

    #[test]
    fn what_damage_makes_a_node_refuse_is_explained_by_faults_that_damage_disks_alone() {
        let explained = |fault: &str, reason: &str| {
            let error = Failure { reason: reason.into(), message: String::new() };
            let read = Read { user: "u".into(), keys: Vec::new(), level: Level::Linearizable, got: None };
            let refused = Op { error: Some(error), ..op(Stage::Fail, Action::Read(read)) };
            let expected = Expected {
                nodes: 3,
                clients: 0,
                kills: 0,
                kill_all: false,
                acknowledged_between: 0,
                faults: vec![fault.into()],
            };
            let report = harness::check(&[refused], &[], &expected);
            report.row("errors that this fault does not explain").verdict == Verdict::Valid
        };
        for reason in ["CHECKSUM", "REPLICA_DIVERGED"] {
            for fault in ["bit-flip", "array-scramble", "array-rollback", "rollback-alone", "rollback-blind"] {
                assert!(explained(fault, reason), "{fault} {reason}");
            }
            for fault in ["pause", "power", "disk-full", "eio", "array-hang"] {
                assert!(!explained(fault, reason), "{fault} {reason}");
            }
        }
    }

    #[test]
    fn a_fault_that_nobody_heeds_is_a_broken_promise() {
        for place in [1, 3] {
            let mut history = life();
            if let Action::Fault(note) | Action::Heal(note) = &mut history[place].action {
                note.missed = Some("node 2 goes on".into());
            }
            let (verdict, rows) = judged(&history, &["pause"]);
            assert_eq!((verdict, rows.len()), (Verdict::Invalid, 1));
            assert_eq!(rows[0], "faults that had to have an effect, and had none");
        }
    }

    #[test]
    fn a_fault_that_never_was_or_never_went_proves_nothing() {
        let unknown = |history: &[Op], row: &str| {
            let (verdict, rows) = judged(history, &["pause"]);
            assert_eq!(verdict, Verdict::Unknown);
            assert!(rows.iter().any(|broken| broken == row), "{row}: {rows:?}");
        };
        unknown(&[], "faults really there: pause");
        let mut history = life();
        history[1] = op(Stage::Info, Action::Fault(note(false)));
        unknown(&history, "faults that were not really there");
        history = life();
        history.remove(1);
        unknown(&history, "faults that were not really there");
        history = life();
        history[3] = op(Stage::Info, Action::Heal(note(true)));
        unknown(&history, "faults that were not really gone");
        history = life();
        history.truncate(2);
        unknown(&history, "faults that were not really gone");
        let (verdict, rows) = judged(&life(), &["pause", "clock"]);
        assert_eq!((verdict, rows), (Verdict::Unknown, vec!["faults really there: clock".to_owned()]));
    }
}
