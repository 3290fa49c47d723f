//! Destinations: where objects go. Contains the object store; nothing else here speaks to one.
//!
//! Invariants:
//! - Objects are created, read and listed; never overwritten, but for canaries of [`crate::doctor`]; and never deleted, but for
//!   these, and by [`Remover`], which [`crate::prune`] alone has.
//! - When `put_new` returns well, exactly the object's bytes or the winner's are durable under the name. A lost or
//!   late answer is settled by reading: nothing is believed to be there that was not seen.
//! - Every call has a deadline.

mod cloud;
mod folder;
mod remove;
mod versions;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode};
use url::Url;

use self::cloud::{Bucket, Failure, Service};
use self::folder::Folder;
pub(crate) use self::remove::{Removal, Remover};
pub(crate) use self::versions::{Answer, Lock, Version, Versions};
use crate::error::ArchiveError;
use crate::keys::{Keyring, NO_KEYS};
use crate::layout::is_canary;
use crate::object::{self, OBJECT_BYTES_MAX};

const DEADLINE: Duration = Duration::from_secs(60);

/// A destination as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationConfig {
    /// Name, as offsite facts carry it.
    pub name: String,
    /// `file:///…`, `s3://bucket/prefix?endpoint=…&region=…`, `gs://bucket/prefix` or
    /// `az://container/prefix?account=…`.
    pub url: String,
    /// Credentials of a bucket; `None` = from the environment, as the service's own tools have them.
    pub credentials_file: Option<PathBuf>,
    /// The log may not be purged beyond what it holds.
    pub required: bool,
    /// Failure-domain labels.
    pub labels: BTreeMap<String, String>,
}

impl DestinationConfig {
    /// A destination known by its URL only, for offline commands.
    pub fn from_url(url: &str) -> Self {
        Self {
            name: url.to_owned(),
            url: url.to_owned(),
            credentials_file: None,
            required: false,
            labels: BTreeMap::new(),
        }
    }

    /// The same, with credentials.
    pub fn with_credentials(mut self, file: Option<PathBuf>) -> Self {
        self.credentials_file = file;
        self
    }

    /// Whether the URL can be used at all; nothing is looked at.
    ///
    /// # Errors
    /// Says what to write instead.
    pub fn check(&self) -> Result<(), ArchiveError> {
        Place::of(self).map(|_| ())
    }
}

/// An open destination; clones share it.
#[derive(Debug, Clone)]
pub struct Destination {
    inner: Arc<Inner>,
    /// What opens encrypted objects there.
    keys: Arc<Keyring>,
}

#[derive(Debug)]
struct Inner {
    config: DestinationConfig,
    store: Arc<dyn ObjectStore>,
    /// Only for the file system.
    folder: Option<Folder>,
    deadline: Duration,
}

/// How a create-only write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// Created by this call.
    Created,
    /// An object of equal bytes was there.
    Same,
    /// Another object was there first; these are its bytes.
    Lost(Bytes),
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Full name.
    pub path: String,
    /// Length.
    pub bytes: u64,
}

impl Destination {
    /// Opens a destination that exists. A folder that is not there is an error: it may be a disk that is not mounted.
    ///
    /// # Errors
    /// Names the destination and what is wrong with it.
    pub fn open(config: &DestinationConfig) -> Result<Self, ArchiveError> {
        let bad = |reason: String| ArchiveError::bad_destination(config, reason);
        match Place::of(config)? {
            Place::Folder(url) => {
                let (store, folder) = Folder::open(&url).map_err(bad)?;
                Ok(Self::with_store(config.clone(), Arc::new(store), Some(folder), DEADLINE))
            }
            Place::Bucket(bucket) => {
                Ok(Self::with_store(config.clone(), bucket.open(config).map_err(bad)?, None, DEADLINE))
            }
        }
    }

    /// Makes the folder of a file destination where it is missing, then opens it: for a destination that nothing was
    /// ever put into. Buckets are made by those who own them.
    ///
    /// # Errors
    /// Names the destination and what is wrong with it.
    pub fn create(config: &DestinationConfig) -> Result<Self, ArchiveError> {
        if let Place::Folder(url) = Place::of(config)? {
            Folder::create(&url)?;
        }
        Self::open(config)
    }

    fn with_store(
        config: DestinationConfig,
        store: Arc<dyn ObjectStore>,
        folder: Option<Folder>,
        deadline: Duration,
    ) -> Self {
        Self { inner: Arc::new(Inner { config, store, folder, deadline }), keys: Arc::default() }
    }

