//! The command line: names of commands and flags are contracts.

use clap::{Parser, Subcommand};

use crate::commands::{
    backup, cluster, completion, copies, dev, domain, drill, integrity, node, record, restore, serve, user, vault,
};
use crate::demo;
use crate::output::Format;

const EXITS: &str = "\
Exit codes: 0 yes, 1 error, 2 usage, 3 no or unsafe, 4 unknown or stale (treat as no), 5 unreachable, 6 forbidden, \
7 not found, 8 conflict, 9 integrity failure, 10 done in part.

Examples:
  holdfast demo                                       the whole story, in about a minute
  holdfast dev --data /tmp/hf --offsite file:///tmp/hf-offsite
  holdfast record import --user ada contacts.vcf calendar.ics
  holdfast backup now && holdfast backup ls --from file:///tmp/hf-offsite";

/// A replicated record store for people's contacts and calendars, whose offsite copies survive the loss of every node.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = EXITS, disable_help_subcommand = true, max_term_width = 110)]
pub struct Cli {
    /// How answers are printed on stdout: table, json or jsonl.
    #[arg(
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        global = true,
        value_enum,
        default_value_t = Format::Table,
        hide_possible_values = true,
        display_order = 900
    )]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one node.
    Serve(serve::Args),
    /// Run a cluster on this machine, a process for each node.
    Dev(dev::Args),
    /// Tell the story: kill the leader, lose every disk, restore, compare every byte.
    Demo(demo::Args),
    /// Found a cluster, and see how it is.
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Failure domains: who is in them, and what losing them would cost.
    #[command(subcommand)]
    Domain(domain::Commands),
    /// One node of a cluster.
    #[command(subcommand)]
    Node(node::Node),
    /// People's records.
    #[command(subcommand)]
    Record(record::Record),
    /// What the cluster keeps of one person.
    #[command(subcommand)]
    User(user::User),
    /// Take, list and verify offsite copies.
    #[command(subcommand)]
    Backup(backup::Backup),
    /// Make a new cluster from an offsite copy.
    #[command(subcommand)]
    Restore(restore::Restore),
    /// Every copy of the data, and what speaks for it.
    #[command(subcommand)]
    Copies(copies::Copies),
    /// Pull a copy out of another one, with credentials that the cluster does not have.
    Vault(Box<vault::VaultArgs>),
    /// Prove that a copy is one that people come back from.
    #[command(subcommand)]
    Drill(drill::Drill),
    /// Whether all replicas hold the same, and what they should.
    #[command(subcommand)]
    Integrity(integrity::Integrity),
    /// Print the completion script of a shell.
    Completion(completion::Args),
}

/// Checks `host:port`.
pub fn host_port(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("write it as host:port")?;
    if host.is_empty() || text.contains('/') {
        return Err("write it as host:port, without a scheme".into());
    }
    port.parse::<u16>().map_err(|_| "the port must be a number up to 65535")?;
    Ok(text.to_owned())
}

/// Checks `key=value`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write it as key=value".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_contracts_parse() {
        let good = [
            "dev --nodes 3 --data D --port-base 7470 --ready-file F --labels array=a1,site=x;array=a2;array=a3 \
             --offsite file:///a --offsite file:///b --set raft.keep_entries=10 --set raft.snapshot_entries=5",
            "demo --records 100 --json --keep D --sabotage flip",
            "record put --endpoint a:1,b:2 --user U --collection C --id I --file F --content-type T",
            "record get --endpoint a:1 --user U --collection C --id I --out F",
            "record ls --user U --collection C -o jsonl",
            "record rm --user U --collection C --id I",
            "record changes --user U --token T -o jsonl",
            "record changes --endpoint a:1 --user U --follow",
            "record watch --endpoint a:1,b:2 --user U,V -o jsonl",
            "user show --endpoint a:1 U -o json",
            "record import --user U a.vcf b.ics",
            "record export --user U --out D",
            "cluster init --name N --nodes a:1,b:2,c:3",
            "cluster status --endpoint a:1 -o json",
            "cluster health --endpoint a:1 -o json",
            "domain ls --endpoint a:1",
            "domain tree",
            "domain survive --endpoint a:1 --lose array=A1,site=X -o json",
            "domain survive --pairs",
            "dev --data D --offsite file:///a --offsite file:///b --offsite-labels site=y,custody=c;site=z",
            "node step-down --endpoint a:1 --to 2",
            "node ls --endpoint a:1 -o json",
            "node show 2",
            "node add a:1 --learner --dry-run --endpoint b:1",
            "node promote 4",
            "node drain 2 --endpoint a:1",
            "node resume 2",
            "node replace 2 --with a:1 --confirm N",
            "node rm 2 --confirm N --accept-fewer-voters",
            "backup now --endpoint a:1",
            "backup ls --from file:///x",
            "backup verify --from file:///x",
            "backup doctor --from file:///x --expect append-only -o json",
            "backup doctor --config F --verifier-key K",
            "backup verify --from file:///x --level 2 --record --verifier-key K",
            "drill run --from file:///x --nodes 1 --scratch D --people 0 --no-record",
            "drill run --from file:///x --endpoint a:1,b:2 --destination vault",
            "drill ls --from file:///x -o json",
            "copies ls --endpoint a:1 -o json",
            "restore plan --from file:///x",
            "restore plan --from file:///x --at 100 --quick -o json",
            "restore run --from file:///x --at 2026-11-26T08:30:00Z --data D",
            "restore run --from file:///x --at latest --lineage C/I --data D",
            "restore run --from file:///x --data D --nodes 3 --port-base 7470",
            "restore run --from file:///x --node id=1,data=D,client=h:1,peer=h:2,admin=h:3,http=h:4",
            "serve --config F --set raft.heartbeat_ms=100",
            "integrity compare --endpoint a:1 -o json",
            "integrity compare --deadline-ms 60000",
            "integrity scrub --data D",
            "completion bash",
        ];
        for line in good {
            let parsed = Cli::try_parse_from(["holdfast"].into_iter().chain(line.split_whitespace()));
            assert!(parsed.is_ok(), "{line}: {}", parsed.expect_err("is an error"));
        }
    }

    #[test]
    fn wrong_usage_is_exit_2() {
        for line in [
            "demo --sabotage wipe",
            "dev --no-such-flag",
            "record get --user U --collection C",
            "record get --endpoint nope --user U --collection C --id I",
            "serve --set nonsense",
            "",
        ] {
            let parsed = Cli::try_parse_from(["holdfast"].into_iter().chain(line.split_whitespace()));
            assert_eq!(parsed.expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
