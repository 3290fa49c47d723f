use super::*;
use crate::destination::tests::{Fault, faulty};
use std::time::Instant;

use holdfast_model::id::Stage;
use holdfast_store::RawRow;

use crate::compose::{read_object, read_rows};
use crate::fixture::{Folder, GROUP, History, Node, joined, rows_of_checkpoint, run};
use crate::payloads::Section;
use crate::sealing::{Compression, GenerationKey, Sealing};

const QUIET: Progress<'static> = &|_, _| {};

fn shipped(lineage: &OpenLineage, node: &Node) -> Result<SnapshotReport, ArchiveError> {
    run(ship_snapshot(lineage, GROUP, &node.checkpoint(), &SnapshotOptions::default(), QUIET))
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
    let report =
        run(ship_snapshot(&lineage, GROUP, &node.checkpoint(), &SnapshotOptions::default(), &|done, total| {
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
        rows.extend(run(read_object(&destination, lineage.id(), line.object(), line)).expect("reads").rows());
    }
    assert_eq!(joined(rows), rows_of_checkpoint(&node.checkpoint()));
    // Behind any payload, what is read begins in the chunk that holds it.
    let payloads = manifest.only(|section| section != Section::Rows);
    assert!(payloads.chunks.len() > 2, "{} chunks", payloads.chunks.len());
    let all: Vec<_> = run(async { read_rows(&destination, &payloads).try_collect().await }).expect("reads");
    let keys: Vec<Vec<u8>> = all.iter().flat_map(|chunk| chunk.rows()).map(|row| row.key).collect();
    for (place, key) in keys.iter().enumerate() {
        let part = payloads.clone().behind(key);
        let skipped: u64 = payloads.rows() - part.rows();
        assert!(skipped as usize <= place && part.chunks[0].first_key <= *key, "{place}: {skipped} skipped");
        assert!(part.chunks.get(1).is_none_or(|next| next.first_key > *key), "{place}: too little skipped");
    }
    assert_eq!(payloads.clone().behind(&[]), payloads);
    let other = ManifestChunk { first_key: b"another".to_vec(), ..manifest.chunks[0].clone() };
    let error = run(read_object(&destination, lineage.id(), other.object(), &other)).expect_err("not as said");
    assert!(error.to_string().contains("what the manifest says"), "{error}");
    assert!(report.bytes > 12_000_000 && report.new_bytes > 10_000_000 && report.chunks > 5, "{report:?}");
}

/// The rows of a snapshot, as a restore reads them.
fn rows_at(folder: &Folder, lineage: &OpenLineage, index: u64) -> Vec<RawRow> {
    run(async {
        let destination = folder.destination().with_keys(lineage.destination().shared_keys());
        let (manifest, _) = read_manifest(&destination, lineage.id(), GROUP, index).await.expect("reads");
        let chunks: Vec<_> = read_rows(&destination, &manifest).try_collect().await.expect("fits together");
        joined(chunks.iter().flat_map(|chunk| chunk.rows()))
    })
}

/// Applies what was added to a history, and ships a snapshot with what the node remembers.
fn next(lineage: &OpenLineage, history: &History, node: &Node) -> SnapshotReport {
    let applied = node.state.applied().position.map_or(0, |position| position.index + 1);
    node.apply(&history.range(applied, u64::MAX));
    run(ship_snapshot(lineage, GROUP, &node.checkpoint(), &node.options(), QUIET)).expect("ships")
}

#[test]
fn a_later_snapshot_of_the_same_node_ships_the_rows_that_changed() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.stock(1000, 4000);
    let lineage = run(history.open(&folder.destination()));
    let first = next(&lineage, &history, &node);
    assert_eq!((first.layers, first.base_index), (0, first.index));
    // Any ten of a thousand.
    (0..10).for_each(|n| history.put(&format!("user-{}", n * 97 % 7), &format!("stock-{}", n * 97), 4000));
    let second = next(&lineage, &history, &node);
    assert_eq!((second.layers, second.base_index), (1, first.index));
    assert!(second.new_bytes * 20 <= first.new_bytes, "{} of {}", second.new_bytes, first.new_bytes);
    assert_eq!(rows_at(&folder, &lineage, second.index), rows_of_checkpoint(&node.checkpoint()));

    // Another node that remembers nothing ships the same state in another way.
    let other = Node::new();
    other.apply(&history.entries);
    let again = shipped(&lineage, &other).expect("adopts");
    assert_eq!((again.root, again.adopted), (second.root, true));
}

/// Layers are laid over each other, and then over their base again: there are never more than a restore can bear, and each
/// snapshot is what its state was.
#[test]
fn layers_do_not_pile_up() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.stock(200, 4000);
    let lineage = run(history.open(&folder.destination()));
    let base = next(&lineage, &history, &node);
    let mut depths = Vec::new();
    let mut states = vec![(base.index, rows_of_checkpoint(&node.checkpoint()))];
    for round in 0..12 {
        history.put("user-1", &format!("stock-{}", 1 + 7 * round), 3000);
        history.put("user-2", &format!("new-{round}"), 100);
        history.delete("user-1", &format!("stock-{}", 1 + 7 * (round / 2)));
        let report = next(&lineage, &history, &node);
        let options = node.options();
        options.indexes.as_ref().expect("kept").keep(GROUP, &[report.index, report.base_index]).expect("removes");
        assert_eq!(report.base_index, base.index);
        depths.push(report.layers);
        states.push((report.index, rows_of_checkpoint(&node.checkpoint())));
    }
    assert_eq!(depths, [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4]);
    for (index, rows) in states {
        assert_eq!(rows_at(&folder, &lineage, index), rows, "snapshot {index}");
    }
}

