//! The scrub: recompute every sum from the rows themselves, and compare with what is kept.
//!
//! Invariants: it reads every row of every family once, with checksums verified, from one snapshot; what it reports names
//! users by number only; two states that were built from the same log give the same hash of each family, so replicas
//! that read at one index can be compared row for row, also in what no digest covers.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use holdfast_model::digest::{Sum, content_of, entry_hash, user_row_hash};
use holdfast_model::id::{Collection, ContentHash, Millis, RecordKey, Version};
use holdfast_model::outcome::Usage;
use holdfast_model::state::{CollectionDigest, ExpiryItem, RecordRow, Totals, UserRef, UserRow};
use holdfast_wire::durable;

use crate::error::StoreError;
use crate::keyspace::{Family, chg, cur, exp, rec, req, sys, uid, user_prefix, usr};
use crate::scan::{Bounds, Scan};
use crate::view::{View, stored_record};

/// Faults named in one report; the rest is counted.
const FAULTS_NAMED_MAX: usize = 100;
/// Bytes read between two calls of the pace.
const PACE_BYTES: u64 = 64 << 10;
/// Begins the term of a record's TTL in the sum over the expiry queue; no queue key begins with it.
const TTL_TERM: &[u8] = b"ttl";

/// What a scrub found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Digest over the user rows as they are.
    pub digest: Sum,
    /// Totals as the rows give them.
    pub totals: Totals,
    /// Records and tombstones read.
    pub records_read: u64,
    /// BLAKE3 over all rows of each family, in the order of [`Family::ALL`]; without the row that names the group.
    pub families: [[u8; 32]; Family::ALL.len()],
    /// All faults found.
    pub fault_count: u64,
    /// The first of them.
    pub faults: Vec<ScrubFault>,
}

impl ScrubReport {
    /// Disk and digests agree.
    pub fn is_clean(&self) -> bool {
        self.fault_count == 0
    }
}

/// Something that does not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubFault {
    /// Whose; `None` = the group's.
    pub user: Option<UserRef>,
    /// What.
    pub what: String,
}

/// What the rows of one user add up to.
#[derive(Default)]
struct Recomputed {
    usage: Usage,
    collections: BTreeMap<Collection, CollectionDigest>,
    /// The record at each place of the feed: key, liveness, hash.
    feed: BTreeMap<(Version, u16), (Vec<u8>, bool, ContentHash)>,
    newest: Version,
}

/// Sums that two families must agree on.
#[derive(Default)]
struct Across {
    /// Users, by their numbers and by their rows.
    numbered: Sum,
    rows: Sum,
    /// The expiry queue, as it is and as the rows put it there.
    queued: Sum,
    due: Sum,
}

impl View {
    /// Reads everything and compares it with the digests. Takes as long as reading the disk does.
    pub fn scrub(&self) -> Result<ScrubReport, StoreError> {
        Ok(self.scrub_at(&mut |_| true)?.unwrap_or_default())
    }

    /// As [`View::scrub`], at a pace: `pace` hears how many bytes were read since it was last called, and may sleep.
    /// `None`: it answered false, and the scrub was given up.
    pub fn scrub_at(&self, pace: &mut dyn FnMut(u64) -> bool) -> Result<Option<ScrubReport>, StoreError> {
        let meter = Meter { pace: RefCell::new(pace), unpaced: Cell::new(0), given_up: Cell::new(false) };
        let mut report = ScrubReport::default();
        let mut across = Across::default();
        self.scrub_sys(&meter, &mut report)?;
        self.scrub_uids(&meter, &mut across, &mut report)?;
        self.scrub_users(&meter, &mut across, &mut report)?;
        self.scrub_queue(&meter, &mut across, &mut report)?;
        if meter.given_up.get() {
            return Ok(None);
        }
        let sys = self.sys();
        let compared = [
            (report.digest == sys.digest, "the digest over all users is not the one kept"),
            (report.totals == sys.totals, "the totals of the group are not those kept"),
            (across.numbered == across.rows, "numbers of users and user rows do not pair up"),
            (across.queued == across.due, "the expiry queue is not what the rows put there"),
        ];
        for (_, what) in compared.into_iter().filter(|(agree, _)| !agree) {
            report.fault(None, what);
        }
        Ok(Some(report))
    }

