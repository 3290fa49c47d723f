//! Valid histories by the thousand: a cluster that keeps its promises, simulated, with clients at random. Operations
//! overlap, some never learn their end, and what a lost request did may happen late or never. Tests spoil these histories
//! in the ways in which a bug would.

use std::collections::{BTreeMap, HashMap};

use crate::chance::Chance;
use crate::checker::model::{COUNTER_BITS, Outcome, Records, Stored};
use crate::history::calls::{Batch, Change, Done, Got, Guard, Level, Page, Point, Read, Refused, Seen, Turned};
use crate::history::{Action, Failure, Named, Op, Process, Stage};

/// What to simulate.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// Users.
    pub users: usize,
    /// Records of each.
    pub keys: usize,
    /// Clients that write and read.
    pub clients: usize,
    /// Consumers of feeds.
    pub consumers: usize,
    /// Moments at which something happens.
    pub steps: usize,
    /// Writes whose end is never known.
    pub lost_percent: usize,
    /// Writes append to what is there, and never delete.
    pub append: bool,
}

impl Plan {
    /// Something of everything.
    pub fn small(seed: u64) -> Self {
        Self { seed, users: 2, keys: 4, clients: 4, consumers: 0, steps: 400, lost_percent: 0, append: false }
    }
}

const EPOCH: u64 = 1 << COUNTER_BITS;

struct User {
    name: String,
    records: Records<'static>,
    /// Its states and since where.
    states: Vec<(u64, Records<'static>)>,
    /// Position of its last write, whatever came of it: no entry has two of a user.
    last: u64,
}

enum Doing {
    Nothing,
    /// Asked, and not yet performed.
    Asked(Action),
    /// Performed, and not yet answered.
    Performed(Action, Stage),
}

struct Client {
    process: Process,
    doing: Doing,
    known: HashMap<(usize, String), Stored<'static>>,
    last: Point,
    sent: Vec<Batch>,
    count: usize,
}

struct Consumer {
    process: Process,
    doing: Doing,
    user: usize,
    collections: Vec<String>,
    token: String,
}

/// The simulation, and all that happened.
pub struct Simulation {
    plan: Plan,
    chance: Chance,
    index: u64,
    /// Somebody saw what there is at this position, or was told of it: nothing more happens at it.
    seen: u64,
    tokens: usize,
    users: Vec<User>,
    answers: HashMap<String, Done>,
    late: Vec<Batch>,
    /// The history.
    pub ops: Vec<Op>,
}

/// A valid history.
pub fn valid(plan: Plan) -> Vec<Op> {
    simulate(plan).ops
}

/// A valid history, and the states to spoil it with.
pub fn simulate(plan: Plan) -> Simulation {
    let users = (0..plan.users).map(|user| {
        let records = Records { head: EPOCH, ..Records::default() };
        User { name: format!("u{user}"), states: vec![(0, records.clone())], records, last: 0 }
    });
    let mut simulation = Simulation {
        chance: Chance::new(plan.seed, 0),
        index: 10,
        seen: 10,
        tokens: 0,
        users: users.collect(),
        answers: HashMap::new(),
        late: Vec::new(),
        ops: Vec::new(),
        plan,
    };
    simulation.run();
    simulation
}

fn point(index: u64) -> Point {
    Point { incarnation: 7, group: 0, index }
}

impl Simulation {
    fn run(&mut self) {
        let process = |number: usize| Process::Client(number as u32);
        let mut clients: Vec<Client> = (0..self.plan.clients)
            .map(|number| Client {
                process: process(number),
                doing: Doing::Nothing,
                known: HashMap::new(),
                last: point(0),
                sent: Vec::new(),
                count: 0,
            })
            .collect();
        let mut consumers: Vec<Consumer> = (0..self.plan.consumers)
            .map(|number| Consumer {
                process: process(self.plan.clients + number),
                doing: Doing::Nothing,
                user: number % self.plan.users,
                collections: if number % 3 == 2 { vec!["todos".to_owned()] } else { Vec::new() },
                token: String::new(),
            })
            .collect();
        for _ in 0..self.plan.steps {
            if self.chance.percent(5) && !self.late.is_empty() {
                let place = self.chance.below(self.late.len());
                let batch = self.late.swap_remove(place);
                self.perform_batch(&batch);
            }
            let who = self.chance.below(clients.len() + consumers.len());
            match who.checked_sub(clients.len()) {
                None => self.step(&mut clients[who], true),
                Some(who) => self.turn(&mut consumers[who], true),
            }
        }
        for client in &mut clients {
            while !matches!(client.doing, Doing::Nothing) {
                self.step(client, false);
            }
        }
        while let Some(batch) = self.late.pop() {
            if self.chance.percent(50) {
                self.perform_batch(&batch);
            }
        }
        for consumer in &mut consumers {
            while !matches!(consumer.doing, Doing::Nothing) {
                self.turn(consumer, false);
            }
            // Everyone comes to the end.
            loop {
                self.turn(consumer, true);
                self.turn(consumer, false);
                self.turn(consumer, false);
                if let Some(Op { action: Action::Page(Page { turned: Some(turned), .. }), .. }) = self.ops.last()
                    && turned.kept
                    && !turned.more
                    && turned.at.index == self.index
                {
                    break;
                }
            }
        }
        for user in 0..self.users.len() {
            let keys = (0..self.plan.keys).map(key).collect();
            let read = Read { user: self.users[user].name.clone(), keys, level: Level::Linearizable, got: None };
            self.line(Process::Named(Named::Reader), Stage::Invoke, Action::Read(read.clone()), None);
            let read = self.perform_read(read);
            self.line(Process::Named(Named::Reader), Stage::Ok, Action::Read(read), None);
        }
    }

