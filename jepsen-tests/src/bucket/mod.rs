//! An S3 server in this process, whose objects are files: what the nodes ship to where the run is about what an object store
//! may do to them. It speaks what create-only archives need: PUT with `If-None-Match: *`, GET, HEAD, and LIST in pages
//! (Amazon S3 API reference). Any credentials will do; nothing is ever overwritten or deleted through it.
//!
//! What goes wrong is a [`Mode`]: it strikes calls by chance as long as it stands, and counts whom it struck.

mod list;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path as Asked, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use clap::ValueEnum;
use tokio::task::JoinHandle;

use crate::chance::Chance;
use crate::folder;

/// The bucket.
const NAME: &str = "jepsen";
/// Begins the names of all objects.
pub const PREFIX: &str = "offsite";
/// What clients sign their calls with; nobody checks it.
pub const CREDENTIALS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "jepsen"), ("AWS_SECRET_ACCESS_KEY", "jepsen-tests")];
/// So many of a hundred calls are struck: some get through, and are followed by others that do not.
const STRUCK_PERCENT: usize = 60;
/// As S3 allows.
const OBJECT_BYTES_MAX: usize = 5 << 30;

/// What the store does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Mode {
    /// It answers 503: slow down.
    Unavailable,
    /// The connection is reset before a call is read.
    Reset,
    /// The connection ends in the middle of an answer.
    Truncated,
    /// A bit of what is read is another one.
    Flipped,
    /// LIST shows what was there when this began.
    StaleList,
    /// The call is done, and the connection is reset instead of an answer.
    ReplyLost,
    /// PUT says that the object was created, and stores nothing.
    Swallowed,
}

#[derive(Debug)]
struct Shared {
    /// Objects are files below it, by their names.
    root: PathBuf,
    /// Where objects are written before they get their names.
    unnamed: PathBuf,
    mode: Mutex<Option<Mode>>,
    /// What LIST shows while it is stale.
    listed: Mutex<BTreeSet<String>>,
    struck: AtomicU64,
    chance: Mutex<Chance>,
    written: AtomicU64,
}

/// A running server; it ends with its value.
#[derive(Debug)]
pub struct Bucket {
    shared: Arc<Shared>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bucket {
    /// Serves a folder on a free port of an address of this machine: the object `offsite/a` is the file `offsite/a` in it.
    ///
    /// # Errors
    /// When the folder cannot be made, or there is no port.
    pub async fn start(root: &Path, at: IpAddr, seed: u64) -> anyhow::Result<Self> {
        let unnamed = root.join("unnamed-objects");
        fs::create_dir_all(&unnamed).with_context(|| format!("create {}", unnamed.display()))?;
        let listener = tokio::net::TcpListener::bind((at, 0)).await.context("a port for the object store")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            unnamed,
            mode: Mutex::default(),
            listed: Mutex::default(),
            struck: AtomicU64::new(0),
            chance: Mutex::new(Chance::new(seed, 0)),
            written: AtomicU64::new(0),
        });
        let router = Router::new()
            .route(&format!("/{NAME}"), any(list_objects))
            .route(&format!("/{NAME}/"), any(list_objects))
            .route(&format!("/{NAME}/{{*name}}"), any(object))
            .layer(DefaultBodyLimit::max(OBJECT_BYTES_MAX))
            .with_state(shared.clone());
        let listener = wire::Listener::new(listener, shared.clone());
        let task = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { shared, address, task })
    }

    /// Where nodes ship to, as their configuration has it.
    pub fn url(&self) -> String {
        format!("s3://{NAME}/{PREFIX}?endpoint=http://{}&region=us-east-1", self.address)
    }

    /// From now on it does this; `None` = nothing wrong. Counts anew.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn set(&self, mode: Option<Mode>) -> anyhow::Result<()> {
        let listed = if mode == Some(Mode::StaleList) { list::names(&self.shared.root)? } else { BTreeSet::new() };
        *locked(&self.shared.listed) = listed;
        self.shared.struck.store(0, Ordering::Release);
        *locked(&self.shared.mode) = mode;
        Ok(())
    }

    /// How many calls were struck since then.
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::Acquire)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Whether this goes wrong now, for this call.
    fn strikes(&self, mode: Mode) -> bool {
        let now = *locked(&self.mode) == Some(mode) && locked(&self.chance).percent(STRUCK_PERCENT);
        if now {
            self.struck.fetch_add(1, Ordering::AcqRel);
        }
        now
    }

    /// The file of an object; `None` = no name that an archive has.
    fn file(&self, name: &str) -> Option<PathBuf> {
        let path = Path::new(name);
        let plain = path.starts_with(PREFIX) && path.components().all(|part| matches!(part, Component::Normal(_)));
        plain.then(|| self.root.join(path))
    }

    /// Creates an object; `false` = there is one of this name.
    fn create(&self, file: &Path, bytes: &[u8]) -> io::Result<bool> {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let unnamed = self.unnamed.join(number.to_string());
        fs::write(&unnamed, bytes)?;
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let linked = fs::hard_link(&unnamed, file);
        fs::remove_file(&unnamed)?;
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            linked => linked.map(|()| true),
        }
    }
}

