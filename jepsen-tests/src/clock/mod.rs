//! Wall clocks of single processes: each node sees the machine's time plus what a file of its own says.
//!
//! A shim that `cc` compiles is loaded into the node (`LD_PRELOAD`) and maps that file, so that a clock can jump or run
//! fast while the node runs. Only wall time is changed; what the machine itself and monotonic time say stays.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::cluster::comes_true;

const SHIM: &str = include_str!("shim.c");
/// Names the file of a process for the shim.
const FILE: &str = "JEPSEN_CLOCK";
/// `struct shown` of the shim: five fields of eight bytes.
const FIELDS: usize = 5;
const CHANGE: u64 = 3 * 8;
const SEEN: u64 = 4 * 8;

/// What a process sees besides the machine's wall time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Skew {
    /// So much is added.
    pub offset_ms: i64,
    /// And so many millionths of the time since it was set: a clock that runs fast, or slow.
    pub drift_ppm: i64,
}

/// Clocks of several processes.
#[derive(Debug)]
pub struct Clocks {
    shim: PathBuf,
    clocks: Vec<(PathBuf, File)>,
    changes: AtomicU64,
}

impl Clocks {
    /// Makes clocks for so many processes in a new folder; all show the machine's time.
    ///
    /// # Errors
    /// When the folder cannot be made, or there is no C compiler.
    pub fn create(dir: &Path, count: usize) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        // Processes start elsewhere.
        let dir = dir.canonicalize()?;
        let (source, shim) = (dir.join("shim.c"), dir.join("shim.so"));
        std::fs::write(&source, SHIM).with_context(|| format!("write {}", source.display()))?;
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&shim).arg(&source);
        let output = compile.args(["-ldl", "-lpthread"]).stdin(Stdio::null()).output();
        let output = output.context("run cc: clock faults take a C compiler")?;
        ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        let clock = |at: usize| {
            let path = dir.join(format!("clock{at}"));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
            let file = file.with_context(|| format!("create {}", path.display()))?;
            file.write_all_at(&[0; FIELDS * 8], 0)?;
            Ok((path, file))
        };
        let clocks = (0..count).map(clock).collect::<anyhow::Result<_>>()?;
        Ok(Self { shim, clocks, changes: AtomicU64::new(0) })
    }

    /// Environment in which a process sees its clock.
    pub fn env(&self, at: usize) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec![("LD_PRELOAD".to_owned(), text(&self.shim)), (FILE.to_owned(), text(&self.clocks[at].0))]
    }

    /// Sets a clock; gives a number to ask [`Clocks::is_seen`] for.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set(&self, at: usize, skew: Skew) -> anyhow::Result<u64> {
        let change = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        let file = &self.clocks[at].1;
        let fields = [skew.offset_ms.saturating_mul(1_000_000), skew.drift_ppm, monotonic_ns()?];
        for (offset, field) in (0..).step_by(8).zip(fields) {
            file.write_all_at(&field.to_ne_bytes(), offset)?;
        }
        file.write_all_at(&change.to_ne_bytes(), CHANGE)?;
        Ok(change)
    }

    /// Whether the process has told itself a time by this change, or a newer one.
    pub fn is_seen(&self, at: usize, change: u64) -> bool {
        let mut field = [0; 8];
        self.clocks[at].1.read_exact_at(&mut field, SEEN).is_ok() && u64::from_ne_bytes(field) >= change
    }

    /// Waits until it has.
    pub async fn becomes_seen(&self, at: usize, change: u64, within: Duration) -> bool {
        comes_true(within, async || self.is_seen(at, change)).await
    }
}

