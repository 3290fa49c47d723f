//! The scrub: recompute every sum from the rows themselves, and compare with what is kept.
//!
//! Invariants: it reads every row of users, records and changes once, with checksums verified, from one snapshot; what
//! it reports names users by number only.

use std::collections::BTreeMap;

use holdfast_model::command::Content;
use holdfast_model::digest::{Sum, content_hash, entry_hash, user_row_hash};
use holdfast_model::id::{Collection, Version};
use holdfast_model::outcome::Usage;
use holdfast_model::state::{CollectionDigest, Totals, UserRef, UserRow};
use holdfast_wire::durable;

use crate::error::StoreError;
use crate::keyspace::{Family, chg, rec, usr};
use crate::scan::{Bounds, Scan};
use crate::view::{View, stored_record};

/// Faults named in one report; the rest is counted.
const FAULTS_NAMED_MAX: usize = 100;

/// What a scrub found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Digest over the user rows as they are.
    pub digest: Sum,
    /// Totals as the rows give them.
    pub totals: Totals,
    /// Records and tombstones read.
    pub records_read: u64,
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

/// What the records of one user add up to.
#[derive(Default)]
struct Recomputed {
    usage: Usage,
    collections: BTreeMap<Collection, CollectionDigest>,
    /// Key of the record at each place of the feed.
    feed: BTreeMap<(Version, u16), Vec<u8>>,
}

impl View {
    /// Reads everything and compares it with the digests. Takes as long as reading the disk does.
    pub fn scrub(&self) -> Result<ScrubReport, StoreError> {
        let mut report = ScrubReport::default();
        let mut users = Users::new(self, Family::Usr)?;
        let mut records = Users::new(self, Family::Rec)?;
        let mut changes = Users::new(self, Family::Chg)?;
        while let Some(user) = [users.user, records.user, changes.user].into_iter().flatten().min() {
            let mut row = None;
            users.each(user, |_, value| {
                row = Some(durable::decode_user(value).map_err(self.generation().corrupt(Family::Usr))?);
                Ok(())
            })?;
            let mut found = Recomputed::default();
            records.each(user, |key, value| self.scrub_record(user, key, value, &mut found, &mut report))?;
            changes.each(user, |key, value| self.scrub_change(user, key, value, &mut found, &mut report))?;
            compare(user, row.as_ref(), &found, &mut report);
        }
        let sys = self.sys();
        if report.digest != sys.digest {
            report.fault(None, "the digest over all users is not the one kept");
        }
        if report.totals != sys.totals {
            report.fault(None, "the totals of the group are not those kept");
        }
        Ok(report)
    }

    fn scrub_record(
        &self,
        user: UserRef,
        key: &[u8],
        value: &[u8],
        found: &mut Recomputed,
        report: &mut ScrubReport,
    ) -> Result<(), StoreError> {
        let corrupt = || self.generation().corrupt(Family::Rec);
        let (_, name) = rec::parse(key).map_err(corrupt())?;
        let record = stored_record(value).map_err(corrupt())?;
        report.records_read += 1;
        found.feed.insert((record.row.version, record.row.ordinal), key.to_vec());
        if !record.row.is_live() {
            return Ok(());
        }
        let ttl_ms = record.row.expire_time.map_or(0, |at| at.0.saturating_sub(record.row.update_time.0));
        let ttl_seconds = u32::try_from(ttl_ms / 1000).unwrap_or(u32::MAX);
        let content = Content { content_type: record.row.content_type, payload: record.payload, ttl_seconds };
        if content_hash(&content) != record.row.content_hash {
            report.fault(Some(user), "a record's payload is not the one its hash names");
        }
        found.usage.record_count += 1;
        found.usage.used_bytes += record.row.payload_len;
        let digest = found.collections.entry(name.collection).or_default();
        digest.count += 1;
        digest.sum.add(entry_hash(&name.record_id, record.row.version, record.row.content_hash));
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
            Some(record) if record == rec::key(user, &change.key) => {}
            Some(_) => report.fault(Some(user), "a change row names another record than the one at its place"),
            None => report.fault(Some(user), "a change row has no record"),
        }
        Ok(())
    }
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

/// A scan of a family with user prefix that stops at each user.
struct Users<'a> {
    scan: Scan<'a>,
    view: &'a View,
    family: Family,
    /// User of the row that comes next.
    user: Option<UserRef>,
    row: (Vec<u8>, Vec<u8>),
}

impl<'a> Users<'a> {
    fn new(view: &'a View, family: Family) -> Result<Self, StoreError> {
        let mut options = view.options();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        let scan = Scan::new(view.generation(), family, Bounds::all(), options)?;
        let mut users = Self { scan, view, family, user: None, row: Default::default() };
        users.advance()?;
        Ok(users)
    }

    fn each(
        &mut self,
        user: UserRef,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        while self.user == Some(user) {
            visit(&self.row.0, &self.row.1)?;
            self.advance()?;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<(), StoreError> {
        self.user = match self.scan.next()? {
            None => None,
            Some((key, value)) => {
                self.row = (key.to_vec(), value.to_vec());
                let parsed = crate::keyspace::split_user("key", key);
                let (user, _) = parsed.map_err(self.view.generation().corrupt(self.family))?;
                if self.family == Family::Usr {
                    usr::parse(key).map_err(self.view.generation().corrupt(self.family))?;
                }
                Some(user)
            }
        };
        Ok(())
    }
}
