//! `rec`: `slot | uid | collection | 0 | record id` → header and payload.

use holdfast_model::id::{Collection, RecordId, RecordKey};
use holdfast_model::state::UserRef;
use holdfast_wire::DecodeError;

use super::{split_user, text, user_prefix};

const WHAT: &str = "record key";
const END_OF_COLLECTION: u8 = 0;

/// Key of a record.
pub fn key(user: UserRef, record: &RecordKey) -> Vec<u8> {
    let mut out = collection_prefix(user, &record.collection);
    out.extend_from_slice(record.record_id.as_str().as_bytes());
    out
}

/// First bytes of all records of a collection.
pub fn collection_prefix(user: UserRef, collection: &Collection) -> Vec<u8> {
    let mut out = user_prefix(user).to_vec();
    out.extend_from_slice(collection.as_str().as_bytes());
    out.push(END_OF_COLLECTION);
    out
}

/// User and record of a key.
pub fn parse(key: &[u8]) -> Result<(UserRef, RecordKey), DecodeError> {
    let bad = |error| DecodeError::new(WHAT, error);
    let (user, rest) = split_user(WHAT, key)?;
    let end = rest.iter().position(|byte| *byte == END_OF_COLLECTION);
    let end = end.ok_or_else(|| DecodeError::new(WHAT, "the collection does not end"))?;
    let collection = Collection::new(text(WHAT, &rest[..end])?).map_err(bad)?;
    let record_id = RecordId::new(text(WHAT, &rest[end + 1..])?).map_err(bad)?;
    Ok((user, RecordKey { collection, record_id }))
}
