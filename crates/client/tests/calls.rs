//! What a client does over real sockets, against nodes that answer as each test wants: what is sent again and what is
//! not, to whom, when, and what the caller is told in the end.

mod fake;

use std::time::{Duration, Instant};

use fake::{Node, Say};
use holdfast_client::{AdminClient, Client, Error, RecordRef, SyncOutcome, v1};
use holdfast_model::outcome::Rejection;
use holdfast_wire::status::Refusal;
use tonic::Status;

const NOTE: RecordRef<'_> = RecordRef { user: "ann", collection: "notes", record_id: "n1" };
/// Longer than any test takes, unless it waits for nothing.
const LONG: Duration = Duration::from_secs(20);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn client(nodes: &[&Node], deadline: Duration, attempt: Duration) -> Client {
    let endpoints = nodes.iter().map(|node| node.address.clone());
    Client::builder().endpoints(endpoints).deadline(deadline).attempt_timeout(attempt).build().expect("valid")
}

fn no<A>(refusal: Refusal) -> Say<A> {
    Say::No(refusal.into())
}

/// What a proxy or a broken connection says.
fn lost<A>() -> Say<A> {
    Say::No(Status::unavailable("connection reset"))
}

fn header(node_id: u64, leader_id: u64) -> Option<v1::ResponseHeader> {
    Some(v1::ResponseHeader { node_id, leader_id, ..Default::default() })
}

fn written(version: u64) -> Say<v1::BatchWriteResponse> {
    Say::Yes(v1::BatchWriteResponse { version, ..Default::default() })
}

fn one_write(check: Option<v1::precondition::Check>) -> v1::BatchWriteRequest {
    let put = v1::PutOp { content_type: "text/plain".into(), payload: "hi".into(), ..Default::default() };
    let mutation = v1::Mutation {
        key: Some(NOTE.key()),
        op: Some(v1::mutation::Op::Put(put)),
        precondition: check.map(|check| v1::Precondition { check: Some(check) }),
    };
    v1::BatchWriteRequest { user_id: "ann".into(), mutations: vec![mutation], ..Default::default() }
}

/// Two places: what comes beyond them is told so while it is worth something, and nothing of it is sent.
#[tokio::test]
async fn no_more_calls_are_under_way_than_there_are_places() {
    let node = Node::start();
    node.said.write.will([Say::Never, Say::Never, written(3)]);
    let builder = Client::builder().endpoints([node.address.clone()]).attempt_timeout(LONG).deadline(LONG).calls_max(2);
    let client = builder.build().expect("valid");
    let hanging: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.put(NOTE, "text/plain", "hi").await })
        })
        .collect();
    while node.said.write.calls().len() < 2 {
        tokio::time::sleep(ms(5)).await;
    }
    let began = Instant::now();
    let error = client.clone().with_deadline(ms(800)).put(NOTE, "text/plain", "hi").await.expect_err("no place");
    assert!(matches!(error, Error::Overloaded { retry_after: Some(_), .. }), "{error:?}");
    assert_eq!(error.reason(), "OVERLOADED");
    assert!(error.to_string().contains("nothing was sent") && error.to_string().contains("200 ms"), "{error}");
    assert!((ms(200)..ms(700)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(node.said.write.calls().len(), 2);
    // One gives its place back, to a call that waits for it.
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.put(NOTE, "text/plain", "hi").await })
    };
    tokio::task::yield_now().await;
    hanging[0].abort();
    assert_eq!(waiting.await.expect("it ends").expect("a place").version, 3);
    hanging[1].abort();
}

#[tokio::test]
async fn a_write_is_sent_again_as_it_was_after_the_pause_it_was_told() {
    let node = Node::start();
    let overloaded = || no(Refusal::Overloaded(ms(400)));
    node.said.write.will([overloaded(), no(Refusal::NoLeader), written(7)]);
    let answer = client(&[&node], LONG, LONG).put(NOTE, "text/plain", "hi").await.expect("the third attempt");
    assert_eq!(answer.version, 7);
    let calls = node.said.write.calls();
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|call| call.request == calls[0].request), "one request, one id");
    assert_eq!(calls[0].request.mutations, one_write(None).mutations);
    // Pauses are spread between a half and one and a half.
    assert!(calls[1].at - calls[0].at >= ms(200), "{:?}", calls[1].at - calls[0].at);
    assert!(calls[2].at - calls[1].at >= ms(50), "{:?}", calls[2].at - calls[1].at);
}

