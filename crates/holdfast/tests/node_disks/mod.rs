//! What the tests of damage need beside the cluster: a ledger of what was acknowledged, nodes that must refuse to
//! start, and bytes that are spoilt and put back.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_client::{Client, Error};
use holdfast_model::id::GroupId;
use holdfast_store::{DataDir, RawRow, StateLoader, StateStore, open_checkpoint};
use holdfast_wire::v1;

use crate::cluster::{Cluster, contact, is_alive, wait_for, wait_until};

/// Owner of all records of a ledger.
const USER: &str = "ann";

/// Acknowledged writes, by record id.
#[derive(Default)]
pub struct Ledger {
    acknowledged: BTreeMap<String, Vec<u8>>,
    written: u64,
}

impl Ledger {
    /// Writes records and notes them once they are acknowledged; the cluster must take them.
    pub async fn write(&mut self, client: &Client, count: usize, payload_bytes: usize) {
        for _ in 0..count {
            self.written += 1;
            let (id, payload) = (format!("c{}", self.written), incompressible(self.written, payload_bytes));
            client.put(contact(USER, &id), "text/plain", payload.clone()).await.expect("the cluster takes writes");
            self.acknowledged.insert(id, payload);
        }
    }

    /// Writes one record and notes it if it is acknowledged; a full cluster may refuse it.
    pub async fn try_write(&mut self, client: &Client, payload_bytes: usize) -> Result<(), Error> {
        self.written += 1;
        let (id, payload) = (format!("c{}", self.written), incompressible(self.written, payload_bytes));
        client.put(contact(USER, &id), "text/plain", payload.clone()).await?;
        self.acknowledged.insert(id, payload);
        Ok(())
    }

    /// Deletes this many of the records that were acknowledged; the cluster must take that.
    pub async fn delete(&mut self, client: &Client, count: usize) {
        for _ in 0..count {
            let Some((id, _)) = self.acknowledged.pop_first() else { return };
            client.delete(contact(USER, &id)).await.expect("the cluster takes deletes");
            let found = client.get(contact(USER, &id)).await.expect("readable");
            assert!(found.is_some_and(|record| record.payload.is_empty()), "{id} is still there");
        }
    }

    /// Records that are acknowledged and not deleted.
    pub fn len(&self) -> usize {
        self.acknowledged.len()
    }

    /// Writes every record again, with other bytes.
    pub async fn rewrite(&mut self, client: &Client) {
        for (id, payload) in &mut self.acknowledged {
            self.written += 1;
            let fresh = incompressible(self.written, payload.len());
            client.put(contact(USER, id), "text/plain", fresh.clone()).await.expect("the cluster takes writes");
            *payload = fresh;
        }
    }

    /// Every acknowledged write is there, byte for byte.
    pub async fn check(&self, client: &Client) {
        let keys = self.acknowledged.keys().map(|id| contact(USER, id).key()).collect();
        let request = v1::BatchGetRecordsRequest { user_id: USER.into(), keys, ..Default::default() };
        let found: BTreeMap<String, Vec<u8>> = client
            .read_all(request)
            .await
            .expect("readable")
            .into_iter()
            .map(|record| (record.key.expect("key").record_id, record.payload.to_vec()))
            .collect();
        for (id, payload) in &self.acknowledged {
            assert!(found.get(id) == Some(payload), "{id} is lost or changed");
        }
    }

    /// Reads record by record from a node that may refuse, but must not lie. Counts the refusals by reason.
    pub async fn check_or_refused(&self, client: &Client) -> BTreeMap<String, usize> {
        let mut refused = BTreeMap::new();
        for (id, payload) in &self.acknowledged {
            match answer_of(client, id).await {
                Ok(found) => assert!(found.is_some_and(|found| found.payload == *payload), "{id} is lost or changed"),
                Err(error) => *refused.entry(error.reason().to_owned()).or_default() += 1,
            }
        }
        refused
    }
}

/// What a node says of a record. The client's own deadline may be short, and the machine busy: who got no answer from
/// anybody asks again.
async fn answer_of(client: &Client, id: &str) -> Result<Option<v1::Record>, Error> {
    let mut answer = None;
    wait_for("any answer to a read", async || {
        let said = client.get(contact(USER, id)).await;
        let is_said = !matches!(&said, Err(Error::Unavailable { reason, .. }) if reason.is_empty());
        answer = Some(said);
        is_said
    })
    .await;
    answer.expect("it was asked")
}

/// Bytes that no compression hides a flipped bit in, the same for the same seed (xorshift, Marsaglia 2003).
pub fn incompressible(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// How a process ended by itself.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Ended {
    /// The code, and what the operator must be told: the file, and what to do.
    #[track_caller]
    pub fn assert_refused(&self, what: &str, code: i32, told: &[&str]) {
        assert_eq!(self.code, Some(code), "{what}: {}", self.stderr);
        for told in told {
            assert!(self.stderr.contains(told), "{what}: `{told}` is missing in: {}", self.stderr);
        }
    }
}

