//! What replicas say of their states right behind a snapshot barrier, each for itself, and whether they agree.
//!
//! Invariants: a node's first word for a barrier stands, and so does the first key that it signed with in a history. A root
//! counts as agreed only when a majority of every voter configuration has it.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{Incarnation, NodeId};

/// Barriers of which words are kept: the newest, and the one before, whose snapshot may still be on its way.
pub const ATTESTED_BARRIERS_MAX: usize = 2;

/// A replica's word for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// History that it is of.
    pub incarnation: Incarnation,
    /// Index of the barrier.
    pub index: u64,
    /// Who says so.
    pub node: NodeId,
    /// Its ed25519 key, which verifies the signature.
    pub key: [u8; 32],
    /// What it found.
    pub word: Word,
}

/// What a replica found in its own checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// BLAKE3 over the plain chunks that its rows make.
    pub root: [u8; 32],
    /// Over the cluster, history, group, log id, chains and root (`archive::attest`).
    pub signature: [u8; 64],
}

/// Everything said in a history, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attested {
    /// Key of each node that ever gave its word.
    pub keys: BTreeMap<NodeId, [u8; 32]>,
    /// Words, by barrier and node; a barrier of which nobody spoke yet has none.
    pub words: BTreeMap<u64, BTreeMap<NodeId, Word>>,
}

/// So many nodes of each voter configuration have something that it is a majority; while voters change there are two.
pub fn is_majority(configs: &[BTreeSet<NodeId>], has: impl Fn(&NodeId) -> bool) -> bool {
    let in_one = |voters: &BTreeSet<NodeId>| voters.iter().filter(|node| has(node)).count() * 2 > voters.len();
    !configs.is_empty() && configs.iter().all(in_one)
}

impl Attested {
    /// There is a barrier at `index`, the newest: words for it count from now on, and for the oldest no longer.
    pub fn with_barrier(&self, index: u64) -> Self {
        let mut with = self.clone();
        with.words.entry(index).or_default();
        while with.words.len() > ATTESTED_BARRIERS_MAX {
            with.words.pop_first();
        }
        with
    }

    /// Takes a word in; `None` = it says nothing new, or nothing that counts.
    pub fn with(&self, said: &Attestation) -> Option<Self> {
        let is_new = !self.words.get(&said.index)?.contains_key(&said.node);
        let is_its_key = self.keys.get(&said.node).is_none_or(|key| *key == said.key);
        if !is_new || !is_its_key {
            return None;
        }
        let mut with = self.clone();
        with.keys.insert(said.node, said.key);
        with.words.entry(said.index).or_default().insert(said.node, said.word);
        Some(with)
    }

    /// The root that a majority of the voters of each configuration has; a learner's word does not count.
    pub fn agreed(&self, index: u64, configs: &[BTreeSet<NodeId>]) -> Option<[u8; 32]> {
        let words = self.words.get(&index)?;
        let has_majority =
            |root: &[u8; 32]| is_majority(configs, |node| words.get(node).is_some_and(|word| word.root == *root));
        words.values().map(|word| word.root).find(has_majority)
    }

    /// Nodes whose root at this barrier is another one than what was agreed on.
    pub fn dissenters(&self, index: u64, configs: &[BTreeSet<NodeId>]) -> Vec<NodeId> {
        let Some(agreed) = self.agreed(index, configs) else { return Vec::new() };
        self.words[&index].iter().filter(|(_, word)| word.root != agreed).map(|(node, _)| *node).collect()
    }

    /// Replicas differ at this barrier, and no side is a majority.
    pub fn is_in_doubt(&self, index: u64, configs: &[BTreeSet<NodeId>]) -> bool {
        let roots: BTreeSet<_> = self.words.get(&index).into_iter().flatten().map(|(_, word)| word.root).collect();
        roots.len() > 1 && self.agreed(index, configs).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(index: u64, node: u64, root: u8) -> Attestation {
        let word = Word { root: [root; 32], signature: [root; 64] };
        Attestation { incarnation: Incarnation(1), index, node: NodeId(node), key: [node as u8; 32], word }
    }

    fn attested(said: &[Attestation]) -> Attested {
        said.iter().fold(Attested::default(), |all, one| {
            let all = if all.words.contains_key(&one.index) { all } else { all.with_barrier(one.index) };
            all.with(one).unwrap_or(all)
        })
    }

    fn voters(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_majority_of_voters_agrees_and_who_differs_is_named() {
        let configs = [voters(&[1, 2, 3])];
        let all = attested(&[said(9, 1, 7), said(9, 2, 8), said(9, 3, 7), said(9, 4, 8)]);
        assert_eq!(all.agreed(9, &configs), Some([7; 32]));
        assert_eq!(all.dissenters(9, &configs), [NodeId(2), NodeId(4)], "a learner differs too");
        assert!(!all.is_in_doubt(9, &configs));
        let two = attested(&[said(9, 1, 7), said(9, 2, 8), said(9, 4, 8)]);
        assert_eq!((two.agreed(9, &configs), two.dissenters(9, &configs)), (None, vec![]));
        assert!(two.is_in_doubt(9, &configs), "a learner does not make a majority");
        let one = attested(&[said(9, 1, 7)]);
        assert!(one.agreed(9, &configs).is_none() && !one.is_in_doubt(9, &configs), "nobody differs");
        assert_eq!(one.agreed(9, &[voters(&[1])]), Some([7; 32]), "a single node is its own majority");
        assert_eq!(all.agreed(9, &[voters(&[1, 2, 3]), voters(&[2, 4, 5])]), None, "both configurations must agree");
        assert_eq!(all.agreed(9, &[]), None);
    }

    #[test]
    fn a_word_stands_and_so_does_a_key() {
        let one = attested(&[said(9, 1, 7)]);
        assert_eq!(one.with(&said(9, 1, 8)), None);
        assert_eq!(one.with(&Attestation { key: [5; 32], ..said(12, 1, 8) }), None, "another key");
        let later = attested(&[said(9, 1, 7), said(12, 1, 7), said(15, 1, 7)]);
        assert_eq!(later.words.keys().collect::<Vec<_>>(), [&12, &15]);
        assert_eq!(later.with(&said(9, 2, 7)), None, "too late");
        assert!(later.with(&said(12, 2, 7)).is_some());
        assert_eq!(later.with(&said(13, 2, 7)), None, "there was no barrier");
    }
}
