//! A full disk under one of three nodes, and writes to its log that fail: the node ends and says why, the other two go
//! on, nothing is lost, and with room again the node is one of three.
//!
//! The disk is a small ext4 image, mounted by the node's own process in a mount namespace of its own: whatever becomes
//! of the test, the mount goes with the node.

mod cluster;
mod node_disks;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cluster::{Cluster, is_alive, wait_for, wait_until};
use node_disks::{Ledger, restart, restart_under, said, wait_started};

/// RocksDB takes 70 MiB for the log's WAL in advance, as far as there is room; what it needs next is refused.
const IMAGE_BYTES: u64 = 128 << 20;

/// True when this machine can mount; says so on stderr when not, and fails where everything must run.
fn can_mount() -> bool {
    let tried = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", "mount -t tmpfs none /mnt && mkfs.ext4 -V && losetup -f"])
        .stdin(Stdio::null())
        .output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("unshare: {error}"),
    };
    let skipped = format!("NOT TESTED: a full disk needs root, unshare, mkfs.ext4 and loop devices: {why}");
    assert!(std::env::var("HOLDFAST_TEST_REQUIRE").is_err(), "{skipped}");
    eprintln!("{skipped}");
    false
}

/// The disk of one node.
struct Disk {
    image: PathBuf,
    data_dir: PathBuf,
}

impl Disk {
    /// An image with what the directory holds now.
    fn of(data_dir: &Path, image: PathBuf) -> Self {
        std::fs::File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES)).expect("image");
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-d"]).arg(data_dir).arg(&image).output();
        let made = made.expect("mkfs.ext4");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { image, data_dir: data_dir.to_owned() }
    }

    /// A program to start the node under: it mounts the disk where only the node sees it, and runs `first` there.
    fn mounted<'a>(&'a self, first: &'a str) -> [&'a str; 10] {
        let script = "mount -o loop \"$0\" \"$1\" && cd \"$1\" && eval \"$2\" && cd / && shift 2 && exec \"$@\"";
        let [image, data_dir] = [&self.image, &self.data_dir].map(|path| path.to_str().expect("text"));
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script, image, data_dir, first]
    }

    /// The kernel lets go of the image a moment after the node's end; a second mount before that would be refused.
    fn wait_released(&self) {
        wait_until("the disk's release", || {
            let held = Command::new("losetup").arg("-j").arg(&self.image).output().expect("losetup");
            held.stdout.is_empty()
        });
    }
}

/// Takes all the room there is, on the disk that only this process sees.
fn fill(pid: i32, data_dir: &Path) {
    let inside = data_dir.strip_prefix("/").expect("absolute");
    let path = Path::new("/proc").join(pid.to_string()).join("root").join(inside).join("ballast");
    let mut ballast = std::fs::File::create(path).expect("ballast");
    let full = loop {
        if let Err(full) = ballast.write_all(&[0; 64 << 10]) {
            break full;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_full_ends_and_rejoins_once_there_is_room() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &["--set", "raft.snapshot_entries=40"]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, 2000).await;
    let place = cluster.leader().await;
    cluster.kill(place);
    let disk = Disk::of(&cluster.nodes[place].data_dir, dir.path().join("disk.ext4"));
    restart_under(&mut cluster, place, &disk.mounted("true"));
    wait_started(&cluster, place).await;
    cluster.wait_converged().await;

    let pid = cluster.nodes[place].pid;
    fill(pid, &disk.data_dir);
    wait_for("the disk to be full and the node to end", async || {
        ledger.write(&client, 5, 200_000).await;
        !is_alive(pid)
    })
    .await;
    let told = said(&cluster, place);
    let last = told.lines().rfind(|line| line.starts_with("holdfast: ")).unwrap_or_else(|| panic!("silent: {told}"));
    assert!(last.contains("No space left on device"), "{last}");
    assert!(last.contains(cluster.nodes[place].data_dir.to_str().expect("text")), "{last}");
    ledger.check(&client).await;
    cluster.kill(place);
    disk.wait_released();

    ledger.write(&client, 5, 2000).await;
    restart_under(&mut cluster, place, &disk.mounted("rm ballast"));
    wait_started(&cluster, place).await;
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
    cluster.kill(place);
    disk.wait_released();
    ledger.check(&client).await;
}

/// The disk is fine and must not be sent to a workshop: there is no room on it.
#[test]
fn a_node_that_starts_on_a_full_disk_asks_for_room() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let data_dir = dir.path().join("d");
    std::fs::create_dir(&data_dir).expect("directory");
    let disk = Disk::of(&data_dir, dir.path().join("disk.ext4"));
    let under = disk.mounted("dd if=/dev/zero of=lost+found/ballast bs=4k status=none || true");
    let output = Command::new("timeout")
        .args(["-k", "1", "30"])
        .args(under)
        .args([cluster::BINARY, "serve", "--no-config", "--node-id", "1", "--data-dir"])
        .arg(&data_dir)
        .args(["--listen-client", "127.0.0.1:0", "--listen-peer", "127.0.0.1:0"])
        .args(["--listen-admin", "127.0.0.1:0", "--listen-http", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["No space left on device", "free space"] {
        assert!(told.contains(part), "`{part}` is missing in: {told}");
    }
    disk.wait_released();
}

/// As a disk that takes no more writes, though it still reads and syncs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_cannot_be_written_aborts_and_rejoins() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    let mut ledger = Ledger::default();
    ledger.write(&client, 20, 2000).await;
    let place = cluster.leader().await;
    cluster.kill(place);
    // Which number RocksDB gives its next WAL is its own affair.
    let raft = cluster.nodes[place].data_dir.join("raft");
    let wals: Vec<String> = (1..60).map(|number| raft.join(format!("{number:06}.log")).display().to_string()).collect();
    let mut under = vec!["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=write,pwrite64"];
    under.extend(["-e", "inject=write,pwrite64:error=EIO:when=20+"]);
    under.extend(wals.iter().flat_map(|wal| ["-P", wal.as_str()]));
    restart_under(&mut cluster, place, &under);
    let pid = cluster.nodes[place].pid;
    wait_for("the node that cannot write to end", async || {
        ledger.write(&client, 1, 2000).await;
        !is_alive(pid)
    })
    .await;
    let told = said(&cluster, place);
    let last = told.lines().rfind(|line| line.starts_with("holdfast: ")).unwrap_or_else(|| panic!("silent: {told}"));
    for part in ["Input/output error", raft.to_str().expect("text"), "aborts"] {
        assert!(last.contains(part), "`{part}` is missing in: {last}");
    }
    ledger.check(&client).await;
    cluster.kill(place);
    restart(&mut cluster, place);
    cluster.wait_converged().await;
    ledger.check(&cluster.client_of(place)).await;
}