    fn line(&mut self, process: Process, stage: Stage, action: Action, reason: Option<&str>) {
        let error = reason.map(|reason| Failure { reason: reason.to_owned(), message: String::new() });
        let time_ns = (self.ops.len() as u64 + 1) * 1_000_000;
        self.ops.push(Op { process, stage, time_ns, action, reply: None, error });
    }

    fn step(&mut self, client: &mut Client, may_begin: bool) {
        match std::mem::replace(&mut client.doing, Doing::Nothing) {
            Doing::Nothing if !may_begin => {}
            Doing::Nothing => {
                let action = self.choose(client);
                self.line(client.process, Stage::Invoke, action.clone(), None);
                client.doing = Doing::Asked(action);
            }
            Doing::Asked(Action::Batch(batch)) if self.chance.percent(self.plan.lost_percent) => {
                // It may happen now, later or never, and nobody is told.
                match self.chance.below(3) {
                    0 => drop(self.perform_batch(&batch)),
                    1 => self.late.push(batch.clone()),
                    _ => {}
                }
                client.doing = Doing::Performed(Action::Batch(batch), Stage::Info);
            }
            Doing::Asked(Action::Batch(batch)) if self.chance.percent(3) && !client.sent.contains(&batch) => {
                client.doing = Doing::Performed(Action::Batch(batch), Stage::Fail);
            }
            Doing::Asked(Action::Batch(batch)) => {
                let batch = self.perform_batch(&batch);
                let stage = if batch.done.is_some() { Stage::Ok } else { Stage::Fail };
                client.doing = Doing::Performed(Action::Batch(batch), stage);
            }
            Doing::Asked(Action::Read(read)) => {
                client.doing = Doing::Performed(Action::Read(self.perform_read(read)), Stage::Ok);
            }
            Doing::Asked(_) => {}
            Doing::Performed(action, stage) => {
                if let Action::Batch(Batch { done, refused, .. }) = &action {
                    let told = done.as_ref().map(|done| done.at).or(refused.as_ref().and_then(|refused| refused.at));
                    self.seen = self.seen.max(told.map_or(0, |at| at.index));
                }
                self.learn(client, &action);
                let reason = match (&action, stage) {
                    (_, Stage::Info) => Some("OUTCOME_UNKNOWN"),
                    (Action::Batch(Batch { refused: Some(_), .. }), _) => Some("VERSION_MISMATCH"),
                    (_, Stage::Fail) => Some("NO_LEADER"),
                    _ => None,
                };
                self.line(client.process, stage, action, reason);
            }
        }
    }

