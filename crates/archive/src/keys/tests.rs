use std::path::PathBuf;

use super::*;
use crate::destination::Destination;
use crate::fixture::{Folder, GROUP, History, Node, run};
use crate::lineage::OpenLineage;
use crate::offer::offer;
use crate::plan::{Choose, plan};
use crate::restore::{RestoreSpec, RestoreTarget, restore};
use crate::sealing::{Compression, Sealing};
use crate::ship::SegmentShipper;
use crate::snapshot::{SnapshotOptions, ship_snapshot};
use crate::verify::{Level, verify, verify_all};

const GENERATION: u32 = 2945;
const MARKERS: [&str; 3] = ["user-3", "record-17", "text/vcard"];

/// A cluster's secret and what its KEYS.age is made for.
struct Custody {
    secret: [u8; 32],
    drill: Identity,
    offline: [Identity; 2],
}

impl Custody {
    fn new(secret: u8) -> Self {
        let [drill, one, two] = std::array::from_fn(|_| Identity::generate());
        Self { secret: [secret; 32], drill, offline: [one, two] }
    }

    fn recipients(&self) -> Vec<String> {
        [&self.drill, &self.offline[0], &self.offline[1]].map(Identity::recipient).to_vec()
    }

    fn secret(&self) -> Arc<Keyring> {
        Arc::new(Keyring::new(vec![Secret::of(self.secret)], Vec::new()))
    }

    /// One offline identity alone, as after the loss of everything else.
    fn identity(&self) -> Arc<Keyring> {
        Arc::new(Keyring::new(Vec::new(), vec![copy(&self.offline[1])]))
    }

    fn sealing(&self, lineage: &LineageId, generation: u32, compression: Compression) -> Sealing {
        let key = self.secret().new_key(lineage, generation).expect("a secret");
        let keys_age = wrap(&key, lineage, &self.recipients()).expect("wraps");
        Sealing::with_key(compression, Arc::new(key), keys_age)
    }
}

fn copy(identity: &Identity) -> Identity {
    Identity(identity.to_line().parse().expect("an identity"))
}

/// An encrypted archive: log, snapshot, and more log in a second generation.
struct Scene {
    folder: Folder,
    history: History,
    custody: Custody,
}

impl Scene {
    fn new(compression: Compression) -> Self {
        let (folder, custody) = (Folder::new(), Custody::new(1));
        let mut history = History::found(7);
        history.live(60);
        let id = history.facts.id;
        run(async {
            let destination = folder.destination().with_keys(custody.secret());
            let sealing = custody.sealing(&id, GENERATION, compression);
            let lineage = history.open_sealed(&destination, &sealing).await;
            history.ship(&lineage, 0, 20).await;
            let node = Node::new();
            node.apply(&history.entries);
            ship_snapshot(&lineage, GROUP, &node.checkpoint(), &SnapshotOptions::default(), &|_, _| {})
                .await
                .expect("ships");
            let shipped = history.last().index + 1;
            history.live(20);
            let sealing = custody.sealing(&id, GENERATION + 1, compression);
            let lineage = history.open_sealed(&destination, &sealing).await;
            history.ship(&lineage, shipped, 50).await;
        });
        Self { folder, history, custody }
    }

    fn id(&self) -> LineageId {
        self.history.facts.id
    }

    fn with(&self, keys: Arc<Keyring>) -> Destination {
        self.folder.destination().with_keys(keys)
    }

    /// Names and bytes of all objects.
    fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let listed = run(async { self.folder.destination().list("").await.expect("lists") });
        let read = |path: String| (path.clone(), std::fs::read(self.folder.file(&path)).expect("reads"));
        listed.into_iter().map(|found| read(found.path)).collect()
    }

    fn keys_object(&self, generation: u32) -> String {
        ObjectName::Keys { generation }.path(&self.id())
    }

    async fn restore(&self, keys: Arc<Keyring>, into: &Path) -> Result<u64, ArchiveError> {
        let destination = self.with(keys);
        let plan = plan(&destination, GROUP, Choose::default()).await?;
        let target = RestoreTarget { path: into.to_owned(), node_id: 1, identity: [1; 16] };
        let spec = RestoreSpec {
            cluster_id: [9; 16],
            cluster_name: "again".into(),
            incarnation: holdfast_model::id::Incarnation(99),
            members: vec![holdfast_model::id::NodeId(1)],
            held_back: Vec::new(),
        };
        restore(&destination, &plan, &[target], &spec, &|_, _, _| {}).await.map(|report| report.last.index)
    }
}

