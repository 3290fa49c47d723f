//! Manifests: what the server holds of a user, without payloads, as a stream that survives the node that sends it.
//!
//! Invariants:
//! - Only the server's last chunk ends a manifest. A stream that breaks, stops, or is closed without it is begun again.
//! - A view begun again is another view: the caller is told to drop what it was given of the one before.

use std::time::Duration;

use holdfast_wire::v1;
use tokio::time::Instant;
use tonic::{Request, Streaming};

use crate::account::sync;
use crate::client::Client;
use crate::error::Error;
use crate::retry::{self, ATTEMPT_MIN, Failure, Next, Pace};

/// A part of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub enum ManifestPart {
    /// Records and tombstones in the order of their versions, without payloads.
    Records(Vec<v1::Record>),
    /// The stream broke and begins again with another view: drop all records that came before this.
    Restarted,
    /// That was all. Absence means something only from here on.
    End(ManifestEnd),
}

/// How a manifest ends.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifestEnd {
    /// Where the view was evaluated.
    pub header: v1::ResponseHeader,
    /// Continue with [`Client::changes`] from here.
    pub sync_token: String,
    /// Tombstones at or below this version are gone: see [`crate::resync::reconcile`].
    pub tombstone_horizon: u64,
}

/// A whole manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifestView {
    /// Records and tombstones in the order of their versions, without payloads.
    pub records: Vec<v1::Record>,
    /// Where, and how to continue.
    pub end: ManifestEnd,
}

impl Client {
    /// What the server holds of a user, in one consistent view. The deadline counts anew whenever more has arrived than
    /// ever before, so that a large manifest may take its time and one that never gets further ends.
    pub fn manifest(&self, mut request: v1::GetManifestRequest) -> Manifest<'_> {
        let bounded = self.bind(&mut request);
        self.nodes.called();
        Manifest {
            client: self,
            request,
            bounded,
            index: self.nodes.pick(None),
            stream: None,
            header: None,
            given: 0,
            furthest: 0,
            restarted: false,
            end: None,
            ended: false,
            attempt: self.limits.attempt,
            pace: Pace::default(),
            not_before: None,
            deadline: None,
        }
    }

    /// A manifest, collected in memory.
    ///
    /// # Errors
    /// When no node could send all of it.
    pub async fn manifest_all(&self, request: v1::GetManifestRequest) -> Result<ManifestView, Error> {
        let mut manifest = self.manifest(request);
        let mut all = Vec::new();
        loop {
            match manifest.next_part().await? {
                Some(ManifestPart::Records(records)) => all.extend(records),
                Some(ManifestPart::Restarted) => all.clear(),
                Some(ManifestPart::End(end)) => return Ok(ManifestView { records: all, end }),
                None => return Err(Error::protocol("a manifest ended without its end, a defect of this client")),
            }
        }
    }
}

/// A manifest on its way.
#[derive(Debug)]
#[must_use = "nothing is asked for until a part is"]
pub struct Manifest<'a> {
    client: &'a Client,
    request: v1::GetManifestRequest,
    /// The freshness asked for is the session's.
    bounded: bool,
    index: usize,
    stream: Option<Streaming<v1::GetManifestResponse>>,
    header: Option<v1::ResponseHeader>,
    /// Records handed out of this view, and of the view that got furthest.
    given: usize,
    furthest: usize,
    /// The caller holds records of a view that broke.
    restarted: bool,
    end: Option<ManifestEnd>,
    ended: bool,
    attempt: Duration,
    pace: Pace,
    not_before: Option<Instant>,
    deadline: Option<Instant>,
}

