//! A vault: a copy that its owner pulls out of another copy, with credentials that the cluster does not have.
//!
//! ```text
//! source ──list, read──> checked ──created, read back──> vault
//! ```
//!
//! Invariants:
//! - Nothing goes into it that is not whole and of its place: hash, history and name of every object, the entry chain from segment
//!   to segment; a manifest only when all that it names lies in the vault. What is encrypted and not opened is checked by its hash.
//! - Nothing in it is replaced or deleted by pulling: what the source lost, or has otherwise now, is told.
//! - Words about the source (verifications, marks of pruning) stay there: they say nothing of this copy.
//! - What is needed and whose lock ends soon is written once more, as a new version under its name, with a lock of its own.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_model::id::GroupId;

use crate::destination::{Answer, Destination, Listed, Put, Versions};
use crate::error::ArchiveError;
use crate::layout::{LineageId, ObjectName};
use crate::lineage::find_lineages;
use crate::manifest::Manifest;
use crate::prune::{Trusted, look};
use crate::retention::{Policy, judge};
use crate::verify::{Contents, Held, check};

/// Requests under way.
const CALLS_MAX: usize = 8;
/// Objects that are read before they are written.
const BATCH_OBJECTS: usize = 64;
const BATCH_BYTES: u64 = 32 << 20;
/// So many objects in a row whose locks last end the search for those whose do not.
const LASTING: usize = 16;

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Histories at the source.
    pub lineages: usize,
    /// Objects that were copied.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that were there.
    pub present: u64,
    /// Copied objects that are encrypted, and were not opened.
    pub locked: u64,
    /// What was not copied, or differs from what the vault has, with the reason.
    pub bad: Vec<(String, String)>,
    /// Snapshots and segments that the vault has, and the source lost without a mark that they were to go.
    pub lost: Vec<String>,
    /// Objects that were written once more.
    pub renewed: u64,
    /// The earliest end of a lock of what is needed, in milliseconds since the Unix epoch; `None` = there are no locks.
    pub locked_until_ms: Option<u64>,
}

/// Told what is done, of how many objects.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Copies all that the vault lacks.
///
/// # Errors
/// When either destination fails; what was copied by then stays, and the next call goes on.
pub async fn pull(
    source: &Destination,
    vault: &Destination,
    group: GroupId,
    progress: Progress<'_>,
) -> Result<Pulled, ArchiveError> {
    let mut pulled = Pulled::default();
    let found = find_lineages(source).await?;
    let here = find_lineages(vault).await?;
    let of_source: BTreeSet<LineageId> =
        found.lineages.iter().map(|facts| facts.id).chain(found.bad.iter().map(|(id, _)| *id)).collect();
    let of_vault = here.lineages.iter().map(|facts| facts.id).chain(here.bad.iter().map(|(id, _)| *id));
    pulled.lineages = of_source.len();
    // Those that the source lost altogether are looked at, too.
    for id in of_source.iter().copied().chain(of_vault).collect::<BTreeSet<_>>() {
        pull_lineage(source, vault, &id, group, &mut pulled, progress).await?;
    }
    pulled.bad.sort();
    pulled.lost.sort();
    Ok(pulled)
}

/// What is copied, and in which order: what vouches for others comes behind them.
fn rank(name: &ObjectName) -> Option<u8> {
    match name {
        ObjectName::Lineage => Some(0),
        ObjectName::Keys { .. } => Some(1),
        ObjectName::Chunk { .. } | ObjectName::Patch { .. } => Some(2),
        ObjectName::Segment { .. } => Some(3),
        ObjectName::Joined { .. } => Some(4),
        ObjectName::Heartbeat { .. } => Some(5),
        ObjectName::Manifest { .. } => Some(6),
        ObjectName::Verification { .. } | ObjectName::Tombstone { .. } | ObjectName::Pruned { .. } => None,
    }
}

