//! The data directory: whose it is, in which format, and that only one process uses it.
//!
//! Layout: `IDENTITY FORMAT LOCK NODE_KEY RESERVE floor-<group> raft/ state/<group>/ snapshots/ incoming-*/ outbox/ quarantine/`.
//!
//! Invariants:
//! - `IDENTITY` is written last at creation: with it, every other part is there; without it, nothing was ever served.
//! - The node id and the random identity never change; the cluster id is set once.
//! - While a [`DataDir`] lives, no other process holds one of the same directory.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Part, StoreError};
use crate::files;
use crate::node_key;

/// Format of the directory that this build writes; it opens this one only.
pub const FORMAT_VERSION: u32 = 4;

const IDENTITY: &str = "IDENTITY";
const FORMAT: &str = "FORMAT";
/// Why this node must not vote, while it must not.
const RECOVERING: &str = "RECOVERING";
/// Between the reason and the index.
const RECOVERING_UPTO: &str = "\nit had acknowledged entries up to ";
/// Why this node must not serve its state, while it must not.
const DIVERGED: &str = "DIVERGED";
const LOCK: &str = "LOCK";
const DIRS: [&str; 5] = ["raft", "state", "snapshots", "outbox", "quarantine"];
const IDENTITY_HEAD: &str = "holdfast identity 1";
const FORMAT_HEAD: &str = "holdfast format";
/// What a mount point or an interrupted creation may leave in an otherwise empty directory.
const HARMLESS: [&str; 5] = ["lost+found", LOCK, FORMAT, "FORMAT.tmp", "IDENTITY.tmp"];

/// Whose directory it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Raft node id.
    pub node_id: u64,
    /// Random, given at creation: two directories of one node id differ in it.
    pub identity: [u8; 16],
    /// Cluster, once known.
    pub cluster_id: Option<[u8; 16]>,
}

/// Why a node must not vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovering {
    /// For people.
    pub reason: String,
    /// Last index that its log is known to have acknowledged; 0 = not known. What tells it otherwise, the floor and a
    /// peer's memory, may be gone at the next start.
    pub upto: u64,
}

impl Recovering {
    fn parse(text: &str) -> Self {
        let parsed =
            text.split_once(RECOVERING_UPTO).and_then(|(reason, upto)| Some((reason, upto.trim().parse().ok()?)));
        let (reason, upto) = parsed.unwrap_or((text, 0));
        Self { reason: reason.to_owned(), upto }
    }
}

/// An open data directory. Holds its lock while it lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Mutex<Identity>,
    created: bool,
    _lock: File,
}

impl DataDir {
    /// Opens the directory of `node_id`, or makes it when there is none or an empty one.
    pub fn open_or_create(path: &Path, node_id: u64, fresh_identity: [u8; 16]) -> Result<Self, StoreError> {
        files::create_dir_all(path)?;
        let has_identity = path.join(IDENTITY).exists();
        if !has_identity {
            refuse_foreign(path)?;
        }
        let lock = take_lock(&path.join(LOCK))?;
        if !has_identity && !path.join(IDENTITY).exists() {
            if path.join(FORMAT).exists() {
                check_format(&path.join(FORMAT))?;
            }
            let identity = Identity { node_id, identity: fresh_identity, cluster_id: None };
            create(path, &identity)?;
            return Ok(Self { path: path.to_owned(), identity: Mutex::new(identity), created: true, _lock: lock });
        }
        check_format(&path.join(FORMAT))?;
        let identity = read_identity(&path.join(IDENTITY))?;
        if identity.node_id != node_id {
            return Err(StoreError::Mismatch {
                what: format!("{} belongs to node {}, not to node {node_id}", path.display(), identity.node_id),
                hint: "start this node on its own directory, or fix node.id in its configuration",
            });
        }
        for dir in DIRS {
            files::create_dir(&path.join(dir))?;
        }
        Ok(Self { path: path.to_owned(), identity: Mutex::new(identity), created: false, _lock: lock })
    }

