//! Requests of the public API into commands and queries. Parsed once, here; nothing behind this validates again.
//!
//! Every violation of a request is collected, so that a caller can fix them all at once.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_model::command::{Content, Guard, Mutation, Op, RestoreGuard, WriteBatch};
use holdfast_model::id::{Collection, DeviceId, Incarnation, Millis, RecordId, RecordKey, RequestId, UserId, Version};
use holdfast_model::{digest, limits};

use crate::status::{Refusal, Violation};
use crate::token::{PageToken, arguments_hash};
use crate::v1;

mod fill;
mod sync;

pub use fill::fill_payloads;
pub use sync::{
    ChangesQuery, DevicesQuery, ManifestQuery, UserQuery, WatchChange, ack_cursor, changes, drop_device, list_devices,
    manifest, user, watch,
};

/// Freshness wanted by a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Confirmed by a quorum.
    Linearizable,
    /// At least this log index of this history.
    AtLeast {
        /// History of the index.
        incarnation: Incarnation,
        /// Index to wait for.
        index: u64,
    },
    /// Whatever this replica has, if it can prove that it is at most this old.
    MaxStaleness(Duration),
}

/// `BatchGetRecords`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct GetQuery {
    /// Owner.
    pub user: UserId,
    /// Records, in the caller's order.
    pub keys: Vec<RecordKey>,
    /// Leave payloads out.
    pub metadata_only: bool,
    /// Freshness.
    pub consistency: Consistency,
}

/// `ListRecords`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ListQuery {
    /// Owner.
    pub user: UserId,
    /// Collection.
    pub collection: Collection,
    /// Most records in the page.
    pub page_records: usize,
    /// Where to go on.
    pub page: Option<PageToken>,
    /// Newest version first, instead of by record id.
    pub newest: bool,
    /// Leave payloads out.
    pub metadata_only: bool,
    /// Tombstones too.
    pub show_deleted: bool,
    /// Freshness.
    pub consistency: Consistency,
    /// Hash of the arguments that page tokens are bound to.
    pub arguments: u64,
}

/// Collects violations while a request is read.
#[derive(Default)]
struct Reader {
    violations: Vec<Violation>,
}

impl Reader {
    fn bad(&mut self, field: impl Into<String>, description: impl ToString) {
        if self.violations.len() < 32 {
            self.violations.push(Violation { field: field.into(), description: description.to_string() });
        }
    }

    fn take<T, E: ToString>(&mut self, field: impl Into<String>, value: Result<T, E>) -> Option<T> {
        value.map_err(|error| self.bad(field, error.to_string())).ok()
    }

    /// The value when nothing was wrong anywhere. `None` implies a violation was noted.
    fn finish<T>(self, value: Option<T>) -> Result<T, Refusal> {
        match value {
            Some(value) if self.violations.is_empty() => Ok(value),
            _ => Err(Refusal::Invalid(self.violations)),
        }
    }

    fn key(&mut self, field: &str, key: Option<v1::RecordKey>) -> Option<RecordKey> {
        let Some(key) = key else {
            self.bad(field, "is required");
            return None;
        };
        let collection = self.take(format!("{field}.collection"), Collection::new(&key.collection));
        let record_id = self.take(format!("{field}.record_id"), RecordId::new(&key.record_id));
        Some(RecordKey { collection: collection?, record_id: record_id? })
    }

    fn consistency(&mut self, value: Option<v1::ReadConsistency>) -> Option<Option<Consistency>> {
        use v1::read_consistency::Level;
        Some(match value.and_then(|value| value.level) {
            None => None,
            Some(Level::Linearizable(_)) => Some(Consistency::Linearizable),
            Some(Level::MaxStalenessMs(ms)) => Some(Consistency::MaxStaleness(Duration::from_millis(ms.into()))),
            Some(Level::AtLeast(at)) => {
                if at.group_id != 0 {
                    self.bad("consistency.at_least.group_id", "is not the group of this user");
                    return None;
                }
                Some(Consistency::AtLeast { incarnation: Incarnation(at.incarnation), index: at.applied_index })
            }
        })
    }

