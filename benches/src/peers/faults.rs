//! What writers notice of a dead leader, and of one that hands over.
//!
//! A round is one fault: writers begin, the fault comes, a leader is there again, writers end; whoever was killed is started
//! and catches up. No other peer has load meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use holdfast_benches::silence::silence;
use holdfast_client::{AdminClient, Client};
use jepsen_tests::cluster::comes_true;
use tokio::task::JoinSet;

use crate::etcd::{Etcd, Kv};
use crate::figures::{Figures, Outcome};
use crate::holdfast::{self, Holdfast};
use crate::load::Payloads;
use crate::peer::Who;

/// Writers.
const WRITERS: usize = 16;
/// Before the fault.
const BEFORE: Duration = Duration::from_secs(1);
/// After somebody leads again.
const AFTER: Duration = Duration::from_millis(1500);
/// After this a client asks another node; the same for both.
pub const ATTEMPT: Duration = Duration::from_millis(300);
/// For a whole call.
pub const DEADLINE: Duration = Duration::from_secs(30);
const PAYLOAD_BYTES: usize = 1 << 10;
/// A follower this far behind has caught up: writes go on.
const BEHIND_MAX: u64 = 1000;
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the leader.
    Kill,
    /// It is asked to hand over.
    Transfer,
}

/// A cluster that it happens to.
pub enum Target {
    /// Three nodes.
    Holdfast(Box<Holdfast>),
    /// Three members.
    Etcd(Etcd),
}

#[derive(Clone)]
enum Writer {
    Holdfast(Client),
    Etcd(Kv),
}

/// What a writer saw.
#[derive(Default)]
struct Written {
    acks: Vec<Instant>,
    /// Ids that were acknowledged.
    ids: Vec<String>,
    failures: Vec<String>,
}

/// Until a node that was started again has what the leader has, or nearly.
///
/// # Errors
/// When it does not within a minute.
pub async fn caught_up(holdfast: &Holdfast, place: usize) -> anyhow::Result<()> {
    let cluster = &holdfast.cluster;
    let of = async |place: usize| cluster.status(place).await.and_then(|status| status.groups.into_iter().next());
    let done = comes_true(CAUGHT_UP_WITHIN, async || {
        let Some(leader) = cluster.leader_now().await else { return false };
        let (Some(led), Some(node)) = (of(leader).await, of(place).await) else { return false };
        node.applied_index + BEHIND_MAX >= led.committed_index
    });
    ensure!(done.await, "node {} does not catch up", cluster.nodes[place].id);
    Ok(())
}

impl Target {
    async fn start(who: Who, binary: &Path) -> anyhow::Result<Self> {
        Ok(match who {
            Who::Etcd => Self::Etcd(Etcd::start().await?),
            _ => Self::Holdfast(Box::new(Holdfast::start(binary)?)),
        })
    }

    /// One for each writer, so that none waits for another's connection.
    fn writer(&self) -> anyhow::Result<Writer> {
        Ok(match self {
            Self::Holdfast(peer) => {
                let endpoints = peer.cluster.nodes.iter().map(|node| node.client.clone());
                let client = Client::builder().endpoints(endpoints).attempt_timeout(ATTEMPT).deadline(DEADLINE);
                Writer::Holdfast(client.build()?)
            }
            Self::Etcd(peer) => Writer::Etcd(peer.link_to_all()?),
        })
    }

    async fn leader(&self) -> anyhow::Result<usize> {
        match self {
            Self::Holdfast(peer) => Ok(peer.cluster.leader().await),
            Self::Etcd(peer) => peer.leader().await,
        }
    }

