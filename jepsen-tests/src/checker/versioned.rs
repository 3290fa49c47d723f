//! Checker A: every answer names the position in the log that it speaks of, and all of them are replayed in that order
//! through the [model](super::model).
//!
//! - *The replay:* each write must have had the outcome that the model gives it, each read and each refusal must show the
//!   model's state at its position, all of its keys at one point.
//! - *Time:* a write's position is greater than every position that was known before it began; that of a linearizable
//!   read or of a refusal is at least that. A read at a position is at least there; a read of bounded age is at least
//!   where clients knew the log to be that long before it began.
//!
//! O(n log n). Writes of unknown outcome: see [timeline](super::timeline).

use std::collections::{BTreeMap, HashMap};

use crate::checker::Report;
use crate::checker::model::COUNTER_BITS;
use crate::checker::paired::Calls;
use crate::checker::timeline::{self, Commit, History, Request, Timeline};
use crate::history::calls::{Batch, Changed, Done, Guard, Level, Point, Seen};
use crate::history::{Process, Stage};

mod replay;

/// Judges all batches and reads of a history.
pub fn check(calls: &Calls<'_>, history: &History<'_>) -> Report {
    let mut report = Report::new("versioned");
    let done = history.requests.iter().filter(|request| request.done.is_some()).count();
    let linearizable = calls.reads.iter().filter(|call| call.what.level == Level::Linearizable);
    report.at_least("acknowledged writes", done, 1);
    report.figure("writes of unknown outcome", history.requests.iter().filter(|one| one.is_unknown()).count());
    let seen = history.requests.iter().filter(|one| one.is_unknown() && one.seen_at.is_some()).count();
    report.figure("of them seen", seen);
    report.figure("versions left to the others", history.users.values().map(|user| user.holes.len()).sum::<usize>());
    report.figure("reads of bounded age or position", bounded(calls));
    report.at_least("linearizable reads", linearizable.filter(|call| call.stage == Stage::Ok).count(), 1);
    report.doubtful("users that were not read back", timeline::unread(calls, history));
    report.never("contents seen that nobody wrote", history.phantoms.clone());
    report.never("contents seen whose write was refused", history.undead.clone());
    report.never("writes seen at two versions", history.twice.clone());
    report.never("versions of two writes", history.shared.clone());
    report.never("versions that no write can have taken", history.unowned.clone());
    check_indexes(history, &mut report);
    check_origins(calls, &mut report);
    let times = times(calls);
    replay::check(calls, history, &times, &mut report);
    report.never("repetitions that were answered otherwise", repetitions(calls));
    report.never("requests that were refused after their own effect", refused_by_themselves(calls, history));
    let reads = calls.reads.iter().filter_map(|call| {
        let got = call.what.got.as_ref()?;
        read(&history.users, &call.what.user, &call.what.keys, got.at.index, &got.records)
    });
    report.never("reads that the replay contradicts", reads.collect());
    report.never("refusals that the replay contradicts", refusals(calls, history));
    check_time(calls, history, &times, &mut report);
    report
}

fn bounded(calls: &Calls<'_>) -> usize {
    calls.reads.iter().filter(|call| call.stage == Stage::Ok && call.what.level != Level::Linearizable).count()
}

