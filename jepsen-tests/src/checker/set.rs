//! Everything acknowledged is there, nothing else is, and each request took effect once.
//!
//! How a request that took effect twice would show, wherever the second time is hidden:
//! - *In the answer:* an acknowledged request sent again must be told the same version and log index, `replayed`; and
//!   the first answer of a write with new content must say `changed`, or somebody wrote that content before.
//! - *In a guard:* only one client writes a guarded record and waits for each end, so a guard that fails was broken by
//!   an earlier attempt of the same request.
//! - *In the versions:* each commit that changes something takes exactly one version of its user, without a gap. So
//!   the versions 1 … head are exactly those of the acknowledged writes and of the unknown ones that are found.
//! - *In the log:* no two commits of one user have one log index, and their indexes and versions rise together.
//!
//! Time: a write's index is greater than that of every write that was acknowledged before it began.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::Report;
use crate::history::{Action, Failure, Feed, Found, Op, Process, Reply, Stage, Write};

/// A version's counter, below its epoch.
const COUNTER_BITS: u32 = 48;

/// Judges a history of the set workload.
pub fn check(history: &[Op]) -> Report {
    let mut report = Report::new("set");
    let (requests, broken) = requests(history);
    report.doubtful("operations without beginning or end", broken);
    let feeds: BTreeMap<&str, &Feed> = history
        .iter()
        .filter_map(|op| match &op.action {
            Action::Feed(feed) if op.stage == Stage::Ok && is_ours(&feed.user) => Some((feed.user.as_str(), feed)),
            _ => None,
        })
        .collect();
    let users: BTreeSet<&str> = requests.values().map(|request| request.write.user.as_str()).collect();
    let unread = users.iter().filter(|user| !feeds.contains_key(**user)).map(|user| (*user).to_owned());
    report.doubtful("users that were not read back", unread.collect());
    let acknowledged = requests.values().filter(|request| request.reply().is_some()).count();
    let unknown = requests.values().filter(|request| request.fate() == Fate::Unknown).count();
    report.at_least("acknowledged requests", acknowledged, 1);
    report.figure("requests of unknown outcome", unknown);
    check_answers(&requests, &mut report);
    check_records(&requests, &feeds, &mut report);
    check_versions(&requests, &feeds, &mut report);
    check_order(&requests, &mut report);
    report
}

/// Other workloads of the same run have users of their own, which other checkers judge.
fn is_ours(user: &str) -> bool {
    user.starts_with('u')
}

/// One logical write with all its attempts, in the order in which they began.
struct Request<'a> {
    write: &'a Write,
    kind: Kind,
    attempts: Vec<Attempt<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Content that the record never had.
    New,
    /// Content that the record has.
    Same,
}

struct Attempt<'a> {
    began_ns: u64,
    /// `None` = it never ended.
    end: Option<(u64, End<'a>)>,
}

#[derive(Clone, Copy)]
enum End<'a> {
    Ok(&'a Reply),
    Fail(Option<&'a Failure>),
    Info,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    /// No attempt had an effect.
    Refused,
    Unknown,
}

impl Request<'_> {
    /// The first answer that arrived, and when.
    fn first(&self) -> Option<(u64, &Reply)> {
        let answers = self.attempts.iter().filter_map(|attempt| match attempt.end {
            Some((at, End::Ok(reply))) => Some((at, reply)),
            _ => None,
        });
        answers.min_by_key(|(at, _)| *at)
    }

    fn reply(&self) -> Option<&Reply> {
        self.first().map(|(_, reply)| reply)
    }

    fn began_ns(&self) -> u64 {
        self.attempts.iter().map(|attempt| attempt.began_ns).min().unwrap_or(0)
    }

    fn fate(&self) -> Fate {
        if self.reply().is_some() {
            return Fate::Acknowledged;
        }
        let refused = |attempt: &Attempt<'_>| matches!(attempt.end, Some((_, End::Fail(_))));
        if self.attempts.iter().all(refused) { Fate::Refused } else { Fate::Unknown }
    }

    fn name(&self) -> String {
        format!("{}/{} ({})", self.write.user, self.write.key, self.write.request_id)
    }
}

type Requests<'a> = BTreeMap<&'a str, Request<'a>>;

