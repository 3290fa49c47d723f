//! What a phone keeps on its disk: a file of JSON lines per collection, and where it stands.
//!
//! Invariants: files are replaced whole; the place in the change feed is stored after what was changed up to it, so that
//! a crash in between repeats a page, which is harmless, and never skips one. Tombstones are kept: a server that was
//! restored to an older state must be told of deletions too.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use holdfast_client::v1;
use serde_json::{Value, json};

use crate::Failed;

/// What a person sees of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    pub content_type: String,
    pub text: String,
}

impl Content {
    pub fn of(record: &v1::Record) -> Option<Self> {
        let text = String::from_utf8_lossy(&record.payload).into_owned();
        record.delete_time.is_none().then(|| Self { content_type: record.content_type.clone(), text })
    }

    pub fn put(&self) -> v1::PutOp {
        let payload = self.text.clone().into_bytes().into();
        v1::PutOp { content_type: self.content_type.clone(), payload, ..Default::default() }
    }

    fn json(&self) -> Value {
        json!({"content_type": self.content_type, "text": self.text})
    }

    fn read(value: &Value) -> Option<Self> {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        Some(Self { content_type: text("content_type")?, text: text("text")? })
    }
}

/// Collection and record id.
pub type Key = (String, String);

/// Live records by key: what is compared in the end.
pub type Contents = BTreeMap<Key, Content>;

/// A record on the phone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// Version that the server gave; 0 = it has not seen it.
    pub version: u64,
    /// What the server acknowledged; `None` = deleted, or not seen.
    pub synced: Option<Content>,
    /// What the person made of it since; `Some(None)` = deleted.
    pub pending: Option<Option<Content>>,
}

impl Entry {
    pub fn shown(&self) -> Option<&Content> {
        self.pending.as_ref().unwrap_or(&self.synced).as_ref()
    }
}

#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    pub entries: BTreeMap<Key, Entry>,
    /// Where the phone stands in the change feed, and in which history.
    pub token: String,
    pub incarnation: u64,
}

impl Store {
    pub fn open(dir: &Path) -> Result<Self, Failed> {
        fs::create_dir_all(dir)?;
        let mut store = Self { dir: dir.to_owned(), entries: BTreeMap::new(), token: String::new(), incarnation: 0 };
        for file in fs::read_dir(dir)? {
            let path = file?.path();
            let (Some(name), Some("jsonl")) = (path.file_stem(), path.extension().and_then(|end| end.to_str())) else {
                continue;
            };
            let collection = name.to_string_lossy().into_owned();
            for line in fs::read_to_string(&path)?.lines() {
                let (id, entry) =
                    read_entry(line).ok_or_else(|| format!("{}: not an entry: {line}", path.display()))?;
                store.entries.insert((collection.clone(), id), entry);
            }
        }
        if let Ok(text) = fs::read_to_string(dir.join("state.json")) {
            let state: Value = serde_json::from_str(&text)?;
            store.token = state["token"].as_str().unwrap_or_default().to_owned();
            store.incarnation = state["incarnation"].as_u64().unwrap_or_default();
        }
        Ok(store)
    }

    pub fn save(&self) -> Result<(), Failed> {
        let mut files: BTreeMap<&str, String> = BTreeMap::new();
        for ((collection, id), entry) in &self.entries {
            let line = json!({
                "id": id,
                "version": entry.version,
                "synced": entry.synced.as_ref().map(Content::json),
                "changed": entry.pending.is_some(),
                "pending": entry.pending.as_ref().and_then(|pending| pending.as_ref().map(Content::json)),
            });
            let file = files.entry(collection).or_default();
            file.push_str(&line.to_string());
            file.push('\n');
        }
        for (collection, text) in files {
            replace(&self.dir.join(format!("{collection}.jsonl")), &text)?;
        }
        let state = json!({"token": self.token, "incarnation": self.incarnation});
        replace(&self.dir.join("state.json"), &state.to_string())
    }

    /// The person creates or changes a record (`None` = deletes it).
    pub fn edit(&mut self, collection: &str, id: &str, text: Option<&str>) -> Result<(), Failed> {
        let content_type = if collection == "contacts" { "text/vcard" } else { "text/calendar" };
        let content = text.map(|text| Content { content_type: content_type.into(), text: text.into() });
        self.entries.entry((collection.into(), id.into())).or_default().pending = Some(content);
        self.save()
    }

    pub fn contents(&self) -> Contents {
        let shown = |(key, entry): (&Key, &Entry)| Some((key.clone(), entry.shown()?.clone()));
        self.entries.iter().filter_map(shown).collect()
    }

    /// Puts aside what the server forgot long ago; the person can bring it back from there.
    pub fn trash(&mut self, key: &Key) -> Result<(), Failed> {
        if let Some(content) = self.entries.remove(key).and_then(|entry| entry.synced) {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("trash.txt"))?;
            writeln!(file, "{}", json!({"collection": key.0, "id": key.1, "content": content.json()}))?;
            file.sync_all()?;
        }
        Ok(())
    }
}

fn read_entry(line: &str) -> Option<(String, Entry)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let pending = value.get("changed")?.as_bool()?.then(|| Content::read(&value["pending"]));
    let entry = Entry { version: value.get("version")?.as_u64()?, synced: Content::read(&value["synced"]), pending };
    Some((value.get("id")?.as_str()?.to_owned(), entry))
}

/// Writes contents as a list that a later step compares with.
pub fn save_contents(path: &Path, contents: &Contents) -> Result<(), Failed> {
    let lines = contents.iter().map(|((collection, id), content)| {
        format!("{}\n", json!({"collection": collection, "id": id, "content": content.json()}))
    });
    replace(path, &lines.collect::<String>())
}

pub fn load_contents(path: &Path) -> Result<Contents, Failed> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("{}: {error}; run `--step before` first", path.display()))?;
    let read = |line: &str| -> Option<(Key, Content)> {
        let value: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        Some(((text("collection")?, text("id")?), Content::read(value.get("content")?)?))
    };
    let broken = || Failed::from(format!("{} is damaged", path.display()));
    text.lines().map(|line| read(line).ok_or_else(broken)).collect()
}

pub fn replace(path: &Path, text: &str) -> Result<(), Failed> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(fs::rename(new, path)?)
}
