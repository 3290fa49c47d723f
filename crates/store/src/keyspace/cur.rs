//! `cur`: `slot | uid | device id` → how far the device is.

use holdfast_model::id::DeviceId;
use holdfast_model::state::UserRef;
use holdfast_wire::DecodeError;

use super::{split_user, text, user_prefix};

const WHAT: &str = "device key";

/// Key of a device.
pub fn key(user: UserRef, device: &DeviceId) -> Vec<u8> {
    let mut out = user_prefix(user).to_vec();
    out.extend_from_slice(device.as_str().as_bytes());
    out
}

/// User and device of a key.
pub fn parse(key: &[u8]) -> Result<(UserRef, DeviceId), DecodeError> {
    let (user, rest) = split_user(WHAT, key)?;
    let device = DeviceId::new(text(WHAT, rest)?).map_err(|error| DecodeError::new(WHAT, error))?;
    Ok((user, device))
}
