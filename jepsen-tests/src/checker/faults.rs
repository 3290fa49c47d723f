//! Faults of a storm: each was really there, each is really gone, and the cluster came back after each.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::Report;
use crate::checker::harness::Expected;
use crate::history::{Action, FaultNote, Op, Process, Stage};

/// What became of one fault.
#[derive(Default)]
struct Life<'a> {
    struck: Option<&'a FaultNote>,
    healed: Option<&'a FaultNote>,
}

/// Further errors that clients may see in a run with these faults.
pub(super) fn reasons(faults: &[String]) -> Vec<&'static str> {
    let mut reasons: Vec<&str> = faults.iter().flat_map(|fault| reasons_of(fault)).copied().collect();
    // A node whose disk fails says so to whoever reads from it, and then another one is asked, which answers unless
    // something else keeps it from that.
    let others_answer = |fault: &String| {
        matches!(fault.as_str(), "eio" | "slow-fsync" | "transfer" | "clock" | "archive-flip" | "object-store")
    };
    if faults.iter().any(|fault| fault == "eio") && !faults.iter().all(others_answer) {
        reasons.push("INTERNAL");
    }
    reasons
}

fn reasons_of(fault: &str) -> &'static [&'static str] {
    match fault {
        // Who was taken out, or did not join yet, serves nobody, and says so.
        "membership" => &["DRAINING", "NOT_FOUNDED"],
        "disk-full" => &["DISK_FULL"],
        // What meets damage is refused, and so is who asks a node that differs from the others.
        "bit-flip" | "truncate" | "swap" | "array-scramble" | "array-rollback" | "rollback-alone" => {
            &["CHECKSUM", "REPLICA_DIVERGED"]
        }
        // Guards that held fail where what they were read from is lost. Whether they did so rightly is for others to judge. An
        // archive that holds what is lost ends all writes.
        "rollback-blind" => &["CHECKSUM", "REPLICA_DIVERGED", "VERSION_MISMATCH", "LINEAGE_FORK"],
        // The array may be that of most nodes: there is no other to ask.
        "array-eio" => &["INTERNAL"],
        // An empty node at a known address says so, until it has heard from the others.
        "array-wipe" => &["NOT_FOUNDED"],
        _ => &[],
    }
}

/// When a fault stood, by the history's clock: from before it was made until after it was taken away, or for good.
pub fn stood(history: &[Op], fault: &str) -> Vec<(u64, u64)> {
    let mut began = BTreeMap::new();
    let mut times = Vec::new();
    for op in history {
        match (&op.action, op.stage) {
            (Action::Fault(note), Stage::Invoke) if note.fault == fault => {
                began.insert(note.round, op.time_ns);
            }
            (Action::Heal(note), Stage::Info) if note.fault == fault => {
                times.extend(began.remove(&note.round).map(|began| (began, op.time_ns)));
            }
            _ => {}
        }
    }
    times.extend(began.into_values().map(|began| (began, u64::MAX)));
    times
}

/// Whether this fault leaves every node what it fsynced.
pub(super) fn spares_disks(fault: &str) -> bool {
    let damages = matches!(fault, "bit-flip" | "truncate" | "swap") || fault.starts_with("rollback-");
    !damages && !matches!(fault, "array-wipe" | "array-scramble" | "array-rollback")
}

/// Whether nothing can be acknowledged through nodes that this fault stands on: they are dead, stopped, without a disk, or
/// must refuse to start on what is left of it.
fn silences(fault: &str) -> bool {
    matches!(fault, "kill" | "pause" | "power" | "power-all")
        || matches!(fault, "array-hang" | "array-eio" | "array-wipe" | "array-scramble")
}

/// What stood together, and what was acknowledged where no quorum was left.
#[derive(Default)]
struct Together<'a> {
    standing: BTreeMap<u32, &'a FaultNote>,
    /// Rounds that began while another fault stood, by both names.
    pairs: BTreeMap<String, usize>,
    /// No quorum is left.
    silent: bool,
    /// Rounds that left no quorum.
    silences: usize,
    /// Writes that began while none was left, and did not end yet.
    open: BTreeSet<Process>,
    acknowledged: Vec<String>,
}

impl<'a> Together<'a> {
    fn of(history: &'a [Op], nodes: usize) -> Self {
        let mut all = Self::default();
        for op in history {
            match (&op.action, op.stage) {
                // From the moment that it was seen to be there until it begins to be taken away.
                (Action::Fault(note), Stage::Info) if note.installed => all.begin(note, nodes),
                (Action::Heal(note), Stage::Invoke) => {
                    all.standing.remove(&note.round);
                    all.silent &= all.is_silenced(nodes);
                }
                (action, Stage::Invoke) if all.silent && action.request_id().is_some() => {
                    all.open.insert(op.process);
                }
                (action, Stage::Ok) if all.silent && all.open.contains(&op.process) => {
                    let at = op.time_ns / 1_000_000;
                    all.acknowledged.extend(action.request_id().map(|id| format!("{id} at {at} ms")));
                }
                _ => {}
            }
            if !all.silent {
                all.open.clear();
            }
        }
        all
    }

