//! SIGSTOP: a node that does nothing for a while and does not know it. Its leases, its votes and its answers are old when
//! it goes on.

use crate::chance::Chance;
use crate::cluster::comes_true;
use crate::cluster::process::state;
use crate::nemesis::drive::RECOVER_WITHIN;
use crate::nemesis::{Fault, Harm, Struck, World};

/// Stops one node or as many as may be taken.
pub(super) async fn strike(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let count = 1 + chance.below(world.spare().max(1));
    let places = world.victims(count, chance).await;
    if places.is_empty() {
        return Ok(None);
    }
    let mut struck = world.begin(Fault::Pause, places, Harm::Taken, "SIGSTOP");
    for place in &struck.places {
        world.cluster.signal(*place, libc::SIGSTOP);
    }
    struck.installed = all_are(world, &struck.places, true).await;
    struck.detail = states(world, &struck.places);
    Ok(Some(struck))
}

/// Lets them go on.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    for place in &struck.places {
        world.cluster.signal(*place, libc::SIGCONT);
    }
    struck.installed = !all_are(world, &struck.places, false).await;
    struck.detail = states(world, &struck.places);
    Ok(())
}

async fn all_are(world: &World, places: &[usize], stopped: bool) -> bool {
    let is = |place: &usize| state(world.cluster.nodes[*place].pid).is_some_and(|state| (state == 'T') == stopped);
    comes_true(RECOVER_WITHIN, async || places.iter().all(is)).await
}

fn states(world: &World, places: &[usize]) -> String {
    let one = |place: &usize| {
        let node = &world.cluster.nodes[*place];
        format!("node {} is {}", node.id, state(node.pid).unwrap_or('?'))
    };
    let states: Vec<String> = places.iter().map(one).collect();
    format!("/proc/PID/stat: {}", states.join(", "))
}
