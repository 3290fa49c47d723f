//! Attestation at snapshot barriers: this node reads its own checkpoint, says what it found, and learns whether it is alone
//! with that.
//!
//! Invariants: what is said was read from this node's own disk. A node that a majority contradicts says so of itself, and its
//! snapshot is never shipped; without a majority a snapshot ships unattested, and that is seen.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_archive::{ArchiveError, LineageId, Reading, Witness};
use holdfast_model::attest::Attested;
use holdfast_model::command::Command;
use holdfast_model::id::NodeId;
use holdfast_replica::DiskLevel;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::Shipper;
use super::backup::Reached;

/// Once a majority agrees, the others have at least so long: a node that is down holds a snapshot up no longer.
const OTHERS_MIN: Duration = Duration::from_secs(5);
/// Without a majority, at least so long: others may read more slowly, or have to catch up.
const MAJORITY_MIN: Duration = Duration::from_secs(60);
/// And so many times what this node took itself.
const TIMES_OWN: u32 = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(50);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// What came of a barrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// So many replicas found the same; a majority of the voters, or not.
    Agreed { witnesses: Vec<Witness>, is_majority: bool },
    /// A majority found something else.
    Outvoted,
}

/// Judges what was said by now; `None` = more may still come.
fn judge(attested: &Attested, reading: &Reading, waited: Waited) -> Option<Verdict> {
    let (statement, voters) = (&reading.statement, &reading.voters);
    let index = statement.applied.index;
    let words = attested.words.get(&index);
    let agreed = attested.agreed(index, voters);
    if agreed.is_some_and(|root| root != statement.root) {
        return Some(Verdict::Outvoted);
    }
    let all: BTreeSet<&NodeId> = voters.iter().flatten().collect();
    let has_spoken = |node: &&NodeId| words.is_some_and(|words| words.contains_key(*node));
    let is_over = match agreed {
        Some(_) => waited.others || all.iter().all(has_spoken),
        // With all words in and no majority, there will be none.
        None => waited.majority || all.iter().all(has_spoken),
    };
    let same = words.into_iter().flatten().filter(|(_, word)| word.root == statement.root);
    let signed = same.filter_map(|(node, word)| {
        let witness = Witness { node: *node, key: *attested.keys.get(node)?, signature: word.signature };
        // A log entry is no proof: the manifest says only what was signed.
        witness.signed(statement).then_some(witness)
    });
    is_over.then(|| Verdict::Agreed { witnesses: signed.collect(), is_majority: agreed.is_some() })
}

/// What was waited for long enough.
#[derive(Debug, Clone, Copy)]
struct Waited {
    others: bool,
    majority: bool,
}

