use std::io::BufRead;

use super::array::WITHIN;
use super::inject::Fault;
use super::*;

const SMALL: u64 = 32 << 20;
/// Set for the process that is to be killed.
const ROLE: &str = "JEPSEN_DISK_HOLDER";

/// Runs a test on mounts of its own; says loudly when this machine cannot, and fails where everything must run.
fn on_mounts(test: impl FnOnce(Mounts, &Path) + Send) {
    let dir = tempfile::tempdir().expect("tempdir");
    let missing = probe::all(dir.path()).into_iter().find_map(|can| can.missing.map(|why| (can.fault, why)));
    if let Some((fault, why)) = missing {
        let skipped =
            format!("NOT TESTED: disks need root, loop devices, e2fsprogs, util-linux, strace: {fault}: {why}");
        assert!(std::env::var("HOLDFAST_TEST_REQUIRE").is_err(), "{skipped}");
        eprintln!("{skipped}");
        return;
    }
    Mounts::scope(|mounts| test(mounts, dir.path())).expect("mounts of its own");
}

fn disk(mounts: Mounts, dir: &Path, name: &str) -> Disk {
    Disk::create(mounts, &dir.join(format!("{name}.ext4")), &dir.join(name), SMALL).expect("a disk")
}

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("created");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("written");
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    crate::cluster::wait_until(what, &mut done);
}

fn is_asleep_in_the_kernel(thread: i32) -> bool {
    std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" D")))
}

#[test]
fn a_power_cut_keeps_what_was_fsynced_and_nothing_else() {
    on_mounts(|mounts, dir| {
        let disk = disk(mounts, dir, "a");
        let at = |name: &str| disk.at().join(name);
        write_synced(&at("synced"), b"one");
        write_synced(&at("grown"), b"one");
        write_synced(&at("renamed"), b"old");
        let mut grown = File::options().append(true).open(at("grown")).expect("open");
        grown.write_all(b" and two").expect("written");
        std::fs::write(at("never"), b"x").expect("written");
        std::fs::write(at("renamed.tmp"), b"new").expect("written");
        std::fs::rename(at("renamed.tmp"), at("renamed")).expect("renamed");
        disk.cut_power().expect("cut");
        assert!(grown.sync_all().is_err(), "what is not there any more cannot be fsynced");
        assert!(std::fs::write(at("later"), b"x").is_err());
        drop(grown);
        disk.revive().expect("revived");
        assert_eq!(std::fs::read(at("synced")).expect("read"), b"one");
        assert_eq!(std::fs::read(at("grown")).expect("read"), b"one");
        assert_eq!(std::fs::read(at("renamed")).expect("read"), b"old");
        assert!(!at("never").exists() && !at("later").exists());
        // The same disk again: it is as good as before.
        write_synced(&at("again"), b"x");
        disk.cut_power().expect("cut");
        disk.revive().expect("revived");
        assert!(at("again").exists());
        disk.unmount().expect("unmounted");
        wait_until("the loop device to go", || mounts::loops_on(disk.image()).expect("listed").is_empty());
    });
}

#[test]
fn all_disks_of_an_array_lose_power_in_one_moment() {
    on_mounts(|mounts, dir| {
        let disks = ["a", "b", "c"].map(|name| disk(mounts, dir, name));
        for disk in &disks {
            write_synced(&disk.at().join("kept"), b"x");
            std::fs::write(disk.at().join("lost"), b"x").expect("written");
        }
        let spread = array::cut_power(&disks.each_ref()).expect("cut");
        assert!(spread.done < 10 * WITHIN, "{spread:?}");
        for disk in &disks {
            assert!(std::fs::write(disk.at().join("later"), b"x").is_err());
            disk.revive().expect("revived");
            assert!(disk.at().join("kept").exists() && !disk.at().join("lost").exists());
        }
    });
}

#[test]
fn a_rollback_takes_back_what_was_fsynced() {
    on_mounts(|mounts, dir| {
        let disk = disk(mounts, dir, "a");
        let at = |name: &str| disk.at().join(name);
        write_synced(&at("before"), b"one");
        disk.set_aside(&dir.join("copy")).expect("set aside");
        write_synced(&at("before"), b"two");
        write_synced(&at("after"), b"x");
        disk.cut_power().expect("cut");
        disk.roll_back(&dir.join("copy")).expect("rolled back");
        assert_eq!(std::fs::read(at("before")).expect("read"), b"one");
        assert!(!at("after").exists());
        write_synced(&at("after"), b"y");
        disk.wipe().expect("wiped");
        assert!(!at("before").exists() && !at("after").exists());
    });
}

