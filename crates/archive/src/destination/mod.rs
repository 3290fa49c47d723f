//! Destinations: where objects go. Contains the object store; nothing else here speaks to one.
//!
//! Invariants:
//! - Objects are created, read and listed; never overwritten, never deleted.
//! - When `put_new` returns well, exactly the object's bytes or the winner's are durable under the name. A lost or
//!   late answer is settled by reading: nothing is believed to be there that was not seen.
//! - Every call has a deadline.
//!
//! The file system: `object_store` writes `<name>#<n>`, syncs it, links it into place (create-only) and syncs the
//! parent directory and those it made. Two gaps remain and are closed by `settle`: a link found there may be one
//! whose writer died before it synced the directory; and a directory found there may be one whose maker has not
//! synced *its* parent yet.
//! What an operator's account creates there must be readable for the nodes' account: an object and its directories get
//! the owner of the folder that they lie in, and whoever may read that may read them.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use url::Url;

use crate::error::ArchiveError;
use crate::object::OBJECT_BYTES_MAX;

const DEADLINE: Duration = Duration::from_secs(60);

/// A destination as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationConfig {
    /// Name, as offsite facts carry it.
    pub name: String,
    /// `file:///…`.
    pub url: String,
    /// The log may not be purged beyond what it holds.
    pub required: bool,
    /// Failure-domain labels.
    pub labels: BTreeMap<String, String>,
}

impl DestinationConfig {
    /// A destination known by its URL only, for offline commands.
    pub fn from_url(url: &str) -> Self {
        Self { name: url.to_owned(), url: url.to_owned(), required: false, labels: BTreeMap::new() }
    }
}

/// An open destination; clones share it.
#[derive(Debug, Clone)]
pub struct Destination {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: DestinationConfig,
    store: Arc<dyn ObjectStore>,
    /// Only for the file system.
    folder: Option<Folder>,
    deadline: Duration,
}

#[derive(Debug)]
struct Folder {
    root: PathBuf,
    /// Directories that are durable with all their parents, as far as this process knows.
    durable: Mutex<HashSet<PathBuf>>,
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
        let root = folder_of(config)?;
        let bad = |reason: String| bad_destination(config, &reason);
        if !root.is_dir() {
            return Err(bad(format!("{} is no folder; create it, or mount the disk that holds it", root.display())));
        }
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|error| bad(error.to_string()))?.with_fsync(true);
        let root = root.canonicalize().map_err(|error| bad(error.to_string()))?;
        let folder = Folder { root, durable: Mutex::default() };
        Ok(Self::with_store(config.clone(), Arc::new(store), Some(folder), DEADLINE))
    }

    /// Makes the folder of a file destination where it is missing, then opens it. For the embedded defaults; a
    /// server's configured destination is better opened with [`Destination::open`].
    ///
    /// # Errors
    /// Names the destination and what is wrong with it.
    pub fn create(config: &DestinationConfig) -> Result<Self, ArchiveError> {
        let root = folder_of(config)?;
        create_folder(&root).map_err(ArchiveError::disk("create", &root))?;
        Self::open(config)
    }

    fn with_store(
        config: DestinationConfig,
        store: Arc<dyn ObjectStore>,
        folder: Option<Folder>,
        deadline: Duration,
    ) -> Self {
        Self { inner: Arc::new(Inner { config, store, folder, deadline }) }
    }

    /// How it was configured.
    pub fn config(&self) -> &DestinationConfig {
        &self.inner.config
    }

    /// Writes an object that must not exist yet.
    ///
    /// # Errors
    /// When the destination fails. The object may have been written all the same; the next call finds out.
    pub async fn put_new(&self, object: &str, bytes: &Bytes) -> Result<Put, ArchiveError> {
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

    /// Reads an object.
    ///
    /// # Errors
    /// `Missing` when it is not there, `Corrupt` when it is larger than any object of ours.
    pub async fn get(&self, object: &str) -> Result<Bytes, ArchiveError> {
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
        let all = self.inner.store.list(Some(&path)).try_collect::<Vec<_>>();
        let found = self.within("list", prefix, all).await?;
        let listed = found.into_iter().map(|meta| Listed { path: meta.location.to_string(), bytes: meta.size });
        let mut listed: Vec<Listed> = listed.collect();
        listed.sort();
        Ok(listed)
    }

    /// Names directly under `prefix` that have objects below them, ascending. An empty prefix is the top.
    ///
    /// # Errors
    /// When the destination fails.
    pub async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ArchiveError> {
        let path = self.path(prefix)?;
        let call = self.inner.store.list_with_delimiter(Some(&path));
        let found = self.within("list", prefix, call).await?.common_prefixes;
        let mut names: Vec<String> =
            found.iter().filter_map(|path| path.parts().next_back().map(|part| part.as_ref().to_owned())).collect();
        names.sort();
        Ok(names)
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
        match tokio::time::timeout(self.inner.deadline, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(object_store::Error::NotFound { .. })) => {
                Err(ArchiveError::missing(object, format!("{} does not have it", self.inner.config.url)))
            }
            Ok(Err(source)) => Err(ArchiveError::Destination { object: object.to_owned(), operation, source }),
            Err(_) => {
                let seconds = self.inner.deadline.as_secs();
                Err(ArchiveError::Timeout { object: object.to_owned(), operation, seconds })
            }
        }
    }

    /// Makes an object durable together with its directories, where the store itself does not promise it.
    async fn settle(&self, object: &str, found: bool) -> Result<(), ArchiveError> {
        let Some(folder) = &self.inner.folder else { return Ok(()) };
        let file = folder.root.join(object);
        let Some(parent) = file.parent().map(FsPath::to_owned) else { return Ok(()) };
        let known = lock(&folder.durable).contains(&parent);
        let root = folder.root.clone();
        let dir = parent.clone();
        let synced = tokio::task::spawn_blocking(move || {
            if found {
                sync(&file)?;
            } else {
                let made: Vec<&FsPath> = dir.ancestors().take_while(|dir| *dir != root).collect();
                made.into_iter().rev().chain([file.as_path()]).try_for_each(hand_over)?;
                if known {
                    return Ok(());
                }
            }
            dir.ancestors().take_while(|dir| dir.starts_with(&root)).try_for_each(sync)
        });
        synced.await.map_err(|_| ArchiveError::Stopped { what: "syncing a folder" })??;
        lock(&folder.durable).insert(parent);
        Ok(())
    }
}

