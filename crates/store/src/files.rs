//! Files that survive a power cut: every rename is preceded by an fsync of the file and followed by one of its directory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::StoreError;

/// Suffix of a file that is being written.
const TMP_SUFFIX: &str = ".tmp";

/// Makes names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("fsync directory", dir))
}

/// Makes a file's bytes durable.
pub(crate) fn sync_file(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(StoreError::io("fsync", path))
}

/// Replaces a file as a whole: readers and crashes see the old bytes or the new ones.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let dir = parent(path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(TMP_SUFFIX);
    let tmp = dir.join(name);
    let written = File::create(&tmp).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(StoreError::io("write", &tmp))?;
    fs::rename(&tmp, path).map_err(StoreError::io("rename into place", path))?;
    sync_dir(&dir)
}

/// Makes a directory and its name durable; no error when it exists.
pub(crate) fn create_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(StoreError::io("create directory", dir)(error))
        }
        _ => sync_dir(&parent(dir)),
    }
}

/// Makes a directory and those above it, each durable.
pub(crate) fn create_dir_all(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    create_dir_all(&parent(dir))?;
    create_dir(dir)
}

/// Renames within a file system and makes both names durable.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(StoreError::io("rename", from))?;
    sync_dir(&parent(to))?;
    if parent(from) != parent(to) { sync_dir(&parent(from)) } else { Ok(()) }
}

/// Deletes a file durably; no error when it is gone.
pub(crate) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_dir(&parent(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("remove", path)(error)),
    }
}

/// Deletes a directory with all in it; no error when it is gone.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("delete", dir)(error)),
        _ => Ok(()),
    }
}

/// Names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(dir).map_err(StoreError::io("list", dir))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Directory of a path; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// A file that must be text; `None` when it is not there. Bytes that are no text are damage, not a failing disk.
pub(crate) fn read_text(path: &Path) -> Result<Option<Result<String, &'static str>>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8(bytes).map_err(|_| "it is no text"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// Moves what is damaged out of the way, under a name not yet taken. Nothing is deleted: an operator may want it.
pub(crate) fn quarantine(data: &Path, damaged: &Path) -> Result<PathBuf, StoreError> {
    let target = quarantine_name(data, &damaged.file_name().unwrap_or_default().to_string_lossy())?;
    rename(damaged, &target)?;
    Ok(target)
}

/// A new directory for copies of what is damaged, as [`quarantine`] would name it.
pub(crate) fn quarantine_dir(data: &Path, name: &str) -> Result<PathBuf, StoreError> {
    let target = quarantine_name(data, name)?;
    create_dir(&target)?;
    Ok(target)
}

fn quarantine_name(data: &Path, name: &str) -> Result<PathBuf, StoreError> {
    let dir = data.join("quarantine");
    create_dir(&dir)?;
    let taken = names(&dir)?;
    let free = (1u64..).map(|n| format!("{name}-{n}")).find(|candidate| !taken.contains(candidate));
    Ok(dir.join(free.unwrap_or_else(|| name.to_owned())))
}
