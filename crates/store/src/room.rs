//! Room on the file system of a data directory: how much there is, and what is kept back of it.
//!
//! What leads out of a full disk, deletes and votes and flushes, needs room itself, and what other programs put on the same
//! disk nobody can foresee. So blocks are held by a file, `RESERVE`, while there is plenty, and given back when this node
//! itself needs them.
//!
//! Invariants:
//! - `RESERVE` holds no data: whoever removes it takes away nothing but headroom.
//! - It gives only what is about to be written, or whoever fills the disk takes that too; and takes back only from what
//!   is free beyond twice the floor.
//! - The last of it is for the log alone, and there for small writes and for what it needs to go on: a vote finds room when a
//!   flush of the state does not.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::StoreError;

const MIB: u64 = 1 << 20;
const RESERVE: &str = "RESERVE";
/// Of a disk that says nothing else: kept free for what leads out again, at least and at most.
const HEADROOM_BYTES: std::ops::RangeInclusive<u64> = 20 * MIB..=1024 * MIB;
/// Part of a disk that is kept free, between those bounds.
const HEADROOM_SHARE: u64 = 8;
/// Below the floor not even small things are written. Some write buffers: a flush takes one, and what is taken between two
/// measurements is guessed.
const FLOOR_BYTES: std::ops::RangeInclusive<u64> = 4 * MIB..=160 * MIB;
const FLOOR_SHARE: u64 = 4;
/// Blocks held by a file are blocks that nobody can use: more than this serves nothing.
const RESERVE_BYTES_MAX: u64 = 128 * MIB;
/// The reserve moves in steps, not with every block.
const STEP: u64 = MIB;
/// The last of the reserve, and how large a write to the log may be that opens it: votes, what opens a term, changes of
/// members.
const LAST: u64 = 2 * STEP;
const SMALL_WRITE_BYTES_MAX: usize = 64 << 10;
/// In such steps is the last of it given: what nobody writes at once a flush would take.
const SMALL_STEP: u64 = 64 << 10;
/// A write to the log needs what the file system takes with it, and the log is read on while it waits.
const LOG_WRITE_SLACK: u64 = 256 << 10;
const POLL: Duration = Duration::from_millis(20);
/// Whoever fills the disk meets its end first, and stops; only then is the reserve opened, or it would go the same way.
const PATIENCE: Duration = Duration::from_millis(100);
/// Once it was opened, nobody waits again for so long.
const OPEN_FOR: Duration = Duration::from_secs(10);
/// RocksDB looks every five seconds whether it can go on, and its flush may fail some more times.
const RECOVERY: Duration = Duration::from_secs(60);
/// A write that RocksDB slows down is due after its size over the rate that RocksDB wants, and each try that comes sooner
/// is charged once more: twice that long must lie between two tries at last.
const STALL_MIN: Duration = Duration::from_millis(1);
const STALL_MAX: Duration = Duration::from_secs(1);
/// A file system in memory: what it holds back is memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;

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

    /// All that is used or free.
    pub fn size(self) -> u64 {
        self.used + self.free
    }
}

/// From where on a disk counts as nearly full, in bytes that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// With less, nothing is taken that adds data.
    pub headroom: u64,
    /// With less, nothing is taken at all.
    pub floor: u64,
}

impl Marks {
    /// For a disk of `size` bytes; what is not 0 was configured.
    pub fn of(size: u64, headroom: u64, floor: u64) -> Self {
        let within = |range: &std::ops::RangeInclusive<u64>, value: u64| value.clamp(*range.start(), *range.end());
        let headroom = if headroom > 0 { headroom } else { within(&HEADROOM_BYTES, size / HEADROOM_SHARE) };
        let floor = if floor > 0 { floor } else { within(&FLOOR_BYTES, headroom / FLOOR_SHARE) };
        Self { headroom, floor: floor.min(headroom) }
    }

    fn reserve(self) -> u64 {
        (self.headroom - self.floor).min(RESERVE_BYTES_MAX)
    }
}

/// What is left of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Free for anyone.
    pub free: u64,
    /// Held back for this node alone.
    pub held: u64,
}

impl Left {
    /// Both.
    pub fn total(self) -> u64 {
        self.free + self.held
    }
}

/// The room of one data directory.
#[derive(Debug)]
pub struct Room {
    path: PathBuf,
    marks: Marks,
    reserve: Mutex<Reserve>,
    given_up: AtomicBool,
    pause: fn(Duration),
}

/// The file that holds blocks.
#[derive(Debug)]
struct Reserve {
    /// `None`: this file system cannot, or need not, hold any.
    file: Option<File>,
    held: u64,
    target: u64,
    /// Since when something lacks room that the reserve has.
    asked: Option<Instant>,
}

