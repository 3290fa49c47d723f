use super::*;
use crate::attest::{NodeKey, Witness};
use crate::fixture::{Folder, GROUP, History, Node, run};
use crate::sealing::Sealing;
use crate::snapshot::ship_snapshot;

/// A log in segments of 6, and a snapshot in the middle and one at the end, a layer over the first.
fn archive() -> (Folder, History) {
    let folder = Folder::new();
    let mut history = History::found(5);
    history.stock(30, 2000);
    history.live(20);
    let node = Node::new();
    run(async {
        let lineage = history.open(&folder.destination()).await;
        node.apply(&history.entries);
        ship_snapshot(&lineage, GROUP, &node.checkpoint(), &node.options(), &|_, _| {}).await.expect("ships");
        let middle = history.last().index + 1;
        history.live(10);
        node.apply(&history.range(middle, u64::MAX));
        ship_snapshot(&lineage, GROUP, &node.checkpoint(), &node.options(), &|_, _| {}).await.expect("ships");
        history.ship(&lineage, 0, 6).await;
    });
    (folder, history)
}

fn look(folder: &Folder, history: &History, level: Level) -> VerifyReport {
    run(verify(&folder.destination(), &history.facts.id, level)).expect("looks")
}

fn objects(folder: &Folder, history: &History) -> Vec<String> {
    let listed = run(folder.destination().list(&history.facts.id.to_string())).expect("lists");
    listed.into_iter().map(|found| found.path).collect()
}

#[test]
fn a_whole_archive_is_good() {
    let (folder, history) = archive();
    for level in [Level::Presence, Level::Bytes] {
        let report = look(&folder, &history, level);
        assert_eq!(report.bad, []);
        assert_eq!(report.objects, objects(&folder, &history).len() as u64);
        let log = (level == Level::Bytes).then_some((GROUP, (0, history.last().index)));
        assert_eq!(report.log, log.into_iter().collect());
    }
    assert!(objects(&folder, &history).len() > 15);
    assert!(objects(&folder, &history).iter().any(|object| object.contains("/patch/")));
}

/// Each signature is good, and yet one of the two is not the node's.
#[test]
fn a_node_that_signs_with_two_keys_is_named() {
    let (folder, history) = archive();
    let id = history.facts.id;
    let snapshots = run(crate::list_snapshots(&folder.destination(), &id, GROUP)).expect("lists");
    let sign = |seed: u8, object: &str, index: u64| {
        let destination = folder.destination();
        let read = crate::snapshot::read_manifest(&destination, &id, GROUP, index);
        let (mut manifest, _) = run(read).expect("reads");
        let key = NodeKey::from_seed(&[seed; 32]);
        let (key, signature) = (key.public(), key.sign(&manifest.statement()));
        manifest.witnesses = vec![Witness { node: NodeId(1), key, signature }];
        manifest.previous = None;
        std::fs::write(folder.file(object), manifest.seal(&Sealing::default()).expect("seals").bytes).expect("writes");
    };
    snapshots.iter().for_each(|found| sign(1, &found.object, found.index));
    let report = look(&folder, &history, Level::Presence);
    assert_eq!((report.bad, report.attested + report.unattested), (vec![], 2));
    sign(2, &snapshots[1].object, snapshots[1].index);
    let report = look(&folder, &history, Level::Presence);
    let [(object, reason)] = &report.bad[..] else { panic!("{:?}", report.bad) };
    assert!(*object == snapshots[1].object && reason.contains("node 1 signed it with another key"), "{reason}");
}

