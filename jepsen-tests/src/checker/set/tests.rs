//! A valid history written by hand, and everything that must be seen when one thing in it is wrong.

use super::*;
use crate::checker::Verdict;
use crate::history::Named;

const EPOCH: u64 = 1 << COUNTER_BITS;

/// Builds a history line by line; each line is a moment later than the last.
#[derive(Default)]
struct Story {
    ops: Vec<Op>,
}

fn write(key: &str, payload: &str, id: &str, guard: Option<u64>) -> Write {
    let guard = guard.map(|version| EPOCH | version);
    Write { user: "u".into(), key: key.into(), payload: payload.into(), request_id: id.into(), guard }
}

fn reply(version: u64, commit_index: u64) -> Reply {
    Reply { commit_index, version: EPOCH | version, replayed: false, changed: true }
}

impl Story {
    fn line(&mut self, process: Process, stage: Stage, action: Action, reply: Option<Reply>, reason: Option<&str>) {
        let error = reason.map(|reason| Failure { reason: reason.into(), message: String::new() });
        let time_ns = self.ops.len() as u64;
        self.ops.push(Op { process, stage, time_ns, action, reply, error });
    }

    fn begin(&mut self, client: u32, action: &Action) {
        self.line(Process::Client(client), Stage::Invoke, action.clone(), None, None);
    }

    fn ok(&mut self, client: u32, action: Action, reply: Reply) {
        self.begin(client, &action);
        self.line(Process::Client(client), Stage::Ok, action, Some(reply), None);
    }

    fn end(&mut self, client: u32, action: Action, stage: Stage, reason: &str) {
        self.begin(client, &action);
        self.line(Process::Client(client), stage, action, None, Some(reason));
    }

    fn feed(&mut self, records: &[(&str, u64, &str)]) {
        let found = |(key, version, payload): &(&str, u64, &str)| Found {
            key: (*key).to_owned(),
            version: EPOCH | *version,
            payload: (*payload).to_owned(),
        };
        let feed = Feed { user: "u".into(), records: records.iter().map(found).collect() };
        self.line(Process::Named(Named::Reader), Stage::Ok, Action::Feed(feed), None, None);
    }
}

/// Each kind of write and each kind of end, all as they should be.
fn valid() -> Vec<Op> {
    let mut story = Story::default();
    story.ok(1, Action::Add(write("a1", "one", "add-1", None)), reply(1, 11));
    let unchanged = Reply { changed: false, ..reply(1, 12) };
    story.ok(1, Action::Same(write("a1", "one", "same-1", None)), unchanged);
    story.ok(1, Action::Bump(write("k1", "k-1", "bump-1", None)), reply(2, 13));
    story.ok(1, Action::Bump(write("k1", "k-2", "bump-2", Some(2))), reply(3, 14));
    story.ok(1, Action::Resend(write("k1", "k-1", "bump-1", None)), Reply { replayed: true, ..reply(2, 13) });
    story.ok(2, Action::Over(write("o2", "o-1", "over-1", None)), reply(4, 15));
    // Unknown and found, unknown and not found, unknown and then known, failed.
    story.end(2, Action::Add(write("a2", "two", "add-2", None)), Stage::Info, "OUTCOME_UNKNOWN");
    story.end(2, Action::Add(write("a3", "three", "add-3", None)), Stage::Info, "OUTCOME_UNKNOWN");
    story.end(2, Action::Over(write("o2", "o-2", "over-2", None)), Stage::Info, "OUTCOME_UNKNOWN");
    story.end(2, Action::Resend(write("o2", "o-2", "over-2", None)), Stage::Fail, "NO_LEADER");
    story.ok(2, Action::Resend(write("o2", "o-2", "over-2", None)), Reply { replayed: true, ..reply(6, 18) });
    story.end(1, Action::Add(write("a4", "four", "add-4", None)), Stage::Fail, "NO_LEADER");
    story.end(1, Action::Resend(write("a1", "one", "add-1", None)), Stage::Fail, "NOT_FOUNDED");
    story.feed(&[("a1", 1, "one"), ("k1", 3, "k-2"), ("a2", 5, "two"), ("o2", 6, "o-2")]);
    story.ops
}

/// The valid history with every operation changed by `change`.
fn judged(change: impl FnMut(&mut Op)) -> Report {
    let mut ops = valid();
    ops.iter_mut().for_each(change);
    check(&ops)
}

fn judged_feed(mut change: impl FnMut(&mut Vec<Found>)) -> Report {
    judged(|op| {
        if let Action::Feed(feed) = &mut op.action {
            change(&mut feed.records);
        }
    })
}

