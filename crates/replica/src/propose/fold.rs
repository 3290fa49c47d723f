//! Folding: writes that wait share an entry.
//!
//! Much of what an entry costs every replica does not depend on what is in it: an id, hashes, a call to each peer, several hops
//! between threads. So all small writes go by way of a line. A task takes what stands there, proposes it in as few entries as may
//! be, and does so again while anybody waits; a second task begins while those are under way, and no third one. A task first
//! lets all others run that are ready: whoever comes in the same turn of the scheduler goes along.
//!
//! An entry has no two writes of one user: what a user sees at an index is one write's doing, and the index of an answer is that of
//! no other write of theirs. Writes of one user that wait go as entries one behind the other, all at once.
//!
//! Invariants: a place is held by a task of its own and never by a caller's future, which may not be polled for as long as its
//! client likes; an entry of several writes is no unit, each of them commits or fails by itself; a write whose caller gave up
//! while it waited is never proposed, and its payload goes with the caller. Order is that of arrival within the line; large writes
//! pass it by, and two tasks may overtake one another: callers are promised none (`records.proto`).

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use holdfast_model::command::{Op, WriteBatch};
use holdfast_model::id::{RecordKey, UserId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Local, ProposeError};

/// Tasks, each with an entry under way: one is on its way to disks, one is applied.
const TASKS_MAX: usize = 2;
/// Writes in an entry.
const WRITES_MAX: usize = 256;
/// Bytes of an entry, about. A write that has a quarter of it goes alone, and waits for nobody.
const BYTES_MAX: usize = 256 << 10;
/// Writes that go at once, in however many entries.
const TAKEN_MAX: usize = 4 * WRITES_MAX;
/// What a change is besides its names and its payload, at most.
const CHANGE_BYTES: usize = 96;

/// Writes that wait at one node.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    tasks: usize,
    /// A task is about to take what stands in the line: nobody need begin another one.
    gathering: bool,
    waiting: VecDeque<Waiting>,
    /// Those whose callers gave up are removed once it is as long.
    swept_at: usize,
}

/// A write that waits. Its caller holds it: who gives up takes it along.
#[derive(Debug)]
struct Waiting {
    batch: Weak<WriteBatch>,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

pub(super) type Answer = Result<Local, ProposeError>;

/// A write that is proposed with others.
#[derive(Debug)]
pub(super) struct Folded {
    pub(super) batch: Arc<WriteBatch>,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// Bytes of a write, about.
pub(super) fn bytes_of(batch: &WriteBatch) -> usize {
    let of = |op: &Op| match op {
        Op::Put(content) => content.payload.len() + content.content_type.len(),
        Op::Delete => 0,
    };
    let names = |key: &RecordKey| key.collection.as_str().len() + key.record_id.as_str().len();
    batch.mutations.iter().map(|one| CHANGE_BYTES + names(&one.key) + of(&one.op)).sum()
}

/// True for a write that goes alone, whatever waits.
pub(super) fn is_large(batch: &WriteBatch) -> bool {
    bytes_of(batch) >= BYTES_MAX / 4
}

impl Folder {
    /// A write came. `true`: whoever asked begins a task, which takes from the line until it may not go on.
    pub(super) fn enter(&self, batch: &Arc<WriteBatch>, deadline: Instant) -> (oneshot::Receiver<Answer>, bool) {
        let (answer, answered) = oneshot::channel();
        let mut line = self.line();
        line.waiting.push_back(Waiting { batch: Arc::downgrade(batch), deadline, answer });
        line.sweep();
        let begins = line.tasks < TASKS_MAX && !line.gathering;
        line.tasks += usize::from(begins);
        line.gathering |= begins;
        (answered, begins)
    }

    /// The same request waits in the line, and may still be proposed.
    pub(super) fn holds(&self, batch: &WriteBatch) -> bool {
        let same = |one: &Waiting| {
            let waiting = one.batch.upgrade().filter(|_| !one.answer.is_closed());
            waiting.is_some_and(|other| other.request_id == batch.request_id && other.user == batch.user)
        };
        self.line().waiting.iter().any(same)
    }

