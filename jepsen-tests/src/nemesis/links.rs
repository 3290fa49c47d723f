//! Links between nodes that carry badly: packets are lost, doubled and overtaken, or come late and at a low rate.

use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::nemesis::partition::GONE_WITHIN;
use crate::nemesis::{Fault, Harm, Struck, World};
use crate::network::{Probes, Rule};

/// Probes on each link: enough that a rule which loses some shows, and few enough for the buffers of a socket.
const EACH: u32 = 40;
const WAIT: Duration = Duration::from_millis(800);
/// So much slower than a healthy link that load of the machine is no explanation.
const DELAY_MS: (usize, usize) = (20, 150);
/// Bytes a second; a cluster writes more than the least of them.
const RATE: (usize, usize) = (64 << 10, 1 << 20);

/// Makes links lose, double and mix up packets.
pub(super) async fn lossy(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let rule = Rule {
        lost: 50 + chance.below(250) as u32,
        doubled: chance.below(100) as u32,
        overtaken: chance.below(100) as u32,
        ..Rule::default()
    };
    strike(world, chance, Fault::Lossy, rule)
}

/// Makes links slow.
pub(super) async fn slow(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let ms = |chance: &mut Chance, (least, most): (usize, usize)| least + chance.below(most - least);
    let delay = Duration::from_millis(ms(chance, DELAY_MS) as u64);
    let jitter = Duration::from_millis(chance.below(100) as u64);
    let rate = chance.percent(50).then(|| ms(chance, RATE) as u64);
    strike(world, chance, Fault::Slow, Rule { delay, jitter, rate, ..Rule::default() })
}

fn strike(world: &mut World, chance: &mut Chance, fault: Fault, rule: Rule) -> anyhow::Result<Option<Struck>> {
    let members = world.cluster.members();
    // All links, or those from and to one node.
    let one = chance.percent(50).then(|| members[chance.below(members.len())]);
    let pairs = members.iter().flat_map(|from| members.iter().map(move |to| (*from, *to)));
    let hit = |(from, to): &(usize, usize)| from != to && one.is_none_or(|one| one == *from || one == *to);
    let mut links: Vec<(usize, usize)> = pairs.filter(hit).collect();
    // What carries nothing at all is not bad, and what is lost there is not this fault's doing.
    let is_cut = |(from, to): &(usize, usize)| {
        world.network().is_ok_and(|network| network.rules(*from, *to).iter().any(|(_, rule)| rule.cut))
    };
    links.retain(|link| !is_cut(link));
    if links.is_empty() {
        return Ok(None);
    }
    let places = one.map_or_else(|| members.clone(), |one| vec![one]);
    let mut struck = world.begin(fault, places, Harm::Slowed, format!("{rule:?}"));
    let network = world.network()?;
    let lost = || links.iter().map(|(from, to)| network.counts(*from, *to).lost).sum::<u64>();
    let before = lost();
    network.set(struck.round, links.iter().copied(), rule);
    let probes = network.probe(&members, EACH, WAIT)?;
    let fastest = fastest(&probes, &links);
    let lost = lost() - before;
    struck.installed = if rule.lost > 0 { lost > 0 } else { fastest.is_some_and(|fastest| fastest >= rule.delay) };
    struck.detail = format!("{rule:?} on {} links: {lost} packets lost, fastest probe {fastest:?}", links.len());
    Ok(Some(struck))
}

/// Makes links as they were.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let network = world.network()?;
    network.clear(struck.round);
    let members = world.cluster.members();
    // What others do to a link says nothing about this one.
    let pairs = members.iter().flat_map(|from| members.iter().map(move |to| (*from, *to)));
    let free = |(from, to): &(usize, usize)| from != to && network.rules(*from, *to).is_empty();
    let free: Vec<(usize, usize)> = pairs.filter(free).collect();
    // A machine under load is slow and loses packets, too: once is enough to see that no rule does it.
    let end = Instant::now() + GONE_WITHIN;
    loop {
        let probes = network.probe(&members, EACH, WAIT)?;
        let all = free.iter().all(|(from, to)| probes[*from][*to].arrived == EACH);
        let slowest = free.iter().map(|(from, to)| probes[*from][*to].fastest).max();
        let soon = slowest.is_none_or(|slowest| slowest < Duration::from_millis(DELAY_MS.0 as u64));
        struck.installed = !(all && soon);
        struck.detail = format!("all probes came through {} links: {all}, within {slowest:?}", free.len());
        if !struck.installed || Instant::now() >= end {
            return Ok(());
        }
    }
}

fn fastest(probes: &Probes, links: &[(usize, usize)]) -> Option<Duration> {
    let arrived = links.iter().map(|(from, to)| probes[*from][*to]).filter(|probed| probed.arrived > 0);
    arrived.map(|probed| probed.fastest).min()
}
