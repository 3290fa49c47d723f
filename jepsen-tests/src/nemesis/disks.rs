//! The nodes' disks, one each, and which of them lie in one array.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::chance::Chance;
use crate::disk::array::{self, Spread};
use crate::disk::{self, Disk, Mounts};
use crate::nemesis::World;

/// What proves that a disk lost what was not fsynced: this many bytes of it, in a file that nobody fsyncs.
const PROBE: &str = "power-probe";
const PROBE_BYTES: &[u8] = b"written before the power went, and never fsynced";

/// A run that may take the quorum draws the largest array in so many of a hundred cases, and any in the others.
const QUORUM_PERCENT: usize = 70;

/// Disks by the places of their nodes.
#[derive(Debug)]
pub struct Disks {
    dir: PathBuf,
    by_place: BTreeMap<usize, Disk>,
    arrays: usize,
}

/// Cuts the power of these nodes' disks in one moment. The nodes are stopped, and stay so.
///
/// No fsync may be under way then: the kernel tells one that a shutdown overtakes that all went well, and what it was for
/// is gone after the next mount (Linux 6.18: so ended 7 of 150 such shutdowns under a single writer, and none of 200 when
/// the writer was stopped before). A power cut acknowledges nothing.
pub(super) fn cut_power(world: &World, places: &[usize]) -> anyhow::Result<Spread> {
    world.cluster.hold_still(places)?;
    array::cut_power(&world.disks_of(places)?).context("shut file systems down")
}

impl Disks {
    /// Makes a disk for each first node of the cluster that will be founded in `dir`, over so many arrays in turn.
    ///
    /// # Errors
    /// As [`Disk::create`].
    pub fn create(mounts: Mounts, dir: &Path, nodes: usize, arrays: usize) -> anyhow::Result<Self> {
        ensure!((1..=nodes).contains(&arrays), "{nodes} nodes can lie in 1 to {nodes} arrays, not {arrays}");
        let images = dir.join("disk");
        std::fs::create_dir_all(&images).with_context(|| format!("create {}", images.display()))?;
        let mut by_place = BTreeMap::new();
        for place in 0..nodes {
            let image = images.join(format!("n{place}.ext4"));
            by_place.insert(place, Disk::create(mounts, &image, &dir.join(format!("n{place}")), disk::BYTES)?);
        }
        Ok(Self { dir: images, by_place, arrays })
    }

    /// The array of a place, from 1.
    pub fn array_of(place: usize, arrays: usize) -> usize {
        place % arrays.max(1) + 1
    }

    /// Where the disk of a place is mounted.
    pub(super) fn at(&self, place: usize) -> anyhow::Result<&Path> {
        let disk = self.by_place.get(&place);
        disk.map(Disk::at).with_context(|| format!("the node at place {place} has no disk of its own"))
    }

    /// Where an image is kept while another one is in use.
    pub(super) fn copy_of(&self, place: usize) -> PathBuf {
        self.dir.join(format!("n{place}.kept"))
    }
}

impl World {
    fn own_disks(&self) -> anyhow::Result<&Disks> {
        self.disks.as_ref().context("this run's nodes have no disks of their own")
    }

    pub(super) fn disk(&self, place: usize) -> anyhow::Result<&Disk> {
        let disk = self.own_disks()?.by_place.get(&place);
        disk.with_context(|| format!("the node at place {place} has no disk of its own"))
    }

    pub(super) fn disks_of(&self, places: &[usize]) -> anyhow::Result<Vec<&Disk>> {
        places.iter().map(|place| self.disk(*place)).collect()
    }

    pub(super) fn copy_of(&self, place: usize) -> anyhow::Result<PathBuf> {
        Ok(self.own_disks()?.copy_of(place))
    }

    /// Draws an array of whole nodes that may be taken away, by the places of its nodes; empty = there is none.
    pub(super) fn array(&self, chance: &mut Chance) -> anyhow::Result<Vec<usize>> {
        let disks = self.own_disks()?;
        let (whole, spare) = (self.whole(), self.spare());
        let members = self.cluster.members();
        let of = |array: usize| {
            let inside =
                |place: &usize| disks.by_place.contains_key(place) && Disks::array_of(*place, disks.arrays) == array;
            members.iter().copied().filter(inside).collect::<Vec<usize>>()
        };
        let fits = |places: &Vec<usize>| {
            !places.is_empty() && places.len() <= spare && places.iter().all(|place| whole.contains(place))
        };
        let mut fitting: Vec<Vec<usize>> = (1..=disks.arrays).map(of).filter(fits).collect();
        chance.shuffle(&mut fitting);
        // Where the quorum may go, it goes in most cases.
        if self.may_take_quorum && chance.percent(QUORUM_PERCENT) {
            fitting.sort_by_key(Vec::len);
        }
        Ok(fitting.pop().unwrap_or_default())
    }

    /// Starts nodes that are to be running and ended by themselves; gives their ids.
    pub(super) fn restart_ended(&mut self, places: &[usize]) -> Vec<u64> {
        let mut ended = Vec::new();
        for place in places {
            if self.cluster.ended(*place).is_some() {
                // Reaped, and whatever it ran under too.
                self.cluster.kill(*place);
                self.start(*place);
                ended.push(self.cluster.nodes[*place].id);
            }
        }
        ended
    }

    /// Starts a node that must show that it serves once all is healed.
    pub(super) fn start(&mut self, place: usize) {
        self.cluster.restart(place);
        self.restarted.insert(place);
    }
}

/// Writes what a power cut must take away.
pub(super) fn leave_probe(disk: &Disk) -> anyhow::Result<()> {
    let path = disk.at().join(PROBE);
    std::fs::write(&path, PROBE_BYTES).with_context(|| format!("write {}", path.display()))
}

/// The power cut took it away. Its name may be there: a commit that some fsync asked for took it along.
pub(super) fn probe_is_lost(disk: &Disk) -> anyhow::Result<bool> {
    let path = disk.at().join(PROBE);
    let lost = std::fs::read(&path).map_or(true, |bytes| bytes != PROBE_BYTES);
    if path.exists() {
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(lost)
}