    /// The same, with what opens encrypted objects there.
    pub fn with_keys(self, keys: Arc<Keyring>) -> Self {
        Self { keys, ..self }
    }

    /// What opens encrypted objects there, as far as it was found.
    pub fn keys(&self) -> &Keyring {
        &self.keys
    }

    pub(crate) fn shared_keys(&self) -> Arc<Keyring> {
        self.keys.clone()
    }

    /// How it was configured.
    pub fn config(&self) -> &DestinationConfig {
        &self.inner.config
    }

    /// Writes an object that must not exist yet, and reads back what it created: what comes well out of here was seen
    /// there, whole.
    ///
    /// # Errors
    /// When the destination fails; the object may have been written all the same, and the next call finds out.
    /// `Missing` or `Corrupt` when it says that it wrote the object, and then has none or another one.
    pub async fn put_checked(&self, object: &str, bytes: &Bytes) -> Result<Put, ArchiveError> {
        let put = self.put_new(object, bytes).await?;
        // The other outcomes were read from there.
        if put == Put::Created && self.get(object).await? != *bytes {
            return Err(ArchiveError::corrupt(object, "the destination gave back other bytes than were written"));
        }
        Ok(put)
    }

    /// Writes an object that must not exist yet, and believes the destination.
    async fn put_new(&self, object: &str, bytes: &Bytes) -> Result<Put, ArchiveError> {
        let path = self.path(object)?;
        let call = self.inner.store.put_opts(&path, bytes.clone().into(), PutMode::Create.into());
        let failed = match self.within("create", object, call).await {
            Ok(_) => {
                self.settle(object, false).await?;
                return Ok(Put::Created);
            }
            Err(failed) => failed,
        };
        // It exists, or the answer was lost: what lies there decides.
        match self.get(object).await {
            Ok(found) => {
                self.settle(object, true).await?;
                Ok(if found == *bytes { Put::Same } else { Put::Lost(found) })
            }
            Err(ArchiveError::Missing { .. }) => Err(failed),
            Err(error) => Err(error),
        }
    }

    /// It is a folder of a file system.
    pub fn is_folder(&self) -> bool {
        self.inner.folder.is_some()
    }

    /// Calls that know versions and locks; `None`: there are none for this service.
    pub(crate) async fn versions(&self) -> Result<Option<Versions>, ArchiveError> {
        let Place::Bucket(bucket) = Place::of(&self.inner.config)? else { return Ok(None) };
        let versions = bucket.versions(&self.inner.config).await.transpose();
        versions.map_err(|reason| ArchiveError::bad_destination(&self.inner.config, reason))
    }

    /// Asks for a canary to be created, and tells what the destination says to that: nothing is read.
    pub(crate) async fn try_create(&self, canary: &str, bytes: &Bytes) -> Result<Answer<()>, ArchiveError> {
        self.try_put(canary, bytes, PutMode::Create).await
    }

    /// Asks for a canary to be replaced.
    pub(crate) async fn try_overwrite(&self, canary: &str, bytes: &Bytes) -> Result<Answer<()>, ArchiveError> {
        self.try_put(canary, bytes, PutMode::Overwrite).await
    }

    async fn try_put(&self, canary: &str, bytes: &Bytes, mode: PutMode) -> Result<Answer<()>, ArchiveError> {
        let path = self.canary(canary)?;
        let call = self.inner.store.put_opts(&path, bytes.clone().into(), mode.into());
        self.answer(canary, async { call.await.map(|_| ()) }).await
    }

    /// Asks for a canary to be deleted.
    pub(crate) async fn try_delete(&self, canary: &str) -> Result<Answer<()>, ArchiveError> {
        let path = self.canary(canary)?;
        self.answer(canary, self.inner.store.delete(&path)).await
    }

    /// Nothing but a canary is ever overwritten or deleted from here.
    fn canary(&self, object: &str) -> Result<Path, ArchiveError> {
        if is_canary(object) {
            return self.path(object);
        }
        Err(ArchiveError::refused(format!("{object} is no canary")))
    }

