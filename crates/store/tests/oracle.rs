//! The same commands, applied to the database in batches of any size and to the model's memory state, leave the same
//! outcomes and the same rows; and no batch size, flush, restart or install shows in the effect chain.

#[path = "support/commands.rs"]
mod commands;
mod support;

use std::collections::BTreeSet;

use holdfast_model::command::{
    AckCursor, Command, Content, DropDevice, Guard, Mutation, OffsiteFact, Op, Operation, Proposal, SnapshotBarrier,
};
use holdfast_model::id::{DeviceId, Incarnation, Millis, NodeId, Version};
use holdfast_model::memory::MemoryState;
use holdfast_model::outcome::Outcome;
use holdfast_store::keyspace::{Family, chg, cur, exp, rec, req, sys, uid, usr};
use holdfast_store::{Applied, ApplyBatch, LogPosition, RawRow, StateStore, StoredEntry, apply_entry};
use holdfast_wire::{durable, log};
use proptest::prelude::*;
use support::{GROUP, data};

use commands::{apply, batch, content, genesis, key, proposal, rows, user};

const HOUR_MS: u64 = 60 * 60 * 1000;

#[derive(Debug, Clone)]
enum Step {
    Apply(Proposal),
    Commit,
    Flush,
    Reopen,
    Install,
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    let guard = prop_oneof![
        6 => Just(Guard::None),
        1 => Just(Guard::Absent),
        1 => Just(Guard::Exists),
        1 => (1u64..6).prop_map(|counter| Guard::Version(Version::new(1, counter))),
    ];
    // A TTL shorter than one jump of the clock, so that it ends while the log is played.
    let ttl = prop_oneof![3 => Just(0), 1 => Just(3600)];
    let put = (prop_oneof![0usize..40, 4000usize..9000], 0u64..3, ttl)
        .prop_map(|(size, seed, ttl_seconds)| Op::Put(Content { ttl_seconds, ..content(size, seed) }));
    let op = prop_oneof![
        3 => put,
        1 => Just(Op::Delete),
    ];
    (prop_oneof![Just("notes"), Just("x-a")], 0u8..5, op, guard).prop_map(|(name, id, op, guard)| Mutation {
        key: key(name, &format!("r{id}")),
        op,
        guard,
    })
}

fn any_write() -> impl Strategy<Value = Command> {
    let mutations = proptest::collection::vec(any_mutation(), 1..4).prop_map(|mutations| {
        let mut seen = BTreeSet::new();
        mutations.into_iter().filter(|mutation| seen.insert(mutation.key.clone())).collect::<Vec<_>>()
    });
    (prop_oneof![Just("ann"), Just("bob"), Just("eve")], 0u64..40, mutations)
        .prop_map(|(owner, request, mutations)| Command::WriteBatch(batch(owner, request, mutations)))
}

fn any_command() -> impl Strategy<Value = Command> {
    let operation = (0u8..3, any::<bool>(), 0u64..9).prop_map(|(id, done, units)| {
        Command::SetOperation(Operation {
            id: format!("op-{id}"),
            done,
            stage: "working".into(),
            done_units: units,
            total_units: 9,
            error: String::new(),
            ..Operation::default()
        })
    });
    let fact = (0u8..2, any::<u64>()).prop_map(|(name, index)| {
        Command::OffsiteFact(OffsiteFact {
            destination: format!("d{name}"),
            index,
            chain: [2; 32],
            verifier: NodeId(1),
            at: Millis(5),
        })
    });
    let barrier = Just(Command::SnapshotBarrier(SnapshotBarrier { operation_id: "op-1".into() }));
    let device = (prop_oneof![Just("ann"), Just("bob")], prop_oneof![Just("phone"), Just("laptop")])
        .prop_map(|(owner, name)| (user(owner), DeviceId::new(name).expect("a valid id")));
    let ack = (device.clone(), 0u64..6).prop_map(|((user, device), counter)| {
        let version = Version::new(1, counter);
        Command::AckCursor(AckCursor { user, device, incarnation: Incarnation(77), version })
    });
    let gone = device.prop_map(|(user, device)| Command::DropDevice(DropDevice { user, device }));
    let fold = proptest::collection::vec(any_write(), 1..5).prop_map(|writes| {
        let batch = |write| if let Command::WriteBatch(batch) = write { Some(batch) } else { None };
        Command::Fold(writes.into_iter().filter_map(batch).collect())
    });
    prop_oneof![
        12 => any_write(),
        4 => fold,
        4 => Just(Command::Expire),
        2 => ack,
        1 => gone,
        1 => operation,
        1 => fact,
        1 => barrier,
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    // Stamps are points in time and the latest counts: a day after the start requests and TTLs end, after a month
    // tombstones, after three months devices.
    let stamp = prop_oneof![
        12 => 0u64..1000,
        3 => (1u64..5).prop_map(|days| days * 25 * HOUR_MS),
        1 => (1u64..5).prop_map(|months| months * 31 * 24 * HOUR_MS),
    ];
    prop_oneof![
        14 => (stamp, any_command()).prop_map(|(stamp, command)| Step::Apply(proposal(stamp, command))),
        4 => Just(Step::Commit),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Install),
    ]
}

