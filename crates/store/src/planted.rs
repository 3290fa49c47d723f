//! Bugs on purpose, which the fault suite must find (`jepsen-tests/README.md`).
//!
//! Only builds with the cargo feature `planted` hold them, and then one at most is active: the one that the environment
//! names in `PLANTED_BUG`. No release build has the feature; there every question is a constant no.

/// A bug that has destroyed data in systems like this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Appends are acknowledged when the kernel has them, before they are fsynced.
    AckBeforeFsync,
    /// A linearizable read is answered from whatever this node has, without asking a quorum.
    StaleRead,
    /// A vote is granted and not saved.
    VoteNotSaved,
    /// Now and then a write leaves no row in the change feed.
    ChangeRowDropped,
    /// A snapshot from the leader comes without the memory of requests.
    DedupForgotten,
    /// The log is shipped offsite as it is written, not as it is committed.
    ShippedBeforeCommit,
    /// A restore leaves out what the last entries did.
    RestoreShort,
    /// Entries that a leader took back are forgotten in memory, and stay on disk.
    TruncateNotDurable,
}

/// Whether this process has that bug.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}

/// Whether this fsync is one of those that the bug leaves out: all but one in half a second, so that a power cut takes the
/// end of the log and not the whole of it, which any start would notice. The floor is not raised meanwhile: it follows
/// what is fsynced, and a floor that ran ahead of that would have each node say what it lost.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(crate) const fn leaves_out_fsync() -> bool {
    false
}

/// Whether this fsync is one of those that the bug leaves out.
#[cfg(feature = "planted")]
pub(crate) fn leaves_out_fsync() -> bool {
    static LAST: std::sync::Mutex<Option<std::time::Instant>> = std::sync::Mutex::new(None);
    if !is(Bug::AckBeforeFsync) {
        return false;
    }
    let mut last = LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if last.is_some_and(|last| last.elapsed() < std::time::Duration::from_millis(500)) {
        return true;
    }
    *last = Some(std::time::Instant::now());
    false
}

/// Whether this process has that bug.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    static ACTIVE: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    *ACTIVE.get_or_init(active) == Some(bug)
}

#[cfg(feature = "planted")]
fn active() -> Option<Bug> {
    let name = std::env::var_os("PLANTED_BUG")?;
    let known = [
        ("ack-before-fsync", Bug::AckBeforeFsync),
        ("stale-read", Bug::StaleRead),
        ("vote-not-saved", Bug::VoteNotSaved),
        ("change-row-dropped", Bug::ChangeRowDropped),
        ("dedup-forgotten", Bug::DedupForgotten),
        ("shipped-before-commit", Bug::ShippedBeforeCommit),
        ("restore-short", Bug::RestoreShort),
        ("truncate-not-durable", Bug::TruncateNotDurable),
    ];
    let found = known.iter().find(|(known, _)| name.to_str() == Some(*known)).map(|(_, bug)| *bug);
    // A misspelt bug would be one that no checker needs to find.
    assert!(found.is_some(), "PLANTED_BUG={name:?} is none of {:?}", known.map(|(name, _)| name));
    found
}
