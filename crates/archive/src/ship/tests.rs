use super::*;
use crate::destination::tests::{Fault, faulty};
use crate::fixture::{Folder, GROUP, History, run};
use crate::log::{list_segments, read_listed, read_segment};

fn history() -> History {
    let mut history = History::found(5);
    history.live(20);
    history
}

/// The same up to `at`, then another leader's entries.
fn forked(history: &History, at: u64) -> History {
    let mut fork = history.clone();
    fork.entries.retain(|entry| entry.position.index < at);
    fork.term += 1;
    fork.live(20);
    fork
}

async fn shipper(history: &History, destination: &Destination) -> SegmentShipper {
    SegmentShipper::new(history.open(destination).await, GROUP)
}

async fn ship(
    shipper: &mut SegmentShipper,
    history: &History,
    from: u64,
    to: u64,
) -> Result<ShipOutcome, ArchiveError> {
    shipper.ship(&history.range(from, to), history.chain_before(from)).await
}

/// A shipper that shipped two segments of five entries.
async fn shipped(history: &History, destination: &Destination) -> SegmentShipper {
    let mut shipper = shipper(history, destination).await;
    for from in [0, 5] {
        ship(&mut shipper, history, from, from + 5).await.expect("ships");
    }
    shipper
}

fn tail(history: &History, last: u64) -> Tail {
    Tail { last: history.range(last, last + 1)[0].position, chain: history.chain_before(last + 1) }
}

fn is_fork<T: std::fmt::Debug>(result: Result<T, ArchiveError>, at: u64) {
    match result {
        Err(ArchiveError::LineageFork { position, .. }) => assert_eq!(position.index, at),
        other => panic!("no fork: {other:?}"),
    }
}

#[test]
fn segments_follow_each_other_and_a_new_leader_finds_the_end() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        let mut first = shipper(&history, &destination).await;
        assert_eq!(first.tail().await.expect("tail"), None);
        for (from, to) in [(0, 5), (5, 6), (6, 15)] {
            let outcome = ship(&mut first, &history, from, to).await.expect("ships");
            assert!(matches!(outcome, ShipOutcome::Created { bytes, .. } if bytes > 0));
            assert_eq!(outcome.tail(), tail(&history, to - 1));
        }
        let mut second = shipper(&history, &destination).await;
        let found = second.tail().await.expect("tail").expect("an end");
        assert_eq!(found, tail(&history, 14));
        ship(&mut second, &history, 15, 20).await.expect("ships");
        let names: Vec<u64> = list_segments(&destination, &history.facts.id, GROUP)
            .await
            .expect("lists")
            .into_iter()
            .map(|found| found.first)
            .collect();
        assert_eq!(names, [0, 5, 6, 15]);
    });
}

#[test]
fn the_same_history_is_adopted_however_it_was_cut() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        let mut a = shipper(&history, &destination).await;
        let mut b = shipper(&history, &destination).await;
        let mut c = shipper(&history, &destination).await;
        for shipper in [&mut a, &mut b, &mut c] {
            shipper.tail().await.expect("tail");
        }
        ship(&mut a, &history, 0, 10).await.expect("ships");
        // Equal, shorter and longer than what the winner wrote.
        for (other, to) in [(&mut b, 10), (&mut c, 4)] {
            let outcome = ship(other, &history, 0, to).await.expect("adopts");
            assert_eq!(outcome, ShipOutcome::Adopted { tail: tail(&history, 9) });
        }
        let mut d = shipper(&history, &destination).await;
        d.tail = Some(None);
        let outcome = ship(&mut d, &history, 0, 15).await.expect("adopts");
        assert_eq!(outcome, ShipOutcome::Adopted { tail: tail(&history, 9) });
        ship(&mut d, &history, 10, 15).await.expect("goes on");
    });
}

