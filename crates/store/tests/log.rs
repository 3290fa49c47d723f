//! The Raft log through its API: what survives, what is refused, and that no loss is silent.

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use holdfast_store::{LogOptions, LogReport, LogStore, StoreError, StoredEntry, VoteRecord};
use support::{append, at, data, entry, image, open_log, open_log_with, wait_floor};

fn indexes(entries: &[StoredEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.position.index).collect()
}

fn all(log: &LogStore) -> Vec<StoredEntry> {
    let start = log.purged().map_or(0, |purged| purged.index + 1);
    log.read(start, u64::MAX, usize::MAX).expect("read")
}

fn vote(term: u64) -> VoteRecord {
    VoteRecord { term, node: 2, committed: false }
}

fn save_vote(log: &LogStore, vote: VoteRecord) {
    let (sender, receiver) = mpsc::sync_channel(1);
    log.save_vote(vote, Box::new(move |result| sender.send(result).expect("the test waits")));
    receiver.recv().expect("called").expect("fsynced");
}

/// Opens a copy of `from`, taken now.
fn crash(from: &Path) -> (tempfile::TempDir, LogStore, LogReport) {
    let copy = tempfile::tempdir().expect("tempdir");
    image(from, copy.path());
    let (log, report) = open_log(&data(copy.path()));
    (copy, log, report)
}

#[test]
fn what_was_fsynced_survives_a_crash() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = data(dir.path());
    let (log, report) = open_log(&data);
    assert_eq!(report, LogReport::default());
    assert_eq!((log.last(), log.purged(), log.vote()), (None, None, None));
    let entries: Vec<_> = (0..20).map(|index| entry(1 + index / 10, index)).collect();
    append(&log, entries.clone());
    save_vote(&log, vote(2));
    log.save_committed(Some(at(2, 15)));
    append(&log, vec![entry(2, 20)]);

    let (_copy, again, report) = crash(dir.path());
    assert_eq!((report.recovering, report.entries, report.truncated_from), (None, 21, None));
    assert_eq!(all(&again), [entries, vec![entry(2, 20)]].concat());
    assert_eq!((again.last(), again.vote(), again.committed()), (Some(at(2, 20)), Some(vote(2)), Some(at(2, 15))));
    assert_eq!(again.durable_index(), 20);
}

#[test]
fn entries_are_readable_at_once_and_done_in_order_after_the_fsync() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (log, _) = open_log(&data(dir.path()));
    let order = Arc::new(Mutex::new(Vec::new()));
    let announced = Arc::new(AtomicU64::new(0));
    let heard = Arc::clone(&announced);
    log.subscribe_durable(Box::new(move |index| {
        let before = heard.swap(index, Ordering::SeqCst);
        assert!(before <= index, "it fell from {before} to {index}");
    }));
    for index in 0..200 {
        let (order, durable) = (Arc::clone(&order), log.clone());
        log.append(
            vec![entry(1, index)],
            Box::new(move |result| {
                result.expect("fsynced");
                assert!(durable.durable_index() >= index, "told before it was durable");
                order.lock().expect("lock").push(index);
            }),
        )
        .expect("appended");
        assert_eq!(log.read(index, index + 1, 0).expect("read"), [entry(1, index)]);
    }
    log.wait_durable(199);
    log.flush_wal().expect("flushed");
    assert_eq!(*order.lock().expect("lock"), (0..200).collect::<Vec<_>>());
    log.close();
    assert_eq!(announced.load(Ordering::SeqCst), 199);
    let stats = log.stats();
    assert!(stats.fsyncs >= 1 && stats.jobs >= 200 && stats.fsyncs < stats.jobs, "{stats:?}");
    assert_eq!(stats.fsync_buckets.iter().sum::<u64>(), stats.fsyncs);
    assert!(log.append(vec![entry(1, 200)], Box::new(|_| {})).is_err(), "it is closed");
}

