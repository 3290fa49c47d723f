//! Snapshots between nodes: checkpoints by file, verified by BLAKE3, resumed file by file.
//!
//! Invariants: a file counts as received only when its length and hash are right; a checkpoint directory disappears
//! with its last user; `incoming-*` directories survive a broken transfer so that the next one resumes; what goes to
//! one who installs it as it comes was read in whole after it was hashed, so that what its disk damaged is not passed on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use holdfast_store::{Applied, StateStore, StoreError, open_checkpoint};
use holdfast_wire::internal::v1 as pb;

/// A checkpoint on this node's disk; removed when the last handle goes.
#[derive(Clone)]
pub struct SnapshotDir(Arc<Inner>);

struct Inner {
    path: PathBuf,
    applied: Applied,
    files: OnceLock<Vec<pb::SnapshotFile>>,
    damage: OnceLock<String>,
    was_read: AtomicBool,
}

impl Inner {
    fn new(path: PathBuf, applied: Applied) -> Self {
        Self { path, applied, files: OnceLock::new(), damage: OnceLock::new(), was_read: AtomicBool::new(false) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(event = "snapshot.leftover", %error, "a checkpoint could not be removed; it goes at restart");
        }
    }
}

impl SnapshotDir {
    /// Takes a checkpoint of `state` below `parent`.
    pub fn checkpoint(state: &StateStore, parent: &Path) -> Result<Self, StoreError> {
        let path = unique_dir(parent).map_err(|source| StoreError::Io {
            action: "make a checkpoint in",
            path: parent.to_owned(),
            source,
        })?;
        let info = state.checkpoint(&path)?;
        Ok(Self(Arc::new(Inner::new(path, info.applied))))
    }

    /// A received, verified checkpoint.
    pub fn received(path: PathBuf, applied: Applied) -> Self {
        Self(Arc::new(Inner::new(path, applied)))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What is applied in it.
    pub fn applied(&self) -> &Applied {
        &self.0.applied
    }

    /// As [`SnapshotDir::files`], and every row read after they were hashed; once. Takes as long as reading the disk twice.
    ///
    /// # Errors
    /// When a file cannot be read, or its rows are damaged: [`SnapshotDir::damage`] says so from then on.
    pub fn sound_files(&self) -> io::Result<&[pb::SnapshotFile]> {
        let files = self.files()?;
        // Found since it was last read: what a disk damages later must not go out with the hashes of before.
        if let Some(damage) = self.damage() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, damage.to_owned()));
        }
        if !self.0.was_read.load(Ordering::Acquire) {
            self.read(&mut |_| true)?;
            self.0.was_read.store(true, Ordering::Release);
        }
        Ok(files)
    }

    /// Its files with length and hash; hashed once.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn files(&self) -> io::Result<&[pb::SnapshotFile]> {
        if let Some(files) = self.0.files.get() {
            return Ok(files);
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.0.path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Whoever reads a checkpoint leaves an info log, which is no part of the state.
            if entry.file_type()?.is_file() && !name.starts_with("LOG") && name != "LOCK" {
                let (length, hash) = hash_file(&entry.path())?;
                files.push(pb::SnapshotFile { name, length, blake3: hash.to_vec().into() });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(self.0.files.get_or_init(|| files))
    }

    /// Reads every row, with checksums verified, and compares them with the digests in it. `pace` as in
    /// [`holdfast_store::View::scrub_at`].
    ///
    /// # Errors
    /// As [`SnapshotDir::sound_files`].
    pub fn read(&self, pace: &mut dyn FnMut(u64) -> bool) -> io::Result<()> {
        let read = open_checkpoint(&self.0.path).and_then(|checkpoint| checkpoint.view().scrub_at(pace));
        let damage = match read {
            Ok(report) => {
                let fault = report.and_then(|report| report.faults.into_iter().next());
                fault.map(|fault| format!("its rows do not agree with its digests: {}", fault.what))
            }
            Err(error) if error.is_unreadable_state() => Some(error.to_string()),
            Err(error) => return Err(io::Error::other(error)),
        };
        let Some(damage) = damage else { return Ok(()) };
        let error = io::Error::new(io::ErrorKind::InvalidData, damage.clone());
        if self.0.damage.set(damage).is_ok() {
            let (path, reason) = (self.0.path.display(), &error);
            tracing::error!(event = "integrity.snapshot_damaged", %path, %reason, "this snapshot goes to nobody");
        }
        Err(error)
    }

    /// What was found to be wrong with it.
    pub fn damage(&self) -> Option<&str> {
        self.0.damage.get().map(String::as_str)
    }
}