async fn pull_lineage(
    source: &Destination,
    vault: &Destination,
    id: &LineageId,
    group: GroupId,
    pulled: &mut Pulled,
    progress: Progress<'_>,
) -> Result<(), ArchiveError> {
    // What vouches for others, before these: lists are of no one moment.
    let mut vouching = BTreeSet::new();
    for part in ["snap", "heartbeat"] {
        vouching.extend(source.list(&format!("{id}/{part}")).await?.into_iter().map(|found| found.path));
    }
    let listed = source.list(&id.to_string()).await?;
    let held: BTreeMap<String, u64> =
        vault.list(&id.to_string()).await?.into_iter().map(|found| (found.path, found.bytes)).collect();
    let there: BTreeSet<&str> = listed.iter().map(|found| found.path.as_str()).collect();
    note_lost(source, &held, &there, pulled).await?;
    let mut wanted: Vec<(u8, ObjectName, Listed)> = Vec::new();
    for found in &listed {
        let Some((_, name)) = ObjectName::parse(&found.path) else { continue };
        let Some(rank) = rank(&name) else { continue };
        match held.get(&found.path) {
            Some(bytes) if *bytes == found.bytes => pulled.present += 1,
            Some(bytes) => {
                let reason = format!("the vault has {bytes} bytes of it, the source {} now", found.bytes);
                pulled.bad.push((found.path.clone(), reason));
            }
            None if rank < 5 || vouching.contains(&found.path) => wanted.push((rank, name, found.clone())),
            None => {}
        }
    }
    wanted.sort_by(|a, b| (a.0, &a.2.path).cmp(&(b.0, &b.2.path)));
    let mut pull = Pull { source, vault, id, group, held, walk: None, pulled, done: 0, of: wanted.len() as u64 };
    pull.begin_walk(&wanted).await?;
    let mut rest = &wanted[..];
    while !rest.is_empty() {
        let (mut bytes, kind) = (0, rest[0].0);
        // Of one kind: what vouches for others is looked at when these are there.
        let within = rest.iter().take(BATCH_OBJECTS).take_while(|(rank, _, found)| {
            let fits = *rank == kind && (bytes == 0 || bytes + found.bytes <= BATCH_BYTES);
            bytes += found.bytes;
            fits
        });
        let (batch, behind) = rest.split_at(within.count());
        pull.copy(batch).await?;
        rest = behind;
        progress(pull.done, pull.of);
    }
    Ok(())
}

/// Snapshots and segments that are gone at the source, and nobody there marked to go.
async fn note_lost(
    source: &Destination,
    held: &BTreeMap<String, u64>,
    there: &BTreeSet<&str>,
    pulled: &mut Pulled,
) -> Result<(), ArchiveError> {
    let gone: Vec<(&String, ObjectName)> = held
        .keys()
        .filter(|path| !there.contains(path.as_str()))
        .filter_map(|path| Some((path, ObjectName::parse(path)?.1)))
        .filter(|(_, name)| matches!(name, ObjectName::Manifest { .. } | ObjectName::Segment { .. }))
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    let (mut snapshots, mut through) = (BTreeSet::new(), None);
    for path in there.iter().filter(|path| path.contains("/tombstone/")) {
        // Whoever signed it: that is for who prunes the source. A damaged one marks nothing.
        let opened = crate::tombstone::Tombstone::open(path, &source.get(path).await?);
        if let Ok((mark, _)) = opened {
            snapshots.extend(mark.snapshots.iter().map(|one| one.index));
            through = through.max(mark.log_through);
        }
    }
    let lost = gone.into_iter().filter(|(_, name)| match name {
        ObjectName::Manifest { index, .. } => !snapshots.contains(index),
        ObjectName::Segment { first, .. } => through.is_none_or(|through| *first > through),
        _ => false,
    });
    pulled.lost.extend(lost.map(|(path, _)| path.clone()));
    Ok(())
}

/// Where the log that was checked ends: the next entry, and the chain before it.
#[derive(Debug, Clone, Copy)]
struct Walk {
    next: u64,
    chain: [u8; 32],
}

struct Pull<'a> {
    source: &'a Destination,
    vault: &'a Destination,
    id: &'a LineageId,
    group: GroupId,
    /// What the vault holds, with lengths.
    held: BTreeMap<String, u64>,
    /// `None` = what comes next follows nothing that is known.
    walk: Option<Walk>,
    pulled: &'a mut Pulled,
    done: u64,
    of: u64,
}

/// An object that was read, and what is known of it.
struct Checked {
    bytes: Bytes,
    contents: Result<Option<Contents>, (String, String)>,
}

