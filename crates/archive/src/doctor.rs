//! What a destination lets its clients do to what lies there, found by trying it on an object made for that: a canary.
//!
//! Whoever holds the cluster's credentials must not be able to alter or delete a copy. That is not believed of a bucket's
//! settings: it is tried, with the credentials that nodes have, and what was found is signed and laid down beside the archive.
//!
//! Invariants: nothing but canaries is touched; an attempt counts as withstood only where the canary's bytes were read after it.
//!
//! | verdict | meaning |
//! |---|---|
//! | `immutable` | every attempt was withstood, and a lock that nobody can shorten (mode COMPLIANCE) was seen on the canary |
//! | `append-only` | nothing is ever replaced under its name, and no such lock was seen: whoever owns the place can do as they like |
//! | `mutable` | these credentials are enough to alter or delete what lies there |
//!
//! A folder is `append-only` at best: whoever may write into it may delete from it.
//! Sources: design page "archive" (immutability); S3 Object Lock, modes and bypass; `If-None-Match: *` of RFC 9110, 13.1.2.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::destination::{Answer, Destination, Lock, Put, Version, Versions};
use crate::error::ArchiveError;
use crate::evidence::{self, Link, VerifierKey, newest_of_each};
use crate::layout::{DOCTOR, DoctorVisit};

/// A verdict is news for so long: a doctor comes every hour.
const VERDICT_AGE_MS_MAX: u64 = 8 * 24 * 60 * 60 * 1000;
/// A doctor's clock may be ahead by so much.
const AHEAD_MS_MAX: u64 = 60 * 60 * 1000;
/// As much time as a lock is shortened to at least: S3 takes no moment of the past.
const SHORT_MS: u64 = 2_000;
/// Clocks and formats may differ by so much without a lock being shorter.
const SAME_MS: u64 = 1_000;
/// The mode that nobody can bypass.
const COMPLIANCE: &str = "COMPLIANCE";
const GOVERNANCE: &str = "GOVERNANCE";

/// What a destination is. Ordered: more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// These credentials can alter or delete what lies there.
    Mutable,
    /// They cannot, and nothing was seen that keeps others from it.
    AppendOnly,
    /// Nobody can, until a lock ends.
    Immutable,
}

impl Verdict {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mutable => "mutable",
            Self::AppendOnly => "append-only",
            Self::Immutable => "immutable",
        }
    }

    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Mutable, Self::AppendOnly, Self::Immutable].into_iter().find(|verdict| verdict.as_str() == text)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Try {
    /// Create an object under a name that is taken.
    CreateTwice,
    /// Make a lock end earlier, or bypassable.
    ShortenLock,
    /// Put other bytes under its name.
    Overwrite,
    /// Delete it.
    Delete,
    /// Delete its version.
    DeleteVersion,
}

impl Try {
    /// In this order: a lock is that of the newest version, and what is deleted is not overwritten.
    const ALL: [Self; 5] = [Self::CreateTwice, Self::ShortenLock, Self::Overwrite, Self::Delete, Self::DeleteVersion];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreateTwice => "create-twice",
            Self::ShortenLock => "shorten-lock",
            Self::Overwrite => "overwrite",
            Self::Delete => "delete",
            Self::DeleteVersion => "delete-version",
        }
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The destination said no.
    Refused,
    /// It said yes, and the canary's bytes are there all the same.
    Kept,
    /// It was done.
    Succeeded,
    /// There is nothing to try it on.
    NotTried,
}

impl Outcome {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Kept => "kept",
            Self::Succeeded => "succeeded",
            Self::NotTried => "not-tried",
        }
    }
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What.
    pub attempt: Try,
    /// What became of it.
    pub outcome: Outcome,
    /// What the destination said, or what was seen.
    pub said: String,
}

/// A lock that was seen on the canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockSeen {
    /// `COMPLIANCE` or `GOVERNANCE`.
    pub mode: String,
    /// Until then, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Version of this form.
    pub v: u32,
    /// `doctor`.
    pub kind: String,
    /// Destination, as it was named to whoever looked.
    pub url: String,
    /// When, by their clock: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The verdict.
    pub verdict: Verdict,
    /// What it follows from.
    pub attempts: Vec<Attempt>,
    /// The canary's lock; `None` = there is none, or these credentials may not see it.
    pub lock: Option<LockSeen>,
    /// The bucket keeps versions.
    pub versioned: bool,
    /// The newest words of everybody who looked before.
    #[serde(default)]
    pub after: Vec<Link>,
    /// Version of the program.
    pub program: String,
}

