//! Valid histories by the thousand, spoilt in the ways in which a feed would break its promises.

use super::*;
use crate::chance::Chance;
use crate::checker::Verdict;
use crate::checker::by_hand::{by_hand, lost, written};
use crate::checker::paired::calls;
use crate::checker::simulation::{Plan, valid};
use crate::history::Stage;

fn judged(ops: &[Op]) -> Report {
    let calls = calls(ops);
    check(ops, &calls, &timeline::history(&calls))
}

fn plan(seed: u64) -> Plan {
    Plan { users: 1, keys: 12, clients: 3, consumers: 4, steps: 900, ..Plan::small(seed) }
}

#[test]
fn what_a_sound_cluster_does_is_valid() {
    for seed in 0..100 {
        let plan = Plan { lost_percent: [0, 5, 20][seed as usize % 3], ..plan(seed) };
        let report = judged(&valid(plan));
        assert!(report.verdict != Verdict::Invalid, "{plan:?} {report:#?}");
        assert_eq!(report.broken().iter().filter(|row| **row != "consumers that went on at another node").count(), 0);
    }
}

/// Spoils a page; false = this one cannot be spoilt so.
type Spoil = fn(&mut Turned, &mut Chance) -> bool;

const SPOILS: &[(&str, Spoil)] = &[
    ("two events swapped", |turned, chance| {
        let borders: Vec<usize> = (1..turned.records.len())
            .filter(|at| turned.records[at - 1].version != turned.records[*at].version)
            .collect();
        if borders.is_empty() {
            return false;
        }
        let at = borders[chance.below(borders.len())];
        turned.records.swap(at - 1, at);
        true
    }),
    ("an event dropped", |turned, chance| {
        if turned.records.is_empty() || (turned.more && turned.records.len() == 1) {
            return false;
        }
        // At the end of a page with more to come, the next page would bring it.
        let last = turned.records.last().map(|seen| seen.version);
        let places: Vec<usize> =
            (0..turned.records.len()).filter(|at| !turned.more || Some(turned.records[*at].version) != last).collect();
        if places.is_empty() {
            return false;
        }
        turned.records.remove(places[chance.below(places.len())]);
        true
    }),
    ("an event twice", |turned, chance| {
        if turned.records.is_empty() {
            return false;
        }
        let at = chance.below(turned.records.len());
        turned.records.insert(at, turned.records[at].clone());
        true
    }),
    ("another version", |turned, chance| {
        if turned.records.is_empty() {
            return false;
        }
        let at = chance.below(turned.records.len());
        turned.records[at].version += 1;
        true
    }),
    ("a deletion in place of a change", |turned, chance| {
        let live: Vec<usize> = (0..turned.records.len()).filter(|at| turned.records[*at].payload.is_some()).collect();
        if live.is_empty() {
            return false;
        }
        turned.records[live[chance.below(live.len())]].payload = None;
        true
    }),
    ("half a commit", |turned, _| {
        let last = turned.records.last().map(|seen| seen.version);
        let of_last = turned.records.iter().filter(|seen| Some(seen.version) == last).count();
        if of_last < 2 || !turned.more {
            return false;
        }
        turned.records.pop();
        true
    }),
];

#[test]
fn every_way_to_spoil_a_page_is_seen() {
    for (name, spoil) in SPOILS {
        let mut spoilt = 0;
        for seed in 0..120 {
            let mut ops = valid(plan(seed));
            let mut chance = Chance::new(seed, 1);
            let mut pages: Vec<&mut Turned> = ops
                .iter_mut()
                .filter(|op| op.stage == Stage::Ok)
                .filter_map(|op| match &mut op.action {
                    Action::Page(Page { turned: Some(turned), .. }) => Some(turned),
                    _ => None,
                })
                .collect();
            chance.shuffle(&mut pages);
            if !pages.into_iter().any(|page| spoil(page, &mut chance)) {
                continue;
            }
            spoilt += 1;
            let report = judged(&ops);
            assert_eq!(report.verdict, Verdict::Invalid, "{name}, seed {seed}: {report:#?}");
        }
        assert!(spoilt >= 20, "{name}: only {spoilt} histories could be spoilt");
    }
}

#[test]
fn a_consumer_that_was_not_woken_again_is_seen() {
    let mut spoilt = 0;
    for seed in 0..20 {
        let mut ops = valid(plan(seed));
        // Its last page with news never came.
        let news = ops.iter().rposition(|op| {
            matches!(&op.action, Action::Page(Page { turned: Some(turned), .. }) if !turned.records.is_empty() && turned.kept)
        });
        let Some(news) = news else { continue };
        let process = ops[news].process;
        let began = ops[..news].iter().rposition(|op| op.process == process).expect("it began");
        let mut place = 0;
        ops.retain(|op| {
            place += 1;
            op.process != process || place <= began
        });
        spoilt += 1;
        let report = judged(&ops);
        assert!(
            report.broken().contains(&"consumers that stayed behind: a wake-up or a change was lost"),
            "seed {seed}: {report:#?}"
        );
    }
    assert!(spoilt >= 10, "{spoilt}");
}

/// A history in which `process` follows a feed besides those that the simulation has.
fn followed(ops: &[Op], watches: bool) -> Vec<Op> {
    let follow = crate::history::calls::Follow { user: "u0".into(), watches };
    let process = Process::Client(99);
    let mut all = vec![Op { process, stage: Stage::Info, action: Action::Follow(follow), ..ops[0].clone() }];
    all.extend_from_slice(ops);
    all
}

