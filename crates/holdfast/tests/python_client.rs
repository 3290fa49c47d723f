//! A client in another language, built from `proto/` and nothing else of this repository (`python_client/phone.py`),
//! against real processes: it syncs, settles a conflict, repeats a request that has no answer, and after the loss of
//! every node gives back what the archive did not have.

mod cluster;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use cluster::{Cluster, holdfast, wait_for};
use holdfast_client::Client;
use holdfast_wire::v1;
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_client");
const PROTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
const USER: &str = "alice";

/// The Python of the environment that `deploy/install-deps.sh --test` makes, where `make lint` keeps buf too.
fn python() -> PathBuf {
    let home = std::env::var_os("HOME").expect("HOME is set");
    let python = Path::new(&home).join(".cache/holdfast/venv/bin/python");
    let status = Command::new(&python).args(["-c", "import blake3, grpc, grpc_tools, google.rpc.status_pb2"]).status();
    let there = status.is_ok_and(|status| status.success());
    assert!(there, "{} lacks the packages of this test: run deploy/install-deps.sh --test", python.display());
    python
}

/// One phone: its copy of alice's contacts is a file that outlives its runs.
struct Phone {
    name: &'static str,
    /// Place of the node that is asked first.
    first: usize,
    dir: PathBuf,
    python: PathBuf,
}

impl Phone {
    fn new(name: &'static str, dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("generated")).expect("a folder");
        Self { name, first: 0, dir: dir.to_owned(), python: python() }
    }

    fn book(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.name))
    }

    fn command(&self, cluster: &Cluster, args: &[&str]) -> Command {
        let mut endpoints: Vec<&str> = cluster.nodes.iter().map(|node| node.client.as_str()).collect();
        endpoints.rotate_left(self.first);
        let mut command = Command::new(&self.python);
        command.arg(Path::new(FOLDER).join("phone.py")).args(["--proto", PROTO, "--user", USER]);
        command.args(["--endpoints", &endpoints.join(","), "--device", self.name]);
        command.arg("--generated").arg(self.dir.join("generated")).arg("--book").arg(self.book());
        // No __pycache__ beside the sources.
        command.args(args).env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
        command
    }

    fn run(&self, cluster: &Cluster, args: &[&str]) -> Output {
        self.command(cluster, args).output().expect("python runs")
    }

    /// Runs a command that must succeed; gives what it printed.
    fn does(&self, cluster: &Cluster, args: &[&str]) -> Value {
        judged(&self.run(cluster, args), args)
    }

    fn knows(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.book()).expect("the book")).expect("JSON")
    }
}

fn judged(output: &Output, args: &[&str]) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"))
}

fn retries(said: &Value) -> impl Iterator<Item = &Value> {
    said["retries"].as_array().expect("a list").iter()
}

/// A phone at work; it ends with the test, also when that fails.
struct Running(Option<Child>);