/// Each write has a position that no other one of its user has, and positions rise with the versions of a user.
fn check_indexes(history: &History<'_>, report: &mut Report) {
    let (mut shared, mut crossed, mut late, mut epochs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut owners: HashMap<(&str, Point), &Request<'_>> = HashMap::new();
    for request in &history.requests {
        let Some((done, _)) = request.done else { continue };
        if let Some(other) = owners.insert((&request.batch.user, done.at), request) {
            shared.push(format!("index {}: {} and {}", done.at.index, other.name(), request.name()));
        }
    }
    for (user, timeline) in &history.users {
        for pair in timeline.commits.windows(2) {
            let [one, next] = [pair[0], pair[1]];
            let names = [one, next].map(|commit| history.requests[commit.request].name());
            if one.version >> COUNTER_BITS != next.version >> COUNTER_BITS {
                epochs.push(format!("{user}: {} and {}", one.version, next.version));
            } else if one.low > next.high || (one.low == next.high && one.version != next.version) {
                crossed.push(format!("{} from {} on before {} up to {}", names[0], one.low, names[1], next.high));
            }
        }
        let unplaced = timeline.commits.iter().filter(|commit| commit.low > commit.high);
        late.extend(unplaced.map(|one| {
            let name = history.requests[one.request].name();
            format!("{name}: version {} only from {} on, but seen at {}", one.version, one.low, one.high)
        }));
    }
    report.never("log indexes of two writes of a user", shared);
    report.never("versions that rise while log indexes do not", crossed);
    report.never("writes seen before their place in the log", late);
    report.never("versions of two epochs: nothing was restored", epochs);
}

/// Every answer is of one history of the cluster, and all of a user are of one group. One of another would be measured by
/// nothing, however old it is.
fn check_origins(calls: &Calls<'_>, report: &mut Report) {
    let batches = calls.batches.iter().filter_map(|call| {
        let (done, refused) = (call.what.done.as_ref(), call.what.refused.as_ref());
        let at = done.map(|done| done.at).or(refused.and_then(|refused| refused.at))?;
        Some((call.ended_ns?, at, call.what.user.as_str(), format!("{}: {}", call.who(), call.what.request_id)))
    });
    let reads = calls.reads.iter().filter_map(|call| {
        let got = call.what.got.as_ref()?;
        Some((call.ended_ns?, got.at, call.what.user.as_str(), format!("{}: a read on node {}", call.who(), got.node)))
    });
    let pages = calls.pages.iter().filter_map(|call| {
        let turned = call.what.turned.as_ref()?;
        let name = format!("{}: a page on node {}", call.who(), turned.node);
        Some((call.ended_ns?, turned.at, call.what.user.as_str(), name))
    });
    let mut answers: Vec<(u64, Point, &str, String)> = batches.chain(reads).chain(pages).collect();
    answers.sort_unstable_by_key(|(ended_ns, ..)| *ended_ns);
    let first = answers.first().map(|(_, at, ..)| at.incarnation);
    let (mut foreign, mut moved, mut groups) = (Vec::new(), Vec::new(), HashMap::new());
    for (_, at, user, name) in &answers {
        if Some(at.incarnation) != first {
            foreign.push(format!("{user}, {name}: {:x} at {}", at.incarnation, at.index));
        }
        let group = *groups.entry(*user).or_insert(at.group);
        if group != at.group {
            moved.push(format!("{user}, {name}: group {} at {}, before it was {group}", at.group, at.index));
        }
    }
    report.never("answers of a second history: nothing was restored", foreign);
    report.never("answers of another group than the user's", moved);
}

/// A write that changed nothing is a read of what it would have written.
fn unchanged(timeline: &Timeline<'_>, request: &Request<'_>, index: u64, results: &[Changed]) -> Option<String> {
    let found = request.batch.changes.iter().zip(results).filter(|(_, result)| result.version != 0);
    let found = found.map(|(change, result)| Seen {
        key: change.key.clone(),
        version: result.version,
        payload: change.put.clone(),
    });
    let keys: Vec<String> = request.batch.changes.iter().map(|change| change.key.clone()).collect();
    shown(timeline, &request.batch.user, &keys, index, &found.collect::<Vec<_>>())
}

/// Why no state that the user can have had at this position shows these records.
pub(super) fn read(
    users: &BTreeMap<&str, Timeline<'_>>,
    user: &str,
    keys: &[String],
    index: u64,
    records: &[Seen],
) -> Option<String> {
    let empty = Timeline::default();
    shown(users.get(user).unwrap_or(&empty), user, keys, index, records)
}

fn shown(timeline: &Timeline<'_>, user: &str, keys: &[String], index: u64, records: &[Seen]) -> Option<String> {
    let (least, most) = timeline.head_at(index);
    // The heads of the user at which all of this is so.
    let (mut low, mut high) = (least, most);
    for key in keys {
        let seen = records.iter().find(|seen| seen.key == *key);
        let version = seen.map_or(0, |seen| seen.version);
        if let Some(seen) = seen {
            let stored = timeline.state(key, version);
            if stored != Some((version, seen.payload.as_deref())) {
                return Some(format!("{user} at {index}: {seen:?}, but the replay has {stored:?}"));
            }
        }
        low = low.max(version);
        if let Some(next) = timeline.next(key, version) {
            high = high.min(next - 1);
        }
        if low > high {
            let (next, head) = (
                timeline.next(key, version),
                if least == most { format!("{most}") } else { format!("{least}–{most}") },
            );
            return Some(format!(
                "{user} at {index}, where its head is {head}: {key} at version {version}, {records:?}; changed at {next:?}"
            ));
        }
    }
    let extra = records.iter().find(|seen| !keys.contains(&seen.key));
    extra.map(|seen| format!("{user} at {index}: {seen:?} was not asked for"))
}

/// Guards that failed must have failed there, and those that are not named must have held.
fn refusals(calls: &Calls<'_>, history: &History<'_>) -> Vec<String> {
    let empty = Timeline::default();
    let of = |batch: &Batch| history.users.get(batch.user.as_str()).unwrap_or(&empty);
    calls.batches.iter().flat_map(|call| refusal(history, of(call.what), call.what)).collect()
}

fn refusal(history: &History<'_>, timeline: &Timeline<'_>, batch: &Batch) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(refused) = &batch.refused else { return wrong };
    let name = || format!("{} ({}): {refused:?}", batch.user, batch.request_id);
    let Some(at) = refused.at else {
        wrong.push(format!("{}, without a position", name()));
        return wrong;
    };
    if refused.clashes.is_empty() {
        wrong.push(format!("{}, without a guard that failed", name()));
    }
    let (least, most) = timeline.head_at(at.index);
    let (mut low, mut high) = (least, most);
    for (place, change) in (0u32..).zip(&batch.changes) {
        let clash = refused.clashes.iter().find(|clash| clash.place == place);
        let failed = clash.is_some_and(|clash| match &change.guard {
            None => false,
            Some(Guard::Version { version, .. }) => clash.version != *version,
            Some(Guard::Absent) => clash.version != 0 && !clash.deleted,
            Some(Guard::Exists) => clash.version == 0 || clash.deleted,
        });
        if clash.is_some() && !failed {
            wrong.push(format!("{}, but {change:?} holds there", name()));
        }
        let version = match (clash, &change.guard) {
            (Some(clash), _) => clash.version,
            (None, Some(Guard::Version { version, .. })) => *version,
            (None, _) => continue,
        };
        // A version that nobody saw is that of a write of unknown outcome; whether one fits is judged elsewhere.
        if timeline.holes.binary_search(&version).is_ok() {
            continue;
        }
        let live = timeline.state(&change.key, version).filter(|(at, _)| *at == version);
        let fits = match (live, clash) {
            (None, _) => version == 0,
            (Some((_, content)), Some(clash)) => content.is_none() == clash.deleted,
            (Some(_), None) => true,
        };
        if !fits {
            // Beyond all that was seen of the user there may be more.
            let beyond = timeline.commits.last().is_none_or(|last| version > last.version);
            let unknown = |one: &Request<'_>| one.batch.user == batch.user && one.is_unknown();
            if !(beyond && live.is_none() && history.requests.iter().any(unknown)) {
                wrong.push(format!("{}, but the replay has {live:?}", name()));
            }
            continue;
        }
        low = low.max(version);
        high = high.min(timeline.next(&change.key, version).map_or(u64::MAX, |next| next - 1));
    }
    if low > high {
        wrong.push(format!("{}, but the head is {least}–{most} there", name()));
    }
    wrong
}

