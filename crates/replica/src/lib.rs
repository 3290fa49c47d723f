//! Consensus: one Raft group on one node, with openraft behind one adapter.
//!
//! Knows: Raft, who leads, what is committed, how entries and snapshots travel between nodes.
//! Never knows: the public API, what a command means, offsite destinations.

mod admission;
mod clocks;
mod disk_keeper;
mod flushed;
mod handle;
mod integrity;
mod log_storage;
mod maintain;
mod membership;
mod options;
mod outbox;
mod propose;
mod read;
mod recoveries;
mod rooms;
mod snapshot;
mod startup;
mod state_machine;
mod status;
mod transfers;
mod transport;
mod types;

#[cfg(test)]
mod openraft_suite;
mod witnesses;

pub use admission::{Admission, Admitted, Overloaded};
pub use handle::{Hooks, OnBarrier, OnTouched, Replica, StartError};
pub use integrity::compare::Comparison;
pub use integrity::examine::Findings;
pub use integrity::{IntegrityOptions, IntegrityStatus};
pub use membership::{MembershipError, Probe};
pub use options::Options;
pub use outbox::{LogHold, Outbox, OutboxOptions, PastBudget};
pub use propose::{Applied, ProposeError};
pub use read::{Fresh, Level, ReadError};
pub use rooms::{Disk, DiskLevel};
pub use status::ReplicaStatus;
pub use types::Member;
