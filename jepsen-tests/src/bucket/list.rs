//! LIST, in pages (ListObjectsV2).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use super::PREFIX;
use crate::folder;

/// Names on one page, folders included: so few that clients must turn pages.
const PAGE: usize = 100;

/// All names, sorted.
pub fn names(root: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut folders = vec![root.join(PREFIX)];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str) {
                names.insert(name.to_owned());
            }
        }
    }
    Ok(names)
}

/// One page, as a query asks for it, of what there is or of what is said to be there.
pub fn page(root: &Path, stale: Option<BTreeSet<String>>, query: &BTreeMap<String, String>) -> io::Result<String> {
    let asked = |name: &str| query.get(name).map(String::as_str);
    let (prefix, delimiter) = (asked("prefix").unwrap_or_default(), asked("delimiter").unwrap_or_default());
    let after = asked("continuation-token").or_else(|| asked("start-after")).unwrap_or_default();
    let most = asked("max-keys").and_then(|most| most.parse().ok()).unwrap_or(PAGE).min(PAGE);
    let names = match stale {
        Some(names) => names,
        None => names(root)?,
    };
    // An object, or everything in one folder: what comes after it begins behind all of that.
    let mut items: Vec<(String, bool)> = Vec::new();
    for name in names.iter().filter(|name| name.starts_with(prefix)) {
        let rest = &name[prefix.len()..];
        let item = match (!delimiter.is_empty()).then(|| rest.find(delimiter)).flatten() {
            Some(end) => (name[..prefix.len() + end + delimiter.len()].to_owned(), true),
            None => (name.clone(), false),
        };
        if item.0.as_str() > after && items.last() != Some(&item) {
            items.push(item);
        }
    }
    let more = items.len() > most;
    items.truncate(most);
    let mut page = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult>");
    let _ = write!(page, "<Prefix>{}</Prefix><KeyCount>{}</KeyCount>", escaped(prefix), items.len());
    let _ = write!(page, "<IsTruncated>{more}</IsTruncated>");
    if let Some((last, _)) = items.last().filter(|_| more) {
        let _ = write!(page, "<NextContinuationToken>{}</NextContinuationToken>", escaped(last));
    }
    for (name, is_folder) in &items {
        if *is_folder {
            let _ = write!(page, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(name));
            continue;
        }
        let file = fs::metadata(root.join(name))?;
        let changed = folder::iso_date(file.modified()?);
        let _ = write!(
            page,
            "<Contents><Key>{}</Key><LastModified>{changed}</LastModified><Size>{}</Size></Contents>",
            escaped(name),
            file.len()
        );
    }
    page.push_str("</ListBucketResult>");
    Ok(page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
