//! `usr`: `slot | uid` → user row.

use holdfast_model::state::UserRef;
use holdfast_wire::DecodeError;

use super::{PREFIX_BYTES, ended, split_user, user_prefix};

/// Key of a user's row.
pub fn key(user: UserRef) -> [u8; PREFIX_BYTES] {
    user_prefix(user)
}

/// User of a key.
pub fn parse(key: &[u8]) -> Result<UserRef, DecodeError> {
    let (user, rest) = split_user("user key", key)?;
    ended("user key", rest)?;
    Ok(user)
}
