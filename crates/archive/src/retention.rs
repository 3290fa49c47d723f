//! Retention: which snapshots stay, which may go, and when nothing may. Pure: facts in, a judgement out.
//!
//! Grandfather, father, son: of the snapshots that were proved, the newest of each of the last hours, days, weeks, months and
//! years that have one stays. A *proved* snapshot is one that a majority of the voters signed, in an archive that a trusted
//! verifier read whole since. What was not proved is never counted as one that stays for another to go.
//!
//! Invariants:
//! - Snapshots are ordered by (history, index), never by a time that somebody wrote.
//! - Nothing goes that is newer than the second newest proved snapshot of its history, so that two always stay.
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

use crate::layout::{LineageId, hex, week_of};

const MINUTE_MS: u64 = 60 * 1000;
/// One hour.
pub const HOUR_MS: u64 = 60 * MINUTE_MS;
/// One day.
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// Clocks may differ by so much.
const SKEW_MS: u64 = HOUR_MS;
/// The newest snapshot is held against the largest of so many days.
const SIZE_DAYS: u64 = 30;
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

/// Largest part of a snapshot's size that the next ones may lose, in percent.
pub const DROP_PERCENT_MAX: u64 = 20;

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
}

/// What a trusted verifier said, last of all that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// When, by the verifier's clock.
    pub ended_ms: u64,
    /// Newest snapshot then; all older ones were read with it.
    pub snapshot_index: Option<u64>,
    /// Its root, if that was written down.
    pub root: Option<[u8; 32]>,
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
    /// Snapshots that are, or were, marked to go.
    pub buried: BTreeSet<u64>,
    /// What is damaged or missing, with the reason.
    pub damaged: Vec<(String, String)>,
}

impl Holding {
    fn proved_to(&self) -> Option<u64> {
        self.proved.last().and_then(|said| said.snapshot_index)
    }

    /// It was signed by a majority, and read since by somebody trusted.
    pub fn is_proved(&self, taken: &Taken) -> bool {
        taken.is_attested && self.proved_to().is_some_and(|to| taken.index <= to)
    }

    /// Ascending.
    fn proved_taken(&self) -> impl DoubleEndedIterator<Item = &Taken> {
        self.taken.iter().filter(|taken| self.is_proved(taken))
    }
}

/// Why nothing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Nobody who is trusted proved it lately.
    VerificationStale,
    /// The newest verification found something wrong.
    VerificationFailed,
    /// Of one state there are two accounts, or no majority vouches for the newest.
    RootsDisagree,
    /// The newest snapshot is much smaller than those before it.
    SizeDrop,
    /// Times run backwards, or ahead.
    TimesForged,
    /// A snapshot is gone, and nobody marked it.
    SnapshotMissing,
    /// Something that stays is not whole.
    Damaged,
}

impl Rule {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VerificationStale => "verification-stale",
            Self::VerificationFailed => "verification-failed",
            Self::RootsDisagree => "roots-disagree",
            Self::SizeDrop => "size-drop",
            Self::TimesForged => "times-forged",
            Self::SnapshotMissing => "snapshot-missing",
            Self::Damaged => "damaged",
        }
    }

    /// What ends it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::VerificationStale => {
                "run `holdfast backup verify --level 2 --record` or `holdfast drill run` with the key that is trusted here, \
                 or trust another one with --trust"
            }
            Self::VerificationFailed => {
                "run `holdfast backup verify --level 2`, mend what it names or take it from another copy, and record a good one"
            }
            Self::RootsDisagree => {
                "run `holdfast integrity compare`; when the nodes agree, `holdfast backup now` and verify with --record"
            }
            Self::SizeDrop => "find out what was deleted; if it was meant, run it once with --accept-size-drop",
            Self::TimesForged => {
                "find out whose clock or whose hand it was; until then snapshots of true times could be taken for old ones"
            }
            Self::SnapshotMissing => {
                "find out who deletes there (`holdfast backup doctor`); bring the objects back, or let a vault restore them"
            }
            Self::Damaged => "run `holdfast backup verify`; take what it names from another copy",
        }
    }
}

/// One reason to let nothing go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// Which rule.
    pub rule: Rule,
    /// Of which history.
    pub lineage: LineageId,
    /// What was seen.
    pub reason: String,
}

