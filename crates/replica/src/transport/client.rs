//! The calling side: one set of lazy connections per peer, and openraft's network over them.
//!
//! openraft 0.10.0-alpha.37 can wedge an append stream for good (`select_next_payload`, `get_log_id_range`): when one broke
//! and the peer now needs a snapshot, it may take up the old command again; what that asks for is purged, each round sends
//! nothing, and no new command is looked for. So a stream that sends nothing twice in a row after a purged entry ends here.
//!
//! Every call has a deadline; connections have HTTP/2 keepalive, so that a half-open peer is noticed.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use futures::{Stream, StreamExt};
use holdfast_store::LogStore;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::peer_service_client::PeerServiceClient;
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use tokio::sync::Notify;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::clocks::Clocks;
use crate::recoveries::Recoveries;
use crate::rooms::Rooms;
use crate::snapshot::SnapshotDir;
use crate::transfers::Transfers;
use crate::transport::append::append_to;
use crate::transport::{CLUSTER, TO_IDENTITY, TO_NODE};
use crate::types::{
    LeaderId, LogId, Member, TypeConfig, Vote, log_id_from, log_id_of, log_id_to, position_of, vote_from, vote_to,
};

/// Bytes of one snapshot message.
const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;
/// A pipelined stream without an answer for this long is given up.
const STREAM_IDLE: Duration = Duration::from_secs(2);
/// Pause before an append stream that did not open is tried again.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
/// Largest message between nodes: a batch of entries may hold several full write batches.
pub const PEER_MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Client of one peer.
pub type Peer = PeerServiceClient<InterceptedService<Channel, Address>>;

/// Says to whom a call is meant, so that the wrong node refuses it.
#[derive(Clone)]
pub struct Address {
    node: u64,
    identity: Option<MetadataValue<tonic::metadata::Ascii>>,
    cluster: Arc<RwLock<Option<MetadataValue<tonic::metadata::Ascii>>>>,
}

impl Interceptor for Address {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let metadata = request.metadata_mut();
        metadata.insert(TO_NODE, self.node.into());
        if let Some(identity) = &self.identity {
            metadata.insert(TO_IDENTITY, identity.clone());
        }
        if let Ok(cluster) = self.cluster.read()
            && let Some(cluster) = cluster.as_ref()
        {
            metadata.insert(CLUSTER, cluster.clone());
        }
        Ok(request)
    }
}

/// Connections to all members, and how to reach them.
pub struct Peers {
    group: u32,
    cluster: Arc<RwLock<Option<MetadataValue<tonic::metadata::Ascii>>>>,
    members: RwLock<BTreeMap<u64, (Member, Peer)>>,
    /// What peers are filled up from.
    log: OnceLock<LogStore>,
    /// Snapshots that this node sends.
    pub transfers: Transfers,
    /// Peers whose log lost something.
    pub recoveries: Recoveries,
    /// Clocks of the group.
    pub clocks: Clocks,
    /// This node's state is damaged: it is not sent to anyone.
    pub withholds_state: AtomicBool,
    /// Room on the disks of the group.
    pub rooms: Rooms,
}

impl Peers {
    /// No member yet.
    pub fn new(group: u32) -> Self {
        Self {
            group,
            cluster: Arc::default(),
            members: RwLock::default(),
            log: OnceLock::new(),
            transfers: Transfers::default(),
            recoveries: Recoveries::default(),
            clocks: Clocks::default(),
            withholds_state: AtomicBool::new(false),
            rooms: Rooms::default(),
        }
    }

    /// Peers are filled up from this log; said once.
    pub fn fill_up_from(&self, log: LogStore) {
        drop(self.log.set(log));
    }

    /// What follows this entry was purged: a peer that ends there needs a snapshot, and appends cannot help it.
    fn is_purged_after(&self, index: u64) -> bool {
        self.log.get().and_then(LogStore::purged).is_some_and(|purged| index < purged.index)
    }

