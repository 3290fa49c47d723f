use holdfast_model::id::Incarnation;
use proptest::prelude::*;

use super::*;

/// 2026-11-22, a Sunday.
const NOW_MS: u64 = 1_795_305_600_000;

fn id(seed: u8) -> LineageId {
    LineageId { cluster_id: [seed; 16], incarnation: Incarnation(seed.into()) }
}

fn taken(index: u64, time_ms: u64) -> Taken {
    Taken {
        index,
        time_ms,
        stored_ms: time_ms,
        bytes: 1_000_000,
        records: 1_000,
        root: [index as u8; 32],
        seal: [7; 32],
        is_attested: true,
        previous: None,
        witnesses: BTreeSet::from([(1, [1; 32]), (2, [2; 32])]),
    }
}

/// Somebody read all of these, up to an index.
fn said(taken: &[Taken], up_to: u64) -> Said {
    let seen = taken.iter().filter(|taken| taken.index <= up_to && taken.is_attested);
    let snapshots = seen.map(|taken| (taken.index, (taken.root, taken.seal))).collect();
    Said { ended_ms: NOW_MS, snapshots, ..Said::default() }
}

/// Everything in it is proved.
fn holding(seed: u8, taken: Vec<Taken>) -> Holding {
    let proved = if taken.is_empty() { Vec::new() } else { vec![said(&taken, u64::MAX)] };
    Holding {
        id: id(seed),
        parent: None,
        taken,
        proved,
        failed: None,
        buried: BTreeSet::new(),
        buried_by_strangers: BTreeSet::new(),
        log_first: Some(1),
        damaged: Vec::new(),
    }
}

/// One a day up to now.
fn daily(days: u64) -> Holding {
    holding(1, (1..=days).map(|day| taken(day * 10, NOW_MS - (days - day) * DAY_MS)).collect())
}

fn judged(holding: &Holding) -> Judgement {
    judge(std::slice::from_ref(holding), &Policy::default(), NOW_MS, &Accepted::new())
}

fn rules(judged: &Judgement) -> Vec<Rule> {
    let rules: BTreeSet<Rule> = judged.frozen.iter().map(|frozen| frozen.rule).collect();
    rules.into_iter().collect()
}

/// By words, not by numbers: what the calendar calls a moment.
fn called(period: Period, time_ms: u64) -> String {
    let at = DateTime::from_timestamp_millis(time_ms as i64).expect("a time");
    let format = match period {
        Period::Hourly => "%Y-%m-%d %H",
        Period::Daily => "%Y-%m-%d",
        Period::Weekly => "%G-W%V",
        Period::Monthly => "%Y-%m",
        Period::Yearly => "%Y",
    };
    at.format(format).to_string()
}

/// What should stay of a history that is all proved, said in another way.
pub(crate) fn expected(all: &[(u64, u64)], policy: &Policy) -> BTreeSet<u64> {
    let mut kept: BTreeSet<u64> = all.iter().rev().take(2).map(|(index, _)| *index).collect();
    for (period, count) in policy.periods() {
        let newest: BTreeMap<String, u64> = all.iter().map(|(index, at)| (called(period, *at), *index)).collect();
        // Spans in the order of their newest snapshots.
        let mut newest: Vec<u64> = newest.into_values().collect();
        newest.sort_unstable();
        kept.extend(newest.into_iter().rev().take(count as usize));
    }
    kept
}

