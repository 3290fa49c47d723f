//! What became of every write, user by user: the commits in the order of their versions, each with the log positions
//! that it can have.
//!
//! An acknowledged write names its version and position. One of unknown outcome has both only if its content was seen:
//! then its version is the one it was seen at, and its position lies between those of its neighbours and is at most that
//! of the first answer that shows it, or anything later. One that nobody saw can only fill a hole in the versions; which
//! one is not asked here, unless an answer tells of it ([`History::with`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::checker::model::COUNTER_BITS;
use crate::checker::paired::{Call, Calls};
use crate::history::calls::{Batch, Done, Guard, Point, Seen};
use crate::history::{Named, Process, Stage};

/// One logical write with all its attempts.
#[derive(Debug)]
pub struct Request<'a> {
    /// What was asked.
    pub batch: &'a Batch,
    /// When its first attempt began.
    pub began_ns: u64,
    /// The first answer, and when it was known.
    pub done: Option<(&'a Done, u64)>,
    /// No attempt took or will take effect.
    pub refused: bool,
    /// For a write of unknown outcome: the version that it was seen at.
    pub seen_at: Option<u64>,
}

impl Request<'_> {
    /// Nobody was told whether it took effect.
    pub fn is_unknown(&self) -> bool {
        self.done.is_none() && !self.refused
    }

    /// For people, and to look it up in the history.
    pub fn name(&self) -> String {
        let keys: Vec<&str> = self.batch.changes.iter().map(|change| change.key.as_str()).collect();
        format!("{} {} ({})", self.batch.user, keys.join("+"), self.batch.request_id)
    }
}

/// A write that took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Its version.
    pub version: u64,
    /// Its place in [`History::requests`].
    pub request: usize,
    /// Least position that it can have.
    pub low: u64,
    /// Greatest position that it can have.
    pub high: u64,
}

/// One user's commits.
#[derive(Debug, Default)]
pub struct Timeline<'a> {
    /// By version.
    pub commits: Vec<Commit>,
    /// For each key its states, by version.
    pub keys: HashMap<&'a str, Vec<(u64, Option<&'a str>)>>,
    /// Versions that no write is known to have taken.
    pub holes: Vec<u64>,
}

impl<'a> Timeline<'a> {
    /// These commits, in the order of their versions.
    fn of(versions: &[(u64, usize)], known: &Known<'_>, requests: &[Request<'a>]) -> Self {
        let mut timeline = Self { commits: commits(versions, &known.indexes, requests), ..Self::default() };
        for commit in &timeline.commits {
            let request = &requests[commit.request];
            for (place, change) in request.batch.changes.iter().enumerate() {
                // Whoever writes a delete together with something else waits until its end is known.
                if request.done.is_none_or(|(done, _)| done.results[place].changed) {
                    timeline.keys.entry(&change.key).or_default().push((commit.version, change.put.as_deref()));
                }
            }
        }
        let epoch = timeline.commits.last().map_or(0, |commit| commit.version >> COUNTER_BITS) << COUNTER_BITS;
        let mut expected = epoch + 1;
        for commit in &timeline.commits {
            timeline.holes.extend(expected..commit.version.min(expected + HOLES_MAX));
            expected = commit.version + 1;
        }
        timeline
    }
}

impl<'a> Timeline<'a> {
    /// The user's newest version at a position, at least and at most.
    pub fn head_at(&self, index: u64) -> (u64, u64) {
        let version = |count: usize| count.checked_sub(1).map_or(0, |last| self.commits[last].version);
        let least = self.commits.partition_point(|commit| commit.high <= index);
        let most = self.commits.partition_point(|commit| commit.low <= index);
        (version(least), version(most))
    }

    /// The first change of a key after a version.
    pub fn next(&self, key: &str, version: u64) -> Option<u64> {
        let states = self.keys.get(key)?;
        states.get(states.partition_point(|(at, _)| *at <= version)).map(|(at, _)| *at)
    }

    /// The state of a key as of a version of the user.
    pub fn state(&self, key: &str, head: u64) -> Option<(u64, Option<&'a str>)> {
        let states = self.keys.get(key)?;
        states.partition_point(|(at, _)| *at <= head).checked_sub(1).map(|last| states[last])
    }
}

