//! Named conditions of a cluster. A check's id is a contract: scripts and alerts name it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::domain::{Domain, Keys};
use crate::facts::{Copy, CopyId, Facts, Freshness, Kind, Running};
use crate::placement::placement;

/// Stable ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckId {
    /// An archive holds another history than the nodes: nothing is written.
    LineageFork,
    /// One loss takes every copy that counts.
    AllCopiesOneDomain,
    /// One failure domain holds a majority of the voters.
    QuorumOneDomain,
    /// All copies run one firmware.
    FirmwareMonoculture,
    /// A destination is behind its objective.
    OffsiteLag,
    /// A destination's copy was not read back, not lately, or does not count.
    OffsiteUnverified,
    /// No node leads.
    NoLeader,
    /// A node is down or behind.
    ReplicaLag,
    /// Nodes differ at one index.
    Diverged,
    /// A node's disk is nearly full.
    DiskLow,
    /// Too much of the log waits for a required destination.
    OutboxFull,
    /// Large payloads that a restore holds back are not there yet.
    Restoring,
    /// A label that others carry is missing.
    LabelMissing,
}

impl CheckId {
    /// As it is printed and exported.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LineageFork => "LINEAGE_FORK",
            Self::AllCopiesOneDomain => "ALL_COPIES_ONE_DOMAIN",
            Self::QuorumOneDomain => "QUORUM_ONE_DOMAIN",
            Self::FirmwareMonoculture => "FIRMWARE_MONOCULTURE",
            Self::OffsiteLag => "OFFSITE_LAG",
            Self::OffsiteUnverified => "OFFSITE_UNVERIFIED",
            Self::NoLeader => "NO_LEADER",
            Self::ReplicaLag => "REPLICA_LAG",
            Self::Diverged => "DIVERGED",
            Self::DiskLow => "DISK_LOW",
            Self::OutboxFull => "OUTBOX_FULL",
            Self::Restoring => "RESTORING",
            Self::LabelMissing => "LABEL_MISSING",
        }
    }
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Warning,
    /// An input is missing: not known to be safe.
    Unknown,
    /// Act.
    Error,
}

/// A condition that is not fine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Which.
    pub id: CheckId,
    /// How bad.
    pub severity: Severity,
    /// What was seen.
    pub evidence: String,
    /// What clears it.
    pub remedy: String,
}

/// From where on something counts as bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Recovery point objective: how long a committed entry may be missing at a destination, in milliseconds.
    pub offsite_lag_ms_max: u64,
    /// Entries that a node may be behind the last committed one.
    pub replica_lag_entries_max: u64,
    /// Keys of which no domain may hold a majority of the voters.
    pub placement_keys: Vec<String>,
    /// A copy outside counts for so long after it was proved, in milliseconds.
    pub proof_age_ms_max: u64,
    /// A copy outside counts for so long before anybody proved it, in milliseconds.
    pub proof_grace_ms: u64,
}

/// A drill a week, and a day to make up for one that was missed.
pub const PROOF_AGE_MS_MAX: u64 = 8 * 24 * 60 * 60 * 1000;
/// Time for the first drill of a new copy.
pub const PROOF_GRACE_MS: u64 = 24 * 60 * 60 * 1000;

impl Default for Limits {
    fn default() -> Self {
        Self {
            offsite_lag_ms_max: 5000,
            replica_lag_entries_max: 10_000,
            placement_keys: Vec::new(),
            proof_age_ms_max: PROOF_AGE_MS_MAX,
            proof_grace_ms: PROOF_GRACE_MS,
        }
    }
}

/// All that is not fine, in the order of [`CheckId`].
pub fn checks(facts: &Facts, limits: &Limits) -> Vec<Check> {
    let mut found = Vec::new();
    let keys = Keys::of(facts, limits.placement_keys.iter().map(String::as_str));
    lineage_fork(facts, &mut found);
    all_copies_one_domain(facts, &keys, &mut found);
    quorum_one_domain(facts, &keys, limits, &mut found);
    firmware_monoculture(facts, &mut found);
    offsite(facts, &keys, limits, &mut found);
    no_leader(facts, &mut found);
    replicas(facts, limits, &mut found);
    diverged(facts, &mut found);
    restoring(facts, &mut found);
    labels(facts, &keys, &mut found);
    found.sort_by_key(|check| check.id);
    found
}