#[test]
fn holes_and_older_terms_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (log, _) = open_log(&data(dir.path()));
    append(&log, vec![entry(2, 0)]);
    for wrong in [entry(2, 2), entry(2, 0), entry(1, 1)] {
        assert!(log.append(vec![wrong], Box::new(|_| {})).is_err());
    }
    assert_eq!(log.last(), Some(at(2, 0)));
}

#[test]
fn reads_are_bounded_and_do_not_depend_on_the_cache() {
    // All of it in memory, the end of it, or nothing but the last entry; and, opened again, nothing but a new one.
    for (cache_bytes_max, reopened) in [1, 100, 1 << 20].into_iter().flat_map(|bytes| [(bytes, false), (bytes, true)]) {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = data(dir.path());
        let options = || LogOptions { cache_bytes_max, ..LogOptions::default() };
        let (mut log, _) = open_log_with(&data, options());
        append(&log, (0..50).map(|index| entry(1, index)).collect());
        if reopened {
            drop(log);
            log = open_log_with(&data, options()).0;
            append(&log, vec![entry(1, 50)]);
        }
        assert!(log.stats().cache_bytes <= 100 || cache_bytes_max > 100);
        for (start, end) in [(0, 5), (10, 50), (49, 50), (48, 1000)] {
            let last = log.last().expect("last").index;
            let expected: Vec<_> = (start..end.min(last + 1)).collect();
            assert_eq!(indexes(&log.read(start, end, usize::MAX).expect("read")), expected);
        }
        assert_eq!(indexes(&log.read(3, 50, 0).expect("read")), [3], "at least one");
        assert_eq!(indexes(&log.read(3, 50, 40).expect("read")), [3, 4]);
        assert!(log.read(5, 5, 100).expect("read").is_empty());
        assert!(log.read(900, 950, 100).expect("read").is_empty());
    }
}

#[test]
fn truncation_lowers_the_floor_and_makes_room_for_another_history() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = data(dir.path());
    let (log, _) = open_log(&data);
    append(&log, (0..10).map(|index| entry(1, index)).collect());
    wait_floor(&log);
    log.truncate_after(Some(at(1, 5))).expect("truncated");
    assert_eq!(log.floor().0, Some(at(1, 5)), "before the entries go");
    assert_eq!(log.last(), Some(at(1, 5)));
    log.wait_durable(5);
    assert_eq!(log.durable_index(), 5);

    append(&log, vec![entry(3, 6)]);
    let (_copy, again, report) = crash(dir.path());
    assert_eq!((report.recovering, again.last()), (None, Some(at(3, 6))));
    assert_eq!(indexes(&all(&again)), (0..=6).collect::<Vec<_>>());

    log.truncate_after(None).expect("truncated");
    assert_eq!((log.last(), log.floor().0), (None, None));
    append(&log, vec![entry(4, 0)]);
    let (_copy, again, report) = crash(dir.path());
    assert_eq!((report.recovering, all(&again)), (None, vec![entry(4, 0)]));
}

#[test]
fn purging_keeps_the_chain_and_refuses_what_is_gone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = data(dir.path());
    let (log, _) = open_log(&data);
    append(&log, (0..10).map(|index| entry(1, index)).collect());
    log.purge(at(1, 6)).expect("purged");
    log.purge(at(1, 3)).expect("an older one changes nothing");
    append(&log, vec![entry(1, 10)]);
    assert_eq!(indexes(&all(&log)), [7, 8, 9, 10]);
    assert!(matches!(log.read(6, 8, 100), Err(StoreError::Purged { wanted: 6, purged: 6 })));
    assert!(log.truncate_after(Some(at(1, 4))).is_err(), "it is purged");
    assert!(log.truncate_after(None).is_err(), "so is what nothing would be left of");
    assert!(log.truncate_after(Some(at(1, 11))).is_err(), "there is no such entry");

    let (_copy, again, report) = crash(dir.path());
    assert_eq!((report.recovering, report.entries), (None, 4));
    assert_eq!((again.purged(), again.last()), (Some(at(1, 6)), Some(at(1, 10))));

    log.truncate_after(Some(at(1, 6))).expect("all that is left");
    assert_eq!(log.last(), Some(at(1, 6)));
    append(&log, vec![entry(2, 7)]);
    log.purge(at(2, 7)).expect("purged");
    log.purge(at(9, 40)).expect("beyond the end, as after a snapshot");
    append(&log, vec![entry(9, 41)]);
    let (_copy, again, report) = crash(dir.path());
    assert_eq!((report.recovering, again.purged(), all(&again)), (None, Some(at(9, 40)), vec![entry(9, 41)]));
}