/// All that became of all writes.
#[derive(Debug, Default)]
pub struct History<'a> {
    /// Logical writes, by their ids.
    pub requests: Vec<Request<'a>>,
    /// By user.
    pub users: BTreeMap<&'a str, Timeline<'a>>,
    /// Contents that were seen and never written.
    pub phantoms: Vec<String>,
    /// Contents that were seen though their write was refused.
    pub undead: Vec<String>,
    /// Writes that were seen at two versions.
    pub twice: Vec<String>,
    /// Versions of two writes.
    pub shared: Vec<String>,
    /// Versions that no write can have taken.
    pub unowned: Vec<String>,
    /// Requests with two contents, or contents of two requests: the workload is not what the checker thinks.
    pub confused: Vec<String>,
    /// What answers say of each user's versions.
    known: HashMap<&'a str, Known<'a>>,
}

impl<'a> History<'a> {
    /// A user's timeline with one more commit: a write of unknown outcome that nobody saw, at one of its holes. `None` =
    /// it cannot have taken that version, or then no write is left for another hole.
    pub fn with(&self, user: &str, timeline: &Timeline<'a>, hole: u64, request: usize) -> Option<Timeline<'a>> {
        let known = self.known.get(user)?;
        let (fits, holes) = (fits(&self.requests[request], hole, timeline, known), &timeline.holes);
        if !fits || !holes.contains(&hole) || !unseen(user, timeline, &self.requests).contains(&request) {
            return None;
        }
        let mut versions: Vec<(u64, usize)> = timeline.commits.iter().map(|one| (one.version, one.request)).collect();
        versions.push((hole, request));
        versions.sort_unstable();
        let with = Timeline::of(&versions, known, &self.requests);
        let count = |timeline| unowned(user, timeline, known, &self.requests).len();
        (count(&with) <= count(timeline)).then_some(with)
    }
}

/// An answer that shows records.
struct Sight<'a> {
    user: &'a str,
    at: Point,
    ended_ns: u64,
    records: &'a [Seen],
}

/// Users that nobody read back when all had ended: what became of their writes is not known.
pub fn unread<'a>(calls: &Calls<'a>, history: &History<'a>) -> Vec<String> {
    let reader = Process::Named(Named::Reader);
    let read = calls.reads.iter().filter(|call| call.process == reader && call.what.got.is_some());
    let read: BTreeSet<&str> = read.map(|call| call.what.user.as_str()).collect();
    history.users.keys().filter(|user| !read.contains(**user)).map(|user| (*user).to_owned()).collect()
}

/// Puts a history's commits in order.
pub fn history<'a>(calls: &Calls<'a>) -> History<'a> {
    let mut history = History::default();
    requests(&calls.batches, &mut history);
    let sights = sights(calls);
    let owners = owners(&mut history);
    for sight in &sights {
        for seen in sight.records {
            identify(sight, seen, &owners, &mut history);
        }
    }
    let known = known(&sights, calls, &history.requests);
    identify_deletes(&sights, &known, &mut history);
    place(known, &mut history);
    history
}

fn requests<'a>(batches: &[Call<'a, Batch>], history: &mut History<'a>) {
    let mut by_id: HashMap<&str, usize> = HashMap::new();
    let mut open: Vec<bool> = Vec::new();
    for call in batches {
        let batch = call.what;
        let place = *by_id.entry(&batch.request_id).or_insert_with(|| {
            let began_ns = call.began_ns;
            history.requests.push(Request { batch, began_ns, done: None, refused: false, seen_at: None });
            open.push(false);
            history.requests.len() - 1
        });
        let request = &mut history.requests[place];
        if (&request.batch.user, &request.batch.changes) != (&batch.user, &batch.changes) {
            history.confused.push(format!("request {} was sent with two contents", batch.request_id));
        }
        match (call.stage, &batch.done, call.ended_ns) {
            (Stage::Ok, Some(done), Some(ended_ns)) => {
                if request.done.is_none_or(|(_, first)| ended_ns < first) {
                    request.done = Some((done, ended_ns));
                }
            }
            // A version that passed never comes back: then no earlier attempt can pass any more either.
            (Stage::Fail, ..) if batch.refused.is_some() && is_final(batch) => request.refused = true,
            (Stage::Fail, ..) => {}
            _ => open[place] = true,
        }
    }
    for (request, open) in history.requests.iter_mut().zip(open) {
        request.refused = request.done.is_none() && (request.refused || !open);
    }
}

/// A refusal now says that the request will never take effect.
fn is_final(batch: &Batch) -> bool {
    batch.changes.iter().all(|change| matches!(change.guard, None | Some(Guard::Version { version: 1.., .. })))
}

