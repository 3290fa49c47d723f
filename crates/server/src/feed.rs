//! Waking those who wait for a user's changes, and judging tokens.
//!
//! Invariant: a waiter registers before it looks at the state, so a change between the look and the wait wakes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_model::id::{Incarnation, UserId, Version};
use holdfast_model::state::{Sys, UserRow};
use holdfast_wire::token::SyncToken;
use tokio::sync::Notify;

/// Who waits for which user.
#[derive(Default)]
pub struct Feed {
    waiting: Mutex<HashMap<UserId, (Arc<Notify>, usize)>>,
}

/// A registered wait; forgotten when dropped.
pub struct Waiter {
    feed: Arc<Feed>,
    user: UserId,
    notify: Arc<Notify>,
}

impl Feed {
    /// Registers a wait for `user`.
    pub fn wait_for(self: &Arc<Self>, user: &UserId) -> Waiter {
        let mut waiting = self.locked();
        let (notify, count) = waiting.entry(user.clone()).or_default();
        *count += 1;
        Waiter { feed: self.clone(), user: user.clone(), notify: notify.clone() }
    }

    /// Wakes all who wait for these users.
    pub fn touched(&self, users: &[(UserId, Version)]) {
        if users.is_empty() {
            return;
        }
        let waiting = self.locked();
        if waiting.is_empty() {
            return;
        }
        for (user, _) in users {
            if let Some((notify, _)) = waiting.get(user) {
                notify.notify_waiters();
            }
        }
    }

    /// Wakes everyone: the whole state was replaced, or the node drains.
    pub fn wake_all(&self) {
        for (notify, _) in self.locked().values() {
            notify.notify_waiters();
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<UserId, (Arc<Notify>, usize)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// A future that is armed from now on.
    pub fn armed(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.feed.locked();
        if let Some((_, count)) = waiting.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.user);
            }
        }
    }
}

/// What a token means against a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Continue after this version.
    Continue(Version),
    /// The server was restored from older state: the device re-uploads what lies above.
    RolledBack {
        /// Last shared version.
        common: Version,
    },
    /// The history is not known: reconcile by manifest.
    UnknownIncarnation,
    /// Ahead of the head in the same history: a fault of this service, or a replica that is behind.
    FromFuture,
    /// Below the horizon of tombstones: reconcile by manifest.
    Expired,
}

/// Judges `token` against the group's facts and the user's row (`None` = the user is unknown here).
pub fn judge(token: &SyncToken, sys: &Sys, user: Option<&UserRow>) -> Verdict {
    let head = user.map_or(Version(0), |row| row.head);
    let horizon = user.map_or(Version(0), |row| row.tombstone_horizon);
    let current = sys.history.as_ref().map(|history| history.incarnation);
    if Some(token.incarnation) == current {
        return match token.version {
            version if version > head => Verdict::FromFuture,
            version if version < horizon => Verdict::Expired,
            version => Verdict::Continue(version),
        };
    }
    match common_version(token.incarnation, sys, user) {
        None => Verdict::UnknownIncarnation,
        Some(common) if token.version > common => Verdict::RolledBack { common },
        Some(_) if token.version < horizon => Verdict::Expired,
        Some(_) => Verdict::Continue(token.version),
    }
}

fn common_version(incarnation: Incarnation, sys: &Sys, user: Option<&UserRow>) -> Option<Version> {
    match user {
        Some(row) => row.common_with(sys, incarnation),
        None => sys.ancestors.iter().any(|one| one.incarnation == incarnation).then_some(Version(0)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use holdfast_model::id::{Millis, Uid};
    use holdfast_model::outcome::Usage;
    use holdfast_model::state::{Ancestor, Fork, History};

    use super::*;

    fn sys() -> Sys {
        Sys {
            history: Some(History {
                cluster_id: [1; 16],
                cluster_name: "c".into(),
                incarnation: Incarnation(20),
                epoch: 2,
                parent: None,
                genesis_index: 1,
            }),
            ancestors: vec![Ancestor { incarnation: Incarnation(10), epoch: 1 }],
            ..Sys::default()
        }
    }

    fn row(head: Version, forks: Vec<Fork>) -> UserRow {
        UserRow { head, tombstone_horizon: Version(0), usage: Usage::default(), collections: BTreeMap::new(), forks }
    }

    fn token(incarnation: u64, version: Version) -> SyncToken {
        SyncToken {
            incarnation: Incarnation(incarnation),
            user_tag: 0,
            uid: Uid(1),
            version,
            filter: 0,
            issued: Millis(0),
            fresh_until: Version(0),
        }
    }

    #[test]
    fn tokens_of_the_old_history_continue_up_to_the_fork_and_not_beyond() {
        let fork = Version::new(1, 5);
        let forks = vec![Fork { incarnation: Incarnation(10), common: fork }];
        for row in [row(fork, vec![]), row(Version::new(2, 3), forks)] {
            let judge = |version| judge(&token(10, version), &sys(), Some(&row));
            assert_eq!(judge(fork), Verdict::Continue(fork));
            assert_eq!(judge(Version::new(1, 6)), Verdict::RolledBack { common: fork });
        }
        assert_eq!(judge(&token(10, fork), &sys(), None), Verdict::RolledBack { common: Version(0) });
        assert_eq!(judge(&token(99, fork), &sys(), Some(&row(fork, vec![]))), Verdict::UnknownIncarnation);
    }

    #[test]
    fn a_token_ahead_of_the_head_is_from_the_future() {
        let row = row(Version::new(2, 3), vec![]);
        assert_eq!(judge(&token(20, Version::new(2, 4)), &sys(), Some(&row)), Verdict::FromFuture);
        let head = Version::new(2, 3);
        assert_eq!(judge(&token(20, head), &sys(), Some(&row)), Verdict::Continue(head));
    }

    #[tokio::test]
    async fn a_change_between_registration_and_wait_wakes() {
        let feed = Arc::new(Feed::default());
        let user = UserId::new("alice").expect("valid");
        let waiter = feed.wait_for(&user);
        {
            let armed = waiter.armed();
            tokio::pin!(armed);
            armed.as_mut().enable();
            feed.touched(&[(user.clone(), Version(1))]);
            armed.await;
        }
        drop(waiter);
        assert!(feed.locked().is_empty(), "a wait that ended is forgotten");
    }
}
