//! From what nodes say of themselves to the facts that the survey judges.
//!
//! Invariants: only a leader that a quorum confirmed lately knows what is committed and who takes part; a node's own word
//! proves what is on its disk, not what others acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_survey::{Copy, CopyId, Facts, Fork, Freshness, Kind, Limits, Proof, Running, span};
use holdfast_wire::reply::duration_millis;
use holdfast_wire::v1;

/// A leader that heard no quorum for so long may be deposed; a member not heard for so long takes no part.
pub const SILENCE_MS_MAX: u64 = 2000;

/// Facts of the group of these answers.
#[derive(Debug, Clone, Copy)]
pub struct Answers<'a> {
    /// What nodes said, one answer each.
    pub statuses: &'a [v1::GetStatusResponse],
    /// Every member was asked. One that did not answer is down if its leader does not hear it either; else it may have
    /// stopped since its leader heard it last, or just not be reached from here: nobody knows.
    pub asked_all: bool,
}

fn node_id(status: &v1::GetStatusResponse) -> u64 {
    status.self_.as_ref().map_or(0, |node| node.node_id)
}

/// True when it heard its leader lately, or, as the leader, a quorum: whom it names is believed.
pub fn heard_lately(group: &v1::GroupStatus) -> bool {
    group.leader_contact_age.as_ref().is_some_and(|age| duration_millis(age) <= SILENCE_MS_MAX)
}

impl<'a> Answers<'a> {
    /// The answer of the leader, if one is sure to lead.
    fn leader(&self) -> Option<(&'a v1::GetStatusResponse, &'a v1::GroupStatus)> {
        let leads = self.statuses.iter().filter_map(|status| {
            let group = status.groups.first()?;
            (group.leader_id != 0 && group.leader_id == node_id(status) && heard_lately(group))
                .then_some((status, group))
        });
        leads.max_by_key(|(_, group)| group.term)
    }

    /// The answer to take members and destinations from.
    fn best(&self) -> Option<&'a v1::GetStatusResponse> {
        let newest = || {
            let committed = |status: &&v1::GetStatusResponse| status.groups.first().map(|group| group.committed_index);
            self.statuses.iter().max_by_key(committed)
        };
        self.leader().map(|(status, _)| status).or_else(newest)
    }

    /// What the survey judges.
    pub fn facts(&self) -> Facts {
        let Some(best) = self.best() else { return Facts::default() };
        let leader = self.leader();
        let by_id: BTreeMap<u64, &v1::GetStatusResponse> =
            self.statuses.iter().map(|status| (node_id(status), status)).collect();
        let nodes = best.nodes.iter().map(|node| self.node(node, leader.map(|(_, group)| group), &by_id));
        let limits = self.limits();
        let destinations = best.destinations.iter().map(|status| destination(status, &limits));
        let sets = best.groups.first().into_iter().flat_map(|group| &group.voter_sets);
        // A follower that hears its leader vouches for it, if not for what it committed.
        let believed = self.statuses.iter().filter_map(|status| status.groups.first());
        let believed = believed.filter(|group| group.leader_id != 0 && heard_lately(group));
        Facts {
            copies: nodes.chain(destinations).chain(best.vaults.iter().map(|status| vault(status, &limits))).collect(),
            configs: sets.map(|set| set.node_ids.iter().copied().collect::<BTreeSet<u64>>()).collect(),
            leader: believed.max_by_key(|group| group.term).map(|group| group.leader_id),
            commit_index: leader.map(|(_, group)| group.committed_index),
            lineage_fork: self.fork(),
            restoring: best.groups.first().and_then(|group| group.restoring.clone()).unwrap_or_default().stages,
        }
    }

    /// A fork of a history that an answer tells of; one that all others have left behind is nobody's concern.
    fn fork(&self) -> Option<Fork> {
        let incarnation = self.best()?.incarnation;
        let of_it = self.statuses.iter().filter(|status| status.incarnation == incarnation);
        let fork = of_it.filter_map(|status| status.groups.first()?.lineage_fork.as_ref()).next()?;
        Some(Fork { destination: fork.destination.clone(), evidence: fork.evidence.clone() })
    }

    fn node(
        &self,
        node: &v1::Node,
        leader: Option<&v1::GroupStatus>,
        by_id: &BTreeMap<u64, &v1::GetStatusResponse>,
    ) -> Copy {
        let id = node.node_id;
        let own = by_id.get(&id).and_then(|status| status.groups.first());
        let running = match leader {
            Some(group) if group.leader_id == id => Running::Up,
            Some(group) if group.silence_ms.get(&id).is_none_or(|silence| *silence > SILENCE_MS_MAX) => Running::Down,
            Some(_) if own.is_none() && self.asked_all => Running::Unknown,
            Some(_) => Running::Up,
            None if own.is_some() => Running::Up,
            None if self.asked_all => Running::Down,
            None => Running::Unknown,
        };
        // What a node says is committed is in its own log. Beyond that, its log is the leader's as far as it goes if it
        // ends in the leader's term (Raft paper, log matching): a node that was cut off may hold more than it could say.
        let acknowledged = leader.and_then(|group| group.matched_index.get(&id).copied());
        let held = own.zip(leader).filter(|(own, leader)| own.durable_log_term == leader.term);
        let held = held.map(|(own, leader)| own.durable_log_index.min(leader.last_log_index));
        let index = acknowledged.max(own.map(|group| group.committed_index)).max(held);
        let kind = match node.role() {
            v1::NodeRole::Voter => Kind::Voter,
            v1::NodeRole::Learner | v1::NodeRole::Unspecified => Kind::Learner,
        };
        let labels = node.labels.clone().into_iter().collect();
        let digest =
            own.filter(|group| group.digest_index > 0).map(|group| (group.digest_index, group.digest.to_vec()));
        let is_heard_only = own.is_none() && index.is_some();
        Copy { running, digest, is_heard_only, ..Copy::node(id, kind, labels, index) }
    }

    /// The thresholds that the nodes are configured with.
    pub fn limits(&self) -> Limits {
        match self.best().and_then(|status| status.limits.as_ref()) {
            None => Limits::default(),
            Some(limits) => Limits {
                offsite_lag_ms_max: limits.offsite_lag_ms_max,
                replica_lag_entries_max: limits.replica_lag_entries_max,
                placement_keys: limits.placement_keys.clone(),
                proof_age_ms_max: limits.proof_age_ms_max,
                proof_grace_ms: limits.proof_grace_ms,
            },
        }
    }
}

