//! The part of etcd's API that is compared, by hand: a few messages (rpc.proto and kv.proto of etcd 3.4), and no field that
//! is not used. No client library stands between: what is measured is the server, and as little else as on the other side.

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// Who answered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Header {
    #[prost(uint64, tag = "2")]
    pub member_id: u64,
    #[prost(uint64, tag = "4")]
    pub raft_term: u64,
}

/// A key, or all from it to `range_end`. Linearizable, as it is by default.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
}

/// What was found.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
}

/// One of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
}

/// Stores a value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// It is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutResponse {}

/// Operations that commit together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TxnRequest {
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<RequestOp>,
}

/// One of them; only puts are used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestOp {
    #[prost(message, optional, tag = "2")]
    pub request_put: Option<PutRequest>,
}

/// They are stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TxnResponse {
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
}

/// Asks a member about itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusRequest {}

/// What it knows.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    #[prost(uint64, tag = "4")]
    pub leader: u64,
    #[prost(uint64, tag = "7")]
    pub raft_applied_index: u64,
}

/// Hands leadership over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MoveLeaderRequest {
    #[prost(uint64, tag = "1")]
    pub target_id: u64,
}

/// It was.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MoveLeaderResponse {}

/// One unary call.
async fn call<Q, A>(channel: &Channel, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec: ProstCodec<Q, A> = ProstCodec::default();
    let answer = grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?;
    Ok(answer.into_inner())
}

/// Reads.
pub async fn range(channel: &Channel, request: RangeRequest) -> Result<RangeResponse, Status> {
    call(channel, "/etcdserverpb.KV/Range", request).await
}

/// Writes.
pub async fn put(channel: &Channel, request: PutRequest) -> Result<PutResponse, Status> {
    call(channel, "/etcdserverpb.KV/Put", request).await
}

/// Writes several.
pub async fn txn(channel: &Channel, request: TxnRequest) -> Result<TxnResponse, Status> {
    call(channel, "/etcdserverpb.KV/Txn", request).await
}

/// Asks how a member does.
pub async fn status(channel: &Channel) -> Result<StatusResponse, Status> {
    call(channel, "/etcdserverpb.Maintenance/Status", StatusRequest {}).await
}

/// Has a leader hand over.
pub async fn move_leader(channel: &Channel, target_id: u64) -> Result<MoveLeaderResponse, Status> {
    call(channel, "/etcdserverpb.Maintenance/MoveLeader", MoveLeaderRequest { target_id }).await
}
