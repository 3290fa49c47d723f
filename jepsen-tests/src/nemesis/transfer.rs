//! Leadership handed over: among healthy nodes it must be taken over, and to one that is stopped or cut off it must not do
//! any harm.

use holdfast_client::AdminClient;

use crate::chance::Chance;
use crate::cluster::comes_true;
use crate::nemesis::drive::RECOVER_WITHIN;
use crate::nemesis::{Fault, Harm, Struck, World};

/// Asks the leader to hand over to a drawn member.
pub(super) async fn strike(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let Some(leader) = world.cluster.leader_now().await else { return Ok(None) };
    let mut others = world.cluster.members();
    others.retain(|place| *place != leader);
    if others.is_empty() {
        return Ok(None);
    }
    let to = others[chance.below(others.len())];
    let id = world.cluster.nodes[to].id;
    // Only among nodes that nothing ails must it work; who else is asked shows that asking does no harm.
    let must = world.must_serve() && world.whole().contains(&to) && world.whole().contains(&leader);
    // Of one that cannot be asked nothing is asked.
    if !must && world.cluster.status(leader).await.is_none() {
        return Ok(None);
    }
    let mut struck = world.begin(Fault::Transfer, vec![to], Harm::None, format!("to node {id}"));
    let mut said = String::new();
    struck.installed = if must {
        let took = async || match hand_over(world, id).await {
            Ok(now) => now == id,
            Err(error) => {
                said = error;
                false
            }
        };
        comes_true(RECOVER_WITHIN, took).await
    } else {
        said = ask(world, leader, id).await.map_or_else(|error| error, |now| format!("node {now} leads"));
        true
    };
    let (took, last) = (struck.installed && must, if said.is_empty() { "no" } else { &said });
    struck.detail = format!("to node {id}; taken over: {took}; refusals or answers on the way: {last}");
    Ok(Some(struck))
}

/// It is over already.
pub(super) async fn heal(_: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    struck.installed = false;
    Ok(())
}

/// Asks whoever leads now; gives who leads then.
async fn hand_over(world: &World, to: u64) -> Result<u64, String> {
    let leader = world.cluster.leader_now().await.ok_or("nobody leads")?;
    if world.cluster.nodes[leader].id == to {
        return Ok(to);
    }
    ask(world, leader, to).await
}

async fn ask(world: &World, leader: usize, to: u64) -> Result<u64, String> {
    let admin = AdminClient::new(&world.cluster.nodes[leader].admin).map_err(|error| error.to_string())?;
    admin.transfer_leader(to).await.map_err(|error| error.to_string())
}
