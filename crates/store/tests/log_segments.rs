//! The log in many small segments: whatever is done to it, and whenever the power is cut, it is what it is to be.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use holdfast_store::{DataDir, LogOptions, LogPosition, LogStore, StoredEntry, VoteRecord};
use proptest::prelude::*;
use support::{append, at, data, entry, image, open_log_with, wait_floor};

fn options(cache_bytes_max: usize) -> LogOptions {
    LogOptions { segment_bytes: Some(2048), cache_bytes_max, ..LogOptions::default() }
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(data.join("raft")).expect("list").map(|item| item.expect("item").path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

fn save_vote(log: &LogStore, vote: VoteRecord) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    log.save_vote(vote, Box::new(move |result| sender.send(result).expect("the test waits")));
    receiver.recv().expect("called").expect("fsynced");
}

#[test]
fn segments_are_deleted_once_all_their_entries_are_purged() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = data(dir.path());
    let (log, _) = open_log_with(&data, options(1));
    save_vote(&log, VoteRecord { term: 1, node: 2, committed: true });
    for index in 0..400 {
        append(&log, vec![entry(1, index)]);
    }
    let all = segments(dir.path()).len();
    assert!(all > 10, "{all} segments");
    log.purge(at(1, 200)).expect("purged");
    log.reclaim().expect("reclaimed");
    let half = segments(dir.path()).len();
    assert!((all / 3..2 * all / 3).contains(&half), "{half} of {all}");
    log.purge(at(1, 399)).expect("purged");
    log.reclaim().expect("reclaimed");
    assert_eq!(segments(dir.path()).len(), 1, "only the facts are left");
    log.close();
    drop(log);
    let (log, report) = open_log_with(&data, options(1));
    assert_eq!((report.recovering, report.entries, log.last()), (None, 0, Some(at(1, 399))));
    assert_eq!(log.vote(), Some(VoteRecord { term: 1, node: 2, committed: true }), "it was in the first segment");
    append(&log, vec![entry(1, 400)]);
    assert_eq!(log.read(400, 401, 0).expect("read"), [entry(1, 400)]);
}

/// Of three nodes that lost a file each nobody may say that it lost nothing.
#[test]
fn a_segment_that_is_gone_is_missed() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let (log, _) = open_log_with(&data(dir.path()), options(1));
        for index in 0..200 {
            append(&log, vec![entry(1, index)]);
        }
        wait_floor(&log);
    }
    let count = segments(dir.path()).len();
    for gone in 0..count {
        let copy = tempfile::tempdir().expect("tempdir");
        image(dir.path(), copy.path());
        fs::remove_file(&segments(copy.path())[gone]).expect("removed");
        let data = data(copy.path());
        let (log, report) = open_log_with(&data, options(1));
        let why = report.recovering.as_deref().unwrap_or_else(|| panic!("segment {gone} of {count}: {report:?}"));
        // The first one may have been purged, and the last one never written: entries and the floor tell.
        assert!(why.contains("is gone") || gone == 0 || gone == count - 1, "segment {gone} of {count}: {why}");
        assert!(report.floor >= Some(at(1, 199)));
        let have = log.last().map_or(0, |last| last.index + 1);
        append(&log, (have..210).map(|index| entry(1, index)).collect());
        drop(log);
        let (log, report) = open_log_with(&data, options(1));
        assert_eq!((report.recovering, log.last()), (None, Some(at(1, 209))), "segment {gone} of {count}");
    }
}

