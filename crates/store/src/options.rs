//! How RocksDB is set up: small thread and memory bounds, for nodes of two cores.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, LogLevel, Options, SliceTransform,
};

use crate::keyspace::{Family, PREFIX_BYTES};
use crate::room::Space;

/// Bytes of memtables, those that are being flushed too.
pub(crate) const MEMTABLES_PROPERTY: &str = "rocksdb.cur-size-all-mem-tables";

const MIB: usize = 1 << 20;
const BLOB_FILE_BYTES_MAX: u64 = 256 << 20;
const STATE_CACHE_BYTES: usize = 128 * MIB;
/// Payloads from here on live in blob files, so that compaction does not copy photos.
const BLOB_BYTES_MIN: u64 = 512;
/// Share of the blob files, the oldest, that compactions rewrite.
pub(crate) const BLOB_AGE_CUTOFF: f64 = 0.25;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
const OPEN_FILES_MAX: i32 = 1024;
const INFO_LOGS_KEPT: usize = 3;
/// Deletions among so many neighbours trigger a compaction of their file: each update kills an old change row.
const DELETION_WINDOW: usize = 1024;
const DELETION_TRIGGER: usize = 512;
const DELETION_RATIO: f64 = 0.5;

/// What follows from the size of the disk: a disk of 4 GiB and more gets the largest of each, a small one is not eaten up
/// by buffers and by what RocksDB takes in advance. The manifest takes its whole piece.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sizes {
    /// Of one column family, and of the tables that compactions write.
    write_buffer: usize,
    /// Of a memtable, at a time: nine nearly empty ones must not fill the buffers of a small disk.
    arena_block: usize,
    /// Share of a memtable for its bloom filter.
    bloom: f64,
    info_log: usize,
    manifest_piece: usize,
    manifest_max: usize,
    blob_file: u64,
}

impl Sizes {
    /// For the file system that holds `path`; the largest where it does not say.
    pub(crate) fn at(path: &Path) -> Self {
        Self::of(Space::of(path).map_or(usize::MAX, |space| usize::try_from(space.size()).unwrap_or(usize::MAX)))
    }

    fn of(disk: usize) -> Self {
        let write_buffer = (disk / 64).clamp(2 * MIB, 64 * MIB);
        Self {
            write_buffer,
            arena_block: (write_buffer / 32).clamp(MIB / 16, MIB),
            bloom: if write_buffer < 16 * MIB { 0.02 } else { 0.1 },
            info_log: (disk / 512).clamp(MIB / 8, 4 * MIB),
            manifest_piece: (disk / 1024).clamp(MIB / 16, 4 * MIB),
            manifest_max: (disk / 64).clamp(MIB, 64 * MIB),
            blob_file: (disk as u64 / 64).clamp(2 << 20, BLOB_FILE_BYTES_MAX),
        }
    }

    /// Bytes of the log in one file: so much is deleted at a time.
    pub(crate) fn segment(self) -> u32 {
        u32::try_from(self.write_buffer).unwrap_or(u32::MAX)
    }

    /// All column families of a state together; a flush takes them all anyway.
    fn state_buffers(self) -> usize {
        2 * self.write_buffer
    }
}

fn common(sizes: Sizes) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(2);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_keep_log_file_num(INFO_LOGS_KEPT);
    options.set_max_log_file_size(sizes.info_log);
    options.set_manifest_preallocation_size(sizes.manifest_piece);
    options.set_max_manifest_file_size(sizes.manifest_max);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_skip_stats_update_on_db_open(true);
    options.set_bytes_per_sync(MIB as u64);
    options
}

/// Options of a state database.
pub(crate) fn state_db(sizes: Sizes) -> Options {
    let mut options = common(sizes);
    // Rows, applied position and chains of one batch reach the disk together or not at all.
    options.set_atomic_flush(true);
    options.set_db_write_buffer_size(sizes.state_buffers());
    options
}

/// Column families of a state database; RocksDB insists on `default`, which stays empty.
pub(crate) fn state_families(sizes: Sizes) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(STATE_CACHE_BYTES);
    let mut out: Vec<_> = Family::ALL
        .into_iter()
        .map(|family| ColumnFamilyDescriptor::new(family.name(), state_family(family, &cache, sizes)))
        .collect();
    // After a full disk RocksDB goes on once the largest write buffer of its families is free: that of the empty one
    // counts too, and by default it is larger than what a small disk ever has.
    let mut unused = Options::default();
    sized(&mut unused, sizes);
    out.push(ColumnFamilyDescriptor::new("default", unused));
    out
}

