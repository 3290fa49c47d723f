//! The HTTP listener: `/livez`, `/readyz`, `/metrics`.
//!
//! `/livez` says only that this process makes progress, never anything about quorum or disks: restarting a node
//! because others are down makes things worse. `/readyz` says whether callers should be sent here.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use holdfast_store::{FSYNC_BUCKETS_MICROS, Space};
use holdfast_survey::{Answer, CheckId, Keys, Loss, Severity, Survival, checks, scenarios, survive};
use holdfast_wire::reply::duration_millis;
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use tonic::Status;

use crate::facts::Answers;
use crate::grpc::Shared;

/// Upper bounds of the call histogram, seconds.
const CALL_BUCKETS_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

#[derive(Default)]
struct Histogram {
    buckets: [u64; CALL_BUCKETS_SECONDS.len()],
    count: u64,
    sum: Duration,
}

/// Measurements of calls.
#[derive(Default)]
pub struct Metrics {
    calls: Mutex<BTreeMap<(&'static str, &'static str), Histogram>>,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
}

/// A call under way.
pub struct Call<'a> {
    metrics: &'a Metrics,
    method: &'static str,
    began: Instant,
}

impl Metrics {
    /// Starts measuring a call.
    pub fn call(&self, method: &'static str) -> Call<'_> {
        Call { metrics: self, method, began: Instant::now() }
    }

    /// Counts a call refused before anything was proposed.
    pub fn rejected(&self, reason: &'static str) {
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    fn observe(&self, method: &'static str, code: &'static str, took: Duration) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = calls.entry((method, code)).or_default();
        histogram.count += 1;
        histogram.sum += took;
        for (bucket, bound) in histogram.buckets.iter_mut().zip(CALL_BUCKETS_SECONDS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }
}

impl Call<'_> {
    /// Ends the call; a refusal becomes a status.
    pub fn end<T>(self, result: Result<T, Refusal>) -> Result<tonic::Response<T>, Status> {
        let code = result.as_ref().map_or_else(Refusal::reason, |_| "OK");
        self.metrics.observe(self.method, code, self.began.elapsed());
        result.map(tonic::Response::new).map_err(Status::from)
    }
}

/// The routes.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shared)
}

async fn readyz(State(shared): State<Arc<Shared>>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let status = shared.replica.status();
    let checks = [
        ("founded", shared.replica.is_opened(&shared.replica.sys())),
        ("voter", status.voters.contains(&shared.replica.node_id())),
        ("leader_known", status.leader_id != 0),
        ("log_whole", !status.recovering),
        ("state_sound", !shared.replica.is_fenced()),
        ("not_draining", !shared.draining.load(Ordering::Acquire)),
        ("applied", status.committed_index.saturating_sub(status.applied_index) < 10_000),
    ];
    let ready = checks.iter().all(|(_, fine)| *fine);
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if !query.contains_key("verbose") {
        return (code, if ready { "ok\n" } else { "not ready; see /readyz?verbose\n" }).into_response();
    }
    let mut text = String::new();
    for (name, fine) in checks {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "[{}] {name}", if fine { '+' } else { '-' });
    }
    (code, text).into_response()
}

/// One family in the Prometheus text format.
struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn new(out: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self { out, name }
    }

    fn value(&mut self, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.out, "{} {value}", self.name),
            labels => writeln!(self.out, "{}{{{labels}}} {value}", self.name),
        };
    }

    fn part(&mut self, suffix: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.out, "{}{suffix} {value}", self.name),
            labels => writeln!(self.out, "{}{suffix}{{{labels}}} {value}", self.name),
        };
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let mut out = String::new();
    raft_metrics(&mut out, &shared);
    integrity_metrics(&mut out, &shared);
    offsite_metrics(&mut out, &shared);
    survey_metrics(&mut out, &shared);
    storage_metrics(&mut out, &shared);
    call_metrics(&mut out, &shared.metrics);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], out).into_response()
}

