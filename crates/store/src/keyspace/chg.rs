//! `chg`: `slot | uid | version | ordinal` → change row.

use holdfast_model::id::Version;
use holdfast_model::state::UserRef;
use holdfast_wire::DecodeError;

use super::{ended, split_user, take, user_prefix};

const WHAT: &str = "change key";

/// Key of a change.
pub fn key(user: UserRef, version: Version, ordinal: u16) -> Vec<u8> {
    let mut out = user_prefix(user).to_vec();
    out.extend_from_slice(&version.0.to_be_bytes());
    out.extend_from_slice(&ordinal.to_be_bytes());
    out
}

/// User, version and ordinal of a key.
pub fn parse(key: &[u8]) -> Result<(UserRef, Version, u16), DecodeError> {
    let (user, rest) = split_user(WHAT, key)?;
    let (version, rest) = take::<8>(WHAT, rest)?;
    let (ordinal, rest) = take::<2>(WHAT, rest)?;
    ended(WHAT, rest)?;
    Ok((user, Version(u64::from_be_bytes(version)), u16::from_be_bytes(ordinal)))
}
