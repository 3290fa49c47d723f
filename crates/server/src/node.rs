//! One node, from configuration to the end of its drain.
//!
//! Order: listeners are bound before any store is opened (a port in use costs nothing), the replica starts before
//! anything is served, and at the end callers go before peers.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_archive::{ArchiveError, Keyring, NodeKey, ReadLimit, marker};
use holdfast_model::id::GroupId;
use holdfast_model::limits::MESSAGE_BYTES_MAX;
use holdfast_replica::{Hooks, IntegrityOptions, Member, Options, OutboxOptions, Replica, StartError};
use holdfast_store::{DataDir, StoreError};
use holdfast_wire::PUBLIC_DESCRIPTOR;
use holdfast_wire::v1::admin_service_server::AdminServiceServer;
use holdfast_wire::v1::record_service_server::RecordServiceServer;
use holdfast_wire::v1::sync_service_server::SyncServiceServer;
use holdfast_wire::v1::user_service_server::UserServiceServer;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, watch};
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tower::layer::util::{Identity, Stack};

use crate::config::Config;
use crate::feed::Feed;
use crate::grpc::{Admin, Edge, Records, Shared, Sync, Users};
use crate::http::Metrics;
use crate::members;
use crate::restored;
use crate::shipper::{Attestor, Barriers, Encryption, Pace, Shipper, Verifiers};

/// Log cache of a node.
const LOG_CACHE_BYTES_MAX: usize = 64 << 20;

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener.
    #[error(
        "cannot listen on {key} = {address}: {source}; stop what uses the port or choose another with --set {key}=…"
    )]
    Listen {
        /// Configuration key.
        key: &'static str,
        /// Address.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The mark of a restore.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Consensus.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A wiped or replaced disk under a known id.
    #[error(
        "the cluster knows node {node} under another data directory than {dir}; was its disk replaced? What it had \
         acknowledged is not here, so it takes no part. Give it its old directory back, or start this disk under a new \
         id and run: holdfast node replace {node} --with HOST:ADMIN-PORT"
    )]
    Displaced {
        /// Its id.
        node: u64,
        /// Its directory.
        dir: String,
    },
    /// A recovery ended the history that this node serves.
    #[error(transparent)]
    Fenced(Arc<ArchiveError>),
    /// The operating system.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl RunError {
    /// Exit code: 1 error, 2 a wrong key file, 3 a directory that must not be opened, 8 held by another process, 9 damaged data.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) | Self::Start(StartError::Store(error)) => match error {
                StoreError::Corrupt { .. } => 9,
                StoreError::Mismatch { .. } => 3,
                StoreError::Locked { .. } => 8,
                _ => 1,
            },
            Self::Archive(ArchiveError::Keys { .. }) => 2,
            Self::Archive(error) if error.is_integrity() => 9,
            Self::Archive(_) | Self::Displaced { .. } | Self::Fenced(_) => 3,
            Self::Start(StartError::Raft(_)) | Self::Listen { .. } | Self::System { .. } => 1,
        }
    }
}

struct Listeners {
    client: StdListener,
    peer: StdListener,
    admin: StdListener,
    http: StdListener,
}

fn bind(key: &'static str, address: &str) -> Result<StdListener, RunError> {
    let fail = |source| RunError::Listen { key, address: address.to_owned(), source };
    let listener = StdListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(listener)
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, RunError> {
        Ok(Self {
            client: bind("listen.client", &config.listen.client)?,
            peer: bind("listen.peer", &config.listen.peer)?,
            admin: bind("listen.admin", &config.listen.admin)?,
            http: bind("listen.http", &config.listen.http)?,
        })
    }
}

/// Threads for calls, and for Raft. On two cores more than one of each costs more in wake-ups than it wins; on many, calls
/// can be spread over most of them, while Raft, which decides in one task, needs one more only for what peers ask.
fn workers(cores: usize) -> (usize, usize) {
    if cores <= 2 { (1, 1) } else { (cores.min(16) - 1, 2) }
}