fn add(found: &mut Vec<Check>, id: CheckId, severity: Severity, evidence: String, remedy: &str) {
    found.push(Check { id, severity, evidence, remedy: remedy.to_owned() });
}

fn lineage_fork(facts: &Facts, found: &mut Vec<Check>) {
    if let Some(fork) = &facts.lineage_fork {
        add(
            found,
            CheckId::LineageFork,
            Severity::Error,
            format!("{}: {}; writes are refused since", fork.destination, fork.evidence),
            "stop the nodes and choose which of the two goes on: `holdfast restore run` opens the archive's, `holdfast \
             cluster recover` without --from the nodes'; deploy/runbooks/quorum-loss.md",
        );
    }
}

fn restoring(facts: &Facts, found: &mut Vec<Check>) {
    if !facts.restoring.is_empty() {
        add(
            found,
            CheckId::Restoring,
            Severity::Warning,
            format!(
                "large payloads of {} are not there yet; no snapshot is taken meanwhile",
                facts.restoring.join(", ")
            ),
            "let `holdfast restore run` come to its end; where it was ended, run it again with the same flags",
        );
    }
}

/// Why a copy outside does not count beside the voters; `None`: it does.
fn discounted(copy: &Copy, facts: &Facts, keys: &Keys) -> Option<String> {
    match &copy.freshness {
        Freshness::Stale(why) => return Some(format!("it was not verified: {why}")),
        Freshness::Unknown => return Some("nobody could say whether it was verified".to_owned()),
        Freshness::Verified | Freshness::New(_) => {}
    }
    ["site", "custody"].into_iter().filter(|key| keys.contains(key)).find_map(|key| {
        let own = copy.domain(key);
        let shared = facts.voters().find(|voter| voter.domain(key) == own)?;
        Some(match own.value {
            Some(_) => format!("it shares {own} with {}", shared.id),
            None => format!("neither it nor {} has a label {key:?}, so it may share one", shared.id),
        })
    })
}

fn all_copies_one_domain(facts: &Facts, keys: &Keys, found: &mut Vec<Check>) {
    if facts.voters().next().is_none() {
        return;
    }
    let outside = |copy: &&Copy| !copy.kind.is_node();
    let discounted: BTreeMap<&CopyId, String> = facts
        .copies
        .iter()
        .filter(outside)
        .filter_map(|copy| Some((&copy.id, discounted(copy, facts, keys)?)))
        .collect();
    let counted: Vec<&Copy> = facts.copies.iter().filter(|copy| !discounted.contains_key(&copy.id)).collect();
    let shared = keys.iter().filter_map(|key| {
        let domains: BTreeSet<Domain> = counted.iter().map(|copy| copy.domain(key)).collect();
        domains.first().filter(|_| domains.len() == 1).cloned()
    });
    let shared: Vec<Domain> = shared.collect();
    if shared.is_empty() {
        return;
    }
    let names = counted.iter().map(|copy| copy.id.to_string()).collect::<Vec<_>>().join(", ");
    let domains = shared.iter().map(Domain::to_string).collect::<Vec<_>>().join(" and ");
    let mut evidence = format!("losing {domains} takes every copy that counts: {names}");
    if shared.iter().any(|domain| domain.value.is_none()) {
        evidence.push_str(" (no label counts as one domain)");
    }
    for (id, why) in &discounted {
        evidence.push_str(&format!("; {id} does not count: {why}"));
    }
    if !facts.copies.iter().any(|copy| !copy.kind.is_node()) {
        evidence.push_str("; there is no copy outside the cluster");
    }
    add(
        found,
        CheckId::AllCopiesOneDomain,
        Severity::Error,
        evidence,
        "add an offsite destination in another site and custody ([[offsite]], with labels), or move a node: \
         `holdfast node replace`",
    );
}

