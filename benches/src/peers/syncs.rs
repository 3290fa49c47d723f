//! Proof that acknowledged puts are synced: the kernel counts the calls of each server, under one client.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_benches::servers::Servers;

use crate::figures::Figures;
use crate::load::Payloads;
use crate::peer::Link;

const EVENTS: [&str; 2] = ["syscalls:sys_enter_fdatasync", "syscalls:sys_enter_fsync"];
/// Until a counter counts.
const ATTACHED_AFTER: Duration = Duration::from_millis(700);
/// Puts, one after the other.
const PUTS: u64 = 500;
const PAYLOAD_BYTES: usize = 1 << 10;

fn counter(pids: &[i32]) -> anyhow::Result<Child> {
    let pids = pids.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x", ",", "-e", &EVENTS.join(","), "-p", &pids]);
    perf.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    perf.spawn().context("perf cannot be started")
}

/// Ends a counter as Ctrl-C does: then it says what it counted.
fn counted(counter: Child) -> anyhow::Result<u64> {
    // SAFETY: a plain system call on a child that is not reaped yet.
    unsafe { libc::kill(i32::try_from(counter.id())?, libc::SIGINT) };
    let said = counter.wait_with_output()?;
    sum(&String::from_utf8_lossy(&said.stderr))
}

/// The counts in what perf said.
fn sum(said: &str) -> anyhow::Result<u64> {
    let counts = said.lines().filter(|line| EVENTS.iter().any(|event| line.contains(event)));
    let counts: Vec<u64> = counts.filter_map(|line| line.split(',').next()?.parse().ok()).collect();
    ensure!(counts.len() == EVENTS.len(), "perf could not count: {}", said.trim());
    Ok(counts.iter().sum())
}

/// Syncs of all servers for each put, and those of the second: with the first it makes a quorum.
///
/// # Errors
/// When the kernel does not count for us, or a put fails.
pub async fn count(servers: &Servers, link: &Link, tag: &str) -> anyhow::Result<Figures> {
    let payloads = Payloads::new(PAYLOAD_BYTES);
    // Its processes are there before they are counted.
    link.put(tag, "first", payloads.of(0)).await?;
    let counters = servers.trees()?.iter().map(|tree| counter(tree)).collect::<anyhow::Result<Vec<_>>>()?;
    tokio::time::sleep(ATTACHED_AFTER).await;
    for n in 0..PUTS {
        link.put(tag, &format!("r{n}"), payloads.of(n)).await?;
    }
    let mut counts = counters.into_iter().map(counted).collect::<anyhow::Result<Vec<_>>>()?;
    counts.sort_unstable_by(|one, other| other.cmp(one));
    let each = |count: u64| count as f64 / PUTS as f64;
    let second = counts.get(1).copied().context("one server is no quorum")?;
    Ok(Figures::from([("syncs".to_owned(), each(counts.iter().sum())), ("quorum_syncs".to_owned(), each(second))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_says_is_summed() {
        let said = "12,,syscalls:sys_enter_fdatasync,100,100.00,,\n3,,syscalls:sys_enter_fsync,100,100.00,,\n";
        assert_eq!(sum(said).expect("two counts"), 15);
        assert!(sum("<not supported>,,syscalls:sys_enter_fdatasync,0,0,,\n").is_err());
        assert!(sum("event syntax error").is_err());
    }
}
