//! `AdminService`, on its own listener.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::command::{Command, Genesis};
use holdfast_model::id::{Incarnation, NodeId};
use holdfast_model::limits;
use holdfast_model::outcome::Outcome;
use holdfast_replica::{Member, MembershipError, ProposeError};
use holdfast_survey::CheckId;
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use holdfast_wire::v1::admin_service_server::AdminService;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

use crate::grpc::status::hex;
use crate::grpc::{Shared, storage, unproposed};
use crate::operations::Job;

/// How long founding may take: an election and one entry.
const FOUND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a planned transfer may take.
pub(super) const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);

/// Operators' calls.
pub struct Admin {
    pub(super) shared: Arc<Shared>,
    /// Held while a change of members is judged and written down.
    pub(super) changing: Mutex<()>,
}

fn random_u64() -> Result<u64, Refusal> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Refusal::Internal(format!("no randomness: {error}")))?;
    Ok(u64::from_be_bytes(bytes).max(1))
}

impl Admin {
    /// Over this node.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, changing: Mutex::default() }
    }

    async fn init(&self, request: v1::InitClusterRequest) -> Result<v1::InitClusterResponse, Refusal> {
        let shared = &self.shared;
        let name = &request.cluster_name;
        if name.is_empty() || name.len() > limits::CLUSTER_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(Refusal::field("cluster_name", "must be 1 to 64 bytes without control characters"));
        }
        if request.group_count > 1 {
            return Err(Refusal::Unsupported("more than one group"));
        }
        let members = members_of(request.voters)?;
        if !members.contains_key(&shared.config.node_id) {
            return Err(Refusal::field("voters", format!("must include this node ({})", shared.config.node_id)));
        }
        if let Some(history) = &shared.replica.sys().history {
            return Err(Refusal::Precondition {
                reason: "ALREADY_FOUNDED",
                message: format!(
                    "this node belongs to cluster {:?} already; use an empty data directory",
                    history.cluster_name
                ),
            });
        }
        let notes = self.check_placement(&members)?;
        let members = self.identified(members).await?;
        let ids: Vec<NodeId> = members.keys().map(|id| NodeId(*id)).collect();
        shared.replica.initialize(members).await.map_err(refused)?;
        let mut cluster_id = [0; 16];
        cluster_id[..8].copy_from_slice(&random_u64()?.to_be_bytes());
        cluster_id[8..].copy_from_slice(&random_u64()?.to_be_bytes());
        let genesis = Genesis {
            cluster_id,
            cluster_name: name.clone(),
            incarnation: Incarnation(random_u64()?),
            epoch: 1,
            parent: None,
            members: ids,
            restoring: Vec::new(),
        };
        let founded = self.found(genesis).await?;
        Ok(v1::InitClusterResponse { notes, ..founded })
    }

    /// Refuses voters of which a majority stands in one domain of a configured key; says what else they share.
    fn check_placement(&self, voters: &BTreeMap<u64, Member>) -> Result<Vec<String>, Refusal> {
        let voters: BTreeMap<u64, BTreeMap<String, String>> =
            voters.iter().map(|(id, member)| (*id, member.labels.clone())).collect();
        let configured: Vec<&str> = self.shared.config.placement_keys.iter().map(String::as_str).collect();
        let violations = holdfast_survey::placement(configured.iter().copied(), &voters);
        if !violations.is_empty() {
            return Err(Refusal::Precondition {
                reason: CheckId::QuorumOneDomain.as_str(),
                message: format!(
                    "{}; spread the voters, correct their labels, or take the key out of placement.keys",
                    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                ),
            });
        }
        let carried: BTreeSet<&str> = voters.values().flat_map(|labels| labels.keys()).map(String::as_str).collect();
        let carried = carried.into_iter().filter(|key| !matches!(*key, "firmware" | "custody"));
        Ok(holdfast_survey::placement(carried, &voters).iter().map(ToString::to_string).collect())
    }

    /// The group has this node's lifetimes and quotas before anyone is told that it is founded. Where the leader's
    /// configuration says otherwise, that one sets them right.
    async fn set_policy(&self, deadline: Instant) {
        let policy = self.shared.config.policy;
        if self.shared.replica.sys().policy == policy {
            return;
        }
        if let Err(refusal) = self.shared.propose_first(Command::SetPolicy(policy), 1, deadline).await {
            tracing::warn!(event = "policy.set_failed", reason = refusal.reason(), "the leader sets it later");
        }
    }

    /// Proposes the genesis until it, or one of a concurrent founder, is applied here.
    async fn found(&self, genesis: Genesis) -> Result<v1::InitClusterResponse, Refusal> {
        let replica = &self.shared.replica;
        let deadline = Instant::now() + FOUND_TIMEOUT;
        loop {
            if let Some(history) = &replica.sys().history {
                return Ok(v1::InitClusterResponse {
                    cluster_id: hex(&history.cluster_id),
                    incarnation: history.incarnation.0,
                    notes: Vec::new(),
                });
            }
            if Instant::now() >= deadline {
                return Err(Refusal::Precondition {
                    reason: "NO_QUORUM",
                    message: "the voters did not elect a leader in time; check that all of them run and reach each \
                              other's peer addresses, then run init again"
                        .into(),
                });
            }
            let admitted = replica.admission().admit_first(1);
            let attempt = (Instant::now() + Duration::from_secs(3)).min(deadline);
            match replica.propose(Command::Genesis(genesis.clone()), admitted, attempt).await {
                Ok(applied) => {
                    // Another founder's genesis rejects this one; either way a history is on its way here.
                    debug_assert!(matches!(applied.outcome, Outcome::Done | Outcome::Rejected(_)));
                    let wait = replica.wait_applied(applied.index, deadline).await;
                    if wait.is_err() {
                        return Err(Refusal::ReplicaBehind);
                    }
                    self.set_policy(deadline).await;
                }
                Err(ProposeError::Overloaded(error)) => return Err(Refusal::Overloaded(error.retry_after)),
                Err(error @ (ProposeError::DiskFull(_) | ProposeError::OutboxFull(_))) => {
                    return Err(unproposed(error));
                }
                Err(ProposeError::NoLeader | ProposeError::Unknown { .. }) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn backup(&self) -> Result<v1::CreateBackupResponse, Refusal> {
        let shared = &self.shared;
        shared.check_serving()?;
        let integrity = shared.replica.integrity_status();
        if let Some(reason) = integrity.damage.or(integrity.doubt) {
            return Err(Refusal::Precondition {
                reason: CheckId::Diverged.as_str(),
                message: format!(
                    "no snapshot is taken of a state that may be wrong: {reason}; see `holdfast cluster health`"
                ),
            });
        }
        if let Some(restoring) = &shared.replica.sys().restoring {
            let left: Vec<&str> = restoring.left.iter().map(|stage| stage.name()).collect();
            return Err(Refusal::Precondition {
                reason: "COLLECTION_RESTORING",
                message: format!(
                    "a snapshot without the payloads of {}, which are still being restored, would be no copy; wait for the \
                     end of `holdfast restore run`",
                    left.join(", ")
                ),
            });
        }
        if shared.shipper.destinations().is_empty() {
            return Err(Refusal::Precondition {
                reason: "NO_DESTINATION",
                message: "this node has no offsite destination; add [[offsite]] to its configuration".into(),
            });
        }
        let id = uuid::Uuid::new_v4().to_string();
        let job = Job::new(shared.replica.clone(), id.clone());
        job.stage("accepted", 0, 0).await;
        tokio::spawn(shared.shipper.clone().backup(job, id.clone()));
        Ok(v1::CreateBackupResponse { operation_id: id })
    }

    fn operation(&self, id: &str) -> Result<v1::GetAdminOperationResponse, Refusal> {
        let operation = self.shared.replica.view().operation(id).map_err(storage)?;
        let operation = operation.ok_or_else(|| Refusal::NotFound(format!("operation {id:?}")))?;
        Ok(v1::GetAdminOperationResponse {
            done: operation.done,
            stage: operation.stage,
            done_units: operation.done_units,
            total_units: operation.total_units,
            error_message: operation.error,
        })
    }
}

fn members_of(nodes: Vec<v1::Node>) -> Result<BTreeMap<u64, Member>, Refusal> {
    let mut members = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    if nodes.is_empty() {
        return Err(Refusal::field("voters", "must name at least one node"));
    }
    for (index, node) in nodes.into_iter().enumerate() {
        let field = format!("voters[{index}]");
        let (id, member) = member_of(&field, node)?;
        if !addresses.insert(member.peer_address.clone()) {
            return Err(Refusal::field(format!("{field}.peer_address"), "is named twice"));
        }
        if members.insert(id, member).is_some() {
            return Err(Refusal::field(format!("{field}.node_id"), format!("{id} is named twice")));
        }
    }
    Ok(members)
}

/// A node as operators name it, checked.
pub(super) fn member_of(field: &str, node: v1::Node) -> Result<(u64, Member), Refusal> {
    if node.node_id == 0 {
        return Err(Refusal::field(format!("{field}.node_id"), "must not be 0"));
    }
    for (name, address) in [("peer_address", &node.peer_address), ("client_address", &node.client_address)] {
        if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(Refusal::field(format!("{field}.{name}"), "must be host:port"));
        }
    }
    let member = Member {
        client_address: node.client_address,
        peer_address: node.peer_address,
        admin_address: node.admin_address,
        http_address: node.http_address,
        labels: node.labels.into_iter().collect(),
        identity: node.identity,
    };
    Ok((node.node_id, member))
}

pub(super) fn refused(error: MembershipError) -> Refusal {
    let reason = match &error {
        MembershipError::Refused(_) => "REFUSED",
        MembershipError::NotLeader { .. } => "NOT_LEADER",
        MembershipError::TransferTimeout { .. } => "TRANSFER_TIMEOUT",
        MembershipError::NoSuccessor => "NO_SUCCESSOR",
    };
    Refusal::Precondition { reason, message: error.to_string() }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(self.shared.status()))
    }

    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterResponse>, Status> {
        Ok(Response::new(self.init(request.into_inner()).await?))
    }

    async fn add_node(&self, request: Request<v1::AddNodeRequest>) -> Result<Response<v1::AddNodeResponse>, Status> {
        Ok(Response::new(self.add(request.into_inner()).await?))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        Ok(Response::new(self.remove(request.into_inner()).await?))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        Ok(Response::new(self.drain(request.into_inner()).await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let message = request.into_inner();
        if message.group_id != self.shared.replica.group_id().0 {
            return Err(Refusal::NotFound(format!("group {}", message.group_id)).into());
        }
        let leader_id =
            self.shared.replica.transfer_leader(message.to_node_id, TRANSFER_TIMEOUT).await.map_err(refused)?;
        Ok(Response::new(v1::TransferLeaderResponse { leader_id }))
    }

    async fn create_backup(
        &self,
        _: Request<v1::CreateBackupRequest>,
    ) -> Result<Response<v1::CreateBackupResponse>, Status> {
        Ok(Response::new(self.backup().await?))
    }

    async fn fill_payloads(
        &self,
        request: Request<v1::FillPayloadsRequest>,
    ) -> Result<Response<v1::FillPayloadsResponse>, Status> {
        Ok(Response::new(self.fill(request).await?))
    }

    async fn create_archive_keys(
        &self,
        request: Request<v1::CreateArchiveKeysRequest>,
    ) -> Result<Response<v1::CreateArchiveKeysResponse>, Status> {
        Ok(Response::new(self.create_keys(request.into_inner()).await?))
    }

    async fn get_archive_keys(
        &self,
        _: Request<v1::GetArchiveKeysRequest>,
    ) -> Result<Response<v1::GetArchiveKeysResponse>, Status> {
        Ok(Response::new(self.archive_keys()))
    }

    async fn get_admin_operation(
        &self,
        request: Request<v1::GetAdminOperationRequest>,
    ) -> Result<Response<v1::GetAdminOperationResponse>, Status> {
        Ok(Response::new(self.operation(&request.into_inner().operation_id)?))
    }

    async fn record_verification(
        &self,
        request: Request<v1::RecordVerificationRequest>,
    ) -> Result<Response<v1::RecordVerificationResponse>, Status> {
        self.record(request.into_inner()).await?;
        Ok(Response::new(v1::RecordVerificationResponse {}))
    }

    async fn compare_integrity(
        &self,
        _: Request<v1::CompareIntegrityRequest>,
    ) -> Result<Response<v1::CompareIntegrityResponse>, Status> {
        Ok(Response::new(self.compare_states().await?))
    }
}
