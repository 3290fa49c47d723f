//! Heartbeats: what a leader vouches for while nothing happens.
//!
//! A log that has not grown for an hour is that of a quiet cluster, or of one whose shipping stopped an hour ago: from the
//! archive alone nobody could tell. So a leader that has put nothing for a while lays down what it knows: at this moment
//! everything that was committed was here. The age of the newest segment or heartbeat is how far the archive may be behind,
//! and a log that ends before a heartbeat says it did has lost objects.
//!
//! Invariants: a heartbeat is written after a quorum confirmed, later than its moment, that nothing beyond its last entry but
//! facts of shipping is committed; nothing that comes later takes it back.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use holdfast_model::id::{GroupId, Millis};
use holdfast_store::LogPosition;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::internal::v1::archive_contents::Kind;

use crate::destination::Destination;
use crate::error::ArchiveError;
use crate::keys::Keyring;
use crate::layout::{LineageId, ObjectName};
use crate::object::{self, Sealed};
use crate::sealing::Sealing;

/// Heartbeats come once a minute, unless configured otherwise: so many milliseconds before now the newest one most likely
/// lies, or else before that.
const LOOKED_FOR_MS: [u64; 2] = [2 * 60 * 60 * 1000, 100 * 60 * 60 * 1000];

/// At a moment, everything of a group that was committed lay in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Group.
    pub group: GroupId,
    /// The moment, by the group's time.
    pub at: Millis,
    /// Last entry there.
    pub last: LogPosition,
    /// Entry chain at that entry.
    pub chain: [u8; 32],
}

impl Heartbeat {
    /// Where it lies.
    pub fn name(&self) -> ObjectName {
        ObjectName::Heartbeat { group: self.group, at_ms: self.at.0 }
    }

    /// The log, which ends with entry `last`, must reach as far as this says that it did: else objects of its end are gone.
    ///
    /// # Errors
    /// `Missing` names the first.
    pub fn check_end(&self, lineage: &LineageId, last: u64) -> Result<(), ArchiveError> {
        if self.last.index <= last {
            return Ok(());
        }
        let (next, through, said) = (last + 1, self.last.index, self.name().path(lineage));
        let reason = format!("entries {next} to {through} lie in no object, and {said} says that they did");
        Err(ArchiveError::missing(ObjectName::segment(self.group, next).path(lineage), reason))
    }

    pub(crate) fn seal(&self, lineage: &LineageId, sealing: &Sealing) -> Result<Sealed, ArchiveError> {
        let LogPosition { term, node, index } = self.last;
        let header = pb::ArchiveHeartbeatHeader {
            group_id: self.group.0,
            at_ms: self.at.0,
            last: Some(pb::LogId { term, node, index }),
            chain: Bytes::copy_from_slice(&self.chain),
        };
        object::seal(&self.name().path(lineage), lineage, Kind::Heartbeat(header), sealing, &[])
    }

    /// Reads one that lies under its name.
    pub(crate) fn open(
        object: &str,
        lineage: &LineageId,
        keys: &Keyring,
        group: GroupId,
        at_ms: u64,
        bytes: &Bytes,
    ) -> Result<Self, ArchiveError> {
        let bad = |reason: &str| ArchiveError::corrupt(object, reason);
        let opened = object::open(object, lineage, keys, bytes)?;
        let Kind::Heartbeat(header) = opened.kind else { return Err(bad("it is no heartbeat")) };
        if (header.group_id, header.at_ms) != (group.0, at_ms) {
            return Err(bad("it belongs to another group or moment"));
        }
        if !opened.plain.is_empty() {
            return Err(bad("it has a body"));
        }
        let last = header.last.ok_or_else(|| bad("it names no entry"))?;
        let chain = object::fixed(&header.chain).ok_or_else(|| bad("it has no entry chain"))?;
        let last = LogPosition { term: last.term, node: last.node, index: last.index };
        Ok(Self { group, at: Millis(at_ms), last, chain })
    }
}

/// The newest heartbeat that can be read; `None` = there is none. One that is damaged is passed over: an older one vouches for
/// less.
///
/// # Errors
/// `NoKey` when the newest is encrypted and nothing that was given opens it; when the destination fails.
pub async fn newest_heartbeat(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
) -> Result<Option<Heartbeat>, ArchiveError> {
    // Where to look first, no more: a clock that is wrong costs lists.
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let prefix = lineage.heartbeat_prefix(group);
    for back in LOOKED_FOR_MS {
        let after = ObjectName::Heartbeat { group, at_ms: now_ms.saturating_sub(back) }.path(lineage);
        let listed = destination.list_after(&prefix, &after).await?;
        if let Some(found) = newest_of(destination, lineage, group, listed).await? {
            return Ok(Some(found));
        }
    }
    newest_of(destination, lineage, group, destination.list(&prefix).await?).await
}

async fn newest_of(
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    listed: Vec<crate::destination::Listed>,
) -> Result<Option<Heartbeat>, ArchiveError> {
    for found in listed.into_iter().rev() {
        let Some((_, ObjectName::Heartbeat { at_ms, .. })) = ObjectName::parse(&found.path) else { continue };
        let read = destination
            .get(&found.path)
            .await
            .and_then(|bytes| Heartbeat::open(&found.path, lineage, destination.keys(), group, at_ms, &bytes));
        match read {
            Ok(heartbeat) => return Ok(Some(heartbeat)),
            Err(error) if error.fault().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
