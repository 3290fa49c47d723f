//! Calls of any bytes to any method: what no typed client would send.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use holdfast_wire::status::details_of;
use http::uri::PathAndQuery;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use crate::target::{Node, timed};

/// Bytes in, bytes out.
#[derive(Debug, Clone, Copy, Default)]
struct AsIs;

impl Codec for AsIs {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AsIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for AsIs {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What a node said to some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// gRPC code.
    pub code: Code,
    /// Reason of the ErrorInfo of domain `holdfast`; empty when there is none.
    pub reason: String,
    /// There is a RetryInfo.
    pub retry: bool,
    /// For people.
    pub message: String,
}

impl Said {
    /// What a status says.
    pub fn of(status: &Status) -> Self {
        let details = details_of(status);
        let message = status.message().to_owned();
        Self { code: status.code(), reason: details.reason, retry: details.retry_after.is_some(), message }
    }

    /// An answer.
    pub fn ok() -> Self {
        Self { code: Code::Ok, reason: String::new(), retry: false, message: String::new() }
    }
}

/// Sends bytes as the only message of a call, and reads its answers to the end. Once.
pub async fn send(node: &Node, path: &'static str, message: Bytes) -> Said {
    let mut grpc = tonic::client::Grpc::new(node.channel.clone()).max_encoding_message_size(64 << 20);
    if let Err(error) = grpc.ready().await {
        let message = format!("{}: {error}", node.address);
        return Said { code: Code::Unavailable, reason: String::new(), retry: false, message };
    }
    let request = timed(tokio_stream::once(message), Duration::from_secs(5));
    match grpc.streaming(request, PathAndQuery::from_static(path), AsIs).await {
        Err(status) => Said::of(&status),
        Ok(answer) => {
            let mut stream = answer.into_inner();
            // A stream may say that it is alive before it has seen the request.
            let end = async {
                loop {
                    match stream.message().await {
                        Err(status) => break Said::of(&status),
                        Ok(None) => break Said::ok(),
                        Ok(Some(_)) => {}
                    }
                }
            };
            let late = || Said { code: Code::DeadlineExceeded, message: "no end within 5 s".into(), ..Said::ok() };
            tokio::time::timeout(Duration::from_secs(5), end).await.unwrap_or_else(|_| late())
        }
    }
}

/// As [`send`], repeated while the node asks for it.
pub async fn settled(node: &Node, path: &'static str, message: Bytes) -> Said {
    let mut said = send(node, path, message.clone()).await;
    for _ in 0..200 {
        let unsaid = said.reason.is_empty() && matches!(said.code, Code::Unavailable | Code::Unknown | Code::Cancelled);
        if !said.retry && !unsaid {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        said = send(node, path, message.clone()).await;
    }
    said
}
