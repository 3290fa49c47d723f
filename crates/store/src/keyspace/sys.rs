//! `sys`: one tag byte, and for jobs their id → facts of the group and of this copy of it.

use holdfast_wire::DecodeError;

use super::text;

/// How far the state is (`StoredApplied`).
pub const APPLIED: [u8; 1] = [1];
/// Group facts (`StoredSys`).
pub const FACTS: [u8; 1] = [2];
/// Group that this database belongs to, u32 big-endian. Not part of a logical snapshot.
pub const GROUP: [u8; 1] = [3];
/// First byte of jobs.
pub const OPERATION: u8 = 4;
// 5: ledger, 6: erased users.

/// What a key of `sys` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SysKey {
    /// [`APPLIED`].
    Applied,
    /// [`FACTS`].
    Facts,
    /// [`GROUP`].
    Group,
    /// A job, by id.
    Operation(String),
}

/// Key of a job.
pub fn operation_key(id: &str) -> Vec<u8> {
    let mut out = vec![OPERATION];
    out.extend_from_slice(id.as_bytes());
    out
}

/// What a key names.
pub fn parse(key: &[u8]) -> Result<SysKey, DecodeError> {
    const WHAT: &str = "key of group facts";
    match key {
        [OPERATION, id @ ..] => Ok(SysKey::Operation(text(WHAT, id)?.to_owned())),
        [tag] if [*tag] == APPLIED => Ok(SysKey::Applied),
        [tag] if [*tag] == FACTS => Ok(SysKey::Facts),
        [tag] if [*tag] == GROUP => Ok(SysKey::Group),
        _ => Err(DecodeError::new(WHAT, "tag is not known")),
    }
}
