//! The outbox: the part of the log that a required destination does not hold yet, and what it may take of the disk.
//!
//! Nothing is copied for shipping: an entry stays in the log until every required destination holds it. What a destination
//! that is away would let grow without end has a budget. Past it a group either takes no writes, so that nothing is lost
//! that was acknowledged ([`PastBudget::ReadOnly`]), or forgets the oldest entries though they are not offsite
//! ([`PastBudget::AcceptRisk`]): the archive there has a gap then, and a snapshot behind it.
//!
//! Invariant: nothing that is not offsite is forgotten unless the configuration accepts that risk, and then it is said.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use holdfast_model::state::Sys;
use holdfast_store::{LogStore, StoreError, StoredEntry};
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::log::decode_entry;
use tokio::time::{Duration, timeout};

use crate::handle::Replica;
use crate::rooms::Weight;

/// A peer that does not answer in this time is not asked on.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// More than this is not sent in one answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What happens when the outbox is over its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PastBudget {
    /// Writes are refused until a destination took enough.
    #[default]
    ReadOnly,
    /// The oldest entries are forgotten, though a required destination does not hold them.
    AcceptRisk,
}

/// How much of the log is kept for destinations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutboxOptions {
    /// Destinations that must hold an entry before the log forgets it.
    pub required: Vec<String>,
    /// Bytes of entries that may wait for one of them.
    pub bytes_max: u64,
    /// What happens beyond that.
    pub past: PastBudget,
}

/// The outbox as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outbox {
    /// Bytes of entries that a required destination does not hold, as far as it is known.
    pub bytes: u64,
    /// Allowed.
    pub bytes_max: u64,
    /// What happens beyond that.
    pub past: PastBudget,
    /// This node's log begins behind what a required destination holds: it forgot entries that are not there.
    pub forgot: bool,
}

impl Outbox {
    /// It is over its budget.
    pub fn is_full(self) -> bool {
        self.bytes > self.bytes_max
    }
}

/// Last entry that every required destination holds; all of it where none is required.
fn held_offsite(sys: &Sys, required: &[String]) -> u64 {
    required.iter().map(|name| sys.offsite.get(name).map_or(0, |fact| fact.index)).min().unwrap_or(u64::MAX)
}

/// Last entry that the log need not keep for a destination. `frugal` = the disk is nearly full.
pub(crate) fn released(options: &OutboxOptions, sys: &Sys, log: &LogStore, frugal: bool) -> u64 {
    let held = held_offsite(sys, &options.required);
    match options.past {
        PastBudget::ReadOnly => held,
        // The cluster's own life counts more than its archive's: that is the risk.
        PastBudget::AcceptRisk if frugal => u64::MAX,
        PastBudget::AcceptRisk => log.bounded(held, options.bytes_max),
    }
}

/// Entries behind which the log is held, by number of the hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogHolds(Arc<Mutex<BTreeMap<u64, u64>>>);

/// Keeps the log behind an entry for as long as it lives.
#[derive(Debug)]
pub struct LogHold {
    holds: LogHolds,
    number: u64,
}

impl LogHolds {
    fn hold(&self, index: u64) -> LogHold {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = held.last_key_value().map_or(0, |(last, _)| last + 1);
        held.insert(number, index);
        LogHold { holds: self.clone(), number }
    }

    /// The lowest of them.
    pub(crate) fn lowest(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().min().copied()
    }
}

