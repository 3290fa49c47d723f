//! Retention: which snapshots stay, which may go, and when nothing may. Pure: facts in, a judgement out.
//!
//! Grandfather, father, son: of the snapshots that were proved, the newest of each of the last hours, days, weeks, months and
//! years that have one stays. A *proved* snapshot is one that a majority of the voters signed, and that a trusted verifier read
//! and named, by the hash of its manifest: one that is laid down later under an old place is none. What was not proved is never
//! counted as one that stays for another to go.
//!
//! Invariants:
//! - Snapshots are ordered by (history, index), never by a time that somebody wrote.
//! - Nothing goes that is newer than the second newest proved snapshot of its history, so that two always stay.
//! - Every moment of the window stays restorable that is so now: where the log begins, or goes on behind a gap, the snapshot stays
//!   that stands in for what is missing, and the log goes only up to a snapshot that stays.
//! - Snapshots of a history that another one continues are weighed with those of the other as soon as that has two proved ones
//!   that are newer, and by themselves until then.
//! - Where anything is not as it should be, nothing goes at all: [`Rule`] says what, and a reason to wait is found by whoever
//!   looks at more, never argued away.
//!
//! Source: design page "archive" (retention), with the failures it names: wal-g#636 and #1288 deleted the newest, restic#22057
//! evicted genuine snapshots by forged times.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike};
use holdfast_model::id::Millis;
use serde::Serialize;

pub use self::faults::{Accepted, DROP_PERCENT_MAX, Frozen, Rule, compare_roots};
use crate::layout::{LineageId, week_of};

mod faults;

/// One hour.
pub const HOUR_MS: u64 = 60 * 60 * 1000;
/// One day.
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// A proved snapshot fewer than this in a history, and nothing of it goes.
pub const PROVED_MIN: usize = 2;

/// What stays, and for how long what goes is kept in reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Hours of which the newest snapshot stays: the last so many that have one.
    pub hourly: u32,
    /// Days (UTC).
    pub daily: u32,
    /// Weeks, from Monday on.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
    /// Days that stay restorable to any moment: the log from there on stays.
    pub window_days: u32,
    /// Days between the mark that something goes and its deletion.
    pub grace_days: u32,
    /// A verification older than so many days is stale.
    pub max_age_days: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            hourly: 24,
            daily: 7,
            weekly: 5,
            monthly: 12,
            yearly: 3,
            window_days: 35,
            grace_days: 7,
            max_age_days: 8,
        }
    }
}

/// A span of time of which one snapshot stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Period {
    /// Hour.
    Hourly,
    /// Day.
    Daily,
    /// Week.
    Weekly,
    /// Month.
    Monthly,
    /// Year.
    Yearly,
}

impl Period {
    /// Which one a moment lies in.
    fn of(self, time_ms: u64) -> u64 {
        let date = || DateTime::from_timestamp_millis(i64::try_from(time_ms).unwrap_or(i64::MAX)).unwrap_or_default();
        match self {
            Self::Hourly => time_ms / HOUR_MS,
            Self::Daily => time_ms / DAY_MS,
            Self::Weekly => week_of(Millis(time_ms)).into(),
            Self::Monthly => date().year().unsigned_abs() as u64 * 12 + u64::from(date().month0()),
            Self::Yearly => date().year().unsigned_abs().into(),
        }
    }
}

impl Policy {
    fn periods(&self) -> [(Period, u32); 5] {
        [
            (Period::Hourly, self.hourly),
            (Period::Daily, self.daily),
            (Period::Weekly, self.weekly),
            (Period::Monthly, self.monthly),
            (Period::Yearly, self.yearly),
        ]
    }

    fn ms(days: u32) -> u64 {
        u64::from(days) * DAY_MS
    }

    /// Time between mark and deletion.
    pub fn grace_ms(&self) -> u64 {
        Self::ms(self.grace_days)
    }
}

/// A snapshot, as its manifest and the destination have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Last entry in it.
    pub index: u64,
    /// Time of the log at that entry.
    pub time_ms: u64,
    /// When the destination says that the manifest was written there.
    pub stored_ms: u64,
    /// Plain bytes of its rows.
    pub bytes: u64,
    /// Live records.
    pub records: u64,
    /// Hash over its rows.
    pub root: [u8; 32],
    /// Hash that ends its manifest.
    pub seal: [u8; 32],
    /// A majority of its voters signed it.
    pub is_attested: bool,
    /// The snapshot that it continues.
    pub previous: Option<u64>,
    /// Those who signed it, by node and key.
    pub witnesses: BTreeSet<(u64, [u8; 32])>,
}

