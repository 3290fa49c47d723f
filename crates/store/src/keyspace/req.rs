//! `req`: `slot | uid | request id` → first committed outcome.

use holdfast_model::id::RequestId;
use holdfast_model::state::UserRef;
use holdfast_wire::DecodeError;

use super::{ended, split_user, take, user_prefix};

const WHAT: &str = "request key";

/// Key of a request.
pub fn key(user: UserRef, id: RequestId) -> Vec<u8> {
    let mut out = user_prefix(user).to_vec();
    out.extend_from_slice(&id.0);
    out
}

/// User and request of a key.
pub fn parse(key: &[u8]) -> Result<(UserRef, RequestId), DecodeError> {
    let (user, rest) = split_user(WHAT, key)?;
    let (id, rest) = take::<16>(WHAT, rest)?;
    ended(WHAT, rest)?;
    Ok((user, RequestId(id)))
}
