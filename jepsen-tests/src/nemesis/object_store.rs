//! The object store that nodes ship to errs, in one way after the other. Whatever it does, the archive is sound once it
//! errs no more, and what was acknowledged comes into it.

use anyhow::Context;

use crate::bucket::Mode;
use crate::chance::Chance;
use crate::cluster::comes_true;
use crate::disk::corrupt::Part;
use crate::nemesis::archive_flip::{dir, verify};
use crate::nemesis::drive::RECOVER_WITHIN;
use crate::nemesis::{Fault, Harm, Struck, World};

/// In turn.
const MODES: &[Mode] = &[
    Mode::ReplyLost,
    Mode::Unavailable,
    Mode::StaleList,
    Mode::Reset,
    Mode::Flipped,
    Mode::Truncated,
    Mode::Swallowed,
];

/// Has it err, and waits until a call was struck.
pub(super) async fn strike(world: &mut World) -> anyhow::Result<Option<Struck>> {
    let archive = dir(&world.cluster.dir);
    let shipped =
        async || archive.exists() && matches!(Part::Segment.any_file(&archive, &mut Chance::new(0, 0)), Ok(Some(_)));
    if !comes_true(RECOVER_WITHIN, shipped).await {
        return Ok(None);
    }
    let turn = world.damaged.entry(Fault::ObjectStore).or_default();
    let mode = MODES[*turn % MODES.len()];
    *turn += 1;
    let mut struck = world.begin(Fault::ObjectStore, Vec::new(), Harm::None, format!("{mode:?}"));
    world.bucket()?.set(Some(mode))?;
    // Nodes list when leadership changes hands, and whoever verifies does at once. What it says of a store that errs is
    // written down, and for no one to judge: it may have been lucky.
    let said = verify(world).await?;
    let bucket = world.bucket()?;
    let is_struck = async || {
        // Once leadership has changed hands nobody lists for long, and a call is struck by chance.
        if bucket.struck() == 0 && mode == Mode::StaleList {
            let _ = verify(world).await;
        }
        bucket.struck() > 0
    };
    struck.installed = comes_true(RECOVER_WITHIN, is_struck).await;
    struck.detail = format!("{mode:?}: {} calls struck; verify: {said:?}", bucket.struck());
    Ok(Some(struck))
}

/// It errs no more.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let bucket = world.bucket()?;
    let count = bucket.struck();
    bucket.set(None)?;
    let said = verify(world).await?;
    struck.installed = false;
    struck.missed = (!said.sound).then(|| format!("the object store errs no more, and verify says: {said:?}"));
    struck.detail = format!("{count} calls were struck; verify: {said:?}");
    Ok(())
}

impl World {
    /// The object store.
    ///
    /// # Errors
    /// When this run has none.
    fn bucket(&self) -> anyhow::Result<&crate::bucket::Bucket> {
        self.bucket.as_ref().context("this run has no object store")
    }
}