fn quorum_one_domain(facts: &Facts, keys: &Keys, limits: &Limits, found: &mut Vec<Check>) {
    let voters = facts.voters().filter_map(|copy| match &copy.id {
        CopyId::Node(id) => Some((*id, copy.labels.clone())),
        CopyId::Destination(_) => None,
    });
    // What no voter is labelled with is for `labels` to say.
    let judged = |key: &&str| {
        limits.placement_keys.iter().any(|one| one == key) || facts.voters().any(|copy| copy.labels.contains_key(*key))
    };
    let judged = keys.iter().filter(judged).filter(|key| *key != "firmware" && *key != "custody");
    for violation in placement(judged, &voters.collect()) {
        let required = limits.placement_keys.contains(&violation.domain.key);
        let severity = if required { Severity::Error } else { Severity::Warning };
        let evidence = violation.to_string().replace("would hold", "holds");
        add(
            found,
            CheckId::QuorumOneDomain,
            severity,
            evidence,
            "move a voter to another domain: `holdfast node replace`",
        );
    }
}

fn firmware_monoculture(facts: &Facts, found: &mut Vec<Check>) {
    let nodes: Vec<&Copy> = facts.copies.iter().filter(|copy| copy.kind.is_node()).collect();
    let values: BTreeSet<Option<&String>> = nodes.iter().map(|copy| copy.labels.get("firmware")).collect();
    if let (true, 1, Some(Some(value))) = (nodes.len() > 1, values.len(), values.first()) {
        let evidence = format!("all {} nodes run firmware {value}: one defect in it can take them all", nodes.len());
        add(
            found,
            CheckId::FirmwareMonoculture,
            Severity::Warning,
            evidence,
            "keep one node on other firmware, and update one at a time",
        );
    }
}

fn offsite(facts: &Facts, keys: &Keys, limits: &Limits, found: &mut Vec<Check>) {
    let outside: Vec<&Copy> = facts.copies.iter().filter(|copy| !copy.kind.is_node()).collect();
    if outside.is_empty() && facts.voters().next().is_some() {
        add(
            found,
            CheckId::OffsiteUnverified,
            Severity::Warning,
            "there is no offsite destination: no copy would survive the cluster".to_owned(),
            "add one to the configuration of every node: [[offsite]] name, url, labels",
        );
    }
    for copy in outside {
        let name = &copy.id;
        match &copy.freshness {
            Freshness::Stale(why) => add(
                found,
                CheckId::OffsiteUnverified,
                Severity::Error,
                format!("what {name} holds was not verified: {why}"),
                "see its last error in `holdfast cluster status`; `holdfast drill run` proves a copy, and `holdfast drill ls` says \
                 what was found: mend what it names, or ship to another destination",
            ),
            Freshness::Unknown => add(
                found,
                CheckId::OffsiteUnverified,
                Severity::Unknown,
                format!("nobody could say what {name} holds"),
                "give the leader a moment, or name more nodes with --endpoint",
            ),
            Freshness::Verified | Freshness::New(_) => {
                if let Freshness::New(why) = &copy.freshness {
                    add(
                        found,
                        CheckId::OffsiteUnverified,
                        Severity::Warning,
                        format!("what {name} holds is not proved: {why}"),
                        "run `holdfast drill run`, and let deploy/systemd/holdfast-drill.timer do so from now on",
                    );
                }
                if let Some(why) = discounted(copy, facts, keys) {
                    add(
                        found,
                        CheckId::OffsiteUnverified,
                        Severity::Warning,
                        format!("{name} does not count as a copy of its own: {why}"),
                        "label the destination, or choose one in another site and custody",
                    );
                }
            }
        }
        match copy.lag_ms {
            // It is pulled when its owner likes, and is as far as it was when somebody read it.
            _ if copy.kind == Kind::Vault => {}
            Some(lag_ms) if lag_ms > limits.offsite_lag_ms_max => add(
                found,
                CheckId::OffsiteLag,
                Severity::Error,
                format!("{name} is {lag_ms} ms behind; the objective is {} ms", limits.offsite_lag_ms_max),
                "see its last error in `holdfast cluster status`; the log is kept until it has caught up",
            ),
            Some(_) => {}
            None => add(
                found,
                CheckId::OffsiteLag,
                Severity::Unknown,
                format!("nobody could say how far {name} is behind"),
                "see its last error in `holdfast cluster status`; `holdfast backup now` tells where it stands",
            ),
        }
    }
}

