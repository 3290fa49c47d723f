//! `GetManifest`: every record and tombstone of a user without its payload, from one view.
//!
//! Invariants: all chunks come from one view; the last one, and only that, carries the token; a stream without it ends
//! with a reason; a chunk waits for its caller a bounded time, so that one who reads nothing holds no view for long.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::id::{Collection, RecordKey, Version};
use holdfast_model::state::UserRef;
use holdfast_store::View;
use holdfast_wire::api::{self, ManifestQuery};
use holdfast_wire::reply;
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Request, Status};

use crate::grpc::changes::token_at;
use crate::grpc::sync::ResponseStream;
use crate::grpc::{Shared, blocking, deadline_of, storage};

/// Rows and bytes after which a chunk ends.
const CHUNK_ROWS: usize = 4000;
const CHUNK_BYTES: usize = 512 << 10;
/// Longest time a caller may take for one chunk.
const CHUNK_PAUSE_MAX: Duration = Duration::from_secs(30);

/// One manifest being sent.
struct Sending {
    view: View,
    query: ManifestQuery,
    user: Option<UserRef>,
    /// Everything up to here was sent.
    after: Version,
}

/// Answers a `GetManifest`.
pub async fn manifest(
    shared: &Arc<Shared>,
    request: Request<v1::GetManifestRequest>,
) -> Result<ResponseStream<v1::GetManifestResponse>, Refusal> {
    shared.check_serving()?;
    let deadline = deadline_of(&request, shared.default_deadline());
    let query = api::manifest(request.into_inner())?;
    let fresh = shared.read(query.consistency, deadline).await?;
    let header = shared.header_of(&fresh);
    let user = fresh.view.uid(&query.user).map_err(storage)?;
    let sending = Sending { view: fresh.view, query, user, after: Version(0) };
    let (out, mut chunks) = mpsc::channel(1);
    let work = tokio::spawn(send(sending, header, out));
    Ok(Box::pin(async_stream::stream! {
        while let Some(chunk) = chunks.recv().await {
            yield Ok(chunk);
        }
        // A stream that ends without its last chunk says why.
        match work.await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => yield Err(Status::from(refusal)),
            Err(_) => yield Err(Refusal::Internal("a read panicked; see the log".into()).into()),
        }
    }))
}

/// Sends chunk by chunk. A caller may take its time over the whole, but not over one of them: a view keeps what was
/// deleted since on the disk.
async fn send(
    mut sending: Sending,
    header: v1::ResponseHeader,
    out: mpsc::Sender<v1::GetManifestResponse>,
) -> Result<(), Refusal> {
    let mut header = Some(header);
    loop {
        let (back, chunk) = blocking(move || {
            let chunk = sending.chunk()?;
            Ok((sending, chunk))
        })
        .await?;
        sending = back;
        let is_last = !chunk.sync_token.is_empty();
        match timeout(CHUNK_PAUSE_MAX, out.send(v1::GetManifestResponse { header: header.take(), ..chunk })).await {
            Err(_) => return Err(Refusal::TooSlow),
            // The caller went away.
            Ok(Err(_)) => return Ok(()),
            Ok(Ok(())) if is_last => return Ok(()),
            Ok(Ok(())) => {}
        }
    }
}

impl Sending {
    fn chunk(&mut self) -> Result<v1::GetManifestResponse, Refusal> {
        let mut chunk = v1::GetManifestResponse::default();
        let sys = self.view.sys();
        let mut more = false;
        if let Some(user) = self.user {
            let page = self.view.changes(user, self.after, CHUNK_ROWS, CHUNK_BYTES).map_err(storage)?;
            more = page.more;
            if let Some((version, ..)) = page.rows.last() {
                self.after = *version;
            }
            let wanted = |collection: &Collection| {
                self.query.collections.is_empty() || self.query.collections.contains(collection)
            };
            let rows: Vec<_> = page.rows.into_iter().filter(|(.., row)| wanted(&row.key.collection)).collect();
            // A change row does not say when a record was deleted. Tombstones are small.
            let deleted: Vec<RecordKey> =
                rows.iter().filter(|(.., row)| row.deleted).map(|(.., row)| row.key.clone()).collect();
            let mut tombstones = self.view.records(user, &deleted).map_err(storage)?.into_iter();
            for (version, _, row) in rows {
                let tombstone = if row.deleted { tombstones.next().flatten() } else { None };
                let delete_time = tombstone.and_then(|tombstone| tombstone.row.delete_time);
                if row.deleted && delete_time.is_none() {
                    return Err(Refusal::Corrupt("a change row says deleted, its record does not".into()));
                }
                chunk.records.push(reply::manifest_record(version, &row, delete_time));
            }
        }
        if !more {
            let row = match self.user {
                Some(user) => self.view.user(user).map_err(storage)?.unwrap_or_default(),
                None => Default::default(),
            };
            chunk.tombstone_horizon = row.tombstone_horizon.0;
            chunk.sync_token = token_at(&self.query.user, self.query.filter, sys, self.user, row.head)?.encode();
        }
        Ok(chunk)
    }
}
