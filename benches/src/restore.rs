//! How fast an archive comes back into three data directories, and how well it is said beforehand how long that takes.
//!
//! `bench-offsite` leaves an archive (`--keep`); so does `holdfast dev --offsite`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use holdfast_benches::measure::load_average;
use holdfast_benches::restores::{restore_all, summary};

/// Restores of an archive.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long, value_name = "FILE")]
    holdfast: PathBuf,
    /// Archive of one history.
    #[arg(long, value_name = "URL")]
    from: String,
    /// Times that each restore is done.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Fail when the time told after the first tenth of a restore is further off, in percent.
    #[arg(long, default_value_t = 20.0)]
    eta_off_max: f64,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    println!("restores of {} into three directories; load average before: {}\n", args.from, load_average());
    let mut restores = Vec::new();
    for _ in 0..args.rounds {
        let dir = tempfile::tempdir()?;
        restores.extend(restore_all(&args.holdfast, &args.from, dir.path())?);
    }
    println!("\n{}", summary(&restores));
    let is_fine = restores.iter().all(|one| one.first_told.is_none_or(|off| off.abs() <= args.eta_off_max));
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
