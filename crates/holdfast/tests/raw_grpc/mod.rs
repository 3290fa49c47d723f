//! gRPC by hand, frame by frame, so that a test can send what no client library would: bytes that are no message, paths
//! that are no method, messages beyond the limit, any header.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;

/// Codes of gRPC, as far as they are expected.
pub mod code {
    pub const OK: u32 = 0;
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const UNAVAILABLE: u32 = 14;
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// `grpc-status`; `None` when there was none.
    pub code: Option<u32>,
    pub message: String,
    /// Reason of the `ErrorInfo` whose domain is Holdfast's; empty when there is none.
    pub reason: String,
    /// There is a `RetryInfo`.
    pub retry: bool,
    /// The answer's message, without its frame.
    pub body: Vec<u8>,
}

/// A message in its frame.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).expect("length").to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

/// Calls a method with a whole message.
pub async fn call(address: &str, path: &str, message: &[u8]) -> Answer {
    send(address, path, framed(message), &[]).await
}

/// Sends any body to any path.
pub async fn send(address: &str, path: &str, body: Vec<u8>, headers: &[(&str, &str)]) -> Answer {
    let tcp = tokio::net::TcpStream::connect(address).await.expect("connects");
    let (requests, connection) = h2::client::handshake(tcp).await.expect("speaks HTTP/2");
    let connection = tokio::spawn(async move {
        // A server may end the connection when it has seen enough; what it answered counts.
        let _ = connection.await;
    });
    let mut request = http::Request::builder()
        .method("POST")
        .uri(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut requests = requests.ready().await.expect("ready");
    let (response, mut stream) =
        requests.send_request(request.body(()).expect("a request"), false).expect("the request leaves");
    // An error means that the server has answered already and wants no more.
    let _ = stream.send_data(Bytes::from(body), true);
    let response = response.await.expect("an answer");
    let mut answer = Answer::default();
    answer.read(response.headers());
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    if let Ok(Some(trailers)) = body.trailers().await {
        answer.read(&trailers);
    }
    answer.body = bytes.get(5..).unwrap_or_default().to_vec();
    connection.abort();
    answer
}

impl Answer {
    /// Takes what headers or trailers say of the status.
    fn read(&mut self, headers: &http::HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(code) = text("grpc-status") {
            self.code = code.parse().ok();
        }
        if let Some(message) = text("grpc-message") {
            self.message = percent_decoded(message);
        }
        if let Some(details) = text("grpc-status-details-bin") {
            let bytes = STANDARD_NO_PAD.decode(details).or_else(|_| STANDARD.decode(details)).expect("base64");
            // google.rpc.Status: details = 3; Any: type_url = 1, value = 2; ErrorInfo: reason = 1, domain = 2.
            for any in fields(&bytes, 3) {
                let kind = fields(any, 1).next().unwrap_or_default();
                let value = fields(any, 2).next().unwrap_or_default();
                if kind.ends_with(b"google.rpc.ErrorInfo") && fields(value, 2).next() == Some(b"holdfast") {
                    self.reason =
                        String::from_utf8(fields(value, 1).next().unwrap_or_default().to_vec()).expect("text");
                }
                self.retry |= kind.ends_with(b"google.rpc.RetryInfo");
            }
        }
    }
}

/// The values of a length-delimited field of a protobuf message.
fn fields(mut message: &[u8], wanted: u64) -> impl Iterator<Item = &[u8]> {
    let mut found = Vec::new();
    while let Some(key) = varint(&mut message) {
        match key & 7 {
            0 => drop(varint(&mut message)),
            2 => {
                let length = usize::try_from(varint(&mut message).unwrap_or(0)).expect("length");
                let (value, rest) = message.split_at(length.min(message.len()));
                message = rest;
                if key >> 3 == wanted {
                    found.push(value);
                }
            }
            other => panic!("a status has no field of wire type {other}"),
        }
    }
    found.into_iter()
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