/// A name that no other call of this process gets: a checkpoint and an install may run side by side.
fn unique_dir(parent: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    std::fs::create_dir_all(parent)?;
    loop {
        let path = parent.join(format!("checkpoint-{:08}", NEXT.fetch_add(1, Ordering::Relaxed)));
        if !path.exists() {
            return Ok(path);
        }
    }
}

fn hash_file(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((length, *hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..n]);
        length += n as u64;
    }
}

/// The receiving side: one directory per group.
#[derive(Clone)]
pub struct Incoming {
    path: PathBuf,
}

impl Incoming {
    /// In `data`, for `group`.
    pub fn new(data: &Path, group: u32) -> Self {
        Self { path: data.join(format!("incoming-{group}")) }
    }

    /// In `data`, for reinstalling the state of `group`: beside what a leader may send meanwhile.
    pub fn repair(data: &Path, group: u32) -> Self {
        Self { path: data.join(format!("incoming-repair-{group}")) }
    }

    /// Removes what was received and not sealed.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps files that match the offer, removes all others, answers which are needed.
    pub fn prepare(&self, files: &[pb::SnapshotFile]) -> io::Result<Vec<String>> {
        std::fs::create_dir_all(&self.path)?;
        let mut needed = Vec::new();
        for file in files {
            if !is_plain_name(&file.name) {
                return Err(io::Error::other(format!("{:?} is not a file name of a checkpoint", file.name)));
            }
        }
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !files.iter().any(|file| file.name == name) {
                std::fs::remove_file(entry.path())?;
            }
        }
        for file in files {
            if !self.is_whole(file)? {
                needed.push(file.name.clone());
            }
        }
        Ok(needed)
    }

    fn is_whole(&self, file: &pb::SnapshotFile) -> io::Result<bool> {
        let path = self.path.join(&file.name);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() == file.length => Ok(hash_file(&path)?.1[..] == file.blake3[..]),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens a file for writing from its start.
    pub fn create(&self, name: &str) -> io::Result<File> {
        if !is_plain_name(name) {
            return Err(io::Error::other(format!("{name:?} is not a file name of a checkpoint")));
        }
        File::create(self.path.join(name))
    }

    /// Writes received bytes, and makes the file durable when `last`.
    pub fn write(file: &mut File, data: &[u8]) -> io::Result<()> {
        file.write_all(data)
    }

    /// All files are there and right: fsync them and move them where `install` takes them from.
    pub fn seal(&self, files: &[pb::SnapshotFile], snapshots: &Path) -> io::Result<PathBuf> {
        for file in files {
            if !self.is_whole(file)? {
                return Err(io::Error::other(format!("snapshot file {} is missing or damaged", file.name)));
            }
            File::open(self.path.join(&file.name))?.sync_all()?;
        }
        File::open(&self.path)?.sync_all()?;
        let target = unique_dir(snapshots)?;
        std::fs::rename(&self.path, &target)?;
        File::open(snapshots)?.sync_all()?;
        Ok(target)
    }
}

/// A name without any path in it.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']) && name.len() < 200
}

#[cfg(test)]
mod tests {
    use holdfast_model::command::Operation;
    use holdfast_model::id::GroupId;
    use holdfast_model::state::{Effect, Effects};
    use holdfast_store::{DataDir, LogPosition};

