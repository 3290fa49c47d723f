//! Wall clocks that jump by minutes, forward or back, or run fast or slow. Nothing that is promised may hang on them.

use std::time::Duration;

use anyhow::Context;

use crate::chance::Chance;
use crate::clock::Skew;
use crate::nemesis::{Fault, Harm, Struck, World};

/// A node looks at its wall clock far more often.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// Minutes that a clock jumps by, at most.
const JUMP_MINUTES: usize = 30;
/// Millionths that a clock runs too fast or too slow by, at most.
const DRIFT_PPM: usize = 500_000;

/// Sets the clocks of some nodes, or of all.
pub(super) async fn strike(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let mut places = world.whole();
    if places.is_empty() {
        return Ok(None);
    }
    chance.shuffle(&mut places);
    places.truncate(1 + chance.below(places.len()));
    let mut struck = world.begin(Fault::Clock, places, Harm::None, "a jump or a drift");
    let mut told = Vec::new();
    struck.installed = true;
    for place in &struck.places {
        let minutes = 1 + chance.below(JUMP_MINUTES) as i64;
        let offset_ms = minutes * 60_000 * if chance.percent(50) { 1 } else { -1 };
        let drift_ppm = chance.below(2 * DRIFT_PPM) as i64 - DRIFT_PPM as i64;
        let skew = Skew { offset_ms, drift_ppm: if chance.percent(50) { drift_ppm } else { 0 } };
        let seen = set(world, *place, skew).await?;
        struck.installed &= seen;
        told.push(format!("node {}: {skew:?}, seen: {seen}", world.cluster.nodes[*place].id));
    }
    struck.detail = told.join("; ");
    Ok(Some(struck))
}

/// Sets them right.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let mut left = Vec::new();
    for place in &struck.places {
        // One that is down or stopped meanwhile sees it before it does anything else.
        let runs = world.whole().contains(place);
        if !set(world, *place, Skew::default()).await? && runs {
            left.push(world.cluster.nodes[*place].id);
        }
    }
    struck.installed = !left.is_empty();
    struck.detail = format!("nodes that did not see their clocks set right: {left:?}");
    Ok(())
}

async fn set(world: &World, place: usize, skew: Skew) -> anyhow::Result<bool> {
    let clocks = world.clocks.as_ref().context("this run's nodes have no clocks of their own")?;
    let change = clocks.set(place, skew)?;
    let within = if world.whole().contains(&place) { SEEN_WITHIN } else { Duration::ZERO };
    Ok(clocks.becomes_seen(place, change, within).await)
}
