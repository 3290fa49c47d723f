//! One damaged file on one node: a flipped bit, a missing end, or pieces that changed places, in each part of its directory
//! in turn. The node refuses to start and says why, or sets the damage aside and is filled up again, or meets it later and
//! repairs it; it never serves it, and it says so.
//!
//! A node is killed first, and started over the damage; but the snapshot that it keeps for those who lag it deletes when it
//! starts, so that one is damaged under the running node.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::Context;

use crate::chance::Chance;
use crate::cluster::comes_true;
use crate::disk::corrupt::{Damage, Part};
use crate::nemesis::drive::RECOVER_WITHIN;
use crate::nemesis::{Fault, Harm, Struck, World};

/// What is struck, in turn.
const PARTS: &[Part] = &[
    Part::LogWal,
    Part::StateTable,
    Part::Floor,
    Part::Snapshot,
    Part::StateManifest,
    Part::StateCurrent,
    Part::StatePointer,
];
/// What it says when it found something: events, and the words of an error that ends it.
const SAID: &[&str] = &[
    "log.recovering",
    "log.quarantined",
    "log.torn",
    "log.floor_missing",
    "log.floor_spoilt",
    "integrity.",
    "holdfast: ",
];

/// A file as it was before.
#[derive(Debug)]
pub(super) struct Whole {
    part: Part,
    path: PathBuf,
    bytes: Vec<u8>,
    damaged: Vec<u8>,
    /// Length of the node's log before it met the damage.
    said: u64,
}

impl Whole {
    /// Nobody can meet the damage any more: the file was replaced, or its damaged bytes written anew. The floor is read at
    /// every start, in whole, before it is written.
    fn is_gone(&self) -> bool {
        self.part != Part::Floor && std::fs::read(&self.path).map_or(true, |bytes| !bytes.starts_with(&self.damaged))
    }
}

/// Kills a node, damages a file, and starts it.
pub(super) async fn strike(world: &mut World, fault: Fault, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let places = world.victims(1, chance).await;
    let Some(place) = places.first().copied() else { return Ok(None) };
    let damage = match fault {
        Fault::Truncate => Damage::Truncate,
        Fault::Swap => Damage::Swap,
        _ => Damage::Flip,
    };
    let mut struck = world.begin(fault, places, Harm::Taken, "one damaged file of one node");
    let mut running = true;
    let mut hit = None;
    for _ in PARTS {
        let turn = world.damaged.entry(fault).or_default();
        let part = PARTS[*turn % PARTS.len()];
        *turn += 1;
        if part != Part::Snapshot && running {
            world.cluster.kill(place);
            running = false;
        } else if part == Part::Snapshot && !running {
            continue;
        }
        hit = strike_part(world, place, part, damage, chance)?;
        if hit.is_some() {
            break;
        }
    }
    let data = world.cluster.nodes[place].data_dir.clone();
    let (whole, at) = hit.with_context(|| format!("{} holds nothing to damage", data.display()))?;
    struck.installed = whole.bytes != whole.damaged;
    if !running {
        world.cluster.restart(place);
    }
    let name = whole.path.strip_prefix(&data).unwrap_or(&whole.path).display().to_string();
    let (part, said, length) = (whole.part, whole.said, whole.bytes.len());
    world.whole.insert(struck.round, whole);
    let mut ended = None;
    let decided = comes_true(RECOVER_WITHIN, async || {
        ended = world.cluster.ended(place);
        ended.is_some() || world.cluster.status(place).await.is_some()
    });
    let decided = decided.await;
    let end = match ended {
        Some(status) => format!("it refused: {status}"),
        None if running => "it runs".to_owned(),
        None if decided => "it started".to_owned(),
        None => "it neither answers nor ends".to_owned(),
    };
    let told = told(world, place, said);
    let id = world.cluster.nodes[place].id;
    struck.missed = if !decided {
        Some(format!(
            "node {id} neither answers nor ends {} s after its start on a damaged file",
            RECOVER_WITHIN.as_secs()
        ))
    } else {
        ended.and_then(|status| unsaid(id, status, told.as_deref()))
    };
    struck.detail = format!("{part:?}: byte {at} of {length} in {name}; {end}; {}", shown(told.as_deref()));
    Ok(Some(struck))
}

