//! A batch of applied entries: what `transition` reads through, and the one write that comes of it.
//!
//! Invariants:
//! - Reads see the effects of earlier entries of the batch.
//! - The write carries the position it leads to; it is refused on any state but the one it was begun on.
//! - The effect chain covers every row operation of an entry in order, a payload by its content hash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::BufMut;
use holdfast_model::id::{DeviceId, Millis, RecordKey, RequestId, Uid, UserId};
use holdfast_model::state::{
    DeviceRow, Effect, Effects, ExpiryItem, RecordRow, RequestRow, StateRead, Sys, UserRef, UserRow,
};
use holdfast_wire::durable;
use rocksdb::{ReadOptions, WriteBatch};

use crate::error::StoreError;
use crate::generation::Generation;
use crate::keyspace::{Family, chg, cur, exp, rec, req, sys, uid, user_prefix, usr};
use crate::log::LogPosition;
use crate::planted::{self, Bug};
use crate::scan::{Bounds, Scan};
use crate::state::{Applied, Published};

const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;

/// Effects of entries, not written yet.
pub struct ApplyBatch {
    generation: Arc<Generation>,
    /// State it was begun on.
    base: Option<LogPosition>,
    applied: Applied,
    sys: Arc<Sys>,
    sys_changed: bool,
    writes: WriteBatch,
    overlay: Overlay,
    /// Canonical bytes of the row operations since the last link of the effect chain.
    ops: Vec<u8>,
}

/// Rows as the batch leaves them, by key. `None` = deleted.
#[derive(Default)]
struct Overlay {
    uids: BTreeMap<Vec<u8>, Uid>,
    users: BTreeMap<UserRef, UserRow>,
    records: BTreeMap<Vec<u8>, Option<RecordRow>>,
    devices: BTreeMap<(UserRef, DeviceId), Option<DeviceRow>>,
    requests: BTreeMap<Vec<u8>, Option<RequestRow>>,
    /// True = queued, false = taken out.
    expiry: BTreeMap<Vec<u8>, bool>,
}

/// A batch ready to be written.
pub(crate) struct Ready {
    pub(crate) writes: WriteBatch,
    pub(crate) applied: Applied,
    pub(crate) sys: Arc<Sys>,
}

impl ApplyBatch {
    pub(crate) fn new(published: &Published) -> Self {
        Self {
            generation: Arc::clone(&published.generation),
            base: published.applied.position,
            applied: Applied::clone(&published.applied),
            sys: Arc::clone(&published.sys),
            sys_changed: false,
            writes: WriteBatch::default(),
            overlay: Overlay::default(),
            ops: Vec::new(),
        }
    }

    /// Adds the effects of one entry.
    pub fn apply_effects(&mut self, effects: &Effects) -> Result<(), StoreError> {
        // Waking and checkpoints are the caller's affair.
        let Effects { sys, rows, touched: _, barrier: _ } = effects;
        for effect in rows {
            self.apply(effect)?;
        }
        if let Some(facts) = sys {
            record_op(&mut self.ops, OP_PUT, Family::Sys, &sys::FACTS, &durable::encode_sys(facts));
            self.sys = Arc::new(facts.clone());
            self.sys_changed = true;
        }
        Ok(())
    }