/// The rows that a memory state would be on disk, but for the applied position.
fn expected(memory: &MemoryState) -> BTreeSet<(u8, Vec<u8>, Vec<u8>)> {
    let mut out = BTreeSet::new();
    let mut add = |family: Family, key: Vec<u8>, value: &[u8]| {
        assert!(out.insert((family.tag(), key, value.to_vec())));
    };
    add(Family::Sys, sys::FACTS.to_vec(), &durable::encode_sys(&memory.sys));
    for (id, operation) in &memory.operations {
        add(Family::Sys, sys::operation_key(id), &durable::encode_operation(operation));
    }
    for (user, number) in &memory.uids {
        add(Family::Uid, uid::key(user), &durable::encode_uid(*number));
    }
    for (user, row) in &memory.users {
        add(Family::Usr, usr::key(*user).to_vec(), &durable::encode_user(row));
    }
    for ((user, key), (row, content)) in &memory.records {
        let payload = content.as_ref().map_or(&[][..], |content| &content.payload[..]);
        add(Family::Rec, rec::key(*user, key), &durable::encode_record(row, payload));
    }
    for ((user, version, ordinal), row) in &memory.changes {
        add(Family::Chg, chg::key(*user, *version, *ordinal), &durable::encode_change(row));
    }
    for ((user, id), row) in &memory.requests {
        add(Family::Req, req::key(*user, *id), &durable::encode_request(row));
    }
    for ((user, device), row) in &memory.devices {
        add(Family::Cur, cur::key(*user, device), &durable::encode_device(row));
    }
    for (at, item) in &memory.expiry {
        add(Family::Exp, exp::key(*at, item), &[]);
    }
    out
}

fn stored(rows: Vec<RawRow>) -> BTreeSet<(u8, Vec<u8>, Vec<u8>)> {
    let rows = rows.into_iter().map(|RawRow { family, key, value }| (family, key, value));
    rows.filter(|(family, key, _)| !(*family == Family::Sys.tag() && key[..] == sys::APPLIED)).collect()
}

/// Reads of a view agree with the memory state.
fn check_view(store: &StateStore, memory: &MemoryState) {
    let view = store.view();
    assert_eq!(**view.sys(), memory.sys);
    assert_eq!(view.operations().expect("read"), memory.operations.values().cloned().collect::<Vec<_>>());
    for (user, number) in &memory.uids {
        assert_eq!(view.uid(user).expect("read").map(|it| it.uid), Some(*number));
    }
    for (user, row) in &memory.users {
        assert_eq!(view.user(*user).expect("read").as_ref(), Some(row));
        let changes = view.changes(*user, Version(0), usize::MAX, usize::MAX).expect("read").rows;
        let expected: Vec<_> = memory
            .changes
            .iter()
            .filter(|((owner, ..), _)| owner == user)
            .map(|((_, version, ordinal), row)| (*version, *ordinal, row.clone()))
            .collect();
        assert_eq!(changes, expected);
        let keys: Vec<_> =
            memory.records.keys().filter(|(owner, _)| owner == user).map(|(_, key)| key.clone()).collect();
        for (key, found) in keys.iter().zip(view.records(*user, &keys).expect("read")) {
            let (row, content) = &memory.records[&(*user, key.clone())];
            let found = found.expect("there");
            assert_eq!(&found.row, row);
            assert_eq!(found.payload, content.as_ref().map(|content| content.payload.clone()).unwrap_or_default());
        }
    }
    let report = view.scrub().expect("read");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.digest, report.totals), (memory.sys.digest, memory.sys.totals));
}