    /// Ends when somebody leads again; gives who was killed.
    async fn suffer(&mut self, fault: Fault) -> anyhow::Result<Option<usize>> {
        let leader = self.leader().await?;
        match (&mut *self, fault) {
            (Self::Holdfast(peer), Fault::Kill) => {
                peer.cluster.kill(leader);
            }
            (Self::Etcd(peer), Fault::Kill) => peer.kill(leader)?,
            (Self::Holdfast(peer), Fault::Transfer) => {
                AdminClient::new(&peer.cluster.nodes[leader].admin)?.transfer_leader(0).await.context("a transfer")?;
            }
            (Self::Etcd(peer), Fault::Transfer) => peer.move_leader().await.context("a transfer")?,
        }
        self.leader().await?;
        Ok((fault == Fault::Kill).then_some(leader))
    }

    async fn restart(&mut self, place: usize) -> anyhow::Result<()> {
        match self {
            Self::Holdfast(peer) => {
                peer.cluster.restart(place);
                caught_up(peer, place).await
            }
            Self::Etcd(peer) => {
                peer.restart(place)?;
                peer.wait_caught_up().await
            }
        }
    }

    /// How many of these are not there.
    async fn lost(&self, user: &str, ids: &[String]) -> anyhow::Result<usize> {
        match self {
            Self::Holdfast(peer) => Ok(ids.len() - holdfast::count(&peer.link(DEADLINE)?, user, ids).await?),
            Self::Etcd(peer) => {
                let there: BTreeSet<String> = peer.links(1).await?[0].ids(user).await?.into_iter().collect();
                Ok(ids.iter().filter(|id| !there.contains(*id)).count())
            }
        }
    }
}

impl Writer {
    async fn run(self, user: String, round: usize, stop: Arc<AtomicBool>) -> Written {
        let (mut seen, payloads) = (Written::default(), Payloads::new(PAYLOAD_BYTES));
        // Any member of etcd takes a put: with writers at all of them the first one to serve again is found at once.
        let mut at: usize = user.bytes().map(usize::from).sum();
        for n in 0u64.. {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let (id, value) = (format!("r{round}-{n}"), payloads.of(n));
            let done = match &self {
                Self::Holdfast(client) => holdfast::put(client, &user, &id, value).await.map_err(anyhow::Error::from),
                Self::Etcd(kv) => {
                    kv.put_somewhere(&mut at, (&user, &id), value, ATTEMPT, Instant::now() + DEADLINE).await
                }
            };
            match done {
                Ok(()) => {
                    seen.acks.push(Instant::now());
                    seen.ids.push(id);
                }
                Err(error) => seen.failures.push(format!("{error:#}")),
            }
        }
        seen
    }
}

/// A target, and all that was acknowledged to its writers.
struct Trial {
    target: Target,
    acknowledged: BTreeMap<String, Vec<String>>,
}

impl Trial {
    /// One fault.
    async fn round(&mut self, fault: Fault, round: usize) -> anyhow::Result<Figures> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let (writer, user, stop) = (self.target.writer()?, format!("fault-{number}"), stop.clone());
            writers.spawn(async move { (user.clone(), writer.run(user, round, stop).await) });
        }
        tokio::time::sleep(BEFORE).await;
        let asked = Instant::now();
        let killed = self.target.suffer(fault).await?;
        tokio::time::sleep(AFTER).await;
        let end = Instant::now();
        stop.store(true, Ordering::Release);
        let (mut acks, mut failed) = (Vec::new(), 0);
        while let Some(one) = writers.join_next().await {
            let (user, mut one) = one?;
            acks.append(&mut one.acks);
            self.acknowledged.entry(user).or_default().append(&mut one.ids);
            failed += one.failures.len();
            if let Some(failure) = one.failures.first() {
                eprintln!("  a put failed: {failure}");
            }
        }
        acks.sort_unstable();
        ensure!(acks.first().is_some_and(|first| *first < asked), "nothing was acknowledged before the fault");
        if let Some(place) = killed {
            self.target.restart(place).await?;
        }
        Ok(Figures::from([
            ("silence_ms".to_owned(), silence(&acks, asked, end).as_secs_f64() * 1000.0),
            ("failed".to_owned(), failed as f64),
            ("acknowledged".to_owned(), acks.len() as f64),
        ]))
    }

    /// Acknowledged puts that nobody finds.
    async fn lost(&self) -> anyhow::Result<usize> {
        let mut lost = 0;
        for (user, ids) in &self.acknowledged {
            lost += self.target.lost(user, ids).await.with_context(|| format!("read back what {user} wrote"))?;
        }
        Ok(lost)
    }
}

