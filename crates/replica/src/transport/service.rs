//! The answering side of calls between nodes.
//!
//! A call that means another node, another data directory or another cluster is refused before anything is looked at:
//! a wiped disk under a known id, or a node of another cluster at a reused address, must not take part.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::peer_service_server::{PeerService, PeerServiceServer};
use holdfast_wire::{log as wire_log, peer};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::storage::{Snapshot, SnapshotMeta};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::clocks::wall_clock_ms;
use crate::handle::Replica;
use crate::propose::{ProposeError, weight_of};
use crate::rooms::Weight;
use crate::snapshot::{Incoming, SnapshotDir};
use crate::transport::append::append_from;
use crate::transport::client::{PEER_MESSAGE_BYTES_MAX, read_chunks};
use crate::transport::{CLUSTER, TO_IDENTITY, TO_NODE};
use crate::types::{TypeConfig, log_id_from, log_id_to, position_of, stored_membership_from, vote_from, vote_to};

/// Peer protocol of this build.
pub const PROTOCOL: u32 = 3;

/// Answers peers.
pub struct Service {
    replica: Replica,
}

/// The service, ready to be mounted.
pub fn peer_service(replica: Replica) -> PeerServiceServer<Service> {
    PeerServiceServer::new(Service { replica })
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
}

