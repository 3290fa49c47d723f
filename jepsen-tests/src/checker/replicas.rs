//! All nodes hold the same: equal digests at equal indexes all the time, the same index after healing, and each node's own
//! state reads like the cluster's. What differs on the way may be repaired until the end.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::Report;
use crate::history::{Action, Feed, Op, Replica, Stage, fold};

/// The row of a node that stays behind.
pub const BEHIND: &str = "nodes at another index after healing";

/// A fault that makes two histories of one: the limit that Holdfast states.
const TWO_HISTORIES: &str = "rollback-blind";

/// Judges what nodes held; `nodes` are all there are.
pub fn check(history: &[Op], nodes: usize) -> Report {
    let mut report = Report::new("replicas");
    let ended = || history.iter().filter(|op| op.stage == Stage::Ok);
    let replicas: Vec<&Replica> = ended()
        .filter_map(|op| match &op.action {
            Action::Replica(replica) => Some(replica),
            _ => None,
        })
        .collect();
    let answered: BTreeSet<u64> = replicas.iter().map(|replica| replica.node).collect();
    report.at_least("nodes that told their digest", answered.len(), nodes);
    report.never(BEHIND, apart(&replicas));
    report.never("digests that differ at one index", diverged(&replicas));
    check_way(history, &mut report);
    check_reads(history, nodes, &mut report);
    report
}

/// What nodes said while clients wrote: each comparison is of two that were asked at one index.
fn check_way(history: &[Op], report: &mut Report) {
    let met = history.iter().filter_map(|op| match &op.action {
        Action::Replica(replica) if op.stage == Stage::Info => Some(replica),
        _ => None,
    });
    let met: Vec<&Replica> = met.collect();
    let indexes: BTreeSet<u64> = met.iter().map(|replica| replica.digest_index).collect();
    report.figure("indexes at which digests were compared on the way", indexes.len());
    let two = history.iter().any(|op| matches!(&op.action, Action::Fault(note) if note.fault == TWO_HISTORIES));
    if !two {
        report.never("digests that differed at one index on the way", diverged(&met));
    }
}

/// Nobody writes any more: a node that stays behind never catches up.
fn apart(replicas: &[&Replica]) -> Vec<String> {
    let newest = replicas.iter().map(|replica| replica.digest_index).max().unwrap_or(0);
    let behind = replicas.iter().filter(|replica| replica.digest_index != newest || replica.applied_index != newest);
    behind.map(|replica| format!("{replica:?}, the newest is {newest}")).collect()
}

fn diverged(replicas: &[&Replica]) -> Vec<String> {
    let mut by_index: BTreeMap<u64, BTreeMap<&str, Vec<u64>>> = BTreeMap::new();
    for replica in replicas {
        let digests = by_index.entry(replica.digest_index).or_default();
        digests.entry(replica.digest.as_str()).or_default().push(replica.node);
    }
    let differing = by_index.iter().filter(|(_, digests)| digests.len() > 1 || digests.contains_key(""));
    differing.map(|(index, digests)| format!("index {index}: {digests:?}")).collect()
}

