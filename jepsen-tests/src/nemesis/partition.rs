//! Links between nodes that carry nothing: one node alone, two halves, one direction only, or two sides that only one
//! node sees both of.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::chance::Chance;
use crate::nemesis::{Fault, Harm, Struck, World};
use crate::network::Rule;

/// Probes on each link, and how long they may take: far longer than any rule of `links` delays them.
const EACH: u32 = 10;
const WAIT: Duration = Duration::from_millis(400);
/// What is seen later than this to be gone counts as not gone.
pub(super) const GONE_WITHIN: Duration = Duration::from_secs(10);

pub(super) type Links = Vec<(usize, usize)>;

/// Which links are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cut {
    name: &'static str,
    /// Those who miss the majority, or would without luck.
    places: Vec<usize>,
    harm: Harm,
    links: Links,
}

/// Cuts links, so that a majority sees itself whole, or so that nobody can say.
pub(super) async fn strike(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let count = 1 + chance.below(world.spare().max(1));
    let few = world.victims(count, chance).await;
    let mut many = world.cluster.members();
    many.retain(|place| !few.contains(place));
    chance.shuffle(&mut many);
    if few.is_empty() || many.is_empty() {
        return Ok(None);
    }
    let cut = draw(few, &many, chance);
    let mut struck = world.begin(Fault::Partition, cut.places.clone(), cut.harm, cut.name);
    self::cut(world, struck.round, &cut.links)?;
    let (installed, told) = is_cut(world, &cut.links)?;
    struck.installed = installed;
    struck.detail = format!("{}: {told}", cut.name);
    Ok(Some(struck))
}

/// Cuts links, under the round of a fault.
pub(super) fn cut(world: &World, round: u32, links: &Links) -> anyhow::Result<()> {
    world.network()?.set(round, links.iter().copied(), Rule { cut: true, ..Rule::default() });
    Ok(())
}

/// Whether nothing comes through any of these links, and what was seen of that.
pub(super) fn is_cut(world: &World, links: &Links) -> anyhow::Result<(bool, String)> {
    let arrived = arrived(world, links)?;
    let shown = format!("probes of {EACH} that came through: {}", told(&by_id(world, links), &arrived));
    Ok((arrived.iter().all(|count| *count == 0), shown))
}

/// Joins them again.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let open = uncut(world, struck.round)?;
    let (joined, told) = is_joined(world, &open)?;
    (struck.installed, struck.detail) = (!joined, told);
    Ok(())
}

/// Takes away what a round cut; gives the links that nothing cuts any more.
pub(super) fn uncut(world: &World, round: u32) -> anyhow::Result<Links> {
    let network = world.network()?;
    let members = world.cluster.members();
    let pairs = members.iter().flat_map(|from| members.iter().map(move |to| (*from, *to)));
    let cut: Links = pairs.filter(|(from, to)| network.rules(*from, *to).iter().any(|(of, _)| *of == round)).collect();
    network.clear(round);
    // Another fault may keep a link cut that this one no longer does.
    let open = |(from, to): &(usize, usize)| network.rules(*from, *to).iter().all(|(_, rule)| !rule.cut);
    Ok(cut.into_iter().filter(open).collect())
}

/// Whether something comes through all of these links in the end, and what was seen of that.
pub(super) fn is_joined(world: &World, links: &Links) -> anyhow::Result<(bool, String)> {
    // A machine under load lets probes wait, too: those that come through in the end say that nothing is cut.
    let end = Instant::now() + GONE_WITHIN;
    loop {
        let arrived = arrived(world, links)?;
        let joined = !arrived.contains(&0);
        if joined || Instant::now() >= end {
            let told = told(&by_id(world, links), &arrived);
            return Ok((joined, format!("probes of {EACH} that came through: {told}")));
        }
    }
}

fn draw(few: Vec<usize>, many: &[usize], chance: &mut Chance) -> Cut {
    let between = |ones: &[usize], others: &[usize]| -> Links {
        ones.iter().flat_map(|from| others.iter().map(move |to| (*from, *to))).collect()
    };
    let (out, back) = (between(&few, many), between(many, &few));
    match chance.below(5) {
        0 | 1 => Cut { name: "apart", harm: Harm::Taken, links: [out, back].concat(), places: few },
        2 => Cut { name: "heard by nobody", harm: Harm::Hampered, links: out, places: few },
        3 => Cut { name: "hearing nobody", harm: Harm::Hampered, links: back, places: few },
        // All but one of the others: that one sees both sides.
        _ => {
            let rest = &many[1..];
            let links = [between(&few, rest), between(rest, &few)].concat();
            Cut { name: "two sides that one node sees both of", harm: Harm::Hampered, links, places: few }
        }
    }
}

/// Links as people read them: by the ids of nodes.
fn by_id(world: &World, links: &Links) -> Vec<String> {
    let id = |place: usize| world.cluster.nodes[place].id;
    links.iter().map(|(from, to)| format!("{} to {}", id(*from), id(*to))).collect()
}

fn told(links: &[String], arrived: &[u32]) -> String {
    let told: Vec<String> = links.iter().zip(arrived).map(|(link, count)| format!("{link}: {count}")).collect();
    told.join(", ")
}

/// How many probes come through each of these links.
fn arrived(world: &World, links: &Links) -> anyhow::Result<Vec<u32>> {
    let probes = world.network()?.probe(&world.cluster.members(), EACH, WAIT)?;
    let at = |(from, to): &(usize, usize)| Some(probes.get(*from)?.get(*to)?.arrived);
    links.iter().map(|link| at(link).context("a place without a seat")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_shapes_come_up_and_none_cuts_a_majority_apart_or_a_node_from_itself() {
        let mut chance = Chance::new(1, 1);
        let mut names = BTreeSet::new();
        for _ in 0..200 {
            for (few, many) in [(vec![1], vec![0, 2]), (vec![0, 3], vec![1, 2, 4])] {
                let cut = draw(few.clone(), &many, &mut chance);
                names.insert(cut.name);
                assert_eq!(cut.places, few);
                assert!(!cut.links.is_empty());
                let crosses = |(from, to): &(usize, usize)| few.contains(from) != few.contains(to);
                assert!(cut.links.iter().all(crosses), "{cut:?}");
                let both_ways = cut.links.len() == 2 * few.len() * many.len();
                assert_eq!(cut.harm == Harm::Taken, both_ways, "{cut:?}");
            }
        }
        assert_eq!(names.len(), 4);
    }
}