fn holds(bytes: &[u8], marker: &str) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker.as_bytes())
}

#[test]
fn nothing_of_anybody_is_in_any_object() {
    let sealed = Scene::new(Compression::None);
    let objects = sealed.objects();
    assert!(objects.len() > 8, "{}", objects.len());
    for (object, bytes) in &objects {
        for marker in MARKERS {
            assert!(!holds(bytes, marker) && !object.contains(marker), "{object} tells {marker}");
        }
    }
    // The search finds what is there to be found.
    let open = Folder::new();
    run(async {
        let sealing = Sealing::open_to_all(Compression::None);
        let lineage = sealed.history.open_sealed(&open.destination(), &sealing).await;
        sealed.history.ship(&lineage, 0, 20).await;
        let listed = open.destination().list("").await.expect("lists");
        let read = |path: &str| std::fs::read(open.file(path)).expect("reads");
        for marker in MARKERS {
            assert!(listed.iter().any(|found| holds(&read(&found.path), marker)), "{marker}");
        }
    });
}

#[test]
fn a_recipient_and_the_secret_open_all_of_it() {
    let scene = Scene::new(Compression::Zstd);
    run(async {
        for keys in [scene.custody.secret(), scene.custody.identity()] {
            let report = verify(&scene.with(keys.clone()), &scene.id(), Level::Bytes).await.expect("looks");
            assert!(report.is_good() && report.locked == 0, "{report:?}");
            assert_eq!(report.log[&GROUP], (0, scene.history.last().index));
            let dir = tempfile::tempdir().expect("directory");
            let into = dir.path().join("node");
            assert_eq!(scene.restore(keys, &into).await.expect("restores"), scene.history.last().index);
            let node = Node::new();
            node.apply(&scene.history.entries);
            let restored = crate::fixture::rows_of(&into, 1);
            assert_eq!(restored, crate::fixture::rows_of_checkpoint(&node.checkpoint()));
        }
    });
}

#[test]
fn without_a_key_nothing_is_written_and_nothing_is_vouched_for() {
    let scene = Scene::new(Compression::Zstd);
    run(async {
        let strangers = [Arc::default(), Custody::new(2).secret(), Custody::new(2).identity()];
        for keys in strangers {
            let report = verify_all(&scene.with(keys.clone()), Level::Bytes).await.expect("looks");
            assert!(report.bad.is_empty(), "{report:?}");
            // All but LINEAGE and two KEYS.age.
            assert_eq!(report.locked, report.objects - 3, "{report:?}");
            let dir = tempfile::tempdir().expect("directory");
            let into = dir.path().join("node");
            let error = scene.restore(keys.clone(), &into).await.expect_err("no key");
            assert!(matches!(error, ArchiveError::NoKey { .. }), "{error}");
            assert!(!into.exists(), "it wrote something");
            let error = offer(&scene.with(keys), GROUP, Choose::default(), &|_, _, _| {}).await.expect_err("no key");
            assert!(matches!(error, ArchiveError::NoKey { .. }), "{error}");
        }
    });
}