#[test]
fn what_another_destination_holds_is_copied_from_the_end_on() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let (long, short, empty) =
            (folder.destination_in("long"), folder.destination_in("short"), folder.destination_in("empty"));
        let mut from = shipper(&history, &long).await;
        for (first, end) in [(0, 5), (5, 12), (12, 15)] {
            ship(&mut from, &history, first, end).await.expect("ships");
        }
        // Its end lies inside a segment of the other.
        let mut to = shipper(&history, &short).await;
        ship(&mut to, &history, 0, 7).await.expect("ships");
        for (destination, to) in [(&short, &mut to), (&empty, &mut shipper(&history, &empty).await)] {
            assert_eq!(to.copy_from(&long).await.expect("copies"), Some(tail(&history, 14)));
            assert_eq!(to.copy_from(&long).await.expect("nothing is missing"), Some(tail(&history, 14)));
            let found = crate::verify(destination, &history.facts.id, crate::Level::Bytes).await.expect("verifies");
            assert!(found.is_good(), "{found:?}");
        }
        let listed = list_segments(&short, &history.facts.id, GROUP).await.expect("lists");
        assert_eq!(listed.iter().map(|found| found.first).collect::<Vec<_>>(), [0, 7, 12]);
    });
}

#[test]
fn another_history_or_one_that_begins_later_is_not_copied() {
    let (folder, history) = (Folder::new(), history());
    let fork = forked(&history, 7);
    run(async {
        let (ours, other, late) =
            (folder.destination_in("ours"), folder.destination_in("other"), folder.destination_in("late"));
        ship(&mut shipper(&fork, &other).await, &fork, 0, 12).await.expect("ships");
        ship(&mut shipper(&history, &late).await, &history, 10, 12).await.expect("ships");
        let mut to = shipper(&history, &ours).await;
        ship(&mut to, &history, 0, 9).await.expect("ships");
        is_fork(to.copy_from(&other).await, 9);
        let refused = to.copy_from(&late).await.expect_err("a gap");
        assert!(
            matches!(&refused, ArchiveError::Refused { reason } if reason.contains("begins after entry 9")),
            "{refused}"
        );
        assert_eq!(to.tail().await.expect("tail"), Some(tail(&history, 8)));
    });
}

#[test]
fn another_history_at_the_same_position_is_a_fork() {
    let (folder, history) = (Folder::new(), history());
    let fork = forked(&history, 7);
    run(async {
        let destination = folder.destination();
        let mut a = shipper(&history, &destination).await;
        let mut b = shipper(&fork, &destination).await;
        b.tail().await.expect("tail");
        ship(&mut a, &history, 0, 10).await.expect("ships");
        // It differs inside the segment.
        is_fork(ship(&mut b, &fork, 0, 12).await, 7);
        // It differs before the segment: only the chain shows it.
        let mut c = shipper(&fork, &destination).await;
        is_fork(ship(&mut c, &fork, 10, 12).await, 10);
        b.tail = Some(None);
        ship(&mut a, &history, 10, 12).await.expect("ships");
        b.tail = Some(Some(tail(&fork, 9)));
        is_fork(ship(&mut b, &fork, 10, 12).await, 10);
        // Equal entries, but on another chain.
        b.tail = Some(None);
        is_fork(b.ship(&history.range(10, 12), [3; 32]).await, 10);
        // And the archive is as it was.
        let last = read_segment(&destination, &history.facts.id, GROUP, 10).await.expect("reads");
        assert_eq!(last.entries(), history.range(10, 12));
    });
}

#[test]
fn a_new_leader_compares_the_end_with_its_own_history() {
    let (folder, history) = (Folder::new(), history());
    let destination = folder.destination();
    let fork = forked(&history, 7);
    let end = tail(&history, 9);
    end.check(&destination, Some((end.last, end.chain))).expect("the same");
    is_fork(end.check(&destination, Some((tail(&fork, 9).last, tail(&fork, 9).chain))), tail(&fork, 9).last.index);
    is_fork(end.check(&destination, Some((end.last, [0; 32]))), 9);
    is_fork(end.check(&destination, None), 9);
}

