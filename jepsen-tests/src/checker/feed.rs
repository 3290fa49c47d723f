//! Checker C: what consumers were told of a user's changes is what happened.
//!
//! - *Ordered:* a page's records rise with their versions, and all are newer than the token that the page continues from.
//! - *Unique:* a record is on a page once.
//! - *Atomic:* a page does not end within a commit.
//! - *Reliable:* a page holds the newest state, at the position that it names, of every record changed after its token,
//!   up to its last one; and what a consumer has after its last page is what the replay has, at each end of a sync.
//! - *Resumable:* all this by token alone, whoever got it, at whatever node, after whatever crash.
//! - *No wake-up lost:* at the end each consumer has all; one that is only woken was woken.
//!
//! Which page continues which is known by tokens; what a token stands for is the version up to which it is complete.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::checker::Report;
use crate::checker::paired::{Call, Calls};
use crate::checker::timeline::{self, History, Timeline};
use crate::history::calls::{Follow, Page, Seen, Turned};
use crate::history::{Action, Op, Process};

/// What a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// All changes up to here were on its pages.
    version: u64,
    /// Of a first sync under way: the least and the greatest head that its first page can have seen. Who starts at zero
    /// is not told of what was deleted before.
    started: Option<(u64, u64)>,
}

/// Judges all pages and hints of a history.
pub fn check(history: &[Op], calls: &Calls<'_>, outcomes: &History<'_>) -> Report {
    let mut report = Report::new("feed");
    let mut rules = Rules::default();
    let mut places: HashMap<(&str, &[String], &str), Place> = HashMap::new();
    let mut consumers: BTreeMap<Process, Consumer<'_>> = BTreeMap::new();
    let mut ends: Vec<&Call<'_, Page>> = calls.pages.iter().filter(|call| call.ended_ns.is_some()).collect();
    ends.sort_by_key(|call| call.ended_ns);
    let empty = Timeline::default();
    // Timelines of users of whose writes a page told more than any answer.
    let mut told: BTreeMap<&str, Timeline<'_>> = BTreeMap::new();
    let (mut kept, mut lost, mut moved, mut resumed, mut overwritten) = (0usize, 0usize, 0usize, 0usize, 0usize);
    for call in ends {
        let page = call.what;
        if let Some(resync) = &page.resync {
            rules.resyncs.push(format!("{} {}: {resync}", call.who(), page.user));
        }
        let Some(turned) = &page.turned else { continue };
        let timeline =
            told.get(page.user.as_str()).or_else(|| outcomes.users.get(page.user.as_str())).unwrap_or(&empty);
        let consumer = consumers.entry(call.process).or_default();
        moved += usize::from(consumer.node.is_some_and(|node| node != turned.node));
        resumed += usize::from(consumer.crashed);
        consumer.node = Some(turned.node);
        consumer.crashed = !turned.kept;
        let key = |token| (page.user.as_str(), page.collections.as_slice(), token);
        let from = match page.from.as_str() {
            "" => Some(Place { version: 0, started: Some(timeline.head_at(turned.at.index)) }),
            token => places.get(&key(token)).copied(),
        };
        let Some(from) = from else {
            rules.strange.push(format!("{} {}: continues from a token that no page gave", call.who(), page.user));
            continue;
        };
        let hidden = overwritten_unseen(outcomes, timeline, page, turned, from);
        let timeline = match hidden {
            None => timeline,
            Some(hidden) => {
                overwritten += 1;
                told.insert(page.user.as_str(), hidden);
                &told[page.user.as_str()]
            }
        };
        let next = rules.page(call, turned, timeline, from);
        places.insert(key(&turned.next), next);
        if turned.kept {
            kept += 1;
            consumer.keep(page, turned, timeline, call, &mut rules);
        } else {
            lost += 1;
        }
    }
    report.at_least("pages that were kept", kept, 1);
    report.figure("pages that were lost in a crash", lost);
    report.figure("pages that tell of a write that nobody saw", overwritten);
    report.at_least("syncs resumed after a crash", resumed, 1);
    report.at_least("consumers that went on at another node", moved, 1);
    rules.hints(history, outcomes, &mut report);
    // Where the history does not go to its end, nobody is late.
    let unread = timeline::unread(calls, outcomes);
    let followers = followers(history);
    let came = |process: &Process| consumers.get(process).is_some_and(|consumer| consumer.synced);
    report.at_least(
        "consumers that came to an end",
        consumers.keys().chain(followers.keys()).collect::<BTreeSet<_>>().into_iter().filter(|one| came(one)).count(),
        consumers.keys().chain(followers.keys()).collect::<BTreeSet<_>>().len().max(1),
    );
    report.never("watches that never woke anybody", never_woken(history, &followers, outcomes, &unread));
    let ended = |consumer: &Consumer<'_>| consumer.newest.is_some_and(|(page, _)| !unread.contains(&page.user));
    let behind = consumers.iter().filter(|(_, consumer)| ended(consumer));
    let behind: Vec<String> = behind.filter_map(|(process, consumer)| consumer.behind(*process, outcomes)).collect();
    report.never("consumers that stayed behind: a wake-up or a change was lost", behind);
    report.doubtful("feeds that were not read back", unread);
    rules.report(&mut report);
    report
}

