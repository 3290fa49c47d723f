//! Histories written by hand, and valid ones by the thousand, spoilt in the ways in which a bug would spoil them.

use super::*;
use crate::chance::Chance;
use crate::checker::Verdict;
use crate::checker::by_hand::{by_hand, delete, lost, written};
use crate::checker::paired::calls;
use crate::checker::simulation::{Plan, Simulation, simulate, valid};
use crate::history::calls::{Batch, Got, Read};
use crate::history::{Action, Op};

fn judged(ops: &[Op]) -> Report {
    let calls = calls(ops);
    assert!(calls.broken.is_empty(), "{:?}", calls.broken);
    check(&calls, &timeline::history(&calls))
}

#[test]
fn what_a_sound_cluster_does_is_valid() {
    for seed in 0..150 {
        let lost_percent = [0, 5, 30][seed as usize % 3];
        let plan = Plan { lost_percent, append: seed % 2 == 0, consumers: 1, ..Plan::small(seed) };
        let report = judged(&valid(plan));
        assert_eq!(report.verdict, Verdict::Valid, "{plan:?} {report:#?}");
    }
}

/// A way to spoil a history; false = there was nothing to spoil.
type Spoil = fn(&mut Simulation, &mut Chance) -> bool;

/// Operations that end as wanted.
fn ends<T>(
    ops: &mut [Op],
    chance: &mut Chance,
    wanted: impl Fn(&Op) -> bool,
    change: impl FnOnce(&mut Op) -> T,
) -> Option<T> {
    let mut places: Vec<usize> =
        (0..ops.len()).filter(|place| ops[*place].stage != Stage::Invoke && wanted(&ops[*place])).collect();
    if places.is_empty() {
        return None;
    }
    let place = places.swap_remove(chance.below(places.len()));
    Some(change(&mut ops[place]))
}

fn got(op: &mut Op) -> &mut Got {
    match &mut op.action {
        Action::Read(Read { got: Some(got), .. }) => got,
        other => panic!("{other:?}"),
    }
}

fn batch(op: &mut Op) -> &mut Batch {
    match &mut op.action {
        Action::Batch(batch) => batch,
        other => panic!("{other:?}"),
    }
}

fn shows_records(op: &Op) -> bool {
    matches!(&op.action, Action::Read(Read { got: Some(got), .. }) if !got.records.is_empty())
}

fn is_done(op: &Op) -> bool {
    matches!(&op.action, Action::Batch(Batch { done: Some(done), .. }) if !done.replayed && done.results.iter().all(|one| one.changed))
}

/// An acknowledged write that is not the user's first.
fn is_no_first(op: &Op) -> bool {
    matches!(&op.action, Action::Batch(Batch { done: Some(done), .. }) if is_done(op) && done.version > (1 << COUNTER_BITS) + 1)
}

/// The record's state before the one that was read, at the same position: an acknowledged write that is not there.
fn lost_write(simulation: &mut Simulation, chance: &mut Chance) -> bool {
    let mut ops = std::mem::take(&mut simulation.ops);
    let spoilt = ends(&mut ops, chance, shows_records, |op| {
        let Action::Read(read) = &mut op.action else { return false };
        let Some(got) = &mut read.got else { return false };
        let seen = &mut got.records[0];
        let before = (0..got.at.index).rev().map(|index| simulation.state(&read.user, index).get(&seen.key));
        match before.into_iter().find(|stored| stored.version != seen.version) {
            Some(stored) if stored.version != 0 => {
                (seen.version, seen.payload) = (stored.version, stored.content.map(str::to_owned));
            }
            _ => drop(got.records.remove(0)),
        }
        true
    });
    simulation.ops = ops;
    spoilt == Some(true)
}

/// A linearizable read answered from a state that was true once.
fn stale_read(simulation: &mut Simulation, chance: &mut Chance) -> bool {
    let mut ops = std::mem::take(&mut simulation.ops);
    let linearizable =
        |op: &Op| matches!(&op.action, Action::Read(read) if read.level == Level::Linearizable && read.got.is_some());
    let known = ops.clone();
    let spoilt = ends(&mut ops, chance, linearizable, |op| {
        let (process, end_ns) = (op.process, op.time_ns);
        let Action::Read(read) = &mut op.action else { return false };
        let began =
            known.iter().rfind(|one| one.process == process && one.stage == Stage::Invoke && one.time_ns < end_ns);
        let began_ns = began.map_or(0, |op| op.time_ns);
        let before = known.iter().filter(|one| one.stage == Stage::Ok && one.time_ns < began_ns).filter_map(|one| {
            match &one.action {
                Action::Batch(Batch { done: Some(done), .. }) => Some(done.at.index),
                _ => None,
            }
        });
        let Some(newest) = before.max() else { return false };
        read.got = Some(simulation.got(read, newest - 1));
        true
    });
    simulation.ops = ops;
    spoilt == Some(true)
}

