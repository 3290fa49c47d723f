//! One damaged object of the archive, of each kind in turn, while the nodes ship to it: `holdfast backup verify` finds it,
//! and finds nothing before and afterwards.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;

use crate::bucket::CREDENTIALS;
use crate::chance::Chance;
use crate::cluster::comes_true;
use crate::disk::corrupt::{Damage, Part};
use crate::nemesis::drive::RECOVER_WITHIN;
use crate::nemesis::{Fault, Harm, Struck, World};

/// What is struck, in turn; a kind that is not there yet is passed over.
const PARTS: &[Part] = &[Part::Segment, Part::Lineage, Part::SnapshotManifest, Part::Chunk];

/// An object as it was before.
#[derive(Debug)]
pub(super) struct Object {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// Flips a bit of an object, and has the archive verified.
pub(super) async fn strike(world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let archive = dir(&world.cluster.dir);
    // The first objects come with the first entries.
    let shipped =
        async || archive.exists() && matches!(Part::Segment.any_file(&archive, &mut Chance::new(0, 0)), Ok(Some(_)));
    if !comes_true(RECOVER_WITHIN, shipped).await {
        return Ok(None);
    }
    let mut struck = world.begin(Fault::ArchiveFlip, Vec::new(), Harm::None, "one flipped bit in an object");
    let before = verify(world).await?;
    let mut target = None;
    for _ in PARTS {
        let turn = world.damaged.entry(Fault::ArchiveFlip).or_default();
        let part = PARTS[*turn % PARTS.len()];
        *turn += 1;
        target = part.any_file(&archive, chance)?.map(|file| (part, file));
        if target.is_some() {
            break;
        }
    }
    let (part, path) = target.with_context(|| format!("{} holds nothing to damage", archive.display()))?;
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let done = Damage::Flip.strike(&path, None, chance)?;
    struck.installed = std::fs::read(&path).with_context(|| format!("read {}", path.display()))? != bytes;
    let name = path.strip_prefix(&archive).unwrap_or(&path).display().to_string();
    let length = bytes.len();
    world.objects.insert(struck.round, Object { path, bytes });
    let after = verify(world).await?;
    struck.missed = missed(&before, &after);
    struck.detail = format!("{part:?}: byte {} of {length} in {name}; verify: {after:?}", done.at);
    Ok(Some(struck))
}

/// Puts the object back.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let object = world.objects.remove(&struck.round).context("a fault that was made")?;
    std::fs::write(&object.path, &object.bytes).with_context(|| format!("put {} back", object.path.display()))?;
    let healed = verify(world).await?;
    struck.installed = false;
    struck.missed = (!healed.sound).then(|| format!("the object is back, and verify says: {healed:?}"));
    struck.detail = format!("the object is back; verify: {healed:?}");
    Ok(())
}

/// Where a cluster's archive is, in its directory.
pub fn dir(cluster: &Path) -> PathBuf {
    cluster.join("offsite")
}

/// What `holdfast backup verify` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verified {
    pub sound: bool,
    pub says: String,
}

fn missed(before: &Verified, after: &Verified) -> Option<String> {
    match (before.sound, after.sound) {
        (false, _) => Some(format!("no bit was flipped yet, and verify says: {before:?}")),
        (true, true) => Some(format!("a bit of an object is flipped, and verify says: {after:?}")),
        (true, false) => None,
    }
}

/// Has the archive verified, where the nodes ship it to.
pub(super) async fn verify(world: &World) -> anyhow::Result<Verified> {
    let mut command = tokio::process::Command::new(world.cluster.binary());
    command.args(["backup", "verify", "--from", &world.archive()]).envs(CREDENTIALS);
    let output =
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("run holdfast backup verify")?;
    let says = [output.stdout, output.stderr].concat();
    Ok(Verified { sound: output.status.success(), says: String::from_utf8_lossy(&says).trim().replace('\n', "; ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_must_find_what_is_there_and_nothing_else() {
        let says = |sound| Verified { sound, says: String::new() };
        assert_eq!(missed(&says(true), &says(false)), None);
        assert!(missed(&says(true), &says(true)).is_some_and(|missed| missed.starts_with("a bit of an object")));
        assert!(missed(&says(false), &says(false)).is_some_and(|missed| missed.starts_with("no bit was flipped")));
    }
}