impl Running {
    fn finish(mut self) -> Output {
        self.0.take().expect("running").wait_with_output().expect("python ends")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the servers hold: content type and payload by id, `None` = a tombstone.
async fn held(client: &Client) -> BTreeMap<String, Option<(String, String)>> {
    let request = v1::ListRecordsRequest {
        user_id: USER.into(),
        collection: "contacts".into(),
        show_deleted: true,
        ..Default::default()
    };
    let content = |record: v1::Record| {
        let payload = String::from_utf8(record.payload.to_vec()).expect("text");
        let live = record.delete_time.is_none().then_some((record.content_type, payload));
        (record.key.expect("a key").record_id, live)
    };
    client.list_all(request).await.expect("listed").into_iter().map(content).collect()
}

fn card(text: &str) -> Option<(String, String)> {
    Some(("text/vcard".into(), text.into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_syncs_settles_a_conflict_and_repeats_what_had_no_answer() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut cluster = Cluster::start(&dir.path().join("c"), &[]);
    let client = cluster.client();
    for n in 0..20 {
        let id = format!("c{n}");
        client.put(cluster::contact(USER, &id), "text/vcard", format!("FN:{n}")).await.expect("written");
    }
    client.delete(cluster::contact(USER, "c3")).await.expect("deleted");
    let mut phone = Phone::new("phone", dir.path());
    // From nothing: pages of live records, and digests that agree.
    let said = phone.does(&cluster, &["sync"]);
    assert_eq!((&said["live"], &said["known"], &said["pages"]), (&json!(19), &json!(19), &json!(3)), "{said}");
    // From a token: a tombstone comes too.
    client.delete(cluster::contact(USER, "c4")).await.expect("deleted");
    client.put(cluster::contact(USER, "c5"), "text/vcard", "FN:five").await.expect("written");
    let said = phone.does(&cluster, &["sync"]);
    assert_eq!((&said["live"], &said["known"], &said["pages"]), (&json!(18), &json!(19), &json!(1)), "{said}");

    // With the leader gone, which is the first to be asked.
    let leader = cluster.leader().await;
    phone.first = leader;
    cluster.kill(leader);
    let said = phone.does(&cluster, &["conflict"]);
    assert!(retries(&said).any(|retry| retry["reason"] == "UNREACHABLE"), "{said}");
    assert_eq!(said["merged"], "FN:Ann\nTEL:1\nEMAIL:a@example.org");
    assert_eq!(held(&client).await["shared"], card("FN:Ann\nTEL:1\nEMAIL:a@example.org"));
    cluster.restart(leader);
    cluster.wait_converged().await;

    phone.first = cluster.leader().await;
    repeats_until_there_is_an_answer(&mut cluster, &phone).await;
    assert_eq!(held(&client).await["c6"], card("FN:six"));
    finds_a_difference(&cluster, &phone);
}

/// Only the leader is left: nobody can say what becomes of a write until others are back.
async fn repeats_until_there_is_an_answer(cluster: &mut Cluster, phone: &Phone) {
    let others = [(phone.first + 1) % 3, (phone.first + 2) % 3];
    let head = phone.does(cluster, &["sync", "--from-zero"]);
    assert_eq!(head["live"], 19, "{head}");
    cluster.kill_together(&others);
    let edit = ["edit", "--put", "c6=FN:six"];
    let child = phone.command(cluster, &edit).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut running = Running(Some(child.expect("python runs")));
    let stderr = running.0.as_mut().and_then(|child| child.stderr.take()).expect("piped");
    let mut lines = BufReader::new(stderr).lines();
    // Told by the one node that is there, with a RetryInfo.
    let told = lines.find_map(|line| {
        let line = line.expect("text");
        ["OUTCOME_UNKNOWN", "NO_LEADER"].iter().any(|reason| line.contains(reason)).then_some(line)
    });
    let told = told.expect("it goes on trying, and says so");
    for place in others {
        cluster.restart(place);
    }
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    let output = running.finish();
    let rest = rest.join().expect("joined");
    assert_eq!(output.status.code(), Some(0), "{told}\n{rest}");
    let said = judged(&output, &edit);
    let of_write = |retry: &&Value| retry["method"] == "BatchWrite" && retry["reason"] != "UNREACHABLE";
    assert!(retries(&said).any(|retry| of_write(&retry)), "{said}");
    let paused = |retry: &Value| retry["pause_ms"].as_u64().is_some_and(|pause_ms| pause_ms > 0);
    assert!(retries(&said).filter(of_write).all(paused), "it waits as RetryInfo says: {said}");
    let sent = |retry: &Value| retry["request_id"] == said["request_id"];
    assert!(retries(&said).filter(|retry| retry["method"] == "BatchWrite").all(sent), "one id: {said}");
    // Guarded by the version it knew: where the first attempt took effect, a second id would have met a conflict.
    assert_eq!(phone.knows()["records"]["c6"]["version"], said["version"], "{said}");
}

/// A record that silently differs is found by the digest.
fn finds_a_difference(cluster: &Cluster, phone: &Phone) {
    let mut book = phone.knows();
    let version = book["records"]["c7"]["version"].as_u64().expect("a number");
    book["records"]["c7"]["version"] = json!(version + 1);
    std::fs::write(phone.book(), book.to_string()).expect("written");
    let output = phone.run(cluster, &["sync"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("collection digests"), "{stderr}");
    phone.does(cluster, &["sync", "--from-zero"]);
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// What two phones leave behind: the archive as it was before their last edits, and what the servers held after them.
struct Lost {
    archive: PathBuf,
    common_version: u64,
    held: BTreeMap<String, Option<(String, String)>>,
}

async fn edit_and_lose(cluster: &mut Cluster, offsite: &Path, archive: &Path, phones: [&Phone; 2]) -> Lost {
    let [ann, bob] = phones;
    let puts: Vec<String> = (0..20).map(|n| format!("--put=c{n}=FN:{n}")).collect();
    let mut edit = vec!["edit"];
    edit.extend(puts.iter().map(String::as_str));
    ann.does(cluster, &["sync"]);
    let said = ann.does(cluster, &edit);
    bob.does(cluster, &["sync"]);
    let shipped = said["commit_index"].as_u64().expect("an index");
    wait_for("the log to be offsite", async || {
        let Some(status) = cluster.status(0).await else { return false };
        status.destinations.first().is_some_and(|destination| destination.durable_index >= shipped)
    })
    .await;
    // Nothing of what follows reaches it.
    std::fs::rename(offsite, archive).expect("the destination goes away");
    ann.does(cluster, &["edit", "--put=c1=FN:one", "--put=n1=FN:new", "--put=n2=FN:short", "--delete=c2"]);
    bob.does(cluster, &["sync"]);
    bob.does(cluster, &["edit", "--put=c4=FN:by bob", "--delete=n2"]);
    // Of these bob never hears.
    ann.does(cluster, &["sync"]);
    ann.does(cluster, &["edit", "--put=c1=FN:one again", "--delete=c5"]);
    let held = held(&cluster.client()).await;
    assert_eq!(held.values().flatten().count(), 19, "{held:?}");
    assert_eq!(held["c1"], card("FN:one again"));
    cluster.stop();
    std::fs::remove_dir_all(&cluster.dir).expect("the array is lost");
    Lost { archive: archive.to_owned(), common_version: said["version"].as_u64().expect("a version"), held }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_clients_give_back_what_a_restore_did_not_have_in_either_order() {
    let dir = tempfile::tempdir().expect("tempdir");
    let offsite = dir.path().join("offsite");
    let mut cluster =
        Cluster::start(&dir.path().join("c"), &["--offsite", &url(&offsite), "--set", "ship.interval_ms=200"]);
    let (ann, bob) = (Phone::new("ann", dir.path()), Phone::new("bob", dir.path()));
    let lost = edit_and_lose(&mut cluster, &offsite, &dir.path().join("archive"), [&ann, &bob]).await;
    let books = [&ann, &bob].map(|phone| std::fs::read(phone.book()).expect("the book"));

    for (round, ann_first) in [true, false].into_iter().enumerate() {
        for (phone, book) in [&ann, &bob].into_iter().zip(&books) {
            std::fs::write(phone.book(), book).expect("written");
        }
        let restored = dir.path().join(format!("restored-{round}"));
        let (data, base) = (restored.display().to_string(), cluster.port_base().to_string());
        let from = url(&lost.archive);
        let restore = ["restore", "run", "--from", &from, "--data", &data, "--nodes", "3", "--port-base", &base];
        let (code, stdout, stderr) = holdfast(&restore);
        assert_eq!(code, 0, "{stdout}{stderr}");
        cluster = Cluster::start_after(cluster, &restored, &[]);
        assert_ne!(held(&cluster.client()).await, lost.held, "something is lost");
        // A token from beyond the fork is never taken for "no changes".
        let output = ann.run(&cluster, &["sync"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("ROLLED_BACK"), "{stderr}");

        let (by_ann, by_bob) = if ann_first {
            let by_ann = ann.does(&cluster, &["resync"]);
            (by_ann, bob.does(&cluster, &["resync"]))
        } else {
            let by_bob = bob.does(&cluster, &["resync"]);
            (ann.does(&cluster, &["resync"]), by_bob)
        };
        for said in [&by_ann, &by_bob] {
            assert_eq!(said["common_version"], lost.common_version, "{said}");
        }
        // Ann had seen everything last: nobody beats her, and she has again what she had.
        assert_eq!(by_ann["uploaded"], json!(["c1", "c2", "c4", "c5", "n1", "n2"]), "{by_ann}");
        assert_eq!(by_ann["changed_by_others"], json!([]), "{by_ann}");
        if ann_first {
            assert_eq!(by_bob["beaten"], json!(["c1"]), "{by_bob}");
            assert_eq!(by_bob["changed_by_others"], json!(["c1", "c5"]), "{by_bob}");
        } else {
            assert_eq!(by_bob["beaten"], json!([]), "{by_bob}");
            assert_eq!(by_bob["changed_by_others"], json!([]), "{by_bob}");
            bob.does(&cluster, &["sync"]);
        }
        // The servers hold what they held, deletes included; both phones go on in the new history.
        assert_eq!(held(&cluster.client()).await, lost.held);
        ann.does(&cluster, &["edit", "--put=c0=FN:after"]);
        bob.does(&cluster, &["sync", "--from-zero"]);
        assert_eq!(held(&cluster.client()).await["c0"], card("FN:after"));
        cluster.wait_converged().await;
        cluster.stop();
    }
}
