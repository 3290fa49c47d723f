//! All tests, in order of their numbers.
//!
//! Invariant: a number is that of the API's list for ever; [`NUMBERS`] says which of them stand here.

use std::pin::Pin;

use crate::case::Case;
use crate::disaster::staged;
use crate::failure::Outcome;
use crate::{
    bad_input, dedup, devices, disaster, faults, feed, guards, minority, paging, quota, reads, streamed, tokens, watch,
    writes,
};

/// The numbers that have a test. Not yet: 34, 42–44, 46 (undelete, blobs, erasure, export, tenants). 4 needs nodes with clocks of their own, which no cluster outside offers.
pub const NUMBERS: &[u8] = &[
    1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
    33, 35, 36, 37, 38, 39, 40, 41, 45, 47, 48, 49,
];

/// Which tests may run beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Beside all others: users of its own, public calls only.
    Public,
    /// As `Public`, on a cluster that forgets within seconds.
    Brisk,
    /// One after the other, on a cluster whose nodes may be stopped and killed.
    Faults,
    /// One after the other, on clusters that are lost and restored.
    Disaster,
    /// After those of `Disaster`: on the public cluster, and on the restored one.
    Both,
    /// When all others have ended.
    Last,
}

type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// A test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Number of its promise.
    pub number: u8,
    /// Name of its function.
    pub name: &'static str,
    /// Beside whom it runs.
    pub lane: Lane,
    /// Runs it.
    pub run: for<'a> fn(&'a Case) -> Running<'a>,
}

impl Test {
    /// As `--only` names it.
    pub fn short(&self) -> &'static str {
        &self.name[..3]
    }
}

macro_rules! catalogue {
    ($($number:literal $lane:ident $module:ident::$name:ident)*) => {
        /// All tests.
        pub const TESTS: &[Test] = &[$(Test {
            number: $number,
            name: stringify!($name),
            lane: Lane::$lane,
            run: |case| Box::pin($module::$name(case)),
        }),*];
    };
}

catalogue! {
    1 Faults faults::c01_an_acknowledged_write_survives_any_minority_crash
    2 Faults faults::c02_a_batch_commits_whole_or_not_at_all
    3 Public writes::c03_a_batch_takes_one_version_without_gaps
    5 Public guards::c05_of_two_equal_guards_one_wins
    6 Public guards::c06_absent_passes_on_a_tombstone
    7 Faults dedup::c07_the_same_request_gets_the_same_answer
    8 Public dedup::c08_an_id_with_another_body_is_refused
    9 Public dedup::c09_an_id_beyond_the_window_is_refused
    10 Public guards::c10_a_failed_guard_leaves_no_trace
    11 Public writes::c11_a_key_twice_in_a_batch_is_refused
    12 Public writes::c12_an_identical_put_changes_nothing
    13 Public feed::c13_the_feed_shows_each_record_once_and_newest
    14 Public paging::c14_a_page_never_splits_a_commit
    15 Public paging::c15_every_page_size_reaches_the_same_state
    16 Public paging::c16_replaying_a_page_is_harmless
    17 Public feed::c17_an_up_to_date_token_stays_current
    18 Public feed::c18_a_first_sync_has_no_tombstones
    19 Public paging::c19_writes_during_paging_are_seen
    20 Public paging::c20_the_digest_equals_a_recomputation
    21 Public tokens::c21_a_wrong_token_is_refused_by_kind
    22 Faults tokens::c22_a_token_is_valid_on_every_node
    23 Faults tokens::c23_a_lagging_follower_waits_or_says_so
    24 Disaster disaster::c24_a_token_at_the_fork_continues
    25 Disaster disaster::c25_a_token_beyond_the_fork_is_rolled_back
    26 Disaster disaster::c26_two_restores_are_told_apart
    27 Disaster disaster::c27_a_restore_without_the_bump_does_not_serve
    28 Disaster disaster::c28_devices_upload_again_in_any_order
    29 Disaster disaster::c29_lost_deletes_sent_again_hold
    30 Disaster staged::c30_a_restoring_collection_is_never_empty
    31 Brisk devices::c31_a_tombstone_is_kept_until_age_and_acks
    32 Brisk devices::c32_an_expired_token_reconciles_by_manifest
    33 Public devices::c33_a_ttl_ends_in_a_committed_tombstone
    35 Both quota::c35_the_quota_is_exact_under_concurrency
    36 Public reads::c36_at_least_reads_own_writes_on_followers
    37 Faults minority::c37_a_deposed_leader_answers_no_linearizable_read
    38 Faults reads::c38_max_staleness_is_honoured_or_refused
    39 Faults minority::c39_a_minority_acknowledges_nothing_and_still_reads
    40 Faults minority::c40_a_timeout_after_propose_is_an_unknown_outcome
    41 Public watch::c41_a_watch_loses_no_wake_up
    45 Public bad_input::c45_every_error_says_why
    47 Public bad_input::c47_limits_are_enforced_before_propose
    48 Last reads::c48_replica_digests_agree
    49 Public streamed::c49_a_stream_of_writes_answers_each_as_a_write_of_its_own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_agree() {
        let numbers: Vec<u8> = TESTS.iter().map(|test| test.number).collect();
        assert_eq!(numbers, NUMBERS);
        for test in TESTS {
            assert_eq!(test.short(), format!("c{:02}", test.number));
            assert!(test.name.len() > 4 && test.name.as_bytes()[3] == b'_', "{}", test.name);
        }
    }
}
