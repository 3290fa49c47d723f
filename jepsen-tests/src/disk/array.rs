//! Several disks that fail in one moment, as those of one array do.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::Disk;

/// Members of an array fail within this, or they did not fail as an array does.
pub const WITHIN: Duration = Duration::from_millis(10);

/// How close together several disks failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// From the first one's call to the last one's call.
    pub begun: Duration,
    /// From the first one's call until it had taken hold of the last.
    pub done: Duration,
}

/// Cuts the power of all in one moment; see [`Disk::cut_power`].
///
/// # Errors
/// As [`Disk::cut_power`], of any of them; the others are without power then.
pub fn cut_power(disks: &[&Disk]) -> io::Result<Spread> {
    together(disks, Disk::cut_power)
}

/// Disks whose writers wait. They go on when this is dropped, or when this process dies.
///
/// A process that sleeps in a frozen file system cannot even be killed, and the file system outlives its mount. So a
/// guardian waits beside it: a process of its own session, which thaws them all when it hears nothing any more.
#[derive(Debug)]
pub struct Hang {
    at: Vec<PathBuf>,
    guardian: Child,
    /// How close together they stopped. A writer waits from the call on; what is under way ends first.
    pub spread: Spread,
}

/// What the guardian does: nothing, until the other end of its input is gone.
const GUARDIAN: &str = r#"read -r _; for at do fsfreeze --unfreeze "$at"; done"#;

/// Lets all writers of all disks wait; readers go on.
///
/// # Errors
/// When the guardian cannot be started, or a file system cannot be frozen: none is then.
pub fn hang(disks: &[&Disk]) -> io::Result<Hang> {
    let mut command = Command::new("sh");
    command.args(["-c", GUARDIAN, "sh"]).args(disks.iter().map(|disk| disk.at()));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec only one plain system call is made.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let guardian = command.spawn()?;
    let none = Spread { begun: Duration::ZERO, done: Duration::ZERO };
    // From here on all are thawed, whatever happens.
    let mut hang = Hang { at: disks.iter().map(|disk| disk.at().to_owned()).collect(), guardian, spread: none };
    hang.spread = together(disks, Disk::freeze)?;
    Ok(hang)
}

impl Hang {
    /// The process that thaws the disks when this one dies.
    pub fn guardian(&self) -> u32 {
        self.guardian.id()
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        // The end of its input is what the guardian waits for: one way of thawing, the same at every end.
        drop(self.guardian.stdin.take());
        let thawed = self.guardian.wait();
        if !matches!(thawed, Ok(status) if status.success()) {
            eprintln!("the disks {:?} may still be frozen: fsfreeze --unfreeze each of them", self.at);
        }
    }
}

/// Does `what` to all disks, each by a thread that waits for the others.
fn together(disks: &[&Disk], what: impl Fn(&Disk) -> io::Result<()> + Sync) -> io::Result<Spread> {
    let ready = Barrier::new(disks.len());
    let one = |disk: &Disk| {
        first_in_line();
        ready.wait();
        let begun = Instant::now();
        what(disk).map(|()| (begun, Instant::now()))
    };
    let times = std::thread::scope(|threads| {
        let running: Vec<_> = disks.iter().map(|disk| threads.spawn(|| one(disk))).collect();
        let joined = running.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("it panicked")));
        // All of them, before the first error is told.
        joined.collect::<Vec<_>>()
    });
    let times = times.into_iter().map(|time| time?).collect::<io::Result<Vec<(Instant, Instant)>>>()?;
    let first = times.iter().map(|(begun, _)| *begun).min();
    let since = |end: Option<Instant>| first.zip(end).map_or(Duration::ZERO, |(first, end)| end - first);
    Ok(Spread {
        begun: since(times.iter().map(|(begun, _)| *begun).max()),
        done: since(times.iter().map(|(_, done)| *done).max()),
    })
}

/// The calling thread runs when it can, also on a machine under load: an array does not wait for a turn. Where this is
/// not allowed, the spread shows it.
fn first_in_line() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: a plain system call on the calling thread; the struct lives over it.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
}