fn monotonic_ns() -> anyhow::Result<i64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which is ours.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
        bail!("read the monotonic clock: {}", std::io::Error::last_os_error());
    }
    Ok(time.tv_sec * 1_000_000_000 + time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Child;
    use std::time::{Instant, SystemTime};

    use super::*;

    /// What this process is told to do when a test starts it again.
    const TELL: &str = "JEPSEN_TESTS_TELL";
    const TEST: &str = "clock::tests::a_process_sees_its_own_wall_clock_and_nothing_else_changes";

    /// A process that tells its wall time and its monotonic time whenever it is asked.
    struct Teller {
        child: Child,
        lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    }

    impl Teller {
        fn start(clocks: &Clocks, at: usize) -> Self {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.args(["--exact", TEST, "--nocapture"]).env(TELL, "1").envs(clocks.env(at));
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = crate::cluster::spawn_bound(command).expect("started");
            let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
            Self { child, lines }
        }

        /// Its wall clock less the machine's, in ms, and how long it waited for 50 ms of wall time.
        fn ask(&mut self) -> (i64, u64) {
            self.child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("asked");
            let told =
                self.lines.by_ref().map_while(Result::ok).find_map(|line| Some(line.strip_prefix("told ")?.to_owned()));
            let told = told.expect("it tells");
            let (wall, waited) = told.split_once(' ').expect("two numbers");
            (wall.parse::<i64>().expect("ms") - wall_ms(), waited.parse().expect("ms"))
        }
    }

    impl Drop for Teller {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn wall_ms() -> i64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as i64
    }

    fn tell() {
        for _ in std::io::stdin().lines() {
            let began = Instant::now();
            std::thread::sleep(Duration::from_millis(50));
            println!("\ntold {} {}", wall_ms(), began.elapsed().as_millis());
        }
    }

    #[test]
    fn a_process_sees_its_own_wall_clock_and_nothing_else_changes() {
        if std::env::var_os(TELL).is_some() {
            return tell();
        }
        let dir = tempfile::tempdir().expect("tempdir");
        let clocks = Clocks::create(&dir.path().join("clocks"), 2).expect("a C compiler");
        let (mut one, mut other) = (Teller::start(&clocks, 0), Teller::start(&clocks, 1));
        // Load of the machine makes answers late, by far less than what the clocks are set to.
        let close = |told: (i64, u64), to: i64| {
            assert!((told.0 - to).abs() < 20_000, "{told:?}, and not {to} ms");
            assert!((50..20_000).contains(&told.1), "{told:?}");
        };
        close(one.ask(), 0);
        for offset_ms in [600_000, -3_600_000] {
            let change = clocks.set(0, Skew { offset_ms, drift_ppm: 0 }).expect("set");
            assert!(!clocks.is_seen(0, change), "it was not asked yet");
            close(one.ask(), offset_ms);
            assert!(clocks.is_seen(0, change) && !clocks.is_seen(1, change));
            close(other.ask(), 0);
        }
        // A million seconds a second.
        clocks.set(0, Skew { offset_ms: 0, drift_ppm: 1_000_000_000_000 }).expect("set");
        assert!(one.ask().0 > 10_000_000);
        clocks.set(0, Skew::default()).expect("set");
        close(one.ask(), 0);
    }

    /// Waits 50 ms by a condition variable that goes by wall time, as RocksDB does; tells how long it was, in ms.
    const WAITER: &str = r#"
        #include <pthread.h>
        #include <stdio.h>
        #include <sys/time.h>
        #include <time.h>
        static long ms(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000 + t.tv_nsec / 1000000; }
        int main(void) {
            pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
            pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
            struct timeval now;
            gettimeofday(&now, 0);
            long from = ms(), until = now.tv_sec * 1000000 + now.tv_usec + 50000;
            struct timespec then = {until / 1000000, until % 1000000 * 1000};
            pthread_mutex_lock(&mutex);
            while (pthread_cond_timedwait(&cond, &mutex, &then) == 0) {}
            printf("%ld %ld", ms() - from, (long)time(0));
            return 0;
        }"#;

    #[test]
    fn a_wait_until_a_moment_of_wall_time_is_as_long_as_ever() {
        let dir = tempfile::tempdir().expect("tempdir");
        let clocks = Clocks::create(&dir.path().join("clocks"), 1).expect("a C compiler");
        let (source, program) = (dir.path().join("waiter.c"), dir.path().join("waiter"));
        std::fs::write(&source, WAITER).expect("written");
        let compiled = Command::new("cc").arg("-o").arg(&program).arg(&source).arg("-lpthread").status();
        assert!(compiled.expect("cc runs").success());
        for offset_ms in [0, 20_000_000, -20_000_000] {
            clocks.set(0, Skew { offset_ms, drift_ppm: 0 }).expect("set");
            let mut command = Command::new("timeout");
            let output = command.arg("20").arg(&program).envs(clocks.env(0)).output().expect("it runs");
            let told = String::from_utf8(output.stdout).expect("text");
            let (waited, wall) = told.split_once(' ').unwrap_or_else(|| panic!("at {offset_ms}: {told:?}"));
            let waited: i64 = waited.parse().expect("ms");
            assert!((40..20_000).contains(&waited), "at {offset_ms}: {told}");
            let wall: i64 = wall.parse().expect("s");
            assert!((wall * 1000 - wall_ms() - offset_ms).abs() < 20_000, "at {offset_ms}: {told}");
        }
    }
}
