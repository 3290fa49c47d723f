//! What was measured, for people and for programs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use holdfast_benches::measure::load_average;
use serde_json::{Value, json};

use crate::figures::Outcome;
use crate::goals::Judged;
use crate::peer::Who;
use crate::svg;

/// Figures of cells under load: name, head, digits behind the point.
const COLUMNS: &[(&str, &str, usize)] = &[
    ("ops_per_s", "ops/s", 0),
    ("p50_ms", "p50 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("server_us", "server µs", 1),
    ("client_us", "client µs", 1),
    ("written_per_byte", "disk B/B", 1),
    ("memory_mib", "MiB/node", 0),
];

fn is_load(outcome: &Outcome) -> bool {
    outcome.median(Who::Holdfast, "ops_per_s").is_some() && outcome.median(Who::Holdfast, "p50_ms").is_some()
}

/// A figure without needless digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        0.0..0.1 => format!("{value:.3}"),
        0.0..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

fn load_table(outcomes: &[&Outcome]) -> String {
    let mut text = format!("{:<15} {:<10}", "cell", "peer");
    COLUMNS.iter().for_each(|(_, head, _)| text += &format!(" {head:>10}"));
    text += &format!(" {:>12} {:>12}\n", "rate x etcd", "CPU x etcd");
    for outcome in outcomes.iter().filter(|outcome| is_load(outcome)) {
        for who in outcome.rounds.keys() {
            text += &format!("{:<15} {:<10}", outcome.cell, who.name());
            for (figure, _, digits) in COLUMNS {
                let value = outcome.median(*who, figure).map_or("-".to_owned(), |value| format!("{value:.digits$}"));
                text += &format!(" {value:>10}");
            }
            for figure in ["ops_per_s", "server_us"] {
                let ratio = outcome.ratio((*who, figure), (Who::Etcd, figure));
                text += &format!(" {:>12}", ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
            }
            text.push('\n');
        }
    }
    text
}

/// Cells with figures of their own: a line for each figure, peers beside each other.
fn other_table(outcomes: &[&Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes.iter().filter(|outcome| !is_load(outcome)) {
        let mut names: Vec<&String> = outcome.rounds.values().flatten().flat_map(|round| round.keys()).collect();
        names.sort_unstable();
        names.dedup();
        text += &format!("\n{:<40}", outcome.cell);
        outcome.rounds.keys().for_each(|who| text += &format!(" {:>10} {:>10}", who.name(), "most"));
        text.push('\n');
        for name in names {
            text += &format!("  {name:<38}");
            for who in outcome.rounds.keys() {
                let of = |value: Option<f64>| value.map_or("-".to_owned(), short);
                text += &format!(" {:>10} {:>10}", of(outcome.median(*who, name)), of(outcome.most(*who, name)));
            }
            text.push('\n');
        }
    }
    text
}

fn goal_table(judged: &[Judged]) -> String {
    let mut text = format!("\n{:<46} {:>10}  {:<22} \n", "goal", "measured", "asked");
    for goal in judged {
        let measured = goal.measured.map_or("-".to_owned(), short);
        text += &format!("{:<46} {measured:>10}  {:<22} {}\n", goal.goal, goal.asked, goal.verdict.name());
    }
    text
}

/// Tables on the terminal.
pub fn print(outcomes: &[&Outcome], judged: &[Judged], absent: &BTreeMap<Who, String>) {
    println!(
        "three processes each on loopback, fsync on; medians over rounds, ratios taken round by round; servers' CPU and"
    );
    println!(
        "bytes to the disk (of the whole machine) for each byte of payload: of all three; load average {}",
        load_average()
    );
    if outcomes.iter().any(|outcome| is_load(outcome)) {
        print!("\n{}", load_table(outcomes));
    }
    print!("{}", other_table(outcomes));
    for outcome in outcomes {
        outcome.notes.iter().for_each(|note| println!("{}: {note}", outcome.cell));
    }
    if !judged.is_empty() {
        print!("{}", goal_table(judged));
    }
    for (who, why) in absent {
        println!("without {}: {why}; what is compared with it could not be judged", who.name());
    }
}

/// `peers.json` and `peers.svg`.
///
/// # Errors
/// When it cannot be written.
pub fn write(
    dir: &Path,
    outcomes: &[&Outcome],
    judged: &[Judged],
    absent: &BTreeMap<Who, String>,
) -> anyhow::Result<()> {
    let medians = |outcome: &Outcome, who: Who| {
        let names = outcome.rounds[&who].iter().flat_map(|round| round.keys());
        let medians = names.filter_map(|name| Some((name.clone(), json!(outcome.median(who, name)?))));
        Value::Object(medians.collect())
    };
    let cell = |outcome: &&Outcome| {
        let of = |who: &Who| {
            (who.name().to_lowercase(), json!({"medians": medians(outcome, *who), "rounds": outcome.rounds[who]}))
        };
        json!({
            "cell": outcome.cell,
            "peers": outcome.rounds.keys().map(of).collect::<serde_json::Map<_, _>>(),
            "notes": outcome.notes,
        })
    };
    let report = json!({
        "binary": outcomes.first().map(|outcome| &outcome.binary),
        "cells": outcomes.iter().map(cell).collect::<Vec<_>>(),
        "goals": judged,
        "absent": absent,
    });
    for (name, text) in [("peers.json", format!("{report:#}\n")), ("peers.svg", svg::draw(outcomes))] {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
