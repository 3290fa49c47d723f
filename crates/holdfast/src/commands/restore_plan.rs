//! What a restore would do, for people and for programs.

use std::time::{Duration, SystemTime};

use holdfast_archive::{Offer, RestorePlan};
use serde::Serialize;

use crate::clock;
use crate::commands::backup::BadObject;
use crate::commands::restore_eta::rounded;
use crate::output;

/// What a restore would do, as it is printed.
#[derive(Debug, Serialize)]
pub struct PlanAnswer {
    v: u32,
    from: String,
    lineage: String,
    cluster_name: String,
    /// Last log index that comes back.
    pub last_index: u64,
    last_term: u64,
    last_time: Option<String>,
    /// Nothing is missing that was acknowledged before this moment: that of the newest write that comes back, or a later one at
    /// which a leader vouched that there was no other.
    complete_time: Option<String>,
    /// Age of that moment; what was acknowledged after it is lost.
    loss_window_ms: Option<u64>,
    /// Index of the snapshot it starts from; 0 = none.
    pub snapshot_index: u64,
    snapshot_records: u64,
    segments: u64,
    bytes: u64,
    /// How long a restore into three directories takes on the machine that this ran on; null = it was not read.
    eta_ms: Option<u64>,
    /// When the newest of the drills ended that it goes by; null = none was recorded, and it goes by what is usual.
    eta_drill: Option<String>,
    /// Every object of it was read, and is sound.
    checked: bool,
    /// What was asked for cannot be restored, because objects are damaged or missing: this is the newest point before it
    /// that can, and what the plan is of. `restore run` refuses, unless it is asked for this point.
    pub newest_good_index: Option<u64>,
    /// Objects that are damaged or missing, and histories that cannot be read.
    bad: Vec<BadObject>,
}

impl PlanAnswer {
    /// Of a plan, seen at `now`.
    pub fn new(plan: &RestorePlan, now: SystemTime) -> Self {
        let stamp = (plan.last_stamp_ms > 0).then_some(plan.last_stamp_ms);
        let complete = Some(plan.complete_ms()).filter(|complete| *complete > 0);
        Self {
            v: 1,
            from: plan.destination.clone(),
            lineage: plan.lineage.id.to_string(),
            cluster_name: plan.lineage.cluster_name.clone(),
            last_index: plan.last.index,
            last_term: plan.last.term,
            last_time: stamp.map(clock::rfc3339),
            complete_time: complete.map(clock::rfc3339),
            loss_window_ms: complete.map(|complete| clock::unix_ms(now).saturating_sub(complete)),
            snapshot_index: plan.snapshot_index(),
            snapshot_records: plan.records(),
            segments: plan.segments(),
            bytes: plan.bytes(),
            eta_ms: None,
            eta_drill: None,
            checked: false,
            newest_good_index: None,
            bad: plan.bad.iter().map(BadObject::from).collect(),
        }
    }

    /// Of what can be restored, seen at `now`.
    pub fn of(offer: &Offer, now: SystemTime) -> Self {
        let mut answer = Self::new(&offer.plan, now);
        answer.checked = true;
        answer.newest_good_index = (!offer.is_whole).then_some(answer.last_index);
        for bad in offer.bad.iter().map(BadObject::from) {
            if !answer.bad.contains(&bad) {
                answer.bad.push(bad);
            }
        }
        answer
    }

    /// The same, and how long it takes, by the pace of drills, the newest of which ended at `drill`.
    #[must_use]
    pub fn taking(self, eta: Duration, drill: Option<u64>) -> Self {
        Self { eta_ms: Some(eta.as_millis() as u64), eta_drill: drill.map(clock::rfc3339), ..self }
    }

    /// How to get the newest point that can be restored, where it is not what was asked for.
    pub fn offered_in_words(&self) -> Option<String> {
        let index = self.newest_good_index?;
        let time = self.last_time.as_ref().map(|time| format!(" ({time})")).unwrap_or_default();
        Some(format!(
            "the newest point without damage is index {index}{time}: `restore run` with --lineage {} --at {index}; or \
             take the bad objects from another destination",
            self.lineage
        ))
    }

    /// For people.
    pub fn in_words(&self) -> String {
        let start = match self.snapshot_index {
            0 => "from the first log entry".to_owned(),
            index => format!("from the snapshot at index {index} ({} records)", self.snapshot_records),
        };
        let lost = match (&self.complete_time, self.loss_window_ms) {
            (Some(time), Some(ms)) => format!(
                "what was acknowledged after {time}, {ms} ms before now, is not in this archive and is lost unless \
                 devices upload it again"
            ),
            _ => "the archive holds no time stamp: how much is lost is unknown".to_owned(),
        };
        let by = match &self.eta_drill {
            Some(drill) => format!(", by drills up to {drill}"),
            None => "; no drill was recorded that would tell".to_owned(),
        };
        let eta = self.eta_ms.map(|ms| format!(", about {} on this machine{by}", rounded(Duration::from_millis(ms))));
        let eta = eta.unwrap_or_default();
        let mut bad: String = self.bad.iter().map(|bad| format!("\nbad: {}: {}", bad.object, bad.reason)).collect();
        bad.extend(self.offered_in_words().map(|offered| format!("\n{offered}")));
        format!(
            "cluster {} ({}) comes back to index {}: {start}, then {} log segments; {} to read{eta}\nloss window: {lost}{bad}",
            self.cluster_name,
            self.lineage,
            self.last_index,
            self.segments,
            output::bytes(self.bytes)
        )
    }
}
