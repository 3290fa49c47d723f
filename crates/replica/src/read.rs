//! Reads: a view of the state, given out only with the freshness that was asked for.
//!
//! Invariants: a linearizable read takes its index from a leader that a quorum confirmed *after* the read began
//! (ReadIndex, Ongaro 2014 §6.4); one confirmation serves all reads that were waiting when it started, never one that
//! came later. No lease reads: a follower that restarts inside the lease makes them stale.
//!
//! How old a state may be is told the same way: an index confirmed in a round that this node began at T holds all that was
//! committed before T. Only this node's monotonic clock is asked, and no message's way is guessed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_model::id::Incarnation;
use holdfast_model::state::Sys;
use holdfast_store::View;
use holdfast_store::planted::{self, Bug};
use holdfast_wire::internal::v1 as pb;
use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, timeout, timeout_at};

use crate::handle::{Core, Replica};
use crate::transport::is_connect_error;

/// Time for one confirmation; the caller's deadline bounds the whole.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1000);

/// Confirmations remembered: of back-to-back rounds, the newest may not be applied here yet.
const PROOFS_KEPT: usize = 64;
/// A confirmation at most this old is at hand as long as the leader can be reached.
const PROOF_INTERVAL: Duration = Duration::from_millis(500);

/// Freshness of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Confirmed by a quorum after the read began.
    Linearizable,
    /// At least this index of this history.
    AtLeast(Incarnation, u64),
    /// Holds all that was committed longer ago than this.
    MaxStaleness(Duration),
    /// What this replica has, at least this index.
    Local(u64),
}

/// A view, and how old it may be.
pub struct Fresh {
    /// The view.
    pub view: View,
    /// It holds all that was committed longer ago than this; zero for reads that are not bounded by time.
    pub staleness: Duration,
}

/// Why there is no view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader confirmed the read within the deadline.
    #[error("no leader confirmed the read within the deadline")]
    NoLeader,
    /// This replica did not reach the index within the deadline.
    #[error("this replica is behind")]
    Behind,
    /// The index belongs to another history.
    #[error("the index belongs to another history")]
    OtherHistory,
    /// This replica's state is damaged and is being reinstalled.
    #[error("this replica's state is being reinstalled")]
    Diverged,
    /// The node is not part of a founded cluster.
    #[error("not founded")]
    NotFounded,
}

type Waiter = oneshot::Sender<Option<Proof>>;

/// A confirmation: when its round began, and the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Proof {
    began: Instant,
    index: u64,
}

/// Shares one confirmation among all reads that wait for it.
pub(crate) struct ReadIndexer {
    queue: mpsc::Sender<Waiter>,
    proofs: Arc<Mutex<VecDeque<Proof>>>,
}

impl ReadIndexer {
    /// Starts the task that confirms; it ends when `core` is dropped or the queue closes.
    pub(crate) fn start(core: &Arc<Core>) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Waiter>(4096);
        let core = Arc::downgrade(core);
        let proofs: Arc<Mutex<VecDeque<Proof>>> = Arc::default();
        let kept = proofs.clone();
        tokio::spawn(async move {
            let mut round = Vec::new();
            let mut pause = Duration::ZERO;
            loop {
                // Nobody asked for a while: a round for the proof alone.
                if let Ok(0) = timeout(pause, waiting.recv_many(&mut round, 4096)).await {
                    return;
                }
                let Some(core) = core.upgrade() else { return };
                let began = Instant::now();
                let index = timeout(CONFIRM_TIMEOUT, core.confirmed_index()).await.ok().flatten();
                pause = PROOF_INTERVAL;
                let proof = index.map(|index| Proof { began, index });
                if let Some(proof) = proof {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.push_back(proof);
                    if kept.len() > PROOFS_KEPT {
                        kept.pop_front();
                    }
                }
                for waiter in round.drain(..) {
                    // A reader that went away is no concern.
                    let _ = waiter.send(proof);
                }
            }
        });
        Self { queue, proofs }
    }

    /// The newest confirmation whose index this replica has applied.
    fn proof(&self, applied: u64) -> Option<Proof> {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.iter().rev().find(|proof| proof.index <= applied).copied()
    }

    /// A round that begins after this call.
    async fn round(&self) -> Option<Proof> {
        let (tx, rx) = oneshot::channel();
        self.queue.send(tx).await.ok()?;
        rx.await.ok().flatten()
    }
}

