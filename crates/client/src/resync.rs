//! What a device does when its token cannot be continued: [`reconcile`] judges one record against a manifest, and
//! [`Client::restore`] uploads again what a restored server lost.
//!
//! Invariants:
//! - No verdict means "wipe". What may leave the device's view goes to its trash, and that only on proof: the server
//!   forgot the tombstone of a version that it had acknowledged, in a history that lost nothing.
//! - What a person changed on the device and the server does not have is never given up for the server's state.
//! - What is uploaded again is guarded so that devices reach one outcome in any order, however often they try.
//!
//! Which helper for which [`v1::ResyncReason`]: `ROLLED_BACK`: [`Client::restore`], then [`Client::changes`] from the
//! resume token. `TOKEN_EXPIRED`: [`Client::manifest`] and [`reconcile`]. `TOKEN_FROM_FUTURE` and
//! `UNKNOWN_INCARNATION`: the same with `after_rollback`. `USER_ERASED`: keep everything and ask the person. Any other,
//! a newer server's: change nothing, upgrade.
//!
//! [`Client::changes`]: crate::Client::changes
//! [`Client::manifest`]: crate::Client::manifest
//! [`Client::restore`]: crate::Client::restore

use bytes::Bytes;
use holdfast_wire::v1;

mod restore;

pub use restore::{Kept, RestoreConflict, RestoreReport, Rollback, restore_batches};

/// A record as a device has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalRecord {
    /// Version that the server had given to what this is based on; `None` = it was never uploaded.
    pub version: Option<u64>,
    /// [`content_hash`] of what the device has now; not looked at when it is deleted.
    pub content_hash: Bytes,
    /// Changed on the device since `version`, and not acknowledged.
    pub dirty: bool,
    /// Deleted on the device.
    pub deleted: bool,
}

/// What to do about one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Both have the same; note the server's version.
    Same,
    /// The server's state is newer and nothing was changed here: fetch it. It may be a tombstone, which is proof that
    /// somebody deleted the record.
    TakeServers,
    /// A change of the device that the server never had: write it, guarded by the server's version, or by `absent`
    /// where it has none.
    Upload,
    /// The server had it and lost it: upload it again, with [`Client::restore`] where the resync said `ROLLED_BACK`,
    /// otherwise guarded as an [`Verdict::Upload`].
    ///
    /// [`Client::restore`]: crate::Client::restore
    UploadRestored,
    /// It was deleted so long ago that its tombstone is forgotten, and nothing was changed here: the device may move
    /// it to its trash, from where the person can bring it back.
    MoveToTrash,
    /// Keep both and let the person, or a rule of the application, decide.
    Conflict(Clash),
}

/// Why neither side may simply win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Clash {
    /// Changed here, and changed there since, or created on both sides.
    ChangedHereAndThere,
    /// Changed here, deleted there.
    ChangedHereDeletedThere,
    /// Deleted here, changed there since.
    DeletedHereChangedThere,
    /// They differ although by their versions they should not, or after a rollback, when versions of two histories do
    /// not say which state is newer.
    HistoriesDiffer,
}

/// Compares a device's record with what a complete manifest holds of it (`None` = nothing).
///
/// `horizon` is the manifest's `tombstone_horizon`. `after_rollback` is true when the server may have lost commits
/// that this device saw: then nothing is given up, absence proves nothing, and what differs is a conflict. Set it also
/// for collections that the server still restores (`collections_restoring`), or leave those alone.
pub fn reconcile(local: &LocalRecord, server: Option<&v1::Record>, horizon: u64, after_rollback: bool) -> Verdict {
    match server {
        None => absent(local, horizon, after_rollback),
        Some(server) => present(local, server, after_rollback),
    }
}

fn absent(local: &LocalRecord, horizon: u64, after_rollback: bool) -> Verdict {
    let Some(version) = local.version else {
        // Created and deleted again before anybody saw it.
        return if local.deleted { Verdict::Same } else { Verdict::Upload };
    };
    if after_rollback || version > horizon {
        // The server would still have its tombstone. A lost deletion is sent again like lost content: another device
        // may bring the record back that it deleted.
        return Verdict::UploadRestored;
    }
    match (local.deleted, local.dirty) {
        (true, _) => Verdict::Same,
        (false, true) => Verdict::Conflict(Clash::ChangedHereDeletedThere),
        (false, false) => Verdict::MoveToTrash,
    }
}

fn present(local: &LocalRecord, server: &v1::Record, after_rollback: bool) -> Verdict {
    let server_deleted = server.delete_time.is_some();
    let same = match (local.deleted, server_deleted) {
        (true, true) => true,
        (false, false) => local.content_hash == server.content_hash,
        _ => false,
    };
    let here_and_there = match (local.deleted, server_deleted) {
        (false, true) => Clash::ChangedHereDeletedThere,
        (true, false) => Clash::DeletedHereChangedThere,
        _ => Clash::ChangedHereAndThere,
    };
    match local.version {
        // Also when the content happens to be the same: the server must learn how new it is, or another device would
        // put an older lost state on top of it.
        Some(version) if same && !local.dirty && version > server.version => Verdict::UploadRestored,
        _ if same => Verdict::Same,
        None if local.deleted => Verdict::TakeServers,
        None if server_deleted => Verdict::Upload,
        None => Verdict::Conflict(Clash::ChangedHereAndThere),
        // What the server had acknowledged is newer than what it has: it lost it.
        Some(version) if version > server.version => Verdict::UploadRestored,
        Some(version) if version == server.version => {
            if local.dirty {
                Verdict::Upload
            } else {
                Verdict::Conflict(Clash::HistoriesDiffer)
            }
        }
        Some(_) if local.dirty => Verdict::Conflict(here_and_there),
        Some(_) if after_rollback => Verdict::Conflict(Clash::HistoriesDiffer),
        Some(_) => Verdict::TakeServers,
    }
}

/// The hash that the server gives to a content without blobs: the first 16 bytes of BLAKE3 over media type, payload,
/// number of blobs and TTL in seconds. Lets a device compare what it has with a manifest.
pub fn content_hash(put: &v1::PutOp) -> Bytes {
    let mut hasher = blake3::Hasher::new();
    for part in [put.content_type.as_bytes(), &put.payload[..]] {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.update(&(put.blobs.len() as u64).to_be_bytes());
    hasher.update(&u64::from(put.ttl_seconds).to_be_bytes());
    Bytes::copy_from_slice(&hasher.finalize().as_bytes()[..16])
}

#[cfg(test)]
mod tests;
