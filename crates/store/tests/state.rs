//! The state database: what a crash leaves, checkpoints, installs, loads, and what a scrub sees.

#[path = "support/commands.rs"]
mod commands;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use holdfast_model::id::Version;
use holdfast_model::state::{Effect, Effects, StateRead, Sys, UserRow};
use holdfast_store::keyspace::{Family, sys};
use holdfast_store::{Applied, ApplyBatch, RawRow, StateLoader, StateStore, StoreError, forget_aside, open_checkpoint};
use holdfast_wire::durable;
use support::{GROUP, data, image};

use commands::{apply, collection, founded, key, put, rows, rows_of, user};

fn open(path: &Path) -> StateStore {
    StateStore::open(&data(path), GROUP).expect("the state opens")
}

/// Commits one entry that puts a record.
fn write(store: &StateStore, index: u64, id: &str, size: usize) {
    let mut batch = store.begin();
    apply(&mut batch, index, &put("ann", "notes", id, size, index));
    store.commit(batch).expect("committed");
}

fn dbs(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir.join("state/0"))
        .expect("list")
        .map(|item| item.expect("item").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_crash_falls_back_to_the_last_flush_as_a_whole() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    assert_eq!((store.applied(), store.durable_position().expect("read")), (Applied::default(), None));
    founded(&store);
    write(&store, 2, "a", 10);
    store.flush().expect("flushed");
    let flushed = store.applied();
    write(&store, 3, "b", 5000);
    assert_eq!((store.applied().index(), store.durable_applied()), (3, 2));

    let copy = tempfile::tempdir().expect("tempdir");
    image(dir.path(), copy.path());
    let again = open(copy.path());
    assert_eq!((again.applied(), again.durable_applied()), (flushed, 2));
    let view = again.view();
    let ann = view.uid(&user("ann")).expect("read").expect("known");
    assert!(view.record(ann, &key("notes", "a")).expect("read").is_some());
    assert!(view.record(ann, &key("notes", "b")).expect("read").is_none());
    assert!(view.scrub().expect("read").is_clean());

    store.flush().expect("flushed");
    assert_eq!(store.durable_applied(), 3);
    let copy = tempfile::tempdir().expect("tempdir");
    image(dir.path(), copy.path());
    assert_eq!(rows(&open(copy.path())), rows(&store));
}

#[test]
fn a_batch_counts_once_and_only_forwards() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    let (mut first, mut second) = (store.begin(), store.begin());
    apply(&mut first, 2, &put("ann", "notes", "a", 3, 2));
    apply(&mut second, 2, &put("ann", "notes", "a", 4, 2));
    store.commit(first).expect("committed");
    assert!(store.commit(second).is_err(), "it was begun before the first");
    let before = rows(&store);
    let mut back = store.begin();
    apply(&mut back, 2, &put("ann", "notes", "a", 5, 9));
    assert!(store.commit(back).is_err(), "index 2 is applied already");
    assert_eq!(rows(&store), before);
}

#[test]
fn a_view_does_not_move() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    write(&store, 2, "a", 3);
    let view = store.view();
    write(&store, 3, "a", 4);
    write(&store, 4, "b", 4);
    let ann = view.uid(&user("ann")).expect("read").expect("known");
    assert_eq!((view.applied().index(), view.user(ann).expect("read").expect("there").head.counter()), (2, 1));
    assert_eq!(view.record(ann, &key("notes", "a")).expect("read").expect("there").payload.len(), 3);
    assert!(view.record(ann, &key("notes", "b")).expect("read").is_none());
    assert_eq!(view.changes(ann, Version(0), 100, 1 << 20).expect("read").rows.len(), 1);
    let sent = std::thread::spawn(move || view.scrub().expect("read").is_clean());
    assert!(sent.join().expect("joined"));
}