/// Every object is whole, and yet what they make together is not the snapshot: only putting it together tells.
#[test]
fn layers_that_do_not_make_their_snapshot_are_named() {
    let (folder, history) = archive();
    let id = history.facts.id;
    let newest = run(crate::list_snapshots(&folder.destination(), &id, GROUP)).expect("lists").pop().expect("one");
    let (mut manifest, _) =
        run(crate::snapshot::read_manifest(&folder.destination(), &id, GROUP, newest.index)).expect("reads");
    manifest.composed.last_mut().expect("rows").plain_blake3 = [1; 32];
    std::fs::write(folder.file(&newest.object), manifest.seal(&Sealing::default()).expect("seals").bytes)
        .expect("writes");
    assert!(look(&folder, &history, Level::Presence).is_good());
    let report = look(&folder, &history, Level::Bytes);
    let named = |(named, reason): &(String, String)| *named == newest.object && reason.contains("do not make the rows");
    assert!(report.bad.iter().any(named), "{report:?}");
}

#[test]
fn a_flipped_bit_is_found_in_every_object() {
    let (folder, history) = archive();
    for (number, object) in objects(&folder, &history).iter().enumerate() {
        folder.flip(object, number * 7919 + 13);
        let report = look(&folder, &history, Level::Bytes);
        assert!(report.bad.iter().any(|(named, _)| named == object), "{object}: {:?}", report.bad);
        folder.flip(object, number * 7919 + 13);
    }
    assert!(look(&folder, &history, Level::Bytes).is_good());
}

/// After a damaged segment the chain is taken up again: it hides nothing that comes later.
#[test]
fn a_gap_after_a_damaged_segment_is_named_too() {
    let (folder, history) = archive();
    let all = objects(&folder, &history);
    let segments: Vec<&String> = all.iter().filter(|object| object.contains("/log/")).collect();
    folder.flip(segments[1], 99);
    std::fs::remove_file(folder.file(segments[3])).expect("removes");
    let report = look(&folder, &history, Level::Bytes);
    let bad: Vec<&String> = report.bad.iter().map(|(object, _)| object).collect();
    assert_eq!(bad, [segments[1], segments[3]], "{:?}", report.bad);
}

#[test]
fn a_truncated_object_is_found_in_every_kind() {
    let (folder, history) = archive();
    for object in objects(&folder, &history) {
        let good = std::fs::read(folder.file(&object)).expect("reads");
        for length in [0, good.len() / 2, good.len() - 1] {
            std::fs::write(folder.file(&object), &good[..length]).expect("writes");
            let report = look(&folder, &history, Level::Bytes);
            assert!(report.bad.iter().any(|(named, _)| *named == object), "{object} cut to {length}");
            if object.contains("/chunk/") {
                let report = look(&folder, &history, Level::Presence);
                assert!(report.bad.iter().any(|(named, _)| *named == object), "{object} cut to {length}, at level 0");
            }
        }
        std::fs::write(folder.file(&object), &good).expect("writes");
    }
}

#[test]
fn a_missing_object_is_named() {
    let (folder, history) = archive();
    let all = objects(&folder, &history);
    let is_segment = |object: &&String| object.contains("/log/");
    let ends = [all.iter().find(is_segment), all.iter().rfind(is_segment)];
    for object in &all {
        let good = std::fs::read(folder.file(object)).expect("reads");
        std::fs::remove_file(folder.file(object)).expect("removes");
        let report = look(&folder, &history, Level::Bytes);
        // The archive alone cannot know of a last segment, of a first one that a snapshot makes needless, or of a
        // snapshot that is not there.
        let silent = ends.contains(&Some(object)) || object.ends_with("/MANIFEST");
        assert_eq!(report.bad.iter().any(|(named, _)| named == object), !silent, "{object}: {:?}", report.bad);
        if object.contains("/chunk/") || object.ends_with("/LINEAGE") {
            let report = look(&folder, &history, Level::Presence);
            assert!(report.bad.iter().any(|(named, _)| named == object), "{object} at level 0");
        }
        std::fs::write(folder.file(object), good).expect("writes");
    }
}

