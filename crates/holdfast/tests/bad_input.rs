//! Wrong flags, ports, directories and bytes: each gives its exit code and says what to do; nothing is lost.

mod cluster;

use cluster::{Cluster, contact, holdfast, wait_until};

#[test]
fn wrong_usage_ends_with_2() {
    assert_eq!(holdfast(&["serve", "--no-such-flag"]).0, 2);
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("d").display().to_string();
    let serve = |more: &[&str]| {
        let mut args = vec!["serve", "--no-config", "--node-id", "1", "--data-dir", &data];
        args.extend_from_slice(more);
        holdfast(&args)
    };
    let (code, _, stderr) = serve(&["--set", "raft.hartbeat_ms=50"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("raft.hartbeat_ms"), "{stderr}");
    let (code, _, stderr) = serve(&["--listen-client", "0.0.0.0:0"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--insecure-plaintext"), "{stderr}");
    assert!(!dir.path().join("d").exists(), "a refused node creates nothing");
    let dev = |more: &[&str]| {
        let mut args = vec!["dev", "--data", &data, "--port-base", "7970"];
        args.extend_from_slice(more);
        holdfast(&args)
    };
    let nowhere = dir.path().join("none/ready.json").display().to_string();
    for (wrong, named) in [
        (["--set", "raft.hartbeat_ms=50"], "raft.hartbeat_ms"),
        (["--set", "raft.heartbeat_ms=fast"], "\"fast\""),
        (["--labels", "array=a1;array=a2"], "2 parts for 3 nodes"),
        (["--ready-file", &nowhere], "none"),
    ] {
        let (code, _, stderr) = dev(&wrong);
        assert_eq!(code, 2, "{wrong:?}: {stderr}");
        assert!(stderr.contains(named), "{wrong:?}: {stderr}");
        assert!(!dir.path().join("d").exists(), "a refused cluster creates nothing: {wrong:?}");
    }
}

#[test]
fn variables_of_other_programs_may_be_anything() {
    use std::os::unix::ffi::OsStrExt;
    let mut command = std::process::Command::new(cluster::BINARY);
    command.args(["serve", "--no-config"]).env("OTHER", std::ffi::OsStr::from_bytes(b"\xFF"));
    let output = command.output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("node.data_dir"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_directories_and_ports_in_use_are_refused_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    cluster.client().put(contact("alice", "c1"), "text/plain", "x").await.expect("written");
    // The node's own command line while it runs: its ports are taken.
    let argv: Vec<&str> = cluster.nodes[0].argv[1..].iter().map(String::as_str).collect();
    let (code, _, stderr) = holdfast(&argv);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("cannot listen"), "{stderr}");
    let data = cluster.nodes[0].data_dir.display().to_string();
    let free = [
        "--listen-client",
        "127.0.0.1:0",
        "--listen-peer",
        "127.0.0.1:0",
        "--listen-admin",
        "127.0.0.1:0",
        "--listen-http",
        "127.0.0.1:0",
    ];
    let serve = |id: &str| {
        let mut args = vec!["serve", "--no-config", "--node-id", id, "--data-dir", &data];
        args.extend_from_slice(&free);
        holdfast(&args)
    };
    assert_eq!(serve("1").0, 8, "held by the running node");
    cluster.stop();
    let (code, _, stderr) = serve("2");
    assert_eq!(code, 3, "the directory of another node: {stderr}");
    let format = cluster.nodes[0].data_dir.join("FORMAT");
    let whole = std::fs::read(&format).expect("FORMAT");
    std::fs::write(&format, b"9999\n").expect("newer");
    let (code, _, stderr) = serve("1");
    assert!(code == 3 || code == 9, "a newer or damaged FORMAT: {code} {stderr}");
    std::fs::write(&format, whole).expect("repaired");
    cluster.reopen();
    let found = cluster.client().get(contact("alice", "c1")).await.expect("read");
    assert_eq!(&found.expect("still there").payload[..], b"x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cards_come_back_byte_for_byte_and_importing_again_changes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let cluster = Cluster::start(&dir.path().join("c"), &[]);
    let endpoint = cluster.nodes[2].client.clone();
    let cards =
        b"BEGIN:VCARD\r\nVERSION:2.1\r\nN:Doe;Jo\r\nNOTE;ENCODING=QUOTED-PRINTABLE:a=0D=0A=\r\nb\r\nEND:VCARD\r\n\
        BEGIN:VCARD\nVERSION:3.0\nUID:u-1\nFN:Ann\nEND:VCARD\n";
    let file = dir.path().join("people.vcf");
    std::fs::write(&file, cards).expect("file");
    let broken = dir.path().join("broken.ics");
    std::fs::write(&broken, b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nBEGIN:VEVENT\r\nUID:e1\r\n").expect("file");
    let import = |path: &std::path::Path| {
        holdfast(&["record", "import", "--endpoint", &endpoint, "--user", "ann", &path.display().to_string()])
    };
    assert_eq!(import(&file).0, 0);
    let feed = async || match cluster.client().changes(changes("ann")).await.expect("feed").outcome {
        holdfast_client::SyncOutcome::Page(page) => page.records,
        holdfast_client::SyncOutcome::Resync(info) => panic!("resync: {info:?}"),
    };
    let before = feed().await;
    assert_eq!(before.len(), 2);
    assert_eq!(import(&file).0, 0);
    assert_eq!(feed().await, before, "importing again changes nothing");
    // The same id in two files: kept both, together and one by one.
    let twins = ["one.vcf", "two.vcf"].map(|name| dir.path().join(name).display().to_string());
    for (file, name) in twins.iter().zip(["Eve", "Eva"]) {
        std::fs::write(file, format!("BEGIN:VCARD\r\nUID:twin\r\nFN:{name}\r\nEND:VCARD\r\n")).expect("file");
    }
    let import_twins = |files: &[String]| {
        let mut args = vec!["record", "import", "--endpoint", &endpoint, "--user", "ann"];
        args.extend(files.iter().map(String::as_str));
        assert_eq!(holdfast(&args).0, 0);
    };
    import_twins(&twins);
    let both = feed().await;
    assert_eq!(both.len(), 4);
    import_twins(&twins[1..]);
    import_twins(&twins[..1]);
    assert_eq!(feed().await, both, "one by one changes nothing either");
    let (code, stdout, stderr) = import(&broken);
    assert_eq!(code, 10, "{stdout}{stderr}");
    assert!(format!("{stdout}{stderr}").contains("broken.ics"), "named: {stdout}{stderr}");
    let out = dir.path().join("out");
    let (code, _, stderr) =
        holdfast(&["record", "export", "--endpoint", &endpoint, "--user", "ann", "--out", &out.display().to_string()]);
    assert!(code == 0 || code == 10, "{stderr}");
    let exported = std::fs::read(out.join("contacts.vcf")).expect("contacts.vcf");
    for card in [&cards[..cards.len() - 58], &cards[cards.len() - 58..]] {
        let start = card.windows(11).position(|part| part == b"BEGIN:VCARD").expect("a card");
        let card = &card[start..];
        assert!(exported.windows(card.len()).any(|part| part == card), "{}", String::from_utf8_lossy(card));
    }
}

#[test]
fn an_import_that_fails_halfway_still_names_what_is_broken() {
    let dir = tempfile::tempdir().expect("tempdir");
    let cluster = Cluster::start(&dir.path().join("c"), &["--set", "quota.user_bytes=100000"]);
    let card = |n: usize| format!("BEGIN:VCARD\r\nUID:{n}\r\nFN:{}\r\nEND:VCARD\r\n", "x".repeat(600));
    let file = dir.path().join("many.vcf");
    let cards: String = (0..300).map(card).collect();
    std::fs::write(&file, format!("junk\r\n{cards}")).expect("file");
    let (client, admin) = (cluster.nodes[0].client.as_str(), cluster.nodes[0].admin.as_str());
    let import = |more: &[&str]| {
        let mut args = vec!["record", "import", "--endpoint", client, "--user", "ann", "--deadline-ms", "3000"];
        args.extend_from_slice(more);
        holdfast(&args)
    };
    let (code, _, stderr) = import(&[&file.display().to_string()]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("many.vcf:1: stored as it is"), "{stderr}");
    assert!(stderr.contains("100 of 301 records are stored"), "{stderr}");
    // Whoever takes the wrong listener is told which one is right.
    let (code, _, stderr) = holdfast(&["record", "ls", "--endpoint", admin, "--user", "ann", "--collection", "notes"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("client address"), "{stderr}");
}

fn changes(user: &str) -> holdfast_wire::v1::GetChangesRequest {
    holdfast_wire::v1::GetChangesRequest { user_id: user.into(), ..Default::default() }
}

#[test]
fn probes_and_metrics_answer() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().expect("tempdir");
    let cluster = Cluster::start(&dir.path().join("c"), &[]);
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(&cluster.nodes[0].http).expect("connect");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("ask");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answer");
        text
    };
    assert!(get("/livez").starts_with("HTTP/1.1 200"));
    wait_until("readiness", || get("/readyz").starts_with("HTTP/1.1 200"));
    assert!(get("/readyz?verbose").contains("[+] voter"));
    let metrics = get("/metrics");
    for name in ["holdfast_raft_applied_index", "holdfast_raft_log_fsync_duration_seconds_count"] {
        assert!(metrics.contains(name), "{name} is missing");
    }
}
