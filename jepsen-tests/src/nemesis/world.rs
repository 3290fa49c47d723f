//! What faults are made in: the cluster, and what stands between it and the machine.
//!
//! Invariants:
//! - Every fault that stands has a round, under which it was written down before it was made.
//! - Nodes that faults took away are less than half of the members, unless the run says that a quorum may go.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Child;
use std::sync::Arc;

use anyhow::Context;

use crate::bucket::Bucket;
use crate::chance::Chance;
use crate::clock::Clocks;
use crate::cluster::Cluster;
use crate::disk::array::Hang;
use crate::history::{Action, FaultNote, Named, Recorder, Stage};
use crate::nemesis::archive_flip::{self, Object};
use crate::nemesis::damage::Whole;
use crate::nemesis::{Disks, Fault};
use crate::network::Network;

/// The cluster under faults.
#[derive(Debug)]
pub struct World {
    /// Disks whose writers sleep, by round, and a writer on each. Before the nodes: one that sleeps there cannot be killed.
    pub(super) hangs: BTreeMap<u32, (Hang, Vec<Child>)>,
    /// The nodes.
    pub cluster: Cluster,
    /// What its nodes reach one another by; `None` = this machine's loopback, which nobody disturbs.
    pub network: Option<Network>,
    /// Its nodes' wall clocks; `None` = the machine's.
    pub clocks: Option<Clocks>,
    /// The history.
    pub recorder: Arc<Recorder>,
    /// Faults may take the quorum, because the run is about that.
    pub may_take_quorum: bool,
    /// The fault that strikes next leaves a node to the one after it, where two may go.
    pub leaves_one: bool,
    /// Nodes that were started again and did not show yet that they serve.
    pub restarted: BTreeSet<usize>,
    /// The nodes' disks, where faults of this run need them. After the nodes: they use them.
    pub disks: Option<Disks>,
    /// Files as they were before they were damaged, by round.
    pub(super) whole: BTreeMap<u32, Whole>,
    /// The object store that nodes ship to, where faults of this run need one.
    pub bucket: Option<Bucket>,
    /// Objects of the archive as they were before, by round.
    pub(super) objects: BTreeMap<u32, Object>,
    /// Files damaged so far, by fault.
    pub(super) damaged: BTreeMap<Fault, usize>,
    /// Nodes on their way into the cluster, by round: the operation, if one was accepted, and the draw of who goes.
    pub(super) joining: BTreeMap<u32, (Option<String>, u64)>,
    /// Where the log was committed up to, and where it ended, of leaders with a tail of their own, by round.
    pub(super) tails: BTreeMap<u32, (u64, u64)>,
    standing: BTreeMap<u32, Standing>,
    rounds: u32,
}

/// What a fault does to the nodes that it is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// They are of no use to the others: dead, paused, cut off, without a disk.
    Taken,
    /// They work, but not with all others: nobody can say how well the cluster serves until it is healed. They count as
    /// taken away where a quorum is to be left.
    Hampered,
    /// They work, and with all others, but badly: as little can be said, and no quorum is in question.
    Slowed,
    /// None; they are merely asked to do something.
    None,
}

#[derive(Debug)]
struct Standing {
    places: Vec<usize>,
    harm: Harm,
}

/// A fault that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Struck {
    /// Which.
    pub fault: Fault,
    /// Its number in the history.
    pub round: u32,
    /// For whom it was meant.
    pub places: Vec<usize>,
    /// It was seen to be there.
    pub installed: bool,
    /// What was done, and by what it was seen.
    pub detail: String,
    /// What it had to make somebody do or say, and did not: a broken promise.
    pub missed: Option<String>,
}

impl World {
    /// A world without faults.
    pub fn new(cluster: Cluster, recorder: Arc<Recorder>) -> Self {
        Self {
            hangs: BTreeMap::new(),
            cluster,
            network: None,
            clocks: None,
            recorder,
            may_take_quorum: false,
            leaves_one: false,
            restarted: BTreeSet::new(),
            disks: None,
            whole: BTreeMap::new(),
            bucket: None,
            objects: BTreeMap::new(),
            damaged: BTreeMap::new(),
            joining: BTreeMap::new(),
            tails: BTreeMap::new(),
            standing: BTreeMap::new(),
            rounds: 0,
        }
    }

    /// Ends what keeps nodes from being ended.
    pub fn release(&mut self) {
        self.hangs.clear();
    }

    /// Where nodes ship to, if they do.
    pub fn archive(&self) -> String {
        match &self.bucket {
            Some(bucket) => bucket.url(),
            None => format!("file://{}", archive_flip::dir(&self.cluster.dir).display()),
        }
    }

