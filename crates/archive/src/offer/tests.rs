use holdfast_store::{RawRow, StoredEntry};
use holdfast_wire::log::{EntryPayload, decode_entry};

use super::*;
use crate::fixture::{Folder, GROUP, History, NOW_MS, Node, rows_of, rows_of_checkpoint, run};
use crate::plan::plan;
use crate::restore::{RestoreSpec, RestoreTarget, restore};
use crate::snapshot::ship_snapshot;
use crate::{ArchiveError, LineageId};

const QUIET: Progress<'static> = &|_, _, _| {};

/// Two snapshots, the second a layer over the first, and a log before, between and after them in segments of 9.
struct Archive {
    folder: Folder,
    history: History,
    /// Index of each snapshot.
    snapshots: [u64; 2],
}

impl Archive {
    fn new() -> Self {
        let folder = Folder::new();
        let mut history = History::found(5);
        history.stock(30, 4000);
        let node = Node::new();
        let mut snapshots = [0; 2];
        run(async {
            let lineage = history.open(&folder.destination()).await;
            let mut applied = 0;
            for snapshot in &mut snapshots {
                history.live(30);
                node.apply(&history.range(applied, u64::MAX));
                applied = history.last().index + 1;
                *snapshot = ship_snapshot(&lineage, GROUP, &node.checkpoint(), &node.options(), &|_, _| {})
                    .await
                    .expect("ships")
                    .index;
            }
            history.live(30);
            history.ship(&lineage, 0, 9).await;
        });
        Self { folder, history, snapshots }
    }

    fn offer(&self, choose: Choose) -> Result<Offer, ArchiveError> {
        run(offer(&self.folder.destination(), GROUP, choose, QUIET))
    }

    /// What the rules make of all entries up to `index`.
    fn rows_at(&self, index: u64) -> Vec<RawRow> {
        rows_at(&self.history, index)
    }

    fn restored(&self, plan: &RestorePlan) -> Vec<RawRow> {
        restored(&self.folder, plan)
    }

    fn objects(&self) -> Vec<String> {
        let listed = run(self.folder.destination().list(&self.history.facts.id.to_string())).expect("lists");
        listed.into_iter().map(|found| found.path).collect()
    }
}

fn rows_at(history: &History, index: u64) -> Vec<RawRow> {
    let node = Node::new();
    node.apply(&history.range(0, index + 1));
    rows_of_checkpoint(&node.checkpoint())
}

fn restored(folder: &Folder, plan: &RestorePlan) -> Vec<RawRow> {
    let dir = tempfile::tempdir().expect("directory");
    let target = RestoreTarget { path: dir.path().join("node"), node_id: 1, identity: [1; 16] };
    let spec = RestoreSpec {
        cluster_id: [0xee; 16],
        cluster_name: "oak".into(),
        incarnation: holdfast_model::id::Incarnation(0xee),
        members: vec![holdfast_model::id::NodeId(1)],
        held_back: Vec::new(),
    };
    let report = run(restore(&folder.destination(), plan, std::slice::from_ref(&target), &spec, QUIET));
    assert_eq!(report.expect("restores").last, plan.last);
    rows_of(&target.path, 1)
}

fn at(index: u64) -> Choose {
    Choose { at: At::Index(index), ..Choose::default() }
}

fn moment(ms: u64) -> Choose {
    Choose { at: At::Time(ms), ..Choose::default() }
}