/// Large payloads lie apart, by stage, and layers follow them: grown, shrunk, replaced, deleted and new.
#[test]
fn large_payloads_lie_apart_and_are_followed_by_layers() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.stock(300, 4000);
    for record in 0..60 {
        for collection in ["photos", "contacts", "x-maps", "x-more"] {
            history.put(&format!("user-{}", record % 7), &format!("{collection}/r{record}"), 20_000 + record);
        }
    }
    let lineage = run(history.open(&folder.destination()));
    let base = next(&lineage, &history, &node);
    let mut states = vec![(base.index, rows_of_checkpoint(&node.checkpoint()))];
    for round in 0..4 {
        let user = format!("user-{round}");
        history.put(&user, &format!("photos/r{round}"), 100);
        history.put(&user, &format!("photos/r{}", round + 7), 30_000);
        history.delete(&user, &format!("contacts/r{}", round + 14));
        history.put(&user, &format!("x-more/n{round}"), 5_000);
        // What became small in the round before is large again.
        history.put(&format!("user-{}", (round + 6) % 7), &format!("photos/r{}", (round + 6) % 7), 9_000);
        let report = next(&lineage, &history, &node);
        assert_eq!((report.layers, report.base_index), (round + 1, base.index));
        states.push((report.index, rows_of_checkpoint(&node.checkpoint())));
    }
    for (index, rows) in &states {
        assert_eq!(rows_at(&folder, &lineage, *index), *rows, "snapshot {index}");
    }
    // A node that remembers nothing reads them back, and finds what changed.
    let other = Node::new();
    history.put("user-1", "photos/r1", 100);
    history.delete("user-2", "photos/r2");
    let report = next(&lineage, &history, &other);
    assert_eq!((report.layers, report.base_index), (5, base.index));
    assert_eq!(rows_at(&folder, &lineage, report.index), rows_of_checkpoint(&other.checkpoint()));

    let (manifest, _) = run(read_manifest(&folder.destination(), lineage.id(), GROUP, report.index)).expect("reads");
    let stages: Vec<&str> = Stage::all().filter(|stage| manifest.has_payloads(*stage)).map(Stage::name).collect();
    assert_eq!(stages, ["contacts", "photos", "x-*"]);
    let of = |section: Section| manifest.only(|one| one == section);
    let rows = of(Section::Rows);
    assert!(rows.plain_length() * 3 < manifest.plain_length(), "{} bytes without payloads", rows.plain_length());
    let sections = Stage::all().map(Section::Payloads).chain([Section::Rows]);
    assert_eq!(sections.map(|section| of(section).rows()).sum::<u64>(), manifest.rows());
    let photos = of(Section::Payloads(Stage::of_name("photos").expect("a stage")));
    let destination = folder.destination();
    let read: Vec<_> = run(async { read_rows(&destination, &photos).try_collect().await }).expect("reads");
    let keys: Vec<Vec<u8>> = read.iter().flat_map(|chunk| chunk.rows()).map(|row| row.key).collect();
    assert_eq!(keys.len() as u64, photos.rows());
    assert!(keys.iter().all(|key| String::from_utf8_lossy(key).contains("photos")));
}

