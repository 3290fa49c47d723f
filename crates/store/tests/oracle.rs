//! The same commands, applied to the database in batches of any size and to the model's memory state, leave the same
//! outcomes and the same rows; and no batch size, flush, restart or install shows in the effect chain.

#[path = "support/commands.rs"]
mod commands;
mod support;

use std::collections::BTreeSet;

use holdfast_model::command::{Command, Guard, Mutation, OffsiteFact, Op, Operation, Proposal, SnapshotBarrier};
use holdfast_model::id::{Millis, NodeId, Version};
use holdfast_model::memory::MemoryState;
use holdfast_store::keyspace::{Family, chg, exp, rec, req, sys, uid, usr};
use holdfast_store::{Applied, LogPosition, RawRow, StateStore};
use holdfast_wire::durable;
use proptest::prelude::*;
use support::{GROUP, data};

use commands::{apply, batch, content, genesis, key, proposal, rows};

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
    let op = prop_oneof![
        3 => (prop_oneof![0usize..40, 4000usize..9000], 0u64..3).prop_map(|(size, seed)| Op::Put(content(size, seed))),
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
    prop_oneof![12 => any_write(), 2 => Just(Command::Expire), 1 => operation, 1 => fact, 1 => barrier]
}

fn any_step() -> impl Strategy<Value = Step> {
    // Time jumps by hours now and then, so that requests expire.
    let stamp = prop_oneof![0u64..1000, Just(13 * 60 * 60 * 1000)];
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
            assert_eq!(apply(&mut batch, index, proposal), memory.apply(index, proposal));
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
