//! `kill -9`: of the leader again and again, and of all nodes in one moment.
//!
//! It proves little about fsync: what a killed process wrote stays in the page cache. It proves what is promised about
//! leaders, elections, restarts and request ids.

use std::time::Duration;

use tokio::time::Instant;

use crate::chance::Chance;
use crate::checker::harness::Expected;
use crate::cluster::{Cluster, comes_true};
use crate::history::{Action, Kill, Named, Recorder, Recovered, Restart, Stage, Target};
use crate::nemesis::drive::{After, RECOVER_WITHIN, serves};
use crate::nemesis::{Fault, Harm, Struck, World};

/// Kills one node, or as many as may be taken, in one moment.
pub(super) async fn strike(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let count = 1 + chance.below(world.spare().max(1));
    let places = world.victims(count, chance).await;
    if places.is_empty() {
        return Ok(None);
    }
    let leader = world.cluster.leader_now().await;
    let mut struck = world.begin(Fault::Kill, places, Harm::Taken, "SIGKILL");
    let recorder = world.recorder.clone();
    let targets = kill(&mut world.cluster, &recorder, struck.round, &struck.places, leader);
    struck.installed = targets.iter().all(|target| target.is_killed());
    struck.detail = format!("{targets:?}");
    Ok(Some(struck))
}

/// Starts them again. That they serve is seen once all is healed: what else stands may keep them from it.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    for place in &struck.places {
        world.cluster.restart(*place);
        world.restarted.insert(*place);
    }
    struck.installed = false;
    struck.detail = "started again".to_owned();
    Ok(())
}

/// Kills as `expected`, until `until` at the latest; what was not done is missing in the history, and then the run
/// proves nothing. All nodes were started again when it returns.
pub async fn run(
    cluster: &mut Cluster,
    recorder: &Recorder,
    expected: &Expected,
    until: Instant,
    recover_within: Duration,
) -> After {
    for round in 1..=expected.kills {
        if !load(recorder, expected, until).await {
            return After::Down;
        }
        let mut leader = None;
        let led = comes_true(RECOVER_WITHIN, async || {
            leader = cluster.leader_now().await;
            leader.is_some()
        });
        led.await;
        let Some(leader) = leader else { return After::Down };
        kill(cluster, recorder, round, &[leader], Some(leader));
        let began = Instant::now();
        let writes = recovered(recorder, round, expected, recover_within).await;
        let waited = began.elapsed();
        let served = restart(cluster, recorder, &[leader], recover_within).await;
        let progress = recorder.progress();
        println!(
            "kill {round}/{}: node {}, the leader; {} ms to {} new acknowledgements; {} in all, {} unknown",
            expected.kills,
            cluster.nodes[leader].id,
            waited.as_millis(),
            expected.acknowledged_between,
            progress.acknowledged,
            progress.unknown
        );
        let after = After::of(writes, served);
        if after > After::Well {
            return after;
        }
    }
    if expected.kill_all && load(recorder, expected, until).await {
        let all: Vec<usize> = (0..cluster.nodes.len()).collect();
        let leader = cluster.leader_now().await;
        kill(cluster, recorder, 0, &all, leader);
        let began = Instant::now();
        let served = restart(cluster, recorder, &all, recover_within).await;
        // Those who waited in vain for a node have waited for writes as long.
        let writes = recovered(recorder, 0, expected, if served { recover_within } else { Duration::ZERO }).await;
        println!("kill of all nodes: {} ms to new acknowledgements", began.elapsed().as_millis());
        return After::of(writes, served);
    }
    After::Well
}

/// Lets clients write for a while; false = they did not, or the time is over.
async fn load(recorder: &Recorder, expected: &Expected, until: Instant) -> bool {
    recorder.mark();
    let left = until.saturating_duration_since(Instant::now()).min(RECOVER_WITHIN);
    comes_true(left, async || recorder.progress().since_mark >= expected.acknowledged_between).await
}

fn kill(
    cluster: &mut Cluster,
    recorder: &Recorder,
    round: u32,
    places: &[usize],
    leader: Option<usize>,
) -> Vec<Target> {
    let target = |place: &usize| {
        let node = &cluster.nodes[*place];
        Target { node: node.id, pid: node.pid, leader: leader == Some(*place), signal: None }
    };
    let mut targets: Vec<Target> = places.iter().map(target).collect();
    recorder.note(Named::Nemesis, Stage::Invoke, Action::Kill(Kill { round, targets: targets.clone() }));
    for (target, killed) in targets.iter_mut().zip(cluster.kill_together(places)) {
        (target.pid, target.signal) = (killed.pid, killed.signal);
    }
    recorder.note(Named::Nemesis, Stage::Info, Action::Kill(Kill { round, targets: targets.clone() }));
    // Writes that begin from now on cannot have been acknowledged by whoever was killed.
    recorder.mark();
    targets
}

async fn recovered(recorder: &Recorder, round: u32, expected: &Expected, within: Duration) -> bool {
    let enough = async || recorder.progress().since_mark >= expected.acknowledged_between;
    let writes = comes_true(within, enough).await;
    recorder.note(Named::Nemesis, Stage::Info, Action::Recovered(Recovered { round, writes }));
    writes
}

/// Starts nodes again, and waits until each answers a linearizable read: it has then caught up.
async fn restart(cluster: &mut Cluster, recorder: &Recorder, places: &[usize], within: Duration) -> bool {
    for place in places {
        cluster.restart(*place);
    }
    let mut all = true;
    let end = Instant::now() + within;
    for place in places {
        let left = end.saturating_duration_since(Instant::now());
        let serves = comes_true(left, async || serves(cluster, *place).await).await;
        let node = &cluster.nodes[*place];
        let restart = Restart { node: node.id, pid: node.pid, serves };
        recorder.note(Named::Nemesis, Stage::Info, Action::Restart(restart));
        all &= serves;
    }
    all
}
