//! The house rules of this repository, held by `make test`: who may depend on whom, who alone owns which library, what
//! files are called, how long they get, and what never stays in them.
//!
//! Every rule is a function from data to complaints, and comes with a test that feeds it a violation: a rule that can
//! no longer complain fails here, it does not pass in silence.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package of the workspace, named by its folder relative to the root.
struct Member {
    folder: String,
    dependencies: Vec<Dependency>,
    manifest: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Build,
    Dev,
}

struct Dependency {
    /// Package name, whatever the manifest renames it to.
    name: String,
    kind: Kind,
    /// Folder of the member it is, when it is one.
    member: Option<String>,
}

/// A text file, named relative to the root.
struct Source {
    path: String,
    text: String,
}

// ---------------------------------------------------------------------------------------------------------------------
// The rules
// ---------------------------------------------------------------------------------------------------------------------

/// What each crate may know. A row names only rows above it, so there is no cycle; a test below holds that.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("crates/model", &[]),
    ("crates/survey", &["crates/model"]),
    ("crates/wire", &["crates/model"]),
    ("crates/store", &["crates/model", "crates/wire"]),
    ("crates/replica", &["crates/model", "crates/wire", "crates/store"]),
    ("crates/archive", &["crates/model", "crates/wire", "crates/store"]),
    (
        "crates/server",
        &["crates/model", "crates/survey", "crates/wire", "crates/store", "crates/replica", "crates/archive"],
    ),
    ("crates/client", &["crates/model", "crates/wire"]),
    // The checkers hold a model of their own, written from the API: one shared with the servers would share its bugs.
    (JEPSEN_TESTS, &["crates/wire", "crates/client"]),
    ("crates/conformance", &["crates/wire", "crates/client", JEPSEN_TESTS]),
    (
        HOLDFAST,
        &[
            "crates/model",
            "crates/survey",
            "crates/wire",
            "crates/store",
            "crates/replica",
            "crates/archive",
            "crates/server",
            "crates/client",
        ],
    ),
    (
        "benches",
        &[
            "crates/model",
            "crates/wire",
            "crates/store",
            "crates/replica",
            "crates/archive",
            "crates/client",
            JEPSEN_TESTS,
        ],
    ),
];

/// Also the one harness for clusters of real processes: the tests of the binary run on it, the binary never does.
const JEPSEN_TESTS: &str = "jepsen-tests";
const HOLDFAST: &str = "crates/holdfast";

fn dependency_complaints(members: &[Member]) -> Vec<String> {
    let mut complaints = Vec::new();
    for member in members {
        let Some((_, allowed)) = MAY_KNOW.iter().find(|(folder, _)| *folder == member.folder) else {
            complaints.push(format!("{}: not in the table of crates; decide what it may know", member.folder));
            continue;
        };
        for dependency in &member.dependencies {
            let Some(target) = &dependency.member else { continue };
            let dev = dependency.kind == Kind::Dev;
            let tests_on_the_model = dev && target == "crates/model" && member.folder != JEPSEN_TESTS;
            let tests_on_the_harness = dev && target == JEPSEN_TESTS && member.folder == HOLDFAST;
            if !allowed.contains(&target.as_str()) && !tests_on_the_model && !tests_on_the_harness {
                complaints.push(format!("{} may not depend on {target}", member.folder));
            }
        }
    }
    complaints
}

/// Libraries (a trailing `*` means any name that starts so) and the only members that may name them, tests included.
const OWNERS: &[(&str, &[&str])] = &[
    ("rocksdb", &["crates/store"]),
    ("librocksdb-sys", &["crates/store"]),
    ("openraft*", &["crates/replica"]),
    ("object_store", &["crates/archive"]),
    ("age", &["crates/archive"]),
    ("chacha20poly1305", &["crates/archive"]),
    // Benches speak the protocol of a server that Holdfast is compared with; its own is nobody's but `wire`'s.
    ("prost*", &["crates/wire", "benches"]),
    ("protox*", &["crates/wire"]),
    ("tonic-prost*", &["crates/wire", "benches"]),
    ("tonic*", &["crates/wire", "crates/replica", "crates/server", "crates/client", "crates/conformance", "benches"]),
    ("clap*", &["crates/holdfast", "crates/conformance", JEPSEN_TESTS, "benches"]),
];

