//! What a node says of the soundness of its state, and `CompareIntegrity`.

use holdfast_replica::{Comparison, Findings, IntegrityStatus};
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;

use super::admin::Admin;

/// As `GetStatus` has it.
pub(super) fn status(known: &IntegrityStatus) -> v1::IntegrityStatus {
    v1::IntegrityStatus {
        diverged: known.damage.clone().unwrap_or_default(),
        doubt: known.doubt.clone().unwrap_or_default(),
        fenced: known.fenced,
        examined_index: known.examined.map_or(0, |(index, _)| index),
        examined_age: known.examined.map(|(_, age)| holdfast_wire::reply::duration(age)),
        failures_total: known.failures_total,
        reinstalls_total: known.reinstalls_total,
        unread: known.unread.clone().unwrap_or_default(),
        unread_total: known.unread_total,
    }
}

impl Admin {
    /// Compares all members now. It ends when all of them have read their states.
    pub(super) async fn compare_states(&self) -> Result<v1::CompareIntegrityResponse, Refusal> {
        let replica = &self.shared.replica;
        if !replica.is_opened(&replica.sys()) {
            return Err(Refusal::NotFounded);
        }
        let members: Vec<u64> = replica.status().members.keys().copied().collect();
        let comparison = replica.compare_states().await;
        let index = if comparison.found.is_empty() { 0 } else { comparison.index };
        Ok(v1::CompareIntegrityResponse {
            index,
            nodes: members.into_iter().map(|id| node(id, &comparison)).collect(),
            doubt: comparison.verdict.doubt.unwrap_or_default(),
        })
    }
}

fn node(id: u64, comparison: &Comparison) -> v1::ComparedNode {
    let Some(found) = comparison.found.get(&id) else {
        let why = comparison.missing.get(&id).cloned().unwrap_or_else(|| "it was not asked".to_owned());
        return v1::ComparedNode { node_id: id, not_compared: why, ..Default::default() };
    };
    let Findings { installation: _, heads: _, entry_chain, effect_chain, digest, families: _, fault_count, faults } =
        found;
    let own_fault = || format!("its rows do not agree with its digests ({fault_count}): {}", faults.join("; "));
    let diverged = comparison.verdict.diverged.get(&id).cloned();
    v1::ComparedNode {
        node_id: id,
        not_compared: String::new(),
        diverged: diverged.or_else(|| (*fault_count > 0).then(own_fault)).unwrap_or_default(),
        digest: digest.to_vec().into(),
        entry_chain: entry_chain.to_vec().into(),
        effect_chain: effect_chain.to_vec().into(),
        rows: found.rows_hash().to_vec().into(),
        fault_count: *fault_count,
    }
}