fn no_leader(facts: &Facts, found: &mut Vec<Check>) {
    if facts.leader.is_none() {
        add(
            found,
            CheckId::NoLeader,
            Severity::Error,
            "no node leads, or none that a quorum confirmed lately: writes wait".to_owned(),
            "start the nodes that are down; if a majority is lost for good, `holdfast cluster recover`",
        );
    }
}

fn replicas(facts: &Facts, limits: &Limits, found: &mut Vec<Check>) {
    for copy in facts.copies.iter().filter(|copy| copy.kind.is_node()) {
        let name = &copy.id;
        let behind = facts.commit_index.zip(copy.index).map(|(commit, index)| commit.saturating_sub(index));
        match (copy.running, behind) {
            (Running::Down, _) => add(
                found,
                CheckId::ReplicaLag,
                Severity::Error,
                format!("{name} does not answer"),
                "start it; if its disk is gone, `holdfast node replace`",
            ),
            (Running::Up | Running::Unknown, Some(behind)) if behind > limits.replica_lag_entries_max => add(
                found,
                CheckId::ReplicaLag,
                Severity::Error,
                format!("{name} is {behind} entries behind; at most {} are fine", limits.replica_lag_entries_max),
                "wait until it has caught up; if it does not, see its log",
            ),
            (Running::Unknown, _) => add(
                found,
                CheckId::ReplicaLag,
                Severity::Unknown,
                format!("{name} does not answer here, and nobody could say whether it takes part"),
                "ask again in a moment, from where its admin address is reached; or name it with --endpoint",
            ),
            (Running::Up, _) => {}
        }
    }
}

/// Digests at one index must be equal.
fn diverged(facts: &Facts, found: &mut Vec<Check>) {
    let mut by_index: BTreeMap<u64, BTreeMap<&[u8], Vec<&CopyId>>> = BTreeMap::new();
    for copy in &facts.copies {
        if let Some((index, digest)) = &copy.digest {
            by_index.entry(*index).or_default().entry(digest).or_default().push(&copy.id);
        }
    }
    for (index, groups) in by_index.into_iter().filter(|(_, groups)| groups.len() > 1) {
        let group = |ids: &Vec<&CopyId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let evidence = groups.values().map(group).collect::<Vec<_>>().join(" against ");
        add(
            found,
            CheckId::Diverged,
            Severity::Error,
            format!("at index {index} the states differ: {evidence}"),
            "keep all nodes up: the one on the smaller side reinstalls its state and clears this; see `holdfast integrity \
             compare`",
        );
    }
}

fn labels(facts: &Facts, keys: &Keys, found: &mut Vec<Check>) {
    for key in keys.iter() {
        // An array is a thing of nodes; where an archive keeps its bytes, its site and custody say.
        let needs = |copy: &&Copy| copy.kind.is_node() || key == "site" || key == "custody";
        let missing = facts.copies.iter().filter(needs).filter(|copy| !copy.labels.contains_key(key));
        let missing: Vec<String> = missing.map(|copy| copy.id.to_string()).collect();
        if !missing.is_empty() {
            add(
                found,
                CheckId::LabelMissing,
                Severity::Warning,
                format!("no label {key:?} on {}: without it they count as sharing one", missing.join(", ")),
                "set node.labels.<key> and restart the node, or labels of [[offsite]]",
            );
        }
    }
}

/// Kinds in words.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Archive => "archive",
            Self::Vault => "vault",
        })
    }
}