fn destination(status: &v1::DestinationStatus, limits: &Limits) -> Copy {
    let objective_ms = limits.offsite_lag_ms_max;
    let lag_ms = status.lag.as_ref().map(duration_millis);
    // A cluster that was founded this moment is known to be as far behind as its objective allows, no further.
    let is_new = lag_ms.is_some_and(|lag| lag <= objective_ms) && status.last_error.is_empty();
    let freshness = match status.durable_index {
        0 if is_new => Freshness::Verified,
        0 if status.last_error.is_empty() => Freshness::Stale("nothing was shipped there and read back yet".into()),
        0 => Freshness::Stale(status.last_error.clone()),
        // It was there once: whoever leads now could not see it.
        _ if status.verified_index == 0 && !status.last_error.is_empty() => Freshness::Stale(status.last_error.clone()),
        // Who does not lead does not look, and knows what was shipped.
        _ => status.proof.as_ref().map_or(Freshness::Verified, |proof| proof_of(proof).freshness(limits)),
    };
    let index = freshness.counts().then_some(status.durable_index);
    Copy {
        id: CopyId::Destination(status.name.clone()),
        freshness,
        lag_ms,
        ..Copy::archive(&status.name, status.labels.clone().into_iter().collect(), index)
    }
}

/// It holds what its verifiers saw in it, and counts while they did so lately: nobody else knows.
fn vault(status: &v1::VaultStatus, limits: &Limits) -> Copy {
    let freshness = match &status.proof {
        None => Freshness::Unknown,
        Some(proof) => proof_of(proof).freshness(limits),
    };
    let proved = status.proof.as_ref().and_then(|proof| proof.proved.as_ref());
    let index = proved.map(|proved| proved.last_index.max(proved.snapshot_index));
    let labels = status.labels.clone().into_iter().collect();
    Copy {
        kind: Kind::Vault,
        index: index.filter(|_| freshness.counts()),
        freshness,
        lag_ms: None,
        ..Copy::archive(&status.name, labels, None)
    }
}

fn proof_of(proof: &v1::CopyProof) -> Proof {
    let age_ms = |of: &Option<v1::CopyVerification>| Some(duration_millis(of.as_ref()?.age.as_ref()?));
    let failed = proof.failed.as_ref().map(|failed| {
        let ago = failed.age.as_ref().map(|age| format!(", {} ago", span(duration_millis(age)))).unwrap_or_default();
        let what = if failed.level == "drilled" { "a drill failed" } else { "it was found bad" };
        format!("{what}{ago}: {}", failed.reason)
    });
    Proof { proved_age_ms: age_ms(&proof.proved), failed, age_ms: proof.age.as_ref().map(duration_millis) }
}

