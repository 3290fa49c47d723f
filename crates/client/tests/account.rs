//! Users, devices, manifests, sessions and the retry budget, over real sockets.

mod fake;

use std::time::Duration;

use fake::{Node, Say, Step};
use holdfast_client::v1::read_consistency::Level;
use holdfast_client::{Client, Error, ManifestPart, RecordRef, RetryBudget, Session, v1};
use holdfast_model::outcome::Rejection;
use holdfast_wire::status::Refusal;
use tonic::Status;

const NOTE: RecordRef<'_> = RecordRef { user: "ann", collection: "notes", record_id: "n1" };
const LONG: Duration = Duration::from_secs(20);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn client(nodes: &[&Node]) -> Client {
    let endpoints = nodes.iter().map(|node| node.address.clone());
    Client::builder().endpoints(endpoints).deadline(LONG).attempt_timeout(LONG).build().expect("valid")
}

fn no<A>(refusal: Refusal) -> Say<A> {
    Say::No(refusal.into())
}

#[tokio::test]
async fn calls_about_users_and_devices_are_tried_again_and_elsewhere() {
    let nodes = [Node::start(), Node::start()];
    let said = &nodes[0].said;
    let other = &nodes[1].said;
    let usage = v1::Usage { used_bytes: 5, quota_bytes: 9, record_count: 2 };
    let user = v1::GetUserResponse { usage: Some(usage), head_version: 7, ..Default::default() };
    said.user.will([no(Refusal::Draining)]);
    other.user.will([no(Refusal::NoLeader), Say::Yes(user)]);
    for (method, other) in [(&said.user, &other.user)] {
        let asked = v1::GetUserRequest { user_id: "ann".into(), consistency: None };
        assert_eq!(client(&[&nodes[0], &nodes[1]]).user(asked.clone()).await.expect("answers"), user);
        assert!(!method.calls().is_empty() && other.calls().len() == 2);
        assert!(other.calls().iter().all(|call| call.request == asked));
    }
    said.ack.will([no(Refusal::ReplicaBehind), Say::Yes(Default::default())]);
    client(&[&nodes[0]]).ack_cursor("ann", "phone", "t1").await.expect("acked");
    let acked = v1::AckCursorRequest { user_id: "ann".into(), device_id: "phone".into(), sync_token: "t1".into() };
    assert!(said.ack.calls().len() == 2 && said.ack.calls().iter().all(|call| call.request == acked));
    let current = Refusal::Precondition { reason: "TOKEN_NOT_CURRENT", message: "m".into() };
    said.ack.will([no(current), Say::Yes(Default::default())]);
    let error = client(&[&nodes[0]]).ack_cursor("ann", "phone", "t0").await.expect_err("refused");
    assert!(matches!(&error, Error::Precondition { reason, .. } if reason == "TOKEN_NOT_CURRENT"), "{error:?}");

    let device = v1::Device { device_id: "phone".into(), acked_version: 3, ack_time: None };
    let devices = v1::ListDevicesResponse { header: None, devices: vec![device] };
    said.devices.will([no(Refusal::NoLeader), Say::Yes(devices.clone())]);
    assert_eq!(client(&[&nodes[0]]).list_devices("ann").await.expect("lists"), devices);
    assert_eq!(said.devices.calls()[1].request.user_id, "ann");
    said.dropped.will([no(Refusal::NoLeader), Say::Yes(Default::default())]);
    client(&[&nodes[0]]).drop_device("ann", "phone").await.expect("dropped");
    let dropped = v1::DropDeviceRequest { user_id: "ann".into(), device_id: "phone".into() };
    assert_eq!(said.dropped.calls()[1].request, dropped);
}

fn record(id: &str, version: u64) -> v1::Record {
    let key = v1::RecordKey { collection: "notes".into(), record_id: id.into() };
    v1::Record { key: Some(key), version, ..Default::default() }
}

fn header(incarnation: u64, applied_index: u64) -> v1::ResponseHeader {
    v1::ResponseHeader { incarnation, applied_index, node_id: 1, ..Default::default() }
}

fn first(records: &[v1::Record]) -> Step {
    let header = Some(header(1, 9));
    Step::Chunk(v1::GetManifestResponse { header, records: records.to_vec(), ..Default::default() })
}

