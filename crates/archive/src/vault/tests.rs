use super::*;
use crate::fixture::{Folder, GROUP, History, Node, restored, run};
use crate::sealing::Sealing;
use crate::segment::Segment;
use crate::snapshot::ship_snapshot;
use crate::tombstone::{Marked, Tombstone, lay_down};
use crate::verify::{Level, verify};
use crate::{Choose, VerifierKey};

fn trusted() -> Trusted {
    Trusted::from([VerifierKey::from_seed(&[1; 32]).public()])
}

/// An archive with two snapshots, the second a layer, and a log, and a vault beside it.
struct Scene {
    folder: Folder,
    history: History,
    node: Node,
    shipped: u64,
}

impl Scene {
    fn new() -> Self {
        let (folder, node) = (Folder::new(), Node::new());
        let mut scene = Self { folder, history: History::found(5), node, shipped: 0 };
        scene.history.stock(30, 3_000);
        scene.ship();
        scene.history.live(3);
        scene.ship();
        scene
    }

    /// What is new, and a snapshot of it.
    fn ship(&mut self) {
        let from = self.shipped;
        self.shipped = self.history.last().index + 1;
        self.node.apply(&self.history.range(from, u64::MAX));
        run(async {
            let lineage = self.history.open(&self.source()).await;
            self.history.ship(&lineage, from, 9).await;
            let (checkpoint, options) = (self.node.checkpoint(), self.node.options());
            ship_snapshot(&lineage, GROUP, &checkpoint, &options, &|_, _| {}).await.expect("ships");
        });
    }

    fn source(&self) -> Destination {
        self.folder.destination()
    }

    fn vault(&self) -> Destination {
        self.folder.destination_in("vault")
    }

    fn pull(&self) -> Pulled {
        run(pull(&self.source(), &self.vault(), GROUP, &trusted(), &|_, _| {})).expect("pulls")
    }

    fn objects(of: &Destination) -> Vec<String> {
        run(of.list("")).expect("lists").into_iter().map(|found| found.path).collect()
    }

    fn restored(&self, from: &Destination) -> Vec<holdfast_store::RawRow> {
        restored(from, Choose::default()).1
    }
}

#[test]
fn a_vault_has_everything_and_keeps_it_when_the_source_is_wiped() {
    let mut scene = Scene::new();
    let first = scene.pull();
    let all = Scene::objects(&scene.source());
    assert_eq!((first.bad.len(), first.lost.len(), first.objects), (0, 0, all.len() as u64), "{first:?}");
    assert_eq!(Scene::objects(&scene.vault()), all);
    assert_eq!(scene.pull(), Pulled { lineages: 1, present: all.len() as u64, ..Pulled::default() });
    scene.history.live(20);
    scene.ship();
    let second = scene.pull();
    assert_eq!((second.present, second.bad.len()), (all.len() as u64, 0), "{second:?}");
    let all = Scene::objects(&scene.source());
    assert_eq!(Scene::objects(&scene.vault()), all);
    let rows = scene.restored(&scene.source());
    // Everything goes, and the vault says so; what it has, it has.
    std::fs::remove_dir_all(scene.folder.file(&scene.history.facts.id.to_string())).expect("wipes");
    let wiped = scene.pull();
    let snapshots_and_log = |path: &&String| path.contains("/snap/") || path.contains("/log/");
    assert_eq!(wiped.lost, all.iter().filter(snapshots_and_log).cloned().collect::<Vec<_>>());
    assert_eq!((wiped.objects, wiped.lineages), (0, 0));
    assert_eq!(scene.restored(&scene.vault()), rows);
    let report = run(verify(&scene.vault(), &scene.history.facts.id, Level::Bytes)).expect("looks");
    assert_eq!(report.bad, []);
}

#[test]
fn nothing_that_is_damaged_gets_in_and_nothing_else_is_kept_out() {
    let scene = Scene::new();
    let all = Scene::objects(&scene.source());
    for (number, object) in all.iter().enumerate() {
        let vault = scene.folder.destination_in(&format!("vault-{number}"));
        scene.folder.flip(object, number * 7_919 + 5);
        let pulled = run(pull(&scene.source(), &vault, GROUP, &trusted(), &|_, _| {})).expect("pulls");
        let there: BTreeSet<String> = Scene::objects(&vault).into_iter().collect();
        assert!(!there.contains(object), "{object}");
        assert!(pulled.bad.iter().any(|(bad, _)| bad == object), "{object}: {:?}", pulled.bad);
        let kept_out: Vec<&String> = all.iter().filter(|one| !there.contains(*one) && *one != object).collect();
        // A snapshot without its rows is none.
        assert!(
            kept_out.iter().all(|one| one.ends_with("MANIFEST") && object.contains("/gen/")),
            "{object}: {kept_out:?}"
        );
        assert_eq!(kept_out.is_empty(), !object.contains("/gen/"), "{object}: {kept_out:?}");
        assert_eq!(pulled.bad.len(), 1 + kept_out.len(), "{:?}", pulled.bad);
        scene.folder.flip(object, number * 7_919 + 5);
        let again = run(pull(&scene.source(), &vault, GROUP, &trusted(), &|_, _| {})).expect("pulls");
        assert_eq!((again.bad.len(), Scene::objects(&vault)), (0, all.clone()), "{object}: {:?}", again.bad);
    }
}