    use super::*;

    fn file(name: &str, bytes: &[u8]) -> pb::SnapshotFile {
        pb::SnapshotFile {
            name: name.into(),
            length: bytes.len() as u64,
            blake3: blake3::hash(bytes).as_bytes().to_vec().into(),
        }
    }

    #[test]
    fn a_transfer_resumes_by_verified_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let incoming = Incoming::new(dir.path(), 0);
        let files = [file("a.sst", b"first"), file("b.sst", b"second")];
        assert_eq!(incoming.prepare(&files).expect("prepare"), ["a.sst", "b.sst"]);
        std::fs::write(incoming.path.join("a.sst"), b"first").expect("write");
        std::fs::write(incoming.path.join("b.sst"), b"secosd").expect("write");
        std::fs::write(incoming.path.join("stale.sst"), b"x").expect("write");
        assert_eq!(incoming.prepare(&files).expect("prepare"), ["b.sst"], "a damaged file is asked for again");
        assert!(!incoming.path.join("stale.sst").exists());
        assert!(incoming.seal(&files, &dir.path().join("snapshots")).is_err(), "nothing incomplete is sealed");
        std::fs::write(incoming.path.join("b.sst"), b"second").expect("write");
        std::fs::create_dir_all(dir.path().join("snapshots")).expect("mkdir");
        let sealed = incoming.seal(&files, &dir.path().join("snapshots")).expect("seal");
        assert_eq!(std::fs::read(sealed.join("b.sst")).expect("read"), b"second");
    }

    /// What the disk did to a snapshot after it was taken is not passed on as a whole file with a right hash.
    #[test]
    fn a_damaged_snapshot_is_not_offered() {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = DataDir::open_or_create(&dir.path().join("data"), 1, [7; 16]).expect("a directory");
        let state = StateStore::open(&data, GroupId(0)).expect("a state");
        let mut batch = state.begin();
        let job = Operation { id: "long".into(), error: "x".repeat(10_000), ..Operation::default() };
        let effects = Effects { rows: vec![Effect::PutOperation(job)], ..Effects::default() };
        batch.apply_effects(&effects).expect("applied");
        let position = Some(LogPosition { term: 1, node: 1, index: 5 });
        batch.set_applied(Applied { position, ..Applied::default() });
        state.commit(batch).expect("committed");
        let take = || SnapshotDir::checkpoint(&state, &dir.path().join("snapshots")).expect("taken");
        let (whole, spoilt) = (take(), take());
        let table = |snapshot: &SnapshotDir| {
            let files = std::fs::read_dir(snapshot.path()).expect("listed").map(|entry| entry.expect("entry").path());
            files.filter(|path| path.extension().is_some_and(|ending| ending == "sst")).max().expect("a table")
        };
        let path = table(&spoilt);
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[100] ^= 1;
        // A file of its own: the state's is as it was.
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, bytes).expect("written");
        let refused = spoilt.sound_files().expect_err("it is damaged");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(spoilt.damage().is_some_and(|why| why.contains("orrupt")), "{refused}");
        let names: Vec<&str> = whole.sound_files().expect("whole").iter().map(|file| &file.name[..]).collect();
        assert!(names.iter().any(|name| name.ends_with(".sst")) && names.contains(&"CURRENT"), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with("LOG") || *name == "LOCK"), "{names:?}");
        assert_eq!(whole.damage(), None);
        // Read once and sound; what is found later counts all the same.
        let path = table(&whole);
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[100] ^= 1;
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, bytes).expect("written");
        assert!(whole.read(&mut |_| true).is_err() && whole.sound_files().is_err());
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().expect("tempdir");
        let incoming = Incoming::new(dir.path(), 0);
        for name in ["../x", "/etc/passwd", "", "..", "a/b"] {
            assert!(incoming.prepare(&[file(name, b"")]).is_err(), "{name}");
            assert!(incoming.create(name).is_err(), "{name}");
        }
    }
}
