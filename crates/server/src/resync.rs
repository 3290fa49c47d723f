//! What a token means: whether a device continues, and if not, what it is told.
//!
//! Invariants: no answer ever means "wipe"; a verdict other than "continue" is only told from a state that a quorum
//! confirmed, because a replica that is behind knows neither the newest versions nor the newest history.

use std::time::Duration;

use holdfast_model::id::{Collection, Incarnation, UserId, Version};
use holdfast_model::state::{Sys, UserRow};
use holdfast_wire::token::{SyncToken, user_tag};
use holdfast_wire::v1;

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

/// Tombstones that the holder of `token` needs are gone. Who still pages through a sync from zero needs none up to where
/// that began.
fn is_expired(token: &SyncToken, horizon: Version) -> bool {
    token.version.max(token.fresh_until) < horizon
}

/// Where a device goes on after it did what a resync told it.
pub fn resume_at(info: &v1::ResyncInfo) -> Version {
    match v1::ResyncReason::try_from(info.reason) {
        // What was forgotten since is not to be had again; the manifest covers it.
        Ok(v1::ResyncReason::UnknownIncarnation) => Version(info.tombstone_horizon),
        Ok(_) | Err(_) => Version(info.common_version),
    }
}

/// Judges `token` against the group's facts and the user's row (`None` = the user is unknown here).
pub fn judge(token: &SyncToken, sys: &Sys, user: Option<&UserRow>) -> Verdict {
    let head = user.map_or(Version(0), |row| row.head);
    let horizon = user.map_or(Version(0), |row| row.tombstone_horizon);
    let current = sys.history.as_ref().map(|history| history.incarnation);
    if Some(token.incarnation) == current {
        return match token.version {
            version if version.max(token.seen) > head => Verdict::FromFuture,
            _ if is_expired(token, horizon) => Verdict::Expired,
            version => Verdict::Continue(version),
        };
    }
    match common_version(token.incarnation, sys, user) {
        None => Verdict::UnknownIncarnation,
        Some(common) if token.version > common => Verdict::RolledBack { common },
        // Rows that the lost part of the history had moved were passed over: only a comparison finds them.
        Some(common) if token.seen > common => Verdict::Expired,
        Some(_) if is_expired(token, horizon) => Verdict::Expired,
        Some(_) => Verdict::Continue(token.version),
    }
}

fn common_version(incarnation: Incarnation, sys: &Sys, user: Option<&UserRow>) -> Option<Version> {
    match user {
        Some(row) => row.common_with(sys, incarnation),
        None => sys.ancestors.iter().any(|one| one.incarnation == incarnation).then_some(Version(0)),
    }
}

impl Verdict {
    /// What a device is told that cannot continue; `None` = it can. The token to resume with is the caller's to make: it
    /// stands at `common_version`.
    pub fn resync(self, sys: &Sys, name: &UserId, user: Option<&UserRow>, pace: u64) -> Option<v1::ResyncInfo> {
        let head = user.map_or(Version(0), |row| row.head);
        let horizon = user.map_or(Version(0), |row| row.tombstone_horizon);
        let (reason, common) = match self {
            Self::Continue(_) => return None,
            Self::RolledBack { common } => (v1::ResyncReason::RolledBack, common),
            Self::UnknownIncarnation => (v1::ResyncReason::UnknownIncarnation, Version(0)),
            Self::FromFuture => (v1::ResyncReason::TokenFromFuture, head),
            Self::Expired => (v1::ResyncReason::TokenExpired, horizon),
        };
        // One device that was away comes alone.
        let is_disaster = matches!(self, Self::RolledBack { .. } | Self::UnknownIncarnation);
        Some(v1::ResyncInfo {
            reason: reason.into(),
            common_version: common.0,
            tombstone_horizon: horizon.0,
            resume_token: String::new(),
            start_after_ms: if is_disaster { spread(sys, name, pace).as_millis() as u32 } else { 0 },
            collection_order: Collection::WELL_KNOWN.iter().map(|name| (*name).to_owned()).collect(),
        })
    }
}

