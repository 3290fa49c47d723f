//! Versions and locks of objects in a bucket of S3: what `object_store` has no calls for.
//!
//! Invariants: what lies there is altered or deleted only where it is a canary of [`crate::doctor`], or by
//! [`super::Remover`], which bypasses no lock; a vault adds versions of the same bytes ([`crate::vault`]); a server's answer is told by status and code alone, as everywhere.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectLockLegalHoldStatus, ObjectLockRetention, ObjectLockRetentionMode};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, tls};
use bytes::Bytes;
use object_store::aws::AmazonS3;
use object_store::path::Path;

use crate::layout::is_canary;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(45);

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer<T> {
    /// It was done.
    Done(T),
    /// The server said no, for good: status and code.
    Refused(String),
    /// The server does not know such calls: status and code.
    Unsupported(String),
    /// There is no such object or version.
    Missing,
    /// Nobody knows: it did not answer, or failed.
    Failed(String),
}

/// A lock on a version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lock {
    /// `COMPLIANCE`: nobody can shorten it; `GOVERNANCE`: whoever has the right can.
    pub mode: String,
    /// Until then, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

/// What keeps a version from being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// A lock, until then: milliseconds since the Unix epoch.
    Until(u64),
    /// A legal hold, until somebody ends it.
    Legally,
    /// Nothing that can be seen.
    Not,
}

/// A version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// `None`: the bucket keeps no versions.
    pub id: Option<String>,
    /// As far as these credentials may see it.
    pub lock: Option<Lock>,
}

/// Calls for one bucket.
#[derive(Debug)]
pub(crate) struct Versions {
    client: Client,
    bucket: String,
    prefix: Path,
}

impl Versions {
    /// With the credentials of `store`, as they are now.
    pub(super) async fn of(
        store: &AmazonS3,
        bucket: &str,
        prefix: &Path,
        endpoint: Option<&str>,
        region: String,
    ) -> Result<Self, String> {
        let known = store.credentials().get_credential().await;
        let known = known.map_err(|_| "there are no credentials for it".to_owned())?;
        let credentials =
            Credentials::new(&known.key_id, &known.secret_key, known.token.clone(), None, "holdfast destination");
        let http = Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .credentials_provider(credentials)
            .region(Region::new(region))
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
        config.set_endpoint_url(endpoint.map(str::to_owned));
        let client = Client::from_conf(config.build());
        Ok(Self { client, bucket: bucket.to_owned(), prefix: prefix.clone() })
    }

    fn key(&self, object: &str) -> String {
        if self.prefix.as_ref().is_empty() { object.to_owned() } else { format!("{}/{object}", self.prefix) }
    }

    /// Creates an object that must not exist yet, in the way that every server of locked objects takes: some want a header that
    /// `object_store` does not send.
    pub(crate) async fn create(&self, object: &str, bytes: &Bytes) -> Answer<()> {
        let call = self.client.put_object().bucket(&self.bucket).key(self.key(object)).if_none_match("*");
        let call = call.checksum_algorithm(ChecksumAlgorithm::Sha256).body(bytes.clone().into());
        answer(call.send()).await.map(|_| ())
    }

    /// Puts other bytes under a canary's name.
    pub(crate) async fn overwrite(&self, canary: &str, bytes: &Bytes) -> Answer<()> {
        if !is_canary(canary) {
            return Answer::Failed("it is no canary".into());
        }
        let call = self.client.put_object().bucket(&self.bucket).key(self.key(canary));
        let call = call.checksum_algorithm(ChecksumAlgorithm::Sha256).body(bytes.clone().into());
        answer(call.send()).await.map(|_| ())
    }

    /// Puts the same bytes under a name that is taken: a new version, with the lock that the bucket gives to what is new.
    pub(crate) async fn put_again(&self, object: &str, bytes: &Bytes) -> Answer<()> {
        let call = self.client.put_object().bucket(&self.bucket).key(self.key(object));
        let call = call.checksum_algorithm(ChecksumAlgorithm::Sha256).body(bytes.clone().into());
        answer(call.send()).await.map(|_| ())
    }

    /// The newest version of an object.
    pub(crate) async fn newest(&self, object: &str) -> Answer<Version> {
        let answer = answer(self.client.head_object().bucket(&self.bucket).key(self.key(object)).send()).await;
        answer.map(|head| {
            let mode = head.object_lock_mode().map(|mode| mode.as_str().to_owned());
            let until = head.object_lock_retain_until_date().and_then(|until| until.to_millis().ok());
            let lock = mode.zip(until).map(|(mode, until)| Lock { mode, until_ms: until.max(0) as u64 });
            // What is written before a bucket keeps versions has the id "null", and a later one takes its place.
            Version { id: head.version_id().filter(|id| *id != "null").map(str::to_owned), lock }
        })
    }

