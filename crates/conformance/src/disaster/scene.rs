//! A cluster that lost what it had not shipped yet, and its restores from the archive.
//!
//! ```text
//! kept writes -> shipped -> the destination goes away -> lost writes -> every node is lost -> restore run, twice
//! ```
//!
//! Invariants: all clusters of a scene use the same addresses, one after the other, as a real recovery does; what was
//! kept and what was lost is known exactly, per user.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_wire::v1;
use jepsen_tests::cluster::{Cluster, comes_true};
use tokio::sync::Mutex;

use crate::case::{batch, delete, put, put_in};
use crate::device::Device;
use crate::failure::Failure;
use crate::stage::{QUOTA_BYTES, Stage, target_of};
use crate::target::Target;

const PATIENCE: Duration = Duration::from_secs(30);

/// One user's past.
#[derive(Debug, Clone)]
pub struct Past {
    /// The user.
    pub user: String,
    /// A device that synced when everything was still shipped.
    pub kept: Device,
    /// Head at the fork.
    pub common: u64,
    /// A device that synced the older half of what was lost.
    pub phone: Device,
    /// A device that synced everything before the loss.
    pub laptop: Device,
    /// The tombstone that `phone` saw: of a record that the lost part alone made.
    pub ghost: v1::Record,
}

/// A cluster that was lost, and the restored one that runs now.
#[derive(Debug)]
pub struct Scene {
    /// Whose pasts they are.
    pub run: String,
    /// History that ended.
    pub lost_incarnation: u64,
    /// Users with equal pasts.
    pub pasts: Vec<Past>,
    /// A user whom the lost part alone knew, with a device that has synced.
    pub newcomer: Device,
    /// A user with photos in the snapshot of the archive: a few large ones, and small contacts.
    pub album: String,
    archive: String,
    dir: PathBuf,
    holdfast: PathBuf,
    /// Of `holdfast dev`, for restored clusters.
    args: Vec<String>,
    running: Mutex<Option<Cluster>>,
}

/// How the folder is restored that other nodes run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// In one piece.
    Whole,
    /// Contacts first, and nothing more yet.
    Staged,
}

/// Contacts and photos of the album.
pub const ALBUM: usize = 3;

/// What a photo of the album holds: more than comes with its record.
pub fn photo(number: usize) -> String {
    format!("photo {number} ").repeat(2500)
}

/// Takes a snapshot, by the command line that operators have.
async fn back_up(holdfast: &Path, admin: &str) -> anyhow::Result<()> {
    let mut command = Command::new(holdfast);
    command.args(["backup", "now", "--endpoint", admin]).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("take a snapshot")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "holdfast backup now ended with {}: {said}", output.status);
    Ok(())
}

/// Users with equal pasts; each test takes its own.
const PASTS: usize = 10;

