//! What clients and the nemesis did and saw, in the shape of Jepsen's operations: `invoke`, then `ok` (it took effect),
//! `fail` (it had and will have none) or `info` (nobody knows).
//!
//! Invariants:
//! - An operation is written down before its request is sent, and its end after the answer arrived. So an operation
//!   lies, on one clock, inside the span that the history gives it.
//! - A client has one operation open at a time.
//! - The file holds what the checkers get: a run can be judged again from its folder alone.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use calls::{Batch, Follow, Held, Hint, Lease, Page, Read, Restored};

pub mod calls;
pub mod edn;

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// Who.
    pub process: Process,
    /// Beginning or end.
    #[serde(rename = "type")]
    pub stage: Stage,
    /// When, since the run began.
    pub time_ns: u64,
    /// What.
    #[serde(flatten)]
    pub action: Action,
    /// The answer to a write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// Why a write failed, or why nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Process {
    /// A client, by number.
    Client(u32),
    /// Not a client.
    Named(Named),
}

/// Processes that are not clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Named {
    /// Makes faults.
    Nemesis,
    /// Reads everything at the end.
    Reader,
    /// Watches what nodes say of themselves.
    Observer,
    /// Restores the archive.
    Restorer,
}

/// Beginning or end of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It begins.
    Invoke,
    /// It took effect.
    Ok,
    /// It had and will have no effect.
    Fail,
    /// It may have taken effect, or may yet; also what the nemesis reports.
    Info,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "f", content = "value", rename_all = "kebab-case")]
pub enum Action {
    /// A record that nobody wrote before, and nobody will write again.
    Add(Write),
    /// The content that a record has already, under a new request id.
    Same(Write),
    /// A new value of this client's guarded record, if it still has the version this client knows.
    Bump(Write),
    /// A new value of this client's unguarded record.
    Over(Write),
    /// An earlier request, word for word, under its own request id.
    Resend(Write),
    /// Writes of one user that commit together.
    Batch(Batch),
    /// A read of several records at one point.
    Read(Read),
    /// A put of a record that ends by itself.
    Lease(Lease),
    /// Whether such a record is there.
    Held(Held),
    /// A page of changes.
    Page(Page),
    /// A consumer begins to follow a feed.
    Follow(Follow),
    /// A watch told of a change.
    Hint(Hint),
    /// `kill -9`.
    Kill(Kill),
    /// Whether writes were acknowledged again after a kill.
    Recovered(Recovered),
    /// A killed node was started again.
    Restart(Restart),
    /// Any fault: `invoke` before it is made, `info` with what was really installed.
    Fault(FaultNote),
    /// The same fault, taken away again: `invoke` before, `info` with what is still there.
    Heal(FaultNote),
    /// All records of one user, read through any node, linearizable.
    Feed(Feed),
    /// The same, read from one node's own state.
    NodeFeed(NodeFeed),
    /// A node's state: after everything was healed, and on the way (`info`) wherever two were asked at one index.
    Replica(Replica),
    /// The term that a node is in now, whenever it is another one.
    Term(Term),
    /// What a restore of the archive brought back.
    Restored(Restored),
}

impl Action {
    /// The write, if it is one.
    pub fn write(&self) -> Option<&Write> {
        match self {
            Self::Add(write) | Self::Same(write) | Self::Bump(write) | Self::Over(write) | Self::Resend(write) => {
                Some(write)
            }
            Self::Batch(_)
            | Self::Read(_)
            | Self::Lease(_)
            | Self::Held(_)
            | Self::Page(_)
            | Self::Follow(_)
            | Self::Hint(_)
            | Self::Kill(_)
            | Self::Recovered(_)
            | Self::Restart(_)
            | Self::Fault(_)
            | Self::Heal(_)
            | Self::Feed(_)
            | Self::NodeFeed(_)
            | Self::Replica(_)
            | Self::Term(_)
            | Self::Restored(_) => None,
        }
    }
}

