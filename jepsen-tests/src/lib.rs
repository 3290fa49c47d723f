//! Faults against real clusters of Holdfast, and checkers of what clients saw. Users run it against their own build.
//!
//! ```text
//! workload (clients) --+
//!                      +--> history --> checkers --> verdict: valid, invalid, unknown
//! nemesis (faults) ----+
//! ```
//!
//! Knows: the public API, through `holdfast-client`, and how three nodes are run on one machine ([`cluster`], which
//! other crates' tests use too). Never knows: the rules that the servers run by; the checkers are written from the API,
//! since rules shared with the servers would share their bugs.

pub mod bucket;
pub mod chance;
pub mod checker;
pub mod clock;
pub mod cluster;
pub mod disk;
pub mod folder;
pub mod history;
pub mod nemesis;
pub mod network;
mod observer;
pub mod report;
mod restorer;
pub mod run;
pub mod s3;
pub mod scenario;
pub mod serve;
pub mod shrink;
pub mod soak;
pub mod suite;
pub mod workload;
