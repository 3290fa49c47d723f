use super::*;
use crate::fixture::{Folder, GROUP, History, NOW_MS, run};
use crate::object::tests::{encrypted, every_flip_is_found};
use crate::plan::{At, Choose};
use crate::sealing::Compression;
use crate::ship::SegmentShipper;
use crate::{Level, offer, plan, plan_of_what_is_there, verify};

fn heartbeat(history: &History, last: u64, at: u64) -> Heartbeat {
    let position = history.range(last, last + 1)[0].position;
    Heartbeat { group: GROUP, at: Millis(at), last: position, chain: history.chain_before(last + 1) }
}

/// A log in segments of 6 entries, shipped whole, and heartbeats at these moments.
fn archive(moments: &[u64]) -> (Folder, History) {
    let (folder, mut history) = (Folder::new(), History::found(5));
    history.live(20);
    run(async {
        let lineage = history.open(&folder.destination()).await;
        history.ship(&lineage, 0, 6).await;
        let mut shipper = SegmentShipper::new(lineage, GROUP);
        for at in moments {
            shipper.heartbeat(Millis(*at)).await.expect("beats");
        }
    });
    (folder, history)
}

fn newest(folder: &Folder, history: &History) -> Option<Heartbeat> {
    run(newest_heartbeat(&folder.destination(), &history.facts.id, GROUP)).expect("reads")
}

#[test]
fn it_says_what_it_said_and_every_flipped_bit_is_found() {
    let (_, history) = archive(&[]);
    let (id, beat) = (history.facts.id, heartbeat(&history, 7, NOW_MS));
    let object = beat.name().path(&id);
    assert!(object.ends_with("/heartbeat/0/00000001795305600000"), "{object}");
    let open = |name: &str, bytes: &Bytes| Heartbeat::open(name, &id, &Keyring::default(), GROUP, NOW_MS, bytes);
    let sealed = beat.seal(&id, &Sealing::default()).expect("seals").bytes;
    assert_eq!(open(&object, &sealed).expect("opens"), beat);
    every_flip_is_found(&sealed, |name, bytes| open(name, bytes).map(drop));
    for (group, at_ms) in [(GroupId(1), NOW_MS), (GROUP, NOW_MS + 1)] {
        let error = Heartbeat::open("o", &id, &Keyring::default(), group, at_ms, &sealed).expect_err("of another name");
        assert!(error.is_integrity() && error.to_string().contains("another group or moment"), "{error}");
    }
    // Of a cluster that encrypts it says nothing to who has no key.
    let (sealing, keys) = encrypted(Compression::Zstd);
    let lineage = crate::object::tests::LINEAGE;
    let object = beat.name().path(&lineage);
    let sealed = beat.seal(&lineage, &sealing).expect("seals").bytes;
    let open = |keys| Heartbeat::open(&object, &lineage, keys, GROUP, NOW_MS, &sealed);
    assert_eq!(open(&keys).expect("opens"), beat);
    assert!(matches!(open(&Keyring::default()), Err(ArchiveError::NoKey { .. })));
}

#[test]
fn the_newest_that_can_be_read_counts_wherever_it_lies_in_time() {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    // A minute, a day, a week and a year ago; and from a clock that is ahead.
    const DAY: u64 = 24 * 60 * 60 * 1000;
    for newest_at in [now_ms - 60_000, now_ms - DAY, now_ms - 7 * DAY, now_ms - 365 * DAY, now_ms + 365 * DAY] {
        let (folder, history) = archive(&[newest_at - 120_000, newest_at, newest_at - 60_000]);
        assert_eq!(newest(&folder, &history).map(|beat| beat.at.0), Some(newest_at));
        let last = history.last().index;
        folder.flip(&heartbeat(&history, last, newest_at).name().path(&history.facts.id), 500);
        assert_eq!(newest(&folder, &history).map(|beat| beat.at.0), Some(newest_at - 60_000), "an older one");
    }
    let (folder, history) = archive(&[]);
    assert_eq!(newest(&folder, &history), None);
}

