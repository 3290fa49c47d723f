//! A device that wrote to the old cluster just before a restore, and then meets the restored one with what it kept: its
//! tokens, and a request whose answer it may never have had.

use std::time::Duration;

use holdfast_client::{Client, SyncOutcome, v1};

use crate::history::calls::{DeviceMet, Kept, Level, TokenSaid};
use crate::workload::{Put, consistency, mutation};

/// For each call: what does not answer so soon tells nothing, and the restore is judged without it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What it kept of the old cluster.
#[derive(Debug, Clone)]
pub struct Device {
    user: String,
    kept: Vec<Kept>,
    tokens: Vec<String>,
}

impl Device {
    /// A device of a user that nobody else writes for.
    pub fn new(user: String) -> Self {
        Self { user, kept: Vec::new(), tokens: Vec::new() }
    }

    /// Writes a record and syncs up to it. `None` = the cluster did not answer both: the device is of no more use.
    pub async fn write(mut self, old: &Client) -> Option<Self> {
        let old = old.with_deadline(ANSWER_WITHIN);
        let written = old.write(self.request(self.kept.len())).await.ok()?;
        let header = written.header.as_ref()?;
        let token = self.tokens.last().cloned().unwrap_or_default();
        let synced = old.changes(self.changes(token)).await.ok()?;
        let SyncOutcome::Page(page) = synced.outcome else { return None };
        let is_whole = !page.more && page.records.len() == 1 && page.records[0].version == written.version;
        if header.incarnation == 0 || !is_whole {
            return None;
        }
        self.kept.push(Kept { index: written.commit_index, version: written.version });
        self.tokens.push(page.next_sync_token);
        Some(self)
    }

    /// Shows the restored cluster what it kept.
    ///
    /// # Errors
    /// When that does not answer.
    pub async fn meet(self, restored: &Client) -> anyhow::Result<DeviceMet> {
        let mut tokens = Vec::new();
        for token in &self.tokens {
            tokens.push(match restored.changes(self.changes(token.clone())).await?.outcome {
                SyncOutcome::Page(page) => TokenSaid::Continues { records: page.records.len() },
                SyncOutcome::Resync(info) if info.reason() == v1::ResyncReason::RolledBack => {
                    TokenSaid::RolledBack { common: info.common_version }
                }
                SyncOutcome::Resync(info) => TokenSaid::Other(format!("{:?}", info.reason())),
            });
        }
        let again = restored.write(self.request(self.kept.len() - 1)).await?;
        let last_again = Kept { index: again.commit_index, version: again.version };
        Ok(DeviceMet { user: self.user, kept: self.kept, tokens, last_again, replayed: again.replayed })
    }

    /// Its write of this number, word for word, whenever it is sent.
    fn request(&self, number: usize) -> v1::BatchWriteRequest {
        let (key, content) = (format!("notes/n{number}"), number.to_string());
        v1::BatchWriteRequest {
            user_id: self.user.clone(),
            request_id: format!("{:0>8}-0000-4000-8000-{number:012}", self.user.trim_start_matches('d')),
            mutations: vec![mutation(&key, Some(Put { content: &content, ttl_seconds: 0 }), None)],
            ..Default::default()
        }
    }

    fn changes(&self, sync_token: String) -> v1::GetChangesRequest {
        v1::GetChangesRequest {
            user_id: self.user.clone(),
            sync_token,
            consistency: consistency(Some(Level::Linearizable)),
            ..Default::default()
        }
    }
}
