use holdfast_store::RawRow;

use super::*;
use crate::fixture::{Folder, GROUP, History, Node, rows_of, rows_of_checkpoint, run};
use crate::plan::{Choose, plan};
use crate::sealing::Sealing;
use crate::snapshot::{SnapshotOptions, ship_snapshot};

const QUIET: Progress<'static> = &|_, _, _| {};

fn spec() -> RestoreSpec {
    RestoreSpec {
        cluster_id: [0xee; 16],
        cluster_name: "oak".into(),
        incarnation: Incarnation(0xee),
        members: vec![NodeId(1), NodeId(2), NodeId(3)],
        held_back: Vec::new(),
    }
}

fn targets(folder: &Folder, count: u64) -> Vec<RestoreTarget> {
    let target = |node_id| RestoreTarget {
        path: folder.dir.path().join(format!("node-{node_id}")),
        node_id,
        identity: [node_id as u8; 16],
    };
    (1..=count).map(target).collect()
}

/// An archive of a history, and the rows of a node that applied all of it.
struct Archive {
    folder: Folder,
    history: History,
    rows: Vec<RawRow>,
}

impl Archive {
    /// Log in segments of 9; two snapshots before the last writes, if wanted, the second a layer over the first.
    fn new(snapshot: bool) -> Self {
        let folder = Folder::new();
        let mut history = History::found(5);
        history.stock(30, 3000);
        history.live(45);
        let node = Node::new();
        node.apply(&history.entries);
        let middle = history.last().index + 1;
        history.live(15);
        let rest = history.last().index + 1;
        run(async {
            let lineage = history.open(&folder.destination()).await;
            for layers in 0..if snapshot { 2 } else { 0 } {
                let (checkpoint, options) = (node.checkpoint(), node.options());
                let shipped = ship_snapshot(&lineage, GROUP, &checkpoint, &options, &|_, _| {}).await.expect("ships");
                assert_eq!(shipped.layers, layers);
                node.apply(&if layers == 0 { history.range(middle, rest) } else { Vec::new() });
            }
            history.live(40);
            history.ship(&lineage, 0, 9).await;
        });
        node.apply(&history.range(if snapshot { rest } else { middle }, u64::MAX));
        let rows = rows_of_checkpoint(&node.checkpoint());
        Self { folder, history, rows }
    }

    fn plan(&self) -> Result<RestorePlan, ArchiveError> {
        run(plan(&self.folder.destination(), GROUP, Choose::default()))
    }

    fn restore(&self, targets: &[RestoreTarget]) -> Result<RestoreReport, ArchiveError> {
        let plan = self.plan()?;
        run(restore(&self.folder.destination(), &plan, targets, &spec(), QUIET))
    }

    fn objects(&self) -> Vec<String> {
        let listed = run(self.folder.destination().list(&self.history.facts.id.to_string())).expect("lists");
        listed.into_iter().map(|found| found.path).collect()
    }

    /// The newest segment wholly after the snapshot, but not the last one.
    fn needed_segment(&self) -> String {
        let plan = self.plan().expect("plans");
        let segments = &plan.log[0].segments;
        segments[segments.len() - 2].object.clone()
    }
}

#[test]
fn a_snapshot_and_the_log_after_it_give_the_same_rows_in_every_directory() {
    let archive = Archive::new(true);
    let targets = targets(&archive.folder, 3);
    let report = archive.restore(&targets).expect("restores");
    let last = archive.history.last();
    assert_eq!((report.last, report.chain), (last, archive.history.chain_before(last.index + 1)));
    assert!(report.rows > 100 && report.entries == 43, "{report:?}");
    let parent = report.genesis.parent.clone().expect("a parent");
    assert_eq!((parent.index, parent.chain, report.genesis.epoch), (last.index, report.chain, 2));
    assert_eq!(parent.incarnation, archive.history.facts.id.incarnation);
    assert_eq!(parent.snapshot_index, archive.plan().expect("plans").snapshot_index());
    assert!(parent.snapshot_index > 0);
    for target in &targets {
        assert_eq!(rows_of(&target.path, target.node_id), archive.rows);
        let mark = marker::read(&target.path).expect("reads").expect("a mark");
        assert_eq!(mark.node_id, target.node_id);
        assert_eq!(mark.opening(&target.path).expect("whole").genesis, report.genesis);
    }
}