#[test]
fn swapped_foreign_and_unknown_objects_are_named() {
    let (folder, history) = archive();
    let all = objects(&folder, &history);
    let segments: Vec<&String> = all.iter().filter(|object| object.contains("/log/")).collect();
    let swap = |a: &str, b: &str| {
        let (x, y) = (std::fs::read(folder.file(a)).expect("reads"), std::fs::read(folder.file(b)).expect("reads"));
        std::fs::write(folder.file(a), y).expect("writes");
        std::fs::write(folder.file(b), x).expect("writes");
    };
    swap(segments[1], segments[2]);
    let bad: Vec<String> = look(&folder, &history, Level::Bytes).bad.into_iter().map(|(object, _)| object).collect();
    assert_eq!(bad, [segments[1].clone(), segments[2].clone()]);
    swap(segments[1], segments[2]);

    std::fs::write(folder.file(&format!("{}/notes.txt", history.facts.id)), "hello").expect("writes");
    let report = look(&folder, &history, Level::Presence);
    assert_eq!(report.bad, [(format!("{}/notes.txt", history.facts.id), "it is no object of Holdfast".to_owned())]);
    std::fs::remove_file(folder.file(&format!("{}/notes.txt", history.facts.id))).expect("removes");

    // The same position in another lineage.
    let (other_folder, other) = (Folder::new(), History::found(6));
    run(async { other.ship(&other.open(&other_folder.destination()).await, 0, 6).await });
    let foreign = objects(&other_folder, &other).into_iter().find(|object| object.contains("/log/")).expect("one");
    std::fs::copy(other_folder.file(&foreign), folder.file(segments[0])).expect("copies");
    let report = look(&folder, &history, Level::Bytes);
    assert!(report.bad.iter().any(|(named, reason)| named == segments[0] && reason.contains("belongs to")));
}

/// One damaged object hides neither the other histories nor what else is wrong.
#[test]
fn a_whole_destination_is_looked_at_whatever_is_damaged() {
    let (folder, history) = archive();
    let (destination, other) = (folder.destination(), History::found(6));
    run(async { other.ship(&other.open(&destination).await, 0, 6).await });
    let all = run(verify_all(&destination, Level::Bytes)).expect("looks");
    assert_eq!((all.lineages, all.bad.len()), (2, 0), "{all:?}");
    assert!(all.objects > 15 && all.bytes > 1000, "{all:?}");

    let facts = ObjectName::Lineage.path(&history.facts.id);
    folder.flip(&facts, 99);
    let segment = objects(&folder, &other).into_iter().find(|object| object.contains("/log/")).expect("one");
    folder.flip(&segment, 99);
    let cluster = other.facts.id.to_string();
    let cluster = cluster.split('/').next().expect("a cluster");
    let foreign = ["notes.txt".to_owned(), format!("{cluster}/notes.txt"), format!("{cluster}/x/y"), "photos/a".into()];
    for name in &foreign {
        let file = folder.file(name);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("makes");
        std::fs::write(file, "hello").expect("writes");
    }
    // What mkfs leaves is no archive's fault.
    std::fs::create_dir(folder.file("lost+found")).expect("makes");
    let all = run(verify_all(&destination, Level::Bytes)).expect("looks");
    let mut bad: Vec<&str> = all.bad.iter().map(|(object, _)| object.as_str()).collect();
    bad.sort_unstable();
    let mut expected = [
        facts.as_str(),
        segment.as_str(),
        foreign[0].as_str(),
        foreign[1].as_str(),
        &format!("{cluster}/x/"),
        "photos/",
    ];
    expected.sort_unstable();
    assert_eq!((all.lineages, bad), (2, expected.to_vec()));

    // The history that is whole can be restored; it is not taken for the newest.
    let error = run(crate::plan(&destination, GROUP, crate::Choose::default())).expect_err("the newest is not known");
    assert!(error.is_integrity() && error.to_string().contains(&facts), "{error}");
    assert!(error.to_string().contains(&format!("--lineage: {}", other.facts.id)), "{error}");
    folder.flip(&segment, 99);
    let plan = run(crate::plan(&destination, GROUP, crate::Choose::newest_of(other.facts.id))).expect("plans");
    assert_eq!((plan.last, plan.bad.len(), plan.bad[0].0.as_str()), (other.last(), 1, facts.as_str()));
    let chosen = crate::Choose::newest_of(history.facts.id);
    let error = run(crate::plan(&destination, GROUP, chosen)).expect_err("damaged");
    assert!(error.to_string().contains(&facts), "{error}");
}

