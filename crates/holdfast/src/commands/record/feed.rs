//! `record ls` and `record changes`: many records.

use holdfast_client::{ChangesAnswer, Client, SyncOutcome, v1};
use serde::Serialize;

use super::{RecordLine, UserArgs, key_of};
use crate::clock;
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table};

/// Flags of `ls`.
#[derive(Debug, clap::Args)]
pub struct LsArgs {
    #[command(flatten)]
    user: UserArgs,
    /// contacts, events, todos, notes, photos, or x-….
    #[arg(long)]
    collection: String,
    /// Tombstones too.
    #[arg(long)]
    deleted: bool,
    /// Newest first [default: by id].
    #[arg(long)]
    newest: bool,
}

/// Flags of `changes`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With -o jsonl each record is a line, and the last line is {\"next_sync_token\": …}: give that token to the next call.

With --follow the command stays and prints what changes, until it is interrupted or the token cannot be continued.

A token that cannot be continued (the cluster was restored, or the token is too old) answers {\"resync\": …} with exit \
code 0: it is an outcome that says how to go on, and never means that anything should be deleted.")]
pub struct ChangesArgs {
    #[command(flatten)]
    user: UserArgs,
    /// Where to go on; empty = from the beginning, without tombstones.
    #[arg(long, value_name = "TOKEN", default_value = "")]
    token: String,
    /// Only these collections; the token is bound to them. May be repeated.
    #[arg(long = "collection", value_name = "COLLECTION")]
    collections: Vec<String>,
    /// Most records per call to the server.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    page_size: i32,
    /// When nothing changed, wait this long for something to, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    wait_ms: u32,
    /// Leave payloads out; size and sha256 are null then.
    #[arg(long)]
    metadata_only: bool,
    /// Stay, and print changes as they come.
    #[arg(long, conflicts_with = "wait_ms")]
    follow: bool,
}

/// How long one call of --follow waits at the server.
const FOLLOW_WAIT_MS: u32 = 60_000;

/// Lists.
pub async fn list(format: Format, args: &LsArgs) -> anyhow::Result<Exit> {
    let client = args.user.connect.client()?;
    let order = if args.newest { v1::ListOrder::Newest } else { v1::ListOrder::Unspecified };
    let mut pages = client.list(v1::ListRecordsRequest {
        user_id: args.user.user.clone(),
        collection: args.collection.clone(),
        order: order.into(),
        show_deleted: args.deleted,
        ..Default::default()
    });
    let mut printer = Printer::new(format);
    while let Some(page) = pages.next_page().await? {
        printer.page(&page.records, true)?;
    }
    printer.finish(None)?;
    Ok(Exit::Ok)
}

/// Lists what changed.
pub async fn changes(format: Format, args: &ChangesArgs) -> anyhow::Result<Exit> {
    let client = args.user.connect.client()?;
    let request = v1::GetChangesRequest {
        user_id: args.user.user.clone(),
        sync_token: args.token.clone(),
        collections: args.collections.clone(),
        page_size: args.page_size,
        metadata_only: args.metadata_only,
        wait_ms: args.wait_ms,
        ..Default::default()
    };
    if args.follow {
        return follow(&client, format, request).await;
    }
    let mut printer = Printer::new(format);
    let end = each_page(&client, request, |_, page| printer.page(&page.records, !args.metadata_only)).await?;
    match &end {
        FeedEnd::Page(page) => printer.finish(Some(&PageEnd::new(page)))?,
        FeedEnd::Resync(resync) => print_resync(format, resync)?,
    }
    Ok(Exit::Ok)
}

/// Prints what changes, for as long as the token can be continued.
async fn follow(client: &Client, format: Format, mut request: v1::GetChangesRequest) -> anyhow::Result<Exit> {
    if format == Format::Json {
        return Err(exit::failure(Exit::Usage, "--follow has no end to close a JSON object with; take -o jsonl"));
    }
    let has_payload = !request.metadata_only;
    loop {
        let mut printer = Printer::new(format);
        let mut changed = false;
        let end = each_page(client, request.clone(), |_, page| {
            changed |= !page.records.is_empty();
            printer.page(&page.records, has_payload)
        });
        match end.await? {
            FeedEnd::Page(page) => {
                if changed {
                    printer.finish(Some(&PageEnd::new(&page)))?;
                }
                request.sync_token = page.next_sync_token;
                request.wait_ms = FOLLOW_WAIT_MS;
            }
            FeedEnd::Resync(resync) => {
                print_resync(format, &resync)?;
                return Ok(Exit::Ok);
            }
        }
    }
}

/// How a walk through the feed ended.
#[derive(Debug)]
pub enum FeedEnd {
    /// At its end, with the last page.
    Page(v1::ChangesPage),
    /// It cannot go on from this token.
    Resync(v1::ResyncInfo),
}

/// Follows the feed to its end; `take` gets every page.
pub async fn each_page(
    client: &Client,
    mut request: v1::GetChangesRequest,
    mut take: impl FnMut(&v1::ResponseHeader, &v1::ChangesPage) -> anyhow::Result<()>,
) -> anyhow::Result<FeedEnd> {
    loop {
        let ChangesAnswer { header, outcome, .. } = client.changes(request.clone()).await?;
        let page = match outcome {
            SyncOutcome::Page(page) => page,
            SyncOutcome::Resync(resync) => return Ok(FeedEnd::Resync(resync)),
        };
        take(&header, &page)?;
        if !page.more {
            return Ok(FeedEnd::Page(page));
        }
        anyhow::ensure!(page.next_sync_token != request.sync_token, "the server gave the same token twice");
        request.sync_token.clone_from(&page.next_sync_token);
        request.wait_ms = 0;
    }
}