#[test]
fn the_log_alone_gives_the_same_rows() {
    let archive = Archive::new(false);
    let targets = targets(&archive.folder, 1);
    let report = archive.restore(&targets).expect("restores");
    assert_eq!((report.rows, report.entries), (0, archive.history.entries.len() as u64));
    assert_eq!(rows_of(&targets[0].path, 1), archive.rows);
}

#[test]
fn a_snapshot_newer_than_the_log_is_enough() {
    let archive = Archive::new(true);
    let plan = archive.plan().expect("plans");
    for object in archive.objects().iter().filter(|object| object.contains("/log/")) {
        std::fs::remove_file(archive.folder.file(object)).expect("removes");
    }
    let targets = targets(&archive.folder, 1);
    let report = archive.restore(&targets).expect("restores");
    assert_eq!((report.last.index, report.entries), (plan.snapshot_index(), 0));
}

#[test]
fn a_continued_history_is_restored_through_its_parent_until_it_has_a_snapshot() {
    for parent_has_snapshot in [true, false] {
        let archive = Archive::new(parent_has_snapshot);
        let mut child = History::continued(&archive.history, 6);
        child.live(20);
        let node = Node::new();
        node.apply(&archive.history.entries);
        node.apply(&child.entries);
        // The old cluster lives on and ships what the new one must never see.
        let mut after = archive.history.clone();
        after.live(5);
        run(async {
            let destination = archive.folder.destination();
            let first = archive.history.last().index + 1;
            let lineage = after.open(&destination).await;
            after.ship(&lineage, first, 9).await;
            let old = Node::new();
            old.apply(&after.entries);
            ship_snapshot(&lineage, GROUP, &old.checkpoint(), &SnapshotOptions::default(), &|_, _| {})
                .await
                .expect("ships");
            child.ship(&child.open(&destination).await, first, 9).await;
            // Opened, and nothing shipped: adds nothing.
            History::continued(&child, 7).open(&destination).await;
        });
        let plan = archive.plan().expect("plans");
        assert_eq!((plan.lineage.id, plan.last, plan.log.len()), (child.facts.id, child.last(), 2));
        let cut = archive.history.last().index;
        assert!(plan.snapshot_index() <= cut && (plan.snapshot_index() > 0) == parent_has_snapshot);
        assert_eq!(plan.log[0].through, cut);
        assert!(plan.log[0].segments.iter().all(|found| found.first <= cut));
        let targets = targets(&archive.folder, 1);
        let report = archive.restore(&targets).expect("restores");
        assert_eq!(report.genesis.epoch, 3);
        assert_eq!(rows_of(&targets[0].path, 1), rows_of_checkpoint(&node.checkpoint()));

        let lineage = run(child.open(&archive.folder.destination()));
        run(ship_snapshot(&lineage, GROUP, &node.checkpoint(), &SnapshotOptions::default(), &|_, _| {}))
            .expect("ships");
        assert_eq!(archive.plan().expect("plans").log.len(), 1);
    }
}

#[test]
fn a_flipped_bit_in_any_needed_object_stops_everything() {
    let archive = Archive::new(true);
    let plan = archive.plan().expect("plans");
    let targets = targets(&archive.folder, 2);
    let manifest = plan.snapshot.as_ref().expect("a snapshot");
    let mut needed: Vec<String> = plan.log[0].segments.iter().map(|found| found.object.clone()).collect();
    needed.extend(manifest.chunks.iter().map(|line| line.object().path(&manifest.lineage)));
    needed.push(manifest.name().path(&manifest.lineage));
    needed.push(ObjectName::Lineage.path(&manifest.lineage));
    assert!(needed.len() > 8);
    for (number, object) in needed.iter().enumerate() {
        archive.folder.flip(object, number * 104_729 + 3);
        let error = archive.restore(&targets).expect_err(object);
        assert!(matches!(&error, ArchiveError::Corrupt { object: named, .. } if named == object), "{object}: {error}");
        assert!(error.is_integrity());
        archive.folder.flip(object, number * 104_729 + 3);
        // Nothing was even opened.
        assert!(targets.iter().all(|target| !target.path.exists()));
    }
    archive.restore(&targets).expect("restores");
}

