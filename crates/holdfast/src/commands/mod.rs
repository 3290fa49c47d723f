//! Commands, one file per group.

pub mod backup;
pub mod cluster;
pub mod completion;
pub mod connect;
pub mod copies;
pub mod dev;
pub mod doctor;
pub mod domain;
pub mod drill;
pub mod drill_people;
pub mod health;
pub mod integrity;
pub mod keys;
pub mod ledger;
pub mod node;
pub mod prune;
pub mod record;
pub mod recover;
pub mod restore;
pub mod restore_eta;
pub mod restore_plan;
pub mod restore_rest;
pub mod restore_user;
pub mod serve;
pub mod user;
pub mod vault;
pub mod verifier;

use crate::cli::{Cli, Command};
use crate::exit::Exit;
use crate::interrupt::unless_interrupted;

/// Runs a command line.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    let format = cli.output;
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        // Ends on signals by itself, in order.
        Command::Dev(args) => block_on(dev::run(args)),
        Command::Demo(args) => block_on(unless_interrupted(crate::demo::run(args))),
        Command::Cluster(command) => block_on(unless_interrupted(cluster::run(format, command))),
        Command::Domain(command) => block_on(unless_interrupted(domain::run(format, command))),
        Command::Node(command) => block_on(unless_interrupted(node::run(format, command))),
        Command::Integrity(command) => block_on(unless_interrupted(integrity::run(format, command))),
        Command::User(command) => block_on(unless_interrupted(user::run(format, command))),
        Command::Record(command) => block_on(unless_interrupted(record::run(format, command))),
        Command::Backup(command) => block_on(unless_interrupted(backup::run(format, command))),
        Command::Copies(command) => block_on(unless_interrupted(copies::run(format, command))),
        Command::Vault(args) => block_on(unless_interrupted(vault::run(format, &args))),
        Command::Drill(command) => block_on(unless_interrupted(drill::run(format, command))),
        Command::Restore(command) => block_on(unless_interrupted(restore::run(format, command))),
        Command::Completion(args) => completion::run(&args),
    }
}

/// Runs on a runtime of its own. The future itself stays on the main thread: node processes that it starts live as
/// long as that thread does.
fn block_on(work: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(work);
    // A read of a hung disk must not keep the process.
    runtime.shutdown_background();
    done
}