fn bad(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

fn fatal(error: impl ToString) -> Status {
    Status::unavailable(error.to_string())
}

impl Service {
    /// A snapshot needs room for what is still to be received, and to be opened.
    fn check_room_for_snapshot(&self, bytes: u64) -> Result<(), Status> {
        let disk = self.replica.disk();
        if disk.headroom == 0 || disk.left >= disk.floor + bytes {
            return Ok(());
        }
        let [left, floor, bytes] = [disk.left, disk.floor, bytes].map(|bytes| bytes >> 20);
        let told = format!(
            "the disk of this node has {left} MiB left, and a snapshot needs {bytes} MiB and {floor} MiB that are kept free; it \
             is taken once there is room"
        );
        tracing::warn!(event = "snapshot.no_room", "{told}");
        Err(Status::resource_exhausted(told))
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let refuse = |what: &str| Err(Status::failed_precondition(format!("this is another {what}")));
        let text = |key: &str| request.metadata().get(key).and_then(|value| value.to_str().ok());
        if text(TO_NODE).is_some_and(|to| to != self.replica.node_id().to_string()) {
            return refuse("node");
        }
        // Another cluster's idea of this node id says nothing about this disk.
        if let (Some(theirs), Some(ours)) = (text(CLUSTER), self.replica.cluster_hex())
            && theirs != ours
        {
            return refuse("cluster");
        }
        if text(TO_IDENTITY).is_some_and(|to| to != self.replica.identity()) {
            self.replica.note_displaced();
            return refuse("data directory under this node id; was its disk replaced?");
        }
        Ok(())
    }

    fn check_group(&self, group: u32) -> Result<(), Status> {
        if group == self.replica.group_id().0 {
            Ok(())
        } else {
            Err(Status::not_found(format!("group {group} is not served here")))
        }
    }
}

fn append_response(result: pb::append_response::Result, replica: &Replica) -> pb::AppendResponse {
    pb::AppendResponse {
        result: Some(result),
        recovering: replica.is_recovering(),
        clock_ms: wall_clock_ms(),
        disk: replica.peers().rooms.report(),
    }
}

/// Leaves of what is to be appended as much as there is room for, from the first on; `false` = something was left out. What
/// opens a term and changes of members are taken always: small, few, and needed to come out of trouble.
fn fit(replica: &Replica, request: &mut AppendEntriesRequest<TypeConfig>) -> bool {
    let sizes = request.entries.iter().map(|entry| match entry.payload() {
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    });
    let sizes: Vec<usize> = sizes.collect();
    let taken = if sizes.is_empty() { 0 } else { replica.peers().rooms.takes(&sizes) };
    request.entries.truncate(taken);
    taken == sizes.len()
}

/// A piece of a snapshot that the disk did not take: for want of room, it says so, and the leader tries again later.
fn not_written(error: std::io::Error) -> Status {
    if error.kind() == std::io::ErrorKind::StorageFull {
        return Status::resource_exhausted("the disk of this node became full while it received a snapshot");
    }
    fatal(error)
}

fn no_room() -> Status {
    Status::resource_exhausted("the disk of this node is full; it takes entries again once there is room")
}

#[tonic::async_trait]
impl PeerService for Service {
    async fn hello(&self, request: Request<pb::HelloRequest>) -> Result<Response<pb::HelloResponse>, Status> {
        let message = request.into_inner();
        if message.to != 0 && message.to != self.replica.node_id() {
            return Err(Status::failed_precondition("this is another node"));
        }
        if message.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!("this node speaks peer protocol {PROTOCOL}")));
        }
        let acknowledged_index = self.replica.matched_index(message.from).unwrap_or(0);
        Ok(Response::new(pb::HelloResponse {
            cluster_id: self.replica.cluster_id().map(|id| id.to_vec()).unwrap_or_default().into(),
            node_id: self.replica.node_id(),
            identity: self.replica.identity().to_owned(),
            fresh: self.replica.is_fresh(),
            acknowledged_index,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            caller_is_member: self.replica.is_committed_member(message.from),
            membership_index: self.replica.membership_index(),
        }))
    }

    type StreamAppendStream = Pin<Box<dyn Stream<Item = Result<pb::AppendResponse, Status>> + Send>>;

    async fn stream_append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        self.check(&request)?;
        let group = self.replica.group_id().0;
        let (judge, full) = (self.replica.clone(), Arc::new(AtomicBool::new(false)));
        let refused = full.clone();
        // A bad item ends the input: skipping it would leave a hole that answers no longer line up with.
        let input = request.into_inner().scan((), move |(), item| {
            let item = item.ok().filter(|item| item.group_id == group && !refused.load(Ordering::Acquire));
            let read = item.and_then(|item| {
                append_from(item)
                    .inspect_err(|error| tracing::warn!(event = "peer.bad_append", %error, "append stream ended"))
                    .ok()
            });
            // After a part nothing more is read, and without any there is nothing to append.
            let read = read.and_then(|mut request| {
                let all = fit(&judge, &mut request);
                refused.store(!all, Ordering::Release);
                (all || !request.entries.is_empty()).then_some(request)
            });
            std::future::ready(read)
        });
        let replica = self.replica.clone();
        let output = self.replica.raft().stream_append(input).map(move |result| {
            let result = match result.map_err(fatal)? {
                Ok(last) => pb::append_response::Result::Matched(pb::Matched { last: last.as_ref().map(log_id_to) }),
                Err(StreamAppendError::Conflict(id)) => pb::append_response::Result::Conflict(log_id_to(&id)),
                Err(StreamAppendError::HigherVote(vote)) => pb::append_response::Result::HigherVote(vote_to(&vote)),
            };
            Ok(append_response(result, &replica))
        });
        // An error, so that the leader tries again later and not at once.
        let end = futures::stream::once(async move { full.load(Ordering::Acquire).then(|| Err(no_room())) });
        Ok(Response::new(Box::pin(output.chain(end.filter_map(std::future::ready)))))
    }

    async fn append(&self, request: Request<pb::AppendRequest>) -> Result<Response<pb::AppendResponse>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        let mut request = append_from(message).map_err(bad)?;
        if !fit(&self.replica, &mut request) && request.entries.is_empty() {
            return Err(no_room());
        }
        let term = request.vote.leader_id.term;
        let prev = request.prev_log_id;
        let last = request.entries.last().map(openraft::entry::RaftEntry::log_id).or(prev);
        let answer = self.replica.raft().append_entries(request).await.map_err(fatal)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.replica.heard_leader(term);
        }
        let result = match answer {
            AppendEntriesResponse::Success => {
                pb::append_response::Result::Matched(pb::Matched { last: last.as_ref().map(log_id_to) })
            }
            AppendEntriesResponse::PartialSuccess(last) => {
                pb::append_response::Result::Matched(pb::Matched { last: last.as_ref().map(log_id_to) })
            }
            AppendEntriesResponse::Conflict => {
                pb::append_response::Result::Conflict(prev.as_ref().map(log_id_to).unwrap_or_default())
            }
            AppendEntriesResponse::HigherVote(vote) => pb::append_response::Result::HigherVote(vote_to(&vote)),
        };
        Ok(Response::new(append_response(result, &self.replica)))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        if !self.replica.may_vote() {
            // Its log may have forgotten what it acknowledged: it must not elect a leader that lacks it.
            return Err(Status::unavailable("this node does not know that its log is whole, and does not vote"));
        }
        let vote = message.vote.ok_or_else(|| bad("vote is missing"))?;
        let mut rpc = VoteRequest::<TypeConfig>::new(vote_from(&vote), message.last_log_id.as_ref().map(log_id_from));
        rpc.leadership_transfer = message.leadership_transfer;
        let raft = self.replica.raft();
        let answer: VoteResponse<TypeConfig> =
            if message.pre_vote { raft.pre_vote(rpc).await } else { raft.vote(rpc).await }.map_err(fatal)?;
        Ok(Response::new(pb::VoteResponse {
            vote: Some(vote_to(&answer.vote)),
            last_log_id: answer.last_log_id.as_ref().map(log_id_to),
            granted: answer.vote_granted,
        }))
    }

    async fn transfer(&self, request: Request<pb::TransferRequest>) -> Result<Response<pb::TransferResponse>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        if !self.replica.may_vote() || self.replica.is_drained() || self.replica.integrity().is_damaged() {
            return Ok(Response::new(pb::TransferResponse { accepted: false }));
        }
        let from = message.from.ok_or_else(|| bad("from is missing"))?;
        let rpc = TransferLeaderRequest::<TypeConfig>::new(
            vote_from(&from),
            message.to,
            message.last_log_id.as_ref().map(log_id_from),
        );
        let answer = self.replica.raft().handle_transfer_leader(rpc).await.map_err(fatal)?;
        Ok(Response::new(pb::TransferResponse { accepted: answer.is_ok() }))
    }

    async fn offer_snapshot(
        &self,
        request: Request<pb::SnapshotOffer>,
    ) -> Result<Response<pb::SnapshotOfferReply>, Status> {
        self.check(&request)?;
        let offer = request.into_inner();
        self.check_group(offer.group_id)?;
        let (incoming, files) = (self.replica.incoming(), offer.files.clone());
        let needed =
            tokio::task::spawn_blocking(move || incoming.prepare(&files)).await.map_err(fatal)?.map_err(fatal)?;
        let bytes = offer.files.iter().filter(|file| needed.contains(&file.name)).map(|file| file.length).sum::<u64>();
        self.check_room_for_snapshot(bytes)?;
        Ok(Response::new(pb::SnapshotOfferReply { needed }))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotReceived>, Status> {
        self.check(&request)?;
        let incoming = self.replica.incoming();
        let mut stream = request.into_inner();
        let mut open: Option<(String, std::fs::File, u64)> = None;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            self.check_group(chunk.group_id)?;
            let incoming = incoming.clone();
            let current = open.take();
            let written = tokio::task::spawn_blocking(move || write_chunk(&incoming, current, &chunk)).await;
            open = Some(written.map_err(fatal)?.map_err(not_written)?);
        }
        Ok(Response::new(pb::SnapshotReceived {}))
    }

    async fn commit_snapshot(
        &self,
        request: Request<pb::SnapshotCommit>,
    ) -> Result<Response<pb::SnapshotCommitReply>, Status> {
        self.check(&request)?;
        let offer = request.into_inner().offer.ok_or_else(|| bad("offer is missing"))?;
        self.check_group(offer.group_id)?;
        let vote = offer.vote.ok_or_else(|| bad("vote is missing"))?;
        let membership = offer.membership.clone().ok_or_else(|| bad("membership is missing"))?;
        let last_membership = stored_membership_from(membership).map_err(bad)?;
        let last_log_id = offer.last_log_id.as_ref().map(log_id_from);
        // What was received stays where the next try finds it.
        self.check_room_for_snapshot(0)?;
        let incoming = self.replica.incoming();
        let snapshots = self.replica.snapshots_dir();
        let files = offer.files;
        let path = tokio::task::spawn_blocking(move || incoming.seal(&files, &snapshots))
            .await
            .map_err(fatal)?
            .map_err(fatal)?;
        let applied = holdfast_store::Applied {
            position: last_log_id.as_ref().map(position_of),
            ..holdfast_store::Applied::default()
        };
        let snapshot = Snapshot {
            meta: SnapshotMeta { last_log_id, last_membership },
            snapshot: SnapshotDir::received(path, applied),
        };
        tracing::info!(event = "snapshot.received", index = offer.last_log_id.map(|id| id.index), "installing");
        let answer = self.replica.raft().install_full_snapshot(vote_from(&vote), snapshot).await.map_err(fatal)?;
        Ok(Response::new(pb::SnapshotCommitReply { vote: Some(vote_to(&answer.vote)) }))
    }

    async fn forward(&self, request: Request<pb::ForwardRequest>) -> Result<Response<pb::ForwardResponse>, Status> {
        use pb::forward_response::Result as Answer;
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        let proposal = wire_log::decode_proposal(&message.proposal).map_err(bad)?;
        let (admission, bytes) = (self.replica.admission(), message.proposal.len());
        let admitted = match weight_of(&proposal.command) {
            Weight::Own => Ok(admission.admit_first(bytes)),
            Weight::Adds | Weight::Frees => admission.admit(bytes),
        };
        let result = match admitted {
            Err(overloaded) => Answer::OverloadedRetryMs(overloaded.retry_after.as_millis() as u32),
            Ok(mut held) => {
                // The forwarding node keeps the caller's deadline; this bound only ends what nobody waits for.
                let deadline = Instant::now() + Duration::from_secs(30);
                match self.replica.propose_here(proposal, deadline).await {
                    Ok(Ok(applied)) => {
                        held.done();
                        Answer::Applied(pb::Applied {
                            outcome: peer::encode_outcome(&applied.outcome),
                            index: applied.index,
                        })
                    }
                    Ok(Err(leader)) => Answer::NotLeader(leader.unwrap_or(0)),
                    Err(ProposeError::NoLeader) => Answer::NotLeader(0),
                    Err(ProposeError::Overloaded(overloaded)) => {
                        Answer::OverloadedRetryMs(overloaded.retry_after.as_millis() as u32)
                    }
                    Err(ProposeError::DiskFull(evidence)) => Answer::DiskFull(evidence),
                    Err(ProposeError::OutboxFull(evidence)) => Answer::OutboxFull(evidence),
                    Err(ProposeError::Unknown { .. }) => Answer::Unknown(pb::Empty {}),
                }
            }
        };
        Ok(Response::new(pb::ForwardResponse { result: Some(result) }))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        self.check(&request)?;
        self.check_group(request.into_inner().group_id)?;
        let index = self.replica.shared_index_here().await;
        Ok(Response::new(pb::ReadIndexResponse { leading: index.is_some(), index: index.unwrap_or(0) }))
    }

    async fn read_log(&self, request: Request<pb::ReadLogRequest>) -> Result<Response<pb::ReadLogResponse>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        let replica = self.replica.clone();
        let read = tokio::task::spawn_blocking(move || replica.read_log_for_peer(&message)).await;
        read.map_err(fatal)?.map(Response::new).map_err(fatal)
    }

    async fn flush(&self, request: Request<pb::FlushRequest>) -> Result<Response<pb::FlushResponse>, Status> {
        self.check(&request)?;
        self.check_group(request.into_inner().group_id)?;
        self.replica.flush_own().await.map_err(fatal)?;
        Ok(Response::new(pb::FlushResponse {}))
    }

    async fn announce(&self, request: Request<pb::AnnounceRequest>) -> Result<Response<pb::AnnounceResponse>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        let (id, member) = wire_log::member_from(message.member.ok_or_else(|| bad("member is missing"))?);
        let known = self.replica.announced(id, member).await.map_err(fatal)?;
        Ok(Response::new(pb::AnnounceResponse { known }))
    }

    async fn examine(&self, request: Request<pb::ExamineRequest>) -> Result<Response<pb::ExamineReply>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        Ok(Response::new(crate::integrity::compare::reply(&self.replica, &message)))
    }

    async fn verdict(&self, request: Request<pb::VerdictRequest>) -> Result<Response<pb::VerdictReply>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        let said = |text: String| Some(text).filter(|text| !text.is_empty());
        self.replica.integrity().judged(message.installation, said(message.diverged), said(message.doubt));
        self.replica.update_elect();
        Ok(Response::new(pb::VerdictReply {}))
    }

    async fn offer_state(
        &self,
        request: Request<pb::OfferStateRequest>,
    ) -> Result<Response<pb::SnapshotOffer>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        let integrity = self.replica.integrity();
        if integrity.is_damaged() {
            return Err(Status::failed_precondition("its own state is damaged"));
        }
        let (state, snapshots) = (self.replica.state().clone(), self.replica.snapshots_dir());
        let (room, known) = (self.replica.room().clone(), integrity.offers.at(state.applied().position));
        let is_new = known.is_none();
        let taken = tokio::task::spawn_blocking(move || {
            let take = || room.retry(|| SnapshotDir::checkpoint(&state, &snapshots));
            let dir = known.map_or_else(take, Ok).map_err(std::io::Error::other)?;
            // Whoever reinstalls from it reads it in whole.
            let files = dir.files()?.to_vec();
            std::io::Result::Ok((dir, files))
        });
        let (dir, files) = taken.await.map_err(fatal)?.map_err(fatal)?;
        let applied = dir.applied().clone();
        let Some(position) = applied.position.filter(|position| position.index >= message.index_min) else {
            return Err(Status::failed_precondition("its state ends before the log that is to continue it"));
        };
        let offer = pb::SnapshotOffer {
            group_id: message.group_id,
            vote: None,
            last_log_id: Some(log_id_to(&crate::types::log_id_of(position))),
            membership: None,
            files,
        };
        if is_new {
            integrity.offers.add(dir);
        }
        tracing::info!(event = "integrity.offered", index = position.index, "a peer reinstalls its state from here");
        Ok(Response::new(offer))
    }

    type FetchStateStream = tokio_stream::wrappers::ReceiverStream<Result<pb::SnapshotChunk, Status>>;

    async fn fetch_state(
        &self,
        request: Request<pb::FetchStateRequest>,
    ) -> Result<Response<Self::FetchStateStream>, Status> {
        self.check(&request)?;
        let message = request.into_inner();
        self.check_group(message.group_id)?;
        let wanted = message.last_log_id.as_ref().map(|id| position_of(&log_id_from(id)));
        let integrity = self.replica.integrity();
        let Some(dir) = integrity.offers.at(wanted).filter(|_| !integrity.is_damaged()) else {
            return Err(Status::failed_precondition("this snapshot is not offered any more"));
        };
        // Names are those of its own offer, never paths.
        let files = dir.files().map_err(fatal)?;
        if !files.iter().any(|file| file.name == message.name) {
            return Err(Status::not_found("the snapshot has no such file"));
        }
        let (out, chunks) = tokio::sync::mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let sent = read_chunks(&dir, &message.name, message.group_id, message.last_log_id, &out);
            if let Err(error) = sent {
                // The caller may be gone.
                let _ = out.blocking_send(Err(fatal(error)));
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(chunks)))
    }
}

/// Writes a piece of a file after the one before it.
pub fn write_chunk(
    incoming: &Incoming,
    open: Option<(String, std::fs::File, u64)>,
    chunk: &pb::SnapshotChunk,
) -> std::io::Result<(String, std::fs::File, u64)> {
    let (name, mut file, length) = match open {
        Some((name, file, length)) if name == chunk.name && length == chunk.offset => (name, file, length),
        _ if chunk.offset == 0 => (chunk.name.clone(), incoming.create(&chunk.name)?, 0),
        _ => return Err(std::io::Error::other("snapshot bytes arrived out of order")),
    };
    Incoming::write(&mut file, &chunk.data)?;
    Ok((name, file, length + chunk.data.len() as u64))
}