    /// Bytes of a version.
    pub(crate) async fn read(&self, object: &str, version: &str) -> Answer<Bytes> {
        let call = self.client.get_object().bucket(&self.bucket).key(self.key(object)).version_id(version).send();
        match answer(call).await {
            Answer::Done(found) => match tokio::time::timeout(ANSWER, found.body.collect()).await {
                Ok(Ok(bytes)) => Answer::Done(bytes.into_bytes()),
                Ok(Err(_)) | Err(_) => Answer::Failed("its bytes did not come".into()),
            },
            other => other.map(|_| Bytes::new()),
        }
    }

    /// Ids of all versions of an object, deletions among them, newest first.
    pub(super) async fn list(&self, object: &str) -> Answer<Vec<String>> {
        let key = self.key(object);
        let mut ids = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let call = self.client.list_object_versions().bucket(&self.bucket).prefix(&key);
            let call = call.set_key_marker(key_marker).set_version_id_marker(id_marker);
            let page = match answer(call.send()).await {
                Answer::Done(page) => page,
                other => return other.map(|_| Vec::new()),
            };
            let versions = page.versions().iter().map(|one| (one.key(), one.version_id()));
            let deletions = page.delete_markers().iter().map(|one| (one.key(), one.version_id()));
            let own = versions.chain(deletions).filter(|(found, _)| *found == Some(&key));
            ids.extend(own.filter_map(|(_, id)| id.map(str::to_owned)));
            if page.is_truncated() != Some(true) || page.next_key_marker() != Some(&key) {
                return Answer::Done(ids);
            }
            key_marker = page.next_key_marker().map(str::to_owned);
            id_marker = page.next_version_id_marker().map(str::to_owned);
        }
    }

    /// Deletes a version, if no lock holds it.
    pub(super) async fn delete_for_good(&self, object: &str, version: &str) -> Answer<()> {
        let call = self.client.delete_object().bucket(&self.bucket).key(self.key(object));
        answer(call.version_id(version).send()).await.map(|_| ())
    }

    /// What keeps a version from being deleted.
    pub(super) async fn lock_of(&self, object: &str, version: &str) -> Answer<Held> {
        let call = self.client.head_object().bucket(&self.bucket).key(self.key(object)).version_id(version);
        let head = answer(call.send()).await;
        head.map(|head| {
            let until = head.object_lock_retain_until_date().and_then(|until| until.to_millis().ok());
            match until {
                Some(until) => Held::Until(until.max(0) as u64),
                None if head.object_lock_legal_hold_status() == Some(&ObjectLockLegalHoldStatus::On) => Held::Legally,
                None => Held::Not,
            }
        })
    }

    /// Deletes a version, with every right that the credentials have.
    pub(crate) async fn delete(&self, object: &str, version: &str) -> Answer<()> {
        if !is_canary(object) {
            return Answer::Failed("it is no canary".into());
        }
        let call = self.client.delete_object().bucket(&self.bucket).key(self.key(object)).version_id(version);
        answer(call.bypass_governance_retention(true).send()).await.map(|_| ())
    }

    /// Sets a lock, shorter or longer, with every right that the credentials have.
    pub(crate) async fn set_lock(&self, object: &str, version: Option<&str>, lock: &Lock) -> Answer<()> {
        if !is_canary(object) {
            return Answer::Failed("it is no canary".into());
        }
        let retention = ObjectLockRetention::builder()
            .mode(ObjectLockRetentionMode::from(lock.mode.as_str()))
            .retain_until_date(DateTime::from_millis(lock.until_ms as i64))
            .build();
        let mut call = self.client.put_object_retention().bucket(&self.bucket).key(self.key(object));
        call = call.set_version_id(version.map(str::to_owned)).retention(retention).bypass_governance_retention(true);
        answer(call.send()).await.map(|_| ())
    }
}

impl<T> Answer<T> {
    fn map<U>(self, to: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Done(value) => Answer::Done(to(value)),
            Self::Refused(said) => Answer::Refused(said),
            Self::Unsupported(said) => Answer::Unsupported(said),
            Self::Missing => Answer::Missing,
            Self::Failed(said) => Answer::Failed(said),
        }
    }
}

async fn answer<T, E: ProvideErrorMetadata>(
    call: impl Future<Output = Result<T, SdkError<E, aws_sdk_s3::config::http::HttpResponse>>>,
) -> Answer<T> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(Ok(done)) => Answer::Done(done),
        Ok(Err(error)) => refusal(&error),
        Err(_) => Answer::Failed(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

fn refusal<T, E: ProvideErrorMetadata>(error: &SdkError<E, aws_sdk_s3::config::http::HttpResponse>) -> Answer<T> {
    let Some(response) = error.raw_response() else {
        return Answer::Failed("it cannot be reached, or did not answer".into());
    };
    let status = response.status().as_u16();
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default();
    let is_word = !code.is_empty() && code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let said = if is_word { format!("HTTP {status} {code}") } else { format!("HTTP {status}") };
    match status {
        404 => Answer::Missing,
        403 | 405 | 409 | 412 => Answer::Refused(said),
        408 | 429 => Answer::Failed(said),
        // Also of a bucket that has no locks at all: there is none to shorten. A request that was not understood was not refused.
        400..=499 | 501 => Answer::Unsupported(said),
        _ => Answer::Failed(said),
    }
}