impl Action {
    /// The request id of a write.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Batch(batch) => Some(&batch.request_id),
            Self::Lease(lease) => Some(&lease.request_id),
            action => action.write().map(|write| write.request_id.as_str()),
        }
    }
}

/// A put of one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Owner.
    pub user: String,
    /// Id of the record.
    pub key: String,
    /// Bytes of the record; text, so that a history can be read.
    pub payload: String,
    /// One per logical write, kept over all repetitions.
    pub request_id: String,
    /// The version that the record must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<u64>,
}

/// What a node answered to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Log index at which it took effect.
    pub commit_index: u64,
    /// Version of the record.
    pub version: u64,
    /// An earlier answer, given again.
    pub replayed: bool,
    /// False = the record had this content already.
    pub changed: bool,
}

/// Why a write gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable reason of the API; empty when no node said it.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// `kill -9` of one or more nodes in one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// Counts from 1; 0 = all nodes at once.
    pub round: u32,
    /// Whom.
    pub targets: Vec<Target>,
}

/// A killed node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The node.
    pub node: u64,
    /// Its process.
    pub pid: i32,
    /// A majority took it for the leader.
    pub leader: bool,
    /// The signal that ended it, by the kernel, which tells it once the process is no more; known at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

impl Target {
    /// SIGKILL ended it.
    pub fn is_killed(&self) -> bool {
        self.signal == Some(libc::SIGKILL)
    }
}

impl Kill {
    /// It ended somebody, and everybody whom it was meant for.
    pub fn is_real(&self) -> bool {
        !self.targets.is_empty() && self.targets.iter().all(Target::is_killed)
    }
}

/// Whether writes go on after a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// That of the kill.
    pub round: u32,
    /// Writes that began after the kill were acknowledged.
    pub writes: bool,
}

/// A node's new start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// The node.
    pub node: u64,
    /// Its new process.
    pub pid: i32,
    /// It answered a linearizable read.
    pub serves: bool,
}

/// One fault, from the moment it was made to the moment it was gone; its four lines share the round.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultNote {
    /// Counts from 1, over all faults of a run.
    pub round: u32,
    /// Which fault, by its name on the command line.
    pub fault: String,
    /// The nodes it was meant for.
    pub nodes: Vec<u64>,
    /// It was seen to be there; in a `heal`, that it was seen to be there still.
    pub installed: bool,
    /// What was done and by what it was seen, for people.
    pub detail: String,
    /// What this fault had to make a node do or say, and did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
}

/// All records of one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feed {
    /// Owner.
    pub user: String,
    /// In the feed's order.
    pub records: Vec<Found>,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Id of the record.
    pub key: String,
    /// Its version.
    pub version: u64,
    /// Its bytes. Not UTF-8 = not one of ours: shown with replacement characters, and so equal to no payload.
    pub payload: String,
}

/// One node's own view of a user, compared with the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFeed {
    /// Who was asked.
    pub node: u64,
    /// Who says that it answered.
    pub answered_by: u64,
    /// Owner.
    pub user: String,
    /// Number of records.
    pub records: usize,
    /// [`fold`] of them.
    pub fold: u64,
}

/// A node's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The node.
    pub node: u64,
    /// Last entry applied.
    pub applied_index: u64,
    /// Where the digest belongs.
    pub digest_index: u64,
    /// Of the whole state, in hexadecimal.
    pub digest: String,
}

/// The term that a node says it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// The node.
    pub node: u64,
    /// Its term.
    pub term: u64,
}

/// Order-dependent sum (FNV-1a, 64 bits) of records: feeds of three nodes are compared by it, so that a history need
/// not hold each record four times. It guards against differences, not against intent.
pub fn fold(records: &[Found]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        let length = (bytes.len() as u64).to_be_bytes();
        for byte in length.iter().chain(bytes) {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for record in records {
        add(record.key.as_bytes());
        add(&record.version.to_be_bytes());
        add(record.payload.as_bytes());
    }
    sum
}

/// Writes a history down as it happens.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: BufWriter<File>,
    ops: Vec<Op>,
    acknowledged: usize,
    unknown: usize,
    newest: u64,
    mark_ns: u64,
    acknowledged_since_mark: usize,
    /// Kept for the end: a history that is not on disk cannot be judged again.
    error: Option<std::io::Error>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Writes acknowledged so far.
    pub acknowledged: usize,
    /// Writes whose end was not known.
    pub unknown: usize,
    /// Writes acknowledged that began after the mark.
    pub since_mark: usize,
}

