//! A real S3 server for tests: PyPI `ministack`, as `deploy/install-deps.sh --test` installs it.
//!
//! Invariants: it listens on loopback alone, keeps its objects in memory, and ends with whoever started it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cluster::process::{Orphan, spawn};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running server with one bucket.
#[derive(Debug)]
pub struct S3 {
    child: Child,
    port: u16,
    bucket: String,
    credentials: PathBuf,
}

/// The program, if it is installed.
///
/// # Panics
/// Where it must be: under `CI`, a check that did not run must not look like one that passed.
pub fn program() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from)?;
    let program = home.join(".cache/holdfast/ministack/bin/ministack");
    if program.exists() {
        return Some(program);
    }
    let missing = "no S3 server to test against: run deploy/install-deps.sh --test with a network";
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("SKIPPED: {missing}");
    None
}

impl S3 {
    /// Starts it and makes `bucket`; its log and the credentials go into `dir`.
    ///
    /// # Errors
    /// When it does not answer within a minute.
    pub fn start(program: &Path, dir: &Path, bucket: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let credentials = dir.join("credentials");
        std::fs::write(&credentials, "[default]\naws_access_key_id = test\naws_secret_access_key = test\n")?;
        // Free a moment ago; one that somebody took meanwhile fails below.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::fs::File::create(dir.join("ministack.log"))?;
        let mut command = Command::new(program);
        command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string()).env("HOME", dir);
        command.current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = spawn(command, Orphan::Killed).with_context(|| format!("start {}", program.display()))?;
        let mut server = Self { child, port, bucket: bucket.to_owned(), credentials };
        let end = Instant::now() + PATIENCE;
        while !server.make_bucket().is_ok_and(|made| made) {
            if let Some(status) = server.child.try_wait()? {
                bail!("ministack ended with {status}: see {}", dir.display());
            }
            if Instant::now() >= end {
                bail!("ministack did not answer within a minute: see {}", dir.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn make_bucket(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "PUT /{} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.bucket
        )?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(&status[9..] == b"200")
    }

    /// URL of a prefix in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}?endpoint={}&region=us-east-1", self.bucket, self.endpoint())
    }

    /// Where it answers.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// File with credentials that it takes.
    pub fn credentials(&self) -> &Path {
        &self.credentials
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It keeps nothing that would have to be written; whatever it started ends with it.
        crate::cluster::process::signal_group(&self.child, libc::SIGKILL);
        let _ = self.child.wait();
    }
}
