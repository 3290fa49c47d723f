//! What those found who verify copies: read from each destination by whoever leads, where they laid it down.
//!
//! Invariants: nothing is believed but what its signature fits, and where the configuration names keys, what one of them signed;
//! what claims to be of the future is passed over; a look that fails leaves what is known as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Duration;

use holdfast_archive::doctor::{RecordedVerdict, newest_verdict};
use holdfast_archive::log::{list_segments, read_segment};
use holdfast_archive::verification::read_one;
use holdfast_archive::{ArchiveError, Depth, Destination, DestinationConfig, LineageId, ObjectName, Recorded, layout};
use holdfast_model::id::{GroupId, Millis};
use tokio::time::{Instant, sleep};

use super::{IDLE_PAUSE, Shipper};
use crate::config::Offsite;

/// A verifier's clock may be ahead by so much.
const AHEAD_MS_MAX: u64 = 60 * 60 * 1000;
/// What was laid down late, by a clock that is behind, is looked for so far back.
const BEHIND_MS_MAX: u64 = 2 * 60 * 60 * 1000;
/// Verdicts of doctors change seldom: they are looked for at every so many looks.
const VERDICT_LOOKS: u32 = 30;
/// Verifications that are read at the first look, the newest first.
const FIRST_LOOK_MAX: usize = 100;

/// Who is believed, and how often is looked.
#[derive(Debug, Clone)]
pub struct Verifiers {
    /// Keys; empty = everybody who can lay down a verification there.
    pub keys: Vec<[u8; 32]>,
    /// From one look to the next.
    pub poll: Duration,
}

/// What is known of the copy at a destination.
#[derive(Debug, Clone, Default)]
pub struct Proofs {
    /// Newest that found it good, by level.
    good: BTreeMap<Depth, Recorded>,
    /// Newest that found it bad, by level.
    bad: BTreeMap<Depth, Recorded>,
    /// When the first entry there was stamped; `None` = not known.
    pub began: Option<Millis>,
    /// What the destination lets its clients do, as it was found last.
    pub verdict: Option<RecordedVerdict>,
}

impl Proofs {
    fn take(&mut self, one: Recorded) {
        let of = if one.found.good { &mut self.good } else { &mut self.bad };
        let is_newer = of.get(&one.found.level).is_none_or(|known| known.found.ended_ms <= one.found.ended_ms);
        if is_newer {
            of.insert(one.found.level, one);
        }
    }

    /// Newest that found it good at this level or a deeper one.
    pub fn good(&self, level: Depth) -> Option<&Recorded> {
        self.good.range(level..).map(|(_, one)| one).max_by_key(|one| one.found.ended_ms)
    }

    /// Newest that found it bad, unless one that looked as closely found it good since.
    pub fn failed(&self) -> Option<&Recorded> {
        let stands =
            |bad: &&Recorded| self.good(bad.found.level).is_none_or(|good| good.found.ended_ms <= bad.found.ended_ms);
        self.bad.values().filter(stands).max_by_key(|one| one.found.ended_ms)
    }
}

/// One look after the other at a destination.
struct Looker {
    destination: Destination,
    lineage: LineageId,
    group: GroupId,
    /// Names up to here were looked at, if they lie behind what is looked for again.
    newest_ms: Option<u64>,
    seen: BTreeSet<String>,
    /// Looks so far.
    looks: u32,
}

