//! A batch of applied entries: what `transition` reads through, and the one write that comes of it.
//!
//! Invariants:
//! - Reads see the effects of earlier entries of the batch.
//! - The write carries the position it leads to; it is refused on any state but the one it was begun on.
//! - Each row is written once, as the last entry left it, in the order of keys: what a memtable takes fastest.
//! - The effect chain covers every row operation of an entry in order, a payload by its content hash.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::{BufMut, Bytes};
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
/// What a write batch keeps of a row beside its key and value, at most.
const WRITE_SLACK: usize = 16;

/// Effects of entries, not written yet.
pub struct ApplyBatch {
    generation: Arc<Generation>,
    /// State it was begun on.
    base: Option<LogPosition>,
    applied: Applied,
    sys: Arc<Sys>,
    sys_changed: bool,
    writes: Vec<Write>,
    /// Bytes of keys and values in `writes`.
    bytes: usize,
    overlay: Overlay,
    /// Numbers that the database was asked for.
    asked: RefCell<Vec<(UserId, Uid)>>,
    /// Canonical bytes of the row operations since the last link of the effect chain.
    ops: Vec<u8>,
}

/// One row of one family; without a value it is deleted.
struct Write {
    family: Family,
    key: Bytes,
    value: Option<Bytes>,
}

/// Rows as the batch leaves them, by key. `None` = deleted.
#[derive(Default)]
struct Overlay {
    uids: HashMap<UserId, Uid>,
    users: HashMap<UserRef, Arc<UserRow>>,
    records: HashMap<Bytes, Option<RecordRow>>,
    devices: BTreeMap<(UserRef, DeviceId), Option<DeviceRow>>,
    requests: HashMap<Bytes, Option<RequestRow>>,
    /// True = queued, false = taken out.
    expiry: BTreeMap<Bytes, bool>,
}

/// A batch ready to be written.
pub(crate) struct Ready {
    /// By family and key.
    writes: Vec<Write>,
    bytes: usize,
    pub(crate) applied: Applied,
    pub(crate) sys: Arc<Sys>,
    /// Numbers of users that it read or gave.
    pub(crate) numbers: Vec<(UserId, Uid)>,
    /// Rows of users that it wrote.
    pub(crate) rows: HashMap<UserRef, Arc<UserRow>>,
}

impl Ready {
    /// The last write of each row.
    pub(crate) fn writes(&self, generation: &Generation) -> Result<WriteBatch, StoreError> {
        let mut batch = WriteBatch::with_capacity_bytes(self.bytes + self.writes.len() * WRITE_SLACK);
        for writes in self.writes.chunk_by(|a, b| a.family == b.family) {
            let family = generation.family(writes[0].family)?;
            for (at, Write { key, value, .. }) in writes.iter().enumerate() {
                if writes.get(at + 1).is_some_and(|next| next.key == *key) {
                    continue;
                }
                match value {
                    Some(value) => batch.put_cf(family, key, value),
                    None => batch.delete_cf(family, key),
                }
            }
        }
        Ok(batch)
    }
}

