//! What the tests stand on: a history whose entries real rules apply to a real store, and a folder to ship it to.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_model::command::{
    Command, Content, Genesis, Guard, Mutation, OffsiteFact, Op, Parent, Proposal, RULES, SnapshotBarrier, WriteBatch,
};
use holdfast_model::digest::fingerprint;
use holdfast_model::id::{Collection, GroupId, Incarnation, Millis, NodeId, RecordId, RecordKey, RequestId, UserId};
use holdfast_store::keyspace::Family;
use holdfast_store::{
    DataDir, LogPosition, RawRow, StateLoader, StateStore, StoredEntry, apply_entry, open_checkpoint,
};
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::log::{Entry, EntryPayload, encode_entry, encode_proposal, entry_chain};

use crate::destination::{Destination, DestinationConfig};
use crate::layout::LineageId;
use crate::lineage::{LineageFacts, OpenLineage};
use crate::payloads;
use crate::plan::Choose;
use crate::restore::{RestoreSpec, RestoreTarget, restore};
use crate::row_index::RowIndexes;
use crate::sealing::Sealing;
use crate::ship::SegmentShipper;
use crate::snapshot::SnapshotOptions;

pub(crate) const GROUP: GroupId = GroupId(0);
/// 2026-11-22.
pub(crate) const NOW_MS: u64 = 1_795_305_600_000;

/// Runs a future on a runtime of its own.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(future)
}

/// A temporary folder with an archive in it.
pub(crate) struct Folder {
    pub(crate) dir: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("directory") }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("offsite")
    }

    pub(crate) fn destination(&self) -> Destination {
        Self::at(&self.root())
    }

    /// Another one beside it.
    pub(crate) fn destination_in(&self, name: &str) -> Destination {
        Self::at(&self.dir.path().join(name))
    }

    fn at(root: &std::path::Path) -> Destination {
        let url = format!("file://{}", root.display());
        Destination::create(&DestinationConfig::from_url(&url)).expect("destination")
    }

    pub(crate) fn file(&self, object: &str) -> PathBuf {
        self.root().join(object)
    }

    pub(crate) fn flip(&self, object: &str, bit: usize) {
        let path = self.file(object);
        let mut bytes = std::fs::read(&path).expect("reads");
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, bytes).expect("writes");
    }
}

/// A history: entries with their chain, and the facts of its lineage.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) facts: LineageFacts,
    pub(crate) entries: Vec<StoredEntry>,
    /// Chain before the first entry.
    pub(crate) start: [u8; 32],
    pub(crate) term: u64,
    /// What the leader's clock says.
    pub(crate) clock_ms: u64,
}

impl History {
    /// A new cluster: the membership at index 0, as openraft has it, then `Genesis`.
    pub(crate) fn found(seed: u8) -> Self {
        Self::found_at(seed, NOW_MS)
    }

    /// The same, at this moment.
    pub(crate) fn found_at(seed: u8, clock_ms: u64) -> Self {
        let id = LineageId { cluster_id: [seed; 16], incarnation: Incarnation(seed.into()) };
        let facts = LineageFacts { id, cluster_name: format!("pine-{seed}"), epoch: 1, parent: None, groups: 1 };
        let mut history = Self { facts, entries: Vec::new(), start: [0; 32], term: 1, clock_ms };
        history.push(EntryPayload::Membership(pb::Membership::default()));
        history.genesis();
        history
    }

    /// What a restored cluster does: it goes on after the last entry restored.
    pub(crate) fn continued(parent: &Self, seed: u8) -> Self {
        let last = parent.last();
        let facts = LineageFacts {
            id: LineageId { cluster_id: [seed; 16], incarnation: Incarnation(seed.into()) },
            cluster_name: format!("pine-{seed}"),
            epoch: parent.facts.epoch + 1,
            parent: Some(Parent {
                cluster_id: parent.facts.id.cluster_id,
                incarnation: parent.facts.id.incarnation,
                snapshot_index: 0,
                index: last.index,
                chain: parent.chain_before(last.index + 1),
            }),
            groups: 1,
        };
        let start = parent.chain_before(last.index + 1);
        let mut history = Self { facts, entries: Vec::new(), start, term: last.term + 1, clock_ms: parent.clock_ms };
        history.at(last.index + 1, EntryPayload::Membership(pb::Membership::default()));
        history.genesis();
        history
    }