#[test]
fn what_the_source_has_otherwise_now_does_not_replace_what_the_vault_has() {
    let scene = Scene::new();
    scene.pull();
    let rows = scene.restored(&scene.vault());
    let segment = Scene::objects(&scene.source()).into_iter().find(|one| one.contains("/log/")).expect("a segment");
    std::fs::write(scene.folder.file(&segment), b"rewritten").expect("writes");
    let pulled = scene.pull();
    assert_eq!((pulled.bad.len(), &pulled.bad[0].0), (1, &segment), "{pulled:?}");
    assert!(pulled.bad[0].1.contains("the source 9 now"), "{pulled:?}");
    assert_eq!(scene.restored(&scene.vault()), rows);
}

#[test]
fn a_segment_of_another_history_behind_the_vaults_log_stays_out() {
    let scene = Scene::new();
    scene.pull();
    let end = Scene::objects(&scene.vault());
    // Voters lost what they had shipped, and went on: the same position, another past.
    let mut other = History::found(5);
    other.stock(30, 3_000);
    other.live(3);
    let at = other.entries.len() - 3;
    other.entries.truncate(at);
    (0..3).for_each(|n| other.put("eve", &format!("e{n}"), 10));
    other.live(2);
    let from = scene.shipped;
    (0..9).for_each(|n| other.put("eve", &format!("f{n}"), 10));
    // Two of them: the second one follows the first.
    let middle = from + 4;
    for (from, to) in [(from, middle), (middle, u64::MAX)] {
        let segment = Segment::new(GROUP, other.chain_before(from), other.range(from, to)).expect("a segment");
        let sealed = segment.seal(&other.facts.id, &Sealing::default()).expect("seals");
        std::fs::write(scene.folder.file(&segment.name().path(&other.facts.id)), sealed.bytes).expect("writes");
    }
    for _ in 0..2 {
        let pulled = scene.pull();
        assert_eq!(pulled.bad.len(), 2, "{pulled:?}");
        assert!(pulled.bad[0].1.contains("entry chain") && pulled.bad[1].1.contains("refused"), "{pulled:?}");
        assert_eq!(Scene::objects(&scene.vault()), end);
    }
}

#[test]
fn what_was_repaired_at_the_source_is_no_fault() {
    let scene = Scene::new();
    let id = scene.history.facts.id;
    let first = scene.history.range(9, 18);
    let segment = Segment::new(GROUP, scene.history.chain_before(9), first).expect("a segment");
    let name = ObjectName::Segment { group: GROUP, first: 9, repair: 1 };
    let sealed = segment.seal_as(&name, &id, &Sealing::default()).expect("seals");
    std::fs::write(scene.folder.file(&name.path(&id)), sealed.bytes).expect("writes");
    let own = ObjectName::segment(GROUP, 9).path(&id);
    scene.folder.flip(&own, 777);
    let pulled = scene.pull();
    assert_eq!((pulled.bad, pulled.repaired), (Vec::new(), vec![own.clone()]));
    let there = Scene::objects(&scene.vault());
    assert!(there.contains(&name.path(&id)) && !there.contains(&own));
    let report = run(verify(&scene.vault(), &id, Level::Bytes)).expect("looks");
    assert_eq!(report.bad, []);
    scene.restored(&scene.vault());
}

#[test]
fn what_was_marked_to_go_is_not_lost() {
    let scene = Scene::new();
    scene.pull();
    let id = scene.history.facts.id;
    let manifests: Vec<String> =
        Scene::objects(&scene.source()).into_iter().filter(|one| one.ends_with("MANIFEST")).collect();
    std::fs::remove_file(scene.folder.file(&manifests[0])).expect("removes");
    assert_eq!(scene.pull().lost, manifests[..1]);
    let Some((_, ObjectName::Manifest { index, .. })) = ObjectName::parse(&manifests[0]) else { panic!("a manifest") };
    let mut mark = Tombstone::new(&id, GROUP, 7);
    mark.snapshots.push(Marked { index, time_ms: 1, root: String::new(), seal: String::new() });
    // Whoever wipes a source can sign something, too.
    run(lay_down(mark.clone(), &scene.source(), &id, GROUP, &VerifierKey::from_seed(&[66; 32]))).expect("marks");
    assert_eq!(scene.pull().lost, manifests[..1]);
    run(lay_down(mark, &scene.source(), &id, GROUP, &VerifierKey::from_seed(&[1; 32]))).expect("marks");
    let pulled = scene.pull();
    assert_eq!((pulled.lost.len(), pulled.bad.len()), (0, 0), "{pulled:?}");
    // And one that was spared since must be there.
    let spared = Tombstone { spared: vec![index], ..Tombstone::new(&id, GROUP, 8) };
    run(lay_down(spared, &scene.source(), &id, GROUP, &VerifierKey::from_seed(&[1; 32]))).expect("spares");
    assert_eq!(scene.pull().lost, manifests[..1]);
    assert!(Scene::objects(&scene.vault()).iter().all(|one| !one.contains("/tombstone/")), "that is the source's");
}
