//! `SyncService`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::Stream;
use holdfast_model::id::{Collection, Uid, Version};
use holdfast_model::limits;
use holdfast_model::state::{Sys, UserRef, UserRow};
use holdfast_store::View;
use holdfast_wire::api::{self, ChangesQuery, Consistency};
use holdfast_wire::reply;
use holdfast_wire::status::Refusal;
use holdfast_wire::token::{SyncToken, user_tag};
use holdfast_wire::v1;
use holdfast_wire::v1::get_changes_response::Outcome;
use holdfast_wire::v1::sync_service_server::SyncService;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use crate::feed::{Verdict, judge};
use crate::grpc::{Shared, blocking, deadline_of, storage};

/// Change delivery.
pub struct Sync {
    shared: Arc<Shared>,
}

/// One look at the state.
struct Look {
    answer: v1::GetChangesResponse,
    /// Nothing changed: a long poll may go on waiting.
    empty: bool,
    /// The token is ahead of this replica.
    ahead: bool,
}

impl Sync {
    /// Over this node.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn changes(&self, request: Request<v1::GetChangesRequest>) -> Result<v1::GetChangesResponse, Refusal> {
        let shared = &self.shared;
        shared.check_serving()?;
        let deadline =
            deadline_of(&request, shared.default_deadline() + Duration::from_millis(limits::LONG_POLL_MS_MAX));
        let query = Arc::new(api::changes(request.into_inner())?);
        let read_deadline = (Instant::now() + shared.default_deadline()).min(deadline);
        // Leave time to answer: a long poll that ends with its caller's deadline would look like a failure.
        let poll_until = (Instant::now() + query.wait).min(deadline - Duration::from_millis(50).min(query.wait));
        let waiter = shared.feed.wait_for(&query.user);
        let consistency = query.consistency.unwrap_or(Consistency::Linearizable);
        let mut confirmed = false;
        loop {
            let armed = waiter.armed();
            tokio::pin!(armed);
            armed.as_mut().enable();
            // The first look is as fresh as asked for; later ones are woken by an applied change.
            let view = if confirmed { shared.replica.view() } else { shared.read(consistency, read_deadline).await? };
            let look = {
                let (shared, query) = (shared.clone(), query.clone());
                blocking(move || look(&shared, &view, &query)).await?
            };
            if look.ahead && consistency != Consistency::Linearizable {
                return Err(Refusal::ReplicaBehind);
            }
            confirmed = true;
            let wait = look.empty && Instant::now() < poll_until && !shared.draining.load(Ordering::Acquire);
            if !wait || timeout_at(poll_until, armed).await.is_err() {
                return Ok(look.answer);
            }
        }
    }
}

fn look(shared: &Shared, view: &View, query: &ChangesQuery) -> Result<Look, Refusal> {
    let sys = view.sys();
    let header = shared.header_of(view);
    let user = view.uid(&query.user).map_err(storage)?;
    let row = match user {
        Some(user) => view.user(user).map_err(storage)?,
        None => None,
    };
    let verdict = match &query.token {
        None => Verdict::Continue(Version(0)),
        Some(token) => judge(token, sys, row.as_ref()),
    };
    let answer = |outcome| v1::GetChangesResponse { header: Some(header), outcome: Some(outcome) };
    let after = match verdict {
        Verdict::Continue(after) => after,
        Verdict::RolledBack { .. } | Verdict::UnknownIncarnation | Verdict::FromFuture | Verdict::Expired => {
            let info = resync(verdict, query, sys, user, row.as_ref());
            return Ok(Look {
                answer: answer(Outcome::Resync(info)),
                empty: false,
                ahead: verdict == Verdict::FromFuture,
            });
        }
    };
    let page = page(view, query, user, row.as_ref(), after)?;
    let empty = page.records.is_empty() && !page.more;
    Ok(Look { answer: answer(Outcome::Page(page)), empty, ahead: false })
}

