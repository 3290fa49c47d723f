//! What goes wrong. A nemesis makes faults and writes down what it really did; it judges nothing.
//!
//! Invariant: one intact quorum is left unless the fault is meant to take it, and everything is healed at the end.

pub mod kill;