    /// The network.
    ///
    /// # Errors
    /// When this run has none.
    pub fn network(&self) -> anyhow::Result<&Network> {
        self.network.as_ref().context("this run has no network of its own")
    }

    /// Members that no fault has taken away.
    pub fn whole(&self) -> Vec<usize> {
        let taken = self.taken();
        self.cluster.members().into_iter().filter(|place| !taken.contains(place)).collect()
    }

    /// How many more may be taken away.
    pub fn spare(&self) -> usize {
        let (members, taken) = (self.cluster.members().len(), self.taken().len());
        spare(members, taken, self.may_take_quorum, self.leaves_one)
    }

    /// A majority runs, and nothing hampers anyone: what clients ask for must be answered.
    pub fn must_serve(&self) -> bool {
        let hampered = self.standing.values().any(|one| matches!(one.harm, Harm::Hampered | Harm::Slowed));
        !hampered && self.whole().len() > self.cluster.members().len() / 2
    }

    /// Draws up to `count` whole nodes that may be taken away; the leader first in most cases, since that is whose loss
    /// tells most. Empty = none may.
    pub async fn victims(&self, count: usize, chance: &mut Chance) -> Vec<usize> {
        let mut whole = self.whole();
        chance.shuffle(&mut whole);
        if chance.percent(LEADER_PERCENT)
            && let Some(leader) = self.cluster.leader_now().await
            && let Some(at) = whole.iter().position(|place| *place == leader)
        {
            whole.swap(0, at);
        }
        whole.truncate(count.min(self.spare()));
        whole
    }

    /// Gives a fault its round and writes down that it will be made. Call it before the fault is made.
    pub fn begin(&mut self, fault: Fault, places: Vec<usize>, harm: Harm, detail: impl Into<String>) -> Struck {
        self.rounds += 1;
        let struck =
            Struck { fault, round: self.rounds, places, installed: false, detail: detail.into(), missed: None };
        self.standing.insert(struck.round, Standing { places: struck.places.clone(), harm });
        self.recorder.note(Named::Nemesis, Stage::Invoke, Action::Fault(self.note_of(&struck)));
        struck
    }

    /// Writes down what came of it.
    pub(super) fn struck(&self, struck: &Struck) {
        self.recorder.note(Named::Nemesis, Stage::Info, Action::Fault(self.note_of(struck)));
    }

    /// Writes down that it will be healed.
    pub(super) fn begin_heal(&self, struck: &Struck) {
        self.recorder.note(Named::Nemesis, Stage::Invoke, Action::Heal(self.note_of(struck)));
    }

    /// It was healed: what it took away is whole again.
    pub(super) fn healed(&mut self, struck: &Struck) {
        self.standing.remove(&struck.round);
        self.recorder.note(Named::Nemesis, Stage::Info, Action::Heal(self.note_of(struck)));
    }

    fn taken(&self) -> BTreeSet<usize> {
        let taken = self.standing.values().filter(|one| matches!(one.harm, Harm::Taken | Harm::Hampered));
        taken.flat_map(|one| one.places.iter().copied()).collect()
    }

    fn note_of(&self, struck: &Struck) -> FaultNote {
        FaultNote {
            round: struck.round,
            fault: struck.fault.to_string(),
            nodes: struck.places.iter().map(|place| self.cluster.nodes[*place].id).collect(),
            installed: struck.installed,
            detail: struck.detail.clone(),
            missed: struck.missed.clone(),
        }
    }
}

/// The leader is among those who are hit in so many of a hundred cases.
const LEADER_PERCENT: usize = 60;

/// How many of so many members may be taken away when so many are already. The first of two faults leaves one to the
/// other, where there are two to take; a single one is its own.
fn spare(members: usize, taken: usize, may_take_quorum: bool, leaves_one: bool) -> usize {
    let most = if may_take_quorum { members } else { members.saturating_sub(1) / 2 };
    let spare = most.saturating_sub(taken);
    spare - usize::from(leaves_one && spare > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_left_and_the_first_of_two_faults_leaves_one_to_the_other() {
        assert_eq!([0, 1, 2].map(|taken| spare(3, taken, false, false)), [1, 0, 0]);
        assert_eq!([0, 1, 2].map(|taken| spare(5, taken, false, false)), [2, 1, 0]);
        assert_eq!(spare(5, 0, false, true), 1);
        assert_eq!(spare(3, 0, false, true), 1, "there is no second one to leave");
        assert_eq!((spare(3, 1, true, false), spare(3, 3, true, false)), (2, 0));
    }
}