#[test]
fn a_reset_is_durable_when_it_returns_and_keeps_the_floor() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = data(dir.path());
    let (log, _) = open_log(&data);
    append(&log, (0..10).map(|index| entry(1, index)).collect());
    wait_floor(&log);
    log.reset_to(at(1, 4)).expect("reset");
    assert_eq!((log.last(), log.purged(), log.durable_index()), (Some(at(1, 4)), Some(at(1, 4)), 4));
    let (_copy, again, report) = crash(dir.path());
    assert_eq!((again.last(), report.floor), (Some(at(1, 4)), Some(at(1, 9))));
    assert!(report.recovering.is_some(), "it once had 9");
    // Replicated past the floor by a newer leader: recovered.
    append(&again, vec![entry(2, 5)]);
    wait_floor(&again);
    let (_copy, _log, report) = crash(_copy.path());
    assert_eq!(report.recovering, None);
}

/// The storage array that went back in time: the log is whole, only old.
#[test]
fn a_rolled_back_log_is_below_its_floor() {
    let dir = tempfile::tempdir().expect("tempdir");
    let floor = tempfile::tempdir().expect("tempdir");
    let options = || LogOptions { floor_dir: Some(floor.path().to_owned()), ..LogOptions::default() };
    let old = tempfile::tempdir().expect("tempdir");
    {
        let data = data(dir.path());
        let (log, _) = open_log_with(&data, options());
        append(&log, (0..10).map(|index| entry(1, index)).collect());
        save_vote(&log, vote(1));
        image(dir.path(), old.path());
        append(&log, (10..20).map(|index| entry(1, index)).collect());
        save_vote(&log, vote(5));
        wait_floor(&log);
    }
    let data = data(old.path());
    let (log, report) = open_log_with(&data, options());
    let why = report.recovering.expect("it lost ten acknowledged entries");
    assert!(why.contains("floor"), "{why}");
    assert_eq!((log.last(), report.floor), (Some(at(1, 9)), Some(at(1, 19))));
    assert_eq!(log.vote(), Some(vote(5)), "a vote is never given twice");
    // The leader makes it drop a tail: it must not forget what it acknowledged.
    log.truncate_after(Some(at(1, 7))).expect("truncated");
    append(&log, vec![entry(1, 8)]);
    drop(log);
    let (log, report) = open_log_with(&data, options());
    assert!(report.recovering.is_some() && report.floor == Some(at(1, 19)), "{report:?}");
    append(&log, (9..21).map(|index| entry(1, index)).collect());
    drop(log);
    assert_eq!(open_log_with(&data, options()).1.recovering, None);
}

fn copied(from: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("tempdir");
    image(from, copy.path());
    copy
}

/// Where the records of a segment lie, as `log/record.rs` lays them out.
fn records(segment: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at + 17 <= segment.len() {
        let length: [u8; 4] = segment[at + 4..at + 8].try_into().expect("four bytes");
        let end = at + 17 + u32::from_be_bytes(length) as usize;
        out.push(at..end);
        at = end;
    }
    out
}

/// Gives the record a checksum that fits, so that only what it says is wrong. It lies in the first segment.
fn reseal(record: &mut [u8]) {
    let salt = crc32c::crc32c_append(crc32c::crc32c(&1u64.to_be_bytes()), &[5; 16]);
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(salt, &1u64.to_be_bytes()), &record[4..]);
    record[..4].copy_from_slice(&crc.to_be_bytes());
}

