//! A cluster under test, as its users reach it: its client addresses, and its operators' addresses if they were given.
//!
//! Invariants:
//! - Single answers of one node come from [`Node`], which retries nothing; [`settled`] repeats a call only while the
//!   server says so (RetryInfo), under the same request.
//! - User ids carry the run, so that runs against one cluster never meet.

use std::sync::Arc;
use std::time::Duration;

use holdfast_client::{AdminClient, Client, Error, SyncOutcome};
use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use v1::record_service_client::RecordServiceClient;
use v1::sync_service_client::SyncServiceClient;
use v1::user_service_client::UserServiceClient;

use crate::failure::Failure;

/// Largest message either way.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// How long a refusal may ask to be retried before it counts as the answer.
pub const RETRY_WITHIN: Duration = Duration::from_secs(20);
const CALL_WITHIN: Duration = Duration::from_secs(5);

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its nodes' client sides.
    pub nodes: Vec<Node>,
    /// Its nodes' operators' addresses; empty = not given.
    pub admins: Vec<String>,
    client: Client,
}

/// One node's client listener.
#[derive(Debug, Clone)]
pub struct Node {
    /// `host:port`.
    pub address: Arc<str>,
    /// Connects when first used, and again whenever it must.
    pub channel: Channel,
}

impl Target {
    /// Connects to nobody yet; must be called inside a runtime.
    ///
    /// # Errors
    /// When an address is malformed.
    pub fn new(endpoints: &[String], admins: &[String]) -> anyhow::Result<Self> {
        let client = Client::builder().endpoints(endpoints.iter().cloned()).deadline(Duration::from_secs(30));
        let nodes = endpoints.iter().map(|address| Node::new(address)).collect::<anyhow::Result<_>>()?;
        Ok(Self { nodes, admins: admins.to_vec(), client: client.build()? })
    }

    /// Finds the leader, retries, keeps the request id.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A client of one node alone.
    ///
    /// # Errors
    /// When its address is malformed.
    pub fn client_of(&self, place: usize) -> Result<Client, Failure> {
        let address = self.nodes[place].address.to_string();
        Ok(Client::builder().endpoints([address]).deadline(Duration::from_secs(20)).build()?)
    }

    /// What every node says of itself, for those that answer.
    ///
    /// # Errors
    /// When an address is malformed.
    pub async fn statuses(&self) -> Result<Vec<(usize, v1::GetStatusResponse)>, Error> {
        let mut found = Vec::new();
        for (place, address) in self.admins.iter().enumerate() {
            let admin = AdminClient::new(address)?.with_deadline(Duration::from_secs(1));
            if let Ok(status) = admin.status().await {
                found.push((place, status));
            }
        }
        Ok(found)
    }
}

impl Node {
    /// Of a client address.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn new(address: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let channel = endpoint.connect_timeout(Duration::from_secs(1)).tcp_nodelay(true).connect_lazy();
        Ok(Self { address: address.into(), channel })
    }

    /// Records.
    pub fn records(&self) -> RecordServiceClient<Channel> {
        RecordServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(2 * MESSAGE_BYTES_MAX)
    }

    /// Change delivery.
    pub fn sync(&self) -> SyncServiceClient<Channel> {
        SyncServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Users.
    pub fn users(&self) -> UserServiceClient<Channel> {
        UserServiceClient::new(self.channel.clone())
    }

    /// One attempt of a write.
    ///
    /// # Errors
    /// What the node said.
    pub async fn write(&self, request: &v1::BatchWriteRequest) -> Result<v1::BatchWriteResponse, Status> {
        self.records().batch_write(timed(request.clone(), CALL_WITHIN)).await.map(Response::into_inner)
    }

    /// One attempt of a point read.
    ///
    /// # Errors
    /// What the node said.
    pub async fn get(&self, request: &v1::BatchGetRecordsRequest) -> Result<v1::BatchGetRecordsResponse, Status> {
        self.records().batch_get_records(timed(request.clone(), CALL_WITHIN)).await.map(Response::into_inner)
    }

    /// One attempt of a listing's page.
    ///
    /// # Errors
    /// What the node said.
    pub async fn list(&self, request: &v1::ListRecordsRequest) -> Result<v1::ListRecordsResponse, Status> {
        self.records().list_records(timed(request.clone(), CALL_WITHIN)).await.map(Response::into_inner)
    }

    /// One attempt of a page of changes.
    ///
    /// # Errors
    /// What the node said.
    pub async fn changes(&self, request: &v1::GetChangesRequest) -> Result<v1::GetChangesResponse, Status> {
        let within = CALL_WITHIN + Duration::from_millis(request.wait_ms.into());
        self.sync().get_changes(timed(request.clone(), within)).await.map(Response::into_inner)
    }

    /// One attempt of a user's facts.
    ///
    /// # Errors
    /// What the node said.
    pub async fn user(&self, request: &v1::GetUserRequest) -> Result<v1::GetUserResponse, Status> {
        self.users().get_user(timed(request.clone(), CALL_WITHIN)).await.map(Response::into_inner)
    }
}

/// A request with a deadline.
pub fn timed<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}

/// The server asks for a retry, or the connection broke before it could say anything.
pub fn may_retry(status: &Status) -> bool {
    let details = details_of(status);
    let unsaid = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    details.retry_after.is_some() || (details.reason.is_empty() && unsaid)
}

/// Repeats a call while the server asks for it, for [`RETRY_WITHIN`] at most; then the last refusal is the answer.
///
/// # Errors
/// The refusal.
pub async fn settled<A, F>(mut call: impl FnMut() -> F) -> Result<A, Status>
where
    F: Future<Output = Result<A, Status>>,
{
    let end = Instant::now() + RETRY_WITHIN;
    loop {
        match call().await {
            Err(status) if may_retry(&status) && Instant::now() < end => {
                let pause = details_of(&status).retry_after.unwrap_or(Duration::from_millis(50));
                tokio::time::sleep(pause.clamp(Duration::from_millis(20), Duration::from_millis(500))).await;
            }
            settled => return settled,
        }
    }
}

/// The page of an outcome.
///
/// # Errors
/// When it is an order to resync.
pub fn page_of(outcome: SyncOutcome) -> Result<v1::ChangesPage, Failure> {
    match outcome {
        SyncOutcome::Page(page) => Ok(page),
        SyncOutcome::Resync(info) => Err(Failure::broken(format!("expected a page of changes, saw {info:?}"))),
    }
}

/// The order to resync of an outcome.
///
/// # Errors
/// When it is a page.
pub fn resync_of(outcome: SyncOutcome) -> Result<v1::ResyncInfo, Failure> {
    match outcome {
        SyncOutcome::Resync(info) => Ok(info),
        SyncOutcome::Page(page) => Err(Failure::broken(format!(
            "expected an order to resync, saw a page of {} records, more = {}",
            page.records.len(),
            page.more
        ))),
    }
}