    /// Links the row operations since the last call into the effect chain: BLAKE3 of the previous link, the index as
    /// u64 big-endian, and each operation as kind, family tag, key and value, both after their length as u32 big-endian.
    pub fn chain_effects(&mut self, index: u64) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.applied.effect_chain).update(&index.to_be_bytes()).update(&self.ops);
        self.applied.effect_chain = *hasher.finalize().as_bytes();
        self.ops.clear();
    }

    /// Says how far the batch leads. Start from [`ApplyBatch::applied`], which keeps the chains.
    pub fn set_applied(&mut self, applied: Applied) {
        self.applied = applied;
    }

    /// How far the batch leads so far.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Bytes it will write, for bounding it.
    pub fn size_bytes(&self) -> usize {
        self.writes.size_in_bytes()
    }

    /// Adds positions and facts, and checks that the state is still the one the batch was begun on.
    pub(crate) fn finish(mut self, current: &Published) -> Result<Ready, StoreError> {
        let same = Arc::ptr_eq(&self.generation, &current.generation) && self.base == current.applied.position;
        if !same {
            return Err(StoreError::defect(format!(
                "a batch begun at {:?} meets a state at {:?}",
                self.base, current.applied.position
            )));
        }
        let base_index = self.base.map(|at| at.index);
        let index = self.applied.position.map(|at| at.index);
        if index <= base_index && !self.writes.is_empty() {
            return Err(StoreError::defect(format!("a batch leads from {base_index:?} to {index:?}, not forwards")));
        }
        let family = self.generation.family(Family::Sys)?;
        if self.sys_changed {
            self.writes.put_cf(family, sys::FACTS, durable::encode_sys(&self.sys));
        }
        self.writes.put_cf(family, sys::APPLIED, self.applied.encode());
        Ok(Ready { writes: self.writes, applied: self.applied, sys: self.sys })
    }

    fn apply(&mut self, effect: &Effect) -> Result<(), StoreError> {
        match effect {
            Effect::PutUid(user, number) => {
                let key = uid::key(user);
                self.put(Family::Uid, &key, &durable::encode_uid(*number))?;
                self.overlay.uids.insert(key, *number);
            }
            Effect::PutUser(user, row) => {
                self.put(Family::Usr, &usr::key(*user), &durable::encode_user(row))?;
                self.overlay.users.insert(*user, row.clone());
            }
            Effect::PutRecord(user, key, row, content) => {
                let payload = content.as_ref().map_or(&[][..], |content| &content.payload[..]);
                self.put_record(rec::key(*user, key), row, payload)?;
            }
            Effect::DeleteRecord(user, key) => {
                let key = rec::key(*user, key);
                self.delete(Family::Rec, &key)?;
                self.overlay.records.insert(key, None);
            }
            Effect::PutDevice(user, device, row) => {
                self.put(Family::Cur, &cur::key(*user, device), &durable::encode_device(row))?;
                self.overlay.devices.insert((*user, device.clone()), Some(*row));
            }
            Effect::DeleteDevice(user, device) => {
                self.delete(Family::Cur, &cur::key(*user, device))?;
                self.overlay.devices.insert((*user, device.clone()), None);
            }
            Effect::PutChange(_, version, ..) if planted::is(Bug::ChangeRowDropped) && version.0 % 7 == 0 => {}
            Effect::PutChange(user, version, ordinal, row) => {
                self.put(Family::Chg, &chg::key(*user, *version, *ordinal), &durable::encode_change(row))?;
            }
            Effect::DeleteChange(user, version, ordinal) => {
                self.delete(Family::Chg, &chg::key(*user, *version, *ordinal))?;
            }
            Effect::PutRequest(user, id, row) => {
                let key = req::key(*user, *id);
                self.put(Family::Req, &key, &durable::encode_request(row))?;
                self.overlay.requests.insert(key, Some(row.clone()));
            }
            Effect::DeleteRequest(user, id) => {
                let key = req::key(*user, *id);
                self.delete(Family::Req, &key)?;
                self.overlay.requests.insert(key, None);
            }
            Effect::PutExpiry(at, item) => {
                let key = exp::key(*at, item);
                self.put(Family::Exp, &key, &[])?;
                self.overlay.expiry.insert(key, true);
            }
            Effect::DeleteExpiry(at, item) => {
                let key = exp::key(*at, item);
                self.delete(Family::Exp, &key)?;
                self.overlay.expiry.insert(key, false);
            }
            Effect::PutOperation(operation) => {
                let key = sys::operation_key(&operation.id);
                self.put(Family::Sys, &key, &durable::encode_operation(operation))?;
            }
        }
        Ok(())
    }

    fn put_record(&mut self, key: Vec<u8>, row: &RecordRow, payload: &[u8]) -> Result<(), StoreError> {
        if row.payload_len != payload.len() as u64 {
            let (says, has) = (row.payload_len, payload.len());
            return Err(StoreError::defect(format!("a record of {says} bytes comes with a payload of {has}")));
        }
        let value = durable::encode_record(row, payload);
        self.writes.put_cf(self.generation.family(Family::Rec)?, &key, &value);
        // The header names the payload by its hash: the chain need not read photos again.
        record_op(&mut self.ops, OP_PUT, Family::Rec, &key, &durable::encode_record_header(row));
        self.overlay.records.insert(key, Some(row.clone()));
        Ok(())
    }

    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.writes.put_cf(self.generation.family(family)?, key, value);
        record_op(&mut self.ops, OP_PUT, family, key, value);
        Ok(())
    }

    fn delete(&mut self, family: Family, key: &[u8]) -> Result<(), StoreError> {
        self.writes.delete_cf(self.generation.family(family)?, key);
        record_op(&mut self.ops, OP_DELETE, family, key, &[]);
        Ok(())
    }

    fn stored<T>(
        &self,
        family: Family,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, holdfast_wire::DecodeError>,
    ) -> Result<Option<T>, StoreError> {
        let value = self.generation.get(family, key, &ReadOptions::default())?;
        value.map(|value| decode(&value).map_err(self.generation.corrupt(family))).transpose()
    }
}