/// Why a snapshot stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// One of the two newest proved ones, or newer than these.
    Newest,
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

/// Judges all that lies at one destination. `accept_drop`: somebody knows why it shrank.
pub fn judge(holdings: &[Holding], policy: &Policy, now_ms: u64, accept_drop: bool) -> Judgement {
    let all: BTreeMap<LineageId, &Holding> = holdings.iter().map(|holding| (holding.id, holding)).collect();
    let mut judged = Judgement::default();
    for holding in holdings {
        let newest: Vec<u64> = holding.proved_taken().rev().take(PROVED_MIN).map(|taken| taken.index).collect();
        let floor = newest.last().filter(|_| newest.len() == PROVED_MIN).copied().unwrap_or(0);
        for taken in holding.taken.iter().filter(|taken| taken.index >= floor) {
            judged.kept.entry((holding.id, taken.index)).or_default().insert(Reason::Newest);
        }
    }
    for head in holdings.iter().filter(|holding| !is_continued(holding, holdings)) {
        let sequence = sequence(head, &all, holdings);
        for (period, count) in policy.periods() {
            keep_newest(&sequence, period, count, &mut judged);
        }
        judged.frozen.extend(head_faults(head, &sequence, accept_drop));
    }
    for holding in holdings {
        judged.frozen.extend(faults(holding, &all, policy, now_ms));
        let oldest_ms = now_ms.saturating_sub(Policy::ms(policy.window_days));
        let kept = |taken: &&Taken| judged.kept.contains_key(&(holding.id, taken.index));
        let base = holding.proved_taken().rev().filter(kept).find(|taken| taken.time_ms <= oldest_ms);
        judged.log_through.extend(base.map(|base| (holding.id, base.index)));
        let gone = holding.taken.iter().map(|taken| (holding.id, taken.index));
        judged.doomed.extend(gone.filter(|one| !judged.kept.contains_key(one)));
    }
    judged
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
        judged.kept.entry((*lineage, taken.index)).or_default().insert(period.into());
    }
}

/// What is wrong with the newest of a history that goes on.
fn head_faults(head: &Holding, sequence: &[(LineageId, &Taken)], accept_drop: bool) -> Vec<Frozen> {
    let mut frozen = Vec::new();
    let Some(newest) = head.taken.last() else { return frozen };
    let mut freeze = |rule, reason| frozen.push(Frozen { rule, lineage: head.id, reason });
    if !newest.is_attested {
        let reason = format!("no majority of the voters vouches for the newest snapshot, at index {}", newest.index);
        freeze(Rule::RootsDisagree, reason);
    }
    let from_ms = newest.time_ms.saturating_sub(SIZE_DAYS * DAY_MS);
    let before = || sequence.iter().map(|(_, taken)| *taken).filter(|taken| taken.time_ms >= from_ms);
    for what in ["bytes", "records"] {
        let size = |taken: &Taken| if what == "bytes" { taken.bytes } else { taken.records };
        let Some(largest) = before().max_by_key(|taken| size(taken)) else { continue };
        let (now, then) = (size(newest), size(largest));
        let dropped = u128::from(now) * 100 < u128::from(then) * u128::from(100 - DROP_PERCENT_MAX);
        if dropped && !accept_drop {
            let percent = 100 - u128::from(now) * 100 / u128::from(then).max(1);
            let reason = format!(
                "the snapshot at index {} has {now} {what}, {percent} % fewer than the {then} of that at index {}",
                newest.index, largest.index
            );
            freeze(Rule::SizeDrop, reason);
        }
    }
    frozen
}

