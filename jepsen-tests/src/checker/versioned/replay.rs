//! Each user's writes through the model, and writes that nobody saw where only they explain an answer.

use std::collections::BTreeSet;

use super::{Times, refusal, shown, unchanged};
use crate::checker::Report;
use crate::checker::model::{COUNTER_BITS, Outcome, Records, Stored};
use crate::checker::paired::Calls;
use crate::checker::timeline::{History, Request, Timeline};
use crate::history::calls::{Batch, Done, Seen};

/// Places of writes that nobody saw which are tried to explain one answer; each costs a replay of the user's writes.
const TRIED_MAX: usize = 4096;

/// Every acknowledged write must have the outcome that the model gives it.
pub(super) fn check(calls: &Calls<'_>, history: &History<'_>, times: &Times, report: &mut Report) {
    let (mut wrong, mut doubts, mut placed) = (Vec::new(), Vec::new(), 0);
    for (user, timeline) in &history.users {
        let mut replay = Replay {
            history,
            user,
            answers: None,
            calls,
            times,
            original: timeline,
            current: None,
            gone_on: BTreeSet::new(),
        };
        replay.run(&mut wrong, &mut doubts);
        placed += replay.timeline().commits.len() - timeline.commits.len();
    }
    for request in &history.requests {
        let Some((done, _)) = request.done else { continue };
        if done.results.iter().all(|result| !result.changed)
            && let Some(timeline) = history.users.get(request.batch.user.as_str())
        {
            wrong.extend(unchanged(timeline, request, done.at.index, &done.results));
        }
    }
    report.never("answers that the model contradicts", wrong);
    report.figure("writes that nobody saw, and that an answer tells of", placed);
    report.doubtful("answers that no single write of unknown outcome explains", doubts);
}

/// One user's commits through the model.
struct Replay<'a, 'h> {
    history: &'a History<'h>,
    calls: &'a Calls<'h>,
    times: &'a Times,
    user: &'a str,
    /// What the user's other answers say, once it is asked.
    answers: Option<Answers<'a>>,
    /// Without writes that nobody saw.
    original: &'a Timeline<'h>,
    /// With those that an answer tells of.
    current: Option<Timeline<'h>>,
    /// Versions at which what the node said was taken for true.
    gone_on: BTreeSet<u64>,
}

/// An answer, or something that was seen, that the model contradicts.
struct Mismatch {
    version: u64,
    /// Versions before it are missing.
    hidden: bool,
    shown: String,
}

impl<'h> Replay<'_, 'h> {
    fn timeline(&self) -> &Timeline<'h> {
        self.current.as_ref().unwrap_or(self.original)
    }

    fn run(&mut self, wrong: &mut Vec<String>, doubts: &mut Vec<String>) {
        while let Some(mismatch) = self.walk(self.timeline()) {
            if let Some(explained) = self.explain(&mismatch) {
                self.current = Some(explained);
                continue;
            }
            self.gone_on.insert(mismatch.version);
            if mismatch.hidden || !self.original.holes.is_empty() {
                doubts.push(mismatch.shown);
            } else {
                wrong.push(mismatch.shown);
            }
        }
    }

    /// The first answer that the model contradicts.
    fn walk(&self, timeline: &Timeline<'h>) -> Option<Mismatch> {
        let mut records = Records::default();
        for commit in &timeline.commits {
            let (version, request) = (commit.version, &self.history.requests[commit.request]);
            let hidden = records.head + 1 != version && version & ((1 << COUNTER_BITS) - 1) != 1;
            // What nobody saw took its version and left nothing that anybody saw.
            records.head = version - 1;
            let outcome = records.apply(&request.batch.changes);
            let shown = match (&outcome, request.done) {
                (Outcome::Refused(clashes), None) => {
                    format!("{} was seen at {version}, but {clashes:?}", request.name())
                }
                // What changes nothing takes no version.
                (Outcome::Done { version: took, .. }, None) if request.seen_at.is_none() && *took != version => {
                    format!("{} would change nothing at {version}", request.name())
                }
                (Outcome::Done { .. }, None) => continue,
                (_, Some((done, _))) => {
                    let told = Outcome::Done { version: done.version, results: done.results.clone() };
                    if outcome == told {
                        continue;
                    }
                    format!("{}: told {told:?}, the model says {outcome:?}", request.name())
                }
            };
            if !self.gone_on.contains(&version) {
                return Some(Mismatch { version, hidden, shown });
            }
            if request.done.is_some() {
                records.head = version;
                for change in &request.batch.changes {
                    let stored = Stored { version, content: change.put.as_deref() };
                    records.stored.insert(&change.key, stored);
                }
            }
        }
        None
    }

    /// The timeline with a write of unknown outcome that nobody saw, at a version with which it explains the answer and
    /// contradicts nothing else that anybody was told.
    fn explain(&mut self, mismatch: &Mismatch) -> Option<Timeline<'h>> {
        let holes = self.timeline().holes.iter().copied().filter(|hole| *hole < mismatch.version);
        let holes: Vec<u64> = holes.collect();
        let unseen = |request: &Request<'_>| {
            request.batch.user == self.user && request.is_unknown() && request.seen_at.is_none()
        };
        let requests = &self.history.requests;
        let unseen: Vec<usize> = (0..requests.len()).filter(|place| unseen(&requests[*place])).collect();
        // What goes on contradicting itself has other reasons.
        if holes.len() * unseen.len() > TRIED_MAX {
            return None;
        }
        // The newest first: most often it is the one just before.
        for hole in holes.into_iter().rev() {
            for request in &unseen {
                let Some(with) = self.history.with(self.user, self.timeline(), hole, *request) else { continue };
                if self.walk(&with).is_some_and(|next| next.version <= mismatch.version) {
                    continue;
                }
                let commit = with.commits.iter().find(|commit| commit.request == *request);
                if commit.is_some_and(|commit| self.times.is_late(&requests[*request], commit)) {
                    continue;
                }
                let (calls, history, user) = (self.calls, self.history, self.user);
                let answers = self.answers.get_or_insert_with(|| Answers::of(calls, history, user));
                if answers.agree(history, &with) {
                    return Some(with);
                }
            }
        }
        None
    }
}

