//! A phone: it edits its own store at any time, and syncs it when it can.
//!
//! Invariants: a resync never deletes anything on the phone but by a tombstone or a proof; what the person changed here
//! and the server has not is kept as pending until the server acknowledged it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use holdfast_client::resync::{Kept, LocalRecord, Rollback, Verdict, content_hash, reconcile};
use holdfast_client::{Client, Error, Session, SyncOutcome, v1};
use v1::precondition::Check;

use crate::Failed;
use crate::store::{Content, Entry, Key, Store};

/// Changes of other devices may come between a pull and a push.
const ROUNDS_MAX: usize = 8;
const MUTATIONS_MAX: usize = 200;

pub struct Phone {
    pub name: &'static str,
    pub user: String,
    pub store: Store,
    pub told: Told,
    session: Session,
}

/// What happened to it, for the table.
#[derive(Debug, Default, Clone, Copy)]
pub struct Told {
    pub resyncs: usize,
    pub uploaded_again: usize,
    pub had_already: usize,
    pub had_newer: usize,
    pub trashed: usize,
}

impl Phone {
    pub fn open(name: &'static str, user: &str, dir: &Path, client: &Client) -> Result<Self, Failed> {
        let store = Store::open(&dir.join(name))?;
        Ok(Self { name, user: user.to_owned(), store, told: Told::default(), session: client.session() })
    }

    pub fn say(&self, what: impl std::fmt::Display) {
        println!("{}: {what}", self.name);
    }

    pub fn edit(&mut self, collection: &str, id: &str, text: Option<&str>) -> Result<(), Failed> {
        self.say(format_args!("{} {collection}/{id}", if text.is_some() { "writes" } else { "deletes" }));
        self.store.edit(collection, id, text)
    }

    /// Brings the phone and the server together.
    pub async fn sync(&mut self) -> Result<(), Failed> {
        let mut received = self.pull().await?;
        let mut sent = 0;
        for round in 0.. {
            let pushed = self.push().await?;
            received += self.pull().await?;
            sent += pushed.unwrap_or(0);
            if pushed.is_some() && !self.store.entries.values().any(|entry| entry.pending.is_some()) {
                break;
            }
            if round == ROUNDS_MAX {
                return Err("other devices change the same records all the time; sync again later".into());
            }
        }
        self.acknowledge().await?;
        self.say(format_args!("is in sync: sent {sent} changes, received {received}"));
        Ok(())
    }

    /// Applies what changed on the server; gives how many records it was sent.
    async fn pull(&mut self) -> Result<usize, Failed> {
        let (mut received, mut resyncs) = (0, 0);
        loop {
            let request = v1::GetChangesRequest {
                user_id: self.user.clone(),
                sync_token: self.store.token.clone(),
                page_size: 50,
                ..Default::default()
            };
            let answer = self.session.changes(request).await?;
            match answer.outcome {
                SyncOutcome::Page(page) => {
                    received += page.records.len();
                    for record in &page.records {
                        self.apply(record);
                    }
                    self.store.token = page.next_sync_token;
                    self.store.incarnation = answer.header.incarnation;
                    self.store.save()?;
                    if !page.more {
                        return Ok(received);
                    }
                }
                SyncOutcome::Resync(info) => {
                    resyncs += 1;
                    if resyncs > ROUNDS_MAX {
                        return Err("the server orders one resync after the other; the phone keeps all it has".into());
                    }
                    self.resync(&info).await?;
                }
            }
        }
    }

    fn apply(&mut self, record: &v1::Record) {
        let Some(key) = &record.key else { return };
        let entry = self.store.entries.entry((key.collection.clone(), key.record_id.clone())).or_default();
        entry.version = record.version;
        entry.synced = Content::of(record);
        // It is what the person wants: an answer was lost, or another device did the same.
        if entry.pending.as_ref() == Some(&entry.synced) {
            entry.pending = None;
        }
    }

