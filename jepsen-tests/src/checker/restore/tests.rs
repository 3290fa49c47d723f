//! Valid histories by the thousand with restores in them, and restores spoilt in the ways in which a bug would.

use super::*;
use crate::checker::Verdict;
use crate::checker::faults;
use crate::checker::paired::calls;
use crate::checker::simulation::{Plan, Simulation, simulate};
use crate::checker::timeline;
use crate::history::calls::{Batch, DeviceMet, Kept, Point, Restored, RestoredUser, Seen, TokenSaid};
use crate::history::{Action, Failure, FaultNote, Named, Op, Process, Stage};

const INCARNATION: u64 = 7;

fn judged(ops: &[Op]) -> Report {
    let calls = calls(ops);
    assert!(calls.broken.is_empty(), "{:?}", calls.broken);
    check(&calls, &timeline::history(&calls), true, &faults::stood(ops, "object-store"))
}

/// The greatest position that anybody was told of before this place of the history.
fn told(ops: &[Op]) -> u64 {
    let done = |op: &Op| match &op.action {
        Action::Batch(Batch { done: Some(done), .. }) => Some(done.at.index),
        _ => None,
    };
    ops.iter().filter_map(done).max().unwrap_or(0)
}

/// What a restore up to `index` shows when its state is that of `of`.
fn restored(simulation: &Simulation, round: u32, last: bool, index: u64, of: u64) -> Restored {
    let user = |number: usize| {
        let user = format!("u{number}");
        let state = simulation.state(&user, of);
        let seen = |(key, stored): (&&str, &crate::checker::model::Stored<'_>)| Seen {
            key: (*key).to_owned(),
            version: stored.version,
            payload: stored.content.map(str::to_owned),
        };
        let records: Vec<Seen> = state.stored.iter().map(seen).collect();
        let keys = (0..4).map(crate::checker::simulation::key).collect();
        RestoredUser { user, keys, records }
    };
    let at = Some(Point { incarnation: INCARNATION, group: 0, index });
    let (began, users) = (Some(INCARNATION + u64::from(round)), (0..2).map(user).collect());
    Restored {
        round,
        last,
        at,
        began,
        loss_window_ms: None,
        snapshot: 0,
        killed: last,
        users,
        device: Some(device(index)),
        digests: NODES,
        took_ms: 1,
        exit: None,
    }
}

/// It wrote at this index, which comes back, and at the next one, which does not.
fn device(index: u64) -> DeviceMet {
    let (first, last) = (Kept { index, version: 1 }, Kept { index: index + 1, version: 2 });
    DeviceMet {
        user: "d1".into(),
        kept: vec![first, last],
        tokens: vec![TokenSaid::Continues { records: 0 }, TokenSaid::RolledBack { common: 1 }],
        last_again: Kept { index: 3, version: (1 << 48) + 2 },
        replayed: false,
    }
}

fn add(ops: &mut Vec<Op>, place: usize, restored: Restored) {
    let time_ns = ops[place.min(ops.len() - 1)].time_ns;
    let asked = Restored { at: None, users: Vec::new(), digests: 0, ..restored.clone() };
    let op = |stage, restored| Op {
        process: Process::Named(Named::Restorer),
        stage,
        time_ns,
        action: Action::Restored(restored),
        reply: None,
        error: None,
    };
    ops.insert(place, op(Stage::Ok, restored));
    ops.insert(place, op(Stage::Invoke, asked));
}

/// A history with two restores, made by `make` from the round and the position that each is to declare.
fn with_restores(seed: u64, make: impl Fn(&Simulation, u32, bool, u64) -> Restored) -> Vec<Op> {
    let plan = Plan { lost_percent: [0, 5, 20][seed as usize % 3], ..Plan::small(seed) };
    let simulation = simulate(plan);
    let mut ops = simulation.ops.clone();
    let middle = ops.len() / 2 + seed as usize % 20;
    let (half, whole) = (told(&ops[..middle]), told(&ops));
    let end = ops.len();
    add(&mut ops, end, make(&simulation, 2, true, whole));
    add(&mut ops, middle, make(&simulation, 1, false, half));
    ops
}

