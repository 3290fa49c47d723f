//! `RecordService`.

use std::sync::Arc;

use holdfast_model::command::Command;
use holdfast_model::id::{RecordKey, Version};
use holdfast_model::limits;
use holdfast_model::outcome::{Outcome, Rejection};
use holdfast_model::state::UserRef;
use holdfast_store::View;
use holdfast_wire::api::{self, GetQuery, ListQuery};
use holdfast_wire::reply;
use holdfast_wire::status::Refusal;
use holdfast_wire::token::{PagePlace, PageToken};
use holdfast_wire::v1;
use holdfast_wire::v1::record_service_server::RecordService;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use crate::grpc::changes::token_at;
use crate::grpc::stream_write;
use crate::grpc::sync::ResponseStream;
use crate::grpc::{Shared, deadline_of, storage};

/// Reads and writes of one user's records.
#[derive(Clone)]
pub struct Records {
    pub(super) shared: Arc<Shared>,
}

impl Records {
    /// Over this node.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// One batch of so many bytes, however it came.
    pub(super) async fn write(
        &self,
        request: v1::BatchWriteRequest,
        bytes: usize,
        deadline: Instant,
    ) -> Result<v1::BatchWriteResponse, Refusal> {
        let shared = &self.shared;
        shared.check_serving()?;
        let wait_offsite = request.wait_offsite;
        let batch = api::batch_write(request)?;
        if wait_offsite && !shared.config.offsite.iter().any(|one| one.required) {
            return Err(no_required_destination());
        }
        let applied = shared.propose(&batch.user.clone(), Command::WriteBatch(batch), bytes, deadline).await?;
        let offsite = match &applied.outcome {
            Outcome::Written(receipt) if wait_offsite => self.wait_offsite(receipt.commit_index, deadline).await,
            Outcome::Written(receipt) => self.is_offsite(receipt.commit_index),
            Outcome::Rejected(_) | Outcome::Done => false,
        };
        let sys = shared.replica.sys();
        let header = shared.header(&sys, applied.index);
        match applied.outcome {
            Outcome::Written(receipt) => Ok(reply::batch_write(receipt, &sys.policy, offsite, header)),
            Outcome::Rejected(rejection) => Err(Refusal::Rejected(rejection, Some(header))),
            Outcome::Done => Err(Refusal::Rejected(Rejection::Poisoned, Some(header))),
        }
    }

