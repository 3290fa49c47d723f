//! Ctrl-C and SIGTERM for commands that run long: the work is dropped, and what it started ends with it.
//!
//! Invariant: from [`Signals::listen`] on no signal is lost, whether or not it is being waited for. Two listeners one
//! after the other would lose what comes between them.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM from now on.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes them from the system, which would end the process.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for one, or gives one that came since; its name.
    pub async fn any(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Runs `work` until it ends or a signal comes; then it is dropped.
pub async fn unless_interrupted<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        done = work => done,
        signal = signals.any() => anyhow::bail!("stopped by {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_that_comes_before_it_is_waited_for_is_not_lost() {
        let mut signals = Signals::listen().expect("signals");
        let mut other = signal(SignalKind::terminate()).expect("signals");
        // SAFETY: a plain system call; the signal is caught above.
        assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
        // Once another listener has heard it, all have been told: who begins to listen now hears nothing.
        other.recv().await;
        let told = tokio::time::timeout(std::time::Duration::from_secs(10), signals.any()).await;
        assert_eq!(told, Ok("SIGTERM"));
    }
}