fn more(records: &[v1::Record]) -> Step {
    Step::Chunk(v1::GetManifestResponse { records: records.to_vec(), ..Default::default() })
}

fn last(records: &[v1::Record]) -> Step {
    let records = records.to_vec();
    Step::Chunk(v1::GetManifestResponse { header: None, records, sync_token: "t".into(), tombstone_horizon: 4 })
}

fn asked() -> v1::GetManifestRequest {
    v1::GetManifestRequest { user_id: "ann".into(), collections: vec!["notes".into()], consistency: None }
}

#[tokio::test]
async fn a_manifest_is_handed_out_as_it_comes() {
    let node = Node::start();
    let [a, b] = [record("a", 1), record("b", 2)];
    node.said.manifest.will([Say::Yes(vec![first(std::slice::from_ref(&a)), Step::Hang])]);
    let client = client(&[&node]);
    let mut manifest = client.manifest(asked());
    let part = manifest.next_part().await.expect("a part");
    assert_eq!(part, Some(ManifestPart::Records(vec![a.clone()])), "although the second chunk never comes");
    assert_eq!(node.said.manifest.calls()[0].request, asked());
    node.said.manifest.will([Say::Yes(vec![
        first(&[]),
        more(std::slice::from_ref(&a)),
        last(std::slice::from_ref(&b)),
    ])]);
    let view = client.manifest_all(asked()).await.expect("whole");
    assert_eq!(view.records, [a, b]);
    assert_eq!((view.end.header, &*view.end.sync_token, view.end.tombstone_horizon), (header(1, 9), "t", 4));
    let mut manifest = client.manifest(asked());
    while let Some(part) = manifest.next_part().await.expect("a part") {
        assert!(!matches!(part, ManifestPart::Restarted));
    }
    assert_eq!(manifest.next_part().await.expect("still at the end"), None);
}

#[tokio::test]
async fn a_manifest_that_breaks_is_begun_again_and_never_taken_for_whole() {
    let [a, b, c] = [record("a", 1), record("b", 2), record("c", 3)];
    let broken: [(&str, Vec<Step>); 4] = [
        ("closed as if all were well", vec![first(&[a.clone(), b.clone()])]),
        ("an error", vec![first(&[a.clone(), b.clone()]), Step::Break(Status::unavailable("reset"))]),
        ("draining", vec![first(&[a.clone(), b.clone()]), Step::Break(Refusal::Draining.into())]),
        ("silence", vec![first(&[a.clone(), b.clone()]), Step::Hang]),
    ];
    for (what, steps) in broken {
        let nodes = [Node::start(), Node::start()];
        nodes[0].said.manifest.will([Say::Yes(steps)]);
        nodes[1].said.manifest.will([Say::Yes(vec![first(std::slice::from_ref(&a)), last(std::slice::from_ref(&c))])]);
        let endpoints = nodes.each_ref().map(|node| node.address.clone());
        let builder = Client::builder().endpoints(endpoints).deadline(LONG);
        let client = builder.attempt_timeout(ms(300)).build().expect("valid");
        let mut manifest = client.manifest(asked());
        let mut parts = Vec::new();
        while let Some(part) = manifest.next_part().await.expect("a part") {
            parts.push(part);
        }
        assert_eq!(parts[0], ManifestPart::Records(vec![a.clone(), b.clone()]), "{what}");
        assert_eq!(parts[1], ManifestPart::Restarted, "{what}: the new view is not the old one");
        assert_eq!(parts[2], ManifestPart::Records(vec![a.clone()]), "{what}");
        assert_eq!(parts[3], ManifestPart::Records(vec![c.clone()]), "{what}");
        assert!(matches!(&parts[4], ManifestPart::End(end) if end.sync_token == "t"), "{what}");
        assert_eq!(parts.len(), 5, "{what}");
        let view = client.manifest_all(asked()).await.expect("whole");
        assert_eq!(view.records, [a.clone(), c.clone()], "{what}");
    }
}

#[tokio::test]
async fn a_manifest_that_gets_no_further_ends_with_an_error() {
    let node = Node::start();
    node.said.manifest.will([Say::Yes(vec![first(&[record("a", 1)])])]);
    let client = client(&[&node]).with_deadline(ms(400));
    let error = client.manifest_all(asked()).await.expect_err("never whole");
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(node.said.manifest.calls().len() >= 2);
    node.said.manifest.will([no(Refusal::field("collections", "is not one"))]);
    let before = node.said.manifest.calls().len();
    assert!(matches!(client.manifest_all(asked()).await, Err(Error::Invalid { .. })));
    assert_eq!(node.said.manifest.calls().len(), before + 1, "what no retry can help is asked once");
}

