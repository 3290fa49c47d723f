//! The command line. Exit codes: 0 none failed, 1 some failed (with --holdfast also: some were skipped), 2 could not be
//! run, 64 usage.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use holdfast_conformance::catalogue::TESTS;
use holdfast_conformance::runner::{self, Options, Subject};
use holdfast_conformance::table::{Report, Row, Verdict};
use tokio::signal::unix::{SignalKind, signal};

/// sysexits.h, EX_USAGE.
const USAGE: u8 = 64;

/// What the API of Holdfast promises, one numbered test per promise, against any running cluster.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Exit codes: 0 no test failed (skipped ones are shown and counted), 1 some failed, or with --holdfast were skipped, 2 could \
not be run, 64 usage.

Examples:
  holdfast-conformance --endpoints 127.0.0.1:7470,127.0.0.1:7480,127.0.0.1:7490
  holdfast-conformance --holdfast target/release/holdfast --only c07,c25"
)]
struct Cli {
    /// Client addresses of a running cluster. Tests that need faults are skipped.
    #[arg(long, value_name = "H:P,…", value_delimiter = ',', conflicts_with_all = ["holdfast", "dir"])]
    endpoints: Vec<String>,
    /// Operators' addresses of the same nodes, for digests and leader transfers.
    #[arg(long, value_name = "H:P,…", value_delimiter = ',', requires = "endpoints")]
    admin: Vec<String>,
    /// Binary to test, on clusters of its own; also makes faults.
    #[arg(long, value_name = "PATH")]
    holdfast: Option<PathBuf>,
    /// Folder for those clusters [default: one that is removed at the end].
    #[arg(long, value_name = "DIR", requires = "holdfast")]
    dir: Option<PathBuf>,
    /// Tests to run, for example c07,c12 [default: all].
    #[arg(long, value_name = "cNN,…", value_delimiter = ',')]
    only: Vec<String>,
    /// Show the tests and end.
    #[arg(long)]
    list: bool,
    /// Leaders hand over at random moments meanwhile; needs --admin or --holdfast [default: with --holdfast].
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    transfers: Option<bool>,
    /// Everything random follows from it; printed, so that a run can be made again [default: another each time].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Run everything so often.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed terminal is no reason to end otherwise.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if cli.list {
        print(&list(cli.json));
        return ExitCode::SUCCESS;
    }
    let (options, _dir) = match options(&cli) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("holdfast-conformance: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    match run(&options) {
        Ok(report) => {
            let text = if cli.json {
                serde_json::to_string(&report).map_or_else(|error| error.to_string(), |json| json + "\n")
            } else {
                report.in_words()
            };
            print(&text);
            // A cluster of one's own lacks nothing that a test may ask for: a skip there is a promise left unchecked.
            let left_out = if cli.holdfast.is_some() { report.count(Verdict::Skipped) } else { 0 };
            if report.count(Verdict::Fail) + left_out == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("holdfast-conformance: not run: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn list(json: bool) -> String {
    let line = |test: &holdfast_conformance::catalogue::Test| {
        if json {
            serde_json::json!({ "number": test.number, "name": test.name }).to_string() + "\n"
        } else {
            format!("{:>3}  {}\n", test.number, test.name)
        }
    };
    TESTS.iter().map(line).collect()
}

/// The options, and the folder that is removed at the end.
fn options(cli: &Cli) -> anyhow::Result<(Options, Option<tempfile::TempDir>)> {
    runner::chosen(&cli.only).map_err(anyhow::Error::msg)?;
    let mut temporary = None;
    let subject = match (&cli.holdfast, cli.endpoints.is_empty()) {
        (None, true) => anyhow::bail!("name a cluster with --endpoints H:P,H:P,H:P or a binary with --holdfast PATH"),
        (None, false) => {
            anyhow::ensure!(
                cli.admin.is_empty() || cli.admin.len() == cli.endpoints.len(),
                "--admin names {} nodes and --endpoints {}; name the same ones in the same order",
                cli.admin.len(),
                cli.endpoints.len()
            );
            Subject::Endpoints { clients: cli.endpoints.clone(), admins: cli.admin.clone() }
        }
        (Some(holdfast), _) => {
            anyhow::ensure!(holdfast.is_file(), "--holdfast {}: there is no such file", holdfast.display());
            let dir = match &cli.dir {
                Some(dir) => dir.clone(),
                None => temporary.insert(tempfile::Builder::new().prefix("conformance").tempdir()?).path().to_owned(),
            };
            Subject::Binary { holdfast: holdfast.clone(), dir }
        }
    };
    let transfers = cli.transfers.unwrap_or(cli.holdfast.is_some());
    anyhow::ensure!(
        !transfers || cli.holdfast.is_some() || !cli.admin.is_empty(),
        "--transfers needs the operators' addresses: --admin H:P,H:P,H:P"
    );
    let seed = cli.seed.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0));
    let options = Options { subject, only: cli.only.clone(), transfers, seed, runs: cli.runs };
    Ok((options, temporary))
}

fn run(options: &Options) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    let total = runner::chosen(&options.only).map_or(0, |tests| tests.len()) * options.runs as usize;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let said = move |row: &Row| {
        let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        progress(row, done, total);
    };
    let report = runtime.block_on(interruptible(options, said));
    // What a test left behind waits for nobody.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    report
}

/// Ends all processes in order when this one is told to end.
async fn interruptible(
    options: &Options,
    said: impl Fn(&Row) + Send + Sync + Clone + 'static,
) -> anyhow::Result<Report> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    eprintln!("seed {}", options.seed);
    tokio::select! {
        report = runner::run(options, said) => report,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("told to end"),
    }
}

/// One line per test as it ends, on stderr: stdout is the report's.
fn progress(row: &Row, done: usize, total: usize) {
    let mut error = std::io::stderr();
    let verdict = match (row.verdict, error.is_terminal()) {
        (Verdict::Pass, true) => "\x1b[32mpass\x1b[0m   ",
        (Verdict::Fail, true) => "\x1b[31mFAIL\x1b[0m   ",
        (Verdict::Skipped, true) => "\x1b[33mskipped\x1b[0m",
        (Verdict::Pass, false) => "pass   ",
        (Verdict::Fail, false) => "FAIL   ",
        (Verdict::Skipped, false) => "skipped",
    };
    let note = if row.note.is_empty() { String::new() } else { format!("  ({})", row.note) };
    let _ = writeln!(error, "[{done:>2}/{total}] {verdict} {:>6.1} s  {}{note}", row.took.as_secs_f64(), row.name);
}

fn print(text: &str) {
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
