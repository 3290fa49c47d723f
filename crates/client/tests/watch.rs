//! Watchers over real sockets: whom a node is told of, what the caller hears, and what happens when a node goes.

mod fake;

use std::time::Duration;

use fake::{Node, until};
use holdfast_client::{Client, Error, WatchEvent, WatchOptions, Watcher, v1};
use holdfast_model::id::{Incarnation, Millis, Uid, UserId, Version};
use holdfast_wire::status::Refusal;
use holdfast_wire::token::{SyncToken, user_tag};
use tonic::Status;
use v1::watch_response::Event;

const LONG: Duration = Duration::from_secs(20);

fn client(nodes: &[&Node]) -> Client {
    let endpoints = nodes.iter().map(|node| node.address.clone());
    Client::builder().endpoints(endpoints).deadline(LONG).attempt_timeout(LONG).build().expect("valid")
}

fn watcher(nodes: &[&Node]) -> Watcher {
    client(nodes).watcher(WatchOptions { heartbeat: LONG, ..Default::default() })
}

fn token(user: &str, version: u64) -> String {
    let token = SyncToken {
        incarnation: Incarnation(1),
        user_tag: user_tag(&UserId::new(user).expect("valid")),
        uid: Uid(1),
        version: Version(version),
        filter: 0,
        issued: Millis(1),
        fresh_until: Version(0),
        seen: Version(0),
    };
    token.encode()
}

async fn next(watcher: &Watcher) -> WatchEvent {
    tokio::time::timeout(LONG, watcher.next()).await.expect("an event in time").expect("no error")
}

async fn hinted(watcher: &Watcher) -> (String, u64) {
    match next(watcher).await {
        WatchEvent::Hint { user, head_version, .. } => (user, head_version),
        other => panic!("not a hint: {other:?}"),
    }
}

/// The `number`th stream that any of the nodes was asked for, wherever that is.
async fn opened(nodes: &[&Node], number: usize) -> (usize, std::sync::Arc<fake::WatchStream>) {
    let count = || nodes.iter().map(|node| node.said.watch.count()).sum::<usize>();
    until("a stream is opened", || (count() > number).then_some(())).await;
    let at = nodes.iter().position(|node| node.said.watch.count() > 0).expect("one has it");
    (at, nodes[at].said.watch.stream(0).await)
}

#[tokio::test]
async fn users_come_and_go_on_one_stream() {
    let node = Node::start();
    let watcher = watcher(&[&node]);
    let (ann, bob) = (token("ann", 3), token("bob", 5));
    watcher.watch("ann", &ann).expect("valid");
    let stream = node.said.watch.stream(0).await;
    stream.watches(&[("ann", &ann)]).await;
    watcher.watch("bob", &bob).expect("valid");
    watcher.watch("new", "").expect("valid");
    stream.watches(&[("ann", &ann), ("bob", &bob), ("new", "")]).await;
    stream.hint("bob", 6, &["notes"]);
    let header = v1::ResponseHeader { incarnation: 1, applied_index: 6, ..Default::default() };
    let collections = vec!["notes".to_owned()];
    assert_eq!(next(&watcher).await, WatchEvent::Hint { user: "bob".into(), head_version: 6, collections, header });
    stream.hint("bob", 7, &[]);
    stream.hint("new", 8, &[]);
    watcher.unwatch("bob");
    stream.watches(&[("ann", &ann), ("new", "")]).await;
    stream.hint("bob", 9, &[]);
    stream.hint("new", 10, &[]);
    assert_eq!(hinted(&watcher).await.0, "new", "who is watched no more is not spoken of");
    let later = token("ann", 9);
    watcher.watch("ann", &later).expect("valid");
    stream.watches(&[("ann", &later), ("new", "")]).await;
    assert_eq!((node.said.watch.count(), watcher.watched()), (1, 2));
}