/// What a trusted verifier said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// When, by the verifier's clock.
    pub ended_ms: u64,
    /// Root and seal of each snapshot that was read, and that a majority of the voters vouched for, by its last entry.
    pub snapshots: BTreeMap<u64, ([u8; 32], [u8; 32])>,
    /// Snapshots that stand in for a part of the log that was never shipped.
    pub gap_ends: BTreeSet<u64>,
    /// What was wrong; `None` = nothing.
    pub why: Option<String>,
}

/// All that a destination holds of one history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Which.
    pub id: LineageId,
    /// History that it continues, and the last entry that it shares with it.
    pub parent: Option<(LineageId, u64)>,
    /// Ascending by index.
    pub taken: Vec<Taken>,
    /// Verifications that proved it, ascending by time.
    pub proved: Vec<Said>,
    /// The newest verification that found it bad, of any depth.
    pub failed: Option<Said>,
    /// Snapshots that are, or were, marked to go, and were not spared since.
    pub buried: BTreeSet<u64>,
    /// Snapshots that somebody marked whose word does not count here.
    pub buried_by_strangers: BTreeSet<u64>,
    /// First entry of the log that lies there; `None` = there is none.
    pub log_first: Option<u64>,
    /// What is damaged or missing, with the reason.
    pub damaged: Vec<(String, String)>,
}

impl Holding {
    /// It was signed by a majority, and read since by somebody trusted, as it is.
    pub fn is_proved(&self, taken: &Taken) -> bool {
        let seen = self.proved.last().and_then(|said| said.snapshots.get(&taken.index));
        taken.is_attested && seen == Some(&(taken.root, taken.seal))
    }

    /// Entries are there from the first one of this history on.
    fn is_whole_from_start(&self) -> bool {
        let start = self.parent.map_or(1, |(_, fork)| fork.saturating_add(1));
        self.log_first.is_some_and(|first| first <= start)
    }

    /// Ascending.
    fn proved_taken(&self) -> impl DoubleEndedIterator<Item = &Taken> {
        self.taken.iter().filter(|taken| self.is_proved(taken))
    }
}

/// Why a snapshot stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// One of the two newest proved ones, or newer than these.
    Newest,
    /// Moments of the window need it.
    Window,
    /// The newest of an hour.
    Hourly,
    /// The newest of a day.
    Daily,
    /// The newest of a week.
    Weekly,
    /// The newest of a month.
    Monthly,
    /// The newest of a year.
    Yearly,
}

impl Reason {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Window => "window",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

impl From<Period> for Reason {
    fn from(period: Period) -> Self {
        match period {
            Period::Hourly => Self::Hourly,
            Period::Daily => Self::Daily,
            Period::Weekly => Self::Weekly,
            Period::Monthly => Self::Monthly,
            Period::Yearly => Self::Yearly,
        }
    }
}

/// What follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What stays, and why.
    pub kept: BTreeMap<(LineageId, u64), BTreeSet<Reason>>,
    /// What may go, if nothing is frozen.
    pub doomed: BTreeSet<(LineageId, u64)>,
    /// The log up to this entry may go, by history: a snapshot that stays holds it, and no moment of the window lies before.
    pub log_through: BTreeMap<LineageId, u64>,
    /// Reasons to let nothing go.
    pub frozen: Vec<Frozen>,
}

/// Judges all that lies at one destination. `accepted`: what somebody looked into.
pub fn judge(holdings: &[Holding], policy: &Policy, now_ms: u64, accepted: &Accepted) -> Judgement {
    let all: BTreeMap<LineageId, &Holding> = holdings.iter().map(|holding| (holding.id, holding)).collect();
    let mut judged = Judgement::default();
    for holding in holdings {
        let newest: Vec<u64> = holding.proved_taken().rev().take(PROVED_MIN).map(|taken| taken.index).collect();
        let floor = newest.last().filter(|_| newest.len() == PROVED_MIN).copied().unwrap_or(0);
        for taken in holding.taken.iter().filter(|taken| taken.index >= floor) {
            judged.keep(holding.id, taken.index, Reason::Newest);
        }
    }
    for head in holdings.iter().filter(|holding| !is_continued(holding, holdings)) {
        let sequence = sequence(head, &all, holdings);
        for (period, count) in policy.periods() {
            keep_newest(&sequence, period, count, &mut judged);
        }
        judged.frozen.extend(faults::of_head(head, &sequence, accepted));
    }
    let oldest_ms = now_ms.saturating_sub(Policy::ms(policy.window_days));
    // Children first: what they need of their parents depends on what they have themselves.
    let mut order: Vec<&Holding> = holdings.iter().collect();
    order.sort_by_key(|holding| std::cmp::Reverse(depth(holding, &all)));
    for holding in order {
        keep_window(holding, holdings, oldest_ms, &mut judged);
    }
    for holding in holdings {
        judged.frozen.extend(faults::of(holding, is_continued(holding, holdings), &all, policy, now_ms));
        let gone = holding.taken.iter().map(|taken| (holding.id, taken.index));
        judged.doomed.extend(gone.filter(|one| !judged.kept.contains_key(one)));
    }
    judged.frozen.retain(|frozen| frozen.index.is_none_or(|index| !accepted.contains(&(frozen.rule, index))));
    judged
}