#[test]
fn lists_and_changes_are_paged_by_whole_commits() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    let mut batch = store.begin();
    for index in 2..12 {
        apply(&mut batch, index, &commands::put_many("ann", &[("notes", "n"), ("events", "e")], index));
        apply(&mut batch, index + 100, &put("bob", "notes", "n", 3, index + 100));
    }
    store.commit(batch).expect("committed");
    let view = store.view();
    let ann = view.uid(&user("ann")).expect("read").expect("known");
    let head = view.user(ann).expect("read").expect("there").head;

    let page = view.changes(ann, Version(0), 3, usize::MAX).expect("read");
    assert_eq!((page.rows.len(), page.more), (4, true), "commits of two are not split");
    let (mut seen, mut after) = (Vec::new(), Version(0));
    loop {
        let page = view.changes_with_records(ann, after, 5, 1).expect("read");
        after = page.changes.last().expect("at least one commit").version;
        seen.extend(page.changes.iter().map(|change| (change.version, change.ordinal)));
        assert!(page.changes.iter().all(|change| change.record.row.version == change.version));
        if !page.more {
            break;
        }
    }
    assert_eq!((after, seen.len(), seen.is_sorted()), (head, 20, true));
    assert_eq!(view.changes(ann, head, 10, 1000).expect("read"), Default::default());
    assert_eq!(view.changes(ann, Version(u64::MAX), 10, 1000).expect("read"), Default::default());

    let notes = collection("notes");
    let page = view.list(ann, &notes, None, 4, false, true).expect("read");
    let rest = view.list(ann, &notes, page.records.last().map(|last| &last.id), 100, false, false).expect("read");
    assert_eq!((page.records.len(), page.more, rest.records.len(), rest.more), (4, true, 6, false));
    assert!(page.records.iter().all(|listed| !listed.record.payload.is_empty()));
    assert!(rest.records.iter().all(|listed| listed.record.payload.is_empty()));
    let newest = view.list_newest(ann, &notes, None, 3, false, true).expect("read");
    let last = &newest.records[2].record.row;
    let older = view.list_newest(ann, &notes, Some((last.version, last.ordinal)), 100, false, true).expect("read");
    let versions: Vec<_> = newest.records.iter().chain(&older.records).map(|it| it.record.row.version).collect();
    assert_eq!((versions.len(), newest.more, older.more), (10, true, false));
    assert!(versions.is_sorted_by(|newer, older| newer > older));
    let users: Vec<_> = view.users().expect("read").collect::<Result<_, _>>().expect("read");
    assert!(users.contains(&(user("ann"), ann)) && users.len() == 2);
}

#[test]
fn a_checkpoint_speaks_for_itself_and_installs_whole() {
    let (dir, other) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let store = open(dir.path());
    founded(&store);
    write(&store, 2, "a", 9000);
    let path = dir.path().join("snapshots/two");
    let info = store.checkpoint(&path).expect("taken");
    assert_eq!(info.applied, store.applied());
    let taken = rows(&store);
    write(&store, 3, "b", 10);
    assert_eq!(rows_of(&open_checkpoint(&path).expect("opened")), taken);
    assert!(info.files.iter().all(|(name, length)| fs::metadata(path.join(name)).expect("there").len() == *length));

    let target = open(other.path());
    founded(&target);
    write(&target, 2, "old", 10);
    let view = target.view();
    target.install(&path).expect("installed");
    assert_eq!((rows(&target), target.applied(), target.durable_applied()), (taken.clone(), info.applied.clone(), 2));
    assert!(view.scrub().expect("an old view stays readable").is_clean());
    assert_eq!(dbs(other.path()), ["CURRENT", "db-1", "db-2"]);
    drop(view);
    assert_eq!(dbs(other.path()), ["CURRENT", "db-2"]);
    write(&target, 3, "c", 10);
    target.install(&path).expect("the checkpoint is left as it was");
    drop(target);
    assert_eq!((dbs(other.path()), rows(&open(other.path()))), (vec!["CURRENT".into(), "db-3".into()], taken));
}

#[test]
fn a_checkpoint_of_another_group_or_with_damage_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    write(&store, 2, "a", 10);
    let foreign = tempfile::tempdir().expect("tempdir");
    let seven = StateStore::open(&data(foreign.path()), holdfast_model::id::GroupId(7)).expect("opened");
    let path = foreign.path().join("snapshots/seven");
    seven.checkpoint(&path).expect("taken");
    let before = rows(&store);
    assert!(matches!(store.install(&path), Err(StoreError::Mismatch { .. })));

    let path = dir.path().join("snapshots/own");
    store.checkpoint(&path).expect("taken");
    let table = fs::read_dir(&path).expect("list").map(|item| item.expect("item").path());
    let table = table.filter(|path| path.extension().is_some_and(|ext| ext == "sst")).max().expect("a table");
    let bytes = fs::read(&table).expect("read");
    // A new file: the table itself is shared with the store.
    fs::remove_file(&table).expect("removed");
    fs::write(&table, &bytes[..bytes.len() / 2]).expect("written");
    assert!(store.install(&path).is_err(), "a table is cut short");
    assert_eq!(rows(&store), before);
    write(&store, 3, "b", 10);
}

