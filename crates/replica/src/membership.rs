//! Founding a group, changing its members, and moving its leadership.
//!
//! Invariants: a node's identity never changes while it is a member; voters change through a joint configuration, so no
//! two majorities are ever disjoint.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_wire::internal::v1 as pb;
use holdfast_wire::log as wire_log;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use tokio::time::{Instant, sleep, timeout};

use crate::handle::Replica;
use crate::transport::service::PROTOCOL;
use crate::types::{Member, TypeConfig};

/// How long a node may take to say who it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a group was not founded or led elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// openraft refused.
    #[error("{0}")]
    Refused(String),
    /// This node does not lead.
    #[error("this node does not lead; ask node {leader}")]
    NotLeader {
        /// Who does; 0 = unknown.
        leader: u64,
    },
    /// The successor did not take over in time.
    #[error("node {to} did not take over in time; the old leader goes on")]
    TransferTimeout {
        /// The chosen successor.
        to: u64,
    },
    /// No voter can take over.
    #[error("no other voter can take over")]
    NoSuccessor,
}

/// Who answers at a peer address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Its node id.
    pub node_id: u64,
    /// Identity of its data directory.
    pub identity: String,
    /// It holds neither log nor state.
    pub fresh: bool,
    /// Cluster that it belongs to.
    pub cluster_id: Option<[u8; 16]>,
}

fn change_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> MembershipError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            MembershipError::NotLeader { leader: to.leader_id.unwrap_or(0) }
        }
        other => MembershipError::Refused(other.to_string()),
    }
}

