use super::*;
use crate::destination::tests::{Fault, faulty};
use crate::fixture::{Folder, run};

const NOW_MS: u64 = 1_795_305_600_000;

fn key() -> VerifierKey {
    VerifierKey::from_seed(&[9; 32])
}

fn outcome(finding: &Finding, what: Try) -> Outcome {
    finding.attempts.iter().find(|attempt| attempt.attempt == what).expect("tried").outcome
}

#[test]
fn a_folder_takes_nothing_twice_and_nothing_else_is_touched() {
    let folder = Folder::new();
    let destination = folder.destination();
    let other = Bytes::from_static(b"somebody's");
    run(destination.put_checked("ab/cd", &other)).expect("puts");
    let (finding, object) = run(examine(&destination, NOW_MS, &key())).expect("looks");
    assert_eq!(finding.verdict, Verdict::AppendOnly);
    assert_eq!(outcome(&finding, Try::CreateTwice), Outcome::Refused);
    assert_eq!(outcome(&finding, Try::Overwrite), Outcome::Succeeded);
    assert_eq!(outcome(&finding, Try::Delete), Outcome::Succeeded);
    assert_eq!(outcome(&finding, Try::DeleteVersion), Outcome::NotTried);
    assert_eq!(run(destination.get("ab/cd")).expect("reads"), other);
    let read = Finding::open(&object, &run(destination.get(&object)).expect("reads")).expect("opens");
    assert_eq!(read, (finding, key().public()));
    let names = run(destination.list("")).expect("lists");
    assert!(names.iter().all(|found| found.path == "ab/cd" || found.path.starts_with("doctor/")), "{names:?}");
}

#[test]
fn nothing_but_a_canary_is_overwritten_or_deleted() {
    let folder = Folder::new();
    let destination = folder.destination();
    let bytes = Bytes::from_static(b"somebody's");
    let verdict = DoctorVisit { at_ms: NOW_MS, key: [1; 8] }.verdict();
    for object in ["ab/cd", &verdict] {
        run(destination.put_checked(object, &bytes)).expect("puts");
        run(destination.try_overwrite(object, &Bytes::new())).expect_err("no canary");
        run(destination.try_delete(object)).expect_err("no canary");
        run(destination.try_create(object, &Bytes::new())).expect_err("no canary");
        assert_eq!(run(destination.get(object)).expect("reads"), bytes);
    }
}

#[test]
fn a_destination_that_fails_gets_no_verdict() {
    for fault in [Fault::Refused, Fault::Swallowed, Fault::Mangled] {
        let (store, destination) = faulty();
        store.set(fault);
        run(examine(&destination, NOW_MS, &key())).expect_err("nothing was found");
        store.set(Fault::None);
        assert_eq!(
            run(destination.list("doctor")).expect("lists").iter().filter(|one| one.path.ends_with("VERDICT")).count(),
            0
        );
    }
}

#[test]
fn a_verdict_is_what_was_withstood() {
    let attempt = |attempt, outcome| Attempt { attempt, outcome, said: String::new() };
    let all = |changed: Option<(Try, Outcome)>| -> Vec<Attempt> {
        let outcome = |what| changed.filter(|(changed, _)| *changed == what).map_or(Outcome::Refused, |(_, to)| to);
        Try::ALL.into_iter().map(|what| attempt(what, outcome(what))).collect()
    };
    let compliance = Lock { mode: COMPLIANCE.into(), until_ms: 1 };
    let governance = Lock { mode: GOVERNANCE.into(), until_ms: 1 };
    assert_eq!(verdict(false, Some(&compliance), &all(None)), Verdict::Immutable);
    assert_eq!(verdict(false, Some(&governance), &all(None)), Verdict::AppendOnly);
    assert_eq!(verdict(false, None, &all(None)), Verdict::AppendOnly);
    assert_eq!(verdict(true, Some(&compliance), &all(None)), Verdict::AppendOnly, "a folder is no more");
    for what in Try::ALL {
        let of = |outcome| verdict(false, Some(&compliance), &all(Some((what, outcome))));
        assert_eq!(of(Outcome::Succeeded), Verdict::Mutable, "{what:?}");
        assert_eq!(of(Outcome::Kept), Verdict::Immutable, "{what:?}");
        let untried = if what == Try::CreateTwice { Verdict::Mutable } else { Verdict::AppendOnly };
        assert_eq!(of(Outcome::NotTried), untried, "what was not tried was not withstood: {what:?}");
    }
    let folder = |what| verdict(true, None, &all(Some((what, Outcome::Succeeded))));
    assert_eq!((folder(Try::Delete), folder(Try::CreateTwice)), (Verdict::AppendOnly, Verdict::Mutable));
}

#[test]
fn a_verdict_under_another_name_is_none() {
    let folder = Folder::new();
    let (finding, object) = run(examine(&folder.destination(), NOW_MS, &key())).expect("looks");
    let visit = DoctorVisit::of_verdict(&object).expect("a name");
    // Signed for that name, and yet of another moment or key.
    for other in [DoctorVisit { at_ms: visit.at_ms + 1, ..visit }, DoctorVisit { key: [0; 8], ..visit }] {
        let bytes = evidence::sign(&other.verdict(), &key(), &finding).expect("signed");
        let error = Finding::open(&other.verdict(), &bytes).expect_err("another's");
        assert!(error.is_integrity(), "{error}");
    }
    let newer = Finding { v: 2, ..finding };
    let bytes = evidence::sign(&object, &key(), &newer).expect("signed");
    assert!(Finding::open(&object, &bytes).is_err_and(|error| error.to_string().contains("newer")));
}

#[test]
fn the_newest_verdict_of_late_is_found() {
    let folder = Folder::new();
    let destination = folder.destination();
    let newest = |now_ms: u64, by: Option<&VerifierKey>| {
        let believed = |key: &[u8; 32]| by.is_none_or(|by| by.public() == *key);
        run(newest_verdict(&destination, now_ms, believed)).expect("looks").map(|found| found.finding.at_ms)
    };
    assert_eq!(newest(NOW_MS, None), None);
    let other = VerifierKey::from_seed(&[8; 32]);
    let day_ms = 24 * 60 * 60 * 1000;
    for (at_ms, by) in [(NOW_MS - day_ms, &key()), (NOW_MS, &other), (NOW_MS + day_ms, &key())] {
        run(examine(&destination, at_ms, by)).expect("looks");
    }
    assert_eq!(newest(NOW_MS, None), Some(NOW_MS), "not that of a clock that is ahead");
    assert_eq!(newest(NOW_MS, Some(&key())), Some(NOW_MS - day_ms));
    assert_eq!(newest(NOW_MS + 7 * day_ms + 1, Some(&other)), Some(NOW_MS));
    assert_eq!(newest(NOW_MS + 8 * day_ms + 1, Some(&other)), None, "it is old");
    let visit = DoctorVisit { at_ms: NOW_MS, key: std::array::from_fn(|n| other.public()[n]) };
    folder.flip(&visit.verdict(), 40);
    assert_eq!(newest(NOW_MS, None), Some(NOW_MS - day_ms), "a damaged one says nothing");
}
