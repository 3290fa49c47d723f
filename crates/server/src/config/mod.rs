//! Configuration of a node: flag over `HOLDFAST_*` over file over default. Unknown keys are fatal.
//!
//! Every key has one dotted name, the same in the file (as TOML tables), in `--set key=value` and, upper-cased with
//! underscores for dots, in the environment: `raft.heartbeat_ms` is `HOLDFAST_RAFT_HEARTBEAT_MS`.

mod keys;
mod offsite;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use holdfast_archive::doctor::Verdict;
use holdfast_archive::segment::PLAIN_BYTES_MAX;
use holdfast_archive::{Compression, DestinationConfig};
use holdfast_model::command::Policy;
use holdfast_model::limits::{DEVICE_EXPIRY_MS_DEFAULT, TOMBSTONE_AGE_MS_DEFAULT};
use holdfast_replica::PastBudget;
use holdfast_survey::{PROOF_AGE_MS_MAX, PROOF_GRACE_MS};

pub use self::keys::KEYS;
pub use self::offsite::{Offsite, Vault};
use self::offsite::{read_expect, read_labels, read_offsite, read_vault};

/// Longest lifetime that can be configured.
const TEN_YEARS_MS: u64 = 10 * 365 * 24 * 60 * 60 * 1000;

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
    /// Or after so many bytes of them.
    pub snapshot_bytes: u64,
    /// Keep so many applied entries in the log.
    pub keep_entries: u64,
    /// But no more bytes of them.
    pub keep_bytes: u64,
    /// Directory of the floor.
    pub floor_dir: Option<PathBuf>,
    /// Bytes of the disk that are kept free of records; 0 = by its size.
    pub headroom_bytes: u64,
    /// Bytes of the disk below which no entry is taken; 0 = by its size.
    pub floor_bytes: u64,
    /// Destinations.
    pub offsite: Vec<Offsite>,
    /// Copies that others pull.
    pub vaults: Vec<Vault>,
    /// Longest time a committed entry waits for its segment, ms.
    pub ship_interval_ms: u64,
    /// Largest segment, bytes.
    pub ship_segment_bytes: u64,
    /// A checkpoint is read no faster for a snapshot; 0 = as fast as it goes.
    pub ship_snapshot_bytes_per_second: u64,
    /// A leader that has put nothing for so long vouches that there was nothing to put.
    pub ship_heartbeat_ms: u64,
    /// Bytes of committed entries that may wait for a required destination.
    pub ship_outbox_bytes: u64,
    /// What happens beyond that.
    pub ship_past_outbox: PastBudget,
    /// From one joining of small segments to the next, ms; 0 = never.
    pub ship_join_interval_ms: u64,
    /// Secret that encrypts what is shipped; `None` = this node cannot encrypt.
    pub ship_key_file: Option<PathBuf>,
    /// How what is shipped is packed.
    pub ship_compression: Compression,
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
    /// Keys of those whose verifications count; empty = of everybody who can lay one down at a destination.
    pub verify_keys: Vec<[u8; 32]>,
    /// From one look for verifications to the next, ms.
    pub verify_poll_ms: u64,
    /// A copy outside counts for so long after it was proved, ms.
    pub proof_age_ms_max: u64,
    /// A copy outside counts for so long before anybody proved it, ms.
    pub proof_grace_ms: u64,
}

/// A wrong configuration; says which key and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Keys with their raw values, later sources replacing earlier ones.
#[derive(Default)]
struct Values {
    scalars: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    offsite: Vec<Offsite>,
    vaults: Vec<Vault>,
}