#[test]
fn of_two_years_of_days_the_sons_fathers_and_grandfathers_stay() {
    let judged = judged(&daily(730));
    assert_eq!(judged.frozen, []);
    let kept: Vec<(u64, String)> = judged
        .kept
        .iter()
        .map(|((_, index), why)| {
            let day = called(Period::Daily, NOW_MS - (730 - index / 10) * DAY_MS);
            (*index, format!("{day} {}", why.iter().map(|why| why.as_str()).collect::<Vec<_>>().join(" ")))
        })
        .collect();
    let named = |day: &str| kept.iter().find(|(_, text)| text.starts_with(day)).map(|(_, text)| &text[11..]);
    assert_eq!(named("2026-11-22"), Some("newest hourly daily weekly monthly yearly"));
    assert_eq!(named("2026-11-16"), Some("hourly daily"));
    assert_eq!(named("2026-10-31"), Some("hourly monthly"));
    assert_eq!(named("2026-10-25"), Some("weekly"));
    assert_eq!(named("2025-12-31"), Some("monthly yearly"));
    assert_eq!(named("2024-12-31"), Some("yearly"));
    assert_eq!(named("2025-11-30"), None, "the thirteenth month");
    // 24 hours that have one, a Sunday before these, the ends of ten months, the end of a year.
    assert_eq!(kept.len(), 24 + 1 + 10 + 1, "{kept:#?}");
    // The log of 35 days: from the newest that stays and is older.
    let base = judged.log_through[&id(1)];
    assert_eq!(called(Period::Daily, NOW_MS - (730 - base / 10) * DAY_MS), "2026-09-30");
}

proptest! {
    #[test]
    fn what_stays_is_what_the_calendar_says(
        hours in prop::collection::vec(1u64..200, 0..120),
        counts in prop::array::uniform5(0u32..6),
    ) {
        let mut at_ms = NOW_MS;
        let mut times: Vec<u64> = hours.iter().map(|hours| { at_ms -= hours * HOUR_MS / 2; at_ms }).collect();
        times.reverse();
        let all: Vec<(u64, u64)> = times.iter().enumerate().map(|(n, at)| (n as u64 * 3, *at)).collect();
        let [hourly, daily, weekly, monthly, yearly] = counts;
        let policy = Policy { hourly, daily, weekly, monthly, yearly, ..Policy::default() };
        let mut holding = holding(1, all.iter().map(|(index, at)| taken(*index, *at)).collect());
        let first = judge(std::slice::from_ref(&holding), &policy, NOW_MS, &Accepted::new());
        prop_assert_eq!(&first.frozen, &[]);
        let kept: BTreeSet<u64> = first.kept.keys().map(|(_, index)| *index).collect();
        prop_assert_eq!(&kept, &expected(&all, &policy));
        let doomed: BTreeSet<u64> = first.doomed.iter().map(|(_, index)| *index).collect();
        prop_assert!(kept.is_disjoint(&doomed) && kept.len() + doomed.len() == all.len());
        // Once these are gone nothing more goes.
        holding.taken.retain(|taken| kept.contains(&taken.index));
        holding.buried = doomed;
        let second = judge(std::slice::from_ref(&holding), &policy, NOW_MS, &Accepted::new());
        prop_assert_eq!(second.kept.into_keys().collect::<Vec<_>>(), first.kept.into_keys().collect::<Vec<_>>());
    }

    #[test]
    fn two_proved_ones_stay_and_all_that_is_newer(
        attested in prop::collection::vec(any::<bool>(), 1..40),
        proved_to in prop::option::of(0u64..45),
    ) {
        let mut holding = daily(attested.len() as u64);
        for (taken, is_attested) in holding.taken.iter_mut().zip(&attested) {
            taken.is_attested = *is_attested;
        }
        holding.proved = proved_to.map(|to| said(&holding.taken, to * 10)).into_iter().collect();
        let none = Policy { hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, ..Policy::default() };
        let judged = judge(std::slice::from_ref(&holding), &none, NOW_MS, &Accepted::new());
        let proved: Vec<u64> = holding.proved_taken().map(|taken| taken.index).collect();
        for (_, doomed) in &judged.doomed {
            prop_assert!(proved.iter().filter(|index| *index > doomed).count() >= 2);
        }
        let stays = judged.kept.keys().map(|(_, index)| *index).filter(|index| proved.contains(index)).count();
        prop_assert_eq!(stays, proved.len().min(2));
    }
}

