//! Evidence: what somebody saw of an archive, signed, as an object of its own beside what it is about.
//!
//! ```text
//! {"v":1,"kind":"…",…}                       one line of JSON
//! ed25519 <key, hex> <signature, hex>        one line
//! ```
//! A file that people and other tools can read: whoever audits an archive needs no program of ours for it.
//!
//! Invariants:
//! - A signature is over the object's name and the line: under another name, or with a byte changed, it is none.
//! - It proves who said it, not that it is true: which keys are believed is for the reader to say.
//! - It names the newest words of everybody who spoke at its place before, with their hashes: what is changed or taken away later
//!   is missed by whoever follows the links, unless it is the very newest.
//! - The key never leaves the machine of whoever verifies; no node has it.
//!
//! Signatures are Ed25519 (RFC 8032), verified strictly.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::destination::Destination;
use crate::error::ArchiveError;
use crate::layout::{hex, signer_of, unhex};

/// Opens what is signed.
const CONTEXT: &[u8] = b"holdfast evidence 1\0";
const SCHEME: &str = "ed25519";
const KEY_HEAD: &str = "holdfast verifier key 1";
/// Far more than any evidence needs.
const BYTES_MAX: usize = 1 << 20;
/// Evidence names the words of so many keys at most, those that spoke last.
const LINKS_MAX: usize = 32;
/// And of each key so many, for what was recorded late by a clock that is behind.
const LINKS_OF_KEY: usize = 3;
/// So many names of a key are looked at for these.
const LOOKED_AT_OF_KEY: usize = 8;

/// The key of whoever verifies archives. Its debug form says nothing of it.
#[derive(Debug, Clone)]
pub struct VerifierKey(SigningKey);

impl VerifierKey {
    /// Of 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The key in a file; made there, for its owner alone, where there is none.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds something else.
    pub fn read_or_create(path: &Path) -> Result<Self, ArchiveError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).ok_or_else(|| ArchiveError::Keys {
                what: path.display().to_string(),
                reason: "it holds no verifier key; name another file, or move this one away and a key is made".into(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::create(path),
            Err(error) => Err(ArchiveError::disk("read", path)(error)),
        }
    }

    fn create(path: &Path) -> Result<Self, ArchiveError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| ArchiveError::Keys {
            what: path.display().to_string(),
            reason: format!("no random bytes for a key: {error}"),
        })?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(ArchiveError::disk("create", folder))?;
        }
        // Linked into place: two that make one at a time end with one key.
        let fresh = path.with_extension(format!("new-{}", std::process::id()));
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh);
        let written = opened.and_then(|mut file| {
            file.write_all(format!("{KEY_HEAD}\n{}\n", hex(&seed)).as_bytes())?;
            file.sync_all()
        });
        let linked = written.and_then(|()| std::fs::hard_link(&fresh, path));
        let removed = std::fs::remove_file(&fresh);
        match linked {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Self::read_or_create(path),
            linked => linked.and(removed).map_err(ArchiveError::disk("write", path))?,
        }
        Ok(Self::from_seed(&seed))
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.strip_prefix(KEY_HEAD)?.strip_prefix('\n')?.strip_suffix('\n')?;
        unhex(line).map(|seed| Self::from_seed(&seed))
    }

    /// What verifies its signatures.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }
}

/// Words that were there when others were written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Link {
    /// Object.
    pub object: String,
    /// BLAKE3 of its bytes, in hex.
    pub blake3: String,
}

/// The newest evidence of each key under a prefix, of what has a name before `object`: in the order of their times. That of
/// `own` is never left out for others.
///
/// # Errors
/// When the destination fails.
pub async fn newest_of_each(
    destination: &Destination,
    prefix: &str,
    object: &str,
    own: &[u8; 32],
) -> Result<Vec<Link>, ArchiveError> {
    let listed = destination.list(prefix).await?;
    let mut of_key: BTreeMap<[u8; 8], Vec<String>> = BTreeMap::new();
    for found in listed.into_iter().rev().filter(|found| *found.path < *object) {
        if let Some(key) = signer_of(&found.path) {
            of_key.entry(key).or_default().push(found.path);
        }
    }
    let mut keys: Vec<([u8; 8], Vec<String>)> = of_key.into_iter().collect();
    // Own words first, then whoever spoke last.
    keys.sort_by(|(a, of_a), (b, of_b)| (own.starts_with(b), of_b.first()).cmp(&(own.starts_with(a), of_a.first())));
    let mut links = Vec::new();
    for (_, names) in keys {
        let mut of_this = 0;
        for object in names.into_iter().take(LOOKED_AT_OF_KEY) {
            if of_this == LINKS_OF_KEY || links.len() == LINKS_MAX {
                break;
            }
            let bytes = match destination.get(&object).await {
                Ok(bytes) => bytes,
                // Anybody can lay anything under such a name.
                Err(error) if error.fault().is_some() => continue,
                Err(error) => return Err(error),
            };
            if open::<serde_json::Value>(&object, &bytes).is_ok_and(|(_, key)| signer_of(&object) == Some(first8(&key)))
            {
                of_this += 1;
                links.push(Link { object, blake3: hex(blake3::hash(&bytes).as_bytes()) });
            }
        }
    }
    links.sort();
    Ok(links)
}

/// How a key is named.
pub(crate) fn first8(key: &[u8; 32]) -> [u8; 8] {
    std::array::from_fn(|n| key[n])
}

/// Signs evidence, to be written under its full name.
///
/// # Errors
/// When it is no JSON of one line.
pub fn sign(object: &str, key: &VerifierKey, evidence: &impl Serialize) -> Result<Bytes, ArchiveError> {
    let line = serde_json::to_string(evidence).map_err(ArchiveError::refused)?;
    let signature = key.0.sign(&signed(object, &line));
    Ok(format!("{line}\n{SCHEME} {} {}\n", hex(&key.public()), hex(&signature.to_bytes())).into())
}

/// Reads evidence, and gives the key that signed it.
///
/// # Errors
/// `Corrupt` when it is none, or not what was signed under this name.
pub fn open<T: DeserializeOwned>(object: &str, bytes: &Bytes) -> Result<(T, [u8; 32]), ArchiveError> {
    let bad = |reason: &str| ArchiveError::corrupt(object, reason);
    if bytes.len() > BYTES_MAX {
        return Err(bad("it is longer than any evidence"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| bad("it is no text"))?;
    let (line, rest) = text.split_once('\n').ok_or_else(|| bad("it has no signature"))?;
    let parts = rest.strip_suffix('\n').and_then(|rest| rest.strip_prefix(SCHEME)?.strip_prefix(' ')?.split_once(' '));
    let (key, signature) = parts.ok_or_else(|| bad("it has no signature"))?;
    let (key, signature) = unhex::<32>(key).zip(unhex::<64>(signature)).ok_or_else(|| bad("it has no signature"))?;
    let verifying = VerifyingKey::from_bytes(&key).map_err(|_| bad("its key is none"))?;
    let verified = verifying.verify_strict(&signed(object, line), &Signature::from_bytes(&signature));
    verified.map_err(|_| bad("its signature is not of these words under this name: changed, moved or forged"))?;
    let evidence = serde_json::from_str(line).map_err(|error| bad(&format!("it says nothing known: {error}")))?;
    Ok((evidence, key))
}

fn signed(object: &str, line: &str) -> Vec<u8> {
    let mut out = CONTEXT.to_vec();
    out.extend_from_slice(&(object.len() as u64).to_be_bytes());
    out.extend_from_slice(object.as_bytes());
    out.extend_from_slice(line.as_bytes());
    out
}

#[cfg(test)]
mod tests;