#[test]
fn what_a_sound_restore_shows_is_valid() {
    for seed in 0..150 {
        let report =
            judged(&with_restores(seed, |simulation, round, last, at| restored(simulation, round, last, at, at)));
        assert_eq!(report.verdict, Verdict::Valid, "{seed}: {report:#?}");
    }
}

#[test]
fn a_state_that_ends_before_its_recovery_point_is_seen() {
    let mut seen = 0;
    for seed in 0..60 {
        let short = |simulation: &Simulation, round, last, at: u64| restored(simulation, round, last, at, at - 4);
        let report = judged(&with_restores(seed, short));
        seen += usize::from(report.row("restored states that the history contradicts").verdict == Verdict::Invalid);
    }
    // Four entries may all be without an effect, or of writes that nobody heard of.
    assert!(seen >= 58, "{seen} of 60");
}

#[test]
fn a_state_beyond_its_recovery_point_is_seen() {
    let mut seen = 0;
    for seed in 0..60 {
        let long = |simulation: &Simulation, round, last, at: u64| restored(simulation, round, last, at - 4, at);
        let report = judged(&with_restores(seed, long));
        seen += usize::from(report.row("restored states that the history contradicts").verdict == Verdict::Invalid);
    }
    assert!(seen >= 58, "{seen} of 60");
}

#[test]
fn contents_that_nobody_wrote_or_that_were_refused_are_seen() {
    let ops = with_restores(3, |simulation, round, last, at| {
        let mut restored = restored(simulation, round, last, at, at);
        restored.users[0].records[0].payload = Some("nobody's".into());
        restored
    });
    assert_eq!(judged(&ops).row("restored, never written").verdict, Verdict::Invalid);
    let mut refused = simulate(Plan::small(3)).ops.into_iter().filter_map(|op| match op.action {
        Action::Batch(batch) if op.stage == Stage::Fail && batch.refused.is_some() => {
            let change = batch.changes.iter().find(|change| change.put.is_some())?;
            Some((batch.user.clone(), change.key.clone(), change.put.clone()))
        }
        _ => None,
    });
    let (user, key, content) = refused.next().expect("a write was refused");
    let ops = with_restores(3, |simulation, round, last, at| {
        let mut restored = restored(simulation, round, last, at, at);
        let own = restored.users.iter_mut().find(|one| one.user == user).expect("a user");
        own.records.retain(|seen| seen.key != key);
        own.records.push(Seen { key: key.clone(), version: 1, payload: content.clone() });
        restored
    });
    assert_eq!(judged(&ops).row("restored, though reported as failed").verdict, Verdict::Invalid);
}

#[test]
fn an_archive_that_stays_behind_goes_back_or_cannot_be_restored_is_seen() {
    let behind = |simulation: &Simulation, round, last, at: u64| {
        let at = if last { at - 3 } else { at };
        restored(simulation, round, last, at, at)
    };
    assert_eq!(judged(&with_restores(6, behind)).broken(), ["acknowledged, not offsite in the end"]);
    let back = |simulation: &Simulation, round: u32, last: bool, at: u64| {
        let at = if last { 5 } else { at };
        restored(simulation, round, last, at, at)
    };
    assert_eq!(judged(&with_restores(6, back)).row("recovery points that went back").verdict, Verdict::Invalid);
    let mut ops = with_restores(6, |simulation, round, last, at| restored(simulation, round, last, at, at));
    let end = ops.iter_mut().find(|op| matches!(&op.action, Action::Restored(one) if one.at.is_some())).expect("one");
    let Action::Restored(restored) = &mut end.action else { panic!("{end:?}") };
    (restored.at, restored.users) = (None, Vec::new());
    end.stage = Stage::Fail;
    end.error = Some(Failure { reason: "RESTORE_FAILED".into(), message: "exit 9".into() });
    assert_eq!(judged(&ops).row("restores that failed").evidence, ["restore 1: exit 9"]);
}

