use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn hash(content: u8) -> Bytes {
    vec![content; 16].into()
}

fn local(version: Option<u64>, content: u8) -> LocalRecord {
    LocalRecord { version, content_hash: hash(content), dirty: false, deleted: false }
}

fn server(version: u64, content: Option<u8>) -> v1::Record {
    let delete_time = content.is_none().then(|| holdfast_wire::reply::timestamp(holdfast_model::id::Millis(1)));
    let content_hash = content.map(hash).unwrap_or_default();
    v1::Record { version, content_hash, delete_time, ..Default::default() }
}

/// Conformance test 32: deleted, never uploaded, lost.
#[test]
fn absence_is_proof_only_at_or_below_the_horizon() {
    let verdict = |local: &LocalRecord, rollback| reconcile(local, None, 10, rollback);
    assert_eq!(verdict(&local(Some(10), 1), false), Verdict::MoveToTrash);
    assert_eq!(verdict(&local(Some(11), 1), false), Verdict::UploadRestored, "its tombstone would still be there");
    assert_eq!(verdict(&local(Some(10), 1), true), Verdict::UploadRestored, "the server may have lost it");
    assert_eq!(verdict(&local(None, 1), false), Verdict::Upload);
    assert_eq!(verdict(&local(None, 1), true), Verdict::Upload);
    let changed = LocalRecord { dirty: true, ..local(Some(10), 1) };
    assert_eq!(verdict(&changed, false), Verdict::Conflict(Clash::ChangedHereDeletedThere));
    let deleted = LocalRecord { deleted: true, ..local(Some(10), 1) };
    assert_eq!(verdict(&deleted, false), Verdict::Same);
    assert_eq!(verdict(&deleted, true), Verdict::UploadRestored, "another device may bring it back");
    assert_eq!(verdict(&LocalRecord { version: None, ..deleted }, false), Verdict::Same);
}

#[test]
fn the_newer_side_wins_where_only_one_changed() {
    let verdict = |local: &LocalRecord, server: v1::Record| reconcile(local, Some(&server), 0, false);
    let clean = local(Some(5), 1);
    assert_eq!(verdict(&clean, server(5, Some(1))), Verdict::Same);
    assert_eq!(verdict(&clean, server(7, Some(1))), Verdict::Same, "written again as it was");
    assert_eq!(verdict(&clean, server(7, Some(2))), Verdict::TakeServers);
    assert_eq!(verdict(&clean, server(7, None)), Verdict::TakeServers, "a tombstone is proof");
    assert_eq!(verdict(&clean, server(4, Some(2))), Verdict::UploadRestored);
    assert_eq!(verdict(&clean, server(4, None)), Verdict::UploadRestored);
    let dirty = LocalRecord { dirty: true, ..clean.clone() };
    assert_eq!(verdict(&dirty, server(5, Some(2))), Verdict::Upload);
    assert_eq!(verdict(&dirty, server(7, Some(2))), Verdict::Conflict(Clash::ChangedHereAndThere));
    assert_eq!(verdict(&dirty, server(7, Some(1))), Verdict::Same, "both made the same change");
    assert_eq!(verdict(&dirty, server(7, None)), Verdict::Conflict(Clash::ChangedHereDeletedThere));
    let deleted = LocalRecord { deleted: true, ..dirty };
    assert_eq!(verdict(&deleted, server(5, Some(1))), Verdict::Upload);
    assert_eq!(verdict(&deleted, server(7, Some(1))), Verdict::Conflict(Clash::DeletedHereChangedThere));
    assert_eq!(verdict(&deleted, server(7, None)), Verdict::Same);
    let new = local(None, 1);
    assert_eq!(verdict(&new, server(7, Some(2))), Verdict::Conflict(Clash::ChangedHereAndThere));
    assert_eq!(verdict(&new, server(7, None)), Verdict::Upload);
    assert_eq!(verdict(&clean, server(5, Some(2))), Verdict::Conflict(Clash::HistoriesDiffer));
}

#[test]
fn the_hash_is_the_server_s() {
    let put = v1::PutOp { content_type: "text/vcard".into(), payload: "x".into(), ..Default::default() };
    let bytes = [&10u64.to_be_bytes()[..], b"text/vcard", &1u64.to_be_bytes(), b"x", &[0; 16]].concat();
    assert_eq!(content_hash(&put), blake3::hash(&bytes).as_bytes()[..16]);
    assert_eq!(content_hash(&v1::PutOp { ttl_seconds: 9, ..put.clone() }).len(), 16);
    assert_ne!(content_hash(&v1::PutOp { ttl_seconds: 9, ..put.clone() }), content_hash(&put));
}

