//! The cluster whose nodes may be stopped and killed.
//!
//! Invariants: a stopped node is continued when its guard goes, however the test ends; `heal` brings everyone back
//! before the next test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_client::AdminClient;
use jepsen_tests::cluster::{Cluster, Killed, comes_true, contact};

use crate::check;
use crate::failure::{Failure, Outcome};
use crate::stage::{Stage, target_of};
use crate::target::Target;
use crate::transfers::Transfers;

/// How long anything may take to come back.
const PATIENCE: Duration = Duration::from_secs(30);
/// Entries after which a node takes a snapshot, and that its log keeps after it.
const SNAPSHOT_ENTRIES: usize = 60;
const KEEP_ENTRIES: usize = 20;

/// A cluster for faults.
#[derive(Debug)]
pub struct Field {
    /// Its addresses.
    pub target: Target,
    cluster: Cluster,
    down: Vec<usize>,
    seed: u64,
    transfers: bool,
}

/// A stopped node; goes on when this is dropped.
#[derive(Debug)]
pub struct Stopped(Vec<i32>);

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            signal(*pid, libc::SIGCONT);
        }
    }
}

/// Sends a signal to a node of a cluster of ours.
fn signal(pid: i32, signal: i32) {
    // SAFETY: a plain system call; the caller names a process of its own cluster.
    unsafe { libc::kill(pid, signal) };
}

/// Every thread of a process has stopped.
fn is_stopped(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with(['T', 'Z']) || rest.is_empty())
    })
}

impl Field {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(stage: &Arc<Stage>) -> anyhow::Result<Self> {
        let set = [
            format!("raft.snapshot_entries={SNAPSHOT_ENTRIES}"),
            format!("raft.keep_entries={KEEP_ENTRIES}"),
            "limits.default_deadline_ms=3000".to_owned(),
        ];
        let cluster = stage.start("field", &set, None).await?;
        let target = target_of(&cluster)?;
        Ok(Self { target, cluster, down: Vec::new(), seed: stage.seed, transfers: stage.transfers })
    }

    /// Leader transfers from now on, if they are wanted; they end when this is dropped.
    pub fn transfers(&self) -> Option<Transfers> {
        self.transfers.then(|| Transfers::start(&self.target.admins, self.seed))
    }

    /// Place of the leader.
    pub async fn leader(&self) -> usize {
        self.cluster.leader().await
    }

