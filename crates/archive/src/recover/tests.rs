use std::sync::mpsc;

use super::*;
use crate::fixture::{Folder, GROUP, History, run};
use crate::ship::SegmentShipper;

/// A data directory whose node logged `entries` and applied those up to `applied`.
fn dead(dir: &Path, entries: &[StoredEntry], applied: u64, purged: Option<u64>) {
    let data = DataDir::open_or_create(dir, 3, [3; 16]).expect("data directory");
    let (log, _) = LogStore::open(&data, GROUP, LogOptions::default()).expect("log");
    let (sender, done) = mpsc::sync_channel(1);
    log.append(entries.to_vec(), Box::new(move |end| sender.send(end).expect("waited for"))).expect("appends");
    done.recv().expect("answers").expect("durable");
    let state = StateStore::open(&data, GROUP).expect("state");
    let mut batch = state.begin();
    for entry in entries.iter().filter(|entry| entry.position.index <= applied) {
        holdfast_store::apply_entry(&mut batch, entry).expect("applies");
    }
    state.commit(batch).expect("commits");
    state.flush().expect("flushes");
    if let Some(purged) = purged {
        log.purge(entries.iter().find(|entry| entry.position.index == purged).expect("there").position)
            .expect("purges");
    }
    log.close();
}

fn history() -> History {
    let mut history = History::found(5);
    history.live(40);
    history
}

fn tail(history: &History, last: u64) -> Option<Tail> {
    Some(Tail { last: history.range(last, last + 1)[0].position, chain: history.chain_before(last + 1) })
}

#[test]
fn a_survivor_is_joined_by_the_chain_wherever_its_state_ends() {
    let history = history();
    let last = history.last().index;
    // The state is flushed now and then; a node that was killed early has only its log.
    for applied in [0, 10, 25, last] {
        let dir = tempfile::tempdir().expect("directory");
        dead(&dir.path().join("n"), &history.entries, applied, None);
        let survivor = Survivor::open(&dir.path().join("n"), GROUP).expect("opens");
        assert_eq!((survivor.last(), survivor.applied(), survivor.node_id()), (history.last(), applied, 3));
        assert_eq!(survivor.lineage().id, history.facts.id);
        let follows = |next: u64| Joint::Follows { next, chain: history.chain_before(next) };
        assert_eq!(survivor.join("vault", None).expect("joins"), follows(0));
        for end in [5, 10, 20, last - 1] {
            assert_eq!(survivor.join("vault", tail(&history, end)).expect("joins"), follows(end + 1), "{end}");
        }
        assert_eq!(survivor.join("vault", tail(&history, last)).expect("joins"), Joint::Behind);
        assert_eq!(survivor.entries(last).expect("reads"), history.range(last, last + 1));
        assert_eq!(survivor.newest_stamp_ms().expect("reads"), crate::fixture::NOW_MS + last);
    }
}

#[test]
fn what_was_never_committed_yields_to_the_archive_and_what_was_applied_does_not() {
    let history = history();
    let mut other = history.clone();
    other.entries.retain(|entry| entry.position.index < 20);
    other.term += 1;
    other.live(5);
    let dir = tempfile::tempdir().expect("directory");
    let open = |name: &str, applied: u64| {
        dead(&dir.path().join(name), &history.entries, applied, None);
        Survivor::open(&dir.path().join(name), GROUP).expect("opens")
    };
    assert_eq!(open("loose", 19).join("vault", tail(&other, 22)).expect("joins"), Joint::Differs);
    let fork = open("firm", 21).join("vault", tail(&other, 20));
    assert!(matches!(fork, Err(ArchiveError::LineageFork { .. })), "{fork:?}");
    let fork = open("firmer", 30).join("vault", tail(&other, 22));
    assert!(matches!(fork, Err(ArchiveError::LineageFork { .. })), "{fork:?}");
}

#[test]
fn a_log_that_begins_too_late_meets_nothing() {
    let history = history();
    let dir = tempfile::tempdir().expect("directory");
    dead(&dir.path().join("n"), &history.entries, 30, Some(25));
    let survivor = Survivor::open(&dir.path().join("n"), GROUP).expect("opens");
    for end in [None, tail(&history, 20)] {
        assert_eq!(survivor.join("vault", end).expect("joins"), Joint::Gap { first: 26 });
    }
    let follows = Joint::Follows { next: 26, chain: history.chain_before(26) };
    assert_eq!(survivor.join("vault", tail(&history, 25)).expect("joins"), follows);
    assert_eq!(survivor.after_state(), (31, history.chain_before(31)));
}

