//! Clusters on this machine: a process for each node, as `dev` and `demo` run them.

mod cluster;
mod layout;
mod ports;
mod process;
mod seats;

pub use cluster::Cluster;
pub use layout::{ClusterSpec, DEFAULT_PORT_BASE, Labels, Memo, NodeSpec, parse_labels, render_labels};
pub use ports::{free_base, free_base_aside, is_free};
pub use seats::seat;
