//! Beginnings and ends of calls, put together.

use std::collections::BTreeMap;

use crate::history::calls::{Batch, Page, Read, Restored};
use crate::history::{Action, Failure, Op, Process, Stage};

/// One call of a client, from its beginning to its end.
#[derive(Debug)]
pub struct Call<'a, T> {
    /// Who.
    pub process: Process,
    /// Where the history says that it began, from 1.
    pub line: usize,
    /// Before it was sent.
    pub began_ns: u64,
    /// After its end was known; `None` = it has none.
    pub ended_ns: Option<u64>,
    /// How it ended; [`Stage::Info`] when it did not.
    pub stage: Stage,
    /// What was asked, and the answer if there is one.
    pub what: &'a T,
    /// Why there is none.
    pub error: Option<&'a Failure>,
}

impl<T> Call<'_, T> {
    /// Who, and where to look it up: a run's timeline opens at a line that evidence names.
    pub fn who(&self) -> String {
        format!("{:?}, line {}", self.process, self.line)
    }
}

/// All calls of a history, in the order of their beginnings.
#[derive(Debug, Default)]
pub struct Calls<'a> {
    /// Writes.
    pub batches: Vec<Call<'a, Batch>>,
    /// Reads.
    pub reads: Vec<Call<'a, Read>>,
    /// Pages of feeds.
    pub pages: Vec<Call<'a, Page>>,
    /// Restores of the archive, failed ones too.
    pub restored: Vec<Call<'a, Restored>>,
    /// What does not fit together: a history with a hole proves nothing.
    pub broken: Vec<String>,
}

/// Puts the calls of a history together.
pub fn calls(history: &[Op]) -> Calls<'_> {
    let mut calls = Calls::default();
    let mut open: BTreeMap<Process, (usize, &Op)> = BTreeMap::new();
    let mut last_ns = 0;
    for (place, op) in history.iter().enumerate().filter(|(_, op)| is_call(&op.action)) {
        if op.time_ns < last_ns {
            calls.broken.push(format!("{} ns after {last_ns} ns", op.time_ns));
        }
        last_ns = op.time_ns;
        if op.stage == Stage::Invoke {
            if let Some(before) = open.insert(op.process, (place + 1, op)) {
                calls.broken.push(format!("{:?} began {} before the end of what it did", op.process, name(&op.action)));
                calls.push(before, None);
            }
            continue;
        }
        match open.remove(&op.process) {
            Some(began) if is_end_of(&op.action, &began.1.action) => calls.push(began, Some(op)),
            began => {
                let what = name(&op.action);
                calls.broken.push(format!("an end of {what} by {:?}, which did not begin it", op.process));
                if let Some(began) = began {
                    calls.push(began, None);
                }
            }
        }
    }
    // What never ended may have taken effect.
    for began in open.into_values() {
        calls.push(began, None);
    }
    calls.batches.sort_by_key(|call| call.began_ns);
    calls.reads.sort_by_key(|call| call.began_ns);
    calls.pages.sort_by_key(|call| call.began_ns);
    calls
}

impl<'a> Calls<'a> {
    fn push(&mut self, (line, began): (usize, &'a Op), end: Option<&'a Op>) {
        let call = Call {
            process: began.process,
            line,
            began_ns: began.time_ns,
            ended_ns: end.map(|end| end.time_ns),
            stage: end.map_or(Stage::Info, |end| end.stage),
            what: &(),
            error: end.and_then(|end| end.error.as_ref()),
        };
        if let Some(end) = end
            && end.stage == Stage::Ok
            && !is_answered(&end.action)
        {
            self.broken.push(format!("{} is ok without an answer", name(&end.action)));
        }
        match &end.unwrap_or(began).action {
            Action::Batch(what) => self.batches.push(call.of(what)),
            Action::Read(what) => self.reads.push(call.of(what)),
            Action::Page(what) => self.pages.push(call.of(what)),
            Action::Restored(what) => self.restored.push(call.of(what)),
            _ => {}
        }
    }
}

impl<'a> Call<'a, ()> {
    fn of<T>(self, what: &'a T) -> Call<'a, T> {
        let Self { process, line, began_ns, ended_ns, stage, error, .. } = self;
        Call { process, line, began_ns, ended_ns, stage, what, error }
    }
}

fn is_call(action: &Action) -> bool {
    matches!(action, Action::Batch(_) | Action::Read(_) | Action::Page(_) | Action::Restored(_))
}

fn is_answered(action: &Action) -> bool {
    match action {
        Action::Batch(batch) => batch.done.as_ref().is_some_and(|done| done.results.len() == batch.changes.len()),
        Action::Read(read) => read.got.is_some(),
        Action::Page(page) => page.turned.is_some(),
        Action::Restored(restored) => restored.at.is_some(),
        _ => true,
    }
}

/// An end repeats what was asked.
fn is_end_of(end: &Action, began: &Action) -> bool {
    match (end, began) {
        (Action::Batch(end), Action::Batch(began)) => {
            (&end.user, &end.request_id, &end.changes) == (&began.user, &began.request_id, &began.changes)
        }
        (Action::Read(end), Action::Read(began)) => {
            (&end.user, &end.keys, end.level) == (&began.user, &began.keys, began.level)
        }
        (Action::Page(end), Action::Page(began)) => {
            (&end.user, &end.from, &end.collections) == (&began.user, &began.from, &began.collections)
        }
        (Action::Restored(end), Action::Restored(began)) => (end.round, end.last) == (began.round, began.last),
        _ => false,
    }
}

fn name(action: &Action) -> String {
    match action {
        Action::Batch(batch) => format!("{}/{}", batch.user, batch.request_id),
        Action::Read(read) => format!("a read of {}", read.user),
        Action::Page(page) => format!("a page of {}", page.user),
        Action::Restored(restored) => format!("restore {}", restored.round),
        action => format!("{action:?}"),
    }
}
