//! Ports that one cluster has to itself.
//!
//! Invariants:
//! - No port is one that the system hands to outgoing connections: a node that is down for a moment could lose such a
//!   port to any client on the machine.
//! - Two clusters of this harness never share ports, in whatever processes they are: whoever holds the tenth port of a
//!   row listens on it as long as it lives.

use std::net::TcpListener;
use std::sync::Arc;

/// Ports in a row: ten for each of three nodes.
const ROW: u16 = 30;
/// Nodes use the first four of each ten; this one tells others that the row is taken.
const CLAIM: u16 = 9;

/// A row of ports. Clones share the claim.
#[derive(Debug, Clone)]
pub struct Ports {
    /// The first of thirty; the tenth is taken.
    pub base: u16,
    _claim: Arc<TcpListener>,
}

impl Ports {
    /// A row that nobody listens on; `None` = there is none left.
    pub fn claim() -> Option<Self> {
        let all = rows(&ephemeral());
        // Those that run side by side begin at different places.
        let first = std::process::id() as usize * 7 % all.len().max(1);
        all[first..].iter().chain(&all[..first]).find_map(|base| {
            let claim = TcpListener::bind(("127.0.0.1", base + CLAIM)).ok()?;
            let free = |n: u16| TcpListener::bind(("127.0.0.1", base + n)).is_ok();
            let free = (0..ROW).filter(|n| *n != CLAIM).all(free);
            free.then(|| Self { base: *base, _claim: Arc::new(claim) })
        })
    }
}

/// The first ports of all rows outside the ephemeral range.
fn rows(ephemeral: &std::ops::RangeInclusive<u16>) -> Vec<u16> {
    (10_000u16..65_000)
        .step_by(ROW.into())
        .filter(|base| base + ROW <= *ephemeral.start() || base > ephemeral.end())
        .collect()
}

/// What the system hands to outgoing connections.
fn ephemeral() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().filter_map(|bound| bound.parse().ok());
    bounds.next().unwrap_or(32_768)..=bounds.next().unwrap_or(60_999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_touches_the_ephemeral_ports() {
        let rows = rows(&(32_768..=60_999));
        assert!(rows.iter().all(|base| base + ROW <= 32_768 || *base > 60_999));
        assert!(rows.contains(&10_000) && rows.iter().any(|base| *base > 60_999));
    }

    #[test]
    fn a_claimed_row_is_not_given_out_again() {
        let one = Ports::claim().expect("ports");
        let other = Ports::claim().expect("ports");
        assert_ne!(one.base, other.base);
        let again = one.clone();
        drop(one);
        assert!(TcpListener::bind(("127.0.0.1", again.base + CLAIM)).is_err(), "a clone holds the claim");
    }
}