impl Pull<'_> {
    /// The log goes on where the vault's ends.
    async fn begin_walk(&mut self, wanted: &[(u8, ObjectName, Listed)]) -> Result<(), ArchiveError> {
        let first = wanted.iter().find_map(|(_, name, _)| match name {
            ObjectName::Segment { first, .. } => Some(*first),
            _ => None,
        });
        let Some(first) = first else { return Ok(()) };
        let own = ObjectName::segment(self.group, first).path(self.id);
        let prefix = format!("{}/", self.id.log_prefix(self.group, 0));
        let before = self.held.range(prefix.clone()..own).next_back().map(|(path, _)| path.clone());
        if let Some(path) = before
            && let Some((_, name)) = ObjectName::parse(&path)
        {
            let checked = read(self.vault, self.id, name, &path).await?;
            self.follow(&name, &path, &checked);
        }
        Ok(())
    }

    /// Follows the log over what lies at a position; `false` = it does not follow what lies before it.
    fn follow(&mut self, name: &ObjectName, path: &str, checked: &Checked) -> bool {
        let ObjectName::Segment { repair, .. } = name else { return true };
        let Ok(contents) = &checked.contents else {
            self.walk = None;
            return true;
        };
        let (first, before, next, after) = match contents {
            Some(Contents::Log(Held::Segment(of))) => {
                (of.first().index, of.chain_before, of.last().index.saturating_add(1), of.chain_after)
            }
            Some(Contents::Log(Held::Gap(gap))) => {
                (gap.first, gap.chain_before, gap.last.index.saturating_add(1), gap.chain_after)
            }
            // Encrypted, or the end.
            _ => {
                self.walk = None;
                return true;
            }
        };
        let fits = match self.walk {
            // A repair stands beside what it repairs.
            Some(walk) if *repair == 0 => walk.next != first || walk.chain == before,
            _ => true,
        };
        if fits {
            self.walk = Some(Walk { next, chain: after });
        } else {
            let reason = "it does not continue the entry chain of the segment before it, which the vault has";
            self.pulled.bad.push((path.to_owned(), reason.to_owned()));
        }
        fits
    }

    async fn copy(&mut self, batch: &[(u8, ObjectName, Listed)]) -> Result<(), ArchiveError> {
        let (source, id) = (self.source, self.id);
        let reads = batch.iter().map(|(_, name, found)| read(source, id, *name, &found.path));
        let read: Vec<Checked> = futures::stream::iter(reads).buffered(CALLS_MAX).try_collect().await?;
        let mut puts = Vec::new();
        for ((_, name, found), checked) in batch.iter().zip(read) {
            let fits = self.follow(name, &found.path, &checked);
            match checked.contents {
                Ok(contents) => {
                    let is_whole = match &contents {
                        Some(Contents::Manifest(manifest, _)) => self.bears(&found.path, manifest),
                        _ => true,
                    };
                    if fits && is_whole {
                        self.pulled.locked += u64::from(contents.is_none());
                        puts.push((&found.path, checked.bytes));
                    }
                }
                Err(fault) => self.pulled.bad.push(fault),
            }
        }
        let vault = self.vault;
        let put = |(path, bytes): (&'_ String, Bytes)| {
            let path = path.clone();
            async move { vault.put_checked(&path, &bytes).await.map(|put| (path, bytes.len() as u64, put)) }
        };
        let puts: Vec<(String, u64, Put)> =
            futures::stream::iter(puts.into_iter().map(put)).buffered(CALLS_MAX).try_collect().await?;
        for (path, bytes, put) in puts {
            match put {
                Put::Created => {
                    (self.pulled.objects, self.pulled.bytes) = (self.pulled.objects + 1, self.pulled.bytes + bytes)
                }
                Put::Same => self.pulled.present += 1,
                Put::Lost(_) => {
                    self.pulled.bad.push((path, "the vault has other bytes under this name".into()));
                    continue;
                }
            }
            self.held.insert(path, bytes);
        }
        self.done += batch.len() as u64;
        Ok(())
    }

    /// Everything that a manifest names lies in the vault.
    fn bears(&mut self, path: &str, manifest: &Manifest) -> bool {
        let lacks =
            manifest.objects().find(|(name, line)| self.held.get(&name.path(self.id)) != Some(&line.stored_length));
        let Some((name, _)) = lacks else { return true };
        let reason = format!("it is not copied: the vault does not have {}, which it names", name.path(self.id));
        self.pulled.bad.push((path.to_owned(), reason));
        false
    }
}