/// An install or a load may stop after any step; the next start has the old state or the new one, never neither.
#[test]
fn an_install_cut_short_leaves_one_state_or_the_other() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    write(&store, 2, "a", 10);
    let path = dir.path().join("snapshots/two");
    store.checkpoint(&path).expect("taken");
    let new = rows(&store);
    write(&store, 3, "b", 10);
    store.flush().expect("flushed");
    let old = rows(&store);
    drop(store);
    let pointer = dir.path().join("state/0/CURRENT");
    let old_pointer = fs::read(&pointer).expect("read");
    let before = tempfile::tempdir().expect("tempdir");
    image(dir.path(), before.path());
    {
        let store = open(dir.path());
        // Held to the end, so that the old database is not deleted.
        let _view = store.view();
        store.install(&path).expect("installed");
        let after = tempfile::tempdir().expect("tempdir");
        image(dir.path(), after.path());
        let group = |dir: &Path| dir.join("state/0");
        // Built, not switched to.
        fs::write(group(after.path()).join("CURRENT"), &old_pointer).expect("written");
        fs::rename(group(after.path()).join("db-2"), group(after.path()).join("building-2")).expect("renamed");
        image(after.path(), &before.path().join("not-switched"));
        // Switched to, not renamed.
        let renamed = before.path().join("not-renamed");
        image(after.path(), &renamed);
        fs::copy(&pointer, group(&renamed).join("CURRENT")).expect("copied");
    }
    let reopened = open(&before.path().join("not-switched"));
    assert_eq!(
        (rows(&reopened), dbs(&before.path().join("not-switched"))),
        (old, vec!["CURRENT".into(), "db-1".into()])
    );
    let reopened = open(&before.path().join("not-renamed"));
    assert_eq!(
        (rows(&reopened), dbs(&before.path().join("not-renamed"))),
        (new, vec!["CURRENT".into(), "db-2".into()])
    );
}

#[test]
fn a_lost_or_damaged_pointer_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(open(dir.path()));
    let pointer = dir.path().join("state/0/CURRENT");
    let whole = fs::read(&pointer).expect("read");
    for at in 0..whole.len() - 1 {
        let mut torn = whole.clone();
        torn[at] ^= 0x04;
        fs::write(&pointer, torn).expect("written");
        assert!(StateStore::open(&data(dir.path()), GROUP).is_err(), "byte {at}");
    }
    fs::remove_file(&pointer).expect("removed");
    let error = StateStore::open(&data(dir.path()), GROUP).err().expect("there is a db-1");
    assert!(error.to_string().contains("no crash leaves"), "{error}");
}

fn loader(dir: &Path) -> StateLoader {
    StateLoader::create(&data(dir), GROUP).expect("created")
}

#[test]
fn rows_load_back_into_the_same_state() {
    let (dir, other) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let store = open(dir.path());
    founded(&store);
    for index in 2..30 {
        write(&store, index, &format!("r{index}"), index as usize * 400);
    }
    let all = rows(&store);
    assert!(all.is_sorted_by_key(|row| (row.family, row.key.clone())));

    let mut cut_short = loader(other.path());
    for row in &all[..all.len() / 2] {
        cut_short.put(row.clone()).expect("put");
    }
    drop(cut_short);
    assert!(rows(&open(other.path())).is_empty(), "half a restore is none");
    assert_eq!(dbs(other.path()), ["CURRENT", "db-1"]);

    let mut whole = loader(other.path());
    for row in all.iter().rev() {
        whole.put(row.clone()).expect("put");
    }
    let mut unknown = all[0].clone();
    unknown.family = 6;
    assert!(whole.put(unknown).is_err(), "a family of another build");
    let broken = RawRow { family: Family::Usr.tag(), key: vec![1; 10], value: vec![0xff; 3] };
    assert!(whole.put(broken).is_err(), "a row that does not decode");
    let path: PathBuf = whole.finish().expect("finished");
    assert!(path.ends_with("db-2"));
    let restored = open(other.path());
    assert_eq!((rows(&restored), restored.applied()), (all, store.applied()));
    assert!(restored.view().scrub().expect("read").is_clean());
}

