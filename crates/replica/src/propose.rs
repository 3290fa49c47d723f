//! Proposing: here when this node leads, else one hop to the leader.
//!
//! Invariants: after the first forwarded byte only a typed answer is an answer; a broken connection, a discarded
//! entry or a fatal error is `OutcomeUnknown`, never "no leader". A forwarded proposal is not forwarded again.

use std::time::Duration;

use holdfast_model::command::{Command, Op, Proposal, RULES};
use holdfast_model::id::Millis;
use holdfast_model::outcome::Outcome;
use holdfast_model::transition::remembered;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::{log as wire_log, peer};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::impls::OneshotResponder;
use tokio::time::{Instant, timeout_at};

use crate::admission::{Admitted, Overloaded};
use crate::handle::Replica;
use crate::rooms::{Verdict, Weight};
use crate::transport::is_connect_error;
use crate::types::{ProposalBytes, TypeConfig};

/// What is in the log may never be committed while a quorum has no room: a refusal does not wait for it any longer.
const APPLIED_WITHIN: Duration = Duration::from_millis(200);
/// Pause between attempts to find a leader.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// An applied proposal.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Its outcome.
    pub outcome: Outcome,
    /// Index of its entry.
    pub index: u64,
}

/// Why there is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader was found within the deadline; nothing was proposed.
    #[error("no leader within the deadline; nothing was proposed")]
    NoLeader,
    /// Refused before proposing.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Refused before proposing: disks are nearly full; the evidence.
    #[error("{0}; nothing was proposed")]
    DiskFull(String),
    /// Refused before proposing: too much of the log is not offsite; the evidence.
    #[error("{0}; nothing was proposed")]
    OutboxFull(String),
    /// Proposed; whether it took or takes effect is not known.
    #[error("the outcome is unknown")]
    Unknown {
        /// The deadline ended.
        deadline: bool,
    },
}

/// One attempt at this node.
enum Local {
    Applied(Applied),
    NotLeader(Option<u64>),
}

/// What a command does to disks.
pub(crate) fn weight_of(command: &Command) -> Weight {
    match command {
        Command::WriteBatch(batch) if batch.mutations.iter().any(|one| matches!(one.op, Op::Put(_))) => Weight::Adds,
        Command::FillPayloads(_) => Weight::Adds,
        Command::WriteBatch(_) | Command::AckCursor(_) | Command::DropDevice(_) => Weight::Frees,
        Command::Genesis(_)
        | Command::OffsiteFact(_)
        | Command::SnapshotBarrier(_)
        | Command::Attest(_)
        | Command::Expire
        | Command::SetOperation(_)
        | Command::SetPolicy(_)
        | Command::SetArchiveKeys(_)
        | Command::LineageFork(_) => Weight::Own,
    }
}

