//! A disk without room: a ballast file takes it all, or nearly.

use crate::chance::Chance;
use crate::nemesis::{Fault, Harm, Struck, World};

/// Bytes that are left, at most.
const LEAVE_MAX: usize = 4 << 20;

/// Fills the disk of one node, or of as many as may be taken.
pub(super) async fn strike(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let count = 1 + chance.below(world.spare().max(1));
    let places = world.victims(count, chance).await;
    if places.is_empty() {
        return Ok(None);
    }
    // The last block is what RocksDB may need to go on at all; one in three is left none.
    let leave = if chance.percent(33) { 0 } else { chance.below(LEAVE_MAX) as u64 };
    let mut struck = world.begin(Fault::DiskFull, places, Harm::Taken, format!("a ballast file; {leave} bytes left"));
    let mut left = Vec::new();
    for disk in world.disks_of(&struck.places)? {
        disk.fill(leave)?;
        left.push(disk.free_bytes()?);
    }
    struck.installed = left.iter().all(|left| *left <= leave + LEAVE_MAX as u64);
    struck.detail = format!("bytes left: {left:?}");
    Ok(Some(struck))
}

/// Gives the room back, and starts who ended for want of it.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let mut left = Vec::new();
    for disk in world.disks_of(&struck.places)? {
        disk.make_room()?;
        left.push(disk.free_bytes()?);
    }
    let ended = world.restart_ended(&struck.places);
    struck.installed = left.iter().any(|left| *left <= LEAVE_MAX as u64);
    struck.detail = format!("bytes left: {left:?}; had ended for want of room: {ended:?}");
    Ok(())
}
