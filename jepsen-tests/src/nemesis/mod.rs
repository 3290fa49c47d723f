//! What goes wrong. A nemesis makes faults and writes down what it really did; it judges nothing.
//!
//! Each fault is a module with `strike`, which makes it, and `heal`, which takes it away. Both say by what they saw that
//! it is there, or gone: a fault that was not installed must not count as one that was survived. [`Fault`] names them
//! all, and `drive` draws which of them strike when, two at once too.
//!
//! Invariant: one intact quorum is left unless the fault is meant to take it, and everything is healed at the end.

pub mod archive_flip;
mod array;
mod clock;
mod damage;
mod disk_full;
mod disks;
mod drive;
mod fsync;
pub mod kill;
mod links;
mod lost_tail;
mod membership;
mod need;
mod object_store;
mod partition;
mod pause;
mod power;
mod rollback;
mod transfer;
mod world;

use std::fmt;

use clap::ValueEnum;

use crate::chance::Chance;
pub use disks::Disks;
pub use drive::{After, Storm, run};
pub use need::Need;
pub use world::{Harm, Struck, World};

/// All faults, by their names on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// kill -9, and a new start.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// Power cut of a minority: what was not fsynced is gone.
    Power,
    /// Power cut of all nodes in one moment.
    PowerAll,
    /// No room on the disks of a minority.
    DiskFull,
    /// The fsyncs of a node fail.
    Eio,
    /// The fsyncs of a node are slow.
    SlowFsync,
    /// A flipped bit in a file of a stopped node; log, state, floor and snapshot in turn.
    BitFlip,
    /// A file of a stopped node without its end.
    Truncate,
    /// Two pieces of a file of a stopped node that changed places.
    Swap,
    /// A flipped bit in an object of the archive.
    ArchiveFlip,
    /// The object store that nodes ship to errs: 503, resets, answers cut short, flipped bits, lists of the past, lost
    /// replies, objects that it says it stored; in turn.
    ObjectStore,
    /// The disks of an array let every writer wait.
    ArrayHang,
    /// The disks of an array answer every call with an error.
    ArrayEio,
    /// The disks of an array are empty; later they are back.
    ArrayWipe,
    /// The disks of an array are full of noise; later they are back.
    ArrayScramble,
    /// The disks of an array go back in time; peers live that know better.
    ArrayRollback,
    /// A disk goes back in time, and whoever knows better is dead; its floor lies on another device.
    RollbackAlone,
    /// As rollback-alone, with the floor on the same disk: the limit that Holdfast states. Such a run is expected to be
    /// invalid: acknowledged writes are lost.
    RollbackBlind,
    /// Links between nodes that carry nothing: one node or half of them alone, one direction only, two overlapping sides.
    Partition,
    /// The leader alone, with many writes that nobody else hears of; joined again, and its power is cut as soon as it took
    /// them back.
    LostTail,
    /// Links that lose, double and mix up packets.
    Lossy,
    /// Links that are late and slow.
    Slow,
    /// Leadership handed over, also to nodes that other faults have hit.
    Transfer,
    /// A new node joins, and another one is taken out.
    Membership,
    /// Wall clocks that jump and drift.
    Clock,
}

impl Fault {
    /// It leaves a quorum whole, and nothing that Holdfast promises is beyond it: it may strike beside any other.
    pub fn is_for_soaks(self) -> bool {
        !matches!(self, Self::RollbackAlone | Self::RollbackBlind | Self::PowerAll)
    }