#[test]
fn what_cannot_be_a_layer_is_a_new_base() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.stock(200, 4000);
    let lineage = run(history.open(&folder.destination()));
    let mut last = next(&lineage, &history, &node);
    let mut a_little_later = |break_it: &dyn Fn(&SnapshotReport)| {
        history.put("user-1", "stock-1", 4000);
        last = next(&lineage, &history, &node);
        assert_eq!((last.layers, last.base_index == last.index), (1, false), "a layer, if nothing is broken");
        break_it(&last);
        history.put("user-1", "stock-1", 4000);
        last = next(&lineage, &history, &node);
        assert_eq!((last.layers, last.base_index), (0, last.index));
        assert_eq!(rows_at(&folder, &lineage, last.index), rows_of_checkpoint(&node.checkpoint()));
    };
    // An object that the layer needs is gone.
    a_little_later(&|last| {
        let (manifest, _) = run(read_manifest(&folder.destination(), lineage.id(), GROUP, last.index)).expect("reads");
        let chunk = manifest.chunks.iter().max_by_key(|line| line.plain_length).expect("a chunk");
        std::fs::remove_file(folder.file(&chunk.object().path(lineage.id()))).expect("removes");
    });
}

/// Who knows nothing of the rows of a snapshot reads them from where it lies; once.
#[test]
fn a_snapshot_of_another_node_is_read_back_and_bears_a_layer() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.stock(200, 4000);
    let lineage = run(history.open(&folder.destination()));
    let first = next(&lineage, &history, &node);
    let other = Node::new();
    let mut layers = Vec::new();
    let rows = other.dir.path().join("rows");
    let spoil = |path: &Path| {
        let mut bytes = std::fs::read(path).expect("reads");
        bytes[100] ^= 1;
        std::fs::write(path, bytes).expect("writes");
    };
    for round in 0..4 {
        history.put("user-1", "stock-1", 4000);
        history.delete("user-2", &format!("stock-{}", 2 + 7 * round));
        let report = next(&lineage, &history, &other);
        assert!(report.new_bytes * 20 <= first.new_bytes, "{} of {}", report.new_bytes, first.new_bytes);
        assert_eq!(report.base_index, first.index);
        assert_eq!(rows_at(&folder, &lineage, report.index), rows_of_checkpoint(&other.checkpoint()));
        layers.push(report.layers);
        // Known, then lost, then damaged.
        match round {
            1 => std::fs::remove_dir_all(&rows).expect("removes"),
            2 => std::fs::read_dir(&rows).expect("lists").for_each(|found| spoil(&found.expect("a file").path())),
            _ => {}
        }
    }
    assert_eq!(layers, [1, 2, 3, 4]);
}

