//! What the load programs share: how servers are measured and what clients saw is judged.

pub mod feed;
pub mod measure;
pub mod memory;
pub mod puts;
pub mod restores;
pub mod servers;
pub mod silence;
pub mod wakeups;