fn at(incarnation: u64, applied_index: u64) -> Option<Level> {
    Some(Level::AtLeast(v1::AtLeast { incarnation, applied_index, group_id: 0 }))
}

fn read_at(header: v1::ResponseHeader) -> Say<v1::BatchGetRecordsResponse> {
    Say::Yes(v1::BatchGetRecordsResponse { header: Some(header), ..Default::default() })
}

fn levels(node: &Node) -> Vec<Option<Level>> {
    node.said.read.calls().iter().map(|call| call.request.consistency.and_then(|wanted| wanted.level)).collect()
}

#[tokio::test]
async fn a_session_reads_at_least_what_it_saw() {
    let node = Node::start();
    let written = v1::BatchWriteResponse { header: Some(header(1, 8)), ..Default::default() };
    node.said.write.will([Say::Yes(written)]);
    node.said.read.will([read_at(header(1, 5)), read_at(header(1, 4)), read_at(header(1, 9))]);
    let session: Session = client(&[&node]).session();
    session.get(NOTE).await.expect("read");
    session.get(NOTE).await.expect("read");
    session.put(NOTE, "text/plain", "hi").await.expect("written");
    session.clone().get(NOTE).await.expect("read");
    session.with_deadline(ms(5000)).get(NOTE).await.expect("read");
    assert_eq!(levels(&node), [None, at(1, 5), at(1, 8), at(1, 9)]);
    // A caller's own choice is not touched.
    let stale = v1::ReadConsistency { level: Some(Level::MaxStalenessMs(70)) };
    let request = v1::BatchGetRecordsRequest { keys: vec![NOTE.key()], consistency: Some(stale), ..Default::default() };
    session.read(request).await.expect("read");
    assert_eq!(levels(&node)[4], Some(Level::MaxStalenessMs(70)));
    // A client that is no session asks for nothing.
    client(&[&node]).get(NOTE).await.expect("read");
    assert_eq!(levels(&node)[5], None);
}

#[tokio::test]
async fn every_kind_of_read_is_bound_by_the_session_and_every_answer_counts() {
    let node = Node::start();
    let page = v1::get_changes_response::Outcome::Page(v1::ChangesPage::default());
    node.said.changes.will([Say::Yes(v1::GetChangesResponse { header: Some(header(1, 2)), outcome: Some(page) })]);
    node.said.list.will([Say::Yes(v1::ListRecordsResponse { header: Some(header(1, 3)), ..Default::default() })]);
    node.said.user.will([Say::Yes(v1::GetUserResponse { header: Some(header(1, 4)), ..Default::default() })]);
    node.said.manifest.will([Say::Yes(vec![first(&[]), last(&[])])]);
    let mismatch = Rejection::VersionMismatch { conflicts: Vec::new(), head: None };
    node.said.write.will([no(Refusal::Rejected(mismatch, Some(header(1, 12))))]);
    node.said.ack.will([Say::Yes(v1::AckCursorResponse { header: Some(header(1, 15)) })]);
    let session = client(&[&node]).session();
    let seen = || session.consistency().and_then(|wanted| wanted.level);
    let _ = session.changes(v1::GetChangesRequest::default()).await.expect("page");
    assert_eq!(seen(), at(1, 2));
    session.list_all(v1::ListRecordsRequest::default()).await.expect("list");
    session.user(v1::GetUserRequest::default()).await.expect("user");
    session.manifest_all(asked()).await.expect("manifest");
    assert_eq!(seen(), at(1, 9));
    session.put(NOTE, "text/plain", "hi").await.expect_err("a guard failed");
    assert_eq!(seen(), at(1, 12));
    session.ack_cursor("ann", "phone", "t").await.expect("acked");
    assert_eq!(seen(), at(1, 15));
    session.observe(&header(1, 20));
    assert_eq!(seen(), at(1, 20), "a watch's hint, for example");
    let level = |wanted: &Option<v1::ReadConsistency>| wanted.and_then(|wanted| wanted.level);
    assert_eq!(level(&node.said.list.calls()[0].request.consistency), at(1, 2));
    assert_eq!(level(&node.said.user.calls()[0].request.consistency), at(1, 3));
    assert_eq!(level(&node.said.manifest.calls()[0].request.consistency), at(1, 4));
    let _ = session.changes(v1::GetChangesRequest::default()).await.expect("page");
    assert_eq!(level(&node.said.changes.calls()[1].request.consistency), at(1, 20));
}