#[test]
fn every_entry_can_be_restored_up_to_and_the_newest_snapshot_before_it_is_used() {
    let archive = Archive::new();
    let [first, second] = archive.snapshots;
    let end = archive.history.last().index;
    for index in 1..=end {
        let plan = run(plan(&archive.folder.destination(), GROUP, at(index))).expect("plans");
        assert_eq!((plan.last.index, plan.chain), (index, archive.history.chain_before(index + 1)));
        let snapshot = [first, second].into_iter().rfind(|snapshot| *snapshot <= index).unwrap_or(0);
        assert_eq!(plan.snapshot_index(), snapshot);
    }
    for index in [1, 2, 9, first - 1, first, first + 1, second - 3, second, second + 7, end] {
        let offer = archive.offer(at(index)).expect("offers");
        assert!(offer.is_whole && offer.bad.is_empty());
        assert_eq!(archive.restored(&offer.plan), archive.rows_at(index), "index {index}");
    }
    let error = archive.offer(at(end + 1)).expect_err("beyond the end").to_string();
    assert!(error.contains(&format!("there is no entry {}", end + 1)) && error.contains(&end.to_string()), "{error}");
}

#[test]
fn a_moment_is_the_last_entry_before_the_logs_time_goes_beyond_it() {
    let archive = Archive::new();
    let entries = &archive.history.entries;
    let (oldest, newest) = (NOW_MS, NOW_MS + entries.len() as u64);
    // By the definition, entry by entry: a proposal was stamped as many milliseconds after the first as its index says.
    let stamp = |entry: &StoredEntry| match decode_entry(&entry.bytes).expect("an entry").payload {
        EntryPayload::Proposal(_) => NOW_MS + entry.position.index,
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    let by_hand = |ms: u64| {
        let before = entries.iter().take_while(|entry| stamp(entry) <= ms);
        before.last().map(|entry| entry.position.index).expect("an entry")
    };
    for ms in oldest + 1..=newest {
        let plan = run(plan(&archive.folder.destination(), GROUP, moment(ms))).expect("plans");
        assert_eq!(plan.last.index, by_hand(ms), "{ms}");
        assert!(plan.last_stamp_ms <= ms);
    }
    let offered = archive.offer(moment(NOW_MS + 40)).expect("offers");
    assert_eq!(archive.restored(&offered.plan), archive.rows_at(by_hand(NOW_MS + 40)));
    // The future holds what there is.
    assert_eq!(archive.offer(moment(u64::MAX)).expect("offers").plan.last, archive.history.last());
    let error = archive.offer(moment(oldest - 1)).expect_err("before the beginning");
    assert!(matches!(&error, ArchiveError::NoChoice { .. }), "{error}");
    assert!(error.to_string().contains("nothing from before that moment"), "{error}");
}

#[test]
fn a_point_before_a_restored_history_began_lies_in_the_one_that_it_continues() {
    let archive = Archive::new();
    let mut child = History::continued(&archive.history, 6);
    child.live(20);
    let cut = archive.history.last().index;
    run(async {
        let lineage = child.open(&archive.folder.destination()).await;
        child.ship(&lineage, cut + 1, 9).await;
    });
    let whole = History { entries: [&archive.history.entries[..], &child.entries[..]].concat(), ..child.clone() };
    for (index, lineage) in
        [(cut - 5, archive.history.facts.id), (cut, archive.history.facts.id), (cut + 4, child.facts.id)]
    {
        let offer = archive.offer(at(index)).expect("offers");
        assert_eq!((offer.plan.lineage.id, offer.plan.last.index), (lineage, index));
        assert_eq!(restored(&archive.folder, &offer.plan), rows_at(&whole, index), "index {index}");
    }
    // Both count their stamps from the same moment here: the child's first is older than the parent's last.
    let early = archive.offer(moment(NOW_MS)).expect_err("before both began").to_string();
    assert!(early.contains(&archive.history.facts.id.to_string()), "{early}");
}

/// One bit in every kind of object: what is offered is the newest point that the rest allows, and it is sound.
#[test]
fn whatever_is_damaged_the_newest_point_beside_it_is_offered() {
    let archive = Archive::new();
    let end = archive.history.last().index;
    let id = archive.history.facts.id;
    assert!(archive.objects().iter().any(|object| object.contains("/patch/")));
    for (number, object) in archive.objects().iter().enumerate() {
        archive.folder.flip(object, number * 104_729 + 3);
        let offer = archive.offer(Choose::default()).expect(object);
        let (_, name) = ObjectName::parse(object).expect("ours");
        let last = match name {
            // Not needed: the newest snapshot holds what is in it.
            ObjectName::Segment { first, .. } if first + 9 <= archive.snapshots[1] + 1 => end,
            ObjectName::Segment { first, .. } => first - 1,
            // Another snapshot and the log lead to the same end; the log names its history.
            ObjectName::Chunk { .. } | ObjectName::Patch { .. } | ObjectName::Manifest { .. } | ObjectName::Lineage => {
                end
            }
            ObjectName::Keys { .. }
            | ObjectName::Heartbeat { .. }
            | ObjectName::Joined { .. }
            | ObjectName::Verification { .. }
            | ObjectName::Tombstone { .. }
            | ObjectName::Pruned { .. } => {
                unreachable!("nothing is encrypted, and nobody beat")
            }
        };
        assert_eq!(offer.plan.last.index, last, "{object}: {:?}", offer.bad);
        let needs_less = matches!(name, ObjectName::Segment { .. }) && last == end;
        let needs_less = needs_less || offer.bad.is_empty();
        assert!(needs_less || offer.bad.iter().any(|(bad, _)| bad == object), "{object}: {:?}", offer.bad);
        assert_eq!(offer.is_whole, last == end && name != ObjectName::Lineage, "{object}");
        let again = Choose { lineage: Some(id), at: At::Index(last) };
        assert_eq!(archive.restored(&archive.offer(again).expect("as told").plan), archive.rows_at(last), "{object}");
        archive.folder.flip(object, number * 104_729 + 3);
    }
}

#[test]
fn several_faults_at_once_are_gone_around_one_after_the_other() {
    let archive = Archive::new();
    let id = archive.history.facts.id;
    let end = archive.history.last().index;
    for index in archive.snapshots {
        let object = ObjectName::Manifest { group: GROUP, index }.path(&id);
        std::fs::remove_file(archive.folder.file(&object)).expect("removes");
    }
    // Nobody can tell that they ever were.
    let offer = archive.offer(Choose::default()).expect("the log alone");
    assert_eq!((offer.plan.last.index, offer.plan.snapshot_index(), offer.is_whole), (end, 0, true));
    let segment = |first| ObjectName::segment(GROUP, first).path(&id);
    for first in [81, 45, 18] {
        archive.folder.flip(&segment(first), 700);
        let offer = archive.offer(Choose::default()).expect("what is before it");
        assert_eq!((offer.plan.last.index, offer.is_whole), (first - 1, false));
        assert!(offer.bad.iter().any(|(bad, _)| *bad == segment(first)), "{:?}", offer.bad);
    }
    std::fs::remove_file(archive.folder.file(&segment(9))).expect("removes");
    assert_eq!(archive.offer(Choose::default()).expect("the first one").plan.last.index, 8);
    archive.folder.flip(&segment(0), 700);
    let error = archive.offer(Choose::default()).expect_err("nothing is left");
    assert!(error.is_integrity(), "{error}");
}

#[test]
fn a_history_without_facts_is_not_taken_for_the_newest_when_another_one_continues_it() {
    let archive = Archive::new();
    let old: LineageId = archive.history.facts.id;
    let mut child = History::continued(&archive.history, 6);
    child.live(20);
    let first = archive.history.last().index + 1;
    run(async {
        let lineage = child.open(&archive.folder.destination()).await;
        child.ship(&lineage, first, 9).await;
    });
    archive.folder.flip(&ObjectName::Lineage.path(&old), 300);
    let offer = archive.offer(Choose::default()).expect("the child, through its parent");
    assert_eq!((offer.plan.lineage.id, offer.plan.last, offer.is_whole), (child.facts.id, child.last(), true));
    assert_eq!(offer.plan.bad.len(), 1, "{:?}", offer.plan.bad);
}