/// Who said that it follows a feed.
fn followers(history: &[Op]) -> BTreeMap<Process, &Follow> {
    let follows = history.iter().filter_map(|op| match &op.action {
        Action::Follow(follow) => Some((op.process, follow)),
        _ => None,
    });
    follows.collect()
}

/// Consumers that ask only when they are woken, and were not once, though there was something to be told: such a one shows
/// in no page.
fn never_woken(
    history: &[Op],
    followers: &BTreeMap<Process, &Follow>,
    outcomes: &History<'_>,
    unread: &[String],
) -> Vec<String> {
    let hint = |op: &Op| matches!(op.action, Action::Hint(_)).then_some(op.process);
    let woken: BTreeSet<Process> = history.iter().filter_map(hint).collect();
    let changed = |user: &str| outcomes.users.get(user).is_some_and(|timeline| !timeline.commits.is_empty());
    let watchers = followers.iter().filter(|(process, follow)| follow.watches && !woken.contains(process));
    let watchers = watchers.filter(|(_, follow)| changed(&follow.user) && !unread.contains(&follow.user));
    watchers.map(|(process, follow)| format!("{process:?} {}", follow.user)).collect()
}

/// Breaches, rule by rule.
#[derive(Default)]
struct Rules {
    unordered: Vec<String>,
    old: Vec<String>,
    repeated: Vec<String>,
    torn: Vec<String>,
    wrong: Vec<String>,
    missing: Vec<String>,
    strange: Vec<String>,
    views: Vec<String>,
    resyncs: Vec<String>,
}

impl Rules {
    fn report(self, report: &mut Report) {
        report.never("pages whose versions do not rise", self.unordered);
        report.never("records that are not newer than the token", self.old);
        report.never("records twice on a page", self.repeated);
        report.never("pages that split a commit", self.torn);
        report.never("records on a page that the replay does not have there", self.wrong);
        report.never("changes that a page left out", self.missing);
        report.never("consumers whose state at the end of a sync is not the replay's", self.views);
        report.never("orders to resync, though nothing was restored", self.resyncs);
        report.doubtful("pages without a beginning", self.strange);
    }

    /// Judges one page; gives what its token stands for.
    fn page(&mut self, call: &Call<'_, Page>, turned: &Turned, timeline: &Timeline<'_>, from: Place) -> Place {
        let page = call.what;
        let name = || {
            format!("{} {} from {} at {} on node {}", call.who(), page.user, from.version, turned.at.index, turned.node)
        };
        let records = &turned.records;
        if let Some(pair) = records.windows(2).find(|pair| pair[0].version > pair[1].version) {
            self.unordered.push(format!("{}: {:?} before {:?}", name(), pair[0], pair[1]));
        }
        if let Some(old) = records.iter().find(|seen| seen.version <= from.version) {
            self.old.push(format!("{}: {old:?}", name()));
        }
        let mut keys = BTreeSet::new();
        if let Some(again) = records.iter().find(|seen| !keys.insert(seen.key.as_str())) {
            self.repeated.push(format!("{}: {again:?}", name()));
        }
        let (least, most) = timeline.head_at(turned.at.index);
        let newest = newest_on(turned);
        if newest > most {
            self.wrong.push(format!("{}: version {newest}, but the head is {most} there", name()));
        }
        for breach in breaches(timeline, page, turned, from) {
            let list = match breach.rule {
                Rule::Wrong => &mut self.wrong,
                Rule::Missing => &mut self.missing,
                Rule::Torn => &mut self.torn,
            };
            list.push(format!("{}: {}", name(), breach.what));
        }
        if turned.more {
            Place { version: newest.max(from.version), started: from.started }
        } else {
            // Complete up to the head; if that is not known for sure, the least that it can be.
            Place { version: least.max(newest).max(from.version), started: None }
        }
    }

