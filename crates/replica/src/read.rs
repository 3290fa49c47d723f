//! Reads: a view of the state, given out only with the freshness that was asked for.
//!
//! Invariants: a linearizable read takes its index from a leader that a quorum confirmed *after* the read began
//! (ReadIndex, Ongaro 2014 §6.4); one confirmation serves all reads that were waiting when it started, never one that
//! came later. No lease reads: a follower that restarts inside the lease makes them stale.

use std::sync::Arc;

use holdfast_model::id::Incarnation;
use holdfast_store::View;
use holdfast_wire::internal::v1 as pb;
use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, timeout, timeout_at};

use crate::handle::{Core, Replica};
use crate::transport::client::is_connect_error;

/// Time for one confirmation; the caller's deadline bounds the whole.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1000);

/// Freshness of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Confirmed by a quorum after the read began.
    Linearizable,
    /// At least this index of this history.
    AtLeast(Incarnation, u64),
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
    /// The node is not part of a founded cluster.
    #[error("not founded")]
    NotFounded,
}

type Waiter = oneshot::Sender<Option<u64>>;

/// Shares one confirmation among all reads that wait for it.
pub(crate) struct ReadIndexer {
    queue: mpsc::Sender<Waiter>,
}

impl ReadIndexer {
    /// Starts the task that confirms; it ends when `core` is dropped or the queue closes.
    pub(crate) fn start(core: &Arc<Core>) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Waiter>(4096);
        let core = Arc::downgrade(core);
        tokio::spawn(async move {
            let mut round = Vec::new();
            while waiting.recv_many(&mut round, 4096).await > 0 {
                let Some(core) = core.upgrade() else { return };
                let index = timeout(CONFIRM_TIMEOUT, core.confirmed_index()).await.ok().flatten();
                for waiter in round.drain(..) {
                    // A reader that went away is no concern.
                    let _ = waiter.send(index);
                }
            }
        });
        Self { queue }
    }

    async fn index(&self) -> Option<u64> {
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
        if !self.raft.is_leader() || self.recovering() {
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
    pub async fn read(&self, level: Level, deadline: Instant) -> Result<View, ReadError> {
        let index = match level {
            Level::AtLeast(incarnation, index) => {
                self.check_history(incarnation)?;
                index
            }
            Level::Linearizable => loop {
                match timeout_at(deadline, self.indexer().index()).await {
                    Err(_) => return Err(ReadError::NoLeader),
                    Ok(Some(index)) => break index,
                    Ok(None) if Instant::now() + Duration::from_millis(10) >= deadline => {
                        return Err(ReadError::NoLeader);
                    }
                    Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            },
        };
        self.wait_applied(index, deadline).await?;
        let view = self.view();
        if !self.is_opened(view.sys()) {
            return Err(ReadError::NotFounded);
        }
        Ok(view)
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
        match &self.sys().history {
            None => Err(ReadError::NotFounded),
            Some(history) if history.incarnation == incarnation => Ok(()),
            Some(_) => Err(ReadError::OtherHistory),
        }
    }
}