    fn begin(&mut self, note: &'a FaultNote, nodes: usize) {
        for other in self.standing.values() {
            *self.pairs.entry(format!("{}+{}", other.fault, note.fault)).or_default() += 1;
        }
        self.standing.insert(note.round, note);
        if !self.silent && self.is_silenced(nodes) {
            (self.silent, self.silences) = (true, self.silences + 1);
        }
    }

    fn is_silenced(&self, nodes: usize) -> bool {
        let silenced = self.standing.values().filter(|note| silences(&note.fault));
        let silenced: BTreeSet<u64> = silenced.flat_map(|note| note.nodes.iter().copied()).collect();
        nodes - silenced.len().min(nodes) <= nodes / 2
    }

    fn check(self, expected: &Expected, report: &mut Report) {
        let pairs: Vec<String> = self.pairs.iter().map(|(pair, count)| format!("{pair} {count}")).collect();
        let shown = if pairs.is_empty() { "-".to_owned() } else { pairs.join(", ") };
        report.figure("faults that stood together", shown);
        // Where members change, nobody can tell from here what a quorum is.
        if expected.faults.iter().any(|fault| fault == "membership") {
            return;
        }
        if expected.takes_quorum {
            report.at_least("rounds that left no quorum", self.silences, 1);
        } else {
            report.figure("rounds that left no quorum", self.silences);
        }
        report.never("writes acknowledged though no quorum was left", self.acknowledged);
    }
}

