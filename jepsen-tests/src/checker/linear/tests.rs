//! Small histories against all orders there are, valid ones by the thousand, and the ways in which they are spoilt.

use super::*;
use crate::chance::Chance;
use crate::checker::Verdict;
use crate::checker::paired::calls;
use crate::checker::simulation::{Plan, valid};
use crate::history::calls::Read;
use crate::history::{Action, Op};

fn operation(began_ns: u64, ended_ns: u64, does: Does) -> Operation {
    Operation { began_ns, ended_ns, does }
}

const NEVER: u64 = u64::MAX;

#[track_caller]
fn is_valid(operations: &[Operation], expected: bool) {
    let found = search(operations, 10_000);
    assert_eq!(found == Found::Order, expected, "{found:?} {operations:?}");
}

#[test]
fn histories_written_by_hand() {
    let put = |began, ended, what| operation(began, ended, Does::Write(what));
    let find = |began, ended, what| operation(began, ended, Does::Read(what));
    is_valid(&[], true);
    is_valid(&[find(1, 2, 0)], true);
    is_valid(&[find(1, 2, 7)], false);
    is_valid(&[put(1, 2, 7), find(3, 4, 7)], true);
    // Stale: the write had ended before.
    is_valid(&[put(1, 2, 7), find(3, 4, 0)], false);
    is_valid(&[put(1, 4, 7), find(2, 3, 0)], true);
    // Once it was seen it stays seen.
    is_valid(&[put(1, 9, 7), find(2, 3, 7), find(4, 5, 0)], false);
    is_valid(&[put(1, 9, 7), find(2, 3, 0), find(4, 5, 7)], true);
    // Unknown: it may happen late, or never, but not before it began, and not twice.
    is_valid(&[put(1, NEVER, 7), find(2, 3, 0), find(9, 10, 7)], true);
    is_valid(&[put(1, NEVER, 7), find(2, 3, 0)], true);
    is_valid(&[find(1, 2, 7), put(3, NEVER, 7)], false);
    is_valid(&[put(1, NEVER, 7), put(2, 3, 8), find(4, 5, 7), find(6, 7, 8)], false);
    // Guards.
    let swap = |began, ended, found, what| operation(began, ended, Does::Swap(found, what));
    is_valid(&[put(1, 2, 7), swap(3, 4, 7, 8), find(5, 6, 8)], true);
    is_valid(&[put(1, 2, 7), swap(3, 6, 7, 8), swap(4, 5, 7, 9)], false);
    is_valid(&[put(1, 2, 7), swap(3, 6, 7, 8), operation(4, 5, Does::Not(7))], true);
    is_valid(&[put(1, 2, 7), operation(4, 5, Does::Not(7))], false);
    is_valid(&[operation(4, 5, Does::Something)], false);
    is_valid(&[operation(4, 5, Does::Replace(7))], false);
    is_valid(&[put(1, 2, 7), operation(4, 5, Does::Replace(8)), find(6, 7, 8)], true);
    // What nobody saw may be why a guard failed.
    is_valid(&[put(1, 2, 7), put(3, NEVER, 8), operation(4, 5, Does::Not(7)), find(6, 7, 7)], true);
}

#[test]
fn a_search_without_room_gives_up_and_that_is_no_pass() {
    let all: Vec<Operation> = (1..9).map(|what| operation(1, 100, Does::Write(what))).collect();
    let mut all = all;
    all.push(operation(101, 102, Does::Read(9)));
    assert_eq!(search(&all, 50), Found::GaveUp);
    assert!(matches!(search(&all, 1_000_000), Found::None(_)));
}

/// Whether any order at all explains a history: tries them all.
fn by_force(operations: &[Operation]) -> bool {
    fn place(operations: &[Operation], placed: &mut Vec<bool>, state: u32) -> bool {
        let open = |place: &usize, placed: &[bool]| !placed[*place];
        let left: Vec<usize> = (0..operations.len()).filter(|one| open(one, placed)).collect();
        if left.iter().all(|one| operations[*one].ended_ns == NEVER) {
            return true;
        }
        let first_end = left.iter().map(|one| operations[*one].ended_ns).min().unwrap_or(NEVER);
        left.into_iter().any(|one| {
            let Some(after) = operations[one].does.step(state).filter(|_| operations[one].began_ns <= first_end) else {
                return false;
            };
            placed[one] = true;
            let explains = place(operations, placed, after);
            placed[one] = false;
            explains
        })
    }
    place(operations, &mut vec![false; operations.len()], 0)
}

