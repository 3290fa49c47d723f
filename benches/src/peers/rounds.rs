//! Peers side by side under load, one at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use holdfast_benches::servers::{Disk, Servers};

use crate::cells::Cell;
use crate::figures::{Figures, Outcome};
use crate::load::{self, Shape, Times, Work};
use crate::peer::{Peer, Who};
use crate::syncs;

/// Before a cell all peers end what they have left to do of others (flushes, compaction), or this time is over.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);
/// Before a peer is measured, the others do.
const QUIET_WITHIN: Duration = Duration::from_secs(5);
const QUIET_LOOK: Duration = Duration::from_millis(250);
/// Of one core.
const QUIET_SHARE: f64 = 0.15;

/// Peers that run, and those that cannot be run here.
pub struct Peers {
    holdfast: PathBuf,
    running: BTreeMap<Who, Peer>,
    /// Why not.
    pub absent: BTreeMap<Who, String>,
    /// Who has the records that are read, of so many bytes.
    filled: Vec<(Who, usize)>,
}

impl Peers {
    /// None runs yet.
    pub fn new(holdfast: PathBuf) -> Self {
        Self { holdfast, running: BTreeMap::new(), absent: BTreeMap::new(), filled: Vec::new() }
    }

    /// Has these run; who cannot is noted.
    ///
    /// # Errors
    /// When Holdfast itself cannot.
    pub async fn start(&mut self, who: &[Who]) -> anyhow::Result<()> {
        for who in who {
            if self.running.contains_key(who) || self.absent.contains_key(who) {
                continue;
            }
            eprintln!("starting {}", who.name());
            match Peer::start(*who, &self.holdfast).await {
                Ok(peer) => drop(self.running.insert(*who, peer)),
                Err(error) if *who == Who::Holdfast => return Err(error.context("Holdfast does not start")),
                Err(error) => {
                    eprintln!("{} is left out: {error:#}", who.name());
                    self.absent.insert(*who, format!("{error:#}"));
                }
            }
        }
        Ok(())
    }

    /// Ends all.
    pub fn stop(&mut self) {
        self.running.clear();
        self.filled.clear();
    }

    /// Until all have nothing left to do, but for one: what that has left of the same work is part of what it costs.
    async fn quiet(&self, but: Option<Who>, within: Duration) -> anyhow::Result<()> {
        let idle = self.running.iter().filter(|(who, _)| Some(**who) != but);
        let idle: Vec<_> = idle.map(|(_, peer)| peer.servers()).collect();
        let used = || idle.iter().map(Servers::cpu).sum::<anyhow::Result<Duration>>();
        let end = Instant::now() + within;
        let mut before = used()?;
        while Instant::now() < end {
            tokio::time::sleep(QUIET_LOOK).await;
            let now = used()?;
            if now.saturating_sub(before).as_secs_f64() <= QUIET_LOOK.as_secs_f64() * QUIET_SHARE {
                break;
            }
            before = now;
        }
        Disk::flush();
        Ok(())
    }

    async fn measure(
        &mut self,
        who: Who,
        shape: Shape,
        streams: bool,
        tag: &str,
        times: Times,
    ) -> anyhow::Result<Figures> {
        self.quiet(Some(who), QUIET_WITHIN).await?;
        let peer = self.running.get(&who).context("it does not run")?;
        let links = peer.links(shape.clients, streams && who == Who::Holdfast).await?;
        let reads = matches!(shape.work, Work::Get | Work::Mixed | Work::List);
        if reads && !self.filled.contains(&(who, shape.bytes)) {
            load::fill(&links[0], shape.bytes).await?;
            self.filled.retain(|(one, _)| *one != who);
            self.filled.push((who, shape.bytes));
        }
        load::measure(&peer.servers(), links, shape, tag, times).await
    }

    /// All rounds of a cell.
    pub async fn run(
        &mut self,
        cell: &Cell,
        (shape, streams): (Shape, bool),
        (rounds, times): (usize, Times),
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        self.start(cell.peers).await?;
        let here: Vec<Who> = cell.peers.iter().copied().filter(|who| self.running.contains_key(who)).collect();
        self.quiet(None, SETTLED_WITHIN).await?;
        for round in 0..rounds {
            for turn in 0..here.len() {
                let who = here[order(round, turn, here.len())];
                // New names in each round, also when the same peers run the cell again.
                let tag = format!("{}-{}-{round}", cell.slug, std::process::id());
                let measured = self.measure(who, shape, streams, &tag, times).await;
                let figures = measured.with_context(|| format!("{} in {}", who.name(), cell.slug))?;
                let of = |name: &str| figures.get(name).copied().unwrap_or_default();
                eprintln!(
                    "  {} round {} of {rounds}: {:<10} {:>8.0}/s  p50 {:.2} ms  p99 {:.2} ms  {:.0} µs of servers' CPU",
                    cell.slug,
                    round + 1,
                    who.name(),
                    of("ops_per_s"),
                    of("p50_ms"),
                    of("p99_ms"),
                    of("server_us"),
                );
                outcome.rounds.entry(who).or_default().push(figures);
            }
        }
        Ok(())
    }

    /// Syncs of each peer's servers for each put of one client.
    pub async fn count_syncs(&mut self, who: &[Who], outcome: &mut Outcome) -> anyhow::Result<()> {
        self.start(who).await?;
        let tag = format!("fsync-{}", std::process::id());
        for who in who {
            let Some(peer) = self.running.get(who) else { continue };
            self.quiet(None, SETTLED_WITHIN).await?;
            let link = peer.links(1, false).await?.remove(0);
            match syncs::count(&peer.servers(), &link, &tag).await {
                Ok(figures) => outcome.rounds.entry(*who).or_default().push(figures),
                Err(error) => outcome.notes.push(format!("the syncs of {} were not counted: {error:#}", who.name())),
            }
        }
        Ok(())
    }
}

/// Whose turn it is: everybody is first as often, and the order of neighbours turns round as well.
fn order(round: usize, turn: usize, peers: usize) -> usize {
    let turn = if round.is_multiple_of(2) { turn } else { peers - 1 - turn };
    (turn + round / 2) % peers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_everybody_once_and_rounds_differ() {
        let of = |round| (0..3).map(|turn| order(round, turn, 3)).collect::<Vec<_>>();
        assert_eq!((of(0), of(1), of(2), of(3)), (vec![0, 1, 2], vec![2, 1, 0], vec![1, 2, 0], vec![0, 2, 1]));
        assert_eq!((0..4).map(|round| order(round, 0, 2)).collect::<Vec<_>>(), [0, 1, 1, 0]);
    }
}