impl Finding {
    /// Attempts that were not withstood.
    pub fn succeeded(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Succeeded)
    }

    /// Reads one that lies under its name, and the key that signed it.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn open(object: &str, bytes: &Bytes) -> Result<(Self, [u8; 32]), ArchiveError> {
        let bad = |reason: &str| ArchiveError::corrupt(object, reason);
        let visit = DoctorVisit::of_verdict(object).ok_or_else(|| bad("no verdict has such a name"))?;
        let (finding, key) = evidence::open::<Self>(object, bytes)?;
        if (finding.v, finding.kind.as_str()) != (1, KIND) {
            return Err(bad("it is of a kind that a newer build writes"));
        }
        if finding.at_ms != visit.at_ms || key[..8] != visit.key {
            return Err(bad("it is of another moment or by another key than its name says"));
        }
        Ok((finding, key))
    }
}

const KIND: &str = "doctor";

/// Finds out, at a moment that the caller names, and lays down what was found; gives the name of that object.
///
/// # Errors
/// When the destination fails, so that nothing was found.
pub async fn examine(
    destination: &Destination,
    at_ms: u64,
    key: &VerifierKey,
) -> Result<(Finding, String), ArchiveError> {
    let public = key.public();
    let visit = DoctorVisit { at_ms, key: std::array::from_fn(|n| public[n]) };
    let mut ward = Ward { destination, versions: destination.versions().await?, visit, canaries: 0 };
    let mut canary = ward.canary().await?;
    let (lock, versioned) = (canary.version.lock.clone(), canary.version.id.is_some());
    let mut attempts = Vec::new();
    for what in Try::ALL {
        let (outcome, said) = ward.attempt(what, &canary, at_ms).await?;
        if outcome == Outcome::Succeeded {
            canary = ward.canary().await?;
        }
        attempts.push(Attempt { attempt: what, outcome, said });
    }
    let finding = Finding {
        v: 1,
        kind: KIND.into(),
        url: destination.config().url.clone(),
        at_ms,
        verdict: verdict(destination.is_folder(), lock.as_ref(), &attempts),
        attempts,
        lock: lock.map(|lock| LockSeen { mode: lock.mode, until_ms: lock.until_ms }),
        versioned,
        after: newest_of_each(destination, DOCTOR, &visit.verdict(), &public).await?,
        program: env!("CARGO_PKG_VERSION").into(),
    };
    let object = visit.verdict();
    ward.lay_down(&object, &evidence::sign(&object, key, &finding)?).await?;
    Ok((finding, object))
}

fn verdict(is_folder: bool, lock: Option<&Lock>, attempts: &[Attempt]) -> Verdict {
    let outcome = |what| attempts.iter().find(|attempt| attempt.attempt == what).map(|attempt| attempt.outcome);
    let withstood = |what| matches!(outcome(what), Some(Outcome::Refused | Outcome::Kept));
    let breaks = |attempt: &Attempt| {
        // A folder refuses nobody who may write there, and is never more than this.
        attempt.outcome == Outcome::Succeeded && (!is_folder || attempt.attempt == Try::CreateTwice)
    };
    if attempts.iter().any(breaks) || !withstood(Try::CreateTwice) {
        Verdict::Mutable
    } else if !is_folder && lock.is_some_and(|lock| lock.mode == COMPLIANCE) && Try::ALL.into_iter().all(withstood) {
        Verdict::Immutable
    } else {
        Verdict::AppendOnly
    }
}

/// A verdict that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedVerdict {
    /// Its object.
    pub object: String,
    /// The key that signed it.
    pub key: [u8; 32],
    /// What it says.
    pub finding: Finding,
}

