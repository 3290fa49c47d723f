//! `backup doctor` against real destinations: a folder, buckets that lock their objects or do not, and one whose locks can be
//! shortened. The exit codes and verdicts are contracts.

mod cluster;

use std::path::Path;

use cluster::holdfast;
use jepsen_tests::s3::{S3, program, program_that_unlocks};
use serde_json::Value;

struct Asked {
    code: i32,
    answer: Value,
    said: String,
}

impl Asked {
    /// What became of an attempt.
    fn outcome(&self, attempt: &str) -> &str {
        let all = self.answer["attempts"].as_array().into_iter().flatten();
        let found = all.into_iter().find(|one| one["attempt"] == attempt);
        found.and_then(|one| one["outcome"].as_str()).unwrap_or("none")
    }

    fn verdict(&self) -> &str {
        self.answer["verdict"].as_str().unwrap_or("none")
    }
}

fn ask(dir: &Path, from: &str, credentials: Option<&Path>, more: &[&str]) -> Asked {
    let key = dir.join("verifier.key").display().to_string();
    let mut args = vec!["backup", "doctor", "--from", from, "--verifier-key", &key];
    let credentials = credentials.map(|file| file.display().to_string());
    if let Some(file) = &credentials {
        args.extend(["--credentials", file]);
    }
    args.extend(more);
    let (_, _, said) = holdfast(&args);
    args.extend(["-o", "json"]);
    let (code, stdout, stderr) = holdfast(&args);
    let answer = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    Asked { code, answer, said }
}

#[test]
fn a_folder_is_append_only_and_that_has_to_be_expected() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = dir.path().join("offsite");
    std::fs::create_dir(&folder).expect("made");
    let from = format!("file://{}", folder.display());
    let asked = ask(dir.path(), &from, None, &[]);
    assert_eq!((asked.code, asked.verdict()), (3, "append-only"), "{}", asked.answer);
    assert_eq!(asked.outcome("create-twice"), "refused");
    // It is told what succeeded, and what to do.
    assert!(asked.said.contains("overwrite, delete succeeded") && asked.said.contains("append-only"), "{}", asked.said);
    for (expect, code) in [("append-only", 0), ("mutable", 0), ("immutable", 3)] {
        let asked = ask(dir.path(), &from, None, &["--expect", expect]);
        assert_eq!((asked.code, asked.verdict()), (code, "append-only"), "{expect}: {}", asked.answer);
    }
    // What it leaves is no fault of the archive, unless it was changed.
    let verify = || holdfast(&["backup", "verify", "--from", &from, "-o", "json"]);
    let (_, report, _) = verify();
    assert_eq!(serde_json::from_str::<Value>(&report).expect("JSON")["bad"], serde_json::json!([]), "{report}");
    let verdict = folder.join(asked.answer["object"].as_str().expect("a name"));
    let text = std::fs::read_to_string(&verdict).expect("there");
    std::fs::write(&verdict, text.replace("append-only", "immutable")).expect("forged");
    let (_, report, _) = verify();
    assert!(report.contains("its signature is not of these words"), "{report}");
    let (code, _, stderr) = holdfast(&["backup", "doctor", "--from", &from, "--expect", "locked"]);
    assert!(code == 2 && stderr.contains("append-only"), "{code} {stderr}");
    let (code, _, stderr) = holdfast(&["backup", "doctor", "--from", &format!("{from}/none")]);
    assert!(code == 2 && stderr.contains("is no folder"), "{code} {stderr}");
}