/// All that was said of a user's records, but for what writes were answered.
struct Answers<'a> {
    /// Keys that were looked at, where, and what was there.
    looks: Vec<(&'a [String], u64, &'a [Seen])>,
    /// Records on pages, and where.
    pages: Vec<(u64, &'a Seen)>,
    refused: Vec<&'a Batch>,
    unchanged: Vec<(&'a Request<'a>, &'a Done)>,
}

impl<'a> Answers<'a> {
    fn of(calls: &'a Calls<'_>, history: &'a History<'_>, user: &str) -> Self {
        let reads = calls.reads.iter().map(|call| call.what).filter(|read| read.user == user);
        let reads = reads.filter_map(|read| {
            let got = read.got.as_ref()?;
            Some((read.keys.as_slice(), got.at.index, got.records.as_slice()))
        });
        let restored = calls.restored.iter().filter_map(|call| Some((call.what.at?, &call.what.users)));
        let restored = restored.flat_map(|(at, users)| users.iter().map(move |one| (at, one)));
        let restored = restored.filter(|(_, one)| one.user == user);
        let restored = restored.map(|(at, one)| (one.keys.as_slice(), at.index, one.records.as_slice()));
        let pages = calls.pages.iter().map(|call| call.what).filter(|page| page.user == user);
        let pages = pages.filter_map(|page| page.turned.as_ref());
        let pages = pages.flat_map(|turned| turned.records.iter().map(|seen| (turned.at.index, seen)));
        let refused = calls.batches.iter().map(|call| call.what);
        let requests = history.requests.iter().filter(|request| request.batch.user == user);
        let unchanged = requests.filter_map(|request| Some((request, request.done?.0)));
        Self {
            looks: reads.chain(restored).collect(),
            pages: pages.collect(),
            refused: refused.filter(|batch| batch.user == user && batch.refused.is_some()).collect(),
            unchanged: unchanged.filter(|(_, done)| done.results.iter().all(|one| !one.changed)).collect(),
        }
    }

    fn agree(&self, history: &History<'_>, timeline: &Timeline<'_>) -> bool {
        let page = |index: u64, seen: &Seen| {
            shown(timeline, "", std::slice::from_ref(&seen.key), index, std::slice::from_ref(seen)).is_none()
        };
        self.looks.iter().all(|(keys, index, records)| shown(timeline, "", keys, *index, records).is_none())
            && self.pages.iter().all(|(index, seen)| page(*index, seen))
            && self.refused.iter().all(|batch| refusal(history, timeline, batch).is_empty())
            && self.unchanged.iter().all(|(one, done)| unchanged(timeline, one, done.at.index, &done.results).is_none())
    }
}
