//! Attestation at snapshot barriers: this node reads its own checkpoint, says what it found, and learns whether it is alone
//! with that.
//!
//! Invariants:
//! - What is said was read from this node's own disk.
//! - A node that a majority contradicts says so of itself, whenever that becomes known; its snapshot is never shipped, nor one
//!   of replicas that differ without a majority.
//! - Without enough words a snapshot ships unattested, and that is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_archive::attest::read_checkpoint;
use holdfast_archive::{ArchiveError, NodeKey, Reading, Witness};
use holdfast_model::attest::Attested;
use holdfast_model::command::Command;
use holdfast_model::id::NodeId;
use holdfast_replica::DiskLevel;
use tokio::time::{Instant, sleep};

use super::Shipper;
use super::backup::Reached;

const NO_KEY: &str =
    "this node has no key to sign with: NODE_KEY in its data directory cannot be used, and its log says why";
const OTHER_KEY: &str = "this node attested with another key before: NODE_KEY was lost or replaced";
/// Once a majority agrees, the others have so long, from the moment that all rows are shipped: they began to read when this
/// node began to ship, and one that is down is not waited for.
const OTHERS_WITHIN: Duration = Duration::from_secs(5);
/// Without a majority, so long, and as long again as shipping took: others may read more slowly, or have to catch up.
const MAJORITY_WITHIN: Duration = Duration::from_secs(60);
const AS_LONG_AGAIN_MAX: Duration = Duration::from_secs(600);
const LOOK_PAUSE: Duration = Duration::from_millis(100);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// For a word to be taken in; elections come and go.
const SAY_WITHIN: Duration = Duration::from_secs(60);

/// What this node found, until nothing more is said of it.
#[derive(Debug)]
struct Own {
    reading: Reading,
    /// Of this node's state.
    installation: u64,
}

/// What this node attests with, and what it found at the newest barriers.
#[derive(Debug)]
pub struct Attestor {
    /// `None` = it could not be read or made, and this node attests nothing.
    key: Option<NodeKey>,
    own: Mutex<BTreeMap<u64, Own>>,
}

impl Attestor {
    /// With this key.
    pub fn new(key: Option<NodeKey>) -> Self {
        Self { key, own: Mutex::default() }
    }

    fn remember(&self, reading: &Reading, installation: u64) {
        let own = Own { reading: reading.clone(), installation };
        let mut known = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(reading.statement.applied.index, own);
    }
}

/// Where replicas stand, seen from one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// More may still be said.
    Open,
    /// A majority found what this one found; all voters have spoken, or not.
    Agreed { all: bool },
    /// A majority found something else.
    Outvoted,
    /// They differ, and no side can be a majority.
    InDoubt,
    /// Newer barriers came: nothing more is said of this one.
    Over,
}

fn standing(attested: &Attested, reading: &Reading) -> Standing {
    let (statement, voters) = (&reading.statement, &reading.voters);
    let index = statement.applied.index;
    let Some(words) = attested.words.get(&index) else { return Standing::Over };
    let all_voters: BTreeSet<&NodeId> = voters.iter().flatten().collect();
    let all = all_voters.iter().all(|node| words.contains_key(*node));
    match attested.agreed(index, voters) {
        Some(root) if root == statement.root => Standing::Agreed { all },
        Some(_) => Standing::Outvoted,
        None if all && attested.is_in_doubt(index, voters) => Standing::InDoubt,
        None => Standing::Open,
    }
}

/// How a snapshot ships.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// With these witnesses; a majority of the voters, or not.
    Vouched { witnesses: Vec<Witness>, is_majority: bool },
    /// Not at all, for this reason.
    Refused(String),
}

