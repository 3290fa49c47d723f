//! Proposing: here when this node leads, else one hop to the leader.
//!
//! Invariants: after the first forwarded byte only a typed answer is an answer; a broken connection, a discarded
//! entry or a fatal error is `OutcomeUnknown`, never "no leader". A forwarded proposal is not forwarded again.

pub(crate) mod fold;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::command::{Command, Op, Proposal, RULES, WriteBatch};
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
use crate::types::{ProposalBytes, Reply, TypeConfig};
use fold::Folded;

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
#[derive(Debug)]
enum Local {
    Applied(Applied),
    NotLeader(Option<u64>),
}

/// Proposes what stands in the line.
struct Task {
    replica: Replica,
    /// It gave its place back.
    ended: bool,
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.ended {
            self.replica.core.folder.fell();
        }
    }
}

impl Task {
    async fn run(mut self) {
        loop {
            // Whoever is about to come, comes along.
            tokio::task::yield_now().await;
            let entries = self.replica.core.folder.take().into_iter();
            // All at once: one waits for no other.
            futures::future::join_all(entries.map(|writes| self.replica.propose_folded(writes))).await;
            if !self.replica.core.folder.goes_on() {
                self.ended = true;
                return;
            }
        }
    }
}

/// What a command does to disks.
pub(crate) fn weight_of(command: &Command) -> Weight {
    match command {
        Command::WriteBatch(batch) if puts(batch) => Weight::Adds,
        Command::Fold(batches) if batches.iter().any(puts) => Weight::Adds,
        Command::FillPayloads(_) => Weight::Adds,
        Command::WriteBatch(_) | Command::Fold(_) | Command::AckCursor(_) | Command::DropDevice(_) => Weight::Frees,
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

fn puts(batch: &WriteBatch) -> bool {
    batch.mutations.iter().any(|one| matches!(one.op, Op::Put(_)))
}

/// What judges of room are told: nothing else is as long.
fn bytes_of(command: &Command) -> usize {
    match command {
        Command::WriteBatch(batch) => fold::bytes_of(batch),
        Command::Fold(batches) => batches.iter().map(fold::bytes_of).sum(),
        Command::FillPayloads(fill) => fill.fills.iter().map(|one| one.payload.len()).sum(),
        other => wire_log::encode_stamped(RULES, Millis(0), other).len(),
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
        if !self.leads() {
            return Ok(Local::NotLeader(self.leader_hint()));
        }
        if let Some(refused) = self.refuses(&proposal.command) {
            // The first try may stand in the line yet: then nobody can say that it was refused.
            if let Command::WriteBatch(batch) = &proposal.command
                && self.core.folder.holds(batch)
            {
                return Err(ProposeError::Unknown { deadline: false });
            }
            let Some(stamp) = self.stamp() else { return Ok(Local::NotLeader(None)) };
            let remembered = self.remembered(&proposal.command, stamp, deadline).await;
            return remembered.map(Local::Applied).ok_or(refused);
        }
        match &proposal.command {
            Command::WriteBatch(batch) if proposal.rules == RULES && !fold::is_large(batch) => {
                self.propose_write(batch, deadline).await
            }
            _ => self.propose_alone(proposal, deadline).await,
        }
    }

    /// This node may propose. Whoever does stamps it: as long as nobody can say what time it is, nothing is proposed.
    fn leads(&self) -> bool {
        !self.is_recovering() && !self.is_fenced() && self.raft().is_leader()
    }

    /// Why this node, as the leader, takes no such command now.
    fn refuses(&self, command: &Command) -> Option<ProposeError> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let configs = metrics.membership_config.membership().get_joint_config();
        let weight = weight_of(command);
        if let Some(evidence) = self.outbox_refuses(weight) {
            return Some(ProposeError::OutboxFull(evidence));
        }
        match self.peers().rooms.judge(self.node_id(), configs, weight, bytes_of(command)) {
            Verdict::Refuse(evidence) => Some(ProposeError::DiskFull(evidence)),
            Verdict::Take => None,
        }
    }

    /// As an entry of its own.
    async fn propose_alone(&self, proposal: &Proposal, deadline: Instant) -> Result<Local, ProposeError> {
        let Some(stamp) = self.stamp() else { return Ok(Local::NotLeader(None)) };
        let bytes = wire_log::encode_stamped(proposal.rules, stamp, &proposal.command);
        let applied = match self.enter_log(bytes, deadline).await? {
            Ok(applied) => applied,
            Err(leader) => return Ok(Local::NotLeader(leader)),
        };
        let (index, outcome) = (applied.index, applied.outcomes.into_iter().next());
        let outcome = outcome.ok_or(ProposeError::Unknown { deadline: false })?;
        Ok(Local::Applied(Applied { outcome, index }))
    }

    /// With others that come or wait as well; alone where there are none.
    async fn propose_write(&self, batch: &WriteBatch, deadline: Instant) -> Result<Local, ProposeError> {
        let own = Arc::new(batch.clone());
        let (answered, begins) = self.core.folder.enter(&own, deadline);
        if begins {
            tokio::spawn(Task { replica: self.clone(), ended: false }.run());
        }
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ProposeError::Unknown { deadline: false }),
            Err(_) => Err(ProposeError::Unknown { deadline: true }),
        }
    }

    /// Writes as one entry.
    async fn propose_folded(&self, writes: Vec<Folded>) {
        let deadline = writes.iter().map(|write| write.deadline).max().unwrap_or_else(Instant::now);
        let entered = match self.stamp().filter(|_| self.leads()) {
            Some(stamp) => {
                let batches = writes.iter().map(|write| &*write.batch);
                self.enter_log(wire_log::encode_writes(RULES, stamp, batches), deadline).await
            }
            None => Ok(Err(self.leader_hint())),
        };
        match entered {
            Ok(Ok(applied)) => {
                let index = applied.index;
                let mut outcomes = applied.outcomes.into_iter();
                for write in writes {
                    let outcome = outcomes.next().ok_or(ProposeError::Unknown { deadline: false });
                    // Whoever gave up meanwhile hears nothing.
                    let _ = write.answer.send(outcome.map(|outcome| Local::Applied(Applied { outcome, index })));
                }
            }
            Ok(Err(leader)) => writes.into_iter().for_each(|write| {
                let _ = write.answer.send(Ok(Local::NotLeader(leader)));
            }),
            Err(error) => writes.into_iter().for_each(|write| {
                let _ = write.answer.send(Err(error.clone()));
            }),
        }
    }

    /// Appends to the log as the leader and waits until it is applied; the leader, if this node is not.
    async fn enter_log(&self, bytes: Bytes, deadline: Instant) -> Result<Result<Reply, Option<u64>>, ProposeError> {
        let (responder, answer) = OneshotResponder::<TypeConfig, _>::new_pair();
        if self.raft().client_write_ff(ProposalBytes(bytes), Some(responder)).await.is_err() {
            return Err(ProposeError::Unknown { deadline: false });
        }
        match timeout_at(deadline, answer).await {
            Err(_) => Err(ProposeError::Unknown { deadline: true }),
            Ok(Ok(Ok(written))) => Ok(Ok(written.data)),
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(to)))) => Ok(Err(to.leader_id)),
            Ok(Err(_) | Ok(Err(_))) => Err(ProposeError::Unknown { deadline: false }),
        }
    }

    /// The first answer of a write that took effect before. It needs no room: whoever sends it again on a full disk must
    /// not be told that it was refused.
    async fn remembered(&self, command: &Command, stamp: Millis, deadline: Instant) -> Option<Applied> {
        let Command::WriteBatch(batch) = command.clone() else { return None };
        // The first try may be in the log, and not be applied yet.
        let last = self.raft().metrics().borrow_watched().last_log_index.unwrap_or(0);
        drop(self.wait_applied(last, deadline.min(Instant::now() + APPLIED_WITHIN)).await);
        let state = self.state().clone();
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
