//! Checker B: is there an order of all operations on one record, inside their spans, that explains every answer? It
//! trusts no position and no version: only contents, times, and what was acknowledged.
//!
//! The search is that of Wing and Gong with Lowe's memory of configurations, as in Knossos and porcupine, for each record
//! alone (linearizability is a property of each object). Two facts keep it small: a write of unknown outcome that nobody
//! saw can be left out, and one that somebody saw had happened when the first answer that shows it arrived.
//!
//! A search that takes too many configurations ends without a verdict, which is no pass.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::checker::Report;
use crate::checker::paired::Calls;
use crate::history::Stage;
use crate::history::calls::{Guard, Level};

/// Configurations that are looked at for one record.
const CONFIGURATIONS_MAX: usize = 2_000_000;

/// What an operation does to a register, by the numbers of its contents; 0 = nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// It finds this.
    Read(u32),
    /// It puts this, whatever was there.
    Write(u32),
    /// It finds the first, and puts the second.
    Swap(u32, u32),
    /// It finds something, whatever it is, and puts this.
    Replace(u32),
    /// It finds anything but this: a guard that failed.
    Not(u32),
    /// It finds something: a guard for nothing that failed.
    Something,
}

impl Does {
    fn step(self, state: u32) -> Option<u32> {
        match self {
            Self::Read(found) => (state == found).then_some(state),
            Self::Write(put) => Some(put),
            Self::Swap(found, put) => (state == found).then_some(put),
            Self::Replace(put) => (state != 0).then_some(put),
            Self::Not(other) => (state != other).then_some(state),
            Self::Something => (state != 0).then_some(state),
        }
    }

    /// What it leaves behind.
    fn puts(self) -> Option<u32> {
        match self {
            Self::Write(put) | Self::Swap(_, put) | Self::Replace(put) => Some(put),
            Self::Read(_) | Self::Not(_) | Self::Something => None,
        }
    }

    fn finds(self) -> Option<u32> {
        match self {
            Self::Read(found) | Self::Swap(found, _) => Some(found),
            Self::Write(_) | Self::Replace(_) | Self::Not(_) | Self::Something => None,
        }
    }
}

/// One operation on a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// When it began.
    pub began_ns: u64,
    /// When its end was known; `u64::MAX` = never: it may have happened, may yet, or never will.
    pub ended_ns: u64,
    /// What it does.
    pub does: Does,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is an order.
    Order,
    /// There is none; the operations that could not be placed after the longest order that was found.
    None(Vec<usize>),
    /// Nobody knows.
    GaveUp,
}

/// Judges each record that was read and written by batches.
pub fn check(calls: &Calls<'_>) -> Report {
    let mut report = Report::new("linear");
    let registers = registers(calls);
    let (mut wrong, mut open, mut most) = (Vec::new(), Vec::new(), 0);
    for ((user, key), register) in &registers {
        most = most.max(register.operations.len());
        match search(&register.operations, CONFIGURATIONS_MAX) {
            Found::Order => {}
            Found::None(stuck) => wrong.push(format!("{user}/{key}: no place for {}", register.shown(&stuck))),
            Found::GaveUp => open.push(format!("{user}/{key}: {} operations", register.operations.len())),
        }
    }
    report.at_least("records with an order to look for", registers.len(), 1);
    report.figure("most operations on one", most);
    report.never("records without an order that explains all answers", wrong);
    report.doubtful("records for which the search was given up", open);
    report
}

/// One record's operations.
#[derive(Default)]
struct Register<'a> {
    operations: Vec<Operation>,
    /// Numbers of contents.
    numbers: HashMap<&'a str, u32>,
    names: Vec<&'a str>,
    who: Vec<String>,
}

impl<'a> Register<'a> {
    fn number(&mut self, content: Option<&'a str>) -> u32 {
        let Some(content) = content else { return 0 };
        *self.numbers.entry(content).or_insert_with(|| {
            self.names.push(content);
            self.names.len() as u32
        })
    }

