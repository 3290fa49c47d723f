//! Clusters of this program's own: one for public tests, one that forgets within seconds, one for faults.
//!
//! Invariants: a setting that the binary does not know is left out and said, never guessed; every cluster ends with
//! the stage.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use jepsen_tests::cluster::Cluster;
use tokio::sync::{Mutex, OnceCell};

use crate::disaster::scene::Scene;
use crate::faults::field::Field;
use crate::target::Target;

/// Age of tombstones on the brisk cluster.
pub const TOMBSTONE_AGE_MS: u64 = 1000;
/// Silence after which a device is dropped there.
pub const DEVICE_EXPIRY_MS: u64 = 8000;
/// Quota of every user of the public cluster and of restored ones: room for a batch of the largest size.
pub const QUOTA_BYTES: u64 = 6 << 20;

/// Clusters of its own.
#[derive(Debug)]
pub struct Stage {
    /// The binary under test.
    pub holdfast: PathBuf,
    /// Where the clusters live.
    pub dir: PathBuf,
    /// What the binary says of the keys it knows.
    known_keys: String,
    /// Everything random follows from it.
    pub seed: u64,
    /// Planned transfers go on while tests run.
    pub transfers: bool,
    brisk: OnceCell<(Cluster, Target)>,
    field: Mutex<Option<Field>>,
    scene: Mutex<Option<Arc<Scene>>>,
}

/// Client and admin addresses of a cluster.
pub fn target_of(cluster: &Cluster) -> anyhow::Result<Target> {
    let of = |address: fn(&jepsen_tests::cluster::Node) -> &String| -> Vec<String> {
        cluster.nodes.iter().map(|node| address(node).clone()).collect()
    };
    Target::new(&of(|node| &node.client), &of(|node| &node.admin))
}

impl Stage {
    /// Starts nothing yet.
    ///
    /// # Errors
    /// When the binary cannot be run.
    pub fn new(holdfast: &Path, dir: &Path, seed: u64, transfers: bool) -> anyhow::Result<Self> {
        let holdfast = holdfast.canonicalize().with_context(|| format!("find {}", holdfast.display()))?;
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        // A key that no binary knows: the refusal lists those that this one does.
        let mut command = Command::new(&holdfast);
        command.args(["serve", "--no-config", "--node-id", "1", "--set", "conformance.asks=1", "--data-dir"]);
        let output = command.arg(dir.join("never")).stdin(Stdio::null()).output().context("run the binary")?;
        let known_keys = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(known_keys.contains("raft.snapshot_entries"), "the binary lists no keys: {known_keys}");
        Ok(Self {
            holdfast,
            dir,
            known_keys,
            seed,
            transfers,
            brisk: OnceCell::new(),
            field: Mutex::new(None),
            scene: Mutex::new(None),
        })
    }

    /// The binary knows a configuration key.
    pub fn knows(&self, key: &str) -> bool {
        self.known_keys.contains(key)
    }

    /// Starts a cluster in a folder of the stage. Settings that the binary does not know are left out.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(
        self: &Arc<Self>,
        name: &str,
        set: &[String],
        offsite: Option<&Path>,
    ) -> anyhow::Result<Cluster> {
        let (holdfast, dir) = (self.holdfast.clone(), self.dir.join(name));
        let args = self.arguments(set, offsite);
        let started = tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Cluster::start(&holdfast, &dir, &args)
        });
        started.await.context("the harness panicked")?.with_context(|| format!("start the cluster {name}"))
    }

    /// Arguments of `holdfast dev` for settings that the binary knows.
    pub fn arguments(&self, set: &[String], offsite: Option<&Path>) -> Vec<String> {
        let known = set.iter().filter(|pair| self.knows(pair.split('=').next().unwrap_or_default()));
        let mut args: Vec<String> = known.flat_map(|pair| ["--set".to_owned(), pair.clone()]).collect();
        if let Some(offsite) = offsite {
            args.extend(["--offsite".to_owned(), format!("file://{}", offsite.display())]);
        }
        args
    }

    /// The cluster that forgets tombstones and devices within seconds.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn brisk(self: &Arc<Self>) -> anyhow::Result<Target> {
        let make = async || {
            let set = [
                format!("sync.tombstone_age_ms={TOMBSTONE_AGE_MS}"),
                format!("sync.device_expiry_ms={DEVICE_EXPIRY_MS}"),
            ];
            let cluster = self.start("brisk", &set, None).await?;
            let target = target_of(&cluster)?;
            anyhow::Ok((cluster, target))
        };
        Ok(self.brisk.get_or_try_init(make).await?.1.clone())
    }

    /// The cluster whose nodes may be stopped and killed; whoever holds it has it alone.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn field(self: &Arc<Self>) -> anyhow::Result<tokio::sync::MappedMutexGuard<'_, Field>> {
        let mut field = self.field.lock().await;
        if field.is_none() {
            *field = Some(Field::start(self).await?);
        }
        let Ok(field) = tokio::sync::MutexGuard::try_map(field, Option::as_mut) else {
            anyhow::bail!("the cluster for faults is gone");
        };
        Ok(field)
    }

    /// A cluster that was lost, and its restores; one for each run.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn scene(self: &Arc<Self>, run: &str) -> anyhow::Result<Arc<Scene>> {
        let mut scene = self.scene.lock().await;
        if let Some(scene) = scene.as_ref().filter(|scene| scene.run == run) {
            return Ok(scene.clone());
        }
        // The old one's clusters end first.
        scene.take();
        let played = Arc::new(Scene::play(self, run).await?);
        *scene = Some(played.clone());
        Ok(played)
    }

    /// Ends the clusters, in order.
    pub async fn end(&self) {
        self.field.lock().await.take();
        self.scene.lock().await.take();
    }
}