#[test]
fn entries_that_do_not_follow_the_end_are_refused() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        let mut a = shipper(&history, &destination).await;
        ship(&mut a, &history, 0, 5).await.expect("ships");
        for (from, to) in [(4, 8), (6, 8), (0, 3)] {
            let error = ship(&mut a, &history, from, to).await.expect_err("refused");
            assert!(matches!(error, ArchiveError::Refused { .. }), "{error}");
        }
        ship(&mut a, &history, 5, 8).await.expect("goes on");
    });
}

#[test]
fn a_damaged_end_is_named() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        let mut a = shipper(&history, &destination).await;
        ship(&mut a, &history, 0, 5).await.expect("ships");
        let object = ObjectName::segment(GROUP, 0).path(&history.facts.id);
        folder.flip(&object, 999);
        let error = shipper(&history, &destination).await.tail().await.expect_err("damaged");
        assert!(matches!(&error, ArchiveError::Corrupt { object: named, .. } if *named == object), "{error}");
    });
}

#[test]
fn what_is_not_seen_there_is_not_shipped() {
    let history = history();
    run(async {
        let (store, destination) = faulty();
        let mut a = shipper(&history, &destination).await;
        store.set(Fault::Swallowed);
        let error = ship(&mut a, &history, 0, 5).await.expect_err("nothing is there");
        assert!(matches!(error, ArchiveError::Missing { .. }), "{error}");
        store.set(Fault::ReplyLost);
        let outcome = ship(&mut a, &history, 0, 5).await.expect("is there");
        assert_eq!(outcome.tail(), tail(&history, 4));
        store.set(Fault::Mangled);
        let error = ship(&mut a, &history, 5, 8).await.expect_err("other bytes are there");
        assert!(matches!(error, ArchiveError::Corrupt { .. }), "{error}");
    });
}

/// A year of shipping is millions of names: a new leader asks for the last ones.
#[test]
fn the_end_is_found_without_a_list_of_the_whole_log() {
    let mut history = History::found(5);
    history.live(1300);
    let last = history.last().index;
    run(async {
        let (store, destination) = faulty();
        let lineage = history.open(&destination).await;
        history.ship(&lineage, 0, 50).await;
        let end = Some(tail(&history, last));
        store.lists();
        let at = |known: u64| SegmentShipper::new(lineage.clone(), GROUP).known_to(known);
        assert_eq!(at(last).tail().await.expect("tail"), end);
        let after = ObjectName::segment(GROUP, last - 1000).path(lineage.id());
        assert_eq!(store.lists(), [(lineage.id().log_prefix(GROUP, 0), Some(after))]);
        // A fact may be older, newer or of another life of the destination: the end is the end.
        for known in [0, 999, 1000, last - 60, last + 100, last + 1001, last + 200_000] {
            assert_eq!(at(known).tail().await.expect("tail"), end, "known to {known}");
        }
        let successor = LineageId { cluster_id: [9; 16], ..*lineage.id() };
        let fence = at(last).fence(last + 1, successor).await.expect("ends it");
        for known in [last, last + 1, last + 1001] {
            assert_eq!(at(known).end().await.expect("an end"), (end, Some(fence)), "known to {known}");
        }
    });
}

#[test]
fn a_look_tells_when_the_newest_object_is_gone() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        let mut a = shipper(&history, &destination).await;
        assert_eq!(a.tail().await.expect("tail"), None);
        a.look().await.expect("the facts are there");
        ship(&mut a, &history, 0, 5).await.expect("ships");
        ship(&mut a, &history, 5, 10).await.expect("ships");
        let mut b = shipper(&history, &destination).await;
        b.tail().await.expect("tail");
        for shipper in [&a, &b] {
            shipper.look().await.expect("is there");
        }
        let newest = folder.file(&ObjectName::segment(GROUP, 5).path(&history.facts.id));
        let whole = std::fs::read(&newest).expect("reads");
        std::fs::write(&newest, &whole[1..]).expect("truncates");
        for shipper in [&a, &b] {
            assert!(matches!(shipper.look().await, Err(ArchiveError::Corrupt { .. })));
        }
        std::fs::remove_file(&newest).expect("removes");
        for shipper in [&a, &b] {
            assert!(matches!(shipper.look().await, Err(ArchiveError::Missing { .. })));
        }
    });
}

