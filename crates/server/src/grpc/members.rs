//! `AddNode`, `RemoveNode`, `DrainNode`: judged here, carried out by `crate::members`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use holdfast_model::command::{Command, MemberChange, NewMember, Operation};
use holdfast_model::id::NodeId;
use holdfast_replica::{Member, Replica, ReplicaStatus};
use holdfast_store::StoreError;
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use tokio::time::Instant;

use super::admin::{Admin, TRANSFER_TIMEOUT, member_of, refused};
use crate::facts::Answers;
use crate::grpc::{blocking, storage};
use crate::members::{judge, open, peer_addresses, retired, steps};

fn refuse(reason: &'static str, message: String) -> Refusal {
    Refusal::Precondition { reason, message }
}

/// What was asked for, judged.
struct Judged {
    change: MemberChange,
    steps: Vec<String>,
}

impl Admin {
    /// Adds a node, or promotes a learner.
    pub(super) async fn add(&self, request: v1::AddNodeRequest) -> Result<v1::AddNodeResponse, Refusal> {
        let _one_at_a_time = self.changing.lock().await;
        let status = self.leading()?;
        self.none_open().await?;
        let node = request.node.ok_or_else(|| Refusal::field("node", "is missing"))?;
        let add = match status.members.get(&node.node_id) {
            Some(_) if status.voters.contains(&node.node_id) => {
                return Err(refuse("NODE_ID_USED", format!("node {} is a voter already", node.node_id)));
            }
            Some(_) if request.keep_learner => {
                return Err(refuse("NODE_ID_USED", format!("node {} is a learner already", node.node_id)));
            }
            Some(member) => NewMember { id: NodeId(node.node_id), member: member.clone() },
            None => self.newcomer("node", node, &status, None).await?,
        };
        let change = MemberChange { add: Some(add), keep_learner: request.keep_learner, remove: None };
        let judged = self.judged(change, false, &status)?;
        let steps = judged.steps.clone();
        let operation_id = if request.dry_run { String::new() } else { self.begin(judged).await? };
        Ok(v1::AddNodeResponse { operation_id, steps })
    }

    /// Takes a node out, after its replacement has joined if there is one.
    pub(super) async fn remove(&self, request: v1::RemoveNodeRequest) -> Result<v1::RemoveNodeResponse, Refusal> {
        let _one_at_a_time = self.changing.lock().await;
        let status = self.leading()?;
        let id = request.node_id;
        let unfinished = self.jobs(open).await?;
        let unfinished = unfinished.filter(|(_, change)| change.add.as_ref().is_some_and(|add| add.id.0 == id));
        if unfinished.is_none() {
            self.none_open().await?;
        }
        if unfinished.is_none() && !status.members.contains_key(&id) {
            return Err(Refusal::NotFound(format!("node {id} among the members")));
        }
        let name = self.cluster_name();
        if !request.dry_run && request.confirm_cluster_name != name {
            return Err(refuse("NOT_CONFIRMED", format!("confirm with the cluster's name: --confirm {name}")));
        }
        let add = match request.replacement {
            None => None,
            Some(node) if status.members.contains_key(&node.node_id) => {
                return Err(refuse("NODE_ID_USED", format!("node {} is a member already", node.node_id)));
            }
            Some(node) => Some(self.newcomer("replacement", node, &status, Some(id)).await?),
        };
        let keep_learner = add.is_some() && !status.voters.contains(&id);
        let change = MemberChange { add, keep_learner, remove: Some(NodeId(id)) };
        let judged = self.judged(change, request.accept_fewer_voters, &status)?;
        let steps = judged.steps.clone();
        if request.dry_run {
            return Ok(v1::RemoveNodeResponse { operation_id: String::new(), steps });
        }
        if let Some((operation, _)) = unfinished {
            let error = format!("given up: node {id} is taken out instead");
            self.write(Operation { done: true, stage: "failed".into(), error, ..operation }).await?;
        }
        Ok(v1::RemoveNodeResponse { operation_id: self.begin(judged).await?, steps })
    }

    /// Moves leadership off this node and takes no client calls, or takes them again.
    pub(super) async fn drain(&self, request: v1::DrainNodeRequest) -> Result<v1::DrainNodeResponse, Refusal> {
        let shared = &self.shared;
        let own = shared.config.node_id;
        if request.node_id != own {
            return Err(Refusal::field("node_id", format!("this is node {own}; ask node {} itself", request.node_id)));
        }
        let status = shared.replica.status();
        if !request.resume && status.voters == [own] {
            return Err(refuse("NO_QUORUM_LEFT", "this is the only voter: nobody could take its calls".into()));
        }
        if request.dry_run {
            return Ok(v1::DrainNodeResponse { leader_id: status.leader_id });
        }
        shared.replica.set_drained(!request.resume);
        if !request.resume && shared.replica.is_leader() {
            // Calls are taken until another node leads: no caller is sent to where nobody answers.
            if let Err(error) = shared.replica.transfer_leader(0, TRANSFER_TIMEOUT).await {
                shared.replica.set_drained(false);
                return Err(refused(error));
            }
        }
        shared.draining.store(!request.resume, Ordering::Release);
        shared.feed.wake_all();
        tracing::info!(event = "node.drained", drained = !request.resume, "an operator asked for it");
        Ok(v1::DrainNodeResponse { leader_id: shared.replica.leader_hint().unwrap_or(0) })
    }

