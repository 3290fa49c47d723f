//! A node's process.
//!
//! Invariants: a process that is dropped is killed and reaped; one whose starter dies is told to stop by the kernel.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::launch::layout::NodeSpec;

const POLL: Duration = Duration::from_millis(20);
/// Bytes of a log's end that are shown when its node died.
const LOG_TAIL_BYTES: u64 = 2000;

/// A node that was started by this process.
#[derive(Debug)]
pub struct NodeProcess {
    spec: NodeSpec,
    argv: Vec<String>,
    child: Child,
    ended: Option<ExitStatus>,
}

impl NodeProcess {
    /// Starts a node. Must be called on the main thread: the kernel ends the node when the thread that started it ends.
    pub fn start(spec: &NodeSpec) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("find this program's own file")?;
        let argv = spec.argv(&binary);
        if let Some(dir) = spec.log.parent() {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&spec.log);
        let log = log.with_context(|| format!("open {}", spec.log.display()))?;
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C in a terminal goes to this process alone, which stops its nodes in order.
        command.process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid, _exit.
        unsafe {
            command.pre_exec(move || die_with(parent));
        }
        let child = command.spawn().with_context(|| format!("start {}", argv[0]))?;
        Ok(Self { spec: spec.clone(), argv, child, ended: None })
    }

    /// The node.
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Its command line.
    pub fn argv(&self) -> &[String] {
        &self.argv
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` = it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error means that somebody else reaped it; then there is nothing to know.
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Fails, with the end of its log, when it ended.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.ended() else { return Ok(()) };
        let tail = tail(&self.spec.log).unwrap_or_default();
        anyhow::bail!("node {} ended with {status}; {} ends with:\n{tail}", self.spec.id, self.spec.log.display())
    }

    /// Kills it as a power cut would, and reaps it.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            // It may end by itself meanwhile; either way it is gone after the wait.
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Sends SIGKILL and does not wait: several nodes can lose their power in one moment.
    pub fn cut_power(&mut self) {
        let _ = self.child.kill();
    }

    /// Asks it to stop.
    pub fn terminate(&mut self) {
        if self.ended().is_none() {
            let Ok(pid) = libc::pid_t::try_from(self.child.id()) else { return };
            // SAFETY: a plain system call; the child is not reaped yet, so that its id is still its own.
            unsafe {
                libc::kill(pid, libc::SIGTERM);
            }
        }
    }

    /// Waits until it ended; false = it has not by then.
    pub async fn wait_until(&mut self, deadline: Instant) -> bool {
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks the kernel for SIGTERM when the parent dies; ends at once if it is dead already.
fn die_with(parent: u32) -> std::io::Result<()> {
    // SAFETY: plain system calls without memory of ours.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        if u32::try_from(libc::getppid()) != Ok(parent) {
            libc::_exit(1);
        }
    }
    Ok(())
}

fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}