#[test]
fn two_clusters_cannot_share_an_identity() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        history.open(&destination).await;
        history.open(&destination).await;
        let mut other = history.facts.clone();
        other.epoch += 1;
        let error = OpenLineage::open(destination.clone(), &other).await.expect_err("another");
        assert!(error.to_string().contains("share one identity"), "{error}");
        let found = crate::find_lineages(&destination).await.expect("lists");
        assert_eq!(found.lineages, std::slice::from_ref(&history.facts));
        OpenLineage::find(destination.clone(), &history.facts).await.expect("is there");
        let error = OpenLineage::find(destination.clone(), &other).await.expect_err("another");
        assert!(error.to_string().contains("share one identity"), "{error}");
        let elsewhere = folder.destination_in("empty");
        let error = OpenLineage::find(elsewhere.clone(), &history.facts).await.expect_err("nothing is there");
        assert!(matches!(error, ArchiveError::Missing { .. }), "{error}");
        assert_eq!(elsewhere.list("").await.expect("lists"), [], "and nothing was put there");
    });
}

/// One bit of an object at rest, found by everybody who reads it.
#[test]
fn a_poisoned_end_is_shipped_again_beside_itself_and_read_from_there() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        shipped(&history, &destination).await;
        let object = ObjectName::segment(GROUP, 5).path(&history.facts.id);
        folder.flip(&object, 4001);
        let mut b = shipper(&history, &destination).await;
        let damage = b.tail().await.expect_err("poisoned");
        assert_eq!(b.tail_before_damage(damage).await.expect("the one before"), Some(tail(&history, 4)));
        ship(&mut b, &history, 5, 12).await.expect("ships");
        ship(&mut b, &history, 12, 15).await.expect("ships");
        let repair = ObjectName::Segment { group: GROUP, first: 5, repair: 1 }.path(&history.facts.id);
        assert!(folder.file(&repair).is_file() && folder.file(&object).is_file(), "nothing is overwritten");

        let mut c = shipper(&history, &destination).await;
        assert_eq!(c.tail().await.expect("tail"), Some(tail(&history, 14)));
        let listed = list_segments(&destination, &history.facts.id, GROUP).await.expect("lists");
        assert_eq!(
            listed.iter().map(|found| (found.first, found.repairs)).collect::<Vec<_>>(),
            [(0, 0), (5, 1), (12, 0)]
        );
        let read = read_listed(&destination, &history.facts.id, GROUP, &listed[1]).await.expect("reads");
        assert_eq!(read.last().index, 11);
        let report = crate::verify::verify(&destination, &history.facts.id, crate::verify::Level::Bytes).await;
        let report = report.expect("looks");
        assert_eq!((report.bad, report.repaired), (Vec::new(), vec![object.clone()]));
        let plan = crate::plan(&destination, GROUP, crate::Choose::default()).await.expect("plans");
        assert_eq!(plan.last.index, 14);

        // A damaged repair repairs nothing; the next one does.
        folder.flip(&repair, 4001);
        let report = crate::verify::verify(&destination, &history.facts.id, crate::verify::Level::Bytes).await;
        let bad: Vec<String> = report.expect("looks").bad.into_iter().map(|(object, _)| object).collect();
        assert_eq!(bad, [object.clone(), repair.clone()]);
        std::fs::remove_file(folder.file(&ObjectName::segment(GROUP, 12).path(&history.facts.id))).expect("removed");
        let mut d = shipper(&history, &destination).await;
        let damage = d.tail().await.expect_err("poisoned");
        d.tail_before_damage(damage).await.expect("the one before");
        ship(&mut d, &history, 5, 15).await.expect("ships");
        let second = ObjectName::Segment { group: GROUP, first: 5, repair: 2 }.path(&history.facts.id);
        assert!(folder.file(&second).is_file());
        // The bytes of the first come back: who reads it, reads on behind what it holds.
        folder.flip(&object, 4001);
        let plan = crate::plan(&destination, GROUP, crate::Choose::default()).await.expect("plans");
        assert_eq!(plan.last.index, 14);
        let report = crate::verify::verify(&destination, &history.facts.id, crate::verify::Level::Bytes).await;
        assert_eq!(report.expect("looks").bad.len(), 1, "the damaged repair");
    });
}