    fn choose(&mut self, client: &mut Client) -> Action {
        let place = self.chance.below(self.users.len());
        let user = self.users[place].name.clone();
        let mut keys: Vec<String> = (0..self.plan.keys).map(key).collect();
        let wanted = 1 + self.chance.below(2.min(keys.len()));
        while keys.len() > wanted {
            keys.swap_remove(self.chance.below(keys.len()));
        }
        let what = self.chance.below(100);
        if what < 45 {
            let level = match self.chance.below(3) {
                0 if client.last.index > 0 => Level::AtLeast(client.last),
                1 => Level::Staleness(1000),
                _ => Level::Linearizable,
            };
            return Action::Read(Read { user, keys, level, got: None });
        }
        if what < 50 && !client.sent.is_empty() {
            return Action::Batch(client.sent[self.chance.below(client.sent.len())].clone());
        }
        if self.plan.append {
            // Only what was read can be appended to; a client that knows nothing founds the list.
            keys.truncate(1 + self.chance.below(keys.len()));
        } else if self.chance.percent(10) {
            return Action::Batch(self.batch(
                client,
                user,
                vec![Change { key: keys[0].clone(), put: None, guard: None }],
            ));
        }
        let changes = keys.into_iter().map(|key| {
            client.count += 1;
            let Process::Client(number) = client.process else { return Change { key, put: None, guard: None } };
            let element = format!("{number}.{}", client.count);
            let known = client.known.get(&(place, key.clone())).copied();
            let put = match known.and_then(|known| known.content) {
                Some(list) if self.plan.append => format!("{list} {element}"),
                _ => element,
            };
            let guard = match known {
                Some(Stored { version, content: Some(of) }) if self.plan.append || self.chance.percent(60) => {
                    Some(Guard::Version { version, of: of.to_owned() })
                }
                _ if self.plan.append || self.chance.percent(20) => Some(Guard::Absent),
                _ if self.chance.percent(10) => Some(Guard::Exists),
                _ => None,
            };
            Change { key, put: Some(put), guard }
        });
        let changes = changes.collect();
        Action::Batch(self.batch(client, user, changes))
    }

    fn batch(&mut self, client: &mut Client, user: String, changes: Vec<Change>) -> Batch {
        client.count += 1;
        let request_id = format!("r{:?}-{}", client.process, client.count);
        Batch { user, request_id, changes, done: None, refused: None }
    }

    fn learn(&mut self, client: &mut Client, action: &Action) {
        let place = |user: &str| user[1..].parse::<usize>().expect("a user's number");
        match action {
            Action::Batch(Batch { user, changes, done: Some(done), request_id, .. }) => {
                client.last = client.last.max(done.at);
                for (change, result) in changes.iter().zip(&done.results) {
                    let content = change.put.clone().map(|content| &*Box::leak(content.into_boxed_str()));
                    let stored = Stored { version: result.version, content };
                    client.known.insert((place(user), change.key.clone()), stored);
                }
                let (user, request_id, changes) = (user.clone(), request_id.clone(), changes.clone());
                client.sent.push(Batch { user, request_id, changes, done: None, refused: None });
            }
            Action::Read(Read { user, got: Some(got), .. }) => {
                client.last = client.last.max(got.at);
                for seen in &got.records {
                    let content = seen.payload.clone().map(|content| &*Box::leak(content.into_boxed_str()));
                    let stored = Stored { version: seen.version, content };
                    client.known.insert((place(user), seen.key.clone()), stored);
                }
            }
            _ => {}
        }
    }

    fn perform_batch(&mut self, batch: &Batch) -> Batch {
        if let Some(done) = self.answers.get(&batch.request_id) {
            let done = Done { replayed: true, ..done.clone() };
            return Batch { done: Some(done), ..batch.clone() };
        }
        let changes: &'static [Change] = Box::leak(batch.changes.clone().into_boxed_slice());
        let user = self.users.iter_mut().find(|user| user.name == batch.user).expect("a user");
        // Writes of several users share positions as long as nobody knows of one, and entries that are no writes take some as
        // well.
        self.index = (user.last + 1).max(self.seen + 1).max(self.index + self.chance.below(3) as u64);
        user.last = self.index;
        let at = point(self.index);
        match user.records.apply(changes) {
            Outcome::Refused(clashes) => Batch { refused: Some(Refused { at: Some(at), clashes }), ..batch.clone() },
            Outcome::Done { version, results } => {
                user.states.push((self.index, user.records.clone()));
                let done = Done { at, version, replayed: false, results, node: 1 };
                self.answers.insert(batch.request_id.clone(), done.clone());
                Batch { done: Some(done), ..batch.clone() }
            }
        }
    }