/// A restore may bring the payload of a record after its row: no other one is taken, and until then the record is there
/// without it. A scrub calls it missing unless the facts of the group say that it is being restored.
#[test]
fn a_payload_may_come_after_its_record() {
    let (dir, other) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let store = open(dir.path());
    founded(&store);
    write(&store, 2, "a", 6000);
    write(&store, 3, "b", 7000);
    let all = rows(&store);
    let at: Vec<usize> = (0..all.len()).filter(|at| all[*at].family == Family::Rec.tag()).collect();
    let [a, b] = at[..] else { panic!("two records: {at:?}") };
    let head = |at: usize| durable::record_head(&all[at].value).expect("a record").len();
    let payload = |at: usize| bytes::Bytes::copy_from_slice(&all[at].value[head(at)..]);
    let load = |left: Vec<holdfast_model::id::Stage>| {
        let mut loader = StateLoader::create(&data(other.path()), GROUP).expect("a loader");
        for (place, row) in all.iter().enumerate() {
            let mut row = row.clone();
            if at.contains(&place) {
                row.value.truncate(head(place));
            }
            loader.put(row).expect("put");
        }
        assert_eq!(loader.held_back(), 2);
        let mut facts = Sys::clone(store.view().sys());
        facts.restoring = holdfast_model::state::Restoring::of(&left);
        loader.put_sys(&facts).expect("put");
        loader
    };
    let mut loader = load(Vec::new());
    assert!(loader.put_payload(&all[a].key, &payload(b)).is_err(), "that of another record");
    assert!(loader.put_payload(b"no record", &payload(a)).is_err(), "that of none");
    loader.put_payload(&all[a].key, &payload(a)).expect("its own");
    assert_eq!(loader.held_back(), 1);
    loader.finish().expect("finished");
    let half = open(other.path());
    let ann = half.view().uid(&user("ann")).expect("read").expect("known");
    let found = |id: &str| half.view().record(ann, &key("notes", id)).expect("read").expect("there");
    assert_eq!((found("a").payload, found("a").held_back), (payload(a), false));
    assert_eq!((found("b").payload.len(), found("b").held_back, found("b").row.payload_len), (0, true, 7000));
    let report = half.view().scrub().expect("read");
    assert_eq!(report.fault_count, 1, "{report:?}");
    assert!(report.faults[0].what.contains("payload is missing"), "{report:?}");
    drop(half);

    load(vec![collection("notes").stage()]).finish().expect("finished");
    assert!(open(other.path()).view().scrub().expect("read").is_clean(), "it is said to be restored");
    let mut whole = load(Vec::new());
    at.iter().for_each(|at| whole.put_payload(&all[*at].key, &payload(*at)).expect("its own"));
    whole.finish().expect("finished");
    assert_eq!(rows(&open(other.path())), all);
}