#[tokio::test]
async fn each_write_has_an_id_of_its_own_unless_it_brings_one() {
    let node = Node::start();
    node.said.write.will([written(1)]);
    let client = client(&[&node], LONG, LONG);
    for _ in 0..2 {
        client.write(one_write(None)).await.expect("written");
    }
    let named = v1::BatchWriteRequest { request_id: "mine".into(), ..one_write(None) };
    client.write(named).await.expect("written");
    client.delete(NOTE).await.expect("written");
    let calls = node.said.write.calls();
    let ids: Vec<&str> = calls.iter().map(|call| call.request.request_id.as_str()).collect();
    assert_eq!((ids[0].len(), ids[2]), (36, "mine"));
    assert_ne!(ids[0], ids[1]);
    let delete = calls[3].request.mutations[0].op.clone();
    assert_eq!(delete, Some(v1::mutation::Op::Delete(v1::DeleteOp {})));
}

#[tokio::test]
async fn a_write_says_when_it_was_first_sent_by_the_clock_of_the_cluster() {
    let node = Node::start();
    let time = prost_time(12);
    let header = v1::ResponseHeader { server_time: Some(time), ..Default::default() };
    node.said.write.will([Say::Yes(v1::BatchWriteResponse { header: Some(header), ..Default::default() })]);
    let client = client(&[&node], LONG, LONG);
    client.write(one_write(None)).await.expect("written");
    client.write(one_write(None)).await.expect("written");
    let earlier = v1::BatchWriteRequest { first_sent_time: Some(prost_time(3)), ..one_write(None) };
    client.write(earlier).await.expect("written");
    let sent: Vec<_> = node.said.write.calls().iter().map(|call| call.request.first_sent_time).collect();
    assert_eq!(sent, [None, Some(time), Some(prost_time(3))]);
}

fn prost_time(seconds: u64) -> holdfast_wire::Timestamp {
    holdfast_wire::reply::timestamp(holdfast_model::id::Millis(seconds * 1000))
}

#[tokio::test]
async fn a_read_that_meets_a_bad_copy_asks_the_others_and_each_of_them_once() {
    let damaged = Refusal::Corrupt("a block".into());
    for (bad, reason) in [(damaged, "CHECKSUM"), (Refusal::Internal("input/output error".into()), "INTERNAL")] {
        let nodes = [Node::start(), Node::start(), Node::start()];
        for node in &nodes[..2] {
            node.said.read.will([no(bad.clone())]);
            node.said.write.will([no(bad.clone())]);
        }
        nodes[2].said.read.will([Say::Yes(v1::BatchGetRecordsResponse { header: header(3, 0), ..Default::default() })]);
        let asked = || nodes.each_ref().map(|node| node.said.read.calls().len());
        let all = client(&[&nodes[0], &nodes[1], &nodes[2]], LONG, LONG);
        all.get(NOTE).await.expect("the third copy is whole");
        assert_eq!(asked(), [1, 1, 1]);
        // The first two are left alone for a while.
        all.get(NOTE).await.expect("the third copy is whole");
        assert_eq!(asked(), [1, 1, 2]);
        let error = client(&[&nodes[0], &nodes[1]], LONG, LONG).get(NOTE).await.expect_err("no copy is whole");
        assert_eq!(error.reason(), reason);
        assert_eq!(asked(), [2, 2, 2]);
        // What became of a write the next node cannot know.
        let error = client(&[&nodes[0], &nodes[1]], LONG, LONG).put(NOTE, "text/plain", "hi").await.expect_err("no");
        assert_eq!(error.reason(), reason);
        assert_eq!(nodes.each_ref().map(|node| node.said.write.calls().len()), [1, 0, 0]);
    }
}