#[test]
fn what_a_store_that_errs_refuses_or_hides_is_explained_while_it_errs_and_by_the_codes_for_that() {
    const FAILED: &str = "restores that failed";
    // The first of two restores fails, or shows less than an earlier one, while a fault of this name stands.
    let while_standing = |fault: &str, exit: Option<i32>, stands_at: usize| {
        let mut ops = with_restores(6, |simulation, round, last, at| restored(simulation, round, last, at, at));
        let place = ops.iter().position(|op| matches!(op.action, Action::Restored(_))).expect("a restore");
        let Action::Restored(restored) = &mut ops[place + 1].action else { panic!("an end") };
        (restored.at, restored.users, restored.exit) = (None, Vec::new(), exit);
        ops[place + 1].stage = Stage::Fail;
        ops[place + 1].error = Some(Failure { reason: "RESTORE_FAILED".into(), message: "it errs".into() });
        let note = FaultNote { fault: fault.into(), round: 1, installed: true, ..FaultNote::default() };
        let nemesis = |stage, action, time_ns| Op {
            process: Process::Named(Named::Nemesis),
            stage,
            time_ns,
            action,
            reply: None,
            error: None,
        };
        let time = |place: usize| ops[place.min(ops.len() - 1)].time_ns;
        let (began, ended) = (time(place + stands_at).saturating_sub(1), time(place + stands_at) + 1);
        let heal = nemesis(Stage::Info, Action::Heal(note.clone()), ended);
        ops.insert(0, nemesis(Stage::Invoke, Action::Fault(note), began));
        ops.push(heal);
        judged(&ops).row(FAILED).verdict
    };
    for exit in [5, 9] {
        assert_eq!(while_standing("object-store", Some(exit), 0), Verdict::Valid);
        assert_eq!(while_standing("object-store", Some(exit), 40), Verdict::Invalid, "it errs no more");
        assert_eq!(while_standing("kill", Some(exit), 0), Verdict::Invalid);
    }
    for exit in [Some(1), Some(8), None] {
        assert_eq!(while_standing("object-store", exit, 0), Verdict::Invalid, "{exit:?}");
    }
}

#[test]
fn nodes_of_a_restored_cluster_must_be_equal() {
    let ops = with_restores(6, |simulation, round, last, at| Restored {
        digests: 2,
        ..restored(simulation, round, last, at, at)
    });
    assert_eq!(judged(&ops).broken(), ["restored clusters whose nodes differ"]);
}

#[test]
fn a_history_that_ends_within_a_restore_is_unknown() {
    let whole = with_restores(6, |simulation, round, last, at| restored(simulation, round, last, at, at));
    let began = whole.iter().rposition(|op| matches!(op.action, Action::Restored(_))).expect("a restore");
    let report = judged(&whole[..began]);
    assert_eq!(report.verdict, Verdict::Unknown, "{report:#?}");
    assert_eq!(report.row("restores that never ended").evidence, ["restore 2"]);
}

#[test]
fn a_restored_cluster_must_begin_a_history_of_its_own() {
    const ROW: &str = "restored clusters without a history of their own";
    let named = |name: fn(u32) -> Option<u64>| {
        judged(&with_restores(6, |simulation, round, last, at| Restored {
            began: name(round),
            ..restored(simulation, round, last, at, at)
        }))
    };
    assert_eq!(named(|round| Some(INCARNATION + u64::from(round))).verdict, Verdict::Valid);
    assert_eq!(named(|_| Some(INCARNATION)).row(ROW).measured, "2");
    assert_eq!(named(|_| Some(INCARNATION + 1)).row(ROW).measured, "1", "two of them share one");
    assert_eq!(named(|_| None).broken(), ["restored clusters that name no history"]);
}

