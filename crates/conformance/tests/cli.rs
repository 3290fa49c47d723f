//! The command line, without a cluster: usage errors, the list of tests, refusals before anything starts.

use std::process::{Command, Output, Stdio};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast-conformance")).args(args).stdin(Stdio::null()).output().expect("runs")
}

#[track_caller]
fn assert_usage(args: &[&str], says: &str) {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{args:?}: {said}");
    assert!(said.contains(says), "{args:?} does not say {says:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn wrong_calls_end_with_64_and_say_what_to_do() {
    assert_usage(&[], "--endpoints");
    assert_usage(&["--no-such-flag"], "--no-such-flag");
    assert_usage(&["--endpoints", "h:1", "--holdfast", "x"], "cannot be used with");
    assert_usage(&["--endpoints", "h:1,h:2", "--admin", "h:3"], "same order");
    assert_usage(&["--endpoints", "h:1", "--only", "c99"], "--list");
    assert_usage(&["--endpoints", "h:1", "--transfers"], "--admin");
    assert_usage(&["--endpoints", "h:1", "--runs", "0"], "--runs");
    assert_usage(&["--endpoints", "h:1", "--seed", "x"], "--seed");
    assert_usage(&["--holdfast", "no/such/binary"], "no such file");
    assert_usage(&["--dir", "d"], "--holdfast");
}

#[test]
fn the_list_has_exactly_the_numbers_that_are_promised() {
    let output = run(&["--list"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("text");
    let numbers: Vec<u8> = text
        .lines()
        .map(|line| line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number"))
        .collect();
    let expected: Vec<u8> = (1..=3).chain(5..=33).chain(35..=41).chain([45, 47, 48, 49]).collect();
    assert_eq!(numbers, expected);
    for line in text.lines() {
        let (number, name) = line.trim().split_once("  ").expect("number and name");
        assert!(name.starts_with(&format!("c{number:0>2}_")), "{line}");
    }
}

#[test]
fn the_list_is_for_programs_too() {
    let output = run(&["--list", "--json"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let first: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["number"], 1);
}

#[test]
fn help_and_version_are_no_errors() {
    for flag in ["--help", "--version"] {
        assert_eq!(run(&[flag]).status.code(), Some(0), "{flag}");
    }
}

#[test]
fn what_needs_faults_is_skipped_loudly_and_counted() {
    // Nobody listens there: tests with faults must not even ask.
    let output = run(&["--endpoints", "127.0.0.1:1", "--only", "c01,c25", "--json", "--seed", "5"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["seed"], 5);
    for test in report["tests"].as_array().expect("tests") {
        assert_eq!(test["verdict"], "skipped");
        assert!(test["note"].as_str().expect("note").contains("--holdfast"), "{test}");
    }
    let table = run(&["--endpoints", "127.0.0.1:1", "--only", "c01,c25"]);
    let text = String::from_utf8(table.stdout).expect("text");
    assert!(text.contains("0 passed, 0 FAILED, 2 skipped"), "{text}");
}