    /// What this node knew to be committed, by whatever leader, while it led by this vote. Not what a later leader told it: an
    /// append that it still sends as the earlier one would let a follower apply entries that the later one replaced.
    fn committed(&self, vote: &Vote) -> Option<LogId> {
        let log = self.log.get()?;
        // In this order: a later vote is saved before anything is committed by it.
        let committed = log.committed().map(log_id_of);
        let current = log.vote()?;
        let leads = (current.term, current.node) == (vote.leader_id().term, vote.leader_id().node_id);
        committed.filter(|_| leads)
    }

    /// Names the cluster in every call from now on.
    pub fn set_cluster(&self, id: [u8; 16]) {
        let text: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        if let (Ok(mut cluster), Ok(value)) = (self.cluster.write(), text.parse()) {
            *cluster = Some(value);
        }
    }

    /// Takes over the members of a membership.
    pub fn update<'a>(&self, members: impl Iterator<Item = (&'a u64, &'a Member)>) {
        let Ok(mut known) = self.members.write() else { return };
        for (id, member) in members {
            if known.get(id).is_none_or(|(old, _)| old != member) {
                let client = self.connect(*id, member);
                known.insert(*id, (member.clone(), client));
            }
        }
    }

    /// Forgets who is no member any more.
    pub fn retain(&self, is_member: impl Fn(u64) -> bool) {
        let Ok(mut known) = self.members.write() else { return };
        known.retain(|id, _| is_member(*id));
    }

    /// Client for a node that is no member yet: it is asked who it is, not told.
    pub fn stranger(&self, node: u64, member: &Member) -> Peer {
        self.connect(node, &Member { identity: String::new(), ..member.clone() })
    }

    /// Client for forwarded proposals and read indices; `None` for an unknown member.
    pub fn forward_client(&self, node: u64) -> Option<Peer> {
        self.members.read().ok()?.get(&node).map(|(_, client)| client.clone())
    }

    /// Clients of all members.
    pub fn all(&self) -> Vec<(u64, Peer)> {
        let Ok(members) = self.members.read() else { return Vec::new() };
        members.iter().map(|(id, (_, client))| (*id, client.clone())).collect()
    }

    fn connect(&self, node: u64, member: &Member) -> Peer {
        // An address that does not parse gives a connection that always fails, and says so.
        let endpoint = Endpoint::from_shared(format!("http://{}", member.peer_address))
            .unwrap_or_else(|_| Endpoint::from_static("http://invalid.invalid:1"))
            .connect_timeout(Duration::from_millis(500))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20);
        let address = Address {
            node,
            identity: member.identity.parse().ok().filter(|_| !member.identity.is_empty()),
            cluster: self.cluster.clone(),
        };
        PeerServiceClient::with_interceptor(endpoint.connect_lazy(), address)
            .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
    }
}

/// Makes openraft's networks.
#[derive(Clone)]
pub struct Factory {
    peers: Arc<Peers>,
}

impl Factory {
    /// Over these peers.
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }

    fn network(&self, target: u64, member: &Member, pipelined: bool) -> Network {
        self.peers.update(std::iter::once((&target, member)));
        let client = self.peers.connect(target, member);
        Network { client, target, peers: self.peers.clone(), group: self.peers.group, pipelined }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, member: &Member) -> Network {
        self.network(target, member, true)
    }

    // Heartbeats send one item and drain the answer: the unary path, on a connection of its own.
    async fn new_heartbeat_client(&mut self, target: u64, member: &Member) -> Network {
        self.network(target, member, false)
    }

    async fn new_snapshot_client(&mut self, target: u64, member: &Member) -> Network {
        self.network(target, member, false)
    }
}

/// Connection of one purpose to one peer.
pub struct Network {
    client: Peer,
    target: u64,
    peers: Arc<Peers>,
    group: u32,
    pipelined: bool,
}

fn unreachable(status: &tonic::Status) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(status.to_string()))
}

fn broken(reason: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(reason.to_string()))
}

