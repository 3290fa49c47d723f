//! Uploading again what a rollback lost.
//!
//! Invariants: every mutation names the version it had, so that of all devices' uploads the newest stays whatever their
//! order; a batch is sent again only without the mutations that the server refused; nothing is dropped unreported.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_model::limits::{BATCH_BYTES_MAX, BATCH_MUTATIONS_MAX};
use holdfast_wire::v1;
use uuid::Uuid;
use v1::mutation::Op;
use v1::precondition::Check;

use crate::client::Client;
use crate::error::Error;

/// How often a batch whose outcome stays unknown is sent again, each time for a whole deadline.
const UNKNOWN_MAX: usize = 3;

/// What a resync with reason `ROLLED_BACK` said, and whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// Owner.
    pub user: String,
    /// The device, for the attribution of changes; may be empty.
    pub device: String,
    /// The history that gave the device its versions: `incarnation` of the header that its token came with.
    pub lost_incarnation: u64,
    /// Last version that the server still knows.
    pub common_version: u64,
    /// Collections in the order of work; others come last.
    pub collection_order: Vec<String>,
}

impl Rollback {
    /// Reads the order to resync.
    ///
    /// # Errors
    /// `Invalid` when it says anything but `ROLLED_BACK`.
    pub fn new(user: &str, device: &str, lost_incarnation: u64, info: &v1::ResyncInfo) -> Result<Self, Error> {
        if info.reason() != v1::ResyncReason::RolledBack {
            let message = format!("a resync for {} is not done by uploading again", info.reason().as_str_name());
            return Err(Error::invalid(message));
        }
        Ok(Self {
            user: user.to_owned(),
            device: device.to_owned(),
            lost_incarnation,
            common_version: info.common_version,
            collection_order: info.collection_order.clone(),
        })
    }
}

/// What a device has of a record, as the server had acknowledged it. A change that was not acknowledged yet is no part
/// of this: it is written as always, after the resync.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Which record.
    pub key: v1::RecordKey,
    /// Version that the lost history gave it.
    pub version: u64,
    /// Its content; `None` = it was deleted.
    pub put: Option<v1::PutOp>,
}

/// A record that was not uploaded again because the server has something that stays: a change made since the restore,
/// or a newer lost one of another device. The next changes bring it.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoreConflict {
    /// What the device has.
    pub kept: Kept,
    /// What the server holds.
    pub conflict: v1::Conflict,
}

/// How an upload ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RestoreReport {
    /// Records that the server took.
    pub applied: usize,
    /// Records that it had already, from another device or an earlier try.
    pub unchanged: usize,
    /// Records that it has newer.
    pub conflicts: Vec<RestoreConflict>,
}