fn sights<'a>(calls: &Calls<'a>) -> Vec<Sight<'a>> {
    let reads = calls.reads.iter().filter_map(|call| {
        let (got, ended_ns) = (call.what.got.as_ref()?, call.ended_ns?);
        Some(Sight { user: &call.what.user, at: got.at, ended_ns, records: &got.records })
    });
    let pages = calls.pages.iter().filter_map(|call| {
        let (turned, ended_ns) = (call.what.turned.as_ref()?, call.ended_ns?);
        Some(Sight { user: &call.what.user, at: turned.at, ended_ns, records: &turned.records })
    });
    // A restored cluster shows the old one as it was at the position that it was restored to.
    let restored = calls.restored.iter().filter_map(|call| Some((call.what, call.what.at?, call.ended_ns?)));
    let restored = restored.flat_map(|(restored, at, ended_ns)| {
        restored.users.iter().map(move |user| Sight { user: &user.user, at, ended_ns, records: &user.records })
    });
    reads.chain(pages).chain(restored).collect()
}

type Owners<'a> = HashMap<(&'a str, &'a str, &'a str), usize>;

/// Who wrote which content.
fn owners<'a>(history: &mut History<'a>) -> Owners<'a> {
    let mut owners = Owners::new();
    for (place, request) in history.requests.iter().enumerate() {
        let changes = &request.batch.changes;
        for (key, content) in changes.iter().filter_map(|change| Some((change.key.as_str(), change.put.as_deref()?))) {
            let other = owners.insert((&request.batch.user, key, content), place);
            if let Some(other) = other.map(|other| &history.requests[other]) {
                history.confused.push(format!("{} and {} write {content:?}", other.name(), request.name()));
            }
        }
    }
    owners
}

fn identify<'a>(sight: &Sight<'a>, seen: &'a Seen, owners: &Owners<'a>, history: &mut History<'a>) {
    let Some(content) = &seen.payload else { return };
    let what = || format!("{} {seen:?} at {}", sight.user, sight.at.index);
    let Some(place) = owners.get(&(sight.user, seen.key.as_str(), content.as_str())) else {
        history.phantoms.push(what());
        return;
    };
    let request = &mut history.requests[*place];
    if request.refused {
        history.undead.push(format!("{}, of {}", what(), request.name()));
        return;
    }
    let known = match request.done {
        Some((done, _)) => Some(version_of(request.batch, done, &seen.key)),
        None => request.seen_at,
    };
    match known {
        Some(known) if known != seen.version => {
            history.twice.push(format!("{}, of {}, which has version {known}", what(), request.name()));
        }
        Some(_) => {}
        None => request.seen_at = Some(seen.version),
    }
}

/// The version that a batch gave to a key.
fn version_of(batch: &Batch, done: &Done, key: &str) -> u64 {
    let results = batch.changes.iter().zip(&done.results);
    results.filter(|(change, _)| change.key == key).map(|(_, result)| result.version).next().unwrap_or(done.version)
}

/// A tombstone does not say who left it. Of the deletes of unknown outcome that had begun when its version was known to
/// be there, or a later one, the last to begin is taken: those that are left fit wherever that one would.
fn identify_deletes<'a>(sights: &[Sight<'a>], since: &HashMap<&'a str, Known<'a>>, history: &mut History<'a>) {
    let mut known: HashMap<(&str, u64), usize> = HashMap::new();
    let mut unknown: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
    for (place, request) in history.requests.iter().enumerate() {
        let user = request.batch.user.as_str();
        if let Some(version) = commit_version(request) {
            known.insert((user, version), place);
        } else if request.is_unknown() {
            for change in request.batch.changes.iter().filter(|change| change.put.is_none()) {
                unknown.entry((user, &change.key)).or_default().push(place);
            }
        }
    }
    // In the order of their versions, each with the moment at which it was known to be there.
    let mut nobodys: BTreeMap<(&str, &str, u64), u64> = BTreeMap::new();
    for sight in sights {
        for seen in sight.records.iter().filter(|seen| seen.payload.is_none()) {
            let Some(place) = known.get(&(sight.user, seen.version)) else {
                let ended_ns = nobodys.entry((sight.user, &seen.key, seen.version)).or_insert(u64::MAX);
                *ended_ns = sight.ended_ns.min(*ended_ns);
                continue;
            };
            let mut deletes = history.requests[*place].batch.changes.iter().filter(|change| change.put.is_none());
            if !deletes.any(|change| change.key == seen.key) {
                history.phantoms.push(format!("{} {seen:?} at {}", sight.user, sight.at.index));
            }
        }
    }
    // A delete that changed nothing names the tombstone that was there.
    for request in &history.requests {
        let Some((done, ended_ns)) = request.done else { continue };
        let user = request.batch.user.as_str();
        for (change, result) in request.batch.changes.iter().zip(&done.results) {
            let names_one = change.put.is_none() && !result.changed && result.version > 0;
            if names_one && !known.contains_key(&(user, result.version)) {
                let known_ns = nobodys.entry((user, &change.key, result.version)).or_insert(u64::MAX);
                *known_ns = ended_ns.min(*known_ns);
            }
        }
    }
    for ((user, key, version), ended_ns) in nobodys {
        let known_ns = since.get(user).map_or(u64::MAX, |known| known.times.of(version)).min(ended_ns);
        let candidates = unknown.get(&(user, key)).into_iter().flatten().copied();
        let free = |request: &Request<'_>| request.seen_at.is_none() && request.began_ns < known_ns;
        let fitting = candidates.into_iter().filter(|place| free(&history.requests[*place]));
        match fitting.max_by_key(|place| history.requests[*place].began_ns) {
            Some(place) => history.requests[place].seen_at = Some(version),
            None => history.phantoms.push(format!("{user} {key}: a tombstone at version {version}")),
        }
    }
}