    /// Collections of a filter; empty = all.
    fn collections(&mut self, names: &[String]) -> Vec<Collection> {
        if names.len() > limits::FILTER_COLLECTIONS_MAX {
            self.bad("collections", format!("has more than {} entries", limits::FILTER_COLLECTIONS_MAX));
            return Vec::new();
        }
        let read = |(index, name): (usize, &String)| self.take(format!("collections[{index}]"), Collection::new(name));
        names.iter().enumerate().filter_map(read).collect()
    }

    fn page_records(&mut self, page_size: i32) -> usize {
        match page_size {
            0 => limits::PAGE_RECORDS_DEFAULT,
            size if size < 0 => {
                self.bad("page_size", "must not be negative");
                limits::PAGE_RECORDS_DEFAULT
            }
            size => (size as usize).min(limits::PAGE_RECORDS_MAX),
        }
    }
}

/// Milliseconds of a protobuf timestamp; times before 1970 are refused.
fn millis(time: &prost_types::Timestamp) -> Result<Millis, &'static str> {
    let seconds = u64::try_from(time.seconds).map_err(|_| "must not be before 1970")?;
    let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or("has invalid nanos")?;
    seconds
        .checked_mul(1000)
        .and_then(|ms| ms.checked_add(u64::from(nanos) / 1_000_000))
        .map(Millis)
        .ok_or("is too far in the future")
}

/// Reads a `BatchWrite`.
pub fn batch_write(request: v1::BatchWriteRequest) -> Result<WriteBatch, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    let request_id = reader.take("request_id", RequestId::parse(&request.request_id));
    let first_sent = request.first_sent_time.as_ref().and_then(|time| reader.take("first_sent_time", millis(time)));
    let device = match request.device_id.as_str() {
        "" => None,
        device => reader.take("device_id", DeviceId::new(device)),
    };
    if request.mutations.is_empty() || request.mutations.len() > limits::BATCH_MUTATIONS_MAX {
        reader.bad(
            "mutations",
            format!("has {} entries, 1 to {} are allowed", request.mutations.len(), limits::BATCH_MUTATIONS_MAX),
        );
        return reader.finish(None);
    }
    let mut guarded = request.if_head.is_some();
    let mut batch_bytes = 0usize;
    let mut keys = BTreeSet::new();
    let mut mutations = Vec::with_capacity(request.mutations.len());
    for (index, mutation) in request.mutations.into_iter().enumerate() {
        if let Some(mutation) = read_mutation(&mut reader, index, mutation)? {
            guarded |= matches!(mutation.guard, Guard::Version(_));
            if let Op::Put(content) = &mutation.op {
                batch_bytes += content.payload.len();
            }
            if !keys.insert(mutation.key.clone()) {
                reader.bad(format!("mutations[{index}].key"), "occurs twice in the batch");
            }
            mutations.push(mutation);
        }
    }
    if batch_bytes > limits::BATCH_BYTES_MAX {
        reader.bad(
            "mutations",
            format!("carry {batch_bytes} payload bytes, at most {} are allowed", limits::BATCH_BYTES_MAX),
        );
    }
    if guarded && request.if_incarnation == 0 {
        reader.bad("if_incarnation", "is required with a version guard or if_head");
    }
    let batch = user.zip(request_id).map(|(user, request_id)| {
        let mut batch = WriteBatch {
            user,
            request_id,
            fingerprint: [0; 16],
            first_sent,
            device,
            if_head: request.if_head.map(Version),
            if_incarnation: (request.if_incarnation != 0).then_some(Incarnation(request.if_incarnation)),
            mutations,
        };
        batch.fingerprint = digest::fingerprint(&batch);
        batch
    });
    reader.finish(batch)
}