/// The same request must be told the same, and that it is a repetition.
fn repetitions(calls: &Calls<'_>) -> Vec<String> {
    let mut first: HashMap<&str, (u64, &Done)> = HashMap::new();
    let mut wrong = Vec::new();
    let mut ends: Vec<_> = calls.batches.iter().filter(|call| call.ended_ns.is_some()).collect();
    ends.sort_by_key(|call| call.ended_ns);
    for call in ends {
        let (batch, began_ns) = (call.what, call.began_ns);
        let id = batch.request_id.as_str();
        match (&batch.done, first.get(id)) {
            (Some(done), None) => {
                first.insert(id, (call.ended_ns.unwrap_or(0), done));
            }
            (Some(done), Some((known_ns, told))) => {
                let same = (done.at, done.version, &done.results) == (told.at, told.version, &told.results);
                if !same || (began_ns > *known_ns && !done.replayed) {
                    wrong.push(format!("{} ({id}): first {told:?}, later {done:?}", batch.user));
                }
            }
            (None, Some((known_ns, told))) if batch.refused.is_some() && began_ns > *known_ns => {
                wrong.push(format!("{} ({id}): first {told:?}, later {:?}", batch.user, batch.refused));
            }
            (None, _) => {}
        }
    }
    wrong
}

/// Whoever asks again for what took effect is told so, also when nobody was told before: a guard that fails because the
/// request itself went through says that nobody remembers it.
fn refused_by_themselves(calls: &Calls<'_>, history: &History<'_>) -> Vec<String> {
    let commits = history.users.values().flat_map(|timeline| &timeline.commits);
    let commits = commits.map(|commit| (&history.requests[commit.request], commit));
    // Who left a tombstone is a guess, unless it was told.
    let sure = |request: &Request<'_>| {
        request.done.is_some() || request.batch.changes.iter().all(|change| change.put.is_some())
    };
    let commits: HashMap<&str, &Commit> = commits
        .filter(|(request, _)| sure(request))
        .map(|(request, commit)| (request.batch.request_id.as_str(), commit))
        .collect();
    let mut wrong = Vec::new();
    for batch in calls.batches.iter().map(|call| call.what) {
        let (Some(refused), Some(commit)) = (&batch.refused, commits.get(batch.request_id.as_str())) else { continue };
        let after = refused.at.is_some_and(|at| commit.high <= at.index);
        if after || refused.clashes.iter().any(|clash| clash.version >= commit.version) {
            let (user, id, version) = (&batch.user, &batch.request_id, commit.version);
            wrong.push(format!("{user} ({id}): {refused:?}, but it took version {version}"));
        }
    }
    wrong
}

