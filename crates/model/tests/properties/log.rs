//! Random logs: what a few devices with retries, stale views, jumping clocks and a restore or two may get committed.
//!
//! A log is built from random steps by playing them on a state of its own, so that guards can name versions that exist.

use bytes::Bytes;
use holdfast_model::command::{
    Command, Content, Genesis, Guard, Mutation, OffsiteFact, Op, Operation, Parent, Proposal, RULES, SnapshotBarrier,
    WriteBatch,
};
use holdfast_model::digest::fingerprint;
use holdfast_model::id::{
    Collection, DeviceId, Incarnation, Millis, NodeId, RecordId, RecordKey, RequestId, UserId, Version,
};
use holdfast_model::memory::MemoryState;
use proptest::collection::vec;
use proptest::prelude::*;

const KEYS: [(&str, &str); 5] =
    [("contacts", "c1"), ("contacts", "c2"), ("events", "e1"), ("x-own", "c1"), ("notes", "n1")];
const PAYLOADS: [&str; 4] = ["", "a", "bb", "a longer payload"];
const HOUR_MS: u64 = 3_600_000;

/// What happens next, still without ids, versions and times.
#[derive(Debug, Clone)]
enum Step {
    Write(Write),
    /// An earlier batch again.
    Retry(usize),
    /// The id of an earlier batch with the body of this one.
    Reuse(usize, Write),
    /// The stamp moves: seconds, forth and back.
    Clock(i64),
    Expire,
    Restore,
    Offsite(u64),
    Barrier,
    Operation,
    UnknownRules,
}

#[derive(Debug, Clone)]
struct Write {
    user: usize,
    mutations: Vec<(usize, Option<usize>, GuardStep)>,
    /// Seconds between the log's time and `first_sent`; `None` leaves it out.
    sent: Option<i64>,
    if_head: Option<bool>,
    incarnation: IncarnationStep,
    device: bool,
}

#[derive(Debug, Clone, Copy)]
enum GuardStep {
    None,
    Absent,
    Exists,
    Current,
    Stale,
}

#[derive(Debug, Clone, Copy)]
enum IncarnationStep {
    Unsaid,
    Current,
    Older,
}