/// After a loss the whole fleet comes at once: each user starts at a moment of its own, spread so that about `pace` users
/// start in a second. At most an hour.
fn spread(sys: &Sys, name: &UserId, pace: u64) -> Duration {
    let window_ms = (sys.totals.users.saturating_mul(1000) / pace.max(1)).min(3_600_000);
    Duration::from_millis(user_tag(name) % (window_ms + 1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_model::id::{Millis, Uid};
    use holdfast_model::state::{Ancestor, Fork, History};

    use super::*;

    fn sys() -> Sys {
        Sys {
            history: Some(Arc::new(History {
                cluster_id: [1; 16],
                cluster_name: "c".into(),
                incarnation: Incarnation(20),
                epoch: 2,
                parent: None,
                genesis_index: 1,
            })),
            ancestors: vec![Ancestor { incarnation: Incarnation(10), epoch: 1 }],
            ..Sys::default()
        }
    }

    fn row(head: Version, forks: Vec<Fork>) -> UserRow {
        UserRow { head, forks, ..UserRow::default() }
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
            seen: Version(0),
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
    fn a_token_below_the_horizon_is_expired_unless_it_needs_no_tombstones() {
        let horizon = Version::new(2, 3);
        let row = UserRow { tombstone_horizon: horizon, ..row(Version::new(2, 9), vec![]) };
        let of = |version, fresh_until| judge(&SyncToken { fresh_until, ..token(20, version) }, &sys(), Some(&row));
        assert_eq!(of(Version::new(2, 2), Version(0)), Verdict::Expired);
        assert_eq!(of(horizon, Version(0)), Verdict::Continue(horizon));
        let paging = Version::new(2, 1);
        assert_eq!(of(paging, horizon), Verdict::Continue(paging), "had nothing of what was deleted before it began");
        assert_eq!(of(paging, Version::new(2, 2)), Verdict::Expired, "the page was left for so long");
    }

    #[test]
    fn a_page_is_continued_from_a_state_as_new_as_its_own_only() {
        let fork = Version::new(1, 5);
        let forks = vec![Fork { incarnation: Incarnation(10), common: fork }];
        let row = row(Version::new(2, 3), forks);
        let of =
            |incarnation, version, seen| judge(&SyncToken { seen, ..token(incarnation, version) }, &sys(), Some(&row));
        let (low, head) = (Version::new(1, 2), Version::new(2, 3));
        assert_eq!(of(20, low, head), Verdict::Continue(low));
        assert_eq!(of(20, low, Version::new(2, 4)), Verdict::FromFuture, "this replica is behind the page's state");
        assert_eq!(of(10, low, fork), Verdict::Continue(low));
        assert_eq!(of(10, low, Version::new(1, 6)), Verdict::Expired, "records moved into what was lost");
    }

    #[test]
    fn a_fleet_is_spread_by_its_size() {
        let user = |number: u64| UserId::new(&format!("user-{number}")).expect("valid");
        let of = |users, pace| {
            let sys = Sys { totals: holdfast_model::state::Totals { users, ..Default::default() }, ..sys() };
            (0..1000).map(|number| spread(&sys, &user(number), pace).as_millis()).collect::<Vec<_>>()
        };
        assert!(of(3, 200).iter().all(|ms| *ms <= 15), "a few start at once");
        let many = of(100_000, 100);
        assert!(many.iter().all(|ms| *ms <= 1_000_000));
        let late = many.iter().filter(|ms| **ms > 500_000).count();
        assert!((350..650).contains(&late), "{late} of 1000 in the second half");
        assert!(of(u64::MAX, 1).iter().all(|ms| *ms <= 3_600_000), "an hour at most");
    }

    #[test]
    fn a_token_ahead_of_the_head_is_from_the_future() {
        let row = row(Version::new(2, 3), vec![]);
        assert_eq!(judge(&token(20, Version::new(2, 4)), &sys(), Some(&row)), Verdict::FromFuture);
        let head = Version::new(2, 3);
        assert_eq!(judge(&token(20, head), &sys(), Some(&row)), Verdict::Continue(head));
    }
}
