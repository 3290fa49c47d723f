use super::*;

fn hint(user: &str, head_version: u64, collections: &[&str]) -> v1::WatchHint {
    let collections = collections.iter().map(|name| name.to_string()).collect();
    v1::WatchHint { user_id: user.into(), head_version, collections }
}

fn at(incarnation: u64, applied_index: u64) -> v1::ResponseHeader {
    v1::ResponseHeader { incarnation, applied_index, ..Default::default() }
}

fn collections(state: &mut State) -> Vec<String> {
    match state.next() {
        Some(Ok(WatchEvent::Hint { collections, .. })) => collections,
        other => panic!("not a hint: {other:?}"),
    }
}

#[test]
fn hints_of_a_user_become_one() {
    let mut state = State::default();
    assert_eq!(state.watch("ann", "", 10), Some(0));
    assert!(state.hint(hint("ann", 5, &["notes"]), at(1, 50)));
    assert!(!state.hint(hint("ann", 9, &["contacts"]), at(1, 90)), "nobody is woken twice");
    assert!(!state.hint(hint("ann", 7, &["notes"]), at(1, 70)));
    let merged = WatchEvent::Hint {
        user: "ann".into(),
        head_version: 9,
        collections: vec!["contacts".into(), "notes".into()],
        header: at(1, 90),
    };
    assert_eq!(state.next(), Some(Ok(merged)));
    assert_eq!(state.next(), None);
    state.hint(hint("ann", 5, &["notes"]), at(1, 50));
    state.hint(hint("ann", 6, &[]), at(2, 3));
    match state.next() {
        Some(Ok(WatchEvent::Hint { collections, header, .. })) => {
            assert_eq!((collections.len(), header), (0, at(2, 3)), "not known which, in the newer history");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_waits_does_not_grow_with_what_happens() {
    let mut state = State::default();
    state.watch("ann", "", 10);
    for n in 0..100 {
        let name = format!("x-{n}");
        state.hint(hint("ann", n, &[&name]), at(1, n));
        assert_eq!(state.ready.len(), 1);
    }
    assert_eq!(collections(&mut state), [""; 0], "too many to tell apart: look at all");
    let names: Vec<String> = (0..100).map(|n| format!("x-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    state.hint(hint("ann", 1, &names), at(1, 1));
    assert_eq!(collections(&mut state), [""; 0]);
    // Neither do users that come and go.
    state.connect(0);
    for n in 0..1000 {
        let user = format!("user-{}", n % 7);
        state.watch(&user, "", 10);
        state.hint(hint(&user, n, &["notes"]), at(1, n));
        state.unwatch(&user);
        assert!(state.ready.is_empty() && state.lanes[0].todo.len() <= 8 && state.lanes.len() == 1);
    }
    for n in 0..=REMOVALS_MAX + 1 {
        assert!(!state.is_stuck(0), "{n}");
        let user = format!("other-{n}");
        state.watch(&user, "", 10);
        state.unwatch(&user);
        if n == 0 {
            while state.has_todo(0) {
                state.request(0);
            }
        }
    }
    assert!(state.is_stuck(0));
    state.connect(0);
    assert!(!state.is_stuck(0));
}

#[test]
fn events_come_in_the_order_of_their_users_first_wakeup() {
    let mut state = State::default();
    for user in ["a", "b", "c"] {
        state.watch(user, "", 2);
    }
    assert_eq!(state.lanes.len(), 2, "two on a stream");
    for user in ["b", "c", "a", "b"] {
        state.hint(hint(user, 1, &[]), at(1, 1));
    }
    state.resync("c", v1::ResyncInfo { reason: 2, ..Default::default() });
    let mut order = Vec::new();
    while let Some(event) = state.next() {
        order.push(match event.expect("an event") {
            WatchEvent::Hint { user, .. } => user,
            WatchEvent::Resync { user, .. } => format!("{user} resync"),
        });
    }
    assert_eq!(order, ["b", "a", "c resync"]);
    assert_eq!(state.watched(), 2, "c is watched no more");
    assert!(!state.hint(hint("c", 1, &[]), at(1, 1)));
}

#[test]
fn a_user_that_waits_for_a_resync_is_not_told_to_a_new_stream() {
    let mut state = State::default();
    state.watch("ann", "t1", 10);
    state.watch("bob", "t2", 10);
    state.resync("ann", v1::ResyncInfo::default());
    assert!(state.connect(0));
    let named: Vec<String> = state.request(0).adds.into_iter().map(|add| add.user_id).collect();
    assert_eq!(named, ["bob"]);
    // Watched again before the caller saw the resync: it no longer matters.
    state.watch("ann", "t3", 10);
    assert_eq!(state.request(0).adds, [v1::WatchAdd { user_id: "ann".into(), sync_token: "t3".into() }]);
    assert_eq!(state.next(), None);
}