/// Pairs beginnings with ends; also gives what does not pair.
fn requests(history: &[Op]) -> (Requests<'_>, Vec<String>) {
    let mut requests: Requests<'_> = BTreeMap::new();
    let mut open: BTreeMap<Process, (&str, usize)> = BTreeMap::new();
    let mut broken = Vec::new();
    for op in history {
        let Some(write) = op.action.write() else { continue };
        let id = write.request_id.as_str();
        if op.stage == Stage::Invoke {
            let kind = if matches!(op.action, Action::Same(_)) { Kind::Same } else { Kind::New };
            let request = requests.entry(id).or_insert_with(|| Request { write, kind, attempts: Vec::new() });
            if request.write != write {
                broken.push(format!("request {id} was sent with two contents"));
            }
            request.attempts.push(Attempt { began_ns: op.time_ns, end: None });
            if open.insert(op.process, (id, request.attempts.len() - 1)).is_some() {
                broken.push(format!("{:?} began {id} before the end of what it did", op.process));
            }
            continue;
        }
        let Some((_, place)) = open.remove(&op.process).filter(|(invoked, _)| *invoked == id) else {
            broken.push(format!("an end of {id} by {:?}, which did not begin it", op.process));
            continue;
        };
        let end = match (op.stage, &op.reply) {
            (Stage::Ok, Some(reply)) => End::Ok(reply),
            (Stage::Ok, None) => {
                broken.push(format!("{id} is ok without an answer"));
                End::Info
            }
            (Stage::Fail, _) => End::Fail(op.error.as_ref()),
            (Stage::Info | Stage::Invoke, _) => End::Info,
        };
        if let Some(attempt) = requests.get_mut(id).and_then(|request| request.attempts.get_mut(place)) {
            attempt.end = Some((op.time_ns, end));
        }
    }
    (requests, broken)
}

/// What nodes answered must fit together, request by request.
fn check_answers(requests: &Requests<'_>, report: &mut Report) {
    let (mut repetitions, mut differing, mut unchanged, mut changed) = (0usize, Vec::new(), Vec::new(), Vec::new());
    for request in requests.values() {
        let Some((first_at, first)) = request.first() else { continue };
        match (request.kind, first.changed) {
            (Kind::New, false) => unchanged.push(format!("{}: {first:?}", request.name())),
            (Kind::Same, true) => changed.push(format!("{}: {first:?}", request.name())),
            (Kind::New, true) | (Kind::Same, false) => {}
        }
        for attempt in &request.attempts {
            let again = attempt.began_ns > first_at;
            let fine = match attempt.end {
                Some((_, End::Ok(reply))) => {
                    repetitions += usize::from(again);
                    (reply.version, reply.commit_index, reply.changed)
                        == (first.version, first.commit_index, first.changed)
                        && (reply.replayed || !again)
                }
                // Only that nobody could be asked says nothing about a request that took effect.
                Some((_, End::Fail(failure))) => !again || failure.is_some_and(could_not_ask),
                Some((_, End::Info)) | None => true,
            };
            if !fine {
                let end = match attempt.end {
                    Some((_, End::Ok(reply))) => format!("{reply:?}"),
                    Some((_, End::Fail(failure))) => format!("{failure:?}"),
                    Some((_, End::Info)) | None => String::new(),
                };
                differing.push(format!("{}: first {first:?}, later {end}", request.name()));
            }
        }
    }
    report.at_least("requests sent again after their answer", repetitions, 1);
    report.never("answers that differ from the first, or are not replays", differing);
    report.never("new contents that changed nothing: written before", unchanged);
    report.never("known contents that changed something", changed);
    report.never("guards that failed though they held", failed_guards(requests));
}

/// A write that failed because no node could take it, or only one that belongs to no cluster, as its empty disk says; judged
/// by the reason, as the API lists it.
fn could_not_ask(failure: &Failure) -> bool {
    matches!(failure.reason.as_str(), "" | "NO_LEADER" | "DEADLINE_TOO_SHORT" | "NOT_FOUNDED")
}

/// Each guarded record has one writer, which waits for each end: the guard is the version it was told last.
fn failed_guards(requests: &Requests<'_>) -> Vec<String> {
    let mismatch = |attempt: &Attempt<'_>| matches!(attempt.end, Some((_, End::Fail(Some(failure)))) if failure.reason == "VERSION_MISMATCH");
    let guarded = requests.values().filter(|request| request.write.guard.is_some());
    guarded
        .filter(|request| request.attempts.iter().any(mismatch))
        .map(|request| format!("{}: guard {:?}", request.name(), request.write.guard))
        .collect()
}

