//! `uid`: `slot | user id` → number. The slot first, so that a slot's users move together.

use holdfast_model::id::{Slot, UserId};
use holdfast_wire::DecodeError;

use super::{take, text};

const WHAT: &str = "user id key";

/// Key of a user id.
pub fn key(user: &UserId) -> Vec<u8> {
    let mut out = Slot::of(user).0.to_be_bytes().to_vec();
    out.extend_from_slice(user.as_str().as_bytes());
    out
}

/// User id of a key; its slot must be the id's own.
pub fn parse(key: &[u8]) -> Result<UserId, DecodeError> {
    let (slot, rest) = take::<2>(WHAT, key)?;
    let user = UserId::new(text(WHAT, rest)?).map_err(|error| DecodeError::new(WHAT, error))?;
    if Slot::of(&user).0 == u16::from_be_bytes(slot) {
        Ok(user)
    } else {
        Err(DecodeError::new(WHAT, "the slot is not that of the user id"))
    }
}
