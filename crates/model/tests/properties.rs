//! What holds for every log. Each property is judged from the entries and their outcomes, not by the rules' own code.

#[path = "properties/log.rs"]
mod log;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_model::command::{Command, Content, Guard, Op, Proposal, WriteBatch};
use holdfast_model::id::{Incarnation, Millis, RecordKey, RequestId, UserId, Version};
use holdfast_model::limits::DEDUP_WINDOW_MS;
use holdfast_model::memory::MemoryState;
use holdfast_model::outcome::{Outcome, Receipt, Rejection};
use holdfast_model::state::{Effects, Sys};
use holdfast_model::transition::remembered;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// An entry that was judged, with the states around it.
struct Judged<'a> {
    proposal: &'a Proposal,
    before: &'a MemoryState,
    after: &'a MemoryState,
    outcome: &'a Outcome,
    effects: &'a Effects,
}

/// Plays a log from nothing and shows every step.
fn play(
    log: &[Proposal],
    mut see: impl FnMut(u64, Judged<'_>) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut state = MemoryState::default();
    for (index, proposal) in (1..).zip(log) {
        let before = state.clone();
        let (outcome, effects) = state.judge(index, proposal);
        state.perform(effects.clone());
        prop_assert_ne!(&outcome, &Outcome::Rejected(Rejection::Poisoned), "entry {}", index);
        see(index, Judged { proposal, before: &before, after: &state, outcome: &outcome, effects: &effects })?;
    }
    Ok(())
}

fn batch(proposal: &Proposal) -> Option<&WriteBatch> {
    match &proposal.command {
        Command::WriteBatch(batch) if proposal.rules == 1 => Some(batch),
        _ => None,
    }
}

/// A batch that was committed just now, not remembered from before.
fn committed<'a>(judged: &Judged<'a>) -> Option<(&'a WriteBatch, &'a Receipt)> {
    match (batch(judged.proposal), judged.outcome) {
        (Some(batch), Outcome::Written(receipt)) if !receipt.replayed => Some((batch, receipt)),
        _ => None,
    }
}