/// Damages a file of this part, if there is one that has two pieces that differ, and that is still there afterwards.
fn strike_part(
    world: &World,
    place: usize,
    part: Part,
    damage: Damage,
    chance: &mut Chance,
) -> anyhow::Result<Option<(Whole, u64)>> {
    let said = std::fs::metadata(world.cluster.log(place)).map_or(0, |log| log.len());
    let file = match part.any_file(&world.cluster.nodes[place].data_dir, chance) {
        // A running node may delete a folder while it is listed.
        Err(_) if part == Part::Snapshot => None,
        file => file?,
    };
    let Some(path) = file else { return Ok(None) };
    let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
    let Ok(done) = damage.strike(&path, None, chance) else { return Ok(None) };
    let Ok(damaged) = std::fs::read(&path) else { return Ok(None) };
    Ok(Some((Whole { part, path, bytes, damaged, said }, done.at)))
}

/// Does what the node said is to be done, if it refused, and starts it.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let place = struck.places[0];
    let whole = world.whole.remove(&struck.round).context("a fault that was made")?;
    struck.detail = match world.cluster.ended(place) {
        None => {
            let heard = async || told(world, place, whole.said).is_some() || whole.is_gone();
            if !comes_true(RECOVER_WITHIN, heard).await {
                let id = world.cluster.nodes[place].id;
                struck.missed = Some(format!("node {id} runs on over a damaged file, and says nothing of it"));
            }
            let told = told(world, place, whole.said);
            match told {
                None if whole.is_gone() => "it runs; the damaged file is gone, and nobody met it".to_owned(),
                told => format!("it runs; {}", shown(told.as_deref())),
            }
        }
        Some(status) => {
            world.cluster.kill(place);
            let told = told(world, place, whole.said);
            if struck.missed.is_none() {
                struck.missed = unsaid(world.cluster.nodes[place].id, status, told.as_deref());
            }
            let said = shown(told.as_deref());
            let data = world.cluster.nodes[place].data_dir.clone();
            let done = ["state", "raft"].into_iter().find(|part| said.contains(&format!("{part}/ to quarantine/")));
            match done {
                Some(part) => set_aside(&data, part, struck.round)?,
                None => std::fs::write(&whole.path, &whole.bytes)
                    .with_context(|| format!("put {} back", whole.path.display()))?,
            }
            world.start(place);
            let done = done.map_or("the bytes were put back".to_owned(), |part| format!("{part}/ went to quarantine/"));
            format!("it had ended: {status}; {said}; {done}")
        }
    };
    struck.installed = false;
    Ok(())
}

fn set_aside(data: &Path, part: &str, round: u32) -> anyhow::Result<()> {
    let target = data.join("quarantine").join(format!("{part}-of-round-{round}"));
    std::fs::rename(data.join(part), &target).with_context(|| format!("move {part} to {}", target.display()))
}

/// What the node said about damage since its log had this length, the last of it.
fn told(world: &World, place: usize, since: u64) -> Option<String> {
    let bytes = std::fs::read(world.cluster.log(place)).unwrap_or_default();
    let since = usize::try_from(since).unwrap_or(usize::MAX).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[since..]).into_owned();
    text.lines().rfind(|line| SAID.iter().any(|word| line.contains(word))).map(str::to_owned)
}

fn shown(told: Option<&str>) -> String {
    told.map_or("it says nothing of damage".to_owned(), |line| format!("it says: {line}"))
}

/// The broken promise of a node that ended over damage and does not say so: a crash looks like this, too.
fn unsaid(node: u64, status: ExitStatus, told: Option<&str>) -> Option<String> {
    told.is_none().then(|| format!("node {node} ended with {status} over a damaged file, and says nothing of it"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn whoever_ends_over_damage_says_so() {
        let status = ExitStatus::from_raw(libc::SIGSEGV);
        let missed = unsaid(2, status, None).expect("a broken promise");
        assert!(missed.starts_with("node 2 ended with signal: 11"), "{missed}");
        assert_eq!(unsaid(2, status, Some("holdfast: a database file is corrupt")), None);
    }
}