fn raft_metrics(out: &mut String, shared: &Shared) {
    let status = shared.replica.status();
    let gauges = [
        ("holdfast_raft_has_leader", "1 when a leader is known.", u64::from(status.leader_id != 0)),
        ("holdfast_raft_is_leader", "1 when this node leads.", u64::from(status.is_leader)),
        ("holdfast_raft_term", "Current term.", status.term),
        ("holdfast_raft_last_log_index", "Last entry in the log.", status.last_log_index),
        ("holdfast_raft_committed_index", "Last entry known committed.", status.committed_index),
        ("holdfast_raft_applied_index", "Last entry applied.", status.applied_index),
        ("holdfast_raft_purged_index", "Log up to here is gone.", status.purged_index),
        ("holdfast_raft_recovering", "1 while the log is being filled up again.", u64::from(status.recovering)),
        (
            "holdfast_raft_proposals_inflight_bytes",
            "Bytes of proposals in flight.",
            shared.replica.admission().inflight_bytes() as u64,
        ),
    ];
    for (name, help, value) in gauges {
        Family::new(out, name, "gauge", help).value("", value);
    }
    let mut lag = Family::new(out, "holdfast_raft_replication_lag_entries", "gauge", "Entries a follower is behind.");
    for (peer, matched) in &status.matched {
        lag.value(&format!("peer=\"{peer}\""), status.last_log_index.saturating_sub(*matched));
    }
    let stats = shared.replica.log_stats();
    let mut fsync =
        Family::new(out, "holdfast_raft_log_fsync_duration_seconds", "histogram", "Duration of fsyncs of the log.");
    let mut total = 0;
    for (count, micros) in stats.fsync_buckets.iter().zip(FSYNC_BUCKETS_MICROS) {
        total += count;
        fsync.part("_bucket", &format!("le=\"{}\"", micros as f64 / 1e6), total);
    }
    fsync.part("_bucket", "le=\"+Inf\"", stats.fsyncs);
    fsync.part("_sum", "", stats.fsync_nanos_total as f64 / 1e9);
    fsync.part("_count", "", stats.fsyncs);
}

fn integrity_metrics(out: &mut String, shared: &Shared) {
    let known = shared.replica.integrity_status();
    for (name, help, value) in [
        (
            "holdfast_integrity_diverged",
            "1 while this node's state is known to be damaged; it is reinstalled from a peer.",
            u64::from(known.damage.is_some()),
        ),
        (
            "holdfast_integrity_doubt",
            "1 while replicas differ and none is proved right.",
            u64::from(known.doubt.is_some()),
        ),
        ("holdfast_integrity_fenced", "1 while this node neither leads nor serves.", u64::from(known.fenced)),
        (
            "holdfast_integrity_examined_index",
            "Index at which all rows were last read; 0 = not yet.",
            known.examined.map_or(0, |(index, _)| index),
        ),
        (
            "holdfast_integrity_unread",
            "1 while the last reading of all rows came to nothing; it is tried again.",
            u64::from(known.unread.is_some()),
        ),
    ] {
        Family::new(out, name, "gauge", help).value("", value);
    }
    for (name, help, value) in [
        ("holdfast_integrity_failures_total", "Times that damage or doubt was found.", known.failures_total),
        ("holdfast_integrity_reinstalls_total", "Times that the state was reinstalled.", known.reinstalls_total),
        ("holdfast_integrity_unread_total", "Times that a reading of all rows came to nothing.", known.unread_total),
    ] {
        Family::new(out, name, "counter", help).value("", value);
    }
}

fn offsite_metrics(out: &mut String, shared: &Shared) {
    let applied = shared.replica.state().applied().index();
    let mut lag =
        Family::new(out, "holdfast_offsite_lag_entries", "gauge", "Applied entries not known at a destination.");
    for destination in shared.shipper.destinations() {
        let index = shared.shipper.reach(&destination.name).durable;
        lag.value(&format!("dest=\"{}\"", label_value(&destination.name)), applied.saturating_sub(index));
    }
    let outbox = shared.replica.outbox();
    for (name, help, value) in [
        ("holdfast_outbox_bytes", "Bytes of the log that a required destination does not hold.", outbox.bytes),
        ("holdfast_outbox_bytes_max", "So many of them may wait (ship.outbox_bytes).", outbox.bytes_max),
        (
            "holdfast_outbox_forgot",
            "1 while this node's log lacks entries that a required destination lacks, too.",
            u64::from(outbox.forgot),
        ),
    ] {
        Family::new(out, name, "gauge", help).value("", value);
    }
}

