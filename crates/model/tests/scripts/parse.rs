//! Reads scripts. The form is described in `README.md` beside this file.

use bytes::Bytes;
use holdfast_model::attest::{Attestation, Word};
use holdfast_model::command::{
    AckCursor, ArchiveKeys, ArchiveRecipient, Command, Content, DropDevice, Fill, FillPayloads, Genesis, Guard,
    LineageFork, Mutation, OffsiteFact, Op, Operation, Parent, Policy, RULES, RestoreGuard, SnapshotBarrier,
    WriteBatch,
};
use holdfast_model::digest::fingerprint;
use holdfast_model::id::{
    Collection, DeviceId, Incarnation, Millis, NodeId, RecordId, RecordKey, RequestId, Slot, Stage, Uid, UserId,
    Version,
};
use holdfast_model::state::UserRef;

/// One line of a script (with the indented lines that belong to it).
pub enum Line {
    Nothing,
    At(Millis),
    Save(String),
    Load(String),
    ShowSys,
    ShowUser(UserId),
    Common(UserId, Incarnation),
    BackedUp(UserId),
    Entry { rules: u16, poison: bool, command: Command },
}

/// A line with its text, and the empty lines and comments that follow its expectations.
pub struct Block {
    pub text: String,
    pub line: Line,
    pub after: String,
}

/// Splits a script into its lines, without the expectations.
pub fn blocks(script: &str) -> Vec<Block> {
    let mut blocks = vec![Block { text: String::new(), line: Line::Nothing, after: String::new() }];
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with('>') {
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            blocks.last_mut().unwrap().after += &format!("{line}\n");
            continue;
        }
        let mut text = format!("{line}\n");
        let mut inner = vec![];
        while let Some(next) = lines.next_if(|next| next.starts_with("  ")) {
            text += &format!("{next}\n");
            inner.push(words(next));
        }
        blocks.push(Block { line: parse(&words(line), &inner), text, after: String::new() });
    }
    blocks
}

fn parse(words: &[String], inner: &[Vec<String>]) -> Line {
    let (first, rest) = words.split_first().expect("a word");
    match first.as_str() {
        "at" => Line::At(time(&rest[0])),
        "save" => Line::Save(rest[0].clone()),
        "load" => Line::Load(rest[0].clone()),
        "show" if rest[0] == "sys" => Line::ShowSys,
        "show" => Line::ShowUser(user(&rest[0])),
        "backed_up" => Line::BackedUp(user(&rest[0])),
        "common" => Line::Common(user(&rest[0]), Incarnation(number(required(rest, "inc")))),
        "poison" => Line::Entry { rules: RULES, poison: true, command: command(rest, inner) },
        rules if rules.starts_with("rules=") => Line::Entry {
            rules: rules["rules=".len()..].parse().unwrap(),
            poison: false,
            command: command(rest, inner),
        },
        _ => Line::Entry { rules: RULES, poison: false, command: command(words, inner) },
    }
}

fn command(words: &[String], inner: &[Vec<String>]) -> Command {
    let (first, rest) = words.split_first().expect("a command");
    match first.as_str() {
        "put" | "delete" => {
            // `put USER KEY …` is a batch of one: the words of batch and mutation share the line.
            let mut one = vec![first.clone()];
            one.extend_from_slice(&rest[1..]);
            Command::WriteBatch(batch(rest, &[one]))
        }
        "batch" => Command::WriteBatch(batch(rest, inner)),
        "genesis" => Command::Genesis(genesis(rest)),
        "offsite" => Command::OffsiteFact(OffsiteFact {
            destination: rest[0].clone(),
            index: number(required(rest, "index")),
            chain: [7; 32],
            verifier: NodeId(option(rest, "by").map_or(1, number)),
            at: Millis(0),
        }),
        "ack" => Command::AckCursor(AckCursor {
            user: user(&rest[0]),
            device: DeviceId::new(&rest[1]).unwrap(),
            incarnation: Incarnation(number(required(rest, "inc"))),
            version: version(&rest[2]),
        }),
        "drop" => Command::DropDevice(DropDevice { user: user(&rest[0]), device: DeviceId::new(&rest[1]).unwrap() }),
        "policy" => Command::SetPolicy(Policy {
            tombstone_age_ms: time(required(rest, "age")).0,
            device_expiry_ms: time(required(rest, "silence")).0,
            user_quota_bytes: option(rest, "quota").map_or(0, number),
        }),
        "keys" => {
            let by = number(required(rest, "by"));
            Command::SetArchiveKeys(Box::new(ArchiveKeys {
                incarnation: Incarnation(number(required(rest, "inc"))),
                generation: number(&rest[0]) as u32,
                key_id: [by as u8; 16],
                keys_age: Bytes::from_static(b"age"),
                recipients: vec![ArchiveRecipient { key: "age1drill".into(), drill: true }],
                since: Millis(0),
            }))
        }
        "fork" => Command::LineageFork(Box::new(LineageFork {
            incarnation: Incarnation(number(required(rest, "inc"))),
            destination: rest[0].clone(),
            index: number(required(rest, "index")),
            evidence: "another entry".into(),
            verifier: NodeId(option(rest, "by").map_or(1, number)),
            since: Millis(0),
        })),
        "fill" => Command::FillPayloads(FillPayloads {
            incarnation: Incarnation(number(required(rest, "inc"))),
            stage: stage(&rest[0]),
            fills: inner.iter().map(|words| fill(words)).collect(),
            through: option(rest, "through").unwrap_or_default().to_owned().into(),
            ends: rest.iter().any(|word| word == "ends"),
        }),
        "barrier" => Command::SnapshotBarrier(SnapshotBarrier { operation_id: rest[0].clone() }),
        "attest" => {
            let (node, root) = (number(&rest[0]), number(required(rest, "root")) as u8);
            Command::Attest(Box::new(Attestation {
                incarnation: Incarnation(number(required(rest, "inc"))),
                index: number(required(rest, "index")),
                node: NodeId(node),
                key: [option(rest, "key").map_or(node, number) as u8; 32],
                word: Word { root: [root; 32], signature: [root; 64] },
            }))
        }
        "expire" => Command::Expire,
        "operation" => Command::SetOperation(Operation {
            id: rest[0].clone(),
            done: rest.iter().any(|word| word == "done"),
            stage: required(rest, "stage").into(),
            done_units: 1,
            total_units: 2,
            error: String::new(),
            ..Operation::default()
        }),
        other => panic!("unknown command {other}"),
    }
}

