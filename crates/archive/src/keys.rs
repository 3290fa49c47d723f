//! Who can open an archive: the secret of the cluster, or one of the recipients of KEYS.age.
//!
//! KEYS.age is a file of the format age-encryption.org/v1, as the tools `age` and `rage` read it: a generation's key, for
//! each of its recipients. Whoever lost all of the cluster needs the archive and one identity, and nothing else.
//!
//! Invariants:
//! - What a recipient finds in KEYS.age names history and generation: another one's file is not taken for it.
//! - KEYS.age is what every object of the generation says it is, by hash, or it is damaged.
//! - Only ids and hashes of keys are in texts and errors.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use age::secrecy::ExposeSecret;
use bytes::Bytes;

use crate::destination::Destination;
use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName, hex, unhex};
use crate::sealing::{GenerationKey, KEY_ID_BYTES};

const AGE_MAGIC: &[u8] = b"age-encryption.org/v1\n";
const CONTENTS_HEAD: &str = "holdfast archive key 1";
/// What is wrong with a KEYS.age that objects do not name, and with one that they miss.
pub(crate) const OTHER_KEYS: &str = "it is not the one that objects of its generation were sealed with";
pub(crate) const NO_KEYS: &str = "objects are sealed with its key, and it is not there";
/// Far more than any file of keys or of a generation has.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The secret of a cluster, from its file.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    #[cfg(test)]
    pub(crate) fn of(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new one.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// As a line of a key file.
    pub fn to_line(&self) -> String {
        hex(&self.0)
    }
}

/// An age identity: the private half of a recipient.
pub struct Identity(age::x25519::Identity);

impl Identity {
    /// A new one.
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// As a line of an identity file, as `age-keygen` writes it.
    pub fn to_line(&self) -> String {
        self.0.to_string().expose_secret().to_owned()
    }

    /// The public half.
    pub fn recipient(&self) -> String {
        self.0.to_public().to_string()
    }
}

/// What opens sealed objects.
#[derive(Default)]
pub struct Keyring {
    secrets: Vec<Secret>,
    identities: Vec<Identity>,
    /// What identities found, or why they found nothing.
    found: Mutex<BTreeMap<SealedWith, Result<Arc<GenerationKey>, String>>>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("secrets", &self.secrets.len())
            .field("identities", &self.identities.len())
            .finish_non_exhaustive()
    }
}

/// What an object says of the key that it is sealed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SealedWith {
    pub(crate) lineage: LineageId,
    pub(crate) generation: u32,
    pub(crate) key_id: [u8; KEY_ID_BYTES],
    pub(crate) keys_blake3: [u8; 32],
}

impl SealedWith {
    /// Name of the generation's KEYS.age.
    pub(crate) fn keys_object(&self) -> String {
        ObjectName::Keys { generation: self.generation }.path(&self.lineage)
    }
}

impl Keyring {
    /// Opens what these can open.
    pub fn new(secrets: Vec<Secret>, identities: Vec<Identity>) -> Self {
        Self { secrets, identities, found: Mutex::default() }
    }

    /// Reads a key file and an identity file, as far as there are any.
    ///
    /// # Errors
    /// Names the file, the line and what to do; no line is in a text.
    pub fn from_files(key_file: Option<&Path>, identity_file: Option<&Path>) -> Result<Self, ArchiveError> {
        let secrets = key_file.map(read_secrets).transpose()?.unwrap_or_default();
        let identities = identity_file.map(read_identities).transpose()?.unwrap_or_default();
        Ok(Self::new(secrets, identities))
    }