/// The version that a write took; `None` = it took none, as far as is known.
pub fn commit_version(request: &Request<'_>) -> Option<u64> {
    match request.done {
        Some((done, _)) => done.results.iter().any(|result| result.changed).then_some(done.version),
        None => request.seen_at,
    }
}

/// For each version the least of something that was known of it or of a later one.
#[derive(Debug, Default)]
struct SinceSeen(Vec<(u64, u64)>);

impl SinceSeen {
    /// To be called when all is in.
    fn settle(&mut self) {
        self.0.sort_unstable();
        for place in (1..self.0.len()).rev() {
            self.0[place - 1].1 = self.0[place - 1].1.min(self.0[place].1);
        }
    }

    fn of(&self, version: u64) -> u64 {
        self.0.get(self.0.partition_point(|(at, _)| *at < version)).map_or(u64::MAX, |(_, least)| *least)
    }
}

/// What answers say of a user's versions.
#[derive(Debug, Default)]
struct Known<'a> {
    /// Positions at which they were there.
    indexes: SinceSeen,
    /// When that was known.
    times: SinceSeen,
    /// The greatest position at which a key was read.
    looked: HashMap<&'a str, u64>,
}

fn known<'a>(sights: &[Sight<'a>], calls: &Calls<'a>, requests: &[Request<'a>]) -> HashMap<&'a str, Known<'a>> {
    let mut all: HashMap<&str, Known<'a>> = HashMap::new();
    for sight in sights {
        let known = all.entry(sight.user).or_default();
        if let Some(newest) = sight.records.iter().map(|seen| seen.version).max() {
            known.indexes.0.push((newest, sight.at.index));
            known.times.0.push((newest, sight.ended_ns));
        }
    }
    for request in requests {
        if let (Some(version), Some((_, ended_ns))) = (commit_version(request), request.done) {
            all.entry(&request.batch.user).or_default().times.0.push((version, ended_ns));
        }
    }
    for read in calls.reads.iter().map(|call| call.what) {
        let Some(got) = &read.got else { continue };
        let looked = &mut all.entry(&read.user).or_default().looked;
        for key in &read.keys {
            let newest = looked.entry(key).or_default();
            *newest = got.at.index.max(*newest);
        }
    }
    for known in all.values_mut() {
        known.indexes.settle();
        known.times.settle();
    }
    all
}

fn place<'a>(mut known: HashMap<&'a str, Known<'a>>, history: &mut History<'a>) {
    let mut by_user: BTreeMap<&str, Vec<(u64, usize)>> = BTreeMap::new();
    for (place, request) in history.requests.iter().enumerate() {
        let commits = by_user.entry(&request.batch.user).or_default();
        commits.extend(commit_version(request).map(|version| (version, place)));
    }
    for (user, mut versions) in by_user {
        versions.sort_unstable();
        for pair in versions.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            let [one, other] = [pair[0].1, pair[1].1].map(|place| history.requests[place].name());
            history.shared.push(format!("version {}: {one} and {other}", pair[0].0));
        }
        versions.dedup_by_key(|(version, _)| *version);
        let known = known.entry(user).or_default();
        let timeline = Timeline::of(&versions, known, &history.requests);
        let missing = unowned(user, &timeline, known, &history.requests);
        history.unowned.extend(missing.into_iter().map(|hole| format!("{user}: version {hole}")));
        history.users.insert(user, timeline);
    }
    history.known = known;
}

/// So many missing versions in a row say enough.
const HOLES_MAX: u64 = 1000;

