//! Fsyncs that fail, and fsyncs that are slow. A node whose fsync failed cannot know what is on its disk: it must end, and
//! never ask again.

use std::path::PathBuf;
use std::time::Duration;

use crate::chance::Chance;
use crate::cluster::comes_true;
use crate::disk::inject::{self, Fault as Injected};
use crate::nemesis::drive::RECOVER_WITHIN;
use crate::nemesis::{Fault, Harm, Struck, World};

/// Fsyncs of one thread that go well before the first fails.
const GO_WELL: usize = 60;
/// In the paths of the log's files.
const LOG: &str = "/raft/";
/// How much longer a slow fsync takes, in milliseconds, at least and at most.
const SLOW_MS: (usize, usize) = (20, 400);

/// Starts one node anew so that its fsyncs soon fail, and waits for its end.
pub(super) async fn strike_eio(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let from = 1 + chance.below(GO_WELL) as u32;
    let Some((mut struck, trace)) = start_under(world, chance, Fault::Eio, Injected::Eio { from }).await? else {
        return Ok(None);
    };
    let place = struck.places[0];
    let hit = comes_true(RECOVER_WITHIN, async || inject::struck(&trace) > 0).await;
    let mut ended = None;
    let mut is_over = || {
        ended = world.cluster.ended(place);
        ended.is_some()
    };
    // A file of the state that could not be fsynced is written anew as another one, so that alone ends nobody.
    let of_log = hit && comes_true(RECOVER_WITHIN, async || is_over() || inject::struck_in(&trace, LOG) > 0).await;
    let ends = of_log && comes_true(RECOVER_WITHIN, async || is_over()).await;
    let id = world.cluster.nodes[place].id;
    struck.missed = (of_log && !ends)
        .then(|| format!("node {id} goes on {} s after a failed fsync of its log", RECOVER_WITHIN.as_secs()));
    struck.installed = hit;
    struck.detail = format!("EIO from fsync {from} of a thread on, {} in all; {ended:?}", inject::struck(&trace));
    Ok(Some(struck))
}

/// Starts one node anew so that each of its fsyncs takes longer.
pub(super) async fn strike_slow(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let by = Duration::from_millis((SLOW_MS.0 + chance.below(SLOW_MS.1 - SLOW_MS.0)) as u64);
    let Some((mut struck, trace)) = start_under(world, chance, Fault::SlowFsync, Injected::Slow { by }).await? else {
        return Ok(None);
    };
    struck.installed = comes_true(RECOVER_WITHIN, async || inject::struck(&trace) > 0).await;
    struck.detail = format!("each fsync takes {} ms longer", by.as_millis());
    Ok(Some(struck))
}

async fn start_under(
    world: &mut World,
    chance: &mut Chance,
    fault: Fault,
    injected: Injected,
) -> anyhow::Result<Option<(Struck, PathBuf)>> {
    let places = world.victims(1, chance).await;
    let Some(place) = places.first().copied() else { return Ok(None) };
    let struck = world.begin(fault, places, Harm::Taken, format!("killed, started under strace: {injected:?}"));
    let trace = world.cluster.dir.join(format!("log/strace-n{place}-{}.log", struck.round));
    world.cluster.kill(place);
    let under = inject::under(injected, &trace);
    world.cluster.restart_under(place, &under.iter().map(String::as_str).collect::<Vec<_>>());
    Ok(Some((struck, trace)))
}

/// Starts the node anew, without strace.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    for place in struck.places.clone() {
        world.cluster.kill(place);
        world.start(place);
    }
    struck.installed = false;
    struck.detail = "killed, started without strace".to_owned();
    Ok(())
}
