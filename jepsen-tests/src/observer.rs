//! Watches what the nodes say of themselves, from the founding of the cluster to the last read, over all restarts.

use std::sync::Arc;
use std::time::Duration;

use holdfast_client::AdminClient;
use tokio::task::JoinHandle;

use crate::history::{Action, Named, Recorder, Stage, Term};

/// Between two questions to a node: shorter than an election, so that hardly a term goes by unseen.
const PAUSE: Duration = Duration::from_millis(50);
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// One watcher for each node.
#[derive(Debug)]
pub struct Observer(Vec<JoinHandle<()>>);

impl Observer {
    /// Watches nodes, given by their ids and admin addresses. Writes a node's term down whenever it is another one.
    ///
    /// # Errors
    /// When an address is malformed.
    pub fn start(nodes: Vec<(u64, String)>, recorder: &Arc<Recorder>) -> anyhow::Result<Self> {
        let watcher = |(node, address): (u64, String)| {
            let admin = AdminClient::new(&address)?.with_deadline(ANSWER_WITHIN);
            Ok(tokio::spawn(watch(node, admin, recorder.clone())))
        };
        nodes.into_iter().map(watcher).collect::<anyhow::Result<_>>().map(Self)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn watch(node: u64, admin: AdminClient, recorder: Arc<Recorder>) {
    let mut last = None;
    loop {
        let status = admin.status().await.ok();
        if let Some(group) = status.and_then(|status| status.groups.into_iter().next())
            && last != Some(group.term)
        {
            last = Some(group.term);
            recorder.note(Named::Observer, Stage::Info, Action::Term(Term { node, term: group.term }));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