/// Changes the answer of one request.
fn judged_reply(id: &str, mut change: impl FnMut(&mut Reply)) -> Report {
    judged(|op| {
        let named = op.action.write().is_some_and(|write| write.request_id == id);
        if let (true, Some(reply)) = (named, &mut op.reply) {
            change(reply);
        }
    })
}

#[track_caller]
fn assert_broken(report: &Report, verdict: Verdict, rules: &[&str]) {
    assert_eq!((report.verdict, &report.broken()[..]), (verdict, rules), "{report:#?}");
}

#[test]
fn every_kind_of_end_can_be_valid() {
    let report = check(&valid());
    assert_broken(&report, Verdict::Valid, &[]);
    assert_eq!(report.row("versions accounted for").measured, "6");
    assert_eq!(report.row("requests of unknown outcome").measured, "2");
    assert_eq!(report.row("acknowledged records compared").measured, "3");
}

#[test]
fn users_of_other_workloads_are_not_judged() {
    let mut ops = valid();
    let mut other = ops.last().expect("the feed").clone();
    if let Action::Feed(feed) = &mut other.action {
        feed.user = "f0".into();
    }
    ops.push(other);
    assert_broken(&check(&ops), Verdict::Valid, &[]);
}

#[test]
fn a_lost_record_is_seen() {
    let report = judged_feed(|records| records.retain(|found| found.key != "a1"));
    assert_broken(&report, Verdict::Invalid, &["acknowledged, not found"]);
    assert_eq!(report.row("acknowledged, not found").evidence, ["u/a1 (add-1)"]);
}

#[test]
fn other_bytes_are_seen() {
    let report = judged_feed(|records| records[0].payload.push('x'));
    assert_broken(&report, Verdict::Invalid, &["acknowledged, found with other bytes", "found, never written"]);
}

#[test]
fn an_older_state_is_seen() {
    let report = judged_feed(|records| (records[1].version, records[1].payload) = (EPOCH | 2, "k-1".into()));
    assert_broken(&report, Verdict::Invalid, &["acknowledged, found at another version"]);
}

#[test]
fn a_newer_version_of_an_acknowledged_write_is_seen() {
    // The same bytes, written once more: the request, or the log, was applied twice.
    let report = judged_feed(|records| records[1].version = EPOCH | 7);
    assert!(report.broken().contains(&"acknowledged, found at another version"), "{report:#?}");
    assert!(report.broken().contains(&"versions that no request took"), "{report:#?}");
}

#[test]
fn a_phantom_is_seen() {
    let phantom = |key: &str| Found { key: key.into(), version: EPOCH | 7, payload: "never".into() };
    for key in ["a9", "a3"] {
        let report = judged_feed(|records| records.push(phantom(key)));
        assert_broken(&report, Verdict::Invalid, &["found, never written", "versions that no request took"]);
    }
}

#[test]
fn a_failed_write_that_took_effect_is_seen() {
    let failed = Found { key: "a4".into(), version: EPOCH | 7, payload: "four".into() };
    let report = judged_feed(|records| records.push(failed.clone()));
    assert_broken(&report, Verdict::Invalid, &["found, though reported as failed"]);
}

#[test]
fn a_record_that_is_there_twice_is_seen() {
    let report = judged_feed(|records| records.push(records[0].clone()));
    assert_broken(&report, Verdict::Invalid, &["found twice"]);
}

#[test]
fn a_repetition_that_was_not_recognised_is_seen() {
    const RULE: &str = "answers that differ from the first, or are not replays";
    let again = |change: fn(&mut Reply)| {
        judged(|op| {
            if let (Action::Resend(write), Some(reply)) = (&op.action, &mut op.reply)
                && write.request_id == "bump-1"
            {
                change(reply);
            }
        })
    };
    assert_broken(&again(|reply| reply.replayed = false), Verdict::Invalid, &[RULE]);
    assert_broken(&again(|reply| reply.commit_index = 99), Verdict::Invalid, &[RULE]);
    assert_broken(&again(|reply| reply.version = EPOCH | 9), Verdict::Invalid, &[RULE]);
    // Refused after it was acknowledged: forgotten.
    let report = judged(|op| {
        if op.action.write().is_some_and(|write| write.request_id == "add-1")
            && let Some(error) = &mut op.error
        {
            error.reason = "REQUEST_TOO_OLD".into();
        }
    });
    assert_broken(&report, Verdict::Invalid, &[RULE]);
}

#[test]
fn a_first_answer_that_changed_nothing_is_seen() {
    // The attempt before it was applied too, and its request id was not remembered.
    let report = judged_reply("add-1", |reply| reply.changed = false);
    assert_broken(&report, Verdict::Invalid, &["new contents that changed nothing: written before"]);
    let report = judged_reply("same-1", |reply| reply.changed = true);
    assert_broken(&report, Verdict::Invalid, &["known contents that changed something"]);
}