#[tokio::test]
async fn calls_go_to_the_leader_that_an_answer_named() {
    let nodes = [Node::start(), Node::start(), Node::start()];
    for (node, id) in nodes.iter().zip(1..) {
        let answer = v1::BatchWriteResponse { header: header(id, 3), ..Default::default() };
        node.said.write.will([Say::Yes(answer)]);
    }
    let client = client(&[&nodes[0], &nodes[1], &nodes[2]], LONG, LONG);
    for _ in 0..5 {
        client.put(NOTE, "text/plain", "hi").await.expect("written");
    }
    let counts = nodes.each_ref().map(|node| node.said.write.calls().len());
    assert_eq!(counts, [1, 1, 3], "each is asked once, until the leader is found");
}

#[tokio::test]
async fn a_leader_that_leads_no_more_is_not_gone_back_to() {
    let nodes = [Node::start(), Node::start(), Node::start()];
    let led = |id| Say::Yes(v1::BatchWriteResponse { header: header(id, id), ..Default::default() });
    nodes[0].said.write.will([led(1), no(Refusal::NoLeader)]);
    nodes[1].said.write.will([no(Refusal::NoLeader)]);
    nodes[2].said.write.will([led(3)]);
    let client = client(&[&nodes[0], &nodes[1], &nodes[2]], LONG, LONG);
    for _ in 0..2 {
        client.put(NOTE, "text/plain", "hi").await.expect("written");
    }
    let counts = nodes.each_ref().map(|node| node.said.write.calls().len());
    assert_eq!(counts, [2, 1, 1], "each other node is asked once");
}

#[tokio::test]
async fn what_no_retry_can_help_is_sent_once() {
    let refusals = [
        Refusal::field("user_id", "is empty"),
        Refusal::Rejected(Rejection::VersionMismatch { conflicts: Vec::new(), head: None }, None),
        Refusal::Rejected(Rejection::RequestTooOld, None),
        Refusal::Unsupported("undelete"),
        Refusal::Corrupt("x".into()),
        Refusal::Internal("x".into()),
    ];
    for refusal in refusals {
        let nodes = [Node::start(), Node::start()];
        nodes[0].said.write.will([no(refusal.clone())]);
        nodes[1].said.write.will([written(1)]);
        let error = client(&[&nodes[0], &nodes[1]], LONG, LONG).write(one_write(None)).await.expect_err("refused");
        assert_eq!(error.reason(), refusal.reason());
        let counts = nodes.each_ref().map(|node| node.said.write.calls().len());
        assert_eq!(counts, [1, 0], "{refusal:?}");
    }
}

#[tokio::test]
async fn the_deadline_ends_a_call_and_is_told_to_the_node() {
    let node = Node::start();
    node.said.write.will([Say::Never]);
    node.said.read.will([Say::Never]);
    let client = client(&[&node], LONG, LONG).with_deadline(ms(400));
    let started = Instant::now();
    let error = client.put(NOTE, "text/plain", "hi").await.expect_err("no answer");
    let took = started.elapsed();
    assert!(took >= ms(300) && took < ms(5000), "{took:?}");
    let call = &node.said.write.calls()[0];
    match error {
        Error::OutcomeUnknown { request_id, .. } => assert_eq!(request_id, call.request.request_id),
        other => panic!("it may have been written, and the client says {other:?}"),
    }
    let told = call.timeout.expect("the node knows how long it has");
    assert!(told >= ms(200) && told <= ms(350), "{told:?}: the node answers before the client gives up");
    let error = client.get(NOTE).await.expect_err("no answer");
    assert!(matches!(error, Error::Unavailable { .. }), "a read has no outcome: {error:?}");
}

#[tokio::test]
async fn a_node_that_hangs_is_left_for_another_one() {
    let nodes = [Node::start(), Node::start()];
    nodes[0].said.write.will([Say::Never]);
    nodes[1].said.write.will([written(7)]);
    let client = client(&[&nodes[0], &nodes[1]], LONG, ms(300));
    let started = Instant::now();
    assert_eq!(client.put(NOTE, "text/plain", "hi").await.expect("the other node").version, 7);
    assert!(started.elapsed() < ms(5000), "{:?}", started.elapsed());
    let (hung, answered) = (nodes[0].said.write.calls(), nodes[1].said.write.calls());
    assert_eq!((hung.len(), answered.len()), (1, 1));
    assert_eq!(hung[0].request, answered[0].request, "one request, one id");
    client.put(NOTE, "text/plain", "hi").await.expect("written");
    assert_eq!(nodes[0].said.write.calls().len(), 1, "who answered last is asked first");
}

