//! Configuration of a node: flag over `HOLDFAST_*` over file over default. Unknown keys are fatal.
//!
//! Every key has one dotted name, the same in the file (as TOML tables), in `--set key=value` and, upper-cased with
//! underscores for dots, in the environment: `raft.heartbeat_ms` is `HOLDFAST_RAFT_HEARTBEAT_MS`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use holdfast_model::command::Policy;
use holdfast_model::limits::{DEVICE_EXPIRY_MS_DEFAULT, TOMBSTONE_AGE_MS_DEFAULT};

/// Longest lifetime that can be configured.
const TEN_YEARS_MS: u64 = 10 * 365 * 24 * 60 * 60 * 1000;

/// An offsite destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offsite {
    /// Name, stable: it is part of the replicated facts.
    pub name: String,
    /// `file:///…`.
    pub url: String,
    /// The log is kept until it is there.
    pub required: bool,
    /// Failure-domain labels.
    pub labels: BTreeMap<String, String>,
}

/// Addresses of the four listeners, `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Clients.
    pub client: String,
    /// Peers.
    pub peer: String,
    /// Operators.
    pub admin: String,
    /// Metrics and probes.
    pub http: String,
}

/// A node's configuration, valid as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Id, 1 or more, never reused.
    pub node_id: u64,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Failure-domain labels.
    pub labels: BTreeMap<String, String>,
    /// Where it listens.
    pub listen: Addresses,
    /// Where others reach it.
    pub advertise: Addresses,
    /// Leader's heartbeat interval, ms.
    pub heartbeat_ms: u64,
    /// Shortest election timeout, ms.
    pub election_min_ms: u64,
    /// Longest election timeout, ms.
    pub election_max_ms: u64,
    /// Checkpoint after so many applied entries.
    pub snapshot_entries: u64,
    /// Keep so many applied entries in the log.
    pub keep_entries: u64,
    /// Directory of the floor.
    pub floor_dir: Option<PathBuf>,
    /// Bytes of the disk that are kept free of records; 0 = by its size.
    pub headroom_bytes: u64,
    /// Bytes of the disk below which no entry is taken; 0 = by its size.
    pub floor_bytes: u64,
    /// Destinations.
    pub offsite: Vec<Offsite>,
    /// Longest time a committed entry waits for its segment, ms.
    pub ship_interval_ms: u64,
    /// Largest segment, bytes.
    pub ship_segment_bytes: u64,
    /// Bytes of proposals in flight.
    pub inflight_bytes_max: u64,
    /// Reads of rows that may run or wait.
    pub reads_max: usize,
    /// Deadline of a call that brings none, ms.
    pub default_deadline_ms: u64,
    /// Allow binds beyond loopback without TLS.
    pub insecure_plaintext: bool,
    /// Log filter, as `tracing` reads it.
    pub log_filter: String,
    /// Time for calls to end at shutdown, ms.
    pub drain_ms: u64,
    /// Lifetimes and quotas that the group is to have while this node leads.
    pub policy: Policy,
    /// Interval of heartbeats on a watch stream, ms.
    pub watch_heartbeat_ms: u64,
    /// Users a second that devices are asked to spread a resync to.
    pub resync_users_per_second: u64,
    /// From one comparison of the replicas' states to the next, ms.
    pub integrity_interval_ms: u64,
    /// Bytes of the state read in a second for that, at most.
    pub scrub_bytes_per_second: u64,
    /// Label keys of which no value may be shared by a majority of the voters.
    pub placement_keys: Vec<String>,
    /// Objective: how long a committed entry may be missing at a destination, ms.
    pub offsite_lag_ms_max: u64,
    /// Entries that a node may be behind before health says so.
    pub replica_lag_entries_max: u64,
}