/// What those found who read copies.
fn proof_metrics(out: &mut String, status: &v1::GetStatusResponse) {
    let destinations = status.destinations.iter().map(|one| (&one.name, one.proof.as_ref()));
    let vaults = status.vaults.iter().map(|one| (&one.name, one.proof.as_ref()));
    let proofs: Vec<(String, &v1::CopyProof)> = destinations
        .chain(vaults)
        .filter_map(|(name, proof)| Some((format!("dest=\"{}\"", label_value(name)), proof?)))
        .collect();
    let seconds = |of: &Option<v1::CopyVerification>| {
        of.as_ref().and_then(|one| one.age.as_ref()).map(|age| duration_millis(age) as f64 / 1000.0)
    };
    type Of = fn(&v1::CopyProof) -> &Option<v1::CopyVerification>;
    let ages: [(&str, &str, Of); 2] = [
        (
            "holdfast_verified_age_seconds",
            "Since a copy was last found good, against what a majority of the voters signed; missing = never.",
            |proof| &proof.proved,
        ),
        ("holdfast_drill_age_seconds", "Since the last drill that went well; missing = never.", |proof| &proof.drilled),
    ];
    for (name, help, of) in ages {
        let mut family = Family::new(out, name, "gauge", help);
        for (dest, proof) in &proofs {
            if let Some(age) = seconds(of(proof)) {
                family.value(dest, age);
            }
        }
    }
    let mut failed = Family::new(
        out,
        "holdfast_verification_failed",
        "gauge",
        "1 while the last verification or drill of a copy found it bad.",
    );
    proofs.iter().for_each(|(dest, proof)| failed.value(dest, u8::from(proof.failed.is_some())));
    let drilled = || proofs.iter().filter_map(|(dest, proof)| Some((dest, proof.drilled.as_ref()?)));
    let mut success = Family::new(
        out,
        "holdfast_restore_drill_last_success_timestamp_seconds",
        "gauge",
        "When the last drill that went well ended, by the verifier's clock.",
    );
    for (dest, drill) in drilled() {
        success.value(dest, drill.end_time.as_ref().map_or(0, |end| end.seconds));
    }
    let mut duration = Family::new(
        out,
        "holdfast_restore_drill_duration_seconds",
        "gauge",
        "How long the restore took in the last drill that went well.",
    );
    for (dest, drill) in drilled() {
        duration.value(dest, drill.restore_duration.as_ref().map_or(0.0, |took| duration_millis(took) as f64 / 1000.0));
    }
}

/// What the survey says, on the leader alone: no other node knows enough.
fn survey_metrics(out: &mut String, shared: &Shared) {
    if !shared.replica.is_leader() {
        return;
    }
    let statuses = [shared.status()];
    let answers = Answers { statuses: &statuses, asked_all: false };
    let (facts, limits) = (answers.facts(), answers.limits());
    let mut lag = Family::new(
        out,
        "holdfast_offsite_lag_seconds",
        "gauge",
        "Age of the oldest entry not offsite; missing = not known.",
    );
    for (copy, lag_ms) in facts.copies.iter().filter_map(|copy| Some((copy, copy.lag_ms?))) {
        let dest = label_value(&copy.id.to_string());
        lag.value(&format!("dest=\"{dest}\""), lag_ms as f64 / 1000.0);
    }
    let mut index =
        Family::new(out, "holdfast_copy_verified_index", "gauge", "Every entry up to here is durable there.");
    for copy in facts.copies.iter().filter(|copy| copy.index.is_some()) {
        let labels = format!("copy=\"{}\",kind=\"{}\"", label_value(&copy.id.to_string()), copy.kind);
        index.value(&labels, copy.index.unwrap_or(0));
    }
    proof_metrics(out, &statuses[0]);
    let keys = Keys::of(&facts, limits.placement_keys.iter().map(String::as_str));
    let survivals: Vec<_> =
        scenarios(&facts, &keys).into_iter().map(|domain| survive(&facts, std::slice::from_ref(&domain))).collect();
    let scenario = |survival: &Survival| {
        let lost = survival.lost.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        format!("scenario=\"{}\"", label_value(&lost))
    };
    let mut writes =
        Family::new(out, "holdfast_survive_writes", "gauge", "1 when writes would go on without this domain.");
    for survival in &survivals {
        writes.value(&scenario(survival), u8::from(survival.writes == Answer::Yes));
    }
    let mut loss = Family::new(
        out,
        "holdfast_survive_loss_entries",
        "gauge",
        "Acknowledged entries that would be gone with this domain; missing = not known.",
    );
    for survival in &survivals {
        let entries = match survival.loss {
            Loss::Entries(count) | Loss::Heard(count) | Loss::AtMost(count) => Some(count),
            Loss::Everything => facts.commit_index,
            Loss::Unknown => None,
        };
        if let Some(entries) = entries {
            loss.value(&scenario(survival), entries);
        }
    }
    let mut health = Family::new(out, "holdfast_health_check", "gauge", "Conditions that are not fine, by severity.");
    let mut counts: BTreeMap<(CheckId, &str), u64> = BTreeMap::new();
    for check in checks(&facts, &limits) {
        let severity = match check.severity {
            Severity::Warning => "warning",
            Severity::Unknown => "unknown",
            Severity::Error => "error",
        };
        *counts.entry((check.id, severity)).or_default() += 1;
    }
    for ((id, severity), count) in counts {
        health.value(&format!("check=\"{id}\",severity=\"{severity}\""), count);
    }
}