impl Core {
    /// One confirmation: here when this node leads, else asked of the leader.
    async fn confirmed_index(&self) -> Option<u64> {
        if let Some(index) = self.confirmed_index_here().await {
            return Some(index);
        }
        let leader = self.leader_hint().filter(|leader| *leader != self.node_id)?;
        let mut client = self.peers.forward_client(leader)?;
        let mut request = tonic::Request::new(pb::ReadIndexRequest { group_id: self.group.0 });
        request.set_timeout(CONFIRM_TIMEOUT);
        match client.read_index(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                answer.leading.then_some(answer.index)
            }
            Err(status) => {
                if !is_connect_error(&status) {
                    tracing::debug!(event = "read_index.failed", %status, "the leader did not confirm");
                }
                None
            }
        }
    }

    /// Confirmation by this node as leader; `None` when it does not lead.
    pub(crate) async fn confirmed_index_here(&self) -> Option<u64> {
        if !self.raft.is_leader() || self.recovering() || self.is_fenced() {
            return None;
        }
        self.raft.get_read_log_id(ReadPolicy::ReadIndex).await.ok().map(|(read, _)| read.index())
    }
}

impl Replica {
    /// A view at least as fresh as `level`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, level: Level, deadline: Instant) -> Result<Fresh, ReadError> {
        if self.is_fenced() {
            return Err(ReadError::Diverged);
        }
        let index = match level {
            Level::Linearizable if planted::is(Bug::StaleRead) => 0,
            Level::MaxStaleness(bound) => return self.read_within(bound, deadline).await,
            Level::Local(index) => index,
            Level::AtLeast(incarnation, index) => {
                self.check_history(incarnation)?;
                index
            }
            Level::Linearizable => loop {
                match timeout_at(deadline, self.indexer().round()).await {
                    Err(_) => return Err(ReadError::NoLeader),
                    Ok(Some(proof)) => break proof.index,
                    Ok(None) if Instant::now() + Duration::from_millis(10) >= deadline => {
                        return Err(ReadError::NoLeader);
                    }
                    Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            },
        };
        self.wait_applied(index, deadline).await?;
        self.fresh(Duration::ZERO)
    }

    /// A view at most `bound` old by a confirmation at hand; else a linearizable one, which is as fresh as any.
    async fn read_within(&self, bound: Duration, deadline: Instant) -> Result<Fresh, ReadError> {
        if let Some(age) = self.confirmed_ago().filter(|age| *age <= bound) {
            return self.fresh(age);
        }
        let proof = timeout_at(deadline, self.indexer().round()).await.ok().flatten().ok_or(ReadError::NoLeader)?;
        self.wait_applied(proof.index, deadline).await?;
        self.fresh(Duration::ZERO)
    }

    /// Everything that was committed before this call lies at or before this index, as a quorum confirms to this node as its
    /// leader after the call began; `None` = it does not lead, or nobody confirmed in time.
    pub async fn committed_as_leader(&self) -> Option<u64> {
        timeout(CONFIRM_TIMEOUT, self.shared_index_here()).await.ok().flatten()
    }

    fn fresh(&self, staleness: Duration) -> Result<Fresh, ReadError> {
        let view = self.view();
        if self.is_fenced() {
            return Err(ReadError::Diverged);
        }
        if self.is_opened(view.sys()) { Ok(Fresh { view, staleness }) } else { Err(self.why_unopened(view.sys())) }
    }

    /// Why a node that is not opened serves nobody: one that lost its state belongs to its cluster all the same, and is about
    /// to be filled up again.
    pub fn why_unopened(&self, sys: &Sys) -> ReadError {
        match sys.history {
            None if self.cluster_id().is_some() => ReadError::Behind,
            _ => ReadError::NotFounded,
        }
    }

    /// What this replica has holds all that was committed so long ago; `None` = it cannot tell. In whole milliseconds,
    /// rounded up: it never claims to be fresher than it is.
    pub fn confirmed_ago(&self) -> Option<Duration> {
        let applied = *self.applied_watch().borrow();
        let age = self.indexer().proof(applied)?.began.elapsed();
        let whole = Duration::from_millis(u64::try_from(age.as_millis()).ok()?);
        Some(if whole < age { whole + Duration::from_millis(1) } else { whole })
    }

    /// Waits until this replica has applied `index`.
    ///
    /// # Errors
    /// [`ReadError::Behind`] at the deadline.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), ReadError> {
        let mut applied = self.applied_watch();
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ReadError::Behind),
        }
    }

    fn check_history(&self, incarnation: Incarnation) -> Result<(), ReadError> {
        let sys = self.sys();
        match &sys.history {
            None => Err(self.why_unopened(&sys)),
            Some(history) if history.incarnation == incarnation => Ok(()),
            Some(_) => Err(ReadError::OtherHistory),
        }
    }
}