impl Drop for LogHold {
    fn drop(&mut self) {
        self.holds.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// What of a peer's wish for entries of `[start, end)` a node can fulfil that applied up to `applied`.
#[derive(Debug, PartialEq, Eq)]
enum Lends {
    /// Entries before this.
    Before(u64),
    /// Nothing, now and later: its log begins behind them, or ends before.
    Nothing,
    /// It may have them, and cannot say yet: what it does not tell would be given up for good.
    NotYet,
}

fn lends(first_held: u64, last_held: Option<u64>, applied: u64, start: u64, end: u64) -> Lends {
    if start < first_held || last_held.is_none_or(|last| last < start) {
        return Lends::Nothing;
    }
    // What is in the log and not applied may be replaced yet.
    match end.min(applied.saturating_add(1)) {
        end if end > start => Lends::Before(end),
        _ => Lends::NotYet,
    }
}

impl Replica {
    /// This node's log is not purged beyond `index` until what this gives is dropped, except on a disk that is nearly full.
    pub fn hold_log(&self, index: u64) -> LogHold {
        self.core.log_holds.hold(index)
    }

    /// The outbox, as it was measured a moment ago.
    pub fn outbox(&self) -> Outbox {
        let options = &self.options().outbox;
        let bytes = self.core.outbox_bytes.load(Ordering::Relaxed);
        let forgot = self.core.outbox_forgot.load(Ordering::Relaxed);
        Outbox { bytes, bytes_max: options.bytes_max, past: options.past, forgot }
    }

    pub(crate) fn measure_outbox(&self) {
        let held = held_offsite(&self.sys(), &self.options().outbox.required);
        let bytes = if held == u64::MAX { 0 } else { self.log().bytes_after(held) };
        self.core.outbox_bytes.store(bytes, Ordering::Relaxed);
        let forgot = self.log().purged().is_some_and(|purged| purged.index > held);
        self.core.outbox_forgot.store(forgot, Ordering::Relaxed);
    }

    /// As the leader: why a command is not taken, for people; `None` = it is. What the group needs to ship, to elect and to
    /// heal is.
    pub(crate) fn outbox_refuses(&self, weight: Weight) -> Option<String> {
        let outbox = self.outbox();
        if weight == Weight::Own || outbox.past == PastBudget::AcceptRisk || !outbox.is_full() {
            return None;
        }
        let sys = self.sys();
        let required = &self.options().outbox.required;
        let held = held_offsite(&sys, required);
        let behind = required.iter().filter(|name| sys.offsite.get(*name).map_or(0, |fact| fact.index) == held);
        let behind: Vec<&str> = behind.map(String::as_str).collect();
        let [bytes, bytes_max] = [outbox.bytes, outbox.bytes_max].map(|bytes| bytes >> 10);
        Some(format!(
            "{bytes} KiB of the log are not at {} yet, and {bytes_max} KiB may wait (ship.outbox_bytes)",
            behind.join(", ")
        ))
    }

    /// Committed entries of `[start, end)` out of the log of a member that still has them, as many as it sends at once; `None`
    /// = nobody does. What came from another node is the caller's to check against the entry chain.
    ///
    /// # Errors
    /// When somebody who may have them does not answer.
    pub async fn entries_of_peers(
        &self,
        start: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Option<Vec<StoredEntry>>, String> {
        let mut silent = Vec::new();
        for (node, mut client) in self.peers().all() {
            let request = pb::ReadLogRequest {
                group_id: self.group_id().0,
                start,
                end,
                bytes_max: bytes_max.min(ANSWER_BYTES_MAX) as u64,
            };
            match timeout(ASK_TIMEOUT, client.read_log(request)).await {
                Ok(Ok(answer)) => {
                    let entries = answer.into_inner().entries;
                    match stored(start, entries) {
                        Ok(read) if read.is_empty() => {}
                        Ok(read) => return Ok(Some(read)),
                        Err(error) => silent.push(format!("node {node}: {error}")),
                    }
                }
                Ok(Err(status)) => silent.push(format!("node {node}: {}", status.message())),
                Err(_) => silent.push(format!("node {node} does not answer")),
            }
        }
        if silent.is_empty() { Ok(None) } else { Err(silent.join("; ")) }
    }

    /// What a peer asked for: entries that this node applied, and so are committed. None of them = it will never have them.
    ///
    /// # Errors
    /// When it cannot say.
    pub(crate) fn read_log_for_peer(&self, request: &pb::ReadLogRequest) -> Result<pb::ReadLogResponse, String> {
        if self.integrity().withholds_state() {
            return Err("its state is in doubt, and says nothing of what is committed".into());
        }
        let (log, start) = (self.log(), request.start);
        let last = log.last().map(|last| last.index);
        let end = match lends(log.first_index(), last, self.applied_index(), start, request.end) {
            Lends::Before(end) => end,
            Lends::Nothing => return Ok(pb::ReadLogResponse::default()),
            Lends::NotYet => return Err(format!("it has not applied entry {start} yet")),
        };
        let bytes_max = usize::try_from(request.bytes_max).unwrap_or(usize::MAX).min(ANSWER_BYTES_MAX);
        match log.read(start, end, bytes_max) {
            Ok(entries) => Ok(pb::ReadLogResponse { entries: entries.into_iter().map(|entry| entry.bytes).collect() }),
            Err(StoreError::Purged { .. }) => Ok(pb::ReadLogResponse::default()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Entries as a peer sent them; the first must be `start`, and no index may be left out.
fn stored(start: u64, entries: Vec<Bytes>) -> Result<Vec<StoredEntry>, String> {
    let mut stored = Vec::with_capacity(entries.len());
    for (next, bytes) in (start..).zip(entries) {
        let id = decode_entry(&bytes).map_err(|error| format!("entry {next}: {error}"))?.id;
        if id.index != next {
            return Err(format!("it sent entry {} for entry {next}", id.index));
        }
        stored.push(StoredEntry { position: crate::types::position_of(&crate::types::log_id_from(&id)), bytes });
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use holdfast_model::command::OffsiteFact;
    use holdfast_model::id::{GroupId, Millis, NodeId};
    use holdfast_store::{DataDir, LogOptions, LogPosition};
    use holdfast_wire::log::{Entry, EntryPayload, encode_entry};

    use super::*;

    fn sys(facts: &[(&str, u64)]) -> Sys {
        let fact = |(name, index): &(&str, u64)| {
            let (destination, index) = ((*name).to_owned(), *index);
            let fact = OffsiteFact { destination, index, chain: [0; 32], verifier: NodeId(1), at: Millis(0) };
            ((*name).to_owned(), fact)
        };
        Sys { offsite: Arc::new(facts.iter().map(fact).collect()), ..Sys::default() }
    }

    fn entry(index: u64, bytes: usize) -> Bytes {
        let payload = EntryPayload::Proposal(vec![7; bytes].into());
        encode_entry(&Entry { id: pb::LogId { term: 1, node: 1, index }, payload })
    }

    #[test]
    fn the_log_keeps_what_is_not_offsite_unless_the_risk_is_accepted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = DataDir::open_or_create(dir.path(), 1, [1; 16]).expect("directory");
        let (log, _) = LogStore::open(&data, GroupId(0), LogOptions::default()).expect("opens");
        let entries = (0..100u64).map(|index| StoredEntry {
            position: LogPosition { term: 1, node: 1, index },
            bytes: entry(index, 100 << 10),
        });
        log.append(entries.collect(), Box::new(|result| result.expect("appended"))).expect("appends");
        log.wait_durable(99);
        let options = |past, bytes_max| OutboxOptions { required: vec!["vault".into()], bytes_max, past };
        let known = sys(&[("vault", 40)]);
        for frugal in [false, true] {
            assert_eq!(released(&options(PastBudget::ReadOnly, 1 << 20), &known, &log, frugal), 40);
        }
        let accepts = options(PastBudget::AcceptRisk, 1 << 20);
        let upto = released(&accepts, &known, &log, false);
        assert!((88..=95).contains(&upto), "{upto}");
        assert!(log.bytes_after(upto) <= 1 << 20);
        assert_eq!(released(&accepts, &known, &log, true), u64::MAX, "the disk counts more");
        let within = options(PastBudget::AcceptRisk, 64 << 20);
        assert_eq!(released(&within, &known, &log, false), 40, "within the budget nothing is forgotten");
        let none = OutboxOptions { required: Vec::new(), ..within };
        assert_eq!(released(&none, &known, &log, false), u64::MAX);
        log.close();
    }

    #[test]
    fn what_a_peer_sends_begins_where_it_was_asked_to_and_leaves_nothing_out() {
        let good = vec![entry(5, 1), entry(6, 1)];
        assert_eq!(stored(5, good.clone()).expect("in order").len(), 2);
        assert!(stored(4, good).is_err());
        assert!(stored(5, vec![entry(5, 1), entry(7, 1)]).is_err());
        assert!(stored(5, vec![Bytes::from_static(b"\xff\xff")]).is_err());
        assert!(stored(5, Vec::new()).expect("nothing").is_empty());
    }

    #[test]
    fn who_cannot_say_yet_says_so_and_who_has_nothing_does_too() {
        let lends = |start, end| lends(50, Some(300), 60, start, end);
        assert_eq!(lends(49, 60), Lends::Nothing, "it was purged");
        assert_eq!(lends(301, 310), Lends::Nothing, "it never came");
        assert_eq!(lends(100, 200), Lends::NotYet, "it is in the log, and not applied");
        assert_eq!(lends(50, 55), Lends::Before(55));
        assert_eq!(lends(60, 200), Lends::Before(61), "no more than is committed for certain");
        assert_eq!(super::lends(0, None, 0, 0, 10), Lends::Nothing);
    }

    #[test]
    fn the_log_is_held_behind_the_lowest_entry_of_all_who_hold_it() {
        let holds = LogHolds::default();
        assert_eq!(holds.lowest(), None);
        let (first, second) = (holds.hold(20), holds.hold(10));
        assert_eq!(holds.lowest(), Some(10));
        drop(second);
        let third = holds.hold(30);
        assert_eq!(holds.lowest(), Some(20));
        drop((first, third));
        assert_eq!(holds.lowest(), None);
    }
}