impl Replica {
    /// Asks a node who it is.
    ///
    /// # Errors
    /// Why it did not answer, for people.
    pub async fn probe(&self, id: u64, member: &Member) -> Result<Probe, String> {
        let mut client = self.peers().stranger(id, member);
        let request =
            pb::HelloRequest { cluster_id: Default::default(), from: self.node_id(), to: 0, protocol: PROTOCOL };
        match timeout(PROBE_TIMEOUT, client.hello(request)).await {
            Err(_) => Err(format!("{} did not answer within {} s", member.peer_address, PROBE_TIMEOUT.as_secs())),
            Ok(Err(status)) => Err(format!("{}: {}", member.peer_address, status.message())),
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                Ok(Probe {
                    node_id: answer.node_id,
                    identity: answer.identity,
                    fresh: answer.fresh,
                    cluster_id: answer.cluster_id.as_ref().try_into().ok(),
                })
            }
        }
    }

    /// Adds a member that receives the log and does not vote. Ends when that is committed, not when it has caught up.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn add_learner(&self, id: u64, member: Member) -> Result<(), MembershipError> {
        self.raft().add_learner(id, member, false).await.map(drop).map_err(change_error)
    }

    /// Makes exactly these members voters; voters that are not among them go on as learners: who is taken out at once is
    /// not told, and stands for election for ever. Ends when that is committed.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), MembershipError> {
        let change = ChangeMembers::ReplaceAllVoters(voters);
        self.raft().change_membership(change, true).await.map(drop).map_err(change_error)
    }

    /// Takes out a member that does not vote.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn remove_learner(&self, id: u64) -> Result<(), MembershipError> {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
        self.raft().change_membership(change, false).await.map(drop).map_err(change_error)
    }

    /// Takes over a member's new addresses or labels, told by itself. Gives false when that must wait.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub(crate) async fn announced(&self, id: u64, member: Member) -> Result<bool, MembershipError> {
        let status = self.status();
        if !status.is_leader {
            return Err(MembershipError::NotLeader { leader: status.leader_id });
        }
        let Some(known) = status.members.get(&id) else { return Ok(false) };
        if *known == member {
            return Ok(true);
        }
        // Another directory under this id is another node, whatever it says.
        if known.identity != member.identity || status.configs.len() > 1 {
            return Ok(false);
        }
        // What does not answer there would be lost with the change.
        match self.probe(id, &member).await {
            Ok(probe) if probe.node_id == id && probe.identity == member.identity => {}
            Ok(_) => return Err(MembershipError::Refused(format!("{} is not node {id}", member.peer_address))),
            Err(reason) => return Err(MembershipError::Refused(reason)),
        }
        tracing::info!(event = "membership.announced", node = id, "a member has new addresses or labels");
        let change = ChangeMembers::SetNodes(BTreeMap::from([(id, member)]));
        self.raft().change_membership(change, true).await.map(drop).map_err(change_error)?;
        Ok(true)
    }

    /// Learns that the group has gone on without this node: who is taken out hears nothing more. A member knows of any
    /// later membership, so its word counts when its membership is newer than this node's.
    pub(crate) async fn ask_if_removed(&self) {
        let own_index = self.membership_index();
        let calls = self.peers().all().into_iter().map(|(to, mut client)| async move {
            let from = self.node_id();
            let request = pb::HelloRequest { cluster_id: Default::default(), from, to, protocol: PROTOCOL };
            timeout(PROBE_TIMEOUT, client.hello(request)).await.ok()?.ok()
        });
        let answers = futures::future::join_all(calls).await.into_iter().flatten().map(tonic::Response::into_inner);
        let cluster = self.cluster_id();
        let mut of_this = answers.filter(|answer| answer.cluster_id.as_ref().try_into().ok() == cluster);
        if of_this.any(|answer| !answer.caller_is_member && answer.membership_index > own_index) {
            self.note_removed(true);
        }
    }

    /// Index of the entry that set the committed membership; 0 = none.
    pub(crate) fn membership_index(&self) -> u64 {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        metrics.committed_membership_config.log_id().as_ref().map_or(0, |id| id.index())
    }

    pub(crate) fn is_committed_member(&self, id: u64) -> bool {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        metrics.committed_membership_config.membership().get_node(&id).is_some()
    }

    /// Tells the leader what this node is, when the group knows it otherwise.
    pub(crate) async fn announce(&self) {
        let Some(own) = self.options().own.clone() else { return };
        let own = Member { identity: self.identity().to_owned(), ..own };
        let status = self.status();
        let id = self.node_id();
        if status.members.get(&id).is_none_or(|known| *known == own || known.identity != own.identity) {
            return;
        }
        if status.is_leader {
            if let Err(error) = self.announced(id, own).await {
                tracing::warn!(event = "membership.announce_failed", %error, "trying again");
            }
            return;
        }
        let Some(mut leader) = self.peers().forward_client(status.leader_id) else { return };
        let request = pb::AnnounceRequest { group_id: self.group_id().0, member: Some(wire_log::member_to(id, &own)) };
        match timeout(PROBE_TIMEOUT * 3, leader.announce(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => tracing::warn!(event = "membership.announce_failed", %status, "trying again"),
            Err(_) => tracing::warn!(event = "membership.announce_failed", "the leader did not answer; trying again"),
        }
    }

    /// Founds the group with these voters; no effect when it is founded already.
    ///
    /// # Errors
    /// openraft's refusal.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), MembershipError> {
        match self.raft().initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(MembershipError::Refused(error.to_string())),
        }
    }

    /// Hands leadership to `to`, or to the follower that is furthest when 0. Answers who leads then.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn transfer_leader(&self, to: u64, timeout: Duration) -> Result<u64, MembershipError> {
        let status = self.status();
        if !status.is_leader {
            return Err(MembershipError::NotLeader { leader: status.leader_id });
        }
        let candidates = status.voters.iter().filter(|id| **id != self.node_id());
        let to = match to {
            0 => candidates
                .max_by_key(|id| status.matched.get(id).copied().unwrap_or(0))
                .copied()
                .ok_or(MembershipError::NoSuccessor)?,
            to if to == self.node_id() => return Ok(to),
            to if status.voters.contains(&to) => to,
            to => return Err(MembershipError::Refused(format!("node {to} is no voter of this group"))),
        };
        self.raft().trigger().transfer_leader(to).await.map_err(|error| MembershipError::Refused(error.to_string()))?;
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if self.leader_hint() == Some(to) {
                return Ok(to);
            }
            sleep(Duration::from_millis(5)).await;
        }
        Err(MembershipError::TransferTimeout { to })
    }
}
