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
use crate::retention::{Accepted, Policy, judge};
use crate::tombstone::Marks;
use crate::verify::{Contents, Held, check};

/// Requests under way.
const CALLS_MAX: usize = 8;
/// Objects that are read before they are written.
const BATCH_OBJECTS: usize = 64;
const BATCH_BYTES: u64 = 32 << 20;

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
    /// Segments that are damaged at the source, and were shipped again beside themselves: nothing is lost with them.
    pub repaired: Vec<String>,
    /// Snapshots and segments that the vault has, and the source lost without a mark, by somebody trusted, that they were to go.
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
    trusted: &Trusted,
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
        pull_lineage(source, vault, &id, group, trusted, &mut pulled, progress).await?;
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
    trusted: &Trusted,
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
    note_lost(source, &held, &there, trusted, pulled).await?;
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
    let repaired = there.iter().filter_map(|path| path.split_once(".r")).map(|(own, _)| own.to_owned()).collect();
    let of = wanted.len() as u64;
    let mut pull = Pull { source, vault, id, group, held, repaired, walk: None, foreign: None, pulled, done: 0, of };
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
    trusted: &Trusted,
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
    // Whoever wipes a source can sign something, too. When it was stored matters to nobody here.
    let names = there.iter().filter(|path| path.contains("/tombstone/")).map(|path| ((*path).to_owned(), 0)).collect();
    let marks = Marks::read(source, names, trusted).await?;
    let (snapshots, through) = (marks.buried(), marks.log.iter().map(|(through, _)| *through).max());
    let lost = gone.into_iter().filter(|(_, name)| match name {
        ObjectName::Manifest { index, .. } => !snapshots.contains(index),
        ObjectName::Segment { first, .. } => through.is_none_or(|through| *first > through),
        _ => false,
    });
    pulled.lost.extend(lost.map(|(path, _)| path.clone()));
    Ok(())
}

