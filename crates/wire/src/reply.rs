//! Answers of the model into messages of the public API.

use std::time::Duration;

use bytes::Bytes;
use holdfast_model::command::Policy;
use holdfast_model::id::{Collection, DeviceId, Millis, RecordKey, Version};
use holdfast_model::outcome::{Receipt, Usage};
use holdfast_model::state::{ChangeRow, CollectionDigest, DeviceRow, RecordRow};

use crate::v1;

/// Protobuf timestamp.
pub fn timestamp(at: Millis) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: (at.0 / 1000) as i64, nanos: (at.0 % 1000 * 1_000_000) as i32 }
}

/// Milliseconds of a timestamp; before 1970 is 0.
pub fn millis(at: &prost_types::Timestamp) -> u64 {
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(at.nanos).unwrap_or(0) / 1_000_000)
}

/// Protobuf duration.
pub fn duration(length: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: length.subsec_nanos() as i32 }
}

/// Whole milliseconds of a duration; a negative one is 0.
pub fn duration_millis(length: &prost_types::Duration) -> u64 {
    let seconds = u64::try_from(length.seconds).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(length.nanos).unwrap_or(0) / 1_000_000)
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
        expire_time: row.expire_time.map(timestamp),
        purge_time: row.purge_time.map(timestamp),
        content_hash: Bytes::copy_from_slice(&row.content_hash.0),
    }
}

/// Usage of a user, with what the policy allows.
pub fn usage(usage: &Usage, policy: &Policy) -> v1::Usage {
    v1::Usage { used_bytes: usage.used_bytes, quota_bytes: policy.user_quota_bytes, record_count: usage.record_count }
}

/// A record or tombstone of a manifest: what its change row says.
pub fn manifest_record(version: Version, row: &ChangeRow, delete_time: Option<Millis>) -> v1::Record {
    v1::Record {
        key: Some(record_key(&row.key)),
        version: version.0,
        content_hash: Bytes::copy_from_slice(&row.content_hash.0),
        delete_time: delete_time.map(timestamp),
        ..Default::default()
    }
}

/// A device's cursor.
pub fn device(id: &DeviceId, row: &DeviceRow) -> v1::Device {
    v1::Device {
        device_id: id.as_str().to_owned(),
        acked_version: row.acked.0,
        ack_time: Some(timestamp(row.ack_time)),
    }
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
pub fn batch_write(
    receipt: Receipt,
    policy: &Policy,
    offsite: bool,
    header: v1::ResponseHeader,
) -> v1::BatchWriteResponse {
    v1::BatchWriteResponse {
        header: Some(header),
        version: receipt.version.0,
        replayed: receipt.replayed,
        usage: Some(usage(&receipt.usage, policy)),
        results: receipt
            .results
            .iter()
            .map(|result| v1::MutationResult { changed: result.changed, version: result.version.0 })
            .collect(),
        commit_index: receipt.commit_index,
        offsite,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::digest::Sum;
    use holdfast_model::id::{ContentHash, RecordId};
    use holdfast_model::outcome::MutationResult;

    use super::*;

    #[test]
    fn times_keep_their_milliseconds() {
        let at = timestamp(Millis(1_234_567));
        assert_eq!((at.seconds, at.nanos), (1234, 567_000_000));
        assert_eq!(millis(&at), 1_234_567);
        assert_eq!(millis(&prost_types::Timestamp { seconds: -1, nanos: -1 }), 0);
    }

    #[test]
    fn a_record_says_all_that_its_row_says() {
        let key = RecordKey {
            collection: Collection::new("notes").expect("valid"),
            record_id: RecordId::new("n1").expect("valid"),
        };
        let row = RecordRow {
            version: Version(3),
            ordinal: 1,
            content_hash: ContentHash([7; 16]),
            content_type: "text/plain".into(),
            payload_len: 2,
            update_time: Millis(4000),
            delete_time: None,
            expire_time: Some(Millis(6000)),
            purge_time: None,
            lost: None,
        };
        let live = v1::Record {
            key: Some(v1::RecordKey { collection: "notes".into(), record_id: "n1".into() }),
            version: 3,
            content_type: "text/plain".into(),
            payload: "hi".into(),
            update_time: Some(timestamp(Millis(4000))),
            expire_time: Some(timestamp(Millis(6000))),
            content_hash: vec![7; 16].into(),
            ..Default::default()
        };
        assert_eq!(record(&key, &row, "hi".into()), live);
        let purge_time = Some(Millis(7000));
        let tombstone = RecordRow { delete_time: Some(Millis(5000)), expire_time: None, purge_time, ..row };
        let deleted = v1::Record {
            payload: Bytes::new(),
            delete_time: Some(timestamp(Millis(5000))),
            expire_time: None,
            purge_time: purge_time.map(timestamp),
            ..live
        };
        assert_eq!(record(&key, &tombstone, Bytes::new()), deleted);
    }

    #[test]
    fn a_manifest_and_a_device_say_what_their_rows_say() {
        let key = RecordKey {
            collection: Collection::new("notes").expect("valid"),
            record_id: RecordId::new("n1").expect("valid"),
        };
        let row = ChangeRow { key, content_hash: ContentHash([7; 16]), deleted: true, device: None };
        let expected = v1::Record {
            key: Some(v1::RecordKey { collection: "notes".into(), record_id: "n1".into() }),
            version: 3,
            delete_time: Some(timestamp(Millis(4000))),
            content_hash: vec![7; 16].into(),
            ..Default::default()
        };
        assert_eq!(manifest_record(Version(3), &row, Some(Millis(4000))), expected);
        let row = DeviceRow { acked: Version(5), ack_time: Millis(6000), expires: Millis(7000) };
        let ack_time = Some(timestamp(Millis(6000)));
        let expected = v1::Device { device_id: "phone".into(), acked_version: 5, ack_time };
        assert_eq!(device(&DeviceId::new("phone").expect("valid"), &row), expected);
    }

    #[test]
    fn a_receipt_is_answered_whole() {
        let receipt = Receipt {
            version: Version(1),
            replayed: true,
            usage: Usage { used_bytes: 2, record_count: 3 },
            results: vec![MutationResult { changed: true, version: Version(4) }],
            commit_index: 5,
        };
        let header = v1::ResponseHeader { node_id: 6, ..Default::default() };
        let expected = v1::BatchWriteResponse {
            header: Some(header),
            version: 1,
            replayed: true,
            usage: Some(v1::Usage { used_bytes: 2, quota_bytes: 7, record_count: 3 }),
            results: vec![v1::MutationResult { changed: true, version: 4 }],
            commit_index: 5,
            offsite: true,
        };
        let policy = Policy { user_quota_bytes: 7, ..Policy::default() };
        assert_eq!(batch_write(receipt, &policy, true, header), expected);
        let digest = CollectionDigest { count: 8, sum: Sum([9; 32]) };
        let digest = collection_digest(&Collection::new("notes").expect("valid"), &digest);
        assert_eq!((digest.collection.as_str(), digest.count, &digest.digest[..]), ("notes", 8, &[9; 32][..]));
    }
}