/// The log of another node is not taken for this one's, and not thrown away.
#[test]
fn segments_of_another_directory_are_set_aside() {
    let (dir, other) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    for (path, identity) in [(dir.path(), [5; 16]), (other.path(), [6; 16])] {
        let data = DataDir::open_or_create(path, 1, identity).expect("opens");
        let (log, _) = open_log_with(&data, LogOptions::default());
        append(&log, (0..10).map(|index| entry(1, index)).collect());
        wait_floor(&log);
    }
    let (own, foreign) = (segments(dir.path()), segments(other.path()));
    fs::copy(&foreign[0], &own[0]).expect("copied");
    let (log, report) = open_log_with(&data(dir.path()), LogOptions::default());
    assert!(report.recovering.is_some_and(|why| why.contains("the floor says")));
    assert_eq!(log.last(), None);
    let aside = report.torn.expect("it is no log of this directory").path;
    assert!(aside.starts_with(dir.path().join("quarantine")));
    assert_eq!(fs::read(aside).expect("read"), fs::read(&foreign[0]).expect("read"));
}

#[derive(Debug, Clone)]
enum Step {
    /// So many entries, a term later or not, and whether an fsync is waited for.
    Append(u64, bool, bool),
    Truncate(u64),
    Purge(u64),
    PurgeBeyond(u64),
    ResetTo(u64),
    Vote,
    Reclaim,
    Reopen,
    /// An image of the directory must hold all that was fsynced.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u64..30, any::<bool>(), any::<bool>()).prop_map(|(count, later, wait)| Step::Append(count, later, wait)),
        3 => (0u64..40).prop_map(Step::Truncate),
        3 => (0u64..60).prop_map(Step::Purge),
        1 => (1u64..20).prop_map(Step::PurgeBeyond),
        1 => (0u64..40).prop_map(Step::ResetTo),
        1 => Just(Step::Vote),
        2 => Just(Step::Reclaim),
        2 => Just(Step::Reopen),
        2 => Just(Step::Crash),
    ]
}

/// What the log is to be.
#[derive(Debug, Default)]
struct Model {
    purged: Option<LogPosition>,
    entries: Vec<StoredEntry>,
    term: u64,
    vote: Option<VoteRecord>,
}

impl Model {
    fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    fn last(&self) -> Option<LogPosition> {
        self.entries.last().map(|entry| entry.position).or(self.purged)
    }

    fn position(&self, index: u64) -> Option<LogPosition> {
        let at = index.checked_sub(self.first()).and_then(|at| usize::try_from(at).ok());
        at.map_or(self.purged, |at| self.entries.get(at).map(|entry| entry.position))
    }

    fn check(&self, log: &LogStore) {
        assert_eq!((log.purged(), log.last(), log.vote()), (self.purged, self.last(), self.vote));
        assert_eq!(log.read(self.first(), u64::MAX, usize::MAX).expect("read"), self.entries);
        for from in (0..self.entries.len()).step_by(7) {
            let start = self.first() + from as u64;
            let some: Vec<_> = self.entries[from..].iter().take(5).cloned().collect();
            assert_eq!(log.read(start, start + 5, usize::MAX).expect("read"), some);
        }
    }
}

