//! Who sits where: the members that data directories name, changed while their nodes do not run.
//!
//! A restored cluster has members of its own, at addresses of its own; and a local cluster may be started at other
//! ports than before. Members are replicated facts, so they are changed in every directory of the cluster alike, and
//! only while nothing runs: the directory's lock says so.
//!
//! Invariant: only addresses change. Voters, position, chains and records stay as they are.

use holdfast_archive::{layout, marker};
use holdfast_model::id::GroupId;
use holdfast_server::restored::{self, write_members};
use holdfast_store::{Applied, DataDir, StateStore};
use holdfast_wire::internal::v1 as pb;

use crate::launch::layout::{ClusterSpec, NodeSpec};

const GROUP: GroupId = GroupId(0);

/// Names `nodes` as the members, all of them voters, in the directory of each. For directories that were just restored
/// and not started yet.
pub fn seat(nodes: &[NodeSpec]) -> anyhow::Result<()> {
    let members = members(nodes)?;
    nodes.iter().try_for_each(|node| Ok(write_members(&node.data_dir, &members)?))
}

/// Moves the members to the addresses of `spec`.
pub fn reseat(spec: &ClusterSpec) -> anyhow::Result<()> {
    if !spec.nodes.iter().all(|node| node.data_dir.join("IDENTITY").exists()) {
        return Ok(());
    }
    let members = members(&spec.nodes)?;
    for node in &spec.nodes {
        let data = open(node)?;
        if data.identity().cluster_id.is_some() {
            move_state(&data, &spec.nodes)?;
        } else if marker::read(&node.data_dir)?.is_some_and(|mark| mark.opening.is_some()) {
            write_members(&node.data_dir, &members)?;
        }
        // Neither: it holds nothing yet, or half a restore, and says so when it starts.
    }
    Ok(())
}

fn members(nodes: &[NodeSpec]) -> anyhow::Result<Vec<restored::NodeSpec>> {
    let member = |node: &NodeSpec| {
        Ok(restored::NodeSpec {
            id: node.id,
            client: node.client.clone(),
            peer: node.peer.clone(),
            admin: node.admin.clone(),
            http: node.http.clone(),
            labels: node.labels.clone().into_iter().collect(),
            identity: layout::hex(&open(node)?.identity().identity),
        })
    };
    nodes.iter().map(member).collect()
}

fn move_state(data: &DataDir, nodes: &[NodeSpec]) -> anyhow::Result<()> {
    let state = StateStore::open(data, GROUP)?;
    let applied = state.applied();
    anyhow::ensure!(
        !applied.membership.is_empty(),
        "{} was not stopped in order, and its log still names the old ports; start the cluster at those, stop it with \
         Ctrl-C, then move it",
        data.path().display()
    );
    if let Some(membership) = moved(&applied, nodes)? {
        let mut batch = state.begin();
        batch.set_applied(Applied { membership: holdfast_wire::encode(&membership), ..applied });
        state.commit(batch)?;
        state.flush()?;
    }
    Ok(())
}

/// The members at their new addresses; `None` = they are there already.
fn moved(applied: &Applied, nodes: &[NodeSpec]) -> anyhow::Result<Option<pb::StoredMembership>> {
    let stored: pb::StoredMembership = holdfast_wire::decode("stored membership", applied.membership.clone())?;
    let mut moved = stored.clone();
    for member in moved.membership.iter_mut().flat_map(|membership| &mut membership.members) {
        let Some(node) = nodes.iter().find(|node| node.id == member.id) else { continue };
        member.client_address.clone_from(&node.client);
        member.peer_address.clone_from(&node.peer);
        member.admin_address.clone_from(&node.admin);
        member.http_address.clone_from(&node.http);
    }
    Ok((moved != stored).then_some(moved))
}

fn open(node: &NodeSpec) -> anyhow::Result<DataDir> {
    // The identity is only used for a directory that is made now; these are there.
    Ok(DataDir::open_or_create(&node.data_dir, node.id, [0; 16])?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn member(node: &NodeSpec) -> pb::Member {
        pb::Member {
            id: node.id,
            client_address: node.client.clone(),
            peer_address: node.peer.clone(),
            admin_address: node.admin.clone(),
            http_address: node.http.clone(),
            labels: vec![pb::Label { key: "array".into(), value: "a1".into() }],
            identity: "aa".into(),
        }
    }

    #[test]
    fn members_move_with_the_ports_and_nothing_else_changes() {
        let spec = |base| ClusterSpec::new(Path::new("/d"), 3, base, "dev").expect("fits").nodes;
        let (old, new) = (spec(9000), spec(9100));
        let stored = |nodes: &[NodeSpec]| pb::StoredMembership {
            log_id: Some(pb::LogId { term: 1, node: 1, index: 1 }),
            membership: Some(pb::Membership {
                configs: vec![pb::VoterConfig { voters: vec![1, 2, 3] }],
                members: nodes.iter().map(member).collect(),
            }),
        };
        let applied = Applied { membership: holdfast_wire::encode(&stored(&old)), ..Applied::default() };
        assert_eq!(moved(&applied, &old).expect("reads"), None);
        assert_eq!(moved(&applied, &new).expect("reads"), Some(stored(&new)));
    }
}
