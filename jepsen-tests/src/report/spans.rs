//! Operations and faults as spans of time.

use std::collections::BTreeMap;

use crate::history::{Action, Op, Process, Stage};

/// A history as it is drawn.
#[derive(Debug, Default)]
pub struct Run<'a> {
    /// What clients did, in the order of its beginning.
    pub spans: Vec<Span<'a>>,
    /// Faults, in the order of their beginning.
    pub bands: Vec<Band>,
    /// When the last thing happened.
    pub end_ns: u64,
}

/// One operation of a client.
#[derive(Debug)]
pub struct Span<'a> {
    /// Who.
    pub process: Process,
    /// When it began.
    pub begin_ns: u64,
    /// When its end was known; `None` = never.
    pub end_ns: Option<u64>,
    /// How it ended; [`Stage::Info`] when it did not.
    pub stage: Stage,
    /// Its first line in the history, from 1.
    pub line: usize,
    /// Its last line, or its first.
    pub op: &'a Op,
}

/// A time in which something was wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Band {
    /// What.
    pub label: String,
    /// When it began.
    pub begin_ns: u64,
    /// When it was over.
    pub end_ns: u64,
}

impl<'a> Run<'a> {
    /// Puts beginnings and ends together.
    pub fn of(history: &'a [Op]) -> Self {
        let mut run = Self { end_ns: history.last().map_or(0, |op| op.time_ns), ..Self::default() };
        let mut open: BTreeMap<Process, (usize, &Op)> = BTreeMap::new();
        let mut faults: BTreeMap<u32, usize> = BTreeMap::new();
        let mut killed: BTreeMap<u64, usize> = BTreeMap::new();
        let is_driven = history.iter().any(|op| matches!(op.action, Action::Fault(_)));
        for (place, op) in history.iter().enumerate() {
            match (&op.action, op.stage, op.process) {
                (Action::Fault(note), Stage::Info, _) => {
                    let nodes = note.nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
                    let label = if nodes.is_empty() { note.fault.clone() } else { format!("{} {nodes}", note.fault) };
                    faults.insert(note.round, run.begin(label, op.time_ns));
                }
                (Action::Heal(note), Stage::Info, _) => {
                    if let Some(band) = faults.remove(&note.round) {
                        run.bands[band].end_ns = op.time_ns;
                    }
                }
                // Under a driver of many faults, each kill is also one of those.
                (Action::Kill(kill), Stage::Invoke, _) if !is_driven => {
                    for target in &kill.targets {
                        killed.insert(target.node, run.begin(format!("kill {}", target.node), op.time_ns));
                    }
                }
                (Action::Restart(restart), _, _) => {
                    if let Some(band) = killed.remove(&restart.node) {
                        run.bands[band].end_ns = op.time_ns;
                    }
                }
                (_, Stage::Invoke, Process::Client(_)) => {
                    if let Some((line, before)) = open.insert(op.process, (place + 1, op)) {
                        run.push(line, before, None);
                    }
                }
                (_, _, Process::Client(_)) => {
                    if let Some((line, began)) = open.remove(&op.process) {
                        run.push(line, began, Some(op));
                    }
                }
                (_, _, Process::Named(_)) => {}
            }
        }
        for (line, began) in open.into_values() {
            run.push(line, began, None);
        }
        run.spans.sort_by_key(|span| span.begin_ns);
        run
    }

    fn begin(&mut self, label: String, begin_ns: u64) -> usize {
        self.bands.push(Band { label, begin_ns, end_ns: self.end_ns });
        self.bands.len() - 1
    }

    fn push(&mut self, line: usize, began: &'a Op, end: Option<&'a Op>) {
        self.spans.push(Span {
            process: began.process,
            begin_ns: began.time_ns,
            end_ns: end.map(|end| end.time_ns),
            stage: end.map_or(Stage::Info, |end| end.stage),
            line,
            op: end.unwrap_or(began),
        });
    }
}

impl Span<'_> {
    /// What it was, in one word, and all that is known of it.
    pub fn words(&self) -> (String, String) {
        let value = serde_json::to_value(self.op).unwrap_or_default();
        let name = value["f"].as_str().unwrap_or("?").to_owned();
        let mut all = value["value"].to_string();
        for key in ["reply", "error"] {
            if !value[key].is_null() {
                all = format!("{all}\n{key}: {}", value[key]);
            }
        }
        (name, all)
    }
}
