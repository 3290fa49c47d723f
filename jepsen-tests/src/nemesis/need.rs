//! What faults need of a machine, tried for real: a machine that lacks something says so before a run, and not in it.

use std::path::Path;

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::clock::{Clocks, Skew};
use crate::disk::probe;
use crate::nemesis::Fault;
use crate::network::Network;

/// What a fault needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// To be root.
    Root,
    /// A disk for each node.
    Disk,
    /// Floors on another device than the nodes' disks: any machine has that.
    Floor,
    /// An archive that the nodes ship to: any machine has room for it.
    Archive,
    /// An object store that holds it: this process is one.
    ObjectStore,
    /// strace.
    Trace,
    /// Network namespaces and TUN devices.
    Network,
    /// A C compiler, and a dynamic linker that heeds LD_PRELOAD.
    Clocks,
}

impl Need {
    /// All of them.
    pub fn all() -> &'static [Self] {
        &[
            Self::Root,
            Self::Disk,
            Self::Floor,
            Self::Archive,
            Self::ObjectStore,
            Self::Trace,
            Self::Network,
            Self::Clocks,
        ]
    }

    /// Tries it.
    ///
    /// # Errors
    /// What is missing, and what would help.
    pub fn probe(self) -> anyhow::Result<()> {
        match self {
            Self::Root => {
                // SAFETY: a plain system call.
                ensure!(unsafe { libc::geteuid() } == 0, "not root: run it as root");
                Ok(())
            }
            // On a thread of its own: whoever makes a network moves into it.
            Self::Network => {
                let made = std::thread::spawn(|| Network::create(2, 0).map(drop));
                made.join().unwrap_or_else(|_| anyhow::bail!("the thread that makes a network panicked"))
            }
            Self::Clocks => in_scratch(|dir| clocks(&dir.join("clocks"))),
            Self::Disk => in_scratch(|dir| disks(dir, &["disk", "power", "disk-full", "array-hang", "array-rollback"])),
            Self::Trace => in_scratch(|dir| disks(dir, &["eio", "slow-fsync"])),
            Self::Floor | Self::Archive | Self::ObjectStore => Ok(()),
        }
    }
}

/// Gives `work` an empty folder, and removes it afterwards.
fn in_scratch(work: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("jepsen-tests-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
    let tried = work(&dir);
    let removed = std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()));
    tried.and(removed)
}

fn disks(dir: &Path, faults: &[&str]) -> anyhow::Result<()> {
    let missing =
        probe::some(dir, faults).into_iter().filter_map(|one| Some(format!("{}: {}", one.fault, one.missing?)));
    let missing: Vec<String> = missing.collect();
    ensure!(missing.is_empty(), "{}", missing.join("; "));
    Ok(())
}

/// Shows `date` a day in the year 2001, and reads what it says.
fn clocks(dir: &Path) -> anyhow::Result<()> {
    let clocks = Clocks::create(dir, 1)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
    clocks.set(0, Skew { offset_ms: 1_000_000_000_000 - i64::try_from(now)?, drift_ppm: 0 })?;
    let date = std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]).envs(clocks.env(0)).output();
    let said = date.context("run date")?.stdout;
    let said = String::from_utf8_lossy(&said);
    ensure!(said.trim() == "2001-09-09", "LD_PRELOAD is not heeded: date says {}", said.trim());
    Ok(())
}

impl Fault {
    /// All faults.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// What this machine lacks for it; empty = nothing.
    pub fn lacks(self) -> Vec<String> {
        self.needs().iter().filter_map(|need| need.probe().err()).map(|error| format!("{error:#}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_tried_here_is_there_or_says_what_is_missing() {
        Need::Clocks.probe().expect("the machine that builds Holdfast has a C compiler");
        if Need::Root.probe().is_err() {
            let lacks = Fault::Partition.lacks();
            assert!(lacks.iter().any(|missing| missing.contains("root")), "{lacks:?}");
            return;
        }
        Need::Network.probe().expect("root makes networks");
        assert!(Fault::Partition.lacks().is_empty());
    }
}