impl Scene {
    /// Plays everything up to the first restore.
    ///
    /// # Errors
    /// When the harness, the cluster or the restore fails.
    pub async fn play(stage: &Arc<Stage>, run: &str) -> anyhow::Result<Self> {
        let dir = stage.dir.join(format!("scene-{run}"));
        std::fs::create_dir_all(&dir)?;
        let (offsite, hidden) = (dir.join("offsite"), dir.join("out-of-reach"));
        let set = ["ship.interval_ms=100".to_owned()];
        let mut cluster = stage.start(&format!("scene-{run}/lost"), &set, Some(&offsite)).await?;
        let target = target_of(&cluster)?;
        let failed = |failure: Failure| anyhow::anyhow!("{failure}");
        let mut pasts = Vec::new();
        for n in 0..PASTS {
            pasts.push(keep(&target, format!("scene-{run}-u{n}")).await.map_err(failed)?);
        }
        let album = format!("scene-{run}-album");
        for n in 0..ALBUM {
            let photo = put_in("photos", &format!("p{n}"), &photo(n));
            target.client().write(batch(&album, vec![put(&format!("c{n}"), "contact"), photo])).await?;
        }
        back_up(&stage.holdfast, &cluster.nodes[0].admin).await?;
        let newest =
            target.client().write(batch(&format!("scene-{run}-other"), vec![put("a", "1")])).await?.commit_index;
        let shipped = comes_true(PATIENCE, async || {
            let status = cluster.status(0).await.unwrap_or_default();
            status.destinations.first().is_some_and(|one| one.durable_index >= newest)
        });
        ensure!(shipped.await, "the log up to {newest} was not shipped within {PATIENCE:?}");
        std::fs::rename(&offsite, &hidden).context("hide the destination")?;
        let mut lost_incarnation = 0;
        for past in &mut pasts {
            lost_incarnation = lose(&target, past).await.map_err(failed)?;
        }
        let mut newcomer = Device::new(&format!("scene-{run}-newcomer"));
        target.client().write(batch(&newcomer.user, vec![put("only", "lost")])).await?;
        newcomer.sync(target.client(), 0).await.map_err(failed)?;
        cluster.stop();
        std::fs::remove_dir_all(&cluster.dir).context("lose every disk")?;
        let _ = std::fs::remove_dir_all(&offsite);
        std::fs::rename(&hidden, &offsite).context("find the archive")?;
        let scene = Self {
            run: run.to_owned(),
            lost_incarnation,
            pasts,
            newcomer,
            album,
            archive: format!("file://{}", offsite.display()),
            dir,
            holdfast: stage.holdfast.clone(),
            args: stage.arguments(&[format!("quota.user_bytes={QUOTA_BYTES}")], None),
            running: Mutex::new(Some(cluster)),
        };
        scene.restore_again("first").await?;
        Ok(scene)
    }

    /// The restored cluster that runs now.
    ///
    /// # Errors
    /// When none does.
    pub async fn target(&self) -> anyhow::Result<Target> {
        match self.running.lock().await.as_ref() {
            Some(cluster) => target_of(cluster),
            None => bail!("no restored cluster runs: an earlier restore failed"),
        }
    }

    /// First port of all clusters of the scene.
    ///
    /// # Errors
    /// As [`Scene::target`].
    pub async fn port_base(&self) -> anyhow::Result<u16> {
        let running = self.running.lock().await;
        running.as_ref().map(Cluster::port_base).context("no restored cluster runs: an earlier restore failed")
    }