#[tokio::test]
async fn a_slow_cluster_gets_longer_attempts() {
    let node = Node::start();
    node.said.read.will([Say::Late(ms(700), v1::BatchGetRecordsResponse::default())]);
    // 150, 300, 600, 1200 ms.
    client(&[&node], LONG, ms(150)).get(NOTE).await.expect("an attempt that is long enough");
    let count = node.said.read.calls().len();
    assert!((2..=6).contains(&count), "{count} attempts");
}

/// An address that refuses connections for as long as the socket is held: bound, not listening.
fn dead_end() -> (tokio::net::TcpSocket, String) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("valid")).expect("a port");
    let address = socket.local_addr().expect("bound").to_string();
    (socket, address)
}

#[tokio::test]
async fn what_nobody_received_had_no_effect() {
    let (_held, dead) = dead_end();
    let node = Node::start();
    node.said.write.will([written(7)]);
    let alone = Client::builder().endpoints([dead.clone()]).deadline(ms(300)).build().expect("valid");
    let error = alone.put(NOTE, "text/plain", "hi").await.expect_err("nobody there");
    assert!(matches!(error, Error::Unavailable { .. }), "it was never sent: {error:?}");
    assert!(error.to_string().contains(&dead) && error.to_string().contains("refused"), "{error}");
    let both = Client::builder().endpoints([dead, node.address.clone()]).build().expect("valid");
    assert_eq!(both.put(NOTE, "text/plain", "hi").await.expect("the node that is there").version, 7);
    assert_eq!(node.said.write.calls().len(), 1);
}

#[tokio::test]
async fn an_attempt_that_was_lost_leaves_the_outcome_unknown() {
    let node = Node::start();
    // The first attempt may have been proposed, whatever is said of the later ones.
    node.said.write.will([lost(), no(Refusal::NoLeader)]);
    let error = client(&[&node], ms(500), LONG).write(one_write(None)).await.expect_err("no leader");
    let calls = node.said.write.calls();
    assert!(calls.len() >= 2);
    match error {
        Error::OutcomeUnknown { request_id, .. } => assert_eq!(request_id, calls[0].request.request_id),
        other => panic!("it may have been written, and the client says {other:?}"),
    }
    node.said.write.will([no(Refusal::OutcomeUnknown { deadline: true }), no(Refusal::Overloaded(ms(1)))]);
    let error = client(&[&node], ms(500), LONG).write(one_write(None)).await.expect_err("overloaded");
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    node.said.write.will([no(Refusal::NoLeader)]);
    let error = client(&[&node], ms(300), LONG).write(one_write(None)).await.expect_err("no leader");
    assert!(matches!(&error, Error::Unavailable { reason, .. } if reason == "NO_LEADER"), "{error:?}");
}

#[tokio::test]
async fn a_guard_that_fails_after_a_lost_attempt_proves_something_only_if_it_fails_for_ever() {
    use v1::precondition::Check;
    let node = Node::start();
    let refused_after_loss = async |check: Option<Check>| {
        let mismatch = Rejection::VersionMismatch { conflicts: Vec::new(), head: None };
        node.said.write.will([lost(), no(Refusal::Rejected(mismatch, None))]);
        client(&[&node], LONG, LONG).write(one_write(check)).await.expect_err("refused")
    };
    // Had the lost attempt been written, a repetition would have been answered from the memory of its id.
    for check in [None, Some(Check::Version(3))] {
        let error = refused_after_loss(check).await;
        assert!(matches!(error, Error::Conflict { .. }), "{check:?}: {error:?}");
    }
    for check in [Check::Version(0), Check::Absent(true), Check::Exists(true)] {
        let error = refused_after_loss(Some(check)).await;
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{check:?}: {error:?}");
    }
}

#[tokio::test]
async fn an_overloaded_node_is_waited_for_and_a_draining_one_is_left() {
    let nodes = [Node::start(), Node::start()];
    nodes[0].said.write.will([no(Refusal::Overloaded(ms(10))), written(1), no(Refusal::Draining)]);
    nodes[1].said.write.will([written(2)]);
    let client = client(&[&nodes[0], &nodes[1]], LONG, LONG);
    assert_eq!(client.write(one_write(None)).await.expect("written").version, 1);
    assert_eq!(client.write(one_write(None)).await.expect("written").version, 2);
    let counts = nodes.each_ref().map(|node| node.said.write.calls().len());
    assert_eq!(counts, [3, 1]);
}

