//! Pruning the archive of a real cluster: it goes by what was proved, and stops where anything is not as it should be.

mod cluster;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cluster::{Cluster, contact, holdfast, wait_offsite};
use holdfast_archive::verification::read_one;
use holdfast_archive::{Destination, DestinationConfig, LineageId, Verification, VerifierKey};
use serde_json::Value;

struct Scene {
    dir: tempfile::TempDir,
    cluster: Cluster,
    from: String,
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Scene {
    fn begin() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let from = format!("file://{}", dir.path().join("offsite").display());
        let cluster = Cluster::start(&dir.path().join("c"), &["--offsite", &from, "--set", "ship.interval_ms=100"]);
        Self { dir, cluster, from }
    }

    async fn write(&self, user: &str, records: std::ops::Range<usize>) {
        let client = self.cluster.client();
        let mut last = 0;
        for n in records {
            let put = client.put(contact(user, &format!("c{n}")), "text/plain", format!("{user} {n}")).await;
            last = put.expect("written").commit_index;
        }
        wait_offsite(&self.cluster, last).await;
    }

    async fn snapshot(&self) -> u64 {
        let leader = self.cluster.leader().await;
        let (code, _, stderr) = holdfast(&["backup", "now", "--endpoint", &self.cluster.nodes[leader].admin]);
        assert_eq!(code, 0, "{stderr}");
        *self.snapshots().last().expect("a snapshot")
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("offsite")
    }