#[test]
fn a_scrub_sees_all_kinds_of_damage() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    write(&store, 2, "a", 10);
    write(&store, 3, "b", 10);
    let all = rows(&store);
    let family = |tag: Family| all.iter().position(|row| row.family == tag.tag()).expect("a row");
    type Damage = Box<dyn Fn(&mut Vec<RawRow>)>;
    let (record, change, user_row) = (family(Family::Rec), family(Family::Chg), family(Family::Usr));
    let facts = all.iter().position(|row| row.family == Family::Sys.tag() && row.key == sys::FACTS).expect("a row");
    let of_user = |change: fn(&mut UserRow)| -> Damage {
        Box::new(move |rows| {
            let mut row = durable::decode_user(&rows[user_row].value).expect("valid");
            change(&mut row);
            rows[user_row].value = durable::encode_user(&row).to_vec();
        })
    };
    let of_group = |change: fn(&mut Sys)| -> Damage {
        Box::new(move |rows| {
            let mut row = durable::decode_sys(&rows[facts].value).expect("valid");
            change(&mut row);
            rows[facts].value = durable::encode_sys(&row).to_vec();
        })
    };
    let (request, queued, number) = (family(Family::Req), family(Family::Exp), family(Family::Uid));
    let cases: [(&str, Damage); 13] = [
        ("expiry queue is not", Box::new(move |rows| drop(rows.remove(request)))),
        ("expiry queue is not", Box::new(move |rows| drop(rows.remove(queued)))),
        ("do not pair up", Box::new(move |rows| drop(rows.remove(number)))),
        (
            "tells something else",
            Box::new(move |rows| {
                let mut row = durable::decode_change(&rows[change].value).expect("valid");
                row.deleted = true;
                rows[change].value = durable::encode_change(&row).to_vec();
            }),
        ),
        ("usage is not", of_user(|row| row.usage.used_bytes += 1)),
        ("collection digests", of_user(|row| row.collections.clear())),
        ("digest over all users", of_group(|sys| sys.digest.0[0] ^= 1)),
        ("totals of the group", of_group(|sys| sys.totals.records += 1)),
        ("payload is not", Box::new(move |rows| *rows[record].value.last_mut().expect("bytes") ^= 1)),
        ("has no record", Box::new(move |rows| drop(rows.remove(record)))),
        ("no change row", Box::new(move |rows| drop(rows.remove(change)))),
        ("another record", Box::new(move |rows| rows[change].value = rows[change + 1].value.clone())),
        ("without a user row", Box::new(move |rows| drop(rows.remove(user_row)))),
    ];
    for (expected, damage) in cases {
        let other = tempfile::tempdir().expect("tempdir");
        let mut damaged = all.clone();
        damage(&mut damaged);
        let mut loader = loader(other.path());
        for row in damaged {
            loader.put(row).expect("put");
        }
        loader.finish().expect("finished");
        let report = open(other.path()).view().scrub().expect("read");
        assert!(report.faults.iter().any(|fault| fault.what.contains(expected)), "{expected}: {report:?}");
    }
}

/// What no digest covers is told by comparing replicas: any other byte in any family gives another hash of that family.
#[test]
fn a_scrub_hashes_every_row_of_every_family() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    write(&store, 2, "a", 10);
    write(&store, 3, "b", 5000);
    let all = rows(&store);
    let families = store.view().scrub().expect("read").families;
    let copied = |change: &dyn Fn(&mut Vec<RawRow>)| {
        let other = tempfile::tempdir().expect("tempdir");
        let mut rows = all.clone();
        change(&mut rows);
        let mut loader = loader(other.path());
        for row in rows {
            loader.put(row).expect("put");
        }
        loader.finish().expect("finished");
        let report = open(other.path()).view().scrub().expect("read");
        (report.is_clean(), report.families)
    };
    assert_eq!(copied(&|_| {}), (true, families), "the same rows, whatever files they are in");
    let request = all.iter().position(|row| row.family == Family::Req.tag()).expect("a request");
    let (clean, other) = copied(&|rows| {
        let mut row = durable::decode_request(&rows[request].value).expect("valid");
        row.commit_index += 1;
        rows[request].value = durable::encode_request(&row).to_vec();
    });
    let changed: Vec<_> = families.iter().zip(&other).map(|(a, b)| a != b).collect();
    assert_eq!((clean, changed), (true, vec![false, false, false, false, false, true, false, false]));
}

#[test]
fn a_scrub_that_is_given_up_says_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    for index in 2..10 {
        write(&store, index, &format!("r{index}"), 50_000);
    }
    let view = store.view();
    let mut read = 0;
    let whole = view.scrub_at(&mut |bytes| {
        read += bytes;
        true
    });
    assert!(whole.expect("read").is_some_and(|report| report.is_clean()) && read > 300_000, "{read}");
    assert_eq!(view.scrub_at(&mut |_| false).expect("read"), None);
}

