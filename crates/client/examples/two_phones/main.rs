//! Two phones, a cluster that is lost, and what the phones do about it.
//!
//! `--step before`, against the first cluster: the phones create, change and delete contacts and events, and sync. Run
//! it once, ship a snapshot, and run it again (any number of times): each further run makes more changes that every
//! phone has acknowledged and the snapshot has not. Then lose the cluster and restore the snapshot into a new one.
//! `--step after`, against the new cluster: the phones sync, are told that the server was rolled back, and upload again
//! what it lost. The exit code is 0 only if both phones and the server then have exactly what the server had at the end
//! of the last `before`.
//!
//! `DIR/<phone>/*.jsonl` is what a phone has, `DIR/expected.jsonl` what the server had, `DIR/report.json` the outcome
//! of `after` for programs.

mod phone;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use holdfast_client::{Client, SyncOutcome, v1};
use phone::{Phone, Told};
use serde_json::json;
use store::{Content, Contents, load_contents, replace, save_contents};

/// Any error, in words.
pub type Failed = Box<dyn std::error::Error>;

const USAGE: &str = "usage: two_phones --endpoints HOST:PORT[,HOST:PORT…] --dir DIR --step before|after \
                     [--order ab|ba] [--user USER]
  --endpoints  client addresses of the cluster's nodes
  --dir        where the phones keep their data, from one step to the next
  --step       before: edit and sync, may be run several times; after: sync with the restored cluster and compare
  --order      which phone comes first after the restore (default ab)
  --user       whose phones they are (default two-phones)";

#[derive(Debug, PartialEq)]
struct Options {
    endpoints: Vec<String>,
    dir: PathBuf,
    after: bool,
    b_first: bool,
    user: String,
}