fn commits(versions: &[(u64, usize)], seen: &SinceSeen, requests: &[Request<'_>]) -> Vec<Commit> {
    let index = |place: usize| requests[place].done.map(|(done, _)| done.at.index);
    let mut commits = Vec::with_capacity(versions.len());
    let mut low = 1;
    for (version, request) in versions.iter().copied() {
        let (least, most) = match index(request) {
            Some(index) => (index, index),
            None => (low, seen.of(version)),
        };
        low = low.max(least.saturating_add(1));
        commits.push(Commit { version, request, low: least, high: most });
    }
    let mut high = u64::MAX;
    for commit in commits.iter_mut().rev() {
        if requests[commit.request].done.is_none() {
            commit.high = commit.high.min(high);
        }
        high = high.min(commit.high.saturating_sub(1));
    }
    commits
}

/// Writes of unknown outcome that nobody saw, and that have no version yet.
fn unseen(user: &str, timeline: &Timeline<'_>, requests: &[Request<'_>]) -> Vec<usize> {
    let placed: BTreeSet<usize> = timeline.commits.iter().map(|commit| commit.request).collect();
    let is_unseen = |place: &usize| {
        let request = &requests[*place];
        request.batch.user == user && request.is_unknown() && request.seen_at.is_none() && !placed.contains(place)
    };
    (0..requests.len()).filter(is_unseen).collect()
}

/// It began before this version or a later one was known, and each of its keys was overwritten, or not looked at, since.
fn fits(request: &Request<'_>, hole: u64, timeline: &Timeline<'_>, known: &Known<'_>) -> bool {
    let hidden = |key: &str| {
        let last = timeline.keys.get(key).and_then(|states| states.last()).map_or(0, |(at, _)| *at);
        let looked = known.looked.get(key).map_or(0, |index| timeline.head_at(*index).0);
        last > hole || looked < hole
    };
    request.began_ns < known.times.of(hole) && request.batch.changes.iter().all(|one| hidden(&one.key))
}

/// Each hole must have a write of unknown outcome that fits and has no other one: gives those that have none.
fn unowned(user: &str, timeline: &Timeline<'_>, known: &Known<'_>, requests: &[Request<'_>]) -> Vec<u64> {
    if timeline.holes.is_empty() {
        return Vec::new();
    }
    let unseen = unseen(user, timeline, requests);
    let fitting = |hole: &u64| {
        let all = unseen.iter().enumerate();
        all.filter(|(_, request)| fits(&requests[**request], *hole, timeline, known)).map(|(place, _)| place).collect()
    };
    let fitting: Vec<Vec<usize>> = timeline.holes.iter().map(fitting).collect();
    let mut taken = vec![None; unseen.len()];
    let mut missing = Vec::new();
    for (place, hole) in timeline.holes.iter().enumerate() {
        if !augment(place, &fitting, &mut taken, &mut vec![false; unseen.len()]) {
            missing.push(*hole);
        }
    }
    missing
}

/// Finds a write for a hole, if need be by finding another one for the hole that has it (Kuhn's matching).
fn augment(hole: usize, fitting: &[Vec<usize>], taken: &mut [Option<usize>], tried: &mut [bool]) -> bool {
    for request in &fitting[hole] {
        if std::mem::replace(&mut tried[*request], true) {
            continue;
        }
        let free = match taken[*request] {
            None => true,
            Some(other) => augment(other, fitting, taken, tried),
        };
        if free {
            taken[*request] = Some(hole);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_by_distinct_writes_and_only_by_fitting_ones() {
        let filled = |fitting: &[&[usize]]| {
            let fitting: Vec<Vec<usize>> = fitting.iter().map(|fits| fits.to_vec()).collect();
            let mut taken = vec![None; 3];
            (0..fitting.len()).map(|hole| augment(hole, &fitting, &mut taken, &mut [false; 3])).collect::<Vec<_>>()
        };
        assert_eq!(filled(&[&[0], &[1]]), [true, true]);
        assert_eq!(filled(&[&[0], &[0]]), [true, false]);
        // The first hole gives up what only the second can take.
        assert_eq!(filled(&[&[0, 1], &[0]]), [true, true]);
        assert_eq!(filled(&[&[0, 1], &[0, 2], &[0]]), [true, true, true]);
        assert_eq!(filled(&[&[]]), [false]);
    }

    #[test]
    fn what_is_known_of_a_later_version_is_known_of_an_earlier_one() {
        let mut known = SinceSeen(vec![(5, 50), (3, 70), (9, 60)]);
        known.settle();
        assert_eq!([1, 3, 4, 5, 6, 9, 10].map(|version| known.of(version)), [50, 50, 50, 50, 60, 60, u64::MAX]);
    }
}