fn outcomes(state: &mut MemoryState, from: u64, log: &[Proposal]) -> Vec<Outcome> {
    (from..).zip(log).map(|(index, proposal)| state.apply(index, proposal)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_replay_gives_the_same_answers_and_the_same_state(log in log::log(), cut in any::<prop::sample::Index>()) {
        let (mut first, mut second) = (MemoryState::default(), MemoryState::default());
        let answers = outcomes(&mut first, 1, &log);
        prop_assert_eq!(&outcomes(&mut second, 1, &log), &answers);
        prop_assert_eq!(&second, &first);

        // From a copy of the state in the middle, as after a snapshot.
        let cut = cut.index(log.len());
        let mut half = MemoryState::default();
        outcomes(&mut half, 1, &log[..cut]);
        let mut copy = half.clone();
        drop(half);
        prop_assert_eq!(&outcomes(&mut copy, cut as u64 + 1, &log[cut..]), &answers[cut..]);
        prop_assert_eq!(&copy, &first);
    }

    #[test]
    fn judging_twice_gives_equal_effects(log in log::log()) {
        play(&log, |index, judged| {
            let (outcome, effects) = judged.before.judge(index, judged.proposal);
            prop_assert_eq!(&outcome, judged.outcome);
            prop_assert_eq!(&effects, judged.effects);
            Ok(())
        })?;
    }

    #[test]
    fn a_request_id_takes_effect_at_most_once(log in log::log()) {
        let mut first: BTreeMap<(UserId, RequestId), (Millis, Receipt)> = BTreeMap::new();
        play(&log, |index, judged| {
            let (Some(batch), Outcome::Written(receipt)) = (batch(judged.proposal), judged.outcome) else {
                return Ok(());
            };
            let id = (batch.user.clone(), batch.request_id);
            let now = judged.after.sys.now;
            if let Some((then, earlier)) = first.get(&id) {
                if receipt.replayed {
                    prop_assert_eq!(receipt, &Receipt { replayed: true, ..earlier.clone() });
                } else {
                    prop_assert!(batch.first_sent.is_none(), "entry {} ran again", index);
                    prop_assert!(now.0 - then.0 >= DEDUP_WINDOW_MS, "entry {} ran again inside the window", index);
                }
            }
            if !receipt.replayed {
                prop_assert_eq!(receipt.commit_index, index);
                first.insert(id, (now, receipt.clone()));
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_is_remembered_is_the_answer_that_the_entry_would_get(log in log::log()) {
        play(&log, |index, judged| {
            let Some(batch) = batch(judged.proposal) else { return Ok(()) };
            let found = match remembered(judged.before, batch, judged.proposal.stamp) {
                Ok(found) => found,
                Err(never) => match never {},
            };
            let known = match judged.outcome {
                Outcome::Written(receipt) => receipt.replayed,
                Outcome::Rejected(rejection) => *rejection == Rejection::RequestIdReused,
                _ => false,
            };
            prop_assert_eq!(found.as_ref(), known.then_some(judged.outcome), "entry {}", index);
            Ok(())
        })?;
    }

    #[test]
    fn sweeping_changes_no_answer(log in log::log()) {
        let unswept: Vec<Proposal> = log
            .iter()
            .map(|proposal| match proposal.command {
                Command::Expire => log::no_effect(proposal.stamp),
                _ => proposal.clone(),
            })
            .collect();
        let (mut swept_state, mut unswept_state) = (MemoryState::default(), MemoryState::default());
        let swept_answers = outcomes(&mut swept_state, 1, &log);
        let unswept_answers = outcomes(&mut unswept_state, 1, &unswept);
        for ((proposal, swept), unswept) in log.iter().zip(swept_answers).zip(unswept_answers) {
            if proposal.command != Command::Expire {
                prop_assert_eq!(swept, unswept);
            }
        }
        // One sweep at the end makes up for all that were left out.
        let sweep = Proposal { rules: 1, stamp: Millis(0), command: Command::Expire };
        for state in [&mut swept_state, &mut unswept_state] {
            state.apply(1000, &sweep);
        }
        prop_assert_eq!(swept_state, unswept_state);
    }

    #[test]
    fn versions_rise_without_gaps_within_an_epoch(log in log::log()) {
        let mut heads: BTreeMap<UserId, Version> = BTreeMap::new();
        play(&log, |index, judged| {
            let Some((batch, receipt)) = committed(&judged) else {
                prop_assert!(judged.effects.touched.is_empty(), "entry {}", index);
                prop_assert_eq!(&judged.after.users, &judged.before.users);
                return Ok(());
            };
            let epoch = judged.after.sys.history.as_ref().unwrap().epoch;
            let head = heads.entry(batch.user.clone()).or_default();
            if receipt.results.iter().any(|result| result.changed) {
                let next = match head.epoch() == epoch {
                    true => Version::new(epoch, head.counter() + 1),
                    false => Version::new(epoch, 1),
                };
                prop_assert!(next > *head);
                *head = next;
                let touched: Vec<_> = judged.effects.touched.iter().map(|one| (one.user.clone(), one.head)).collect();
                prop_assert_eq!(touched, vec![(batch.user.clone(), next)]);
            } else {
                prop_assert!(judged.effects.touched.is_empty(), "entry {}", index);
            }
            prop_assert_eq!(receipt.version, *head);
            prop_assert_eq!(judged.after.user_row(&batch.user).map(|row| row.head), Some(*head));
            Ok(())
        })?;
    }

    #[test]
    fn guards_hold_and_contents_are_those_of_the_accepted_batches(log in log::log()) {
        let mut shadow = Shadow::default();
        play(&log, |index, judged| {
            if let Some(batch) = batch(judged.proposal) {
                shadow.expect(index, batch, judged.outcome)?;
            }
            if let Some((batch, _)) = committed(&judged) {
                let current = judged.before.sys.history.as_ref().map(|history| history.incarnation);
                prop_assert!(batch.if_incarnation.is_none() || batch.if_incarnation == current, "entry {}", index);
            }
            let stored: Records = judged
                .after
                .uids
                .keys()
                .flat_map(|user| {
                    let number = judged.after.user_ref(user).unwrap();
                    let of_user = judged.after.records.iter().filter(move |((of, _), _)| *of == number);
                    of_user.map(|((_, key), (row, content))| {
                        ((user.clone(), key.clone()), (row.version, content.clone()))
                    })
                })
                .collect();
            prop_assert_eq!(&stored, &shadow.records);
            Ok(())
        })?;
    }

    #[test]
    fn sums_and_change_rows_agree_with_the_records(log in log::log()) {
        play(&log, |index, judged| {
            prop_assert_eq!(judged.after.violations(), vec![], "entry {}", index);
            prop_assert_eq!(judged.after.changes.len(), judged.after.records.len());
            let recomputed = judged.after.recompute_digests();
            prop_assert_eq!(recomputed.digest, judged.after.sys.digest);
            if let Some((batch, receipt)) = committed(&judged) {
                let (usage, _) = &recomputed.users[&judged.after.user_ref(&batch.user).unwrap()];
                prop_assert_eq!(receipt.usage, *usage);
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_rejection_changes_nothing_but_now(log in log::log()) {
        play(&log, |_, judged| {
            if let Outcome::Rejected(_) = judged.outcome {
                let sys = Sys { now: judged.after.sys.now, ..judged.before.sys.clone() };
                prop_assert_eq!(judged.after, &MemoryState { sys, ..judged.before.clone() });
                prop_assert!(judged.effects.touched.is_empty() && !judged.effects.barrier);
            }
            Ok(())
        })?;
    }

    #[test]
    fn time_is_the_greatest_stamp(log in log::log()) {
        let mut greatest = Millis(0);
        play(&log, |_, judged| {
            greatest = greatest.max(judged.proposal.stamp);
            prop_assert_eq!(judged.after.sys.now, greatest);
            Ok(())
        })?;
    }

    #[test]
    fn a_token_of_an_ended_history_shares_its_last_head(log in log::log()) {
        let mut ends: BTreeMap<Incarnation, BTreeMap<UserId, Version>> = BTreeMap::new();
        play(&log, |_, judged| {
            let current = judged.after.sys.history.as_ref().unwrap().incarnation;
            if let Some(ended) = judged.before.sys.history.as_ref().filter(|ended| ended.incarnation != current) {
                let heads = judged.before.uids.keys().map(|user| {
                    (user.clone(), judged.before.user_row(user).unwrap().head)
                });
                ends.insert(ended.incarnation, heads.collect());
            }
            for user in judged.after.uids.keys() {
                let row = judged.after.user_row(user).unwrap();
                for (incarnation, heads) in &ends {
                    let end = heads.get(user).copied().unwrap_or_default();
                    prop_assert_eq!(row.common_with(&judged.after.sys, *incarnation), Some(end));
                }
                prop_assert_eq!(row.common_with(&judged.after.sys, current), Some(row.head));
                prop_assert_eq!(row.common_with(&judged.after.sys, Incarnation(current.0 + 1)), None);
            }
            Ok(())
        })?;
    }
}

type Records = BTreeMap<(UserId, RecordKey), (Version, Option<Content>)>;

/// The records as the accepted batches left them, by the plainest reading of the contract.
#[derive(Default)]
struct Shadow {
    records: Records,
    heads: BTreeMap<UserId, Version>,
}

impl Shadow {
    fn expect(&mut self, index: u64, batch: &WriteBatch, outcome: &Outcome) -> Result<(), TestCaseError> {
        let head = self.heads.get(&batch.user).copied().unwrap_or_default();
        let failing = self.failing(batch);
        let head_fails = batch.if_head.is_some_and(|expected| expected != head);
        match outcome {
            Outcome::Written(receipt) if receipt.replayed => {}
            Outcome::Written(receipt) => {
                prop_assert!(failing.is_empty() && !head_fails, "entry {}: a guard was passed over", index);
                let changed: Vec<bool> = receipt.results.iter().map(|result| result.changed).collect();
                prop_assert_eq!(&changed, &self.write(batch, receipt.version), "entry {}", index);
                for (mutation, result) in batch.mutations.iter().zip(&receipt.results) {
                    let key = (batch.user.clone(), mutation.key.clone());
                    let version = self.records.get(&key).map_or(Version(0), |(version, _)| *version);
                    prop_assert_eq!(result.version, version);
                }
                self.heads.insert(batch.user.clone(), receipt.version);
            }
            Outcome::Rejected(Rejection::VersionMismatch { conflicts, head: reported }) => {
                let named: BTreeSet<u32> = conflicts.iter().map(|conflict| conflict.index).collect();
                prop_assert_eq!(&named, &failing, "entry {}", index);
                prop_assert_eq!(*reported, head_fails.then_some(head));
                prop_assert!(head_fails || !failing.is_empty(), "entry {}: refused without a reason", index);
                for conflict in conflicts {
                    let mutation = &batch.mutations[conflict.index as usize];
                    let stored = self.records.get(&(batch.user.clone(), mutation.key.clone()));
                    prop_assert_eq!(conflict.current_version, stored.map_or(Version(0), |(version, _)| *version));
                    prop_assert_eq!(conflict.deleted, stored.is_some_and(|(_, content)| content.is_none()));
                    prop_assert_eq!(conflict.content_hash.is_some(), stored.is_some());
                }
            }
            Outcome::Rejected(_) => {}
            Outcome::Done => prop_assert!(false, "entry {}: a batch is not merely done", index),
        }
        Ok(())
    }

    fn failing(&self, batch: &WriteBatch) -> BTreeSet<u32> {
        let fails = |key: &RecordKey, guard: Guard| {
            let stored = self.records.get(&(batch.user.clone(), key.clone()));
            let live = stored.is_some_and(|(_, content)| content.is_some());
            match guard {
                Guard::None => false,
                Guard::Version(expected) => stored.map_or(Version(0), |(version, _)| *version) != expected,
                Guard::Absent => live,
                Guard::Exists => !live,
                Guard::Restore(_) => unreachable!("these logs re-upload nothing: see lifetimes.rs"),
            }
        };
        let mutations = (0u32..).zip(&batch.mutations);
        mutations.filter(|(_, mutation)| fails(&mutation.key, mutation.guard)).map(|(index, _)| index).collect()
    }

    /// Which mutations change something.
    fn write(&mut self, batch: &WriteBatch, version: Version) -> Vec<bool> {
        let mut changed = vec![];
        for mutation in &batch.mutations {
            let key = (batch.user.clone(), mutation.key.clone());
            let stored = self.records.get(&key).and_then(|(_, content)| content.clone());
            let wanted = match &mutation.op {
                Op::Put(content) => Some(content.clone()),
                Op::Delete => None,
            };
            changed.push(stored != wanted);
            if stored != wanted {
                self.records.insert(key, (version, wanted));
            }
        }
        changed
    }
}

/// The properties are worth what the logs reach: each kind of answer must come up.
#[test]
fn the_random_logs_reach_every_answer() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..128 {
        let log = log::log().new_tree(&mut runner).unwrap().current();
        play(&log, |_, judged| {
            let kind = match judged.outcome {
                Outcome::Done => "done",
                Outcome::Written(receipt) if receipt.replayed => "replayed",
                Outcome::Written(receipt) if receipt.results.iter().any(|result| result.changed) => "changed",
                Outcome::Written(_) => "nothing changed",
                Outcome::Rejected(Rejection::VersionMismatch { .. }) => "version mismatch",
                Outcome::Rejected(Rejection::RequestIdReused) => "reused",
                Outcome::Rejected(Rejection::RequestTooOld) => "too old",
                Outcome::Rejected(Rejection::RequestFromFuture) => "from the future",
                Outcome::Rejected(Rejection::IncarnationMismatch) => "other incarnation",
                Outcome::Rejected(Rejection::UnknownRules(_)) => "unknown rules",
                Outcome::Rejected(
                    Rejection::NotFounded
                    | Rejection::Poisoned
                    | Rejection::UserQuota { .. }
                    | Rejection::TokenNotCurrent
                    | Rejection::DeviceLimit
                    | Rejection::LineageFork,
                ) => "never",
            };
            *seen.entry(kind).or_default() += 1;
            let swept = judged.proposal.command == Command::Expire && !judged.effects.rows.is_empty();
            *seen.entry("swept").or_default() += u32::from(swept);
            let forked = !judged.after.sys.ancestors.is_empty() && !judged.effects.touched.is_empty();
            *seen.entry("committed after a restore").or_default() += u32::from(forked);
            let renewed = committed(&judged).is_some_and(|(batch, _)| {
                let user = judged.before.user_ref(&batch.user);
                user.is_some_and(|user| judged.before.requests.contains_key(&(user, batch.request_id)))
            });
            *seen.entry("forgotten id used again").or_default() += u32::from(renewed);
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(seen.remove("never"), None);
    assert_eq!(seen.len(), 13, "{seen:?}");
    for (kind, count) in seen {
        assert!(count >= 8, "{kind} came up only {count} times");
    }
}