/// The mutations that bring back all that a device has above the common version, deletions included, in the order of
/// work and in batches within the limits. Of a record given twice, the newest counts.
pub fn restore_batches(rollback: &Rollback, kept: impl IntoIterator<Item = Kept>) -> Vec<Vec<v1::Mutation>> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for kept in in_order(rollback, kept) {
        let mutation = mutation(rollback, &kept);
        let size = holdfast_wire::encoded_len(&mutation);
        if !batch.is_empty() && (batch.len() == BATCH_MUTATIONS_MAX || bytes + size > BATCH_BYTES_MAX) {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += size;
        batch.push(mutation);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

fn in_order(rollback: &Rollback, kept: impl IntoIterator<Item = Kept>) -> impl Iterator<Item = Kept> {
    let mut newest = BTreeMap::new();
    for kept in kept.into_iter().filter(|kept| kept.version > rollback.common_version) {
        let order = &rollback.collection_order;
        let rank = order.iter().position(|name| *name == kept.key.collection).unwrap_or(order.len());
        let place = (rank, kept.key.collection.clone(), kept.key.record_id.clone());
        match newest.get(&place) {
            Some(Kept { version, .. }) if *version >= kept.version => {}
            _ => {
                newest.insert(place, kept);
            }
        }
    }
    newest.into_values()
}

fn mutation(rollback: &Rollback, kept: &Kept) -> v1::Mutation {
    let guard = v1::RestoreGuard {
        common_version: rollback.common_version,
        lost_version: kept.version,
        lost_incarnation: rollback.lost_incarnation,
    };
    let op = kept.put.clone().map_or(Op::Delete(v1::DeleteOp {}), Op::Put);
    let precondition = Some(v1::Precondition { check: Some(Check::Restore(guard)) });
    v1::Mutation { key: Some(kept.key.clone()), op: Some(op), precondition }
}

impl Client {
    /// Uploads all that a device has above the common version, deletions included. What the server has newer is
    /// dropped from the upload and reported; everything else is applied. May be repeated, by this device and by others,
    /// in any order. Wait `start_after_ms` before it; afterwards continue with [`Client::changes`] from the resume
    /// token, which brings the new versions, and note those instead of the lost ones.
    ///
    /// # Errors
    /// `Precondition` `INCARNATION_MISMATCH` when the cluster does not know the lost history, or another common
    /// version: ask for the changes again. After any error, a part may have been uploaded: call again with the same.
    pub async fn restore(
        &self,
        rollback: &Rollback,
        kept: impl IntoIterator<Item = Kept>,
    ) -> Result<RestoreReport, Error> {
        let mut report = RestoreReport::default();
        for batch in restore_batches(rollback, kept) {
            self.restore_batch(rollback, batch, &mut report).await?;
        }
        Ok(report)
    }

    async fn restore_batch(
        &self,
        rollback: &Rollback,
        mut mutations: Vec<v1::Mutation>,
        report: &mut RestoreReport,
    ) -> Result<(), Error> {
        // An answer names the first conflicts only: each round drops at least one mutation.
        while !mutations.is_empty() {
            let request = v1::BatchWriteRequest {
                user_id: rollback.user.clone(),
                device_id: rollback.device.clone(),
                request_id: Uuid::new_v4().to_string(),
                mutations: mutations.clone(),
                ..Default::default()
            };
            let info = match self.write_to_the_end(request).await {
                Ok(answer) => {
                    let applied = answer.results.iter().filter(|result| result.changed).count();
                    report.applied += applied;
                    report.unchanged += mutations.len().saturating_sub(applied);
                    return Ok(());
                }
                Err(Error::Conflict { info, .. }) => info,
                Err(error) => return Err(error),
            };
            let mut dropped = BTreeSet::new();
            for conflict in info.conflicts {
                let index = conflict.index as usize;
                let Some(kept) = mutations.get(index).and_then(kept_of) else {
                    return Err(Error::protocol("a node refused a mutation that the batch does not have"));
                };
                if dropped.insert(index) {
                    report.conflicts.push(RestoreConflict { kept, conflict });
                }
            }
            if dropped.is_empty() {
                return Err(Error::protocol("a node refused a batch for its guards and named none of them"));
            }
            let mut index = 0..;
            mutations.retain(|_| !index.next().is_some_and(|index| dropped.contains(&index)));
        }
        Ok(())
    }

    /// Sends the same request until its outcome is known, within reason.
    async fn write_to_the_end(&self, request: v1::BatchWriteRequest) -> Result<v1::BatchWriteResponse, Error> {
        let mut tries = 1;
        loop {
            match self.write(request.clone()).await {
                Err(Error::OutcomeUnknown { .. }) if tries < UNKNOWN_MAX => tries += 1,
                outcome => return outcome,
            }
        }
    }
}

/// What a mutation of ours was made from.
fn kept_of(mutation: &v1::Mutation) -> Option<Kept> {
    let Some(Check::Restore(guard)) = mutation.precondition.and_then(|precondition| precondition.check) else {
        return None;
    };
    let put = match &mutation.op {
        Some(Op::Put(put)) => Some(put.clone()),
        _ => None,
    };
    Some(Kept { key: mutation.key.clone()?, version: guard.lost_version, put })
}

#[cfg(test)]
mod tests;