    /// Hash of how far the state is and of the group facts: position, membership, chains, digest and all.
    pub fn heads_hash(&self) -> [u8; 32] {
        let (applied, facts) = (self.applied().encode(), durable::encode_sys(self.sys()));
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(applied.len() as u64).to_be_bytes()).update(&applied).update(&facts);
        *hasher.finalize().as_bytes()
    }

    fn scrub_sys(&self, meter: &Meter<'_>, report: &mut ScrubReport) -> Result<(), StoreError> {
        let corrupt = || self.generation().corrupt(Family::Sys);
        let mut rows = Rows::new(self, Family::Sys, meter)?;
        while let Some((key, value)) = rows.current() {
            match sys::parse(key).map_err(corrupt())? {
                sys::SysKey::Applied => {
                    if value != self.applied().encode() {
                        report.fault(None, "the position on disk is not the one in use");
                    }
                }
                sys::SysKey::Facts => {
                    if durable::decode_sys(value).map_err(corrupt())? != **self.sys() {
                        report.fault(None, "the group facts on disk are not those in use");
                    }
                }
                sys::SysKey::Operation(_) => drop(durable::decode_operation(value).map_err(corrupt())?),
                sys::SysKey::Group => {}
            }
            rows.advance()?;
        }
        rows.end(report);
        Ok(())
    }

    fn scrub_uids(&self, meter: &Meter<'_>, across: &mut Across, report: &mut ScrubReport) -> Result<(), StoreError> {
        let corrupt = || self.generation().corrupt(Family::Uid);
        let mut rows = Rows::new(self, Family::Uid, meter)?;
        while let Some((key, value)) = rows.current() {
            let name = uid::parse(key).map_err(corrupt())?;
            let uid = durable::decode_uid(value).map_err(corrupt())?;
            let user = UserRef { slot: holdfast_model::id::Slot::of(&name), uid };
            across.numbered.add(hash(&[&user_prefix(user)]));
            rows.advance()?;
        }
        rows.end(report);
        Ok(())
    }

    fn scrub_users(&self, meter: &Meter<'_>, across: &mut Across, report: &mut ScrubReport) -> Result<(), StoreError> {
        let mut users = Rows::new(self, Family::Usr, meter)?;
        let mut records = Rows::new(self, Family::Rec, meter)?;
        let mut changes = Rows::new(self, Family::Chg, meter)?;
        let mut requests = Rows::new(self, Family::Req, meter)?;
        let mut devices = Rows::new(self, Family::Cur, meter)?;
        loop {
            let next = [users.user()?, records.user()?, changes.user()?, requests.user()?, devices.user()?];
            let Some(user) = next.into_iter().flatten().min() else { break };
            let mut row = None;
            users.each(user, |key, value| {
                usr::parse(key).map_err(self.generation().corrupt(Family::Usr))?;
                row = Some(durable::decode_user(value).map_err(self.generation().corrupt(Family::Usr))?);
                Ok(())
            })?;
            let mut found = Recomputed::default();
            records.each(user, |key, value| self.scrub_record(user, key, value, &mut found, across, report))?;
            changes.each(user, |key, value| self.scrub_change(user, key, value, &mut found, report))?;
            requests.each(user, |key, value| {
                let corrupt = || self.generation().corrupt(Family::Req);
                let (_, id) = req::parse(key).map_err(corrupt())?;
                let kept = durable::decode_request(value).map_err(corrupt())?;
                across.due.add(hash(&[&exp::key(kept.expires, &ExpiryItem::Request(user, id))]));
                Ok(())
            })?;
            devices.each(user, |key, value| {
                let corrupt = || self.generation().corrupt(Family::Cur);
                let (_, device) = cur::parse(key).map_err(corrupt())?;
                let kept = durable::decode_device(value).map_err(corrupt())?;
                across.due.add(hash(&[&exp::key(kept.expires, &ExpiryItem::Device(user, device))]));
                Ok(())
            })?;
            if row.is_some() {
                across.rows.add(hash(&[&user_prefix(user)]));
            }
            if !meter.given_up.get() {
                compare(user, row.as_ref(), &found, report);
            }
        }
        for rows in [users, records, changes, requests, devices] {
            rows.end(report);
        }
        Ok(())
    }

    fn scrub_queue(&self, meter: &Meter<'_>, across: &mut Across, report: &mut ScrubReport) -> Result<(), StoreError> {
        let mut rows = Rows::new(self, Family::Exp, meter)?;
        while let Some((key, _)) = rows.current() {
            let (at, item) = exp::parse(key).map_err(self.generation().corrupt(Family::Exp))?;
            match item {
                // By name in the queue, by number among the records.
                ExpiryItem::Record(name, record) => match self.uid(&name)? {
                    Some(user) => across.queued.add(ttl_term(at, user, &record)),
                    None => report.fault(None, "the expiry queue names a user that there is not"),
                },
                ExpiryItem::Request(..) | ExpiryItem::Tombstone(..) | ExpiryItem::Device(..) => {
                    across.queued.add(hash(&[key]));
                }
            }
            rows.advance()?;
        }
        rows.end(report);
        Ok(())
    }

    fn scrub_record(
        &self,
        user: UserRef,
        key: &[u8],
        value: &[u8],
        found: &mut Recomputed,
        across: &mut Across,
        report: &mut ScrubReport,
    ) -> Result<(), StoreError> {
        let corrupt = || self.generation().corrupt(Family::Rec);
        let (_, name) = rec::parse(key).map_err(corrupt())?;
        let record = stored_record(value).map_err(corrupt())?;
        let row = &record.row;
        report.records_read += 1;
        found.newest = found.newest.max(row.version);
        found.feed.insert((row.version, row.ordinal), (key.to_vec(), row.is_live(), row.content_hash));
        if !describes_itself(row) {
            report.fault(Some(user), "a record's row contradicts itself");
        }
        match (row.expire_time, row.purge_time) {
            (Some(at), _) => across.due.add(ttl_term(at, user, &name)),
            (None, Some(at)) => across.due.add(hash(&[&exp::key(at, &ExpiryItem::Tombstone(user, name.clone()))])),
            (None, None) => {}
        }
        if !row.is_live() {
            return Ok(());
        }
        match record.held_back {
            true if self.sys().is_restoring(&name.collection) => {}
            true => report.fault(Some(user), "a record's payload is missing"),
            false if content_of(row, &record.payload).is_some() => {}
            false => report.fault(Some(user), "a record's payload is not the one its hash names"),
        }
        found.usage.record_count += 1;
        found.usage.used_bytes += row.payload_len;
        let digest = found.collections.entry(name.collection).or_default();
        digest.count += 1;
        digest.sum.add(entry_hash(&name.record_id, row.version, row.content_hash));
        Ok(())
    }

    fn scrub_change(
        &self,
        user: UserRef,
        key: &[u8],
        value: &[u8],
        found: &mut Recomputed,
        report: &mut ScrubReport,
    ) -> Result<(), StoreError> {
        let corrupt = || self.generation().corrupt(Family::Chg);
        let (_, version, ordinal) = chg::parse(key).map_err(corrupt())?;
        let change = durable::decode_change(value).map_err(corrupt())?;
        match found.feed.remove(&(version, ordinal)) {
            Some((record, _, _)) if record != rec::key(user, &change.key) => {
                report.fault(Some(user), "a change row names another record than the one at its place");
            }
            Some((_, live, hash)) if change.deleted == live || change.content_hash != hash => {
                report.fault(Some(user), "a change row tells something else of its record than the record itself");
            }
            Some(_) => {}
            None => report.fault(Some(user), "a change row has no record"),
        }
        Ok(())
    }
}

