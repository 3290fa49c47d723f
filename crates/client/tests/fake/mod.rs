//! Nodes that answer over real sockets what a test wrote down for them, and remember what they were asked.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_client::v1;
use holdfast_client::v1::admin_service_server::{AdminService, AdminServiceServer};
use holdfast_client::v1::record_service_server::{RecordService, RecordServiceServer};
use holdfast_client::v1::sync_service_server::{SyncService, SyncServiceServer};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// One answer.
#[derive(Debug, Clone)]
pub enum Say<A> {
    Yes(A),
    No(Status),
    /// After a while.
    Late(Duration, A),
    Never,
}

/// One call that arrived.
#[derive(Debug, Clone)]
pub struct Call<Q> {
    pub request: Q,
    pub at: Instant,
    /// What the client gave it, of `grpc-timeout`.
    pub timeout: Option<Duration>,
}

/// The calls of one method, and what is answered to them in turn. The last answer is given for ever.
pub struct Method<Q, A> {
    calls: Mutex<Vec<Call<Q>>>,
    answers: Mutex<VecDeque<Say<A>>>,
}

impl<Q, A> Default for Method<Q, A> {
    fn default() -> Self {
        Self { calls: Mutex::default(), answers: Mutex::default() }
    }
}

impl<Q: Clone, A: Clone> Method<Q, A> {
    pub fn will(&self, answers: impl IntoIterator<Item = Say<A>>) {
        *self.answers.lock().unwrap() = answers.into_iter().collect();
    }

    pub fn calls(&self) -> Vec<Call<Q>> {
        self.calls.lock().unwrap().clone()
    }

    fn next(&self) -> Option<Say<A>> {
        let mut answers = self.answers.lock().unwrap();
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
    }

    async fn answer(&self, request: Request<Q>) -> Result<Response<A>, Status> {
        let timeout = request.metadata().get("grpc-timeout").map(|text| timeout(text.to_str().unwrap()));
        self.calls.lock().unwrap().push(Call { request: request.into_inner(), at: Instant::now(), timeout });
        match self.next() {
            Some(Say::Yes(answer)) => Ok(Response::new(answer)),
            Some(Say::No(status)) => Err(status),
            Some(Say::Late(after, answer)) => {
                tokio::time::sleep(after).await;
                Ok(Response::new(answer))
            }
            Some(Say::Never) => std::future::pending().await,
            None => Err(Status::failed_precondition("the test has no answer for this call")),
        }
    }
}

fn timeout(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let number = number.parse().unwrap();
    match unit {
        "n" => Duration::from_nanos(number),
        "u" => Duration::from_micros(number),
        "m" => Duration::from_millis(number),
        "S" => Duration::from_secs(number),
        other => panic!("a timeout in {other}"),
    }
}

/// A node. It stops when it is dropped.
pub struct Node {
    pub address: String,
    pub said: Arc<Methods>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
pub struct Methods {
    pub write: Method<v1::BatchWriteRequest, v1::BatchWriteResponse>,
    pub read: Method<v1::BatchGetRecordsRequest, v1::BatchGetRecordsResponse>,
    pub list: Method<v1::ListRecordsRequest, v1::ListRecordsResponse>,
    pub changes: Method<v1::GetChangesRequest, v1::GetChangesResponse>,
    pub status: Method<v1::GetStatusRequest, v1::GetStatusResponse>,
    pub transfer: Method<v1::TransferLeaderRequest, v1::TransferLeaderResponse>,
}

impl Node {
    pub fn start() -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap().to_string();
        let said = Arc::new(Methods::default());
        let limit = holdfast_model::limits::MESSAGE_BYTES_MAX;
        let records = RecordServiceServer::from_arc(said.clone());
        let sync = SyncServiceServer::from_arc(said.clone());
        let server = Server::builder()
            .add_service(records.max_decoding_message_size(limit))
            .add_service(sync)
            .add_service(AdminServiceServer::from_arc(said.clone()))
            .serve_with_incoming(incoming);
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { address, said, server }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Answer<'a, A> = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send + 'a>>;
type Empty<A> = tonic::codegen::tokio_stream::Empty<Result<A, Status>>;

macro_rules! answered {
    ($($name:ident $field:ident $request:ident $response:ident;)*) => {$(
        fn $name<'a, 't>(&'a self, request: Request<v1::$request>) -> Answer<'t, v1::$response>
        where
            'a: 't,
            Self: 't,
        {
            Box::pin(self.$field.answer(request))
        }
    )*};
}

macro_rules! not_needed {
    ($($name:ident $request:ty, $response:ty;)*) => {$(
        fn $name<'a, 't>(&'a self, _: Request<$request>) -> Answer<'t, $response>
        where
            'a: 't,
            Self: 't,
        {
            Box::pin(async { Err(Status::unimplemented("not needed by these tests")) })
        }
    )*};
}

impl RecordService for Methods {
    answered! {
        batch_write write BatchWriteRequest BatchWriteResponse;
        batch_get_records read BatchGetRecordsRequest BatchGetRecordsResponse;
        list_records list ListRecordsRequest ListRecordsResponse;
    }
    not_needed! {
        list_record_history v1::ListRecordHistoryRequest, v1::ListRecordHistoryResponse;
    }
}

impl SyncService for Methods {
    type GetManifestStream = Empty<v1::GetManifestResponse>;
    type WatchStream = Empty<v1::WatchResponse>;
    answered! {
        get_changes changes GetChangesRequest GetChangesResponse;
    }
    not_needed! {
        get_manifest v1::GetManifestRequest, Self::GetManifestStream;
        watch Streaming<v1::WatchRequest>, Self::WatchStream;
        ack_cursor v1::AckCursorRequest, v1::AckCursorResponse;
        list_devices v1::ListDevicesRequest, v1::ListDevicesResponse;
        drop_device v1::DropDeviceRequest, v1::DropDeviceResponse;
    }
}

impl AdminService for Methods {
    answered! {
        get_status status GetStatusRequest GetStatusResponse;
        transfer_leader transfer TransferLeaderRequest TransferLeaderResponse;
    }
    not_needed! {
        init_cluster v1::InitClusterRequest, v1::InitClusterResponse;
        add_node v1::AddNodeRequest, v1::AddNodeResponse;
        remove_node v1::RemoveNodeRequest, v1::RemoveNodeResponse;
        drain_node v1::DrainNodeRequest, v1::DrainNodeResponse;
        create_backup v1::CreateBackupRequest, v1::CreateBackupResponse;
        get_admin_operation v1::GetAdminOperationRequest, v1::GetAdminOperationResponse;
    }
}
