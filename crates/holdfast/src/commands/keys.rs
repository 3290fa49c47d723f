//! `holdfast backup keys`: for whom offsite copies are encrypted, and whether they can open them.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use holdfast_archive::keys::{self, Identity, Secret, list_keys, read_identities};
use holdfast_archive::{find_lineages, layout};
use holdfast_wire::v1;
use serde::Serialize;

use crate::atomic_file;
use crate::clock;
use crate::commands::backup::{BadObject, FromArgs};
use crate::commands::connect::AdminArgs;
use crate::exit::{Exit, failure};
use crate::output::{self, Format, Table};

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a secret, for ship.key_file on every node.
    New(OutArgs),
    /// Make an identity of age, and print its recipient. Keep the file where the cluster and its operators cannot reach it.
    Identity(OutArgs),
    /// Encrypt what is shipped from here on, for these recipients.
    Create(CreateArgs),
    /// Tell the keys in use, and whom they are for.
    Show(ShowArgs),
    /// Go on with a new generation of keys; for the same recipients, or for others.
    Rotate(RotateArgs),
    /// Prove from an archive alone that an offline identity opens every generation of its keys.
    Prove(FromArgs),
}

/// Where a new file goes.
#[derive(Debug, clap::Args)]
pub struct OutArgs {
    /// File to make; it must not exist. Only its owner can read it.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// For whom.
#[derive(Debug, clap::Args)]
pub struct RecipientArgs {
    /// Recipient that is online, in other custody, for restore drills: age1…; may be repeated.
    #[arg(long, value_name = "RECIPIENT")]
    drill: Vec<String>,
    /// Recipient whose identity is kept offline: age1…; at least two.
    #[arg(long, value_name = "RECIPIENT")]
    offline: Vec<String>,
}

/// Flags of `create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    recipients: RecipientArgs,
}

/// Flags of `rotate`.
#[derive(Debug, clap::Args)]
pub struct RotateArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    recipients: RecipientArgs,
}

/// Flags of `show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Write the KEYS.age in use to this file too, for `age --decrypt`; it must not exist.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs a command.
pub async fn run(format: Format, command: Keys) -> anyhow::Result<Exit> {
    match command {
        Keys::New(args) => new_secret(format, &args.out),
        Keys::Identity(args) => new_identity(format, &args.out),
        Keys::Create(args) => make(format, &args.admin, args.recipients, false).await,
        Keys::Rotate(args) => make(format, &args.admin, args.recipients, true).await,
        Keys::Show(args) => show(format, &args).await,
        Keys::Prove(args) => prove(format, &args).await,
    }
}

fn new_secret(format: Format, out: &Path) -> anyhow::Result<Exit> {
    let secret = Secret::random()?;
    let text = format!(
        "# secret of a Holdfast cluster: encrypts what it ships offsite; the newest comes first\n{}\n",
        secret.to_line()
    );
    create_private(out, text.as_bytes())?;
    let value = serde_json::json!({"v": 1, "file": out});
    output::answer(format, &value, || {
        format!(
            "a secret is in {}; put it on every node, readable for its user only, and name it there as ship.key_file",
            out.display()
        )
    })?;
    Ok(Exit::Ok)
}

fn new_identity(format: Format, out: &Path) -> anyhow::Result<Exit> {
    let identity = Identity::generate();
    let recipient = identity.recipient();
    create_private(out, format!("# public key: {recipient}\n{}\n", identity.to_line()).as_bytes())?;
    let value = serde_json::json!({"v": 1, "file": out, "recipient": recipient});
    output::answer(format, &value, || {
        format!("{recipient}\nits identity is in {}; move it to where it is kept, and prove it there", out.display())
    })?;
    Ok(Exit::Ok)
}

/// Makes a file that only its owner can read, durably; one that is there stays as it is.
fn create_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => failure(
            Exit::Conflict,
            format!("{} exists; it may hold a key that is needed, name another file", path.display()),
        ),
        _ => failure(Exit::Error, format!("cannot make {}: {error}", path.display())),
    })?;
    file.write_all(bytes)?;
    file.sync_all()?;
    atomic_file::sync_parent(path)?;
    Ok(())
}

async fn make(format: Format, admin: &AdminArgs, recipients: RecipientArgs, rotate: bool) -> anyhow::Result<Exit> {
    let (admin, _) = admin.leader().await?;
    let with = |drill: bool| move |key: String| v1::ArchiveRecipient { key, drill };
    let drill = recipients.drill.into_iter().map(with(true));
    let recipients = drill.chain(recipients.offline.into_iter().map(with(false))).collect();
    let answer = admin.create_archive_keys(v1::CreateArchiveKeysRequest { recipients, rotate }).await?;
    let keys = answer.keys.unwrap_or_default();
    output::answer(format, &KeysAnswer::new(Some(&keys), true), || {
        format!(
            "generation {} is in use; prove each offline identity before you rely on it:\n\
             holdfast backup keys prove --from URL --identity FILE",
            keys.generation
        )
    })?;
    Ok(Exit::Ok)
}