/// A wrong configuration; says which key and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

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
    ("raft.keep_entries", "applied entries kept in the log for followers (default 20000)"),
    ("raft.floor_dir", "directory of the floor file, on another device if possible"),
    ("storage.headroom_bytes", "with less left, writes are refused (default 0: 1/8 of the disk, 20 MiB to 1 GiB)"),
    ("storage.floor_bytes", "with less left, no entry is taken (default 0: 1/4 of the headroom, up to 160 MiB)"),
    ("offsite", "URL of an offsite destination, file:///…; may be repeated"),
    ("offsite.labels", "failure-domain labels of the destination named last: site=y,custody=vault"),
    ("ship.interval_ms", "longest wait of a committed entry for its segment (default 1000)"),
    ("ship.segment_bytes", "size at which a segment is shipped at once (default 4194304)"),
    ("limits.inflight_bytes_max", "bytes of proposals in flight; a quarter of it for one user (default 67108864)"),
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
    ("quota.user_bytes", "payload bytes a user may keep; the same on all nodes (default 0, any number)"),
    ("insecure_plaintext", "allow binds beyond loopback without TLS (default false)"),
    ("log.filter", "log filter, for example info or holdfast_replica=debug (default info,openraft=error)"),
    ("drain_ms", "time for calls to end at shutdown (default 5000)"),
];

/// Keys with their raw values, later sources replacing earlier ones.
#[derive(Default)]
struct Values {
    scalars: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    offsite: Vec<Offsite>,
}

fn wrong(key: &str, reason: impl std::fmt::Display) -> ConfigError {
    ConfigError(format!("{key}: {reason}"))
}

impl Config {
    /// Reads file, environment and overrides, in this order.
    ///
    /// # Errors
    /// The first wrong key or value.
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut values = Values::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError(format!("cannot read {}: {error}", path.display())))?;
            let table: toml::Table =
                text.parse().map_err(|error| ConfigError(format!("{} is not valid TOML: {error}", path.display())))?;
            values.read_table("", &table)?;
        }
        // In order: what labels a destination comes after the destination.
        for (name, value) in std::env::vars_os().collect::<BTreeMap<_, _>>() {
            // Other programs' variables may be anything.
            if let Some(key) = name.to_string_lossy().strip_prefix("HOLDFAST_") {
                let value =
                    value.to_str().ok_or_else(|| wrong(&format!("HOLDFAST_{key}"), "its value is not UTF-8"))?;
                values.set_from_environment(key, value)?;
            }
        }
        let mut replaced_offsite = false;
        for (key, value) in overrides {
            if key == "offsite" && !replaced_offsite {
                values.offsite.clear();
                replaced_offsite = true;
            }
            values.set(key, value)?;
        }
        values.build()
    }
}

impl Values {
    fn read_table(&mut self, prefix: &str, table: &toml::Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Array(list) if key == "offsite" => {
                    for one in list {
                        self.offsite.push(read_offsite(one)?);
                    }
                }
                toml::Value::Table(table) => self.read_table(&key, table)?,
                toml::Value::String(text) => self.set(&key, text)?,
                toml::Value::Integer(number) => self.set(&key, &number.to_string())?,
                toml::Value::Boolean(flag) => self.set(&key, &flag.to_string())?,
                toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) => {
                    return Err(wrong(&key, "has a value of the wrong type"));
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        if let Some(label) = key.strip_prefix("node.labels.") {
            if label.is_empty() || value.is_empty() {
                return Err(wrong(key, "needs a name and a value"));
            }
            self.labels.insert(label.to_owned(), value.to_owned());
        } else if key == "offsite" {
            let name = match self.offsite.len() {
                0 => "offsite".to_owned(),
                n => format!("offsite-{}", n + 1),
            };
            self.offsite.push(Offsite { name, url: value.to_owned(), required: true, labels: BTreeMap::new() });
        } else if key == "offsite.labels" {
            let last = self.offsite.last_mut();
            let last =
                last.ok_or_else(|| wrong(key, "comes after the destination that it labels: set offsite first"))?;
            last.labels = read_labels(key, value)?;
        } else if KEYS.iter().any(|(known, _)| *known == key) {
            self.scalars.insert(key.to_owned(), value.to_owned());
        } else {
            return Err(ConfigError(format!("unknown configuration key {key:?}; known keys: {}", known_keys())));
        }
        Ok(())
    }

    fn set_from_environment(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        if let Some(label) = name.strip_prefix("NODE_LABELS_") {
            return self.set(&format!("node.labels.{}", label.to_lowercase()), value);
        }
        let known = KEYS.iter().find(|(key, _)| key.to_uppercase().replace('.', "_") == name);
        match known {
            Some((key, _)) => self.set(key, value),
            None => Err(ConfigError(format!("unknown configuration variable HOLDFAST_{name}; unset it"))),
        }
    }

