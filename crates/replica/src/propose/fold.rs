//! Folding: writes that wait share an entry.
//!
//! Much of what an entry costs every replica does not depend on what is in it: an id, hashes, a call to each peer, several hops
//! between threads. So while as many entries of writes are under way as keep disks and peers busy, writes that come meanwhile
//! wait, and what waited goes as one entry. Who comes while little is under way gathers those that come in the same turn of the
//! scheduler, and waits for nobody.
//!
//! Invariants: writes are proposed in the order in which they came; an entry of several is no unit, each of them commits or fails
//! by itself; a write whose caller gave up while it waited is never proposed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use holdfast_model::command::{Op, WriteBatch};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Local, ProposeError};

/// Entries of writes under way at which others wait: one is on its way to disks, one is applied.
const UNDER_WAY_MAX: usize = 2;
/// Writes in an entry.
const WRITES_MAX: usize = 256;
/// Bytes of payloads in an entry. A write that has as many goes alone, and waits for nobody.
const BYTES_MAX: usize = 256 << 10;
/// What a change is besides its payload, about.
const CHANGE_BYTES: usize = 128;

/// Writes that wait at one node.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    under_way: usize,
    /// One of them is about to go, and takes along whoever comes until then.
    gathering: bool,
    waiting: VecDeque<Waiting>,
}

/// A write that waits. Its caller holds it: who gives up takes it along.
#[derive(Debug)]
struct Waiting {
    batch: Weak<WriteBatch>,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

pub(super) type Answer = Result<Local, ProposeError>;

/// What became of a write that came.
#[derive(Debug)]
pub(super) enum Turn {
    /// It goes now, as [`Folder::begin`] says.
    Now,
    /// It goes with others.
    Later(oneshot::Receiver<Answer>),
}

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
        Op::Put(content) => content.payload.len(),
        Op::Delete => 0,
    };
    batch.mutations.iter().map(|mutation| CHANGE_BYTES + of(&mutation.op)).sum()
}

/// True for a write that goes alone, whatever waits.
pub(super) fn is_large(batch: &WriteBatch) -> bool {
    bytes_of(batch) >= BYTES_MAX / 4
}

impl Folder {
    /// A write came. True: it goes now. Whoever asked gathers ([`Folder::gathered`]) and proposes, or lets go
    /// ([`Folder::let_go`]), and says when that is under way no more ([`Folder::next`]).
    pub(super) fn begin(&self) -> bool {
        self.line().begin()
    }

    /// Nobody is gathered any more; what came waits for the next entry.
    pub(super) fn let_go(&self) {
        self.line().gathering = false;
    }

    /// What came since [`Folder::begin`] goes with the write that began, which has so many bytes.
    pub(super) fn gathered(&self, own: usize) -> Vec<Folded> {
        let mut line = self.line();
        line.gathering = false;
        line.take(1, own)
    }

    /// It came, and could not go at once.
    pub(super) fn enter(&self, batch: &Arc<WriteBatch>, deadline: Instant) -> Turn {
        let mut line = self.line();
        if line.begin() {
            return Turn::Now;
        }
        let (answer, answered) = oneshot::channel();
        line.waiting.push_back(Waiting { batch: Arc::downgrade(batch), deadline, answer });
        Turn::Later(answered)
    }

