//! openraft's types, filled with ours, and the conversions to our own encodings.
//!
//! Invariant: nothing of openraft's own layout reaches disk or wire; a version bump is never a data migration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
pub use holdfast_model::command::Member;
use holdfast_model::outcome::Outcome;
use holdfast_store::{LogPosition, StoredEntry, VoteRecord};
use holdfast_wire::DecodeError;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::log as wire_log;
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, RaftTypeConfig};

/// An encoded `internal.v1.Proposal`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProposalBytes(pub Bytes);

impl fmt::Debug for ProposalBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for ProposalBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Answer of an applied entry.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Outcomes of a command: one, or one for each write of a fold; none for blank and membership entries.
    pub outcomes: Vec<Outcome>,
    /// Index of the entry.
    pub index: u64,
}

/// Type configuration of openraft. Written by hand: `declare_raft_types!` cannot set the responder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

pub type LeaderId = leader_id_adv::LeaderId<u64, u64>;
pub type LogId = openraft::LogId<LeaderId>;
pub type Vote = openraft::Vote<LeaderId>;
pub type Payload = EntryPayload<ProposalBytes, u64, Member>;
pub type Membership = openraft::Membership<u64, Member>;
pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, Member>;

impl RaftTypeConfig for TypeConfig {
    type D = ProposalBytes;
    type R = Reply;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// A log entry that keeps its encoded bytes once they exist: encoded by the leader, reused for disk, peers, archive.
#[derive(Clone)]
pub struct Entry {
    log_id: LogId,
    payload: Payload,
    encoded: Option<Bytes>,
}

impl Entry {
    /// The payload.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Encoded form, made now if it does not exist yet.
    pub fn into_stored(self) -> StoredEntry {
        let position = position_of(&self.log_id);
        let bytes = self.encoded.unwrap_or_else(|| {
            let payload = match &self.payload {
                EntryPayload::Blank => wire_log::EntryPayload::Blank,
                EntryPayload::Normal(proposal) => wire_log::EntryPayload::Proposal(proposal.0.clone()),
                EntryPayload::Membership(membership) => wire_log::EntryPayload::Membership(membership_to(membership)),
            };
            wire_log::encode_entry(&wire_log::Entry { id: log_id_to(&self.log_id), payload })
        });
        StoredEntry { position, bytes }
    }

    /// From stored or received bytes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let entry = wire_log::decode_entry(&bytes)?;
        let payload = match entry.payload {
            wire_log::EntryPayload::Blank => EntryPayload::Blank,
            wire_log::EntryPayload::Proposal(bytes) => EntryPayload::Normal(ProposalBytes(bytes)),
            wire_log::EntryPayload::Membership(membership) => EntryPayload::Membership(membership_from(membership)?),
        };
        Ok(Self { log_id: log_id_from(&entry.id), payload, encoded: Some(bytes) })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.log_id, self.payload)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.log_id == other.log_id && self.payload == other.payload
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = LeaderId;
    type Payload = Payload;

    fn new(log_id: LogId, payload: Payload) -> Self {
        Self { log_id, payload, encoded: None }
    }

    fn log_id_parts(&self) -> (&LeaderId, u64) {
        (self.log_id.committed_leader_id(), self.log_id.index())
    }

    fn set_log_id(&mut self, new: LogId) {
        self.log_id = new;
        // The bytes hold the log id.
        self.encoded = None;
    }

    fn get_membership(&self) -> Option<Membership> {
        match &self.payload {
            EntryPayload::Membership(membership) => Some(membership.clone()),
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        }
    }
}

pub fn position_of(id: &LogId) -> LogPosition {
    let leader = id.committed_leader_id();
    LogPosition { term: leader.term, node: leader.node_id, index: id.index() }
}

pub fn log_id_of(position: LogPosition) -> LogId {
    LogId::new(LeaderId::new(position.term, position.node), position.index)
}

pub fn log_id_to(id: &LogId) -> pb::LogId {
    let position = position_of(id);
    pb::LogId { term: position.term, node: position.node, index: position.index }
}

pub fn log_id_from(id: &pb::LogId) -> LogId {
    log_id_of(LogPosition { term: id.term, node: id.node, index: id.index })
}

pub fn vote_to(vote: &Vote) -> pb::Vote {
    let leader = vote.leader_id();
    pb::Vote { term: leader.term, node: leader.node_id, committed: vote.is_committed() }
}

pub fn vote_from(vote: &pb::Vote) -> Vote {
    vote_of(VoteRecord { term: vote.term, node: vote.node, committed: vote.committed })
}

pub fn vote_of(vote: VoteRecord) -> Vote {
    if vote.committed { Vote::new_committed(vote.term, vote.node) } else { Vote::new(vote.term, vote.node) }
}

pub fn vote_record(vote: &Vote) -> VoteRecord {
    let leader = vote.leader_id();
    VoteRecord { term: leader.term, node: leader.node_id, committed: vote.is_committed() }
}

pub fn membership_to(membership: &Membership) -> pb::Membership {
    pb::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|config| pb::VoterConfig { voters: config.iter().copied().collect() })
            .collect(),
        members: membership.nodes().map(|(id, member)| wire_log::member_to(*id, member)).collect(),
    }
}

pub fn membership_from(membership: pb::Membership) -> Result<Membership, DecodeError> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let members: BTreeMap<u64, Member> = membership.members.into_iter().map(wire_log::member_from).collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members).map_err(|error| DecodeError::new("membership", error))
}

pub fn stored_membership_to(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to),
        membership: Some(membership_to(stored.membership())),
    }
}

pub fn stored_membership_from(stored: pb::StoredMembership) -> Result<StoredMembership, DecodeError> {
    let membership = match stored.membership {
        Some(membership) => membership_from(membership)?,
        None => Membership::default(),
    };
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_from), membership))
}

/// Decodes the membership bytes that the state keeps; empty = none.
pub fn stored_membership_decode(bytes: &Bytes) -> Result<StoredMembership, DecodeError> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    stored_membership_from(holdfast_wire::decode("stored membership", bytes.clone())?)
}