#[test]
fn one_that_was_never_proved_saves_none_and_is_no_reason_to_let_another_go() {
    let mut holding = daily(20);
    // The last three days nobody looked.
    holding.proved = vec![said(&holding.taken, 170)];
    let judged = judged(&holding);
    assert!([180, 190, 200].iter().all(|index| judged.kept.contains_key(&(id(1), *index))));
    // The days are counted from the newest that was proved.
    let named = |why| judged.kept.iter().filter(|(_, reasons)| reasons.contains(&why)).count();
    assert_eq!((named(Reason::Daily), judged.kept[&(id(1), 180)].len()), (7, 1));
    assert!(judged.kept[&(id(1), 110)].contains(&Reason::Daily));
}

#[test]
fn each_rule_freezes() {
    let base = daily(40);
    assert_eq!(rules(&judged(&base)), []);
    let frozen = |alter: &dyn Fn(&mut Holding)| {
        let mut altered = base.clone();
        alter(&mut altered);
        rules(&judged(&altered))
    };
    let ago = |days: u64| NOW_MS - days * DAY_MS;
    assert_eq!(frozen(&|of| of.proved.clear()), [Rule::VerificationStale]);
    assert_eq!(frozen(&|of| of.proved[0].ended_ms = ago(9)), [Rule::VerificationStale]);
    assert_eq!(frozen(&|of| of.proved[0].ended_ms = ago(8)), []);
    let failed = |ended_ms| Some(Said { ended_ms, why: Some("x: torn".into()), ..Said::default() });
    assert_eq!(frozen(&|of| of.failed = failed(NOW_MS)), [Rule::VerificationFailed]);
    assert_eq!(frozen(&|of| of.failed = failed(ago(1))), []);
    assert_eq!(frozen(&|of| of.taken[20].root = [99; 32]), [Rule::RootsDisagree]);
    assert_eq!(frozen(&|of| of.taken[20].seal = [99; 32]), [Rule::RootsDisagree]);
    assert_eq!(frozen(&|of| of.taken[39].is_attested = false), [Rule::RootsDisagree]);
    assert_eq!(frozen(&|of| of.taken[38].is_attested = false), []);
    // Voters that somebody made up, between those that there are; and voters that took over for good.
    let made_up = |of: &mut Holding, at: usize| of.taken[at].witnesses = BTreeSet::from([(99, [99; 32])]);
    assert_eq!(frozen(&|of| made_up(of, 20)), [Rule::RootsDisagree]);
    assert_eq!(frozen(&|of| (20..22).for_each(|at| made_up(of, at))), [Rule::RootsDisagree]);
    assert_eq!(frozen(&|of| (20..40).for_each(|at| made_up(of, at))), []);
    assert_eq!(frozen(&|of| of.taken[39].bytes = 799_999), [Rule::SizeDrop]);
    assert_eq!(frozen(&|of| of.taken[39].bytes = 800_000), []);
    assert_eq!(frozen(&|of| of.taken[39].records = 799), [Rule::SizeDrop]);
    // Step by step is no way around it, but within a year things may shrink.
    let shrink = |of: &mut Holding, days: usize| {
        (40 - days..40).for_each(|n| of.taken[n].bytes = 1_000_000 - (n + 1 + days - 40) as u64 * 21_000)
    };
    assert_eq!(frozen(&|of| shrink(of, 10)), [Rule::SizeDrop]);
    assert_eq!(frozen(&|of| (0..9).for_each(|n| of.taken[n].bytes = 2_000_000)), []);
    assert_eq!(frozen(&|of| of.taken[9].bytes = 2_000_000), [Rule::SizeDrop]);
    assert_eq!(frozen(&|of| of.taken[20].time_ms = ago(1)), [Rule::TimesForged]);
    assert_eq!(frozen(&|of| of.taken[39].time_ms += 2 * HOUR_MS), [Rule::TimesForged]);
    let to_come = |of: &mut Holding| {
        (of.taken[39].time_ms, of.taken[39].stored_ms) = (NOW_MS + 2 * HOUR_MS, NOW_MS + 3 * HOUR_MS)
    };
    assert_eq!(frozen(&to_come), [Rule::TimesForged], "a destination whose clock is ahead stores it");
    assert_eq!(frozen(&|of| of.taken[39].stored_ms -= 2 * HOUR_MS), [Rule::TimesForged]);
    assert_eq!(frozen(&|of| of.taken[39].stored_ms += 90 * HOUR_MS), []);
    assert_eq!(frozen(&|of| of.proved[0].ended_ms += 2 * HOUR_MS), [Rule::TimesForged]);
    assert_eq!(frozen(&|of| of.taken[30].previous = Some(295)), [Rule::SnapshotMissing]);
    assert_eq!(frozen(&|of| drop(of.taken.remove(20))), [Rule::SnapshotMissing]);
    assert_eq!(frozen(&|of| of.taken.clear()), [Rule::SnapshotMissing]);
    let bury = |of: &mut Holding| (of.taken[30].previous, of.buried) = (Some(295), BTreeSet::from([295]));
    assert_eq!(frozen(&bury), []);
    assert_eq!(frozen(&|of| of.damaged.push(("x".into(), "torn".into()))), [Rule::Damaged]);
    // Only what was looked into is let pass, and only from there on.
    let mut smaller = base.clone();
    (35..40).for_each(|n| smaller.taken[n].bytes = 1_000);
    let accepting = |of: &Holding, rule, index| {
        rules(&judge(std::slice::from_ref(of), &Policy::default(), NOW_MS, &Accepted::from([(rule, index)])))
    };
    assert_eq!(accepting(&smaller, Rule::SizeDrop, 350), [Rule::SizeDrop]);
    assert_eq!(accepting(&smaller, Rule::SizeDrop, 360), []);
    smaller.taken[39].bytes = 10;
    assert_eq!(accepting(&smaller, Rule::SizeDrop, 360), [Rule::SizeDrop]);
    let mut ahead = base.clone();
    ahead.taken[20].stored_ms -= 2 * HOUR_MS;
    assert_eq!(accepting(&ahead, Rule::TimesForged, 200), [Rule::TimesForged]);
    assert_eq!(accepting(&ahead, Rule::TimesForged, 210), []);
}