fn owner_complaints(members: &[Member]) -> Vec<String> {
    let mut complaints = Vec::new();
    for member in members {
        for dependency in &member.dependencies {
            for (library, owners) in OWNERS {
                let named = match library.strip_suffix('*') {
                    Some(prefix) => dependency.name.starts_with(prefix),
                    None => dependency.name == *library,
                };
                if named && !owners.contains(&member.folder.as_str()) {
                    complaints.push(format!(
                        "{} may not depend on {}: only {} may",
                        member.folder,
                        dependency.name,
                        owners.join(", ")
                    ));
                }
            }
        }
    }
    complaints
}

/// Every member takes the workspace's lints; without these two lines none of them apply to it.
fn lints_complaints(members: &[Member]) -> Vec<String> {
    members
        .iter()
        .filter(|member| !member.manifest.contains("[lints]\nworkspace = true"))
        .map(|member| format!("{}/Cargo.toml lacks [lints] workspace = true", member.folder))
        .collect()
}

/// Names that say nothing of what is inside, for files and for the folders of modules.
const NAMELESS: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

fn name_complaints<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut complaints = Vec::new();
    for path in paths.into_iter().filter(|path| path.ends_with(".rs")) {
        for part in path.split('/') {
            let stem = part.strip_suffix(".rs").unwrap_or(part);
            if NAMELESS.contains(&stem) {
                complaints.push(format!("{path}: `{stem}` says nothing; name what is inside"));
            }
            let version = stem.rsplit_once("_v").map(|(_, digits)| digits);
            if version.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())) {
                complaints.push(format!("{path}: no `_v2` siblings; change the one there is"));
            }
        }
    }
    complaints
}

/// Everything that may lie at the top of the repository.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".config",
    ".editorconfig",
    ".gitattributes",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "benches",
    "clippy.toml",
    "crates",
    "deploy",
    "jepsen-tests",
    "proto",
    "rust-toolchain.toml",
    "rustfmt.toml",
];

fn top_level_complaints<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<&str> = paths.into_iter().map(|path| path.split('/').next().unwrap_or(path)).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !TOP_LEVEL.contains(name));
    names.into_iter().map(|name| format!("{name}: not one of the names at the top level")).collect()
}

/// Beyond this a file holds more than one idea. Test files may be longer.
const LINES_MAX: usize = 600;

fn length_complaints(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| source.path.ends_with(".rs") && !is_test(&source.path))
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(source, lines)| format!("{}: {lines} lines, at most {LINES_MAX}", source.path))
        .collect()
}

/// In a `tests/` folder, or an inline test module moved into a sibling `tests.rs`.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests") || path.ends_with("tests.rs")
}

/// Split, so that this file does not hold what it forbids.
const UNFINISHED: &[&str] =
    &[concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!("), concat!("#[", "ignore")];

fn unfinished_complaints(sources: &[Source]) -> Vec<String> {
    let code: Vec<&Source> = sources.iter().filter(|source| source.path.ends_with(".rs")).collect();
    lines_with(&code, UNFINISHED, "has no place in finished code")
}

/// Paths that exist on one machine only.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/.lib", "rary"), concat!("../sha", "red/")];

fn machine_path_complaints(sources: &[Source]) -> Vec<String> {
    lines_with(&sources.iter().collect::<Vec<_>>(), MACHINE_PATHS, "is a path of one machine")
}

fn lines_with(sources: &[&Source], needles: &[&str], what: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            for needle in needles.iter().filter(|needle| line.contains(**needle)) {
                complaints.push(format!("{}:{}: `{needle}` {what}", source.path, index + 1));
            }
        }
    }
    complaints
}