    fn hints(&mut self, history: &[Op], outcomes: &History<'_>, report: &mut Report) {
        let (mut count, mut false_) = (0, Vec::new());
        for op in history {
            let Action::Hint(hint) = &op.action else { continue };
            count += 1;
            let unknown = outcomes
                .requests
                .iter()
                .any(|one| one.batch.user == hint.user && one.is_unknown() && one.seen_at.is_none());
            let most = outcomes.users.get(hint.user.as_str()).map_or(0, |timeline| timeline.head_at(hint.at.index).1);
            if hint.head > most && !unknown {
                false_.push(format!("{:?}: {hint:?}, but the head is {most} there", op.process));
            }
        }
        report.figure("hints of watches", count);
        report.never("hints of versions that were not there", false_);
    }
}

/// The newest version on a page; 0 = it is empty.
fn newest_on(turned: &Turned) -> u64 {
    turned.records.iter().map(|seen| seen.version).max().unwrap_or(0)
}

/// How a page differs from the replay.
fn breaches<'a>(timeline: &Timeline<'a>, page: &Page, turned: &'a Turned, from: Place) -> Vec<Breach<'a>> {
    let (least, most) = timeline.head_at(turned.at.index);
    // Only a write of unknown outcome leaves open which of several heads it is.
    let heads = (least.max(newest_on(turned)).min(most))..=most;
    let mut first = None;
    for head in heads.take(HEADS_MAX) {
        let found = Expected::of(timeline, page, from, head).compare(turned);
        if found.is_empty() {
            return Vec::new();
        }
        first.get_or_insert(found);
    }
    first.unwrap_or_default()
}

/// A write of unknown outcome may have overwritten a record that a page leaves out, at a version beyond the page, and have
/// been overwritten itself before anybody looked. Gives the user's timeline with such writes in it, if they explain all that
/// the page leaves out.
fn overwritten_unseen<'a>(
    outcomes: &History<'a>,
    timeline: &Timeline<'a>,
    page: &Page,
    turned: &'a Turned,
    from: Place,
) -> Option<Timeline<'a>> {
    let newest = newest_on(turned);
    let mut told: Option<Timeline<'a>> = None;
    loop {
        let now = told.as_ref().unwrap_or(timeline);
        let found = breaches(now, page, turned, from);
        let Some(first) = found.first() else { return told };
        if !turned.more || found.iter().any(|breach| breach.rule != Rule::Missing) {
            return None;
        }
        let holes = now.holes.iter().filter(|hole| **hole > newest);
        let wrote = |request: &timeline::Request<'_>| request.batch.changes.iter().any(|one| one.key == first.key);
        let writers = (0..outcomes.requests.len()).filter(|place| wrote(&outcomes.requests[*place]));
        let writers: Vec<usize> = writers.collect();
        let pairs = holes.flat_map(|hole| writers.iter().map(|writer| (*hole, *writer)));
        let with = pairs.filter_map(|(hole, writer)| outcomes.with(&page.user, now, hole, writer));
        told = Some(with.into_iter().find(|with| breaches(with, page, turned, from).len() < found.len())?);
    }
}

/// Heads that are tried where writes of unknown outcome leave it open.
const HEADS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Wrong,
    Missing,
    Torn,
}

struct Breach<'a> {
    rule: Rule,
    key: &'a str,
    /// For people.
    what: String,
}

/// What must be on the pages after a token, were the user's head this.
struct Expected<'a> {
    /// By version and key; false = may be left out.
    records: BTreeMap<(u64, &'a str), (Option<&'a str>, bool)>,
}