#[test]
fn a_user_or_a_record_that_nobody_looked_for_is_missed() {
    const ROW: &str = "acknowledged records that nobody looked for";
    let without = |spoil: fn(&mut Restored)| {
        judged(&with_restores(6, |simulation, round, last, at| {
            let mut restored = restored(simulation, round, last, at, at);
            spoil(&mut restored);
            restored
        }))
    };
    assert_eq!(without(|_| {}).row(ROW).verdict, Verdict::Valid);
    assert_eq!(without(|restored| drop(restored.users.remove(0))).broken(), [ROW]);
    let key = |restored: &mut Restored| {
        let user = &mut restored.users[0];
        let key = user.keys.remove(0);
        user.records.retain(|seen| seen.key != key);
    };
    assert_eq!(without(key).broken(), [ROW]);
}

#[test]
fn what_is_lost_must_be_younger_than_the_restore_says() {
    const ROW: &str = "lost, though older than the restore says that anything lost can be";
    // The first restore lacks what was acknowledged up to a while before it began.
    let history = |named_ms: u64| {
        with_restores(6, |simulation, round, last, at| {
            let index = if last { at } else { at / 2 };
            Restored { loss_window_ms: Some(named_ms), ..restored(simulation, round, last, index, index) }
        })
    };
    let widest = judged(&history(1_000_000));
    assert_eq!(widest.verdict, Verdict::Valid, "{widest:#?}");
    let lag_ms: u64 =
        widest.row("age of the oldest of them when its restore began, in ms").measured.parse().expect("a number");
    assert!(lag_ms > 60, "{lag_ms}");
    assert_eq!(judged(&history(lag_ms)).verdict, Verdict::Valid);
    let short = history(lag_ms - 60);
    assert_eq!(judged(&short).broken(), [ROW]);
    // Where the nodes' clocks jump, their ages are not the history's.
    let calls = calls(&short);
    assert_eq!(check(&calls, &timeline::history(&calls), false, &[]).verdict, Verdict::Valid);
}

#[test]
fn without_a_restore_nothing_is_proved() {
    let report = judged(&simulate(Plan::small(1)).ops);
    assert_eq!(report.verdict, Verdict::Unknown);
    // One of a cluster that had acknowledged nothing yet proves as little.
    let early = with_restores(1, |simulation, round, last, _| restored(simulation, round, last, 5, 5));
    assert_eq!(judged(&early).row("acknowledged writes that a restore must show").verdict, Verdict::Unknown);
}

#[test]
fn a_device_that_is_told_wrongly_is_found() {
    let told = "devices that a restored cluster told wrongly from where to go on";
    let known = "requests that a restored cluster should know, or should not";
    let with = |spoil: &dyn Fn(&mut DeviceMet)| {
        let report = judged(&with_restores(6, |simulation, round, last, at| {
            let mut met = device(at);
            spoil(&mut met);
            Restored { device: Some(met), ..restored(simulation, round, last, at, at) }
        }));
        report.broken().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(with(&|_| ()).is_empty());
    assert_eq!(with(&|met| met.tokens[0] = TokenSaid::RolledBack { common: 0 }), [told], "it is not lost");
    assert_eq!(
        with(&|met| met.tokens[1] = TokenSaid::Continues { records: 0 }),
        [told],
        "a loss that nobody is told of"
    );
    assert_eq!(
        with(&|met| met.tokens[1] = TokenSaid::RolledBack { common: 2 }),
        [told],
        "too little is uploaded again"
    );
    assert_eq!(with(&|met| met.tokens[1] = TokenSaid::Other("UnknownIncarnation".into())), [told]);
    assert_eq!(with(&|met| met.replayed = true), [known], "an answer of a history that is lost");
    let whole = |met: &mut DeviceMet| {
        met.kept[1].index = met.kept[0].index;
        met.tokens = vec![TokenSaid::Continues { records: 1 }, TokenSaid::Continues { records: 0 }];
        (met.last_again, met.replayed) = (met.kept[1], true);
    };
    assert!(with(&whole).is_empty());
    assert_eq!(with(&|met| (whole(met), met.replayed = false).0), [known], "it took effect twice");
    assert_eq!(with(&|met| (whole(met), met.last_again.version = 9).0), [known], "another answer than the first");
}