const SPOILS: &[(&str, Spoil)] = &[
    ("lost write", lost_write),
    ("stale read", stale_read),
    ("foreign content", |simulation, chance| {
        ends(&mut simulation.ops, chance, shows_records, |op| got(op).records[0].payload = Some("x".into())).is_some()
    }),
    ("another version", |simulation, chance| {
        ends(&mut simulation.ops, chance, shows_records, |op| got(op).records[0].version += 1).is_some()
    }),
    ("acknowledged at another version", |simulation, chance| {
        ends(&mut simulation.ops, chance, is_done, |op| {
            let Some(done) = &mut batch(op).done else { return };
            done.version += 1;
            done.results.iter_mut().for_each(|result| result.version += 1);
        })
        .is_some()
    }),
    ("acknowledged at an older index", |simulation, chance| {
        ends(&mut simulation.ops, chance, is_no_first, |op| {
            let Some(done) = &mut batch(op).done else { return };
            done.at.index = 3;
        })
        .is_some()
    }),
    ("of another history", |simulation, chance| {
        ends(&mut simulation.ops, chance, is_done, |op| {
            let Some(done) = &mut batch(op).done else { return };
            done.at.incarnation += 1;
        })
        .is_some()
    }),
    ("said to have changed nothing", |simulation, chance| {
        ends(&mut simulation.ops, chance, is_done, |op| {
            let Some(done) = &mut batch(op).done else { return };
            done.results[0].changed = false;
        })
        .is_some()
    }),
    ("refused though its guard held", |simulation, chance| {
        let guarded = |op: &Op| {
            is_done(op)
                && matches!(&op.action, Action::Batch(batch) if batch.changes.iter().any(|one| one.guard.is_some()))
        };
        ends(&mut simulation.ops, chance, guarded, |op| {
            op.stage = Stage::Fail;
            let batch = batch(op);
            let place = batch.changes.iter().position(|one| one.guard.is_some()).unwrap_or(0);
            let Some(done) = batch.done.take() else { return };
            let version = match batch.changes[place].guard {
                Some(Guard::Version { version, .. }) => version,
                _ => 0,
            };
            let clash = crate::history::calls::Clash { place: place as u32, version, deleted: false };
            batch.refused = Some(crate::history::calls::Refused { at: Some(done.at), clashes: vec![clash] });
        })
        .is_some()
    }),
    ("passed though its guard did not hold", |simulation, chance| {
        let mut spoilt = None;
        let is_refused = |op: &Op| matches!(&op.action, Action::Batch(batch) if batch.refused.is_some());
        ends(&mut simulation.ops, chance, is_refused, |op| {
            op.stage = Stage::Ok;
            let batch = batch(op);
            spoilt = Some(batch.request_id.clone());
            let Some(refused) = batch.refused.take() else { return };
            let results = batch.changes.iter().map(|_| Changed { changed: true, version: (1 << 48) + 9_999 }).collect();
            let at = refused.at.unwrap_or(Point { incarnation: 7, group: 0, index: 0 });
            batch.done =
                Some(crate::history::calls::Done { at, version: (1 << 48) + 9_999, replayed: false, results, node: 1 });
        });
        spoilt.is_some()
    }),
    ("a repetition at another place", |simulation, chance| {
        let replayed = |op: &Op| matches!(&op.action, Action::Batch(Batch { done: Some(done), .. }) if done.replayed);
        ends(&mut simulation.ops, chance, replayed, |op| {
            let Some(done) = &mut batch(op).done else { return };
            done.at.index += 1;
        })
        .is_some()
    }),
    ("performed twice", |simulation, chance| {
        let replayed = |op: &Op| matches!(&op.action, Action::Batch(Batch { done: Some(done), .. }) if done.replayed);
        ends(&mut simulation.ops, chance, replayed, |op| {
            let Some(done) = &mut batch(op).done else { return };
            done.replayed = false;
        })
        .is_some()
    }),
    ("older than asked for", |simulation, chance| {
        let bounded = |op: &Op| matches!(&op.action, Action::Read(Read { level: Level::AtLeast(at), got: Some(_), .. }) if at.index > 20);
        let mut ops = std::mem::take(&mut simulation.ops);
        let spoilt = ends(&mut ops, chance, bounded, |op| {
            let Action::Read(read) = &mut op.action else { return };
            let Level::AtLeast(at) = read.level else { return };
            read.got = Some(simulation.got(read, at.index - 1));
        });
        simulation.ops = ops;
        spoilt.is_some()
    }),
    ("half a batch", |simulation, chance| {
        // A read of both keys of a batch that shows one of them as it was before.
        let mut ops = std::mem::take(&mut simulation.ops);
        let both = |op: &Op| match &op.action {
            Action::Read(Read { got: Some(got), .. }) => {
                got.records.len() > 1 && got.records.windows(2).any(|pair| pair[0].version == pair[1].version)
            }
            _ => false,
        };
        let spoilt = ends(&mut ops, chance, both, |op| {
            let Action::Read(read) = &mut op.action else { return };
            let Some(got) = &mut read.got else { return };
            let place = got.records.windows(2).position(|pair| pair[0].version == pair[1].version).unwrap_or(0);
            let before =
                (0..got.at.index).rev().map(|index| simulation.state(&read.user, index).get(&got.records[place].key));
            let version = got.records[place].version;
            match before.into_iter().find(|stored| stored.version != version) {
                Some(stored) if stored.version != 0 => {
                    (got.records[place].version, got.records[place].payload) =
                        (stored.version, stored.content.map(str::to_owned));
                }
                _ => drop(got.records.remove(place)),
            }
        });
        simulation.ops = ops;
        spoilt.is_some()
    }),
];

