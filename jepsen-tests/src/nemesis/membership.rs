//! Members that come and go while other faults stand: a new node under a new id joins, and one of the others is taken out
//! for it.

use std::time::Duration;

use holdfast_client::{AdminClient, v1};
use tokio::time::Instant;

use crate::chance::Chance;
use crate::cluster::{Cluster, comes_true};
use crate::nemesis::{Fault, Harm, Struck, World};

/// From the request to the end of a change of members, other faults included.
const CHANGE_WITHIN: Duration = Duration::from_secs(60);
/// For one question.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// Starts a further node and asks for it to be added.
pub(super) async fn strike(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    // A change is refused while a member is down; once it was accepted, others may go down while it is carried out.
    let all_well = world.must_serve() && world.whole() == world.cluster.members();
    if !world.cluster.has_room() || !all_well {
        return Ok(None);
    }
    let id = world.cluster.nodes.iter().map(|node| node.id).max().unwrap_or(0) + 1;
    let labels = format!("array=a{id},site=s{id}");
    let place = world.cluster.start_further(id, &labels);
    let mut struck = world.begin(Fault::Membership, vec![place], Harm::None, format!("node {id} joins"));
    // Who goes for it is drawn now, so that chance does not depend on how long things take.
    let goes = chance.next_u64();
    let cluster = &world.cluster;
    let answers = comes_true(CHANGE_WITHIN, async || cluster.status(place).await.is_some()).await;
    let asked = if answers { change(cluster, &Change::Add(place), Instant::now() + CHANGE_WITHIN).await } else { None };
    struck.installed = asked.is_some();
    struck.detail = format!("node {id} joins, by operation {}", asked.as_deref().unwrap_or("none: nobody accepted it"));
    world.joining.insert(struck.round, (asked, goes));
    Ok(Some(struck))
}

/// Waits until it is a voter, and takes another one out.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let end = Instant::now() + CHANGE_WITHIN;
    let Some((asked, goes)) = world.joining.remove(&struck.round) else { return Ok(()) };
    let new = struck.places[0];
    let added = finished(&world.cluster, &Change::Add(new), asked, end).await;
    if !added {
        // Nothing is expected of a node that never joined. That it did not is what the note says.
        world.cluster.retire(new);
        world.cluster.kill(new);
        struck.detail = format!("node {} did not join", world.cluster.nodes[new].id);
        return Ok(());
    }
    let mut whole = world.whole();
    whole.retain(|place| *place != new);
    let Some(goes) = whole.get((goes % whole.len().max(1) as u64) as usize).copied() else { return Ok(()) };
    let out = Change::Remove(goes);
    let asked = change(&world.cluster, &out, Instant::now() + CHANGE_WITHIN).await;
    let removed = finished(&world.cluster, &out, asked, Instant::now() + CHANGE_WITHIN).await;
    if removed {
        world.cluster.retire(goes);
        world.cluster.kill(goes);
    }
    struck.installed = !(added && removed);
    let (new, goes) = (world.cluster.nodes[new].id, world.cluster.nodes[goes].id);
    struck.detail = format!("node {new} joined: {added}; node {goes} was taken out: {removed}");
    Ok(())
}

enum Change {
    Add(usize),
    Remove(usize),
}

/// Asks whoever leads until it accepts; gives the operation.
async fn change(cluster: &Cluster, change: &Change, end: Instant) -> Option<String> {
    let mut accepted = None;
    let left = end.saturating_duration_since(Instant::now());
    let _ = comes_true(left, async || {
        accepted = ask(cluster, change).await;
        accepted.is_some()
    })
    .await;
    accepted
}

async fn ask(cluster: &Cluster, change: &Change) -> Option<String> {
    let leader = cluster.leader_now().await?;
    let admin = AdminClient::new(&cluster.nodes[leader].admin).ok()?.with_deadline(ASK_WITHIN);
    match change {
        Change::Add(place) => {
            let node = cluster.status(*place).await?.self_;
            let request = v1::AddNodeRequest { node, keep_learner: false, dry_run: false };
            Some(admin.add_node(request).await.ok()?.operation_id)
        }
        Change::Remove(place) => {
            let request = v1::RemoveNodeRequest {
                node_id: cluster.nodes[*place].id,
                replacement: None,
                dry_run: false,
                confirm_cluster_name: Cluster::NAME.to_owned(),
                accept_fewer_voters: false,
            };
            Some(admin.remove_node(request).await.ok()?.operation_id)
        }
    }
}

/// Follows an operation to its end, and asks for the change again when one failed; false = it is not done in time.
async fn finished(cluster: &Cluster, what: &Change, mut asked: Option<String>, end: Instant) -> bool {
    while Instant::now() < end {
        let Some(operation) = asked.take() else {
            asked = change(cluster, what, end).await;
            continue;
        };
        let mut failed = false;
        let left = end.saturating_duration_since(Instant::now());
        let done = comes_true(left, async || {
            let state = newest(cluster, &operation).await;
            failed = state.as_ref().is_some_and(|state| !state.error_message.is_empty());
            state.is_some_and(|state| state.done)
        });
        if done.await && !failed {
            return true;
        }
    }
    false
}

/// State of an operation: the word of a node that says it is done counts, since others may be behind.
async fn newest(cluster: &Cluster, operation: &str) -> Option<v1::GetAdminOperationResponse> {
    let mut newest = None;
    for place in cluster.members() {
        let admin = AdminClient::new(&cluster.nodes[place].admin).ok()?.with_deadline(ASK_WITHIN / 5);
        match admin.operation(operation).await {
            Ok(state) if state.done => return Some(state),
            Ok(state) => newest = Some(state),
            Err(_) => {}
        }
    }
    newest
}