    /// Everyone runs and a leader serves.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn heal(&mut self) -> Outcome {
        for node in &self.cluster.nodes {
            signal(node.pid, libc::SIGCONT);
        }
        for place in std::mem::take(&mut self.down) {
            self.cluster.restart(place);
        }
        let cluster = &self.cluster;
        let well = comes_true(PATIENCE, async || {
            for place in 0..3 {
                if cluster.status(place).await.is_none() {
                    return false;
                }
            }
            cluster.leader_now().await.is_some()
        });
        check!(well.await, "expected three nodes and a leader within {PATIENCE:?}, saw none");
        self.target = target_of(&self.cluster)?;
        let probe = self.target.client().put(contact("field", "probe"), "text/plain", "x").await;
        probe.map(drop).map_err(|error| Failure::from(error).at("a write to the healed cluster"))
    }

    /// kill -9.
    pub fn kill(&mut self, place: usize) -> Killed {
        if !self.down.contains(&place) {
            self.down.push(place);
        }
        self.cluster.kill(place)
    }

    /// Starts a killed node again.
    pub fn restart(&mut self, place: usize) {
        self.down.retain(|down| *down != place);
        self.cluster.restart(place);
    }

    /// Stops a node in the middle of whatever it does.
    pub fn stop(&self, place: usize) -> Stopped {
        self.stop_together(&[place])
    }

    /// Stops several nodes at once.
    pub fn stop_together(&self, places: &[usize]) -> Stopped {
        let pids: Vec<i32> = places.iter().map(|place| self.cluster.nodes[*place].pid).collect();
        for pid in &pids {
            signal(*pid, libc::SIGSTOP);
        }
        // On a busy machine a thread may run on for a while; what it acknowledges then was asked of a running node.
        let end = Instant::now() + Duration::from_secs(2);
        while !pids.iter().all(|pid| is_stopped(*pid)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        Stopped(pids)
    }

    /// Waits until a node's status satisfies `done`.
    ///
    /// # Errors
    /// When it never does.
    pub async fn status_becomes(
        &self,
        place: usize,
        what: &str,
        done: impl Fn(&holdfast_wire::v1::GetStatusResponse) -> bool,
    ) -> Outcome {
        let cluster = &self.cluster;
        let came = comes_true(PATIENCE, async || cluster.status(place).await.is_some_and(|status| done(&status)));
        check!(came.await, "expected {what} on node {} within {PATIENCE:?}, saw it not", place + 1);
        Ok(())
    }

    /// Another node leads.
    ///
    /// # Errors
    /// When none takes over.
    pub async fn change_leader(&mut self) -> Outcome {
        let old = self.leader().await;
        self.kill(old);
        let cluster = &self.cluster;
        let changed = comes_true(PATIENCE, async || cluster.leader_now().await.is_some_and(|now| now != old));
        check!(changed.await, "expected another leader within {PATIENCE:?} of a kill, saw none");
        self.restart(old);
        self.heal().await
    }

    /// A node of choice leads.
    ///
    /// # Errors
    /// When it does not take over.
    pub async fn lead(&self, place: usize) -> Outcome {
        let cluster = &self.cluster;
        let leads = comes_true(PATIENCE, async || match cluster.leader_now().await {
            Some(leader) if leader == place => true,
            Some(leader) => {
                // Refused by whoever does not lead any more; the next look tells.
                if let Ok(admin) = AdminClient::new(&cluster.nodes[leader].admin) {
                    let _ = admin.transfer_leader(cluster.nodes[place].id).await;
                }
                false
            }
            None => false,
        });
        check!(leads.await, "expected node {} to lead within {PATIENCE:?}, saw it not", place + 1);
        Ok(())
    }

    /// A follower misses more than the log keeps, and is given a snapshot. Gives its place.
    ///
    /// # Errors
    /// When it does not catch up, or was not given one.
    pub async fn install_snapshot(&mut self, run: &str) -> Result<usize, Failure> {
        let follower = (self.leader().await + 1) % 3;
        let before = self.applied(follower).await;
        self.kill(follower);
        let client = self.target.client().clone();
        let user = format!("filler-{run}");
        let writers = (0..8).map(|writer| {
            let (client, user) = (client.clone(), user.clone());
            async move {
                for n in 0..2 * (SNAPSHOT_ENTRIES + KEEP_ENTRIES) / 8 {
                    client.put(contact(&user, &format!("w{writer}")), "text/plain", n.to_string()).await?;
                }
                Ok::<(), Failure>(())
            }
        });
        futures::future::join_all(writers).await.into_iter().collect::<Result<Vec<()>, _>>()?;
        for place in (0..3).filter(|place| *place != follower) {
            let purged = |status: &holdfast_wire::v1::GetStatusResponse| status.groups[0].purged_index > before;
            // Purging follows the snapshot; a write or two keep the log moving.
            let cluster = &self.cluster;
            let came = comes_true(PATIENCE, async || {
                let _ = client.put(contact(&user, "push"), "text/plain", uuid::Uuid::new_v4().to_string()).await;
                cluster.status(place).await.is_some_and(|status| purged(&status))
            });
            check!(came.await, "expected node {} to purge its log beyond {before}, saw it not", place + 1);
        }
        self.restart(follower);
        let newest = self.applied(self.leader().await).await;
        self.status_becomes(follower, "the state after a snapshot", |status| status.groups[0].applied_index >= newest)
            .await?;
        self.heal().await?;
        Ok(follower)
    }

    async fn applied(&self, place: usize) -> u64 {
        self.cluster.status(place).await.map_or(0, |status| status.groups[0].applied_index)
    }

    /// kill -9 of all nodes at once, and all start again.
    ///
    /// # Errors
    /// When they do not come back.
    pub async fn restart_all(&mut self) -> Outcome {
        self.cluster.kill_together(&[0, 1, 2]);
        self.down = vec![0, 1, 2];
        self.heal().await
    }
}