/// Its own name is free again: there it is shipped, whatever became of its repair.
#[test]
fn an_end_that_is_gone_and_has_a_damaged_repair_is_shipped_again() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        shipped(&history, &destination).await;
        let object = ObjectName::segment(GROUP, 5).path(&history.facts.id);
        folder.flip(&object, 4001);
        let mut b = shipper(&history, &destination).await;
        let damage = b.tail().await.expect_err("poisoned");
        b.tail_before_damage(damage).await.expect("the one before");
        ship(&mut b, &history, 5, 12).await.expect("ships");
        folder.flip(&ObjectName::Segment { group: GROUP, first: 5, repair: 1 }.path(&history.facts.id), 4001);
        std::fs::remove_file(folder.file(&object)).expect("moved away");
        // Nothing else is hidden by it meanwhile.
        let offer = crate::offer(&destination, GROUP, crate::Choose::default(), &|_, _, _| {}).await.expect("an offer");
        assert_eq!((offer.plan.last.index, offer.is_whole), (4, false));
        let mut c = shipper(&history, &destination).await;
        let damage = c.tail().await.expect_err("gone");
        assert!(matches!(damage, ArchiveError::Missing { .. }), "{damage}");
        assert_eq!(c.tail_before_damage(damage).await.expect("the one before"), Some(tail(&history, 4)));
        ship(&mut c, &history, 5, 12).await.expect("ships");
        assert!(folder.file(&object).is_file());
        let plan = crate::plan(&destination, GROUP, crate::Choose::default()).await.expect("plans");
        assert_eq!(plan.last.index, 11);
    });
}

/// Damage in the middle of the log is nothing that a shipper mends: who has those entries, nobody knows.
#[test]
fn only_the_end_of_the_log_is_repaired() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        let mut a = shipper(&history, &destination).await;
        for from in [0, 5, 10] {
            ship(&mut a, &history, from, from + 5).await.expect("ships");
        }
        folder.flip(&ObjectName::segment(GROUP, 5).path(&history.facts.id), 4001);
        let mut b = shipper(&history, &destination).await;
        assert_eq!(b.tail().await.expect("tail"), Some(tail(&history, 14)));
        folder.flip(&ObjectName::segment(GROUP, 10).path(&history.facts.id), 4001);
        let damage = b.tail().await.expect_err("poisoned");
        let error = b.tail_before_damage(damage).await.expect_err("the one before is, too");
        assert!(matches!(error, ArchiveError::Corrupt { .. }), "{error}");
    });
}