    /// Nothing sealed can be opened.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.identities.is_empty()
    }

    /// The key that a new generation is sealed with: that of the newest secret, which comes first in its file.
    pub fn new_key(&self, lineage: &LineageId, generation: u32) -> Option<GenerationKey> {
        self.secrets.first().map(|Secret(secret)| GenerationKey::derive(secret, lineage, generation))
    }

    /// The key of a generation that has this id, by one of the secrets.
    pub fn key(
        &self,
        lineage: &LineageId,
        generation: u32,
        id: &[u8; KEY_ID_BYTES],
    ) -> Result<Arc<GenerationKey>, String> {
        let keys = self.secrets.iter().map(|Secret(secret)| GenerationKey::derive(secret, lineage, generation));
        keys.into_iter().find(|key| key.id() == *id).map(Arc::new).ok_or_else(|| match self.secrets.len() {
            0 => "no key was given".to_owned(),
            1 => "the secret that was given is not the one it was made from".to_owned(),
            some => format!("none of the {some} secrets that were given is the one it was made from"),
        })
    }

    /// The key of a generation, by one of the secrets or from its KEYS.age by one of the identities.
    ///
    /// # Errors
    /// Why none of them gives it.
    pub fn key_by_any(
        &self,
        lineage: &LineageId,
        generation: u32,
        id: &[u8; KEY_ID_BYTES],
        keys_age: &[u8],
    ) -> Result<Arc<GenerationKey>, String> {
        let by_secret = self.key(lineage, generation, id);
        if by_secret.is_ok() || self.identities.is_empty() {
            return by_secret;
        }
        let key = match unwrap(keys_age, &self.identities) {
            Ok(contents) => contents.key_of(lineage, generation).filter(|key| key.id() == *id),
            Err(Unwrap::NoIdentity) => return Err("no identity that was given is a recipient of it".to_owned()),
            Err(Unwrap::Damaged(reason)) => return Err(reason),
        };
        key.map(Arc::new).ok_or_else(|| "its KEYS.age holds another key".to_owned())
    }

    /// The key of an object, as far as it was found.
    pub(crate) fn find(&self, sealed: &SealedWith) -> Result<Arc<GenerationKey>, String> {
        let by_secret = match self.key(&sealed.lineage, sealed.generation, &sealed.key_id) {
            Ok(key) => return Ok(key),
            Err(reason) => reason,
        };
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(sealed).cloned().unwrap_or(Err(by_secret))
    }

    /// KEYS.age must be read before an object can be opened.
    pub(crate) fn needs_keys_of(&self, sealed: &SealedWith) -> bool {
        let known = || self.found.lock().unwrap_or_else(PoisonError::into_inner).contains_key(sealed);
        !self.identities.is_empty() && self.key(&sealed.lineage, sealed.generation, &sealed.key_id).is_err() && !known()
    }

    /// Takes the bytes of a generation's KEYS.age, and keeps what its identities find in it.
    ///
    /// # Errors
    /// `Corrupt` when it is not the file that the object was sealed with.
    pub(crate) fn take_keys(&self, sealed: &SealedWith, bytes: &Bytes) -> Result<(), ArchiveError> {
        let keys_object = sealed.keys_object();
        if *blake3::hash(bytes).as_bytes() != sealed.keys_blake3 {
            return Err(ArchiveError::corrupt(&keys_object, OTHER_KEYS));
        }
        let found = match unwrap(bytes, &self.identities) {
            Ok(contents) => {
                let key = contents.key_of(&sealed.lineage, sealed.generation);
                let key = key.filter(|key| key.id() == sealed.key_id);
                Ok(key.ok_or_else(|| ArchiveError::corrupt(&keys_object, "what it holds is another key"))?)
            }
            Err(Unwrap::NoIdentity) => Err("no identity that was given is a recipient of it".to_owned()),
            Err(Unwrap::Damaged(reason)) => return Err(ArchiveError::corrupt(&keys_object, reason)),
        };
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(*sealed, found.map(Arc::new));
        Ok(())
    }
}

/// Wraps a generation's key for its recipients: the bytes of a KEYS.age. No two calls give equal bytes.
///
/// # Errors
/// When a recipient is none, or there is none.
pub fn wrap(key: &GenerationKey, lineage: &LineageId, recipients: &[String]) -> Result<Bytes, ArchiveError> {
    let recipients = recipients.iter().map(|text| parse_recipient(text)).collect::<Result<Vec<_>, _>>()?;
    let failed = |error: String| ArchiveError::refused(format!("age: {error}"));
    let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| failed(error.to_string()))?;
    let contents = Contents { lineage: *lineage, generation: key.generation(), key: *key.bytes() }.to_text();
    let mut out = Vec::new();
    let mut writer = encryptor.wrap_output(&mut out).map_err(|error| failed(error.to_string()))?;
    writer.write_all(contents.as_bytes()).map_err(|error| failed(error.to_string()))?;
    writer.finish().map_err(|error| failed(error.to_string()))?;
    Ok(out.into())
}

fn parse_recipient(text: &str) -> Result<age::x25519::Recipient, ArchiveError> {
    text.parse().map_err(|reason| ArchiveError::Keys {
        what: format!("recipient {text:?}"),
        reason: format!("{reason}; a recipient begins with age1, as `backup keys identity` and `age-keygen` print it"),
    })
}

/// Whether this is a recipient of age.
///
/// # Errors
/// Says what to write instead.
pub fn check_recipient(text: &str) -> Result<(), ArchiveError> {
    parse_recipient(text).map(|_| ())
}

/// What one KEYS.age gives its recipients.
struct Contents {
    lineage: LineageId,
    generation: u32,
    key: [u8; 32],
}

impl Contents {
    fn to_text(&self) -> String {
        format!("{CONTENTS_HEAD}\nlineage {}\ngeneration {}\nkey {}\n", self.lineage, self.generation, hex(&self.key))
    }

    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let [CONTENTS_HEAD, lineage, generation, key] = lines.as_slice() else { return None };
        Some(Self {
            lineage: LineageId::parse(lineage.strip_prefix("lineage ")?)?,
            generation: generation.strip_prefix("generation ")?.parse().ok()?,
            key: unhex(key.strip_prefix("key ")?)?,
        })
    }

    /// `None` = it is of another history or generation.
    fn key_of(&self, lineage: &LineageId, generation: u32) -> Option<GenerationKey> {
        let is_it = (self.lineage, self.generation) == (*lineage, generation);
        is_it.then(|| GenerationKey::of(generation, self.key))
    }
}

