//! Failure domains: a key and a value that copies share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::facts::Facts;

/// Keys that are always judged: without them a cluster whose nodes nobody labelled would look independent.
const ALWAYS: [&str; 2] = ["array", "site"];
/// Keys with a meaning of their own, in the order in which tables show them.
pub(crate) const KNOWN: [&str; 6] = ["site", "rack", "power", "array", "firmware", "custody"];

/// All copies with one value of one key: they are lost together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Domain {
    /// For example `array`.
    pub key: String,
    /// For example `san-07`; `None`: the copies that have no such label, which count as sharing one.
    pub value: Option<String>,
}

impl Domain {
    /// Of a copy with these labels.
    pub fn of(key: &str, labels: &BTreeMap<String, String>) -> Self {
        Self { key: key.to_owned(), value: labels.get(key).cloned() }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value.as_deref().unwrap_or("?"))
    }
}

/// A text that names no domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no failure domain; write it as key=value, for example array=san-07 (key=? for copies without it)")]
pub struct DomainError(String);

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        match text.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok(Self { key: key.to_owned(), value: (value != "?").then(|| value.to_owned()) })
            }
            Some(_) | None => Err(DomainError(text.to_owned())),
        }
    }
}

/// The keys by which copies are judged: `array`, `site`, those configured, and every key that some copy carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(Vec<String>);

impl Keys {
    /// For these facts, with further configured keys.
    pub fn of<'a>(facts: &'a Facts, configured: impl IntoIterator<Item = &'a str>) -> Self {
        let carried = facts.copies.iter().flat_map(|copy| copy.labels.keys().map(String::as_str));
        let all: BTreeSet<&str> = ALWAYS.into_iter().chain(configured).chain(carried).collect();
        let known = KNOWN.into_iter().filter(|key| all.contains(key));
        let further = all.iter().copied().filter(|key| !KNOWN.contains(key));
        Self(known.chain(further).map(str::to_owned).collect())
    }

    /// In the order in which tables show them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// True when copies are judged by this key.
    pub fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|known| known == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_reads_as_it_prints() {
        for text in ["array=san-07", "site=?", "x-cage=a=b"] {
            assert_eq!(text.parse::<Domain>().expect(text).to_string(), text);
        }
        assert_eq!("site=?".parse::<Domain>().expect("those without it").value, None);
        assert_eq!(" array = a1 ".parse::<Domain>().expect("trimmed").to_string(), "array=a1");
        for text in ["", "array", "=a1", "array=", "="] {
            let error = text.parse::<Domain>().expect_err(text).to_string();
            assert!(error.contains("key=value"), "{error}");
        }
    }
}