    fn genesis(&mut self) {
        let facts = self.facts.clone();
        self.propose(Command::Genesis(Genesis {
            cluster_id: facts.id.cluster_id,
            cluster_name: facts.cluster_name,
            incarnation: facts.id.incarnation,
            epoch: facts.epoch,
            parent: facts.parent,
            members: vec![NodeId(1)],
            restoring: Vec::new(),
        }));
    }

    fn at(&mut self, index: u64, payload: EntryPayload) {
        let position = LogPosition { term: self.term, node: 1, index };
        let id = pb::LogId { term: position.term, node: position.node, index };
        self.entries.push(StoredEntry { position, bytes: encode_entry(&Entry { id, payload }) });
    }

    pub(crate) fn push(&mut self, payload: EntryPayload) {
        let index = self.entries.last().map_or(0, |entry| entry.position.index + 1);
        self.at(index, payload);
    }

    pub(crate) fn propose(&mut self, command: Command) {
        let stamp = Millis(self.clock_ms + self.entries.len() as u64);
        let proposal = encode_proposal(&Proposal { rules: RULES, stamp, command });
        self.push(EntryPayload::Proposal(proposal));
    }

    /// A write of `bytes` pseudo-random bytes. `record` may begin with a collection and a slash.
    pub(crate) fn put(&mut self, user: &str, record: &str, bytes: usize) {
        let next = self.entries.len() as u64;
        let mut payload = vec![0; bytes];
        blake3::Hasher::new().update(record.as_bytes()).update(&next.to_be_bytes()).finalize_xof().fill(&mut payload);
        let content = Content { content_type: "text/vcard".into(), payload: payload.into(), ttl_seconds: 0 };
        self.write(user, record, Op::Put(content));
    }

    pub(crate) fn delete(&mut self, user: &str, record: &str) {
        self.write(user, record, Op::Delete);
    }

    fn write(&mut self, user: &str, record: &str, op: Op) {
        let next = self.entries.len() as u64;
        let mut request_id = [0xaa; 16];
        request_id[..8].copy_from_slice(&(u64::from(self.facts.epoch) << 40 | next).to_be_bytes());
        let (collection, record) = record.split_once('/').unwrap_or(("contacts", record));
        let mutation = Mutation {
            key: RecordKey {
                collection: Collection::new(collection).expect("known"),
                record_id: RecordId::new(record).expect("valid"),
            },
            op,
            guard: Guard::None,
        };
        let mut batch = WriteBatch {
            user: UserId::new(user).expect("valid"),
            request_id: RequestId(request_id),
            fingerprint: [0; 16],
            first_sent: None,
            device: None,
            if_head: None,
            if_incarnation: None,
            mutations: vec![mutation],
        };
        batch.fingerprint = fingerprint(&batch);
        self.propose(Command::WriteBatch(batch));
    }

    /// Records that stay as they are: what changes later is a small part of all.
    pub(crate) fn stock(&mut self, records: usize, bytes: usize) {
        (0..records).for_each(|record| self.put(&format!("user-{}", record % 7), &format!("stock-{record}"), bytes));
    }

    /// Several writes, a blank and what the server itself proposes.
    pub(crate) fn live(&mut self, writes: usize) {
        self.push(EntryPayload::Blank);
        for write in 0..writes {
            self.put(&format!("user-{}", write % 7), &format!("record-{}", write % 50), 200);
        }
        self.propose(Command::OffsiteFact(OffsiteFact {
            destination: "vault".into(),
            index: 1,
            chain: [9; 32],
            verifier: NodeId(1),
            at: Millis(NOW_MS),
        }));
        self.propose(Command::SnapshotBarrier(SnapshotBarrier { operation_id: "op".into() }));
    }

    pub(crate) fn last(&self) -> LogPosition {
        self.entries.last().expect("an entry").position
    }

    /// Entry chain before `next`.
    pub(crate) fn chain_before(&self, next: u64) -> [u8; 32] {
        let before = self.entries.iter().filter(|entry| entry.position.index < next);
        before.fold(self.start, |chain, entry| entry_chain(chain, &entry.bytes))
    }

    /// Entries in `[from, to)`.
    pub(crate) fn range(&self, from: u64, to: u64) -> Vec<StoredEntry> {
        self.entries.iter().filter(|entry| (from..to).contains(&entry.position.index)).cloned().collect()
    }

    /// Ships everything from `from` on, `step` entries at a time.
    pub(crate) async fn ship(&self, lineage: &OpenLineage, from: u64, step: u64) {
        let mut shipper = SegmentShipper::new(lineage.clone(), GROUP);
        let end = self.last().index + 1;
        let mut next = from;
        while next < end {
            let entries = self.range(next, (next + step).min(end));
            let outcome = shipper.ship(&entries, self.chain_before(next)).await.expect("ships");
            next = outcome.tail().last.index + 1;
        }
    }

