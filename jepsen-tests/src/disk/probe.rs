//! What this machine can do to disks. Each fault is tried on a scratch disk; nothing is taken for granted.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};

use super::inject::{self, Fault};
use super::{Disk, Mounts, array};

/// Large enough for ext4 with a journal.
const SCRATCH_BYTES: u64 = 16 << 20;

/// One fault, and whether it can be made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Name of the fault.
    pub fault: &'static str,
    /// How it is made.
    pub how: &'static str,
    /// Why it cannot be made; `None` = it can.
    pub missing: Option<String>,
}

type Try = fn(Mounts, &Path) -> anyhow::Result<()>;

const PROBES: &[(&str, &str, Try)] = &[
    ("disk", "ext4 in an image file, on a loop device, in a mount namespace of its own", try_disk),
    ("power", "FS_IOC_SHUTDOWN without flush, then mount again", try_power),
    ("disk-full", "a ballast file", try_full),
    ("array-hang", "FIFREEZE, with a guardian that thaws", try_hang),
    ("array-rollback", "an image that was set aside is put back", try_rollback),
    ("eio", "strace --seccomp-bpf -e inject=fdatasync:error=EIO", try_eio),
    ("slow-fsync", "strace --seccomp-bpf -e inject=fdatasync:delay_enter", try_slow),
];

/// Tries every fault in a scratch folder, which must exist; leaves nothing in it.
pub fn all(scratch: &Path) -> Vec<Capability> {
    let names: Vec<&str> = PROBES.iter().map(|(fault, ..)| *fault).collect();
    some(scratch, &names)
}

/// As [`all`], for these faults.
pub fn some(scratch: &Path, faults: &[&str]) -> Vec<Capability> {
    let probe = |(fault, how, attempt): &(&'static str, &'static str, Try)| {
        let outcome = match Mounts::scope(|mounts| within(mounts, &scratch.join(format!("probe-{fault}")), *attempt)) {
            Ok(outcome) => outcome,
            Err(error) => Err(anyhow!("no mount namespace: {error}; run as root")),
        };
        Capability { fault, how, missing: outcome.err().map(|error| format!("{error:#}")) }
    };
    PROBES.iter().filter(|(fault, ..)| faults.contains(fault)).map(probe).collect()
}

fn within(mounts: Mounts, folder: &Path, attempt: Try) -> anyhow::Result<()> {
    std::fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
    let outcome = attempt(mounts, folder);
    let removed = std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()));
    outcome.and(removed)
}

fn scratch(mounts: Mounts, folder: &Path) -> anyhow::Result<Disk> {
    Disk::create(mounts, &folder.join("image"), &folder.join("mount"), SCRATCH_BYTES)
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn try_disk(mounts: Mounts, folder: &Path) -> anyhow::Result<()> {
    let disk = scratch(mounts, folder)?;
    write_synced(&disk.at().join("a"), b"a")?;
    disk.revive()?;
    ensure!(std::fs::read(disk.at().join("a"))? == b"a", "a file is gone after an ordinary unmount");
    disk.unmount()
}

fn try_power(mounts: Mounts, folder: &Path) -> anyhow::Result<()> {
    let disk = scratch(mounts, folder)?;
    let [kept, lost] = ["kept", "lost"].map(|name| disk.at().join(name));
    write_synced(&kept, b"kept")?;
    std::fs::write(&lost, b"lost")?;
    disk.cut_power().context("FS_IOC_SHUTDOWN")?;
    disk.revive()?;
    ensure!(std::fs::read(kept)? == b"kept", "what was fsynced is gone");
    ensure!(!lost.exists(), "what was not fsynced is still there: this is no power cut");
    disk.unmount()
}

fn try_full(mounts: Mounts, folder: &Path) -> anyhow::Result<()> {
    let disk = scratch(mounts, folder)?;
    disk.fill(0)?;
    let full = std::fs::write(disk.at().join("a"), vec![1; 64 << 10]);
    ensure!(full.is_err_and(|error| error.kind() == ErrorKind::StorageFull), "there is still room");
    disk.make_room()?;
    write_synced(&disk.at().join("a"), &[1; 64 << 10])?;
    disk.unmount()
}

fn try_hang(mounts: Mounts, folder: &Path) -> anyhow::Result<()> {
    let disk = scratch(mounts, folder)?;
    let hang = array::hang(&[&disk]).context("FIFREEZE")?;
    ensure!(disk.thaw().is_ok(), "the file system is not frozen");
    disk.freeze().context("FIFREEZE")?;
    drop(hang);
    ensure!(disk.thaw().is_err(), "the guardian did not thaw it: install fsfreeze (util-linux)");
    disk.unmount()
}

fn try_rollback(mounts: Mounts, folder: &Path) -> anyhow::Result<()> {
    let disk = scratch(mounts, folder)?;
    disk.set_aside(&folder.join("copy"))?;
    write_synced(&disk.at().join("a"), b"a")?;
    disk.roll_back(&folder.join("copy"))?;
    ensure!(!disk.at().join("a").exists(), "what was fsynced is still there: this is no rollback");
    disk.unmount()
}

/// `sync --data` is one fdatasync.
fn sync_under(fault: Fault, folder: &Path) -> anyhow::Result<bool> {
    let (file, trace) = (folder.join("file"), folder.join("trace"));
    std::fs::write(&file, b"x")?;
    let under = inject::under(fault, &trace);
    let output = Command::new(&under[0])
        .args(&under[1..])
        .args(["sync", "--data"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .context("run strace: install it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(inject::struck(&trace) == 1, "strace does not inject: {}", said.trim());
    Ok(output.status.success())
}

fn try_eio(_: Mounts, folder: &Path) -> anyhow::Result<()> {
    if sync_under(Fault::Eio { from: 1 }, folder)? {
        bail!("an fsync that was to fail did not");
    }
    Ok(())
}

fn try_slow(_: Mounts, folder: &Path) -> anyhow::Result<()> {
    let by = Duration::from_millis(30);
    let began = std::time::Instant::now();
    ensure!(sync_under(Fault::Slow { by }, folder)?, "an fsync that was only to be slow failed");
    ensure!(began.elapsed() >= by, "an fsync that was to take {by:?} did not");
    Ok(())
}
