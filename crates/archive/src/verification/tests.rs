use super::*;
use crate::fixture::{Folder, GROUP, run};
use crate::layout;
use crate::object::tests::LINEAGE;
use crate::verify::Level;

fn key(seed: u8) -> VerifierKey {
    VerifierKey::from_seed(&[seed; 32])
}

fn found(ended_ms: u64, level: Depth, faults: &[&str]) -> Verification {
    let mut found = Verification::new(&LINEAGE, GROUP, level, 5);
    found.ended_ms = ended_ms;
    faults.iter().for_each(|object| found.fault(*object, "it is damaged"));
    found
}

#[test]
fn verifications_are_found_by_their_time_whoever_made_them() {
    let folder = Folder::new();
    let destination = folder.destination();
    let all = [
        (found(30, Depth::Read, &[]), 1),
        (found(10, Depth::Drilled, &["a", "b"]), 2),
        (found(20, Depth::Proved, &[]), 1),
    ];
    for (found, by) in &all {
        run(found.record(&destination, &LINEAGE, &key(*by))).expect("recorded");
        run(found.record(&destination, &LINEAGE, &key(*by))).expect("the same once more");
    }
    let (read, bad) = run(verifications(&destination, &LINEAGE, GROUP, None)).expect("reads");
    assert_eq!(bad, []);
    let said = |one: &Recorded| (Verification { after: Vec::new(), ..one.found.clone() }, one.key);
    let seen: Vec<_> = read.iter().map(said).collect();
    assert_eq!(seen, [1, 2, 0].map(|n: usize| (all[n].0.clone(), key(all[n].1).public())));
    assert_eq!(seen[0].0.why().as_deref(), Some("a: it is damaged, and 1 more"));
    // Each names what lay before it then, by whomever: here what ended earlier was recorded later.
    let hash = layout::hex(blake3::hash(&run(destination.get(&read[0].object)).expect("reads")).as_bytes());
    assert_eq!(read[1].found.after, [Link { object: read[0].object.clone(), blake3: hash }]);
    assert_eq!((&read[0].found.after[..], &read[2].found.after[..]), (&[][..], &[][..]));
    let (later, _) = run(verifications(&destination, &LINEAGE, GROUP, Some(&read[1].object))).expect("reads");
    assert_eq!(later, read[2..]);
    // One that is damaged is named, and hides no other.
    folder.flip(&read[0].object, 100);
    let (left, bad) = run(verifications(&destination, &LINEAGE, GROUP, None)).expect("reads");
    assert_eq!((left.len(), bad.len(), bad[0].0.as_str()), (2, 1, read[0].object.as_str()));
    let report = run(crate::verify(&destination, &LINEAGE, Level::Bytes)).expect("looks");
    assert!(
        report.bad.iter().any(|(object, reason)| *object == read[0].object && reason.contains("signature")),
        "{report:?}"
    );
}

#[test]
fn the_newest_good_drills_tell_how_long_a_restore_takes() {
    let folder = Folder::new();
    let destination = folder.destination();
    let drilled = |ended_ms: u64, faults: &[&str], work: Option<RestoreWork>| Verification {
        drill: Some(DrillTimes { load_ms: ended_ms, work, ..DrillTimes::default() }),
        ..found(ended_ms, Depth::Drilled, faults)
    };
    let work = Some(RestoreWork { plain_bytes: 7, ..RestoreWork::default() });
    let mut all: Vec<Verification> = (1..=7).map(|n| drilled(n * 10, &[], work)).collect();
    // Neither one that found faults, nor one of a vault, nor one of an earlier program, nor what restored nothing.
    all.push(drilled(71, &["a"], work));
    all.push(Verification { vault: Some("attic".to_owned()), ..drilled(72, &[], work) });
    all.push(drilled(73, &[], None));
    all.push(found(74, Depth::Read, &[]));
    for one in &all {
        run(one.record(&destination, &LINEAGE, &key(1))).expect("recorded");
    }
    let ended = || -> Vec<u64> {
        let drills = run(newest_drills(&destination, &LINEAGE, GROUP)).expect("reads");
        drills.iter().map(|drill| drill.found.timed().expect("timed").0.load_ms).collect()
    };
    assert_eq!(ended(), [70, 60, 50, 40, 30]);
    let newest = run(newest_drills(&destination, &LINEAGE, GROUP)).expect("reads").remove(0);
    folder.flip(&newest.object, 100);
    assert_eq!(ended(), [60, 50, 40, 30, 20], "one that is damaged is no reason to say nothing");
}

#[test]
fn what_does_not_fit_its_name_or_contradicts_itself_is_no_verification() {
    let (folder, good) = (Folder::new(), found(30, Depth::Drilled, &[]));
    let (object, bytes) = run(good.seal(&folder.destination(), &LINEAGE, &key(1))).expect("sealed");
    assert_eq!(Verification::open(&object, &bytes).expect("opens"), (good.clone(), key(1).public()));
    let signed = |object: &str, found: &Verification| evidence::sign(object, &key(1), found).expect("signed");
    let cases = [
        Verification { ended_ms: 31, ..good.clone() },
        Verification { lineage: "another".into(), ..good.clone() },
        Verification { group: 7, ..good.clone() },
        Verification { v: 2, ..good.clone() },
        Verification { kind: "doctor".into(), ..good.clone() },
        Verification { good: false, ..good.clone() },
        Verification { good: true, ..found(30, Depth::Drilled, &["a"]) },
        Verification { fault_count: 0, good: true, ..found(30, Depth::Drilled, &["a"]) },
    ];
    for case in &cases {
        let error = Verification::open(&object, &signed(&object, case)).expect_err("refused");
        assert!(error.is_integrity(), "{case:?}: {error}");
    }
    let by_another = evidence::sign(&object, &key(2), &good).expect("signed");
    Verification::open(&object, &by_another).expect_err("the name says who");
    Verification::open("x", &bytes).expect_err("no such name");
}

#[test]
fn faults_beyond_those_told_are_counted() {
    let names: Vec<String> = (0..50).map(|n| format!("o{n}")).collect();
    let many = found(1, Depth::Read, &names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((many.fault_count, many.faults.len(), many.good), (50, FAULTS_TOLD_MAX, false));
    let (object, bytes) = run(many.seal(&Folder::new().destination(), &LINEAGE, &key(1))).expect("sealed");
    assert_eq!(Verification::open(&object, &bytes).expect("opens").0, many);
}
