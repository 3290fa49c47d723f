//! A rollback that no living peer can tell of: the node forgets what it acknowledged, those who saw it are dead, and with
//! those who never had the writes it would make a majority. With its floor on another device it must not vote.

use std::time::Duration;

use crate::chance::Chance;
use crate::cluster::comes_true;
use crate::disk::array;
use crate::nemesis::array::{mark, roll_back};
use crate::nemesis::drive::RECOVER_WITHIN;
use crate::nemesis::{Fault, Harm, Struck, World};

/// Acknowledgements that the rolled-back node gave, and that will be forgotten.
const FORGOTTEN: usize = 50;
/// Many election timeouts: who would elect somebody has done it by then.
const WATCHED: Duration = Duration::from_secs(5);

/// Rolls one node back beside nodes that lack its last writes, and watches whether anything is acknowledged.
pub(super) async fn strike(world: &mut World, fault: Fault, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let mut members = world.cluster.members();
    if world.whole() != members || members.len() < 3 {
        return Ok(None);
    }
    chance.shuffle(&mut members);
    let absent: Vec<usize> = members[..(members.len() - 1) / 2].to_vec();
    let forgetful = members[absent.len()];
    let keepers: Vec<usize> = members[absent.len() + 1..].to_vec();
    let ids = |places: &[usize]| places.iter().map(|place| world.cluster.nodes[*place].id).collect::<Vec<u64>>();
    let plan = format!("absent {:?}, rolled back {:?}, dead {:?}", ids(&absent), ids(&[forgetful]), ids(&keepers));
    let mut struck = world.begin(fault, members.clone(), Harm::Taken, plan.as_str());
    world.disk(forgetful)?.set_aside(&world.copy_of(forgetful)?)?;
    mark(world.disk(forgetful)?.at())?;
    world.cluster.kill_together(&absent);
    world.recorder.mark();
    let loaded = comes_true(RECOVER_WITHIN, async || world.recorder.progress().since_mark >= FORGOTTEN).await;
    array::cut_power(&[world.disk(forgetful)?])?;
    world.cluster.kill_together(&members[absent.len()..]);
    let gone = roll_back(world, forgetful)?;
    // Whatever is acknowledged from now on is acknowledged by nodes that lack what was acknowledged before.
    world.recorder.mark();
    for place in absent.iter().chain([&forgetful]) {
        world.start(*place);
    }
    let answer = comes_true(RECOVER_WITHIN, async || world.cluster.status(forgetful).await.is_some()).await;
    tokio::time::sleep(WATCHED).await;
    let acknowledged = world.recorder.progress().since_mark;
    struck.installed = loaded && gone && answer;
    struck.detail = format!("{plan}; {acknowledged} acknowledged by those who forgot or never had the last writes");
    Ok(Some(struck))
}

/// Starts those who remember.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let mut started = Vec::new();
    for place in struck.places.clone() {
        if !world.restarted.contains(&place) {
            world.start(place);
            started.push(world.cluster.nodes[place].id);
        }
    }
    struck.installed = false;
    struck.detail = format!("started again: {started:?}");
    Ok(())
}
