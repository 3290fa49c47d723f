//! An array is lost: the disks of all nodes in it fail within ten milliseconds. It hangs, answers with errors, is empty,
//! full of noise, or back at an earlier day.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

use crate::chance::Chance;
use crate::cluster::{Orphan, comes_true, process};
use crate::disk::array::{self, Spread, WITHIN};
use crate::disk::corrupt::{Damage, Part};
use crate::nemesis::disks::cut_power;
use crate::nemesis::drive::{RECOVER_WITHIN, serves};
use crate::nemesis::{Fault, Harm, Struck, World};

/// Written and fsynced after the image was set aside: a rollback must take it away.
const MARK: &str = "rollback-mark";
/// What somebody writes to a disk that hangs, and must wait to.
const WRITER: &str = "hang-probe";

/// Makes one of the five losses of an array.
pub(super) async fn strike(world: &mut World, fault: Fault, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let places = world.array(chance)?;
    if places.is_empty() {
        return Ok(None);
    }
    let mut struck = world.begin(fault, places, Harm::Taken, "all disks of one array");
    match fault {
        Fault::ArrayHang => {
            let hang = array::hang(&world.disks_of(&struck.places)?).context("freeze an array")?;
            let spread = hang.spread;
            // Kept from here on, so that all are thawed whatever happens next.
            let (_, writers) = world.hangs.entry(struck.round).or_insert((hang, Vec::new()));
            let disks = world.disks.as_ref().context("disks that were frozen")?;
            for place in &struck.places {
                writers.push(writer(disks.at(*place)?)?);
            }
            let mut sleep = async || writers.iter().all(|writer| process::state(writer.id() as i32) == Some('D'));
            let sleep = comes_true(RECOVER_WITHIN, &mut sleep).await;
            told(&mut struck, spread, sleep, "writers sleep");
        }
        Fault::ArrayEio => {
            let spread = cut(world, &struck.places)?;
            let dark = world.disks_of(&struck.places)?.iter().all(|disk| disk.is_dark());
            told(&mut struck, spread, dark, "every call fails with EIO");
        }
        Fault::ArrayWipe | Fault::ArrayScramble => lose(world, &mut struck, chance).await?,
        _ => {
            for place in &struck.places {
                world.disk(*place)?.set_aside(&world.copy_of(*place)?)?;
                mark(world.disk(*place)?.at())?;
            }
            // What is acknowledged from here on is what the disks will have forgotten.
            world.recorder.mark();
            let loaded = comes_true(RECOVER_WITHIN, async || world.recorder.progress().since_mark > 0).await;
            let spread = cut(world, &struck.places)?;
            world.cluster.kill_together(&struck.places);
            let mut gone = true;
            for place in struck.places.clone() {
                gone &= roll_back(world, place)?;
                world.start(place);
            }
            let what =
                if loaded { "an fsynced file is gone" } else { "an fsynced file is gone; nothing was acknowledged" };
            // Who has nothing to forget goes back in no time.
            told(&mut struck, spread, gone && loaded, what);
        }
    }
    Ok(Some(struck))
}

/// The array is back: as it was before, if it had been emptied or spoilt. Nodes that ended are started.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    // Ends when the guardian has thawed them.
    let mut writers = world.hangs.remove(&struck.round).map(|(hang, writers)| {
        drop(hang);
        writers
    });
    let hung = writers.is_some();
    let fault = struck.fault;
    let mut ended = Vec::new();
    for place in struck.places.clone() {
        if fault == Fault::ArrayRollback || hung {
            continue;
        }
        if let Some(status) = world.cluster.ended(place) {
            ended.push(format!("node {}: {status}", world.cluster.nodes[place].id));
        }
        world.cluster.kill(place);
        match fault {
            Fault::ArrayEio => world.disk(place)?.revive()?,
            _ => world.disk(place)?.roll_back(&world.copy_of(place)?)?,
        }
        world.start(place);
    }
    let restarted = world.restart_ended(&struck.places);
    let mut wake = async || writers.iter_mut().flatten().all(|writer| matches!(writer.try_wait(), Ok(Some(_))));
    let woke = comes_true(RECOVER_WITHIN, &mut wake).await;
    struck.installed = !woke || world.disks_of(&struck.places)?.iter().any(|disk| disk.is_dark());
    struck.detail = format!("the array is back; had ended: {ended:?} {restarted:?}");
    Ok(())
}

