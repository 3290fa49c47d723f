//! What clients do. A workload knows how to write and how to read everything back; it judges nothing.

mod caller;
mod feed;
mod records;
pub mod set;
mod ttl;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use holdfast_client::Client;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::history::calls::{Level, Read};
use crate::history::{Process, Recorder};
use caller::Caller;
pub(crate) use caller::{Put, consistency, look, mutation};

/// One client in so many waits so little that a failover leaves it with writes of unknown outcome.
const IMPATIENT: u32 = 4;
const IMPATIENT_DEADLINE: Duration = Duration::from_millis(300);

/// All workloads, by their names on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// Records that no one else writes; all acknowledged ones must be there, each written once.
    Set,
    /// Records that many write under guards, and read fresh, as new as they know, or not too old.
    Register,
    /// Lists to which many add, each element once.
    Append,
    /// Feeds, followed by consumers that crash and go on at another node.
    Feed,
    /// Registers, and an archive offsite that is restored into new clusters meanwhile.
    Restore,
    /// Records that end by themselves, and are written again before that.
    Ttl,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "set",
            Self::Register => "register",
            Self::Append => "append",
            Self::Feed => "feed",
            Self::Restore => "restore",
            Self::Ttl => "ttl",
        })
    }
}

/// What all clients of a run share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Everything random follows from it.
    pub seed: u64,
    /// History of the cluster that versions belong to.
    pub incarnation: u64,
    /// Where the history goes.
    pub recorder: Arc<Recorder>,
    /// From one write of a client to its next, at least; `None` = it sends the next when the last one ended.
    pub pause: Option<Duration>,
}

/// Steps of one client, at the rate that was asked for.
#[derive(Debug)]
struct Pace {
    pause: Option<Duration>,
    next: Instant,
}

impl Pace {
    fn of(shared: &Shared) -> Self {
        Self { pause: shared.pause, next: Instant::now() }
    }

    /// After a step, waits for the time of the next one. The rate is a limit: what was missed while nobody answered is not
    /// made up for in a burst.
    async fn wait(&mut self) {
        if let Some(pause) = self.pause {
            self.next = (self.next + pause).max(Instant::now());
            tokio::time::sleep_until(self.next).await;
        }
    }
}

/// Clients at work. With several workloads each has an equal share of the clients, in blocks of numbers.
#[derive(Debug)]
pub struct Load {
    shared: Shared,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
    /// Told only when all writers ended.
    stop_consumers: Arc<AtomicBool>,
    consumers: Vec<JoinHandle<()>>,
    set_users: Vec<String>,
    circles: Vec<Arc<records::Circle>>,
    feed_users: Vec<String>,
    ttl_users: Vec<String>,
}

impl Load {
    /// Starts clients, each with connections of its own. `addresses` are those of all nodes.
    ///
    /// # Errors
    /// When a client cannot be made.
    pub fn start(
        shared: &Shared,
        workloads: &[Workload],
        clients: Vec<Client>,
        addresses: &[String],
    ) -> anyhow::Result<Self> {
        let mut load = Self {
            shared: shared.clone(),
            stop: Arc::default(),
            writers: Vec::new(),
            stop_consumers: Arc::default(),
            consumers: Vec::new(),
            set_users: Vec::new(),
            circles: Vec::new(),
            feed_users: Vec::new(),
            ttl_users: Vec::new(),
        };
        let count = clients.len() as u32;
        let mut clients = (0..count).zip(clients).map(|(number, client)| {
            let impatient = number % IMPATIENT == IMPATIENT - 1;
            (number, if impatient { client.with_deadline(IMPATIENT_DEADLINE) } else { client })
        });
        for (numbers, workload) in shares(count, workloads.len()).into_iter().zip(workloads) {
            let block: Vec<(u32, Client)> = clients.by_ref().take(numbers.len()).collect();
            match workload {
                Workload::Set => {
                    load.set_users = set::users(numbers);
                    for (number, client) in block {
                        let writer = set::Writer::new(shared.clone(), number, client);
                        load.writers.push(tokio::spawn(writer.run(load.stop.clone())));
                    }
                }
                Workload::Register => load.start_records(block, 'r'),
                Workload::Append => load.start_records(block, 'l'),
                Workload::Restore => load.start_records(block, 'b'),
                Workload::Feed => load.start_feed(block, count, addresses)?,
                Workload::Ttl => {
                    for (number, client) in block {
                        let writer = ttl::Writer::new(load.caller(number, client), number);
                        load.ttl_users.push(writer.user.clone());
                        load.writers.push(tokio::spawn(writer.run(load.stop.clone())));
                    }
                }
            }
        }
        Ok(load)
    }

