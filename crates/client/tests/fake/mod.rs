//! Nodes that answer over real sockets what a test wrote down for them, and remember what they were asked.

#![allow(dead_code, unused_imports, reason = "each test binary needs its part of the node")]

mod streams;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_client::v1;
use holdfast_client::v1::admin_service_server::{AdminService, AdminServiceServer};
use holdfast_client::v1::record_service_server::{RecordService, RecordServiceServer};
use holdfast_client::v1::sync_service_server::{SyncService, SyncServiceServer};
use holdfast_client::v1::user_service_server::{UserService, UserServiceServer};
pub use streams::{Step, WatchStream, Watches, until};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// One answer.
#[derive(Debug, Clone)]
pub enum Say<A> {
    Yes(A),
    No(Status),
    /// On a stream: it ends so, without a word about this.
    Break(Status),
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
    handler: Mutex<Option<Handler<Q, A>>>,
}

type Handler<Q, A> = Box<dyn FnMut(&Q) -> Say<A> + Send>;

impl<Q, A> Default for Method<Q, A> {
    fn default() -> Self {
        Self { calls: Mutex::default(), answers: Mutex::default(), handler: Mutex::default() }
    }
}

impl<Q: Clone, A: Clone> Method<Q, A> {
    pub fn will(&self, answers: impl IntoIterator<Item = Say<A>>) {
        *self.answers.lock().unwrap() = answers.into_iter().collect();
    }

    /// Answers by looking at the request, instead of what was written down.
    pub fn by(&self, handler: impl FnMut(&Q) -> Say<A> + Send + 'static) {
        *self.handler.lock().unwrap() = Some(Box::new(handler));
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
        self.say(request.into_inner(), timeout).await
    }

    async fn say(&self, request: Q, timeout: Option<Duration>) -> Result<Response<A>, Status> {
        let said = self.handler.lock().unwrap().as_mut().map(|handler| handler(&request));
        self.calls.lock().unwrap().push(Call { request, at: Instant::now(), timeout });
        match said.or_else(|| self.next()) {
            Some(Say::Yes(answer)) => Ok(Response::new(answer)),
            Some(Say::No(status)) => Err(status),
            Some(Say::Break(mut status)) => {
                status.metadata_mut().insert("break", "yes".parse().unwrap());
                Err(status)
            }
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
    pub write: Arc<Method<v1::BatchWriteRequest, v1::BatchWriteResponse>>,
    /// Streams of writes that were opened.
    pub write_streams: std::sync::atomic::AtomicUsize,
    pub read: Method<v1::BatchGetRecordsRequest, v1::BatchGetRecordsResponse>,
    pub list: Method<v1::ListRecordsRequest, v1::ListRecordsResponse>,
    pub changes: Method<v1::GetChangesRequest, v1::GetChangesResponse>,
    pub ack: Method<v1::AckCursorRequest, v1::AckCursorResponse>,
    pub devices: Method<v1::ListDevicesRequest, v1::ListDevicesResponse>,
    pub dropped: Method<v1::DropDeviceRequest, v1::DropDeviceResponse>,
    pub user: Method<v1::GetUserRequest, v1::GetUserResponse>,
    pub manifest: Method<v1::GetManifestRequest, Vec<Step>>,
    pub watch: Watches,
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
            .add_service(UserServiceServer::from_arc(said.clone()))
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
    type StreamWriteStream = streams::Replies<v1::StreamWriteResponse>;

    fn stream_write<'a, 't>(
        &'a self,
        request: Request<Streaming<v1::StreamWriteRequest>>,
    ) -> Answer<'t, Self::StreamWriteStream>
    where
        'a: 't,
        Self: 't,
    {
        self.write_streams.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let write = self.write.clone();
        Box::pin(async { Ok(Response::new(streams::writes(write, request.into_inner()))) })
    }

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
    type GetManifestStream = streams::Replies<v1::GetManifestResponse>;
    type WatchStream = streams::Replies<v1::WatchResponse>;
    answered! {
        get_changes changes GetChangesRequest GetChangesResponse;
        ack_cursor ack AckCursorRequest AckCursorResponse;
        list_devices devices ListDevicesRequest ListDevicesResponse;
        drop_device dropped DropDeviceRequest DropDeviceResponse;
    }

    fn get_manifest<'a, 't>(&'a self, request: Request<v1::GetManifestRequest>) -> Answer<'t, Self::GetManifestStream>
    where
        'a: 't,
        Self: 't,
    {
        Box::pin(async { Ok(Response::new(streams::steps(self.manifest.answer(request).await?.into_inner()))) })
    }

    fn watch<'a, 't>(&'a self, request: Request<Streaming<v1::WatchRequest>>) -> Answer<'t, Self::WatchStream>
    where
        'a: 't,
        Self: 't,
    {
        Box::pin(async { Ok(Response::new(self.watch.open(request.into_inner())?)) })
    }
}

impl UserService for Methods {
    type ExportUserStream = streams::Replies<v1::ExportUserResponse>;
    answered! {
        get_user user GetUserRequest GetUserResponse;
    }
    not_needed! {
        export_user v1::ExportUserRequest, Self::ExportUserStream;
        erase_user v1::EraseUserRequest, v1::EraseUserResponse;
        get_operation v1::GetOperationRequest, v1::GetOperationResponse;
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
        fill_payloads v1::FillPayloadsRequest, v1::FillPayloadsResponse;
        create_archive_keys v1::CreateArchiveKeysRequest, v1::CreateArchiveKeysResponse;
        get_archive_keys v1::GetArchiveKeysRequest, v1::GetArchiveKeysResponse;
        get_admin_operation v1::GetAdminOperationRequest, v1::GetAdminOperationResponse;
        compare_integrity v1::CompareIntegrityRequest, v1::CompareIntegrityResponse;
        record_verification v1::RecordVerificationRequest, v1::RecordVerificationResponse;
    }
}
