//! The offsite archive: its format, and how it is shipped, verified and restored.
//!
//! Knows: names and bytes of objects, entry chains, snapshots in chunks, object stores, and how a data directory is
//! filled from them. Used by a running server and by offline commands alike: everything works from the archive alone.
//! Never knows: Raft, gRPC, configuration files, who leads, when to ship. It overwrites nothing, but for the doctor's canaries, and
//! deletes nothing, but for these and what [`prune`] was told days before to let go.
//!
//! Every object is written once and ends with a hash of all its bytes, so that a flipped bit anywhere is found on
//! reading, and named with the object and the reason.

#![forbid(unsafe_code)]

pub mod attest;
pub mod chunk;
pub mod compose;
pub mod destination;
pub mod doctor;
pub mod evidence;
pub mod fence;
pub mod gap;
pub mod heartbeat;
pub mod join;
pub mod keys;
pub mod layout;
pub mod ledger;
pub mod lineage;
pub mod log;
pub mod manifest;
pub mod marker;
pub mod offer;
pub mod patch;
pub mod payloads;
pub mod person;
pub mod plan;
pub mod prune;
pub mod read_limit;
pub mod recover;
pub mod restore;
pub mod retention;
pub mod row_index;
pub mod sealing;
pub mod segment;
pub mod ship;
pub mod snapshot;
pub mod tombstone;
pub mod vault;
pub mod verification;
pub mod verify;

mod error;
mod object;
mod rows;

#[cfg(test)]
mod fixture;

pub use attest::{NodeKey, Reading, Statement, Witness};
pub use destination::{Destination, DestinationConfig};
pub use error::ArchiveError;
pub use evidence::VerifierKey;
pub use fence::Fence;
pub use gap::Gap;
pub use heartbeat::{Heartbeat, newest_heartbeat};
pub use keys::Keyring;
pub use layout::{LineageId, ObjectName};
pub use lineage::{FoundLineages, LineageFacts, OpenLineage, find_lineages};
pub use manifest::Manifest;
pub use offer::{Offer, offer};
pub use plan::{At, Choose, RestorePlan, plan, plan_of_what_is_there};
pub use read_limit::ReadLimit;
pub use recover::{Joint, Survivor};
pub use restore::{RestoreReport, RestoreSpec, RestoreStage, RestoreTarget, check_targets, filled_with, restore};
pub use row_index::RowIndexes;
pub use sealing::{Compression, GenerationKey, Sealing};
pub use ship::{SegmentShipper, ShipOutcome, Tail};
pub use snapshot::{SnapshotOptions, SnapshotReport, list_snapshots, ship_attested, ship_snapshot};
pub use verification::{Depth, Recorded, Verification, verifications};
pub use verify::{Level, VerifyReport, verify, verify_all};
