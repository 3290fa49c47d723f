//! Snapshots: a checkpoint right behind a barrier in the log, shipped to every destination as a job.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use holdfast_archive::snapshot::read_manifest;
use holdfast_archive::{
    ArchiveError, Gap, OpenLineage, RowIndexes, SegmentShipper, SnapshotOptions, SnapshotReport, list_snapshots,
    ship_attested,
};
use holdfast_model::command::{Command, SnapshotBarrier};
use holdfast_replica::DiskLevel;
use holdfast_store::StateStore;
use tokio::sync::{Notify, OnceCell, oneshot};
use tokio::time::Instant;

use super::Shipper;
use super::attest::Verdict;
use super::course::Course;
use crate::config::Offsite;
use crate::operations::Job;

type BarrierWaiters = Mutex<BTreeMap<String, oneshot::Sender<Result<Reached, String>>>>;

/// Checkpoints at snapshot barriers; filled by the state machine's hook.
pub struct Barriers {
    waiting: BarrierWaiters,
    dir: PathBuf,
    indexes: RowIndexes,
    /// The newest checkpoint that no job of this node waits for: what it holds is attested.
    unasked: Mutex<Option<Reached>>,
    came: Notify,
}

/// A checkpoint right behind a barrier; it goes when this does.
#[derive(Debug)]
pub struct Reached {
    /// Index of the barrier.
    pub index: u64,
    /// Where it lies.
    pub path: PathBuf,
    /// Which installation of this node's state it is of.
    pub installation: u64,
    /// When it was taken.
    pub at: Instant,
    /// Who vouches for it, once that is known.
    pub(super) verdict: OnceCell<Verdict>,
}

impl Drop for Reached {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        let remove = move || {
            if let Err(error) = std::fs::remove_dir_all(path) {
                tracing::warn!(event = "backup.leftover", %error, "the checkpoint goes at restart");
            }
        };
        // It may be the last that holds gigabytes, and applying may wait for this.
        drop(std::thread::Builder::new().name("checkpoint-rm".into()).spawn(remove));
    }
}

impl Barriers {
    /// Checkpoints go below `dir`; what rows the shipped ones had is kept below `indexes`.
    pub fn new(dir: PathBuf, indexes: PathBuf) -> Self {
        let indexes = RowIndexes::new(indexes);
        Self { waiting: Mutex::default(), dir, indexes, unasked: Mutex::default(), came: Notify::new() }
    }

    /// Called right after a barrier was applied: takes a checkpoint for each job of this node that waits for one, or one to
    /// be attested. None is durable: at restart they go.
    pub fn reached(&self, index: u64, state: &StateStore) {
        let mut waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        // A job that gave up waits no more.
        waiting.retain(|_, waiter| !waiter.is_closed());
        let at = Instant::now();
        // Each its own: whoever is done first removes what it read.
        let take = |number: usize| {
            let path = self.dir.join(format!("barrier-{index:020}-{number}"));
            std::fs::create_dir_all(&self.dir).map_err(|error| error.to_string())?;
            let taken = state.checkpoint_to_read(&path).map_err(|error| error.to_string());
            taken.map(|()| Reached { index, path, installation: state.installation(), at, verdict: OnceCell::new() })
        };
        if waiting.is_empty() {
            match take(0) {
                Ok(reached) => {
                    // One that was not begun with is of no use any more.
                    let older = self.unasked.lock().unwrap_or_else(PoisonError::into_inner).replace(reached);
                    self.came.notify_one();
                    drop(older);
                }
                Err(error) => tracing::warn!(event = "backup.not_attested", index, error, "no checkpoint"),
            }
        }
        for (number, (_, waiter)) in waiting.into_iter().enumerate() {
            // What nobody waits for any more goes at once.
            drop(waiter.send(take(number)));
        }
        let took_ms = at.elapsed().as_millis() as u64;
        tracing::info!(event = "backup.checkpoint", index, took_ms, "nothing was applied meanwhile");
    }

    /// The newest checkpoint that is to be attested, once there is one.
    pub(super) async fn next(&self) -> Reached {
        loop {
            if let Some(reached) = self.unasked.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return reached;
            }
            self.came.notified().await;
        }
    }

    fn wait(&self, id: &str) -> oneshot::Receiver<Result<Reached, String>> {
        let (tx, rx) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), tx);
        rx
    }
}

