use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use holdfast_model::id::NodeId;
use holdfast_wire::internal::v1 as pb;
use holdfast_wire::log::EntryPayload;

use super::*;
use crate::attest::{NodeKey, Reading, Witness};
use crate::fixture::{Folder, GROUP, History, NOW_MS, Node, restored, rows_of_checkpoint, run};
use crate::lineage::OpenLineage;
use crate::retention::{Accepted, HOUR_MS, Rule, judge};
use crate::snapshot::{SnapshotOptions, ship_attested};
use crate::verification::Verification;
use crate::verify::{Level, verify};
use crate::{At, Choose};

fn key() -> VerifierKey {
    VerifierKey::from_seed(&[9; 32])
}

fn trusted() -> Trusted {
    Trusted::from([key().public()])
}

/// A cluster of one voter that ships a snapshot now and then, and whoever looks after its archive.
struct Year {
    folder: Folder,
    history: History,
    node: Node,
    lineage: OpenLineage,
    options: SnapshotOptions,
    shipped: u64,
    snapshots: Vec<(u64, u64)>,
    aged: RefCell<BTreeSet<String>>,
}

impl Year {
    fn begin(at_ms: u64) -> Self {
        let (folder, node) = (Folder::new(), Node::new());
        let mut history = History::found_at(5, at_ms);
        let configs = vec![pb::VoterConfig { voters: vec![1] }];
        history.push(EntryPayload::Membership(pb::Membership { configs, members: Vec::new() }));
        history.stock(60, 300);
        let lineage = run(history.open(&folder.destination()));
        let options = node.options();
        Self { folder, history, node, lineage, options, shipped: 0, snapshots: Vec::new(), aged: RefCell::default() }
    }

    /// Some writes at this moment, shipped, and a snapshot.
    fn snapshot(&mut self, at_ms: u64) -> u64 {
        self.history.clock_ms = at_ms;
        let day = self.snapshots.len();
        (0..3).for_each(|n| self.history.put(&format!("user-{n}"), &format!("record-{}", (day * 3 + n) % 200), 100));
        let from = self.shipped;
        self.shipped = self.history.last().index + 1;
        self.node.apply(&self.history.range(from, u64::MAX));
        run(self.history.ship(&self.lineage, from, 100));
        let signed = |reading: Reading| {
            let key = NodeKey::from_seed(&[1; 32]);
            let signature = key.sign(&reading.statement);
            let witness = Witness { node: NodeId(1), key: key.public(), signature };
            std::future::ready(Ok(vec![witness])).boxed()
        };
        let checkpoint = self.node.checkpoint();
        let shipping = ship_attested(&self.lineage, GROUP, &checkpoint, &self.options, &signed, &|_, _| {});
        let report = run(shipping).expect("ships");
        std::fs::remove_dir_all(checkpoint).expect("removes");
        assert!(report.is_attested);
        self.snapshots.push((report.index, at_ms));
        report.index
    }

    /// What is new since it was called was written at this moment.
    fn age(&self, at_ms: u64) {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
        for object in self.objects() {
            if self.aged.borrow_mut().insert(object.clone()) {
                let file = std::fs::File::options().append(true).open(self.folder.file(&object)).expect("opens");
                file.set_modified(at).expect("sets");
            }
        }
    }

    /// Somebody trusted reads all of it, and says what was found.
    fn verify(&self, at_ms: u64) {
        let (destination, id) = (self.folder.destination(), self.lineage.id());
        let report = run(verify(&destination, id, Level::Bytes)).expect("looks");
        let mut found = Verification::new(id, GROUP, Depth::Proved, at_ms);
        found.take(&report);
        report.bad.iter().for_each(|(object, reason)| found.fault(object, reason));
        assert_eq!(report.bad, [], "at {at_ms}");
        run(found.record(&destination, id, &key())).expect("recorded");
        self.age(at_ms);
    }

    fn judged(&self, policy: &Policy, now_ms: u64) -> (Stock, Judgement) {
        let stocks = run(look(&self.folder.destination(), GROUP, &trusted(), now_ms)).expect("looks");
        let [stock] = <[Stock; 1]>::try_from(stocks).expect("one history");
        let judged = judge(std::slice::from_ref(&stock.holding), policy, now_ms, &Accepted::new());
        (stock, judged)
    }

    fn prune(&self, policy: &Policy, now_ms: u64) -> (Plan, Outcome) {
        let (stock, judged) = self.judged(policy, now_ms);
        assert_eq!(judged.frozen, [], "at {now_ms}");
        let plan = plan(&stock, &judged, policy, 0, now_ms);
        let destination = self.folder.destination();
        let outcome = run(carry_out(&destination, &stock, &plan, &key(), now_ms, &|_| {})).expect("carried out");
        self.age(now_ms);
        (plan, outcome)
    }