fn describes_itself(row: &RecordRow) -> bool {
    if row.is_live() {
        row.purge_time.is_none()
    } else {
        row.purge_time.is_some() && row.expire_time.is_none() && row.content_type.is_empty() && row.payload_len == 0
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

fn ttl_term(at: Millis, user: UserRef, record: &RecordKey) -> [u8; 32] {
    hash(&[TTL_TERM, &at.0.to_be_bytes(), &rec::key(user, record)])
}

fn compare(user: UserRef, row: Option<&UserRow>, found: &Recomputed, report: &mut ScrubReport) {
    report.totals.records += found.usage.record_count;
    report.totals.bytes += found.usage.used_bytes;
    if !found.feed.is_empty() {
        report.fault(Some(user), "a record has no change row");
    }
    let Some(row) = row else {
        report.fault(Some(user), "rows of a user without a user row");
        return;
    };
    report.totals.users += 1;
    report.digest.add(user_row_hash(user.uid, row));
    if row.usage != found.usage {
        report.fault(Some(user), "usage is not that of the records");
    }
    if found.newest > row.head {
        report.fault(Some(user), "a record is newer than its user's head");
    }
    let kept = row.collections.iter().filter(|(_, digest)| digest.count > 0);
    if !kept.eq(found.collections.iter()) {
        report.fault(Some(user), "collection digests are not those of the records");
    }
}

impl ScrubReport {
    fn fault(&mut self, user: Option<UserRef>, what: &str) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_NAMED_MAX {
            self.faults.push(ScrubFault { user, what: what.to_owned() });
        }
    }
}

/// Counts what is read, for the pace.
struct Meter<'p> {
    pace: RefCell<&'p mut dyn FnMut(u64) -> bool>,
    unpaced: Cell<u64>,
    given_up: Cell<bool>,
}