#[derive(Debug, Serialize)]
struct PageEnd<'a> {
    next_sync_token: &'a str,
    backed_up_version: u64,
    collections_restoring: &'a [String],
}

impl<'a> PageEnd<'a> {
    fn new(page: &'a v1::ChangesPage) -> Self {
        Self {
            next_sync_token: &page.next_sync_token,
            backed_up_version: page.backed_up_version,
            collections_restoring: &page.collections_restoring,
        }
    }
}

/// Prints records as they come; a table at the end.
struct Printer {
    format: Format,
    table: Table,
    all: Vec<serde_json::Value>,
}

impl Printer {
    fn new(format: Format) -> Self {
        let table = Table::new(&["collection", "id", "version", "type", "size", "updated"]);
        Self { format, table, all: Vec::new() }
    }

    fn page(&mut self, records: &[v1::Record], has_payload: bool) -> anyhow::Result<()> {
        for record in records {
            let line = RecordLine::new(record, has_payload);
            match self.format {
                Format::Jsonl => output::line(&line)?,
                Format::Json => self.all.push(serde_json::to_value(&line)?),
                Format::Table => {
                    let (collection, id) = key_of(record);
                    let size = match (line.deleted, line.size) {
                        (true, _) => "deleted".to_owned(),
                        (false, Some(size)) => size.to_string(),
                        (false, None) => "-".to_owned(),
                    };
                    let updated = record.delete_time.or(record.update_time);
                    let updated = updated.map(|time| clock::rfc3339(holdfast_wire::reply::millis(&time)));
                    self.table.row([
                        collection.to_owned(),
                        id.to_owned(),
                        output::version(record.version),
                        record.content_type.clone(),
                        size,
                        updated.unwrap_or_default(),
                    ]);
                }
            }
        }
        Ok(())
    }

    fn finish(self, end: Option<&PageEnd<'_>>) -> anyhow::Result<()> {
        match self.format {
            Format::Jsonl => end.map_or(Ok(()), output::line)?,
            Format::Json => {
                let mut value = serde_json::json!({"v": 1, "records": self.all});
                if let Some(end) = end {
                    value["next_sync_token"] = end.next_sync_token.into();
                    value["backed_up_version"] = end.backed_up_version.into();
                    value["collections_restoring"] = end.collections_restoring.into();
                }
                output::object(&value)?;
            }
            Format::Table => {
                if self.table.is_empty() {
                    output::text(if end.is_some() { "nothing changed" } else { "no records" })?;
                } else {
                    self.table.print()?;
                }
                if let Some(end) = end {
                    output::text(format!("next sync token: {}", end.next_sync_token))?;
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct ResyncAnswer<'a> {
    reason: &'static str,
    common_version: u64,
    tombstone_horizon: u64,
    resume_token: &'a str,
    start_after_ms: u32,
    collection_order: &'a [String],
}

fn print_resync(format: Format, resync: &v1::ResyncInfo) -> anyhow::Result<()> {
    let (reason, answer) = resync_answer(resync);
    match format {
        Format::Jsonl => output::line(&serde_json::json!({ "resync": answer }))?,
        Format::Json => output::object(&serde_json::json!({"v": 1, "resync": answer}))?,
        Format::Table => {
            output::text(resync_in_words(reason, &answer))?;
            output::text(format!("then continue with token: {}", answer.resume_token))?;
        }
    }
    Ok(())
}

fn resync_answer(resync: &v1::ResyncInfo) -> (v1::ResyncReason, ResyncAnswer<'_>) {
    let reason = v1::ResyncReason::try_from(resync.reason).unwrap_or(v1::ResyncReason::Unspecified);
    let answer = ResyncAnswer {
        reason: reason.as_str_name().trim_start_matches("RESYNC_REASON_"),
        common_version: resync.common_version,
        tombstone_horizon: resync.tombstone_horizon,
        resume_token: &resync.resume_token,
        start_after_ms: resync.start_after_ms,
        collection_order: &resync.collection_order,
    };
    (reason, answer)
}

/// A resync of one of many users, as a line of JSON or in words.
pub(super) fn print_resync_of(format: Format, user: &str, resync: &v1::ResyncInfo) -> anyhow::Result<()> {
    let (reason, answer) = resync_answer(resync);
    match format {
        Format::Table => output::text(format!("{user}: {}", resync_in_words(reason, &answer)))?,
        Format::Json | Format::Jsonl => output::line(&serde_json::json!({"user": user, "resync": answer}))?,
    }
    Ok(())
}

fn resync_in_words(reason: v1::ResyncReason, answer: &ResyncAnswer<'_>) -> String {
    let common = output::version(answer.common_version);
    match reason {
        v1::ResyncReason::RolledBack => format!(
            "the cluster was restored to an older point: upload again what changed on the device after version \
             {common}, and delete nothing"
        ),
        v1::ResyncReason::TokenExpired => {
            "the device was away for longer than deletions are remembered: compare whole collections, and delete \
             nothing that the comparison does not prove deleted"
                .to_owned()
        }
        v1::ResyncReason::UserErased => {
            "the person's data was erased on request: ask before clearing the device".to_owned()
        }
        v1::ResyncReason::TokenFromFuture => {
            "the token is ahead of the cluster, which is a fault of the cluster: page an operator, delete nothing"
                .to_owned()
        }
        v1::ResyncReason::UnknownIncarnation => {
            "the token is of a history that this cluster does not know: compare whole collections, delete nothing"
                .to_owned()
        }
        v1::ResyncReason::Unspecified => {
            "the cluster asks for a resync for a reason that this version does not know: change nothing, upgrade"
                .to_owned()
        }
    }
}