#[test]
fn what_the_window_needs_stays() {
    let few = Policy { hourly: 0, daily: 2, weekly: 0, monthly: 0, yearly: 0, window_days: 10, ..Policy::default() };
    let judged = |of: &[Holding]| judge(of, &few, NOW_MS, &Accepted::new());
    let kept = |judged: &Judgement, seed| -> Vec<u64> {
        judged.kept.keys().filter(|(of, _)| *of == id(seed)).map(|(_, index)| *index).collect()
    };
    // The log is there from its beginning: every moment comes from it.
    let whole = daily(40);
    assert_eq!(kept(&judged(std::slice::from_ref(&whole)), 1), [390, 400]);
    assert_eq!(judged(std::slice::from_ref(&whole)).log_through, BTreeMap::new());
    // It begins late: the newest snapshot from before the window stays, and the log up to it goes.
    let late = Holding { log_first: Some(5), ..whole.clone() };
    let first = judged(std::slice::from_ref(&late));
    assert_eq!((kept(&first, 1), &first.kept[&(id(1), 300)]), (vec![300, 390, 400], &BTreeSet::from([Reason::Window])));
    // And where all that is left begins within it, that one.
    let later = Holding { log_first: Some(344), ..whole.clone() };
    assert_eq!(kept(&judged(std::slice::from_ref(&later)), 1), [350, 390, 400]);
    // A snapshot that stands in for a part of the log that was never shipped.
    let mut gap = whole.clone();
    gap.proved[0].gap_ends.insert(365);
    assert_eq!(kept(&judged(std::slice::from_ref(&gap)), 1), [370, 390, 400]);
    // A child that has no snapshot from before the window begins where it forked off.
    let parent = holding(1, (1..=30).map(|day| taken(day * 10, NOW_MS - (40 - day) * DAY_MS)).collect());
    let parent = Holding { log_first: Some(5), ..parent };
    let child = holding(2, (36..=40).map(|day| taken(day * 10, NOW_MS - (40 - day) * DAY_MS)).collect());
    let child = Holding { parent: Some((id(1), 255)), log_first: Some(256), ..child };
    let both = judged(&[parent.clone(), child.clone()]);
    assert!(kept(&both, 1).contains(&250), "{:?}", kept(&both, 1));
    assert!(both.log_through.get(&id(1)).is_none_or(|through| *through <= 255), "{:?}", both.log_through);
}

