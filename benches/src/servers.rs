//! What the processes of a server use, from `/proc` and `/sys`: a server of one process, or one with a process for each connection.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

/// The disk below a folder. What reaches it is counted there and not by process: of a process the kernel counts whole
/// folios of memory that it touched, and a short write into a large one as megabytes.
#[derive(Debug)]
pub struct Disk {
    stat: PathBuf,
}

impl Disk {
    /// `None` = it is none that counts: memory, a network, several disks.
    pub fn below(folder: &Path) -> Option<Self> {
        let device = std::fs::metadata(folder).ok()?.dev();
        let stat = format!("/sys/dev/block/{}:{}/stat", libc::major(device), libc::minor(device)).into();
        let disk = Self { stat };
        disk.written().map(|_| disk)
    }

    /// Bytes written so far, by whomever.
    pub fn written(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(&self.stat).ok()?;
        // Sectors of 512 bytes, whatever the disk has (Documentation/block/stat.rst of Linux).
        Some(stat.split_whitespace().nth(6)?.parse::<u64>().ok()? * 512)
    }

    /// Has the kernel write what it has left, so that it is not counted later.
    pub fn flush() {
        // SAFETY: a plain system call.
        unsafe { libc::sync() };
    }
}

/// Processes with all that they started.
#[derive(Debug, Clone)]
pub struct Servers {
    roots: Vec<i32>,
}

impl Servers {
    /// The first process of each server.
    pub fn new(roots: impl IntoIterator<Item = i32>) -> Self {
        Self { roots: roots.into_iter().collect() }
    }

    /// User and system time until now, all together. Processes that ended count as well, once their parent knows of it.
    ///
    /// # Errors
    /// When a server is gone.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut sum = Duration::ZERO;
        for tree in self.trees()? {
            for (place, pid) in tree.into_iter().enumerate() {
                match (cpu_of(pid), place) {
                    (Ok(used), _) => sum += used,
                    (Err(gone), 0) => return Err(gone),
                    // It ended while the others were looked at.
                    (Err(_), _) => {}
                }
            }
        }
        Ok(sum)
    }

    /// Lets the kernel begin anew with the most that each process had resident.
    pub fn forget_peaks(&self) {
        for pid in self.trees().unwrap_or_default().concat() {
            // Without the right to do so, what is told is the peak since its start.
            let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }

    /// Memory of each server in KiB. Of one process: the most that was resident. Of several: what is resident now, and what
    /// they share once.
    ///
    /// # Errors
    /// When a server is gone.
    pub fn memory_kib(&self) -> anyhow::Result<Vec<u64>> {
        self.trees()?.iter().map(|tree| memory_kib(tree)).collect()
    }

    /// Processes of each server, the first one in front.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn trees(&self) -> anyhow::Result<Vec<Vec<i32>>> {
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Ok(fields) = stat(pid)
                && let Some(parent) = fields.get(1).and_then(|parent| parent.parse().ok())
            {
                children.entry(parent).or_default().push(pid);
            }
        }
        Ok(self.roots.iter().map(|root| tree(*root, &children)).collect())
    }
}

fn tree(root: i32, children: &BTreeMap<i32, Vec<i32>>) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.get(pid).into_iter().flatten());
        next += 1;
    }
    found
}

/// User and system time of this process so far.
///
/// # Errors
/// When there is no `/proc`.
pub fn own_cpu() -> anyhow::Result<Duration> {
    cpu_of(i32::try_from(std::process::id())?)
}

/// Fields of a process behind its name, which may hold anything: the first one is its state (proc(5)).
fn stat(pid: i32) -> anyhow::Result<Vec<String>> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}; did it end?"))?;
    Ok(text.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect())
}

/// User and system time of a process so far, and of children that it waited for.
pub(crate) fn cpu_of(pid: i32) -> anyhow::Result<Duration> {
    // SAFETY: asks for a constant of the system.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })?.max(1);
    let fields = stat(pid)?;
    let mut ticks = 0u64;
    for place in 11..15 {
        ticks += fields.get(place).context("short /proc stat")?.parse::<u64>()?;
    }
    Ok(Duration::from_millis(ticks * 1000 / per_second))
}

fn memory_kib(tree: &[i32]) -> anyhow::Result<u64> {
    let [pid] = tree else {
        let shares = tree.iter().filter_map(|pid| kib(*pid, "smaps_rollup", "Pss:").ok());
        return Ok(shares.sum());
    };
    kib(*pid, "status", "VmHWM:")
}

/// A field of a file of a process, in KiB.
pub(crate) fn kib(pid: i32, file: &str, field: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}; did it end?"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field} {path}"))?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_the_root_and_all_below_it() {
        let children = BTreeMap::from([(1, vec![2, 9]), (2, vec![3]), (3, vec![4]), (7, vec![8])]);
        assert_eq!(tree(1, &children), [1, 2, 9, 3, 4]);
        assert_eq!(tree(8, &children), [8]);
    }

    #[test]
    fn this_process_is_measured() {
        let servers = Servers::new([i32::try_from(std::process::id()).expect("pid")]);
        assert!(servers.memory_kib().expect("measured")[0] > 0);
        assert!(servers.cpu().expect("measured") <= own_cpu().expect("measured"));
        assert!(Servers::new([i32::MAX]).cpu().is_err(), "no such process");
    }
}
