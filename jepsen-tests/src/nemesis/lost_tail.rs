//! A leader alone, with a long tail of entries, writes among them, that nobody else ever hears of: it must take them back when
//! it hears of the next leader, and for good. As soon as it has, its power is cut.
//!
//! Who keeps such writes, on disk or in an archive, has two histories; who forgets to fsync that they are gone has them
//! back after the power cut.

use std::time::Duration;

use anyhow::ensure;
use holdfast_client::{AdminClient, Client, RecordRef, v1};
use tokio::task::JoinSet;

use crate::cluster::comes_true;
use crate::nemesis::disks::{cut_power, leave_probe, probe_is_lost};
use crate::nemesis::drive::RECOVER_WITHIN;
use crate::nemesis::partition::{self, Links};
use crate::nemesis::{Fault, Harm, Struck, World};

/// Entries that only the lonely leader gets. More than the others do at a moderate rate until they are joined again: an
/// index of the tail that they filled with something else tells nothing.
const TAIL: u64 = 1000;
/// With so many it is a tail; a slow machine makes no more of them in time.
const ENOUGH: u64 = 100;
/// An entry of the tail counts as written when the leader's log holds it.
const WRITTEN_WITHIN: Duration = Duration::from_secs(3);
/// Nobody waits for these writes, and they must not hold anybody up.
const DEADLINE: Duration = Duration::from_secs(3);
/// Whose they are: no workload's.
const USER: &str = "lost-tail";

/// Cuts the leader off and fills its log.
pub(super) async fn strike(world: &mut World) -> anyhow::Result<Option<Struck>> {
    let members = world.cluster.members();
    let Some(leader) = world.cluster.leader_now().await.filter(|_| world.whole() == members && world.spare() > 0)
    else {
        return Ok(None);
    };
    let others = members.into_iter().filter(|place| *place != leader);
    let links: Links = others.flat_map(|other| [(leader, other), (other, leader)]).collect();
    let client = world.cluster.client_of(leader).with_deadline(DEADLINE);
    let mut struck =
        world.begin(Fault::LostTail, vec![leader], Harm::Taken, "the leader alone, with writes of its own");
    // A leader that misses its followers leads for a second at most, which must not go by with connecting; the first of
    // these writes may still be acknowledged.
    let _ = client.get(RecordRef { user: USER, collection: "x-tail", record_id: "none" }).await;
    let writes = write(&client);
    partition::cut(world, struck.round, &links)?;
    let mut log = (0, 0);
    let written = comes_true(WRITTEN_WITHIN, async || {
        let group = world.cluster.status(leader).await.and_then(|status| status.groups.into_iter().next());
        log = group.map_or(log, |group| (group.committed_index, group.last_log_index));
        log.1 >= log.0 + TAIL
    });
    written.await;
    drop(writes);
    let (apart, told) = partition::is_cut(world, &links)?;
    world.tails.insert(struck.round, log);
    struck.installed = log.1 >= log.0 + ENOUGH && apart;
    struck.detail = format!("entries {} to {} on the leader alone; {told}", log.0 + 1, log.1);
    Ok(Some(struck))
}

/// Of so many calls one is a write, and all others forget a device that nobody has: writes that wait share an entry, these do
/// not, and it is entries that make a tail long.
const WRITE_EACH: u64 = 8;

/// Many calls at once. They end when the set is dropped: what becomes of them is nobody's business.
fn write(client: &Client) -> JoinSet<()> {
    let mut writes = JoinSet::new();
    for number in 0..TAIL + TAIL / 10 {
        let client = client.clone();
        writes.spawn(async move {
            let id = format!("r{number}");
            let record = RecordRef { user: USER, collection: "x-tail", record_id: &id };
            // Hardly anybody can acknowledge it.
            if number % WRITE_EACH == 0 {
                let _ = client.put(record, "text/plain", "never committed").await;
            } else {
                let _ = client.drop_device(USER, &id).await;
            }
        });
    }
    writes
}

/// Joins it again, waits until it took the tail back, cuts its power and starts it.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let leader = struck.places[0];
    let (committed, end) = world.tails.remove(&struck.round).unwrap_or_default();
    let cut = partition::uncut(world, struck.round)?;
    let id = world.cluster.nodes[leader].id;
    let admin = AdminClient::new(&world.cluster.nodes[leader].admin)?;
    let mut now = v1::GroupStatus::default();
    let took_back = comes_true(RECOVER_WITHIN, async || {
        let status = admin.status().await.ok();
        now = status.and_then(|status| status.groups.into_iter().next()).unwrap_or_default();
        now.leader_id != 0 && now.leader_id != id && now.applied_index > committed
    });
    let took_back = took_back.await;
    leave_probe(world.disk(leader)?)?;
    cut_power(world, &[leader])?;
    world.cluster.kill(leader);
    let disk = world.disk(leader)?;
    disk.revive()?;
    ensure!(probe_is_lost(disk)?, "node {id}: what nobody fsynced survived");
    world.start(leader);
    let (joined, told) = partition::is_joined(world, &cut)?;
    // A tail that it was not seen to take back is not gone, and nothing was shown by cutting its power.
    struck.installed = !joined || !took_back;
    struck.detail = format!(
        "took the tail back: {took_back}; its log ended at {} and not at {end} when its power was cut; {told}",
        now.last_log_index
    );
    Ok(())
}
