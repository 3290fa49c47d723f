//! `[[offsite]]`: the destinations of a node.

use std::collections::BTreeMap;
use std::path::PathBuf;

use holdfast_archive::DestinationConfig;
use holdfast_archive::doctor::Verdict;

use super::{ConfigError, wrong};

/// An offsite destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offsite {
    /// Name, stable: it is part of the replicated facts.
    pub name: String,
    /// `file:///…`, `s3://…`, `gs://…` or `az://…`.
    pub url: String,
    /// Credentials of a bucket; `None` = from the environment.
    pub credentials_file: Option<PathBuf>,
    /// The log is kept until it is there.
    pub required: bool,
    /// Failure-domain labels.
    pub labels: BTreeMap<String, String>,
    /// What the doctor has to find, at least.
    pub expect: Verdict,
}

impl From<&Offsite> for DestinationConfig {
    fn from(offsite: &Offsite) -> Self {
        Self {
            name: offsite.name.clone(),
            url: offsite.url.clone(),
            credentials_file: offsite.credentials_file.clone(),
            required: offsite.required,
            labels: offsite.labels.clone(),
        }
    }
}

/// A copy that somebody else pulls, with credentials that no node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vault {
    /// Name, as its verifiers give it.
    pub name: String,
    /// Failure-domain labels.
    pub labels: BTreeMap<String, String>,
}

pub(super) fn read_vault(value: &toml::Value) -> Result<Vault, ConfigError> {
    let table = value.as_table().ok_or_else(|| wrong("vault", "must be a table with name and labels"))?;
    if let Some(key) = table.keys().find(|key| !["name", "labels"].contains(&key.as_str())) {
        return Err(ConfigError(format!("unknown configuration key \"vault.{key}\"; known: name, labels")));
    }
    let name = table.get("name").and_then(toml::Value::as_str).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| wrong("vault", "needs a text name"))?.to_owned();
    Ok(Vault { name, labels: labels_in(table) })
}

fn labels_in(table: &toml::Table) -> BTreeMap<String, String> {
    let labels = table.get("labels").and_then(toml::Value::as_table).into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Reads `site=y,custody=vault`.
pub(super) fn read_labels(key: &str, text: &str) -> Result<BTreeMap<String, String>, ConfigError> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let one = |pair: &str| match pair.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err(wrong(key, format!("{pair:?} is not name=value"))),
    };
    pairs.map(one).collect()
}

/// Reads a verdict.
pub(super) fn read_expect(key: &str, text: &str) -> Result<Verdict, ConfigError> {
    Verdict::parse(text).ok_or_else(|| wrong(key, format!("{text:?} is none of immutable, append-only, mutable")))
}

pub(super) fn read_offsite(value: &toml::Value) -> Result<Offsite, ConfigError> {
    let table = value.as_table().ok_or_else(|| wrong("offsite", "must be a table with name and url"))?;
    let text = |key: &str| {
        table
            .get(key)
            .and_then(toml::Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| wrong("offsite", format!("needs a text {key}")))
    };
    if let Some(key) = table
        .keys()
        .find(|key| !["name", "url", "credentials_file", "required", "labels", "expect"].contains(&key.as_str()))
    {
        return Err(ConfigError(format!(
            "unknown configuration key \"offsite.{key}\"; known: name, url, credentials_file, required, labels, expect"
        )));
    }
    let labels = labels_in(table);
    let required = match table.get("required") {
        None => true,
        Some(value) => value.as_bool().ok_or_else(|| wrong("offsite.required", "is neither true nor false"))?,
    };
    let credentials_file = match table.get("credentials_file") {
        None => None,
        Some(_) => Some(text("credentials_file")?.into()),
    };
    let expect = match table.get("expect") {
        None => Verdict::Immutable,
        Some(_) => read_expect("offsite.expect", &text("expect")?)?,
    };
    Ok(Offsite { name: text("name")?, url: text("url")?, credentials_file, required, labels, expect })
}