    fn objects(&self) -> BTreeSet<String> {
        let listed = run(self.folder.destination().list("")).expect("lists");
        listed.into_iter().map(|found| found.path).collect()
    }

    fn there(&self) -> BTreeSet<u64> {
        let names = self.objects();
        let indices = names.iter().filter_map(|path| match ObjectName::parse(path) {
            Some((_, ObjectName::Manifest { index, .. })) => Some(index),
            _ => None,
        });
        indices.collect()
    }

    /// What a restore to this entry fills a node with.
    fn restored(&self, index: u64) -> Vec<holdfast_store::RawRow> {
        let choose = Choose { lineage: Some(*self.lineage.id()), at: At::Index(index) };
        let (last, rows) = restored(&self.folder.destination(), choose);
        assert_eq!(last, index);
        rows
    }

    /// What the rules make of the entries up to there.
    fn rows_at(&self, index: u64) -> Vec<holdfast_store::RawRow> {
        let node = Node::new();
        node.apply(&self.history.range(0, index + 1));
        rows_of_checkpoint(&node.checkpoint())
    }
}

const POLICY: Policy =
    Policy { hourly: 0, daily: 7, weekly: 5, monthly: 12, yearly: 3, window_days: 10, grace_days: 7, max_age_days: 5 };

#[test]
fn a_year_of_snapshots_leaves_what_the_calendar_says_and_each_of_them_restores() {
    let begin_ms = NOW_MS - 365 * DAY_MS;
    let mut year = Year::begin(begin_ms);
    for day in 0..=365 {
        let now_ms = begin_ms + day * DAY_MS;
        year.snapshot(now_ms);
        // Often enough for what is verified to be fresh.
        if day % 5 != 0 {
            continue;
        }
        year.verify(now_ms + 2 * HOUR_MS);
        let before = year.there();
        let (plan, outcome) = year.prune(&POLICY, now_ms + 4 * HOUR_MS);
        assert_eq!(outcome.snapshots, plan.due.iter().copied().collect::<Vec<_>>());
        let gone: BTreeSet<u64> = before.difference(&year.there()).copied().collect();
        assert_eq!(gone, plan.due);
        assert!(gone.iter().all(|index| !plan.fresh.contains(index)));
    }
    // What was marked in the last week goes after it; nothing is added meanwhile.
    let end_ms = NOW_MS + 8 * DAY_MS;
    year.verify(end_ms);
    year.prune(&POLICY, end_ms + HOUR_MS);
    let expected = crate::retention::tests::expected(&year.snapshots, &POLICY);
    assert_eq!(year.there(), expected);
    assert!((15..30).contains(&expected.len()), "{expected:?}");
    year.verify(end_ms + 2 * HOUR_MS);
    let (plan, _) = year.prune(&POLICY, end_ms + 3 * HOUR_MS);
    assert!(plan.is_empty(), "{plan:?}");
    // Nothing that nobody needs is left in closed generations, and the log begins behind a snapshot.
    let (stock, judged) = year.judged(&POLICY, end_ms + 3 * HOUR_MS);
    assert_eq!(unneeded(&stock, &BTreeSet::new(), 0, end_ms), []);
    let through = judged.log_through[year.lineage.id()];
    let segments = stock.names().filter(|(name, ..)| matches!(name, ObjectName::Segment { .. })).count();
    assert!((10..25).contains(&segments), "{segments} segments, of 366");
    // All of them, and every moment of the window.
    for index in expected.iter().copied().chain([through + 1, through + 5, year.history.last().index]) {
        assert_eq!(year.restored(index), year.rows_at(index), "index {index}");
    }
    // Of a moment in between that nobody kept something is said, with what there is before it.
    let gone = expected.first().expect("one") + 1;
    let between = Choose { lineage: Some(*year.lineage.id()), at: At::Index(gone) };
    let error = run(crate::plan(&year.folder.destination(), GROUP, between)).map(|_| ()).expect_err("it went");
    assert!(error.to_string().contains(&gone.to_string()), "{error}");
    println!("{error}");
}

/// Two weeks, a policy that keeps two days, and everything proved.
fn two_weeks() -> (Year, Policy, u64) {
    let mut year = Year::begin(NOW_MS);
    (0..14).for_each(|day| {
        year.snapshot(NOW_MS + day * DAY_MS);
    });
    let now_ms = NOW_MS + 14 * DAY_MS;
    year.verify(now_ms);
    let policy = Policy { daily: 2, weekly: 0, monthly: 0, yearly: 0, ..POLICY };
    (year, policy, now_ms + HOUR_MS)
}

