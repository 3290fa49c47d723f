//! One person's records, out of a directory that a restore filled and that nobody has served from.

use std::path::Path;

use bytes::Bytes;
use holdfast_model::id::{GroupId, Millis, RecordKey, UserId, Version};
use holdfast_store::{DataDir, StateStore, View};

use crate::error::ArchiveError;

/// Records that are in memory at a time, beside those that were found.
const PAGE: usize = 1000;

/// A live record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonRecord {
    /// Which.
    pub key: RecordKey,
    /// Its version then.
    pub version: Version,
    /// Media type.
    pub content_type: String,
    /// Its bytes.
    pub payload: Bytes,
    /// When it was last changed.
    pub update_time: Millis,
    /// When it would have ended by itself; `None` = never.
    pub expire_time: Option<Millis>,
}

/// What one person had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Newest version.
    pub head: Version,
    /// Live records, by collection and id.
    pub records: Vec<PersonRecord>,
}

/// Reads everything that `user` had in the state at `path`; `None` = nobody of that name ever wrote anything. Blocks.
///
/// # Errors
/// When the directory is in use, damaged, or no state.
pub fn read_person(path: &Path, group: GroupId, user: &UserId) -> Result<Option<Person>, ArchiveError> {
    let store = ArchiveError::store;
    let data = DataDir::open(path).map_err(store(path))?;
    let state = StateStore::open(&data, group).map_err(store(path))?;
    person_in(&state.view(), user).map_err(store(path))
}

fn person_in(view: &View, user: &UserId) -> Result<Option<Person>, holdfast_store::StoreError> {
    let Some(uid) = view.uid(user)? else { return Ok(None) };
    let Some(row) = view.user(uid)? else { return Ok(None) };
    let mut records = Vec::new();
    for collection in row.collections.keys() {
        let mut after = None;
        loop {
            let page = view.list(uid, collection, after.as_ref(), PAGE, false, true)?;
            after = page.records.last().map(|last| last.id.clone());
            records.extend(page.records.into_iter().map(|listed| PersonRecord {
                key: RecordKey { collection: collection.clone(), record_id: listed.id },
                version: listed.record.row.version,
                content_type: listed.record.row.content_type,
                payload: listed.record.payload,
                update_time: listed.record.row.update_time,
                expire_time: listed.record.row.expire_time,
            }));
            if !page.more {
                break;
            }
        }
    }
    Ok(Some(Person { head: row.head, records }))
}
