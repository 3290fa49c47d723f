//! One node: configuration, listeners, services, shipping. The composition root; knows everything below it, and
//! nothing knows it but the binary.

pub mod config;
mod disk;
pub mod facts;
mod feed;
mod grpc;
mod http;
mod members;
mod node;
mod operations;
pub mod restored;
mod resync;
mod shipper;
mod telemetry;

pub use node::{RunError, run};
