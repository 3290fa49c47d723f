//! What a node says of its term never gets less, whatever ends and starts it: a term, and the vote in it, is saved before
//! it is used. A node that forgets one votes twice in it, and one that leads then overwrites what was acknowledged.
//!
//! A disk that is emptied or goes back in time takes the term with it: from there on the node counts anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::Report;
use crate::history::{Action, Op, Stage};

/// Faults that take from a node what it fsynced.
const FORGETFUL: &[&str] = &["array-wipe", "array-scramble", "array-rollback", "rollback-alone", "rollback-blind"];

/// Judges what nodes said of their terms; `nodes` of them must have been heard.
pub fn check(history: &[Op], nodes: usize) -> Report {
    let mut report = Report::new("terms");
    let mut known: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut heard, mut forgetful) = (BTreeSet::new(), BTreeSet::<u64>::new());
    let (mut highest, mut fell) = (0, Vec::new());
    for op in history {
        match (&op.action, op.stage) {
            (Action::Term(seen), _) => {
                heard.insert(seen.node);
                highest = highest.max(seen.term);
                if forgetful.contains(&seen.node) {
                    continue;
                }
                match known.insert(seen.node, seen.term) {
                    Some(before) if before > seen.term => fell.push(format!(
                        "node {}: term {before}, then {} at {} ms",
                        seen.node,
                        seen.term,
                        op.time_ns / 1_000_000
                    )),
                    _ => {}
                }
            }
            (Action::Fault(note), Stage::Invoke) if FORGETFUL.contains(&note.fault.as_str()) => {
                forgetful.extend(&note.nodes);
            }
            (Action::Heal(note), Stage::Info) if FORGETFUL.contains(&note.fault.as_str()) => {
                for node in &note.nodes {
                    forgetful.remove(node);
                    known.remove(node);
                }
            }
            _ => {}
        }
    }
    report.at_least("nodes that told their term", heard.len(), nodes);
    report.figure("highest term", highest);
    report.never("terms that fell", fell);
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Verdict;
    use crate::history::{FaultNote, Named, Process, Term};

    fn op(stage: Stage, action: Action) -> Op {
        Op { process: Process::Named(Named::Observer), stage, time_ns: 0, action, reply: None, error: None }
    }

    fn term(node: u64, term: u64) -> Op {
        op(Stage::Info, Action::Term(Term { node, term }))
    }

    fn note(fault: &str) -> FaultNote {
        FaultNote {
            round: 1,
            fault: fault.into(),
            nodes: vec![2],
            installed: true,
            missed: None,
            detail: String::new(),
        }
    }

    #[test]
    fn terms_that_rise_are_valid_and_unheard_nodes_leave_it_open() {
        let history = [term(1, 1), term(2, 1), term(1, 4), term(2, 5)];
        assert_eq!(check(&history, 2).verdict, Verdict::Valid);
        assert_eq!(check(&history, 3).broken(), ["nodes that told their term"]);
        assert_eq!(check(&[], 3).verdict, Verdict::Unknown);
    }

    #[test]
    fn a_term_that_fell_is_seen_also_when_it_rises_again() {
        let report = check(&[term(1, 3), term(2, 4), term(2, 1), term(2, 4)], 2);
        assert_eq!((report.verdict, report.broken()), (Verdict::Invalid, vec!["terms that fell"]));
        assert_eq!(report.row("terms that fell").evidence, ["node 2: term 4, then 1 at 0 ms"]);
    }

    #[test]
    fn only_a_disk_that_forgot_excuses_it_and_only_of_its_node() {
        let with = |fault: &str, node: u64| {
            let history = [
                term(1, 4),
                term(2, 4),
                op(Stage::Invoke, Action::Fault(note(fault))),
                term(2, 4),
                term(node, 1),
                op(Stage::Info, Action::Heal(note(fault))),
                term(2, 2),
            ];
            check(&history, 2).verdict
        };
        assert_eq!(with("array-rollback", 2), Verdict::Valid);
        assert_eq!(with("array-rollback", 1), Verdict::Invalid, "another node's disk");
        assert_eq!(with("power", 2), Verdict::Invalid, "what was fsynced survives a power cut");
    }
}