#[tokio::test]
async fn a_broken_stream_is_opened_elsewhere_from_the_newest_tokens() {
    let ends: [(&str, Option<Status>); 4] = [
        ("closed", None),
        ("reset", Some(Status::unavailable("connection reset"))),
        ("draining", Some(Refusal::Draining.into())),
        ("behind", Some(Refusal::ReplicaBehind.into())),
    ];
    for (what, end) in ends {
        let nodes = [Node::start(), Node::start()];
        let both = [&nodes[0], &nodes[1]];
        let watcher = watcher(&both);
        watcher.watch("ann", &token("ann", 1)).expect("valid");
        watcher.watch("bob", &token("bob", 1)).expect("valid");
        let (at, first) = opened(&both, 0).await;
        first.watches(&[("ann", &token("ann", 1)), ("bob", &token("bob", 1))]).await;
        first.hint("ann", 2, &[]);
        assert_eq!(hinted(&watcher).await, ("ann".into(), 2), "{what}");
        watcher.advance("ann", &token("ann", 2)).expect("valid");
        // Bob's change is committed and the node ends before it can say so.
        first.end(end);
        let second = both[1 - at].said.watch.stream(0).await;
        second.watches(&[("ann", &token("ann", 2)), ("bob", &token("bob", 1))]).await;
        second.hint("bob", 3, &[]);
        assert_eq!(hinted(&watcher).await, ("bob".into(), 3), "{what}: the wake-up is not lost");
        assert_eq!(both[at].said.watch.count(), 1, "{what}: not the node that ended it");
    }
}

#[tokio::test]
async fn a_silent_node_is_left_after_three_heartbeats_and_a_living_one_is_not() {
    let nodes = [Node::start(), Node::start()];
    let both = [&nodes[0], &nodes[1]];
    // Much longer than the pauses below, so that a slow machine does not make the node look silent.
    let heartbeat = Duration::from_millis(500);
    let watcher = client(&both).watcher(WatchOptions { heartbeat, ..Default::default() });
    watcher.watch("ann", "").expect("valid");
    let (at, first) = opened(&both, 0).await;
    first.watches(&[("ann", "")]).await;
    for _ in 0..12 {
        tokio::time::sleep(heartbeat / 3).await;
        first.heartbeat();
    }
    assert_eq!(both[1 - at].said.watch.count(), 0, "it says that it lives");
    both[1 - at].said.watch.stream(0).await.watches(&[("ann", "")]).await;
    first.left().await;
}