    /// What goes now, entry by entry; nothing, where all of them gave up.
    pub(super) fn take(&self) -> Vec<Vec<Folded>> {
        let mut line = self.line();
        line.gathering = false;
        let mut entries: Vec<(Vec<Folded>, usize)> = Vec::new();
        // By the hash of a user's name: two who share one are kept apart as one is.
        let mut next_of: HashMap<u64, usize> = HashMap::new();
        let mut taken = 0;
        while taken < TAKEN_MAX
            && let Some(Waiting { batch, deadline, answer }) = line.waiting.pop_front()
        {
            let Some(batch) = batch.upgrade().filter(|_| !answer.is_closed()) else { continue };
            let bytes = bytes_of(&batch);
            let next = next_of.entry(hash_of(&batch.user)).or_default();
            let fits =
                |(writes, of_them): &(Vec<Folded>, usize)| writes.len() < WRITES_MAX && of_them + bytes <= BYTES_MAX;
            let place = entries.iter().skip(*next).position(fits).map_or(entries.len(), |behind| *next + behind);
            *next = place + 1;
            if place == entries.len() {
                entries.push((Vec::new(), 0));
            }
            entries[place].0.push(Folded { batch, deadline, answer });
            entries[place].1 += bytes;
            taken += 1;
        }
        entries.into_iter().map(|(writes, _)| writes).collect()
    }

    /// A task's entry is under way no more. `true`: others wait, and it goes on with them; else it ended.
    pub(super) fn goes_on(&self) -> bool {
        let mut line = self.line();
        let goes_on = !line.waiting.is_empty();
        line.tasks -= usize::from(!goes_on);
        goes_on
    }

