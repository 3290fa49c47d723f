//! `GetChanges`: a page after a token, or what to do when the token cannot be continued.
//!
//! Invariants: a caller waits without polling, and what is applied after its last look wakes it; a resync is only told
//! from a state that a quorum confirmed; a page never splits a commit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_model::id::{Collection, Uid, UserId, Version};
use holdfast_model::limits;
use holdfast_model::state::{Sys, UserRef, UserRow};
use holdfast_replica::Fresh;
use holdfast_store::View;
use holdfast_wire::api::{self, ChangesQuery, Consistency};
use holdfast_wire::reply;
use holdfast_wire::status::Refusal;
use holdfast_wire::token::{SyncToken, user_tag};
use holdfast_wire::v1;
use holdfast_wire::v1::get_changes_response::Outcome;
use tokio::time::{Instant, timeout_at};
use tonic::Request;

use crate::grpc::{Shared, deadline_of, storage};
use crate::resync::{Verdict, judge, resume_at};

/// One look at the state.
struct Look {
    answer: v1::GetChangesResponse,
    kind: Kind,
}

enum Kind {
    /// A page with changes.
    News,
    /// Nothing changed: a long poll may go on waiting.
    Nothing,
    /// The token cannot be continued, as this replica sees it.
    Resync(Verdict),
}

/// How the next view is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freshness {
    /// As the caller asked.
    Asked(Consistency),
    /// This replica, with all that it acknowledged.
    Local,
}

/// Answers a `GetChanges`.
pub async fn changes(
    shared: &Arc<Shared>,
    request: Request<v1::GetChangesRequest>,
) -> Result<v1::GetChangesResponse, Refusal> {
    shared.check_serving()?;
    let deadline = deadline_of(&request, shared.default_deadline() + Duration::from_millis(limits::LONG_POLL_MS_MAX));
    let query = Arc::new(api::changes(request.into_inner())?);
    // Leave time to answer: a long poll that ends with its caller's deadline would look like a failure.
    let poll_until = (Instant::now() + query.wait).min(deadline - Duration::from_millis(50).min(query.wait));
    let waiter = shared.feed.wait_for(&query.user);
    let mut freshness = match (query.consistency, &query.token) {
        (Some(consistency), _) => Freshness::Asked(consistency),
        // A first sync that misses what was just written would look like a loss.
        (None, None) => Freshness::Asked(Consistency::Linearizable),
        (None, Some(_)) => Freshness::Local,
    };
    loop {
        let read_deadline = (Instant::now() + shared.default_deadline()).min(deadline);
        let armed = waiter.armed();
        tokio::pin!(armed);
        armed.as_mut().enable();
        let fresh = match freshness {
            Freshness::Asked(consistency) => shared.read(consistency, read_deadline).await?,
            Freshness::Local => shared.read_local(read_deadline).await?,
        };
        let look = {
            let (looking, query) = (shared.clone(), query.clone());
            shared.read_rows(move || look(&looking, &fresh, &query)).await?
        };
        match look.kind {
            Kind::Resync(verdict) if freshness != Freshness::Asked(Consistency::Linearizable) => {
                if verdict == Verdict::FromFuture && freshness != Freshness::Local {
                    return Err(Refusal::ReplicaBehind);
                }
                freshness = Freshness::Asked(Consistency::Linearizable);
            }
            Kind::Nothing if Instant::now() < poll_until && !shared.draining.load(Ordering::Acquire) => {
                let woken = timeout_at(poll_until, armed).await.is_ok();
                // An answer that is bounded by time must be so when it is given, not when the wait began.
                let bounded = matches!(freshness, Freshness::Asked(Consistency::MaxStaleness(_)));
                if !woken && !bounded {
                    return Ok(look.answer);
                }
                if !bounded {
                    freshness = Freshness::Local;
                }
            }
            Kind::News | Kind::Nothing | Kind::Resync(_) => return Ok(look.answer),
        }
    }
}

fn look(shared: &Shared, fresh: &Fresh, query: &ChangesQuery) -> Result<Look, Refusal> {
    let view = &fresh.view;
    let sys = view.sys();
    let header = shared.header_of(fresh);
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
            let pace = shared.config.resync_users_per_second;
            let info = verdict.resync(sys, &query.user, row.as_ref(), pace).unwrap_or_default();
            let resume_token = token_at(&query.user, query.filter, sys, user, resume_at(&info))?.encode();
            let info = v1::ResyncInfo { resume_token, ..info };
            return Ok(Look { answer: answer(Outcome::Resync(info)), kind: Kind::Resync(verdict) });
        }
    };
    let page = page(view, query, user, row.as_ref(), after)?;
    let kind = if page.records.is_empty() && !page.more { Kind::Nothing } else { Kind::News };
    Ok(Look { answer: answer(Outcome::Page(page)), kind })
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
    let mut page =
        v1::ChangesPage { backed_up_version: row.map_or(0, |row| row.backed_up(sys).0), ..Default::default() };
    let mut reached = head;
    let fresh_until = match &query.token {
        None => head,
        // Also at version 0: a device whose whole history was lost resumes there, and is no new device.
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
            if change.record.held_back && !query.metadata_only {
                // Left out it would be lost to this caller: its token goes on.
                return Err(Refusal::Restoring(collection.as_str().to_owned()));
            }
            let payload = if query.metadata_only { Default::default() } else { change.record.payload };
            page.records.push(reply::record(&change.row.key, &change.record.row, payload));
        }
    }
    let (fresh_until, seen) = if page.more { (fresh_until, head) } else { Default::default() };
    let next = token_at(&query.user, query.filter, sys, user, reached)?;
    page.next_sync_token = SyncToken { fresh_until, seen, ..next }.encode();
    let wanted = |name: &Collection| query.collections.is_empty() || query.collections.contains(name);
    let names = row.iter().flat_map(|row| row.collections.keys());
    let restoring = names.filter(|name| wanted(name) && sys.is_restoring(name));
    page.collections_restoring = restoring.map(|name| name.as_str().to_owned()).collect();
    if !page.more
        && let Some(row) = row
    {
        page.digests = row
            .collections
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, digest)| reply::collection_digest(name, digest))
            .collect();
    }
    Ok(page)
}

/// A token at a version of the present history.
pub fn token_at(
    name: &UserId,
    filter: u64,
    sys: &Sys,
    user: Option<UserRef>,
    version: Version,
) -> Result<SyncToken, Refusal> {
    let incarnation = sys.history.as_ref().map(|history| history.incarnation).ok_or(Refusal::NotFounded)?;
    Ok(SyncToken {
        incarnation,
        user_tag: user_tag(name),
        uid: user.map_or(Uid(0), |user| user.uid),
        version,
        filter,
        issued: sys.now,
        fresh_until: Version(0),
        seen: Version(0),
    })
}