impl Recorder {
    /// Begins a history in `file`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(file: &Path) -> anyhow::Result<Self> {
        let file = File::create(file).with_context(|| format!("create {}", file.display()))?;
        let inner = Inner {
            file: BufWriter::new(file),
            ops: Vec::new(),
            acknowledged: 0,
            unknown: 0,
            newest: 0,
            mark_ns: 0,
            acknowledged_since_mark: 0,
            error: None,
        };
        Ok(Self { began: Instant::now(), inner: Mutex::new(inner) })
    }

    /// An operation begins; gives the time that is written down.
    pub fn invoke(&self, process: Process, action: Action) -> u64 {
        let mut inner = self.locked();
        // Read under the lock, so that lines are in the order of their times.
        let time_ns = self.now_ns();
        inner.push(Op { process, stage: Stage::Invoke, time_ns, action, reply: None, error: None });
        time_ns
    }

    /// A write that began at `began_ns` was acknowledged.
    pub fn ok(&self, process: Process, began_ns: u64, action: Action, reply: Reply) {
        let mut inner = self.locked();
        let time_ns = self.now_ns();
        inner.acknowledged += 1;
        inner.newest = inner.newest.max(reply.commit_index);
        if began_ns >= inner.mark_ns {
            inner.acknowledged_since_mark += 1;
        }
        inner.push(Op { process, stage: Stage::Ok, time_ns, action, reply: Some(reply), error: None });
    }

    /// A write ended without an answer.
    pub fn end(&self, process: Process, stage: Stage, action: Action, error: Failure) {
        let mut inner = self.locked();
        let time_ns = self.now_ns();
        if stage == Stage::Info {
            inner.unknown += 1;
        }
        inner.push(Op { process, stage, time_ns, action, reply: None, error: Some(error) });
    }

    /// A call that began at `began_ns` ended.
    pub fn answered(&self, process: Process, began_ns: u64, stage: Stage, action: Action, error: Option<Failure>) {
        let mut inner = self.locked();
        let time_ns = self.now_ns();
        if let Action::Batch(Batch { done: Some(done), .. }) = &action {
            inner.newest = inner.newest.max(done.at.index);
        }
        if action.request_id().is_some() && stage == Stage::Ok {
            inner.acknowledged += 1;
            inner.acknowledged_since_mark += usize::from(began_ns >= inner.mark_ns);
        } else if action.request_id().is_some() && stage == Stage::Info {
            inner.unknown += 1;
        }
        inner.push(Op { process, stage, time_ns, action, reply: None, error });
    }

    /// A client was told something that it did not ask for.
    pub fn tell(&self, process: Process, stage: Stage, action: Action) {
        let mut inner = self.locked();
        let time_ns = self.now_ns();
        inner.push(Op { process, stage, time_ns, action, reply: None, error: None });
    }

    /// Something that is not a write of a client happened.
    pub fn note(&self, process: Named, stage: Stage, action: Action) {
        let mut inner = self.locked();
        let time_ns = self.now_ns();
        let process = Process::Named(process);
        inner.push(Op { process, stage, time_ns, action, reply: None, error: None });
    }

    /// From now on counts writes that begin after this moment.
    pub fn mark(&self) {
        let mut inner = self.locked();
        inner.mark_ns = self.now_ns();
        inner.acknowledged_since_mark = 0;
    }

    /// How far the run is.
    pub fn progress(&self) -> Progress {
        let inner = self.locked();
        Progress { acknowledged: inner.acknowledged, unknown: inner.unknown, since_mark: inner.acknowledged_since_mark }
    }

    /// The greatest log index at which a write was acknowledged; 0 = none was.
    pub fn newest(&self) -> u64 {
        self.locked().newest
    }

    /// Ends the history; gives all of it.
    ///
    /// # Errors
    /// When a line of it could not be written.
    pub fn finish(&self) -> anyhow::Result<Vec<Op>> {
        let mut inner = self.locked();
        if let Some(error) = inner.error.take() {
            return Err(error).context("write the history");
        }
        inner.file.flush().context("write the history")?;
        Ok(std::mem::take(&mut inner.ops))
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(&mut self, op: Op) {
        let written = serde_json::to_writer(&mut self.file, &op).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|()| self.file.write_all(b"\n")) {
            self.error.get_or_insert(error);
        }
        self.ops.push(op);
    }
}

