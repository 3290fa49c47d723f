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
    is_caused_by(status, |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// True when the call certainly never left this node.
pub fn is_connect_error(status: &tonic::Status) -> bool {
    is_caused_by(status, |_: &tonic::ConnectError| true)
}

fn is_caused_by<E: std::error::Error + 'static>(status: &tonic::Status, is: impl Fn(&E) -> bool) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
    causes.any(|error| error.downcast_ref().is_some_and(&is))
}
