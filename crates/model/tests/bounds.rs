//! The rules at their limits, and on entries and states that should not exist.

use bytes::Bytes;
use holdfast_model::command::{Command, Content, Genesis, Guard, Mutation, Op, Proposal, RULES, WriteBatch};
use holdfast_model::digest::fingerprint;
use holdfast_model::id::{
    Collection, ContentHash, Incarnation, Millis, RecordId, RecordKey, RequestId, Slot, Uid, UserId, Version,
};
use holdfast_model::limits::{BATCH_MUTATIONS_MAX, CONFLICTS_REPORTED_MAX, DEDUP_WINDOW_MS, EXPIRE_ITEMS_MAX};
use holdfast_model::memory::{MemoryState, Violation};
use holdfast_model::outcome::{Outcome, Rejection};
use holdfast_model::state::{ExpiryItem, StateRead, UserRef};

fn founded() -> MemoryState {
    let mut state = MemoryState::default();
    let genesis = Genesis {
        cluster_id: [1; 16],
        cluster_name: "home".into(),
        incarnation: Incarnation(10),
        epoch: 1,
        parent: None,
        members: vec![],
        restoring: Vec::new(),
    };
    assert_eq!(apply(&mut state, 0, Command::Genesis(genesis)), Outcome::Done);
    state
}

fn apply(state: &mut MemoryState, stamp: u64, command: Command) -> Outcome {
    state.apply(1, &Proposal { rules: RULES, stamp: Millis(stamp), command })
}

fn put(number: usize, guard: Guard) -> Mutation {
    Mutation {
        key: RecordKey {
            collection: Collection::new("notes").unwrap(),
            record_id: RecordId::new(&format!("n{number}")).unwrap(),
        },
        op: Op::Put(Content { content_type: "text/plain".into(), payload: Bytes::from_static(b"x"), ttl_seconds: 0 }),
        guard,
    }
}

fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

fn batch(request: u64, mutations: Vec<Mutation>) -> Command {
    let mut request_id = [0; 16];
    request_id[..8].copy_from_slice(&request.to_be_bytes());
    let mut batch = WriteBatch {
        user: alice(),
        request_id: RequestId(request_id),
        fingerprint: [0; 16],
        first_sent: None,
        device: None,
        if_head: None,
        if_incarnation: None,
        mutations,
    };
    batch.fingerprint = fingerprint(&batch);
    Command::WriteBatch(batch)
}

#[test]
fn the_first_32_conflicts_are_named() {
    let mut state = founded();
    let mutations = (0..40).map(|n| put(n, if n == 3 { Guard::Absent } else { Guard::Exists })).collect();
    let Outcome::Rejected(Rejection::VersionMismatch { conflicts, head: None }) =
        apply(&mut state, 1, batch(1, mutations))
    else {
        panic!("the guards fail")
    };
    let named: Vec<u32> = conflicts.iter().map(|conflict| conflict.index).collect();
    let first: Vec<u32> = (0..40).filter(|n| *n != 3).take(CONFLICTS_REPORTED_MAX).collect();
    assert_eq!(named, first);
}

#[test]
fn a_full_batch_fits_and_a_larger_one_is_poison() {
    let mut state = founded();
    let full = (0..BATCH_MUTATIONS_MAX).map(|n| put(n, Guard::None)).collect();
    assert!(matches!(apply(&mut state, 1, batch(1, full)), Outcome::Written(_)));
    assert_eq!(state.violations(), []);
    assert_eq!(state.changes.len(), BATCH_MUTATIONS_MAX);

    let before = state.clone();
    let larger = (0..=BATCH_MUTATIONS_MAX).map(|n| put(n, Guard::None)).collect();
    assert_eq!(apply(&mut state, 1, batch(2, larger)), Outcome::Rejected(Rejection::Poisoned));
    assert_eq!(state, before);
}

#[test]
fn a_key_twice_in_a_batch_is_poison() {
    let mut state = founded();
    let before = state.clone();
    let twice = vec![put(1, Guard::None), put(2, Guard::None), put(1, Guard::None)];
    assert_eq!(apply(&mut state, 0, batch(1, twice)), Outcome::Rejected(Rejection::Poisoned));
    assert_eq!(state, before);
}

#[test]
fn a_number_without_a_row_is_poison() {
    let mut state = founded();
    assert!(matches!(apply(&mut state, 1, batch(1, vec![put(1, Guard::None)])), Outcome::Written(_)));
    state.users.clear();
    let damaged = state.clone();
    assert_eq!(apply(&mut state, 1, batch(2, vec![put(1, Guard::None)])), Outcome::Rejected(Rejection::Poisoned));
    assert_eq!(state, damaged);
}

#[test]
fn a_sweep_takes_the_oldest_first_and_is_bounded() {
    let mut state = founded();
    for request in 1..=EXPIRE_ITEMS_MAX as u64 + 1 {
        apply(&mut state, request, batch(request, vec![]));
    }
    let late = DEDUP_WINDOW_MS * 2;
    assert_eq!(apply(&mut state, late, Command::Expire), Outcome::Done);
    let newest = EXPIRE_ITEMS_MAX as u64 + 1 + DEDUP_WINDOW_MS;
    let left: Vec<Millis> = state.requests.values().map(|row| row.expires).collect();
    assert_eq!(left, [Millis(newest)]);
    assert_eq!(state.violations(), []);
    apply(&mut state, late, Command::Expire);
    assert!(state.requests.is_empty() && state.expiry.is_empty());
}

#[test]
fn a_stale_place_in_the_queue_does_not_forget_a_request() {
    let mut state = founded();
    apply(&mut state, 100, batch(1, vec![put(1, Guard::None)]));
    let (user, id) = *state.requests.keys().next().unwrap();
    state.expiry.insert((Millis(50), ExpiryItem::Request(user, id)));
    apply(&mut state, 200, Command::Expire);
    assert_eq!(state.requests.len(), 1);
    assert_eq!(state.violations(), []);
}

