//! The data directory: created once, never taken for another's.

mod support;

use std::fs;

use holdfast_store::{DataDir, StoreError};
use support::data;

#[test]
fn it_is_created_once_and_keeps_its_identity() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a/b/node");
    let first = DataDir::open_or_create(&path, 3, [1; 16]).expect("created");
    assert!(first.created());
    assert_eq!((first.identity().node_id, first.identity().identity, first.identity().cluster_id), (3, [1; 16], None));
    first.set_cluster([9; 16]).expect("bound");
    drop(first);
    let again = DataDir::open_or_create(&path, 3, [2; 16]).expect("opened");
    assert!(!again.created());
    assert_eq!((again.identity().identity, again.identity().cluster_id), ([1; 16], Some([9; 16])));
    again.set_cluster([9; 16]).expect("the same cluster is fine");
    let error = again.set_cluster([8; 16]).expect_err("another cluster is not");
    assert!(error.to_string().contains("belongs to cluster"), "{error}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let first = data(dir.path());
    assert!(matches!(DataDir::open_or_create(dir.path(), 1, [5; 16]), Err(StoreError::Locked { .. })));
    drop(first);
    data(dir.path());
}

#[test]
fn another_nodes_directory_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(data(dir.path()));
    let error = DataDir::open_or_create(dir.path(), 2, [5; 16]).expect_err("node 1 made it");
    assert!(error.to_string().contains("belongs to node 1, not to node 2"), "{error}");
}

#[test]
fn a_foreign_directory_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::write(dir.path().join("thesis.tex"), "my only copy").expect("written");
    let error = DataDir::open_or_create(dir.path(), 1, [5; 16]).expect_err("it is not ours");
    assert!(error.to_string().contains("no IDENTITY"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "nothing was added");
}

#[test]
fn a_lost_identity_beside_data_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (log, _) = support::open_log(&data(dir.path()));
    drop(log);
    fs::remove_file(dir.path().join("IDENTITY")).expect("removed");
    assert!(matches!(DataDir::open_or_create(dir.path(), 1, [5; 16]), Err(StoreError::Mismatch { .. })));
}

#[test]
fn a_newer_or_unknown_format_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(data(dir.path()));
    for (text, expected) in [("holdfast format 5\n", "says format 5"), ("gibberish", "does not name a format")] {
        fs::write(dir.path().join("FORMAT"), text).expect("written");
        let error = DataDir::open_or_create(dir.path(), 1, [5; 16]).expect_err("not known");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn every_damaged_byte_of_the_identity_is_found() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(data(dir.path()));
    let path = dir.path().join("IDENTITY");
    let whole = fs::read(&path).expect("read");
    // The last byte is the line end after the checksum.
    for at in 0..whole.len() - 1 {
        let mut torn = whole.clone();
        torn[at] ^= 0x04;
        fs::write(&path, &torn).expect("written");
        assert!(DataDir::open_or_create(dir.path(), 1, [5; 16]).is_err(), "byte {at}");
    }
}

/// A creation may stop after any of its steps; the next start makes a whole directory of it.
#[test]
fn a_creation_cut_short_is_finished() {
    let whole = tempfile::tempdir().expect("tempdir");
    drop(data(whole.path()));
    let steps = ["LOCK", "FORMAT", "raft", "state", "snapshots", "outbox", "quarantine", "IDENTITY.tmp"];
    for made in 0..=steps.len() {
        let dir = tempfile::tempdir().expect("tempdir");
        for step in &steps[..made] {
            let (from, to) = (whole.path().join(step), dir.path().join(step));
            if from.is_dir() {
                fs::create_dir(to).expect("mkdir");
            } else {
                fs::write(to, fs::read(from).unwrap_or_else(|_| b"half an ident".to_vec())).expect("written");
            }
        }
        let opened = data(dir.path());
        assert!(opened.created(), "after {made} steps");
        assert_eq!(opened.identity().identity, [5; 16]);
    }
}
