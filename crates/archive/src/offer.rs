//! The newest point of an archive that can be restored, although some of its objects are damaged or missing.
//!
//! Invariants:
//! - What is offered was read: every object of the plan, every hash and every chain.
//! - A snapshot that cannot be used is gone around, by an older one and more of the log, and costs nothing but time. Where
//!   the log itself is damaged, what is offered ends before the damage, and says that it does.

use holdfast_model::id::GroupId;

use crate::destination::Destination;
use crate::error::ArchiveError;
use crate::layout::ObjectName;
use crate::log::last_index;
use crate::plan::{Around, At, Choose, RestorePlan, newest_by_logs, plan_around};
use crate::restore::{Progress, check_all};

/// What can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Sound: every object of it was read.
    pub plan: RestorePlan,
    /// The work that its replay is ([`crate::restore::replay_weight`]).
    pub replay_weight: u64,
    /// It ends where it was asked to, and not before.
    pub is_whole: bool,
    /// Objects that are wrong, with the reason, in the order in which they were met.
    pub bad: Vec<(String, String)>,
}

/// Plans a restore and reads everything that it needs; around what is damaged, if there is a way.
///
/// # Errors
/// When nothing can be restored: names the first object that is wrong, or says that there is nothing.
pub async fn offer(
    destination: &Destination,
    group: GroupId,
    choose: Choose,
    progress: Progress<'_>,
) -> Result<Offer, ArchiveError> {
    let (mut now, mut around) = (choose, Around::default());
    let mut bad: Vec<(String, String)> = Vec::new();
    let mut first = None;
    loop {
        let found = match plan_around(destination, group, now, &around).await {
            Ok(plan) => match plan.check_end() {
                Ok(()) => check_all(destination, &plan, progress).await.map(|weight| (plan, weight)),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let error = match found {
            Ok((plan, replay_weight)) => {
                return Ok(Offer { plan, replay_weight, is_whole: now == choose, bad });
            }
            Err(error) => error,
        };
        let Some((object, reason)) = error.fault() else { return Err(first.unwrap_or(error)) };
        let next = step(destination, group, &object, now, &mut around).await?;
        if !bad.iter().any(|(seen, _)| *seen == object) {
            bad.push((object, reason));
        }
        match next {
            Some(next) => now = next,
            // Nothing lies before it, or there is no way around it.
            None => return Err(first.unwrap_or(error)),
        }
        first = first.or(Some(error));
    }
}

/// What to plan next, where `object` cannot be used; `None` = there is nothing. Each step leaves out one snapshot more, or
/// ends before the step before it.
async fn step(
    destination: &Destination,
    group: GroupId,
    object: &str,
    now: Choose,
    around: &mut Around,
) -> Result<Option<Choose>, ArchiveError> {
    let Some((lineage, name)) = ObjectName::parse(object) else { return Ok(None) };
    match name {
        ObjectName::Manifest { index, .. } => Ok(around.snapshots.insert((lineage, index)).then_some(now)),
        ObjectName::Chunk { .. } | ObjectName::Patch { .. } => {
            // Every snapshot that names it falls with it; the plan was about to use the newest of them.
            let plan = plan_around(destination, group, now, around).await?;
            let snapshot = plan.snapshot.filter(|manifest| manifest.objects().any(|(of, _)| of == name));
            let is_new = snapshot.is_some_and(|manifest| around.snapshots.insert((lineage, manifest.applied.index)));
            Ok(is_new.then_some(now))
        }
        ObjectName::Joined { .. } => Ok(around.joined.insert(object.to_owned()).then_some(now)),
        ObjectName::Segment { first, .. } => {
            let before = first.checked_sub(1).filter(|before| now.at != At::Index(*before));
            Ok(before.map(|index| Choose { lineage: Some(lineage), at: At::Index(index) }))
        }
        // The key of what was planned: nothing of its generation can be read, and all later ones may. A heartbeat says how
        // far the log went, and is not needed.
        ObjectName::Keys { .. }
        | ObjectName::Heartbeat { .. }
        | ObjectName::Verification { .. }
        | ObjectName::Tombstone { .. }
        | ObjectName::Pruned { .. } => Ok(None),
        // Its log says what it is, to whoever names the entry: the last one that there is.
        ObjectName::Lineage => {
            let named = now.lineage.is_some_and(|named| named != lineage);
            let (newest, last) = match now.lineage {
                Some(_) => (lineage, last_index(destination, &lineage, group).await?),
                None => newest_by_logs(destination, group).await?,
            };
            let next = last.map(|index| Choose { lineage: Some(newest), at: At::Index(index) });
            Ok(next.filter(|next| !named && *next != now))
        }
    }
}

#[cfg(test)]
mod tests;
