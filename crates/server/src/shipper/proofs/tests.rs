use holdfast_archive::{Verification, VerifierKey};
use holdfast_model::id::Incarnation;

use super::*;

const LINEAGE: LineageId = LineageId { cluster_id: [7; 16], incarnation: Incarnation(3) };
const GROUP: GroupId = GroupId(0);
const HOUR_MS: u64 = 60 * 60 * 1000;

fn found(ended_ms: u64, level: Depth, good: bool) -> Verification {
    let mut found = Verification::new(&LINEAGE, GROUP, level, 0);
    found.ended_ms = ended_ms;
    if !good {
        found.fault("chunk", "it is missing");
    }
    found
}

fn recorded(ended_ms: u64, level: Depth, good: bool) -> Recorded {
    Recorded { object: format!("{ended_ms}"), key: [1; 32], found: found(ended_ms, level, good) }
}

fn proofs(all: &[(u64, Depth, bool)]) -> Proofs {
    let mut proofs = Proofs::default();
    all.iter().for_each(|(ended_ms, level, good)| proofs.take(recorded(*ended_ms, *level, *good)));
    proofs
}

#[test]
fn a_failure_stands_until_somebody_who_looked_as_closely_found_it_good() {
    let failed = |all: &[(u64, Depth, bool)]| proofs(all).failed().map(|one| one.found.ended_ms);
    assert_eq!(failed(&[(5, Depth::Drilled, false)]), Some(5));
    assert_eq!(failed(&[(5, Depth::Drilled, false), (6, Depth::Proved, true)]), Some(5), "it looked less closely");
    assert_eq!(failed(&[(5, Depth::Drilled, false), (6, Depth::Drilled, true)]), None);
    assert_eq!(failed(&[(6, Depth::Drilled, true), (5, Depth::Drilled, false)]), None, "in whatever order they come");
    assert_eq!(failed(&[(5, Depth::Drilled, true), (6, Depth::Read, false)]), Some(6));
    assert_eq!(failed(&[(6, Depth::Read, false), (7, Depth::Drilled, true)]), None, "a drill reads all as well");
    assert_eq!(
        failed(&[(6, Depth::Drilled, true), (6, Depth::Read, false)]),
        Some(6),
        "of two at one time the bad one"
    );
    assert_eq!(failed(&[(3, Depth::Drilled, false), (9, Depth::Read, false), (10, Depth::Proved, true)]), Some(3));
}

#[test]
fn a_deeper_look_counts_for_all_above_it() {
    let proofs = proofs(&[(5, Depth::Drilled, true), (9, Depth::Read, true), (7, Depth::Proved, true)]);
    let good = |level| proofs.good(level).map(|one| one.found.ended_ms);
    assert_eq!(
        [Depth::Stored, Depth::Read, Depth::Proved, Depth::Drilled].map(good),
        [Some(9), Some(9), Some(7), Some(5)]
    );
}

#[tokio::test]
async fn each_is_read_once_whatever_the_clocks_say() {
    let dir = tempfile::tempdir().expect("directory");
    let destination =
        Destination::open(&DestinationConfig::from_url(&format!("file://{}", dir.path().display()))).expect("opens");
    let key = VerifierKey::from_seed(&[1; 32]);
    let mut looker = Looker {
        destination: destination.clone(),
        lineage: LINEAGE,
        group: GROUP,
        newest_ms: None,
        seen: BTreeSet::new(),
        looks: 0,
    };
    let lay_down = async |ended_ms: u64| {
        found(ended_ms, Depth::Read, true).record(&destination, &LINEAGE, &key).await.expect("recorded");
    };
    let mut look = async |now_ms: u64| {
        let (fresh, names) = looker.fresh(Millis(now_ms)).await.expect("looks");
        // What came to nothing is looked at again.
        assert_eq!(looker.fresh(Millis(now_ms)).await.expect("looks").0, fresh);
        looker.saw(names, Millis(now_ms));
        fresh.into_iter().map(|one| one.found.ended_ms).collect::<Vec<_>>()
    };
    let now = 100 * HOUR_MS;
    assert_eq!(look(now).await, Vec::<u64>::new());
    lay_down(now - 50 * HOUR_MS).await;
    lay_down(now - 1).await;
    // Of a clock that is a day ahead, or of somebody who wants to be the newest for ever.
    lay_down(now + 24 * HOUR_MS).await;
    assert_eq!(look(now).await, [now - 50 * HOUR_MS, now - 1]);
    assert_eq!(look(now).await, Vec::<u64>::new());
    // Laid down late, and by a clock that is a little ahead.
    lay_down(now - HOUR_MS).await;
    lay_down(now + HOUR_MS / 2).await;
    assert_eq!(look(now).await, [now - HOUR_MS, now + HOUR_MS / 2]);
    assert_eq!(look(now).await, Vec::<u64>::new());
    lay_down(now + 1).await;
    assert_eq!(look(now + 2).await, [now + 1], "what was ahead hides nothing");
    assert_eq!(look(now + 24 * HOUR_MS).await, [now + 24 * HOUR_MS], "its time has come");
    assert_eq!(look(now + 24 * HOUR_MS).await, Vec::<u64>::new());
}

#[tokio::test]
async fn at_the_first_look_the_newest_are_read() {
    let dir = tempfile::tempdir().expect("directory");
    let destination =
        Destination::open(&DestinationConfig::from_url(&format!("file://{}", dir.path().display()))).expect("opens");
    let key = VerifierKey::from_seed(&[1; 32]);
    let many = FIRST_LOOK_MAX as u64 + 5;
    for ended_ms in 1..=many {
        found(ended_ms, Depth::Stored, true).record(&destination, &LINEAGE, &key).await.expect("recorded");
    }
    let mut looker =
        Looker { destination, lineage: LINEAGE, group: GROUP, newest_ms: None, seen: BTreeSet::new(), looks: 0 };
    let (fresh, names) = looker.fresh(Millis(many)).await.expect("looks");
    assert_eq!(fresh.iter().map(|one| one.found.ended_ms).collect::<Vec<_>>(), (6..=many).collect::<Vec<_>>());
    looker.saw(names, Millis(many));
    let (fresh, _) = looker.fresh(Millis(many)).await.expect("looks");
    assert_eq!(fresh, Vec::new(), "those before are old, and stay unread");
}