/// The newest verdict of the last days before a moment that `is_believed`; those that are damaged are passed over. Looks at no
/// more than the newest hundred. What is older says nothing any more.
///
/// # Errors
/// When the destination fails.
pub async fn newest_verdict(
    destination: &Destination,
    now_ms: u64,
    is_believed: impl Fn(&[u8; 32]) -> bool,
) -> Result<Option<RecordedVerdict>, ArchiveError> {
    let after = DoctorVisit { at_ms: now_ms.saturating_sub(VERDICT_AGE_MS_MAX), key: [0; 8] }.verdict();
    let listed = destination.list_after(DOCTOR, &after).await?;
    let visits = listed.into_iter().rev().filter_map(|found| Some((DoctorVisit::of_verdict(&found.path)?, found.path)));
    for (_, object) in visits.filter(|(visit, _)| visit.at_ms <= now_ms + AHEAD_MS_MAX).take(100) {
        match destination.get(&object).await.and_then(|bytes| Finding::open(&object, &bytes)) {
            Ok((finding, key)) if is_believed(&key) => return Ok(Some(RecordedVerdict { object, key, finding })),
            Ok(_) => {}
            Err(error) if error.fault().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

struct Canary {
    object: String,
    bytes: Bytes,
    version: Version,
}

struct Ward<'a> {
    destination: &'a Destination,
    versions: Option<Versions>,
    visit: DoctorVisit,
    canaries: u32,
}

impl Ward<'_> {
    /// A new one, whole.
    async fn canary(&mut self) -> Result<Canary, ArchiveError> {
        let object = self.visit.canary(self.canaries);
        self.canaries += 1;
        let bytes = Bytes::from(format!("holdfast canary {object}\n"));
        self.lay_down(&object, &bytes).await?;
        let version = match &self.versions {
            None => Version { id: None, lock: None },
            Some(versions) => match versions.newest(&object).await {
                Answer::Done(version) => version,
                Answer::Failed(reason) => return Err(failed(&object, "look at", reason)),
                Answer::Missing => return Err(ArchiveError::missing(&object, "it was read there a moment ago")),
                // What may not be seen proves nothing.
                Answer::Refused(_) | Answer::Unsupported(_) => Version { id: None, lock: None },
            },
        };
        Ok(Canary { object, bytes, version })
    }

    /// As nodes create objects, or where that is not enough for a bucket that locks them, with what it wants besides.
    async fn create(&self, object: &str, bytes: &Bytes) -> Result<Answer<()>, ArchiveError> {
        match &self.versions {
            Some(versions) => Ok(versions.create(object, bytes).await),
            None => self.destination.try_create(object, bytes).await,
        }
    }

    /// Creates an object and reads it back.
    async fn lay_down(&self, object: &str, bytes: &Bytes) -> Result<(), ArchiveError> {
        if self.versions.is_none() {
            let put = self.destination.put_checked(object, bytes).await?;
            return if let Put::Lost(_) = put { Err(lost(object)) } else { Ok(()) };
        }
        let answer = self.create(object, bytes).await?;
        match self.destination.get(object).await {
            Ok(found) if found == *bytes => Ok(()),
            Ok(_) => Err(lost(object)),
            Err(ArchiveError::Missing { .. }) => Err(match answer {
                Answer::Refused(reason) => ArchiveError::Forbidden {
                    url: self.destination.config().url.clone(),
                    object: object.to_owned(),
                    operation: "create",
                    reason,
                },
                Answer::Failed(reason) | Answer::Unsupported(reason) => failed(object, "create", reason),
                Answer::Missing => {
                    ArchiveError::NoBucket { url: self.destination.config().url.clone(), reason: "HTTP 404".into() }
                }
                Answer::Done(()) => ArchiveError::missing(object, "the destination said that it was written"),
            }),
            Err(error) => Err(error),
        }
    }

    async fn attempt(&self, what: Try, canary: &Canary, now_ms: u64) -> Result<(Outcome, String), ArchiveError> {
        let other = Bytes::from_static(b"a canary that was tampered with\n");
        let answer = match what {
            Try::CreateTwice => self.create(&canary.object, &other).await?,
            Try::Overwrite => match &self.versions {
                Some(versions) => versions.overwrite(&canary.object, &other).await,
                None => self.destination.try_overwrite(&canary.object, &other).await?,
            },
            Try::Delete => self.destination.try_delete(&canary.object).await?,
            Try::ShortenLock => return self.shorten(canary, now_ms).await,
            Try::DeleteVersion => match self.versions.as_ref().zip(canary.version.id.as_deref()) {
                Some((versions, id)) => versions.delete(&canary.object, id).await,
                None => return Ok((Outcome::NotTried, "no versions are kept, or none were seen".into())),
            },
        };
        match answer {
            Answer::Refused(said) => Ok((Outcome::Refused, said)),
            Answer::Unsupported(said) => Ok((Outcome::NotTried, said)),
            Answer::Failed(reason) => Err(failed(&canary.object, what.as_str(), reason)),
            Answer::Done(()) | Answer::Missing => self.look(what, canary).await,
        }
    }

    /// What is left of a canary, after the destination said yes.
    async fn look(&self, what: Try, canary: &Canary) -> Result<(Outcome, String), ArchiveError> {
        let current = match self.destination.get(&canary.object).await {
            Ok(bytes) => Some(bytes),
            Err(ArchiveError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        if current.as_ref() == Some(&canary.bytes) {
            return Ok((Outcome::Kept, "it said yes and did not do it".into()));
        }
        // The log is a chain of names that are taken once: what a version keeps is no help there.
        if what == Try::CreateTwice {
            return Ok((Outcome::Succeeded, "a second object was taken under one name".into()));
        }
        let gone = if current.is_some() { "its bytes are replaced" } else { "it is gone" };
        let Some((versions, id)) = self.versions.as_ref().zip(canary.version.id.as_deref()) else {
            return Ok((Outcome::Succeeded, format!("{gone}, and no version keeps them")));
        };
        match versions.read(&canary.object, id).await {
            Answer::Done(bytes) if bytes == canary.bytes => {
                Ok((Outcome::Kept, "under its name it is hidden; its version still has its bytes".into()))
            }
            Answer::Failed(reason) => Err(failed(&canary.object, "read the version of", reason)),
            Answer::Done(_) | Answer::Missing => Ok((Outcome::Succeeded, "its version is gone".into())),
            Answer::Refused(said) | Answer::Unsupported(said) => {
                Ok((Outcome::Succeeded, format!("{gone}, and its version cannot be read: {said}")))
            }
        }
    }

    async fn shorten(&self, canary: &Canary, now_ms: u64) -> Result<(Outcome, String), ArchiveError> {
        let Some((versions, lock)) = self.versions.as_ref().zip(canary.version.lock.as_ref()) else {
            return Ok((Outcome::NotTried, "no lock was seen on it".into()));
        };
        let half_ms = now_ms + (lock.until_ms.saturating_sub(now_ms) / 2).max(SHORT_MS);
        let shorter = Lock { mode: lock.mode.clone(), until_ms: half_ms };
        let weaker = Lock { mode: GOVERNANCE.into(), until_ms: lock.until_ms };
        let mut refused = Vec::new();
        for wanted in [shorter, weaker] {
            if wanted.until_ms >= lock.until_ms && wanted.mode == lock.mode {
                continue;
            }
            match versions.set_lock(&canary.object, canary.version.id.as_deref(), &wanted).await {
                Answer::Failed(reason) => return Err(failed(&canary.object, "shorten the lock of", reason)),
                Answer::Missing => return Err(ArchiveError::missing(&canary.object, "it was there a moment ago")),
                Answer::Refused(said) | Answer::Unsupported(said) => refused.push(said),
                Answer::Done(()) => {
                    let now = match versions.newest(&canary.object).await {
                        Answer::Done(version) => version.lock,
                        Answer::Failed(reason) => return Err(failed(&canary.object, "look at", reason)),
                        Answer::Refused(_) | Answer::Unsupported(_) | Answer::Missing => None,
                    };
                    match now {
                        Some(now) if now.mode == lock.mode && now.until_ms + SAME_MS >= lock.until_ms => {}
                        Some(now) if now.mode != lock.mode => {
                            return Ok((Outcome::Succeeded, format!("its mode is {} now", now.mode)));
                        }
                        Some(now) => {
                            let by = lock.until_ms.saturating_sub(now.until_ms) / 1000;
                            return Ok((Outcome::Succeeded, format!("its lock ends {by} s earlier now")));
                        }
                        None => return Ok((Outcome::Succeeded, "no lock is seen on it any more".into())),
                    }
                }
            }
        }
        Ok(match refused.pop() {
            Some(said) => (Outcome::Refused, said),
            None => (Outcome::Kept, "it said yes and did not do it".into()),
        })
    }
}

fn lost(object: &str) -> ArchiveError {
    ArchiveError::corrupt(object, "somebody laid down something else in its place")
}

fn failed(object: &str, operation: &'static str, reason: String) -> ArchiveError {
    ArchiveError::Destination { object: object.to_owned(), operation, reason }
}

#[cfg(test)]
mod tests;
