//! Mounts that nobody else sees and that end with this process.
//!
//! The kernel takes a mount namespace apart, with all that is mounted in it, when the last process in it is gone. So
//! nothing is left behind however this process ends, as long as all that it starts ends with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Proof that the calling thread has mounts of its own.
#[derive(Debug, Clone, Copy)]
pub struct Mounts(());

impl Mounts {
    /// Gives the calling thread, and the threads and processes that it starts from now on, mounts of their own. For
    /// the whole process: to be called in `main`, before there is a second thread.
    ///
    /// # Errors
    /// When this is not root, or the kernel has no mount namespaces.
    pub fn private() -> io::Result<Self> {
        // SAFETY: plain system calls; the strings are literals that end with a zero.
        unsafe {
            if libc::unshare(libc::CLONE_NEWNS) != 0 {
                return Err(io::Error::last_os_error());
            }
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            let none = std::ptr::null();
            if libc::mount(none, c"/".as_ptr(), none, flags, std::ptr::null()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(()))
    }

    /// Runs `work` on a thread with mounts of its own; those of the caller stay as they are.
    ///
    /// # Errors
    /// As [`Mounts::private`].
    ///
    /// # Panics
    /// When `work` does.
    pub fn scope<T: Send>(work: impl FnOnce(Self) -> T + Send) -> io::Result<T> {
        std::thread::scope(|threads| {
            let done = threads.spawn(|| Self::private().map(work)).join();
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The loop devices on a file; empty once the kernel let go of it.
pub(super) fn loops_on(image: &Path) -> io::Result<Vec<String>> {
    let image = image.canonicalize()?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end()) == image {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// The mounts that a thread sees.
pub(crate) struct Namespace {
    file: File,
    folder: PathBuf,
}

impl Namespace {
    /// Those of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub(crate) fn here() -> io::Result<Self> {
        Ok(Self { file: File::open(OWN)?, folder: std::env::current_dir()? })
    }

    /// Gives the calling thread these mounts from now on, if it has others.
    ///
    /// # Errors
    /// When this is not root.
    pub(crate) fn enter(&self) -> io::Result<()> {
        if self.file.metadata()?.ino() == std::fs::metadata(OWN)?.ino() {
            return Ok(());
        }
        let folder = std::ffi::CString::new(self.folder.as_os_str().as_bytes())?;
        // SAFETY: plain system calls on an open file and a string that lives. Only the calling thread is changed: its
        // root and its folder are its own after the first.
        let done = unsafe {
            libc::unshare(libc::CLONE_FS) == 0
                && libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNS) == 0
                && libc::chdir(folder.as_ptr()) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Where the kernel shows a thread its mounts.
const OWN: &str = "/proc/thread-self/ns/mnt";