type StreamItem = Result<openraft::raft::StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl Network {
    async fn open_stream<'s, S>(&'s mut self, input: S) -> Result<BoxStream<'s, StreamItem>, RPCError<TypeConfig>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let pending: Arc<Mutex<VecDeque<()>>> = Arc::default();
        let sent = pending.clone();
        let (group, target, peers) = (self.group, self.target, self.peers.clone());
        // One leader opened this stream, and so all that it sends is of its term.
        let term = Arc::new(AtomicU64::new(0));
        let of_stream = term.clone();
        let (log, futile) = (peers.clone(), Arc::new(Notify::new()));
        let found_futile = futile.clone();
        let outbound = input.scan(false, move |before, request| {
            let after = request.prev_log_id.as_ref().map_or(0, |id| id.index());
            of_stream.store(request.vote.leader_id().term, Ordering::Relaxed);
            // Once is a commit that is passed on; twice in a row is a stream that gets nowhere.
            let sends_nothing = request.entries.is_empty() && log.is_purged_after(after);
            let wedged = std::mem::replace(before, sends_nothing) && sends_nothing;
            if wedged {
                found_futile.notify_one();
            } else if let Ok(mut sent) = sent.lock() {
                sent.push_back(());
            }
            std::future::ready((!wedged).then(|| {
                let known = log.committed(&request.vote);
                append_to(group, request, known)
            }))
        });
        let mut inbound =
            self.client.stream_append(outbound).await.map_err(|status| unreachable(&status))?.into_inner();
        let answers = async_stream::stream! {
            loop {
                let answer = tokio::select! {
                    answer = tokio::time::timeout(STREAM_IDLE, inbound.message()) => answer,
                    () = futile.notified() => {
                        yield Err(broken("what the peer lacks was purged: it needs a snapshot"));
                        return;
                    }
                };
                let item = match answer {
                    Ok(item) => item,
                    // Silence is fine while nothing is asked.
                    Err(_) if pending.lock().is_ok_and(|pending| pending.is_empty()) => continue,
                    Err(_) => {
                        yield Err(broken("the peer stopped answering appends"));
                        return;
                    }
                };
                match item {
                    Ok(None) => return,
                    Err(status) => {
                        yield Err(unreachable(&status));
                        return;
                    }
                    Ok(Some(response)) => {
                        if let Ok(mut pending) = pending.lock() {
                            pending.pop_front();
                        }
                        let result = stream_result(&peers, target, term.load(Ordering::Relaxed), response);
                        let ends = !matches!(result, Ok(Ok(_)));
                        yield result;
                        if ends {
                            return;
                        }
                    }
                }
            }
        };
        Ok(Box::pin(answers))
    }
}

