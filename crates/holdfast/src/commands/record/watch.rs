//! `record watch`: hints that users have changes, as frontends get them.

use holdfast_client::{WatchEvent, WatchOptions};
use serde::Serialize;

use super::feed::print_resync_of;
use crate::commands::connect::ClientArgs;
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Flags of `watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A hint says that a user has changes, not which: `record changes` with the user's token gives them. Hints of one user may \
be merged, and none is lost. The command stays until it is interrupted, or until nobody is left to watch.")]
pub struct WatchArgs {
    #[command(flatten)]
    connect: ClientArgs,
    /// Users to watch.
    #[arg(long = "user", value_name = "USER[,…]", value_delimiter = ',', required = true)]
    users: Vec<String>,
    /// Where to go on, for a single user; without it the newest version is told at once.
    #[arg(long, value_name = "TOKEN", default_value = "")]
    token: String,
    /// End after so many hints [default: never].
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

#[derive(Debug, Serialize)]
struct HintLine<'a> {
    user: &'a str,
    head_version: u64,
    collections: &'a [String],
}

/// Watches.
pub async fn run(format: Format, args: &WatchArgs) -> anyhow::Result<Exit> {
    if !args.token.is_empty() && args.users.len() > 1 {
        return Err(exit::failure(Exit::Usage, "--token is one user's; name a single --user with it"));
    }
    let watcher = args.connect.client()?.watcher(WatchOptions::default());
    for user in &args.users {
        watcher.watch(user, &args.token)?;
    }
    let mut told = 0;
    while watcher.watched() > 0 && args.count != Some(told) {
        match watcher.next().await? {
            WatchEvent::Hint { user, head_version, collections, .. } => {
                told += 1;
                match format {
                    Format::Table => {
                        let touched = if collections.is_empty() { String::new() } else { collections.join(" ") };
                        output::text(format!("{user}  {}  {touched}", output::version(head_version)).trim_end())?;
                    }
                    Format::Json | Format::Jsonl => {
                        output::line(&HintLine { user: &user, head_version, collections: &collections })?;
                    }
                }
            }
            WatchEvent::Resync { user, info } => print_resync_of(format, &user, &info)?,
        }
    }
    Ok(Exit::Ok)
}
