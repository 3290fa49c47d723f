//! What ends by itself, and what comes back: TTLs, tombstones, devices, quotas, and re-uploads after a rollback.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_model::command::{
    AckCursor, Command, Content, DropDevice, Genesis, Guard, Mutation, Op, Parent, Policy, Proposal, RULES,
    RestoreGuard, WriteBatch,
};
use holdfast_model::digest::fingerprint;
use holdfast_model::id::{
    Collection, DeviceId, Incarnation, Millis, NodeId, RecordId, RecordKey, RequestId, UserId, Version,
};
use holdfast_model::memory::MemoryState;
use holdfast_model::outcome::{Outcome, Rejection};
use proptest::collection::vec;
use proptest::prelude::*;

const AGE_MS: u64 = 20_000;
const SILENCE_MS: u64 = 50_000;
const QUOTA_BYTES: u64 = 60;

fn key(number: usize) -> RecordKey {
    RecordKey {
        collection: Collection::new("notes").unwrap(),
        record_id: RecordId::new(&format!("n{number}")).unwrap(),
    }
}

fn ann() -> UserId {
    UserId::new("ann").unwrap()
}

fn device(number: usize) -> DeviceId {
    DeviceId::new(&format!("d{number}")).unwrap()
}

fn put(length: usize, ttl_seconds: u32) -> Op {
    Op::Put(Content { content_type: String::new(), payload: Bytes::from(vec![b'x'; length]), ttl_seconds })
}

fn genesis(incarnation: u64, epoch: u16, parent: Option<u64>) -> Command {
    Command::Genesis(Genesis {
        cluster_id: [1; 16],
        cluster_name: "home".into(),
        incarnation: Incarnation(incarnation),
        epoch,
        parent: parent.map(|incarnation| Parent {
            cluster_id: [1; 16],
            incarnation: Incarnation(incarnation),
            snapshot_index: 0,
            index: 0,
            chain: [0; 32],
        }),
        members: vec![NodeId(1)],
        restoring: Vec::new(),
    })
}

/// A state being played.
#[derive(Clone)]
struct Play {
    state: MemoryState,
    index: u64,
    now_ms: u64,
}

impl Play {
    fn founded() -> Self {
        let mut play = Self { state: MemoryState::default(), index: 0, now_ms: 1_000_000 };
        play.apply(genesis(10, 1, None));
        play
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let proposal = Proposal { rules: RULES, stamp: Millis(self.now_ms), command };
        self.state.apply(self.index, &proposal)
    }

    fn write(&mut self, mutations: Vec<Mutation>) -> Outcome {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&(self.index + 1).to_be_bytes());
        let mut batch = WriteBatch {
            user: ann(),
            request_id: RequestId(id),
            fingerprint: [0; 16],
            first_sent: None,
            device: None,
            if_head: None,
            if_incarnation: None,
            mutations,
        };
        batch.fingerprint = fingerprint(&batch);
        self.apply(Command::WriteBatch(batch))
    }

    fn head(&self) -> Version {
        self.state.user_row(&ann()).map_or(Version(0), |row| row.head)
    }

    /// What a person sees: live contents by key.
    fn contents(&self) -> BTreeMap<RecordKey, Content> {
        let records = self.state.records.iter();
        records.filter_map(|((_, key), (_, content))| Some((key.clone(), content.clone()?))).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(usize, Option<(usize, u32)>)>),
    Wait(u64),
    Expire,
    Ack(usize, u64),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let op = proptest::option::weighted(0.6, (1usize..30, prop_oneof![3 => Just(0u32), 2 => 1u32..30]));
    prop_oneof![
        8 => vec((0usize..6, op), 1..4).prop_map(|mut mutations| {
            mutations.sort_by_key(|(key, _)| *key);
            mutations.dedup_by_key(|(key, _)| *key);
            Step::Write(mutations)
        }),
        5 => (1u64..15_000).prop_map(Step::Wait),
        5 => Just(Step::Expire),
        3 => (0usize..3, 0u64..5).prop_map(|(device, behind)| Step::Ack(device, behind)),
        1 => (0usize..3).prop_map(Step::Drop),
    ]
}

