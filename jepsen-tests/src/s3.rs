//! Real S3 servers for tests: PyPI `ministack`, whose locks hold, and `moto`, which lets them be shortened; as
//! `deploy/install-deps.sh --test` installs them.
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
    installed("ministack/bin/ministack")
}

/// The program of the server whose locks can be shortened, if it is installed.
///
/// # Panics
/// See [`program`].
pub fn program_that_unlocks() -> Option<PathBuf> {
    installed("moto/bin/moto_server")
}

fn installed(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from)?;
    let program = home.join(".cache/holdfast").join(name);
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
        let log = std::fs::File::create(dir.join("s3.log"))?;
        let mut command = Command::new(program);
        if program.ends_with("moto_server") {
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        }
        command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string()).env("HOME", dir);
        command.current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = spawn(command, Orphan::Killed).with_context(|| format!("start {}", program.display()))?;
        let mut server = Self { child, port, bucket: bucket.to_owned(), credentials };
        let end = Instant::now() + PATIENCE;
        while !server.put(&format!("/{bucket}"), "", "").is_ok_and(|made| made) {
            if let Some(status) = server.child.try_wait()? {
                bail!("the S3 server ended with {status}: see {}", dir.display());
            }
            if Instant::now() >= end {
                bail!("the S3 server did not answer within a minute: see {}", dir.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Makes a bucket that keeps versions, and locks each for a day in this mode: `COMPLIANCE` or `GOVERNANCE`.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn make_locked_bucket(&self, bucket: &str, mode: &str) -> anyhow::Result<()> {
        let made = self.put(&format!("/{bucket}"), "x-amz-bucket-object-lock-enabled: true\r\n", "")?;
        anyhow::ensure!(made, "{bucket} is not made");
        self.lock_new(bucket, mode, 1)
    }

    /// Whatever is stored from now on in a bucket with locks is locked for so many days.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn lock_new(&self, bucket: &str, mode: &str, days: u32) -> anyhow::Result<()> {
        let rule = format!(
            "<ObjectLockConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>{mode}</Mode><Days>{days}</Days>\
             </DefaultRetention></Rule></ObjectLockConfiguration>"
        );
        anyhow::ensure!(self.put(&format!("/{bucket}?object-lock"), "", &rule)?, "{bucket} is not locked");
        Ok(())
    }

    /// Makes a bucket that keeps versions, and locks nothing.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn make_versioned_bucket(&self, bucket: &str) -> anyhow::Result<()> {
        let rule = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>Enabled</Status>\
                    </VersioningConfiguration>";
        let made = self.put(&format!("/{bucket}"), "", "")? && self.put(&format!("/{bucket}?versioning"), "", rule)?;
        anyhow::ensure!(made, "{bucket} keeps no versions");
        Ok(())
    }

    /// It hangs: connections are taken, and nothing is answered, until [`Self::resume`].
    pub fn pause(&self) {
        crate::cluster::process::signal_group(&self.child, libc::SIGSTOP);
    }

    /// It goes on.
    pub fn resume(&self) {
        crate::cluster::process::signal_group(&self.child, libc::SIGCONT);
    }

    /// Deletes everything in a bucket that locks nothing.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn wipe(&self, bucket: &str) -> anyhow::Result<()> {
        loop {
            let (_, listed) = self.call("GET", &format!("/{bucket}?list-type=2"), "", "")?;
            let keys: Vec<&str> =
                listed.split("<Key>").skip(1).filter_map(|part| Some(part.split_once("</Key>")?.0)).collect();
            if keys.is_empty() {
                return Ok(());
            }
            for key in keys {
                let (status, _) = self.call("DELETE", &format!("/{bucket}/{key}"), "", "")?;
                anyhow::ensure!(status.starts_with('2'), "{bucket}/{key} was not deleted: HTTP {status}");
            }
        }
    }

    fn put(&self, target: &str, head: &str, body: &str) -> std::io::Result<bool> {
        self.call("PUT", target, head, body).map(|(status, _)| status == "200")
    }

    /// Status, and what came behind the head.
    fn call(&self, method: &str, target: &str, head: &str, body: &str) -> std::io::Result<(String, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let length = body.len();
        // Both servers find the service in what a signature is for; neither checks one.
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, \
             Signature=0\r\n{head}\r\n{body}"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.get(9..12).unwrap_or_default().to_owned();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        Ok((status, body.to_owned()))
    }

    /// URL of a prefix in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        self.url_in(&self.bucket, prefix)
    }

    /// URL of a prefix in another bucket.
    pub fn url_in(&self, bucket: &str, prefix: &str) -> String {
        format!("s3://{bucket}/{prefix}?endpoint={}&region=us-east-1", self.endpoint())
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
