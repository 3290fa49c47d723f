//! The harness itself: the faults were real, there was load between them, and nothing happened that nobody expects.
//!
//! A fault that was not installed makes a run `unknown`: it would have passed without Holdfast's doing. A node that
//! panicked, an error that has no place in the API under this fault, or a cluster that does not come back make it
//! `invalid`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checker::{Report, faults};
use crate::cluster;
use crate::history::{Action, Kill, Op, Stage};

/// What a run had to do to prove anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Clients that wrote.
    pub clients: u32,
    /// Kills of the leader.
    pub kills: u32,
    /// All nodes in one moment, at the end.
    pub kill_all: bool,
    /// Writes acknowledged before each kill and after the one before it.
    pub acknowledged_between: usize,
    /// Faults that must each have been there, by name.
    #[serde(default)]
    pub faults: Vec<String>,
    /// Faults must have left no quorum at least once: the run is about that.
    #[serde(default)]
    pub takes_quorum: bool,
    /// How often each of them must have been there; 0 = once.
    #[serde(default)]
    pub strikes: u32,
}

/// A node's log.
#[derive(Debug, Clone)]
pub struct Log {
    /// Whose.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// Errors that clients may see while nodes are killed: nobody could be asked, nobody led, nobody knows, or what was left
/// of a deadline after all attempts was too little for one more. Or no node that could be asked is new enough: for a read,
/// or, where it has only just started and does not know its own history yet, for anything.
const REASONS: &[&str] = &["", "NO_LEADER", "OUTCOME_UNKNOWN", "DEADLINE_TOO_SHORT", "REPLICA_BEHIND"];
/// An archive that holds what no voter has: unless a disk forgot it, it was shipped before it was committed. A row of its
/// own, as Holdfast's own word for that bug.
const FORK: &str = "LINEAGE_FORK";
/// The rows of a cluster that does not come back; [`SILENT`] follows what went wrong.
pub const SILENT: &str = "after which no write was acknowledged";
/// As [`SILENT`].
pub const DOWN: &str = "nodes that did not serve again";
/// What a panic leaves in a log, whatever wrote it.
const PANIC: &str = "panicked";
/// What a node says that has lost entries, a vote or the whole log.
const LOST: &[&str] = &["log.recovering", "log.quarantined"];
/// What a node says whose state is not that of the others, or not what its digests say.
const DIVERGED: &str = "integrity.diverged";
/// What a process says first.
const STARTING: &str = "\"node.starting\"";
/// What Holdfast says, last of all, where it aborts on purpose: it names the reason.
const ABORTS: &[&str] = &["holdfast: fatal: ", "holdfast: the log cannot go on: "];

/// Judges a run by its history and its nodes' logs.
pub fn check(history: &[Op], logs: &[Log], expected: &Expected) -> Report {
    let mut report = Report::new("harness");
    check_kills(history, expected, &mut report);
    faults::check(history, expected, &mut report);
    check_load(history, expected, &mut report);
    let (mut unexpected, mut forks) = (BTreeMap::<(&str, &str), (usize, &str)>::new(), BTreeMap::new());
    let further = faults::reasons(&expected.faults);
    for op in history {
        let Some(error) = &op.error else { continue };
        if !explained(&op.action, &error.reason) && !further.contains(&error.reason.as_str()) {
            let stage = if op.stage == Stage::Fail { "fail" } else { "info" };
            let what = op.action.request_id().unwrap_or("not a write");
            let rows = if error.reason == FORK { &mut forks } else { &mut unexpected };
            let seen = rows.entry((&error.reason, stage)).or_insert((0, what));
            seen.0 += 1;
        }
    }
    let shown = |rows: BTreeMap<(&str, &str), (usize, &str)>| {
        let rows = rows.into_iter();
        rows.map(|((reason, stage), (count, id))| format!("{stage} {reason}: {count}, {id}")).collect()
    };
    report.never("errors that this fault does not explain", shown(unexpected));
    report.never("writes refused because the archive holds what the voters do not", shown(forks));
    report.at_least("logs of nodes", logs.iter().filter(|log| !log.text.is_empty()).count(), expected.nodes);
    let panics = logs.iter().flat_map(|log| {
        log.text.lines().filter(|line| line.contains(PANIC)).map(|line| format!("{}: {line}", log.name))
    });
    report.never("panics in the nodes' logs", panics.collect());
    report.never("nodes that crashed, and did not say why", crashes(logs));
    report.never("nodes that did not end when they were told to", lines(logs, &[cluster::STUCK]));
    if expected.faults.iter().all(|fault| faults::spares_disks(fault)) {
        // A node that starts and finds that its log lost something, or holds what it should not, says so: nothing but a
        // disk that damages or forgets what was fsynced may do that.
        report.never("logs that a node found broken though no fault breaks them", lines(logs, LOST));
        report.never("nodes that found their state damaged though no fault damages it", lines(logs, &[DIVERGED]));
    }
    report
}

/// Lines of logs that hold one of these words.
fn lines(logs: &[Log], words: &[&str]) -> Vec<String> {
    let says = |line: &&str| words.iter().any(|word| line.contains(word));
    let lines = logs.iter().flat_map(|log| log.text.lines().filter(says).map(|line| format!("{}: {line}", log.name)));
    lines.collect()
}

/// Processes that ended by a signal of their own making, as the harness wrote behind what they said. One that aborts on
/// purpose says so before; whatever else ends a node so, a wild pointer or a check in RocksDB, is a bug, also under faults.
fn crashes(logs: &[Log]) -> Vec<String> {
    let mut crashes = Vec::new();
    for log in logs {
        let mut last = "nothing";
        let mut on_purpose = false;
        for line in log.text.lines() {
            if line.contains(STARTING) {
                on_purpose = false;
            } else if let Some(signal) = line.strip_prefix(cluster::CRASHED) {
                if !on_purpose || signal != cluster::ABORT {
                    crashes.push(format!("{}: {line}; its last words: {last}", log.name));
                }
                on_purpose = false;
            } else {
                on_purpose |= ABORTS.iter().any(|said| line.contains(said));
            }
            last = line;
        }
    }
    crashes
}

fn explained(action: &Action, reason: &str) -> bool {
    match action {
        // Guards are there to fail; whether they did so rightly is for others to judge.
        Action::Batch(batch) if batch.refused.is_some() => reason == "VERSION_MISMATCH",
        // Whoever judges restores names each that failed.
        Action::Restored(_) => true,
        _ => REASONS.contains(&reason),
    }
}

fn check_kills(history: &[Op], expected: &Expected, report: &mut Report) {
    let (mut leaders, mut all) = (0usize, 0usize);
    let mut fake = Vec::new();
    for kill in kills(history, Stage::Info) {
        if !kill.is_real() {
            fake.push(format!("{kill:?}"));
        } else if kill.round == 0 {
            all += usize::from(kill.targets.len() == expected.nodes);
        } else {
            leaders += usize::from(kill.targets.iter().all(|target| target.leader));
        }
    }
    report.at_least("leaders killed", leaders, expected.kills as usize);
    report.at_least("kills of all nodes at once", all, usize::from(expected.kill_all));
    report.doubtful("kills that did not end a process by SIGKILL", fake);
    let (mut silent, mut down, mut restarts) = (Vec::new(), Vec::new(), 0usize);
    for op in history.iter().filter(|op| op.stage == Stage::Info) {
        match &op.action {
            Action::Recovered(recovered) if !recovered.writes => silent.push(format!("{recovered:?}")),
            Action::Restart(restart) if !restart.serves => down.push(format!("{restart:?}")),
            Action::Restart(_) => restarts += 1,
            _ => {}
        }
    }
    let all_nodes = if expected.kill_all { expected.nodes } else { 0 };
    report.at_least("nodes that served again", restarts, expected.kills as usize + all_nodes);
    let what = if expected.faults.is_empty() { "kills" } else { "faults" };
    report.never(&format!("{what} {SILENT}"), silent);
    report.never(DOWN, down);
}

fn check_load(history: &[Op], expected: &Expected, report: &mut Report) {
    let mut clients = std::collections::BTreeSet::new();
    let (mut acknowledged, mut since, mut least) = (0usize, 0usize, usize::MAX);
    for op in history {
        if op.action.request_id().is_some() && op.stage == Stage::Ok {
            acknowledged += 1;
            since += 1;
            clients.insert(op.process);
        } else if matches!(op.action, Action::Kill(_)) && op.stage == Stage::Invoke && expected.faults.is_empty() {
            least = least.min(since);
            since = 0;
        }
    }
    report.at_least("clients with acknowledged writes", clients.len(), expected.clients as usize);
    report.figure("acknowledgements", acknowledged);
    if least < usize::MAX {
        report.at_least("fewest acknowledgements before a kill", least, expected.acknowledged_between);
    }
    let silences: Vec<(u32, Duration)> = silences(history);
    let longest = |all: bool| silences.iter().filter(|(round, _)| (*round == 0) == all).map(|(_, gap)| *gap).max();
    let shown = |gap: Option<Duration>| gap.map_or("-".to_owned(), |gap| format!("{} ms", gap.as_millis()));
    report.figure("longest silence of all clients after a leader's death", shown(longest(false)));
    report.figure("silence of all clients after everyone's death", shown(longest(true)));
}

/// For each kill, the longest time without any acknowledgement between it and the next one.
fn silences(history: &[Op]) -> Vec<(u32, Duration)> {
    let mut silences: Vec<(u32, Duration)> = Vec::new();
    let mut last_ns: Option<u64> = None;
    for op in history {
        if let Action::Kill(kill) = &op.action
            && op.stage == Stage::Invoke
        {
            silences.push((kill.round, Duration::ZERO));
        } else if op.action.request_id().is_some() && op.stage == Stage::Ok {
            if let (Some(last_ns), Some((_, longest))) = (last_ns, silences.last_mut()) {
                *longest = (*longest).max(Duration::from_nanos(op.time_ns.saturating_sub(last_ns)));
            }
            last_ns = Some(op.time_ns);
        }
    }
    silences
}

fn kills(history: &[Op], stage: Stage) -> impl Iterator<Item = &Kill> {
    history.iter().filter(move |op| op.stage == stage).filter_map(|op| match &op.action {
        Action::Kill(kill) => Some(kill),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Verdict;
    use crate::history::{Failure, Named, Process, Recovered, Reply, Restart, Target, Write};

    const EXPECTED: Expected = Expected {
        nodes: 3,
        clients: 2,
        kills: 1,
        kill_all: true,
        acknowledged_between: 2,
        faults: Vec::new(),
        takes_quorum: false,
        strikes: 0,
    };

    fn nemesis(stage: Stage, action: Action) -> Op {
        Op { process: Process::Named(Named::Nemesis), stage, time_ns: 0, action, reply: None, error: None }
    }

    fn write(client: u32, time_ms: u64) -> Op {
        let text = "x".to_owned();
        let write =
            Write { user: text.clone(), key: text.clone(), payload: text.clone(), request_id: text, guard: None };
        let reply = Reply { commit_index: 1, version: 1, replayed: false, changed: true };
        let (process, time_ns) = (Process::Client(client), time_ms * 1_000_000);
        Op { process, stage: Stage::Ok, time_ns, action: Action::Add(write), reply: Some(reply), error: None }
    }

    fn valid() -> Vec<Op> {
        let mut ops = vec![write(1, 1), write(2, 2)];
        for (round, nodes) in [(1, 1..=1), (0, 1..=3)] {
            let target = |node| Target { node, pid: 7, leader: node == 1, signal: Some(9) };
            let targets: Vec<Target> = nodes.clone().map(target).collect();
            ops.push(nemesis(Stage::Invoke, Action::Kill(Kill { round, targets: targets.clone() })));
            ops.push(nemesis(Stage::Info, Action::Kill(Kill { round, targets })));
            for node in nodes {
                ops.push(nemesis(Stage::Info, Action::Restart(Restart { node, pid: 8, serves: true })));
            }
            ops.push(nemesis(Stage::Info, Action::Recovered(Recovered { round, writes: true })));
            ops.extend([write(1, 602), write(2, 603)]);
        }
        ops
    }

    fn logs() -> Vec<Log> {
        (0..3).map(|n| Log { name: format!("n{n}.log"), text: "{\"event\":\"started\"}\n".into() }).collect()
    }

    fn judged(change: impl FnMut(&mut Op)) -> Report {
        let mut ops = valid();
        ops.iter_mut().for_each(change);
        check(&ops, &logs(), &EXPECTED)
    }

    #[test]
    fn a_log_that_broke_by_itself_is_seen_and_a_damaged_disk_excuses_it() {
        let mut logs = logs();
        logs[1].text += "{\"event\":\"log.recovering\",\"reason\":\"entry 9 does not link to the one before\"}\n";
        let row = "logs that a node found broken though no fault breaks them";
        let report = check(&valid(), &logs, &EXPECTED);
        assert_eq!((report.verdict, report.broken()), (Verdict::Invalid, vec![row]));
        let with = |fault: &str| {
            let report = check(&valid(), &logs, &Expected { faults: vec![fault.into()], ..EXPECTED });
            report.rows.iter().any(|one| one.what == row && one.verdict == Verdict::Invalid)
        };
        assert!(["kill", "power-all", "partition", "lost-tail", "array-eio"].into_iter().all(with));
        assert!(!["bit-flip", "array-wipe", "array-rollback", "rollback-alone"].into_iter().any(with));
    }

    #[test]
    fn a_state_that_differs_by_itself_is_seen_also_when_it_was_repaired() {
        let mut logs = logs();
        logs[2].text += "{\"event\":\"integrity.diverged\",\"reason\":\"x\"}\n{\"event\":\"integrity.reinstalled\"}\n";
        let row = "nodes that found their state damaged though no fault damages it";
        assert_eq!(check(&valid(), &logs, &EXPECTED).broken(), [row]);
        let with = |fault: &str| {
            let report = check(&valid(), &logs, &Expected { faults: vec![fault.into()], ..EXPECTED });
            report.rows.iter().any(|one| one.what == row && one.verdict == Verdict::Invalid)
        };
        assert!(["kill", "power", "array-hang", "slow-fsync"].into_iter().all(with));
        assert!(!["bit-flip", "array-scramble"].into_iter().any(with));
    }

    #[test]
    fn a_crash_without_a_word_is_invalid_and_an_abort_that_says_why_is_not() {
        let start = "{\"event\":\"node.starting\"}\n";
        let fatal = "holdfast: fatal: fsync failed; the node aborts. Start it again.\n";
        let crashed = |signal: &str| format!("{}{signal}\n", cluster::CRASHED);
        let row = "nodes that crashed, and did not say why";
        let broken = |text: String| {
            let mut logs = logs();
            logs[1].text += &text;
            check(&valid(), &logs, &EXPECTED).broken().contains(&row)
        };
        assert!(!broken(format!("{start}{fatal}{}", crashed("SIGABRT"))));
        assert!(!broken(format!("{start}{fatal}{}{start}{fatal}{}", crashed("SIGABRT"), crashed("SIGABRT"))));
        assert!(broken(format!("{start}{}", crashed("SIGABRT"))), "not on purpose");
        assert!(broken(format!("{start}{fatal}{}", crashed("SIGSEGV"))), "that is no abort");
        assert!(
            broken(format!("{start}{fatal}{}{start}{}", crashed("SIGABRT"), crashed("SIGABRT"))),
            "another process"
        );
        assert!(broken(format!("{start}{fatal}{start}{}", crashed("SIGABRT"))), "what an earlier process said");
    }

    #[test]
    fn a_node_that_does_not_end_when_it_is_told_to_is_seen() {
        let mut logs = logs();
        logs[0].text += &format!("{}\n", cluster::STUCK);
        assert_eq!(check(&valid(), &logs, &EXPECTED).broken(), ["nodes that did not end when they were told to"]);
    }

    #[test]
    fn real_kills_under_load_are_valid() {
        let report = check(&valid(), &logs(), &EXPECTED);
        assert_eq!(report.verdict, Verdict::Valid, "{report:#?}");
        assert_eq!(report.row("longest silence of all clients after a leader's death").measured, "600 ms");
    }

    #[test]
    fn a_kill_that_killed_nobody_proves_nothing() {
        for spoil in
            [(|target: &mut Target| target.signal = Some(15)) as fn(&mut Target), |target| target.signal = None]
        {
            let report = judged(|op| {
                if let (Action::Kill(kill), Stage::Info) = (&mut op.action, op.stage) {
                    kill.targets.iter_mut().for_each(spoil);
                }
            });
            assert_eq!(report.verdict, Verdict::Unknown);
            assert!(report.broken().contains(&"kills that did not end a process by SIGKILL"));
        }
    }

    #[test]
    fn too_few_kills_or_kills_of_followers_prove_nothing() {
        let expected = Expected { kills: 2, ..EXPECTED };
        assert_eq!(check(&valid(), &logs(), &expected).verdict, Verdict::Unknown);
        let report = judged(|op| {
            if let Action::Kill(kill) = &mut op.action {
                kill.targets.iter_mut().for_each(|target| target.leader = false);
            }
        });
        assert_eq!((report.verdict, report.broken()), (Verdict::Unknown, vec!["leaders killed"]));
        let report = judged(|op| {
            if let Action::Kill(kill) = &mut op.action {
                kill.targets.truncate(1);
            }
        });
        assert_eq!(report.broken(), ["kills of all nodes at once"]);
    }

    #[test]
    fn too_little_load_proves_nothing() {
        let expected = Expected { acknowledged_between: 3, ..EXPECTED };
        let report = check(&valid(), &logs(), &expected);
        assert_eq!(
            (report.verdict, report.broken()),
            (Verdict::Unknown, vec!["fewest acknowledgements before a kill"])
        );
        let report = judged(|op| {
            if op.process == Process::Client(2) {
                op.process = Process::Client(1);
            }
        });
        assert_eq!(report.broken(), ["clients with acknowledged writes"]);
    }

    #[test]
    fn a_cluster_that_does_not_come_back_is_invalid() {
        let report = judged(|op| {
            if let Action::Recovered(recovered) = &mut op.action {
                recovered.writes = false;
            }
        });
        assert_eq!(report.verdict, Verdict::Invalid);
        assert_eq!(report.broken(), ["kills after which no write was acknowledged"]);
        let report = judged(|op| {
            if let Action::Restart(restart) = &mut op.action {
                restart.serves = restart.node != 3;
            }
        });
        assert_eq!(report.verdict, Verdict::Invalid);
        assert!(report.broken().contains(&"nodes that did not serve again"));
    }

    #[test]
    fn an_error_without_a_place_here_is_invalid() {
        for (reason, verdict) in [
            ("", Verdict::Valid),
            ("NO_LEADER", Verdict::Valid),
            ("CHECKSUM", Verdict::Invalid),
            ("INTERNAL", Verdict::Invalid),
        ] {
            let mut ops = valid();
            let mut failed = write(1, 700);
            (failed.stage, failed.reply) = (Stage::Fail, None);
            failed.error = Some(Failure { reason: reason.into(), message: String::new() });
            ops.push(failed);
            assert_eq!(check(&ops, &logs(), &EXPECTED).verdict, verdict, "{reason}");
            let flips = Expected { faults: vec!["bit-flip".into()], ..EXPECTED };
            let row = check(&ops, &logs(), &flips).row("errors that this fault does not explain").verdict;
            assert_eq!(row == Verdict::Invalid, reason == "INTERNAL", "{reason} where bits flip");
        }
    }

    #[test]
    fn a_fork_that_no_fault_explains_has_a_row_of_its_own() {
        let mut ops = valid();
        let mut failed = write(1, 700);
        (failed.stage, failed.reply) = (Stage::Fail, None);
        failed.error = Some(Failure { reason: "LINEAGE_FORK".into(), message: String::new() });
        ops.push(failed);
        let report = check(&ops, &logs(), &EXPECTED);
        assert_eq!(report.broken(), ["writes refused because the archive holds what the voters do not"]);
        let blind = Expected { faults: vec!["rollback-blind".into()], ..EXPECTED };
        let row =
            check(&ops, &logs(), &blind).row("writes refused because the archive holds what the voters do not").verdict;
        assert_eq!(row, Verdict::Valid, "a disk forgot it");
    }

    #[test]
    fn a_panic_in_a_log_is_invalid_and_a_missing_log_unknown() {
        let mut spoilt = logs();
        spoilt[1].text.push_str("thread 'main' panicked at src/main.rs:1:1\n");
        let report = check(&valid(), &spoilt, &EXPECTED);
        assert_eq!((report.verdict, report.broken()), (Verdict::Invalid, vec!["panics in the nodes' logs"]));
        assert_eq!(check(&valid(), &logs()[..2], &EXPECTED).verdict, Verdict::Unknown);
        assert_eq!(check(&[], &logs(), &EXPECTED).verdict, Verdict::Unknown);
    }
}