/// Changes the only segment of a log; the ranges are those of its entries.
fn tamper(dir: &Path, change: impl FnOnce(&mut [u8], &[std::ops::Range<usize>])) {
    let path = newest_segment(dir);
    let mut bytes = fs::read(&path).expect("read");
    let entries: Vec<_> = records(&bytes).into_iter().filter(|record| bytes[record.start + 16] == 2).collect();
    change(&mut bytes, &entries);
    fs::write(&path, bytes).expect("written");
}

/// Entry 4 becomes a record that says nothing.
fn without_entry_4(bytes: &mut [u8], entries: &[std::ops::Range<usize>]) {
    let record = &mut bytes[entries[4].clone()];
    record[16] = 7;
    reseal(record);
}

#[test]
fn a_missing_or_foreign_entry_is_found_and_stays_found() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let (log, _) = open_log(&data(dir.path()));
        append(&log, (0..10).map(|index| entry(1, index)).collect());
    }
    type Tamper = fn(&mut [u8], &[std::ops::Range<usize>]);
    let cases: [(&str, Tamper); 4] = [
        ("missing", without_entry_4),
        ("comes again", |bytes, entries| {
            let other = bytes[entries[3].clone()].to_vec();
            bytes[entries[4].clone()].copy_from_slice(&other);
        }),
        ("missing", |bytes, entries| {
            let other = bytes[entries[5].clone()].to_vec();
            bytes[entries[4].clone()].copy_from_slice(&other);
        }),
        ("checksum", |bytes, entries| {
            let record = &mut bytes[entries[4].clone()];
            record[17 + 34] ^= 1;
            reseal(record);
        }),
    ];
    for (what, change) in cases {
        let copy = copied(dir.path());
        tamper(copy.path(), change);
        let data = data(copy.path());
        let (log, report) = open_log(&data);
        let why = report.recovering.expect("it is broken");
        assert!(why.contains(what), "{why}");
        assert_eq!((report.truncated_from, log.last()), (Some(4), Some(at(1, 3))));
        assert!(report.floor >= Some(at(1, 9)), "{:?}", report.floor);
        drop(log);
        let (log, report) = open_log(&data);
        assert!(report.recovering.is_some() && report.truncated_from.is_none(), "cut off, but not forgotten");
        append(&log, (4..11).map(|index| entry(1, index)).collect());
        drop(log);
        let (log, report) = open_log(&data);
        assert_eq!((report.recovering, all(&log)), (None, (0..11).map(|index| entry(1, index)).collect()));
    }
}

/// What is cut off is remembered even where the floor did not know of it.
#[test]
fn a_cut_raises_the_floor_over_what_it_cuts() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let (log, _) = open_log(&data(dir.path()));
        append(&log, (0..10).map(|index| entry(1, index)).collect());
    }
    fs::remove_file(dir.path().join("floor-0")).expect("removed");
    tamper(dir.path(), without_entry_4);
    let data = data(dir.path());
    let (log, report) = open_log(&data);
    assert_eq!((log.last(), report.floor), (Some(at(1, 3)), Some(at(1, 9))));
    drop(log);
    assert!(open_log(&data).1.recovering.is_some(), "a restart does not heal it");
}

/// An entry replaced by a sound one of another log: only the chain tells.
#[test]
fn a_spliced_entry_does_not_link() {
    let (dir, other) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    for (path, word) in [(dir.path(), "one"), (other.path(), "two")] {
        let (log, _) = open_log(&data(path));
        let entries = (0..10).map(|index| StoredEntry { bytes: word.into(), ..entry(1, index) }).collect();
        append(&log, entries);
    }
    let foreign = fs::read(newest_segment(other.path())).expect("read");
    tamper(dir.path(), |bytes, entries| bytes[entries[4].clone()].copy_from_slice(&foreign[entries[4].clone()]));
    let (log, report) = open_log(&data(dir.path()));
    assert!(report.recovering.is_some_and(|why| why.contains("link")));
    assert_eq!(log.last(), Some(at(1, 3)));
}

