//! Every limit a caller can meet, in one place, checked before anything is proposed.
//!
//! Units are in the names. The limits are part of the public contract (`proto/`), so raising one is a compatible
//! change and lowering one is not. The assertions below keep them consistent with each other.

/// Longest user id, in bytes of UTF-8.
pub const USER_ID_BYTES_MAX: usize = 128;
/// Longest collection name, in bytes.
pub const COLLECTION_BYTES_MAX: usize = 64;
/// Longest record id, in bytes of UTF-8.
pub const RECORD_ID_BYTES_MAX: usize = 128;
/// Longest device id, in bytes of UTF-8.
pub const DEVICE_ID_BYTES_MAX: usize = 128;
/// Longest media type, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 128;
/// Largest payload of one record, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Most mutations in one batch.
pub const BATCH_MUTATIONS_MAX: usize = 500;
/// Largest sum of payloads in one batch, in bytes.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Most keys in one `BatchGetRecords`.
pub const GET_KEYS_MAX: usize = 500;
/// Most records in one page of a list or of the change feed (unless one commit is larger).
pub const PAGE_RECORDS_MAX: usize = 1000;
/// Page size when the caller names none.
pub const PAGE_RECORDS_DEFAULT: usize = 200;
/// Payload bytes after which a page ends (unless one commit is larger).
pub const PAGE_BYTES_MAX: usize = 4 << 20;
/// Largest gRPC message, both ways, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Longest wait a caller may ask of a long poll, in milliseconds.
pub const LONG_POLL_MS_MAX: u64 = 5 * 60 * 1000;
/// How long a request id is remembered, in milliseconds of `sys.now`.
pub const DEDUP_WINDOW_MS: u64 = 24 * 60 * 60 * 1000;
/// How far a `first_sent_time` may lie ahead of `sys.now`, in milliseconds.
pub const FIRST_SENT_AHEAD_MS_MAX: u64 = 5 * 60 * 1000;
/// Conflicts named in one `VERSION_MISMATCH`: gRPC trailers are small.
pub const CONFLICTS_REPORTED_MAX: usize = 32;
/// Items of the expiry queue handled by one `Expire` command.
pub const EXPIRE_ITEMS_MAX: usize = 1000;
/// How long a tombstone is kept unless configured otherwise, in milliseconds of `sys.now`: 30 days.
pub const TOMBSTONE_AGE_MS_DEFAULT: u64 = 30 * 24 * 60 * 60 * 1000;
/// How long a silent device is waited for unless configured otherwise, in milliseconds of `sys.now`: 90 days.
pub const DEVICE_EXPIRY_MS_DEFAULT: u64 = 90 * 24 * 60 * 60 * 1000;
/// Devices remembered of one user.
pub const DEVICES_MAX: usize = 256;
/// Shortest pause before a tombstone that a device holds back is looked at again, in milliseconds.
pub const TOMBSTONE_RETRY_MS_MIN: u64 = 1000;
/// Users watched on one stream.
pub const WATCH_USERS_MAX: usize = 100_000;
/// Entries of one `WatchRequest`.
pub const WATCH_CHANGES_MAX: usize = 10_000;
/// Collections named in one `GetChanges` or `GetManifest`.
pub const FILTER_COLLECTIONS_MAX: usize = 64;
/// Longest cluster name, in bytes.
pub const CLUSTER_NAME_BYTES_MAX: usize = 64;

const _: () = assert!(PAYLOAD_BYTES_MAX <= BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX + BATCH_MUTATIONS_MAX * 512 < MESSAGE_BYTES_MAX);
const _: () = assert!(PAGE_BYTES_MAX + PAYLOAD_BYTES_MAX + PAGE_RECORDS_MAX * 512 < MESSAGE_BYTES_MAX);
const _: () = assert!(BATCH_MUTATIONS_MAX <= u16::MAX as usize, "the ordinal of a change is a u16");
const _: () = assert!(EXPIRE_ITEMS_MAX <= u16::MAX as usize, "so is that of a record whose time is over");
const _: () = assert!(PAGE_RECORDS_DEFAULT <= PAGE_RECORDS_MAX);