/// Judges what was said by now of a snapshot that was `shipped_in` so long, and waited for since; `None` = more may come.
fn judge(attested: &Attested, reading: &Reading, shipped_in: Duration, waited: Duration) -> Option<Verdict> {
    let index = reading.statement.applied.index;
    let patience = MAJORITY_WITHIN + shipped_in.min(AS_LONG_AGAIN_MAX);
    match standing(attested, reading) {
        Standing::Outvoted => Some(Verdict::Refused(outvoted(index))),
        Standing::InDoubt => Some(Verdict::Refused(in_doubt(index))),
        Standing::Agreed { all } if all || waited >= OTHERS_WITHIN => Some(vouched(attested, reading, true)),
        // Two of three that differ, and nothing of the third.
        Standing::Open if waited >= patience && attested.is_in_doubt(index, &reading.voters) => {
            Some(Verdict::Refused(in_doubt(index)))
        }
        Standing::Open if waited >= patience => Some(vouched(attested, reading, false)),
        Standing::Over => Some(vouched(attested, reading, false)),
        Standing::Agreed { .. } | Standing::Open => None,
    }
}

fn outvoted(index: u64) -> String {
    format!("at the snapshot barrier {index} most replicas found other rows in their states than this node did")
}

fn in_doubt(index: u64) -> String {
    format!("at the snapshot barrier {index} replicas differ, and no side has a majority")
}

fn vouched(attested: &Attested, reading: &Reading, is_majority: bool) -> Verdict {
    let statement = &reading.statement;
    let words = attested.words.get(&statement.applied.index).into_iter().flatten();
    let same = words.filter(|(_, word)| word.root == statement.root);
    let signed = same.filter_map(|(node, word)| {
        let witness = Witness { node: *node, key: *attested.keys.get(node)?, signature: word.signature };
        // A log entry is no proof: the manifest says only what was signed.
        witness.signed(statement).then_some(witness)
    });
    Verdict::Vouched { witnesses: signed.collect(), is_majority }
}

impl Shipper {
    /// Reads every checkpoint that no job of this node ships, and says what it found.
    pub(super) async fn attest_barriers(self: Arc<Self>) {
        loop {
            let reached = self.barriers.next().await;
            let index = reached.index;
            if let Err(error) = self.attest_checkpoint(reached).await {
                tracing::warn!(event = "backup.not_attested", index, error, "this node vouches for no snapshot there");
            }
        }
    }

    async fn attest_checkpoint(&self, reached: Reached) -> Result<(), String> {
        let own = NodeId(self.replica.node_id());
        match self.replica.sys().attested.words.get(&reached.index) {
            None => return Err("newer barriers came before it was read".into()),
            // The log is applied again, after a restart.
            Some(words) if words.contains_key(&own) => return Ok(()),
            Some(_) => {}
        }
        let replica = self.replica.clone();
        // What a checkpoint keeps from being given back may be what a nearly full disk needs.
        let goes_on = Arc::new(move || replica.disk().level == DiskLevel::Ample);
        if !goes_on() {
            return Err("the disk is nearly full".into());
        }
        let group = self.replica.group_id();
        let reading = read_checkpoint(&reached.path, group, self.pace.snapshot, goes_on).await;
        let installation = reached.installation;
        drop(reached);
        let reading = reading.map_err(|error| error.to_string())?;
        self.remember(&reading, installation);
        self.say(&reading).await
    }

