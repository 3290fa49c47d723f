//! What would be left after a loss.
//!
//! Invariants: a node that is down still holds what is on its disk, a lost one holds nothing; a majority of voters that
//! survives holds every acknowledged write; a copy outside counts only while it was proved lately, or is new; a number is given
//! only when it follows from what is known.

use std::collections::BTreeSet;
use std::fmt;

use crate::domain::{Domain, Keys};
use crate::facts::{Copy, CopyId, Facts, Kind, Running};

/// Yes, no, or nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Certainly.
    Yes,
    /// Certainly not.
    No,
    /// An input is missing; treat it as no.
    Unknown,
}

/// Acknowledged writes that would be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// So many log entries at the end; 0 = nothing.
    Entries(u64),
    /// So many, as far as the leader heard of a node that does not answer: it may hold those of them that were on their
    /// way when it was last heard.
    Heard(u64),
    /// No more than so many: a copy that is left may hold some of them, or all.
    AtMost(u64),
    /// No copy is left.
    Everything,
    /// An input is missing.
    Unknown,
}

impl Loss {
    /// True when certainly nothing is lost.
    pub fn is_nothing(self) -> bool {
        matches!(self, Self::Entries(0) | Self::AtMost(0))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries(0) | Self::AtMost(0) => f.write_str("nothing"),
            Self::Entries(1) => f.write_str("the last entry"),
            Self::Entries(count) => write!(f, "the last {count} entries"),
            Self::Heard(count) | Self::AtMost(count) => write!(f, "at most the last {count} entries"),
            Self::Everything => f.write_str("everything"),
            Self::Unknown => f.write_str("UNKNOWN"),
        }
    }
}

/// How service would come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// By itself: the voters that are left are a majority.
    Election,
    /// From the log of this node, which holds the most of what is left.
    Recover(CopyId),
    /// By `restore run`, from this destination.
    Restore(CopyId),
    /// Not at all.
    Impossible,
    /// Not known which copy would be best.
    Unknown,
}

/// What a loss would leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survival {
    /// What is lost.
    pub lost: Vec<Domain>,
    /// Copies that are lost with it.
    pub copies_lost: Vec<CopyId>,
    /// Copies that are left, whether or not they count.
    pub copies_left: Vec<CopyId>,
    /// Whether writes would still be taken.
    pub writes: Answer,
    /// Acknowledged writes that would be gone.
    pub loss: Loss,
    /// The way back.
    pub recovery: Recovery,
}

/// What losing all of `lost` in one moment would leave.
pub fn survive(facts: &Facts, lost: &[Domain]) -> Survival {
    let is_lost = |copy: &&Copy| lost.iter().any(|domain| copy.is_in(domain));
    let (gone, left): (Vec<&Copy>, Vec<&Copy>) = facts.copies.iter().partition(is_lost);
    let ids = |copies: &[&Copy]| copies.iter().map(|copy| copy.id.clone()).collect();
    let holds_all = facts.is_quorum(&voters(&left, |_| true));
    let loss = loss(facts, &left, holds_all);
    Survival {
        lost: lost.to_vec(),
        copies_lost: ids(&gone),
        copies_left: ids(&left),
        writes: writes(facts, &left),
        loss,
        recovery: recovery(&left, holds_all, loss),
    }
}

fn voters(copies: &[&Copy], which: impl Fn(&Copy) -> bool) -> BTreeSet<u64> {
    let voters = copies.iter().filter(|copy| copy.kind == Kind::Voter && which(copy));
    voters
        .filter_map(|copy| match copy.id {
            CopyId::Node(id) => Some(id),
            CopyId::Destination(_) => None,
        })
        .collect()
}

fn writes(facts: &Facts, left: &[&Copy]) -> Answer {
    if facts.is_quorum(&voters(left, |copy| copy.running == Running::Up)) {
        Answer::Yes
    } else if facts.configs.is_empty() || facts.is_quorum(&voters(left, |copy| copy.running != Running::Down)) {
        Answer::Unknown
    } else {
        Answer::No
    }
}

/// Whether what a copy holds may be counted on.
fn counts(copy: &Copy) -> bool {
    copy.kind.is_node() || copy.freshness.counts()
}

fn loss(facts: &Facts, left: &[&Copy], holds_all: bool) -> Loss {
    if holds_all {
        return Loss::Entries(0);
    }
    if left.is_empty() {
        return Loss::Everything;
    }
    let Some(commit) = facts.commit_index else { return Loss::Unknown };
    let best = left.iter().filter(|copy| counts(copy)).filter_map(|copy| copy.index).max();
    // What may hold more than is known of it makes the loss smaller, never larger.
    let may_hold_more = left.iter().any(|copy| copy.index.is_none() || !counts(copy));
    match best {
        Some(best) if best >= commit => Loss::Entries(0),
        Some(best) if may_hold_more => Loss::AtMost(commit - best),
        Some(best) if left.iter().any(|copy| copy.is_heard_only) => Loss::Heard(commit - best),
        Some(best) => Loss::Entries(commit - best),
        None => Loss::Unknown,
    }
}

fn recovery(left: &[&Copy], holds_all: bool, loss: Loss) -> Recovery {
    if holds_all {
        return Recovery::Election;
    }
    if left.is_empty() {
        return Recovery::Impossible;
    }
    if loss == Loss::Unknown {
        return Recovery::Unknown;
    }
    // At one index a node's own log is the shorter way.
    let known = left.iter().filter(|copy| counts(copy) && copy.index.is_some());
    let best = known.max_by_key(|copy| (copy.index, copy.kind.is_node()));
    match best {
        Some(copy) if copy.kind.is_node() => Recovery::Recover(copy.id.clone()),
        Some(copy) => Recovery::Restore(copy.id.clone()),
        None => Recovery::Unknown,
    }
}

/// Every domain that some copy is in, by key.
pub fn scenarios(facts: &Facts, keys: &Keys) -> Vec<Domain> {
    let of_key = |key: &str| facts.copies.iter().map(|copy| copy.domain(key)).collect::<BTreeSet<_>>();
    keys.iter().flat_map(of_key).collect()
}

/// Every two domains that lose more together than either alone.
pub fn scenarios_of_two(facts: &Facts, keys: &Keys) -> Vec<[Domain; 2]> {
    let all = scenarios(facts, keys);
    let members = |domain: &Domain| {
        facts.copies.iter().enumerate().filter(|(_, copy)| copy.is_in(domain)).map(|(n, _)| n).collect::<BTreeSet<_>>()
    };
    let sets: Vec<BTreeSet<usize>> = all.iter().map(members).collect();
    let mut pairs = Vec::new();
    for (n, first) in all.iter().enumerate() {
        for (m, second) in all.iter().enumerate().skip(n + 1) {
            if !sets[n].is_subset(&sets[m]) && !sets[m].is_subset(&sets[n]) {
                pairs.push([first.clone(), second.clone()]);
            }
        }
    }
    pairs
}