impl Judgement {
    fn keep(&mut self, lineage: LineageId, index: u64, why: Reason) {
        self.kept.entry((lineage, index)).or_default().insert(why);
    }
}

/// How many histories lie before it.
fn depth(holding: &Holding, all: &BTreeMap<LineageId, &Holding>) -> usize {
    let parent = |holding: &&Holding| holding.parent.and_then(|(parent, _)| all.get(&parent).copied());
    // A circle is no descent.
    std::iter::successors(Some(holding), parent).take(all.len() + 1).count()
}

/// Keeps what moments since `oldest_ms` are restored from, and says how much of the log may go.
fn keep_window(holding: &Holding, holdings: &[Holding], oldest_ms: u64, judged: &mut Judgement) {
    let id = holding.id;
    // A child that has no snapshot to begin its own window with begins where it forked off.
    let children = holdings.iter().filter(|one| one.parent.is_some_and(|(parent, _)| parent == id));
    let needing = children.filter(|child| !judged.log_through.contains_key(&child.id));
    let fork = needing.filter_map(|child| child.parent.map(|(_, fork)| fork)).min().unwrap_or(u64::MAX);
    let log_first = holding.log_first.unwrap_or(u64::MAX);
    // Snapshots from which the log is unbroken, as far as that can be seen here.
    let usable: Vec<&Taken> =
        holding.proved_taken().filter(|taken| taken.index.saturating_add(1) >= log_first).collect();
    let is_before = |taken: &&&Taken| taken.time_ms <= oldest_ms && taken.index <= fork;
    let is_kept = |taken: &&&Taken| judged.kept.contains_key(&(id, taken.index));
    let base = usable.iter().rev().filter(is_before).find(is_kept).map(|base| base.index);
    let mut needed: Vec<u64> = Vec::new();
    if base.is_none() && !holding.is_whole_from_start() {
        // The window begins with it.
        let first = usable.iter().rev().find(is_before).or(usable.first());
        needed.extend(first.map(|first| first.index));
    }
    let gap_ends = holding.proved.last().into_iter().flat_map(|said| &said.gap_ends);
    for end in gap_ends.filter(|end| base.is_none_or(|base| **end > base)) {
        needed.extend(holding.proved_taken().find(|taken| taken.index >= *end).map(|stands_in| stands_in.index));
    }
    judged.log_through.extend(base.map(|base| (id, base)));
    needed.into_iter().for_each(|index| judged.keep(id, index, Reason::Window));
}

/// Another history goes on from it, and has proved snapshots enough that are newer than all of this one's.
fn is_continued(holding: &Holding, holdings: &[Holding]) -> bool {
    let newest_ms = holding.taken.last().map_or(0, |taken| taken.time_ms);
    let children = holdings.iter().filter(|one| one.parent.is_some_and(|(parent, _)| parent == holding.id));
    children.into_iter().any(|child| {
        let second = child.proved_taken().rev().nth(PROVED_MIN - 1);
        second.is_some_and(|second| second.time_ms >= newest_ms)
    })
}

/// Proved snapshots of a history and of those that it continues, oldest first.
fn sequence<'a>(
    head: &'a Holding,
    all: &BTreeMap<LineageId, &'a Holding>,
    holdings: &[Holding],
) -> Vec<(LineageId, &'a Taken)> {
    let mut chain = vec![head];
    let mut seen = BTreeSet::from([head.id]);
    let mut at = head;
    while let Some(parent) = at.parent.and_then(|(parent, _)| all.get(&parent).copied()) {
        // A circle is no descent.
        if !is_continued(parent, holdings) || !seen.insert(parent.id) {
            break;
        }
        chain.push(parent);
        at = parent;
    }
    chain.into_iter().rev().flat_map(|one| one.proved_taken().map(|taken| (one.id, taken))).collect()
}

fn keep_newest(sequence: &[(LineageId, &Taken)], period: Period, count: u32, judged: &mut Judgement) {
    let mut last = None;
    let mut taken_of = 0;
    for (lineage, taken) in sequence.iter().rev() {
        let span = period.of(taken.time_ms);
        if last == Some(span) {
            continue;
        }
        if taken_of == count {
            break;
        }
        (last, taken_of) = (Some(span), taken_of + 1);
        judged.keep(*lineage, taken.index, period.into());
    }
}

#[cfg(test)]
pub(crate) mod tests;