/// A newcomer finds both commands in the README.
fn readme_complaints(readme: &str) -> Vec<String> {
    ["make demo", "make test"]
        .into_iter()
        .filter(|command| !readme.contains(command))
        .map(|command| format!("README.md does not mention `{command}`"))
        .collect()
}

/// Where nodes name their metrics.
const METRICS: &str = "crates/server/src/http.rs";
/// What a histogram's series are called beyond its name.
const OF_A_HISTOGRAM: &[&str] = &["_bucket", "_sum", "_count"];

/// Alerts and dashboards name only metrics that nodes export.
fn metric_complaints(sources: &[Source]) -> Vec<String> {
    let exported: Vec<&str> = sources.iter().filter(|source| source.path == METRICS).flat_map(metric_names).collect();
    let is_exported = |name: &str| {
        let stems = OF_A_HISTOGRAM.iter().filter_map(|suffix| name.strip_suffix(suffix));
        std::iter::once(name).chain(stems).any(|name| exported.contains(&name))
    };
    let mut complaints = Vec::new();
    for source in sources
        .iter()
        .filter(|source| ["deploy/prometheus/", "deploy/grafana/"].iter().any(|folder| source.path.starts_with(folder)))
    {
        let unknown = metric_names(source).filter(|name| !is_exported(name));
        complaints.extend(unknown.map(|name| format!("{}: no node exports {name}", source.path)));
    }
    complaints
}

fn metric_names(source: &Source) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    source.text.split(move |c| !is_part(c)).filter(|word| word.starts_with("holdfast_"))
}

// ---------------------------------------------------------------------------------------------------------------------
// The repository
// ---------------------------------------------------------------------------------------------------------------------

fn root() -> PathBuf {
    // Asked when the test runs: a binary that another clone left in a shared target directory names that clone's files.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).join("../..").canonicalize().unwrap()
}

fn output_of(program: impl Into<OsString>, arguments: &[&str]) -> String {
    let program = program.into();
    let output = Command::new(&program).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{program:?} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn members() -> Vec<Member> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let json = output_of(cargo, &["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"]);
    members_in(&serde_json::from_str(&json).unwrap(), &root())
}

fn members_in(metadata: &serde_json::Value, root: &Path) -> Vec<Member> {
    let folder_of = |path: &str| Path::new(path).strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            let dependencies = package["dependencies"].as_array().unwrap().iter().map(|dependency| Dependency {
                name: dependency["name"].as_str().unwrap().to_owned(),
                kind: match dependency["kind"].as_str() {
                    None => Kind::Normal,
                    Some("build") => Kind::Build,
                    Some("dev") => Kind::Dev,
                    Some(other) => panic!("cargo knows a kind of dependency that this test does not: {other}"),
                },
                member: dependency["path"].as_str().map(folder_of),
            });
            Member {
                folder: folder_of(manifest.parent().unwrap().to_str().unwrap()),
                dependencies: dependencies.collect(),
                manifest: std::fs::read_to_string(manifest).unwrap_or_default(),
            }
        })
        .collect()
}