    /// A letter begins the names of each workload's users; those of `l` are lists.
    fn start_records(&mut self, block: Vec<(u32, Client)>, letter: char) {
        let append = letter == 'l';
        for (circle, group) in (0u32..).zip(block.chunks(records::CLIENTS_PER_USER as usize)) {
            let circle = Arc::new(records::Circle::new(format!("{letter}{circle}"), append));
            for (number, client) in group {
                let caller = self.caller(*number, client.clone());
                let writer = records::Writer::new(caller, circle.clone(), *number);
                self.writers.push(tokio::spawn(writer.run(self.stop.clone())));
            }
            self.circles.push(circle);
        }
    }

    fn start_feed(&mut self, block: Vec<(u32, Client)>, clients: u32, addresses: &[String]) -> anyhow::Result<()> {
        let mut place = 0u32;
        for (number, group) in block.chunks(feed::WRITERS_PER_USER as usize).enumerate() {
            let user = format!("f{number}");
            for (number, client) in group {
                let writer = feed::Writer::new(self.caller(*number, client.clone()), user.clone(), *number);
                self.writers.push(tokio::spawn(writer.run(self.stop.clone())));
            }
            for _ in 0..feed::CONSUMERS_PER_USER {
                let client = Client::builder().endpoints(addresses.iter().cloned()).build()?;
                let caller = self.caller(clients + place, client);
                let consumer = feed::Consumer::new(caller, user.clone(), place, addresses.to_vec());
                self.consumers.push(tokio::spawn(consumer.run(self.stop_consumers.clone())));
                place += 1;
            }
            self.feed_users.push(user);
        }
        Ok(())
    }

    fn caller(&self, number: u32, client: Client) -> Caller {
        Caller { shared: self.shared.clone(), process: Process::Client(number), client }
    }

    /// Ends all clients where they are: a cluster that is down tells nobody what became of a write.
    pub async fn abandon(self) {
        for client in self.writers.into_iter().chain(self.consumers) {
            client.abort();
            // Gone, or it had ended before.
            let _ = client.await;
        }
    }

    /// Ends all clients: writers find out the end of what they are not sure of, then consumers come to the end of their
    /// feeds. Gives what is to be read back.
    ///
    /// # Errors
    /// When a client panicked.
    pub async fn finish(mut self) -> anyhow::Result<Written> {
        self.stop.store(true, Ordering::Release);
        for writer in std::mem::take(&mut self.writers) {
            writer.await.context("a client of the load")?;
        }
        self.stop_consumers.store(true, Ordering::Release);
        for consumer in std::mem::take(&mut self.consumers) {
            consumer.await.context("a consumer of a feed")?;
        }
        let records = self.users().all();
        Ok(Written { shared: self.shared, set_users: self.set_users, ttl_users: self.ttl_users, records })
    }

    /// Users whose records are batches and reads in the history.
    pub fn users(&self) -> Users {
        Users { circles: self.circles.clone(), feeds: self.feed_users.clone() }
    }
}

/// Users that clients write to, while they do.
#[derive(Debug, Clone)]
pub struct Users {
    circles: Vec<Arc<records::Circle>>,
    feeds: Vec<String>,
}

impl Users {
    /// All that were written up to now, each with its records.
    pub fn all(&self) -> Vec<(String, Vec<String>)> {
        let records = self.circles.iter().flat_map(|circle| circle.users()).map(|user| (user, records::keys()));
        let feeds = self.feeds.iter().map(|user| (user.clone(), feed::keys()));
        records.chain(feeds).collect()
    }
}

/// What was written, and so must be read back.
#[derive(Debug)]
pub struct Written {
    shared: Shared,
    set_users: Vec<String>,
    /// Nothing of theirs is left, on no node.
    ttl_users: Vec<String>,
    records: Vec<(String, Vec<String>)>,
}

impl Written {
    /// All users.
    pub fn users(&self) -> Vec<String> {
        let by_pages = self.set_users.iter().chain(&self.ttl_users);
        by_pages.chain(self.records.iter().map(|(user, _)| user)).cloned().collect()
    }

    /// Reads every record, also those that are gone, linearizable, and writes down what is found.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn read_back(&self, client: &Client) -> anyhow::Result<()> {
        let reader = Process::Named(crate::history::Named::Reader);
        let caller = Caller { shared: self.shared.clone(), process: reader, client: client.clone() };
        for (user, keys) in &self.records {
            let (user, keys) = (user.clone(), keys.clone());
            let read = Read { user, keys, level: Level::Linearizable, got: None };
            caller.read(&read).await.with_context(|| format!("read {} back", read.user))?;
        }
        Ok(())
    }
}

/// Numbers of clients for each of so many workloads.
fn shares(clients: u32, workloads: usize) -> Vec<Range<u32>> {
    let workloads = workloads as u32;
    (0..workloads).map(|place| clients * place / workloads..clients * (place + 1) / workloads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_one_workload() {
        for (clients, workloads) in [(64, 1), (64, 4), (5, 3), (2, 4)] {
            let all: Vec<u32> = shares(clients, workloads).into_iter().flatten().collect();
            assert_eq!(all, (0..clients).collect::<Vec<_>>());
            assert_eq!(shares(clients, workloads).len(), workloads);
        }
    }
}
