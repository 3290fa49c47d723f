//! Power cuts: of some nodes, and of all in one moment. What was fsynced is there afterwards, and nothing else: the one
//! fault that tells whether an acknowledged write was fsynced.

use anyhow::ensure;

use crate::chance::Chance;
use crate::nemesis::disks::{cut_power, leave_probe, probe_is_lost};
use crate::nemesis::{Fault, Harm, Struck, World};

/// Cuts the power of one node, or of as many as may be taken.
pub(super) async fn strike_some(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let count = 1 + chance.below(world.spare().max(1));
    let places = world.victims(count, chance).await;
    if places.is_empty() {
        return Ok(None);
    }
    strike(world, Fault::Power, places).map(Some)
}

/// Cuts the power of all nodes in one moment; not while another fault keeps some from coming back.
pub(super) async fn strike_all(world: &mut World) -> anyhow::Result<Option<Struck>> {
    let all = world.cluster.members();
    if world.whole() != all {
        return Ok(None);
    }
    strike(world, Fault::PowerAll, all).map(Some)
}

fn strike(world: &mut World, fault: Fault, places: Vec<usize>) -> anyhow::Result<Struck> {
    for disk in world.disks_of(&places)? {
        leave_probe(disk)?;
    }
    let mut struck = world.begin(fault, places, Harm::Taken, "SIGSTOP, FS_IOC_SHUTDOWN without flush, then SIGKILL");
    let spread = cut_power(world, &struck.places)?;
    world.cluster.kill_together(&struck.places);
    let dark = world.disks_of(&struck.places)?.iter().all(|disk| disk.is_dark());
    struck.installed = dark;
    struck.detail = format!("no disk answers; all within {} us", spread.done.as_micros());
    Ok(struck)
}

/// Gives the power back and starts the nodes.
///
/// # Errors
/// When something that was not fsynced is still there: then it was no power cut, and the run proves nothing.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    for place in &struck.places {
        let disk = world.disk(*place)?;
        disk.revive()?;
        ensure!(probe_is_lost(disk)?, "node {}: what nobody fsynced survived", world.cluster.nodes[*place].id);
    }
    for place in struck.places.clone() {
        world.start(place);
    }
    struck.installed = false;
    struck.detail = "what was not fsynced is gone; mounted and started again".to_owned();
    Ok(())
}
