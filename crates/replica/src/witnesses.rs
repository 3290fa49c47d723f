//! Peers that saw what this node acknowledged, and may know more of its log than its own disk does.
//!
//! A disk that went back in time takes the floor with it, unless that lies elsewhere. Then only those can tell who were
//! told: the leader of that time, as long as its process lives. So a node that starts asks all its peers, and votes for
//! nobody before they answered, or are known to be gone, or had [`VOTELESS_MAX`] for it. It goes on asking until its
//! log grows, which no leader lets it that knows of more: an answer may be late, and an acknowledgement that was on its way
//! arrives after the first answer.
//!
//! Stated limit: with the floor on the disk that went back, and no witness that answers in that time, it may vote.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_wire::internal::v1 as pb;
use tokio::time::{Instant, sleep};

use crate::handle::Replica;
use crate::transport::is_refused;
use crate::transport::service::PROTOCOL;

/// Witnesses that say nothing for so long keep nobody from voting: a cluster with a dead machine must elect.
const VOTELESS_MAX: Duration = Duration::from_secs(3);
/// Shorter than TCP's first repetition: a new connection is tried instead.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_WHILE_VOTING: Duration = Duration::from_secs(1);
/// In a group where nobody writes nothing grows: nothing is on its way for so long.
const ENOUGH: Duration = Duration::from_secs(60);

/// Starts to ask. Until there are answers, this node does not vote.
pub(crate) fn ask(replica: &Replica) {
    tokio::spawn(go_on_asking(replica.clone()));
}

/// Members as the log has them: the state may be older, or empty.
async fn meet(replica: &Replica) -> Option<BTreeSet<u64>> {
    let members = replica.raft().with_raft_state(|state| {
        let members = state.membership_state.effective().nodes();
        members.map(|(id, member)| (*id, member.clone())).collect::<Vec<_>>()
    });
    // Without a core there is nothing to vote with.
    let mut members = members.await.ok()?;
    members.retain(|(id, _)| *id != replica.node_id());
    replica.peers().update(members.iter().map(|(id, member)| (id, member)));
    Some(members.into_iter().map(|(id, _)| id).collect())
}

async fn go_on_asking(replica: Replica) {
    let started = Instant::now();
    let Some(mut silent) = meet(&replica).await else { return };
    let mut votes = false;
    let last = replica.log().last();
    while !replica.is_stopping() {
        round(&replica, &mut silent).await;
        let enough = silent.is_empty() && started.elapsed() >= ENOUGH;
        if votes && (enough || replica.is_leader() || replica.log().last() > last) {
            return;
        }
        if !votes && (silent.is_empty() || started.elapsed() >= VOTELESS_MAX) {
            if !silent.is_empty() {
                tracing::warn!(event = "log.witness_silent", nodes = ?silent, "nobody else saw more of this node's log");
            }
            votes = true;
            replica.witnesses_answered();
        }
        sleep(if votes { AGAIN_WHILE_VOTING } else { AGAIN }).await;
    }
}

/// Asks everybody once. Who answers, or does not run and so remembers nothing, is silent no more.
async fn round(replica: &Replica, silent: &mut BTreeSet<u64>) {
    let asked = replica.peers().all().into_iter().map(|(to, mut client)| async move {
        let request =
            pb::HelloRequest { cluster_id: Default::default(), from: replica.node_id(), to, protocol: PROTOCOL };
        (to, tokio::time::timeout(ANSWER_WITHIN, client.hello(request)).await)
    });
    let mut answers: FuturesUnordered<_> = asked.collect();
    while let Some((peer, answer)) = answers.next().await {
        match answer {
            Ok(Ok(answer)) => {
                silent.remove(&peer);
                replica.was_acknowledged(peer, answer.into_inner().acknowledged_index);
            }
            Ok(Err(status)) if is_refused(&status) => {
                silent.remove(&peer);
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}
