//! Founding a group and moving its leadership.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::errors::{InitializeError, RaftError};
use tokio::time::{Instant, sleep};

use crate::handle::Replica;
use crate::types::Member;

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

impl Replica {
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
