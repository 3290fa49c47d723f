//! Valid lists by the thousand, and lists that no order explains.

use super::*;
use crate::checker::Verdict;
use crate::checker::paired::calls;
use crate::checker::simulation::{Plan, valid};
use crate::history::calls::{Batch, Got, Point, Read, Seen};
use crate::history::{Action, Op, Process};

fn judged(ops: &[Op]) -> Report {
    check(&calls(ops), |_| true)
}

fn plan(seed: u64) -> Plan {
    Plan { append: true, steps: 600, ..Plan::small(seed) }
}

#[test]
fn what_a_sound_cluster_does_is_valid() {
    for seed in 0..100 {
        let plan = Plan { lost_percent: [0, 5, 30][seed as usize % 3], ..plan(seed) };
        let report = judged(&valid(plan));
        assert_eq!(report.verdict, Verdict::Valid, "{plan:?} {report:#?}");
    }
}

/// Changes the lists of the last read of all that have two elements at least.
fn spoilt(seed: u64, change: impl Fn(&mut Vec<String>)) -> Option<Report> {
    let mut ops = valid(plan(seed));
    let mut changed = false;
    for op in ops.iter_mut().rev().take(4) {
        let Action::Read(Read { got: Some(got), .. }) = &mut op.action else { continue };
        for seen in &mut got.records {
            let mut list: Vec<String> = seen.payload.as_deref().unwrap_or("").split(' ').map(str::to_owned).collect();
            if list.len() > 1 {
                change(&mut list);
                seen.payload = Some(list.join(" "));
                changed = true;
            }
        }
    }
    changed.then(|| judged(&ops))
}

#[test]
fn lists_that_lose_repeat_or_swap_elements_are_seen() {
    for seed in 0..30 {
        let Some(report) = spoilt(seed, |list| drop(list.remove(0))) else { continue };
        assert_eq!(report.verdict, Verdict::Invalid, "lost, seed {seed}");
        let report = spoilt(seed, |list| list.push(list[0].clone())).expect("spoilt");
        assert!(report.broken().contains(&"elements twice"), "seed {seed}: {report:#?}");
        let report = spoilt(seed, |list| list.push("9.99".into())).expect("spoilt");
        assert!(report.broken().contains(&"elements that nobody added"), "seed {seed}: {report:#?}");
        let report = spoilt(seed, |list| list.swap(0, 1)).expect("spoilt");
        assert!(report.broken().contains(&"lists that are not the beginning of the longest"), "seed {seed}");
    }
}

/// Builds a history line by line; each line is a moment later than the last.
#[derive(Default)]
struct Story(Vec<Op>);

impl Story {
    fn line(&mut self, client: u32, stage: Stage, action: &Action) {
        let time_ns = self.0.len() as u64 + 1;
        let action = action.clone();
        self.0.push(Op { process: Process::Client(client), stage, time_ns, action, reply: None, error: None });
    }

    fn both(&mut self, client: u32, action: &Action) {
        self.line(client, Stage::Invoke, action);
        self.line(client, Stage::Ok, action);
    }
}

fn adds(key: &str, list: &str) -> Action {
    let change = crate::history::calls::Change { key: key.into(), put: Some(list.into()), guard: None };
    let at = Point { incarnation: 1, group: 0, index: 1 };
    let results = vec![crate::history::calls::Changed { changed: true, version: 1 }];
    let done = crate::history::calls::Done { at, version: 1, replayed: false, results, node: 1 };
    let request_id = format!("{key} {list}");
    Action::Batch(Batch { user: "l".into(), request_id, changes: vec![change], done: Some(done), refused: None })
}

fn reads(lists: &[(&str, &str)]) -> Action {
    let seen = |(key, list): &(&str, &str)| Seen {
        key: (*key).into(),
        version: 1,
        payload: (!list.is_empty()).then(|| (*list).into()),
    };
    let keys = lists.iter().map(|(key, _)| (*key).to_owned()).collect();
    let at = Point { incarnation: 1, group: 0, index: 1 };
    let got = Some(Got { at, node: 1, staleness_ms: None, records: lists.iter().map(seen).collect() });
    Action::Read(Read { user: "l".into(), keys, level: Level::Linearizable, got })
}

#[test]
fn circles_are_seen() {
    const RULE: &str = "operations that depend on each other in a circle";
    // Two readers see two writes in opposite orders.
    let mut story = Story::default();
    for (client, key) in [(1, "x"), (2, "y")] {
        story.line(client, Stage::Invoke, &adds(key, "1"));
    }
    story.both(3, &reads(&[("x", "1"), ("y", "")]));
    story.both(4, &reads(&[("x", "1"), ("y", "1")]));
    let mut valid = Story(story.0.clone());
    story.both(5, &reads(&[("x", ""), ("y", "1")]));
    for story in [&mut story, &mut valid] {
        story.line(1, Stage::Ok, &adds("x", "1"));
        story.line(2, Stage::Ok, &adds("y", "1"));
    }
    assert_eq!(judged(&valid.0).verdict, Verdict::Valid);
    assert_eq!(judged(&story.0).broken(), [RULE]);
    // A read misses what had ended before it began: only time tells.
    let mut stale = Story::default();
    stale.both(1, &adds("x", "1"));
    stale.both(2, &reads(&[("x", "")]));
    stale.both(3, &reads(&[("x", "1")]));
    assert_eq!(judged(&stale.0).broken(), [RULE]);
}

#[test]
fn components_are_found_however_deep() {
    let chain = |count: usize, back: Option<usize>| {
        let mut edges: Vec<Vec<usize>> = (0..count).map(|node| vec![node + 1]).collect();
        edges.push(back.into_iter().collect());
        components(&edges)
    };
    assert!(chain(200_000, None).is_empty());
    let mut all = chain(200_000, Some(150_000));
    assert_eq!(all.pop().map(|component| component.len()), Some(50_001));
    assert!(all.is_empty());
    assert!(components(&[vec![1], vec![], vec![0, 1]]).is_empty());
    assert_eq!(components(&[vec![1], vec![0], vec![3], vec![2], vec![0]]).len(), 2);
}

#[test]
fn nothing_done_is_no_pass() {
    assert_eq!(judged(&[]).verdict, Verdict::Unknown);
}