/// Starts a node by its own command line and waits for the end that it must come to.
pub fn start_refused(cluster: &Cluster, place: usize) -> Ended {
    wait_gone(cluster, place);
    let argv = &cluster.nodes[place].argv;
    let log = cluster.dir.join(format!("refused-{place}.log"));
    let stderr = std::fs::File::create(&log).expect("log");
    let mut child = Command::new(&argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("the node starts");
    let end = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be asked") {
            break Some(status);
        }
        if Instant::now() > end {
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if status.is_none() {
        child.kill().expect("it is ours");
        child.wait().expect("reaped");
    }
    let stderr = std::fs::read_to_string(&log).expect("log");
    let status = status.unwrap_or_else(|| panic!("it was to refuse its directory, and runs: {stderr}"));
    Ended { code: status.code(), stderr }
}

/// Waits until a node that was ended has let go of its ports and its directory. A process counts as ended when its first
/// thread is, while others may still hold files; one under strace is not even the process that was waited for.
fn wait_gone(cluster: &Cluster, place: usize) {
    let node = &cluster.nodes[place];
    let threads = format!("/proc/{}/task", node.pid);
    wait_until("the node to let go of its files", || {
        let ended = std::fs::read_dir(&threads).map_or(0, Iterator::count) <= 1;
        ended
            && [&node.client, &node.admin, &node.http].into_iter().all(|port| std::net::TcpListener::bind(port).is_ok())
    });
}

/// Starts a node that was ended, again.
pub fn restart(cluster: &mut Cluster, place: usize) {
    restart_under(cluster, place, &[]);
}

/// As [`restart`], under another program.
pub fn restart_under(cluster: &mut Cluster, place: usize, under: &[&str]) {
    wait_gone(cluster, place);
    cluster.restart_under(place, under);
}

/// Stops a node as an operator does, so that its state is flushed.
pub fn terminate(cluster: &mut Cluster, place: usize) {
    let pid = cluster.nodes[place].pid;
    // SAFETY: plain system call; the process is one this test started.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    wait_until("the node to drain", || !is_alive(pid));
}

/// What a node said since it was last started again.
pub fn said(cluster: &Cluster, place: usize) -> String {
    let log = std::fs::read_to_string(cluster.dir.join(format!("log/n{place}.log"))).unwrap_or_default();
    let start = log.rfind("node.starting").unwrap_or(0);
    log[log[..start].rfind('\n').map_or(0, |end| end + 1)..].to_owned()
}

/// Changes rows of a stopped node's state as a fault behind the database's back would: what is there afterwards has valid
/// checksums everywhere, and only its digests and the other replicas know better.
pub fn alter(cluster: &Cluster, place: usize, change: impl FnOnce(&mut Vec<RawRow>)) {
    wait_gone(cluster, place);
    let group = GroupId(0);
    let data = DataDir::open(&cluster.nodes[place].data_dir).expect("the directory of a stopped node");
    let copy = cluster.dir.join(format!("copy-{place}"));
    drop(std::fs::remove_dir_all(&copy));
    StateStore::open(&data, group).expect("a state").checkpoint(&copy).expect("a copy");
    let mut rows: Vec<RawRow> = open_checkpoint(&copy).expect("a copy").scan().collect::<Result<_, _>>().expect("rows");
    let before = rows.clone();
    change(&mut rows);
    assert_ne!(rows, before, "nothing was changed");
    let mut loader = StateLoader::create(&data, group).expect("a new state");
    for row in rows {
        loader.put(row).expect("a row that decodes");
    }
    loader.finish().expect("the state");
}

/// Waits until a node answers its operators.
pub async fn wait_started(cluster: &Cluster, place: usize) {
    let pid = cluster.nodes[place].pid;
    wait_for("the node to answer", async || {
        assert!(is_alive(pid), "the node ended: {}", said(cluster, place));
        cluster.status(place).await.is_some()
    })
    .await;
}

/// What happens to a file's bytes; `None` takes the file away.
pub type Spoil = Box<dyn FnOnce(Vec<u8>) -> Option<Vec<u8>>>;

/// A file, or none, as it was before it was spoilt; put back on demand.
pub struct Spoilt {
    path: PathBuf,
    whole: Vec<u8>,
}

impl Spoilt {
    /// Keeps a copy, then lets `spoil` at the bytes; `None` takes the file away.
    pub fn new(path: PathBuf, spoil: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> Self {
        let whole = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        match spoil(whole.clone()) {
            Some(bytes) => {
                assert!(bytes != whole, "{} is as it was", path.display());
                std::fs::write(&path, bytes).expect("spoilt");
            }
            None => std::fs::remove_file(&path).expect("removed"),
        }
        Self { path, whole }
    }

    pub fn put_back(self) {
        std::fs::write(&self.path, &self.whole).expect("put back");
    }
}

/// Flips a bit so many thousandths into the file.
pub fn flip(thousandths: usize, mask: u8) -> impl FnOnce(Vec<u8>) -> Option<Vec<u8>> {
    move |mut bytes| {
        let at = bytes.len() * thousandths / 1000;
        bytes[at] ^= mask;
        Some(bytes)
    }
}

pub fn become_bytes(text: &'static [u8]) -> impl FnOnce(Vec<u8>) -> Option<Vec<u8>> {
    move |_| Some(text.to_vec())
}

pub fn vanish(_: Vec<u8>) -> Option<Vec<u8>> {
    None
}

/// The largest file of a directory with this ending, and the only one that matters: tables and logs of RocksDB have
/// numbers for names.
pub fn largest(dir: &Path, ending: &str) -> PathBuf {
    let files = std::fs::read_dir(dir).expect("directory").map(|entry| entry.expect("entry"));
    let matching = files.filter(|file| file.file_name().to_string_lossy().ends_with(ending));
    let largest = matching.max_by_key(|file| file.metadata().expect("metadata").len());
    largest.unwrap_or_else(|| panic!("no {ending} in {}", dir.display())).path()
}

/// The manifest in use of a RocksDB database.
pub fn manifest(dir: &Path) -> PathBuf {
    dir.join(std::fs::read_to_string(dir.join("CURRENT")).expect("CURRENT").trim())
}