fn read_mutation(reader: &mut Reader, index: usize, mutation: v1::Mutation) -> Result<Option<Mutation>, Refusal> {
    use v1::mutation::Op as ApiOp;
    use v1::precondition::Check;
    let field = |name: &str| format!("mutations[{index}].{name}");
    let key = reader.key(&field("key"), mutation.key);
    let op = match mutation.op {
        None => {
            reader.bad(field("op"), "is required: put or delete");
            None
        }
        Some(ApiOp::Undelete(_)) => return Err(Refusal::Unsupported("undelete")),
        Some(ApiOp::Delete(_)) => Some(Op::Delete),
        Some(ApiOp::Put(put)) => {
            if !put.blobs.is_empty() {
                return Err(Refusal::Unsupported("blob references"));
            }
            if put.payload.len() > limits::PAYLOAD_BYTES_MAX {
                reader.bad(
                    field("put.payload"),
                    format!("has {} bytes, at most {} are allowed", put.payload.len(), limits::PAYLOAD_BYTES_MAX),
                );
            }
            if put.content_type.len() > limits::CONTENT_TYPE_BYTES_MAX || put.content_type.chars().any(char::is_control)
            {
                reader.bad(field("put.content_type"), "must be at most 128 bytes without control characters");
            }
            let v1::PutOp { content_type, payload, ttl_seconds, blobs: _ } = put;
            Some(Op::Put(Content { content_type, payload, ttl_seconds }))
        }
    };
    let guard = match mutation.precondition {
        None => Some(Guard::None),
        Some(v1::Precondition { check: Some(Check::Version(version)) }) => Some(Guard::Version(Version(version))),
        Some(v1::Precondition { check: Some(Check::Absent(true)) }) => Some(Guard::Absent),
        Some(v1::Precondition { check: Some(Check::Exists(true)) }) => Some(Guard::Exists),
        Some(v1::Precondition { check: Some(Check::Restore(guard)) }) => {
            let v1::RestoreGuard { common_version, lost_version, lost_incarnation } = guard;
            if lost_version <= common_version {
                reader.bad(field("precondition.restore.lost_version"), "must be above common_version: it was lost");
            }
            if lost_incarnation == 0 {
                reader.bad(field("precondition.restore.lost_incarnation"), "is required");
            }
            Some(Guard::Restore(RestoreGuard {
                common: Version(common_version),
                lost: Version(lost_version),
                incarnation: Incarnation(lost_incarnation),
            }))
        }
        Some(v1::Precondition { check: Some(Check::Absent(false) | Check::Exists(false)) | None }) => {
            reader.bad(field("precondition"), "must name a check; false is not one");
            None
        }
    };
    Ok(key.zip(op).zip(guard).map(|((key, op), guard)| Mutation { key, op, guard }))
}

/// Reads a `BatchGetRecords`.
pub fn batch_get(request: v1::BatchGetRecordsRequest) -> Result<GetQuery, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    if request.keys.is_empty() || request.keys.len() > limits::GET_KEYS_MAX {
        reader.bad("keys", format!("has {} entries, 1 to {} are allowed", request.keys.len(), limits::GET_KEYS_MAX));
        return reader.finish(None);
    }
    let keys = request
        .keys
        .into_iter()
        .enumerate()
        .filter_map(|(index, key)| reader.key(&format!("keys[{index}]"), Some(key)))
        .collect();
    let consistency = reader.consistency(request.consistency);
    let query = user.zip(consistency).map(|(user, consistency)| GetQuery {
        user,
        keys,
        metadata_only: request.metadata_only,
        consistency: consistency.unwrap_or(Consistency::Linearizable),
    });
    reader.finish(query)
}

/// Reads a `ListRecords`.
pub fn list(request: v1::ListRecordsRequest) -> Result<ListQuery, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    let collection = reader.take("collection", Collection::new(&request.collection));
    let page_records = reader.page_records(request.page_size);
    let newest = match v1::ListOrder::try_from(request.order) {
        Ok(v1::ListOrder::Unspecified) => false,
        Ok(v1::ListOrder::Newest) => true,
        Err(_) => {
            reader.bad("order", "is not a known order");
            false
        }
    };
    let consistency = reader.consistency(request.consistency);
    let arguments = arguments_hash(&[
        request.user_id.as_bytes(),
        request.collection.as_bytes(),
        &[newest.into(), request.show_deleted.into()],
    ]);
    let page = match request.page_token.as_str() {
        "" => None,
        text => Some(PageToken::decode(text, arguments).map_err(Refusal::Token)?),
    };
    let query = user.zip(collection).zip(consistency).map(|((user, collection), consistency)| ListQuery {
        user,
        collection,
        page_records,
        page,
        newest,
        metadata_only: request.metadata_only,
        show_deleted: request.show_deleted,
        consistency: consistency.unwrap_or(Consistency::Linearizable),
        arguments,
    });
    reader.finish(query)
}

#[cfg(test)]
mod tests;
