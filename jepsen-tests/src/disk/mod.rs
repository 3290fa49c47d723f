//! Disks of nodes, and what goes wrong with them for real: each node's data on an ext4 of its own, in an image file.
//!
//! ```text
//! image (a sparse file in the run's folder) <- loop device <- ext4, commit every 300 s <- the node's directory
//! ```
//!
//! - Power cut: the kernel shuts the file system down in one moment. What was fsynced is in the image; what was not is
//!   dropped, as the file system commits nothing by itself for five minutes.
//! - Hang: the file system is frozen: writers sleep in the kernel, readers go on.
//! - Rollback: an image that was set aside is put back, so that even fsynced files vanish.
//! - Full: a ballast file takes all the room.
//! - Failing and slow fsyncs: [`inject`]. Damaged bytes: [`corrupt`]. Several disks in one moment: [`array`].
//!
//! Invariants:
//! - Mounts and loop devices are gone when this process is, however it ends (see [`mounts`] and [`array::Hang`]).
//! - Nothing here knows what a node is: it sees files.

pub mod array;
pub mod corrupt;
pub mod inject;
pub mod mounts;
pub mod probe;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

pub use mounts::Mounts;

/// Enough for a node under an hour's load, and small enough to fill.
pub const BYTES: u64 = 1 << 30;
/// Name of the file that takes a full disk's room.
pub const BALLAST: &str = "ballast";

/// `FS_IOC_SHUTDOWN`, and the mode that neither flushes nor writes the journal.
const SHUTDOWN: u64 = 0x8004_587d;
const SHUTDOWN_WITHOUT_FLUSH: u32 = 2;
/// `FIFREEZE`: flushes, then lets every writer wait.
const FREEZE: u64 = 0xc004_5877;
/// `FITHAW`.
const THAW: u64 = 0xc004_5878;

/// How long the kernel may take to let go of files whose processes have ended.
const RELEASED_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// Pieces in which images are copied; what is zero in a piece stays a hole.
const PIECE: usize = 64 << 10;