    /// Their manifests, ascending.
    fn manifests(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut folders = vec![self.folder()];
        while let Some(folder) = folders.pop() {
            for one in std::fs::read_dir(folder).expect("reads") {
                let path = one.expect("one").path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if path.ends_with("MANIFEST") => all.push(path),
                    false => {}
                }
            }
        }
        all.sort();
        all
    }

    /// Whoever holds the key says this, instead of all that was said before; gives back what puts things right again.
    async fn say_instead(&self, change: impl FnOnce(&mut Verification)) -> impl FnOnce() {
        let destination = Destination::open(&DestinationConfig::from_url(&self.from)).expect("opens");
        let listed = destination.list("").await.expect("lists").into_iter();
        let said: Vec<String> = listed.map(|one| one.path).filter(|path| path.contains("/verify/")).collect();
        let newest = said.last().expect("it was verified");
        let mut found = read_one(&destination, newest).await.expect("reads").found;
        change(&mut found);
        let aside: Vec<(PathBuf, Vec<u8>)> = said
            .iter()
            .map(|path| {
                let path = self.folder().join(path);
                let bytes = std::fs::read(&path).expect("reads");
                std::fs::remove_file(&path).expect("removes");
                (path, bytes)
            })
            .collect();
        let key = VerifierKey::read_or_create(Path::new(&self.key())).expect("the key");
        let lineage = LineageId::parse(&found.lineage).expect("a history");
        let object = self.folder().join(found.record(&destination, &lineage, &key).await.expect("recorded"));
        move || {
            std::fs::remove_file(object).expect("removes");
            aside.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).expect("writes"));
        }
    }

    fn snapshots(&self) -> Vec<u64> {
        let index = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse().ok();
        self.manifests().iter().filter_map(index).collect()
    }

    fn verify(&self) {
        let key = self.key();
        let args = ["backup", "verify", "--from", &self.from, "--level", "2", "--record", "--verifier-key", &key];
        let (code, stdout, stderr) = holdfast(&args);
        assert_eq!(code, 0, "{stdout}{stderr}");
    }

    fn key(&self) -> String {
        self.dir.path().join("verifier.key").display().to_string()
    }

    fn run(&self, more: &[&str]) -> (i32, String, String) {
        let key = self.key();
        let args = ["backup", "prune", "--from", &self.from, "--verifier-key", &key];
        // Everything is of one hour.
        let few = ["--hourly", "1", "--daily", "1", "--weekly", "1", "--monthly", "1", "--yearly", "1"];
        holdfast(&[&args[..], &few, more].concat())
    }

    fn prune(&self, more: &[&str]) -> (i32, Value) {
        let (code, stdout, stderr) = self.run(&[more, &["-o", "json"]].concat());
        (code, serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")))
    }

    /// Indices of the snapshots in this state.
    fn in_state(answer: &Value, state: &str) -> Vec<u64> {
        let lineages = list(&answer["destinations"]).iter().flat_map(|one| list(&one["lineages"]));
        let snapshots = lineages.flat_map(|one| list(&one["snapshots"]));
        snapshots.filter(|one| one["state"] == state).filter_map(|one| one["index"].as_u64()).collect()
    }

    fn rules(answer: &Value) -> Vec<&str> {
        let mut rules: Vec<&str> = list(&answer["frozen"]).iter().filter_map(|one| one["rule"].as_str()).collect();
        rules.dedup();
        rules
    }

    /// Nothing is done, because of this rule, with and without `--dry-run`.
    fn is_frozen(&self, rule: &str) {
        let before = self.objects();
        for more in [&["--grace-days", "0"][..], &["--dry-run"]] {
            let (code, answer) = self.prune(more);
            assert_eq!((code, Self::rules(&answer)), (3, vec![rule]), "{answer}");
        }
        assert_eq!(self.objects(), before);
        let (_, _, stderr) = self.run(&[]);
        assert!(stderr.contains(&format!("frozen by {rule}:")), "{stderr}");
    }

    /// Two verifiers, three verifications, one mark and one deletion, and a doctor.
    fn ledger_tells(&self, taken: &[u64]) {
        let key = self.key();
        holdfast(&["backup", "doctor", "--from", &self.from, "--verifier-key", &key]);
        let asked = |args: &[&str]| {
            let (code, stdout, stderr) = holdfast(&[args, &["--from", &self.from, "-o", "json"]].concat());
            let answer: Value =
                serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
            (code, answer)
        };
        let (code, ledger) = asked(&["copies", "ledger"]);
        let kinds: Vec<&str> = list(&ledger["entries"]).iter().filter_map(|one| one["kind"].as_str()).collect();
        let expected = ["verification", "verification", "tombstone", "pruned", "verification", "doctor"];
        assert_eq!((code, &kinds[..]), (0, &expected[..]), "{ledger}");
        let entries = list(&ledger["entries"]);
        assert_eq!(entries[4]["snapshot_index"].as_u64(), taken.last().copied());
        assert_eq!((&entries[4]["level"], &entries[5]["place"]), (&"proved".into(), &"append-only".into()));
        assert_eq!(entries[4]["after"].as_array().map(Vec::len), Some(2), "one of each verifier");
        let (code, whole) = asked(&["copies", "verify"]);
        assert_eq!((code, whole["entries"].as_u64()), (0, Some(6)), "{whole}");
        // The newest of all goes unseen, but by whoever noted it.
        let object = |n: usize| self.folder().join(entries[n]["object"].as_str().expect("a name"));
        let newest = entries[4]["blake3"].as_str().expect("a hash");
        assert!(list(&whole["heads"]).iter().any(|head| head["blake3"] == newest), "{whole}");
        let bytes = std::fs::read(object(4)).expect("reads");
        std::fs::remove_file(object(4)).expect("removes");
        assert_eq!(asked(&["copies", "verify"]).0, 0);
        let (code, missed) = asked(&["copies", "verify", "--known", newest]);
        assert_eq!((code, &missed["lost"][0]), (9, &newest.into()), "{missed}");
        std::fs::write(object(4), bytes).expect("writes");
        std::fs::remove_file(object(0)).expect("removes");
        let (code, missed) = asked(&["copies", "verify", "--known", newest]);
        assert_eq!((code, list(&missed["broken"]).len()), (9, 1), "{missed}");
        assert_eq!(asked(&["copies", "ledger"]).0, 9);
    }

    fn objects(&self) -> usize {
        let mut count = 0;
        let mut folders = vec![self.folder()];
        while let Some(folder) = folders.pop() {
            for one in std::fs::read_dir(folder).expect("reads") {
                let path = one.expect("one").path();
                if path.is_dir() { folders.push(path) } else { count += 1 }
            }
        }
        count
    }
}