/// What a client learned, in the order in which it learned it.
struct Learned {
    ended_ns: u64,
    index: u64,
    who: Process,
}

/// What the clients of a group knew, moment by moment.
#[derive(Default)]
struct Knowledge(Vec<Learned>);

impl Knowledge {
    fn settle(&mut self) {
        self.0.sort_by_key(|learned| learned.ended_ns);
        for place in 1..self.0.len() {
            if self.0[place].index < self.0[place - 1].index {
                (self.0[place].index, self.0[place].who) = (self.0[place - 1].index, self.0[place - 1].who);
            }
        }
    }

    /// The greatest position that anybody knew before this moment.
    fn before(&self, time_ns: u64) -> Option<&Learned> {
        self.0.partition_point(|learned| learned.ended_ns < time_ns).checked_sub(1).map(|last| &self.0[last])
    }
}

/// What was known when.
struct Times {
    groups: BTreeMap<(u64, u32), Knowledge>,
    /// A position of each user that was answered: users stay in their groups.
    users: BTreeMap<String, Point>,
}

impl Times {
    fn before(&self, at: Point, time_ns: u64) -> Option<&Learned> {
        let group = self.groups.get(&(at.incarnation, at.group))?;
        group.before(time_ns).filter(|_| time_ns > 0)
    }

    /// Whether this commit, whose position nobody was told, lies before what was known when its write began.
    fn is_late(&self, request: &Request<'_>, commit: &Commit) -> bool {
        self.later_than(request, commit).is_some()
    }

    fn later_than(&self, request: &Request<'_>, commit: &Commit) -> Option<&Learned> {
        let at = self.users.get(&request.batch.user)?;
        self.before(*at, request.began_ns).filter(|known| known.index >= commit.high)
    }
}