#[cfg(test)]
mod tests {
    use holdfast_survey::{Answer, Check, CheckId, Domain, Loss, Severity, checks, survive};

    use super::*;

    fn duration(ms: u64) -> Option<holdfast_wire::Duration> {
        Some(holdfast_wire::Duration { seconds: (ms / 1000) as i64, nanos: (ms % 1000 * 1_000_000) as i32 })
    }

    fn member(id: u64) -> v1::Node {
        v1::Node {
            node_id: id,
            labels: [("array".to_owned(), format!("a{id}"))].into(),
            role: v1::NodeRole::Voter.into(),
            ..Default::default()
        }
    }

    /// What node `id` of three says while node 1 leads; 1 and 2 hold entry 100, and 3 was cut off at 60.
    fn status(id: u64) -> v1::GetStatusResponse {
        let leads = id == 1;
        v1::GetStatusResponse {
            self_: Some(member(id)),
            nodes: (1..=3).map(member).collect(),
            groups: vec![v1::GroupStatus {
                term: 5,
                leader_id: 1,
                committed_index: if id == 3 { 55 } else { 100 },
                last_log_index: 100,
                matched_index: if leads { [(1, 100), (2, 100), (3, 60)].into() } else { Default::default() },
                silence_ms: if leads { [(2, 20), (3, 9000)].into() } else { Default::default() },
                leader_contact_age: duration(if id == 3 { 9000 } else { 30 }),
                voter_sets: vec![v1::VoterSet { node_ids: vec![1, 2, 3] }],
                ..Default::default()
            }],
            destinations: vec![v1::DestinationStatus { name: "vault".into(), durable_index: 90, ..Default::default() }],
            ..Default::default()
        }
    }

    fn lost(ids: &[u64]) -> Vec<Domain> {
        ids.iter().map(|id| format!("array=a{id}").parse().expect("a domain")).collect()
    }

    #[test]
    fn the_leader_knows_what_is_committed_and_who_takes_part() {
        let statuses = [status(1), status(2), status(3)];
        let mut facts = Answers { statuses: &statuses, asked_all: true }.facts();
        assert_eq!((facts.leader, facts.commit_index), (Some(1), Some(100)));
        let running = |facts: &Facts| facts.copies[..3].iter().map(|copy| copy.running).collect::<Vec<_>>();
        assert_eq!(running(&facts), [Running::Up, Running::Up, Running::Down], "3 answers us, but not its leader");
        assert_eq!(facts.copies[2].index, Some(60));
        let mut fuller = status(3);
        (fuller.groups[0].durable_log_index, fuller.groups[0].durable_log_term) = (62, 4);
        let index = |third: v1::GetStatusResponse| {
            Answers { statuses: &[status(1), status(2), third], asked_all: true }.facts().copies[2].index
        };
        assert_eq!(index(fuller.clone()), Some(60), "an end of another term may differ");
        fuller.groups[0].durable_log_term = 5;
        assert_eq!(index(fuller.clone()), Some(62), "it holds more than it could acknowledge");
        fuller.groups[0].durable_log_index = 200;
        assert_eq!(index(fuller), Some(100), "but no more than there is");
        assert_eq!(survive(&facts, &lost(&[1, 2])).loss, Loss::Entries(10), "the vault is at 90");
        facts.copies.retain(|copy| copy.kind.is_node());
        assert_eq!(survive(&facts, &lost(&[1, 2])).loss, Loss::Entries(40));
    }

    #[test]
    fn a_node_that_was_asked_in_vain_is_not_up_because_its_leader_heard_it_a_moment_ago() {
        let statuses = [status(1)];
        let second = |asked_all| Answers { statuses: &statuses, asked_all }.facts().copies[1].running;
        assert_eq!(second(true), Running::Unknown);
        assert_eq!(second(false), Running::Up, "who was not asked need not answer");
        let mut facts = Answers { statuses: &statuses, asked_all: true }.facts();
        assert_eq!(facts.copies[2].running, Running::Down, "neither hears it");
        facts.copies.retain(|copy| copy.kind.is_node());
        assert_eq!(survive(&facts, &lost(&[1, 2])).loss, Loss::Heard(40), "60 is what the leader heard of it");
        let check =
            |check: &&Check| check.id == CheckId::ReplicaLag && check.evidence.starts_with("node 2 does not answer");
        let found = checks(&facts, &Limits::default());
        assert_eq!(found.iter().find(check).map(|check| check.severity), Some(Severity::Unknown), "{found:?}");
        assert_eq!(survive(&facts, &lost(&[3])).writes, Answer::Unknown);
        assert_eq!(survive(&facts, &lost(&[3])).loss, Loss::Entries(0), "its disk holds what it holds");
    }