#[test]
fn no_flipped_byte_of_a_segment_shortens_the_log_in_silence() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data_dir = data(dir.path());
    let (log, _) = open_log(&data_dir);
    for index in 0..4 {
        append(&log, vec![StoredEntry { bytes: "x".into(), ..entry(1, index) }]);
    }
    wait_floor(&log);
    let original = copied(dir.path());
    let segment = newest_segment(original.path());
    let whole = fs::read(&segment).expect("read");
    let name = segment.strip_prefix(original.path()).expect("inside").to_owned();
    for byte in 0..whole.len() {
        let copy = copied(original.path());
        let mut flipped = whole.clone();
        flipped[byte] ^= 0x10;
        fs::write(copy.path().join(&name), flipped).expect("written");
        let copied = data(copy.path());
        let (log, report) = open_log(&copied);
        assert!(report.recovering.is_some(), "byte {byte}: all of it had been fsynced");
        assert!(report.floor >= Some(at(1, 3)), "byte {byte}: {report:?}");
        // What is left is filled up, and nothing of the damage is found again.
        let have = log.last().map_or(0, |last| last.index + 1);
        if have < 5 {
            append(&log, (have..5).map(|index| StoredEntry { bytes: "x".into(), ..entry(1, index) }).collect());
        }
        drop(log);
        let (log, report) = open_log(&copied);
        assert_eq!((report.recovering, report.quarantined, all(&log).len()), (None, None, 5), "byte {byte}");
    }
}

fn newest_segment(data: &Path) -> std::path::PathBuf {
    let logs = fs::read_dir(data.join("raft")).expect("list").map(|item| item.expect("item").path());
    logs.filter(|path| path.extension().is_some_and(|ext| ext == "log")).max().expect("a segment")
}

/// A power cut in the middle of an fsync: the newest segment has its new length, and some of its pages were not written,
/// the last ones or any others.
#[test]
fn a_write_that_a_power_cut_tore_is_cut_off_and_nothing_that_was_fsynced_is_lost() {
    const PAGE: usize = 4096;
    let large = |index| StoredEntry { bytes: vec![index as u8; 3000].into(), ..entry(1, index) };
    let dir = tempfile::tempdir().expect("tempdir");
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    let fsynced = {
        let (log, _) = open_log(&data(&dir.path().join("node")));
        append(&log, (0..20).map(large).collect());
        wait_floor(&log);
        image(&dir.path().join("node"), &before);
        // The floor of then: it follows an fsync, and this one never ended.
        append(&log, (20..60).map(large).collect());
        image(&dir.path().join("node"), &after);
        fs::metadata(newest_segment(&before)).expect("a segment").len() as usize
    };
    let whole = fs::read(newest_segment(&after)).expect("reads");
    let pages: Vec<_> = (fsynced.next_multiple_of(PAGE)..whole.len() - PAGE).step_by(PAGE).collect();
    let cases = pages.iter().flat_map(|page| [(*page, whole.len()), (*page, page + PAGE)]);
    let mut cut = 0;
    for (unwritten, upto) in cases {
        let torn = dir.path().join(format!("torn-{unwritten}-{upto}"));
        image(&before, &torn);
        let mut bytes = whole.clone();
        bytes[unwritten..upto].fill(0);
        fs::write(newest_segment(&torn), bytes).expect("writes");
        let (log, report) = open_log(&data(&torn));
        assert_eq!((&report.recovering, &report.quarantined), (&None, &None), "from {unwritten} on");
        cut += usize::from(report.torn.is_some());
        let last = log.last().expect("entries").index;
        assert!((19..60).contains(&last), "{last}");
        assert_eq!(log.read(0, last + 1, usize::MAX).expect("reads"), (0..=last).map(large).collect::<Vec<_>>());
        // It goes on as any log does.
        append(&log, vec![large(last + 1)]);
        log.close();
        drop(log);
        let (log, report) = open_log(&data(&torn));
        assert_eq!((log.last().map(|last| last.index), report.torn), (Some(last + 1), None));
    }
    assert!(cut > pages.len(), "{cut} of {} were torn: does the test tear them?", 2 * pages.len());
    // What was fsynced and is zeros now was lost by the disk: the floor knows.
    let mut bytes = fs::read(newest_segment(&before)).expect("reads");
    bytes[PAGE..].fill(0);
    fs::write(newest_segment(&before), bytes).expect("writes");
    let (_, report) = open_log(&data(&before));
    assert!(report.recovering.is_some_and(|reason| reason.contains("the floor says")), "{:?}", report.torn);
}