/// Judges the faults of a run.
pub(super) fn check(history: &[Op], run: &Expected, report: &mut Report) {
    let expected = &run.faults;
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
        report.at_least(&format!("faults really there: {fault}"), count, run.strikes.max(1) as usize);
    }
    report.doubtful("faults that were not really there", absent);
    report.doubtful("faults that were not really gone", left);
    report.never("faults that had to have an effect, and had none", missed);
    Together::of(history, run.nodes).check(run, report);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Verdict;
    use crate::checker::harness::{self, Expected};
    use crate::history::calls::{Level, Read};
    use crate::history::{Failure, Named, Process, Reply, Write};

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

    fn run(faults: &[&str]) -> Expected {
        let faults = faults.iter().map(|fault| (*fault).to_owned()).collect();
        let (nodes, clients, kills, kill_all, acknowledged_between) = (3, 1, 0, false, 1);
        Expected { nodes, clients, kills, kill_all, acknowledged_between, faults, takes_quorum: false, strikes: 0 }
    }

    fn judged(history: &[Op], expected: &[&str]) -> (Verdict, Vec<String>) {
        let mut report = Report::new("harness");
        check(history, &run(expected), &mut report);
        (report.verdict, report.broken().into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn a_fault_that_came_and_went_is_valid_and_a_run_without_faults_has_no_rows() {
        assert_eq!(judged(&life(), &["pause"]), (Verdict::Valid, Vec::new()));
        let mut report = Report::new("harness");
        check(&[], &run(&[]), &mut report);
        assert!(report.rows.is_empty());
    }

    #[test]
    fn what_damage_makes_a_node_refuse_is_explained_by_faults_that_damage_disks_alone() {
        let explained_by = |faults: &[&str], reason: &str| {
            let error = Failure { reason: reason.into(), message: String::new() };
            let read = Read { user: "u".into(), keys: Vec::new(), level: Level::Linearizable, got: None };
            let refused = Op { error: Some(error), ..op(Stage::Fail, Action::Read(read)) };
            let report = harness::check(&[refused], &[], &run(faults));
            report.row("errors that this fault does not explain").verdict == Verdict::Valid
        };
        let explained = |fault: &str, reason: &str| explained_by(&[fault], reason);
        assert!(explained("array-eio", "INTERNAL") && explained_by(&["eio", "kill"], "INTERNAL"));
        assert!(!explained("eio", "INTERNAL") && !explained_by(&["eio", "slow-fsync"], "INTERNAL"));
        assert!(!explained("array-hang", "INTERNAL") && !explained("bit-flip", "INTERNAL"));
        for reason in ["CHECKSUM", "REPLICA_DIVERGED"] {
            for fault in
                ["bit-flip", "truncate", "swap", "array-scramble", "array-rollback", "rollback-alone", "rollback-blind"]
            {
                assert!(explained(fault, reason), "{fault} {reason}");
            }
            for fault in ["pause", "power", "disk-full", "eio", "array-hang"] {
                assert!(!explained(fault, reason), "{fault} {reason}");
            }
        }
    }

    #[test]
    fn what_was_to_strike_often_and_struck_once_proves_nothing() {
        for (strikes, verdict) in [(1, Verdict::Valid), (2, Verdict::Unknown)] {
            let mut report = Report::new("harness");
            check(&life(), &Expected { strikes, ..run(&["pause"]) }, &mut report);
            assert_eq!(report.verdict, verdict, "{strikes}");
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

    fn stage(stage: Stage, is_heal: bool, round: u32, fault: &str, nodes: &[u64]) -> Op {
        let (fault, nodes) = (fault.to_owned(), nodes.to_vec());
        let note = FaultNote { round, fault, nodes, installed: true, detail: String::new(), missed: None };
        op(stage, if is_heal { Action::Heal(note) } else { Action::Fault(note) })
    }

    fn stands(round: u32, fault: &str, nodes: &[u64]) -> Op {
        stage(Stage::Info, false, round, fault, nodes)
    }

    fn goes(round: u32, fault: &str, nodes: &[u64]) -> Op {
        stage(Stage::Invoke, true, round, fault, nodes)
    }

    fn add(stage: Stage) -> Op {
        let text = "x".to_owned();
        let write =
            Write { user: text.clone(), key: text.clone(), payload: text.clone(), request_id: text, guard: None };
        let reply =
            (stage == Stage::Ok).then_some(Reply { commit_index: 1, version: 1, replayed: false, changed: true });
        Op { process: Process::Client(1), stage, time_ns: 5_000_000, action: Action::Add(write), reply, error: None }
    }

    /// The rows of what stood together.
    fn together(history: &[Op], expected: &Expected) -> Report {
        let mut report = Report::new("harness");
        Together::of(history, expected.nodes).check(expected, &mut report);
        report
    }

    #[test]
    fn nothing_is_acknowledged_without_a_quorum() {
        let row = "writes acknowledged though no quorum was left";
        let (hang, eio) = (stands(1, "array-hang", &[1]), stands(2, "array-eio", &[2]));
        let (begins, ends) = (add(Stage::Invoke), add(Stage::Ok));
        let judged = |history: &[&Op]| {
            let history: Vec<Op> = history.iter().map(|op| (*op).clone()).collect();
            together(&history, &run(&["array-hang", "array-eio"]))
        };
        let report = judged(&[&hang, &eio, &begins, &ends]);
        assert_eq!((report.verdict, report.broken()), (Verdict::Invalid, vec![row]));
        assert_eq!(report.row(row).evidence, ["x at 5 ms"]);
        assert_eq!(report.row("rounds that left no quorum").measured, "1");
        let healed = goes(1, "array-hang", &[1]);
        for fine in [
            &[&hang, &begins, &ends] as &[&Op],
            &[&hang, &begins, &eio, &ends],
            &[&hang, &eio, &begins, &healed, &ends],
            &[&hang, &eio, &healed, &begins, &ends],
        ] {
            assert_eq!(judged(fine).verdict, Verdict::Valid, "{fine:?}");
        }
        // A node that came back by itself from a rollback may acknowledge.
        assert_eq!(judged(&[&hang, &stands(2, "array-rollback", &[2]), &begins, &ends]).verdict, Verdict::Valid);
        // The same node twice is one node.
        assert_eq!(judged(&[&hang, &stands(2, "pause", &[1]), &begins, &ends]).verdict, Verdict::Valid);
        // Two nodes of five leave a quorum, three do not.
        let five = |nodes: &[u64]| {
            let history = [stands(1, "power", nodes), add(Stage::Invoke), add(Stage::Ok)];
            together(&history, &Expected { nodes: 5, ..run(&["power"]) }).verdict
        };
        assert_eq!((five(&[1, 2]), five(&[1, 2, 3])), (Verdict::Valid, Verdict::Invalid));
    }

    #[test]
    fn a_run_about_lost_quorums_that_lost_none_proves_nothing() {
        let expected = Expected { takes_quorum: true, ..run(&["array-hang"]) };
        let one = [stands(1, "array-hang", &[3])];
        assert_eq!(together(&one, &expected).broken(), ["rounds that left no quorum"]);
        let two = [stands(1, "array-hang", &[1, 3])];
        assert_eq!(together(&two, &expected).verdict, Verdict::Valid);
        let members = Expected { faults: vec!["membership".into()], ..expected };
        assert_eq!(together(&one, &members).verdict, Verdict::Valid, "what a quorum is changes");
    }

    #[test]
    fn what_stood_together_is_counted_by_pair() {
        let shown = |history: &[Op]| together(history, &run(&[])).row("faults that stood together").measured.clone();
        let (kill, pause) = (stands(1, "kill", &[1]), stands(2, "pause", &[2]));
        assert_eq!(shown(&[kill.clone(), pause.clone()]), "kill+pause 1");
        assert_eq!(shown(&[kill.clone(), goes(1, "kill", &[1]), pause.clone()]), "-");
        let again = [goes(1, "kill", &[1]), goes(2, "pause", &[2]), stands(3, "kill", &[1]), stands(4, "pause", &[2])];
        assert_eq!(shown(&[&[kill, pause], &again[..]].concat()), "kill+pause 2");
    }
}
