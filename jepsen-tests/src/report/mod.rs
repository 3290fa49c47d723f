//! What a run looks like: plots of latency and rate with the faults behind them, and a timeline that opens at the
//! operation that broke a rule. Pure functions over a history and its reports; `serve` shows the same files.
//!
//! Invariant: nothing here judges. A picture that leaves something out says so in its caption.

mod plot;
mod spans;
mod timeline;

use std::path::Path;

use anyhow::Context;

use crate::checker::{Report, Verdict};
use crate::history::Op;

/// Names of the files, in the order in which people look at them.
pub const FILES: [(&str, &str); 3] =
    [("timeline.html", "timeline"), ("latency-raw.svg", "latency"), ("rate.svg", "rate")];

/// Draws a run into its folder.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, title: &str, history: &[Op], reports: &[Report]) -> anyhow::Result<()> {
    let run = spans::Run::of(history);
    let files = [timeline::html(title, &run, &evidence(reports)), plot::latency(title, &run), plot::rate(title, &run)];
    for ((name, _), text) in FILES.iter().zip(files) {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// What broke rules, the worst first: `rule: evidence`.
fn evidence(reports: &[Report]) -> Vec<String> {
    let mut rows: Vec<_> = reports.iter().flat_map(|report| &report.rows).collect();
    rows.retain(|row| row.verdict != Verdict::Valid);
    rows.sort_by_key(|row| std::cmp::Reverse(row.verdict));
    let lines = rows.into_iter().flat_map(|row| {
        let bare = row.evidence.is_empty().then(|| format!("{}: {} ({})", row.what, row.measured, row.required));
        row.evidence.iter().map(|one| format!("{}: {one}", row.what)).chain(bare).collect::<Vec<_>>()
    });
    lines.collect()
}

/// Text as it may stand in HTML and SVG.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests;