impl Meter<'_> {
    /// False: give up.
    fn read(&self, bytes: u64) -> bool {
        let unpaced = self.unpaced.get() + bytes;
        self.unpaced.set(unpaced);
        if unpaced >= PACE_BYTES && !self.given_up.get() {
            self.unpaced.set(0);
            let goes_on = (self.pace.borrow_mut())(unpaced);
            self.given_up.set(!goes_on);
        }
        !self.given_up.get()
    }
}

/// A scan of a family that stands on a row, and hashes what it passes.
struct Rows<'a, 'p> {
    scan: Scan<'a>,
    view: &'a View,
    family: Family,
    meter: &'a Meter<'p>,
    hasher: blake3::Hasher,
    /// Key and value of the row it stands on.
    row: Option<(Vec<u8>, Vec<u8>)>,
}

impl<'a, 'p> Rows<'a, 'p> {
    fn new(view: &'a View, family: Family, meter: &'a Meter<'p>) -> Result<Self, StoreError> {
        let mut options = view.options();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_readahead_size(256 << 10);
        let scan = Scan::new(view.generation(), family, Bounds::all(), options)?;
        let mut rows = Self { scan, view, family, meter, hasher: blake3::Hasher::new(), row: None };
        rows.advance()?;
        Ok(rows)
    }

    fn current(&self) -> Option<(&[u8], &[u8])> {
        self.row.as_ref().map(|(key, value)| (&key[..], &value[..]))
    }

    fn advance(&mut self) -> Result<(), StoreError> {
        let Some((key, value)) = self.scan.next()? else {
            self.row = None;
            return Ok(());
        };
        let (mut kept_key, mut kept_value) = self.row.take().unwrap_or_default();
        kept_key.clear();
        kept_key.extend_from_slice(key);
        kept_value.clear();
        kept_value.extend_from_slice(value);
        // Which group a database is for belongs to the copy, not to the state.
        if self.family != Family::Sys || kept_key[..] != sys::GROUP {
            for part in [&kept_key, &kept_value] {
                self.hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
            }
        }
        if self.meter.read((kept_key.len() + kept_value.len()) as u64) {
            self.row = Some((kept_key, kept_value));
        }
        Ok(())
    }

    /// User of the row it stands on.
    fn user(&self) -> Result<Option<UserRef>, StoreError> {
        let Some((key, _)) = self.current() else { return Ok(None) };
        let parsed = crate::keyspace::split_user("key", key);
        let (user, _) = parsed.map_err(self.view.generation().corrupt(self.family))?;
        Ok(Some(user))
    }

    fn each(
        &mut self,
        user: UserRef,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        while self.user()? == Some(user) {
            if let Some((key, value)) = self.current() {
                visit(key, value)?;
            }
            self.advance()?;
        }
        Ok(())
    }

    fn end(self, report: &mut ScrubReport) {
        let places = Family::ALL.into_iter().zip(&mut report.families);
        for (_, hash) in places.filter(|(family, _)| *family == self.family) {
            *hash = *self.hasher.finalize().as_bytes();
        }
    }
}