impl StateRead for ApplyBatch {
    type Error = StoreError;

    fn sys(&self) -> &Sys {
        &self.sys
    }

    fn uid(&self, user: &UserId) -> Result<Option<Uid>, StoreError> {
        let key = uid::key(user);
        match self.overlay.uids.get(&key) {
            Some(number) => Ok(Some(*number)),
            None => self.stored(Family::Uid, &key, durable::decode_uid),
        }
    }

    fn user(&self, user: UserRef) -> Result<Option<UserRow>, StoreError> {
        match self.overlay.users.get(&user) {
            Some(row) => Ok(Some(row.clone())),
            None => self.stored(Family::Usr, &usr::key(user), durable::decode_user),
        }
    }

    fn record(&self, user: UserRef, key: &RecordKey) -> Result<Option<RecordRow>, StoreError> {
        let key = rec::key(user, key);
        match self.overlay.records.get(&key) {
            Some(row) => Ok(row.clone()),
            None => self.stored(Family::Rec, &key, durable::decode_record_row),
        }
    }

    fn request(&self, user: UserRef, id: RequestId) -> Result<Option<RequestRow>, StoreError> {
        let key = req::key(user, id);
        match self.overlay.requests.get(&key) {
            Some(row) => Ok(row.clone()),
            None => self.stored(Family::Req, &key, durable::decode_request),
        }
    }

    fn devices(&self, user: UserRef) -> Result<BTreeMap<DeviceId, DeviceRow>, StoreError> {
        let mut found = BTreeMap::new();
        let bounds = Bounds::prefix(&user_prefix(user));
        let mut scan = Scan::new(&self.generation, Family::Cur, bounds, ReadOptions::default())?;
        while let Some((key, value)) = scan.next()? {
            let (_, device) = cur::parse(key).map_err(self.generation.corrupt(Family::Cur))?;
            found.insert(device, durable::decode_device(value).map_err(self.generation.corrupt(Family::Cur))?);
        }
        for ((of, device), row) in &self.overlay.devices {
            match row {
                Some(row) if *of == user => drop(found.insert(device.clone(), *row)),
                None if *of == user => drop(found.remove(device)),
                Some(_) | None => {}
            }
        }
        Ok(found)
    }

    fn due(&self, now: Millis, limit: usize) -> Result<Vec<(Millis, ExpiryItem)>, StoreError> {
        let bounds = match exp::after(now) {
            Some(end) => Bounds::all().before(end.to_vec()),
            None => Bounds::all(),
        };
        let mut found = BTreeSet::new();
        let mut scan = Scan::new(&self.generation, Family::Exp, bounds, ReadOptions::default())?;
        while found.len() < limit {
            let Some((key, _)) = scan.next()? else { break };
            if self.overlay.expiry.get(key) != Some(&false) {
                found.insert(key.to_vec());
            }
        }
        let end = exp::after(now);
        let queued = self.overlay.expiry.iter().filter(|(_, queued)| **queued).map(|(key, _)| key);
        found.extend(queued.filter(|key| end.as_ref().is_none_or(|end| key.as_slice() < &end[..])).cloned());
        let parse = |key: Vec<u8>| exp::parse(&key).map_err(self.generation.corrupt(Family::Exp));
        found.into_iter().take(limit).map(parse).collect()
    }
}

fn record_op(ops: &mut Vec<u8>, kind: u8, family: Family, key: &[u8], value: &[u8]) {
    ops.put_u8(kind);
    ops.put_u8(family.tag());
    for part in [key, value] {
        ops.put_u32(part.len() as u32);
        ops.put_slice(part);
    }
}