/// What git tracks or would track; in a tree without git (a source archive), everything but build output.
fn paths() -> Vec<String> {
    let root = root();
    if root.join(".git").exists() {
        let listed = output_of("git", &["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        // A file deleted but not yet committed is still listed.
        return listed.split_terminator('\0').filter(|path| root.join(path).exists()).map(str::to_owned).collect();
    }
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            match entry.file_type().unwrap().is_dir() {
                true if entry.file_name() == "target" => {}
                true => folders.push(path),
                false => found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found
}

/// The files that are text; a photo is not.
fn sources() -> Vec<Source> {
    let root = root();
    paths()
        .into_iter()
        .filter_map(|path| {
            let text = String::from_utf8(std::fs::read(root.join(&path)).unwrap()).ok()?;
            Some(Source { path, text })
        })
        .collect()
}

#[track_caller]
fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n  {}\n", complaints.join("\n  "));
}

#[test]
fn the_whole_repository_is_looked_at() {
    let folders: Vec<String> = members().into_iter().map(|member| member.folder).collect();
    let paths = paths();
    for entry in std::fs::read_dir(root().join("crates")).unwrap().map(Result::unwrap) {
        let folder = format!("crates/{}", entry.file_name().to_str().unwrap());
        assert!(folders.contains(&folder), "{folder} is no member of the workspace: {folders:?}");
        let manifest = format!("{folder}/Cargo.toml");
        assert!(paths.contains(&manifest), "{manifest} is not among the files looked at");
    }
    for file in ["Cargo.toml", "Makefile", "proto/buf.yaml", "crates/holdfast/tests/tidy.rs"] {
        assert!(sources().iter().any(|source| source.path == file), "{file} is not among the files looked at");
    }
}

#[test]
fn crates_know_only_what_they_may() {
    assert_none(dependency_complaints(&members()));
}

#[test]
fn libraries_have_one_owner() {
    assert_none(owner_complaints(&members()));
}

#[test]
fn every_crate_takes_the_lints() {
    assert_none(lints_complaints(&members()));
}

#[test]
fn files_have_telling_names() {
    assert_none(name_complaints(paths().iter().map(String::as_str)));
}

#[test]
fn the_top_level_holds_only_what_belongs_there() {
    assert_none(top_level_complaints(paths().iter().map(String::as_str)));
}

#[test]
fn files_hold_one_idea() {
    assert_none(length_complaints(&sources()));
}

#[test]
fn nothing_is_unfinished() {
    assert_none(unfinished_complaints(&sources()));
}

#[test]
fn nothing_names_one_machine() {
    assert_none(machine_path_complaints(&sources()));
}

#[test]
fn alerts_and_dashboards_name_metrics_that_exist() {
    let sources = sources();
    assert!(sources.iter().any(|source| source.path == METRICS), "{METRICS} is not where metrics are named");
    assert_none(metric_complaints(&sources));
}

#[test]
fn the_readme_shows_the_commands() {
    assert_none(readme_complaints(&std::fs::read_to_string(root().join("README.md")).unwrap()));
}

// ---------------------------------------------------------------------------------------------------------------------
// Each rule complains
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn an_alert_on_a_metric_that_nobody_exports_is_found() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let exported = source(METRICS, "(\"holdfast_raft_term\", \"Term.\"), \"holdfast_wait_seconds\"");
    let fine = source("deploy/prometheus/x.yml", "expr: rate(holdfast_wait_seconds_bucket[5m]) + holdfast_raft_term");
    let wrong = source("deploy/grafana/x.json", "\"expr\": \"holdfast_raft_terms > 1\"");
    let elsewhere = source("README.md", "holdfast_nothing");
    let complaints = metric_complaints(&[exported, fine, wrong, elsewhere]);
    assert_eq!(complaints, ["deploy/grafana/x.json: no node exports holdfast_raft_terms"]);
}

fn member(folder: &str) -> Member {
    Member {
        folder: folder.to_owned(),
        dependencies: Vec::new(),
        manifest: "[package]\n\n[lints]\nworkspace = true\n".to_owned(),
    }
}

impl Member {
    fn knows(mut self, folder: &str, kind: Kind) -> Self {
        let name = folder.replace("crates/", "holdfast-");
        self.dependencies.push(Dependency { name, kind, member: Some(folder.to_owned()) });
        self
    }

    fn uses(mut self, library: &str, kind: Kind) -> Self {
        self.dependencies.push(Dependency { name: library.to_owned(), kind, member: None });
        self
    }
}

fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

#[test]
fn a_dependency_upwards_is_seen() {
    for kind in [Kind::Normal, Kind::Build, Kind::Dev] {
        let complaints = dependency_complaints(&[member("crates/wire").knows("crates/store", kind)]);
        assert_eq!(complaints, ["crates/wire may not depend on crates/store"]);
    }
    let complaints = dependency_complaints(&[member("crates/model").knows("crates/wire", Kind::Normal)]);
    assert_eq!(complaints, ["crates/model may not depend on crates/wire"]);
    let complaints = dependency_complaints(&[member("crates/client").knows("crates/server", Kind::Dev)]);
    assert_eq!(complaints, ["crates/client may not depend on crates/server"]);
    assert_none(dependency_complaints(&[member("crates/store").knows("crates/model", Kind::Normal)]));
}

#[test]
fn only_tests_other_than_the_checkers_may_reach_for_the_model() {
    assert_none(dependency_complaints(&[member("benches").knows("crates/model", Kind::Dev)]));
    for kind in [Kind::Normal, Kind::Build, Kind::Dev] {
        let complaints = dependency_complaints(&[member("jepsen-tests").knows("crates/model", kind)]);
        assert_eq!(complaints, ["jepsen-tests may not depend on crates/model"]);
    }
}

#[test]
fn only_the_tests_of_the_binary_and_load_programs_run_on_the_harness() {
    assert_none(dependency_complaints(&[
        member("crates/holdfast").knows("jepsen-tests", Kind::Dev),
        member("benches").knows("jepsen-tests", Kind::Normal),
    ]));
    for kind in [Kind::Normal, Kind::Build] {
        let complaints = dependency_complaints(&[member("crates/holdfast").knows("jepsen-tests", kind)]);
        assert_eq!(complaints, ["crates/holdfast may not depend on jepsen-tests"]);
    }
    let complaints = dependency_complaints(&[member("crates/server").knows("jepsen-tests", Kind::Dev)]);
    assert_eq!(complaints, ["crates/server may not depend on jepsen-tests"]);
}

#[test]
fn an_unknown_crate_is_seen() {
    let complaints = dependency_complaints(&[member("crates/extras")]);
    assert_eq!(complaints, ["crates/extras: not in the table of crates; decide what it may know"]);
}

#[test]
fn the_table_has_no_cycle() {
    for (row, (folder, allowed)) in MAY_KNOW.iter().enumerate() {
        for target in *allowed {
            assert!(MAY_KNOW[..row].iter().any(|(above, _)| above == target), "{target} is not above {folder}");
        }
    }
}

#[test]
fn a_second_owner_is_seen() {
    for (folder, library) in [
        ("crates/server", "rocksdb"),
        ("crates/server", "openraft"),
        ("crates/server", "openraft-rt-tokio"),
        ("crates/server", "object_store"),
        ("crates/server", "prost-types"),
        ("crates/server", "tonic-prost"),
        ("crates/holdfast", "tonic"),
        ("crates/server", "clap_complete"),
    ] {
        for kind in [Kind::Normal, Kind::Build, Kind::Dev] {
            let complaints = owner_complaints(&[member(folder).uses(library, kind)]);
            assert_eq!(complaints.len(), 1, "{folder} {library}: {complaints:?}");
            assert!(complaints[0].starts_with(&format!("{folder} may not depend on {library}: only ")));
        }
    }
    assert_none(owner_complaints(&[
        member("crates/store").uses("rocksdb", Kind::Normal),
        member("crates/server").uses("tonic-health", Kind::Normal),
        member("crates/wire").uses("tonic-prost-build", Kind::Build),
    ]));
}

#[test]
fn a_crate_without_lints_is_seen() {
    let bare = Member { manifest: "[package]\n".to_owned(), ..member("crates/model") };
    assert_eq!(lints_complaints(&[bare]), ["crates/model/Cargo.toml lacks [lints] workspace = true"]);
    assert_none(lints_complaints(&[member("crates/model")]));
}

#[test]
fn cargo_metadata_is_read() {
    let metadata = serde_json::json!({ "packages": [{
        "manifest_path": "/repo/crates/wire/Cargo.toml",
        "dependencies": [
            { "name": "holdfast-model", "kind": null, "path": "/repo/crates/model" },
            { "name": "rocksdb", "rename": "innocent", "kind": "dev" },
            { "name": "protox", "kind": "build" },
        ],
    }]});
    let members = members_in(&metadata, Path::new("/repo"));
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].folder, "crates/wire");
    let [model, rocksdb, protox] = &members[0].dependencies[..] else { panic!("three dependencies") };
    assert_eq!(model.member.as_deref(), Some("crates/model"));
    assert!(model.kind == Kind::Normal && rocksdb.kind == Kind::Dev && protox.kind == Kind::Build);
    assert_eq!(rocksdb.name, "rocksdb");
}