#[test]
fn a_guard_that_failed_though_it_held_is_seen() {
    let mut ops = valid();
    let mut story = Story::default();
    story.end(1, Action::Bump(write("k1", "k-3", "bump-3", Some(3))), Stage::Fail, "VERSION_MISMATCH");
    for mut op in story.ops {
        op.time_ns += 1000;
        ops.push(op);
    }
    assert_broken(&check(&ops), Verdict::Invalid, &["guards that failed though they held"]);
}

#[test]
fn a_version_given_twice_is_seen() {
    let report = judged_feed(|records| records[2].version = EPOCH | 4);
    // Version 4 has two owners, and 5 has none.
    let rules = ["versions given to two requests", "versions that no request took"];
    assert_broken(&report, Verdict::Invalid, &rules);
}

#[test]
fn a_version_that_nobody_took_is_seen() {
    // An unguarded record written twice under one id, and then overwritten: nothing but the gap tells.
    let mut ops = valid();
    for op in &mut ops {
        if op.action.write().is_some_and(|write| write.request_id == "over-2")
            && let Some(reply) = &mut op.reply
        {
            reply.version = EPOCH | 7;
        }
        if let Action::Feed(feed) = &mut op.action {
            feed.records[3].version = EPOCH | 7;
        }
    }
    let report = check(&ops);
    assert_broken(&report, Verdict::Invalid, &["versions that no request took"]);
    assert_eq!(report.row("versions that no request took").evidence, ["u: version 6 of 7"]);
}

#[test]
fn a_gap_that_an_unknown_write_may_fill_leaves_the_verdict_open() {
    // "over-2" stays unknown and is not what is found; a later write of the same record took version 7.
    let mut ops = valid();
    ops.retain(|op| op.stage != Stage::Ok || op.action.write().is_none_or(|write| write.request_id != "over-2"));
    ops.retain(|op| !matches!(&op.action, Action::Resend(write) if write.request_id == "over-2"));
    let feed = ops.pop().expect("the feed");
    let mut story = Story { ops };
    story.ok(2, Action::Over(write("o2", "o-3", "over-3", None)), reply(7, 19));
    let mut ops = story.ops;
    ops.push(feed);
    if let Some(Op { action: Action::Feed(feed), .. }) = ops.last_mut() {
        feed.records[3] = Found { key: "o2".into(), version: EPOCH | 7, payload: "o-3".into() };
    }
    assert_broken(&check(&ops), Verdict::Unknown, &["versions that may be those of unknown writes"]);
}

#[test]
fn versions_of_two_epochs_are_seen() {
    let report = judged(|op| {
        if let Action::Feed(feed) = &mut op.action {
            feed.records[2].version = (2 << COUNTER_BITS) | 1;
        }
    });
    assert!(report.broken().contains(&"versions of a second epoch: nothing was restored"), "{report:#?}");
    assert_eq!(report.verdict, Verdict::Invalid);
}

#[test]
fn log_indexes_have_one_owner_and_rise_with_versions_and_time() {
    let report = judged_reply("over-1", |reply| reply.commit_index = 14);
    let shared = ["log indexes given to two requests of a user", "versions that rise while log indexes do not"];
    assert!(shared.iter().all(|rule| report.broken().contains(rule)), "{report:#?}");
    // Acknowledged at index 11 before the next one began, which was placed before it.
    let report = judged_reply("same-1", |reply| reply.commit_index = 10);
    assert_broken(&report, Verdict::Invalid, &["writes placed before one acknowledged earlier"]);
}

#[test]
fn what_was_not_put_to_the_test_is_no_pass() {
    assert_eq!(check(&[]).verdict, Verdict::Unknown);
    let mut unread = valid();
    unread.retain(|op| !matches!(op.action, Action::Feed(_)));
    assert_eq!(check(&unread).verdict, Verdict::Unknown);
    // No request was ever sent again.
    let mut once = valid();
    once.retain(|op| !matches!(&op.action, Action::Resend(write) if write.request_id != "over-2"));
    assert_broken(&check(&once), Verdict::Unknown, &["requests sent again after their answer"]);
}

#[test]
fn a_history_that_does_not_pair_is_no_pass() {
    const RULE: &str = "operations without beginning or end";
    // An end without a beginning.
    let mut ops = valid();
    ops.remove(0);
    assert!(check(&ops).broken().contains(&RULE));
    // A beginning without an end, and the client went on.
    let mut ops = valid();
    ops.remove(1);
    assert!(check(&ops).broken().contains(&RULE));
    // One id for two contents.
    let report = judged(|op| {
        if let Action::Resend(write) = &mut op.action {
            write.payload.push('x');
        }
    });
    assert!(report.broken().contains(&RULE));
}
