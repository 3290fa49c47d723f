//! Where shipping stands on this node's own history.
//!
//! Invariants: the chain is that of this node's own entries. What a destination holds is compared with it at every step,
//! also where another shipper was first and went further. A fork stops a cluster for good, so that none is told before it is
//! proved: what this node merely did not apply yet, or another leader may have committed since, is no fork.

use std::time::Duration;

use holdfast_archive::{ArchiveError, SegmentShipper, ShipOutcome};
use holdfast_model::command::OffsiteFact;
use holdfast_store::{Applied, LogPosition, StoredEntry};
use holdfast_wire::log::entry_chain;
use tokio::time::sleep;

const PAUSE: Duration = Duration::from_millis(50);

/// What this node applied.
pub(super) trait OwnLog {
    /// How far.
    fn applied(&self) -> Applied;

    /// Everything that was committed before this call lies at or before this index; `None` = this node cannot tell, since it
    /// does not lead any more, or no quorum confirms that it does.
    async fn committed(&self) -> Option<u64>;

    /// Its log begins with this entry; what lies before was purged.
    fn begins(&self) -> u64;

    /// Entries of `[start, end)`: the first of them at least, and as many as make one segment.
    async fn entries(&self, start: u64, end: u64) -> Result<Vec<StoredEntry>, ArchiveError>;

    /// The same out of the log of another node. What comes from there is compared with the entry chain before it is shipped.
    async fn lent(&self, start: u64, end: u64) -> Result<Vec<StoredEntry>, ArchiveError>;
}

/// Entries that this node's own log does not hold any more, proved to be of its history.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lent {
    /// Up to here, the entry chain is this.
    marks: Vec<(u64, [u8; 32])>,
}

/// The place where the next segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Course {
    /// Its first index.
    pub next: u64,
    /// Entry chain before it.
    pub chain: [u8; 32],
}

impl Course {
    /// The chain here, continued by this node's log, must give this node's own chain. What its log does not hold any more comes
    /// from other nodes, and is to be shipped first.
    pub async fn check(&self, own: &impl OwnLog, url: &str) -> Result<Lent, ArchiveError> {
        let is_applied = match self.next.checked_sub(1) {
            Some(last) => is_applied(own, last, url).await?,
            None => true,
        };
        let applied = own.applied();
        let fork = |reason: &str| ArchiveError::LineageFork {
            position: applied.position.unwrap_or(LogPosition { term: 0, node: 0, index: 0 }),
            object: url.to_owned(),
            reason: reason.to_owned(),
        };
        if !is_applied {
            return Err(fork("it is ahead of everything that is committed here"));
        }
        let (lent, here) = self.lent(own, applied.index() + 1).await?;
        if here.continued(own, applied.index() + 1).await? == applied.entry_chain {
            return Ok(lent);
        }
        if lent != Lent::default() {
            // Whose history it is not, the archive's or that node's, nobody can tell.
            let reason = format!("what other nodes hold of the log from {} on does not lead to this node's", self.next);
            return Err(ArchiveError::Refused { reason });
        }
        Err(fork("its entries, continued by this node's log, are not this node's history"))
    }

    /// Looks through the entries before `end` that other nodes must lend, and gives the place behind them.
    async fn lent(&self, own: &impl OwnLog, end: u64) -> Result<(Lent, Self), ArchiveError> {
        let (mut lent, mut here) = (Lent::default(), *self);
        while here.next < own.begins() {
            let entries = own.lent(here.next, end.min(own.begins())).await?;
            here.chain = entries.iter().fold(here.chain, |chain, entry| entry_chain(chain, &entry.bytes));
            here.next += entries.len() as u64;
            lent.marks.push((here.next - 1, here.chain));
        }
        Ok((lent, here))
    }