#[test]
fn a_nameless_file_is_seen() {
    for path in ["crates/model/src/utils.rs", "crates/store/tests/common/mod.rs", "crates/wire/src/misc.rs"] {
        assert_eq!(name_complaints([path]).len(), 1, "{path}");
    }
    for path in ["crates/wire/src/log_v2.rs", "crates/wire/src/log_v12/mod.rs"] {
        assert_eq!(name_complaints([path]), [format!("{path}: no `_v2` siblings; change the one there is")]);
    }
    assert_none(name_complaints(["crates/store/src/commonplace.rs", "proto/common/a.proto", "src/read_view.rs"]));
}

#[test]
fn a_stray_file_at_the_top_is_seen() {
    let complaints = top_level_complaints(["notes.txt", "src/main.rs", "crates/model/src/lib.rs", "Makefile"]);
    assert_eq!(
        complaints,
        ["notes.txt: not one of the names at the top level", "src: not one of the names at the top level"]
    );
}

#[test]
fn a_long_file_is_seen() {
    let long = "\n".repeat(LINES_MAX + 1);
    let complaints = length_complaints(&[source("jepsen-tests/src/run.rs", &long)]);
    assert_eq!(complaints, ["jepsen-tests/src/run.rs: 601 lines, at most 600"]);
    assert_none(length_complaints(&[
        source("crates/store/src/log.rs", &"\n".repeat(LINES_MAX)),
        source("crates/store/src/log/tests.rs", &long),
        source("crates/holdfast/tests/demo.rs", &long),
        source("Cargo.lock", &long),
    ]));
}

#[test]
fn unfinished_code_is_seen() {
    for needle in UNFINISHED {
        let complaints = unfinished_complaints(&[source("crates/wire/src/api.rs", &format!("fn f() {{\n  {needle}"))]);
        assert_eq!(complaints, [format!("crates/wire/src/api.rs:2: `{needle}` has no place in finished code")]);
    }
    assert_none(unfinished_complaints(&[source("crates/model/src/id.rs", "Todos,\n// ignore the rest")]));
}

#[test]
fn a_machine_path_is_seen() {
    for needle in MACHINE_PATHS {
        let complaints = machine_path_complaints(&[source("deploy/README.md", &format!("see {needle}x"))]);
        assert_eq!(complaints, [format!("deploy/README.md:1: `{needle}` is a path of one machine")]);
    }
    assert_none(machine_path_complaints(&[source("deploy/README.md", "/var/lib/holdfast, the framework/rootless")]));
}

#[test]
fn a_readme_without_the_commands_is_seen() {
    assert_eq!(readme_complaints("run `make test`"), ["README.md does not mention `make demo`"]);
    assert_eq!(readme_complaints("run `make demo`"), ["README.md does not mention `make test`"]);
    assert_none(readme_complaints("`make demo`, `make test`"));
}