#[tokio::test]
async fn nodes_that_all_fail_are_asked_less_and_less_often() {
    let nodes = [Node::start(), Node::start()];
    for node in &nodes {
        node.said.read.will([no(Refusal::Draining)]);
    }
    let error = client(&[&nodes[0], &nodes[1]], ms(500), LONG).get(NOTE).await.expect_err("nobody serves");
    assert_eq!(error.reason(), "DRAINING");
    let count: usize = nodes.iter().map(|node| node.said.read.calls().len()).sum();
    // Rounds of two with pauses of 20, 40, 80, 160 and 320 ms between them, or half of each.
    assert!((2..=16).contains(&count), "{count} calls in half a second");
}

#[tokio::test]
async fn every_key_is_looked_up_however_many_calls_it_takes() {
    let node = Node::start();
    let keys: Vec<v1::RecordKey> =
        (0..501).map(|n| v1::RecordKey { collection: "notes".into(), record_id: format!("n{n}") }).collect();
    let record = |key: &v1::RecordKey| v1::Record { key: Some(key.clone()), ..Default::default() };
    let answer = |found: &[v1::RecordKey], remaining: &[v1::RecordKey]| {
        let records = found.iter().map(record).collect();
        Say::Yes(v1::BatchGetRecordsResponse { records, remaining_keys: remaining.to_vec(), ..Default::default() })
    };
    node.said.read.will([answer(&keys[..498], &keys[498..500]), answer(&keys[498..], &[])]);
    let client = client(&[&node], LONG, LONG);
    let request = v1::BatchGetRecordsRequest {
        user_id: "ann".into(),
        keys: keys.clone(),
        metadata_only: true,
        ..Default::default()
    };
    let found = client.read_all(request.clone()).await.expect("all of them");
    assert_eq!(found, keys.iter().map(record).collect::<Vec<_>>());
    let calls = node.said.read.calls();
    let asked: Vec<&[v1::RecordKey]> = calls.iter().map(|call| &call.request.keys[..]).collect();
    assert_eq!(asked, [&keys[..500], &keys[498..]]);
    assert!(calls.iter().all(|call| call.request.metadata_only && call.request.user_id == "ann"));
    node.said.read.will([answer(&[], &keys[..500]), answer(&keys, &[])]);
    assert!(client.read_all(request).await.is_err(), "a node that looks up nothing is not asked for ever");
    node.said.read.will([answer(&keys[..1], &[]), answer(&[], &[])]);
    assert_eq!(client.get(NOTE).await.expect("answers"), Some(record(&keys[0])));
    assert_eq!(client.get(NOTE).await.expect("answers"), None);
}

#[tokio::test]
async fn a_listing_goes_on_to_its_last_page() {
    let node = Node::start();
    let page = |id: &str, token: &str| {
        let key = v1::RecordKey { collection: "notes".into(), record_id: id.into() };
        let records = vec![v1::Record { key: Some(key), ..Default::default() }];
        Say::Yes(v1::ListRecordsResponse { records, next_page_token: token.into(), ..Default::default() })
    };
    node.said.list.will([page("a", "t1"), page("b", "t2"), page("c", "")]);
    let client = client(&[&node], LONG, LONG);
    let request = || v1::ListRecordsRequest {
        user_id: "ann".into(),
        collection: "notes".into(),
        page_size: 1,
        ..Default::default()
    };
    let all = client.list_all(request()).await.expect("all pages");
    let ids: Vec<&str> = all.iter().filter_map(|record| Some(record.key.as_ref()?.record_id.as_str())).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    let calls = node.said.list.calls();
    let tokens: Vec<&str> = calls.iter().map(|call| call.request.page_token.as_str()).collect();
    assert_eq!(tokens, ["", "t1", "t2"]);
    assert!(calls.iter().all(|call| call.request.page_size == 1));
    node.said.list.will([page("a", "t1"), page("b", "t1"), page("c", "")]);
    assert!(client.list_all(request()).await.is_err(), "a listing that goes in circles is not followed for ever");
}

