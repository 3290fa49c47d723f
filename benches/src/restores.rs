//! What operators call to bring an archive back: how fast it is, and how well it says how long it takes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// What the binary said, as JSON, and on stderr.
#[derive(Debug)]
pub struct Said {
    /// Its answer.
    pub answer: serde_json::Value,
    /// Progress and errors.
    pub stderr: String,
}

/// Runs the binary with JSON as its output.
///
/// # Errors
/// It cannot be run, fails, or answers something else.
pub fn ask(holdfast: &Path, words: &[&str]) -> anyhow::Result<Said> {
    let output = Command::new(holdfast).args(words).args(["--output", "json"]).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "holdfast {}: {}: {stderr}", words.join(" "), output.status);
    Ok(Said { answer: serde_json::from_slice(&output.stdout)?, stderr })
}

/// How one restore went.
#[derive(Debug)]
pub struct Restored {
    /// From a snapshot, the log, or both.
    pub title: &'static str,
    /// Time that it took.
    pub ms: f64,
    /// By how many percent the plan was off.
    pub planned: f64,
    /// By how many percent the first line after the first tenth was off, if there was one.
    pub first_told: Option<f64>,
}

/// A drill, recorded beside the archive by a key that nobody keeps: what a plan and a restore then say goes by it.
///
/// # Errors
/// It fails, or finds a fault.
pub fn drill(holdfast: &Path, url: &str, dir: &Path) -> anyhow::Result<()> {
    let (key, scratch) = (dir.join("verifier.key").display().to_string(), dir.display().to_string());
    let found = ask(
        holdfast,
        &["drill", "run", "--from", url, "--scratch", &scratch, "--people", "10", "--verifier-key", &key],
    )?;
    let ms = |name: &str| found.answer["drill"][name].as_u64().unwrap_or(0);
    println!(
        "drill: restored in {:.1} s: verify {} ms, load {} ms, replay {} ms\n",
        ms("restore_ms") as f64 / 1e3,
        ms("verify_ms"),
        ms("load_ms"),
        ms("replay_ms")
    );
    Ok(())
}

/// Brings everything back, as an operator does: from the newest snapshot with its layers and the log after it, from the first
/// one, and from the log before it. Prints what each took.
///
/// # Errors
/// A restore fails, or the disk.
pub fn restore_all(holdfast: &Path, url: &str, dir: &Path) -> anyhow::Result<Vec<Restored>> {
    let listed = ask(holdfast, &["backup", "ls", "--from", url])?.answer;
    let first = listed["lineages"][0]["snapshots"][0]["index"].as_u64().context("no snapshot")?;
    let (first, before) = (first.to_string(), first.saturating_sub(1).to_string());
    let points = [("snapshot and log", "latest"), ("first snapshot", first.as_str()), ("log alone", before.as_str())];
    points.into_iter().map(|(title, at)| restore(holdfast, url, dir, title, at)).collect()
}

fn restore(holdfast: &Path, url: &str, dir: &Path, title: &'static str, at: &str) -> anyhow::Result<Restored> {
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    let planned = ask(holdfast, &["restore", "plan", "--from", url, "--at", at])?.answer;
    let data = dir.join(title.replace(' ', "-")).display().to_string();
    let run = ["restore", "run", "--from", url, "--data", &data, "--at", at, "--progress"];
    let Said { answer: done, stderr } = ask(holdfast, &run)?;
    std::fs::remove_dir_all(&data)?;
    let (ms, entries) = (number(&done["restore_ms"]), number(&done["entries_replayed"]));
    let bytes = number(&done["plan"]["bytes"]);
    let stage = |name: &str| number(&done["stage_ms"][name]);
    println!(
        "restore of three nodes from {title}: {} records, {entries} entries replayed, {:.0} MB stored, in {:.1} s",
        done["records"],
        bytes / 1e6,
        ms / 1e3
    );
    println!(
        "  verify {:.0} ms, {:.0} MB/s; load {:.0} ms; replay {:.0} ms, {:.0} entries/s; all {:.0} MB/s",
        stage("verify"),
        bytes / 1e3 / stage("verify").max(1.0),
        stage("load"),
        stage("replay"),
        entries * 1e3 / stage("replay").max(1.0),
        bytes / 1e3 / ms.max(1.0)
    );
    let told = stderr.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let after_a_tenth = told.filter_map(|line| {
        let (elapsed, eta) = (line["progress"]["elapsed_ms"].as_f64()?, line["progress"]["eta_ms"].as_f64()?);
        (elapsed >= ms / 10.0).then_some((elapsed + eta - ms) * 100.0 / ms)
    });
    let told: Vec<f64> = after_a_tenth.collect();
    let planned = (number(&planned["eta_ms"]) - ms) * 100.0 / ms;
    let shown: Vec<String> = told.iter().map(|off| format!("{off:+.0}")).collect();
    println!(
        "  time told by the plan: {planned:+.0} % off; while it ran, from the first tenth on: {} % off",
        if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
    );
    Ok(Restored { title, ms, planned, first_told: told.first().copied() })
}

fn titles(restores: &[Restored]) -> Vec<&'static str> {
    let mut titles: Vec<&str> = restores.iter().map(|one| one.title).collect();
    titles.sort_unstable();
    titles.dedup();
    titles
}

/// How far the times told were off, for each kind of restore.
pub fn summary(restores: &[Restored]) -> String {
    let mut lines = vec![format!("{:<20} {:<20} {:<24} {}", "restore from", "s", "plan off, %", "first tenth off, %")];
    for title in titles(restores) {
        let of_it: Vec<&Restored> = restores.iter().filter(|one| one.title == title).collect();
        let seconds: Vec<String> = of_it.iter().map(|one| format!("{:.1}", one.ms / 1e3)).collect();
        let listed = |off: &dyn Fn(&Restored) -> Option<f64>| {
            let of_each: Vec<String> =
                of_it.iter().map(|one| off(one).map_or_else(|| "-".to_owned(), |off| format!("{off:+.0}"))).collect();
            of_each.join(" ")
        };
        let (planned, told) = (listed(&|one| Some(one.planned)), listed(&|one| one.first_told));
        lines.push(format!("{title:<20} {:<20} {planned:<24} {told}", seconds.join(" ")));
    }
    lines.join("\n")
}