fn page(
    view: &View,
    query: &ChangesQuery,
    user: Option<UserRef>,
    row: Option<&UserRow>,
    after: Version,
) -> Result<v1::ChangesPage, Refusal> {
    let sys = view.sys();
    let head = row.map_or(Version(0), |row| row.head);
    let mut page = v1::ChangesPage { backed_up_version: 0, ..Default::default() };
    let mut reached = head;
    let fresh_until = match &query.token {
        None => head,
        Some(token) if token.version == Version(0) => head,
        Some(token) => token.fresh_until,
    };
    if let (Some(user), true) = (user, after < head) {
        let changes =
            view.changes_with_records(user, after, query.page_records, limits::PAGE_BYTES_MAX).map_err(storage)?;
        if changes.more {
            page.more = true;
            reached = changes.changes.last().map_or(head, |change| change.version);
        }
        for change in changes.changes {
            let collection = &change.row.key.collection;
            let wanted = query.collections.is_empty() || query.collections.contains(collection);
            let own = query.exclude_device.is_some() && query.exclude_device == change.row.device;
            // A device that started at zero never had what was deleted before.
            let never_had = change.row.deleted && change.version <= fresh_until;
            if !wanted || own || never_had {
                continue;
            }
            let payload = if query.metadata_only { Default::default() } else { change.record.payload };
            page.records.push(reply::record(&change.row.key, &change.record.row, payload));
        }
    }
    let fresh_until = if page.more { fresh_until } else { Version(0) };
    page.next_sync_token = token(query, sys, user, reached, fresh_until)?;
    if !page.more
        && let Some(row) = row
    {
        page.digests = row
            .collections
            .iter()
            .filter(|(name, _)| query.collections.is_empty() || query.collections.contains(name))
            .map(|(name, digest)| reply::collection_digest(name, digest))
            .collect();
    }
    Ok(page)
}

fn token(
    query: &ChangesQuery,
    sys: &Sys,
    user: Option<UserRef>,
    version: Version,
    fresh_until: Version,
) -> Result<String, Refusal> {
    let incarnation = sys.history.as_ref().map(|history| history.incarnation).ok_or(Refusal::NotFounded)?;
    Ok(SyncToken {
        incarnation,
        user_tag: user_tag(&query.user),
        uid: user.map_or(Uid(0), |user| user.uid),
        version,
        filter: query.filter,
        issued: sys.now,
        fresh_until,
    }
    .encode())
}

fn resync(
    verdict: Verdict,
    query: &ChangesQuery,
    sys: &Sys,
    user: Option<UserRef>,
    row: Option<&UserRow>,
) -> v1::ResyncInfo {
    let (reason, common) = match verdict {
        Verdict::RolledBack { common } => (v1::ResyncReason::RolledBack, common),
        Verdict::UnknownIncarnation => (v1::ResyncReason::UnknownIncarnation, Version(0)),
        Verdict::FromFuture => (v1::ResyncReason::TokenFromFuture, row.map_or(Version(0), |row| row.head)),
        Verdict::Expired => (v1::ResyncReason::TokenExpired, row.map_or(Version(0), |row| row.tombstone_horizon)),
        Verdict::Continue(version) => (v1::ResyncReason::Unspecified, version),
    };
    v1::ResyncInfo {
        reason: reason.into(),
        common_version: common.0,
        tombstone_horizon: row.map_or(0, |row| row.tombstone_horizon.0),
        resume_token: token(query, sys, user, common, Version(0)).unwrap_or_default(),
        start_after_ms: 0,
        collection_order: Collection::WELL_KNOWN.iter().map(|name| (*name).to_owned()).collect(),
    }
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SyncService for Sync {
    async fn get_changes(
        &self,
        request: Request<v1::GetChangesRequest>,
    ) -> Result<Response<v1::GetChangesResponse>, Status> {
        let timer = self.shared.metrics.call("GetChanges");
        timer.end(self.changes(request).await)
    }

    type GetManifestStream = ResponseStream<v1::GetManifestResponse>;

    async fn get_manifest(
        &self,
        _request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<Self::GetManifestStream>, Status> {
        Err(Refusal::Unsupported("GetManifest").into())
    }

    type WatchStream = ResponseStream<v1::WatchResponse>;

    async fn watch(
        &self,
        _request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Refusal::Unsupported("Watch").into())
    }

    async fn ack_cursor(
        &self,
        _request: Request<v1::AckCursorRequest>,
    ) -> Result<Response<v1::AckCursorResponse>, Status> {
        Err(Refusal::Unsupported("AckCursor").into())
    }

    async fn list_devices(
        &self,
        _request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        Err(Refusal::Unsupported("ListDevices").into())
    }

    async fn drop_device(
        &self,
        _request: Request<v1::DropDeviceRequest>,
    ) -> Result<Response<v1::DropDeviceResponse>, Status> {
        Err(Refusal::Unsupported("DropDevice").into())
    }
}