impl Shipper {
    /// Takes a snapshot at a barrier and ships it to every destination; runs as a job, which ends once the snapshot is at
    /// every destination that is required. Nobody waits for the others, unless there are no more than those.
    pub async fn backup(self: Arc<Self>, job: Job, id: String) {
        job.stage("taking a checkpoint", 0, 0).await;
        let checkpoint = match self.take_checkpoint(&id).await {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                tracing::warn!(event = "backup.failed", error, "no snapshot was shipped");
                return job.end(Err(error)).await;
            }
        };
        let (required, others): (Vec<_>, Vec<_>) = self.destinations.iter().partition(|one| one.required);
        let (awaited, others) = if required.is_empty() { (others, required) } else { (required, others) };
        let group = self.replica.group_id();
        // An index is an extra: it must not take the room that entries need.
        let has_room = self.replica.disk().level == DiskLevel::Ample;
        let indexes = has_room.then(|| self.barriers.indexes.clone());
        let options = SnapshotOptions { limit: self.pace.snapshot, indexes };
        let mut shipped = Shipped::default();
        self.ship_to(&awaited, Some(&job), &checkpoint, &options, &mut shipped).await;
        job.end(shipped.told()).await;
        self.ship_to(&others, None, &checkpoint, &options, &mut shipped).await;
        // A later layer can lie over this snapshot, or, once there are too many, over its base. What lies where it failed is read
        // back when it is needed: one that always fails must not fill the disk.
        if shipped.count > 0
            && has_room
            && let Err(error) = self.barriers.indexes.keep(group, &shipped.indices)
        {
            tracing::warn!(event = "backup.row_index", %error, "indexes of older snapshots are still there");
        }
    }

    async fn take_checkpoint(&self, id: &str) -> Result<Reached, String> {
        if self.destinations.is_empty() {
            return Err("no offsite destination is configured; set [[offsite]] and restart the node".into());
        }
        if let Some(fork) = &self.replica.sys().lineage_fork {
            return Err(format!("nothing is shipped of a history that forked: {}", fork.evidence));
        }
        // A barrier costs all members a reading of their states.
        self.check_sound(None)?;
        // What memory holds goes to disks now, beside what is applied: at the barrier, applying waits for it.
        self.replica.flush_everywhere().await.map_err(|error| error.to_string())?;
        let reached = self.barriers.wait(id);
        let admitted = self.replica.admission().admit_first(256);
        let barrier = Command::SnapshotBarrier(SnapshotBarrier { operation_id: id.to_owned() });
        let deadline = Instant::now() + Duration::from_secs(30);
        self.replica.propose(barrier, admitted, deadline).await.map_err(|error| error.to_string())?;
        tokio::time::timeout(Duration::from_secs(120), reached)
            .await
            .map_err(|_| "this node did not reach the barrier in time; try again".to_owned())?
            .map_err(|_| "the barrier was lost; try again".to_owned())?
    }

    /// Goes on at a destination that lacks entries which no node has any more: ships a snapshot there, unless there is one from
    /// which on this node's log goes on, and says that it stands in for them. Gives the place behind it.
    pub(super) async fn bridge(
        &self,
        destination: &Offsite,
        lineage: &OpenLineage,
        shipper: &mut SegmentShipper,
        course: Course,
    ) -> Result<Course, ArchiveError> {
        let begins = self.replica.log().first_index();
        let group = self.replica.group_id();
        let there = list_snapshots(shipper.destination(), lineage.id(), group).await?;
        let known = there.last().map(|found| found.index).filter(|index| index + 1 >= begins);
        let index = match known {
            Some(index) => index,
            None => {
                tracing::warn!(
                    event = "offsite.gap",
                    destination = destination.name,
                    from = course.next,
                    log_begins = begins,
                    "no node has these entries any more; a snapshot is shipped in their place"
                );
                self.ship_in_place(destination).await?
            }
        };
        let (manifest, _) = read_manifest(shipper.destination(), lineage.id(), group, index).await?;
        // Before it is said for ever: it is a snapshot of this node's own history.
        let behind = Course { next: manifest.applied.index + 1, chain: manifest.entry_chain };
        behind.check(self, &destination.url).await?;
        course.check_fact(self.replica.sys().offsite.get(&destination.name), manifest.applied, &destination.url)?;
        let gap = Gap {
            group,
            first: course.next,
            chain_before: course.chain,
            last: manifest.applied,
            chain_after: manifest.entry_chain,
        };
        let tail = shipper.leave_out(gap).await?.tail();
        tracing::error!(
            event = "offsite.gap",
            destination = destination.name,
            from = course.next,
            to = tail.last.index,
            "there is no way back to a point in between, there"
        );
        Ok(Course { next: tail.last.index + 1, chain: tail.chain })
    }

    /// Takes a snapshot for one destination; gives its index.
    async fn ship_in_place(&self, destination: &Offsite) -> Result<u64, ArchiveError> {
        let not_now = |reason| ArchiveError::NotNow { reason };
        if let Some(left) = self.replica.sys().restoring.as_ref().map(|restoring| &restoring.left) {
            let left: Vec<&str> = left.iter().map(|stage| stage.name()).collect();
            return Err(not_now(format!("no snapshot while payloads of {} are being restored", left.join(", "))));
        }
        let checkpoint = self.take_checkpoint(&format!("gap-{}", uuid::Uuid::new_v4())).await.map_err(not_now)?;
        let options = SnapshotOptions { limit: self.pace.snapshot, indexes: None };
        let shipped = self.ship_checkpoint(destination, &checkpoint, &options).await;
        shipped.map(|report| report.index)
    }

    /// Ships to one destination after the other. One that fails does not keep the snapshot from the others.
    async fn ship_to(
        &self,
        destinations: &[&Offsite],
        job: Option<&Job>,
        checkpoint: &Reached,
        options: &SnapshotOptions,
        shipped: &mut Shipped,
    ) {
        for (done, destination) in destinations.iter().enumerate() {
            if let Some(job) = job {
                let stage = format!("shipping to {}", destination.name);
                job.stage(&stage, done as u64, destinations.len() as u64).await;
            }
            match self.ship_checkpoint(destination, checkpoint, options).await {
                Ok(report) => {
                    tracing::info!(
                        event = "backup.shipped",
                        destination = destination.name,
                        index = report.index,
                        chunks = report.chunks,
                        bytes = report.bytes,
                        new_bytes = report.new_bytes,
                        layers = report.layers,
                        attested = report.is_attested,
                        "snapshot"
                    );
                    shipped.count += 1;
                    shipped.attested += u64::from(report.is_attested);
                    shipped.new_bytes += report.new_bytes;
                    shipped.indices.extend([report.index, report.base_index]);
                }
                Err(error) => {
                    let destination = &destination.name;
                    tracing::warn!(event = "backup.failed", destination, %error, "the snapshot was not shipped there");
                    shipped.failures.push(format!("{destination}: {error}"));
                }
            }
        }
    }

    /// Whether there is a reason not to ship this node's state, or what was taken of it: asked before, and once more before
    /// the manifest makes a snapshot of it.
    pub(super) fn check_sound(&self, checkpoint: Option<&Reached>) -> Result<(), String> {
        let known = self.replica.integrity_status();
        if let Some(reason) = known.damage.or(known.doubt) {
            return Err(format!("the state that the snapshot is of may be wrong: {reason}"));
        }
        if checkpoint.is_some_and(|taken| taken.installation != self.replica.state().installation()) {
            return Err("the state that the snapshot is of was reinstalled since; take another one".into());
        }
        Ok(())
    }

    async fn ship_checkpoint(
        &self,
        destination: &Offsite,
        checkpoint: &Reached,
        options: &SnapshotOptions,
    ) -> Result<SnapshotReport, ArchiveError> {
        let not_now = |reason| ArchiveError::NotNow { reason };
        let sys = self.replica.sys();
        let history = sys.history.as_ref().ok_or_else(|| not_now("the cluster is not founded".into()))?;
        self.check_sound(Some(checkpoint)).map_err(not_now)?;
        let lineage = self.open(destination, history).await?;
        let attesting = |reading| self.witnesses(checkpoint, reading).boxed();
        ship_attested(&lineage, self.replica.group_id(), &checkpoint.path, options, &attesting, &|_, _| {}).await
    }
}

/// What became of one snapshot so far.
#[derive(Debug, Default)]
struct Shipped {
    count: u64,
    new_bytes: u64,
    /// At this many of them a majority vouches for it.
    attested: u64,
    /// Of the snapshot, and of the bases that it lies over.
    indices: Vec<u64>,
    failures: Vec<String>,
}

impl Shipped {
    fn told(&self) -> Result<String, String> {
        if !self.failures.is_empty() {
            return Err(self.failures.join("; "));
        }
        let index = self.indices.first().copied().unwrap_or(0);
        let (count, bytes) = (self.count, self.new_bytes);
        let vouched = match self.attested {
            all if all == count => "attested".to_owned(),
            0 => "unattested".to_owned(),
            some => format!("attested at {some} of them"),
        };
        Ok(format!("shipped snapshot {index} to {count} destination(s), {bytes} bytes of it new; {vouched}"))
    }
}
