//! `exp`: `time | kind | …` → nothing: the expiry queue, in the order in which it is due.
//!
//! Kind 1, a request id: `slot | uid | request id`. Kinds 2 (TTL) and 3 (tombstone) are planned.

use holdfast_model::id::Millis;
use holdfast_model::state::ExpiryItem;
use holdfast_wire::DecodeError;

use super::{req, take};

const WHAT: &str = "expiry key";
const KIND_REQUEST: u8 = 1;

/// Key of a queued item.
pub fn key(at: Millis, item: &ExpiryItem) -> Vec<u8> {
    let mut out = at.0.to_be_bytes().to_vec();
    match item {
        ExpiryItem::Request(user, id) => {
            out.push(KIND_REQUEST);
            out.extend_from_slice(&req::key(*user, *id));
        }
    }
    out
}

/// First key that is due after `now`; `None` at the end of time.
pub fn after(now: Millis) -> Option<[u8; 8]> {
    now.0.checked_add(1).map(u64::to_be_bytes)
}

/// Time and item of a key.
pub fn parse(key: &[u8]) -> Result<(Millis, ExpiryItem), DecodeError> {
    let (at, rest) = take::<8>(WHAT, key)?;
    let ([kind], rest) = take::<1>(WHAT, rest)?;
    let item = match kind {
        KIND_REQUEST => {
            let (user, id) = req::parse(rest)?;
            ExpiryItem::Request(user, id)
        }
        other => return Err(DecodeError::new(WHAT, format!("kind {other} is not known"))),
    };
    Ok((Millis(u64::from_be_bytes(at)), item))
}