/// Whoever looks: with the secret, with an identity, with nothing.
#[test]
fn a_flipped_bit_in_any_object_is_named_by_everybody() {
    let scene = Scene::new(Compression::Zstd);
    let objects = scene.objects();
    run(async {
        for (at, (object, bytes)) in objects.iter().enumerate() {
            for bit in [bytes.len() * 8 - 1, (at * 7919 + 101) % (bytes.len() * 8)] {
                scene.folder.flip(object, bit);
                for keys in [scene.custody.secret(), scene.custody.identity(), Arc::default()] {
                    let report = verify_all(&scene.with(keys.clone()), Level::Bytes).await.expect("looks");
                    assert!(report.bad.iter().any(|(bad, _)| bad == object), "bit {bit}, {keys:?}: {report:?}");
                }
                scene.folder.flip(object, bit);
            }
        }
        let report = verify_all(&scene.with(scene.custody.secret()), Level::Bytes).await.expect("looks");
        assert!(report.bad.is_empty(), "{report:?}");
    });
}

#[test]
fn keys_that_are_gone_or_of_another_generation_are_named() {
    let scene = Scene::new(Compression::Zstd);
    let [first, second] = [GENERATION, GENERATION + 1].map(|generation| scene.keys_object(generation));
    let files = [&first, &second].map(|object| scene.folder.file(object));
    let [one, two] = files.each_ref().map(|file| std::fs::read(file).expect("reads"));
    let bad = |keys: Arc<Keyring>| {
        let report = run(async { verify_all(&scene.with(keys), Level::Bytes).await.expect("looks") });
        report.bad.into_iter().map(|(object, _)| object).collect::<Vec<_>>()
    };
    std::fs::write(&files[0], &two).expect("writes");
    std::fs::write(&files[1], &one).expect("writes");
    for keys in [scene.custody.secret(), scene.custody.identity(), Arc::default()] {
        assert_eq!(bad(keys), [first.clone(), second.clone()]);
    }
    std::fs::write(&files[0], &one).expect("writes");
    std::fs::remove_file(&files[1]).expect("removes");
    for keys in [scene.custody.secret(), scene.custody.identity(), Arc::default()] {
        assert_eq!(bad(keys), std::slice::from_ref(&second));
    }
    // What is missing is missed by whoever needs it, and by nobody else.
    run(async {
        let dir = tempfile::tempdir().expect("directory");
        let error = scene.restore(scene.custody.identity(), &dir.path().join("a")).await.expect_err("no KEYS.age");
        assert_eq!(error.fault().map(|(object, _)| object), Some(second.clone()));
        scene.restore(scene.custody.secret(), &dir.path().join("b")).await.expect("restores");
    });
}

#[test]
fn another_keys_age_under_the_name_stops_shipping() {
    let scene = Scene::new(Compression::Zstd);
    run(async {
        let destination = scene.with(scene.custody.secret());
        // The same key, wrapped anew: other bytes, and nobody knows for whom.
        let sealing = scene.custody.sealing(&scene.id(), GENERATION + 1, Compression::Zstd);
        let open = scene.history.open(&destination).await;
        let error = open.sealed_with(sealing).await.expect_err("another");
        assert_eq!(error.fault().map(|(object, _)| object), Some(scene.keys_object(GENERATION + 1)));
    });
}

/// Two leaders at one position: another packing, another generation, one of them not encrypted.
#[test]
fn a_shipper_takes_over_what_another_sealed_in_another_way() {
    let (custody, history) = (Custody::new(1), {
        let mut history = History::found(7);
        history.live(20);
        history
    });
    let id = history.facts.id;
    let sealings = [
        Sealing::open_to_all(Compression::Zstd),
        custody.sealing(&id, GENERATION, Compression::Zstd),
        custody.sealing(&id, GENERATION + 1, Compression::None),
    ];
    let node = Node::new();
    node.apply(&history.entries);
    for first in &sealings {
        for second in &sealings {
            let folder = Folder::new();
            run(async {
                let destination = folder.destination().with_keys(custody.secret());
                let [winner, late]: [OpenLineage; 2] =
                    [history.open_sealed(&destination, first).await, history.open_sealed(&destination, second).await];
                let mut shippers = [&winner, &late].map(|lineage| SegmentShipper::new(lineage.clone(), GROUP));
                for shipper in &mut shippers {
                    shipper.tail().await.expect("a tail");
                }
                for shipper in &mut shippers {
                    let outcome = shipper.ship(&history.entries, [0; 32]).await.expect("ships");
                    assert_eq!(outcome.tail().last, history.last());
                }
                let [one, two] = [&winner, &late].map(|lineage| {
                    let checkpoint = node.checkpoint();
                    async move {
                        ship_snapshot(lineage, GROUP, &checkpoint, &SnapshotOptions::default(), &|_, _| {})
                            .await
                            .expect("ships")
                    }
                });
                let (one, two) = (one.await, two.await);
                assert_eq!((one.root, two.adopted), (two.root, true));
                let report = verify_all(&destination, Level::Bytes).await.expect("looks");
                assert!(report.bad.is_empty() && report.locked == 0, "{report:?}");
            });
        }
    }
}