#[test]
fn what_another_history_continues_is_weighed_with_it_once_that_stands() {
    // Forty days, then a restore, and days of the new history.
    let parent = holding(1, (1..=40).map(|day| taken(day * 10, NOW_MS - (60 - day) * DAY_MS)).collect());
    let child = |days: u64| {
        let taken = (41..41 + days).map(|day| taken(day * 10, NOW_MS - (60 - day) * DAY_MS)).collect();
        Holding { parent: Some((id(1), 395)), ..holding(2, taken) }
    };
    let policy = Policy { hourly: 0, weekly: 0, monthly: 0, yearly: 0, ..Policy::default() };
    let days_of = |judged: &Judgement, seed| judged.kept.keys().filter(|(of, _)| *of == id(seed)).count();
    let one = judge(&[parent.clone(), child(1)], &policy, NOW_MS, &Accepted::new());
    assert_eq!((days_of(&one, 1), days_of(&one, 2)), (7, 1), "it stands by itself");
    let five = judge(&[parent.clone(), child(5)], &policy, NOW_MS, &Accepted::new());
    assert_eq!((days_of(&five, 1), days_of(&five, 2)), (2, 5), "seven days of both");
    let many = judge(&[parent.clone(), child(20)], &policy, NOW_MS, &Accepted::new());
    assert_eq!((days_of(&many, 1), days_of(&many, 2)), (2, 7), "two of each history stay");
    // One that is not proved does not stand for anything.
    let mut unproved = child(5);
    unproved.proved = vec![said(&unproved.taken, 410)];
    assert_eq!(days_of(&judge(&[parent.clone(), unproved], &policy, NOW_MS, &Accepted::new()), 1), 7);
    // One that goes on beside its child is weighed for itself.
    let mut live = parent.clone();
    live.taken.push(taken(500, NOW_MS));
    live.proved = vec![said(&live.taken, 500)];
    assert_eq!(days_of(&judge(&[live, child(20)], &policy, NOW_MS, &Accepted::new()), 1), 7);
    // The child says that it is older than what it began with.
    let mut older = child(5);
    older.taken[0].time_ms = NOW_MS - 50 * DAY_MS;
    let frozen = judge(&[parent, older], &policy, NOW_MS, &Accepted::new());
    assert_eq!(rules(&frozen), [Rule::TimesForged]);
}

#[test]
fn one_state_has_one_root_everywhere() {
    let (here, there) = (daily(9), daily(9));
    let mut other = there.clone();
    other.taken[4].root = [200; 32];
    let compare = |a: &Holding, b: &Holding| {
        let both = [("one", std::slice::from_ref(a)), ("two", std::slice::from_ref(b))];
        compare_roots(both.into_iter())
    };
    assert_eq!(compare(&here, &there), []);
    let found = compare(&here, &other);
    assert_eq!(found.len(), 1);
    assert!(found[0].reason.contains("index 50"), "{}", found[0].reason);
}