/// Rows of one user go next to each other, mostly behind the last one: a memtable that remembers where that was need not
/// look for the place from the top again. It costs some 200 bytes of the memtable for each user in it.
fn hinted() -> Options {
    // The C interface has no other way to this setting. Without it all is as well, and slower.
    let hint = format!("memtable_insert_with_hint_prefix_extractor=fixed:{PREFIX_BYTES}");
    Options::default().get_options_from_string(hint).unwrap_or_default()
}

fn state_family(family: Family, cache: &Cache, sizes: Sizes) -> Options {
    let mut options = if family.has_user_prefix() { hinted() } else { Options::default() };
    sized(&mut options, sizes);
    options.set_max_write_buffer_number(3);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_block_based_table_factory(&tables(cache, true));
    if family.has_user_prefix() {
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(PREFIX_BYTES));
        options.set_memtable_prefix_bloom_ratio(sizes.bloom);
        options.set_memtable_whole_key_filtering(true);
    }
    match family {
        Family::Rec => {
            options.set_enable_blob_files(true);
            options.set_min_blob_size(BLOB_BYTES_MIN);
            options.set_blob_file_size(sizes.blob_file);
            options.set_blob_compression_type(DBCompressionType::Lz4);
            options.set_enable_blob_gc(true);
            options.set_blob_gc_age_cutoff(BLOB_AGE_CUTOFF);
        }
        Family::Chg | Family::Req | Family::Cur | Family::Exp => {
            options.add_compact_on_deletion_collector_factory(DELETION_WINDOW, DELETION_TRIGGER, DELETION_RATIO);
        }
        Family::Sys | Family::Uid | Family::Usr => {}
    }
    options
}

/// Whether RocksDB rewrites tables by itself: it asks nobody whether there is room for that. What it says is of no use: the
/// change holds for this opening also when the file that lists it finds no room.
pub(crate) fn set_auto_compactions<'a>(db: &DB, families: impl Iterator<Item = &'a str>, on: bool) {
    let off = if on { "false" } else { "true" };
    for family in families.filter_map(|name| db.cf_handle(name)) {
        drop(db.set_options_cf(family, &[("disable_auto_compactions", off)]));
    }
}

fn sized(options: &mut Options, sizes: Sizes) {
    options.set_write_buffer_size(sizes.write_buffer);
    options.set_arena_block_size(sizes.arena_block);
    options.set_target_file_size_base(sizes.write_buffer as u64);
    options.set_max_bytes_for_level_base(4 * sizes.write_buffer as u64);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of 4 GiB has what a large one has, and one of 64 MiB keeps most of itself for records.
    #[test]
    fn buffers_follow_the_size_of_the_disk() {
        assert_eq!(Sizes::of(16 << 30), Sizes { blob_file: 256 << 20, ..Sizes::of(4 << 30) });
        assert_eq!(Sizes::of(4 << 30).write_buffer, 64 * MIB);
        let small = Sizes::of(64 * MIB);
        assert!(small.state_buffers() + small.write_buffer * 11 / 10 + 2 * small.manifest_piece < 8 * MIB);
    }

    fn newest_options(dir: &Path) -> String {
        let names = std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("entry").file_name());
        let names = names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("OPTIONS-"));
        std::fs::read_to_string(dir.join(names.max().expect("a file of options"))).expect("text")
    }

    #[test]
    fn rows_of_a_user_are_inserted_with_a_hint() {
        let dir = tempfile::tempdir().expect("tempdir");
        let sizes = Sizes::of(64 * MIB);
        let db = DB::open_cf_descriptors(&state_db(sizes), dir.path(), state_families(sizes)).expect("opens");
        let text = newest_options(dir.path());
        let hinted = text.matches("memtable_insert_with_hint_prefix_extractor=rocksdb.FixedPrefix.10").count();
        assert_eq!(hinted, Family::ALL.into_iter().filter(|family| family.has_user_prefix()).count(), "{text}");
        drop(db);
    }

    /// The newest file of options lists what holds for each family.
    #[test]
    fn compactions_are_turned_off_and_on_for_the_families_that_are_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let sizes = Sizes::of(64 * MIB);
        let db = DB::open_cf_descriptors(&state_db(sizes), dir.path(), state_families(sizes)).expect("opens");
        let listed = || newest_options(dir.path()).matches("disable_auto_compactions=true").count();
        let all = || Family::ALL.into_iter().map(Family::name);
        assert_eq!(listed(), 0);
        set_auto_compactions(&db, all(), false);
        assert_eq!(listed(), all().count());
        set_auto_compactions(&db, all().take(1), true);
        assert_eq!(listed(), all().count() - 1);
    }
}
