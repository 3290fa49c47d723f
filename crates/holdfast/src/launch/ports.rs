//! Ports: whether they are free, before a node finds out the hard way.

use std::net::TcpListener;

use crate::launch::layout::{ClusterSpec, DEFAULT_PORT_BASE};

/// Distance between the ports of two nodes; each uses the first four.
pub const PORTS_PER_NODE: u16 = 10;

/// Below what systems give to outgoing connections.
const ASIDE: std::ops::Range<u16> = 20_000..32_000;
const ASIDE_TRIES: usize = 50;

/// Fails when somebody listens on a port that a node needs.
pub fn check_free(spec: &ClusterSpec) -> anyhow::Result<()> {
    for node in &spec.nodes {
        for address in [&node.client, &node.peer, &node.admin, &node.http] {
            TcpListener::bind(address).map_err(|error| {
                anyhow::anyhow!(
                    "node {} cannot listen on {address}: {error}; stop what uses the port, or choose another \
                     --port-base",
                    node.id
                )
            })?;
        }
    }
    Ok(())
}

/// A port base at which `count` nodes find all their ports free, the default one if possible.
pub fn free_base(count: usize) -> anyhow::Result<u16> {
    let bases = (DEFAULT_PORT_BASE..).step_by(1000).take(20);
    for base in bases {
        if is_free(count, base) {
            return Ok(base);
        }
    }
    anyhow::bail!("found no free ports for {count} nodes at 7470, 8470, …; choose some with --port-base")
}

/// A port base at which `count` nodes find all their ports free, away from those that clusters use: for nodes that come and go
/// beside others.
pub fn free_base_aside(count: usize) -> anyhow::Result<u16> {
    for _ in 0..ASIDE_TRIES {
        let mut drawn = [0; 2];
        getrandom::fill(&mut drawn).map_err(|error| anyhow::anyhow!("no randomness from the system: {error}"))?;
        let base = ASIDE.start + u16::from_le_bytes(drawn) % (ASIDE.end - ASIDE.start);
        if is_free(count, base) {
            return Ok(base);
        }
    }
    anyhow::bail!("found no free ports for {count} nodes between {} and {}", ASIDE.start, ASIDE.end)
}

/// Whether `count` nodes find all their ports free from `base` on.
pub fn is_free(count: usize, base: u16) -> bool {
    ClusterSpec::new(std::path::Path::new("/"), count, base, "").is_ok_and(|spec| check_free(&spec).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let base = free_base(1).expect("some are free");
        let _taken = TcpListener::bind(("127.0.0.1", base + 2)).expect("was free");
        let spec = ClusterSpec::new(std::path::Path::new("/d"), 1, base, "").expect("fits");
        let error = check_free(&spec).expect_err("is taken").to_string();
        assert!(error.contains(&format!("127.0.0.1:{}", base + 2)) && error.contains("--port-base"), "{error}");
    }
}
