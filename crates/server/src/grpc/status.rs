//! What a node says of itself: the answer to `GetStatus`, and what metrics and health are made of.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_archive::{Depth, Recorded};
use holdfast_model::command::LineageFork;
use holdfast_model::id::Millis;
use holdfast_model::state::Sys;
use holdfast_replica::{DiskLevel, Member, PastBudget};
use holdfast_store::Space;
use holdfast_survey::CheckId;
use holdfast_wire::reply;
use holdfast_wire::v1;

use crate::config::{Offsite, Vault};
use crate::disk::is_low;
use crate::grpc::Shared;
use crate::shipper::Proofs;

impl Shared {
    /// What this node knows of itself and of its group; needs nobody else.
    pub fn status(&self) -> v1::GetStatusResponse {
        let shared = self;
        // Of one state: a digest goes with the index that it is of.
        let view = shared.replica.view();
        let (sys, applied) = (Arc::clone(view.sys()), view.applied().clone());
        drop(view);
        let status = shared.replica.status();
        let config = &shared.config;
        let role = match (status.members.contains_key(&config.node_id), status.voters.contains(&config.node_id)) {
            (_, true) => v1::NodeRole::Voter,
            (true, false) => v1::NodeRole::Learner,
            (false, false) => v1::NodeRole::Unspecified,
        };
        let own = v1::Node {
            node_id: config.node_id,
            client_address: config.advertise.client.clone(),
            peer_address: config.advertise.peer.clone(),
            admin_address: config.advertise.admin.clone(),
            http_address: config.advertise.http.clone(),
            labels: config.labels.clone().into_iter().collect(),
            role: role.into(),
            identity: shared.replica.identity().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let durable = shared.replica.durable_last();
        let group = v1::GroupStatus {
            group_id: shared.replica.group_id().0,
            term: status.term,
            leader_id: status.leader_id,
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: applied.index(),
            purged_index: status.purged_index,
            snapshot_index: status.snapshot_index,
            digest: sys.digest.0.to_vec().into(),
            digest_index: applied.index(),
            matched_index: status.matched.clone().into_iter().collect(),
            leader_contact_age: status.leader_contact_age.map(reply::duration),
            voter_sets: status
                .configs
                .iter()
                .map(|set| v1::VoterSet { node_ids: set.iter().copied().collect() })
                .collect(),
            durable_log_index: durable.map_or(0, |last| last.index),
            durable_log_term: durable.map_or(0, |last| last.term),
            lineage_fork: sys.lineage_fork.as_deref().map(fork),
            restoring: restoring(&sys),
            silence_ms: status.silence.iter().map(|(id, silence)| (*id, silence.as_millis() as u64)).collect(),
        };
        v1::GetStatusResponse {
            cluster_id: sys.history.as_ref().map(|history| hex(&history.cluster_id)).unwrap_or_default(),
            cluster_name: sys.history.as_ref().map(|history| history.cluster_name.clone()).unwrap_or_default(),
            incarnation: sys.history.as_ref().map_or(0, |history| history.incarnation.0),
            self_: Some(own),
            nodes: status.members.iter().map(|(id, member)| member_node(*id, member, &status.voters)).collect(),
            groups: vec![group],
            destinations: self.destinations(&sys, applied.index()),
            vaults: self.vaults(),
            checks: self.checks(&status),
            storage: Space::of(&config.data_dir)
                .ok()
                .map(|space| v1::StorageStatus { used_bytes: space.used, free_bytes: space.free }),
            draining: shared.draining.load(Ordering::Acquire),
            integrity: Some(super::integrity::status(&shared.replica.integrity_status())),
            limits: Some(v1::HealthLimits {
                offsite_lag_ms_max: config.offsite_lag_ms_max,
                replica_lag_entries_max: config.replica_lag_entries_max,
                placement_keys: config.placement_keys.clone(),
                proof_age_ms_max: config.proof_age_ms_max,
                proof_grace_ms: config.proof_grace_ms,
            }),
        }
    }

    fn destinations(&self, sys: &holdfast_model::state::Sys, applied: u64) -> Vec<v1::DestinationStatus> {
        let (shipper, now) = (&self.shipper, self.replica.group_now());
        shipper
            .destinations()
            .iter()
            .map(|destination| {
                let fact = sys.offsite.get(&destination.name);
                let reach = shipper.reach(&destination.name);
                v1::DestinationStatus {
                    name: destination.name.clone(),
                    labels: destination.labels.clone().into_iter().collect(),
                    durable_index: reach.durable,
                    lag: shipper.lag(reach.durable, applied).map(reply::duration),
                    verified_index: reach.verified,
                    verify_time: fact.map(|fact| reply::timestamp(fact.at)),
                    last_error: shipper.error_of(&destination.name),
                    required: destination.required,
                    proof: shipper.proofs_of(&destination.name).map(|proofs| proof(&proofs, Some(destination), now)),
                }
            })
            .collect()
    }

    fn vaults(&self) -> Vec<v1::VaultStatus> {
        let now = self.replica.group_now();
        let told = |vault: &Vault| v1::VaultStatus {
            name: vault.name.clone(),
            labels: vault.labels.clone().into_iter().collect(),
            proof: self.shipper.proofs_of_vault(&vault.name).map(|proofs| proof(&proofs, None, now)),
        };
        self.config.vaults.iter().map(told).collect()
    }

    fn checks(&self, status: &holdfast_replica::ReplicaStatus) -> Vec<v1::HealthCheck> {
        let mut checks = Vec::new();
        let mut check = |id: &str, severity: v1::HealthSeverity, evidence: String, remedy: &str| {
            checks.push(v1::HealthCheck {
                check_id: id.to_owned(),
                severity: severity.into(),
                evidence,
                observe_time: None,
                remedy: remedy.to_owned(),
            });
        };
        let (disk, refused) = (self.replica.disk(), self.replica.refuses_for_room());
        if let Ok(space) = Space::of(&self.config.data_dir)
            && (is_low(space, disk) || refused.is_some())
        {
            let headroom = disk.headroom >> 20;
            let (severity, what) = match (refused, disk.level) {
                (Some(evidence), _) => (v1::HealthSeverity::Error, format!("; writes are refused: {evidence}")),
                (None, DiskLevel::Full) => {
                    (v1::HealthSeverity::Error, "; it is full: this node takes no entries".into())
                }
                (None, DiskLevel::Low) => (
                    v1::HealthSeverity::Warning,
                    format!("; with less than {headroom} MiB, what is held back included, a quorum takes no writes"),
                ),
                (None, DiskLevel::Ample) => (v1::HealthSeverity::Warning, String::new()),
            };
            check(
                CheckId::DiskLow.as_str(),
                severity,
                format!("{} MiB are left on the disk of {}{what}", space.free >> 20, self.config.data_dir.display()),
                "make room or grow the disk: writes are refused before it is full, and taken again once there is room",
            );
        }
        let outbox = self.replica.outbox();
        let forgets = outbox.forgot && outbox.past == PastBudget::AcceptRisk;
        if self.replica.is_leader() && (outbox.bytes > outbox.bytes_max / 2 || forgets) {
            let (severity, what) = match (outbox.is_full() || forgets, outbox.past) {
                (false, _) => (v1::HealthSeverity::Warning, "no more than that may wait"),
                (true, PastBudget::ReadOnly) => (v1::HealthSeverity::Error, "writes are refused"),
                (true, PastBudget::AcceptRisk) => {
                    (v1::HealthSeverity::Error, "the log forgot entries that are not offsite (ship.past_outbox)")
                }
            };
            let [bytes, bytes_max] = [outbox.bytes, outbox.bytes_max].map(|bytes| bytes >> 10);
            check(
                CheckId::OutboxFull.as_str(),
                severity,
                format!("{bytes} KiB of the log wait for a required destination, of {bytes_max} KiB: {what}"),
                "see the destinations' last errors in `holdfast cluster status`; raise ship.outbox_bytes where the disk has \
                 room, or make a destination that is lost for good required = false",
            );
        }
        for destination in self.shipper.destinations() {
            let verdict = self.shipper.proofs_of(&destination.name).and_then(|proofs| proofs.verdict);
            if let Some(found) = verdict.filter(|found| found.finding.verdict < destination.expect) {
                let (name, verdict, expect) = (&destination.name, found.finding.verdict, destination.expect);
                check(
                    "OFFSITE_NOT_IMMUTABLE",
                    v1::HealthSeverity::Warning,
                    format!("{name} is {verdict}, not {expect}: {} says what was tried", found.object),
                    "`holdfast backup doctor` says what to change; where less is meant, say so with offsite.expect",
                );
            }
        }
        if let Some(why) = self.shipper.is_mute() {
            check(
                "ATTESTS_NOTHING",
                v1::HealthSeverity::Warning,
                format!("{why}: no snapshot has its signature, and with one more node down none counts"),
                "bring NODE_KEY back from a copy of its data directory, or `holdfast node replace`",
            );
        }
        if self.replica.is_removed() {
            check(
                "NODE_REMOVED",
                v1::HealthSeverity::Warning,
                "this node was taken out of the cluster; it serves nobody".into(),
                "stop it, and keep its data directory until the others are well",
            );
        }
        let integrity = self.replica.integrity_status();
        if let Some(reason) = integrity.damage {
            check(
                CheckId::Diverged.as_str(),
                v1::HealthSeverity::Error,
                format!(
                    "{reason}; {}",
                    if integrity.fenced {
                        "it neither leads nor serves, and votes"
                    } else {
                        "nobody with a sound state answers, so it goes on"
                    }
                ),
                "keep the other nodes up: it reinstalls its state from one of them, and clears by itself",
            );
        }
        if let Some(reason) = integrity.doubt {
            check(
                CheckId::Diverged.as_str(),
                v1::HealthSeverity::Error,
                reason,
                "start the nodes that are down, so that a majority can tell; see `holdfast integrity compare`",
            );
        }
        if let Some(reason) = integrity.unread {
            check(
                "STATE_NOT_READ",
                v1::HealthSeverity::Warning,
                format!("the rows of this node's state could not be read, so that nothing is known of them: {reason}"),
                "look at this node's disk and log (`integrity.not_read`); it is tried again, and clears by itself",
            );
        }
        if status.recovering {
            check(
                "LOG_RECOVERING",
                v1::HealthSeverity::Warning,
                "this node's log ends before what it had acknowledged; it does not vote until caught up".into(),
                "keep the other nodes up; it clears by itself",
            );
        }
        checks
    }
}

fn proof(proofs: &Proofs, destination: Option<&Offsite>, now: Millis) -> v1::CopyProof {
    let told = |one: Option<&Recorded>| one.map(|one| verification(one, now));
    v1::CopyProof {
        proved: told(proofs.good(Depth::Proved)),
        drilled: told(proofs.good(Depth::Drilled)),
        failed: told(proofs.failed()),
        read: told(proofs.good(Depth::Read)),
        age: proofs.began.map(|began| reply::duration(since(began, now))),
        lock: proofs.verdict.as_ref().zip(destination).map(|(found, destination)| v1::DestinationVerdict {
            verdict: found.finding.verdict.as_str().into(),
            expect: destination.expect.as_str().into(),
            age: Some(reply::duration(since(Millis(found.finding.at_ms), now))),
            object: found.object.clone(),
            verifier_key: found.key.to_vec().into(),
            succeeded: found.finding.succeeded().map(|attempt| attempt.attempt.as_str().to_owned()).collect(),
        }),
    }
}

fn since(then: Millis, now: Millis) -> Duration {
    Duration::from_millis(now.0.saturating_sub(then.0))
}

fn verification(one: &Recorded, now: Millis) -> v1::CopyVerification {
    let found = &one.found;
    let ended = Millis(found.ended_ms);
    v1::CopyVerification {
        object: one.object.clone(),
        level: found.level.as_str().into(),
        good: found.good,
        end_time: Some(reply::timestamp(ended)),
        age: Some(reply::duration(since(ended, now))),
        snapshot_index: found.snapshot_index.unwrap_or(0),
        last_index: found.last_index.unwrap_or(0),
        verifier_key: one.key.to_vec().into(),
        reason: found.why().unwrap_or_default(),
        restore_duration: found.drill.as_ref().map(|drill| reply::duration(Duration::from_millis(drill.restore_ms))),
    }
}

fn member_node(id: u64, member: &Member, voters: &[u64]) -> v1::Node {
    v1::Node {
        node_id: id,
        client_address: member.client_address.clone(),
        peer_address: member.peer_address.clone(),
        admin_address: member.admin_address.clone(),
        http_address: member.http_address.clone(),
        labels: member.labels.clone().into_iter().collect(),
        role: if voters.contains(&id) { v1::NodeRole::Voter } else { v1::NodeRole::Learner }.into(),
        identity: member.identity.clone(),
        version: String::new(),
    }
}

fn restoring(sys: &Sys) -> Option<v1::Restoring> {
    let restoring = sys.restoring.as_ref()?;
    let parent = sys.history.as_ref().and_then(|history| history.parent.as_ref());
    Some(v1::Restoring {
        stages: restoring.left.iter().map(|stage| stage.name().to_owned()).collect(),
        through: restoring.through.clone(),
        snapshot_index: parent.map_or(0, |parent| parent.snapshot_index),
    })
}

fn fork(fork: &LineageFork) -> v1::LineageFork {
    v1::LineageFork {
        destination: fork.destination.clone(),
        index: fork.index,
        evidence: fork.evidence.clone(),
        verifier_node_id: fork.verifier.0,
        since_time: Some(reply::timestamp(fork.since)),
    }
}

/// Bytes as operators read them.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