fn times(calls: &Calls<'_>) -> Times {
    let mut groups: BTreeMap<(u64, u32), Knowledge> = BTreeMap::new();
    let mut learn = |at: Point, ended_ns: u64, who: Process| {
        let group = groups.entry((at.incarnation, at.group)).or_default();
        group.0.push(Learned { ended_ns, index: at.index, who });
    };
    for call in &calls.batches {
        let at = call.what.done.as_ref().map(|done| done.at).or(call.what.refused.as_ref().and_then(|one| one.at));
        if let (Some(at), Some(ended_ns)) = (at, call.ended_ns) {
            learn(at, ended_ns, call.process);
        }
    }
    for call in &calls.reads {
        if let (Some(got), Some(ended_ns)) = (&call.what.got, call.ended_ns) {
            learn(got.at, ended_ns, call.process);
        }
    }
    for call in &calls.pages {
        if let (Some(turned), Some(ended_ns)) = (&call.what.turned, call.ended_ns) {
            learn(turned.at, ended_ns, call.process);
        }
    }
    groups.values_mut().for_each(Knowledge::settle);
    let reads = calls.reads.iter().filter_map(|call| Some((call.what.user.clone(), call.what.got.as_ref()?.at)));
    Times { groups, users: reads.collect() }
}

fn check_time(calls: &Calls<'_>, history: &History<'_>, times: &Times, report: &mut Report) {
    let before = |at: Point, time_ns: u64| times.before(at, time_ns);
    let told = |learned: &Learned| format!("{:?} knew of {} at {} ns", learned.who, learned.index, learned.ended_ns);
    let mut writes = Vec::new();
    for request in &history.requests {
        if let Some((done, _)) = request.done
            && let Some(known) = before(done.at, request.began_ns).filter(|known| known.index >= done.at.index)
        {
            writes.push(format!(
                "{} at {}, begun at {} ns, but {}",
                request.name(),
                done.at.index,
                request.began_ns,
                told(known)
            ));
        }
    }
    for timeline in history.users.values() {
        for commit in &timeline.commits {
            let request = &history.requests[commit.request];
            if request.done.is_none()
                && let Some(known) = times.later_than(request, commit)
            {
                writes.push(format!(
                    "{} seen at {}, begun at {} ns, but {}",
                    request.name(),
                    commit.high,
                    request.began_ns,
                    told(known)
                ));
            }
        }
    }
    report.never("writes placed before what was known when they began", writes);
    let (mut stale, mut older) = (Vec::new(), Vec::new());
    for call in &calls.batches {
        let Some(at) = call.what.refused.as_ref().and_then(|refused| refused.at) else { continue };
        if let Some(known) = before(at, call.began_ns).filter(|known| known.index > at.index) {
            stale.push(format!(
                "{} ({}) refused at {}, begun at {} ns, but {}",
                call.what.user,
                call.what.request_id,
                at.index,
                call.began_ns,
                told(known)
            ));
        }
    }
    for call in &calls.reads {
        let Some(got) = &call.what.got else { continue };
        let shown = || {
            format!(
                "{} reads {} on node {} at {}, begun at {} ns",
                call.who(),
                call.what.user,
                got.node,
                got.at.index,
                call.began_ns
            )
        };
        match call.what.level {
            Level::Linearizable => {
                if let Some(known) = before(got.at, call.began_ns).filter(|known| known.index > got.at.index) {
                    stale.push(format!("{}, but {}", shown(), told(known)));
                }
            }
            Level::AtLeast(at) => {
                if (at.incarnation, at.group) != (got.at.incarnation, got.at.group) || got.at.index < at.index {
                    older.push(format!("{}, asked for {at:?}", shown()));
                }
            }
            Level::Staleness(allowed_ms) => {
                let age_ms = got.staleness_ms.unwrap_or(allowed_ms);
                let since_ns = call.began_ns.saturating_sub(u64::from(age_ms) * 1_000_000);
                if age_ms > allowed_ms {
                    older.push(format!("{}, {age_ms} ms old, at most {allowed_ms} were asked for", shown()));
                } else if let Some(known) = before(got.at, since_ns).filter(|known| known.index > got.at.index) {
                    older.push(format!("{}, said to be {age_ms} ms old, but {}", shown(), told(known)));
                }
            }
        }
    }
    report.never("linearizable answers older than what was known when they began", stale);
    report.never("answers older than they were asked to be", older);
}

#[cfg(test)]
mod tests;
