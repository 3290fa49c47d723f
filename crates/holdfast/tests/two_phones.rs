//! The client library's example `two_phones` against real processes: what two phones have and the archive has not
//! survives the loss of every node, whichever phone comes first after the restore.
//!
//! The example is another package's, which no variable names to this test. It lies where cargo puts the examples of
//! every package that it builds tests for: in `examples/`, next to the binary of this package.

mod cluster;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cluster::{BINARY, Cluster, copy_folder, holdfast};
use serde_json::Value;

/// The phones' folders are in `dir`.
struct Phones {
    program: PathBuf,
    dir: PathBuf,
}

impl Phones {
    fn new(dir: PathBuf) -> Self {
        let folder = Path::new(BINARY).parent().expect("a folder").join("examples");
        let program = folder.join(format!("two_phones{}", std::env::consts::EXE_SUFFIX));
        assert!(
            program.is_file(),
            "{} is missing: run the tests of the whole workspace, which build it (`make test`), or build it with \
             `cargo build --release -p holdfast-client --example two_phones`",
            program.display()
        );
        Self { program, dir }
    }

    /// Runs a step that must succeed.
    fn run(&self, cluster: &Cluster, step: &[&str]) {
        let endpoints: Vec<&str> = cluster.nodes.iter().map(|node| node.client.as_str()).collect();
        let mut command = Command::new(&self.program);
        command.args(["--endpoints", &endpoints.join(","), "--step"]).args(step).arg("--dir").arg(&self.dir);
        let output = command.stdin(Stdio::null()).output().expect("the example runs");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{step:?}:\n{stdout}{stderr}");
    }

    fn report(&self) -> Value {
        let report = std::fs::read(self.dir.join("report.json")).expect("the report");
        serde_json::from_slice(&report).expect("JSON")
    }
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// Edits, a snapshot, more edits that no archive gets, and the end of every node.
fn edit_and_lose(cluster: &mut Cluster, offsite: &Path, archive: &Path, phones: &Phones) {
    phones.run(cluster, &["before"]);
    let (code, stdout, stderr) = holdfast(&["backup", "now", "--endpoint", &cluster.nodes[0].admin]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    // Nothing of what follows reaches it.
    std::fs::rename(offsite, archive).expect("the destination goes away");
    phones.run(cluster, &["before"]);
    phones.run(cluster, &["before"]);
    cluster.stop();
    std::fs::remove_dir_all(&cluster.dir).expect("the array is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_phones_give_back_what_a_restore_did_not_have_in_either_order() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (offsite, archive) = (dir.path().join("offsite"), dir.path().join("archive"));
    let phones = Phones::new(dir.path().join("phones"));
    let mut cluster =
        Cluster::start(&dir.path().join("c"), &["--offsite", &url(&offsite), "--set", "ship.interval_ms=200"]);
    edit_and_lose(&mut cluster, &offsite, &archive, &phones);

    for order in ["ab", "ba"] {
        let phones = Phones::new(dir.path().join(format!("phones-{order}")));
        copy_folder(&dir.path().join("phones"), &phones.dir);
        let restored = dir.path().join(format!("restored-{order}"));
        let (data, base) = (restored.display().to_string(), cluster.port_base().to_string());
        let from = url(&archive);
        let restore = ["restore", "run", "--from", &from, "--data", &data, "--nodes", "3", "--port-base", &base];
        let (code, stdout, stderr) = holdfast(&restore);
        assert_eq!(code, 0, "{stdout}{stderr}");
        cluster = Cluster::start_after(cluster, &restored, &[]);

        phones.run(&cluster, &["after", "--order", order]);
        let report = phones.report();
        assert_eq!(report["equal"], true, "{report}");
        assert!(report["lost"].as_u64().is_some_and(|lost| lost > 0), "the restore brought back everything: {report}");
        assert_eq!(report["trashed"], 0, "{report}");
        let of = |phone: &str, what: &str| report[phone][what].as_u64().expect("a number");
        for phone in ["phone-a", "phone-b"] {
            assert!(of(phone, "resyncs") > 0, "{phone} was not told of the rollback: {report}");
        }
        let uploaded = of("phone-a", "uploaded_again") + of("phone-b", "uploaded_again");
        assert!(uploaded > 0, "nobody gave anything back: {report}");
        cluster.wait_converged().await;
        cluster.stop();
    }
}
