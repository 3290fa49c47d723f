//! A folder of the local file system, or of one that is mounted, as a destination.
//!
//! `object_store` writes `<name>#<n>`, syncs it, links it into place (create-only) and syncs the parent directory and
//! those it made. Two gaps remain and are closed by `settle`: a link found there may be one whose writer died before it
//! synced the directory; and a directory found there may be one whose maker has not synced *its* parent yet.
//!
//! A folder that goes away while it is open, as a mount does, is never made anew: what lies below a mount is another
//! disk. It is known by its device and inode.
//!
//! What an operator's account creates there must be readable for the nodes' account: an object and its directories get
//! the owner of the folder that they lie in, and whoever may read that may read them.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use object_store::local::LocalFileSystem;
use url::Url;

use crate::error::ArchiveError;

#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Device and inode of the root.
    identity: (u64, u64),
    /// Directories that are durable with all their parents, as far as this process knows.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Folder {
    /// Opens a folder that is there.
    pub(super) fn open(url: &Url) -> Result<(LocalFileSystem, Self), String> {
        let root = path_of(url)?;
        if !root.is_dir() {
            return Err(format!("{} is no folder; create it, or mount the disk that holds it", root.display()));
        }
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|error| error.to_string())?.with_fsync(true);
        let root = root.canonicalize().map_err(|error| error.to_string())?;
        let identity = identity(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        Ok((store, Self { root, identity, durable: Mutex::default() }))
    }

    /// `create_dir_all`, durable.
    pub(super) fn create(url: &Url) -> Result<(), ArchiveError> {
        // A path that is none is for `open` to name.
        let Ok(root) = path_of(url) else { return Ok(()) };
        create_folder(&root).map_err(ArchiveError::disk("create", &root))
    }

    /// The inner error says that it is not the folder that was opened.
    pub(super) async fn present(&self) -> Result<Result<(), String>, ArchiveError> {
        let (root, opened) = (self.root.clone(), self.identity);
        let looking = tokio::task::spawn_blocking(move || match identity(&root) {
            Ok(found) if found == opened => Ok(()),
            Ok(_) => Err(format!(
                "{} is another folder than the one that was in use; mount the disk that holds the archive",
                root.display()
            )),
            Err(error) => Err(format!(
                "{} is gone ({error}); mount the disk that holds it, or bring the folder back",
                root.display()
            )),
        });
        looking.await.map_err(|_| ArchiveError::Stopped { what: "looking at a folder" })
    }

    /// Makes an object durable together with its directories; `found` = somebody else may have written it.
    pub(super) async fn settle(&self, object: &str, found: bool) -> Result<(), ArchiveError> {
        let file = self.root.join(object);
        let Some(parent) = file.parent().map(Path::to_owned) else { return Ok(()) };
        let known = self.durable().contains(&parent);
        let root = self.root.clone();
        let dir = parent.clone();
        let synced = tokio::task::spawn_blocking(move || {
            if found {
                sync(&file)?;
            } else {
                let made: Vec<&Path> = dir.ancestors().take_while(|dir| *dir != root).collect();
                made.into_iter().rev().chain([file.as_path()]).try_for_each(hand_over)?;
                if known {
                    return Ok(());
                }
            }
            dir.ancestors().take_while(|dir| dir.starts_with(&root)).try_for_each(sync)
        });
        synced.await.map_err(|_| ArchiveError::Stopped { what: "syncing a folder" })??;
        self.durable().insert(parent);
        Ok(())
    }

    /// Takes away the directory that a deleted object lay in, if nothing else does.
    pub(super) fn tidy(&self, object: &str) {
        if let Some(parent) = self.root.join(object).parent().filter(|parent| **parent != self.root) {
            // One that is not empty stays, and whoever creates something in it makes it anew.
            if std::fs::remove_dir(parent).is_ok() {
                self.durable().remove(parent);
            }
        }
    }

    pub(super) fn durable(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        // Only whole paths are inserted: a panic elsewhere leaves nothing half done.
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn path_of(url: &Url) -> Result<PathBuf, String> {
    url.to_file_path().map_err(|()| "no local absolute path; write file:///absolute/path".to_owned())
}

fn identity(root: &Path) -> std::io::Result<(u64, u64)> {
    let found = std::fs::metadata(root)?;
    Ok((found.dev(), found.ino()))
}

/// Gives what root made in somebody's directory to its owner, and lets those read it who may read the directory.
fn hand_over(path: &Path) -> Result<(), ArchiveError> {
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

fn sync(path: &Path) -> Result<(), ArchiveError> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(ArchiveError::disk("sync", path))
}

fn create_folder(root: &Path) -> std::io::Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    let missing: Vec<&Path> = root.ancestors().take_while(|dir| !dir.exists()).collect();
    std::fs::create_dir_all(root)?;
    for dir in missing {
        if let Some(parent) = dir.parent() {
            std::fs::File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}