    #[test]
    fn without_a_leader_what_is_committed_is_unknown() {
        let mut statuses = [status(2), status(3)];
        for status in &mut statuses {
            status.groups[0].leader_contact_age = duration(3000);
        }
        let facts = Answers { statuses: &statuses, asked_all: true }.facts();
        assert_eq!((facts.leader, facts.commit_index), (None, None));
        assert_eq!(facts.copies[0].running, Running::Down, "it was asked and did not answer");
        assert_eq!(facts.copies[0].index, None);
        assert_eq!(survive(&facts, &lost(&[1, 2])).loss, Loss::Unknown);
        assert_eq!(survive(&facts, &lost(&[1])).writes, Answer::Yes);
        assert!(checks(&facts, &Limits::default()).iter().any(|check| check.id == CheckId::NoLeader));
        let facts = Answers { statuses: &statuses, asked_all: false }.facts();
        assert_eq!(facts.copies[0].running, Running::Unknown);
    }

    #[test]
    fn a_fork_is_told_by_any_node_of_the_same_history() {
        let fork = v1::LineageFork { destination: "vault".into(), evidence: "ahead".into(), ..Default::default() };
        let mut statuses = [status(1), status(2)];
        let told = |statuses: &[v1::GetStatusResponse]| {
            Answers { statuses, asked_all: true }.facts().lineage_fork.map(|fork| fork.destination)
        };
        assert_eq!(told(&statuses), None);
        // The leader has not applied it yet, or answered before.
        statuses[1].groups[0].lineage_fork = Some(fork);
        assert_eq!(told(&statuses).as_deref(), Some("vault"));
        statuses[1].incarnation = 7;
        assert_eq!(told(&statuses), None, "of a history that was left behind");
    }

    #[test]
    fn a_deposed_leader_is_not_believed() {
        let mut old = status(1);
        old.groups[0].committed_index = 120;
        let mut new = status(2);
        new.groups[0] = v1::GroupStatus { term: 6, leader_id: 2, ..status(1).groups[0].clone() };
        // Deposed a moment ago, it heard a quorum lately as well: the later term counts.
        for age in [60_000, 500] {
            old.groups[0].leader_contact_age = duration(age);
            let statuses = [old.clone(), new.clone()];
            let facts = Answers { statuses: &statuses, asked_all: true }.facts();
            assert_eq!((facts.leader, facts.commit_index), (Some(2), Some(100)), "{age} ms");
        }
        old.groups[0].leader_contact_age = duration(60_000);
        let facts = Answers { statuses: &[old], asked_all: true }.facts();
        assert_eq!((facts.leader, facts.commit_index), (None, None), "nobody else answers");
        assert!(Answers { statuses: &[], asked_all: true }.facts().copies.is_empty());
    }

    #[test]
    fn a_destination_counts_once_something_was_read_back_from_there() {
        let mut one = status(1);
        one.destinations[0].durable_index = 0;
        one.destinations[0].last_error = "permission denied".into();
        let facts = Answers { statuses: &[one], asked_all: false }.facts();
        let vault = facts.copies.last().expect("the vault");
        assert_eq!((vault.index, &vault.freshness), (None, &Freshness::Stale("permission denied".into())));
        let mut unseen = status(1);
        unseen.destinations[0].last_error = "not mounted".into();
        let facts = Answers { statuses: &[unseen], asked_all: false }.facts();
        let vault = facts.copies.last().expect("the vault");
        assert_eq!((vault.index, &vault.freshness), (None, &Freshness::Stale("not mounted".into())));
        let mut seen = status(1);
        (seen.destinations[0].verified_index, seen.destinations[0].last_error) = (90, "timed out once".into());
        let facts = Answers { statuses: &[seen], asked_all: false }.facts();
        assert_eq!(facts.copies.last().expect("the vault").index, Some(90), "it was seen by who leads");

        let mut new = status(1);
        new.destinations[0] = v1::DestinationStatus { lag: duration(400), ..Default::default() };
        let facts =
            |one: &v1::GetStatusResponse| Answers { statuses: std::slice::from_ref(one), asked_all: false }.facts();
        assert_eq!(facts(&new).copies.last().expect("it").index, Some(0), "nothing had to be there yet");
        new.destinations[0].lag = duration(5001);
        assert_eq!(facts(&new).copies.last().expect("it").index, None);
        new.destinations[0].lag = None;
        assert_eq!(facts(&new).copies.last().expect("it").index, None, "what is not known does not count");
    }
}
