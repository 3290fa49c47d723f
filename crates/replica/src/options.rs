//! How a replica is run.

use std::path::PathBuf;

use holdfast_model::command::{Genesis, Policy};
use holdfast_model::id::GroupId;
use holdfast_wire::internal::v1 as pb;
use openraft::{Config, SnapshotPolicy};

use crate::integrity::IntegrityOptions;
use crate::outbox::OutboxOptions;
use crate::types::Member;

/// How to run a replica. Times in milliseconds.
pub struct Options {
    /// Group.
    pub group: GroupId,
    /// Leader's heartbeat interval.
    pub heartbeat_ms: u64,
    /// Shortest election timeout.
    pub election_min_ms: u64,
    /// Longest election timeout.
    pub election_max_ms: u64,
    /// Take a checkpoint after so many applied entries.
    pub snapshot_entries: u64,
    /// Or after so many bytes of them: a restart applies again what is behind the checkpoint.
    pub snapshot_bytes: u64,
    /// Keep so many applied entries in the log for followers that are behind.
    pub keep_entries: u64,
    /// But no more bytes of them.
    pub keep_bytes: u64,
    /// Directory of the floor, on another device if possible.
    pub floor_dir: Option<PathBuf>,
    /// Bytes of the disk that are kept free of records; 0 = by its size.
    pub headroom_bytes: u64,
    /// With fewer bytes left no entry is taken; 0 = by the size of the disk.
    pub floor_bytes: u64,
    /// Bytes of proposals in flight.
    pub inflight_bytes_max: usize,
    /// Memory for recent entries.
    pub log_cache_bytes_max: usize,
    /// How much of the log is kept for destinations.
    pub outbox: OutboxOptions,
    /// Lifetimes and quotas that the group is to have while this node leads.
    pub policy: Policy,
    /// How the state is watched.
    pub integrity: IntegrityOptions,
    /// What this node is, as it is configured; the group is told when it knows it otherwise. Its identity is not read.
    pub own: Option<Member>,
    /// A restored directory: this entry must open it before it serves.
    pub opening: Option<Genesis>,
    /// A restored directory: its members from now on; the old cluster's addresses mean nothing any more.
    pub members: Option<pb::Membership>,
}

/// The same for openraft.
pub(crate) fn raft_config(options: &Options) -> Result<Config, openraft::ConfigError> {
    Config {
        cluster_name: format!("group-{}", options.group.0),
        heartbeat_interval: options.heartbeat_ms,
        election_timeout_min: options.election_min_ms,
        election_timeout_max: options.election_max_ms,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        max_payload_entries: 512,
        install_snapshot_timeout: 30_000,
        // Snapshots and purging are ours: see `maintain`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: u64::MAX / 2,
        state_machine_channel_size: Some(4096),
        quorum_loss_probe_interval: Some((options.election_max_ms * 3).max(1000)),
        ..Config::default()
    }
    .validate()
}