fn batch(words: &[String], inner: &[Vec<String>]) -> WriteBatch {
    let mut request_id = [0; 16];
    request_id[8..].copy_from_slice(&number(required(words, "req")).to_be_bytes());
    let mut batch = WriteBatch {
        user: user(&words[0]),
        request_id: RequestId(request_id),
        fingerprint: [0; 16],
        first_sent: option(words, "sent").map(time),
        device: option(words, "device").map(|text| DeviceId::new(text).unwrap()),
        if_head: option(words, "if_head").map(version),
        if_incarnation: option(words, "inc").map(|text| Incarnation(number(text))),
        mutations: inner.iter().map(|words| mutation(words)).collect(),
    };
    batch.fingerprint = fingerprint(&batch);
    batch
}

fn mutation(words: &[String]) -> Mutation {
    let (collection, record_id) = words[1].split_once('/').expect("collection/record");
    let key =
        RecordKey { collection: Collection::new(collection).unwrap(), record_id: RecordId::new(record_id).unwrap() };
    let op = match words[0].as_str() {
        "put" => Op::Put(Content {
            content_type: option(words, "type").unwrap_or("text/plain").into(),
            payload: Bytes::from(words[2].strip_prefix('"').expect("a quoted payload").to_string()),
            ttl_seconds: option(words, "ttl").map_or(0, |text| (time(text).0 / 1000) as u32),
        }),
        "delete" => Op::Delete,
        other => panic!("unknown mutation {other}"),
    };
    let guard = if let Some(expected) = option(words, "if_version") {
        Guard::Version(version(expected))
    } else if let Some(lost) = option(words, "lost") {
        Guard::Restore(RestoreGuard {
            lost: version(lost),
            common: version(required(words, "common")),
            incarnation: Incarnation(number(required(words, "of"))),
        })
    } else if words.iter().any(|word| word == "absent") {
        Guard::Absent
    } else if words.iter().any(|word| word == "exists") {
        Guard::Exists
    } else {
        Guard::None
    };
    Mutation { key, op, guard }
}

fn genesis(words: &[String]) -> Genesis {
    Genesis {
        cluster_id: [1; 16],
        cluster_name: "home".into(),
        incarnation: Incarnation(number(required(words, "inc"))),
        epoch: required(words, "epoch").parse().unwrap(),
        parent: option(words, "parent").map(|incarnation| Parent {
            cluster_id: [1; 16],
            incarnation: Incarnation(number(incarnation)),
            snapshot_index: 0,
            index: option(words, "held").map_or(0, number),
            chain: [0; 32],
        }),
        members: vec![NodeId(1)],
        restoring: option(words, "restoring").map_or(Vec::new(), |names| names.split(',').map(stage).collect()),
    }
}

fn stage(name: &str) -> Stage {
    Stage::of_name(name).unwrap_or_else(|| panic!("{name} is no stage"))
}

fn fill(words: &[String]) -> Fill {
    let (name, number) = words[0].split_once('=').expect("user=number");
    let (collection, record_id) = words[1].split_once('/').expect("collection/record");
    Fill {
        user: UserRef { slot: Slot::of(&user(name)), uid: Uid(version(number).0) },
        key: RecordKey {
            collection: Collection::new(collection).unwrap(),
            record_id: RecordId::new(record_id).unwrap(),
        },
        payload: Bytes::from(words[2].strip_prefix('"').expect("a quoted payload").to_string()),
    }
}

/// Words of a line; a quoted one keeps its spaces and its opening quote.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![];
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find('"').expect("a closing quote");
                (format!("\"{}", &quoted[..end]), &quoted[end + 1..])
            }
            None => {
                let end = rest.find(' ').unwrap_or(rest.len());
                (rest[..end].to_string(), &rest[end..])
            }
        };
        words.push(word);
        rest = after.trim_start();
    }
    words
}

fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn required<'a>(words: &'a [String], name: &str) -> &'a str {
    option(words, name).unwrap_or_else(|| panic!("{name}= is missing in {words:?}"))
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

fn user(text: &str) -> UserId {
    UserId::new(text).unwrap()
}

fn version(text: &str) -> Version {
    match text.split_once('.') {
        Some((epoch, counter)) => Version::new(epoch.parse().unwrap(), number(counter)),
        None => Version(number(text)),
    }
}

/// `24h5m10s250ms`, in this order, each part optional.
fn time(text: &str) -> Millis {
    let mut millis = 0;
    let mut rest = text;
    for (unit, factor) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (count, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        if digits > 0 && &after[..letters] == unit {
            millis += number(count) * factor;
            rest = &after[letters..];
        }
    }
    assert!(rest.is_empty(), "not a time: {text}");
    Millis(millis)
}
