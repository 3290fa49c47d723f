//! What a replica knows of itself and its group, without asking anyone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::watch::WatchReceiver;

use crate::handle::Replica;
use crate::types::{LogId, Member};

/// Local knowledge at one moment.
#[derive(Debug, Clone, Default)]
pub struct ReplicaStatus {
    /// Term.
    pub term: u64,
    /// Leader believed in; 0 = none.
    pub leader_id: u64,
    /// This node leads.
    pub is_leader: bool,
    /// Last entry in the log.
    pub last_log_index: u64,
    /// Last entry known committed.
    pub committed_index: u64,
    /// Last entry applied.
    pub applied_index: u64,
    /// Log up to here is gone.
    pub purged_index: u64,
    /// Newest local snapshot.
    pub snapshot_index: u64,
    /// Followers' matched index, on the leader only.
    pub matched: BTreeMap<u64, u64>,
    /// Since each other member last acknowledged anything, on the leader only; a member that never did is missing.
    pub silence: BTreeMap<u64, Duration>,
    /// Since a leader's heartbeat was accepted; on the leader, since a quorum acknowledged it. `None` = never.
    pub leader_contact_age: Option<Duration>,
    /// Voters, of all configurations.
    pub voters: Vec<u64>,
    /// Voter configurations; two while voters change.
    pub configs: Vec<BTreeSet<u64>>,
    /// All members with addresses and labels.
    pub members: BTreeMap<u64, Member>,
    /// Its log is being filled up again; it does not vote.
    pub recovering: bool,
}

impl Replica {
    /// Status from local knowledge.
    pub fn status(&self) -> ReplicaStatus {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index());
        let membership = metrics.membership_config.membership();
        let is_leader = metrics.current_leader == Some(self.node_id());
        let configs: Vec<BTreeSet<u64>> = membership.get_joint_config().to_vec();
        let leader_contact_age = if is_leader && configs == [BTreeSet::from([self.node_id()])] {
            // It is its own quorum.
            Some(Duration::ZERO)
        } else if is_leader {
            metrics.last_quorum_acked.map(|acked| acked.elapsed())
        } else {
            self.heard_leader_at().map(|heard| heard.elapsed())
        };
        let heard = metrics.heartbeat.iter().flatten().filter_map(|(id, heard)| Some((*id, (*heard)?)));
        ReplicaStatus {
            term: metrics.current_term,
            leader_id: metrics.current_leader.unwrap_or(0),
            is_leader,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            committed_index: index(&metrics.local_committed),
            applied_index: self.applied_index(),
            purged_index: index(&metrics.purged),
            snapshot_index: index(&metrics.snapshot),
            matched: metrics
                .replication
                .iter()
                .flatten()
                .map(|(id, matched)| (*id, matched.as_ref().map_or(0, |id| id.index())))
                .collect(),
            silence: heard.filter(|(id, _)| *id != self.node_id()).map(|(id, heard)| (id, heard.elapsed())).collect(),
            leader_contact_age,
            voters: membership.voter_ids().collect(),
            configs,
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
            recovering: self.is_recovering(),
        }
    }
}
