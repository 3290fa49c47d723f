//! Which faults strike when: drawn from the seed, one or two at once, for a drawn time, again and again.
//!
//! Invariants:
//! - Before each fault there was load, and after it was healed there is load again; where a majority was left alone,
//!   there was load while it stood, too. What was missing is in the history, and the checker of the harness judges it.
//! - When it returns without an error, nothing stands.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_client::RecordRef;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::cluster::{Cluster, comes_true};
use crate::history::{Action, Named, Recovered, Restart, Stage};
use crate::nemesis::{Fault, Struck, World};

/// How long a fault may take until what it does is seen, where a run does not say how long it waits for nodes.
pub(super) const RECOVER_WITHIN: Duration = Duration::from_secs(30);
/// For one try of the read that shows that a node serves.
const PROBE_WITHIN: Duration = Duration::from_millis(500);
/// A record that nobody has.
const PROBE: RecordRef<'_> = RecordRef { user: "probe", collection: "x-probe", record_id: "serves" };
/// A second fault strikes while the first one stands in so many of a hundred cases.
const OVERLAP_PERCENT: usize = 60;
/// On a slow machine, faults that were not there yet are made for so much longer.
const LATE: Duration = Duration::from_secs(120);
/// How long faults stand, at least and at most.
const HOLD_MS: (usize, usize) = (500, 5_000);

/// How the cluster was when the last fault was healed. Ordered: the worse, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum After {
    /// Writes are acknowledged, and every member serves.
    Well,
    /// Writes are acknowledged, and a member does not serve.
    Limping,
    /// No writes are acknowledged: there is nothing more to ask it.
    Down,
}

impl After {
    pub(super) fn of(writes: bool, serve: bool) -> Self {
        match (writes, serve) {
            (true, true) => Self::Well,
            (true, false) => Self::Limping,
            (false, _) => Self::Down,
        }
    }
}

/// What is to strike.
#[derive(Debug, Clone)]
pub struct Storm {
    /// These; each strikes once before one strikes again.
    pub faults: Vec<Fault>,
    /// No fault is made after this, except those that were not there yet, or not often enough.
    pub until: Instant,
    /// Each is there so often, and then no more; `None` = once at least, and until the time is over.
    pub strikes: Option<u32>,
    /// Acknowledgements that count as load.
    pub acknowledged_between: usize,
    /// How long a cluster with a quorum may go without an acknowledgement, and a node without serving.
    pub recover_within: Duration,
}

/// Makes faults until the time is over, or the cluster does not come back in time; that is then in the history.
///
/// # Errors
/// When the machine fails the harness.
pub async fn run(world: &mut World, chance: &mut Chance, storm: &Storm) -> anyhow::Result<After> {
    let mut turn: Vec<Fault> = Vec::new();
    let mut missing: BTreeMap<Fault, u32> =
        storm.faults.iter().map(|fault| (*fault, storm.strikes.unwrap_or(1).max(1))).collect();
    let mut last = 0;
    while let Some(faults) = wanted(storm, &missing, Instant::now()) {
        turn.retain(|fault| faults.contains(fault));
        if turn.is_empty() {
            turn.extend(faults);
            chance.shuffle(&mut turn);
        }
        world.recorder.mark();
        if !enough(world, storm, storm.recover_within).await {
            note(world, last, false);
            return Ok(After::Down);
        }
        let mut standing: Vec<Struck> = Vec::new();
        let second = usize::from(chance.percent(OVERLAP_PERCENT));
        let mut drawn = turn.split_off(turn.len().saturating_sub(1 + second));
        // A transfer is over in a moment: it meets another fault only where that one stands already.
        // A change of members is accepted only where all are well; what strikes then meets it half done.
        drawn.sort_by_key(|fault| match fault {
            Fault::Membership => 0,
            Fault::Transfer => 2,
            _ => 1,
        });
        let count = drawn.len();
        for (at, fault) in drawn.into_iter().enumerate() {
            world.leaves_one = at + 1 < count;
            match fault.strike(world, chance).await? {
                Some(struck) => standing.push(struck),
                None => put_back(&mut turn, fault, !standing.is_empty()),
            }
        }
        for struck in standing.iter().filter(|struck| struck.installed) {
            strike_off(&mut missing, struck.fault);
        }
        let Some(round) = standing.last().map(|struck| struck.round) else { continue };
        last = round;
        let names: Vec<String> = standing.iter().map(|one| format!("{} ({})", one.fault, one.detail)).collect();
        world.recorder.mark();
        let held = Duration::from_millis((HOLD_MS.0 + chance.below(HOLD_MS.1 - HOLD_MS.0)) as u64);
        tokio::time::sleep(held).await;
        let went_on = !world.must_serve() || recovered(world, round, storm, storm.recover_within).await;
        chance.shuffle(&mut standing);
        // A change of members ends, and the next one begins, only where all are well.
        let all_well = world.must_serve() && world.whole() == world.cluster.members();
        standing.sort_by_key(|struck| struck.fault == Fault::Membership && !all_well);
        for struck in standing {
            struck.heal(world).await?;
        }
        world.recorder.mark();
        let began = Instant::now();
        let serve = all_serve(world, began + storm.recover_within).await;
        // Those who waited in vain for a member have waited for writes as long.
        let writes = recovered(world, round, storm, if serve { storm.recover_within } else { Duration::ZERO }).await;
        let progress = world.recorder.progress();
        println!(
            "round {round}: {}; held {} ms, all well again after {} ms; {} acknowledged, {} unknown",
            names.join(" + "),
            held.as_millis(),
            began.elapsed().as_millis(),
            progress.acknowledged,
            progress.unknown
        );
        let after = After::of(writes, serve);
        if !went_on || after > After::Well {
            return Ok(after);
        }
    }
    Ok(After::Well)
}

