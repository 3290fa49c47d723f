//! `holdfast`: the one binary. Servers, operators' commands, and the demo.
//!
//! A library only so that two binaries are made of it: `holdfast`, and the one with bugs that the fault suite must find.

mod atomic_file;
mod cli;
mod clock;
mod commands;
mod demo;
mod exit;
mod interrupt;
mod launch;
mod output;
mod portable;
mod progress;

use std::process::ExitCode;

use clap::Parser;

/// Runs the command line of this process; gives its exit code.
pub fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let format = cli.output;
    let exit = match commands::run(cli) {
        Ok(exit) => exit,
        Err(error) => exit::report(format, &error),
    };
    ExitCode::from(exit as u8)
}