    /// Opens a directory that a node used, whichever node that was.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.join(IDENTITY).exists() {
            return Err(StoreError::Mismatch {
                what: format!("{} is no data directory of a node", path.display()),
                hint: "name the directory that holds IDENTITY, raft and state",
            });
        }
        let identity = read_identity(&path.join(IDENTITY))?;
        Self::open_or_create(path, identity.node_id, identity.identity)
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        *self.locked()
    }

    /// The key with which the node attests snapshots; made of `fresh`, 32 random bytes, when it is asked for the first time.
    pub fn node_key(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        node_key::read_or_create(&self.path, fresh)
    }

    /// Binds the directory to a cluster, once. The same id again is fine.
    pub fn set_cluster(&self, id: [u8; 16]) -> Result<(), StoreError> {
        let mut identity = self.locked();
        match identity.cluster_id {
            Some(known) if known == id => Ok(()),
            Some(known) => Err(StoreError::Mismatch {
                what: format!("{} belongs to cluster {}, not to {}", self.path.display(), hex(&known), hex(&id)),
                hint: "start this node on its own directory; a restored cluster starts on empty ones",
            }),
            None => {
                let bound = Identity { cluster_id: Some(id), ..*identity };
                files::replace_file(&self.path.join(IDENTITY), encode_identity(&bound).as_bytes())?;
                *identity = bound;
                Ok(())
            }
        }
    }

    /// Why this node must not vote, as an earlier start found it; `None` = nothing is amiss. A log that is filled up
    /// halfway looks whole at the next start: only this file knows better.
    pub fn recovering(&self) -> Result<Option<Recovering>, StoreError> {
        let text = files::read_text(&self.path.join(RECOVERING))?;
        // Unreadable text is a reason as good as any.
        Ok(text.map(|text| Recovering::parse(&text.unwrap_or_else(str::to_owned))))
    }

    /// Notes durably that this node must not vote, why, and how far its log once was; `None` when it may again.
    pub fn set_recovering(&self, recovering: Option<&Recovering>) -> Result<(), StoreError> {
        let path = self.path.join(RECOVERING);
        match recovering {
            Some(Recovering { reason, upto }) => {
                files::replace_file(&path, format!("{reason}{RECOVERING_UPTO}{upto}\n").as_bytes())
            }
            None => files::remove_file(&path),
        }
    }

    /// Why this node must not serve its state, as it was found before; `None` = nothing is amiss.
    pub fn diverged(&self) -> Result<Option<String>, StoreError> {
        Ok(files::read_text(&self.path.join(DIVERGED))?.map(|text| text.unwrap_or_else(str::to_owned)))
    }

    /// Notes durably that this node must not serve its state, and why; `None` once it was reinstalled.
    pub fn set_diverged(&self, reason: Option<&str>) -> Result<(), StoreError> {
        let path = self.path.join(DIVERGED);
        match reason {
            Some(reason) => files::replace_file(&path, reason.as_bytes()),
            None => files::remove_file(&path),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// This call made it.
    pub fn created(&self) -> bool {
        self.created
    }

    fn locked(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    let names = files::names(path)?;
    let foreign = names.iter().find(|name| {
        let name = name.as_str();
        // Our own empty directories are what an interrupted creation leaves.
        let ours_empty =
            DIRS.contains(&name) && fs::read_dir(path.join(name)).is_ok_and(|mut dir| dir.next().is_none());
        !HARMLESS.contains(&name) && !ours_empty
    });
    match foreign {
        None => Ok(()),
        Some(name) => Err(StoreError::Mismatch {
            what: format!("{} holds `{name}` but no IDENTITY: it is not a data directory of Holdfast", path.display()),
            hint: "point the node at an empty directory, or restore the IDENTITY file if this one lost it",
        }),
    }
}

fn take_lock(path: &Path) -> Result<File, StoreError> {
    let lock = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(StoreError::io("open lock", path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(StoreError::io("lock", path)(source)),
    }
}

fn create(path: &Path, identity: &Identity) -> Result<(), StoreError> {
    files::replace_file(&path.join(FORMAT), format!("{FORMAT_HEAD} {FORMAT_VERSION}\n").as_bytes())?;
    for dir in DIRS {
        files::create_dir(&path.join(dir))?;
    }
    files::replace_file(&path.join(IDENTITY), encode_identity(identity).as_bytes())?;
    files::sync_dir(&files::parent(path))
}

fn check_format(path: &Path) -> Result<(), StoreError> {
    let text = marker_text(path)?;
    let version = text.trim_end().strip_prefix(FORMAT_HEAD).and_then(|rest| rest.trim().parse::<u32>().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(()),
        Some(other) => Err(StoreError::Mismatch {
            what: format!("{} says format {other}; this build knows format {FORMAT_VERSION}", path.display()),
            hint: "start the release that wrote it; a node is never downgraded across a format",
        }),
        None => Err(corrupt(path, "it does not name a format")),
    }
}

fn encode_identity(identity: &Identity) -> String {
    let cluster = identity.cluster_id.map_or_else(|| "none".into(), |id| hex(&id));
    let body = format!(
        "{IDENTITY_HEAD}\nnode {}\nidentity {}\ncluster {cluster}\n",
        identity.node_id,
        hex(&identity.identity)
    );
    let crc = crc32c::crc32c(body.as_bytes());
    format!("{body}crc32c {crc:08x}\n")
}

fn read_identity(path: &Path) -> Result<Identity, StoreError> {
    let text = marker_text(path)?;
    parse_identity(&text).map_err(|reason| corrupt(path, reason))
}

fn marker_text(path: &Path) -> Result<String, StoreError> {
    match files::read_text(path)? {
        Some(text) => text.map_err(|reason| corrupt(path, reason)),
        None => Err(corrupt(path, "it is missing")),
    }
}

fn parse_identity(text: &str) -> Result<Identity, &'static str> {
    let (body, crc) = text.split_once("crc32c ").ok_or("it is cut off")?;
    let crc = u32::from_str_radix(crc.trim_end(), 16).map_err(|_| "its checksum does not parse")?;
    if crc != crc32c::crc32c(body.as_bytes()) {
        return Err("its checksum does not match");
    }
    let mut lines = body.lines();
    if lines.next() != Some(IDENTITY_HEAD) {
        return Err("it is of an unknown version");
    }
    let mut field = |name: &str| lines.next().and_then(|line| line.strip_prefix(name)).map(str::trim);
    let node_id = field("node ").and_then(|text| text.parse().ok()).ok_or("its node id does not parse")?;
    let identity = field("identity ").and_then(unhex).ok_or("its identity does not parse")?;
    let cluster_id = match field("cluster ").ok_or("its cluster is missing")? {
        "none" => None,
        text => Some(unhex(text).ok_or("its cluster id does not parse")?),
    };
    Ok(Identity { node_id, identity, cluster_id })
}

fn corrupt(path: &Path, reason: &str) -> StoreError {
    StoreError::Corrupt { what: "a marker".into(), path: path.to_owned(), reason: reason.into(), part: Part::Marker }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(out)
}