    fn text(&self, key: &str, default: &str) -> String {
        self.scalars.get(key).cloned().unwrap_or_else(|| default.to_owned())
    }

    /// Words behind commas.
    fn list(&self, key: &str) -> Vec<String> {
        let text = self.text(key, "");
        text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    fn number(&self, key: &str, default: u64, range: std::ops::RangeInclusive<u64>) -> Result<u64, ConfigError> {
        let value = match self.scalars.get(key) {
            None => default,
            Some(text) => text.parse().map_err(|_| wrong(key, format!("{text:?} is not a whole number")))?,
        };
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(wrong(key, format!("{value} is out of range, {} to {} are allowed", range.start(), range.end())))
        }
    }

    fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        match self.scalars.get(key).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(wrong(key, format!("{other:?} is neither true nor false"))),
        }
    }

    fn build(self) -> Result<Config, ConfigError> {
        let listen = self.addresses("listen", None)?;
        let advertise = self.addresses("advertise", Some(&listen))?;
        let data_dir = self.text("node.data_dir", "");
        if data_dir.is_empty() {
            return Err(wrong("node.data_dir", "is required"));
        }
        let config = Config {
            node_id: self.number("node.id", 0, 1..=u64::from(u32::MAX))?,
            data_dir: data_dir.into(),
            heartbeat_ms: self.number("raft.heartbeat_ms", 50, 5..=10_000)?,
            election_min_ms: self.number("raft.election_min_ms", 150, 20..=60_000)?,
            election_max_ms: self.number("raft.election_max_ms", 300, 40..=120_000)?,
            snapshot_entries: self.number("raft.snapshot_entries", 50_000, 1..=u64::from(u32::MAX))?,
            keep_entries: self.number("raft.keep_entries", 20_000, 0..=u64::from(u32::MAX))?,
            headroom_bytes: self.number("storage.headroom_bytes", 0, 0..=1 << 50)?,
            floor_bytes: self.number("storage.floor_bytes", 0, 0..=1 << 50)?,
            floor_dir: self.scalars.get("raft.floor_dir").map(PathBuf::from),
            ship_interval_ms: self.number("ship.interval_ms", 1000, 10..=60_000)?,
            ship_segment_bytes: self.number("ship.segment_bytes", 4 << 20, 4096..=32 << 20)?,
            inflight_bytes_max: self.number("limits.inflight_bytes_max", 64 << 20, 1 << 20..=16 << 30)?,
            reads_max: self.number("limits.reads_max", 1024, 16..=1 << 20)? as usize,
            default_deadline_ms: self.number("limits.default_deadline_ms", 10_000, 100..=600_000)?,
            insecure_plaintext: self.flag("insecure_plaintext")?,
            log_filter: self.text("log.filter", "info,openraft=error"),
            drain_ms: self.number("drain_ms", 5000, 0..=60_000)?,
            policy: Policy {
                tombstone_age_ms: self.number(
                    "sync.tombstone_age_ms",
                    TOMBSTONE_AGE_MS_DEFAULT,
                    1000..=TEN_YEARS_MS,
                )?,
                device_expiry_ms: self.number(
                    "sync.device_expiry_ms",
                    DEVICE_EXPIRY_MS_DEFAULT,
                    1000..=TEN_YEARS_MS,
                )?,
                user_quota_bytes: self.number("quota.user_bytes", 0, 0..=1 << 50)?,
            },
            watch_heartbeat_ms: self.number("sync.watch_heartbeat_ms", 5000, 100..=60_000)?,
            resync_users_per_second: self.number("sync.resync_users_per_second", 200, 1..=1_000_000)?,
            integrity_interval_ms: self.number("integrity.interval_ms", 20_000, 500..=24 * 60 * 60 * 1000)?,
            scrub_bytes_per_second: self.number("integrity.scrub_bytes_per_second", 32 << 20, 64 << 10..=64 << 30)?,
            placement_keys: self.list("placement.keys"),
            offsite_lag_ms_max: self.number("health.offsite_lag_ms_max", 5000, 100..=TEN_YEARS_MS)?,
            replica_lag_entries_max: self.number("health.replica_lag_entries_max", 10_000, 1..=u64::from(u32::MAX))?,
            listen,
            advertise,
            labels: self.labels,
            offsite: self.offsite,
        };
        validate(&config)?;
        Ok(config)
    }

    fn addresses(&self, table: &str, default: Option<&Addresses>) -> Result<Addresses, ConfigError> {
        let one = |name: &str, port: u16, default: Option<&String>| {
            let key = format!("{table}.{name}");
            let default = default.cloned().unwrap_or_else(|| format!("127.0.0.1:{port}"));
            let text = self.text(&key, &default);
            let port_ok =
                text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if port_ok { Ok(text) } else { Err(wrong(&key, format!("{text:?} is not host:port"))) }
        };
        Ok(Addresses {
            client: one("client", 7470, default.map(|addresses| &addresses.client))?,
            peer: one("peer", 7471, default.map(|addresses| &addresses.peer))?,
            admin: one("admin", 7472, default.map(|addresses| &addresses.admin))?,
            http: one("http", 7473, default.map(|addresses| &addresses.http))?,
        })
    }
}

