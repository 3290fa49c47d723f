//! `holdfast backup doctor`: what a destination lets the cluster's own credentials do.

use std::path::PathBuf;
use std::time::SystemTime;

use holdfast_archive::doctor::{Finding, Outcome, Verdict, examine};
use holdfast_archive::{Destination, DestinationConfig, layout};
use holdfast_server::config::Config;
use serde::Serialize;

use crate::clock;
use crate::commands::verifier::VerifierArgs;
use crate::exit::{Exit, failure};
use crate::output::{self, Format, Table};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Give it the credentials that the nodes have: it tries with them to create a small object twice, to overwrite it, to delete it \
and its version, and to make its lock end earlier. It touches nothing else, and leaves a signed verdict under doctor/.

  immutable    all of that failed, and a lock that nobody can shorten (S3 Object Lock, mode COMPLIANCE) was seen
  append-only  nothing is ever replaced, and no such lock was seen; a folder is this at best
  mutable      these credentials can alter or delete what lies there

Exit code 0 where that is what is expected, or better; else 3.

Examples:
  holdfast backup doctor --from s3://vault/prod?region=eu-north-1 --credentials /etc/holdfast/s3
  holdfast backup doctor --config /etc/holdfast/holdfast.toml")]
pub struct DoctorArgs {
    /// The destination: file:///…, s3://bucket/prefix?endpoint=…&region=…, gs://…, az://…
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    from: Option<String>,
    /// File with the bucket's credentials [default: from the environment].
    #[arg(long, value_name = "FILE", requires = "from")]
    credentials: Option<PathBuf>,
    /// What it has to be: immutable, append-only or mutable [default: immutable, or offsite.expect of --config].
    #[arg(long, value_name = "VERDICT", value_parser = parse_verdict)]
    expect: Option<Verdict>,
    /// Look at every [[offsite]] destination of a node's configuration, each with what it expects.
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    config: Option<PathBuf>,
    #[command(flatten)]
    verifier: VerifierArgs,
}

fn parse_verdict(text: &str) -> Result<Verdict, String> {
    Verdict::parse(text).ok_or_else(|| format!("{text:?} is none of immutable, append-only, mutable"))
}

#[derive(Debug, Serialize)]
struct Answer {
    v: u32,
    name: String,
    from: String,
    verdict: Verdict,
    expect: Verdict,
    /// The verdict is what is expected, or better.
    meets: bool,
    attempts: Vec<AttemptAnswer>,
    /// Null: no lock was seen.
    lock: Option<LockAnswer>,
    versioned: bool,
    /// Where the signed verdict lies.
    object: String,
    /// Key that signed it.
    signed_by: String,
    time: String,
}

#[derive(Debug, Serialize)]
struct AttemptAnswer {
    attempt: &'static str,
    outcome: &'static str,
    said: String,
}

#[derive(Debug, Serialize)]
struct LockAnswer {
    mode: String,
    until: String,
}

/// Runs it.
pub async fn run(format: Format, args: &DoctorArgs) -> anyhow::Result<Exit> {
    let key = args.verifier.key()?;
    let mut answers = Vec::new();
    for (config, expect) in destinations(args)? {
        let destination = Destination::open(&config)?;
        let at_ms = clock::unix_ms(SystemTime::now());
        let (finding, object) = examine(&destination, at_ms, &key).await?;
        answers.push(answer(&config, expect, finding, object, layout::hex(&key.public())));
    }
    match format {
        Format::Table => {
            for (n, one) in answers.iter().enumerate() {
                if n > 0 {
                    output::text("")?;
                }
                print(one)?;
            }
        }
        // One destination is one answer; several are a list of them.
        Format::Json => match &answers[..] {
            [one] if args.from.is_some() => output::object(one)?,
            _ => output::object(&serde_json::json!({"v": 1, "destinations": answers}))?,
        },
        Format::Jsonl => answers.iter().try_for_each(output::line)?,
    }
    Ok(if answers.iter().all(|one| one.meets) { Exit::Ok } else { Exit::Unsafe })
}

fn destinations(args: &DoctorArgs) -> anyhow::Result<Vec<(DestinationConfig, Verdict)>> {
    let Some(file) = &args.config else {
        let url = args.from.clone().unwrap_or_default();
        let config = DestinationConfig::from_url(&url).with_credentials(args.credentials.clone());
        return Ok(vec![(config, args.expect.unwrap_or(Verdict::Immutable))]);
    };
    let config = Config::load(Some(file), &[]).map_err(|error| failure(Exit::Usage, error))?;
    if config.offsite.is_empty() {
        let message = format!("{} names no destination: there is no [[offsite]] in it", file.display());
        return Err(failure(Exit::NotFound, message));
    }
    let expected = |offsite: &holdfast_server::config::Offsite| args.expect.unwrap_or(offsite.expect);
    Ok(config.offsite.iter().map(|offsite| (DestinationConfig::from(offsite), expected(offsite))).collect())
}

fn answer(config: &DestinationConfig, expect: Verdict, finding: Finding, object: String, signed_by: String) -> Answer {
    let attempts = finding.attempts.into_iter().map(|attempt| AttemptAnswer {
        attempt: attempt.attempt.as_str(),
        outcome: attempt.outcome.as_str(),
        said: attempt.said,
    });
    Answer {
        v: 1,
        name: config.name.clone(),
        from: config.url.clone(),
        verdict: finding.verdict,
        expect,
        meets: finding.verdict >= expect,
        attempts: attempts.collect(),
        lock: finding.lock.map(|lock| LockAnswer { mode: lock.mode, until: clock::rfc3339(lock.until_ms) }),
        versioned: finding.versioned,
        object,
        signed_by,
        time: clock::rfc3339(finding.at_ms),
    }
}

fn print(one: &Answer) -> anyhow::Result<()> {
    output::text(format!("{}: {}", one.from, one.verdict))?;
    let mut table = Table::new(&["  attempt", "outcome", "what was said"]);
    for attempt in &one.attempts {
        table.row([format!("  {}", attempt.attempt), attempt.outcome.to_owned(), attempt.said.clone()]);
    }
    table.print()?;
    let lock = match &one.lock {
        Some(lock) => format!("  locked until {}, mode {}", lock.until, lock.mode),
        None => "  no lock was seen".to_owned(),
    };
    output::text(lock)?;
    output::text(format!("  signed verdict: {}", one.object))?;
    if one.meets {
        return Ok(());
    }
    // On stderr, and with the answer: whoever watches either must not miss it.
    let done = one.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Succeeded.as_str());
    let done: Vec<&str> = done.map(|attempt| attempt.attempt).collect();
    let seen = match done.is_empty() {
        true => "nothing succeeded, but no lock that nobody can shorten was seen".to_owned(),
        false => format!("{} succeeded", done.join(", ")),
    };
    eprintln!("holdfast: {} is {}, not {}: {seen}", one.from, one.verdict, one.expect);
    eprintln!("holdfast: {}", remedy(one));
    Ok(())
}

fn remedy(one: &Answer) -> &'static str {
    if one.from.starts_with("file:") {
        "whoever may write into a folder may delete from it: expect = \"append-only\" where that is meant, and keep another copy \
         in a bucket that locks its objects, or in a vault"
    } else if one.from.starts_with("s3:") {
        "make a bucket with versions and Object Lock, default retention in mode COMPLIANCE, and give the nodes credentials that \
         may put, get, list and see the retention of objects, no more"
    } else {
        "lock the retention policy of the bucket; Holdfast sees no locks of this service, so expect = \"append-only\" is what it \
         can prove"
    }
}
