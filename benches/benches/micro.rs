//! What one step of the write path, of the feed and of the archive costs, each by itself: `make bench-micro`.
//!
//! For comparing two builds on one machine. What a cluster makes of these steps is measured by the other programs here.

use std::sync::mpsc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_archive::chunk::Chunker;
use holdfast_archive::segment::Segment;
use holdfast_benches::puts::incompressible;
use holdfast_model::command::{Command, Content, Genesis, Guard, Mutation, Op, Proposal, RULES, WriteBatch};
use holdfast_model::digest::fingerprint;
use holdfast_model::id::{Collection, GroupId, Incarnation, Millis, RecordId, RecordKey, RequestId, UserId, Version};
use holdfast_model::memory::MemoryState;
use holdfast_store::{DataDir, LogOptions, LogPosition, LogStore, StateStore, StoredEntry, apply_entry};
use holdfast_wire::log::{self, Entry, EntryPayload, LogId};

/// Users that take turns.
const USERS: u64 = 256;
/// Entries of one batch, as under load.
const BATCH: u64 = 64;
const PAYLOAD_BYTES: usize = 1024;
const NOW_MS: u64 = 1_700_000_000_000;

fn genesis() -> Proposal {
    let genesis = Genesis {
        cluster_id: [7; 16],
        cluster_name: "bench".into(),
        incarnation: Incarnation(7),
        epoch: 1,
        parent: None,
        members: Vec::new(),
        restoring: Vec::new(),
    };
    Proposal { rules: RULES, stamp: Millis(NOW_MS), command: Command::Genesis(genesis) }
}

/// The put with this number: a new record of one of the users.
fn put(number: u64, payload_bytes: usize) -> Proposal {
    let payload = incompressible(number, payload_bytes).into();
    let content = Content { content_type: "application/octet-stream".into(), payload, ttl_seconds: 0 };
    let key = RecordKey {
        collection: Collection::new("notes").expect("a name"),
        record_id: RecordId::new(&format!("r{number}")).expect("an id"),
    };
    let mut batch = WriteBatch {
        user: UserId::new(&format!("bench-{}", number % USERS)).expect("a name"),
        request_id: RequestId(u128::from(number).to_be_bytes()),
        fingerprint: [0; 16],
        first_sent: None,
        device: None,
        if_head: None,
        if_incarnation: None,
        mutations: vec![Mutation { key, op: Op::Put(content), guard: Guard::None }],
    };
    batch.fingerprint = fingerprint(&batch);
    Proposal { rules: RULES, stamp: Millis(NOW_MS + number), command: Command::WriteBatch(batch) }
}

fn entry(index: u64, proposal: &Proposal) -> StoredEntry {
    let id = LogId { term: 1, node: 1, index };
    let payload = EntryPayload::Proposal(log::encode_proposal(proposal));
    let bytes = log::encode_entry(&Entry { id, payload });
    StoredEntry { position: LogPosition { term: 1, node: 1, index }, bytes }
}

/// Entries of puts from this index on.
fn entries(first: u64, count: u64) -> Vec<StoredEntry> {
    (first..first + count).map(|index| entry(index, &put(index, PAYLOAD_BYTES))).collect()
}

/// The next entries of a log.
fn following(next: &mut u64, count: u64) -> Vec<StoredEntry> {
    *next += count;
    entries(*next - count, count)
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entry");
    for bytes in [128, 1024, 16 << 10] {
        let proposal = put(1, bytes);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("encode", bytes), |bencher| bencher.iter(|| entry(1, &proposal)));
        let stored = entry(1, &proposal);
        group.bench_function(BenchmarkId::new("decode", bytes), |bencher| {
            bencher.iter(|| match log::decode_entry(&stored.bytes).expect("decodes").payload {
                EntryPayload::Proposal(bytes) => log::decode_proposal(&bytes).expect("decodes"),
                EntryPayload::Blank | EntryPayload::Membership(_) => panic!("it is a proposal"),
            });
        });
    }
    group.finish();
}

fn transition(criterion: &mut Criterion) {
    let mut state = MemoryState::default();
    state.apply(1, &genesis());
    for number in 2..2 + 4 * USERS {
        state.apply(number, &put(number, PAYLOAD_BYTES));
    }
    let next = put(1_000_000, PAYLOAD_BYTES);
    criterion.bench_function("transition/put", |bencher| bencher.iter(|| state.judge(1_000_000, &next)));
}

/// From entries to rows in the database, with what a live node does for each.
fn apply(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let data = DataDir::open_or_create(dir.path(), 1, [7; 16]).expect("a data directory");
    let state = StateStore::open(&data, GroupId(0)).expect("a state");
    let write = |entries: &[StoredEntry]| {
        let mut batch = state.begin();
        for entry in entries {
            apply_entry(&mut batch, entry).expect("applied");
        }
        state.commit(batch).expect("written");
    };
    write(&[entry(0, &genesis())]);
    let mut next = 1;
    let mut group = criterion.benchmark_group("apply");
    for count in [1, BATCH] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("puts", count), |bencher| {
            let fresh = || following(&mut next, count);
            bencher.iter_batched(fresh, |entries| write(&entries), BatchSize::PerIteration);
        });
    }
    group.finish();
    changes(criterion, &state);
}

/// What a device asks that has been away for a while.
fn changes(criterion: &mut Criterion, state: &StateStore) {
    let view = state.view();
    let user = view.uid(&UserId::new("bench-0").expect("a name")).expect("reads").expect("a user");
    let head = view.user(user).expect("reads").expect("a row").head;
    let mut group = criterion.benchmark_group("changes");
    for behind in [0, 10] {
        let after = Version(head.0.saturating_sub(behind));
        group.bench_function(BenchmarkId::new("behind", behind), |bencher| {
            bencher.iter(|| state.view().changes(user, after, 500, 1 << 20).expect("reads"));
        });
    }
    group.finish();
}

/// From entries to the fsync that covers them.
fn append(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let data = DataDir::open_or_create(dir.path(), 1, [7; 16]).expect("a data directory");
    let (store, _) = LogStore::open(&data, GroupId(0), LogOptions::default()).expect("a log");
    let mut next = 0;
    let mut group = criterion.benchmark_group("append and fsync");
    for count in [1, BATCH] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("puts", count), |bencher| {
            let fresh = || following(&mut next, count);
            let write = |entries| {
                let (done, fsynced) = mpsc::sync_channel(1);
                store.append(entries, Box::new(move |result| drop(done.send(result)))).expect("appended");
                fsynced.recv().expect("told").expect("fsynced");
            };
            bencher.iter_batched(fresh, write, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn archive(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("archive");
    group.throughput(Throughput::Elements(1000));
    let log = entries(1, 1000);
    group.bench_function("segment of 1000 puts", |bencher| {
        let segment = || Segment::new(GroupId(0), [0; 32], log.clone()).expect("follows");
        bencher.iter(segment);
    });
    let rows: Vec<_> = (0..1000u64).map(|row| (row.to_be_bytes(), incompressible(row, PAYLOAD_BYTES))).collect();
    group.bench_function("chunks of 1000 rows", |bencher| {
        bencher.iter(|| {
            let mut chunker = Chunker::default();
            let cut = rows.iter().filter_map(|(key, value)| chunker.push(1, key, value).expect("in order")).count();
            (cut, chunker.finish())
        });
    });
    group.finish();
}

criterion_group! {
    name = steps;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = encode, transition, apply, append, archive
}
criterion_main!(steps);
