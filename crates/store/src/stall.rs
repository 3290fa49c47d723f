//! A RocksDB that met the end of the disk, and does not take writes until it has gone on from that.
//!
//! It tries by itself every five seconds, once the largest write buffer of its families fits on the disk, and two things
//! of ours would keep it from that for ever: a write that it holds back (the flush it needs waits for that write, and the
//! write for the flush), and flushes that we ask for again and again (it waits until none is under way). So who writes
//! where a disk may be full asks not to be held back, and who flushes asks here first.

use rocksdb::{DB, Error, ErrorKind, WriteBatch, WriteOptions};

/// True when RocksDB would hold a write back, and gave it back as it was asked to.
pub(crate) fn is_stalled(error: &Error) -> bool {
    error.kind() == ErrorKind::Incomplete
}

/// Fails with what RocksDB stopped for, if it did. Writes nothing.
pub(crate) fn check(db: &DB) -> Result<(), Error> {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options.set_no_slowdown(true);
    match db.write_opt(WriteBatch::default(), &options) {
        Err(error) if is_stalled(&error) => Ok(()),
        other => other,
    }
}
