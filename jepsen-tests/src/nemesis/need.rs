//! What faults need of a machine, tried for real: a machine that lacks something says so before a run, and not in it.

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::clock::{Clocks, Skew};
use crate::nemesis::Fault;
use crate::network::Network;

/// What a fault needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// To be root.
    Root,
    /// Network namespaces and TUN devices.
    Network,
    /// A C compiler, and a dynamic linker that heeds LD_PRELOAD.
    Clocks,
}

impl Need {
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
            Self::Clocks => {
                let dir = std::env::temp_dir().join(format!("jepsen-tests-{}", uuid::Uuid::new_v4()));
                let tried = clocks(&dir);
                let removed = std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()));
                tried.and(removed)
            }
        }
    }
}

/// Shows `date` a day in the year 2001, and reads what it says.
fn clocks(dir: &std::path::Path) -> anyhow::Result<()> {
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
        assert!(Fault::all().iter().all(|fault| fault.needs().is_empty() || fault.lacks().is_empty()));
    }
}