/// Empties the disks or fills them with noise, keeps what they held, and starts the nodes: each must refuse, since it
/// cannot know what it promised.
async fn lose(world: &mut World, struck: &mut Struck, chance: &mut Chance) -> anyhow::Result<()> {
    let spread = cut(world, &struck.places)?;
    world.cluster.kill_together(&struck.places);
    let mut spoilt = 0;
    for place in struck.places.clone() {
        let disk = world.disk(place)?;
        disk.revive()?;
        disk.set_aside(&world.copy_of(place)?)?;
        if struck.fault == Fault::ArrayWipe {
            disk.wipe()?;
        } else {
            for file in Part::Any.files(disk.at())? {
                spoilt += usize::from(Damage::Scramble.strike(&file, None, chance).is_ok());
            }
            ensure!(spoilt > 0, "{} holds nothing to scramble", disk.at().display());
        }
        world.cluster.restart(place);
    }
    let hears = world.must_serve();
    let (mut ends, mut missed) = (Vec::new(), Vec::new());
    for place in &struck.places {
        let mut ended = None;
        // Alone it cannot know that it is known under another directory, so it may run on while it hears nobody.
        comes_true(RECOVER_WITHIN, async || {
            ended = world.cluster.ended(*place);
            ended.is_some()
        })
        .await;
        if ended.is_none() && is_broken(struck.fault, hears, serves(&world.cluster, *place).await) {
            let (id, seconds) = (world.cluster.nodes[*place].id, RECOVER_WITHIN.as_secs());
            missed.push(format!("node {id} runs on {seconds} s after its start on a disk that was lost"));
        }
        ends.push(ended.map_or("runs on".to_owned(), |status| status.to_string()));
    }
    struck.missed = (!missed.is_empty()).then(|| missed.join("; "));
    told(struck, spread, true, &format!("{spoilt} files of noise; the nodes, started on it: {ends:?}"));
    Ok(())
}

/// Whether a node that runs on, after its start on a disk that was lost, breaks a promise. Of noise nothing can be read; one
/// that is empty learns only from the others that it is known under another directory, and serves nobody before.
fn is_broken(fault: Fault, hears_a_majority: bool, serves: bool) -> bool {
    fault == Fault::ArrayScramble || hears_a_majority || serves
}

/// Somebody who writes to a disk beside its node. A process of its own: a thread of this one that sleeps there would keep
/// the guardian from hearing of this one's end.
fn writer(at: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", "echo waits >\"$1\"", "sh"]).arg(at.join(WRITER));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    crate::cluster::spawn(command, Orphan::Killed).with_context(|| format!("write to {}", at.display()))
}

fn cut(world: &World, places: &[usize]) -> anyhow::Result<Spread> {
    let spread = cut_power(world, places)?;
    // They go on, and meet a disk that answers nothing but errors.
    places.iter().for_each(|place| world.cluster.signal(*place, libc::SIGCONT));
    Ok(spread)
}

fn told(struck: &mut Struck, spread: Spread, seen: bool, what: &str) {
    struck.installed = seen && spread.begun <= WITHIN;
    struck.detail =
        format!("{what}; all within {} us, done after {} us", spread.begun.as_micros(), spread.done.as_micros());
}

/// Leaves an fsynced file behind.
pub(super) fn mark(at: &Path) -> anyhow::Result<()> {
    let path = at.join(MARK);
    let made = std::fs::File::create(&path).and_then(|file| file.sync_all());
    made.and_then(|()| std::fs::File::open(at)?.sync_all()).with_context(|| format!("write {}", path.display()))
}

/// Puts the image back that was set aside; true = the fsynced file is gone. The node must have been killed.
pub(super) fn roll_back(world: &World, place: usize) -> anyhow::Result<bool> {
    let (disk, copy) = (world.disk(place)?, world.copy_of(place)?);
    disk.revive()?;
    let was_there = disk.at().join(MARK).exists();
    disk.roll_back(&copy)?;
    std::fs::remove_file(&copy).with_context(|| format!("remove {}", copy.display()))?;
    Ok(was_there && !disk.at().join(MARK).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_node_that_hears_nobody_and_serves_nobody_may_run_on() {
        assert!(!is_broken(Fault::ArrayWipe, false, false));
        assert!(is_broken(Fault::ArrayWipe, true, false) && is_broken(Fault::ArrayWipe, false, true));
        assert!(is_broken(Fault::ArrayScramble, false, false));
    }
}