#[test]
fn every_small_history_is_judged_as_all_orders_judge_it() {
    let (mut yes, mut no) = (0, 0);
    for seed in 0..20_000 {
        let mut chance = Chance::new(seed, 0);
        let mut operations = Vec::new();
        for number in 1..=(2 + chance.below(5) as u32) {
            let began_ns = chance.below(12) as u64 * 10;
            let other = chance.below(5) as u32;
            let does = match chance.below(8) {
                0..3 => Does::Write(number),
                3 => Does::Swap(other, number),
                4 => Does::Not(other.max(1)),
                5 if chance.percent(50) => Does::Replace(number),
                _ => Does::Read(other),
            };
            // Only a write can be of unknown outcome; what a failed read found nobody knows.
            let never = does.puts().is_some() && chance.percent(25);
            // No two moments are the same.
            let began_ns = began_ns + u64::from(number);
            let ended_ns = if never { NEVER } else { began_ns + 1 + chance.below(6) as u64 * 10 };
            operations.push(operation(began_ns * 2, ended_ns.saturating_mul(2).saturating_add(1), does));
        }
        let mut exact = operations.clone();
        exact.iter_mut().filter(|one| one.ended_ns > 1_000_000).for_each(|one| one.ended_ns = NEVER);
        let expected = by_force(&exact);
        let found = search(&exact, 1_000_000);
        let has_doubt = exact.iter().any(|one| matches!(one.does, Does::Not(_) | Does::Something | Does::Replace(_)))
            && exact.iter().any(|one| one.ended_ns == NEVER);
        // A refusal that a write left out may explain is not judged: then more passes than all orders let pass.
        assert!(found == Found::Order || !expected, "seed {seed}: {exact:?}");
        assert!(found != Found::Order || expected || has_doubt, "seed {seed}: {exact:?}");
        if expected { yes += 1 } else { no += 1 }
    }
    assert!(yes > 2_000 && no > 2_000, "{yes} {no}");
}

fn judged(ops: &[Op]) -> Report {
    check(&calls(ops))
}

#[test]
fn what_a_sound_cluster_does_has_an_order() {
    for seed in 0..100 {
        let lost_percent = [0, 5, 30][seed as usize % 3];
        let plan = Plan { lost_percent, append: seed % 2 == 0, steps: 1200, ..Plan::small(seed) };
        let report = judged(&valid(plan));
        assert_eq!(report.verdict, Verdict::Valid, "{plan:?} {report:#?}");
    }
}

#[test]
fn a_stale_read_has_no_place_in_any_order() {
    let mut spoilt = 0;
    for seed in 0..60 {
        let mut ops = valid(Plan::small(seed));
        // The last read of everything shows one record as its very first write left it.
        let mut first: HashMap<(String, String), String> = HashMap::new();
        for op in &ops {
            if let (Action::Batch(batch), Stage::Ok) = (&op.action, op.stage) {
                for change in &batch.changes {
                    if let Some(content) = &change.put {
                        first.entry((batch.user.clone(), change.key.clone())).or_insert(content.clone());
                    }
                }
            }
        }
        let Some(Action::Read(Read { user, got: Some(got), .. })) = ops.last_mut().map(|op| &mut op.action) else {
            continue;
        };
        let Some(seen) = got.records.iter_mut().find(|seen| {
            seen.payload.is_some() && first.get(&(user.clone(), seen.key.clone())) != seen.payload.as_ref()
        }) else {
            continue;
        };
        seen.payload = first.get(&(user.clone(), seen.key.clone())).cloned();
        if seen.payload.is_none() {
            continue;
        }
        spoilt += 1;
        assert_eq!(judged(&ops).verdict, Verdict::Invalid, "seed {seed}");
    }
    assert!(spoilt >= 30, "{spoilt}");
}

#[test]
fn nothing_done_is_no_pass() {
    assert_eq!(judged(&[]).verdict, Verdict::Unknown);
}