#[test]
fn a_missing_object_stops_everything_and_is_named() {
    let archive = Archive::new(true);
    let manifest = archive.plan().expect("plans").snapshot.expect("a snapshot");
    let chunk = manifest.chunks[0].object().path(&manifest.lineage);
    for object in [archive.needed_segment(), chunk, ObjectName::Lineage.path(&manifest.lineage)] {
        let aside = archive.folder.dir.path().join("aside");
        std::fs::rename(archive.folder.file(&object), &aside).expect("moves");
        let error = archive.restore(&targets(&archive.folder, 1)).expect_err(&object);
        assert!(matches!(&error, ArchiveError::Missing { object: named, .. } if *named == object), "{object}: {error}");
        std::fs::rename(&aside, archive.folder.file(&object)).expect("moves");
    }
}

#[test]
fn swapped_segments_are_named() {
    let archive = Archive::new(true);
    let plan = archive.plan().expect("plans");
    let [a, b] = [&plan.log[0].segments[1].object, &plan.log[0].segments[2].object];
    let aside = archive.folder.dir.path().join("aside");
    std::fs::rename(archive.folder.file(a), &aside).expect("moves");
    std::fs::rename(archive.folder.file(b), archive.folder.file(a)).expect("moves");
    std::fs::rename(&aside, archive.folder.file(b)).expect("moves");
    let error = archive.restore(&targets(&archive.folder, 1)).expect_err("swapped");
    assert!(matches!(&error, ArchiveError::Corrupt { object, .. } if object == a), "{error}");
}

#[test]
fn a_segment_of_another_history_is_named() {
    let archive = Archive::new(true);
    let id = archive.history.facts.id;
    let object = archive.needed_segment();
    let Some((_, ObjectName::Segment { first, .. })) = ObjectName::parse(&object) else { panic!("{object}") };
    // Whole in itself, with this lineage's id, but from a history that went another way.
    let fork = crate::segment::Segment::new(GROUP, [4; 32], archive.history.range(first, first + 9));
    let bytes = fork.expect("a segment").seal(&id, &Sealing::default()).expect("seals").bytes;
    std::fs::write(archive.folder.file(&object), bytes).expect("writes");
    let error = archive.restore(&targets(&archive.folder, 1)).expect_err("a fork");
    assert!(matches!(&error, ArchiveError::Corrupt { object: named, .. } if *named == object), "{error}");
}

#[test]
fn a_killed_restore_begins_again_and_a_used_directory_is_left_alone() {
    let archive = Archive::new(true);
    let (plan, targets) = (archive.plan().expect("plans"), targets(&archive.folder, 2));
    // Killed after the directories were opened and one of them was loaded with nonsense.
    let opened = run(open_targets(&plan, &targets)).expect("opens");
    crate::fixture::load_rows(archive.rows.iter().take(5).cloned(), &opened[0]);
    drop(opened);
    let mark = marker::read(&targets[0].path).expect("reads").expect("a mark");
    assert!(mark.opening(&targets[0].path).is_err_and(|error| error.to_string().contains("did not end")));
    archive.restore(&targets).expect("restores");
    for target in &targets {
        assert_eq!(rows_of(&target.path, target.node_id), archive.rows);
    }
    // Whole, but no node has run: killed before it could be used, it begins again too.
    archive.restore(&targets).expect("restores again");
    assert_eq!(rows_of(&targets[1].path, 2), archive.rows);
    std::fs::write(targets[1].path.join("raft/CURRENT"), "x").expect("writes");
    let error = archive.restore(&targets).expect_err("used");
    assert!(error.to_string().contains("its node has run"), "{error}");
}

#[test]
fn a_directory_that_did_not_get_everything_is_not_whole() {
    let archive = Archive::new(true);
    let whole = archive.plan().expect("plans");
    let log_only = RestorePlan { snapshot: None, ..whole.clone() };
    for (plan, expected) in [(whole, "is not the manifest"), (log_only, "is not the end of the plan")] {
        let opened = run(open_targets(&plan, &targets(&archive.folder, 1))).expect("opens");
        let (sender, receiver) = mpsc::channel(1);
        sender.blocking_send(Part::End).expect("sends");
        let error = load::fill(&opened[0], &plan, receiver).expect_err("empty").to_string();
        assert!(error.contains(expected), "{error}");
        let (sender, receiver) = mpsc::channel(1);
        drop(sender);
        assert!(matches!(load::fill(&opened[0], &plan, receiver), Err(ArchiveError::Stopped { .. })));
    }
}

