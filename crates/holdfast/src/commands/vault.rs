//! `holdfast vault`: a third copy, pulled by somebody whom the cluster does not know.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use holdfast_archive::prune::Trusted;
use holdfast_archive::retention::DAY_MS;
use holdfast_archive::vault::{Pulled, pull, renew};
use holdfast_archive::{Destination, DestinationConfig};

use crate::clock;
use crate::commands::backup::{BadObject, FromArgs, GROUP};
use crate::commands::prune::KeepArgs;
use crate::commands::verifier::VerifierArgs;
use crate::exit::{Exit, failure};
use crate::output::{self, Format};
use crate::progress;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Run it where neither the cluster nor its operators have rights: it needs credentials that read the source, and others that create \
in the vault. Everything is checked on its way, and read back; what the vault has is never replaced, so that it keeps what the \
source loses. An encrypted archive is copied as it is, and checked as far as --identity or --key-file open it.

Where the vault is a bucket that locks its objects, what is to stay (the flags of `backup prune`) and whose lock ends within \
--renew-days, or half of its time, is written once more, with a new lock.

Exit code 0 when the vault has everything; 9 when something at the source is damaged, or differs from what the vault has; 3 when \
the source lost what nobody whom --trust names marked to go: the key of who prunes it belongs there.

Examples:
  holdfast vault --from s3://vault/prod?region=eu-north-1 --credentials /etc/holdfast/read-s3 \\
      --into s3://far/prod?region=us-west-2 --into-credentials /etc/holdfast/vault-s3
  holdfast vault --from file:///mnt/offsite/holdfast --into file:///mnt/vault/holdfast --every 3600")]
pub struct VaultArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The vault: file:///…, s3://bucket/prefix?endpoint=…&region=…, gs://…, az://…; a folder is made where it is missing.
    #[arg(long, value_name = "URL")]
    into: String,
    /// File with the credentials of the vault's bucket [default: from the environment].
    #[arg(long, value_name = "FILE")]
    into_credentials: Option<PathBuf>,
    /// Go on for ever: pull every so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
    /// Write once more what is to stay and whose lock ends within so many days; 0: never.
    #[arg(long, value_name = "DAYS", default_value_t = 14)]
    renew_days: u32,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    verifier: VerifierArgs,
}

/// Runs it.
pub async fn run(format: Format, args: &VaultArgs) -> anyhow::Result<Exit> {
    if args.from.from.trim_end_matches('/') == args.into.trim_end_matches('/') {
        return Err(failure(Exit::Usage, "--from and --into are one place: a vault is another one"));
    }
    let Some(every) = args.every else { return once(format, args).await };
    loop {
        match once(format, args).await {
            Ok(_) => {}
            // It goes on: a vault that stopped silently is none.
            Err(error) => eprintln!("holdfast: {error:#}; tried again in {every} s"),
        }
        tokio::time::sleep(Duration::from_secs(every)).await;
    }
}

async fn once(format: Format, args: &VaultArgs) -> anyhow::Result<Exit> {
    let source = args.from.open()?;
    let config = DestinationConfig::from_url(&args.into).with_credentials(args.into_credentials.clone());
    let vault = Destination::create(&config)?.with_keys(args.from.keys.read()?);
    let began = SystemTime::now();
    let bar = progress::bar(0, "objects pulled");
    let told = |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    };
    let trusted: Trusted = args.keep.trust.iter().copied().chain([args.verifier.key()?.public()]).collect();
    let pulled = pull(&source, &vault, GROUP, &trusted, &told).await;
    bar.finish_and_clear();
    let mut pulled = pulled?;
    let mut renewed = Ok(());
    if args.renew_days > 0 {
        let (policy, now_ms) = (args.keep.policy(0), clock::unix_ms(began));
        let before_ms = u64::from(args.renew_days) * DAY_MS;
        renewed = renew(&vault, GROUP, &policy, &trusted, now_ms, before_ms, &mut pulled).await;
    }
    answer(format, args, &pulled)?;
    // What was pulled is told all the same.
    renewed?;
    Ok(match (pulled.lineages, pulled.bad.is_empty(), pulled.lost.is_empty()) {
        (_, false, _) => Exit::Integrity,
        (_, true, false) => Exit::Unsafe,
        (0, ..) => Exit::NotFound,
        _ => Exit::Ok,
    })
}

fn answer(format: Format, args: &VaultArgs, pulled: &Pulled) -> anyhow::Result<()> {
    let bad: Vec<BadObject> = pulled.bad.iter().map(BadObject::from).collect();
    let value = serde_json::json!({
        "v": 1, "from": args.from.from, "into": args.into, "lineages": pulled.lineages, "objects": pulled.objects,
        "bytes": pulled.bytes, "present": pulled.present, "locked": pulled.locked, "bad": bad, "lost": pulled.lost,
        "repaired": pulled.repaired,
        "renewed": pulled.renewed, "locked_until": pulled.locked_until_ms.map(clock::rfc3339),
    });
    output::answer(format, &value, || {
        let faults = bad.iter().map(|bad| format!("{}: {}\n", bad.object, bad.reason)).collect::<String>();
        let lost = pulled
            .lost
            .iter()
            .take(10)
            .map(|path| format!("{path}: gone at the source, and nobody trusted marked it\n"));
        let more = match pulled.lost.len().saturating_sub(10) {
            0 => String::new(),
            more => format!("and {more} more are gone at the source\n"),
        };
        let copied = format!(
            "{} objects pulled, {}; {} were there",
            pulled.objects,
            output::bytes(pulled.bytes),
            pulled.present
        );
        let locked = match pulled.locked {
            0 => String::new(),
            some => format!(
                "\n{some} of them are encrypted and were checked by their hashes: --identity or --key-file opens them"
            ),
        };
        let renewed = match pulled.renewed {
            0 => String::new(),
            some => format!("\n{some} objects were written once more, for their locks"),
        };
        let until = pulled.locked_until_ms.map(|until| format!("\nlocked until {} at least", clock::rfc3339(until)));
        faults + &lost.collect::<String>() + &more + &copied + &locked + &renewed + &until.unwrap_or_default()
    })?;
    Ok(())
}