    /// A user's state at a position.
    pub fn state(&self, user: &str, index: u64) -> &Records<'static> {
        let user = self.users.iter().find(|one| one.name == user).expect("a user");
        &user.states[user.states.partition_point(|(at, _)| *at <= index) - 1].1
    }

    fn perform_read(&mut self, read: Read) -> Read {
        self.seen = self.index;
        let (index, staleness_ms) = match read.level {
            Level::Linearizable => (self.index, None),
            Level::AtLeast(at) => (at.index + self.chance.below((self.index - at.index) as usize + 1) as u64, None),
            Level::Staleness(_) => (self.index, Some(3)),
        };
        let got = Some(Got { staleness_ms, ..self.got(&read, index) });
        Read { got, ..read }
    }

    /// What a read finds at a position.
    pub fn got(&self, read: &Read, index: u64) -> Got {
        let state = self.state(&read.user, index);
        let found = read.keys.iter().map(|key| (key, state.get(key))).filter(|(_, stored)| stored.version != 0);
        let records = found.map(|(key, stored)| seen(key, stored)).collect();
        Got { at: point(index), node: 1, staleness_ms: None, records }
    }

    fn turn(&mut self, consumer: &mut Consumer, may_begin: bool) {
        match std::mem::replace(&mut consumer.doing, Doing::Nothing) {
            Doing::Nothing if !may_begin => {}
            Doing::Nothing => {
                let page = Page {
                    user: self.users[consumer.user].name.clone(),
                    collections: consumer.collections.clone(),
                    from: consumer.token.clone(),
                    level: Some(Level::Linearizable),
                    turned: None,
                    resync: None,
                };
                self.line(consumer.process, Stage::Invoke, Action::Page(page.clone()), None);
                consumer.doing = Doing::Asked(Action::Page(page));
            }
            Doing::Asked(Action::Page(page)) => {
                let turned = self.page(&page);
                let page = Page { turned: Some(turned), ..page };
                consumer.doing = Doing::Performed(Action::Page(page), Stage::Ok);
            }
            Doing::Asked(_) => {}
            Doing::Performed(action, stage) => {
                if let Action::Page(Page { turned: Some(turned), .. }) = &action
                    && turned.kept
                {
                    consumer.token.clone_from(&turned.next);
                }
                self.line(consumer.process, stage, action, None);
            }
        }
    }

    fn page(&mut self, page: &Page) -> Turned {
        self.seen = self.index;
        let state = self.state(&page.user, self.index).clone();
        let mut numbers = page.from.split(':').filter_map(|number| number.parse::<u64>().ok());
        let after = numbers.next().unwrap_or(0);
        let fresh_until = if page.from.is_empty() { state.head } else { numbers.next().unwrap_or(0) };
        let mut commits: BTreeMap<u64, Vec<(&str, Stored<'static>)>> = BTreeMap::new();
        for (key, stored) in state.stored.iter().filter(|(_, stored)| stored.version > after) {
            commits.entry(stored.version).or_default().push((key, *stored));
        }
        let (mut records, mut reached, mut more, mut count) = (Vec::new(), state.head, false, 0);
        for (version, commit) in commits {
            if count >= 3 {
                more = true;
                break;
            }
            reached = version;
            count += commit.len();
            for (key, stored) in commit {
                let wanted = page.collections.is_empty() || page.collections.iter().any(|one| key.starts_with(one));
                if wanted && (stored.content.is_some() || version > fresh_until) {
                    records.push(seen(key, stored));
                }
            }
        }
        self.tokens += 1;
        let reached = if more { reached } else { state.head };
        let next = format!("{reached}:{}:{}", if more { fresh_until } else { 0 }, self.tokens);
        Turned { at: point(self.index), node: 1, records, next, more, kept: !self.chance.percent(20) }
    }
}

fn seen(key: &str, stored: Stored<'_>) -> Seen {
    Seen { key: key.to_owned(), version: stored.version, payload: stored.content.map(str::to_owned) }
}

/// A record's name.
pub fn key(number: usize) -> String {
    format!("{}/k{number}", if number.is_multiple_of(2) { "notes" } else { "todos" })
}