/// One disk. Unmounted when dropped; its image stays.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes an image of so many bytes with an empty file system, and mounts it at a directory, which is made if it is
    /// missing.
    ///
    /// # Errors
    /// When there is no `mkfs.ext4`, no free loop device or no right to mount.
    pub fn create(_: Mounts, image: &Path, at: &Path, bytes: u64) -> anyhow::Result<Self> {
        let file = File::create_new(image).with_context(|| format!("create {}", image.display()))?;
        file.set_len(bytes).with_context(|| format!("make room for {}", image.display()))?;
        std::fs::create_dir_all(at).with_context(|| format!("create {}", at.display()))?;
        let disk = Self { image: image.to_owned(), at: at.to_owned() };
        disk.format()?;
        disk.mount()?;
        Ok(disk)
    }

    /// The file that holds it all.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    fn format(&self) -> anyhow::Result<()> {
        // Without room of root's own: a full disk is full for whoever asks.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", "nodiscard"]).arg(&self.image))
    }

    /// Mounts it again.
    ///
    /// # Errors
    /// When the kernel does not let go of an earlier mount within half a minute, or refuses: what is there is then no
    /// file system any more.
    pub fn mount(&self) -> anyhow::Result<()> {
        let end = Instant::now() + RELEASED_WITHIN;
        // A second loop device on one image would see other bytes than the first.
        while !mounts::loops_on(&self.image)?.is_empty() {
            ensure!(Instant::now() < end, "{} is still in use: end its processes", self.image.display());
            std::thread::sleep(POLL);
        }
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop,commit=300,noatime"]).args([&self.image, &self.at]))
    }

    /// Unmounts it. The processes that used it must have been ended.
    ///
    /// # Errors
    /// When a process holds on to it for half a minute.
    pub fn unmount(&self) -> anyhow::Result<()> {
        let at = c_path(&self.at)?;
        let end = Instant::now() + RELEASED_WITHIN;
        loop {
            // SAFETY: a plain system call on a string that lives.
            let error = match unsafe { libc::umount2(at.as_ptr(), 0) } {
                0 => return Ok(()),
                _ => io::Error::last_os_error(),
            };
            let busy = error.kind() == ErrorKind::ResourceBusy && Instant::now() < end;
            if !busy {
                return Err(error).with_context(|| format!("unmount {}", self.at.display()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The power goes: from this call on nothing is written any more, and what was not fsynced is lost. Every call of a
    /// process that still lives fails with EIO. The next steps are to end the processes and to [`Disk::revive`] it.
    ///
    /// # Errors
    /// When the file system cannot be shut down.
    pub fn cut_power(&self) -> io::Result<()> {
        let root = File::open(&self.at)?;
        let mode = SHUTDOWN_WITHOUT_FLUSH;
        // SAFETY: the kernel reads four bytes at the address, which lives over the call.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN as _, &raw const mode) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// It answers nothing but errors.
    pub fn is_dark(&self) -> bool {
        let probe = self.at.join("dark-probe");
        match File::create(&probe) {
            Ok(_) => std::fs::remove_file(&probe).is_err(),
            Err(error) => error.raw_os_error() == Some(libc::EIO),
        }
    }

    /// The power is back: what was fsynced is there again. The processes that used the disk must have been ended.
    ///
    /// # Errors
    /// As [`Disk::unmount`] and [`Disk::mount`].
    pub fn revive(&self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Lets every writer sleep in the kernel, after what was written before is on the disk.
    fn freeze(&self) -> io::Result<()> {
        self.control(FREEZE)
    }

    fn thaw(&self) -> io::Result<()> {
        self.control(THAW)
    }

    fn control(&self, request: u64) -> io::Result<()> {
        let root = File::open(&self.at)?;
        // SAFETY: the kernel reads nothing at the third argument of these two.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), request as _, 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sets the disk aside as it is now; its processes may run, and wait meanwhile.
    ///
    /// # Errors
    /// When the copy cannot be written.
    pub fn set_aside(&self, copy: &Path) -> anyhow::Result<()> {
        let hang = array::hang(&[self]).with_context(|| format!("freeze {}", self.at.display()))?;
        let copied = copy_sparse(&self.image, copy);
        drop(hang);
        copied.with_context(|| format!("copy {} to {}", self.image.display(), copy.display()))
    }

    /// Puts the disk back to what it was when it was [set aside](Disk::set_aside): whatever was fsynced since is gone.
    /// The processes that used it must have been ended.
    ///
    /// # Errors
    /// When the copy cannot be read, or as [`Disk::revive`].
    pub fn roll_back(&self, copy: &Path) -> anyhow::Result<()> {
        self.unmount_released()?;
        copy_sparse(copy, &self.image).with_context(|| format!("put {} back", copy.display()))?;
        self.mount()
    }

    /// Puts an empty file system in place of what there was. The processes that used it must have been ended.
    ///
    /// # Errors
    /// As [`Disk::create`].
    pub fn wipe(&self) -> anyhow::Result<()> {
        self.unmount_released()?;
        self.format()?;
        self.mount()
    }

    fn unmount_released(&self) -> anyhow::Result<()> {
        self.unmount()?;
        let end = Instant::now() + RELEASED_WITHIN;
        while !mounts::loops_on(&self.image)?.is_empty() {
            ensure!(Instant::now() < end, "{} is still in use: end its processes", self.image.display());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Takes all room but so many bytes. Gives how many it took.
    ///
    /// # Errors
    /// When the disk fails otherwise than by being full.
    pub fn fill(&self, leave: u64) -> anyhow::Result<u64> {
        let path = self.at.join(BALLAST);
        let ballast = File::options().create(true).truncate(false).write(true).open(&path);
        let ballast = ballast.with_context(|| format!("create {}", path.display()))?;
        let mut taken = ballast.metadata()?.len();
        // Whoever writes meanwhile takes room too, so that the next try asks for less.
        for _ in 0..1000 {
            let want = self.free_bytes()?.saturating_sub(leave) / 1024 * 1024;
            if want == 0 {
                break;
            }
            // SAFETY: a plain system call on an open file.
            match unsafe { libc::posix_fallocate(ballast.as_raw_fd(), taken as _, want as _) } {
                0 => taken += want,
                libc::ENOSPC => taken = ballast.metadata()?.len(),
                error => bail!("take the room of {}: {}", self.at.display(), io::Error::from_raw_os_error(error)),
            }
        }
        Ok(taken)
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When the ballast cannot be removed.
    pub fn make_room(&self) -> io::Result<()> {
        std::fs::remove_file(self.at.join(BALLAST))
    }

    /// Bytes that a process could still write.
    ///
    /// # Errors
    /// When the disk does not answer.
    pub fn free_bytes(&self) -> anyhow::Result<u64> {
        let at = c_path(&self.at)?;
        let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the kernel fills the struct, which lives over the call, when it returns 0.
        let found = unsafe {
            if libc::statvfs(at.as_ptr(), found.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error()).with_context(|| format!("ask {}", self.at.display()));
            }
            found.assume_init()
        };
        Ok(found.f_bavail * found.f_frsize)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Ok(at) = c_path(&self.at) {
            // SAFETY: a plain system call on a string that lives. Whoever still holds files keeps them until it ends.
            unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

fn c_path(path: &Path) -> anyhow::Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_os_str().as_bytes()).with_context(|| format!("a zero in {}", path.display()))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {name}: install it"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}: {}", output.status, said.trim());
    Ok(())
}

/// Makes `to` equal to `from`, with holes where there are only zeros.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let bytes = source.metadata()?.len();
    let mut target = File::create(to)?;
    target.set_len(bytes)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some(data) = next_data(&source, at)? {
        // Pieces start where they would in the whole file.
        at = data / PIECE as u64 * PIECE as u64;
        let length = PIECE.min(usize::try_from(bytes - at).unwrap_or(PIECE));
        source.seek(SeekFrom::Start(at))?;
        source.read_exact(&mut piece[..length])?;
        if piece[..length].iter().any(|byte| *byte != 0) {
            target.seek(SeekFrom::Start(at))?;
            target.write_all(&piece[..length])?;
        }
        at += length as u64;
    }
    target.sync_data()
}

/// Where the next bytes that are no hole begin; `None` = there are none.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    // SAFETY: a plain system call on an open file; it moves a position that every reader here sets before it reads.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as _, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests;
