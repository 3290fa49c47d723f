//! Damage to one shipped object that the restore needs.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Context;
use holdfast_archive::{ArchiveError, RestorePlan};

use crate::demo::Sabotage;

/// Damages an object under `offsite`; gives its name.
pub fn damage(offsite: &Path, plan: &RestorePlan, how: Sabotage) -> anyhow::Result<String> {
    let segments: Vec<&str> =
        plan.log.iter().flat_map(|log| &log.segments).map(|segment| segment.object.as_str()).collect();
    // In the middle: a log that merely ends earlier cannot be told from one that was written no further.
    let segment = segments.get(segments.len() / 2).filter(|_| segments.len() > 2).map(|object| (*object).to_owned());
    let chunk = plan.snapshot.as_ref().and_then(|snapshot| {
        let chunk = snapshot.chunks.get(snapshot.chunks.len() / 2)?;
        Some(chunk.object().path(&snapshot.lineage))
    });
    match how {
        Sabotage::Flip => {
            let object = chunk.or(segment).context("the archive is too small to damage; use more --records")?;
            flip(&offsite.join(&object)).with_context(|| format!("damage {object}"))?;
            Ok(object)
        }
        Sabotage::Drop => {
            let object = segment.context("the log is too short to damage; use more --seconds")?;
            std::fs::remove_file(offsite.join(&object)).with_context(|| format!("delete {object}"))?;
            Ok(object)
        }
    }
}

/// Flips one bit in the middle.
fn flip(path: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle))?;
    file.read_exact(&mut byte)?;
    byte[0] ^= 0b100;
    file.seek(SeekFrom::Start(middle))?;
    file.write_all(&byte)?;
    file.sync_all()
}

/// The object that an error names.
pub fn object_of(error: &anyhow::Error) -> Option<String> {
    let error = error.chain().find_map(|cause| cause.downcast_ref::<ArchiveError>())?;
    match error {
        ArchiveError::Corrupt { object, .. }
        | ArchiveError::Missing { object, .. }
        | ArchiveError::LineageFork { object, .. } => Some(object.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_is_flipped() {
        let dir = tempfile::tempdir().expect("temp");
        let path = dir.path().join("object");
        std::fs::write(&path, [0; 9]).expect("writes");
        flip(&path).expect("flips");
        assert_eq!(std::fs::read(&path).expect("reads"), [0, 0, 0, 0, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn an_integrity_error_names_its_object() {
        let error = anyhow::Error::new(ArchiveError::Missing { object: "a/b".into(), reason: "gone".into() });
        assert_eq!(object_of(&error.context("restore")).as_deref(), Some("a/b"));
        assert_eq!(object_of(&anyhow::anyhow!("no")), None);
    }
}