    fn cluster_name(&self) -> String {
        self.shared.replica.sys().history.as_ref().map(|history| history.cluster_name.clone()).unwrap_or_default()
    }

    /// Only the leader knows who takes part.
    fn leading(&self) -> Result<ReplicaStatus, Refusal> {
        let status = self.shared.replica.status();
        if !self.shared.replica.is_opened(&self.shared.replica.sys()) {
            return Err(Refusal::NotFounded);
        }
        if !status.is_leader {
            let message = match status.leader_id {
                0 => "no node leads; see `holdfast cluster status`".to_owned(),
                leader => format!("this node does not lead; ask node {leader}"),
            };
            return Err(refuse("NOT_LEADER", message));
        }
        Ok(status)
    }

    /// Reads the jobs off the workers that serve calls.
    async fn jobs<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Replica) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let replica = self.shared.replica.clone();
        blocking(move || read(&replica).map_err(storage)).await
    }

    async fn none_open(&self) -> Result<(), Refusal> {
        match self.jobs(open).await? {
            None => Ok(()),
            Some((operation, _)) => Err(refuse(
                "OPERATION_IN_PROGRESS",
                format!("another change of members is under way: {} ({})", operation.stage, operation.id),
            )),
        }
    }

    /// Checks a node that is to join: its id is new, nobody else has its address, and it answers there, empty.
    async fn newcomer(
        &self,
        field: &str,
        node: v1::Node,
        status: &ReplicaStatus,
        replaces: Option<u64>,
    ) -> Result<NewMember, Refusal> {
        let (id, member) = member_of(field, node)?;
        if self.jobs(retired).await?.contains(&id) {
            let message = format!("node id {id} was taken out before; give the new node an id that was never used");
            return Err(refuse("NODE_ID_USED", message));
        }
        let holder = peer_addresses(status).get(member.peer_address.as_str()).copied();
        if let Some(holder) = holder.filter(|holder| Some(*holder) != replaces) {
            return Err(Refusal::field(format!("{field}.peer_address"), format!("is that of node {holder}")));
        }
        let probe = self.shared.replica.probe(id, &member).await;
        let probe = probe.map_err(|reason| {
            refuse("NODE_UNREACHABLE", format!("node {id} does not answer its peer address: {reason}; is it running?"))
        })?;
        if probe.node_id != id {
            let message = format!("{} is node {}, not node {id}", member.peer_address, probe.node_id);
            return Err(Refusal::field(format!("{field}.node_id"), message));
        }
        if !member.identity.is_empty() && member.identity != probe.identity {
            let message = format!("{} has another data directory than was named", member.peer_address);
            return Err(refuse("NODE_NOT_FRESH", message));
        }
        if !probe.fresh || probe.cluster_id.is_some() {
            let message = format!("node {id} holds data already; start it on an empty directory");
            return Err(refuse("NODE_NOT_FRESH", message));
        }
        Ok(NewMember { id: NodeId(id), member: Member { identity: probe.identity, ..member } })
    }

    fn judged(&self, change: MemberChange, fewer: bool, status: &ReplicaStatus) -> Result<Judged, Refusal> {
        let statuses = [self.shared.status()];
        let answers = Answers { statuses: &statuses, asked_all: false };
        judge(&change, fewer, status, self.shared.config.node_id, &answers.facts(), &answers.limits())?;
        Ok(Judged { steps: steps(&change, status), change })
    }

    /// Writes the change into the log; from then on whoever leads carries it out.
    async fn begin(&self, judged: Judged) -> Result<String, Refusal> {
        let id = uuid::Uuid::new_v4().to_string();
        let stage = "accepted".to_owned();
        let member_change = Some(Box::new(judged.change));
        self.write(Operation { id: id.clone(), stage, member_change, ..Operation::default() }).await?;
        Ok(id)
    }

    async fn write(&self, operation: Operation) -> Result<(), Refusal> {
        let deadline = Instant::now() + self.shared.default_deadline();
        self.shared.propose_first(Command::SetOperation(operation), 1024, deadline).await.map(drop)
    }

    /// Who the founding voters are, as they say themselves.
    pub(super) async fn identified(&self, members: BTreeMap<u64, Member>) -> Result<BTreeMap<u64, Member>, Refusal> {
        let own = self.shared.config.node_id;
        let mut identified = BTreeMap::new();
        for (id, member) in members {
            let identity = if id == own {
                self.shared.replica.identity().to_owned()
            } else {
                let probe = self.shared.replica.probe(id, &member).await;
                let probe = probe.map_err(|reason| {
                    refuse("NODE_UNREACHABLE", format!("node {id} does not answer its peer address: {reason}"))
                })?;
                if probe.node_id != id {
                    let message = format!("{} is node {}, not node {id}", member.peer_address, probe.node_id);
                    return Err(refuse("NODE_ID_USED", message));
                }
                if probe.cluster_id.is_some() {
                    let message = format!("node {id} belongs to another cluster; start it on an empty directory");
                    return Err(refuse("NODE_NOT_FRESH", message));
                }
                probe.identity
            };
            if !member.identity.is_empty() && member.identity != identity {
                let message = format!("node {id} has another data directory than was named");
                return Err(refuse("NODE_NOT_FRESH", message));
            }
            identified.insert(id, Member { identity, ..member });
        }
        Ok(identified)
    }
}