    fn push(&mut self, who: String, began_ns: u64, ended_ns: u64, does: Does) {
        self.operations.push(Operation { began_ns, ended_ns, does });
        self.who.push(who);
    }

    fn shown(&self, stuck: &[usize]) -> String {
        let name = |number: u32| match number {
            0 => "nothing".to_owned(),
            number => format!("{:?}", self.names[number as usize - 1]),
        };
        let one = |place: &usize| {
            let Operation { began_ns, ended_ns, does } = self.operations[*place];
            let does = match does {
                Does::Read(found) => format!("found {}", name(found)),
                Does::Write(put) => format!("put {}", name(put)),
                Does::Swap(found, put) => format!("put {} on {}", name(put), name(found)),
                Does::Replace(put) => format!("put {} on something", name(put)),
                Does::Not(other) => format!("did not find {}", name(other)),
                Does::Something => "found something".to_owned(),
            };
            let until = if ended_ns == u64::MAX { "?".to_owned() } else { ended_ns.to_string() };
            format!("{} {does} ({began_ns}–{until} ns)", self.who[*place])
        };
        stuck.iter().take(8).map(one).collect::<Vec<_>>().join("; ")
    }
}

type Registers<'a> = BTreeMap<(&'a str, &'a str), Register<'a>>;

fn registers<'a>(calls: &Calls<'a>) -> Registers<'a> {
    let mut registers = Registers::new();
    // A request that was sent several times is one operation, from its first beginning to its first answer.
    let mut requests: BTreeMap<&str, Request<'a>> = BTreeMap::new();
    for call in &calls.batches {
        let request = requests.entry(&call.what.request_id).or_insert_with(|| Request {
            batch: call.what,
            who: call.who(),
            began_ns: call.began_ns,
            ended_ns: u64::MAX,
            open: false,
            unchanged: None,
        });
        match (call.stage, &call.what.done, call.ended_ns) {
            (Stage::Ok, Some(done), Some(ended_ns)) => {
                if ended_ns < request.ended_ns {
                    request.ended_ns = ended_ns;
                    request.unchanged = Some(done.results.iter().map(|result| !result.changed).collect());
                }
            }
            (Stage::Fail, ..) => {}
            _ => request.open = true,
        }
        // Each refusal is an operation of its own, which finds what it was told.
        if let (Some(refused), Some(ended_ns)) = (&call.what.refused, call.ended_ns) {
            for clash in &refused.clashes {
                let Some(change) = call.what.changes.get(clash.place as usize) else { continue };
                let register = registers.entry((&call.what.user, &change.key)).or_default();
                let does = match &change.guard {
                    Some(Guard::Version { of, .. }) => Does::Not(register.number(Some(of))),
                    Some(Guard::Absent) => Does::Something,
                    Some(Guard::Exists) => Does::Read(0),
                    None => continue,
                };
                register.push(call.who(), call.began_ns, ended_ns, does);
            }
        }
    }
    for request in requests.into_values().filter(|request| request.open || request.ended_ns < u64::MAX) {
        for (place, change) in request.batch.changes.iter().enumerate() {
            let register = registers.entry((&request.batch.user, &change.key)).or_default();
            let put = register.number(change.put.as_deref());
            let unchanged = request.unchanged.as_ref().is_some_and(|unchanged| unchanged[place]);
            let does = match &change.guard {
                _ if unchanged => Does::Read(put),
                None => Does::Write(put),
                Some(Guard::Version { of, .. }) => Does::Swap(register.number(Some(of)), put),
                Some(Guard::Absent) => Does::Swap(0, put),
                Some(Guard::Exists) => Does::Replace(put),
            };
            register.push(request.who.clone(), request.began_ns, request.ended_ns, does);
        }
    }
    for call in calls.reads.iter().filter(|call| call.what.level == Level::Linearizable) {
        let (Some(got), Some(ended_ns)) = (&call.what.got, call.ended_ns) else { continue };
        for key in &call.what.keys {
            let register = registers.entry((&call.what.user, key)).or_default();
            let seen = got.records.iter().find(|seen| seen.key == *key);
            let found = register.number(seen.and_then(|seen| seen.payload.as_deref()));
            register.push(call.who(), call.began_ns, ended_ns, Does::Read(found));
        }
    }
    registers
}