    /// What it needs of the machine.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Eio | Self::SlowFsync => &[Need::Trace],
            Self::ArchiveFlip => &[Need::Archive],
            Self::ObjectStore => &[Need::Archive, Need::ObjectStore],
            Self::RollbackAlone => &[Need::Root, Need::Disk, Need::Floor],
            Self::Power
            | Self::PowerAll
            | Self::DiskFull
            | Self::ArrayHang
            | Self::ArrayEio
            | Self::ArrayWipe
            | Self::ArrayScramble
            | Self::ArrayRollback
            | Self::RollbackBlind => &[Need::Root, Need::Disk],
            Self::Kill | Self::Pause | Self::Transfer | Self::Membership => &[],
            Self::BitFlip | Self::Truncate | Self::Swap => &[],
            Self::Partition | Self::Lossy | Self::Slow => &[Need::Root, Need::Network],
            Self::LostTail => &[Need::Root, Need::Disk, Need::Network],
            Self::Clock => &[Need::Clocks],
        }
    }

    /// Makes the fault; `None` = not now, for example because no more nodes may be taken away.
    ///
    /// # Errors
    /// When the machine fails the harness: the run then proves nothing.
    pub async fn strike(self, world: &mut World, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
        let struck = match self {
            Self::Kill => kill::strike(world, chance).await,
            Self::Pause => pause::strike(world, chance).await,
            Self::Power => power::strike_some(world, chance).await,
            Self::PowerAll => power::strike_all(world).await,
            Self::DiskFull => disk_full::strike(world, chance).await,
            Self::Eio => fsync::strike_eio(world, chance).await,
            Self::SlowFsync => fsync::strike_slow(world, chance).await,
            Self::BitFlip | Self::Truncate | Self::Swap => damage::strike(world, self, chance).await,
            Self::ArchiveFlip => archive_flip::strike(world, chance).await,
            Self::ObjectStore => object_store::strike(world).await,
            Self::ArrayHang | Self::ArrayEio | Self::ArrayWipe | Self::ArrayScramble | Self::ArrayRollback => {
                array::strike(world, self, chance).await
            }
            Self::RollbackAlone | Self::RollbackBlind => rollback::strike(world, self, chance).await,
            Self::Partition => partition::strike(world, chance).await,
            Self::LostTail => lost_tail::strike(world).await,
            Self::Lossy => links::lossy(world, chance).await,
            Self::Slow => links::slow(world, chance).await,
            Self::Transfer => transfer::strike(world, chance).await,
            Self::Membership => membership::strike(world, chance).await,
            Self::Clock => clock::strike(world, chance).await,
        }?;
        if let Some(struck) = &struck {
            world.struck(struck);
        }
        Ok(struck)
    }
}

impl Struck {
    /// Takes the fault away; afterwards `installed` says whether it was seen to be there still.
    ///
    /// # Errors
    /// As [`Fault::strike`].
    pub async fn heal(mut self, world: &mut World) -> anyhow::Result<()> {
        world.begin_heal(&self);
        match self.fault {
            Fault::Kill => kill::heal(world, &mut self).await,
            Fault::Pause => pause::heal(world, &mut self).await,
            Fault::Power | Fault::PowerAll => power::heal(world, &mut self).await,
            Fault::DiskFull => disk_full::heal(world, &mut self).await,
            Fault::Eio | Fault::SlowFsync => fsync::heal(world, &mut self).await,
            Fault::BitFlip | Fault::Truncate | Fault::Swap => damage::heal(world, &mut self).await,
            Fault::ArchiveFlip => archive_flip::heal(world, &mut self).await,
            Fault::ObjectStore => object_store::heal(world, &mut self).await,
            Fault::ArrayHang | Fault::ArrayEio | Fault::ArrayWipe | Fault::ArrayScramble | Fault::ArrayRollback => {
                array::heal(world, &mut self).await
            }
            Fault::RollbackAlone | Fault::RollbackBlind => rollback::heal(world, &mut self).await,
            Fault::Partition => partition::heal(world, &mut self).await,
            Fault::LostTail => lost_tail::heal(world, &mut self).await,
            Fault::Lossy | Fault::Slow => links::heal(world, &mut self).await,
            Fault::Transfer => transfer::heal(world, &mut self).await,
            Fault::Membership => membership::heal(world, &mut self).await,
            Fault::Clock => clock::heal(world, &mut self).await,
        }?;
        world.healed(&self);
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}
