//! Calls of frontends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::id::Millis;
use holdfast_model::limits::MESSAGE_BYTES_MAX;
use holdfast_wire::reply;
use holdfast_wire::v1;
use holdfast_wire::v1::record_service_client::RecordServiceClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::account::sync;
use crate::builder::{ClientBuilder, Limits};
use crate::error::Error;
use crate::lanes::Lanes;
use crate::nodes::Nodes;
use crate::retry::{self, Effect, Headed};
use crate::session::{Fresh, Seen, Session, linearizable};
use crate::sync::ChangesAnswer;

/// A record's full name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordRef<'a> {
    /// Owner.
    pub user: &'a str,
    /// Collection.
    pub collection: &'a str,
    /// Id inside the collection.
    pub record_id: &'a str,
}

impl RecordRef<'_> {
    /// Collection and id, as the API has them.
    pub fn key(&self) -> v1::RecordKey {
        v1::RecordKey { collection: self.collection.to_owned(), record_id: self.record_id.to_owned() }
    }
}

/// A client of one cluster. Clones share its channels and hints.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) limits: Limits,
    /// Only in a session.
    pub(crate) seen: Option<Arc<Seen>>,
    /// Streams that writes go over; `None` = each is a call of its own.
    pub(crate) lanes: Option<Arc<Lanes>>,
}

impl Client {
    /// Starts setting up a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A clone whose calls may take this long, retries included.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { limits: Limits { deadline, ..self.limits }, ..self.clone() }
    }

    /// A clone whose writes go over `StreamWrite`, `streams` of them to a node, opened when they are needed; at least one. For
    /// frontends that write for many people at once: a batch costs client and server less than a call of its own does. Nothing
    /// else changes: order, guards, retries under one request id, and errors are those of [`Client::write`].
    pub fn streaming(&self, streams: usize) -> Self {
        Self { lanes: Some(Arc::new(Lanes::new(self.nodes.len(), streams))), ..self.clone() }
    }

    /// Begins a session: a client of the same cluster whose reads see at least what its earlier answers saw.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// Commits a batch. Without a request id it gets one, and without a `first_sent_time` the newest server time that
    /// was seen. All attempts carry the same id, so that the batch takes effect once.
    ///
    /// # Errors
    /// `OutcomeUnknown` when it may still take effect: call again with the same request. Every other error means that
    /// it had and will have none.
    pub async fn write(&self, mut request: v1::BatchWriteRequest) -> Result<v1::BatchWriteResponse, Error> {
        if request.request_id.is_empty() {
            request.request_id = Uuid::new_v4().to_string();
        }
        if request.first_sent_time.is_none() {
            request.first_sent_time = self.nodes.server_time_ms().map(|ms| reply::timestamp(Millis(ms)));
        }
        // The encoder's own refusal looks like a broken connection, which would be tried again to the deadline.
        let bytes = holdfast_wire::encoded_len(&request);
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the batch has {bytes} bytes, at most {MESSAGE_BYTES_MAX} can be sent"
            )));
        }
        let request_id = request.request_id.clone();
        let effect = Effect::Write { request_id: &request_id, rejection_is_final: rejection_is_final(&request) };
        match &self.lanes {
            None => {
                let call = |channel, request| async move { records(channel).batch_write(request).await };
                self.call(self.limits, effect, request, call).await
            }
            Some(lanes) => {
                let call = |attempt| lanes.write(attempt);
                self.observe(retry::run_attempts(&self.nodes, self.limits, effect, request, call).await)
            }
        }
    }

    /// Creates or replaces a record; the last writer wins.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn put(
        &self,
        record: RecordRef<'_>,
        content_type: &str,
        payload: impl Into<Bytes>,
    ) -> Result<v1::BatchWriteResponse, Error> {
        let put = v1::PutOp { content_type: content_type.to_owned(), payload: payload.into(), ..Default::default() };
        self.write_one(record, v1::mutation::Op::Put(put)).await
    }

    /// Leaves a tombstone.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn delete(&self, record: RecordRef<'_>) -> Result<v1::BatchWriteResponse, Error> {
        self.write_one(record, v1::mutation::Op::Delete(v1::DeleteOp {})).await
    }

    async fn write_one(&self, record: RecordRef<'_>, op: v1::mutation::Op) -> Result<v1::BatchWriteResponse, Error> {
        let mutation = v1::Mutation { key: Some(record.key()), op: Some(op), precondition: None };
        let user_id = record.user.to_owned();
        self.write(v1::BatchWriteRequest { user_id, mutations: vec![mutation], ..Default::default() }).await
    }

    /// A record or its tombstone, linearizable; `None` = there never was one.
    ///
    /// # Errors
    /// When no node could answer.
    pub async fn get(&self, record: RecordRef<'_>) -> Result<Option<v1::Record>, Error> {
        let user_id = record.user.to_owned();
        let request = v1::BatchGetRecordsRequest { user_id, keys: vec![record.key()], ..Default::default() };
        Ok(self.read(request).await?.records.into_iter().next())
    }

    /// One call of `BatchGetRecords`. Mind `remaining_keys`.
    ///
    /// # Errors
    /// When no node could answer.
    pub async fn read(&self, request: v1::BatchGetRecordsRequest) -> Result<v1::BatchGetRecordsResponse, Error> {
        let call = |channel, request| async move { records(channel).batch_get_records(request).await };
        self.read_call(self.limits, request, call).await
    }

    /// `BatchGetRecords` for any number of keys, asked for until all were looked up. Each call is one consistent point;
    /// together they are not.
    ///
    /// # Errors
    /// When no node could answer.
    pub async fn read_all(&self, mut request: v1::BatchGetRecordsRequest) -> Result<Vec<v1::Record>, Error> {
        let mut waiting = std::mem::take(&mut request.keys);
        let mut found = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(holdfast_model::limits::GET_KEYS_MAX));
            let asked = waiting.len();
            let answer = self.read(v1::BatchGetRecordsRequest { keys: waiting, ..request.clone() }).await?;
            if answer.remaining_keys.len() >= asked {
                return Err(Error::protocol("a node looked up none of the keys it was asked for"));
            }
            found.extend(answer.records);
            waiting = answer.remaining_keys;
            waiting.extend(rest);
        }
        Ok(found)
    }

    /// Lists a collection page by page.
    pub fn list(&self, request: v1::ListRecordsRequest) -> ListPages<'_> {
        ListPages { client: self, request, ended: false }
    }

    /// Lists a whole collection. Pages are not one snapshot: see [`Client::changes`] for that.
    ///
    /// # Errors
    /// When no node could answer.
    pub async fn list_all(&self, request: v1::ListRecordsRequest) -> Result<Vec<v1::Record>, Error> {
        let mut pages = self.list(request);
        let mut all = Vec::new();
        while let Some(page) = pages.next_page().await? {
            all.extend(page.records);
        }
        Ok(all)
    }

    /// What changed since a token, or how to go on if that cannot be said. A long poll (`wait_ms`) extends the
    /// deadline by its wait.
    ///
    /// # Errors
    /// When no node could answer, or the token is not one of this user and filter.
    pub async fn changes(&self, request: v1::GetChangesRequest) -> Result<ChangesAnswer, Error> {
        let wait = Duration::from_millis(request.wait_ms.into());
        let limits = Limits { deadline: self.limits.deadline + wait, attempt: self.limits.attempt + wait };
        let call = |channel, request| async move { sync(channel).get_changes(request).await };
        let answer = self.read_call(limits, request, call).await?;
        ChangesAnswer::read(answer)
    }

    /// One call with all its attempts.
    pub(crate) async fn call<Q, A, F, Fut>(
        &self,
        limits: Limits,
        effect: Effect<'_>,
        request: Q,
        call: F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        A: Headed,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        self.observe(retry::run(&self.nodes, limits, effect, request, call).await)
    }

    /// What a session learns from an answer.
    fn observe<A: Headed>(&self, outcome: Result<A, Error>) -> Result<A, Error> {
        if let Some(seen) = &self.seen {
            match &outcome {
                Ok(answer) => seen.observe(answer.header()),
                Err(Error::Conflict { info, .. }) => seen.observe(info.header.as_ref()),
                Err(_) => {}
            }
        }
        outcome
    }

    /// A read; in a session at its bound, unless it names its own freshness.
    pub(crate) async fn read_call<Q, A, F, Fut>(&self, limits: Limits, mut request: Q, call: F) -> Result<A, Error>
    where
        Q: Clone + Fresh,
        A: Headed,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let bounded = self.bind(&mut request);
        match self.call(limits, Effect::Read, request.clone(), &call).await {
            Err(error) if bounded && self.unbind(&mut request, &error) => {
                self.call(limits, Effect::Read, request, &call).await
            }
            outcome => outcome,
        }
    }

    /// Asks for what the session has seen. True = the bound is the session's.
    pub(crate) fn bind(&self, request: &mut impl Fresh) -> bool {
        let Some(seen) = &self.seen else { return false };
        let consistency = request.consistency();
        if consistency.is_some() {
            return false;
        }
        *consistency = seen.bound();
        consistency.is_some()
    }

    /// Whether a read was refused because its bound is from another history than the cluster's: then it is asked again
    /// without, linearizable, so that the session learns where it is.
    pub(crate) fn unbind(&self, request: &mut impl Fresh, error: &Error) -> bool {
        let Some(seen) = &self.seen else { return false };
        if !matches!(error, Error::Precondition { reason, .. } if reason == "INCARNATION_MISMATCH") {
            return false;
        }
        seen.forget();
        *request.consistency() = Some(linearizable());
        true
    }
}