/// A vote may have been in what is damaged, so the node recovers though it has all entries.
#[test]
fn a_damaged_segment_is_kept_as_a_copy_and_the_vote_is_taken_from_the_floor() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let (log, _) = open_log(&data(dir.path()));
        append(&log, (0..5).map(|index| entry(1, index)).collect());
        save_vote(&log, vote(3));
        append(&log, vec![entry(3, 5)]);
        wait_floor(&log);
    }
    let path = newest_segment(dir.path());
    let mut bytes = fs::read(&path).expect("read");
    let votes: Vec<_> = records(&bytes).into_iter().filter(|record| bytes[record.start + 16] == 3).collect();
    let [vote_record] = votes.as_slice() else { panic!("one vote: {votes:?}") };
    bytes[vote_record.start + 20] ^= 1;
    fs::write(&path, &bytes).expect("written");
    let opened = data(dir.path());
    let (log, report) = open_log(&opened);
    let noted = opened.recovering().expect("reads").expect("before anything was mended");
    assert_eq!((Some(&noted.reason), noted.upto), (report.recovering.as_ref(), 5));
    let why = report.recovering.expect("what was there is not known");
    assert!(why.contains(&format!("bytes {}-{}", vote_record.start, vote_record.end)), "{why}");
    assert_eq!((log.last(), log.vote(), report.truncated_from), (Some(at(3, 5)), Some(vote(3)), None));
    let copies = report.quarantined.expect("a copy");
    assert!(copies.starts_with(dir.path().join("quarantine")));
    assert_eq!(fs::read(copies.join("000001.log")).expect("read"), bytes);
    drop((log, opened));
    let (log, report) = open_log(&data(dir.path()));
    assert_eq!(
        (report.recovering, report.quarantined, log.vote()),
        (None, None, Some(vote(3))),
        "it is not found twice"
    );
}

#[test]
fn a_torn_floor_is_reported_and_healed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = data(dir.path());
    {
        let (log, _) = open_log(&data);
        append(&log, vec![entry(1, 0)]);
    }
    fs::write(dir.path().join("floor-0"), vec![0; 8192]).expect("written");
    let (log, report) = open_log(&data);
    assert!(report.recovering.is_some_and(|why| why.contains("slots")));
    append(&log, vec![entry(1, 1)]);
    drop(log);
    assert_eq!(open_log(&data).1.recovering, None);
    fs::remove_file(dir.path().join("floor-0")).expect("removed");
    let (_log, report) = open_log(&data);
    assert!(report.floor_missing.is_some());
}

#[test]
fn truncation_under_a_running_fsync_vouches_for_nothing_new() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (log, _) = open_log(&data(dir.path()));
    append(&log, vec![entry(1, 0)]);
    for round in 1..60 {
        log.append((1..6).map(|index| entry(round, index)).collect(), Box::new(|_| {})).expect("appended");
        log.truncate_after(Some(at(1, 0))).expect("truncated");
        assert_eq!(log.durable_index(), 0);
        assert!(log.floor().0 <= Some(at(1, 0)), "round {round}: {:?}", log.floor().0);
    }
    log.flush_wal().expect("flushed");
    assert_eq!((log.durable_index(), log.last()), (0, Some(at(1, 0))));
}