/// Reads a history.
///
/// # Errors
/// When a line of it is not an operation: a history with a hole proves nothing.
pub fn read(file: &Path) -> anyhow::Result<Vec<Op>> {
    let lines = BufReader::new(File::open(file).with_context(|| format!("open {}", file.display()))?).lines();
    lines
        .enumerate()
        .map(|(index, line)| {
            let line = line.with_context(|| format!("read {}", file.display()))?;
            serde_json::from_str(&line).with_context(|| format!("{}:{}", file.display(), index + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(request_id: &str) -> Write {
        Write {
            user: "u1".into(),
            key: "a1".into(),
            payload: "x".into(),
            request_id: request_id.into(),
            guard: Some((3 << 48) | 7),
        }
    }

    #[test]
    fn a_history_comes_back_from_its_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("history.jsonl");
        let recorder = Recorder::create(&file).expect("created");
        let client = Process::Client(5);
        let began = recorder.invoke(client, Action::Bump(write("r1")));
        let reply = Reply { commit_index: 9, version: (3 << 48) | 8, replayed: false, changed: true };
        recorder.ok(client, began, Action::Bump(write("r1")), reply);
        let kill = Kill { round: 1, targets: vec![Target { node: 2, pid: 7, leader: true, signal: Some(9) }] };
        recorder.note(Named::Nemesis, Stage::Info, Action::Kill(kill));
        recorder.mark();
        recorder.ok(client, began, Action::Resend(write("r1")), Reply { replayed: true, ..reply });
        let failure = Failure { reason: "OUTCOME_UNKNOWN".into(), message: "?".into() };
        recorder.end(client, Stage::Info, Action::Over(write("r2")), failure);
        let progress = recorder.progress();
        assert_eq!((progress.acknowledged, progress.unknown, progress.since_mark), (2, 1, 0));
        let ops = recorder.finish().expect("written");
        assert_eq!(ops.len(), 5);
        assert!(ops.is_sorted_by_key(|op| op.time_ns));
        assert_eq!(read(&file).expect("read"), ops);
        let text = std::fs::read_to_string(&file).expect("text");
        assert!(text.starts_with(r#"{"process":5,"type":"invoke","time_ns":"#), "{text}");
        assert!(text.contains(r#""process":"nemesis","type":"info""#), "{text}");
        assert!(text.contains(r#""f":"bump","value":{"user":"u1""#), "{text}");
    }

    #[test]
    fn a_torn_history_is_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("history.jsonl");
        std::fs::write(&file, "{\"process\":5,\"type\":\"inv").expect("written");
        assert!(read(&file).is_err());
    }

    #[test]
    fn the_fold_sees_order_and_borders() {
        let found = |key: &str, payload: &str| Found { key: key.into(), version: 1, payload: payload.into() };
        let (a, b) = (found("a", "bc"), found("ab", "c"));
        assert_ne!(fold(std::slice::from_ref(&a)), fold(std::slice::from_ref(&b)));
        assert_ne!(fold(&[a.clone(), b.clone()]), fold(&[b, a]));
        // The same bytes in a row; only the border between payload and next key differs.
        assert_ne!(fold(&[found("a", "bc"), found("d", "e")]), fold(&[found("a", "b"), found("cd", "e")]));
    }
}