#[test]
fn writers_of_a_hung_array_wait_and_go_on() {
    on_mounts(|mounts, dir| {
        let disks = ["a", "b"].map(|name| disk(mounts, dir, name));
        write_synced(&disks[0].at().join("old"), b"old");
        let hang = array::hang(&disks.each_ref()).expect("frozen");
        let (told, heard) = std::sync::mpsc::sync_channel(2);
        std::thread::scope(|threads| {
            let mut writers = Vec::new();
            for disk in &disks {
                let told = told.clone();
                writers.push(threads.spawn(move || {
                    // SAFETY: a plain system call.
                    told.send(unsafe { libc::gettid() }).expect("heard");
                    std::fs::write(disk.at().join("new"), b"new").expect("written once it is thawed");
                }));
            }
            for _ in &disks {
                let thread = heard.recv().expect("told");
                wait_until("the writer to wait", || is_asleep_in_the_kernel(thread));
            }
            assert_eq!(std::fs::read(disks[0].at().join("old")).expect("readers go on"), b"old");
            assert!(writers.iter().all(|writer| !writer.is_finished()));
            drop(hang);
        });
        assert!(disks.iter().all(|disk| disk.at().join("new").exists()));
    });
}

#[test]
fn a_full_disk_has_room_for_nothing_until_it_is_given_back() {
    on_mounts(|mounts, dir| {
        let disk = disk(mounts, dir, "a");
        assert!(disk.fill(4 << 20).expect("filled") > SMALL / 4);
        let left = disk.free_bytes().expect("told");
        assert!((3 << 20..=(4 << 20) + 1024).contains(&left), "{left}");
        disk.fill(0).expect("filled");
        let full = std::fs::write(disk.at().join("x"), [1; 8192]).expect_err("no room");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        disk.make_room().expect("given back");
        write_synced(&disk.at().join("x"), &[1; 8192]);
    });
}

#[test]
fn fsyncs_fail_from_the_one_that_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    on_mounts(|_, _| {
        let (file, trace) = (dir.path().join("file"), dir.path().join("trace"));
        std::fs::write(&file, "x").expect("written");
        let synced = |times: usize, fault: Fault| {
            let under = inject::under(fault, &trace);
            let mut command = Command::new(&under[0]);
            command.args(&under[1..]).args(["sync", "--data"]).args(vec![&file; times]).stderr(Stdio::null());
            command.status().expect("strace runs").success()
        };
        assert!(synced(2, Fault::Eio { from: 3 }));
        assert_eq!(inject::struck(&trace), 0);
        assert!(!synced(4, Fault::Eio { from: 3 }));
        assert_eq!(inject::struck(&trace), 2);
        let began = Instant::now();
        assert!(synced(3, Fault::Slow { by: Duration::from_millis(40) }));
        assert!(began.elapsed() >= Duration::from_millis(120));
        assert_eq!(inject::struck(&trace), 3);
    });
}

/// A frozen file system outlives its mount, and who sleeps in it cannot be killed: the guardian is what ends both.
#[test]
fn nothing_is_left_when_the_process_is_killed_while_its_disks_hang() {
    if let Some(dir) = std::env::var_os(ROLE) {
        hold(Path::new(&dir));
    }
    on_mounts(|_, dir| {
        let mut holder = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "--nocapture"])
            .arg("disk::tests::nothing_is_left_when_the_process_is_killed_while_its_disks_hang")
            .env(ROLE, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = io::BufReader::new(holder.stdout.take().expect("a pipe")).lines();
        let told = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("held by ").map(str::to_owned));
        let told = told.expect("the holder tells its children");
        let children: Vec<i32> = told.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
        let images = ["a.ext4", "b.ext4"].map(|name| dir.join(name));
        let held = |image: &PathBuf| !mounts::loops_on(image).expect("listed").is_empty();
        assert!(images.iter().all(held));
        assert!(children.iter().all(|pid| crate::cluster::is_alive(*pid)));
        let seen = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!seen.contains(&*dir.to_string_lossy()), "others see the mounts");
        holder.kill().expect("killed");
        holder.wait().expect("reaped");
        wait_until("all children to end", || children.iter().all(|pid| !crate::cluster::is_alive(*pid)));
        wait_until("the loop devices to go", || !images.iter().any(held));
    });
}

/// Two hung disks, a writer that sleeps in one of them, and a guardian.
#[expect(clippy::zombie_processes, reason = "it is to be alive when this process is killed")]
fn hold(dir: &Path) -> ! {
    Mounts::scope(|mounts| {
        let disks = ["a", "b"].map(|name| disk(mounts, dir, name));
        let mut writer = Command::new("sh");
        writer.args(["-c", "while echo x; do :; done >file"]).current_dir(disks[0].at()).stdin(Stdio::null());
        let writer = crate::cluster::spawn(writer, crate::cluster::Orphan::Killed).expect("started");
        let hang = array::hang(&disks.each_ref()).expect("frozen");
        wait_until("the writer to wait", || {
            std::fs::read_to_string(format!("/proc/{}/stat", writer.id())).is_ok_and(|stat| stat.contains(") D "))
        });
        println!("\nheld by {} {}", writer.id(), hang.guardian());
        loop {
            std::thread::park();
        }
    })
    .expect("mounts of its own")
}