fn runtime(name: &str, workers: usize) -> Result<Runtime, RunError> {
    Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|source| RunError::System { action: "start threads", source })
}

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// Why it did not start. A fatal error later aborts the process.
pub fn run(config: Config) -> Result<(), RunError> {
    crate::telemetry::init(&config.log_filter);
    // Raft has threads of its own: a burst of calls must not delay its heartbeats.
    let (serve_workers, raft_workers) = workers(std::thread::available_parallelism().map_or(2, usize::from));
    let raft_runtime = runtime("raft", raft_workers)?;
    let runtime = runtime("serve", serve_workers)?;
    let listeners = Listeners::bind(&config)?;
    let (mut identity, mut seed) = ([0; 16], [0; 32]);
    let filled = getrandom::fill(&mut identity).and_then(|()| getrandom::fill(&mut seed));
    filled.map_err(|error| RunError::System {
        action: "get randomness",
        source: std::io::Error::other(error.to_string()),
    })?;
    let keys = Arc::new(Keyring::from_files(config.ship_key_file.as_deref(), None)?);
    let mark = marker::read(&config.data_dir)?;
    let opening = mark.as_ref().map(|mark| mark.opening(&config.data_dir)).transpose()?.map(|one| one.genesis.clone());
    let data = Arc::new(DataDir::open_or_create(&config.data_dir, config.node_id, identity)?);
    let members = match &opening {
        None => None,
        Some(_) => restored::read_members(&config.data_dir)
            .map_err(|source| RunError::System { action: "read MEMBERS of the restore", source })?,
    };
    tracing::info!(event = "node.starting", node = config.node_id, version = env!("CARGO_PKG_VERSION"), "starting");

    let feed = Arc::new(Feed::default());
    let barriers = Arc::new(Barriers::new(
        config.data_dir.join("snapshots").join("offsite"),
        config.data_dir.join("outbox").join("rows"),
    ));
    // A node without a key serves and votes as well as any other.
    let node_key = data.node_key(seed).inspect_err(|error| {
        tracing::error!(event = "attest.no_key", %error, "NODE_KEY is not usable: this node attests no snapshot");
    });
    let attestor = Attestor::new(node_key.ok().map(|seed| NodeKey::from_seed(&seed)));
    let options = Options {
        group: GroupId(0),
        heartbeat_ms: config.heartbeat_ms,
        election_min_ms: config.election_min_ms,
        election_max_ms: config.election_max_ms,
        snapshot_entries: config.snapshot_entries,
        snapshot_bytes: config.snapshot_bytes,
        keep_entries: config.keep_entries,
        keep_bytes: config.keep_bytes,
        floor_dir: config.floor_dir.clone(),
        headroom_bytes: config.headroom_bytes,
        floor_bytes: config.floor_bytes,
        inflight_bytes_max: usize::try_from(config.inflight_bytes_max).unwrap_or(usize::MAX),
        log_cache_bytes_max: LOG_CACHE_BYTES_MAX,
        policy: config.policy,
        outbox: OutboxOptions {
            required: config.offsite.iter().filter(|one| one.required).map(|one| one.name.clone()).collect(),
            bytes_max: config.ship_outbox_bytes,
            past: config.ship_past_outbox,
        },
        integrity: IntegrityOptions {
            interval: Duration::from_millis(config.integrity_interval_ms),
            scrub_bytes_per_second: config.scrub_bytes_per_second,
        },
        own: Some(Member {
            client_address: config.advertise.client.clone(),
            peer_address: config.advertise.peer.clone(),
            admin_address: config.advertise.admin.clone(),
            http_address: config.advertise.http.clone(),
            labels: config.labels.clone(),
            identity: String::new(),
        }),
        opening,
        members,
    };
    let displaced = Arc::new(Notify::new());
    let replica = raft_runtime.block_on(Replica::start(data, options, hooks(&feed, &barriers, &displaced)))?;
    let shipper = Shipper::new(
        replica.clone(),
        config.offsite.clone(),
        Pace {
            interval: Duration::from_millis(config.ship_interval_ms),
            segment_bytes: usize::try_from(config.ship_segment_bytes).unwrap_or(usize::MAX),
            snapshot: ReadLimit::bytes_per_second(config.ship_snapshot_bytes_per_second),
            heartbeat: Duration::from_millis(config.ship_heartbeat_ms),
            join: (config.ship_join_interval_ms > 0).then(|| Duration::from_millis(config.ship_join_interval_ms)),
        },
        (
            Encryption { keys, compression: config.ship_compression },
            Verifiers { keys: config.verify_keys.clone(), poll: Duration::from_millis(config.verify_poll_ms) },
        ),
        barriers,
        attestor,
    );
    let reads_max = config.reads_max;
    let shared = Arc::new(Shared {
        replica,
        feed,
        shipper,
        config,
        metrics: Arc::new(Metrics::default()),
        draining: AtomicBool::new(false),
        answered: AtomicU64::new(0),
        reads: Semaphore::new(reads_max),
    });
    let result = runtime.block_on(serve(shared.clone(), listeners, &raft_runtime, &displaced));
    raft_runtime.block_on(shared.replica.shutdown());
    runtime.shutdown_timeout(Duration::from_secs(1));
    raft_runtime.shutdown_timeout(Duration::from_secs(1));
    tracing::info!(event = "node.stopped", "stopped");
    result
}

fn hooks(feed: &Arc<Feed>, barriers: &Arc<Barriers>, displaced: &Arc<Notify>) -> Hooks {
    let (touched, installed, barriers, displaced) = (feed.clone(), feed.clone(), barriers.clone(), displaced.clone());
    Hooks {
        on_displaced: Box::new(move || displaced.notify_one()),
        on_touched: Box::new(move |users| touched.touched(users)),
        on_barrier: Box::new(move |index, state| barriers.reached(index, state)),
        on_installed: Box::new(move || installed.wake_all()),
        on_fatal: Arc::new(|reason| {
            tracing::error!(event = "node.fatal", reason, "the node cannot go on and aborts");
            eprintln!(
                "holdfast: fatal: {reason}; the node aborts. Start it again: it rejoins from its peers, or says what stands in the way."
            );
            std::process::abort();
        }),
    }
}