#[derive(Debug, Serialize)]
struct KeysAnswer {
    v: u32,
    encrypted: bool,
    generation: Option<u32>,
    key_id: Option<String>,
    since: Option<String>,
    /// False: they are of the history that this one continues.
    current: bool,
    /// The node that was asked has the secret that they were made from.
    usable: bool,
    recipients: Vec<RecipientAnswer>,
}

#[derive(Debug, Serialize)]
struct RecipientAnswer {
    recipient: String,
    custody: &'static str,
}

impl KeysAnswer {
    fn new(keys: Option<&v1::ArchiveKeys>, usable: bool) -> Self {
        let recipient = |one: &v1::ArchiveRecipient| RecipientAnswer {
            recipient: one.key.clone(),
            custody: if one.drill { "drill" } else { "offline" },
        };
        Self {
            v: 1,
            encrypted: keys.is_some(),
            generation: keys.map(|keys| keys.generation),
            key_id: keys.map(|keys| keys.key_id.clone()),
            since: keys.map(|keys| clock::rfc3339(keys.since_ms)),
            current: keys.is_some_and(|keys| keys.current),
            usable,
            recipients: keys.into_iter().flat_map(|keys| &keys.recipients).map(recipient).collect(),
        }
    }
}

async fn show(format: Format, args: &ShowArgs) -> anyhow::Result<Exit> {
    let (admin, _) = args.admin.leader().await?;
    let found = admin.archive_keys().await?;
    let answer = KeysAnswer::new(found.keys.as_ref(), found.usable);
    if let (Some(out), Some(keys)) = (&args.out, &found.keys) {
        create_private(out, &keys.keys_age)?;
    }
    match (format, &found.keys) {
        (Format::Table, None) => {
            output::text("what is shipped offsite is not encrypted; `holdfast backup keys create` begins with it")?;
        }
        (Format::Table, Some(keys)) => {
            let since = clock::rfc3339(keys.since_ms);
            output::text(format!("generation {}, key {}, since {since}", keys.generation, keys.key_id))?;
            let mut table = Table::new(&["custody", "recipient"]);
            for one in &answer.recipients {
                table.row([one.custody.to_owned(), one.recipient.clone()]);
            }
            table.print()?;
            if !found.usable {
                output::text(
                    "the node that leads cannot use them: it lacks the ship.key_file that they were made from",
                )?;
            }
        }
        (Format::Json | Format::Jsonl, _) => output::answer(format, &answer, String::new)?,
    }
    Ok(match (&found.keys, found.usable) {
        (None, _) => Exit::NotFound,
        (Some(_), false) => Exit::Unsafe,
        (Some(_), true) => Exit::Ok,
    })
}

#[derive(Debug, Serialize)]
struct ProofAnswer {
    lineage: String,
    generation: u32,
    object: String,
    /// Id of the key that the identity finds; null = it is no recipient.
    key_id: Option<String>,
}

async fn prove(format: Format, args: &FromArgs) -> anyhow::Result<Exit> {
    let Some(file) = &args.keys.identity else {
        return Err(failure(Exit::Usage, "name the identity that is to be proved: --identity FILE"));
    };
    let identities = read_identities(file)?;
    let destination = args.open()?;
    let (mut proofs, mut bad) = (Vec::new(), Vec::new());
    for facts in find_lineages(&destination).await?.lineages {
        for found in list_keys(&destination, &facts.id).await? {
            let mut key_id = None;
            for identity in &identities {
                match keys::prove(&found.object, &facts.id, found.generation, &found.bytes, identity) {
                    Ok(proved) => key_id = key_id.or(proved),
                    Err(error) => bad.push(BadObject::from(&error.fault().ok_or(error)?)),
                }
            }
            let (lineage, key_id) = (facts.id.to_string(), key_id.map(|id| layout::hex(&id)));
            proofs.push(ProofAnswer { lineage, generation: found.generation, object: found.object, key_id });
        }
    }
    let opened = proofs.iter().filter(|proof| proof.key_id.is_some()).count();
    let value = serde_json::json!({
        "v": 1, "from": args.from, "generations": proofs, "proved": opened, "bad": bad,
    });
    output::answer(format, &value, || {
        let line = |proof: &ProofAnswer| match &proof.key_id {
            Some(id) => format!("{}: opened, key {id}\n", proof.object),
            None => format!("{}: this identity is no recipient\n", proof.object),
        };
        let faults = bad.iter().map(|bad| format!("{}: {}\n", bad.object, bad.reason));
        let lines: String = proofs.iter().map(line).chain(faults).collect();
        format!("{lines}{opened} of {} generations proved", proofs.len())
    })?;
    Ok(match (bad.is_empty(), proofs.is_empty(), opened == proofs.len()) {
        (false, ..) => Exit::Integrity,
        (true, true, _) => Exit::NotFound,
        (true, false, true) => Exit::Ok,
        (true, false, false) => Exit::Forbidden,
    })
}