    async fn answer(
        &self,
        object: &str,
        call: impl Future<Output = object_store::Result<()>>,
    ) -> Result<Answer<()>, ArchiveError> {
        let guarded = async {
            self.present().await?;
            Ok(match call.await {
                Ok(()) => Answer::Done(()),
                Err(object_store::Error::AlreadyExists { .. }) => Answer::Refused("it exists".into()),
                Err(source) => match self.failed("try", object, source) {
                    ArchiveError::Missing { .. } => Answer::Missing,
                    ArchiveError::Forbidden { reason, .. } => Answer::Refused(reason),
                    ArchiveError::Destination { reason, .. } => {
                        let is = |status: &[&str]| status.iter().any(|one| reason.starts_with(&format!("HTTP {one}")));
                        match () {
                            () if is(&["405", "409", "412"]) => Answer::Refused(reason),
                            () if is(&["408", "429"]) => Answer::Failed(reason),
                            // What was not understood was not refused.
                            () if is(&["4", "501"]) => Answer::Unsupported(reason),
                            () => Answer::Failed(reason),
                        }
                    }
                    error => return Err(error),
                },
            })
        };
        let seconds = self.inner.deadline.as_secs();
        let late = || Answer::Failed(format!("no answer within {seconds} s"));
        tokio::time::timeout(self.inner.deadline, guarded).await.unwrap_or_else(|_| Ok(late()))
    }

    /// Reads an object, and the KEYS.age that an identity needs to open it.
    ///
    /// # Errors
    /// `Missing` when it is not there, `Corrupt` when it is larger than any object of ours.
    pub async fn get(&self, object: &str) -> Result<Bytes, ArchiveError> {
        let bytes = self.read(object).await?;
        // Hashed for the first object of a generation only. A damaged one sends nobody to look for keys.
        if let Some(sealed) = object::sealed_with(&bytes).filter(|sealed| self.keys.needs_keys_of(sealed))
            && object::is_whole(&bytes)
        {
            let keys = self.read(&sealed.keys_object()).await.map_err(|error| match error {
                ArchiveError::Missing { object, .. } => ArchiveError::missing(object, NO_KEYS),
                error => error,
            })?;
            self.keys.take_keys(&sealed, &keys)?;
        }
        Ok(bytes)
    }

