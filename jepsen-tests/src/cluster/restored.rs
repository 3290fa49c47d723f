//! Clusters that come out of an archive, by the command line that operators have.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Deserialize;

use super::{Cluster, NODES, Orphan, process};
use crate::bucket::CREDENTIALS;
use crate::cluster::ports::Ports;

/// What `holdfast restore plan` and `run` say with `-o json`, as far as it is judged.
#[derive(Debug, Deserialize)]
struct Answer {
    last_index: u64,
    plan: Option<Plan>,
}

/// What `holdfast restore run` says that it set out to do.
#[derive(Debug, Deserialize)]
struct Plan {
    loss_window_ms: Option<u64>,
    snapshot_index: u64,
}

/// What a restore says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    /// Everything up to here is there.
    pub index: u64,
    /// Age of the newest write that came back, in milliseconds; `None` = it did not say.
    pub loss_window_ms: Option<u64>,
    /// Up to where the snapshot reaches that it began with; 0 = it began with none.
    pub snapshot: u64,
    /// It was killed half way, and run again.
    pub killed: bool,
    /// How long the command that came to its end took.
    pub took: Duration,
}

/// `restore run` did not do it.
#[derive(Debug, thiserror::Error)]
#[error("restore run ended with {status}: {complaint}")]
pub(crate) struct RestoreFailed {
    /// Of the process.
    pub(crate) status: ExitStatus,
    /// What it said to people.
    complaint: String,
}

/// Up to where the archive at a URL can be restored; `None` = there is nothing in it yet. What the command complains of
/// goes to a file.
///
/// # Errors
/// When the program cannot be started.
pub(crate) fn plan(binary: &Path, from: &str, complaints: &Path) -> anyhow::Result<Option<u64>> {
    let said = complaints.with_extension("json");
    let mut command = Command::new(binary);
    command.args(["restore", "plan", "--from", from, "-o", "json"]);
    command.envs(CREDENTIALS).stdin(Stdio::null()).stdout(File::create(&said)?).stderr(File::create(complaints)?);
    if !process::spawn(command, Orphan::Killed)?.wait()?.success() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&said)?;
    let answer: Answer = serde_json::from_str(&text).with_context(|| format!("restore plan said {text:?}"))?;
    Ok(Some(answer.last_index))
}

/// Has one of these nodes take a snapshot and ship it; false: it did not come about in time, as it may not where nobody
/// leads or the object store errs.
///
/// # Errors
/// When the program cannot be started.
pub(crate) fn backup(binary: &Path, admins: &[String], within: Duration, complaints: &Path) -> anyhow::Result<bool> {
    let mut command = Command::new(binary);
    command.args(["backup", "now", "--endpoint", &admins.join(","), "--wait", &within.as_secs().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(complaints)?);
    Ok(process::spawn(command, Orphan::Killed)?.wait()?.success())
}

impl Cluster {
    /// Restores the archive at a URL into three nodes in `dir`, and starts them. Gives what the command said of it, too; all
    /// of that is beside `dir`. `killed_after` = the command is killed after this, unless it is done by then, and run again.
    ///
    /// # Errors
    /// What the command said when it failed; when the nodes do not become a cluster within a minute.
    pub(crate) fn restore(
        binary: &Path,
        dir: &Path,
        from: &str,
        killed_after: Option<Duration>,
    ) -> anyhow::Result<(Self, Said)> {
        let ports = Ports::claim().context("no thirty free ports in a row")?;
        let (said, complained) = (dir.with_extension("restore.json"), dir.with_extension("restore.log"));
        let run = || {
            let mut command = Command::new(binary);
            command.args(["restore", "run", "--from", from, "--nodes", &NODES.to_string(), "-o", "json"]);
            command.args(["--port-base", &ports.base.to_string()]).arg("--data").arg(dir);
            command
                .envs(CREDENTIALS)
                .stdin(Stdio::null())
                .stdout(File::create(&said)?)
                .stderr(File::create(&complained)?);
            anyhow::Ok(process::spawn(command, Orphan::Killed)?)
        };
        let mut began = Instant::now();
        let mut restore = run()?;
        if let Some(after) = killed_after {
            std::thread::sleep(after);
            restore.kill()?;
        }
        let mut status = restore.wait()?;
        let killed = status.signal() == Some(libc::SIGKILL);
        if killed {
            began = Instant::now();
            status = run()?.wait()?;
        }
        let took = began.elapsed();
        let complaint = std::fs::read_to_string(&complained).unwrap_or_default();
        if !status.success() {
            return Err(RestoreFailed { status, complaint: complaint.trim().to_owned() }.into());
        }
        let text = std::fs::read_to_string(&said)?;
        let answer: Answer = serde_json::from_str(&text).with_context(|| format!("restore run said {text:?}"))?;
        let (loss_window_ms, snapshot) =
            answer.plan.map_or((None, 0), |plan| (plan.loss_window_ms, plan.snapshot_index));
        let said = Said { index: answer.last_index, loss_window_ms, snapshot, killed, took };
        Ok((Self::start_on(ports, binary, dir, &[])?, said))
    }
}
