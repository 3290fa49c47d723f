//! A consistent view of the state: everything a read answers comes from one snapshot.
//!
//! Invariants: applied position, group facts and rows of a view belong to one batch boundary; a view stays readable
//! after later batches and after its database was replaced.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::command::Operation;
use holdfast_model::id::{Collection, DeviceId, RecordId, RecordKey, Slot, UserId, Version};
use holdfast_model::limits::PAGE_BYTES_MAX;
use holdfast_model::state::{DeviceRow, RecordRow, Sys, UserRef, UserRow};
use holdfast_wire::DecodeError;
use holdfast_wire::durable::{self, Payload};
use rocksdb::{DB, ReadOptions, Snapshot};

use crate::error::{Part, StoreError};
use crate::generation::Generation;
use crate::keyspace::{Family, chg, cur, rec, sys, uid, user_prefix, usr};
use crate::scan::{Bounds, Scan};
use crate::state::{Applied, Published};

/// A record as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its row.
    pub row: RecordRow,
    /// Its payload; empty on tombstones, where it was not asked for, and where it is held back.
    pub payload: Bytes,
    /// The payload is not there: a restore brings it later.
    pub held_back: bool,
}

/// A record of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: RecordId,
    /// What is stored.
    pub record: StoredRecord,
}

/// One page of a list. It ends after the limit, or after [`PAGE_BYTES_MAX`] of payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListPage {
    /// Records in the order asked for.
    pub records: Vec<Listed>,
    /// There may be more after the last one.
    pub more: bool,
}

/// A consistent view.
pub struct View {
    // Declared first: dropped before the database it points into.
    snapshot: Snapshot<'static>,
    generation: Arc<Generation>,
    applied: Arc<Applied>,
    sys: Arc<Sys>,
}

impl View {
    /// Takes a snapshot for these heads. They belong to it when [`View::in_step`] says so.
    pub(crate) fn new(published: &Published) -> Self {
        let generation = Arc::clone(&published.generation);
        let db: *const DB = generation.db();
        // SAFETY: the database lives in the `Arc` that this view holds, so it neither moves nor goes before the
        // snapshot, which is the first field and never handed out.
        let db: &'static DB = unsafe { &*db };
        Self {
            snapshot: db.snapshot(),
            generation,
            applied: Arc::clone(&published.applied),
            sys: Arc::clone(&published.sys),
        }
    }

    /// No batch was written between the heads and the snapshot.
    pub(crate) fn in_step(&self, published: &Published) -> bool {
        self.snapshot.sequence_number() == published.sequence
    }

    /// How far the state is.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Which installation of the state it is of; see [`crate::StateStore::installation`].
    pub fn installation(&self) -> u64 {
        self.generation.installation()
    }

    /// Group facts.
    pub fn sys(&self) -> &Arc<Sys> {
        &self.sys
    }

    /// Number of a user; `None` = never seen.
    pub fn uid(&self, user: &UserId) -> Result<Option<UserRef>, StoreError> {
        let number = self.value(Family::Uid, &uid::key(user), durable::decode_uid)?;
        Ok(number.map(|uid| UserRef { slot: Slot::of(user), uid }))
    }

    /// A user's row.
    pub fn user(&self, user: UserRef) -> Result<Option<UserRow>, StoreError> {
        self.value(Family::Usr, &usr::key(user), durable::decode_user)
    }

    /// A record or tombstone.
    pub fn record(&self, user: UserRef, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        self.value(Family::Rec, &rec::key(user, key), stored_record)
    }