/// Reads an object and checks it as far as it opens; `None` = it is encrypted, and whole.
async fn read(
    destination: &Destination,
    id: &LineageId,
    name: ObjectName,
    path: &str,
) -> Result<Checked, ArchiveError> {
    let bytes = match destination.get(path).await {
        Ok(bytes) => bytes,
        // Also one that went since it was listed.
        Err(error) => {
            let fault = error.fault().ok_or(error)?;
            return Ok(Checked { bytes: Bytes::new(), contents: Err(fault) });
        }
    };
    let (id, path, keys, of) = (*id, path.to_owned(), destination.shared_keys(), bytes.clone());
    let checking = tokio::task::spawn_blocking(move || check(&path, &id, &keys, name, &of));
    let contents = match checking.await.map_err(|_| ArchiveError::Stopped { what: "checking an object" })? {
        Ok(contents) => Ok(Some(contents)),
        Err(ArchiveError::NoKey { .. }) => Ok(None),
        Err(error) => Err(error.fault().ok_or(error)?),
    };
    Ok(Checked { bytes, contents })
}

/// Writes once more what the policy keeps in a vault, and whose lock ends within `before_ms`.
///
/// # Errors
/// When the vault fails, holds what is damaged, or does not lock what is written there.
pub async fn renew(
    vault: &Destination,
    group: GroupId,
    policy: &Policy,
    trusted: &Trusted,
    now_ms: u64,
    before_ms: u64,
    pulled: &mut Pulled,
) -> Result<(), ArchiveError> {
    let Some(versions) = vault.versions().await? else { return Ok(()) };
    let stocks = look(vault, group, trusted, now_ms).await?;
    let holdings: Vec<_> = stocks.iter().map(|stock| stock.holding.clone()).collect();
    let judged = judge(&holdings, policy, now_ms, true);
    for stock in &stocks {
        let mut oldest_first = stock.needed(&judged);
        oldest_first.sort_by_key(|(_, stored_ms)| *stored_ms);
        let mut lasting = 0;
        for (path, _) in oldest_first {
            let until_ms = match lock_of(vault, &versions, &path).await? {
                Some(until_ms) if until_ms >= now_ms + before_ms => {
                    lasting += 1;
                    until_ms
                }
                Some(until_ms) => {
                    lasting = 0;
                    write_again(vault, &versions, &stock.holding.id, &path, until_ms).await?;
                    pulled.renewed += 1;
                    lock_of(vault, &versions, &path).await?.unwrap_or(0)
                }
                // Nothing is locked here.
                None => return Ok(()),
            };
            let earliest_ms = pulled.locked_until_ms.unwrap_or(u64::MAX);
            pulled.locked_until_ms = Some(earliest_ms.min(until_ms));
            if lasting >= LASTING {
                break;
            }
        }
    }
    Ok(())
}

async fn lock_of(vault: &Destination, versions: &Versions, path: &str) -> Result<Option<u64>, ArchiveError> {
    match versions.newest(path).await {
        Answer::Done(version) => Ok(version.lock.map(|lock| lock.until_ms)),
        Answer::Missing => Err(ArchiveError::missing(path, "it was listed a moment ago")),
        Answer::Refused(reason) => Err(ArchiveError::Forbidden {
            url: vault.config().url.clone(),
            object: path.to_owned(),
            operation: "look at",
            reason,
        }),
        Answer::Failed(reason) | Answer::Unsupported(reason) => {
            Err(ArchiveError::Destination { object: path.to_owned(), operation: "look at", reason })
        }
    }
}

/// Checks what lies there, writes the same as a new version, and sees that this is locked for longer.
async fn write_again(
    vault: &Destination,
    versions: &Versions,
    id: &LineageId,
    path: &str,
    until_ms: u64,
) -> Result<(), ArchiveError> {
    let Some((_, name)) = ObjectName::parse(path) else {
        return Err(ArchiveError::refused(format!("{path}: no object")));
    };
    let checked = read(vault, id, name, path).await?;
    checked.contents.map_err(|(object, reason)| ArchiveError::corrupt(&object, reason))?;
    match versions.put_again(path, &checked.bytes).await {
        Answer::Done(()) => {}
        Answer::Refused(reason) => {
            return Err(ArchiveError::Forbidden {
                url: vault.config().url.clone(),
                object: path.to_owned(),
                operation: "write a new version of",
                reason,
            });
        }
        Answer::Missing | Answer::Failed(_) | Answer::Unsupported(_) => {
            let reason = "the vault did not take it".to_owned();
            return Err(ArchiveError::Destination {
                object: path.to_owned(),
                operation: "write a new version of",
                reason,
            });
        }
    }
    let is_same = vault.get(path).await? == checked.bytes;
    let now = lock_of(vault, versions, path).await?;
    if !is_same || now.is_none_or(|now| now <= until_ms) {
        let reason = "a new version of it is not locked for longer: give the bucket a default retention";
        return Err(ArchiveError::Destination { object: path.to_owned(), operation: "lock", reason: reason.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
