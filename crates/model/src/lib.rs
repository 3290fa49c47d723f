//! The rules of Holdfast.
//!
//! Knows: identifiers and limits, commands, the pure transition `(state, entry) -> (outcome, effects)`, digests.
//! Never knows: disks, sockets, clocks, randomness, threads, encodings. Everything here gives the same answer on every
//! replica and on every replay.

#![forbid(unsafe_code)]

pub mod attest;
pub mod command;
pub mod digest;
pub mod id;
pub mod limits;
pub mod memory;
pub mod outcome;
pub mod redacted;
pub mod state;
pub mod transition;
