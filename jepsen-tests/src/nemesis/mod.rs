//! What goes wrong. A nemesis makes faults and writes down what it really did; it judges nothing.
//!
//! Each fault is a module with `strike`, which makes it, and `heal`, which takes it away. Both say by what they saw that
//! it is there, or gone: a fault that was not installed must not count as one that was survived. [`Fault`] names them
//! all, and `drive` draws which of them strike when, two at once too.
//!
//! Invariant: one intact quorum is left unless the fault is meant to take it, and everything is healed at the end.

mod clock;
mod drive;
pub mod kill;
mod links;
mod membership;
mod need;
mod partition;
mod pause;
mod transfer;
mod world;

use std::fmt;

use clap::ValueEnum;

use crate::chance::Chance;
pub use drive::{Storm, run};
pub use need::Need;
pub use world::{Harm, Struck, World};

/// All faults, by their names on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// kill -9, and a new start.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// Links between nodes that carry nothing: one node or half of them alone, one direction only, two overlapping sides.
    Partition,
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
    /// What it needs of the machine.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Kill | Self::Pause | Self::Transfer | Self::Membership => &[],
            Self::Partition | Self::Lossy | Self::Slow => &[Need::Root, Need::Network],
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
            Self::Partition => partition::strike(world, chance).await,
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
            Fault::Partition => partition::heal(world, &mut self).await,
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
