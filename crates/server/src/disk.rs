//! Room on the file system that the data directory is on.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Below this share of the whole, an operator should act: the log, flushes and compactions need room to work in.
const LOW_PERCENT: u64 = 10;
/// No disk with so much left is low, however large it is.
const LOW_BYTES: u64 = 20 << 30;

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// In use by anyone.
    pub used: u64,
    /// Left for this process.
    pub free: u64,
}

impl Space {
    /// Of the file system that holds `path`.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let mut stat = MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: a plain system call; `path` ends with NUL and `stat` is written before it is read.
        let stat = unsafe {
            if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            stat.assume_init()
        };
        Ok(Self { used: (stat.f_blocks - stat.f_bfree) * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
    }

    /// An operator should act.
    pub fn is_low(self) -> bool {
        self.free < LOW_BYTES && self.free < (self.used + self.free) / 100 * LOW_PERCENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_says_how_much_is_left() {
        let dir = tempfile::tempdir().expect("tempdir");
        let space = Space::of(dir.path()).expect("it says");
        assert!(Space::of(Path::new("/no/such/place")).is_err());
        // Others write meanwhile; bytes are told from blocks all the same.
        let df = std::process::Command::new("df").arg("-Pk").arg(dir.path()).output().expect("df");
        let df = String::from_utf8_lossy(&df.stdout).into_owned();
        let row: Vec<&str> = df.lines().last().expect("a row").split_whitespace().collect();
        for (ours, theirs) in [(space.used, row[2]), (space.free, row[3])] {
            let theirs = theirs.parse::<u64>().expect("a number") * 1024;
            assert!(ours.abs_diff(theirs) < theirs / 2 + (64 << 20), "{space:?}: {df}");
        }
    }

    #[test]
    fn low_is_a_small_share_of_a_disk_that_is_not_huge() {
        let gib = 1 << 30;
        assert!(Space { used: 95 * gib, free: 5 * gib }.is_low());
        assert!(!Space { used: 85 * gib, free: 15 * gib }.is_low());
        assert!(!Space { used: 10_000 * gib, free: 100 * gib }.is_low());
    }
}