#[expect(clippy::result_large_err, reason = "the error is openraft's")]
fn stream_result(peers: &Peers, target: u64, term: u64, response: pb::AppendResponse) -> StreamItem {
    let recovering = response.recovering;
    let expected = peers.recoveries.heard(target, recovering);
    peers.clocks.heard(target, response.clock_ms);
    peers.rooms.heard(target, response.disk);
    match response.result {
        Some(pb::append_response::Result::Conflict(_)) if !expected => {
            Err(broken("the peer lost a part of its log, and openraft does not expect that yet"))
        }
        Some(pb::append_response::Result::Conflict(id))
            if !recovering && !peers.recoveries.lacks(target, term, id.index) =>
        {
            Err(broken("the peer lost a part of its log, and does not know that yet"))
        }
        Some(pb::append_response::Result::Matched(matched)) => {
            if let Some(last) = &matched.last {
                peers.recoveries.acknowledged(target, term, last.index);
            }
            Ok(Ok(matched.last.as_ref().map(log_id_from)))
        }
        Some(pb::append_response::Result::Conflict(id)) => {
            peers.recoveries.goes_back(target);
            Ok(Err(StreamAppendError::Conflict(log_id_from(&id))))
        }
        Some(pb::append_response::Result::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(vote_from(&vote)))),
        None => Err(broken("an append was answered with nothing")),
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotDir;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let last = rpc.entries.last().map(|entry| entry.clone().into_stored().position);
        let last = last.or(rpc.prev_log_id.as_ref().map(position_of));
        let term = rpc.vote.leader_id().term;
        let known = self.peers.committed(&rpc.vote);
        let mut request = tonic::Request::new(append_to(self.group, rpc, known));
        request.set_timeout(option.soft_ttl());
        let response = self.client.append(request).await.map_err(|status| unreachable(&status))?.into_inner();
        match stream_result(&self.peers, self.target, term, response)? {
            Ok(matched) if matched.as_ref().map(position_of) == last => Ok(AppendEntriesResponse::Success),
            Ok(matched) => Ok(AppendEntriesResponse::PartialSuccess(matched)),
            Err(StreamAppendError::Conflict(_)) => Ok(AppendEntriesResponse::Conflict),
            Err(StreamAppendError::HigherVote(vote)) => Ok(AppendEntriesResponse::HigherVote(vote)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, StreamItem>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.pipelined {
            Box::pin(async move {
                let opened =
                    match tokio::time::timeout(option.soft_ttl().max(STREAM_IDLE), self.open_stream(input)).await {
                        Ok(stream) => stream,
                        Err(_) => Err(broken("the peer did not open the append stream in time")),
                    };
                if opened.is_err() {
                    // openraft backs off from errors *on* a stream only; a dead peer would be called without a pause.
                    tokio::time::sleep(REOPEN_PAUSE).await;
                }
                opened
            })
        } else {
            stream_append_sequential(self, input, option)
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.send_vote(rpc, option, false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.send_vote(rpc, option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<LeaderId, u64, Member, SnapshotDir>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let _ = option;
        let peers = self.peers.clone();
        self.refuse_damaged()?;
        let index = snapshot.meta.last_log_id.as_ref().map_or(0, |id| id.index());
        let _under_way = peers.transfers.begin(self.target, index);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => sent.map_err(StreamingError::from),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let from = *req.from_leader();
        let expected = req.last_log_id().copied();
        let mut request = tonic::Request::new(pb::TransferRequest {
            group_id: self.group,
            from: Some(vote_to(&from)),
            to: *req.to_node_id(),
            last_log_id: expected.as_ref().map(log_id_to),
        });
        request.set_timeout(option.soft_ttl());
        let response = self.client.transfer(request).await.map_err(|status| unreachable(&status))?.into_inner();
        Ok(if response.accepted { Ok(()) } else { Err(TransferLeaderError::LogNotFlushed { expected, actual: None }) })
    }
}

impl Network {
    async fn send_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut request = tonic::Request::new(pb::VoteRequest {
            group_id: self.group,
            vote: Some(vote_to(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(log_id_to),
            pre_vote,
            leadership_transfer: rpc.leadership_transfer,
        });
        request.set_timeout(option.soft_ttl());
        let response = self.client.vote(request).await.map_err(|status| unreachable(&status))?.into_inner();
        let vote = response.vote.ok_or_else(|| broken("a vote was answered without a vote"))?;
        Ok(VoteResponse::new(vote_from(&vote), response.last_log_id.as_ref().map(log_id_from), response.granted))
    }

    fn refuse_damaged(&self) -> Result<(), Unreachable<TypeConfig>> {
        let why = "this node's state is damaged or in doubt and is not sent on";
        let withholds = self.peers.withholds_state.load(Ordering::Acquire);
        if withholds { Err(Unreachable::from_string(why)) } else { Ok(()) }
    }

    async fn send_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<LeaderId, u64, Member, SnapshotDir>,
    ) -> Result<SnapshotResponse<TypeConfig>, RPCError<TypeConfig>> {
        let dir = snapshot.snapshot.clone();
        let files = {
            let dir = dir.clone();
            tokio::task::spawn_blocking(move || dir.sound_files().map(<[_]>::to_vec)).await
        };
        let files = files.map_err(broken)?.map_err(broken)?;
        let last_log_id = snapshot.meta.last_log_id.as_ref().map(log_id_to);
        let offer = pb::SnapshotOffer {
            group_id: self.group,
            vote: Some(vote_to(&vote)),
            last_log_id,
            membership: Some(crate::state_machine::membership_message(&snapshot.meta.last_membership)),
            files,
        };
        let needed = self.client.offer_snapshot(offer.clone()).await.map_err(|status| unreachable(&status))?;
        let needed = needed.into_inner().needed;
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        let group = self.group;
        let reader = tokio::task::spawn_blocking(move || {
            for name in needed {
                if !read_chunks::<std::convert::Infallible>(&dir, &name, group, last_log_id, &tx)? {
                    break;
                }
            }
            std::io::Result::Ok(())
        });
        let chunks = tokio_stream::wrappers::ReceiverStream::new(rx).map(|chunk| match chunk {
            Ok(chunk) => chunk,
            Err(never) => match never {},
        });
        let sent = self.client.send_snapshot(chunks).await;
        sent.map_err(|status| unreachable(&status))?;
        reader.await.map_err(broken)?.map_err(broken)?;
        // Damage that was found meanwhile is in what was sent.
        self.refuse_damaged()?;
        let mut commit = tonic::Request::new(pb::SnapshotCommit { offer: Some(offer) });
        commit.set_timeout(Duration::from_secs(120));
        let reply = self.client.commit_snapshot(commit).await.map_err(|status| unreachable(&status))?.into_inner();
        let vote = reply.vote.ok_or_else(|| broken("a snapshot was answered without a vote"))?;
        Ok(SnapshotResponse::new(vote_from(&vote)))
    }
}

/// Sends one file; false when the receiving side went away.
pub fn read_chunks<E>(
    dir: &SnapshotDir,
    name: &str,
    group_id: u32,
    last_log_id: Option<pb::LogId>,
    out: &tokio::sync::mpsc::Sender<Result<pb::SnapshotChunk, E>>,
) -> std::io::Result<bool> {
    let mut file = std::fs::File::open(dir.path().join(name))?;
    let mut offset = 0;
    loop {
        let mut data = vec![0; SNAPSHOT_CHUNK_BYTES];
        let n = file.read(&mut data)?;
        data.truncate(n);
        // An empty file is one empty chunk.
        if n == 0 && offset > 0 {
            return Ok(true);
        }
        let chunk = pb::SnapshotChunk { group_id, last_log_id, name: name.to_owned(), offset, data: data.into() };
        if out.blocking_send(Ok(chunk)).is_err() {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
        offset += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::id::GroupId;
    use holdfast_store::{DataDir, StateStore};
    use openraft::storage::SnapshotMeta;

    use super::*;
    use crate::types::StoredMembership;

    #[tokio::test]
    async fn a_damaged_state_is_sent_to_nobody() {
        let dir = tempfile::tempdir().expect("tempdir");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer_address = listener.local_addr().expect("an address").to_string();
        let peers = Arc::new(Peers::new(0));
        let member = Member { peer_address, ..Member::default() };
        let data = DataDir::open_or_create(&dir.path().join("data"), 1, [7; 16]).expect("a directory");
        let state = StateStore::open(&data, GroupId(0)).expect("a state");
        let send = async |path: &str| {
            let path = dir.path().join(path);
            state.checkpoint(&path).expect("taken");
            let meta = SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() };
            let snapshot = Snapshot { meta, snapshot: SnapshotDir::received(path, Default::default()) };
            let mut network = Factory::new(peers.clone()).new_snapshot_client(2, &member).await;
            let never = std::future::pending();
            network.full_snapshot(Vote::new(1, 1), snapshot, never, RPCOption::new(Duration::from_secs(20))).await
        };
        peers.withholds_state.store(true, Ordering::Release);
        let refused = send("damaged").await.expect_err("it must not be sent");
        assert!(refused.to_string().contains("damaged or in doubt"), "{refused}");
        peers.withholds_state.store(false, Ordering::Release);
        tokio::select! {
            asked = listener.accept() => drop(asked.expect("a connection")),
            ended = send("sound") => panic!("the peer was not asked: {ended:?}"),
        }
    }
}