#[test]
fn nothing_goes_before_its_grace_by_anybodys_clock() {
    let (year, policy, now_ms) = two_weeks();
    let all = year.there();
    let (plan, outcome) = year.prune(&policy, now_ms);
    assert_eq!((plan.fresh.len(), plan.due.len(), outcome.recorded.len()), (12, 0, 1));
    assert_eq!(year.there(), all);
    let again = |now_ms| {
        year.verify(now_ms - HOUR_MS);
        let (stock, judged) = year.judged(&policy, now_ms);
        assert_eq!(judged.frozen, []);
        super::plan(&stock, &judged, &policy, 0, now_ms)
    };
    let early = again(now_ms + 7 * DAY_MS - 1);
    assert_eq!((early.waiting.len(), early.due.len(), early.fresh.len()), (12, 0, 0));
    assert!(early.waiting.values().all(|due_ms| *due_ms == now_ms + 7 * DAY_MS), "{:?}", early.waiting);
    // The mark says that it is old, the destination knows better.
    let mark = year.folder.file(&outcome.recorded[0]);
    let file = std::fs::File::options().append(true).open(mark).expect("opens");
    let late_ms = now_ms + 3 * DAY_MS;
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_millis(late_ms)).expect("sets");
    assert_eq!(again(now_ms + 8 * DAY_MS).due.len(), 0);
    let due = again(late_ms + 7 * DAY_MS);
    assert_eq!((due.due.len(), due.waiting.len()), (12, 0));
    // A destination whose turn comes a day later.
    let (stock, judged) = year.judged(&policy, late_ms + 7 * DAY_MS);
    assert_eq!(super::plan(&stock, &judged, &policy, DAY_MS, late_ms + 7 * DAY_MS).due.len(), 0);
}

/// Somebody locked one snapshot's manifest, and nothing else of it, and a segment in the middle of the log.
#[test]
fn what_a_lock_holds_keeps_what_it_needs_and_the_log_behind_it() {
    let (year, policy, now_ms) = two_weeks();
    let policy = Policy { window_days: 1, ..policy };
    year.prune(&policy, now_ms);
    let later_ms = now_ms + 8 * DAY_MS;
    year.verify(later_ms - HOUR_MS);
    let (stock, judged) = year.judged(&policy, later_ms);
    let plan = plan(&stock, &judged, &policy, 0, later_ms);
    let index = *plan.due.first().expect("due");
    let manifest = ObjectName::Manifest { group: GROUP, index }.path(&stock.id());
    let named: BTreeSet<String> = stock.manifests[&index].objects().map(|(name, _)| name.path(&stock.id())).collect();
    assert!(plan.rows.iter().any(|(object, _)| named.contains(object)), "its rows would go, too");
    assert!(plan.log.len() > 4, "{} segments go", plan.log.len());
    let (gone, stays) = plan.log.split_at(2);
    let locked = BTreeSet::from([manifest.clone(), stays[0].0.clone()]);
    let destination = year.folder.destination();
    let mut outcome = Outcome::default();
    run(async {
        let remover = Remover::of(&destination).await.expect("may");
        let remove = async |object: &str| match locked.contains(object) {
            true => Ok(Removal::Held(Some(later_ms))),
            false => remover.remove(object).await,
        };
        delete(&stock, &plan, &mut outcome, &|_| {}, remove).await.expect("deletes");
    });
    let left = year.objects();
    assert_eq!(outcome.held.iter().map(|(object, _)| object.clone()).collect::<BTreeSet<_>>(), locked);
    assert_eq!((outcome.snapshots.len(), outcome.log_is_cut), (plan.due.len() - 1, false));
    assert!(named.iter().all(|object| left.contains(object)), "what the manifest names went");
    assert_eq!(year.restored(index), year.rows_at(index));
    assert!(gone.iter().all(|(object, _)| !left.contains(object)), "the log goes up to the lock");
    assert!(stays.iter().all(|(object, _)| left.contains(object)), "there is a hole in the log");
}

