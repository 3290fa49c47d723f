//! The cluster of `jepsen-tests` with this build's binary: real processes, gone with the test, also when it fails.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, Stdio};

pub use jepsen_tests::cluster::{contact, is_alive, wait_for, wait_until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_holdfast");

/// A running cluster of three nodes.
pub struct Cluster(jepsen_tests::cluster::Cluster);

impl Cluster {
    /// Starts three nodes in `dir` with further arguments of `dev`.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self(jepsen_tests::cluster::Cluster::start(Path::new(BINARY), dir, args).expect("a cluster"))
    }

    /// Starts three nodes in `dir` on the ports of a cluster that is gone.
    pub fn start_after(gone: Self, dir: &Path, args: &[&str]) -> Self {
        Self(jepsen_tests::cluster::Cluster::start_after(gone.0, dir, args).expect("a cluster"))
    }

    /// Stops and starts the whole cluster on the same data.
    pub fn reopen(&mut self) {
        self.0.reopen().expect("the cluster opens again");
    }
}

impl Deref for Cluster {
    type Target = jepsen_tests::cluster::Cluster;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// Runs the binary; gives exit code, stdout and stderr.
pub fn holdfast(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(BINARY).args(args).stdin(Stdio::null()).output().expect("holdfast runs");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// The same, with what it says as JSON.
pub fn holdfast_json(args: &[&str]) -> (i32, serde_json::Value, String) {
    let (code, stdout, stderr) = holdfast(&[args, &["--output", "json"]].concat());
    (code, serde_json::from_str(&stdout).unwrap_or(serde_json::Value::Null), stderr)
}

/// Waits until every destination holds the log up to `index`, read back from there, and nobody complains.
pub async fn wait_offsite(cluster: &Cluster, index: u64) {
    wait_for("the log to be offsite", async || {
        let Some(leader) = cluster.leader_now().await else { return false };
        let Some(status) = cluster.status(leader).await else { return false };
        let mut told = status.destinations.iter();
        told.all(|told| told.verified_index >= index && told.last_error.is_empty())
    })
    .await;
}

/// Copies a folder with all that is in it; `to` may be there.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().expect("cp");
    assert!(copied.success(), "cp -a {} {}", from.display(), to.display());
}
