//! When nothing goes at all: the rules, and what was seen that they are about.
//!
//! Invariant: each names what it saw; one that is about a snapshot can be looked into and accepted for that one alone.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{DAY_MS, HOUR_MS, Holding, Policy, Taken};
use crate::layout::{LineageId, hex};

const MINUTE_MS: u64 = 60 * 1000;
/// Clocks may differ by so much.
const SKEW_MS: u64 = HOUR_MS;
/// The newest snapshot is held against the largest of so many days.
const SIZE_DAYS: u64 = 30;
/// Largest part of a snapshot's size that the next ones may lose, in percent.
pub const DROP_PERCENT_MAX: u64 = 20;

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
    const ALL: [Self; 7] = [
        Self::VerificationStale,
        Self::VerificationFailed,
        Self::RootsDisagree,
        Self::SizeDrop,
        Self::TimesForged,
        Self::SnapshotMissing,
        Self::Damaged,
    ];

    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text)
    }

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
            Self::SizeDrop => {
                "find out what was deleted; if it was meant, --accept size-drop=INDEX holds snapshots from that one on against each \
                 other alone"
            }
            Self::TimesForged => {
                "find out whose clock or whose hand it was: snapshots of true times could be taken for old ones; --accept \
                 times-forged=INDEX lets one pass"
            }
            Self::SnapshotMissing => {
                "find out who deletes there (`holdfast backup doctor`), and bring it back from another copy; --trust the key that \
                 marked it, if that was yours, or --accept snapshot-missing=INDEX"
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
    /// The snapshot that it is about, by its last entry.
    pub index: Option<u64>,
    /// What was seen.
    pub reason: String,
}

/// Reasons that somebody looked into, each for one snapshot.
pub type Accepted = BTreeSet<(Rule, u64)>;

/// Keys that signed, by node.
type Witnesses = BTreeSet<(u64, [u8; 32])>;