/// What is read back is checked: nothing is laid over a damaged chunk, and none is taken over into a new base.
#[test]
fn a_damaged_chunk_that_is_read_back_is_named_and_shipped_again_once_it_is_moved_away() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.stock(200, 4000);
    let lineage = run(history.open(&folder.destination()));
    let first = next(&lineage, &history, &node);
    let (manifest, _) = run(read_manifest(&folder.destination(), lineage.id(), GROUP, first.index)).expect("reads");
    // The family of user ids does not change with another write of a known user.
    let line = manifest.chunks.iter().find(|line| line.family == 2).expect("a chunk");
    let object = line.object().path(lineage.id());
    folder.flip(&object, 4321);
    history.put("user-1", "stock-1", 4000);
    let other = Node::new();
    other.apply(&history.entries);
    let shipped = run(ship_snapshot(&lineage, GROUP, &other.checkpoint(), &other.options(), QUIET));
    let error = shipped.expect_err("its rows are the same, and they are damaged");
    assert!(matches!(&error, ArchiveError::Corrupt { object: named, .. } if *named == object), "{error}");

    std::fs::remove_file(folder.file(&object)).expect("moved away");
    let report = run(ship_snapshot(&lineage, GROUP, &other.checkpoint(), &other.options(), QUIET)).expect("ships");
    assert_eq!((report.layers, report.base_index), (0, report.index));
    assert_eq!(rows_at(&folder, &lineage, report.index), rows_of_checkpoint(&other.checkpoint()));
    assert_eq!(rows_at(&folder, &lineage, first.index).len(), manifest.rows() as usize, "the older one is whole again");
}

#[test]
fn many_changes_are_a_new_base() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.stock(100, 4000);
    let lineage = run(history.open(&folder.destination()));
    let first = next(&lineage, &history, &node);
    (0..20).for_each(|n| history.put("user-1", &format!("stock-{}", 1 + 7 * (n % 14)), 4000));
    let second = next(&lineage, &history, &node);
    assert_eq!((second.layers, second.base_index), (1, first.index), "14 of 100");
    // Together with what is in the layer it would be more than a quarter.
    (0..15).for_each(|n| history.put("user-2", &format!("stock-{}", 2 + 7 * (n % 14)), 4000));
    let third = next(&lineage, &history, &node);
    assert_eq!((third.layers, third.base_index), (0, third.index));
    for report in [second, third] {
        assert!(rows_at(&folder, &lineage, report.index).len() > 100);
    }
}

/// All objects of a snapshot are locked and deleted as one.
#[test]
fn a_new_generation_begins_with_a_base() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.stock(100, 4000);
    let sealed = |generation: u32, history: &History| {
        let key = Arc::new(GenerationKey::derive(&[1; 32], &history.facts.id, generation));
        let sealing = Sealing::with_key(Compression::Zstd, key, Bytes::from_static(b"age"));
        let keys = crate::Keyring::new(vec![crate::keys::Secret::of([1; 32])], Vec::new());
        run(history.open_sealed(&folder.destination().with_keys(Arc::new(keys)), &sealing))
    };
    let mut layers = Vec::new();
    for generation in [1, 1, 2, 2] {
        history.put("user-1", "stock-1", 4000);
        let lineage = sealed(generation, &history);
        let report = next(&lineage, &history, &node);
        layers.push(report.layers);
        assert_eq!(rows_at(&folder, &lineage, report.index), rows_of_checkpoint(&node.checkpoint()));
    }
    assert_eq!(layers, [0, 1, 0, 1]);
}

/// Only the shortest time is known: a machine may be slower.
#[test]
fn a_checkpoint_is_read_no_faster_than_it_may_be() {
    const RATE: u64 = 8_000_000;
    let (folder, history, node) = (Folder::new(), large(), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let began = Instant::now();
    let options = SnapshotOptions { limit: ReadLimit::bytes_per_second(RATE), indexes: None };
    let report = run(ship_snapshot(&lineage, GROUP, &node.checkpoint(), &options, QUIET));
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
    let error =
        run(ship_snapshot(&lineage, GROUP, &nowhere, &SnapshotOptions::default(), QUIET)).expect_err("no checkpoint");
    assert!(matches!(&error, ArchiveError::Store { path, .. } if *path == nowhere), "{error}");
    let empty = Node::new();
    let error = shipped(&lineage, &empty).expect_err("nothing applied");
    assert!(error.to_string().contains("before the first entry"), "{error}");
}