/// Reads a verifier's key.
fn read_key(text: &str) -> Result<[u8; 32], ConfigError> {
    holdfast_archive::layout::unhex(text).ok_or_else(|| {
        wrong("verify.keys", format!("{text:?} is no key: 64 hex digits, as `drill ls -o json` has them"))
    })
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
                toml::Value::Array(list) if key == "vault" => {
                    for one in list {
                        self.vaults.push(read_vault(one)?);
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
            self.offsite.push(Offsite {
                name,
                url: value.to_owned(),
                credentials_file: None,
                required: true,
                labels: BTreeMap::new(),
                expect: Verdict::Immutable,
            });
        } else if ["offsite.labels", "offsite.credentials_file", "offsite.required", "offsite.expect"].contains(&key) {
            let last = self.offsite.last_mut();
            let last =
                last.ok_or_else(|| wrong(key, "comes after the destination that it is of: set offsite first"))?;
            match key {
                "offsite.labels" => last.labels = read_labels(key, value)?,
                "offsite.expect" => last.expect = read_expect(key, value)?,
                "offsite.required" => {
                    last.required = value.parse().map_err(|_| wrong(key, "is neither true nor false"))?;
                }
                _ => last.credentials_file = Some(value.into()),
            }
        } else if key == "vault" {
            self.vaults.push(Vault { name: value.to_owned(), labels: BTreeMap::new() });
        } else if key == "vault.labels" {
            let last = self.vaults.last_mut();
            let last = last.ok_or_else(|| wrong(key, "comes after the vault that it is of: set vault first"))?;
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
            snapshot_bytes: self.number("raft.snapshot_bytes", 256 << 20, 64 << 10..=1 << 40)?,
            keep_entries: self.number("raft.keep_entries", 20_000, 0..=u64::from(u32::MAX))?,
            keep_bytes: self.number("raft.keep_bytes", 256 << 20, 0..=1 << 40)?,
            headroom_bytes: self.number("storage.headroom_bytes", 0, 0..=1 << 50)?,
            floor_bytes: self.number("storage.floor_bytes", 0, 0..=1 << 50)?,
            floor_dir: self.scalars.get("raft.floor_dir").map(PathBuf::from),
            ship_interval_ms: self.number("ship.interval_ms", 1000, 10..=60_000)?,
            ship_segment_bytes: self.number("ship.segment_bytes", 4 << 20, 4096..=PLAIN_BYTES_MAX as u64)?,
            ship_snapshot_bytes_per_second: self.number("ship.snapshot_bytes_per_second", 64 << 20, 0..=u64::MAX)?,
            ship_heartbeat_ms: self.number("ship.heartbeat_ms", 60_000, 100..=60 * 60 * 1000)?,
            ship_outbox_bytes: self.number("ship.outbox_bytes", 8 << 30, 1 << 20..=1 << 50)?,
            ship_past_outbox: match self.text("ship.past_outbox", "read-only").as_str() {
                "read-only" => PastBudget::ReadOnly,
                "accept-risk" => PastBudget::AcceptRisk,
                other => {
                    return Err(wrong("ship.past_outbox", format!("{other:?} is neither read-only nor accept-risk")));
                }
            },
            ship_join_interval_ms: self.number("ship.join_interval_ms", 60 * 60 * 1000, 0..=7 * 24 * 60 * 60 * 1000)?,
            ship_key_file: self.scalars.get("ship.key_file").map(PathBuf::from),
            ship_compression: match self.text("ship.compression", "zstd").as_str() {
                "zstd" => Compression::Zstd,
                "none" => Compression::None,
                other => return Err(wrong("ship.compression", format!("{other:?} is neither zstd nor none"))),
            },
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
            verify_keys: self.list("verify.keys").iter().map(|text| read_key(text)).collect::<Result<_, _>>()?,
            verify_poll_ms: self.number("verify.poll_ms", 10_000, 100..=60 * 60 * 1000)?,
            proof_age_ms_max: self.number("verify.max_age_ms", PROOF_AGE_MS_MAX, 1000..=TEN_YEARS_MS)?,
            proof_grace_ms: self.number("verify.grace_ms", PROOF_GRACE_MS, 0..=TEN_YEARS_MS)?,
            listen,
            advertise,
            labels: self.labels,
            offsite: self.offsite,
            vaults: self.vaults,
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
    for offsite in &config.offsite {
        DestinationConfig::from(offsite).check().map_err(|error| wrong("offsite", error))?;
    }
    let offsite = config.offsite.iter().map(|one| one.name.as_str());
    let mut names: Vec<&str> = offsite.chain(config.vaults.iter().map(|one| one.name.as_str())).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(wrong("offsite", "two destinations, or a vault and one of these, have one name"));
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
mod tests;