fn policy() -> Command {
    Command::SetPolicy(Policy { tombstone_age_ms: AGE_MS, device_expiry_ms: SILENCE_MS, user_quota_bytes: QUOTA_BYTES })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Judged from outside, step by step: nothing goes before its time, and nothing is forgotten that somebody needs.
    #[test]
    fn what_ends_ends_in_time_and_is_kept_for_those_who_need_it(steps in vec(step(), 1..60)) {
        let mut play = Play::founded();
        play.apply(policy());
        for step in steps {
            let before = play.clone();
            let row = |play: &Play| play.state.user_row(&ann()).cloned().unwrap_or_default();
            match step {
                Step::Wait(ms) => play.now_ms += ms,
                Step::Write(mutations) => {
                    let mutations: Vec<Mutation> = mutations
                        .into_iter()
                        .map(|(number, op)| {
                            let op = op.map_or(Op::Delete, |(length, ttl)| put(length, ttl));
                            Mutation { key: key(number), op, guard: Guard::None }
                        })
                        .collect();
                    let outcome = play.write(mutations);
                    let (was, is) = (row(&before).usage.used_bytes, row(&play).usage.used_bytes);
                    match outcome {
                        Outcome::Written(_) => prop_assert!(is <= QUOTA_BYTES || is <= was),
                        Outcome::Rejected(Rejection::UserQuota { wanted_bytes, quota_bytes }) => {
                            prop_assert_eq!(quota_bytes, QUOTA_BYTES);
                            prop_assert!(wanted_bytes > QUOTA_BYTES && wanted_bytes > was);
                            prop_assert_eq!(is, was);
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Expire => {
                    play.apply(Command::Expire);
                    check_sweep(&before, &play)?;
                }
                Step::Ack(number, behind) => {
                    let head = play.head();
                    let version = if head.counter() > behind { Version(head.0 - behind) } else { Version(0) };
                    let outcome = play.apply(Command::AckCursor(AckCursor {
                        user: ann(),
                        device: device(number),
                        incarnation: Incarnation(10),
                        version,
                    }));
                    let low = version < row(&before).tombstone_horizon;
                    prop_assert_eq!(outcome == Outcome::Rejected(Rejection::TokenNotCurrent), low);
                }
                Step::Drop(number) => {
                    play.apply(Command::DropDevice(DropDevice { user: ann(), device: device(number) }));
                    prop_assert!(play.state.devices.keys().all(|(_, id)| *id != device(number)));
                }
            }
            prop_assert_eq!(play.state.violations(), vec![]);
            prop_assert!(row(&play).tombstone_horizon >= row(&before).tombstone_horizon, "the horizon fell");
            for (id, cursor) in &before.state.devices {
                if let Some(now) = play.state.devices.get(id) {
                    prop_assert!(now.acked >= cursor.acked, "a cursor went back");
                }
            }
        }
    }
}

/// One sweep, against the states around it.
fn check_sweep(before: &Play, after: &Play) -> Result<(), TestCaseError> {
    let now = after.state.sys.now;
    for (id, cursor) in &before.state.devices {
        let kept = after.state.devices.contains_key(id);
        prop_assert_eq!(kept, cursor.expires > now, "a device is forgotten after its silence, and not before");
    }
    let mut expired = BTreeSet::new();
    for (id, (row, content)) in &before.state.records {
        let next = after.state.records.get(id);
        match (row.expire_time, row.delete_time, content) {
            (Some(at), None, _) if at <= now => {
                let (next, gone) = next.expect("a tombstone first");
                prop_assert!(gone.is_none() && next.delete_time == Some(now));
                expired.insert(next.version);
            }
            (_, None, _) => prop_assert_eq!(next, Some(&(row.clone(), content.clone())), "not due"),
            (_, Some(deleted), _) => {
                let old = now.0 >= deleted.0 + AGE_MS;
                let seen = after.state.devices.values().all(|cursor| cursor.acked >= row.version);
                match next {
                    Some((next, _)) => {
                        prop_assert_eq!((next.version, next.delete_time), (row.version, row.delete_time));
                        let again = next.purge_time.expect("queued");
                        prop_assert!(!(old && seen) || again > now, "due and seen, and still there");
                    }
                    None => {
                        prop_assert!(old && seen, "forgotten too early");
                        let horizon = after.state.user_row(&ann()).expect("known").tombstone_horizon;
                        prop_assert!(horizon >= row.version, "forgotten above the horizon");
                    }
                }
            }
        }
    }
    let head = before.head();
    match expired.len() {
        0 => prop_assert_eq!(after.head(), head),
        _ => prop_assert_eq!(expired.into_iter().collect::<Vec<_>>(), vec![Version(head.0 + 1)], "one commit"),
    }
    Ok(())
}

/// A change that a device saw and the restored cluster does not have.
#[derive(Debug, Clone)]
struct Lost {
    key: RecordKey,
    version: Version,
    op: Op,
}

/// Sends what a device has above the fork, a few records a batch, leaving out what a batch is refused for.
fn upload(play: &mut Play, common: Version, mut waiting: Vec<Lost>, batch: usize) {
    while !waiting.is_empty() {
        let sent = &waiting[..batch.min(waiting.len())];
        let mutations = sent.iter().map(|lost| Mutation {
            key: lost.key.clone(),
            op: lost.op.clone(),
            guard: Guard::Restore(RestoreGuard { common, lost: lost.version, incarnation: Incarnation(10) }),
        });
        match play.write(mutations.collect()) {
            Outcome::Written(_) => drop(waiting.drain(..batch.min(waiting.len()))),
            Outcome::Rejected(Rejection::VersionMismatch { conflicts, .. }) => {
                for conflict in conflicts.iter().rev() {
                    waiting.remove(conflict.index as usize);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever order devices come in, and however far each had synced: the newest change that any of them saw stays.
    #[test]
    fn a_re_upload_ends_the_same_in_every_order(
        kept in vec((0usize..5, proptest::option::of(1usize..4)), 0..6),
        lost in vec((0usize..5, proptest::option::of(1usize..4)), 1..12),
        devices in vec((any::<prop::sample::Index>(), 1usize..4), 1..4),
        order in any::<u64>(),
    ) {
        let mut play = Play::founded();
        let write = |play: &mut Play, (number, length): (usize, Option<usize>)| {
            let op = length.map_or(Op::Delete, |length| put(length, 0));
            play.write(vec![Mutation { key: key(number), op: op.clone(), guard: Guard::None }]);
            Lost { key: key(number), version: play.head(), op }
        };
        for change in kept {
            write(&mut play, change);
        }
        let mut restored = play.clone();
        let common = play.head();
        // Histories of what a person saw, by version: the state and the changes up to it.
        let mut seen = vec![(play.contents(), BTreeMap::new())];
        for change in lost {
            let head = play.head();
            let change = write(&mut play, change);
            if play.head() == head {
                continue;
            }
            let mut changes: BTreeMap<RecordKey, Lost> = seen.last().expect("one").1.clone();
            changes.insert(change.key.clone(), change);
            seen.push((play.contents(), changes));
        }
        restored.apply(genesis(11, 2, Some(10)));
        let known: Vec<usize> = devices.iter().map(|(index, _)| index.index(seen.len())).collect();
        let newest = *known.iter().max().expect("a device");

        let mut places: Vec<usize> = (0..devices.len()).collect();
        let mut last = None;
        for turn in 0..2 {
            if turn == 1 {
                // Another order of the same devices, and each of them twice.
                places.sort_by_key(|place| (order.rotate_left(*place as u32 * 7)) % 17);
                places.extend(places.clone());
            }
            let mut again = restored.clone();
            for place in &places {
                let changes = seen[known[*place]].1.values().cloned().collect();
                upload(&mut again, common, changes, devices[*place].1);
            }
            prop_assert_eq!(again.state.violations(), vec![]);
            prop_assert_eq!(&again.contents(), &seen[newest].0, "not what the device with the newest state has");
            if let Some(last) = last.replace(again.contents()) {
                prop_assert_eq!(last, again.contents());
            }
        }
    }
}