fn check_reads(history: &[Op], nodes: usize, report: &mut Report) {
    let mut feeds: BTreeMap<&str, &Feed> = BTreeMap::new();
    let mut asked: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    let (mut differing, mut others) = (Vec::new(), Vec::new());
    for op in history.iter().filter(|op| op.stage == Stage::Ok) {
        if let Action::Feed(feed) = &op.action {
            feeds.insert(&feed.user, feed);
            asked.entry(&feed.user).or_default();
        }
    }
    let folds: BTreeMap<&str, (usize, u64)> =
        feeds.iter().map(|(user, feed)| (*user, (feed.records.len(), fold(&feed.records)))).collect();
    for op in history.iter().filter(|op| op.stage == Stage::Ok) {
        let Action::NodeFeed(own) = &op.action else { continue };
        asked.entry(&own.user).or_default().insert(own.node);
        if own.answered_by != own.node {
            others.push(format!("{}: node {} was asked, node {} answered", own.user, own.node, own.answered_by));
        }
        if folds.get(own.user.as_str()) != Some(&(own.records, own.fold)) {
            let whole = feeds.get(own.user.as_str()).map(|feed| feed.records.len());
            differing.push(format!("{}: node {} holds {} records, all: {whole:?}", own.user, own.node, own.records));
        }
    }
    let unasked = asked.iter().filter(|(_, asked)| asked.len() < nodes);
    report.at_least("users compared node by node", asked.len(), 1);
    report.doubtful(
        "users not read from every node",
        unasked.map(|(user, asked)| format!("{user}: {asked:?}")).collect(),
    );
    report.doubtful("reads that another node answered", others);
    report.never("users that a node holds differently", differing);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Verdict;
    use crate::history::{Found, Named, NodeFeed, Process};

    fn op(action: Action) -> Op {
        let process = Process::Named(Named::Reader);
        Op { process, stage: Stage::Ok, time_ns: 0, action, reply: None, error: None }
    }

    fn valid() -> Vec<Op> {
        let records = vec![Found { key: "a1".into(), version: 1, payload: "x".into() }];
        let mut ops = vec![op(Action::Feed(Feed { user: "u".into(), records: records.clone() }))];
        for node in 1..=3 {
            let own = NodeFeed { node, answered_by: node, user: "u".into(), records: 1, fold: fold(&records) };
            ops.push(op(Action::NodeFeed(own)));
            let digest = "ab".to_owned();
            ops.push(op(Action::Replica(Replica { node, applied_index: 9, digest_index: 9, digest })));
        }
        ops
    }

    fn change_replica(mut change: impl FnMut(&mut Replica)) -> Vec<Op> {
        let mut ops = valid();
        for op in &mut ops {
            if let Action::Replica(replica) = &mut op.action {
                change(replica);
            }
        }
        ops
    }

    fn change_read(mut change: impl FnMut(&mut NodeFeed)) -> Vec<Op> {
        let mut ops = valid();
        for op in &mut ops {
            if let Action::NodeFeed(own) = &mut op.action {
                change(own);
            }
        }
        ops
    }

    #[test]
    fn three_equal_nodes_are_valid() {
        assert_eq!(check(&valid(), 3).verdict, Verdict::Valid);
    }

    #[test]
    fn another_digest_at_one_index_is_seen() {
        let report = check(
            &change_replica(|one| {
                if one.node == 2 {
                    one.digest = "ac".into()
                }
            }),
            3,
        );
        assert_eq!((report.verdict, report.broken()), (Verdict::Invalid, vec!["digests that differ at one index"]));
        let report = check(&change_replica(|one| one.digest.clear()), 3);
        assert_eq!(report.broken(), ["digests that differ at one index"], "no digest is no agreement");
    }

    #[test]
    fn another_digest_on_the_way_is_seen_though_all_are_equal_in_the_end() {
        let met = |node, digest: &str| Op {
            process: Process::Named(Named::Observer),
            stage: Stage::Info,
            ..op(Action::Replica(Replica { node, applied_index: 5, digest_index: 5, digest: digest.into() }))
        };
        let with = |ops: &[Op]| check(&[ops, &valid()[..]].concat(), 3);
        let equal = with(&[met(1, "aa"), met(2, "aa")]);
        assert_eq!(equal.verdict, Verdict::Valid);
        assert_eq!(equal.row("indexes at which digests were compared on the way").measured, "1");
        let row = "digests that differed at one index on the way";
        let differ = [met(1, "aa"), met(2, "aa"), met(1, "aa"), met(3, "ab")];
        let report = with(&differ);
        assert_eq!((report.verdict, report.broken()), (Verdict::Invalid, vec![row]));
        assert!(report.row(row).evidence[0].starts_with("index 5"), "{report:?}");
        let blind = |fault: &str| {
            let note = crate::history::FaultNote {
                round: 1,
                fault: fault.into(),
                nodes: vec![2],
                installed: true,
                detail: String::new(),
                missed: None,
            };
            with(&[&[op(Action::Fault(note))], &differ[..]].concat()).verdict
        };
        assert_eq!((blind("rollback-blind"), blind("rollback-alone")), (Verdict::Valid, Verdict::Invalid));
    }

    #[test]
    fn a_node_that_stays_behind_is_seen() {
        let behind = |one: &mut Replica| {
            if one.node == 3 {
                (one.applied_index, one.digest_index) = (8, 8);
            }
        };
        let report = check(&change_replica(behind), 3);
        assert_eq!((report.verdict, report.broken()), (Verdict::Invalid, vec!["nodes at another index after healing"]));
    }

    #[test]
    fn a_node_that_did_not_answer_leaves_the_verdict_open() {
        let mut ops = valid();
        ops.retain(|op| !matches!(&op.action, Action::Replica(replica) if replica.node == 1));
        assert_eq!(check(&ops, 3).verdict, Verdict::Unknown);
        let mut ops = valid();
        ops.retain(|op| !matches!(&op.action, Action::NodeFeed(own) if own.node == 1));
        assert_eq!(check(&ops, 3).broken(), ["users not read from every node"]);
        assert_eq!(check(&[], 3).verdict, Verdict::Unknown);
    }

    #[test]
    fn a_node_that_reads_differently_is_seen() {
        let report = check(
            &change_read(|own| {
                if own.node == 1 {
                    own.fold ^= 1
                }
            }),
            3,
        );
        assert_eq!((report.verdict, report.broken()), (Verdict::Invalid, vec!["users that a node holds differently"]));
        let report = check(
            &change_read(|own| {
                if own.node == 1 {
                    own.records = 0
                }
            }),
            3,
        );
        assert_eq!(report.verdict, Verdict::Invalid);
    }

    #[test]
    fn a_read_that_was_passed_on_proves_nothing() {
        let report = check(&change_read(|own| own.answered_by = 2), 3);
        assert_eq!((report.verdict, report.broken()), (Verdict::Unknown, vec!["reads that another node answered"]));
    }
}