#[test]
fn each_recipient_and_nobody_else_finds_the_key() {
    let (custody, lineage) = (Custody::new(1), History::found(7).facts.id);
    let key = custody.secret().new_key(&lineage, GENERATION).expect("a secret");
    let bytes = wrap(&key, &lineage, &custody.recipients()).expect("wraps");
    let prove = |lineage: &LineageId, generation, identity: &Identity| {
        prove("k", lineage, generation, &bytes, identity).map_err(|error| error.fault())
    };
    for identity in [&custody.drill, &custody.offline[0], &custody.offline[1]] {
        assert_eq!(prove(&lineage, GENERATION, identity), Ok(Some(key.id())));
        assert!(prove(&lineage, GENERATION + 1, identity).is_err(), "another generation's");
        assert!(prove(&History::found(8).facts.id, GENERATION, identity).is_err(), "another history's");
    }
    assert_eq!(prove(&lineage, GENERATION, &Identity::generate()), Ok(None));
    assert!(wrap(&key, &lineage, &[]).is_err(), "for nobody");
    assert!(wrap(&key, &lineage, &["age1nobody".into()]).is_err());
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let found = super::prove("k", &lineage, GENERATION, &damaged, &custody.drill);
        assert!(!matches!(found, Ok(Some(id)) if id != key.id()), "bit {bit} gives another key");
    }
}

#[test]
fn key_files_and_identity_files_are_read_or_refused_by_line() {
    let dir = tempfile::tempdir().expect("directory");
    let file = |text: &str| -> PathBuf {
        let path = dir.path().join("file");
        std::fs::write(&path, text).expect("writes");
        path
    };
    let secret = Secret::random().expect("random");
    let older = Secret::random().expect("random");
    assert_ne!(secret, older);
    let text = format!("# newest first\n{}\n\n  {}  \n", secret.to_line(), older.to_line());
    assert_eq!(read_secrets(&file(&text)).expect("reads"), [secret, older]);
    let identity = Identity::generate();
    let text = format!("# public key: {}\n{}\n", identity.recipient(), identity.to_line());
    let read = read_identities(&file(&text)).expect("reads");
    assert_eq!(read.iter().map(Identity::recipient).collect::<Vec<_>>(), [identity.recipient()]);
    for (text, why) in [
        ("", "there is none in it"),
        ("# only a remark\n", "there is none in it"),
        ("0011", "line 1"),
        (&format!("{}\nzz\n", "0".repeat(64)), "line 2"),
        (&"0".repeat(70_000), "longer than"),
    ] {
        let error = read_secrets(&file(text)).expect_err(why).to_string();
        assert!(error.contains("key file") && error.contains(why), "{why}: {error}");
        // None of these lines is an identity.
        let error = read_identities(&file(text)).map(drop).expect_err(why).to_string();
        let why = if why == "line 2" { "line 1" } else { why };
        assert!(error.contains("identity file") && error.contains(why), "{why}: {error}");
    }
    let error = read_secrets(&dir.path().join("none")).expect_err("no file").to_string();
    assert!(error.contains("key file") && error.contains("none"), "{error}");
    let swapped = read_secrets(&file(&identity.to_line())).expect_err("an identity is no secret").to_string();
    assert!(!swapped.contains("AGE-SECRET"), "{swapped}");
}
