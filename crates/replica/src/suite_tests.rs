//! openraft's own storage suite over our log and state.

use std::sync::Arc;

use holdfast_model::id::GroupId;
use holdfast_store::{DataDir, LogOptions, LogStore, StateStore};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::sync::watch;

use crate::handle::Hooks;
use crate::log_storage::LogAdapter;
use crate::state_machine::StateAdapter;
use crate::types::TypeConfig;

struct Builder;

/// Keeps the directory, and the lock on it, for the length of one test.
struct Guard {
    _data: DataDir,
    _dir: tempfile::TempDir,
    _applied: watch::Receiver<u64>,
    _durable: watch::Sender<u64>,
    log: LogStore,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.log.close();
    }
}

impl StoreBuilder<TypeConfig, LogAdapter, StateAdapter, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogAdapter, StateAdapter), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("tempdir");
        let data = DataDir::open_or_create(&dir.path().join("node"), 1, [7; 16]).expect("data directory");
        let options = LogOptions {
            floor_dir: None,
            cache_bytes_max: 1 << 20,
            on_fatal: Box::new(|reason| panic!("the log failed: {reason}")),
        };
        let (log, _) = LogStore::open(&data, GroupId(0), options).expect("log");
        let state = StateStore::open(&data, GroupId(0)).expect("state");
        // The suite applies entries that were never in the log: nothing to wait for.
        let (durable_tx, durable) = watch::channel(u64::MAX);
        let (applied_tx, applied) = watch::channel(0);
        let hooks = Arc::new(Hooks {
            on_touched: Box::new(|_| {}),
            on_barrier: Box::new(|_, _| {}),
            on_installed: Box::new(|| {}),
            on_fatal: Arc::new(|reason| panic!("fatal: {reason}")),
        });
        let machine = StateAdapter::new(state, log.clone(), data.path().join("snapshots"), durable, applied_tx, hooks);
        let guard = Guard { _data: data, _dir: dir, _applied: applied, _durable: durable_tx, log: log.clone() };
        Ok((guard, LogAdapter::new(log), machine))
    }
}

#[test]
fn openraft_storage_suite() {
    // The suite makes runtimes of its own.
    let suite = Suite::<TypeConfig, LogAdapter, StateAdapter, Builder, Guard>::test_all(Builder);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(suite)
        .expect("suite");
}