#[test]
fn every_way_to_spoil_a_history_is_seen() {
    for (name, spoil) in SPOILS {
        let mut spoilt = 0;
        for seed in 0..60 {
            let mut simulation = simulate(Plan::small(seed));
            if !spoil(&mut simulation, &mut Chance::new(seed, 1)) {
                continue;
            }
            spoilt += 1;
            let report = judged(&simulation.ops);
            assert_eq!(report.verdict, Verdict::Invalid, "{name}, seed {seed}: {report:#?}");
        }
        assert!(spoilt >= 20, "{name}: only {spoilt} histories could be spoilt");
    }
}

#[test]
fn a_lost_write_is_seen_among_writes_of_unknown_outcome() {
    let mut seen = 0;
    for seed in 0..60 {
        let mut simulation = simulate(Plan { lost_percent: 15, ..Plan::small(seed) });
        if lost_write(&mut simulation, &mut Chance::new(seed, 1)) {
            seen += usize::from(judged(&simulation.ops).verdict == Verdict::Invalid);
        }
    }
    // A write of unknown outcome may in truth have come after the read that misses it; all others are seen.
    assert!(seen >= 45, "{seen}");
}

#[test]
fn a_history_cut_off_anywhere_is_neither_valid_nor_blamed_on_the_cluster() {
    for seed in 0..40 {
        let whole = valid(Plan { lost_percent: 10, consumers: 1, ..Plan::small(seed) });
        let mut chance = Chance::new(seed, 2);
        for _ in 0..5 {
            let cut = &whole[..chance.below(whole.len())];
            let report = judged(cut);
            assert_eq!(report.verdict, Verdict::Unknown, "seed {seed}, {} lines: {report:#?}", cut.len());
        }
    }
}

#[test]
fn an_acknowledged_write_that_is_taken_out_of_a_history_is_missed() {
    for seed in 0..40 {
        let mut ops = valid(Plan::small(seed));
        let first = ops.iter().position(is_done).expect("a write");
        let Some(id) = ops[first].action.request_id().map(str::to_owned) else { continue };
        ops.retain(|op| op.action.request_id() != Some(&id));
        assert_eq!(judged(&ops).verdict, Verdict::Invalid, "seed {seed}");
    }
}

#[test]
fn nothing_done_is_no_pass() {
    assert_eq!(judged(&[]).verdict, Verdict::Unknown);
}

const FIRST: u64 = 1 << COUNTER_BITS;

/// A history by hand, of one user; its lines are a microsecond apart.
#[derive(Default)]
struct Lines(Vec<Op>);

