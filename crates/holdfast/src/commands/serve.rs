//! `holdfast serve`: one node.

use std::path::{Path, PathBuf};
use std::process::exit;

use crate::cli::{host_port, key_value};
use crate::exit::{Exit, failure};
use crate::launch::{Labels, parse_labels, render_labels};

/// Read when no other file is named.
const DEFAULT_CONFIG: &str = "/etc/holdfast/holdfast.toml";

/// Flags of `serve`. A flag wins over HOLDFAST_* variables, those over the file, that over the default.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every key of the configuration file can be set with --set, for example --set raft.heartbeat_ms=100, or by a variable, \
for example HOLDFAST_RAFT_HEARTBEAT_MS=100. Unknown keys are refused.

Example:
  holdfast serve --node-id 1 --data-dir /var/lib/holdfast --label array=san-07 --label site=oslo \\
      --offsite file:///mnt/vault/holdfast")]
pub struct Args {
    /// Configuration file [default: /etc/holdfast/holdfast.toml, if it is there].
    #[arg(long, value_name = "FILE", conflicts_with = "no_config")]
    config: Option<PathBuf>,
    /// Read no file, not even the default one.
    #[arg(long)]
    no_config: bool,
    /// Id of this node, unique in the cluster and never used again.
    #[arg(long, value_name = "ID")]
    node_id: Option<u64>,
    /// Directory of this node's data.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Failure domain of this node; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Listener for clients [default: 127.0.0.1:7470].
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    listen_client: Option<String>,
    /// Listener for the other nodes [default: 127.0.0.1:7471].
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    listen_peer: Option<String>,
    /// Listener for operators [default: 127.0.0.1:7472].
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    listen_admin: Option<String>,
    /// Listener for probes and metrics [default: 127.0.0.1:7473].
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    listen_http: Option<String>,
    /// Where committed writes are copied to, for example file:///mnt/vault; may be repeated.
    #[arg(long, value_name = "URL")]
    offsite: Vec<String>,
    /// Failure domains of the destinations, one part per --offsite: "site=y,custody=vault;site=z".
    #[arg(long, value_name = "LABELS", value_parser = parse_labels)]
    offsite_labels: Option<Labels>,
    /// Secret that encrypts what is shipped, as `backup keys new` makes it; the same on all nodes.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// How what is shipped is packed before it is encrypted: zstd, or none [default: zstd].
    #[arg(long, value_name = "zstd|none")]
    compression: Option<String>,
    /// Allow listeners that other machines can reach, without TLS.
    #[arg(long)]
    insecure_plaintext: bool,
    /// Any key of the configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// Runs a node until SIGTERM or SIGINT.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let default = Path::new(DEFAULT_CONFIG);
    let file = match &args.config {
        Some(file) => Some(file.as_path()),
        None => (!args.no_config && default.exists()).then_some(default),
    };
    if let Some(labels) = &args.offsite_labels {
        labels
            .check_count("--offsite-labels", "destination", args.offsite.len())
            .map_err(|error| failure(Exit::Usage, error))?;
    }
    let config =
        holdfast_server::config::Config::load(file, &overrides(args)).map_err(|error| failure(Exit::Usage, error))?;
    match holdfast_server::run(config) {
        Ok(()) => Ok(Exit::Ok),
        Err(error) => {
            eprintln!("holdfast: {error}");
            exit(error.exit_code().into())
        }
    }
}

/// Flags as configuration keys, those of `--set` last.
fn overrides(args: &Args) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut add = |key: &str, value: Option<String>| all.extend(value.map(|value| (key.to_owned(), value)));
    add("node.id", args.node_id.map(|id| id.to_string()));
    add("node.data_dir", args.data_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned()));
    add("listen.client", args.listen_client.clone());
    add("listen.peer", args.listen_peer.clone());
    add("listen.admin", args.listen_admin.clone());
    add("listen.http", args.listen_http.clone());
    add("ship.key_file", args.key_file.as_ref().map(|file| file.to_string_lossy().into_owned()));
    add("ship.compression", args.compression.clone());
    add("insecure_plaintext", args.insecure_plaintext.then(|| "true".to_owned()));
    for (index, url) in args.offsite.iter().enumerate() {
        add("offsite", Some(url.clone()));
        let labels = args.offsite_labels.as_ref().and_then(|all| all.0.get(index));
        add("offsite.labels", labels.filter(|labels| !labels.is_empty()).map(render_labels));
    }
    all.extend(args.labels.iter().map(|(key, value)| (format!("node.labels.{key}"), value.clone())));
    all.extend(args.set.iter().cloned());
    all
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn flags_become_keys_and_set_comes_last() {
        let line = "holdfast serve --no-config --node-id 2 --label array=a1 --offsite file:///x --offsite file:///y \
                    --offsite-labels ;site=z,custody=c --set node.id=3 --set log.filter=info,raft=debug";
        let Command::Serve(args) = Cli::parse_from(line.split_whitespace()).command else { panic!("serve") };
        let expected = [
            ("node.id", "2"),
            ("offsite", "file:///x"),
            ("offsite", "file:///y"),
            ("offsite.labels", "custody=c,site=z"),
            ("node.labels.array", "a1"),
            ("node.id", "3"),
            ("log.filter", "info,raft=debug"),
        ];
        let found = overrides(&args);
        assert_eq!(found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    }
}