impl Manifest<'_> {
    /// The next part; `None` after [`ManifestPart::End`]. May be cancelled and called again.
    ///
    /// # Errors
    /// When no node could send all of it. What came before is then no manifest: absence in it means nothing.
    pub async fn next_part(&mut self) -> Result<Option<ManifestPart>, Error> {
        loop {
            if std::mem::take(&mut self.restarted) {
                return Ok(Some(ManifestPart::Restarted));
            }
            if let Some(end) = self.end.take() {
                self.ended = true;
                self.stream = None;
                return Ok(Some(ManifestPart::End(end)));
            }
            if self.ended {
                return Ok(None);
            }
            let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.client.limits.deadline);
            match self.chunk(deadline).await {
                Ok(chunk) => {
                    if let Some(records) = self.take(chunk)? {
                        return Ok(Some(ManifestPart::Records(records)));
                    }
                }
                Err(failure) => {
                    // Whoever asks again has a whole deadline again.
                    let again = self.start_again(failure, deadline);
                    if again.is_err() {
                        self.deadline = None;
                    }
                    again?;
                }
            }
        }
    }

    async fn chunk(&mut self, deadline: Instant) -> Result<v1::GetManifestResponse, Failure> {
        if let Some(not_before) = self.not_before {
            tokio::time::sleep_until(not_before).await;
            self.not_before = None;
        }
        let nodes = &self.client.nodes;
        let time = self.attempt.min(deadline.saturating_duration_since(Instant::now()));
        let address = nodes.address(self.index);
        let next = async {
            if self.stream.is_none() {
                let mut request = Request::new(self.request.clone());
                // For the whole stream, as far as the node cares.
                request.set_timeout(self.client.limits.deadline);
                let answer = sync(nodes.channel(self.index)).get_manifest(request).await?;
                self.stream = Some(answer.into_inner());
            }
            match &mut self.stream {
                Some(stream) => stream.message().await,
                None => Ok(None),
            }
        };
        match tokio::time::timeout(time, next).await {
            Ok(Ok(Some(chunk))) => Ok(chunk),
            Ok(Ok(None)) => Err(retry::broken_off(address)),
            Ok(Err(status)) => Err(retry::judge(&status, address)),
            Err(_) => Err(retry::timed_out(address, time)),
        }
    }

    /// Notes what a chunk says; gives its records, if it has any.
    fn take(&mut self, chunk: v1::GetManifestResponse) -> Result<Option<Vec<v1::Record>>, Error> {
        if let Some(header) = chunk.header {
            self.client.nodes.answered(self.index, Some(&header));
            self.header = Some(header);
        }
        self.given += chunk.records.len();
        if self.given > self.furthest {
            self.furthest = self.given;
            self.deadline = None;
            self.pace = Pace::default();
        }
        if !chunk.sync_token.is_empty() {
            let message = "a node sent a manifest without a header; upgrade the node";
            let header = self.header.ok_or_else(|| Error::protocol(message))?;
            if let Some(seen) = &self.client.seen {
                seen.observe(Some(&header));
            }
            let v1::GetManifestResponse { sync_token, tombstone_horizon, .. } = chunk;
            self.end = Some(ManifestEnd { header, sync_token, tombstone_horizon });
        }
        Ok((!chunk.records.is_empty()).then_some(chunk.records))
    }

    /// Prepares the next attempt, or says why there is none.
    fn start_again(&mut self, failure: Failure, deadline: Instant) -> Result<(), Error> {
        let Client { nodes, limits, .. } = self.client;
        self.stream = None;
        self.header = None;
        self.restarted |= std::mem::take(&mut self.given) > 0;
        if std::mem::take(&mut self.bounded) && self.client.unbind(&mut self.request, &failure.error) {
            return Ok(());
        }
        if let Some(avoid) = failure.avoid {
            nodes.failed(self.index, avoid);
        }
        if failure.slow {
            self.attempt = self.attempt.saturating_mul(2);
        }
        let Some(pause) = self.pace.pause(&failure.next, nodes.len()) else { return Err(failure.error) };
        let not_before = Instant::now() + pause;
        if not_before + ATTEMPT_MIN > deadline {
            return Err(retry::out_of_time(nodes, *limits, failure.error));
        }
        if !nodes.may_retry() {
            return Err(retry::out_of_budget(failure.error));
        }
        self.not_before = Some(not_before);
        if !matches!(failure.next, Next::Back(_)) {
            self.index = nodes.pick(Some(self.index));
        }
        Ok(())
    }
}