struct Request<'a> {
    batch: &'a crate::history::calls::Batch,
    who: String,
    began_ns: u64,
    ended_ns: u64,
    open: bool,
    unchanged: Option<Vec<bool>>,
}

/// Looks for an order. Contents that are put must differ, but for 0.
pub fn search(operations: &[Operation], configurations_max: usize) -> Found {
    let (operations, places) = pruned(operations);
    match Search::new(&operations).run(configurations_max) {
        Found::None(stuck) => Found::None(stuck.into_iter().map(|stuck| places[stuck]).collect()),
        found => found,
    }
}

/// Leaves out writes of unknown outcome that nobody saw, and ends the others at their first sighting.
fn pruned(operations: &[Operation]) -> (Vec<Operation>, Vec<usize>) {
    let mut first_seen: HashMap<u32, u64> = HashMap::new();
    for operation in operations {
        if let Some(found) = operation.does.finds().filter(|found| *found != 0) {
            let first = first_seen.entry(found).or_insert(u64::MAX);
            *first = operation.ended_ns.min(*first);
        }
    }
    // An unknown swap that nobody saw saw nothing itself.
    let unseen = |operation: &Operation| {
        let put = operation.does.puts().filter(|put| *put != 0);
        operation.ended_ns == u64::MAX && put.is_some_and(|put| !first_seen.contains_key(&put))
    };
    // What was left out may be why a guard failed: such a refusal says nothing then.
    let left_out_ns = operations.iter().filter(|one| unseen(one)).map(|one| one.began_ns).min().unwrap_or(u64::MAX);
    let says_nothing = |operation: &Operation| {
        matches!(operation.does, Does::Not(_) | Does::Something) && operation.ended_ns > left_out_ns
    };
    let kept = operations.iter().enumerate().filter(|(_, one)| !unseen(one) && !says_nothing(one));
    kept.map(|(place, one)| {
        let seen = one.does.puts().filter(|put| *put != 0).and_then(|put| first_seen.get(&put).copied());
        let ended_ns = one.ended_ns.min(seen.unwrap_or(u64::MAX)).max(one.began_ns);
        let does = match one.does {
            // What was left out may be what it found.
            Does::Replace(put) if one.ended_ns > left_out_ns => Does::Write(put),
            does => does,
        };
        (Operation { ended_ns, does, ..*one }, place)
    })
    .unzip()
}

/// A configuration: which operations are placed, and the state after them. All that began before the first end that is
/// still to come are placed, but for a few.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Configuration {
    first_end: u32,
    open: Vec<u32>,
    state: u32,
}

