//! Failing and slow fsyncs: the node runs under `strace`, which answers in the kernel's place or lets calls wait.
//!
//! What strace did is in a file of its own, call by call: a fault that never struck proves nothing.

use std::path::Path;
use std::time::Duration;

/// Every call by which a process asks for its bytes to be on the disk.
const SYNCS: &str = "fsync,fdatasync,sync_file_range,msync";

/// What the fsyncs of a process do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// From the n-th call on, of each thread, they fail with EIO. 1 is the first.
    Eio {
        /// First call that fails.
        from: u32,
    },
    /// Each takes so much longer.
    Slow {
        /// How much.
        by: Duration,
    },
}

/// The program, with arguments, to run a process under, so that its fsyncs have this fault; `trace` is written.
pub fn under(fault: Fault, trace: &Path) -> Vec<String> {
    let inject = match fault {
        Fault::Eio { from } => format!("error=EIO:when={from}+"),
        Fault::Slow { by } => format!("delay_enter={}us", by.as_micros()),
    };
    let [trace_arg, inject_arg] = [format!("trace={SYNCS}"), format!("inject={SYNCS}:{inject}")];
    let words = ["strace", "-f", "-y", "--seccomp-bpf", "-qq", "-o"];
    let mut under: Vec<String> = words.map(str::to_owned).into();
    under.extend([trace.to_string_lossy().into_owned(), "-e".into(), trace_arg, "-e".into(), inject_arg]);
    under
}

/// How many calls had the fault, by what `strace` wrote.
pub fn struck(trace: &Path) -> usize {
    struck_in(trace, "")
}

/// As [`struck`], of calls on files whose path contains `part`.
pub fn struck_in(trace: &Path, part: &str) -> usize {
    let text = std::fs::read(trace).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let hit = |line: &&str| line.contains("(INJECTED)") || line.contains("(DELAYED)");
    text.lines().filter(hit).filter(|line| line.contains(part)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_were_hit_are_counted_by_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let trace = dir.path().join("trace");
        let text = "7 fdatasync(9</n0/raft/000004.log>) = 0\n\
                    7 fdatasync(9</n0/raft/000004.log>) = -1 EIO (Input/output error) (INJECTED)\n\
                    8 fdatasync(11</n0/state/0/db-1/000009.sst>) = -1 EIO (Input/output error) (INJECTED)\n\
                    8 fsync(11</n0/state/0/db-1>) = 0 (DELAYED)\n";
        std::fs::write(&trace, text).expect("trace");
        assert_eq!((struck(&trace), struck_in(&trace, "/raft/")), (3, 1));
        assert_eq!(struck(&dir.path().join("none")), 0);
    }
}