/// Pages of a listing.
#[derive(Debug)]
pub struct ListPages<'a> {
    client: &'a Client,
    request: v1::ListRecordsRequest,
    ended: bool,
}

impl ListPages<'_> {
    /// The next page; `None` = that was all.
    ///
    /// # Errors
    /// When no node could answer. Calling again asks for the same page again.
    pub async fn next_page(&mut self) -> Result<Option<v1::ListRecordsResponse>, Error> {
        if self.ended {
            return Ok(None);
        }
        let call = |channel, request| async move { records(channel).list_records(request).await };
        let page: v1::ListRecordsResponse =
            self.client.read_call(self.client.limits, self.request.clone(), call).await?;
        if !page.next_page_token.is_empty() && page.next_page_token == self.request.page_token {
            return Err(Error::protocol("a node gave the same page token twice"));
        }
        self.request.page_token.clone_from(&page.next_page_token);
        self.ended = page.next_page_token.is_empty();
        Ok(Some(page))
    }
}

pub(crate) fn records(channel: Channel) -> RecordServiceClient<Channel> {
    RecordServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Versions never come back, so a version guard that failed once fails for ever; "absent" and "exists" may pass later.
fn rejection_is_final(request: &v1::BatchWriteRequest) -> bool {
    use v1::precondition::Check;
    request.mutations.iter().all(|mutation| match &mutation.precondition {
        None | Some(v1::Precondition { check: None | Some(Check::Version(1..)) }) => true,
        Some(v1::Precondition {
            check: Some(Check::Version(0) | Check::Absent(_) | Check::Exists(_) | Check::Restore(_)),
        }) => false,
    })
}
