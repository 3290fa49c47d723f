//! Tombstones: what is to go from a destination, said days before it goes; and what went.
//!
//! Both are evidence as of [`crate::evidence`]: text, signed by the key of who prunes, beside the archive. They stay for ever: they
//! are how a snapshot that was let go is told from one that somebody took away.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::StreamExt;
use holdfast_model::id::GroupId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::destination::{Destination, Put};
use crate::error::ArchiveError;
use crate::evidence::{self, Link, VerifierKey, first8, newest_of_each};
use crate::layout::{LineageId, ObjectName};

const TOMBSTONE: &str = "tombstone";
const PRUNED: &str = "pruned";
const READS_MAX: usize = 8;

/// A snapshot that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// Last entry in it.
    pub index: u64,
    /// Time of the log there: milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Hash over its rows, in hex.
    pub root: String,
    /// Hash that ends its manifest, in hex: another one under its name is not meant.
    pub seal: String,
}

/// What is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Version of this form.
    pub v: u32,
    /// `tombstone`.
    pub kind: String,
    /// History.
    pub lineage: String,
    /// Group.
    pub group: u32,
    /// When it was marked, by the clock of whoever did it: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Snapshots.
    pub snapshots: Vec<Marked>,
    /// Snapshots that were marked before, by their last entries, and stay after all.
    #[serde(default)]
    pub spared: Vec<u64>,
    /// The log up to this entry; `None` = none of it.
    pub log_through: Option<u64>,
    /// Marks of the log beyond this entry count no more.
    #[serde(default)]
    pub log_spared: Option<u64>,
    /// The newest words of everybody who spoke here before.
    #[serde(default)]
    pub after: Vec<Link>,
    /// Version of the program.
    pub program: String,
}

/// What went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Version of this form.
    pub v: u32,
    /// `pruned`.
    pub kind: String,
    /// History.
    pub lineage: String,
    /// Group.
    pub group: u32,
    /// When, by the clock of whoever did it: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Snapshots, by their last entries.
    pub snapshots: Vec<u64>,
    /// The log up to this entry; `None` = none of it.
    pub log_through: Option<u64>,
    /// Objects in all.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that a lock still held.
    pub held: u64,
    /// The newest words of everybody who spoke here before.
    #[serde(default)]
    pub after: Vec<Link>,
    /// Version of the program.
    pub program: String,
}

/// Both are laid down and read the same way.
pub(crate) trait Mark: Serialize + DeserializeOwned {
    const KIND: &'static str;
    fn name(&self, key: [u8; 8]) -> ObjectName;
    fn prefix(lineage: &LineageId, group: GroupId) -> String;
    fn head(&self) -> (u32, &str, &str);
    fn link(&mut self, after: Vec<Link>);
}

impl Mark for Tombstone {
    const KIND: &'static str = TOMBSTONE;

    fn name(&self, key: [u8; 8]) -> ObjectName {
        ObjectName::Tombstone { group: GroupId(self.group), at_ms: self.at_ms, key }
    }

    fn prefix(lineage: &LineageId, group: GroupId) -> String {
        lineage.tombstone_prefix(group)
    }

    fn head(&self) -> (u32, &str, &str) {
        (self.v, &self.kind, &self.lineage)
    }

    fn link(&mut self, after: Vec<Link>) {
        self.after = after;
    }
}

impl Mark for Pruned {
    const KIND: &'static str = PRUNED;

    fn name(&self, key: [u8; 8]) -> ObjectName {
        ObjectName::Pruned { group: GroupId(self.group), at_ms: self.at_ms, key }
    }

    fn prefix(lineage: &LineageId, group: GroupId) -> String {
        lineage.pruned_prefix(group)
    }

    fn head(&self) -> (u32, &str, &str) {
        (self.v, &self.kind, &self.lineage)
    }

    fn link(&mut self, after: Vec<Link>) {
        self.after = after;
    }
}