/// The list of all beginnings and ends, from which placed operations are taken out and put back (Lowe's algorithm).
struct Search<'a> {
    operations: &'a [Operation],
    /// Beginnings and ends in the order of time: `operation << 1 | is_end`.
    events: Vec<u32>,
    next: Vec<usize>,
    previous: Vec<usize>,
    begin_at: Vec<usize>,
    end_at: Vec<usize>,
    placed: Vec<bool>,
    seen: HashSet<Configuration>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        let mut events: Vec<(u64, u32)> = Vec::with_capacity(operations.len() * 2);
        for (place, operation) in operations.iter().enumerate() {
            events.push((operation.began_ns, (place as u32) << 1));
            events.push((operation.ended_ns, (place as u32) << 1 | 1));
        }
        // At one moment beginnings come first: what touches overlaps.
        events.sort_by_key(|(time, event)| (*time, event & 1, *event));
        let events: Vec<u32> = events.into_iter().map(|(_, event)| event).collect();
        let (mut begin_at, mut end_at) = (vec![0; operations.len()], vec![0; operations.len()]);
        for (at, event) in events.iter().enumerate() {
            let list = if event & 1 == 0 { &mut begin_at } else { &mut end_at };
            list[(event >> 1) as usize] = at + 1;
        }
        // Place 0 is the head of the list, and the place after the last event its end.
        let next = (1..events.len() + 2).collect();
        let previous = (0..events.len() + 2).map(|at: usize| at.saturating_sub(1)).collect();
        let placed = vec![false; operations.len()];
        Self { operations, events, next, previous, begin_at, end_at, placed, seen: HashSet::new() }
    }

    fn unlink(&mut self, at: usize) {
        let (before, after) = (self.previous[at], self.next[at]);
        (self.next[before], self.previous[after]) = (after, before);
    }

    fn link(&mut self, at: usize) {
        let (before, after) = (self.previous[at], self.next[at]);
        (self.next[before], self.previous[after]) = (at, at);
    }

    fn run(mut self, configurations_max: usize) -> Found {
        let end = self.events.len() + 1;
        let must = self.operations.iter().filter(|operation| operation.ended_ns != u64::MAX).count();
        let mut order: Vec<(usize, u32)> = Vec::new();
        let (mut state, mut at, mut placed_musts) = (0u32, self.next[0], 0);
        let (mut longest, mut stuck) = (0, Vec::new());
        loop {
            if placed_musts == must {
                return Found::Order;
            }
            let event = if at == end { 1 } else { self.events[at - 1] };
            if at != end && event & 1 == 0 {
                let operation = (event >> 1) as usize;
                if let Some(after) = self.operations[operation].does.step(state) {
                    self.placed[operation] = true;
                    if self.seen.insert(self.configuration(after)) {
                        if self.seen.len() > configurations_max {
                            return Found::GaveUp;
                        }
                        order.push((operation, state));
                        placed_musts += usize::from(self.operations[operation].ended_ns != u64::MAX);
                        state = after;
                        self.unlink(self.begin_at[operation]);
                        self.unlink(self.end_at[operation]);
                        at = self.next[0];
                        continue;
                    }
                    self.placed[operation] = false;
                }
                at = self.next[at];
                continue;
            }
            // An end: whatever ends here should have been placed.
            if placed_musts >= longest {
                longest = placed_musts;
                stuck = self.open_here();
            }
            let Some((operation, before)) = order.pop() else { return Found::None(stuck) };
            placed_musts -= usize::from(self.operations[operation].ended_ns != u64::MAX);
            self.placed[operation] = false;
            self.link(self.end_at[operation]);
            self.link(self.begin_at[operation]);
            state = before;
            at = self.next[self.begin_at[operation]];
        }
    }

    fn configuration(&self, state: u32) -> Configuration {
        let mut at = self.next[0];
        let mut open = Vec::new();
        // Those not placed, up to the first end that is still in the list, tell one configuration from another: all that
        // began before are placed, and none after could be.
        while at <= self.events.len() {
            let event = self.events[at - 1];
            let operation = (event >> 1) as usize;
            if event & 1 == 1 && !self.placed[operation] {
                break;
            }
            if event & 1 == 0 && !self.placed[operation] {
                open.push(event >> 1);
            }
            at = self.next[at];
        }
        Configuration { first_end: at as u32, open, state }
    }

    /// Operations that have begun and are not placed, up to the first end.
    fn open_here(&self) -> Vec<usize> {
        let mut at = self.next[0];
        let mut open = Vec::new();
        while at <= self.events.len() {
            let event = self.events[at - 1];
            if event & 1 == 1 {
                break;
            }
            open.push((event >> 1) as usize);
            at = self.next[at];
        }
        open
    }
}

#[cfg(test)]
mod tests;