impl Shipper {
    /// Looks for as long as this node leads.
    pub(super) async fn look_for_proofs(&self, destination: Offsite) {
        let mut looker: Option<Looker> = None;
        loop {
            let sys = self.replica.sys();
            let history = sys.history.clone().filter(|_| self.replica.is_opened(&sys) && self.replica.is_leader());
            // Nothing is there before something was shipped, and a folder that is missing is not made for a look.
            let is_begun = sys.offsite.contains_key(&destination.name);
            drop(sys);
            let Some(history) = history.filter(|_| is_begun) else {
                if looker.take().is_some() {
                    self.forget_proofs(&destination.name);
                }
                sleep(IDLE_PAUSE).await;
                continue;
            };
            let lineage = LineageId { cluster_id: history.cluster_id, incarnation: history.incarnation };
            if looker.as_ref().is_none_or(|looker| looker.lineage != lineage) {
                self.forget_proofs(&destination.name);
                looker = self.looker(&destination, lineage).await;
            }
            if let Some(looker) = &mut looker
                && let Err(error) = self.look(&destination.name, looker).await
            {
                // Shipping says the same, and louder.
                tracing::debug!(event = "offsite.proofs", destination = destination.name, %error, "looked in vain");
            }
            let until = Instant::now() + self.verifiers.poll;
            while Instant::now() < until && self.replica.is_leader() {
                sleep(IDLE_PAUSE).await;
            }
        }
    }

    async fn looker(&self, destination: &Offsite, lineage: LineageId) -> Option<Looker> {
        let opened = Destination::open(&DestinationConfig::from(destination)).ok()?;
        let destination = opened.with_keys(self.encryption.keys.clone());
        let group = self.replica.group_id();
        Some(Looker { destination, lineage, group, newest_ms: None, seen: BTreeSet::new(), looks: 0 })
    }

    /// What is found is noted when all of it was: a look that ended half way says nothing.
    async fn look(&self, name: &str, looker: &mut Looker) -> Result<(), ArchiveError> {
        let now = self.replica.group_now();
        let believed = |key: &[u8; 32]| self.verifiers.keys.is_empty() || self.verifiers.keys.contains(key);
        let verdict = match looker.looks.is_multiple_of(VERDICT_LOOKS) {
            true => Some(newest_verdict(&looker.destination, now.0, believed).await?),
            false => None,
        };
        let (fresh, names) = looker.fresh(now).await?;
        let (fresh, others): (Vec<Recorded>, Vec<Recorded>) = fresh.into_iter().partition(|one| believed(&one.key));
        let (of_vaults, fresh): (Vec<Recorded>, Vec<Recorded>) =
            fresh.into_iter().partition(|one| one.found.vault.is_some());
        let is_good = |one: &Recorded| one.found.good && one.found.level >= Depth::Proved;
        let known = self.proofs_of(name).unwrap_or_default();
        // Of a copy that was proved nobody asks how old it is, and to find its beginning all of its log is listed.
        let began = match known.began.is_none() && known.good(Depth::Proved).is_none() && !fresh.iter().any(is_good) {
            true => looker.began().await?,
            false => known.began,
        };
        others.iter().for_each(|one| tell_of(name, one, false));
        fresh.iter().for_each(|one| tell_of(name, one, true));
        for one in of_vaults {
            let vault = one.found.vault.clone().unwrap_or_default();
            tell_of(&vault, &one, true);
            let mut vaults = self.vaults.lock().unwrap_or_else(PoisonError::into_inner);
            vaults.entry((name.to_owned(), vault)).or_default().take(one);
        }
        self.note_proofs(name, |proofs| {
            proofs.began = began;
            if let Some(verdict) = verdict {
                proofs.verdict = verdict;
            }
            fresh.into_iter().for_each(|one| proofs.take(one));
        });
        looker.saw(names, now);
        Ok(())
    }
}

fn tell_of(destination: &str, one: &Recorded, is_believed: bool) {
    let (key, level, object) = (layout::hex(&one.key), one.found.level.as_str(), &one.object);
    let why = one.found.why().unwrap_or_default();
    match (is_believed, one.found.good) {
        (false, _) => {
            tracing::warn!(
                event = "copy.not_believed",
                destination,
                object,
                key,
                "verify.keys does not name this verifier"
            );
        }
        (true, true) => {
            tracing::info!(event = "copy.verified", destination, object, level, key, "a copy was found good")
        }
        (true, false) => tracing::error!(event = "copy.failed", destination, object, level, key, why, "a copy is bad"),
    }
}