fn listener(listener: StdListener) -> Result<TcpListener, RunError> {
    TcpListener::from_std(listener).map_err(|source| RunError::System { action: "listen", source })
}

/// Connections without Nagle's algorithm: together with a peer's delayed acknowledgements it holds small answers back
/// for 40 ms. The server's own `tcp_nodelay` counts only for listeners that it opens itself.
fn incoming(std: StdListener) -> Result<TcpIncoming, RunError> {
    listener(std).map(|listener| TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// For callers; peers need no explanations.
fn public() -> Server<Stack<Edge, Identity>> {
    server().layer(Edge)
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(4096)
}

fn reflected<L>(router: Router<L>) -> Result<Router<L>, RunError> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(PUBLIC_DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let fail = |error| RunError::System { action: "offer reflection", source: std::io::Error::other(error) };
    Ok(router.add_service(builder().build_v1().map_err(fail)?).add_service(builder().build_v1alpha().map_err(fail)?))
}

async fn serve(
    shared: Arc<Shared>,
    listeners: Listeners,
    raft_runtime: &Runtime,
    displaced: &Notify,
) -> Result<(), RunError> {
    let (stop, stopped) = watch::channel(false);
    let ended = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender is gone: stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    let client = reflected(
        public()
            .add_service(health_service.clone())
            .add_service(
                RecordServiceServer::new(Records::new(shared.clone()))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(
                SyncServiceServer::new(Sync::new(shared.clone()))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(
                UserServiceServer::new(Users::new(shared.clone()))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            ),
    )?;
    let admin = reflected(
        public().add_service(health_service).add_service(AdminServiceServer::new(Admin::new(shared.clone()))),
    )?;
    let client = tokio::spawn(client.serve_with_incoming_shutdown(incoming(listeners.client)?, ended(stopped.clone())));
    let admin = tokio::spawn(admin.serve_with_incoming_shutdown(incoming(listeners.admin)?, ended(stopped.clone())));
    let http = axum::serve(listener(listeners.http)?, crate::http::router(shared.clone()))
        .with_graceful_shutdown(ended(stopped.clone()));
    let http = tokio::spawn(http.into_future());
    // Peers are served until the very end, on Raft's own threads.
    let peers = {
        let _raft = raft_runtime.enter();
        let incoming = incoming(listeners.peer)?;
        let router = server().add_service(shared.replica.peer_service());
        raft_runtime.spawn(router.serve_with_incoming(incoming))
    };
    shared.shipper.start();
    let reporter = tokio::spawn(report_health(shared.clone(), health));

    let members = tokio::spawn(members::run(shared.clone()));
    tokio::select! {
        signal = wait_for_signal() => signal?,
        () = displaced.notified() => {
            let dir = shared.config.data_dir.display().to_string();
            return Err(RunError::Displaced { node: shared.config.node_id, dir });
        }
        error = shared.shipper.fenced() => return Err(RunError::Fenced(error)),
    }
    members.abort();
    drain(&shared).await;
    reporter.abort();
    stop.send_replace(true);
    let limit = Duration::from_millis(shared.config.drain_ms);
    let all = async { (client.await, admin.await, http.await) };
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!(event = "node.drain_timeout", "calls still under way are cut off");
    }
    peers.abort();
    Ok(())
}

async fn wait_for_signal() -> Result<(), RunError> {
    let fail = |source| RunError::System { action: "watch signals", source };
    let mut term = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Leadership goes first, while calls are still taken; then callers are sent elsewhere.
async fn drain(shared: &Shared) {
    tracing::info!(event = "node.draining", "draining");
    let others = shared.replica.status().voters.len() > 1;
    if shared.replica.is_leader()
        && others
        && let Err(error) = shared.replica.transfer_leader(0, Duration::from_secs(1)).await
    {
        tracing::info!(event = "leader.kept", %error, "nobody took over before the drain");
    }
    shared.draining.store(true, Ordering::Release);
    shared.feed.wake_all();
}

/// Health of reads and writes as gRPC health has it.
async fn report_health(shared: Arc<Shared>, health: tonic_health::server::HealthReporter) {
    use tonic_health::ServingStatus::{NotServing, Serving};
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        let ready = shared.replica.is_opened(&shared.replica.sys())
            && shared.replica.leader_hint().is_some()
            && !shared.replica.is_fenced()
            && !shared.draining.load(Ordering::Acquire);
        let status = if ready { Serving } else { NotServing };
        for service in
            ["", "read", "write", "holdfast.v1.RecordService", "holdfast.v1.SyncService", "holdfast.v1.UserService"]
        {
            health.set_service_status(service, status).await;
        }
    }
}
