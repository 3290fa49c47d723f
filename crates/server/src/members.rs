//! Changes of members: judged when they are asked for, carried out by whoever leads.
//!
//! Invariants: one change at a time, kept in the log until it is done, so that it outlives every node that works on it;
//! each step follows from the change and the present members alone, so that a new leader goes on where the old one
//! stopped; what the survey calls an error afterwards and not before is refused with its evidence; voters change only
//! while a majority of the new ones takes part.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::command::{MemberChange, Operation};
use holdfast_model::id::NodeId;
use holdfast_replica::{MembershipError, Replica, ReplicaStatus};
use holdfast_survey::{Copy, CopyId, Facts, Kind, Limits, Severity, checks};
use holdfast_wire::status::Refusal;
use tokio::time::{MissedTickBehavior, interval};

use crate::facts::SILENCE_MS_MAX;
use crate::grpc::Shared;
use crate::operations::record;

const TICK: Duration = Duration::from_millis(200);
/// A learner that is no further behind may vote: it catches up within a moment.
const BEHIND_MAX: u64 = 1000;
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Fewer cannot lose any without standing still.
const VOTERS_MIN: usize = 3;

/// The next thing to do for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The new node gets the log.
    AddLearner(u64),
    /// It is so many entries behind what is committed.
    CatchUp {
        /// Which.
        node: u64,
        /// How far it is.
        at: u64,
        /// How far it has to be.
        of: u64,
    },
    /// These nodes of the new majority do not answer.
    WaitFor(Vec<u64>),
    /// The node that leads is to go: another one leads first.
    HandOver,
    /// These vote from now on.
    SetVoters(BTreeSet<u64>),
    /// The node that does not vote (any more) goes.
    RemoveLearner(u64),
    /// Nothing is left to do.
    Done,
}

/// Voters once the change is done.
fn target(change: &MemberChange, status: &ReplicaStatus) -> BTreeSet<u64> {
    // While voters change, the last configuration is the one to come.
    let mut voters = status.configs.last().cloned().unwrap_or_default();
    if let Some(add) = change.add.as_ref().filter(|_| !change.keep_learner) {
        voters.insert(add.id.0);
    }
    if let Some(remove) = change.remove {
        voters.remove(&remove.0);
    }
    voters
}

fn takes_part(id: u64, own: u64, status: &ReplicaStatus) -> bool {
    id == own || status.silence.get(&id).is_some_and(|silence| silence.as_millis() <= u128::from(SILENCE_MS_MAX))
}

/// The next step of a change, as the leader `own` sees it.
pub fn next(change: &MemberChange, status: &ReplicaStatus, own: u64) -> Step {
    let voters = target(change, status);
    if let Some(add) = &change.add {
        let id = add.id.0;
        if !status.members.contains_key(&id) {
            return Step::AddLearner(id);
        }
        let at = status.matched.get(&id).copied().unwrap_or(0);
        if !status.voters.contains(&id) && !change.keep_learner && at + BEHIND_MAX < status.committed_index {
            return Step::CatchUp { node: id, at, of: status.committed_index };
        }
    }
    if status.configs.len() != 1 || status.configs[0] != voters {
        if !voters.contains(&own) {
            return Step::HandOver;
        }
        let silent: Vec<u64> = voters.iter().copied().filter(|id| !takes_part(*id, own, status)).collect();
        if (voters.len() - silent.len()) * 2 <= voters.len() {
            return Step::WaitFor(silent);
        }
        return Step::SetVoters(voters);
    }
    match change.remove {
        Some(NodeId(id)) if status.members.contains_key(&id) => Step::RemoveLearner(id),
        Some(_) | None => Step::Done,
    }
}

