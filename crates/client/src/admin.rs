//! Operators' calls, each to one node.

use std::time::Duration;

use holdfast_model::limits::MESSAGE_BYTES_MAX;
use holdfast_wire::v1;
use holdfast_wire::v1::admin_service_client::AdminServiceClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::builder::lazy_channel;
use crate::error::{Error, never_sent};

/// The admin listener of one node. Nothing is retried: whether an operation may be repeated is the operator's choice.
#[derive(Debug, Clone)]
pub struct AdminClient {
    address: String,
    channel: Channel,
    deadline: Duration,
}

impl AdminClient {
    /// For the admin address of a node, `host:port`. Must be called inside a tokio runtime; connects to nobody yet.
    /// Calls may take 10 s.
    ///
    /// # Errors
    /// `Invalid` when the address is malformed.
    pub fn new(address: &str) -> Result<Self, Error> {
        let channel = lazy_channel(address)?;
        Ok(Self { address: address.to_owned(), channel, deadline: Duration::from_secs(10) })
    }

    /// A clone whose calls may take this long.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The address it was made for.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the node knows; needs no quorum.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn status(&self) -> Result<v1::GetStatusResponse, Error> {
        self.call(v1::GetStatusRequest {}, |mut client, request| async move { client.get_status(request).await }).await
    }

    /// Founds a cluster.
    ///
    /// # Errors
    /// `Precondition` when one of the voters is not fresh.
    pub async fn init_cluster(&self, request: v1::InitClusterRequest) -> Result<v1::InitClusterResponse, Error> {
        self.call(request, |mut client, request| async move { client.init_cluster(request).await }).await
    }

    /// Hands leadership over; 0 = to the best successor. Gives the new leader.
    ///
    /// # Errors
    /// When nobody took it over in time.
    pub async fn transfer_leader(&self, to_node_id: u64) -> Result<u64, Error> {
        let request = v1::TransferLeaderRequest { group_id: 0, to_node_id };
        let call = |mut client: Stub, request| async move { client.transfer_leader(request).await };
        Ok(self.call(request, call).await?.leader_id)
    }

    /// Adds a node, or promotes a learner; gives the operation to poll, and what it will do.
    ///
    /// # Errors
    /// `Precondition` when this node does not lead, or a check refuses; says which, with evidence.
    pub async fn add_node(&self, request: v1::AddNodeRequest) -> Result<v1::AddNodeResponse, Error> {
        self.call(request, |mut client, request| async move { client.add_node(request).await }).await
    }

    /// Takes a node out, after its replacement has joined if one is named; gives the operation to poll.
    ///
    /// # Errors
    /// As [`AdminClient::add_node`]; `NotFound` when there is no such member.
    pub async fn remove_node(&self, request: v1::RemoveNodeRequest) -> Result<v1::RemoveNodeResponse, Error> {
        self.call(request, |mut client, request| async move { client.remove_node(request).await }).await
    }

    /// Moves leadership off the node that is asked and ends its client calls, or resumes them. Gives who leads.
    ///
    /// # Errors
    /// `Precondition` when nobody could take over.
    pub async fn drain_node(&self, request: v1::DrainNodeRequest) -> Result<u64, Error> {
        let call = |mut client: Stub, request| async move { client.drain_node(request).await };
        Ok(self.call(request, call).await?.leader_id)
    }

    /// Starts taking and shipping a snapshot; gives the operation to poll.
    ///
    /// # Errors
    /// When it cannot be started as things are.
    pub async fn create_backup(&self) -> Result<String, Error> {
        let call = |mut client: Stub, request| async move { client.create_backup(request).await };
        Ok(self.call(v1::CreateBackupRequest {}, call).await?.operation_id)
    }

    /// Brings payloads that a restore held back.
    ///
    /// # Errors
    /// When they did not come into the log in time; the same call may be made again.
    pub async fn fill_payloads(&self, request: v1::FillPayloadsRequest) -> Result<(), Error> {
        let call = |mut client: Stub, request| async move { client.fill_payloads(request).await };
        self.call(request, call).await.map(drop)
    }

    /// Encrypts what is shipped offsite from here on, with a new generation of keys.
    ///
    /// # Errors
    /// `Precondition` when the node lacks the secret, the recipients are too few, or there are keys already.
    pub async fn create_archive_keys(
        &self,
        request: v1::CreateArchiveKeysRequest,
    ) -> Result<v1::CreateArchiveKeysResponse, Error> {
        self.call(request, |mut client, request| async move { client.create_archive_keys(request).await }).await
    }

    /// The keys of what is shipped offsite.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn archive_keys(&self) -> Result<v1::GetArchiveKeysResponse, Error> {
        let call = |mut client: Stub, request| async move { client.get_archive_keys(request).await };
        self.call(v1::GetArchiveKeysRequest {}, call).await
    }

    /// State of an operation.
    ///
    /// # Errors
    /// `NotFound` when there is no such operation.
    pub async fn operation(&self, operation_id: &str) -> Result<v1::GetAdminOperationResponse, Error> {
        let request = v1::GetAdminOperationRequest { operation_id: operation_id.to_owned() };
        self.call(request, |mut client, request| async move { client.get_admin_operation(request).await }).await
    }

    /// Has the cluster lay down what a verifier found of a copy.
    ///
    /// # Errors
    /// `Invalid` when it is no verification of this cluster's archive, or the destination is none; `Precondition` when the
    /// destination fails.
    pub async fn record_verification(&self, request: v1::RecordVerificationRequest) -> Result<(), Error> {
        let call = |mut client: Stub, request| async move { client.record_verification(request).await };
        self.call(request, call).await.map(drop)
    }

    /// Compares the states of all members at one index, row by row; ends when all of them have read theirs.
    ///
    /// # Errors
    /// `Unavailable` when the deadline is too short for that.
    pub async fn compare_integrity(&self) -> Result<v1::CompareIntegrityResponse, Error> {
        let call = |mut client: Stub, request| async move { client.compare_integrity(request).await };
        self.call(v1::CompareIntegrityRequest {}, call).await
    }

    async fn call<Q, A, F, Fut>(&self, request: Q, call: F) -> Result<A, Error>
    where
        F: FnOnce(Stub, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(request);
        request.set_timeout(self.deadline);
        let client = AdminServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        match tokio::time::timeout(self.deadline, call(client, request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.name_node(Error::of(&status), never_sent(&status))),
            Err(_) => {
                let message = format!("{}: no answer within {} ms", self.address, self.deadline.as_millis());
                Err(Error::unavailable(message))
            }
        }
    }

    fn name_node(&self, error: Error, never_sent: bool) -> Error {
        match error {
            Error::Unavailable { reason, message } if never_sent || reason.is_empty() => {
                Error::Unavailable { reason, message: format!("{}: {message}", self.address) }
            }
            other => other,
        }
    }
}

type Stub = AdminServiceClient<Channel>;
