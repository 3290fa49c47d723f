//! What clients do. A workload knows how to write and how to read everything back; it judges nothing.

pub mod set;