fn age(path: &Path, by: Duration) {
    let file = std::fs::File::options().append(true).open(path).expect("opens");
    file.set_modified(SystemTime::now() - by).expect("sets");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_proved_and_is_not_needed_goes_after_it_was_marked() {
    let mut scene = Scene::begin();
    let mut taken = Vec::new();
    for round in 0..4 {
        scene.write("ann", round * 10..round * 10 + 10).await;
        taken.push(scene.snapshot().await);
    }
    // The cluster writes no more of its own: what is counted stays.
    scene.cluster.stop();
    scene.is_frozen("verification-stale");
    let stranger = scene.dir.path().join("stranger.key").display().to_string();
    let args = ["backup", "verify", "--from", &scene.from, "--level", "2", "--record", "--verifier-key", &stranger];
    assert_eq!(holdfast(&args).0, 0);
    scene.is_frozen("verification-stale");
    scene.verify();
    let (code, answer) = scene.prune(&["--dry-run"]);
    assert_eq!((code, Scene::in_state(&answer, "mark")), (0, taken[..2].to_vec()), "{answer}");
    assert_eq!(Scene::in_state(&answer, "keep"), taken[2..]);
    assert_eq!(scene.snapshots(), taken);
    let (code, stdout, _) = scene.run(&["--dry-run"]);
    assert!(code == 0 && stdout.contains("2 snapshots stay, 2 would be marked"), "{stdout}");

    // Marked, and left: first for its grace, and then, without any, for the next run.
    let (code, answer) = scene.prune(&["--grace-days", "0"]);
    assert_eq!((code, Scene::in_state(&answer, "mark")), (0, taken[..2].to_vec()), "{answer}");
    assert_eq!(scene.snapshots(), taken);
    let (code, answer) = scene.prune(&[]);
    assert_eq!((code, Scene::in_state(&answer, "marked")), (0, taken[..2].to_vec()), "{answer}");
    assert_eq!(scene.snapshots(), taken);
    let (code, answer) = scene.prune(&["--grace-days", "0"]);
    assert_eq!((code, Scene::in_state(&answer, "delete")), (0, taken[..2].to_vec()), "{answer}");
    assert_eq!(scene.snapshots(), taken[2..]);
    let (code, answer) = scene.prune(&["--grace-days", "0"]);
    assert_eq!((code, Scene::in_state(&answer, "keep")), (0, taken[2..].to_vec()), "{answer}");

    // The cluster goes on over what is left, and it is good and restores.
    let data = scene.dir.path().join("c");
    scene.cluster = Cluster::start_after(scene.cluster, &data, &["--offsite", &scene.from]);
    scene.write("bob", 0..5).await;
    taken.push(scene.snapshot().await);
    scene.verify();
    assert_eq!(scene.snapshots(), taken[2..]);
    let at = taken[2].to_string();
    for point in [at.as_str(), "latest"] {
        let (code, stdout, stderr) = holdfast(&["restore", "plan", "--from", &scene.from, "--at", point]);
        assert_eq!(code, 0, "{point}: {stdout}{stderr}");
    }
    scene.ledger_tells(&taken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_doubt_freezes_it() {
    let mut scene = Scene::begin();
    scene.write("ann", 0..40).await;
    for round in 0..3 {
        scene.write("bob", round..round + 1).await;
        scene.snapshot().await;
    }
    let client = scene.cluster.client();
    for n in 0..20 {
        client.delete(contact("ann", &format!("c{n}"))).await.expect("deleted");
    }
    scene.snapshot().await;
    scene.cluster.stop();
    scene.verify();
    scene.is_frozen("size-drop");
    let accept = format!("size-drop={}", scene.snapshots().last().expect("one"));
    let accept = ["--accept", &accept];
    let (code, answer) = scene.prune(&[&accept[..], &["--dry-run"]].concat());
    assert_eq!((code, Scene::in_state(&answer, "mark").len()), (0, 2), "{answer}");

    // One that says that it was taken a day after it was stored.
    let manifests = scene.manifests();
    let [first, .., newest] = &manifests[..] else { panic!("{manifests:?}") };
    let is_frozen = |rule: &str| {
        let before = scene.objects();
        let (code, answer) = scene.prune(&[&accept[..], &["--grace-days", "0"]].concat());
        assert_eq!((code, Scene::rules(&answer)), (3, vec![rule]), "{answer}");
        assert_eq!(scene.objects(), before);
    };
    age(newest, Duration::from_secs(24 * 3600));
    is_frozen("times-forged");
    age(newest, Duration::ZERO);
    // One that was proved as another one than lies there.
    let put_right = scene.say_instead(|found| found.snapshots[0].root = "ab".repeat(32)).await;
    is_frozen("roots-disagree");
    put_right();
    // Nobody proved anything lately.
    let month_ms = 31 * 24 * 3600 * 1000;
    let put_right = scene
        .say_instead(|found| (found.began_ms, found.ended_ms) = (found.began_ms - month_ms, found.ended_ms - month_ms))
        .await;
    is_frozen("verification-stale");
    put_right();
    // One that somebody took away.
    let aside = scene.dir.path().join("aside");
    std::fs::rename(first, &aside).expect("renames");
    is_frozen("snapshot-missing");
    std::fs::rename(&aside, first).expect("renames");
    // One that is not whole.
    let bytes = std::fs::read(first).expect("reads");
    std::fs::write(first, &bytes[..bytes.len() - 1]).expect("writes");
    let (_, answer) = scene.prune(&[&accept[..], &["--grace-days", "0"]].concat());
    assert!(Scene::rules(&answer).contains(&"damaged"), "{answer}");
    std::fs::write(first, &bytes).expect("writes");
    let other = scene.dir.path().join("other");
    let copied = std::process::Command::new("cp").arg("-a").arg(scene.folder()).arg(&other).status().expect("copies");
    assert!(copied.success());
    let config = scene.dir.path().join("prune.toml");
    let prune_both = |second: &str| {
        let one = |name: &str, url: &str| format!("[[offsite]]\nname = \"{name}\"\nurl = \"{url}\"\n");
        let text = one("one", &scene.from) + &one("two", second);
        std::fs::write(&config, text).expect("writes");
        let (key, config) = (scene.key(), config.display().to_string());
        let args = ["backup", "prune", "--config", &config, "--verifier-key", &key];
        let few = ["--hourly", "1", "--daily", "1", "--weekly", "1", "--monthly", "1", "--yearly", "1", "-o", "json"];
        let (code, stdout, stderr) = holdfast(&[&args[..], &accept, &few].concat());
        let answer: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
        (code, answer)
    };
    // Of two destinations the second one's turn comes a day later.
    let other = format!("file://{}", other.display());
    let (code, answer) = prune_both(&other);
    assert_eq!((code, Scene::in_state(&answer, "mark").len()), (0, 4), "{answer}");
    let (_, answer) = prune_both(&other);
    let due = |place: usize| {
        let due = answer["destinations"][place]["lineages"][0]["snapshots"][0]["due"].as_str().expect("a time");
        chrono::DateTime::parse_from_rfc3339(due).expect("a time")
    };
    let days = (due(1) - due(0)).num_milliseconds() as f64 / 86_400_000.0;
    assert!((days - 1.0).abs() < 0.01, "{answer}");
}

#[test]
fn what_cannot_be_pruned_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let from = format!("file://{}", dir.path().display());
    let key = dir.path().join("key").display().to_string();
    let prune = |args: &[&str]| holdfast(&[&["backup", "prune", "--verifier-key", &key], args].concat());
    let (code, _, stderr) = prune(&["--from", &from]);
    assert!(code == 7 && stderr.contains("no backup"), "{code} {stderr}");
    let (code, _, stderr) = prune(&["--from", &from, "--trust", "abc"]);
    assert!(code == 2 && stderr.contains("64 hex digits"), "{code} {stderr}");
    let (code, _, stderr) = prune(&[]);
    assert!(code == 2 && stderr.contains("--from"), "{code} {stderr}");
}