#[test]
fn a_directory_without_records_or_in_use_is_no_survivor() {
    let dir = tempfile::tempdir().expect("directory");
    let refused = |path: &Path| Survivor::open(path, GROUP).expect_err("refused").to_string();
    assert!(refused(&dir.path().join("none")).contains("no data directory"));
    assert!(!dir.path().join("none").exists(), "nothing is made of a wrong name");
    let fresh = dir.path().join("fresh");
    drop(DataDir::open_or_create(&fresh, 1, [1; 16]).expect("made"));
    assert!(refused(&fresh).contains("no cluster was founded on it"));
    let held = DataDir::open(&fresh).expect("opens");
    assert!(refused(&fresh).contains("LOCK"), "{}", refused(&fresh));
    drop(held);
}

#[test]
fn a_fence_ends_the_log_for_whoever_comes_later() {
    let (folder, history) = (Folder::new(), history());
    let successor = LineageId { cluster_id: [9; 16], incarnation: holdfast_model::id::Incarnation(9) };
    let other = LineageId { cluster_id: [8; 16], ..successor };
    run(async {
        let destination = folder.destination();
        let lineage = history.open(&destination).await;
        history.ship(&lineage, 0, 9).await;
        let end = history.last().index + 1;
        let mut old = SegmentShipper::new(lineage.clone(), GROUP);
        old.tail().await.expect("an end");
        let mut recovery = SegmentShipper::new(lineage.clone(), GROUP);
        let (tail_found, none) = recovery.end().await.expect("an end");
        assert_eq!((tail_found, none), (tail(&history, end - 1), None));
        let fence = recovery.fence(end, successor).await.expect("ends it");
        assert_eq!(fence, crate::Fence { group: GROUP, index: end, successor });
        // A second recovery finds the first one's.
        assert_eq!(recovery.fence(end, other).await.expect("is ended").successor, successor);

        // A leader that did not know, one that comes later, and one that was far behind.
        let mut alive = history.clone();
        alive.live(3);
        let is_fenced = |result: Result<(), ArchiveError>| match result {
            Err(ArchiveError::Fenced { index, successor: by, .. }) => assert_eq!((index, by), (end, successor)),
            other => panic!("not fenced: {other:?}"),
        };
        is_fenced(old.ship(&alive.range(end, end + 2), alive.chain_before(end)).await.map(drop));
        is_fenced(SegmentShipper::new(lineage.clone(), GROUP).tail().await.map(drop));

        // Everything up to there is restored, and nothing is wrong with it.
        let plan = crate::plan(&destination, GROUP, crate::Choose::default()).await.expect("plans");
        assert_eq!(plan.last, history.last());
        let report = crate::verify(&destination, &history.facts.id, crate::Level::Bytes).await.expect("looks");
        assert!(report.is_good(), "{:?}", report.bad);
    });
}

#[test]
fn a_fence_comes_second_where_somebody_ships() {
    let (folder, history) = (Folder::new(), history());
    let successor = LineageId { cluster_id: [9; 16], incarnation: holdfast_model::id::Incarnation(9) };
    run(async {
        let lineage = history.open(&folder.destination()).await;
        history.ship(&lineage, 0, 9).await;
        let mut recovery = SegmentShipper::new(lineage, GROUP);
        recovery.end().await.expect("an end");
        let late = recovery.fence(9, successor).await.expect_err("somebody shipped there");
        assert!(late.to_string().contains("a node of the old cluster is alive"), "{late}");
    });
}

#[test]
fn a_fence_in_a_wrong_place_is_named() {
    let (folder, history) = (Folder::new(), history());
    let successor = LineageId { cluster_id: [9; 16], incarnation: holdfast_model::id::Incarnation(9) };
    run(async {
        let destination = folder.destination();
        let lineage = history.open(&destination).await;
        history.ship(&lineage, 0, 9).await;
        let mut recovery = SegmentShipper::new(lineage, GROUP);
        let beyond = recovery.fence(history.last().index + 7, successor).await.expect("written");
        let object = beyond.name().path(&history.facts.id);
        let report = crate::verify(&destination, &history.facts.id, crate::Level::Bytes).await.expect("looks");
        assert_eq!(report.bad.iter().map(|(object, _)| object.as_str()).collect::<Vec<_>>(), [object.as_str()]);
        // Under another name its bytes are no fence of that place.
        let copied = crate::ObjectName::segment(GROUP, history.last().index + 9).path(&history.facts.id);
        std::fs::copy(folder.file(&object), folder.file(&copied)).expect("copies");
        let read = crate::log::read_segment(&destination, &history.facts.id, GROUP, history.last().index + 9).await;
        assert!(matches!(&read, Err(ArchiveError::Corrupt { object, .. }) if *object == copied), "{read:?}");
    });
}