enum Unwrap {
    NoIdentity,
    Damaged(String),
}

fn unwrap(bytes: &[u8], identities: &[Identity]) -> Result<Contents, Unwrap> {
    let damaged = |error: &dyn std::fmt::Display| Unwrap::Damaged(format!("age: {error}"));
    let decryptor = age::Decryptor::new_buffered(bytes).map_err(|error| damaged(&error))?;
    let mut reader = match decryptor.decrypt(identities.iter().map(|Identity(identity)| identity as &dyn age::Identity))
    {
        Ok(reader) => reader,
        Err(age::DecryptError::NoMatchingKeys) => return Err(Unwrap::NoIdentity),
        Err(error) => return Err(damaged(&error)),
    };
    let mut text = String::new();
    reader.read_to_string(&mut text).map_err(|error| damaged(&error))?;
    Contents::parse(&text).ok_or_else(|| Unwrap::Damaged("it holds no key of an archive".to_owned()))
}

/// Which key a KEYS.age gives the holder of an identity; `None` = he is no recipient of it.
///
/// # Errors
/// `Corrupt` when it cannot be read at all, or is of another history or generation.
pub fn prove(
    object: &str,
    lineage: &LineageId,
    generation: u32,
    bytes: &[u8],
    identity: &Identity,
) -> Result<Option<[u8; KEY_ID_BYTES]>, ArchiveError> {
    let bad = |reason: &str| ArchiveError::corrupt(object, reason);
    match unwrap(bytes, std::slice::from_ref(identity)) {
        Ok(contents) => match contents.key_of(lineage, generation) {
            Some(key) => Ok(Some(key.id())),
            None => Err(bad("it is of another history or generation")),
        },
        Err(Unwrap::NoIdentity) => Ok(None),
        Err(Unwrap::Damaged(reason)) => Err(bad(&reason)),
    }
}

/// The KEYS.age of a generation, as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedKeys {
    /// Generation.
    pub generation: u32,
    /// Its name.
    pub object: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Every KEYS.age of a history, ascending.
///
/// # Errors
/// When the destination fails.
pub async fn list_keys(destination: &Destination, lineage: &LineageId) -> Result<Vec<ListedKeys>, ArchiveError> {
    let (_, generations) = destination.list_here(&format!("{lineage}/gen")).await?;
    let mut listed = Vec::new();
    for generation in generations.iter().filter_map(|name| name.parse().ok()) {
        let object = ObjectName::Keys { generation }.path(lineage);
        match destination.get(&object).await {
            Ok(bytes) => listed.push(ListedKeys { generation, object, bytes }),
            // A week of chunks that are not encrypted.
            Err(ArchiveError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    listed.sort_by_key(|keys| keys.generation);
    Ok(listed)
}

/// As far as can be told without an identity.
pub(crate) fn check_keys_age(object: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
    match bytes.starts_with(AGE_MAGIC) {
        true => Ok(()),
        false => Err(ArchiveError::corrupt(object, "it does not begin like a file of age")),
    }
}

/// Reads the secrets in a key file, newest first.
///
/// # Errors
/// Names the file, the line and what to do.
pub fn read_secrets(path: &Path) -> Result<Vec<Secret>, ArchiveError> {
    let form = "each line is 64 hex digits, as `backup keys new` writes them; the newest comes first";
    lines_of(path, "key file", form, |line| unhex(line).map(Secret))
}

/// Reads the identities in an identity file.
///
/// # Errors
/// Names the file, the line and what to do.
pub fn read_identities(path: &Path) -> Result<Vec<Identity>, ArchiveError> {
    let form =
        "each line is an identity of age, AGE-SECRET-KEY-1…, as `backup keys identity` and `age-keygen` write it";
    lines_of(path, "identity file", form, |line| line.parse().ok().map(Identity))
}

/// Lines that are neither empty nor remarks, each as what it must be; at least one.
fn lines_of<T>(path: &Path, what: &str, form: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, ArchiveError> {
    let failed = |reason: String| ArchiveError::Keys { what: format!("{what} {}", path.display()), reason };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("it is longer than {FILE_BYTES_MAX} bytes; {form}")));
    }
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let read = lines.map(|(at, line)| parse(line).ok_or_else(|| failed(format!("line {}: {form}", at + 1))));
    let read = read.collect::<Result<Vec<T>, _>>()?;
    if read.is_empty() { Err(failed(format!("there is none in it; {form}"))) } else { Ok(read) }
}

#[cfg(test)]
mod tests;
