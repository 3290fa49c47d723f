//! A device, as the API tells one to behave: it applies pages, keeps the token of the last one, and compares digests.
//!
//! Invariant: the model is written from the API alone; tombstones remove, everything else replaces.

use std::collections::BTreeMap;

use holdfast_client::Client;
use holdfast_wire::v1;

use crate::failure::Failure;
use crate::target::page_of;
use crate::{check, check_eq};

/// Collection and record id.
pub type Key = (String, String);

/// Name of a record.
pub fn key_of(record: &v1::Record) -> Key {
    let key = record.key.clone().unwrap_or_default();
    (key.collection, key.record_id)
}

/// What a device has of one user.
#[derive(Debug, Clone, Default)]
pub struct Device {
    /// Owner.
    pub user: String,
    /// Live records.
    pub records: BTreeMap<Key, v1::Record>,
    /// Token of the last applied page; empty = none yet.
    pub token: String,
    /// Freshness it asks for; `None` = what the server does by itself.
    pub consistency: Option<v1::ReadConsistency>,
}

/// What one sync brought.
#[derive(Debug, Default)]
pub struct Synced {
    /// All pages, in order.
    pub pages: Vec<v1::ChangesPage>,
    /// Evaluation point of the last page.
    pub header: v1::ResponseHeader,
}

impl Synced {
    /// Records of all pages, in order.
    pub fn records(&self) -> Vec<&v1::Record> {
        self.pages.iter().flat_map(|page| &page.records).collect()
    }

    /// Names of all records, in order.
    pub fn keys(&self) -> Vec<Key> {
        self.records().into_iter().map(key_of).collect()
    }
}

impl Device {
    /// One that has nothing yet.
    pub fn new(user: &str) -> Self {
        Self { user: user.to_owned(), ..Self::default() }
    }

    /// Its next question.
    pub fn question(&self, page_size: i32) -> v1::GetChangesRequest {
        v1::GetChangesRequest {
            user_id: self.user.clone(),
            sync_token: self.token.clone(),
            page_size,
            consistency: self.consistency,
            ..Default::default()
        }
    }

    /// The same device, asking for linearizable answers.
    pub fn linearizable(&self) -> Self {
        let level = v1::read_consistency::Level::Linearizable(v1::Linearizable {});
        Self { consistency: Some(v1::ReadConsistency { level: Some(level) }), ..self.clone() }
    }

    /// Takes a page over.
    pub fn apply(&mut self, page: &v1::ChangesPage) {
        for record in &page.records {
            match record.delete_time {
                Some(_) => drop(self.records.remove(&key_of(record))),
                None => drop(self.records.insert(key_of(record), record.clone())),
            }
        }
        self.token.clone_from(&page.next_sync_token);
    }

    /// Asks for one page and applies it.
    ///
    /// # Errors
    /// When no page comes.
    pub async fn step(&mut self, client: &Client, page_size: i32) -> Result<v1::ChangesPage, Failure> {
        let page = page_of(client.changes(self.question(page_size)).await?.outcome)?;
        check!(!page.next_sync_token.is_empty(), "expected a token on every page, saw an empty one");
        self.apply(&page);
        Ok(page)
    }

    /// Syncs to the end.
    ///
    /// # Errors
    /// When a page does not come, or there is no end.
    pub async fn sync(&mut self, client: &Client, page_size: i32) -> Result<Synced, Failure> {
        let mut synced = Synced::default();
        loop {
            let answer = client.changes(self.question(page_size)).await?;
            synced.header = answer.header;
            let page = page_of(answer.outcome)?;
            self.apply(&page);
            let more = page.more;
            synced.pages.push(page);
            if !more {
                return Ok(synced);
            }
            check!(synced.pages.len() < 2000, "expected the feed to end, saw 2000 pages");
        }
    }

    /// Digests of what it has, by collection.
    pub fn digests(&self) -> BTreeMap<String, (u64, [u8; 32])> {
        let mut digests: BTreeMap<String, (u64, [u8; 32])> = BTreeMap::new();
        for ((collection, _), record) in &self.records {
            let (count, sum) = digests.entry(collection.clone()).or_default();
            *count += 1;
            add(sum, entry_hash(record));
        }
        digests
    }

    /// Compares its own digests with those of a last page.
    ///
    /// # Errors
    /// When they differ.
    pub fn agrees_with(&self, page: &v1::ChangesPage) -> Result<(), Failure> {
        let theirs: BTreeMap<String, (u64, Vec<u8>)> =
            page.digests.iter().map(|one| (one.collection.clone(), (one.count, one.digest.to_vec()))).collect();
        let own: BTreeMap<String, (u64, Vec<u8>)> =
            self.digests().into_iter().map(|(name, (count, sum))| (name, (count, sum.to_vec()))).collect();
        check_eq!(theirs, own, "digests at more = false, recomputed from the records received");
        Ok(())
    }

    /// What people would compare: content of every live record.
    pub fn contents(&self) -> BTreeMap<Key, (String, Vec<u8>)> {
        let content = |record: &v1::Record| (record.content_type.clone(), record.payload.to_vec());
        self.records.iter().map(|(key, record)| (key.clone(), content(record))).collect()
    }
}

/// BLAKE3 of record id length, record id, version, content hash, as `CollectionDigest` defines it.
fn entry_hash(record: &v1::Record) -> [u8; 32] {
    let (_, id) = key_of(record);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(id.len() as u64).to_be_bytes());
    hasher.update(id.as_bytes());
    hasher.update(&record.version.to_be_bytes());
    hasher.update(&record.content_hash);
    *hasher.finalize().as_bytes()
}

/// Content hash as `Record.content_hash` defines it, for records without blobs.
pub fn content_hash(content_type: &str, payload: &[u8], ttl_seconds: u32) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for part in [content_type.as_bytes(), payload] {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.update(&0u64.to_be_bytes());
    hasher.update(&u64::from(ttl_seconds).to_be_bytes());
    hasher.finalize().as_bytes()[..16].to_vec()
}

/// Adds modulo 2^256, big-endian.
fn add(sum: &mut [u8; 32], term: [u8; 32]) {
    let mut carry = 0u16;
    for (a, b) in sum.iter_mut().zip(term).rev() {
        let total = u16::from(*a) + u16::from(b) + carry;
        *a = (total & 0xff) as u8;
        carry = total >> 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_carry_and_wrap() {
        let mut sum = [0xff; 32];
        let mut one = [0; 32];
        one[31] = 1;
        add(&mut sum, one);
        assert_eq!(sum, [0; 32]);
        add(&mut sum, one);
        assert_eq!(sum, one);
    }

    #[test]
    fn a_tombstone_removes_and_a_page_moves_the_token() {
        let key = || Some(v1::RecordKey { collection: "notes".into(), record_id: "n".into() });
        let mut device = Device::new("u");
        let live = v1::Record { key: key(), version: 1, ..Default::default() };
        let page = |record, token: &str| v1::ChangesPage {
            records: vec![record],
            next_sync_token: token.into(),
            ..Default::default()
        };
        device.apply(&page(live.clone(), "a"));
        assert_eq!((device.records.len(), device.token.as_str()), (1, "a"));
        assert_eq!(device.digests()["notes"].0, 1);
        let gone = v1::Record { delete_time: Some(Default::default()), ..live };
        device.apply(&page(gone, "b"));
        assert_eq!((device.records.len(), device.token.as_str()), (0, "b"));
    }
}
