//! Ctrl-C and SIGTERM for commands that run long: the work is dropped, and what it started ends with it.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGINT or SIGTERM; gives the signal's name.
pub async fn interrupted() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => Ok("SIGINT"),
        _ = terminate.recv() => Ok("SIGTERM"),
    }
}

/// Runs `work` until it ends or a signal comes; then it is dropped.
pub async fn unless_interrupted<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        signal = interrupted() => anyhow::bail!("stopped by {}", signal?),
    }
}