/// The records that are found against those that were written.
fn check_records(requests: &Requests<'_>, feeds: &BTreeMap<&str, &Feed>, report: &mut Report) {
    let (mut lost, mut bytes, mut older, mut phantoms, mut refused, mut twice) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut by_record: BTreeMap<(&str, &str), Vec<&Request<'_>>> = BTreeMap::new();
    // Known content put again leaves nothing to find but the content itself.
    for request in requests.values().filter(|request| request.kind == Kind::New) {
        by_record.entry((&request.write.user, &request.write.key)).or_default().push(request);
    }
    for (user, feed) in feeds {
        let mut seen = BTreeSet::new();
        for found in &feed.records {
            if !seen.insert(found.key.as_str()) {
                twice.push(format!("{user}/{}", found.key));
            }
            let none = Vec::new();
            let writers = by_record.get(&(*user, found.key.as_str())).unwrap_or(&none);
            let mut writers = writers.iter().filter(|request| request.write.payload == found.payload).peekable();
            if writers.peek().is_none() {
                phantoms.push(format!("{user}/{}: {found:?}", found.key));
            } else if writers.all(|request| request.fate() == Fate::Refused) {
                refused.push(format!("{user}/{}: {found:?}", found.key));
            }
        }
    }
    let found: BTreeMap<(&str, &str), &Found> = feeds
        .iter()
        .flat_map(|(user, feed)| feed.records.iter().map(move |found| ((*user, found.key.as_str()), found)))
        .collect();
    let mut compared = 0usize;
    for ((user, key), requests) in &by_record {
        if !feeds.contains_key(user) {
            continue;
        }
        let acknowledged = requests.iter().filter_map(|request| request.reply().map(|reply| (reply.version, request)));
        let Some((version, newest)) = acknowledged.max_by_key(|(version, _)| *version) else { continue };
        compared += 1;
        match found.get(&(*user, *key)) {
            None => lost.push(newest.name()),
            Some(found) if found.version < version => older.push(format!("{}: {version}, {found:?}", newest.name())),
            Some(found) if found.version == version && found.payload != newest.write.payload => {
                bytes.push(format!("{}: {:?}, {found:?}", newest.name(), newest.write.payload));
            }
            Some(found) if found.version > version && !explains(requests, found) => {
                older.push(format!("{}: {version}, {found:?}", newest.name()));
            }
            Some(_) => {}
        }
    }
    report.at_least("acknowledged records compared", compared, 1);
    report.never("acknowledged, not found", lost);
    report.never("acknowledged, found with other bytes", bytes);
    report.never("acknowledged, found at another version", older);
    report.never("found, never written", phantoms);
    report.never("found, though reported as failed", refused);
    report.never("found twice", twice);
}

