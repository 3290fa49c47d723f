//! `holdfast backup`: take, list and verify offsite copies.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use holdfast_archive::log::{ListedSegment, list_joined, list_log, read_segment};
use holdfast_archive::snapshot::read_manifest;
use holdfast_archive::verify::{DestinationReport, Level};
use holdfast_archive::{
    ArchiveError, Depth, Destination, DestinationConfig, Fence, Keyring, LineageFacts, LineageId, ObjectName,
    Verification, VerifierKey, VerifyReport, find_lineages, list_snapshots, newest_heartbeat, verify_all,
};
use holdfast_client::AdminClient;
use holdfast_model::id::GroupId;
use serde::Serialize;

use crate::cli::host_port;
use crate::clock;
use crate::commands::connect::AdminArgs;
use crate::commands::drill::{NOT_OPENED, VaultName, hand_over};
use crate::commands::verifier::VerifierArgs;
use crate::exit::{Exit, exit_of, failure};
use crate::output::{self, Format, Table};
use crate::progress;

const POLL: Duration = Duration::from_millis(100);
/// The one Raft group there is for now.
pub const GROUP: GroupId = GroupId(0);

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Have a follower take a snapshot and ship it to every destination; ends when it is at every required one.
    Now(NowArgs),
    /// List what an archive holds, from the archive alone.
    Ls(FromArgs),
    /// Read an archive and check every hash and chain in it.
    Verify(VerifyArgs),
    /// Try, with the cluster's own credentials, to alter or delete what lies at a destination.
    Doctor(super::doctor::DoctorArgs),
    /// Keep the newest snapshots of hours, days, weeks, months and years; mark the others, and delete what was marked before.
    Prune(Box<super::prune::PruneArgs>),
    /// Encrypt what is shipped: make secrets and identities, say for whom, go on with new keys, prove an offline one.
    #[command(subcommand)]
    Keys(super::keys::Keys),
}

/// Flags of `now`.
#[derive(Debug, clap::Args)]
pub struct NowArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Give up waiting after this many seconds; the backup goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    wait: u64,
}

/// Which archive.
#[derive(Debug, clap::Args)]
pub struct FromArgs {
    /// Where the archive is: file:///mnt/vault/holdfast, s3://bucket/prefix?endpoint=https://host:port&region=…,
    /// gs://bucket/prefix, az://container/prefix?account=…
    #[arg(long, value_name = "URL")]
    pub from: String,
    /// File with the bucket's credentials [default: from the environment, AWS_ACCESS_KEY_ID and so on].
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// What opens an archive that is encrypted; one of the two is enough.
#[derive(Debug, clap::Args)]
pub struct KeyArgs {
    /// File with the identity of a recipient, as `backup keys identity` and `age-keygen` write it.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// File with the cluster's secret, as its nodes have it.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

impl KeyArgs {
    /// Reads them.
    pub fn read(&self) -> Result<Arc<Keyring>, ArchiveError> {
        Keyring::from_files(self.key_file.as_deref(), self.identity.as_deref()).map(Arc::new)
    }
}

impl FromArgs {
    /// Opens it.
    pub fn open(&self) -> anyhow::Result<Destination> {
        let config = DestinationConfig::from_url(&self.from).with_credentials(self.credentials.clone());
        Ok(Destination::open(&config)?.with_keys(self.keys.read()?))
    }
}

/// Flags of `verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    from: FromArgs,
    /// 0, stored: names, lengths and manifests; no chunk and no segment is read. 1, read: every byte, hash and chain. 2, proved:
    /// and a majority of the voters signed the newest snapshot. (The next level is `drill run`.)
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    level: u8,
    /// Lay what is found down beside the archive, signed, where the cluster and `drill ls` look for it.
    #[arg(long)]
    record: bool,
    /// Admin addresses of the cluster: it is told of what is found in a vault.
    #[arg(long = "endpoint", value_name = "HOST:PORT[,…]", value_delimiter = ',', value_parser = host_port, requires = "vault")]
    endpoints: Vec<String>,
    /// The destination, by its name in the configuration of the nodes, beside which that is laid down; where they have several.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, requires = "vault")]
    destination: String,
    #[command(flatten)]
    vault: VaultName,
    #[command(flatten)]
    verifier: VerifierArgs,
    /// As --level 0.
    #[arg(long, hide = true, conflicts_with = "level")]
    quick: bool,
}

impl VerifyArgs {
    fn level(&self) -> Level {
        if self.depth() == Depth::Stored { Level::Presence } else { Level::Bytes }
    }