#[test]
fn a_directory_in_use_or_of_another_node_is_refused() {
    let archive = Archive::new(true);
    let targets = targets(&archive.folder, 1);
    let data = DataDir::open_or_create(&targets[0].path, 1, [1; 16]).expect("opens");
    assert!(matches!(archive.restore(&targets), Err(ArchiveError::Store { .. })), "locked");
    drop(holdfast_store::StateStore::open(&data, GROUP).expect("state"));
    drop(data);
    let error = archive.restore(&targets).expect_err("holds a state");
    assert!(error.to_string().contains("holds a node's log or state"), "{error}");
    let other = [RestoreTarget { node_id: 2, ..targets[0].clone() }];
    assert!(matches!(archive.restore(&other), Err(ArchiveError::Store { .. })), "another node's");
}

#[test]
fn what_cannot_be_chosen_is_said() {
    let folder = Folder::new();
    let choose = |choose| run(plan(&folder.destination(), GROUP, choose)).map(|plan| plan.lineage.id);
    assert!(choose(Choose::default()).expect_err("empty").to_string().contains("there is no backup here"));
    let (a, b) = (History::found(1), History::found(2));
    run(async {
        let destination = folder.destination();
        a.ship(&a.open(&destination).await, 0, 9).await;
        b.ship(&b.open(&destination).await, 0, 9).await;
    });
    let error = choose(Choose::default()).expect_err("two").to_string();
    assert!(error.contains(&a.facts.id.to_string()) && error.contains("pine-2"), "{error}");
    assert_eq!(choose(Choose::newest_of(b.facts.id)).expect("chosen"), b.facts.id);
    let unknown = History::found(3).facts.id;
    assert!(choose(Choose::newest_of(unknown)).expect_err("unknown").to_string().contains("there is no lineage"));
}

#[test]
fn a_plan_says_what_will_be_there() {
    let archive = Archive::new(true);
    let plan = archive.plan().expect("plans");
    assert_eq!(plan.last, archive.history.last());
    assert_eq!(plan.last_stamp_ms, crate::fixture::NOW_MS + archive.history.entries.len() as u64 - 1);
    assert_eq!(plan.lineage.cluster_name, "pine-5");
    assert!(plan.records() > 40 && plan.bytes() > 0 && plan.segments() > 3, "{} records", plan.records());
    let stages = std::sync::Mutex::new(Vec::new());
    let record = |stage, done, total| stages.lock().expect("lock").push((stage, done, total));
    run(restore(&archive.folder.destination(), &plan, &targets(&archive.folder, 1), &spec(), &record))
        .expect("restores");
    let stages = stages.into_inner().expect("lock");
    for stage in [RestoreStage::Verify, RestoreStage::Load, RestoreStage::Replay] {
        let of: Vec<_> = stages.iter().filter(|(of, _, _)| *of == stage).collect();
        let (_, done, total) = of.last().expect("progress");
        assert_eq!(done, total, "{stage:?}");
    }
}

/// Many small changes are more work than one large one of as many bytes, in one entry or in many.
#[test]
fn the_work_of_a_replay_is_told_by_bytes_entries_and_changes() {
    let mut history = History::found(5);
    let before = history.last().index + 1;
    (0..100).for_each(|record| history.put("user", &format!("record-{record:03}"), 500));
    let entries = history.range(before, u64::MAX);
    let bytes: u64 = entries.iter().map(|entry| entry.bytes.len() as u64).sum();
    assert_eq!(replay_weight(&entries), bytes + 100 * (ENTRY_WEIGHT + CHANGE_WEIGHT));
    assert_eq!(replay_weight(&entries[..3]) + replay_weight(&entries[3..]), replay_weight(&entries));
    assert_eq!(replay_weight(&[]), 0);
    let blank = History::found(6).range(0, 1);
    assert_eq!(replay_weight(&blank), blank[0].bytes.len() as u64 + ENTRY_WEIGHT, "nobody's change");
}