    /// True once a required destination holds the log up to `index`; false shortly before the deadline.
    async fn wait_offsite(&self, index: u64, deadline: Instant) -> bool {
        let mut applied = self.shared.replica.applied_watch();
        let held = async {
            // What is known of destinations comes by the log.
            while !self.is_offsite(index) {
                if applied.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        timeout_at(deadline, held).await.unwrap_or(false)
    }

    fn is_offsite(&self, index: u64) -> bool {
        let sys = self.shared.replica.sys();
        let holds = |name: &str| sys.offsite.get(name).is_some_and(|fact| fact.index >= index);
        self.shared.config.offsite.iter().any(|one| one.required && holds(&one.name))
    }

    async fn get(&self, request: Request<v1::BatchGetRecordsRequest>) -> Result<v1::BatchGetRecordsResponse, Refusal> {
        let shared = &self.shared;
        shared.check_serving()?;
        let deadline = deadline_of(&request, shared.default_deadline());
        let query = api::batch_get(request.into_inner())?;
        let fresh = shared.read(query.consistency, deadline).await?;
        let header = shared.header_of(&fresh);
        let view = fresh.view;
        // A few keys are answered from memory mostly; a hop to another thread costs more than they do.
        let (records, remaining) = if query.keys.len() <= 4 {
            get_records(&view, &query)?
        } else {
            shared.read_rows(move || get_records(&view, &query)).await?
        };
        Ok(v1::BatchGetRecordsResponse {
            header: Some(header),
            records,
            remaining_keys: remaining.iter().map(reply::record_key).collect(),
        })
    }

    async fn list(&self, request: Request<v1::ListRecordsRequest>) -> Result<v1::ListRecordsResponse, Refusal> {
        let shared = &self.shared;
        shared.check_serving()?;
        let deadline = deadline_of(&request, shared.default_deadline());
        let query = api::list(request.into_inner())?;
        let fresh = shared.read(query.consistency, deadline).await?;
        let header = shared.header_of(&fresh);
        let view = fresh.view;
        let answer = shared.read_rows(move || list_records(&view, &query)).await?;
        Ok(v1::ListRecordsResponse { header: Some(header), ..answer })
    }
}

fn no_required_destination() -> Refusal {
    Refusal::Precondition {
        reason: "NO_REQUIRED_DESTINATION",
        message:
            "wait_offsite needs an offsite destination with required = true in the node's configuration; nothing was \
                  proposed"
                .into(),
    }
}

type Found = (Vec<v1::Record>, Vec<RecordKey>);

fn get_records(view: &View, query: &GetQuery) -> Result<Found, Refusal> {
    let Some(user) = view.uid(&query.user).map_err(storage)? else { return Ok((Vec::new(), Vec::new())) };
    let mut records = Vec::with_capacity(query.keys.len());
    let mut bytes = 0;
    // In small groups, so that an answer that is full early has not read everything.
    for (group, keys) in query.keys.chunks(32).enumerate() {
        for (place, found) in view.records(user, keys).map_err(storage)?.into_iter().enumerate() {
            let Some(found) = found else { continue };
            if found.held_back && !query.metadata_only {
                return Err(Refusal::Restoring(keys[place].collection.as_str().to_owned()));
            }
            let payload = if query.metadata_only { Default::default() } else { found.payload };
            bytes += payload.len();
            if bytes > limits::PAGE_BYTES_MAX && !records.is_empty() {
                return Ok((records, query.keys[group * 32 + place..].to_vec()));
            }
            records.push(reply::record(&keys[place], &found.row, payload));
        }
    }
    Ok((records, Vec::new()))
}

fn list_records(view: &View, query: &ListQuery) -> Result<v1::ListRecordsResponse, Refusal> {
    let user = view.uid(&query.user).map_err(storage)?;
    let sync_token = match &query.page {
        Some(page) => page.sync_token.clone(),
        None => head_token(view, query, user)?,
    };
    let mut answer = v1::ListRecordsResponse { sync_token: sync_token.clone(), ..Default::default() };
    let Some(user) = user else { return Ok(answer) };
    let want_payload = !query.metadata_only;
    let page = match (query.newest, query.page.as_ref().map(|page| &page.after)) {
        (false, None | Some(PagePlace::Newest(..))) => {
            view.list(user, &query.collection, None, query.page_records, query.show_deleted, want_payload)
        }
        (false, Some(PagePlace::RecordId(after))) => {
            view.list(user, &query.collection, Some(after), query.page_records, query.show_deleted, want_payload)
        }
        (true, after) => {
            let before = match after {
                Some(PagePlace::Newest(version, ordinal)) => Some((*version, *ordinal)),
                Some(PagePlace::RecordId(_)) | None => None,
            };
            view.list_newest(user, &query.collection, before, query.page_records, query.show_deleted, want_payload)
        }
    };
    let page = page.map_err(storage)?;
    if want_payload && page.records.iter().any(|listed| listed.record.held_back) {
        return Err(Refusal::Restoring(query.collection.as_str().to_owned()));
    }
    if page.more
        && let Some(last) = page.records.last()
    {
        let after = if query.newest {
            PagePlace::Newest(last.record.row.version, last.record.row.ordinal)
        } else {
            PagePlace::RecordId(last.id.clone())
        };
        answer.next_page_token = PageToken { arguments: query.arguments, sync_token, after }.encode();
    }
    answer.records = page
        .records
        .into_iter()
        .map(|listed| {
            let key = RecordKey { collection: query.collection.clone(), record_id: listed.id };
            reply::record(&key, &listed.record.row, listed.record.payload)
        })
        .collect();
    Ok(answer)
}

/// A token at the user's head: an incremental sync from here covers all that a listing may have missed.
fn head_token(view: &View, query: &ListQuery, user: Option<UserRef>) -> Result<String, Refusal> {
    let head = match user {
        Some(user) => view.user(user).map_err(storage)?.map_or(Version(0), |row| row.head),
        None => Version(0),
    };
    Ok(token_at(&query.user, 0, view.sys(), user, head)?.encode())
}

#[tonic::async_trait]
impl RecordService for Records {
    async fn batch_write(
        &self,
        request: Request<v1::BatchWriteRequest>,
    ) -> Result<Response<v1::BatchWriteResponse>, Status> {
        let timer = self.shared.metrics.call("BatchWrite");
        let deadline = deadline_of(&request, self.shared.default_deadline());
        let bytes = holdfast_wire::encoded_len(request.get_ref());
        timer.end(self.write(request.into_inner(), bytes, deadline).await)
    }

    type StreamWriteStream = ResponseStream<v1::StreamWriteResponse>;

    async fn stream_write(
        &self,
        request: Request<Streaming<v1::StreamWriteRequest>>,
    ) -> Result<Response<Self::StreamWriteStream>, Status> {
        Ok(Response::new(stream_write::serve(self.clone(), request.into_inner())?))
    }

    async fn batch_get_records(
        &self,
        request: Request<v1::BatchGetRecordsRequest>,
    ) -> Result<Response<v1::BatchGetRecordsResponse>, Status> {
        let timer = self.shared.metrics.call("BatchGetRecords");
        timer.end(self.get(request).await)
    }

    async fn list_records(
        &self,
        request: Request<v1::ListRecordsRequest>,
    ) -> Result<Response<v1::ListRecordsResponse>, Status> {
        let timer = self.shared.metrics.call("ListRecords");
        timer.end(self.list(request).await)
    }

    async fn list_record_history(
        &self,
        _request: Request<v1::ListRecordHistoryRequest>,
    ) -> Result<Response<v1::ListRecordHistoryResponse>, Status> {
        Err(Refusal::Unsupported("ListRecordHistory").into())
    }
}