fn any_local() -> impl Strategy<Value = LocalRecord> {
    let version = prop_oneof![Just(None), (1..6u64).prop_map(Some)];
    (version, 0..3u8, any::<bool>(), any::<bool>()).prop_map(|(version, content, dirty, deleted)| LocalRecord {
        version,
        content_hash: hash(content),
        dirty,
        deleted,
    })
}

fn any_server() -> impl Strategy<Value = Option<v1::Record>> {
    let content = select(vec![None, Some(0), Some(1), Some(2)]);
    proptest::option::of((1..6u64, content).prop_map(|(version, content)| server(version, content)))
}

/// A record's life on a server that forgets tombstones, and where a device stopped following it.
#[derive(Debug, Clone)]
struct Life {
    /// Content of version 1, 2, …; `None` = deleted.
    states: Vec<Option<u8>>,
    /// The device has followed up to this version.
    followed: usize,
    forgotten: bool,
    /// The server went back to this version.
    restored_to: usize,
}

fn any_life() -> impl Strategy<Value = Life> {
    let state = select(vec![None, Some(0), Some(1)]);
    (
        proptest::collection::vec(state, 1..6),
        any::<proptest::sample::Index>(),
        any::<bool>(),
        any::<proptest::sample::Index>(),
    )
        .prop_map(|(states, followed, forgotten, restored_to)| {
            let followed = 1 + followed.index(states.len());
            let restored_to = restored_to.index(states.len() + 1);
            Life { states, followed, forgotten, restored_to }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The one road to the trash, whatever else there is.
    #[test]
    fn nothing_is_trashed_without_proof(local in any_local(), server in any_server(), horizon in 0..7u64, after in any::<bool>()) {
        if reconcile(&local, server.as_ref(), horizon, after) == Verdict::MoveToTrash {
            prop_assert!(server.is_none() && !after && !local.dirty && !local.deleted);
            prop_assert!(local.version.expect("was acknowledged") <= horizon);
        }
    }

    /// What only the device has is uploaded or left to a person.
    #[test]
    fn nothing_that_only_the_device_has_is_given_up(local in any_local(), server in any_server(), horizon in 0..7u64, after in any::<bool>()) {
        let has_it = server.as_ref().is_some_and(|it| it.delete_time.is_none() && it.content_hash == local.content_hash);
        let only_here = !local.deleted && (local.dirty || local.version.is_none() || after) && !has_it;
        if only_here {
            let verdict = reconcile(&local, server.as_ref(), horizon, after);
            let kept = matches!(verdict, Verdict::Upload | Verdict::UploadRestored | Verdict::Conflict(_));
            prop_assert!(kept, "{verdict:?}");
        }
    }

    /// A device that changed nothing ends where the server is, without a conflict.
    #[test]
    fn a_clean_device_follows_a_server_that_lost_nothing(life in any_life()) {
        let last = life.states.len();
        let known = life.states[life.followed - 1];
        // A tombstone that the device did not have yet is what the horizon is about.
        let forgotten = life.forgotten && life.states[last - 1].is_none();
        let horizon = if forgotten { last as u64 } else { 0 };
        let server = (!forgotten).then(|| server(last as u64, life.states[last - 1]));
        let local = LocalRecord { deleted: known.is_none(), ..local(Some(life.followed as u64), known.unwrap_or(9)) };
        let expected = match (known, life.states[last - 1]) {
            (known, newest) if known == newest => Verdict::Same,
            (Some(_), None) if forgotten => Verdict::MoveToTrash,
            _ => Verdict::TakeServers,
        };
        prop_assert_eq!(reconcile(&local, server.as_ref(), horizon, false), expected);
    }

    /// What was acknowledged and lost is uploaded again, and nothing is thrown away.
    #[test]
    fn what_a_rollback_lost_is_uploaded_again(life in any_life()) {
        let known = life.states[life.followed - 1];
        let at = life.restored_to;
        let server = (at > 0).then(|| server(at as u64, life.states[at - 1]));
        let local = LocalRecord { deleted: known.is_none(), ..local(Some(life.followed as u64), known.unwrap_or(9)) };
        let verdict = reconcile(&local, server.as_ref(), 0, true);
        if life.followed > at {
            prop_assert_eq!(verdict, Verdict::UploadRestored);
        }
        prop_assert!(!matches!(verdict, Verdict::TakeServers | Verdict::MoveToTrash), "{:?}", verdict);
    }
}
