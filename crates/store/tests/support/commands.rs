//! Commands for tests of the state, and all rows of a store.
#![allow(dead_code, reason = "each test binary uses its part")]

use bytes::Bytes;
use holdfast_model::command::{Command, Content, Genesis, Guard, Mutation, Op, Proposal, RULES, WriteBatch};
use holdfast_model::id::{Collection, Incarnation, Millis, NodeId, RecordId, RecordKey, RequestId, UserId};
use holdfast_model::outcome::Outcome;
use holdfast_model::state::Effects;
use holdfast_model::transition::transition;
use holdfast_store::{Applied, ApplyBatch, CheckpointStore, LogPosition, RawRow, StateStore, open_checkpoint};

/// Start of time in these tests.
pub const START: u64 = 1_700_000_000_000;

pub fn user(id: &str) -> UserId {
    UserId::new(id).expect("a valid id")
}

pub fn collection(name: &str) -> Collection {
    Collection::new(name).expect("a valid name")
}

pub fn key(name: &str, id: &str) -> RecordKey {
    RecordKey { collection: collection(name), record_id: RecordId::new(id).expect("a valid id") }
}

pub fn proposal(stamp: u64, command: Command) -> Proposal {
    Proposal { rules: RULES, stamp: Millis(START + stamp), command }
}

pub fn genesis() -> Proposal {
    proposal(
        0,
        Command::Genesis(Genesis {
            cluster_id: [1; 16],
            cluster_name: "test".into(),
            incarnation: Incarnation(77),
            epoch: 1,
            parent: None,
            members: vec![NodeId(1)],
            restoring: Vec::new(),
        }),
    )
}

pub fn content(size: usize, seed: u64) -> Content {
    let payload: Vec<u8> = (0..size).map(|at| (at as u64).wrapping_mul(seed | 1) as u8).collect();
    Content { content_type: "text/plain".into(), payload: Bytes::from(payload), ttl_seconds: 0 }
}

pub fn batch(owner: &str, request: u64, mutations: Vec<Mutation>) -> WriteBatch {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&request.to_be_bytes());
    id[15] = 1;
    let mut batch = WriteBatch {
        user: user(owner),
        request_id: RequestId(id),
        fingerprint: [0; 16],
        first_sent: None,
        device: None,
        if_head: None,
        if_incarnation: None,
        mutations,
    };
    batch.fingerprint = holdfast_model::digest::fingerprint(&batch);
    batch
}

pub fn put(owner: &str, name: &str, id: &str, size: usize, request: u64) -> Proposal {
    let put = Mutation { key: key(name, id), op: Op::Put(content(size, request)), guard: Guard::None };
    proposal(request, Command::WriteBatch(batch(owner, request, vec![put])))
}

/// One commit with a record in each collection, named after the request.
pub fn put_many(owner: &str, names: &[(&str, &str)], request: u64) -> Proposal {
    let put = |(name, id): &(&str, &str)| Mutation {
        key: key(name, &format!("{id}{request:04}")),
        op: Op::Put(content(20, request)),
        guard: Guard::None,
    };
    proposal(request, Command::WriteBatch(batch(owner, request, names.iter().map(put).collect())))
}

pub fn judge(batch: &ApplyBatch, index: u64, proposal: &Proposal) -> Effects {
    transition(batch, index, proposal).expect("the state reads").1
}

/// Applies one entry as a state machine does.
pub fn apply(batch: &mut ApplyBatch, index: u64, proposal: &Proposal) -> Outcome {
    let (outcome, effects) = transition(batch, index, proposal).expect("the state reads");
    batch.apply_effects(&effects).expect("performed");
    let position = Some(LogPosition { term: 1, node: 1, index });
    batch.set_applied(Applied { position, ..batch.applied().clone() });
    batch.chain_effects(index);
    outcome
}

/// Commits `Genesis` as entry 1.
pub fn founded(store: &StateStore) {
    let mut batch = store.begin();
    assert_eq!(apply(&mut batch, 1, &genesis()), Outcome::Done);
    store.commit(batch).expect("committed");
}

/// All rows of a store, read from a checkpoint of it.
pub fn rows(store: &StateStore) -> Vec<RawRow> {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("checkpoint");
    store.checkpoint(&path).expect("taken");
    rows_of(&open_checkpoint(&path).expect("opened"))
}

pub fn rows_of(checkpoint: &CheckpointStore) -> Vec<RawRow> {
    checkpoint.scan().collect::<Result<_, _>>().expect("read")
}
