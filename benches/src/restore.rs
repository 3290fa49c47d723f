//! How fast an archive comes back into three data directories, and how well it is said beforehand how long that takes.
//!
//! `bench-offsite` leaves an archive (`--keep`); so does `holdfast dev --offsite`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use holdfast_benches::measure::load_average;
use holdfast_benches::restores::{drill, restore_all, summary};

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
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Fail when the time told by the plan, or after the first tenth, of any restore is further off, in percent.
    #[arg(long, default_value_t = 20.0)]
    eta_off_max: f64,
    /// Record no drill of it before each round: times told go by those that are there, or by what is usual.
    #[arg(long)]
    no_drill: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    println!("restores of {} into three directories; load average before: {}\n", args.from, load_average());
    let mut restores = Vec::new();
    for _ in 0..args.rounds {
        let dir = tempfile::tempdir()?;
        if !args.no_drill {
            drill(&args.holdfast, &args.from, dir.path())?;
        }
        restores.extend(restore_all(&args.holdfast, &args.from, dir.path())?);
    }
    println!("\n{}", summary(&restores));
    let told = restores.iter().flat_map(|one| [Some(one.planned), one.first_told]).flatten();
    let off = told.map(f64::abs).fold(0.0, f64::max);
    println!("\nfurthest off: {off:.0} %; asked for: {:.0} %", args.eta_off_max);
    Ok(if off <= args.eta_off_max { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
