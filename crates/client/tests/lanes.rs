//! Writes that share streams: each gets its own answer, and what a stream that breaks off leaves open is sent again as it was.

mod fake;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Node, Say};
use holdfast_client::{Client, Error, RecordRef, v1};
use holdfast_wire::status::Refusal;
use tonic::Status;

const LONG: Duration = Duration::from_secs(20);

fn client(nodes: &[&Node], deadline: Duration, streams: usize) -> Client {
    let endpoints = nodes.iter().map(|node| node.address.clone());
    let client = Client::builder().endpoints(endpoints).deadline(deadline).attempt_timeout(deadline).build();
    client.expect("valid").streaming(streams)
}

fn note(user: &str) -> RecordRef<'_> {
    RecordRef { user, collection: "notes", record_id: "n1" }
}

/// The number in a user's name.
fn number(request: &v1::BatchWriteRequest) -> u64 {
    request.user_id.trim_start_matches("user-").parse().expect("a number")
}

async fn all(client: &Client, users: u64) -> Vec<Result<u64, Error>> {
    let writes = (0..users).map(|user| {
        let client = client.clone();
        tokio::spawn(async move {
            let user = format!("user-{user}");
            client.put(note(&user), "text/plain", "hi").await.map(|written| written.version)
        })
    });
    let mut answers = Vec::new();
    for write in writes.collect::<Vec<_>>() {
        answers.push(write.await.expect("ends"));
    }
    answers
}

#[tokio::test]
async fn each_write_gets_its_own_answer_over_few_streams() {
    let node = Node::start();
    // Late ones first: answers come in another order than requests.
    node.said.write.by(|request| {
        let n = number(request);
        let answer = v1::BatchWriteResponse { version: n + 1, ..Default::default() };
        Say::Late(Duration::from_millis(200 - n.min(199)), answer)
    });
    let answers = all(&client(&[&node], LONG, 3), 200).await;
    let versions: Vec<u64> = answers.into_iter().map(|answer| answer.expect("written")).collect();
    assert_eq!(versions, (1..=200).collect::<Vec<_>>());
    assert_eq!(node.said.write_streams.load(Ordering::Relaxed), 3);
    let calls = node.said.write.calls();
    assert!(calls.iter().all(|call| call.timeout.is_some_and(|timeout| timeout > Duration::from_secs(10))));
}

#[tokio::test]
async fn what_is_refused_on_a_stream_is_refused_as_ever_and_the_stream_goes_on() {
    let node = Node::start();
    node.said.write.by(|request| match number(request) % 2 {
        0 => Say::Yes(v1::BatchWriteResponse { version: 5, ..Default::default() }),
        _ => Say::No(Refusal::field("mutations", "too many".to_owned()).into()),
    });
    let answers = all(&client(&[&node], LONG, 1), 10).await;
    for (n, answer) in answers.into_iter().enumerate() {
        match (n % 2, answer) {
            (0, Ok(5)) => {}
            (1, Err(Error::Invalid { message, .. })) if message.contains("too many") => {}
            (_, answer) => panic!("{n}: {answer:?}"),
        }
    }
    assert_eq!(node.said.write_streams.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_a_broken_stream_left_open_is_sent_again_as_it_was() {
    let node = Node::start();
    let mut seen = 0;
    node.said.write.by(move |request| {
        seen += 1;
        match seen {
            // Nine wait, and the tenth takes all of them with it.
            ..10 => Say::Never,
            10 => Say::Break(Status::unavailable("connection reset")),
            _ => Say::Yes(v1::BatchWriteResponse { version: number(request) + 1, ..Default::default() }),
        }
    });
    let answers = all(&client(&[&node], LONG, 1), 10).await;
    let versions: Vec<u64> = answers.into_iter().map(|answer| answer.expect("written")).collect();
    assert_eq!(versions, (1..=10).collect::<Vec<_>>());
    assert_eq!(node.said.write_streams.load(Ordering::Relaxed), 2);
    let calls = node.said.write.calls();
    assert_eq!(calls.len(), 20);
    for first in &calls[..10] {
        let again = calls[10..].iter().find(|call| call.request.user_id == first.request.user_id).expect("sent again");
        assert_eq!(again.request, first.request, "one request, one id");
    }
}

#[tokio::test]
async fn of_what_a_stream_left_open_nobody_knows_and_of_what_a_node_did_not_read_it_is_known() {
    let cases: [(Status, bool); 2] =
        [(Status::unavailable("connection reset"), true), (Refusal::Draining.into(), false)];
    for (status, is_unknown) in cases {
        let node = Node::start();
        let said = status.clone();
        node.said.write.by(move |_| Say::Break(said.clone()));
        let answer = all(&client(&[&node], Duration::from_millis(400), 1), 1).await.remove(0);
        let error = answer.expect_err("nobody takes it");
        assert_eq!(matches!(error, Error::OutcomeUnknown { .. }), is_unknown, "{status:?}: {error}");
    }
}

#[tokio::test]
async fn whoever_waits_no_more_holds_up_nobody() {
    let node = Node::start();
    node.said.write.by(|request| match number(request) {
        0 => Say::Never,
        n => Say::Yes(v1::BatchWriteResponse { version: n, ..Default::default() }),
    });
    let streams = client(&[&node], LONG, 1);
    let short = streams.with_deadline(Duration::from_millis(200));
    let error = short.put(note("user-0"), "text/plain", "hi").await.expect_err("never answered");
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    for n in 1..300 {
        let user = format!("user-{n}");
        assert_eq!(streams.put(note(&user), "text/plain", "hi").await.expect("written").version, n);
    }
    assert_eq!(node.said.write_streams.load(Ordering::Relaxed), 1);
}
