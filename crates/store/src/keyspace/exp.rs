//! `exp`: `time | kind | …` → nothing: the expiry queue, in the order in which it is due.
//!
//! Kind 1, a request id: `slot | uid | request id`. Kind 2, a record with a TTL: `user id | 0 | collection | 0 | record
//! id`. Kind 3, a tombstone: `slot | uid | collection | 0 | record id`. Kind 4, a device: `slot | uid | device id`.

use holdfast_model::id::{Collection, Millis, RecordId, RecordKey, UserId};
use holdfast_model::state::ExpiryItem;
use holdfast_wire::DecodeError;

use super::{cur, rec, req, take, text};

const WHAT: &str = "expiry key";
const KIND_REQUEST: u8 = 1;
const KIND_RECORD: u8 = 2;
const KIND_TOMBSTONE: u8 = 3;
const KIND_DEVICE: u8 = 4;
const END_OF_TEXT: u8 = 0;

/// Key of a queued item.
pub fn key(at: Millis, item: &ExpiryItem) -> Vec<u8> {
    let mut out = at.0.to_be_bytes().to_vec();
    match item {
        ExpiryItem::Request(user, id) => {
            out.push(KIND_REQUEST);
            out.extend_from_slice(&req::key(*user, *id));
        }
        ExpiryItem::Record(user, key) => {
            out.push(KIND_RECORD);
            for part in [user.as_str(), key.collection.as_str()] {
                out.extend_from_slice(part.as_bytes());
                out.push(END_OF_TEXT);
            }
            out.extend_from_slice(key.record_id.as_str().as_bytes());
        }
        ExpiryItem::Tombstone(user, key) => {
            out.push(KIND_TOMBSTONE);
            out.extend_from_slice(&rec::key(*user, key));
        }
        ExpiryItem::Device(user, device) => {
            out.push(KIND_DEVICE);
            out.extend_from_slice(&cur::key(*user, device));
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
        KIND_RECORD => parse_record(rest)?,
        KIND_TOMBSTONE => {
            let (user, key) = rec::parse(rest)?;
            ExpiryItem::Tombstone(user, key)
        }
        KIND_DEVICE => {
            let (user, device) = cur::parse(rest)?;
            ExpiryItem::Device(user, device)
        }
        other => return Err(DecodeError::new(WHAT, format!("kind {other} is not known"))),
    };
    Ok((Millis(u64::from_be_bytes(at)), item))
}

fn parse_record(rest: &[u8]) -> Result<ExpiryItem, DecodeError> {
    let bad = |error| DecodeError::new(WHAT, error);
    let mut parts = rest.splitn(3, |byte| *byte == END_OF_TEXT);
    let mut next = || text(WHAT, parts.next().ok_or_else(|| DecodeError::new(WHAT, "a part is missing"))?);
    let user = UserId::new(next()?).map_err(bad)?;
    let collection = Collection::new(next()?).map_err(bad)?;
    let record_id = RecordId::new(next()?).map_err(bad)?;
    Ok(ExpiryItem::Record(user, RecordKey { collection, record_id }))
}
