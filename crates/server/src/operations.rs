//! Long jobs of operators, kept in the replicated state so that any node can answer for them.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::command::{Command, Operation};
use holdfast_replica::Replica;
use tokio::time::Instant;

/// Writes a job's state, and waits until this node knows it: whoever asks here next is told of it. A failure is logged, the
/// job goes on.
pub async fn record(replica: &Replica, operation: Operation) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let admitted = replica.admission().admit_first(256);
    match replica.propose(Command::SetOperation(operation), admitted, deadline).await {
        // One that lags for so long answers with what it knew before.
        Ok(applied) => drop(replica.wait_applied(applied.index, deadline).await),
        Err(error) => tracing::warn!(event = "operation.not_recorded", %error, "the job goes on"),
    }
}

/// A job under way on this node.
#[derive(Clone)]
pub struct Job {
    replica: Replica,
    state: Arc<tokio::sync::Mutex<Operation>>,
}

impl Job {
    /// A new job.
    pub fn new(replica: Replica, id: String) -> Self {
        let operation = Operation { id, ..Operation::default() };
        Self { replica, state: Arc::new(tokio::sync::Mutex::new(operation)) }
    }

    /// Enters a stage.
    pub async fn stage(&self, stage: &str, done: u64, total: u64) {
        let operation = {
            let mut state = self.state.lock().await;
            state.stage = stage.to_owned();
            state.done_units = done;
            state.total_units = total;
            state.clone()
        };
        record(&self.replica, operation).await;
    }

    /// Ends the job.
    pub async fn end(&self, result: Result<String, String>) {
        let operation = {
            let mut state = self.state.lock().await;
            state.done = true;
            match result {
                Ok(stage) => state.stage = stage,
                Err(error) => {
                    state.stage = "failed".to_owned();
                    state.error = error;
                }
            }
            state.clone()
        };
        record(&self.replica, operation).await;
    }
}