impl Room {
    /// Of the directory `path`, which exists. Marks of 0 follow the size of the disk. On a disk that is nearly full the
    /// reserve is given back first: opening databases takes room.
    ///
    /// # Errors
    /// When the file system does not say how large it is.
    pub fn open(path: &Path, headroom: u64, floor: u64) -> Result<Self, StoreError> {
        let space = Space::of(path).map_err(StoreError::io("ask for the size of", path))?;
        let marks = Marks::of(space.size(), headroom, floor);
        let file_path = path.join(RESERVE);
        let file = File::options().create(true).truncate(false).write(true).open(&file_path);
        // Without the file there is no reserve, and everything else stands.
        let mut reserve = Reserve { file: file.ok(), held: 0, target: marks.reserve(), asked: None };
        if is_in_memory(path) {
            reserve.target = 0;
        }
        reserve.held = reserve.blocks();
        if space.free < marks.headroom || reserve.held > reserve.target {
            reserve.shrink(0);
        }
        let reserve = Mutex::new(reserve);
        Ok(Self { path: path.to_owned(), marks, reserve, given_up: AtomicBool::new(false), pause: thread::sleep })
    }

    /// Who waits for room sleeps by this; it may wait for hours, on a thread on which others depend.
    #[must_use]
    pub fn pausing_by(mut self, pause: fn(Duration)) -> Self {
        self.pause = pause;
        self
    }

