//! An S3 server in this process that keeps objects in memory and fails as it is told to: what a network and a service
//! do to requests that no store in memory shows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What happens to the next requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// So many requests are answered with 503, and not done.
    Busy(u32),
    /// So many writes are done, and answered with 503.
    DoneAndBusy(u32),
    /// The connection ends without an answer, and nothing is done.
    Reset,
    /// Writes are done, and the connection ends without an answer.
    ReplyLost,
    /// Writes are answered with 200, and not done.
    Swallowed,
    /// Writes store other bytes of the same length.
    Mangled,
    /// Reads end in the middle.
    Truncated,
    /// Reads give one other bit.
    Flipped,
    /// Lists lack the newest objects, so many.
    Stale(usize),
    /// Nothing is ever answered.
    Hangs,
    /// Everything is answered with 403, and the request with it.
    Forbidden,
    /// There is no such bucket.
    NoBucket,
}

pub(crate) const SECRET: &str = "ThisIsTheSecretKey";
const BUCKET: &str = "vault";

#[derive(Debug)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    _credentials: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, Bytes>,
    /// In the order in which they came.
    came: Vec<String>,
    fault: Fault,
}

/// A server, and a destination there.
pub(crate) fn fake() -> (Fake, Destination) {
    fake_within(DEADLINE)
}

/// The same with another deadline of calls.
pub(crate) fn fake_within(deadline: Duration) -> (Fake, Destination) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let state = State { objects: BTreeMap::new(), came: Vec::new(), fault: Fault::None };
    let state = Arc::new(Mutex::new(state));
    let served = Arc::clone(&state);
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&served)));
        }
    });
    let credentials = tempfile::tempdir().expect("directory");
    let destination = at(&format!("http://127.0.0.1:{port}"), credentials.path(), deadline);
    (Fake { state, _credentials: credentials, _runtime: runtime }, destination)
}

/// A destination at an endpoint; its credentials go into `dir`.
pub(crate) fn at(endpoint: &str, dir: &Path, deadline: Duration) -> Destination {
    let file = dir.join("credentials");
    let text =
        format!("[default]\naws_access_key_id = key\naws_secret_access_key = {SECRET}\naws_session_token = {SECRET}\n");
    std::fs::write(&file, text).expect("writes");
    let url = format!("s3://{BUCKET}/some/prefix?endpoint={endpoint}");
    let config = DestinationConfig::from_url(&url).with_credentials(Some(file));
    let Place::Bucket(bucket) = Place::of(&config).expect("a place") else { panic!("a bucket") };
    Destination::with_store(config.clone(), bucket.open(&config).expect("opens"), None, deadline)
}