/// Where a part of the log ends: the next entry, and the chain before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Positions of the log that were repaired at the source.
    repaired: BTreeSet<String>,
    /// Where the log that was taken last ends; `None` = what comes next follows nothing that is known.
    walk: Option<Walk>,
    /// Where the log that was refused last ends.
    foreign: Option<Walk>,
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
    /// Why what lies at a position, or joins several, does not belong to the log that the vault has; `None` = it does, as far as
    /// that can be told.
    async fn misfit(&mut self, name: &ObjectName, checked: &Checked) -> Result<Option<&'static str>, ArchiveError> {
        let (first, before, end) = match (name, &checked.contents) {
            (ObjectName::Segment { .. }, Ok(Some(Contents::Log(Held::Segment(of))))) => {
                let end = Walk { next: of.last().index.saturating_add(1), chain: of.chain_after };
                (of.first().index, of.chain_before, end)
            }
            (ObjectName::Segment { .. }, Ok(Some(Contents::Log(Held::Gap(gap))))) => {
                (gap.first, gap.chain_before, Walk { next: gap.last.index.saturating_add(1), chain: gap.chain_after })
            }
            (ObjectName::Joined { .. }, Ok(Some(Contents::Joined(of)))) => {
                let starts = self.chain_at(of.first().index).await?.is_none_or(|chain| chain == of.chain_before);
                let next = of.last().index.saturating_add(1);
                let ends = self.chain_at(next).await?.is_none_or(|chain| chain == of.chain_after);
                return Ok(if starts && ends {
                    None
                } else {
                    Some("its entry chain is not that of the log that the vault has")
                });
            }
            // Damaged, encrypted, or the end.
            (ObjectName::Segment { .. }, _) => {
                self.walk = None;
                return Ok(None);
            }
            _ => return Ok(None),
        };
        let here = Walk { next: first, chain: before };
        let known = match self.walk {
            Some(walk) if walk.next == first => Some(walk),
            _ => self.end_before(first).await?,
        };
        let reason = match known {
            _ if self.foreign == Some(here) => "it continues what was refused",
            Some(walk) if walk.next > first => "it overlaps the segment before it, which the vault has",
            Some(walk) if walk.next == first && walk != here => {
                "it does not continue the entry chain of the segment before it, which the vault has"
            }
            // Behind what the source has damaged, or encrypted, nothing more can be told.
            _ => {
                self.walk = Some(end);
                return Ok(None);
            }
        };
        self.foreign = Some(end);
        Ok(Some(reason))
    }

    /// Where what the vault has before a position ends, if that can be read.
    async fn end_before(&self, first: u64) -> Result<Option<Walk>, ArchiveError> {
        let own = ObjectName::segment(self.group, first).path(self.id);
        let prefix = format!("{}/", self.id.log_prefix(self.group, 0));
        let Some((path, _)) = self.held.range(prefix..own).next_back() else { return Ok(None) };
        let Some((_, name)) = ObjectName::parse(path) else { return Ok(None) };
        Ok(match read(self.vault, self.id, name, path).await?.contents {
            Ok(Some(Contents::Log(Held::Segment(of)))) => {
                Some(Walk { next: of.last().index.saturating_add(1), chain: of.chain_after })
            }
            Ok(Some(Contents::Log(Held::Gap(gap)))) => {
                Some(Walk { next: gap.last.index.saturating_add(1), chain: gap.chain_after })
            }
            _ => None,
        })
    }

    /// Entry chain before a position that the vault has, if that can be read.
    async fn chain_at(&self, first: u64) -> Result<Option<[u8; 32]>, ArchiveError> {
        let name = ObjectName::segment(self.group, first);
        let path = name.path(self.id);
        if !self.held.contains_key(&path) {
            return Ok(None);
        }
        Ok(match read(self.vault, self.id, name, &path).await?.contents {
            Ok(Some(Contents::Log(Held::Segment(of)))) => Some(of.chain_before),
            Ok(Some(Contents::Log(Held::Gap(gap)))) => Some(gap.chain_before),
            _ => None,
        })
    }

    async fn copy(&mut self, batch: &[(u8, ObjectName, Listed)]) -> Result<(), ArchiveError> {
        let (source, id) = (self.source, self.id);
        let reads = batch.iter().map(|(_, name, found)| read(source, id, *name, &found.path));
        let read: Vec<Checked> = futures::stream::iter(reads).buffered(CALLS_MAX).try_collect().await?;
        let mut puts = Vec::new();
        for ((_, name, found), checked) in batch.iter().zip(read) {
            let misfit = self.misfit(name, &checked).await?;
            if let Some(reason) = misfit {
                self.pulled.bad.push((found.path.clone(), reason.to_owned()));
                continue;
            }
            match checked.contents {
                Ok(contents) => {
                    let is_whole = match &contents {
                        Some(Contents::Manifest(manifest, _)) => self.bears(&found.path, manifest),
                        _ => true,
                    };
                    if is_whole {
                        self.pulled.locked += u64::from(contents.is_none());
                        puts.push((&found.path, checked.bytes));
                    }
                }
                Err((object, _)) if self.repaired.contains(&object) => self.pulled.repaired.push(object),
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

/// Writes once more what the policy keeps in a vault, and whose lock ends within `before_ms`, or half its time. Where not all of it
/// opens, or anything keeps it from being pruned, everything is kept.
///
/// # Errors
/// When the vault fails, or does not lock what is written there; what is damaged is told in `pulled`.
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
    let versions = &versions;
    let needed = needed(vault, group, policy, trusted, now_ms).await?;
    let look = |(id, path, stored_ms): (LineageId, String, u64)| async move {
        lock_of(vault, versions, &path).await.map(|until_ms| (id, path, stored_ms, until_ms))
    };
    let locks: Vec<_> = futures::stream::iter(needed).map(look).buffered(CALLS_MAX).try_collect().await?;
    if locks.iter().all(|(.., until_ms)| until_ms.is_none()) {
        // Nothing is locked here.
        return Ok(());
    }
    for (id, path, stored_ms, until_ms) in locks {
        let until_ms = until_ms.unwrap_or(0);
        // Those that last for less than that would be written again at every look.
        let soon_ms = before_ms.min(until_ms.saturating_sub(stored_ms) / 2);
        let mut lasts_ms = until_ms;
        if until_ms < now_ms + soon_ms || until_ms == 0 {
            match write_again(vault, versions, &id, &path, until_ms).await {
                Ok(until_ms) => lasts_ms = until_ms,
                Err(error) => {
                    pulled.bad.push(error.fault().ok_or(error)?);
                    continue;
                }
            }
            pulled.renewed += 1;
        }
        pulled.locked_until_ms = Some(pulled.locked_until_ms.unwrap_or(u64::MAX).min(lasts_ms));
    }
    Ok(())
}

/// What is to stay in a vault, and when it was stored.
async fn needed(
    vault: &Destination,
    group: GroupId,
    policy: &Policy,
    trusted: &Trusted,
    now_ms: u64,
) -> Result<Vec<(LineageId, String, u64)>, ArchiveError> {
    let mut needed = Vec::new();
    let stocks = match look(vault, group, trusted, now_ms).await {
        Ok(stocks) => stocks,
        Err(ArchiveError::NoKey { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    let holdings: Vec<_> = stocks.iter().map(|stock| stock.holding.clone()).collect();
    let judged = judge(&holdings, policy, now_ms, &Accepted::new());
    if !stocks.is_empty() && judged.frozen.is_empty() {
        for stock in &stocks {
            let id = stock.holding.id;
            needed.extend(stock.needed(&judged).into_iter().map(|(path, stored_ms)| (id, path, stored_ms)));
        }
        return Ok(needed);
    }
    let found = find_lineages(vault).await?;
    for id in found.lineages.iter().map(|facts| facts.id).chain(found.bad.iter().map(|(id, _)| *id)) {
        let listed = vault.list_dated(&id.to_string()).await?.into_iter();
        let ours = listed.filter(|(found, _)| ObjectName::parse(&found.path).is_some());
        needed.extend(ours.map(|(found, stored_ms)| (id, found.path, stored_ms)));
    }
    Ok(needed)
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
) -> Result<u64, ArchiveError> {
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
    match now.filter(|now| is_same && *now > until_ms) {
        Some(now) => Ok(now),
        None => {
            let reason = "a new version of it is not locked for longer: give the bucket a default retention";
            Err(ArchiveError::Destination { object: path.to_owned(), operation: "lock", reason: reason.into() })
        }
    }
}

#[cfg(test)]
mod tests;