    /// From where on the disk counts as nearly full.
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// What is left now, after taking back for the reserve what can be spared. Quick: a few system calls.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn measure(&self) -> io::Result<Left> {
        let mut reserve = self.lock();
        let free = Space::of(&self.path)?.free;
        let lacking = reserve.target.saturating_sub(reserve.held);
        let spare = free.saturating_sub(2 * self.marks.floor).min(lacking) / STEP * STEP;
        if spare == 0 {
            return Ok(Left { free, held: reserve.held });
        }
        reserve.grow(spare);
        Ok(Left { free: Space::of(&self.path)?.free, held: reserve.held })
    }

    /// As [`Room::measure`], after giving from the reserve what `bytes` lack; not in the first moment in which they do.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn give(&self, bytes: u64) -> io::Result<Left> {
        self.give_down_to(LAST, STEP, bytes)
    }

    /// As [`Room::give`], and leaves `kept` bytes of the reserve where they are.
    fn give_down_to(&self, kept: u64, step: u64, bytes: u64) -> io::Result<Left> {
        let left = self.measure()?;
        let lacking = bytes.saturating_sub(left.free).next_multiple_of(step);
        if lacking == 0 || left.held <= kept {
            return Ok(left);
        }
        let mut reserve = self.lock();
        let asked = reserve.asked.filter(|asked| asked.elapsed() < OPEN_FOR);
        reserve.asked = Some(asked.unwrap_or_else(Instant::now));
        if asked.is_none_or(|asked| asked.elapsed() < PATIENCE) {
            return Ok(left);
        }
        let held = reserve.held.saturating_sub(lacking).max(kept);
        reserve.shrink(held);
        Ok(Left { free: Space::of(&self.path)?.free, held: reserve.held })
    }

    /// Waits until `bytes` can be written to the log; at once, as long as there is any room. A disk that says nothing is
    /// not waited for.
    pub fn wait_for(&self, bytes: usize) {
        let needed = 2 * bytes as u64 + LOG_WRITE_SLACK;
        let (kept, step) = if bytes <= SMALL_WRITE_BYTES_MAX { (0, SMALL_STEP) } else { (LAST, STEP) };
        self.wait_down_to(kept, step, needed);
    }

    /// As [`Room::wait_for`], by a log that cannot go on otherwise.
    pub(crate) fn wait_for_all(&self, bytes: u64) {
        self.wait_down_to(0, STEP, 2 * bytes + LOG_WRITE_SLACK);
    }

    fn wait_down_to(&self, kept: u64, step: u64, needed: u64) {
        let short = || self.give_down_to(kept, step, needed).is_ok_and(|left| left.free < needed);
        while short() && !self.given_up.load(Ordering::Acquire) {
            (self.pause)(POLL);
        }
    }

    /// Runs `write` again for as long as RocksDB has no room for it: it goes on by itself some seconds after there is
    /// some. For writes that have no effect when they fail, and that RocksDB gives back instead of holding them: one that
    /// waits inside of it keeps the flush from its place by which RocksDB would go on, so that both wait for ever.
    ///
    /// # Errors
    /// Any other failure; want of room only when this node ends, or when RocksDB does not go on though there is plenty.
    pub fn retry<T>(&self, mut write: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut roomy_since: Option<Instant> = None;
        let mut stall = STALL_MIN;
        loop {
            match write() {
                Err(error) if error.is_no_space() && !self.given_up.load(Ordering::Acquire) => {
                    // What memory holds is more than the floor at times.
                    let headroom = self.marks.headroom;
                    let roomy = self.give_down_to(LAST, STEP, headroom).is_ok_and(|left| left.free >= headroom);
                    roomy_since = roomy.then(|| roomy_since.unwrap_or_else(Instant::now));
                    if roomy_since.is_some_and(|since| since.elapsed() > RECOVERY) {
                        return Err(error);
                    }
                    (self.pause)(POLL);
                }
                Err(error) if error.is_stalled() && !self.given_up.load(Ordering::Acquire) => {
                    (self.pause)(stall);
                    stall = (2 * stall).min(STALL_MAX);
                }
                other => return other,
            }
        }
    }

    /// This node ends: nobody waits for room any more.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    pub(crate) fn pause(&self, duration: Duration) {
        (self.pause)(duration);
    }

    /// This node ends.
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Reserve> {
        self.reserve.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserve {
    /// Bytes in blocks of the file, whatever its length.
    fn blocks(&self) -> u64 {
        let metadata = self.file.as_ref().and_then(|file| file.metadata().ok());
        metadata.map_or(0, |metadata| (metadata.blocks() * 512).min(metadata.len()))
    }

    fn shrink(&mut self, to: u64) {
        let Some(file) = &self.file else { return };
        if file.set_len(to).is_ok() {
            self.held = to;
        }
    }

    /// Takes so many bytes more, or, when the file system cannot, none from now on.
    fn grow(&mut self, by: u64) {
        let Some(file) = &self.file else { return };
        let (Ok(from), Ok(length)) = (libc::off_t::try_from(self.held), libc::off_t::try_from(by)) else { return };
        // SAFETY: a plain system call on a descriptor that `file` owns.
        let taken = unsafe { libc::fallocate(file.as_raw_fd(), 0, from, length) } == 0;
        if taken {
            self.held += by;
            return;
        }
        let full = io::Error::last_os_error().kind() == io::ErrorKind::StorageFull;
        // A part may have been taken.
        self.shrink(self.held);
        if !full {
            self.target = self.held;
        }
    }
}

fn is_in_memory(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a plain system call; `path` ends with NUL and `stat` is read only when it was written.
    let kind = unsafe {
        if libc::statfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return false;
        }
        stat.assume_init().f_type
    };
    u64::try_from(kind).is_ok_and(|kind| kind == TMPFS_MAGIC)
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
    fn marks_follow_the_size_of_the_disk_within_bounds() {
        let marks = |size_mib: u64| {
            let Marks { headroom, floor } = Marks::of(size_mib * MIB, 0, 0);
            (headroom / MIB, floor / MIB)
        };
        assert_eq!(marks(64), (20, 5));
        assert_eq!(marks(512), (64, 16));
        assert_eq!(marks(1 << 20), (1024, 160));
        assert_eq!(Marks::of(64 * MIB, 30 * MIB, 2 * MIB), Marks { headroom: 30 * MIB, floor: 2 * MIB });
        assert_eq!(Marks::of(64 * MIB, 2 * MIB, 8 * MIB).floor, 2 * MIB, "never above the headroom");
    }

    #[test]
    fn blocks_are_held_while_there_is_room_and_given_back_at_a_start_without() {
        let dir = tempfile::tempdir().expect("tempdir");
        if is_in_memory(dir.path()) {
            return;
        }
        let room = Room::open(dir.path(), 6 * MIB, 2 * MIB).expect("opens");
        assert_eq!(room.measure().expect("it says").held, LAST + 2 * MIB);
        let blocks = || std::fs::metadata(dir.path().join(RESERVE)).expect("the file").blocks() * 512;
        assert!(blocks() >= 4 * MIB);
        let everything = Space::of(dir.path()).expect("it says").size();
        assert_eq!(
            room.give(everything).expect("it says").held,
            4 * MIB,
            "whoever takes everything meets the end first"
        );
        let waits = Instant::now();
        while room.give(everything).expect("it says").held > LAST {
            assert!(waits.elapsed() < RECOVERY, "it is not given");
            thread::sleep(POLL);
        }
        assert!(blocks() >= LAST, "the last of it is not for everybody");
        let left = room.give_down_to(0, STEP, everything).expect("it says");
        assert_eq!((left.held, blocks()), (0, 0), "more is wanted than there is");
        assert_eq!(room.measure().expect("it says").held, 4 * MIB, "and there is enough to take it back");
        drop(Room::open(dir.path(), 2 * everything, 0).expect("opens"));
        assert_eq!(blocks(), 0, "opening databases takes room");
    }

    #[test]
    fn what_fails_for_want_of_room_is_tried_again_and_nothing_else() {
        let dir = tempfile::tempdir().expect("tempdir");
        let room = Room::open(dir.path(), 0, 0).expect("opens");
        let full = || StoreError::Io {
            action: "write",
            path: dir.path().to_owned(),
            source: io::Error::from_raw_os_error(libc::ENOSPC),
        };
        let mut tries = 0;
        let third = room.retry(|| {
            tries += 1;
            if tries < 3 { Err(full()) } else { Ok(tries) }
        });
        assert_eq!(third.expect("in the end"), 3);
        let mut calls = 0;
        let other = room.retry(|| {
            calls += 1;
            Err::<(), _>(StoreError::defect("something else"))
        });
        assert!(other.is_err() && calls == 1, "tried {calls} times");
        room.give_up();
        let mut calls = 0;
        let ended = room.retry(|| {
            calls += 1;
            Err::<(), _>(full())
        });
        assert!(ended.is_err() && calls == 1, "a node that ends waits for nothing; tried {calls} times");
    }
}