impl Fake {
    pub(crate) fn set(&self, fault: Fault) {
        lock(&self.state).fault = fault;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Request {
    method: String,
    /// Key of the object; empty = the bucket.
    key: String,
    query: BTreeMap<String, String>,
    /// All of it, as it came.
    head: String,
    body: Bytes,
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let request = read(&mut stream).await?;
    let fault = lock(&state).fault;
    if fault == Fault::Hangs {
        std::future::pending::<()>().await;
    }
    if let Some((status, body)) = answer(&state, &request) {
        let whole = body.len();
        let body = match (fault, request.method.as_str()) {
            (Fault::Truncated, "GET") => body.slice(..whole / 2),
            (Fault::Flipped, "GET") if !request.key.is_empty() => {
                let mut body = body.to_vec();
                let middle = body.len() / 2;
                body[middle] ^= 4;
                body.into()
            }
            _ => body,
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {whole}\r\nETag: \"e\"\r\nConnection: close\r\n\
             Last-Modified: Sun, 22 Nov 2026 10:00:00 GMT\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        if request.method != "HEAD" {
            stream.write_all(&body).await.ok()?;
        }
        stream.shutdown().await.ok()?;
    }
    Some(())
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut body = bytes.split_off(end + 4);
    let length: usize = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let url = Url::parse(&format!("http://h{target}")).ok()?;
    let path = url.path().strip_prefix(&format!("/{BUCKET}"))?;
    let key = path.trim_start_matches('/').to_owned();
    let query = url.query_pairs().into_owned().collect();
    Some(Request { method, key, query, head, body: body.into() })
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn error(code: &str, more: &str) -> Bytes {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{more}</Message></Error>").into()
}

/// Status and body; `None` = the connection ends.
fn answer(state: &Mutex<State>, request: &Request) -> Option<(u16, Bytes)> {
    let mut state = lock(state);
    let is_put = request.method == "PUT";
    match state.fault {
        Fault::Busy(n) if n > 0 => {
            state.fault = Fault::Busy(n - 1);
            return Some((503, error("SlowDown", "later")));
        }
        Fault::Reset => return None,
        Fault::Forbidden => return Some((403, error("AccessDenied", &request.head))),
        Fault::NoBucket => return Some((404, error("NoSuchBucket", "none"))),
        _ => {}
    }
    let done = match request.method.as_str() {
        "PUT" => put(&mut state, request),
        "GET" if request.key.is_empty() => (200, list(&state, &request.query)),
        "GET" | "HEAD" => match state.objects.get(&request.key) {
            Some(found) => (200, found.clone()),
            None => (404, error("NoSuchKey", "none")),
        },
        _ => (405, error("MethodNotAllowed", "none")),
    };
    match state.fault {
        Fault::ReplyLost if is_put => None,
        Fault::DoneAndBusy(n) if is_put && n > 0 => {
            state.fault = Fault::DoneAndBusy(n - 1);
            Some((503, error("InternalError", "done")))
        }
        _ => Some(done),
    }
}

fn put(state: &mut State, request: &Request) -> (u16, Bytes) {
    // Objects are created, and their bytes are checked on the way.
    assert_eq!(header(&request.head, "if-none-match"), Some("*"), "{}", request.head);
    assert!(header(&request.head, "x-amz-checksum-sha256").is_some(), "{}", request.head);
    if state.objects.contains_key(&request.key) {
        return (412, error("PreconditionFailed", "it exists"));
    }
    let mut bytes = request.body.to_vec();
    match state.fault {
        Fault::Swallowed => return (200, Bytes::new()),
        Fault::Mangled => bytes.iter_mut().for_each(|byte| *byte ^= 1),
        _ => {}
    }
    state.objects.insert(request.key.clone(), bytes.into());
    state.came.push(request.key.clone());
    (200, Bytes::new())
}

/// Two names an answer, so that every list goes on.
const PAGE: usize = 2;

fn list(state: &State, query: &BTreeMap<String, String>) -> Bytes {
    let text = |key: &str| query.get(key).cloned().unwrap_or_default();
    let (prefix, delimiter) = (text("prefix"), text("delimiter"));
    let after = text("start-after").max(text("continuation-token"));
    let hidden = match state.fault {
        Fault::Stale(newest) => &state.came[state.came.len().saturating_sub(newest)..],
        _ => &[],
    };
    let named = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && !hidden.contains(key));
    // Names, and what several of them have in common; each once.
    let mut entries: BTreeMap<String, Option<usize>> = BTreeMap::new();
    for (key, bytes) in named {
        match key[prefix.len()..].split_once('/').filter(|_| delimiter == "/") {
            Some((folder, _)) => entries.insert(format!("{prefix}{folder}/"), None),
            None => entries.insert(key.clone(), Some(bytes.len())),
        };
    }
    let mut left = entries.into_iter().filter(|(name, _)| *name > after).peekable();
    let mut xml = "<?xml version=\"1.0\"?><ListBucketResult>".to_owned();
    let mut last = String::new();
    for (name, length) in left.by_ref().take(PAGE) {
        let written = match length {
            Some(length) => write!(
                xml,
                "<Contents><Key>{name}</Key><Size>{length}</Size><ETag>e</ETag>\
                 <LastModified>2026-11-22T10:00:00.000Z</LastModified></Contents>"
            ),
            None => write!(xml, "<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
        };
        written.expect("text");
        last = name;
    }
    if left.peek().is_some() {
        write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>").expect("text");
    }
    xml.push_str("</ListBucketResult>");
    xml.into()
}