/// What will be done, for people.
pub fn steps(change: &MemberChange, status: &ReplicaStatus) -> Vec<String> {
    let mut steps = Vec::new();
    let add = change.add.as_ref().map(|add| add.id.0);
    if let Some(id) = add {
        if !status.members.contains_key(&id) {
            steps.push(format!("add node {id} as a learner"));
        }
        if !change.keep_learner {
            steps.push(format!("wait until node {id} has caught up"));
        }
    }
    let voters = target(change, status);
    if status.configs.last().is_some_and(|now| *now != voters) {
        let list = voters.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        steps.push(format!("nodes {list} vote, all others do not"));
    }
    if let Some(NodeId(id)) = change.remove {
        steps.push(format!("node {id} is a member no more"));
    }
    steps
}

/// Why a change is refused.
fn refuse(reason: &'static str, message: String) -> Refusal {
    Refusal::Precondition { reason, message }
}

/// What must hold of every change before it begins. `facts` are those of the leader, now.
///
/// # Errors
/// What stands in the way, with evidence and what clears it.
pub fn judge(
    change: &MemberChange,
    accept_fewer_voters: bool,
    status: &ReplicaStatus,
    own: u64,
    facts: &Facts,
    limits: &Limits,
) -> Result<(), Refusal> {
    let before = status.configs.last().cloned().unwrap_or_default();
    let after = target(change, status);
    if after.is_empty() {
        return Err(refuse(
            "TOO_FEW_COPIES",
            "the last voter cannot go; destroy the cluster by removing its data".into(),
        ));
    }
    let silent: Vec<u64> = after.iter().copied().filter(|id| !takes_part(*id, own, status)).collect();
    // The new node is asked before, and waited for.
    let silent: Vec<u64> = silent.into_iter().filter(|id| before.contains(id)).collect();
    if (after.len() - silent.len()) * 2 <= after.len() {
        let names = silent.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let message = format!(
            "of the {} voters that would be left, nodes {names} do not answer: no write could be acknowledged; start \
             them, or replace them first: `holdfast node replace`",
            after.len()
        );
        return Err(refuse("NO_QUORUM_LEFT", message));
    }
    if after.len() < before.len() && after.len() < VOTERS_MIN && !accept_fewer_voters {
        let message = format!(
            "{} voters would be left: losing any one of them would stop all writes; replace the node instead \
             (`holdfast node replace`), or say --accept-fewer-voters",
            after.len()
        );
        return Err(refuse("TOO_FEW_COPIES", message));
    }
    let known: BTreeSet<(holdfast_survey::CheckId, String)> = errors(facts, limits).collect();
    let mut ids: Vec<holdfast_survey::CheckId> = known.iter().map(|(id, _)| *id).collect();
    ids.dedup();
    let new = errors(&changed(facts, change, &after), limits).find(|(id, _)| !ids.contains(id));
    match new {
        None => Ok(()),
        Some((id, evidence)) => Err(refuse(id.as_str(), format!("afterwards, {evidence}"))),
    }
}

fn errors(facts: &Facts, limits: &Limits) -> impl Iterator<Item = (holdfast_survey::CheckId, String)> {
    let errors = checks(facts, limits).into_iter().filter(|check| check.severity == Severity::Error);
    errors.map(|check| (check.id, format!("{}; {}", check.evidence, check.remedy)))
}

/// The facts once the change is done, and the new node has caught up.
fn changed(facts: &Facts, change: &MemberChange, voters: &BTreeSet<u64>) -> Facts {
    let mut after = facts.clone();
    if let Some(remove) = change.remove {
        after.copies.retain(|copy| copy.id != CopyId::Node(remove.0));
    }
    if let Some(add) = &change.add {
        let id = CopyId::Node(add.id.0);
        after.copies.retain(|copy| copy.id != id);
        after.copies.push(Copy::node(add.id.0, Kind::Learner, add.member.labels.clone(), facts.commit_index));
    }
    for copy in &mut after.copies {
        if let (true, CopyId::Node(id)) = (copy.kind.is_node(), &copy.id) {
            copy.kind = if voters.contains(id) { Kind::Voter } else { Kind::Learner };
        }
    }
    after.configs = vec![voters.clone()];
    after
}