fn refused(status: StatusCode, code: &str) -> Response {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
    (status, [(header::CONTENT_TYPE, "application/xml")], body).into_response()
}

fn broken(error: &io::Error) -> Response {
    match error.kind() {
        io::ErrorKind::NotFound => refused(StatusCode::NOT_FOUND, "NoSuchKey"),
        _ => refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    }
}

async fn list_objects(
    State(shared): State<Arc<Shared>>,
    method: Method,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    if shared.strikes(Mode::Unavailable) {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
    }
    if method != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed");
    }
    let stale = shared.strikes(Mode::StaleList).then(|| locked(&shared.listed).clone());
    let root = shared.root.clone();
    let page = tokio::task::spawn_blocking(move || list::page(&root, stale, &query)).await;
    match page {
        Ok(Ok(page)) => ([(header::CONTENT_TYPE, "application/xml")], page).into_response(),
        _ => refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    }
}

async fn object(
    State(shared): State<Arc<Shared>>,
    method: Method,
    Asked(name): Asked<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Response {
    if shared.strikes(Mode::Unavailable) {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
    }
    let Some(file) = shared.file(&name) else { return refused(StatusCode::FORBIDDEN, "AccessDenied") };
    match method {
        Method::PUT => put(&shared, &file, &headers, &bytes),
        Method::GET | Method::HEAD => get(&shared, &method, &file),
        // Like a bucket that is locked: nothing goes.
        _ => refused(StatusCode::FORBIDDEN, "AccessDenied"),
    }
}

fn put(shared: &Shared, file: &Path, headers: &HeaderMap, bytes: &[u8]) -> Response {
    if headers.get(header::IF_NONE_MATCH).is_none_or(|value| value != "*") {
        return refused(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let created = || [(header::ETAG, tag(bytes))].into_response();
    if !file.exists() && shared.strikes(Mode::Swallowed) {
        return created();
    }
    match shared.create(file, bytes) {
        Ok(true) => created(),
        Ok(false) => refused(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
        Err(error) => broken(&error),
    }
}

fn get(shared: &Shared, method: &Method, file: &Path) -> Response {
    let mut bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => return broken(&error),
    };
    let changed = fs::metadata(file).and_then(|file| file.modified());
    let changed = changed.map_or_else(|_| String::new(), folder::http_date);
    let headers = [(header::ETAG, tag(&bytes)), (header::LAST_MODIFIED, changed)];
    if method == Method::HEAD {
        return (headers, [(header::CONTENT_LENGTH, bytes.len())].map(|(name, value)| (name, value.to_string())))
            .into_response();
    }
    if !bytes.is_empty() && shared.strikes(Mode::Flipped) {
        let mut chance = locked(&shared.chance);
        let at = chance.below(bytes.len());
        bytes[at] ^= 1 << chance.below(8);
    }
    (headers, Body::from(bytes)).into_response()
}

/// Tells contents apart (FNV-1a), as an ETag is to.
fn tag(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("\"{hash:016x}\"")
}

#[cfg(test)]
mod tests;