impl Tombstone {
    /// One that marks nothing yet.
    pub fn new(lineage: &LineageId, group: GroupId, at_ms: u64) -> Self {
        Self {
            v: 1,
            kind: TOMBSTONE.into(),
            lineage: lineage.to_string(),
            group: group.0,
            at_ms,
            snapshots: Vec::new(),
            spared: Vec::new(),
            log_through: None,
            log_spared: None,
            after: Vec::new(),
            program: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Reads one that lies under its name, and the key that signed it.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn open(object: &str, bytes: &Bytes) -> Result<(Self, [u8; 32]), ArchiveError> {
        open(object, bytes)
    }
}

impl Pruned {
    /// One that tells of nothing yet.
    pub fn new(lineage: &LineageId, group: GroupId, at_ms: u64) -> Self {
        Self {
            v: 1,
            kind: PRUNED.into(),
            lineage: lineage.to_string(),
            group: group.0,
            at_ms,
            snapshots: Vec::new(),
            log_through: None,
            objects: 0,
            bytes: 0,
            held: 0,
            after: Vec::new(),
            program: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Reads one that lies under its name, and the key that signed it.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn open(object: &str, bytes: &Bytes) -> Result<(Self, [u8; 32]), ArchiveError> {
        open(object, bytes)
    }
}

fn open<T: Mark>(object: &str, bytes: &Bytes) -> Result<(T, [u8; 32]), ArchiveError> {
    let bad = |reason: &str| ArchiveError::corrupt(object, reason);
    let (lineage, name) = ObjectName::parse(object).ok_or_else(|| bad("nothing has such a name"))?;
    let (mark, key) = evidence::open::<T>(object, bytes)?;
    let (v, kind, of) = mark.head();
    if (v, kind) != (1, T::KIND) {
        return Err(bad("it is of a kind that a newer build writes"));
    }
    if of != lineage.to_string() || mark.name(first8(&key)) != name {
        return Err(bad("it is of another history, of another moment or by another key than its name says"));
    }
    Ok((mark, key))
}

/// What the marks of a group say together, in the order of their times: what is to go, or went, and was not spared since.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Snapshots by their index and the seal of their manifest, in hex: when the first mark that stands was made, by whichever
    /// clock that is later.
    pub(crate) snapshots: BTreeMap<(u64, String), u64>,
    /// Ends of the parts of the log, and when each was marked.
    pub(crate) log: Vec<(u64, u64)>,
    /// What somebody marked whose word does not count.
    pub(crate) by_strangers: BTreeSet<u64>,
    /// These.
    pub(crate) strangers: BTreeSet<[u8; 32]>,
}

impl Marks {
    /// Reads the marks under these names, each with when it was stored, ascending. What does not open marks nothing: anybody can
    /// lay it there.
    pub(crate) async fn read(
        destination: &Destination,
        names: Vec<(String, u64)>,
        trusted: &BTreeSet<[u8; 32]>,
    ) -> Result<Self, ArchiveError> {
        let read = |(object, stored_ms): (String, u64)| async move {
            let opened = destination.get(&object).await.and_then(|bytes| Tombstone::open(&object, &bytes));
            (opened, stored_ms)
        };
        let mut marks = Self::default();
        let mut reads = futures::stream::iter(names).map(read).buffered(READS_MAX);
        while let Some((opened, stored_ms)) = reads.next().await {
            match opened {
                Ok((mark, key)) if trusted.contains(&key) => marks.take(mark, stored_ms),
                Ok((mark, key)) => {
                    marks.strangers.insert(key);
                    marks.by_strangers.extend(mark.snapshots.iter().map(|one| one.index));
                }
                Err(error) => drop(error.fault().ok_or(error)?),
            }
        }
        Ok(marks)
    }

    fn take(&mut self, mark: Tombstone, stored_ms: u64) {
        self.snapshots.retain(|(index, _), _| !mark.spared.contains(index));
        if let Some(spared) = mark.log_spared {
            self.log.retain(|(through, _)| *through <= spared);
        }
        let marked_ms = mark.at_ms.max(stored_ms);
        for one in mark.snapshots {
            let first = self.snapshots.entry((one.index, one.seal)).or_insert(marked_ms);
            *first = marked_ms.min(*first);
        }
        self.log.extend(mark.log_through.map(|through| (through, marked_ms)));
    }

    /// Snapshots that are to go, or went.
    pub(crate) fn buried(&self) -> BTreeSet<u64> {
        self.snapshots.keys().map(|(index, _)| *index).collect()
    }
}

/// Signs it and lays it down; gives its name.
pub(crate) async fn lay_down<T: Mark>(
    mut mark: T,
    destination: &Destination,
    lineage: &LineageId,
    group: GroupId,
    key: &VerifierKey,
) -> Result<String, ArchiveError> {
    let public = key.public();
    let object = mark.name(first8(&public)).path(lineage);
    mark.link(newest_of_each(destination, &T::prefix(lineage, group), &object, &public).await?);
    let bytes = evidence::sign(&object, key, &mark)?;
    match destination.put_checked(&object, &bytes).await? {
        Put::Created | Put::Same => Ok(object),
        Put::Lost(_) => Err(ArchiveError::corrupt(&object, "something else lies in its place")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Folder, GROUP, run};
    use holdfast_model::id::Incarnation;

    #[test]
    fn a_mark_is_what_was_signed_under_its_name_and_nothing_else() {
        let (folder, lineage) = (Folder::new(), LineageId { cluster_id: [4; 16], incarnation: Incarnation(1) });
        let (destination, key) = (folder.destination(), VerifierKey::from_seed(&[5; 32]));
        let mut mark = Tombstone::new(&lineage, GROUP, 77);
        let (root, seal) = ("aa".into(), "bb".into());
        mark.snapshots.push(Marked { index: 9, time_ms: 8, root, seal });
        let object = run(lay_down(mark.clone(), &destination, &lineage, GROUP, &key)).expect("lays down");
        let bytes = run(destination.get(&object)).expect("reads");
        assert_eq!(Tombstone::open(&object, &bytes).expect("opens"), (mark.clone(), key.public()));
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Tombstone::open(&object, &bytes.into()).is_err(), "bit {bit}");
        }
        assert!(Pruned::open(&object, &bytes).is_err());
        assert!(Tombstone::open(&object.replace("77-", "78-"), &bytes).is_err());
        // The next one names it.
        let next = run(lay_down(Tombstone { at_ms: 78, ..mark }, &destination, &lineage, GROUP, &key)).expect("again");
        let (next, _) = Tombstone::open(&next, &run(destination.get(&next)).expect("reads")).expect("opens");
        let hash = crate::layout::hex(blake3::hash(&bytes).as_bytes());
        assert_eq!(next.after, [Link { object, blake3: hash }]);
    }
}