fn lock(durable: &Mutex<HashSet<PathBuf>>) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
    // Only whole paths are inserted: a panic elsewhere leaves nothing half done.
    durable.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives what root made in somebody's directory to its owner, and lets those read it who may read the directory.
fn hand_over(path: &FsPath) -> Result<(), ArchiveError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let hand_over = || {
        let (own, of) = (std::fs::metadata(path)?, std::fs::metadata(parent)?);
        if own.uid() != 0 || of.uid() == 0 {
            return Ok(());
        }
        std::os::unix::fs::chown(path, Some(of.uid()), Some(of.gid()))?;
        let mask = if own.is_dir() { 0o777 } else { 0o444 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(own.mode() | (of.mode() & mask)))
    };
    hand_over().map_err(ArchiveError::disk("give to the owner of its folder", path))
}

fn sync(path: &FsPath) -> Result<(), ArchiveError> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(ArchiveError::disk("sync", path))
}

/// `create_dir_all`, durable.
fn create_folder(root: &FsPath) -> std::io::Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    let missing: Vec<&FsPath> = root.ancestors().take_while(|dir| !dir.exists()).collect();
    std::fs::create_dir_all(root)?;
    for dir in missing {
        if let Some(parent) = dir.parent() {
            std::fs::File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

fn bad_destination(config: &DestinationConfig, reason: &str) -> ArchiveError {
    ArchiveError::BadDestination { name: config.name.clone(), url: config.url.clone(), reason: reason.to_owned() }
}

fn folder_of(config: &DestinationConfig) -> Result<PathBuf, ArchiveError> {
    let bad = |reason: &str| bad_destination(config, reason);
    let url = Url::parse(&config.url).map_err(|error| bad(&format!("{error}; write file:///absolute/path")))?;
    match url.scheme() {
        "file" => {}
        "s3" | "gs" | "az" | "azure" | "abfs" | "http" | "https" => {
            return Err(bad("this kind of destination is not built yet; use file:///absolute/path"));
        }
        _ => return Err(bad("unknown kind of destination; use file:///absolute/path")),
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("file destinations take no ?query and no #fragment"));
    }
    url.to_file_path().map_err(|()| bad("no local absolute path; write file:///absolute/path"))
}

#[cfg(test)]
pub(crate) mod tests;