/// What is known, by destination.
impl Shipper {
    /// What is known of the copy at a destination; `None`: this node does not lead, or did not look yet.
    pub fn proofs_of(&self, name: &str) -> Option<Proofs> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn note_proofs(&self, name: &str, change: impl FnOnce(&mut Proofs)) {
        change(self.proofs.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default());
    }

    fn forget_proofs(&self, name: &str) {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.vaults.lock().unwrap_or_else(PoisonError::into_inner).retain(|(destination, _), _| destination != name);
    }

    /// What is known of a vault, wherever it was said; `None`: this node does not lead, or did not look yet.
    pub fn proofs_of_vault(&self, name: &str) -> Option<Proofs> {
        if self.proofs.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return None;
        }
        let vaults = self.vaults.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Proofs::default();
        for proofs in vaults.iter().filter(|((_, vault), _)| vault == name).map(|(_, proofs)| proofs) {
            proofs.good.values().chain(proofs.bad.values()).for_each(|one| all.take(one.clone()));
        }
        Some(all)
    }
}

impl Looker {
    /// When the first entry here was stamped.
    async fn began(&self) -> Result<Option<Millis>, ArchiveError> {
        let first = list_segments(&self.destination, &self.lineage, self.group).await?.into_iter().next();
        let Some(first) = first else { return Ok(None) };
        match read_segment(&self.destination, &self.lineage, self.group, first.first).await {
            Ok(segment) => Ok(Some(Millis(segment.stamp_ms)).filter(|stamp| *stamp > Millis(0))),
            // Of what does not open nobody knows how old it is.
            Err(error) if error.fault().is_some() || matches!(error, ArchiveError::NoKey { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Verifications that were not looked at before, ascending by their time; and all names that need not be looked at again.
    async fn fresh(&self, now: Millis) -> Result<(Vec<Recorded>, Vec<String>), ArchiveError> {
        let prefix = self.lineage.verify_prefix(self.group);
        let listed = match self.newest_ms {
            None => self.destination.list(&prefix).await?,
            Some(newest_ms) => {
                let at_ms = newest_ms.saturating_sub(BEHIND_MS_MAX);
                let after = ObjectName::Verification { group: self.group, at_ms, key: [0; 8] }.path(&self.lineage);
                self.destination.list_after(&prefix, &after).await?
            }
        };
        let names: Vec<(u64, String)> = listed
            .into_iter()
            .filter_map(|found| Some((ended_ms(&found.path)?, found.path)))
            .filter(|(at_ms, path)| *at_ms <= now.0 + AHEAD_MS_MAX && !self.seen.contains(path))
            .collect();
        let first_look = self.newest_ms.is_none();
        let skipped = if first_look { names.len().saturating_sub(FIRST_LOOK_MAX) } else { 0 };
        let mut fresh = Vec::new();
        for (_, path) in &names[skipped..] {
            match read_one(&self.destination, path).await {
                Ok(one) => fresh.push(one),
                // `backup verify` names it; it says nothing.
                Err(error) if error.fault().is_some() => {
                    tracing::warn!(event = "offsite.proofs", object = path, %error, "passed over");
                }
                Err(error) => return Err(error),
            }
        }
        Ok((fresh, names.into_iter().map(|(_, path)| path).collect()))
    }

    /// All that came of a look is noted: these are not looked at again.
    fn saw(&mut self, names: Vec<String>, now: Millis) {
        for path in names {
            self.newest_ms = self.newest_ms.max(ended_ms(&path).map(|at_ms| at_ms.min(now.0)));
            self.seen.insert(path);
        }
        let again_ms = self.newest_ms.unwrap_or(0).saturating_sub(BEHIND_MS_MAX);
        self.seen.retain(|path| ended_ms(path).is_some_and(|at_ms| at_ms >= again_ms));
        self.looks = self.looks.wrapping_add(1);
    }
}

/// When a verification ended, by its name.
fn ended_ms(path: &str) -> Option<u64> {
    match ObjectName::parse(path) {
        Some((_, ObjectName::Verification { at_ms, .. })) => Some(at_ms),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
