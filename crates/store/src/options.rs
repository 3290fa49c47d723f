//! How RocksDB is set up: small thread and memory bounds, for nodes of two cores.

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, LogLevel, Options,
    SliceTransform,
};

use crate::keyspace::{Family, PREFIX_BYTES};

/// Bytes of memtables, those that are being flushed too.
pub(crate) const MEMTABLES_PROPERTY: &str = "rocksdb.cur-size-all-mem-tables";

const MIB: usize = 1 << 20;
const LOG_WRITE_BUFFER_BYTES: usize = 64 * MIB;
const LOG_WAL_BYTES_MAX: u64 = 256 << 20;
const STATE_WRITE_BUFFER_BYTES: usize = 64 * MIB;
/// All column families of a state together; a flush takes them all anyway.
const STATE_WRITE_BUFFERS_BYTES: usize = 128 * MIB;
const STATE_CACHE_BYTES: usize = 128 * MIB;
const LOG_CACHE_BYTES: usize = 8 * MIB;
/// Payloads from here on live in blob files, so that compaction does not copy photos.
const BLOB_BYTES_MIN: u64 = 4096;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
const OPEN_FILES_MAX: i32 = 1024;
const INFO_LOG_BYTES_MAX: usize = 4 * MIB;
const INFO_LOGS_KEPT: usize = 3;
/// Deletions among so many neighbours trigger a compaction of their file: each update kills an old change row.
const DELETION_WINDOW: usize = 1024;
const DELETION_TRIGGER: usize = 512;
const DELETION_RATIO: f64 = 0.5;

fn common() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(2);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_keep_log_file_num(INFO_LOGS_KEPT);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_skip_stats_update_on_db_open(true);
    options.set_bytes_per_sync(MIB as u64);
    options
}

/// Options of `raft/`.
pub(crate) fn log_db() -> Options {
    let mut options = common();
    // The default mode treats a damaged middle as the end; both drop data silently, which the frames' chain finds.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // Nothing leaves the process between fsyncs: one write and one fdatasync per batch.
    options.set_manual_wal_flush(true);
    options.set_max_total_wal_size(LOG_WAL_BYTES_MAX);
    options
}

/// Column families of `raft/`.
pub(crate) fn log_families(names: &[&str]) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(LOG_CACHE_BYTES);
    let descriptor = |name: &&str| {
        let mut options = Options::default();
        options.set_write_buffer_size(LOG_WRITE_BUFFER_BYTES);
        options.set_max_write_buffer_number(3);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_block_based_table_factory(&tables(&cache, false));
        ColumnFamilyDescriptor::new(*name, options)
    };
    names.iter().map(descriptor).collect()
}

/// Options of a state database.
pub(crate) fn state_db() -> Options {
    let mut options = common();
    // Rows, applied position and chains of one batch reach the disk together or not at all.
    options.set_atomic_flush(true);
    options.set_db_write_buffer_size(STATE_WRITE_BUFFERS_BYTES);
    options
}

/// Column families of a state database; RocksDB insists on `default`, which stays empty.
pub(crate) fn state_families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(STATE_CACHE_BYTES);
    let mut out: Vec<_> = Family::ALL
        .into_iter()
        .map(|family| ColumnFamilyDescriptor::new(family.name(), state_family(family, &cache)))
        .collect();
    out.push(ColumnFamilyDescriptor::new("default", Options::default()));
    out
}

fn state_family(family: Family, cache: &Cache) -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(STATE_WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_block_based_table_factory(&tables(cache, true));
    if family.has_user_prefix() {
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(PREFIX_BYTES));
        options.set_memtable_prefix_bloom_ratio(0.1);
        options.set_memtable_whole_key_filtering(true);
    }
    match family {
        Family::Rec => {
            options.set_enable_blob_files(true);
            options.set_min_blob_size(BLOB_BYTES_MIN);
            options.set_blob_compression_type(DBCompressionType::Lz4);
            options.set_enable_blob_gc(true);
        }
        Family::Chg | Family::Req | Family::Cur | Family::Exp => {
            options.add_compact_on_deletion_collector_factory(DELETION_WINDOW, DELETION_TRIGGER, DELETION_RATIO);
        }
        Family::Sys | Family::Uid | Family::Usr => {}
    }
    options
}

fn tables(cache: &Cache, bloom: bool) -> BlockBasedOptions {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(cache);
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if bloom {
        tables.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    }
    tables
}