impl Shipper {
    /// Reads every checkpoint that no job of this node ships, and says what it found.
    pub(super) async fn attest_barriers(self: Arc<Self>, mut reached: mpsc::Receiver<Reached>) {
        while let Some(Reached { path, installation, index }) = reached.recv().await {
            let began = Instant::now();
            let verdict = self.attest_checkpoint(&path, index, installation).await;
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!(event = "backup.leftover", %error, "the checkpoint goes at restart");
            }
            let took_ms = began.elapsed().as_millis() as u64;
            match verdict {
                Ok(Verdict::Agreed { witnesses, is_majority }) => {
                    let alike = witnesses.len();
                    tracing::info!(event = "backup.attested", index, alike, is_majority, took_ms, "this node's state");
                }
                // It was told already.
                Ok(Verdict::Outvoted) => {}
                Err(error) => {
                    tracing::warn!(event = "backup.not_attested", index, error, "this node vouches for no snapshot");
                }
            }
        }
    }

    async fn attest_checkpoint(&self, path: &Path, index: u64, installation: u64) -> Result<Verdict, String> {
        let sys = self.replica.sys();
        let history = sys.history.as_ref().ok_or("the cluster is not founded")?;
        let lineage = LineageId { cluster_id: history.cluster_id, incarnation: history.incarnation };
        let own = NodeId(self.replica.node_id());
        if sys.attested.words.get(&index).is_some_and(|words| words.contains_key(&own)) || index < sys.barrier_index {
            return Err("that was long ago: the log was applied again".into());
        }
        drop(sys);
        if self.replica.disk().level != DiskLevel::Ample {
            return Err("the disk is nearly full".into());
        }
        let began = Instant::now();
        let limit = self.pace.snapshot;
        let group = self.replica.group_id();
        let reading = holdfast_archive::attest::read_checkpoint(path, lineage, group, limit);
        let reading = reading.await.map_err(|error| error.to_string())?;
        self.attest(&reading, installation, began.elapsed()).await
    }

    /// Says what this node found, and waits for what others did. `took` is how long this node read.
    pub(super) async fn attest(&self, reading: &Reading, installation: u64, took: Duration) -> Result<Verdict, String> {
        let own = NodeId(self.replica.node_id());
        let statement = &reading.statement;
        let index = statement.applied.index;
        let said = self.node_key.attest(own, statement);
        let is_said = |attested: &Attested| attested.words.get(&index).is_some_and(|words| words.contains_key(&own));
        let began = Instant::now();
        if !is_said(&self.replica.sys().attested) {
            let admitted = self.replica.admission().admit_first(512);
            let command = Command::Attest(Box::new(said));
            let proposed = self.replica.propose(command, admitted, began + PROPOSE_TIMEOUT).await;
            proposed.map_err(|error| error.to_string())?;
        }
        let (others, majority) = (OTHERS_MIN.max(took), MAJORITY_MIN.max(took * TIMES_OWN));
        let mut agreed_since = None;
        loop {
            let attested = self.replica.sys().attested.clone();
            if is_said(&attested) && attested.keys.get(&own) != Some(&self.node_key.public()) {
                return Err("this node has another key than it attested with before; NODE_KEY was lost".into());
            }
            if attested.agreed(index, &reading.voters).is_some() {
                agreed_since.get_or_insert_with(Instant::now);
            }
            let waited = Waited {
                others: agreed_since.is_some_and(|since| since.elapsed() >= others),
                majority: began.elapsed() >= majority,
            };
            match judge(&attested, reading, waited) {
                Some(Verdict::Outvoted) => {
                    let reason = format!(
                        "at the snapshot barrier {index} most replicas found other rows in their states than this node did"
                    );
                    self.replica.outvoted(installation, reason);
                    return Ok(Verdict::Outvoted);
                }
                Some(verdict) => return Ok(verdict),
                None => sleep(LOOK_PAUSE).await,
            }
        }
    }

    /// Who vouches for a snapshot whose rows are all there.
    pub(super) async fn witnesses(
        &self,
        reading: Reading,
        installation: u64,
        took: Duration,
    ) -> Result<Vec<Witness>, ArchiveError> {
        let index = reading.statement.applied.index;
        match self.attest(&reading, installation, took).await {
            Ok(Verdict::Agreed { witnesses, is_majority }) => {
                if !is_majority {
                    tracing::warn!(
                        event = "backup.unattested",
                        index,
                        alike = witnesses.len(),
                        "no majority of the voters vouches for this snapshot"
                    );
                }
                Ok(witnesses)
            }
            Ok(Verdict::Outvoted) => Err(ArchiveError::NotNow {
                reason: format!("most replicas have other rows than this node at index {index}; ask another node"),
            }),
            Err(error) => {
                tracing::warn!(event = "backup.unattested", index, error, "nobody vouches for this snapshot");
                Ok(Vec::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_archive::{NodeKey, Statement};
    use holdfast_model::attest::Attestation;
    use holdfast_model::id::{GroupId, Incarnation};
    use holdfast_store::LogPosition;

    use super::*;

    const NO: Waited = Waited { others: false, majority: false };
    const LONG: Waited = Waited { others: true, majority: true };

    fn reading(root: u8) -> Reading {
        let statement = Statement {
            lineage: LineageId { cluster_id: [1; 16], incarnation: Incarnation(2) },
            group: GroupId(0),
            applied: LogPosition { term: 1, node: 1, index: 9 },
            entry_chain: [3; 32],
            effect_chain: [4; 32],
            root: [root; 32],
        };
        Reading { statement, voters: vec![[1, 2, 3].map(NodeId).into()] }
    }

    fn said(node: u64, root: u8) -> Attestation {
        NodeKey::from_seed(&[node as u8; 32]).attest(NodeId(node), &reading(root).statement)
    }

    fn attested(said: &[Attestation]) -> Attested {
        said.iter().fold(Attested::default(), |all, one| all.with(one).unwrap_or(all))
    }

    fn agreed(verdict: Option<Verdict>) -> Option<(Vec<u64>, bool)> {
        match verdict? {
            Verdict::Agreed { witnesses, is_majority } => {
                Some((witnesses.iter().map(|witness| witness.node.0).collect(), is_majority))
            }
            Verdict::Outvoted => None,
        }
    }

    #[test]
    fn a_snapshot_waits_for_all_and_no_longer_than_it_must() {
        let own = reading(7);
        let (one, two) = (attested(&[said(1, 7)]), attested(&[said(1, 7), said(3, 7)]));
        assert_eq!((judge(&one, &own, NO), judge(&two, &own, NO)), (None, None), "others may still say something");
        assert_eq!(agreed(judge(&two, &own, LONG)), Some((vec![1, 3], true)));
        assert_eq!(agreed(judge(&one, &own, LONG)), Some((vec![1], false)), "it is no majority");
        let all = attested(&[said(1, 7), said(2, 8), said(3, 7)]);
        assert_eq!(agreed(judge(&all, &own, NO)), Some((vec![1, 3], true)), "the third found something else");
        let none_alike = attested(&[said(1, 7), said(2, 8), said(3, 9)]);
        assert_eq!(agreed(judge(&none_alike, &own, NO)), Some((vec![1], false)), "there will be no majority");
    }

    #[test]
    fn who_is_outvoted_is_told_at_once() {
        let others = attested(&[said(1, 8), said(2, 7), said(3, 7)]);
        assert_eq!(judge(&others, &reading(8), NO), Some(Verdict::Outvoted));
    }

    #[test]
    fn what_was_not_signed_is_not_passed_on() {
        let mut forged = said(3, 7);
        forged.word.signature[0] ^= 1;
        let with = attested(&[said(1, 7), said(2, 7), forged]);
        assert_eq!(agreed(judge(&with, &reading(7), NO)), Some((vec![1, 2], true)));
        // Nor what was signed of another position.
        let mut other = reading(7).statement;
        other.applied.term = 2;
        let with = attested(&[said(1, 7), said(2, 7), NodeKey::from_seed(&[3; 32]).attest(NodeId(3), &other)]);
        assert_eq!(agreed(judge(&with, &reading(7), NO)), Some((vec![1, 2], true)));
    }
}
