use super::*;
use crate::destination::tests::{Fault, faulty};
use crate::fixture::{Folder, GROUP, History, Node, rows_of_checkpoint, run};

const QUIET: Progress<'static> = &|_, _| {};

fn shipped(lineage: &OpenLineage, node: &Node) -> Result<SnapshotReport, ArchiveError> {
    run(ship_snapshot(lineage, GROUP, &node.checkpoint(), ReadLimit::NONE, QUIET))
}

/// 300 records of 40 KiB.
fn large() -> History {
    let mut history = History::found(5);
    for record in 0..300 {
        history.put(&format!("user-{}", record % 9), &format!("record-{record}"), 40_000);
    }
    history
}

#[test]
fn a_snapshot_holds_the_rows_of_its_checkpoint() {
    let (folder, history, node) = (Folder::new(), large(), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let seen = std::sync::Mutex::new((0, 0));
    let report = run(ship_snapshot(&lineage, GROUP, &node.checkpoint(), ReadLimit::NONE, &|done, total| {
        *seen.lock().expect("lock") = (done, total);
    }))
    .expect("ships");
    let destination = folder.destination();
    let (manifest, _) = run(read_manifest(&destination, lineage.id(), GROUP, report.index)).expect("reads");
    assert_eq!((report.root, report.index, report.adopted), (manifest.root(), history.last().index, false));
    assert_eq!(manifest.entry_chain, history.chain_before(report.index + 1));
    assert_eq!((manifest.applied, manifest.records, manifest.users), (history.last(), 300, 9));
    assert_eq!(*seen.lock().expect("lock"), (report.bytes, report.bytes));
    let mut rows = Vec::new();
    for line in &manifest.chunks {
        rows.extend(run(read_chunk(&destination, lineage.id(), line)).expect("reads").rows());
    }
    assert_eq!(rows, rows_of_checkpoint(&node.checkpoint()));
    let other = ManifestChunk { first_key: b"another".to_vec(), ..manifest.chunks[0].clone() };
    let error = run(read_chunk(&destination, lineage.id(), &other)).expect_err("not as said");
    assert!(error.to_string().contains("what the manifest says"), "{error}");
    assert!(report.bytes > 12_000_000 && report.new_bytes > 10_000_000 && report.chunks > 5, "{report:?}");
}

/// Only the shortest time is known: a machine may be slower.
#[test]
fn a_checkpoint_is_read_no_faster_than_it_may_be() {
    const RATE: u64 = 8_000_000;
    let (folder, history, node) = (Folder::new(), large(), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let began = Instant::now();
    let report = run(ship_snapshot(&lineage, GROUP, &node.checkpoint(), ReadLimit::bytes_per_second(RATE), QUIET));
    let (took, bytes) = (began.elapsed().as_secs_f64(), report.expect("ships").bytes);
    // Nothing waits behind the last chunk, which has a quarter of it at most.
    let owed = bytes as f64 * 0.75 / RATE as f64;
    assert!(took >= owed, "{bytes} bytes in {took:.2} s, not {owed:.2} s or more");
}

#[test]
fn replicas_ship_one_snapshot() {
    let (folder, history) = (Folder::new(), large());
    let (a, b) = (Node::new(), Node::new());
    a.apply(&history.entries);
    for entry in history.entries.chunks(7) {
        b.apply(entry);
    }
    let lineage = run(history.open(&folder.destination()));
    let first = shipped(&lineage, &a).expect("ships");
    let second = shipped(&lineage, &b).expect("adopts");
    assert_eq!((second.root, second.index, second.chunks), (first.root, first.index, first.chunks));
    assert!(second.adopted && second.new_bytes == 0, "{second:?}");
}

#[test]
fn a_later_snapshot_ships_only_what_changed() {
    let (folder, mut history, node) = (Folder::new(), large(), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let first = shipped(&lineage, &node).expect("ships");
    let next = history.last().index + 1;
    history.put("user-3", "record-3", 40_000);
    node.apply(&history.range(next, u64::MAX));
    let second = shipped(&lineage, &node).expect("ships");
    assert_ne!(second.root, first.root);
    assert!(second.new_bytes < first.new_bytes * 7 / 10, "{} of {}", second.new_bytes, first.new_bytes);
    let (manifest, _) = run(read_manifest(&folder.destination(), lineage.id(), GROUP, second.index)).expect("reads");
    assert_eq!(manifest.previous.map(|previous| previous.index), Some(first.index));
}

#[test]
fn another_state_at_the_same_index_is_a_fork() {
    let (folder, mut history) = (Folder::new(), History::found(5));
    let mut fork = history.clone();
    history.put("user", "record", 10);
    fork.put("user", "other", 10);
    let (a, b) = (Node::new(), Node::new());
    a.apply(&history.entries);
    b.apply(&fork.entries);
    let lineage = run(history.open(&folder.destination()));
    shipped(&lineage, &a).expect("ships");
    let error = shipped(&lineage, &b).expect_err("a fork");
    assert!(matches!(error, ArchiveError::LineageFork { position, .. } if position == fork.last()), "{error}");
}

#[test]
fn a_chunk_that_vanished_is_shipped_again_and_a_damaged_one_is_named() {
    let (folder, mut history, node) = (Folder::new(), large(), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let first = shipped(&lineage, &node).expect("ships");
    let destination = folder.destination();
    let (manifest, _) = run(read_manifest(&destination, lineage.id(), GROUP, first.index)).expect("reads");
    // The family of user ids does not change with another write of a known user.
    let line = manifest.chunks.iter().find(|line| line.family == 2).expect("a chunk");
    let object = line.object().path(lineage.id());
    let good = std::fs::read(folder.file(&object)).expect("reads");

    std::fs::write(folder.file(&object), &good[1..]).expect("writes");
    let next = history.last().index + 1;
    history.put("user-3", "record-3", 10);
    node.apply(&history.range(next, u64::MAX));
    let error = shipped(&lineage, &node).expect_err("damaged");
    assert!(matches!(&error, ArchiveError::Corrupt { object: named, .. } if *named == object), "{error}");

    std::fs::remove_file(folder.file(&object)).expect("removes");
    shipped(&lineage, &node).expect("ships");
    assert_eq!(std::fs::read(folder.file(&object)).expect("reads"), good);
}

#[test]
fn a_manifest_names_only_chunks_that_were_read_back() {
    let (history, node) = (large(), Node::new());
    node.apply(&history.entries);
    let (store, destination) = faulty();
    let lineage = run(history.open(&destination));
    // Equal in length and not in bytes.
    store.set(Fault::Mangled);
    let error = shipped(&lineage, &node).expect_err("other bytes are there");
    assert!(matches!(&error, ArchiveError::Corrupt { object, .. } if object.contains("/chunk/")), "{error}");
    assert_eq!(run(list_snapshots(&destination, lineage.id(), GROUP)).expect("lists"), []);
}

#[test]
fn an_unfinished_snapshot_does_not_exist_and_is_finished_later() {
    let (folder, history, node) = (Folder::new(), large(), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let first = shipped(&lineage, &node).expect("ships");
    std::fs::remove_file(folder.file(&first.object)).expect("removes");
    assert_eq!(run(list_snapshots(&folder.destination(), lineage.id(), GROUP)).expect("lists"), []);
    let second = shipped(&lineage, &node).expect("ships");
    assert_eq!((second.root, second.adopted), (first.root, false));
    assert!(second.new_bytes < 10_000, "only the manifest is new: {}", second.new_bytes);
}

#[test]
fn a_damaged_older_manifest_does_not_keep_new_ones_away() {
    let (folder, mut history, node) = (Folder::new(), large(), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let first = shipped(&lineage, &node).expect("ships");
    folder.flip(&first.object, 77);
    let next = history.last().index + 1;
    history.put("user-3", "record-3", 10);
    node.apply(&history.range(next, u64::MAX));
    let second = shipped(&lineage, &node).expect("ships");
    assert!(second.index > first.index && second.new_bytes < first.new_bytes);
}

#[test]
fn a_checkpoint_that_cannot_be_read_says_so() {
    let (folder, history) = (Folder::new(), History::found(5));
    let lineage = run(history.open(&folder.destination()));
    let nowhere = folder.dir.path().join("nowhere");
    let error = run(ship_snapshot(&lineage, GROUP, &nowhere, ReadLimit::NONE, QUIET)).expect_err("no checkpoint");
    assert!(matches!(&error, ArchiveError::Store { path, .. } if *path == nowhere), "{error}");
    let empty = Node::new();
    let error = shipped(&lineage, &empty).expect_err("nothing applied");
    assert!(error.to_string().contains("before the first entry"), "{error}");
}