#[test]
fn a_mark_by_a_stranger_or_of_another_manifest_is_none() {
    let (year, policy, now_ms) = two_weeks();
    let (stock, judged) = year.judged(&policy, now_ms);
    let plan_now = plan(&stock, &judged, &policy, 0, now_ms);
    let (destination, stranger) = (year.folder.destination(), VerifierKey::from_seed(&[66; 32]));
    let old_ms = now_ms - 9 * DAY_MS;
    run(carry_out(&destination, &stock, &plan_now, &stranger, old_ms, &|_| {})).expect("marks");
    let mut other = Tombstone::new(&stock.id(), GROUP, old_ms);
    other.snapshots =
        stock.holding.taken.iter().map(|taken| marked(&Taken { seal: [1; 32], ..taken.clone() })).collect();
    run(lay_down(other, &destination, &stock.id(), GROUP, &key())).expect("marks");
    year.age(old_ms);
    let (stock, judged) = year.judged(&policy, now_ms);
    assert_eq!(stock.strangers, Trusted::from([stranger.public()]));
    let plan = plan(&stock, &judged, &policy, 0, now_ms);
    assert_eq!((plan.due.len(), plan.fresh.len(), plan.log.len()), (0, 12, 0));
}

#[test]
fn what_is_spared_needs_a_mark_of_its_own_again() {
    let (year, few, now_ms) = two_weeks();
    let (plan, _) = year.prune(&few, now_ms);
    assert_eq!(plan.fresh.len(), 12);
    // Somebody sees that it was a mistake.
    let later_ms = now_ms + 2 * DAY_MS;
    year.verify(later_ms - HOUR_MS);
    let (plan, _) = year.prune(&Policy { daily: 30, ..few.clone() }, later_ms);
    assert_eq!((plan.spared.len(), plan.fresh.len(), plan.due.len()), (12, 0, 0));
    // And makes it once more: what was marked first counts no more.
    let again_ms = now_ms + 9 * DAY_MS;
    year.verify(again_ms - HOUR_MS);
    let (plan, _) = year.prune(&few, again_ms);
    assert_eq!((plan.fresh.len(), plan.due.len()), (12, 0));
    // A clock that is ahead of the destination's ends no grace.
    let (stock, judged) = year.judged(&few, again_ms + 8 * DAY_MS);
    let mut judged_good = judged.clone();
    judged_good.frozen.clear();
    assert_eq!(super::plan(&stock, &judged_good, &few, 0, again_ms + 8 * DAY_MS).due.len(), 0);
}

/// Whoever ships a snapshot lays its chunks down first, and its manifest last.
#[test]
fn what_nobody_names_goes_only_where_nothing_is_added_any_more() {
    let (year, policy, now_ms) = two_weeks();
    let newest = year.objects().iter().filter_map(|path| generation_of(path)).max().expect("rows");
    let path = |generation| ObjectName::Chunk { generation, name: [77; 32] }.path(year.lineage.id());
    let orphans = [path(newest - 2), path(newest)];
    for orphan in &orphans {
        let file = year.folder.file(orphan);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        std::fs::write(file, b"begun, and not ended").expect("written");
    }
    year.age(NOW_MS);
    let (stock, _) = year.judged(&policy, now_ms);
    let gone: Vec<String> = unneeded(&stock, &BTreeSet::new(), 0, now_ms).into_iter().map(|(path, _)| path).collect();
    assert_eq!(gone, orphans[..1]);
}

fn generation_of(path: &str) -> Option<u32> {
    match ObjectName::parse(path)?.1 {
        ObjectName::Chunk { generation, .. } | ObjectName::Patch { generation, .. } => Some(generation),
        _ => None,
    }
}

#[test]
fn a_snapshot_that_somebody_takes_away_freezes_all() {
    let (year, policy, now_ms) = two_weeks();
    let index = year.snapshots[5].0;
    std::fs::remove_file(year.folder.file(&ObjectName::Manifest { group: GROUP, index }.path(year.lineage.id())))
        .expect("removes");
    let (stock, judged) = year.judged(&policy, now_ms);
    let rules: Vec<Rule> = judged.frozen.iter().map(|frozen| frozen.rule).collect();
    assert_eq!(rules, [Rule::SnapshotMissing]);
    assert!(plan(&stock, &judged, &policy, 0, now_ms).is_empty());
}

#[test]
fn what_is_damaged_freezes_all() {
    let (year, policy, now_ms) = two_weeks();
    let chunk = year.objects().into_iter().find(|path| path.contains("/chunk/")).expect("a chunk");
    let bytes = std::fs::read(year.folder.file(&chunk)).expect("reads");
    std::fs::write(year.folder.file(&chunk), &bytes[1..]).expect("writes");
    let (_, judged) = year.judged(&policy, now_ms);
    assert!(judged.frozen.iter().all(|frozen| frozen.rule == Rule::Damaged && frozen.reason.contains(&chunk)));
    assert!(!judged.frozen.is_empty());
}