#[test]
fn a_consumer_that_never_got_a_page_is_missed() {
    const ENDS: &str = "consumers that came to an end";
    const WOKEN: &str = "watches that never woke anybody";
    let ops = valid(plan(1));
    assert_eq!(judged(&ops).row(ENDS).measured, "4");
    let asks = judged(&followed(&ops, false));
    assert_eq!((asks.row(ENDS).verdict, asks.row(WOKEN).verdict), (Verdict::Unknown, Verdict::Valid), "{asks:#?}");
    assert_eq!(asks.row(ENDS).required, "at least 5");
    let waits = followed(&ops, true);
    assert_eq!(judged(&waits).row(WOKEN).evidence, ["Client(99) u0"]);
    // Where the end is missing, it may have been woken there.
    let cut = judged(&waits[..waits.len() / 2]);
    assert_eq!(cut.verdict, Verdict::Unknown, "{cut:#?}");
    // Once it was woken, and came to an end, all is well.
    let mut woken = waits;
    let last = woken.iter().rposition(|op| matches!(op.action, Action::Page(_))).expect("a page");
    let Action::Page(page) = &woken[last].action else { panic!("{:?}", woken[last]) };
    let at = page.turned.as_ref().expect("turned").at;
    let hint = crate::history::calls::Hint { user: "u0".into(), head: (1 << 48) + 1, at };
    let hint =
        Op { process: Process::Client(99), stage: Stage::Info, action: Action::Hint(hint), ..woken[last].clone() };
    woken.push(hint);
    assert_eq!(judged(&woken).row(WOKEN).verdict, Verdict::Valid);
}

#[test]
fn a_history_cut_off_anywhere_is_neither_valid_nor_blamed_on_the_cluster() {
    for seed in 0..20 {
        let whole = valid(Plan { lost_percent: 10, ..plan(seed) });
        let cut = &whole[..Chance::new(seed, 2).below(whole.len())];
        let report = judged(cut);
        assert_eq!(report.verdict, Verdict::Unknown, "seed {seed}, {} lines: {report:#?}", cut.len());
    }
}

#[test]
fn a_resync_and_a_hint_of_what_is_not_there_are_seen() {
    let mut ops = valid(plan(1));
    let at = crate::history::calls::Point { incarnation: 7, group: 0, index: 12 };
    let hint = crate::history::calls::Hint { user: "u0".into(), head: (1 << 48) + 9_999, at };
    ops.push(Op { action: Action::Hint(hint), stage: Stage::Info, ..ops[0].clone() });
    assert!(judged(&ops).broken().contains(&"hints of versions that were not there"));
    let mut ops = valid(plan(1));
    let last = ops.iter_mut().rfind(|op| matches!(op.action, Action::Page(_))).expect("a page");
    last.stage = Stage::Fail;
    if let Action::Page(page) = &mut last.action {
        (page.turned, page.resync) = (None, Some("ROLLED_BACK".into()));
    }
    assert!(judged(&ops).broken().contains(&"orders to resync, though nothing was restored"));
}

#[test]
fn nothing_done_is_no_pass() {
    assert_eq!(judged(&[]).verdict, Verdict::Unknown);
}

fn turned(from: &str, next: &str, index: u64, records: &[(&str, &str, u64)], more: bool) -> [String; 2] {
    let asked = format!(r#""user":"u","from":"{from}""#);
    let records: Vec<String> = records
        .iter()
        .map(|(key, content, version)| {
            format!(r#"{{"key":"{key}","version":{},"payload":"{content}"}}"#, (1u64 << 48) + version)
        })
        .collect();
    let at = format!(r#"{{"incarnation":7,"group":0,"index":{index}}}"#);
    let turned = format!(
        r#""turned":{{"at":{at},"node":1,"records":[{}],"next":"{next}","more":{more},"kept":true}}"#,
        records.join(",")
    );
    [
        format!(r#"{{"process":2,"type":"invoke","time_ns":TIME,"f":"page","value":{{{asked}}}}}"#),
        format!(r#"{{"process":2,"type":"ok","time_ns":TIME,"f":"page","value":{{{asked},{turned}}}}}"#),
    ]
}

#[test]
fn a_page_may_leave_out_what_a_write_overwrote_that_nobody_saw_and_nothing_else() {
    const ROW: &str = "changes that a page left out";
    // Version 4 is nobody's that was answered; `hidden` is of unknown outcome, and overwritten before anybody looks.
    let history = |hidden: &str, of_four: Option<&str>, more: bool| {
        let mut lines = Vec::new();
        lines.extend(turned("", "t1", 1, &[], false));
        lines.extend(written("c/a", "a1", 1, 2));
        lines.extend(written("c/b", "b1", 2, 3));
        lines.extend(written("c/c", "c1", 3, 4));
        lines.extend(lost(hidden, "x"));
        lines.extend(of_four.into_iter().flat_map(|key| written(key, "k4", 4, 5)));
        lines.extend(written("c/d", "d1", 5, 6));
        lines.extend(turned("t1", "t2", 7, &[("c/b", "b1", 2)], more));
        lines.extend(written("c/a", "a2", 6, 8));
        lines.extend(written("c/e", "e2", 7, 9));
        by_hand(&lines)
    };
    let verdict = |ops: &[Op]| judged(ops).row(ROW).verdict;
    let report = judged(&history("c/a", None, true));
    assert_eq!(report.row(ROW).verdict, Verdict::Valid, "{report:#?}");
    assert_eq!(report.row("pages that tell of a write that nobody saw").measured, "1");
    assert_eq!(verdict(&history("c/e", None, true)), Verdict::Invalid, "it overwrote another record");
    assert_eq!(verdict(&history("c/a", Some("c/e"), true)), Verdict::Invalid, "no version is left for it");
    assert_eq!(verdict(&history("c/a", None, false)), Verdict::Invalid, "a whole page would have it itself");
}