impl ApplyBatch {
    pub(crate) fn new(published: &Published) -> Self {
        Self {
            generation: Arc::clone(&published.generation),
            base: published.applied.position,
            applied: Applied::clone(&published.applied),
            sys: Arc::clone(&published.sys),
            sys_changed: false,
            writes: Vec::new(),
            bytes: 0,
            overlay: Overlay::default(),
            asked: RefCell::default(),
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
        self.bytes
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
        if self.sys_changed {
            let value = durable::encode_sys(&self.sys);
            self.push(Family::Sys, Bytes::from_static(&sys::FACTS), Some(value));
        }
        let applied = self.applied.encode();
        self.push(Family::Sys, Bytes::from_static(&sys::APPLIED), Some(applied));
        // Stable: writes of one row stay in their order.
        self.writes.sort_by(|a, b| (a.family, &a.key).cmp(&(b.family, &b.key)));
        Ok(Ready {
            writes: self.writes,
            bytes: self.bytes,
            applied: self.applied,
            sys: self.sys,
            numbers: self.overlay.uids.into_iter().chain(self.asked.into_inner()).collect(),
            rows: self.overlay.users,
        })
    }

    fn push(&mut self, family: Family, key: Bytes, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        self.writes.push(Write { family, key, value });
    }

    fn apply(&mut self, effect: &Effect) -> Result<(), StoreError> {
        match effect {
            Effect::PutUid(user, number) => {
                self.put(Family::Uid, uid::key(user).into(), Bytes::copy_from_slice(&durable::encode_uid(*number)));
                self.overlay.uids.insert(user.clone(), *number);
            }
            Effect::PutUser(user, row) => {
                self.put(Family::Usr, Bytes::copy_from_slice(&usr::key(*user)), durable::encode_user(row));
                self.overlay.users.insert(*user, row.clone());
            }
            Effect::PutRecord(user, key, row, content) => {
                let payload = content.as_ref().map_or(&[][..], |content| &content.payload[..]);
                self.put_record(rec::key(*user, key).into(), row, payload)?;
            }
            Effect::DeleteRecord(user, key) => {
                let key = Bytes::from(rec::key(*user, key));
                self.delete(Family::Rec, key.clone());
                self.overlay.records.insert(key, None);
            }
            Effect::PutDevice(user, device, row) => {
                self.put(Family::Cur, cur::key(*user, device).into(), durable::encode_device(row));
                self.overlay.devices.insert((*user, device.clone()), Some(*row));
            }
            Effect::DeleteDevice(user, device) => {
                self.delete(Family::Cur, cur::key(*user, device).into());
                self.overlay.devices.insert((*user, device.clone()), None);
            }
            Effect::PutChange(_, version, ..) if planted::is(Bug::ChangeRowDropped) && version.0 % 7 == 0 => {}
            Effect::PutChange(user, version, ordinal, row) => {
                let key = Bytes::from(chg::key(*user, *version, *ordinal));
                self.put(Family::Chg, key, durable::encode_change(row));
            }
            Effect::DeleteChange(user, version, ordinal) => {
                self.delete(Family::Chg, chg::key(*user, *version, *ordinal).into());
            }
            Effect::PutRequest(user, id, row) => {
                let key = Bytes::from(req::key(*user, *id));
                self.put(Family::Req, key.clone(), durable::encode_request(row));
                self.overlay.requests.insert(key, Some(row.clone()));
            }
            Effect::DeleteRequest(user, id) => {
                let key = Bytes::from(req::key(*user, *id));
                self.delete(Family::Req, key.clone());
                self.overlay.requests.insert(key, None);
            }
            Effect::PutExpiry(at, item) => {
                let key = Bytes::from(exp::key(*at, item));
                self.put(Family::Exp, key.clone(), Bytes::new());
                self.overlay.expiry.insert(key, true);
            }
            Effect::DeleteExpiry(at, item) => {
                let key = Bytes::from(exp::key(*at, item));
                self.delete(Family::Exp, key.clone());
                self.overlay.expiry.insert(key, false);
            }
            Effect::PutOperation(operation) => {
                let key = Bytes::from(sys::operation_key(&operation.id));
                self.put(Family::Sys, key, durable::encode_operation(operation));
            }
        }
        Ok(())
    }

    fn put_record(&mut self, key: Bytes, row: &RecordRow, payload: &[u8]) -> Result<(), StoreError> {
        if row.payload_len != payload.len() as u64 {
            let (says, has) = (row.payload_len, payload.len());
            return Err(StoreError::defect(format!("a record of {says} bytes comes with a payload of {has}")));
        }
        // The header names the payload by its hash: the chain need not read photos again.
        let header = durable::encode_record_header(row);
        record_op(&mut self.ops, OP_PUT, Family::Rec, &key, &header);
        self.push(Family::Rec, key.clone(), Some(durable::record_value(&header, payload)));
        self.overlay.records.insert(key, Some(row.clone()));
        Ok(())
    }

    fn put(&mut self, family: Family, key: Bytes, value: Bytes) {
        record_op(&mut self.ops, OP_PUT, family, &key, &value);
        self.push(family, key, Some(value));
    }

    fn delete(&mut self, family: Family, key: Bytes) {
        record_op(&mut self.ops, OP_DELETE, family, &key, &[]);
        self.push(family, key, None);
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
        let known = self.overlay.uids.get(user).copied();
        match known.or_else(|| self.generation.users().number(user)) {
            Some(number) => Ok(Some(number)),
            None => {
                let found = self.stored(Family::Uid, &uid::key(user), durable::decode_uid)?;
                self.asked.borrow_mut().extend(found.map(|number| (user.clone(), number)));
                Ok(found)
            }
        }
    }

    fn user(&self, user: UserRef) -> Result<Option<Arc<UserRow>>, StoreError> {
        let known = self.overlay.users.get(&user).cloned();
        match known.or_else(|| self.generation.users().row(user)) {
            Some(row) => Ok(Some(row)),
            None => Ok(self.stored(Family::Usr, &usr::key(user), durable::decode_user)?.map(Arc::new)),
        }
    }

    fn record(&self, user: UserRef, key: &RecordKey) -> Result<Option<RecordRow>, StoreError> {
        let key = rec::key(user, key);
        match self.overlay.records.get(&key[..]) {
            Some(row) => Ok(row.clone()),
            None => self.stored(Family::Rec, &key, durable::decode_record_row),
        }
    }

    fn request(&self, user: UserRef, id: RequestId) -> Result<Option<RequestRow>, StoreError> {
        let key = req::key(user, id);
        match self.overlay.requests.get(&key[..]) {
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
        found.extend(queued.filter(|key| end.as_ref().is_none_or(|end| key[..] < end[..])).map(|key| key.to_vec()));
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
