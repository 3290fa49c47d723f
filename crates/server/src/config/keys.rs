//! Names and meanings of the keys.

/// Scalar keys, with their meaning. The list is also the help text.
pub const KEYS: &[(&str, &str)] = &[
    ("node.id", "id of this node, 1 or more, never reused"),
    ("node.data_dir", "data directory"),
    ("node.labels.<key>", "failure-domain label: site, rack, power, array, firmware, custody, …"),
    ("listen.client", "address for clients (default 127.0.0.1:7470)"),
    ("listen.peer", "address for peers (default 127.0.0.1:7471)"),
    ("listen.admin", "address for operators (default 127.0.0.1:7472)"),
    ("listen.http", "address for metrics and probes (default 127.0.0.1:7473)"),
    ("advertise.client", "address others use for clients (default: listen.client)"),
    ("advertise.peer", "address others use for peers (default: listen.peer)"),
    ("advertise.admin", "address others use for operators (default: listen.admin)"),
    ("advertise.http", "address others use for metrics (default: listen.http)"),
    ("raft.heartbeat_ms", "leader's heartbeat interval, 5 to 10000 ms (default 50)"),
    ("raft.election_min_ms", "shortest election timeout, above 2 heartbeats (default 150)"),
    ("raft.election_max_ms", "longest election timeout, above election_min_ms (default 300)"),
    ("raft.snapshot_entries", "checkpoint after so many applied entries (default 50000)"),
    ("raft.snapshot_bytes", "or after so many bytes of them, 64 KiB to 1 TiB (default 268435456)"),
    ("raft.keep_entries", "applied entries kept in the log for followers (default 20000)"),
    ("raft.keep_bytes", "but no more bytes of them, up to 1 TiB (default 268435456)"),
    ("raft.floor_dir", "directory of the floor file, on another device if possible"),
    ("storage.headroom_bytes", "with less left, writes are refused (default 0: 1/8 of the disk, 20 MiB to 1 GiB)"),
    ("storage.floor_bytes", "with less left, no entry is taken (default 0: 1/4 of the headroom, up to 160 MiB)"),
    (
        "offsite",
        "URL of an offsite destination: file:///…, s3://bucket/prefix?endpoint=…&region=…, gs://bucket/prefix, \
         az://container/prefix?account=…; may be repeated",
    ),
    ("offsite.credentials_file", "credentials of the bucket named last (default: from the environment)"),
    (
        "offsite.required",
        "true: the log is kept and a snapshot waited for until the destination named last has it (default true)",
    ),
    (
        "offsite.expect",
        "what `backup doctor` has to find of the destination named last, at least: immutable, append-only or mutable (default \
         immutable)",
    ),
    ("offsite.labels", "failure-domain labels of the destination named last: site=y,custody=vault"),
    ("ship.interval_ms", "longest wait of a committed entry for its segment (default 1000)"),
    ("ship.segment_bytes", "size at which a segment is shipped at once (default 4194304)"),
    (
        "ship.snapshot_bytes_per_second",
        "bytes of the state read in a second for a snapshot, at most; 0: as many as it can (default 67108864)",
    ),
    (
        "ship.heartbeat_ms",
        "silence after which a destination is told that it holds everything, 100 to 3600000 ms (default 60000)",
    ),
    (
        "ship.outbox_bytes",
        "bytes of committed entries that may wait in the log for a required destination (default 8589934592)",
    ),
    (
        "ship.past_outbox",
        "beyond that: read-only refuses writes, accept-risk forgets entries that are not offsite, all of them on a disk that is \
         nearly full (default read-only)",
    ),
    (
        "ship.join_interval_ms",
        "from one joining of small segments into larger objects to the next; 0: never (default 3600000, an hour)",
    ),
    ("ship.key_file", "secret that encrypts what is shipped, as `backup keys new` makes it; the same on all nodes"),
    ("ship.compression", "zstd, or none: how what is shipped is packed before it is encrypted (default zstd)"),
    (
        "limits.inflight_bytes_max",
        "bytes of proposals in flight; a quarter of it for one user, and never more than end within 300 ms (default 67108864)",
    ),
    ("limits.reads_max", "reads of rows that run or wait for a thread; more are refused (default 1024)"),
    ("limits.default_deadline_ms", "deadline of calls that bring none (default 10000)"),
    ("sync.tombstone_age_ms", "shortest life of a tombstone; the same on all nodes (default 2592000000, 30 days)"),
    (
        "sync.device_expiry_ms",
        "silence after which a device is forgotten; the same on all nodes (default 7776000000, 90 days)",
    ),
    ("sync.watch_heartbeat_ms", "interval of heartbeats on a watch stream (default 5000)"),
    ("sync.resync_users_per_second", "pace at which devices are asked to resync after a loss (default 200)"),
    (
        "integrity.interval_ms",
        "from one comparison of the replicas' states to the next, 500 to 86400000 ms (default 20000)",
    ),
    (
        "integrity.scrub_bytes_per_second",
        "bytes of the state read in a second to compare it, at most; from 65536 on (default 33554432)",
    ),
    (
        "placement.keys",
        "labels of which no value may hold a majority of the voters, for example array,site (default none)",
    ),
    ("health.offsite_lag_ms_max", "objective: how long a committed entry may be missing offsite (default 5000)"),
    ("health.replica_lag_entries_max", "entries that a node may be behind (default 10000)"),
    (
        "verify.keys",
        "keys of those whose verifications of copies count, comma-separated (default none: of all who can lay one down)",
    ),
    ("verify.max_age_ms", "a copy outside counts for so long after it was proved (default 691200000: 8 days)"),
    ("verify.grace_ms", "a copy outside counts for so long before anybody proved it (default 86400000: a day)"),
    ("verify.poll_ms", "from one look for new verifications to the next, 100 to 3600000 ms (default 10000)"),
    ("quota.user_bytes", "payload bytes a user may keep; the same on all nodes (default 0, any number)"),
    ("insecure_plaintext", "allow binds beyond loopback without TLS (default false)"),
    ("log.filter", "log filter, for example info or holdfast_replica=debug (default info,openraft=error)"),
    ("drain_ms", "time for calls to end at shutdown (default 5000)"),
];