#[tokio::test]
async fn a_long_poll_may_take_its_wait_besides_the_deadline() {
    let node = Node::start();
    let page = v1::ChangesPage { next_sync_token: "t".into(), ..Default::default() };
    let outcome = Some(v1::get_changes_response::Outcome::Page(page.clone()));
    let answer = v1::GetChangesResponse { header: header(1, 1), outcome };
    node.said.changes.will([Say::Late(ms(700), answer)]);
    let client = client(&[&node], ms(400), ms(400));
    let request = |wait_ms| v1::GetChangesRequest { user_id: "ann".into(), wait_ms, ..Default::default() };
    assert!(client.changes(request(0)).await.is_err());
    let answer = client.changes(request(5000)).await.expect("in time");
    assert_eq!((answer.header.node_id, answer.outcome), (1, SyncOutcome::Page(page)));
    assert_eq!(node.said.changes.calls().last().expect("asked").request, request(5000));
}

#[tokio::test]
async fn a_resync_reaches_the_caller() {
    let node = Node::start();
    let resync = v1::ResyncInfo { reason: 1, common_version: 3, ..Default::default() };
    let outcome = Some(v1::get_changes_response::Outcome::Resync(resync.clone()));
    node.said.changes.will([Say::Yes(v1::GetChangesResponse { header: None, outcome })]);
    let answer = client(&[&node], LONG, LONG).changes(v1::GetChangesRequest::default()).await.expect("answers");
    assert_eq!(answer.outcome, SyncOutcome::Resync(resync));
}

#[tokio::test]
async fn the_largest_answers_are_taken() {
    let node = Node::start();
    let large = || v1::Record { payload: vec![7; 7 << 20].into(), ..Default::default() };
    let read = v1::BatchGetRecordsResponse { records: vec![large()], ..Default::default() };
    node.said.read.will([Say::Yes(read)]);
    let page = v1::ChangesPage { records: vec![large()], ..Default::default() };
    let outcome = Some(v1::get_changes_response::Outcome::Page(page));
    node.said.changes.will([Say::Yes(v1::GetChangesResponse { header: None, outcome })]);
    let client = client(&[&node], LONG, LONG);
    assert_eq!(client.get(NOTE).await.expect("7 MiB").expect("there").payload.len(), 7 << 20);
    assert!(client.changes(v1::GetChangesRequest::default()).await.is_ok());
}

#[tokio::test]
async fn an_operator_s_call_is_made_once_within_its_deadline() {
    let node = Node::start();
    let admin = AdminClient::new(&node.address).expect("valid");
    node.said.transfer.will([no(Refusal::NoLeader), Say::Yes(v1::TransferLeaderResponse { leader_id: 3 })]);
    let error = admin.transfer_leader(3).await.expect_err("no leader");
    assert_eq!((error.reason(), node.said.transfer.calls().len()), ("NO_LEADER", 1));
    assert_eq!(admin.transfer_leader(3).await.expect("moved"), 3);
    assert_eq!(node.said.transfer.calls()[1].request, v1::TransferLeaderRequest { group_id: 0, to_node_id: 3 });
    node.said.status.will([Say::Never]);
    let started = Instant::now();
    let error = admin.with_deadline(ms(300)).status().await.expect_err("no answer");
    assert!(started.elapsed() >= ms(250) && started.elapsed() < ms(5000), "{:?}", started.elapsed());
    assert!(matches!(&error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains(&node.address), "{error}");
    let told = node.said.status.calls()[0].timeout.expect("the node knows how long it has");
    assert!(told <= ms(300), "{told:?}");
    let (_held, dead) = dead_end();
    let error = AdminClient::new(&dead).expect("valid").status().await.expect_err("nobody there");
    assert!(error.to_string().contains(&dead), "{error}");
}

#[tokio::test]
async fn a_batch_that_no_message_can_hold_is_refused_at_once() {
    let node = Node::start();
    node.said.write.will([written(1)]);
    let error = client(&[&node], LONG, LONG).put(NOTE, "image/jpeg", vec![7; 9 << 20]).await.expect_err("9 MiB");
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    assert_eq!(node.said.write.calls().len(), 0);
}
