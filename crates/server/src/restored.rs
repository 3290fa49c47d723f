//! Members of a restored cluster: `restore run` writes them beside the restored state, the node takes them over at its
//! first start. The old cluster's addresses mean nothing any more.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use holdfast_wire::internal::v1 as pb;

const FILE: &str = "MEMBERS";

/// A member of the restored cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Id.
    pub id: u64,
    /// Client address.
    pub client: String,
    /// Peer address.
    pub peer: String,
    /// Admin address.
    pub admin: String,
    /// HTTP address.
    pub http: String,
    /// Failure-domain labels.
    pub labels: Vec<(String, String)>,
    /// Identity of its data directory, hex.
    pub identity: String,
}

/// Writes the members into a restored data directory, durably.
///
/// # Errors
/// The disk's.
pub fn write_members(data_dir: &Path, nodes: &[NodeSpec]) -> io::Result<()> {
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|node| node.id);
    let membership = pb::Membership {
        configs: vec![pb::VoterConfig { voters: nodes.iter().map(|node| node.id).collect() }],
        members: nodes
            .into_iter()
            .map(|node| pb::Member {
                id: node.id,
                client_address: node.client,
                peer_address: node.peer,
                admin_address: node.admin,
                http_address: node.http,
                labels: node.labels.into_iter().map(|(key, value)| pb::Label { key, value }).collect(),
                identity: node.identity,
            })
            .collect(),
    };
    let staged = data_dir.join("MEMBERS.tmp");
    let mut file = File::create(&staged)?;
    file.write_all(&holdfast_wire::encode(&membership))?;
    file.sync_all()?;
    std::fs::rename(&staged, data_dir.join(FILE))?;
    File::open(data_dir)?.sync_all()
}

/// Reads the members; `None` when there are none.
pub(crate) fn read_members(data_dir: &Path) -> io::Result<Option<pb::Membership>> {
    match std::fs::read(data_dir.join(FILE)) {
        Ok(bytes) => holdfast_wire::decode("members of a restore", &bytes[..]).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
