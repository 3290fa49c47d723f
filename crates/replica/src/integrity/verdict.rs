//! Whose state is wrong: a pure judgement over what the members' states are at one index.
//!
//! Invariants: a state counts as right only when a majority of all voters has it and nothing in it contradicts itself;
//! without such a majority nobody is called diverged for differing, it is called a doubt.

use std::collections::{BTreeMap, BTreeSet};

use crate::integrity::examine::Findings;

/// What a comparison says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Whose state is wrong, and why.
    pub diverged: BTreeMap<u64, String>,
    /// Why it is not known whose is.
    pub doubt: Option<String>,
    /// A majority has one state with nothing wrong in it: only that ends a doubt.
    pub is_proved: bool,
}

/// Names of the families, by tag.
const FAMILIES: [&str; 8] =
    ["group facts", "user numbers", "user rows", "records", "change rows", "requests", "devices", "the expiry queue"];

/// In what two states differ, for people.
fn difference(a: &Findings, b: &Findings) -> String {
    let mut parts = Vec::new();
    if a.entry_chain != b.entry_chain {
        parts.push("the chain over the entries");
    }
    if a.effect_chain != b.effect_chain {
        parts.push("the chain over the effects");
    }
    if a.digest != b.digest {
        parts.push("the digest");
    }
    let rows = a.families.iter().zip(&b.families).zip(FAMILIES).filter(|((a, b), _)| a != b);
    parts.extend(rows.map(|(_, name)| name));
    if parts.is_empty() { "group facts or membership".to_owned() } else { parts.join(", ") }
}

fn names(nodes: &[u64]) -> String {
    nodes.iter().map(|id| format!("node {id}")).collect::<Vec<_>>().join(" and ")
}

/// Judges states at `index`. `configs` are the voter configurations; two while voters change.
pub fn judge(index: u64, configs: &[BTreeSet<u64>], found: &BTreeMap<u64, Findings>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut sides: Vec<(&Findings, Vec<u64>)> = Vec::new();
    for (id, findings) in found {
        let alike =
            |side: &&mut (&Findings, Vec<u64>)| side.0.heads == findings.heads && side.0.families == findings.families;
        match sides.iter_mut().find(alike) {
            Some((_, ids)) => ids.push(*id),
            None => sides.push((findings, vec![*id])),
        }
    }
    let is_majority = |ids: &[u64]| {
        let held = |config: &BTreeSet<u64>| ids.iter().filter(|id| config.contains(id)).count() * 2 > config.len();
        !configs.is_empty() && configs.iter().all(held)
    };
    if let Some((right, ids)) = sides.iter().find(|(side, ids)| side.is_sound() && is_majority(ids)) {
        verdict.is_proved = true;
        for (side, wrong) in sides.iter().filter(|(side, _)| !std::ptr::eq(*side, *right)) {
            for id in wrong {
                let others = names(ids);
                let why =
                    format!("at index {index} its state differs from that of {others} in {}", difference(side, right));
                verdict.diverged.insert(*id, why);
            }
        }
        return verdict;
    }
    // What contradicts itself is wrong whoever else has it, and its own node knows; others that differ are the doubt.
    let sound: Vec<_> = sides.iter().filter(|(side, _)| side.is_sound()).collect();
    if sound.len() > 1 {
        let groups = sound.iter().map(|(_, ids)| names(ids)).collect::<Vec<_>>().join(" against ");
        let what = difference(sound[0].0, sound[1].0);
        verdict.doubt =
            Some(format!("at index {index} the states differ in {what}, and no side has a majority: {groups}"));
    } else if sound.is_empty() && !sides.is_empty() {
        verdict.doubt = Some(format!("at index {index} no state that was read agrees with its own digests"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(rows: u8, fault_count: u64) -> Findings {
        Findings { families: vec![[rows; 32]; 8], fault_count, ..Findings::default() }
    }

    fn judged(found: &[(u64, Findings)]) -> Verdict {
        judge(9, &[BTreeSet::from([1, 2, 3])], &found.iter().cloned().collect())
    }

    #[test]
    fn the_minority_is_wrong() {
        let verdict = judged(&[(1, findings(1, 0)), (2, findings(2, 0)), (3, findings(1, 0))]);
        assert_eq!(verdict.diverged.keys().collect::<Vec<_>>(), [&2]);
        assert!(verdict.diverged[&2].contains("node 1 and node 3") && verdict.diverged[&2].contains("records"));
        assert_eq!(verdict.doubt, None);
        let learner = judged(&[(1, findings(1, 0)), (2, findings(1, 0)), (7, findings(2, 0))]);
        assert_eq!(learner.diverged.keys().collect::<Vec<_>>(), [&7], "a learner is judged, and does not count");
        let same = judged(&[(1, findings(1, 0)), (2, findings(1, 0)), (3, findings(1, 0))]);
        assert_eq!(same, Verdict { is_proved: true, ..Verdict::default() });
        assert_eq!(judged(&[(1, findings(1, 0))]), Verdict::default(), "nobody differs from anybody, or agrees");
    }

    #[test]
    fn without_a_majority_nobody_is_called_wrong() {
        for found in [
            vec![(1, findings(1, 0)), (2, findings(2, 0))],
            vec![(1, findings(1, 0)), (2, findings(2, 0)), (3, findings(3, 0))],
            vec![(1, findings(1, 0)), (2, findings(2, 0)), (7, findings(2, 0))],
            // Two that share a damage are no majority for it.
            vec![(1, findings(1, 0)), (2, findings(2, 1)), (3, findings(2, 1)), (4, findings(3, 0))],
            vec![(1, findings(1, 1)), (2, findings(1, 1)), (3, findings(1, 1))],
        ] {
            let verdict = judged(&found);
            assert!(verdict.diverged.is_empty() && verdict.doubt.is_some(), "{found:?}: {verdict:?}");
        }
    }

    #[test]
    fn chains_alone_tell_states_apart() {
        let forked = Findings { effect_chain: [9; 32], heads: [9; 32], ..findings(1, 0) };
        let verdict = judged(&[(1, findings(1, 0)), (2, findings(1, 0)), (3, forked)]);
        assert!(verdict.diverged[&3].contains("chain over the effects"), "{verdict:?}");
    }

    #[test]
    fn while_voters_change_both_configurations_must_agree() {
        let found = BTreeMap::from([(1, findings(1, 0)), (2, findings(1, 0)), (3, findings(2, 0))]);
        let configs = [BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
        assert!(judge(9, &configs, &found).doubt.is_some());
        assert!(judge(9, &configs[..1], &found).doubt.is_none());
    }
}