#[tokio::test]
async fn a_session_begins_anew_in_a_restored_cluster() {
    let node = Node::start();
    let other_history = || no(Refusal::Rejected(Rejection::IncarnationMismatch, None));
    node.said.read.will([read_at(header(1, 90)), other_history(), read_at(header(2, 7)), read_at(header(2, 8))]);
    let session = client(&[&node]).session();
    for _ in 0..3 {
        session.get(NOTE).await.expect("read");
    }
    let linearizable = Some(Level::Linearizable(v1::Linearizable {}));
    assert_eq!(levels(&node), [None, at(1, 90), linearizable, at(2, 7)]);
    // Once: a cluster that says so again is not asked for ever.
    node.said.read.will([other_history()]);
    let error = session.get(NOTE).await.expect_err("refused twice");
    assert_eq!((error.reason(), levels(&node).len()), ("INCARNATION_MISMATCH", 6));
    let mismatch = Status::from(Refusal::Rejected(Rejection::IncarnationMismatch, None));
    node.said.manifest.will([Say::No(mismatch), Say::Yes(vec![first(&[]), last(&[])])]);
    session.observe(&header(3, 1));
    session.manifest_all(asked()).await.expect("whole");
    let asked: Vec<_> = node.said.manifest.calls().iter().map(|call| call.request.consistency).collect();
    assert_eq!(asked.iter().map(|wanted| wanted.and_then(|it| it.level)).collect::<Vec<_>>(), [at(3, 1), linearizable]);
}

#[tokio::test]
async fn retries_end_when_the_budget_of_all_clones_is_spent_and_first_attempts_do_not() {
    let node = Node::start();
    node.said.read.will([no(Refusal::Overloaded(ms(1)))]);
    let builder = Client::builder().endpoints([node.address.clone()]).deadline(LONG);
    let budget = RetryBudget { percent: 0, per_second: 0, saved_max: 3 };
    let client = builder.retry_budget(budget).build().expect("valid");
    let clone = client.with_deadline(LONG);
    let error = client.get(NOTE).await.expect_err("overloaded for ever");
    assert!(matches!(&error, Error::Overloaded { reason, .. } if reason == "OVERLOADED"), "its last error: {error:?}");
    assert_eq!(node.said.read.calls().len(), 4, "one attempt and three retries");
    for count in 5..9 {
        clone.session().get(NOTE).await.expect_err("overloaded for ever");
        assert_eq!(node.said.read.calls().len(), count, "no retry is left, but each call is made once");
    }
    // What may have been written stays unknown.
    node.said.write.will([Say::No(Status::unavailable("connection reset"))]);
    let error = clone.put(NOTE, "text/plain", "hi").await.expect_err("lost");
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    assert_eq!(node.said.write.calls().len(), 1);
    node.said.manifest.will([Say::Yes(vec![first(&[])])]);
    client.manifest_all(asked()).await.expect_err("broken off");
    assert_eq!(node.said.manifest.calls().len(), 1);
}

#[tokio::test]
async fn calls_that_need_no_retry_earn_one_for_others() {
    let node = Node::start();
    node.said.read.will([no(Refusal::Overloaded(ms(1)))]);
    node.said.user.will([Say::Yes(Default::default())]);
    let builder = Client::builder().endpoints([node.address.clone()]).deadline(LONG);
    let budget = RetryBudget { percent: 10, per_second: 0, saved_max: 2 };
    let client = builder.retry_budget(budget).build().expect("valid");
    client.get(NOTE).await.expect_err("overloaded");
    assert_eq!(node.said.read.calls().len(), 3);
    for _ in 0..9 {
        client.user(v1::GetUserRequest::default()).await.expect("answers");
    }
    client.get(NOTE).await.expect_err("overloaded");
    assert_eq!(node.said.read.calls().len(), 5, "eleven calls earned one retry");
}
