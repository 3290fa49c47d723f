//! What the tests of this crate share: directories, crash images, waiting for an fsync.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::Path;
use std::sync::mpsc;

use bytes::Bytes;
use holdfast_model::id::GroupId;
use holdfast_store::{DataDir, LogOptions, LogPosition, LogReport, LogStore, StoredEntry};

pub const GROUP: GroupId = GroupId(0);

pub fn data(path: &Path) -> DataDir {
    DataDir::open_or_create(path, 1, [5; 16]).expect("the data directory opens")
}

pub fn open_log(data: &DataDir) -> (LogStore, LogReport) {
    open_log_with(data, LogOptions::default())
}

/// Fatal failures panic on their thread instead of ending the test process.
pub fn open_log_with(data: &DataDir, options: LogOptions) -> (LogStore, LogReport) {
    let options = LogOptions { on_fatal: Box::new(|reason| eprintln!("fatal: {reason}")), ..options };
    LogStore::open(data, GROUP, options).expect("the log opens")
}

pub fn at(term: u64, index: u64) -> LogPosition {
    LogPosition { term, node: 1, index }
}

pub fn entry(term: u64, index: u64) -> StoredEntry {
    StoredEntry { position: at(term, index), bytes: Bytes::from(format!("entry {index} of term {term}")) }
}

/// Appends and waits for the fsync.
pub fn append(log: &LogStore, entries: Vec<StoredEntry>) {
    let (sender, receiver) = mpsc::sync_channel(1);
    log.append(entries, Box::new(move |result| sender.send(result).expect("the test waits"))).expect("appended");
    receiver.recv().expect("called").expect("fsynced");
}

/// Waits until the floor says what the log has fsynced.
pub fn wait_floor(log: &LogStore) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while log.floor().0 != log.last() {
        assert!(std::time::Instant::now() < deadline, "the floor stays behind");
        std::thread::yield_now();
    }
}

/// A crash image: the directory as a power cut would leave it, taken while it is in use.
pub fn image(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("mkdir");
    for item in fs::read_dir(from).expect("list") {
        let item = item.expect("item");
        let target = to.join(item.file_name());
        if item.file_type().expect("type").is_dir() {
            image(&item.path(), &target);
        } else if let Err(error) = fs::copy(item.path(), target) {
            // A segment that is purged is deleted while the others are copied.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}: {error}", item.path().display());
        }
    }
}
