//! Planned leader transfers at random moments while tests run: what holds only under one leader does not hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use holdfast_client::AdminClient;
use jepsen_tests::chance::Chance;
use tokio::task::JoinHandle;

/// Transfers under way; they end when this is dropped.
#[derive(Debug)]
pub struct Transfers {
    task: JoinHandle<()>,
    done: Arc<AtomicU64>,
}

impl Transfers {
    /// Starts them: the next one 150 to 600 ms after the last.
    pub fn start(admins: &[String], seed: u64) -> Self {
        let (admins, done) = (admins.to_vec(), Arc::new(AtomicU64::new(0)));
        let counter = done.clone();
        let task = tokio::spawn(async move {
            let mut chance = Chance::new(seed, 0x7a);
            loop {
                tokio::time::sleep(Duration::from_millis(150 + chance.below(450) as u64)).await;
                if transfer(&admins, &mut chance).await {
                    counter.fetch_add(1, Relaxed);
                }
            }
        });
        Self { task, done }
    }

    /// Leaders that handed over so far.
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks whoever leads to hand over to the best successor; the others refuse.
async fn transfer(admins: &[String], chance: &mut Chance) -> bool {
    let first = chance.below(admins.len().max(1));
    for place in 0..admins.len() {
        let Ok(admin) = AdminClient::new(&admins[(first + place) % admins.len()]) else { continue };
        let admin = admin.with_deadline(Duration::from_secs(2));
        let Ok(status) = admin.status().await else { continue };
        let own = status.self_.map_or(0, |node| node.node_id);
        let leads = status.groups.first().is_some_and(|group| group.leader_id == own && own != 0);
        if leads {
            return admin.transfer_leader(0).await.is_ok();
        }
    }
    false
}