/// A newer state than the last acknowledged one can only come from a request of unknown outcome.
fn explains(requests: &[&Request<'_>], found: &Found) -> bool {
    requests.iter().any(|request| request.fate() == Fate::Unknown && request.write.payload == found.payload)
}

/// Each user's versions 1 … head have one owner each.
fn check_versions(requests: &Requests<'_>, feeds: &BTreeMap<&str, &Feed>, report: &mut Report) {
    let (mut shared, mut holes, mut doubts, mut epochs) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
    let mut by_user: BTreeMap<&str, Vec<&Request<'_>>> = BTreeMap::new();
    for request in requests.values().filter(|request| request.kind == Kind::New) {
        by_user.entry(&request.write.user).or_default().push(request);
    }
    let mut accounted = 0usize;
    for (user, feed) in feeds {
        let none = Vec::new();
        let requests = by_user.get(user).unwrap_or(&none);
        let found: BTreeMap<(&str, &str), u64> =
            feed.records.iter().map(|found| ((found.key.as_str(), found.payload.as_str()), found.version)).collect();
        let mut owners: BTreeMap<u64, &Request<'_>> = BTreeMap::new();
        let mut unseen = BTreeMap::<&str, usize>::new();
        for request in requests {
            let write = request.write;
            let version = match (request.reply(), found.get(&(write.key.as_str(), write.payload.as_str()))) {
                (Some(reply), _) => reply.version,
                (None, Some(version)) => *version,
                (None, None) => {
                    if request.fate() == Fate::Unknown {
                        *unseen.entry(write.key.as_str()).or_default() += 1;
                    }
                    continue;
                }
            };
            if let Some(other) = owners.insert(version, request) {
                shared.push(format!("version {version}: {} and {}", other.name(), request.name()));
            }
        }
        accounted += owners.len();
        let all = owners.keys().copied().chain(feed.records.iter().map(|found| found.version));
        let all: BTreeSet<u64> = all.collect();
        epochs.extend(all.iter().map(|version| version >> COUNTER_BITS));
        let head = all.last().map_or(0, |version| version & ((1 << COUNTER_BITS) - 1));
        let epoch = all.last().map_or(0, |version| version >> COUNTER_BITS) << COUNTER_BITS;
        let missing: Vec<u64> = (1..=head).filter(|counter| !owners.contains_key(&(epoch | counter))).collect();
        // An unknown write can hide behind a later one of the same record; nothing else can take a version unseen.
        let written: BTreeSet<&str> = owners.values().map(|owner| owner.write.key.as_str()).collect();
        let hidden: usize = unseen.iter().filter(|(key, _)| written.contains(*key)).map(|(_, count)| *count).sum();
        if missing.len() > hidden {
            holes.extend(missing.iter().map(|counter| format!("{user}: version {counter} of {head}")));
        } else if !missing.is_empty() {
            doubts.push(format!("{user}: versions {missing:?} of {head}, {hidden} unknown writes may hide there"));
        }
    }
    report.figure("versions accounted for", accounted);
    report.never("versions given to two requests", shared);
    report.never("versions that no request took", holes);
    report.doubtful("versions that may be those of unknown writes", doubts);
    let more = epochs.iter().skip(1).map(|epoch| format!("epoch {epoch}, and {:?}", epochs.first()));
    report.never("versions of a second epoch: nothing was restored", more.collect());
}

/// Log indexes: one for each write of a user, rising with the versions of a user and with time.
fn check_order(requests: &Requests<'_>, report: &mut Report) {
    let (mut shared, mut crossed, mut late) = (Vec::new(), Vec::new(), Vec::new());
    let answered: Vec<(&Request<'_>, u64, &Reply)> =
        requests.values().filter_map(|request| request.first().map(|(at, reply)| (request, at, reply))).collect();
    let mut by_index: BTreeMap<(&str, u64), &Request<'_>> = BTreeMap::new();
    let mut by_version: BTreeMap<(&str, u64), (u64, &Request<'_>)> = BTreeMap::new();
    for (request, _, reply) in &answered {
        if let Some(other) = by_index.insert((&request.write.user, reply.commit_index), request) {
            shared.push(format!("index {}: {} and {}", reply.commit_index, other.name(), request.name()));
        }
        if request.kind == Kind::New {
            by_version.insert((&request.write.user, reply.version), (reply.commit_index, request));
        }
    }
    let versions: Vec<_> = by_version.iter().collect();
    for pair in versions.windows(2) {
        let [((user, _), (index, request)), ((next_user, _), (next_index, next))] = pair else { continue };
        if user == next_user && index >= next_index {
            crossed.push(format!("{} at {index} before {} at {next_index}", request.name(), next.name()));
        }
    }
    // Beginnings in order, and the greatest index acknowledged before each.
    let mut began = answered.clone();
    began.sort_by_key(|(request, ..)| request.began_ns());
    let mut ended = answered;
    ended.sort_by_key(|(_, at, _)| *at);
    let mut ended = ended.iter().peekable();
    let mut greatest: Option<(u64, &Request<'_>)> = None;
    for (request, _, reply) in began {
        while let Some((before, _, known)) = ended.next_if(|(_, at, _)| *at < request.began_ns()) {
            if greatest.is_none_or(|(index, _)| known.commit_index > index) {
                greatest = Some((known.commit_index, before));
            }
        }
        if let Some((index, before)) = greatest.filter(|(index, _)| *index >= reply.commit_index) {
            late.push(format!("{} at {} began after {} at {index}", request.name(), reply.commit_index, before.name()));
        }
    }
    report.never("log indexes given to two requests of a user", shared);
    report.never("versions that rise while log indexes do not", crossed);
    report.never("writes placed before one acknowledged earlier", late);
}

#[cfg(test)]
mod tests;
