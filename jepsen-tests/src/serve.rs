//! Runs in a browser: a list of all that lie in a folder, and their files. Loopback only; it reads, and writes nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::{Path as Asked, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;

use crate::report;

/// Serves the runs below `runs` until the process ends.
///
/// # Errors
/// When there is no such folder, or the port is taken.
pub async fn run(runs: PathBuf, port: u16) -> anyhow::Result<()> {
    ensure!(runs.is_dir(), "{} is no folder of runs", runs.display());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    println!("runs in {} at http://{}/", runs.display(), listener.local_addr()?);
    axum::serve(listener, router(runs)).await?;
    Ok(())
}

fn router(runs: PathBuf) -> Router {
    Router::new().route("/", get(index)).route("/{*path}", get(file)).with_state(runs)
}

async fn index(State(runs): State<PathBuf>) -> Response {
    let listed = tokio::task::spawn_blocking(move || list(&runs)).await;
    listed.map_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response(), |page| Html(page).into_response())
}

async fn file(State(runs): State<PathBuf>, Asked(path): Asked<String>) -> Response {
    let asked = Path::new(&path);
    if !asked.components().all(|part| matches!(part, Component::Normal(_))) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let kind = match asked.extension().and_then(|end| end.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        _ => "text/plain; charset=utf-8",
    };
    match tokio::fs::read(runs.join(asked)).await {
        Ok(bytes) => ([(header::CONTENT_TYPE, kind)], bytes).into_response(),
        Err(_) => (StatusCode::NOT_FOUND, "no such file in this folder of runs\n").into_response(),
    }
}

/// A row for each run, the newest first. Runs of a suite lie one folder deeper.
fn list(runs: &Path) -> String {
    let mut found = Vec::new();
    for folder in folders(runs) {
        if folder.join("test.json").exists() {
            found.push(folder);
        } else {
            found.extend(folders(&folder).into_iter().filter(|inner| inner.join("test.json").exists()));
        }
    }
    found.sort_by_key(|folder| std::cmp::Reverse(json(&folder.join("test.json"))["began"].to_string()));
    let rows: String = found.iter().map(|folder| row(runs, folder)).collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>runs</title><style>body{{font:14px \
         system-ui,sans-serif;margin:24px;color:#222}}table{{border-collapse:collapse}}td,th{{padding:4px 12px 4px 0;\
         text-align:left;border-bottom:1px solid #ddd}}.valid{{color:#1a7f37}}.invalid{{color:#c00;font-weight:600}}\
         .unknown{{color:#9a6700}}a{{color:#0072b2}}</style><h1>{} runs</h1><table><tr><th>began<th>workload<th>faults\
         <th>seed<th>verdict<th>broken<th>look at</tr>\n{rows}</table></html>\n",
        found.len()
    )
}

fn row(runs: &Path, folder: &Path) -> String {
    let (test, results) = (json(&folder.join("test.json")), json(&folder.join("results.json")));
    let text = |value: &Value| report::escaped(value.as_str().unwrap_or(""));
    let verdict = results["verdict"].as_str().unwrap_or("unknown");
    let rows = results["checkers"].as_array().into_iter().flatten().flat_map(|one| one["rows"].as_array()).flatten();
    let broken = rows.filter(|row| row["verdict"] != "valid").map(|row| text(&row["what"])).collect::<Vec<_>>();
    let place = folder.strip_prefix(runs).unwrap_or(folder).to_string_lossy().into_owned();
    let further = [("results.json", "results"), ("history.jsonl", "history"), ("test.json", "test")];
    let links = report::FILES.iter().chain(&further).filter(|(name, _)| folder.join(name).exists());
    let links = links.map(|(name, label)| format!("<a href=\"/{}/{name}\">{label}</a>", report::escaped(&place)));
    format!(
        "<tr><td>{}<td>{}<td>{}<td>{}<td class=\"{verdict}\">{verdict}<td>{}<td>{}</tr>\n",
        text(&test["began"]),
        text(&test["workload"]),
        text(&test["nemesis"]),
        test["seed"],
        broken.join("<br>"),
        links.collect::<Vec<_>>().join(" ")
    )
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(of).into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|path| path.is_dir()).collect()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).ok();
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn runs_are_listed_and_nothing_outside_is_given_out() {
        let dir = tempfile::tempdir().expect("tempdir");
        let run = dir.path().join("runs/suite/one");
        std::fs::create_dir_all(&run).expect("made");
        std::fs::write(dir.path().join("secret"), "secret").expect("written");
        std::fs::write(run.join("test.json"), r#"{"began":"2026","workload":"<set>","nemesis":"kill","seed":7}"#)
            .expect("written");
        let results = r#"{"verdict":"invalid","checkers":[{"rows":[{"what":"lost","verdict":"invalid"}]}]}"#;
        std::fs::write(run.join("results.json"), results).expect("written");
        let page = list(&dir.path().join("runs"));
        for part in ["1 runs", "&lt;set&gt;", "<td>7<td class=\"invalid\">invalid<td>lost", "/suite/one/results.json"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("timeline"), "what is not there is not linked: {page}");
        let runs = dir.path().join("runs");
        let get = async |path: &str| file(State(runs.clone()), Asked(path.to_owned())).await.status();
        assert_eq!(get("suite/one/results.json").await, StatusCode::OK);
        for outside in ["../secret", "suite/../../secret", "/etc/hostname", "suite/one/nothing"] {
            assert_eq!(get(outside).await, StatusCode::NOT_FOUND, "{outside}");
        }
    }
}
