use holdfast_archive::doctor::Verdict;

use super::*;

fn load(sets: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut all = vec![("node.id".to_owned(), "1".to_owned()), ("node.data_dir".to_owned(), "d".to_owned())];
    all.extend(sets.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Config::load(None, &all)
}

#[test]
fn defaults_are_valid_and_overrides_win() {
    let config = load(&[("raft.heartbeat_ms", "30"), ("node.labels.array", "a1")]).expect("valid");
    assert_eq!(config.heartbeat_ms, 30);
    assert_eq!(config.listen.client, "127.0.0.1:7470");
    assert_eq!(config.advertise, config.listen);
    assert_eq!(config.labels["array"], "a1");
}

#[test]
fn unknown_keys_and_wrong_values_are_named() {
    for (key, value) in [
        ("raft.heartbeat", "30"),
        ("raft.heartbeat_ms", "fast"),
        ("log.filter", "=["),
        ("raft.heartbeat_ms", "1"),
        // A segment of the archive is never larger than 16 MiB.
        ("ship.segment_bytes", "16777217"),
        ("raft.election_min_ms", "60"),
        ("raft.election_max_ms", "100"),
        ("listen.peer", "nowhere"),
        ("insecure_plaintext", "yes"),
    ] {
        let error = load(&[(key, value)]).expect_err(key).to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn labels_belong_to_the_destination_before_them() {
    let sets = [
        ("offsite", "file:///a"),
        ("offsite.labels", "site=y, custody=vault"),
        ("offsite", "file:///b"),
        ("offsite", "file:///c"),
        ("offsite.labels", "site=z"),
        ("placement.keys", "array, site"),
    ];
    let config = load(&sets).expect("valid");
    assert_eq!((config.offsite[0].labels["site"].as_str(), config.offsite[0].labels.len()), ("y", 2));
    assert!(config.offsite[1].labels.is_empty());
    assert_eq!((config.offsite[2].labels["site"].as_str(), config.offsite[2].labels.len()), ("z", 1));
    assert_eq!(config.placement_keys, ["array", "site"]);
    let vaults = [("vault", "far"), ("vault.labels", "site=z, custody=auditor"), ("vault", "near")];
    let vaults = load(&vaults).expect("valid").vaults;
    assert_eq!((vaults[0].name.as_str(), vaults[0].labels["custody"].as_str()), ("far", "auditor"));
    assert!(vaults[1].labels.is_empty());
    for wrong in [
        &[("vault.labels", "site=y")][..],
        &[("vault", "a"), ("vault", "a")],
        &[("vault", "offsite"), ("offsite", "file:///a")],
    ] {
        load(wrong).expect_err("refused");
    }
    for wrong in [&[("offsite.labels", "site=y")][..], &[("offsite", "file:///a"), ("offsite.labels", "site")]] {
        assert!(load(wrong).expect_err("refused").to_string().contains("offsite.labels"));
    }
}

#[test]
fn a_destination_is_checked_before_anything_starts() {
    let sets = [
        ("offsite", "file:///a"),
        ("offsite", "s3://vault/x?endpoint=https://h:9000"),
        ("offsite.credentials_file", "/etc/s3"),
    ];
    let config = load(&sets).expect("valid");
    assert_eq!(config.offsite[1].credentials_file.as_deref(), Some(Path::new("/etc/s3")));
    assert_eq!(config.offsite[0].credentials_file, None);
    let sets = [("offsite", "file:///a"), ("offsite", "file:///b"), ("offsite.required", "false")];
    let required = load(&sets).expect("valid").offsite.iter().map(|one| one.required).collect::<Vec<_>>();
    assert_eq!(required, [true, false]);
    let sets = [("offsite", "file:///a"), ("offsite.expect", "append-only"), ("offsite", "file:///b")];
    let expected = load(&sets).expect("valid").offsite.iter().map(|one| one.expect).collect::<Vec<_>>();
    assert_eq!(expected, [Verdict::AppendOnly, Verdict::Immutable]);
    let error = load(&[("verify.keys", "abc")]).expect_err("refused").to_string();
    assert!(error.contains("verify.keys") && error.contains("64 hex digits"), "{error}");
    let error = load(&[("offsite", "file:///a"), ("offsite.expect", "locked")]).expect_err("refused").to_string();
    assert!(error.contains("offsite.expect") && error.contains("append-only"), "{error}");
    let error = load(&[("offsite", "file:///a"), ("offsite.required", "no")]).expect_err("refused").to_string();
    assert!(error.contains("offsite.required") && error.contains("neither true nor false"), "{error}");
    for (url, expected) in
        [("s3://vault?endpiont=h", "unknown ?endpiont="), ("ftp://h/x", "unknown kind"), ("x", "write")]
    {
        let error = load(&[("offsite", url)]).expect_err(url).to_string();
        assert!(error.contains("offsite") && error.contains(expected), "{error}");
    }
    assert!(
        load(&[("offsite.credentials_file", "/etc/s3")])
            .expect_err("refused")
            .to_string()
            .contains("set offsite first")
    );
    // A segment of ours is never larger.
    assert!(load(&[("ship.segment_bytes", "16777216")]).is_ok());
    assert!(load(&[("ship.segment_bytes", "16777217")]).expect_err("refused").to_string().contains("16777216"));
}

#[test]
fn only_loopback_without_tls() {
    let error = load(&[("listen.client", "0.0.0.0:7470")]).expect_err("refused").to_string();
    assert!(error.contains("--insecure-plaintext"), "{error}");
    assert!(load(&[("listen.client", "0.0.0.0:7470"), ("insecure_plaintext", "true")]).is_ok());
    assert!(load(&[("listen.client", "[::1]:7470")]).is_ok());
}

#[test]
fn a_file_is_read_and_its_unknown_keys_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("holdfast.toml");
    std::fs::write(
        &path,
        "[node]\nid = 3\ndata_dir = \"/var/lib/x\"\n[node.labels]\nsite = \"s1\"\n\
         [[offsite]]\nname = \"vault\"\nurl = \"file:///mnt/vault\"\n",
    )
    .expect("write");
    let config = Config::load(Some(&path), &[]).expect("valid");
    assert_eq!((config.node_id, config.offsite[0].name.as_str()), (3, "vault"));
    std::fs::write(&path, "[node]\nid = 3\nname = \"x\"\n").expect("write");
    assert!(Config::load(Some(&path), &[]).expect_err("refused").to_string().contains("node.name"));
}

/// `deploy/holdfast.toml`, asked for when the test runs: a binary that another clone left in a shared target
/// directory names that clone's files.
fn example() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(manifest).join("../../deploy/holdfast.toml")
}

fn read(text: &str) -> Values {
    let table: toml::Table = text.parse().expect("valid TOML");
    let mut values = Values::default();
    values.read_table("", &table).expect("known keys");
    values
}

/// The text with every table and key that stands behind a `#`; prose stays a comment.
fn uncommented(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if rest.starts_with('[') || rest.split(' ').nth(1) == Some("=") => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_file_has_every_key_and_shows_the_defaults() {
    let text = std::fs::read_to_string(example()).expect("deploy/holdfast.toml");
    let all = read(&uncommented(&text));
    for (key, _) in KEYS {
        let shown = match *key {
            "node.labels.<key>" => !all.labels.is_empty(),
            "offsite" => !all.offsite.is_empty(),
            "offsite.credentials_file" => all.offsite.iter().any(|one| one.credentials_file.is_some()),
            "offsite.required" => all.offsite.iter().any(|one| !one.required),
            "offsite.expect" => all.offsite.iter().any(|one| one.expect == Verdict::AppendOnly),
            "offsite.labels" => all.offsite.iter().any(|one| !one.labels.is_empty()),
            key => all.scalars.contains_key(key),
        };
        assert!(shown, "deploy/holdfast.toml lacks {key}");
    }

    // Values behind `#` change nothing, but for the seven that have no default to show.
    let plain = read(&text).build().expect("valid as it stands");
    let mut all = all.build().expect("valid with every key");
    assert_ne!(all.advertise, plain.advertise);
    assert!(all.floor_dir.is_some() && all.insecure_plaintext);
    all.advertise = plain.advertise.clone();
    all.floor_dir = None;
    assert!(all.ship_key_file.take().is_some());
    assert!(!all.placement_keys.is_empty());
    all.placement_keys.clear();
    assert_eq!(all.verify_keys.len(), 1);
    assert_eq!(all.vaults.len(), 1);
    all.vaults.clear();
    all.verify_keys.clear();
    all.insecure_plaintext = false;
    assert_eq!(all.offsite.len(), 2);
    all.offsite.truncate(1);
    assert_eq!(all, plain);
}
