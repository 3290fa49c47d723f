//! The conformance suite: every numbered promise of the API as a test of the same number, run from outside against any
//! cluster.
//!
//! ```text
//! main (command line) --> runner --> catalogue: c01 … c48 --> Case --> Target: the public API of a running cluster
//!                                                                \--> Stage: clusters of its own, for faults
//! ```
//!
//! Knows: the public API (`proto/holdfast/v1`), and how three nodes are run on one machine (`jepsen-tests`). Never
//! knows: the rules that the servers run by. Limits and hashes are written here a second time, from the API: shared
//! ones would share their bugs.
//!
//! Each test names in its `Break:` line the one-line change of a server that makes it fail.

pub mod failure;

pub mod bad_input;
pub mod case;
pub mod catalogue;
pub mod device;
pub mod runner;
pub mod stage;
pub mod table;
pub mod target;
pub mod transfers;

mod dedup;
mod devices;
mod disaster;
mod faults;
mod feed;
mod guards;
mod minority;
mod paging;
mod quota;
mod reads;
mod streamed;
mod tokens;
mod watch;
mod writes;
