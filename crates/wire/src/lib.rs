//! The trust boundary: bytes on one side, valid values on the other.
//!
//! Knows: the generated protos (public and internal) and total conversions between them and the model. Every decoder
//! takes any bytes and answers a value or a typed error; nothing behind it validates again.
//! Never knows: disks, sockets, Raft.

pub mod api;
pub mod durable;
pub mod log;
pub mod peer;
pub mod reply;
pub mod status;
pub mod token;

/// Generated code of the public API.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("holdfast.v1");
}

/// Generated code of what nodes and files carry; evolves apart from the public API.
pub mod internal {
    /// Version 1.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("holdfast.internal.v1");
    }
}

/// Descriptor set of the public API, for reflection.
pub const PUBLIC_DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptor.bin"));

/// A stored or received message that does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct DecodeError {
    /// Message that was expected.
    pub what: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl DecodeError {
    /// From any reason.
    pub fn new(what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self { what, reason: reason.to_string() }
    }
}

/// Decodes a generated message; `what` names it in the error.
pub fn decode<M: prost::Message + Default>(
    what: &'static str,
    bytes: impl prost::bytes::Buf,
) -> Result<M, DecodeError> {
    M::decode(bytes).map_err(|error| DecodeError::new(what, error))
}

/// Encodes a generated message.
pub fn encode(message: &impl prost::Message) -> bytes::Bytes {
    message.encode_to_vec().into()
}

/// Fixed-size field.
pub(crate) fn fixed<const N: usize>(what: &'static str, field: &str, bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::new(what, format!("{field} has {} bytes, not {N}", bytes.len())))
}

/// Required field.
pub(crate) fn required<T>(what: &'static str, field: &str, value: Option<T>) -> Result<T, DecodeError> {
    value.ok_or_else(|| DecodeError::new(what, format!("{field} is missing")))
}

/// Protobuf duration.
pub use prost_types::{Duration, Timestamp};

/// Length of a message on the wire.
pub fn encoded_len(message: &impl prost::Message) -> usize {
    message.encoded_len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflection_shows_the_public_api_alone() {
        let has = |name: &str| PUBLIC_DESCRIPTOR.windows(name.len()).any(|part| part == name.as_bytes());
        assert!(has("holdfast.v1") && has("google/protobuf/timestamp.proto"));
        assert!(!has("holdfast.internal"));
    }
}
