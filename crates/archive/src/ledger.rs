//! The ledger of a destination: all that was ever said of it, by whom and when, in one sequence.
//!
//! It is no object of its own: it is read from what verifiers, doctors and those who prune laid down, each signed, each naming the
//! newest words that were there before it with their hashes ([`crate::evidence`]). So it cannot be rewritten without its keys, nothing
//! can be taken out of its middle unseen, and whoever noted one hash of it sees whether that entry is still there.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use holdfast_model::id::GroupId;

use crate::destination::Destination;
use crate::doctor::Finding;
use crate::error::ArchiveError;
use crate::evidence::Link;
use crate::layout::{DOCTOR, DoctorVisit, LineageId, ObjectName, hex};
use crate::lineage::find_lineages;
use crate::tombstone::{Pruned, Tombstone};
use crate::verification::Verification;

const READS_MAX: usize = 8;

/// What was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Words {
    /// Somebody read a history, or drilled with it.
    Verification(Box<Verification>),
    /// Somebody tried what the destination lets its clients do.
    Verdict(Box<Finding>),
    /// Something was marked to go.
    Tombstone(Tombstone),
    /// Something went.
    Pruned(Pruned),
}

impl Words {
    /// The newest words that were there before.
    pub fn after(&self) -> &[Link] {
        match self {
            Self::Verification(said) => &said.after,
            Self::Verdict(said) => &said.after,
            Self::Tombstone(said) => &said.after,
            Self::Pruned(said) => &said.after,
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, by the clock of whoever said it: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Where it lies.
    pub object: String,
    /// BLAKE3 of its bytes, in hex.
    pub blake3: String,
    /// The key that signed it.
    pub key: [u8; 32],
    /// The history that it is about; `None` = the destination itself.
    pub lineage: Option<LineageId>,
    /// What it says.
    pub words: Words,
}

/// All entries, and what is wrong with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Ascending by time.
    pub entries: Vec<Entry>,
    /// Entries that are damaged, forged, changed or gone, with the reason.
    pub broken: Vec<(String, String)>,
}

impl Ledger {
    /// Entries that no other one names: the newest of each place and key.
    pub fn heads(&self) -> Vec<&Entry> {
        let named: BTreeSet<&str> =
            self.entries.iter().flat_map(|entry| entry.words.after()).map(|link| link.object.as_str()).collect();
        self.entries.iter().filter(|entry| !named.contains(entry.object.as_str())).collect()
    }
}

/// Reads the ledger of a destination, and follows every link in it.
///
/// # Errors
/// When the destination fails.
pub async fn ledger(destination: &Destination, group: GroupId) -> Result<Ledger, ArchiveError> {
    let found = find_lineages(destination).await?;
    let ids = found.lineages.iter().map(|facts| facts.id).chain(found.bad.iter().map(|(id, _)| *id));
    let mut prefixes = vec![DOCTOR.to_owned()];
    prefixes.extend(ids.flat_map(|id| [id.verify_prefix(group), id.tombstone_prefix(group), id.pruned_prefix(group)]));
    let mut objects = Vec::new();
    for prefix in prefixes {
        objects.extend(destination.list(&prefix).await?.into_iter().map(|found| found.path));
    }
    let mut ledger = Ledger::default();
    let read = |object: String| async move { read(destination, &object).await };
    let mut reads = futures::stream::iter(objects).map(read).buffered(READS_MAX);
    while let Some(read) = reads.next().await {
        match read {
            Ok(entry) => ledger.entries.extend(entry),
            Err(error) => ledger.broken.push(error.fault().ok_or(error)?),
        }
    }
    ledger.entries.sort_by(|a, b| (a.at_ms, &a.object).cmp(&(b.at_ms, &b.object)));
    follow(&mut ledger);
    Ok(ledger)
}

/// `None` = nobody's words: a canary.
async fn read(destination: &Destination, object: &str) -> Result<Option<Entry>, ArchiveError> {
    let parsed = ObjectName::parse(object);
    if parsed.is_none() && DoctorVisit::of_verdict(object).is_none() {
        return Ok(None);
    }
    let bytes = destination.get(object).await?;
    let blake3 = hex(blake3::hash(&bytes).as_bytes());
    let (at_ms, key, words) = match &parsed {
        Some((_, ObjectName::Tombstone { .. })) => {
            let (said, key) = Tombstone::open(object, &bytes)?;
            (said.at_ms, key, Words::Tombstone(said))
        }
        Some((_, ObjectName::Pruned { .. })) => {
            let (said, key) = Pruned::open(object, &bytes)?;
            (said.at_ms, key, Words::Pruned(said))
        }
        Some(_) => {
            let (said, key) = Verification::open(object, &bytes)?;
            (said.ended_ms, key, Words::Verification(Box::new(said)))
        }
        None => {
            let (said, key) = Finding::open(object, &bytes)?;
            (said.at_ms, key, Words::Verdict(Box::new(said)))
        }
    };
    Ok(Some(Entry { at_ms, object: object.to_owned(), blake3, key, lineage: parsed.map(|(id, _)| id), words }))
}

fn follow(ledger: &mut Ledger) {
    let hashes: BTreeMap<&str, &str> =
        ledger.entries.iter().map(|entry| (entry.object.as_str(), entry.blake3.as_str())).collect();
    let damaged: BTreeSet<&str> = ledger.broken.iter().map(|(object, _)| object.as_str()).collect();
    let mut broken = BTreeMap::new();
    for entry in &ledger.entries {
        for link in entry.words.after() {
            let reason = match hashes.get(link.object.as_str()) {
                Some(hash) if *hash == link.blake3 => continue,
                Some(_) => format!("it is not what {} saw: changed since", entry.object),
                None if damaged.contains(link.object.as_str()) => continue,
                None => format!("{} saw it, and it is gone", entry.object),
            };
            broken.entry(link.object.clone()).or_insert(reason);
        }
    }
    ledger.broken.extend(broken);
    ledger.broken.sort();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VerifierKey;
    use crate::doctor::examine;
    use crate::fixture::{Folder, GROUP, History, run};
    use crate::tombstone::lay_down;
    use crate::verification::Depth;

    fn key(seed: u8) -> VerifierKey {
        VerifierKey::from_seed(&[seed; 32])
    }

    /// Two verifiers in turn, a doctor, and somebody who prunes.
    fn scene() -> (Folder, LineageId) {
        let (folder, history) = (Folder::new(), History::found(5));
        let destination = folder.destination();
        run(history.open(&destination));
        let id = history.facts.id;
        for n in 1..=6 {
            let mut said = Verification::new(&id, GROUP, Depth::Read, n * 10);
            said.ended_ms = n * 10 + 1;
            run(said.record(&destination, &id, &key(n as u8 % 2))).expect("recorded");
            run(examine(&destination, n * 10 + 2, &key(7))).expect("looks");
            let mark = Tombstone::new(&id, GROUP, n * 10 + 3);
            run(lay_down(mark, &destination, &id, GROUP, &key(8))).expect("marked");
        }
        (folder, id)
    }

    #[test]
    fn it_is_in_the_order_of_time_and_its_newest_entries_are_its_heads() {
        let (folder, id) = scene();
        let ledger = run(ledger(&folder.destination(), GROUP)).expect("reads");
        assert_eq!((ledger.entries.len(), &ledger.broken[..]), (18, &[][..]));
        assert!(ledger.entries.is_sorted_by_key(|entry| entry.at_ms));
        assert!(ledger.entries.iter().all(|entry| entry.lineage.is_none_or(|of| of == id)));
        // The last verification names the one before it, which is by the other key, and the one before that by its own.
        let heads: Vec<u64> = ledger.heads().iter().map(|entry| entry.at_ms).collect();
        assert_eq!(heads, [61, 62, 63]);
    }

    #[test]
    fn whatever_is_taken_away_or_changed_is_missed_but_for_the_newest() {
        let (folder, _) = scene();
        let destination = folder.destination();
        let whole = run(ledger(&destination, GROUP)).expect("reads");
        let heads: Vec<String> = whole.heads().iter().map(|entry| entry.object.clone()).collect();
        for entry in &whole.entries {
            let file = folder.file(&entry.object);
            let bytes = std::fs::read(&file).expect("reads");
            std::fs::remove_file(&file).expect("removes");
            let without = run(ledger(&destination, GROUP)).expect("reads");
            let is_missed = without.broken.iter().any(|(object, why)| *object == entry.object && why.contains("gone"));
            assert_eq!(is_missed, !heads.contains(&entry.object), "{}", entry.object);
            std::fs::write(&file, &bytes).expect("writes");
            folder.flip(&entry.object, 77);
            let changed = run(ledger(&destination, GROUP)).expect("reads");
            assert!(changed.broken.iter().any(|(object, _)| *object == entry.object), "{}", entry.object);
            std::fs::write(&file, &bytes).expect("writes");
        }
        // Somebody who has a key says it otherwise.
        let victim = whole.entries.iter().find(|entry| entry.at_ms == 21).expect("one");
        let Words::Verification(said) = &victim.words else { panic!("{victim:?}") };
        let mut otherwise = said.clone();
        otherwise.fault("x", "made up");
        let bytes = crate::evidence::sign(&victim.object, &key(0), &otherwise).expect("signs");
        std::fs::write(folder.file(&victim.object), bytes).expect("writes");
        let rewritten = run(ledger(&destination, GROUP)).expect("reads");
        assert!(
            rewritten.broken.iter().any(|(object, why)| *object == victim.object && why.contains("changed")),
            "{:?}",
            rewritten.broken
        );
    }
}