/// What is wrong with the newest of a history that goes on.
pub(super) fn of_head(head: &Holding, sequence: &[(LineageId, &Taken)], accepted: &Accepted) -> Vec<Frozen> {
    let mut frozen = Vec::new();
    let Some(newest) = head.taken.last() else { return frozen };
    let index = Some(newest.index);
    let mut freeze = |rule, reason| frozen.push(Frozen { rule, lineage: head.id, index, reason });
    if !newest.is_attested {
        let reason = format!("no majority of the voters vouches for the newest snapshot, at index {}", newest.index);
        freeze(Rule::RootsDisagree, reason);
    }
    let from_ms = newest.time_ms.saturating_sub(SIZE_DAYS * DAY_MS);
    // Somebody knows why those from here on are smaller.
    let since = accepted.iter().filter(|(rule, _)| *rule == Rule::SizeDrop).map(|(_, index)| *index).max().unwrap_or(0);
    let counts = |taken: &&Taken| taken.time_ms >= from_ms && taken.index >= since;
    for what in ["bytes", "records"] {
        let size = |taken: &Taken| if what == "bytes" { taken.bytes } else { taken.records };
        let before = sequence.iter().map(|(_, taken)| *taken).filter(counts);
        let Some(largest) = before.max_by_key(|taken| size(taken)) else { continue };
        let (now, then) = (size(newest), size(largest));
        if u128::from(now) * 100 < u128::from(then) * u128::from(100 - DROP_PERCENT_MAX) {
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
pub(super) fn of(
    holding: &Holding,
    is_continued: bool,
    all: &BTreeMap<LineageId, &Holding>,
    policy: &Policy,
    now_ms: u64,
) -> Vec<Frozen> {
    let mut faults = Faults { holding, frozen: Vec::new() };
    for (object, reason) in &holding.damaged {
        faults.freeze(Rule::Damaged, None, format!("{object}: {reason}"));
    }
    // Of what another history stands for nobody has to say again that it is good.
    if !is_continued && !holding.taken.is_empty() {
        faults.of_age(policy, now_ms);
    }
    let newest = holding.proved.last();
    if let Some(failed) = &holding.failed
        && newest.is_none_or(|good| failed.ended_ms >= good.ended_ms)
    {
        faults.freeze(Rule::VerificationFailed, None, failed.why.clone().unwrap_or_default());
    }
    faults.of_verifications(now_ms);
    faults.of_times(all, now_ms);
    faults.of_witnesses();
    faults.frozen
}

struct Faults<'a> {
    holding: &'a Holding,
    frozen: Vec<Frozen>,
}

impl Faults<'_> {
    fn freeze(&mut self, rule: Rule, index: Option<u64>, reason: String) {
        self.frozen.push(Frozen { rule, lineage: self.holding.id, index, reason });
    }

    fn of_age(&mut self, policy: &Policy, now_ms: u64) {
        match self.holding.proved.last().map(|said| said.ended_ms) {
            None => self.freeze(Rule::VerificationStale, None, "nobody who is trusted here proved it yet".into()),
            Some(ended_ms) if now_ms.saturating_sub(ended_ms) > Policy::ms(policy.max_age_days) => {
                let days = (now_ms - ended_ms) / DAY_MS;
                let reason = format!("it was last proved {days} days ago, {} are the limit", policy.max_age_days);
                self.freeze(Rule::VerificationStale, None, reason);
            }
            Some(_) => {}
        }
    }

    /// What somebody proved must be what lies there.
    fn of_verifications(&mut self, now_ms: u64) {
        let holding = self.holding;
        if holding.proved.iter().any(|said| said.ended_ms > now_ms + SKEW_MS) {
            self.freeze(Rule::TimesForged, None, "a verification is of a time that has not come".into());
        }
        let seen: BTreeSet<_> = holding.proved.iter().flat_map(|said| &said.snapshots).collect();
        for (index, (root, seal)) in seen {
            match holding.taken.iter().find(|taken| taken.index == *index) {
                Some(taken) if (taken.root, taken.seal) != (*root, *seal) => {
                    let (was, is) = (hex(root), hex(&taken.root));
                    let reason =
                        format!("the snapshot at index {index} was proved with root {was}, and is another now: {is}");
                    self.freeze(Rule::RootsDisagree, Some(*index), reason);
                }
                Some(_) => {}
                None => self.missing(*index, "was proved"),
            }
        }
        for taken in &holding.taken {
            if let Some(previous) = taken.previous
                && !holding.taken.iter().any(|one| one.index == previous)
            {
                self.missing(previous, &format!("is continued by that at index {}", taken.index));
            }
        }
    }

    /// A snapshot is gone: nobody who may marked it.
    fn missing(&mut self, index: u64, known: &str) {
        let is_known = |one: &Frozen| (one.rule, one.index) == (Rule::SnapshotMissing, Some(index));
        if self.holding.buried.contains(&index) || self.frozen.iter().any(is_known) {
            return;
        }
        let who = match self.holding.buried_by_strangers.contains(&index) {
            true => "it was marked by a key that is not trusted here",
            false => "nobody marked it to go",
        };
        let reason = format!("the snapshot at index {index} {known}, and is gone: {who}");
        self.freeze(Rule::SnapshotMissing, Some(index), reason);
    }

    fn of_times(&mut self, all: &BTreeMap<LineageId, &Holding>, now_ms: u64) {
        let holding = self.holding;
        for pair in holding.taken.windows(2).filter(|pair| pair[1].time_ms < pair[0].time_ms) {
            let (a, b) = (pair[0].index, pair[1].index);
            let reason = format!("the snapshot at index {b} says that it is older than that at index {a}");
            self.freeze(Rule::TimesForged, Some(b), reason);
        }
        if let (Some((parent, fork)), Some(first)) = (holding.parent, holding.taken.first()) {
            let taken = all.get(&parent).into_iter().flat_map(|parent| &parent.taken);
            let mut shared = taken.filter(|taken| taken.index <= fork);
            if let Some(older) = shared.rfind(|taken| taken.time_ms > first.time_ms) {
                let (a, b) = (older.index, first.index);
                let reason =
                    format!("the snapshot at index {b} says that it is older than that of {parent} at index {a}");
                self.freeze(Rule::TimesForged, Some(b), reason);
            }
        }
        for taken in &holding.taken {
            let index = taken.index;
            if taken.time_ms > now_ms + SKEW_MS {
                let reason = format!("the snapshot at index {index} is of a time that has not come");
                self.freeze(Rule::TimesForged, Some(index), reason);
            } else if taken.time_ms > taken.stored_ms + SKEW_MS {
                let ahead = (taken.time_ms - taken.stored_ms) / MINUTE_MS;
                let reason =
                    format!("the snapshot at index {index} was stored {ahead} minutes before the time it is of");
                self.freeze(Rule::TimesForged, Some(index), reason);
            }
        }
    }

    /// Majorities of one set of voters have members in common, and sets change step by step: snapshots whose signers have nothing
    /// to do with those before *and* after them were put in between by somebody who made up voters.
    fn of_witnesses(&mut self) {
        // Keys that signed together, directly or by way of others, with the first and the last snapshot of any of them.
        let mut clans: Vec<(Witnesses, u64, u64)> = Vec::new();
        for taken in self.holding.taken.iter().filter(|taken| taken.is_attested) {
            let mut clan = (taken.witnesses.clone(), taken.index, taken.index);
            clans.retain(|(keys, first, last)| {
                let is_own = !keys.is_disjoint(&clan.0);
                if is_own {
                    clan = (clan.0.union(keys).copied().collect(), clan.1.min(*first), clan.2.max(*last));
                }
                !is_own
            });
            clans.push(clan);
        }
        let between = |(_, first, _): &&(Witnesses, u64, u64)| {
            clans.iter().find(|(_, from, to)| from < first && first < to).map(|(_, from, to)| (*from, *to))
        };
        let strange: Vec<_> = clans.iter().filter_map(|clan| Some((clan.1, between(&clan)?))).collect();
        for (index, (first, last)) in strange {
            let reason = format!(
                "who signed the snapshot at index {index} has nothing to do with those who signed that at {first} and that at {last}"
            );
            self.freeze(Rule::RootsDisagree, Some(index), reason);
        }
    }
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
                    let index = Some(taken.index);
                    frozen.push(Frozen { rule: Rule::RootsDisagree, lineage: holding.id, index, reason });
                }
            }
        }
    }
    frozen
}