/// So many faults, to each of these.
///
/// # Errors
/// When a cluster does not come back.
pub async fn run(fault: Fault, who: &[Who], binary: &Path, rounds: usize, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut trials = Vec::new();
    for who in who {
        let target = match Target::start(*who, binary).await {
            Ok(target) => target,
            Err(error) if *who != Who::Holdfast => {
                outcome.notes.push(format!("without {}: {error:#}", who.name()));
                continue;
            }
            Err(error) => return Err(error),
        };
        trials.push((*who, Trial { target, acknowledged: BTreeMap::new() }));
    }
    for round in 0..rounds {
        let turns = trials.len();
        for turn in 0..turns {
            let (who, trial) = &mut trials[(turn + round) % turns];
            let figures = trial.round(fault, round).await.with_context(|| format!("{}, round {round}", who.name()))?;
            eprintln!(
                "  {fault:?} {} of {rounds}: {:<10} silence {:.0} ms, {} puts, {} failed",
                round + 1,
                who.name(),
                figures["silence_ms"],
                figures["acknowledged"],
                figures["failed"]
            );
            outcome.rounds.entry(*who).or_default().push(figures);
        }
    }
    for (who, trial) in &trials {
        let lost = trial.lost().await?;
        if let Some(last) = outcome.rounds.get_mut(who).and_then(|rounds| rounds.last_mut()) {
            last.insert("lost".to_owned(), lost as f64);
        }
    }
    Ok(())
}

/// Each node ends by SIGTERM and starts again, one after the other, under writers that know nothing of it.
///
/// # Errors
/// When a node does not end, or does not come back.
pub async fn rolling(binary: &Path, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut holdfast = Holdfast::start(binary)?;
    holdfast.cluster.take_over();
    holdfast.cluster.leader().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let writer = Writer::Holdfast(holdfast.link(Duration::from_secs(10))?);
        writers.spawn(writer.run(format!("rolling-{number}"), 0, stop.clone()));
    }
    tokio::time::sleep(BEFORE).await;
    let mut times = Vec::new();
    for place in 0..holdfast.cluster.nodes.len() {
        let asked = Instant::now();
        holdfast.cluster.signal(place, libc::SIGTERM);
        let ended = comes_true(CAUGHT_UP_WITHIN, async || holdfast.cluster.ended(place).is_some());
        ensure!(ended.await, "node {place} does not end");
        holdfast.cluster.restart(place);
        caught_up(&holdfast, place).await?;
        tokio::time::sleep(AFTER).await;
        times.push((asked, Instant::now()));
    }
    stop.store(true, Ordering::Release);
    let mut all = Written::default();
    while let Some(one) = writers.join_next().await {
        let mut one = one?;
        all.acks.append(&mut one.acks);
        all.failures.append(&mut one.failures);
    }
    all.acks.sort_unstable();
    for (asked, end) in times {
        let silence_ms = silence(&all.acks, asked, end).as_secs_f64() * 1000.0;
        let took = (end - asked).saturating_sub(AFTER).as_secs_f64();
        eprintln!("  a node restarted in {took:.1} s: silence {silence_ms:.0} ms");
        let figures = [("silence_ms", silence_ms), ("restart_s", took), ("failed", 0.0)];
        let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        outcome.rounds.entry(Who::Holdfast).or_default().push(figures);
    }
    if let Some(last) = outcome.rounds.get_mut(&Who::Holdfast).and_then(|rounds| rounds.last_mut()) {
        last.insert("failed".to_owned(), all.failures.len() as f64);
        last.insert("acknowledged".to_owned(), all.acks.len() as f64);
    }
    outcome.notes.extend(all.failures.into_iter().take(3).map(|failure| format!("a call failed: {failure}")));
    Ok(())
}
