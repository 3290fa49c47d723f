//! Building a state out of rows: how a restore writes.
//!
//! Invariants: the rows become the state as a whole when [`StateLoader::finish`] switches to them; a loader that was
//! dropped or killed leaves a directory that the next open deletes; a payload that comes apart from its record is the one
//! that the record names.

use std::path::PathBuf;

use bytes::Bytes;
use holdfast_model::digest::content_of;
use holdfast_model::id::GroupId;
use holdfast_model::state::Sys;
use holdfast_wire::DecodeError;
use holdfast_wire::durable::{self, Payload};
use rocksdb::{ReadOptions, WriteBatch};

use crate::error::StoreError;
use crate::generation::{Generation, GroupDir};
use crate::keyspace::{Family, chg, cur, exp, rec, req, sys, uid, usr};
use crate::marker::DataDir;
use crate::state::Applied;

/// One row of a logical snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRow {
    /// Tag of its family ([`Family::tag`]).
    pub family: u8,
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// Bytes gathered before a write.
const BATCH_BYTES: usize = 4 << 20;

/// Builds a new state beside the present one. The group's [`crate::StateStore`] must not be opened meanwhile.
pub struct StateLoader {
    dir: GroupDir,
    number: u64,
    generation: Generation,
    batch: WriteBatch,
    /// Records whose payloads did not come.
    held_back: u64,
    /// Some of their rows are gathered, and cannot be read yet.
    heads_gathered: bool,
}

impl StateLoader {
    /// Begins with nothing.
    pub fn create(data: &DataDir, group: GroupId) -> Result<Self, StoreError> {
        let dir = GroupDir::open(data.path(), group)?;
        dir.recover()?;
        let (number, building) = dir.next()?;
        let generation = Generation::open(&building, group)?;
        Ok(Self { dir, number, generation, batch: WriteBatch::default(), held_back: 0, heads_gathered: false })
    }

    /// Adds a row, in any order; the last one of a key counts. Rows that no build would write are refused.
    pub fn put(&mut self, row: RawRow) -> Result<(), StoreError> {
        let family = Family::of_tag(row.family).ok_or_else(|| self.foreign(format!("family {}", row.family)))?;
        let held_back = check_row(family, &row.key, &row.value).map_err(|error| self.foreign(error.to_string()))?;
        if family == Family::Sys && row.key == sys::GROUP {
            return Ok(());
        }
        if held_back {
            self.held_back += 1;
            self.heads_gathered = true;
        }
        self.write(family, &row.key, &row.value)
    }

    /// Adds the payload of the record under `key`, whose row came without it.
    pub fn put_payload(&mut self, key: &[u8], payload: &Bytes) -> Result<(), StoreError> {
        if self.heads_gathered {
            self.write_out()?;
        }
        let head = self.generation.get(Family::Rec, key, &ReadOptions::default())?;
        let head = head.map(|head| head.to_vec()).ok_or_else(|| self.foreign("a payload without a record".into()))?;
        let (row, there) = durable::decode_record_parts(&head).map_err(|error| self.foreign(error.to_string()))?;
        if there != Payload::HeldBack || content_of(&row, payload).is_none() {
            return Err(self.foreign("a payload that its record does not name".into()));
        }
        self.held_back -= 1;
        self.write(Family::Rec, key, &durable::encode_record(&row, payload))
    }

    /// Records whose payloads did not come.
    pub fn held_back(&self) -> u64 {
        self.held_back
    }

    /// Sets how far the state is, in place of the row of the snapshot.
    pub fn put_applied(&mut self, applied: &Applied) -> Result<(), StoreError> {
        self.write(Family::Sys, &sys::APPLIED, &applied.encode())
    }

    /// Sets the group facts, in place of the row of the snapshot.
    pub fn put_sys(&mut self, facts: &Sys) -> Result<(), StoreError> {
        self.write(Family::Sys, &sys::FACTS, &durable::encode_sys(facts))
    }

    /// Makes the rows durable and the state of the group. Returns where it is.
    pub fn finish(mut self) -> Result<PathBuf, StoreError> {
        self.write_out()?;
        self.generation.flush()?;
        let Self { dir, number, generation, .. } = self;
        // Closed before its directory is renamed.
        drop(generation);
        dir.switch(number)
    }

    fn write(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.batch.put_cf(self.generation.family(family)?, key, value);
        if self.batch.size_in_bytes() >= BATCH_BYTES { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<(), StoreError> {
        self.heads_gathered = false;
        self.generation.write(std::mem::take(&mut self.batch))
    }

    fn foreign(&self, reason: String) -> StoreError {
        StoreError::Mismatch {
            what: format!("a row of the snapshot is not one of this build: {reason}"),
            hint: "restore with the release that wrote the snapshot, or from another snapshot",
        }
    }
}

/// A row must decode before it becomes state: a restore is the last moment to refuse it. True: it is a record without the
/// payload that it names.
fn check_row(family: Family, key: &[u8], value: &[u8]) -> Result<bool, DecodeError> {
    match family {
        Family::Sys => match sys::parse(key)? {
            sys::SysKey::Applied => durable::decode_applied(value).map(drop),
            sys::SysKey::Facts => durable::decode_sys(value).map(drop),
            sys::SysKey::Group => Ok(()),
            sys::SysKey::Operation(_) => durable::decode_operation(value).map(drop),
        },
        Family::Uid => uid::parse(key).and_then(|_| durable::decode_uid(value)).map(drop),
        Family::Usr => usr::parse(key).and_then(|_| durable::decode_user(value)).map(drop),
        Family::Rec => {
            rec::parse(key)?;
            return Ok(durable::decode_record_parts(value)?.1 == Payload::HeldBack);
        }
        Family::Chg => chg::parse(key).and_then(|_| durable::decode_change(value)).map(drop),
        Family::Req => req::parse(key).and_then(|_| durable::decode_request(value)).map(drop),
        Family::Cur => cur::parse(key).and_then(|_| durable::decode_device(value)).map(drop),
        Family::Exp => exp::parse(key).map(drop),
    }?;
    Ok(false)
}
