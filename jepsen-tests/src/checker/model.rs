//! The model: what the API says that a batch does to a user's records. Written from the API alone; the servers have
//! rules of their own, and one set of rules for both would share its mistakes.
//!
//! It knows versions, guards, puts and deletes. What it leaves out, no workload does: time, quotas, blobs, re-uploads.

use std::collections::BTreeMap;

use crate::history::calls::{Change, Changed, Clash, Guard};

/// Bits of a version's counter, below its epoch.
pub const COUNTER_BITS: u32 = 48;
/// A refused batch names so many guards that failed.
const CLASHES_MAX: usize = 32;

/// One user's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records<'a> {
    /// Newest version of the user.
    pub head: u64,
    /// Records and tombstones by `collection/record id`.
    pub stored: BTreeMap<&'a str, Stored<'a>>,
}

/// What is stored of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// Version of its last change.
    pub version: u64,
    /// Its content; `None` = a tombstone.
    pub content: Option<&'a str>,
}

/// What a batch must be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect.
    Done {
        /// The one version of all its changes; that of the user when nothing changed.
        version: u64,
        /// One per change.
        results: Vec<Changed>,
    },
    /// Guards did not hold, and nothing took effect.
    Refused(Vec<Clash>),
}

impl<'a> Records<'a> {
    /// What is stored under a key; version 0 = nothing, ever.
    pub fn get(&self, key: &str) -> Stored<'a> {
        self.stored.get(key).copied().unwrap_or(Stored { version: 0, content: None })
    }

    /// Judges all guards on what was there before, then takes all changes or none. A batch that changes something takes
    /// the version after the user's newest one, one that changes nothing takes none.
    pub fn apply(&mut self, changes: &'a [Change]) -> Outcome {
        let clashes = self.clashes(changes);
        if !clashes.is_empty() {
            return Outcome::Refused(clashes);
        }
        let next = self.head + 1;
        let results: Vec<Changed> = changes
            .iter()
            .map(|change| {
                let stored = self.get(&change.key);
                // The same content again, or a delete of what is not there, changes nothing.
                if stored.content == change.put.as_deref() {
                    return Changed { changed: false, version: stored.version };
                }
                let content = change.put.as_deref();
                self.stored.insert(&change.key, Stored { version: next, content });
                Changed { changed: true, version: next }
            })
            .collect();
        if results.iter().any(|result| result.changed) {
            self.head = next;
        }
        Outcome::Done { version: self.head, results }
    }

    fn clashes(&self, changes: &[Change]) -> Vec<Clash> {
        let clash = |(place, change): (u32, &Change)| {
            let stored = self.get(&change.key);
            let holds = match change.guard {
                None => true,
                Some(Guard::Version { version, .. }) => stored.version == version,
                Some(Guard::Absent) => stored.content.is_none(),
                Some(Guard::Exists) => stored.content.is_some(),
            };
            let deleted = stored.version != 0 && stored.content.is_none();
            (!holds).then_some(Clash { place, version: stored.version, deleted })
        };
        (0..).zip(changes).filter_map(clash).take(CLASHES_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, content: &str, guard: Option<Guard>) -> Change {
        Change { key: key.into(), put: Some(content.into()), guard }
    }

    fn delete(key: &str) -> Change {
        Change { key: key.into(), put: None, guard: None }
    }

    fn at(version: u64) -> Option<Guard> {
        Some(Guard::Version { version, of: String::new() })
    }

    #[track_caller]
    fn done(outcome: Outcome, version: u64, results: &[(bool, u64)]) {
        let results = results.iter().map(|(changed, version)| Changed { changed: *changed, version: *version });
        assert_eq!(outcome, Outcome::Done { version, results: results.collect() });
    }

    #[test]
    fn a_batch_takes_one_version_or_none() {
        let mut records = Records::default();
        let first = [put("a", "1", None), put("b", "1", None)];
        done(records.apply(&first), 1, &[(true, 1), (true, 1)]);
        let half = [put("a", "1", None), put("b", "2", None)];
        done(records.apply(&half), 2, &[(false, 1), (true, 2)]);
        let same = [put("a", "1", None), delete("c")];
        done(records.apply(&same), 2, &[(false, 1), (false, 0)]);
        let delete = [delete("a")];
        done(records.apply(&delete), 3, &[(true, 3)]);
        done(records.apply(&delete), 3, &[(false, 3)]);
        assert_eq!(records.get("a"), Stored { version: 3, content: None });
        done(records.apply(&first[..1]), 4, &[(true, 4)]);
    }

    #[test]
    fn one_guard_that_fails_refuses_all() {
        let mut records = Records::default();
        let first = [put("a", "1", at(0)), put("b", "1", Some(Guard::Absent))];
        done(records.apply(&first), 1, &[(true, 1), (true, 1)]);
        let before = records.clone();
        let refused = [put("a", "2", at(1)), put("b", "2", Some(Guard::Absent)), put("c", "2", Some(Guard::Exists))];
        let clashes =
            vec![Clash { place: 1, version: 1, deleted: false }, Clash { place: 2, version: 0, deleted: false }];
        assert_eq!(records.apply(&refused), Outcome::Refused(clashes));
        assert_eq!(records, before);
        let gone = [delete("a")];
        done(records.apply(&gone), 2, &[(true, 2)]);
        // A tombstone has a version, and is no live record.
        let again = [put("a", "3", Some(Guard::Exists))];
        assert_eq!(records.apply(&again), Outcome::Refused(vec![Clash { place: 0, version: 2, deleted: true }]));
        let again = [put("a", "3", Some(Guard::Absent))];
        done(records.apply(&again), 3, &[(true, 3)]);
    }
}