impl Replica {
    /// Proposes `command` and waits for its outcome until `deadline`.
    ///
    /// # Errors
    /// See [`ProposeError`]; only `NoLeader`, `Overloaded`, `DiskFull` and `OutboxFull` mean that nothing was
    /// proposed.
    pub async fn propose(
        &self,
        command: Command,
        mut admitted: Admitted,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let proposal = Proposal { rules: RULES, stamp: Millis(0), command };
        loop {
            let leader = match self.propose_local(&proposal, deadline).await? {
                Local::Applied(applied) => {
                    admitted.done();
                    return Ok(applied);
                }
                Local::NotLeader(leader) => leader,
            };
            if let Some(leader) = leader.filter(|leader| *leader != self.node_id())
                && let Some(applied) = self.forward(leader, &proposal, deadline).await?
            {
                admitted.done();
                return Ok(applied);
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(ProposeError::NoLeader);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Proposes here only: for forwarded proposals (loop guard) and for the leader's own housekeeping.
    pub(crate) async fn propose_here(
        &self,
        mut proposal: Proposal,
        deadline: Instant,
    ) -> Result<Result<Applied, Option<u64>>, ProposeError> {
        proposal.stamp = Millis(0);
        Ok(match self.propose_local(&proposal, deadline).await? {
            Local::Applied(applied) => Ok(applied),
            Local::NotLeader(leader) => Err(leader),
        })
    }

    /// Proposes a housekeeping command if this node leads; `None` when it does not.
    ///
    /// # Errors
    /// As [`Replica::propose`].
    pub async fn propose_if_leader(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Option<Applied>, ProposeError> {
        let proposal = Proposal { rules: RULES, stamp: Millis(0), command };
        self.propose_here(proposal, deadline).await.map(Result::ok)
    }

    async fn propose_local(&self, proposal: &Proposal, deadline: Instant) -> Result<Local, ProposeError> {
        if self.is_recovering() || self.is_fenced() || !self.raft().is_leader() {
            return Ok(Local::NotLeader(self.leader_hint()));
        }
        // As long as nobody can say what time it is, nothing is proposed.
        let Some(stamp) = self.stamp() else { return Ok(Local::NotLeader(None)) };
        let stamped = Proposal { stamp, ..proposal.clone() };
        let bytes = ProposalBytes(wire_log::encode_proposal(&stamped));
        let judged = {
            let metrics = self.raft().metrics();
            let metrics = metrics.borrow_watched();
            let configs = metrics.membership_config.membership().get_joint_config();
            let weight = weight_of(&proposal.command);
            match self.outbox_refuses(weight) {
                Some(evidence) => Some(ProposeError::OutboxFull(evidence)),
                None => match self.peers().rooms.judge(self.node_id(), configs, weight, bytes.0.len()) {
                    Verdict::Refuse(evidence) => Some(ProposeError::DiskFull(evidence)),
                    Verdict::Take => None,
                },
            }
        };
        if let Some(refused) = judged {
            let remembered = self.remembered(&stamped, deadline).await;
            return remembered.map(Local::Applied).ok_or(refused);
        }
        let (responder, answer) = OneshotResponder::<TypeConfig, _>::new_pair();
        if self.raft().client_write_ff(bytes, Some(responder)).await.is_err() {
            return Err(ProposeError::Unknown { deadline: false });
        }
        match timeout_at(deadline, answer).await {
            Err(_) => Err(ProposeError::Unknown { deadline: true }),
            Ok(Err(_)) => Err(ProposeError::Unknown { deadline: false }),
            Ok(Ok(Ok(written))) => match written.data.outcome {
                Some(outcome) => Ok(Local::Applied(Applied { outcome, index: written.data.index })),
                None => Err(ProposeError::Unknown { deadline: false }),
            },
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(to)))) => Ok(Local::NotLeader(to.leader_id)),
            Ok(Ok(Err(_))) => Err(ProposeError::Unknown { deadline: false }),
        }
    }

    /// The first answer of a write that took effect before. It needs no room: whoever sends it again on a full disk must
    /// not be told that it was refused.
    async fn remembered(&self, proposal: &Proposal, deadline: Instant) -> Option<Applied> {
        let Command::WriteBatch(batch) = proposal.command.clone() else { return None };
        // The first try may be in the log, and not be applied yet.
        let last = self.raft().metrics().borrow_watched().last_log_index.unwrap_or(0);
        drop(self.wait_applied(last, deadline.min(Instant::now() + APPLIED_WITHIN)).await);
        let (state, stamp) = (self.state().clone(), proposal.stamp);
        let found = tokio::task::spawn_blocking(move || {
            let index = state.applied().index();
            Some(Applied { outcome: remembered(&state.begin(), &batch, stamp).ok()??, index })
        });
        found.await.ok().flatten()
    }

    /// Sends the proposal to `leader`; `None` = it was certainly not proposed.
    async fn forward(
        &self,
        leader: u64,
        proposal: &Proposal,
        deadline: Instant,
    ) -> Result<Option<Applied>, ProposeError> {
        let Some(mut client) = self.peers().forward_client(leader) else { return Ok(None) };
        let request = pb::ForwardRequest {
            group_id: self.group_id().0,
            proposal: wire_log::encode_proposal(proposal),
            from: self.node_id(),
        };
        let mut request = tonic::Request::new(request);
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let answer = match timeout_at(deadline, client.forward(request)).await {
            Err(_) => return Err(ProposeError::Unknown { deadline: true }),
            Ok(Err(status)) if is_connect_error(&status) => return Ok(None),
            Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => return Ok(None),
            Ok(Err(_)) => return Err(ProposeError::Unknown { deadline: false }),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        match answer.result {
            Some(pb::forward_response::Result::Applied(applied)) => match peer::decode_outcome(&applied.outcome) {
                Ok(outcome) => Ok(Some(Applied { outcome, index: applied.index })),
                Err(_) => Err(ProposeError::Unknown { deadline: false }),
            },
            Some(pb::forward_response::Result::NotLeader(_)) => Ok(None),
            Some(pb::forward_response::Result::OverloadedRetryMs(ms)) => {
                Err(Overloaded { retry_after: Duration::from_millis(ms.into()), limit: "leader" }.into())
            }
            Some(pb::forward_response::Result::DiskFull(evidence)) => Err(ProposeError::DiskFull(evidence)),
            Some(pb::forward_response::Result::OutboxFull(evidence)) => Err(ProposeError::OutboxFull(evidence)),
            Some(pb::forward_response::Result::Unknown(_)) | None => Err(ProposeError::Unknown { deadline: false }),
        }
    }
}
