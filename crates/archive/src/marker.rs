//! The mark that a restore leaves in a data directory, `RESTORE`.
//!
//! Invariants:
//! - It is written before the first row is, and says "half" until everything was loaded, replayed and checked: a node
//!   must not open a directory while it does.
//! - After that it says what was restored and which `Genesis` opens the new history. It stays: a node that lost
//!   its newest state in a power cut needs it again, and beside an open history it changes nothing.
//! - It is replaced whole: write, sync, rename, sync the directory.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use holdfast_model::command::{Command, Genesis, Proposal, RULES};
use holdfast_model::id::{GroupId, Incarnation, Millis};
use holdfast_store::LogPosition;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::log::{decode_proposal, encode_proposal};

use crate::error::ArchiveError;
use crate::layout::LineageId;
use crate::object::fixed;
use crate::segment::{log_id, position};

const FILE: &str = "RESTORE";
const MAGIC: &[u8; 8] = b"HOLDREST";

/// The mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreMark {
    /// Node that the directory is for.
    pub node_id: u64,
    /// History that is restored.
    pub from: LineageId,
    /// Group.
    pub group: GroupId,
    /// Last entry restored.
    pub last: LogPosition,
    /// Entry chain there.
    pub chain: [u8; 32],
    /// `None` = half: the directory must not be opened.
    pub opening: Option<Opening>,
}

/// How a restored state becomes a history of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Effect chain at the last entry restored: equal in all directories.
    pub effect_chain: [u8; 32],
    /// To be proposed as the first entry after it.
    pub genesis: Genesis,
}

impl RestoreMark {
    /// Refuses a half-restored directory.
    ///
    /// # Errors
    /// `Target`, with what to do.
    pub fn opening(&self, directory: &Path) -> Result<&Opening, ArchiveError> {
        self.opening.as_ref().ok_or_else(|| ArchiveError::Target {
            path: directory.to_owned(),
            reason: "a restore into it did not end; run `holdfast restore run` again".into(),
        })
    }
}

/// The mark of a data directory; `None` = no restore filled it.
///
/// # Errors
/// When it cannot be read or is damaged.
pub fn read(directory: &Path) -> Result<Option<RestoreMark>, ArchiveError> {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ArchiveError::disk("read", &path)(error)),
    };
    decode(&bytes).map(Some).map_err(|reason| ArchiveError::Target {
        path: path.clone(),
        reason: format!("the mark of a restore is damaged: {reason}; restore into an empty directory"),
    })
}

pub(crate) fn write(directory: &Path, mark: &RestoreMark) -> Result<(), ArchiveError> {
    let (path, staged) = (directory.join(FILE), directory.join("RESTORE.tmp"));
    let written = File::create(&staged).and_then(|mut file| {
        file.write_all(&encode(mark))?;
        file.sync_all()
    });
    written.map_err(ArchiveError::disk("write", &staged))?;
    fs::rename(&staged, &path).map_err(ArchiveError::disk("rename", &staged))?;
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> Result<(), ArchiveError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(ArchiveError::disk("sync", directory))
}

fn encode(mark: &RestoreMark) -> Vec<u8> {
    let opening = mark.opening.as_ref();
    let genesis = opening.map(|opening| {
        // The stamp is the leader's to set.
        let command = Command::Genesis(opening.genesis.clone());
        encode_proposal(&Proposal { rules: RULES, stamp: Millis(0), command })
    });
    let message = holdfast_wire::encode(&pb::RestoreMarker {
        node_id: mark.node_id,
        from_cluster_id: Bytes::copy_from_slice(&mark.from.cluster_id),
        from_incarnation: mark.from.incarnation.0,
        group_id: mark.group.0,
        last: Some(log_id(mark.last)),
        chain: Bytes::copy_from_slice(&mark.chain),
        effect_chain: opening.map_or(Bytes::new(), |opening| Bytes::copy_from_slice(&opening.effect_chain)),
        genesis: genesis.unwrap_or_default(),
    });
    let mut out = [MAGIC, &message[..]].concat();
    let hash = blake3::hash(&out);
    out.extend_from_slice(hash.as_bytes());
    out
}

fn decode(bytes: &Bytes) -> Result<RestoreMark, String> {
    let end = bytes.len().checked_sub(32).filter(|end| *end >= MAGIC.len()).ok_or("it is too short")?;
    if bytes[..MAGIC.len()] != *MAGIC || bytes[end..] != *blake3::hash(&bytes[..end]).as_bytes() {
        return Err("its bytes do not match the hash at its end".into());
    }
    let message: pb::RestoreMarker =
        holdfast_wire::decode("mark", bytes.slice(MAGIC.len()..end)).map_err(|error| error.to_string())?;
    let opening = match message.genesis.is_empty() {
        true => None,
        false => Some(opening_from(&message)?),
    };
    let cluster_id = fixed(&message.from_cluster_id).ok_or("its cluster is no id")?;
    Ok(RestoreMark {
        node_id: message.node_id,
        from: LineageId { cluster_id, incarnation: Incarnation(message.from_incarnation) },
        group: GroupId(message.group_id),
        last: position(message.last.ok_or("it has no position")?),
        chain: fixed(&message.chain).ok_or("its chain is no hash")?,
        opening,
    })
}

fn opening_from(message: &pb::RestoreMarker) -> Result<Opening, String> {
    let proposal = decode_proposal(&message.genesis).map_err(|error| error.to_string())?;
    let Command::Genesis(genesis) = proposal.command else {
        return Err("it opens no history".into());
    };
    Ok(Opening { effect_chain: fixed(&message.effect_chain).ok_or("its effect chain is no hash")?, genesis })
}

#[cfg(test)]
mod tests {
    use holdfast_model::id::NodeId;

    use super::*;

    fn mark(opening: bool) -> RestoreMark {
        let from = LineageId { cluster_id: [3; 16], incarnation: Incarnation(8) };
        let genesis = Genesis {
            cluster_id: [4; 16],
            cluster_name: "pine".into(),
            incarnation: Incarnation(9),
            epoch: 2,
            parent: None,
            members: vec![NodeId(1)],
            restoring: Vec::new(),
        };
        RestoreMark {
            node_id: 2,
            from,
            group: GroupId(0),
            last: LogPosition { term: 4, node: 1, index: 77 },
            chain: [5; 32],
            opening: opening.then_some(Opening { effect_chain: [6; 32], genesis }),
        }
    }

    #[test]
    fn a_mark_is_written_and_replaced() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(read(dir.path()).expect("reads"), None);
        for half in [false, true] {
            write(dir.path(), &mark(half)).expect("writes");
            assert_eq!(read(dir.path()).expect("reads"), Some(mark(half)));
        }
        assert!(mark(false).opening(dir.path()).is_err_and(|error| error.to_string().contains("restore run")));
        assert!(mark(true).opening(dir.path()).is_ok());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = encode(&mark(true));
        for at in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(decode(&bytes.into()).is_err(), "bit {at}");
        }
        for cut in 0..good.len() {
            assert!(decode(&good[..cut].to_vec().into()).is_err(), "cut at {cut}");
        }
    }
}