/// What else is wrong with a history.
fn faults(holding: &Holding, all: &BTreeMap<LineageId, &Holding>, policy: &Policy, now_ms: u64) -> Vec<Frozen> {
    let mut frozen = Vec::new();
    let mut freeze = |rule, reason| frozen.push(Frozen { rule, lineage: holding.id, reason });
    for (object, reason) in &holding.damaged {
        freeze(Rule::Damaged, format!("{object}: {reason}"));
    }
    if holding.taken.is_empty() {
        return frozen;
    }
    let newest = holding.proved.last();
    match newest.map(|said| said.ended_ms) {
        None => freeze(Rule::VerificationStale, "nobody who is trusted here proved it yet".into()),
        Some(ended_ms) if now_ms.saturating_sub(ended_ms) > Policy::ms(policy.max_age_days) => {
            let days = (now_ms - ended_ms) / DAY_MS;
            let reason = format!("it was last proved {days} days ago, {} are the limit", policy.max_age_days);
            freeze(Rule::VerificationStale, reason);
        }
        Some(_) => {}
    }
    if let Some(failed) = &holding.failed
        && newest.is_none_or(|good| failed.ended_ms >= good.ended_ms)
    {
        freeze(Rule::VerificationFailed, failed.why.clone().unwrap_or_default());
    }
    for said in &holding.proved {
        if said.ended_ms > now_ms + SKEW_MS {
            freeze(Rule::TimesForged, "a verification is of a time that has not come".into());
        }
        // What somebody proved must be what lies there.
        let found = said.snapshot_index.and_then(|index| holding.taken.iter().find(|taken| taken.index == index));
        if let (Some(taken), Some(root)) = (found, said.root)
            && taken.root != root
        {
            let (was, is) = (hex(&root), hex(&taken.root));
            let reason = format!("the snapshot at index {} was proved with root {was}, and now has {is}", taken.index);
            freeze(Rule::RootsDisagree, reason);
        }
        let index = said.snapshot_index.filter(|index| found.is_none() && !holding.buried.contains(index));
        if let Some(index) = index {
            let reason = format!("the snapshot at index {index} was proved, and is gone: nobody marked it to go");
            freeze(Rule::SnapshotMissing, reason);
        }
    }
    for pair in holding.taken.windows(2) {
        if pair[1].time_ms < pair[0].time_ms {
            let (a, b) = (pair[0].index, pair[1].index);
            freeze(
                Rule::TimesForged,
                format!("the snapshot at index {b} says that it is older than that at index {a}"),
            );
        }
    }
    let first = holding.taken.first();
    if let (Some((parent, fork)), Some(first)) = (holding.parent, first) {
        let mut shared =
            all.get(&parent).into_iter().flat_map(|parent| &parent.taken).filter(|taken| taken.index <= fork);
        if let Some(older) = shared.rfind(|taken| taken.time_ms > first.time_ms) {
            let (a, b) = (older.index, first.index);
            let reason = format!("the snapshot at index {b} says that it is older than that of {parent} at index {a}");
            freeze(Rule::TimesForged, reason);
        }
    }
    for taken in &holding.taken {
        let index = taken.index;
        if taken.time_ms > now_ms + SKEW_MS {
            freeze(Rule::TimesForged, format!("the snapshot at index {index} is of a time that has not come"));
        } else if taken.time_ms > taken.stored_ms + SKEW_MS {
            let ahead = (taken.time_ms - taken.stored_ms) / MINUTE_MS;
            let reason = format!("the snapshot at index {index} was stored {ahead} minutes before the time it is of");
            freeze(Rule::TimesForged, reason);
        }
        let lost = taken.previous.filter(|previous| {
            !holding.buried.contains(previous) && !holding.taken.iter().any(|one| one.index == *previous)
        });
        if let Some(previous) = lost {
            let reason = format!(
                "the snapshot at index {previous} is gone, that at {index} continues it: nobody marked it to go"
            );
            freeze(Rule::SnapshotMissing, reason);
        }
    }
    frozen
}

/// Snapshots at one place in one history must have one root, wherever they lie.
pub fn compare_roots<'a>(destinations: impl Iterator<Item = (&'a str, &'a [Holding])>) -> Vec<Frozen> {
    let mut roots: BTreeMap<(LineageId, u64), (&str, [u8; 32])> = BTreeMap::new();
    let mut frozen = Vec::new();
    for (name, holdings) in destinations {
        for holding in holdings {
            for taken in &holding.taken {
                let (first, root) = *roots.entry((holding.id, taken.index)).or_insert((name, taken.root));
                if root != taken.root {
                    let reason = format!(
                        "the snapshot at index {} has root {} at {first}, and {} at {name}",
                        taken.index,
                        hex(&root),
                        hex(&taken.root)
                    );
                    frozen.push(Frozen { rule: Rule::RootsDisagree, lineage: holding.id, reason });
                }
            }
        }
    }
    frozen
}

#[cfg(test)]
pub(crate) mod tests;