/// As an entry of the log.
fn entered(batch: &mut ApplyBatch, index: u64, proposal: &Proposal) -> Vec<Outcome> {
    let id = log::LogId { term: 1, node: 1, index };
    let payload = log::EntryPayload::Proposal(log::encode_proposal(proposal));
    let position = LogPosition { term: 1, node: 1, index };
    let entry = StoredEntry { position, bytes: log::encode_entry(&log::Entry { id, payload }) };
    apply_entry(batch, &entry).expect("applies").outcomes
}

fn run(steps: &[Step]) -> (Applied, MemoryState) {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut store = StateStore::open(&data(dir.path()), GROUP).expect("opened");
    let mut memory = MemoryState::default();
    let mut batch = store.begin();
    let mut index = 1;
    assert_eq!(apply(&mut batch, index, &genesis()), memory.apply(index, &genesis()));
    for step in steps {
        if let Step::Apply(proposal) = step {
            index += 1;
            let judged: Vec<_> = proposal.clone().parts().map(|part| memory.apply(index, &part)).collect();
            assert_eq!(entered(&mut batch, index, proposal), judged);
            continue;
        }
        store.commit(batch).expect("committed");
        match step {
            Step::Apply(_) => {}
            Step::Commit => check_view(&store, &memory),
            Step::Flush => {
                store.flush().expect("flushed");
                assert_eq!(store.durable_applied(), index);
            }
            Step::Reopen => {
                store.flush().expect("flushed");
                drop(store);
                store = StateStore::open(&data(dir.path()), GROUP).expect("opened");
            }
            Step::Install => {
                let path = dir.path().join("snapshots").join(index.to_string());
                drop(std::fs::remove_dir_all(&path));
                store.checkpoint(&path).expect("taken");
                store.install(&path).expect("installed");
            }
        }
        batch = store.begin();
    }
    store.commit(batch).expect("committed");
    check_view(&store, &memory);
    assert_eq!(memory.violations(), []);
    assert_eq!(stored(rows(&store)), expected(&memory));
    assert_eq!(store.applied().position, Some(LogPosition { term: 1, node: 1, index }));
    (store.applied(), memory)
}

/// A tombstone that is forgotten, a device that is dropped and a request that ended are gone for the rest of the batch, as
/// they are for the next one.
#[test]
fn what_ends_inside_a_batch_is_gone_inside_it() {
    let month_ms = 31 * 24 * HOUR_MS;
    let write = |stamp, request, op| {
        let mutation = Mutation { key: key("notes", "r1"), op, guard: Guard::None };
        proposal(stamp, Command::WriteBatch(batch("ann", request, vec![mutation])))
    };
    let expire = |stamp| proposal(stamp, Command::Expire);
    let phone = || DeviceId::new("phone").expect("a valid id");
    let ack =
        AckCursor { user: user("ann"), device: phone(), incarnation: Incarnation(77), version: Version::new(1, 1) };
    let gone = DropDevice { user: user("ann"), device: phone() };
    let entries = [
        write(0, 1, Op::Put(content(10, 1))),
        proposal(1, Command::AckCursor(ack)),
        write(2, 2, Op::Delete),
        // The phone has not seen the deletion: it is kept, and forgotten once the phone is dropped.
        expire(month_ms),
        proposal(month_ms, Command::DropDevice(gone)),
        expire(2 * month_ms),
        write(2 * month_ms, 1, Op::Put(content(20, 1))),
        expire(2 * month_ms),
    ];
    let together: Vec<_> = entries.into_iter().map(Step::Apply).collect();
    let apart: Vec<_> = together.iter().flat_map(|step| [step.clone(), Step::Commit]).collect();
    let ((in_one, memory), (in_many, same)) = (run(&together), run(&apart));
    assert_eq!(in_one.effect_chain, in_many.effect_chain);
    assert_eq!(memory, same);
    assert_eq!((memory.records.len(), memory.devices.len(), memory.requests.len()), (1, 0, 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_database_is_the_model_whatever_the_batches(steps in proptest::collection::vec(any_step(), 1..60)) {
        let (applied, memory) = run(&steps);
        let entries: Vec<_> = steps.iter().filter(|step| matches!(step, Step::Apply(_))).cloned().collect();
        let (alone, same) = run(&entries);
        prop_assert_eq!(&applied.effect_chain, &alone.effect_chain);
        prop_assert_eq!(memory, same);
        // Another history has another chain.
        if !entries.is_empty() {
            let shorter = run(&entries[..entries.len() - 1]).0;
            prop_assert_ne!(shorter.effect_chain, alone.effect_chain);
        }
    }
}
