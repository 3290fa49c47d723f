//! Child processes that cannot outlive this one.
//!
//! Invariants:
//! - Every child is told by the kernel when this process ends, however it ends, also by SIGKILL.
//! - All children are started by one thread that lives as long as the process: the kernel counts the end of the
//!   *thread* that started a child as its parent's death, and threads of a runtime come and go.
//! - A child sees the mounts of the thread that ordered it.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

use crate::disk::mounts::Namespace;

/// What the kernel sends a child whose starter died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphan {
    /// SIGKILL: for a process that has no children, or whose children die with it.
    Killed,
    /// SIGTERM: for one that ends its own children when it is told to, as `holdfast dev` does.
    Told,
}

struct Order {
    command: Command,
    mounts: Namespace,
    answer: SyncSender<io::Result<Child>>,
}

/// Starts a child in a process group of its own: Ctrl-C in a terminal goes to this process alone, which ends its
/// children in order.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(mut command: Command, orphan: Orphan) -> io::Result<Child> {
    static STARTER: OnceLock<SyncSender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, waiting) = sync_channel::<Order>(1);
        std::thread::spawn(move || {
            for Order { mut command, mounts, answer } in waiting {
                // Whoever ordered it may be gone; the child is then dropped, and ends with this process.
                let _ = answer.send(mounts.enter().and_then(|()| command.spawn()));
            }
        });
        orders
    });
    let parent = std::process::id();
    let signal = match orphan {
        Orphan::Killed => libc::SIGKILL,
        Orphan::Told => libc::SIGTERM,
    };
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid, _exit.
    unsafe {
        command.pre_exec(move || die_with(parent, signal));
    }
    let (answer, child) = sync_channel(1);
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    starter.send(Order { command, mounts: Namespace::here()?, answer }).map_err(|_| gone(()))?;
    child.recv().map_err(|_| gone(()))?
}

/// Asks the kernel for `signal` when the parent dies; ends at once if it is dead already.
fn die_with(parent: u32, signal: i32) -> io::Result<()> {
    // SAFETY: plain system calls without memory of ours.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
            return Err(io::Error::last_os_error());
        }
        if u32::try_from(libc::getppid()) != Ok(parent) {
            libc::_exit(1);
        }
    }
    Ok(())
}

/// It was stopped, or is gone: none of its threads runs, and none is inside of a call that will still end.
pub(crate) fn is_still(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| state_in(&thread.path().join("stat")).is_none_or(|state| "TtZX".contains(state)))
}

/// What the kernel says that a process does: D sleeps where no signal reaches it, T is stopped; `None` = it is gone.
pub(crate) fn state(pid: i32) -> Option<char> {
    state_in(Path::new(&format!("/proc/{pid}/stat")))
}

/// The letter in a file of proc(5).
fn state_in(stat: &Path) -> Option<char> {
    // Behind the name, which may hold anything.
    std::fs::read_to_string(stat).ok()?.rsplit(')').next()?.trim_start().chars().next()
}

/// Sends `signal` to a child and to whatever it started: strace's end alone would let its node go on.
pub(crate) fn signal_group(child: &Child, signal: i32) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // SAFETY: a plain system call on a process group that `spawn` made and whose leader is not reaped yet.
        unsafe { libc::kill(-pid, signal) };
    }
}

/// A process is left in the group that `spawn` made for a child. Of one that never led a group nothing is.
pub(super) fn group_is_alive(leader: i32) -> bool {
    // SAFETY: a plain system call that sends nothing.
    unsafe { libc::kill(-leader, 0) == 0 }
}

/// Sends `signal` to one process.
pub(super) fn signal(pid: i32, signal: i32) {
    // SAFETY: a plain system call; the caller names a process of its own cluster.
    unsafe { libc::kill(pid, signal) };
}

/// Number of the signal that ended a process.
pub(super) fn signal_of(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

/// Name of the signal by which a process ended that brought it upon itself; `None` = it ended otherwise.
pub(super) fn crash_of(status: ExitStatus) -> Option<&'static str> {
    match signal_of(status)? {
        libc::SIGABRT => Some(super::ABORT),
        libc::SIGSEGV => Some("SIGSEGV"),
        libc::SIGBUS => Some("SIGBUS"),
        libc::SIGILL => Some("SIGILL"),
        libc::SIGFPE => Some("SIGFPE"),
        libc::SIGTRAP => Some("SIGTRAP"),
        _ => None,
    }
}

/// Waits for a child, until `end` at the latest; `None` = it runs on.
pub(super) fn wait_for_end(child: &mut Child, end: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= end {
            return Ok(status);
        }
        std::thread::sleep(super::POLL);
    }
}

/// The process runs, or a thread of it still does: as long as one does, ports and locks are held, even when the first
/// thread merely waits to be reaped.
pub fn is_alive(pid: i32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) > 1 || is_running(pid)
}

fn is_running(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::Stdio;

    use super::*;
    use crate::cluster::wait_until;

    #[test]
    fn a_process_is_still_once_it_was_stopped_and_not_before() {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        let mut child = spawn(command, Orphan::Killed).expect("sh starts");
        let pid = i32::try_from(child.id()).expect("pid");
        wait_until("it to run", || !is_still(pid));
        signal_group(&child, libc::SIGSTOP);
        wait_until("it to be still", || is_still(pid));
        assert!(is_alive(pid));
        signal_group(&child, libc::SIGCONT);
        wait_until("it to go on", || !is_still(pid));
        signal_group(&child, libc::SIGKILL);
        child.wait().expect("reaped");
        assert!(is_still(pid), "it is gone");
    }

    #[test]
    fn a_child_outlives_the_thread_that_ordered_it_and_dies_by_signal() {
        let order = || {
            let mut command = Command::new("cat");
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let child = spawn(command, Orphan::Killed).expect("cat starts");
            // SAFETY: a plain system call.
            (child, unsafe { libc::gettid() })
        };
        let (mut child, thread) = std::thread::spawn(order).join().expect("joined");
        let pid = i32::try_from(child.id()).expect("pid");
        // A join returns a moment before the kernel is done with the thread, and has signalled what it started.
        let thread = format!("/proc/self/task/{thread}");
        wait_until("the end of the thread that ordered it", || !Path::new(&thread).exists());
        // Whoever was sent SIGKILL answers no more, though its process may be there for another moment.
        child.stdin.as_mut().expect("a pipe").write_all(b"x").expect("it reads");
        child.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("it lives");
        assert!(is_alive(pid));
        assert!(child.try_wait().expect("asked").is_none());
        signal_group(&child, libc::SIGKILL);
        assert_eq!(signal_of(child.wait().expect("reaped")), Some(libc::SIGKILL));
        assert!(!is_alive(pid));
    }

    #[test]
    fn who_crashed_is_told_from_who_was_ended() {
        let ended = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let mut child = spawn(command, Orphan::Killed).expect("sh starts");
            crash_of(child.wait().expect("reaped"))
        };
        assert_eq!(ended("kill -ABRT $$"), Some("SIGABRT"));
        assert_eq!(ended("kill -SEGV $$"), Some("SIGSEGV"));
        assert_eq!((ended("kill -KILL $$"), ended("kill -TERM $$"), ended("exit 134")), (None, None, None));
    }

    #[test]
    fn a_missing_program_is_an_error() {
        assert!(spawn(Command::new("./no-such-program"), Orphan::Told).is_err());
    }
}
