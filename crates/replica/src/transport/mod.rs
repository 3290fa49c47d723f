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

/// True when nothing listens there: whoever ran at that address runs no more.
pub fn is_refused(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && error.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// True when the call certainly never left this node.
pub fn is_connect_error(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