#[test]
fn nothing_is_vouched_for_before_there_is_a_log() {
    let (folder, history) = (Folder::new(), History::found(5));
    run(async {
        let mut shipper = SegmentShipper::new(history.open(&folder.destination()).await, GROUP);
        shipper.heartbeat(Millis(NOW_MS)).await.expect("nothing to do");
    });
    assert_eq!(newest(&folder, &history), None);
}

#[test]
fn a_plan_says_up_to_when_nothing_is_missing() {
    let quiet_since = NOW_MS + 3_600_000;
    let (folder, history) = archive(&[quiet_since]);
    let planned = |at| {
        let choose = Choose { lineage: None, at };
        run(plan(&folder.destination(), GROUP, choose)).expect("plans")
    };
    assert_eq!(planned(At::Latest).complete_ms(), quiet_since);
    let last = history.last().index;
    for at in [At::Index(last), At::Index(last - 3), At::Time(quiet_since)] {
        let plan = planned(at);
        assert_eq!(plan.complete_ms(), plan.last_stamp_ms, "{at:?}: what came after that point is no part of it");
    }
    // Written on since: the newest write counts.
    let (folder, history) = archive(&[NOW_MS + 1]);
    let plan = run(plan(&folder.destination(), GROUP, Choose::default())).expect("plans");
    assert_eq!(plan.complete_ms(), plan.last_stamp_ms);
    assert!(plan.last_stamp_ms > NOW_MS + 1 && plan.last == history.last());
}

/// Without heartbeats an archive whose newest objects are gone looks like an older archive.
#[test]
fn an_end_that_is_gone_is_missed() {
    let (folder, history) = archive(&[NOW_MS + 3_600_000]);
    let (destination, id) = (folder.destination(), history.facts.id);
    assert!(run(verify(&destination, &id, Level::Bytes)).expect("looks").is_good());
    let segments = run(crate::log::list_segments(&destination, &id, GROUP)).expect("lists");
    let gone = segments.last().expect("a segment");
    std::fs::remove_file(folder.file(&gone.object)).expect("removes");
    let error = run(plan(&destination, GROUP, Choose::default())).expect_err("its end is gone");
    let ArchiveError::Missing { object, reason } = &error else { panic!("{error}") };
    assert_eq!(object, &gone.object);
    assert!(reason.contains("/heartbeat/0/"), "{reason}");
    let report = run(verify(&destination, &id, Level::Bytes)).expect("looks");
    assert_eq!(report.bad.iter().map(|(object, _)| object).collect::<Vec<_>>(), [&gone.object], "{:?}", report.bad);
    // What is left is offered, and nobody takes it for all that there was.
    let found = run(offer(&destination, GROUP, Choose::default(), &|_, _, _| {})).expect("offers");
    assert_eq!((found.plan.last.index, found.is_whole), (gone.first - 1, false), "{:?}", found.bad);
    assert_eq!(found.bad[0].0, gone.object);
    let there = run(plan_of_what_is_there(&destination, GROUP, Choose::default())).expect("plans");
    assert_eq!(there.last.index, gone.first - 1);
    assert_eq!(there.complete_ms(), there.last_stamp_ms, "it vouched for more than there is");
}

/// Also where a good one names the same entry.
#[test]
fn one_of_another_history_is_named() {
    let (folder, history) = archive(&[NOW_MS + 7_200_000]);
    let last = history.last().index;
    for (entry, at) in [(last - 3, NOW_MS), (last, NOW_MS + 3_600_000)] {
        let beat = Heartbeat { chain: [9; 32], ..heartbeat(&history, entry, at) };
        let object = beat.name().path(&history.facts.id);
        let sealed = beat.seal(&history.facts.id, &Sealing::default()).expect("seals").bytes;
        std::fs::write(folder.file(&object), &sealed).expect("writes");
        let report = run(verify(&folder.destination(), &history.facts.id, Level::Bytes)).expect("looks");
        assert_eq!(report.bad.iter().map(|(object, _)| object).collect::<Vec<_>>(), [&object], "{:?}", report.bad);
        std::fs::remove_file(folder.file(&object)).expect("removes");
    }
}