    fn depth(&self) -> Depth {
        match self.level {
            _ if self.quick => Depth::Stored,
            0 => Depth::Stored,
            1 => Depth::Read,
            _ => Depth::Proved,
        }
    }
}

/// Runs a command.
pub async fn run(format: Format, command: Backup) -> anyhow::Result<Exit> {
    match command {
        Backup::Now(args) => now(format, &args).await,
        Backup::Ls(args) => list(format, &args).await,
        Backup::Verify(args) => verify(format, &args).await,
        Backup::Doctor(args) => super::doctor::run(format, &args).await,
        Backup::Prune(args) => super::prune::run(format, &args).await,
        Backup::Keys(command) => super::keys::run(format, command).await,
    }
}

async fn now(format: Format, args: &NowArgs) -> anyhow::Result<Exit> {
    let (admin, wait) = (args.admin.snapshot_taker().await?, Duration::from_secs(args.wait));
    let failures_before = failures(&admin).await;
    let taken = match take(&admin, wait).await {
        // The others contradicted it, and it says so of itself, or is mended by now: a snapshot is taken once more.
        Err(error) if exit_of(&error) != Exit::Unknown && failures(&admin).await > failures_before => {
            eprintln!("holdfast: {error}; it is taken once more");
            take(&args.admin.snapshot_taker().await?, wait).await?
        }
        taken => taken?,
    };
    let Taken { operation_id, told } = taken;
    let value = serde_json::json!({"v": 1, "operation_id": operation_id, "done": true, "told": told});
    output::answer(format, &value, || format!("the backup is complete and was read back: {told}"))?;
    Ok(Exit::Ok)
}

/// Times that the node found its state damaged since it started.
async fn failures(admin: &AdminClient) -> u64 {
    let integrity = admin.status().await.ok().and_then(|status| status.integrity);
    integrity.map_or(0, |known| known.failures_total)
}

/// A backup that is complete.
#[derive(Debug)]
pub struct Taken {
    operation_id: String,
    /// What became of it, for people.
    told: String,
}

/// Takes a backup and waits for its end.
pub async fn take(admin: &AdminClient, wait: Duration) -> anyhow::Result<Taken> {
    let operation_id = admin.create_backup().await?;
    let bar = progress::bar(0, "backup");
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let state = admin.operation(&operation_id).await?;
        bar.set_length(state.total_units);
        bar.set_position(state.done_units);
        bar.set_message(state.stage.clone());
        if state.done {
            bar.finish_and_clear();
            if state.error_message.is_empty() {
                return Ok(Taken { operation_id, told: state.stage });
            }
            anyhow::bail!("the backup failed: {}", state.error_message);
        }
        if tokio::time::Instant::now() >= deadline {
            bar.finish_and_clear();
            let message = format!("backup {operation_id} is not complete yet; it goes on, see `holdfast backup ls`");
            return Err(failure(Exit::Unknown, message));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[derive(Debug, Serialize)]
struct LineageAnswer {
    lineage: String,
    cluster_name: String,
    epoch: u16,
    parent: Option<String>,
    fork_index: Option<u64>,
    snapshots: Vec<SnapshotAnswer>,
    log_segments: u64,
    log_joined: u64,
    log_bytes: u64,
    /// Last entry of the log; null = there is none, or the newest segment does not open.
    log_last_index: Option<u64>,
    /// Nothing is missing that was acknowledged before this moment: the newest write in the log, or a heartbeat after it; null =
    /// not known.
    complete_time: Option<String>,
    /// A recovery ended the log before this index.
    fenced_at: Option<u64>,
    /// The history that goes on.
    successor: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct SnapshotAnswer {
    index: u64,
    object: String,
    time: String,
    users: u64,
    records: u64,
    /// Chunks that its rows make.
    chunks: usize,
    /// Layers of patches over its base; 0 = all of it was shipped with it.
    layers: usize,
    /// A majority of the voters found the same rows, each in a checkpoint of its own.
    attested: bool,
    /// Replicas that signed for it.
    attested_by: Vec<u64>,
    /// Voters at its index.
    voters: Vec<u64>,
    /// Stored bytes that a restore of it reads, those that it shares with other snapshots among them.
    bytes: u64,
    /// It is encrypted, and nothing that was given opens it: of all this only its index is known.
    locked: bool,
}

/// An object that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadObject {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
}

impl SnapshotAnswer {
    /// Its line in a table.
    fn row(&self) -> [String; 7] {
        let index = format!("  {}", self.index);
        if self.locked {
            let [a, b, c, d, e] = std::array::from_fn(|_| "-".to_owned());
            return [index, "encrypted".to_owned(), a, b, c, d, e];
        }
        let (users, records, chunks) = (self.users, self.records, self.chunks);
        let [users, records, chunks] = [users, records, chunks as u64].map(|number| number.to_string());
        // Learners may sign, too.
        let signed = self.voters.iter().filter(|id| self.attested_by.contains(id)).count();
        let voters = self.voters.len();
        let attested = if self.attested { format!("{signed} of {voters}") } else { "unattested".to_owned() };
        [index, self.time.clone(), users, records, chunks, output::bytes(self.bytes), attested]
    }
}

impl From<&(String, String)> for BadObject {
    fn from((object, reason): &(String, String)) -> Self {
        Self { object: object.clone(), reason: reason.clone() }
    }
}

async fn list(format: Format, args: &FromArgs) -> anyhow::Result<Exit> {
    let destination = args.open()?;
    let found = find_lineages(&destination).await?;
    let bad = found.bad.iter().filter_map(|(_, error)| error.fault());
    let mut bad: Vec<BadObject> = bad.map(|bad| BadObject::from(&bad)).collect();
    let mut lineages = Vec::new();
    for facts in &found.lineages {
        lineages.push(lineage(&destination, facts, &mut bad).await?);
    }
    match format {
        Format::Table => print_list(&args.from, &lineages, &bad)?,
        Format::Json => {
            output::object(&serde_json::json!({"v": 1, "from": args.from, "lineages": lineages, "bad": bad}))?;
        }
        Format::Jsonl => {
            lineages.iter().try_for_each(output::line)?;
            bad.iter().try_for_each(|bad| output::line(&serde_json::json!({"bad": bad})))?;
        }
    }
    let is_locked = lineages.iter().flat_map(|one| &one.snapshots).any(|snapshot| snapshot.locked);
    Ok(match (bad.is_empty(), lineages.is_empty()) {
        (false, _) => Exit::Integrity,
        (true, true) => Exit::NotFound,
        (true, false) if is_locked => Exit::Partial,
        (true, false) => Exit::Ok,
    })
}

/// What is damaged goes to `bad`; the rest is told.
async fn lineage(
    destination: &Destination,
    facts: &LineageFacts,
    bad: &mut Vec<BadObject>,
) -> anyhow::Result<LineageAnswer> {
    let mut snapshots = Vec::new();
    for found in list_snapshots(destination, &facts.id, GROUP).await? {
        let manifest = match read_manifest(destination, &facts.id, GROUP, found.index).await {
            Ok((manifest, _)) => manifest,
            Err(ArchiveError::NoKey { .. }) => {
                let (index, object) = (found.index, found.object);
                snapshots.push(SnapshotAnswer { index, object, locked: true, ..Default::default() });
                continue;
            }
            Err(error) => {
                bad.push(BadObject::from(&error.fault().ok_or(error)?));
                continue;
            }
        };
        snapshots.push(SnapshotAnswer {
            index: found.index,
            object: found.object,
            time: clock::rfc3339(manifest.now.0),
            users: manifest.users,
            records: manifest.records,
            chunks: manifest.chunk_count(),
            layers: manifest.layers.len(),
            attested: manifest.is_attested(),
            attested_by: manifest.witnesses.iter().map(|witness| witness.node.0).collect(),
            voters: manifest.voters().iter().map(|node| node.0).collect(),
            bytes: manifest.stored_length(),
            locked: false,
        });
    }
    let LogEnd { segments, fence, last, complete_ms } = end_of(destination, &facts.id, bad).await?;
    Ok(LineageAnswer {
        lineage: facts.id.to_string(),
        cluster_name: facts.cluster_name.clone(),
        epoch: facts.epoch,
        parent: facts.parent_id().map(|parent| parent.to_string()),
        fork_index: facts.parent.as_ref().map(|parent| parent.index),
        snapshots,
        log_segments: segments.len() as u64,
        log_joined: list_joined(destination, &facts.id, GROUP).await?.len() as u64,
        log_bytes: segments.iter().map(|segment| segment.bytes).sum(),
        log_last_index: last,
        complete_time: complete_ms.map(clock::rfc3339),
        fenced_at: fence.map(|fence| fence.index),
        successor: fence.map(|fence| fence.successor.to_string()),
    })
}

/// How a history's log ends.
struct LogEnd {
    segments: Vec<ListedSegment>,
    fence: Option<Fence>,
    /// Last entry; `None` = there is none, or the newest segment does not open.
    last: Option<u64>,
    /// Nothing is missing that was acknowledged before this moment; `None` = not known.
    complete_ms: Option<u64>,
}

async fn end_of(destination: &Destination, lineage: &LineageId, bad: &mut Vec<BadObject>) -> anyhow::Result<LogEnd> {
    // Before the log is listed: what it vouches for is there then, and lists only grow.
    let heartbeat = match newest_heartbeat(destination, lineage, GROUP).await {
        Err(ArchiveError::NoKey { .. }) => None,
        heartbeat => heartbeat?,
    };
    let (segments, fence) = list_log(destination, lineage, GROUP).await?;
    let mut end = LogEnd { segments, fence, last: None, complete_ms: None };
    let Some(newest) = end.segments.last() else { return Ok(end) };
    match read_segment(destination, lineage, GROUP, newest.first).await {
        Ok(segment) => {
            let last = segment.last().index;
            end.last = Some(last);
            match heartbeat.map(|heartbeat| heartbeat.check_end(lineage, last).map(|()| heartbeat.at.0)).transpose() {
                Ok(at) => {
                    end.complete_ms =
                        Some(segment.stamp_ms.max(at.unwrap_or(0))).filter(|complete_ms| *complete_ms > 0);
                }
                Err(error) => bad.push(BadObject::from(&error.fault().ok_or(error)?)),
            }
        }
        Err(ArchiveError::NoKey { .. }) => {}
        Err(error) => bad.push(BadObject::from(&error.fault().ok_or(error)?)),
    }
    Ok(end)
}

fn print_list(from: &str, lineages: &[LineageAnswer], bad: &[BadObject]) -> anyhow::Result<()> {
    bad.iter().try_for_each(|bad| output::text(format!("bad: {}: {}", bad.object, bad.reason)))?;
    if lineages.is_empty() && bad.is_empty() {
        output::text(format!("{from} holds no backup"))?;
    }
    for one in lineages {
        let continues = match (&one.parent, one.fork_index) {
            (Some(parent), Some(index)) => format!(", continues {parent} from index {index}"),
            _ => String::new(),
        };
        output::text(format!("cluster {}, lineage {}{continues}", one.cluster_name, one.lineage))?;
        let complete = one.complete_time.as_ref().map(|time| format!(", complete up to {time}")).unwrap_or_default();
        output::text(format!("  log: {} segments, {}{complete}", one.log_segments, output::bytes(one.log_bytes)))?;
        if let (Some(index), Some(successor)) = (one.fenced_at, &one.successor) {
            output::text(format!("  ended before index {index} by a recovery; {successor} goes on"))?;
        }
        let mut table = Table::new(&["  snapshot", "time", "users", "records", "chunks", "size", "attested"]);
        for snapshot in &one.snapshots {
            table.row(snapshot.row());
        }
        if !table.is_empty() {
            table.print()?;
        }
    }
    Ok(())
}

/// No majority vouches for the newest snapshot of a history.
fn unproved((lineage, report): &(LineageId, VerifyReport)) -> Option<(String, String)> {
    let newest = report.snapshots.get(&GROUP)?.last().filter(|newest| !newest.is_attested)?;
    let object = ObjectName::Manifest { group: GROUP, index: newest.index }.path(lineage);
    Some((object, UNATTESTED.to_owned()))
}

/// Why a snapshot does not count.
pub const UNATTESTED: &str = "no majority of the voters vouches for it: `holdfast backup now` takes another";

/// Lays down what was found of each history; gives the names.
async fn record(
    destination: &Destination,
    args: &VerifyArgs,
    began_ms: u64,
    report: &DestinationReport,
    key: &VerifierKey,
) -> anyhow::Result<Vec<String>> {
    let level = args.depth();
    let ended_ms = clock::unix_ms(SystemTime::now()).max(began_ms);
    let mut recorded = Vec::new();
    for (lineage, of) in &report.each {
        let mut found = Verification::new(lineage, GROUP, level, began_ms);
        found.ended_ms = ended_ms;
        found.take(of);
        let prefix = format!("{lineage}/");
        let of_it = report.bad.iter().filter(|(object, _)| object.starts_with(&prefix));
        of_it.for_each(|(object, reason)| found.fault(object, reason));
        if of.locked > 0 && level > Depth::Stored {
            found.fault(lineage.to_string(), format!("{} objects: {NOT_OPENED}", of.locked));
        }
        recorded.push(found.record(destination, lineage, key).await?);
        if let Some(vault) = &args.vault.vault {
            // Of the history that the cluster is in it takes one, of older ones too: each beside its own.
            found.vault = Some(vault.clone());
            hand_over(&args.endpoints, &args.destination, destination, &found, lineage, key).await?;
        }
    }
    Ok(recorded)
}

async fn verify(format: Format, args: &VerifyArgs) -> anyhow::Result<Exit> {
    let destination = args.from.open()?;
    let key = if args.record { Some(args.verifier.key()?) } else { None };
    let began_ms = clock::unix_ms(SystemTime::now());
    let mut report = verify_all(&destination, args.level()).await?;
    if args.depth() >= Depth::Proved {
        // Of a history that another one continues nobody can take another.
        let continued: Vec<LineageId> = report.each.iter().filter_map(|(_, of)| of.parent).collect();
        let goes_on = report.each.iter().filter(|(id, _)| !continued.contains(id));
        let unproved: Vec<(String, String)> = goes_on.filter_map(unproved).collect();
        report.bad.extend(unproved);
    }
    let recorded = match &key {
        Some(key) => record(&destination, args, began_ms, &report, key).await?,
        None => Vec::new(),
    };
    let bad: Vec<BadObject> = report.bad.iter().map(BadObject::from).collect();
    let gaps = report.gaps.iter().map(|(lineage, gap)| {
        serde_json::json!({
            "lineage": lineage.to_string(), "first_index": gap.first, "last_index": gap.last.index,
        })
    });
    let value = serde_json::json!({
        "v": 1, "from": args.from.from, "lineages": report.lineages, "objects": report.objects, "bytes": report.bytes,
        "locked": report.locked, "bad": bad, "gaps": gaps.collect::<Vec<_>>(), "repaired": report.repaired,
        "attested": report.attested, "unattested": report.unattested, "level": args.depth(), "recorded": recorded,
    });
    output::answer(format, &value, || {
        let (objects, bytes) = (report.objects, output::bytes(report.bytes));
        let looked = format!("{objects} objects looked at, {bytes} read, {} bad", bad.len());
        let locked = match report.locked {
            0 => String::new(),
            some => format!(
                "\n{some} of them are encrypted and were not opened: give --identity or --key-file to check what they hold"
            ),
        };
        let faults = bad.iter().map(|bad| format!("{}: {}\n", bad.object, bad.reason));
        let repaired =
            report.repaired.iter().map(|object| format!("{object}: damaged; its repair beside it is good\n"));
        let gaps = report.gaps.iter().map(|(lineage, gap)| {
            let (first, last) = (gap.first, gap.last.index);
            format!("{lineage}: entries {first} to {last} were never shipped here; snapshots from {last} on stand in for them\n")
        });
        let unattested = match report.unattested {
            0 => String::new(),
            some => format!("\nno majority of the voters vouches for {some} of {} snapshots", some + report.attested),
        };
        faults.chain(repaired).chain(gaps).collect::<String>() + &looked + &locked + &unattested
    })?;
    Ok(match (report.lineages, bad.is_empty()) {
        (0, _) => Exit::NotFound,
        (_, true) if report.locked > 0 => Exit::Partial,
        (_, true) => Exit::Ok,
        (_, false) => Exit::Integrity,
    })
}
