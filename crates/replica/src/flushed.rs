//! Before a snapshot barrier, every member brings to its disk what its memory holds: at the barrier applying waits for the
//! checkpoint, and with it everybody whose write comes behind it.

use std::time::Duration;

use holdfast_store::StoreError;
use holdfast_wire::internal::v1 as pb;
use tokio::time::timeout;

use crate::handle::Replica;

/// A member that takes longer flushes at the barrier.
const MEMBER_WITHIN: Duration = Duration::from_secs(5);

impl Replica {
    /// Flushes this node's state, and has all members do so, one after the other: a majority has its disks to itself meanwhile.
    ///
    /// # Errors
    /// This node's disk. A member that fails only makes its own checkpoint take longer.
    pub async fn flush_everywhere(&self) -> Result<(), StoreError> {
        let group_id = self.group_id().0;
        for (node, mut client) in self.peers().all() {
            match timeout(MEMBER_WITHIN, client.flush(pb::FlushRequest { group_id })).await {
                Ok(Ok(_)) => {}
                Ok(Err(status)) => tracing::debug!(node, reason = status.message(), "it flushes at the barrier"),
                Err(_) => tracing::debug!(node, "it flushes at the barrier"),
            }
        }
        self.flush_own().await
    }

    /// Flushes this node's state.
    pub(crate) async fn flush_own(&self) -> Result<(), StoreError> {
        let state = self.state().clone();
        match tokio::task::spawn_blocking(move || state.flush()).await {
            Ok(flushed) => flushed,
            // A panic in it is a panic here.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