#[test]
fn times_at_the_end_of_all_numbers_are_judged() {
    let mut state = founded();
    let Command::WriteBatch(mut sent) = batch(1, vec![put(1, Guard::None)]) else { unreachable!() };
    sent.first_sent = Some(Millis(u64::MAX));
    let answer = apply(&mut state, 1, Command::WriteBatch(sent.clone()));
    assert_eq!(answer, Outcome::Rejected(Rejection::RequestFromFuture));
    let answer = apply(&mut state, u64::MAX, Command::WriteBatch(sent));
    assert_eq!(answer, Outcome::Rejected(Rejection::RequestTooOld));
    assert!(matches!(apply(&mut state, 1, batch(2, vec![put(1, Guard::None)])), Outcome::Written(_)));
    assert_eq!(state.violations(), []);
}

/// The oracle is worth what it sees: each kind of damage must be found, and only where it is.
#[test]
fn the_oracle_sees_each_kind_of_damage() {
    let mut sound = founded();
    apply(&mut sound, 1, batch(1, vec![put(1, Guard::None), put(2, Guard::None)]));
    assert_eq!(sound.violations(), []);
    let user = sound.user_ref(&alice()).unwrap();
    let key = put(1, Guard::None).key;

    let damaged = |damage: &dyn Fn(&mut MemoryState)| {
        let mut state = sound.clone();
        damage(&mut state);
        state.violations()
    };
    let sums = Violation::UserSums(user);
    let changes = Violation::Changes(user);
    let record = Violation::Record(user, key.clone());
    let at = (user, key);
    let record_of = |state: &mut MemoryState| state.records.get_mut(&at).unwrap().clone();

    // A lost record; one that came back.
    let lost = damaged(&|state| assert!(state.records.remove(&at).is_some()));
    assert!(lost.contains(&sums) && lost.contains(&Violation::Totals) && lost.contains(&changes), "{lost:?}");
    // A flipped bit in a payload.
    let flipped = damaged(&|state| {
        let (row, content) = record_of(state);
        let content = Content { payload: Bytes::from_static(b"y"), ..content.unwrap() };
        state.records.insert(at.clone(), (row, Some(content)));
    });
    assert!(flipped.contains(&sums) && flipped.contains(&record), "{flipped:?}");
    // A row that does not describe its content.
    let mislabelled = damaged(&|state| state.records.get_mut(&at).unwrap().0.content_type = "text/html".into());
    assert_eq!(mislabelled, std::slice::from_ref(&record));
    let rehashed = damaged(&|state| state.records.get_mut(&at).unwrap().0.content_hash = ContentHash([0; 16]));
    assert!(rehashed.contains(&record), "{rehashed:?}");
    // A head behind its records, as in a user row of yesterday.
    let behind = damaged(&|state| state.users.get_mut(&user).unwrap().head = Version(0));
    assert!(behind.contains(&record) && behind.contains(&Violation::GroupDigest), "{behind:?}");
    // The feed: a missing row, a row too many, one of another content.
    let missing = damaged(&|state| assert!(state.changes.pop_first().is_some()));
    assert_eq!(missing, std::slice::from_ref(&changes));
    let doubled = damaged(&|state| {
        let row = state.changes.values().next().unwrap().clone();
        state.changes.insert((user, Version::new(1, 9), 0), row);
    });
    assert_eq!(doubled, std::slice::from_ref(&changes));
    let wrong = damaged(&|state| state.changes.values_mut().for_each(|row| row.deleted = true));
    assert_eq!(wrong, [changes]);
    // Sums.
    let usage = damaged(&|state| state.users.get_mut(&user).unwrap().usage.used_bytes += 1);
    assert_eq!(usage, [sums]);
    let digest = damaged(&|state| state.sys.digest.add([1; 32]));
    assert_eq!(digest, [Violation::GroupDigest]);
    let totals = damaged(&|state| state.sys.totals.users += 1);
    assert_eq!(totals, [Violation::Totals]);
    // Numbers and the queue.
    let bob = UserId::new("bob").unwrap();
    let unnumbered = damaged(&|state| assert!(state.uids.insert(bob.clone(), Uid::new(1, 2)).is_none()));
    assert_eq!(unnumbered, [Violation::Numbers]);
    let unqueued = damaged(&|state| assert!(state.expiry.pop_first().is_some()));
    assert_eq!(unqueued, [Violation::Expiry]);
    assert!(damaged(&|_| ()).is_empty());
}

#[test]
fn the_memory_reads_what_it_was_told() {
    let mut state = founded();
    apply(&mut state, 1, batch(1, vec![put(1, Guard::None)]));
    let user = UserRef { slot: Slot::of(&alice()), uid: Uid::new(1, 1) };
    let key = put(1, Guard::None).key;
    assert_eq!(state.user_ref(&alice()), Some(user));
    assert_eq!(state.uid(&alice()), Ok(Some(user.uid)));
    assert_eq!(state.user(user).unwrap().as_deref(), state.user_row(&alice()));
    assert_eq!(state.record(user, &key).unwrap().as_ref(), state.record_of(&alice(), &key).map(|(row, _)| row));
    let due = DEDUP_WINDOW_MS + 1;
    assert_eq!(state.due(Millis(due - 1), 9), Ok(vec![]));
    assert_eq!(state.due(Millis(due), 9).unwrap().len(), 1);
    assert_eq!(state.due(Millis(due), 0), Ok(vec![]));
    assert_eq!(state.user_ref(&UserId::new("bob").unwrap()), None);
}