    /// Sends what the person changed; `None` = another device was quicker, pull first.
    async fn push(&mut self) -> Result<Option<usize>, Failed> {
        let pending = |(key, entry): (&Key, &Entry)| {
            Some((key.clone(), entry.version, entry.synced.is_some(), entry.pending.clone()?))
        };
        let changes: Vec<_> = self.store.entries.iter().filter_map(pending).collect();
        for batch in changes.chunks(MUTATIONS_MAX) {
            let mutations = batch.iter().map(|(key, version, live, content)| {
                let check = if *live { Check::Version(*version) } else { Check::Absent(true) };
                // Of what is not there, a deletion has nothing to guard.
                let precondition = (*live || content.is_some()).then_some(v1::Precondition { check: Some(check) });
                let op = match content {
                    Some(content) => v1::mutation::Op::Put(content.put()),
                    None => v1::mutation::Op::Delete(v1::DeleteOp {}),
                };
                v1::Mutation { key: Some(record_key(key)), op: Some(op), precondition }
            });
            let request = v1::BatchWriteRequest {
                user_id: self.user.clone(),
                device_id: self.name.to_owned(),
                mutations: mutations.collect(),
                if_incarnation: self.store.incarnation,
                ..Default::default()
            };
            match self.session.write(request).await {
                Ok(answer) => {
                    for ((key, _, _, content), result) in batch.iter().zip(&answer.results) {
                        let entry = Entry { version: result.version, synced: content.clone(), pending: None };
                        self.store.entries.insert(key.clone(), entry);
                    }
                    self.store.save()?;
                }
                Err(Error::Conflict { .. }) => return Ok(None),
                Err(error) if error.reason() == "INCARNATION_MISMATCH" => return Ok(None),
                // Whether it happened shows in the next pull.
                Err(Error::OutcomeUnknown { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(changes.len()))
    }

    async fn acknowledge(&self) -> Result<(), Failed> {
        match self.session.ack_cursor(&self.user, self.name, &self.store.token).await {
            Ok(_) => {}
            Err(Error::Unsupported { .. }) => self.say("this server takes no acknowledgements of devices yet"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The token cannot be continued. Nothing is ever wiped for that.
    async fn resync(&mut self, info: &v1::ResyncInfo) -> Result<(), Failed> {
        use v1::ResyncReason::{RolledBack, TokenExpired, TokenFromFuture, UnknownIncarnation};
        self.told.resyncs += 1;
        self.say(format_args!("is told to resync: {}", info.reason().as_str_name()));
        tokio::time::sleep(Duration::from_millis(info.start_after_ms.into())).await;
        match info.reason() {
            RolledBack => self.upload_again(info).await,
            TokenExpired => self.reconcile_all(false).await,
            TokenFromFuture | UnknownIncarnation => self.reconcile_all(true).await,
            reason => {
                Err(format!("a person must decide about {}; the phone keeps all it has", reason.as_str_name()).into())
            }
        }
    }

    async fn upload_again(&mut self, info: &v1::ResyncInfo) -> Result<(), Failed> {
        let rollback = Rollback::new(&self.user, self.name, self.store.incarnation, info)?;
        let kept = |(key, entry): (&Key, &Entry)| Kept {
            key: record_key(key),
            version: entry.version,
            put: entry.synced.as_ref().map(Content::put),
        };
        let report = self.session.restore(&rollback, self.store.entries.iter().map(kept)).await?;
        for conflict in &report.conflicts {
            let v1::RecordKey { collection, record_id } = &conflict.kept.key;
            self.say(format_args!("leaves {collection}/{record_id} to the server, which has it newer"));
        }
        self.told.uploaded_again += report.applied;
        self.told.had_already += report.unchanged;
        self.told.had_newer += report.conflicts.len();
        self.say(format_args!(
            "uploads again what the server lost: {} records taken, {} there already, {} there newer",
            report.applied,
            report.unchanged,
            report.conflicts.len()
        ));
        self.store.token.clone_from(&info.resume_token);
        self.store.save()
    }

    async fn reconcile_all(&mut self, after_rollback: bool) -> Result<(), Failed> {
        let user_id = self.user.clone();
        let view = self.session.manifest_all(v1::GetManifestRequest { user_id, ..Default::default() }).await?;
        let key = |record: &v1::Record| record.key.clone().map(|key| (key.collection, key.record_id));
        let server: BTreeMap<Key, &v1::Record> = view.records.iter().filter_map(|it| Some((key(it)?, it))).collect();
        let mut fetch: Vec<Key> = server.keys().filter(|key| !self.store.entries.contains_key(*key)).cloned().collect();
        for key in self.store.entries.keys().cloned().collect::<Vec<_>>() {
            let Some(entry) = self.store.entries.get_mut(&key) else { continue };
            let theirs = server.get(&key).copied();
            match reconcile(&local(entry), theirs, view.end.tombstone_horizon, after_rollback) {
                Verdict::Same if theirs.is_none() => entry.pending = None,
                Verdict::Same | Verdict::TakeServers => fetch.push(key),
                Verdict::MoveToTrash => {
                    self.told.trashed += 1;
                    println!("{}: moves {}/{} to the trash: it was deleted long ago", self.name, key.0, key.1);
                    self.store.trash(&key)?;
                }
                // This phone's rule for conflicts: what the person has in hand is kept.
                Verdict::Upload | Verdict::UploadRestored | Verdict::Conflict(_) => {
                    let shown = entry.shown().cloned();
                    let synced = theirs.and_then(Content::of);
                    *entry = Entry { version: theirs.map_or(0, |it| it.version), synced, pending: Some(shown) };
                }
            }
        }
        let keys = fetch.iter().map(record_key).collect();
        let request = v1::BatchGetRecordsRequest { user_id: self.user.clone(), keys, ..Default::default() };
        for record in self.session.read_all(request).await? {
            self.apply(&record);
        }
        self.store.token = view.end.sync_token;
        self.store.incarnation = view.end.header.incarnation;
        self.store.save()
    }
}

fn local(entry: &Entry) -> LocalRecord {
    let shown = entry.shown();
    LocalRecord {
        version: (entry.version > 0).then_some(entry.version),
        content_hash: shown.map(|content| content_hash(&content.put())).unwrap_or_default(),
        dirty: entry.pending.is_some(),
        deleted: shown.is_none(),
    }
}

fn record_key((collection, record_id): &Key) -> v1::RecordKey {
    v1::RecordKey { collection: collection.clone(), record_id: record_id.clone() }
}