#[test]
fn a_gap_has_one_winner_and_is_followed_like_a_segment() {
    let (folder, history) = (Folder::new(), history());
    let gap = |first: u64, last: u64| Gap {
        group: GROUP,
        first,
        chain_before: history.chain_before(first),
        last: history.range(last, last + 1)[0].position,
        chain_after: history.chain_before(last + 1),
    };
    run(async {
        let destination = folder.destination();
        let (mut a, mut b) = (shipper(&history, &destination).await, shipper(&history, &destination).await);
        ship(&mut a, &history, 0, 5).await.expect("ships");
        assert_eq!(b.tail().await.expect("tail"), Some(tail(&history, 4)));
        assert!(a.leave_out(gap(6, 9)).await.is_err(), "it leaves out an entry that nobody speaks of");
        let other = Gap { chain_before: [1; 32], ..gap(5, 9) };
        is_fork(a.leave_out(other).await, 5);
        let won = a.leave_out(gap(5, 9)).await.expect("left out");
        assert_eq!((won.tail(), matches!(won, ShipOutcome::Created { .. })), (tail(&history, 9), true));
        // Who has the entries and comes second goes on behind the gap.
        let second = ship(&mut b, &history, 5, 12).await.expect("ships");
        assert_eq!((second.tail(), matches!(second, ShipOutcome::Adopted { .. })), (tail(&history, 9), true));
        ship(&mut b, &history, 10, 15).await.expect("ships");
        // And who comes second with a gap, behind the segment.
        let second = a.leave_out(gap(10, 11)).await.expect("left out");
        assert_eq!(second.tail(), tail(&history, 14));
        assert_eq!(shipper(&history, &destination).await.tail().await.expect("tail"), Some(tail(&history, 14)));
        // Nothing stands in for it here.
        let report = crate::verify::verify(&destination, &history.facts.id, crate::verify::Level::Bytes).await;
        let report = report.expect("looks");
        let object = ObjectName::segment(GROUP, 5).path(&history.facts.id);
        assert_eq!(report.bad.iter().map(|(object, _)| object).collect::<Vec<_>>(), [&object]);
        assert_eq!(report.gaps, [gap(5, 9)]);
        let offer = crate::offer(&destination, GROUP, crate::Choose::default(), &|_, _, _| {})
            .await
            .expect("something is left");
        assert_eq!((offer.plan.last.index, offer.is_whole), (4, false), "up to the gap");
        // One bit of it.
        folder.flip(&object, 1);
        let report = crate::verify::verify(&destination, &history.facts.id, crate::verify::Level::Bytes).await;
        assert!(report.expect("looks").bad.iter().any(|(named, _)| *named == object));
    });
}

/// What a recovery ended stays ended, whatever becomes of its objects; and what is whole is nobody's to repair.
#[test]
fn nothing_is_repaired_behind_which_another_history_begins() {
    let (folder, history) = (Folder::new(), history());
    run(async {
        let destination = folder.destination();
        let mut a = shipped(&history, &destination).await;
        // An object that somebody put there, whole, of another place.
        let (first, second) =
            [0, 5].map(|at| folder.file(&ObjectName::segment(GROUP, at).path(&history.facts.id))).into();
        let bytes = std::fs::read(&second).expect("reads");
        std::fs::copy(&first, &second).expect("swapped");
        let mut b = shipper(&history, &destination).await;
        let damage = b.tail().await.expect_err("of another place");
        let error = b.tail_before_damage(damage).await.expect_err("it is not damaged");
        assert!(matches!(error, ArchiveError::Corrupt { .. }), "{error}");
        std::fs::write(&second, bytes).expect("back");

        let successor = LineageId { incarnation: holdfast_model::id::Incarnation(77), ..history.facts.id };
        let fence = a.fence(10, successor).await.expect("ends it");
        let object = ObjectName::segment(GROUP, 5).path(&history.facts.id);
        folder.flip(&object, 4001);
        let mut c = shipper(&history, &destination).await;
        let damage = c.tail().await.expect_err("poisoned");
        let error = c.tail_before_damage(damage).await.expect_err("ended");
        assert!(matches!(error, ArchiveError::Fenced { index: 10, .. }), "{error}");
        // The fence itself is damaged: the history that goes on tells.
        folder.flip(&fence.name().path(&history.facts.id), 4001);
        let mut child = History::continued(&history, 77).facts;
        child.id = successor;
        OpenLineage::open(destination.clone(), &child).await.expect("opens");
        let damage = c.tail().await.expect_err("poisoned");
        let error = c.tail_before_damage(damage).await.expect_err("it may be a fence");
        assert!(matches!(error, ArchiveError::Corrupt { .. }), "{error}");
    });
}
