//! Watches what the nodes say of themselves, from the founding of the cluster to the last read, over all restarts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_client::{AdminClient, v1};
use tokio::task::JoinHandle;

use crate::history::{Action, Named, Recorder, Replica, Stage, Term};

/// Between two questions to a node: shorter than an election, so that hardly a term goes by unseen.
const PAUSE: Duration = Duration::from_millis(50);
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// Indexes whose digest is remembered for the nodes that have not come to them yet.
const REMEMBERED: usize = 100_000;

/// One watcher for each node.
#[derive(Debug)]
pub struct Observer(Vec<JoinHandle<()>>);

impl Observer {
    /// Watches nodes, given by their ids and admin addresses. Writes down a node's term whenever it is another one, and the
    /// digests of two nodes whenever both were asked at the same index.
    ///
    /// # Errors
    /// When an address is malformed.
    pub fn start(nodes: Vec<(u64, String)>, recorder: &Arc<Recorder>) -> anyhow::Result<Self> {
        let met = Arc::new(Mutex::new(Met::default()));
        let watcher = |(node, address): (u64, String)| {
            let admin = AdminClient::new(&address)?.with_deadline(ANSWER_WITHIN);
            Ok(tokio::spawn(watch(node, admin, recorder.clone(), met.clone())))
        };
        nodes.into_iter().map(watcher).collect::<anyhow::Result<_>>().map(Self)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn watch(node: u64, admin: AdminClient, recorder: Arc<Recorder>, met: Arc<Mutex<Met>>) {
    let (mut term, mut index) = (None, 0);
    loop {
        let status = admin.status().await.ok();
        if let Some(group) = status.and_then(|status| status.groups.into_iter().next()) {
            if term != Some(group.term) {
                term = Some(group.term);
                recorder.note(Named::Observer, Stage::Info, Action::Term(Term { node, term: group.term }));
            }
            if group.digest_index != index {
                index = group.digest_index;
                let told = met.lock().unwrap_or_else(PoisonError::into_inner).tell(replica(node, &group));
                for replica in told {
                    recorder.note(Named::Observer, Stage::Info, Action::Replica(replica));
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a node says of its state.
pub(crate) fn replica(node: u64, group: &v1::GroupStatus) -> Replica {
    let digest = group.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Replica { node, applied_index: group.applied_index, digest_index: group.digest_index, digest }
}

/// States by their indexes: most are met at no other node, and say nothing alone.
#[derive(Debug, Default)]
struct Met(BTreeMap<u64, Replica>);

impl Met {
    /// A node says what it holds; gives what can be compared now, which is that of another node first.
    fn tell(&mut self, replica: Replica) -> Vec<Replica> {
        if replica.digest_index == 0 {
            return Vec::new();
        }
        let Some(before) = self.0.get(&replica.digest_index) else {
            self.0.insert(replica.digest_index, replica);
            if self.0.len() > REMEMBERED {
                self.0.pop_first();
            }
            return Vec::new();
        };
        // Also a node that came to another state at this index than it had there itself.
        let tells = before.node != replica.node || before.digest != replica.digest;
        if tells { vec![before.clone(), replica] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_down_where_two_meet() {
        let at = |node, index, digest: &str| Replica {
            node,
            applied_index: index,
            digest_index: index,
            digest: digest.to_owned(),
        };
        let mut met = Met::default();
        assert!(met.tell(at(1, 0, "")).is_empty() && met.tell(at(2, 0, "")).is_empty(), "not founded");
        assert!(met.tell(at(1, 5, "a")).is_empty());
        assert!(met.tell(at(2, 6, "b")).is_empty());
        assert_eq!(met.tell(at(2, 5, "a")), [at(1, 5, "a"), at(2, 5, "a")]);
        assert_eq!(met.tell(at(3, 5, "c")), [at(1, 5, "a"), at(3, 5, "c")]);
        assert!(met.tell(at(1, 5, "a")).is_empty(), "it says the same again");
        assert_eq!(met.tell(at(1, 5, "d")), [at(1, 5, "a"), at(1, 5, "d")]);
    }
}