/// The open change of members, if there is one.
///
/// # Errors
/// When this node's state cannot be read.
pub fn open(replica: &Replica) -> Result<Option<(Operation, MemberChange)>, holdfast_store::StoreError> {
    let operations = replica.view().operations()?;
    Ok(operations.into_iter().filter(|operation| !operation.done).find_map(|operation| {
        let change = operation.member_change.as_deref()?.clone();
        Some((operation, change))
    }))
}

/// Ids that were taken out for good: a log may still hold what they acknowledged.
///
/// # Errors
/// When this node's state cannot be read.
pub fn retired(replica: &Replica) -> Result<BTreeSet<u64>, holdfast_store::StoreError> {
    let operations = replica.view().operations()?;
    let changes = operations.iter().filter_map(|operation| operation.member_change.as_ref());
    Ok(changes.filter_map(|change| change.remove).map(|id| id.0).collect())
}

/// Carries out open changes while this node leads. Ends with the process.
pub async fn run(shared: Arc<Shared>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let replica = &shared.replica;
        if !replica.is_leader() || !replica.is_opened(&replica.sys()) {
            continue;
        }
        let reading = replica.clone();
        match tokio::task::spawn_blocking(move || open(&reading)).await {
            Ok(Ok(Some((operation, change)))) => {
                if let Err(error) = advance(replica, operation, &change).await {
                    tracing::info!(event = "membership.waiting", %error, "trying again");
                }
            }
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => tracing::error!(event = "storage.failed", %error, "jobs cannot be read"),
        }
    }
}

/// Does one step.
async fn advance(replica: &Replica, mut operation: Operation, change: &MemberChange) -> Result<(), MembershipError> {
    let step = next(change, &replica.status(), replica.node_id());
    let (stage, done, total) = describe(&step);
    let moved = operation.stage != stage || operation.done_units != done || operation.total_units != total;
    (operation.stage, operation.done_units, operation.total_units) = (stage, done, total);
    operation.done = step == Step::Done;
    if moved || operation.done {
        tracing::info!(event = "membership.step", operation = operation.id, stage = operation.stage, "members change");
        record(replica, operation).await;
    }
    match step {
        Step::AddLearner(id) => {
            let Some(add) = change.add.as_ref() else { return Ok(()) };
            replica.add_learner(id, add.member.clone()).await
        }
        Step::HandOver => replica.transfer_leader(0, HAND_OVER_TIMEOUT).await.map(drop),
        Step::SetVoters(voters) => replica.set_voters(voters).await,
        Step::RemoveLearner(id) => replica.remove_learner(id).await,
        Step::CatchUp { .. } | Step::WaitFor(_) | Step::Done => Ok(()),
    }
}

fn describe(step: &Step) -> (String, u64, u64) {
    match step {
        Step::AddLearner(id) => (format!("adding node {id} as a learner"), 0, 0),
        Step::CatchUp { node, at, of } => (format!("node {node} catches up"), *at, *of),
        Step::WaitFor(ids) => {
            let names = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            (format!("waiting for a majority: nodes {names} do not answer"), 0, 0)
        }
        Step::HandOver => ("handing leadership over".to_owned(), 0, 0),
        Step::SetVoters(voters) => {
            let names = voters.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            (format!("making nodes {names} the voters"), 0, 0)
        }
        Step::RemoveLearner(id) => (format!("taking node {id} out"), 0, 0),
        Step::Done => ("done".to_owned(), 0, 0),
    }
}

/// Addresses that members listen on, by node, for the check that no two share one.
pub fn peer_addresses(status: &ReplicaStatus) -> BTreeMap<&str, u64> {
    status.members.iter().map(|(id, member)| (member.peer_address.as_str(), *id)).collect()
}

#[cfg(test)]
mod tests;