    pub(crate) async fn open(&self, destination: &Destination) -> OpenLineage {
        OpenLineage::open(destination.clone(), &self.facts).await.expect("opens")
    }

    /// The same, to add what only holders of the secret and the recipients can read.
    pub(crate) async fn open_sealed(&self, destination: &Destination, sealing: &Sealing) -> OpenLineage {
        self.open(destination).await.sealed_with(sealing.clone()).await.expect("opens")
    }
}

/// A node's state.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) state: StateStore,
    _data: DataDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let data = DataDir::open_or_create(&dir.path().join("node"), 1, [1; 16]).expect("data directory");
        let state = StateStore::open(&data, GROUP).expect("state");
        Self { dir, state, _data: data }
    }

    pub(crate) fn apply(&self, entries: &[StoredEntry]) {
        for entries in entries.chunks(100) {
            let mut batch = self.state.begin();
            for entry in entries {
                apply_entry(&mut batch, entry).expect("applies");
            }
            self.state.commit(batch).expect("commits");
        }
    }

    /// It remembers what rows the snapshots had that it shipped.
    pub(crate) fn options(&self) -> SnapshotOptions {
        SnapshotOptions { indexes: Some(RowIndexes::new(self.dir.path().join("rows"))), ..SnapshotOptions::default() }
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = self.dir.path().join(format!("checkpoint-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        self.state.checkpoint(&path).expect("checkpoint");
        path
    }
}

pub(crate) fn rows_of_checkpoint(path: &Path) -> Vec<RawRow> {
    open_checkpoint(path).expect("opens").scan().collect::<Result<_, _>>().expect("scans")
}

/// The rows of a state, out of those of a snapshot: each payload that lies apart is with its record.
pub(crate) fn joined(rows: impl IntoIterator<Item = RawRow>) -> Vec<RawRow> {
    let mut joined: Vec<RawRow> = Vec::new();
    for row in rows {
        if row.family != payloads::FAMILY {
            joined.push(row);
            continue;
        }
        let record = payloads::record_of(&row.key);
        let head = joined.iter_mut().find(|head| head.family == Family::Rec.tag() && head.key == record);
        head.expect("the record of a payload").value.extend(row.value);
    }
    joined
}

/// What a restore fills a node with, and the last entry in it.
pub(crate) fn restored(from: &Destination, choose: Choose) -> (u64, Vec<RawRow>) {
    let plan = run(crate::plan(from, GROUP, choose)).expect("plans");
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("node");
    let spec = RestoreSpec {
        cluster_id: [9; 16],
        cluster_name: "new".into(),
        incarnation: Incarnation(99),
        members: vec![NodeId(1)],
        held_back: Vec::new(),
    };
    let targets = [RestoreTarget { path: path.clone(), node_id: 1, identity: [1; 16] }];
    run(restore(from, &plan, &targets, &spec, &|_, _, _| {})).expect("restores");
    (plan.last.index, rows_of(&path, 1))
}

/// Rows of a data directory whose node does not run.
pub(crate) fn rows_of(path: &Path, node_id: u64) -> Vec<RawRow> {
    let data = DataDir::open_or_create(path, node_id, [0; 16]).expect("opens");
    let state = StateStore::open(&data, GROUP).expect("state");
    let checkpoint = tempfile::tempdir_in(path).expect("directory");
    let into = checkpoint.path().join("rows");
    state.checkpoint(&into).expect("checkpoint");
    rows_of_checkpoint(&into)
}

/// A checkpoint with `rows` of the record family, each `bytes` long, at `position`.
pub(crate) fn load_rows(rows: impl Iterator<Item = RawRow>, data: &DataDir) -> StateStore {
    let mut loader = StateLoader::create(data, GROUP).expect("loader");
    for row in rows {
        loader.put(row).expect("row");
    }
    loader.finish().expect("finishes");
    StateStore::open(data, GROUP).expect("state")
}

pub(crate) fn proposal_entry(index: u64, payload: impl Into<Bytes>) -> StoredEntry {
    let id = pb::LogId { term: 1, node: 1, index };
    let bytes = encode_entry(&Entry { id, payload: EntryPayload::Proposal(payload.into()) });
    StoredEntry { position: LogPosition { term: 1, node: 1, index }, bytes }
}