/// The newest one is kept, and nothing that others put there is touched.
#[test]
fn what_is_kept_aside_is_the_newest_state() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    let data_dir = dir.path().join("quarantine");
    drop(store);
    fs::create_dir_all(data_dir.join("state-by-hand")).expect("mkdir");
    let held = data(dir.path());
    let store = StateStore::open(&held, GROUP).expect("opened");
    write(&store, 2, "a", 10);
    store.keep_aside(&held).expect("kept");
    write(&store, 3, "b", 10);
    let kept = store.keep_aside(&held).expect("kept");
    let names: Vec<_> = fs::read_dir(&data_dir).expect("list").map(|item| item.expect("item").file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(open_checkpoint(&kept).expect("opened").applied(), &store.applied());
    assert!(forget_aside(&held).expect("deleted"));
    assert!(!kept.exists() && data_dir.join("state-by-hand").exists(), "what others put there stays");
    assert!(!forget_aside(&held).expect("nothing left"));
}

/// An operator may call any folder `raft`; what is damaged is told by who read it, not by what a folder is called.
#[test]
fn a_damaged_table_of_the_state_is_the_states_damage_wherever_it_lies() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("raft");
    let store = open(&path);
    founded(&store);
    write(&store, 2, "a", 10);
    store.flush().expect("flushed");
    drop(store);
    let tables = fs::read_dir(path.join("state/0/db-1")).expect("list").map(|item| item.expect("item").path());
    for table in tables.filter(|path| path.extension().is_some_and(|ext| ext == "sst")) {
        let mut bytes = fs::read(&table).expect("read");
        // In the first block of rows; what opening reads lies behind it.
        bytes[3] ^= 0x10;
        fs::write(&table, bytes).expect("written");
    }
    let error = match StateStore::open(&data(&path), GROUP) {
        Ok(store) => store.view().scrub().expect_err("a block does not match its checksum"),
        Err(error) => error,
    };
    assert!(error.is_damaged_state() && error.is_unreadable_state(), "{error}");
    assert!(error.to_string().contains("move its state/ to quarantine/"), "{error}");
}

#[test]
fn every_start_and_every_install_has_a_number_of_its_own() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    let path = dir.path().join("snapshots/one");
    store.checkpoint(&path).expect("taken");
    let (first, view) = (store.installation(), store.view());
    write(&store, 2, "a", 10);
    assert_eq!((store.installation(), store.view().installation()), (first, first), "writes change nothing of it");
    store.install(&path).expect("installed");
    let second = store.installation();
    assert_eq!((store.view().installation(), view.installation()), (second, first));
    drop((store, view));
    let third = open(dir.path()).installation();
    assert!(first != second && second != third && first != third && ![first, second, third].contains(&0));
}

#[test]
fn a_row_that_does_not_decode_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = {
        let store = open(dir.path());
        founded(&store);
        write(&store, 2, "a", 10);
        dir.path().join("state/0/db-1")
    };
    {
        let names = Family::ALL.map(Family::name).into_iter().chain(["default"]);
        let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), &path, names).expect("opened");
        let records = db.cf_handle("rec").expect("cf");
        let (key, _) = db.iterator_cf(records, rocksdb::IteratorMode::Start).next().expect("one").expect("read");
        db.put_cf(records, key, b"\x02nonsense").expect("put");
    }
    let store = open(dir.path());
    let view = store.view();
    let ann = view.uid(&user("ann")).expect("read").expect("known");
    let error = view.record(ann, &key("notes", "a")).expect_err("it does not decode");
    assert!(matches!(&error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("`rec`") && error.to_string().contains("reinstall"), "{error}");
    assert!(view.list(ann, &collection("notes"), None, 10, false, false).is_err());
    assert!(view.scrub().is_err());
    assert!(StateRead::record(&store.begin(), ann, &key("notes", "a")).is_err());
}

#[test]
fn what_a_record_says_of_its_payload_must_be_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    founded(&store);
    let mut batch = store.begin();
    let effects = {
        let mut seen = commands::judge(&batch, 2, &put("ann", "notes", "a", 10, 2));
        for effect in &mut seen.rows {
            if let Effect::PutRecord(.., row, _) = effect {
                row.payload_len += 1;
            }
        }
        seen
    };
    assert!(ApplyBatch::apply_effects(&mut batch, &effects).is_err());
    assert!(ApplyBatch::apply_effects(&mut batch, &Effects::default()).is_ok());
}
