//! The change feed of one user: one seek, then only what changed.
//!
//! Invariants: a page ends at the end of a commit; it neither misses nor repeats a row; its cost is that of its rows.

use holdfast_model::id::Version;
use holdfast_model::state::{ChangeRow, UserRef};
use holdfast_wire::durable;

use crate::error::StoreError;
use crate::keyspace::{Family, chg, user_prefix};
use crate::scan::Bounds;
use crate::view::{StoredRecord, View};

/// One page of changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Changes in order of (version, ordinal), whole commits.
    pub rows: Vec<(Version, u16, ChangeRow)>,
    /// There are more after the last one.
    pub more: bool,
}

/// A change with what is stored of its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Commit.
    pub version: Version,
    /// Place within it.
    pub ordinal: u16,
    /// What changed.
    pub row: ChangeRow,
    /// The record or tombstone.
    pub record: StoredRecord,
}

/// One page of changes with their records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FullChanges {
    /// Changes in order, whole commits.
    pub changes: Vec<Change>,
    /// There are more after the last one.
    pub more: bool,
}

impl View {
    /// Changes of a user after a version. The page ends with the commit that reaches `max_records` rows or `max_bytes`
    /// of rows (keys and values, not payloads); it holds at least one commit when there is one.
    pub fn changes(
        &self,
        user: UserRef,
        after: Version,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Changes, StoreError> {
        let Some(first) = after.0.checked_add(1).map(Version) else { return Ok(Changes::default()) };
        let bounds = Bounds::prefix(&user_prefix(user)).from(chg::key(user, first, 0));
        let mut page = Changes::default();
        let mut bytes = 0;
        let mut scan = self.scan(Family::Chg, bounds)?;
        while let Some((key, value)) = scan.next()? {
            let (_, version, ordinal) = chg::parse(key).map_err(self.generation().corrupt(Family::Chg))?;
            let new_commit = page.rows.last().is_some_and(|(last, ..)| *last != version);
            if new_commit && (page.rows.len() >= max_records || bytes >= max_bytes) {
                page.more = true;
                break;
            }
            bytes += key.len() + value.len();
            let row = durable::decode_change(value).map_err(self.generation().corrupt(Family::Chg))?;
            page.rows.push((version, ordinal, row));
        }
        Ok(page)
    }

    /// As [`View::changes`], with records; `max_bytes` counts payloads.
    pub fn changes_with_records(
        &self,
        user: UserRef,
        after: Version,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<FullChanges, StoreError> {
        let rows = self.changes(user, after, max_records, usize::MAX)?;
        let mut page = FullChanges { changes: Vec::with_capacity(rows.rows.len()), more: rows.more };
        let mut bytes = 0;
        for commit in rows.rows.chunk_by(|(a, ..), (b, ..)| a == b) {
            if !page.changes.is_empty() && bytes >= max_bytes {
                page.more = true;
                break;
            }
            let keys: Vec<_> = commit.iter().map(|(.., row)| row.key.clone()).collect();
            for ((version, ordinal, row), record) in commit.iter().zip(self.records(user, &keys)?) {
                let record = record.ok_or_else(|| self.dangling())?;
                bytes += record.payload.len();
                page.changes.push(Change { version: *version, ordinal: *ordinal, row: row.clone(), record });
            }
        }
        Ok(page)
    }
}
