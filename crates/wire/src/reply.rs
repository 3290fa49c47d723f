//! Answers of the model into messages of the public API.

use bytes::Bytes;
use holdfast_model::id::{Collection, Millis, RecordKey};
use holdfast_model::outcome::{Receipt, Usage};
use holdfast_model::state::{CollectionDigest, RecordRow};

use crate::v1;

/// Protobuf timestamp.
pub fn timestamp(at: Millis) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: (at.0 / 1000) as i64, nanos: (at.0 % 1000 * 1_000_000) as i32 }
}

/// Milliseconds of a timestamp; before 1970 is 0.
pub fn millis(at: &prost_types::Timestamp) -> u64 {
    u64::try_from(at.seconds).unwrap_or(0) * 1000 + u64::try_from(at.nanos).unwrap_or(0) / 1_000_000
}

/// Record key.
pub fn record_key(key: &RecordKey) -> v1::RecordKey {
    v1::RecordKey { collection: key.collection.as_str().to_owned(), record_id: key.record_id.as_str().to_owned() }
}

/// A record or tombstone; an empty payload where it is masked out.
pub fn record(key: &RecordKey, row: &RecordRow, payload: Bytes) -> v1::Record {
    v1::Record {
        key: Some(record_key(key)),
        version: row.version.0,
        content_type: row.content_type.clone(),
        payload,
        blobs: Vec::new(),
        update_time: Some(timestamp(row.update_time)),
        delete_time: row.delete_time.map(timestamp),
        expire_time: None,
        purge_time: None,
        content_hash: Bytes::copy_from_slice(&row.content_hash.0),
    }
}

/// Usage; no quota yet.
pub fn usage(usage: &Usage) -> v1::Usage {
    v1::Usage { used_bytes: usage.used_bytes, quota_bytes: 0, record_count: usage.record_count }
}

/// Digest of a collection.
pub fn collection_digest(collection: &Collection, digest: &CollectionDigest) -> v1::CollectionDigest {
    v1::CollectionDigest {
        collection: collection.as_str().to_owned(),
        count: digest.count,
        digest: Bytes::copy_from_slice(&digest.sum.0),
    }
}

/// Outcome of a batch.
pub fn batch_write(receipt: Receipt, header: v1::ResponseHeader) -> v1::BatchWriteResponse {
    v1::BatchWriteResponse {
        header: Some(header),
        version: receipt.version.0,
        replayed: receipt.replayed,
        usage: Some(usage(&receipt.usage)),
        results: receipt
            .results
            .iter()
            .map(|result| v1::MutationResult { changed: result.changed, version: result.version.0 })
            .collect(),
        commit_index: receipt.commit_index,
        offsite: false,
    }
}