fn options(arguments: impl IntoIterator<Item = String>) -> Result<Options, String> {
    let mut given: BTreeMap<String, String> = BTreeMap::new();
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        if !["--endpoints", "--dir", "--step", "--order", "--user"].contains(&name.as_str()) {
            return Err(format!("{name:?} is not an option"));
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        if given.insert(name.clone(), value).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    let mut take = |name: &str| given.remove(name);
    let missing = |name: &'static str| move || format!("{name} is missing");
    let choice = |name: &str, value: &str, yes: &str, no: &str| match value {
        value if value == yes => Ok(true),
        value if value == no => Ok(false),
        other => Err(format!("{name} is {no} or {yes}, not {other:?}")),
    };
    let endpoints = take("--endpoints").ok_or_else(missing("--endpoints"))?;
    Ok(Options {
        endpoints: endpoints.split(',').map(str::to_owned).collect(),
        dir: take("--dir").ok_or_else(missing("--dir"))?.into(),
        after: choice("--step", &take("--step").ok_or_else(missing("--step"))?, "after", "before")?,
        b_first: choice("--order", take("--order").as_deref().unwrap_or("ab"), "ba", "ab")?,
        user: take("--user").unwrap_or_else(|| "two-phones".to_owned()),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("two_phones: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let outcome = if options.after { after(&options).await } else { before(&options).await };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("two_phones: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(options: &Options) -> Result<(Client, [Phone; 2]), Failed> {
    let client = Client::builder().endpoints(options.endpoints.clone()).build()?;
    let phone = |name| Phone::open(name, &options.user, &options.dir, &client);
    let phones = [phone("phone-a")?, phone("phone-b")?];
    Ok((client, phones))
}

async fn before(options: &Options) -> Result<bool, Failed> {
    let (client, [mut a, mut b]) = open(options)?;
    let rounds = options.dir.join("rounds.txt");
    let round: u32 = std::fs::read_to_string(&rounds).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if round == 0 {
        first_round(&mut a, &mut b).await?
    } else {
        further_round(round, &mut a, &mut b).await?
    }
    let server = server_contents(&client, &options.user).await?;
    if server != b.store.contents() {
        return Err("phone-b synced last and does not have what the server has".into());
    }
    save_contents(&options.dir.join("expected.jsonl"), &server)?;
    replace(&rounds, &(round + 1).to_string())?;
    println!("server: has {} records after round {}", server.len(), round + 1);
    Ok(true)
}

/// Both phones end with everything: this is what the snapshot will hold.
async fn first_round(a: &mut Phone, b: &mut Phone) -> Result<(), Failed> {
    for n in 1..=12 {
        a.edit("contacts", &format!("c{n:02}"), Some(&card(n, "")))?;
    }
    a.sync().await?;
    for n in 1..=8 {
        b.edit("events", &format!("e{n:02}"), Some(&event(n, "")))?;
    }
    b.sync().await?;
    a.edit("events", "e01", Some(&event(1, "moved")))?;
    a.edit("contacts", "c12", None)?;
    a.sync().await?;
    b.edit("contacts", "c11", Some(&card(11, "has moved")))?;
    b.sync().await?;
    a.sync().await
}

/// Phone A is left behind: it has acknowledged changes that phone B has since changed again.
async fn further_round(round: u32, a: &mut Phone, b: &mut Phone) -> Result<(), Failed> {
    let note = |what: &str| format!("{what} in round {}", round + 1);
    let new = format!("c{}", 100 + round);
    a.sync().await?;
    a.edit("contacts", "c01", Some(&card(1, &note("changed by a"))))?;
    a.edit("contacts", "c02", Some(&card(2, &note("changed by a"))))?;
    a.edit("events", "e02", Some(&event(2, &note("moved by a"))))?;
    a.edit("events", &format!("e{}", 100 + round), Some(&event(round, "new on a")))?;
    // A new one each round, so that there is always a deletion to lose.
    a.edit("events", &format!("e{:02}", 2 + round), None)?;
    a.edit("contacts", &new, Some(&card(100 + round, "new on a")))?;
    a.sync().await?;
    b.sync().await?;
    b.edit("contacts", "c01", Some(&card(1, &note("changed again by b"))))?;
    b.edit("events", "e02", Some(&event(2, &note("moved again by b"))))?;
    b.edit("contacts", &new, None)?;
    b.edit("events", &format!("e{}", 200 + round), Some(&event(round, "new on b")))?;
    b.sync().await
}

fn card(n: u32, note: &str) -> String {
    format!("BEGIN:VCARD\r\nVERSION:4.0\r\nUID:c{n:02}\r\nFN:Person {n}\r\nNOTE:{note}\r\nEND:VCARD\r\n")
}

fn event(n: u32, note: &str) -> String {
    format!(
        "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nBEGIN:VEVENT\r\nUID:e{n:02}\r\nDTSTART:20260101T090000Z\r\n\
         SUMMARY:Meeting {n} {note}\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
    )
}

async fn after(options: &Options) -> Result<bool, Failed> {
    let expected = load_contents(&options.dir.join("expected.jsonl"))?;
    let (client, mut phones) = open(options)?;
    let lost = missing_or_other(&expected, &server_contents(&client, &options.user).await?);
    println!("server: is back, and {lost} records are not as they were");
    if options.b_first {
        phones.reverse();
    }
    let [first, second] = &mut phones;
    first.sync().await?;
    second.sync().await?;
    first.sync().await?;
    phones.sort_by_key(|phone| phone.name);
    let server = server_contents(&client, &options.user).await?;
    let rows = [
        ("before the loss", expected.clone(), Told::default()),
        ("server now", server, Told::default()),
        (phones[0].name, phones[0].store.contents(), phones[0].told),
        (phones[1].name, phones[1].store.contents(), phones[1].told),
    ];
    let equal = rows.iter().all(|(_, contents, _)| *contents == expected);
    let trashed: usize = phones.iter().map(|phone| phone.told.trashed).sum();
    print_table(&rows, &expected);
    let phone = |phone: &Phone| {
        let Told { resyncs, uploaded_again, had_already, had_newer, trashed } = phone.told;
        json!({"resyncs": resyncs, "uploaded_again": uploaded_again, "had_already": had_already,
               "had_newer": had_newer, "trashed": trashed})
    };
    let report = json!({"equal": equal, "records": expected.len(), "lost": lost, "trashed": trashed,
                        "phone-a": phone(&phones[0]), "phone-b": phone(&phones[1])});
    replace(&options.dir.join("report.json"), &report.to_string())?;
    let good = equal && trashed == 0;
    println!("{}", if good { "all as before the loss; nothing was deleted" } else { "NOT as before the loss" });
    Ok(good)
}

fn print_table(rows: &[(&str, Contents, Told)], expected: &Contents) {
    println!(
        "{:<16} {:>8} {:>6} {:>6}  {:>14} {:>11} {:>9}",
        "", "contacts", "events", "differ", "uploaded again", "had already", "had newer"
    );
    for (name, contents, told) in rows {
        let count = |collection: &str| contents.keys().filter(|key| key.0 == collection).count();
        let differ =
            missing_or_other(expected, contents) + contents.keys().filter(|key| !expected.contains_key(*key)).count();
        println!(
            "{name:<16} {:>8} {:>6} {differ:>6}  {:>14} {:>11} {:>9}",
            count("contacts"),
            count("events"),
            told.uploaded_again,
            told.had_already,
            told.had_newer
        );
    }
}

fn missing_or_other(expected: &Contents, contents: &Contents) -> usize {
    expected.iter().filter(|(key, content)| contents.get(*key) != Some(content)).count()
}

/// All live records, as a device sees them that begins from nothing.
async fn server_contents(client: &Client, user: &str) -> Result<Contents, Failed> {
    let mut contents = Contents::new();
    let mut request = v1::GetChangesRequest { user_id: user.to_owned(), ..Default::default() };
    loop {
        let page = match client.changes(request.clone()).await?.outcome {
            SyncOutcome::Page(page) => page,
            SyncOutcome::Resync(info) => return Err(format!("a sync from nothing is answered by {info:?}").into()),
        };
        for record in &page.records {
            let Some(key) = &record.key else { continue };
            let key = (key.collection.clone(), key.record_id.clone());
            match Content::of(record) {
                Some(content) => contents.insert(key, content),
                None => contents.remove(&key),
            };
        }
        request.sync_token = page.next_sync_token;
        if !page.more {
            return Ok(contents);
        }
    }
}
