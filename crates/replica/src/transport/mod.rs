//! Calls between nodes over gRPC: appends, heartbeats and snapshots on connections of their own.

mod append;
pub mod client;
pub mod service;

/// Metadata key: id of the node the caller means to reach.
pub const TO_NODE: &str = "holdfast-to";
/// Metadata key: identity of the data directory the caller means to reach.
pub const TO_IDENTITY: &str = "holdfast-to-identity";
/// Metadata key: cluster of the caller, hex; absent before the cluster is founded.
pub const CLUSTER: &str = "holdfast-cluster";