    /// Ends the cluster that runs and starts another one from the same archive, at the same addresses.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restore_again(&self, name: &str) -> anyhow::Result<()> {
        let mut running = self.running.lock().await;
        let Some(mut gone) = running.take() else { bail!("no cluster to take the place of") };
        gone.stop();
        let (dir, args) = (self.dir.join(name), self.args.clone());
        self.restore_into(&dir, gone.port_base())?;
        let started = tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Cluster::start_after(gone, &dir, &args)
        });
        *running = Some(started.await.context("the harness panicked")??);
        Ok(())
    }

    /// `holdfast restore run --stage contacts` into a fresh folder, killed as soon as it says that nodes may be started.
    async fn begin_staged(&self, dir: &Path, port_base: u16) -> anyhow::Result<()> {
        let log = dir.with_extension("restore.log");
        let mut command = self.staged(dir, port_base);
        let mut restore = command.stderr(std::fs::File::create(&log)?).spawn().context("run restore")?;
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let told = comes_true(PATIENCE, async || {
            said().contains("start it") || restore.try_wait().is_ok_and(|end| end.is_some())
        });
        let told = told.await;
        // It may have ended by itself, and badly: then it said why.
        let _ = restore.kill();
        let _ = restore.wait();
        ensure!(told && said().contains("start it"), "holdfast restore run --stage contacts said: {}", said());
        Ok(())
    }

    /// The same restore again, to its end: what was held back comes to the nodes that run.
    ///
    /// # Errors
    /// What it said when it failed.
    pub async fn end_staged(&self, name: &str, port_base: u16) -> anyhow::Result<()> {
        let mut command = self.staged(&self.dir.join(name), port_base);
        let output = tokio::task::spawn_blocking(move || command.output()).await?.context("run restore")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "holdfast restore run ended with {}: {said}", output.status);
        Ok(())
    }

    fn staged(&self, dir: &Path, port_base: u16) -> Command {
        let mut command = Command::new(&self.holdfast);
        command.args(["restore", "run", "--from", &self.archive, "--nodes", "3", "--stage", "contacts"]);
        command.args(["--port-base", &port_base.to_string(), "--data"]).arg(dir);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// `holdfast restore run` into a fresh folder.
    fn restore_into(&self, dir: &Path, port_base: u16) -> anyhow::Result<()> {
        let mut command = Command::new(&self.holdfast);
        command.args(["restore", "run", "--from", &self.archive, "--nodes", "3"]);
        command.args(["--port-base", &port_base.to_string(), "--data"]).arg(dir).stdin(Stdio::null());
        let output = command.output().context("run restore")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "holdfast restore run ended with {}: {said}", output.status);
        Ok(())
    }

    /// Lends the addresses of the running cluster to nodes on a folder that was restored and then changed: stops it,
    /// restores, lets `change` do its work on each node's folder, runs `ask` while these nodes run, and goes back.
    ///
    /// # Errors
    /// When the harness fails, or as `ask` says.
    pub async fn instead(
        &self,
        name: &str,
        how: How,
        nodes: &[usize],
        change: impl Fn(&Path) -> std::io::Result<()>,
        ask: impl AsyncFnOnce(&Target) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut running = self.running.lock().await;
        let Some(cluster) = running.as_mut() else {
            return Err(anyhow::anyhow!("no restored cluster runs").into());
        };
        cluster.stop();
        let dir = self.dir.join(name);
        match how {
            How::Whole => self.restore_into(&dir, cluster.port_base())?,
            How::Staged => self.begin_staged(&dir, cluster.port_base()).await?,
        }
        let target = target_of(cluster)?;
        let mut serving = Vec::new();
        for place in 0..3 {
            let data = dir.join(format!("n{place}"));
            change(&data).with_context(|| format!("change {}", data.display()))?;
            let argv = cluster.nodes[place].argv.iter().map(|arg| {
                if Path::new(arg) == cluster.nodes[place].data_dir { data.display().to_string() } else { arg.clone() }
            });
            let argv: Vec<String> = argv.collect();
            if nodes.contains(&place) {
                serving.push(Serving::start(&argv, &dir.join(format!("n{place}.log")))?);
            }
        }
        let outcome = ask(&target).await;
        drop(serving);
        cluster.reopen()?;
        outcome.map_err(|failure| failure.at(name))
    }
}

/// A node that ends with its owner.
struct Serving(std::process::Child);

impl Serving {
    fn start(argv: &[String], log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(log)?;
        let mut command = Command::new("setpriv");
        // Told by the kernel when this process is no more.
        command.args(["--pdeathsig", "KILL"]).args(argv).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(Self(command.spawn().context("start a node")?))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is shipped: five contacts, and a device that has them.
async fn keep(target: &Target, user: String) -> Result<Past, Failure> {
    let client = target.client();
    let mut common = 0;
    for n in 0..5 {
        common = client.write(batch(&user, vec![put(&format!("k{n}"), "kept")])).await?.version;
    }
    let mut kept = Device::new(&user);
    kept.sync(client, 0).await?;
    let (phone, laptop) = (kept.clone(), kept.clone());
    Ok(Past { user, kept, common, phone, laptop, ghost: v1::Record::default() })
}

/// What is lost: overwritten, new, deleted, made and deleted. Gives the incarnation.
async fn lose(target: &Target, past: &mut Past) -> Result<u64, Failure> {
    let (client, user) = (target.client(), past.user.clone());
    let write = async |mutation| client.write(batch(&user, vec![mutation])).await;
    write(put("k0", "phone 0")).await?;
    write(put("k1", "both 1")).await?;
    write(put("k2", "phone 2")).await?;
    write(put("ghost", "made in the lost part")).await?;
    past.phone.sync(client, 0).await?;
    past.ghost = past.phone.records[&("contacts".to_owned(), "ghost".to_owned())].clone();
    write(put("k0", "laptop 0")).await?;
    write(put("new", "laptop new")).await?;
    write(delete("k2")).await?;
    write(delete("k3")).await?;
    let last = write(delete("ghost")).await?;
    past.laptop.sync(client, 0).await?;
    Ok(last.header.map_or(0, |header| header.incarnation))
}