    /// Why no word of this node's counts, whatever it finds in its checkpoints.
    pub fn is_mute(&self) -> Option<&'static str> {
        let Some(key) = &self.attestor.key else { return Some(NO_KEY) };
        let own = NodeId(self.replica.node_id());
        let sys = self.replica.sys();
        sys.attested.keys.get(&own).is_some_and(|known| *known != key.public()).then_some(OTHER_KEY)
    }

    /// Says what this node found, until it is taken in.
    async fn say(&self, reading: &Reading) -> Result<(), String> {
        let key = self.attestor.key.as_ref().ok_or(NO_KEY)?;
        let (own, public) = (NodeId(self.replica.node_id()), key.public());
        let index = reading.statement.applied.index;
        let until = Instant::now() + SAY_WITHIN;
        let mut last = "no leader took it".to_owned();
        loop {
            let attested = self.replica.sys().attested.clone();
            if attested.keys.get(&own).is_some_and(|known| *known != public) {
                return Err(OTHER_KEY.into());
            }
            match attested.words.get(&index) {
                None => return Err("newer barriers came before it was said".into()),
                Some(words) if words.contains_key(&own) => return Ok(()),
                Some(_) if Instant::now() >= until => return Err(last),
                Some(_) => {}
            }
            let command = Command::Attest(Box::new(key.attest(own, &reading.statement)));
            let admitted = self.replica.admission().admit_first(512);
            match self.replica.propose(command, admitted, Instant::now() + PROPOSE_TIMEOUT).await {
                // The leader applied it; this node may still have to.
                Ok(applied) => {
                    let mut here = self.replica.applied_watch();
                    let caught_up = here.wait_for(|index| *index >= applied.index);
                    let _ = tokio::time::timeout_at(until, caught_up).await;
                    last = "it was not taken in".to_owned();
                }
                Err(error) => last = error.to_string(),
            }
            sleep(LOOK_PAUSE).await;
        }
    }

    /// Learns what others found, for as long as anything is said of it.
    pub(super) async fn heed_words(self: Arc<Self>) {
        let mut applied = self.replica.applied_watch();
        while applied.changed().await.is_ok() {
            self.heed(&self.replica.sys().attested);
            sleep(LOOK_PAUSE).await;
        }
    }

    /// Others may have spoken already.
    fn remember(&self, reading: &Reading, installation: u64) {
        self.attestor.remember(reading, installation);
        self.heed(&self.replica.sys().attested);
    }

    fn heed(&self, attested: &Attested) {
        let mut known = self.attestor.own.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|index, own| {
            let voters = &own.reading.voters;
            match standing(attested, &own.reading) {
                Standing::Open | Standing::Agreed { all: false } => true,
                Standing::Over => false,
                Standing::Agreed { all: true } => {
                    let others: Vec<u64> = attested.dissenters(*index, voters).iter().map(|node| node.0).collect();
                    if others.is_empty() {
                        tracing::info!(event = "backup.attested", index, "all voters found the same rows");
                    } else {
                        tracing::error!(event = "backup.dissent", index, ?others, "these nodes have other rows");
                    }
                    false
                }
                Standing::Outvoted => {
                    self.replica.outvoted(own.installation, outvoted(*index));
                    false
                }
                Standing::InDoubt => {
                    self.replica.in_doubt(own.installation, in_doubt(*index));
                    false
                }
            }
        });
    }

    /// Who vouches for a snapshot whose rows are all there. Asked once for a checkpoint, however many destinations it goes to.
    pub(super) async fn witnesses(&self, reached: &Reached, reading: Reading) -> Result<Vec<Witness>, ArchiveError> {
        let index = reached.index;
        let verdict = reached.verdict.get_or_init(|| self.ask_around(reached, &reading)).await.clone();
        // What became known since, be it by a later barrier, holds against this one too.
        self.check_sound(Some(reached)).map_err(|reason| ArchiveError::NotNow { reason })?;
        match verdict {
            Verdict::Vouched { witnesses, is_majority } => {
                if !is_majority {
                    let alike = witnesses.len();
                    tracing::warn!(event = "backup.unattested", index, alike, "no majority vouches for this snapshot");
                }
                Ok(witnesses)
            }
            Verdict::Refused(reason) => Err(ArchiveError::NotNow { reason }),
        }
    }

    async fn ask_around(&self, reached: &Reached, reading: &Reading) -> Verdict {
        let (shipped_in, began) = (reached.at.elapsed(), Instant::now());
        self.remember(reading, reached.installation);
        let can_say = self.say(reading).await;
        if let Err(error) = &can_say {
            tracing::warn!(event = "backup.not_attested", index = reached.index, error, "this node vouches not");
        }
        loop {
            let attested = self.replica.sys().attested.clone();
            if let Some(verdict) = judge(&attested, reading, shipped_in, began.elapsed()) {
                // Whoever asks why it is refused learns from this node's status that it is diverged.
                self.heed(&attested);
                return verdict;
            }
            sleep(LOOK_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_archive::{LineageId, Statement};
    use holdfast_model::attest::Attestation;
    use holdfast_model::id::{GroupId, Incarnation};
    use holdfast_store::LogPosition;

    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;
    const HOURS: Duration = Duration::from_secs(4 * 3600);

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
        let barrier = Attested::default().with_barrier(9);
        said.iter().fold(barrier, |all, one| all.with(one).unwrap_or(all))
    }

    /// Who vouches, and whether that is a majority; `Err` = it is refused.
    fn after(said: &[Attestation], shipped_in: Duration, waited: Duration) -> Option<Result<(Vec<u64>, bool), String>> {
        Some(match judge(&attested(said), &reading(7), shipped_in, waited)? {
            Verdict::Vouched { witnesses, is_majority } => {
                Ok((witnesses.iter().map(|witness| witness.node.0).collect(), is_majority))
            }
            Verdict::Refused(reason) => Err(reason),
        })
    }

    #[test]
    fn a_snapshot_waits_for_all_and_no_longer_than_it_must() {
        let (one, two) = ([said(1, 7)], [said(1, 7), said(3, 7)]);
        assert_eq!((after(&one, AT_ONCE, AT_ONCE), after(&two, AT_ONCE, AT_ONCE)), (None, None), "others may speak");
        let agreed = Some(Ok((vec![1, 3], true)));
        for shipped_in in [AT_ONCE, HOURS] {
            assert_eq!(after(&two, shipped_in, OTHERS_WITHIN), agreed, "however long it was shipped for");
        }
        let all = [said(1, 7), said(2, 8), said(3, 7)];
        assert_eq!(after(&all, AT_ONCE, AT_ONCE), agreed, "the third found something else");
        // Nobody else speaks.
        assert_eq!(after(&one, AT_ONCE, OTHERS_WITHIN), None);
        assert_eq!(after(&one, AT_ONCE, MAJORITY_WITHIN), Some(Ok((vec![1], false))));
        assert_eq!(after(&one, HOURS, MAJORITY_WITHIN), None, "who reads so much may be slower");
        assert_eq!(
            after(&one, HOURS, MAJORITY_WITHIN + AS_LONG_AGAIN_MAX),
            Some(Ok((vec![1], false))),
            "not for hours"
        );
        // Two newer barriers: nothing more can be said.
        let over = attested(&two).with_barrier(12).with_barrier(15);
        assert_eq!(judge(&over, &reading(7), AT_ONCE, AT_ONCE), Some(vouched(&over, &reading(7), false)));
    }

    #[test]
    fn what_replicas_contradict_is_not_shipped() {
        let refused = |said: &[Attestation], waited| after(said, AT_ONCE, waited).and_then(Result::err);
        let outvoted = refused(&[said(1, 7), said(2, 8), said(3, 8)], AT_ONCE).expect("at once");
        assert!(outvoted.contains("most replicas"), "{outvoted}");
        let differ = refused(&[said(1, 7), said(2, 8), said(3, 9)], AT_ONCE).expect("there will be no majority");
        assert!(differ.contains("no side has a majority"), "{differ}");
        let two = [said(1, 7), said(2, 8)];
        assert_eq!(refused(&two, OTHERS_WITHIN), None, "the third may decide it");
        assert!(refused(&two, MAJORITY_WITHIN).is_some());
        assert_eq!(standing(&attested(&two), &reading(7)), Standing::Open);
        assert_eq!(
            standing(&attested(&[said(2, 8), said(3, 8)]), &reading(7)),
            Standing::Outvoted,
            "it need not speak"
        );
    }

    #[test]
    fn what_was_not_signed_is_not_passed_on() {
        let mut forged = said(3, 7);
        forged.word.signature[0] ^= 1;
        let two = Some(Ok((vec![1, 2], true)));
        assert_eq!(after(&[said(1, 7), said(2, 7), forged], AT_ONCE, AT_ONCE), two);
        // Nor what was signed of another position.
        let mut other = reading(7).statement;
        other.applied.term = 2;
        let other = NodeKey::from_seed(&[3; 32]).attest(NodeId(3), &other);
        assert_eq!(after(&[said(1, 7), said(2, 7), other], AT_ONCE, AT_ONCE), two);
    }
}
