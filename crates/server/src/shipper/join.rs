//! Joins small segments into larger objects, now and then.

use std::time::Duration;

use holdfast_archive::join::{JoinReport, join_segments};
use tokio::time::sleep;

use super::{Seen, Shipper};
use crate::config::Offsite;

impl Shipper {
    /// Joins small segments at a destination now and then, while this node leads. Nothing waits for it.
    pub(super) async fn join(&self, destination: Offsite, interval: Duration) {
        // Of this history, from here on; another one begins anew.
        let mut looked = (None, 0);
        loop {
            sleep(interval).await;
            let sys = self.replica.sys();
            let history = sys.history.clone().filter(|_| self.replica.is_opened(&sys));
            // What was shipped there, a leader saw.
            let ships = matches!(self.state_of(&destination.name).seen, Seen::UpTo(_));
            let Some(history) = history.filter(|_| ships && self.replica.is_leader()) else { continue };
            drop(sys);
            let joined = async {
                let lineage = self.open(&destination, &history).await?;
                let go_on = || self.replica.is_leader() && self.is_shipped(&history);
                let from = if looked.0 == Some(history.incarnation) { looked.1 } else { 0 };
                join_segments(&lineage, self.replica.group_id(), from, go_on).await
            };
            let name = &destination.name;
            let joined = joined.await;
            if let Ok(report) = &joined {
                looked = (Some(history.incarnation), report.next);
            }
            match joined {
                Ok(JoinReport { objects: 0, .. }) => {}
                Ok(JoinReport { objects, segments, bytes, .. }) => {
                    tracing::info!(event = "offsite.joined", destination = name, objects, segments, bytes, "segments");
                }
                Err(error) => tracing::warn!(event = "offsite.join_failed", destination = name, %error, "trying again"),
            }
        }
    }
}