impl<'a> Expected<'a> {
    fn of(timeline: &Timeline<'a>, page: &Page, from: Place, head: u64) -> Self {
        let mut records = BTreeMap::new();
        for key in timeline.keys.keys().filter(|key| wants(page, key)) {
            let Some((version, content)) = timeline.state(key, head) else { continue };
            if version <= from.version {
                continue;
            }
            let must = match from.started {
                Some(_) if content.is_some() => true,
                // Who starts at zero is not told on the first page, and not of what was gone when it started.
                Some((least, most)) => {
                    if page.from.is_empty() || version <= least {
                        continue;
                    }
                    version > most
                }
                None => true,
            };
            records.insert((version, *key), (content, must));
        }
        Self { records }
    }

    fn compare(&self, turned: &'a Turned) -> Vec<Breach<'a>> {
        let mut found = Vec::new();
        let mut there: BTreeSet<(u64, &str)> = BTreeSet::new();
        for seen in &turned.records {
            there.insert((seen.version, &seen.key));
            let expected = self.records.get(&(seen.version, seen.key.as_str())).map(|(content, _)| *content);
            if expected != Some(seen.payload.as_deref()) {
                let what = format!("{seen:?}, the replay has {expected:?}");
                found.push(Breach { rule: Rule::Wrong, key: &seen.key, what });
            }
        }
        let last = turned.records.iter().map(|seen| seen.version).max();
        for ((version, key), (content, must)) in &self.records {
            if !must || there.contains(&(*version, *key)) {
                continue;
            }
            let rule = match last {
                _ if !turned.more && last.is_none_or(|last| *version > last) => Rule::Missing,
                Some(last) if *version == last => Rule::Torn,
                Some(last) if *version < last => Rule::Missing,
                _ => continue,
            };
            let what = format!("{key} at version {version} ({content:?}) is not on it");
            found.push(Breach { rule, key, what });
        }
        found
    }
}

fn wants(page: &Page, key: &str) -> bool {
    let collection = key.split('/').next().unwrap_or(key);
    page.collections.is_empty() || page.collections.iter().any(|wanted| wanted == collection)
}

/// What a consumer has saved.
#[derive(Default)]
struct Consumer<'a> {
    records: BTreeMap<&'a str, (u64, &'a str)>,
    newest: Option<(&'a Page, &'a Turned)>,
    node: Option<u64>,
    crashed: bool,
    synced: bool,
}

impl<'a> Consumer<'a> {
    fn keep(
        &mut self,
        page: &'a Page,
        turned: &'a Turned,
        timeline: &Timeline<'_>,
        call: &Call<'_, Page>,
        rules: &mut Rules,
    ) {
        if page.from.is_empty() {
            self.records.clear();
        }
        for Seen { key, version, payload } in &turned.records {
            match payload {
                Some(content) => drop(self.records.insert(key, (*version, content))),
                None => drop(self.records.remove(key.as_str())),
            }
        }
        self.newest = Some((page, turned));
        self.synced |= !turned.more;
        if turned.more {
            return;
        }
        let (least, most) = timeline.head_at(turned.at.index);
        let differences: Vec<String> =
            (least..=most).take(HEADS_MAX).map_while(|head| self.differs(page, timeline, head)).collect();
        if differences.len() as u64 == (most - least + 1).min(HEADS_MAX as u64)
            && let Some(first) = differences.into_iter().next()
        {
            rules.views.push(format!("{} {} at {}: {first}", call.who(), page.user, turned.at.index));
        }
    }

    /// How what it has is not what there is; `None` = it is.
    fn differs(&self, page: &Page, timeline: &Timeline<'_>, head: u64) -> Option<String> {
        let mut count = 0;
        for key in timeline.keys.keys().filter(|key| wants(page, key)) {
            let Some((version, Some(content))) = timeline.state(key, head) else { continue };
            count += 1;
            let has = self.records.get(key).copied();
            if has != Some((version, content)) {
                return Some(format!("{key}: it has {has:?}, the replay {:?}", (version, content)));
            }
        }
        (count != self.records.len()).then(|| format!("it has {} records, the replay {count}", self.records.len()))
    }

    /// After everything, it must have everything.
    fn behind(&self, process: Process, outcomes: &History<'_>) -> Option<String> {
        let (page, turned) = self.newest?;
        let timeline = outcomes.users.get(page.user.as_str())?;
        let head = timeline.commits.last().map_or(0, |commit| commit.version);
        let differs = self.differs(page, timeline, head)?;
        Some(format!("{process:?} {}, its last page at {}: {differs}", page.user, turned.at.index))
    }
}

#[cfg(test)]
mod tests;