#[test]
fn an_overlap_and_a_fork_inside_the_log_are_named() {
    let (folder, history) = archive();
    let id = history.facts.id;
    let overlap = Segment::new(GROUP, history.chain_before(8), history.range(8, 12)).expect("a segment");
    let object = overlap.name().path(&id);
    std::fs::write(folder.file(&object), overlap.seal(&id, &Sealing::default()).expect("seals").bytes).expect("writes");
    let report = look(&folder, &history, Level::Bytes);
    assert!(report.bad.iter().any(|(named, reason)| *named == object && reason.contains("overlaps")), "{report:?}");
    std::fs::remove_file(folder.file(&object)).expect("removes");

    let fork = Segment::new(GROUP, [7; 32], history.range(6, 12)).expect("a segment");
    let object = fork.name().path(&id);
    std::fs::write(folder.file(&object), fork.seal(&id, &Sealing::default()).expect("seals").bytes).expect("writes");
    let report = look(&folder, &history, Level::Bytes);
    assert!(report.bad.iter().any(|(named, reason)| *named == object && reason.contains("continue")), "{report:?}");
}

#[test]
fn a_snapshot_of_another_history_is_named() {
    let (folder, history) = archive();
    let id = history.facts.id;
    let newest = run(crate::list_snapshots(&folder.destination(), &id, GROUP)).expect("lists").pop().expect("one");
    let (mut manifest, _) =
        run(crate::snapshot::read_manifest(&folder.destination(), &id, GROUP, newest.index)).expect("reads");
    manifest.entry_chain = [1; 32];
    std::fs::write(folder.file(&newest.object), manifest.seal(&Sealing::default()).expect("seals").bytes)
        .expect("writes");
    let report = look(&folder, &history, Level::Bytes);
    assert!(report.bad.iter().any(|(named, reason)| *named == newest.object && reason.contains("not that of the log")));
}

#[test]
fn a_log_that_begins_late_needs_a_snapshot_up_to_there() {
    let (folder, mut history, node) = (Folder::new(), History::found(5), Node::new());
    history.live(20);
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    run(history.ship(&lineage, 10, 6));
    let report = look(&folder, &history, Level::Bytes);
    assert!(report.bad.iter().any(|(named, _)| named.ends_with("/L0/00000000000000000000")), "{:?}", report.bad);
    run(ship_snapshot(&lineage, GROUP, &node.checkpoint(), &node.options(), &|_, _| {})).expect("ships");
    let report = look(&folder, &history, Level::Bytes);
    assert_eq!((report.bad, report.log[&GROUP]), (vec![], (10, history.last().index)));
}

/// A snapshot that is shipped while the archive is listed: its manifest is seen, and its chunks are not.
#[test]
fn what_came_while_it_was_listed_is_left_to_the_next_look() {
    let (folder, history) = archive();
    let id = history.facts.id;
    let destination = folder.destination();
    let vouching = run(vouching_names(&destination, &id)).expect("lists");
    let all = run(destination.list(&id.to_string())).expect("lists");
    assert_eq!(settled(&vouching, all.clone()), all, "nothing came");
    let newest = all.iter().rfind(|found| found.path.ends_with("MANIFEST")).expect("one").path.clone();
    let before: BTreeSet<String> = vouching.into_iter().filter(|name| *name != newest).collect();
    let rest: Vec<Listed> = all.iter().filter(|found| found.path != newest).cloned().collect();
    assert_eq!(settled(&before, all), rest, "it came meanwhile; segments and chunks stay");
}