/// A fault found nobody to strike. Beside another one that is no wonder: its turn is still to come, after those of the
/// others. Alone it is over, so that what cannot be made at all keeps nothing else from being made.
fn put_back(turn: &mut Vec<Fault>, fault: Fault, beside_another: bool) {
    if beside_another {
        turn.insert(0, fault);
    }
}

/// A fault was there: once less is missing of it.
fn strike_off(missing: &mut BTreeMap<Fault, u32>, fault: Fault) {
    if let Some(left) = missing.get_mut(&fault) {
        *left -= 1;
        if *left == 0 {
            missing.remove(&fault);
        }
    }
}

/// What may strike now: all, or what is to strike so often and did not yet; then what is missing still; then nothing, which
/// ends the storm.
fn wanted(storm: &Storm, missing: &BTreeMap<Fault, u32>, now: Instant) -> Option<Vec<Fault>> {
    if now < storm.until && storm.strikes.is_none() {
        return Some(storm.faults.clone());
    }
    (!missing.is_empty() && now < storm.until + LATE).then(|| missing.keys().copied().collect())
}

/// Whether clients' writes that began after the mark are acknowledged.
async fn enough(world: &World, storm: &Storm, within: Duration) -> bool {
    comes_true(within, async || world.recorder.progress().since_mark >= storm.acknowledged_between).await
}

async fn recovered(world: &World, round: u32, storm: &Storm, within: Duration) -> bool {
    let writes = enough(world, storm, within).await;
    note(world, round, writes);
    writes
}

/// Writes down whether clients' writes go on after this round; 0 = there was none yet.
fn note(world: &World, round: u32, writes: bool) {
    world.recorder.note(Named::Nemesis, Stage::Info, Action::Recovered(Recovered { round, writes }));
}

/// Waits until each member answers a linearizable read: it has then caught up.
async fn all_serve(world: &mut World, end: Instant) -> bool {
    let mut all = true;
    for place in world.cluster.members() {
        let left = end.saturating_duration_since(Instant::now());
        let serves = comes_true(left, async || serves(&world.cluster, place).await).await;
        // Also one that nobody started again, and that is silent all the same.
        if world.restarted.remove(&place) || !serves {
            let node = &world.cluster.nodes[place];
            let restart = Restart { node: node.id, pid: node.pid, serves };
            world.recorder.note(Named::Nemesis, Stage::Info, Action::Restart(restart));
        }
        all &= serves;
    }
    all
}

/// It answers a linearizable read.
pub(super) async fn serves(cluster: &Cluster, place: usize) -> bool {
    cluster.client_of(place).with_deadline(PROBE_WITHIN).get(PROBE).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_there_strikes_late_and_nothing_strikes_for_ever() {
        let until = Instant::now();
        let storm = Storm {
            faults: vec![Fault::Pause, Fault::Kill],
            until,
            strikes: None,
            acknowledged_between: 1,
            recover_within: Duration::ZERO,
        };
        let (none, kill) = (BTreeMap::new(), BTreeMap::from([(Fault::Kill, 1)]));
        let before = until.checked_sub(Duration::from_secs(1)).expect("a time");
        assert_eq!(wanted(&storm, &none, before), Some(storm.faults.clone()));
        assert_eq!(wanted(&storm, &none, until), None);
        assert_eq!(wanted(&storm, &kill, until), Some(vec![Fault::Kill]));
        assert_eq!(wanted(&storm, &kill, until + LATE), None);
    }

    #[test]
    fn what_is_to_strike_twice_strikes_twice_and_no_more() {
        let until = Instant::now();
        let before = until.checked_sub(Duration::from_secs(1)).expect("a time");
        let (faults, recover_within) = (vec![Fault::Pause, Fault::Kill], Duration::ZERO);
        let storm = Storm { faults, until, strikes: Some(2), acknowledged_between: 1, recover_within };
        let mut missing = BTreeMap::from([(Fault::Pause, 1), (Fault::Kill, 2)]);
        for (struck, left) in [
            (Fault::Kill, Some(vec![Fault::Kill, Fault::Pause])),
            (Fault::Kill, Some(vec![Fault::Pause])),
            (Fault::Kill, Some(vec![Fault::Pause])),
            (Fault::Pause, None),
        ] {
            strike_off(&mut missing, struck);
            assert_eq!(wanted(&storm, &missing, before), left);
        }
    }

    #[test]
    fn who_finds_nobody_beside_another_keeps_its_turn_and_loses_it_alone() {
        let mut turn = vec![Fault::Power, Fault::Clock];
        put_back(&mut turn, Fault::Pause, true);
        // The next one is taken from the end.
        assert_eq!(turn, [Fault::Pause, Fault::Power, Fault::Clock]);
        put_back(&mut turn, Fault::Kill, false);
        assert!(!turn.contains(&Fault::Kill));
    }
}