    /// What lies before this place must be of this history, though no log tells any more: a fact of the same entry, as it was
    /// shipped, has its chain. `applied` = an entry of this history, for the error.
    pub fn check_fact(&self, fact: Option<&OffsiteFact>, applied: LogPosition, url: &str) -> Result<(), ArchiveError> {
        match fact.filter(|fact| fact.index.checked_add(1) == Some(self.next)) {
            Some(fact) if fact.chain != self.chain => Err(ArchiveError::LineageFork {
                position: applied,
                object: url.to_owned(),
                reason: format!("its last entry {} is not the one that was shipped there", fact.index),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Ships what other nodes lend.
    pub async fn ship_lent(
        &mut self,
        own: &impl OwnLog,
        shipper: &mut SegmentShipper,
        lent: Lent,
    ) -> Result<(), ArchiveError> {
        for (through, chain) in lent.marks {
            let (mut entries, mut next) = (Vec::new(), self.next);
            while next <= through {
                let more = own.lent(next, through + 1).await?;
                next += more.len() as u64;
                entries.extend(more);
            }
            let linked = entries.iter().fold(self.chain, |chain, entry| entry_chain(chain, &entry.bytes));
            if self.next <= through && linked != chain {
                let reason =
                    format!("the entries up to {through} that another node lent are not what they were before");
                return Err(ArchiveError::Refused { reason });
            }
            while self.next <= through {
                let rest = entries.partition_point(|entry| entry.position.index < self.next);
                self.ship(own, shipper, &entries[rest..]).await?;
            }
        }
        Ok(())
    }

    /// Ships entries that begin here, and goes on to where the segment ended, whoever wrote it.
    pub async fn ship(
        &mut self,
        own: &impl OwnLog,
        shipper: &mut SegmentShipper,
        entries: &[StoredEntry],
    ) -> Result<(), ArchiveError> {
        let outcome = shipper.ship(entries, self.chain).await?;
        let tail = outcome.tail();
        let taken = entries.iter().take_while(|entry| entry.position.index <= tail.last.index);
        let (chain, last) = taken
            .fold((self.chain, None), |(chain, _), entry| (entry_chain(chain, &entry.bytes), Some(entry.position)));
        let ours = match outcome {
            ShipOutcome::Adopted { .. } if last.is_none_or(|last| last.index < tail.last.index) => {
                self.own_end(own, tail.last.index, &shipper.destination().config().url).await?
            }
            ShipOutcome::Adopted { .. } | ShipOutcome::Created { .. } => last.map(|last| (last, chain)),
        };
        tail.check(shipper.destination(), ours)?;
        *self = Self { next: tail.last.index + 1, chain: tail.chain };
        Ok(())
    }

    /// This node's entry at `index`, and its chain there; `None` = that much is not committed here.
    async fn own_end(
        &self,
        own: &impl OwnLog,
        index: u64,
        url: &str,
    ) -> Result<Option<(LogPosition, [u8; 32])>, ArchiveError> {
        if !is_applied(own, index, url).await? {
            return Ok(None);
        }
        let chain = self.continued(own, index + 1).await?;
        let last = own.entries(index, index + 1).await?;
        Ok(last.first().map(|entry| (entry.position, chain)))
    }

    /// The chain here, continued by this node's entries before `end`.
    async fn continued(&self, own: &impl OwnLog, end: u64) -> Result<[u8; 32], ArchiveError> {
        let (mut at, mut chain) = (self.next, self.chain);
        while at < end {
            let entries = own.entries(at, end).await?;
            chain = entries.iter().fold(chain, |chain, entry| entry_chain(chain, &entry.bytes));
            at += entries.len() as u64;
        }
        Ok(chain)
    }
}

/// Waits until this node applied entry `index`, which `url` was seen to hold; false = it is not committed here, for certain:
/// what is shipped was committed before, and a quorum confirmed since then how far that is.
async fn is_applied(own: &impl OwnLog, index: u64, url: &str) -> Result<bool, ArchiveError> {
    while own.applied().index() < index {
        match own.committed().await {
            Some(committed) if committed < index => return Ok(false),
            // A new leader may still be applying what was committed before it.
            Some(_) => sleep(PAUSE).await,
            None => return Err(ArchiveError::Unconfirmed { object: url.to_owned(), index }),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use bytes::Bytes;
    use holdfast_archive::{Destination, DestinationConfig, LineageFacts, LineageId, OpenLineage};
    use holdfast_model::id::{GroupId, Incarnation};
    use holdfast_wire::internal::v1 as pb;
    use holdfast_wire::log::{Entry, EntryPayload, encode_entry};

    use super::*;

    /// What leads a node.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Lead {
        /// It applied all that is committed.
        All,
        /// It applies one more entry whenever it is asked how far that is.
        Slow(u64),
        /// No quorum confirms that it leads.
        Alone,
    }

    /// A node that applied these.
    struct Log(Vec<StoredEntry>, Cell<Lead>);

    /// A node that purged what lies before an entry; another one lends it, and may lie.
    struct Short {
        own: Log,
        begins: u64,
        lender: Log,
        lends: Cell<u64>,
    }

    impl OwnLog for Short {
        fn applied(&self) -> Applied {
            self.own.applied()
        }

        async fn committed(&self) -> Option<u64> {
            self.own.committed().await
        }

        fn begins(&self) -> u64 {
            self.begins
        }

        async fn entries(&self, start: u64, end: u64) -> Result<Vec<StoredEntry>, ArchiveError> {
            assert!(start >= self.begins, "it has entry {start} no more");
            self.own.entries(start, end).await
        }

        async fn lent(&self, start: u64, end: u64) -> Result<Vec<StoredEntry>, ArchiveError> {
            if self.lends.get() == 0 {
                return Err(ArchiveError::LogGone { index: start, unanswered: None });
            }
            self.lends.set(self.lends.get() - 1);
            self.lender.entries(start, end).await
        }
    }

    impl OwnLog for Log {
        async fn committed(&self) -> Option<u64> {
            match self.1.get() {
                Lead::All => self.0.last().map(|entry| entry.position.index),
                Lead::Slow(applied) => {
                    self.1.set(Lead::Slow(applied + 1));
                    self.0.last().map(|entry| entry.position.index)
                }
                Lead::Alone => None,
            }
        }

        fn applied(&self) -> Applied {
            let applied = match self.1.get() {
                Lead::All | Lead::Alone => self.0.len(),
                Lead::Slow(applied) => self.0.len().min(applied as usize),
            };
            let applied = &self.0[..applied];
            let entry_chain = applied.iter().fold([0; 32], |chain, entry| entry_chain(chain, &entry.bytes));
            Applied {
                position: applied.last().map(|entry| entry.position),
                membership: Bytes::new(),
                entry_chain,
                effect_chain: [0; 32],
            }
        }

        fn begins(&self) -> u64 {
            0
        }

        async fn entries(&self, start: u64, end: u64) -> Result<Vec<StoredEntry>, ArchiveError> {
            Ok(self.0.iter().filter(|entry| (start..end).contains(&entry.position.index)).take(2).cloned().collect())
        }

        async fn lent(&self, start: u64, _end: u64) -> Result<Vec<StoredEntry>, ArchiveError> {
            Err(ArchiveError::LogGone { index: start, unanswered: None })
        }
    }

    /// `common` entries of term 1 and then those of another leader, up to `end`.
    fn log(common: u64, term: u64, end: u64) -> Log {
        let entry = |index| {
            let term = if index < common { 1 } else { term };
            let bytes = encode_entry(&Entry { id: pb::LogId { term, node: 1, index }, payload: EntryPayload::Blank });
            StoredEntry { position: LogPosition { term, node: 1, index }, bytes }
        };
        Log((0..end).map(entry).collect(), Cell::new(Lead::All))
    }

    const START: Course = Course { next: 0, chain: [0; 32] };

    async fn shipper(dir: &tempfile::TempDir) -> SegmentShipper {
        let url = format!("file://{}", dir.path().display());
        let destination = Destination::open(&DestinationConfig::from_url(&url)).expect("opens");
        let facts = LineageFacts {
            id: LineageId { cluster_id: [7; 16], incarnation: Incarnation(7) },
            cluster_name: "pine".into(),
            epoch: 1,
            parent: None,
            groups: 1,
        };
        let mut shipper = SegmentShipper::new(OpenLineage::open(destination, &facts).await.expect("opens"), GroupId(0));
        shipper.tail().await.expect("a tail");
        shipper
    }

    /// Two shippers that saw an empty archive; `winner` ships the entries before `length`, then `second` those before
    /// `given`. Gives what became of the second.
    async fn race(winner: &Log, length: u64, second: &Log, given: u64) -> Result<Course, ArchiveError> {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut first, mut other) = (shipper(&dir).await, shipper(&dir).await);
        let mut course = START;
        course.ship(winner, &mut first, &winner.0[..length as usize]).await.expect("ships");
        let mut course = START;
        course.ship(second, &mut other, &second.0[..given as usize]).await.map(|()| course)
    }

    #[tokio::test]
    async fn what_another_shipper_wrote_beyond_the_own_entries_is_compared_too() {
        let own = log(10, 1, 10);
        for (length, given) in [(4, 6), (6, 6), (6, 4)] {
            let course = race(&own, length, &own, given).await.expect("one history");
            let chain = own.0[..length as usize].iter().fold([0; 32], |chain, entry| entry_chain(chain, &entry.bytes));
            assert_eq!(course, Course { next: length, chain });
        }
        // Equal in all that was given, and another history behind it.
        let error = race(&log(5, 2, 10), 7, &own, 5).await.expect_err("a fork");
        let is_fork = |error: &ArchiveError, at| match error {
            ArchiveError::LineageFork { position, .. } => assert_eq!(position.index, at, "{error}"),
            other => panic!("no fork: {other}"),
        };
        is_fork(&error, 6);
        // The same, where this node ends before it.
        let error = race(&log(5, 2, 12), 12, &log(5, 1, 5), 5).await.expect_err("a fork");
        is_fork(&error, 11);
    }

    #[tokio::test]
    async fn a_chain_that_this_log_does_not_continue_is_a_fork() {
        let own = log(10, 1, 10);
        let at = |log: &Log, next: u64| Course {
            next,
            chain: log.0[..next as usize].iter().fold([0; 32], |chain, entry| entry_chain(chain, &entry.bytes)),
        };
        for next in [0, 4, 10] {
            at(&own, next).check(&own, "file:///a").await.expect("its own");
        }
        let error = at(&log(3, 2, 10), 4).check(&own, "file:///a").await.expect_err("a fork");
        assert!(error.to_string().contains("file:///a"), "{error}");
    }

    #[tokio::test]
    async fn an_archive_that_is_ahead_is_a_fork_only_once_a_quorum_says_so() {
        let chain = log(10, 1, 10).0.iter().fold([0; 32], |chain, entry| entry_chain(chain, &entry.bytes));
        let archive = Course { next: 10, chain };
        let with = |lead, end| {
            let log = log(10, 1, end);
            log.1.set(lead);
            log
        };
        // It has all that is there, and is slow to apply it.
        let slow = with(Lead::Slow(2), 12);
        archive.check(&slow, "file:///a").await.expect("its own");
        assert_ne!(slow.1.get(), Lead::Slow(2), "it was asked");
        let own_end = archive.own_end(&with(Lead::Slow(11), 12), 11, "file:///a").await.expect("its own");
        assert_eq!(own_end.map(|(position, _)| position.index), Some(11));
        // Another may lead since, and have committed what is there.
        let unknown = archive.check(&with(Lead::Alone, 5), "file:///a").await.expect_err("nobody knows");
        assert!(matches!(&unknown, ArchiveError::Unconfirmed { index: 9, .. }), "{unknown}");
        let unknown = archive.own_end(&with(Lead::Alone, 5), 11, "file:///a").await.expect_err("nobody knows");
        assert!(matches!(&unknown, ArchiveError::Unconfirmed { index: 11, .. }), "{unknown}");
        // It leads, and less than that is committed.
        let fork = archive.check(&with(Lead::All, 5), "file:///a").await.expect_err("a fork");
        assert!(matches!(&fork, ArchiveError::LineageFork { position, .. } if position.index == 4), "{fork}");
        assert_eq!(archive.own_end(&with(Lead::All, 5), 11, "file:///a").await.expect("it is sure"), None);
    }

    #[tokio::test]
    async fn what_another_node_lends_is_proved_before_it_is_shipped() {
        let short = |lender: Log, lends| Short { own: log(20, 1, 20), begins: 9, lender, lends: Cell::new(lends) };
        let dir = tempfile::tempdir().expect("tempdir");
        let mut shipper = shipper(&dir).await;
        let mut course = START;
        let honest = short(log(20, 1, 20), u64::MAX);
        let lent = course.check(&honest, "file:///a").await.expect("its own");
        assert_eq!(lent.marks.iter().map(|(through, _)| *through).collect::<Vec<_>>(), [1, 3, 5, 7, 8]);
        course.ship_lent(&honest, &mut shipper, lent).await.expect("ships");
        assert_eq!(course.next, 9, "from here on it has them itself");
        assert_eq!(course.check(&honest, "file:///a").await.expect("its own"), Lent::default());
        course.ship(&honest, &mut shipper, &honest.own.0[9..]).await.expect("ships");
        assert_eq!(course.next, 20);

        // Another history: no fork of the archive is told, for it may be the lender's.
        let error = START.check(&short(log(5, 2, 20), u64::MAX), "file:///a").await.expect_err("not its own");
        assert!(matches!(error, ArchiveError::Refused { .. }), "{error}");
        // The second time it is asked it gives something else.
        let dir = tempfile::tempdir().expect("tempdir");
        let mut shipper = self::shipper(&dir).await;
        let lent = START.check(&honest, "file:///a").await.expect("its own");
        let mut course = START;
        let error =
            course.ship_lent(&short(log(5, 2, 20), u64::MAX), &mut shipper, lent).await.expect_err("other entries");
        assert!(matches!(error, ArchiveError::Refused { .. }), "{error}");
        assert_eq!(course.next, 4, "nothing of it was shipped");
        // Nobody has them.
        let gone = START.check(&short(log(20, 1, 20), 2), "file:///a").await.expect_err("gone");
        assert!(matches!(gone, ArchiveError::LogGone { index: 4, unanswered: None }), "{gone}");
    }

    #[test]
    fn where_no_log_tells_any_more_a_fact_tells_of_a_fork() {
        let applied = LogPosition { term: 1, node: 1, index: 30 };
        let course = Course { next: 10, chain: [1; 32] };
        let fact = |index, chain| OffsiteFact {
            destination: "vault".into(),
            index,
            chain,
            verifier: holdfast_model::id::NodeId(1),
            at: holdfast_model::id::Millis(0),
        };
        course.check_fact(Some(&fact(9, [1; 32])), applied, "file:///a").expect("the same");
        // Of another entry it tells nothing.
        course.check_fact(Some(&fact(8, [2; 32])), applied, "file:///a").expect("not known");
        course.check_fact(None, applied, "file:///a").expect("not known");
        let error = course.check_fact(Some(&fact(9, [2; 32])), applied, "file:///a").expect_err("a fork");
        assert!(matches!(error, ArchiveError::LineageFork { .. }), "{error}");
    }
}