#[test]
fn destinations_of_a_configuration_are_each_asked_for_what_they_expect() {
    let dir = tempfile::tempdir().expect("tempdir");
    let write = |second: &str| {
        let folders = ["a", "b"].map(|name| dir.path().join(name));
        folders.iter().for_each(|folder| std::fs::create_dir_all(folder).expect("made"));
        let file = dir.path().join("holdfast.toml");
        let [a, b] = folders.map(|folder| folder.display().to_string());
        let text = format!(
            "[node]\nid = 1\ndata_dir = \"/nowhere\"\n[[offsite]]\nname = \"a\"\nurl = \"file://{a}\"\nexpect = \"append-only\"\n\
             [[offsite]]\nname = \"b\"\nurl = \"file://{b}\"\n{second}"
        );
        std::fs::write(&file, text).expect("written");
        let key = dir.path().join("verifier.key").display().to_string();
        let file = file.display().to_string();
        holdfast(&["backup", "doctor", "--config", &file, "--verifier-key", &key, "-o", "json"])
    };
    let (code, stdout, stderr) = write("");
    let answer: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    let meets = answer["destinations"].as_array().expect("a list").iter().map(|one| one["meets"].clone());
    assert_eq!((code, meets.collect::<Vec<_>>()), (3, vec![true.into(), false.into()]), "{stdout}");
    assert_eq!(write("expect = \"append-only\"\n").0, 0);
}

#[test]
fn a_bucket_is_immutable_where_its_locks_hold() {
    let Some(program) = program() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let s3 = S3::start(&program, &dir.path().join("s3"), "plain").expect("an S3 server");
    s3.make_locked_bucket("locked", "COMPLIANCE").expect("locks");
    s3.make_locked_bucket("bypassed", "GOVERNANCE").expect("locks");
    s3.make_versioned_bucket("versioned").expect("versions");
    let ask = |bucket: &str| ask(dir.path(), &s3.url_in(bucket, "holdfast/prod"), Some(s3.credentials()), &[]);

    let locked = ask("locked");
    assert_eq!((locked.code, locked.verdict()), (0, "immutable"), "{}", locked.answer);
    assert_eq!(locked.answer["lock"]["mode"], "COMPLIANCE");
    for attempt in ["create-twice", "shorten-lock", "delete-version"] {
        assert_eq!(locked.outcome(attempt), "refused", "{attempt}: {}", locked.answer);
    }
    // The bucket keeps the versions that they hide.
    for attempt in ["overwrite", "delete"] {
        assert!(["kept", "refused"].contains(&locked.outcome(attempt)), "{attempt}: {}", locked.answer);
    }
    let plain = ask("plain");
    assert_eq!((plain.code, plain.verdict()), (3, "mutable"), "{}", plain.answer);
    assert_eq!((plain.outcome("overwrite"), plain.outcome("delete")), ("succeeded", "succeeded"), "{}", plain.answer);
    assert!(plain.said.contains("overwrite, delete succeeded"), "{}", plain.said);
    let versioned = ask("versioned");
    assert_eq!((versioned.code, versioned.verdict()), (3, "mutable"), "{}", versioned.answer);
    assert_eq!((versioned.outcome("overwrite"), versioned.outcome("delete")), ("kept", "kept"), "{}", versioned.answer);
    assert_eq!(versioned.outcome("delete-version"), "succeeded", "{}", versioned.answer);
    assert!(versioned.said.contains("delete-version succeeded"), "{}", versioned.said);
    // Whoever has the right bypasses these locks.
    let bypassed = ask("bypassed");
    assert_eq!((bypassed.code, bypassed.verdict()), (3, "mutable"), "{}", bypassed.answer);
    assert_eq!(bypassed.outcome("shorten-lock"), "succeeded", "{}", bypassed.answer);
}

#[test]
fn a_server_whose_locks_can_be_shortened_is_found_out() {
    let Some(program) = program_that_unlocks() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let s3 = S3::start(&program, &dir.path().join("s3"), "plain").expect("an S3 server");
    s3.make_locked_bucket("locked", "COMPLIANCE").expect("locks");
    let locked = ask(dir.path(), &s3.url_in("locked", "x"), Some(s3.credentials()), &[]);
    assert_eq!((locked.code, locked.verdict()), (3, "mutable"), "{}", locked.answer);
    assert_eq!(locked.outcome("shorten-lock"), "succeeded", "{}", locked.answer);
    assert!(locked.said.contains("shorten-lock succeeded"), "{}", locked.said);
    let plain = ask(dir.path(), &s3.url_in("plain", "x"), Some(s3.credentials()), &[]);
    assert_eq!((plain.code, plain.verdict()), (3, "mutable"), "{}", plain.answer);
}