impl Lines {
    fn line(&mut self, process: &str, stage: &str, f: &str, value: String, rest: &str) {
        let time_ns = 1000 * (self.0.len() + 1);
        let value = format!(r#"{{"user":"r0-0",{value}}}"#);
        let text =
            format!(r#"{{"process":{process},"type":"{stage}","time_ns":{time_ns},"f":"{f}","value":{value}{rest}}}"#);
        self.0.push(serde_json::from_str::<Op>(&text).expect(&text));
    }

    /// One write and its end; `end` is the rest of its value.
    fn write(&mut self, process: u32, stage: &str, id: u32, changes: &str, end: &str) {
        let asked = format!(r#""request_id":"00000000-0000-0000-0000-00000000000{id}","changes":[{changes}]"#);
        let process = process.to_string();
        self.line(&process, "invoke", "batch", asked.clone(), "");
        let error = match stage {
            "info" => r#","error":{"reason":"OUTCOME_UNKNOWN","message":"no answer"}"#,
            "fail" => r#","error":{"reason":"VERSION_MISMATCH","message":"a guard failed"}"#,
            _ => "",
        };
        self.line(&process, stage, "batch", asked + end, error);
    }

    /// One that was acknowledged.
    fn done(&mut self, id: u32, changes: &str, index: u64, version: u64) {
        let results = format!(r#"[{{"changed":true,"version":{version}}}]"#);
        let end = format!(r#","done":{{{},"version":{version},"replayed":false,"results":{results}}}"#, on_node(index));
        self.write(0, "ok", id, changes, &end);
    }

    /// One whose guard failed by what is at `version`.
    fn refused(&mut self, id: u32, changes: &str, index: u64, version: u64) {
        self.refused_by(id, changes, index, version, false);
    }

    fn refused_by(&mut self, id: u32, changes: &str, index: u64, version: u64, deleted: bool) {
        let clash = format!(r#"{{"place":0,"version":{version},"deleted":{deleted}}}"#);
        self.write(0, "fail", id, changes, &format!(r#","refused":{{{},"clashes":[{clash}]}}"#, at(index)));
    }

    /// A linearizable read; `records` of what it found.
    fn read(&mut self, process: &str, keys: &str, index: u64, records: &str) {
        let asked = format!(r#""keys":[{keys}],"level":"linearizable""#);
        self.line(process, "invoke", "read", asked.clone(), "");
        let got = format!(r#","got":{{{},"records":[{records}]}}"#, on_node(index));
        self.line(process, "ok", "read", asked + &got, "");
    }
}

fn at(index: u64) -> String {
    format!(r#""at":{{"incarnation":1,"group":0,"index":{index}}}"#)
}

fn on_node(index: u64) -> String {
    format!(r#"{},"node":1"#, at(index))
}

fn record(key: &str, version: u64, payload: &str) -> String {
    format!(r#"{{"key":"{key}","version":{version},"payload":"{payload}"}}"#)
}

const K1: &str = r#""notes/k1""#;

/// A record is written, deleted by `delete` with an unknown end, and written again where nothing may be there.
fn unseen_delete(delete: &str) -> Verdict {
    let mut lines = Lines::default();
    lines.done(1, r#"{"key":"notes/k1","put":"0.1"}"#, 3, FIRST + 1);
    lines.write(1, "info", 2, &format!(r#"{{"key":"{delete}"}}"#), "");
    lines.done(3, r#"{"key":"notes/k1","put":"0.2","guard":"absent"}"#, 5, FIRST + 3);
    lines.read("\"reader\"", K1, 6, &record("notes/k1", FIRST + 3, "0.2"));
    judged(&lines.0).verdict
}

#[test]
fn a_write_that_nobody_saw_explains_an_answer_only_if_it_fits() {
    assert_eq!(unseen_delete("notes/k1"), Verdict::Valid);
    assert_eq!(unseen_delete("notes/k2"), Verdict::Unknown, "this one leaves the record where it was");
}

/// As [`unseen_delete`], with another record written after the delete; `between` is what is told after that.
fn after_the_delete(began_late: bool, between: impl FnOnce(&mut Lines)) -> Report {
    let mut lines = Lines::default();
    lines.done(1, r#"{"key":"notes/k1","put":"0.1"}"#, 3, FIRST + 1);
    let delete = r#"{"key":"notes/k1"}"#;
    if !began_late {
        lines.write(1, "info", 2, delete, "");
    }
    lines.done(3, r#"{"key":"notes/k2","put":"0.2"}"#, 5, FIRST + 3);
    if began_late {
        lines.write(1, "info", 2, delete, "");
    }
    between(&mut lines);
    lines.done(4, r#"{"key":"notes/k1","put":"0.3","guard":"absent"}"#, 7, FIRST + 4);
    lines.read("\"reader\"", K1, 9, &record("notes/k1", FIRST + 4, "0.3"));
    judged(&lines.0)
}

#[test]
fn a_write_that_nobody_saw_is_put_where_all_other_answers_agree_with_it() {
    const DOUBT: &str = "answers that no single write of unknown outcome explains";
    let verdict = |report: &Report| report.row(DOUBT).verdict;
    let fine = after_the_delete(false, |_| {});
    assert_eq!(fine.verdict, Verdict::Valid, "{fine:#?}");
    // Somebody read the record where the other one was written: it was not deleted then.
    let alive = |lines: &mut Lines| lines.read("2", K1, 5, &record("notes/k1", FIRST + 1, "0.1"));
    let read = after_the_delete(false, alive);
    assert_eq!((read.verdict, verdict(&read)), (Verdict::Unknown, Verdict::Unknown), "{read:#?}");
    // So did a guard that failed.
    let refused = after_the_delete(false, |lines| {
        lines.refused(5, r#"{"key":"notes/k1","put":"0.4","guard":"absent"}"#, 6, FIRST + 1);
    });
    assert_eq!((refused.verdict, verdict(&refused)), (Verdict::Unknown, Verdict::Unknown), "{refused:#?}");
    // A delete that began when a later version was known did not take an earlier one, and no other write can have.
    let late = after_the_delete(true, |_| {});
    assert_eq!(verdict(&late), Verdict::Unknown, "{late:#?}");
    assert_eq!(late.row("versions that no write can have taken").verdict, Verdict::Invalid);
}

#[test]
fn a_write_that_nobody_saw_explains_one_version_only() {
    let mut lines = Lines::default();
    lines.done(1, r#"{"key":"notes/k1","put":"0.1"}"#, 3, FIRST + 1);
    lines.write(1, "info", 2, r#"{"key":"notes/k1"}"#, "");
    lines.write(2, "info", 3, r#"{"key":"notes/k2"}"#, "");
    lines.done(4, r#"{"key":"notes/k1","put":"0.2","guard":"absent"}"#, 5, FIRST + 3);
    lines.done(5, r#"{"key":"notes/k1","put":"0.3","guard":"absent"}"#, 7, FIRST + 5);
    lines.read("\"reader\"", K1, 9, &record("notes/k1", FIRST + 5, "0.3"));
    let report = judged(&lines.0);
    assert_eq!(report.row("answers that no single write of unknown outcome explains").measured, "1", "{report:#?}");
}

#[test]
fn a_request_that_its_own_effect_refuses_was_forgotten() {
    const ROW: &str = "requests that were refused after their own effect";
    let put = r#"{"key":"notes/k1","put":"0.1","guard":"absent"}"#;
    // It was seen, and asked for again.
    let seen = |refused_at: u64, version: u64| {
        let mut lines = Lines::default();
        lines.write(0, "info", 1, put, "");
        lines.done(2, r#"{"key":"notes/k2","put":"0.2"}"#, 5, FIRST + 2);
        lines.read("2", K1, 6, &record("notes/k1", FIRST + 1, "0.1"));
        lines.refused(1, put, refused_at, version);
        lines.read("\"reader\"", K1, 9, &record("notes/k1", FIRST + 1, "0.1"));
        judged(&lines.0)
    };
    let forgotten = seen(7, FIRST + 1);
    assert_eq!(forgotten.row(ROW).verdict, Verdict::Invalid, "{forgotten:#?}");
    // What was refused may take effect later: what the guard failed by is gone then.
    let mut lines = Lines::default();
    lines.done(2, r#"{"key":"notes/k1","put":"0.2"}"#, 3, FIRST + 1);
    lines.write(0, "info", 1, put, "");
    lines.refused(1, put, 4, FIRST + 1);
    lines.done(3, r#"{"key":"notes/k1"}"#, 5, FIRST + 2);
    lines.read("\"reader\"", K1, 9, &record("notes/k1", FIRST + 3, "0.1"));
    let late = judged(&lines.0);
    assert_eq!(late.verdict, Verdict::Valid, "{late:#?}");
    // Nobody knows which of two deletes left a tombstone.
    let (mut lines, delete) = (Lines::default(), r#"{"key":"notes/k1","guard":"exists"}"#);
    lines.done(2, r#"{"key":"notes/k1","put":"0.2"}"#, 3, FIRST + 1);
    lines.write(0, "info", 1, delete, "");
    lines.write(1, "info", 3, r#"{"key":"notes/k1"}"#, "");
    let tombstone = format!(r#"{{"key":"notes/k1","version":{}}}"#, FIRST + 2);
    lines.read("2", K1, 5, &tombstone);
    lines.refused_by(1, delete, 7, FIRST + 2, true);
    lines.read("\"reader\"", K1, 9, &tombstone);
    let guessed = judged(&lines.0);
    assert_eq!(guessed.verdict, Verdict::Valid, "{guessed:#?}");
}

#[test]
fn answers_of_another_history_or_group_are_seen_whatever_was_asked() {
    let history = |change: &dyn Fn(&mut Point)| {
        let mut lines = Lines::default();
        lines.done(1, r#"{"key":"notes/k1","put":"0.1"}"#, 3, FIRST + 1);
        lines.read("2", K1, 4, &record("notes/k1", FIRST + 1, "0.1"));
        lines.refused(2, r#"{"key":"notes/k1","put":"0.2","guard":"absent"}"#, 5, FIRST + 1);
        lines.read("\"reader\"", K1, 9, &record("notes/k1", FIRST + 1, "0.1"));
        let mut all = vec![judged(&lines.0)];
        for place in 0..lines.0.len() {
            let mut ops = lines.0.clone();
            match &mut ops[place].action {
                Action::Read(Read { got: Some(got), .. }) => change(&mut got.at),
                Action::Batch(Batch { refused: Some(refused), .. }) => refused.at.iter_mut().for_each(change),
                _ => continue,
            }
            all.push(judged(&ops));
        }
        all
    };
    let incarnation = history(&|at| at.incarnation += 1);
    let group = history(&|at| at.group += 1);
    for (all, row) in [
        (incarnation, "answers of a second history: nothing was restored"),
        (group, "answers of another group than the user's"),
    ] {
        assert_eq!(all[0].verdict, Verdict::Valid, "{:#?}", all[0]);
        assert_eq!(all.len(), 4);
        assert!(all[1..].iter().all(|report| report.row(row).verdict == Verdict::Invalid), "{all:#?}");
    }
}

#[test]
fn a_delete_that_changed_nothing_tells_of_the_delete_that_nobody_saw() {
    let history = |hidden: [String; 2]| {
        let mut lines = Vec::new();
        lines.extend(written("c/a", "a1", 1, 2));
        lines.extend(hidden);
        lines.extend(written("c/b", "b1", 3, 4));
        // The record is gone already, since version 2; the head is 3.
        lines.extend(delete("again", "c/a", Some((2, 5))));
        lines.extend(written("c/a", "a2", 4, 6));
        by_hand(&lines)
    };
    let report = judged(&history(delete("lost", "c/a", None)));
    assert!(report.verdict != Verdict::Invalid, "{report:#?}");
    assert_eq!(judged(&history(delete("lost", "c/c", None))).verdict, Verdict::Invalid, "it deleted another record");
    assert_eq!(judged(&history(lost("c/a", "x"))).verdict, Verdict::Invalid, "it wrote, and deleted nothing");
}

/// Which delete left the tombstone is not told; the version that is missing earlier can only be that of the first.
#[test]
fn of_two_deletes_that_nobody_saw_each_is_found_where_only_it_can_be() {
    let history = |tombstone: u64| {
        let mut lines = Vec::new();
        lines.extend(written("c/a", "a1", 1, 2));
        lines.extend(delete("early", "c/a", None));
        lines.extend(written("c/a", "a2", 3, 4));
        lines.extend(delete("late", "c/a", None));
        lines.extend(written("c/b", "b1", 5, 6));
        lines.extend(delete("again", "c/a", Some((tombstone, 7))));
        lines.extend(written("c/a", "a3", 6, 8));
        by_hand(&lines)
    };
    let report = judged(&history(4));
    assert!(report.verdict != Verdict::Invalid, "{report:#?}");
    assert_eq!(judged(&history(2)).verdict, Verdict::Invalid, "c/a was written after version 2");
}
