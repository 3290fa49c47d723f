use super::*;
use crate::fixture::{Folder, GROUP, History, run};
use crate::log::{list_log, with_joined};
use crate::verify::{Level, verify};
use crate::{Choose, plan};

/// A log in segments of two entries.
fn archive(writes: usize) -> (Folder, History) {
    let folder = Folder::new();
    let mut history = History::found(5);
    history.live(writes);
    run(async {
        let lineage = history.open(&folder.destination()).await;
        history.ship(&lineage, 0, 2).await;
    });
    (folder, history)
}

async fn join(folder: &Folder, history: &History) -> JoinReport {
    let lineage = history.open(&folder.destination()).await;
    join_segments(&lineage, GROUP, 0, || true).await.expect("joins")
}

async fn joined(folder: &Folder, history: &History) -> Vec<ListedSegment> {
    list_joined(&folder.destination(), &history.facts.id, GROUP).await.expect("lists")
}

#[test]
fn many_small_segments_are_read_as_one_object_and_the_newest_stays_apart() {
    let (folder, mut history) = archive(90);
    run(async {
        let (segments, _) = list_log(&folder.destination(), &history.facts.id, GROUP).await.expect("lists");
        let report = join(&folder, &history).await;
        assert_eq!((report.objects, report.segments), (1, segments.len() as u64 - 1));
        let last = segments.last().expect("one").first - 1;
        assert_eq!(report.next, last + 1, "the newest comes next");
        let again = join(&folder, &history).await;
        assert_eq!((again.objects, again.next), (0, last + 1), "there is nothing left to join");
        let [one] = &joined(&folder, &history).await[..] else { panic!("one object") };
        assert_eq!((one.first, one.joined), (0, Some(last)));
        let plan = plan(&folder.destination(), GROUP, Choose::default()).await.expect("plans");
        assert_eq!((plan.last, plan.segments()), (history.last(), 2), "the joined one, and the newest");
        let report = verify(&folder.destination(), &history.facts.id, Level::Bytes).await.expect("looks");
        assert_eq!(report.bad, []);

        // What comes later is joined behind it.
        let next = history.last().index + 1;
        history.live(60);
        let lineage = history.open(&folder.destination()).await;
        history.ship(&lineage, next, 2).await;
        assert_eq!(join(&folder, &history).await.objects, 1);
        let both = joined(&folder, &history).await;
        assert_eq!((both.len(), both[1].first), (2, last + 1));
        let report = verify(&folder.destination(), &history.facts.id, Level::Bytes).await.expect("looks");
        assert_eq!(report.bad, []);
        // From any entry on, what is read covers all that follows, once.
        let (segments, _) = list_log(&folder.destination(), &history.facts.id, GROUP).await.expect("lists");
        for from in 0..=history.last().index {
            let start = segments.partition_point(|segment| segment.first <= from) - 1;
            let read = with_joined(segments[start..].to_vec(), &both, from);
            assert!(read[0].first <= from && read.len() <= 3 + 16, "{from}: {read:?}");
            for pair in read.windows(2) {
                let ends = pair[0].joined.unwrap_or(pair[0].first + 1);
                assert_eq!(ends + 1, pair[1].first, "{from}: {read:?}");
            }
        }
    });
}

#[test]
fn what_is_damaged_is_gone_around_on_either_side() {
    let (folder, history) = archive(90);
    let id = history.facts.id;
    run(async {
        join(&folder, &history).await;
        let [one] = &joined(&folder, &history).await[..] else { panic!("one object") };
        let restored = async || {
            let offer =
                crate::offer(&folder.destination(), GROUP, Choose::default(), &|_, _, _| {}).await.expect("offers");
            (offer.plan.last, offer.is_whole, offer.bad.len(), offer.plan.segments())
        };
        assert_eq!(restored().await, (history.last(), true, 0, 2));
        folder.flip(&one.object, 4321);
        let report = verify(&folder.destination(), &id, Level::Bytes).await.expect("looks");
        assert_eq!(report.bad.iter().map(|(object, _)| object).collect::<Vec<_>>(), [&one.object]);
        let (last, is_whole, bad, segments) = restored().await;
        assert!(last == history.last() && is_whole && bad == 1 && segments > 40, "the segments are still there");
        folder.flip(&one.object, 4321);
        // A segment that is in what joins it is needed by nobody.
        let segment = ObjectName::segment(GROUP, 20).path(&id);
        folder.flip(&segment, 99);
        assert_eq!(restored().await, (history.last(), true, 0, 2));
        let report = verify(&folder.destination(), &id, Level::Bytes).await.expect("looks");
        assert_eq!(
            report.bad.iter().map(|(object, _)| object).collect::<Vec<_>>(),
            [&segment],
            "it is damaged all the same"
        );
    });
}

/// A run ends where a segment is damaged, and the next begins behind it.
#[test]
fn a_damaged_segment_is_not_joined_and_hides_nothing() {
    let (folder, history) = archive(150);
    let few = archive(20);
    run(async {
        assert_eq!(
            join(&few.0, &few.1).await,
            JoinReport::default(),
            "a dozen segments are not worth it, and more may come"
        );
        folder.flip(&ObjectName::segment(GROUP, 60).path(&history.facts.id), 99);
        let report = join(&folder, &history).await;
        assert_eq!(report.objects, 2);
        let both = joined(&folder, &history).await;
        assert_eq!((both[0].joined, both[1].first), (Some(59), 62));
    });
}

/// Another history's entries under the name are found, by the one who joins and by who verifies.
#[test]
fn an_object_of_other_entries_is_named() {
    let (folder, history) = archive(90);
    let (other_folder, mut other) = (Folder::new(), history.clone());
    other.entries.truncate(10);
    other.term += 1;
    other.live(82);
    run(async {
        let lineage = other.open(&other_folder.destination()).await;
        other.ship(&lineage, 0, 2).await;
        join(&other_folder, &other).await;
        join(&folder, &history).await;
        let (ours, theirs) = (joined(&folder, &history).await, joined(&other_folder, &other).await);
        assert_eq!(ours[0].object, theirs[0].object);
        std::fs::copy(other_folder.file(&theirs[0].object), folder.file(&ours[0].object)).expect("swapped");
        let report = verify(&folder.destination(), &history.facts.id, Level::Bytes).await.expect("looks");
        assert!(report.bad.iter().any(|(object, _)| *object == ours[0].object), "{:?}", report.bad);
        let offer = crate::offer(&folder.destination(), GROUP, Choose::default(), &|_, _, _| {}).await.expect("offers");
        assert_eq!((offer.plan.last, offer.is_whole), (history.last(), true), "the segments count");
    });
}