#[tokio::test]
async fn what_was_not_fetched_yet_outlives_the_stream() {
    let node = Node::start();
    let watcher = watcher(&[&node]);
    watcher.watch("ann", "").expect("valid");
    watcher.watch("bob", "").expect("valid");
    let first = node.said.watch.stream(0).await;
    first.watches(&[("ann", ""), ("bob", "")]).await;
    first.hint("ann", 2, &["notes"]);
    let info = v1::ResyncInfo { reason: 1, common_version: 7, ..Default::default() };
    let resync = v1::WatchResync { user_id: "bob".into(), info: Some(info.clone()) };
    first.say(Event::Resync(resync), None);
    first.end(None);
    let second = node.said.watch.stream(1).await;
    second.watches(&[("ann", "")]).await;
    second.hint("ann", 4, &["events"]);
    second.hint("bob", 9, &[]);
    second.end(None);
    node.said.watch.stream(2).await.watches(&[("ann", "")]).await;
    match next(&watcher).await {
        WatchEvent::Hint { user, head_version, collections, .. } => {
            assert_eq!((&*user, head_version), ("ann", 4));
            assert_eq!(collections, ["events", "notes"], "merged over both streams");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(next(&watcher).await, WatchEvent::Resync { user: "bob".into(), info });
    assert_eq!(watcher.watched(), 1);
    watcher.watch("bob", &token("bob", 7)).expect("valid");
    node.said.watch.stream(2).await.watches(&[("ann", ""), ("bob", &token("bob", 7))]).await;
}

#[tokio::test]
async fn a_dropped_watcher_leaves() {
    let node = Node::start();
    let watcher = watcher(&[&node]);
    watcher.watch("ann", "").expect("valid");
    let stream = node.said.watch.stream(0).await;
    stream.watches(&[("ann", "")]).await;
    drop(watcher);
    stream.left().await;
    assert_eq!(node.said.watch.count(), 1);
}

#[tokio::test]
async fn many_users_share_few_streams_and_messages_stay_small() {
    let node = Node::start();
    let options = WatchOptions { heartbeat: LONG, users_per_stream: 2500 };
    let watcher = client(&[&node]).watcher(options);
    for n in 0..5000 {
        watcher.watch(&format!("user-{n}"), "").expect("valid");
    }
    let streams = [node.said.watch.stream(0).await, node.said.watch.stream(1).await];
    for stream in &streams {
        until("all are told of", || (stream.watched().len() == 2500).then_some(())).await;
        assert!(stream.largest_request() <= 1000, "{}", stream.largest_request());
    }
    assert_eq!(node.said.watch.count(), 2);
    assert!(streams[0].watched().keys().all(|user| !streams[1].watched().contains_key(user)));
}

#[tokio::test]
async fn no_token_ends_everybody_s_stream() {
    let node = Node::start();
    let watcher = watcher(&[&node]);
    let reason = |outcome: Result<(), Error>| outcome.expect_err("refused").reason().to_owned();
    assert_eq!(reason(watcher.watch("ann", &token("bob", 1))), "TOKEN_OTHER_USER");
    assert!(matches!(watcher.watch("", ""), Err(Error::Invalid { .. })));
    watcher.watch("ann", &token("ann", 1)).expect("valid");
    assert_eq!(reason(watcher.advance("ann", &token("bob", 1))), "TOKEN_OTHER_USER");
    // Damaged, or of a newer server: a node that cannot read it would end the stream.
    watcher.watch("bob", "garbage").expect("watched from the beginning");
    node.said.watch.stream(0).await.watches(&[("ann", &token("ann", 1)), ("bob", "")]).await;
}

#[tokio::test]
async fn what_no_node_will_ever_do_is_said_and_what_passes_is_not() {
    let nodes = [Node::start(), Node::start()];
    let both = [&nodes[0], &nodes[1]];
    for node in both {
        *node.said.watch.refusal.lock().unwrap() = Some(Refusal::Unsupported("watch").into());
    }
    let refused = watcher(&both);
    refused.watch("ann", "").expect("valid");
    let error = tokio::time::timeout(LONG, refused.next()).await.expect("in time").expect_err("refused");
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert!(both.iter().all(|node| node.said.watch.count() == 1), "each node was asked");
    // One node of an older version is no reason to give up.
    *nodes[0].said.watch.refusal.lock().unwrap() = Some(Refusal::NoLeader.into());
    let asked = nodes[0].said.watch.count();
    let waiting = watcher(&both);
    waiting.watch("ann", "").expect("valid");
    until("it is asked again", || (nodes[0].said.watch.count() > asked + 1).then_some(())).await;
    *nodes[0].said.watch.refusal.lock().unwrap() = None;
    let asked = nodes[0].said.watch.count();
    let stream = nodes[0].said.watch.stream(asked).await;
    stream.watches(&[("ann", "")]).await;
    stream.hint("ann", 1, &[]);
    assert_eq!(hinted(&waiting).await.0, "ann");
}

#[tokio::test]
async fn a_session_sees_what_its_hints_saw() {
    let node = Node::start();
    let session = client(&[&node]).session();
    let watcher = session.watcher(WatchOptions { heartbeat: LONG, ..Default::default() });
    watcher.watch("ann", "").expect("valid");
    let stream = node.said.watch.stream(0).await;
    stream.watches(&[("ann", "")]).await;
    stream.hint("ann", 41, &[]);
    hinted(&watcher).await;
    let level = session.consistency().and_then(|wanted| wanted.level);
    let at = v1::AtLeast { incarnation: 1, applied_index: 41, group_id: 0 };
    assert_eq!(level, Some(v1::read_consistency::Level::AtLeast(at)));
}