/// Reads `site=y,custody=vault`.
fn read_labels(key: &str, text: &str) -> Result<BTreeMap<String, String>, ConfigError> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let one = |pair: &str| match pair.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err(wrong(key, format!("{pair:?} is not name=value"))),
    };
    pairs.map(one).collect()
}

fn read_offsite(value: &toml::Value) -> Result<Offsite, ConfigError> {
    let table = value.as_table().ok_or_else(|| wrong("offsite", "must be a table with name and url"))?;
    let text = |key: &str| {
        table
            .get(key)
            .and_then(toml::Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| wrong("offsite", format!("needs a text {key}")))
    };
    if let Some(key) = table.keys().find(|key| !["name", "url", "required", "labels"].contains(&key.as_str())) {
        return Err(ConfigError(format!(
            "unknown configuration key \"offsite.{key}\"; known: name, url, required, labels"
        )));
    }
    let labels = match table.get("labels") {
        None => BTreeMap::new(),
        Some(labels) => labels
            .as_table()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
    };
    let required = match table.get("required") {
        None => true,
        Some(value) => value.as_bool().ok_or_else(|| wrong("offsite.required", "is neither true nor false"))?,
    };
    Ok(Offsite { name: text("name")?, url: text("url")?, required, labels })
}

fn validate(config: &Config) -> Result<(), ConfigError> {
    tracing_subscriber::EnvFilter::try_new(&config.log_filter).map_err(|error| {
        wrong("log.filter", format!("{:?} is no filter: {error}; write it as info,raft=debug", config.log_filter))
    })?;
    if config.election_min_ms <= 2 * config.heartbeat_ms {
        return Err(wrong("raft.election_min_ms", "must be more than twice raft.heartbeat_ms"));
    }
    if config.election_max_ms <= config.election_min_ms {
        return Err(wrong("raft.election_max_ms", "must be more than raft.election_min_ms"));
    }
    let mut names: Vec<&str> = config.offsite.iter().map(|one| one.name.as_str()).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(wrong("offsite", "two destinations have one name"));
    }
    if !config.insecure_plaintext {
        for (key, address) in [
            ("listen.client", &config.listen.client),
            ("listen.peer", &config.listen.peer),
            ("listen.admin", &config.listen.admin),
            ("listen.http", &config.listen.http),
        ] {
            if !is_loopback(address) {
                return Err(wrong(
                    key,
                    format!(
                        "{address} is not a loopback address and TLS is not built yet; bind to 127.0.0.1 behind a \
                         tunnel, or accept plain text with --insecure-plaintext"
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => match address.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback(),
        },
        Err(_) => address.rsplit_once(':').is_some_and(|(host, _)| host == "localhost"),
    }
}

fn known_keys() -> String {
    let names: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(sets: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut all = vec![("node.id".to_owned(), "1".to_owned()), ("node.data_dir".to_owned(), "d".to_owned())];
        all.extend(sets.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        Config::load(None, &all)
    }

    #[test]
    fn defaults_are_valid_and_overrides_win() {
        let config = load(&[("raft.heartbeat_ms", "30"), ("node.labels.array", "a1")]).expect("valid");
        assert_eq!(config.heartbeat_ms, 30);
        assert_eq!(config.listen.client, "127.0.0.1:7470");
        assert_eq!(config.advertise, config.listen);
        assert_eq!(config.labels["array"], "a1");
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_named() {
        for (key, value) in [
            ("raft.heartbeat", "30"),
            ("raft.heartbeat_ms", "fast"),
            ("log.filter", "=["),
            ("raft.heartbeat_ms", "1"),
            ("raft.election_min_ms", "60"),
            ("raft.election_max_ms", "100"),
            ("listen.peer", "nowhere"),
            ("insecure_plaintext", "yes"),
        ] {
            let error = load(&[(key, value)]).expect_err(key).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn labels_belong_to_the_destination_before_them() {
        let sets = [
            ("offsite", "file:///a"),
            ("offsite.labels", "site=y, custody=vault"),
            ("offsite", "file:///b"),
            ("offsite", "file:///c"),
            ("offsite.labels", "site=z"),
            ("placement.keys", "array, site"),
        ];
        let config = load(&sets).expect("valid");
        assert_eq!((config.offsite[0].labels["site"].as_str(), config.offsite[0].labels.len()), ("y", 2));
        assert!(config.offsite[1].labels.is_empty());
        assert_eq!((config.offsite[2].labels["site"].as_str(), config.offsite[2].labels.len()), ("z", 1));
        assert_eq!(config.placement_keys, ["array", "site"]);
        for wrong in [&[("offsite.labels", "site=y")][..], &[("offsite", "file:///a"), ("offsite.labels", "site")]] {
            assert!(load(wrong).expect_err("refused").to_string().contains("offsite.labels"));
        }
    }

    #[test]
    fn only_loopback_without_tls() {
        let error = load(&[("listen.client", "0.0.0.0:7470")]).expect_err("refused").to_string();
        assert!(error.contains("--insecure-plaintext"), "{error}");
        assert!(load(&[("listen.client", "0.0.0.0:7470"), ("insecure_plaintext", "true")]).is_ok());
        assert!(load(&[("listen.client", "[::1]:7470")]).is_ok());
    }

    #[test]
    fn a_file_is_read_and_its_unknown_keys_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("holdfast.toml");
        std::fs::write(
            &path,
            "[node]\nid = 3\ndata_dir = \"/var/lib/x\"\n[node.labels]\nsite = \"s1\"\n\
             [[offsite]]\nname = \"vault\"\nurl = \"file:///mnt/vault\"\n",
        )
        .expect("write");
        let config = Config::load(Some(&path), &[]).expect("valid");
        assert_eq!((config.node_id, config.offsite[0].name.as_str()), (3, "vault"));
        std::fs::write(&path, "[node]\nid = 3\nname = \"x\"\n").expect("write");
        assert!(Config::load(Some(&path), &[]).expect_err("refused").to_string().contains("node.name"));
    }

    /// `deploy/holdfast.toml`, asked for when the test runs: a binary that another clone left in a shared target
    /// directory names that clone's files.
    fn example() -> PathBuf {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        PathBuf::from(manifest).join("../../deploy/holdfast.toml")
    }

    fn read(text: &str) -> Values {
        let table: toml::Table = text.parse().expect("valid TOML");
        let mut values = Values::default();
        values.read_table("", &table).expect("known keys");
        values
    }

    /// The text with every table and key that stands behind a `#`; prose stays a comment.
    fn uncommented(text: &str) -> String {
        let lines = text.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with('[') || rest.split(' ').nth(1) == Some("=") => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_file_has_every_key_and_shows_the_defaults() {
        let text = std::fs::read_to_string(example()).expect("deploy/holdfast.toml");
        let all = read(&uncommented(&text));
        for (key, _) in KEYS {
            let shown = match *key {
                "node.labels.<key>" => !all.labels.is_empty(),
                "offsite" => !all.offsite.is_empty(),
                "offsite.labels" => all.offsite.iter().any(|one| !one.labels.is_empty()),
                key => all.scalars.contains_key(key),
            };
            assert!(shown, "deploy/holdfast.toml lacks {key}");
        }

        // Values behind `#` change nothing, but for the four that have no default to show.
        let plain = read(&text).build().expect("valid as it stands");
        let mut all = all.build().expect("valid with every key");
        assert_ne!(all.advertise, plain.advertise);
        assert!(all.floor_dir.is_some() && all.insecure_plaintext);
        all.advertise = plain.advertise.clone();
        all.floor_dir = None;
        assert!(!all.placement_keys.is_empty());
        all.placement_keys.clear();
        all.insecure_plaintext = false;
        assert_eq!(all, plain);
    }
}
