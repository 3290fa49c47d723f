//! Records that end by themselves: none is gone before its time, also where leaders stall and come back with old clocks
//! (etcd #15247), none shows what was written over, and in the end all are gone.
//!
//! The time of a record begins when its write was sent, at the earliest, and one client alone writes and reads it, one call
//! after the other: so whoever looks and has his answer within that time must find it.

use std::collections::BTreeMap;

use crate::checker::Report;
use crate::history::calls::Lease;
use crate::history::{Action, Op, Stage};

/// Stamps are in milliseconds.
const ROUNDED_NS: u64 = 50_000_000;

/// One record as its writer knows it.
#[derive(Default)]
struct Known<'a> {
    /// The write that was acknowledged last, and when it was first sent.
    current: Option<(&'a Lease, u64)>,
    /// One of unknown outcome, and when it was first sent.
    open: Option<(&'a Lease, u64)>,
    /// When the look that is under way began.
    looks_since_ns: u64,
    /// What the last look at the end found: `Some(None)` = it is gone.
    last: Option<Option<String>>,
}

/// Judges a history. `told_time` = the nodes' clocks were left alone.
pub fn check(history: &[Op], told_time: bool) -> Report {
    let mut report = Report::new("ttl");
    let mut records: BTreeMap<(&str, &str), Known<'_>> = BTreeMap::new();
    let (mut early, mut other, mut phantoms) = (Vec::new(), Vec::new(), Vec::new());
    let (mut alive, mut gone, mut renewed, mut latest_ns) = (0usize, 0usize, 0usize, 0);
    for (place, op) in history.iter().enumerate() {
        match (&op.action, op.stage) {
            (Action::Lease(lease), stage) => {
                let known = records.entry((&lease.user, &lease.key)).or_default();
                let began_ns = known.open.filter(|(open, _)| open.request_id == lease.request_id);
                let began_ns = began_ns.map_or(op.time_ns, |(_, began_ns)| began_ns);
                if stage != Stage::Ok {
                    known.open = Some((lease, began_ns));
                    continue;
                }
                let before = known.current.replace((lease, began_ns));
                renewed += usize::from(before.is_some_and(|(before, since_ns)| op.time_ns < end_of(before, since_ns)));
                known.open = None;
            }
            (Action::Held(held), Stage::Invoke) => {
                records.entry((&held.user, &held.key)).or_default().looks_since_ns = op.time_ns;
            }
            (Action::Held(held), Stage::Ok) => {
                let known = records.entry((&held.user, &held.key)).or_default();
                if held.last {
                    known.last = Some(held.found.clone());
                }
                if known.open.is_some() {
                    continue;
                }
                let name = || format!("line {}: {} {}", place + 1, held.user, held.key);
                match (known.current, &held.found) {
                    (None, None) => {}
                    (None, Some(found)) => phantoms.push(format!("{}: {found}", name())),
                    (Some((lease, since_ns)), None) => {
                        gone += 1;
                        let end_ns = end_of(lease, since_ns);
                        if op.time_ns + ROUNDED_NS < end_ns {
                            let (short_ms, id) = ((end_ns - op.time_ns) / 1_000_000, &lease.request_id);
                            early.push(format!("{}: gone {short_ms} ms before its time ({id})", name()));
                        }
                    }
                    (Some((lease, since_ns)), Some(found)) if *found == lease.content => {
                        alive += 1;
                        latest_ns = latest_ns.max(known.looks_since_ns.saturating_sub(end_of(lease, since_ns)));
                    }
                    (Some((lease, _)), Some(found)) => {
                        other.push(format!("{}: {found}, after {} ({})", name(), lease.content, lease.request_id));
                    }
                }
            }
            _ => {}
        }
    }
    report.at_least("looks that found a record", alive, 1);
    report.at_least("looks that found a record gone", gone, 1);
    report.at_least("records that were renewed in time", renewed, 1);
    report.figure("longest that one was there after its time, in ms", latest_ns / 1_000_000);
    if told_time {
        report.never("gone before its time", early);
    } else {
        report.figure("gone before its time, by clocks that a fault moved", early.len());
    }
    report.never("found with what was written over", other);
    report.never("found, never written", phantoms);
    let written = records.iter().filter(|(_, known)| known.current.is_some() || known.open.is_some());
    let (mut left, mut unseen) = (Vec::new(), Vec::new());
    for ((user, key), known) in written {
        match &known.last {
            Some(None) => {}
            Some(Some(found)) => left.push(format!("{user} {key}: {found}")),
            None => unseen.push(format!("{user} {key}")),
        }
    }
    if told_time {
        report.never("still there a minute after all writes", left);
    } else {
        // The group's time never goes back: where a majority's clocks once ran ahead, a minute of it may last longer.
        report.doubtful("still there a minute after all writes, by clocks that a fault moved", left);
    }
    report.doubtful("records of which nobody knows whether they ended", unseen);
    report
}

/// When a record may be gone, at the earliest.
fn end_of(lease: &Lease, since_ns: u64) -> u64 {
    since_ns + u64::from(lease.ttl_seconds) * 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Verdict;
    use crate::history::Process;
    use crate::history::calls::Held;

    fn op(stage: Stage, at_ms: u64, action: Action) -> Op {
        Op { process: Process::Client(1), stage, time_ns: at_ms * 1_000_000, action, reply: None, error: None }
    }

    fn write(content: &str, ttl_seconds: u32, at_ms: u64, stage: Stage) -> Vec<Op> {
        let (user, key) = ("t1".to_owned(), "x-leases/l0".to_owned());
        let (content, request_id) = (content.to_owned(), format!("id-{content}"));
        let lease = Lease { user, key, content, request_id, ttl_seconds };
        vec![op(Stage::Invoke, at_ms, Action::Lease(lease.clone())), op(stage, at_ms + 10, Action::Lease(lease))]
    }

    fn look(found: Option<&str>, at_ms: u64, last: bool) -> Vec<Op> {
        let (user, key) = ("t1".to_owned(), "x-leases/l0".to_owned());
        let held = |found: Option<String>| Action::Held(Held { user: user.clone(), key: key.clone(), last, found });
        vec![op(Stage::Invoke, at_ms, held(None)), op(Stage::Ok, at_ms + 5, held(found.map(str::to_owned)))]
    }

    /// Two seconds from 100 ms on, renewed at 1,500 ms, and gone after 3,500 ms.
    fn valid() -> Vec<Vec<Op>> {
        vec![
            look(None, 0, false),
            write("a", 2, 100, Stage::Ok),
            look(Some("a"), 1_000, false),
            write("b", 2, 1_500, Stage::Info),
            write("b", 2, 1_600, Stage::Ok),
            look(Some("b"), 2_200, false),
            look(Some("b"), 3_600, false),
            look(None, 3_700, true),
        ]
    }

    fn broken(history: &[Vec<Op>]) -> (Verdict, Vec<String>) {
        let report = check(&history.concat(), true);
        (report.verdict, report.broken().into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn a_record_that_is_there_in_its_time_and_gone_at_last_is_valid() {
        assert_eq!(broken(&valid()), (Verdict::Valid, Vec::new()));
        let report = check(&valid().concat(), true);
        assert_eq!(report.row("longest that one was there after its time, in ms").measured, "100");
    }

    #[test]
    fn each_rule_is_broken_by_a_history_of_its_own() {
        let spoilt = |place: usize, with: Vec<Op>| {
            let mut history = valid();
            history[place] = with;
            broken(&history)
        };
        let one = |row: &str| (Verdict::Invalid, vec![row.to_owned()]);
        // The old end of a record that was renewed, as a stalled leader would have it.
        assert_eq!(spoilt(5, look(None, 2_200, false)), one("gone before its time"));
        assert_eq!(spoilt(5, look(Some("a"), 2_200, false)), one("found with what was written over"));
        assert_eq!(spoilt(0, look(Some("z"), 0, false)), one("found, never written"));
        let mut left = valid();
        left.push(look(Some("b"), 70_000, true));
        assert_eq!(broken(&left), one("still there a minute after all writes"));
        assert_eq!(spoilt(7, look(None, 3_700, false)).0, Verdict::Unknown, "nobody looked at the end");
        let moved = check(
            &{
                let mut history = valid();
                history[5] = look(None, 2_200, false);
                history.concat()
            },
            false,
        );
        assert_eq!(moved.verdict, Verdict::Valid, "whose clock is that?");
        let late = check(&[valid().concat(), look(Some("b"), 70_000, true)].concat(), false);
        assert_eq!(late.verdict, Verdict::Unknown, "whose minute is that?");
    }

    #[test]
    fn nothing_is_judged_while_a_write_is_of_unknown_outcome() {
        let mut history = valid();
        history[4] = look(None, 1_700, false);
        history.insert(5, write("b", 2, 1_800, Stage::Ok));
        assert_eq!(broken(&history), (Verdict::Valid, Vec::new()));
    }
}