/// A founded log of up to 80 entries.
pub fn log() -> impl Strategy<Value = Vec<Proposal>> {
    vec(step(), 1..80).prop_map(|steps| {
        let mut builder = Builder::new();
        for step in steps {
            builder.step(step);
        }
        builder.log
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => write().prop_map(Step::Write),
        8 => (0usize..12).prop_map(Step::Retry),
        3 => (0usize..12, write()).prop_map(|(back, write)| Step::Reuse(back, write)),
        4 => prop_oneof![-100i64..100, -90_000i64..90_000].prop_map(Step::Clock),
        2 => Just(Step::Clock(24 * 3600)),
        3 => Just(Step::Expire),
        1 => Just(Step::Restore),
        1 => (0u64..9).prop_map(Step::Offsite),
        1 => Just(Step::Barrier),
        1 => Just(Step::Operation),
        1 => Just(Step::UnknownRules),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let guard = prop_oneof![
        6 => Just(GuardStep::None),
        1 => Just(GuardStep::Absent),
        1 => Just(GuardStep::Exists),
        2 => Just(GuardStep::Current),
        1 => Just(GuardStep::Stale),
    ];
    let op = prop_oneof![3 => (0..PAYLOADS.len()).prop_map(Some), 1 => Just(None)];
    let sent = prop_oneof![
        2 => Just(None),
        6 => Just(Some(0)),
        2 => (-300i64..=300).prop_map(Some),
        1 => prop_oneof![Just(Some(-86_400)), Just(Some(-86_399)), Just(Some(301))],
    ];
    let incarnation = prop_oneof![
        4 => Just(IncarnationStep::Unsaid),
        4 => Just(IncarnationStep::Current),
        1 => Just(IncarnationStep::Older)
    ];
    let if_head = prop_oneof![8 => Just(None), 1 => Just(Some(true)), 1 => Just(Some(false))];
    (0usize..3, vec((0..KEYS.len(), op, guard), 1..4), sent, if_head, incarnation, any::<bool>()).prop_map(
        |(user, mut mutations, sent, if_head, incarnation, device)| {
            mutations.sort_by_key(|(key, ..)| *key);
            mutations.dedup_by_key(|(key, ..)| *key);
            Write { user, mutations, sent, if_head, incarnation, device }
        },
    )
}

struct Builder {
    log: Vec<Proposal>,
    state: MemoryState,
    stamp: u64,
    batches: Vec<WriteBatch>,
}

impl Builder {
    fn new() -> Self {
        let mut builder = Self { log: vec![], state: MemoryState::default(), stamp: 1000 * HOUR_MS, batches: vec![] };
        builder.push(Command::Genesis(genesis(10, 1, None)));
        builder
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(write) => {
                let batch = self.batch(&write, None);
                self.batches.push(batch.clone());
                self.push(Command::WriteBatch(batch));
            }
            Step::Retry(back) => {
                if let Some(batch) = self.batches.iter().rev().nth(back).cloned() {
                    self.push(Command::WriteBatch(batch));
                }
            }
            Step::Reuse(back, write) => {
                if let Some(earlier) = self.batches.iter().rev().nth(back).cloned() {
                    let batch = self.batch(&write, Some(&earlier));
                    self.push(Command::WriteBatch(batch));
                }
            }
            Step::Clock(seconds) => self.stamp = self.stamp.saturating_add_signed(seconds * 1000),
            Step::Expire => self.push(Command::Expire),
            Step::Restore => {
                let ended = self.state.sys.history.clone().unwrap();
                let incarnation = ended.incarnation.0 + 1;
                self.push(Command::Genesis(genesis(incarnation, ended.epoch + 1, Some(ended.incarnation))));
            }
            Step::Offsite(index) => self.push(Command::OffsiteFact(OffsiteFact {
                destination: "s3".into(),
                index,
                chain: [0; 32],
                verifier: NodeId(1),
                at: Millis(0),
            })),
            Step::Barrier => self.push(Command::SnapshotBarrier(SnapshotBarrier { operation_id: "op".into() })),
            Step::Operation => self.push(Command::SetOperation(Operation {
                id: "op".into(),
                done: false,
                stage: self.log.len().to_string(),
                done_units: 0,
                total_units: 0,
                error: String::new(),
                ..Operation::default()
            })),
            Step::UnknownRules => self.play(no_effect(Millis(self.stamp))),
        }
    }

    fn push(&mut self, command: Command) {
        self.play(Proposal { rules: RULES, stamp: Millis(self.stamp), command });
    }

    fn play(&mut self, proposal: Proposal) {
        self.state.apply(self.log.len() as u64 + 1, &proposal);
        self.log.push(proposal);
    }

    fn batch(&self, write: &Write, earlier: Option<&WriteBatch>) -> WriteBatch {
        let user = earlier.map_or_else(|| UserId::new(&format!("user-{}", write.user)).unwrap(), |e| e.user.clone());
        let head = self.state.user_row(&user).map_or(Version(0), |row| row.head);
        let current = self.state.sys.history.as_ref().unwrap().incarnation;
        let now = self.state.sys.now.0.max(self.stamp);
        let mut fresh = [0; 16];
        fresh[..8].copy_from_slice(&(self.batches.len() as u64 + 1).to_be_bytes());
        let mut batch = WriteBatch {
            request_id: earlier.map_or(RequestId(fresh), |earlier| earlier.request_id),
            fingerprint: [0; 16],
            first_sent: match earlier {
                Some(earlier) => earlier.first_sent,
                None => write.sent.map(|seconds| Millis(now.saturating_add_signed(seconds * 1000))),
            },
            device: write.device.then(|| DeviceId::new("phone").unwrap()),
            if_head: write.if_head.map(|current| if current { head } else { Version(head.0 + 1) }),
            if_incarnation: match write.incarnation {
                IncarnationStep::Unsaid => None,
                IncarnationStep::Current => Some(current),
                IncarnationStep::Older => Some(Incarnation(current.0 - 1)),
            },
            mutations: write.mutations.iter().map(|(key, op, guard)| self.mutation(&user, *key, *op, *guard)).collect(),
            user,
        };
        batch.fingerprint = fingerprint(&batch);
        batch
    }

    fn mutation(&self, user: &UserId, key: usize, op: Option<usize>, guard: GuardStep) -> Mutation {
        let (collection, id) = KEYS[key];
        let key = RecordKey { collection: Collection::new(collection).unwrap(), record_id: RecordId::new(id).unwrap() };
        let stored = self.state.record_of(user, &key).map_or(Version(0), |(row, _)| row.version);
        let guard = match guard {
            GuardStep::None => Guard::None,
            GuardStep::Absent => Guard::Absent,
            GuardStep::Exists => Guard::Exists,
            GuardStep::Current => Guard::Version(stored),
            GuardStep::Stale => Guard::Version(Version(stored.0.saturating_sub(1))),
        };
        let op = match op {
            Some(payload) => Op::Put(Content {
                content_type: "text/plain".into(),
                payload: Bytes::from(PAYLOADS[payload]),
                ttl_seconds: 0,
            }),
            None => Op::Delete,
        };
        Mutation { key, op, guard }
    }
}

/// An entry that moves the time and does nothing else.
pub fn no_effect(stamp: Millis) -> Proposal {
    Proposal { rules: u16::MAX, stamp, command: Command::Expire }
}

fn genesis(incarnation: u64, epoch: u16, parent: Option<Incarnation>) -> Genesis {
    Genesis {
        cluster_id: [1; 16],
        cluster_name: "home".into(),
        incarnation: Incarnation(incarnation),
        epoch,
        parent: parent.map(|incarnation| Parent {
            cluster_id: [1; 16],
            incarnation,
            snapshot_index: 0,
            index: 0,
            chain: [0; 32],
        }),
        members: vec![NodeId(1)],
        restoring: Vec::new(),
    }
}