    /// Reads an object, and nothing beside it.
    async fn read(&self, object: &str) -> Result<Bytes, ArchiveError> {
        let path = self.path(object)?;
        let read = async {
            let found = self.inner.store.get(&path).await?;
            if found.meta.size > OBJECT_BYTES_MAX { Ok(Err(found.meta.size)) } else { found.bytes().await.map(Ok) }
        };
        match self.within("read", object, read).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(size)) => Err(ArchiveError::corrupt(object, format!("{size} bytes are more than any object has"))),
            Err(error) => Err(error),
        }
    }

    /// Length of an object; `None` = it is not there.
    ///
    /// # Errors
    /// When the destination fails.
    pub async fn length(&self, object: &str) -> Result<Option<u64>, ArchiveError> {
        let path = self.path(object)?;
        match self.within("look at", object, self.inner.store.head(&path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(ArchiveError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects under `prefix`, ascending by name.
    ///
    /// # Errors
    /// When the destination fails.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, ArchiveError> {
        let path = self.path(prefix)?;
        self.listed(prefix, self.inner.store.list(Some(&path)).try_collect()).await
    }

    /// All objects under `prefix`, ascending by name, and when the destination says that each was written: milliseconds since
    /// the Unix epoch.
    ///
    /// # Errors
    /// When the destination fails.
    pub(crate) async fn list_dated(&self, prefix: &str) -> Result<Vec<(Listed, u64)>, ArchiveError> {
        let path = self.path(prefix)?;
        let call = self.inner.store.list(Some(&path)).try_collect::<Vec<ObjectMeta>>();
        let listed = self.within("list", prefix, call).await?.into_iter();
        let dated = |meta: ObjectMeta| {
            let written_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
            (Listed::from(meta), written_ms)
        };
        let mut listed: Vec<(Listed, u64)> = listed.map(dated).collect();
        listed.sort();
        Ok(listed)
    }

    /// Those whose full names come after `after`, which lies under `prefix` itself: what comes before is not asked for.
    ///
    /// # Errors
    /// When the destination fails.
    pub async fn list_after(&self, prefix: &str, after: &str) -> Result<Vec<Listed>, ArchiveError> {
        let (path, offset) = (self.path(prefix)?, self.path(after)?);
        self.listed(prefix, self.inner.store.list_with_offset(Some(&path), &offset).try_collect()).await
    }

    async fn listed(
        &self,
        prefix: &str,
        call: impl Future<Output = object_store::Result<Vec<ObjectMeta>>>,
    ) -> Result<Vec<Listed>, ArchiveError> {
        let mut listed: Vec<Listed> = self.within("list", prefix, call).await?.into_iter().map(Listed::from).collect();
        listed.sort();
        Ok(listed)
    }

    /// What lies directly under `prefix`, ascending: objects, and names that have objects below them. An empty prefix
    /// is the top.
    ///
    /// # Errors
    /// When the destination fails.
    pub async fn list_here(&self, prefix: &str) -> Result<(Vec<Listed>, Vec<String>), ArchiveError> {
        let path = self.path(prefix)?;
        let found = self.within("list", prefix, self.inner.store.list_with_delimiter(Some(&path))).await?;
        let mut objects: Vec<Listed> = found.objects.into_iter().map(Listed::from).collect();
        let names = found.common_prefixes.iter();
        let mut names: Vec<String> =
            names.filter_map(|path| path.parts().next_back().map(|part| part.as_ref().to_owned())).collect();
        objects.sort();
        names.sort();
        Ok((objects, names))
    }

    fn path(&self, object: &str) -> Result<Path, ArchiveError> {
        Path::parse(object).map_err(|error| ArchiveError::refused(format!("{object:?} is no object name: {error}")))
    }

    async fn within<T>(
        &self,
        operation: &'static str,
        object: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, ArchiveError> {
        let guarded = async {
            self.present().await?;
            call.await.map_err(|source| self.failed(operation, object, source))
        };
        tokio::time::timeout(self.inner.deadline, guarded).await.unwrap_or_else(|_| {
            let seconds = self.inner.deadline.as_secs();
            Err(ArchiveError::Timeout { object: object.to_owned(), operation, seconds })
        })
    }

    fn failed(&self, operation: &'static str, object: &str, source: object_store::Error) -> ArchiveError {
        let (object, url) = (object.to_owned(), &self.inner.config.url);
        let failure = match (&self.inner.folder, &source) {
            (_, object_store::Error::AlreadyExists { .. }) => Failure::Failed("it exists".to_owned()),
            (Some(_), object_store::Error::NotFound { .. }) => Failure::Missing,
            (Some(_), source) => Failure::Failed(source.to_string()),
            (None, source) => cloud::failure(source),
        };
        match failure {
            Failure::Missing => ArchiveError::missing(object, format!("{url} does not have it")),
            Failure::Forbidden(reason) => ArchiveError::Forbidden { url: url.clone(), object, operation, reason },
            Failure::NoBucket(reason) => ArchiveError::NoBucket { url: url.clone(), reason },
            Failure::Failed(reason) => ArchiveError::Destination { object, operation, reason },
        }
    }

    /// The folder is still the one that was opened: `object_store` would make it anew on whatever disk is below.
    async fn present(&self) -> Result<(), ArchiveError> {
        match &self.inner.folder {
            None => Ok(()),
            Some(folder) => {
                let present = folder.present().await?;
                present.map_err(|reason| ArchiveError::bad_destination(&self.inner.config, reason))
            }
        }
    }

    /// Makes an object durable together with its directories, where the store itself does not promise it.
    async fn settle(&self, object: &str, found: bool) -> Result<(), ArchiveError> {
        let Some(folder) = &self.inner.folder else { return Ok(()) };
        // Not if the folder went away meanwhile: then it lies elsewhere.
        self.present().await?;
        folder.settle(object, found).await
    }
}

impl From<ObjectMeta> for Listed {
    fn from(meta: ObjectMeta) -> Self {
        Self { path: meta.location.to_string(), bytes: meta.size }
    }
}

/// Where a URL points to.
enum Place {
    Folder(Url),
    Bucket(Bucket),
}

const FORMS: &str = "write file:///absolute/path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";

impl Place {
    fn of(config: &DestinationConfig) -> Result<Self, ArchiveError> {
        let bad = |reason: String| ArchiveError::bad_destination(config, reason);
        let url = Url::parse(&config.url).map_err(|error| bad(format!("{error}; {FORMS}")))?;
        if let Some(service) = Service::of(url.scheme()) {
            return Bucket::parse(service, &url).map(Self::Bucket).map_err(bad);
        }
        if url.scheme() != "file" {
            return Err(bad(format!("unknown kind of destination; {FORMS}")));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("file destinations take no ?query and no #fragment".to_owned()));
        }
        if config.credentials_file.is_some() {
            return Err(bad("a folder takes no credentials".to_owned()));
        }
        folder::path_of(&url).map_err(bad)?;
        Ok(Self::Folder(url))
    }
}

#[cfg(test)]
mod http_fake;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
pub(crate) mod tests;