    /// A task ended in the middle: what waited is told that its outcome is unknown, and the next write begins anew.
    pub(super) fn fell(&self) {
        let mut line = self.line();
        line.tasks -= 1;
        line.gathering = false;
        line.waiting.clear();
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash_of(user: &UserId) -> u64 {
    let mut hasher = DefaultHasher::new();
    user.hash(&mut hasher);
    hasher.finish()
}

impl Line {
    /// While nothing can be committed callers give up one after the other, and nobody takes.
    fn sweep(&mut self) {
        if self.waiting.len() < self.swept_at.max(WRITES_MAX) {
            return;
        }
        self.waiting.retain(|one| one.batch.strong_count() > 0 && !one.answer.is_closed());
        self.swept_at = self.waiting.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use holdfast_model::command::{Content, Guard, Mutation};
    use holdfast_model::id::{Collection, RecordId, RequestId};

    use super::*;

    fn write(user: &str, number: u8, payload: usize) -> Arc<WriteBatch> {
        let content =
            Content { content_type: String::new(), payload: Bytes::from(vec![number; payload]), ttl_seconds: 0 };
        let key = RecordKey {
            collection: Collection::new("contacts").expect("a collection"),
            record_id: RecordId::new("c1").expect("an id"),
        };
        Arc::new(WriteBatch {
            user: UserId::new(user).expect("a user"),
            request_id: RequestId([number; 16]),
            fingerprint: [0; 16],
            first_sent: None,
            device: None,
            if_head: None,
            if_incarnation: None,
            mutations: vec![Mutation { key, op: Op::Put(content), guard: Guard::None }],
        })
    }

    struct Scene {
        folder: Folder,
        /// Callers that wait still.
        callers: Vec<(Arc<WriteBatch>, oneshot::Receiver<Answer>)>,
    }

    impl Scene {
        fn new() -> Self {
            Self { folder: Folder::default(), callers: Vec::new() }
        }

        /// As many tasks have entries under way as may be.
        fn busy() -> Self {
            let mut scene = Self::new();
            for number in 0..TASKS_MAX {
                assert!(scene.enter(number as u8, 1), "{number}");
                assert_eq!(scene.take(), [[number as u8]]);
            }
            scene
        }

        /// Of a user of its own.
        fn enter(&mut self, number: u8, payload: usize) -> bool {
            self.enter_of(&format!("user-{}", self.callers.len()), number, payload)
        }

        fn enter_of(&mut self, user: &str, number: u8, payload: usize) -> bool {
            let batch = write(user, number, payload);
            let (answered, begins) = self.folder.enter(&batch, Instant::now() + Duration::from_secs(5));
            self.callers.push((batch, answered));
            begins
        }

        fn take(&self) -> Vec<Vec<u8>> {
            let numbers = |entry: &Vec<Folded>| entry.iter().map(|one| one.batch.request_id.0[0]).collect();
            self.folder.take().iter().map(numbers).collect()
        }
    }

    #[tokio::test]
    async fn what_comes_before_a_task_takes_goes_along_in_the_order_in_which_it_came() {
        let mut scene = Scene::new();
        let begun: Vec<bool> = (10..20).map(|number| scene.enter(number, 10)).collect();
        assert_eq!(begun, [vec![true], vec![false; 9]].concat());
        assert_eq!(scene.take(), [(10..20).collect::<Vec<_>>()]);
        // It is under way: what comes now begins the next task, up to the last.
        assert!(scene.enter(20, 10) && !scene.enter(21, 10));
        assert_eq!(scene.take(), [[20, 21]]);
        assert!(!scene.enter(22, 10) && !scene.enter(23, 10));
        assert!(scene.folder.goes_on(), "the first one goes on with what waits");
        assert_eq!(scene.take(), [[22, 23]]);
        assert!(!scene.folder.goes_on() && !scene.folder.goes_on());
        assert!(scene.enter(24, 10), "nothing is under way any more");
    }

    #[tokio::test]
    async fn an_entry_is_no_larger_than_it_may_be_unless_one_alone_is() {
        let mut scene = Scene::busy();
        for (number, payload) in
            [(10, BYTES_MAX / 2), (11, BYTES_MAX / 3), (12, BYTES_MAX / 3), (13, BYTES_MAX * 2), (14, 1)]
        {
            scene.enter(number, payload);
        }
        assert_eq!(scene.take(), [vec![10, 11, 14], vec![12], vec![13]]);
        let mut scene = Scene::busy();
        (0..TAKEN_MAX + 1).for_each(|number| _ = scene.enter(number as u8, 1));
        let lengths: Vec<usize> = scene.take().iter().map(Vec::len).collect();
        assert_eq!(lengths, [WRITES_MAX; TAKEN_MAX / WRITES_MAX]);
        assert_eq!(scene.take().len(), 1, "the last one");
    }

    #[tokio::test]
    async fn an_entry_has_no_two_writes_of_one_user_and_theirs_keep_their_order() {
        let mut scene = Scene::busy();
        for (user, number) in [("ann", 10), ("bob", 11), ("ann", 12), ("eve", 13), ("ann", 14), ("bob", 15)] {
            scene.enter_of(user, number, 10);
        }
        assert_eq!(scene.take(), [vec![10, 11, 13], vec![12, 15], vec![14]]);
        // Also where the first entry is full for a large one, and not for the small one behind it.
        scene.enter(20, BYTES_MAX - 200);
        scene.enter_of("ann", 21, 1000);
        scene.enter_of("ann", 22, 1);
        assert_eq!(scene.take(), [vec![20], vec![21], vec![22]]);
    }

    #[tokio::test]
    async fn who_gave_up_is_not_proposed_and_holds_no_memory() {
        let mut scene = Scene::busy();
        scene.callers.clear();
        (10..14).for_each(|number| _ = scene.enter(number, 10));
        let (given_up, _) = scene.callers.remove(1);
        assert_eq!(Arc::strong_count(&given_up), 1, "nothing else holds its payload");
        drop(given_up);
        // One that holds its batch still, and listens no more.
        drop(std::mem::replace(&mut scene.callers[1].1, oneshot::channel().1));
        assert_eq!(scene.take(), [[10, 13]]);
        // And where nobody takes, the line does not grow for ever.
        for number in 0..WRITES_MAX * 10 {
            scene.callers.clear();
            scene.enter(number as u8, 10);
        }
        assert!(scene.folder.line().waiting.len() <= WRITES_MAX * 2);
    }

    #[tokio::test]
    async fn who_waits_is_known_by_user_and_request_until_it_goes_or_gives_up() {
        let mut scene = Scene::busy();
        scene.enter_of("ann", 10, 1);
        scene.enter_of("bob", 11, 1);
        let holds = |scene: &Scene, user, number| scene.folder.holds(&write(user, number, 5));
        assert!(holds(&scene, "ann", 10) && holds(&scene, "bob", 11));
        assert!(!holds(&scene, "bob", 10) && !holds(&scene, "ann", 11));
        drop(scene.callers.pop());
        assert!(!holds(&scene, "bob", 11), "it gave up");
        scene.take();
        assert!(!holds(&scene, "ann", 10), "it is on its way to the log");
    }

    #[tokio::test]
    async fn a_task_that_falls_keeps_nobody_from_beginning_another() {
        let mut scene = Scene::busy();
        scene.enter(10, 1);
        let (_, answered) = scene.callers.pop().expect("it waits");
        scene.folder.fell();
        answered.await.expect_err("its outcome is unknown");
        assert!(scene.enter(11, 1));
    }
}