fn run(steps: &[Step], cache_bytes_max: usize) {
    let dir = tempfile::tempdir().expect("tempdir");
    let data: DataDir = data(dir.path());
    let (mut log, _) = open_log_with(&data, options(cache_bytes_max));
    let mut model = Model { term: 1, ..Model::default() };
    for step in steps {
        let last = model.last().map_or(0, |last| last.index);
        match step {
            Step::Append(count, later, wait) => {
                model.term += u64::from(*later);
                let from = model.last().map_or(0, |last| last.index + 1);
                let entries: Vec<_> = (from..from + count).map(|index| entry(model.term, index)).collect();
                if *wait {
                    append(&log, entries.clone());
                } else {
                    log.append(entries.clone(), Box::new(|_| {})).expect("appended");
                }
                model.entries.extend(entries);
            }
            Step::Truncate(count) => {
                let keep = model.entries.len().saturating_sub(*count as usize);
                model.entries.truncate(keep);
                log.truncate_after(model.last()).expect("truncated");
                model.term += 1;
            }
            Step::Purge(count) if !model.entries.is_empty() => {
                let upto = (model.first() + count).min(last);
                let position = model.position(upto).expect("it is there");
                log.purge(position).expect("purged");
                model.entries.retain(|entry| entry.position.index > upto);
                model.purged = Some(position);
            }
            Step::PurgeBeyond(more) => {
                model.term += 1;
                let position = at(model.term, last + more);
                log.purge(position).expect("purged");
                (model.purged, model.entries) = (Some(position), Vec::new());
            }
            Step::ResetTo(back) => {
                model.term += 1;
                let index = last.saturating_sub(*back);
                if model.purged.is_none_or(|purged| index > purged.index) {
                    log.reset_to(at(model.term, index)).expect("reset");
                    (model.purged, model.entries) = (Some(at(model.term, index)), Vec::new());
                }
            }
            Step::Vote => {
                model.term += 1;
                let vote = VoteRecord { term: model.term, node: 3, committed: false };
                save_vote(&log, vote);
                model.vote = Some(vote);
            }
            Step::Purge(_) => {}
            Step::Reclaim => log.reclaim().expect("reclaimed"),
            Step::Reopen => {
                log.flush_wal().expect("flushed");
                log.close();
                drop(log);
                log = open_log_with(&data, options(cache_bytes_max)).0;
            }
            Step::Crash => {
                log.flush_wal().expect("flushed");
                let copy = tempfile::tempdir().expect("tempdir");
                image(dir.path(), copy.path());
                let (again, report) = open_log_with(&support::data(copy.path()), options(cache_bytes_max));
                assert_eq!((report.truncated_from, report.torn, report.quarantined), (None, None, None));
                model.check(&again);
            }
        }
        model.check(&log);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn it_is_what_was_put_into_it(steps in prop::collection::vec(step(), 1..60), cache in prop_oneof![Just(1), Just(400), Just(1usize << 20)]) {
        run(&steps, cache);
    }

    /// The last write of a log loses any of its bytes: what was fsynced before is whole, and the log goes on.
    #[test]
    fn a_torn_write_takes_nothing_with_it(before in 1u64..120, more in 1u64..40, holes in prop::collection::vec((0.0f64..1.0, 1usize..600), 1..4)) {
        let dir = tempfile::tempdir().expect("tempdir");
        let (early, late) = (dir.path().join("early"), dir.path().join("late"));
        {
            let (log, _) = open_log_with(&data(&dir.path().join("node")), options(1));
            for index in 0..before {
                append(&log, vec![entry(1, index)]);
            }
            wait_floor(&log);
            image(&dir.path().join("node"), &early);
            append(&log, (before..before + more).map(|index| entry(1, index)).collect());
            image(&dir.path().join("node"), &late);
        }
        // All that the last write added, in the last segment or in a new one.
        let (old, new) = (segments(&early), segments(&late));
        let newest = new.last().expect("a segment");
        let target = early.join("raft").join(newest.file_name().expect("name"));
        let kept = if old.contains(&target) { fs::metadata(&target).expect("there").len() as usize } else { 0 };
        let mut bytes = fs::read(newest).expect("read");
        for (from, length) in holes {
            let from = kept + ((bytes.len() - kept) as f64 * from) as usize;
            let upto = (from + length).min(bytes.len());
            bytes[from..upto].fill(0);
        }
        for path in &new[..new.len() - 1] {
            fs::copy(path, early.join("raft").join(path.file_name().expect("name"))).expect("copied");
        }
        fs::write(&target, bytes).expect("written");
        let data = data(&early);
        let (log, report) = open_log_with(&data, options(1));
        prop_assert_eq!((&report.recovering, &report.quarantined), (&None, &None));
        let last = log.last().expect("entries").index;
        prop_assert!(last + 1 >= before && last < before + more, "{}", last);
        let expected: Vec<_> = (0..=last).map(|index| entry(1, index)).collect();
        prop_assert_eq!(log.read(0, last + 1, usize::MAX).expect("read"), expected);
        append(&log, vec![entry(1, last + 1)]);
        drop(log);
        let (log, report) = open_log_with(&data, options(1));
        prop_assert_eq!((report.recovering, log.last()), (None, Some(at(1, last + 1))));
    }
}