/// A label's value may hold none of these as it is.
fn label_value(text: &str) -> String {
    text.replace(['"', '\\', '\n'], "_")
}

fn storage_metrics(out: &mut String, shared: &Shared) {
    let sys = shared.replica.sys();
    let stats = shared.replica.state().stats();
    if let Ok(space) = Space::of(&shared.config.data_dir) {
        Family::new(
            out,
            "holdfast_storage_free_bytes",
            "gauge",
            "Bytes left on the file system of the data directory.",
        )
        .value("", space.free);
        Family::new(out, "holdfast_storage_size_bytes", "gauge", "Size of that file system, without what is reserved.")
            .value("", space.used + space.free);
    }
    let disk = shared.replica.disk();
    Family::new(
        out,
        "holdfast_storage_refusing",
        "gauge",
        "0: there is room; 1: nearly full, this node's disk takes nothing that adds data; 2: full, it takes no entries.",
    )
    .value("", disk.level as u8);
    Family::new(out, "holdfast_storage_headroom_bytes", "gauge", "With less left, the disk counts as nearly full.")
        .value("", disk.headroom);
    for (name, help, value) in [
        ("holdfast_storage_used_bytes", "Table and blob files of the state.", stats.table_bytes + stats.blob_bytes),
        ("holdfast_storage_block_cache_bytes", "Blocks of the state's tables in memory.", stats.cache_bytes),
        ("holdfast_users", "Users.", sys.totals.users),
        ("holdfast_records", "Live records.", sys.totals.records),
        ("holdfast_record_bytes", "Payload bytes of live records.", sys.totals.bytes),
    ] {
        Family::new(out, name, "gauge", help).value("", value);
    }
    let mut memtables =
        Family::new(out, "holdfast_storage_memtable_bytes", "gauge", "Memory that waits to be written.");
    memtables.value("db=\"state\"", stats.memtable_bytes);
    memtables.value("db=\"log\"", shared.replica.log_stats().unsynced_bytes);
}

fn call_metrics(out: &mut String, metrics: &Metrics) {
    let calls = metrics.calls.lock().unwrap_or_else(PoisonError::into_inner);
    let mut family =
        Family::new(out, "holdfast_grpc_server_handling_seconds", "histogram", "Duration of calls by method and code.");
    for ((method, code), histogram) in calls.iter() {
        let labels = format!("method=\"{method}\",code=\"{code}\"");
        for (count, bound) in histogram.buckets.iter().zip(CALL_BUCKETS_SECONDS) {
            family.part("_bucket", &format!("{labels},le=\"{bound}\""), count);
        }
        family.part("_bucket", &format!("{labels},le=\"+Inf\""), histogram.count);
        family.part("_sum", &labels, histogram.sum.as_secs_f64());
        family.part("_count", &labels, histogram.count);
    }
    drop(calls);
    let rejected = metrics.rejected.lock().unwrap_or_else(PoisonError::into_inner);
    let mut family =
        Family::new(out, "holdfast_admission_rejected_total", "counter", "Calls refused before proposing.");
    for (reason, count) in rejected.iter() {
        family.value(&format!("reason=\"{reason}\""), count);
    }
}