    /// An entry is under way no more: what goes next. Nothing = nobody waits.
    pub(super) fn next(&self) -> Vec<Folded> {
        let mut line = self.line();
        let next = line.take(0, 0);
        if next.is_empty() {
            line.under_way -= 1;
        }
        next
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn begin(&mut self) -> bool {
        let goes = self.under_way < UNDER_WAY_MAX && !self.gathering;
        self.under_way += usize::from(goes);
        self.gathering |= goes;
        goes
    }

    /// The first that wait and fit into an entry with `writes` others of so many bytes.
    fn take(&mut self, writes: usize, mut bytes: usize) -> Vec<Folded> {
        let mut taken = Vec::new();
        while writes + taken.len() < WRITES_MAX
            && let Some(first) = self.waiting.front()
        {
            let batch = first.batch.upgrade().filter(|_| !first.answer.is_closed());
            let of_it = batch.as_deref().map_or(0, bytes_of);
            if writes + taken.len() > 0 && bytes + of_it > BYTES_MAX {
                break;
            }
            bytes += of_it;
            if let (Some(batch), Some(Waiting { deadline, answer, .. })) = (batch, self.waiting.pop_front()) {
                taken.push(Folded { batch, deadline, answer });
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use holdfast_model::command::{Content, Guard, Mutation};
    use holdfast_model::id::{Collection, RecordId, RecordKey, RequestId, UserId};

    use super::*;

    fn write(number: u8, payload: usize) -> Arc<WriteBatch> {
        let content =
            Content { content_type: String::new(), payload: Bytes::from(vec![number; payload]), ttl_seconds: 0 };
        let key = RecordKey {
            collection: Collection::new("contacts").expect("a collection"),
            record_id: RecordId::new("c1").expect("an id"),
        };
        Arc::new(WriteBatch {
            user: UserId::new("ann").expect("a user"),
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
        /// As many are under way as may be.
        fn busy() -> Self {
            let folder = Folder::default();
            for number in 0..UNDER_WAY_MAX {
                assert!(folder.begin(), "{number}");
                assert_eq!(folder.gathered(1).len(), 0, "nobody else came");
            }
            Self { folder, callers: Vec::new() }
        }

        fn enter(&mut self, number: u8, payload: usize) {
            let batch = write(number, payload);
            match self.folder.enter(&batch, soon()) {
                Turn::Later(answered) => self.callers.push((batch, answered)),
                Turn::Now => panic!("{number} does not wait"),
            }
        }

        fn next(&self) -> Vec<u8> {
            self.folder.next().iter().map(|one| one.batch.request_id.0[0]).collect()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn what_waits_goes_together_in_the_order_in_which_it_came() {
        let mut scene = Scene::busy();
        (10..20).for_each(|number| scene.enter(number, 10));
        assert_eq!(scene.next(), (10..20).collect::<Vec<_>>());
        // It took the place of the one that ended: the other one ends, and nobody waits.
        assert_eq!(scene.next(), [0u8; 0]);
        assert!(matches!(scene.folder.enter(&write(30, 1), soon()), Turn::Now));
        assert_eq!(scene.folder.gathered(1).len(), 0);
        scene.enter(31, 1);
        assert_eq!(scene.next(), [31]);
    }

    #[tokio::test]
    async fn who_begins_gathers_those_that_come_meanwhile() {
        let mut scene = Scene { folder: Folder::default(), callers: Vec::new() };
        assert!(scene.folder.begin());
        (10..13).for_each(|number| scene.enter(number, 10));
        scene.enter(13, BYTES_MAX - 100);
        let gathered = scene.folder.gathered(200);
        assert_eq!(gathered.iter().map(|one| one.batch.request_id.0[0]).collect::<Vec<_>>(), [10, 11, 12]);
        // One gathers at a time, and who was cancelled meanwhile keeps nobody.
        assert!(scene.folder.begin());
        scene.enter(14, 10);
        scene.folder.let_go();
        assert_eq!(scene.next(), [13]);
        assert_eq!(scene.next(), [14]);
        assert_eq!([scene.next(), scene.next()], [[0u8; 0]; 2]);
        assert!(scene.folder.begin());
    }

    #[tokio::test]
    async fn an_entry_is_no_larger_than_it_may_be_unless_one_alone_is() {
        let mut scene = Scene::busy();
        scene.enter(10, BYTES_MAX / 2);
        scene.enter(11, BYTES_MAX / 3);
        scene.enter(12, BYTES_MAX / 3);
        scene.enter(13, BYTES_MAX * 2);
        scene.enter(14, 1);
        assert_eq!(
            [scene.next(), scene.next(), scene.next(), scene.next()],
            [vec![10, 11], vec![12], vec![13], vec![14]]
        );
        let mut scene = Scene::busy();
        (0..WRITES_MAX + 1).for_each(|number| scene.enter(number as u8, 1));
        assert_eq!([scene.next().len(), scene.next().len()], [WRITES_MAX, 1]);
    }

    #[tokio::test]
    async fn who_gave_up_is_not_proposed_and_holds_no_memory() {
        let mut scene = Scene::busy();
        (10..14).for_each(|number| scene.enter(number, 10));
        let (given_up, _) = scene.callers.remove(1);
        assert_eq!(Arc::strong_count(&given_up), 1, "nothing else holds its payload");
        drop(given_up);
        // One that holds its batch still, and listens no more.
        drop(std::mem::replace(&mut scene.callers[1].1, oneshot::channel().1));
        assert_eq!(scene.next(), [10, 13]);
        // Where all of them gave up nobody waits.
        (10..14).for_each(|number| scene.enter(number, 10));
        scene.callers.clear();
        assert_eq!(scene.next(), [0u8; 0]);
        assert!(matches!(scene.folder.enter(&write(30, 1), soon()), Turn::Now));
    }
}