    /// Many records or tombstones, in the order of the keys, read as one batch.
    pub fn records(&self, user: UserRef, keys: &[RecordKey]) -> Result<Vec<Option<StoredRecord>>, StoreError> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| rec::key(user, key)).collect();
        let family = self.generation.family(Family::Rec)?;
        let values = self.generation.db().batched_multi_get_cf_opt(family, &keys, false, &self.options());
        let decode = |value: Result<Option<rocksdb::DBPinnableSlice<'_>>, rocksdb::Error>| {
            let value = value.map_err(StoreError::rocks(Part::State, "read", self.generation.path()))?;
            value.map(|value| stored_record(&value).map_err(self.generation.corrupt(Family::Rec))).transpose()
        };
        values.into_iter().map(decode).collect()
    }

    /// Devices of a user, by id.
    pub fn devices(&self, user: UserRef) -> Result<Vec<(DeviceId, DeviceRow)>, StoreError> {
        let mut found = Vec::new();
        let mut scan = self.scan(Family::Cur, Bounds::prefix(&user_prefix(user)))?;
        while let Some((key, value)) = scan.next()? {
            let (_, device) = cur::parse(key).map_err(self.generation.corrupt(Family::Cur))?;
            found.push((device, durable::decode_device(value).map_err(self.generation.corrupt(Family::Cur))?));
        }
        Ok(found)
    }

    /// Records of a collection by id, after `after`.
    pub fn list(
        &self,
        user: UserRef,
        collection: &Collection,
        after: Option<&RecordId>,
        limit: usize,
        show_deleted: bool,
        want_payload: bool,
    ) -> Result<ListPage, StoreError> {
        let mut bounds = Bounds::prefix(&rec::collection_prefix(user, collection));
        if let Some(id) = after {
            let mut start = rec::key(user, &RecordKey { collection: collection.clone(), record_id: id.clone() });
            // Ids hold no zero byte: this is the first key after it.
            start.push(0);
            bounds = bounds.from(start);
        }
        let mut page = ListPage::default();
        let mut payload_bytes = 0;
        let mut scan = self.scan(Family::Rec, bounds)?;
        while let Some((key, value)) = scan.next()? {
            let (row, stored) = durable::decode_record_parts(value).map_err(self.generation.corrupt(Family::Rec))?;
            if !show_deleted && !row.is_live() {
                continue;
            }
            if page.records.len() >= limit || payload_bytes >= PAGE_BYTES_MAX {
                page.more = true;
                break;
            }
            let (_, key) = rec::parse(key).map_err(self.generation.corrupt(Family::Rec))?;
            let mut record = StoredRecord::new(row, if want_payload { stored } else { Payload::There(&[]) });
            record.held_back = stored == Payload::HeldBack;
            payload_bytes += record.payload.len();
            page.records.push(Listed { id: key.record_id, record });
        }
        Ok(page)
    }

    /// Records of a collection by their last change, newest first, before `before`.
    pub fn list_newest(
        &self,
        user: UserRef,
        collection: &Collection,
        before: Option<(Version, u16)>,
        limit: usize,
        show_deleted: bool,
        want_payload: bool,
    ) -> Result<ListPage, StoreError> {
        let mut bounds = Bounds::prefix(&user_prefix(user)).reversed();
        if let Some((version, ordinal)) = before {
            bounds = bounds.before(chg::key(user, version, ordinal));
        }
        let mut page = ListPage::default();
        let mut payload_bytes = 0;
        let mut scan = self.scan(Family::Chg, bounds)?;
        while let Some((_, value)) = scan.next()? {
            let change = durable::decode_change(value).map_err(self.generation.corrupt(Family::Chg))?;
            if change.key.collection != *collection || (change.deleted && !show_deleted) {
                continue;
            }
            if page.records.len() >= limit || payload_bytes >= PAGE_BYTES_MAX {
                page.more = true;
                break;
            }
            let mut record = self.record(user, &change.key)?.ok_or_else(|| self.dangling())?;
            if !want_payload {
                record.payload = Bytes::new();
            }
            payload_bytes += record.payload.len();
            page.records.push(Listed { id: change.key.record_id, record });
        }
        Ok(page)
    }

    /// State of a job.
    pub fn operation(&self, id: &str) -> Result<Option<Operation>, StoreError> {
        self.value(Family::Sys, &sys::operation_key(id), durable::decode_operation)
    }

    /// All jobs, by id.
    pub fn operations(&self) -> Result<Vec<Operation>, StoreError> {
        let mut out = Vec::new();
        let mut scan = self.scan(Family::Sys, Bounds::prefix(&[sys::OPERATION]))?;
        while let Some((_, value)) = scan.next()? {
            out.push(durable::decode_operation(value).map_err(self.generation.corrupt(Family::Sys))?);
        }
        Ok(out)
    }

    /// All users, by slot and id. Ends after the first error.
    pub fn users(&self) -> Result<impl Iterator<Item = Result<(UserId, UserRef), StoreError>> + '_, StoreError> {
        let mut scan = self.scan(Family::Uid, Bounds::all())?;
        let mut ended = false;
        Ok(std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let next = self.next_user(&mut scan).transpose();
            ended = !matches!(next, Some(Ok(_)));
            next
        }))
    }

    /// Read options of this snapshot.
    pub(crate) fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        options
    }

    pub(crate) fn generation(&self) -> &Generation {
        &self.generation
    }

    pub(crate) fn scan(&self, family: Family, bounds: Bounds) -> Result<Scan<'_>, StoreError> {
        Scan::new(&self.generation, family, bounds, self.options())
    }

    /// A change row without its record.
    pub(crate) fn dangling(&self) -> StoreError {
        self.generation.corrupt(Family::Chg)(DecodeError::new("change row", "its record is missing"))
    }

    fn next_user(&self, scan: &mut Scan<'_>) -> Result<Option<(UserId, UserRef)>, StoreError> {
        let Some((key, value)) = scan.next()? else { return Ok(None) };
        let decoded = uid::parse(key).and_then(|user| Ok((user, durable::decode_uid(value)?)));
        let (user, uid) = decoded.map_err(self.generation.corrupt(Family::Uid))?;
        let slot = Slot::of(&user);
        Ok(Some((user, UserRef { slot, uid })))
    }

    fn value<T>(
        &self,
        family: Family,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, StoreError> {
        let value = self.generation.get(family, key, &self.options())?;
        value.map(|value| decode(&value).map_err(self.generation.corrupt(family))).transpose()
    }
}

/// A record out of its value.
pub(crate) fn stored_record(value: &[u8]) -> Result<StoredRecord, DecodeError> {
    let (row, payload) = durable::decode_record_parts(value)?;
    Ok(StoredRecord::new(row, payload))
}

impl StoredRecord {
    fn new(row: RecordRow, payload: Payload<'_>) -> Self {
        let (payload, held_back) = match payload {
            Payload::There(bytes) => (Bytes::copy_from_slice(bytes), false),
            Payload::HeldBack => (Bytes::new(), true),
        };
        Self { row, payload, held_back }
    }
}
